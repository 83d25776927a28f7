//! Resizing that is exact to the byte: Pillow 10.2's, and torchvision's, which
//! rounds its weights to 16 bits, and the centre crop and scaling of `lwm/vision_chat.py`.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::{Error, Kind, Result};

/// Fraction bits of Pillow's 8-bit coefficients (`Resample.c`, `PRECISION_BITS`).
const PRECISION_BITS: u32 = 22;

/// Bits of torchvision's weights, the sign among them (`UpSampleKernel.cpp` of PyTorch).
const TORCH_WEIGHT_BITS: u32 = 16;

/// Output rows of one task.
const TASK_ROWS: usize = 8;

/// A picture that someone else owns: RGB, 8 bits per channel, row-major.
#[derive(Debug, Clone, Copy)]
pub struct RgbView<'a> {
    width: usize,
    height: usize,
    data: &'a [u8],
}

impl<'a> RgbView<'a> {
    /// data `[height, width, 3]`; an error when the length does not fit or the picture is empty.
    pub fn new(width: usize, height: usize, data: &'a [u8]) -> Result<Self> {
        let len = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if len != Some(data.len()) || data.is_empty() {
            return Err(Error::new(
                Kind::BadInput,
                format!(
                    "a picture of {width}x{height} pixels has {} bytes, expected 3 per pixel and at least one pixel",
                    data.len()
                ),
            ));
        }
        Ok(Self {
            width,
            height,
            data,
        })
    }

    /// Pixels per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }
}

/// The interpolation filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// A cubic over four pixels per axis at scale 1.
    Bicubic,
    /// A triangle over two pixels per axis at scale 1.
    Bilinear,
}

impl Filter {
    /// Half width at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
        }
    }

    fn weight(self, t: f64) -> f64 {
        match self {
            Self::Bicubic => bicubic(t),
            Self::Bilinear => (1.0 - t.abs()).max(0.0),
        }
    }
}

/// How filter weights are rounded to fixed point: results differ by a level or two in places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// 22 fraction bits: Pillow before 13, with which most encoders were trained.
    Pillow,
    /// As many fraction bits as keep the largest weight within 16 bits: torchvision with antialias, which
    /// transformers 5 uses.
    Torchvision,
}

/// A resize method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resample {
    /// The interpolation filter.
    pub filter: Filter,
    /// The rounding of its weights.
    pub rounding: Rounding,
}

impl Resample {
    /// Pillow's default for RGB.
    const PILLOW: Self = Self {
        filter: Filter::Bicubic,
        rounding: Rounding::Pillow,
    };
}

/// The inputs of one output pixel in one pass: pixels from `first` on, with their weights.
struct Taps<W> {
    first: usize,
    weights: Vec<W>,
}

/// The taps of a run of output pixels, in fixed point with `bits` fraction bits.
struct ResizePass {
    taps: Vec<Taps<i32>>,
    bits: u32,
}

/// Pillow's cubic with `a = −0.5`.
fn bicubic(t: f64) -> f64 {
    const A: f64 = -0.5;
    let t = t.abs();
    if t < 1.0 {
        ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
    } else if t < 2.0 {
        (((t - 5.0) * t + 8.0) * t - 4.0) * A
    } else {
        0.0
    }
}

/// The taps of output pixel `i` when `from` pixels become `to` (`Resample.c`, `precompute_coeffs`).
fn taps(filter: Filter, i: usize, from: usize, to: usize) -> Taps<f64> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let centre = (i as f64 + 0.5) * scale;
    // The casts truncate, and saturate negative numbers to 0, like Pillow's clamp.
    let first = (centre - support + 0.5) as usize;
    let last = ((centre + support + 0.5) as usize).min(from);
    let step = 1.0 / filter_scale;
    let mut weights: Vec<f64> = (first..last)
        .map(|x| filter.weight((x as f64 - centre + 0.5) * step))
        .collect();
    let sum: f64 = weights.iter().sum();
    if sum != 0.0 {
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    Taps { first, weights }
}

