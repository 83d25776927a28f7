//! Scaling of RoPE's frequencies for contexts longer than those of pretraining.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Map, Value};

/// The rule; field names are those of Hugging Face's `rope_parameters`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Linear: all frequencies are divided (Chen et al., arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// NTK-aware: a larger base, which divides the slowest frequency by the factor and keeps the fastest.
    Ntk {
        /// The divisor of the slowest frequency.
        factor: f64,
    },
    /// Dynamic NTK: a factor that grows with the context: `factor · longest / first − (factor − 1)`.
    ///
    /// Cached keys cannot be rotated again, so that the maximum context of the model is used
    /// from the first token on: the result of a reference for one pass over that many tokens.
    Dynamic {
        /// The growth factor.
        factor: f64,
        /// The context of pretraining; the maximum context when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        original_max_position_embeddings: Option<f64>,
    },
    /// LLaMA 3.1: slow frequencies are divided, fast ones kept, those between interpolated.
    Llama3 {
        /// The divisor of slow frequencies.
        factor: f64,
        /// Wavelengths longer than the original context over this are slow.
        low_freq_factor: f64,
        /// Wavelengths shorter than the original context over this are fast.
        high_freq_factor: f64,
        /// The context of pretraining; the longest one when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        original_max_position_embeddings: Option<f64>,
    },
    /// YaRN (arXiv 2309.00071): slow frequencies are divided, fast ones kept, with a ramp over channels between, and
    /// attention scores are scaled.
    Yarn(Yarn),
    /// Each frequency is divided by a stored number, tensor `model.rope_divisors` (GGUF files of LLaMA 3.1).
    Stored,
}

/// The parameters of YaRN.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Yarn {
    /// The divisor of slow frequencies.
    pub factor: f64,
    /// The context of pretraining; the longest one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<f64>,
    /// Channels with at least this many rotations in that context are kept; 0 stands for 32.
    #[serde(default = "beta_fast", skip_serializing_if = "is_beta_fast")]
    pub beta_fast: f64,
    /// Channels with at most this many rotations in it are divided; 0 stands for 1.
    #[serde(default = "beta_slow", skip_serializing_if = "is_beta_slow")]
    pub beta_slow: f64,
    /// What cosine and sine are multiplied by; when absent `m(mscale) / m(mscale_all_dim)` where both are there and not
    /// 0, else `m(1)`, with `m(s) = 0.1 s ln(factor) + 1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// See `attention_factor` (DeepSeek).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f64>,
    /// See `attention_factor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f64>,
    /// Whether the ramp's ends are brought to whole channels (GPT-OSS does not); true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
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

/// Parses `rope_parameters` (transformers 5) or `rope_scaling` (before); `None` for plain RoPE.
///
/// # Errors
/// For an unknown kind, or one without a required key.
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
    // "mrope" only names the positions' three components, which `features` describes; the frequencies stay
    // unscaled.
    if kind == "default" || kind == "mrope" {
        return Ok(None);
    }
    // transformers 5 repeats the base inside the scaling; it is read from its own key.
    stated.remove("rope_theta");
    // A null counts as absent.
    stated.retain(|_, value| !value.is_null());
    stated.insert("rope_type".to_owned(), kind);
    let scaling = RopeScaling::deserialize(Value::Object(stated));
    scaling
        .map(Some)
        .map_err(|e| D::Error::custom(format!("rope_scaling: {e}")))
}
