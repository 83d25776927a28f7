//! One decoder on several ranks: rank 0 leads, the others serve.
//!
//! All hold the weights, and each its blocks of every context. The leader sends commands
//! (tokens, positions, segments, and changes to contexts since the last one); then every rank runs
//! [`Decoder::forward_share`] for the tokens whose blocks it owns, and the last hidden states
//! return to the leader, which alone samples tokens.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{Device, Tensor};
use rayon::ThreadPool;
use serde::{Deserialize, Serialize};

use crate::{
    attention::{
        kv_cache::{BLOCK_TOKENS, Event, Journal, KvCache, KvDtype, Share},
        link::{Link, Message},
        ring::{Ring, Traffic},
        shard::owner,
    },
    context::vocab::Token,
    error::{Error, Kind, Result},
    llama::{Decoder, Head, Positions, Row, input::count_features},
    spec::DecoderSpec,
};

/// A decoder as generation sees it, on one rank or several.
pub trait Forward {
    /// The decoder's specification.
    fn spec(&self) -> &DecoderSpec;

    /// An empty context.
    fn context(&self, dtype: KvDtype) -> KvCache;

    /// Tokens of a prefill chunk of which every rank computes `per_rank`, but at least one block.
    fn step(&self, per_rank: usize) -> usize;

    /// Appends the rows' tokens to their contexts → hidden state of each row's last token, `[rows, hidden]`.
    ///
    /// # Errors
    /// As [`Decoder::forward`], and `Network` when a rank is lost.
    fn last_hidden(&self, rows: &mut [Row]) -> Result<Tensor>;

    /// hidden `[n, hidden]` → logits `[n, vocabulary]` of one head.
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    fn logits(&self, hidden: &Tensor, head: Head) -> Result<Tensor>;

    /// The leader's traffic so far; `None` for a single rank.
    fn traffic(&self) -> Option<Traffic> {
        None
    }
}

impl Forward for Decoder {
    fn spec(&self) -> &DecoderSpec {
        Decoder::spec(self)
    }

    fn context(&self, dtype: KvDtype) -> KvCache {
        KvCache::new(Decoder::spec(self), dtype)
    }

    fn step(&self, per_rank: usize) -> usize {
        per_rank.max(1)
    }

    fn last_hidden(&self, rows: &mut [Row]) -> Result<Tensor> {
        let lengths: Vec<usize> = rows.iter().map(|row| row.tokens.len()).collect();
        let hidden = self.forward(rows)?;
        let mut end = 0;
        let mut last = Vec::with_capacity(lengths.len());
        for n in lengths {
            end += n;
            last.push(hidden.narrow(0, end - 1, 1)?);
        }
        Ok(Tensor::cat(&last, 0)?)
    }

    fn logits(&self, hidden: &Tensor, head: Head) -> Result<Tensor> {
        Decoder::logits(self, hidden, head)
    }
}

/// A command of the leader.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    /// Replay the events, then append tokens to contexts.
    Forward {
        events: Vec<Event>,
        rows: Vec<Appended>,
    },
    /// The work is done.
    Stop,
}

/// New tokens of one context.
#[derive(Serialize, Deserialize)]
struct Appended {
    context: u64,
    kv_dtype: String,
    /// Length of the context before.
    first: usize,
    tokens: Vec<Token>,
    positions: WirePositions,
    segments: Option<Vec<u32>>,
}

/// [`Positions`] in a command.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WirePositions {
    Line(Vec<u32>),
    Space(Vec<[u32; 3]>),
}

impl From<Positions<'_>> for WirePositions {
    fn from(positions: Positions) -> Self {
        match positions {
            Positions::Line(positions) => Self::Line(positions.to_vec()),
            Positions::Space(positions) => Self::Space(positions.to_vec()),
        }
    }
}

impl WirePositions {
    fn positions(&self) -> Positions<'_> {
        match self {
            Self::Line(positions) => Positions::Line(positions),
            Self::Space(positions) => Positions::Space(positions),
        }
    }
}

/// Rank 0 of a group.
pub struct Leader<'a> {
    decoder: &'a Decoder,
    ring: Mutex<Ring>,
    journal: Journal,
    pool: Option<ThreadPool>,
}

