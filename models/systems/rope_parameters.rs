//! `rope_parameters` of a configuration, as transformers 5 standardizes what older versions call otherwise
//! (`RotaryEmbeddingConfigMixin` in its `modeling_rope_utils.py`).

use serde_json::{Map, Value as Json};

use crate::error::{Error, Kind, Result};

/// The parts of a configuration that describe a decoder; the empty name is the configuration itself.
const DECODERS: [&str; 3] = ["", "text_config", "llm_cfg"];

/// Keys of any kind, and of M-RoPE, whose architectures read them elsewhere.
const KEYS: [&str; 4] = [
    "rope_type",
    "rope_theta",
    "mrope_section",
    "mrope_interleaved",
];

/// The kinds that are known, and the keys of each.
const KINDS: [(&str, &[&str]); 7] = [
    ("default", &[]),
    ("mrope", &[]),
    ("linear", &["factor"]),
    ("ntk", &["factor"]),
    ("dynamic", &["factor", ORIGINAL]),
    (
        "llama3",
        &["factor", "low_freq_factor", "high_freq_factor", ORIGINAL],
    ),
    (
        "yarn",
        &[
            "factor",
            ORIGINAL,
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
    ),
];

const ORIGINAL: &str = "original_max_position_embeddings";

/// Puts the rule of positions of every decoder in `config` under `rope_parameters`; returns what a user should know.
///
/// # Errors
/// `BadInput` for channels that do not rotate, and for layers with different rules.
pub fn standardize(config: &mut Json) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for part in DECODERS {
        let found = match part {
            "" => config.as_object_mut(),
            part => config.get_mut(part).and_then(Json::as_object_mut),
        };
        if let Some(decoder) = found {
            standardize_decoder(decoder, &mut warnings)?;
        }
    }
    Ok(warnings)
}

fn standardize_decoder(decoder: &mut Map<String, Json>, warnings: &mut Vec<String>) -> Result<()> {
    check_all_channels_rotate(decoder)?;
    take_rope_scaling(decoder, warnings);
    let longest = decoder.get("max_position_embeddings").cloned();
    let beside = decoder.get(ORIGINAL).filter(|n| n.is_number()).cloned();
    let Some(Json::Object(rule)) = decoder.get_mut("rope_parameters") else {
        return Ok(());
    };
    take_only_layer_type(rule)?;
    check_all_channels_rotate(rule)?;
    if let Some(kind) = rule.remove("type") {
        rule.entry("rope_type").or_insert(kind);
    }
    let kind = rule.get("rope_type").and_then(Json::as_str);
    let kind = kind.unwrap_or("default").to_owned();
    // A length beside the rule takes precedence over the one in it.
    if let Some(original) = beside.filter(|_| matches!(kind.as_str(), "llama3" | "yarn")) {
        rule.insert(ORIGINAL.to_owned(), original);
    }
    if kind == "yarn" {
        fill_factor(rule, longest.as_ref());
    }
    ignore_unknown_keys(rule, &kind, warnings);
    Ok(())
}

/// A factor of null is the longest context over that of pretraining (DeepSeek).
fn fill_factor(rule: &mut Map<String, Json>, longest: Option<&Json>) {
    let longest = longest.and_then(Json::as_f64);
    let original = rule.get(ORIGINAL).map_or(longest, Json::as_f64);
    if let (Some(Json::Null), Some(longest), Some(original)) =
        (rule.get("factor"), longest, original)
    {
        rule.insert("factor".to_owned(), (longest / original).into());
    }
}

/// The older name takes the place of the newer one, `rope_theta` included.
fn take_rope_scaling(decoder: &mut Map<String, Json>, warnings: &mut Vec<String>) {
    let is_said = |rule: &Json| rule.as_object().is_some_and(|rule| !rule.is_empty());
    let Some(scaling) = decoder.remove("rope_scaling").filter(is_said) else {
        return;
    };
    let before = decoder.insert("rope_parameters".to_owned(), scaling);
    if before.as_ref().is_some_and(is_said) {
        let message = "rope_scaling takes the place of rope_parameters, rope_theta included, as in transformers 5";
        warnings.push(message.to_owned());
    }
}

/// The rule of attention to all tokens, where rules are stated by type of layer and only that type has one.
fn take_only_layer_type(rule: &mut Map<String, Json>) -> Result<()> {
    let is_type = |(key, value): (&String, &Json)| key.ends_with("_attention") && value.is_object();
    if !rule.iter().any(is_type) {
        return Ok(());
    }
    let of_type: Vec<&Json> = rule.values().filter(|rule| rule.is_object()).collect();
    match of_type.split_first() {
        Some((Json::Object(first), others)) if others.iter().all(|o| **o == of_type[0].clone()) => {
            *rule = first.clone();
            Ok(())
        }
        _ => Err(bad(
            "rope_parameters has a rule for each type of layer, expected one for all".to_owned(),
        )),
    }
}

fn check_all_channels_rotate(of: &Map<String, Json>) -> Result<()> {
    match of.get("partial_rotary_factor").and_then(Json::as_f64) {
        Some(factor) if factor != 1.0 => Err(bad(format!(
            "partial_rotary_factor is {factor}, expected 1: all channels of a head rotate"
        ))),
        _ => Ok(()),
    }
}

/// Removes what transformers warns about and ignores.
fn ignore_unknown_keys(rule: &mut Map<String, Json>, kind: &str, warnings: &mut Vec<String>) {
    rule.remove("partial_rotary_factor");
    let Some((_, keys)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        return;
    };
    let is_known = |key: &str| KEYS.contains(&key) || keys.contains(&key);
    let unknown: Vec<String> = rule.keys().filter(|key| !is_known(key)).cloned().collect();
    for key in unknown {
        rule.remove(&key);
        warnings.push(format!(
            "rope_parameters.{key} has no meaning for the kind {kind}: it is ignored, as by transformers"
        ));
    }
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
