//! Encoders of pictures and of texts: stacks of transformer blocks with what stands
//! before and behind them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// The activation of a feed-forward layer, by the names of Hugging Face's `hidden_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `max(x, 0)`.
    Relu,
    /// With the error function.
    Gelu,
    /// By a hyperbolic tangent.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new", alias = "gelu_fast")]
    GeluTanh,
    /// `x σ(1.702 x)`.
    QuickGelu,
    /// `x σ(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// The hyperbolic tangent.
    Tanh,
}

/// How rows are normalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// LayerNorm: mean and variance (arXiv 1607.06450).
    #[default]
    Layer,
    /// RMSNorm: the mean square alone (arXiv 1910.07467).
    Rms,
}

/// A stack of transformer blocks, each norm before its layer ("pre-norm").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSpec {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads, which divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Between the two matrices of the feed-forward layer.
    pub hidden_act: HiddenAct,
    /// Which norm stands before each layer.
    #[serde(default)]
    pub norm: NormKind,
    /// Added to the variance, or to the mean square.
    pub layer_norm_eps: f64,
    /// Query, key and value have biases.
    pub qkv_bias: bool,
    /// Query, key and value are one matrix.
    #[serde(default)]
    pub fused_qkv: bool,
    /// The feed-forward layer has a third matrix, by whose activated rows those of the first are multiplied
    /// (arXiv 2002.05202).
    #[serde(default)]
    pub gated: bool,
    /// That third matrix stands in one with the first, before it (DINOv2 giant).
    #[serde(default)]
    pub fused_gate: bool,
    /// Rows of queries and keys, all heads of a row together, are divided by the root of their mean square (InternViT
    /// 6B, arXiv 2312.14238).
    #[serde(default)]
    pub qk_norm: bool,
    /// What a layer adds is multiplied, channel by channel (CaiT, arXiv 2103.17239).
    #[serde(default)]
    pub layer_scale: bool,
}

/// What one vector of a picture is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionPool {
    /// The class token.
    Class,
    /// Attention of one learned query over all tokens, and a feed-forward layer (SigLIP).
    Attention,
    /// Class token and mean of the patches, side by side (DINOv2).
    ClassAndMean,
}

/// A vision transformer (arXiv 2010.11929) over square pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitSpec {
    /// Side of a picture in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// The patches' matrix has a bias.
    pub patch_bias: bool,
    /// A learned token stands before the patches.
    pub class_token: bool,
    /// A norm stands before the blocks (CLIP).
    #[serde(default)]
    pub pre_norm: bool,
    /// A norm stands behind the blocks.
    pub post_norm: bool,
    /// How one vector is made; absent where only the tokens are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<VisionPool>,
    /// The blocks.
    pub encoder: EncoderSpec,
}

/// A vision transformer over pictures, or pairs of frames, of any size: rotary positions in two dimensions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativeVitSpec {
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// The patches' matrix has a bias.
    pub patch_bias: bool,
    /// RoPE base of the patches' lines and columns.
    pub rope_theta: f64,
    /// Learned positions of a square grid, interpolated to that of the picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_position_embeddings: Option<usize>,
    /// Most blocks attend within windows; all of them to the whole picture when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowsSpec>,
    /// The blocks.
    pub encoder: EncoderSpec,
}

/// Attention within square windows of a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowsSpec {
    /// Side of a window in pixels.
    pub window_size: usize,
    /// Blocks that attend to the whole picture, by number.
    pub full_attention_blocks: Vec<usize>,
}

/// Where a text's vector is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextPool {
    /// The token that ends the text.
    End,
    /// The last token, pads included.
    Last,
}

/// An encoder of short texts, as in CLIP and SigLIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderSpec {
    /// Ids.
    pub vocab_size: usize,
    /// Most tokens of a text.
    pub max_position_embeddings: usize,
    /// A token sees no later one.
    pub causal: bool,
    /// Where the vector is taken from.
    pub pool: TextPool,
    /// The id that ends a text. CLIP's old configurations say 2 and mean the largest id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<u32>,
    /// Every text is filled up with this id to the last position, as the model was trained (SigLIP);
    /// absent where a text stands alone. A tokenizer that names its pad goes before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_token_id: Option<u32>,
    /// The projection has a bias.
    #[serde(default)]
    pub projection_bias: bool,
    /// The blocks.
    pub encoder: EncoderSpec,
}

