//! The reel file: encoded frames (codes, features or vectors) with
//! their times, of one or more videos, so that a video is encoded only once.
//!
//! Layout, little-endian: the 8 bytes of [`MAGIC`]; a `u32` length and that
//! many bytes of JSON ([`ReelHeader`]); then one record a step. All records of a
//! video have one length, which follows from the header, so that the end of an
//! interrupted file is found without a marker. Videos are in order, and frames
//! within them:
//!
//! | bytes | content |
//! | --- | --- |
//! | 4 | index of the video in the header |
//! | 4 | flags of a frame: 1 = key frame, 2 = damaged, 4 = no frame, in an incomplete last step |
//! | 8 | its decoded number |
//! | 8 | its PTS in ticks of the video's time base |
//! | 20 | each further frame of the step, likewise |
//! | 2 × codes | codebook ids, row-major over the grid |
//! | or 2 or 4 × rows × width | numbers in f16, bf16 or f32, row by row |
//!
//! A step is one frame, except for features of models that read several together. At 256
//! codes a frame takes 536 bytes, 1.9 MB per hour at one frame a second; as one vector of
//! 512 numbers in f16 it takes 1048.

mod form;

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use form::bad;
pub use form::{
    RECORD_HEAD_BYTES, RecordHead, ReelContent, ReelHeader, ReelStep, ReelVideo, RowForm,
    RowsDtype, StepRows, absolute, modified_s,
};

use longreel_models::file_name::FileName;

use crate::{
    error::{Context, Error, Kind, Result},
    flow::FrameMark,
    sources::{sampler::TimeRange, temporary::replaceable},
};

/// First bytes of every reel.
pub const MAGIC: [u8; 8] = *b"LREEL\x00\x01\n";

/// Maximum bytes of a header.
const HEADER_BYTES_MAX: u32 = 64 << 20;

/// Whether the file at `path` begins with [`MAGIC`].
pub fn is_reel(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(path)
        .and_then(|mut f| f.read_exact(&mut magic))
        .is_ok()
        && magic == MAGIC
}

/// Appends steps to `PATH.partial`; [`ReelWriter::finish`] renames it to `PATH`.
///
/// An interrupted run leaves the partial file, and the next run with the same
/// header resumes after its last whole record.
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
    /// given, or another process writes it; `Io` when writing fails.
    pub fn open(path: &Path, header: ReelHeader, force: bool) -> Result<Self> {
        header.validate()?;
        let path = &replaceable(path).doing(|| format!("write {}", path.shown()))?;
        let partial = partial_path(path);
        let doing = || format!("open the reel {}", partial.shown());
        let resumed = resumable(&partial, &header);
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
        if resumed.is_none() {
            file.set_len(0).doing(doing)?;
            file.write_all(&head).doing(doing)?;
        }
        let whole = resumed.unwrap_or_default();
        let end = head.len() as u64 + whole.bytes;
        file.set_len(end).doing(doing)?;
        file.seek(SeekFrom::End(0)).doing(doing)?;
        Ok(Self {
            header,
            file: BufWriter::new(file),
            partial,
            path: path.to_owned(),
            n_frames: whole.frames,
        })
    }

    /// The path of the unfinished reel.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Number of frames in the file, the resumed part included.
    pub fn n_frames(&self) -> u64 {
        self.n_frames
    }

    /// Appends one step.
    ///
    /// # Errors
    /// `Internal` for a step that does not fit the header, `TooLarge` for a number beyond the range of the reel's type.
    pub fn append(&mut self, step: &ReelStep) -> Result<()> {
        let record = step.record(&self.header)?;
        self.file
            .write_all(&record)
            .doing(|| format!("write {}", self.partial.shown()))?;
        self.n_frames += step.step.frames.len() as u64;
        Ok(())
    }

    /// Flushes appended records to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.file
            .flush()
            .doing(|| format!("write {}", self.partial.shown()))
    }

    /// Flushes everything and renames the file to its final name.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.file
            .get_ref()
            .sync_all()
            .doing(|| format!("write {}", self.partial.shown()))?;
        std::fs::rename(&self.partial, &self.path).doing(|| format!("write {}", self.path.shown()))
    }
}

