//! `longreel bench context`: seconds and memory of contexts of given lengths on this machine.

use std::{fs::OpenOptions, io::Write, path::Path};

use longreel_models::file_name::FileName;
use longreel_models::{llama::Decoder, spec::ModelSpec};
use serde::Serialize;

use crate::{
    bench::{
        context::{ContextOptions, ContextRow, measure},
        machine::{Build, Machine},
        random_weights::{random_bytes, random_decoder},
    },
    cancel::Cancel,
    cli::{
        args::ContextArgs,
        open,
        output::{self, Voice, to_json},
        resolve::{self, within},
    },
    error::{Context, Error, Kind, Result},
    model::{Choices, ModelFiles},
    plan::{Demand, Plan, bytes, peak_memory_bytes},
    prepare,
    ranks::Ranks,
    stages::progress::Progress,
};

#[derive(Serialize)]
struct ContextReport {
    #[serde(flatten)]
    build: Build,
    machine: Machine,
    model: String,
    threads: usize,
    link: Option<&'static str>,
    interrupted: bool,
    rows: Vec<ContextRow>,
}

/// A row with the machine and model, as appended to a file of results.
#[derive(Serialize)]
struct ContextLine<'a> {
    #[serde(flatten)]
    build: Build,
    machine: &'a Machine,
    model: &'a str,
    threads: usize,
    link: Option<&'static str>,
    #[serde(flatten)]
    row: &'a ContextRow,
}

/// Runs the verb.
pub fn run(args: &ContextArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let tokens = lengths(args)?;
    within("--question", args.question, 1..=1 << 16)?;
    within("--answer", args.answer, 2..=1 << 16)?;
    within("--prefill-chunk", args.prefill_chunk, 1..=1 << 20)?;
    let ranks = resolve::ranks(args.ring, args.ring_timeout)?;
    let follows = ranks.follows();
    let loaded = load(args, &tokens, &ranks, voice, cancel);
    let (decoder, weight_bytes) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return Err(ranks.give_up(error)),
    };
    if follows {
        let (rank, n) = ranks.place();
        ranks.serve(&decoder)?;
        let peak = peak_memory_bytes().map_or("unknown".to_owned(), |n| n.to_string());
        output::tell(&format!("rank {rank} of {n}: peak memory {peak} bytes"));
        return Ok(());
    }
    let mut report = ContextReport {
        build: Build::HERE,
        machine: Machine::here(),
        model: args.model.text().into_owned(),
        threads: rayon::current_num_threads(),
        link: ranks.link(),
        interrupted: false,
        rows: Vec::new(),
    };
    let ranks_here = ranks.here();
    let measured = ranks.lead(&decoder, |decoder| {
        for &tokens in &tokens {
            let options = ContextOptions {
                ranks_here,
                ..options(args, tokens, weight_bytes)
            };
            let progress = Progress::default();
            progress.tokens_expected.add(tokens as u64);
            let work = || measure(decoder, &options, &progress, cancel);
            let row = voice.show(&progress, work)?;
            append(args.out.as_deref(), &report, &row)?;
            report.rows.push(row);
        }
        Ok(())
    });
    report.interrupted = matches!(&measured, Err(e) if e.kind() == Kind::Interrupted);
    if measured.is_ok() || report.interrupted {
        voice.say(&report, || text(&report))?;
    }
    measured
}

/// Lengths in ascending order, because a process's peak memory never falls.
fn lengths(args: &ContextArgs) -> Result<Vec<usize>> {
    let lengths = args
        .tokens
        .iter()
        .map(|&n| within("--tokens", n, 1..=1 << 28));
    let mut lengths = lengths.collect::<Result<Vec<_>>>()?;
    lengths.sort_unstable();
    Ok(lengths)
}

fn options(args: &ContextArgs, tokens: usize, weight_bytes: u64) -> ContextOptions {
    ContextOptions {
        tokens,
        question: args.question,
        answer: args.answer,
        prefill_chunk: args.prefill_chunk,
        ranks_here: 1,
        kv_dtype: resolve::kv_dtype(args.kv_dtype),
        weight_bytes,
    }
}

