//! Systems that give a language model features of pictures in place of embeddings.

use serde::{Deserialize, Serialize};

use super::{
    DecoderSpec,
    encoder::{HiddenAct, NativeVitSpec, NormKind, VitSpec},
    placement::Placement,
};
use crate::error::{Error, Kind, Result};

/// Most patches along a side of the square that becomes one.
const STRIDE_MAX: usize = 1024;

/// A vision encoder, a connector, and a decoder in whose context the features stand (LLaVA, arXiv 2310.03744).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionLanguageSpec {
    /// The text id that stands for one row of a picture's features.
    pub image_token_id: u32,
    /// The one for a video's, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video_token_id: Option<u32>,
    /// How that of a picture is written where the tokenizer does not know it; its id is then the tokenizer's next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_token: Option<String>,
    /// Where the features of a video stand.
    #[serde(default)]
    pub placement: Placement,
    /// The chat template (`context/templates`) of folders that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Whether the frames' times are told behind a video, before what is said next (LLaVA-Video).
    #[serde(default)]
    pub time_instruction: bool,
    /// What stands for a video in the words of a message, of models whose chat templates know words only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_as: Option<String>,
    /// Pictures to features.
    pub features: FeatureSpec,
    /// Where tokens stand for a decoder whose positions have three components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<PositionRule>,
    /// What reads them.
    pub decoder: DecoderSpec,
}

/// What a decoder reads in place of embeddings, and at which ids.
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
    /// Where the features of a video stand.
    #[serde(default)]
    pub placement: Placement,
    /// The chat template (`context/templates`) of folders that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// As [`VisionLanguageSpec::time_instruction`].
    #[serde(default)]
    pub time_instruction: bool,
    /// As [`VisionLanguageSpec::shown_as`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_as: Option<String>,
    /// Pictures to features.
    pub features: FeatureSpec,
    /// As [`VisionLanguageSpec::positions`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<PositionRule>,
}

impl VisionLanguageSpec {
    /// The decoder, and what it reads.
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

/// Time, height and width of what stands in a context. Text has one number for all three; a picture's are its
/// line and its column, from where the text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum PositionRule {
    /// Steps of a video are counted (Qwen2-VL, arXiv 2409.12191).
    Counted {
        /// Where the text goes on.
        #[serde(default)]
        after_video: AfterVideo,
    },
    /// Steps of a video stand at their time (Qwen2.5-VL, arXiv 2502.13923).
    Timed {
        /// Positions of one second.
        tokens_per_second: u32,
        /// Where the text goes on.
        #[serde(default)]
        after_video: AfterVideo,
    },
    /// Every step of a video is a picture; text between them says when it was (Qwen3-VL).
    Steps,
}

/// Where text goes on behind a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterVideo {
    /// Behind its highest component: transformers 4.49, which the model came with.
    #[default]
    Highest,
    /// Behind the longer side of its grid, inside its time where it is longer: transformers 5.
    Side,
}

/// How pictures become rows of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "tower", rename_all = "snake_case")]
pub enum FeatureSpec {
    /// Square pictures of one size.
    Square(SquareSpec),
    /// Pictures, or pairs of frames, of any size.
    Native(NativeSpec),
}

/// How a picture, or a pair of frames, of any size becomes rows of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativeSpec {
    /// The encoder.
    pub vision: NativeVitSpec,
    /// What is done with its tokens, which come in squares of four.
    pub connector: Vec<ConnectorStep>,
    /// What deeper layers of the decoder get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deepstack: Option<DeepstackSpec>,
}

/// Features for the first layers of a decoder (DeepStack, arXiv 2406.04334).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepstackSpec {
    /// Behind which blocks of the encoder they are taken, by number, in order.
    pub blocks: Vec<usize>,
    /// What is done with each, under `deepstack.N`.
    pub connector: Vec<ConnectorStep>,
}

