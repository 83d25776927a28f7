//! What the files beside a tokenizer say of its special and added tokens, put together as transformers 5 does it
//! (`PreTrainedTokenizerBase._from_pretrained`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::sentencepiece::Prefix;
use crate::{
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    folder_file,
};

/// Maximum bytes of a file.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Special tokens that every tokenizer may have, in the order in which they are added.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

const ADDED: &str = "added_tokens_decoder";
const EXTRA: &str = "extra_special_tokens";
/// The name of [`EXTRA`] before transformers 5.
const ADDITIONAL: &str = "additional_special_tokens";

/// Models whose tokenizers transformers 5 builds from the SentencePiece file alone, whatever class their folder names.
const WITHOUT_CLASS: [&str; 5] = ["llava", "mistral", "mixtral", "qwen2", "qwen3"];

/// The keys of a `tokenizer_config.json` that change ids.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct TokenizerConfig {
    #[serde(default)]
    pub(super) tokenizer_class: Option<String>,
    #[serde(default)]
    pub(super) add_bos_token: Option<bool>,
    #[serde(default)]
    pub(super) add_eos_token: Option<bool>,
    #[serde(default)]
    pub(super) add_prefix_space: Option<bool>,
    #[serde(default)]
    pub(super) legacy: Option<bool>,
    #[serde(default)]
    pub(super) bos_token: Option<SpecialToken>,
    #[serde(default)]
    pub(super) eos_token: Option<SpecialToken>,
    #[serde(default)]
    pub(super) pad_token: Option<SpecialToken>,
    #[serde(default)]
    pub(super) unk_token: Option<SpecialToken>,
    #[serde(default)]
    pub(super) added_tokens_decoder: BTreeMap<u32, WrittenToken>,
    /// Special tokens that are added where the vocabulary does not have them, in order.
    #[serde(skip)]
    pub(super) wanted: Vec<AddedToken>,
}

/// A special token, written as a string or as an object.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum SpecialToken {
    Plain(String),
    Object(WrittenToken),
}

/// An added token as files have it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct WrittenToken {
    pub content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl WrittenToken {
    pub(super) fn token(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

impl SpecialToken {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Plain(content) => content,
            Self::Object(token) => &token.content,
        }
    }

    /// The token as it is added.
    fn token(&self) -> AddedToken {
        match self {
            Self::Plain(content) => AddedToken::from(content.clone(), true).normalized(false),
            Self::Object(token) => WrittenToken {
                special: true,
                ..token.clone()
            }
            .token(),
        }
    }
}

impl TokenizerConfig {
    /// Parses the text of a `tokenizer_config.json`.
    ///
    /// # Errors
    /// `BadInput` for a value of the wrong type.
    pub fn from_json(text: &str) -> Result<Self> {
        let config = serde_json::from_str(text).map_err(|e| bad(e.to_string()));
        config
            .and_then(Self::of)
            .doing(|| "read tokenizer_config.json")
    }

    /// What the files of the folder `dir` say together.
    ///
    /// # Errors
    /// `BadInput` for a file that cannot be read, or a value of the wrong type.
    pub(super) fn of_folder(dir: &Path) -> Result<Self> {
        let merged = of_folder(dir)?;
        Self::of(merged).doing(|| format!("read the tokenizer's files in {}", dir.shown()))
    }

    fn of(config: Map<String, Value>) -> Result<Self> {
        let wanted = wanted(&config)?;
        let parsed: Self = serde_path_to_error::deserialize(Value::Object(config))
            .map_err(|e| bad(e.to_string()))?;
        Ok(Self { wanted, ..parsed })
    }

    /// Where the tokenizer of a SentencePiece file puts a space sign that is not in the text; `None` for nowhere.
    ///
    /// transformers 5 has two classes for such a file: `LlamaTokenizer`, and the one that builds a tokenizer from the file
    /// alone. `model_type` is that of the folder's `config.json`, where transformers knows it; `asks` is what the
    /// file says of its first space sign.
    pub(super) fn prefix(&self, model_type: Option<&str>, asks: bool) -> Option<Prefix> {
        let class = self.tokenizer_class.as_deref().unwrap_or_default();
        let by_class = class.starts_with("Llama")
            && model_type.is_some_and(|model| !WITHOUT_CLASS.contains(&model));
        if by_class {
            let prefix = match self.legacy {
                Some(true) => Prefix::EveryRunWithoutSpace,
                _ => Prefix::First,
            };
            return self.add_prefix_space.unwrap_or(true).then_some(prefix);
        }
        let prefix = match (self.legacy, model_type) {
            (Some(false), Some(_)) => Prefix::First,
            _ => Prefix::EveryRun,
        };
        self.add_prefix_space.unwrap_or(asks).then_some(prefix)
    }
}

