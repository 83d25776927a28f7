//! A model directory, opened: specification, tokenizer, frame tokenizer, decoder.

use std::path::{Path, PathBuf};

use longreel_models::{
    checkpoint::{import_hf::spec_of_directory, weights::Weights},
    context::tokenizer::Tokenizer,
    llama::Decoder,
    spec::{ModelSpec, VqganSpec},
    vision::vqgan::Vqgan,
};

use crate::error::{Context, Error, Kind, Result};

/// Everything that answers: weights stay mapped where they are bf16.
pub struct Model {
    /// Where it came from.
    pub dir: PathBuf,
    /// What it is made of.
    pub spec: ModelSpec,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Frames to codes; absent for a text model.
    pub vqgan: Option<Vqgan>,
    /// Context to answer.
    pub decoder: Decoder,
}

/// A model directory whose headers have been read: enough to plan with, nothing loaded.
pub struct ModelFiles {
    /// Where it is.
    pub dir: PathBuf,
    /// What it is made of.
    pub spec: ModelSpec,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    weights: Weights,
}

impl ModelFiles {
    /// Reads the configuration, the tokenizer and the headers of the weights in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let doing = || format!("open the model {}", dir.display());
        Ok(Self {
            dir: dir.to_owned(),
            spec: spec_of_directory(dir).doing(doing)?,
            tokenizer: Tokenizer::open(dir).doing(doing)?,
            weights: Weights::open(dir).doing(doing)?,
        })
    }

    /// Bytes that the weights will take in memory, mapped or not.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.total_bytes()
    }

    /// Whether the model looks at frames.
    ///
    /// # Errors
    /// `BadInput` for a text model.
    pub fn check_vision(&self) -> Result<&VqganSpec> {
        self.spec.vqgan.as_ref().ok_or_else(|| no_vision(&self.dir))
    }

    /// Loads the weights; bf16 matrices stay in the mapped files.
    pub fn load(self) -> Result<Model> {
        let Self {
            dir,
            spec,
            tokenizer,
            mut weights,
        } = self;
        let doing = || format!("load the model {}", dir.display());
        let vqgan = spec.vqgan.as_ref();
        let vqgan = vqgan.map(|v| Vqgan::load(v, &mut weights)).transpose();
        let vqgan = vqgan.doing(doing)?;
        let decoder = Decoder::load(&spec.decoder, &mut weights).doing(doing)?;
        weights.finish().doing(doing)?;
        Ok(Model {
            dir,
            spec,
            tokenizer,
            vqgan,
            decoder,
        })
    }
}

impl Model {
    /// The frame tokenizer and its specification.
    ///
    /// # Errors
    /// `BadInput` for a text model.
    pub fn vision(&self) -> Result<(&Vqgan, &VqganSpec)> {
        match (&self.vqgan, &self.spec.vqgan) {
            (Some(vqgan), Some(spec)) => Ok((vqgan, spec)),
            _ => Err(no_vision(&self.dir)),
        }
    }
}

/// Only the frame tokenizer of a model directory: what `encode` and `reconstruct` need.
pub struct FrameTokenizer {
    /// Where it came from.
    pub dir: PathBuf,
    /// Its shape.
    pub spec: VqganSpec,
    /// Frames to codes.
    pub vqgan: Vqgan,
}

impl FrameTokenizer {
    /// Opens the VQGAN of the model directory `dir`; the decoder's weights are not touched.
    pub fn open(dir: &Path) -> Result<Self> {
        let doing = || format!("open the model {}", dir.display());
        let spec = spec_of_directory(dir)
            .doing(doing)?
            .vqgan
            .ok_or_else(|| no_vision(dir))?;
        let mut weights = Weights::open(dir).doing(doing)?;
        let vqgan = Vqgan::load(&spec, &mut weights).doing(doing)?;
        Ok(Self {
            dir: dir.to_owned(),
            spec,
            vqgan,
        })
    }
}

fn no_vision(dir: &Path) -> Error {
    Error::new(
        Kind::BadInput,
        format!(
            "the model {} is a text model, expected one with a frame tokenizer",
            dir.display()
        ),
    )
}
