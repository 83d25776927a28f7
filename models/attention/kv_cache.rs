//! A context: keys and values of every layer in immutable blocks of 256 tokens.
//!
//! Blocks are behind `Arc`, so that a second question about the same video clones
//! a list and not gigabytes; an append to a shared block first copies
//! that one block. Memory is charged to a budget before it
//! is allocated; when the budget is exhausted, the oldest blocks are spilled to files, if a
//! directory was given, and attended to from there.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

pub use longreel_kernels::attend::{BLOCK_TOKENS, KvDtype, KvShape, PackedBlock};

use serde::{Deserialize, Serialize};

use crate::{
    attention::{
        budget::{Budget, Charge},
        spill::SpillDir,
    },
    error::{Error, Kind, Result},
    spec::DecoderSpec,
};

/// A block and the token indices that it holds.
#[derive(Clone)]
pub struct PositionedBlock {
    /// Index of its first token.
    pub start: usize,
    /// Tokens held, at most [`BLOCK_TOKENS`].
    pub len: usize,
    /// Their keys and values.
    pub block: Arc<PackedBlock>,
}

impl PositionedBlock {
    /// The token indices held.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// The part of a context that one of several ranks holds: block `b` belongs to rank `b % ranks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which rank this is.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
}

impl Share {
    /// A context that one rank holds alone.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// Whether the block that begins at token `start` belongs to the rank.
    fn owns(self, start: usize) -> bool {
        start / BLOCK_TOKENS % self.ranks == self.rank
    }
}

/// A change to a context that other ranks hold parts of; they replay these in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A second context begins as a copy of another.
    Fork {
        /// The existing context.
        from: u64,
        /// The new one.
        to: u64,
    },
    /// Every token from `len` on was removed.
    Truncate {
        /// The context.
        id: u64,
        /// Tokens that remained.
        len: usize,
    },
    /// The oldest blocks after the sinks were dropped.
    DropFront {
        /// The context.
        id: u64,
        /// Oldest blocks that remained.
        keep_sinks: usize,
        /// The most blocks dropped after them.
        blocks: usize,
    },
    /// The context is no longer needed.
    Drop {
        /// The context.
        id: u64,
    },
}

/// Events that the other ranks have not been told yet.
pub type Journal = Arc<Mutex<Vec<Event>>>;

/// Keys and values of one context over all layers, with each token's position and segment.
///
/// Tokens are numbered by index from 0; an index does not change when earlier tokens are dropped.
/// The last token is always held. An index is not a position: positions are what RoPE rotates by.
pub struct KvCache {
    shape: KvShape,
    share: Share,
    /// Identifies the context among ranks.
    id: u64,
    /// Events for the other ranks, if there are any.
    journal: Option<Journal>,
    /// First token indices of the blocks of all ranks, in order, without dropped ones.
    held: Vec<usize>,
    /// This rank's blocks, per layer, oldest first; every layer holds the same tokens.
    layers: Vec<Vec<PositionedBlock>>,
    /// The charge for the blocks of all layers at the same list index; `None` for those in files.
    charges: Vec<Option<Arc<Charge>>>,
    budget: Arc<Budget>,
    spill: Option<Arc<SpillDir>>,
    /// For every token, dropped ones included: the highest position up to it in its segment.
    positions: Vec<u32>,
    /// Segment id of every token, dropped ones included.
    segments: Vec<u32>,
    /// Whether tokens differ in segment; where not, masks need no segments.
    is_packed: bool,
    /// Slots of tokens below this index hold removed tokens, which must be cleared before they can be read again.
    stale_until: usize,
}

impl KvCache {
    /// An empty context for a decoder of `spec`.
    pub fn new(spec: &DecoderSpec, dtype: KvDtype) -> Self {
        Self::shared(spec, dtype, Share::WHOLE, None)
    }

