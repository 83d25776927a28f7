//! `longreel synth`: renders clips of a synthetic world, with questions and exact answers.

use std::{collections::BTreeMap, path::Path};

use longreel_models::file_name::{FileName, as_text};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::{SplitArg, SynthArgs},
        output::Voice,
    },
    error::{Error, Kind, Result},
    stages::progress::Progress,
    synth::{
        clip::{Collection, read_questions},
        questions::QuestionKind,
        recipe::{Recipe, Split},
        score::{Prior, priors},
    },
};

#[derive(Serialize)]
struct SynthJson<'a> {
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    clips: u64,
    written: u64,
    kept: u64,
    questions: u64,
    /// Accuracy of always giving the most frequent answer, by kind.
    priors: BTreeMap<String, Prior>,
    seconds: f64,
}

/// Runs the verb.
pub fn run(args: SynthArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = std::time::Instant::now();
    let collection = collection(&args)?;
    collection.open(&args.out, args.force)?;
    let progress = Progress::default();
    progress.frames_expected.add(collection.frames());
    let made = voice.show(&progress, || {
        collection.write(&args.out, &progress.frames_encoded, cancel)
    })?;
    let asked = asked(&args.out)?;
    let pairs = asked
        .iter()
        .map(|(kind, answer)| (kind.word(), answer.as_str()));
    let result = SynthJson {
        out: &args.out,
        clips: collection.clips,
        written: made.written,
        kept: made.kept,
        questions: asked.len() as u64,
        priors: priors(pairs),
        seconds: start.elapsed().as_secs_f64(),
    };
    voice.say(&result, || {
        format!(
            "{} clips ({} existed) with {} questions in {}",
            result.clips,
            result.kept,
            result.questions,
            args.out.shown()
        )
    })
}

fn collection(args: &SynthArgs) -> Result<Collection> {
    let split = match args.split {
        SplitArg::Train => Split::Train,
        SplitArg::Test => Split::Test,
    };
    let collection = Collection {
        clips: args.clips,
        side: args.side,
        fps: args.fps,
        recipe: Recipe {
            seed: args.seed,
            split,
            lengths: args.length.clone(),
            difficulty: args.difficulty,
            needle: args.needle,
            depths: args.depth.clone(),
            noise: args.noise,
            plain: args.plain,
            kinds: args.kinds.iter().map(|k| kind(k)).collect::<Result<_>>()?,
            per_kind: args.per_kind,
        },
    };
    collection.check()?;
    Ok(collection)
}

fn kind(name: &str) -> Result<QuestionKind> {
    let found = QuestionKind::ALL.iter().find(|kind| kind.word() == name);
    found.copied().ok_or_else(|| {
        let message = format!("--kinds has {name}, which is not a kind of question");
        Error::new(Kind::Usage, message)
    })
}

/// Kind and answer of every question in the written file.
fn asked(out: &Path) -> Result<Vec<(QuestionKind, String)>> {
    let mut asked = Vec::new();
    read_questions(out, &mut |line| {
        let questions = line.questions.into_iter();
        asked.extend(questions.map(|q| (q.kind, q.answer)));
        Ok(())
    })?;
    Ok(asked)
}
