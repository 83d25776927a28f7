//! A video file as frames: opened, indexed, and read in presentation order.
//!
//! Opening finds the time of every frame ([`Survey`]). Which frames to take is decided from those
//! times; then they are decoded, either straight through or jumping over whole groups of pictures
//! that hold none of them. Both give the same frames: decoding starts where container and picture
//! agree that it can, not just where FFmpeg's seek lands, and when a jump does not give
//! the frame it was made for, or damage is found, the file is decoded straight instead.

use std::{collections::BTreeSet, path::Path};

use longreel_models::file_name::FileName;
use serde::Serialize;

use super::{
    address,
    clock::Clock,
    ffmpeg::{Converter, Demuxer, Packet, PictureTimes, Read, Received, StreamDecoder, Threads},
    sampler::{self, Sampling, TimeRange},
    survey::{DAMAGED_READS_MAX, Survey},
};
pub use super::{info::VideoInfo, timeline::Timeline};
use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    flow::{Frame, FrameTime},
    time::Pts,
};

/// Minimum frames that a jump must save: fewer are decoded faster than the decoder is refilled.
const JUMP_FRAMES_MIN: usize = 16;
/// A jump over at least this many frames seeks in the file; a shorter one reads and drops packets.
const SEEK_FRAMES_MIN: usize = 256;

/// How the chosen frames are decoded.
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

/// Statistics and warnings of reading so far.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DecodeReport {
    /// Frames decoded.
    pub decoded: u64,
    /// Frames returned.
    pub emitted: u64,
    /// Packets that the demuxer or the decoder rejected.
    pub corrupt_packets_skipped: u64,
    /// Packets that the demuxer marks as damaged; they are decoded nevertheless.
    pub packets_marked_damaged: u64,
    /// Frames that the decoder reports as damaged; they are returned, marked.
    pub corrupt_frames: u64,
    /// Frames that were chosen but did not decode.
    pub missing: u64,
    /// Whether the file is truncated.
    pub truncated: bool,
    /// Warnings for people, each once.
    pub warnings: BTreeSet<String>,
    /// `seek` once a jump was made, else `straight`.
    pub strategy: Strategy,
}

/// Reads the chosen frames of a file in order.
pub struct FrameReader {
    info: VideoInfo,
    timeline: Timeline,
    /// Numbers of the chosen frames, ascending; `None` for every frame that decodes.
    chosen: Option<Vec<usize>>,
    /// Index in `chosen` of the next frame.
    cursor: usize,
    /// Number of the frame that follows the last one decoded.
    next_number: usize,
    demuxer: Demuxer,
    decoder: StreamDecoder,
    converter: Converter,
    clock: Clock,
    strategy: Strategy,
    /// Whether frame numbers come from a decode of the whole file.
    is_decoded: bool,
    can_leave_out: bool,
    begins_well: bool,
    /// Decoder warnings to ignore: those about pictures that are not shown.
    n_complaints: u64,
    /// Whether decoding found damage, after which it is straight and single-threaded.
    saw_damage: bool,
    /// Number of the first frame not returned yet, if every frame is returned.
    resume_at: usize,
    /// While set, packets are dropped up to the key packet of this time.
    skip_to: Option<i64>,
    /// After a jump, the time of the picture that must be decoded first.
    entry: Option<i64>,
    jumped: bool,
    ended: bool,
    damaged_reads: u32,
    report: DecodeReport,
    /// The report before the first frame.
    opened: DecodeReport,
    cancel: Cancel,
}

