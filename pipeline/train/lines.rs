//! Clips with questions to training lines for a decoder: the context that `ask` would build, with the
//! answers.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use longreel_models::{
    context::prompt::{CALL, further, opening},
    file_name::FileName,
    spec::system::Need,
};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    cancel::Cancel,
    encoder::EncoderModel,
    error::{Context, Result},
    flow::StepContent,
    reel::absolute,
    sources::{
        file::FrameReader,
        sampler::{Sampling, TimeRange},
    },
    stages::progress::Counter,
    synth::{
        clip::{ClipLine, read_questions},
        draws::Draws,
        questions::Question,
    },
    train::unfinished_file::{OtherJob, UnfinishedFile},
};

/// Clips encoded between two writes.
const TOGETHER: usize = 64;

/// How clips become lines.
#[derive(Debug, Clone)]
pub struct LineRules {
    /// The frames to take.
    pub sampling: Sampling,
    /// Maximum questions per line; further questions of a clip go to further lines.
    pub questions: usize,
    /// Seed of the order of questions.
    pub seed: u64,
    /// Whether codes are predicted too, or answers only.
    pub predicts_codes: bool,
}

/// Counts of what was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// Clips.
    pub clips: u64,
    /// Clips of these that an earlier run wrote.
    pub kept: u64,
    /// Lines.
    pub lines: u64,
    /// Questions in them.
    pub questions: u64,
}

/// The subject of questions.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A video.
    Codes {
        /// The codes of its frames.
        codes: &'a [u32],
        /// Whether they are predicted too.
        are_predicted: bool,
    },
    /// A text.
    Document(&'a str),
}

/// The line of questions and answers about the subject.
///
/// The first question comes before frames and after a text, the others after the previous answer, as in `ask` and its follow-up
/// questions.
pub fn line<'q>(shown: Subject, pairs: impl IntoIterator<Item = (&'q str, &'q str)>) -> Value {
    let mut line = Map::new();
    let mut fields = Vec::new();
    if let Subject::Document(text) = shown {
        line.insert("document".into(), text.into());
        fields.push("[document]".to_owned());
    }
    for (i, (question, answer)) in pairs.into_iter().enumerate() {
        let words = match (i, shown) {
            (0, Subject::Codes { .. }) => opening(question),
            _ => further(question),
        };
        line.insert(format!("question_{i}"), words.into());
        line.insert(format!("answer_{i}"), format!(" {answer}").into());
        fields.push(match (i, shown) {
            (
                0,
                Subject::Codes {
                    codes,
                    are_predicted,
                },
            ) => {
                line.insert("vision".into(), codes.into());
                line.insert("call".into(), CALL.into());
                let vision = if are_predicted { "vision" } else { "[vision]" };
                format!("[question_0],{vision},[call],answer_0")
            }
            (0, Subject::Document(_)) => "[question_0],answer_0".to_owned(),
            _ => format!("<|eos|>,[question_{i}],answer_{i}"),
        });
    }
    line.insert("fields".into(), json!(fields.join(",")));
    line.into()
}

