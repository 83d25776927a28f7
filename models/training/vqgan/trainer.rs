//! The training step of a VQGAN: losses, gradients, the optimizer, and the codebook.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::layout::{NamedShape, vqgan_tensors},
    error::{Context, Error, Kind, Result},
    spec::VqganSpec,
    training::{
        optimizer::{Moments, length},
        parameters::{ByName, Parameters},
        vqgan::{
            codebook::{Assigned, Averages, restarts, wait},
            discriminator::{self, Discriminator},
            evaluation::Evaluation,
            initial::drawn,
            layers::{ParameterSource, Picture, SavedForBackward},
            losses::{Origin, adaptive_weight, differences_back, hinge, hinge_back},
            network::{CodebookShares, Passed, VqganNetwork},
            options::{Adversarial, CodebookRule, VqganOptions},
            parameter_ranges::ParameterRanges,
            perceptual::Lpips,
            state::{Counters, Remaining, SIZES, SUMS, State, UNUSED, export},
        },
    },
    vision::vqgan::{EMBEDDINGS, RGB},
};

/// The metrics of one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Number of the step, from 0.
    pub step: u64,
    /// Its learning rate.
    pub rate: f64,
    /// The minimized loss.
    pub loss: f64,
    /// Mean of absolute differences from the pixels.
    pub l1: f64,
    /// Mean of squared differences.
    pub l2: f64,
    /// Mean perceptual distance (LPIPS), where there is a perceptual loss.
    pub perceptual: Option<f64>,
    /// Mean squared distance of vectors from their rows: codebook and commitment loss before weighting.
    pub quantization: f64,
    /// PSNR of the clipped reconstructions, in decibels; infinite for exact ones.
    pub psnr_db: f64,
    /// Distinct codes of the batch.
    pub codes_used: usize,
    /// Perplexity of the batch's codes.
    pub perplexity: f64,
    /// Dead codes that were restarted.
    pub codes_restarted: usize,
    /// Norm of the gradient before clipping.
    pub gradient_length: f64,
    /// Where there is an adversarial loss.
    pub adversarial: Option<AdversarialMetrics>,
}

/// The adversarial metrics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdversarialMetrics {
    /// `−mean(logits of reconstructions)`.
    pub generator_loss: f64,
    /// `½ mean(max(0, 1 − real)) + ½ mean(max(0, 1 + made))`.
    pub discriminator_loss: f64,
    /// λ of the paper's equation 7, before the option's weight.
    pub adaptive_weight: f64,
}

/// Losses of a batch, with the gradients of all parameters.
pub struct Losses {
    /// Metrics of the step that would follow; nothing is restarted, and the gradient's norm is 0.
    pub metrics: Metrics,
    /// Gradients of the VQGAN.
    pub gradients: ByName,
    /// Gradients of the discriminator, where there is one.
    pub discriminator: Option<ByName>,
}

/// Parameters with their optimizer state.
struct TrainedParameters {
    parameters: Parameters,
    ranges: ParameterRanges,
    moments: Moments,
}

impl TrainedParameters {
    fn new((parameters, moments): (Parameters, Moments)) -> Self {
        Self {
            ranges: ParameterRanges::of(&parameters),
            parameters,
            moments,
        }
    }

    fn source(&self) -> ParameterSource<'_> {
        ParameterSource {
            parameters: &self.parameters,
            ranges: &self.ranges,
        }
    }
}

/// A VQGAN in training.
pub struct VqganTrainer {
    spec: VqganSpec,
    options: VqganOptions,
    /// Weight and network of the perceptual loss.
    perceptual: Option<(f64, Lpips)>,
    generator: TrainedParameters,
    discriminator: Option<(Adversarial, TrainedParameters)>,
    /// Steps since each code was last used.
    unused: Vec<u32>,
    averages: Option<Averages>,
}

/// Losses and gradients of a batch, before the update.
struct Pass {
    metrics: Metrics,
    row: Vec<f32>,
    discriminator: Option<Vec<f32>>,
    /// `[n · g · g, width]`.
    z: Vec<f32>,
    codes: Vec<u32>,
}

/// The discriminator's part of a batch.
struct Judged {
    /// Gradients of the adversarial loss with respect to each reconstruction.
    back: Vec<Vec<f32>>,
    generator_loss: f64,
    discriminator_loss: f64,
    row: Vec<f32>,
}

