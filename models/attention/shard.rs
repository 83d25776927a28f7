//! Which rank owns which tokens of a context that several ranks share.
//!
//! With a causal mask a query attends to the keys before it, so that ranks with late
//! tokens have more work. The busiest rank's work over the idlest one's, for
//! queries distributed like keys:
//!
//! | ranks | contiguous | zigzag | striped, 64 blocks a rank |
//! | --- | --- | --- | --- |
//! | 2 | 3 | 1 | 1.02 |
//! | 4 | 7 | 1 | 1.02 |
//! | 8 | 15 | 1 | 1.03 |
//!
//! Zigzag (Llama 3's context parallelism, arXiv 2411.01783) needs the final length;
//! a context that grows is striped by block (arXiv 2311.09431 stripes by token).

use std::ops::Range;

use crate::attention::kv_cache::BLOCK_TOKENS;

/// How token indices are distributed over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardLayout {
    /// One run after another.
    Contiguous,
    /// `2 · ranks` runs, of which rank `r` has the `r`-th from each end.
    Zigzag,
    /// Block `b` of 256 tokens belongs to rank `b % ranks`.
    Striped,
}

impl ShardLayout {
    /// The indices of `0..len` that belong to `rank`, as rising runs, none empty.
    pub fn runs(self, len: usize, rank: usize, ranks: usize) -> Vec<Range<usize>> {
        let runs = match self {
            Self::Contiguous => vec![part(len, rank, ranks)],
            Self::Zigzag => vec![
                part(len, rank, 2 * ranks),
                part(len, 2 * ranks - 1 - rank, 2 * ranks),
            ],
            Self::Striped => return striped(0..len, rank, ranks),
        };
        runs.into_iter().filter(|run| !run.is_empty()).collect()
    }
}

/// The `i`-th of `n` parts of `0..len`, whose lengths differ by at most one.
fn part(len: usize, i: usize, n: usize) -> Range<usize> {
    len * i / n..len * (i + 1) / n
}

/// The rank that owns the block of token `index` in a striped context.
pub fn owner(index: usize, ranks: usize) -> usize {
    index / BLOCK_TOKENS % ranks
}

/// The tokens of `indices` that belong to `rank` of a striped context, as runs that end with their block
/// where another rank owns the next.
pub fn striped(indices: Range<usize>, rank: usize, ranks: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut start = indices.start;
    while start < indices.end {
        let end = indices.end.min((start / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
        if owner(start, ranks) == rank {
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        start = end;
    }
    runs
}
