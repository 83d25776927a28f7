//! `longreel plan`: tokens, memory and operations of a question, and whether it fits.

use std::sync::Arc;

use longreel_models::{
    file_name::FileName,
    spec::{
        ModelSpec,
        features::PositionRule,
        frame_choice::time_instruction_len,
        patches::PatchesSpec,
        system::{Need, SystemKind, SystemSpec, refusal},
    },
    systems::System,
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::PlanArgs,
        choosing, open,
        output::Voice,
        plan_encode,
        plan_inputs::{PlannedModel, SourcePlan, available, expected_frames, source_plan},
        resolve,
    },
    encoder::StepShape,
    error::{Error, Kind, Result},
    model::{Choices, GgufProducts, ModelFiles},
    plan::{Demand, MachineSpeed, Plan, bytes},
    prepare,
    sources::sampler::Sampling,
    stages::{
        decode::Source,
        layout::{ASSUMED_SIZE, Layout, Sight},
    },
};

#[derive(Serialize)]
struct PlanJson {
    fits: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    #[serde(flatten)]
    plan: Plan,
    /// How quantized matrices are multiplied; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    gguf_products: Option<GgufProducts>,
    sources: Vec<SourcePlan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted_seconds: Option<Predicted>,
}

#[derive(Serialize)]
struct Predicted {
    encode: f64,
    prefill: f64,
    generate: f64,
    gflops_measured: f64,
    read_gb_per_s_measured: f64,
}

/// The facts about a model that a plan needs.
struct Facts {
    spec: ModelSpec,
    weight_bytes: u64,
    copied_bytes: u64,
    /// `None` for a model file, which has no tokenizer.
    files: Option<ModelFiles>,
    shape: Option<StepShape>,
    usual: Sampling,
}

/// Runs the verb.
pub fn run(args: PlanArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let model = PlannedModel::open(&args, voice, cancel)?;
    if model.spec().answering().is_none() {
        return plan_encode::run(&args, &model, voice, cancel);
    }
    let facts = facts(&args, &model)?;
    let selection = resolve::selection(&args.sampling, facts.usual.clone())?;
    let chooser = choosing::chooser(&args.sampling, None, voice, cancel)?;
    let sources = open::sources(&args.videos, &selection, chooser.as_ref(), voice, cancel)?;
    drop(chooser);
    if !facts.spec.looks() && (!sources.is_empty() || args.hours.is_some()) {
        return Err(refusal(
            &args.model.shown().to_string(),
            SystemKind::Text,
            Need::Frames,
        ));
    }
    let layout = layout(&args, &facts, &sources)?;
    let sampling = &selection.sampling;
    let sight = sight(&args, &facts, layout.as_ref(), &sources, sampling)?;
    let n_videos = sources.iter().map(Source::n_videos).sum();
    let demand = Demand {
        frames: sight.frames,
        tokens_per_frame: sight.tokens_per_frame,
        vision_tokens: sight.vision_tokens,
        text_tokens: text_tokens(&args, layout.as_ref(), n_videos),
        max_new_tokens: args.max_new_tokens as u64,
        kv_dtype: resolve::kv_dtype(args.kv_dtype),
        contexts: 1,
        processes: 1,
        weight_bytes: facts.weight_bytes,
        copied_bytes: facts.copied_bytes,
        ranks: 1,
        prefill_chunk: 512,
    };
    let mut plan = Plan::new(&facts.spec, demand, available(&args)?);
    if let (Some(layout), Some(shape)) = (&layout, &facts.shape) {
        plan.frames_that_fit = layout.frames_that_fit(shape, &sources, plan.room())?;
    }
    let verdict = plan.check(resolve::frames_option(&sources), n_videos);
    let predicted_seconds = args
        .measure
        .then(|| predict(&plan, args.max_new_tokens))
        .transpose()?;
    let refusal = verdict.as_ref().err().map(|e| e.to_string());
    let sources = sources.iter().map(source_plan).collect();
    let json = PlanJson {
        fits: refusal.is_none(),
        refusal,
        plan,
        gguf_products: facts.files.as_ref().and_then(ModelFiles::gguf_products),
        sources,
        predicted_seconds,
    };
    voice.say(&json, || text(&json))?;
    verdict
}

