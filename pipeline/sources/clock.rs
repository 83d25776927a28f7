//! The time of each decoded picture, rising from one to the next.

use super::{ffmpeg::PictureTimes, info::VideoInfo, sampler::Rate};

/// Gives each picture its time.
///
/// The packet's own time where every packet has one that can be believed; else what FFmpeg guesses
/// from presentation and decoding times; else the last frame's time and its duration. Frames before
/// the first that has a time are reckoned back from it. A time that does not rise becomes the
/// smallest one that does.
#[derive(Debug, Clone)]
pub struct Clock {
    packets_have_times: bool,
    /// Ticks from a frame to the next where the container does not say.
    duration: i64,
    start: i64,
    next: i64,
    last: Option<i64>,
}

impl Clock {
    /// For a file whose packets all have times that can be believed.
    pub fn of_packets(info: &VideoInfo) -> Self {
        Self {
            packets_have_times: true,
            duration: frame_duration(info),
            start: 0,
            next: 0,
            last: None,
        }
    }

    /// For a file of which all `pictures` were decoded.
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

    /// Whether a picture's time is its packet's, whatever was decoded before it.
    pub fn packets_have_times(&self) -> bool {
        self.packets_have_times
    }

    /// Pictures from the file's first one on follow.
    pub fn restart(&mut self) {
        (self.next, self.last) = (self.start, None);
    }

    /// Pictures from elsewhere in the file follow.
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

/// Whether every picture has its packet's time, these rise, and FFmpeg believes them.
fn have_own_times(pictures: &[PictureTimes]) -> bool {
    let are_believed = pictures
        .iter()
        .all(|times| times.pts.is_some() && times.pts == times.best_effort);
    are_believed && pictures.is_sorted_by(|a, b| a.pts < b.pts)
}

/// Ticks of one frame at the average rate; 1 when that is unknown.
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
