//! A context: keys and values of every layer in immutable blocks of 256 tokens.
//!
//! Blocks are behind `Arc`, so that a second question on the same video clones
//! a list and not the gigabytes; whoever appends next to a shared block copies
//! that one block first.

use std::{ops::Range, sync::Arc};

pub use longreel_kernels::attend::{BLOCK_TOKENS, KvDtype, KvShape, PackedBlock};

use crate::{
    error::{Error, Kind, Result},
    spec::DecoderSpec,
};

/// A block and the places of the context that it holds.
#[derive(Clone)]
pub struct Placed {
    /// Place of its first token.
    pub start: usize,
    /// Tokens held, at most [`BLOCK_TOKENS`].
    pub len: usize,
    /// Their keys and values.
    pub block: Arc<PackedBlock>,
}

impl Placed {
    /// The places held.
    pub fn places(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// Keys and values of one context over all layers, with each token's position and segment.
pub struct KvCache {
    shape: KvShape,
    /// Per layer, oldest first.
    layers: Vec<Vec<Placed>>,
    positions: Vec<u32>,
    segments: Vec<u32>,
    /// Whether two tokens differ in segment; a plain context never asks.
    is_packed: bool,
}

impl KvCache {
    /// An empty context for a decoder of `spec`.
    pub fn new(spec: &DecoderSpec, dtype: KvDtype) -> Self {
        Self {
            shape: shape(spec, dtype),
            layers: vec![Vec::new(); spec.num_hidden_layers],
            positions: Vec::new(),
            segments: Vec::new(),
            is_packed: false,
        }
    }

    /// Bytes that `tokens` tokens would take: whole blocks of every layer.
    pub fn bytes_for(spec: &DecoderSpec, tokens: usize, dtype: KvDtype) -> usize {
        let blocks = tokens.div_ceil(BLOCK_TOKENS);
        shape(spec, dtype)
            .block_bytes()
            .saturating_mul(spec.num_hidden_layers)
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
        self.shape.dtype
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
        blocks * self.shape.block_bytes()
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
        for layer in &mut self.layers {
            layer.truncate(blocks);
            if let Some(last) = layer.last_mut() {
                last.len = last.len.min(len - last.start);
            }
        }
        self.is_packed = self.segments.windows(2).any(|w| w[0] != w[1]);
    }

    /// A copy of the tokens at `places` as a context of its own, bit for bit.
    ///
    /// With the places of one segment of a packed context it is that segment alone, which can go on.
    ///
    /// # Errors
    /// `TooLarge` when the memory cannot be had, `Internal` when not all of the places are held.
    pub fn part(&self, places: Range<usize>) -> Result<Self> {
        let of = |all: &[u32]| Some(all.get(places.clone())?.to_vec());
        let missing = || {
            let message = format!("places {places:?} of a context of {} tokens", self.len());
            Error::new(Kind::Internal, message)
        };
        let positions = of(&self.positions).ok_or_else(missing)?;
        let segments = of(&self.segments).ok_or_else(missing)?;
        let mut part = Self {
            layers: vec![Vec::new(); self.layers.len()],
            positions: Vec::new(),
            segments: Vec::new(),
            is_packed: false,
            ..*self
        };
        part.extend(&positions, Some(&segments))?;
        for (to, from) in part.layers.iter_mut().zip(&self.layers) {
            copy_places(to, from, &places).ok_or_else(missing)?;
        }
        Ok(part)
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
        let (wanted, tokens, shape) = (self.len().div_ceil(BLOCK_TOKENS), self.len(), self.shape);
        let refused = || {
            let bytes = shape
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
            let block = PackedBlock::try_new(shape).ok_or_else(refused)?;
            fresh.push(Arc::new(block));
        }
        for layer in &mut self.layers {
            let missing = wanted.saturating_sub(layer.len());
            for block in fresh.drain(..missing) {
                let start = layer.len() * BLOCK_TOKENS;
                layer.push(Placed {
                    start,
                    len: 0,
                    block,
                });
            }
            for placed in layer.iter_mut() {
                placed.len = (tokens - placed.start).min(BLOCK_TOKENS);
            }
        }
        Ok(())
    }

    /// Writes keys and values `[n, kv_heads, d]` of `layer` for the tokens from `at` on.
    ///
    /// # Errors
    /// `Internal` when [`KvCache::extend`] made no room for them.
    pub fn write(&mut self, layer: usize, at: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        let width = self.shape.kv_heads * self.shape.d;
        let no_room = || {
            Error::new(
                Kind::Internal,
                format!("no room for token {at} in layer {layer}"),
            )
        };
        let blocks = self.layers.get_mut(layer).ok_or_else(no_room)?;
        let (mut at, mut keys, mut values) = (at, keys, values);
        while !keys.is_empty() {
            let (index, slot) = (at / BLOCK_TOKENS, at % BLOCK_TOKENS);
            let n = (keys.len() / width).min(BLOCK_TOKENS - slot);
            let placed = blocks.get_mut(index).ok_or_else(no_room)?;
            let (k, later_keys) = keys.split_at(n * width);
            let (v, later_values) = values.split_at(n * width);
            Arc::make_mut(&mut placed.block).write(slot, k, v);
            (at, keys, values) = (at + n, later_keys, later_values);
        }
        Ok(())
    }

    /// The blocks of `layer`, oldest first; the last may be partly filled.
    pub fn blocks(&self, layer: usize) -> &[Placed] {
        self.layers.get(layer).map_or(&[], Vec::as_slice)
    }
}

/// Copies the tokens at `places` to those from place 0 on; `None` when one is missing.
fn copy_places(to: &mut [Placed], from: &[Placed], places: &Range<usize>) -> Option<()> {
    let mut at = places.start;
    while at < places.end {
        let (index, slot) = (at / BLOCK_TOKENS, at % BLOCK_TOKENS);
        let to_at = at - places.start;
        let to_slot = to_at % BLOCK_TOKENS;
        let n = (BLOCK_TOKENS - slot.max(to_slot)).min(places.end - at);
        let to = to.get_mut(to_at / BLOCK_TOKENS)?;
        let from = &from.get(index)?.block;
        Arc::make_mut(&mut to.block).copy_tokens(to_slot, from, slot..slot + n);
        at += n;
    }
    Some(())
}

fn shape(spec: &DecoderSpec, dtype: KvDtype) -> KvShape {
    KvShape {
        kv_heads: spec.n_kv_heads(),
        d: spec.head_dim(),
        dtype,
    }
}
