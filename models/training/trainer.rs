//! One training step: gradients of several batches, on one rank or several, and the optimizer's update.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use candle_core::{Device, Tensor};
use rayon::{ThreadPool, prelude::*};
use serde::{Deserialize, Serialize};

use crate::{
    attention::{
        link::{Link, in_process::InProcess},
        ring::Ring,
        shard::ShardLayout,
    },
    error::{Error, Kind, Result},
    training::{
        batch_mask::BatchMask,
        data::batch::Batch,
        loss::{HeadLoss, MODALITY_SHARE, Reduction, token_weights},
        network::{Activations, Attending, HeadLosses, Network, Sequences, add},
        optimizer::{AdamW, Moments},
        parameters::ByName,
        ring_gradients::TokenShards,
        schedule::Schedule,
    },
};

/// Name prefixes of the optimizer's state: means of gradients, and of their squares.
const MOMENTS: [&str; 2] = ["mean.", "square."];

/// Training options of a network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRecipe {
    /// The groups over which the loss is averaged.
    pub reduction: Reduction,
    /// Whether activations are kept or recomputed.
    #[serde(default = "kept")]
    pub activations: Activations,
    /// Batches of a step that one rank computes at a time: more keep more threads busy and take more memory, and
    /// do not change a bit.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub batches_at_a_time: usize,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: AdamW,
    /// Its learning rate.
    pub schedule: Schedule,
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn kept() -> Activations {
    Activations::Kept
}

/// The figures of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// The minimized loss.
    pub loss: f64,
    /// Mean loss of text targets.
    pub text_loss: f64,
    /// Share of text targets that are the most likely ids.
    pub text_accuracy: f64,
    /// Mean loss of codes and terminators.
    pub vision_loss: f64,
    /// Share of these that are the most likely ids.
    pub vision_accuracy: f64,
    /// Norm of the gradient before clipping.
    pub gradient: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens read.
    pub tokens: u64,
}

/// A network in training.
pub struct Trainer {
    network: Network,
    moments: Moments,
    recipe: TrainingRecipe,
    /// The threads of each rank; one rank with all threads when empty.
    pools: Vec<ThreadPool>,
}

impl Trainer {
    /// Trains `network` with `recipe`, on one rank per pool of threads.
    pub fn new(network: Network, recipe: TrainingRecipe, pools: Vec<ThreadPool>) -> Self {
        Self {
            network,
            moments: Moments::default(),
            recipe,
            pools,
        }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.moments.steps
    }

