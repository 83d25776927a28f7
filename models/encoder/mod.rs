//! Transformer blocks that read a whole sequence at once: of patches, or of the
//! tokens of a short text.

use crate::{
    attention::{
        blockwise::{Heads, Queries, attend, place},
        mask::Mask,
    },
    checkpoint::weights::Weights,
    error::{Error, Kind, Result},
    layers::{linear::Linear, norm::LayerNorm},
    spec::encoder::EncoderSpec,
};

/// A stack of blocks.
pub struct Encoder {
    heads: Heads,
    blocks: Vec<Block>,
}

/// The weights of one block.
struct Block {
    spec: EncoderSpec,
    attention_norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    feed_forward_norm: LayerNorm,
    up: Linear,
    down: Linear,
    /// What the two layers add is multiplied by these, `[hidden]` each.
    layer_scale: Option<[Vec<f32>; 2]>,
}

impl Encoder {
    /// Takes `{name}.layers.N.…` for every block.
    pub fn load(spec: &EncoderSpec, weights: &mut Weights, name: &str) -> Result<Self> {
        let heads = Heads {
            query: spec.num_attention_heads,
            key_value: spec.num_attention_heads,
            d: spec.hidden_size / spec.num_attention_heads,
        };
        let block = |index| Block::load(spec, weights, &format!("{name}.layers.{index}"));
        let blocks = (0..spec.num_hidden_layers).map(block);
        Ok(Self {
            heads,
            blocks: blocks.collect::<Result<_>>()?,
        })
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// x `[sequences, tokens, hidden]` → the same after the first `layers` blocks.
    ///
    /// # Errors
    /// `Compute` when attention gives no number, `TooLarge` when memory ends.
    pub fn forward(
        &self,
        mut x: Vec<f32>,
        tokens: usize,
        causal: bool,
        layers: usize,
    ) -> Result<Vec<f32>> {
        for (index, block) in self.blocks.iter().enumerate().take(layers) {
            block.attention(&mut x, self.heads, tokens, causal, index)?;
            block.feed_forward(&mut x);
        }
        Ok(x)
    }
}

impl Block {
    fn load(spec: &EncoderSpec, weights: &mut Weights, name: &str) -> Result<Self> {
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let part = |part: &str| format!("{name}.{part}");
        let norm = |weights: &mut Weights, which: &str| {
            LayerNorm::load(weights, &part(which), hidden, spec.layer_norm_eps)
        };
        let scale = |weights: &mut Weights, which: &str| weights.vector(&part(which), hidden);
        let layer_scale = match spec.layer_scale {
            true => Some([
                scale(weights, "layer_scale1")?,
                scale(weights, "layer_scale2")?,
            ]),
            false => None,
        };
        let attention_norm = norm(weights, "layer_norm1")?;
        let feed_forward_norm = norm(weights, "layer_norm2")?;
        let mut linear = |which: &str, out, inputs, has_bias| {
            Linear::named(weights, &part(which), out, inputs, has_bias)
        };
        Ok(Self {
            spec: spec.clone(),
            attention_norm,
            query: linear("self_attn.q_proj", hidden, hidden, spec.qkv_bias)?,
            key: linear("self_attn.k_proj", hidden, hidden, spec.qkv_bias)?,
            value: linear("self_attn.v_proj", hidden, hidden, spec.qkv_bias)?,
            output: linear("self_attn.out_proj", hidden, hidden, true)?,
            feed_forward_norm,
            up: linear("mlp.fc1", inner, hidden, true)?,
            down: linear("mlp.fc2", hidden, inner, true)?,
            layer_scale,
        })
    }

    /// x `[sequences, tokens, hidden]` → x plus attention, in place.
    fn attention(
        &self,
        x: &mut [f32],
        heads: Heads,
        tokens: usize,
        causal: bool,
        index: usize,
    ) -> Result<()> {
        let normed = self.attention_norm.forward(x);
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|layer| layer.forward(&normed));
        let mixed = attend_each(&q, &k, &v, heads, tokens, causal)?;
        if mixed.iter().any(|x| x.is_nan()) {
            let message = format!(
                "attention of layer {index} gave no number: a weight or an input is NaN or infinite"
            );
            return Err(Error::new(Kind::Compute, message));
        }
        self.add(x, self.output.forward(&mixed), 0);
        Ok(())
    }

    /// x `[n, hidden]` → x plus the feed-forward layer, in place.
    fn feed_forward(&self, x: &mut [f32]) {
        let mut inner = self.up.forward(&self.feed_forward_norm.forward(x));
        self.spec.hidden_act.apply(&mut inner);
        self.add(x, self.down.forward(&inner), 1);
    }

    /// x, y `[n, hidden]` → x plus y, times its scale, in place.
    fn add(&self, x: &mut [f32], y: Vec<f32>, which: usize) {
        let Some(scales) = &self.layer_scale else {
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            return;
        };
        let scale = &scales[which];
        let rows = x
            .chunks_exact_mut(scale.len())
            .zip(y.chunks_exact(scale.len()));
        for (x, y) in rows {
            let scaled = y.iter().zip(scale).map(|(y, s)| y * s);
            x.iter_mut().zip(scaled).for_each(|(x, y)| *x += y);
        }
    }
}

/// q `[sequences, tokens, heads, d]`, k, v `[sequences, tokens, kv_heads, d]` → as q: each sequence attends to itself.
///
/// # Errors
/// `TooLarge` when memory ends.
fn attend_each(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: Heads,
    tokens: usize,
    causal: bool,
) -> Result<Vec<f32>> {
    let mask = Mask {
        causal,
        ..Mask::CAUSAL
    };
    let places = 0..tokens;
    let (of_q, of_k) = (
        tokens * heads.query * heads.d,
        tokens * heads.key_value * heads.d,
    );
    let mut out = Vec::with_capacity(q.len());
    let sequences = q
        .chunks_exact(of_q)
        .zip(k.chunks_exact(of_k))
        .zip(v.chunks_exact(of_k));
    for ((q, k), v) in sequences {
        let keys = place(heads, k, v)?;
        let queries = Queries {
            q,
            runs: std::slice::from_ref(&places),
        };
        out.extend(attend(queries, heads, &keys, &mask).out);
    }
    Ok(out)
}
