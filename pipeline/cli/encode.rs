//! `longreel encode`: videos or images to a reel.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::EncodeArgs, output::Voice, resolve},
    encoder::EncoderModel,
    error::{Context, Error, Kind, Result},
    plan,
    reel::{ReelHeader, ReelVideo, ReelWriter, partial_path},
    sources::file::FrameReader,
    stages::{self, decode::Source, progress::Progress, seen::SourceSeen},
};

#[derive(Serialize)]
struct EncodeJson<'a> {
    reel: &'a Path,
    model: String,
    frames: u64,
    resumed_frames: u64,
    bytes: u64,
    video: Vec<SourceSeen>,
    seconds: Seconds,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Seconds {
    decode: f64,
    encode: f64,
    total: f64,
}

/// Runs the verb.
pub fn run(args: EncodeArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = std::time::Instant::now();
    if args.out.exists() && !args.force {
        return Err(Error::new(
            Kind::Usage,
            format!("{} exists already; --force replaces it", args.out.display()),
        ));
    }
    if args.out.is_dir() {
        let message = format!(
            "{} is a directory, expected the name of a file",
            args.out.display()
        );
        return Err(Error::new(Kind::Usage, message));
    }
    let selection = resolve::selection(&args.sampling, resolve::one_a_second()?)?;
    let sources = resolve::sources(&args.videos, &selection, cancel)?;
    let dir = resolve::model_dir(&args.model, voice, cancel)?;
    let model = EncoderModel::open(&dir)?;
    let header = header(&model, &sources)?;
    let mut writer = ReelWriter::open(&args.out, header, args.force)?;
    let resumed = writer.n_frames();
    if resumed > 0 {
        voice.note(&format!(
            "going on behind frame {resumed} of {}",
            partial_path(&args.out).display()
        ));
    }
    let progress = Progress::default();
    progress.frames_expected.add(
        stages::expected_frames(&sources)
            .unwrap_or(0)
            .saturating_sub(resumed),
    );
    let video = voice
        .show(&progress, || {
            stages::encode_to_reel(sources, &model, &mut writer, &progress, cancel)
        })
        .doing(|| format!("encode to {}", args.out.display()))?;
    for source in &video {
        voice.warn(&source.path, &source.warnings);
    }
    let frames = writer.n_frames();
    writer.finish()?;
    let result = EncodeJson {
        reel: &args.out,
        model: dir.display().to_string(),
        frames,
        resumed_frames: resumed,
        bytes: std::fs::metadata(&args.out).map(|m| m.len()).unwrap_or(0),
        video,
        seconds: Seconds {
            decode: progress.decode_busy.get().as_secs_f64(),
            encode: progress.encode_busy.get().as_secs_f64(),
            total: start.elapsed().as_secs_f64(),
        },
        peak_memory_bytes: plan::peak_memory_bytes(),
    };
    voice.say(&result, || {
        format!(
            "{frames} frames, {} in {}",
            plan::bytes(result.bytes),
            args.out.display()
        )
    })
}

fn header(model: &EncoderModel, sources: &[Source]) -> Result<ReelHeader> {
    let mut videos = Vec::new();
    for source in sources {
        match source {
            Source::Video { reader, sampling } => videos.push(reel_video(reader, sampling)),
            Source::Reel(reel) => {
                let path = reel.path().display();
                return Err(Error::new(
                    Kind::Usage,
                    format!("{path} is a reel already, expected a video or an image"),
                ));
            }
        }
    }
    Ok(ReelHeader {
        model: absolute(&model.dir).display().to_string(),
        model_modified_s: weights_modified_s(&model.dir),
        content: model.content()?,
        videos,
    })
}

fn reel_video(reader: &FrameReader, sampling: &str) -> ReelVideo {
    let info = reader.info();
    ReelVideo {
        path: absolute(&info.path).display().to_string(),
        bytes: std::fs::metadata(&info.path).map(|m| m.len()).unwrap_or(0),
        modified_s: modified_s(&info.path),
        time_base: [info.time_base.num, info.time_base.den],
        duration_s: info.duration.map(|d| d.seconds()),
        sampling: sampling.to_owned(),
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// When the youngest weights in `dir` were written; 0 when nobody knows.
pub(super) fn weights_modified_s(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = files.map(|f| f.path());
    let weights = paths.filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    weights.map(|p| modified_s(&p)).max().unwrap_or(0)
}

/// When `path` was last written, in seconds since 1970; 0 when nobody knows.
fn modified_s(path: &Path) -> u64 {
    let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let since = modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |d| d.as_secs())
}
