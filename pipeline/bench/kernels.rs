//! Every case at every level on every number of threads, with the machine's
//! ceilings measured between its repeats: on a machine with other load, both
//! are slowed alike.

use std::time::Instant;

use longreel_kernels::{cpu::Level, peak::Multiply};
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Serialize;

use crate::{
    bench::{
        case::{Case, CaseFilter},
        ceilings::{self, Ceiling, Ceilings},
        peer::{Peer, PeerRow},
        sample_summary::SampleSummary,
        work::{Work, prepare},
    },
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
};

/// Options of the benchmark.
#[derive(Debug, Clone)]
pub struct Options {
    /// Operations, element types and shapes.
    pub selection: CaseFilter,
    /// Instructions to measure with.
    pub levels: Vec<Level>,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Timed repeats of each row; chosen by time when absent.
    pub repeats: Option<usize>,
    /// Bytes of the buffer that the read ceiling is measured with.
    pub read_bytes: usize,
    /// Seconds of one window of multiply-adds, and the minimum of one repeat.
    pub window_s: f64,
}

/// Repeats of a row without a given number: at least this many, and for at least this many seconds.
const LEAST_REPEATS: usize = 5;
const LEAST_S: f64 = 1.0;

/// One measured row.
#[derive(Debug, Clone, Serialize)]
pub struct KernelRow {
    /// Operation, element type and shape.
    #[serde(flatten)]
    pub case: Case,
    /// Instructions used.
    pub level: &'static str,
    /// Threads used.
    pub threads: usize,
    /// Seconds of one run.
    pub seconds: SampleSummary,
    /// 10⁹ operations per second, where it multiplies matrices.
    pub gflops: Option<SampleSummary>,
    /// The ceiling of its multiply-adds.
    pub peak: Option<&'static str>,
    /// That ceiling, measured between the repeats.
    pub peak_gflops: Option<SampleSummary>,
    /// Ratio of the medians.
    pub fraction_of_peak: Option<f64>,
    /// 10⁹ bytes per second, with arguments and results counted once.
    pub gb_per_s: SampleSummary,
    /// The read ceiling, measured between the repeats.
    pub read_gb_per_s: SampleSummary,
    /// Ratio of the medians; above 1 where caches hold the data.
    pub fraction_of_read: f64,
    /// The peer program's result, measured between the repeats.
    pub peer: Option<PeerRow>,
}

/// Samples of one row, interleaved.
#[derive(Default)]
struct Samples {
    seconds: Vec<f64>,
    multiply: Vec<f64>,
    read: Vec<f64>,
    peer: Vec<f64>,
    peer_name: Option<String>,
}

/// Runs the benchmark; `each` receives every row as soon as it is measured.
///
/// # Errors
/// `Interrupted` on request, between two repeats; `TooLarge` when there is no memory.
pub fn run(
    options: &Options,
    ceilings: &Ceilings,
    mut peer: Option<&mut Peer>,
    cancel: &Cancel,
    each: &mut dyn FnMut(KernelRow) -> Result<()>,
) -> Result<()> {
    for case in options.selection.cases() {
        let mut work =
            prepare(&case).doing(|| format!("prepare {} {}", case.op.name(), case.shape))?;
        for &level in &options.levels {
            level.put_in_use();
            for &threads in &options.threads {
                let bench = Bench {
                    options,
                    ceilings,
                    pool: &pool(threads)?,
                    level,
                    multiply: case.multiply(level),
                };
                let samples = bench.sample(&case, &mut work, peer.as_deref_mut(), cancel)?;
                each(bench.row(case, &work, &samples)?)?;
            }
        }
    }
    Ok(())
}

/// The ceilings of every level and number of threads, by name.
///
/// # Errors
/// `Interrupted` on request.
pub fn measure_ceilings(
    options: &Options,
    ceilings: &Ceilings,
    cancel: &Cancel,
) -> Result<Vec<Ceiling>> {
    let mut found = Vec::new();
    for &threads in &options.threads {
        let pool = pool(threads)?;
        for &level in &options.levels {
            for kind in Multiply::ALL {
                cancel.check()?;
                let once = || Some(ceilings.multiply(&pool, kind, level)? / 1e9);
                let unit = if kind == Multiply::Int8 {
                    "GOP/s"
                } else {
                    "GFLOP/s"
                };
                found.extend(ceiling(ceilings::name(kind), level, threads, unit, once));
            }
        }
        if let Some(&level) = options.levels.last() {
            let once = || Some(ceilings.read(&pool, level) / 1e9);
            found.extend(ceiling("memory read", level, threads, "GB/s", once));
        }
    }
    Ok(found)
}

