//! One block of keys for the rows of an accumulator: scores, weights, weighted
//! values, a few rows at a time so that scores never leave the L1 cache.

use super::{
    MASK_WORDS, Visible,
    dot::Dot,
    packed::{BLOCK_TOKENS, PANEL},
};
use crate::{
    cpu::{prefetch, prefetch_all},
    lanes::Lanes,
};

/// Panels of one block.
const PANELS: usize = BLOCK_TOKENS / PANEL;

/// Maximum rows of a tile.
const MAX_ROWS: usize = 12;

/// A block of keys and values of one head, in units.
pub(super) struct BlockUnits<'a> {
    /// `[PANELS, key_units, PANEL]`.
    pub keys: *const u32,
    /// Units of one key.
    pub key_units: usize,
    /// `[BLOCK_TOKENS / interleave, value_width]`.
    pub values: *const u32,
    /// Channels of a value, a multiple of 16.
    pub value_width: usize,
    /// `[BLOCK_TOKENS]` where the type has scales.
    pub key_scales: *const f32,
    /// `[BLOCK_TOKENS]`, relative to their largest, times 255, where the type has scales.
    pub value_scales: *const f32,
    /// The largest scale of a value over 255; 1 for other types.
    pub largest_value_scale: f32,
    /// `[BLOCK_TOKENS]` where the type needs them.
    pub key_sums: *const i32,
    /// Number of keys in the block.
    pub tokens: usize,
    /// The bytes of the next block, prefetched while this one is computed.
    pub next: &'a [u8],
}

impl BlockUnits<'_> {
    /// The largest scale of a value visible to a row, as a fraction of the block's largest; `words` belong to the
    /// panels from `first` on.
    #[inline(always)]
    unsafe fn largest_scale<D: Dot>(&self, words: &[u32], first: usize) -> f32 {
        if words.len() == PANELS && words.iter().all(|&seen| seen == u32::MAX) {
            return 1.0;
        }
        // SAFETY: the caller's promise.
        let mut most = unsafe { D::Floats::splat(0.0) };
        for (panel, &seen) in (first..).zip(words) {
            for lane in (0..PANEL).step_by(D::Floats::N) {
                // SAFETY: the caller's promise: there is a scale for every key of the block.
                unsafe {
                    let scales = self.value_scales.add(panel * PANEL + lane);
                    most = most.max(D::Floats::load(scales).keep(seen >> lane));
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { most.largest() / 255.0 }
    }
}

/// The running result of an accumulator's rows.
pub(super) struct RowsState<'a> {
    /// `[rows, key_units]`.
    pub queries: &'a [u32],
    /// `[rows]`.
    pub query_scales: &'a [f32],
    /// `[rows, value_width]`.
    pub out: &'a mut [f32],
    /// `[rows]`, in log2 units.
    pub max: &'a mut [f32],
    /// `[rows]`.
    pub sum: &'a mut [f32],
}

/// Scores and weights of one tile.
pub(super) struct TileScratch {
    scores: [f32; MAX_ROWS * BLOCK_TOKENS],
    weights: [u32; MAX_ROWS * BLOCK_TOKENS],
}

impl Default for TileScratch {
    fn default() -> Self {
        Self {
            scores: [0.0; MAX_ROWS * BLOCK_TOKENS],
            weights: [0; MAX_ROWS * BLOCK_TOKENS],
        }
    }
}

/// The work on one block of keys and values.
pub(super) struct BlockStep<'a> {
    pub block: BlockUnits<'a>,
    pub rows: RowsState<'a>,
    pub visible: Option<Visible<'a>>,
    pub scratch: &'a mut TileScratch,
    /// Bytes of the next block that are prefetched with each product.
    pub share: usize,
}

