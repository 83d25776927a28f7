//! Parses packets for the pictures in them: whether the decoder will output a frame for
//! a packet, and whether decoding can start there. Containers state neither reliably.
//!
//! Syntax elements are those of ITU-T H.264 (7.3.1, 7.3.3), H.265 (7.3.1.2, 7.4.2.2), ISO 13818-2
//! (6.2.3), ISO 14496-2 (6.2.5), RFC 6386 (VP8, 9.1) and the VP9 bitstream specification (6.2,
//! annex B).

/// What the decoder outputs for one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// One frame.
    Frame,
    /// One field, half of a frame, whose other field is in the previous or next packet.
    Field(Parity),
    /// Nothing: its picture is only a reference for other pictures.
    Nothing,
    /// Only decoding can tell.
    Unknown,
}

/// Which lines of a frame a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parity {
    /// The first line and every second one.
    Top,
    /// The second line and every second one.
    Bottom,
}

/// Whether decoding can start at a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Yes, and no picture stored after it refers to one before it.
    Clean,
    /// Yes, but pictures stored after it and shown before it may refer to pictures before it.
    Open,
    /// No.
    No,
}

/// Result of parsing one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketHeader {
    /// What the decoder outputs for it.
    pub shows: Shows,
    /// Whether decoding can start at it.
    pub start: EntryKind,
}

impl PacketHeader {
    const UNKNOWN: Self = Self {
        shows: Shows::Unknown,
        start: EntryKind::No,
    };
}

/// Facts from FFmpeg's parser, for headers that cannot be read without parameter sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParsedPicture {
    /// The field that the packet's first picture is; `None` for a frame.
    pub field: Option<Parity>,
    /// Whether the parser marks it as a key picture.
    pub is_start: bool,
}

/// Codecs whose headers are parsed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Syntax {
    /// A picture file, whose packets are frames and have no bytes.
    Pictures,
    /// Every packet is a frame by itself.
    IntraOnly,
    H264,
    Hevc,
    Mpeg12,
    Mpeg4,
    Vp8,
    Vp9,
    Av1,
    Other,
}

/// Parses the packets of one stream, in storage order from the first on.
#[derive(Debug, Clone)]
pub struct PacketHeaders {
    syntax: Syntax,
    /// Bytes of a NAL unit's length; `None` where start codes separate them.
    length_bytes: Option<usize>,
    /// HEVC: whether the next intra picture begins a sequence, so that its leading pictures are dropped.
    begins: bool,
    /// HEVC: whether skipped leading pictures (RASL) lack their references.
    drops_leading: bool,
}

impl PacketHeaders {
    /// The parser for picture files, which mark their key frames themselves.
    pub fn of_pictures() -> Self {
        Self {
            syntax: Syntax::Pictures,
            length_bytes: None,
            begins: true,
            drops_leading: false,
        }
    }

    /// The parser for a stream of `codec` (FFmpeg's name) with this `extradata`; `intra_only` if the codec has no other pictures.
    pub fn new(codec: &str, extradata: &[u8], intra_only: bool) -> Self {
        let syntax = match codec {
            "h264" => Syntax::H264,
            "hevc" => Syntax::Hevc,
            "mpeg1video" | "mpeg2video" => Syntax::Mpeg12,
            "mpeg4" => Syntax::Mpeg4,
            "vp8" => Syntax::Vp8,
            "vp9" => Syntax::Vp9,
            "av1" => Syntax::Av1,
            _ if intra_only => Syntax::IntraOnly,
            _ => Syntax::Other,
        };
        Self {
            syntax,
            length_bytes: length_bytes(syntax, extradata),
            begins: true,
            drops_leading: false,
        }
    }

    /// Whether [`PacketHeaders::read`] needs the result of FFmpeg's parser.
    pub fn wants_parser(&self) -> bool {
        matches!(self.syntax, Syntax::H264 | Syntax::Av1)
    }

    /// The next packet.
    pub fn read(&mut self, data: &[u8], parsed: ParsedPicture) -> PacketHeader {
        if data.is_empty() && self.syntax != Syntax::Pictures {
            // AVI marks a dropped frame by a chunk without bytes.
            return PacketHeader {
                shows: Shows::Nothing,
                start: EntryKind::No,
            };
        }
        match self.syntax {
            Syntax::IntraOnly | Syntax::Pictures => PacketHeader {
                shows: Shows::Frame,
                start: EntryKind::Clean,
            },
            Syntax::H264 => self.h264(data, parsed),
            Syntax::Hevc => self.hevc(data),
            Syntax::Mpeg12 => mpeg12(data),
            Syntax::Mpeg4 => mpeg4(data),
            Syntax::Vp8 => vp8(data),
            Syntax::Vp9 => vp9(data),
            Syntax::Av1 => PacketHeader {
                // A temporal unit shows exactly one frame (AV1 specification, 7.5).
                shows: Shows::Frame,
                start: if parsed.is_start {
                    EntryKind::Clean
                } else {
                    EntryKind::No
                },
            },
            Syntax::Other => PacketHeader::UNKNOWN,
        }
    }

