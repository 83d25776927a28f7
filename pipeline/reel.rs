//! The reel: the kept sequence of what frames became, codes or rows of numbers, with
//! their times, of one or more videos. A video is encoded once and asked for ever.
//!
//! Layout, little-endian: the 8 bytes of [`MAGIC`]; a `u32` length and that
//! many bytes of JSON ([`ReelHeader`]); then records of one size, so that the
//! end of an interrupted file is found by division:
//!
//! | bytes | content |
//! | --- | --- |
//! | 4 | index of the video in the header |
//! | 4 | flags: 1 = key frame, 2 = damaged frame |
//! | 8 | decoded frame number |
//! | 8 | PTS in ticks of the video's time base |
//! | 2 × codes | codebook ids, row-major over the grid |
//! | or 2 or 4 × rows × width | numbers in f16, bf16 or f32, row by row |
//!
//! At 256 codes a frame takes 536 bytes, 1.9 MB per hour at one frame a second; as one
//! vector of 512 numbers in f16 it takes 1048.

use std::{
    fs::{File, OpenOptions},
    io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Error, Kind, Result},
    flow::{EncodedStep, FeatureRows, FrameMark, FrameTime, StepContent},
    sources::file::VideoInfo,
    time::{Pts, TimeBase},
};

/// First bytes of every reel.
pub const MAGIC: [u8; 8] = *b"LREEL\x00\x01\n";

/// Longest header that a reader accepts, in bytes.
const HEADER_BYTES_MAX: u32 = 64 << 20;

/// Bytes of a record before its content.
pub const RECORD_HEAD_BYTES: usize = 24;

/// Most numbers of one frame.
const NUMBERS_MAX: usize = 1 << 24;

const FLAG_KEY: u32 = 1;
const FLAG_CORRUPT: u32 = 2;

/// What the records mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "WrittenHeader", into = "WrittenHeader")]
pub struct ReelHeader {
    /// The model directory that made the content.
    pub model: String,
    /// When its weights were last written, in seconds since 1970.
    pub model_modified_s: u64,
    /// What a frame is.
    pub content: ReelContent,
    /// The videos, in the order in which they were read.
    pub videos: Vec<ReelVideo>,
}

/// What a frame of a reel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReelContent {
    /// Ids of a codebook.
    Codes {
        /// Side of the code grid.
        grid: usize,
        /// Rows of the codebook; every code is below it.
        codebook: usize,
    },
    /// Rows of numbers.
    Rows(RowsOfFrame),
}

/// The numbers of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowsOfFrame {
    /// What they are.
    pub kind: RowsKind,
    /// Rows of a frame.
    pub rows: usize,
    /// Numbers of a row.
    pub width: usize,
    /// How a number is kept.
    pub dtype: RowsDtype,
}

/// What the rows of a reel are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowsKind {
    /// One vector of length one, to be compared with that of a text or a picture.
    Vectors,
    /// Features that stand in a context in place of embeddings.
    Features,
}

/// How a number of a reel is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowsDtype {
    /// 2 bytes, 11 bits of precision.
    F16,
    /// 2 bytes, 8 bits of precision, the range of f32.
    Bf16,
    /// 4 bytes.
    F32,
}

impl RowsDtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    fn write(self, numbers: &[f32], out: &mut Vec<u8>) {
        for &x in numbers {
            match self {
                Self::F16 => out.extend(f16::from_f32(x).to_le_bytes()),
                Self::Bf16 => out.extend(bf16::from_f32(x).to_le_bytes()),
                Self::F32 => out.extend(x.to_le_bytes()),
            }
        }
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

/// The header as JSON: that of codes has the form of the first reels.
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
    content: Option<RowsOfFrame>,
    videos: Vec<ReelVideo>,
}

impl From<ReelHeader> for WrittenHeader {
    fn from(header: ReelHeader) -> Self {
        let (codes, rows) = match header.content {
            ReelContent::Codes { grid, codebook } => (Some((grid, codebook)), None),
            ReelContent::Rows(rows) => (None, Some(rows)),
        };
        Self {
            model: header.model,
            model_modified_s: header.model_modified_s,
            grid: codes.map(|(grid, _)| grid),
            codebook: codes.map(|(_, codebook)| codebook),
            content: rows,
            videos: header.videos,
        }
    }
}

