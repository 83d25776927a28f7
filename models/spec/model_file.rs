//! A file of `configs/models`: a model that answers, or an encoder alone.

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    ModelSpec, VqganSpec, bad,
    conv_net::ConvNetSpec,
    encoder::{DualEncoderSpec, VitSpec},
};
use crate::error::{Error, Kind, Result};

/// What `model_type` of a file says that it holds.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelFile {
    /// `lwm`, `llama`, `vision_language`: what can be asked.
    Answers(Box<ModelSpec>),
    /// `dual_encoder`: pictures and texts to vectors that are compared.
    DualEncoder(Box<DualEncoderSpec>),
    /// `classifier`: a vision transformer that names what it sees.
    Classifier(Box<VitSpec>),
    /// `conv_net`: a convolutional network.
    ConvNet(Box<ConvNetSpec>),
    /// `vqgan`: frames to codes and back.
    Vqgan(Box<VqganSpec>),
}

/// The kinds of encoders.
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

impl ModelFile {
    /// Parses and validates a file's text.
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
        match kind {
            EncoderKind::DualEncoder => {
                let spec: DualEncoderSpec = of_table(file)?;
                spec.validate()?;
                Ok(Self::DualEncoder(Box::new(spec)))
            }
            EncoderKind::Classifier => {
                let spec: VitSpec = of_table(file)?;
                spec.validate("classifier")?;
                Ok(Self::Classifier(Box::new(spec)))
            }
            EncoderKind::ConvNet => {
                let spec: ConvNetSpec = of_table(file)?;
                spec.validate()?;
                Ok(Self::ConvNet(Box::new(spec)))
            }
            EncoderKind::Vqgan => {
                let VqganTable { vqgan } = of_table(file)?;
                vqgan.validate()?;
                Ok(Self::Vqgan(Box::new(vqgan)))
            }
        }
    }

    /// The model that can be asked.
    ///
    /// # Errors
    /// `BadInput` for an encoder alone.
    pub fn answers(self) -> Result<ModelSpec> {
        let kind = match self {
            Self::Answers(spec) => return Ok(*spec),
            Self::DualEncoder(_) => "a dual encoder",
            Self::Classifier(_) => "a classifier",
            Self::ConvNet(_) => "a convolutional network",
            Self::Vqgan(_) => "a VQGAN",
        };
        let message = format!("it is {kind}, expected a model that answers in words");
        Err(Error::new(Kind::BadInput, message))
    }
}

/// The shape of the VQGAN of a model file, which may hold a decoder as well.
///
/// # Errors
/// `BadInput` for a file without a [vqgan] table.
pub fn vqgan_of_file(text: &str) -> Result<VqganSpec> {
    let vqgan = match ModelFile::from_toml(text)? {
        ModelFile::Answers(spec) => spec.vqgan,
        ModelFile::Vqgan(spec) => Some(*spec),
        _ => None,
    };
    vqgan.ok_or_else(|| bad("there is no [vqgan] table, expected a model with one".into()))
}

fn of_table<T: DeserializeOwned>(table: toml::Table) -> Result<T> {
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|e| bad(e.to_string()))
}