    /// One step over `batches` together.
    ///
    /// # Errors
    /// `Compute` for a loss or a gradient that is NaN or infinite; then nothing has changed.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepReport> {
        let (losses, gradients) = self.gradients(batches)?;
        let lr = self.recipe.schedule.at(self.moments.steps);
        let parameters = self.network.parameters();
        let adam = &self.recipe.optimizer;
        let gradient = adam.step(parameters, &gradients, &mut self.moments, lr)?;
        let tokens = batches.iter().map(|batch| batch.input.len() as u64).sum();
        Ok(StepReport {
            step: self.moments.steps,
            gradient,
            lr,
            tokens,
            ..self.report(losses)
        })
    }

    /// The losses of `batches` together, without an update.
    ///
    /// # Errors
    /// `Compute` for a loss that is NaN or infinite.
    pub fn evaluate(&self, batches: &[Batch]) -> Result<StepReport> {
        let mut sum = HeadLosses::default();
        for (batch, weights) in batches.iter().zip(self.weights(batches)) {
            sum.add(self.network.evaluate(&whole(batch, &weights)?)?);
        }
        Ok(self.report(sum))
    }

    /// Losses as means per modality, not weighted by [`MODALITY_SHARE`].
    fn report(&self, losses: HeadLosses) -> StepReport {
        let share = f64::from(self.share());
        StepReport {
            loss: losses.total(),
            text_loss: losses.text.loss / share,
            text_accuracy: losses.text.accuracy / share,
            vision_loss: losses.vision.loss / share,
            vision_accuracy: losses.vision.accuracy / share,
            ..StepReport::default()
        }
    }

    /// The weight of a modality's mean: half where there are two.
    fn share(&self) -> f32 {
        match self.network.spec().vision_vocab_size {
            Some(_) => MODALITY_SHARE,
            None => 1.0,
        }
    }

    /// The weight of each target of each batch in the total loss.
    fn weights(&self, batches: &[Batch]) -> Vec<Vec<f32>> {
        let of_batch = |batch| token_weights(batch, self.recipe.reduction);
        let (mut weights, groups): (Vec<_>, Vec<_>) = batches.iter().map(of_batch).unzip();
        let scale = self.share() / groups.iter().sum::<usize>().max(1) as f32;
        for weight in weights.iter_mut().flatten() {
            *weight *= scale;
        }
        weights
    }

    fn gradients(&self, batches: &[Batch]) -> Result<(HeadLosses, ByName)> {
        let weights = self.weights(batches);
        let (mut losses, mut all) = (HeadLosses::default(), ByName::new());
        let mut add_one = |(of_batch, gradients): (HeadLosses, ByName)| {
            losses.add(of_batch);
            add(&mut all, gradients)
        };
        if self.pools.len() > 1 {
            for (batch, weights) in batches.iter().zip(&weights) {
                add_one(self.ring_gradients(batch, weights)?)?;
            }
            return Ok((losses, all));
        }
        let together = self.recipe.batches_at_a_time.max(1);
        for (batches, weights) in batches.chunks(together).zip(weights.chunks(together)) {
            let of_batches = batches.par_iter().zip(weights).map(|(batch, weights)| {
                let sequences = whole(batch, weights)?;
                self.network.gradients(&sequences, self.recipe.activations)
            });
            let of_batches: Vec<(HeadLosses, ByName)> = of_batches.collect::<Result<_>>()?;
            of_batches.into_iter().try_for_each(&mut add_one)?;
        }
        Ok((losses, all))
    }

    /// Gradients of one batch over a ring: every rank computes its tokens of each row.
    fn ring_gradients(&self, batch: &Batch, weights: &[f32]) -> Result<(HeadLosses, ByName)> {
        let ranks = self.pools.len();
        let runs = (0..ranks).map(|rank| ShardLayout::Zigzag.runs(batch.seq_length, rank, ranks));
        let shards = Arc::new(TokenShards::new(runs.collect(), mask(batch)?)?);
        // Threads of one process cannot vanish silently: no deadline, as a step may take any time.
        let links = InProcess::connect(ranks, Duration::MAX).into_iter();
        let shares: Vec<Result<(HeadLosses, ByName)>> = thread::scope(|scope| {
            let started: Vec<_> = links
                .zip(&self.pools)
                .map(|(link, pool)| {
                    let shards = &shards;
                    scope.spawn(move || pool.install(|| self.rank(link, shards, batch, weights)))
                })
                .collect();
            let ended = started.into_iter();
            ended
                .map(|rank| rank.join().unwrap_or_else(|_| Err(fell())))
                .collect()
        });
        let (mut losses, mut all) = (HeadLosses::default(), ByName::new());
        for (of_rank, gradients) in of_all(shares)? {
            losses.add(of_rank);
            add(&mut all, gradients)?;
        }
        Ok((losses, all))
    }

    /// One rank's losses and gradients.
    fn rank(
        &self,
        link: InProcess,
        shards: &Arc<TokenShards>,
        batch: &Batch,
        weights: &[f32],
    ) -> Result<(HeadLosses, ByName)> {
        let rank = link.rank();
        let indices = indices(batch, shards, rank);
        let (input, target) = (at(&batch.input, &indices), at(&batch.target, &indices));
        let (weights, positions) = (at(weights, &indices), at(&batch.positions, &indices));
        let sequences = Sequences {
            rows: batch.rows(),
            input: &input,
            target: &target,
            weights: &weights,
            positions: &positions,
            attending: Attending::Ring {
                ring: Arc::new(Mutex::new(Ring::new(Box::new(link)))),
                shards: Arc::clone(shards),
            },
        };
        self.network.gradients(&sequences, self.recipe.activations)
    }

    /// The optimizer's state, by name.
    ///
    /// # Errors
    /// When candle has no memory for it.
    pub fn moments(&self) -> Result<ByName> {
        let mut tensors = ByName::new();
        for (name, means) in &self.moments.means {
            for (prefix, numbers) in MOMENTS.iter().zip(means) {
                let tensor = Tensor::from_slice(numbers, numbers.len(), &Device::Cpu)?;
                tensors.insert(format!("{prefix}{name}"), tensor);
            }
        }
        Ok(tensors)
    }

    /// Resumes after `steps` steps with the optimizer's state at that time.
    ///
    /// # Errors
    /// `BadInput` where the state of a parameter is missing or has another length.
    pub fn resume(&mut self, steps: u64, remembered: &ByName) -> Result<()> {
        let mut moments = Moments {
            steps,
            ..Moments::default()
        };
        for (name, var) in self.network.parameters().iter() {
            let found = |prefix: &str| {
                let tensor = remembered.get(&format!("{prefix}{name}"));
                let tensor = tensor.filter(|tensor| tensor.elem_count() == var.elem_count());
                let tensor = tensor.ok_or_else(|| forgotten(prefix, name))?;
                Ok::<Vec<f32>, Error>(tensor.flatten_all()?.to_vec1()?)
            };
            let [mean, square] = MOMENTS;
            moments
                .means
                .insert(name.clone(), [found(mean)?, found(square)?]);
        }
        self.moments = moments;
        Ok(())
    }
}

