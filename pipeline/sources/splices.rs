//! Concatenated recordings: files of a camera or recorder, joined one
//! after the other, each with its own clock.

use crate::time::TimeBase;

/// The properties that tell whether a packet continues the recording of the previous one.
#[derive(Debug, Clone, Copy)]
pub struct PacketTimes {
    /// Decoding time.
    pub dts: i64,
    /// Presentation time.
    pub pts: i64,
    /// Ticks that it is shown for; 0 if the container does not state them.
    pub duration: i64,
    /// The container's key flag.
    pub key: bool,
}

/// If decoding times jump back, that packet and all later ones are shifted, to be shown after
/// all that came before.
#[derive(Debug)]
pub struct Splices {
    /// Ticks of one second: times of one recording may be out of order by less.
    second: i64,
    /// Decoding time of the last packet, shifted; `None` at the start and after a seek.
    last_dts: Option<i64>,
    /// End of presentation of all packets so far, shifted.
    end: i64,
    offset: i64,
    count: u64,
}

impl Splices {
    /// No splices yet, in a stream with this time base.
    pub fn new(time_base: TimeBase) -> Self {
        let second = i64::from(time_base.den / time_base.num).max(1);
        Self {
            second,
            last_dts: None,
            end: i64::MIN,
            offset: 0,
            count: 0,
        }
    }

    /// The shift of the next packet's times, in ticks.
    pub fn offset_at(&mut self, packet: &PacketTimes) -> i64 {
        if self.is_fall(packet) {
            self.offset = self.end.saturating_sub(packet.pts);
            self.count += 1;
        }
        self.last_dts = Some(packet.dts.saturating_add(self.offset));
        let end = packet.pts.saturating_add(packet.duration.max(1));
        self.end = self.end.max(end.saturating_add(self.offset));
        self.offset
    }

    /// Whether a recording begins at the packet: within one, decoding times do not decrease except for
    /// damaged packets; and a recording may end anywhere, but begins with a key picture.
    fn is_fall(&self, packet: &PacketTimes) -> bool {
        let moved = packet.dts.saturating_add(self.offset);
        self.last_dts.is_some_and(|last| {
            moved < last.saturating_sub(self.second) || packet.key && moved < last
        })
    }

    /// Number of splices so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// To be called after a seek.
    pub fn forget_last(&mut self) {
        self.last_dts = None;
    }
}
