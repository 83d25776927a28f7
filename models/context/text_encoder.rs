//! The text encoder of CLIP and SigLIP: a short text becomes one vector.

use crate::{
    checkpoint::weights::Weights,
    context::tokenizer::Tokenizer,
    encoder::Encoder,
    error::{Error, Kind, Result},
    layers::{linear::Linear, norm::LayerNorm},
    spec::encoder::{TextEncoderSpec, TextPool},
};

/// The `eos_token_id` in CLIP's configurations up to transformers 4.24, which is not the id that ends a text.
const NO_END: u32 = 2;

/// A text encoder with its weights.
pub struct TextEncoder {
    spec: TextEncoderSpec,
    tokens: Linear,
    /// `[max_position_embeddings, hidden]`.
    positions: Vec<f32>,
    encoder: Encoder,
    norm: LayerNorm,
    projection: Linear,
}

impl TextEncoder {
    /// Takes `token_embedding`, `positions`, `layers`, `norm` and `projection` under `name`.
    pub fn load(
        spec: &TextEncoderSpec,
        embedding_size: usize,
        weights: &mut Weights,
        name: &str,
    ) -> Result<Self> {
        let (hidden, eps) = (spec.encoder.hidden_size, spec.encoder.layer_norm_eps);
        let part = |part: &str| format!("{name}.{part}");
        let (ids, positions) = (spec.vocab_size, spec.max_position_embeddings);
        let mut linear = |which: &str, out, has_bias| {
            Linear::named(weights, &part(which), out, hidden, has_bias)
        };
        let tokens = linear("token_embedding", ids, false)?;
        let projection = linear("projection", embedding_size, spec.projection_bias)?;
        Ok(Self {
            spec: spec.clone(),
            tokens,
            positions: weights.numbers(&part("positions"), &[positions, hidden])?,
            encoder: Encoder::load(&spec.encoder, weights, name)?,
            norm: LayerNorm::load(weights, &part("norm"), hidden, eps)?,
            projection,
        })
    }

    /// The encoder's specification.
    pub fn spec(&self) -> &TextEncoderSpec {
        &self.spec
    }

    /// text → ids `[n]`, as in training: truncated to the positions with its last id kept, and
    /// padded where training was. SigLIP's texts were lower case, even where the tokenizer is case-sensitive.
    ///
    /// # Errors
    /// `BadInput` for an empty text, or when the tokenizer fails.
    pub fn ids(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        if text.trim().is_empty() {
            let message = "the text is empty, expected words";
            return Err(Error::new(Kind::BadInput, message));
        }
        let limit = self.spec.max_position_embeddings;
        let Some(pad) = self.spec.pad_token_id else {
            return Ok(cut(tokenizer.encode(text)?, limit));
        };
        let mut ids = cut(tokenizer.encode(&text.to_lowercase())?, limit);
        ids.resize(limit, tokenizer.pad_id().unwrap_or(pad));
        Ok(ids)
    }

    /// ids `[n]` of one text, padding included where the model was trained with it → `[n, hidden]` after the final norm.
    ///
    /// # Errors
    /// `TooLarge` for a text longer than the positions, `BadInput` for an id outside the vocabulary.
    pub fn hidden(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let limit = self.spec.max_position_embeddings;
        if ids.is_empty() || ids.len() > limit {
            let message = format!("a text of {} tokens, expected 1 to {limit}", ids.len());
            return Err(Error::new(Kind::TooLarge, message));
        }
        let mut x = Vec::with_capacity(ids.len() * self.spec.encoder.hidden_size);
        ids.iter()
            .try_for_each(|&id| self.tokens.append_row(id, &mut x))?;
        x.iter_mut().zip(&self.positions).for_each(|(x, p)| *x += p);
        let layers = self.encoder.layers();
        let x = self
            .encoder
            .forward(x, ids.len(), self.spec.causal, layers)?;
        Ok(self.norm.forward(&x))
    }

    /// ids `[n]` of one text → its vector `[embedding]`, not normalized.
    ///
    /// # Errors
    /// As [`TextEncoder::hidden`].
    pub fn encode(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let hidden = self.hidden(ids)?;
        let (at, width) = (self.pool_at(ids), self.spec.encoder.hidden_size);
        Ok(self
            .projection
            .forward(&hidden[at * width..(at + 1) * width]))
    }

    /// Index of the token that is pooled.
    fn pool_at(&self, ids: &[u32]) -> usize {
        let last = ids.len().saturating_sub(1);
        let largest = || {
            let most = ids.iter().max();
            ids.iter().position(|id| Some(id) == most)
        };
        match (self.spec.pool, self.spec.eos_token_id) {
            (TextPool::Last, _) => last,
            (TextPool::End, None | Some(NO_END)) => largest().unwrap_or(last),
            (TextPool::End, Some(end)) => ids.iter().position(|&id| id == end).unwrap_or(last),
        }
    }
}

/// Truncates to `limit` ids, keeping the last id, which ends the text.
fn cut(mut ids: Vec<u32>, limit: usize) -> Vec<u32> {
    let end = ids.last().copied();
    if ids.len() > limit {
        ids.truncate(limit.saturating_sub(1));
        ids.extend(end);
    }
    ids
}
