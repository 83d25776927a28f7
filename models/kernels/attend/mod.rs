//! Attention of a block of queries over one block of keys after another, with
//! the running softmax of Milakov and Gimelshein 2018 (as in FlashAttention).
//!
//! One [`Accumulator`] serves one key-value head: its rows are the queries of
//! all heads that share it. It hands out the output and its log-sum-exp, so
//! that partial results over different keys can be merged.

mod packed;

use std::cell::RefCell;

pub use packed::{BLOCK_TOKENS, KvDtype, KvShape, PANEL, PackedBlock};

use crate::{
    cpu::{Level, per_level},
    exp::exp,
    linear::{Element, scores_few},
};

/// Up to this many rows keys are streamed; above, `gemm` multiplies.
const FEW_ROWS: usize = 4;

/// Which keys of a block the rows see: one bit a key.
#[derive(Debug, Clone, Copy)]
pub struct Visible<'a> {
    /// `[rows / rows_per_mask, BLOCK_TOKENS / 32]`; bit `j % 32` of word `j / 32` is key `j`.
    pub bits: &'a [u32],
    /// Rows that share a line of bits: the heads of one token.
    pub rows_per_mask: usize,
}

/// Words of one line of [`Visible`].
pub const MASK_WORDS: usize = BLOCK_TOKENS / 32;

/// The running result of `rows` queries: weighted sum, largest score, sum of weights.
pub struct Accumulator {
    level: Level,
    d: usize,
    /// `[rows, d]`, already scaled by `1/sqrt(d)`.
    queries: Vec<f32>,
    /// `[rows, d]`, not yet divided by `sum`.
    out: Vec<f32>,
    /// `[rows]`, −∞ while no key was seen.
    max: Vec<f32>,
    /// `[rows]`.
    sum: Vec<f32>,
}

/// Working memory of one thread, as large as one block asks for.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    wide: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Accumulator {
    /// queries `[rows, d]`; scores are divided by `sqrt(d)`.
    ///
    /// # Panics
    /// When the length is no multiple of `d`.
    pub fn new(queries: Vec<f32>, d: usize) -> Self {
        Self::at_level(Level::current(), queries, d)
    }

    fn at_level(level: Level, mut queries: Vec<f32>, d: usize) -> Self {
        assert!(d > 0 && queries.len().is_multiple_of(d));
        let rows = queries.len() / d;
        let scale = 1.0 / (d as f32).sqrt();
        queries.iter_mut().for_each(|q| *q *= scale);
        Self {
            level,
            d,
            out: vec![0.0; queries.len()],
            queries,
            max: vec![f32::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
        }
    }

    /// Adds the first `tokens` keys and values of one head of a block; without `visible` every row sees them all.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn add(
        &mut self,
        block: &PackedBlock,
        kv_head: usize,
        tokens: usize,
        visible: Option<Visible>,
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            let s = tokens.min(BLOCK_TOKENS);
            assert!(block.shape().d == self.d && kv_head < block.shape().kv_heads);
            scratch.scores.resize(self.max.len() * s, 0.0);
            scratch.wide.resize(s * self.d, 0.0);
            block.read_keys(kv_head, s, &mut scratch.wide);
            self.score(s, scratch);
            if let Some(visible) = visible {
                hide(&mut scratch.scores, s, visible);
            }
            self.reweigh(s, &mut scratch.scores);
            block.read_values(kv_head, s, &mut scratch.wide);
            self.weigh(s, scratch);
        });
    }

    /// out `[rows, d]`, lse `[rows]`; a row that saw no key has zeros and −∞.
    pub fn finish(mut self) -> (Vec<f32>, Vec<f32>) {
        for (row, &sum) in self.out.chunks_exact_mut(self.d).zip(&self.sum) {
            let scale = if sum > 0.0 { 1.0 / sum } else { 0.0 };
            row.iter_mut().for_each(|o| *o *= scale);
        }
        let lse = self.max.iter().zip(&self.sum).map(|(m, s)| m + s.ln());
        (self.out, lse.collect())
    }

    fn score(&self, s: usize, scratch: &mut Scratch) {
        let Scratch { scores, wide } = scratch;
        if self.max.len() <= FEW_ROWS {
            scores_few(self.level, &self.queries, wide, self.d, scores);
        } else {
            query_key_product(&self.queries, wide, self.d, s, scores);
        }
    }

    /// Turns scores into weights relative to the new largest score, and rescales what was summed so far.
    fn reweigh(&mut self, s: usize, scores: &mut [f32]) {
        if s == 0 {
            return;
        }
        let rows = scores
            .chunks_exact_mut(s)
            .zip(self.out.chunks_exact_mut(self.d));
        let state = self.max.iter_mut().zip(&mut self.sum);
        for ((scores, out), (max, sum)) in rows.zip(state) {
            reweigh_row(self.level, scores, out, max, sum);
        }
    }

    fn weigh(&mut self, s: usize, scratch: &mut Scratch) {
        let Scratch { scores, wide } = scratch;
        if self.max.len() <= FEW_ROWS {
            sum_values(self.level, scores, wide, self.d, s, &mut self.out);
        } else {
            weight_value_product(scores, wide, self.d, s, &mut self.out);
        }
    }
}

