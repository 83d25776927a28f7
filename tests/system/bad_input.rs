//! Bad input, each with a clear sentence and a non-zero exit, nothing half-written, no panic.

use std::{fs, path::Path, process::Stdio, time::Duration};

use crate::support::{
    golden,
    longreel::{command, ffmpeg, golden_clip, golden_model, import_args, longreel},
};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// `longreel ask INPUT question` on the golden model.
fn ask(input: &str, more: &[&str]) -> crate::support::longreel::Run {
    let model = text(golden_model());
    let mut args = vec![
        "ask",
        input,
        "What is this?",
        "--model",
        &model,
        "--max-new-tokens",
        "4",
    ];
    args.extend(more);
    longreel(&args)
}

#[test]
fn a_missing_file_is_named() {
    ask("/nowhere/a.mp4", &[]).refused(2, "/nowhere/a.mp4");
}

#[test]
fn a_directory_is_not_a_video() {
    let dir = tempfile::tempdir().unwrap();
    ask(&text(dir.path()), &[]).refused(2, "directory");
}

#[test]
fn an_empty_file_is_not_a_video() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("empty.mp4");
    fs::write(&file, b"").unwrap();
    ask(&text(&file), &[]).refused(2, "empty");
}

#[test]
fn text_with_the_name_of_a_video_is_not_a_video() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("letter.mp4");
    fs::write(&file, "Dear reader, this is no video at all.\n".repeat(50)).unwrap();
    ask(&text(&file), &[]).refused(2, "letter.mp4");
}

/// A clip of two seconds whose index lies at the end, or at the front.
fn clip(out: &Path, faststart: bool) {
    let flags = if faststart {
        "-movflags +faststart"
    } else {
        ""
    };
    ffmpeg(
        &format!(
            "-f lavfi -i testsrc2=duration=4:size=128x96:rate=10 -pix_fmt yuv420p -g 5 {flags}"
        ),
        out,
    );
}

#[test]
fn a_file_without_its_index_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cut.mp4");
    clip(&file, false);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() * 6 / 10]).unwrap();
    ask(&text(&file), &[]).refused(2, "cut.mp4");
}

#[test]
fn a_file_cut_in_the_middle_answers_from_what_decoded_and_warns() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cut.mp4");
    clip(&file, true);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() * 6 / 10]).unwrap();
    let json = ask(&text(&file), &["--json", "--frames", "8"]).json();
    let video = &json["video"][0];
    let frames = video["frames"].as_u64().unwrap();
    assert!((1..20).contains(&frames), "{video}");
    assert!(!video["warnings"].as_array().unwrap().is_empty(), "{video}");
    assert_eq!(video["decode"]["truncated"], true, "{video}");
}

#[test]
fn sound_alone_is_not_a_video() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sound.mp4");
    ffmpeg("-f lavfi -i sine=duration=1", &file);
    ask(&text(&file), &[]).refused(2, "no video stream");
}

#[test]
fn corrupt_packets_in_the_middle_are_skipped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("torn.ts");
    ffmpeg(
        "-f lavfi -i testsrc2=duration=4:size=320x240:rate=10 -pix_fmt yuv420p -g 5",
        &file,
    );
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 4000] {
        *byte = byte.wrapping_mul(31).wrapping_add(7);
    }
    fs::write(&file, bytes).unwrap();
    let json = ask(&text(&file), &["--json", "--frames", "4"]).json();
    assert!(
        !json["video"][0]["warnings"].as_array().unwrap().is_empty(),
        "{}",
        json["video"][0]
    );
}

#[test]
fn a_question_longer_than_the_context_says_by_how_much() {
    let model = text(golden_model());
    let question = "why ".repeat(25_000);
    let run = longreel(&["ask", &text(golden_clip()), &question, "--model", &model]);
    run.refused(2, "the model's context is 4096 tokens");
}

#[test]
fn impossible_rates_are_refused_with_the_allowed_range() {
    for rate in ["0", "-1", "nan", "inf", "1/0", "x", ""] {
        let run = ask(&text(golden_clip()), &[&format!("--fps={rate}")]);
        run.refused(2, "--fps");
    }
    ask(&text(golden_clip()), &["--frames", "0"]).refused(2, "--frames is 0");
    ask(&text(golden_clip()), &["--fps", "1", "--frames", "2"]).refused(2, "cannot be used with");
}

#[test]
fn more_frames_than_fit_says_how_many_fit() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("long.mp4");
    clip(&file, true);
    ask(&text(&file), &["--all-frames"]).refused(2, "frames fit");
}

