//! Progress of the stages: counters that the stages raise and the
//! command line draws.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Counters of one run. Every counter only grows.
#[derive(Debug, Default)]
pub struct Progress {
    /// The name of what the frame counters count, where it is not frames.
    pub things: Option<&'static str>,
    /// Expected frames, 0 when unknown.
    pub frames_expected: Counter,
    /// Frames that left the decode stage.
    pub frames_decoded: Counter,
    /// Frames that left the encode stage.
    pub frames_encoded: Counter,
    /// Expected prompt tokens, 0 when unknown.
    pub tokens_expected: Counter,
    /// Prompt tokens in the context.
    pub tokens_prefilled: Counter,
    /// Tokens of the answer.
    pub tokens_generated: Counter,
    /// Working time of the decode stage, without waiting.
    pub decode_busy: BusyTime,
    /// Working time of the encode stage.
    pub encode_busy: BusyTime,
    /// Working time of the prefill.
    pub prefill_busy: BusyTime,
    /// Working time of generation.
    pub generate_busy: BusyTime,
}

/// A count that several threads may raise.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Raises the count.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Time spent working, summed over calls.
#[derive(Debug, Default)]
pub struct BusyTime(AtomicU64);

impl BusyTime {
    /// Runs `work` and adds the time it took.
    pub fn measure<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
        result
    }

    /// The sum so far.
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}
