//! `longreel train vqgan`: trains a VQGAN on frames of videos.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use longreel_models::{
    checkpoint::writer::{ImportOptions, write_vqgan},
    file_name::{FileName, as_text},
    spec::{VqganSpec, vqgan_alone::VqganAlone},
    training::{model_directory::planned, vqgan::perceptual::Lpips},
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::TrainVqganArgs, output::Voice, resolve, step_bar::StepBar},
    error::{Context, Error, Kind, Result},
    plan::peak_memory_bytes,
    stages::progress::Progress,
    train::{
        config_file::ConfigFile,
        frame_file::{FrameFile, FrameOrder, Skipped},
        run_directory::RunDirectory,
        vqgan::{VqganFigures, VqganJob, train_vqgan},
        vqgan_config::VqganConfig,
    },
};

#[derive(Serialize)]
struct VqganJson<'a> {
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    model: String,
    steps: u64,
    /// Numbers of frames of the videos.
    frames: FrameCounts,
    skipped_videos: Vec<Skipped>,
    /// Metrics of the last step.
    last: Option<VqganFigures>,
    /// Metrics of the held-out frames after it; absent without held-out frames.
    held_out: Option<VqganFigures>,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct FrameCounts {
    train: usize,
    held_out: usize,
}

/// Runs the verb.
pub fn run(args: &TrainVqganArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = Instant::now();
    let config = VqganConfig::open(&args.config)?;
    let written = toml::to_string(&config)
        .map_err(|e| Error::with_source(Kind::Internal, "write the configuration", e))?;
    // Checked before the run's directory records the configuration, and before hours of video are decoded.
    let spec = config.shape()?;
    if let Some(perceptual) = &config.recipe.perceptual {
        Lpips::open(perceptual, spec.resolution).doing(|| "recipe.perceptual")?;
    }
    let run = RunDirectory::open(&args.out, &written)?;
    let job = job(config, spec.clone(), &run, voice, cancel)?;
    let steps = job.config.steps;
    let description = job.config.description.clone();
    let frames = FrameCounts {
        train: job.train.n_frames(),
        held_out: job.held_out.as_ref().map_or(0, FrameFile::n_frames),
    };
    let files = [Some(&job.train), job.held_out.as_ref()];
    let skipped = files.into_iter().flatten().flat_map(FrameFile::skipped);
    let skipped_videos: Vec<Skipped> = skipped.cloned().collect();
    for skipped in &skipped_videos {
        voice.note(&format!("left out: {}", skipped.reason));
    }
    let mut bar = StepBar::new(voice, steps);
    let mut tell = |figures: &VqganFigures| {
        bar.show(figures.step, &words(figures), figures.held_out);
    };
    let trained = train_vqgan(job, &run, &mut tell, cancel);
    drop(bar);
    let (last, trainer) = trained.doing(|| format!("train {}", args.out.shown()))?;
    let model = run.model();
    let options = ImportOptions {
        dtype: resolve::stored_dtype(args.dtype),
        force: true,
        ..ImportOptions::default()
    };
    let tensors = planned(trainer.parameters())?;
    write_vqgan(
        &model,
        &VqganAlone::new(spec, description),
        &tensors,
        options,
    )?;
    let result = VqganJson {
        out: &args.out,
        model: model.text().into_owned(),
        steps: trainer.steps(),
        frames,
        skipped_videos,
        last: last.trained,
        held_out: last.held_out,
        seconds: start.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory_bytes(),
    };
    voice.say(&result, || {
        let shown = result.held_out.or(result.last);
        let shown = shown.map_or(String::new(), |f| format!(", {}", words(&f)));
        format!(
            "{} steps{shown}; the model is in {} ({:.0} s)",
            result.steps, result.model, result.seconds
        )
    })
}

/// The run with its frames, which are decoded unless an earlier run did it.
fn job(
    config: VqganConfig,
    spec: VqganSpec,
    run: &RunDirectory,
    voice: Voice,
    cancel: &Cancel,
) -> Result<VqganJob> {
    let progress = Progress::default();
    let open = |key: &str, name: &str, paths: &[PathBuf]| {
        let order = FrameOrder {
            paths,
            side: spec.resolution,
            rate: config.rate()?,
            frames_max: config.data.frames_max,
        };
        let done = &progress.frames_encoded;
        FrameFile::open(run.path(), name, &order, done, cancel).doing(|| format!("data.{key}"))
    };
    let (train, held_out) = voice.show(&progress, || -> Result<_> {
        let train = open("train", "frames", &config.data.train)?;
        let held_out = match config.data.held_out.as_slice() {
            [] => None,
            paths => Some(open("held_out", "held_out", paths)?),
        };
        Ok((train, held_out))
    })?;
    Ok(VqganJob {
        config,
        spec,
        train,
        held_out,
    })
}

/// `loss 0.1234  L1 0.0456  24.51 dB  301 codes (58.8%)  412 frames/s`
fn words(figures: &VqganFigures) -> String {
    let held_out = if figures.held_out { "held out: " } else { "" };
    let psnr = figures
        .psnr_db
        .map_or("no difference".to_owned(), |db| format!("{db:.2} dB"));
    let perceptual = figures
        .perceptual
        .map_or(String::new(), |d| format!("  LPIPS {d:.4}"));
    let restarted = match figures.codes_restarted {
        0 => String::new(),
        n => format!(", {n} begun anew"),
    };
    let speed = match figures.held_out {
        true => String::new(),
        false => format!("  {:.0} frames/s", figures.frames_per_s),
    };
    format!(
        "{held_out}loss {:.4}  L1 {:.4}{perceptual}  {psnr}  {} codes ({:.1}%){restarted}{speed}",
        figures.loss,
        figures.l1,
        figures.codes_used,
        100.0 * figures.codes_share
    )
}
