//! Frames are those FFmpeg shows: same pixels, same times, whichever way they
//! are reached; and what is no video is refused in a sentence.

use std::path::{Path, PathBuf};

use longreel::{
    cancel::Cancel,
    error::Kind,
    flow::{Frame, RgbImage},
    sources::{
        ffmpeg::VideoWriter,
        file::{DecodeReport, FrameReader, Strategy, VideoInfo, probe},
        sampler::{Sampling, TimeRange, parse_rate, parse_time},
    },
};

use crate::support::{clips, golden};

fn read(
    path: &Path,
    sampling: &Sampling,
    range: &TimeRange,
    strategy: Strategy,
) -> (Vec<Frame>, DecodeReport) {
    let mut reader =
        FrameReader::open_with(path, sampling, range, Cancel::new(), strategy).unwrap();
    let frames: Vec<Frame> = reader.by_ref().map(Result::unwrap).collect();
    (frames, reader.report())
}

fn read_all(path: &Path) -> (Vec<Frame>, DecodeReport) {
    read(path, &Sampling::Every, &TimeRange::ALL, Strategy::Straight)
}

fn info(path: &Path) -> VideoInfo {
    probe(path, &Cancel::new()).unwrap()
}

/// Same pictures, times and marks.
fn assert_same_frames(what: &str, got: &[Frame], expected: &[Frame]) {
    let times = |frames: &[Frame]| {
        frames
            .iter()
            .map(|f| (f.time.index, f.time.pts.ticks, f.key))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        times(got),
        times(expected),
        "{what}: number, time and key mark of each frame"
    );
    for (g, e) in got.iter().zip(expected) {
        assert!(
            g.image == e.image,
            "{what}: frame {} has other pixels",
            g.time.index
        );
    }
}

/// Within one level of FFmpeg's own frames in every channel, half a level on average; and at its times.
fn assert_is_ffmpeg(path: &Path, frames: &[Frame], filters: &[&str]) {
    let info = info(path);
    let expected = clips::reference_frames(path, info.stream_index, filters);
    let frame_bytes = info.width * info.height * 3;
    assert_eq!(
        frames.len() * frame_bytes,
        expected.len(),
        "{}: bytes of all frames",
        path.display()
    );
    for (frame, expected) in frames.iter().zip(expected.chunks(frame_bytes)) {
        let differences = || {
            frame
                .image
                .data
                .iter()
                .zip(expected)
                .map(|(a, b)| a.abs_diff(*b))
        };
        let worst = differences().max().unwrap();
        let mean = differences().map(f64::from).sum::<f64>() / frame_bytes as f64;
        assert!(
            worst <= 1 && mean <= 0.5,
            "{} frame {}: worst {worst}, mean {mean}",
            path.display(),
            frame.time.index
        );
    }
    let expected = clips::reference_ticks(path, info.stream_index);
    assert_eq!(
        frames.len(),
        expected.len(),
        "{}: frames with times",
        path.display()
    );
    for (frame, expected) in frames.iter().zip(expected) {
        let ticks = frame.time.pts.ticks;
        assert_eq!(
            ticks,
            expected.unwrap_or(ticks),
            "{} frame {}: time",
            path.display(),
            frame.time.index
        );
    }
}

/// Seeking, jumping and decoding straight give the same, for every way to choose.
fn assert_seek_is_straight(path: &Path) -> Vec<Frame> {
    let (all, _) = read_all(path);
    let n = all.len();
    let middle = all[n / 2].time.since_start();
    let samplings = [
        Sampling::Every,
        Sampling::Fps(parse_rate("1").unwrap()),
        Sampling::Fps(parse_rate("7").unwrap()),
        Sampling::Uniform(5),
        Sampling::At(vec![middle, all[n - 1].time.since_start()]),
        Sampling::Indices(vec![0, (n as u64 - 1) / 3, n as u64 - 1]),
        Sampling::Indices(vec![n as u64 - 1]),
    ];
    for sampling in &samplings {
        let (straight, report) = read(path, sampling, &TimeRange::ALL, Strategy::Straight);
        assert_eq!(report.missing, 0, "{} {sampling:?}", path.display());
        let of_all: Vec<Frame> = straight
            .iter()
            .map(|f| all[f.time.index as usize].clone())
            .collect();
        assert_same_frames(
            &format!("{} {sampling:?} of all", path.display()),
            &straight,
            &of_all,
        );
        for strategy in [Strategy::Seek, Strategy::Auto] {
            let (jumped, _) = read(path, sampling, &TimeRange::ALL, strategy);
            assert_same_frames(
                &format!("{} {sampling:?} {strategy:?}", path.display()),
                &jumped,
                &straight,
            );
        }
    }
    let late = TimeRange {
        from: Some(middle),
        to: None,
    };
    let [straight, jumped] =
        [Strategy::Straight, Strategy::Seek].map(|s| read(path, &Sampling::Every, &late, s).0);
    assert_eq!(straight[0].time.since_start(), middle);
    assert_same_frames(
        &format!("{} second half", path.display()),
        &jumped,
        &straight,
    );
    all
}

