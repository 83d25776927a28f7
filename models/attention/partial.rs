//! Attention over a part of the keys, and the merge of two such results.

/// Output and log-sum-exp (LSE) of `rows` queries over a part of the keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Partial {
    /// `[rows, d]`: the softmax-weighted mean of the values; zeros for a row without visible keys.
    pub out: Vec<f32>,
    /// `[rows]`: the logarithm of the sum of `e^score`; −∞ for a row without visible keys.
    pub lse: Vec<f32>,
}

/// The LSE over no keys: the identity of [`merge_lse`].
pub const EMPTY: f32 = f32::NEG_INFINITY;

/// `ln(e^a + e^b)` and the weight of each, `e^a` and `e^b` over their sum. Two [`EMPTY`] give [`EMPTY`];
/// NaN propagates.
pub fn merge_lse(a: f32, b: f32) -> (f32, f32, f32) {
    // f32::max drops NaN, so that it is handled first.
    if a.is_nan() || b.is_nan() {
        return (f32::NAN, f32::NAN, f32::NAN);
    }
    let max = a.max(b);
    // −∞ − (−∞) is NaN: two empty results are their own case.
    if max == EMPTY {
        return (EMPTY, 0.0, 0.0);
    }
    let (weight_a, weight_b) = ((a - max).exp(), (b - max).exp());
    let sum = weight_a + weight_b;
    (max + sum.ln(), weight_a / sum, weight_b / sum)
}

impl Partial {
    /// The result over no keys: the identity of [`Partial::merge`].
    pub fn empty(rows: usize, d: usize) -> Self {
        Self {
            out: vec![0.0; rows * d],
            lse: vec![EMPTY; rows],
        }
    }

    /// The result over the keys of both, which must be disjoint and have the same queries.
    pub fn merge(mut self, other: &Self) -> Self {
        Self::merge_into(&mut self.out, &mut self.lse, &other.out, &other.lse);
        self
    }

    /// Merges the results of lanes, or of ranks, in a fixed tree: of `2n`, each of the first `n` with
    /// the one `n` after it, until one remains.
    ///
    /// Results whose indices differ by a large power of two are merged first, so that a rank which holds every
    /// second, fourth, … lane, and empty results for the others, has computed a node of this tree.
    ///
    /// # Panics
    /// When `partials` is empty.
    pub fn merge_strided(mut partials: Vec<Self>) -> Self {
        assert!(!partials.is_empty(), "a merge of no result has no shape");
        while partials.len() > 1 {
            let half = partials.len().next_power_of_two() / 2;
            let upper = partials.split_off(half);
            for (lower, upper) in partials.iter_mut().zip(&upper) {
                Self::merge_into(&mut lower.out, &mut lower.lse, &upper.out, &upper.lse);
            }
        }
        partials.swap_remove(0)
    }

    /// Merges out `[rows, d]`, lse `[rows]` of another result into the first.
    pub fn merge_into(out: &mut [f32], lse: &mut [f32], other_out: &[f32], other_lse: &[f32]) {
        // Exact as well as fast: `out · 1 + 0 · other` would turn −0 into 0.
        if other_lse.iter().all(|&lse| lse == EMPTY) {
            return;
        }
        let d = (out.len() / lse.len().max(1)).max(1);
        let rows = out.chunks_mut(d).zip(other_out.chunks(d));
        for ((a, b), (lse, &other)) in rows.zip(lse.iter_mut().zip(other_lse)) {
            let (merged, share_a, share_b) = merge_lse(*lse, other);
            *lse = merged;
            for (a, &b) in a.iter_mut().zip(b) {
                *a = *a * share_a + b * share_b;
            }
        }
    }
}