impl ResizePass {
    /// The taps of output pixels `range` when `from` pixels become `to`.
    fn new(resample: Resample, range: Range<usize>, from: usize, to: usize) -> Self {
        let Resample { filter, rounding } = resample;
        let bits = match rounding {
            Rounding::Pillow => PRECISION_BITS,
            Rounding::Torchvision => torch_bits(largest_weight(filter, from, to)),
        };
        let taps = range
            .map(|i| {
                let Taps { first, weights } = taps(filter, i, from, to);
                let weights = weights.into_iter().map(|w| fixed(w, bits)).collect();
                Taps { first, weights }
            })
            .collect();
        Self { taps, bits }
    }

    /// The range of inputs that the taps read; `first` rises with the output.
    fn reach(&self) -> Range<usize> {
        let start = self.taps.first().map_or(0, |t| t.first);
        let end = (self.taps.last()).map_or(0, |t| t.first + t.weights.len());
        start..end
    }

    /// One half in fixed point, the start of every sum: the final shift then rounds to nearest.
    fn half(&self) -> i32 {
        1 << (self.bits - 1)
    }

    /// Back from fixed point, rounded and clamped.
    fn unfixed(&self, sum: i32) -> u8 {
        (sum >> self.bits).clamp(0, 255) as u8
    }
}

/// The largest weight of any output pixel.
fn largest_weight(filter: Filter, from: usize, to: usize) -> f64 {
    (0..to)
        .into_par_iter()
        .map(|i| (taps(filter, i, from, to).weights.into_iter()).fold(0.0, f64::max))
        .reduce(|| 0.0, f64::max)
}

/// Fraction bits with which the largest weight fits 16 bits with its sign.
fn torch_bits(largest: f64) -> u32 {
    let limit = f64::from(1_u32 << (TORCH_WEIGHT_BITS - 1));
    (1..PRECISION_BITS)
        .find(|&bits| (0.5 + largest * f64::from(1_u32 << (bits + 1))).trunc() >= limit)
        .unwrap_or(PRECISION_BITS)
}

/// Rounded to `bits` behind the point, halves away from zero.
fn fixed(weight: f64, bits: u32) -> i32 {
    let half = if weight < 0.0 { -0.5 } else { 0.5 };
    (half + weight * f64::from(1_u32 << bits)) as i32
}

/// view `[h, w, 3]` → `[height, width, 3]`, the bytes of Pillow 10.2's `resize` with its default filter.
pub fn resize_bicubic(view: RgbView<'_>, width: usize, height: usize) -> Vec<u8> {
    resize(view, [width, height], Resample::PILLOW)
}

/// view `[h, w, 3]` → `[height, width, 3]` for `size` = (width, height).
pub fn resize(view: RgbView<'_>, size: [usize; 2], resample: Resample) -> Vec<u8> {
    resize_region(view, size, 0..size[0], 0..size[1], resample)
}

/// The part `columns` × `rows` of view resized to `size` (width, height) → `[rows, columns, 3]`.
///
/// Only the source rows that the part needs are touched, so a strip of a picture of
/// extreme proportions costs no more than the strip.
pub(super) fn resize_region(
    view: RgbView<'_>,
    size: [usize; 2],
    columns: Range<usize>,
    rows: Range<usize>,
    resample: Resample,
) -> Vec<u8> {
    let [width, height] = size;
    if columns.is_empty() || rows.is_empty() {
        return Vec::new();
    }
    let vertical = (height != view.height)
        .then(|| ResizePass::new(resample, rows.clone(), view.height, height));
    let needed = match &vertical {
        Some(pass) => pass.reach(),
        None => rows,
    };
    let narrow = if width == view.width {
        crop(view, columns.clone(), needed.clone())
    } else {
        let pass = ResizePass::new(resample, columns.clone(), view.width, width);
        horizontal_pass(view, needed.clone(), &pass)
    };
    match vertical {
        Some(pass) => vertical_pass(&narrow, columns.len() * 3, needed.start, &pass),
        None => narrow,
    }
}

