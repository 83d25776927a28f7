//! The machine's peak rates: multiply-adds and memory reads per second, in short windows.

use std::time::Instant;

use longreel_kernels::{
    cpu::Level,
    peak::{Multiply, ReadBuffer, multiply},
};
use rayon::ThreadPool;
use serde::Serialize;

use crate::{
    bench::sample_summary::SampleSummary,
    error::{Error, Kind, Result},
};

/// Rounds of [`multiply`] in one second of a core of 4 GHz: eight cycles each.
const ROUNDS_PER_S: f64 = 5e8;

/// Name of the ceiling of a kind of multiply-add.
pub fn name(kind: Multiply) -> &'static str {
    match kind {
        Multiply::F32 => "f32 multiply-add",
        Multiply::Bf16 => "bf16 dot product",
        Multiply::Int8 => "int8 dot product",
    }
}

/// Measures the ceilings.
pub struct Ceilings {
    buffer: ReadBuffer,
    rounds: u64,
}

impl Ceilings {
    /// Reads a buffer of `read_bytes`; a window of multiply-adds lasts about `window_s` seconds.
    ///
    /// # Errors
    /// `TooLarge` when there is no memory for the buffer that is read.
    pub fn new(read_bytes: usize, window_s: f64) -> Result<Self> {
        let refused = |e| {
            let message = format!("no memory for the {read_bytes} bytes whose reading is timed");
            Error::with_source(Kind::TooLarge, message, e)
        };
        Ok(Self {
            buffer: ReadBuffer::new(read_bytes).map_err(refused)?,
            rounds: (window_s * ROUNDS_PER_S) as u64 + 1,
        })
    }

    /// Operations per second on every thread of the pool in one window; `None` where the
    /// level lacks the instruction.
    pub fn multiply(&self, pool: &ThreadPool, kind: Multiply, level: Level) -> Option<f64> {
        let start = Instant::now();
        let operations = pool.broadcast(|_| multiply(kind, level, self.rounds));
        let operations = operations.into_iter().sum::<Option<u64>>()?;
        Some(operations as f64 / start.elapsed().as_secs_f64())
    }

    /// Bytes per second that all threads of the pool read in one window.
    pub fn read(&self, pool: &ThreadPool, level: Level) -> f64 {
        let start = Instant::now();
        let bytes = pool.broadcast(|thread| {
            self.buffer
                .read(level, thread.index(), thread.num_threads())
        });
        bytes.into_iter().sum::<usize>() as f64 / start.elapsed().as_secs_f64()
    }
}

/// One ceiling, measured before the rows.
#[derive(Debug, Clone, Serialize)]
pub struct Ceiling {
    /// The name of the operation.
    pub name: &'static str,
    /// Instructions that were used.
    pub level: &'static str,
    /// Number of threads.
    pub threads: usize,
    /// `GFLOP/s`, `GOP/s` or `GB/s`.
    pub unit: &'static str,
    /// The rate in several windows before the first row.
    pub value: SampleSummary,
}
