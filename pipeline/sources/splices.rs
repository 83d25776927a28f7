//! Recordings that were strung together: a camera's or a recorder's files, one
//! behind the other, each with its own clock.

use crate::time::TimeBase;

/// Where decoding times fall back by more than a second, that packet and all later
/// ones are moved on, to follow the last one before.
#[derive(Debug)]
pub struct Splices {
    /// Ticks of one second: times of one recording may be out of order by less.
    second: i64,
    /// When the last packet ends, moved; `None` at the start and after a seek.
    last: Option<i64>,
    offset: i64,
    count: u64,
}

impl Splices {
    /// None so far, in a stream with this time base.
    pub fn new(time_base: TimeBase) -> Self {
        let second = i64::from(time_base.den / time_base.num).max(1);
        Self {
            second,
            last: None,
            offset: 0,
            count: 0,
        }
    }

    /// How far the times of the packet that is decoded at `dts` have to be moved.
    pub fn offset_at(&mut self, dts: i64, duration: i64) -> i64 {
        let moved = dts.saturating_add(self.offset);
        if let Some(last) = self
            .last
            .filter(|&last| moved < last.saturating_sub(self.second))
        {
            self.offset = last.saturating_sub(dts);
            self.count += 1;
        }
        self.last = Some(
            dts.saturating_add(self.offset)
                .saturating_add(duration.max(1)),
        );
        self.offset
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Reading goes on elsewhere in the file.
    pub fn forget_last(&mut self) {
        self.last = None;
    }
}