/// Opens `path` and returns its video's information.
pub fn probe(path: &Path, cancel: &Cancel) -> Result<VideoInfo> {
    check_file(path)
        .and_then(|()| Demuxer::open(path, cancel)?.info(path))
        .doing(|| format!("open {}", path.shown()))
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

    /// [`FrameReader::open`] with an explicit strategy.
    pub fn open_with(
        path: &Path,
        sampling: &Sampling,
        range: &TimeRange,
        cancel: Cancel,
        strategy: Strategy,
    ) -> Result<Self> {
        Self::looked_over(path, sampling, range, cancel, strategy)
            .doing(|| format!("open {}", path.shown()))
    }

    fn looked_over(
        path: &Path,
        sampling: &Sampling,
        range: &TimeRange,
        cancel: Cancel,
        mut strategy: Strategy,
    ) -> Result<Self> {
        check_file(path)?;
        let demuxer = Demuxer::open(path, &cancel)?;
        let mut info = demuxer.info(path)?;
        let survey = Survey::of(demuxer, &info, &cancel)?;
        let mut report = DecodeReport::default();
        judge(&survey, &info, &mut report);
        if !survey.can_jump {
            strategy = Strategy::Straight;
        }
        let timeline = survey.timeline;
        if !info.still {
            info.duration = timeline.duration();
        }
        let is_everything = *sampling == Sampling::Every && *range == TimeRange::ALL;
        let chosen = if is_everything {
            None
        } else {
            Some(choose(&with_rate(sampling, &info), range, &timeline)?)
        };
        let demuxer = Demuxer::open(path, &cancel)?;
        let decoder = StreamDecoder::open(&demuxer, Threads::Several)?;
        Ok(Self {
            converter: Converter::new(&info),
            clock: survey.clock,
            info,
            timeline,
            is_decoded: survey.is_decoded,
            can_leave_out: survey.can_leave_out,
            begins_well: survey.begins_well,
            n_complaints: 0,
            saw_damage: false,
            resume_at: 0,
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

    /// The video's information.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// The times of all frames, chosen or not.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// When the video's first frame is shown, in ticks.
    pub fn start(&self) -> i64 {
        self.timeline.frames.first().map_or(0, |frame| frame.ticks)
    }

    /// Seconds from the first chosen frame to the last.
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

    /// The time of the next chosen frame, if it decodes; `None` after the last.
    pub fn next_time(&self) -> Option<Pts> {
        let number = match &self.chosen {
            Some(chosen) => *chosen.get(self.cursor)?,
            None => self.next_number,
        };
        let frame = self.timeline.frames.get(number)?;
        Some(Pts::new(frame.ticks, self.timeline.time_base))
    }

    /// Restarts with the frames `numbers`, which must rise strictly. The index built when opening
    /// is kept: the file is not scanned again.
    ///
    /// # Errors
    /// `Internal` for no number or one that the video does not have, and where the file cannot be
    /// opened again.
    pub fn again(mut self, numbers: Vec<usize>) -> Result<Self> {
        let n_frames = self.timeline.frames.len();
        let is_rising = numbers.is_sorted_by(|a, b| a < b);
        if !is_rising || numbers.last().is_none_or(|&last| last >= n_frames) {
            let message = format!(
                "{} numbers out of {n_frames} frames, expected ascending ones below that",
                numbers.len()
            );
            return Err(Error::new(Kind::Internal, message));
        }
        (self.chosen, self.cursor) = (Some(numbers), 0);
        self.rewind()
            .doing(|| format!("open {}", self.info.path.shown()))?;
        (self.ended, self.damaged_reads, self.resume_at) = (false, 0, 0);
        self.report = self.opened.clone();
        Ok(self)
    }

    /// How long the video is shown, in seconds ([`VideoInfo::duration`]); `None` for a still picture.
    pub fn shown_seconds(&self) -> Option<f64> {
        self.info.duration.map(|duration| duration.seconds())
    }

    /// Number of frames that will be returned if all of them decode.
    pub fn expected_frames(&self) -> Option<u64> {
        Some(
            self.chosen
                .as_ref()
                .map_or(self.timeline.frames.len(), Vec::len) as u64,
        )
    }

    /// Statistics and warnings of reading so far.
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
            (
                report.packets_marked_damaged,
                "packets are marked as damaged; they were decoded nevertheless",
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
        if self.saw_damage && !self.is_decoded && self.chosen.is_some() {
            let message = "damage was found while decoding: the numbers of frames behind it, and which of them were \
                chosen, may differ from those of a decode of every frame";
            report.warnings.insert(message.into());
        }
        report
    }

    /// The next chosen frame in presentation order.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        self.advance().doing(|| {
            let since_start =
                |t: i64| Pts::new(t.saturating_sub(self.start()), self.info.time_base);
            let at = self.pending().map(since_start);
            let at = at.map_or(String::new(), |t| format!("frame at {t} of "));
            format!("decode {at}{}", self.info.path.shown())
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
                Received::Damaged => self.skip_damaged()?,
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

    /// Handles the end of decoding.
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

    /// The time of the next chosen frame.
    fn pending(&self) -> Option<i64> {
        let number = *self.chosen.as_ref()?.get(self.cursor)?;
        self.timeline.frames.get(number).map(|frame| frame.ticks)
    }

    /// Whether a frame of this time is chosen, or may replace a chosen one that does not decode.
    fn is_chosen(&self, ticks: i64) -> bool {
        let Some(chosen) = &self.chosen else {
            return true;
        };
        // In a damaged file the frame after a missing one replaces it, so no frame may be skipped.
        let is_sure = self.can_leave_out && !self.report.truncated;
        !is_sure || chosen.binary_search(&self.timeline.number(ticks)).is_ok()
    }

    /// Handles a packet that cannot be decoded.
    fn skip_damaged(&mut self) -> Result<()> {
        // Pictures stored after an entry point and shown before it may lack their reference pictures.
        if self.entry.is_some() || self.find_damage()? {
            return Ok(());
        }
        self.report.corrupt_packets_skipped += 1;
        Ok(())
    }

    /// Whether the last picture, or one that it may refer to, is damaged.
    fn is_damaged(&mut self, times: &PictureTimes) -> bool {
        let n = self.decoder.n_complaints();
        let is_new = n > self.n_complaints;
        self.n_complaints = n;
        // The decoder warns of pictures without their references: those that are shown before an
        // entry point and stored after it, and those at the beginning of a file that was cut there.
        let begins_badly = !self.begins_well && self.report.decoded == 0;
        let is_start = self.entry.is_some() || begins_badly;
        times.corrupt || is_new && !is_start
    }

    /// Damage spreads from picture to picture, and differently when some are jumped over, skipped
    /// or decoded in parallel: the file is then decoded again, straight and on one thread. False if it
    /// already is.
    fn find_damage(&mut self) -> Result<bool> {
        if self.saw_damage {
            return Ok(false);
        }
        self.saw_damage = true;
        self.report.corrupt_packets_skipped = self.opened.corrupt_packets_skipped;
        self.report.corrupt_frames = self.opened.corrupt_frames;
        self.go_straight()?;
        Ok(true)
    }

    /// Jumps to the entry point before the pending frame, if that saves enough decoding.
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
        self.clock.jump();
        self.skip_to = Some(entry.ticks);
        if saved >= seek_min && self.demuxer.seek(entry.seek_ticks).is_err() {
            return self.go_straight();
        }
        Ok(())
    }

    /// Restarts from the file's first packet, without further jumps.
    fn go_straight(&mut self) -> Result<()> {
        self.strategy = Strategy::Straight;
        self.can_leave_out = false;
        self.rewind()
    }

    fn threads(&self) -> Threads {
        match self.saw_damage {
            true => Threads::One,
            false => Threads::Several,
        }
    }

    /// Rewinds to the file's first packet.
    fn rewind(&mut self) -> Result<()> {
        self.demuxer = Demuxer::open(&self.info.path, &self.cancel)?;
        self.decoder = StreamDecoder::open(&self.demuxer, self.threads())?;
        self.n_complaints = 0;
        self.clock.restart();
        self.next_number = 0;
        (self.skip_to, self.entry, self.jumped) = (None, None, false);
        Ok(())
    }

    /// Feeds the decoder its next packet, or the end of the stream.
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
        match self.decoder.send(packet) {
            true => Ok(()),
            false => self.skip_damaged(),
        }
    }

    /// Returns the decoder's picture if it is chosen.
    fn consider(&mut self, times: PictureTimes) -> Result<Option<Frame>> {
        let ticks = self.clock.ticks(&times);
        if self.has_landed_wrong(ticks) {
            self.go_straight()?;
            return Ok(None);
        }
        if self.is_damaged(&times) && self.find_damage()? {
            return Ok(None);
        }
        let number = self.number(ticks);
        self.next_number = number + 1;
        self.report.decoded += 1;
        self.report.corrupt_frames += u64::from(times.corrupt);
        let is_early = self.pending().is_some_and(|pending| ticks < pending);
        if is_early || number < self.resume_at {
            return Ok(None);
        }
        self.take_up_to(ticks);
        if self.chosen.is_none() {
            self.resume_at = number + 1;
        }
        let image = self.converter.convert(&self.decoder)?;
        let key = self.timeline.at(ticks).map_or(times.key, |frame| frame.key);
        let time = FrameTime {
            index: number as u64,
            pts: Pts::new(ticks, self.info.time_base),
            start: self.start(),
        };
        self.report.emitted += 1;
        Ok(Some(Frame {
            time,
            key,
            corrupt: times.corrupt,
            image,
        }))
    }

    /// The number of the decoded picture at `ticks`.
    fn number(&self, ticks: i64) -> usize {
        match &self.chosen {
            // Every frame is decoded and handed on: they are counted.
            None => self.next_number,
            Some(_) => self.timeline.number(ticks).max(self.next_number),
        }
    }

    /// Whether a jump has given other frames than straight decoding would: its entry
    /// point did not decode completely, as with H.264's gradual refresh, where a "key"
    /// picture needs many more to be complete; or its target frame did not decode.
    fn has_landed_wrong(&mut self, ticks: i64) -> bool {
        if !self.jumped {
            return false;
        }
        // Pictures shown before the entry point but stored after it may or may not decode.
        let entry_missed = self.entry.is_some_and(|entry| ticks > entry);
        self.entry = self.entry.filter(|&entry| ticks < entry);
        entry_missed || self.pending().is_some_and(|pending| ticks > pending)
    }

    /// Moves the cursor past the chosen frame at `ticks`. A frame that follows
    /// chosen ones which did not decode replaces the last of them.
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
        // An error is returned once.
        self.ended |= matches!(next, Some(Err(_)));
        next
    }
}

