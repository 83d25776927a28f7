//! Frames are those that a decoder shows, on files whose packets and containers say otherwise: sparse
//! reading gives the numbers, times and pixels of a straight decode.

use std::{collections::BTreeMap, path::Path};

use longreel::{
    cancel::Cancel,
    flow::Frame,
    sources::{
        file::{DecodeReport, FrameReader, Strategy},
        sampler::{Sampling, TimeRange, parse_time},
    },
};

use crate::support::{clips, golden};

fn read(path: &Path, sampling: &Sampling, strategy: Strategy) -> (Vec<Frame>, DecodeReport) {
    let reader = FrameReader::open_with(path, sampling, &TimeRange::ALL, Cancel::new(), strategy);
    let mut reader = reader.unwrap();
    let frames = reader.by_ref().map(Result::unwrap).collect();
    (frames, reader.report())
}

fn numbers(frames: &[Frame]) -> Vec<u64> {
    frames.iter().map(|frame| frame.time.index).collect()
}

fn ticks(frames: &[Frame]) -> Vec<i64> {
    frames.iter().map(|frame| frame.time.pts.ticks).collect()
}

fn odd(name: &str) -> std::path::PathBuf {
    golden::clip(&format!("odd/{name}"))
}

/// Every way to choose gives frames of the straight decode, which is returned.
fn check(path: &Path) -> Vec<Frame> {
    let (all, report) = read(path, &Sampling::Every, Strategy::Auto);
    let name = path.display();
    let n = all.len() as u64;
    assert!(n > 2, "{name}: {report:?}");
    assert_eq!(numbers(&all), (0..n).collect::<Vec<_>>(), "{name}: numbers");
    assert!(
        ticks(&all).is_sorted_by(|a, b| a < b),
        "{name}: times {:?}",
        ticks(&all)
    );
    let by_number: BTreeMap<u64, &Frame> = all.iter().map(|f| (f.time.index, f)).collect();
    for sampling in samplings(&all) {
        for strategy in [Strategy::Auto, Strategy::Seek] {
            let (frames, report) = read(path, &sampling, strategy);
            assert_eq!(report.missing, 0, "{name} {sampling:?} {strategy:?}");
            for frame in &frames {
                let whole = by_number[&frame.time.index];
                assert_eq!(
                    frame.time, whole.time,
                    "{name} {sampling:?} {strategy:?}: time"
                );
                assert!(
                    frame.image == whole.image,
                    "{name} {sampling:?} {strategy:?}: pixels of frame {}",
                    frame.time.index
                );
            }
            assert_eq!(
                numbers(&frames),
                wanted(&sampling, &all),
                "{name} {sampling:?}"
            );
        }
    }
    all
}

/// Some of each kind, at places that a fixed stream of pseudo-random numbers gives.
fn samplings(all: &[Frame]) -> Vec<Sampling> {
    let n = all.len() as u64;
    let mut state = n;
    let mut place = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut samplings: Vec<Sampling> = [1, 2, 3, 4, 7].map(Sampling::Uniform).into();
    samplings.extend([0, n - 1].map(|number| Sampling::Indices(vec![number])));
    for _ in 0..2 {
        let number = place();
        samplings.push(Sampling::Indices(vec![number]));
        samplings.push(Sampling::At(vec![all[place() as usize].time.since_start()]));
    }
    samplings
}

/// The numbers that a sampling asks for, from the straight decode alone.
fn wanted(sampling: &Sampling, all: &[Frame]) -> Vec<u64> {
    match sampling {
        Sampling::Uniform(k) if *k >= all.len() => numbers(all),
        Sampling::Uniform(1) => vec![0],
        Sampling::Uniform(k) => {
            let step = (all.len() - 1) as f64 / (k - 1) as f64;
            let inner = (0..k - 1).map(|i| (i as f64 * step) as u64);
            inner.chain([all.len() as u64 - 1]).collect()
        }
        Sampling::Indices(numbers) => numbers.clone(),
        Sampling::At(times) => {
            let shown = all.iter().rev().find(|f| f.time.since_start() <= times[0]);
            vec![shown.unwrap_or(&all[0]).time.index]
        }
        other => panic!("{other:?} is not checked here"),
    }
}

