//! Clips with questions to the lines that a decoder is trained on: what `ask` would put into the context, with the
//! answers.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use longreel_models::context::prompt::{CALL, further, opening};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::{
    cancel::Cancel,
    encoder::{EncoderModel, no_codes},
    error::{Context, Result},
    flow::StepContent,
    reel::absolute,
    sources::{
        file::FrameReader,
        sampler::{Sampling, TimeRange},
        temporary::{persist, temporary_beside},
    },
    stages::progress::Counter,
    synth::{
        clip::{ClipLine, read_questions},
        draws::Draws,
        questions::Question,
    },
};

/// Clips that are encoded before their lines are written.
const TOGETHER: usize = 64;

/// How a clip becomes lines.
#[derive(Debug, Clone)]
pub struct LineRules {
    /// Which frames are taken.
    pub sampling: Sampling,
    /// Most questions of a line; what a clip has more goes to further lines.
    pub questions: usize,
    /// Of the order of questions.
    pub seed: u64,
    /// Whether codes are predicted as well, or only answers.
    pub predicts_codes: bool,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Clips.
    pub clips: u64,
    /// Of them, those that an earlier run wrote.
    pub kept: u64,
    /// Lines.
    pub lines: u64,
    /// Questions in them.
    pub questions: u64,
}

/// The line of a clip whose frames have `codes`: the first question stands before the frames, the others behind the
/// answers, as `ask` and its follow-up questions have them.
pub fn line(codes: &[u32], questions: &[Question], predicts_codes: bool) -> Value {
    let mut line = Map::new();
    let mut fields = Vec::new();
    for (
        i,
        Question {
            question, answer, ..
        },
    ) in questions.iter().enumerate()
    {
        let words = match i {
            0 => opening(question),
            _ => further(question),
        };
        line.insert(format!("question_{i}"), words.into());
        line.insert(format!("answer_{i}"), format!(" {answer}").into());
        match i {
            0 => {
                line.insert("vision".into(), codes.into());
                line.insert("call".into(), CALL.into());
                let vision = if predicts_codes { "vision" } else { "[vision]" };
                fields.push(format!("[question_0],{vision},[call],answer_0"));
            }
            _ => fields.push(format!("<|eos|>,[question_{i}],answer_{i}")),
        }
    }
    line.insert("fields".into(), json!(fields.join(",")));
    line.into()
}

/// Encodes the clips of `dir` and writes their lines to `out`; goes on behind what an earlier run wrote.
///
/// # Errors
/// `NotFound` where `dir` has no questions, `Interrupted` when told to stop: what was written stays beside `out`.
pub fn write_lines(
    dir: &Path,
    model: &EncoderModel,
    rules: &LineRules,
    out: &Path,
    done: &Counter,
    cancel: &Cancel,
) -> Result<Written> {
    let head = json!({
        "clips": absolute(dir),
        "model": absolute(&model.dir),
        "sampling": format!("{:?}", rules.sampling),
        "questions": rules.questions,
        "seed": rules.seed,
        "predicts_codes": rules.predicts_codes,
    });
    let (mut partial, mut written) = Partial::open(out, &head)?;
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

fn lines_of(
    dir: &Path,
    model: &EncoderModel,
    rules: &LineRules,
    number: u64,
    clip: &ClipLine,
) -> Result<Vec<Value>> {
    let path = dir.join(&clip.video);
    let codes =
        codes_of(&path, model, &rules.sampling).doing(|| format!("encode {}", path.display()))?;
    let mut questions = clip.questions.clone();
    let mut draws = Draws::new(&[rules.seed, number]);
    for i in (1..questions.len()).rev() {
        questions.swap(i, draws.below(i + 1));
    }
    let lines = questions.chunks(rules.questions.max(1));
    let n = lines.len();
    let mut lines: Vec<Value> = lines
        .map(|questions| line(&codes, questions, rules.predicts_codes))
        .collect();
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
            StepContent::Features(_) => return Err(no_codes(&model.dir)),
        }
    }
    Ok(codes)
}

/// Lines that wait for the last one: what they are made by, then the lines themselves.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// The lines beside `out` that an earlier run wrote by the same `head`, without those of a clip that has not all.
    fn open(out: &Path, head: &Value) -> Result<(Self, Written)> {
        let mut path = out.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let doing = || format!("open {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).doing(doing)?;
        let (mut written, end) = found(&file, head).doing(doing)?;
        file.set_len(end).doing(doing)?;
        file.seek(SeekFrom::Start(end)).doing(doing)?;
        let mut partial = Self { path, file };
        if end == 0 {
            written = Written::default();
            partial.append(std::slice::from_ref(head))?;
        }
        Ok((partial, written))
    }

    fn append(&mut self, lines: &[Value]) -> Result<()> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let written = self.file.write_all(text.as_bytes());
        written.doing(|| format!("write {}", self.path.display()))
    }

    /// Gives the lines their name.
    fn finish(mut self, out: &Path) -> Result<()> {
        let doing = || format!("write {}", out.display());
        self.file.rewind().doing(doing)?;
        let mut lines = BufReader::new(&self.file);
        lines.skip_until(b'\n').doing(doing)?;
        let mut whole = temporary_beside(out, "").doing(doing)?;
        io::copy(&mut lines, &mut whole).doing(doing)?;
        persist(whole, out)?;
        fs::remove_file(&self.path).doing(|| format!("remove {}", self.path.display()))
    }
}

/// What stands whole in `file`, and where it ends; nothing where it was not made by `head`.
fn found(file: &File, head: &Value) -> Result<(Written, u64)> {
    let mut reader = BufReader::new(file);
    let mut text = String::new();
    let mut next = |text: &mut String| -> Result<Option<(Value, u64)>> {
        text.clear();
        let bytes = reader.read_line(text)? as u64;
        let is_whole = text.ends_with('\n');
        let value = serde_json::from_str(text).ok().filter(|_| is_whole);
        Ok(value.map(|value| (value, bytes)))
    };
    let mut end = match next(&mut text)? {
        Some((value, bytes)) if value == *head => bytes,
        _ => return Ok((Written::default(), 0)),
    };
    let (mut whole, mut of_clip, mut bytes_of_clip) = (Written::default(), Written::default(), 0);
    while let Some((line, bytes)) = next(&mut text)? {
        bytes_of_clip += bytes;
        of_clip.lines += 1;
        of_clip.questions += n_questions(&line);
        if line["is_last"] == true {
            whole.clips += 1;
            whole.lines += of_clip.lines;
            whole.questions += of_clip.questions;
            end += bytes_of_clip;
            (of_clip, bytes_of_clip) = (Written::default(), 0);
        }
    }
    Ok((whole, end))
}

fn n_questions(line: &Value) -> u64 {
    let keys = line.as_object().into_iter().flatten();
    keys.filter(|(key, _)| key.starts_with("question_")).count() as u64
}
