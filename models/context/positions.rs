//! Positions of three components, time, height and width, for text, pictures and steps of a video (M-RoPE,
//! Qwen2-VL, arXiv 2409.12191; a video's time, Qwen2.5-VL, arXiv 2502.13923).

use crate::spec::features::{AfterVideo, PositionRule};

/// An exact time: `ticks · num / den` seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds {
    /// Ticks.
    pub ticks: u64,
    /// Seconds of one tick, the numerator.
    pub num: u32,
    /// The denominator; not zero.
    pub den: u32,
}

impl Seconds {
    /// A whole number of seconds.
    pub fn whole(seconds: u64) -> Self {
        Self {
            ticks: seconds,
            num: 1,
            den: 1,
        }
    }

    /// The last position at or before this time, at `per_second` positions per second.
    fn position(self, per_second: u32) -> u32 {
        let ticks = u128::from(self.ticks) * u128::from(self.num) * u128::from(per_second);
        u32::try_from(ticks / u128::from(self.den.max(1))).unwrap_or(u32::MAX)
    }
}

/// Assigns positions to a context, run after run.
///
/// It can be cloned: a clone numbers a question on a fork, while the video continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionBuilder {
    rule: PositionRule,
    /// Position of the next text or picture.
    next: u32,
    video: Option<Video>,
}

/// The current video.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Video {
    /// Its first position.
    start: u32,
    /// Number of steps so far.
    steps: u64,
}

impl PositionBuilder {
    /// A builder for an empty context.
    pub fn new(rule: PositionRule) -> Self {
        Self::behind(rule, 0)
    }

    /// A builder for a context whose next position is `next`.
    pub fn behind(rule: PositionRule, next: u32) -> Self {
        Self {
            rule,
            next,
            video: None,
        }
    }

    /// Position of the next text.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// Appends the positions of `n` text tokens, which end a video.
    pub fn text(&mut self, n: usize, positions: &mut Vec<[u32; 3]>) {
        self.video = None;
        for _ in 0..n {
            positions.push([self.next; 3]);
            self.next = self.next.saturating_add(1);
        }
    }

    /// Appends the positions of a picture of `rows · columns` features, which ends a video.
    pub fn picture(&mut self, rows: usize, columns: usize, positions: &mut Vec<[u32; 3]>) {
        self.video = None;
        let start = self.next;
        grid(start, start, rows, columns, positions);
        self.next = behind_side(start, rows, columns);
    }

    /// Appends the positions of one step of a video of `rows · columns` features: the next step of the
    /// current video, or the first.
    ///
    /// `time` is the step's time since the first step; without it a step takes a second. It has no effect where steps
    /// are counted, or each is a picture.
    pub fn step(
        &mut self,
        rows: usize,
        columns: usize,
        time: Option<Seconds>,
        positions: &mut Vec<[u32; 3]>,
    ) {
        let (per_second, after_video) = match self.rule {
            PositionRule::Steps => return self.picture(rows, columns, positions),
            PositionRule::Counted { after_video } => (None, after_video),
            PositionRule::Timed {
                tokens_per_second,
                after_video,
            } => (Some(tokens_per_second), after_video),
        };
        let next = self.next;
        let video = self.video.get_or_insert(Video {
            start: next,
            steps: 0,
        });
        let (start, counted) = (video.start, Seconds::whole(video.steps));
        video.steps += 1;
        let behind_start = match per_second {
            Some(per_second) => time.unwrap_or(counted).position(per_second),
            None => counted.position(1),
        };
        let at = start.saturating_add(behind_start);
        grid(at, start, rows, columns, positions);
        let side = behind_side(start, rows, columns);
        self.next = match after_video {
            AfterVideo::Highest => next.max(side).max(at.saturating_add(1)),
            AfterVideo::Side => side,
        };
    }
}

/// Appends a grid at one time, row by row, from position `start` on.
fn grid(time: u32, start: u32, rows: usize, columns: usize, positions: &mut Vec<[u32; 3]>) {
    let place = |i: usize| start.saturating_add(i as u32);
    for row in 0..rows {
        positions.extend((0..columns).map(|column| [time, place(row), place(column)]));
    }
}

fn behind_side(start: u32, rows: usize, columns: usize) -> u32 {
    start.saturating_add(rows.max(columns) as u32)
}

#[cfg(test)]
mod tests {
    use super::{PositionBuilder, Seconds};
    use crate::spec::features::{AfterVideo, PositionRule};

    fn timed(after_video: AfterVideo) -> PositionRule {
        PositionRule::Timed {
            tokens_per_second: 2,
            after_video,
        }
    }

    /// Text of 3, three steps of 1x2 at 0, 0.75 and 2.5 seconds, text of 1 → where the steps stand, and the text.
    fn numbered(rule: PositionRule) -> (Vec<u32>, u32) {
        let mut builder = PositionBuilder::new(rule);
        let mut positions = Vec::new();
        builder.text(3, &mut positions);
        for ticks in [0, 3, 10] {
            let (num, den) = (1, 4);
            let time = Some(Seconds { ticks, num, den });
            builder.step(1, 2, time, &mut positions);
        }
        builder.text(1, &mut positions);
        let times = positions[3..9].iter().step_by(2).map(|p| p[0]).collect();
        (times, positions[9][0])
    }

    #[test]
    fn steps_have_their_time_and_text_follows_the_last_step_or_the_grid() {
        assert_eq!(numbered(timed(AfterVideo::Highest)), (vec![3, 4, 8], 9));
        assert_eq!(numbered(timed(AfterVideo::Side)), (vec![3, 4, 8], 5));
        assert_eq!(numbered(PositionRule::Steps), (vec![3, 5, 7], 9));
        let after_video = AfterVideo::Highest;
        let counted = PositionRule::Counted { after_video };
        assert_eq!(numbered(counted), (vec![3, 4, 5], 6));
    }

    #[test]
    fn text_between_steps_begins_another_video() {
        let mut builder = PositionBuilder::behind(timed(AfterVideo::Highest), 7);
        let mut positions = Vec::new();
        for _ in 0..2 {
            builder.step(1, 1, Some(Seconds::whole(5)), &mut positions);
            builder.step(1, 1, Some(Seconds::whole(6)), &mut positions);
            builder.text(1, &mut positions);
        }
        let times: Vec<u32> = positions.iter().map(|p| p[0]).collect();
        assert_eq!(times, [17, 19, 20, 31, 33, 34]);
        assert_eq!(positions[3], [31, 21, 21]);
    }

    #[test]
    fn a_time_is_exact_however_long_the_video() {
        // 29.97 frames a second: 30000 frames are 1001 seconds, not a tick less.
        let (num, den) = (1001, 30_000);
        let at = |ticks| Seconds { ticks, num, den }.position(2);
        assert_eq!((at(29_999), at(30_000)), (2001, 2002));
        assert_eq!(at(u64::MAX), u32::MAX);
    }
}
