//! `longreel bench`: the machine's peak, and the share of it that the program reaches.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    time::SystemTime,
};

use longreel_kernels::{attend::KvDtype, cpu::Level};
use longreel_models::file_name::FileName;
use serde::Serialize;

use crate::{
    bench::{
        case::{CaseFilter, Op},
        ceilings::{Ceiling, Ceilings},
        kernels::{self, KernelRow, Options},
        machine::{Build, Machine, cores},
        peer::Peer,
        sample_summary::SampleSummary,
    },
    cancel::Cancel,
    cli::{
        args::{BenchVerb, KernelsArgs},
        bench_answers, bench_context,
        output::{Voice, to_json},
        resolve::within,
    },
    error::{Context, Error, Kind, Result},
    plan::{available_memory_bytes, bytes},
};

/// Bytes read to measure memory bandwidth: far more than any CPU cache holds, except with `--quick`.
const READ_BYTES: usize = 1 << 30;
const QUICK_READ_BYTES: usize = 8 << 20;

/// Seconds of one measurement of multiply-adds.
const WINDOW_S: f64 = 0.02;
const QUICK_WINDOW_S: f64 = 0.001;

/// Runs the verb; `threads` are those of the global option.
pub fn run(verb: BenchVerb, threads: &[usize], voice: Voice, cancel: &Cancel) -> Result<()> {
    match verb {
        BenchVerb::Kernels(args) => run_kernels(&args, threads, voice, cancel),
        BenchVerb::Context(args) => bench_context::run(&args, voice, cancel),
        BenchVerb::Answers(args) => bench_answers::run(&args, voice, cancel),
    }
}

/// All rows, and the machine they were measured on.
#[derive(Serialize)]
struct KernelReport {
    #[serde(flatten)]
    build: Build,
    machine: Machine,
    /// Unix time of the start, in seconds.
    unix_s: u64,
    quick: bool,
    /// Whether it was stopped before the last row.
    interrupted: bool,
    ceilings: Vec<Ceiling>,
    rows: Vec<KernelRow>,
}

/// A row with the machine, as appended to a file of results.
#[derive(Serialize)]
struct KernelLine<'a> {
    #[serde(flatten)]
    build: Build,
    machine: &'a Machine,
    unix_s: u64,
    quick: bool,
    #[serde(flatten)]
    row: &'a KernelRow,
}

fn run_kernels(args: &KernelsArgs, threads: &[usize], voice: Voice, cancel: &Cancel) -> Result<()> {
    let options = options(args, threads)?;
    check_memory(&options)?;
    let mut out = args.out.as_deref().map(open_results).transpose()?;
    let mut peer = args.peer.as_deref().map(Peer::start).transpose()?;
    let mut report = KernelReport {
        build: Build::HERE,
        machine: Machine::here(),
        unix_s: unix_s(),
        quick: args.quick,
        interrupted: false,
        ceilings: Vec::new(),
        rows: Vec::new(),
    };
    let measured = measure(
        &options,
        peer.as_mut(),
        &mut report,
        out.as_mut(),
        voice,
        cancel,
    );
    report.interrupted = matches!(&measured, Err(e) if e.kind() == Kind::Interrupted);
    if measured.is_ok() || report.interrupted {
        voice.say(&report, || text(&report))?;
    }
    measured
}

fn measure(
    options: &Options,
    peer: Option<&mut Peer>,
    report: &mut KernelReport,
    mut out: Option<&mut File>,
    voice: Voice,
    cancel: &Cancel,
) -> Result<()> {
    let total = options.selection.cases().len() * options.levels.len() * options.threads.len();
    let ceilings = Ceilings::new(options.read_bytes, options.window_s)?;
    report.ceilings = kernels::measure_ceilings(options, &ceilings, cancel)?;
    kernels::run(options, &ceilings, peer, cancel, &mut |row| {
        if let Some(out) = out.as_mut() {
            append(out, report, &row)?;
        }
        voice.note(&format!(
            "{}/{total} {}",
            report.rows.len() + 1,
            sentence(&row)
        ));
        report.rows.push(row);
        Ok(())
    })
}