/// Everything that holds for any good clip.
fn check(path: &Path) {
    check_against(path, &[]);
}

/// [`check`], against what FFmpeg gives with `filters`.
fn check_against(path: &Path, filters: &[&str]) {
    let frames = assert_seek_is_straight(path);
    assert_is_ffmpeg(path, &frames, filters);
}

/// Whether seeking was really used: the last frame of a clip with several groups of pictures.
fn assert_seeks(path: &Path) {
    let (all, _) = read_all(path);
    let last = Sampling::Indices(vec![all.len() as u64 - 1]);
    let (_, report) = read(path, &last, &TimeRange::ALL, Strategy::Seek);
    assert_eq!(report.strategy, Strategy::Seek);
    assert!(
        report.decoded < all.len() as u64 / 2,
        "{}: decoded {} of {}",
        path.display(),
        report.decoded,
        all.len()
    );
}

macro_rules! shipped_clips {
    ($($name:ident: $file:literal;)*) => {$(
        #[test]
        fn $name() {
            check(&golden::clip($file));
        }
    )*};
}

shipped_clips! {
    h264_with_two_video_streams: "nasa_13013.mp4";
    hevc: "h265_video.mp4";
    av1_without_a_stream_duration: "av1_video.mkv";
    h264_10_bit: "h264_10bits.mp4";
    hevc_10_bit: "h265_10bits.mp4";
    bt709_full_range: "bt709_full_range.mp4";
}

const X264: [&str; 4] = ["-c:v", "libx264", "-preset", "veryfast"];

fn x264<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&X264, rest].concat()
}

macro_rules! generated_clips {
    ($($name:ident: $file:literal, $size:literal, $rate:literal, $seconds:literal, $arguments:expr;)*) => {$(
        #[test]
        fn $name() {
            check(&clips::test_pattern($file, $size, $rate, $seconds, &$arguments));
        }
    )*};
}

