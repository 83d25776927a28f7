//! A training run of a VQGAN, from its configuration to a model directory.

use std::time::Instant;

use candle_core::{Device, Tensor};
use longreel_models::{
    checkpoint::layout::vqgan_tensors,
    file_name::FileName,
    spec::VqganSpec,
    systems,
    training::{
        parameters::Parameters,
        vqgan::{
            evaluation::Evaluation,
            initial::first_parameters,
            state::{Counters, State},
            trainer::{AdversarialMetrics, Metrics, VqganTrainer},
        },
    },
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    cancel::Cancel,
    error::{Context, Result},
    train::{
        dataset::Order,
        frame_file::{FrameFile, RGB},
        metrics::{MetricsFile, MetricsLine},
        plot::{Curve, Plot, write_plot},
        run_directory::RunDirectory,
        vqgan_config::VqganConfig,
    },
};

/// Random streams from this number on are for mosaics, those below for the order of frames.
const MOSAICS: u64 = 1 << 48;

/// File name of a checkpoint.
const STATE: &str = "state.safetensors";

/// The curves of the plot.
const CURVES: [Curve<VqganFigures>; 5] = [
    ("L1, trained on", |f| (!f.held_out).then_some(f.l1)),
    ("L1, held out", |f| f.held_out.then_some(f.l1)),
    ("quantization, trained on", |f| {
        (!f.held_out).then_some(f.quantization)
    }),
    ("LPIPS, trained on", |f| {
        f.perceptual.filter(|_| !f.held_out)
    }),
    ("LPIPS, held out", |f| f.perceptual.filter(|_| f.held_out)),
];

/// Metrics of a VQGAN's run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct VqganFigures {
    /// Steps done.
    pub step: u64,
    /// Whether these are of all held-out frames, or of the batch that was trained on.
    pub held_out: bool,
    /// The minimized loss; for held-out frames without the adversarial part.
    pub loss: f64,
    /// Mean of absolute differences from the pixels, which are from -1 to 1.
    pub l1: f64,
    /// Mean of squared differences.
    pub l2: f64,
    /// Mean perceptual distance (LPIPS), where there is a perceptual loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perceptual: Option<f64>,
    /// PSNR of the clipped reconstructions, in decibels; absent for exact ones.
    pub psnr_db: Option<f64>,
    /// Mean squared distance of vectors from their rows of the codebook.
    // The name in metrics of runs that were started before it was spelled like this.
    #[serde(alias = "quantisation")]
    pub quantization: f64,
    /// Distinct codes.
    pub codes_used: usize,
    /// Distinct codes as a share of the codebook.
    pub codes_share: f64,
    /// Perplexity of the codes.
    pub perplexity: f64,
    /// Dead codes that were restarted; 0 for held-out frames.
    pub codes_restarted: usize,
    /// Norm of the gradient before clipping; 0 for held-out frames.
    pub gradient: f64,
    /// Learning rate.
    pub lr: f64,
    /// Where there is an adversarial loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<AdversarialMetrics>,
    /// Frames read so far.
    pub frames: u64,
    /// Frames per second of this step; 0 for held-out frames.
    pub frames_per_s: f64,
}

impl MetricsLine for VqganFigures {
    fn step(&self) -> u64 {
        self.step
    }
}

/// `None` for NaN and infinity, which JSON cannot represent.
fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// The inputs of a run.
pub struct VqganJob {
    /// The configuration.
    pub config: VqganConfig,
    /// The specification of the network.
    pub spec: VqganSpec,
    /// Frames to train on.
    pub train: FrameFile,
    /// Held-out frames.
    pub held_out: Option<FrameFile>,
}

/// The last metrics of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LastFigures {
    /// Metrics of the last step.
    pub trained: Option<VqganFigures>,
    /// The last metrics of held-out frames.
    pub held_out: Option<VqganFigures>,
}

/// Trains, or resumes an earlier run; `tell` receives the figures of every step.
///
/// On Ctrl-C a checkpoint is written first.
///
/// # Errors
/// `Compute` for a loss that is NaN or infinite, `Interrupted` on request; the last checkpoint stays.
pub fn train_vqgan(
    job: VqganJob,
    run: &RunDirectory,
    tell: &mut dyn FnMut(&VqganFigures),
    cancel: &Cancel,
) -> Result<(LastFigures, VqganTrainer)> {
    let mut training = VqganTraining::begin(job, run)?;
    training.go_on(run, tell, cancel)?;
    let mut last = LastFigures::default();
    for figures in training.metrics.read()? {
        match figures.held_out {
            false => last.trained = Some(figures),
            true => last.held_out = Some(figures),
        }
    }
    Ok((last, training.trainer))
}

