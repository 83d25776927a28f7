//! Pictures to features: the rows that a decoder reads in place of embeddings.

use crate::{
    checkpoint::weights::Weights,
    error::Result,
    spec::features::{FeatureSpec, Newline, Select, SquareSpec},
    vision::{connector::Connector, native::NativeEncoder, vit::Vit},
};

/// An encoder and its connector.
pub enum FeatureEncoder {
    /// For square pictures of one size.
    Square(Box<SquareEncoder>),
    /// For pictures, or pairs of frames, of any size.
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
    /// Whether the encoder's final norm is applied.
    normed: bool,
    connector: Connector,
    /// Where the learned newline row is inserted.
    place: Newline,
    /// The learned newline row, `[hidden of the decoder]`; empty where there is none.
    newline: Vec<f32>,
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
            normed: spec.vision_feature_norm,
            connector: Connector::load(&spec.connector, width, weights, "connector")?,
            place: spec.video_newline,
            newline: newline(spec.video_newline, hidden, weights)?,
        })
    }

    /// The encoder.
    pub fn vision(&self) -> &Vit {
        &self.vision
    }

    /// The newline row after a video, `[hidden of the decoder]`; empty where there is none.
    pub fn newline(&self) -> &[f32] {
        match self.place {
            Newline::End => &self.newline,
            Newline::None | Newline::Frame | Newline::Grid => &[],
        }
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
        let mut tokens = self.vision.hidden(pixels, self.blocks)?;
        if self.normed {
            tokens = self.vision.normed(&tokens);
        }
        let of_picture = spec.tokens() * width;
        let first = match self.select {
            Select::Default => width,
            Select::Full => 0,
        };
        let pictures = tokens.chunks_exact(of_picture);
        let n = pictures.len();
        let selected = pictures.flat_map(|tokens| &tokens[first..]).copied();
        let features = self.connector.forward(selected.collect(), n, width)?;
        Ok(self.with_newlines(features, n))
    }

    /// features `[n, rows, hidden]` → with the newline row after every frame or grid row, where the model has it.
    fn with_newlines(&self, features: Vec<f32>, n: usize) -> Vec<f32> {
        let hidden = self.newline.len().max(1);
        let rows = features.len() / n.max(1) / hidden;
        let run = match self.place {
            Newline::None | Newline::End => return features,
            Newline::Frame => rows,
            Newline::Grid => rows.isqrt(),
        };
        let runs = features.chunks_exact((run * hidden).max(1));
        runs.flat_map(|run| [run, &self.newline].concat()).collect()
    }
}

/// The newline row; where the model does not use it, it is still taken if the checkpoint has it: every tensor must be.
fn newline(place: Newline, hidden: usize, weights: &mut Weights) -> Result<Vec<f32>> {
    const NAME: &str = "connector.newline";
    match place {
        Newline::None if !weights.contains(NAME) => Ok(Vec::new()),
        _ => weights.numbers(NAME, &[hidden]),
    }
}
