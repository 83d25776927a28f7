//! Sampling of one id from logits: greedy, or with temperature, top-k and
//! top-p in the order of Hugging Face's logits processors.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::error::{Error, Kind, Result};

/// Sampling parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// 0 is greedy; above 0 it divides the logits.
    pub temperature: f64,
    /// Only the k most likely ids, when given.
    pub top_k: Option<usize>,
    /// Only the most likely ids whose probabilities together reach p, when given.
    pub top_p: Option<f64>,
    /// The same seed gives the same ids.
    pub seed: u64,
}

impl Draw {
    /// Greedy: always the most likely id.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: None,
        top_p: None,
        seed: 0,
    };
}

/// A sampler with its random state.
pub struct Sampler {
    draw: Draw,
    rng: ChaCha12Rng,
}

impl Sampler {
    /// The sampler of row `row` of a batch: rows draw from independent streams of one seed.
    pub fn new(draw: &Draw, row: u64) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(draw.seed);
        rng.set_stream(row);
        Self {
            draw: draw.clone(),
            rng,
        }
    }

    /// logits `[vocabulary]` → an id.
    ///
    /// # Errors
    /// `Compute` when a logit is NaN or +∞.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32> {
        check(logits)?;
        if self.draw.temperature <= 0.0 || self.draw.top_k == Some(1) {
            return Ok(most_likely(logits));
        }
        let candidates = candidates(logits, &self.draw);
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut left = self.rng.random::<f64>() * total;
        for &(id, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return Ok(id);
            }
        }
        // Reached only when rounding leaves `left` at or just above 0.
        Ok(candidates.last().map_or(0, |c| c.0))
    }
}

fn check(logits: &[f32]) -> Result<()> {
    let bad = |x: &f32| x.is_nan() || *x == f32::INFINITY;
    match logits.iter().position(bad) {
        Some(at) => Err(Error::new(
            Kind::Compute,
            format!(
                "the logit of id {at} is {}, expected a finite number",
                logits[at]
            ),
        )),
        None if logits.is_empty() => Err(Error::new(Kind::Compute, "there are no logits")),
        None => Ok(()),
    }
}

/// The id of the largest logit, the lowest on ties.
fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The candidate ids, most likely first, with their unnormalized probabilities.
fn candidates(logits: &[f32], draw: &Draw) -> Vec<(u32, f64)> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |id: u32| logits[id as usize];
    let likelier = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
    let keep = draw.top_k.unwrap_or(order.len()).clamp(1, order.len());
    if keep < order.len() {
        order.select_nth_unstable_by(keep - 1, likelier);
        order.truncate(keep);
    }
    order.sort_unstable_by(likelier);
    let largest = order.first().map_or(0.0, |&id| f64::from(logit(id)));
    let weight = |id: u32| ((f64::from(logit(id)) - largest) / draw.temperature).exp();
    let mut kept: Vec<(u32, f64)> = order.into_iter().map(|id| (id, weight(id))).collect();
    if let Some(p) = draw.top_p.filter(|p| *p < 1.0) {
        kept.truncate(nucleus(&kept, p));
    }
    kept
}

/// The number of ids that reach probability `p`; the one that crosses it is included.
fn nucleus(candidates: &[(u32, f64)], p: f64) -> usize {
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    let mut reached = 0.0;
    let below = |c: &&(u32, f64)| {
        let keep = reached < p * total;
        reached += c.1;
        keep
    };
    candidates.iter().take_while(below).count().max(1)
}
