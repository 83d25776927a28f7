//! Text to ids and back, equal to transformers' `LlamaTokenizerFast`.
//!
//! A model directory has either a `tokenizer.json` or a SentencePiece
//! `tokenizer.model`, and often a `tokenizer_config.json` that names the
//! special tokens. `<s>`, `</s>` and `<unk>` spelled out in a text are the
//! special tokens, as they are upstream: LWM's prompts rely on it.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer as Inner};

pub use super::tokenizer_config::TokenizerConfig;
use super::{decoding_rule::DecodingRule, sentencepiece, tokenizer_config::SpecialToken};
use crate::{
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    folder_file,
};

/// Maximum bytes of a tokenizer file; the largest in use have about 30 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: Inner,
    rule: DecodingRule,
    ends: Ends,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
}

/// The special tokens that [`Tokenizer::encode`] adds around a text.
#[derive(Debug)]
enum Ends {
    /// The post-processor of the `tokenizer.json`.
    PostProcessor,
    /// These ids.
    Ids {
        first: Option<u32>,
        last: Option<u32>,
    },
}

/// Special tokens of a vocabulary by their text, and which of them are added around a text.
#[derive(Debug, Clone, Default)]
pub(super) struct Named {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
    pub add_bos: bool,
    pub add_eos: bool,
}