impl VqganTrainer {
    /// A trainer of `parameters`, which are named as in a model directory; [`super::initial`] draws random ones.
    ///
    /// # Errors
    /// `BadInput` for an invalid specification, parameters or options.
    pub fn new(spec: VqganSpec, parameters: Parameters, options: VqganOptions) -> Result<Self> {
        check(&spec, &options)?;
        check_shapes(&parameters, &vqgan_tensors(&spec))?;
        let perceptual = perceptual(&spec, &options)?;
        let discriminator = options.adversarial.map(|adversarial| {
            // Another seed than the VQGAN's: with the same one, kernels of equal shape would be equal.
            let seed = options.seed ^ u64::MAX;
            let parameters = drawn(&discriminator::tensors(&adversarial), seed)?;
            Ok::<_, Error>((
                adversarial,
                TrainedParameters::new((parameters, Moments::default())),
            ))
        });
        let generator = TrainedParameters::new((parameters, Moments::default()));
        let averages = match options.codebook {
            CodebookRule::Loss => None,
            CodebookRule::Average { .. } => {
                let rows = generator.source().values(EMBEDDINGS)?;
                Some(Averages::of(&rows, spec.quantized_embed_dim))
            }
        };
        Ok(Self {
            unused: vec![0; spec.num_embeddings],
            discriminator: discriminator.transpose()?,
            generator,
            averages,
            perceptual,
            spec,
            options,
        })
    }

    /// A trainer that resumes from `state`, with the bits of an uninterrupted run.
    ///
    /// # Errors
    /// `BadInput` naming a tensor that does not fit specification and options.
    pub fn resume(spec: VqganSpec, options: VqganOptions, state: State) -> Result<Self> {
        check(&spec, &options)?;
        let perceptual = perceptual(&spec, &options)?;
        let counters = state.counters;
        let mut tensors = Remaining(state.tensors);
        let (rows, width) = (spec.num_embeddings, spec.quantized_embed_dim);
        let mut take = || {
            let generator = tensors.parameters(&vqgan_tensors(&spec), counters.steps)?;
            let discriminator = options.adversarial.map(|adversarial| {
                let shapes = discriminator::tensors(&adversarial);
                let taken = tensors.parameters(&shapes, counters.discriminator_steps)?;
                Ok::<_, Error>((adversarial, TrainedParameters::new(taken)))
            });
            let discriminator = discriminator.transpose()?;
            let averages = match options.codebook {
                CodebookRule::Loss => None,
                CodebookRule::Average { .. } => Some(Averages {
                    sizes: tensors.f32(SIZES, &[rows])?,
                    sums: tensors.f32(SUMS, &[rows, width])?,
                }),
            };
            let unused = tensors.take(UNUSED, &[rows], DType::U32)?.to_vec1()?;
            Ok((
                TrainedParameters::new(generator),
                discriminator,
                averages,
                unused,
            ))
        };
        let doing = || "resume the training of a VQGAN";
        if digest(&perceptual) != counters.perceptual {
            let message = "the perceptual loss has another network than the run was started with";
            return Err(Error::new(Kind::BadInput, message)).doing(doing);
        }
        let taken: Result<_> = take();
        let (generator, discriminator, averages, unused) = taken.doing(doing)?;
        tensors.finish().doing(doing)?;
        Ok(Self {
            spec,
            options,
            perceptual,
            generator,
            discriminator,
            unused,
            averages,
        })
    }

    /// The state for [`VqganTrainer::resume`], as copies.
    ///
    /// # Errors
    /// When candle has no memory for them.
    pub fn export(&self) -> Result<State> {
        let mut tensors = ByName::new();
        let mut counters = Counters {
            steps: self.generator.moments.steps,
            discriminator_steps: 0,
            perceptual: digest(&self.perceptual),
        };
        let TrainedParameters {
            parameters,
            moments,
            ..
        } = &self.generator;
        export(parameters, moments, &mut tensors)?;
        if let Some((_, side)) = &self.discriminator {
            counters.discriminator_steps = side.moments.steps;
            export(&side.parameters, &side.moments, &mut tensors)?;
        }
        let (rows, width) = (self.spec.num_embeddings, self.spec.quantized_embed_dim);
        let unused = Tensor::from_vec(self.unused.clone(), rows, &Device::Cpu)?;
        tensors.insert(UNUSED.into(), unused);
        if let Some(averages) = &self.averages {
            let sizes = Tensor::from_vec(averages.sizes.clone(), rows, &Device::Cpu)?;
            let sums = Tensor::from_vec(averages.sums.clone(), (rows, width), &Device::Cpu)?;
            tensors.insert(SIZES.into(), sizes);
            tensors.insert(SUMS.into(), sums);
        }
        Ok(State { tensors, counters })
    }

