//! A question about videos as tokens, cut where their features go, so that it can be
//! read while the videos still come.
//!
//! The template is rendered with a token where each video (or each picture) stands, and its text is
//! tokenized in one piece: what stands between two of those tokens cannot depend on how many rows come there.

use super::{
    chat_template::{ChatTemplate, Content, Message, Part, Role},
    tokenizer::Tokenizer,
    vocab::Token,
};
use crate::{
    error::{Error, Kind, Result},
    spec::{
        features::VisionSpec,
        frame_choice::{TIME_MAX, one_time, time_instruction},
        placement::Placement,
    },
};

/// Pictures with which a template is tried: what stands between the first two must stand between all.
const TRIED_PICTURES: usize = 3;

/// Where the times of a video's frames are told, until they are known.
const TIMES: char = '\u{e001}';

/// An answer that no model gives, to find what a template puts behind one.
const ANSWER: &str = "\u{e000}";

/// The text around the features of some videos.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisionPrompt {
    head: Vec<Token>,
    between_videos: Vec<Token>,
    tail: Vec<Token>,
    between_steps: Vec<Token>,
    placement: Placement,
    /// What stands behind a video whose times are told.
    told: Option<Told>,
    /// The id that stands for a row of features.
    id: u32,
}

/// The text behind a video, before and behind the place where the times of its frames are told.
///
/// It becomes tokens when they are known: those of the words around them need not be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    between_videos: [String; 2],
    tail: [String; 2],
}

/// Which step of its video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepPlace {
    /// From 0.
    pub number: usize,
    /// Its time, in seconds.
    pub seconds: f64,
    /// Whether no other follows in its video.
    pub is_last: bool,
}

impl VisionPrompt {
    /// The prompt that asks `question` about `n_videos` videos.
    ///
    /// # Errors
    /// `BadInput` when the template has no place for them, or another number of places.
    pub fn new(
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        vision: &VisionSpec,
        question: &str,
        n_videos: usize,
    ) -> Result<Self> {
        let pictures = vision.placement == Placement::Pictures;
        let (part, id, n) = match vision.video_token_id {
            Some(id) if !pictures => (Part::Video, id, n_videos),
            _ if pictures && n_videos > 0 => (Part::Image, vision.image_token_id, TRIED_PICTURES),
            _ => (Part::Video, vision.image_token_id, n_videos),
        };
        let mut text = template.render(&[asked(vision, part, n, question)])?;
        let told = match vision.time_instruction && n > 0 {
            true => Some(Told::cut(&text, &spelled(tokenizer, id)?)?),
            false => None,
        };
        text = text.replace(TIMES, "");
        if let Placement::Apart { instead_of, .. } = &vision.placement {
            text = text.replace(instead_of, &spelled(tokenizer, id)?);
        }
        let ids = encode(tokenizer, &text)?;
        let mut pieces: Vec<Vec<Token>> = ids
            .split(|&at| at == id)
            .map(|piece| piece.iter().copied().map(Token::Text).collect())
            .collect();
        if pieces.len() != n + 1 {
            let message = format!(
                "the prompt has {} places for features (id {id}), expected {n}",
                pieces.len() - 1
            );
            return Err(Error::new(Kind::BadInput, message).doing("cut the prompt"));
        }
        let head = pieces.remove(0);
        let tail = pieces.pop().unwrap_or_default();
        let between = pieces.first().cloned().unwrap_or_default();
        if pieces.iter().any(|piece| *piece != between) {
            let message = "the chat template puts other words between the first two places for features than between the next";
            return Err(Error::new(Kind::BadInput, message));
        }
        let between_steps = match &vision.placement {
            Placement::Pictures => between.clone(),
            Placement::Together => Vec::new(),
            Placement::Apart { between, .. } => words(tokenizer, between)?,
        };
        Ok(Self {
            head,
            between_videos: between,
            tail,
            between_steps,
            placement: vision.placement.clone(),
            told,
            id,
        })
    }

