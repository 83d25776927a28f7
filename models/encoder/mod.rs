//! Transformer encoders over whole sequences: of patches, or of the
//! tokens of a short text.

use longreel_kernels::rope::Pairs;
use rayon::prelude::*;

use crate::{
    attention::{
        blockwise::{Heads, Queries, attend, blocks_of},
        mask::Mask,
    },
    checkpoint::weights::Weights,
    error::{Error, Kind, Result},
    layers::{linear::Linear, norm::Norm, rotary::Rotations},
    spec::encoder::{EncoderSpec, NormKind},
};

/// The ε of query and key norms: that of `InternVLVisionRMSNorm`, which no configuration states.
const QK_NORM_EPS: f64 = 1e-6;

/// A stack of transformer blocks.
pub struct Encoder {
    heads: Heads,
    blocks: Vec<EncoderBlock>,
}

/// The weights of one block.
struct EncoderBlock {
    spec: EncoderSpec,
    attention_norm: Norm,
    inputs: Inputs,
    /// Norms of queries and keys.
    qk_norms: Option<[Norm; 2]>,
    output: Linear,
    feed_forward_norm: Norm,
    up: Linear,
    /// Gate of the feed-forward layer: `down(act(gate(x)) · up(x))`.
    gate: Option<Linear>,
    down: Linear,
    /// Layer scales of attention and feed-forward, `[hidden]` each.
    layer_scale: Option<[Vec<f32>; 2]>,
}

/// The matrices of query, key and value.
enum Inputs {
    Each([Linear; 3]),
    Fused(Linear),
}

/// Which tokens of a call attend to one another.
#[derive(Clone, Copy)]
pub struct Visibility<'a> {
    /// Tokens per sequence; sequences do not attend to one another.
    pub tokens: usize,
    /// A token attends to no later one.
    pub causal: bool,
    /// Segment id of each token of a sequence: tokens attend within their segment. One segment when absent.
    pub segments: Option<&'a [u32]>,
    /// Rotations of query and key heads, if any.
    pub rotations: Option<&'a Rotations>,
}

impl Visibility<'_> {
    /// Every token of a sequence of `tokens` attends to all.
    pub fn of_all(tokens: usize) -> Self {
        Self {
            tokens,
            causal: false,
            segments: None,
            rotations: None,
        }
    }
}

impl Encoder {
    /// Takes `{name}.layers.N.…` for every block.
    pub fn load(spec: &EncoderSpec, weights: &mut Weights, name: &str) -> Result<Self> {
        let heads = Heads {
            query: spec.num_attention_heads,
            key_value: spec.num_attention_heads,
            d: spec.hidden_size / spec.num_attention_heads,
        };
        let block = |index| EncoderBlock::load(spec, weights, &format!("{name}.layers.{index}"));
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
    /// `Compute` when attention gives NaN, `TooLarge` when memory is short.
    pub fn forward(
        &self,
        mut x: Vec<f32>,
        tokens: usize,
        causal: bool,
        layers: usize,
    ) -> Result<Vec<f32>> {
        let view = Visibility {
            causal,
            ..Visibility::of_all(tokens)
        };
        for index in 0..layers.min(self.layers()) {
            self.block(index, &mut x, view)?;
        }
        Ok(x)
    }

    /// x `[sequences, tokens, hidden]` → x after block `index` alone, in place.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn block(&self, index: usize, x: &mut [f32], view: Visibility) -> Result<()> {
        let Some(block) = self.blocks.get(index) else {
            let message = format!("block {index} of an encoder of {}", self.layers());
            return Err(Error::new(Kind::Internal, message));
        };
        block.attention(x, self.heads, view, index)?;
        block.feed_forward(x);
        Ok(())
    }
}

