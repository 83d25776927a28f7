//! Which frames of a video a model is shown: the rules of the models' own processors, exact to the frame.
//!
//! Rules assume a constant frame rate. For a variable frame rate, [`nearest`] maps the
//! numbers to the frames nearest to those times; at a constant rate it changes nothing.

use std::fmt;

use serde::Deserialize;

use super::processor::{Medium, ProcessorFolder, processor_json};
use crate::{
    error::{Context, Error, Kind, Result},
    file_name::FileName,
};

/// Numbers that PyTorch's `arange` computes from one base: 8 lanes of f32 (`RangeFactoriesKernel.cpp`).
const LANES: usize = 8;

/// The latest time that a plan assumes, in seconds.
pub const TIME_MAX: f64 = 99_999.99;

/// Maximum frames chosen from one video.
const FRAMES_MAX: usize = 1 << 24;

/// How `n` of `total` frames are distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// `i · total / n` in f32, truncated: Qwen2-VL and Qwen2.5-VL in transformers.
    Steps,
    /// As `Steps`, from the middle of the first step: InternVL.
    Middles,
    /// `⌊i · total / n⌋`, exactly: transformers where a model has no rule, LLaVA-OneVision among them.
    Shares,
    /// Evenly from the first to the last, rounded half to even: Qwen3-VL, and qwen-vl-utils.
    EndsRounded,
    /// Evenly from the first to the last, truncated: LLaVA's own code, VILA, LWM.
    EndsTruncated,
    /// Every frame at a rounded constant stride; where these are
    /// more than the maximum, that many evenly from the first to the last: LLaVA-Video's own code.
    Stride,
}

/// The number of frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Count {
    /// A fixed number.
    Frames(usize),
    /// A number per second.
    PerSecond(f64),
}

/// A rule with its numbers; minimum and maximum are the processor's own caps, which a user may lift.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrameChoice {
    /// The distribution.
    pub spread: Spread,
    /// The number.
    pub count: Count,
    /// Minimum for a rate.
    pub min_frames: usize,
    /// Maximum for a rate.
    pub max_frames: usize,
    /// Frames per temporal patch: Qwen2-VL takes a multiple of it.
    pub multiple_of: usize,
}

/// The keys of a video processor's file.
#[derive(Debug, Default, Deserialize)]
struct FrameChoiceFile {
    num_frames: Option<usize>,
    fps: Option<f64>,
    min_frames: Option<usize>,
    max_frames: Option<usize>,
    temporal_patch_size: Option<usize>,
}

impl FrameChoice {
    /// The rule of a model's folder, by `model_type` of its `config.json` (and `force_sample` of
    /// LLaVA-Video's), with the numbers of its video processor.
    ///
    /// Where the file has neither a number of frames nor a rate (transformers then takes every frame),
    /// the rule of the model's authors applies.
    ///
    /// # Errors
    /// When a file cannot be read or has an invalid number.
    pub fn of_folder(folder: &ProcessorFolder) -> Result<Self> {
        let ProcessorFolder { dir, model } = folder;
        let mut usual = Self::of_model(folder.model_type().unwrap_or_default());
        let forced = model.as_ref().and_then(|model| model.force_sample);
        // LLaVA-Video's `force_sample` turns the cap into the number of frames.
        if forced == Some(true) && usual.spread == Spread::Stride {
            usual.count = Count::Frames(usual.max_frames);
        }
        let Some((name, json)) = processor_json(folder, Medium::Video)? else {
            return Ok(usual);
        };
        let doing = || dir.join(name).shown().to_string();
        let file: FrameChoiceFile = serde_path_to_error::deserialize(json)
            .map_err(|e| bad(e.to_string()))
            .doing(doing)?;
        usual.with(&file).checked().doing(doing)
    }

    /// The rule of a model's authors.
    pub fn of_model(model_type: &str) -> Self {
        let rate = |spread, per_second, max_frames| Self {
            spread,
            count: Count::PerSecond(per_second),
            min_frames: 4,
            max_frames,
            multiple_of: 1,
        };
        let number = |spread, n| Self {
            count: Count::Frames(n),
            ..rate(spread, 1.0, 768)
        };
        match model_type {
            // Defaults of each model's own code; transformers would take every frame.
            "qwen2_vl" | "qwen2_5_vl" => Self {
                multiple_of: 2,
                ..rate(Spread::Steps, 2.0, 768)
            },
            "qwen3_vl" | "qwen3_vl_moe" => rate(Spread::EndsRounded, 2.0, 768),
            "llava_onevision" => number(Spread::Shares, 32),
            "internvl" => number(Spread::Middles, 8),
            "llava_qwen" => Self {
                min_frames: 1,
                ..rate(Spread::Stride, 1.0, 64)
            },
            _ => number(Spread::EndsTruncated, 8),
        }
    }

