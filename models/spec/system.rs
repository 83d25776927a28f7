//! The kinds of models: one that answers questions, or an encoder; for directories, GGUF files and files of `configs/models`.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    ModelSpec, VqganSpec, bad,
    conv_net::ConvNetSpec,
    encoder::{DualEncoderSpec, VitSpec},
};
use crate::error::{Error, Kind, Result};

/// The specification of a model of any kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum SystemSpec {
    /// `lwm`, `llama`, `vision_language`: answers questions about text, codes (LWM) or features (LLaVA and its relatives).
    Answers(Box<ModelSpec>),
    /// `dual_encoder`: encodes pictures and texts to comparable vectors (CLIP, SigLIP).
    DualEncoder(Box<DualEncoderSpec>),
    /// `classifier`: a vision transformer (ViT, DINOv2).
    Classifier(Box<VitSpec>),
    /// `conv_net`: a convolutional network (ResNet).
    ConvNet(Box<ConvNetSpec>),
    /// `vqgan`: encodes frames to codes and decodes them.
    Vqgan(Box<VqganSpec>),
}

/// The kinds of models that a verb may take or refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemKind {
    /// Answers questions about text only.
    Text,
    /// Answers questions about frames, as codes of a VQGAN (LWM).
    Codes,
    /// Answers questions about frames, as features of an encoder (LLaVA and its relatives).
    VisionLanguage,
    /// Encodes pictures and texts to vectors (CLIP, SigLIP).
    DualEncoder,
    /// Encodes pictures to vectors (ViT, DINOv2, ResNet).
    PictureEncoder,
    /// Encodes frames to codes and decodes them (VQGAN).
    Vqgan,
}

impl fmt::Display for SystemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "a text model",
            Self::Codes => "a model of text and codes",
            Self::VisionLanguage => "a vision-language model",
            Self::DualEncoder => "a dual encoder",
            Self::PictureEncoder => "an encoder of pictures",
            Self::Vqgan => "a VQGAN alone",
        })
    }
}

/// What a verb needs of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Answers in words.
    Answers,
    /// Answers, or makes something of frames.
    Frames,
    /// Codes of frames, and pictures of codes.
    Codes,
    /// Vectors of pictures.
    PictureVectors,
    /// Vectors of texts, to compare with those of pictures.
    TextVectors,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answers => "a model that answers in words",
            Self::Frames => "a model that takes frames",
            Self::Codes => "a model with a VQGAN, which encodes frames to codes",
            Self::PictureVectors => {
                "CLIP, SigLIP, ViT, DINOv2 or ResNet, which encode pictures to vectors"
            }
            Self::TextVectors => "CLIP or SigLIP, which also encode texts to vectors",
        })
    }
}

/// The error that refuses a model for its kind: `name` is the model, `found` its kind, `expected` what was needed.
pub fn refusal(name: &str, found: SystemKind, expected: Need) -> Error {
    let message = format!("the model {name} is {found}, expected {expected}");
    Error::new(Kind::BadInput, message)
}

/// The kinds of encoders in files of `configs/models`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EncoderKind {
    DualEncoder,
    Classifier,
    ConvNet,
    Vqgan,
}

/// The file of a VQGAN without a decoder, without the key `model_type`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VqganTable {
    vqgan: VqganSpec,
}

impl SystemSpec {
    /// Parses and validates the text of a file of `configs/models`.
    ///
    /// # Errors
    /// `BadInput` for an invalid specification of its kind.
    pub fn from_toml(text: &str) -> Result<Self> {
        let mut file: toml::Table =
            toml::from_str(text).map_err(|e| bad(e.to_string().trim_end().replace('\n', " ")))?;
        let named = file.get("model_type").cloned();
        let kind = named.and_then(|kind| kind.try_into::<EncoderKind>().ok());
        let Some(kind) = kind else {
            // Models with a decoder: parsed from the text, whose errors have line and column.
            return ModelSpec::from_toml(text).map(|spec| Self::Answers(Box::new(spec)));
        };
        file.remove("model_type");
        file.remove("description");
        let spec = match kind {
            EncoderKind::DualEncoder => Self::DualEncoder(of_table(file)?),
            EncoderKind::Classifier => Self::Classifier(of_table(file)?),
            EncoderKind::ConvNet => Self::ConvNet(of_table(file)?),
            EncoderKind::Vqgan => Self::Vqgan(Box::new(of_table::<VqganTable>(file)?.vqgan)),
        };
        spec.validate()?;
        Ok(spec)
    }

    /// Checks every value, and that the parts fit together.
    ///
    /// # Errors
    /// `BadInput` naming the invalid value.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Answers(spec) => spec.validate(),
            Self::DualEncoder(spec) => spec.validate(),
            Self::Classifier(spec) => spec.validate("classifier"),
            Self::ConvNet(spec) => spec.validate(),
            Self::Vqgan(spec) => spec.validate(),
        }
    }

    /// The kind of model.
    pub fn kind(&self) -> SystemKind {
        match self {
            Self::Answers(spec) if spec.vqgan.is_some() => SystemKind::Codes,
            Self::Answers(spec) if spec.vision.is_some() => SystemKind::VisionLanguage,
            Self::Answers(_) => SystemKind::Text,
            Self::DualEncoder(_) => SystemKind::DualEncoder,
            Self::Classifier(_) | Self::ConvNet(_) => SystemKind::PictureEncoder,
            Self::Vqgan(_) => SystemKind::Vqgan,
        }
    }

    /// The specification of a model that answers questions; `None` for an encoder.
    pub fn answering(&self) -> Option<&ModelSpec> {
        match self {
            Self::Answers(spec) => Some(spec),
            _ => None,
        }
    }

    /// Width of a picture's vector; `None` for a model that does not encode pictures to vectors.
    pub fn vector_width(&self) -> Option<usize> {
        match self {
            Self::DualEncoder(spec) => Some(spec.embedding_size),
            Self::Classifier(spec) => Some(spec.encoder.hidden_size),
            Self::ConvNet(spec) => Some(spec.grid_channels()),
            Self::Answers(_) | Self::Vqgan(_) => None,
        }
    }

    /// The shape of its VQGAN, with or without a decoder.
    pub fn vqgan(&self) -> Option<&VqganSpec> {
        match self {
            Self::Answers(spec) => spec.vqgan.as_ref(),
            Self::Vqgan(spec) => Some(spec),
            _ => None,
        }
    }
}

fn of_table<T: DeserializeOwned>(table: toml::Table) -> Result<T> {
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|e| bad(e.to_string()))
}
