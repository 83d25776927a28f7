//! Normalization of rows, with the weights of a checkpoint.

use longreel_kernels::{layer_norm::layer_norm, rms_norm::rms_norm};

use crate::{checkpoint::weights::Weights, error::Result, spec::encoder::NormKind};

/// RMSNorm: the weight, and the ε added to the mean square.
pub struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    /// Takes the weight `name`, `[d]`.
    pub fn load(weights: &mut Weights, name: &str, d: usize, eps: f64) -> Result<Self> {
        let weight = weights.vector(name, d)?;
        let eps = eps as f32;
        Ok(Self { weight, eps })
    }

    /// x `[n, d]` → `[n, d]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        rms_norm(x, &self.weight, self.eps, &mut y);
        y
    }
}

/// LayerNorm: weight and bias, and the ε added to the variance.
pub struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    /// Takes `{name}.weight` and `{name}.bias`, `[d]`.
    pub fn load(weights: &mut Weights, name: &str, d: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: weights.vector(&format!("{name}.weight"), d)?,
            bias: weights.vector(&format!("{name}.bias"), d)?,
            eps: eps as f32,
        })
    }

    /// x `[n, d]` → `[n, d]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        layer_norm(x, &self.weight, &self.bias, self.eps, &mut y);
        y
    }
}

/// LayerNorm or RMSNorm.
pub enum Norm {
    /// Normalizes mean and variance.
    Layer(LayerNorm),
    /// Normalizes the mean square.
    Rms(RmsNorm),
}

impl Norm {
    /// Takes `{name}.weight`, `[d]`, and `{name}.bias` where the kind has one.
    pub fn load(
        kind: NormKind,
        weights: &mut Weights,
        name: &str,
        d: usize,
        eps: f64,
    ) -> Result<Self> {
        Ok(match kind {
            NormKind::Layer => Self::Layer(LayerNorm::load(weights, name, d, eps)?),
            NormKind::Rms => Self::Rms(RmsNorm::load(weights, &format!("{name}.weight"), d, eps)?),
        })
    }

    /// x `[n, d]` → `[n, d]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}
