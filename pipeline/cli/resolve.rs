//! From arguments as written to what the stages run on.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use longreel_models::{
    attention::kv_cache::KvDtype,
    llama::sampler::Draw,
    spec::{
        FrameEnd, ModelSpec,
        features::{AfterVideo, PositionRule},
        frame_choice::{Count, FrameChoice},
        placement::Placement,
        system::{Need, SystemSpec, refusal},
    },
    systems::{self, System},
};

use crate::{
    cancel::Cancel,
    chooser::{Candidates, Chooser},
    cli::{
        args::{
            AfterVideoArg, DrawArgs, FrameEndArg, KvDtypeArg, PixelArgs, ReelDtypeArg,
            SamplingArgs, SwitchArg,
        },
        choosing::usual_candidates,
        output::Voice,
    },
    demo_model,
    encoder::{PixelBudget, StepShape},
    error::{Context, Error, Kind, Result},
    hub,
    model::ModelFiles,
    plan::{Demand, Plan, available_memory_bytes},
    ranks::Ranks,
    reel::{self, ReelContent, ReelHeader, ReelReader, RowsDtype, modified_s},
    sources::{
        file::FrameReader,
        sampler::{Sampling, TimeRange, parse_rate, parse_time},
        temporary::replaceable,
    },
    stages::{decode::Source, layout::Layout, progress::Progress},
};

/// Tokens of an answer where nothing else is asked for.
const SHORT_ANSWER_TOKENS: u64 = 128;

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

/// The model that `model` names, opened: a path or a name of the hub.
pub fn system(model: &str, voice: Voice, cancel: &Cancel) -> Result<Arc<System>> {
    open(&model_dir(model, voice, cancel)?)
}

/// [`system`], or the demo model where none is named, which is then said.
pub fn system_or_demo(model: Option<&str>, voice: Voice, cancel: &Cancel) -> Result<Arc<System>> {
    if let Some(model) = model {
        return system(model, voice, cancel);
    }
    voice.note(
        "no model is named: the demo model answers, which knows clips like those of `longreel synth --plain --length 4` \
         and nothing else; --model names another",
    );
    open(&demo_model::directory()?)
}

fn open(dir: &Path) -> Result<Arc<System>> {
    let opened = systems::open(dir).map(Arc::new);
    opened.doing(|| format!("open the model {}", dir.display()))
}

/// Refuses the name of a file that is there already, unless it may be replaced.
pub fn check_free(out: &Path, force: bool) -> Result<()> {
    match out.exists() && !force {
        true => Err(Error::new(
            Kind::Usage,
            format!("{} exists already; --force replaces it", out.display()),
        )),
        false if out.is_dir() => Ok(()),
        false => replaceable(out)
            .map(drop)
            .doing(|| out.display().to_string()),
    }
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

/// What the model file (TOML) at `path` describes.
pub fn model_file(path: &Path) -> Result<SystemSpec> {
    let doing = || format!("read {}", path.display());
    let text = std::fs::read_to_string(path).doing(doing)?;
    SystemSpec::from_toml(&text).doing(doing)
}

/// [`model_file`], of a model that answers.
pub fn spec_file(path: &Path) -> Result<ModelSpec> {
    let spec = model_file(path)?;
    let answering = spec.answering().cloned();
    answering.ok_or_else(|| refusal(&path.display().to_string(), spec.kind(), Need::Answers))
}

/// Which frames are taken.
pub struct Selection {
    /// By which rule.
    pub sampling: Sampling,
    /// Out of which part.
    pub range: TimeRange,
    /// Whether the rule is what holds where the user says nothing.
    is_usual: bool,
}

impl Selection {
    /// What the user asks for.
    pub fn of(sampling: Sampling, range: TimeRange) -> Self {
        Self {
            sampling,
            range,
            is_usual: false,
        }
    }

    /// Whether a model's own rule holds because nobody asked for another.
    pub fn is_own_rule(&self) -> bool {
        self.is_usual && matches!(self.sampling, Sampling::Rule { .. })
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
        is_usual: sampling.is_none() && !is_choosing,
        sampling: sampling.unwrap_or(usual),
        range,
    })
}

