//! Which frames to take: decided from presentation times alone, exactly.
//!
//! Nothing here decodes or reads files. Times are integers over a time base, rates
//! are fractions, and every comparison is exact in integers, so the same
//! video gives the same frames on every machine.

use std::{collections::BTreeSet, fmt, ops::Range};

use longreel_models::spec::frame_choice::{FrameChoice, nearest};
use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    time::{Pts, TimeBase},
};

/// The largest numerator or denominator of a [`Rate`].
const RATE_PART_MAX: u32 = 1_000_000;
/// The highest [`Rate`], frames per second.
const RATE_MAX: u32 = 1000;
/// The largest time that can be given, in seconds: more than eleven years of video.
const SECONDS_MAX: i64 = 100_000 * 3600;

/// Maximum relative difference of a container's stated rate from the counted one; its times are rounded.
const RATE_TOLERANCE: f64 = 0.01;

/// Frames per second, `num / den`; both positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Rate {
    num: u32,
    den: u32,
}

impl Rate {
    /// One frame a second.
    pub const ONE: Self = Self { num: 1, den: 1 };

    /// `num / den` frames per second: both from 1 to 1000000, the quotient at most 1000.
    pub fn new(num: u32, den: u32) -> Result<Self> {
        let parts = 1..=RATE_PART_MAX;
        if parts.contains(&num) && parts.contains(&den) && num <= RATE_MAX.saturating_mul(den) {
            return Ok(Self { num, den });
        }
        Err(rate_error(&format!("{num}/{den}")))
    }

    /// Numerator: frames.
    pub fn num(self) -> u32 {
        self.num
    }

    /// Denominator: seconds.
    pub fn den(self) -> u32 {
        self.den
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.den == 1 {
            write!(f, "{}", self.num)
        } else {
            write!(f, "{}/{}", self.num, self.den)
        }
    }
}

/// How frames are sampled from a video.
#[derive(Debug, Clone, PartialEq)]
pub enum Sampling {
    /// Every frame.
    Every,
    /// Frames per second. Tick `k` is at `start + k / rate`, where start is
    /// the beginning of the range, or the first frame's time when the range has no
    /// beginning. A tick takes the first frame at or after it; a frame taken by
    /// several ticks is emitted once. Where the container rounds times ([`TimeBase::rounds_times`]), a
    /// frame less than one of its ticks before a sampling tick is at it: so far can the times of two
    /// frames be off against each other.
    Fps(Rate),
    /// At most this many frames, distributed as in LWM: all when there are no
    /// more than that, else the frame numbers `linspace(0, frames - 1, n)` truncated to
    /// integers (see [`uniform_indices`]).
    Uniform(usize),
    /// At each time from the first frame on, the frame being shown then: the last one that starts at or
    /// before it, or the first one when none does.
    At(Vec<Pts>),
    /// The frames of these numbers, counted from 0 in presentation order.
    Indices(Vec<u64>),
    /// By a model's own rule, which gives frame numbers at a constant rate; for a variable frame rate
    /// the frames nearest to the times of these numbers.
    Rule {
        /// The rule.
        choice: FrameChoice,
        /// Frames per second as the container states them; counted where it does not.
        rate: Option<f64>,
    },
}

impl Sampling {
    /// One frame a second.
    pub const ONE_A_SECOND: Self = Self::Fps(Rate::ONE);

    /// In words, as it is echoed, out of `range`: `1 frames/s from 00:00:10.000`.
    pub fn in_words(&self, range: &TimeRange) -> String {
        let words = match self {
            Sampling::Every => "every frame".to_owned(),
            Sampling::Fps(rate) => format!("{rate} frames/s"),
            Sampling::Uniform(n) => format!("{n} frames spread evenly"),
            Sampling::At(times) => format!("{} given times", times.len()),
            Sampling::Indices(numbers) => format!("{} given frame numbers", numbers.len()),
            Sampling::Rule { choice, .. } => choice.to_string(),
        };
        range.behind(words)
    }
}

