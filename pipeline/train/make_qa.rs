//! Questions and answers about a long document or video, written by a model chunk by chunk and placed after all of it:
//! the chat data of LWM's long contexts (arXiv 2402.08268, its model-generated question-answering).

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use longreel_models::{
    context::{
        prompt::{ChatPrompt, FrameTerminators, frame_tokens, further},
        tokenizer::Tokenizer,
        vocab::Token,
    },
    file_name::FileName,
    training::data::example::{ExampleRules, FieldsOf, VisionRules},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    flow::StepContent,
    model::{Model, ModelFiles},
    reel::{ReelReader, absolute, modified_s},
    stages::{
        answer::{AnswerOptions, Conversation, Finish},
        layout::Layout,
        progress::Progress,
    },
    train::{
        lines::{Subject, line},
        pairs::{End, Pair, pairs_of},
        unfinished_file::{OtherJob, UnfinishedFile},
    },
};

/// Maximum characters of a reply that are shown.
const SAID_MAX: usize = 200;

/// The default instruction for a chunk of text; `{pairs}` is the number of pairs.
pub const ABOUT_TEXT: &str = "Write {pairs} questions that the text above answers, each with its answer, in this form:\nQuestion: ...\nAnswer: ...";

/// The default instruction for frames.
pub const ABOUT_FRAMES: &str = "Write {pairs} questions that this video answers, each with its answer, in this form:\nQuestion: ...\nAnswer: ...";

/// A chunk of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where it lies in the input, for people.
    pub place: String,
    /// Its video; a line never spans two videos.
    pub video: usize,
    /// Its content.
    pub content: ChunkContent,
}

/// The content of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkContent {
    /// Text, with all spaces and line ends.
    Words(String),
    /// The codes of whole frames.
    Codes(Vec<u32>),
}

/// How pairs become lines.
#[derive(Debug, Clone)]
pub struct QaRules {
    /// The instruction, with the number of pairs filled in.
    pub instruction: String,
    /// Maximum pairs per chunk.
    pub pairs: usize,
    /// Length of a chunk, in tokens of text or in frames.
    pub chunk: usize,
    /// Maximum tokens of a line.
    pub context: usize,
    /// Generation options; every chunk has a seed of its own.
    pub options: AnswerOptions,
}

/// Counts of what was written.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct QaCounts {
    /// Chunks.
    pub chunks: usize,
    /// Chunks of these that an earlier run asked about.
    pub kept: usize,
    /// Pairs in the lines.
    pub pairs: usize,
    /// Lines.
    pub lines: usize,
    /// Tokens of the longest line.
    pub longest_line_tokens: usize,
    /// Chunks about which the model wrote no pair.
    pub chunks_without_pairs: Vec<Silence>,
    /// Chunks left out because their line would have no pair.
    pub chunks_left_out: usize,
    /// Pairs left out for want of room.
    pub pairs_left_out: usize,
}

/// A chunk without a pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Silence {
    /// Where it lies in the input.
    pub chunk: String,
    /// The beginning of the model's reply.
    pub said: String,
}

/// The chunks of the document at `path`: about `tokens` tokens each, cut at ends of sentences or lines.
///
/// # Errors
/// `BadInput` for a file that is not UTF-8 text, or has no words.
pub fn chunks_of_document(tokenizer: &Tokenizer, path: &Path, tokens: usize) -> Result<Vec<Chunk>> {
    let doing = || format!("read the document {}", path.shown());
    let bytes = fs::read(path).doing(doing)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let message = format!("byte {at} is not UTF-8, expected a text or a reel");
        Error::new(Kind::BadInput, message).doing(doing())
    })?;
    if text.trim().is_empty() {
        let message = "it has no words, expected a text";
        return Err(Error::new(Kind::BadInput, message).doing(doing()));
    }
    chunks_of_text(tokenizer, &text, tokens).doing(doing)
}