/// `BadInput` for anything but a regular file with content, before FFmpeg opens it.
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

/// The numbers of the frames to return; at least one.
fn choose(sampling: &Sampling, range: &TimeRange, timeline: &Timeline) -> Result<Vec<usize>> {
    let ticks: Vec<i64> = timeline.frames.iter().map(|frame| frame.ticks).collect();
    let chosen = sampler::select(sampling, range, &ticks, timeline.time_base)?;
    let (Some(&first), Some(&last)) = (ticks.first(), ticks.last()) else {
        return Err(Error::new(Kind::BadInput, "the video has no frames"));
    };
    if chosen.is_empty() {
        let last = Pts::new(last.saturating_sub(first), timeline.time_base);
        let message = format!(
            "no frame is in the range asked for: the video's are from 00:00:00.000 to {last}"
        );
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(chosen)
}

/// Adds the faults that the survey found to the report.
fn judge(survey: &Survey, info: &VideoInfo, report: &mut DecodeReport) {
    report.packets_marked_damaged = survey.n_damaged;
    if survey.n_splices > 0 {
        let message = format!(
            "times jump back {} times; later frames are shifted to follow",
            survey.n_splices
        );
        report.warnings.insert(message);
    }
    let declared = info
        .declared_frames
        .filter(|_| info.container.starts_with("mov"));
    let fewer = declared.filter(|&n| n > survey.n_packets);
    report.truncated = survey.is_cut_off || fewer.is_some();
    if report.truncated {
        let of = fewer.map_or(String::new(), |n| format!(" of {n}"));
        report.warnings.insert(format!(
            "the file is truncated: it has {}{of} frames",
            survey.n_packets
        ));
    }
}