/// Two encoders whose vectors are compared (CLIP, arXiv 2103.00020; SigLIP, arXiv 2303.15343).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DualEncoderSpec {
    /// Channels of the vectors that are compared.
    pub embedding_size: usize,
    /// A picture's vector is projected.
    pub vision_projection: bool,
    /// A learned number is added to the scaled cosine.
    pub logit_bias: bool,
    /// Of pictures.
    pub vision: VitSpec,
    /// Of texts.
    pub text: TextEncoderSpec,
}

impl EncoderSpec {
    /// # Errors
    /// `BadInput` for sizes that are none, or heads that do not divide the width.
    pub fn validate(&self, name: &str) -> Result<()> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
        ];
        for (key, value) in sizes {
            super::in_range(&format!("{name}.{key}"), value)?;
        }
        if self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Ok(());
        }
        Err(bad(format!(
            "{name}.num_attention_heads is {}, expected a divisor of hidden_size = {}",
            self.num_attention_heads, self.hidden_size
        )))
    }
}

impl VitSpec {
    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Tokens of one picture.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid() + usize::from(self.class_token)
    }

    /// # Errors
    /// `BadInput` for sizes that are none, or a pool without the token that it needs.
    pub fn validate(&self, name: &str) -> Result<()> {
        self.encoder.validate(&format!("{name}.encoder"))?;
        super::in_range(&format!("{name}.image_size"), self.image_size)?;
        super::in_range(&format!("{name}.patch_size"), self.patch_size)?;
        if self.grid() == 0 {
            return Err(bad(format!(
                "{name}.patch_size is {}, expected at most image_size = {}",
                self.patch_size, self.image_size
            )));
        }
        let needs_class = matches!(
            self.pool,
            Some(VisionPool::Class | VisionPool::ClassAndMean)
        );
        if needs_class && !self.class_token {
            return Err(bad(format!(
                "{name}.pool takes the class token, which {name}.class_token says is not there"
            )));
        }
        Ok(())
    }
}

impl NativeVitSpec {
    /// Numbers of one patch.
    pub fn patch_len(&self) -> usize {
        3 * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Side of a window, in squares of 2×2 patches.
    pub fn window_side(&self) -> Option<usize> {
        let windows = self.windows.as_ref()?;
        Some(windows.window_size / (2 * self.patch_size.max(1)))
    }

    /// # Errors
    /// `BadInput` for sizes that are none, or heads whose channels are not two for each of a line and a column.
    pub fn validate(&self, name: &str) -> Result<()> {
        self.encoder.validate(&format!("{name}.encoder"))?;
        super::in_range(&format!("{name}.patch_size"), self.patch_size)?;
        let frames = self.temporal_patch_size;
        super::in_range(&format!("{name}.temporal_patch_size"), frames)?;
        let d = self.encoder.hidden_size / self.encoder.num_attention_heads;
        if !d.is_multiple_of(4) {
            let message = format!("{name} has heads of {d} channels, expected a multiple of 4");
            return Err(bad(message));
        }
        if self.window_side() == Some(0) {
            let least = 2 * self.patch_size;
            let message = format!("{name}.windows.window_size is below {least}: two patches");
            return Err(bad(message));
        }
        let positions = self.num_position_embeddings.unwrap_or(1);
        if positions == 0 || positions.isqrt().pow(2) != positions {
            let message = format!(
                "{name}.num_position_embeddings is {positions}, expected the square of a side"
            );
            return Err(bad(message));
        }
        Ok(())
    }
}

impl DualEncoderSpec {
    /// # Errors
    /// As those of its parts.
    pub fn validate(&self) -> Result<()> {
        self.vision.validate("vision")?;
        self.text.encoder.validate("text.encoder")?;
        super::in_range("embedding_size", self.embedding_size)?;
        super::in_range("text.vocab_size", self.text.vocab_size)?;
        let positions = self.text.max_position_embeddings;
        super::in_range("text.max_position_embeddings", positions)
    }
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
