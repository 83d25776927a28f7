//! How far a training has come.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::{Voice, tell};

/// Time between two lines where stderr is a file.
const LINE: Duration = Duration::from_secs(10);

/// A bar, or a line now and then.
pub struct StepBar {
    bar: ProgressBar,
    steps: u64,
    /// Where stderr is a file: when the next line is due.
    next_line: Option<Instant>,
    /// When the first step was shown, and which one it was.
    first: Option<(Instant, u64)>,
}

impl StepBar {
    /// Of a run of `steps` steps.
    pub fn new(voice: Voice, steps: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = match terminal && !voice.quiet {
            true => ProgressBar::new(steps),
            false => ProgressBar::hidden(),
        };
        let template = "step {pos}/{len} [{bar:30}] {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let next_line = (!terminal && !voice.quiet).then(Instant::now);
        Self {
            bar,
            steps,
            next_line,
            first: None,
        }
    }

    /// Step `step` is done, and came to `words`; `is_rare` shows them whenever they come.
    pub fn show(&mut self, step: u64, words: &str, is_rare: bool) {
        let now = Instant::now();
        let eta = self.eta(step, now);
        let words = eta.map_or(words.to_owned(), |s| format!("{words}  ETA {s:.0} s"));
        self.bar.set_position(step);
        self.bar.set_message(words.clone());
        if let Some(due) = self.next_line.filter(|&due| now >= due || is_rare) {
            tell(&format!("step {step}/{}  {words}", self.steps));
            self.next_line = Some(due.max(now) + LINE);
        }
    }

    /// Seconds left, by the steps of this run alone; `None` while nothing can be said.
    fn eta(&mut self, step: u64, now: Instant) -> Option<f64> {
        let (start, first) = *self.first.get_or_insert((now, step));
        let done = step.checked_sub(first).filter(|&done| done > 0)?;
        let each = now.duration_since(start).as_secs_f64() / done as f64;
        Some(each * self.steps.saturating_sub(step) as f64)
    }
}

impl Drop for StepBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
