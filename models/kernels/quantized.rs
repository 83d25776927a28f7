//! Rows times a weight matrix that stays quantized: blocks of integers
//! with scales, as GGUF files hold them (`ggml-quants.c` of llama.cpp describes the blocks).
//!
//! A weight row is widened to f32 in the L1 cache as it is read, so that few rows of x
//! (generation) take the time of reading the blocks; for many rows (prefill) several weight rows are
//! widened at once and multiplied in registers, as in [`crate::linear`]. x is not rounded: the
//! result is that of the dequantized weights.

use std::{cell::RefCell, fmt, marker::PhantomData};

use rayon::prelude::*;

use crate::{
    cpu::{Level, per_level},
    linear::Columns,
    multiply::Product,
};

/// Weight rows of a task, widened together where x has many rows.
const TASK_ROWS: usize = 32;

thread_local! {
    /// The widened rows of this thread's task.
    static WIDE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The block formats of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// 32 weights of 4 bits, a scale.
    Q4_0,
    /// 32 weights of 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 weights of 5 bits, a scale.
    Q5_0,
    /// 32 weights of 5 bits, a scale and a minimum.
    Q5_1,
    /// 32 weights of 8 bits, a scale.
    Q8_0,
    /// 256 weights of 2 bits, scales and minima of 16 weights.
    Q2K,
    /// 256 weights of 3 bits, scales of 16 weights.
    Q3K,
    /// 256 weights of 4 bits, scales and minima of 32 weights.
    Q4K,
    /// 256 weights of 5 bits, scales and minima of 32 weights.
    Q5K,
    /// 256 weights of 6 bits, scales of 16 weights.
    Q6K,
    /// 256 weights of 8 bits, a scale in f32.
    Q8K,
}

/// Evaluates the last argument with `$block` as the type that describes a format.
macro_rules! with_blocks {
    ($format:expr, $block:ident => $body:expr) => {
        with_blocks!(@ $format, $block, $body, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K Q8K)
    };
    (@ $format:expr, $block:ident, $body:expr, $($name:ident)*) => {
        match $format {
            $(Format::$name => {
                type $block = $name;
                $body
            })*
        }
    };
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q8K,
    ];

    /// Weights of a block.
    pub fn block_weights(self) -> usize {
        with_blocks!(self, Block => Block::WEIGHTS)
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        with_blocks!(self, Block => Block::BYTES)
    }

    /// Weights of `bytes`, which are whole blocks.
    pub fn weights_of(self, bytes: &[u8]) -> usize {
        bytes.len() / self.block_bytes() * self.block_weights()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Q8K => "Q8_K",
        };
        f.write_str(name)
    }
}

/// bytes of whole blocks → their weights, f32.
///
/// # Panics
/// When the lengths do not fit.
pub fn widen(format: Format, bytes: &[u8], weights: &mut [f32]) {
    widen_at(Level::current(), format, bytes, weights);
}

fn widen_at(level: Level, format: Format, bytes: &[u8], weights: &mut [f32]) {
    assert!(bytes.len().is_multiple_of(format.block_bytes()));
    assert_eq!(weights.len(), format.weights_of(bytes));
    with_blocks!(format, Block => widen_all(level, PhantomData::<Block>, bytes, weights));
}

/// x `[n, in]` f32, w `[out, in]` in blocks of `format` → y `[n, out]` f32: `y = x · wᵀ`.
///
/// # Panics
/// When the lengths do not fit, or a row is not a whole number of blocks.
pub fn multiply(format: Format, x: &[f32], w: &[u8], in_features: usize, y: &mut [f32]) {
    multiply_at(Level::current(), format, x, w, in_features, y);
}

fn multiply_at(
    level: Level,
    format: Format,
    x: &[f32],
    w: &[u8],
    in_features: usize,
    y: &mut [f32],
) {
    assert!(in_features > 0 && in_features.is_multiple_of(format.block_weights()));
    let row_bytes = in_features / format.block_weights() * format.block_bytes();
    assert!(x.len().is_multiple_of(in_features) && w.len().is_multiple_of(row_bytes));
    let (n, out) = (x.len() / in_features, w.len() / row_bytes);
    assert_eq!(y.len(), n * out);
    match n {
        0 => {}
        1 => one_row(level, format, x, w, row_bytes, y),
        _ => many_rows(level, format, x, w, row_bytes, y),
    }
}

