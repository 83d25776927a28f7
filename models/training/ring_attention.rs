//! Attention with gradients over the tokens of several ranks:
//! each rank has its own graph, and the graphs meet in the ring.
//!
//! Every rank must call forward, and then backward, as often as the others and in the
//! same order. A rank that fails tells the others why, and the ring cannot be used again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

use crate::{
    attention::{
        blockwise::Heads,
        partial::Partial,
        ring::{Ring, Traveller},
    },
    error::{Context, Error, Kind, Result},
    training::{
        attention::{check_finite, pack},
        operands::{Sizes, numbers},
        recorded::{Backward, record},
        ring_gradients::{RankActivations, TokenShards, ring_gradients},
    },
};

/// q `[b, n, heads, d]`, k, v `[b, n, kv_heads, d]` of this rank's tokens, f32 → out `[b, n, heads, d]` over
/// the keys of all ranks.
///
/// Scores are divided by `√d`. A query without visible keys gives zeros, and has
/// no gradient.
///
/// # Errors
/// `BadInput` for other shapes or element types, `Compute` when an output is not finite, `Network` when
/// another rank is lost, or as that rank failed.
pub fn ring_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    ring: &Arc<Mutex<Ring>>,
    shards: &Arc<TokenShards>,
) -> Result<Tensor> {
    let whole = together(ring, |ring| attend(ring, shards, [q, k, v]));
    let (sizes, whole) = whole.doing(|| "attention over a ring")?;
    let op = RingAttention {
        heads: sizes.heads,
        ring: Arc::clone(ring),
        shards: Arc::clone(shards),
        lse: whole.lse,
    };
    record([q, k, v], whole.out, op)
}

/// Runs `work` on the ring; if it fails, the other ranks are told why.
fn together<T>(ring: &Mutex<Ring>, work: impl FnOnce(&mut Ring) -> Result<T>) -> Result<T> {
    let mut ring: MutexGuard<Ring> = ring.lock().unwrap_or_else(PoisonError::into_inner);
    let done = work(&mut ring);
    if let Err(error) = &done {
        ring.fail(error);
    }
    done
}

/// q, k, v → their sizes, out `[rows, n, heads, d]` and lse `[rows, n, heads]`.
fn attend(
    ring: &mut Ring,
    shards: &TokenShards,
    tensors: [&Tensor; 3],
) -> Result<(Sizes, Partial)> {
    let [q, k, v] = tensors;
    let sizes = Sizes::of(q, k, v)?;
    check_shards(ring, shards, sizes)?;
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (q, k, v) = (numbers(&q), numbers(&k), numbers(&v));
    let tensors = [q.as_slice()?, k.as_slice()?, v.as_slice()?];
    Ok((sizes, forward(ring, shards, sizes, tensors)?))
}

/// State saved for the backward pass.
struct RingAttention {
    heads: Heads,
    ring: Arc<Mutex<Ring>>,
    shards: Arc<TokenShards>,
    /// `[rows, n, heads]`.
    lse: Vec<f32>,
}

impl Backward for RingAttention {
    const NAME: &'static str = "attention over a ring";

    fn backward(&self, tensors: [&Tensor; 5]) -> Result<[Vec<f32>; 3]> {
        let held = tensors.map(numbers);
        let [q, k, v, out, d_out] = &held;
        let kept = RankActivations {
            q: q.as_slice()?,
            k: k.as_slice()?,
            v: v.as_slice()?,
            out: out.as_slice()?,
            lse: &self.lse,
            d_out: d_out.as_slice()?,
        };
        together(&self.ring, |ring| {
            ring_gradients(ring, self.heads, &self.shards, kept)
        })
    }
}

/// Checks that the tensors have this rank's tokens.
fn check_shards(ring: &Ring, shards: &TokenShards, sizes: Sizes) -> Result<()> {
    shards.check_ranks(ring.ranks())?;
    let rank = ring.rank();
    let (rows, n) = (shards.mask().rows(), shards.tokens(rank));
    if (sizes.rows, sizes.t, sizes.s) == (rows, n, n) {
        return Ok(());
    }
    let message = format!(
        "{} rows of {} queries and {} keys on rank {rank}, which holds {rows} rows of {n} tokens",
        sizes.rows, sizes.t, sizes.s
    );
    Err(Error::new(Kind::BadInput, message))
}

/// out `[rows, n, heads, d]`, lse `[rows, n, heads]`: one round of the ring for every row.
fn forward(
    ring: &mut Ring,
    shards: &TokenShards,
    sizes: Sizes,
    [q, k, v]: [&[f32]; 3],
) -> Result<Partial> {
    let (of_q, of_k) = sizes.row_lengths();
    let runs = &shards.runs()[ring.rank()];
    let mut whole = Partial::empty(0, 0);
    for row in 0..sizes.rows {
        let (queries, keys) = (row * of_q..(row + 1) * of_q, row * of_k..(row + 1) * of_k);
        let placed = pack(sizes.heads, runs, &k[keys.clone()], &v[keys])?;
        let part = ring.attend(
            Traveller::Keys,
            &q[queries],
            shards.runs(),
            sizes.heads,
            &placed,
            &shards.mask().of_row(row),
        )?;
        whole.out.extend(part.out);
        whole.lse.extend(part.lse);
    }
    check_finite(&whole)?;
    Ok(whole)
}
