//! Assigns each decoded picture its time; times increase strictly.

use super::{ffmpeg::PictureTimes, info::VideoInfo, sampler::Rate};

/// Assigns each picture its time.
///
/// It is the packet's own time if all packets have plausible ones; else FFmpeg's estimate
/// from presentation and decoding times; else the end of the last frame. Frames before
/// the first one with a time count back from it. A time that does not increase becomes the
/// smallest one that does.
#[derive(Debug, Clone)]
pub struct Clock {
    packets_have_times: bool,
    /// Ticks per frame where the container does not state a duration.
    duration: i64,
    start: i64,
    next: i64,
    last: Option<i64>,
}

impl Clock {
    /// The clock of a file whose packets all have plausible times.
    pub fn of_packets(info: &VideoInfo) -> Self {
        Self {
            packets_have_times: true,
            duration: frame_duration(info),
            start: 0,
            next: 0,
            last: None,
        }
    }

    /// The clock of a file of which all `pictures` were decoded.
    pub fn of_pictures(info: &VideoInfo, pictures: &[PictureTimes]) -> Self {
        let mut clock = Self {
            packets_have_times: have_own_times(pictures),
            ..Self::of_packets(info)
        };
        let timeless = pictures
            .iter()
            .take_while(|times| clock.told(times).is_none());
        let before = timeless
            .map(|times| clock.duration_of(times))
            .fold(0, i64::saturating_add);
        if let Some(first) = pictures.iter().find_map(|times| clock.told(times)) {
            clock.start = first.saturating_sub(before);
        }
        clock.restart();
        clock
    }

    /// Whether a picture's time is its packet's, independent of the pictures decoded before it.
    pub fn packets_have_times(&self) -> bool {
        self.packets_have_times
    }

    /// To be called before decoding restarts at the first picture.
    pub fn restart(&mut self) {
        (self.next, self.last) = (self.start, None);
    }

    /// To be called after a seek.
    pub fn jump(&mut self) {
        self.last = None;
    }

    /// The time of the next picture, in ticks.
    pub fn ticks(&mut self, times: &PictureTimes) -> i64 {
        let told = self.told(times).unwrap_or(self.next);
        let ticks = self
            .last
            .map_or(told, |last| told.max(last.saturating_add(1)));
        self.last = Some(ticks);
        self.next = ticks.saturating_add(self.duration_of(times));
        ticks
    }

    fn told(&self, times: &PictureTimes) -> Option<i64> {
        let (first, second) = if self.packets_have_times {
            (times.pts, times.best_effort)
        } else {
            (times.best_effort, times.pts)
        };
        first.or(second)
    }

    fn duration_of(&self, times: &PictureTimes) -> i64 {
        times.duration.unwrap_or(self.duration)
    }
}

/// Whether every picture has its packet's time, the times increase, and FFmpeg's estimates agree.
fn have_own_times(pictures: &[PictureTimes]) -> bool {
    let are_believed = pictures
        .iter()
        .all(|times| times.pts.is_some() && times.pts == times.best_effort);
    are_believed && pictures.is_sorted_by(|a, b| a.pts < b.pts)
}

/// Ticks per frame at the average rate; 1 when that is unknown.
fn frame_duration(info: &VideoInfo) -> i64 {
    let base = info.time_base;
    let ticks = |rate: Rate| {
        let (num, den) = (
            u64::from(rate.num()) * u64::from(base.num),
            u64::from(rate.den()) * u64::from(base.den),
        );
        i64::try_from(den / num).unwrap_or(1)
    };
    info.average_frame_rate.map_or(1, ticks).max(1)
}
