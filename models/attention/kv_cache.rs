//! A context: keys and values of every layer in immutable blocks of 256 tokens.
//!
//! Blocks are behind `Arc`, so that a second question on the same video clones
//! a list and not the gigabytes; whoever appends next to a shared block copies
//! that one block first.

use std::sync::Arc;

use half::{bf16, slice::HalfFloatSliceExt};
use longreel_kernels::attend::Slab;

use crate::{
    error::{Error, Kind, Result},
    spec::DecoderSpec,
};

/// Tokens of one block.
pub const BLOCK_TOKENS: usize = 256;

/// Element type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvDtype {
    /// 4 bytes, exact.
    #[default]
    F32,
    /// 2 bytes, 8 bits of precision.
    Bf16,
}

impl KvDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Elements of a block, `[kv_heads, BLOCK_TOKENS, d]`.
#[derive(Clone)]
enum Payload {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// Keys and values of [`BLOCK_TOKENS`] tokens in one layer.
#[derive(Clone)]
pub struct KvBlock {
    d: usize,
    keys: Payload,
    values: Payload,
}

/// Keys and values of one context over all layers, with each token's position and segment.
pub struct KvCache {
    kv_heads: usize,
    d: usize,
    dtype: KvDtype,
    layers: Vec<Vec<Arc<KvBlock>>>,
    positions: Vec<u32>,
    segments: Vec<u32>,
    /// Whether two tokens differ in segment; a plain context never asks.
    is_packed: bool,
}

impl KvCache {
    /// An empty context for a decoder of `spec`.
    pub fn new(spec: &DecoderSpec, dtype: KvDtype) -> Self {
        Self {
            kv_heads: spec.n_kv_heads(),
            d: spec.head_dim(),
            dtype,
            layers: vec![Vec::new(); spec.num_hidden_layers],
            positions: Vec::new(),
            segments: Vec::new(),
            is_packed: false,
        }
    }

    /// Bytes that `tokens` tokens would take: whole blocks of every layer.
    pub fn bytes_for(spec: &DecoderSpec, tokens: usize, dtype: KvDtype) -> usize {
        let per_token = spec.kv_bytes_per_token(dtype.bytes());
        let blocks = tokens.div_ceil(BLOCK_TOKENS);
        per_token
            .saturating_mul(BLOCK_TOKENS)
            .saturating_mul(blocks)
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Element type of keys and values.
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// The position that follows the last token's; 0 at the start.
    pub fn next_position(&self) -> u32 {
        self.positions.last().map_or(0, |p| p.saturating_add(1))
    }

    /// Position of every token, `[len]`.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Segment of every token, `[len]`, or `None` when all are in one.
    pub fn segments(&self) -> Option<&[u32]> {
        self.is_packed.then_some(self.segments.as_slice())
    }

    /// Bytes of keys and values, blocks shared with other contexts included.
    pub fn bytes(&self) -> usize {
        let blocks: usize = self.layers.iter().map(Vec::len).sum();
        blocks * self.block_bytes()
    }

    fn block_bytes(&self) -> usize {
        2 * self.kv_heads * self.d * BLOCK_TOKENS * self.dtype.bytes()
    }

    /// A second context that begins as this one; the blocks are shared.
    pub fn fork(&self) -> Self {
        Self {
            layers: self.layers.clone(),
            positions: self.positions.clone(),
            segments: self.segments.clone(),
            ..*self
        }
    }

    /// Forgets every token from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.positions.truncate(len);
        self.segments.truncate(len);
        let blocks = self.len().div_ceil(BLOCK_TOKENS);
        self.layers
            .iter_mut()
            .for_each(|layer| layer.truncate(blocks));
        self.is_packed = self.segments.windows(2).any(|w| w[0] != w[1]);
    }

    /// Makes room for tokens at `positions`; without `segments` they go on in the last token's.
    ///
    /// # Errors
    /// `TooLarge` when the memory cannot be had; the context is then unchanged.
    pub fn extend(&mut self, positions: &[u32], segments: Option<&[u32]>) -> Result<()> {
        let before = self.len();
        let last = self.segments.last().copied();
        self.positions.extend_from_slice(positions);
        match segments {
            Some(segments) => self.segments.extend_from_slice(segments),
            None => self
                .segments
                .resize(self.positions.len(), last.unwrap_or(0)),
        }
        let from = before.saturating_sub(1);
        let added = self.segments.get(from..).unwrap_or_default();
        self.is_packed |= added.windows(2).any(|w| w[0] != w[1]);
        self.allocate().inspect_err(|_| self.truncate(before))
    }

