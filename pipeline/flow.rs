//! The four nouns that cross a stage boundary: frame, encoded step, context, answer.

use crate::time::Pts;

/// Number and time of a frame in its video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameTime {
    /// Decoded frame number in presentation order, from 0.
    pub index: u64,
    /// Presentation time, from the container.
    pub pts: Pts,
    /// Presentation time of its video's first frame, in the same ticks.
    pub start: i64,
}

impl FrameTime {
    /// How long behind the first frame of its video it is shown: what models are told, what is asked
    /// for by time, and what is printed. A container's clock may begin anywhere.
    pub fn since_start(self) -> Pts {
        Pts::new(
            self.pts.ticks.saturating_sub(self.start),
            self.pts.time_base,
        )
    }

    /// [`FrameTime::since_start`] in seconds, for output only.
    pub fn seconds(self) -> f64 {
        self.since_start().seconds()
    }
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
    /// Number and presentation time.
    pub time: FrameTime,
    /// Whether it is a key frame, where decoding can start.
    pub key: bool,
    /// Whether the decoder reported damage in it.
    pub corrupt: bool,
    /// The picture.
    pub image: RgbImage,
}

/// A frame without its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameMark {
    /// Number and presentation time.
    pub time: FrameTime,
    /// Whether it is a key frame.
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

/// The frames that the vision encoder reads together, one for most encoders, and their encoding.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedStep {
    /// The frames, at least one.
    pub frames: Vec<FrameMark>,
    /// Their encoding.
    pub content: StepContent,
}

/// The encoding of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepContent {
    /// Codebook ids, row-major over the grid; no terminator.
    Codes(Vec<u32>),
    /// Features: rows in place of embeddings.
    Features(FeatureRows),
}

/// Features of one temporal step, `[rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureRows {
    /// `rows × width` numbers.
    pub rows: Vec<f32>,
    /// Numbers per row.
    pub width: usize,
    /// Rows and columns of the grid, where positions depend on it.
    pub grid: Option<[usize; 2]>,
}
