//! `longreel train make-qa`: a model writes questions and answers about long documents and videos.

use std::{path::Path, time::Instant};

use longreel_models::{
    attention::kv_cache::KvDtype,
    file_name::{FileName, as_text},
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::TrainMakeQaArgs, open, output::Voice, resolve},
    error::{Context, Result},
    model::{Choices, ModelFiles},
    reel::is_reel,
    stages::{answer::AnswerOptions, progress::Progress},
    train::{
        make_qa::{
            ABOUT_FRAMES, ABOUT_TEXT, QaCounts, QaJob, QaRules, chunks_of_document, chunks_of_reel,
            instruction,
        },
        unfinished_file::OtherJob,
    },
};

/// Default size of a chunk of text, in tokens.
const CHUNK_TOKENS: usize = 1024;

/// Default size of a chunk of a reel, in frames.
const CHUNK_FRAMES: usize = 16;

/// How many chunks without a pair are named on stderr; `--json` has them all.
const NAMED: usize = 5;

#[derive(Serialize)]
struct QaJson<'a> {
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    #[serde(flatten)]
    written: QaCounts,
    seconds: f64,
}

/// Runs the verb.
pub fn run(args: &TrainMakeQaArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = Instant::now();
    resolve::check_free(&args.out, args.force)?;
    let shows_frames = is_reel(&args.input);
    let options = options(args)?;
    let system = open::system(&args.model, voice, cancel)?;
    let choices = Choices {
        template: args.template.template.as_deref(),
        products: resolve::gguf_products(&args.gguf),
        ..Choices::default()
    };
    let files = ModelFiles::open_with(&system, choices)?;
    let rules = rules(args, shows_frames, &files, options)?;
    let chunks = match shows_frames {
        true => chunks_of_reel(&args.input, &files, rules.chunk)?,
        false => chunks_of_document(&files.tokenizer, &args.input, rules.chunk)?,
    };
    let model = files.load()?;
    let job = QaJob {
        files: &files,
        model: &model,
        rules: &rules,
        input: &args.input,
        chunks: &chunks,
    };
    let progress = Progress {
        things: Some("chunks"),
        ..Progress::default()
    };
    progress.frames_expected.add(chunks.len() as u64);
    let other = OtherJob::of(args.force);
    let written = voice.show(&progress, || job.write(&args.out, other, &progress, cancel));
    let written = written.doing(|| format!("write {}", args.out.shown()))?;
    for silence in written.chunks_without_pairs.iter().take(NAMED) {
        let (chunk, said) = (&silence.chunk, &silence.said);
        voice.note(&format!(
            "no question-answer pair about {chunk}, the model wrote {said:?}"
        ));
    }
    let result = QaJson {
        out: &args.out,
        written,
        seconds: start.elapsed().as_secs_f64(),
    };
    voice.say(&result, || text(&result))
}

fn options(args: &TrainMakeQaArgs) -> Result<AnswerOptions> {
    Ok(AnswerOptions {
        max_new_tokens: resolve::within("--max-new-tokens", args.max_new_tokens, 1..=1 << 16)?,
        draw: resolve::draw(&args.draw)?,
        stop: Vec::new(),
        prefill_chunk: 512,
        kv_dtype: KvDtype::F32,
        kv_limit_bytes: None,
    })
}

fn rules(
    args: &TrainMakeQaArgs,
    shows_frames: bool,
    files: &ModelFiles,
    options: AnswerOptions,
) -> Result<QaRules> {
    let (usual, chunk) = match shows_frames {
        true => (ABOUT_FRAMES, CHUNK_FRAMES),
        false => (ABOUT_TEXT, CHUNK_TOKENS),
    };
    let pairs = resolve::within("--pairs", args.pairs, 1..=1000)?;
    let context = args
        .context
        .unwrap_or(files.spec.decoder.max_position_embeddings);
    Ok(QaRules {
        instruction: instruction(args.prompt.as_ref(), usual, pairs)?,
        pairs,
        chunk: resolve::within("--chunk", args.chunk.unwrap_or(chunk), 1..=1 << 30)?,
        context: resolve::within("--context", context, 1..=1 << 40)?,
        options,
    })
}

fn text(result: &QaJson) -> String {
    let QaCounts {
        chunks,
        pairs,
        lines,
        longest_line_tokens,
        chunks_without_pairs,
        ..
    } = &result.written;
    let silent = match chunks_without_pairs.len() {
        0 => String::new(),
        n => format!(" ({n} without one)"),
    };
    let out = result.out.shown();
    format!(
        "{chunks} chunks{silent}, {pairs} pairs: {lines} lines of at most {longest_line_tokens} tokens in {out}"
    )
}
