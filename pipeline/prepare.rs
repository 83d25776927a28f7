//! What a question or an encoding is before it runs: which frames, whether reels are the model's own, and how much it takes.

use longreel_models::{
    attention::kv_cache::KvDtype,
    file_name::FileName,
    spec::{
        ModelSpec,
        features::{AfterVideo, PositionRule},
        frame_choice::{Count, FrameChoice},
        placement::Placement,
    },
};

use crate::{
    encoder::{PixelBudget, StepShape, weights_modified_s},
    error::{Context, Error, Kind, Result},
    model::ModelFiles,
    plan::{Demand, Plan, available_memory_bytes},
    ranks::Ranks,
    reel::{ReelContent, ReelHeader},
    sources::sampler::{Sampling, TimeRange},
    stages::{decode::Source, layout::Layout},
};

/// Tokens of an answer where nothing else is asked for.
const SHORT_ANSWER_TOKENS: u64 = 128;

/// Which frames are taken.
pub struct Selection {
    /// By which rule.
    pub sampling: Sampling,
    /// Out of which part.
    pub range: TimeRange,
    /// Whether the rule is what holds where nobody says anything.
    pub is_usual: bool,
}

impl Selection {
    /// What holds where nobody asks for anything.
    pub fn usual(sampling: Sampling, range: TimeRange) -> Self {
        Self {
            sampling,
            range,
            is_usual: true,
        }
    }

    /// What is asked for.
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

/// Puts a choice of where text goes on behind a video into the specification.
///
/// # Errors
/// `Usage` for a model whose positions know no such choice.
pub fn choose_after_video(spec: &mut ModelSpec, chosen: Option<AfterVideo>) -> Result<()> {
    let Some(chosen) = chosen else {
        return Ok(());
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

/// Puts a choice of whether the times of frames are told into the specification.
///
/// # Errors
/// `Usage` for a model whose videos do not stand in one piece, or that sees none.
pub fn choose_time_instruction(spec: &mut ModelSpec, told: Option<bool>) -> Result<()> {
    let Some(told) = told else {
        return Ok(());
    };
    match &mut spec.vision {
        Some(vision) if vision.placement == Placement::Together && vision.positions.is_none() => {
            vision.time_instruction = told;
            Ok(())
        }
        _ => {
            let message =
                "--time-instruction is for LLaVA-Video and LLaVA-OneVision, the model is another";
            Err(Error::new(Kind::Usage, message))
        }
    }
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

/// Bytes of memory that this process may take: those that the machine has left, dealt to the processes that share it.
pub fn memory_of(ranks: &Ranks) -> Option<u64> {
    Some(available_memory_bytes()? / ranks.processes_here() as u64)
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
                .doing(|| format!("read {}", reel.path().shown()))?;
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
                model.system.path().shown(),
                weights_modified_s(&model.system)
            );
            Err(Error::new(Kind::BadInput, message))
        }
        _ => Ok(()),
    }
}
