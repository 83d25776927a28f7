//! The header of a reel, and the form of its records.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use longreel_models::file_name::FileName;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Kind, Result},
    flow::{EncodedStep, FeatureRows, FrameMark, FrameTime, StepContent},
    sources::file::VideoInfo,
    time::{Pts, TimeBase},
};

/// Bytes of a record's head, for steps of one frame.
pub const RECORD_HEAD_BYTES: usize = head_bytes(1);

/// Bytes of one frame in the head of a record.
const FRAME_BYTES: usize = 20;

/// Maximum numbers of one step.
const NUMBERS_MAX: usize = 1 << 28;

/// Maximum frames of one step.
const STEP_FRAMES_MAX: usize = 64;

const FLAG_KEY: u32 = 1;
const FLAG_CORRUPT: u32 = 2;
const FLAG_NONE: u32 = 4;

/// The header, which describes the records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "WrittenHeader", into = "WrittenHeader")]
pub struct ReelHeader {
    /// The model directory that made the content.
    pub model: String,
    /// When its weights were last written, in seconds since 1970.
    pub model_modified_s: u64,
    /// The content of a step.
    pub content: ReelContent,
    /// The videos, in the order in which they were read.
    pub videos: Vec<ReelVideo>,
}

/// The content of a reel's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReelContent {
    /// One frame as ids of a codebook.
    Codes {
        /// Side of the code grid.
        grid: usize,
        /// Rows of the codebook; every code is below this.
        codebook: usize,
    },
    /// One frame as a unit vector, to be compared with that of a text or a picture.
    Vectors(RowForm),
    /// Frames as features; their number per step depends on the video ([`ReelVideo::step`]).
    Features {
        /// The form of a row.
        row: RowForm,
        /// Frames per step; the last of a video may have fewer.
        frames: usize,
        /// Digest of their encoder's weights.
        encoder: u64,
    },
}

/// The form of a row of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowForm {
    /// Numbers per row.
    pub width: usize,
    /// Element type.
    pub dtype: RowsDtype,
}

/// The element type of numbers in a reel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowsDtype {
    /// 2 bytes, 11 bits of precision, up to 65504.
    F16,
    /// 2 bytes, 8 bits of precision, the range of f32.
    Bf16,
    /// 4 bytes.
    F32,
}

/// The rows of one step of a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRows {
    /// Number of rows.
    pub rows: usize,
    /// Rows and columns of their grid, where positions depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<[usize; 2]>,
}

/// One source of a reel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReelVideo {
    /// The path of the file.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last written, in seconds since 1970.
    pub modified_s: u64,
    /// Seconds per tick of its records, `[numerator, denominator]`.
    pub time_base: [u32; 2],
    /// Presentation time of the video's first frame, in ticks; its frames' times are told from there on.
    #[serde(default)]
    pub start: i64,
    /// How long it is shown, in seconds; absent for a still picture.
    pub duration_s: Option<f64>,
    /// How its frames were chosen, in words.
    pub sampling: String,
    /// The rows of each of its steps, in a reel of features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepRows>,
    /// Its duration in seconds, in a reel of features: as the container states it, else from its first frame to
    /// one frame after its last; `None` for a still picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_s: Option<f64>,
}

/// One record: an encoded step.
#[derive(Debug, Clone, PartialEq)]
pub struct ReelStep {
    /// Index into [`ReelHeader::videos`].
    pub video: usize,
    /// The frames and their encoding.
    pub step: EncodedStep,
}

/// A record without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHead {
    /// Index into [`ReelHeader::videos`].
    pub video: usize,
    /// The frames, at least one.
    pub frames: Vec<FrameMark>,
}

/// The header as JSON; for codes in the form of the first version.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHeader {
    model: String,
    model_modified_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grid: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    codebook: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<WrittenRows>,
    videos: Vec<ReelVideo>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum WrittenRows {
    Vectors {
        rows: usize,
        width: usize,
        dtype: RowsDtype,
    },
    Features {
        frames: usize,
        width: usize,
        dtype: RowsDtype,
        encoder: u64,
    },
}

impl From<ReelContent> for Option<WrittenRows> {
    fn from(content: ReelContent) -> Self {
        match content {
            ReelContent::Codes { .. } => None,
            ReelContent::Vectors(RowForm { width, dtype }) => Some(WrittenRows::Vectors {
                rows: 1,
                width,
                dtype,
            }),
            ReelContent::Features {
                row,
                frames,
                encoder,
            } => Some(WrittenRows::Features {
                encoder,
                frames,
                width: row.width,
                dtype: row.dtype,
            }),
        }
    }
}