/// The chunks of `text`; concatenated, they are the text.
///
/// # Errors
/// `BadInput` for text that cannot be tokenized.
pub fn chunks_of_text(tokenizer: &Tokenizer, text: &str, tokens: usize) -> Result<Vec<Chunk>> {
    let mut pieces = Vec::new();
    for sentence in sentences(text) {
        cut(tokenizer, sentence, tokens, &mut pieces)?;
    }
    let (mut chunks, mut start, mut end, mut held) = (Vec::new(), 0, 0, 0);
    for (bytes, n) in pieces {
        if held > 0 && held + n > tokens {
            chunks.push(words(text, start..end));
            (start, held) = (end, 0);
        }
        (end, held) = (end + bytes, held + n);
    }
    if end > start {
        chunks.push(words(text, start..end));
    }
    Ok(chunks)
}

fn words(text: &str, bytes: Range<usize>) -> Chunk {
    Chunk {
        place: format!("bytes {} to {}", bytes.start, bytes.end),
        video: 0,
        content: ChunkContent::Words(text[bytes].to_owned()),
    }
}

/// Byte range and tokens of `text`, split into words or parts of words where it has more than `most` tokens.
fn cut(
    tokenizer: &Tokenizer,
    text: &str,
    most: usize,
    pieces: &mut Vec<(usize, usize)>,
) -> Result<()> {
    let n = tokenizer.encode_plain(text)?.len();
    let n_words = text.split_whitespace().count();
    if n <= most || text.chars().nth(1).is_none() {
        pieces.push((text.len(), n));
        return Ok(());
    }
    if n_words > 1 {
        let mut words = text.split_inclusive(char::is_whitespace);
        return words.try_for_each(|word| cut(tokenizer, word, most, pieces));
    }
    let middle = text
        .floor_char_boundary(text.len() / 2)
        .max(first_char(text));
    let (before, behind) = text.split_at(middle);
    cut(tokenizer, before, most, pieces)?;
    cut(tokenizer, behind, most, pieces)
}

/// Length of the first character, in bytes.
fn first_char(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

/// `text` split after sentences and lines, spaces included.
fn sentences(text: &str) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    // Whether a sentence has ended, and whether the next character may follow without a space.
    let (mut has_ended, mut may_follow) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            '.' | '!' | '?' | '…' => (has_ended, may_follow) = (true, false),
            '。' | '！' | '？' | '\n' => (has_ended, may_follow) = (true, true),
            _ if c.is_whitespace() => may_follow = has_ended,
            '"' | '\'' | '”' | '’' | '»' | ')' | ']' if has_ended && !may_follow => {}
            _ if has_ended && may_follow => {
                parts.push(&text[start..at]);
                start = at;
                (has_ended, may_follow) = (false, false);
            }
            _ => has_ended = false,
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The chunks of the reel at `path`: `frames` frames each, of one video.
///
/// # Errors
/// `BadInput` for a reel of anything but codes of this grid and codebook, or without a frame.
pub fn chunks_of_reel(path: &Path, model: &ModelFiles, frames: usize) -> Result<Vec<Chunk>> {
    let vqgan = model.check_codes()?;
    let doing = || format!("read the reel {}", path.shown());
    let mut reel = ReelReader::open(path)?;
    let header = reel.header();
    header
        .check_codes(vqgan.grid(), vqgan.num_embeddings)
        .doing(doing)?;
    let mut videos: Vec<Vec<u32>> = vec![Vec::new(); header.videos.len()];
    while let Some(record) = reel.next_step()? {
        if let (Some(video), StepContent::Codes(codes)) =
            (videos.get_mut(record.video), record.step.content)
        {
            video.extend(codes);
        }
    }
    let of_frame = vqgan.codes_per_frame();
    let mut chunks = Vec::new();
    for (video, codes) in videos.iter().enumerate() {
        let parts = codes.chunks(frames.max(1).saturating_mul(of_frame));
        for (i, part) in parts.enumerate() {
            let first = i * frames;
            let end = first + part.len() / of_frame;
            chunks.push(Chunk {
                place: format!("frames {first} to {end} of video {video}"),
                video,
                content: ChunkContent::Codes(part.to_vec()),
            });
        }
    }
    match chunks.is_empty() {
        false => Ok(chunks),
        true => {
            let message = "it has no frame, expected at least one";
            Err(Error::new(Kind::BadInput, message).doing(doing()))
        }
    }
}

/// The question about `words`.
pub fn question_about(words: &str, instruction: &str) -> String {
    format!("{}\n\n{instruction}", words.trim())
}

/// A job that asks a model about chunks.
pub struct QaJob<'a> {
    /// The model's files.
    pub files: &'a ModelFiles,
    /// The loaded model.
    pub model: &'a Model,
    /// The rules.
    pub rules: &'a QaRules,
    /// The input file.
    pub input: &'a Path,
    /// Its chunks.
    pub chunks: &'a [Chunk],
}

