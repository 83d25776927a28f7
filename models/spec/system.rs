//! What a model is: one that answers, or an encoder alone; the same for a folder, a GGUF file and a file of `configs/models`.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    ModelSpec, VqganSpec, bad,
    conv_net::ConvNetSpec,
    encoder::{DualEncoderSpec, VitSpec},
};
use crate::error::{Error, Kind, Result};

/// What a model is made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum SystemSpec {
    /// `lwm`, `llama`, `vision_language`: what can be asked, of text, of codes (LWM) or of features (LLaVA and its relatives).
    Answers(Box<ModelSpec>),
    /// `dual_encoder`: pictures and texts to vectors that are compared (CLIP, SigLIP).
    DualEncoder(Box<DualEncoderSpec>),
    /// `classifier`: a vision transformer that names what it sees (ViT, DINOv2).
    Classifier(Box<VitSpec>),
    /// `conv_net`: a convolutional network (ResNet).
    ConvNet(Box<ConvNetSpec>),
    /// `vqgan`: frames to codes and back.
    Vqgan(Box<VqganSpec>),
}

/// The kinds of models that a verb may take or refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemKind {
    /// Answers, and sees nothing.
    Text,
    /// Answers, and reads frames as codes of a VQGAN (LWM).
    Codes,
    /// Answers, and reads frames as features of an encoder (LLaVA and its relatives).
    VisionLanguage,
    /// Makes vectors of pictures and of texts (CLIP, SigLIP).
    DualEncoder,
    /// Makes vectors of pictures (ViT, DINOv2, ResNet).
    PictureEncoder,
    /// Makes codes of frames and pictures of codes.
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
            Self::Frames => "a model that looks at frames",
            Self::Codes => "a model with a VQGAN, which makes codes of frames",
            Self::PictureVectors => {
                "CLIP, SigLIP, ViT, DINOv2 or ResNet, which make vectors of pictures"
            }
            Self::TextVectors => "CLIP or SigLIP, which make vectors of texts too",
        })
    }
}

/// The one sentence that refuses a model for what it is: `name` says which, `found` what it is, `expected` what was needed.
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

/// What stands in the file of a VQGAN alone, beside its kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VqganTable {
    vqgan: VqganSpec,
}

impl SystemSpec {
    /// Parses and validates the text of a file of `configs/models`.
    ///
    /// # Errors
    /// `BadInput` for what is no specification of the kind that it names.
    pub fn from_toml(text: &str) -> Result<Self> {
        let mut file: toml::Table =
            toml::from_str(text).map_err(|e| bad(e.to_string().trim_end().replace('\n', " ")))?;
        let named = file.get("model_type").cloned();
        let kind = named.and_then(|kind| kind.try_into::<EncoderKind>().ok());
        let Some(kind) = kind else {
            // Whatever else stands there: its error knows line and column.
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

    /// Checks every value and how the parts fit together.
    ///
    /// # Errors
    /// `BadInput` naming the value that cannot be.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Answers(spec) => spec.validate(),
            Self::DualEncoder(spec) => spec.validate(),
            Self::Classifier(spec) => spec.validate("classifier"),
            Self::ConvNet(spec) => spec.validate(),
            Self::Vqgan(spec) => spec.validate(),
        }
    }

    /// What kind of model it is.
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

    /// The model that can be asked; `None` for an encoder alone.
    pub fn answering(&self) -> Option<&ModelSpec> {
        match self {
            Self::Answers(spec) => Some(spec),
            _ => None,
        }
    }

    /// Numbers of the vector that it makes of a picture; `None` for a model that makes none.
    pub fn vector_width(&self) -> Option<usize> {
        match self {
            Self::DualEncoder(spec) => Some(spec.embedding_size),
            Self::Classifier(spec) => Some(spec.encoder.hidden_size),
            Self::ConvNet(spec) => Some(spec.grid_channels()),
            Self::Answers(_) | Self::Vqgan(_) => None,
        }
    }

    /// The shape of its VQGAN, with a decoder beside it or without.
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