/// The time range of a video that is used: frames with `from <= PTS < to`.
///
/// Both count from the video's first frame, as the times do that are printed, and are rounded as the
/// container rounds its own ([`Pts::as_kept_in`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeRange {
    /// The first included time; the video's beginning when `None`.
    pub from: Option<Pts>,
    /// The first excluded time; the video's end when `None`.
    pub to: Option<Pts>,
}

impl TimeRange {
    /// The whole video.
    pub const ALL: Self = Self {
        from: None,
        to: None,
    };

    /// Checks that the range is not empty.
    ///
    /// # Errors
    /// `Usage`, with both ends.
    pub fn check(&self) -> Result<()> {
        match (self.from, self.to) {
            (Some(from), Some(to)) if from >= to => Err(Error::new(
                Kind::Usage,
                format!("the range from {from} to {to} is empty, expected from < to"),
            )),
            _ => Ok(()),
        }
    }

    /// Whether `time`, counted from the video's first frame, lies inside.
    pub fn contains(&self, time: Pts) -> bool {
        let kept = |end: Pts| end.as_kept_in(time.time_base);
        self.from.is_none_or(|from| kept(from) <= time) && self.to.is_none_or(|to| time < kept(to))
    }

    /// `words`, followed by the range where it is not the whole video.
    pub fn behind(&self, words: String) -> String {
        match *self == Self::ALL {
            true => words,
            false => format!("{words} {self}"),
        }
    }

    /// The numbers of the frames in the range, out of `ticks` in presentation order.
    fn frames(&self, ticks: &[i64], time_base: TimeBase) -> Result<Range<usize>> {
        self.check()?;
        let before = |time: Pts| {
            let time = time.as_kept_in(time_base);
            ticks.partition_point(|&t| Pts::new(t, time_base) < time)
        };
        let start = self.from.map_or(0, before);
        Ok(start..self.to.map_or(ticks.len(), before))
    }
}