impl TryFrom<WrittenHeader> for ReelHeader {
    type Error = &'static str;

    fn try_from(written: WrittenHeader) -> std::result::Result<Self, Self::Error> {
        let content = match (written.grid, written.codebook, written.content) {
            (Some(grid), Some(codebook), None) => ReelContent::Codes { grid, codebook },
            (None, None, Some(rows)) => ReelContent::Rows(rows),
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

/// One source of a reel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReelVideo {
    /// The file, as it was named.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last written, in seconds since 1970.
    pub modified_s: u64,
    /// Seconds per tick of its records, `[numerator, denominator]`.
    pub time_base: [u32; 2],
    /// Length in seconds, where the container states one.
    pub duration_s: Option<f64>,
    /// How its frames were chosen, in words.
    pub sampling: String,
}

impl ReelVideo {
    /// The file that `info` is of, as it is now, its frames chosen by `sampling`.
    pub fn of(info: &VideoInfo, sampling: &str) -> Self {
        Self {
            path: absolute(&info.path).display().to_string(),
            bytes: std::fs::metadata(&info.path).map(|m| m.len()).unwrap_or(0),
            modified_s: modified_s(&info.path),
            time_base: [info.time_base.num, info.time_base.den],
            duration_s: info.duration.map(|d| d.seconds()),
            sampling: sampling.to_owned(),
        }
    }
}

/// `path` from the root, as it is named.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// When `path` was last written, in seconds since 1970; 0 when nobody knows.
pub fn modified_s(path: &Path) -> u64 {
    let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let since = modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |d| d.as_secs())
}

/// One frame of a reel.
#[derive(Debug, Clone, PartialEq)]
pub struct ReelFrame {
    /// Index into [`ReelHeader::videos`].
    pub video: usize,
    /// When it is shown.
    pub time: FrameTime,
    /// Whether decoding could have started here.
    pub key: bool,
    /// Whether the decoder reported damage in it.
    pub corrupt: bool,
    /// What it is.
    pub content: StepContent,
}

impl ReelFrame {
    /// The frame of `video` as the encode stage gives it.
    ///
    /// # Errors
    /// `Usage` for a step of several frames.
    pub fn of_step(video: usize, step: EncodedStep) -> Result<Self> {
        let &[frame] = step.frames.as_slice() else {
            let message = "the model looks at several frames together, expected one that looks at single frames";
            return Err(Error::new(Kind::Usage, message));
        };
        Ok(Self {
            video,
            time: frame.time,
            key: frame.key,
            corrupt: frame.corrupt,
            content: step.content,
        })
    }

    /// The frame as the encode stage gives it.
    pub fn into_step(self) -> EncodedStep {
        let frame = FrameMark {
            time: self.time,
            key: self.key,
            corrupt: self.corrupt,
        };
        EncodedStep {
            frames: vec![frame],
            content: self.content,
        }
    }

    /// Its codes.
    ///
    /// # Errors
    /// `BadInput` for rows of numbers.
    pub fn codes(&self) -> Result<&[u32]> {
        match &self.content {
            StepContent::Codes(codes) => Ok(codes),
            StepContent::Features(_) => Err(bad("the reel holds no codes".into())),
        }
    }

    /// Its one vector.
    ///
    /// # Errors
    /// `BadInput` for codes.
    pub fn vector(&self) -> Result<&[f32]> {
        match &self.content {
            StepContent::Features(features) => Ok(&features.rows),
            StepContent::Codes(_) => Err(bad("the reel holds no vectors".into())),
        }
    }
}

impl ReelHeader {
    /// Refuses a reel whose content is not codes of a tokenizer with this grid and codebook.
    pub fn check_codes(&self, grid: usize, codebook: usize) -> Result<()> {
        if self.content == (ReelContent::Codes { grid, codebook }) {
            return Ok(());
        }
        Err(bad(format!(
            "the reel was made by {} and has {}, this model makes {grid}x{grid} codes out of {codebook}",
            self.model, self.content
        )))
    }

