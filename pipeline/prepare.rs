//! Preparation of a question or an encoding: the choice of frames, the check of reels against the model, and the plan.

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

/// Answer length assumed by default, in tokens.
const SHORT_ANSWER_TOKENS: u64 = 128;

/// The choice of frames.
pub struct Selection {
    /// The rule.
    pub sampling: Sampling,
    /// The part of the video.
    pub range: TimeRange,
    /// Whether the rule is the default rather than the user's.
    pub is_usual: bool,
}

impl Selection {
    /// The default choice.
    pub fn usual(sampling: Sampling, range: TimeRange) -> Self {
        Self {
            sampling,
            range,
            is_usual: true,
        }
    }

    /// The user's choice.
    pub fn of(sampling: Sampling, range: TimeRange) -> Self {
        Self {
            sampling,
            range,
            is_usual: false,
        }
    }

    /// Whether the model's own rule applies, by default.
    pub fn is_own_rule(&self) -> bool {
        self.is_usual && matches!(self.sampling, Sampling::Rule { .. })
    }

    /// A choice of as many frames per video as fit the context, where the model's own rule, by default, gives more.
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

/// Sets in the specification the position of the text that follows a video.
///
/// # Errors
/// `Usage` for a model whose position rule has no such choice.
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
                "--after-video is for Qwen2-VL and Qwen2.5-VL, the model has another position rule";
            Err(Error::new(Kind::Usage, message))
        }
    }
}

/// Sets in the specification whether the prompt tells the times of frames.
///
/// # Errors
/// `Usage` for a model without vision, or whose prompt does not hold a video as one block.
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
                "--time-instruction is for LLaVA-Video and LLaVA-OneVision, the model is neither";
            Err(Error::new(Kind::Usage, message))
        }
    }
}

/// The demand of a question about `sources`, on one rank and with a short answer.
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
        copied_bytes: model.bytes_of_copies(),
        ranks: 1,
        prefill_chunk: 1,
    })
}

/// The plan, with the number of frames of `sources` that fit the context.
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

/// Bytes of memory that this process may use: the machine's available memory divided by the processes on it.
pub fn memory_of(ranks: &Ranks) -> Option<u64> {
    Some(available_memory_bytes()? / ranks.processes_here() as u64)
}

/// Refuses reels that another model made, or one with other pixel limits: codes and features are of use to their encoder only.
///
/// # Errors
/// `BadInput` naming both models, `Usage` for pixel limits, which a reel has fixed.
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
        let message =
            "the reel fixes the size of its frames, expected no --min-pixels and no --max-pixels";
        return Err(Error::new(Kind::Usage, message));
    }
    check_maker(model, header)
}

/// Refuses features of an encoder with other weights, whatever the paths of the models.
fn check_maker(model: &ModelFiles, header: &ReelHeader) -> Result<()> {
    let digest = model.encoder_digest();
    match header.content {
        ReelContent::Features { encoder, .. } if encoder != digest => {
            let message = format!(
                "the reel was made by {} (weights of {} s), the model {} (weights of {} s) has other encoder weights: expected the same model",
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