impl BlockStep<'_> {
    /// # Safety
    /// The processor has the instructions of `D`; the pointers of `block` have the stated lengths;
    /// `R` is at most [`MAX_ROWS`].
    #[inline(always)]
    pub unsafe fn run<D: Dot, const R: usize, const C: usize>(&mut self) {
        let n = self.rows.max.len();
        let products = PANELS + self.block.value_width.div_ceil(C * D::Floats::N);
        self.share = self
            .block
            .next
            .len()
            .div_ceil(n.div_ceil(R) * products)
            .next_multiple_of(64);
        let mut row = 0;
        while row < n {
            // SAFETY: the caller's promise, and as many rows as the tile takes are left.
            row += unsafe {
                match n - row {
                    left if left >= R => self.tile::<D, R, C>(row),
                    left if left >= 8 && R > 8 => self.tile::<D, 8, C>(row),
                    left if left >= 4 => self.tile::<D, 4, C>(row),
                    2.. => self.tile::<D, 2, C>(row),
                    _ => self.tile::<D, 1, C>(row),
                }
            };
        }
    }

    /// Rows `row..row + R` → `R`.
    #[inline(always)]
    unsafe fn tile<D: Dot, const R: usize, const C: usize>(&mut self, row: usize) -> usize {
        let words = self.words::<R>(row);
        let seen = |panel: &usize| words.iter().any(|line| line[*panel] != 0);
        let first = (0..PANELS).find(seen);
        let last = (0..PANELS).rfind(seen);
        let (Some(first), Some(last)) = (first, last) else {
            return R;
        };
        // SAFETY: the caller's promise.
        unsafe {
            let mut panel = first;
            // With few rows the latency of each product would show: several panels run side by side.
            while R <= 2 && panel + 4 <= last + 1 {
                self.scores::<D, R, 8>(row, panel, &words);
                panel += 4;
            }
            for panel in panel..=last {
                self.scores::<D, R, 2>(row, panel, &words);
            }
            let (kept, added) = self.weigh::<D, R>(row, first..last + 1, &words);
            self.values::<D, R, C>(row, first..last + 1, kept, added);
        }
        R
    }

    /// Prefetches more of the next block, a little at a time: a burst would stall the loads of this one.
    #[inline(always)]
    fn fetch(&mut self) {
        let next = self.block.next;
        let (now, later) = next.split_at(self.share.min(next.len()));
        prefetch_all(now);
        self.block.next = later;
    }

    /// Visible keys of the rows of a tile.
    #[inline(always)]
    fn words<const R: usize>(&self, row: usize) -> [[u32; MASK_WORDS]; R] {
        let held: [u32; MASK_WORDS] = std::array::from_fn(|word| {
            let left = self.block.tokens.saturating_sub(32 * word);
            if left >= 32 {
                u32::MAX
            } else {
                (1 << left) - 1
            }
        });
        let mut words = [held; R];
        if let Some(visible) = self.visible {
            for (r, words) in words.iter_mut().enumerate() {
                let line = (row + r) / visible.rows_per_mask * MASK_WORDS;
                let line = &visible.bits[line..line + MASK_WORDS];
                words
                    .iter_mut()
                    .zip(line)
                    .for_each(|(word, bits)| *word &= bits);
            }
        }
        words
    }

    /// Scores of `R` rows with the keys of `C / 2` panels, two vectors of each at a time.
    #[inline(always)]
    unsafe fn scores<D: Dot, const R: usize, const C: usize>(
        &mut self,
        row: usize,
        panel: usize,
        words: &[[u32; MASK_WORDS]; R],
    ) {
        if R > 2 {
            self.fetch();
        }
        let block = &self.block;
        let (units, wide) = (block.key_units, 2 * D::Floats::N);
        // SAFETY: the caller's promise: a panel holds `units · PANEL` units, a row `units`,
        // and the tile's scores `R · BLOCK_TOKENS`.
        unsafe {
            let rows = self.rows.queries.as_ptr().add(row * units);
            for lane in (0..PANEL).step_by(wide) {
                let key = |c: usize| (panel + c / 2) * PANEL + lane + c % 2 * D::Floats::N;
                let columns = block.keys.add(panel * units * PANEL + lane);
                let mut begin = [D::begin_scores(block.key_sums.wrapping_add(key(0))); C];
                for (c, begin) in begin.iter_mut().enumerate().skip(1) {
                    *begin = D::begin_scores(block.key_sums.wrapping_add(key(c)));
                }
                let columns = ColumnLayout {
                    first: columns,
                    stride: PANEL,
                    pair: units * PANEL,
                };
                let sums = product::<D, R, C>(units, rows, units, columns, [begin; R]);
                for (r, sums) in sums.into_iter().enumerate() {
                    let scale = self.rows.query_scales[row + r];
                    for (c, sums) in sums.into_iter().enumerate() {
                        let key = key(c);
                        let scales = block.key_scales.wrapping_add(key);
                        let mut scores = D::end_scores(sums, scales, scale);
                        let seen = words[r][key / PANEL];
                        if seen != u32::MAX {
                            scores = scores.keep(seen >> (key % PANEL));
                        }
                        let to = r * BLOCK_TOKENS + key;
                        scores.store(self.scratch.scores.as_mut_ptr().add(to));
                    }
                }
            }
        }
    }

    /// Scores → weights; updates the rows' largest score and sum.
    ///
    /// Returns the factors of the outputs so far and of this block's products.
    #[inline(always)]
    unsafe fn weigh<D: Dot, const R: usize>(
        &mut self,
        row: usize,
        panels: std::ops::Range<usize>,
        words: &[[u32; MASK_WORDS]; R],
    ) -> ([f32; R], [f32; R]) {
        let (mut kept, mut added) = ([1.0; R], [1.0; R]);
        let keys = panels.start * PANEL..panels.end * PANEL;
        // SAFETY: the caller's promise: the tile's scores and weights hold `R · BLOCK_TOKENS`.
        unsafe {
            let scores = self.scratch.scores.as_ptr();
            let mut most = [0.0; R];
            for (r, most) in most.iter_mut().enumerate() {
                *most = largest::<D::Floats>(scores.add(r * BLOCK_TOKENS), &keys);
            }
            for r in 0..R {
                let scores = scores.add(r * BLOCK_TOKENS);
                let units = self.scratch.weights.as_mut_ptr().add(r * BLOCK_TOKENS);
                let (max, sum) = (&mut self.rows.max[row + r], &mut self.rows.sum[row + r]);
                let new = if *max > most[r] { *max } else { most[r] };
                // −∞ − (−∞) would be NaN: before the first visible key scores are relative to zero.
                let floor = |x: f32| if x == f32::NEG_INFINITY { 0.0 } else { x };
                let base = floor(if D::WEIGHTS_BY_BLOCK { most[r] } else { new });
                let minus = D::Floats::splat(-base);
                // Only visible values may set a row's quantization step.
                let of_visible = if D::WEIGHTS_BY_BLOCK {
                    self.block
                        .largest_scale::<D>(&words[r][panels.clone()], panels.start)
                } else {
                    1.0
                };
                let boost = D::Floats::splat(if of_visible > 0.0 {
                    of_visible.recip()
                } else {
                    0.0
                });
                let mut sums = [D::Floats::splat(0.0); 2];
                for key in keys.clone().step_by(2 * D::Floats::N) {
                    for (c, sums) in sums.iter_mut().enumerate() {
                        let key = key + c * D::Floats::N;
                        let weights = D::Floats::load(scores.add(key)).add(minus).exp2(D::EXP2);
                        *sums = sums.add(weights);
                        let scales = self.block.value_scales.wrapping_add(key);
                        let weights = if D::WEIGHTS_BY_BLOCK {
                            weights.times(boost)
                        } else {
                            weights
                        };
                        D::put_weights(weights, scales, units, key);
                    }
                }
                if *max != new && *max != f32::NEG_INFINITY {
                    kept[r] = (*max - new).exp2();
                }
                if D::WEIGHTS_BY_BLOCK && base != floor(new) {
                    let is_empty = most[r] == f32::NEG_INFINITY;
                    added[r] = if is_empty {
                        0.0
                    } else {
                        (base - floor(new)).exp2()
                    };
                }
                *sum = *sum * kept[r] + sums[0].add(sums[1]).sum() * added[r];
                *max = new;
                added[r] *= self.block.largest_value_scale * of_visible;
            }
        }
        (kept, added)
    }

    /// Adds the weighted values of the panels' keys to the outputs of `R` rows.
    #[inline(always)]
    unsafe fn values<D: Dot, const R: usize, const C: usize>(
        &mut self,
        row: usize,
        panels: std::ops::Range<usize>,
        kept: [f32; R],
        added: [f32; R],
    ) {
        let width = self.block.value_width;
        let mut column = 0;
        // SAFETY: the caller's promise, and as many columns as are taken are left.
        unsafe {
            if R <= 2 {
                while column + 8 * D::Floats::N <= width {
                    self.value_columns::<D, R, 8>(row, &panels, column, &kept, &added);
                    column += 8 * D::Floats::N;
                }
            }
            while column + C * D::Floats::N <= width {
                self.value_columns::<D, R, C>(row, &panels, column, &kept, &added);
                column += C * D::Floats::N;
            }
            while column < width {
                self.value_columns::<D, R, 1>(row, &panels, column, &kept, &added);
                column += D::Floats::N;
            }
        }
    }

    /// Adds weighted values in the `C` vectors of channels from `column` on.
    #[inline(always)]
    unsafe fn value_columns<D: Dot, const R: usize, const C: usize>(
        &mut self,
        row: usize,
        panels: &std::ops::Range<usize>,
        column: usize,
        kept: &[f32; R],
        added: &[f32; R],
    ) {
        if R > 2 {
            self.fetch();
        }
        let width = self.block.value_width;
        let first = panels.start * PANEL / D::INTERLEAVE;
        let units = panels.len() * PANEL / D::INTERLEAVE;
        // SAFETY: the caller's promise: rows of outputs and of values are `width` long.
        unsafe {
            let out = self.rows.out.as_mut_ptr().add(row * width + column);
            let weights = self.scratch.weights.as_ptr().add(first);
            let values = self.block.values.add(first * width + column);
            let mut begin = [[D::begin_out(out, kept[0]); C]; R];
            for (r, begin) in begin.iter_mut().enumerate() {
                for (c, begin) in begin.iter_mut().enumerate() {
                    *begin = D::begin_out(out.add(r * width + c * D::Floats::N), kept[r]);
                }
            }
            let columns = ColumnLayout {
                first: values,
                stride: width,
                pair: 2 * D::Floats::N,
            };
            let sums = product::<D, R, C>(units, weights, BLOCK_TOKENS, columns, begin);
            for (r, sums) in sums.into_iter().enumerate() {
                for (c, sums) in sums.into_iter().enumerate() {
                    let out = out.add(r * width + c * D::Floats::N);
                    D::end_out(sums, out, kept[r], added[r]);
                }
            }
        }
    }
}

