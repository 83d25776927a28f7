//! Exact times: integer ticks of a rational time base, as in the container.

use std::{cmp::Ordering, fmt};

use serde::Serialize;

/// Seconds per tick, `num / den`; both positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct TimeBase {
    /// Numerator in seconds.
    pub num: u32,
    /// Denominator.
    pub den: u32,
}

impl TimeBase {
    /// `None` unless both parts are positive.
    pub fn new(num: u32, den: u32) -> Option<Self> {
        (num > 0 && den > 0).then_some(Self { num, den })
    }

    /// Whether its ticks are so short that times were rounded to them: milliseconds in Matroska and FLV, 90,000ths of
    /// a second in MPEG. Ticks of 2 ms and more are whole frames, as in AVI, and times are exact.
    pub fn rounds_times(self) -> bool {
        u64::from(self.num) * 500 <= u64::from(self.den)
    }
}

impl fmt::Display for TimeBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.num, self.den)
    }
}

/// A presentation time: `ticks × time_base` seconds. Compared exactly, across time bases.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Pts {
    /// Ticks since the start of the presentation; may be negative.
    pub ticks: i64,
    /// Length of one tick.
    pub time_base: TimeBase,
}

impl Pts {
    /// `ticks` of `time_base`.
    pub fn new(ticks: i64, time_base: TimeBase) -> Self {
        Self { ticks, time_base }
    }

    /// The absolute difference to `other`; both are on the clock of one video.
    pub fn distance(self, other: Self) -> Self {
        let ticks = i64::try_from(self.ticks.abs_diff(other.ticks)).unwrap_or(i64::MAX);
        Self::new(ticks, self.time_base)
    }

    /// The nearest tick of `time_base`, where that is one to which times are rounded; else the same time.
    pub fn as_kept_in(self, time_base: TimeBase) -> Self {
        if !time_base.rounds_times() {
            return self;
        }
        let [own, other] =
            [self.time_base, time_base].map(|b| (i128::from(b.num), i128::from(b.den)));
        let (ticks, unit) = (i128::from(self.ticks) * own.0, own.1 * other.0);
        // Only times of billions of years are beyond 127 bits.
        let ticks = ticks.saturating_mul(2 * other.1).saturating_add(unit);
        let nearest = ticks.div_euclid(2 * unit);
        let nearest = nearest.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
        Self::new(nearest as i64, time_base)
    }

    /// Seconds, for output only.
    pub fn seconds(self) -> f64 {
        // Rounded once by the multiplication and once by the division.
        (self.ticks as f64 * f64::from(self.time_base.num)) / f64::from(self.time_base.den)
    }
}

impl PartialEq for Pts {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pts {}

impl PartialOrd for Pts {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pts {
    fn cmp(&self, other: &Self) -> Ordering {
        // 64 bits of ticks times 32 bits twice fit in 128 bits with the sign.
        let left = i128::from(self.ticks)
            * i128::from(self.time_base.num)
            * i128::from(other.time_base.den);
        let right = i128::from(other.ticks)
            * i128::from(other.time_base.num)
            * i128::from(self.time_base.den);
        left.cmp(&right)
    }
}

impl fmt::Display for Pts {
    /// `HH:MM:SS.mmm`, with a leading minus for negative times.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i128::from(self.ticks) * i128::from(self.time_base.num) * 1000
            / i128::from(self.time_base.den);
        let sign = if millis < 0 { "-" } else { "" };
        let millis = millis.unsigned_abs();
        let (h, m, s, ms) = (
            millis / 3_600_000,
            millis / 60_000 % 60,
            millis / 1000 % 60,
            millis % 1000,
        );
        write!(f, "{sign}{h:02}:{m:02}:{s:02}.{ms:03}")
    }
}
