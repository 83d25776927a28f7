//! What is in a model folder, or in a GGUF file: the one place that asks.
//!
//! [`open`] reads the configuration and says what the model is; tokenizer, template, processor and weights are
//! those of the same opened [`System`], whoever loads which part of it.

pub mod architecture;
mod config;
pub mod gguf;
pub mod import_hf;
mod text;
pub mod verify;

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{
    checkpoint::weights::Weights,
    context::tokenizer::folder_of,
    error::{Context, Error, Result},
    file_name::FileName,
    spec::{
        ModelSpec, VqganSpec,
        processor::ProcessorFolder,
        system::{Need, SystemKind, SystemSpec, refusal},
    },
    systems::{
        config::Config,
        gguf::{GgufModel, gguf_of},
    },
};

/// A model folder or a GGUF file, opened: what it is and what its files say, nothing of it loaded.
pub struct System {
    path: PathBuf,
    spec: SystemSpec,
    source: Source,
    processor: ProcessorFolder,
    /// Headers of the weights' files, read when somebody first needs them.
    weights: OnceLock<Weights>,
}

/// What says what the model is.
enum Source {
    /// The keys of a GGUF file.
    Gguf(GgufModel),
    /// A `config.json`.
    Config(Config),
}

/// Opens the model at `path`: a folder, or a GGUF file.
///
/// # Errors
/// `BadInput` for a configuration that this program cannot run, naming the key.
pub fn open(path: &Path) -> Result<System> {
    let source = match gguf_of(path)? {
        Some(file) => Source::Gguf(GgufModel::open(&file)?),
        None => Source::Config(Config::read(path)?),
    };
    let (spec, processor) = match &source {
        Source::Gguf(file) => {
            let spec = SystemSpec::Answers(Box::new(file.spec()?));
            (spec, ProcessorFolder::new(folder_of(path), None)?)
        }
        Source::Config(config) => (
            config.spec().doing(|| config.doing())?,
            config.processor(path)?,
        ),
    };
    Ok(System {
        path: path.to_owned(),
        spec,
        source,
        processor,
        weights: OnceLock::new(),
    })
}

/// The model whose `config.json` has this text.
///
/// # Errors
/// As [`open`].
pub fn spec_of_config(text: &str) -> Result<SystemSpec> {
    Config::of_text(text)?.spec()
}

impl System {
    /// Where it is: a folder, or a GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is made of.
    pub fn spec(&self) -> &SystemSpec {
        &self.spec
    }

    /// What kind of model it is.
    pub fn kind(&self) -> SystemKind {
        self.spec.kind()
    }

    /// How its pictures and videos are prepared.
    pub fn processor(&self) -> &ProcessorFolder {
        &self.processor
    }

    /// The sentence that refuses it where something else was needed.
    pub fn refusal(&self, expected: Need) -> Error {
        refusal(&self.path.shown().to_string(), self.kind(), expected)
    }

    /// The model that can be asked.
    ///
    /// # Errors
    /// `BadInput` for an encoder alone.
    pub fn answering(&self) -> Result<&ModelSpec> {
        let found = self.spec.answering();
        found.ok_or_else(|| self.refusal(Need::Answers))
    }

    /// The shape of its VQGAN, with a decoder beside it or without.
    ///
    /// # Errors
    /// `BadInput` for a model that has none.
    pub fn vqgan(&self) -> Result<&VqganSpec> {
        let found = self.spec.vqgan();
        found.ok_or_else(|| self.refusal(Need::Codes))
    }

    /// Its tensors under the names that they have here, none of them taken yet.
    ///
    /// # Errors
    /// As [`Weights::open`] and [`Weights::renamed`].
    pub fn weights(&self) -> Result<Weights> {
        if let Some(weights) = self.weights.get() {
            return Ok(weights.clone());
        }
        let weights = match &self.source {
            Source::Gguf(file) => file.weights()?,
            Source::Config(config) => config.weights(&self.path)?,
        };
        Ok(self.weights.get_or_init(|| weights).clone())
    }

    fn gguf(&self) -> Option<&GgufModel> {
        match &self.source {
            Source::Gguf(file) => Some(file),
            Source::Config(_) => None,
        }
    }
}
