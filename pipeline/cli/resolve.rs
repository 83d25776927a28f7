//! From arguments as written to what the stages run on.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use longreel_models::{
    attention::kv_cache::KvDtype,
    llama::sampler::Draw,
    spec::{
        FrameEnd, ModelSpec,
        features::{AfterVideo, PositionRule},
        frame_choice::{Count, FrameChoice},
        model_file::ModelFile,
        placement::Placement,
    },
};

use crate::{
    cancel::Cancel,
    chooser::{Candidates, Chooser},
    cli::{
        args::{
            AfterVideoArg, DrawArgs, FrameEndArg, KvDtypeArg, PixelArgs, SamplingArgs, SwitchArg,
        },
        choosing::usual_candidates,
        output::Voice,
    },
    encoder::PixelBudget,
    error::{Context, Error, Kind, Result},
    hub,
    plan::{Plan, available_memory_bytes},
    ranks::Ranks,
    reel::{self, ReelReader},
    sources::{
        file::FrameReader,
        sampler::{Sampling, TimeRange, parse_rate, parse_time},
    },
    stages::{decode::Source, progress::Progress},
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

/// Who computes, from `--ring` and `--ring-timeout`.
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

/// Bytes of memory that this process may take: those that the machine has left, dealt to the processes that share it.
pub fn memory_of(ranks: &Ranks) -> Option<u64> {
    Some(available_memory_bytes()? / ranks.processes_here() as u64)
}

/// The model file (TOML) at `path`.
pub fn spec_file(path: &Path) -> Result<ModelSpec> {
    let doing = || format!("read {}", path.display());
    let text = std::fs::read_to_string(path).doing(doing)?;
    ModelFile::from_toml(&text)
        .and_then(ModelFile::answers)
        .doing(doing)
}

/// Which frames are taken.
pub struct Selection {
    /// By which rule.
    pub sampling: Sampling,
    /// Out of which part.
    pub range: TimeRange,
    /// Whether the user asked for it, or it is the default.
    asked_for: bool,
    /// Whether the rule is what holds where the user says nothing.
    is_usual: bool,
}

impl Selection {
    /// What the user asks for.
    pub fn of(sampling: Sampling, range: TimeRange) -> Self {
        Self {
            sampling,
            range,
            asked_for: true,
            is_usual: false,
        }
    }

    /// As many frames of each of `n_videos` as fit the context, where a model's own rule gives more and nobody asked for it.
    pub fn fewer(&self, plan: &Plan, n_videos: usize) -> Option<Self> {
        let Sampling::Rule { choice, rate } = self.sampling else {
            return None;
        };
        let each = usize::try_from(plan.frames_that_fit).ok()? / n_videos.max(1);
        let each = each / choice.multiple_of * choice.multiple_of;
        let is_needed = self.is_usual && plan.context_tokens > plan.context_limit && each > 0;
        is_needed.then_some(Self {
            sampling: Sampling::Rule {
                choice: FrameChoice {
                    count: Count::Frames(each),
                    ..choice
                },
                rate,
            },
            ..*self
        })
    }
}

/// Which frames a model is shown where nobody says: by the rule of its own processor, or one frame a second.
pub fn usual_sampling(dir: &Path, spec: &ModelSpec) -> Result<Sampling> {
    if spec.vision.is_none() {
        return one_a_second();
    }
    let choice = FrameChoice::of_directory(dir)?;
    Ok(Sampling::Rule { choice, rate: None })
}

/// One frame a second.
pub fn one_a_second() -> Result<Sampling> {
    Ok(Sampling::Fps(parse_rate(DEFAULT_RATE)?))
}

/// The budget of pixels that the user gives.
pub fn pixel_budget(args: &PixelArgs) -> PixelBudget {
    PixelBudget {
        min: args.min_pixels,
        max: args.max_pixels,
    }
}

/// Which frames, and the range they come from; `usual` where the user says nothing.
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
            let message = "--frames cannot be used with --fps or --all-frames, but with --sampler";
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
    Ok(Selection {
        asked_for: sampling.is_some() || is_choosing || range != TimeRange::ALL,
        is_usual: sampling.is_none(),
        sampling: sampling.unwrap_or(usual),
        range,
    })
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

/// Opens every input: reels as they are, everything else as video, whose frames `chooser` may choose.
pub fn sources(
    paths: &[PathBuf],
    selection: &Selection,
    chooser: Option<&Chooser>,
    voice: Voice,
    cancel: &Cancel,
) -> Result<Vec<Source>> {
    let open = |path: &PathBuf| source(path, selection, chooser, voice, cancel);
    paths.iter().map(open).collect()
}

fn source(
    path: &Path,
    selection: &Selection,
    chooser: Option<&Chooser>,
    voice: Voice,
    cancel: &Cancel,
) -> Result<Source> {
    if !reel::is_reel(path) {
        let (reader, sampling) = video(path, selection, chooser, voice, cancel)?;
        let reader = Box::new(reader);
        return Ok(Source::Video { reader, sampling });
    }
    if selection.asked_for {
        let message = format!(
            "{} is a reel, whose frames were chosen when it was made: expected no --fps, --frames, --all-frames, --from, --to or --sampler",
            path.display()
        );
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(Source::Reel(ReelReader::open(path)?))
}

/// Opens the video at `path`, whose frames `chooser` may choose; and how they are chosen, in words.
pub fn video(
    path: &Path,
    selection: &Selection,
    chooser: Option<&Chooser>,
    voice: Voice,
    cancel: &Cancel,
) -> Result<(FrameReader, String)> {
    let Selection {
        sampling, range, ..
    } = selection;
    let reader = FrameReader::open(path, sampling, range, cancel.clone())?;
    let words = describe(sampling, range);
    let Some(chooser) = chooser else {
        return Ok((reader, words));
    };
    let candidates = Candidates {
        reader,
        range,
        sampling: &words,
    };
    let progress = Progress::default();
    let choice = voice
        .show(&progress, || chooser.choose(candidates, &progress, cancel))
        .doing(|| format!("choose frames of {}", path.display()))?;
    let kept = choice.reader.expected_frames().unwrap_or(0);
    let (path, all) = (path.display(), choice.candidates);
    voice.note(&format!("{path}: {kept} of {all} frames are chosen"));
    Ok((choice.reader, choice.sampling))
}

/// The sampling in words, as it is echoed: `1 frame/s from 00:00:10.000`.
pub fn describe(sampling: &Sampling, range: &TimeRange) -> String {
    let words = match sampling {
        Sampling::Every => "every frame".to_owned(),
        Sampling::Fps(rate) => format!("{rate} frames/s"),
        Sampling::Uniform(n) => format!("{n} frames spread evenly"),
        Sampling::At(times) => format!("{} given times", times.len()),
        Sampling::Indices(numbers) => format!("{} given frame numbers", numbers.len()),
        Sampling::Rule { choice, .. } => choice.to_string(),
    };
    format!("{words}{range}")
}

/// Refuses a temperature that is no temperature.
pub fn check_temperature(temperature: f64) -> Result<()> {
    if temperature.is_finite() && temperature >= 0.0 {
        return Ok(());
    }
    let message = format!("--temperature is {temperature}, expected 0 or more");
    Err(Error::new(Kind::Usage, message))
}

/// How ids are drawn.
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

/// Element type of the KV cache.
pub fn kv_dtype(arg: KvDtypeArg) -> KvDtype {
    match arg {
        KvDtypeArg::F32 => KvDtype::F32,
        KvDtypeArg::Bf16 => KvDtype::Bf16,
        KvDtypeArg::Int8 => KvDtype::Int8,
        KvDtypeArg::Int4 => KvDtype::Int4,
    }
}

/// Puts the user's choice of where text goes on behind a video into the specification.
///
/// # Errors
/// `Usage` for a model whose positions know no such choice.
pub fn choose_after_video(spec: &mut ModelSpec, arg: Option<AfterVideoArg>) -> Result<()> {
    let Some(arg) = arg else {
        return Ok(());
    };
    let chosen = match arg {
        AfterVideoArg::Highest => AfterVideo::Highest,
        AfterVideoArg::Side => AfterVideo::Side,
    };
    let rule = spec.vision.as_mut().and_then(|v| v.positions.as_mut());
    match rule {
        Some(PositionRule::Counted { after_video } | PositionRule::Timed { after_video, .. }) => {
            *after_video = chosen;
            Ok(())
        }
        _ => {
            let message =
                "--after-video is for Qwen2-VL and Qwen2.5-VL, the model has other positions";
            Err(Error::new(Kind::Usage, message))
        }
    }
}

/// Puts the user's choice of whether the times of frames are told into the specification.
///
/// # Errors
/// `Usage` for a model whose videos do not stand in one piece, or that sees none.
pub fn choose_time_instruction(spec: &mut ModelSpec, arg: Option<SwitchArg>) -> Result<()> {
    let Some(arg) = arg else {
        return Ok(());
    };
    match &mut spec.vision {
        Some(vision) if vision.placement == Placement::Together && vision.positions.is_none() => {
            vision.time_instruction = arg == SwitchArg::On;
            Ok(())
        }
        _ => {
            let message =
                "--time-instruction is for LLaVA-Video and LLaVA-OneVision, the model is another";
            Err(Error::new(Kind::Usage, message))
        }
    }
}

/// What follows a frame's codes, where the user chose.
pub fn frame_end(arg: FrameEndArg) -> FrameEnd {
    match arg {
        FrameEndArg::Upstream => FrameEnd::Upstream,
        FrameEndArg::Training => FrameEnd::Training,
    }
}
