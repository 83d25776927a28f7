//! JPEG pictures to the bytes that Pillow makes of them: with libjpeg-turbo, by its slow exact
//! transform and its smooth chroma, as models' pictures were decoded when they were trained.

use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Image, PixelFormat, Subsamp};

use crate::{
    error::{Error, Kind, Result},
    flow::RgbImage,
};

/// Most scans of a progressive picture: each goes through all of it, and none needs more than some tens.
const SCANS_MAX: u32 = 500;

/// What libjpeg says of damage that it goes on behind, as Pillow does (`JWRN_` in `jerror.h`).
const WARNINGS: [&str; 5] = [
    "Corrupt JPEG data",
    "Inconsistent progression sequence",
    "Invalid SOS parameters",
    "Unknown Adobe color transform",
    "Warning: unknown JFIF revision",
];

/// Width and height in pixels as stored, and FFmpeg's name of how its colors are stored.
///
/// # Errors
/// `BadInput` for what libjpeg cannot read.
pub fn head(bytes: &[u8]) -> Result<((usize, usize), &'static str)> {
    let header = decompressor()?.read_header(bytes).map_err(unreadable)?;
    let pixel_format = match (header.colorspace, header.subsamp) {
        (Colorspace::CMYK | Colorspace::YCCK, _) => "cmyk",
        (Colorspace::RGB, _) => "rgb24",
        (Colorspace::Gray, _) => "gray",
        (Colorspace::YCbCr, Subsamp::None) => "yuvj444p",
        (Colorspace::YCbCr, Subsamp::Sub2x1) => "yuvj422p",
        (Colorspace::YCbCr, Subsamp::Sub2x2) => "yuvj420p",
        (Colorspace::YCbCr, Subsamp::Sub1x2) => "yuvj440p",
        (Colorspace::YCbCr, Subsamp::Sub4x1) => "yuvj411p",
        (Colorspace::YCbCr, _) => "yuvj",
    };
    Ok(((header.width, header.height), pixel_format))
}

/// The picture as stored, `height × width × 3` bytes of RGB, and whether it is damaged.
///
/// # Errors
/// `BadInput` for what Pillow raises at: a picture that is cut off, or beyond repair.
pub fn decode(bytes: &[u8]) -> Result<(RgbImage, bool)> {
    let mut decompressor = decompressor()?;
    let header = decompressor.read_header(bytes).map_err(unreadable)?;
    let (mut pixels, format) = room(&header);
    let image = Image {
        pixels: pixels.as_mut_slice(),
        width: header.width,
        pitch: header.width * format.size(),
        height: header.height,
        format,
    };
    let damaged = match decompressor.decompress(bytes, image) {
        Ok(()) => false,
        Err(error) => is_passed_over(error, bytes)?,
    };
    let data = match format {
        PixelFormat::CMYK => pixels.chunks_exact(4).flat_map(rgb_of_cmyk).collect(),
        _ => pixels,
    };
    let (width, height) = (header.width, header.height);
    Ok((
        RgbImage {
            width,
            height,
            data,
        },
        damaged,
    ))
}

fn decompressor() -> Result<Decompressor> {
    let mut decompressor = Decompressor::new().map_err(unreadable)?;
    decompressor.set_scan_limit(SCANS_MAX).map_err(unreadable)?;
    Ok(decompressor)
}

/// Zeros for all pixels, and what they will be: libjpeg makes no RGB of printers' colors.
fn room(header: &DecompressHeader) -> (Vec<u8>, PixelFormat) {
    let format = match header.colorspace {
        Colorspace::CMYK | Colorspace::YCCK => PixelFormat::CMYK,
        Colorspace::RGB | Colorspace::YCbCr | Colorspace::Gray => PixelFormat::RGB,
    };
    (
        vec![0; header.width * header.height * format.size()],
        format,
    )
}

/// `true` for damage that libjpeg has gone on behind; the picture is there.
///
/// Of several complaints only the first is told, so whether the end is there is looked up.
fn is_passed_over(error: turbojpeg::Error, bytes: &[u8]) -> Result<bool> {
    let said = error.to_string();
    if said.contains("Premature end of JPEG file") || !has_end(bytes) {
        let message = "the JPEG is cut off: the marker of its end is missing";
        return Err(Error::new(Kind::BadInput, message));
    }
    match WARNINGS.iter().any(|warning| said.contains(warning)) {
        true => Ok(true),
        false => Err(unreadable(error)),
    }
}

/// Whether an end of image (EOI) stands behind the last start of scan (SOS; ITU-T T.81, table B.1).
fn has_end(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|pair| pair == marker);
    last([0xff, 0xd9]) > last([0xff, 0xda])
}

fn unreadable(error: turbojpeg::Error) -> Error {
    Error::with_source(
        Kind::BadInput,
        "libjpeg-turbo cannot decode the JPEG",
        error,
    )
}

/// RGB of a pixel as JPEG files hold CMYK, inverted, by Pillow's rule (`cmyk2rgb` in its `Convert.c`).
fn rgb_of_cmyk(pixel: &[u8]) -> [u8; 3] {
    let light = u32::from(pixel[3]);
    [0, 1, 2].map(|channel| {
        let ink = 255 - u32::from(pixel[channel]);
        let product = ink * light + 128;
        (light - ((product + (product >> 8)) >> 8)) as u8
    })
}
