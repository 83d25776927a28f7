//! Rotary position embedding (Su et al., arXiv 2104.09864): the rotation of heads by token position.

use longreel_kernels::rope::{Pairs, rotate};

/// Cosines and sines of the angles of `n` tokens, `[n, d/2]` each.
#[derive(Debug, Clone, Default)]
pub struct Rotations {
    /// `[n, d/2]`.
    pub cos: Vec<f32>,
    /// `[n, d/2]`.
    pub sin: Vec<f32>,
}

impl Rotations {
    /// Appends angles `[…, d/2]`; cosines and sines are multiplied by `factor`.
    pub fn extend(&mut self, angles: impl IntoIterator<Item = f32>, factor: f32) {
        for angle in angles {
            self.cos.push(angle.cos() * factor);
            self.sin.push(angle.sin() * factor);
        }
    }

    /// The inverse rotations, as the backward pass needs them.
    pub fn reversed(&self) -> Self {
        Self {
            cos: self.cos.clone(),
            sin: self.sin.iter().map(|sin| -sin).collect(),
        }
    }

    /// x `[n, heads, d]` → x rotated in place.
    pub fn apply(&self, x: &mut [f32], heads: usize, d: usize, pairs: Pairs) {
        rotate(x, heads, &self.cos, &self.sin, d / 2, pairs);
    }
}

/// RoPE frequencies `1 / theta^(2i/d)`, `[d/2]`.
pub fn frequencies(theta: f64, d: usize) -> Vec<f64> {
    let exponent = |i: usize| (2 * i) as f64 / d as f64;
    (0..d / 2).map(|i| 1.0 / theta.powf(exponent(i))).collect()
}

/// The angle of `position`, by LWM's rule (`lwm/llama.py`): a product in f64, rounded once to f32.
pub fn angle(position: u32, frequency: f64) -> f32 {
    (f64::from(position) * frequency) as f32
}
