//! The training of a VQGAN, from its configuration to a trained one.

use std::{collections::BTreeMap, time::Instant};

use longreel_models::{
    checkpoint::import_hf::{spec_of_directory, weights_of_directory},
    checkpoint::layout::vqgan_tensors,
    spec::{ModelSpec, VqganSpec},
    training::{
        parameters::Parameters,
        vqgan::{
            initial::first_parameters,
            state::{Counters, State},
            trainer::{Metrics, VqganTrainer},
        },
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    sources::sampler::{Sampling, parse_rate},
    stages::progress::Counter,
    train::{
        dataset::shuffled,
        frame_file::{FrameFile, FrameRules},
        metrics::{MetricsFile, OfStep},
        plot::{Curve, write_plot},
        run_directory::RunDirectory,
        vqgan_config::VqganConfig,
    },
};

/// The file of a checkpoint.
const STATE: &str = "state.safetensors";

/// Frames that are reconstructed at a time.
const TOGETHER: usize = 64;

/// Decibels of pictures that equal their pixels: JSON has no infinity.
const PSNR_MAX: f64 = 100.0;

/// What a run tells of one step, or of the held-out frames behind it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct VqganFigures {
    /// Steps done.
    pub step: u64,
    /// Of the batch that was trained on, or of held-out frames.
    pub held_out: bool,
    /// What is made small; 0 for held-out frames.
    pub loss: f64,
    /// Mean of absolute differences, of pixels in [-1, 1].
    pub l1: f64,
    /// Mean of squared differences.
    pub l2: f64,
    /// Peak signal to noise, decibels.
    pub psnr_db: f64,
    /// Distinct codes.
    pub codes_used: usize,
    /// `e` to the entropy of the codes.
    pub perplexity: f64,
    /// Dead codes that began anew.
    pub codes_restarted: usize,
    /// Learning rate.
    pub lr: f64,
    /// Frames a second of this step; 0 for held-out frames.
    pub frames_per_s: f64,
    /// `½ mean(max(0, 1 − real)) + ½ mean(max(0, 1 + made))`, where there is a discriminator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discriminator_loss: Option<f64>,
}

impl OfStep for VqganFigures {
    fn step(&self) -> u64 {
        self.step
    }
}

/// What a run came to.
pub struct VqganOutcome {
    /// The trained one.
    pub trainer: VqganTrainer,
    /// Frames that it learns from.
    pub frames: u64,
    /// Figures of the last step of this run, if one was done.
    pub last: Option<VqganFigures>,
    /// Figures of the held-out frames at the end of this run.
    pub held_out: Option<VqganFigures>,
    /// Files that gave no frames.
    pub skipped_files: u64,
    /// The first few of them, with the reason.
    pub skipped: Vec<String>,
}

/// The specification of the model whose VQGAN is trained.
///
/// # Errors
/// `BadInput` for one that cannot be read, or has no VQGAN.
pub fn spec_of(config: &VqganConfig) -> Result<ModelSpec> {
    let (spec, path) = match (&config.model.spec, &config.model.init) {
        (Some(path), _) => {
            let doing = || format!("read {}", path.display());
            let text = std::fs::read_to_string(path).doing(doing)?;
            (ModelSpec::from_toml(&text).doing(doing)?, path)
        }
        (None, Some(dir)) => (spec_of_directory(dir)?, dir),
        (None, None) => {
            let message = "model.spec and model.init are missing, expected one of them";
            return Err(Error::new(Kind::BadInput, message));
        }
    };
    match spec.vqgan {
        Some(_) => Ok(spec),
        None => {
            let message = format!("{} has no VQGAN, expected a model with one", path.display());
            Err(Error::new(Kind::BadInput, message))
        }
    }
}

