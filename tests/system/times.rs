//! Times count from a video's first frame, whatever its container makes of them: the same frames, the
//! same prompt and the same length from every container of one clip.

use std::path::{Path, PathBuf};

use longreel::{
    sources::sampler::{Sampling, TimeRange, parse_rate, parse_time, select},
    time::{Pts, TimeBase},
};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{clips, golden, longreel::longreel};

/// A clip of 4 s at `rate`, as each container keeps it.
fn containers(rate: &str) -> Vec<PathBuf> {
    let encoder = ["-c:v", "libx264", "-bf", "2", "-pix_fmt", "yuv420p"];
    let name = |end: &str| format!("times_{}.{end}", rate.replace('/', "_"));
    let mp4 = clips::test_pattern(&name("mp4"), "128x96", rate, "4", &encoder);
    let copy = |end: &str, options: &[&str]| {
        let source = mp4.to_str().unwrap();
        let copy = ["-i", source, "-c", "copy"];
        clips::make(&name(end), &[&copy[..], options].concat())
    };
    let fragments = ["-movflags", "frag_keyframe+empty_moov"];
    let mut files = vec![
        copy("mkv", &[]),
        copy("mov", &[]),
        copy("flv", &[]),
        copy("ts", &[]),
        copy("frag.mp4", &fragments),
        copy("late.ts", &["-output_ts_offset", "36000"]),
        copy("late.mkv", &["-output_ts_offset", "36000"]),
    ];
    files.insert(0, mp4);
    files
}

fn webm(rate: &str) -> PathBuf {
    let name = format!("times_{}.webm", rate.replace('/', "_"));
    clips::test_pattern(
        &name,
        "128x96",
        rate,
        "4",
        &["-c:v", "libvpx", "-deadline", "realtime"],
    )
}

/// The numbers of the frames that `frames` writes.
fn numbers(path: &Path, options: &[&str]) -> Vec<u64> {
    frames(path, options)
        .iter()
        .map(|frame| frame["index"].as_u64().unwrap())
        .collect()
}

