//! The next-token loss of one head, without a tokens × vocabulary matrix, and the weights of tokens in it.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Shape, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Kind, Result},
    training::{data::batch::Batch, operands::numbers},
};

/// Tokens whose logits are in memory at once.
const TOKENS: usize = 1024;

/// The groups over which the loss is averaged first; the result is the mean of these averages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Rows of the batch, whatever their content: upstream (`tux/loss.py`). With packed examples, those of
    /// rows with many examples count less.
    Rows,
    /// Examples, as if each had a row of its own: the paper (arXiv 2402.08268, masked sequence packing).
    Examples,
}

/// The weight of one modality in the loss: both count equally, however many tokens each has
/// (`lwm/train.py`).
pub const MODALITY_SHARE: f32 = 0.5;

/// The loss and accuracy of one head.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeadLoss {
    /// `Σ weight · −log p(target)`.
    pub loss: f64,
    /// The summed weights of the tokens whose most likely id is the target.
    pub accuracy: f64,
}

/// The groups of a batch, as ranges of its token indices.
fn groups(batch: &Batch, reduction: Reduction) -> Vec<Range<usize>> {
    let n = batch.seq_length;
    let rows = (0..batch.rows()).map(|row| row * n..(row + 1) * n);
    let segments = match (reduction, &batch.segments) {
        (Reduction::Examples, Some(segments)) => segments,
        _ => return rows.collect(),
    };
    rows.flat_map(|row| {
        let mut start = row.start;
        let runs = segments[row].chunk_by(|a, b| a == b);
        runs.map(move |run| {
            start += run.len();
            start - run.len()..start
        })
    })
    .collect()
}

/// The weight of each target, `[rows · seq_length]`, before the mean over groups; and the number of groups.
///
/// Per modality: `1 / max(Σ loss, 10⁻¹⁰)` over its group, where the target's loss is above 0 (`tux/loss.py`,
/// `cross_entropy_loss_and_accuracy`). A group without a counted token of either modality, such as the padding at
/// the end of a packed row, does not count as a group of [`Reduction::Examples`].
pub fn token_weights(batch: &Batch, reduction: Reduction) -> (Vec<f32>, usize) {
    let mut weights = vec![0.0; batch.target.len()];
    let mut n_groups = 0;
    for group in groups(batch, reduction) {
        let counted = batch.loss[group.clone()].iter().any(|&loss| loss > 0.0);
        n_groups += usize::from(counted || reduction == Reduction::Rows);
        for is_vision in [false, true] {
            let of_modality = |&i: &usize| batch.target[i].is_vision() == is_vision;
            let indices = || group.clone().filter(of_modality);
            let sum: f32 = indices().map(|i| batch.loss[i]).sum();
            for i in indices().filter(|&i| batch.loss[i] > 0.0) {
                weights[i] = 1.0 / sum.max(1e-10);
            }
        }
    }
    (weights, n_groups)
}

/// hidden `[n, d]`, head `[vocab, d]`, targets and weights `[n]` → `Σ weight · −log softmax(hidden · headᵀ)[target]`
/// as a scalar that candle differentiates.
///
/// The gradients are computed in the forward pass, so that the logits of at most 1024 tokens are in memory.
///
/// # Errors
/// `BadInput` for a target outside the vocabulary, `Compute` for a loss that is NaN or infinite.
pub fn head_loss(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    weights: &[f32],
) -> Result<(Tensor, HeadLoss)> {
    let (hidden, head) = (hidden.contiguous()?, head.contiguous()?);
    let made = made(&hidden.detach(), &head.detach(), targets, weights)?;
    if !made.sums.loss.is_finite() {
        let message = format!("the loss is {}, expected a finite number", made.sums.loss);
        return Err(Error::new(Kind::Compute, message));
    }
    let op = RecordedLoss {
        loss: made.sums.loss as f32,
        gradients: Mutex::new(Some([made.d_hidden, made.d_head])),
    };
    Ok((hidden.apply_op2(&head, op)?, made.sums))
}