/// How a square picture becomes rows of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SquareSpec {
    /// The encoder.
    pub vision: VitSpec,
    /// Behind which block its tokens are taken; −1 is the last, 0 is before the first.
    pub vision_feature_layer: i64,
    /// Which of its tokens.
    pub vision_feature_select_strategy: Select,
    /// The norm behind the blocks is applied to them.
    #[serde(default)]
    pub vision_feature_norm: bool,
    /// What is done with them then, step after step.
    pub connector: Vec<ConnectorStep>,
    /// Where a learned row stands among those of a video.
    #[serde(default)]
    pub video_newline: Newline,
}

/// Where a learned row stands in a video: `mm_newline_position` of LLaVA-NeXT's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Newline {
    /// Nowhere.
    #[default]
    None,
    /// Behind the last frame (LLaVA-OneVision, arXiv 2408.03326).
    End,
    /// Behind every frame.
    Frame,
    /// Behind every line of every frame's grid (LLaVA-Video, arXiv 2410.02713).
    Grid,
}

/// Which tokens of an encoder are features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// All but the first, which is the class token.
    Default,
    /// All.
    Full,
}

/// One step between an encoder and a decoder; `name` is that of its tensors under `connector`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum ConnectorStep {
    /// A matrix.
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
    /// Squares of four patches become one row, their channels side by side.
    Merge {
        /// How the four and their squares are ordered.
        order: MergeOrder,
    },
    /// Fewer patches along each side.
    Pool {
        /// How several become one.
        #[serde(default)]
        mode: PoolMode,
        /// How many times fewer.
        #[serde(default = "two")]
        stride: usize,
    },
}

/// How squares of patches become one: `mm_spatial_pool_mode` of LLaVA-NeXT's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// Interpolated between the nearest four; a side that is no multiple is rounded up.
    #[default]
    Bilinear,
    /// Their mean; a side that is no multiple loses its last patches.
    Average,
    /// The largest, likewise.
    Max,
}

impl PoolMode {
    /// The side of what comes out of a grid of this side.
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

/// How squares of 2×2 patches are merged; a grid of odd side gets zeros on the far sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeOrder {
    /// Line by line, in the square and over the grid (VILA, and InternVL's pixel shuffle).
    Rows,
    /// Line by line in the square, column by column over the grid (VILA 1.5's first code).
    Transposed,
    /// As they come: four rows that follow one another become one (Qwen2-VL).
    Given,
}

impl VisionSpec {
    /// # Errors
    /// `BadInput` for what the parts do not allow, or parts that do not fit the decoder.
    pub fn validate(&self, decoder: &DecoderSpec) -> Result<()> {
        self.features.validate()?;
        let (given, read) = (self.features.rows_deep(), 1 + decoder.deepstack_layers);
        if given != read {
            let message =
                format!("the encoder gives {given} rows a place, the decoder reads {read}");
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
    /// Rows that stand side by side at one place of the context: one, and those of deeper layers.
    pub fn rows_deep(&self) -> usize {
        match self {
            Self::Square(_) => 1,
            Self::Native(spec) => 1 + spec.deepstack.as_ref().map_or(0, |deep| deep.blocks.len()),
        }
    }

    /// Learned rows that stand behind a video.
    pub fn newlines(&self) -> usize {
        match self {
            Self::Square(spec) => usize::from(spec.video_newline == Newline::End),
            Self::Native(_) => 0,
        }
    }

    /// Rows of features of one picture; `None` where they follow from its size.
    pub fn rows(&self) -> Option<usize> {
        match self {
            Self::Square(spec) => Some(spec.rows()),
            Self::Native(_) => None,
        }
    }

    /// # Errors
    /// `BadInput` for what the parts do not allow.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Square(spec) => spec.validate(),
            Self::Native(spec) => spec.validate(),
        }
    }
}

impl NativeSpec {
    /// # Errors
    /// `BadInput` for what the parts do not allow.
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
    /// Blocks of the encoder that are run.
    ///
    /// # Errors
    /// `BadInput` when it has not so many.
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

    /// Rows of features of one picture, those that are learned included.
    pub fn rows(&self) -> usize {
        let rows = self.pooled();
        match self.video_newline {
            Newline::None | Newline::End => rows,
            Newline::Frame => rows + 1,
            Newline::Grid => rows + rows.isqrt(),
        }
    }

    /// Rows of features of one picture behind the connector.
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
    /// `BadInput` for what the parts do not allow.
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
