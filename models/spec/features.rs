//! Vision-language systems, in which features of pictures stand in a decoder's context in place of embeddings.

use serde::{Deserialize, Serialize};

use super::{
    DecoderSpec,
    encoder::{HiddenAct, NativeVitSpec, NormKind, VitSpec},
    placement::Placement,
};
use crate::error::{Error, Kind, Result};

/// Maximum stride of a pooling step.
const STRIDE_MAX: usize = 1024;

/// A vision encoder, a connector, and a decoder that reads the features (LLaVA, arXiv 2310.03744).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionLanguageSpec {
    /// The text id that marks one feature row of a picture.
    pub image_token_id: u32,
    /// The id for a video's feature rows, where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video_token_id: Option<u32>,
    /// The text of the picture id where the tokenizer does not know it; it is then added at the next free id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_token: Option<String>,
    /// Where the features of a video are placed.
    #[serde(default)]
    pub placement: Placement,
    /// The chat template (`context/templates`) for folders without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Whether a sentence with the frames' times follows a video (LLaVA-Video).
    #[serde(default)]
    pub time_instruction: bool,
    /// The placeholder of a video in a message, for models whose chat templates support text only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_as: Option<String>,
    /// How pictures become features.
    pub features: FeatureSpec,
    /// The rule for positions of three components, where the decoder has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<PositionRule>,
    /// The decoder.
    pub decoder: DecoderSpec,
}

/// The vision part of a system: features and their ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionSpec {
    /// As [`VisionLanguageSpec::image_token_id`].
    pub image_token_id: u32,
    /// As [`VisionLanguageSpec::video_token_id`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video_token_id: Option<u32>,
    /// As [`VisionLanguageSpec::image_token`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_token: Option<String>,
    /// Where the features of a video are placed.
    #[serde(default)]
    pub placement: Placement,
    /// The chat template (`context/templates`) for folders without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// As [`VisionLanguageSpec::time_instruction`].
    #[serde(default)]
    pub time_instruction: bool,
    /// As [`VisionLanguageSpec::shown_as`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_as: Option<String>,
    /// How pictures become features.
    pub features: FeatureSpec,
    /// As [`VisionLanguageSpec::positions`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<PositionRule>,
}

impl VisionLanguageSpec {
    /// Splits into decoder and vision part.
    pub fn into_parts(self) -> (DecoderSpec, VisionSpec) {
        let Self {
            image_token_id,
            video_token_id,
            image_token,
            placement,
            chat_template,
            time_instruction,
            shown_as,
            features,
            positions,
            decoder,
        } = self;
        let vision = VisionSpec {
            image_token_id,
            video_token_id,
            image_token,
            placement,
            chat_template,
            time_instruction,
            shown_as,
            features,
            positions,
        };
        (decoder, vision)
    }
}

/// How positions of three components (time, height, width) are assigned. Text has one number for all three; a picture's are
/// rows and columns, starting at the position after the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum PositionRule {
    /// Steps of a video count up (Qwen2-VL, arXiv 2409.12191).
    Counted {
        /// Where text continues.
        #[serde(default)]
        after_video: AfterVideo,
    },
    /// Steps of a video have positions proportional to their time (Qwen2.5-VL, arXiv 2502.13923).
    Timed {
        /// Positions per second.
        tokens_per_second: u32,
        /// Where text continues.
        #[serde(default)]
        after_video: AfterVideo,
    },
    /// Every step of a video is a picture, and text between them states its time (Qwen3-VL).
    Steps,
}

/// Where text continues after a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterVideo {
    /// After its highest component: transformers 4.49, with which the model was released.
    #[default]
    Highest,
    /// After the longer side of its grid, even if its time component is higher: transformers 5.
    Side,
}

/// How pictures become features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "tower", rename_all = "snake_case")]
pub enum FeatureSpec {
    /// Square pictures of one size.
    Square(SquareSpec),
    /// Pictures, or pairs of frames, of any size.
    Native(NativeSpec),
}

/// How a picture, or a pair of frames, of any size becomes features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativeSpec {
    /// The encoder.
    pub vision: NativeVitSpec,
    /// The connector, for tokens in squares of 2×2.
    pub connector: Vec<ConnectorStep>,
    /// Features for deeper layers of the decoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deepstack: Option<DeepstackSpec>,
}

