//! Gradients of attention over all blocks of queries and keys, in parallel and
//! the same on any number of threads.
//!
//! A block of queries gathers `dq` over the keys, a block of keys gathers `dk` and
//! `dv` over the queries. Pairs are computed in waves: in wave `r` block `i` of the
//! queries meets block `i + r` of the keys, so no two tasks write the same block
//! and every sum has a fixed order.

use std::{mem::take, ops::Range};

use longreel_kernels::{
    attend::{BLOCK_TOKENS, MASK_WORDS, Visible},
    attend_backward::{self, attend_backward},
};
use rayon::prelude::*;

use crate::{
    attention::{
        blockwise::Heads,
        mask::{Mask, Verdict},
    },
    training::batch_mask::BatchMask,
};

/// Rows (queries times heads that share keys) of one block.
const BLOCK_ROWS: usize = 256;

/// A part of the queries of every row of a batch, and the gradients of their outputs.
pub struct QuerySide<'a> {
    /// Token indices, run after run.
    pub runs: &'a [Range<usize>],
    /// `[rows, kv_heads, t, group, d]`.
    pub q: &'a [f32],
    /// `[rows, kv_heads, t, group, d]`.
    pub d_out: &'a [f32],
    /// `[rows, kv_heads, t, group]`.
    pub lse: &'a [f32],
    /// `[rows, kv_heads, t, group]`: sums of `d_out · out`.
    pub delta: &'a [f32],
}

/// A part of the keys of every row of a batch.
#[derive(Clone, Copy)]
pub struct KeySide<'a> {
    /// Token indices, run after run.
    pub runs: &'a [Range<usize>],
    /// `[rows, kv_heads, s, d]`.
    pub k: &'a [f32],
    /// `[rows, kv_heads, s, d]`.
    pub v: &'a [f32],
}

/// Gradients that are accumulated into.
pub struct Gradients<'a> {
    /// `[rows, kv_heads, t, group, d]`.
    pub dq: &'a mut [f32],
    /// `[rows, kv_heads, s, d]`.
    pub dk: &'a mut [f32],
    /// `[rows, kv_heads, s, d]`.
    pub dv: &'a mut [f32],
}

/// Adjacent tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBlock {
    /// Their token indices in the sequence.
    pub indices: Range<usize>,
    /// Their numbers among the tokens of this side.
    pub tokens: Range<usize>,
}

/// Cuts runs into blocks that end at multiples of `step`, or where a run ends.
pub fn cut(runs: &[Range<usize>], step: usize) -> Vec<TokenBlock> {
    let mut blocks = Vec::new();
    let mut first = 0;
    for run in runs {
        let mut start = run.start;
        while start < run.end {
            let end = run.end.min((start / step + 1) * step);
            blocks.push(TokenBlock {
                indices: start..end,
                tokens: first..first + (end - start),
            });
            (first, start) = (first + (end - start), end);
        }
    }
    blocks
}

/// One pair of blocks of one head, with the gradients that it alone writes during its wave.
struct PairTask<'a> {
    /// `row · kv_heads + kv_head`.
    unit: usize,
    query: usize,
    key: usize,
    mask: Mask<'a>,
    is_mixed: bool,
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// All pairs of query and key blocks.
struct BlockPairs<'a> {
    heads: Heads,
    queries: &'a QuerySide<'a>,
    keys: KeySide<'a>,
    query_blocks: Vec<TokenBlock>,
    key_blocks: Vec<TokenBlock>,
}

/// Adds to dq, dk, dv of a batch for every pair that `mask` makes visible.
pub fn add_gradients(
    heads: Heads,
    mask: &BatchMask,
    queries: &QuerySide,
    keys: KeySide,
    gradients: Gradients,
) {
    let step = (BLOCK_ROWS / heads.group().next_power_of_two()).max(1);
    let pairs = BlockPairs {
        heads,
        queries,
        keys,
        query_blocks: cut(queries.runs, step),
        key_blocks: cut(keys.runs, BLOCK_TOKENS),
    };
    let units = mask.rows() * heads.key_value;
    let width = heads.group() * heads.d;
    let mut dq = split(gradients.dq, units, &pairs.query_blocks, width);
    let mut dk = split(gradients.dk, units, &pairs.key_blocks, heads.d);
    let mut dv = split(gradients.dv, units, &pairs.key_blocks, heads.d);
    let (nq, nk) = (pairs.query_blocks.len(), pairs.key_blocks.len());
    for wave in 0..nq.max(nk) {
        let mut tasks = Vec::new();
        for (row, query, key, verdict) in pairs.wave(mask, wave) {
            for unit in row * heads.key_value..(row + 1) * heads.key_value {
                tasks.push(PairTask {
                    unit,
                    query,
                    key,
                    mask: mask.of_row(row),
                    is_mixed: verdict == Verdict::Mixed,
                    // Taken out for the wave and put back after it: the borrow checker cannot see that waves
                    // never overlap.
                    dq: take(&mut dq[unit * nq + query]),
                    dk: take(&mut dk[unit * nk + key]),
                    dv: take(&mut dv[unit * nk + key]),
                });
            }
        }
        tasks.par_iter_mut().for_each(|task| pairs.run(task));
        for task in tasks {
            dq[task.unit * nq + task.query] = task.dq;
            dk[task.unit * nk + task.key] = task.dk;
            dv[task.unit * nk + task.key] = task.dv;
        }
    }
}

/// numbers `[units, tokens, width]` → `[units * blocks]` parts, `[tokens of the block, width]` each.
fn split<'a>(
    numbers: &'a mut [f32],
    units: usize,
    blocks: &[TokenBlock],
    width: usize,
) -> Vec<&'a mut [f32]> {
    let mut rest = numbers;
    let mut parts = Vec::with_capacity(units * blocks.len());
    for block in (0..units).flat_map(|_| blocks) {
        let part = rest.split_off_mut(..block.tokens.len() * width);
        parts.push(part.unwrap_or_default());
    }
    parts
}