    /// The specification.
    pub fn spec(&self) -> &VqganSpec {
        &self.spec
    }

    /// The VQGAN's parameters, by their names in a model directory.
    pub fn parameters(&self) -> &Parameters {
        &self.generator.parameters
    }

    /// The discriminator's parameters, where there is one.
    pub fn discriminator(&self) -> Option<&Parameters> {
        self.discriminator
            .as_ref()
            .map(|(_, side)| &side.parameters)
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.generator.moments.steps
    }

    /// pixels `[n, side, side, 3]` in [-1, 1], f32 → one step.
    ///
    /// # Errors
    /// `BadInput` for another shape, `Compute` for a pixel, a loss or a gradient that is NaN or infinite; nothing is
    /// changed then.
    pub fn step(&mut self, pixels: &Tensor) -> Result<Metrics> {
        let number = self.steps();
        let pass = self.pass(pixels).and_then(|pass| self.apply(pass));
        pass.doing(|| format!("step {number} of a VQGAN's training"))
    }

    /// pixels `[n, side, side, 3]` → losses and gradients, without an update.
    ///
    /// # Errors
    /// As [`VqganTrainer::step`].
    pub fn losses(&self, pixels: &Tensor) -> Result<Losses> {
        let pass = self.pass(pixels)?;
        let side = &self.generator;
        let discriminator = match (&self.discriminator, &pass.discriminator) {
            (Some((_, side)), Some(row)) => Some(side.ranges.named(row, &side.parameters)?),
            _ => None,
        };
        Ok(Losses {
            metrics: pass.metrics,
            gradients: side.ranges.named(&pass.row, &side.parameters)?,
            discriminator,
        })
    }

    /// pixels `[n, side, side, 3]` → codes `[n, g · g]` and unclipped reconstructions `[n, side, side, 3]`.
    ///
    /// # Errors
    /// As [`VqganTrainer::step`].
    pub fn reconstruct(&self, pixels: &Tensor) -> Result<(Vec<Vec<u32>>, Tensor)> {
        let network = VqganNetwork::load(self.generator.source(), &self.spec)?;
        let frames = self.frames(pixels)?.into_par_iter();
        let passed: Vec<Passed> = frames.map(|frame| network.run(frame)).collect();
        let pictures: Vec<f32> = passed
            .iter()
            .flat_map(|p| &p.picture.data)
            .copied()
            .collect();
        let pictures = Tensor::from_vec(pictures, pixels.shape(), &Device::Cpu)?;
        Ok((passed.into_iter().map(|p| p.codes).collect(), pictures))
    }

    /// Adds pixels `[n, side, side, 3]` to `evaluation`, without an update.
    ///
    /// # Errors
    /// As [`VqganTrainer::step`].
    pub fn evaluate(&self, pixels: &Tensor, evaluation: &mut Evaluation) -> Result<()> {
        let network = VqganNetwork::load(self.generator.source(), &self.spec)?;
        let frames = self.frames(pixels)?;
        let passed = frames.par_iter().map(|frame| network.run(frame.clone()));
        let passed: Vec<Passed> = passed.collect();
        evaluation.add(&network, &frames, &passed, self.spec.num_embeddings);
        if let Some((_, lpips)) = &self.perceptual {
            let pairs = frames.par_iter().zip(&passed);
            let distances = pairs.map(|(frame, passed)| lpips.distance(frame, &passed.picture));
            let distances: Vec<f64> = distances.collect();
            evaluation.add_perceptual(distances.into_iter());
        }
        Ok(())
    }

