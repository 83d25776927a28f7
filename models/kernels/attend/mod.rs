//! Attention of some queries over one block of keys after another, with the
//! running softmax of Milakov and Gimelshein 2018 (as in FlashAttention-2,
//! arXiv 2307.08691).
//!
//! One [`Accumulator`] serves one key-value head: its rows are the queries of
//! all heads that share it. It hands out the output and its log-sum-exp, so
//! that partial results over different keys can be merged.
//!
//! The element type of the keys decides the arithmetic: f32 multiplies f32;
//! bf16 and int4 multiply bf16 pairs and int8 multiplies 8-bit fours where the
//! processor has the instruction ([`Level::Avx512Bf16`]), with queries and weights
//! rounded to the same type (as in SageAttention, arXiv 2410.02367, without its
//! smoothing of keys), and are widened to f32 elsewhere. Sums are f32.

mod dot;
mod packed;
mod step;
mod widen;

use std::cell::RefCell;

pub use packed::{BLOCK_TOKENS, KvDtype, KvShape, PANEL, PackedBlock};

use self::{
    dot::F32,
    packed::{HeadBytes, bf16_pair, quantize, scale_of},
    step::{BlockStep, BlockUnits, RowsState, TileScratch},
    widen::{Wide, WideBlock, cast, relative_scales},
};
use crate::cpu::{Level, per_level};

/// Which keys of a block each row attends to: one bit per key.
#[derive(Debug, Clone, Copy)]
pub struct Visible<'a> {
    /// `[rows / rows_per_mask, BLOCK_TOKENS / 32]`; bit `j % 32` of word `j / 32` is key `j`.
    pub bits: &'a [u32],
    /// Rows that share one line of bits: the query heads of one token.
    pub rows_per_mask: usize,
}

/// Words of one line of [`Visible`].
pub const MASK_WORDS: usize = BLOCK_TOKENS / 32;

/// The element type of the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    F32,
    Bf16,
    Int8,
}

impl Arithmetic {
    fn of(level: Level, dtype: KvDtype) -> Self {
        match (level, dtype) {
            (Level::Avx512Bf16, KvDtype::Bf16 | KvDtype::Int4) => Self::Bf16,
            (Level::Avx512Bf16, KvDtype::Int8) => Self::Int8,
            _ => Self::F32,
        }
    }

