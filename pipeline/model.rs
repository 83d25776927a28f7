//! A model directory, opened: specification, tokenizer, frame encoder, decoder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use longreel_models::{
    checkpoint::{
        gguf_model::{GgufModel, gguf_of, with_decoder},
        import_hf::{spec_of_directory, weights_of_directory},
        weights::Weights,
    },
    context::{
        chat_template::ChatTemplate,
        gguf,
        tokenizer::{Tokenizer, tokenizer_folder},
    },
    llama::Decoder,
    spec::{ModelSpec, VqganSpec, features::VisionSpec},
    vision::vqgan::Vqgan,
};

use crate::{
    encoder::{FrameEncoder, PixelBudget, encoder_digest, no_codes, no_vision},
    error::{Context, Error, Kind, Result},
    plan::available_memory_bytes,
};

/// Everything that answers: weights stay mapped where they are bf16.
pub struct Model {
    /// Where it came from.
    pub dir: PathBuf,
    /// What it is made of.
    pub spec: ModelSpec,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations to text, where the folder has a template.
    pub template: Option<Arc<ChatTemplate>>,
    /// Ids that end an answer.
    pub stop_ids: Vec<u32>,
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
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations to text, where the folder has a template.
    pub template: Option<Arc<ChatTemplate>>,
    weights: Weights,
}

impl ModelFiles {
    /// Reads the configuration, the tokenizer and the headers of the weights in `dir`, which may be a GGUF file.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, None)
    }

    /// [`ModelFiles::open`] with the decoder of the GGUF file `decoder` instead of the folder's.
    ///
    /// # Errors
    /// `BadInput` when the two do not have one shape.
    pub fn open_with(dir: &Path, decoder: Option<&Path>) -> Result<Self> {
        let doing = || format!("open the model {}", dir.display());
        let spec = spec_of_directory(dir).doing(doing)?;
        let weights = weights_of_directory(dir).doing(doing)?;
        let (mut spec, weights) = match decoder {
            Some(file) => with_decoder((spec, weights), &GgufModel::open(file)?).doing(doing)?,
            None => (spec, weights),
        };
        let weights = within_memory(weights);
        let mut tokenizer = Tokenizer::open(dir).doing(doing)?;
        if let Some(vision) = &mut spec.vision {
            give_pictures_an_id(vision, &mut tokenizer).doing(doing)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            tokenizer: Arc::new(tokenizer),
            template: template(dir, &spec).doing(doing)?.map(Arc::new),
            spec,
            weights,
        })
    }

    /// Bytes that the weights will take in memory, mapped or not: what is stored in 2 bytes may take 4.
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
        self.load_with(&PixelBudget::default())
    }

    /// [`ModelFiles::load`] of an encoder with another budget of pixels.
    pub fn load_with(self, budget: &PixelBudget) -> Result<Model> {
        let Self {
            dir,
            spec,
            tokenizer,
            template,
            mut weights,
        } = self;
        let doing = || format!("load the model {}", dir.display());
        let frames = FrameEncoder::load(&dir, &spec, budget, &mut weights).doing(doing)?;
        let decoder = Decoder::load(&spec.decoder, &mut weights).doing(doing)?;
        weights.finish().doing(doing)?;
        Ok(Model {
            stop_ids: stop_ids(&dir, &tokenizer).doing(doing)?,
            dir,
            spec,
            tokenizer,
            template,
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

/// Quantized matrices are multiplied from copies, which is faster, where these leave half of the memory to the rest.
fn within_memory(mut weights: Weights) -> Weights {
    let most = available_memory_bytes().map_or(u64::MAX, |bytes| bytes / 2);
    if weights.resident_bytes() > most {
        weights.keep_blocks_in_place();
    }
    weights
}

/// A token for pictures, where the tokenizer has none.
fn give_pictures_an_id(vision: &mut VisionSpec, tokenizer: &mut Tokenizer) -> Result<()> {
    if let Some(text) = &vision.image_token {
        vision.image_token_id = tokenizer.add_special(text)?;
    }
    Ok(())
}

/// The folder's chat template, else that of its family.
fn template(dir: &Path, spec: &ModelSpec) -> Result<Option<ChatTemplate>> {
    let of_folder = ChatTemplate::of_directory(dir)?;
    let vision = spec.vision.as_ref();
    match (of_folder, vision.and_then(|v| v.chat_template.as_ref())) {
        (None, Some(name)) => ChatTemplate::built_in(name, dir).map(Some),
        (of_folder, _) => Ok(of_folder),
    }
}

/// The tokenizer's end of sequence, those that a GGUF file names beside it, and those that
/// `generation_config.json` names: one or a list.
fn stop_ids(dir: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
    if let Some(file) = gguf_of(dir)? {
        ids.extend(gguf::stop_ids(&GgufModel::open(&file)?)?);
    }
    let path = tokenizer_folder(dir).join("generation_config.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ids),
        Err(error) => return Err(error).doing(|| format!("read {}", path.display())),
    };
    let config: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Error::with_source(Kind::BadInput, format!("read {}", path.display()), e))?;
    let named = &config["eos_token_id"];
    let list = named
        .as_array()
        .map_or(std::slice::from_ref(named), Vec::as_slice);
    let named = list
        .iter()
        .filter_map(|id| u32::try_from(id.as_u64()?).ok());
    for id in named {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}
