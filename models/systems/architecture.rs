//! Descriptions, as data, of how Hugging Face folders and GGUF files of known architectures are read.
//!
//! Each file in `systems/architectures/` lists the architectures it is for, the
//! specification (values that begin with `$` are looked up in `config.json`, or in a GGUF file's keys),
//! and the renaming of tensors.
//!
//! ```toml
//! hidden_size = "$vision_config.hidden_size | 768"   # a path, and its default
//! head_dim = "$text_config.head_dim | $head_dim"     # alternative paths; the key is left out where none exists
//! intermediate_size = { product = ["$hidden_size", "$mlp_ratio | 4"] }
//! inner = { two_thirds = "$inner" }                           # 2/3 of it, rounded up to a multiple of 8
//! tie_word_embeddings = { any = ["$tie_word_embeddings", "$text_config.tie_word_embeddings"] }
//! deepstack_layers = { count = "$vision_config.deepstack_visual_indexes | [8, 16, 24]" }
//! order = { choose = "$mm_projector_type", mlp_downsample = "transposed", otherwise = "rows" }
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value as Json;
use toml::Value;

use crate::{
    checkpoint::key_map::KeyMap,
    error::{Context, Error, Kind, Result},
    spec::DecoderSpec,
    systems::rope_parameters::standardize,
};

/// The name and the text of every file of `systems/architectures`, as `build.rs` finds them.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/architectures.rs"));

/// The descriptions of GGUF architectures, by `general.architecture`.
const GGUF_FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/gguf_architectures.rs"));

/// The description of one architecture.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Values of `model_type` in `config.json`.
    model_types: Vec<String>,
    /// Values of `architectures`, where one `model_type` has several.
    #[serde(default)]
    architectures: Vec<String>,
    /// The kind of model.
    kind: ModelKind,
    /// Required values of keys in `config.json`; other values would need another computation.
    #[serde(default)]
    expect: BTreeMap<String, Json>,
    /// Parts of the model in folders of their own: the key of `config.json` for such a part's
    /// configuration, and the folder, whose name is the prefix of its tensors.
    #[serde(default)]
    parts: BTreeMap<String, String>,
    /// The specification, with references to `config.json`.
    spec: Value,
    /// Patterns of tensor names and their replacements, applied in order; an empty name drops the tensor.
    #[serde(default)]
    keys: Vec<(String, String)>,
}

/// The kind of an architecture, which determines its specification's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// [`crate::spec::encoder::DualEncoderSpec`].
    DualEncoder,
    /// [`crate::spec::encoder::VitSpec`].
    Classifier,
    /// [`crate::spec::conv_net::ConvNetSpec`].
    ConvNet,
    /// [`crate::spec::DecoderSpec`].
    Decoder,
    /// [`crate::spec::features::VisionLanguageSpec`].
    VisionLanguage,
}

impl Architecture {
    /// The architecture of a `config.json`.
    ///
    /// # Errors
    /// `BadInput` for an unknown one; the error lists the known ones.
    pub fn of_config(config: &Json) -> Result<Self> {
        let all = Self::all()?;
        let of_it = || all.iter().filter(|a| a.is_of(config));
        // Of two for one type, the one that lists classes takes precedence.
        let named = of_it().find(|a| !a.architectures.is_empty());
        if let Some(found) = named.or_else(|| of_it().next()) {
            found.check(config).doing(|| "read config.json")?;
            return Ok(found.clone());
        }
        let message = format!(
            "model_type is {}, architectures {}: expected one of {}",
            config["model_type"],
            config["architectures"],
            known(&all)
        );
        Err(Error::new(Kind::BadInput, message))
    }

    /// The architecture of a GGUF file; `config` has its keys, and its architecture as `model_type`.
    ///
    /// # Errors
    /// As [`Architecture::of_config`].
    pub fn of_gguf(config: &Json) -> Result<Self> {
        let all = Self::all_gguf()?;
        if let Some(found) = all.iter().find(|a| a.is_of(config)) {
            found.check(config)?;
            return Ok(found.clone());
        }
        let message = format!(
            "general.architecture is {}, expected one of {}",
            config["model_type"],
            known(&all)
        );
        Err(Error::new(Kind::BadInput, message))
    }

    fn is_of(&self, config: &Json) -> bool {
        let says = |names: &[String], said: &Json| names.iter().any(|name| said == name);
        let mut named = config["architectures"].as_array().into_iter().flatten();
        let is_named = self.architectures.is_empty() || named.any(|n| says(&self.architectures, n));
        says(&self.model_types, &config["model_type"]) && is_named
    }

