//! Who owns which places of a context that several ranks hold together.
//!
//! With a causal mask a query sees the keys before it, so that ranks with late
//! places have more to do. The busiest rank's work over the idlest one's, for
//! queries dealt like keys:
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

/// How places are dealt to ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardLayout {
    /// One run after another.
    Contiguous,
    /// `2 · ranks` runs, of which rank `r` has the `r`-th from either end.
    Zigzag,
    /// Block `b` of 256 places belongs to rank `b % ranks`.
    Striped,
}

impl ShardLayout {
    /// The places of `0..len` that belong to `rank`, as runs in order of place, none empty.
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

/// The `i`-th of `n` parts of `0..len`, as equal as can be.
fn part(len: usize, i: usize, n: usize) -> Range<usize> {
    len * i / n..len * (i + 1) / n
}

/// Which rank owns the block that holds `place`, of a striped context.
pub fn owner(place: usize, ranks: usize) -> usize {
    place / BLOCK_TOKENS % ranks
}

/// The places of `places` that belong to `rank` of a striped context, as runs that end with their block
/// where another rank owns the next.
pub fn striped(places: Range<usize>, rank: usize, ranks: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut start = places.start;
    while start < places.end {
        let end = places.end.min((start / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
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
