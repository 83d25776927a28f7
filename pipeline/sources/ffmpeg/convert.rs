//! Decoded pictures to upright RGB.

use std::ffi::c_int;

use ffmpeg_next::{self as av, ffi};

use super::{
    decode::{Coder, StreamDecoder},
    describe::is_full_range,
    names::pixel_format_name,
    scale::Scaler,
};
use crate::{
    error::{Error, Kind, Result},
    flow::RgbImage,
    sources::{info::VideoInfo, orientation::Orientation},
};

/// Converts decoded pictures to upright RGB of one size.
pub struct Converter {
    /// Orientation of pictures that do not state their own.
    orientation: Orientation,
    /// Size of the output, after rotation.
    shown: (usize, usize),
    still: bool,
    scaler: Option<(Look, Target)>,
}

/// A scaler and the picture that it fills, before rotation.
struct Target {
    scaler: Scaler,
    rgb: av::frame::Video,
    size: (usize, usize),
}

/// The properties of a picture that determine its conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    width: c_int,
    height: c_int,
    format: c_int,
    /// Index of the matrix in swscale's table.
    matrix: c_int,
    full_range: bool,
}

impl Converter {
    /// A converter to the size and orientation of `info`.
    ///
    /// A stream whose size or orientation changes midway is scaled to its initial size.
    pub fn new(info: &VideoInfo) -> Self {
        Self {
            orientation: info.orientation,
            shown: (info.width, info.height),
            still: info.still,
            scaler: None,
        }
    }

    /// Converts the last picture of `decoder`; a picture file's is moved out, so only once.
    ///
    /// # Errors
    /// `BadInput` for a picture that does not decode, or that FFmpeg cannot convert.
    pub fn convert(&mut self, decoder: &StreamDecoder) -> Result<RgbImage> {
        match &decoder.0 {
            Coder::Pictures(pictures) => Ok(self.orientation.apply(pictures.take()?)),
            Coder::Codec { picture, .. } => self.convert_picture(picture, decoder.orientation()),
        }
    }

    fn convert_picture(
        &mut self,
        picture: &av::frame::Video,
        own: Option<Orientation>,
    ) -> Result<RgbImage> {
        // A still's orientation was read from its file already, because FFmpeg reads it for some formats only.
        let orientation = own.filter(|_| !self.still).unwrap_or(self.orientation);
        let look = look(picture);
        let size = orientation.size(self.shown);
        if let Some(image) = deep_still(picture, look, size).filter(|_| self.still) {
            return Ok(orientation.apply(image));
        }
        let is_ready = |(known, target): &(Look, Target)| *known == look && target.size == size;
        if !self.scaler.as_ref().is_some_and(is_ready) {
            self.scaler = Some((look, Target::new(look, size)?));
        }
        let Some((_, target)) = &mut self.scaler else {
            return Err(Error::new(Kind::Internal, "the scaler is gone"));
        };
        target.scaler.run(picture, &mut target.rgb)?;
        Ok(orientation.apply(packed(&target.rgb, size)))
    }
}

impl Target {
    /// From `look` to RGB24 of `size`, with the look's matrix and range.
    fn new(look: Look, size: (usize, usize)) -> Result<Self> {
        let rgb = ffi::AVPixelFormat::AV_PIX_FMT_RGB24 as c_int;
        let from = (look.width, look.height, look.format);
        let to = (size.0 as c_int, size.1 as c_int, rgb);
        Ok(Self {
            scaler: Scaler::new(from, to, look.matrix, look.full_range)?,
            rgb: allocated(av::format::Pixel::RGB24, size)?,
            size,
        })
    }
}

/// A picture of 16 bits per channel reduced to the high bytes, as in Pillow, whereas swscale rounds;
/// `None` for other formats, and if the size changes.
fn deep_still(
    picture: &av::frame::Video,
    look: Look,
    (width, height): (usize, usize),
) -> Option<RgbImage> {
    if (look.width as usize, look.height as usize) != (width, height) {
        return None;
    }
    let name = pixel_format_name(look.format);
    let (layout, is_big) = match name.strip_suffix("be") {
        Some(layout) => (layout, true),
        None => (name.strip_suffix("le")?, false),
    };
    let (bytes, channels) = match layout {
        "rgb48" => (6, [0, 2, 4]),
        "rgba64" => (8, [0, 2, 4]),
        "ya16" => (4, [0, 0, 0]),
        "gray16" => (2, [0, 0, 0]),
        _ => return None,
    };
    let high = channels.map(|at| if is_big { at } else { at + 1 });
    let mut data = Vec::with_capacity(width * height * 3);
    for row in picture.data(0).chunks(picture.stride(0)).take(height) {
        for pixel in row.chunks_exact(bytes).take(width) {
            data.extend(high.map(|at| pixel[at]));
        }
    }
    Some(RgbImage {
        width,
        height,
        data,
    })
}

/// Allocates a frame.
pub(super) fn allocated(
    format: av::format::Pixel,
    (width, height): (usize, usize),
) -> Result<av::frame::Video> {
    let frame = av::frame::Video::new(format, width as u32, height as u32);
    // SAFETY: the frame is alive; this checks whether it has buffers.
    if unsafe { frame.is_empty() } {
        return Err(Error::new(
            Kind::TooLarge,
            format!("no memory for a picture of {width}x{height}"),
        ));
    }
    Ok(frame)
}

fn look(picture: &av::frame::Video) -> Look {
    // SAFETY: the frame is alive; this reads its plain fields.
    let frame = unsafe { &*picture.as_ptr() };
    Look {
        width: frame.width,
        height: frame.height,
        format: frame.format,
        matrix: frame.colorspace as c_int,
        full_range: is_full_range(frame.color_range, &pixel_format_name(frame.format)),
    }
}

/// The rows of an RGB frame without their padding.
fn packed(frame: &av::frame::Video, (width, height): (usize, usize)) -> RgbImage {
    let mut data = Vec::with_capacity(width * height * 3);
    for row in frame.data(0).chunks(frame.stride(0)).take(height) {
        data.extend_from_slice(&row[..width * 3]);
    }
    RgbImage {
        width,
        height,
        data,
    }
}
