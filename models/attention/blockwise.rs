//! Exact attention over the blocks of a context, one block after another:
//! memory grows with queries plus keys, never with their product.

use std::{cell::RefCell, ops::Range, sync::Arc};

use longreel_kernels::attend::{
    Accumulator, BLOCK_TOKENS, KvDtype, KvShape, MASK_WORDS, PackedBlock, Visible,
};
use rayon::prelude::*;

use crate::{
    attention::{
        kv_cache::PositionedBlock,
        mask::{Mask, Verdict},
        partial::Partial,
    },
    error::{Error, Kind, Result},
};

/// The most lanes that the keys of one query are summed in; a power of two.
const MAX_LANES: usize = 16;

/// Rows (queries times heads that share keys) of one task; a power of two, at most [`BLOCK_TOKENS`].
const TASK_ROWS: usize = 256;

/// With fewer tasks than this, the lanes of a task run on several threads.
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

/// Queries and their token indices.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// `[n, heads, d]`.
    pub q: &'a [f32],
    /// Token indices in the context, `n` in all, run after run.
    pub runs: &'a [Range<usize>],
}

impl Queries<'_> {
    /// Number of queries.
    pub fn count(&self) -> usize {
        self.runs.iter().map(ExactSizeIterator::len).sum()
    }
}

/// The number of lanes in which the keys of the query at `index` are summed: block `b` of the context
/// is in lane `b % lanes`, a lane is summed in order of index, and lanes are merged by
/// [`Partial::merge_strided`].
///
/// It follows from the index alone. Ranks that own the blocks `b % ranks` hold
/// whole lanes if their number divides the number of lanes: any such number of ranks, and any
/// number of threads, gives the same bits.
pub fn lanes(index: usize) -> usize {
    // Short contexts in few lanes, as every lane costs a merge; 32K tokens and more in many, for more
    // threads.
    match index / BLOCK_TOKENS {
        0..128 => 4,
        _ => MAX_LANES,
    }
}

/// Adjacent queries, for the query heads that share one key-value head.
struct QueryGroup {
    kv_head: usize,
    /// Number of the first query within the call.
    first: usize,
    /// Their token indices.
    indices: Range<usize>,
}

/// One task: its queries, and the slices for the result of each: out `[group, d]`, lse `[group]`.
struct Task<'a> {
    asked: QueryGroup,
    results: Vec<(&'a mut [f32], &'a mut [f32])>,
}

/// What all tasks have in common.
#[derive(Clone, Copy)]
struct Call<'a> {
    q: &'a [f32],
    heads: Heads,
    shape: KvShape,
    keys: &'a [PositionedBlock],
    mask: &'a Mask<'a>,
}

/// q `[n, heads, d]`, keys in order of index → out `[n, heads, d]`, lse `[n, heads]`.
pub fn attend(queries: Queries, heads: Heads, keys: &[PositionedBlock], mask: &Mask) -> Partial {
    let mut whole = Partial::empty(queries.count() * heads.query, heads.d);
    let Some(placed) = keys.first() else {
        return whole;
    };
    let call = Call {
        q: queries.q,
        heads,
        shape: placed.block.shape(),
        keys,
        mask,
    };
    let tasks = tasks(queries.runs, heads, &mut whole);
    let are_few = tasks.len() < MIN_TASKS;
    // The last queries attend to the most keys: started first, they leave small tasks for the end.
    let largest_first = tasks.into_par_iter().rev().with_max_len(1);
    largest_first.for_each(|task| task.run(call, are_few));
    whole
}

/// keys, values `[n, kv_heads, d]` → blocks of f32 with token indices from 0 on.
///
/// # Errors
/// `TooLarge` when memory is exhausted.
pub fn blocks_of(heads: Heads, keys: &[f32], values: &[f32]) -> Result<Vec<PositionedBlock>> {
    let shape = KvShape {
        kv_heads: heads.key_value,
        d: heads.d,
        dtype: KvDtype::F32,
    };
    let width = heads.key_value * heads.d;
    let no_memory = || Error::new(Kind::TooLarge, "no memory for keys and values");
    let blocks = keys
        .chunks(BLOCK_TOKENS * width)
        .zip(values.chunks(BLOCK_TOKENS * width));
    let placed = (0..)
        .step_by(BLOCK_TOKENS)
        .zip(blocks)
        .map(|(start, (keys, values))| {
            let mut block = PackedBlock::try_new(shape).ok_or_else(no_memory)?;
            block.write(0, keys, values);
            Ok(PositionedBlock {
                start,
                len: keys.len() / width,
                block: Arc::new(block),
            })
        });
    placed.collect()
}

/// Groups of queries for every key-value head. They end at multiples of a fixed step, whatever the runs.
fn tasks<'a>(runs: &[Range<usize>], heads: Heads, whole: &'a mut Partial) -> Vec<Task<'a>> {
    let group = heads.group();
    let step = (TASK_ROWS / group.next_power_of_two()).max(1);
    let out = whole.out.chunks_exact_mut(group * heads.d);
    let mut results = out.zip(whole.lse.chunks_exact_mut(group));
    let mut tasks = Vec::new();
    let mut first = 0;
    for run in runs {
        let mut start = run.start;
        while start < run.end {
            // Aligned to `step`, so that a query's group does not depend on where its run begins.
            let indices = start..run.end.min((start / step + 1) * step);
            let mut of_heads: Vec<Vec<_>> = (0..heads.key_value).map(|_| Vec::new()).collect();
            for _ in indices.clone() {
                let of_query = of_heads.iter_mut().zip(&mut results);
                of_query.for_each(|(of_head, result)| of_head.push(result));
            }
            let task = |(kv_head, results)| {
                let indices = indices.clone();
                let asked = QueryGroup {
                    kv_head,
                    first,
                    indices,
                };
                Task { asked, results }
            };
            tasks.extend(of_heads.into_iter().enumerate().map(task));
            first += indices.len();
            start = indices.end;
        }
    }
    tasks
}

