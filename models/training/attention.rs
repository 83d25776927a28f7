//! Attention with gradients, without a queries × keys matrix.
//!
//! Forward is the blockwise pass of inference and keeps the log-sum-exp; backward
//! computes the weights again, block by block (FlashAttention-2, arXiv 2307.08691).

use std::{ops::Range, slice::from_ref, sync::Arc};

use candle_core::Tensor;

use crate::{
    attention::{
        blockwise::{self, Heads, Queries},
        kv_cache::{BLOCK_TOKENS, KvDtype, KvShape, PackedBlock, PositionedBlock},
        partial::Partial,
    },
    error::{Context, Error, Kind, Result},
    training::{
        batch_mask::BatchMask,
        gradients::{Gradients, KeySide, QuerySide, add_gradients, cut, delta, token_major},
        operands::{Sizes, numbers},
        recorded::{Backward, record},
    },
};

/// q `[b, t, heads, d]`, k, v `[b, s, kv_heads, d]`, f32 → out `[b, t, heads, d]`.
///
/// The queries are the last `t` of the `s` tokens; scores are divided by `√d`. A query
/// without visible keys gives zeros, and has no gradient.
///
/// # Errors
/// `BadInput` for other shapes or element types, `Compute` when an output is not finite.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Arc<BatchMask>) -> Result<Tensor> {
    attend(q, k, v, mask).doing(|| "attention")
}

fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Arc<BatchMask>) -> Result<Tensor> {
    let sizes = Sizes::of(q, k, v)?;
    sizes.check_mask(mask, sizes.s)?;
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let query_run = sizes.s - sizes.t..sizes.s;
    let whole = forward(sizes, mask, query_run.clone(), [&q, &k, &v])?;
    let op = Attention {
        sizes,
        mask: Arc::clone(mask),
        query_run,
        lse: whole.lse,
    };
    record([&q, &k, &v], whole.out, op)
}

/// out `[rows, t, heads, d]`, lse `[rows, t, heads]`.
fn forward(
    sizes: Sizes,
    mask: &BatchMask,
    query_run: Range<usize>,
    [q, k, v]: [&Tensor; 3],
) -> Result<Partial> {
    let (q, k, v) = (numbers(q), numbers(k), numbers(v));
    let (q, k, v) = (q.as_slice()?, k.as_slice()?, v.as_slice()?);
    let (of_q, of_k) = sizes.row_lengths();
    let key_run = 0..sizes.s;
    let mut whole = Partial::empty(0, 0);
    for row in 0..sizes.rows {
        let keys = &k[row * of_k..(row + 1) * of_k];
        let values = &v[row * of_k..(row + 1) * of_k];
        let placed = pack(sizes.heads, from_ref(&key_run), keys, values)?;
        let queries = Queries {
            q: &q[row * of_q..(row + 1) * of_q],
            runs: from_ref(&query_run),
        };
        let part = blockwise::attend(queries, sizes.heads, &placed, &mask.of_row(row));
        whole.out.extend(part.out);
        whole.lse.extend(part.lse);
    }
    check_finite(&whole)?;
    Ok(whole)
}

/// # Errors
/// `Compute` when an output is NaN or infinite.
pub(super) fn check_finite(whole: &Partial) -> Result<()> {
    match whole.out.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::new(
            Kind::Compute,
            format!(
                "output {at} is {}: an input is not finite, or too large",
                whole.out[at]
            ),
        )),
    }
}

/// keys, values `[s, kv_heads, d]` of the token indices `runs` → blocks that end at multiples of [`BLOCK_TOKENS`].
pub(super) fn pack(
    heads: Heads,
    runs: &[Range<usize>],
    keys: &[f32],
    values: &[f32],
) -> Result<Vec<PositionedBlock>> {
    let width = heads.key_value * heads.d;
    let shape = KvShape {
        kv_heads: heads.key_value,
        d: heads.d,
        dtype: KvDtype::F32,
    };
    let no_memory = || Error::new(Kind::TooLarge, "no memory for keys and values");
    let mut placed = Vec::new();
    for block in cut(runs, BLOCK_TOKENS) {
        let numbers = block.tokens.start * width..block.tokens.end * width;
        let mut packed = PackedBlock::try_new(shape).ok_or_else(no_memory)?;
        packed.write(0, &keys[numbers.clone()], &values[numbers]);
        placed.push(PositionedBlock {
            start: block.indices.start,
            len: block.indices.len(),
            block: Arc::new(packed),
        });
    }
    Ok(placed)
}

/// State saved for the backward pass.
struct Attention {
    sizes: Sizes,
    mask: Arc<BatchMask>,
    query_run: Range<usize>,
    /// `[rows, t, heads]`.
    lse: Vec<f32>,
}

impl Backward for Attention {
    const NAME: &'static str = "attention";

    fn backward(&self, tensors: [&Tensor; 5]) -> Result<[Vec<f32>; 3]> {
        let Sizes { t, s, heads, .. } = self.sizes;
        let held = tensors.map(numbers);
        let [q, k, v, out, d_out] = &held;
        let (q, d_out) = (q.as_slice()?, d_out.as_slice()?);
        let delta = delta(out.as_slice()?, d_out, heads.d);
        let by_head = |x, width| self.sizes.queries_by_head(x, width);
        let queries = QuerySide {
            runs: from_ref(&self.query_run),
            q: &by_head(q, heads.d),
            d_out: &by_head(d_out, heads.d),
            lse: &by_head(&self.lse, 1),
            delta: &by_head(&delta, 1),
        };
        let (k, v) = (
            self.sizes.keys_by_head(k.as_slice()?),
            self.sizes.keys_by_head(v.as_slice()?),
        );
        let key_run = 0..s;
        let keys = KeySide {
            runs: from_ref(&key_run),
            k: &k,
            v: &v,
        };
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let gradients = Gradients {
            dq: &mut dq,
            dk: &mut dk,
            dv: &mut dv,
        };
        add_gradients(heads, &self.mask, &queries, keys, gradients);
        Ok([
            token_major(&dq, t, heads.key_value, heads.group() * heads.d),
            token_major(&dk, s, heads.key_value, heads.d),
            token_major(&dv, s, heads.key_value, heads.d),
        ])
    }
}