    /// Elements in a unit of 32 bits.
    fn interleave(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

/// The running result of `rows` queries over the keys of one head.
pub struct Accumulator {
    level: Level,
    shape: KvShape,
    arithmetic: Arithmetic,
    /// `[rows, key units]`, scaled by `log2(e) / sqrt(d)` so that weights are powers of two.
    queries: Vec<u32>,
    /// `[rows]`; 1 unless the type is int8.
    query_scales: Vec<f32>,
    /// `[rows, value_width]`, not yet divided by `sum`.
    out: Vec<f32>,
    /// `[rows]`, the largest score so far, in log2 units; −∞ before the first visible key.
    max: Vec<f32>,
    /// `[rows]`.
    sum: Vec<f32>,
}

/// Working memory of one thread.
#[derive(Default)]
struct Scratch {
    tile: TileScratch,
    wide: WideBlock,
    value_scales: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::default();
}

impl Accumulator {
    /// queries `[rows, d]`, for blocks of `shape`; scores are divided by `sqrt(d)`.
    ///
    /// # Panics
    /// When the length is not a multiple of `d`.
    pub fn new(queries: &[f32], shape: KvShape) -> Self {
        Self::at_level(Level::current(), queries, shape)
    }

    /// [`Accumulator::new`] with the instructions of `level`, lowered to what the processor supports.
    ///
    /// # Panics
    /// When the length is not a multiple of `d`.
    pub fn at_level(level: Level, queries: &[f32], shape: KvShape) -> Self {
        let level = level.min(Level::detected());
        let mut new = Self {
            level,
            shape,
            arithmetic: Arithmetic::of(level, shape.dtype),
            queries: Vec::new(),
            query_scales: Vec::new(),
            out: Vec::new(),
            max: Vec::new(),
            sum: Vec::new(),
        };
        new.restart(queries, shape);
        new
    }

    /// Starts over with new queries `[rows, d]`, reusing the allocated buffers.
    ///
    /// # Panics
    /// When the length is not a multiple of `d`.
    pub fn restart(&mut self, queries: &[f32], shape: KvShape) {
        assert!(shape.d > 0 && queries.len().is_multiple_of(shape.d));
        let rows = queries.len() / shape.d;
        self.shape = shape;
        self.arithmetic = Arithmetic::of(self.level, shape.dtype);
        let units = rows * shape.key_width() / self.arithmetic.interleave();
        refill(&mut self.queries, units, 0);
        refill(&mut self.query_scales, rows, 1.0);
        refill(&mut self.out, rows * shape.value_width(), 0.0);
        refill(&mut self.max, rows, f32::NEG_INFINITY);
        refill(&mut self.sum, rows, 0.0);
        query_units(
            self.level,
            self.arithmetic,
            shape,
            queries,
            &mut self.query_scales,
            &mut self.queries,
        );
    }

    /// Adds the first `tokens` keys and values of one head of a block; without `visible` every row attends to all.
    ///
    /// `next` is the block that will be added after this one, where it is known: it is prefetched meanwhile.
    ///
    /// # Panics
    /// When block and accumulator differ in shape, or `visible` has too few lines of bits.
    pub fn add(
        &mut self,
        block: &PackedBlock,
        kv_head: usize,
        tokens: usize,
        visible: Option<Visible>,
        next: Option<&PackedBlock>,
    ) {
        assert!(block.shape() == self.shape && kv_head < self.shape.kv_heads);
        assert!(tokens <= BLOCK_TOKENS);
        if let Some(visible) = visible {
            let lines = visible.bits.len() / MASK_WORDS;
            assert!(lines * visible.rows_per_mask >= self.max.len());
        }
        if tokens == 0 || self.max.is_empty() {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch {
                tile,
                wide,
                value_scales,
            } = scratch.as_mut();
            let head = block.head(kv_head);
            let next = next.map_or(&[][..], |next| next.head(kv_head).all);
            let block = self.units(&head, tokens, wide, value_scales, next);
            let rows = RowsState {
                queries: &self.queries,
                query_scales: &self.query_scales,
                out: &mut self.out,
                max: &mut self.max,
                sum: &mut self.sum,
            };
            let step = BlockStep {
                block,
                rows,
                visible,
                scratch: tile,
                share: 0,
            };
            run(self.level, self.arithmetic, step);
        });
    }

    /// The block in the element type of the products: where it lies, or widened into `wide`.
    fn units<'a>(
        &self,
        head: &HeadBytes,
        tokens: usize,
        wide: &mut WideBlock,
        value_scales: &mut Vec<f32>,
        mut next: &'a [u8],
    ) -> BlockUnits<'a> {
        let (mut keys, mut values) = (head.keys.as_ptr().cast(), head.values.as_ptr().cast());
        let target = match (self.arithmetic, self.shape.dtype) {
            (Arithmetic::F32, KvDtype::F32)
            | (Arithmetic::Bf16, KvDtype::Bf16)
            | (Arithmetic::Int8, _) => None,
            (Arithmetic::F32, _) => Some(Wide::F32),
            (Arithmetic::Bf16, _) => Some(Wide::Bf16),
        };
        if let Some(target) = target {
            let next = std::mem::take(&mut next);
            wide.fill(self.level, self.shape, head, tokens, target, next);
            (keys, values) = (wide.keys.as_ptr(), wide.values.as_ptr());
        }
        let largest_value_scale = if self.arithmetic == Arithmetic::Int8 {
            relative_scales(self.level, cast(head.value_scales), value_scales)
        } else {
            1.0
        };
        BlockUnits {
            keys,
            key_units: self.shape.key_width() / self.arithmetic.interleave(),
            values,
            value_width: self.shape.value_width(),
            key_scales: head.key_scales.as_ptr().cast(),
            value_scales: value_scales.as_ptr(),
            largest_value_scale,
            key_sums: head.key_sums.as_ptr().cast(),
            tokens,
            next,
        }
    }

    /// out `[rows, d]`, lse `[rows]` over the keys so far; the accumulator is then empty again.
    /// A row that attended to no key has zeros and −∞.
    pub fn take(&mut self) -> (Vec<f32>, Vec<f32>) {
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        self.take_into(&mut out, &mut lse);
        (out, lse)
    }

    /// [`Accumulator::take`] into `out` and `lse`, whose old content is replaced.
    pub fn take_into(&mut self, out: &mut Vec<f32>, lse: &mut Vec<f32>) {
        let d = self.shape.d;
        out.clear();
        out.reserve(self.max.len() * d);
        let rows = self.out.chunks_exact(self.shape.value_width());
        for (row, &sum) in rows.zip(&self.sum) {
            // A row without a visible key would be 0/0.
            let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            out.extend(row[..d].iter().map(|o| o * scale));
        }
        let sums = self.max.iter().zip(&self.sum);
        lse.clear();
        // Scores and sums are in base 2; the LSE is in base e.
        lse.extend(sums.map(|(max, sum)| (max + sum.log2()) * std::f32::consts::LN_2));
        self.out.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }
}

/// Fills the vector with `n` copies of `x`, reusing its allocation.
fn refill<T: Copy>(numbers: &mut Vec<T>, n: usize, x: T) {
    numbers.clear();
    numbers.resize(n, x);
}

