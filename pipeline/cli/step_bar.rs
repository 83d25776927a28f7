//! Progress of a training run.

use std::{
    collections::VecDeque,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::{Voice, tell};

/// Time between two lines where stderr is not a terminal.
const LINE: Duration = Duration::from_secs(10);
/// Steps over which speed is averaged for the time left, so that an earlier pause has no effect.
const RECENT: usize = 100;

/// A bar, or a line from time to time.
pub struct StepBar {
    bar: ProgressBar,
    steps: u64,
    /// When the next line is due, where stderr is not a terminal.
    next_line: Option<Instant>,
    /// Times and numbers of the last steps shown, at most [`RECENT`].
    recent: VecDeque<(Instant, u64)>,
}

impl StepBar {
    /// The bar of a run of `steps` steps.
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
            recent: VecDeque::new(),
        }
    }

    /// Shows that `step` is done, with its figures `words`; with `is_rare` a line is written even if none is due.
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

    /// Seconds left, extrapolated from the last steps; `None` before there are two.
    fn eta(&mut self, step: u64, now: Instant) -> Option<f64> {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((now, step));
        let &(start, first) = self.recent.front()?;
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{RECENT, StepBar};
    use crate::cli::output::Voice;

    #[test]
    fn a_pause_before_the_last_steps_does_not_change_the_estimate() {
        let voice = Voice {
            json: false,
            quiet: true,
        };
        let mut bar = StepBar::new(voice, 1000);
        let start = Instant::now();
        let second = |s: u64| start + Duration::from_secs(s);
        assert_eq!(bar.eta(0, second(0)), None);
        assert_eq!(bar.eta(1, second(1)), Some(999.0));
        // A pause of an hour, then one second per step.
        let pause = 3600;
        assert!(bar.eta(2, second(pause + 2)) > Some(1e6));
        let last = RECENT as u64 + 2;
        let left = (3..=last).map(|step| bar.eta(step, second(pause + step)));
        assert_eq!(left.last(), Some(Some(1000.0 - last as f64)));
    }
}
