//! A first pass over a file: the times of its frames, and where
//! decoding can start.
//!
//! The reference is a straight decode of the whole file. Reading packets without decoding them gives the
//! same times if their headers are unambiguous ([`PacketHeaders`]); otherwise the file is
//! decoded once for the times of its frames.

use super::{
    clock::Clock,
    ffmpeg::{self, Demuxer, Packet, Parser, PictureTimes, Read, Received, StreamDecoder, Threads},
    info::VideoInfo,
    packet_headers::{EntryKind, PacketHeaders, Parity, Shows},
    timeline::{EntryPoint, Timeline, TimelineFrame},
};
use crate::{
    cancel::Cancel,
    error::{Error, Kind, Result},
};

/// Damaged reads in a row after which the rest of a file is given up.
pub const DAMAGED_READS_MAX: u32 = 64;

/// Result of the first pass over a file.
#[derive(Debug)]
pub struct Survey {
    /// The times of the frames.
    pub timeline: Timeline,
    /// Assigns decoded pictures the times of the timeline.
    pub clock: Clock,
    /// Whether the frames were decoded to find their times, so that their numbers are certain.
    pub is_decoded: bool,
    /// Whether decoding from the timeline's entry points gives the same frames as a straight decode.
    pub can_jump: bool,
    /// Whether each packet is one picture, so that unreferenced ones can be skipped.
    pub can_leave_out: bool,
    /// Whether the first picture is an entry point; otherwise pictures before the next entry point may not decode.
    pub begins_well: bool,
    /// Packets of the video stream.
    pub n_packets: u64,
    /// How often times jumped back.
    pub n_splices: u64,
    /// Packets that the demuxer marks as damaged; they are decoded nevertheless.
    pub n_damaged: u64,
    /// Whether the file is truncated.
    pub is_cut_off: bool,
}

impl Survey {
    /// Surveys the file of `info`; `demuxer` is at its beginning.
    ///
    /// # Errors
    /// `BadInput` for a file without a packet of video, `Interrupted`.
    pub fn of(mut demuxer: Demuxer, info: &VideoInfo, cancel: &Cancel) -> Result<Self> {
        let damaged_before = ffmpeg::damaged_packets();
        let mut packets = Packets::new(&demuxer);
        let ended_in_damage = packets.read_all(&mut demuxer)?;
        if packets.n == 0 {
            let message = "the file has a video stream without frames";
            return Err(Error::new(Kind::BadInput, message));
        }
        let n_splices = demuxer.n_splices();
        let n_damaged = ffmpeg::damaged_packets() - damaged_before;
        let is_torn = packets.torn.is_some();
        let is_cut_off = ended_in_damage || is_torn || ffmpeg::said_truncated();
        let is_whole = n_splices == 0 && n_damaged == 0 && !is_torn;
        let is_sure = is_whole && packets.are_sure(demuxer.reorders());
        let (frames, clock) = match is_sure {
            true => (packets.frames, Clock::of_packets(info)),
            false => decoded_frames(info, cancel)?,
        };
        // Entry points are found by the times of their packets, which must be those of the pictures.
        let can_jump = is_whole
            && clock.packets_have_times()
            && packets.has_all_times
            && packets.entries.is_sorted_by(|a, b| a.ticks < b.ticks);
        // A field's length is half of its frame's.
        let last_ticks = packets.last_ticks.filter(|_| !packets.has_fields);
        let entries = match can_jump {
            true => packets.entries,
            false => Vec::new(),
        };
        Ok(Self {
            timeline: Timeline::new(info.time_base, frames, entries).ending(last_ticks),
            clock,
            is_decoded: !is_sure,
            can_jump,
            can_leave_out: can_jump && !packets.has_fields,
            begins_well: packets.begins_well == Some(true),
            n_packets: packets.n,
            n_splices,
            n_damaged,
            is_cut_off,
        })
    }
}

/// The properties of a file's packets, in storage order.
struct Packets {
    headers: PacketHeaders,
    parser: Option<Parser>,
    frames: Vec<TimelineFrame>,
    entries: Vec<EntryPoint>,
    n: u64,
    /// The time of a packet that the end of the file truncates.
    torn: Option<i64>,
    /// The latest presentation time, and how long its packet is shown.
    last_pts: Option<i64>,
    last_ticks: Option<i64>,
    /// The first of two fields, whose second must follow.
    open_field: Option<Parity>,
    has_fields: bool,
    has_all_times: bool,
    /// Whether every packet's presentation time equals its decoding time.
    are_decoding_times: bool,
    /// Whether all headers so far were unambiguous.
    are_clear: bool,
    /// Whether the first picture is an entry point.
    begins_well: Option<bool>,
}

impl Packets {
    fn new(demuxer: &Demuxer) -> Self {
        let headers = demuxer.headers();
        Self {
            parser: headers
                .wants_parser()
                .then(|| Parser::open(demuxer))
                .flatten(),
            headers,
            frames: Vec::new(),
            entries: Vec::new(),
            n: 0,
            torn: None,
            last_pts: None,
            last_ticks: None,
            open_field: None,
            has_fields: false,
            has_all_times: true,
            are_decoding_times: true,
            are_clear: true,
            begins_well: None,
        }
    }