impl HeadLosses {
    fn add(&mut self, more: Self) {
        let pairs = [(&mut self.text, more.text), (&mut self.vision, more.vision)];
        for (HeadLoss { loss, accuracy }, more) in pairs {
            *loss += more.loss;
            *accuracy += more.accuracy;
        }
    }
}

/// All tokens of a batch on one rank.
fn whole<'a>(batch: &'a Batch, weights: &'a [f32]) -> Result<Sequences<'a>> {
    Ok(Sequences {
        rows: batch.rows(),
        input: &batch.input,
        target: &batch.target,
        weights,
        positions: &batch.positions,
        attending: Attending::Alone(Arc::new(mask(batch)?)),
    })
}

fn mask(batch: &Batch) -> Result<BatchMask> {
    let mask = BatchMask::causal(batch.rows(), batch.seq_length);
    match &batch.segments {
        Some(segments) => mask.with_segments(segments.clone()),
        None => Ok(mask),
    }
}

/// Indices of a rank's tokens in the batch, row by row.
fn indices(batch: &Batch, shards: &TokenShards, rank: usize) -> Vec<usize> {
    let runs = &shards.runs()[rank];
    let of_row = |row: usize| runs.iter().cloned().flatten().map(move |i| (row, i));
    let all = (0..batch.rows()).flat_map(of_row);
    all.map(|(row, i)| row * batch.seq_length + i).collect()
}

fn at<T: Copy>(all: &[T], indices: &[usize]) -> Vec<T> {
    indices.iter().map(|&i| all[i]).collect()
}

/// The results of all ranks.
///
/// # Errors
/// The error of the rank that failed first, not the `Network` errors of ranks that then missed it.
fn of_all<T>(shares: Vec<Result<T>>) -> Result<Vec<T>> {
    let mut missed = None;
    let mut all = Vec::new();
    for share in shares {
        match share {
            Ok(share) => all.push(share),
            Err(error) if error.kind() == Kind::Network => missed = Some(error),
            Err(error) => return Err(error),
        }
    }
    missed.map_or(Ok(all), Err)
}

fn fell() -> Error {
    Error::new(Kind::Internal, "a rank's thread panicked")
}

fn forgotten(prefix: &str, name: &str) -> Error {
    let message = format!(
        "{prefix}{name} is missing or has another length, expected the optimizer's state of {name}"
    );
    Error::new(Kind::BadInput, message)
}