fn frames(path: &Path, options: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("frames");
    let fixed = [
        "frames",
        path.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ];
    let run = longreel(&[&fixed[..], options].concat());
    assert_eq!(run.code, 0, "{}: {}", path.display(), run.stderr);
    let lines = std::fs::read_to_string(out.join("frames.jsonl")).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_container_gives_the_same_frames_at_a_rate() {
    let rate = "30000/1001";
    for path in containers(rate).into_iter().chain([webm(rate)]) {
        let name = path.display();
        assert_eq!(numbers(&path, &["--fps", rate]).len(), 120, "{name}");
        let half: Vec<u64> = (0..60).map(|i| 2 * i).collect();
        assert_eq!(numbers(&path, &["--fps", "15000/1001"]), half, "{name}");
    }
    for path in containers("30").into_iter().chain([webm("30")]) {
        let tens: Vec<u64> = (0..12).map(|i| 10 * i).collect();
        assert_eq!(numbers(&path, &["--fps", "3"]), tens, "{}", path.display());
        let part = numbers(&path, &["--from", "1", "--to", "2", "--fps", "3"]);
        assert_eq!(part, [30, 40, 50], "{}", path.display());
        for (at, number) in [
            ("0", 0),
            ("0.05", 1),
            ("0.066667", 2),
            ("1.5", 45),
            ("99", 119),
        ] {
            assert_eq!(
                numbers(&path, &["--at", at]),
                [number],
                "{} {at}",
                path.display()
            );
        }
    }
}

#[test]
fn seconds_count_from_the_first_frame_and_ticks_are_the_container_s() {
    for path in containers("30") {
        let frame = &frames(&path, &["--at", "1"])[0];
        assert_eq!(frame["seconds"], 1.0, "{}", path.display());
    }
    let late = &containers("30")[6];
    let frame = &frames(late, &["--at", "1"])[0];
    assert!(frame["pts"].as_i64().unwrap() > 36_000 * 90_000);
}

#[test]
fn the_prompt_of_a_clip_is_the_same_from_every_container() {
    for system in ["llava_video", "qwen3_vl", "qwen2_5_vl", "llava15"] {
        let model = golden::path(&format!("answers/{system}"))
            .display()
            .to_string();
        let prompt = |path: &Path| {
            let fixed = [
                "ask",
                path.to_str().unwrap(),
                "What moves?",
                "--model",
                &model,
            ];
            let options = [
                "--fps",
                "2",
                "--max-new-tokens",
                "1",
                "--json",
                "--debug-ids",
            ];
            let answer = longreel(&[&fixed[..], &options].concat()).json();
            (
                answer["prompt_ids"].clone(),
                answer["video"][0]["pts"].clone(),
            )
        };
        let files = containers("30");
        let expected = prompt(&files[0]);
        for path in &files[1..] {
            assert_eq!(prompt(path), expected, "{system} {}", path.display());
        }
    }
}

#[test]
fn a_reel_tells_the_times_that_its_video_tells() {
    let model = golden::path("answers/qwen3_vl").display().to_string();
    let late = containers("30")[6].display().to_string();
    let out = tempfile::tempdir().unwrap();
    let reel = out.path().join("late.reel").display().to_string();
    let encode = [
        "encode", &late, "--out", &reel, "--model", &model, "--fps", "2",
    ];
    assert_eq!(longreel(&encode).code, 0);
    let ask = |input: &str, more: &[&str]| {
        let fixed = ["ask", input, "What moves?", "--model", &model, "--json"];
        let answer =
            longreel(&[&fixed[..], &["--max-new-tokens", "1", "--debug-ids"], more].concat());
        let answer = answer.json();
        (answer["prompt_ids"].clone(), answer["video"][0].clone())
    };
    let (of_video, seen) = ask(&late, &["--fps", "2"]);
    assert_eq!(ask(&reel, &[]).0, of_video);
    assert_eq!(seen["pts"][1], 0.5);
    // A step holds 2.0 and 2.5 s: the reel says that it cannot part.
    let (_, part) = ask(&reel, &["--to", "2.3"]);
    let warnings = part["warnings"].to_string();
    assert!(warnings.contains("cannot part"), "{warnings}");
}

#[test]
fn the_length_is_that_of_the_video_track() {
    let picture = "testsrc2=s=96x64:r=25:d=4";
    let inputs = [
        "-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", "sine=d=8",
    ];
    let h264 = ["-c:v", "libx264", "-c:a", "aac"];
    let files = [
        ("longer.mkv", &h264),
        ("longer.mp4", &h264),
        ("longer.ts", &h264),
        ("longer.flv", &h264),
        ("longer.avi", &["-c:v", "mpeg4", "-c:a", "mp2"]),
        ("longer.webm", &["-c:v", "libvpx", "-c:a", "libopus"]),
    ];
    for (name, encoder) in files {
        let path = clips::make(name, &[&inputs[..], encoder].concat());
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("frames").display().to_string();
        let arguments = ["frames", path.to_str().unwrap(), "--out", &out, "--json"];
        let told = longreel(&[&arguments[..], &["--frames", "1"]].concat()).json();
        let duration = &told["video"]["duration"];
        let part = |key: &str| duration["time_base"][key].as_f64().unwrap();
        let seconds = duration["ticks"].as_f64().unwrap() * part("num") / part("den");
        assert!((seconds - 4.0).abs() < 0.002, "{name}: {seconds} s");
    }
}

/// When frame `i` at `rate`, of a video that begins at `offset` seconds, is shown in a container of this base.
fn kept(i: u64, (num, den): (u64, u64), offset_us: u64, base: u32, is_cut: bool) -> i64 {
    let time =
        u128::from(i) * u128::from(den) * 1_000_000 + u128::from(offset_us) * u128::from(num);
    let (time, unit) = (time * u128::from(base), u128::from(num) * 1_000_000);
    let half = if is_cut { 0 } else { unit / 2 };
    i64::try_from((time + half) / unit).unwrap()
}

proptest! {
    /// At the video's own rate every frame is taken, and at a part of it every second or third, whatever
    /// the container's clock begins with and however it rounds.
    #[test]
    fn rounded_times_lose_no_frame(
        rate in prop::sample::select(vec![(24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (50, 1), (60000, 1001), (120, 1)]),
        offset_us in 0_u64..100_000_000,
        base in prop::sample::select(vec![1000_u32, 12_800, 15_360, 90_000, 1_000_000]),
        every in 1_u64..5,
        is_cut in any::<bool>(),
    ) {
        let ticks: Vec<i64> = (0..240).map(|i| kept(i, rate, offset_us, base, is_cut)).collect();
        let fps = parse_rate(&format!("{}/{}", rate.0, rate.1 * every)).unwrap();
        let base = TimeBase::new(1, base).unwrap();
        let chosen = select(&Sampling::Fps(fps), &TimeRange::ALL, &ticks, base).unwrap();
        let expected: Vec<usize> = (0..240).step_by(every as usize).collect();
        prop_assert_eq!(chosen, expected);
    }

    #[test]
    fn the_time_of_a_frame_is_asked_for_in_six_decimals_and_found(i in 0_u64..5000, base in prop::sample::select(vec![1000_u32, 90_000])) {
        let ticks: Vec<i64> = (0..5001).map(|i| kept(i, (30_000, 1001), 0, base, false)).collect();
        // Six decimals, rounded up: the frame has begun by then.
        let micros = (i * 1001 * 1_000_000).div_ceil(30_000);
        let at = parse_time(&format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)).unwrap();
        let base = TimeBase::new(1, base).unwrap();
        let chosen = select(&Sampling::At(vec![at]), &TimeRange::ALL, &ticks, base).unwrap();
        prop_assert_eq!(chosen, vec![i as usize]);
    }
}

#[test]
fn a_base_of_whole_frames_is_exact() {
    let ticks: Vec<i64> = (0..100).collect();
    let base = TimeBase::new(1, 25).unwrap();
    let three = Sampling::Fps(parse_rate("3").unwrap());
    // Ticks at 8 1/3, 16 2/3 and 25 frames.
    let chosen = select(&three, &TimeRange::ALL, &ticks, base).unwrap();
    assert_eq!(chosen[..4], [0, 9, 17, 25]);
    let at = Sampling::At(vec![Pts::new(7, TimeBase::new(1, 100).unwrap())]);
    assert_eq!(select(&at, &TimeRange::ALL, &ticks, base).unwrap(), [1]);
}