impl BlockPairs<'_> {
    /// Row, query block, key block and verdict of a wave's visible pairs.
    fn wave(
        &self,
        mask: &BatchMask,
        wave: usize,
    ) -> impl Iterator<Item = (usize, usize, usize, Verdict)> {
        let (nq, nk) = (self.query_blocks.len(), self.key_blocks.len());
        let pairs = (0..nq).map(move |i| (i, (i + wave) % nq.max(nk)));
        let pairs = pairs.filter(move |&(_, j)| j < nk);
        let every = (0..mask.rows()).flat_map(move |row| pairs.clone().map(move |p| (row, p)));
        every.filter_map(|(row, (i, j))| {
            let (query, key) = (&self.query_blocks[i].indices, &self.key_blocks[j].indices);
            let verdict = mask.of_row(row).verdict(query.clone(), key.clone());
            (verdict != Verdict::Skip).then_some((row, i, j, verdict))
        })
    }

    fn run(&self, task: &mut PairTask) {
        let (query, key) = (&self.query_blocks[task.query], &self.key_blocks[task.key]);
        let group = self.heads.group();
        let rows = attend_backward::QueryRows {
            q: self.query_part(self.queries.q, task, group * self.heads.d),
            d_out: self.query_part(self.queries.d_out, task, group * self.heads.d),
            lse: self.query_part(self.queries.lse, task, group),
            delta: self.query_part(self.queries.delta, task, group),
        };
        let keys = attend_backward::Keys {
            k: self.key_part(self.keys.k, task),
            v: self.key_part(self.keys.v, task),
        };
        let mut bits = Vec::new();
        let visible = task.is_mixed.then(|| {
            bits.resize(query.indices.len() * MASK_WORDS, 0);
            for (index, bits) in query.indices.clone().zip(bits.chunks_mut(MASK_WORDS)) {
                task.mask.bits(index, key.indices.clone(), bits);
            }
            Visible {
                bits: &bits,
                rows_per_mask: group,
            }
        });
        let gradients = attend_backward::HeadGradients {
            dq: task.dq,
            dk: task.dk,
            dv: task.dv,
        };
        attend_backward(self.heads.d, rows, keys, visible, gradients);
    }

    fn query_part<'a>(&self, numbers: &'a [f32], task: &PairTask, width: usize) -> &'a [f32] {
        let tokens: usize = self.queries.runs.iter().map(Range::len).sum();
        part(
            numbers,
            task.unit * tokens,
            &self.query_blocks[task.query],
            width,
        )
    }

    fn key_part<'a>(&self, numbers: &'a [f32], task: &PairTask) -> &'a [f32] {
        let tokens: usize = self.keys.runs.iter().map(Range::len).sum();
        part(
            numbers,
            task.unit * tokens,
            &self.key_blocks[task.key],
            self.heads.d,
        )
    }
}

/// The numbers of a block, `[tokens, width]`, when its side begins at token `first`.
fn part<'a>(numbers: &'a [f32], first: usize, block: &TokenBlock, width: usize) -> &'a [f32] {
    let tokens = first + block.tokens.start..first + block.tokens.end;
    &numbers[tokens.start * width..tokens.end * width]
}

/// out, d_out `[n, d]` → delta `[n]`: `Σ out · d_out` per row.
pub fn delta(out: &[f32], d_out: &[f32], d: usize) -> Vec<f32> {
    let rows = out.chunks_exact(d).zip(d_out.chunks_exact(d));
    let dot = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| a * b).sum();
    rows.map(dot).collect()
}

/// x `[rows, t, kv_heads, width]` → `[rows, kv_heads, t, width]`.
pub fn head_major(x: &[f32], t: usize, kv_heads: usize, width: usize) -> Vec<f32> {
    exchange(x, t, kv_heads, width)
}

/// x `[rows, kv_heads, t, width]` → `[rows, t, kv_heads, width]`.
pub fn token_major(x: &[f32], t: usize, kv_heads: usize, width: usize) -> Vec<f32> {
    exchange(x, kv_heads, t, width)
}

/// x `[rows, a, b, width]` → `[rows, b, a, width]`.
fn exchange(x: &[f32], a: usize, b: usize, width: usize) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact((a * b * width).max(1)) {
        for (j, i) in (0..b).flat_map(|j| (0..a).map(move |i| (j, i))) {
            let at = (i * b + j) * width;
            y.extend_from_slice(&row[at..at + width]);
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::{TokenBlock, cut, head_major, token_major};

    #[test]
    fn blocks_end_at_multiples_of_the_step_whatever_the_runs() {
        let blocks = cut(&[3..6, 20..29], 4);
        let indices: Vec<_> = blocks.iter().map(|b| b.indices.clone()).collect();
        assert_eq!(indices, [3..4, 4..6, 20..24, 24..28, 28..29]);
        let tokens: Vec<_> = blocks.iter().map(|b| b.tokens.clone()).collect();
        assert_eq!(tokens, [0..1, 1..3, 3..7, 7..11, 11..12]);
        assert_eq!(cut(&[5..5, 7..7], 4), Vec::<TokenBlock>::new());
    }

    #[test]
    fn head_major_and_back_is_the_same() {
        let x: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| i as f32).collect();
        let y = head_major(&x, 3, 4, 5);
        assert_eq!(y[5..10], x[20..25], "the second token of the first head");
        assert_eq!(token_major(&y, 3, 4, 5), x);
    }
}
