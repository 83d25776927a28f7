//! A video file as frames: opened, looked over, and read in presentation order.
//!
//! Opening reads the file once without decoding, for the time of every frame
//! ([`Timeline`]). Which frames to take is decided from those times; then they
//! are decoded, either straight through or jumping over whole groups of pictures
//! that hold none of them. Both give the same frames: decoding starts at a packet
//! that the container calls a key, never at one that FFmpeg happened to find, and
//! when a jump does not give the frame it was made for, the file is decoded
//! straight instead.

use std::{collections::BTreeSet, path::Path};

use serde::Serialize;

pub use super::info::VideoInfo;
use super::{
    address,
    ffmpeg::{self, Converter, Decoder, Demuxer, Packet, PictureTimes, Read, Received},
    sampler::{self, Sampling, TimeRange},
};
use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    flow::{Frame, FrameTime},
    time::{Pts, TimeBase},
};

/// Fewest frames that a jump must save: less is decoded faster than the decoder refills.
const JUMP_FRAMES_MIN: usize = 16;
/// From so many frames on, a jump seeks in the file; below, packets are read and dropped.
const SEEK_FRAMES_MIN: usize = 256;
/// Damaged reads in a row after which the rest of a file is given up.
const DAMAGED_READS_MAX: u32 = 64;

/// How the chosen frames are reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Jump where a jump saves work.
    #[default]
    Auto,
    /// Jump and seek wherever possible.
    Seek,
    /// Decode every frame from the first on.
    Straight,
}

/// When every frame of a video is shown, in presentation order.
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
struct EntryPoint {
    /// Its presentation time.
    ticks: i64,
    /// A time for the container's seek that does not go behind it.
    seek_ticks: i64,
    /// The number of the first frame at or after it.
    frame: usize,
}

impl Timeline {
    fn new(
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
    fn shown_seconds(&self) -> f64 {
        let (Some(first), Some(last)) = (self.frames.first(), self.frames.last()) else {
            return 0.0;
        };
        let span = Pts::new(last.ticks.saturating_sub(first.ticks), self.time_base).seconds();
        let steps = self.frames.len() - 1;
        span + span / steps.max(1) as f64
    }

    /// The last entry point at or before `ticks`.
    fn entry_for(&self, ticks: i64) -> Option<&EntryPoint> {
        let n = self.entries.partition_point(|e| e.ticks <= ticks);
        self.entries.get(n.checked_sub(1)?)
    }

    /// The number of the first frame at or after `ticks`.
    fn number(&self, ticks: i64) -> usize {
        self.frames.partition_point(|f| f.ticks < ticks)
    }
}

/// How reading went so far.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DecodeReport {
    /// Frames that came out of the decoder.
    pub decoded: u64,
    /// Frames handed on.
    pub emitted: u64,
    /// Packets that the container or the decoder could not make sense of.
    pub corrupt_packets_skipped: u64,
    /// Frames that the decoder found damage in; they are handed on, marked.
    pub corrupt_frames: u64,
    /// Frames that were chosen but did not decode.
    pub missing: u64,
    /// Whether the file ends before its own end.
    pub truncated: bool,
    /// Sentences for people, each once.
    pub warnings: BTreeSet<String>,
    /// `seek` once a jump was made, else `straight`.
    pub strategy: Strategy,
}

/// The chosen frames of a file, one after the other.
pub struct FrameReader {
    info: VideoInfo,
    timeline: Timeline,
    /// Numbers of the chosen frames, rising; every frame that decodes when `None`.
    chosen: Option<Vec<usize>>,
    /// How many of `chosen` are dealt with.
    cursor: usize,
    /// Number of the frame that follows the last one decoded.
    next_number: usize,
    demuxer: Demuxer,
    decoder: Decoder,
    converter: Converter,
    clock: Clock,
    strategy: Strategy,
    /// While set, packets are dropped up to the key packet of this time.
    skip_to: Option<i64>,
    /// After a jump, the time of the picture that must come out first.
    entry: Option<i64>,
    jumped: bool,
    ended: bool,
    damaged_reads: u32,
    report: DecodeReport,
    /// The report as it was before the first frame.
    opened: DecodeReport,
    cancel: Cancel,
}