    /// What stands before the first step; all of it where there is no video.
    pub fn head(&self) -> &[Token] {
        &self.head
    }

    /// What stands behind a video, which is the last or not; `instruction` tells when its frames were.
    ///
    /// # Errors
    /// `BadInput` when the words cannot be tokenized.
    pub fn after(
        &self,
        tokenizer: &Tokenizer,
        is_last: bool,
        instruction: Option<&str>,
    ) -> Result<Vec<Token>> {
        match (&self.told, instruction, is_last) {
            (Some(told), Some(instruction), _) => told.tokens(tokenizer, is_last, instruction),
            (_, _, true) => Ok(self.tail.clone()),
            (_, _, false) => Ok(self.between_videos.clone()),
        }
    }

    /// Whether the times of a video's frames are told behind it.
    pub fn tells_times(&self) -> bool {
        self.told.is_some()
    }

    /// Most tokens that tell the times of `n_frames` frames.
    ///
    /// # Errors
    /// `BadInput` when the words cannot be tokenized.
    pub fn times_tokens(&self, tokenizer: &Tokenizer, n_frames: u64) -> Result<u64> {
        if !self.tells_times() {
            return Ok(0);
        }
        let len = |text: &str| Ok::<_, Error>(words(tokenizer, text)?.len() as u64);
        // The number of frames has a token a digit at most, and one token ends the line.
        let around = len(&time_instruction(TIME_MAX, &[]))? + n_frames.to_string().len() as u64 + 1;
        let one = len(&one_time())?;
        Ok(n_frames.saturating_mul(one).saturating_add(around))
    }

    /// A step of `rows` features with the words around it.
    ///
    /// # Errors
    /// `BadInput` when the words cannot be tokenized.
    pub fn step(&self, tokenizer: &Tokenizer, place: StepPlace, rows: usize) -> Result<Vec<Token>> {
        let mut tokens = Vec::with_capacity(rows + 16);
        let features = std::iter::repeat_n(Token::Feature(self.id), rows);
        match &self.placement {
            Placement::Apart { before, behind, .. } => {
                tokens.extend(words(tokenizer, &filled(before, place))?);
                tokens.extend(features);
                tokens.extend(words(tokenizer, behind)?);
            }
            Placement::Pictures | Placement::Together => tokens.extend(features),
        }
        if !place.is_last {
            tokens.extend_from_slice(&self.between_steps);
        }
        Ok(tokens)
    }

    /// Tokens beside those of the steps, for `n_videos` videos.
    pub fn n_text_tokens(&self, n_videos: usize) -> usize {
        let between = n_videos.saturating_sub(1) * self.between_videos.len();
        self.head.len() + between + if n_videos > 0 { self.tail.len() } else { 0 }
    }
}

impl Told {
    /// What `text` has behind each of its `placeholder`s; `TIMES` stands there once at least.
    fn cut(text: &str, placeholder: &str) -> Result<Self> {
        let behind: Vec<&str> = text.split(placeholder).skip(1).collect();
        let around = |text: Option<&&str>| {
            let (before, after) = text?.split_once(TIMES)?;
            Some([before.to_owned(), after.to_owned()])
        };
        let places = around(behind.first()).zip(around(behind.last()));
        let (between_videos, tail) = places.ok_or_else(|| {
            let message = "the chat template has no place for the times behind a video";
            Error::new(Kind::BadInput, message)
        })?;
        Ok(Self {
            between_videos,
            tail,
        })
    }

    fn tokens(
        &self,
        tokenizer: &Tokenizer,
        is_last: bool,
        instruction: &str,
    ) -> Result<Vec<Token>> {
        let [before, after] = match is_last {
            true => &self.tail,
            false => &self.between_videos,
        };
        words(tokenizer, &format!("{before}{instruction}\n{after}"))
    }
}

