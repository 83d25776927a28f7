//! Prompts as tokens: LWM's chat prompt, its prompts for generating
//! images and videos, and plain text prompts.
//!
//! Upstream tokenizes the pieces of a chat prompt one by one and puts the
//! question before the video (`lwm/vision_chat.py`). `<vision>` and
//! `</vision>` are ordinary text to the tokenizer; `<s>`, spelled out, is its
//! special token, so nothing is added around a piece, whatever the tokenizer's
//! configuration says. A question may spell special tokens too, as upstream.

use std::fmt::Write;

use super::{tokenizer::Tokenizer, vocab::Token};
use crate::{
    error::{Error, Kind, Result},
    spec::{FrameEnd, ModelSpec},
};

/// Tokens that a chat prompt may have besides those of its frames before it
/// reaches [`max_input_length`] (`lwm/vision_chat.py`).
const TEXT_TOKENS_MAX: usize = 256;

/// Length to which upstream pads and truncates the prompt of an image or a video
/// (`lwm/vision_generation.py`).
pub const GENERATION_PROMPT_LENGTH: usize = 128;

/// The text before an answer.
pub const CALL: &str = " ASSISTANT:";

/// The text before a video, after BOS.
pub fn opening(question: &str) -> String {
    format!("You are a helpful assistant. USER: {question}\n")
}

/// The text between one answer and the next.
pub fn further(question: &str) -> String {
    format!(" USER: {question}{CALL}")
}

/// The text around the frames of one or more videos, which are streamed in between.
///
/// Without a video all of it is `head` ([`text_prompt`]). One video is `head`, frames, `tail`: upstream's prompt. Each further video
/// has its own tags: `head`, frames, `between`, frames, `tail`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    /// `<s>You are a helpful assistant. USER: {question}\n`, then `<vision>`.
    pub head: Vec<Token>,
    /// `</vision>`, then `<vision>`.
    pub between: Vec<Token>,
    /// `</vision>`, then ` ASSISTANT:`.
    pub tail: Vec<Token>,
}

impl ChatPrompt {
    /// The prompt for `question`.
    pub fn new(tokenizer: &Tokenizer, question: &str) -> Result<Self> {
        let question = format!("<s>{}", opening(question));
        Ok(Self {
            head: pieces(tokenizer, &[&question, "<vision>"])?,
            between: pieces(tokenizer, &["</vision>", "<vision>"])?,
            tail: pieces(tokenizer, &["</vision>", CALL])?,
        })
    }

    /// A prompt of text alone.
    pub fn of_words(head: Vec<Token>) -> Self {
        Self {
            head,
            between: Vec::new(),
            tail: Vec::new(),
        }
    }

    /// The whole prompt of `videos`, each the tokens of its frames ([`frame_tokens`]).
    pub fn assemble(&self, videos: &[Vec<Token>]) -> Vec<Token> {
        let mut tokens = self.head.clone();
        for (n_before, video) in videos.iter().enumerate() {
            if n_before > 0 {
                tokens.extend_from_slice(&self.between);
            }
            tokens.extend_from_slice(video);
        }
        tokens.extend_from_slice(&self.tail);
        tokens
    }

    /// Tokens besides those of the frames, for `n_videos` videos.
    pub fn n_text_tokens(&self, n_videos: usize) -> usize {
        self.head.len() + self.tail.len() + self.between.len() * n_videos.saturating_sub(1)
    }
}

/// The terminators after the codes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameTerminators {
    /// Which of the two ids is used where.
    pub end: FrameEnd,
    /// Ends a frame followed by another (`<eof>` of `lwm/data.py`).
    pub end_of_frame_id: u32,
    /// Ends the last frame (`<eov>` of `lwm/data.py`).
    pub end_of_vision_id: u32,
}

impl From<&ModelSpec> for FrameTerminators {
    fn from(spec: &ModelSpec) -> Self {
        let &ModelSpec {
            frame_end: end,
            end_of_frame_id,
            end_of_vision_id,
            ..
        } = spec;
        Self {
            end,
            end_of_frame_id,
            end_of_vision_id,
        }
    }
}

/// Codes of a frame and its terminator; `last` for the last frame of its video.
pub fn frame_tokens(codes: &[u32], last: bool, terminators: FrameTerminators) -> Vec<Token> {
    let terminator = match terminators.end {
        FrameEnd::Training if !last => terminators.end_of_frame_id,
        FrameEnd::Training | FrameEnd::Upstream => terminators.end_of_vision_id,
    };
    codes
        .iter()
        .copied()
        .chain([terminator])
        .map(Token::Vision)
        .collect()
}

/// A question without a video: `You are a helpful assistant. USER: {question} ASSISTANT:`
/// in one piece, with the special tokens of the tokenizer's configuration
/// (as the template of upstream's `scripts/eval_needle.py`).
pub fn text_prompt(tokenizer: &Tokenizer, question: &str) -> Result<ChatPrompt> {
    raw_prompt(
        tokenizer,
        &format!("You are a helpful assistant. USER: {question} ASSISTANT:"),
    )
}

/// `text` verbatim, with the special tokens of the tokenizer's configuration.
pub fn raw_prompt(tokenizer: &Tokenizer, text: &str) -> Result<ChatPrompt> {
    let head = tokenizer
        .encode(text)?
        .into_iter()
        .map(Token::Text)
        .collect();
    Ok(ChatPrompt::of_words(head))
}

