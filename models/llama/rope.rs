//! The angles of rotary position embedding, by LWM's rule (`lwm/llama.py`,
//! `precompute_freqs_cis`): frequencies and products in f64, rounded to f32
//! before cosine and sine are taken. Upstream's tables are reproduced
//! exactly by f64 frequencies; with f32 they differ by up to 0.035 at position one million.
//!
//! At such positions the f32 angle of the fastest channels has steps of 1/16 radian: a more
//! exact table would give a different model.

use std::f64::consts::PI;

use longreel_kernels::rope::Pairs;

use crate::{
    checkpoint::{layout::ROPE_DIVISORS, weights::Weights},
    error::{Error, Kind, Result},
    layers::rotary::{Rotations, angle, frequencies},
    llama::input::Positions,
    spec::{
        DecoderSpec, MropeSpec, RopePairs,
        rope_scaling::{RopeScaling, Yarn},
    },
};

/// Frequencies of one head, and how its channels are paired.
pub struct Rope {
    frequencies: Vec<f64>,
    /// The position component that rotates each channel pair, `[d/2]`; empty where positions have one component.
    components: Vec<usize>,
    /// Factor of cosine and sine (YaRN's attention factor).
    factor: f32,
    pairs: Pairs,
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
        let factor = scaling.map_or(1.0, |s| stretch(s, spec, &mut frequencies));
        let component =
            |mrope: MropeSpec| (0..spec.head_dim() / 2).map(move |i| mrope.component(i));
        Self {
            frequencies,
            components: spec.mrope.into_iter().flat_map(component).collect(),
            factor: factor as f32,
            pairs,
        }
    }

    /// [`Rope::new`], with divisors read from the weights where the specification says so.
    ///
    /// # Errors
    /// `BadInput` when they are missing, or not positive and finite.
    pub fn load(spec: &DecoderSpec, weights: &mut Weights) -> Result<Self> {
        let mut rope = Self::new(spec);
        if spec.rope_scaling == Some(RopeScaling::Stored) {
            let divisors = weights.vector(ROPE_DIVISORS, rope.frequencies.len())?;
            for (frequency, divisor) in rope.frequencies.iter_mut().zip(divisors) {
                if !(divisor.is_finite() && divisor > 0.0) {
                    let message =
                        format!("{ROPE_DIVISORS} has {divisor}, expected numbers above 0");
                    return Err(Error::new(Kind::BadInput, message));
                }
                *frequency /= f64::from(divisor);
            }
        }
        Ok(rope)
    }

    /// positions `[n]` → cosine and sine `[n, d/2]`.
    pub fn rotations(&self, positions: Positions) -> Rotations {
        let mut rotations = Rotations::default();
        self.append(positions, &mut rotations);
        rotations
    }

    /// positions `[n]` → appends cosine and sine `[n, d/2]` to `rotations`.
    pub fn append(&self, positions: Positions, rotations: &mut Rotations) {
        match positions {
            Positions::Line(positions) => {
                for &position in positions {
                    let angles = self.frequencies.iter().map(|&f| angle(position, f));
                    rotations.extend(angles, self.factor);
                }
            }
            Positions::Space(positions) => {
                for position in positions {
                    let parts = self.frequencies.iter().zip(&self.components);
                    let angles = parts.map(|(&f, &component)| angle(position[component], f));
                    rotations.extend(angles, self.factor);
                }
            }
        }
    }

    /// x `[n, heads, d]`, rotations of n positions → x rotated in place.
    pub fn apply(&self, x: &mut [f32], heads: usize, rotations: &Rotations) {
        rotations.apply(x, heads, 2 * self.frequencies.len(), self.pairs);
    }
}

/// Scales frequencies `[d/2]` for a longer context in place → the factor of cosine and sine.
fn stretch(scaling: RopeScaling, spec: &DecoderSpec, frequencies: &mut [f64]) -> f64 {
    match scaling {
        RopeScaling::Ntk { factor } => {
            raise_base(factor, frequencies);
            1.0
        }
        RopeScaling::Dynamic {
            factor,
            original_max_position_embeddings: context,
        } => {
            let longest = spec.max_position_embeddings as f64;
            let longer = longest / context.unwrap_or(longest).min(longest);
            raise_base(factor * longer - (factor - 1.0), frequencies);
            1.0
        }
        // [`Rope::load`] divides by them.
        RopeScaling::Stored => 1.0,
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
            let context = context.unwrap_or(spec.max_position_embeddings as f64);
            for f in frequencies {
                let rotations = context * *f / (2.0 * PI);
                let kept = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                *f *= kept + (1.0 - kept) / factor;
            }
            1.0
        }
        RopeScaling::Yarn(yarn) => stretch_by_yarn(yarn, spec, frequencies),
    }
}

/// Scales frequencies `[d/2]` by YaRN in place → the factor of cosine and sine (transformers, `_compute_yarn_parameters`).
fn stretch_by_yarn(yarn: Yarn, spec: &DecoderSpec, frequencies: &mut [f64]) -> f64 {
    let longest = spec.max_position_embeddings as f64;
    let context = yarn.original_max_position_embeddings.unwrap_or(longest);
    let factor = yarn.factor;
    let (low, high) = yarn_ramp(yarn, context, spec.rope_theta, frequencies.len());
    for (i, f) in frequencies.iter_mut().enumerate() {
        let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        *f *= (1.0 - divided) + divided / factor;
    }
    let warmer = |scale: f64| match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * scale * factor.ln() + 1.0,
    };
    // A scale of 0 counts as absent.
    let said = |scale: Option<f64>| scale.filter(|scale| *scale != 0.0);
    let usual = match (said(yarn.mscale), said(yarn.mscale_all_dim)) {
        (Some(mscale), Some(all)) => warmer(mscale) / warmer(all),
        _ => warmer(1.0),
    };
    yarn.attention_factor.unwrap_or(usual)
}

/// The channels between which frequencies are mixed, of `pairs` pairs.
fn yarn_ramp(yarn: Yarn, context: f64, theta: f64, pairs: usize) -> (f64, f64) {
    let d = 2.0 * pairs as f64;
    // The channel pair with this many rotations within the original context (YaRN, arXiv 2309.00071).
    let channel = |rotations: f64| d * (context / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let or = |beta: f64, usual: f64| if beta == 0.0 { usual } else { beta };
    let (low, high) = (
        channel(or(yarn.beta_fast, 32.0)),
        channel(or(yarn.beta_slow, 1.0)),
    );
    let (low, high) = match yarn.truncate {
        Some(false) => (low, high),
        _ => (low.floor(), high.ceil()),
    };
    let (low, high) = (low.max(0.0), high.min(d - 1.0));
    // transformers' guard against a division by zero (`linear_ramp_factor`).
    (low, if low == high { low + 0.001 } else { high })
}

/// NTK scaling: frequencies `[d/2]` of a base `factor^(d / (d − 2))` times as large, in place: the slowest is divided by
/// `factor`, the fastest is unchanged.
fn raise_base(factor: f64, frequencies: &mut [f64]) {
    let last = frequencies.len().saturating_sub(1).max(1) as f64;
    for (i, f) in frequencies.iter_mut().enumerate() {
        *f /= factor.powf(i as f64 / last);
    }
}
