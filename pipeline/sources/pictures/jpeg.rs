//! Decodes JPEG pictures to the same bytes as Pillow, with libjpeg-turbo's accurate integer
//! DCT and smooth chroma upsampling: models were trained on pictures decoded so.

use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Image, PixelFormat, Subsamp};

use crate::{
    error::{Error, Kind, Result},
    flow::RgbImage,
};

/// Upper bound of the scans of a progressive picture: real ones have some tens, and each scan costs a pass over it.
const SCANS_MAX: u32 = 500;

/// libjpeg's warnings after which decoding continues, as in Pillow (`JWRN_` in `jerror.h`).
const WARNINGS: [&str; 5] = [
    "Corrupt JPEG data",
    "Inconsistent progression sequence",
    "Invalid SOS parameters",
    "Unknown Adobe color transform",
    "Warning: unknown JFIF revision",
];

/// Width and height in pixels as stored, and FFmpeg's name of the pixel format.
///
/// # Errors
/// `BadInput` for a header that libjpeg cannot read.
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
/// `BadInput` where Pillow raises: for a picture that is truncated or cannot be decoded.
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

/// A zeroed buffer for all pixels, and their format: libjpeg does not convert CMYK to RGB.
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

/// `Ok(true)` for damage after which libjpeg decoded the rest of the picture.
///
/// libjpeg reports only its first warning, so a missing end of the file is checked separately.
fn is_passed_over(error: turbojpeg::Error, bytes: &[u8]) -> Result<bool> {
    let said = error.to_string();
    if said.contains("Premature end of JPEG file") || !has_end(bytes) {
        let message = "the JPEG is truncated: it has no end-of-image marker";
        return Err(Error::new(Kind::BadInput, message));
    }
    match WARNINGS.iter().any(|warning| said.contains(warning)) {
        true => Ok(true),
        false => Err(unreadable(error)),
    }
}

/// Whether an end of image (EOI) follows the last start of scan (SOS; ITU-T T.81, table B.1).
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

/// RGB of a CMYK pixel, which JPEG files store inverted, by Pillow's formula (`cmyk2rgb` in its `Convert.c`).
fn rgb_of_cmyk(pixel: &[u8]) -> [u8; 3] {
    let light = u32::from(pixel[3]);
    [0, 1, 2].map(|channel| {
        let ink = 255 - u32::from(pixel[channel]);
        let product = ink * light + 128;
        (light - ((product + (product >> 8)) >> 8)) as u8
    })
}