    fn h264(&self, data: &[u8], parsed: ParsedPicture) -> PacketHeader {
        let (mut pictures, mut is_idr) = (0, false);
        for unit in self.units(data) {
            let kind = unit.first().map_or(0, |head| head & 0x1f);
            // Slices of a picture, whole (1, 5) or the first of three partitions (2); first_mb_in_slice is ue(v), 0 is `1`.
            let is_slice = matches!(kind, 1 | 2 | 5);
            if is_slice && unit.get(1).is_some_and(|byte| byte & 0x80 != 0) {
                pictures += 1;
                is_idr |= kind == 5;
            }
        }
        let shows = match (pictures, parsed.field) {
            (0, _) => Shows::Nothing,
            (1, None) | (2, Some(_)) => Shows::Frame,
            (1, Some(parity)) => Shows::Field(parity),
            _ => Shows::Unknown,
        };
        let start = match (is_idr, parsed.is_start) {
            (true, _) => EntryKind::Clean,
            (false, true) => EntryKind::Open,
            (false, false) => EntryKind::No,
        };
        PacketHeader { shows, start }
    }

    fn hevc(&mut self, data: &[u8]) -> PacketHeader {
        let (mut pictures, mut kind, mut ends) = (0, None, false);
        for unit in self.units(data) {
            let &[head, layer, ..] = unit else { continue };
            // Units of further layers (nuh_layer_id) are not decoded.
            if head & 1 != 0 || layer >> 3 != 0 {
                continue;
            }
            let unit_kind = head >> 1 & 0x3f;
            match unit_kind {
                0..=31 if unit.get(2).is_some_and(|byte| byte & 0x80 != 0) => {
                    pictures += 1;
                    kind = kind.or(Some(unit_kind));
                }
                // End of sequence, end of bitstream.
                36 | 37 => ends = true,
                _ => {}
            }
        }
        let header = self.hevc_picture(pictures, kind);
        self.begins |= ends;
        header
    }

    fn hevc_picture(&mut self, pictures: usize, kind: Option<u8>) -> PacketHeader {
        let Some(kind) = kind.filter(|_| pictures == 1) else {
            let shows = match pictures {
                0 => Shows::Nothing,
                _ => Shows::Unknown,
            };
            let start = EntryKind::No;
            return PacketHeader { shows, start };
        };
        let start = match kind {
            19 | 20 => EntryKind::Clean,
            16..=18 | 21 => EntryKind::Open,
            _ => EntryKind::No,
        };
        if start != EntryKind::No {
            // After a broken link (BLA) or at the beginning, leading pictures have no references.
            self.drops_leading = self.begins || matches!(kind, 16..=18);
            self.begins = false;
        }
        let is_dropped = matches!(kind, 8 | 9) && self.drops_leading;
        let shows = match is_dropped {
            true => Shows::Nothing,
            false => Shows::Frame,
        };
        PacketHeader { shows, start }
    }

    /// The NAL units of a packet.
    fn units<'a>(&self, data: &'a [u8]) -> Vec<&'a [u8]> {
        match self.length_bytes {
            Some(n) => units_with_lengths(data, n),
            None => units_between_start_codes(data),
        }
    }
}

/// Bytes of a NAL unit's length, from the decoder configuration records of ISO 14496-15 (5.2.4.1, 8.3.3.1).
fn length_bytes(syntax: Syntax, extradata: &[u8]) -> Option<usize> {
    let at = match syntax {
        Syntax::H264 if extradata.first() == Some(&1) => 4,
        // A start code begins with two zeros and a zero or one; a configuration record does not.
        Syntax::Hevc if !matches!(extradata, [] | [0, 0, 0 | 1, ..]) => 21,
        _ => return None,
    };
    extradata.get(at).map(|byte| usize::from(byte & 3) + 1)
}

fn units_with_lengths(mut data: &[u8], length_bytes: usize) -> Vec<&[u8]> {
    let mut units = Vec::new();
    while let Some((length, rest)) = data.split_at_checked(length_bytes) {
        let length = length.iter().fold(0, |n, &b| n << 8 | usize::from(b));
        // A truncated unit ends with its packet.
        let (unit, behind) = rest.split_at(length.min(rest.len()));
        units.push(unit);
        data = behind;
    }
    units
}

