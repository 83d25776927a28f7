//! The angles of rotary position embedding, by LWM's rule (`lwm/llama.py`,
//! `precompute_freqs_cis`): frequencies and products in f64, rounded to f32
//! before cosine and sine are taken. The tables that upstream computes are met
//! exactly by f64 frequencies; f32 ones miss them by 0.035 at a million positions.
//!
//! There the f32 angle of the fastest channels has steps of 1/16 radian: a more
//! exact table gives another model.

use std::f64::consts::PI;

use longreel_kernels::rope::{Pairs, rotate};

use crate::spec::{DecoderSpec, RopePairs, rope_scaling::RopeScaling};

/// Frequencies of one head and which of its channels turn together.
pub struct Rope {
    frequencies: Vec<f64>,
    /// What cosine and sine are multiplied by.
    factor: f32,
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
        let mut frequencies = frequencies(spec.rope_theta, spec.head_dim());
        let scaling = spec.rope_scaling;
        let factor = scaling.map_or(1.0, |s| stretch(s, spec.rope_theta, &mut frequencies));
        Self {
            frequencies,
            factor: factor as f32,
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
        let turn = |angle: f32| (angle.cos() * self.factor, angle.sin() * self.factor);
        let (cos, sin) = angles.map(turn).unzip();
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

/// frequencies `[d/2]` → those for a longer context, in place, and what cosine and sine are multiplied by.
fn stretch(scaling: RopeScaling, theta: f64, frequencies: &mut [f64]) -> f64 {
    match scaling {
        RopeScaling::Linear { factor } => {
            frequencies.iter_mut().for_each(|f| *f /= factor);
            1.0
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: context,
        } => {
            for f in frequencies {
                let turns = context * *f / (2.0 * PI);
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                *f *= kept + (1.0 - kept) / factor;
            }
            1.0
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: context,
            beta_fast,
            beta_slow,
            attention_factor,
        } => {
            // The channel that turns so often in the first context.
            let channel = |turns: f64| {
                let d = 2.0 * frequencies.len() as f64;
                d * (context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln())
            };
            let last = 2.0 * frequencies.len() as f64 - 1.0;
            let (low, high) = (channel(beta_fast).floor(), channel(beta_slow).ceil());
            let (low, high) = (low.max(0.0), high.min(last));
            let width = if low == high { 0.001 } else { high - low };
            for (i, f) in frequencies.iter_mut().enumerate() {
                let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                *f *= (1.0 - divided) + divided / factor;
            }
            let warmer = || {
                if factor <= 1.0 {
                    1.0
                } else {
                    0.1 * factor.ln() + 1.0
                }
            };
            attention_factor.unwrap_or_else(warmer)
        }
    }
}