/// x `[d]`, w `[out, d]` → y `[out]`.
fn one_row(level: Level, format: Format, x: &[f32], w: &[u8], row_bytes: usize, y: &mut [f32]) {
    let tasks = y.par_chunks_mut(TASK_ROWS);
    tasks
        .zip(w.par_chunks(TASK_ROWS * row_bytes))
        .for_each(|(y, w)| {
            with_room(x.len(), |row| {
                with_blocks!(format, Block => stream(level, PhantomData::<Block>, x, w, row, y));
            });
        });
}

/// x `[n, d]`, w `[out, d]` → y `[n, out]`.
fn many_rows(level: Level, format: Format, x: &[f32], w: &[u8], row_bytes: usize, y: &mut [f32]) {
    let (d, stride) = (
        row_bytes / format.block_bytes() * format.block_weights(),
        w.len() / row_bytes,
    );
    let y = Columns::of(y);
    w.par_chunks(TASK_ROWS * row_bytes)
        .enumerate()
        .for_each(|(task, w)| {
            // SAFETY: the task's first column is below `stride`, and its columns are its own.
            let Columns(y) = unsafe { y.from(task * TASK_ROWS) };
            with_room(format.weights_of(w), |wide| {
                widen_at(level, format, w, wide);
                let w = &*wide;
                let product = Product { x, w, d, y, stride };
                // SAFETY: as above.
                unsafe { product.run(level) };
            });
        });
}

/// Calls `work` with this thread's buffer, resized to `n` numbers.
fn with_room(n: usize, work: impl FnOnce(&mut [f32])) {
    WIDE.with_borrow_mut(|wide| {
        wide.resize(wide.len().max(n), 0.0);
        work(&mut wide[..n]);
    });
}

per_level! {
    fn widen_all[B: BlockFormat](format: PhantomData<B>, bytes: &[u8], weights: &mut [f32]) = widen_body;
}

per_level! {
    /// x `[d]`, w `[m, d]` in blocks → y `[m]`; `row` is room for one of them.
    fn stream[B: BlockFormat](format: PhantomData<B>, x: &[f32], w: &[u8], row: &mut [f32], y: &mut [f32]) = stream_body;
}

#[inline(always)]
fn widen_body<B: BlockFormat>(_: PhantomData<B>, bytes: &[u8], weights: &mut [f32]) {
    let blocks = bytes.chunks_exact(B::BYTES);
    for (block, weights) in blocks.zip(weights.chunks_exact_mut(B::WEIGHTS)) {
        B::widen(one_by_one(block), weights);
    }
}

#[inline(always)]
fn stream_body<B: BlockFormat>(
    format: PhantomData<B>,
    x: &[f32],
    w: &[u8],
    row: &mut [f32],
    y: &mut [f32],
) {
    let rows = w.chunks_exact(x.len() / B::WEIGHTS * B::BYTES);
    for (y, blocks) in y.iter_mut().zip(rows) {
        widen_body(format, blocks, row);
        *y = dot(x, row);
    }
}

/// Keeps the compiler from vectorizing across blocks, or across parts of one: their weights are not adjacent, and
/// those of one part fill a vector.
#[inline(always)]
fn one_by_one<T>(part: T) -> T {
    std::hint::black_box(part)
}

/// The layout of one block format.
trait BlockFormat {
    const WEIGHTS: usize;
    const BYTES: usize;

    /// block `[BYTES]` → weights `[WEIGHTS]`.
    fn widen(block: &[u8], weights: &mut [f32]);
}

struct Q4_0;
struct Q4_1;
struct Q5_0;
struct Q5_1;
struct Q8_0;
struct Q2K;
struct Q3K;
struct Q4K;
struct Q5K;
struct Q6K;
struct Q8K;

/// The f16 at byte `at`. Scales of 4-bit formats are often subnormal in f16, which processors convert slowly;
/// none is subnormal in f32, so that the bits are shifted and rescaled here.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let magnitude = (bits & 0x7fff) << 13;
    // The exponent biases of f32 and f16 differ by 127 − 15 = 112.
    let number = match magnitude {
        0..0x0080_0000 => f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23),
        0x0080_0000..0x0f80_0000 => f32::from_bits(magnitude + (112 << 23)),
        _ => f32::from_bits(magnitude + (224 << 23)),
    };
    f32::from_bits(number.to_bits() | (bits & 0x8000) << 16)
}

