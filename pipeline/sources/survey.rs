//! A file looked over before its first frame is wanted: when its frames are shown, and where
//! decoding can start.
//!
//! A straight decode of the whole file is the truth. Reading packets without decoding them gives the
//! same where their own headers leave no doubt ([`PacketHeaders`]); where they do, the file is
//! decoded once for the times of its frames.

use super::{
    clock::Clock,
    ffmpeg::{self, Decoder, Demuxer, Packet, Parser, PictureTimes, Read, Received, Threads},
    info::VideoInfo,
    packet_headers::{PacketHeaders, Parity, Shows, Start},
    timeline::{EntryPoint, Timeline, TimelineFrame},
};
use crate::{
    cancel::Cancel,
    error::{Error, Kind, Result},
};

/// Damaged reads in a row after which the rest of a file is given up.
pub const DAMAGED_READS_MAX: u32 = 64;

/// What looking a file over has found.
#[derive(Debug)]
pub struct Survey {
    /// When the frames are shown.
    pub timeline: Timeline,
    /// Gives decoded pictures the times of the timeline.
    pub clock: Clock,
    /// Whether the frames were decoded to find their times, so that there is no doubt of their numbers.
    pub is_decoded: bool,
    /// Whether decoding may start at the timeline's entry points, and gives what a straight decode gives.
    pub can_jump: bool,
    /// Whether each packet is one picture, so that some can be left out without harm.
    pub can_leave_out: bool,
    /// Whether the first picture is one at which decoding can start: else some before the next such one do not come out.
    pub begins_well: bool,
    /// Packets of the video stream.
    pub n_packets: u64,
    /// How often times fell back.
    pub n_splices: u64,
    /// Packets that the container's reader found damaged; they are decoded all the same.
    pub n_damaged: u64,
    /// Whether the file ends before its own end.
    pub is_cut_off: bool,
}

impl Survey {
    /// Looks the file of `info` over; `demuxer` stands at its beginning.
    ///
    /// # Errors
    /// `BadInput` for a file without a packet of video, `Interrupted`.
    pub fn of(mut demuxer: Demuxer, info: &VideoInfo, cancel: &Cancel) -> Result<Self> {
        let damaged_before = ffmpeg::damaged_packets();
        let mut packets = Packets::new(&demuxer);
        let ended_in_damage = packets.read_all(&mut demuxer)?;
        if packets.n == 0 {
            let message = "the file has a video stream, but no frame of it";
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
        // Entry points are found by the times of their packets, which have to be those of the pictures.
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

/// What the packets of a file say, in the order in which they are stored.
struct Packets {
    headers: PacketHeaders,
    parser: Option<Parser>,
    frames: Vec<TimelineFrame>,
    entries: Vec<EntryPoint>,
    n: u64,
    /// The time of a packet that the end of the file tears apart.
    torn: Option<i64>,
    /// The latest presentation time, and how long its packet is shown.
    last_pts: Option<i64>,
    last_ticks: Option<i64>,
    /// The first of two fields, whose other one has to follow.
    open_field: Option<Parity>,
    has_fields: bool,
    has_all_times: bool,
    /// Whether every packet's time is the one at which it is decoded.
    are_decoding_times: bool,
    /// Whether headers left no doubt so far.
    are_clear: bool,
    /// Whether the first picture is one at which decoding can start.
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

    /// Reads to the end; whether it is one of damage.
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
                .get_or_insert(header.start != Start::No && packet.is_key());
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
        // A start counts where both container and picture call it one.
        let key = packet.is_key() && header.start != Start::No;
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

    /// Whether the packet completes the frame of the one before it; keeps account of fields.
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

    /// Whether a decoder shows exactly [`Packets::frames`]. `reorders` says whether pictures are shown in
    /// another order than they are stored in.
    fn are_sure(&self, reorders: bool) -> bool {
        // Decoding times that were stored as presentation times.
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

    /// Pictures that are shown before the first start refer to what is not there, and may not come out.
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

/// The frames of a file by decoding all of them, and the clock that gives their times again.
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
    let mut decoder = Decoder::open(&demuxer, Threads::Several)?;
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
