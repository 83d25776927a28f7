//! The frames of videos in one file of pixels, decoded once; a step reads the few that it needs.
//!
//! `NAME.rgb` has `side × side × 3` bytes per frame; `NAME.json` beside it lists their videos, and exists only once
//! all frames are written.

use std::{
    fs::{self, File},
    io::{BufWriter, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
};

use candle_core::{Device, Tensor};
use crossbeam_channel::{Receiver, Sender, bounded};
use longreel_models::{
    file_name::FileName,
    vision::image::{RgbView, lwm_frame, to_signed_unit},
};
use serde::{Deserialize, Serialize};

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    sources::{
        file::FrameReader,
        sampler::{Rate, Sampling, TimeRange},
        temporary::write_whole,
    },
    stages::progress::Counter,
};

/// File extensions of videos in a folder.
const VIDEO_ENDINGS: [&str; 15] = [
    "3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts",
    "webm", "wmv",
];

/// Frames of one video that are buffered while earlier videos are written.
const WAITING: usize = 64;

/// Channels of a pixel.
pub(super) const RGB: usize = 3;

/// The frames of a file.
#[derive(Debug, Clone)]
pub struct FrameOrder<'a> {
    /// Videos, and folders whose videos are taken in order of name.
    pub paths: &'a [PathBuf],
    /// Side of a frame, in pixels.
    pub side: usize,
    /// Frames per second of video.
    pub rate: Rate,
    /// Maximum frames in total.
    pub frames_max: Option<u64>,
}

/// The content of `NAME.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FrameFileIndex {
    side: usize,
    frames: u64,
    videos: Vec<Listed>,
    skipped: Vec<Skipped>,
}

/// A video whose frames are in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    path: PathBuf,
    frames: u64,
}

/// A video that could not be read to its end; none of its frames are in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// The video.
    pub path: PathBuf,
    /// The error.
    pub reason: String,
}

/// A file of frames with random access.
#[derive(Debug)]
pub struct FrameFile {
    path: PathBuf,
    file: File,
    listing: FrameFileIndex,
}

impl FrameFile {
    /// Opens the file `name` of folder `dir`, and decodes it first if it does not exist; `done` counts decoded frames.
    ///
    /// # Errors
    /// `NotFound` for a missing path, `BadInput` where no video has a frame, `Interrupted` on request.
    pub fn open(
        dir: &Path,
        name: &str,
        order: &FrameOrder,
        done: &Counter,
        cancel: &Cancel,
    ) -> Result<Self> {
        let path = dir.join(format!("{name}.rgb"));
        let listed = dir.join(format!("{name}.json"));
        let doing = || format!("read {}", listed.shown());
        let listing = match fs::read(&listed) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::with_source(Kind::BadInput, "it is not a list of frames", e))
                .doing(doing)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let listing = decode_into(&path, order, done, cancel)?;
                let json = serde_json::to_vec_pretty(&listing)
                    .map_err(|e| Error::with_source(Kind::Internal, "write a list of frames", e))?;
                write_whole(&listed, &json).doing(|| format!("write {}", listed.shown()))?;
                listing
            }
            Err(error) => return Err(error).doing(doing),
        };
        let file = Self {
            file: File::open(&path).doing(|| format!("read {}", path.shown()))?,
            path,
            listing,
        };
        file.check(order.side)?;
        Ok(file)
    }

    fn check(&self, side: usize) -> Result<()> {
        let doing = || format!("read {}", self.path.shown());
        let bytes = self.file.metadata().doing(doing)?.len();
        let expected = self.listing.frames.saturating_mul(frame_bytes(side) as u64);
        let fits = self.listing.side == side && self.listing.frames > 0 && bytes == expected;
        if fits && u32::try_from(self.listing.frames).is_ok() {
            return Ok(());
        }
        let message = format!(
            "it has {bytes} bytes for {} frames of side {}, expected {expected} for side {side}",
            self.listing.frames, self.listing.side
        );
        Err(Error::new(Kind::BadInput, message).doing(doing()))
    }

    /// Number of frames, at least one.
    pub fn n_frames(&self) -> usize {
        self.listing.frames as usize
    }

    /// Skipped videos, each with the reason.
    pub fn skipped(&self) -> &[Skipped] {
        &self.listing.skipped
    }

    /// The frames `numbers` → pixels `[n, side, side, 3]` in [-1, 1], the input of the VQGAN.
    ///
    /// # Errors
    /// `Io` where reading fails.
    pub fn pixels(&self, numbers: impl Iterator<Item = usize>) -> Result<Tensor> {
        let side = self.listing.side;
        let mut frame = vec![0; frame_bytes(side)];
        let (mut pixels, mut n) = (Vec::new(), 0);
        for number in numbers {
            let start = number as u64 * frame.len() as u64;
            let read = self.file.read_exact_at(&mut frame, start);
            read.doing(|| format!("read frame {number} of {}", self.path.shown()))?;
            pixels.extend(to_signed_unit(&frame));
            n += 1;
        }
        Ok(Tensor::from_vec(
            pixels,
            (n, side, side, RGB),
            &Device::Cpu,
        )?)
    }
}

fn frame_bytes(side: usize) -> usize {
    side * side * RGB
}