    /// # Errors
    /// `BadInput` for pixels that do not fit, `Compute` for one that is NaN or infinite.
    fn frames(&self, pixels: &Tensor) -> Result<Vec<Picture>> {
        let side = self.spec.resolution;
        let fits = matches!(*pixels.dims(), [n, h, w, RGB] if n > 0 && (h, w) == (side, side));
        if !fits || pixels.dtype() != DType::F32 {
            let message = format!(
                "pixels are {} {:?}, expected f32 [1 or more, {side}, {side}, 3]",
                pixels.dtype().as_str(),
                pixels.dims()
            );
            return Err(Error::new(Kind::BadInput, message));
        }
        let numbers = pixels.flatten_all()?.to_vec1::<f32>()?;
        if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
            let message = format!("pixel {at} is {}, expected a finite number", numbers[at]);
            return Err(Error::new(Kind::Compute, message));
        }
        let frames = numbers.chunks_exact(side * side * RGB);
        let picture = |data: &[f32]| Picture {
            side,
            data: data.to_vec(),
        };
        Ok(frames.map(picture).collect())
    }

    fn pass(&self, pixels: &Tensor) -> Result<Pass> {
        let frames = self.frames(pixels)?;
        let network = VqganNetwork::load(self.generator.source(), &self.spec)?;
        let passed = frames.par_iter().map(|frame| network.run(frame.clone()));
        let passed: Vec<Passed> = passed.collect();
        let (distances, mut back) = self.reconstruction_back(&frames, &passed);
        let mut metrics = self.measured(&network, &frames, &passed, distances);
        let judged = self.judged(&frames, &passed)?;
        if let Some((adversarial, judged)) = &judged {
            let weight = last_kernel_weight(&network, &passed, &back, &judged.back);
            let share = weight * adversarial.weight;
            add_shares(&mut back, &judged.back, share as f32);
            metrics.loss += share * judged.generator_loss;
            metrics.adversarial = Some(AdversarialMetrics {
                generator_loss: judged.generator_loss,
                discriminator_loss: judged.discriminator_loss,
                adaptive_weight: weight,
            });
        }
        let discriminator_loss = metrics.adversarial.map_or(0.0, |a| a.discriminator_loss);
        if !(metrics.loss.is_finite() && discriminator_loss.is_finite()) {
            let message = format!("the loss is {}, expected a finite number", metrics.loss);
            return Err(Error::new(Kind::Compute, message));
        }
        let row = self.gathered(&network, &passed, back)?;
        Ok(Pass {
            metrics,
            row,
            discriminator: judged.map(|(_, judged)| judged.row),
            z: passed.iter().flat_map(|p| &p.z.data).copied().collect(),
            codes: passed.iter().flat_map(|p| &p.codes).copied().collect(),
        })
    }

    /// Count of numbers in the z of `n` pictures.
    fn latent_numbers(&self, n: usize) -> f64 {
        (n * self.spec.codes_per_frame() * self.spec.quantized_embed_dim) as f64
    }

    /// The metrics without the adversarial part.
    fn measured(
        &self,
        network: &VqganNetwork,
        frames: &[Picture],
        passed: &[Passed],
        distances: Option<Vec<f64>>,
    ) -> Metrics {
        let mut evaluation = Evaluation::default();
        evaluation.add(network, frames, passed, self.spec.num_embeddings);
        if let Some(distances) = distances {
            evaluation.add_perceptual(distances.into_iter());
        }
        let (codes_used, perplexity) = evaluation.usage();
        Metrics {
            step: self.steps(),
            rate: self.options.schedule.at(self.steps()),
            loss: evaluation.loss(&self.options),
            l1: evaluation.l1(),
            l2: evaluation.l2(),
            perceptual: evaluation.perceptual(),
            quantization: evaluation.quantization(),
            psnr_db: evaluation.psnr_db(),
            codes_used,
            perplexity,
            codes_restarted: 0,
            gradient_length: 0.0,
            adversarial: None,
        }
    }

    /// The reconstruction loss: perceptual distances, and the gradients of all its parts with respect to each picture.
    fn reconstruction_back(
        &self,
        frames: &[Picture],
        passed: &[Passed],
    ) -> (Option<Vec<f64>>, Vec<Vec<f32>>) {
        let numbers = frames.iter().map(|f| f.data.len()).sum::<usize>() as f64;
        let shares = [self.options.l1_weight, self.options.l2_weight].map(|w| w / numbers);
        let pairs = frames.par_iter().zip(passed);
        let back = |(frame, passed): (&Picture, &Passed)| {
            differences_back(&passed.picture.data, &frame.data, shares)
        };
        let mut back: Vec<Vec<f32>> = pairs.clone().map(back).collect();
        let distances = self.perceptual.as_ref().map(|(weight, lpips)| {
            let share = weight / frames.len() as f64;
            let perceived =
                pairs.map(|(frame, passed)| lpips.distance_back(frame, &passed.picture, share));
            let (distances, more): (Vec<f64>, Vec<Vec<f32>>) = perceived.collect();
            add_shares(&mut back, &more, 1.0);
            distances
        });
        (distances, back)
    }

    /// The discriminator's part, from its first step on.
    fn judged(
        &self,
        frames: &[Picture],
        passed: &[Passed],
    ) -> Result<Option<(&Adversarial, Judged)>> {
        match &self.discriminator {
            Some((adversarial, side)) if self.steps() >= adversarial.start => {
                let judge = Discriminator::load(side.source(), adversarial)?;
                let of_picture = discriminator::logits_of(adversarial, self.spec.resolution)?;
                let logits = (frames.len() * of_picture) as f64;
                let judged = judged(&judge, &side.ranges, frames, passed, logits);
                Ok(Some((adversarial, judged)))
            }
            _ => Ok(None),
        }
    }

    /// Gradients of the pictures → gradients of all weights, in one row.
    fn gathered(
        &self,
        network: &VqganNetwork,
        passed: &[Passed],
        back: Vec<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let ranges = &self.generator.ranges;
        let share = self.options.codebook_weight / self.latent_numbers(passed.len());
        let shares = CodebookShares {
            codebook: match self.options.codebook {
                CodebookRule::Loss => share as f32,
                CodebookRule::Average { .. } => 0.0,
            },
            commitment: (share * self.options.commitment) as f32,
        };
        let codebook = ranges.get(EMBEDDINGS)?.start;
        let side = self.spec.resolution;
        let items: Vec<(&Passed, Vec<f32>)> = passed.iter().zip(back).collect();
        Ok(ranges.gather(&items, |(passed, data), row| {
            let data = data.clone();
            network.back(passed, Picture { side, data }, shares, codebook, row);
        }))
    }

    /// Updates parameters and codebook.
    fn apply(&mut self, pass: Pass) -> Result<Metrics> {
        let mut metrics = pass.metrics;
        let (adam, rate) = (self.options.adam, metrics.rate);
        let judge = self.discriminator.as_mut().zip(pass.discriminator);
        let judge = judge.map(|((_, side), row)| {
            let gradients = side.ranges.named(&row, &side.parameters)?;
            length(&gradients)?;
            Ok::<_, Error>((side, gradients))
        });
        let judge = judge.transpose()?;
        let follows_loss = self.averages.is_none();
        let side = &mut self.generator;
        let trained = side.parameters.select(|n| follows_loss || n != EMBEDDINGS);
        let gradients = side.ranges.named(&pass.row, &trained)?;
        metrics.gradient_length = adam.step(&trained, &gradients, &mut side.moments, rate)?;
        if let Some((side, gradients)) = judge {
            adam.step(&side.parameters, &gradients, &mut side.moments, rate)?;
        }
        metrics.codes_restarted = self.follow(&pass.z, &pass.codes, metrics.step)?;
        Ok(metrics)
    }

    /// Updates the codebook after a batch → the number of restarted codes.
    fn follow(&mut self, z: &[f32], codes: &[u32], step: u64) -> Result<usize> {
        let width = self.spec.quantized_embed_dim;
        let assigned = Assigned { z, codes, width };
        wait(&mut self.unused, &assigned.counts(self.spec.num_embeddings));
        let (after, seed) = (self.options.restart_after, self.options.seed);
        let restarts = restarts(&mut self.unused, after, codes.len(), [seed, step]);
        if self.averages.is_none() && restarts.is_empty() {
            return Ok(0);
        }
        let mut rows = self.generator.source().values(EMBEDDINGS)?;
        if let (Some(averages), CodebookRule::Average { decay }) =
            (&mut self.averages, self.options.codebook)
        {
            averages.follow(&assigned, decay, &mut rows);
        }
        for &(row, vector) in &restarts {
            let z = &z[vector * width..][..width];
            rows[row * width..][..width].copy_from_slice(z);
            self.begin(row, z);
        }
        let var = self.generator.parameters.get(EMBEDDINGS)?;
        var.set(&Tensor::from_vec(rows, var.shape(), &Device::Cpu)?)?;
        Ok(restarts.len())
    }

    /// Restarts a codebook row at z: its averages and optimizer state are reset.
    fn begin(&mut self, row: usize, z: &[f32]) {
        if let Some(averages) = &mut self.averages {
            averages.begin(row, z);
        }
        let means = self.generator.moments.means.get_mut(EMBEDDINGS);
        for mean in means.into_iter().flatten() {
            mean[row * z.len()..][..z.len()].fill(0.0);
        }
    }
}

