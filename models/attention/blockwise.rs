//! Exact attention over the blocks of a context, one block after another:
//! memory grows with queries plus keys, never with their product.

use std::{ops::Range, sync::Arc};

use longreel_kernels::attend::Accumulator;
use rayon::prelude::*;

use crate::attention::{
    kv_cache::{BLOCK_TOKENS, KvBlock},
    mask::{Mask, Verdict},
    partial::Partial,
};

/// Rows (queries times heads that share keys) of one task.
const TASK_ROWS: usize = 128;

/// Tasks of a call over a long context, at least: the split decides the order of
/// sums, so it follows from the shapes and never from the number of threads.
const MIN_TASKS: usize = 64;

/// Query heads, key-value heads, and channels of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads; a multiple of `key_value`.
    pub query: usize,
    /// Key and value heads.
    pub key_value: usize,
    /// Channels of one head.
    pub d: usize,
}

/// The keys of one layer: blocks, of which the first `len` tokens are filled.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// Oldest first.
    pub blocks: &'a [Arc<KvBlock>],
    /// Tokens held.
    pub len: usize,
}

/// One task: some queries of the heads that share one key-value head, over some of the blocks.
struct Task {
    kv_head: usize,
    /// Which queries of the call.
    queries: Range<usize>,
    /// Which blocks.
    blocks: Range<usize>,
}

/// q `[n, heads, d]` → out `[n, heads, d]`, lse `[n, heads]`; query `i` stands at place `first + i` of the context.
pub fn attend(q: &[f32], first: usize, heads: Heads, keys: Keys, mask: &Mask) -> Partial {
    let n = q.len() / (heads.query * heads.d).max(1);
    let tasks = tasks(n, heads, keys.blocks.len());
    let results: Vec<Partial> = tasks
        .par_iter()
        .map(|task| run(task, q, first, heads, keys, mask))
        .collect();
    let mut whole = Partial::empty(n * heads.query, heads.d);
    for (task, result) in tasks.iter().zip(results) {
        place(task, result, heads, &mut whole);
    }
    whole
}

/// Query blocks of every key-value head; the blocks are dealt to several tasks where queries are too few to keep many threads busy.
fn tasks(n: usize, heads: Heads, n_blocks: usize) -> Vec<Task> {
    let group = heads.query / heads.key_value;
    let step = (TASK_ROWS / group).max(1);
    let whole = n.div_ceil(step) * heads.key_value;
    let splits = MIN_TASKS.div_ceil(whole.max(1));
    let span = n_blocks.div_ceil(splits).max(1);
    let mut tasks = Vec::new();
    for start in (0..n).step_by(step) {
        for kv_head in 0..heads.key_value {
            for block in (0..n_blocks).step_by(span) {
                tasks.push(Task {
                    kv_head,
                    queries: start..(start + step).min(n),
                    blocks: block..(block + span).min(n_blocks),
                });
            }
        }
    }
    tasks
}

fn run(task: &Task, q: &[f32], first: usize, heads: Heads, keys: Keys, mask: &Mask) -> Partial {
    let group = heads.query / heads.key_value;
    let mut state = Accumulator::new(gather(task, q, heads), heads.d);
    let queries = first + task.queries.start..first + task.queries.end;
    let mut visible = Vec::new();
    for (index, block) in keys
        .blocks
        .iter()
        .enumerate()
        .take(task.blocks.end)
        .skip(task.blocks.start)
    {
        let start = index * BLOCK_TOKENS;
        let places = start..keys.len.min(start + BLOCK_TOKENS);
        let verdict = mask.verdict(queries.clone(), places.clone());
        if verdict == Verdict::Skip {
            continue;
        }
        let (k, v) = (
            block.keys(task.kv_head, places.len()),
            block.values(task.kv_head, places.len()),
        );
        let shown = (verdict == Verdict::Mixed).then(|| {
            visible.resize(queries.len() * places.len(), false);
            for (query, row) in queries.clone().zip(visible.chunks_mut(places.len())) {
                mask.row(query, places.clone(), row);
            }
            (visible.as_slice(), group)
        });
        state.add(k, v, shown);
    }
    let (out, lse) = state.finish();
    Partial { out, lse }
}

/// q `[n, heads, d]` → rows `[queries, group, d]` of the task.
fn gather(task: &Task, q: &[f32], heads: Heads) -> Vec<f32> {
    let group = heads.query / heads.key_value;
    let width = heads.query * heads.d;
    let share = task.kv_head * group * heads.d..(task.kv_head + 1) * group * heads.d;
    let tokens = q
        .chunks_exact(width)
        .take(task.queries.end)
        .skip(task.queries.start);
    tokens
        .flat_map(|token| token[share.clone()].iter().copied())
        .collect()
}

/// Merges the task's rows into those of the whole call.
fn place(task: &Task, result: Partial, heads: Heads, whole: &mut Partial) {
    let group = heads.query / heads.key_value;
    let rows = result
        .out
        .chunks_exact(group * heads.d)
        .zip(result.lse.chunks_exact(group));
    for (query, (out, lse)) in task.queries.clone().zip(rows) {
        let row = query * heads.query + task.kv_head * group;
        let target_out = &mut whole.out[row * heads.d..(row + group) * heads.d];
        let target_lse = &mut whole.lse[row..row + group];
        Partial::merge_into(target_out, target_lse, out, lse);
    }
}
