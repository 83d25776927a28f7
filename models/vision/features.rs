//! Pictures to the rows that a decoder reads in place of embeddings.

use crate::{
    checkpoint::weights::Weights,
    error::Result,
    spec::features::{FeatureSpec, Select},
    vision::{connector::Connector, vit::Vit},
};

/// An encoder and its connector.
pub struct FeatureEncoder {
    vision: Vit,
    blocks: usize,
    select: Select,
    connector: Connector,
}

impl FeatureEncoder {
    /// Takes the tensors under `vision` and `connector`.
    pub fn load(spec: &FeatureSpec, weights: &mut Weights) -> Result<Self> {
        spec.validate()?;
        let width = spec.vision.encoder.hidden_size;
        Ok(Self {
            vision: Vit::load(&spec.vision, weights, "vision")?,
            blocks: spec.blocks()?,
            select: spec.vision_feature_select_strategy,
            connector: Connector::load(&spec.connector, width, weights, "connector")?,
        })
    }

    /// The encoder.
    pub fn vision(&self) -> &Vit {
        &self.vision
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