impl Task<'_> {
    /// Where there are few tasks, the lanes of each run on several threads.
    fn run(self, call: Call, are_few: bool) {
        // All queries of a group have the same number of lanes: groups never cross a block.
        let lanes = lanes(self.asked.indices.start);
        if are_few {
            let of_lane =
                |lane| WORKSPACE.with_borrow_mut(|work| work.sum(call, &self.asked, lane, lanes));
            let partials = (0..lanes).into_par_iter().with_max_len(1).map(of_lane);
            let merged = Partial::merge_strided(partials.collect());
            self.put(&merged);
        } else {
            WORKSPACE.with_borrow_mut(|work| {
                // The same tree on one thread, so that the bits do not depend on `are_few`.
                let merged = work.sum(call, &self.asked, 0, 1);
                self.put(&merged);
                work.spare.push(merged);
            });
        }
    }

    /// Copies out `[queries, group, d]`, lse `[queries, group]` to the task's slices.
    fn put(self, merged: &Partial) {
        let (mut out, mut lse) = (&*merged.out, &*merged.lse);
        for (to_out, to_lse) in self.results {
            let (of_query, later) = out.split_at(to_out.len());
            to_out.copy_from_slice(of_query);
            out = later;
            let (of_query, later) = lse.split_at(to_lse.len());
            to_lse.copy_from_slice(of_query);
            lse = later;
        }
    }
}

/// Buffers that a thread reuses from task to task.
#[derive(Default)]
struct Workspace {
    /// `[queries, group, d]`.
    rows: Vec<f32>,
    state: Option<Accumulator>,
    spare: Vec<Partial>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

impl Workspace {
    /// out `[queries, group, d]`, lse `[queries, group]` over the lanes `lane`, `lane + step`, and so on.
    fn sum(&mut self, call: Call, asked: &QueryGroup, lane: usize, step: usize) -> Partial {
        gather(call, asked, &mut self.rows);
        let begun = || Accumulator::new(&[], call.shape);
        let state = self.state.get_or_insert_with(begun);
        state.restart(&self.rows, call.shape);
        let lanes = KeyLanes {
            call,
            asked,
            n: lanes(asked.indices.start),
        };
        lanes.sum(state, &mut self.spare, lane, step)
    }
}

/// The lanes in which the keys of a task are summed.
struct KeyLanes<'a> {
    call: Call<'a>,
    asked: &'a QueryGroup,
    n: usize,
}

impl KeyLanes<'_> {
    /// The merge of the lanes `lane`, `lane + step`, … in the tree of [`Partial::merge_strided`], holding
    /// no more results at once than the depth of the tree.
    fn sum(
        &self,
        state: &mut Accumulator,
        spare: &mut Vec<Partial>,
        lane: usize,
        step: usize,
    ) -> Partial {
        if step == self.n {
            self.add_lane(state, lane);
            let mut partial = spare.pop().unwrap_or_else(|| Partial::empty(0, 0));
            state.take_into(&mut partial.out, &mut partial.lse);
            return partial;
        }
        let mut lower = self.sum(state, spare, lane, 2 * step);
        let upper = self.sum(state, spare, lane + step, 2 * step);
        Partial::merge_into(&mut lower.out, &mut lower.lse, &upper.out, &upper.lse);
        spare.push(upper);
        lower
    }

    /// Adds the visible keys of one lane, in order of index.
    fn add_lane(&self, state: &mut Accumulator, lane: usize) {
        let Call { keys, mask, .. } = self.call;
        let of_lane = |placed: &&PositionedBlock| placed.start / BLOCK_TOKENS % self.n == lane;
        let verdict = |placed| {
            let indices = self.asked.indices.clone();
            (
                placed,
                mask.verdict(indices, PositionedBlock::range(placed)),
            )
        };
        let seen = |(_, verdict): &(&PositionedBlock, Verdict)| *verdict != Verdict::Skip;
        let mut seen = keys
            .iter()
            .filter(of_lane)
            .map(verdict)
            .filter(seen)
            .peekable();
        while let Some((placed, verdict)) = seen.next() {
            let next = seen.peek().map(|(next, _)| &*next.block);
            self.add(state, placed, verdict, next);
        }
    }

    fn add(
        &self,
        state: &mut Accumulator,
        placed: &PositionedBlock,
        verdict: Verdict,
        next: Option<&PackedBlock>,
    ) {
        let QueryGroup {
            kv_head, indices, ..
        } = self.asked;
        let mut bits = Vec::new();
        let visible = (verdict == Verdict::Mixed).then(|| {
            bits.resize(indices.len() * MASK_WORDS, 0);
            for (query, bits) in indices.clone().zip(bits.chunks_mut(MASK_WORDS)) {
                self.call.mask.bits(query, placed.range(), bits);
            }
            Visible {
                bits: &bits,
                rows_per_mask: self.call.heads.group(),
            }
        });
        state.add(&placed.block, *kv_head, placed.len, visible, next);
    }
}

/// q `[n, heads, d]` → rows `[queries, group, d]`.
fn gather(call: Call, asked: &QueryGroup, rows: &mut Vec<f32>) {
    let heads = call.heads;
    let width = heads.group() * heads.d;
    let share = asked.kv_head * width..(asked.kv_head + 1) * width;
    let tokens = call
        .q
        .chunks_exact(heads.query * heads.d)
        .skip(asked.first)
        .take(asked.indices.len());
    rows.clear();
    tokens.for_each(|token| rows.extend_from_slice(&token[share.clone()]));
}