    /// Refuses a configuration that another computation belongs to.
    ///
    /// # Errors
    /// `BadInput` when a key has an unsupported value.
    pub(super) fn check(&self, config: &Json) -> Result<()> {
        for (key, expected) in &self.expect {
            match at(config, key).filter(|found| !found.is_null()) {
                Some(found) if found != expected => {
                    let message = format!("{key} is {found}, expected {expected}");
                    return Err(Error::new(Kind::BadInput, message));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Every known architecture.
    ///
    /// # Errors
    /// `Internal` when a file is invalid.
    pub fn all() -> Result<Vec<Self>> {
        read_all(FILES)
    }

    /// Every architecture of GGUF files.
    ///
    /// # Errors
    /// As [`Architecture::all`].
    pub fn all_gguf() -> Result<Vec<Self>> {
        read_all(GGUF_FILES)
    }

    /// Its kind.
    pub fn kind(&self) -> ModelKind {
        self.kind
    }

    /// The specification for `config`, a `config.json`; `T` is the type of `kind`.
    ///
    /// # Errors
    /// `BadInput` for a model of another kind, a missing key, or an invalid value.
    pub fn spec<T: DeserializeOwned>(&self, kind: ModelKind, config: &Json) -> Result<T> {
        if self.kind != kind {
            let message = format!(
                "{} is a {:?}, expected a {kind:?}",
                config["model_type"], self.kind
            );
            return Err(Error::new(Kind::BadInput, message));
        }
        let doing = || "read config.json";
        let mut config = config.clone();
        standardize(&mut config).doing(doing)?;
        self.read(&config).doing(doing)
    }

    /// The specification of a GGUF file's decoder, whose keys are `config`.
    ///
    /// # Errors
    /// As [`Architecture::spec`].
    pub fn gguf_spec(&self, config: &Json) -> Result<DecoderSpec> {
        self.read(config)
    }

    fn read<T: DeserializeOwned>(&self, config: &Json) -> Result<T> {
        let resolved = resolve(&self.spec, config)?;
        let resolved =
            resolved.ok_or_else(|| Error::new(Kind::Internal, "an empty specification"))?;
        let spec = serde_path_to_error::deserialize(resolved);
        spec.map_err(|e| Error::new(Kind::BadInput, e.to_string()))
    }

    /// Keys of `config.json` and the folders of their parts.
    pub fn parts(&self) -> &BTreeMap<String, String> {
        &self.parts
    }

    /// The renaming of tensors.
    ///
    /// # Errors
    /// `Internal` when a pattern is invalid.
    pub fn keys(&self) -> Result<KeyMap> {
        KeyMap::new(&self.keys)
    }
}

fn read_all(files: &[(&str, &str)]) -> Result<Vec<Architecture>> {
    let read = |(name, text): (&str, &str)| {
        let parsed = toml::from_str(text);
        parsed.map_err(|e| Error::with_source(Kind::Internal, format!("read {name}"), e))
    };
    files.iter().copied().map(read).collect()
}

/// The names of architectures, sorted.
fn known(all: &[Architecture]) -> String {
    let names = all.iter().flat_map(|a| a.model_types.iter());
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// A value with its references resolved; `None` for a reference without a value.
fn resolve(value: &Value, config: &Json) -> Result<Option<Json>> {
    match value {
        Value::String(text) if text.starts_with('$') => look_up(text, config),
        Value::Table(table) if table.contains_key("any") => any(&table["any"], config),
        Value::Table(table) if table.contains_key("product") => product(&table["product"], config),
        Value::Table(table) if table.contains_key("two_thirds") => {
            two_thirds(&table["two_thirds"], config)
        }
        Value::Table(table) if table.contains_key("count") => count(&table["count"], config),
        Value::Table(table) if table.contains_key("choose") => choose(table, config),
        Value::Table(table) => {
            let mut resolved = serde_json::Map::new();
            for (key, value) in table {
                if let Some(value) = resolve(value, config)? {
                    resolved.insert(key.clone(), value);
                }
            }
            Ok(Some(Json::Object(resolved)))
        }
        Value::Array(values) => {
            let values = values
                .iter()
                .filter_map(|value| resolve(value, config).transpose());
            Ok(Some(Json::Array(values.collect::<Result<_>>()?)))
        }
        other => {
            let literal = serde_json::to_value(other);
            let literal = literal
                .map_err(|e| Error::with_source(Kind::Internal, "read a specification", e))?;
            Ok(Some(literal))
        }
    }
}

/// The entry of a table for a value of `config.json`; `None` without a value and a default.
fn choose(table: &toml::Table, config: &Json) -> Result<Option<Json>> {
    let found = resolve(&table["choose"], config)?.unwrap_or(Json::Null);
    let name = found.as_str().map_or(found.to_string(), str::to_owned);
    if let Some(value) = table.get(&name).or_else(|| table.get("otherwise")) {
        return resolve(value, config);
    }
    let known = table.keys().filter(|key| *key != "choose");
    let known: Vec<&str> = known.map(String::as_str).collect();
    let message = format!(
        "{} is {found}, expected one of {}",
        table["choose"],
        known.join(", ")
    );
    Err(Error::new(Kind::BadInput, message))
}

/// The value at a dotted path of keys or list indices.
fn at<'a>(config: &'a Json, path: &str) -> Option<&'a Json> {
    path.split('.')
        .try_fold(config, |config, key| match key.parse::<usize>() {
            Ok(index) => config.get(index),
            Err(_name) => config.get(key),
        })
}

/// Whether one of the alternatives is true; absent ones are false.
fn any(alternatives: &Value, config: &Json) -> Result<Option<Json>> {
    for alternative in alternatives.as_array().into_iter().flatten() {
        if resolve(alternative, config)? == Some(Json::Bool(true)) {
            return Ok(Some(Json::Bool(true)));
        }
    }
    Ok(Some(Json::Bool(false)))
}

/// The product of whole numbers; `None` where one is absent.
fn product(factors: &Value, config: &Json) -> Result<Option<Json>> {
    let mut product = 1_u64;
    for factor in factors.as_array().into_iter().flatten() {
        let Some(found) = resolve(factor, config)? else {
            return Ok(None);
        };
        let number = found
            .as_f64()
            .filter(|n| n.fract() == 0.0 && (0.0..1e9).contains(n));
        let number = number.ok_or_else(|| {
            let message = format!("{factor} is {found}, expected a whole number");
            Error::new(Kind::BadInput, message)
        })?;
        product = product.saturating_mul(number as u64);
    }
    Ok(Some(product.into()))
}

/// Two thirds of a whole number, rounded up to a multiple of 8: the width of gated layers with as many
/// parameters as plain ones (DINOv2, arXiv 2304.07193). `None` where it is absent.
fn two_thirds(number: &Value, config: &Json) -> Result<Option<Json>> {
    let of = product(&Value::Array(vec![number.clone()]), config)?;
    let whole = of.as_ref().and_then(Json::as_u64);
    Ok(whole.map(|n| (n.saturating_mul(2) / 3).next_multiple_of(8).into()))
}

/// The length of a list; `None` where it is absent.
fn count(list: &Value, config: &Json) -> Result<Option<Json>> {
    let Some(found) = resolve(list, config)? else {
        return Ok(None);
    };
    let values = found.as_array().ok_or_else(|| {
        let message = format!("{list} is {found}, expected a list");
        Error::new(Kind::BadInput, message)
    })?;
    Ok(Some(values.len().into()))
}

/// The first alternative that exists. A path to null gives `None`, without falling back to a literal.
fn look_up(reference: &str, config: &Json) -> Result<Option<Json>> {
    let mut is_none = false;
    for alternative in reference.split('|').map(str::trim) {
        let Some(path) = alternative.strip_prefix('$') else {
            if is_none {
                return Ok(None);
            }
            let literal = serde_json::from_str(alternative);
            let doing = || format!("read {reference}");
            return literal
                .map(Some)
                .map_err(|e| Error::with_source(Kind::Internal, doing(), e));
        };
        match at(config, path) {
            Some(Json::Null) => is_none = true,
            Some(found) => return Ok(Some(found.clone())),
            None => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Architecture, look_up, resolve};

    #[test]
    fn the_first_existing_path_counts_then_the_literal() {
        let config = json!({"text": {"width": 3, "none": null}});
        let of = |reference| look_up(reference, &config).unwrap();
        assert_eq!(of("$text.width | 5"), Some(json!(3)));
        assert_eq!(of("$text.none | $text.width"), Some(json!(3)));
        assert_eq!(
            of("$text.none | 4096"),
            None,
            "null is a value, not absence"
        );
        assert_eq!(of("$text.depth | \"gelu\""), Some(json!("gelu")));
        assert_eq!(of("$text.depth"), None);
        assert!(look_up("$a | gelu", &config).is_err());
    }

    #[test]
    fn a_choice_depends_on_the_configuration() {
        let table = r#"order = { choose = "$kind | 7", rows = "r", 7 = "seven" }"#;
        let value: toml::Value = toml::from_str(table).unwrap();
        let of = |config| resolve(&value, &config);
        assert_eq!(
            of(json!({"kind": "rows"})).unwrap(),
            Some(json!({"order": "r"}))
        );
        assert_eq!(of(json!({})).unwrap(), Some(json!({"order": "seven"})));
        let error = of(json!({"kind": "columns"})).unwrap_err().to_string();
        assert!(
            error.contains(r#"is "columns", expected one of"#),
            "{error}"
        );
    }

    #[test]
    fn every_file_is_a_valid_description() {
        let gguf = Architecture::all_gguf().unwrap();
        for architecture in Architecture::all().unwrap().iter().chain(&gguf) {
            architecture.keys().unwrap();
        }
    }
}