per_level! {
    /// queries `[rows, d]` → units `[rows, key_width / interleave]`, times `log2(e) / sqrt(d)`;
    /// `scales` receives each row's int8 quantization step.
    fn query_units(arithmetic: Arithmetic, shape: KvShape, queries: &[f32], scales: &mut [f32], units: &mut [u32]) = query_units_body;
}

#[inline(always)]
fn query_units_body(
    arithmetic: Arithmetic,
    shape: KvShape,
    queries: &[f32],
    scales: &mut [f32],
    units: &mut [u32],
) {
    let factor = std::f32::consts::LOG2_E / (shape.d as f32).sqrt();
    let width = shape.key_width();
    let mut padded = vec![0.0; width];
    let rows = queries
        .chunks_exact(shape.d)
        .zip(units.chunks_exact_mut(width / arithmetic.interleave()));
    for ((query, units), scale) in rows.zip(scales) {
        for (padded, q) in padded.iter_mut().zip(query) {
            *padded = q * factor;
        }
        match arithmetic {
            Arithmetic::F32 => {
                let rows = units.iter_mut().zip(&padded);
                rows.for_each(|(unit, q)| *unit = q.to_bits());
            }
            Arithmetic::Bf16 => {
                for (unit, pair) in units.iter_mut().zip(padded.chunks_exact(2)) {
                    *unit = bf16_pair(pair[0], pair[1]);
                }
            }
            Arithmetic::Int8 => {
                *scale = scale_of(&padded, 127.0);
                for (unit, four) in units.iter_mut().zip(padded.chunks_exact(4)) {
                    let byte = |i: usize| quantize(four[i], *scale, 127.0) as u8 ^ 128;
                    *unit = u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]);
                }
            }
        }
    }
}