#[test]
fn a_wrong_model_directory_is_named() {
    let clip = text(golden_clip());
    let dir = tempfile::tempdir().unwrap();
    longreel(&["ask", &clip, "What?", "--model", &text(dir.path())]).refused(2, "config.json");
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    longreel(&["ask", &clip, "What?", "--model", &text(dir.path())]).refused(2, "config");
}

#[test]
fn a_truncated_checkpoint_leaves_no_model_directory() {
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("params");
    let bytes = fs::read(golden::path("e2e/params")).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let out = dir.path().join("model");
    let mut args = import_args(&out, &[]);
    let at = args.iter().position(|a| a.starts_with("params::")).unwrap();
    args[at] = format!("params::{}", cut.display());
    let run = longreel(&args);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(!out.exists());
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["params"], "the import left something behind");
}

#[test]
fn a_hostile_pickle_is_refused_naming_the_function_it_calls() {
    let dir = tempfile::tempdir().unwrap();
    let evil = dir.path().join("vqgan.pkl");
    fs::write(&evil, b"\x80\x04cos\nsystem\n\x8c\x04true\x85R.").unwrap();
    let out = dir.path().join("model");
    let mut args = import_args(&out, &[]);
    let at = args.iter().position(|a| a.ends_with("vqgan.pkl")).unwrap();
    args[at] = text(&evil);
    longreel(&args).refused(2, "os.system");
    assert!(!out.exists());
}

#[test]
fn an_existing_output_is_not_replaced_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let reel = dir.path().join("a.reel");
    fs::write(&reel, "precious").unwrap();
    let model = text(golden_model());
    longreel(&[
        "encode",
        &text(golden_clip()),
        "--out",
        &text(&reel),
        "--model",
        &model,
    ])
    .refused(2, "--force");
    assert_eq!(fs::read(&reel).unwrap(), b"precious");
}

#[test]
fn a_full_disk_is_reported_and_leaves_no_file() {
    // /dev/full behaves like a full disk for whatever is written to it.
    let run = command()
        .args(["models", "show", &text(golden_model())])
        .stdout(Stdio::from(
            fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap(),
        ))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&run.stderr).contains("no space left"),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

#[test]
fn an_unwritable_path_is_named() {
    let model = text(golden_model());
    let clip = text(golden_clip());
    longreel(&["encode", &clip, "--out", "/proc/a.reel", "--model", &model])
        .refused(2, "/proc/a.reel");
    let run = longreel(&["frames", &clip, "--out", "/proc/frames"]);
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("/proc/frames"), "{}", run.stderr);
}

/// Starts an encode of a clip that takes long enough, sends `signal`, and returns the exit code.
fn interrupt(signal: i32, out: &Path, video: &Path) -> i32 {
    let model = text(golden_model());
    let mut child = command()
        .args([
            "encode",
            &text(video),
            "--out",
            &text(out),
            "--model",
            &model,
            "--all-frames",
            "--quiet",
        ])
        .spawn()
        .unwrap();
    let partial = longreel::reel::partial_path(out);
    for _ in 0..600 {
        if fs::metadata(&partial).is_ok_and(|m| m.len() > 8192) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let kill = std::process::Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(kill.success());
    child.wait().unwrap().code().unwrap()
}

#[test]
fn an_interrupted_encode_resumes_to_the_same_reel() {
    let dir = tempfile::tempdir().unwrap();
    let video = dir.path().join("long.mp4");
    ffmpeg(
        "-f lavfi -i testsrc2=duration=40:size=128x96:rate=25 -pix_fmt yuv420p",
        &video,
    );
    let model = text(golden_model());
    let encode = |out: &Path| {
        longreel(&[
            "encode",
            &text(&video),
            "--out",
            &text(out),
            "--model",
            &model,
            "--all-frames",
            "--json",
        ])
        .json()
    };
    let whole = dir.path().join("whole.reel");
    encode(&whole);
    for (signal, code) in [(2, 130), (15, 75)] {
        let out = dir.path().join(format!("stopped-{signal}.reel"));
        assert_eq!(interrupt(signal, &out, &video), code);
        assert!(!out.exists(), "a stopped run has no finished reel");
        let json = encode(&out);
        assert!(json["resumed_frames"].as_u64().unwrap() > 0, "{json}");
        assert_eq!(json["frames"], 1000);
        assert!(
            fs::read(&out).unwrap() == fs::read(&whole).unwrap(),
            "the resumed reel differs from the whole one"
        );
    }
}