    fn with(mut self, file: &FrameChoiceFile) -> Self {
        match (file.num_frames, file.fps) {
            (Some(n), _) => self.count = Count::Frames(n),
            (None, Some(fps)) => self.count = Count::PerSecond(fps),
            (None, None) => {}
        }
        self.min_frames = file.min_frames.unwrap_or(self.min_frames);
        self.max_frames = file.max_frames.unwrap_or(self.max_frames);
        if self.spread == Spread::Steps {
            self.multiple_of = file.temporal_patch_size.unwrap_or(self.multiple_of);
        }
        self
    }

    fn checked(self) -> Result<Self> {
        let count = match self.count {
            Count::Frames(n) => (1..=FRAMES_MAX).contains(&n),
            Count::PerSecond(rate) => rate.is_finite() && rate > 0.0,
        };
        let caps = self.max_frames >= 1 && (1..=FRAMES_MAX).contains(&self.multiple_of);
        match count && caps {
            true => Ok(self),
            false => Err(bad(format!(
                "frames are chosen by {self:?}, expected 1 to {FRAMES_MAX} frames or a rate above 0"
            ))),
        }
    }

    /// The chosen ones of `total` frames at `rate` per second, in order.
    ///
    /// Where transformers refuses a video (fewer frames than requested, or a single one for
    /// Qwen2-VL), all its frames are taken.
    ///
    /// # Errors
    /// When the video has no frames, or its rate or the rule's numbers are invalid.
    pub fn numbers(&self, total: usize, rate: f64) -> Result<Vec<usize>> {
        self.checked()?;
        if total == 0 || !(rate.is_finite() && rate > 0.0) {
            return Err(bad(format!(
                "choose frames of a video with {total} frames, {rate} a second, expected some of both"
            )));
        }
        if let (Spread::Stride, Count::PerSecond(wanted)) = (self.spread, self.count) {
            return Ok(self.by_stride(total, (rate / wanted).round_ties_even() as usize));
        }
        Ok(self.spread.numbers(total, self.n(total, rate)))
    }

    fn by_stride(&self, total: usize, stride: usize) -> Vec<usize> {
        let every: Vec<usize> = (0..total).step_by(stride.max(1)).collect();
        match every.len() > self.max_frames {
            true => Spread::EndsTruncated.numbers(total, self.max_frames),
            false => every,
        }
    }

    /// The number of frames.
    fn n(&self, total: usize, rate: f64) -> usize {
        let shown = |wanted: f64| total as f64 / rate * wanted;
        let multiple = self.multiple_of.max(1);
        match (self.spread, self.count) {
            (Spread::Steps, Count::Frames(n)) => {
                // Python's `round`, as in qwen-vl-utils' `round_by_factor`.
                let whole = (n as f64 / multiple as f64).round_ties_even() as usize * multiple;
                whole.clamp(1, total)
            }
            (Spread::Steps, Count::PerSecond(wanted)) => {
                let most = self.max_frames.min(total) / multiple * multiple;
                let n = shown(wanted).max(self.min_frames as f64);
                let whole = (n.min(most as f64) / multiple as f64).floor() as usize * multiple;
                whole.clamp(1, total)
            }
            (Spread::EndsRounded, Count::PerSecond(wanted)) => (shown(wanted) as usize)
                .max(self.min_frames)
                .min(self.max_frames)
                .min(total),
            (Spread::EndsTruncated | Spread::EndsRounded | Spread::Stride, Count::Frames(n)) => n,
            (Spread::Middles | Spread::Shares, Count::Frames(n)) => n.min(total),
            (_, Count::PerSecond(wanted)) => (shown(wanted) as usize).clamp(1, total),
        }
    }
}

impl fmt::Display for FrameChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            Count::Frames(n) => write!(f, "{n} frames by the model's own rule"),
            Count::PerSecond(rate) => write!(
                f,
                "{rate} frames/s by the model's own rule, {} to {} frames",
                self.min_frames, self.max_frames
            ),
        }
    }
}

impl Spread {
    /// `n` of `total` frames.
    fn numbers(self, total: usize, n: usize) -> Vec<usize> {
        let step = total as f64 / n as f64;
        match self {
            Self::Steps => arange(0.0, total, step),
            Self::Middles => arange(step / 2.0, total, step),
            Self::Shares => (0..n)
                .map(|i| (i as u128 * total as u128 / n as u128) as usize)
                .collect(),
            Self::EndsRounded => linspace(total, n, f64::round_ties_even),
            Self::EndsTruncated | Self::Stride => linspace(total, n, f64::floor),
        }
    }
}

