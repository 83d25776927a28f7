//! Exact attention over keys that several ranks hold: each attends to the keys it has
//! at hand, and partial results are merged.
//!
//! Either keys and values are passed round the ring (RingAttention, arXiv 2310.01889), or
//! queries are sent to every rank, which returns partial results (pass-Q of arXiv
//! 2411.01783); [`traveller`] chooses whichever moves fewer bytes. The single query of a
//! decode step is the second case with one rank asking.
//!
//! Results are merged in order of rank by [`Partial::merge_strided`], so that for a
//! striped context they equal those of one rank to the bit, if the ranks divide the lanes
//! ([`super::blockwise::lanes`]).

use std::{ops::Range, time::Instant};

use serde::Serialize;

use crate::{
    attention::{
        blockwise::{Heads, Queries, attend},
        kv_cache::{BLOCK_TOKENS, KvShape, PositionedBlock},
        link::{Failure, Link, Message},
        mask::Mask,
        partial::Partial,
    },
    error::{Error, Kind, Result},
};

/// What is sent between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traveller {
    /// Keys and values, passed round the ring.
    Keys,
    /// Queries to every rank, partial results back.
    Queries,
}

/// Messages of one rank, and how long it waited for others.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Traffic {
    /// Number of ranks.
    pub ranks: usize,
    /// Messages sent.
    pub messages: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Seconds spent on attention.
    pub attending_s: f64,
    /// Seconds spent waiting for other ranks' messages.
    pub waiting_s: f64,
}

/// One rank's link, with counters.
pub struct Ring {
    link: Box<dyn Link>,
    traffic: Traffic,
}

/// One step of a ring that passes keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// The rank whose keys are attended to in this step.
    pub source: usize,
    /// The rank to which the keys at hand are sent meanwhile; none in the last step.
    pub to: Option<usize>,
    /// The rank from which the keys of the next step come.
    pub from: Option<usize>,
}

/// The steps of `rank`: its own keys first, then its predecessor's, and so on.
pub fn schedule(rank: usize, ranks: usize) -> Vec<Exchange> {
    let step = |s: usize| {
        let is_last = s + 1 == ranks;
        Exchange {
            source: (rank + ranks - s) % ranks,
            to: (!is_last).then_some((rank + 1) % ranks),
            from: (!is_last).then_some((rank + ranks - 1) % ranks),
        }
    };
    (0..ranks).map(step).collect()
}

/// Whichever moves fewer bytes for `queries` queries (the most of any rank) over a context of `len` tokens.
///
/// Keys: each rank passes on `⌈blocks / ranks⌉` blocks, `ranks − 1` times. Queries: it sends its own to
/// `ranks − 1` others and receives as many partial results (out and LSE, f32).
pub fn traveller(
    heads: Heads,
    shape: KvShape,
    len: usize,
    queries: usize,
    ranks: usize,
) -> Traveller {
    let blocks = len.div_ceil(BLOCK_TOKENS).div_ceil(ranks);
    // The factor `ranks − 1` is common to both and left out.
    let key_bytes = blocks * shape.block_bytes();
    let query_bytes = 4 * queries * heads.query * (2 * heads.d + 1);
    if key_bytes <= query_bytes {
        Traveller::Keys
    } else {
        Traveller::Queries
    }
}

impl Ring {
    /// A ring over `link`.
    pub fn new(link: Box<dyn Link>) -> Self {
        let traffic = Traffic {
            ranks: link.ranks(),
            ..Traffic::default()
        };
        Self { link, traffic }
    }

    /// Which rank this is.
    pub fn rank(&self) -> usize {
        self.link.rank()
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.link.ranks()
    }

    /// The counters so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// [`Link::send`], counted.
    ///
    /// # Errors
    /// As [`Link::send`]; with kind and message of a rank that failed, where it sent them.
    pub fn send(&mut self, to: usize, message: Message) -> Result<()> {
        self.traffic.messages += 1;
        self.traffic.bytes += message.bytes() as u64;
        let sent = self.link.send(to, message);
        sent.map_err(|error| self.last_words(to).unwrap_or(error))
    }

    /// Why a rank that accepts no more messages has failed, if it said so.
    fn last_words(&mut self, rank: usize) -> Option<Error> {
        while let Ok(message) = self.link.receive(rank) {
            if let Some(failure) = message.failure {
                return Some(self.failed(rank, failure));
            }
        }
        None
    }

    fn failed(&self, rank: usize, failure: Failure) -> Error {
        let rank = format!("rank {rank} of {}", self.ranks());
        Error::new(failure.kind, failure.message).doing(rank)
    }

    /// [`Link::receive`], timed.
    ///
    /// # Errors
    /// As [`Link::receive`], and with kind and message of a rank that failed.
    pub fn receive(&mut self, from: usize) -> Result<Message> {
        let start = Instant::now();
        let message = self.wait(from);
        self.traffic.waiting_s += start.elapsed().as_secs_f64();
        message
    }

