//! Pictures of any size to an encoder's input pixels, as transformers 5 computes them.
//!
//! Pictures are resized as torchvision does it (transformers' default since version 5), which differs
//! from Pillow 10 to 12 by one level of 255 in places, and by at most two, in noise;
//! [`PictureProcessor::with_rounding`] selects Pillow's. Pillow 13 runs the two passes in the other order where
//! a picture grows in one direction and shrinks in the other; neither rounding reproduces that.

use super::image::{Filter, Resample, RgbView, Rounding, resize_region};
use crate::{
    error::{Error, Kind, Result},
    spec::processor::{
        FilterName, Medium, Normalize, PictureSpec, ProcessorFolder, Resize, SIDE_MAX,
    },
};

/// Maximum bytes of a picture padded to a square.
const SQUARE_BYTES_MAX: usize = 1 << 30;

/// Pictures to normalized pixels.
#[derive(Debug, Clone)]
pub struct PictureProcessor {
    spec: PictureSpec,
    rounding: Rounding,
}

/// Bytes `[height, width, 3]`.
struct Rgb {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl PictureProcessor {
    /// The processor that `spec` describes.
    pub fn new(spec: PictureSpec) -> Self {
        Self {
            spec,
            rounding: Rounding::Torchvision,
        }
    }

    /// The processor of a model's folder ([`PictureSpec::of_folder`]).
    ///
    /// # Errors
    /// As there.
    pub fn of_folder(folder: &ProcessorFolder, medium: Medium) -> Result<Self> {
        PictureSpec::of_folder(folder, medium).map(Self::new)
    }

    /// Pads pictures to squares with the mean colour, as in LLaVA-1.5's training.
    pub fn padded_to_square(mut self) -> Self {
        self.spec.pad_to_square = true;
        self
    }

    /// Uses another rounding of the resize weights.
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }

    /// The specification.
    pub fn spec(&self) -> &PictureSpec {
        &self.spec
    }

    /// picture of any size → `[3, height, width]`, normalized.
    ///
    /// Height and width are [`PictureSpec::shape`] where that is fixed.
    ///
    /// # Errors
    /// When the picture would become too large.
    pub fn pixels(&self, picture: RgbView<'_>) -> Result<Vec<f32>> {
        self.sized_pixels(picture).map(|(pixels, _)| pixels)
    }

    /// [`PictureProcessor::pixels`], and their height and width.
    ///
    /// # Errors
    /// As there.
    pub fn sized_pixels(&self, picture: RgbView<'_>) -> Result<(Vec<f32>, [usize; 2])> {
        let rgb = self.bytes(picture)?;
        Ok((planes(&self.spec, &rgb.data), [rgb.height, rgb.width]))
    }

    /// picture → bytes `[height, width, 3]`, resized and cropped, and their height and width.
    ///
    /// # Errors
    /// As [`PictureProcessor::pixels`].
    pub fn shown(&self, picture: RgbView<'_>) -> Result<(Vec<u8>, [usize; 2])> {
        let rgb = self.bytes(picture)?;
        Ok((rgb.data, [rgb.height, rgb.width]))
    }

    fn bytes(&self, picture: RgbView<'_>) -> Result<Rgb> {
        if !self.spec.pad_to_square || picture.width() == picture.height() {
            return self.resized(picture);
        }
        let square = padded(picture, mean_colour(&self.spec))?;
        self.resized(RgbView::new(square.width, square.height, &square.data)?)
    }

    fn resized(&self, picture: RgbView<'_>) -> Result<Rgb> {
        let [height, width] = resized_shape(self.spec.resize, picture)?;
        let [crop_height, crop_width] = self.spec.crop.unwrap_or([height, width]);
        check_region(picture, [crop_width, crop_height])?;
        let columns = Window::new(width, crop_width);
        let rows = Window::new(height, crop_height);
        let resample = resample(self.spec.filter, self.rounding);
        let (x, y) = (columns.seen(), rows.seen());
        let seen = resize_region(picture, [width, height], x.clone(), y, resample);
        Ok(Rgb {
            width: crop_width,
            height: crop_height,
            data: columns.frame(&rows, x.len() * 3, seen),
        })
    }
}

pub(super) fn resample(filter: FilterName, rounding: Rounding) -> Resample {
    let filter = match filter {
        FilterName::Bicubic => Filter::Bicubic,
        FilterName::Bilinear => Filter::Bilinear,
    };
    Resample { filter, rounding }
}

/// A centre crop along one axis: `len` of `of` pixels, or `of` pixels centred in `len`
/// where there are fewer.
struct Window {
    of: usize,
    len: usize,
}

impl Window {
    fn new(of: usize, len: usize) -> Self {
        Self { of, len }
    }

    /// The range of existing pixels.
    fn seen(&self) -> std::ops::Range<usize> {
        let start = self.of.saturating_sub(self.len) / 2;
        start..start + self.len.min(self.of)
    }

    /// Padding pixels before them.
    fn before(&self) -> usize {
        self.len.saturating_sub(self.of) / 2
    }