    /// Reads to the end; true if damage ends it.
    fn read_all(&mut self, demuxer: &mut Demuxer) -> Result<bool> {
        let mut damaged = 0;
        loop {
            match demuxer.read()? {
                Read::Packet(packet) => {
                    damaged = 0;
                    self.take(&packet);
                }
                Read::Damaged if damaged < DAMAGED_READS_MAX => damaged += 1,
                Read::Damaged => return Ok(true),
                Read::End => return Ok(damaged > 0),
            }
        }
    }

    fn take(&mut self, packet: &Packet) {
        self.n += 1;
        let parsed = self.parser.as_mut().map(|parser| parser.read(packet));
        let parsed = parsed.unwrap_or_default();
        let header = self.headers.read(packet.data(), parsed);
        self.torn = packet.pts().filter(|_| packet.is_torn());
        self.are_decoding_times &= packet.pts() == packet.dts();
        if header.shows != Shows::Nothing || self.begins_well.is_some() {
            self.begins_well
                .get_or_insert(header.start != EntryKind::No && packet.is_key());
        }
        if self.is_second_field(header.shows) {
            return;
        }
        if packet.pts() > self.last_pts {
            (self.last_pts, self.last_ticks) = (packet.pts(), packet.duration());
        }
        let Some(ticks) = packet.pts() else {
            self.has_all_times &= header.shows == Shows::Nothing;
            return;
        };
        // An entry point needs both: the container's key flag, and a picture type that allows it.
        let key = packet.is_key() && header.start != EntryKind::No;
        if key {
            self.entries.push(EntryPoint {
                ticks,
                seek_ticks: packet.dts().map_or(ticks, |dts| dts.min(ticks)),
                frame: 0,
            });
        }
        if header.shows != Shows::Nothing && !packet.is_hidden() {
            self.frames.push(TimelineFrame { ticks, key });
        }
    }

    /// Whether the packet completes the frame of the previous one; keeps track of fields.
    fn is_second_field(&mut self, shows: Shows) -> bool {
        let before = self.open_field.take();
        match (before, shows) {
            (None, Shows::Field(parity)) => {
                self.has_fields = true;
                self.open_field = Some(parity);
                false
            }
            (Some(first), Shows::Field(second)) if first != second => true,
            (before, Shows::Frame | Shows::Nothing) => {
                self.are_clear &= before.is_none();
                false
            }
            (_, Shows::Field(_) | Shows::Unknown) => {
                self.are_clear = false;
                false
            }
        }
    }

    /// Whether a decoder outputs exactly [`Packets::frames`]. `reorders` tells whether pictures are shown in
    /// another order than storage order.
    fn are_sure(&self, reorders: bool) -> bool {
        // Some writers store decoding times as presentation times; with reordering these are wrong.
        let are_false = reorders && self.are_decoding_times && self.n > 1;
        let is_even = self.open_field.is_none();
        self.are_clear
            && is_even
            && self.has_all_times
            && !are_false
            && self.begins_well == Some(true)
            && self.shows_nothing_before_its_start()
            && self.have_distinct_times()
    }

    /// Pictures shown before the first entry point refer to missing pictures and may not decode.
    fn shows_nothing_before_its_start(&self) -> bool {
        let start = self.entries.first().map(|entry| entry.ticks);
        start.is_some_and(|start| self.frames.iter().all(|frame| frame.ticks >= start))
    }

    fn have_distinct_times(&self) -> bool {
        let mut ticks: Vec<i64> = self.frames.iter().map(|frame| frame.ticks).collect();
        ticks.sort_unstable();
        ticks.is_sorted_by(|a, b| a < b)
    }
}

/// The frames of a file, found by decoding all of it, and the clock that reproduces their times.
fn decoded_frames(info: &VideoInfo, cancel: &Cancel) -> Result<(Vec<TimelineFrame>, Clock)> {
    let pictures = decoded_pictures(info, cancel)?;
    let clock = Clock::of_pictures(info, &pictures);
    let mut walk = clock.clone();
    let frames = pictures
        .iter()
        .map(|times| TimelineFrame {
            ticks: walk.ticks(times),
            key: times.key,
        })
        .collect();
    Ok((frames, clock))
}

fn decoded_pictures(info: &VideoInfo, cancel: &Cancel) -> Result<Vec<PictureTimes>> {
    let mut demuxer = Demuxer::open(&info.path, cancel)?;
    let mut decoder = StreamDecoder::open(&demuxer, Threads::Several)?;
    let (mut pictures, mut damaged) = (Vec::new(), 0);
    loop {
        match decoder.receive() {
            Received::Picture(times) => pictures.push(times),
            Received::Damaged => {}
            Received::End => return Ok(pictures),
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
}