impl QaJob<'_> {
    /// Asks about every chunk and writes the lines to `out`; resumes an earlier run.
    ///
    /// # Errors
    /// `BadInput` where no chunk gave a pair, `TooLarge` for a chunk that does not fit the context or a line,
    /// `Interrupted` on request: replies so far stay beside `out`.
    pub fn write(
        &self,
        out: &Path,
        other: OtherJob,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<QaCounts> {
        self.check_lengths()?;
        let mut said = Vec::new();
        let mut keep = |lines: &[Value]| said.extend(lines.iter().map(ChunkReply::of));
        let mut partial = UnfinishedFile::open(out, &self.head(), other, &|_| true, &mut keep)?;
        said.truncate(self.chunks.len());
        let kept = said.len();
        progress.frames_encoded.add(kept as u64);
        for (number, chunk) in self.chunks.iter().enumerate().skip(kept) {
            cancel.check()?;
            let answer = self
                .ask(number, chunk, progress, cancel)
                .doing(|| format!("ask about {}", chunk.place))?;
            partial.append(&[answer.line()])?;
            said.push(answer);
            progress.frames_encoded.add(1);
        }
        if said.iter().all(|said| said.pairs.is_empty()) {
            partial.remove()?;
            return Err(no_pairs(&said));
        }
        let (lines, mut written) = self.packed(&said)?;
        written.kept = kept;
        partial.finish_as(&lines, out)?;
        Ok(written)
    }

    /// Everything that determines the replies; the length of lines is not part of it.
    fn head(&self) -> Value {
        let rules = self.rules;
        let bytes = fs::metadata(self.input).map_or(0, |data| data.len());
        json!({
            "input": absolute(self.input),
            "bytes": bytes,
            "modified_s": modified_s(self.input),
            "model": absolute(self.model.system.path()),
            "instruction": rules.instruction,
            "pairs": rules.pairs,
            "chunk": rules.chunk,
            "max_new_tokens": rules.options.max_new_tokens,
            "draw": format!("{:?}", rules.options.draw),
        })
    }

    /// `TooLarge` before the first question, if any chunk would not fit.
    fn check_lengths(&self) -> Result<()> {
        let longest = self.model.spec.decoder.max_position_embeddings;
        let room = longest.saturating_sub(self.rules.options.max_new_tokens);
        for chunk in self.chunks {
            let n = self.prompt(chunk)?.len();
            if n > room {
                let message = format!(
                    "{} with the instruction takes {n} tokens and an answer {}, the model's context is {longest} tokens: take a smaller --chunk",
                    chunk.place, self.rules.options.max_new_tokens
                );
                return Err(Error::new(Kind::TooLarge, message));
            }
            let (n, most) = (self.weight(chunk)? + self.around()?, self.rules.context);
            if n >= most {
                let message = format!(
                    "{} takes {n} tokens, a line has {most}: take a smaller --chunk or a larger --context",
                    chunk.place
                );
                return Err(Error::new(Kind::TooLarge, message));
            }
        }
        Ok(())
    }

    /// The whole prompt about `chunk`.
    fn prompt(&self, chunk: &Chunk) -> Result<Vec<Token>> {
        let instruction = &self.rules.instruction;
        match &chunk.content {
            ChunkContent::Words(words) => {
                let question = question_about(words, instruction);
                Ok(Layout::of(self.files, &question, 0, None)?.head().tokens)
            }
            ChunkContent::Codes(codes) => {
                let terminators = FrameTerminators::from(&self.model.spec);
                let frames = codes.chunks(self.codes_per_frame());
                let n = frames.len();
                let frames = frames.enumerate();
                let tokens =
                    frames.flat_map(|(i, frame)| frame_tokens(frame, i + 1 == n, terminators));
                let prompt = ChatPrompt::new(&self.model.tokenizer, instruction)?;
                Ok(prompt.assemble(&[tokens.collect()]))
            }
        }
    }

    fn ask(
        &self,
        number: usize,
        chunk: &Chunk,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<ChunkReply> {
        let mut options = self.rules.options.clone();
        options.draw.seed = options.draw.seed.wrapping_add(number as u64);
        let mut conversation = Conversation::new(self.model, &self.model.decoder, options);
        conversation.say(&self.prompt(chunk)?);
        let answer = conversation.answer(&mut |_| {}, progress, cancel)?;
        let end = match answer.finish {
            Finish::Length => End::Cut,
            Finish::Eos | Finish::Stop => End::Whole,
        };
        let mut pairs = pairs_of(&answer.text, end);
        pairs.truncate(self.rules.pairs);
        Ok(ChunkReply {
            chunk: chunk.place.clone(),
            text: answer.text.trim().chars().take(SAID_MAX).collect(),
            pairs,
        })
    }

    /// Lines of as many chunks as fit the context together with all their pairs.
    fn packed(&self, said: &[ChunkReply]) -> Result<(Vec<Value>, QaCounts)> {
        let mut written = QaCounts {
            chunks: self.chunks.len(),
            ..QaCounts::default()
        };
        let silent = said.iter().filter(|said| said.pairs.is_empty());
        written.chunks_without_pairs = silent.map(ChunkReply::silence).collect();
        let (mut lines, mut first) = (Vec::new(), 0);
        while first < self.chunks.len() {
            let mut end = first + self.estimate(first, said)?;
            let mut n_pairs = usize::MAX;
            let (line, tokens, pairs) = loop {
                let all: Vec<&Pair> = said[first..end].iter().flat_map(|s| &s.pairs).collect();
                let pairs = &all[..n_pairs.min(all.len())];
                let line = self.line(&self.chunks[first..end], pairs);
                let tokens = if pairs.is_empty() {
                    0
                } else {
                    self.length(&line)?
                };
                if tokens <= self.rules.context {
                    written.pairs_left_out += all.len() - pairs.len();
                    break (line, tokens, pairs.len());
                }
                match end - first {
                    1 => n_pairs = pairs.len() - 1,
                    _ => end -= 1,
                }
            };
            match pairs {
                0 => written.chunks_left_out += end - first,
                _ => {
                    written.longest_line_tokens = written.longest_line_tokens.max(tokens);
                    written.pairs += pairs;
                    lines.push(line);
                }
            }
            first = end;
        }
        written.lines = lines.len();
        match lines.is_empty() {
            false => Ok((lines, written)),
            true => {
                let most = self.rules.context;
                let message = format!(
                    "no chunk fits a line of {most} tokens with a question and its answer: take a larger --context"
                );
                Err(Error::new(Kind::TooLarge, message))
            }
        }
    }

    /// Estimates from the parts' lengths how many chunks from `first` on fit a line with their pairs, at least one.
    fn estimate(&self, first: usize, said: &[ChunkReply]) -> Result<usize> {
        let mut tokens = self.around()?;
        let video = self.chunks[first].video;
        for (i, (chunk, said)) in self.chunks.iter().zip(said).skip(first).enumerate() {
            tokens += self.weight(chunk)?;
            for pair in &said.pairs {
                let question = self.text(&further(&pair.question))?;
                tokens += question + self.text(&format!(" {}", pair.answer))? + 1;
            }
            if i > 0 && (tokens > self.rules.context || chunk.video != video) {
                return Ok(i);
            }
        }
        Ok(self.chunks.len() - first)
    }

    /// Tokens of a line besides chunks and pairs: begin, end, and the tags of a video.
    fn around(&self) -> Result<usize> {
        match self.chunks.first().map(|chunk| &chunk.content) {
            Some(ChunkContent::Codes(_)) => {
                Ok(2 + self.text("<vision>")? + self.text("</vision>")?)
            }
            _ => Ok(2),
        }
    }

    fn weight(&self, chunk: &Chunk) -> Result<usize> {
        match &chunk.content {
            ChunkContent::Words(words) => self.text(words),
            ChunkContent::Codes(codes) => Ok(codes.len() + codes.len() / self.codes_per_frame()),
        }
    }

    fn text(&self, text: &str) -> Result<usize> {
        Ok(self.model.tokenizer.encode_plain(text)?.len())
    }

    fn codes_per_frame(&self) -> usize {
        let vqgan = self.model.spec.vqgan.as_ref();
        vqgan.map_or(1, |vqgan| vqgan.codes_per_frame())
    }

    /// The line of `chunks`, one after another, followed by `pairs`.
    fn line(&self, chunks: &[Chunk], pairs: &[&Pair]) -> Value {
        let (mut text, mut codes) = (String::new(), Vec::new());
        for chunk in chunks {
            match &chunk.content {
                ChunkContent::Words(words) => text.push_str(words),
                ChunkContent::Codes(of_chunk) => codes.extend_from_slice(of_chunk),
            }
        }
        let shown = match codes.is_empty() {
            true => Subject::Document(&text),
            false => Subject::Codes {
                codes: &codes,
                are_predicted: false,
            },
        };
        let pairs = pairs.iter();
        line(
            shown,
            pairs.map(|pair| (pair.question.as_str(), pair.answer.as_str())),
        )
    }

    /// Tokens of `line` in training.
    fn length(&self, line: &Value) -> Result<usize> {
        let spec = &self.model.spec;
        let vision = spec.vqgan.as_ref().map(|vqgan| VisionRules {
            codes_per_frame: vqgan.codes_per_frame(),
            terminators: FrameTerminators::from(spec),
            codebook: vqgan.num_embeddings,
            n_frames_max: None,
        });
        let no_files = |path: &Path| {
            let message = format!("the line names the file {}, expected codes", path.shown());
            Err(Error::new(Kind::Internal, message))
        };
        let rules = ExampleRules {
            tokenizer: &self.model.tokenizer,
            fields: FieldsOf::Line("fields".to_owned()),
            vision,
            open_codes: &no_files,
        };
        let example = rules.example(&line.to_string(), 0);
        Ok(example.doing(|| "count the tokens of a line")?.tokens.len())
    }
}

/// A model's reply about a chunk.
#[derive(Debug, Clone)]
struct ChunkReply {
    chunk: String,
    /// The beginning of the reply.
    text: String,
    pairs: Vec<Pair>,
}

impl ChunkReply {
    /// Parses what [`ChunkReply::line`] wrote.
    fn of(line: &Value) -> Self {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        Self {
            chunk: text("chunk"),
            text: text("said"),
            pairs: serde_json::from_value(line["pairs"].clone()).unwrap_or_default(),
        }
    }

    fn line(&self) -> Value {
        json!({"chunk": self.chunk, "said": self.text, "pairs": self.pairs})
    }

    fn silence(&self) -> Silence {
        Silence {
            chunk: self.chunk.clone(),
            said: self.text.clone(),
        }
    }
}

fn no_pairs(said: &[ChunkReply]) -> Error {
    let example = said.iter().find(|said| !said.text.is_empty());
    let (place, text) = example
        .or(said.first())
        .map_or(("", ""), |said| (said.chunk.as_str(), said.text.as_str()));
    let message = format!(
        "the model wrote no pair about any of {} chunks, expected lines \"Question: ...\" and \"Answer: ...\"; about {place} it said {text:?}",
        said.len()
    );
    Error::new(Kind::BadInput, message)
}

/// The instruction in the file at `path`, or the default, with the number of pairs filled in.
///
/// # Errors
/// `BadInput` for a file without words.
pub fn instruction(path: Option<&PathBuf>, usual: &str, pairs: usize) -> Result<String> {
    let written = match path {
        None => usual.to_owned(),
        Some(path) => {
            let doing = || format!("read the instruction {}", path.shown());
            fs::read_to_string(path).doing(doing)?
        }
    };
    match (written.trim(), path) {
        ("", Some(path)) => {
            let message = "it has no words, expected what the model is asked";
            let doing = format!("read the instruction {}", path.shown());
            Err(Error::new(Kind::BadInput, message).doing(doing))
        }
        (words, _) => Ok(words.replace("{pairs}", &pairs.to_string())),
    }
}
