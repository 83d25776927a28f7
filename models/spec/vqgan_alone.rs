//! A model directory with a VQGAN and no decoder, as `train vqgan` writes it.

use serde::{Deserialize, Serialize};

use super::{VqganSpec, bad};
use crate::error::{Error, Kind, Result};

/// Its `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqganAlone {
    /// Identifies the file among those of other models.
    pub model_type: VqganType,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The VQGAN.
    pub vqgan: VqganSpec,
}

/// The only `model_type` of such a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VqganType {
    /// `vqgan`.
    #[default]
    Vqgan,
}

impl VqganAlone {
    /// The configuration of `vqgan`.
    pub fn new(vqgan: VqganSpec, description: Option<String>) -> Self {
        Self {
            model_type: VqganType::Vqgan,
            description,
            vqgan,
        }
    }

    /// Parses and validates a `config.json` written by [`VqganAlone::to_json`].
    ///
    /// # Errors
    /// `BadInput` for an unknown key or an invalid specification.
    pub fn from_json(text: &str) -> Result<Self> {
        let alone: Self = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        alone.vqgan.validate()?;
        Ok(alone)
    }

    /// The `config.json` of a model directory.
    ///
    /// # Errors
    /// `Internal` when it cannot be serialized.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|e| Error::with_source(Kind::Internal, "serialize config.json", e))
    }
}