    /// `seen` `[rows, stride]` centred in `[rows.len, self.len, 3]` zeros.
    fn frame(&self, rows: &Self, stride: usize, seen: Vec<u8>) -> Vec<u8> {
        if self.len <= self.of && rows.len <= rows.of {
            return seen;
        }
        let mut out = vec![0; self.len * rows.len * 3];
        let lines = out.chunks_exact_mut(self.len * 3).skip(rows.before());
        for (out, row) in lines.zip(seen.chunks_exact(stride)) {
            out[self.before() * 3..][..stride].copy_from_slice(row);
        }
        out
    }
}

/// Height and width before the crop.
fn resized_shape(resize: Resize, picture: RgbView<'_>) -> Result<[usize; 2]> {
    let (height, width) = (picture.height(), picture.width());
    let short = match resize {
        Resize::None => return Ok([height, width]),
        Resize::Exact(shape) => return Ok(shape),
        Resize::ShortestEdge(short) => short,
    };
    let long = |long: usize, over: usize| {
        let product = short.checked_mul(long).ok_or_else(|| too_large(picture))?;
        // Python's integer division is exact and rounds once; f64 does the same below 2^53.
        Ok::<_, Error>((product as f64 / over as f64) as usize)
    };
    Ok(if width <= height {
        [long(height, width)?, short]
    } else {
        [short, long(width, height)?]
    })
}

/// `TooLarge` where the crop `size` (width, height) exceeds any encoder's picture.
fn check_region(picture: RgbView<'_>, size: [usize; 2]) -> Result<()> {
    match size.iter().all(|&side| (1..=SIDE_MAX).contains(&side)) {
        true => Ok(()),
        false => Err(too_large(picture)),
    }
}

fn too_large(picture: RgbView<'_>) -> Error {
    let (width, height) = (picture.width(), picture.height());
    Error::new(
        Kind::TooLarge,
        format!("a picture of {width}x{height} pixels would become longer than {SIDE_MAX} pixels"),
    )
}

/// The mean as bytes, truncated.
fn mean_colour(spec: &PictureSpec) -> [u8; 3] {
    let [mean, _] = spec.normalize.mean_std.unwrap_or([[0.0; 3]; 2]);
    mean.map(|m| (m * 255.0) as u8)
}

/// picture in the middle of a square of `colour` (LLaVA, `expand2square`).
fn padded(picture: RgbView<'_>, colour: [u8; 3]) -> Result<Rgb> {
    let (width, height) = (picture.width(), picture.height());
    let side = width.max(height);
    let bytes = side.checked_mul(side).and_then(|n| n.checked_mul(3));
    let Some(bytes) = bytes.filter(|&n| n <= SQUARE_BYTES_MAX) else {
        return Err(Error::new(
            Kind::TooLarge,
            format!(
                "a picture of {width}x{height} pixels would be padded to {side}x{side}, expected at most {SQUARE_BYTES_MAX} bytes"
            ),
        ));
    };
    let mut data = colour.repeat(bytes / 3);
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    let rows = data.chunks_exact_mut(side * 3).skip(top);
    for (out, row) in rows.zip(picture.data().chunks_exact(width * 3)) {
        out[left * 3..][..width * 3].copy_from_slice(row);
    }
    Ok(Rgb {
        width: side,
        height: side,
        data,
    })
}

/// The normalization of one channel: `(byte · factor − mean) / std`.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    mean: f32,
    std: f32,
    factor: f32,
}

impl Scale {
    /// The scale of each channel, red first; transformers folds the factor into mean and deviation.
    pub(super) fn of(normalize: Normalize) -> [Self; 3] {
        let Normalize { rescale, mean_std } = normalize;
        let scale = |mean: f64, std: f64| match (rescale, mean_std) {
            (Some(factor), Some(_)) => Self {
                mean: mean as f32 * (1.0 / factor) as f32,
                std: std as f32 * (1.0 / factor) as f32,
                factor: 1.0,
            },
            (factor, _) => Self {
                mean: mean as f32,
                std: std as f32,
                factor: factor.unwrap_or(1.0) as f32,
            },
        };
        let [mean, std] = mean_std.unwrap_or([[0.0; 3], [1.0; 3]]);
        std::array::from_fn(|c| scale(mean[c], std[c]))
    }

    pub(super) fn of_byte(self, byte: u8) -> f32 {
        (f32::from(byte) * self.factor - self.mean) / self.std
    }
}

/// The index in an RGB pixel of the result's channel `c`.
fn source_channel(spec: &PictureSpec, c: usize) -> usize {
    if spec.flip_channels { 2 - c } else { c }
}

/// bytes `[n, 3]` → `[3, n]`.
fn planes(spec: &PictureSpec, bytes: &[u8]) -> Vec<f32> {
    let scales = Scale::of(spec.normalize);
    (0..3)
        .flat_map(|c| {
            let source = source_channel(spec, c);
            let scale = scales[c];
            bytes
                .chunks_exact(3)
                .map(move |pixel| scale.of_byte(pixel[source]))
        })
        .collect()
}
