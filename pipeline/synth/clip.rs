//! A directory of clips: mp4 files, their questions, and the recipe.
//!
//! Files are written whole, under names that follow from clip numbers, so that an interrupted
//! run is resumed: existing files are kept.

use std::{
    fs,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use longreel_models::file_name::FileName;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    draw::draw,
    questions::Question,
    recipe::{Clip, Recipe, Split},
    world::Script,
};
use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    sources::{
        ffmpeg::VideoWriter,
        sampler::Rate,
        temporary::{persist, temporary_beside},
    },
    stages::progress::Counter,
    time::{Pts, TimeBase},
};

/// Maximum clips of a directory.
const CLIPS_MAX: u64 = 10_000_000;
/// Allowed picture sides, in pixels.
const SIDES: std::ops::RangeInclusive<usize> = 16..=4096;
/// Frames per second.
const RATES: std::ops::RangeInclusive<u32> = 1..=60;
/// Maximum bytes of a line of questions; a clip of ten hours has less.
const LINE_BYTES_MAX: u64 = 1 << 26;

/// The content of a directory, as in `synth.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collection {
    /// Number of clips.
    pub clips: u64,
    /// Side of the picture, in pixels.
    pub side: usize,
    /// Frames per second, a whole number, so that every whole second has a frame.
    pub fps: u32,
    /// The recipe.
    pub recipe: Recipe,
}

/// A line of `questions.jsonl`: a clip and its questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipLine {
    /// The file, relative to the directory of the list.
    pub video: String,
    /// Length in seconds.
    pub seconds: u32,
    /// Frames per second.
    pub fps: u32,
    /// Seed of its draws.
    pub seed: u64,
    /// Its split.
    pub split: Split,
    /// Its script.
    pub script: Script,
    /// Its questions.
    pub questions: Vec<Question>,
}

/// The result of writing a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipCounts {
    /// Clips that were written.
    pub written: u64,
    /// Clips that already existed.
    pub kept: u64,
}

impl Collection {
    /// Checks the options.
    ///
    /// # Errors
    /// `Usage`, naming the option, its value and the allowed ones.
    pub fn check(&self) -> Result<()> {
        let usage = |message| Err(Error::new(Kind::Usage, message));
        let Self {
            clips, side, fps, ..
        } = self;
        if !(1..=CLIPS_MAX).contains(clips) {
            return usage(format!("--clips is {clips}, expected 1 to {CLIPS_MAX}"));
        }
        if !SIDES.contains(side) || side % 2 != 0 {
            let (from, to) = (SIDES.start(), SIDES.end());
            return usage(format!(
                "--side is {side}, expected an even number from {from} to {to}"
            ));
        }
        if !RATES.contains(fps) {
            let (from, to) = (RATES.start(), RATES.end());
            return usage(format!("--fps is {fps}, expected {from} to {to}"));
        }
        self.recipe.check()
    }

    /// Frames of all clips.
    pub fn frames(&self) -> u64 {
        let of_clip = |index| self.frames_of(index);
        (0..self.clips).map(of_clip).sum()
    }

    fn frames_of(&self, index: u64) -> u64 {
        u64::from(self.recipe.seconds(index)) * u64::from(self.fps)
    }

    fn line(&self, index: u64, clip: Clip) -> ClipLine {
        ClipLine {
            video: video_name(index),
            seconds: clip.script.seconds,
            fps: self.fps,
            seed: clip.seed,
            split: self.recipe.split,
            script: clip.script,
            questions: clip.questions,
        }
    }

    /// Prepares `dir` for this collection; `force` removes files of another recipe.
    ///
    /// # Errors
    /// `Usage` where `dir` holds clips of another recipe, more clips than this, or a list of
    /// unknown origin.
    pub fn open(&self, dir: &Path, force: bool) -> Result<()> {
        self.check()?;
        let doing = || format!("make the directory {}", dir.shown());
        fs::create_dir_all(dir.join("clips")).doing(doing)?;
        match self.agrees_with(dir) {
            Err(error) if !force => return Err(error),
            Ok(()) if !force => {}
            _ => clear(dir)?,
        }
        let path = dir.join("synth.json");
        let json = serde_json::to_string_pretty(self).map_err(not_written)?;
        write_text(&path, |out| writeln!(out, "{json}").map_err(Error::from))
    }