/// The times that ffprobe gives.
fn assert_times_are_ffprobes(path: &Path, all: &[Frame]) {
    // Where ffprobe knows no time of a frame there is nothing to compare.
    let expected = clips::reference_ticks(path, 0);
    let expected: Vec<i64> = expected
        .iter()
        .zip(ticks(all))
        .map(|(expected, found)| expected.unwrap_or(found))
        .collect();
    assert_eq!(ticks(all), expected, "{}", path.display());
}

#[test]
fn two_field_pictures_are_one_frame() {
    let path = odd("paff.mp4");
    let all = check(&path);
    assert_times_are_ffprobes(&path, &all);
    assert_eq!(all.len(), 40);
    let (spread, report) = read(&path, &Sampling::Uniform(4), Strategy::Auto);
    assert_eq!(numbers(&spread), [0, 13, 26, 39]);
    assert_eq!(ticks(&spread), [0, 6656, 13312, 19968]);
    assert!(report.warnings.is_empty(), "{report:?}");
    for (at, expected) in [("0.5", 6144), ("2.0", 19968)] {
        let at = Sampling::At(vec![parse_time(at).unwrap()]);
        assert_eq!(ticks(&read(&path, &at, Strategy::Auto).0), [expected]);
    }
}

#[test]
fn a_container_that_calls_every_packet_key_is_not_believed() {
    let path = odd("nostss.mp4");
    let all = check(&path);
    assert_times_are_ffprobes(&path, &all);
    let keys = all.iter().filter(|frame| frame.key);
    assert_eq!(numbers(&keys.cloned().collect::<Vec<_>>()), [0, 30, 60, 90]);
}

#[test]
fn decoding_times_in_place_of_presentation_times_give_times_that_rise() {
    let all = check(&odd("noctts.mp4"));
    assert_eq!(all.len(), 28);
    assert_eq!(ticks(&all)[..5], [1024, 2048, 3072, 5120, 6144]);
}

#[test]
fn pictures_that_are_never_shown_have_no_number() {
    let path = odd("vp8arf.webm");
    let all = check(&path);
    assert_times_are_ffprobes(&path, &all);
    assert_eq!(all.len(), 120);
    assert_eq!(all[50].time.pts.ticks, 5000);
    let (spread, _) = read(&path, &Sampling::Uniform(4), Strategy::Auto);
    assert_eq!(numbers(&spread), [0, 39, 79, 119]);
}

#[test]
fn joined_recordings_have_times_that_rise_and_numbers_without_a_hole() {
    let all = check(&odd("catsize.ts"));
    assert_eq!(all.len(), 80);
    let all = check(&odd("cat.ts"));
    assert_eq!(all.len(), 90);
    let (_, report) = read(&odd("cat.ts"), &Sampling::Every, Strategy::Auto);
    assert_eq!(report.corrupt_packets_skipped, 0, "{report:?}");
    let says_skipped = |warning: &String| warning.contains("skipped");
    assert!(!report.warnings.iter().any(says_skipped), "{report:?}");
}

#[test]
fn a_recording_that_begins_without_a_key_frame_counts_what_decodes() {
    let path = odd("midcut.ts");
    let all = check(&path);
    assert_times_are_ffprobes(&path, &all);
    assert_eq!(all.len(), 20);
    let (spread, _) = read(&path, &Sampling::Uniform(4), Strategy::Auto);
    assert_eq!(numbers(&spread), [0, 6, 12, 19]);
}

/// A pattern of 4 s at 25 frames a second, encoded with these arguments.
fn pattern(name: &str, encoder: &[&str]) -> std::path::PathBuf {
    clips::test_pattern(name, "128x96", "25", "4", encoder)
}

