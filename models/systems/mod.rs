//! Opens model directories and GGUF files; no other module inspects what they contain.
//!
//! [`open`] reads the configuration and determines the kind of model; tokenizer, template, processor and weights are
//! then taken from the same [`System`].

pub mod architecture;
mod config;
pub mod gguf;
pub mod import_hf;
mod refused_folder;
mod rope_parameters;
mod text;
mod tied_head;
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

/// An opened model directory or GGUF file: its specification and configuration, without loaded weights.
pub struct System {
    path: PathBuf,
    spec: SystemSpec,
    source: SystemSource,
    processor: ProcessorFolder,
    /// What a user should know of the model.
    warnings: Vec<String>,
    /// Headers of the weight files, read at first use.
    weights: OnceLock<Weights>,
}

/// The source of the specification.
enum SystemSource {
    /// The metadata of a GGUF file.
    Gguf(GgufModel),
    /// A `config.json`.
    Config(Config),
}

/// Opens the model at `path`: a directory, or a GGUF file.
///
/// # Errors
/// `BadInput` for an unsupported configuration, naming the key.
pub fn open(path: &Path) -> Result<System> {
    let source = match gguf_of(path)? {
        Some(file) => SystemSource::Gguf(GgufModel::open(&file)?),
        None => SystemSource::Config(Config::read(path)?),
    };
    let (spec, processor) = match &source {
        SystemSource::Gguf(file) => {
            let spec = SystemSpec::Answers(Box::new(file.spec()?));
            (spec, ProcessorFolder::new(folder_of(path), None)?)
        }
        SystemSource::Config(config) => (
            config.spec().doing(|| config.doing())?,
            config.processor(path)?,
        ),
    };
    let warnings = match &source {
        SystemSource::Gguf(_) => Vec::new(),
        SystemSource::Config(config) => config.warnings().to_owned(),
    };
    let mut system = System {
        path: path.to_owned(),
        spec,
        source,
        processor,
        warnings,
        weights: OnceLock::new(),
    };
    system.settle_head()?;
    Ok(system)
}

/// The specification given by the text of a `config.json`.
///
/// # Errors
/// As [`open`].
pub fn spec_of_config(text: &str) -> Result<SystemSpec> {
    Config::of_text(text)?.spec()
}

impl System {
    /// Path of the directory or GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The specification.
    pub fn spec(&self) -> &SystemSpec {
        &self.spec
    }

    /// The kind of model.
    pub fn kind(&self) -> SystemKind {
        self.spec.kind()
    }

    /// What a user should know of it: what its files say and is not followed, each in a sentence.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The configurations of its picture and video processors.
    pub fn processor(&self) -> &ProcessorFolder {
        &self.processor
    }

    /// The error where `expected` was needed and this model is of another kind.
    pub fn refusal(&self, expected: Need) -> Error {
        refusal(&self.path.shown().to_string(), self.kind(), expected)
    }

    /// The specification of a model that answers questions.
    ///
    /// # Errors
    /// `BadInput` for an encoder without a decoder.
    pub fn answering(&self) -> Result<&ModelSpec> {
        let found = self.spec.answering();
        found.ok_or_else(|| self.refusal(Need::Answers))
    }

    /// The shape of its VQGAN, with or without a decoder.
    ///
    /// # Errors
    /// `BadInput` for a model without one.
    pub fn vqgan(&self) -> Result<&VqganSpec> {
        let found = self.spec.vqgan();
        found.ok_or_else(|| self.refusal(Need::Codes))
    }

    /// Its tensors under this program's names, none of them taken yet.
    ///
    /// # Errors
    /// As [`Weights::open`] and [`Weights::renamed`].
    pub fn weights(&self) -> Result<Weights> {
        if let Some(weights) = self.weights.get() {
            return Ok(weights.clone());
        }
        let weights = match &self.source {
            SystemSource::Gguf(file) => file.weights()?,
            SystemSource::Config(config) => config.weights(&self.path)?,
        };
        Ok(self.weights.get_or_init(|| weights).clone())
    }

    /// Asks the weights whether tied embeddings have a head of their own.
    fn settle_head(&mut self) -> Result<()> {
        let (SystemSource::Config(config), SystemSpec::Answers(spec)) =
            (&self.source, &mut self.spec)
        else {
            return Ok(());
        };
        if !spec.decoder.tie_word_embeddings {
            return Ok(());
        }
        // Faults of the weights are reported where the weights are needed.
        let Ok(mut weights) = config.weights(&self.path) else {
            return Ok(());
        };
        let warning = tied_head::settle(&mut spec.decoder, &mut weights);
        let warning = warning.doing(|| config.doing())?;
        self.warnings.extend(warning.map(str::to_owned));
        self.weights = OnceLock::from(weights);
        Ok(())
    }

    fn gguf(&self) -> Option<&GgufModel> {
        match &self.source {
            SystemSource::Gguf(file) => Some(file),
            SystemSource::Config(_) => None,
        }
    }

    fn config(&self) -> Option<&Config> {
        match &self.source {
            SystemSource::Gguf(_) => None,
            SystemSource::Config(config) => Some(config),
        }
    }
}