/// The videos of `paths`: files as given, folders in order of file name.
///
/// # Errors
/// `NotFound` for a missing path, `BadInput` for a folder without a video.
fn videos_of(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut videos = Vec::new();
    for path in paths {
        let doing = || format!("find the videos of {}", path.shown());
        if !fs::metadata(path).doing(doing)?.is_dir() {
            videos.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(path).doing(doing)? {
            let path = entry.doing(doing)?.path();
            if is_video(&path) {
                found.push(path);
            }
        }
        if found.is_empty() {
            let message = format!(
                "it has no video, expected a file that ends in one of {}",
                VIDEO_ENDINGS.join(", ")
            );
            return Err(Error::new(Kind::BadInput, message).doing(doing()));
        }
        found.sort();
        videos.append(&mut found);
    }
    Ok(videos)
}

/// Whether a name is that of a video; hidden files may be unfinished ones.
fn is_video(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    if name.as_encoded_bytes().starts_with(b".") {
        return false;
    }
    let ending = path.extension().map(|e| e.to_ascii_lowercase());
    let ending = ending.as_ref().and_then(|e| e.to_str());
    ending.is_some_and(|e| VIDEO_ENDINGS.contains(&e))
}

/// The decoded frames of one video; nothing follows an error.
type Frames = Receiver<Result<Vec<u8>>>;

fn decode_into(
    path: &Path,
    order: &FrameOrder,
    done: &Counter,
    cancel: &Cancel,
) -> Result<FrameFileIndex> {
    let videos = videos_of(order.paths)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let doing = || format!("write {}", partial.shown());
    let mut writer = FrameFileWriter {
        out: BufWriter::new(File::create(&partial).doing(doing)?),
        most: order.frames_max.unwrap_or(u64::MAX),
        done,
        listing: FrameFileIndex {
            side: order.side,
            frames: 0,
            videos: Vec::new(),
            skipped: Vec::new(),
        },
    };
    let next = Mutex::new(videos.iter());
    let workers = rayon::current_num_threads().min(videos.len());
    thread::scope(|scope| {
        let (in_order, arriving) = bounded(workers);
        for _ in 0..workers {
            let (in_order, next) = (in_order.clone(), &next);
            scope.spawn(move || decode_in_turn(next, &in_order, order, cancel));
        }
        drop(in_order);
        writer.take(&arriving).doing(doing)
    })?;
    writer.finish(&partial, path)
}

/// Decodes one video after another until the receiver is dropped.
fn decode_in_turn<'v>(
    next: &Mutex<impl Iterator<Item = &'v PathBuf>>,
    in_order: &Sender<(&'v Path, Frames)>,
    order: &FrameOrder,
    cancel: &Cancel,
) {
    loop {
        let (out, frames) = bounded(WAITING);
        let path = {
            // Held while the queue is full, so that videos are queued in order.
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(path) = next.next() else {
                return;
            };
            if in_order.send((path, frames)).is_err() {
                return;
            }
            path
        };
        if let Err(error) = decode(path, order, &out, cancel) {
            // A dropped receiver needs no error.
            let _ = out.send(Err(error));
        }
    }
}

fn decode(
    path: &Path,
    order: &FrameOrder,
    out: &Sender<Result<Vec<u8>>>,
    cancel: &Cancel,
) -> Result<()> {
    let sampling = Sampling::Fps(order.rate);
    let mut reader = FrameReader::open(path, &sampling, &TimeRange::ALL, cancel.clone())?;
    while let Some(frame) = reader.next_frame()? {
        cancel.check()?;
        let image = &frame.image;
        let view = RgbView::new(image.width, image.height, &image.data)?;
        if out.send(Ok(lwm_frame(view, order.side)?)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Writes the frames of videos one after another.
struct FrameFileWriter<'a> {
    out: BufWriter<File>,
    most: u64,
    done: &'a Counter,
    listing: FrameFileIndex,
}

impl FrameFileWriter<'_> {
    fn take(&mut self, arriving: &Receiver<(&Path, Frames)>) -> Result<()> {
        for (path, frames) in arriving {
            let start = self.listing.frames;
            if start >= self.most {
                return Ok(());
            }
            match self.video(&frames)? {
                Ok(()) => self.listing.videos.push(Listed {
                    path: path.to_owned(),
                    frames: self.listing.frames - start,
                }),
                Err(error) if error.kind() == Kind::Interrupted => return Err(error),
                Err(error) => self.skip(path, start, &error)?,
            }
        }
        Ok(())
    }

    /// The inner error is the video's, the outer one is a write error.
    fn video(&mut self, frames: &Frames) -> Result<Result<()>> {
        for frame in frames {
            if self.listing.frames >= self.most {
                break;
            }
            match frame {
                Ok(frame) => self.out.write_all(&frame)?,
                Err(error) => return Ok(Err(error)),
            }
            self.listing.frames += 1;
            self.done.add(1);
        }
        Ok(Ok(()))
    }

    /// Removes the frames after the first `start`, and records the video as skipped.
    fn skip(&mut self, path: &Path, start: u64, error: &Error) -> Result<()> {
        let end = start * frame_bytes(self.listing.side) as u64;
        self.out.seek(SeekFrom::Start(end))?;
        self.out.get_ref().set_len(end)?;
        self.listing.frames = start;
        self.listing.skipped.push(Skipped {
            path: path.to_owned(),
            reason: error.to_string(),
        });
        Ok(())
    }

    fn finish(self, partial: &Path, path: &Path) -> Result<FrameFileIndex> {
        let listing = self.listing;
        if listing.frames == 0 {
            let why = match listing.skipped.first() {
                Some(skipped) => skipped.reason.clone(),
                None => "they have no frames".to_owned(),
            };
            let n = listing.videos.len() + listing.skipped.len();
            fs::remove_file(partial).doing(|| format!("remove {}", partial.shown()))?;
            let message = format!("none of {n} videos can be used: {why}");
            return Err(Error::new(Kind::BadInput, message));
        }
        let doing = || format!("write {}", path.shown());
        let file = self
            .out
            .into_inner()
            .map_err(|e| Error::from(e.into_error()));
        file.doing(doing)?.sync_all().doing(doing)?;
        fs::rename(partial, path).doing(doing)?;
        Ok(listing)
    }
}