/// Where the vectors of a product's columns lie: adjacent pairs, `pair` units apart.
#[derive(Clone, Copy)]
struct ColumnLayout {
    first: *const u32,
    /// From one unit of the contraction to the next.
    stride: usize,
    pair: usize,
}

/// Prefetch distance of a stream that few rows read, in units: 2 KiB.
const AHEAD: usize = 512;

/// rows `[R, units]`, columns `[units, C vectors]` → `sums += rows · columns`, in registers.
#[inline(always)]
unsafe fn product<D: Dot, const R: usize, const C: usize>(
    units: usize,
    rows: *const u32,
    row_stride: usize,
    columns: ColumnLayout,
    begin: [[D::Sums; C]; R],
) -> [[D::Sums; C]; R] {
    let mut sums = begin;
    for unit in 0..units {
        // SAFETY: the caller's promise.
        unsafe {
            let from = columns.first.add(unit * columns.stride);
            let mut vectors = [D::load(from); C];
            for (c, vector) in vectors.iter_mut().enumerate() {
                let at = c / 2 * columns.pair + c % 2 * D::Floats::N;
                *vector = D::load(from.add(at));
                if R <= 2 {
                    prefetch(from.wrapping_add(at + AHEAD));
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = D::splat(*rows.add(r * row_stride + unit));
                for (sums, vector) in sums.iter_mut().zip(vectors) {
                    *sums = D::dot(row, vector, *sums);
                }
            }
        }
    }
    sums
}

/// The largest score of `keys`; NaN is skipped here and propagates through the sum of weights.
#[inline(always)]
unsafe fn largest<V: Lanes>(scores: *const f32, keys: &std::ops::Range<usize>) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut most = V::splat(f32::NEG_INFINITY);
        for key in keys.clone().step_by(V::N) {
            most = V::load(scores.add(key)).max(most);
        }
        most.largest()
    }
}
