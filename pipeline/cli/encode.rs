//! `longreel encode`: videos or images to a reel.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::EncodeArgs, output::Voice, resolve},
    error::{Context, Error, Kind, Result},
    model::FrameTokenizer,
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
    let (sampling, range) = resolve::sampling(&args.sampling)?;
    let dir = resolve::model_dir(&args.model, voice, cancel)?;
    let tokenizer = FrameTokenizer::open(&dir)?;
    let sources = resolve::sources(&args.videos, &sampling, &range, cancel)?;
    let header = header(&tokenizer, &sources)?;
    let mut writer = ReelWriter::open(&args.out, header)?;
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
            stages::encode_to_reel(sources, &tokenizer, &mut writer, &progress, cancel)
        })
        .doing(|| format!("encode to {}", args.out.display()))?;
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

fn header(tokenizer: &FrameTokenizer, sources: &[Source]) -> Result<ReelHeader> {
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
        model: absolute(&tokenizer.dir).display().to_string(),
        grid: tokenizer.spec.grid(),
        codebook: tokenizer.spec.num_embeddings,
        videos,
    })
}

fn reel_video(reader: &FrameReader, sampling: &str) -> ReelVideo {
    let info = reader.info();
    ReelVideo {
        path: absolute(&info.path).display().to_string(),
        time_base: [info.time_base.num, info.time_base.den],
        duration_s: info.duration.map(|d| d.seconds()),
        sampling: sampling.to_owned(),
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
