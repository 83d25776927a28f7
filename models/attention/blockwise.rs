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

/// Most parts that the keys of one query are summed in; a power of two.
const MAX_LANES: usize = 16;

/// Rows (queries times heads that share keys) of one task; a power of two, at most a block.
const TASK_ROWS: usize = 256;

/// Tasks of a call, at least, before the lanes of each are worked on one after another.
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

/// Neighbouring queries, for the heads that share one key-value head.
struct QueryGroup {
    kv_head: usize,
    /// Number of the first query among all of the call.
    first: usize,
    /// Their places.
    places: Range<usize>,
}

/// One task: what is asked, and where the results of each query belong: out `[group, d]`, lse `[group]`.
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

/// q `[n, heads, d]`, keys in order of place → out `[n, heads, d]`, lse `[n, heads]`.
pub fn attend(queries: Queries, heads: Heads, keys: &[PositionedBlock], mask: &Mask) -> Partial {
    let mut whole = Partial::empty(queries.places() * heads.query, heads.d);
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
    // The last queries see the most keys: begun first, they leave small tasks for the end.
    let largest_first = tasks.into_par_iter().rev().with_max_len(1);
    largest_first.for_each(|task| task.run(call, are_few));
    whole
}

/// keys, values `[n, kv_heads, d]` → blocks of f32 at the places from 0 on.
///
/// # Errors
/// `TooLarge` when memory ends.
pub fn place(heads: Heads, keys: &[f32], values: &[f32]) -> Result<Vec<PositionedBlock>> {
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

/// Blocks of queries for every key-value head. They end at fixed places, whatever the runs.
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
            let places = start..run.end.min((start / step + 1) * step);
            let mut of_heads: Vec<Vec<_>> = (0..heads.key_value).map(|_| Vec::new()).collect();
            for _ in places.clone() {
                let of_query = of_heads.iter_mut().zip(&mut results);
                of_query.for_each(|(of_head, result)| of_head.push(result));
            }
            let task = |(kv_head, results)| {
                let places = places.clone();
                let asked = QueryGroup {
                    kv_head,
                    first,
                    places,
                };
                Task { asked, results }
            };
            tasks.extend(of_heads.into_iter().enumerate().map(task));
            first += places.len();
            start = places.end;
        }
    }
    tasks
}

impl Task<'_> {
    /// Where tasks are few, their lanes are worked on by several threads.
    fn run(self, call: Call, are_few: bool) {
        let lanes = lanes(self.asked.places.start);
        if are_few {
            let of_lane =
                |lane| WORKSPACE.with_borrow_mut(|work| work.sum(call, &self.asked, lane, lanes));
            let partials = (0..lanes).into_par_iter().with_max_len(1).map(of_lane);
            let merged = Partial::merge_strided(partials.collect());
            self.put(&merged);
        } else {
            WORKSPACE.with_borrow_mut(|work| {
                let merged = work.sum(call, &self.asked, 0, 1);
                self.put(&merged);
                work.spare.push(merged);
            });
        }
    }

    /// out `[places, group, d]`, lse `[places, group]` → where they belong.
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

/// What a thread keeps from one task to the next, so that memory is asked for once.
#[derive(Default)]
struct Workspace {
    /// `[places, group, d]`.
    rows: Vec<f32>,
    state: Option<Accumulator>,
    spare: Vec<Partial>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

impl Workspace {
    /// out `[places, group, d]`, lse `[places, group]` over the lanes `lane`, `lane + step`, and so on.
    fn sum(&mut self, call: Call, asked: &QueryGroup, lane: usize, step: usize) -> Partial {
        gather(call, asked, &mut self.rows);
        let begun = || Accumulator::new(&[], call.shape);
        let state = self.state.get_or_insert_with(begun);
        state.restart(&self.rows, call.shape);
        let lanes = KeyLanes {
            call,
            asked,
            n: lanes(asked.places.start),
        };
        lanes.sum(state, &mut self.spare, lane, step)
    }
}

/// The parts that the keys of a task are summed in.
struct KeyLanes<'a> {
    call: Call<'a>,
    asked: &'a QueryGroup,
    n: usize,
}

impl KeyLanes<'_> {
    /// The merge of the lanes `lane`, `lane + step`, … as [`Partial::merge_strided`] does it, holding
    /// no more results at a time than the tree is deep.
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

    /// Adds the keys of one lane that the queries see, in order of place.
    fn add_lane(&self, state: &mut Accumulator, lane: usize) {
        let Call { keys, mask, .. } = self.call;
        let of_lane = |placed: &&PositionedBlock| placed.start / BLOCK_TOKENS % self.n == lane;
        let verdict = |placed| {
            let places = self.asked.places.clone();
            (
                placed,
                mask.verdict(places, PositionedBlock::places(placed)),
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
            kv_head, places, ..
        } = self.asked;
        let mut bits = Vec::new();
        let visible = (verdict == Verdict::Mixed).then(|| {
            bits.resize(places.len() * MASK_WORDS, 0);
            for (query, bits) in places.clone().zip(bits.chunks_mut(MASK_WORDS)) {
                self.call.mask.bits(query, placed.places(), bits);
            }
            Visible {
                bits: &bits,
                rows_per_mask: self.call.heads.group(),
            }
        });
        state.add(&placed.block, *kv_head, placed.len, visible, next);
    }
}

/// q `[n, heads, d]` → rows `[places, group, d]`.
fn gather(call: Call, asked: &QueryGroup, rows: &mut Vec<f32>) {
    let heads = call.heads;
    let width = heads.group() * heads.d;
    let share = asked.kv_head * width..(asked.kv_head + 1) * width;
    let tokens = call
        .q
        .chunks_exact(heads.query * heads.d)
        .skip(asked.first)
        .take(asked.places.len());
    rows.clear();
    tokens.for_each(|token| rows.extend_from_slice(&token[share.clone()]));
}