/// Features for the first layers of a decoder (DeepStack, arXiv 2406.04334).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepstackSpec {
    /// The encoder blocks after which they are taken, rising.
    pub blocks: Vec<usize>,
    /// The connector of each, with tensors under `deepstack.N`.
    pub connector: Vec<ConnectorStep>,
}

/// How a square picture becomes features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SquareSpec {
    /// The encoder.
    pub vision: VitSpec,
    /// The block after which tokens are taken; −1 is the last, 0 is before the first.
    pub vision_feature_layer: i64,
    /// Which tokens are taken.
    pub vision_feature_select_strategy: Select,
    /// Whether the final norm is applied to them.
    #[serde(default)]
    pub vision_feature_norm: bool,
    /// The connector.
    pub connector: Vec<ConnectorStep>,
    /// Where the learned newline row is inserted in a video.
    #[serde(default)]
    pub video_newline: Newline,
}

/// Where the learned newline row is inserted in a video: `mm_newline_position` of LLaVA-NeXT's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Newline {
    /// Nowhere.
    #[default]
    None,
    /// After the last frame (LLaVA-OneVision, arXiv 2408.03326).
    End,
    /// After every frame.
    Frame,
    /// After every row of every frame's grid (LLaVA-Video, arXiv 2410.02713).
    Grid,
}

/// Which tokens of an encoder are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// All but the first, which is the class token.
    Default,
    /// All.
    Full,
}

/// One step of a connector; `name` is the prefix of its tensors under `connector`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum ConnectorStep {
    /// A linear layer.
    Linear {
        /// Of its tensors.
        name: String,
        /// Channels that come out.
        out: usize,
        /// Whether it has a bias.
        bias: bool,
    },
    /// A function of each number.
    Activation {
        /// Which.
        act: HiddenAct,
    },
    /// A norm.
    Norm {
        /// Of its tensors.
        name: String,
        /// Which.
        #[serde(default)]
        kind: NormKind,
        /// Added to the variance, or to the mean square.
        eps: f64,
    },
    /// Merges squares of 2×2 patches into one row by concatenating channels.
    Merge {
        /// The order within and of the squares.
        order: MergeOrder,
    },
    /// Pooling to a smaller grid.
    Pool {
        /// The kind of pooling.
        #[serde(default)]
        mode: PoolMode,
        /// The factor per side.
        #[serde(default = "two")]
        stride: usize,
    },
}

/// The kind of pooling: `mm_spatial_pool_mode` of LLaVA-NeXT's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// Bilinear interpolation; a side that is not a multiple of the stride is rounded up.
    #[default]
    Bilinear,
    /// The mean; a side that is not a multiple loses its last patches.
    Average,
    /// The maximum, likewise.
    Max,
}

impl PoolMode {
    /// The side of the output for a grid of side `grid`.
    pub fn side(self, grid: usize, stride: usize) -> usize {
        match self {
            Self::Bilinear => grid.div_ceil(stride.max(1)),
            Self::Average | Self::Max => grid / stride.max(1),
        }
    }
}

fn two() -> usize {
    2
}

/// How squares of 2×2 patches are merged; a grid of odd side is zero-padded at the right and bottom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeOrder {
    /// Row-major within the square and over the grid (VILA, and InternVL's pixel shuffle).
    Rows,
    /// Row-major within the square, column-major over the grid (VILA 1.5's first code).
    Transposed,
    /// In the given order: four consecutive rows become one (Qwen2-VL).
    Given,
}

impl VisionSpec {
    /// # Errors
    /// `BadInput` for invalid parts, or parts that do not fit the decoder.
    pub fn validate(&self, decoder: &DecoderSpec) -> Result<()> {
        self.features.validate()?;
        let (given, read) = (self.features.rows_deep(), 1 + decoder.deepstack_layers);
        if given != read {
            let message = format!(
                "the encoder gives {given} rows per feature token, the decoder reads {read}"
            );
            return Err(Error::new(Kind::BadInput, message));
        }
        if self.positions.is_some() != decoder.mrope.is_some() {
            let message = "positions and decoder.mrope: one is stated, expected both or none";
            return Err(Error::new(Kind::BadInput, message));
        }
        Ok(())
    }
}