impl fmt::Display for TimeRange {
    /// `from 00:00:10.000 to 00:01:00.000`, as far as it has ends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = [("from", self.from), ("to", self.to)];
        let ends = ends
            .into_iter()
            .filter_map(|(word, time)| Some((word, time?)));
        for (n, (word, time)) in ends.enumerate() {
            write!(f, "{}{word} {time}", if n == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// The numbers of the sampled frames, strictly rising, out of frames at `ticks` (sorted) of `time_base`.
pub fn select(
    sampling: &Sampling,
    range: &TimeRange,
    ticks: &[i64],
    time_base: TimeBase,
) -> Result<Vec<usize>> {
    check(sampling)?;
    let first = ticks.first().copied().unwrap_or(0);
    let since_first: Vec<i64> = ticks.iter().map(|&t| t.saturating_sub(first)).collect();
    let ticks = since_first.as_slice();
    let frames = range.frames(ticks, time_base)?;
    let inside = ticks.get(frames.clone()).unwrap_or_default();
    let offset = |numbers: Vec<usize>| numbers.into_iter().map(|i| frames.start + i).collect();
    Ok(match sampling {
        Sampling::Every => frames.collect(),
        Sampling::Fps(rate) => offset(at_rate(*rate, range.from, inside, time_base)),
        Sampling::Uniform(n) => offset(uniform_indices(inside.len(), *n)),
        Sampling::At(times) => offset(shown_at(times, inside, time_base)),
        Sampling::Indices(numbers) => return numbered(numbers, frames, ticks.len()),
        Sampling::Rule { choice, rate } => offset(by_rule(choice, *rate, inside, time_base)?),
    })
}

/// `Usage` for a sampling that gives no frame of any video.
fn check(sampling: &Sampling) -> Result<()> {
    let empty = match sampling {
        Sampling::Every | Sampling::Fps(_) | Sampling::Rule { .. } => None,
        Sampling::Uniform(n) => (*n == 0).then_some("0 frames were asked for, expected 1 or more"),
        Sampling::At(times) => times.is_empty().then_some("the list of times is empty"),
        Sampling::Indices(numbers) => numbers
            .is_empty()
            .then_some("the list of frame numbers is empty"),
    };
    empty.map_or(Ok(()), |message| Err(Error::new(Kind::Usage, message)))
}

/// [`Sampling::Rule`] over the frames at `ticks`.
fn by_rule(
    choice: &FrameChoice,
    rate: Option<f64>,
    ticks: &[i64],
    time_base: TimeBase,
) -> Result<Vec<usize>> {
    let (Some(&first), Some(&last)) = (ticks.first(), ticks.last()) else {
        return Ok(Vec::new());
    };
    let span = Pts::new(last.saturating_sub(first), time_base).seconds();
    // A still picture has no rate; any will do.
    let counted = if span > 0.0 {
        (ticks.len() - 1) as f64 / span
    } else {
        1.0
    };
    let stated = rate.filter(|rate| (rate / counted - 1.0).abs() < RATE_TOLERANCE);
    let numbers = choice.numbers(ticks.len(), stated.unwrap_or(counted))?;
    let mut frames = nearest(&numbers, ticks);
    frames.dedup();
    Ok(frames)
}

/// [`Sampling::Fps`] over the frames at `ticks`.
fn at_rate(rate: Rate, from: Option<Pts>, ticks: &[i64], time_base: TimeBase) -> Vec<usize> {
    let Some(&first) = ticks.first() else {
        return Vec::new();
    };
    let start = from.unwrap_or(Pts::new(first, time_base));
    let mut taken = Vec::new();
    let mut next_tick = 0;
    for (i, &t) in ticks.iter().enumerate() {
        let last_tick = match time_base.rounds_times() {
            // The last tick before the end of this one of the container's: the ceiling, less one.
            true => -ticks_passed(start, Pts::new(t.saturating_add(1), time_base), rate) - 1,
            false => ticks_passed(Pts::new(t, time_base), start, rate),
        };
        if last_tick >= next_tick {
            taken.push(i);
            next_tick = last_tick + 1;
        }
    }
    taken
}

/// The number of the last tick at or before `time`: `floor((time - start) * rate)`, exactly.
fn ticks_passed(time: Pts, start: Pts, rate: Rate) -> i128 {
    let [t, s] = [time.time_base, start.time_base].map(|b| (i128::from(b.num), i128::from(b.den)));
    let left = i128::from(time.ticks) * t.0 * s.1;
    let right = i128::from(start.ticks) * s.0 * t.1;
    let unit = t.1 * s.1;
    // 126 bits of ticks leave no room for the rate's 20: whole seconds and the remainder are computed separately.
    let elapsed = left.saturating_sub(right);
    let (seconds, rest) = (elapsed.div_euclid(unit), elapsed.rem_euclid(unit));
    let (num, den) = (i128::from(rate.num), i128::from(rate.den));
    let (whole, part) = (
        (seconds * num).div_euclid(den),
        (seconds * num).rem_euclid(den),
    );
    whole + (part * unit + rest * num).div_euclid(den * unit)
}

/// LWM's frame numbers: all of `n_frames` when there are at most `n`, else
/// `numpy.linspace(0, n_frames - 1, n, dtype=int)`.
///
/// From `_read_process_vision` in LWM's `vision_chat.py`. numpy multiplies by a
/// step in f64, sets the last to `n_frames - 1` and rounds down, which differs from
/// `i * (n_frames - 1) / (n - 1)` in integers: numpy's rounding is reproduced.
pub fn uniform_indices(n_frames: usize, n: usize) -> Vec<usize> {
    if n_frames <= n {
        return (0..n_frames).collect();
    }
    if n < 2 {
        return vec![0; n];
    }
    let step = (n_frames - 1) as f64 / (n - 1) as f64;
    (0..n - 1)
        .map(|i| (i as f64 * step).floor() as usize)
        .chain([n_frames - 1])
        .collect()
}

/// [`Sampling::At`] over the frames at `ticks`.
fn shown_at(times: &[Pts], ticks: &[i64], time_base: TimeBase) -> Vec<usize> {
    if ticks.is_empty() {
        return Vec::new();
    }
    let started = |time: &Pts| {
        let time = time.as_kept_in(time_base);
        ticks.partition_point(|&t| Pts::new(t, time_base) <= time)
    };
    let shown: BTreeSet<usize> = times
        .iter()
        .map(|time| started(time).saturating_sub(1))
        .collect();
    shown.into_iter().collect()
}

/// [`Sampling::Indices`]: every number must be one of `frames`.
fn numbered(numbers: &[u64], frames: Range<usize>, n_frames: usize) -> Result<Vec<usize>> {
    let mut chosen = BTreeSet::new();
    for &number in numbers {
        match usize::try_from(number) {
            Ok(i) if frames.contains(&i) => chosen.insert(i),
            _ => {
                return Err(Error::new(
                    Kind::Usage,
                    format!(
                        "frame {number} is not in the video's range: it has {n_frames} frames, the range holds {} to {} (end excluded)",
                        frames.start, frames.end
                    ),
                ));
            }
        };
    }
    Ok(chosen.into_iter().collect())
}

/// Parses frames per second: a whole number, a decimal or a fraction (`1`, `0.5`, `30000/1001`).
pub fn parse_rate(text: &str) -> Result<Rate> {
    let parsed = match text.trim().split_once('/') {
        Some((num, den)) => whole(num).zip(whole(den)),
        None => decimal(text.trim()),
    };
    let reduced = parsed.and_then(|(num, den)| {
        let divisor = gcd(num, den).max(1);
        Some((
            u32::try_from(num / divisor).ok()?,
            u32::try_from(den / divisor).ok()?,
        ))
    });
    reduced
        .and_then(|(num, den)| Rate::new(num, den).ok())
        .ok_or_else(|| rate_error(text))
}

fn rate_error(text: &str) -> Error {
    Error::new(
        Kind::Usage,
        format!(
            "frames per second is `{text}`, expected more than 0 and at most {RATE_MAX}, as a number or a fraction with parts up to {RATE_PART_MAX} (1, 0.5, 30000/1001)"
        ),
    )
}

/// Parses a time: seconds, `M:SS` or `H:MM:SS`, each with up to 6 decimals (`12.5`, `1:02:03.250`).
pub fn parse_time(text: &str) -> Result<Pts> {
    exact_time(text.trim()).ok_or_else(|| {
        Error::new(
            Kind::Usage,
            format!(
                "time is `{text}`, expected seconds or H:MM:SS with up to 6 decimals, at most {SECONDS_MAX} s (12.5, 1:02:03.250)"
            ),
        )
    })
}

fn exact_time(text: &str) -> Option<Pts> {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (clock, seconds) = text
        .rsplit_once(':')
        .map_or((None, text), |(clock, seconds)| (Some(clock), seconds));
    let (num, den) = decimal(seconds)?;
    if clock.is_some() && num >= 60 * den {
        return None;
    }
    let minutes = clock.map_or(Some(0), clock_minutes)?;
    let ticks = i64::try_from(
        minutes
            .checked_mul(60)?
            .checked_mul(den)?
            .checked_add(num)?,
    )
    .ok()?;
    let time_base = TimeBase::new(1, u32::try_from(den).ok()?)?;
    let time = Pts::new(sign * ticks, time_base);
    (ticks / i64::from(time_base.den) <= SECONDS_MAX).then_some(time)
}

/// `M` or `H:MM` as minutes.
fn clock_minutes(text: &str) -> Option<u64> {
    let Some((hours, minutes)) = text.split_once(':') else {
        return whole(text);
    };
    let minutes = whole(minutes).filter(|&m| m < 60)?;
    whole(hours)?.checked_mul(60)?.checked_add(minutes)
}

/// Digits with at most one point and at most 6 digits behind it, as a fraction of a power of ten.
fn decimal(text: &str) -> Option<(u64, u64)> {
    let (integer, fraction) = text.split_once('.').unwrap_or((text, ""));
    let places = u32::try_from(fraction.len()).ok().filter(|&n| n <= 6)?;
    let unit = 10_u64.pow(places);
    if integer.is_empty() && fraction.is_empty() {
        return None;
    }
    let part = |digits: &str| {
        if digits.is_empty() {
            Some(0)
        } else {
            whole(digits)
        }
    };
    Some((
        part(integer)?
            .checked_mul(unit)?
            .checked_add(part(fraction)?)?,
        unit,
    ))
}

/// Digits only: no sign, no blank.
fn whole(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
