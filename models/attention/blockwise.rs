//! Exact attention over the blocks of a context, one block after another:
//! memory grows with queries plus keys, never with their product.

use std::{collections::VecDeque, ops::Range};

use longreel_kernels::attend::{Accumulator, BLOCK_TOKENS, MASK_WORDS, Visible};
use rayon::prelude::*;

use crate::attention::{
    kv_cache::Placed,
    mask::{Mask, Verdict},
    partial::Partial,
};

/// Parts that the keys of a context are dealt to, block by block: block `b` is in
/// lane `b % LANES`.
///
/// A lane is summed in order of place, and lanes are merged by a balanced tree.
/// Whoever holds whole lanes, thread or rank, gives the same bits.
pub const LANES: usize = 16;

/// Rows (queries times heads that share keys) of one task.
const TASK_ROWS: usize = 128;

/// Tasks of a call, at least, before lanes are worked on one after another.
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

impl Heads {
    /// Query heads that share one key-value head.
    pub fn group(self) -> usize {
        self.query / self.key_value
    }
}

/// Queries and the places where they stand.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// `[n, heads, d]`.
    pub q: &'a [f32],
    /// Places of the context, `n` in all, run after run.
    pub runs: &'a [Range<usize>],
}

/// The lane of the block that begins at place `start`.
pub fn lane(start: usize) -> usize {
    start / BLOCK_TOKENS % LANES
}

/// One task: neighbouring queries, for the heads that share one key-value head, over some lanes.
struct Task {
    kv_head: usize,
    /// Number of the first query among all of the call.
    first: usize,
    /// Their places.
    places: Range<usize>,
    lanes: Range<usize>,
}

/// q `[n, heads, d]`, keys in any order → out `[n, heads, d]`, lse `[n, heads]`.
pub fn attend(queries: Queries, heads: Heads, keys: &[Placed], mask: &Mask) -> Partial {
    let n: usize = queries.runs.iter().map(|run| run.len()).sum();
    let by_lane = deal(keys);
    let tasks = tasks(queries.runs, n, heads);
    let mut results: VecDeque<Partial> = tasks
        .par_iter()
        .map(|task| run(task, queries.q, heads, &by_lane, mask))
        .collect();
    let mut whole = Partial::empty(n * heads.query, heads.d);
    for task in tasks.iter().filter(|task| task.lanes.start == 0) {
        let parts = LANES / task.lanes.len();
        let merged = Partial::merge_tree(results.drain(..parts).collect());
        place(task, &merged, heads, &mut whole);
    }
    whole
}

/// The blocks of every lane, in order of place.
fn deal(keys: &[Placed]) -> Vec<Vec<&Placed>> {
    let mut lanes = vec![Vec::new(); LANES];
    for placed in keys {
        lanes[lane(placed.start)].push(placed);
    }
    for lane in &mut lanes {
        lane.sort_by_key(|placed| placed.start);
    }
    lanes
}

/// Query blocks of every key-value head; where they are few, every lane is a task of its own,
/// lane after lane.
fn tasks(runs: &[Range<usize>], n: usize, heads: Heads) -> Vec<Task> {
    let step = (TASK_ROWS / heads.group()).max(1);
    let is_few = n.div_ceil(step) * heads.key_value < MIN_TASKS;
    let lanes_per_task = if is_few { 1 } else { LANES };
    let mut tasks = Vec::new();
    let mut before = 0;
    for run in runs {
        for start in run.clone().step_by(step) {
            for kv_head in 0..heads.key_value {
                for lane in (0..LANES).step_by(lanes_per_task) {
                    tasks.push(Task {
                        kv_head,
                        first: before + start - run.start,
                        places: start..run.end.min(start + step),
                        lanes: lane..lane + lanes_per_task,
                    });
                }
            }
        }
        before += run.len();
    }
    tasks
}

/// out `[places, group, d]`, lse `[places, group]` of one task.
fn run(task: &Task, q: &[f32], heads: Heads, lanes: &[Vec<&Placed>], mask: &Mask) -> Partial {
    let rows = gather(task, q, heads);
    let shape = lanes
        .iter()
        .flatten()
        .next()
        .map(|placed| placed.block.shape());
    let Some(shape) = shape else {
        return Partial::empty(rows.len() / heads.d, heads.d);
    };
    let mut state = Accumulator::new(&rows, shape);
    let partials = lanes[task.lanes.clone()].iter().map(|blocks| {
        let visible = blocks
            .iter()
            .map(|placed| (placed, mask.verdict(task.places.clone(), placed.places())));
        let mut seen = visible
            .filter(|(_, verdict)| *verdict != Verdict::Skip)
            .peekable();
        if seen.peek().is_none() {
            return Partial::empty(rows.len() / heads.d, heads.d);
        }
        for (placed, verdict) in seen {
            add(&mut state, task, placed, verdict, heads, mask);
        }
        let (out, lse) = state.take();
        Partial { out, lse }
    });
    Partial::merge_tree(partials.collect())
}

fn add(
    state: &mut Accumulator,
    task: &Task,
    placed: &Placed,
    verdict: Verdict,
    heads: Heads,
    mask: &Mask,
) {
    let mut bits = Vec::new();
    let visible = (verdict == Verdict::Mixed).then(|| {
        bits.resize(task.places.len() * MASK_WORDS, 0);
        for (query, bits) in task.places.clone().zip(bits.chunks_mut(MASK_WORDS)) {
            mask.bits(query, placed.places(), bits);
        }
        Visible {
            bits: &bits,
            rows_per_mask: heads.group(),
        }
    });
    state.add(&placed.block, task.kv_head, placed.len, visible);
}

/// q `[n, heads, d]` → rows `[places, group, d]` of the task.
fn gather(task: &Task, q: &[f32], heads: Heads) -> Vec<f32> {
    let share =
        task.kv_head * heads.group() * heads.d..(task.kv_head + 1) * heads.group() * heads.d;
    let tokens = q
        .chunks_exact(heads.query * heads.d)
        .skip(task.first)
        .take(task.places.len());
    tokens
        .flat_map(|token| token[share.clone()].iter().copied())
        .collect()
}

/// Puts the rows of a task where they belong in those of the whole call.
fn place(task: &Task, result: &Partial, heads: Heads, whole: &mut Partial) {
    let group = heads.group();
    let rows = result
        .out
        .chunks_exact(group * heads.d)
        .zip(result.lse.chunks_exact(group));
    for (query, (out, lse)) in (task.first..).zip(rows) {
        let row = query * heads.query + task.kv_head * group;
        whole.out[row * heads.d..(row + group) * heads.d].copy_from_slice(out);
        whole.lse[row..row + group].copy_from_slice(lse);
    }
}