/// Opens `path` and tells what it says of its video.
pub fn probe(path: &Path, cancel: &Cancel) -> Result<VideoInfo> {
    check_file(path)
        .and_then(|()| Demuxer::open(path, cancel)?.info(path))
        .doing(|| format!("open {}", path.display()))
}

impl FrameReader {
    /// Opens `path`, and chooses frames by `sampling` out of those in `range`.
    pub fn open(
        path: &Path,
        sampling: &Sampling,
        range: &TimeRange,
        cancel: Cancel,
    ) -> Result<Self> {
        Self::open_with(path, sampling, range, cancel, Strategy::Auto)
    }

    /// [`FrameReader::open`], with a say in how the frames are reached.
    pub fn open_with(
        path: &Path,
        sampling: &Sampling,
        range: &TimeRange,
        cancel: Cancel,
        strategy: Strategy,
    ) -> Result<Self> {
        Self::start(path, sampling, range, cancel, strategy)
            .doing(|| format!("open {}", path.display()))
    }

    fn start(
        path: &Path,
        sampling: &Sampling,
        range: &TimeRange,
        cancel: Cancel,
        mut strategy: Strategy,
    ) -> Result<Self> {
        check_file(path)?;
        let mut demuxer = Demuxer::open(path, &cancel)?;
        let info = demuxer.info(path)?;
        let survey = Survey::of(&mut demuxer, info.time_base)?;
        let mut report = DecodeReport::default();
        survey.judge(&info, &mut report)?;
        if !survey.can_jump {
            strategy = Strategy::Straight;
        }
        let (timeline, clock) = match survey.timeline {
            Some(timeline) => (timeline, Clock::of_packets(&info)),
            None => decode_timeline(&info, &cancel)?,
        };
        let is_everything = *sampling == Sampling::Every && *range == TimeRange::ALL;
        let chosen = if is_everything {
            None
        } else {
            Some(choose(&with_rate(sampling, &info), range, &timeline)?)
        };
        let demuxer = Demuxer::open(path, &cancel)?;
        let decoder = Decoder::open(&demuxer)?;
        Ok(Self {
            converter: Converter::new(&info),
            clock,
            info,
            timeline,
            chosen,
            cursor: 0,
            next_number: 0,
            demuxer,
            decoder,
            strategy,
            skip_to: None,
            entry: None,
            jumped: false,
            ended: false,
            damaged_reads: 0,
            opened: report.clone(),
            report,
            cancel,
        })
    }

    /// What the file says of its video.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// When the frames are shown, those that are not chosen included.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// How long behind the first chosen frame the last one is shown, in seconds.
    pub fn chosen_seconds(&self) -> f64 {
        let ticks = |number: Option<usize>| Some(self.timeline.frames.get(number?)?.ticks);
        let (first, last) = match &self.chosen {
            Some(chosen) => (chosen.first().copied(), chosen.last().copied()),
            None => (Some(0), self.timeline.frames.len().checked_sub(1)),
        };
        let span = ticks(last)
            .zip(ticks(first))
            .map(|(last, first)| last - first);
        Pts::new(span.unwrap_or(0), self.timeline.time_base).seconds()
    }

    /// When the next frame is shown that will be handed on, where it decodes; `None` behind the last.
    pub fn next_time(&self) -> Option<Pts> {
        let number = match &self.chosen {
            Some(chosen) => *chosen.get(self.cursor)?,
            None => self.next_number,
        };
        let frame = self.timeline.frames.get(number)?;
        Some(Pts::new(frame.ticks, self.timeline.time_base))
    }

    /// Begins again, with the frames of these numbers, which rise strictly. What opening the file
    /// has found out is kept: it is not read through a second time.
    ///
    /// # Errors
    /// `Internal` for no number or one that the video does not have, and where the file cannot be
    /// opened again.
    pub fn again(mut self, numbers: Vec<usize>) -> Result<Self> {
        let n_frames = self.timeline.frames.len();
        let is_rising = numbers.is_sorted_by(|a, b| a < b);
        if !is_rising || numbers.last().is_none_or(|&last| last >= n_frames) {
            let message = format!(
                "{} numbers out of {n_frames} frames, expected rising ones below that",
                numbers.len()
            );
            return Err(Error::new(Kind::Internal, message));
        }
        self.rewind()
            .doing(|| format!("open {}", self.info.path.display()))?;
        (self.chosen, self.cursor) = (Some(numbers), 0);
        (self.ended, self.damaged_reads) = (false, 0);
        self.report = self.opened.clone();
        Ok(self)
    }