/// Trains, or goes on where an earlier run stopped; `tell` hears of every step, `decoded` counts frames before the first.
///
/// On Ctrl-C a checkpoint is written first.
///
/// # Errors
/// `Compute` for a loss that is no number, `Interrupted` when told to stop; the last checkpoint stays.
pub fn train(
    config: VqganConfig,
    spec: VqganSpec,
    run: &RunDirectory,
    decoded: &Counter,
    tell: &mut dyn FnMut(&VqganFigures),
    cancel: &Cancel,
) -> Result<VqganOutcome> {
    let mut training = Training::begin(config, spec, run, decoded, cancel)?;
    training.go_on(run, tell, cancel)?;
    let (skipped_files, skipped) = training.frames.skipped();
    Ok(VqganOutcome {
        frames: training.frames.n_frames(),
        last: training.last,
        held_out: training.last_held_out,
        skipped_files,
        skipped: skipped.to_vec(),
        trainer: training.trainer,
    })
}

struct Training {
    config: VqganConfig,
    spec: VqganSpec,
    trainer: VqganTrainer,
    frames: FrameFile,
    held_out: Option<FrameFile>,
    order: Order,
    metrics: MetricsFile<VqganFigures>,
    last: Option<VqganFigures>,
    last_held_out: Option<VqganFigures>,
}

/// Frames in another order in every pass.
struct Order {
    n: u32,
    seed: u64,
    pass: Option<u64>,
    order: Vec<u32>,
}

impl Order {
    /// Number `place` of the endless row.
    fn at(&mut self, place: u64) -> u32 {
        let n = u64::from(self.n);
        let pass = place / n;
        if self.pass != Some(pass) {
            self.order = shuffled(self.n, self.seed, pass);
            self.pass = Some(pass);
        }
        self.order[(place % n) as usize]
    }
}

impl Training {
    fn begin(
        config: VqganConfig,
        spec: VqganSpec,
        run: &RunDirectory,
        decoded: &Counter,
        cancel: &Cancel,
    ) -> Result<Self> {
        let rules = FrameRules {
            side: spec.resolution,
            sampling: Sampling::Fps(parse_rate(&config.data.fps)?),
            frames_max: config.data.frames_max.unwrap_or(u64::MAX),
        };
        let open =
            |sources, name: &str| FrameFile::of(sources, &rules, &run.file(name), decoded, cancel);
        let frames = open(&config.data.train, "frames.rgb")?;
        let held_out = match config.data.held_out.is_empty() {
            true => None,
            false => Some(open(&config.data.held_out, "held_out.rgb")?),
        };
        let options = config.recipe.clone();
        let trainer = match run.checkpoint::<Counters>()? {
            Some(checkpoint) => {
                let tensors = checkpoint.tensors(STATE)?;
                let counters = checkpoint.standing;
                VqganTrainer::resume(spec.clone(), options, State { tensors, counters })?
            }
            None => VqganTrainer::new(spec.clone(), parameters(&config, &spec)?, options)?,
        };
        let metrics = MetricsFile::open(run.file("metrics.jsonl"), trainer.steps())?;
        let order = Order {
            n: u32::try_from(frames.n_frames()).unwrap_or(u32::MAX),
            seed: config.seed,
            pass: None,
            order: Vec::new(),
        };
        Ok(Self {
            config,
            spec,
            trainer,
            frames,
            held_out,
            order,
            metrics,
            last: None,
            last_held_out: None,
        })
    }

