//! Information about a file's video, known before decoding.

use std::path::PathBuf;

use longreel_models::file_name::as_text;
use serde::Serialize;

use super::{orientation::Orientation, sampler::Rate};
use crate::time::{Pts, TimeBase};

/// Maximum pixels of a picture, stored or shown: 16384 × 16384.
pub const PIXELS_MAX: i64 = 1 << 28;

/// The video stream that is read, and the file around it.
#[derive(Debug, Clone, Serialize)]
pub struct VideoInfo {
    /// The file.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// FFmpeg's name of the container, e.g. `mov,mp4,m4a,3gp,3g2,mj2`.
    pub container: String,
    /// FFmpeg's name of the codec, e.g. `h264`.
    pub codec: String,
    /// Width of every decoded frame: upright, square pixels.
    pub width: usize,
    /// Height of every decoded frame.
    pub height: usize,
    /// Width as stored.
    pub coded_width: usize,
    /// Height as stored.
    pub coded_height: usize,
    /// FFmpeg's name of the stored pixel format, e.g. `yuv420p10le`.
    pub pixel_format: String,
    /// The rotation or mirroring that makes the picture upright; it is applied.
    pub orientation: Orientation,
    /// Width to height of one stored pixel, as numerator and denominator; it is
    /// applied to the stored width, rounded down as FFmpeg's `scale=iw*sar:ih` does.
    pub sample_aspect_ratio: (u32, u32),
    /// The matrix from the stored colours to RGB: `bt601` when the file names none, as in FFmpeg.
    pub color_matrix: String,
    /// Whether the stored colours use the full range of their bits.
    pub full_range: bool,
    /// Seconds per tick of all times.
    pub time_base: TimeBase,
    /// When the stream starts, if the container says.
    pub start: Option<Pts>,
    /// How long it is shown: once the file is looked over, from its first frame to the end of its last one; before
    /// that, as the stream states it, if it does.
    pub duration: Option<Pts>,
    /// Number of frames according to the container.
    pub declared_frames: Option<u64>,
    /// Frames per second on average, if known.
    pub average_frame_rate: Option<Rate>,
    /// Number of video streams, cover pictures not counted.
    pub n_video_streams: usize,
    /// Index of this stream in the file: FFmpeg's best one.
    pub stream_index: usize,
    /// Whether the file is a still picture.
    pub still: bool,
}