/// All of `total` frames, or `most` of them evenly from the first to the last, truncated: LWM, in inference and training.
pub fn ends_truncated(total: usize, most: usize) -> Vec<usize> {
    match total <= most {
        true => (0..total).collect(),
        false => linspace(total, most, f64::floor),
    }
}

/// `torch.arange(start, total, step).int()`, with the rounding of its vectors of f32.
///
/// Where rounding makes it one longer, the last number is beyond the video and is left out.
fn arange(start: f64, total: usize, step: f64) -> Vec<usize> {
    let len = ((total as f64 - start) / step).ceil() as usize;
    // PyTorch's vectorized loop handles two vectors per iteration; only the remainder is computed in f64.
    let vectors = len / (2 * LANES) * (2 * LANES);
    let at = |i: usize| {
        // `Vectorized::arange` rounds its base to f32 and then adds lane × step, which changes the last bits.
        let base = match i < vectors {
            true => f64::from((start + step * (i / LANES * LANES) as f64) as f32),
            false => start + step * i as f64,
        };
        let lane = if i < vectors { i % LANES } else { 0 };
        (base + lane as f64 * step) as f32 as usize
    };
    (0..len).map(at).filter(|&frame| frame < total).collect()
}

/// `numpy.linspace(0, total − 1, n)`, rounded.
fn linspace(total: usize, n: usize, round: fn(f64) -> f64) -> Vec<usize> {
    let last = total - 1;
    // numpy's `linspace` multiplies the step and sets the last value exactly; its rounding decides which
    // frame is taken.
    let step = last as f64 / (n.max(2) - 1) as f64;
    let at = |i: usize| match i + 1 == n && n > 1 {
        true => last,
        false => round(i as f64 * step) as usize,
    };
    (0..n).map(at).collect()
}

/// Frame numbers at a constant rate → the frames nearest to those times, the earlier one on ties.
///
/// `ticks` are the times of all frames, rising. The rate is that of as many frames in the same duration.
pub fn nearest(numbers: &[usize], ticks: &[i64]) -> Vec<usize> {
    let (Some(&first), Some(&end)) = (ticks.first(), ticks.last()) else {
        return Vec::new();
    };
    let steps = (ticks.len() - 1).max(1) as i128;
    let span = i128::from(end) - i128::from(first);
    // Times are compared in units of ticks / steps, in which all are integers.
    let time = |frame: usize| (i128::from(ticks[frame]) - i128::from(first)) * steps;
    let frame = |&number: &usize| {
        let wanted = number as i128 * span;
        let behind =
            ticks.partition_point(|&t| (i128::from(t) - i128::from(first)) * steps < wanted);
        let behind = behind.min(ticks.len() - 1);
        let before = behind.saturating_sub(1);
        match wanted - time(before) <= time(behind) - wanted {
            true => before,
            false => behind,
        }
    };
    numbers.iter().map(frame).collect()
}

/// Times of steps of `per_step` frames, in seconds: the mean of a step's first and last frame.
///
/// The last frame is repeated to fill its step (transformers, `_calculate_timestamps` of Qwen3-VL).
pub fn step_times(frame_seconds: &[f64], per_step: usize) -> Vec<f64> {
    let Some(&end) = frame_seconds.last() else {
        return Vec::new();
    };
    let per_step = per_step.max(1);
    frame_seconds
        .chunks(per_step)
        .map(|step| {
            let last = if step.len() == per_step {
                step[per_step - 1]
            } else {
                end
            };
            (step[0] + last) / 2.0
        })
        .collect()
}

/// LLaVA-Video's sentence about the frames and their times, before the question.
pub fn time_instruction(duration_seconds: f64, frame_seconds: &[f64]) -> String {
    let times: Vec<String> = frame_seconds.iter().map(|t| format!("{t:.2}s")).collect();
    format!(
        "The video lasts for {duration_seconds:.2} seconds, and {} frames are uniformly sampled from it. \
         These frames are located at {}.Please answer the following questions related to this video.",
        times.len(),
        times.join(",")
    )
}

/// Maximum characters of [`time_instruction`] for `n` frames, with times up to [`TIME_MAX`].
pub fn time_instruction_len(n: u64) -> u64 {
    let around = time_instruction(TIME_MAX, &[]).len() + n.to_string().len();
    n.saturating_mul(one_time().len() as u64)
        .saturating_add(around as u64)
}

/// The longest time in [`time_instruction`] that a plan assumes, with its comma.
pub fn one_time() -> String {
    format!("{TIME_MAX:.2}s,")
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