impl From<ReelHeader> for WrittenHeader {
    fn from(header: ReelHeader) -> Self {
        let codes = match header.content {
            ReelContent::Codes { grid, codebook } => Some((grid, codebook)),
            ReelContent::Vectors(_) | ReelContent::Features { .. } => None,
        };
        Self {
            model: header.model,
            model_modified_s: header.model_modified_s,
            grid: codes.map(|(grid, _)| grid),
            codebook: codes.map(|(_, codebook)| codebook),
            content: header.content.into(),
            videos: header.videos,
        }
    }
}

impl TryFrom<WrittenHeader> for ReelHeader {
    type Error = &'static str;

    fn try_from(written: WrittenHeader) -> std::result::Result<Self, Self::Error> {
        let content = match (written.grid, written.codebook, written.content) {
            (Some(grid), Some(codebook), None) => ReelContent::Codes { grid, codebook },
            (None, None, Some(rows)) => rows.try_into()?,
            _ => return Err("expected `grid` and `codebook`, or `content`"),
        };
        Ok(Self {
            model: written.model,
            model_modified_s: written.model_modified_s,
            content,
            videos: written.videos,
        })
    }
}

impl TryFrom<WrittenRows> for ReelContent {
    type Error = &'static str;

    fn try_from(written: WrittenRows) -> std::result::Result<Self, Self::Error> {
        match written {
            WrittenRows::Vectors {
                rows: 1,
                width,
                dtype,
            } => Ok(Self::Vectors(RowForm { width, dtype })),
            WrittenRows::Vectors { .. } => Err("a frame has several vectors, expected one"),
            WrittenRows::Features {
                frames,
                width,
                dtype,
                encoder,
            } => Ok(Self::Features {
                encoder,
                row: RowForm { width, dtype },
                frames,
            }),
        }
    }
}

impl ReelHeader {
    /// Checks that the reel has codes of this grid and codebook.
    ///
    /// # Errors
    /// `BadInput`, with what it has.
    pub fn check_codes(&self, grid: usize, codebook: usize) -> Result<()> {
        if self.content == (ReelContent::Codes { grid, codebook }) {
            return Ok(());
        }
        Err(bad(format!(
            "the reel was made by {} and has {}, this model makes {grid}x{grid} codes out of {codebook}",
            self.model, self.content
        )))
    }

    /// The form of the vectors.
    ///
    /// # Errors
    /// `BadInput` for a reel of another content.
    pub fn vectors(&self) -> Result<RowForm> {
        match self.content {
            ReelContent::Vectors(row) => Ok(row),
            other => Err(bad(format!(
                "the reel was made by {} and has {other}, expected vectors (made by `encode` with CLIP, SigLIP or another encoder of pictures)",
                self.model
            ))),
        }
    }

    /// Bytes of a record of `video`.
    ///
    /// # Errors
    /// `BadInput` for a video that is not listed.
    pub fn record_bytes(&self, video: usize) -> Result<usize> {
        let content = match self.content {
            ReelContent::Codes { grid, .. } => grid.saturating_mul(grid).saturating_mul(2),
            ReelContent::Vectors(row) => row.bytes(),
            ReelContent::Features { row, .. } => row.bytes().saturating_mul(self.rows(video)?),
        };
        Ok(content.saturating_add(self.head_bytes()))
    }

    /// Bytes of the head of a record.
    pub fn head_bytes(&self) -> usize {
        head_bytes(self.content.step_frames())
    }

    /// Whether every record has the same length and one frame.
    pub(super) fn is_regular(&self) -> bool {
        !matches!(self.content, ReelContent::Features { .. })
    }

    /// Rows per step of `video`, in a reel of features.
    fn rows(&self, video: usize) -> Result<usize> {
        let step = self.video(video)?.step;
        Ok(step.map_or(0, |step| step.rows))
    }

    fn video(&self, video: usize) -> Result<&ReelVideo> {
        self.videos.get(video).ok_or_else(|| {
            bad(format!(
                "a frame belongs to video {video}, the header lists {}",
                self.videos.len()
            ))
        })
    }

    /// # Errors
    /// `BadInput` for invalid sizes.
    pub(super) fn validate(&self) -> Result<()> {
        self.content.validate()?;
        for video in &self.videos {
            time_base_of(video)?;
            video.validate(self.content)?;
        }
        Ok(())
    }
}