    /// How long the video is shown, in seconds: as the file states it, else from its first frame's time to one step
    /// behind its last one's; `None` for a still picture.
    pub fn shown_seconds(&self) -> Option<f64> {
        if self.info.still {
            return None;
        }
        let stated = self.info.duration.map(|duration| duration.seconds());
        Some(stated.unwrap_or_else(|| self.timeline.shown_seconds()))
    }

    /// How many frames will be handed on if all of them decode. Always known.
    pub fn expected_frames(&self) -> Option<u64> {
        Some(
            self.chosen
                .as_ref()
                .map_or(self.timeline.frames.len(), Vec::len) as u64,
        )
    }

    /// How reading went so far.
    pub fn report(&self) -> DecodeReport {
        let strategy = if self.jumped {
            Strategy::Seek
        } else {
            Strategy::Straight
        };
        let mut report = DecodeReport {
            strategy,
            ..self.report.clone()
        };
        let counts = [
            (
                report.corrupt_packets_skipped,
                "damaged packets were skipped",
            ),
            (report.corrupt_frames, "decoded frames are damaged"),
            (report.missing, "chosen frames did not decode"),
        ];
        report.warnings.extend(
            counts
                .iter()
                .filter(|(n, _)| *n > 0)
                .map(|(n, what)| format!("{n} {what}")),
        );
        report
    }