    fn allocate(&mut self) -> Result<()> {
        let (wanted, tokens) = (self.len().div_ceil(BLOCK_TOKENS), self.len());
        let (elements, d, dtype) = (self.kv_heads * self.d * BLOCK_TOKENS, self.d, self.dtype);
        let refused = || {
            let bytes = self
                .block_bytes()
                .saturating_mul(wanted * self.layers.len());
            Error::new(
                Kind::TooLarge,
                format!("no memory for keys and values of {tokens} tokens ({bytes} bytes)"),
            )
        };
        let missing: usize = self
            .layers
            .iter()
            .map(|l| wanted.saturating_sub(l.len()))
            .sum();
        let mut fresh = Vec::new();
        for _ in 0..missing {
            let block = KvBlock::zeros(elements, d, dtype).ok_or_else(refused)?;
            fresh.push(Arc::new(block));
        }
        for layer in &mut self.layers {
            let missing = wanted.saturating_sub(layer.len());
            layer.extend(fresh.drain(..missing));
        }
        Ok(())
    }

    /// Writes keys and values `[n, kv_heads, d]` of `layer` for the tokens from `at` on.
    ///
    /// # Errors
    /// `Internal` when [`KvCache::extend`] made no room for them.
    pub fn write(&mut self, layer: usize, at: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        let width = self.kv_heads * self.d;
        let blocks = self.layers.get_mut(layer);
        let no_room = || {
            Error::new(
                Kind::Internal,
                format!("no room for token {at} in layer {layer}"),
            )
        };
        let blocks = blocks.ok_or_else(no_room)?;
        for (i, (k, v)) in keys
            .chunks_exact(width)
            .zip(values.chunks_exact(width))
            .enumerate()
        {
            let (index, slot) = ((at + i) / BLOCK_TOKENS, (at + i) % BLOCK_TOKENS);
            let block = Arc::make_mut(blocks.get_mut(index).ok_or_else(no_room)?);
            block.keys.write(slot, self.d, k);
            block.values.write(slot, self.d, v);
        }
        Ok(())
    }

    /// The blocks of `layer`, oldest first; the last may be partly filled.
    pub fn blocks(&self, layer: usize) -> &[Arc<KvBlock>] {
        self.layers.get(layer).map_or(&[], Vec::as_slice)
    }
}

impl KvBlock {
    fn zeros(elements: usize, d: usize, dtype: KvDtype) -> Option<Self> {
        Some(Self {
            d,
            keys: Payload::zeros(elements, dtype)?,
            values: Payload::zeros(elements, dtype)?,
        })
    }

    /// Keys `[n, d]` of the first `n` tokens in one head.
    pub fn keys(&self, kv_head: usize, n: usize) -> Slab<'_> {
        self.keys.head(kv_head, n, self.d)
    }

    /// Values `[n, d]` of the first `n` tokens in one head.
    pub fn values(&self, kv_head: usize, n: usize) -> Slab<'_> {
        self.values.head(kv_head, n, self.d)
    }
}

impl Payload {
    fn zeros(elements: usize, dtype: KvDtype) -> Option<Self> {
        fn filled<T: Copy>(elements: usize, zero: T) -> Option<Vec<T>> {
            let mut data = Vec::new();
            data.try_reserve_exact(elements).ok()?;
            data.resize(elements, zero);
            Some(data)
        }
        Some(match dtype {
            KvDtype::F32 => Self::F32(filled(elements, 0.0)?),
            KvDtype::Bf16 => Self::Bf16(filled(elements, bf16::ZERO)?),
        })
    }

    /// Elements `[n, d]` of one head.
    fn head(&self, head: usize, n: usize, d: usize) -> Slab<'_> {
        let start = head * BLOCK_TOKENS * d;
        let range = start..start + n.min(BLOCK_TOKENS) * d;
        match self {
            Self::F32(data) => Slab::F32(data.get(range).unwrap_or_default()),
            Self::Bf16(data) => Slab::Bf16(data.get(range).unwrap_or_default()),
        }
    }

    /// Writes one token, `[heads, d]`, into `slot`.
    fn write(&mut self, slot: usize, d: usize, token: &[f32]) {
        for (head, source) in token.chunks_exact(d).enumerate() {
            let start = (head * BLOCK_TOKENS + slot) * d;
            match self {
                Self::F32(data) => data[start..start + d].copy_from_slice(source),
                Self::Bf16(data) => data[start..start + d].convert_from_f32_slice(source),
            }
        }
    }
}