generated_clips! {
    variable_frame_rate: "vfr.mp4", "160x120", "30", "4",
        x264(&["-pix_fmt", "yuv420p", "-g", "12", "-bf", "2", "-vf", "select='not(mod(n,7))+lt(mod(n,11),4)'", "-vsync", "vfr"]);
    odd_size_444: "odd.mp4", "642x360", "10", "1", x264(&["-pix_fmt", "yuv444p", "-g", "4", "-vf", "crop=641:359"]);
    odd_size_420: "odd420.mkv", "642x360", "10", "1", ["-pix_fmt", "yuv420p", "-c:v", "ffv1", "-g", "1", "-vf", "crop=641:359:exact=1"];
    odd_size_lossless_rgb: "odd.mkv", "642x360", "10", "1", ["-pix_fmt", "bgr0", "-c:v", "ffv1", "-vf", "crop=641:359"];
    b_frames_in_pyramids: "bframes.mp4", "160x120", "25", "4", x264(&["-pix_fmt", "yuv420p", "-g", "20", "-bf", "5", "-b-pyramid", "normal"]);
    open_gop_h264: "opengop.mp4", "160x120", "25", "4",
        x264(&["-pix_fmt", "yuv420p", "-x264-params", "open-gop=1:keyint=15:min-keyint=15:bframes=3:scenecut=0"]);
    open_gop_hevc: "opengop-hevc.mp4", "160x120", "25", "3",
        ["-pix_fmt", "yuv420p", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "open-gop=1:keyint=12:min-keyint=12:bframes=4:log-level=none"];
    hevc_10_bit_generated: "ten.mkv", "160x120", "25", "2",
        ["-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "keyint=10:log-level=none"];
    intra_refresh_h264: "refresh.mp4", "160x120", "25", "4", x264(&["-pix_fmt", "yuv420p", "-x264-params", "intra-refresh=1:keyint=20:bframes=0"]);
    transport_stream: "stream.ts", "160x120", "25", "4", x264(&["-pix_fmt", "yuv420p", "-g", "15", "-bf", "2"]);
    transport_stream_mpeg2: "mpeg2.ts", "160x120", "25", "3", ["-c:v", "mpeg2video", "-pix_fmt", "yuv420p", "-g", "12", "-bf", "2"];
    motion_jpeg_in_avi: "motion.avi", "160x120", "25", "2", ["-c:v", "mjpeg", "-pix_fmt", "yuvj422p"];
    avi_without_presentation_times: "packed.avi", "160x120", "25", "3", ["-c:v", "mpeg4", "-g", "12", "-bf", "2", "-pix_fmt", "yuv420p"];
    vp9_webm: "vp9.webm", "160x120", "25", "2", ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "12", "-pix_fmt", "yuv420p"];
    vp8_webm_with_hidden_frames: "vp8.webm", "160x120", "25", "2",
        ["-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-cpu-used", "4", "-b:v", "200k", "-g", "12", "-pix_fmt", "yuv420p"];
    av1_mkv: "av1.mkv", "160x120", "25", "2", ["-c:v", "libsvtav1", "-preset", "12", "-g", "12", "-pix_fmt", "yuv420p"];
    quicktime: "clip.mov", "160x120", "30000/1001", "2", x264(&["-pix_fmt", "yuv422p", "-g", "15"]);
    fragmented_mp4: "fragments.mp4", "160x120", "25", "3", x264(&["-pix_fmt", "yuv420p", "-g", "15", "-movflags", "frag_keyframe+empty_moov"]);
    matroska_that_starts_without_times: "timeless.mkv", "160x120", "25", "2",
        x264(&["-pix_fmt", "yuv420p", "-g", "10", "-avoid_negative_ts", "disabled", "-output_ts_offset", "-0.5"]);
    gif_is_a_video: "anim.gif", "96x64", "10", "1", ["-c:v", "gif"];
    one_frame_only: "one.mp4", "160x120", "25", "0.04", x264(&["-pix_fmt", "yuv420p"]);
    bt709_limited: "bt709.mp4", "160x120", "25", "1",
        x264(&["-vf", "scale=out_color_matrix=bt709", "-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]);
    bt2020_10_bit: "bt2020.mkv", "160x120", "25", "1",
        ["-vf", "scale=out_color_matrix=bt2020", "-pix_fmt", "yuv420p10le", "-colorspace", "bt2020nc", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none"];
    full_range_bt601: "full.mp4", "160x120", "25", "1",
        x264(&["-vf", "scale=out_range=pc", "-pix_fmt", "yuv420p", "-color_range", "pc", "-colorspace", "smpte170m"]);
    gray: "gray.mkv", "160x120", "25", "1", ["-c:v", "ffv1", "-pix_fmt", "gray"];
}

#[test]
fn seeking_decodes_less() {
    for (name, arguments) in [
        (
            "seek.mp4",
            x264(&["-pix_fmt", "yuv420p", "-g", "15", "-bf", "2"]),
        ),
        (
            "seek.mkv",
            x264(&["-pix_fmt", "yuv420p", "-g", "15", "-bf", "2"]),
        ),
        (
            "seek.ts",
            x264(&["-pix_fmt", "yuv420p", "-g", "15", "-bf", "2"]),
        ),
        (
            "seek.webm",
            vec![
                "-c:v",
                "libvpx-vp9",
                "-deadline",
                "realtime",
                "-cpu-used",
                "8",
                "-g",
                "12",
                "-pix_fmt",
                "yuv420p",
            ],
        ),
    ] {
        assert_seeks(&clips::test_pattern(name, "160x120", "25", "4", &arguments));
    }
}

#[test]
fn sparse_frames_of_a_long_clip_jump_by_themselves() {
    let path = clips::test_pattern(
        "long.mp4",
        "64x48",
        "25",
        "60",
        &x264(&["-pix_fmt", "yuv420p", "-g", "25"]),
    );
    let (frames, report) = read(
        &path,
        &Sampling::Uniform(4),
        &TimeRange::ALL,
        Strategy::Auto,
    );
    assert_eq!(
        frames.iter().map(|f| f.time.index).collect::<Vec<_>>(),
        [0, 499, 999, 1499]
    );
    assert_eq!(report.strategy, Strategy::Seek);
    assert!(report.decoded < 120, "decoded {} of 1500", report.decoded);
    let (straight, report) = read(
        &path,
        &Sampling::Uniform(4),
        &TimeRange::ALL,
        Strategy::Straight,
    );
    assert!(report.decoded > 700, "decoded {} of 1500", report.decoded);
    assert_same_frames("uniform 4", &frames, &straight);
}

#[test]
fn an_edit_list_hides_the_frames_it_cuts() {
    let whole = clips::test_pattern(
        "uncut.mp4",
        "160x120",
        "25",
        "4",
        &x264(&["-pix_fmt", "yuv420p", "-g", "25", "-bf", "2"]),
    );
    let cut = clips::make(
        "cut.mp4",
        &["-ss", "1.5", "-i", whole.to_str().unwrap(), "-c", "copy"],
    );
    check(&cut);
    let (frames, _) = read_all(&cut);
    let info = info(&cut);
    assert!(
        info.declared_frames.unwrap() > frames.len() as u64,
        "the clip must have hidden frames"
    );
}

/// Every way a display matrix can turn a picture: its four turning entries in 16.16.
const TURNS: [[i32; 4]; 8] = [
    [1, 0, 0, 1],
    [-1, 0, 0, -1],
    [0, 1, -1, 0],
    [0, -1, 1, 0],
    [-1, 0, 0, 1],
    [1, 0, 0, -1],
    [0, 1, 1, 0],
    [0, -1, -1, 0],
];

#[test]
fn all_eight_orientations_are_upright_as_in_ffmpeg() {
    let plain = clips::test_pattern(
        "turn.mp4",
        "160x96",
        "10",
        "1",
        &x264(&["-pix_fmt", "yuv420p", "-g", "5"]),
    );
    for turn in TURNS {
        let name = format!("turned{}.mp4", turn.map(|v| v.to_string()).join("_"));
        let path = clips::edited(&name, &plain, |file| with_turn(file, turn));
        let info = info(&path);
        let expected = if turn[0] == 0 { (96, 160) } else { (160, 96) };
        assert_eq!((info.width, info.height), expected, "{turn:?}");
        check(&path);
    }
}

/// Writes the turning entries into the track header, whose matrix begins 40 bytes after the version byte.
fn with_turn(mut file: Vec<u8>, [a, b, c, d]: [i32; 4]) -> Vec<u8> {
    let header = file.windows(4).position(|w| w == b"tkhd").unwrap() + 4;
    for (place, value) in [(0, a), (1, b), (3, c), (4, d)] {
        let at = header + 40 + place * 4;
        file[at..at + 4].copy_from_slice(&(value << 16).to_be_bytes());
    }
    file
}

#[test]
fn pixels_that_are_not_square_are_made_square() {
    let scale = ["-vf", "scale=iw*sar:ih"];
    for (sar, size, width) in [
        ("4/3", "160x120", 213),
        ("8/9", "160x120", 142),
        ("64/45", "90x72", 128),
    ] {
        let name = format!("sar{}.mp4", sar.replace('/', "_"));
        let filter = format!("setsar={sar}");
        let path = clips::test_pattern(
            &name,
            size,
            "10",
            "1",
            &x264(&["-vf", &filter, "-pix_fmt", "yuv420p", "-g", "5"]),
        );
        let info = info(&path);
        assert_eq!(info.width, width, "{sar}: {info:?}");
        check_against(&path, &scale);
    }
}

#[test]
fn the_information_tells_what_is_applied() {
    let path = golden::clip("nasa_13013.mp4");
    let nasa = info(&path);
    assert_eq!(
        (
            nasa.width,
            nasa.height,
            nasa.n_video_streams,
            nasa.stream_index
        ),
        (480, 270, 2, 3)
    );
    assert_eq!(
        (nasa.codec.as_str(), nasa.declared_frames),
        ("h264", Some(390))
    );
    let full = info(&golden::clip("bt709_full_range.mp4"));
    assert_eq!(
        (full.color_matrix.as_str(), full.full_range),
        ("bt709", true)
    );
    let ten = info(&golden::clip("h265_10bits.mp4"));
    assert_eq!(
        (ten.pixel_format.as_str(), ten.color_matrix.as_str()),
        ("yuv420p10le", "bt601")
    );
    let json = serde_json::to_value(&nasa).unwrap();
    assert_eq!(json["orientation"]["degrees"], 0);
}

#[test]
fn frames_before_the_first_timestamp_get_times_extrapolated_from_it() {
    // FFmpeg's matroska reader gives no times below zero: the clip begins half a second there.
    let arguments = [
        "-pix_fmt",
        "yuv420p",
        "-g",
        "10",
        "-avoid_negative_ts",
        "disabled",
        "-output_ts_offset",
        "-0.5",
    ];
    let path = clips::test_pattern("timeless.mkv", "160x120", "25", "2", &x264(&arguments));
    let (frames, _) = read_all(&path);
    let steps: Vec<i64> = frames
        .windows(2)
        .map(|w| w[1].time.pts.ticks - w[0].time.pts.ticks)
        .collect();
    assert!(
        frames[0].time.pts.ticks < 0 && steps.iter().all(|&step| step == 40),
        "{} {steps:?}",
        frames[0].time.pts
    );
}

#[test]
fn recordings_strung_together_follow_one_another() {
    let one = clips::test_pattern(
        "part.ts",
        "160x120",
        "25",
        "3",
        &x264(&["-pix_fmt", "yuv420p", "-g", "15", "-bf", "2"]),
    );
    let two = clips::edited("strung.ts", &one, |bytes| bytes.repeat(2));
    let (frames, report) = read_all(&two);
    assert_eq!(frames.len(), 150);
    assert!(frames.is_sorted_by(|a, b| a.time.pts < b.time.pts));
    assert!(
        report
            .warnings
            .iter()
            .any(|w| w.contains("times jump back 1 times")),
        "{report:?}"
    );
    let (second, _) = read(
        &two,
        &Sampling::Fps(parse_rate("1").unwrap()),
        &TimeRange::ALL,
        Strategy::Auto,
    );
    assert_eq!(second.len(), 6);
    assert!(
        frames[75].image == frames[0].image,
        "the second recording begins as the first"
    );
}

#[test]
fn a_stream_without_times_gets_them_from_its_rate() {
    let path = clips::test_pattern(
        "raw.h264",
        "160x120",
        "25",
        "2",
        &x264(&["-pix_fmt", "yuv420p", "-g", "12", "-bf", "0", "-f", "h264"]),
    );
    let frames = assert_seek_is_straight(&path);
    assert_eq!(frames.len(), 50);
    let seconds: Vec<f64> = frames
        .iter()
        .map(|f| f.time.pts.seconds() - frames[0].time.pts.seconds())
        .collect();
    for (i, s) in seconds.iter().enumerate() {
        assert!((s - i as f64 / 25.0).abs() < 1e-6, "frame {i} at {s}");
    }
}

#[test]
fn the_pixels_of_a_png_are_the_file_s_own() {
    let mut names: Vec<PathBuf> = std::fs::read_dir(golden::path("frames"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.retain(|path| path.extension().is_some_and(|e| e == "png"));
    assert!(names.len() >= 7);
    for path in names {
        let (frames, _) = read_all(&path);
        assert_eq!(frames.len(), 1, "{}", path.display());
        assert!(frames[0].image == decode_png(&path), "{}", path.display());
        assert!(info(&path).still);
    }
}

/// The `png` crate's RGB, alpha left out.
fn decode_png(path: &Path) -> RgbImage {
    let mut decoder =
        png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap()));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut bytes).unwrap();
    let pixels = bytes[..frame.buffer_size()].chunks(frame.color_type.samples());
    let data = match frame.color_type {
        png::ColorType::Grayscale | png::ColorType::GrayscaleAlpha => {
            pixels.flat_map(|p| [p[0]; 3]).collect()
        }
        _ => pixels.flat_map(|p| [p[0], p[1], p[2]]).collect(),
    };
    RgbImage {
        width: frame.width as usize,
        height: frame.height as usize,
        data,
    }
}

#[test]
fn alpha_is_dropped_and_not_blended() {
    let path = clips::make(
        "alpha.png",
        &[
            "-f",
            "lavfi",
            "-i",
            "testsrc2=s=64x48:d=0.04,format=rgba,colorchannelmixer=aa=0.25",
            "-frames:v",
            "1",
        ],
    );
    let (frames, _) = read_all(&path);
    assert!(frames[0].image == decode_png(&path));
    let opaque = clips::make(
        "opaque.png",
        &[
            "-f",
            "lavfi",
            "-i",
            "testsrc2=s=64x48:d=0.04,format=rgba",
            "-frames:v",
            "1",
        ],
    );
    assert_eq!(frames[0].image, read_all(&opaque).0[0].image);
}

#[test]
fn stills_are_videos_of_one_frame() {
    for (name, arguments) in [
        ("still.webp", vec!["-c:v", "libwebp", "-lossless", "1"]),
        ("still.bmp", vec![]),
        ("still.png", vec!["-pix_fmt", "pal8"]),
        ("gray.png", vec!["-pix_fmt", "gray"]),
    ] {
        let path = clips::test_pattern(
            name,
            "65x49",
            "1",
            "1",
            &[&["-frames:v", "1"], &arguments[..]].concat(),
        );
        let (frames, _) = read(
            &path,
            &Sampling::Fps(parse_rate("1").unwrap()),
            &TimeRange::ALL,
            Strategy::Auto,
        );
        assert_eq!(frames.len(), 1, "{name}");
        assert_is_ffmpeg(&path, &frames, &[]);
    }
}

/// The error of opening and reading all of `path`.
fn refusal(path: &Path) -> (Kind, String) {
    let all = FrameReader::open(path, &Sampling::Every, &TimeRange::ALL, Cancel::new());
    let error = all
        .and_then(|reader| reader.collect::<Result<Vec<_>, _>>())
        .unwrap_err();
    (error.kind(), error.to_string())
}

fn assert_refused(path: &Path, kind: Kind, sentence: &str) {
    let (found, message) = refusal(path);
    assert_eq!(found, kind, "{message}");
    assert!(
        message.contains(sentence) && message.contains(path.to_str().unwrap()),
        "{message}"
    );
}

/// A file of these bytes in a directory of its own.
fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

#[test]
fn paths_that_are_not_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    assert_refused(
        &directory.path().join("gone.mp4"),
        Kind::NotFound,
        "no such file",
    );
    assert_refused(directory.path(), Kind::BadInput, "is a directory");
    assert_refused(Path::new("/dev/zero"), Kind::BadInput, "not a regular file");
    let (_directory, empty) = file("empty.mp4", b"");
    assert_refused(&empty, Kind::BadInput, "is empty");
}

#[test]
fn files_that_are_not_videos_are_refused() {
    let text = b"This is a letter.\nIt is not a video at all.\n".repeat(50);
    for name in ["letter.mp4", "letter.txt", "letter"] {
        let (_directory, path) = file(name, &text);
        assert_refused(&path, Kind::BadInput, "not a video that FFmpeg can open");
    }
    let sound = clips::make(
        "sound.mp4",
        &["-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac"],
    );
    assert_refused(&sound, Kind::BadInput, "has no video stream, only audio");
    let wave = clips::make("sound.wav", &["-f", "lavfi", "-i", "sine=d=1"]);
    assert_refused(&wave, Kind::BadInput, "has no video stream, only audio");
}

#[test]
fn a_cover_picture_is_no_video() {
    let cover = clips::make(
        "cover.jpg",
        &[
            "-f",
            "lavfi",
            "-i",
            "testsrc2=s=64x64:d=0.04",
            "-frames:v",
            "1",
        ],
    );
    let album = clips::make(
        "album.mp3",
        &[
            "-f",
            "lavfi",
            "-i",
            "sine=d=1",
            "-i",
            cover.to_str().unwrap(),
            "-map",
            "0",
            "-map",
            "1",
            "-c:v",
            "copy",
            "-disposition:v",
            "attached_pic",
        ],
    );
    assert_refused(&album, Kind::BadInput, "its only picture is a cover");
}

#[test]
fn a_playlist_opens_no_other_file() {
    let clip = golden::clip("h265_video.mp4");
    let list = format!(
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n",
        clip.display()
    );
    for name in ["list.m3u8", "list.mp4"] {
        let (_directory, path) = file(name, list.as_bytes());
        assert_refused(&path, Kind::BadInput, "not a video that FFmpeg can open");
    }
    let (_directory, path) = file(
        "list.txt",
        format!("ffconcat version 1.0\nfile {}\n", clip.display()).as_bytes(),
    );
    assert_refused(&path, Kind::BadInput, "not a video that FFmpeg can open");
}

#[test]
fn a_name_is_never_a_protocol_or_a_pattern() {
    let original = std::fs::read(golden::path("frames/img0.png")).unwrap();
    for name in ["http:clip.png", "a%03d.png", "pipe:0.png", "-i.png"] {
        let (_directory, path) = file(name, &original);
        assert_eq!(read_all(&path).0.len(), 1, "{name}");
    }
}

fn faststart() -> PathBuf {
    clips::test_pattern(
        "faststart.mp4",
        "160x120",
        "25",
        "8",
        &x264(&["-pix_fmt", "yuv420p", "-g", "25", "-movflags", "faststart"]),
    )
}

#[test]
fn an_mp4_without_its_index_is_refused_in_ffmpeg_s_words() {
    let whole = clips::test_pattern(
        "plain.mp4",
        "160x120",
        "25",
        "2",
        &x264(&["-pix_fmt", "yuv420p"]),
    );
    let bytes = std::fs::read(whole).unwrap();
    let (_directory, path) = file("cut.mp4", &bytes[..bytes.len() / 2]);
    assert_refused(&path, Kind::BadInput, "moov atom not found");
}

#[test]
fn a_video_cut_midway_gives_what_is_there_and_says_so() {
    let mkv = clips::test_pattern(
        "cut.mkv",
        "160x120",
        "25",
        "8",
        &x264(&["-pix_fmt", "yuv420p", "-g", "25"]),
    );
    for whole in [faststart(), mkv] {
        let n_whole = read_all(&whole).0.len();
        let bytes = std::fs::read(&whole).unwrap();
        let name = format!("cut.{}", whole.extension().unwrap().to_str().unwrap());
        let (_directory, path) = file(&name, &bytes[..bytes.len() * 6 / 10]);
        let (frames, report) = read_all(&path);
        assert!(
            frames.len() > n_whole / 4 && frames.len() < n_whole * 3 / 4,
            "{name}: {} of {n_whole}",
            frames.len()
        );
        assert!(report.truncated, "{name}: {report:?}");
        assert!(
            report.warnings.iter().any(|w| w.contains("is truncated")),
            "{report:?}"
        );
        let (uniform, report) = read(
            &path,
            &Sampling::Uniform(4),
            &TimeRange::ALL,
            Strategy::Auto,
        );
        assert_eq!(uniform.len(), 4, "{name}: {report:?}");
    }
    let (_, report) = read_all(&faststart());
    assert!(
        !report.truncated && report.warnings.is_empty(),
        "a whole file: {report:?}"
    );
}

#[test]
fn corrupt_packets_in_the_middle_are_passed_over_and_counted() {
    let mut bytes = std::fs::read(faststart()).unwrap();
    let (start, end) = (bytes.len() / 2, bytes.len() / 2 + 3000);
    bytes[start..end].fill(0xff);
    let (_directory, path) = file("damaged.mp4", &bytes);
    let (frames, report) = read_all(&path);
    assert!(
        frames.len() > 150 && frames.len() <= 200,
        "{}",
        frames.len()
    );
    assert!(
        report.corrupt_packets_skipped + report.corrupt_frames > 0,
        "{report:?}"
    );
    assert!(!report.warnings.is_empty());
    assert_eq!(
        frames.iter().filter(|f| f.corrupt).count() as u64,
        report.corrupt_frames
    );
    let (chosen, report) = read(
        &path,
        &Sampling::Fps(parse_rate("2").unwrap()),
        &TimeRange::ALL,
        Strategy::Auto,
    );
    assert!(chosen.len() >= 12, "{} {report:?}", chosen.len());
}

#[test]
fn damaged_containers_never_panic() {
    // A fixed stream of pseudo-random numbers (Knuth's MMIX generator).
    let mut state = 7_u64;
    let mut random = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for name in ["h265_video.mp4", "av1_video.mkv"] {
        let original = std::fs::read(golden::clip(name)).unwrap();
        for _ in 0..12 {
            let mut bytes = original.clone();
            for _ in 0..20 {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            let (_directory, path) = file(name, &bytes);
            let sampling = Sampling::Uniform(3);
            if let Ok(reader) = FrameReader::open(&path, &sampling, &TimeRange::ALL, Cancel::new())
            {
                assert!(reader.filter_map(Result::ok).count() <= 3);
            }
        }
    }
}

#[test]
fn a_range_outside_the_video_says_where_the_video_is() {
    let range = TimeRange {
        from: Some(parse_time("1:00:00").unwrap()),
        to: None,
    };
    let error = FrameReader::open(
        &golden::clip("nasa_13013.mp4"),
        &Sampling::Every,
        &range,
        Cancel::new(),
    )
    .err()
    .unwrap();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(
        error
            .to_string()
            .contains("from 00:00:00.000 to 00:00:12.979"),
        "{error}"
    );
}

#[test]
fn cancellation_works_before_and_while_reading() {
    let path = golden::clip("nasa_13013.mp4");
    let stopped = Cancel::new();
    stopped.cancel();
    let error = FrameReader::open(&path, &Sampling::Every, &TimeRange::ALL, stopped)
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Interrupted, "{error}");
    let cancel = Cancel::new();
    let mut reader =
        FrameReader::open(&path, &Sampling::Every, &TimeRange::ALL, cancel.clone()).unwrap();
    assert!(reader.next_frame().unwrap().is_some());
    cancel.cancel();
    assert_eq!(reader.next_frame().unwrap_err().kind(), Kind::Interrupted);
}

#[test]
fn the_number_of_frames_is_known_before_decoding() {
    for (sampling, n) in [
        (Sampling::Every, 390),
        (Sampling::Fps(parse_rate("1").unwrap()), 13),
        (Sampling::Uniform(8), 8),
    ] {
        let mut reader = FrameReader::open(
            &golden::clip("nasa_13013.mp4"),
            &sampling,
            &TimeRange::ALL,
            Cancel::new(),
        )
        .unwrap();
        assert_eq!(reader.expected_frames(), Some(n), "{sampling:?}");
        assert_eq!(reader.by_ref().count() as u64, n);
        assert_eq!(reader.report().emitted, n);
    }
}

/// A picture with soft colours, different in every frame.
fn painted(width: usize, height: usize, n: usize) -> RgbImage {
    let pixel = |i: usize| {
        let (x, y) = (i % width, i / width);
        [
            (x * 200 / width + 20) as u8,
            (y * 200 / height + 20) as u8,
            (n * 20 + 40) as u8,
        ]
    };
    RgbImage {
        width,
        height,
        data: (0..width * height).flat_map(pixel).collect(),
    }
}

#[test]
fn a_written_video_reads_back_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.mp4");
    let images: Vec<RgbImage> = (0..9).map(|n| painted(64, 48, n)).collect();
    let mut writer = VideoWriter::create(&path, 64, 48, parse_rate("30000/1001").unwrap()).unwrap();
    for image in &images {
        assert!(
            !path.exists(),
            "nothing stands at the target before it is whole"
        );
        writer.write(image).unwrap();
    }
    writer.finish().unwrap();
    let (frames, report) = read_all(&path);
    assert_eq!((frames.len(), report.truncated), (9, false));
    let info = info(&path);
    assert_eq!(
        (
            info.codec.as_str(),
            info.color_matrix.as_str(),
            info.full_range
        ),
        ("h264", "bt709", false)
    );
    assert_eq!(
        info.average_frame_rate,
        Some(parse_rate("30000/1001").unwrap())
    );
    for (frame, image) in frames.iter().zip(&images) {
        let total: u64 = frame
            .image
            .data
            .iter()
            .zip(&image.data)
            .map(|(a, b)| u64::from(a.abs_diff(*b)))
            .sum();
        let mean = total as f64 / image.data.len() as f64;
        assert!(
            mean < 3.0,
            "frame {}: mean difference {mean}",
            frame.time.index
        );
        assert!(
            (frame.time.pts.seconds() - frame.time.index as f64 * 1001.0 / 30000.0).abs() < 1e-3
        );
    }
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        1,
        "no temporary file is left"
    );
}

#[test]
fn a_video_that_is_not_finished_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.mp4");
    let mut writer = VideoWriter::create(&path, 64, 48, parse_rate("4").unwrap()).unwrap();
    writer.write(&painted(64, 48, 0)).unwrap();
    assert!(writer.write(&painted(32, 48, 0)).is_err());
    drop(writer);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn unwritable_outputs_are_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let rate = parse_rate("4").unwrap();
    let create = |path: &Path, width, height| {
        VideoWriter::create(path, width, height, rate)
            .err()
            .unwrap()
    };
    let odd = create(&directory.path().join("a.mp4"), 641, 359);
    assert_eq!(odd.kind(), Kind::Usage);
    assert!(odd.to_string().contains("641x359, expected even"), "{odd}");
    assert_eq!(
        create(&directory.path().join("no/such/a.mp4"), 64, 48).kind(),
        Kind::NotFound
    );
    assert_eq!(create(directory.path(), 64, 48).kind(), Kind::Usage);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