    /// The numbers of a frame's vector.
    ///
    /// # Errors
    /// `BadInput` for a reel of another content.
    pub fn vectors(&self) -> Result<RowsOfFrame> {
        match self.content {
            ReelContent::Rows(rows) if rows.kind == RowsKind::Vectors => Ok(rows),
            other => Err(bad(format!(
                "the reel was made by {} and has {other}, expected vectors (made by `encode` with CLIP or SigLIP)",
                self.model
            ))),
        }
    }

    /// Bytes of one record.
    pub fn record_bytes(&self) -> usize {
        self.content.bytes().saturating_add(RECORD_HEAD_BYTES)
    }

    fn validate(&self) -> Result<()> {
        self.content.validate()?;
        for video in &self.videos {
            time_base_of(video)?;
        }
        Ok(())
    }
}

impl ReelContent {
    /// Bytes of one frame.
    fn bytes(self) -> usize {
        match self {
            Self::Codes { grid, .. } => grid.saturating_mul(grid).saturating_mul(2),
            Self::Rows(rows) => rows.numbers().saturating_mul(rows.dtype.bytes()),
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
            Self::Rows(rows) => rows.validate(),
        }
    }

    /// The bytes of `content`, which must be of this kind.
    fn write(self, content: &StepContent, out: &mut Vec<u8>) -> Result<()> {
        match (self, content) {
            (Self::Codes { grid, .. }, StepContent::Codes(codes)) if codes.len() == grid * grid => {
                for &code in codes {
                    let code = u16::try_from(code)
                        .map_err(|_| bad(format!("code {code} does not fit 16 bits")))?;
                    out.extend(code.to_le_bytes());
                }
                Ok(())
            }
            (Self::Rows(rows), StepContent::Features(features))
                if features.grid.is_none()
                    && features.width == rows.width
                    && features.rows.len() == rows.numbers() =>
            {
                rows.dtype.write(&features.rows, out);
                Ok(())
            }
            _ => {
                let message = format!("a frame is no {self}");
                Err(Error::new(Kind::Internal, message))
            }
        }
    }

    fn read(self, bytes: &[u8]) -> Result<StepContent> {
        match self {
            Self::Codes { codebook, .. } => codes_of(bytes, codebook).map(StepContent::Codes),
            Self::Rows(rows) => rows.read(bytes).map(StepContent::Features),
        }
    }
}

impl std::fmt::Display for ReelContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Codes { grid, codebook } => write!(f, "{grid}x{grid} codes out of {codebook}"),
            Self::Rows(RowsOfFrame {
                kind: RowsKind::Vectors,
                width,
                ..
            }) => write!(f, "vectors of {width} numbers"),
            Self::Rows(rows) => write!(f, "features of {}x{} numbers", rows.rows, rows.width),
        }
    }
}

impl RowsOfFrame {
    /// Numbers of one frame.
    pub fn numbers(&self) -> usize {
        self.rows.saturating_mul(self.width)
    }

    fn validate(&self) -> Result<()> {
        if self.numbers() == 0 || self.numbers() > NUMBERS_MAX {
            return Err(bad(format!(
                "a frame has {} rows of {} numbers, expected 1 to {NUMBERS_MAX} numbers",
                self.rows, self.width
            )));
        }
        if self.kind == RowsKind::Vectors && self.rows != 1 {
            return Err(bad(format!(
                "a frame has {} vectors, expected one",
                self.rows
            )));
        }
        Ok(())
    }

