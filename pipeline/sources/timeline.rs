//! The times of a video's frames, and its entry points, where decoding can start.

use crate::time::{Pts, TimeBase};

/// The times of all frames that a decoder outputs, in presentation order.
///
/// 16 bytes a frame (7 MB for two hours at 60 fps), and 24 for each point where decoding can start.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// Seconds per tick.
    pub time_base: TimeBase,
    /// All frames, by time.
    pub frames: Vec<TimelineFrame>,
    entries: Vec<EntryPoint>,
    /// How long the last frame is shown, where its packet says.
    last_ticks: Option<i64>,
}

/// One frame of a [`Timeline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimelineFrame {
    /// Presentation time.
    pub ticks: i64,
    /// Whether decoding can start here.
    pub key: bool,
}

/// A packet at which decoding can start.
#[derive(Debug, Clone, Copy)]
pub struct EntryPoint {
    /// Its presentation time.
    pub ticks: i64,
    /// A time for the container's seek that does not go behind it.
    pub seek_ticks: i64,
    /// The number of the first frame at or after it.
    pub frame: usize,
}

impl Timeline {
    /// Sorts `frames` and `entries`, and sets the entries' frame numbers.
    pub fn new(
        time_base: TimeBase,
        mut frames: Vec<TimelineFrame>,
        mut entries: Vec<EntryPoint>,
    ) -> Self {
        frames.sort_unstable();
        frames.shrink_to_fit();
        entries.sort_unstable_by_key(|e| e.ticks);
        for entry in &mut entries {
            entry.frame = frames.partition_point(|f| f.ticks < entry.ticks);
        }
        Self {
            time_base,
            frames,
            entries,
            last_ticks: None,
        }
    }

    /// The same, whose last frame is shown for `ticks`.
    pub fn ending(mut self, ticks: Option<i64>) -> Self {
        self.last_ticks = ticks.filter(|&ticks| ticks > 0);
        self
    }

    /// How long the frames are shown: from the first one's time to the end of the last one, which is
    /// shown as long as its packet says, else as long as the others on average. `None` without frames.
    ///
    /// A container states the length of its longest stream, or the time at which it ends on a clock
    /// that begins anywhere: neither is the video's.
    pub fn duration(&self) -> Option<Pts> {
        let (first, last) = (self.frames.first()?, self.frames.last()?);
        let span = last.ticks.saturating_sub(first.ticks);
        let steps = i64::try_from(self.frames.len() - 1).ok()?;
        let mean = span.checked_div(steps).unwrap_or(0);
        let ticks = span.saturating_add(self.last_ticks.unwrap_or(mean));
        Some(Pts::new(ticks, self.time_base))
    }

    /// The last entry point at or before `ticks`.
    pub fn entry_for(&self, ticks: i64) -> Option<&EntryPoint> {
        let n = self.entries.partition_point(|e| e.ticks <= ticks);
        self.entries.get(n.checked_sub(1)?)
    }

    /// The number of the first frame at or after `ticks`.
    pub fn number(&self, ticks: i64) -> usize {
        self.frames.partition_point(|f| f.ticks < ticks)
    }

    /// The frame that is shown from `ticks` on.
    pub fn at(&self, ticks: i64) -> Option<&TimelineFrame> {
        let frame = self.frames.get(self.number(ticks))?;
        (frame.ticks == ticks).then_some(frame)
    }
}