struct VqganTraining {
    job: VqganJob,
    trainer: VqganTrainer,
    order: Order,
    metrics: MetricsFile<VqganFigures>,
}

impl VqganTraining {
    fn begin(job: VqganJob, run: &RunDirectory) -> Result<Self> {
        let (spec, options) = (job.spec.clone(), job.config.options());
        let trainer = match run.checkpoint::<Counters, _>([STATE])? {
            Some((counters, [tensors])) => {
                VqganTrainer::resume(spec, options, State { tensors, counters })?
            }
            None => VqganTrainer::new(spec, first(&job)?, options)?,
        };
        Ok(Self {
            metrics: MetricsFile::open(run.file("metrics.jsonl"), trainer.steps())?,
            order: Order::new(Some(job.config.seed)),
            job,
            trainer,
        })
    }

    fn go_on(
        &mut self,
        run: &RunDirectory,
        tell: &mut dyn FnMut(&VqganFigures),
        cancel: &Cancel,
    ) -> Result<()> {
        let mut is_saved = true;
        let (steps, save_every) = (self.job.config.steps, self.job.config.checkpoint_every);
        while self.trainer.steps() < steps {
            if let Err(stopped) = cancel.check() {
                if !is_saved {
                    self.save(run)?;
                }
                return Err(stopped);
            }
            self.step(tell)?;
            let step = self.trainer.steps();
            let is_last = step == steps;
            if step.is_multiple_of(self.job.config.evaluate_every) || is_last {
                self.look_at_held_out(tell)?;
            }
            is_saved = step.is_multiple_of(save_every) || is_last;
            if is_saved {
                self.save(run)?;
            }
        }
        Ok(())
    }

    /// [`exchange`] with draws that follow from seed and step.
    fn mosaic(&self, pixels: &Tensor) -> Result<Tensor> {
        let spec = self.trainer.spec();
        let mut draws = ChaCha8Rng::seed_from_u64(self.job.config.seed);
        draws.set_stream(MOSAICS + self.trainer.steps());
        let (n, side) = (pixels.dim(0)?, spec.resolution);
        let mut frames = pixels.flatten_all()?.to_vec1()?;
        let share = self.job.config.data.mosaic;
        exchange(
            &mut frames,
            share,
            [n, side, side / spec.grid()],
            &mut draws,
        );
        Ok(Tensor::from_vec(frames, pixels.shape(), &Device::Cpu)?)
    }

    fn step(&mut self, tell: &mut dyn FnMut(&VqganFigures)) -> Result<()> {
        let start = Instant::now();
        let batch = self.job.config.data.batch;
        let first = self.trainer.steps() * batch as u64;
        let n = self.job.train.n_frames();
        let numbers = (first..first + batch as u64).map(|place| self.order.at(place, n));
        let mut pixels = self.job.train.pixels(numbers)?;
        if self.job.config.data.mosaic > 0.0 {
            pixels = self.mosaic(&pixels)?;
        }
        let metrics = self.trainer.step(&pixels)?;
        let seconds = start.elapsed().as_secs_f64();
        let figures = self.of_step(&metrics, batch as f64 / seconds);
        self.metrics.append(&figures)?;
        tell(&figures);
        Ok(())
    }

    fn of_step(&self, metrics: &Metrics, frames_per_s: f64) -> VqganFigures {
        let step = metrics.step + 1;
        VqganFigures {
            step,
            held_out: false,
            loss: metrics.loss,
            l1: metrics.l1,
            l2: metrics.l2,
            perceptual: metrics.perceptual,
            psnr_db: finite(metrics.psnr_db),
            quantization: metrics.quantization,
            codes_used: metrics.codes_used,
            codes_share: self.share(metrics.codes_used),
            perplexity: metrics.perplexity,
            codes_restarted: metrics.codes_restarted,
            gradient: metrics.gradient_length,
            lr: metrics.rate,
            adversarial: metrics.adversarial,
            frames: step * self.job.config.data.batch as u64,
            frames_per_s,
        }
    }

    fn share(&self, codes: usize) -> f64 {
        codes as f64 / self.job.spec.num_embeddings as f64
    }