    /// One rank's part of an empty context; its changes are recorded in `journal`.
    pub fn shared(
        spec: &DecoderSpec,
        dtype: KvDtype,
        share: Share,
        journal: Option<Journal>,
    ) -> Self {
        Self {
            shape: shape(spec, dtype),
            share,
            id: new_id(),
            journal,
            held: Vec::new(),
            layers: vec![Vec::new(); spec.num_hidden_layers],
            charges: Vec::new(),
            budget: Budget::unlimited(),
            spill: None,
            positions: Vec::new(),
            segments: Vec::new(),
            is_packed: false,
            stale_until: 0,
        }
    }

    /// Charges the blocks in memory, and those of forks, to `budget`; for an empty context.
    pub fn within(mut self, budget: Arc<Budget>) -> Self {
        self.budget = budget;
        self
    }

    /// Spills the oldest blocks to `spill` when the budget is exhausted.
    pub fn spilling_to(mut self, spill: Arc<SpillDir>) -> Self {
        self.spill = Some(spill);
        self
    }

    /// Bytes for `tokens` tokens: whole blocks of every layer.
    pub fn bytes_for(spec: &DecoderSpec, tokens: usize, dtype: KvDtype) -> usize {
        let blocks = tokens.div_ceil(BLOCK_TOKENS);
        shape(spec, dtype)
            .block_bytes()
            .saturating_mul(spec.num_hidden_layers)
            .saturating_mul(blocks)
    }

    /// Tokens so far: those held and those dropped.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Element type of keys and values.
    pub fn dtype(&self) -> KvDtype {
        self.shape.dtype
    }

    /// One more than the highest position of the last token's segment; 0 for an empty context.
    pub fn next_position(&self) -> u32 {
        self.positions.last().map_or(0, |p| p.saturating_add(1))
    }

    /// Tokens held by all ranks together.
    pub fn held(&self) -> usize {
        self.held.last().map_or(0, |last| {
            (self.held.len() - 1) * BLOCK_TOKENS + self.len() - last
        })
    }

    /// For every token, `[len]`, the highest position up to it in its segment: its own, where positions rise.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Segment id of every token, `[len]`, or `None` when all are equal.
    pub fn segments(&self) -> Option<&[u32]> {
        self.is_packed.then_some(self.segments.as_slice())
    }

    /// Bytes of keys and values in memory and in files, blocks shared with other contexts included.
    pub fn bytes(&self) -> usize {
        self.charges.len() * self.column_bytes()
    }

    /// Bytes of [`KvCache::bytes`] that are in files.
    pub fn spilled_bytes(&self) -> usize {
        let spilled = self.charges.iter().filter(|charge| charge.is_none());
        spilled.count() * self.column_bytes()
    }

    /// Bytes of the blocks of all layers for the same tokens.
    fn column_bytes(&self) -> usize {
        self.layers.len() * self.shape.block_bytes()
    }

    /// A second context that starts with the same tokens; blocks are shared.
    pub fn fork(&self) -> Self {
        let fork = Self {
            shape: self.shape,
            share: self.share,
            id: new_id(),
            journal: self.journal.clone(),
            held: self.held.clone(),
            layers: self.layers.clone(),
            charges: self.charges.clone(),
            budget: self.budget.clone(),
            spill: self.spill.clone(),
            positions: self.positions.clone(),
            segments: self.segments.clone(),
            is_packed: self.is_packed,
            stale_until: self.stale_until,
        };
        self.note(Event::Fork {
            from: self.id,
            to: fork.id,
        });
        fork
    }

    /// Zeroes the slots of removed tokens in the last blocks from index `before` on: a weight of
    /// zero times NaN is NaN, and int8 weights are scaled by the largest value scale of a block.
    fn forget(&mut self, before: usize) -> Result<()> {
        let width = self.shape.kv_heads * self.shape.d;
        for last in self.layers.iter_mut().filter_map(|layer| layer.last_mut()) {
            let stale = before..self.stale_until.min(last.start + BLOCK_TOKENS);
            if stale.is_empty() {
                return Ok(());
            }
            let block = Arc::get_mut(&mut last.block).ok_or_else(|| {
                Error::new(Kind::Internal, "the last block of a context is shared")
            })?;
            let zeros = vec![0.0; stale.len() * width];
            block.write(before - last.start, &zeros, &zeros);
        }
        Ok(())
    }