/// x · row, in 32 lanes; both are whole numbers of them.
#[inline(always)]
fn dot(x: &[f32], row: &[f32]) -> f32 {
    let mut sums = [0f32; 32];
    let lanes = x.as_chunks::<32>().0.iter().zip(row.as_chunks::<32>().0);
    for (x, w) in lanes {
        for ((sum, x), w) in sums.iter_mut().zip(x).zip(w) {
            *sum = x.mul_add(*w, *sum);
        }
    }
    sums.iter().sum()
}

/// codes `[n]` → `code · scale + least` each; `least` is the block's minimum.
#[inline(always)]
fn spread<const N: usize>(codes: [u8; N], scale: f32, least: f32, weights: &mut [f32]) {
    for (weight, code) in weights[..N].iter_mut().zip(codes) {
        *weight = f32::from(code) * scale + least;
    }
}

/// codes `[n]` → `(code − zero) · scale` each.
#[inline(always)]
fn centre<const N: usize>(codes: [u8; N], zero: u8, scale: f32, weights: &mut [f32]) {
    for (weight, code) in weights[..N].iter_mut().zip(codes) {
        *weight = (i32::from(code) - i32::from(zero)) as f32 * scale;
    }
}

/// bytes `[n]` → `byte >> shift & mask` each.
#[inline(always)]
fn codes<const N: usize>(bytes: &[u8], shift: usize, mask: u8) -> [u8; N] {
    let mut codes = [0; N];
    for (code, byte) in codes.iter_mut().zip(bytes) {
        *code = byte >> shift & mask;
    }
    codes
}

/// Puts `byte >> shift & mask` above the `low` lowest bits of each code.
#[inline(always)]
fn raise<const N: usize>(codes: &mut [u8; N], low: usize, bytes: &[u8], shift: usize, mask: u8) {
    for (code, byte) in codes.iter_mut().zip(bytes) {
        *code |= (byte >> shift & mask) << low;
    }
}

/// The 32 codes of 4 bits in 16 bytes: the low halves, then the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    codes
}

/// The 32 codes of 5 bits whose highest ones are the bits of 4 bytes.
#[inline(always)]
fn nibbles_and_bits(bits: &[u8], bytes: &[u8]) -> [u8; 32] {
    let bits = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
    let mut codes = nibbles(bytes);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((bits >> i & 1) << 4) as u8;
    }
    codes
}

impl BlockFormat for Q4_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        centre(nibbles(&block[2..18]), 8, half(block, 0), weights);
    }
}

impl BlockFormat for Q4_1 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        let codes = nibbles(&block[4..20]);
        spread(codes, half(block, 0), half(block, 2), weights);
    }
}

impl BlockFormat for Q5_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        let codes = nibbles_and_bits(&block[2..6], &block[6..22]);
        centre(codes, 16, half(block, 0), weights);
    }
}

impl BlockFormat for Q5_1 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        let codes = nibbles_and_bits(&block[4..8], &block[8..24]);
        spread(codes, half(block, 0), half(block, 2), weights);
    }
}

impl BlockFormat for Q8_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        signed::<32>(codes(&block[2..34], 0, 255), half(block, 0), weights);
    }
}

/// codes `[n]`, i8 → `code · scale` each.
#[inline(always)]
fn signed<const N: usize>(codes: [u8; N], scale: f32, weights: &mut [f32]) {
    for (weight, code) in weights[..N].iter_mut().zip(codes) {
        *weight = f32::from(code as i8) * scale;
    }
}

/// weights `[32]` → each half times its scale plus its minimum, in place.
#[inline(always)]
fn halves(weights: &mut [f32], scales: [f32; 2], least: [f32; 2]) {
    let sides = weights
        .chunks_exact_mut(16)
        .zip(one_by_one(scales))
        .zip(least);
    for ((weights, scale), least) in sides {
        weights.iter_mut().for_each(|w| *w = *w * scale + least);
    }
}

impl BlockFormat for Q2K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 84;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        let (scale, least) = (half(block, 80), half(block, 82));
        let sides = weights.as_chunks_mut::<128>().0;
        for (side, bytes) in sides.iter_mut().zip(block[16..80].as_chunks::<32>().0) {
            for (i, byte) in bytes.iter().enumerate() {
                side[i] = f32::from(byte & 3);
                side[i + 32] = f32::from(byte >> 2 & 3);
                side[i + 64] = f32::from(byte >> 4 & 3);
                side[i + 96] = f32::from(byte >> 6);
            }
        }
        let parts = weights.as_chunks_mut::<32>().0;
        for (part, of_half) in parts.iter_mut().zip(block.as_chunks::<2>().0) {
            let scales = of_half.map(|s| scale * f32::from(s & 15));
            halves(part, scales, of_half.map(|s| -least * f32::from(s >> 4)));
        }
    }
}

