//! Chat templates: a conversation as the text that a model was trained on.
//!
//! Templates are Jinja as transformers runs it: blocks are trimmed with their line, text is not
//! escaped, strings and lists have Python's methods, `raise_exception` ends the rendering. There
//! is no `strftime_now`: a prompt must not depend on the day, and templates that test
//! for the function have a fallback. A template is an untrusted program: its steps and the
//! length of its output are bounded.

use std::{io, path::Path};

use minijinja::{
    AutoEscape, Environment, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde::Serialize;
use serde_json::{Value as Json, ser::Formatter};

use super::{tokenizer::tokenizer_folder, tokenizer_config::template_tokens};
use crate::{
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    folder_file,
};

/// Maximum steps of a template; known ones take a few hundred per message.
const FUEL: u64 = 2_000_000;

/// Maximum bytes of a template's output.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// Maximum bytes of a file with a template.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Templates for folders that have none.
const BUILT_IN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/templates.rs"));

/// The speaker of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The system prompt.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Turn {
    /// The speaker of a turn.
    pub role: Role,
    /// The content.
    pub content: Content,
}

/// The content of a turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// Text: what text models' templates expect.
    Words(String),
    /// Text and media: what vision-language models' templates expect.
    Parts(Vec<Part>),
}

/// A part of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// A picture.
    Image,
    /// A video.
    Video,
    /// Words.
    Text {
        /// The words.
        text: String,
    },
}

/// A template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and other special tokens, by their names in templates.
    specials: Vec<(String, String)>,
    /// Where it comes from, for errors.
    name: String,
}

impl ChatTemplate {
    /// The template of the folder `dir`: `chat_template.jinja`, `chat_template.json`, the one in
    /// `processor_config.json`, the one in `tokenizer_config.json`, whichever comes first; of several that named `default`.
    ///
    /// # Errors
    /// `BadInput` for an invalid file, or a template that does not compile.
    pub fn of_directory(dir: &Path) -> Result<Option<Self>> {
        let specials = special_tokens(dir)?;
        let jinja = dir.join("chat_template.jinja");
        if let Some(source) = folder_file::text(&jinja, FILE_BYTES_MAX)? {
            return Self::new(&jinja.shown().to_string(), source, specials).map(Some);
        }
        for name in [
            "chat_template.json",
            "processor_config.json",
            "tokenizer_config.json",
        ] {
            let path = dir.join(name);
            let doing = || format!("read {}", path.shown());
            let found = json(&path)?.and_then(|file| file.get("chat_template").cloned());
            if let Some(source) = found.as_ref().and_then(default_template) {
                return Self::new(&path.shown().to_string(), source, specials).map(Some);
            }
            match found {
                None | Some(Json::Null) => {}
                Some(_) => {
                    let message =
                        "chat_template is neither a text nor a list with one named default";
                    return Err(Error::new(Kind::BadInput, message).doing(doing()));
                }
            }
        }
        Ok(None)
    }

    /// The built-in template `name` (`context/templates`), for a folder `dir` without one.
    ///
    /// # Errors
    /// `BadInput` when there is none of that name.
    pub fn built_in(name: &str, dir: &Path) -> Result<Self> {
        let found = BUILT_IN.iter().find(|(known, _)| *known == name);
        let (_, source) = found.ok_or_else(|| {
            let known: Vec<&str> = BUILT_IN.iter().map(|(known, _)| *known).collect();
            let message = format!(
                "no template is called {name}, expected {}",
                known.join(", ")
            );
            Error::new(Kind::BadInput, message)
        })?;
        Self::new(name, (*source).to_owned(), special_tokens(dir)?)
    }

