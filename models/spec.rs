//! Specifications of models: as written (TOML in `configs/models/`, `config.json`
//! in a model directory) and as run (validated, with derived sizes).

pub mod conv_net;

pub mod encoder;

pub mod features;

pub mod frame_choice;

pub mod parameters;

pub mod patches;

pub mod placement;

pub mod processor;

pub mod rope_scaling;

pub mod system;

pub mod vqgan_alone;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Kind, Result},
    spec::{features::VisionSpec, rope_scaling::RopeScaling},
};

/// Which channels of a head RoPE rotates together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopePairs {
    /// Channels `2i` and `2i + 1`: LWM and Meta's LLaMA checkpoints.
    Adjacent,
    /// Channels `i` and `i + d/2`: Hugging Face LLaMA checkpoints.
    Halves,
}

/// The decoder's shape. Field names are those of a Hugging Face `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderSpec {
    /// Text vocabulary.
    pub vocab_size: usize,
    /// Vision vocabulary (codes, terminators, spare ids); absent for a text model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_vocab_size: Option<usize>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; equal to the query heads when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Channels of one head; `hidden_size / num_attention_heads` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Maximum context of the model, in tokens.
    pub max_position_embeddings: usize,
    /// The ε of RMSNorm.
    pub rms_norm_eps: f64,
    /// RoPE theta: the slowest channel rotates once in about `2π·theta` positions.
    pub rope_theta: f64,
    /// Which channels RoPE rotates together.
    pub rope_pairs: RopePairs,
    /// Whether the text head is the embedding table.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Sliding window: a token attends to itself and the `window − 1` tokens before it, as in Mistral 7B v0.1
    /// (arXiv 2310.06825); to the whole context when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
    /// Whether query, key and value have biases (Qwen2).
    #[serde(default, skip_serializing_if = "is_false")]
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    #[serde(default, skip_serializing_if = "is_false")]
    pub attention_output_bias: bool,
    /// Whether the matrices of the feed-forward layer have biases.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mlp_bias: bool,
    /// Whether each head's query and key have an RMSNorm before RoPE (Qwen3).
    #[serde(default, skip_serializing_if = "is_false")]
    pub qk_norm: bool,
    /// Mixture of experts (Mixtral); a single feed-forward layer when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsSpec>,
    /// RoPE scaling for long contexts.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "rope_scaling::stated"
    )]
    pub rope_scaling: Option<RopeScaling>,
    /// Positions of three components, time, height and width, each of which rotates its own channels
    /// (M-RoPE, arXiv 2409.12191); one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mrope: Option<MropeSpec>,
    /// A row of features holds as many rows more, of which each is added behind one of the first layers
    /// (DeepStack, arXiv 2406.04334).
    #[serde(default, skip_serializing_if = "is_none")]
    pub deepstack_layers: usize,
}

/// Which channels of a head turn by which component of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MropeSpec {
    /// Pairs of channels for time, height and width.
    pub section: [usize; 3],
    /// The three take turns, from the fastest channel on (Qwen3-VL), and do not stand one after another (Qwen2-VL).
    #[serde(default, skip_serializing_if = "is_false")]
    pub interleaved: bool,
}

impl MropeSpec {
    /// The component by which the pair `index` of channels turns.
    pub fn component(self, index: usize) -> usize {
        let [time, height, _] = self.section;
        match index {
            // What is left over when height or width have had their share is time's.
            _ if self.interleaved => match index % 3 {
                component if index < 3 * self.section[component] => component,
                _ => 0,
            },
            _ if index < time => 0,
            _ if index < time + height => 1,
            _ => 2,
        }
    }

    /// # Errors
    /// `BadInput` when the sections are not those of `pairs` pairs of channels.
    fn validate(self, pairs: usize) -> Result<()> {
        let sum = self.section.into_iter().fold(0, usize::saturating_add);
        let counted = |c| (0..pairs).filter(|&i| self.component(i) == c).count();
        if sum == pairs && (0..3).all(|c| counted(c) == self.section[c]) {
            return Ok(());
        }
        Err(bad(format!(
            "decoder.mrope.section is {:?}, expected three parts of {pairs} pairs of channels",
            self.section
        )))
    }
}

/// How many feed-forward layers a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertsSpec {
    /// In all.
    pub num_local_experts: usize,
    /// For one token.
    pub num_experts_per_tok: usize,
}

impl ExpertsSpec {
    /// # Errors
    /// `BadInput` when a token takes more than there are, or none.
    fn validate(self) -> Result<()> {
        let Self {
            num_local_experts: all,
            num_experts_per_tok: each,
        } = self;
        if (1..=all).contains(&each) && all <= MAX_LAYERS {
            return Ok(());
        }
        let message = format!(
            "decoder.experts.num_experts_per_tok is {each} of {all}, expected 1 to all of at most {MAX_LAYERS}"
        );
        Err(bad(message))
    }
}