fn open_results(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.doing(|| format!("open {}", path.shown()))
}

fn append(out: &mut File, report: &KernelReport, row: &KernelRow) -> Result<()> {
    let line = KernelLine {
        build: report.build,
        machine: &report.machine,
        unix_s: report.unix_s,
        quick: report.quick,
        row,
    };
    writeln!(out, "{}", to_json(&line)?).doing(|| "write a result".to_owned())
}

fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

fn options(args: &KernelsArgs, threads: &[usize]) -> Result<Options> {
    let levels = levels(&args.level)?;
    let threads = threads.iter().map(|&n| within("--threads", n, 1..=1024));
    let threads = threads.collect::<Result<Vec<usize>>>()?;
    let repeats = args.repeats.map(|n| within("--repeats", n, 1..=100_000));
    let quick_or = |quick, full| if args.quick { quick } else { full };
    Ok(Options {
        selection: selection(args)?,
        levels,
        threads: if threads.is_empty() {
            vec![cores()]
        } else {
            threads
        },
        repeats: repeats.transpose()?.or(args.quick.then_some(2)),
        read_bytes: quick_or(QUICK_READ_BYTES, READ_BYTES),
        window_s: if args.quick { QUICK_WINDOW_S } else { WINDOW_S },
    })
}

fn selection(args: &KernelsArgs) -> Result<CaseFilter> {
    let heads = within("--heads", args.heads, 1..=1024)?;
    let kv_heads = within("--kv-heads", args.kv_heads.unwrap_or(heads), 1..=1024)?;
    if !heads.is_multiple_of(kv_heads) {
        let message = format!("--heads is {heads}, expected a multiple of --kv-heads {kv_heads}");
        return Err(Error::new(Kind::Usage, message));
    }
    let lengths = args.s.iter().map(|&s| within("--s", s, 1..=1 << 24));
    let lengths = lengths.collect::<Result<Vec<usize>>>()?;
    let or = |given: Vec<usize>, quick: &[usize], full: &[usize]| match (given.len(), args.quick) {
        (0, true) => quick.to_vec(),
        (0, false) => full.to_vec(),
        _ => given,
    };
    let cache = args
        .cache
        .unwrap_or(if args.quick { 2048 } else { 131_072 });
    Ok(CaseFilter {
        ops: named(&args.op, &Op::ALL, &Op::ALL, Op::name),
        dtypes: named(
            &args.dtype,
            &KvDtype::ALL,
            &KvDtype::ALL[..3],
            KvDtype::name,
        ),
        lengths: or(lengths, &[512], &[8192, 32_768]),
        cache: within("--cache", cache, 1..=1 << 28)?,
        d: within("--d", args.d, 1..=1024)?,
        heads,
        kv_heads,
        smaller: if args.quick { 8 } else { 1 },
    })
}

/// The items of `all` that `names` lists, or `default` if it is empty.
fn named<T: Copy>(
    names: &[String],
    all: &[T],
    default: &[T],
    name: fn(T) -> &'static str,
) -> Vec<T> {
    if names.is_empty() {
        return default.to_vec();
    }
    let is_named = |item: &T| names.iter().any(|n| n == name(*item));
    all.iter().copied().filter(is_named).collect()
}