    /// The next chosen frame in presentation order.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        self.advance().doing(|| {
            let at = self.pending().map(|t| Pts::new(t, self.info.time_base));
            let at = at.map_or(String::new(), |t| format!("frame at {t} of "));
            format!("decode {at}{}", self.info.path.display())
        })
    }

    fn advance(&mut self) -> Result<Option<Frame>> {
        self.jump_if_useful()?;
        while !self.is_done() {
            self.cancel.check()?;
            match self.decoder.receive() {
                Received::Picture(times) => {
                    if let Some(frame) = self.consider(times)? {
                        return Ok(Some(frame));
                    }
                }
                Received::NeedsPacket => self.feed()?,
                Received::Damaged => self.report.corrupt_packets_skipped += 1,
                Received::End => self.end()?,
            }
        }
        Ok(None)
    }

    fn is_done(&self) -> bool {
        self.ended
            || self
                .chosen
                .as_ref()
                .is_some_and(|chosen| self.cursor == chosen.len())
    }

    /// The decoder has given all it has.
    fn end(&mut self) -> Result<()> {
        if self.jumped && !self.is_done() {
            return self.go_straight();
        }
        self.ended = true;
        if let Some(chosen) = &self.chosen {
            self.report.missing += (chosen.len() - self.cursor) as u64;
        }
        if self.report.decoded > 0 {
            return Ok(());
        }
        let skipped = self.report.corrupt_packets_skipped;
        Err(Error::new(
            Kind::BadInput,
            format!("no frame of it decodes ({skipped} damaged packets)"),
        ))
    }

    /// The time of the first chosen frame that is not dealt with.
    fn pending(&self) -> Option<i64> {
        let number = *self.chosen.as_ref()?.get(self.cursor)?;
        self.timeline.frames.get(number).map(|frame| frame.ticks)
    }

    /// Whether a frame of this time is to be handed on, or may have to stand in for one.
    fn is_chosen(&self, ticks: i64) -> bool {
        let Some(chosen) = &self.chosen else {
            return true;
        };
        // Damaged files need whatever follows the frame that does not come, and
        // without times on packets nobody knows which picture is which.
        let number = self.timeline.number(ticks);
        let is_sure = self.clock.packets_have_times && !self.report.truncated && !self.has_damage();
        !is_sure || chosen.binary_search(&number).is_ok()
    }

    fn has_damage(&self) -> bool {
        self.report.corrupt_packets_skipped + self.report.corrupt_frames > 0
    }

    /// Goes to the entry point before the pending frame, if that leaves out enough decoding.
    fn jump_if_useful(&mut self) -> Result<()> {
        let Some(entry) = self
            .pending()
            .and_then(|ticks| self.timeline.entry_for(ticks))
            .copied()
        else {
            return Ok(());
        };
        let saved = entry.frame.saturating_sub(self.next_number);
        let (jump_min, seek_min) = match self.strategy {
            Strategy::Straight => return Ok(()),
            Strategy::Auto => (JUMP_FRAMES_MIN, SEEK_FRAMES_MIN),
            Strategy::Seek => (1, 1),
        };
        if saved < jump_min {
            return Ok(());
        }
        self.jumped = true;
        self.decoder.flush();
        self.skip_to = Some(entry.ticks);
        if saved >= seek_min && self.demuxer.seek(entry.seek_ticks).is_err() {
            return self.go_straight();
        }
        Ok(())
    }

    /// Starts again from the file's first packet, never to jump again.
    fn go_straight(&mut self) -> Result<()> {
        self.strategy = Strategy::Straight;
        self.rewind()
    }

    /// Goes back to the file's first packet.
    fn rewind(&mut self) -> Result<()> {
        self.demuxer = Demuxer::open(&self.info.path, &self.cancel)?;
        self.decoder = Decoder::open(&self.demuxer)?;
        self.clock.restart();
        self.next_number = 0;
        (self.skip_to, self.entry, self.jumped) = (None, None, false);
        Ok(())
    }

    /// Gives the decoder its next packet, or the end.
    fn feed(&mut self) -> Result<()> {
        match self.demuxer.read()? {
            Read::Packet(packet) => {
                self.damaged_reads = 0;
                return self.feed_packet(&packet);
            }
            Read::Damaged if self.damaged_reads < DAMAGED_READS_MAX => {
                self.damaged_reads += 1;
                self.report.corrupt_packets_skipped += 1;
            }
            Read::Damaged | Read::End if self.skip_to.is_some() => self.go_straight()?,
            Read::Damaged | Read::End => self.decoder.send_end(),
        }
        Ok(())
    }

    fn feed_packet(&mut self, packet: &Packet) -> Result<()> {
        if let Some(wanted) = self.skip_to {
            match packet.pts().filter(|_| packet.is_key()) {
                Some(ticks) if ticks == wanted => (self.skip_to, self.entry) = (None, Some(wanted)),
                Some(ticks) if ticks > wanted => return self.go_straight(),
                _ => return Ok(()),
            }
        }
        let is_chosen = packet.pts().is_none_or(|ticks| self.is_chosen(ticks));
        self.decoder.leave_out_unreferenced(!is_chosen);
        if !self.decoder.send(packet) {
            self.report.corrupt_packets_skipped += 1;
        }
        Ok(())
    }

    /// Hands on the decoder's picture if it is one of the chosen.
    fn consider(&mut self, times: PictureTimes) -> Result<Option<Frame>> {
        let ticks = self.clock.ticks(&times);
        if self.has_landed_wrong(ticks) {
            self.go_straight()?;
            return Ok(None);
        }
        let number = self.timeline.number(ticks).max(self.next_number);
        self.next_number = number + 1;
        self.report.decoded += 1;
        self.report.corrupt_frames += u64::from(times.corrupt);
        if self.pending().is_some_and(|pending| ticks < pending) {
            return Ok(None);
        }
        self.take_up_to(ticks);
        let image = self.converter.convert(&self.decoder)?;
        let key = self
            .timeline
            .frames
            .get(number)
            .map_or(times.key, |frame| frame.key);
        let time = FrameTime {
            index: number as u64,
            pts: Pts::new(ticks, self.info.time_base),
        };
        self.report.emitted += 1;
        Ok(Some(Frame {
            time,
            key,
            corrupt: times.corrupt,
            image,
        }))
    }

    /// Whether a jump has given other frames than decoding straight would: its entry
    /// point did not come out whole, as with H.264's gradual refresh, where a "key"
    /// picture takes many more to mend; or the frame it was made for did not.
    fn has_landed_wrong(&mut self, ticks: i64) -> bool {
        if !self.jumped {
            return false;
        }
        // Pictures that are shown before the entry point but stored behind it may come out or not.
        let entry_missed = self.entry.is_some_and(|entry| ticks > entry);
        self.entry = self.entry.filter(|&entry| ticks < entry);
        entry_missed || self.pending().is_some_and(|pending| ticks > pending)
    }

    /// Moves the cursor behind the chosen frame at `ticks`. A frame that follows
    /// chosen ones which did not decode stands in for the last of them.
    fn take_up_to(&mut self, ticks: i64) {
        while let Some(pending) = self.pending() {
            if pending > ticks {
                return;
            }
            self.cursor += 1;
            if pending == ticks {
                return;
            }
            self.report.missing += 1;
        }
    }
}