fn ceiling(
    name: &'static str,
    level: Level,
    threads: usize,
    unit: &'static str,
    once: impl Fn() -> Option<f64>,
) -> Option<Ceiling> {
    let samples: Option<Vec<f64>> = (0..LEAST_REPEATS).map(|_| once()).collect();
    Some(Ceiling {
        name,
        level: level.name(),
        threads,
        unit,
        value: SampleSummary::of(&samples?)?,
    })
}

fn pool(threads: usize) -> Result<ThreadPool> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Error::with_source(Kind::Internal, format!("start {threads} threads"), e))
}

/// One row under measurement.
struct Bench<'a> {
    options: &'a Options,
    ceilings: &'a Ceilings,
    pool: &'a ThreadPool,
    level: Level,
    multiply: Option<Multiply>,
}

impl Bench<'_> {
    fn sample(
        &self,
        case: &Case,
        work: &mut Work,
        mut peer: Option<&mut Peer>,
        cancel: &Cancel,
    ) -> Result<Samples> {
        let mut samples = Samples::default();
        let threads = self.pool.current_num_threads();
        let runs = (self.options.window_s / self.time(work, 1)).clamp(1.0, 1e6) as usize;
        self.look_up(&mut samples);
        while !self.is_enough(&samples.seconds, runs) {
            cancel.check()?;
            samples.seconds.push(self.time(work, runs));
            self.look_up(&mut samples);
            let asked = peer.as_deref_mut().map(|p| p.ask(case, threads, runs));
            // Ctrl-C also ends the peer, whose error must not hide the interruption.
            cancel.check()?;
            if let Some((name, seconds)) = asked.transpose()?.flatten() {
                samples.peer.push(seconds);
                samples.peer_name = Some(name);
            }
        }
        Ok(samples)
    }

    /// Mean seconds of `runs` runs.
    fn time(&self, work: &mut Work, runs: usize) -> f64 {
        self.pool.install(|| {
            let start = Instant::now();
            (0..runs).for_each(|_| (work.run)());
            start.elapsed().as_secs_f64() / runs as f64
        })
    }

    /// One window of each ceiling.
    fn look_up(&self, samples: &mut Samples) {
        let multiply = self
            .multiply
            .and_then(|m| self.ceilings.multiply(self.pool, m, self.level));
        samples.multiply.extend(multiply);
        samples.read.push(self.ceilings.read(self.pool, self.level));
    }

    fn is_enough(&self, seconds: &[f64], runs: usize) -> bool {
        match self.options.repeats {
            Some(repeats) => seconds.len() >= repeats,
            None => {
                let taken = seconds.iter().sum::<f64>() * runs as f64;
                seconds.len() >= LEAST_REPEATS && taken >= LEAST_S
            }
        }
    }

    fn row(&self, case: Case, work: &Work, samples: &Samples) -> Result<KernelRow> {
        self.row_of(case, work, samples)
            .ok_or_else(|| Error::new(Kind::Internal, "a row without samples"))
    }

    fn row_of(&self, case: Case, work: &Work, samples: &Samples) -> Option<KernelRow> {
        let billions =
            |rates: &[f64]| SampleSummary::of(&rates.iter().map(|r| r / 1e9).collect::<Vec<_>>());
        let seconds = SampleSummary::of(&samples.seconds)?;
        let gflops = case
            .flops()
            .and_then(|f| SampleSummary::rate(f / 1e9, &samples.seconds));
        let peak_gflops = billions(&samples.multiply);
        let gb_per_s = SampleSummary::rate(work.bytes / 1e9, &samples.seconds)?;
        let read_gb_per_s = billions(&samples.read)?;
        let peer = samples
            .peer_name
            .clone()
            .zip(SampleSummary::of(&samples.peer));
        Some(KernelRow {
            case,
            level: self.level.name(),
            threads: self.pool.current_num_threads(),
            seconds,
            gflops,
            peak: self.multiply.map(ceilings::name),
            peak_gflops,
            fraction_of_peak: gflops.zip(peak_gflops).map(|(g, p)| g.median / p.median),
            gb_per_s,
            read_gb_per_s,
            fraction_of_read: gb_per_s.median / read_gb_per_s.median,
            peer: peer.map(|(name, spread)| PeerRow {
                name,
                seconds: spread,
                ratio: spread.median / seconds.median,
            }),
        })
    }
}