fn facts(args: &PlanArgs, model: &PlannedModel) -> Result<Facts> {
    let usual = model.usual_sampling()?;
    match model {
        PlannedModel::File(spec) => of_file(args, spec, usual),
        PlannedModel::System(system) => of_system(args, system, usual),
    }
}

fn of_file(args: &PlanArgs, spec: &SystemSpec, usual: Sampling) -> Result<Facts> {
    if args.decoder.is_some() {
        let message = "--decoder needs a model directory, but --model is a model file (.toml)";
        return Err(Error::new(Kind::Usage, message));
    }
    let answering = spec.answering().cloned();
    let mut spec = answering.ok_or_else(|| {
        let model = args.model.shown().to_string();
        refusal(&model, spec.kind(), Need::Answers)
    })?;
    prepare::choose_time_instruction(&mut spec, args.time_instruction.map(resolve::is_on))?;
    let weight_bytes = 2 * parameters(&spec);
    Ok(Facts {
        shape: usual_shape(&spec),
        spec,
        weight_bytes,
        copied_bytes: 0,
        files: None,
        usual,
    })
}

fn of_system(args: &PlanArgs, system: &Arc<System>, usual: Sampling) -> Result<Facts> {
    let choices = Choices {
        decoder: args.decoder.as_deref(),
        template: args.template.template.as_deref(),
        products: resolve::gguf_products(&args.gguf),
    };
    let mut files = ModelFiles::open_with(system, choices)?;
    prepare::choose_time_instruction(&mut files.spec, args.time_instruction.map(resolve::is_on))?;
    let budget = resolve::pixel_budget(&args.pixels);
    Ok(Facts {
        shape: StepShape::of(system, &files.spec, &budget)?,
        usual,
        weight_bytes: files.weight_bytes(),
        copied_bytes: files.bytes_of_copies(),
        spec: files.spec.clone(),
        files: Some(files),
    })
}

/// Layout of the question and videos in the prompt; `None` for a model file.
fn layout(args: &PlanArgs, facts: &Facts, sources: &[Source]) -> Result<Option<Layout>> {
    let Some(files) = &facts.files else {
        return Ok(None);
    };
    let budget = resolve::pixel_budget(&args.pixels);
    prepare::check_reels(files, facts.shape.as_ref(), &budget, sources)?;
    let n_videos: usize = sources.iter().map(Source::n_videos).sum();
    let n_videos = n_videos.max(1) * usize::from(facts.spec.looks());
    Layout::of(files, &args.question, n_videos, None).map(Some)
}

fn text_tokens(args: &PlanArgs, layout: Option<&Layout>, n_videos: usize) -> u64 {
    match layout {
        Some(layout) => layout.n_text_tokens(n_videos.max(1)) as u64,
        // Without a tokenizer: one token per character plus a template is an upper bound.
        None => args.question.len() as u64 + 64,
    }
}

/// Shape of a video step in a model file, which has no processor configuration to give a pixel budget.
fn usual_shape(spec: &ModelSpec) -> Option<StepShape> {
    let fixed = |rows| StepShape::Fixed { rows };
    let patches = || match spec.vision.as_ref()?.positions? {
        PositionRule::Counted { .. } | PositionRule::Timed { .. } => {
            Some(PatchesSpec::qwen2_video())
        }
        PositionRule::Steps => Some(PatchesSpec::qwen3_video()),
    };
    let native = || patches().map(StepShape::Native);
    spec.tokens_per_frame().map(fixed).or_else(native)
}

