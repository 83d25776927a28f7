//! Turns arguments as written into checked values.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use longreel_models::{
    attention::kv_cache::KvDtype,
    checkpoint::writer::StoredDtype,
    file_name::FileName,
    llama::sampler::Draw,
    spec::{FrameEnd, features::AfterVideo},
};

use crate::{
    cli::args::{
        AfterVideoArg, ChoosingArgs, DrawArgs, FrameEndArg, GgufArgs, GgufProductsArg, KvDtypeArg,
        PixelArgs, ReelDtypeArg, SamplingArgs, SwitchArg, WeightDtypeArg,
    },
    encoder::PixelBudget,
    error::{Context, Error, Kind, Result},
    model::GgufProducts,
    prepare::Selection,
    ranks::Ranks,
    reel::RowsDtype,
    sources::{
        sampler::{Sampling, TimeRange, parse_rate, parse_time},
        temporary::replaceable,
    },
    stages::decode::Source,
};

/// Refuses the name of an existing file, unless it may be replaced.
pub fn check_free(out: &Path, force: bool) -> Result<()> {
    match out.exists() && !force {
        true => Err(Error::new(
            Kind::Usage,
            format!("{} exists already; --force replaces it", out.shown()),
        )),
        false if out.is_dir() => Ok(()),
        false => replaceable(out).map(drop).doing(|| out.shown().to_string()),
    }
}

/// The ranks given by `--ring` and `--ring-timeout`.
pub fn ranks(ring: Option<u16>, timeout_s: f64) -> Result<Ranks> {
    let deadline = Duration::try_from_secs_f64(timeout_s).ok();
    let deadline = deadline.filter(|d| !d.is_zero()).ok_or_else(|| {
        let message = format!("--ring-timeout is {timeout_s}, expected seconds above 0");
        Error::new(Kind::Usage, message)
    })?;
    Ranks::join(ring.map(usize::from), deadline)
}

/// `value` of `option`, which must lie in `range`.
pub fn within(option: &str, value: usize, range: RangeInclusive<usize>) -> Result<usize> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (start, end) = (range.start(), range.end());
    Err(Error::new(
        Kind::Usage,
        format!("{option} is {value}, expected {start} to {end}"),
    ))
}

/// The user's pixel budget.
pub fn pixel_budget(args: &PixelArgs) -> PixelBudget {
    PixelBudget {
        min: args.min_pixels,
        max: args.max_pixels,
    }
}

/// The choice of frames and their range; `usual` by default.
///
/// With `--sampler` these are the candidates, and `--frames` is how many of them are kept.
pub fn selection(args: &SamplingArgs, usual: Sampling) -> Result<Selection> {
    if args.frames == Some(0) {
        let message = "--frames is 0, expected at least 1";
        return Err(Error::new(Kind::Usage, message));
    }
    let is_choosing = args.choosing.sampler.is_some();
    let spread = args.frames.filter(|_| !is_choosing);
    let sampling = match (&args.fps, args.all_frames, spread) {
        (Some(_), _, Some(_)) | (_, true, Some(_)) => {
            let message =
                "--frames cannot be used with --fps or --all-frames unless --sampler is given";
            return Err(Error::new(Kind::Usage, message));
        }
        (Some(rate), ..) => Some(Sampling::Fps(parse_rate(rate).doing(|| "--fps")?)),
        (None, true, None) => Some(Sampling::Every),
        (None, false, spread) => spread.map(Sampling::Uniform),
    };
    let usual = match is_choosing {
        true => usual_candidates(&args.choosing)?,
        false => usual,
    };
    let range = range(args)?;
    let is_usual = sampling.is_none() && !is_choosing;
    Ok(Selection {
        sampling: sampling.unwrap_or(usual),
        range,
        is_usual,
    })
}

/// The candidates if no rate is given: all frames of a reel of vectors, else one per second.
fn usual_candidates(args: &ChoosingArgs) -> Result<Sampling> {
    match args.query_reel {
        Some(_) => Ok(Sampling::Every),
        None => Ok(Sampling::ONE_A_SECOND),
    }
}

/// The options that set the number of frames, for the advice in messages.
pub fn frames_option(sources: &[Source]) -> &'static str {
    let is_reel = |source: &Source| matches!(source, Source::Reel(_));
    match sources.iter().any(is_reel) {
        true => "--from and --to, or encode --frames",
        false => "--frames",
    }
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

/// Refuses a temperature that is negative, NaN or infinite.
pub fn check_temperature(temperature: f64) -> Result<()> {
    if temperature.is_finite() && temperature >= 0.0 {
        return Ok(());
    }
    let message = format!("--temperature is {temperature}, expected 0 or more");
    Err(Error::new(Kind::Usage, message))
}

/// How tokens are sampled.
pub fn draw(args: &DrawArgs) -> Result<Draw> {
    check_temperature(args.temperature)?;
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

/// How quantized matrices are multiplied.
pub fn gguf_products(args: &GgufArgs) -> GgufProducts {
    match args.gguf_products {
        GgufProductsArg::Rounded => GgufProducts::Rounded,
        GgufProductsArg::Exact => GgufProducts::Exact,
    }
}

/// Element type of the KV cache.
pub fn kv_dtype(arg: KvDtypeArg) -> KvDtype {
    match arg {
        KvDtypeArg::F32 => KvDtype::F32,
        KvDtypeArg::Bf16 => KvDtype::Bf16,
        KvDtypeArg::Int8 => KvDtype::Int8,
        KvDtypeArg::Int4 => KvDtype::Int4,
    }
}

/// Element type of a reel.
pub fn reel_dtype(arg: ReelDtypeArg) -> RowsDtype {
    match arg {
        ReelDtypeArg::F32 => RowsDtype::F32,
        ReelDtypeArg::Bf16 => RowsDtype::Bf16,
        ReelDtypeArg::F16 => RowsDtype::F16,
    }
}

/// What follows a frame's codes.
pub fn frame_end(arg: FrameEndArg) -> FrameEnd {
    match arg {
        FrameEndArg::Upstream => FrameEnd::Upstream,
        FrameEndArg::Training => FrameEnd::Training,
    }
}

/// Position of the text that follows a video.
pub fn after_video(arg: AfterVideoArg) -> AfterVideo {
    match arg {
        AfterVideoArg::Highest => AfterVideo::Highest,
        AfterVideoArg::Side => AfterVideo::Side,
    }
}

/// Whether something is switched on.
pub fn is_on(arg: SwitchArg) -> bool {
    arg == SwitchArg::On
}

/// How the weights of a trained model are stored.
pub fn stored_dtype(arg: WeightDtypeArg) -> StoredDtype {
    match arg {
        WeightDtypeArg::Bf16 => StoredDtype::Bf16,
        WeightDtypeArg::F32 => StoredDtype::F32,
        WeightDtypeArg::Stored => StoredDtype::AsStored,
    }
}
