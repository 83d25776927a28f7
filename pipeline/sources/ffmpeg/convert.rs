//! Decoded pictures to upright RGB.

use std::ffi::c_int;

use ffmpeg_next::{self as av, ffi};

use super::{
    decode::Decoder,
    describe::{is_full_range, pixel_format_name},
    scale::Scaler,
};
use crate::{
    error::{Error, Kind, Result},
    flow::RgbImage,
    sources::{info::VideoInfo, orientation::Orientation},
};

/// Turns decoded pictures into upright RGB of one size.
pub struct Converter {
    orientation: Orientation,
    /// Size before the turn.
    size: (usize, usize),
    scaler: Option<(Look, Scaler)>,
    rgb: av::frame::Video,
}

/// What of a picture decides how it is converted.
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
    /// A stream that changes its size midway is scaled to the size it began with.
    pub fn new(info: &VideoInfo) -> Result<Self> {
        let size = info.orientation.size((info.width, info.height));
        let rgb = allocated(av::format::Pixel::RGB24, size)?;
        Ok(Self {
            orientation: info.orientation,
            size,
            scaler: None,
            rgb,
        })
    }

    /// The picture that `decoder` gave last.
    pub fn convert(&mut self, decoder: &Decoder) -> Result<RgbImage> {
        let picture = &decoder.picture;
        let look = look(picture);
        if self.scaler.as_ref().is_none_or(|(known, _)| *known != look) {
            self.scaler = Some((look, to_rgb(look, self.size)?));
        }
        if let Some((_, scaler)) = &mut self.scaler {
            scaler.run(picture, &mut self.rgb)?;
        }
        Ok(self.orientation.apply(packed(&self.rgb, self.size)))
    }
}

/// From `look` to RGB24 of `size`, with the look's matrix and range.
fn to_rgb(look: Look, size: (usize, usize)) -> Result<Scaler> {
    let rgb = ffi::AVPixelFormat::AV_PIX_FMT_RGB24 as c_int;
    let from = (look.width, look.height, look.format);
    let to = (size.0 as c_int, size.1 as c_int, rgb);
    Scaler::new(from, to, look.matrix, look.full_range)
}

/// A frame with memory of its own.
pub(super) fn allocated(
    format: av::format::Pixel,
    (width, height): (usize, usize),
) -> Result<av::frame::Video> {
    let frame = av::frame::Video::new(format, width as u32, height as u32);
    // SAFETY: the frame is alive; this asks whether it has memory.
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