/// The decoder of a model directory, or one of a model file's shape with random weights; and
/// the bytes of its weights.
fn load(
    args: &ContextArgs,
    tokens: &[usize],
    ranks: &Ranks,
    voice: Voice,
    cancel: &Cancel,
) -> Result<(Decoder, u64)> {
    let path = args.model.as_path();
    if path.extension().is_some_and(|e| e == "toml") {
        let mut spec = open::spec_file(path)?;
        // The context length that the model was trained for does not limit a measurement of the machine.
        let longest = tokens.last().copied().unwrap_or(0) + args.question + args.answer;
        let limit = &mut spec.decoder.max_position_embeddings;
        *limit = longest.max(*limit);
        check(args, &spec, tokens, (random_bytes(&spec.decoder), 0), ranks)?;
        return random_decoder(&spec.decoder);
    }
    let system = open::system(&args.model, voice, cancel)?;
    let choices = Choices {
        products: resolve::gguf_products(&args.gguf),
        ..Choices::default()
    };
    let files = ModelFiles::open_with(&system, choices)?;
    let weights = (files.weight_bytes(), files.bytes_of_copies());
    check(args, &files.spec, tokens, weights, ranks)?;
    let weight_bytes = files.weight_bytes();
    Ok((files.load()?.decoder, weight_bytes))
}

/// Checks that the longest context fits before the first is measured.
fn check(
    args: &ContextArgs,
    spec: &ModelSpec,
    tokens: &[usize],
    (weight_bytes, copied_bytes): (u64, u64),
    ranks: &Ranks,
) -> Result<()> {
    let longest = tokens.last().copied().unwrap_or(0);
    let demand = Demand {
        frames: 0,
        tokens_per_frame: 0,
        vision_tokens: 0,
        text_tokens: (longest + args.question) as u64,
        max_new_tokens: args.answer as u64,
        kv_dtype: resolve::kv_dtype(args.kv_dtype),
        contexts: 1,
        processes: ranks.place().1 as u64,
        weight_bytes,
        copied_bytes,
        ranks: ranks.count() as u64,
        prefill_chunk: args.prefill_chunk as u64,
    };
    Plan::new(spec, demand, prepare::memory_of(ranks)).check("--frames", 0)
}

fn append(path: Option<&Path>, report: &ContextReport, row: &ContextRow) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let line = ContextLine {
        build: report.build,
        machine: &report.machine,
        model: &report.model,
        threads: report.threads,
        link: report.link,
        row,
    };
    let file = OpenOptions::new().create(true).append(true).open(path);
    let written =
        file.and_then(|mut file| writeln!(file, "{}", to_json(&line).unwrap_or_default()));
    written
        .map_err(Error::from)
        .doing(|| format!("append a row to {}", path.shown()))
}

fn text(report: &ContextReport) -> String {
    let machine = &report.machine;
    let head = format!(
        "machine  {}, {} cores, {}\nprogram  longreel {}, commit {}\nmodel    {}, {} threads\n",
        machine.cpu,
        machine.cores,
        machine.system,
        report.build.longreel,
        report.build.commit,
        report.model,
        report.threads
    );
    let title = format!(
        "{:>9} {:>5} {:>5} {:>10} {:>10} {:>9} {:>11} {:>7} {:>9} {:>11} {:>11} {:>9}  {}",
        "tokens",
        "ranks",
        "type",
        "prefill",
        "tokens/s",
        "GFLOP/s",
        "question",
        "share",
        "decode",
        "KV",
        "peak",
        "of bound",
        "logits"
    );
    let mut lines = vec![head, title];
    lines.extend(report.rows.iter().map(row));
    lines.extend(report.rows.last().and_then(|row| row.traffic).map(traffic));
    if report.interrupted {
        lines.push("interrupted: not all lengths were measured".to_owned());
    }
    lines.join("\n")
}

fn row(row: &ContextRow) -> String {
    let peak = row.peak_memory_bytes.unwrap_or(0);
    format!(
        "{:>9} {:>5} {:>5} {:>8.2} s {:>10.0} {:>9.1} {:>9.4} s {:>6.2}% {:>7.1}/s {:>11} {:>11} {:>8.1}%  {}",
        row.tokens,
        row.ranks,
        row.kv_dtype,
        row.prefill_s,
        row.tokens_per_s,
        row.attention_gflops,
        row.question_s.median,
        100.0 * row.question_share,
        row.decode_tokens_per_s.median,
        bytes(row.kv_bytes as u64),
        bytes(peak),
        100.0 * peak as f64 / row.expected_bytes as f64,
        row.logits_sha256
    )
}

fn traffic(traffic: longreel_models::attention::ring::Traffic) -> String {
    format!(
        "rank 0 sent {} messages, {} in all, {} each; attended {:.1} s, waited {:.1} s",
        traffic.messages,
        bytes(traffic.bytes),
        bytes(traffic.bytes / traffic.messages.max(1)),
        traffic.attending_s,
        traffic.waiting_s
    )
}
