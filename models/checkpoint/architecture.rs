//! How a Hugging Face folder of a known architecture is read: as data.
//!
//! Each file in `configs/architectures/` says which architectures it is for, what the
//! specification is made of (values that begin with `$` are looked up in `config.json`),
//! and what the tensors are called here.
//!
//! ```toml
//! hidden_size = "$vision_config.hidden_size | 768"   # a path, and what holds where it is absent
//! head_dim = "$text_config.head_dim | $head_dim"     # another path; the key is left out where none is there
//! intermediate_size = { product = ["$hidden_size", "$mlp_ratio | 4"] }
//! ```

use std::borrow::Cow;

use regex::Regex;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value as Json;
use toml::Value;

use crate::error::{Context, Error, Kind, Result};

/// The files of `configs/architectures`.
const FILES: [(&str, &str); 4] = [
    (
        "clip.toml",
        include_str!("../../configs/architectures/clip.toml"),
    ),
    (
        "dinov2.toml",
        include_str!("../../configs/architectures/dinov2.toml"),
    ),
    (
        "siglip.toml",
        include_str!("../../configs/architectures/siglip.toml"),
    ),
    (
        "vit.toml",
        include_str!("../../configs/architectures/vit.toml"),
    ),
];

/// One architecture, as its file describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Names in `architectures` of a `config.json`.
    architectures: Vec<String>,
    /// What kind of model it is.
    kind: ModelKind,
    /// The specification, with references to `config.json`.
    spec: Value,
    /// Patterns of tensor names and what they become, applied one after another; an empty name drops the tensor.
    #[serde(default)]
    keys: Vec<(String, String)>,
}

/// Which of our specifications an architecture has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// [`crate::spec::encoder::DualEncoderSpec`].
    DualEncoder,
    /// [`crate::spec::encoder::VitSpec`].
    Classifier,
}

impl Architecture {
    /// The architecture that the text of a `config.json` names.
    ///
    /// # Errors
    /// `BadInput` for one that is not known; the error lists those that are.
    pub fn of_config(config: &Json) -> Result<Self> {
        let all = Self::all()?;
        let named = config["architectures"].as_array();
        let named: Vec<&str> = named
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        let is_named = |a: &Self| {
            a.architectures
                .iter()
                .any(|name| named.contains(&name.as_str()))
        };
        if let Some(found) = all.iter().find(|a| is_named(a)) {
            return Ok(found.clone());
        }
        let known: Vec<&str> = all
            .iter()
            .flat_map(|a| a.architectures.iter().map(String::as_str))
            .collect();
        let message = format!(
            "architectures is {}, expected one of {}",
            config["architectures"],
            known.join(", ")
        );
        Err(Error::new(Kind::BadInput, message))
    }

    /// Every known architecture.
    ///
    /// # Errors
    /// `Internal` when a file is no description.
    pub fn all() -> Result<Vec<Self>> {
        let read = |(name, text): (&str, &str)| {
            let parsed = toml::from_str(text);
            parsed.map_err(|e| Error::with_source(Kind::Internal, format!("read {name}"), e))
        };
        FILES.into_iter().map(read).collect()
    }

    /// Which of our specifications it has.
    pub fn kind(&self) -> ModelKind {
        self.kind
    }

    /// The specification of the model whose `config.json` this is.
    ///
    /// # Errors
    /// `BadInput` when a key is missing, or says what no model of this kind has.
    pub fn spec<T: DeserializeOwned>(&self, config: &Json) -> Result<T> {
        let resolved = resolve(&self.spec, config)?;
        let resolved =
            resolved.ok_or_else(|| Error::new(Kind::Internal, "an empty specification"))?;
        let spec = serde_json::from_value(resolved);
        spec.map_err(|e| Error::new(Kind::BadInput, e.to_string()))
            .doing(|| "read config.json")
    }

