//! `longreel bench answers`: accuracy of answers to questions about clips.

use std::{fs::OpenOptions, io::Write, path::Path, time::Instant};

use longreel_models::file_name::FileName;
use serde::Serialize;

use crate::{
    bench::{
        answers::{Answering, AskedQuestion, Cell, Exam, OfKind, by_depth, by_kind},
        heat_map::{no_needles, write_heat_map},
        machine::{Build, Machine, cores},
    },
    cancel::Cancel,
    cli::{
        args::AnswersArgs,
        open,
        output::{Voice, to_json},
        resolve::{self, within},
    },
    error::{Context, Error, Kind, Result},
    model::{Choices, GgufProducts},
    reel::absolute,
    sources::{
        sampler::{Sampling, TimeRange, parse_rate},
        temporary::{replaceable, write_whole},
    },
    stages::progress::Progress,
    synth::clip::{ClipLine, no_questions, read_questions},
};

#[derive(Serialize)]
struct AnswersReport<'a> {
    #[serde(flatten)]
    build: Build,
    machine: Machine,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gguf_products: Option<GgufProducts>,
    clips: usize,
    noise: bool,
    /// Whether the run was interrupted or a clip failed; the report then covers the questions asked before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stopped: bool,
    /// Answers that `--max-new-tokens` cut off.
    cut: usize,
    kinds: Vec<OfKind>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    needles: Vec<Cell>,
    seconds: f64,
}

/// Runs the verb.
pub fn run(args: &AnswersArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = Instant::now();
    let rate = parse_rate(&args.fps).doing(|| "--fps")?;
    within("--max-new-tokens", args.max_new_tokens, 1..=1 << 16)?;
    check_folders(args)?;
    let system = open::system_or_demo(args.model.as_deref(), voice, cancel)?;
    let clips = clips(args)?;
    let sampling = Sampling::Fps(rate);
    let words = sampling.in_words(&TimeRange::ALL);
    let choices = Choices {
        template: args.template.template.as_deref(),
        products: resolve::gguf_products(&args.gguf),
        ..Choices::default()
    };
    let answering = Answering::open(&system, choices, sampling, words, args.max_new_tokens)?;
    let exam = Exam {
        answering: &answering,
        dir: &args.clips,
        clips: &clips,
        noise: args.noise,
        workers: cores(),
    };
    let progress = Progress::default();
    let questions = clips.iter().map(|clip| clip.questions.len() as u64).sum();
    progress.frames_expected.add(questions);
    let done = &progress.frames_encoded;
    let mut asked = Vec::new();
    let taken = voice.show(&progress, || exam.take(&mut asked, done, cancel));
    if taken.is_err() {
        if asked.is_empty() {
            return taken;
        }
        // An interrupt keeps the answers so far: they are reported as a partial result.
        let n = asked.len();
        voice.note(&format!(
            "ended early: {n} of {questions} questions were asked"
        ));
    }
    let cut = asked.iter().filter(|asked| asked.cut).count();
    if cut > 0 {
        let most = args.max_new_tokens;
        voice.note(&format!(
            "answers that were cut off: {cut} (--max-new-tokens is {most})"
        ));
    }
    let report = AnswersReport {
        build: Build::HERE,
        machine: Machine::here(),
        model: &name_of(args),
        template: answering.template(),
        gguf_products: answering.gguf_products(),
        clips: clips.len(),
        noise: args.noise,
        stopped: taken.is_err(),
        cut,
        kinds: by_kind(&asked),
        needles: by_depth(&asked),
        seconds: start.elapsed().as_secs_f64(),
    };
    voice.say(&report, || text(&report))?;
    keep(args, &asked, &report)?;
    taken
}

/// The model's name as given.
fn name_of(args: &AnswersArgs) -> String {
    let name = args.model.as_deref().map(|model| model.text().into_owned());
    name.unwrap_or_else(|| "the demo model".into())
}

/// Checks that the output directories exist, so that hours of questions do not end in a failed write.
fn check_folders(args: &AnswersArgs) -> Result<()> {
    let files = [&args.answers, &args.heat_map, &args.out];
    for file in files.into_iter().flatten() {
        let folder = absolute(file)
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        if !folder.is_dir() {
            let message = format!(
                "{} is not a directory, expected one to write {} into",
                folder.shown(),
                file.shown()
            );
            return Err(Error::new(Kind::Usage, message));
        }
    }
    for file in [&args.answers, &args.heat_map].into_iter().flatten() {
        replaceable(file).doing(|| file.shown().to_string())?;
    }
    Ok(())
}

fn clips(args: &AnswersArgs) -> Result<Vec<ClipLine>> {
    let mut clips = Vec::new();
    let most = args.first.unwrap_or(usize::MAX);
    resolve::within("--first", most, 1..=usize::MAX)?;
    read_questions(&args.clips, &mut |clip| {
        if clips.len() < most {
            clips.push(clip);
        }
        Ok(())
    })?;
    if clips.iter().all(|clip| clip.questions.is_empty()) {
        return Err(no_questions(&args.clips));
    }
    if args.heat_map.is_some() && clips.iter().all(|clip| clip.script.blobs.is_empty()) {
        return Err(no_needles());
    }
    Ok(clips)
}

/// Writes the files that the options ask for.
fn keep(args: &AnswersArgs, asked: &[AskedQuestion], report: &AnswersReport) -> Result<()> {
    if let Some(path) = &args.answers {
        let lines = asked.iter().map(to_json).collect::<Result<Vec<_>>>()?;
        let text = lines.join("\n") + "\n";
        write_whole(path, text.as_bytes()).doing(|| format!("write {}", path.shown()))?;
    }
    if let Some(path) = &args.heat_map {
        let title = format!("needles found by {}", name_of(args));
        write_heat_map(path, &title, &report.needles)?;
    }
    args.out
        .as_deref()
        .map_or(Ok(()), |path| append(path, report))
}

fn append(path: &Path, report: &AnswersReport) -> Result<()> {
    let doing = || format!("write {}", path.shown());
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .doing(doing)?;
    writeln!(file, "{}", to_json(report)?).doing(doing)
}

fn text(report: &AnswersReport) -> String {
    let mut lines = vec![format!(
        "{:<10} {:>6} {:>6} {:>9} {:>7} {:>8}",
        "kind", "asked", "right", "accuracy", "prior", "by form"
    )];
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    lines.extend(report.kinds.iter().map(|row| {
        format!(
            "{:<10} {:>6} {:>6} {:>9} {:>7} {:>8}",
            row.kind,
            row.score.asked,
            row.score.right,
            percent(row.accuracy),
            percent(row.prior),
            percent(row.prior_by_form)
        )
    }));
    lines.extend(report.needles.iter().map(|cell| {
        format!(
            "needle in {} s at {}%: {} of {}",
            cell.seconds,
            10 * cell.depth_tenths,
            cell.score.right,
            cell.score.asked
        )
    }));
    lines.join("\n")
}