impl<'a> Leader<'a> {
    /// Leads the other ranks of `link`; computes on `pool`, or on rayon's global pool.
    pub fn new(decoder: &'a Decoder, link: Box<dyn Link>, pool: Option<ThreadPool>) -> Self {
        Self {
            decoder,
            ring: Mutex::new(Ring::new(link)),
            journal: Arc::default(),
            pool,
        }
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.ring().ranks()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lead(&self, rows: &mut [Row]) -> Result<Tensor> {
        let mut ring = self.ring();
        for row in &*rows {
            // Checked before the command is sent: an error found by the leader alone must not leave the
            // others waiting.
            self.decoder.check(row)?;
            self.decoder.check_ids(row.tokens)?;
        }
        let led = self.lead_on(&mut ring, rows);
        led.inspect_err(|error| ring.fail(error))
    }

    fn lead_on(&self, ring: &mut Ring, rows: &mut [Row]) -> Result<Tensor> {
        let ends: Vec<usize> = rows
            .iter()
            .map(|r| r.cache.len() + r.tokens.len())
            .collect();
        let features = rows.iter().flat_map(|row| row.features).copied().collect();
        self.tell(ring, &self.command(rows), features)?;
        let hidden = self.decoder.forward_share(rows, ring)?;
        let mut own = last_rows(&hidden, rows, ring.rank(), ring.ranks())?.into_iter();
        let mut last = Vec::new();
        for end in ends {
            match owner(end - 1, ring.ranks()) {
                0 => last.extend(own.next().unwrap_or_default()),
                rank => last.extend(ring.receive(rank)?.numbers),
            }
        }
        let shape = (rows.len(), self.decoder.spec().hidden_size);
        Ok(Tensor::from_vec(last, shape, &Device::Cpu)?)
    }

    fn command(&self, rows: &[Row]) -> Command {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let appended = |row: &Row| Appended {
            context: row.cache.id(),
            kv_dtype: row.cache.dtype().name().to_owned(),
            first: row.cache.len(),
            tokens: row.tokens.to_vec(),
            positions: row.positions.into(),
            segments: row.segments.map(<[u32]>::to_vec),
        };
        Command::Forward {
            events: std::mem::take(&mut *journal),
            rows: rows.iter().map(appended).collect(),
        }
    }

    /// Sends the command and the features of its rows to every other rank.
    fn tell(&self, ring: &mut Ring, command: &Command, features: Vec<f32>) -> Result<()> {
        let header = serde_json::to_string(command)
            .map_err(|e| Error::with_source(Kind::Internal, "write a command for the ranks", e))?;
        for rank in 1..ring.ranks() {
            let message = Message {
                numbers: features.clone(),
                ..Message::words(header.clone())
            };
            ring.send(rank, message)?;
        }
        Ok(())
    }
}

impl Drop for Leader<'_> {
    /// Stops the other ranks; those that are gone are skipped.
    fn drop(&mut self) {
        let mut ring = self.ring();
        let Ok(stop) = serde_json::to_string(&Command::Stop) else {
            return;
        };
        for rank in 1..ring.ranks() {
            if let Err(_gone) = ring.send(rank, Message::words(stop.clone())) {}
        }
    }
}

impl Forward for Leader<'_> {
    fn spec(&self) -> &DecoderSpec {
        self.decoder.spec()
    }

    fn context(&self, dtype: KvDtype) -> KvCache {
        let ring = self.ring();
        let share = Share {
            rank: ring.rank(),
            ranks: ring.ranks(),
        };
        KvCache::shared(
            self.decoder.spec(),
            dtype,
            share,
            Some(self.journal.clone()),
        )
    }

    fn step(&self, per_rank: usize) -> usize {
        // Contexts are striped by block: with fewer tokens some ranks would have none.
        self.ranks().saturating_mul(per_rank.max(BLOCK_TOKENS))
    }

    fn last_hidden(&self, rows: &mut [Row]) -> Result<Tensor> {
        match &self.pool {
            Some(pool) => pool.install(|| self.lead(rows)),
            None => self.lead(rows),
        }
    }

    fn logits(&self, hidden: &Tensor, head: Head) -> Result<Tensor> {
        match &self.pool {
            Some(pool) => pool.install(|| self.decoder.logits(hidden, head)),
            None => self.decoder.logits(hidden, head),
        }
    }

    fn traffic(&self) -> Option<Traffic> {
        Some(self.ring().traffic())
    }
}

/// Obeys the leader until it sends `Stop`.
///
/// # Errors
/// `Network` when a rank is lost, and the decoder's errors; the other ranks are told.
pub fn serve(decoder: &Decoder, link: Box<dyn Link>) -> Result<Traffic> {
    let mut ring = Ring::new(link);
    let served = obey(decoder, &mut ring);
    served.inspect_err(|error| ring.fail(error))?;
    Ok(ring.traffic())
}

