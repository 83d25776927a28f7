//! One decoder block: attention and the gated feed-forward layer, each after
//! a norm and added to the residual stream (`lwm/llama.py`, `FlaxLLaMABlock`).

use std::ops::Range;

use crate::{
    attention::{
        blockwise::{Heads, Queries, attend},
        kv_cache::KvCache,
        mask::Mask,
        partial::Partial,
        ring::{Ring, traveller},
        shard::striped,
    },
    checkpoint::weights::Weights,
    error::{Error, Kind, Result},
    layers::{linear::Linear, norm::RmsNorm, rotary::Rotations},
    llama::{feed_forward::FeedForward, rope::Rope},
    spec::DecoderSpec,
};

/// The weights of one block.
pub struct DecoderBlock {
    index: usize,
    heads: Heads,
    /// Sliding window: tokens that a token attends to, itself included; the whole context when absent.
    window: Option<usize>,
    input_norm: RmsNorm,
    /// Norms of each head's query and key.
    head_norms: Option<[RmsNorm; 2]>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    post_attention_norm: RmsNorm,
    feed_forward: FeedForward,
}

/// The contexts of a ragged batch, and the ring that shares them.
pub struct Contexts<'a> {
    /// One per row.
    pub rows: Vec<RowContext<'a>>,
    /// The other ranks, where there are any.
    pub ring: Option<&'a mut Ring>,
}

/// The context of one row, and which of its new tokens this rank computes.
pub struct RowContext<'a> {
    /// This rank's part of the context.
    pub cache: &'a mut KvCache,
    /// Token indices of the new tokens, those of other ranks included.
    pub indices: Range<usize>,
    /// Token indices of this rank's new tokens.
    pub own: Vec<Range<usize>>,
}

impl RowContext<'_> {
    /// Number of this rank's new tokens.
    pub fn own_tokens(&self) -> usize {
        self.own.iter().map(ExactSizeIterator::len).sum()
    }
}

impl DecoderBlock {
    /// Takes the weights of layer `index`.
    pub fn load(spec: &DecoderSpec, weights: &mut Weights, index: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let hidden = spec.hidden_size;
        let heads = Heads {
            query: spec.num_attention_heads,
            key_value: spec.n_kv_heads(),
            d: spec.head_dim(),
        };
        let (q_width, kv_width) = (heads.query * heads.d, heads.key_value * heads.d);
        let norm = |weights: &mut Weights, part, d| {
            RmsNorm::load(weights, &(name(part) + ".weight"), d, spec.rms_norm_eps)
        };
        let head_norms = match spec.qk_norm {
            true => Some([
                norm(weights, "self_attn.q_norm", heads.d)?,
                norm(weights, "self_attn.k_norm", heads.d)?,
            ]),
            false => None,
        };
        let input_norm = norm(weights, "input_layernorm", hidden)?;
        let post_attention_norm = norm(weights, "post_attention_layernorm", hidden)?;
        let feed_forward = FeedForward::load(spec, weights, &format!("model.layers.{index}"))?;
        let mut linear = |part: &str, out, inputs, has_bias| {
            Linear::named(weights, &name(part), out, inputs, has_bias)
        };
        Ok(Self {
            index,
            heads,
            window: spec.sliding_window,
            head_norms,
            query: linear("self_attn.q_proj", q_width, hidden, spec.qkv_bias)?,
            key: linear("self_attn.k_proj", kv_width, hidden, spec.qkv_bias)?,
            value: linear("self_attn.v_proj", kv_width, hidden, spec.qkv_bias)?,
            output: linear(
                "self_attn.o_proj",
                hidden,
                q_width,
                spec.attention_output_bias,
            )?,
            feed_forward,
            input_norm,
            post_attention_norm,
        })
    }