fn is_false(switch: &bool) -> bool {
    !switch
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

/// The VQGAN's shape (defaults of LWM, `lwm/vqgan.py`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqganSpec {
    /// Side of the square input, in pixels.
    pub resolution: usize,
    /// Channels of the first convolution.
    pub hidden_channels: usize,
    /// Channel multiplier per level, finest first.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level.
    pub num_res_blocks: usize,
    /// Channels before the 1×1 `quant_conv`.
    pub z_channels: usize,
    /// Rows of the codebook.
    pub num_embeddings: usize,
    /// Channels of a codebook row.
    pub quantized_embed_dim: usize,
}

/// What follows the codes of a frame in the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameEnd {
    /// Every frame ends in 8193, as `lwm/vision_chat.py` does at inference.
    #[default]
    Upstream,
    /// 8192 between frames and 8193 after the last, as in LWM's training data.
    Training,
}

/// A whole model, as written: `configs/models/*.toml` and the `config.json` of
/// a model directory made by `longreel import`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// `lwm` (text and vision vocabulary), `vision_language` (features of frames), or `llama` (text only).
    pub model_type: ModelType,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The decoder.
    pub decoder: DecoderSpec,
    /// The frame tokenizer of LWM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vqgan: Option<VqganSpec>,
    /// What turns frames into features, of a `vision_language` model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<VisionSpec>,
    /// What follows a frame's codes.
    #[serde(default)]
    pub frame_end: FrameEnd,
    /// Vision id that ends a frame (LWM: 8192).
    #[serde(default = "default_end_of_frame_id")]
    pub end_of_frame_id: u32,
    /// Vision id that ends the last frame (LWM: 8193).
    #[serde(default = "default_end_of_vision_id")]
    pub end_of_vision_id: u32,
}

/// `<eof>` of `lwm/data.py`.
pub(crate) fn default_end_of_frame_id() -> u32 {
    8192
}

/// `<eov>` of `lwm/data.py`.
pub(crate) fn default_end_of_vision_id() -> u32 {
    8193
}

/// The family, which decides prompt and inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelType {
    /// Large World Model: VideoLLaMA over a VQGAN.
    Lwm,
    /// A text model: LLaMA and its relatives.
    Llama,
    /// A text model that reads features of frames in place of embeddings (LLaVA and its relatives).
    VisionLanguage,
}

impl DecoderSpec {
    /// Key and value heads.
    pub fn n_kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Numbers of one row of features: what stands in place of the embedding, and what deeper layers get.
    pub fn feature_width(&self) -> usize {
        self.hidden_size * (1 + self.deepstack_layers)
    }

    /// Bytes of keys and values of one token over all layers, at `bytes_per_element`.
    pub fn kv_bytes_per_token(&self, bytes_per_element: usize) -> usize {
        2 * self.num_hidden_layers * self.n_kv_heads() * self.head_dim() * bytes_per_element
    }

    /// # Errors
    /// `BadInput` for a value that no decoder has.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.n_kv_heads()),
            ("head_dim", self.head_dim()),
            ("max_position_embeddings", self.max_position_embeddings),
            ("vision_vocab_size", self.vision_vocab_size.unwrap_or(1)),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ];
        for (key, value) in positive {
            in_range(&format!("decoder.{key}"), value)?;
        }
        self.experts.map_or(Ok(()), ExpertsSpec::validate)?;
        if !self.num_attention_heads.is_multiple_of(self.n_kv_heads()) {
            return Err(bad(format!(
                "decoder.num_attention_heads is {}, expected a multiple of num_key_value_heads = {}",
                self.num_attention_heads,
                self.n_kv_heads()
            )));
        }
        if !self.head_dim().is_multiple_of(2) {
            return Err(bad(format!(
                "decoder.head_dim is {}, expected an even number (RoPE rotates pairs)",
                self.head_dim()
            )));
        }
        let pairs = self.head_dim() / 2;
        self.mrope.map_or(Ok(()), |mrope| mrope.validate(pairs))?;
        if self.deepstack_layers > self.num_hidden_layers {
            return Err(bad(format!(
                "decoder.deepstack_layers is {}, expected at most num_hidden_layers = {}",
                self.deepstack_layers, self.num_hidden_layers
            )));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(bad(format!(
                "decoder.rope_theta is {}, expected a number above 1",
                self.rope_theta
            )));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(bad(format!(
                "decoder.rms_norm_eps is {}, expected a positive number",
                self.rms_norm_eps
            )));
        }
        Ok(())
    }
}

impl VqganSpec {
    /// Side of the code grid: the resolution halved once per level but the last.
    pub fn grid(&self) -> usize {
        self.resolution >> self.channel_mult.len().saturating_sub(1)
    }