    /// A template from its text; `name` is for errors, `specials` are names and texts of tokens.
    ///
    /// # Errors
    /// `BadInput` when it does not compile.
    pub fn new(name: &str, source: String, specials: Vec<(String, String)>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|e| failed(name, &e))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", refuse);
        environment.add_filter("tojson", to_json);
        let source = without_generation_marks(&with_newlines(&source))?;
        environment
            .add_template_owned(name.to_owned(), source)
            .map_err(|e| failed(name, &e))?;
        Ok(Self {
            environment,
            specials,
            name: name.to_owned(),
        })
    }

    /// The template in `file`: Jinja, or a JSON file with a `chat_template`; the names of special tokens are those of the
    /// folder `dir`.
    ///
    /// # Errors
    /// `NotFound` where there is no such file, `BadInput` for one that has no template.
    pub fn of_file(file: &Path, dir: &Path) -> Result<Self> {
        let doing = || format!("read the chat template {}", file.shown());
        let text = folder_file::text(file, FILE_BYTES_MAX)?;
        let text = text
            .ok_or_else(|| Error::new(Kind::NotFound, "no such file or directory"))
            .doing(doing)?;
        let source = match serde_json::from_str::<Json>(&text) {
            Ok(Json::Object(json)) => {
                let found = json.get("chat_template").and_then(default_template);
                let message = "the file is JSON without a text `chat_template`, expected one, or a template in Jinja";
                found
                    .ok_or_else(|| Error::new(Kind::BadInput, message))
                    .doing(doing)?
            }
            _ => text,
        };
        Self::new(&file.shown().to_string(), source, special_tokens(dir)?)
    }

    /// Where it stands: a file, a key of a GGUF file, or the name of one of `context/templates`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Renders the conversation up to the model's answer.
    ///
    /// # Errors
    /// `BadInput` when the template refuses it, fails, or does not terminate.
    pub fn render(&self, messages: &[Turn]) -> Result<String> {
        let specials = self.specials.iter().cloned();
        let values = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => true,
            ..Value::from_pairs(specials)
        };
        let mut text = Bounded(Vec::new());
        self.environment
            .get_template(&self.name)
            .and_then(|template| template.render_captured_to(values, &mut text).map(drop))
            .map_err(|e| failed(&self.name, &e))?;
        String::from_utf8(text.0)
            .map_err(|e| Error::with_source(Kind::Internal, format!("render {}", self.name), e))
    }
}

/// A buffer with a maximum length.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > TEXT_BYTES_MAX {
            let message = format!("the text is longer than {TEXT_BYTES_MAX} bytes");
            return Err(io::Error::other(message));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The function `raise_exception` of templates.
fn refuse(message: String) -> std::result::Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The filter `tojson` of templates: as Python's `json.dumps` with `ensure_ascii=False`.
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let failed = |e: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, "tojson").with_source(e)
    };
    let indent: Option<usize> = options.get("indent")?;
    let mut text = Vec::new();
    let written = match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(16));
            let form = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, form))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut text, Python,
        )),
    };
    written.map_err(failed)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Python's separators: a space after commas and colons.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// A template's ends of lines are `\n`, whatever the system on which it was written, as Jinja2's `newline_re` has it.
fn with_newlines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Removes `{% generation %}`, which marks text for training and has no output.
fn without_generation_marks(source: &str) -> Result<String> {
    let mark = Regex::new(r"\{%-?\s*(end)?generation\s*-?%\}");
    let mark = mark.map_err(|e| Error::with_source(Kind::Internal, "read a pattern", e))?;
    let blank = |found: &regex::Captures| {
        // A mark that trims the text around it must keep doing so.
        found[0]
            .replace("endgeneration", "endif")
            .replace("generation", "if true")
    };
    Ok(mark.replace_all(source, blank).into_owned())
}

/// A template, or the one named `default` among several.
fn default_template(found: &Json) -> Option<String> {
    let named = |list: &Vec<Json>| {
        let default = list.iter().find(|t| t["name"] == "default")?;
        default["template"].as_str().map(str::to_owned)
    };
    let text = found.as_str().map(str::to_owned);
    text.or_else(|| found.as_array().and_then(named))
}

/// Names and texts of the special tokens of the folder of a model.
fn special_tokens(dir: &Path) -> Result<Vec<(String, String)>> {
    template_tokens(&tokenizer_folder(dir))
}

fn json(path: &Path) -> Result<Option<Json>> {
    let Some(text) = folder_file::text(path, FILE_BYTES_MAX)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_str(&text);
    let parsed = parsed.map_err(|e| Error::with_source(Kind::BadInput, "not JSON", e));
    parsed.map(Some).doing(|| format!("read {}", path.shown()))
}

/// The error of a template, with its message and line.
fn failed(name: &str, error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(", line {line}"));
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    let mut message = format!("{error}{}", cause.unwrap_or_default());
    if error.kind() == ErrorKind::OutOfFuel {
        message = format!("it does not come to an end within {FUEL} steps");
    }
    let doing = format!(
        "render the chat template {name}{}",
        line.unwrap_or_default()
    );
    Error::new(Kind::BadInput, message).doing(doing)
}
