//! A line of JSON to one training example: LWM's `VisionTextProcessor` and `TextProcessor` (`lwm/data.py`).

use std::path::Path;

use serde_json::Value;

use crate::{
    context::{
        prompt::{FrameTerminators, frame_tokens},
        tokenizer::Tokenizer,
        vocab::Token,
    },
    error::{Context, Error, Kind, Result},
    spec::frame_choice::ends_truncated,
    training::data::{
        fields::{Field, FieldContent, parse},
        python_random,
    },
};

/// Tags around a vision field, encoded as ordinary text.
pub const VISION_TAGS: [&str; 2] = ["<vision>", "</vision>"];

/// Tokens, and the loss weight of each as a target: 0 or 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// The loss weight of each token.
    pub loss: Vec<f32>,
}

/// Where the fields of a line are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldsOf {
    /// Under this key of the line: a string, or a list of alternatives.
    Line(String),
    /// The same for every line.
    All(String),
}

/// How vision fields become tokens.
#[derive(Debug, Clone, Copy)]
pub struct VisionRules {
    /// Codes per frame.
    pub codes_per_frame: usize,
    /// The terminators after the codes of a frame.
    pub terminators: FrameTerminators,
    /// Rows of the codebook; every code is below this.
    pub codebook: usize,
    /// Maximum frames of a field, spread evenly; all when absent.
    pub n_frames_max: Option<usize>,
}

/// Reads the codes of a vision field that names a file instead of listing them.
pub type OpenCodes<'a> = dyn Fn(&Path) -> Result<Vec<u32>> + Sync + 'a;

/// How lines become examples.
pub struct ExampleRules<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Where the fields are listed.
    pub fields: FieldsOf,
    /// Codes to tokens; absent for text alone, which is tokenized without special tokens.
    pub vision: Option<VisionRules>,
    /// Reads files that vision fields name.
    pub open_codes: &'a OpenCodes<'a>,
}

impl ExampleRules<'_> {
    /// The example of line `index`, from 0, of a file.
    ///
    /// # Errors
    /// `BadInput` for a line that is not a JSON object, or lacks a key that its fields name.
    pub fn example(&self, line: &str, index: u64) -> Result<Example> {
        let value: Value =
            serde_json::from_str(line).map_err(|e| bad(format!("it is no JSON: {e}")))?;
        if !value.is_object() {
            return Err(bad("it is no JSON object".to_owned()));
        }
        let fields = self.fields(&value, index)?;
        let mut example = Example::default();
        example.push(self.end(FieldContent::Begin)?, 0.0);
        for field in fields {
            self.add(&mut example, &field, &value)?;
        }
        example.push(self.end(FieldContent::End)?, 1.0);
        Ok(example)
    }

    fn fields(&self, line: &Value, index: u64) -> Result<Vec<Field>> {
        let key = match &self.fields {
            FieldsOf::All(fields) => return parse(fields),
            FieldsOf::Line(key) => key,
        };
        let named = &line[key.as_str()];
        let alternatives = named
            .as_array()
            .map_or(std::slice::from_ref(named), Vec::as_slice);
        let chosen = python_random::choice(index, alternatives.len());
        let fields = match chosen {
            _ if named.is_string() => named.as_str(),
            Some(chosen) => alternatives[chosen].as_str(),
            None => None,
        };
        let fields = fields.ok_or_else(|| {
            bad(format!(
                "its {key:?} is {named}, expected a string or a list of strings"
            ))
        })?;
        parse(fields)
    }

    fn end(&self, which: FieldContent) -> Result<Token> {
        let (id, name) = match which {
            FieldContent::End => (self.tokenizer.eos_id(), "end"),
            _ => (self.tokenizer.bos_id(), "begin"),
        };
        let id =
            id.ok_or_else(|| bad(format!("the tokenizer has no token that {name}s a text")))?;
        Ok(Token::Text(id))
    }

    fn add(&self, example: &mut Example, field: &Field, line: &Value) -> Result<()> {
        let loss = if field.is_predicted { 1.0 } else { 0.0 };
        let tokens = match &field.content {
            end @ (FieldContent::Begin | FieldContent::End) => vec![self.end(end.clone())?],
            FieldContent::Vision(key) => self.vision(key, &line[key.as_str()])?,
            FieldContent::Text(keys) => self.text(&joined(keys, line)?)?,
        };
        tokens
            .into_iter()
            .for_each(|token| example.push(token, loss));
        Ok(())
    }

    fn text(&self, text: &str) -> Result<Vec<Token>> {
        let ids = match self.vision {
            Some(_) => self.tokenizer.encode(text)?,
            None => self.tokenizer.encode_plain(text)?,
        };
        Ok(ids.into_iter().map(Token::Text).collect())
    }

    /// Opening tag, frames, closing tag.
    fn vision(&self, key: &str, value: &Value) -> Result<Vec<Token>> {
        let rules = self.vision.as_ref().ok_or_else(|| {
            bad(format!(
                "its field {key:?} holds codes, the model reads text"
            ))
        })?;
        let codes = self.codes(key, value, rules.codebook)?;
        let frames: Vec<&[u32]> = codes.chunks_exact(rules.codes_per_frame).collect();
        if frames.is_empty() {
            return Err(bad(format!(
                "its field {key:?} has {} codes, expected at least one frame of {}",
                codes.len(),
                rules.codes_per_frame
            )));
        }
        let most = rules.n_frames_max.unwrap_or(usize::MAX);
        let chosen = ends_truncated(frames.len(), most);
        let [open, close] = VISION_TAGS;
        let mut tokens = self.text(open)?;
        for (i, &frame) in chosen.iter().enumerate() {
            let is_last = i + 1 == chosen.len();
            tokens.extend(frame_tokens(frames[frame], is_last, rules.terminators));
        }
        tokens.extend(self.text(close)?);
        Ok(tokens)
    }

    fn codes(&self, key: &str, value: &Value, codebook: usize) -> Result<Vec<u32>> {
        let doing = || format!("read its field {key:?}");
        if let Some(name) = value.as_str() {
            return (self.open_codes)(Path::new(name)).doing(doing);
        }
        let code = |value: &Value| {
            let code = value.as_u64().filter(|&code| code < codebook as u64);
            code.and_then(|code| u32::try_from(code).ok())
        };
        let codes = value
            .as_array()
            .and_then(|list| list.iter().map(code).collect());
        codes.ok_or_else(|| {
            bad(format!(
                "expected a list of codes below {codebook}, or the name of a reel"
            ))
            .doing(doing())
        })
    }
}

impl Example {
    fn push(&mut self, token: Token, loss: f32) {
        self.tokens.push(token);
        self.loss.push(loss);
    }
}

/// The values of `keys`, joined with spaces.
fn joined(keys: &[String], line: &Value) -> Result<String> {
    let value = |key: &String| {
        let value = &line[key.as_str()];
        let text = value.as_str();
        text.ok_or_else(|| bad(format!("its {key:?} is {value}, expected text")))
    };
    let values = keys.iter().map(value).collect::<Result<Vec<_>>>()?;
    Ok(values.join(" "))
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
