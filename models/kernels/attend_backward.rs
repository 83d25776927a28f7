//! The gradient of attention, one block of queries against one block of keys:
//! the inner step of FlashAttention-2's backward pass (arXiv 2307.08691,
//! algorithm 2).
//!
//! The weights are computed again from scores and log-sum-exp, so nothing that
//! grows with queries times keys is ever kept:
//!
//! ```text
//! p  = exp(q·kᵀ/√d − lse)          dv += pᵀ·dout
//! ds = p ∘ (dout·vᵀ − delta)       dq += ds·k/√d     dk += dsᵀ·q/√d
//! ```

use std::cell::RefCell;

use crate::{
    attend::{BLOCK_TOKENS, MASK_WORDS, Visible},
    cpu::{Level, per_level},
    exp::exp,
};

/// Queries per strip: their weights and gradients stay in the L2 cache.
const STRIP: usize = 128;

/// Queries of one head, or of the heads that share one key-value head, and the gradients of their outputs.
#[derive(Debug, Clone, Copy)]
pub struct QueryRows<'a> {
    /// `[n, d]`.
    pub q: &'a [f32],
    /// `[n, d]`: the gradient of the outputs.
    pub d_out: &'a [f32],
    /// `[n]`: log-sum-exp over all visible keys, not over this block's only; −∞ where there are none.
    pub lse: &'a [f32],
    /// `[n]`: the sum over channels of `d_out · out`.
    pub delta: &'a [f32],
}

/// Keys and values of one head.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// `[s, d]`, at most [`BLOCK_TOKENS`] keys.
    pub k: &'a [f32],
    /// `[s, d]`.
    pub v: &'a [f32],
}

/// Gradients that are accumulated into.
#[derive(Debug)]
pub struct HeadGradients<'a> {
    /// `[n, d]`.
    pub dq: &'a mut [f32],
    /// `[s, d]`.
    pub dk: &'a mut [f32],
    /// `[s, d]`.
    pub dv: &'a mut [f32],
}

/// q, dout `[n, d]`, lse, delta `[n]`, k and v `[s, d]` → adds to dq `[n, d]`, dk and dv `[s, d]`, f32.
///
/// Without `visible` every row attends to every key. Runs on the calling thread.
///
/// # Panics
/// When the lengths do not fit, or there are more than [`BLOCK_TOKENS`] keys.
pub fn attend_backward(
    d: usize,
    rows: QueryRows,
    keys: Keys,
    visible: Option<Visible>,
    gradients: HeadGradients,
) {
    backward_at(Level::current(), d, rows, keys, visible, gradients);
}

fn backward_at(
    level: Level,
    d: usize,
    rows: QueryRows,
    keys: Keys,
    visible: Option<Visible>,
    gradients: HeadGradients,
) {
    check(d, rows, keys, visible, &gradients);
    if rows.lse.is_empty() || keys.k.is_empty() {
        return;
    }
    let HeadGradients { dq, dk, dv } = gradients;
    for (index, dq) in dq.chunks_mut(STRIP * d).enumerate() {
        let strip = rows.strip(d, index * STRIP, dq.len() / d);
        let seen = visible.map(|visible| VisibleRows {
            visible,
            first: index * STRIP,
        });
        add_strip(level, d, strip, keys, seen, HeadGradients { dq, dk, dv });
    }
}

fn check(
    d: usize,
    rows: QueryRows,
    keys: Keys,
    visible: Option<Visible>,
    gradients: &HeadGradients,
) {
    let (n, s) = (rows.lse.len(), keys.k.len() / d);
    assert!(d > 0 && s <= BLOCK_TOKENS);
    for (what, len, expected) in [
        ("q", rows.q.len(), n * d),
        ("d_out", rows.d_out.len(), n * d),
        ("delta", rows.delta.len(), n),
        ("k", keys.k.len(), s * d),
        ("v", keys.v.len(), s * d),
        ("dq", gradients.dq.len(), n * d),
        ("dk", gradients.dk.len(), s * d),
        ("dv", gradients.dv.len(), s * d),
    ] {
        assert_eq!(len, expected, "numbers of {what}");
    }
    if let Some(visible) = visible {
        assert!(visible.bits.len() / MASK_WORDS * visible.rows_per_mask >= n);
    }
}

impl<'a> QueryRows<'a> {
    fn strip(self, d: usize, first: usize, n: usize) -> Self {
        Self {
            q: &self.q[first * d..(first + n) * d],
            d_out: &self.d_out[first * d..(first + n) * d],
            lse: &self.lse[first..first + n],
            delta: &self.delta[first..first + n],
        }
    }
}

/// Visible keys of the rows from `first` on.
#[derive(Clone, Copy)]
struct VisibleRows<'a> {
    visible: Visible<'a>,
    first: usize,
}

