//! Encoders of pictures and of texts: stacks of transformer blocks, with the layers
//! before and after them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Activation functions, by the names of Hugging Face's `hidden_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `max(x, 0)`.
    Relu,
    /// GELU with the error function.
    Gelu,
    /// GELU, tanh approximation.
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

/// The kind of norm.
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
    /// The activation function of the feed-forward layer.
    pub hidden_act: HiddenAct,
    /// The norm before each layer.
    #[serde(default)]
    pub norm: NormKind,
    /// The ε of the norm.
    pub layer_norm_eps: f64,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether query, key and value are one matrix.
    #[serde(default)]
    pub fused_qkv: bool,
    /// Whether the feed-forward layer is gated: `down(act(gate(x)) · up(x))`
    /// (arXiv 2002.05202).
    #[serde(default)]
    pub gated: bool,
    /// Whether gate and up are one matrix, gate first (DINOv2 giant).
    #[serde(default)]
    pub fused_gate: bool,
    /// Whether queries and keys have an RMSNorm, over all heads together (InternViT
    /// 6B, arXiv 2312.14238).
    #[serde(default)]
    pub qk_norm: bool,
    /// Whether layers have a learned scale per channel, LayerScale (CaiT, arXiv 2103.17239).
    #[serde(default)]
    pub layer_scale: bool,
}

/// How a picture's vector is pooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionPool {
    /// The class token.
    Class,
    /// Attention of one learned query over all tokens, and a feed-forward layer (SigLIP).
    Attention,
    /// Class token and mean of the patch tokens, concatenated (DINOv2).
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
    /// Whether the patch embedding has a bias.
    pub patch_bias: bool,
    /// Whether there is a class token, before the patches.
    pub class_token: bool,
    /// Whether there is a norm before the blocks (CLIP).
    #[serde(default)]
    pub pre_norm: bool,
    /// Whether there is a norm after the blocks.
    pub post_norm: bool,
    /// How a vector is pooled; absent where only the tokens are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<VisionPool>,
    /// The blocks.
    pub encoder: EncoderSpec,
}

/// A vision transformer over pictures, or pairs of frames, of any size, with RoPE in two dimensions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativeVitSpec {
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames per patch.
    pub temporal_patch_size: usize,
    /// Whether the patch embedding has a bias.
    pub patch_bias: bool,
    /// RoPE theta of the patches' rows and columns.
    pub rope_theta: f64,
    /// Number of learned positions of a square grid, interpolated to the picture's grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_position_embeddings: Option<usize>,
    /// Windowed attention of most blocks; when absent, all blocks attend to the whole picture.
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

/// How a text's vector is pooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextPool {
    /// The end-of-text token.
    End,
    /// The last token, padding included.
    Last,
}

/// An encoder of short texts, as in CLIP and SigLIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderSpec {
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Maximum tokens of a text.
    pub max_position_embeddings: usize,
    /// Whether attention is causal.
    pub causal: bool,
    /// How the vector is pooled.
    pub pool: TextPool,
    /// The id that ends a text. CLIP's old configurations say 2 and mean the largest id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<u32>,
    /// The id with which every text is padded to the last position, as in training (SigLIP);
    /// absent where texts are not padded. A padding token named by the tokenizer takes precedence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_token_id: Option<u32>,
    /// Whether the projection has a bias.
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
    /// Whether a picture's vector is projected.
    pub vision_projection: bool,
    /// Whether there is a learned logit bias.
    pub logit_bias: bool,
    /// The picture encoder.
    pub vision: VitSpec,
    /// The text encoder.
    pub text: TextEncoderSpec,
}

impl EncoderSpec {
    /// # Errors
    /// `BadInput` for invalid sizes, or heads that do not divide the width.
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
    /// `BadInput` for invalid sizes, or a pool without the class token that it needs.
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
                "{name}.pool needs a class token, expected {name}.class_token to be true"
            )));
        }
        Ok(())
    }
}

impl NativeVitSpec {
    /// Numbers per patch.
    pub fn patch_len(&self) -> usize {
        3 * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Side of a window, in squares of 2×2 patches.
    pub fn window_side(&self) -> Option<usize> {
        let windows = self.windows.as_ref()?;
        Some(windows.window_size / (2 * self.patch_size.max(1)))
    }

    /// # Errors
    /// `BadInput` for invalid sizes, or heads whose channels are not a multiple of four (pairs for row and column).
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
    /// As the parts'.
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