    fn agrees_with(&self, dir: &Path) -> Result<()> {
        let path = dir.join("synth.json");
        let refuse = |what: &str| {
            let message = format!("{} {what}; --force replaces it", dir.shown());
            Err(Error::new(Kind::Usage, message))
        };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(_) if ours(dir)?.is_empty() => return Ok(()),
            Err(_) => {
                return refuse("holds clips or questions, and no synth.json that can be read");
            }
        };
        let Ok(found) = serde_json::from_str::<Self>(&text) else {
            return refuse("has a synth.json that this program did not write");
        };
        let same = Self {
            clips: self.clips,
            ..found.clone()
        };
        match found.clips {
            _ if same != *self => refuse("holds clips made with other options"),
            n if n > self.clips => refuse(&format!("holds {n} clips, more than --clips")),
            _ => Ok(()),
        }
    }

    /// Writes the clips missing in `dir`, then the questions of all; `frames` counts written frames.
    ///
    /// # Errors
    /// `Io` when writing fails, `Interrupted` when `cancel` is set; finished clips stay.
    pub fn write(&self, dir: &Path, frames: &Counter, cancel: &Cancel) -> Result<ClipCounts> {
        let written = (0..self.clips)
            .into_par_iter()
            .map(|index| self.write_clip(index, dir, frames, cancel))
            .try_reduce(|| 0, |a, b| Ok(a + b))?;
        self.write_questions(dir, cancel)?;
        Ok(ClipCounts {
            written,
            kept: self.clips - written,
        })
    }

    /// Returns the number of clips written: 1, or 0 for an existing one.
    fn write_clip(&self, index: u64, dir: &Path, frames: &Counter, cancel: &Cancel) -> Result<u64> {
        cancel.check()?;
        let path = dir.join(video_name(index));
        if is_there(&path) {
            frames.add(self.frames_of(index));
            return Ok(0);
        }
        let clip = self.recipe.clip(index)?;
        self.write_video(&path, &clip.script, frames, cancel)?;
        Ok(1)
    }

    /// Frame `n` is shown at exactly `n / fps` seconds.
    fn write_video(
        &self,
        path: &Path,
        script: &Script,
        frames: &Counter,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut video = VideoWriter::create(path, self.side, self.side, Rate::new(self.fps, 1)?)?;
        let time_base = TimeBase {
            num: 1,
            den: self.fps,
        };
        for n in 0..i64::from(script.seconds) * i64::from(self.fps) {
            cancel.check()?;
            video.write(&draw(script, Pts::new(n, time_base), self.side))?;
            frames.add(1);
        }
        video.finish()
    }

    fn write_questions(&self, dir: &Path, cancel: &Cancel) -> Result<()> {
        write_text(&dir.join("questions.jsonl"), |out| {
            for index in 0..self.clips {
                cancel.check()?;
                let line = self.line(index, self.recipe.clip(index)?);
                let json = serde_json::to_string(&line).map_err(not_written)?;
                writeln!(out, "{json}")?;
            }
            Ok(())
        })
    }
}

/// Calls `each` for every line of `dir/questions.jsonl`.
///
/// # Errors
/// `NotFound` where there is no such file, `BadInput` for an invalid line, naming it.
pub fn read_questions(dir: &Path, each: &mut dyn FnMut(ClipLine) -> Result<()>) -> Result<()> {
    let path = dir.join("questions.jsonl");
    let doing = || format!("read {}", path.shown());
    let mut file = BufReader::new(fs::File::open(&path).doing(doing)?);
    let mut text = String::new();
    for number in 1.. {
        text.clear();
        let n = std::io::Read::take(&mut file, LINE_BYTES_MAX).read_line(&mut text);
        if n.doing(doing)? == 0 {
            break;
        }
        each(parsed(&text).doing(|| format!("{}, line {number}", path.shown()))?)?;
    }
    Ok(())
}

/// Whether `dir` has clips, or a list of clips.
pub fn holds_clips(dir: &Path) -> bool {
    let lists = ["questions.jsonl", "synth.json"];
    let is_listed = lists.iter().any(|name| dir.join(name).exists());
    is_listed || ours(dir).is_ok_and(|ours| !ours.is_empty())
}

/// The error for a collection without questions.
pub fn no_questions(dir: &Path) -> Error {
    let message = format!("{} has no questions, expected some", dir.shown());
    Error::new(Kind::BadInput, message)
}

fn parsed(text: &str) -> Result<ClipLine> {
    let line: ClipLine = serde_json::from_str(text)
        .map_err(|e| Error::new(Kind::BadInput, format!("not a clip with questions: {e}")))?;
    line.script.check()?;
    Ok(line)
}

/// Path of clip `index` in its directory.
pub fn video_name(index: u64) -> String {
    format!("clips/{index:06}.mp4")
}

/// Files are written whole, but a power cut may leave an empty one.
fn is_there(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() > 0)
}

/// Removes the files that this program writes, and nothing else.
fn clear(dir: &Path) -> Result<()> {
    ours(dir)?
        .iter()
        .try_for_each(|path| fs::remove_file(path).doing(|| format!("remove {}", path.shown())))
}

/// The files of `dir` whose names this program gives, clips first.
fn ours(dir: &Path) -> Result<Vec<PathBuf>> {
    let clips = dir.join("clips");
    let clips = fs::read_dir(&clips).doing(|| format!("list {}", clips.shown()))?;
    let paths = clips.flatten().map(|entry| entry.path());
    let mut ours: Vec<PathBuf> = paths.filter(|path| is_clip_name(path)).collect();
    let lists = ["questions.jsonl", "synth.json"].map(|name| dir.join(name));
    ours.extend(lists.into_iter().filter(|path| path.exists()));
    Ok(ours)
}

fn is_clip_name(path: &Path) -> bool {
    let stem = path
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    let is_number = stem.len() >= 6 && stem.bytes().all(|b| b.is_ascii_digit());
    is_number && path.extension().is_some_and(|e| e == "mp4")
}

fn write_text(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<tempfile::NamedTempFile>) -> Result<()>,
) -> Result<()> {
    let doing = || format!("write {}", path.shown());
    let mut out = BufWriter::new(temporary_beside(path, ".json").doing(doing)?);
    fill(&mut out).doing(doing)?;
    let file = out.into_inner().map_err(|e| Error::from(e.into_error()));
    persist(file.doing(doing)?, path)
}

fn not_written(error: serde_json::Error) -> Error {
    Error::with_source(Kind::Internal, "write JSON", error)
}
