//! `longreel train make-lines` and `longreel train tokenizer`: data for training a decoder.

use std::{path::Path, time::Instant};

use longreel_models::file_name::{FileName, as_text};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::{TrainMakeLinesArgs, TrainTokenizerArgs},
        open,
        output::Voice,
        resolve,
    },
    encoder::{EncoderModel, PixelBudget},
    error::{Context, Result},
    sources::sampler::{Sampling, parse_rate},
    stages::progress::Progress,
    synth::clip::{no_questions, read_questions},
    train::{
        lines::{LineRules, write_lines},
        tokenizer::{Learned, TOKENIZER, learn_from, write},
        unfinished_file::OtherJob,
    },
};

#[derive(Serialize)]
struct LinesJson<'a> {
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    clips: u64,
    /// Clips whose lines an earlier run wrote.
    kept: u64,
    lines: u64,
    questions: u64,
    seconds: f64,
}

/// Runs `longreel train make-lines`.
pub fn make_lines(args: &TrainMakeLinesArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = Instant::now();
    resolve::check_free(&args.out, args.force)?;
    let system = open::system(&args.model, voice, cancel)?;
    let model = EncoderModel::load(&system, &PixelBudget::default())?;
    model.codes()?;
    let rules = LineRules {
        sampling: Sampling::Fps(parse_rate(&args.fps).doing(|| "--fps")?),
        questions: resolve::within("--questions", args.questions, 1..=1000)?,
        seed: args.seed,
        predicts_codes: !args.answers_only,
    };
    let progress = Progress::default();
    let mut clips = 0;
    read_questions(&args.clips, &mut |clip| {
        clips += u64::from(!clip.questions.is_empty());
        Ok(())
    })?;
    if clips == 0 {
        return Err(no_questions(&args.clips));
    }
    progress.frames_expected.add(clips);
    let other = OtherJob::of(args.force);
    let done = &progress.frames_encoded;
    let written = voice.show(&progress, || {
        write_lines(&args.clips, &model, &rules, &args.out, other, done, cancel)
    });
    let written = written.doing(|| format!("write {}", args.out.shown()))?;
    let result = LinesJson {
        out: &args.out,
        clips: written.clips,
        kept: written.kept,
        lines: written.lines,
        questions: written.questions,
        seconds: start.elapsed().as_secs_f64(),
    };
    voice.say(&result, || {
        format!(
            "{} clips with {} questions: {} lines in {}",
            result.clips,
            result.questions,
            result.lines,
            args.out.shown()
        )
    })
}

#[derive(Serialize)]
struct TokenizerJson<'a> {
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    vocab_size: usize,
    /// Lines of `.jsonl` files that are not JSON objects.
    skipped_lines: u64,
}

/// Runs `longreel train tokenizer`.
pub fn tokenizer(args: &TrainTokenizerArgs, voice: Voice) -> Result<()> {
    resolve::check_free(&args.out.join(TOKENIZER), args.force)?;
    let Learned { files, left_out } = learn_from(&args.files, args.vocab_size)?;
    write(&files, &args.out)?;
    if left_out > 0 {
        voice.note(&format!(
            "left out: {left_out} lines that are not JSON objects"
        ));
    }
    let result = TokenizerJson {
        out: &args.out,
        vocab_size: files.vocab_size,
        skipped_lines: left_out,
    };
    voice.say(&result, || {
        let (n, out) = (result.vocab_size, args.out.shown());
        format!("{n} tokens in {out}")
    })
}
