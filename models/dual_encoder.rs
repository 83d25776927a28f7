//! Pictures and texts as vectors of one space (CLIP, SigLIP): how well a text describes a picture
//! is the cosine of their vectors.

use crate::{
    checkpoint::weights::Weights, context::text_encoder::TextEncoder, error::Result,
    layers::linear::Linear, spec::encoder::DualEncoderSpec, vision::vit::Vit,
};

/// A picture encoder, a text encoder, and the scale and bias of their cosines.
pub struct DualEncoder {
    vision: Vit,
    vision_projection: Option<Linear>,
    text: TextEncoder,
    /// The logit is `scale · cosine + bias`.
    scale: f32,
    bias: f32,
    has_bias: bool,
    width: usize,
}

impl DualEncoder {
    /// Takes the tensors under `vision` and `text`, `vision.projection`, `logit_scale` and `logit_bias`.
    pub fn load(spec: &DualEncoderSpec, weights: &mut Weights) -> Result<Self> {
        let (size, hidden) = (spec.embedding_size, spec.vision.encoder.hidden_size);
        let projection = || Linear::named(weights, "vision.projection", size, hidden, false);
        let vision_projection = spec.vision_projection.then(projection).transpose()?;
        let number = |weights: &mut Weights, name| {
            let number = weights.numbers(name, &[])?;
            Ok::<f32, crate::error::Error>(number.first().copied().unwrap_or_default())
        };
        Ok(Self {
            vision: Vit::load(&spec.vision, weights, "vision")?,
            vision_projection,
            text: TextEncoder::load(&spec.text, size, weights, "text")?,
            scale: number(weights, "logit_scale")?.exp(),
            bias: match spec.logit_bias {
                true => number(weights, "logit_bias")?,
                false => 0.0,
            },
            has_bias: spec.logit_bias,
            width: size,
        })
    }

    /// Channels of the vectors.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The probability that the text describes the picture, from the [`DualEncoder::logit`] of their
    /// vectors: SigLIP's sigmoid. `None` for CLIP, whose softmax needs several texts.
    pub fn probability(&self, logit: f32) -> Option<f32> {
        self.has_bias.then(|| 1.0 / (1.0 + (-logit).exp()))
    }

    /// The picture encoder.
    pub fn vision(&self) -> &Vit {
        &self.vision
    }

    /// The text encoder.
    pub fn text(&self) -> &TextEncoder {
        &self.text
    }

    /// pixels `[n, 3, side, side]` → `[n, embedding]`, each of length one.
    ///
    /// # Errors
    /// As [`Vit::pooled`].
    pub fn encode_pictures(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let pooled = self.vision.pooled(pixels)?;
        let (mut vectors, width) = match &self.vision_projection {
            Some(projection) => (projection.forward(&pooled), projection.out_features()),
            None => (pooled, self.vision.spec().encoder.hidden_size),
        };
        vectors.chunks_exact_mut(width).for_each(normalize);
        Ok(vectors)
    }

    /// ids `[n]` of one text → `[embedding]`, of length one.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn encode_text(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut vector = self.text.encode(ids)?;
        normalize(&mut vector);
        Ok(vector)
    }

    /// The model's logit for unit vectors.
    pub fn score(&self, picture: &[f32], text: &[f32]) -> f32 {
        self.logit(picture.iter().zip(text).map(|(p, t)| p * t).sum())
    }

    /// The model's logit for a cosine.
    pub fn logit(&self, cosine: f32) -> f32 {
        cosine * self.scale + self.bias
    }
}

/// Scales the vector to length one; a zero vector stays.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}
