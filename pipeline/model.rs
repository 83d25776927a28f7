//! A model directory, opened: specification, tokenizer, frame encoder, decoder.

use std::path::{Path, PathBuf};

use longreel_models::{
    checkpoint::{
        import_hf::{spec_of_directory, weights_of_directory},
        weights::Weights,
    },
    context::tokenizer::Tokenizer,
    llama::Decoder,
    spec::{ModelSpec, VqganSpec},
    vision::vqgan::Vqgan,
};

use crate::{
    encoder::{FrameEncoder, no_codes, no_vision},
    error::{Context, Result},
};

/// Everything that answers: weights stay mapped where they are bf16.
pub struct Model {
    /// Where it came from.
    pub dir: PathBuf,
    /// What it is made of.
    pub spec: ModelSpec,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// What looks at frames; absent for a text model.
    pub frames: Option<FrameEncoder>,
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
            weights: weights_of_directory(dir).doing(doing)?,
        })
    }

    /// Bytes that the weights will take in memory, mapped or not.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.total_bytes()
    }

    /// # Errors
    /// `BadInput` for a text model.
    pub fn check_vision(&self) -> Result<()> {
        match self.spec.looks() {
            true => Ok(()),
            false => Err(no_vision(&self.dir)),
        }
    }

    /// The shape of the frame tokenizer.
    ///
    /// # Errors
    /// `BadInput` for a model that makes no codes.
    pub fn check_codes(&self) -> Result<&VqganSpec> {
        self.spec.vqgan.as_ref().ok_or_else(|| no_codes(&self.dir))
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
        let frames = FrameEncoder::load(&spec, &mut weights).doing(doing)?;
        let decoder = Decoder::load(&spec.decoder, &mut weights).doing(doing)?;
        weights.finish().doing(doing)?;
        Ok(Model {
            dir,
            spec,
            tokenizer,
            frames,
            decoder,
        })
    }
}

impl Model {
    /// The frame tokenizer and its specification.
    ///
    /// # Errors
    /// `BadInput` for a model that makes no codes.
    pub fn codes(&self) -> Result<(&Vqgan, &VqganSpec)> {
        match &self.frames {
            Some(FrameEncoder::Codes { vqgan, spec }) => Ok((vqgan, spec)),
            _ => Err(no_codes(&self.dir)),
        }
    }
}