/// `tokenizer_config.json` of `dir`, and what older files beside it add where it has no tokens of its own.
///
/// # Errors
/// `BadInput` for a file that is no JSON object.
pub(super) fn of_folder(dir: &Path) -> Result<Map<String, Value>> {
    let mut config = object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    if let Some(additional) = config.remove(ADDITIONAL)
        && config.get(EXTRA).is_none_or(Value::is_null)
    {
        config.insert(EXTRA.to_owned(), additional);
    }
    if config.contains_key(ADDED) {
        return Ok(config);
    }
    if let Some(map) = object(&dir.join("special_tokens_map.json"))? {
        // Of its lists transformers reads only the one with the new name.
        let map = map.into_iter().filter(|(key, _)| key != ADDITIONAL);
        map.for_each(|(key, value)| merge(&mut config, key, value));
    }
    if let Some(added) = object(&dir.join("added_tokens.json"))? {
        let decoder = decoder_of(&config, &added)?;
        config.insert(ADDED.to_owned(), Value::Object(decoder));
    }
    Ok(config)
}

/// Puts one entry of `special_tokens_map.json` in place; lists grow.
fn merge(config: &mut Map<String, Value>, key: String, value: Value) {
    match (config.get_mut(&key), value) {
        (Some(Value::Array(known)), Value::Array(more)) => {
            let new: Vec<Value> = more.into_iter().filter(|m| !known.contains(m)).collect();
            known.extend(new);
        }
        (_, value) => drop(config.insert(key, value)),
    }
}

/// `added_tokens.json`, text to id, in the form of `added_tokens_decoder`.
fn decoder_of(
    config: &Map<String, Value>,
    added: &Map<String, Value>,
) -> Result<Map<String, Value>> {
    let named = NAMED.iter().filter_map(|name| config.get(*name));
    let extra = config.get(EXTRA).and_then(Value::as_array);
    let special = named.chain(extra.into_iter().flatten()).filter_map(text_of);
    let special: BTreeSet<&str> = special.collect();
    let token = |(text, id): (&String, &Value)| {
        let id = id.as_u64().ok_or_else(|| {
            bad(format!("{text:?} is {id}, expected an id")).doing("read added_tokens.json")
        })?;
        let is_special = special.contains(text.as_str());
        let token = json!({ "content": text, "special": is_special, "normalized": !is_special });
        Ok((id.to_string(), token))
    };
    added.iter().map(token).collect()
}

/// The special tokens of a configuration that a vocabulary must have, in order: those with names, then the others.
fn wanted(config: &Map<String, Value>) -> Result<Vec<AddedToken>> {
    let is_own =
        |(key, _): &(&String, &Value)| key.ends_with("_token") && !NAMED.contains(&key.as_str());
    let named = NAMED.iter().filter_map(|name| config.get(*name));
    let own = config.iter().filter(is_own).map(|(_, token)| token);
    let extra = match config.get(EXTRA) {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(Value::Object(named)) => named.values().collect(),
        _ => Vec::new(),
    };
    let all = named.chain(own).chain(extra);
    // Switches such as add_bos_token have such names too.
    let tokens = all.filter(|token| token.is_string() || token.is_object());
    let token = |token: &Value| {
        let token: SpecialToken =
            serde_json::from_value(token.clone()).map_err(|e| bad(e.to_string()))?;
        Ok(token.token())
    };
    tokens.map(token).collect()
}

/// Names and texts of the special tokens that a chat template may write.
pub(super) fn template_tokens(dir: &Path) -> Result<Vec<(String, String)>> {
    let config = of_folder(dir)?;
    let extra = config.get(EXTRA).and_then(Value::as_object);
    let named = config.iter().filter(|(name, _)| name.ends_with("_token"));
    let all = extra.into_iter().flatten().chain(named);
    Ok(all
        .filter_map(|(name, token)| Some((name.clone(), text_of(token)?.to_owned())))
        .collect())
}

fn text_of(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = folder_file::read(path, FILE_BYTES_MAX)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice(&bytes);
    let parsed = parsed.map_err(|e| Error::with_source(Kind::BadInput, "not a JSON object", e));
    parsed.map(Some).doing(|| format!("read {}", path.shown()))
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
