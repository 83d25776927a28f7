//! Exact attention over the blocks of a context, one block after another:
//! memory grows with queries plus keys, never with their product.

use std::{collections::VecDeque, ops::Range};

use longreel_kernels::attend::{Accumulator, BLOCK_TOKENS, MASK_WORDS, PackedBlock, Visible};
use rayon::prelude::*;

use crate::attention::{
    kv_cache::Placed,
    mask::{Mask, Verdict},
    partial::Partial,
};

/// Most parts that the keys of one query are summed in; a power of two.
const MAX_LANES: usize = 16;

/// Rows (queries times heads that share keys) of one task; a power of two, at most a block.
const TASK_ROWS: usize = 256;

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

impl Queries<'_> {
    /// Number of places.
    pub fn places(&self) -> usize {
        self.runs.iter().map(ExactSizeIterator::len).sum()
    }
}

/// In how many parts the keys of a query at `place` are summed: block `b` of the context
/// is in lane `b % lanes`, a lane is summed in order of place, and lanes are merged by
/// [`Partial::merge_strided`].
///
/// The number follows from the place alone. Ranks that own the blocks `b % ranks` hold
/// whole lanes if their number divides that of lanes: any such number of ranks, like any
/// number of threads, then gives the same bits.
pub fn lanes(place: usize) -> usize {
    match place / BLOCK_TOKENS {
        0..128 => 4,
        _ => MAX_LANES,
    }
}

/// One task: neighbouring queries, for the heads that share one key-value head, over some lanes.
struct Task {
    kv_head: usize,
    /// Number of the first query among all of the call.
    first: usize,
    /// Their places.
    places: Range<usize>,
    /// How many lanes there are, and which of them are summed here.
    n_lanes: usize,
    lanes: Range<usize>,
}

/// q `[n, heads, d]`, keys in order of place → out `[n, heads, d]`, lse `[n, heads]`.
pub fn attend(queries: Queries, heads: Heads, keys: &[Placed], mask: &Mask) -> Partial {
    let n = queries.places();
    let tasks = tasks(queries.runs, n, heads);
    let mut results: VecDeque<Partial> = tasks
        .par_iter()
        .map(|task| run(task, queries.q, heads, keys, mask))
        .collect();
    let mut whole = Partial::empty(n * heads.query, heads.d);
    for task in tasks.iter().filter(|task| task.lanes.start == 0) {
        let parts = task.n_lanes / task.lanes.len();
        let merged = Partial::merge_strided(results.drain(..parts).collect());
        place(task, &merged, heads, &mut whole);
    }
    whole
}

/// Query blocks of every key-value head; where they are few, every lane is a task of its own,
/// lane after lane. Blocks of queries end at fixed places, whatever the runs.
fn tasks(runs: &[Range<usize>], n: usize, heads: Heads) -> Vec<Task> {
    let step = (TASK_ROWS / heads.group().next_power_of_two()).max(1);
    let is_few = n.div_ceil(step) * heads.key_value < MIN_TASKS;
    let mut tasks = Vec::new();
    let mut first = 0;
    for run in runs {
        let mut start = run.start;
        while start < run.end {
            let places = start..run.end.min((start / step + 1) * step);
            let n_lanes = lanes(start);
            let at_once = if is_few { 1 } else { n_lanes };
            for kv_head in 0..heads.key_value {
                for lane in (0..n_lanes).step_by(at_once) {
                    tasks.push(Task {
                        kv_head,
                        first,
                        places: places.clone(),
                        n_lanes,
                        lanes: lane..lane + at_once,
                    });
                }
            }
            first += places.len();
            start = places.end;
        }
    }
    tasks
}

/// out `[places, group, d]`, lse `[places, group]` of one task.
fn run(task: &Task, q: &[f32], heads: Heads, keys: &[Placed], mask: &Mask) -> Partial {
    let rows = gather(task, q, heads);
    let empty = || Partial::empty(rows.len() / heads.d, heads.d);
    let Some(placed) = keys.first() else {
        return empty();
    };
    let mut state = Accumulator::new(&rows, placed.block.shape());
    let partials = task.lanes.clone().map(|lane| {
        let of_lane = |placed: &&Placed| placed.start / BLOCK_TOKENS % task.n_lanes == lane;
        let verdict = |placed| {
            (
                placed,
                mask.verdict(task.places.clone(), Placed::places(placed)),
            )
        };
        let seen = |(_, verdict): &(&Placed, Verdict)| *verdict != Verdict::Skip;
        let mut seen = keys
            .iter()
            .filter(of_lane)
            .map(verdict)
            .filter(seen)
            .peekable();
        if seen.peek().is_none() {
            return empty();
        }
        while let Some((placed, verdict)) = seen.next() {
            let next = seen.peek().map(|(next, _)| &*next.block);
            add(&mut state, task, placed, verdict, heads, mask, next);
        }
        let (out, lse) = state.take();
        Partial { out, lse }
    });
    Partial::merge_strided(partials.collect())
}

fn add(
    state: &mut Accumulator,
    task: &Task,
    placed: &Placed,
    verdict: Verdict,
    heads: Heads,
    mask: &Mask,
    next: Option<&PackedBlock>,
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
    state.add(&placed.block, task.kv_head, placed.len, visible, next);
}

/// q `[n, heads, d]` → rows `[places, group, d]` of the task.
fn gather(task: &Task, q: &[f32], heads: Heads) -> Vec<f32> {
    let share =
        task.kv_head * heads.group() * heads.d..(task.kv_head + 1) * heads.group() * heads.d;
    let tokens = q
        .chunks_exact(heads.query * heads.d)
        .skip(task.first)
        .take(task.places.len());
    let mut rows = Vec::with_capacity(task.places.len() * share.len());
    tokens.for_each(|token| rows.extend_from_slice(&token[share.clone()]));
    rows
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