fn hide(scores: &mut [f32], s: usize, visible: Visible) {
    for (row, scores) in scores.chunks_exact_mut(s.max(1)).enumerate() {
        let words = &visible.bits[row / visible.rows_per_mask * MASK_WORDS..][..MASK_WORDS];
        for (j, score) in scores.iter_mut().enumerate() {
            if words[j / 32] >> (j % 32) & 1 == 0 {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

per_level! {
    /// scores `[s]` → weights `e^(score − max)`, out `[d]`, max and sum brought up to date.
    fn reweigh_row(scores: &mut [f32], out: &mut [f32], max: &mut f32, sum: &mut f32) = reweigh_body;
}

#[inline(always)]
fn reweigh_body(scores: &mut [f32], out: &mut [f32], max: &mut f32, sum: &mut f32) {
    let largest = largest(scores).max(*max);
    if largest == f32::NEG_INFINITY {
        scores.fill(0.0);
        return;
    }
    let kept = exp(*max - largest);
    let mut lanes = [0f32; 16];
    let mut chunks = scores.chunks_exact_mut(16);
    for chunk in &mut chunks {
        for (score, lane) in chunk.iter_mut().zip(&mut lanes) {
            *score = exp(*score - largest);
            *lane += *score;
        }
    }
    let mut added: f32 = lanes.iter().sum();
    for score in chunks.into_remainder() {
        *score = exp(*score - largest);
        added += *score;
    }
    *sum = sum.mul_add(kept, added);
    *max = largest;
    if kept != 1.0 {
        out.iter_mut().for_each(|o| *o *= kept);
    }
}

/// The largest element; a NaN is passed over here and shows in the sum of weights.
#[inline(always)]
fn largest(scores: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = scores.chunks_exact(16);
    let rest = chunks
        .remainder()
        .iter()
        .fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    for chunk in chunks {
        for (lane, &score) in lanes.iter_mut().zip(chunk) {
            *lane = if score > *lane { score } else { *lane };
        }
    }
    lanes.iter().fold(rest, |a, &b| a.max(b))
}

per_level! {
    /// weights `[n, s]`, values `[s, d]` → out `[n, d] += weights · values`.
    fn sum_values[W: Element](weights: &[f32], values: &[W], d: usize, s: usize, out: &mut [f32]) = sum_values_body;
}

#[inline(always)]
fn sum_values_body<W: Element>(weights: &[f32], values: &[W], d: usize, s: usize, out: &mut [f32]) {
    const LANES: usize = 64;
    if s == 0 {
        return;
    }
    for (weights, out) in weights.chunks_exact(s).zip(out.chunks_exact_mut(d)) {
        for (at, out) in (0..d).step_by(LANES).zip(out.chunks_mut(LANES)) {
            let mut lanes = [0f32; LANES];
            if out.len() == LANES {
                for (&weight, value) in weights.iter().zip(values.chunks_exact(d)) {
                    for (lane, &v) in lanes.iter_mut().zip(&value[at..at + LANES]) {
                        *lane = v.widen().mul_add(weight, *lane);
                    }
                }
            } else {
                for (&weight, value) in weights.iter().zip(values.chunks_exact(d)) {
                    for (lane, &v) in lanes.iter_mut().zip(&value[at..]) {
                        *lane = v.widen().mul_add(weight, *lane);
                    }
                }
            }
            out.iter_mut().zip(&lanes).for_each(|(o, l)| *o += l);
        }
    }
}

/// q `[n, d]`, k `[s, d]` → scores `[n, s] = q · kᵀ`, on this thread.
fn query_key_product(q: &[f32], k: &[f32], d: usize, s: usize, scores: &mut [f32]) {
    let n = q.len() / d;
    assert!(k.len() == s * d && scores.len() == n * s);
    // SAFETY: the strides describe k as [s, d], q transposed as [d, n] and scores
    // transposed as [s, n], all inside their buffers by the assertion.
    unsafe {
        gemm::gemm(
            s,
            n,
            d,
            scores.as_mut_ptr(),
            s as isize,
            1,
            false,
            k.as_ptr(),
            1,
            d as isize,
            q.as_ptr(),
            d as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// weights `[n, s]`, values `[s, d]` → out `[n, d] += weights · values`, on this thread.
fn weight_value_product(weights: &[f32], values: &[f32], d: usize, s: usize, out: &mut [f32]) {
    let n = out.len() / d;
    assert!(values.len() == s * d && weights.len() == n * s);
    // SAFETY: the strides describe values transposed as [d, s], weights transposed as
    // [s, n] and out transposed as [d, n], all inside their buffers by the assertion.
    unsafe {
        gemm::gemm(
            d,
            n,
            s,
            out.as_mut_ptr(),
            d as isize,
            1,
            true,
            values.as_ptr(),
            d as isize,
            1,
            weights.as_ptr(),
            s as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// q `[n, d]`, k and v `[s, d]`, `visible(row, key)` → out `[n, d]`, lse `[n]`, in f64, one pair after another.
pub fn reference(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d: usize,
    visible: impl Fn(usize, usize) -> bool,
) -> (Vec<f64>, Vec<f64>) {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum()
    };
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (i, q) in q.chunks(d).enumerate() {
        let mut weights = vec![0.0; v.len() / d];
        let mut row = vec![0.0; d];
        for (j, k) in k.chunks(d).enumerate().filter(|&(j, _)| visible(i, j)) {
            weights[j] = (dot(q, k) / (d as f64).sqrt()).exp();
        }
        let sum: f64 = weights.iter().sum();
        for (weight, v) in weights.iter().zip(v.chunks(d)).filter(|(w, _)| **w > 0.0) {
            row.iter_mut()
                .zip(v)
                .for_each(|(r, &v)| *r += weight / sum * f64::from(v));
        }
        out.extend(row);
        lse.push(sum.ln());
    }
    (out, lse)
}

#[cfg(test)]
mod tests {
    use super::{
        Accumulator, BLOCK_TOKENS, KvDtype, KvShape, Level, MASK_WORDS, PackedBlock, Visible,
        reference,
    };

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f32::from((state >> 24) as u8) - 128.0) / 64.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn check(n: usize, s: usize, d: usize, split: usize, visible: impl Fn(usize, usize) -> bool) {
        let (q, k, v) = (numbers(n * d, 1), numbers(s * d, 2), numbers(s * d, 3));
        let (out, lse) = reference(&q, &k, &v, d, &visible);
        for level in Level::available() {
            for dtype in [KvDtype::F32, KvDtype::Bf16] {
                let mut state = Accumulator::at_level(level, q.clone(), d);
                for from in (0..s).step_by(split) {
                    let to = (from + split).min(s);
                    let mut bits = vec![0u32; n * MASK_WORDS];
                    for (i, j) in (0..n).flat_map(|i| (from..to).map(move |j| (i, j))) {
                        let at = j - from;
                        bits[i * MASK_WORDS + at / 32] |= u32::from(visible(i, j)) << (at % 32);
                    }
                    let mut block = PackedBlock::try_new(KvShape {
                        kv_heads: 1,
                        d,
                        dtype,
                    })
                    .unwrap();
                    block.write(0, &k[from * d..to * d], &v[from * d..to * d]);
                    let visible = Visible {
                        bits: &bits,
                        rows_per_mask: 1,
                    };
                    state.add(&block, 0, to - from, Some(visible));
                }
                let (got_out, got_lse) = state.finish();
                let pairs = got_out.iter().zip(&out).chain(got_lse.iter().zip(&lse));
                for (i, (&got, &e)) in pairs.enumerate() {
                    let same = f64::from(got) == e || (f64::from(got) - e).abs() <= 2e-5;
                    assert!(
                        same,
                        "{level:?} {dtype:?} n={n} s={s} d={d} [{i}]: got {got}, expected {e}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_shape_level_and_dtype_agrees_with_the_reference() {
        for (n, s, d) in [
            (1, 1, 2),
            (1, 300, 128),
            (3, 17, 80),
            (4, 64, 16),
            (5, 33, 64),
            (64, 256, 128),
            (100, 130, 36),
        ] {
            check(n, s, d, BLOCK_TOKENS, |_, _| true);
            check(n, s, d, 7, |i, j| j <= i + s - n.min(s));
        }
    }

    #[test]
    fn a_row_that_sees_nothing_is_empty_and_not_nan() {
        check(6, 40, 16, 8, |i, j| i % 2 == 0 && (j / 8) % 2 == 1);
        check(2, 40, 16, 8, |i, _| i == 1);
    }
}