fn obey(decoder: &Decoder, ring: &mut Ring) -> Result<()> {
    let mut contexts = HashMap::new();
    loop {
        let message = ring.wait(0)?;
        let command = serde_json::from_str(&message.header);
        let command = command
            .map_err(|e| Error::with_source(Kind::Internal, "read a command of rank 0", e))?;
        match command {
            Command::Stop => return Ok(()),
            Command::Forward { events, rows } => {
                events
                    .into_iter()
                    .for_each(|event| happen(event, &mut contexts));
                follow(decoder, ring, &mut contexts, &rows, &message.numbers)?;
            }
        }
    }
}

fn happen(event: Event, contexts: &mut HashMap<u64, KvCache>) {
    match event {
        Event::Fork { from, to } => {
            if let Some(fork) = contexts.get(&from).map(KvCache::fork) {
                contexts.insert(to, fork);
            }
        }
        Event::Truncate { id, len } => {
            if let Some(context) = contexts.get_mut(&id) {
                context.truncate(len);
            }
        }
        Event::DropFront {
            id,
            keep_sinks,
            blocks,
        } => {
            if let Some(context) = contexts.get_mut(&id) {
                context.drop_front(keep_sinks, blocks);
            }
        }
        Event::Drop { id } => {
            contexts.remove(&id);
        }
    }
}

/// Computes this rank's tokens of the leader's rows and returns the last hidden states that it owns.
fn follow(
    decoder: &Decoder,
    ring: &mut Ring,
    contexts: &mut HashMap<u64, KvCache>,
    appended: &[Appended],
    features: &[f32],
) -> Result<()> {
    let mut caches = Vec::with_capacity(appended.len());
    for row in appended {
        caches.push(take_context(decoder, ring, contexts, row)?);
    }
    let mut features = features;
    let mut rows: Vec<Row> = appended
        .iter()
        .zip(&mut caches)
        .map(|(row, cache)| {
            let own = count_features(&row.tokens) * decoder.spec().feature_width();
            let (own, others) = features.split_at(own.min(features.len()));
            features = others;
            Row {
                tokens: &row.tokens,
                positions: row.positions.positions(),
                segments: row.segments.as_deref(),
                features: own,
                cache,
            }
        })
        .collect();
    let hidden = decoder.forward_share(&mut rows, ring)?;
    for numbers in last_rows(&hidden, &rows, ring.rank(), ring.ranks())? {
        ring.send(0, Message::numbers(numbers))?;
    }
    let ids = appended.iter().map(|row| row.context);
    // After an error the contexts are lost, which is fine: the leader ends the group on the first one.
    contexts.extend(ids.zip(caches));
    Ok(())
}

fn take_context(
    decoder: &Decoder,
    ring: &Ring,
    contexts: &mut HashMap<u64, KvCache>,
    row: &Appended,
) -> Result<KvCache> {
    let out_of_step = |found: &str| {
        let expected = format!("a context of {} tokens", row.first);
        Error::new(
            Kind::Internal,
            format!("rank 0 expects {expected}, found {found}"),
        )
    };
    let cache = match contexts.remove(&row.context) {
        Some(cache) => cache,
        None => {
            let dtype = KvDtype::named(&row.kv_dtype);
            let share = Share {
                rank: ring.rank(),
                ranks: ring.ranks(),
            };
            let dtype = dtype.ok_or_else(|| out_of_step(&row.kv_dtype))?;
            KvCache::shared(decoder.spec(), dtype, share, None)
        }
    };
    if cache.len() != row.first {
        return Err(out_of_step(&format!("one of {}", cache.len())));
    }
    Ok(cache)
}

/// hidden `[own tokens, hidden]` of appended rows → the last hidden states that this rank owns.
fn last_rows(hidden: &Tensor, rows: &[Row], rank: usize, ranks: usize) -> Result<Vec<Vec<f32>>> {
    let mut end = 0;
    let mut last = Vec::new();
    for row in rows {
        let (len, n) = (row.cache.len(), row.tokens.len());
        let own = crate::attention::shard::striped(len - n..len, rank, ranks);
        end += own.iter().map(ExactSizeIterator::len).sum::<usize>();
        if owner(len - 1, ranks) == rank {
            last.push(hidden.get(end - 1)?.to_vec1()?);
        }
    }
    Ok(last)
}
