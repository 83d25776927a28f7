//! The command line: one file per verb.

mod args;
mod ask;
mod bench;
mod bench_answers;
mod bench_context;
mod choosing;
mod demo;
mod encode;
mod frames;
mod generate;
mod import;
mod models;
mod open;
mod output;
mod plan;
mod plan_encode;
mod plan_inputs;
mod reconstruct;
mod resolve;
mod search;
mod signals;
mod step_bar;
mod synth;
mod train;
mod train_data;
mod train_make_qa;
mod train_vqgan;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use clap::Parser;
use longreel_kernels::candle_threads;
use longreel_models::attention::link::mpi;

use crate::{
    cli::{
        args::{BenchVerb, Cli, ModelsVerb, TrainVerb, Verb},
        output::Voice,
        signals::Signals,
    },
    error::{Error, Kind, Result},
};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Only rank 0 of several processes writes output.
    let follows = mpi::launched_as().is_some_and(|rank| rank > 0);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if follows => return ExitCode::from(usage_code(&error)),
        Err(error) => return report_usage(&error),
    };
    if is_training(&cli.verb) {
        candle_threads::start_none();
    }
    let voice = Voice {
        json: cli.json && !follows,
        quiet: cli.quiet || follows,
    };
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return report(&error, voice, 1),
    };
    let resumable = matches!(
        cli.verb,
        Verb::Encode(_) | Verb::Synth(_) | Verb::Train(_) | Verb::Models(ModelsVerb::Pull { .. })
    );
    let work = || {
        // `bench kernels` makes its own pools, one for each number of threads that is measured.
        if !matches!(cli.verb, Verb::Bench(BenchVerb::Kernels(_))) {
            start_threads(&cli.threads)?;
        }
        run(cli.verb, &cli.threads, voice, &signals)
    };
    // Unwind safety: after a panic nothing is used but the message on stderr.
    let result = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the program panicked")));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = exit_code(&error, resumable && signals.terminated());
            report(&error, voice, code)
        }
    }
}

fn usage_code(error: &clap::Error) -> u8 {
    u8::try_from(error.exit_code()).unwrap_or(2)
}

/// Help and version go to stdout with code 0, mistakes to stderr with code 2.
fn report_usage(error: &clap::Error) -> ExitCode {
    let code = usage_code(error);
    let _ = error.print();
    if error.use_stderr() && std::env::args_os().any(|a| a == "--json") {
        let message = error.to_string();
        let message = message.lines().next().unwrap_or_default();
        say_error(Kind::Usage, message.trim_start_matches("error: "), code);
    }
    ExitCode::from(code)
}

fn run(verb: Verb, threads: &[usize], voice: Voice, signals: &Signals) -> Result<()> {
    let cancel = signals.cancel();
    check_launch(&verb)?;
    match verb {
        Verb::Ask(args) => ask::run(args, voice, cancel),
        Verb::Frames(args) => frames::run(args, voice, cancel),
        Verb::Encode(args) => encode::run(args, voice, cancel),
        Verb::Search(args) => search::run(args, voice, cancel),
        Verb::Reconstruct(args) => reconstruct::run(args, voice, cancel),
        Verb::Generate(args) => generate::run(args, voice, cancel),
        Verb::Synth(args) => synth::run(args, voice, cancel),
        Verb::Demo(args) => demo::run(&args, voice, cancel),
        Verb::Import(args) => import::run(args, voice, cancel),
        Verb::Models(verb) => models::run(verb, voice, cancel),
        Verb::Plan(args) => plan::run(args, voice, cancel),
        Verb::Train(verb) => train::run(verb, voice, cancel),
        Verb::Bench(verb) => bench::run(verb, threads, voice, cancel),
    }
}

/// Refuses verbs that do not distribute their work: each process would repeat it.
fn check_launch(verb: &Verb) -> Result<()> {
    match mpi::launched() {
        Some(processes) if processes > 1 && !runs_on_several(verb) => Err(Error::new(
            Kind::Usage,
            format!(
                "{processes} processes were started, only `ask` and `bench context` run on several"
            ),
        )),
        _ => Ok(()),
    }
}

/// Whether gradients are computed, which uses many of candle's element-wise operations.
fn is_training(verb: &Verb) -> bool {
    matches!(
        verb,
        Verb::Train(TrainVerb::Decoder(_) | TrainVerb::Vqgan(_))
    )
}

fn runs_on_several(verb: &Verb) -> bool {
    matches!(verb, Verb::Ask(_) | Verb::Bench(BenchVerb::Context(_)))
}

fn start_threads(threads: &[usize]) -> Result<()> {
    let n = match *threads {
        [] => return Ok(()),
        [n] => resolve::within("--threads", n, 1..=1024)?,
        _ => {
            let message = "--threads takes one number; several are for `bench kernels`";
            return Err(Error::new(Kind::Usage, message));
        }
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .build_global();
    pool.map_err(|e| Error::with_source(Kind::Internal, "start the thread pool", e))
}

/// 2 for bad usage or bad input, 75 for stopped by SIGTERM and resumable, 130 for interrupted, else 1.
fn exit_code(error: &Error, resumable: bool) -> u8 {
    match error.kind() {
        Kind::Usage | Kind::BadInput | Kind::NotFound | Kind::TooLarge => 2,
        Kind::Interrupted if resumable => 75,
        Kind::Interrupted => 130,
        Kind::Io | Kind::Network | Kind::Compute | Kind::Internal => 1,
    }
}

#[derive(serde::Serialize)]
struct ErrorJson<'a> {
    error: ErrorBody<'a>,
}

#[derive(serde::Serialize)]
struct ErrorBody<'a> {
    kind: String,
    message: &'a str,
    exit_code: u8,
}

fn report(error: &Error, voice: Voice, code: u8) -> ExitCode {
    let message = error.to_string();
    output::tell(&message);
    if voice.json && !output::has_spoken() {
        say_error(error.kind(), &message, code);
    }
    ExitCode::from(code)
}

/// Prints the JSON object of a failed run.
fn say_error(kind: Kind, message: &str, exit_code: u8) {
    let body = ErrorJson {
        error: ErrorBody {
            kind: format!("{kind:?}"),
            message,
            exit_code,
        },
    };
    // Writing to stdout may be the failure itself; the message is on stderr already.
    let _ = output::to_json(&body).and_then(|json| output::write_stdout(&json, true));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{args::Cli, is_training};

    #[test]
    fn only_training_goes_without_the_threads_that_quantized_matrices_need() {
        let of = |line: &str| is_training(&Cli::parse_from(line.split(' ')).verb);
        assert!(of("longreel train decoder a.toml --out b"));
        assert!(of("longreel train vqgan a.toml --out b"));
        assert!(!of("longreel ask What? --model chat.gguf"));
        assert!(!of("longreel train make-qa a.txt --model b --out c"));
    }
}
