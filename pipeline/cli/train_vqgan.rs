//! `longreel train vqgan`: a frame tokenizer from videos.

use std::{path::Path, time::Instant};

use longreel_models::{checkpoint::writer::write_model, training::model_directory::planned};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::TrainVqganArgs,
        output::Voice,
        train::{StepBar, stored_as},
    },
    error::{Context, Error, Kind, Result},
    plan::peak_memory_bytes,
    stages::progress::Counter,
    train::{
        run_directory::RunDirectory,
        vqgan::{VqganFigures, spec_of, train},
        vqgan_config::VqganConfig,
    },
};

#[derive(Serialize)]
struct VqganJson<'a> {
    out: &'a Path,
    model: String,
    steps: u64,
    frames: u64,
    /// Rows of the codebook.
    codes: usize,
    /// Figures of the last step of this run; absent where nothing was left to do.
    last: Option<VqganFigures>,
    /// Figures of the held-out frames at its end.
    held_out: Option<VqganFigures>,
    skipped_files: u64,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

/// Runs the verb.
pub fn run(args: &TrainVqganArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = Instant::now();
    let config = VqganConfig::open(&args.config)?;
    let written = toml::to_string(&config)
        .map_err(|e| Error::with_source(Kind::Internal, "write the configuration", e))?;
    let spec = spec_of(&config)?;
    let Some(vqgan) = spec.vqgan.clone() else {
        return Err(Error::new(Kind::Internal, "the model has no VQGAN"));
    };
    let codes = vqgan.num_embeddings;
    let run = RunDirectory::open(&args.out, &written)?;
    let mut bar = StepBar::new(voice, config.steps);
    let mut show = |f: &VqganFigures| bar.show(f.step, f.held_out, &words(f, codes));
    let decoded = Counter::default();
    let trained = train(config, vqgan, &run, &decoded, &mut show, cancel);
    drop(bar);
    let outcome = trained.doing(|| format!("train {}", args.out.display()))?;
    for file in &outcome.skipped {
        voice.note(&format!("left out: {file}"));
    }
    let model = run.model();
    let tensors = planned(outcome.trainer.parameters())?;
    write_model(&model, &spec, &tensors, None, stored_as(args.dtype))?;
    let result = VqganJson {
        out: &args.out,
        model: model.display().to_string(),
        steps: outcome.trainer.steps(),
        frames: outcome.frames,
        codes,
        last: outcome.last,
        held_out: outcome.held_out,
        skipped_files: outcome.skipped_files,
        seconds: start.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory_bytes(),
    };
    voice.say(&result, || {
        let shown = result.held_out.or(result.last);
        let shown = shown.map_or(String::new(), |f| format!(", {}", words(&f, codes)));
        format!(
            "{} steps over {} frames{shown}; the VQGAN is in {} ({:.0} s)",
            result.steps, result.frames, result.model, result.seconds
        )
    })
}

/// `loss 0.0321  PSNR 27.1 dB  codes 301 of 512  96 frames/s`
fn words(figures: &VqganFigures, codes: usize) -> String {
    let (psnr, used) = (figures.psnr_db, figures.codes_used);
    let quality = format!("PSNR {psnr:.2} dB  codes {used} of {codes}");
    match figures.held_out {
        true => format!("held out: {quality}"),
        false => format!(
            "loss {:.4}  {quality}  {:.0} frames/s",
            figures.loss, figures.frames_per_s
        ),
    }
}
