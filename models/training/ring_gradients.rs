//! Gradients of attention over keys that several ranks hold (RingAttention, arXiv
//! 2310.01889): keys, values and their gradients are passed round the ring.
//!
//! Each rank keeps its queries. Keys and values are passed on before the rank computes
//! with them; `dk` and `dv` follow once the rank has added its part, and after as many hops
//! as there are ranks they are back. Every sum has a fixed order, so that gradients are
//! the same in every run:
//!
//! ```text
//! step 0   k, v of 0 ──► rank 1     dk, dv of 0 by rank 0          ──► rank 1
//! step 1   k, v of 0 ──► rank 2     dk, dv of 0 by ranks 0, 1      ──► rank 2
//! step 2                            dk, dv of 0 by ranks 0, 1, 2   ──► rank 0
//! ```

use std::{mem::take, ops::Range};

use crate::{
    attention::{
        blockwise::Heads,
        link::Message,
        ring::{Ring, expect_length, schedule},
    },
    error::{Error, Kind, Result},
    training::{
        batch_mask::BatchMask,
        gradients::{Gradients, KeySide, QuerySide, add_gradients, delta, head_major, token_major},
    },
};

/// Which rank holds which tokens of every row of a batch, and the mask: equal on all ranks.
#[derive(Debug, Clone)]
pub struct TokenShards {
    runs: Vec<Vec<Range<usize>>>,
    mask: BatchMask,
}

impl TokenShards {
    /// Token indices of every rank, in order of rank; a rank may have none.
    ///
    /// # Errors
    /// `BadInput` when a run exceeds the tokens of `mask`.
    pub fn new(runs: Vec<Vec<Range<usize>>>, mask: BatchMask) -> Result<Self> {
        let tokens = mask.tokens();
        let fits = |run: &&Range<usize>| run.start <= run.end && run.end <= tokens;
        match runs.iter().flatten().find(|run| !fits(run)) {
            None => Ok(Self { runs, mask }),
            Some(run) => {
                let message = format!("tokens {run:?} of a sequence of {tokens}");
                Err(Error::new(Kind::BadInput, message))
            }
        }
    }

    /// The token indices of every rank.
    pub fn runs(&self) -> &[Vec<Range<usize>>] {
        &self.runs
    }

    /// The mask, over the whole sequence.
    pub fn mask(&self) -> &BatchMask {
        &self.mask
    }

    /// # Errors
    /// `BadInput` when the tokens are distributed over another number of ranks.
    pub(super) fn check_ranks(&self, ranks: usize) -> Result<()> {
        let shards = self.runs.len();
        if shards == ranks {
            return Ok(());
        }
        let message = format!("tokens are distributed over {shards} ranks, expected {ranks}");
        Err(Error::new(Kind::BadInput, message))
    }

    /// Tokens of each row that `rank` holds.
    pub fn tokens(&self, rank: usize) -> usize {
        self.runs
            .get(rank)
            .map_or(0, |runs| runs.iter().map(Range::len).sum())
    }
}

/// One rank's saved activations, and the gradients of its outputs.
#[derive(Debug, Clone, Copy)]
pub struct RankActivations<'a> {
    /// `[rows, n, heads, d]`.
    pub q: &'a [f32],
    /// `[rows, n, kv_heads, d]`.
    pub k: &'a [f32],
    /// `[rows, n, kv_heads, d]`.
    pub v: &'a [f32],
    /// `[rows, n, heads, d]`, over the keys of all ranks.
    pub out: &'a [f32],
    /// `[rows, n, heads]`, over the keys of all ranks.
    pub lse: &'a [f32],
    /// `[rows, n, heads, d]`: the gradient of the outputs.
    pub d_out: &'a [f32],
}

