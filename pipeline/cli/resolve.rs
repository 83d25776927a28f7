//! From arguments as written to what the stages run on.

use std::path::{Path, PathBuf};

use longreel_models::{attention::kv_cache::KvDtype, llama::sampler::Draw, spec::FrameEnd};

use crate::{
    cancel::Cancel,
    cli::{
        args::{DrawArgs, FrameEndArg, KvDtypeArg, SamplingArgs},
        output::Voice,
    },
    error::{Context, Error, Kind, Result},
    hub,
    reel::{self, ReelReader},
    sources::{
        file::FrameReader,
        sampler::{Sampling, TimeRange, parse_rate, parse_time},
    },
    stages::decode::Source,
};

/// Frames per second when nothing else is asked for.
const DEFAULT_RATE: &str = "1";

/// The directory of `model`: a path as it is, a name through the hub cache.
pub fn model_dir(model: &str, voice: Voice, cancel: &Cancel) -> Result<PathBuf> {
    let bar = voice.byte_bar("fetch");
    hub::resolve(
        model,
        &hub::Settings::from_env()?,
        &mut |file, done, total| bar.set(file, done, total),
        cancel,
    )
    .doing(|| format!("find the model {model}"))
}

/// Which frames, and the range they come from.
pub fn sampling(args: &SamplingArgs) -> Result<(Sampling, TimeRange)> {
    let sampling = match (&args.fps, args.frames, args.all_frames) {
        (Some(rate), ..) => Sampling::Fps(parse_rate(rate).doing(|| "--fps")?),
        (None, Some(0), _) => {
            return Err(Error::new(
                Kind::Usage,
                "--frames is 0, expected at least 1",
            ));
        }
        (None, Some(n), _) => Sampling::Uniform(n),
        (None, None, true) => Sampling::Every,
        (None, None, false) => Sampling::Fps(parse_rate(DEFAULT_RATE)?),
    };
    Ok((sampling, range(args)?))
}

/// The range that `--from` and `--to` give.
pub fn range(args: &SamplingArgs) -> Result<TimeRange> {
    let time = |flag: &'static str, text: &Option<String>| {
        text.as_deref().map(parse_time).transpose().doing(|| flag)
    };
    Ok(TimeRange {
        from: time("--from", &args.from)?,
        to: time("--to", &args.to)?,
    })
}

/// Opens every input: reels as they are, everything else as video.
pub fn sources(
    paths: &[PathBuf],
    sampling: &Sampling,
    range: &TimeRange,
    cancel: &Cancel,
) -> Result<Vec<Source>> {
    paths
        .iter()
        .map(|path| source(path, sampling, range, cancel))
        .collect()
}

fn source(path: &Path, sampling: &Sampling, range: &TimeRange, cancel: &Cancel) -> Result<Source> {
    if reel::is_reel(path) {
        return Ok(Source::Reel(ReelReader::open(path)?));
    }
    let reader = FrameReader::open(path, sampling, range, cancel.clone())?;
    Ok(Source::Video {
        reader: Box::new(reader),
        sampling: describe(sampling, range),
    })
}

/// The sampling in words, as it is echoed: `1 frame/s from 00:00:10.000`.
pub fn describe(sampling: &Sampling, range: &TimeRange) -> String {
    let mut words = match sampling {
        Sampling::Every => "every frame".to_owned(),
        Sampling::Fps(rate) => format!("{rate} frames/s"),
        Sampling::Uniform(n) => format!("{n} frames spread evenly"),
        Sampling::At(times) => format!("{} given times", times.len()),
        Sampling::Indices(numbers) => format!("{} given frame numbers", numbers.len()),
    };
    for (word, time) in [("from", range.from), ("to", range.to)] {
        if let Some(time) = time {
            words += &format!(" {word} {time}");
        }
    }
    words
}

/// How ids are drawn.
pub fn draw(args: &DrawArgs) -> Result<Draw> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(Error::new(
            Kind::Usage,
            format!("--temperature is {}, expected 0 or more", args.temperature),
        ));
    }
    if args.top_k == Some(0) {
        return Err(Error::new(Kind::Usage, "--top-k is 0, expected at least 1"));
    }
    if let Some(p) = args.top_p.filter(|&p| !(p > 0.0 && p <= 1.0)) {
        return Err(Error::new(
            Kind::Usage,
            format!("--top-p is {p}, expected more than 0 and at most 1"),
        ));
    }
    Ok(Draw {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    })
}

/// Element type of the KV cache.
pub fn kv_dtype(arg: KvDtypeArg) -> KvDtype {
    match arg {
        KvDtypeArg::F32 => KvDtype::F32,
        KvDtypeArg::Bf16 => KvDtype::Bf16,
    }
}

/// What follows a frame's codes, where the user chose.
pub fn frame_end(arg: FrameEndArg) -> FrameEnd {
    match arg {
        FrameEndArg::Upstream => FrameEnd::Upstream,
        FrameEndArg::Training => FrameEnd::Training,
    }
}
