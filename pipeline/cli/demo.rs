//! `longreel demo`: a clip held out from all training, and a model's answers about it.

use std::{
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use longreel_models::file_name::{FileName, as_text};
use serde::Serialize;

use crate::{
    bench::answers::Answering,
    cancel::Cancel,
    cli::{args::DemoArgs, open, output::Voice},
    demo_model,
    error::{Context, Error, Kind, Result},
    model::Choices,
    sources::sampler::{Sampling, TimeRange},
    stages::{progress::Counter, seen::SourceSeen},
    synth::{
        clip::{ClipLine, Collection, holds_clips, read_questions},
        questions::Question,
        recipe::{Recipe, Split},
        score::is_exact,
    },
};

/// Width, height and frames per second of the clip: enough to look good to a person.
const SIDE: usize = 256;
const FPS: u32 = 8;
/// Longest answer, in tokens.
const ANSWER_TOKENS: usize = 16;

#[derive(Serialize)]
struct DemoJson {
    #[serde(serialize_with = "as_text")]
    clip: PathBuf,
    seed: u64,
    /// The directory of the model that answered.
    #[serde(serialize_with = "as_text")]
    model: PathBuf,
    /// The frames of the clip that the model was shown.
    video: Vec<SourceSeen>,
    answers: Vec<AnswerJson>,
    right: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct AnswerJson {
    question: String,
    answer: String,
    /// The right answer.
    expected: String,
    exact: bool,
    /// When the answer can be seen: seconds, start and exclusive end.
    time: [u32; 2],
    seconds: f64,
}

/// Runs the verb.
pub fn run(args: &DemoArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = Instant::now();
    let system = open::system_or_demo(args.model.as_deref(), voice, cancel)?;
    if args.model.is_none() {
        warn(args, voice);
    }
    let seed = args.seed.unwrap_or_else(seed_of_now);
    let clip = make_clip(args, seed, cancel)?;
    let path = args.out.join(&clip.video);
    voice.note(&format!(
        "made {}: {} s of {SIDE}x{SIDE} at {FPS} frames/s, seed {seed}; its story is not in the training split",
        path.shown(),
        clip.seconds
    ));
    let sampling = Sampling::ONE_A_SECOND;
    let words = sampling.in_words(&TimeRange::ALL);
    let answering = Answering::open(&system, Choices::default(), sampling, words, ANSWER_TOKENS)?;
    let (video, answers) = ask_all(&path, &clip, &answering, cancel)?;
    let result = DemoJson {
        seed,
        model: system.path().to_owned(),
        video,
        right: answers.iter().filter(|answer| answer.exact).count(),
        answers,
        seconds: start.elapsed().as_secs_f64(),
        clip: path,
    };
    voice.say(&result, || text(&result, args.model.as_deref()))
}

/// Warns of clips that the demo model was not trained for.
fn warn(args: &DemoArgs, voice: Voice) {
    if let Some(doubt) = demo_model::doubt(u64::from(args.length)) {
        voice.note(&doubt);
    }
    if args.difficulty > 1 {
        voice.note(
            "the demo model was trained on one object at a time: its answers here are unreliable",
        );
    }
}

/// The current Unix time as a seed.
fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// Makes one clip of the test split, replacing that of an earlier call.
fn make_clip(args: &DemoArgs, seed: u64, cancel: &Cancel) -> Result<ClipLine> {
    // The demo model was trained on black backgrounds only.
    let plain = args.plain || args.model.is_none();
    let collection = collection(seed, args.length, args.difficulty, plain);
    let is_replaced = is_of_a_demo(&args.out);
    if !is_replaced && holds_clips(&args.out) {
        let out = args.out.shown();
        let message = format!("{out} holds clips that `demo` did not make, expected another --out");
        return Err(Error::new(Kind::Usage, message));
    }
    collection.open(&args.out, is_replaced)?;
    collection.write(&args.out, &Counter::default(), cancel)?;
    let mut found = None;
    read_questions(&args.out, &mut |line| {
        found = Some(line);
        Ok(())
    })?;
    found.ok_or_else(|| Error::new(Kind::Internal, "the clip has no questions"))
}

/// Whether `dir` holds just the one clip of an earlier call, which may be replaced.
fn is_of_a_demo(dir: &Path) -> bool {
    let text = std::fs::read_to_string(dir.join("synth.json")).unwrap_or_default();
    let Ok(found) = serde_json::from_str::<Collection>(&text) else {
        return false;
    };
    let Recipe {
        seed,
        difficulty,
        plain,
        ..
    } = found.recipe;
    let length = found.recipe.lengths.first().copied().unwrap_or_default();
    found == collection(seed, length, difficulty, plain)
}

/// Options of the clip that a demo makes.
fn collection(seed: u64, length: u32, difficulty: u8, plain: bool) -> Collection {
    Collection {
        clips: 1,
        side: SIDE,
        fps: FPS,
        recipe: Recipe {
            seed,
            split: Split::Test,
            lengths: vec![length],
            difficulty,
            plain,
            ..Recipe::default()
        },
    }
}

fn ask_all(
    path: &Path,
    clip: &ClipLine,
    answering: &Answering,
    cancel: &Cancel,
) -> Result<(Vec<SourceSeen>, Vec<AnswerJson>)> {
    let (mut seen, mut answers) = (Vec::new(), Vec::new());
    for Question {
        question,
        answer,
        time,
        ..
    } in &clip.questions
    {
        let start = Instant::now();
        let doing = || format!("ask {}: {question}", path.shown());
        let said = answering.answer(path, question, cancel).doing(doing)?;
        seen = said.video;
        answers.push(AnswerJson {
            exact: is_exact(&said.text, answer),
            question: question.clone(),
            answer: said.text,
            expected: answer.clone(),
            time: *time,
            seconds: start.elapsed().as_secs_f64(),
        });
    }
    Ok((seen, answers))
}

fn text(result: &DemoJson, model: Option<&Path>) -> String {
    let width = |of: fn(&AnswerJson) -> usize, least: usize| {
        result.answers.iter().map(of).fold(least, usize::max)
    };
    let (question, answer) = (width(|a| a.question.len(), 8), width(|a| a.answer.len(), 6));
    let expected = width(|a| a.expected.len(), 4);
    let mut lines = vec![format!(
        "{:question$}  {:answer$}  {:expected$}     to be seen",
        "question", "answer", "true"
    )];
    lines.extend(result.answers.iter().map(|a| {
        let mark = if a.exact { "=" } else { "≠" };
        let [from, to] = a.time;
        format!(
            "{:question$}  {:answer$}  {:expected$}  {mark}  {from} s to {to} s",
            a.question, a.answer, a.expected
        )
    }));
    let times = |video: &SourceSeen| {
        let times: Vec<String> = video.pts.iter().map(|t| format!("{t:.3}")).collect();
        format!(
            "{} frames were shown to the model, at {} s",
            video.frames,
            times.join(", ")
        )
    };
    lines.extend(result.video.iter().map(times));
    lines.push(format!(
        "{} of {} right",
        result.right,
        result.answers.len()
    ));
    if let Some(first) = result.answers.first() {
        lines.push(format!(
            "ask it yourself: longreel ask {:?} {:?}{}",
            result.clip,
            first.question,
            model.map_or_else(String::new, |model| format!(" --model {model:?}"))
        ));
    }
    lines.join("\n")
}