    /// The renaming of tensors.
    ///
    /// # Errors
    /// `Internal` when a pattern is none.
    pub fn keys(&self) -> Result<KeyMap> {
        let rule = |(from, to): &(String, String)| {
            let pattern = Regex::new(from);
            let pattern = pattern.map_err(|e| {
                Error::with_source(Kind::Internal, format!("read the pattern {from}"), e)
            })?;
            Ok((pattern, to.clone()))
        };
        Ok(KeyMap(self.keys.iter().map(rule).collect::<Result<_>>()?))
    }
}

/// What tensors of a foreign checkpoint are called here.
#[derive(Debug, Clone, Default)]
pub struct KeyMap(Vec<(Regex, String)>);

impl KeyMap {
    /// Our name of the tensor `name`; `None` for one that is dropped.
    pub fn rename(&self, name: &str) -> Option<String> {
        let mut renamed = Cow::Borrowed(name);
        for (pattern, to) in &self.0 {
            if to.is_empty() && pattern.is_match(&renamed) {
                return None;
            }
            renamed = Cow::Owned(pattern.replace(&renamed, to).into_owned());
        }
        Some(renamed.into_owned())
    }
}

/// A value with its references looked up; `None` for a reference that leads nowhere.
fn resolve(value: &Value, config: &Json) -> Result<Option<Json>> {
    match value {
        Value::String(text) if text.starts_with('$') => look_up(text, config),
        Value::Table(table) if table.contains_key("product") => product(&table["product"], config),
        Value::Table(table) => {
            let mut resolved = serde_json::Map::new();
            for (key, value) in table {
                if let Some(value) = resolve(value, config)? {
                    resolved.insert(key.clone(), value);
                }
            }
            Ok(Some(Json::Object(resolved)))
        }
        other => {
            let literal = serde_json::to_value(other);
            let literal = literal
                .map_err(|e| Error::with_source(Kind::Internal, "read a specification", e))?;
            Ok(Some(literal))
        }
    }
}

/// The product of whole numbers; `None` where one is not there.
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

/// The first of some alternatives that is there.
fn look_up(reference: &str, config: &Json) -> Result<Option<Json>> {
    for alternative in reference.split('|').map(str::trim) {
        let Some(path) = alternative.strip_prefix('$') else {
            let literal = serde_json::from_str(alternative);
            let doing = || format!("read {reference}");
            return literal
                .map(Some)
                .map_err(|e| Error::with_source(Kind::Internal, doing(), e));
        };
        let found = path
            .split('.')
            .try_fold(config, |config, key| config.get(key));
        if let Some(found) = found.filter(|found| !found.is_null()) {
            return Ok(Some(found.clone()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Architecture, KeyMap, Regex, look_up};

    #[test]
    fn the_first_path_that_is_there_counts_then_the_literal_then_nothing() {
        let config = json!({"text": {"width": 3, "none": null}});
        let of = |reference| look_up(reference, &config).unwrap();
        assert_eq!(of("$text.width | 5"), Some(json!(3)));
        assert_eq!(of("$text.none | $text.width"), Some(json!(3)));
        assert_eq!(of("$text.depth | \"gelu\""), Some(json!("gelu")));
        assert_eq!(of("$text.depth"), None);
        assert!(look_up("$a | gelu", &config).is_err());
    }

    #[test]
    fn rules_apply_one_after_another_and_an_empty_name_drops() {
        let rules = [
            ("^old\\.", "new."),
            ("position_ids$", ""),
            ("\\.layer\\.(\\d+)\\.", ".layers.$1."),
        ];
        let keys = KeyMap(
            rules
                .iter()
                .map(|(from, to)| (Regex::new(from).unwrap(), (*to).to_owned()))
                .collect(),
        );
        assert_eq!(
            keys.rename("old.layer.12.w").as_deref(),
            Some("new.layers.12.w")
        );
        assert_eq!(keys.rename("old.position_ids"), None);
    }

    #[test]
    fn every_file_is_a_description_whose_patterns_are_some() {
        for architecture in Architecture::all().unwrap() {
            architecture.keys().unwrap();
        }
    }
}
