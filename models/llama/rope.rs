//! The angles of rotary position embedding, by LWM's rule (`lwm/llama.py`,
//! `precompute_freqs_cis`): frequencies and products in f64, rounded to f32
//! before cosine and sine are taken. The tables that upstream computes are met
//! exactly by f64 frequencies; f32 ones miss them by 0.035 at a million positions.
//!
//! There the f32 angle of the fastest channels has steps of 1/16 radian: a more
//! exact table gives another model.

use longreel_kernels::rope::{Pairs, rotate};

use crate::spec::{DecoderSpec, RopePairs};

/// Frequencies of one head and which of its channels turn together.
pub struct Rope {
    frequencies: Vec<f64>,
    pairs: Pairs,
}

/// Cosine and sine of some positions, `[n, d/2]` each.
pub struct Turns {
    /// `[n, d/2]`.
    pub cos: Vec<f32>,
    /// `[n, d/2]`.
    pub sin: Vec<f32>,
}

impl Rope {
    /// The frequencies of a decoder of `spec`.
    pub fn new(spec: &DecoderSpec) -> Self {
        let pairs = match spec.rope_pairs {
            RopePairs::Adjacent => Pairs::Adjacent,
            RopePairs::Halves => Pairs::Halves,
        };
        Self {
            frequencies: frequencies(spec.rope_theta, spec.head_dim()),
            pairs,
        }
    }

    /// positions `[n]` → cosine and sine `[n, d/2]`.
    pub fn turns(&self, positions: &[u32]) -> Turns {
        let angles = positions.iter().flat_map(|&position| {
            self.frequencies
                .iter()
                .map(move |&f| (f64::from(position) * f) as f32)
        });
        let (cos, sin) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        Turns { cos, sin }
    }

    /// x `[n, heads, d]`, turns of n positions → x turned in place.
    pub fn apply(&self, x: &mut [f32], heads: usize, turns: &Turns) {
        let half = self.frequencies.len();
        rotate(x, heads, &turns.cos, &turns.sin, half, self.pairs);
    }
}

/// `1 / theta^(2i/d)`, `[d/2]`.
fn frequencies(theta: f64, d: usize) -> Vec<f64> {
    let exponent = |i: usize| (2 * i) as f64 / d as f64;
    (0..d / 2).map(|i| 1.0 / theta.powf(exponent(i))).collect()
}
