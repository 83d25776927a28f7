//! Systems that give a language model features of pictures in place of embeddings.

use serde::{Deserialize, Serialize};

use super::{
    DecoderSpec,
    encoder::{HiddenAct, VitSpec},
    placement::Placement,
};
use crate::error::{Error, Kind, Result};

/// A vision encoder, a connector, and a decoder in whose context the features stand (LLaVA, arXiv 2310.03744).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionLanguageSpec {
    /// The text id that stands for one row of a picture's features.
    pub image_token_id: u32,
    /// The one for a video's, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video_token_id: Option<u32>,
    /// Where the features of a video stand.
    #[serde(default)]
    pub placement: Placement,
    /// Pictures to features.
    pub features: FeatureSpec,
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
    /// Where the features of a video stand.
    #[serde(default)]
    pub placement: Placement,
    /// Pictures to features.
    pub features: FeatureSpec,
}

impl VisionLanguageSpec {
    /// The decoder, and what it reads.
    pub fn into_parts(self) -> (DecoderSpec, VisionSpec) {
        let Self {
            image_token_id,
            video_token_id,
            placement,
            features,
            decoder,
        } = self;
        let vision = VisionSpec {
            image_token_id,
            video_token_id,
            placement,
            features,
        };
        (decoder, vision)
    }
}

/// How a picture becomes rows of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureSpec {
    /// The encoder.
    pub vision: VitSpec,
    /// Behind which block its tokens are taken; −1 is the last, 0 is before the first.
    pub vision_feature_layer: i64,
    /// Which of its tokens.
    pub vision_feature_select_strategy: Select,
    /// What is done with them then, step after step.
    pub connector: Vec<ConnectorStep>,
    /// A learned row stands behind the last frame of a video (LLaVA-OneVision).
    #[serde(default)]
    pub video_newline: bool,
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
    /// LayerNorm.
    Norm {
        /// Of its tensors.
        name: String,
        /// Added to the variance.
        eps: f64,
    },
    /// Squares of four patches become one row, their channels side by side.
    Merge {
        /// How the four and their squares are ordered.
        order: MergeOrder,
    },
    /// Half as many patches along each side, rounded up, by bilinear interpolation.
    Halve,
}

/// How squares of 2×2 patches are merged; a grid of odd side gets zeros on the far sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeOrder {
    /// Line by line, in the square and over the grid (VILA, and InternVL's pixel shuffle).
    Rows,
    /// Line by line in the square, column by column over the grid (VILA 1.5's first code).
    Transposed,
}

impl FeatureSpec {
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

    /// Rows of features of one picture.
    pub fn rows(&self) -> usize {
        let class = match self.vision_feature_select_strategy {
            Select::Default => 1,
            Select::Full => 0,
        };
        let tokens = self.vision.tokens().saturating_sub(class);
        self.connector
            .iter()
            .fold(tokens, |tokens, step| match step {
                ConnectorStep::Merge { .. } | ConnectorStep::Halve => {
                    tokens.isqrt().div_ceil(2).pow(2)
                }
                _ => tokens,
            })
    }

    /// # Errors
    /// `BadInput` for what the parts do not allow.
    pub fn validate(&self) -> Result<()> {
        self.vision.validate("vision")?;
        self.blocks().map(drop)
    }
}
