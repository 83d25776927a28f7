//! What opens, and what is said of what does not: the cause by its name.

use std::path::{Path, PathBuf};

use longreel::{
    cancel::Cancel,
    error::{Kind, Result},
    sources::{
        file::FrameReader,
        sampler::{Sampling, TimeRange},
    },
};

use crate::support::{clips, golden};

fn h264(name: &str, rest: &[&str]) -> PathBuf {
    let encoder = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "5"];
    clips::test_pattern(name, "96x64", "10", "1", &[&encoder, rest].concat())
}

fn encrypted_mp4() -> PathBuf {
    let key = "76a6c65c5ea762046bd749a2e632ccbb";
    let scheme = ["-encryption_scheme", "cenc-aes-ctr"];
    let keys = ["-encryption_key", key, "-encryption_kid", key];
    h264("cenc.mp4", &[&scheme[..], &keys].concat())
}

/// `bytes` with every `from` replaced by `to`, of which there is at least one.
fn replaced(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut found = false;
    for at in 0..bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
            found = true;
        }
    }
    assert!(found, "{} is not in the file", from.escape_ascii());
    bytes
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

fn assert_refused(path: &Path, sentence: &str) {
    let all = FrameReader::open(path, &Sampling::Every, &TimeRange::ALL, Cancel::new());
    let read = all.and_then(|reader| reader.collect::<Result<Vec<_>>>());
    let error = read.map(|frames| frames.len()).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.kind(), Kind::BadInput, "{message}");
    assert!(message.contains(sentence), "{message}");
}

#[test]
fn encrypted_tracks_are_refused_before_anything_is_decoded() {
    let cenc = encrypted_mp4();
    assert_refused(&cenc, "is encrypted (cenc)");
    assert_refused(
        &golden::clip("odd/encrypted.webm"),
        "is encrypted (Matroska ContentEncryption)",
    );
    // One IV for the whole track: nothing stands on the packets, only the sample entry tells.
    let constant_iv = clips::edited("cbcs.mp4", &cenc, |bytes| {
        let bytes = replaced(bytes, b"schm\0\0\0\0cenc", b"schm\0\0\0\0cbcs");
        let bytes = replaced(bytes, b"senc", b"free");
        let bytes = replaced(bytes, b"saiz", b"free");
        replaced(bytes, b"saio", b"free")
    });
    assert_refused(&constant_iv, "is encrypted (cbcs)");
    // The sample entry is called clear: the packets tell.
    let renamed = clips::edited("packets.mp4", &cenc, |bytes| {
        replaced(bytes, b"encv", b"avc1")
    });
    assert_refused(&renamed, "is encrypted (Common Encryption)");
}

#[test]
fn a_scrambled_transport_stream_is_refused() {
    let clear = h264("clear.ts", &[]);
    let scrambled = clips::edited("scrambled.ts", &clear, |mut bytes| {
        // ffmpeg's muxer gives the video stream PID 256; the last packets are scrambled.
        let packets = bytes.chunks_exact_mut(188).skip(20);
        for packet in packets.filter(|p| [p[1] & 0x1f, p[2]] == [1, 0]) {
            packet[3] |= 0x80;
        }
        bytes
    });
    assert_refused(&scrambled, "is encrypted (scrambled transport stream)");
}

#[test]
fn a_codec_without_a_decoder_is_named_with_the_version_found() {
    let hevc = clips::test_pattern(
        "plain_hevc.mp4",
        "96x64",
        "10",
        "1",
        &[
            "-c:v",
            "libx265",
            "-tag:v",
            "hvc1",
            "-x265-params",
            "log-level=none",
        ],
    );
    let unknown = clips::edited("unknown.mp4", &hevc, |bytes| {
        replaced(bytes, b"hvc1", b"xyz1")
    });
    assert_refused(&unknown, "has no decoder for an unknown codec (`xyz1`)");
    let screen = clips::edited("other.mp4", &hevc, |bytes| {
        replaced(bytes, b"hvc1", b"vvc1")
    });
    let version = String::from_utf8(clips::run("ffmpeg", &["-version"])).unwrap();
    let version = version.split(' ').nth(2).unwrap();
    // From 7.0 on, FFmpeg has a decoder for VVC.
    if version.starts_with(['4', '5', '6']) {
        assert_refused(&screen, &format!("this FFmpeg {version} (libavcodec "));
        assert_refused(&screen, "has no decoder for vvc");
    }
}

#[test]
fn a_heic_picture_says_which_ffmpeg_reads_it() {
    let mut heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec();
    heic.extend(b"\0\0\0\x0cmeta\0\0\0\0");
    let (_directory, path) = file("photo.heic", &heic);
    assert_refused(
        &path,
        "cannot read this HEIC picture; FFmpeg 7.1 or newer can",
    );
}

#[test]
fn formats_that_are_not_read_are_named() {
    let list = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nhttp://a/b.ts\n#EXT-X-ENDLIST\n";
    let (_directory, path) = file("list.m3u8", list);
    assert_refused(
        &path,
        "a list of other files or addresses (Apple HTTP Live Streaming)",
    );
    let game = clips::test_pattern(
        "clip.smjpeg",
        "96x64",
        "10",
        "1",
        &["-c:v", "mjpeg", "-f", "smjpeg"],
    );
    assert_refused(&game, "its format is smjpeg (Loki SDL MJPEG)");
}

/// What six samples of gray become, each of which `sample` stores.
fn gray(pixel_format: &str, sample: impl Fn(u16) -> Vec<u8>) -> [u8; 6] {
    let row: Vec<u8> = GRAY
        .into_iter()
        .flat_map(|v| sample(v).repeat(16))
        .collect();
    let (_directory, raw) = file("ramp.raw", &row.repeat(16));
    let ramp = raw.with_extension("nut");
    let [from, to] = [&raw, &ramp].map(|path| path.to_str().unwrap());
    let size = ["-video_size", "96x16", "-i", from, "-c", "copy", to];
    let read = ["-f", "rawvideo", "-pix_fmt", pixel_format];
    clips::run("ffmpeg", &[&read[..], &size].concat());
    let mut reader =
        FrameReader::open(&ramp, &Sampling::Every, &TimeRange::ALL, Cancel::new()).unwrap();
    let image = reader.next_frame().unwrap().unwrap().image;
    [0, 1, 2, 3, 4, 5].map(|x| image.data[(x * 16 + 8) * 3])
}

/// Gray of 16 bits.
const GRAY: [u16; 6] = [1, 4095, 16642, 33277, 49661, 65277];

#[test]
fn gray_without_a_range_is_full_range_at_any_depth() {
    let expected = [0, 16, 65, 130, 194, 255];
    assert_eq!(gray("gray16le", |v| v.to_le_bytes().to_vec()), expected);
    assert_eq!(gray("gray16be", |v| v.to_be_bytes().to_vec()), expected);
    assert_eq!(
        gray("ya8", |v| vec![(v >> 8) as u8, 255]),
        GRAY.map(|v| (v >> 8) as u8)
    );
    // Fewer bits are rounded on their way to eight, and back.
    for bits in [9, 10, 12, 14] {
        let store = |v: u16| (v >> (16 - bits)).to_le_bytes().to_vec();
        let found = gray(&format!("gray{bits}le"), store);
        let is_near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 1);
        assert!(is_near, "{bits} bits: {found:?}");
    }
}