    /// Identifies the context among ranks.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Heads, channels and element type of its blocks.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Which part of the context this is.
    pub fn share(&self) -> Share {
        self.share
    }

    fn note(&self, event: Event) {
        if let Some(journal) = &self.journal {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            journal.push(event);
        }
    }

    /// Removes every token from `len` on; inside a dropped range, from the start of that range.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        self.note(Event::Truncate { id: self.id, len });
        self.stale_until = self.stale_until.max(self.len());
        let behind = self.held.partition_point(|&start| start < len);
        self.held.truncate(behind);
        for layer in &mut self.layers {
            layer.truncate(layer.partition_point(|placed| placed.start < len));
            if let Some(last) = layer.last_mut() {
                last.len = last.len.min(len - last.start);
            }
        }
        self.charges.truncate(self.blocks(0).len());
        // `len` may lie in a dropped range, whose tokens are gone.
        let end = self.held.last().map_or(0, |start| start + BLOCK_TOKENS);
        self.positions.truncate(len.min(end));
        self.segments.truncate(len.min(end));
        self.is_packed = self.segments.windows(2).any(|w| w[0] != w[1]);
    }

    /// Drops the `blocks` oldest blocks after the first `keep_sinks`, never the last → tokens dropped.
    ///
    /// The remaining tokens keep their indices and positions. The first tokens of a context attract attention
    /// whatever their content, so that keeping them ("sinks") keeps a sliding context usable
    /// (StreamingLLM, arXiv 2309.17453).
    pub fn drop_front(&mut self, keep_sinks: usize, blocks: usize) -> usize {
        let last = self.held.len().saturating_sub(1);
        let end = keep_sinks.saturating_add(blocks).min(last);
        let dropped: Vec<usize> = self.held.drain(keep_sinks.min(end)..end).collect();
        let (Some(&first), Some(&last)) = (dropped.first(), dropped.last()) else {
            return 0;
        };
        self.note(Event::DropFront {
            id: self.id,
            keep_sinks,
            blocks,
        });
        let blocks = self.blocks(0);
        let own = blocks.partition_point(|placed| placed.start < first)
            ..blocks.partition_point(|placed| placed.start <= last);
        for layer in &mut self.layers {
            layer.drain(own.clone());
        }
        self.charges.drain(own);
        dropped.len() * BLOCK_TOKENS
    }

    /// A copy of the tokens `indices` as a context of its own, bit for bit.
    ///
    /// With the indices of one segment of a packed context it is that prompt's own context.
    ///
    /// # Errors
    /// `TooLarge` when memory is short, `Internal` when not all of the tokens are held.
    pub fn part(&self, indices: Range<usize>) -> Result<Self> {
        let of = |all: &[u32]| Some(all.get(indices.clone())?.to_vec());
        let missing = || {
            let message = format!("indices {indices:?} of a context of {} tokens", self.len());
            Error::new(Kind::Internal, message)
        };
        if self.share != Share::WHOLE {
            let message = format!("a part of a context of {} ranks", self.share.ranks);
            return Err(Error::new(Kind::Internal, message));
        }
        let positions = of(&self.positions).ok_or_else(missing)?;
        let segments = of(&self.segments).ok_or_else(missing)?;
        let mut part = Self {
            shape: self.shape,
            share: self.share,
            id: new_id(),
            journal: None,
            held: Vec::new(),
            layers: vec![Vec::new(); self.layers.len()],
            charges: Vec::new(),
            budget: self.budget.clone(),
            spill: self.spill.clone(),
            positions: Vec::new(),
            segments: Vec::new(),
            is_packed: false,
            stale_until: 0,
        };
        part.extend(&positions, Some(&segments))?;
        for (to, from) in part.layers.iter_mut().zip(&self.layers) {
            copy_tokens(to, from, &indices).ok_or_else(missing)?;
        }
        Ok(part)
    }

    /// Makes room for tokens with `positions` (of each, its highest component); without `segments` they continue
    /// the last token's segment.
    ///
    /// # Errors
    /// `TooLarge` when budget or memory are exhausted, `Io` when blocks cannot be spilled; then no token is
    /// added, and the earlier ones stay usable.
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
        for index in before.max(1)..self.len() {
            if self.segments[index] == self.segments[index - 1] {
                self.positions[index] = self.positions[index].max(self.positions[index - 1]);
            } else {
                self.is_packed = true;
            }
        }
        let allocated = self.allocate(before);
        allocated.inspect_err(|_| self.truncate(before))
    }

    /// Allocates room for every token from `before` on, in blocks that no fork shares.
    fn allocate(&mut self, before: usize) -> Result<()> {
        let len = self.len();
        let open = before / BLOCK_TOKENS * BLOCK_TOKENS;
        if before < len && open < before && self.share.owns(open) {
            self.own_last()?;
            self.forget(before)?;
        }
        // Blocks allocated below are zeroed, and the open block has just been cleared.
        self.stale_until = 0;
        let first = before.next_multiple_of(BLOCK_TOKENS);
        for start in (first..len).step_by(BLOCK_TOKENS) {
            self.held.push(start);
            if !self.share.owns(start) {
                continue;
            }
            let charge = self.charge()?;
            let fresh = || PackedBlock::try_new(self.shape).map(Arc::new);
            let column: Option<Vec<_>> = self.layers.iter().map(|_| fresh()).collect();
            let column =
                column.ok_or_else(|| self.refused("the machine has no memory for them"))?;
            for (layer, block) in self.layers.iter_mut().zip(column) {
                let len = 0;
                layer.push(PositionedBlock { start, len, block });
            }
            self.charges.push(Some(charge));
        }
        for layer in &mut self.layers {
            // Several blocks may have become longer: the open one and the new ones.
            let written = |placed: &&mut PositionedBlock| placed.start + BLOCK_TOKENS > before;
            for placed in layer.iter_mut().rev().take_while(written) {
                placed.len = (len - placed.start).min(BLOCK_TOKENS);
            }
        }
        Ok(())
    }

    /// Copies the last block of every layer where it is shared or mapped.
    fn own_last(&mut self) -> Result<()> {
        let lasts = self.layers.iter().filter_map(|layer| layer.last());
        let is_own = |placed: &PositionedBlock| {
            // A mapped block is read-only.
            Arc::strong_count(&placed.block) == 1 && !placed.block.is_mapped()
        };
        if lasts.into_iter().all(is_own) {
            return Ok(());
        }
        let charge = self.charge()?;
        let copy = |placed: &PositionedBlock| {
            let block = PackedBlock::from_bytes(self.shape, placed.block.as_bytes())?;
            let block = Arc::new(block);
            Some(PositionedBlock { block, ..*placed })
        };
        let lasts = self.layers.iter().filter_map(|layer| layer.last());
        let copies: Option<Vec<PositionedBlock>> = lasts.map(copy).collect();
        let copies = copies.ok_or_else(|| self.refused("the machine has no memory for them"))?;
        let lasts = self.layers.iter_mut().filter_map(|layer| layer.last_mut());
        lasts.zip(copies).for_each(|(last, copy)| *last = copy);
        if let Some(last) = self.charges.last_mut() {
            *last = Some(charge);
        }
        Ok(())
    }

    /// Charges one block of every layer to the budget, after spilling as much as necessary.
    fn charge(&mut self) -> Result<Arc<Charge>> {
        loop {
            if let Some(charge) = self.budget.charge(self.column_bytes()) {
                return Ok(Arc::new(charge));
            }
            if !self.spill_oldest()? {
                return Err(self.refused(&format!(
                    "{} of the {} bytes allowed in memory are taken",
                    self.budget.used_bytes(),
                    self.budget.limit_bytes()
                )));
            }
        }
    }

    fn refused(&self, why: &str) -> Error {
        let (tokens, bytes) = (self.len(), self.column_bytes());
        let message = format!(
            "no room for keys and values of {tokens} tokens: {bytes} bytes more are needed, and {why}"
        );
        Error::new(Kind::TooLarge, message)
    }

    /// Spills the oldest full block of every layer → whether there was one. Blocks that a
    /// fork shares stay in memory: spilling would free nothing.
    fn spill_oldest(&mut self) -> Result<bool> {
        let Some(spill) = self.spill.clone() else {
            return Ok(false);
        };
        // Layers spill together, and one charge covers them: its count tells whether a fork shares them.
        let can_go = |&index: &usize| {
            let full = self.blocks(0)[index].len == BLOCK_TOKENS;
            let charge = self.charges[index].as_ref();
            full && charge.is_some_and(|charge| Arc::strong_count(charge) == 1)
        };
        let Some(index) = (0..self.charges.len()).find(can_go) else {
            return Ok(false);
        };
        let column: Vec<&PackedBlock> = self
            .layers
            .iter()
            .map(|layer| &*layer[index].block)
            .collect();
        let mapped = spill.put(&column)?;
        for (layer, block) in self.layers.iter_mut().zip(mapped) {
            layer[index].block = Arc::new(block);
        }
        self.charges[index] = None;
        Ok(true)
    }

    /// Spills until the budget has room for `tokens` more tokens, where a directory was given.
    ///
    /// Shared blocks are never spilled: whoever forks a context with a full budget makes
    /// room first.
    ///
    /// # Errors
    /// As [`KvCache::extend`].
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        let columns = tokens.div_ceil(BLOCK_TOKENS) + 1;
        let room = (0..columns)
            // Held until all fit, then dropped: `extend` charges again.
            .map(|_| self.charge())
            .collect::<Result<Vec<_>>>();
        room.map(drop)
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
            let slot = at % BLOCK_TOKENS;
            let n = (keys.len() / width).min(BLOCK_TOKENS - slot);
            let index = block_holding(blocks, at).ok_or_else(no_room)?;
            let placed = &mut blocks[index];
            let (k, later_keys) = keys.split_at(n * width);
            let (v, later_values) = values.split_at(n * width);
            // Copies only after a fork since `extend`, which made the block this context's own.
            Arc::make_mut(&mut placed.block).write(slot, k, v);
            (at, keys, values) = (at + n, later_keys, later_values);
        }
        Ok(())
    }

    /// The blocks of `layer`, oldest first; the last may be partly filled.
    pub fn blocks(&self, layer: usize) -> &[PositionedBlock] {
        self.layers.get(layer).map_or(&[], Vec::as_slice)
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        self.note(Event::Drop { id: self.id });
    }
}

fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Position in `blocks` of the block that holds token `index`.
fn block_holding(blocks: &[PositionedBlock], index: usize) -> Option<usize> {
    let behind = blocks.partition_point(|placed| placed.start <= index);
    let block = behind.checked_sub(1)?;
    blocks[block].range().contains(&index).then_some(block)
}

/// Copies the tokens `indices` to index 0 and up; `None` when one is not held.
fn copy_tokens(
    to: &mut [PositionedBlock],
    from: &[PositionedBlock],
    indices: &Range<usize>,
) -> Option<()> {
    let mut at = indices.start;
    while at < indices.end {
        let slot = at % BLOCK_TOKENS;
        let to_at = at - indices.start;
        let to_slot = to_at % BLOCK_TOKENS;
        let n = (BLOCK_TOKENS - slot.max(to_slot)).min(indices.end - at);
        let to = to.get_mut(to_at / BLOCK_TOKENS)?;
        let from = &from[block_holding(from, at)?].block;
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