fn levels(names: &[String]) -> Result<Vec<Level>> {
    let allowed: Vec<Level> = Level::available()
        .filter(|&l| l <= Level::allowed())
        .collect();
    let has = |name: &String| allowed.iter().any(|l| l.name() == name);
    if let Some(name) = names.iter().find(|name| !has(name)) {
        let list: Vec<&str> = allowed.iter().map(|l| l.name()).collect();
        let message = format!("--level is {name}, this machine has {}", list.join(", "));
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(named(names, &allowed, &[Level::allowed()], Level::name))
}

/// Refuses shapes whose inputs do not fit into memory.
fn check_memory(options: &Options) -> Result<()> {
    let Some(available) = available_memory_bytes() else {
        return Ok(());
    };
    for case in options.selection.cases() {
        let needed = case.bytes().saturating_add(options.read_bytes as u64);
        if needed > available {
            let message = format!(
                "{} {} with {} needs {}, the machine can give {}",
                case.op.name(),
                case.dtype.name(),
                case.shape,
                bytes(needed),
                bytes(available)
            );
            return Err(Error::new(Kind::TooLarge, message));
        }
    }
    Ok(())
}

/// `attend bf16, S 8192, d 128, 8 heads, avx512bf16, 2 threads: 512 GFLOP/s, 71% of the peak`
fn sentence(row: &KernelRow) -> String {
    format!(
        "{} {}, {}, {}, {} thread{}: {}",
        row.case.op.name(),
        row.case.dtype.name(),
        row.case.shape,
        row.level,
        row.threads,
        if row.threads == 1 { "" } else { "s" },
        speed(row)
    )
}

/// The speed against the peak that the row comes closer to: arithmetic or memory bandwidth.
fn speed(row: &KernelRow) -> String {
    match (&row.gflops, row.fraction_of_peak) {
        (Some(gflops), Some(share)) if share >= row.fraction_of_read => {
            let percent = 100.0 * share;
            format!("{:.0} GFLOP/s, {percent:.0}% of the peak", gflops.median)
        }
        _ => {
            let percent = 100.0 * row.fraction_of_read;
            let speed = row.gb_per_s.median;
            format!("{speed:.1} GB/s, {percent:.0}% of the memory bandwidth")
        }
    }
}

fn text(report: &KernelReport) -> String {
    let machine = &report.machine;
    let mut lines = vec![
        format!(
            "machine  {}, {} cores, {}, {}",
            machine.cpu,
            machine.cores,
            machine
                .memory_bytes
                .map_or("unknown memory".to_owned(), bytes),
            machine.system
        ),
        format!(
            "program  longreel {}, commit {}",
            report.build.longreel, report.build.commit
        ),
        String::new(),
        format!(
            "{:<24}{:<12}{:>7}  {}",
            "before the rows", "level", "threads", "ceiling, median (least to largest)"
        ),
    ];
    lines.extend(report.ceilings.iter().map(|c| {
        let value = spread(&c.value);
        format!(
            "{:<24}{:<12}{:>7}  {value} {}",
            c.name, c.level, c.threads, c.unit
        )
    }));
    lines.push(String::new());
    lines.push(header());
    lines.extend(report.rows.iter().map(line));
    if report.interrupted {
        lines.push("interrupted: not all rows were measured".to_owned());
    }
    lines.join("\n")
}

fn header() -> String {
    format!(
        "{:<11}{:<6}{:<28}{:<12}{:>7}  {:<22}{:>8}  {:<20}{:>8}  {}",
        "op", "type", "shape", "level", "threads", "GFLOP/s", "of peak", "GB/s", "of read", "peer"
    )
}

fn line(row: &KernelRow) -> String {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let peer = row
        .peer
        .as_ref()
        .map(|p| format!("{:.2} times as fast as {}", p.ratio, p.name));
    let line = format!(
        "{:<11}{:<6}{:<28}{:<12}{:>7}  {:<22}{:>8}  {:<20}{:>8}  {}",
        row.case.op.name(),
        row.case.dtype.name(),
        row.case.shape.to_string(),
        row.level,
        row.threads,
        row.gflops.as_ref().map_or(String::new(), spread),
        row.fraction_of_peak.map_or(String::new(), percent),
        spread(&row.gb_per_s),
        percent(row.fraction_of_read),
        peer.unwrap_or_default()
    );
    line.trim_end().to_owned()
}

/// `512.3 (498.0 to 520.1)`
fn spread(s: &SampleSummary) -> String {
    format!("{:.1} ({:.1} to {:.1})", s.median, s.min, s.max)
}