    /// x `[n, hidden]` of all rows → x plus attention, in place; keys and values are written to the caches.
    pub fn attention(
        &self,
        x: &mut [f32],
        rope: &Rope,
        rotations: &Rotations,
        contexts: &mut Contexts,
    ) -> Result<()> {
        let normed = self.input_norm.forward(x);
        let mut q = self.query.forward(&normed);
        let mut k = self.key.forward(&normed);
        let v = self.value.forward(&normed);
        if let Some([of_query, of_key]) = &self.head_norms {
            (q, k) = (of_query.forward(&q), of_key.forward(&k));
        }
        rope.apply(&mut q, self.heads.query, rotations);
        rope.apply(&mut k, self.heads.key_value, rotations);
        let mixed = self.mix(&q, &k, &v, contexts)?;
        add(x, &self.output.forward(&mixed));
        Ok(())
    }

    /// q, k, v of all rows → `[n, heads * d]`: each row attends to its own context.
    fn mix(&self, q: &[f32], k: &[f32], v: &[f32], contexts: &mut Contexts) -> Result<Vec<f32>> {
        let q_width = self.heads.query * self.heads.d;
        let kv_width = self.heads.key_value * self.heads.d;
        let mut out = Vec::with_capacity(q.len());
        for row in &mut contexts.rows {
            let mut done = out.len() / q_width;
            let q = &q[out.len()..(done + row.own_tokens()) * q_width];
            for run in &row.own {
                let kv = done * kv_width..(done + run.len()) * kv_width;
                row.cache
                    // Written before any row attends: a token attends to itself and to its chunk.
                    .write(self.index, run.start, &k[kv.clone()], &v[kv])?;
                done += run.len();
            }
            let result = self.attend(q, row, contexts.ring.as_deref_mut())?;
            self.check(&result)?;
            out.extend(result.out);
        }
        Ok(out)
    }

    /// q `[own tokens, heads, d]` of one row → attention over the whole context.
    fn attend(&self, q: &[f32], row: &RowContext, ring: Option<&mut Ring>) -> Result<Partial> {
        let mask = Mask {
            window: self.window,
            segments: row.cache.segments(),
            ..Mask::CAUSAL
        };
        let keys = row.cache.blocks(self.index);
        let Some(ring) = ring else {
            let queries = Queries { q, runs: &row.own };
            return Ok(attend(queries, self.heads, keys, &mask));
        };
        let ranks = ring.ranks();
        let runs: Vec<_> = (0..ranks)
            .map(|rank| striped(row.indices.clone(), rank, ranks))
            .collect();
        let most = |runs: &Vec<Range<usize>>| runs.iter().map(ExactSizeIterator::len).sum();
        // The most of any rank, so that all ranks choose the same traveller.
        let queries = runs.iter().map(most).max().unwrap_or(0);
        let shape = row.cache.shape();
        let traveller = traveller(self.heads, shape, row.indices.end, queries, ranks);
        ring.attend(traveller, q, &runs, self.heads, keys, &mask)
    }

    /// `Compute` for NaN or infinity, which would propagate to everything that follows.
    fn check(&self, result: &Partial) -> Result<()> {
        let of_values = result.out.chunks_exact(self.heads.d);
        let mut rows = result.lse.iter().zip(of_values);
        let bad = rows.position(|(lse, out)| lse.is_nan() || out.iter().any(|x| !x.is_finite()));
        bad.map_or(Ok(()), |row| {
            let (token, head) = (row / self.heads.query, row % self.heads.query);
            Err(Error::new(
                Kind::Compute,
                format!(
                    "attention of layer {}, head {head} gave NaN or infinity for token {token} of the call: \
                     a weight or an input is NaN or infinite",
                    self.index
                ),
            ))
        })
    }

    /// x `[n, hidden]` → x plus the feed-forward layer, in place.
    pub fn feed_forward(&self, x: &mut [f32]) {
        let normed = self.post_attention_norm.forward(x);
        add(x, &self.feed_forward.forward(&normed));
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