    fn look_at_held_out(&self, tell: &mut dyn FnMut(&VqganFigures)) -> Result<()> {
        let Some(held_out) = &self.job.held_out else {
            return Ok(());
        };
        let mut evaluation = Evaluation::default();
        let (n, batch) = (held_out.n_frames(), self.job.config.data.batch);
        for first in (0..n).step_by(batch) {
            let pixels = held_out.pixels(first..n.min(first + batch))?;
            let looked = self.trainer.evaluate(&pixels, &mut evaluation);
            looked.doing(|| "held-out frames")?;
        }
        let figures = self.of_held_out(&evaluation);
        self.metrics.append(&figures)?;
        tell(&figures);
        Ok(())
    }

    fn of_held_out(&self, evaluation: &Evaluation) -> VqganFigures {
        let options = self.job.config.options();
        let step = self.trainer.steps();
        let (codes_used, perplexity) = evaluation.usage();
        VqganFigures {
            step,
            held_out: true,
            loss: evaluation.loss(&options),
            l1: evaluation.l1(),
            l2: evaluation.l2(),
            perceptual: evaluation.perceptual(),
            psnr_db: finite(evaluation.psnr_db()),
            quantization: evaluation.quantization(),
            codes_used,
            codes_share: self.share(codes_used),
            perplexity,
            codes_restarted: 0,
            gradient: 0.0,
            lr: options.schedule.at(step.saturating_sub(1)),
            adversarial: None,
            frames: step * self.job.config.data.batch as u64,
            frames_per_s: 0.0,
        }
    }

    fn save(&self, run: &RunDirectory) -> Result<()> {
        let State { tensors, counters } = self.trainer.export()?;
        run.write_checkpoint(counters.steps, &counters, &[(STATE, &tensors)])?;
        let title = self.job.config.description.as_deref();
        let plot = Plot {
            title: title.unwrap_or("training of a VQGAN"),
            unit: "mean difference (of pixels from -1 to 1)",
            curves: &CURVES,
        };
        write_plot(&run.file("loss.svg"), &plot, &self.metrics.read()?)
    }
}

/// The initial weights.
fn first(job: &VqganJob) -> Result<Parameters> {
    match &job.config.model.init {
        None => first_parameters(&job.spec, job.config.seed),
        Some(dir) => {
            let doing = || format!("take the VQGAN of {}", dir.shown());
            let weights = systems::open(dir).and_then(|system| system.weights());
            let mut weights = weights.doing(doing)?;
            Parameters::of_weights(&vqgan_tensors(&job.spec), &mut weights).doing(doing)
        }
    }
}

/// Mosaic: of frames `[n, side, side, 3]` the first `share` exchange their cells of `cell` pixels: each cell of the
/// grid is permuted among these frames, by `draws`.
fn exchange(frames: &mut [f32], share: f64, [n, side, cell]: [usize; 3], draws: &mut ChaCha8Rng) {
    let (line, frame) = (cell * RGB, side * side * RGB);
    let old = frames.to_vec();
    let mut order: Vec<usize> = (0..(n as f64 * share).round() as usize).collect();
    for place in 0..(side / cell).pow(2) {
        order.shuffle(draws);
        let (row, column) = (place / (side / cell), place % (side / cell));
        for (to, &from) in order.iter().enumerate() {
            for y in row * cell..(row + 1) * cell {
                let at = (y * side + column * cell) * RGB;
                let source = &old[from * frame + at..][..line];
                frames[to * frame + at..][..line].copy_from_slice(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::{RGB, exchange};

    #[test]
    fn a_mosaic_permutes_cells_between_frames_only() {
        let (n, mixed, side, cell) = (8, 6, 6, 2);
        let frame = side * side * RGB;
        let old: Vec<f32> = (0..n * frame).map(|i| i as f32).collect();
        let mut new = old.clone();
        let mut draws = ChaCha8Rng::seed_from_u64(1);
        exchange(&mut new, 0.75, [n, side, cell], &mut draws);
        assert_eq!(new[mixed * frame..], old[mixed * frame..]);
        let mut from_others = 0;
        for place in 0..frame {
            let mut here: Vec<f32> = (0..mixed).map(|i| new[i * frame + place]).collect();
            here.sort_by(f32::total_cmp);
            let there: Vec<f32> = (0..mixed).map(|i| old[i * frame + place]).collect();
            assert_eq!(here, there, "place {place}");
            from_others += usize::from(new[place] != old[place]);
        }
        assert!(from_others > frame / 4, "{from_others} of {frame}");
        // A cell is moved whole: all its numbers come from one frame.
        let source = |place: usize| new[place] as usize / frame;
        let line = cell * RGB;
        assert!((0..line).all(|i| source(i) == source(0)));
        assert!((0..line).all(|i| source(side * RGB + i) == source(0)));
    }
}
