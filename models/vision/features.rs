//! Pictures to the rows that a decoder reads in place of embeddings.

use crate::{
    checkpoint::weights::Weights,
    error::Result,
    spec::features::{FeatureSpec, Select, SquareSpec},
    vision::{connector::Connector, native::NativeEncoder, vit::Vit},
};

/// An encoder and its connector.
pub enum FeatureEncoder {
    /// Of square pictures of one size.
    Square(Box<SquareEncoder>),
    /// Of pictures, or pairs of frames, of any size.
    Native(Box<NativeEncoder>),
}

impl FeatureEncoder {
    /// Takes the tensors under `vision` and `connector`, for a decoder of `hidden` channels.
    pub fn load(spec: &FeatureSpec, hidden: usize, weights: &mut Weights) -> Result<Self> {
        Ok(match spec {
            FeatureSpec::Square(spec) => {
                Self::Square(Box::new(SquareEncoder::load(spec, hidden, weights)?))
            }
            FeatureSpec::Native(spec) => {
                Self::Native(Box::new(NativeEncoder::load(spec, weights)?))
            }
        })
    }
}

/// An encoder of square pictures and its connector.
pub struct SquareEncoder {
    vision: Vit,
    blocks: usize,
    select: Select,
    connector: Connector,
    /// `[hidden of the decoder]`.
    newline: Option<Vec<f32>>,
}

impl SquareEncoder {
    /// Takes the tensors under `vision` and `connector`, for a decoder of `hidden` channels.
    pub fn load(spec: &SquareSpec, hidden: usize, weights: &mut Weights) -> Result<Self> {
        spec.validate()?;
        let width = spec.vision.encoder.hidden_size;
        Ok(Self {
            vision: Vit::load(&spec.vision, weights, "vision")?,
            blocks: spec.blocks()?,
            select: spec.vision_feature_select_strategy,
            connector: Connector::load(&spec.connector, width, weights, "connector")?,
            newline: match spec.video_newline {
                true => Some(weights.numbers("connector.newline", &[hidden])?),
                false => None,
            },
        })
    }

    /// The encoder.
    pub fn vision(&self) -> &Vit {
        &self.vision
    }

    /// The learned row behind a video, `[hidden of the decoder]`; empty where there is none.
    pub fn newline(&self) -> &[f32] {
        self.newline.as_deref().unwrap_or_default()
    }

    /// pixels `[frames, 3, side, side]` of one video → its features `[rows, hidden of the decoder]`.
    ///
    /// # Errors
    /// As [`Vit::hidden`].
    pub fn video(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let mut features = self.forward(pixels)?;
        features.extend_from_slice(self.newline());
        Ok(features)
    }

    /// pixels `[n, 3, side, side]` → features `[n, rows, hidden of the decoder]`.
    ///
    /// # Errors
    /// As [`Vit::hidden`].
    pub fn forward(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let spec = self.vision.spec();
        let width = spec.encoder.hidden_size;
        let tokens = self.vision.hidden(pixels, self.blocks)?;
        let of_picture = spec.tokens() * width;
        let first = match self.select {
            Select::Default => width,
            Select::Full => 0,
        };
        let pictures = tokens.chunks_exact(of_picture);
        let n = pictures.len();
        let selected = pictures.flat_map(|tokens| &tokens[first..]).copied();
        self.connector.forward(selected.collect(), n, width)
    }
}