/// A further question in the same conversation: the end-of-sequence token that
/// closes the previous answer, then ` USER: {question} ASSISTANT:`.
///
/// `last` is the last token so far: an answer that was not cut short has
/// closed itself. Upstream has no conversations; this continues in its style.
pub fn follow_up(tokenizer: &Tokenizer, last: Option<Token>, question: &str) -> Result<Vec<Token>> {
    let close = tokenizer
        .eos_id()
        .map(Token::Text)
        .filter(|&eos| last != Some(eos));
    let question = pieces(tokenizer, &[&further(question)])?;
    Ok(close.into_iter().chain(question).collect())
}

/// What is generated from a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeneratedMedium {
    /// One frame.
    Image,
    /// A first frame as for an image, then further frames.
    Video,
}

/// The two prompts of classifier-free guidance (`lwm/vision_generation.py`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationPrompt {
    /// `<s>You are a helpful assistant. USER: Generate an image of {text} ASSISTANT: <vision>`.
    pub conditional: Vec<Token>,
    /// `<s><vision>`.
    pub unconditional: Vec<Token>,
}

impl GenerationPrompt {
    /// The prompts for a `medium` that shows `text`.
    pub fn new(tokenizer: &Tokenizer, medium: GeneratedMedium, text: &str) -> Result<Self> {
        let medium = match medium {
            GeneratedMedium::Image => "an image",
            GeneratedMedium::Video => "a video",
        };
        let conditional = format!(
            "<s>You are a helpful assistant. USER: Generate {medium} of {text} ASSISTANT: <vision>"
        );
        Ok(Self {
            conditional: pieces(tokenizer, &[&conditional])?,
            unconditional: pieces(tokenizer, &["<s><vision>"])?,
        })
    }
}

/// Upstream's limit of a chat prompt: the frames requested (not those found)
/// and 256 more, rounded up to whole blocks (`lwm/vision_chat.py`).
pub fn max_input_length(n_frames_max: usize, tokens_per_frame: usize, block_size: usize) -> usize {
    let block = block_size.max(1);
    n_frames_max
        .saturating_mul(tokens_per_frame)
        .saturating_add(TEXT_TOKENS_MAX)
        .div_ceil(block)
        .saturating_mul(block)
}

/// Fails unless a prompt of `n_tokens` is strictly shorter than `max_input_length`.
pub fn check_length(n_tokens: usize, max_input_length: usize) -> Result<()> {
    if n_tokens < max_input_length {
        return Ok(());
    }
    let over = (n_tokens - max_input_length).saturating_add(1);
    Err(Error::new(
        Kind::TooLarge,
        format!(
            "the prompt has {n_tokens} tokens, expected fewer than {max_input_length}: {over} too many"
        ),
    ))
}

/// Left-padded rows of equal length, row-major `[rows, length]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaddedRows {
    /// Tokens of a row.
    pub length: usize,
    /// Ids; the padding has the pad id.
    pub ids: Vec<u32>,
    /// Whether the id belongs to the vision vocabulary; `false` for padding.
    pub vision_mask: Vec<bool>,
    /// Whether it is a real token.
    pub attention_mask: Vec<bool>,
}

/// Pads each row on the left to `length`; longer rows keep their last `length` tokens.
pub fn left_pad(rows: &[Vec<Token>], length: usize, pad: u32) -> PaddedRows {
    let mut padded = PaddedRows {
        length,
        ids: Vec::new(),
        vision_mask: Vec::new(),
        attention_mask: Vec::new(),
    };
    for row in rows {
        let n_pad = length.saturating_sub(row.len());
        let n_cut = row.len().saturating_sub(length);
        let padding = std::iter::repeat_n((Token::Text(pad), false), n_pad);
        for (token, real) in padding.chain(row.iter().skip(n_cut).map(|&token| (token, true))) {
            padded.ids.push(token.id());
            padded.vision_mask.push(token.is_vision());
            padded.attention_mask.push(real);
        }
    }
    padded
}

/// Tokens for people: a line per run of one modality, text as its pieces, long
/// vision runs by their ends.
pub fn describe(tokenizer: &Tokenizer, tokens: &[Token]) -> String {
    let mut out = String::new();
    for run in tokens.chunk_by(|a, b| a.is_vision() == b.is_vision()) {
        let vision = run.first().is_some_and(|t| t.is_vision());
        let words: Vec<String> = run.iter().map(|&token| word(tokenizer, token)).collect();
        let line = match words.as_slice() {
            [a, b, c, .., y, z] if vision && words.len() > 8 => format!("{a} {b} {c} … {y} {z}"),
            words => words.join(" "),
        };
        let modality = if vision { "vision" } else { "text" };
        // Writing to a string does not fail.
        let _ = writeln!(out, "{modality} {}: {line}", run.len());
    }
    out
}

fn word(tokenizer: &Tokenizer, token: Token) -> String {
    match token {
        Token::Text(id) => tokenizer
            .piece(id, false)
            .unwrap_or_else(|| format!("#{id}")),
        Token::Vision(id) | Token::Feature(id) => id.to_string(),
    }
}

/// Text tokens of separately tokenized pieces.
fn pieces(tokenizer: &Tokenizer, texts: &[&str]) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    for text in texts {
        tokens.extend(tokenizer.encode_plain(text)?.into_iter().map(Token::Text));
    }
    Ok(tokens)
}
