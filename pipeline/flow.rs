//! The four nouns that cross a stage boundary: frame, frame tokens, context, answer.

use crate::time::Pts;

/// When and where a frame stands in its video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameTime {
    /// Decoded frame number in presentation order, from 0.
    pub index: u64,
    /// Presentation time, from the container.
    pub pts: Pts,
}

/// A picture: RGB, 8 bits per channel, row-major, upright, square pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height × width × 3` bytes.
    pub data: Vec<u8>,
}

/// One decoded frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When it is shown.
    pub time: FrameTime,
    /// Whether decoding could start here.
    pub key: bool,
    /// Whether the decoder reported damage in it.
    pub corrupt: bool,
    /// The picture.
    pub image: RgbImage,
}

/// One frame after the vision encoder.
#[derive(Debug, Clone)]
pub struct FrameTokens {
    /// When it is shown.
    pub time: FrameTime,
    /// Codebook ids, row-major over the grid; no terminator.
    pub codes: Vec<u32>,
}