/// Encodes the clips of `dir` and writes their lines to `out`; resumes an earlier run.
///
/// # Errors
/// `NotFound` where `dir` has no questions, `Interrupted` on request: finished lines stay beside `out`.
pub fn write_lines(
    dir: &Path,
    model: &EncoderModel,
    rules: &LineRules,
    out: &Path,
    other: OtherJob,
    done: &Counter,
    cancel: &Cancel,
) -> Result<LineCounts> {
    let head = json!({
        "clips": absolute(dir),
        "questions_sha256": digest_of_questions(dir)?,
        "model": absolute(model.system.path()),
        "encoder": format!("{:016x}", model.digest()),
        "sampling": format!("{:?}", rules.sampling),
        "questions": rules.questions,
        "seed": rules.seed,
        "predicts_codes": rules.predicts_codes,
    });
    let mut written = LineCounts::default();
    let is_last = |line: &Value| line["is_last"] == true;
    let mut keep = |lines: &[Value]| {
        written.clips += 1;
        written.lines += lines.len() as u64;
        written.questions += lines.iter().map(n_questions).sum::<u64>();
    };
    let mut partial = UnfinishedFile::open(out, &head, other, &is_last, &mut keep)?;
    let kept = written.clips;
    done.add(kept);
    let (mut waiting, mut number) = (Vec::new(), 0);
    let mut flush = |waiting: &mut Vec<(u64, ClipLine)>| -> Result<()> {
        let lines = waiting.par_iter().map(|(number, clip)| {
            cancel.check()?;
            lines_of(dir, model, rules, *number, clip)
        });
        let lines: Vec<Vec<Value>> = lines.collect::<Result<_>>()?;
        for ((_, clip), lines) in waiting.drain(..).zip(lines) {
            partial.append(&lines)?;
            written.clips += 1;
            written.lines += lines.len() as u64;
            written.questions += clip.questions.len() as u64;
            done.add(1);
        }
        Ok(())
    };
    read_questions(dir, &mut |clip| {
        // Without a line, a later run could not tell that it was done.
        if clip.questions.is_empty() {
            return Ok(());
        }
        number += 1;
        if number > kept {
            waiting.push((number - 1, clip));
        }
        match waiting.len() {
            TOGETHER => flush(&mut waiting),
            _ => Ok(()),
        }
    })?;
    flush(&mut waiting)?;
    written.kept = kept;
    partial.finish(out)?;
    Ok(written)
}

/// Digest of the list of questions, which determines the clips.
fn digest_of_questions(dir: &Path) -> Result<String> {
    let path = dir.join("questions.jsonl");
    let doing = || format!("read {}", path.shown());
    let mut file = BufReader::new(File::open(&path).doing(doing)?);
    let mut digest = Sha256::new();
    loop {
        let bytes = file.fill_buf().doing(doing)?;
        let n = bytes.len();
        if n == 0 {
            let bytes = digest.finalize();
            return Ok(bytes.iter().map(|b| format!("{b:02x}")).collect());
        }
        digest.update(bytes);
        file.consume(n);
    }
}

fn lines_of(
    dir: &Path,
    model: &EncoderModel,
    rules: &LineRules,
    number: u64,
    clip: &ClipLine,
) -> Result<Vec<Value>> {
    let path = dir.join(&clip.video);
    let codes =
        codes_of(&path, model, &rules.sampling).doing(|| format!("encode {}", path.shown()))?;
    let mut questions = clip.questions.clone();
    let mut draws = Draws::new(&[rules.seed, number]);
    for i in (1..questions.len()).rev() {
        questions.swap(i, draws.below(i + 1));
    }
    let lines = questions.chunks(rules.questions.max(1));
    let n = lines.len();
    let shown = Subject::Codes {
        codes: &codes,
        are_predicted: rules.predicts_codes,
    };
    let of_line = |questions: &[Question]| {
        let pairs = questions.iter();
        line(
            shown,
            pairs.map(|q| (q.question.as_str(), q.answer.as_str())),
        )
    };
    let mut lines: Vec<Value> = lines.map(of_line).collect();
    for (i, line) in lines.iter_mut().enumerate() {
        line["clip"] = clip.video.as_str().into();
        line["is_last"] = (i + 1 == n).into();
    }
    Ok(lines)
}

/// The codes of the frames of a video.
fn codes_of(path: &Path, model: &EncoderModel, sampling: &Sampling) -> Result<Vec<u32>> {
    let mut reader = FrameReader::open(path, sampling, &TimeRange::ALL, Cancel::default())?;
    let mut codes = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        match model.encoder.encode(&[frame.image], None)? {
            StepContent::Codes(of_frame) => codes.extend(of_frame),
            StepContent::Features(_) => return Err(model.system.refusal(Need::Codes)),
        }
    }
    Ok(codes)
}

fn n_questions(line: &Value) -> u64 {
    let keys = line.as_object().into_iter().flatten();
    keys.filter(|(key, _)| key.starts_with("question_")).count() as u64
}
