//! A vision transformer that classifies pictures.

use crate::{
    checkpoint::weights::Weights, error::Result, layers::linear::Linear, spec::encoder::VitSpec,
    vision::vit::Vit,
};

/// The encoder and a linear classification head.
pub struct Classifier {
    vision: Vit,
    head: Linear,
}

impl Classifier {
    /// Takes the tensors under `vision`, and `classifier`, which has one row per class.
    pub fn load(spec: &VitSpec, weights: &mut Weights) -> Result<Self> {
        let classes = weights
            .shape("classifier.weight")
            .map_or(0, |shape| shape[0]);
        let vision = Vit::load(spec, weights, "vision")?;
        let head = Linear::named(weights, "classifier", classes, vision.pooled_size(), true)?;
        Ok(Self { vision, head })
    }

    /// The encoder.
    pub fn vision(&self) -> &Vit {
        &self.vision
    }

    /// pixels `[n, 3, side, side]` → logits `[n, classes]`.
    ///
    /// # Errors
    /// As [`Vit::pooled`].
    pub fn logits(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        Ok(self.head.forward(&self.vision.pooled(pixels)?))
    }
}