    fn read(&self, bytes: &[u8]) -> Result<FeatureRows> {
        let rows = self.dtype.read(bytes);
        if rows.iter().all(|x| x.is_finite()) {
            let width = self.width;
            return Ok(FeatureRows {
                rows,
                width,
                grid: None,
            });
        }
        Err(bad("a number of it is infinite or none".into()))
    }
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

/// Whether the file at `path` starts like a reel.
pub fn is_reel(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(path)
        .and_then(|mut f| f.read_exact(&mut magic))
        .is_ok()
        && magic == MAGIC
}

/// Appends frames to `PATH.partial`; [`ReelWriter::finish`] renames it to `PATH`.
///
/// A stopped run leaves the partial file, and the next run with the same
/// header goes on behind its last whole record.
pub struct ReelWriter {
    header: ReelHeader,
    file: BufWriter<File>,
    partial: PathBuf,
    path: PathBuf,
    n_frames: u64,
}

impl ReelWriter {
    /// Opens a reel for `header`, resuming a partial file that has the same header.
    ///
    /// # Errors
    /// `Usage` when the partial file belongs to another job and `force` is not
    /// given, or another process writes it; `Io` when the place cannot be written.
    pub fn open(path: &Path, header: ReelHeader, force: bool) -> Result<Self> {
        header.validate()?;
        let partial = partial_path(path);
        let doing = || format!("open the reel {}", partial.display());
        let resumed = resumable_frames(&partial, &header);
        if resumed.is_none() && !force && has_frames(&partial) {
            let message = "it belongs to another job, expected the same videos, sampling and model (--force replaces it)";
            return Err(Error::new(Kind::Usage, message).doing(doing()));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&partial).doing(doing)?;
        if file.try_lock().is_err() {
            let message = "another process is writing it";
            return Err(Error::new(Kind::Usage, message).doing(doing()));
        }
        let head = header_bytes(&header)?;
        let n_frames = resumed.unwrap_or(0);
        let records = n_frames * header.record_bytes() as u64;
        if resumed.is_none() {
            file.set_len(0).doing(doing)?;
            file.write_all(&head).doing(doing)?;
        }
        file.set_len(head.len() as u64 + records).doing(doing)?;
        file.seek(SeekFrom::End(0)).doing(doing)?;
        Ok(Self {
            header,
            file: BufWriter::new(file),
            partial,
            path: path.to_owned(),
            n_frames,
        })
    }

    /// Where the unfinished reel lies.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Frames in the file, those of the resumed part included.
    pub fn n_frames(&self) -> u64 {
        self.n_frames
    }

    /// Appends one frame.
    pub fn append(&mut self, frame: &ReelFrame) -> Result<()> {
        let mut record = Vec::with_capacity(self.header.record_bytes());
        let flags =
            if frame.key { FLAG_KEY } else { 0 } | if frame.corrupt { FLAG_CORRUPT } else { 0 };
        let video = u32::try_from(frame.video).map_err(|_| bad("more than 2^32 videos".into()))?;
        record.extend(video.to_le_bytes());
        record.extend(flags.to_le_bytes());
        record.extend(frame.time.index.to_le_bytes());
        record.extend(frame.time.pts.ticks.to_le_bytes());
        self.header.content.write(&frame.content, &mut record)?;
        self.file
            .write_all(&record)
            .doing(|| format!("write {}", self.partial.display()))?;
        self.n_frames += 1;
        Ok(())
    }

    /// Hands what was appended to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.file
            .flush()
            .doing(|| format!("write {}", self.partial.display()))
    }

    /// Writes everything out and gives the file its final name.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.file
            .get_ref()
            .sync_all()
            .doing(|| format!("write {}", self.partial.display()))?;
        std::fs::rename(&self.partial, &self.path)
            .doing(|| format!("write {}", self.path.display()))
    }
}