impl EncoderBlock {
    fn load(spec: &EncoderSpec, weights: &mut Weights, name: &str) -> Result<Self> {
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let part = |part: &str| format!("{name}.{part}");
        let norm = |weights: &mut Weights, which: &str| {
            Norm::load(
                spec.norm,
                weights,
                &part(which),
                hidden,
                spec.layer_norm_eps,
            )
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
        let qk_norm = |weights: &mut Weights, which: &str| {
            Norm::load(NormKind::Rms, weights, &part(which), hidden, QK_NORM_EPS)
        };
        let qk_norms = match spec.qk_norm {
            true => Some([
                qk_norm(weights, "self_attn.q_norm")?,
                qk_norm(weights, "self_attn.k_norm")?,
            ]),
            false => None,
        };
        let mut linear = |which: &str, out, inputs, has_bias| {
            Linear::named(weights, &part(which), out, inputs, has_bias)
        };
        let inputs = if spec.fused_qkv {
            Inputs::Fused(linear("self_attn.qkv", 3 * hidden, hidden, spec.qkv_bias)?)
        } else {
            Inputs::Each([
                linear("self_attn.q_proj", hidden, hidden, spec.qkv_bias)?,
                linear("self_attn.k_proj", hidden, hidden, spec.qkv_bias)?,
                linear("self_attn.v_proj", hidden, hidden, spec.qkv_bias)?,
            ])
        };
        Ok(Self {
            spec: spec.clone(),
            attention_norm,
            inputs,
            qk_norms,
            output: linear("self_attn.out_proj", hidden, hidden, true)?,
            feed_forward_norm,
            up: linear(
                "mlp.fc1",
                if spec.fused_gate { 2 } else { 1 } * inner,
                hidden,
                true,
            )?,
            gate: match spec.gated && !spec.fused_gate {
                true => Some(linear("mlp.gate", inner, hidden, true)?),
                false => None,
            },
            down: linear("mlp.fc2", hidden, inner, true)?,
            layer_scale,
        })
    }

    /// x `[sequences, tokens, hidden]` → x plus attention, in place.
    fn attention(&self, x: &mut [f32], heads: Heads, view: Visibility, index: usize) -> Result<()> {
        let normed = self.attention_norm.forward(x);
        let [mut q, mut k, v] = self.inputs.forward(&normed);
        if let Some([of_q, of_k]) = &self.qk_norms {
            (q, k) = (of_q.forward(&q), of_k.forward(&k));
        }
        if let Some(rotations) = view.rotations {
            rotations.apply(&mut q, heads.query, heads.d, Pairs::Halves);
            rotations.apply(&mut k, heads.key_value, heads.d, Pairs::Halves);
        }
        let mixed = attend_each(&q, &k, &v, heads, view)?;
        if mixed.iter().any(|x| x.is_nan()) {
            let message = format!(
                "attention of layer {index} gave NaN: a weight or an input is NaN or infinite"
            );
            return Err(Error::new(Kind::Compute, message));
        }
        self.add(x, self.output.forward(&mixed), 0);
        Ok(())
    }

    /// x `[n, hidden]` → x plus the feed-forward layer, in place.
    fn feed_forward(&self, x: &mut [f32]) {
        let normed = self.feed_forward_norm.forward(x);
        let mut inner = self.gate.as_ref().unwrap_or(&self.up).forward(&normed);
        let mut up = self.gate.as_ref().map(|_| self.up.forward(&normed));
        if self.spec.fused_gate {
            let [first, second] = halves(&inner, self.spec.intermediate_size);
            (inner, up) = (first, Some(second));
        }
        self.spec.hidden_act.apply(&mut inner);
        if let Some(up) = up {
            inner.iter_mut().zip(up).for_each(|(x, y)| *x *= y);
        }
        self.add(x, self.down.forward(&inner), 1);
    }

    /// x, y `[n, hidden]` → adds y, times its layer scale, to x.
    fn add(&self, x: &mut [f32], y: Vec<f32>, which: usize) {
        let hidden = self.spec.hidden_size;
        let rows = x
            .par_chunks_exact_mut(hidden)
            .zip(y.par_chunks_exact(hidden));
        let rows = rows.with_min_len(8);
        let Some(scales) = &self.layer_scale else {
            rows.for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
            return;
        };
        rows.for_each(|(x, y)| {
            let scaled = y.iter().zip(&scales[which]).map(|(y, s)| y * s);
            x.iter_mut().zip(scaled).for_each(|(x, y)| *x += y);
        });
    }
}

impl Inputs {
    /// x `[n, hidden]` → query, key, value `[n, hidden]`.
    fn forward(&self, x: &[f32]) -> [Vec<f32>; 3] {
        match self {
            Self::Each(layers) => layers.each_ref().map(|layer| layer.forward(x)),
            Self::Fused(layer) => {
                let rows = layer.forward(x);
                let hidden = layer.out_features() / 3;
                [0, 1, 2].map(|part| {
                    let parts = rows.chunks_exact(hidden).skip(part).step_by(3);
                    parts.flatten().copied().collect()
                })
            }
        }
    }
}

/// rows `[n, 2, half]` → first and second halves, `[n, half]` each.
fn halves(rows: &[f32], half: usize) -> [Vec<f32>; 2] {
    [0, 1].map(|part| {
        let parts = rows.chunks_exact(half).skip(part).step_by(2);
        parts.flatten().copied().collect()
    })
}

/// q `[sequences, tokens, heads, d]`, k, v `[sequences, tokens, kv_heads, d]` → out, shaped as q: each sequence attends to itself.
///
/// # Errors
/// `TooLarge` when memory is short.
fn attend_each(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: Heads,
    view: Visibility,
) -> Result<Vec<f32>> {
    let mask = Mask {
        causal: view.causal,
        segments: view.segments,
        ..Mask::CAUSAL
    };
    let tokens = view.tokens;
    let indices = 0..tokens;
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
        let keys = blocks_of(heads, k, v)?;
        let queries = Queries {
            q,
            runs: std::slice::from_ref(&indices),
        };
        out.extend(attend(queries, heads, &keys, &mask).out);
    }
    Ok(out)
}
