//! `longreel encode`: videos or images to a reel.

use std::{path::Path, time::Instant};

use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::EncodeArgs, choosing, output::Voice, resolve},
    encoder::EncoderModel,
    error::{Context, Error, Kind, Result},
    plan,
    reel::{ReelHeader, ReelVideo, ReelWriter, absolute, modified_s, partial_path},
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
    /// Opening the videos and choosing their frames by what they show.
    #[serde(skip_serializing_if = "Option::is_none")]
    choose: Option<f64>,
    decode: f64,
    encode: f64,
    total: f64,
}

/// Runs the verb.
pub fn run(args: EncodeArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = Instant::now();
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
    let chooser = choosing::chooser(&args.sampling, None, voice, cancel)?;
    let choosing = Instant::now();
    let sources = resolve::sources(&args.videos, &selection, chooser.as_ref(), voice, cancel)?;
    let chosen = chooser.map(|_| choosing.elapsed().as_secs_f64());
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
            choose: chosen,
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
            Source::Video { reader, sampling } => {
                videos.push(ReelVideo::of(reader.info(), sampling));
            }
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

/// When the youngest weights in `dir` were written; 0 when nobody knows.
pub(super) fn weights_modified_s(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = files.map(|f| f.path());
    let weights = paths.filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    weights.map(|p| modified_s(&p)).max().unwrap_or(0)
}
