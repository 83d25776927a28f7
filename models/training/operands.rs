//! The operands of attention: tensors with checked sizes, and access to their numbers.

use candle_core::{CpuStorage, DType, Layout, Storage, StorageRef, Tensor};

use crate::{
    attention::blockwise::Heads,
    error::{Error, Kind, Result},
    training::{batch_mask::BatchMask, gradients::head_major},
};

/// The sizes of one attention call.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub rows: usize,
    /// Queries per row.
    pub t: usize,
    /// Keys per row.
    pub s: usize,
    pub heads: Heads,
}

impl Sizes {
    /// The sizes of q `[rows, t, heads, d]` and k, v `[rows, s, kv_heads, d]`.
    pub fn of(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        let refused = |message: String| Err(Error::new(Kind::BadInput, message));
        for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
            if tensor.dtype() != DType::F32 {
                let dtype = tensor.dtype().as_str();
                return refused(format!("{name} is {dtype}; gradients are computed in f32"));
            }
        }
        let shapes = || format!("q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
        let (&[rows, t, query, d], &[b, s, key_value, e]) = (q.dims(), k.dims()) else {
            return refused(format!("{}, expected four dimensions", shapes()));
        };
        if k.dims() != v.dims() || rows != b || d != e {
            return refused(format!("{} do not fit together", shapes()));
        }
        if d == 0 || key_value == 0 || query == 0 || query % key_value != 0 {
            return refused(format!(
                "{query} query heads cannot share {key_value} key-value heads of {d} channels"
            ));
        }
        let heads = Heads {
            query,
            key_value,
            d,
        };
        Ok(Self { rows, t, s, heads })
    }

    /// Checks that the mask covers these rows and `tokens` tokens, and that there are at least as many keys as queries.
    pub fn check_mask(&self, mask: &BatchMask, tokens: usize) -> Result<()> {
        if mask.rows() == self.rows && mask.tokens() == tokens && self.t <= self.s {
            return Ok(());
        }
        let message = format!(
            "a mask of {} rows of {} tokens for {} rows of {} queries and {tokens} keys",
            mask.rows(),
            mask.tokens(),
            self.rows,
            self.t
        );
        Err(Error::new(Kind::BadInput, message))
    }

    /// Length of one row of q and of k, in numbers.
    pub fn row_lengths(&self) -> (usize, usize) {
        let Heads {
            query,
            key_value,
            d,
        } = self.heads;
        (self.t * query * d, self.s * key_value * d)
    }

    /// x `[rows, t, heads * width]` → `[rows, kv_heads, t, group * width]`.
    pub fn queries_by_head(&self, x: &[f32], width: usize) -> Vec<f32> {
        head_major(x, self.t, self.heads.key_value, self.heads.group() * width)
    }

    /// x `[rows, s, kv_heads, d]` → `[rows, kv_heads, s, d]`.
    pub fn keys_by_head(&self, x: &[f32]) -> Vec<f32> {
        head_major(x, self.s, self.heads.key_value, self.heads.d)
    }
}

/// The numbers of a tensor, locked for reading.
pub struct Numbers<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

/// Locks the values of a tensor for reading, so that they cannot be written meanwhile.
pub fn numbers(tensor: &Tensor) -> Numbers<'_> {
    let (storage, layout) = tensor.storage_and_layout();
    Numbers { storage, layout }
}

impl Numbers<'_> {
    /// # Errors
    /// `BadInput` when the tensor is not on the CPU, `Internal` when it is not contiguous.
    pub fn as_slice(&self) -> Result<&[f32]> {
        let Storage::Cpu(storage) = &*self.storage else {
            let message = "the tensor is not on the CPU";
            return Err(Error::new(Kind::BadInput, message));
        };
        let range = self.layout.contiguous_offsets();
        let (start, end) =
            range.ok_or_else(|| Error::new(Kind::Internal, "the tensor is not contiguous"))?;
        Ok(&storage.as_slice()?[start..end])
    }
}

/// The numbers of contiguous f32 storage, as candle passes them to a custom operation.
pub fn slice_of<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let range = layout.contiguous_offsets();
    let (start, end) =
        range.ok_or_else(|| candle_core::Error::msg("the tensor is not contiguous"))?;
    Ok(&storage.as_slice()?[start..end])
}