impl ReelContent {
    /// Frames of a step.
    pub fn step_frames(self) -> usize {
        match self {
            Self::Codes { .. } | Self::Vectors(_) => 1,
            Self::Features { frames, .. } => frames,
        }
    }

    fn validate(self) -> Result<()> {
        match self {
            Self::Codes { grid, .. } if grid == 0 || grid > 4096 => {
                Err(bad(format!("grid is {grid}, expected 1 to 4096")))
            }
            Self::Codes { codebook, .. } if codebook == 0 || codebook > 1 << 16 => {
                Err(bad(format!("codebook is {codebook}, expected 1 to 65536")))
            }
            Self::Codes { .. } => Ok(()),
            Self::Vectors(row) => row.check(1),
            Self::Features { frames, .. } if !(1..=STEP_FRAMES_MAX).contains(&frames) => Err(bad(
                format!("a step has {frames} frames, expected 1 to {STEP_FRAMES_MAX}"),
            )),
            Self::Features { row, .. } => row.check(1),
        }
    }
}

impl std::fmt::Display for ReelContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Codes { grid, codebook } => write!(f, "{grid}x{grid} codes out of {codebook}"),
            Self::Vectors(row) => write!(f, "vectors of {} numbers", row.width),
            Self::Features { row, frames, .. } => {
                let (s, width) = (if *frames == 1 { "" } else { "s" }, row.width);
                write!(
                    f,
                    "features of {width} numbers for {frames} frame{s} a step"
                )
            }
        }
    }
}

impl ReelVideo {
    /// The file that `info` is of, as it is now, its frames chosen by `sampling`; its first frame is shown at `start` ticks.
    pub fn of(info: &VideoInfo, start: i64, sampling: &str) -> Self {
        Self {
            path: absolute(&info.path).text().into_owned(),
            bytes: std::fs::metadata(&info.path).map(|m| m.len()).unwrap_or(0),
            modified_s: modified_s(&info.path),
            time_base: [info.time_base.num, info.time_base.den],
            start,
            duration_s: info.duration.map(|d| d.seconds()),
            sampling: sampling.to_owned(),
            step: None,
            shown_s: None,
        }
    }

    /// Checks that `step` is present exactly for features.
    fn validate(&self, content: ReelContent) -> Result<()> {
        match (content, self.step) {
            (ReelContent::Features { row, .. }, Some(step)) => {
                step.check()?;
                row.check(step.rows)
            }
            (ReelContent::Features { .. }, None) => Err(bad(format!(
                "it has features and does not say how many rows a step of {} has",
                self.path
            ))),
            (_, Some(_)) => Err(bad(format!(
                "it has {content} and says how many rows a step of {} has",
                self.path
            ))),
            (_, None) => Ok(()),
        }
    }
}

/// The absolute form of `path`, as stored in reels.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// When `path` was last written, in seconds since 1970; 0 when unknown.
pub fn modified_s(path: &Path) -> u64 {
    let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let since = modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |d| d.as_secs())
}

impl StepRows {
    fn check(self) -> Result<()> {
        let Some([lines, columns]) = self.grid else {
            return Ok(());
        };
        if lines.checked_mul(columns) == Some(self.rows) {
            return Ok(());
        }
        Err(bad(format!(
            "a step has {} rows and a grid of {lines}x{columns}, expected as many",
            self.rows
        )))
    }
}

impl std::fmt::Display for StepRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.grid {
            Some([lines, columns]) => write!(f, "a grid of {lines}x{columns} for a step"),
            None => write!(f, "{} for a step", self.rows),
        }
    }
}

impl RowForm {
    fn bytes(self) -> usize {
        self.width.saturating_mul(self.dtype.bytes())
    }

    /// # Errors
    /// `BadInput` for a step with no numbers, or more than [`NUMBERS_MAX`].
    fn check(self, rows: usize) -> Result<()> {
        let width = self.width;
        match rows.saturating_mul(width) {
            1..=NUMBERS_MAX => Ok(()),
            _ => Err(bad(format!(
                "a step has {rows} rows of {width} numbers, expected 1 to {NUMBERS_MAX} numbers"
            ))),
        }
    }

    /// bytes → `[rows, width]`.
    fn read(self, bytes: &[u8], grid: Option<[usize; 2]>) -> Result<StepContent> {
        let rows = self.dtype.read(bytes);
        if !rows.iter().all(|x| x.is_finite()) {
            return Err(bad("one of its values is NaN or infinite".into()));
        }
        Ok(StepContent::Features(FeatureRows {
            rows,
            width: self.width,
            grid,
        }))
    }
}