impl Tokenizer {
    /// The tokenizer of the model directory `dir` ([`tokenizer_folder`]): `tokenizer.json`, else `tokenizer.model`.
    ///
    /// # Errors
    /// `NotFound` where there is neither, `BadInput` for one that cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::of_directory(dir)?.ok_or_else(|| {
            let message = "no tokenizer.json and no tokenizer.model, expected one of them";
            let folder = tokenizer_folder(dir);
            Error::new(Kind::NotFound, message)
                .doing(format!("open the tokenizer in {}", folder.shown()))
        })
    }

    /// [`Tokenizer::open`]; `None` where there is neither file.
    ///
    /// # Errors
    /// As there.
    pub fn of_directory(dir: &Path) -> Result<Option<Self>> {
        Self::of_model(dir, None)
    }

    /// [`Tokenizer::of_directory`] of a model whose `config.json` says `model_type`, which decides how transformers reads
    /// a `tokenizer.model`; without one it is read as LWM's was.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn of_model(dir: &Path, model_type: Option<&str>) -> Result<Option<Self>> {
        let dir = &tokenizer_folder(dir);
        let config = TokenizerConfig::of_folder(dir)?;
        let (json, model) = (dir.join("tokenizer.json"), dir.join("tokenizer.model"));
        if let Some(bytes) = folder_file::read(&json, FILE_BYTES_MAX)? {
            let tokenizer = Self::from_json_with(&bytes, &config);
            return tokenizer.map(Some).doing(|| json.shown().to_string());
        }
        if let Some(bytes) = folder_file::read(&model, FILE_BYTES_MAX)? {
            let tokenizer = Self::of_pieces(&bytes, &config, model_type);
            return tokenizer.map(Some).doing(|| model.shown().to_string());
        }
        Ok(None)
    }

    /// A SentencePiece BPE model with byte fallback.
    ///
    /// No special tokens are added unless `config` says so: LWM was
    /// trained so, though transformers adds `<s>` when the key is absent.
    pub fn from_sentencepiece(bytes: &[u8], config: &TokenizerConfig) -> Result<Self> {
        Self::of_pieces(bytes, config, None)
    }

    fn of_pieces(bytes: &[u8], config: &TokenizerConfig, model_type: Option<&str>) -> Result<Self> {
        let added = &config.added_tokens_decoder;
        let names = added
            .iter()
            .map(|(&id, token)| (id, &*token.content))
            .collect();
        let prefix = |asks| config.prefix(model_type, asks);
        let mut converted = guarded(|| sentencepiece::convert(bytes, &names, prefix))?;
        // Text has its space signs only behind the search for added tokens, which therefore reads it as it is.
        let added = added
            .iter()
            .map(|(&id, token)| (id, token.token().normalized(false)));
        add_tokens(&mut converted.tokenizer, added)?;
        add_wanted(&mut converted.tokenizer, &config.wanted)?;
        let config = TokenizerConfig {
            bos_token: config
                .bos_token
                .clone()
                .or(converted.bos.map(SpecialToken::Plain)),
            eos_token: config
                .eos_token
                .clone()
                .or(converted.eos.map(SpecialToken::Plain)),
            unk_token: config
                .unk_token
                .clone()
                .or(Some(SpecialToken::Plain(converted.unk))),
            ..config.clone()
        };
        Self::new(converted.tokenizer, &config, true)
    }

    /// A `tokenizer.json` of the tokenizers library, without a `tokenizer_config.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        Self::from_json_with(bytes, &TokenizerConfig::default())
    }

    /// A `tokenizer.json` of the tokenizers library.
    ///
    /// As in transformers, the LLaMA classes take the added special tokens from
    /// `config`, every other class from the file's own post-processor.
    pub fn from_json_with(bytes: &[u8], config: &TokenizerConfig) -> Result<Self> {
        check_json(bytes)?;
        let mut inner = guarded(|| Inner::from_bytes(bytes).map_err(|e| bad(e.to_string())))?;
        inner
            .with_truncation(None)
            .map_err(failed)?
            .with_padding(None);
        let added = config.added_tokens_decoder.iter();
        add_tokens(&mut inner, added.map(|(&id, token)| (id, token.token())))?;
        add_wanted(&mut inner, &config.wanted)?;
        let llama = config
            .tokenizer_class
            .as_deref()
            .is_some_and(|class| class.starts_with("Llama"));
        let says = config.add_bos_token.is_some() || config.add_eos_token.is_some();
        Self::new(inner, config, llama && says)
    }

    /// A tokenizer whose special tokens are `named`.
    pub(super) fn of_vocabulary(inner: Inner, named: Named) -> Result<Self> {
        let config = TokenizerConfig {
            add_bos_token: Some(named.add_bos),
            add_eos_token: Some(named.add_eos),
            bos_token: named.bos.map(SpecialToken::Plain),
            eos_token: named.eos.map(SpecialToken::Plain),
            pad_token: named.pad.map(SpecialToken::Plain),
            unk_token: named.unk.map(SpecialToken::Plain),
            ..TokenizerConfig::default()
        };
        Self::new(inner, &config, true)
    }

    fn new(inner: Inner, config: &TokenizerConfig, ends_from_config: bool) -> Result<Self> {
        let id = |token: &Option<SpecialToken>, usual: Option<&str>| -> Result<Option<u32>> {
            match (token, usual) {
                (Some(token), _) => match inner.token_to_id(token.text()) {
                    Some(id) => Ok(Some(id)),
                    None => Err(bad(format!(
                        "the special token {:?} is not in the vocabulary",
                        token.text()
                    ))),
                },
                (None, usual) => Ok(usual.and_then(|text| inner.token_to_id(text))),
            }
        };
        let (bos, eos) = (
            id(&config.bos_token, Some("<s>"))?,
            id(&config.eos_token, Some("</s>"))?,
        );
        let (pad, unk) = (
            id(&config.pad_token, None)?,
            id(&config.unk_token, Some("<unk>"))?,
        );
        let first = bos.filter(|_| config.add_bos_token == Some(true));
        let last = eos.filter(|_| config.add_eos_token == Some(true));
        let ends = if ends_from_config {
            Ends::Ids { first, last }
        } else {
            Ends::PostProcessor
        };
        let rule = DecodingRule::of(inner.get_decoder());
        Ok(Self {
            inner,
            rule,
            ends,
            bos,
            eos,
            pad,
            unk,
        })
    }

    /// The id of the special token `text`, which is added if necessary.
    ///
    /// # Errors
    /// `BadInput` when it cannot be added.
    pub fn add_special(&mut self, text: &str) -> Result<u32> {
        let token = AddedToken::from(text.to_owned(), true);
        self.inner.add_special_tokens([token]).map_err(failed)?;
        let id = self.inner.token_to_id(text);
        id.ok_or_else(|| {
            bad(format!(
                "the token {text:?} cannot be added to the vocabulary"
            ))
        })
    }

    /// Ids of `text`, with the special tokens of the configuration (none, for LWM).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.ends {
            Ends::PostProcessor => self.encode_inner(text, true),
            Ends::Ids { first, last } => {
                let ids = self.encode_inner(text, false)?;
                Ok(first.into_iter().chain(ids).chain(last).collect())
            }
        }
    }

    /// Ids of `text` without special tokens.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_inner(text, false)
    }

    fn encode_inner(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special).map_err(failed));
        Ok(encoding
            .doing(|| format!("tokenize {} bytes of text", text.len()))?
            .get_ids()
            .to_vec())
    }

    /// Text of `ids`. Ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special).map_err(failed))
            .doing(|| format!("detokenize {} ids", ids.len()))
    }

    /// Size of the vocabulary, special and added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Begin of sequence, `<s>`.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence, `</s>`.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The padding id, where the configuration names one.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The unknown id, `<unk>`.
    pub fn unk_id(&self) -> Option<u32> {
        self.unk
    }

    pub(super) fn rule(&self) -> &DecodingRule {
        &self.rule
    }

    /// The piece of `id` in the vocabulary's spelling; `None` for an id outside
    /// the vocabulary and for a skipped special token.
    pub fn piece(&self, id: u32, skip_special: bool) -> Option<String> {
        let added = self.inner.get_added_vocabulary();
        let piece = added
            .simple_id_to_token(id)
            .or_else(|| self.inner.id_to_token(id))?;
        (!skip_special || !added.is_special_token(&piece)).then_some(piece)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// The folder of a model's tokenizer files: `llm/` for VILA, the file's folder for a model in one file.
pub fn tokenizer_folder(dir: &Path) -> PathBuf {
    let dir = folder_of(dir);
    let has_one = |dir: &Path| {
        let mut names = ["tokenizer.json", "tokenizer.model"].iter();
        // A link to nothing is one: it is refused where it is read.
        names.any(|name| dir.join(name).symlink_metadata().is_ok())
    };
    let of_decoder = dir.join("llm");
    match !has_one(dir) && has_one(&of_decoder) {
        true => of_decoder,
        false => dir.to_owned(),
    }
}

/// The model's folder, or the folder of its file.
pub fn folder_of(model: &Path) -> &Path {
    let folder = model.parent().filter(|_| model.is_file());
    folder.unwrap_or(model)
}

/// Registers the tokens that `tokenizer_config.json` adds, at their ids.
fn add_tokens(inner: &mut Inner, added: impl Iterator<Item = (u32, AddedToken)>) -> Result<()> {
    for (id, token) in added {
        let text = token.content.clone();
        inner.add_tokens([token]).map_err(failed)?;
        match inner.token_to_id(&text) {
            Some(found) if found == id => {}
            found => {
                let found = found.map_or("none".to_owned(), |id| id.to_string());
                return Err(bad(format!(
                    "the added token {text:?} has id {id}, but the vocabulary gives it {found}"
                )));
            }
        }
    }
    Ok(())
}

/// Registers special tokens that are not registered yet; the vocabulary grows where it does not have their texts.
fn add_wanted(inner: &mut Inner, wanted: &[AddedToken]) -> Result<()> {
    for token in wanted {
        let added = inner.get_added_vocabulary().get_vocab();
        if !added.contains_key(&token.content) {
            inner.add_tokens([token.clone()]).map_err(failed)?;
        }
    }
    Ok(())
}

/// `BadInput` for what the tokenizers crate panics on: text that is not JSON, and a
/// merge whose result is longer than any piece of the vocabulary.
fn check_json(bytes: &[u8]) -> Result<()> {
    let file: Value =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("not a tokenizer.json: {e}")))?;
    let model = file.get("model");
    let vocab = model
        .and_then(|m| m.get("vocab"))
        .and_then(Value::as_object);
    let merges = model
        .and_then(|m| m.get("merges"))
        .and_then(Value::as_array);
    let (Some(vocab), Some(merges)) = (vocab, merges) else {
        return Ok(());
    };
    match merges
        .iter()
        .map(merged)
        .find(|piece| !vocab.contains_key(piece))
    {
        Some(piece) => Err(bad(format!(
            "a merge gives {piece:?}, which is not in the vocabulary"
        ))),
        None => Ok(()),
    }
}

/// The result of a merge; older files write it `"a b"`, newer ones `["a", "b"]`.
fn merged(merge: &Value) -> String {
    match merge {
        Value::String(line) => line.replacen(' ', "", 1),
        pair => pair
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
    }
}

/// Runs code of the tokenizers crate, which panics on some malformed files
/// (a `Strip` longer than a piece, for one): here that is an error.
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result,
        Err(_) => Err(bad("the tokenizer's rules contradict one another".into())),
    }
}

pub(super) fn failed(error: tokenizers::Error) -> Error {
    Error::with_source(Kind::BadInput, "the tokenizer failed", error)
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
