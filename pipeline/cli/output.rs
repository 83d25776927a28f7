//! What the user sees: one JSON object or text on stdout, progress and errors on stderr.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use indicatif::{ProgressBar, ProgressStyle};
use longreel_models::file_name::FileName;
use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    stages::progress::Progress,
};

/// Output options of a verb.
#[derive(Debug, Clone, Copy)]
pub struct Voice {
    /// One JSON object on stdout and nothing else there.
    pub json: bool,
    /// No progress on stderr.
    pub quiet: bool,
}

/// Whether a result was written to stdout: `--json` promises exactly one object.
static SAID: AtomicBool = AtomicBool::new(false);

/// Whether a result was written to stdout.
pub fn has_spoken() -> bool {
    SAID.load(Ordering::Acquire)
}

/// Time between two redraws of a bar, and between two lines where stderr is not a terminal.
const REDRAW: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(10);

impl Voice {
    /// Prints the result: `value` as JSON, or `text` for people.
    pub fn say(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let line = if self.json { to_json(value)? } else { text() };
        SAID.store(true, Ordering::Release);
        write_stdout(&line, true)
    }

    /// Writes a line to stderr, unless quiet.
    pub fn note(self, text: &str) {
        if !self.quiet {
            tell(text);
        }
    }

    /// Writes the warnings about `path` to stderr.
    pub fn warn<'w>(self, path: &Path, warnings: impl IntoIterator<Item = &'w String>) {
        for warning in warnings {
            self.note(&format!("{}: {warning}", path.shown()));
        }
    }

    /// Runs `work` while a bar (or a line from time to time) shows `progress`.
    pub fn show<T>(self, progress: &Progress, work: impl FnOnce() -> T) -> T {
        if self.quiet {
            return work();
        }
        // Dropping the sender, even by a panic in `work`, wakes and ends the drawing thread.
        let (working, done) = bounded::<()>(0);
        std::thread::scope(|scope| {
            scope.spawn(move || draw(progress, &done));
            let result = work();
            drop(working);
            result
        })
    }

    /// A bar that counts bytes, for imports and downloads.
    pub fn byte_bar(self, what: &str) -> ByteBar {
        let shown = !self.quiet && std::io::stderr().is_terminal();
        let bar = if shown {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        ByteBar(bar)
    }
}

/// A bar that counts bytes; cleared when dropped.
pub struct ByteBar(ProgressBar);

impl ByteBar {
    /// Shows `done` of `total` bytes of `what`.
    pub fn set(&self, what: &str, done: u64, total: u64) {
        if self.0.message() != what {
            self.0.set_message(what.to_owned());
        }
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for ByteBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Writes one line to stderr; a closed stderr is ignored.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "longreel: {text}");
}

fn draw(progress: &Progress, done: &Receiver<()>) {
    let start = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    let mut next_line = LINE;
    while done.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
        let elapsed = start.elapsed();
        let line = progress_line(progress, elapsed);
        if terminal {
            bar.set_message(line);
            bar.tick();
        } else if elapsed >= next_line {
            tell(&line);
            next_line += LINE;
        }
    }
    bar.finish_and_clear();
}

/// `frames 12/60  tokens 3084/15420 (310/s)  answer 7  ETA 41 s`
fn progress_line(progress: &Progress, elapsed: Duration) -> String {
    let of = |n: u64, total: u64| {
        if total == 0 {
            n.to_string()
        } else {
            format!("{n}/{total}")
        }
    };
    let mut line = format!(
        "{} {}",
        progress.things.unwrap_or("frames"),
        of(
            progress.frames_encoded.get(),
            progress.frames_expected.get()
        )
    );
    let tokens = progress.tokens_prefilled.get();
    let expected = progress.tokens_expected.get();
    if expected > 0 || tokens > 0 {
        let rate = tokens as f64 / elapsed.as_secs_f64().max(1e-3);
        line += &format!("  tokens {} ({rate:.0}/s)", of(tokens, expected));
    }
    let generated = progress.tokens_generated.get();
    if generated > 0 {
        line += &format!("  answer {generated}");
    }
    if let Some(eta) = eta_seconds(progress, elapsed) {
        line += &format!("  ETA {eta:.0} s");
    }
    line
}

/// Estimated time left, the larger of frames and tokens; `None` before there is anything to extrapolate.
fn eta_seconds(progress: &Progress, elapsed: Duration) -> Option<f64> {
    let share = |done: u64, total: u64| {
        (total > 0 && done > 0 && done < total).then(|| done as f64 / total as f64)
    };
    let frames = share(
        progress.frames_encoded.get(),
        progress.frames_expected.get(),
    );
    let tokens = share(
        progress.tokens_prefilled.get(),
        progress.tokens_expected.get(),
    );
    let slowest = [frames, tokens]
        .into_iter()
        .flatten()
        .fold(None, |least: Option<f64>, s| {
            Some(least.map_or(s, |l| l.min(s)))
        })?;
    Some(elapsed.as_secs_f64() * (1.0 - slowest) / slowest)
}

/// `value` as one line of JSON.
pub fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::with_source(Kind::Internal, "serialize the result", e))
}

/// Writes to stdout; a reader that closed the pipe (as in `longreel ... | head`) is not an error.
pub fn write_stdout(text: &str, newline: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| {
        if newline {
            out.write_all(b"\n")
        } else {
            Ok(())
        }
    });
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Error::from),
    }
}