impl RowsDtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// # Errors
    /// `TooLarge` for a number beyond the range of the type.
    fn write(self, numbers: &[f32], out: &mut Vec<u8>) -> Result<()> {
        for &x in numbers {
            let kept = match self {
                Self::F16 => f16::from_f32(x).to_f32(),
                Self::Bf16 => bf16::from_f32(x).to_f32(),
                Self::F32 => x,
            };
            if x.is_finite() && !kept.is_finite() {
                return Err(beyond(self, x));
            }
            match self {
                Self::F16 => out.extend(f16::from_f32(x).to_le_bytes()),
                Self::Bf16 => out.extend(bf16::from_f32(x).to_le_bytes()),
                Self::F32 => out.extend(x.to_le_bytes()),
            }
        }
        Ok(())
    }

    fn read(self, bytes: &[u8]) -> Vec<f32> {
        let number = |b: &[u8]| match (self, b) {
            (Self::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Self::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => f32::NAN,
        };
        bytes.chunks_exact(self.bytes()).map(number).collect()
    }
}

fn beyond(dtype: RowsDtype, x: f32) -> Error {
    let message =
        format!("a number of a step is {x}, {dtype:?} has no room for it: expected a wider type");
    Error::new(Kind::TooLarge, message)
}

impl ReelStep {
    /// Its codes.
    ///
    /// # Errors
    /// `BadInput` for features or vectors.
    pub fn codes(&self) -> Result<&[u32]> {
        match &self.step.content {
            StepContent::Codes(codes) => Ok(codes),
            StepContent::Features(_) => Err(bad("the reel holds no codes".into())),
        }
    }

    /// Its vector.
    ///
    /// # Errors
    /// `BadInput` for codes.
    pub fn vector(&self) -> Result<&[f32]> {
        match &self.step.content {
            StepContent::Features(features) => Ok(&features.rows),
            StepContent::Codes(_) => Err(bad("the reel holds no vectors".into())),
        }
    }

    /// The record of a reel with `header`.
    ///
    /// # Errors
    /// `Internal` for a step that does not fit the header; as [`RowsDtype::write`].
    pub(super) fn record(&self, header: &ReelHeader) -> Result<Vec<u8>> {
        let step = &self.step;
        let mut record = Vec::with_capacity(header.record_bytes(self.video)?);
        let video = u32::try_from(self.video).map_err(|_| bad("more than 2^32 videos".into()))?;
        record.extend(video.to_le_bytes());
        let n = header.content.step_frames();
        if !(1..=n).contains(&step.frames.len()) {
            return Err(none_of(header));
        }
        step.frames
            .iter()
            .for_each(|frame| record.extend(frame_bytes(frame)));
        for _ in step.frames.len()..n {
            record.extend(FLAG_NONE.to_le_bytes());
            record.extend([0; FRAME_BYTES - 4]);
        }
        match (header.content, &step.content) {
            (ReelContent::Codes { grid, .. }, StepContent::Codes(codes))
                if codes.len() == grid * grid =>
            {
                write_codes(codes, &mut record)?;
            }
            (ReelContent::Vectors(row), StepContent::Features(found))
                if is(found, row, StepRows::VECTOR) =>
            {
                row.dtype.write(&found.rows, &mut record)?;
            }
            (ReelContent::Features { row, .. }, StepContent::Features(found))
                if header
                    .video(self.video)?
                    .step
                    .is_some_and(|s| is(found, row, s)) =>
            {
                row.dtype.write(&found.rows, &mut record)?;
            }
            _ => return Err(none_of(header)),
        }
        Ok(record)
    }

    /// Parses a record of a reel with `header`.
    ///
    /// # Errors
    /// `BadInput` for an invalid record.
    pub fn parse(header: &ReelHeader, record: &[u8]) -> Result<Self> {
        let parts = record.split_at_checked(header.head_bytes());
        let (head, content) =
            parts.ok_or_else(|| bad(format!("a record of {} bytes", record.len())))?;
        let RecordHead { video, frames } = RecordHead::parse(header, head)?;
        let content = match header.content {
            ReelContent::Codes { codebook, .. } => StepContent::Codes(codes_of(content, codebook)?),
            ReelContent::Vectors(row) => row.read(content, None)?,
            ReelContent::Features { row, .. } => {
                let step = header.video(video)?.step;
                row.read(content, step.and_then(|step| step.grid))?
            }
        };
        Ok(Self {
            video,
            step: EncodedStep { frames, content },
        })
    }
}