#[test]
fn every_codec_reads_sparsely_what_it_reads_straight() {
    let h264 = ["-c:v", "libx264", "-x264-params"];
    let hevc = ["-c:v", "libx265", "-x265-params"];
    let open = "open-gop=1:keyint=12:bframes=3:log-level=none";
    let files = [
        pattern(
            "mbaff.ts",
            &[
                "-c:v",
                "libx264",
                "-flags",
                "+ildct+ilme",
                "-bf",
                "2",
                "-g",
                "12",
            ],
        ),
        pattern(
            "open.ts",
            &[&h264[..], &["open-gop=1:keyint=12:bframes=3"]].concat(),
        ),
        pattern("open_hevc.ts", &[&hevc[..], &[open]].concat()),
        pattern("open_hevc.mp4", &[&hevc[..], &[open]].concat()),
        pattern(
            "fields.mpg",
            &["-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-bf", "2"],
        ),
        pattern("asp.avi", &["-c:v", "mpeg4", "-bf", "2", "-g", "30"]),
        pattern("xvid.avi", &["-c:v", "libxvid", "-bf", "2", "-g", "30"]),
        pattern("asp.mp4", &["-c:v", "mpeg4", "-bf", "2", "-g", "30"]),
        pattern(
            "altref.webm",
            &[
                "-c:v",
                "libvpx-vp9",
                "-b:v",
                "80k",
                "-auto-alt-ref",
                "1",
                "-lag-in-frames",
                "16",
                "-cpu-used",
                "5",
            ],
        ),
        pattern(
            "tiles.mkv",
            &["-c:v", "libsvtav1", "-preset", "10", "-g", "25"],
        ),
        pattern("windows.wmv", &["-c:v", "wmv2"]),
        pattern("sorenson.mov", &["-c:v", "svq1"]),
        pattern("apple.mov", &["-c:v", "rpza"]),
        pattern("capture.avi", &["-c:v", "zmbv"]),
        pattern("capture.flv", &["-c:v", "flashsv"]),
        pattern("intra.avi", &["-c:v", "mjpeg"]),
        pattern("lossless.mkv", &["-c:v", "ffv1", "-g", "10"]),
    ];
    for path in files {
        let all = check(&path);
        assert_times_are_ffprobes(&path, &all);
    }
}

#[test]
fn leading_pictures_that_lost_what_they_refer_to_have_no_number() {
    let whole = pattern(
        "leading.ts",
        &[
            "-c:v",
            "libx265",
            "-x265-params",
            "open-gop=1:keyint=12:bframes=3:log-level=none",
        ],
    );
    for at in [5000, 9001, 14000] {
        let cut = clips::edited(&format!("leading_{at}.ts"), &whole, |b| b[at..].to_vec());
        let all = check(&cut);
        assert_times_are_ffprobes(&cut, &all);
    }
}

#[test]
fn recordings_of_other_clocks_rates_and_sizes_join() {
    let ten = clips::test_pattern(
        "ten.ts",
        "96x64",
        "10",
        "3",
        &["-c:v", "libx264", "-bf", "2"],
    );
    let ntsc = clips::test_pattern(
        "ntsc.ts",
        "128x96",
        "30000/1001",
        "2",
        &["-c:v", "libx264", "-bf", "0"],
    );
    let whole = std::fs::read(&ntsc).unwrap();
    for (name, first, second) in [("ab.ts", &ten, &ntsc), ("ba.ts", &ntsc, &ten)] {
        let second = std::fs::read(second).unwrap();
        let path = clips::edited(name, first, |bytes| [bytes, second, whole.clone()].concat());
        let all = check(&path);
        assert_eq!(all.len(), 30 + 60 + 60, "{name}");
    }
}

#[test]
fn damage_gives_the_same_pixels_however_frames_are_reached() {
    let whole = pattern("damage.ts", &["-c:v", "libx264", "-bf", "2", "-g", "25"]);
    for seed in 1..4_usize {
        let damaged = clips::edited(&format!("damage_{seed}.ts"), &whole, |mut bytes| {
            // One byte flipped in every few packets, behind their heads.
            for packet in (100..bytes.len() / 188).step_by(29 + seed) {
                bytes[packet * 188 + 90] ^= 0xff;
            }
            bytes
        });
        check(&damaged);
    }
}
