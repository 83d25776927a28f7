//! The reel: the kept sequence of frame tokens, with their times, of one or
//! more videos. A video is tokenised once and asked for ever.
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
//!
//! At 256 codes a frame takes 536 bytes, 1.9 MB per hour at one frame a second.

use std::{
    fs::{File, OpenOptions},
    io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Error, Kind, Result},
    flow::{EncodedStep, FrameMark, FrameTime, StepContent},
    time::{Pts, TimeBase},
};

/// First bytes of every reel.
pub const MAGIC: [u8; 8] = *b"LREEL\x00\x01\n";

/// Longest header that a reader accepts, in bytes.
const HEADER_BYTES_MAX: u32 = 64 << 20;

/// Bytes of a record before its codes.
const RECORD_HEAD_BYTES: usize = 24;

const FLAG_KEY: u32 = 1;
const FLAG_CORRUPT: u32 = 2;

/// What the records mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReelHeader {
    /// The model directory whose VQGAN made the codes.
    pub model: String,
    /// When its weights were last written, in seconds since 1970.
    pub model_modified_s: u64,
    /// Side of the code grid.
    pub grid: usize,
    /// Rows of the codebook; every code is below it.
    pub codebook: usize,
    /// The videos, in the order in which they were read.
    pub videos: Vec<ReelVideo>,
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

/// One frame of a reel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReelFrame {
    /// Index into [`ReelHeader::videos`].
    pub video: usize,
    /// When it is shown.
    pub time: FrameTime,
    /// Whether decoding could have started here.
    pub key: bool,
    /// Whether the decoder reported damage in it.
    pub corrupt: bool,
    /// Codebook ids, row-major over the grid.
    pub codes: Vec<u32>,
}

impl ReelFrame {
    /// The frame of `video` as the encode stage gives it.
    ///
    /// # Errors
    /// `Usage` for a step of several frames, or one that is no codes.
    pub fn of_step(video: usize, step: EncodedStep) -> Result<Self> {
        match (step.frames.as_slice(), step.content) {
            (&[frame], StepContent::Codes(codes)) => Ok(Self {
                video,
                time: frame.time,
                key: frame.key,
                corrupt: frame.corrupt,
                codes,
            }),
            _ => {
                let message =
                    "the model makes no codes of single frames, expected one with a VQGAN";
                Err(Error::new(Kind::Usage, message))
            }
        }
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
            content: StepContent::Codes(self.codes),
        }
    }
}

impl ReelHeader {
    /// Refuses a reel whose codes are not those of a tokenizer with this grid and codebook.
    pub fn check_codes(&self, grid: usize, codebook: usize) -> Result<()> {
        if self.grid == grid && self.codebook == codebook {
            return Ok(());
        }
        Err(bad(format!(
            "the reel was made by {} and has {2}x{2} codes out of {3}, this model makes {1}x{1} out of {codebook}",
            self.model, grid, self.grid, self.codebook
        )))
    }

    /// Codes of one frame.
    pub fn codes_per_frame(&self) -> usize {
        self.grid.saturating_mul(self.grid)
    }

    fn record_bytes(&self) -> usize {
        self.codes_per_frame()
            .saturating_mul(2)
            .saturating_add(RECORD_HEAD_BYTES)
    }

    fn validate(&self) -> Result<()> {
        if self.grid == 0 || self.grid > 4096 {
            return Err(bad(format!("grid is {}, expected 1 to 4096", self.grid)));
        }
        if self.codebook == 0 || self.codebook > 1 << 16 {
            return Err(bad(format!(
                "codebook is {}, expected 1 to 65536",
                self.codebook
            )));
        }
        for video in &self.videos {
            time_base_of(video)?;
        }
        Ok(())
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
        if frame.codes.len() != self.header.codes_per_frame() {
            return Err(Error::new(
                Kind::Internal,
                format!(
                    "a frame has {} codes, expected {}",
                    frame.codes.len(),
                    self.header.codes_per_frame()
                ),
            ));
        }
        let mut record = Vec::with_capacity(self.header.record_bytes());
        let flags =
            if frame.key { FLAG_KEY } else { 0 } | if frame.corrupt { FLAG_CORRUPT } else { 0 };
        let video = u32::try_from(frame.video).map_err(|_| bad("more than 2^32 videos".into()))?;
        record.extend(video.to_le_bytes());
        record.extend(flags.to_le_bytes());
        record.extend(frame.time.index.to_le_bytes());
        record.extend(frame.time.pts.ticks.to_le_bytes());
        for &code in &frame.codes {
            let code = u16::try_from(code)
                .map_err(|_| bad(format!("code {code} does not fit 16 bits")))?;
            record.extend(code.to_le_bytes());
        }
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

fn parse_record(header: &ReelHeader, record: &[u8]) -> Result<ReelFrame> {
    let (head, codes) = record.split_at(RECORD_HEAD_BYTES);
    let u32_at = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
    let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
    let video = u32_at(0) as usize;
    let source = header.videos.get(video).ok_or_else(|| {
        bad(format!(
            "a frame belongs to video {video}, the header lists {}",
            header.videos.len()
        ))
    })?;
    let codes: Vec<u32> = codes
        .chunks_exact(2)
        .map(|c| u32::from(u16::from_le_bytes([c[0], c[1]])))
        .collect();
    if let Some(code) = codes.iter().find(|&&c| c as usize >= header.codebook) {
        return Err(bad(format!(
            "code {code} is outside the codebook of {} rows",
            header.codebook
        )));
    }
    Ok(ReelFrame {
        video,
        time: FrameTime {
            index: u64_at(8),
            pts: Pts::new(u64_at(16) as i64, time_base_of(source)?),
        },
        key: u32_at(4) & FLAG_KEY != 0,
        corrupt: u32_at(4) & FLAG_CORRUPT != 0,
        codes,
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
