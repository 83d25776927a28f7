//! A model that answers: specification, tokenizer, frame encoder, decoder.

use std::{path::Path, sync::Arc};

use longreel_models::{
    checkpoint::weights::Weights,
    context::{
        chat_template::ChatTemplate,
        tokenizer::{Tokenizer, folder_of},
    },
    file_name::FileName,
    llama::Decoder,
    spec::{ModelSpec, VqganSpec, features::VisionSpec, system::Need},
    systems::{
        System,
        gguf::{GgufModel, with_decoder},
    },
    vision::vqgan::Vqgan,
};
use serde::Serialize;

use crate::{
    encoder::{FrameEncoder, PixelBudget, encoder_digest},
    error::{Context, Error, Kind, Result},
    plan::{available_memory_bytes, bytes},
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
    /// How quantized matrices are multiplied; absent where there is none.
    pub gguf_products: Option<GgufProducts>,
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
    products: GgufProducts,
}

/// How the quantized matrices of a GGUF file are multiplied. Answers depend on it, and on nothing of the machine but its
/// instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GgufProducts {
    /// From copies in another order, with what they are multiplied by rounded to 8 bits, as in llama.cpp: several times as
    /// fast, in two to three times the memory of the file.
    #[default]
    Rounded,
    /// Where they lie in the file, without rounding.
    Exact,
}

/// What takes the place of a model's own parts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choices<'a> {
    /// A GGUF file with another decoder.
    pub decoder: Option<&'a Path>,
    /// A file with another chat template.
    pub template: Option<&'a Path>,
    /// How quantized matrices are multiplied.
    pub products: GgufProducts,
}

impl ModelFiles {
    /// Reads the tokenizer and the headers of the weights of `system`.
    ///
    /// # Errors
    /// `BadInput` for a system that does not answer in words.
    pub fn open(system: &Arc<System>) -> Result<Self> {
        Self::open_with(system, Choices::default())
    }

    /// [`ModelFiles::open`] with what `choices` names in the place of the folder's.
    ///
    /// # Errors
    /// `BadInput` for a decoder of another shape, or a template that does not compile; `Usage` for a template where none
    /// is used.
    pub fn open_with(system: &Arc<System>, choices: Choices<'_>) -> Result<Self> {
        let doing = || format!("open the model {}", system.path().shown());
        let spec = system.answering()?.clone();
        let weights = system.weights().doing(doing)?;
        let (mut spec, mut weights) = match choices.decoder {
            Some(file) => with_decoder((spec, weights), &GgufModel::open(file)?).doing(doing)?,
            None => (spec, weights),
        };
        if choices.products == GgufProducts::Exact {
            weights.keep_blocks_in_place();
        }
        let mut tokenizer = system.tokenizer().doing(doing)?;
        if let Some(vision) = &mut spec.vision {
            give_pictures_an_id(vision, &mut tokenizer).doing(doing)?;
        }
        Ok(Self {
            system: Arc::clone(system),
            tokenizer: Arc::new(tokenizer),
            template: template(system, &spec, choices.template)
                .doing(doing)?
                .map(Arc::new),
            spec,
            weights,
            products: choices.products,
        })
    }

    /// How its quantized matrices are multiplied, where it has some.
    pub fn gguf_products(&self) -> Option<GgufProducts> {
        self.weights.has_blocks().then_some(self.products)
    }

    /// Bytes that [`GgufProducts::Exact`] would not take.
    pub fn bytes_of_copies(&self) -> u64 {
        let mut in_place = self.weights.clone();
        in_place.keep_blocks_in_place();
        bytes_of(&self.weights).saturating_sub(bytes_of(&in_place))
    }

    /// Refuses copies of quantized matrices that the memory does not hold.
    fn check_copies(&self) -> Result<()> {
        let (copies, needed) = (self.bytes_of_copies(), self.weight_bytes());
        match available_memory_bytes() {
            Some(available) if copies > 0 && needed > available => Err(Error::new(
                Kind::TooLarge,
                format!(
                    "the weights need {}, the machine can give {}: --gguf-products exact takes {} less, and is slower",
                    bytes(needed),
                    bytes(available),
                    bytes(copies)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Bytes that the weights will take in memory, mapped or not: a number stored in 2 bytes may take 4.
    pub fn weight_bytes(&self) -> u64 {
        bytes_of(&self.weights)
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
        self.check_copies().doing(doing)?;
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
            gguf_products: self.gguf_products(),
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

/// Bytes that the weights take in memory, mapped or not.
fn bytes_of(weights: &Weights) -> u64 {
    let mapped = weights.mapped_bytes();
    mapped.saturating_add(weights.resident_bytes())
}

/// The template in the file `chosen`, else the system's own.
fn template(
    system: &System,
    spec: &ModelSpec,
    chosen: Option<&Path>,
) -> Result<Option<ChatTemplate>> {
    match chosen {
        None => system.template(),
        Some(_) if spec.vqgan.is_some() => {
            let message =
                "--template is for models with a chat template, this one has LWM's own prompt";
            Err(Error::new(Kind::Usage, message))
        }
        Some(file) => ChatTemplate::of_file(file, folder_of(system.path())).map(Some),
    }
}

/// Adds a picture token, where the tokenizer has none.
fn give_pictures_an_id(vision: &mut VisionSpec, tokenizer: &mut Tokenizer) -> Result<()> {
    if let Some(text) = &vision.image_token {
        vision.image_token_id = tokenizer.add_special(text)?;
    }
    Ok(())
}