impl Drop for ReelWriter {
    /// Removes a partial reel without frames, which is of no use to the next run.
    fn drop(&mut self) {
        if self.n_frames == 0 {
            // It may be gone already, which is fine.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// Counts of the whole records of a reel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Whole {
    records: u64,
    frames: u64,
    bytes: u64,
}

/// Reads a reel step by step.
pub struct ReelReader {
    header: ReelHeader,
    file: BufReader<File>,
    path: PathBuf,
    data_start: u64,
    whole: Whole,
    /// The range that is read.
    range: TimeRange,
    straddling: Option<String>,
    /// Frames in the range.
    n_frames: u64,
    next: u64,
    /// Video and number of the previous frame.
    before: Option<(usize, u64)>,
}

impl ReelReader {
    /// Opens a reel; an incomplete record at its end is left out.
    ///
    /// # Errors
    /// `BadInput` for a file that is not a reel, or one of features whose records are out of order.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("read the reel {}", path.shown());
        let mut file = BufReader::new(File::open(path).doing(doing)?);
        let bytes = file.get_ref().metadata().doing(doing)?.len();
        let header = read_header(&mut file, bytes).doing(doing)?;
        let data_start = file.stream_position().doing(doing)?;
        let data = bytes.saturating_sub(data_start);
        let read = |at: u64, out: &mut [u8]| file.get_ref().read_exact_at(out, data_start + at);
        let whole = whole_records(&header, data, read).doing(doing)?;
        Ok(Self {
            header,
            file,
            path: path.to_owned(),
            data_start,
            n_frames: whole.frames,
            whole,
            range: TimeRange::ALL,
            straddling: None,
            next: 0,
            before: None,
        })
    }

    /// Restricts the reel to steps that begin within `range`.
    ///
    /// # Errors
    /// `Usage` for an empty range, `BadInput` for one without a step, `Io` when reading fails.
    pub fn within(mut self, range: TimeRange) -> Result<Self> {
        let doing = format!("read the reel {}", self.path.shown());
        range.check().doing(|| doing.clone())?;
        self.range = range;
        self.n_frames = 0;
        let (mut n_frames, mut straddling) = (0, None);
        for head in self.heads() {
            let head = head?;
            n_frames += head.frames.len() as u64;
            let outside = |mark: &&FrameMark| !range.contains(mark.time.since_start());
            if let Some(mark) = head.frames.iter().find(outside) {
                straddling = Some(format!(
                    "of the part {range}, a step of {} frames has one at {}, outside of it: a reel cannot part the frames of a step",
                    head.frames.len(),
                    mark.time.since_start()
                ));
            }
        }
        self.straddling = straddling;
        if n_frames == 0 {
            let message = format!("no step of it begins {range}, expected at least one");
            return Err(Error::new(Kind::BadInput, message).doing(doing));
        }
        self.n_frames = n_frames;
        Ok(self)
    }

    /// The header.
    pub fn header(&self) -> &ReelHeader {
        &self.header
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What should be said of frames that are read although they are outside the range.
    pub fn straddling(&self) -> Option<&str> {
        self.straddling.as_deref()
    }

    /// The range that is read.
    pub fn range(&self) -> TimeRange {
        self.range
    }

    /// Number of frames in the file, or in the range.
    pub fn n_frames(&self) -> u64 {
        self.n_frames
    }

    /// Bytes of all whole records.
    pub fn record_bytes(&self) -> u64 {
        self.whole.bytes
    }

    /// The heads of all records in the range, without their contents.
    pub fn heads(&self) -> impl Iterator<Item = Result<RecordHead>> + '_ {
        let file = self.file.get_ref();
        let read = |at: u64, out: &mut [u8]| file.read_exact_at(out, self.data_start + at);
        let heads = RecordHeads::of(&self.header, self.whole.bytes, read);
        let heads = heads.map(|head| head.doing(|| format!("read the reel {}", self.path.shown())));
        heads.filter(|head| head.as_ref().map_or(true, |head| self.takes(head)))
    }

    /// Fills `records` with whole records of a reel of codes or vectors, from frame `first` on; any thread may call it.
    ///
    /// # Errors
    /// `Io` when the file has fewer, `BadInput` for a reel with records of different lengths.
    pub fn read_records(&self, first: u64, records: &mut [u8]) -> Result<()> {
        let doing = || format!("read frame {first} of the reel {}", self.path.shown());
        let at = self.data_start + first * regular_bytes(&self.header).doing(doing)?;
        let file = self.file.get_ref();
        file.read_exact_at(records, at).doing(doing)
    }

    /// The next step, or `None` at the end.
    ///
    /// # Errors
    /// `BadInput` for an invalid record, `Io` when reading fails.
    pub fn next_step(&mut self) -> Result<Option<ReelStep>> {
        while self.next < self.whole.records {
            let number = self.next;
            let step = self.read_step();
            let step =
                step.doing(|| format!("read step {number} of the reel {}", self.path.shown()))?;
            self.next += 1;
            if step.is_some() {
                return Ok(step);
            }
        }
        Ok(None)
    }

    /// Reads the next record; `None` for one outside the range.
    fn read_step(&mut self) -> Result<Option<ReelStep>> {
        let mut record = vec![0; self.header.head_bytes()];
        self.file.read_exact(&mut record)?;
        let head = RecordHead::parse(&self.header, &record)?;
        head.check_order(&mut self.before)?;
        let bytes = self.header.record_bytes(head.video)?;
        if !self.takes(&head) {
            let rest = i64::try_from(bytes - record.len()).unwrap_or(i64::MAX);
            self.file.seek_relative(rest)?;
            return Ok(None);
        }
        let of_head = record.len();
        record.resize(bytes, 0);
        self.file.read_exact(&mut record[of_head..])?;
        ReelStep::parse(&self.header, &record).map(Some)
    }

    fn takes(&self, head: &RecordHead) -> bool {
        head.start().is_none_or(|start| self.range.contains(start))
    }
}

/// Iterates over the heads of a reel's records, skipping contents by their lengths.
struct RecordHeads<'a, R> {
    header: &'a ReelHeader,
    /// Reads bytes at an offset after the header.
    read: R,
    at: u64,
    end: u64,
    before: Option<(usize, u64)>,
}

