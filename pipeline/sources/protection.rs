//! Detection of encrypted files, whose pictures would decode to garbage, or not at all.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::boxes::{BoxFile, Section, word};

/// Bytes of a sample entry for pictures before its boxes (ISO 14496-12 section 12.1.3).
const VISUAL_SAMPLE_ENTRY_BYTES: u64 = 78;
/// Bytes of a transport stream that are examined.
const TS_BYTES: u64 = 4 << 20;
/// Packet lengths of transport streams: plain, with a timestamp in front (Blu-ray), with check bytes.
const TS_PACKET_BYTES: [usize; 3] = [188, 192, 204];

/// The encryption scheme of track `track` of the mp4 at `path`, or of any of its tracks: `cenc`, `cbcs`, …
///
/// `None` for an unencrypted or unreadable file, or one without boxes.
pub fn scheme(path: &Path, track: Option<u32>) -> Option<String> {
    let mut file = BoxFile::open(path).ok()?;
    let whole = file.whole().ok()?;
    let moov = file.inside(whole, &[b"moov"]).ok()??;
    let tracks = file.named(moov, b"trak").ok()?;
    tracks.into_iter().find_map(|trak| {
        let is_it = track.is_none() || track_number(&mut file, trak) == track;
        is_it.then(|| scheme_of_track(&mut file, trak).ok()?)?
    })
}

/// The number in a track's header (ISO 14496-12 section 8.3.2).
fn track_number(file: &mut BoxFile, trak: Section) -> Option<u32> {
    let header = file.inside(trak, &[b"tkhd"]).ok()??;
    let bytes = file.bytes(header).ok()?;
    let at = if bytes.first() == Some(&1) { 20 } else { 12 };
    word(&bytes, at)
}

fn scheme_of_track(file: &mut BoxFile, trak: Section) -> io::Result<Option<String>> {
    let path = [b"mdia", b"minf", b"stbl", b"stsd"];
    let Some(descriptions) = file.inside(trak, &path)? else {
        return Ok(None);
    };
    for entry in file.children(descriptions.behind(8))? {
        match &entry.kind {
            b"encv" => return scheme_of_entry(file, entry).map(Some),
            b"drmi" => return Ok(Some("FairPlay".into())),
            _ => {}
        }
    }
    Ok(None)
}

/// The scheme in the entry's `schm` box (ISO 14496-12 section 8.12.5).
fn scheme_of_entry(file: &mut BoxFile, entry: Section) -> io::Result<String> {
    let boxes = entry.behind(VISUAL_SAMPLE_ENTRY_BYTES);
    let Some(schm) = file.inside(boxes, &[b"sinf", b"schm"])? else {
        return Ok("unnamed".into());
    };
    let bytes = file.bytes(schm)?;
    let name = bytes.get(4..8).unwrap_or_default();
    Ok(name.escape_ascii().to_string())
}

/// Whether packets of stream `pid` are scrambled in the transport stream at `path`
/// (`transport_scrambling_control`, ITU-T H.222.0 section 2.4.3.3).
pub fn is_scrambled(path: &Path, pid: u16) -> bool {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(TS_BYTES).read_to_end(&mut bytes));
    let Some((start, step)) = read.ok().and_then(|_| first_packet(&bytes)) else {
        return false;
    };
    let of_stream = bytes[start..].chunks_exact(step).filter(|packet| {
        packet[0] == 0x47 && u16::from_be_bytes([packet[1] & 0x1f, packet[2]]) == pid
    });
    of_stream
        .map(|packet| packet[3] >> 6)
        .any(|control| control != 0)
}

/// Offset of the first packet and the packet length, confirmed by the sync bytes of five consecutive packets.
fn first_packet(bytes: &[u8]) -> Option<(usize, usize)> {
    (0..bytes.len().min(1024)).find_map(|start| {
        let step = TS_PACKET_BYTES
            .into_iter()
            .find(|step| (0..5).all(|n| bytes.get(start + n * step) == Some(&0x47)))?;
        Some((start, step))
    })
}