    /// [`Ring::receive`], not timed: a pause between commands does not count as waiting.
    pub fn wait(&mut self, from: usize) -> Result<Message> {
        let message = self.link.receive(from)?;
        match message.failure {
            Some(failure) => Err(self.failed(from, failure)),
            None => Ok(message),
        }
    }

    /// Tells all other ranks that this one has failed; ranks that are gone are skipped.
    pub fn fail(&mut self, error: &Error) {
        let own = self.rank();
        for rank in (0..self.ranks()).filter(|&rank| rank != own) {
            if let Err(_gone) = self.send(rank, Message::failure(error)) {}
        }
    }

    /// q `[n, heads, d]` of this rank, keys of this rank → out `[n, heads, d]`, lse `[n, heads]` over the keys of all.
    ///
    /// `runs` are the token indices of every rank's queries, this rank's included; every rank calls this
    /// with the same `traveller` and mask.
    ///
    /// # Errors
    /// `Network` when another rank is lost; `Internal` when one sends something else.
    pub fn attend(
        &mut self,
        traveller: Traveller,
        q: &[f32],
        runs: &[Vec<Range<usize>>],
        heads: Heads,
        keys: &[PositionedBlock],
        mask: &Mask,
    ) -> Result<Partial> {
        let own = runs.get(self.rank()).ok_or_else(|| {
            Error::new(Kind::Internal, format!("queries of {} ranks", runs.len()))
        })?;
        let queries = Queries { q, runs: own };
        match traveller {
            Traveller::Keys => self.pass_keys(queries, heads, keys, mask),
            Traveller::Queries => self.pass_queries(queries, runs, heads, keys, mask),
        }
    }

    /// Passes keys: the next exchange is posted before attending to the keys at hand.
    fn pass_keys(
        &mut self,
        queries: Queries,
        heads: Heads,
        keys: &[PositionedBlock],
        mask: &Mask,
    ) -> Result<Partial> {
        let n = queries.count();
        let mut partials = vec![Partial::empty(n * heads.query, heads.d); self.ranks()];
        let mut at_hand = keys.to_vec();
        for exchange in schedule(self.rank(), self.ranks()) {
            if let Some(to) = exchange.to {
                let blocks = at_hand.clone();
                self.send(to, Message::blocks(blocks))?;
            }
            // By source and not in order of arrival: the merge must not depend on the rank.
            partials[exchange.source] = self.attend_here(queries, heads, &at_hand, mask);
            if let Some(from) = exchange.from {
                at_hand = self.receive(from)?.blocks;
            }
        }
        Ok(Partial::merge_strided(partials))
    }

    /// Passes queries: a rank first sends its own to all others, then serves theirs.
    fn pass_queries(
        &mut self,
        queries: Queries,
        runs: &[Vec<Range<usize>>],
        heads: Heads,
        keys: &[PositionedBlock],
        mask: &Mask,
    ) -> Result<Partial> {
        let (rank, ranks) = (self.rank(), self.ranks());
        let others = |s: usize| (rank + s) % ranks;
        let asks = |rank: usize| runs.get(rank).is_some_and(|runs| !runs.is_empty());
        // Every rank sends before it receives, and starts with its successor: no rank is waited for by all at
        // once.
        for to in (1..ranks).map(others).filter(|_| asks(rank)) {
            let numbers = queries.q.to_vec();
            self.send(to, Message::numbers(numbers))?;
        }
        let n = queries.count();
        let mut partials = vec![Partial::empty(n * heads.query, heads.d); ranks];
        partials[rank] = self.attend_here(queries, heads, keys, mask);
        for from in (1..ranks).rev().map(others).filter(|&from| asks(from)) {
            let q = self.receive(from)?.numbers;
            let theirs = Queries {
                q: &q,
                runs: &runs[from],
            };
            expect_length(from, q.len(), theirs.count() * heads.query * heads.d)?;
            let Partial { out, lse } = self.attend_here(theirs, heads, keys, mask);
            let numbers = [out, lse].concat();
            self.send(from, Message::numbers(numbers))?;
        }
        for from in (1..ranks).rev().map(others).filter(|_| asks(rank)) {
            let mut out = self.receive(from)?.numbers;
            expect_length(from, out.len(), n * heads.query * (heads.d + 1))?;
            let lse = out.split_off(n * heads.query * heads.d);
            partials[from] = Partial { out, lse };
        }
        Ok(Partial::merge_strided(partials))
    }

    fn attend_here(
        &mut self,
        queries: Queries,
        heads: Heads,
        keys: &[PositionedBlock],
        mask: &Mask,
    ) -> Partial {
        let start = Instant::now();
        let result = attend(queries, heads, keys, mask);
        self.traffic.attending_s += start.elapsed().as_secs_f64();
        result
    }
}

/// # Errors
/// `Internal` when rank `from` sent an unexpected count of numbers.
pub(crate) fn expect_length(from: usize, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::new(
        Kind::Internal,
        format!("rank {from} sent {found} numbers, expected {expected}"),
    ))
}