impl BlockFormat for Q3K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 110;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        let scale = half(block, 108);
        for (part, weights) in weights.chunks_exact_mut(32).enumerate() {
            let bytes = &block[32 + part / 4 * 32..][..32];
            let mut codes: [u8; 32] = codes(bytes, part % 4 * 2, 3);
            raise(&mut codes, 2, &block[..32], part, 1);
            centre(codes, 4, 1.0, weights);
            let of_half = |half| i16::from(q3k_scale(&block[96..108], half)) - 32;
            let scales = [2 * part, 2 * part + 1].map(|half| scale * f32::from(of_half(half)));
            halves(weights, scales, [0.0; 2]);
        }
    }
}

/// The scale of 6 bits of a part of a Q3_K block: 4 in the first 8 bytes, 2 in the last 4.
#[inline(always)]
fn q3k_scale(scales: &[u8], part: usize) -> u8 {
    let low = scales[part % 8] >> (part / 8 * 4) & 15;
    low | (scales[8 + part % 4] >> (part / 4 * 2) & 3) << 4
}

/// Scale and minimum, of 6 bits each, of a part of a Q4_K or Q5_K block.
#[inline(always)]
fn scale_and_least(scales: &[u8], part: usize) -> [f32; 2] {
    let (scale, least) = match part {
        0..4 => (scales[part] & 63, scales[part + 4] & 63),
        _ => (
            scales[part + 4] & 15 | scales[part - 4] >> 6 << 4,
            scales[part + 4] >> 4 | scales[part] >> 6 << 4,
        ),
    };
    [f32::from(scale), f32::from(least)]
}

impl BlockFormat for Q4K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        let (scale, least) = (half(block, 0), half(block, 2));
        for (part, weights) in weights.chunks_exact_mut(32).enumerate() {
            let bytes = &block[16 + part / 2 * 32..][..32];
            let shift = part % 2 * 4;
            let [s, m] = scale_and_least(&block[4..16], part);
            spread::<32>(codes(bytes, shift, 15), scale * s, -least * m, weights);
        }
    }
}

impl BlockFormat for Q5K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        let (scale, least) = (half(block, 0), half(block, 2));
        let highest = &block[16..48];
        for (part, weights) in weights.chunks_exact_mut(32).enumerate() {
            let bytes = &block[48 + part / 2 * 32..][..32];
            let shift = part % 2 * 4;
            let mut codes: [u8; 32] = codes(bytes, shift, 15);
            raise(&mut codes, 4, highest, part, 1);
            let [s, m] = scale_and_least(&block[4..16], part);
            spread(codes, scale * s, -least * m, weights);
        }
    }
}

impl BlockFormat for Q6K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        let scale = half(block, 208);
        // Two sides of 128 weights: 64 bytes of low bits and 32 of high ones each.
        let low = block[..128].as_chunks::<64>().0;
        let high = block[128..192].as_chunks::<32>().0;
        let sides = weights.as_chunks_mut::<128>().0;
        for ((side, low), high) in sides.iter_mut().zip(low).zip(high) {
            for (i, high) in high.iter().enumerate() {
                let code = |low: u8, high: u8| f32::from((low | (high & 3) << 4) as i8 - 32);
                side[i] = code(low[i] & 15, *high);
                side[i + 32] = code(low[i + 32] & 15, high >> 2);
                side[i + 64] = code(low[i] >> 4, high >> 4);
                side[i + 96] = code(low[i + 32] >> 4, high >> 6);
            }
        }
        let parts = weights.as_chunks_mut::<32>().0;
        for (part, of_half) in parts.iter_mut().zip(block[192..208].as_chunks::<2>().0) {
            let scales = of_half.map(|s| scale * f32::from(s as i8));
            halves(part, scales, [0.0; 2]);
        }
    }
}

