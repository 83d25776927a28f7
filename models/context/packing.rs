//! Masked sequence packing (LWM, arXiv 2402.08268, "masked sequence packing"):
//! prompts of different lengths are concatenated in rows of one capacity, each
//! a segment that attends to itself only, with positions that begin at 0.
//!
//! The rule is best-fit decreasing: prompts in order of length, longest first
//! (in the given order on ties), each into the row with the least room that
//! still holds it (the earliest on ties), or into a new row. Prompts are in a
//! row in the order in which they were added.

use std::{cmp::Reverse, collections::BTreeSet, ops::Range};

use crate::error::{Error, Kind, Result};

/// One prompt in its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Number of the prompt, as it was given.
    pub prompt: usize,
    /// The token indices of the row that it takes.
    pub indices: Range<usize>,
}

/// Concatenated prompts; a segment's id is its index in this list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackedRow {
    /// The segments, contiguous from index 0.
    pub segments: Vec<Segment>,
}

/// Prompts distributed over rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// Maximum tokens of a row.
    pub capacity: usize,
    /// The rows, in the order in which they were opened.
    pub rows: Vec<PackedRow>,
}

impl PackedRow {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.segments.last().map_or(0, |last| last.indices.end)
    }

    /// Whether no prompt is held.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Segment id of every token, `[len]`.
    pub fn segment_ids(&self) -> Vec<u32> {
        let ids = (0..).zip(&self.segments);
        ids.flat_map(|(id, segment)| segment.indices.clone().map(move |_| id))
            .collect()
    }

    /// Position of every token in its own prompt, `[len]`.
    pub fn positions(&self) -> Vec<u32> {
        let lengths = self.segments.iter().map(|s| s.indices.len() as u32);
        lengths.flat_map(|n| 0..n).collect()
    }

    /// The row's tokens, `[len]`, gathered from all prompts.
    ///
    /// # Panics
    /// When `prompts` are not those that were packed.
    pub fn gather<T: Clone>(&self, prompts: &[&[T]]) -> Vec<T> {
        let mut tokens = Vec::with_capacity(self.len());
        for segment in &self.segments {
            tokens.extend_from_slice(&prompts[segment.prompt][..segment.indices.len()]);
        }
        tokens
    }

    fn push(&mut self, prompt: usize, tokens: usize) {
        let start = self.len();
        let indices = start..start + tokens;
        self.segments.push(Segment { prompt, indices });
    }
}

impl Packing {
    /// Tokens of all prompts.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(PackedRow::len).sum()
    }

    /// The unused share of the rows' capacity, 0 to 1.
    ///
    /// Rows are ragged: padding is reported, but never computed.
    pub fn padding(&self) -> f64 {
        let indices = self.capacity as f64 * self.rows.len() as f64;
        if indices == 0.0 {
            return 0.0;
        }
        1.0 - self.tokens() as f64 / indices
    }
}

/// Packs prompts of these lengths into rows of `capacity` tokens, by best-fit decreasing.
///
/// # Errors
/// `BadInput` for a prompt without tokens, `TooLarge` for one that no row holds.
pub fn pack(lengths: &[usize], capacity: usize) -> Result<Packing> {
    for (prompt, &tokens) in lengths.iter().enumerate() {
        check(prompt, tokens, capacity)?;
    }
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&prompt| Reverse(lengths[prompt]));
    let mut rows: Vec<PackedRow> = Vec::new();
    // Remaining room and number of every row.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for prompt in order {
        let tokens = lengths[prompt];
        // The set is ordered by room, then row: the first entry at or above `tokens` is the best fit.
        let best = open.range((tokens, 0)..).next().copied();
        let (room, row) = best.unwrap_or((capacity, rows.len()));
        // For a new row there is nothing to remove.
        open.remove(&(room, row));
        open.insert((room - tokens, row));
        if row == rows.len() {
            rows.push(PackedRow::default());
        }
        rows[row].push(prompt, tokens);
    }
    Ok(Packing { capacity, rows })
}

fn check(prompt: usize, tokens: usize, capacity: usize) -> Result<()> {
    if tokens == 0 {
        let message = format!("prompt {prompt} has no tokens, expected at least 1");
        return Err(Error::new(Kind::BadInput, message));
    }
    if tokens > capacity {
        let message = format!("prompt {prompt} has {tokens} tokens, a row holds {capacity}");
        return Err(Error::new(Kind::TooLarge, message));
    }
    Ok(())
}