impl VisibleRows<'_> {
    /// The bits of a row of the strip.
    fn line(&self, row: usize) -> &[u32] {
        let line = (self.first + row) / self.visible.rows_per_mask;
        &self.visible.bits[line * MASK_WORDS..(line + 1) * MASK_WORDS]
    }
}

/// Weights of a strip and their gradients, `[STRIP, s]` each.
#[derive(Default)]
struct BackwardScratch {
    weights: Vec<f32>,
    d_scores: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<BackwardScratch> = RefCell::default();
}

fn add_strip(
    level: Level,
    d: usize,
    rows: QueryRows,
    keys: Keys,
    seen: Option<VisibleRows>,
    gradients: HeadGradients,
) {
    let s = keys.k.len() / d;
    // dq and dk carry the factor 1/√d of the scores; dv does not.
    let scale = 1.0 / (d as f32).sqrt();
    let (q, d_out) = (MatrixView::new(rows.q, d), MatrixView::new(rows.d_out, d));
    let (k, v) = (MatrixView::new(keys.k, d), MatrixView::new(keys.v, d));
    SCRATCH.with_borrow_mut(|scratch| {
        let BackwardScratch { weights, d_scores } = scratch;
        weights.resize(rows.lse.len() * s, 0.0);
        d_scores.resize(rows.lse.len() * s, 0.0);
        product(q, k.transposed(), scale, weights, false);
        product(d_out, v.transposed(), 1.0, d_scores, false);
        weigh(level, rows, s, seen, weights, d_scores);
        let (p, ds) = (MatrixView::new(weights, s), MatrixView::new(d_scores, s));
        product(p.transposed(), d_out, 1.0, gradients.dv, true);
        product(ds, k, scale, gradients.dq, true);
        product(ds.transposed(), q, scale, gradients.dk, true);
    });
}

per_level! {
    /// scores `[n, s]` → weights, gradients of weights `[n, s]` → gradients of scores, in place;
    /// zeros for masked pairs, whatever the buffers held.
    fn weigh(
        rows: QueryRows<'_>, s: usize, seen: Option<VisibleRows<'_>>, weights: &mut [f32], d_scores: &mut [f32],
    ) = weigh_body;
}

#[inline(always)]
fn weigh_body(
    rows: QueryRows<'_>,
    s: usize,
    seen: Option<VisibleRows<'_>>,
    weights: &mut [f32],
    d_scores: &mut [f32],
) {
    let pairs = weights
        .chunks_exact_mut(s)
        .zip(d_scores.chunks_exact_mut(s));
    let sums = rows.lse.iter().zip(rows.delta);
    for (row, ((weights, d_scores), (&lse, &delta))) in pairs.zip(sums).enumerate() {
        // `exp(score − −∞)` would be infinite; a row without visible keys has no gradient.
        if lse == f32::NEG_INFINITY {
            weights.fill(0.0);
            d_scores.fill(0.0);
            continue;
        }
        for (p, ds) in weights.iter_mut().zip(d_scores.iter_mut()) {
            *p = exp(*p - lse);
            *ds = *p * (*ds - delta);
        }
        if let Some(seen) = seen {
            keep(weights, seen.line(row));
            keep(d_scores, seen.line(row));
        }
    }
}

/// Zeroes the numbers whose bit is not set.
#[inline(always)]
fn keep(numbers: &mut [f32], bits: &[u32]) {
    for (numbers, &word) in numbers.chunks_mut(32).zip(bits) {
        for (i, number) in numbers.iter_mut().enumerate() {
            *number = if word >> i & 1 == 1 { *number } else { 0.0 };
        }
    }
}

