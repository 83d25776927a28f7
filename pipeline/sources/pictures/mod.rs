//! Picture files decoded to the same bytes as Pillow: JPEG (`jpeg`), WebP and its animations
//! (`webp`); and the orientation of a picture (`exif`).
//!
//! A picture file is a video of one frame, an animation one of many. Pixels are square, whatever the file says.

pub mod exif;

mod jpeg;

mod webp;

use std::{path::Path, sync::Arc};

use self::webp::Webp;
use super::{
    info::{PIXELS_MAX, VideoInfo},
    orientation::Orientation,
    sampler::Rate,
};
use crate::{
    error::{Error, Kind, Result},
    flow::RgbImage,
    time::{Pts, TimeBase},
};

/// Milliseconds.
const TICKS_PER_SECOND: u32 = 1000;

/// The format of a picture file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One JPEG picture.
    Jpeg,
    /// A WebP picture or animation.
    Webp,
}

/// A JPEG or WebP file, in memory.
#[derive(Clone)]
pub struct PictureFile {
    form: Form,
    bytes: Arc<[u8]>,
    size: (usize, usize),
    /// FFmpeg's name of the pixel format.
    pixel_format: &'static str,
    orientation: Orientation,
    /// When each frame is shown and for how long, in milliseconds.
    times: Arc<[(i64, i64)]>,
    is_still: bool,
}

impl PictureFile {
    /// Reads the file at `path` and parses its header.
    ///
    /// # Errors
    /// `BadInput` for an invalid header or too many pixels, `Io` if the file cannot be read.
    pub fn open(path: &Path, form: Form) -> Result<Self> {
        let bytes: Arc<[u8]> = std::fs::read(path)?.into();
        let (size, pixel_format) = match form {
            Form::Jpeg => jpeg::head(&bytes)?,
            Form::Webp => Webp::open(bytes.clone())?.head(),
        };
        check_size(size)?;
        let durations = match form {
            Form::Jpeg => Vec::new(),
            Form::Webp => webp::durations_ms(&bytes),
        };
        let is_still = durations.is_empty();
        Ok(Self {
            form,
            size,
            pixel_format,
            orientation: exif::orientation(&bytes),
            bytes,
            times: if is_still {
                [(0, 1)].into()
            } else {
                one_behind_the_other(&durations)
            },
            is_still,
        })
    }

    /// Seconds per tick of all times.
    pub fn time_base() -> Result<TimeBase> {
        TimeBase::new(1, TICKS_PER_SECOND)
            .ok_or_else(|| Error::new(Kind::Internal, "milliseconds are not a valid time base"))
    }

    /// Start and duration of frame `number`, in milliseconds; `None` after the last frame.
    pub fn time_ms(&self, number: usize) -> Option<(i64, i64)> {
        self.times.get(number).copied()
    }

    /// The properties of the file, at `path`.
    ///
    /// # Errors
    /// `Internal`, which cannot happen: the time base is a valid constant.
    pub fn info(&self, path: &Path) -> Result<VideoInfo> {
        let (container, codec) = match self.form {
            Form::Jpeg => ("jpeg_pipe", "mjpeg"),
            Form::Webp => ("webp_pipe", "webp"),
        };
        let has_matrix = self.pixel_format.starts_with("yuv");
        let (width, height) = self.orientation.size(self.size);
        let time_base = Self::time_base()?;
        let total = self
            .times
            .last()
            .map_or(0, |(start, duration)| start + duration);
        let duration = (!self.is_still).then(|| Pts::new(total, time_base));
        Ok(VideoInfo {
            path: path.to_owned(),
            container: container.into(),
            codec: codec.into(),
            width,
            height,
            coded_width: self.size.0,
            coded_height: self.size.1,
            pixel_format: self.pixel_format.into(),
            orientation: self.orientation,
            sample_aspect_ratio: (1, 1),
            color_matrix: if has_matrix { "bt601" } else { "none" }.into(),
            full_range: self.form == Form::Jpeg || !has_matrix,
            time_base,
            start: Some(Pts::new(0, time_base)),
            duration,
            declared_frames: Some(self.times.len() as u64),
            average_frame_rate: self.frame_rate(total),
            n_video_streams: 1,
            stream_index: 0,
            still: self.is_still,
        })
    }

    fn frame_rate(&self, total_ms: i64) -> Option<Rate> {
        let frames = u32::try_from(self.times.len()).ok()?;
        let (num, den) = (
            frames.checked_mul(TICKS_PER_SECOND)?,
            u32::try_from(total_ms).ok()?,
        );
        (!self.is_still).then(|| Rate::new(num, den).ok())?
    }

    /// A decoder at the first frame.
    ///
    /// # Errors
    /// `BadInput` for an invalid header.
    pub fn frames(&self) -> Result<PictureFrames> {
        Ok(match self.form {
            Form::Jpeg => PictureFrames::Jpeg(self.bytes.clone()),
            Form::Webp => PictureFrames::Webp(Box::new(Webp::open(self.bytes.clone())?)),
        })
    }
}

/// The frames of a picture file, one after the other.
pub enum PictureFrames {
    /// The frame of a JPEG.
    Jpeg(Arc<[u8]>),
    /// The frames of a WebP.
    Webp(Box<Webp>),
}

impl PictureFrames {
    /// The next frame as stored, before rotation, and whether it is damaged.
    ///
    /// # Errors
    /// `BadInput` for a frame that Pillow would refuse.
    pub fn decode(&mut self) -> Result<(RgbImage, bool)> {
        match self {
            Self::Jpeg(bytes) => jpeg::decode(bytes),
            Self::Webp(webp) => Ok((webp.decode()?, false)),
        }
    }
}

/// Start and duration of consecutive frames of these durations.
fn one_behind_the_other(durations: &[i64]) -> Arc<[(i64, i64)]> {
    let mut next = 0;
    let time = |&duration: &i64| {
        let start = next;
        next += duration;
        (start, duration)
    };
    durations.iter().map(time).collect()
}

fn check_size((width, height): (usize, usize)) -> Result<()> {
    let pixels = width.saturating_mul(height) as i64;
    if (1..=PIXELS_MAX).contains(&pixels) {
        return Ok(());
    }
    let message = format!("the picture is {width}x{height}, expected 1 to {PIXELS_MAX} pixels");
    Err(Error::new(Kind::BadInput, message))
}