impl FeatureSpec {
    /// Rows per feature token: one, and those for deeper layers.
    pub fn rows_deep(&self) -> usize {
        match self {
            Self::Square(_) => 1,
            Self::Native(spec) => 1 + spec.deepstack.as_ref().map_or(0, |deep| deep.blocks.len()),
        }
    }

    /// Learned rows after a video.
    pub fn newlines(&self) -> usize {
        match self {
            Self::Square(spec) => usize::from(spec.video_newline == Newline::End),
            Self::Native(_) => 0,
        }
    }

    /// Feature rows of one picture; `None` where they depend on its size.
    pub fn rows(&self) -> Option<usize> {
        match self {
            Self::Square(spec) => Some(spec.rows()),
            Self::Native(_) => None,
        }
    }

    /// # Errors
    /// `BadInput` for invalid parts.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Square(spec) => spec.validate(),
            Self::Native(spec) => spec.validate(),
        }
    }
}

impl NativeSpec {
    /// # Errors
    /// `BadInput` for invalid parts.
    pub fn validate(&self) -> Result<()> {
        self.vision.validate("vision")?;
        let all = self.vision.encoder.num_hidden_layers;
        let Some(DeepstackSpec { blocks, .. }) = &self.deepstack else {
            return Ok(());
        };
        if blocks.is_sorted_by(|a, b| a < b) && blocks.iter().all(|&block| block < all) {
            return Ok(());
        }
        let message = format!("deepstack.blocks is {blocks:?}, expected blocks of {all}, in order");
        Err(Error::new(Kind::BadInput, message))
    }
}

impl SquareSpec {
    /// Number of encoder blocks that are run.
    ///
    /// # Errors
    /// `BadInput` when the encoder has fewer.
    pub fn blocks(&self) -> Result<usize> {
        let all = self.vision.encoder.num_hidden_layers as i64;
        let layer = self.vision_feature_layer;
        let blocks = if layer < 0 { all + 1 + layer } else { layer };
        if (0..=all).contains(&blocks) {
            return Ok(blocks as usize);
        }
        let message = format!("vision_feature_layer is {layer}, the encoder has {all} blocks");
        Err(Error::new(Kind::BadInput, message))
    }

    /// Feature rows of one picture, newline rows included.
    pub fn rows(&self) -> usize {
        let rows = self.pooled();
        match self.video_newline {
            Newline::None | Newline::End => rows,
            Newline::Frame => rows + 1,
            Newline::Grid => rows + rows.isqrt(),
        }
    }

    /// Feature rows of one picture after the connector.
    fn pooled(&self) -> usize {
        let class = match self.vision_feature_select_strategy {
            Select::Default => 1,
            Select::Full => 0,
        };
        let tokens = self.vision.tokens().saturating_sub(class);
        self.connector
            .iter()
            .fold(tokens, |tokens, step| match step {
                ConnectorStep::Merge { .. } => tokens.isqrt().div_ceil(2).pow(2),
                ConnectorStep::Pool { mode, stride } => mode.side(tokens.isqrt(), *stride).pow(2),
                _ => tokens,
            })
    }

    /// # Errors
    /// `BadInput` for invalid parts.
    pub fn validate(&self) -> Result<()> {
        self.vision.validate("vision")?;
        self.blocks()?;
        for step in &self.connector {
            if let ConnectorStep::Pool { stride, .. } = step
                && !(1..=STRIDE_MAX).contains(stride)
            {
                let message = format!("stride of a pool is {stride}, expected 1 to {STRIDE_MAX}");
                return Err(Error::new(Kind::BadInput, message));
            }
        }
        if self.vision_feature_norm && !self.vision.post_norm {
            let message = "vision_feature_norm is true, the encoder has no norm behind its blocks";
            return Err(Error::new(Kind::BadInput, message));
        }
        if self.pooled() == 0 {
            let message = "the connector leaves no features of a picture, expected some";
            return Err(Error::new(Kind::BadInput, message));
        }
        Ok(())
    }
}