fn check(spec: &VqganSpec, options: &VqganOptions) -> Result<()> {
    let checks = || {
        spec.validate()?;
        options.validate()?;
        match &options.adversarial {
            None => Ok(()),
            Some(adversarial) => discriminator::logits_of(adversarial, spec.resolution).map(|_| ()),
        }
    };
    checks().doing(|| "train a VQGAN")
}

/// Weight and network of the perceptual loss, where there is one.
fn perceptual(spec: &VqganSpec, options: &VqganOptions) -> Result<Option<(f64, Lpips)>> {
    let Some(perceptual) = &options.perceptual else {
        return Ok(None);
    };
    let lpips = Lpips::open(perceptual, spec.resolution);
    let lpips = lpips.doing(|| "train a VQGAN: perceptual loss")?;
    Ok(Some((perceptual.weight, lpips)))
}

fn digest(perceptual: &Option<(f64, Lpips)>) -> Option<u64> {
    perceptual.as_ref().map(|(_, lpips)| lpips.digest)
}

fn check_shapes(parameters: &Parameters, shapes: &[NamedShape]) -> Result<()> {
    for (name, shape) in shapes {
        let found = parameters.get(name)?.dims();
        if found != shape.as_slice() {
            let message = format!("{name} has shape {found:?}, expected {shape:?}");
            return Err(Error::new(Kind::BadInput, message));
        }
    }
    Ok(())
}