/// Runs the step with the instructions of `level`, which the processor must support.
fn run(level: Level, arithmetic: Arithmetic, mut step: BlockStep) {
    match (level, arithmetic) {
        // SAFETY: the level is at most what the processor was found to have, and the block
        // has the lengths that its shape says.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512Bf16, Arithmetic::Bf16) => unsafe { x86::avx512_bf16(&mut step) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512Bf16, Arithmetic::Int8) => unsafe { x86::avx512_int8(&mut step) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512 | Level::Avx512Bf16, _) => unsafe { x86::avx512(&mut step) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, _) => unsafe { x86::avx2(&mut step) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        (Level::Neon, _) => unsafe { step.run::<F32<std::arch::aarch64::float32x4_t>, 6, 4>() },
        // SAFETY: plain Rust runs everywhere.
        _ => unsafe { step.run::<F32<[f32; 4]>, 4, 2>() },
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The bodies compiled for x86-64.

    use std::arch::x86_64::{__m256, __m512};

    use super::{
        dot::{Bf16, F32, Int8},
        step::BlockStep,
    };

    /// # Safety
    /// The processor has AVX-512 with the bf16 dot product; see [`BlockStep::run`].
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn avx512_bf16(step: &mut BlockStep<'_>) {
        // SAFETY: the caller's promise.
        unsafe { step.run::<Bf16, 12, 2>() }
    }

    /// # Safety
    /// The processor has AVX-512 with the int8 dot product; see [`BlockStep::run`].
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn avx512_int8(step: &mut BlockStep<'_>) {
        // SAFETY: the caller's promise.
        unsafe { step.run::<Int8, 12, 2>() }
    }

    /// # Safety
    /// The processor has AVX-512; see [`BlockStep::run`].
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn avx512(step: &mut BlockStep<'_>) {
        // SAFETY: the caller's promise.
        unsafe { step.run::<F32<__m512>, 12, 2>() }
    }

    /// # Safety
    /// The processor has AVX2 and FMA; see [`BlockStep::run`].
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(step: &mut BlockStep<'_>) {
        // SAFETY: the caller's promise.
        unsafe { step.run::<F32<__m256>, 6, 2>() }
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
        let seen: Vec<usize> = (0..v.len() / d).filter(|&j| visible(i, j)).collect();
        let score = |&j: &usize| dot(q, &k[j * d..(j + 1) * d]) / (d as f64).sqrt();
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut row = vec![0.0; d];
        for (j, weight) in seen.iter().zip(weights) {
            let value = &v[j * d..(j + 1) * d];
            row.iter_mut()
                .zip(value)
                .for_each(|(r, &v)| *r += weight / sum * f64::from(v));
        }
        out.extend(row);
        lse.push(largest + sum.ln());
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

    /// Largest error against f64 for numbers in [-2, 2): the precision of the element type.
    fn tolerance(dtype: KvDtype) -> f64 {
        match dtype {
            KvDtype::F32 => 2e-5,
            KvDtype::Bf16 => 2e-2,
            KvDtype::Int8 => 4e-2,
            KvDtype::Int4 => 0.6,
        }
    }

    fn check(n: usize, s: usize, d: usize, split: usize, visible: impl Fn(usize, usize) -> bool) {
        let (q, k, v) = (numbers(n * d, 1), numbers(s * d, 2), numbers(s * d, 3));
        let (out, lse) = reference(&q, &k, &v, d, &visible);
        for level in Level::available() {
            for dtype in KvDtype::ALL {
                let shape = KvShape {
                    kv_heads: 1,
                    d,
                    dtype,
                };
                let mut state = Accumulator::at_level(level, &q, shape);
                for from in (0..s).step_by(split) {
                    let to = (from + split).min(s);
                    let mut bits = vec![0u32; n * MASK_WORDS];
                    for (i, j) in (0..n).flat_map(|i| (from..to).map(move |j| (i, j))) {
                        let at = j - from;
                        bits[i * MASK_WORDS + at / 32] |= u32::from(visible(i, j)) << (at % 32);
                    }
                    let mut block = PackedBlock::try_new(shape).unwrap();
                    block.write(0, &k[from * d..to * d], &v[from * d..to * d]);
                    let visible = Visible {
                        bits: &bits,
                        rows_per_mask: 1,
                    };
                    state.add(&block, 0, to - from, Some(visible), None);
                }
                let (got_out, got_lse) = state.take();
                let pairs = got_out.iter().zip(&out).chain(got_lse.iter().zip(&lse));
                for (i, (&got, &e)) in pairs.enumerate() {
                    let error = (f64::from(got) - e).abs();
                    let same = f64::from(got) == e || error <= tolerance(dtype);
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

    /// out and lse of one query over 64 keys of which only the first 40 are visible; the others hold `hidden`.
    fn over_the_first_forty(level: Level, dtype: KvDtype, hidden: f32) -> (Vec<f32>, Vec<f32>) {
        let d = 16;
        let shape = KvShape {
            kv_heads: 1,
            d,
            dtype,
        };
        let mut v = numbers(64 * d, 3);
        v[40 * d..].iter_mut().for_each(|v| *v *= hidden);
        let mut block = PackedBlock::try_new(shape).unwrap();
        block.write(0, &numbers(64 * d, 2), &v);
        let mut bits = [0; MASK_WORDS];
        (bits[0], bits[1]) = (u32::MAX, 0xff);
        let visible = Visible {
            bits: &bits,
            rows_per_mask: 1,
        };
        let mut state = Accumulator::at_level(level, &numbers(d, 1), shape);
        state.add(&block, 0, 64, Some(visible), None);
        state.take()
    }

    #[test]
    fn a_masked_value_does_not_change_the_quantization_of_visible_ones() {
        for level in Level::available() {
            for dtype in KvDtype::ALL {
                let (plain, huge) = (
                    over_the_first_forty(level, dtype, 1.0),
                    over_the_first_forty(level, dtype, 1e4),
                );
                for (a, b) in plain.0.iter().zip(&huge.0) {
                    assert!((a - b).abs() < 1e-2, "{level:?} {dtype:?}: {a} against {b}");
                }
                assert_eq!(plain.1, huge.1, "{level:?} {dtype:?}");
            }
        }
    }

    #[test]
    fn a_block_visible_to_one_row_leaves_the_other_row_unchanged() {
        let d = 16;
        for level in Level::available() {
            for dtype in KvDtype::ALL {
                let shape = KvShape {
                    kv_heads: 1,
                    d,
                    dtype,
                };
                // Scores of about −200 in powers of two, then a block for the second row alone.
                let far = |sign: f32| vec![sign * 24.0; d];
                let mut block = PackedBlock::try_new(shape).unwrap();
                block.write(0, &far(-1.0), &vec![1.0; d]);
                let mut state = Accumulator::at_level(level, &[far(1.0), far(1.0)].concat(), shape);
                state.add(&block, 0, 1, None, None);
                let mut bits = [0; 2 * MASK_WORDS];
                bits[MASK_WORDS] = 1;
                let visible = Visible {
                    bits: &bits,
                    rows_per_mask: 1,
                };
                state.add(&block, 0, 1, Some(visible), None);
                let (out, _) = state.take();
                assert!(
                    out.iter().all(|o| (o - 1.0).abs() < 0.05),
                    "{level:?} {dtype:?}: {out:?}"
                );
            }
        }
    }

    #[test]
    fn a_fully_masked_row_is_empty_and_not_nan() {
        check(6, 40, 16, 8, |i, j| i % 2 == 0 && (j / 8) % 2 == 1);
        check(2, 40, 16, 8, |i, _| i == 1);
    }
}