struct LossAndGradients {
    sums: HeadLoss,
    d_hidden: Tensor,
    d_head: Tensor,
}

fn made(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    weights: &[f32],
) -> Result<LossAndGradients> {
    let (n, vocab) = (hidden.dim(0)?, head.dim(0)?);
    if let Some(target) = targets.iter().find(|&&t| t as usize >= vocab) {
        let message = format!("the target {target} is outside the vocabulary of {vocab}");
        return Err(Error::new(Kind::BadInput, message));
    }
    let mut sums = HeadLoss::default();
    let (mut d_hidden, mut d_head) = (Vec::new(), head.zeros_like()?);
    for start in (0..n).step_by(TOKENS) {
        let tokens = start..n.min(start + TOKENS);
        let part = hidden.narrow(0, start, tokens.len())?;
        let scores = part.matmul(&head.t()?)?;
        let (d_scores, of_part) =
            scores_backward(&scores, &targets[tokens.clone()], &weights[tokens])?;
        sums.loss += of_part.loss;
        sums.accuracy += of_part.accuracy;
        d_hidden.push(d_scores.matmul(head)?);
        d_head = (d_head + d_scores.t()?.matmul(&part)?)?;
    }
    let d_hidden = match d_hidden.is_empty() {
        true => hidden.zeros_like()?,
        false => Tensor::cat(&d_hidden, 0)?,
    };
    Ok(LossAndGradients {
        sums,
        d_hidden,
        d_head,
    })
}

/// logits `[n, vocab]` → their gradient `weight · (softmax − onehot)`, and the sums.
fn scores_backward(
    scores: &Tensor,
    targets: &[u32],
    weights: &[f32],
) -> Result<(Tensor, HeadLoss)> {
    let vocab = scores.dim(1)?;
    let mut gradient = numbers(scores).as_slice()?.to_vec();
    let rows = gradient.par_chunks_exact_mut(vocab).with_min_len(8);
    let of_rows: Vec<HeadLoss> = rows
        .zip(targets.par_iter().zip(weights))
        .map(|(row, (&target, &weight))| row_backward(row, target as usize, weight))
        .collect();
    let mut sums = HeadLoss::default();
    for row in of_rows {
        sums.loss += row.loss;
        sums.accuracy += row.accuracy;
    }
    let gradient = Tensor::from_vec(gradient, scores.shape(), &Device::Cpu)?;
    Ok((gradient, sums))
}

/// One row of logits → its gradient, in place.
fn row_backward(row: &mut [f32], target: usize, weight: f32) -> HeadLoss {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Ties count as right.
    let is_right = row[target] >= most;
    let of_target = f64::from(row[target] - most);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - most).exp();
        sum += f64::from(*x);
    }
    let scale = (f64::from(weight) / sum) as f32;
    row.iter_mut().for_each(|x| *x *= scale);
    row[target] -= weight;
    HeadLoss {
        loss: f64::from(weight) * (sum.ln() - of_target),
        accuracy: if is_right { f64::from(weight) } else { 0.0 },
    }
}

/// A scalar operation whose gradients are already known.
struct RecordedLoss {
    loss: f32,
    /// Gradients of the hidden states and of the head, until candle takes them.
    gradients: Mutex<Option<[Tensor; 2]>>,
}

impl CustomOp2 for RecordedLoss {
    fn name(&self) -> &'static str {
        "next-token loss"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.loss]), Shape::from(())))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        d_loss: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let mut held = self
            .gradients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let [d_hidden, d_head] = held
            .take()
            .ok_or_else(|| candle_core::Error::msg("the gradients were taken before"))?;
        // The gradients were computed for a factor of 1.
        let scale = d_loss.to_scalar::<f32>()?;
        Ok((
            Some((d_hidden * f64::from(scale))?),
            Some((d_head * f64::from(scale))?),
        ))
    }
}
