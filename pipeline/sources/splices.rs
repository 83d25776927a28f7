//! Recordings that were strung together: a camera's or a recorder's files, one
//! behind the other, each with its own clock.

use crate::time::TimeBase;

/// What tells whether a packet belongs to the recording of the one before it.
#[derive(Debug, Clone, Copy)]
pub struct PacketTimes {
    /// Decoding time.
    pub dts: i64,
    /// Presentation time.
    pub pts: i64,
    /// Ticks that it is shown for; 0 where the container does not say.
    pub duration: i64,
    /// Whether the container says that decoding can start at it.
    pub key: bool,
}

/// Where decoding times fall back, that packet and all later ones are moved on, to be shown behind
/// all that came before.
#[derive(Debug)]
pub struct Splices {
    /// Ticks of one second: times of one recording may be out of order by less.
    second: i64,
    /// When the last packet is decoded, moved; `None` at the start and after a seek.
    last_dts: Option<i64>,
    /// When the last of all packets stops being shown, moved.
    end: i64,
    offset: i64,
    count: u64,
}

impl Splices {
    /// None so far, in a stream with this time base.
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

    /// How far the times of the next packet have to be moved.
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

    /// Whether a recording begins at the packet: decoding times never fall within one, but for
    /// damaged ones, and a recording can be cut off anywhere but begins with a key picture.
    fn is_fall(&self, packet: &PacketTimes) -> bool {
        let moved = packet.dts.saturating_add(self.offset);
        self.last_dts.is_some_and(|last| {
            moved < last.saturating_sub(self.second) || packet.key && moved < last
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Reading goes on elsewhere in the file.
    pub fn forget_last(&mut self) {
        self.last_dts = None;
    }
}
