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
    spec::{features::VisionSpec, placement::Placement},
};

/// Pictures with which a template is tried: what stands between the first two must stand between all.
const TRIED_PICTURES: usize = 3;

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
    /// The id that stands for a row of features.
    id: u32,
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
        let mut text = template.render(&[asked(vec![part; n], question)])?;
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
            id,
        })
    }

    /// What stands before the first step; all of it where there is no video.
    pub fn head(&self) -> &[Token] {
        &self.head
    }

    /// What stands behind a video, which is the last or not.
    pub fn after(&self, is_last: bool) -> &[Token] {
        match is_last {
            true => &self.tail,
            false => &self.between_videos,
        }
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

/// What is shown, then the question.
fn asked(mut shown: Vec<Part>, question: &str) -> Message {
    shown.push(Part::Text {
        text: question.to_owned(),
    });
    Message {
        role: Role::User,
        content: Content::Parts(shown),
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
