//! `longreel train`: LWM's training recipe.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use longreel_models::{
    checkpoint::writer::{ImportOptions, check_layout, write_model},
    context::tokenizer::Tokenizer,
    file_name::{FileName, as_text},
    spec::ModelSpec,
    training::{
        model_directory::{planned, planned_vqgan},
        trainer::Trainer,
    },
};
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::{TrainDecoderArgs, TrainVerb},
        output::Voice,
        resolve,
        step_bar::StepBar,
        train_data, train_make_qa, train_vqgan,
    },
    error::{Context, Error, Kind, Result},
    plan::peak_memory_bytes,
    train::{
        config::TrainConfig,
        config_file::ConfigFile,
        decoder::{Job, spec_of, tokenizer_of, train},
        metrics::Figures,
        run_directory::RunDirectory,
    },
};

#[derive(Serialize)]
struct DecoderJson<'a> {
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    model: String,
    steps: u64,
    tokens: u64,
    /// Metrics of the last step.
    last: Option<Figures>,
    /// Lines skipped because they are not examples, of the training and held-out data, each counted once.
    skipped_lines: usize,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

/// Runs the verb.
pub fn run(verb: TrainVerb, voice: Voice, cancel: &Cancel) -> Result<()> {
    match verb {
        TrainVerb::Decoder(args) => decoder(&args, voice, cancel),
        TrainVerb::Vqgan(args) => train_vqgan::run(&args, voice, cancel),
        TrainVerb::MakeLines(args) => train_data::make_lines(&args, voice, cancel),
        TrainVerb::MakeQa(args) => train_make_qa::run(&args, voice, cancel),
        TrainVerb::Tokenizer(args) => train_data::tokenizer(&args, voice),
    }
}

fn decoder(args: &TrainDecoderArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = Instant::now();
    let config = TrainConfig::open(&args.config)?;
    let written = toml::to_string(&config)
        .map_err(|e| Error::with_source(Kind::Internal, "write the configuration", e))?;
    let spec = spec_of(&config)?;
    let tokenizer_at = tokenizer_of(&config).ok_or_else(|| {
        Error::new(
            Kind::BadInput,
            "model.tokenizer is missing, expected a tokenizer",
        )
    })?;
    let tokenizer_at = tokenizer_at.clone();
    let vqgan = vqgan_at(&config, &spec)?;
    let run = RunDirectory::open(&args.out, &written)?;
    let job = Job {
        tokenizer: Tokenizer::open(&tokenizer_at)?,
        pools: pools(args.ring.map_or(1, usize::from))?,
        spec: spec.clone(),
        config: config.clone(),
    };
    let mut bar = StepBar::new(voice, config.steps);
    let mut tell = |figures: &Figures| bar.show(figures.step, &words(figures), figures.held_out);
    let trained = train(job, &run, &mut tell, cancel);
    drop(bar);
    let (outcome, trainer) = trained.doing(|| format!("train {}", args.out.shown()))?;
    for line in &outcome.skipped {
        voice.note(&format!("left out: {line}"));
    }
    let unnamed = outcome.skipped_lines - outcome.skipped.len();
    if unnamed > 0 {
        voice.note(&format!("left out: {unnamed} more lines"));
    }
    let model = run.model();
    write_trained(
        &model,
        &spec,
        &trainer,
        vqgan.as_deref(),
        &tokenizer_at,
        args,
    )?;
    let result = DecoderJson {
        out: &args.out,
        model: model.text().into_owned(),
        steps: outcome.standing.step,
        tokens: outcome.standing.tokens,
        last: outcome.last,
        skipped_lines: outcome.skipped_lines,
        seconds: start.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory_bytes(),
    };
    voice.say(&result, || {
        let loss = result
            .last
            .map_or(String::new(), |last| format!(", loss {:.4}", last.loss));
        let left_out = match result.skipped_lines {
            0 => String::new(),
            n => format!(", {n} lines left out"),
        };
        format!(
            "{} steps, {} tokens{loss}{left_out}; the model is in {} ({:.0} s)",
            result.steps, result.tokens, result.model, result.seconds
        )
    })
}

/// The directory of the trained model's VQGAN; `None` for a model without one.
fn vqgan_at(config: &TrainConfig, spec: &ModelSpec) -> Result<Option<PathBuf>> {
    let model = &config.model;
    let of_init = model.init.as_ref().filter(|_| model.spec.is_none());
    match (&spec.vqgan, model.vqgan.as_ref().or(of_init)) {
        (None, _) if model.vqgan.is_some() => {
            let message = "model.vqgan is named, and the model reads no codes: \
                           expected model.spec with it, a model file that has [vqgan]";
            Err(Error::new(Kind::BadInput, message))
        }
        (None, _) => Ok(None),
        (Some(vqgan), Some(dir)) => {
            // Checked here so that it does not fail after hours of training.
            planned_vqgan(dir, vqgan)?;
            Ok(Some(dir.clone()))
        }
        (Some(_), None) => {
            let message =
                "model.vqgan is missing, expected a model directory whose VQGAN the model keeps";
            Err(Error::new(Kind::BadInput, message))
        }
    }
}

/// A thread pool for each of `ranks` ranks; none for a single rank, which uses the global pool.
fn pools(ranks: usize) -> Result<Vec<ThreadPool>> {
    if ranks == 1 {
        return Ok(Vec::new());
    }
    let each = (rayon::current_num_threads() / ranks).max(1);
    let pool = |_| ThreadPoolBuilder::new().num_threads(each).build();
    let pools = (0..ranks).map(pool).collect::<std::result::Result<_, _>>();
    pools.map_err(|e| Error::with_source(Kind::Internal, "start the threads of a rank", e))
}

/// Writes the trained model, replacing what an earlier call left.
fn write_trained(
    out: &Path,
    spec: &ModelSpec,
    trainer: &Trainer,
    vqgan: Option<&Path>,
    tokenizer: &Path,
    args: &TrainDecoderArgs,
) -> Result<()> {
    let mut tensors = planned(trainer.network().parameters())?;
    if let (Some(dir), Some(shape)) = (vqgan, &spec.vqgan) {
        tensors.extend(planned_vqgan(dir, shape)?);
    }
    check_layout(spec, &tensors)?;
    let options = ImportOptions {
        dtype: resolve::stored_dtype(args.dtype),
        force: true,
        ..ImportOptions::default()
    };
    write_model(out, spec, &tensors, tokenizer, options).map(drop)
}

/// `loss 1.2345  text 0.61 (83.1%)  codes 2.10 (40.2%)  12345 tokens/s`
fn words(figures: &Figures) -> String {
    let of = |name: &str, loss: f64, accuracy: f64| match loss > 0.0 {
        true => format!("  {name} {loss:.3} ({:.1}%)", 100.0 * accuracy),
        false => String::new(),
    };
    let held_out = if figures.held_out { "held out: " } else { "" };
    let text = of("text", figures.text_loss, figures.text_accuracy);
    let codes = of("codes", figures.vision_loss, figures.vision_accuracy);
    let speed = match figures.held_out {
        true => String::new(),
        false => format!("  {:.0} tokens/s", figures.tokens_per_s),
    };
    format!("{held_out}loss {:.4}{text}{codes}{speed}", figures.loss)
}