fn units_between_start_codes(data: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = start_codes(data).collect();
    let ends = starts.iter().skip(1).map(|&start| start - 3);
    let ends = ends.chain([data.len()]);
    starts
        .iter()
        .zip(ends)
        .filter_map(|(&start, end)| data.get(start..end))
        .collect()
}

/// The offsets just after each start code (00 00 01).
fn start_codes(data: &[u8]) -> impl Iterator<Item = usize> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let found = data.get(from..)?.windows(3).position(|w| w == [0, 0, 1])?;
        from += found + 3;
        Some(from)
    })
}

/// MPEG-1 and MPEG-2: pictures, or pairs of fields.
fn mpeg12(data: &[u8]) -> PacketHeader {
    let mut fields = Vec::new();
    let mut is_intra = None;
    for start in start_codes(data) {
        match data.get(start..) {
            Some(&[0x00, _, byte, ..]) => {
                // MPEG-1 has whole frames only; MPEG-2 states the fields after this header.
                fields.push(3);
                is_intra = is_intra.or(Some(byte >> 3 & 7 == 1));
            }
            // Picture coding extension (identifier 8): picture_structure follows the f_codes.
            Some(&[0xb5, first, _, structure, ..]) if first >> 4 == 8 => {
                if let Some(last) = fields.last_mut() {
                    *last = structure & 3;
                }
            }
            _ => {}
        }
    }
    let shows = match fields.as_slice() {
        [] => Shows::Nothing,
        [3] | [1, 2] | [2, 1] => Shows::Frame,
        [1] => Shows::Field(Parity::Top),
        [2] => Shows::Field(Parity::Bottom),
        _ => Shows::Unknown,
    };
    let start = match is_intra {
        Some(true) => EntryKind::Open,
        _ => EntryKind::No,
    };
    PacketHeader { shows, start }
}

/// Least size of a picture in MPEG-4 part 2 that is certainly coded: encoders mark a picture that
/// equals the last one as "not coded", in about 8 bytes, and the decoder outputs nothing for it.
const CODED_BYTES_MIN: usize = 16;

/// MPEG-4 part 2.
fn mpeg4(data: &[u8]) -> PacketHeader {
    let pictures = start_codes(data).filter(|&start| data.get(start) == Some(&0xb6));
    let pictures: Vec<usize> = pictures.collect();
    // DivX packs two pictures into one packet, and an empty one into a later packet.
    let &[picture] = pictures.as_slice() else {
        return PacketHeader::UNKNOWN;
    };
    if data.len() - picture < CODED_BYTES_MIN {
        return PacketHeader::UNKNOWN;
    }
    let is_intra = data.get(picture + 1).is_some_and(|byte| byte >> 6 == 0);
    PacketHeader {
        shows: Shows::Frame,
        start: if is_intra {
            EntryKind::Open
        } else {
            EntryKind::No
        },
    }
}

fn vp8(data: &[u8]) -> PacketHeader {
    let tag = data.first().copied().unwrap_or_default();
    let is_shown = tag & 0x10 != 0;
    shown_or_hidden(is_shown, tag & 1 == 0)
}

fn shown_or_hidden(is_shown: bool, is_key: bool) -> PacketHeader {
    PacketHeader {
        shows: if is_shown {
            Shows::Frame
        } else {
            Shows::Nothing
        },
        start: if is_key {
            EntryKind::Clean
        } else {
            EntryKind::No
        },
    }
}

/// VP9: one frame, or a superframe of several of which one is shown.
fn vp9(data: &[u8]) -> PacketHeader {
    let mut headers = Vec::new();
    for frame in vp9_frames(data) {
        match vp9_header(frame) {
            Some(header) => headers.push(header),
            None => return PacketHeader::UNKNOWN,
        }
    }
    let n_shown = headers.iter().filter(|header| header.0).count();
    match (headers.first(), n_shown) {
        (Some(&(_, is_key)), 0 | 1) => shown_or_hidden(n_shown == 1, is_key),
        _ => PacketHeader::UNKNOWN,
    }
}

/// The frames of a superframe, whose index is at the end of the packet; else the one frame.
fn vp9_frames(data: &[u8]) -> Vec<&[u8]> {
    superframe(data).unwrap_or_else(|| vec![data])
}

fn superframe(data: &[u8]) -> Option<Vec<&[u8]>> {
    let marker = *data.last().filter(|byte| *byte & 0xe0 == 0xc0)?;
    let (size_bytes, n) = (
        usize::from(marker >> 3 & 3) + 1,
        usize::from(marker & 7) + 1,
    );
    let index = data.len().checked_sub(2 + size_bytes * n)?;
    if data.get(index) != Some(&marker) {
        return None;
    }
    let (mut frames, sizes) = data.split_at(index);
    let mut split = Vec::new();
    for size in sizes.get(1..1 + size_bytes * n)?.chunks(size_bytes) {
        let size = size.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b));
        let (frame, behind) = frames.split_at_checked(size)?;
        // libvpx writes frames without bytes for layers that it drops.
        if !frame.is_empty() {
            split.push(frame);
        }
        frames = behind;
    }
    Some(split)
}