    /// Codes of one frame, without its terminator.
    pub fn codes_per_frame(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Checks every value and how they fit together.
    ///
    /// # Errors
    /// `BadInput` naming the value that cannot be.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("resolution", self.resolution),
            ("hidden_channels", self.hidden_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("z_channels", self.z_channels),
            ("num_embeddings", self.num_embeddings),
            ("quantized_embed_dim", self.quantized_embed_dim),
        ] {
            in_range(&format!("vqgan.{key}"), value)?;
        }
        let allowed = |mult: &usize| (1..=1024).contains(mult);
        if self.channel_mult.is_empty()
            || self.channel_mult.len() > 16
            || !self.channel_mult.iter().all(allowed)
        {
            return Err(bad(format!(
                "vqgan.channel_mult is {:?}, expected 1 to 16 numbers from 1 to 1024",
                self.channel_mult
            )));
        }
        let step = 1 << (self.channel_mult.len() - 1);
        if !self.resolution.is_multiple_of(step) {
            return Err(bad(format!(
                "vqgan.resolution is {}, expected a multiple of {step} (one halving per level)",
                self.resolution
            )));
        }
        // The first residual block normalizes `hidden_channels`, whatever the first multiplier.
        for mult in std::iter::once(1).chain(self.channel_mult.iter().copied()) {
            let channels = self.hidden_channels.saturating_mul(mult);
            if !channels.is_multiple_of(32) {
                return Err(bad(format!(
                    "vqgan has a level of {channels} channels, expected a multiple of 32 (GroupNorm has 32 groups)"
                )));
            }
        }
        Ok(())
    }
}

impl ModelSpec {
    /// Parses and validates a TOML model file.
    pub fn from_toml(text: &str) -> Result<Self> {
        let spec: Self =
            toml::from_str(text).map_err(|e| bad(e.to_string().trim_end().replace('\n', " ")))?;
        spec.validate()?;
        Ok(spec)
    }

    /// Parses and validates a `config.json` written by [`ModelSpec::to_json`].
    pub fn from_json(text: &str) -> Result<Self> {
        let spec: Self = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        spec.validate()?;
        Ok(spec)
    }

    /// The `config.json` of a model directory.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|e| Error::with_source(Kind::Internal, "serialize config.json", e))
    }

    /// Whether the model looks at frames.
    pub fn looks(&self) -> bool {
        self.vqgan.is_some() || self.vision.is_some()
    }

    /// Positions one frame takes in the context: its codes and its terminator, or its features.
    pub fn tokens_per_frame(&self) -> Option<usize> {
        let codes = self.vqgan.as_ref().map(|v| v.codes_per_frame() + 1);
        codes.or_else(|| self.vision.as_ref()?.features.rows())
    }

    /// Checks every value and how the parts fit together.
    pub fn validate(&self) -> Result<()> {
        self.decoder.validate()?;
        match (self.model_type, &self.vqgan, self.decoder.vision_vocab_size) {
            (ModelType::Lwm, Some(vqgan), Some(vision_vocab)) => {
                vqgan.validate()?;
                for (key, id) in [
                    ("end_of_frame_id", self.end_of_frame_id),
                    ("end_of_vision_id", self.end_of_vision_id),
                ] {
                    let id = id as usize;
                    if id < vqgan.num_embeddings || id >= vision_vocab {
                        return Err(bad(format!(
                            "{key} is {id}, expected an id after the {} codes and below decoder.vision_vocab_size = {vision_vocab}",
                            vqgan.num_embeddings
                        )));
                    }
                }
                self.check_vision()
            }
            (ModelType::Lwm, None, _) => Err(bad(
                "model_type is lwm but there is no [vqgan] section".into(),
            )),
            (ModelType::Lwm, _, None) => Err(bad(
                "model_type is lwm but decoder.vision_vocab_size is absent".into(),
            )),
            (ModelType::Llama, None, None) => self.check_vision(),
            (ModelType::VisionLanguage, None, None) => self.check_vision(),
            (ModelType::Llama | ModelType::VisionLanguage, ..) => Err(bad(format!(
                "model_type is {:?} but a vision vocabulary or a [vqgan] section is present",
                self.model_type
            ))),
        }
    }

    /// # Errors
    /// `BadInput` where the section is there and should not be, or the other way round.
    fn check_vision(&self) -> Result<()> {
        match (self.model_type, &self.vision) {
            (ModelType::VisionLanguage, Some(vision)) => vision.validate(&self.decoder),
            (ModelType::VisionLanguage, None) => Err(bad(
                "model_type is vision_language but there is no [vision] section".into(),
            )),
            (_, Some(_)) => Err(bad(format!(
                "model_type is {:?} but a [vision] section is present",
                self.model_type
            ))),
            (_, None) => Ok(()),
        }
    }
}

/// Largest size in a specification; products of the few that are multiplied fit 64 bits.
const MAX_SIZE: usize = 1 << 24;

/// Most layers, or residual blocks per level.
const MAX_LAYERS: usize = 1024;

/// Tables are made for as many positions as a `u32` counts, at most.
const MAX_POSITIONS: usize = 1 << 31;

fn in_range(key: &str, value: usize) -> Result<()> {
    let most = match key.rsplit('.').next() {
        Some("num_hidden_layers" | "num_res_blocks") => MAX_LAYERS,
        Some("max_position_embeddings") => MAX_POSITIONS,
        _ => MAX_SIZE,
    };
    match value {
        0 => Err(bad(format!("{key} is 0, expected at least 1"))),
        n if n > most => Err(bad(format!("{key} is {n}, expected at most {most}"))),
        _ => Ok(()),
    }
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message).doing("read the model's configuration")
}