impl StepRows {
    const VECTOR: Self = Self {
        rows: 1,
        grid: None,
    };
}

/// Whether `found` has the form of `expected`.
fn is(found: &FeatureRows, row: RowForm, expected: StepRows) -> bool {
    found.width == row.width
        && found.grid == expected.grid
        && found.rows.len() == expected.rows.saturating_mul(row.width)
}

fn none_of(header: &ReelHeader) -> Error {
    let message = format!("a step is none of the reel's, which has {}", header.content);
    Error::new(Kind::Internal, message)
}

impl RecordHead {
    /// # Errors
    /// `BadInput` for an unlisted video, and for frames after an invalid one.
    pub(super) fn parse(header: &ReelHeader, head: &[u8]) -> Result<Self> {
        let video = u32_at(head, 0) as usize;
        let of_video = header.video(video)?;
        let time_base = time_base_of(of_video)?;
        let frames = head.get(4..).unwrap_or_default().chunks_exact(FRAME_BYTES);
        let n = frames.clone().take_while(|f| u32_at(f, 0) & FLAG_NONE == 0);
        let n = n.count();
        let mut behind = frames.clone().skip(n);
        if n == 0 || behind.any(|f| u32_at(f, 0) != FLAG_NONE) {
            return Err(bad("a step begins without a frame, or has a gap".into()));
        }
        let frames = frames
            .take(n)
            .map(|f| frame_of(f, time_base, of_video.start))
            .collect();
        Ok(Self { video, frames })
    }

    /// Refuses a record that does not go on behind the one `before`, whose last frame had this number.
    pub(super) fn check_order(&self, before: &mut Option<(usize, u64)>) -> Result<()> {
        for frame in &self.frames {
            let here = (self.video, frame.time.index);
            if before.replace(here).is_some_and(|before| before >= here) {
                return Err(bad(format!(
                    "frame {} of video {} does not lie behind the one before it",
                    here.1, here.0
                )));
            }
        }
        Ok(())
    }

    /// When its first frame is shown, from the first one of its video on; `None` for a head without one.
    pub fn start(&self) -> Option<Pts> {
        self.frames.first().map(|frame| frame.time.since_start())
    }
}

/// Bytes of the head of a record of steps of `frames`.
const fn head_bytes(frames: usize) -> usize {
    4 + FRAME_BYTES * frames
}

fn frame_bytes(frame: &FrameMark) -> Vec<u8> {
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let flags = flag(frame.key, FLAG_KEY) | flag(frame.corrupt, FLAG_CORRUPT);
    let mut bytes = Vec::with_capacity(FRAME_BYTES);
    bytes.extend(flags.to_le_bytes());
    bytes.extend(frame.time.index.to_le_bytes());
    bytes.extend(frame.time.pts.ticks.to_le_bytes());
    bytes
}

fn frame_of(bytes: &[u8], time_base: TimeBase, start: i64) -> FrameMark {
    let flags = u32_at(bytes, 0);
    FrameMark {
        time: FrameTime {
            index: u64_at(bytes, 4),
            pts: Pts::new(u64_at(bytes, 12) as i64, time_base),
            start,
        },
        key: flags & FLAG_KEY != 0,
        corrupt: flags & FLAG_CORRUPT != 0,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let number = bytes.get(at..).and_then(<[u8]>::first_chunk);
    number.copied().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn write_codes(codes: &[u32], out: &mut Vec<u8>) -> Result<()> {
    for &code in codes {
        let code =
            u16::try_from(code).map_err(|_| bad(format!("code {code} does not fit 16 bits")))?;
        out.extend(code.to_le_bytes());
    }
    Ok(())
}

fn codes_of(bytes: &[u8], codebook: usize) -> Result<Vec<u32>> {
    let code = |b: &[u8]| u32::from(u16::from_le_bytes([b[0], b[1]]));
    let codes: Vec<u32> = bytes.chunks_exact(2).map(code).collect();
    match codes.iter().find(|&&c| c as usize >= codebook) {
        Some(code) => Err(bad(format!(
            "code {code} is outside the codebook of {codebook} rows"
        ))),
        None => Ok(codes),
    }
}

fn time_base_of(video: &ReelVideo) -> Result<TimeBase> {
    let [num, den] = video.time_base;
    TimeBase::new(num, den).ok_or_else(|| {
        bad(format!(
            "the time base of {} is {num}/{den}, expected two positive numbers",
            video.path
        ))
    })
}

pub(super) fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
