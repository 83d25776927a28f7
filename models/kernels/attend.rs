//! Attention of a block of queries over one block of keys after another, with
//! the running softmax of Milakov and Gimelshein 2018 (as in FlashAttention).
//!
//! One [`Accumulator`] serves one key-value head: its rows are the queries of
//! all heads that share it. It hands out the output and its log-sum-exp, so
//! that partial results over different keys can be merged.

use std::cell::RefCell;

use half::bf16;

use crate::{
    cpu::{Level, per_level},
    exp::exp,
    linear::{Element, scores_few, widen},
};

/// Up to this many rows keys are streamed; above, `gemm` multiplies.
const FEW_ROWS: usize = 4;

/// Keys or values `[s, d]` of one head, as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum Slab<'a> {
    /// f32 elements.
    F32(&'a [f32]),
    /// bf16 elements.
    Bf16(&'a [bf16]),
}

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

    /// Adds keys and values `[s, d]`; row `r` sees key `j` when `visible[r / rows_per_mask, j]`.
    ///
    /// `visible` is `[rows / rows_per_mask, s]`; without it every row sees every key.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn add(&mut self, keys: Slab, values: Slab, visible: Option<(&[bool], usize)>) {
        SCRATCH.with_borrow_mut(|scratch| {
            let s = keys.len() / self.d;
            assert!(keys.len().is_multiple_of(self.d) && values.len() == keys.len());
            scratch.scores.resize(self.max.len() * s, 0.0);
            self.score(keys, s, scratch);
            if let Some((visible, rows_per_mask)) = visible {
                hide(&mut scratch.scores, s, visible, rows_per_mask);
            }
            self.reweigh(s, &mut scratch.scores);
            self.weigh(values, s, scratch);
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

    fn score(&self, keys: Slab, s: usize, scratch: &mut Scratch) {
        let Scratch { scores, wide } = scratch;
        let few = self.max.len() <= FEW_ROWS;
        match keys {
            Slab::F32(keys) if few => scores_few(self.level, &self.queries, keys, self.d, scores),
            Slab::Bf16(keys) if few => scores_few(self.level, &self.queries, keys, self.d, scores),
            _ => query_key_product(
                &self.queries,
                keys.wide(self.level, wide),
                self.d,
                s,
                scores,
            ),
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

    fn weigh(&mut self, values: Slab, s: usize, scratch: &mut Scratch) {
        let Scratch { scores, wide } = scratch;
        let few = self.max.len() <= FEW_ROWS;
        match values {
            Slab::F32(v) if few => sum_values(self.level, scores, v, self.d, s, &mut self.out),
            Slab::Bf16(v) if few => sum_values(self.level, scores, v, self.d, s, &mut self.out),
            _ => weight_value_product(
                scores,
                values.wide(self.level, wide),
                self.d,
                s,
                &mut self.out,
            ),
        }
    }
}

impl<'a> Slab<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(s) => s.len(),
            Self::Bf16(s) => s.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wide<'b>(self, level: Level, scratch: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(slice) => slice,
            Self::Bf16(slice) => {
                scratch.resize(slice.len(), 0.0);
                widen(level, slice, scratch);
                scratch
            }
        }
    }
}

fn hide(scores: &mut [f32], s: usize, visible: &[bool], rows_per_mask: usize) {
    assert_eq!(visible.len() * rows_per_mask, scores.len());
    for (rows, visible) in scores
        .chunks_mut((s * rows_per_mask).max(1))
        .zip(visible.chunks(s.max(1)))
    {
        for row in rows.chunks_mut(s.max(1)) {
            for (score, &visible) in row.iter_mut().zip(visible) {
                *score = if visible { *score } else { f32::NEG_INFINITY };
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
    use half::bf16;

    use super::{Accumulator, Level, Slab, reference};

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 2.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn narrow(x: &[f32]) -> Vec<bf16> {
        x.iter().map(|&v| bf16::from_f32(v)).collect()
    }

    fn check(n: usize, s: usize, d: usize, split: usize, visible: impl Fn(usize, usize) -> bool) {
        let (q, k, v) = (numbers(n * d, 1), numbers(s * d, 2), numbers(s * d, 3));
        let (k, v): (Vec<f32>, Vec<f32>) = (
            narrow(&k).into_iter().map(f32::from).collect(),
            narrow(&v).into_iter().map(f32::from).collect(),
        );
        let (out, lse) = reference(&q, &k, &v, d, &visible);
        for level in Level::available() {
            for stored_as_bf16 in [false, true] {
                let mut state = Accumulator::at_level(level, q.clone(), d);
                for from in (0..s).step_by(split) {
                    let to = (from + split).min(s);
                    let mask: Vec<bool> = (0..n)
                        .flat_map(|i| (from..to).map(move |j| (i, j)))
                        .map(|(i, j)| visible(i, j))
                        .collect();
                    let (k, v) = (&k[from * d..to * d], &v[from * d..to * d]);
                    let (nk, nv) = (narrow(k), narrow(v));
                    let (k, v) = match stored_as_bf16 {
                        true => (Slab::Bf16(&nk), Slab::Bf16(&nv)),
                        false => (Slab::F32(k), Slab::F32(v)),
                    };
                    state.add(k, v, Some((&mask, 1)));
                }
                let (got_out, got_lse) = state.finish();
                let pairs = got_out.iter().zip(&out).chain(got_lse.iter().zip(&lse));
                for (i, (&got, &e)) in pairs.enumerate() {
                    let same = f64::from(got) == e || (f64::from(got) - e).abs() <= 2e-5;
                    assert!(
                        same,
                        "{level:?} n={n} s={s} d={d} [{i}]: got {got}, expected {e}"
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
            check(n, s, d, 256, |_, _| true);
            check(n, s, d, 7, |i, j| j <= i + s - n.min(s));
        }
    }

    #[test]
    fn a_row_that_sees_nothing_is_empty_and_not_nan() {
        check(6, 40, 16, 8, |i, j| i % 2 == 0 && (j / 8) % 2 == 1);
        check(2, 40, 16, 8, |i, _| i == 1);
    }

    #[test]
    fn rows_of_one_token_share_a_mask() {
        let (q, k) = (numbers(4 * 8, 1), numbers(3 * 8, 2));
        let mut shared = Accumulator::new(q.clone(), 8);
        let mut single = Accumulator::new(q, 8);
        let mask = [true, false, false, true, true, false];
        let each: Vec<bool> = [&mask[..3], &mask[..3], &mask[3..], &mask[3..]].concat();
        shared.add(Slab::F32(&k), Slab::F32(&k), Some((&mask, 2)));
        single.add(Slab::F32(&k), Slab::F32(&k), Some((&each, 1)));
        assert_eq!(shared.finish(), single.finish());
    }
}
