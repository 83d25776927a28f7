//! Masked sequence packing (LWM, arXiv 2402.08268, "masked sequence packing"):
//! prompts of different lengths stand side by side in rows of one capacity, each
//! a segment that attends to itself only, with positions that begin at 0.
//!
//! The rule is best-fit decreasing: prompts in order of length, longest first
//! (equal ones in their own order), each into the row with the least room that
//! still holds it (of equal ones the earliest), or into a new row. Prompts stand in a
//! row in the order in which they came to it.

use std::{cmp::Reverse, collections::BTreeSet, ops::Range};

use crate::error::{Error, Kind, Result};

/// One prompt in its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Number of the prompt, as it was given.
    pub prompt: usize,
    /// The places of the row that it takes.
    pub indices: Range<usize>,
}

/// Prompts side by side; the number of a segment is its place in this list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackedRow {
    /// From the first place on, without a gap.
    pub segments: Vec<Segment>,
}

/// Prompts dealt to rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// Most tokens of a row.
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

    /// Segment of every token, `[len]`.
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

    /// The row's tokens, `[len]`, out of all prompts.
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

    /// The share of the rows' places that no prompt takes, 0 to 1.
    ///
    /// Rows are ragged: what is left over is reported, and never computed.
    pub fn padding(&self) -> f64 {
        let indices = self.capacity as f64 * self.rows.len() as f64;
        if indices == 0.0 {
            return 0.0;
        }
        1.0 - self.tokens() as f64 / indices
    }
}

/// Prompts of these lengths in rows of `capacity` tokens, by best-fit decreasing.
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
    // Room left and number of every row.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for prompt in order {
        let tokens = lengths[prompt];
        let best = open.range((tokens, 0)..).next().copied();
        let (room, row) = best.unwrap_or((capacity, rows.len()));
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
        let message = format!("prompt {prompt} has {tokens} tokens, a row was made for {capacity}");
        return Err(Error::new(Kind::TooLarge, message));
    }
    Ok(())
}
