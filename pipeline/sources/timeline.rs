//! When the frames of a video are shown, and where decoding can start.

use crate::time::{Pts, TimeBase};

/// When every frame of a video is shown, in presentation order: those that a decoder shows, and no others.
///
/// 16 bytes a frame (7 MB for two hours at 60 fps), and 24 for each point where decoding can start.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// Seconds per tick.
    pub time_base: TimeBase,
    /// All frames, by time.
    pub frames: Vec<TimelineFrame>,
    entries: Vec<EntryPoint>,
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
    /// Of `frames` and `entries` in any order; the entries' frame numbers are found here.
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
        }
    }

    /// From the first frame's time to one mean step behind the last one's, in seconds.
    pub fn shown_seconds(&self) -> f64 {
        let (Some(first), Some(last)) = (self.frames.first(), self.frames.last()) else {
            return 0.0;
        };
        let span = Pts::new(last.ticks.saturating_sub(first.ticks), self.time_base).seconds();
        let steps = self.frames.len() - 1;
        span + span / steps.max(1) as f64
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