impl Drop for ReelWriter {
    /// A partial reel without a frame is of no use to the next run.
    fn drop(&mut self) {
        if self.n_frames == 0 {
            // It may be gone already; nothing depends on it.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// Reads a reel frame by frame.
pub struct ReelReader {
    header: ReelHeader,
    file: BufReader<File>,
    path: PathBuf,
    data_start: u64,
    n_frames: u64,
    next: u64,
    record: Vec<u8>,
}

impl ReelReader {
    /// Opens a reel; a record that was cut short at its end is left out.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("read the reel {}", path.display());
        let mut file = BufReader::new(File::open(path).doing(doing)?);
        let bytes = file.get_ref().metadata().doing(doing)?.len();
        let header = read_header(&mut file, bytes).doing(doing)?;
        let data_start = file.stream_position().doing(doing)?;
        let n_frames = (bytes - data_start) / header.record_bytes() as u64;
        let record = vec![0; header.record_bytes()];
        Ok(Self {
            header,
            file,
            path: path.to_owned(),
            data_start,
            n_frames,
            next: 0,
            record,
        })
    }

    /// What the records mean.
    pub fn header(&self) -> &ReelHeader {
        &self.header
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whole frames in the file.
    pub fn n_frames(&self) -> u64 {
        self.n_frames
    }

    /// Fills `records` with the bytes of whole records from frame `first` on; any thread may call it at any time.
    ///
    /// # Errors
    /// `Io` when the file has fewer.
    pub fn read_records(&self, first: u64, records: &mut [u8]) -> Result<()> {
        let at = self.data_start + first * self.header.record_bytes() as u64;
        let file = self.file.get_ref();
        file.read_exact_at(records, at)
            .doing(|| format!("read frame {first} of the reel {}", self.path.display()))
    }

    /// The next frame, or `None` at the end.
    pub fn next_frame(&mut self) -> Result<Option<ReelFrame>> {
        if self.next == self.n_frames {
            return Ok(None);
        }
        let doing = || {
            format!(
                "read frame {} of the reel {}",
                self.next,
                self.path.display()
            )
        };
        self.file.read_exact(&mut self.record).doing(doing)?;
        let frame = parse_record(&self.header, &self.record).doing(doing)?;
        self.next += 1;
        Ok(Some(frame))
    }
}

/// Parses a reel held in memory: its header and every whole frame.
///
/// Arbitrary bytes give an error, never a panic.
pub fn parse(bytes: &[u8]) -> Result<(ReelHeader, Vec<ReelFrame>)> {
    let mut cursor = bytes;
    let header = read_header(&mut cursor, bytes.len() as u64)?;
    let frames = cursor
        .chunks_exact(header.record_bytes())
        .map(|r| parse_record(&header, r));
    let frames = frames.collect::<Result<Vec<_>>>()?;
    Ok((header, frames))
}

/// Where the unfinished form of `path` lies.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Whether `partial` is a reel that holds work.
fn has_frames(partial: &Path) -> bool {
    ReelReader::open(partial).is_ok_and(|reader| reader.n_frames() > 0)
}

/// Whole frames in `partial` when it exists and was made for exactly `header`.
fn resumable_frames(partial: &Path, header: &ReelHeader) -> Option<u64> {
    let reader = ReelReader::open(partial).ok()?;
    (reader.header() == header).then_some(reader.n_frames())
}

fn header_bytes(header: &ReelHeader) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(header)
        .map_err(|e| Error::with_source(Kind::Internal, "serialise the reel's header", e))?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|&l| l <= HEADER_BYTES_MAX);
    let length = length.ok_or_else(|| {
        bad(format!(
            "the header has {} bytes, expected at most {HEADER_BYTES_MAX}",
            json.len()
        ))
    })?;
    Ok([&MAGIC[..], &length.to_le_bytes(), &json].concat())
}

fn read_header(input: &mut impl Read, total_bytes: u64) -> Result<ReelHeader> {
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(bad("it does not start like a reel".into()));
    }
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > HEADER_BYTES_MAX || u64::from(length) > total_bytes {
        return Err(bad(format!(
            "its header claims {length} bytes, the file has {total_bytes}"
        )));
    }
    let mut json = vec![0; length as usize];
    input.read_exact(&mut json)?;
    let header: ReelHeader = serde_json::from_slice(&json)
        .map_err(|e| bad(format!("its header cannot be read: {e}")))?;
    header.validate()?;
    Ok(header)
}

/// The frame that a record of a reel with `header` holds.
///
/// # Errors
/// `BadInput` for what no writer writes.
pub fn parse_record(header: &ReelHeader, record: &[u8]) -> Result<ReelFrame> {
    let parts = record.split_at_checked(RECORD_HEAD_BYTES);
    let (head, content) =
        parts.ok_or_else(|| bad(format!("a record of {} bytes", record.len())))?;
    let u32_at = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
    let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
    let video = u32_at(0) as usize;
    let source = header.videos.get(video).ok_or_else(|| {
        bad(format!(
            "a frame belongs to video {video}, the header lists {}",
            header.videos.len()
        ))
    })?;
    Ok(ReelFrame {
        video,
        time: FrameTime {
            index: u64_at(8),
            pts: Pts::new(u64_at(16) as i64, time_base_of(source)?),
        },
        key: u32_at(4) & FLAG_KEY != 0,
        corrupt: u32_at(4) & FLAG_CORRUPT != 0,
        content: header.content.read(content)?,
    })
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

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