    fn go_on(
        &mut self,
        run: &RunDirectory,
        tell: &mut dyn FnMut(&VqganFigures),
        cancel: &Cancel,
    ) -> Result<()> {
        let mut is_saved = true;
        while self.trainer.steps() < self.config.steps {
            if let Err(stopped) = cancel.check() {
                if !is_saved {
                    self.save(run)?;
                }
                return Err(stopped);
            }
            self.step(tell)?;
            let step = self.trainer.steps();
            let is_last = step == self.config.steps;
            if step.is_multiple_of(self.config.evaluate_every) || is_last {
                self.look_at_held_out(tell)?;
            }
            is_saved = step.is_multiple_of(self.config.checkpoint_every) || is_last;
            if is_saved {
                self.save(run)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, tell: &mut dyn FnMut(&VqganFigures)) -> Result<()> {
        let start = Instant::now();
        let batch = self.config.data.batch;
        let first = self.trainer.steps() * batch as u64;
        let numbers: Vec<u32> = (first..)
            .take(batch)
            .map(|place| self.order.at(place))
            .collect();
        let metrics = self.trainer.step(&self.frames.pixels(&numbers)?)?;
        let frames_per_s = batch as f64 / start.elapsed().as_secs_f64();
        let figures = VqganFigures {
            frames_per_s,
            ..of_step(&metrics)
        };
        self.metrics.append(&figures)?;
        self.last = Some(figures);
        tell(&figures);
        Ok(())
    }

    fn look_at_held_out(&mut self, tell: &mut dyn FnMut(&VqganFigures)) -> Result<()> {
        let Some(held_out) = &self.held_out else {
            return Ok(());
        };
        let (mut l1, mut l2, mut numbers) = (0.0, 0.0, 0.0);
        let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
        let n = u32::try_from(held_out.n_frames()).unwrap_or(u32::MAX);
        let frames: Vec<u32> = (0..n).collect();
        for frames in frames.chunks(TOGETHER) {
            let pixels = held_out.pixels(frames)?;
            let (codes, pictures) = self.trainer.reconstruct(&pixels)?;
            for code in codes.into_iter().flatten() {
                *counts.entry(code).or_default() += 1.0;
            }
            let differences = (pixels - pictures.clamp(-1f32, 1f32)?)?;
            let sum = |x: candle_core::Tensor| x.sum_all()?.to_scalar::<f32>();
            l1 += f64::from(sum(differences.abs()?)?);
            l2 += f64::from(sum(differences.sqr()?)?);
            numbers += differences.elem_count() as f64;
        }
        let (l1, l2) = (l1 / numbers, l2 / numbers);
        let all: f64 = counts.values().sum();
        let entropy: f64 = counts.values().map(|n| -(n / all) * (n / all).ln()).sum();
        let figures = VqganFigures {
            step: self.trainer.steps(),
            held_out: true,
            loss: 0.0,
            l1,
            l2,
            // Pixels are two wide: from -1 to 1.
            psnr_db: (10.0 * (4.0 / l2).log10()).min(PSNR_MAX),
            codes_used: counts.len(),
            perplexity: entropy.exp(),
            codes_restarted: 0,
            lr: 0.0,
            frames_per_s: 0.0,
            discriminator_loss: None,
        };
        self.metrics.append(&figures)?;
        self.last_held_out = Some(figures);
        tell(&figures);
        Ok(())
    }

    fn save(&self, run: &RunDirectory) -> Result<()> {
        let State { tensors, counters } = self.trainer.export()?;
        run.write_checkpoint(counters.steps, &counters, &[(STATE, &tensors)])?;
        let title = self.config.description.as_deref().unwrap_or("training");
        let title = format!("{title}: codebook of {}", self.spec.num_embeddings);
        let curves = curves(&self.metrics.read()?);
        write_plot(&run.file("psnr.svg"), &title, "PSNR, decibels", &curves)
    }
}

/// The weights that a run begins with.
fn parameters(config: &VqganConfig, spec: &VqganSpec) -> Result<Parameters> {
    match &config.model.init {
        None => Ok(first_parameters(spec, config.seed)?),
        Some(dir) => {
            let doing = || format!("take the VQGAN of {}", dir.display());
            let mut weights = weights_of_directory(dir)?;
            Parameters::of_weights(&vqgan_tensors(spec), &mut weights).doing(doing)
        }
    }
}

fn of_step(metrics: &Metrics) -> VqganFigures {
    VqganFigures {
        step: metrics.step + 1,
        held_out: false,
        loss: metrics.loss,
        l1: metrics.l1,
        l2: metrics.l2,
        psnr_db: metrics.psnr_db.min(PSNR_MAX),
        codes_used: metrics.codes_used,
        perplexity: metrics.perplexity,
        codes_restarted: metrics.codes_restarted,
        lr: metrics.rate,
        frames_per_s: 0.0,
        discriminator_loss: metrics.adversarial.map(|a| a.discriminator_loss),
    }
}

fn curves(figures: &[VqganFigures]) -> [Curve; 2] {
    let of = |held_out: bool| {
        let chosen = figures.iter().filter(|f| f.held_out == held_out);
        chosen.map(|f| (f.step, f.psnr_db)).collect()
    };
    [
        Curve {
            name: "trained on",
            points: of(false),
        },
        Curve {
            name: "held out",
            points: of(true),
        },
    ]
}