impl<'a, R: FnMut(u64, &mut [u8]) -> io::Result<()>> RecordHeads<'a, R> {
    /// The heads in `end` bytes of records.
    fn of(header: &'a ReelHeader, end: u64, read: R) -> Self {
        Self {
            header,
            read,
            at: 0,
            end,
            before: None,
        }
    }

    /// The next head; `None` where the record is incomplete.
    fn step(&mut self) -> Result<Option<RecordHead>> {
        let rest = self.end - self.at;
        let mut bytes = vec![0; self.header.head_bytes()];
        if rest < bytes.len() as u64 {
            return Ok(None);
        }
        (self.read)(self.at, &mut bytes)?;
        let head = RecordHead::parse(self.header, &bytes)?;
        let length = self.header.record_bytes(head.video)? as u64;
        if rest < length {
            return Ok(None);
        }
        head.check_order(&mut self.before)?;
        self.at += length;
        Ok(Some(head))
    }
}

impl<R: FnMut(u64, &mut [u8]) -> io::Result<()>> Iterator for RecordHeads<'_, R> {
    type Item = Result<RecordHead>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.at = self.end;
        }
        step.transpose()
    }
}

/// The whole records in `bytes` bytes of records.
fn whole_records(
    header: &ReelHeader,
    bytes: u64,
    read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Whole> {
    if let Ok(length) = regular_bytes(header) {
        let records = bytes / length;
        return Ok(Whole {
            records,
            frames: records,
            bytes: records * length,
        });
    }
    let mut heads = RecordHeads::of(header, bytes, read);
    let mut whole = Whole::default();
    for head in &mut heads {
        whole.records += 1;
        whole.frames += head?.frames.len() as u64;
    }
    let bytes = heads.at;
    Ok(Whole { bytes, ..whole })
}

/// Bytes per record of a reel of codes or vectors.
fn regular_bytes(header: &ReelHeader) -> Result<u64> {
    match header.is_regular() {
        true => header.record_bytes(0).map(|bytes| bytes as u64),
        false => Err(bad(format!(
            "the reel has {}, expected records of one length",
            header.content
        ))),
    }
}

/// Parses a reel held in memory: its header and every whole step.
///
/// Arbitrary bytes give an error, never a panic.
pub fn parse(bytes: &[u8]) -> Result<(ReelHeader, Vec<ReelStep>)> {
    let mut data = bytes;
    let header = read_header(&mut data, bytes.len() as u64)?;
    let read = |at: u64, out: &mut [u8]| {
        let mut from = usize::try_from(at).ok().and_then(|at| data.get(at..));
        from.as_mut().map_or(Ok(()), |from| from.read_exact(out))
    };
    let mut at = 0;
    let mut steps = Vec::new();
    for head in RecordHeads::of(&header, data.len() as u64, read) {
        let end = at + header.record_bytes(head?.video)?;
        let record = data.get(at..end).unwrap_or_default();
        steps.push(ReelStep::parse(&header, record)?);
        at = end;
    }
    Ok((header, steps))
}

/// The path of the unfinished reel for `path`.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Whether `partial` is a reel with frames.
fn has_frames(partial: &Path) -> bool {
    ReelReader::open(partial).is_ok_and(|reader| reader.n_frames() > 0)
}

/// The whole records of `partial`, if it exists and has exactly `header`.
fn resumable(partial: &Path, header: &ReelHeader) -> Option<Whole> {
    let reader = ReelReader::open(partial).ok()?;
    (reader.header() == header).then_some(reader.whole)
}

fn header_bytes(header: &ReelHeader) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(header)
        .map_err(|e| Error::with_source(Kind::Internal, "serialize the reel's header", e))?;
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