impl BlockFormat for Q8K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 292;

    #[inline(always)]
    fn widen(block: &[u8], weights: &mut [f32]) {
        let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        for (part, weights) in weights.chunks_exact_mut(32).enumerate() {
            signed::<32>(codes(&block[4 + 32 * part..], 0, 255), scale, weights);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::{
        Device,
        quantized::{GgmlDType, QStorage, QTensor},
    };

    use half::f16;

    use super::{Format, Level, half, multiply_at, widen_at};
    use crate::linear::reference;

    /// Pseudorandom bytes.
    fn bytes(n: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..n).map(|_| next()).collect()
    }

    /// Blocks of pseudorandom bits with scales near 0.01.
    fn some_blocks(format: Format, n: usize, seed: u64) -> Vec<u8> {
        let mut blocks = bytes(n * format.block_bytes(), seed);
        let scales: &[usize] = match format {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q2K => &[80, 82],
            Format::Q3K => &[108],
            Format::Q6K => &[208],
            Format::Q8K => &[],
        };
        for block in blocks.chunks_exact_mut(format.block_bytes()) {
            // The upper byte of an f16 near 0.01.
            scales.iter().for_each(|&at| block[at + 1] = 0x21);
            if format == Format::Q8K {
                block[..4].copy_from_slice(&0.01_f32.to_le_bytes());
            }
        }
        blocks
    }

    fn candles_name(format: Format) -> GgmlDType {
        match format {
            Format::Q4_0 => GgmlDType::Q4_0,
            Format::Q4_1 => GgmlDType::Q4_1,
            Format::Q5_0 => GgmlDType::Q5_0,
            Format::Q5_1 => GgmlDType::Q5_1,
            Format::Q8_0 => GgmlDType::Q8_0,
            Format::Q2K => GgmlDType::Q2K,
            Format::Q3K => GgmlDType::Q3K,
            Format::Q4K => GgmlDType::Q4K,
            Format::Q5K => GgmlDType::Q5K,
            Format::Q6K => GgmlDType::Q6K,
            Format::Q8K => GgmlDType::Q8K,
        }
    }

    /// The weights as candle reads them.
    fn candles(format: Format, blocks: &[u8]) -> Vec<f32> {
        // candle requires aligned blocks.
        let aligned: Vec<u32> = bytemuck::pod_collect_to_vec(blocks);
        let blocks = &bytemuck::cast_slice(&aligned)[..blocks.len()];
        let dtype = candles_name(format);
        assert_eq!(dtype.block_size(), format.block_weights(), "{format:?}");
        assert_eq!(dtype.type_size(), format.block_bytes(), "{format:?}");
        let storage = QStorage::from_data(Cow::Borrowed(blocks), &Device::Cpu, dtype).unwrap();
        let tensor = QTensor::new(storage, format.weights_of(blocks)).unwrap();
        tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_format_widens_as_candle_reads_it() {
        for format in Format::ALL {
            let blocks = some_blocks(format, 40, 7);
            let expected = candles(format, &blocks);
            for level in Level::available() {
                let mut got = vec![f32::NAN; expected.len()];
                widen_at(level, format, &blocks, &mut got);
                for (i, (got, e)) in got.iter().zip(&expected).enumerate() {
                    // candle may add the minimum in a separate rounding step.
                    let near = (got - e).abs() <= 1e-6 * e.abs().max(0.1);
                    assert!(near, "{format:?} {level:?} [{i}]: got {got}, expected {e}");
                }
            }
        }
    }

    #[test]
    fn half_agrees_with_every_f16() {
        for bits in 0..=u16::MAX {
            let expected = f16::from_bits(bits).to_f32();
            let got = half(&bits.to_le_bytes(), 0);
            let both_none = got.is_nan() && expected.is_nan();
            assert!(
                got.to_bits() == expected.to_bits() || both_none,
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn products_equal_those_of_the_widened_weights() {
        for format in Format::ALL {
            for (n, blocks_a_row, out) in
                [(1, 1, 1), (1, 3, 70), (7, 2, 33), (9, 1, 40), (40, 2, 67)]
            {
                let inputs = blocks_a_row * format.block_weights();
                let blocks = some_blocks(format, out * blocks_a_row, 11);
                let mut wide = vec![0.0; out * inputs];
                widen_at(Level::Scalar, format, &blocks, &mut wide);
                let x: Vec<f32> = bytes(n * inputs, 3)
                    .iter()
                    .map(|&b| f32::from(b) / 128.0 - 1.0)
                    .collect();
                let expected = reference(&x, &wide, inputs);
                let most = wide.iter().fold(0f32, |most, w| most.max(w.abs()));
                for level in Level::available() {
                    let mut y = vec![f32::NAN; n * out];
                    multiply_at(level, format, &x, &blocks, inputs, &mut y);
                    for (got, e) in y.iter().zip(&expected) {
                        let allowed = 3e-6 * f64::from(most) * (inputs as f64).sqrt();
                        let error = (f64::from(*got) - e).abs();
                        assert!(error <= allowed, "{format:?} {level:?} {n}: {got} {e}");
                    }
                }
            }
        }
    }
}