/// The discriminator's logits of one picture, and its saved activations.
type JudgedPicture = (Picture, Vec<SavedForBackward>);

/// A real picture and its reconstruction.
type JudgedPair = [(Origin, JudgedPicture); 2];

/// The adversarial losses over all logits of a batch, and their gradients.
fn judged(
    judge: &Discriminator,
    ranges: &ParameterRanges,
    frames: &[Picture],
    passed: &[Passed],
    logits: f64,
) -> Judged {
    let pairs = frames.par_iter().zip(passed);
    let seen = pairs.map(|(real, passed)| {
        let (real, made) = (judge.run(real.clone()), judge.run(passed.picture.clone()));
        let mut all = made.0.clone();
        all.data.fill((-1.0 / logits) as f32);
        let back = judge.pixels_back(&made.1, all);
        ([(Origin::Real, real), (Origin::Made, made)], back)
    });
    let (seen, back): (Vec<JudgedPair>, Vec<Vec<f32>>) = seen.collect();
    let share = 0.5 / logits;
    let (mut of_made, mut of_judge) = (0.0, 0.0);
    for (origin, (picture, _)) in seen.iter().flatten() {
        of_judge += hinge(&picture.data, *origin);
        if *origin == Origin::Made {
            of_made += picture.data.iter().map(|&x| f64::from(x)).sum::<f64>();
        }
    }
    let row = ranges.gather(&seen, |pair, row| {
        for (origin, (picture, kept)) in pair {
            let mut back = picture.clone();
            back.data = hinge_back(&picture.data, *origin, share as f32);
            judge.weights_back(kept, back, row);
        }
    });
    Judged {
        back,
        generator_loss: -of_made / logits,
        discriminator_loss: share * of_judge,
        row,
    }
}

/// The adaptive weight, from both losses' gradients with respect to each picture.
fn last_kernel_weight(
    network: &VqganNetwork,
    passed: &[Passed],
    reconstruction: &[Vec<f32>],
    adversarial: &[Vec<f32>],
) -> f64 {
    let gradient = |back: &[Vec<f32>]| {
        let pairs = passed.par_iter().zip(back);
        let rows = pairs.map(|(passed, back)| network.last_kernel_gradient(passed, back));
        let rows: Vec<Vec<f32>> = rows.collect();
        let mut sum = vec![0.0; rows.first().map_or(0, Vec::len)];
        for row in rows {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        sum
    };
    adaptive_weight(&gradient(reconstruction), &gradient(adversarial))
}

/// Adds `share · more` to `back`, picture by picture.
fn add_shares(back: &mut [Vec<f32>], more: &[Vec<f32>], share: f32) {
    back.par_iter_mut().zip(more).for_each(|(back, more)| {
        back.iter_mut().zip(more).for_each(|(x, y)| *x += share * y);
    });
}