/// A row-major matrix, or a transposed view of one.
#[derive(Clone, Copy)]
struct MatrixView<'a> {
    numbers: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// `[len / columns, columns]`.
    fn new(numbers: &'a [f32], columns: usize) -> Self {
        Self {
            numbers,
            rows: numbers.len() / columns,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// a `[m, k]`, b `[k, n]` → y `[m, n]`: `factor · a·b`, added to y or replacing it, on this thread.
fn product(a: MatrixView, b: MatrixView, factor: f32, y: &mut [f32], added: bool) {
    assert_eq!(a.columns, b.rows);
    assert_eq!(y.len(), a.rows * b.columns);
    assert_eq!(a.numbers.len(), a.rows * a.columns);
    assert_eq!(b.numbers.len(), b.rows * b.columns);
    // SAFETY: the strides of a and b describe whole buffers, and y is row-major [m, n].
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            y.as_mut_ptr(),
            1,
            b.columns as isize,
            added,
            a.numbers.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.numbers.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// dq `[n, d]`, dk and dv `[s, d]`, in f64.
pub type ReferenceGradients = (Vec<f64>, Vec<f64>, Vec<f64>);

/// q, d_out `[n, d]`, k, v `[s, d]`, `visible(row, key)` → dq, dk, dv of [`crate::attend::reference`],
/// in f64, pair by pair; `lse` and `delta` of `rows` are not read.
pub fn reference(
    rows: QueryRows,
    keys: Keys,
    d: usize,
    visible: impl Fn(usize, usize) -> bool,
) -> ReferenceGradients {
    let (out, lse) = crate::attend::reference(rows.q, keys.k, keys.v, d, &visible);
    let scale = 1.0 / (d as f64).sqrt();
    let mut dq = vec![0.0; rows.q.len()];
    let (mut dk, mut dv) = (vec![0.0; keys.k.len()], vec![0.0; keys.v.len()]);
    let s = keys.k.len() / d;
    for i in 0..lse.len() {
        let (q, d_out) = (&rows.q[i * d..(i + 1) * d], &rows.d_out[i * d..(i + 1) * d]);
        let delta = dot(d_out, out[i * d..(i + 1) * d].iter().copied());
        for j in (0..s).filter(|&j| visible(i, j)) {
            let (k, v) = (&keys.k[j * d..(j + 1) * d], &keys.v[j * d..(j + 1) * d]);
            let p = (dot(q, wide(k)) * scale - lse[i]).exp();
            let ds = p * (dot(d_out, wide(v)) - delta) * scale;
            add(&mut dv[j * d..(j + 1) * d], p, d_out);
            add(&mut dq[i * d..(i + 1) * d], ds, k);
            add(&mut dk[j * d..(j + 1) * d], ds, q);
        }
    }
    (dq, dk, dv)
}

fn wide(numbers: &[f32]) -> impl Iterator<Item = f64> {
    numbers.iter().map(|&x| f64::from(x))
}

fn dot(a: &[f32], b: impl Iterator<Item = f64>) -> f64 {
    wide(a).zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], factor: f64, numbers: &[f32]) {
    for (sum, number) in sum.iter_mut().zip(wide(numbers)) {
        *sum += factor * number;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        BLOCK_TOKENS, HeadGradients, Keys, Level, MASK_WORDS, QueryRows, Visible, backward_at,
        reference,
    };
    use crate::attend;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f32::from((state >> 24) as u8) - 128.0) / 64.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Random q, k, v and d_out of one head.
    struct BackwardCase {
        d: usize,
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
        d_out: Vec<f32>,
    }

    impl BackwardCase {
        fn new(n: usize, s: usize, d: usize) -> Self {
            Self {
                d,
                q: numbers(n * d, 1),
                k: numbers(s * d, 2),
                v: numbers(s * d, 3),
                d_out: numbers(n * d, 4),
            }
        }

        fn keys(&self) -> Keys<'_> {
            Keys {
                k: &self.k,
                v: &self.v,
            }
        }

        fn rows<'a>(&'a self, lse: &'a [f32], delta: &'a [f32]) -> QueryRows<'a> {
            QueryRows {
                q: &self.q,
                d_out: &self.d_out,
                lse,
                delta,
            }
        }

        /// The dense f64 forward pass: lse and delta as the kernel wants them.
        fn forward(&self, visible: &impl Fn(usize, usize) -> bool) -> (Vec<f32>, Vec<f32>) {
            let (out, lse) = attend::reference(&self.q, &self.k, &self.v, self.d, visible);
            let rows = out.chunks(self.d).zip(self.d_out.chunks(self.d));
            let delta = rows.map(|(out, d_out)| super::dot(d_out, out.iter().copied()) as f32);
            (lse.iter().map(|&x| x as f32).collect(), delta.collect())
        }

        /// The sum of `d_out · out`, whose gradients are dq, dk and dv.
        fn loss(&self, visible: &impl Fn(usize, usize) -> bool) -> f64 {
            let (out, _) = attend::reference(&self.q, &self.k, &self.v, self.d, visible);
            super::dot(&self.d_out, out.into_iter())
        }
    }

    /// The kernel over blocks of `split` keys against the dense reference.
    fn check(
        n: usize,
        s: usize,
        d: usize,
        split: usize,
        group: usize,
        visible: impl Fn(usize, usize) -> bool,
    ) {
        let case = BackwardCase::new(n, s, d);
        let sees = |i: usize, j: usize| visible(i / group, j);
        let (lse, delta) = case.forward(&sees);
        let rows = case.rows(&lse, &delta);
        let expected = reference(rows, case.keys(), d, sees);
        for level in Level::available() {
            let mut dq = vec![0.0; n * d];
            let (mut dk, mut dv) = (vec![0.0; s * d], vec![0.0; s * d]);
            for from in (0..s).step_by(split) {
                let to = (from + split).min(s);
                let mut bits = vec![0u32; n.div_ceil(group) * MASK_WORDS];
                for (i, j) in (0..n.div_ceil(group)).flat_map(|i| (from..to).map(move |j| (i, j))) {
                    let at = j - from;
                    bits[i * MASK_WORDS + at / 32] |= u32::from(visible(i, j)) << (at % 32);
                }
                let is_full = (from..to).all(|j| (0..n).all(|i| sees(i, j)));
                let visible = Visible {
                    bits: &bits,
                    rows_per_mask: group,
                };
                let keys = Keys {
                    k: &case.k[from * d..to * d],
                    v: &case.v[from * d..to * d],
                };
                let gradients = HeadGradients {
                    dq: &mut dq,
                    dk: &mut dk[from * d..to * d],
                    dv: &mut dv[from * d..to * d],
                };
                backward_at(
                    level,
                    d,
                    rows,
                    keys,
                    (!is_full).then_some(visible),
                    gradients,
                );
            }
            let results = [
                ("dq", &dq, &expected.0),
                ("dk", &dk, &expected.1),
                ("dv", &dv, &expected.2),
            ];
            for (what, got, expected) in results {
                let largest = expected.iter().fold(1.0f64, |a, b| a.max(b.abs()));
                for (i, (&got, &e)) in got.iter().zip(expected).enumerate() {
                    let error = (f64::from(got) - e).abs();
                    assert!(
                        error <= 4e-6 * largest,
                        "{level:?} n={n} s={s} d={d} {what}[{i}]: got {got}, expected {e}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_shape_and_level_agrees_with_the_reference() {
        for (n, s, d, group) in [
            (1, 1, 2, 1),
            (1, 300, 128, 1),
            (3, 17, 80, 3),
            (4, 64, 16, 2),
            (5, 33, 64, 1),
            (64, 256, 128, 4),
            (300, 290, 36, 3),
        ] {
            check(n, s, d, BLOCK_TOKENS, group, |_, _| true);
            check(n, s, d, 7, group, |i, j| j <= i + s - n.min(s));
        }
    }

    #[test]
    fn masked_rows_and_masked_pairs_have_zero_gradients() {
        check(6, 40, 16, 8, 1, |i, j| i % 2 == 0 && (j / 8) % 2 == 1);
        check(2, 40, 16, 8, 1, |i, _| i == 1);
    }

    #[test]
    fn the_score_of_a_masked_pair_has_no_effect() {
        let (d, n) = (4, 2);
        let q = vec![1e3; n * d];
        let (k, v) = ([vec![1e3; d], vec![0.0; d]].concat(), vec![1.0; 2 * d]);
        let rows = QueryRows {
            q: &q,
            d_out: &vec![1.0; n * d],
            lse: &[0.0, f32::NEG_INFINITY],
            delta: &[1.0, 0.0],
        };
        let visible = Visible {
            bits: &[0b10; 2 * MASK_WORDS],
            rows_per_mask: 1,
        };
        let (mut dq, mut dk, mut dv) = (vec![0.0; n * d], vec![0.0; 2 * d], vec![0.0; 2 * d]);
        let gradients = HeadGradients {
            dq: &mut dq,
            dk: &mut dk,
            dv: &mut dv,
        };
        super::attend_backward(d, rows, Keys { k: &k, v: &v }, Some(visible), gradients);
        assert!(dq.iter().chain(&dk).all(|x| x.is_finite()), "{dq:?} {dk:?}");
        assert_eq!(dv, [vec![0.0; d], vec![1.0; d]].concat());
    }

    #[test]
    fn the_reference_is_the_slope_of_the_forward_pass() {
        const STEP: f32 = 1.0 / 1024.0;
        let visible = |i: usize, j: usize| j <= i + 2 && i != 3;
        let case = || BackwardCase::new(6, 9, 5);
        let zeros = [0.0; 6];
        let (dq, dk, dv) = reference(case().rows(&zeros, &zeros), case().keys(), 5, visible);
        let slopes = |pick: fn(&mut BackwardCase) -> &mut Vec<f32>, n: usize| -> Vec<f64> {
            let moved = |i: usize, by: f32| {
                let mut case = case();
                pick(&mut case)[i] += by;
                case.loss(&visible)
            };
            let slope = |i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * f64::from(STEP));
            (0..n).map(slope).collect()
        };
        for (what, gradient, slopes) in [
            ("dq", &dq, slopes(|case| &mut case.q, dq.len())),
            ("dk", &dk, slopes(|case| &mut case.k, dk.len())),
            ("dv", &dv, slopes(|case| &mut case.v, dv.len())),
        ] {
            for (i, (g, slope)) in gradient.iter().zip(slopes).enumerate() {
                assert!((g - slope).abs() <= 1e-5, "{what}[{i}]: {g}, slope {slope}");
            }
        }
    }
}