/// Where a template's placeholder has words around it, they stand in its text: `{seconds}`, `{number}`.
fn filled(words: &str, place: StepPlace) -> String {
    words
        .replace("{seconds}", &format!("{:.1}", place.seconds))
        .replace("{number}", &(place.number + 1).to_string())
}

/// A question without anything shown.
///
/// # Errors
/// As [`ChatTemplate::render`].
pub fn words_prompt(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    question: &str,
) -> Result<Vec<Token>> {
    let message = Message {
        role: Role::User,
        content: Content::Words(question.to_owned()),
    };
    let text = template.render(&[message])?;
    // As transformers' tokenizers: everything around the text is the template's.
    words(tokenizer, &text)
}

/// A further question in the same conversation: what the template puts behind an answer, and the question.
///
/// `last` is the last token so far: an answer that was not cut short has closed itself.
///
/// # Errors
/// `BadInput` when the template does not show the answer as it was given.
pub fn follow_up(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    last: Option<Token>,
    question: &str,
    in_parts: bool,
) -> Result<Vec<Token>> {
    let said = |role, text: &str| {
        let part = Part::Text {
            text: text.to_owned(),
        };
        let content = match in_parts {
            true => Content::Parts(vec![part]),
            false => Content::Words(text.to_owned()),
        };
        Message { role, content }
    };
    let text = template.render(&[
        said(Role::User, "?"),
        said(Role::Assistant, ANSWER),
        said(Role::User, question),
    ])?;
    let behind = text.split_once(ANSWER).map(|(_, behind)| behind);
    let behind = behind.ok_or_else(|| {
        let message = "the chat template leaves an answer out, expected it between the questions";
        Error::new(Kind::BadInput, message)
    })?;
    let tokens = words(tokenizer, behind)?;
    let closed = last.is_some() && tokens.first() == last.as_ref();
    Ok(tokens.into_iter().skip(usize::from(closed)).collect())
}

/// What is shown, `n` times, each with a place for its times where they are told, then the question.
fn asked(vision: &VisionSpec, part: Part, n: usize, question: &str) -> Message {
    let times = match vision.time_instruction {
        true => String::from(TIMES),
        false => String::new(),
    };
    let content = match &vision.shown_as {
        Some(shown) => Content::Words(format!("{shown}{times}").repeat(n) + question),
        None => {
            let text = |text: String| Part::Text { text };
            let mut one = vec![part];
            one.extend((!times.is_empty()).then(|| text(times)));
            let mut parts: Vec<Part> = std::iter::repeat_n(one, n).flatten().collect();
            parts.push(text(question.to_owned()));
            Content::Parts(parts)
        }
    };
    Message {
        role: Role::User,
        content,
    }
}

/// As transformers' processors: with what the tokenizer puts around a text, unless it is there.
fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let bos = tokenizer.bos_id().and_then(|id| tokenizer.piece(id, false));
    match bos {
        Some(bos) if text.starts_with(&bos) => tokenizer.encode_plain(text),
        _ => tokenizer.encode(text),
    }
}

fn words(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Token>> {
    let ids = tokenizer.encode_plain(text)?;
    Ok(ids.into_iter().map(Token::Text).collect())
}

/// How a text spells the token `id`.
fn spelled(tokenizer: &Tokenizer, id: u32) -> Result<String> {
    tokenizer.piece(id, false).ok_or_else(|| {
        let message =
            format!("the tokenizer has no token {id}, expected the one that stands for features");
        Error::new(Kind::BadInput, message)
    })
}

#[cfg(test)]
mod tests {
    use super::{StepPlace, filled};

    #[test]
    fn times_are_rounded_as_python_rounds_them() {
        let at = |seconds| {
            let place = StepPlace {
                number: 3,
                seconds,
                is_last: false,
            };
            filled("<{seconds} seconds> {number}", place)
        };
        assert_eq!(at(0.25), "<0.2 seconds> 4");
        assert_eq!(at(0.75), "<0.8 seconds> 4");
        assert_eq!(at(3599.96), "<3600.0 seconds> 4");
    }
}
