//! How RoPE's frequencies are changed for contexts longer than those of the first training.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Map, Value};

/// The rule; names of fields are those of Hugging Face's `rope_parameters`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// All frequencies divided (Chen et al., arXiv 2306.15595).
    Linear {
        /// By this.
        factor: f64,
    },
    /// A larger base, by which the slowest frequency is divided by the factor and the fastest kept ("NTK-aware").
    Ntk {
        /// What the slowest is divided by.
        factor: f64,
    },
    /// The same with a factor that grows with the context: `factor · longest / first − (factor − 1)`.
    ///
    /// Keys in a context cannot turn again, so that the longest context which the model allows is the one
    /// that counts, from the first token on: what a reference gives for one pass over so many tokens.
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// The context of the first training; the longest one when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        original_max_position_embeddings: Option<f64>,
    },
    /// Slow frequencies divided, fast ones kept, those between mixed (LLaMA 3.1).
    Llama3 {
        /// What slow frequencies are divided by.
        factor: f64,
        /// Waves longer than the first context over this are slow.
        low_freq_factor: f64,
        /// Waves shorter than the first context over this are fast.
        high_freq_factor: f64,
        /// The context of the first training.
        original_max_position_embeddings: f64,
    },
    /// Slow frequencies divided, fast ones kept, a ramp over channels between, and warmer scores (YaRN, arXiv 2309.00071).
    Yarn {
        /// What slow frequencies are divided by.
        factor: f64,
        /// The context of the first training.
        original_max_position_embeddings: f64,
        /// Channels that turn so often in that context are kept.
        #[serde(default = "beta_fast", skip_serializing_if = "is_beta_fast")]
        beta_fast: f64,
        /// Channels that turn so often in it, or less, are divided.
        #[serde(default = "beta_slow", skip_serializing_if = "is_beta_slow")]
        beta_slow: f64,
        /// What cosine and sine are multiplied by; `0.1 ln(factor) + 1` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attention_factor: Option<f64>,
    },
    /// Each frequency divided by a number that stands among the weights, `model.rope_divisors` (GGUF files of LLaMA 3.1).
    Stored,
}

fn beta_fast() -> f64 {
    32.0
}

fn is_beta_fast(beta: &f64) -> bool {
    *beta == beta_fast()
}

fn beta_slow() -> f64 {
    1.0
}

fn is_beta_slow(beta: &f64) -> bool {
    *beta == beta_slow()
}

/// The rule that `rope_parameters` (transformers 5) or `rope_scaling` (before) states; `None` for the plain one.
///
/// # Errors
/// For a kind that is not known, or one without what it needs.
pub fn stated<'de, D: Deserializer<'de>>(from: D) -> Result<Option<RopeScaling>, D::Error> {
    let Some(mut stated) = Option::<Map<String, Value>>::deserialize(from)? else {
        return Ok(None);
    };
    // Before transformers 4.43 the key was `type`.
    let before = stated.remove("type");
    let kind = stated.get("rope_type").cloned().or(before);
    let kind = kind.unwrap_or_else(|| "default".into());
    if stated.contains_key("mrope_section") {
        let message = "rope_scaling.mrope_section: the architecture has positions of one component";
        return Err(D::Error::custom(message));
    }
    if kind == "default" || kind == "mrope" {
        return Ok(None);
    }
    stated.remove("rope_theta");
    // A null stands for what is absent.
    stated.retain(|_, value| !value.is_null());
    stated.insert("rope_type".to_owned(), kind);
    let scaling = RopeScaling::deserialize(Value::Object(stated));
    scaling
        .map(Some)
        .map_err(|e| D::Error::custom(format!("rope_scaling: {e}")))
}