/// Whether a frame is shown, and whether it is a key frame, from its uncompressed header.
fn vp9_header(frame: &[u8]) -> Option<(bool, bool)> {
    let bits = frame.first()?;
    let bit = |n: u8| bits >> (7 - n) & 1 != 0;
    if bits >> 6 != 2 {
        return None;
    }
    // Profile 3 has one more, reserved bit; its rest begins a bit later.
    let at = if bit(2) && bit(3) { 5 } else { 4 };
    let is_existing = bit(at);
    if is_existing {
        return Some((true, false));
    }
    Some((bit(at + 2), !bit(at + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(codec: &str, data: &[u8]) -> PacketHeader {
        PacketHeaders::new(codec, &[], false).read(data, ParsedPicture::default())
    }

    #[test]
    fn a_vp9_superframe_of_a_hidden_and_a_shown_frame_shows_one() {
        // frame_marker 2, profile 0, not existing, inter (1), hidden (0) or shown (1).
        let (hidden, shown) = (0b1000_0100, 0b1000_0110);
        let data = [hidden, 1, shown, 0b1100_0001, 2, 1, 0b1100_0001];
        assert_eq!(read("vp9", &data).shows, Shows::Frame);
        assert_eq!(read("vp9", &[hidden, 1, 2]).shows, Shows::Nothing);
        assert_eq!(read("vp9", &[0b1000_1000]).shows, Shows::Frame);
        let two_shown = [shown, 1, shown, 0b1100_0001, 2, 1, 0b1100_0001];
        assert_eq!(read("vp9", &two_shown).shows, Shows::Unknown);
    }

    #[test]
    fn leading_pictures_of_hevc_are_dropped_at_the_beginning_and_after_an_end_of_sequence() {
        let unit = |kind: u8| [0, 0, 1, kind << 1, 1, 0x80];
        let mut headers = PacketHeaders::new("hevc", &[], false);
        let mut shows = |kinds: &[u8]| {
            let data: Vec<u8> = kinds.iter().flat_map(|&kind| unit(kind)).collect();
            headers.read(&data, ParsedPicture::default()).shows
        };
        let (cra, rasl, radl, end) = (21, 9, 7, 36);
        let first: Vec<Shows> = [cra, rasl, radl, cra, rasl]
            .iter()
            .map(|&kind| shows(&[kind]))
            .collect();
        assert_eq!(
            first,
            [
                Shows::Frame,
                Shows::Nothing,
                Shows::Frame,
                Shows::Frame,
                Shows::Frame
            ]
        );
        assert_eq!(shows(&[1, end]), Shows::Frame);
        assert_eq!(shows(&[cra]), Shows::Frame);
        assert_eq!(shows(&[rasl]), Shows::Nothing);
    }

    #[test]
    fn a_packet_of_two_mpeg_2_fields_is_a_frame_and_one_of_one_field_is_half_of_it() {
        let picture = |structure: u8| [0, 0, 1, 0, 0, 1 << 3, 0, 0, 0, 1, 0xb5, 0x80, 0, structure];
        assert_eq!(read("mpeg2video", &picture(3)).shows, Shows::Frame);
        assert_eq!(read("mpeg2video", &picture(3)).start, EntryKind::Open);
        assert_eq!(
            read("mpeg2video", &picture(1)).shows,
            Shows::Field(Parity::Top)
        );
        let both = [picture(1), picture(2)].concat();
        assert_eq!(read("mpeg2video", &both).shows, Shows::Frame);
    }

    #[test]
    fn hidden_pictures_of_vp8_output_nothing() {
        assert_eq!(read("vp8", &[0x10]).shows, Shows::Frame);
        assert_eq!(read("vp8", &[0x10]).start, EntryKind::Clean);
        assert_eq!(read("vp8", &[0x01]).shows, Shows::Nothing);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic() {
        for codec in [
            "h264",
            "hevc",
            "mpeg2video",
            "mpeg4",
            "vp8",
            "vp9",
            "av1",
            "svq3",
        ] {
            for extradata in [&[][..], &[1], &[1; 40]] {
                let mut headers = PacketHeaders::new(codec, extradata, false);
                for seed in 0..500u32 {
                    let mut state = seed;
                    let data: Vec<u8> = (0..seed % 40)
                        .map(|_| {
                            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            (state >> 24) as u8 & if state & 1 == 0 { 0x81 } else { 0xff }
                        })
                        .collect();
                    headers.read(&data, ParsedPicture::default());
                }
            }
        }
    }
}
