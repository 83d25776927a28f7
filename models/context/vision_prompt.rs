//! A question about videos as tokens, split where the features go, so that it can be
//! prefilled while videos are still being decoded.
//!
//! The template is rendered with a token for each video (or each picture), and its text is
//! tokenized in one piece: the text between two of those tokens cannot depend on the number of feature rows.

use super::{
    chat_template::{ChatTemplate, Content, Part, Role, Turn},
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

/// Pictures with which a template is tried: the text between the first two must be that between all.
const TRIED_PICTURES: usize = 3;

/// Placeholder of the times of a video's frames until they are known.
const TIMES: char = '\u{e001}';

/// A placeholder answer, to find what a template puts after an answer.
const ANSWER: &str = "\u{e000}";

/// The text around the features of videos.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisionPrompt {
    head: Vec<Token>,
    between_videos: Vec<Token>,
    tail: Vec<Token>,
    between_steps: Vec<Token>,
    placement: Placement,
    /// The text after a video whose times are stated.
    told: Option<DeferredText>,
    /// The id of a feature row.
    id: u32,
}

/// The text after a video, before and after the times of its frames.
///
/// It is tokenized when they are known, as tokens of the surrounding text may depend on them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DeferredText {
    between_videos: [String; 2],
    tail: [String; 2],
}

/// The position of a step in its video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepPlace {
    /// Number of the step, from 0.
    pub number: usize,
    /// Its time, in seconds.
    pub seconds: f64,
    /// Whether it is the last of its video.
    pub is_last: bool,
}

impl VisionPrompt {
    /// The prompt that asks `question` about `n_videos` videos.
    ///
    /// # Errors
    /// `BadInput` when the template does not place them exactly once each.
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
            true => Some(DeferredText::cut(&text, &spelled(tokenizer, id)?)?),
            false => None,
        };
        // The times are known only once the videos are decoded; `told` keeps the text around them.
        text = text.replace(TIMES, "");
        if let Placement::Apart { instead_of, .. } = &vision.placement {
            text = text.replace(instead_of, &spelled(tokenizer, id)?);
        }
        // Tokenized in one piece and split at the placeholders: tokenizing the pieces one by one could merge
        // their ends differently.
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
            let message = "the chat template puts different text between the first two feature placeholders and between the next two";
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

    /// The tokens before the first step; all tokens without a video.
    pub fn head(&self) -> &[Token] {
        &self.head
    }

    /// The tokens after a video, which is the last or not; `instruction` states the times of its frames.
    ///
    /// # Errors
    /// `BadInput` when the text cannot be tokenized.
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

    /// Whether the times of a video's frames follow it in the prompt.
    pub fn tells_times(&self) -> bool {
        self.told.is_some()
    }

    /// Upper bound of the tokens that state the times of `n_frames` frames.
    ///
    /// # Errors
    /// `BadInput` when the text cannot be tokenized.
    pub fn times_tokens(&self, tokenizer: &Tokenizer, n_frames: u64) -> Result<u64> {
        if !self.tells_times() {
            return Ok(0);
        }
        let len = |text: &str| Ok::<_, Error>(words(tokenizer, text)?.len() as u64);
        // The number of frames has at most one token per digit, and one token ends the line.
        let around = len(&time_instruction(TIME_MAX, &[]))? + n_frames.to_string().len() as u64 + 1;
        let one = len(&one_time())?;
        Ok(n_frames.saturating_mul(one).saturating_add(around))
    }

    /// A step of `rows` features with the text around it.
    ///
    /// # Errors
    /// `BadInput` when the text cannot be tokenized.
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

    /// Tokens other than those of the steps, for `n_videos` videos.
    pub fn n_text_tokens(&self, n_videos: usize) -> usize {
        let between = n_videos.saturating_sub(1) * self.between_videos.len();
        self.head.len() + between + if n_videos > 0 { self.tail.len() } else { 0 }
    }
}

impl DeferredText {
    /// Splits the text after each `placeholder`, which must contain `TIMES`.
    fn cut(text: &str, placeholder: &str) -> Result<Self> {
        let behind: Vec<&str> = text.split(placeholder).skip(1).collect();
        let around = |text: Option<&&str>| {
            let (before, after) = text?.split_once(TIMES)?;
            Some([before.to_owned(), after.to_owned()])
        };
        let places = around(behind.first()).zip(around(behind.last()));
        let (between_videos, tail) = places.ok_or_else(|| {
            let message = "the chat template leaves out the times after a video";
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

/// The text around a placeholder with its fields filled in: `{seconds}`, `{number}`.
fn filled(words: &str, place: StepPlace) -> String {
    words
        .replace("{seconds}", &format!("{:.1}", place.seconds))
        .replace("{number}", &(place.number + 1).to_string())
}

/// The prompt of a question without pictures or videos.
///
/// # Errors
/// As [`ChatTemplate::render`].
pub fn words_prompt(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    question: &str,
) -> Result<Vec<Token>> {
    let message = Turn {
        role: Role::User,
        content: Content::Words(question.to_owned()),
    };
    let text = template.render(&[message])?;
    // As in transformers: special tokens come from the template, none are added.
    words(tokenizer, &text)
}

/// A further question in the same conversation: the template's text after an answer, and the question.
///
/// `last` is the last token so far: an answer that was not cut short already ends in its end token.
///
/// # Errors
/// `BadInput` when the template changes or drops the answer.
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
        Turn { role, content }
    };
    let text = template.render(&[
        said(Role::User, "?"),
        said(Role::Assistant, ANSWER),
        said(Role::User, question),
    ])?;
    let behind = text.split_once(ANSWER).map(|(_, behind)| behind);
    let behind = behind.ok_or_else(|| {
        let message = "the chat template leaves out the answer between two questions";
        Error::new(Kind::BadInput, message)
    })?;
    let tokens = words(tokenizer, behind)?;
    // The answer may end in the same end token that the template puts after it; it must not be there twice.
    let closed = last.is_some() && tokens.first() == last.as_ref();
    Ok(tokens.into_iter().skip(usize::from(closed)).collect())
}

/// A turn of `n` media, each followed by a placeholder for its times if they are stated, then the question.
fn asked(vision: &VisionSpec, part: Part, n: usize, question: &str) -> Turn {
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
    Turn {
        role: Role::User,
        content,
    }
}

/// As in transformers' processors: with the tokenizer's special tokens around the text, unless it has them.
fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let bos = tokenizer.bos_id().and_then(|id| tokenizer.piece(id, false));
    match bos {
        // Some templates write the BOS token themselves; a second one would shift every position.
        Some(bos) if text.starts_with(&bos) => tokenizer.encode_plain(text),
        _ => tokenizer.encode(text),
    }
}

fn words(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Token>> {
    let ids = tokenizer.encode_plain(text)?;
    Ok(ids.into_iter().map(Token::Text).collect())
}

/// The text of the token `id`.
fn spelled(tokenizer: &Tokenizer, id: u32) -> Result<String> {
    tokenizer.piece(id, false).ok_or_else(|| {
        let message = format!(
            "the tokenizer has no token {id}, which the model uses as placeholder of features"
        );
        Error::new(Kind::BadInput, message)
    })
}

#[cfg(test)]
mod tests {
    use super::{StepPlace, filled};

    #[test]
    fn times_are_rounded_as_in_python() {
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
