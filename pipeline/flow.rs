//! The four nouns that cross a stage boundary: frame, encoded step, context, answer.

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

/// A frame without its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameMark {
    /// When it is shown.
    pub time: FrameTime,
    /// Whether decoding could have started here.
    pub key: bool,
    /// Whether the decoder reported damage in it.
    pub corrupt: bool,
}

impl From<&Frame> for FrameMark {
    fn from(frame: &Frame) -> Self {
        Self {
            time: frame.time,
            key: frame.key,
            corrupt: frame.corrupt,
        }
    }
}

/// The frames that the vision encoder looked at together, one for most, and what it made of them.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedStep {
    /// The frames, at least one.
    pub frames: Vec<FrameMark>,
    /// What they are in a context.
    pub content: StepContent,
}

/// What frames are in a context.
#[derive(Debug, Clone, PartialEq)]
pub enum StepContent {
    /// Codebook ids, row-major over the grid; no terminator.
    Codes(Vec<u32>),
    /// Rows in place of embeddings.
    Features(FeatureRows),
}

/// Features of one temporal step, `[rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureRows {
    /// `rows × width` numbers.
    pub rows: Vec<f32>,
    /// Numbers of a row.
    pub width: usize,
    /// Lines and columns that the rows are, where positions count them.
    pub grid: Option<[usize; 2]>,
}
