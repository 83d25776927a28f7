//! `longreel encode`: videos or images to a reel.

use std::{path::Path, sync::Arc, time::Instant};

use longreel_models::file_name::{FileName, as_text};
use longreel_models::{attention::kv_cache::KvDtype, systems::System};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::EncodeArgs, choosing, open, output::Voice, resolve},
    encoder::{EncoderModel, PixelBudget, StepShape, weights_modified_s},
    error::{Context, Error, Kind, Result},
    model::ModelFiles,
    plan::{self, Plan},
    prepare,
    reel::{ReelHeader, ReelVideo, ReelWriter, absolute, partial_path},
    shown::usual_sampling,
    sources::file::FrameReader,
    stages::{self, decode::Source, layout::Layout, progress::Progress, seen::SourceSeen},
};

#[derive(Serialize)]
struct EncodeJson<'a> {
    #[serde(serialize_with = "as_text")]
    reel: &'a Path,
    model: String,
    frames: u64,
    resumed_frames: u64,
    bytes: u64,
    video: Vec<SourceSeen>,
    seconds: EncodeSeconds,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct EncodeSeconds {
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
    resolve::check_free(&args.out, args.force)?;
    if args.out.is_dir() {
        let message = format!("{} is a directory, expected a file name", args.out.shown());
        return Err(Error::new(Kind::Usage, message));
    }
    let system = open::system(&args.model, voice, cancel)?;
    let budget = resolve::pixel_budget(&args.pixels);
    let (sources, chosen) = sources(&args, &system, &budget, voice, cancel)?;
    let model = EncoderModel::load(&system, &budget)?;
    let header = header(&args, &model, &sources)?;
    let mut writer = ReelWriter::open(&args.out, header, args.force)?;
    let resumed = writer.n_frames();
    if resumed > 0 {
        voice.note(&format!(
            "resuming after frame {resumed} of {}",
            partial_path(&args.out).shown()
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
        .doing(|| format!("encode to {}", args.out.shown()))?;
    for source in &video {
        voice.warn(&source.path, &source.warnings);
    }
    let frames = writer.n_frames();
    writer.finish()?;
    let result = EncodeJson {
        reel: &args.out,
        model: system.path().text().into_owned(),
        frames,
        resumed_frames: resumed,
        bytes: std::fs::metadata(&args.out).map(|m| m.len()).unwrap_or(0),
        video,
        seconds: EncodeSeconds {
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
            args.out.shown()
        )
    })
}

/// The videos, with the frames that `ask` would take of them, and the seconds spent on choosing frames by content.
fn sources(
    args: &EncodeArgs,
    system: &Arc<System>,
    budget: &PixelBudget,
    voice: Voice,
    cancel: &Cancel,
) -> Result<(Vec<Source>, Option<f64>)> {
    let selection = resolve::selection(&args.sampling, usual_sampling(system)?)?;
    let chooser = choosing::chooser(&args.sampling, None, voice, cancel)?;
    let choosing = Instant::now();
    let sources = open::sources(&args.videos, &selection, chooser.as_ref(), voice, cancel)?;
    let chosen = chooser.map(|_| choosing.elapsed().as_secs_f64());
    if !selection.is_own_rule() {
        return Ok((sources, chosen));
    }
    let plan = short_question(system, budget, &sources)?;
    let Some(fewer) = selection.fewer(&plan, sources.len()) else {
        return Ok((sources, chosen));
    };
    let (given, fit) = (plan.frames, plan.frames_that_fit);
    voice.note(&format!(
        "the model's own rule gives {given} frames, of which {fit} fit its context: {fit} are taken"
    ));
    let sources = open::sources(&args.videos, &fewer, None, voice, cancel)?;
    Ok((sources, chosen))
}

/// The plan for a short question about `sources`.
fn short_question(system: &Arc<System>, budget: &PixelBudget, sources: &[Source]) -> Result<Plan> {
    let files = ModelFiles::open(system)?;
    let n_videos = sources.iter().map(Source::n_videos).sum();
    let layout = Layout::of(&files, plan::SHORT_QUESTION, n_videos, None)?;
    let shape = StepShape::of(system, &files.spec, budget)?;
    let shape = shape.as_ref();
    let demand = prepare::demand(&files, &layout, shape, sources, KvDtype::Bf16)?;
    let plan = Plan::new(&files.spec, demand, None);
    prepare::with_frames_that_fit(plan, &layout, shape, sources)
}

fn header(args: &EncodeArgs, model: &EncoderModel, sources: &[Source]) -> Result<ReelHeader> {
    let mut videos = Vec::new();
    for source in sources {
        match source {
            Source::Video { reader, sampling } => {
                videos.push(reel_video(model, reader, sampling)?);
            }
            Source::Reel(reel) => {
                let path = reel.path().shown();
                return Err(Error::new(
                    Kind::Usage,
                    format!("{path} is a reel already, expected a video or an image"),
                ));
            }
        }
    }
    let content = model.content(args.reel_dtype.map(resolve::reel_dtype));
    Ok(ReelHeader {
        model: absolute(model.system.path()).text().into_owned(),
        model_modified_s: weights_modified_s(&model.system),
        content: content.doing(|| "--reel-dtype")?,
        videos,
    })
}

fn reel_video(model: &EncoderModel, reader: &FrameReader, sampling: &str) -> Result<ReelVideo> {
    let info = reader.info();
    let doing = || format!("encode {}", info.path.shown());
    let n_frames = reader.expected_frames().unwrap_or(1);
    let n_frames = usize::try_from(n_frames).unwrap_or(usize::MAX);
    let step = model.step([info.height, info.width], n_frames);
    let step = step.doing(doing)?;
    Ok(ReelVideo {
        step,
        shown_s: step.and_then(|_| reader.shown_seconds()),
        ..ReelVideo::of(info, reader.start(), sampling)
    })
}