/// What `sources` ask of `model`, on one rank and with a short answer.
///
/// # Errors
/// As [`Layout::sight`].
pub fn demand(
    model: &ModelFiles,
    layout: &Layout,
    shape: Option<&StepShape>,
    sources: &[Source],
    kv_dtype: KvDtype,
) -> Result<Demand> {
    let sight = layout.sight(shape, sources)?;
    let n_videos = sources.iter().map(Source::n_videos).sum();
    Ok(Demand {
        frames: sight.frames,
        tokens_per_frame: sight.tokens_per_frame,
        vision_tokens: sight.vision_tokens,
        text_tokens: layout.n_text_tokens(n_videos) as u64,
        max_new_tokens: SHORT_ANSWER_TOKENS,
        kv_dtype,
        contexts: 1,
        processes: 1,
        weight_bytes: model.weight_bytes(),
        ranks: 1,
        prefill_chunk: 1,
    })
}

/// The plan with the number of frames of these `sources` that fit it.
///
/// # Errors
/// As [`Layout::frames_that_fit`].
pub fn with_frames_that_fit(
    mut plan: Plan,
    layout: &Layout,
    shape: Option<&StepShape>,
    sources: &[Source],
) -> Result<Plan> {
    if let Some(shape) = shape {
        plan.frames_that_fit = layout.frames_that_fit(shape, sources, plan.room())?;
    }
    Ok(plan)
}

/// What sets the number of frames of each video, for advice.
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
    if !selection.is_usual {
        let message = format!(
            "{} is a reel, whose frames were chosen when it was made: expected no --fps, --frames, --all-frames or --sampler",
            path.display()
        );
        return Err(Error::new(Kind::Usage, message));
    }
    let reel = ReelReader::open(path)?;
    let reel = match selection.range == TimeRange::ALL {
        true => reel,
        false => reel.within(selection.range)?,
    };
    Ok(Source::Reel(Box::new(reel)))
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
    range.behind(words)
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

/// How numbers of a reel are kept.
pub fn reel_dtype(arg: ReelDtypeArg) -> RowsDtype {
    match arg {
        ReelDtypeArg::F32 => RowsDtype::F32,
        ReelDtypeArg::Bf16 => RowsDtype::Bf16,
        ReelDtypeArg::F16 => RowsDtype::F16,
    }
}

/// Refuses reels that `model`, whose steps have `shape`, did not make; codes and features mean something to their maker only.
///
/// # Errors
/// `BadInput` with both models, `Usage` for a budget of pixels that comes too late.
pub fn check_reels(
    model: &ModelFiles,
    shape: Option<&StepShape>,
    budget: &PixelBudget,
    sources: &[Source],
) -> Result<()> {
    for source in sources {
        if let (Source::Reel(reel), Some(shape)) = (source, shape) {
            check_reel(model, shape, budget, reel.header())
                .doing(|| format!("read {}", reel.path().display()))?;
        }
    }
    Ok(())
}

fn check_reel(
    model: &ModelFiles,
    shape: &StepShape,
    budget: &PixelBudget,
    header: &ReelHeader,
) -> Result<()> {
    if let Some(vqgan) = &model.spec.vqgan {
        return header.check_codes(vqgan.grid(), vqgan.num_embeddings);
    }
    let width = model.spec.decoder.feature_width();
    shape.check_reel(header, model.system.path(), width)?;
    if *budget != PixelBudget::default() {
        let message = "frames got their size when the reel was made, expected no --min-pixels and no --max-pixels";
        return Err(Error::new(Kind::Usage, message));
    }
    check_maker(model, header)
}

/// Refuses features that an encoder of other weights made, wherever either lies.
fn check_maker(model: &ModelFiles, header: &ReelHeader) -> Result<()> {
    let digest = model.encoder_digest();
    match header.content {
        ReelContent::Features { encoder, .. } if encoder != digest => {
            let message = format!(
                "the reel was made by {} (weights of {} s), the model {} (weights of {} s) has an encoder of other weights: expected one model",
                header.model,
                header.model_modified_s,
                model.system.path().display(),
                weights_modified_s(model.system.path())
            );
            Err(Error::new(Kind::BadInput, message))
        }
        _ => Ok(()),
    }
}

/// When the youngest weights in `dir` were written; 0 when nobody knows.
pub fn weights_modified_s(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = files.map(|f| f.path());
    let weights = paths.filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    weights.map(|p| modified_s(&p)).max().unwrap_or(0)
}

/// What follows a frame's codes, where the user chose.
pub fn frame_end(arg: FrameEndArg) -> FrameEnd {
    match arg {
        FrameEndArg::Upstream => FrameEnd::Upstream,
        FrameEndArg::Training => FrameEnd::Training,
    }
}