/// view `[h, w, 3]` → its `rows` × `columns`, `[rows, columns, 3]`.
fn crop(view: RgbView<'_>, columns: Range<usize>, rows: Range<usize>) -> Vec<u8> {
    let row_of = |y: usize| &view.data[(y * view.width + columns.start) * 3..][..columns.len() * 3];
    rows.flat_map(|y| row_of(y).iter().copied()).collect()
}

/// view `[h, w, 3]` → its `rows`, resized to one pixel per tap: `[rows, taps, 3]`.
fn horizontal_pass(view: RgbView<'_>, rows: Range<usize>, pass: &ResizePass) -> Vec<u8> {
    let width = pass.taps.len() * 3;
    let mut out = vec![0; rows.len() * width];
    let source = &view.data[rows.start * view.width * 3..];
    out.par_chunks_mut(TASK_ROWS * width)
        .zip(source.par_chunks(TASK_ROWS * view.width * 3))
        .for_each(|(out, source)| {
            let out = out.chunks_exact_mut(width);
            for (out, row) in out.zip(source.chunks_exact(view.width * 3)) {
                horizontal_row(row, pass, out);
            }
        });
    out
}

fn horizontal_row(row: &[u8], pass: &ResizePass, out: &mut [u8]) {
    for (out, taps) in out.chunks_exact_mut(3).zip(&pass.taps) {
        let mut sums = [pass.half(); 3];
        for (pixel, &weight) in row[taps.first * 3..].chunks_exact(3).zip(&taps.weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(value) * weight;
            }
        }
        out.copy_from_slice(&sums.map(|sum| pass.unfixed(sum)));
    }
}

/// rows `[r, stride]`, of which the first is source row `first` → `[taps, stride]`.
fn vertical_pass(rows: &[u8], stride: usize, first: usize, pass: &ResizePass) -> Vec<u8> {
    let mut out = vec![0; pass.taps.len() * stride];
    out.par_chunks_mut(stride)
        .zip(&pass.taps)
        .for_each(|(out, taps)| {
            let mut sums = vec![pass.half(); stride];
            let seen = rows[(taps.first - first) * stride..].chunks_exact(stride);
            for (row, &weight) in seen.zip(&taps.weights) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = pass.unfixed(sum);
            }
        });
    out
}

/// The size to which LWM resizes a picture: the short side becomes `size`, the long side is
/// truncated (`vision_chat.py`, `_process_frame`).
pub fn lwm_resize_shape(width: usize, height: usize, size: usize) -> [usize; 2] {
    // Python divides the exact product; both fit f64 below 2^53.
    let long = |long: usize, short: usize| ((size as f64 * long as f64) / short as f64) as usize;
    if width < height {
        [size, long(height, width)]
    } else {
        [long(width, height), size]
    }
}

/// view `[h, w, 3]` → `[size, size, 3]`: short side to `size`, then the centre.
///
/// For an odd `size` Pillow's two edges may differ by a pixel after rounding; here the
/// right edge is always the left one plus `size`.
pub fn lwm_frame(view: RgbView<'_>, size: usize) -> Result<Vec<u8>> {
    let largest = view.width.max(view.height);
    let fits = size
        .checked_mul(size)
        .and_then(|n| n.checked_mul(3))
        .is_some();
    if size == 0
        || !fits
        || largest as f64 * size as f64 >= f64::from(1_u32 << 31) * f64::from(1_u32 << 21)
    {
        return Err(Error::new(
            Kind::TooLarge,
            format!(
                "cannot bring a picture of {}x{} pixels to {size}x{size}",
                view.width, view.height
            ),
        ));
    }
    let [width, height] = lwm_resize_shape(view.width, view.height, size);
    let (left, top) = (half_to_even(width - size), half_to_even(height - size));
    Ok(resize_region(
        view,
        [width, height],
        left..left + size,
        top..top + size,
        Resample::PILLOW,
    ))
}

