//! A model that answers: specification, tokenizer, frame encoder, decoder.

use std::{path::Path, sync::Arc};

use longreel_models::{
    checkpoint::weights::Weights,
    context::{chat_template::ChatTemplate, tokenizer::Tokenizer},
    file_name::FileName,
    llama::Decoder,
    spec::{ModelSpec, VqganSpec, features::VisionSpec, system::Need},
    systems::{
        System,
        gguf::{GgufModel, with_decoder},
    },
    vision::vqgan::Vqgan,
};

use crate::{
    encoder::{FrameEncoder, PixelBudget, encoder_digest},
    error::{Context, Result},
    plan::available_memory_bytes,
};

/// A loaded model that answers; bf16 weights stay mapped.
pub struct Model {
    /// What it was opened from.
    pub system: Arc<System>,
    /// Its specification.
    pub spec: ModelSpec,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, where there is one.
    pub template: Option<Arc<ChatTemplate>>,
    /// Ids that end an answer.
    pub stop_ids: Vec<u32>,
    /// The frame encoder; absent for a text model.
    pub frames: Option<FrameEncoder>,
    /// The decoder.
    pub decoder: Decoder,
}

/// A model whose headers have been read: enough to plan with, nothing loaded.
pub struct ModelFiles {
    /// What it was opened from.
    pub system: Arc<System>,
    /// Its specification.
    pub spec: ModelSpec,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, where there is one.
    pub template: Option<Arc<ChatTemplate>>,
    weights: Weights,
}

impl ModelFiles {
    /// Reads the tokenizer and the headers of the weights of `system`.
    ///
    /// # Errors
    /// `BadInput` for a system that does not answer in words.
    pub fn open(system: &Arc<System>) -> Result<Self> {
        Self::open_with(system, None)
    }

    /// [`ModelFiles::open`] with the decoder of the GGUF file `decoder` instead of the folder's.
    ///
    /// # Errors
    /// `BadInput` when their shapes differ.
    pub fn open_with(system: &Arc<System>, decoder: Option<&Path>) -> Result<Self> {
        let doing = || format!("open the model {}", system.path().shown());
        let spec = system.answering()?.clone();
        let weights = system.weights().doing(doing)?;
        let (mut spec, weights) = match decoder {
            Some(file) => with_decoder((spec, weights), &GgufModel::open(file)?).doing(doing)?,
            None => (spec, weights),
        };
        let weights = within_memory(weights);
        let mut tokenizer = system.tokenizer().doing(doing)?;
        if let Some(vision) = &mut spec.vision {
            give_pictures_an_id(vision, &mut tokenizer).doing(doing)?;
        }
        Ok(Self {
            system: Arc::clone(system),
            tokenizer: Arc::new(tokenizer),
            template: system.template().doing(doing)?.map(Arc::new),
            spec,
            weights,
        })
    }

    /// Bytes that the weights will take in memory, mapped or not: a number stored in 2 bytes may take 4.
    pub fn weight_bytes(&self) -> u64 {
        let mapped = self.weights.mapped_bytes();
        mapped.saturating_add(self.weights.resident_bytes())
    }

    /// [`encoder_digest`] of its weights.
    pub fn encoder_digest(&self) -> u64 {
        encoder_digest(&self.weights)
    }

    /// # Errors
    /// `BadInput` for a text model.
    pub fn check_vision(&self) -> Result<()> {
        match self.spec.looks() {
            true => Ok(()),
            false => Err(self.system.refusal(Need::Frames)),
        }
    }

    /// The specification of the VQGAN.
    ///
    /// # Errors
    /// `BadInput` for a model without a VQGAN.
    pub fn check_codes(&self) -> Result<&VqganSpec> {
        self.system.vqgan()
    }

    /// Loads the weights; bf16 matrices stay in the mapped files.
    pub fn load(&self) -> Result<Model> {
        self.load_with(&PixelBudget::default())
    }

    /// [`ModelFiles::load`] with another pixel budget.
    pub fn load_with(&self, budget: &PixelBudget) -> Result<Model> {
        let (system, spec) = (&self.system, &self.spec);
        let doing = || format!("load the model {}", system.path().shown());
        let mut weights = self.weights.clone();
        let frames = FrameEncoder::load(system, spec, budget, &mut weights).doing(doing)?;
        let decoder = Decoder::load(&spec.decoder, &mut weights).doing(doing)?;
        weights.finish().doing(doing)?;
        Ok(Model {
            stop_ids: system.stop_ids(&self.tokenizer).doing(doing)?,
            system: Arc::clone(system),
            spec: spec.clone(),
            tokenizer: Arc::clone(&self.tokenizer),
            template: self.template.clone(),
            frames,
            decoder,
        })
    }
}

impl Model {
    /// The VQGAN and its specification.
    ///
    /// # Errors
    /// `BadInput` for a model without a VQGAN.
    pub fn codes(&self) -> Result<(&Vqgan, &VqganSpec)> {
        match &self.frames {
            Some(FrameEncoder::Codes { vqgan, spec }) => Ok((vqgan, spec)),
            _ => Err(self.system.refusal(Need::Codes)),
        }
    }
}

/// Quantized matrices are multiplied from copies, which is faster, where these leave half of the memory to the rest.
fn within_memory(mut weights: Weights) -> Weights {
    let most = available_memory_bytes().map_or(u64::MAX, |bytes| bytes / 2);
    if weights.resident_bytes() > most {
        weights.keep_blocks_in_place();
    }
    weights
}

/// Adds a picture token, where the tokenizer has none.
fn give_pictures_an_id(vision: &mut VisionSpec, tokenizer: &mut Tokenizer) -> Result<()> {
    if let Some(text) = &vision.image_token {
        vision.image_token_id = tokenizer.add_special(text)?;
    }
    Ok(())
}
