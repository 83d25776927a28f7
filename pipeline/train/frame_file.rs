//! Frames of many videos in one file, any of which can be gone back to: bytes of red, green and blue, as the frame
//! tokenizer gets them.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use longreel_models::vision::image::{RgbView, lwm_frame, to_signed_unit};
use serde::{Deserialize, Serialize};

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    sources::{
        file::FrameReader,
        sampler::{Sampling, TimeRange},
        temporary::{persist, temporary_beside, write_whole},
    },
    stages::progress::Counter,
};

/// How many files that gave no frames are named.
const NAMED: usize = 5;

/// Which frames are kept.
#[derive(Debug, Clone)]
pub struct FrameRules {
    /// Pixels of a side.
    pub side: usize,
    /// Which frames of a video.
    pub sampling: Sampling,
    /// Most frames.
    pub frames_max: u64,
}

/// What stands beside the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Beside {
    side: usize,
    frames: u64,
    /// Files that gave no frames.
    skipped: u64,
    /// The first few of them, with the reason.
    named: Vec<String>,
}

/// The file, open.
pub struct FrameFile {
    file: File,
    beside: Beside,
}

impl FrameFile {
    /// The frames of `sources` (files, and all files of folders) in `path`; kept there by an earlier call, or decoded
    /// now. `done` counts frames.
    ///
    /// # Errors
    /// `NotFound` for a source that is not there, `BadInput` where no frame was found: a file that cannot be decoded
    /// is passed over.
    pub fn of(
        sources: &[PathBuf],
        rules: &FrameRules,
        path: &Path,
        done: &Counter,
        cancel: &Cancel,
    ) -> Result<Self> {
        let doing = || format!("open the frames {}", path.display());
        let beside_at = path.with_extension("json");
        if !beside_at.exists() {
            let beside = decode(sources, rules, path, done, cancel)?;
            let json = serde_json::to_string(&beside)
                .map_err(|e| Error::with_source(Kind::Internal, "write JSON", e))?;
            write_whole(&beside_at, json.as_bytes()).doing(doing)?;
        }
        let text = fs::read_to_string(&beside_at).doing(doing)?;
        let beside: Beside = serde_json::from_str(&text)
            .map_err(|e| Error::with_source(Kind::BadInput, "read JSON", e))
            .doing(doing)?;
        let file = File::open(path).doing(doing)?;
        let (found, expected) = (file.metadata().doing(doing)?.len(), beside.bytes());
        if beside.side != rules.side || found != expected {
            let message = format!(
                "it has {found} bytes and frames of side {}, expected {expected} and {}",
                beside.side, rules.side
            );
            return Err(Error::new(Kind::BadInput, message).doing(doing()));
        }
        Ok(Self { file, beside })
    }

    /// How many frames.
    pub fn n_frames(&self) -> u64 {
        self.beside.frames
    }

    /// Files that gave no frames, and the first few of them with the reason.
    pub fn skipped(&self) -> (u64, &[String]) {
        (self.beside.skipped, &self.beside.named)
    }

    /// numbers of frames → pixels `[n, side, side, 3]` in [-1, 1].
    ///
    /// # Errors
    /// `Io` where the file cannot be read.
    pub fn pixels(&self, numbers: &[u32]) -> Result<Tensor> {
        let side = self.beside.side;
        let bytes = side * side * 3;
        let mut all = vec![0; numbers.len() * bytes];
        for (frame, &number) in all.chunks_exact_mut(bytes).zip(numbers) {
            let at = u64::from(number) * bytes as u64;
            self.file
                .read_exact_at(frame, at)
                .doing(|| format!("read frame {number}"))?;
        }
        let pixels = to_signed_unit(&all);
        Ok(Tensor::from_vec(
            pixels,
            (numbers.len(), side, side, 3),
            &Device::Cpu,
        )?)
    }
}

impl Beside {
    fn bytes(&self) -> u64 {
        self.frames * (self.side * self.side * 3) as u64
    }
}

fn decode(
    sources: &[PathBuf],
    rules: &FrameRules,
    path: &Path,
    done: &Counter,
    cancel: &Cancel,
) -> Result<Beside> {
    let doing = || format!("write the frames {}", path.display());
    let mut beside = Beside {
        side: rules.side,
        frames: 0,
        skipped: 0,
        named: Vec::new(),
    };
    let mut out = BufWriter::new(temporary_beside(path, "").doing(doing)?);
    for source in files_of(sources)? {
        if beside.frames >= rules.frames_max {
            break;
        }
        match append(&source, rules, &mut out, &mut beside.frames, done, cancel) {
            Err(error) if error.kind() == Kind::Interrupted || error.kind() == Kind::Io => {
                return Err(error).doing(doing);
            }
            Err(error) => {
                beside.skipped += 1;
                if beside.named.len() < NAMED {
                    beside.named.push(format!("{}: {error}", source.display()));
                }
            }
            Ok(()) => {}
        }
    }
    if beside.frames == 0 {
        let why = beside
            .named
            .first()
            .map_or("there is no file", String::as_str);
        let message = format!("no frame was found: {why}");
        return Err(Error::new(Kind::BadInput, message));
    }
    if u32::try_from(beside.frames).is_err() {
        let message = format!("{} frames, expected at most {}", beside.frames, u32::MAX);
        return Err(Error::new(Kind::TooLarge, message));
    }
    let file = out.into_inner().map_err(|e| Error::from(e.into_error()));
    persist(file.doing(doing)?, path)?;
    Ok(beside)
}

/// Puts the frames of one file behind the others.
fn append(
    source: &Path,
    rules: &FrameRules,
    out: &mut impl Write,
    frames: &mut u64,
    done: &Counter,
    cancel: &Cancel,
) -> Result<()> {
    let mut reader = FrameReader::open(source, &rules.sampling, &TimeRange::ALL, cancel.clone())?;
    while *frames < rules.frames_max
        && let Some(frame) = reader.next_frame()?
    {
        cancel.check()?;
        let image = &frame.image;
        let view = RgbView::new(image.width, image.height, &image.data)?;
        out.write_all(&lwm_frame(view, rules.side)?)?;
        *frames += 1;
        done.add(1);
    }
    Ok(())
}

/// Files as they are, and those of folders by their names.
fn files_of(sources: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for source in sources {
        let doing = || format!("look into {}", source.display());
        if !fs::metadata(source).doing(doing)?.is_dir() {
            files.push(source.clone());
            continue;
        }
        let mut inside = Vec::new();
        for entry in fs::read_dir(source).doing(doing)? {
            let path = entry.doing(doing)?.path();
            inside.extend(path.is_file().then_some(path));
        }
        inside.sort_unstable();
        files.append(&mut inside);
    }
    Ok(files)
}