impl Iterator for FrameReader {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_frame().transpose();
        // An error is told once.
        self.ended |= matches!(next, Some(Err(_)));
        next
    }
}

/// Refuses what is no file with content, before FFmpeg sees it.
fn check_file(path: &Path) -> Result<()> {
    address::refuse(path)?;
    let metadata = std::fs::metadata(path)?;
    let problem = match metadata.is_file() {
        false if metadata.is_dir() => "is a directory, expected a video file",
        false => "is not a regular file, expected a video file",
        true if metadata.len() == 0 => "the file is empty",
        true => return Ok(()),
    };
    Err(Error::new(Kind::BadInput, problem))
}

/// The sampling, with the rate that the file states where a rule asks for one.
fn with_rate(sampling: &Sampling, info: &VideoInfo) -> Sampling {
    match *sampling {
        Sampling::Rule { choice, rate: None } => Sampling::Rule {
            choice,
            rate: info
                .average_frame_rate
                .map(|rate| f64::from(rate.num()) / f64::from(rate.den())),
        },
        _ => sampling.clone(),
    }
}

/// The numbers of the frames to hand on; at least one.
fn choose(sampling: &Sampling, range: &TimeRange, timeline: &Timeline) -> Result<Vec<usize>> {
    let ticks: Vec<i64> = timeline.frames.iter().map(|frame| frame.ticks).collect();
    let chosen = sampler::select(sampling, range, &ticks, timeline.time_base)?;
    let (Some(&first), Some(&last)) = (ticks.first(), ticks.last()) else {
        return Err(Error::new(Kind::BadInput, "the video has no frames"));
    };
    if chosen.is_empty() {
        let [first, last] = [first, last].map(|t| Pts::new(t, timeline.time_base));
        let message =
            format!("no frame is in the range asked for: the video's are from {first} to {last}");
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(chosen)
}

/// What reading every packet, without decoding, has shown.
struct Survey {
    /// `None` when packets come without presentation times.
    timeline: Option<Timeline>,
    /// Whether packets are where their times say.
    can_jump: bool,
    n_packets: u64,
    n_splices: u64,
    /// Packets that the container's reader found damaged.
    n_damaged: u64,
    cut_off: bool,
}

impl Survey {
    fn of(demuxer: &mut Demuxer, time_base: TimeBase) -> Result<Self> {
        let (mut frames, mut entries) = (Vec::new(), Vec::new());
        let (mut complete, mut n_packets, mut damaged, mut torn) = (true, 0, 0, None);
        let damaged_before = ffmpeg::damaged_packets();
        loop {
            let packet = match demuxer.read()? {
                Read::Packet(packet) => packet,
                Read::Damaged if damaged < DAMAGED_READS_MAX => {
                    damaged += 1;
                    continue;
                }
                Read::Damaged | Read::End => break,
            };
            (n_packets, damaged) = (n_packets + 1, 0);
            torn = packet.pts().filter(|_| packet.is_torn());
            let Some(ticks) = packet.pts() else {
                complete = false;
                continue;
            };
            if packet.is_key() {
                entries.push(EntryPoint {
                    ticks,
                    seek_ticks: packet.dts().map_or(ticks, |d| d.min(ticks)),
                    frame: 0,
                });
            }
            if !packet.is_hidden() {
                frames.push(TimelineFrame {
                    ticks,
                    key: packet.is_key(),
                });
            }
        }
        // The packet that the end of the file tears apart is not counted on.
        if let Some(ticks) = torn {
            frames.retain(|frame| frame.ticks != ticks);
            entries.retain(|entry| entry.ticks != ticks);
        }
        let in_order = entries.is_sorted_by(|a, b| a.ticks < b.ticks);
        let cut_off = damaged > 0 || torn.is_some() || ffmpeg::said_truncated();
        let timeline = complete.then(|| Timeline::new(time_base, frames, entries));
        Ok(Self {
            n_splices: demuxer.n_splices(),
            can_jump: complete && in_order && demuxer.n_splices() == 0,
            timeline,
            n_packets,
            n_damaged: ffmpeg::damaged_packets() - damaged_before,
            cut_off,
        })
    }

    /// Fails when there is nothing to decode, and warns when the file has been cut.
    fn judge(&self, info: &VideoInfo, report: &mut DecodeReport) -> Result<()> {
        if self.n_packets == 0 {
            return Err(Error::new(
                Kind::BadInput,
                "the file has a video stream, but no frame of it",
            ));
        }
        report.corrupt_packets_skipped += self.n_damaged;
        if self.n_splices > 0 {
            let message = format!(
                "times fall back {} times; later frames are moved on to follow",
                self.n_splices
            );
            report.warnings.insert(message);
        }
        let declared = info
            .declared_frames
            .filter(|_| info.container.starts_with("mov"));
        let fewer = declared.filter(|&n| n > self.n_packets);
        report.truncated = self.cut_off || fewer.is_some();
        if report.truncated {
            let of = fewer.map_or(String::new(), |n| format!(" of {n}"));
            report.warnings.insert(format!(
                "the file ends early: {}{of} frames are there",
                self.n_packets
            ));
        }
        Ok(())
    }
}

/// The times of all frames by decoding all of them, for containers that do not
/// tell, and the clock that gives them again.
fn decode_timeline(info: &VideoInfo, cancel: &Cancel) -> Result<(Timeline, Clock)> {
    let mut demuxer = Demuxer::open(&info.path, cancel)?;
    let mut decoder = Decoder::open(&demuxer)?;
    let (mut pictures, mut damaged) = (Vec::new(), 0);
    loop {
        match decoder.receive() {
            Received::Picture(times) => pictures.push(times),
            Received::Damaged => {}
            Received::End => break,
            Received::NeedsPacket => match demuxer.read()? {
                Read::Packet(packet) => {
                    decoder.send(&packet);
                    damaged = 0;
                }
                Read::Damaged if damaged < DAMAGED_READS_MAX => damaged += 1,
                Read::Damaged | Read::End => decoder.send_end(),
            },
        }
    }
    let clock = Clock::of_pictures(info, &pictures);
    let mut walk = clock.clone();
    let frames = pictures
        .iter()
        .map(|times| TimelineFrame {
            ticks: walk.ticks(times),
            key: times.key,
        })
        .collect();
    Ok((Timeline::new(info.time_base, frames, Vec::new()), clock))
}

/// The time of each decoded frame.
///
/// The packet's own time where every packet has one; else what FFmpeg guesses from
/// decoding times; else the last frame's time and its duration. Frames before the
/// first that has a time are reckoned back from it.
#[derive(Clone)]
struct Clock {
    packets_have_times: bool,
    /// Ticks from a frame to the next where the container does not say.
    duration: i64,
    start: i64,
    next: i64,
}

impl Clock {
    /// For a file whose packets all have times.
    fn of_packets(info: &VideoInfo) -> Self {
        Self {
            packets_have_times: true,
            duration: frame_duration(info),
            start: 0,
            next: 0,
        }
    }

    /// For a file that lacks some, or all.
    fn of_pictures(info: &VideoInfo, pictures: &[PictureTimes]) -> Self {
        let mut clock = Self {
            packets_have_times: false,
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

    fn restart(&mut self) {
        self.next = self.start;
    }

    fn ticks(&mut self, times: &PictureTimes) -> i64 {
        let ticks = self.told(times).unwrap_or(self.next);
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

/// Ticks of one frame at the average rate; 1 when that is unknown.
fn frame_duration(info: &VideoInfo) -> i64 {
    let base = info.time_base;
    let ticks = |rate: sampler::Rate| {
        let (num, den) = (
            u64::from(rate.num()) * u64::from(base.num),
            u64::from(rate.den()) * u64::from(base.den),
        );
        i64::try_from(den / num).unwrap_or(1)
    };
    info.average_frame_rate.map_or(1, ticks).max(1)
}