/// `n / 2`, halves rounded to even, as Python's `round` does.
fn half_to_even(n: usize) -> usize {
    let below = n / 2;
    below + (n % 2) * (below % 2)
}

/// bytes `[n]` → `[n]` in [-1, 1]: `x / 127.5 − 1` in f32, as NumPy computes it.
pub fn to_signed_unit(bytes: &[u8]) -> Vec<f32> {
    bytes.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect()
}

/// values `[n]` in [-1, 1] → bytes `[n]`: `(x + 1) · 127.5`, truncated and clamped; NaN gives 0
/// (`vision_generation.py`).
pub fn to_u8(values: &[f32]) -> Vec<u8> {
    values.iter().map(|&x| ((x + 1.0) * 127.5) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::{RgbView, half_to_even, lwm_frame, resize_bicubic, to_signed_unit, to_u8};

    #[test]
    fn halves_round_to_even() {
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 7].map(half_to_even),
            [0, 0, 1, 2, 2, 2, 4]
        );
    }

    #[test]
    fn a_view_whose_length_does_not_fit_is_refused() {
        for (width, height, len) in [(2, 2, 11), (0, 5, 0), (usize::MAX, 3, 9), (1, 1, 4)] {
            let error = RgbView::new(width, height, &vec![0; len])
                .unwrap_err()
                .to_string();
            assert!(error.contains("expected 3 per pixel"), "{error}");
        }
    }

    #[test]
    fn the_same_size_is_a_copy() {
        let data: Vec<u8> = (0..5 * 4 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let view = RgbView::new(5, 4, &data).unwrap();
        assert_eq!(resize_bicubic(view, 5, 4), data);
    }

    #[test]
    fn a_uniform_picture_stays_uniform_at_any_size() {
        let data = vec![200; 7 * 9 * 3];
        let view = RgbView::new(7, 9, &data).unwrap();
        for (width, height) in [(1, 1), (3, 50), (64, 2), (7, 1)] {
            assert!(
                resize_bicubic(view, width, height)
                    .iter()
                    .all(|&b| b == 200),
                "{width}x{height}"
            );
        }
    }

    #[test]
    fn a_strip_of_a_hundred_thousand_rows_costs_only_its_middle() {
        let data = vec![9; 100_000 * 3];
        let frame = lwm_frame(RgbView::new(1, 100_000, &data).unwrap(), 256).unwrap();
        assert_eq!(frame.len(), 256 * 256 * 3);
        assert!(frame.iter().all(|&b| b == 9));
    }

    #[test]
    fn a_frame_is_the_centre_of_the_resized_picture() {
        let data: Vec<u8> = (0..37 * 21 * 3).map(|i| (i * i % 251) as u8).collect();
        let view = RgbView::new(37, 21, &data).unwrap();
        let whole = resize_bicubic(view, 28, 16);
        let frame = lwm_frame(view, 16).unwrap();
        for (row, whole) in frame.chunks_exact(16 * 3).zip(whole.chunks_exact(28 * 3)) {
            assert_eq!(row, &whole[6 * 3..22 * 3]);
        }
    }

    #[test]
    fn size_zero_is_an_error_not_a_panic() {
        let view = RgbView::new(1, 1, &[1, 2, 3]).unwrap();
        for size in [0, usize::MAX] {
            assert!(lwm_frame(view, size).is_err());
        }
    }

    #[test]
    fn bytes_to_floats_and_back_differ_by_the_truncation_only() {
        let bytes: Vec<u8> = (0..=255).collect();
        let back = to_u8(&to_signed_unit(&bytes));
        assert!(bytes.iter().zip(&back).all(|(&a, &b)| a - b <= 1));
        assert_eq!(
            to_u8(&[-2.0, 2.0, f32::NAN, f32::INFINITY, 0.0]),
            [0, 255, 0, 255, 127]
        );
    }
}