/// Number of frames and of their tokens, of the sources or of `--hours`.
fn sight(
    args: &PlanArgs,
    facts: &Facts,
    layout: Option<&Layout>,
    sources: &[Source],
    sampling: &Sampling,
) -> Result<Sight> {
    let frames = expected_frames(args, sources, sampling)?;
    match (layout, &facts.shape) {
        (Some(layout), shape) if args.hours.is_none() => layout.sight(shape.as_ref(), sources),
        (Some(layout), Some(shape)) => layout.video_tokens(shape, ASSUMED_SIZE, frames),
        (None, Some(shape)) => {
            let n_frames = usize::try_from(frames).unwrap_or(usize::MAX);
            let rows = shape.rows(ASSUMED_SIZE, n_frames)? as u64;
            let of_step = shape.frames() as u64;
            let steps = frames.div_ceil(of_step);
            let vision = facts.spec.vision.as_ref();
            // Without a tokenizer: one token per character, as for the question.
            let times = match vision.is_some_and(|vision| vision.time_instruction) {
                true => time_instruction_len(frames),
                false => 0,
            };
            let behind = vision.map_or(0, |vision| vision.features.newlines() as u64);
            Ok(Sight {
                frames,
                tokens_per_frame: rows.div_ceil(of_step),
                vision_tokens: steps
                    .saturating_mul(rows)
                    .saturating_add(times)
                    .saturating_add(behind),
            })
        }
        (_, None) => Ok(Sight::default()),
    }
}

fn parameters(spec: &ModelSpec) -> u64 {
    let shapes = longreel_models::checkpoint::layout::model_tensors(spec);
    let tensors = shapes
        .iter()
        .map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>());
    let features = spec.vision.as_ref().map(|vision| &vision.features);
    let encoder = features.map_or(0, |f| f.parameters(spec.decoder.hidden_size));
    tensors.sum::<u64>() + encoder as u64
}

fn predict(plan: &Plan, max_new_tokens: usize) -> Result<Predicted> {
    let speed = MachineSpeed::measure()?;
    let seconds_per_token = (plan.weight_bytes + plan.kv_bytes) as f64 / speed.read_bytes_per_s;
    Ok(Predicted {
        encode: plan.encode_flops / speed.flops,
        prefill: (plan.prefill_linear_flops + plan.prefill_attention_flops) / speed.flops,
        generate: seconds_per_token * max_new_tokens as f64,
        gflops_measured: speed.flops / 1e9,
        read_gb_per_s_measured: speed.read_bytes_per_s / 1e9,
    })
}

/// `, quantized products rounded (--gguf-products)`
fn products(json: &PlanJson) -> &'static str {
    match json.gguf_products {
        None => "",
        Some(GgufProducts::Rounded) => ", quantized products rounded (--gguf-products)",
        Some(GgufProducts::Exact) => ", quantized products exact (--gguf-products)",
    }
}

fn text(json: &PlanJson) -> String {
    let p = &json.plan;
    let mut lines: Vec<String> = json.sources.iter().map(SourcePlan::line).collect();
    lines.extend([
        format!("frames     {} of {} tokens", p.frames, p.tokens_per_frame),
        format!("context    {} tokens of {}; {} frames fit", p.context_tokens, p.context_limit, p.frames_that_fit),
        format!("weights    {}{}", bytes(p.weight_bytes), products(json)),
        format!("KV cache   {} ({} per token)", bytes(p.kv_bytes), bytes(p.kv_bytes_per_token)),
        format!(
            "memory     {} needed, {} available",
            bytes(p.total_bytes),
            p.available_bytes.map_or("unknown".to_owned(), bytes)
        ),
        format!(
            "operations {:.3e} encode, {:.3e} prefill ({:.3e} of it attention), {:.3e} per new token",
            p.encode_flops,
            p.prefill_linear_flops + p.prefill_attention_flops,
            p.prefill_attention_flops,
            p.decode_flops_per_token
        ),
    ]);
    if let Some(s) = &json.predicted_seconds {
        lines.push(format!(
            "predicted  {:.1} s encode, {:.1} s prefill, {:.1} s answer (measured {:.0} GFLOP/s, {:.1} GB/s)",
            s.encode, s.prefill, s.generate, s.gflops_measured, s.read_gb_per_s_measured
        ));
    }
    lines.join("\n")
}