/// q, k, v, out, lse, d_out of this rank's tokens → dq `[rows, n, heads, d]`, dk, dv `[rows, n, kv_heads, d]`,
/// summed over the queries of all ranks. Every rank calls this.
///
/// # Errors
/// `Network` when another rank is lost, `Internal` when one sends something unexpected or lengths do not fit.
/// Keys and values of a rank are one message, which MPI limits to 2 GiB: `TooLarge` beyond.
pub fn ring_gradients(
    ring: &mut Ring,
    heads: Heads,
    shards: &TokenShards,
    kept: RankActivations,
) -> Result<[Vec<f32>; 3]> {
    shards.check_ranks(ring.ranks())?;
    let n = shards.tokens(ring.rank());
    check_lengths(heads, shards.mask.rows() * n, kept)?;
    let (group, kv_heads) = (heads.group(), heads.key_value);
    let by_head = |x: &[f32], width| head_major(x, n, kv_heads, width);
    let mut share = RankQueries {
        heads,
        shards,
        rank: ring.rank(),
        q: by_head(kept.q, group * heads.d),
        d_out: by_head(kept.d_out, group * heads.d),
        lse: by_head(kept.lse, group),
        delta: by_head(&delta(kept.out, kept.d_out, heads.d), group),
        dq: vec![0.0; kept.q.len()],
    };
    let keys = [by_head(kept.k, heads.d), by_head(kept.v, heads.d)].concat();
    let gathered = share.round(ring, keys)?;
    let (dk, dv) = gathered.split_at(gathered.len() / 2);
    Ok([
        token_major(&share.dq, n, kv_heads, group * heads.d),
        token_major(dk, n, kv_heads, heads.d),
        token_major(dv, n, kv_heads, heads.d),
    ])
}

fn check_lengths(heads: Heads, tokens: usize, kept: RankActivations) -> Result<()> {
    let of_queries = tokens * heads.query * heads.d;
    let of_keys = tokens * heads.key_value * heads.d;
    let fits = [kept.q, kept.out, kept.d_out]
        .iter()
        .all(|x| x.len() == of_queries)
        && [kept.k, kept.v].iter().all(|x| x.len() == of_keys)
        && kept.lse.len() == tokens * heads.query;
    if fits {
        return Ok(());
    }
    let message = format!("activations of {tokens} tokens have the wrong length");
    Err(Error::new(Kind::Internal, message))
}

/// The queries of one rank, head by head, and their gradients.
struct RankQueries<'a> {
    heads: Heads,
    shards: &'a TokenShards,
    rank: usize,
    /// `[rows, kv_heads, n, group, d]`.
    q: Vec<f32>,
    d_out: Vec<f32>,
    /// `[rows, kv_heads, n, group]`.
    lse: Vec<f32>,
    delta: Vec<f32>,
    /// `[rows, kv_heads, n, group, d]`.
    dq: Vec<f32>,
}

impl RankQueries<'_> {
    /// Passes keys and values `[2, rows, kv_heads, n, d]` of this rank round the ring → their dk and dv.
    fn round(&mut self, ring: &mut Ring, keys: Vec<f32>) -> Result<Vec<f32>> {
        let (rank, ranks) = (self.rank, ring.ranks());
        let (next, previous) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        let (mut at_hand, mut gathered) = (keys, Vec::new());
        for exchange in schedule(rank, ranks) {
            if let Some(to) = exchange.to {
                ring.send(to, Message::numbers(at_hand.clone()))?;
            }
            gathered = self.gather(exchange.source, &at_hand);
            if exchange.source != rank {
                let before = self.receive(ring, previous, exchange.source)?;
                gathered.iter_mut().zip(before).for_each(|(x, y)| *x += y);
            }
            if ranks > 1 {
                ring.send(next, Message::numbers(take(&mut gathered)))?;
            }
            if let Some(from) = exchange.from {
                at_hand = self.receive(ring, from, (exchange.source + ranks - 1) % ranks)?;
            }
        }
        match ranks {
            1 => Ok(gathered),
            _ => self.receive(ring, previous, rank),
        }
    }

    /// keys and values `[2, rows, kv_heads, s, d]` of `source` → this rank's part of their gradients; adds to dq.
    fn gather(&mut self, source: usize, keys: &[f32]) -> Vec<f32> {
        let mut gathered = vec![0.0; keys.len()];
        let (k, v) = keys.split_at(keys.len() / 2);
        let (dk, dv) = gathered.split_at_mut(keys.len() / 2);
        let queries = QuerySide {
            runs: &self.shards.runs[self.rank],
            q: &self.q,
            d_out: &self.d_out,
            lse: &self.lse,
            delta: &self.delta,
        };
        let runs = &self.shards.runs[source];
        let dq = &mut self.dq;
        add_gradients(
            self.heads,
            &self.shards.mask,
            &queries,
            KeySide { runs, k, v },
            Gradients { dq, dk, dv },
        );
        gathered
    }

    /// Receives from `from` the keys and values of `source`, or their gradients.
    fn receive(&self, ring: &mut Ring, from: usize, source: usize) -> Result<Vec<f32>> {
        let numbers = ring.receive(from)?.numbers;
        let of_a_token = 2 * self.heads.key_value * self.heads.d;
        let expected = self.shards.mask.rows() * self.shards.tokens(source) * of_a_token;
        expect_length(from, numbers.len(), expected)?;
        Ok(numbers)
    }
}
