//! What the user types and reads.

use expect_test::{Expect, expect};

use crate::support::{
    golden,
    longreel::{command, golden_clip, golden_model, longreel, scratch},
};

fn check(text: &str, expected: Expect) {
    expected.assert_eq(text);
}

#[test]
fn the_overview_lists_every_verb() {
    check(
        &longreel(&["--help"]).stdout,
        expect![[r#"
            Ask questions of hours of video

            Usage: longreel [OPTIONS] <COMMAND>

            Commands:
              ask          Ask a question of one or more videos
              frames       Write the frames that would be seen, with their exact times
              encode       Turn videos or images into a reel: frame tokens, features or vectors, with times
              search       Find the moments that a text or a picture describes
              reconstruct  Decode a reel back to a video: see what the model sees
              generate     Make an image or a video from a description
              synth        Render clips of a synthetic world, with questions and exact answers
              demo         Render a clip held out from training and compare a model's answers
              import       Turn a foreign checkpoint into a model directory
              models       List, show, verify and fetch models
              plan         Count frames, tokens, bytes and operations before anything runs
              train        Train a model with LWM's recipe
              bench        Measure this machine, and the program's speed on it
              help         Print this message or the help of the given subcommand(s)

            Options:
                  --json         Print one JSON object on stdout and nothing else there
              -q, --quiet        No progress on stderr
                  --threads <N>  Threads for encoding and answering; all cores when absent
              -h, --help         Print help
              -V, --version      Print version

            Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 75 stopped and resumable, 130 interrupted.

            Start with:
              longreel ask holiday.mp4 "What happens at the lake?" --model org/name
        "#]],
    );
}

#[test]
fn a_missing_verb_is_a_usage_error() {
    assert_eq!(longreel::<&str>(&[]).code, 2);
}

#[test]
fn every_verb_has_help_with_an_example() {
    for verb in [
        "ask",
        "frames",
        "encode",
        "search",
        "reconstruct",
        "generate",
        "synth",
        "import",
        "models",
        "plan",
        "train",
        "bench",
    ] {
        let run = longreel(&[verb, "--help"]);
        assert_eq!(run.code, 0, "{verb}");
        assert!(
            run.stdout.contains("Example"),
            "{verb} --help has no example"
        );
    }
}

#[test]
fn a_misspelt_option_names_the_right_one() {
    let run = longreel(&["ask", "a.mp4", "What?", "--modle", "x"]);
    run.refused(2, "--model");
}

#[test]
fn json_errors_have_a_kind_and_the_sentence() {
    let model = golden_model().display().to_string();
    let run = longreel(&["ask", "/nowhere.mp4", "What?", "--model", &model, "--json"]);
    assert_eq!(run.code, 2);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json["error"]["kind"], "NotFound");
    assert_eq!(json["error"]["exit_code"], 2);
    assert!(
        json["error"]["message"]
            .as_str()
            .unwrap()
            .contains("/nowhere.mp4")
    );
}

#[test]
fn every_clip_is_answered_and_its_sampling_echoed() {
    let model = golden_model().display().to_string();
    for clip in [
        "nasa_13013.mp4",
        "h265_video.mp4",
        "av1_video.mkv",
        "h264_10bits.mp4",
        "h265_10bits.mp4",
        "bt709_full_range.mp4",
    ] {
        let path = golden::clip(clip).display().to_string();
        let json = longreel(&[
            "ask",
            &path,
            "What is shown?",
            "--model",
            &model,
            "--fps",
            "1",
            "--max-new-tokens",
            "4",
            "--json",
        ])
        .json();
        let video = &json["video"][0];
        let frames = video["frames"].as_u64().unwrap();
        assert!(frames > 0, "{clip}: {video}");
        assert_eq!(
            video["pts"].as_array().unwrap().len() as u64,
            frames,
            "{clip}"
        );
        assert_eq!(
            json["tokens"]["vision"].as_u64().unwrap(),
            frames * 257,
            "{clip}"
        );
        assert!(
            video["warnings"].as_array().unwrap().is_empty(),
            "{clip}: {video}"
        );
    }
}

#[test]
fn several_videos_stand_in_one_prompt_in_order() {
    let model = golden_model().display().to_string();
    let (a, b) = (
        golden::clip("h265_video.mp4"),
        golden::clip("av1_video.mkv"),
    );
    let args = [
        "ask",
        &a.display().to_string(),
        &b.display().to_string(),
        "Which?",
        "--model",
        &model,
        "--frames",
        "2",
        "--max-new-tokens",
        "2",
        "--json",
    ];
    let json = longreel(&args).json();
    assert_eq!(json["video"].as_array().unwrap().len(), 2);
    assert_eq!(json["tokens"]["vision"], 4 * 257);
}

#[test]
fn a_reel_of_two_videos_is_asked_as_two_videos() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden_model().display().to_string();
    let [a, b] = ["h265_video.mp4", "av1_video.mkv"].map(|c| golden::clip(c).display().to_string());
    let reel = dir.path().join("two.reel").display().to_string();
    longreel(&[
        "encode", &a, &b, "--out", &reel, "--model", &model, "--frames", "2", "--json",
    ])
    .json();
    let ask = |inputs: &[&str], more: &[&str]| {
        let end = [
            "Which?",
            "--model",
            &model,
            "--max-new-tokens",
            "2",
            "--debug-ids",
            "--json",
        ];
        longreel(&[&["ask"], inputs, &end, more].concat()).json()
    };
    let from_videos = ask(&[&a, &b], &["--frames", "2"]);
    let from_reel = ask(&[&reel], &[]);
    assert_eq!(from_videos["prompt_ids"], from_reel["prompt_ids"]);
    for (video, kept) in [(0, 0), (1, 1)] {
        for key in ["ticks", "time_base", "index", "duration_s"] {
            assert_eq!(
                from_videos["video"][video][key], from_reel["video"][kept][key],
                "{key}"
            );
        }
    }
}

#[test]
fn options_that_a_reel_cannot_follow_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden_model().display().to_string();
    let clip = golden_clip().display().to_string();
    let reel = dir.path().join("a.reel").display().to_string();
    longreel(&[
        "encode", &clip, "--out", &reel, "--model", &model, "--frames", "2", "--json",
    ])
    .json();
    longreel(&["ask", &reel, "What?", "--model", &model, "--fps", "2"]).refused(2, "is a reel");
}

#[test]
fn a_failing_follow_up_loses_no_answer() {
    use std::io::Write;
    let model = golden_model().display().to_string();
    let clip = golden_clip().display().to_string();
    let mut child = command()
        .args([
            "ask",
            &clip,
            "What?",
            "--model",
            &model,
            "--frames",
            "2",
            "--max-new-tokens",
            "4",
            "--interactive",
            "--json",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let long = format!("And?\n{}\n", "why ".repeat(25_000));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(long.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["follow_ups"].as_array().unwrap().len(), 1);
    assert!(
        json["error"].as_str().unwrap().contains("context"),
        "{json}"
    );
}

#[test]
fn usage_errors_are_json_too() {
    let run = longreel(&["ask", "--json", "--nonsense"]);
    assert_eq!(run.code, 2);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json["error"]["kind"], "Usage");
}

#[test]
fn the_answer_ends_before_a_stop_text() {
    let model = golden_model().display().to_string();
    let clip = golden_clip().display().to_string();
    let ask = |more: &[&str]| {
        let start = [
            "ask",
            &clip,
            "What is the video about?",
            "--model",
            &model,
            "--frames",
            "4",
            "--max-new-tokens",
            "32",
            "--json",
        ];
        longreel(&[&start, more].concat()).json()
    };
    let whole = ask(&[])["answer"].as_str().unwrap().to_owned();
    let stopped = ask(&["--stop", "the"]);
    assert_eq!(stopped["answer"].as_str(), whole.split("the").next());
    assert_eq!(stopped["finish"], "stop");
}

#[test]
fn follow_up_questions_pay_only_for_their_own_tokens() {
    use std::io::Write;
    let model = golden_model().display().to_string();
    let clip = golden_clip().display().to_string();
    let mut child = command()
        .args([
            "ask",
            &clip,
            "What is shown?",
            "--model",
            &model,
            "--frames",
            "2",
            "--max-new-tokens",
            "4",
            "--interactive",
            "--json",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"And then?\nAnd after that?\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let follow_ups = json["follow_ups"].as_array().unwrap();
    assert_eq!(follow_ups.len(), 2);
    for follow_up in follow_ups {
        assert!(
            follow_up["prompt_tokens"].as_u64().unwrap() < 64,
            "{follow_up}"
        );
    }
}

#[test]
fn a_streamed_answer_is_the_answer() {
    let model = golden_model().display().to_string();
    let clip = golden_clip().display().to_string();
    let ask = |more: &[&str]| {
        let mut args = vec![
            "ask",
            &clip,
            "What is shown?",
            "--model",
            &model,
            "--frames",
            "2",
            "--max-new-tokens",
            "24",
        ];
        args.extend(more);
        longreel(&args).stdout
    };
    assert_eq!(ask(&["--stream"]), ask(&[]));
}

#[test]
fn frames_are_listed_with_exact_times() {
    let out = scratch().join("frames");
    let clip = golden::clip("nasa_13013.mp4").display().to_string();
    let json = longreel(&[
        "frames",
        &clip,
        "--out",
        &out.display().to_string(),
        "--fps",
        "1",
        "--json",
    ])
    .json();
    let lines = std::fs::read_to_string(out.join("frames.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len() as u64, json["frames"].as_u64().unwrap());
    for line in &lines {
        assert!(out.join(line["file"].as_str().unwrap()).is_file());
    }
    check(
        &serde_json::to_string(&lines[1]).unwrap(),
        expect![[
            r#"{"file":"frame_000030_pts_30030.png","index":30,"pts":30030,"time_base":"1/30000","seconds":1.001,"key":false,"corrupt":false,"width":480,"height":270}"#
        ]],
    );
}

#[test]
fn a_plan_counts_and_refuses_what_cannot_fit() {
    let toml =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/models/lwm-chat-1m.toml");
    let toml = toml.display().to_string();
    let plan = |gib: &str| {
        longreel(&[
            "plan",
            "--model",
            &toml,
            "--hours",
            "1",
            "--fps",
            "1",
            "--kv-dtype",
            "bf16",
            "--memory-gib",
            gib,
            "--json",
        ])
    };
    let fits = plan("640").json();
    assert_eq!(fits["fits"], true);
    assert_eq!(fits["kv_bytes_per_token"], 512 * 1024);
    assert_eq!(fits["vision_tokens"], 3600 * 257);
    plan("64").refused(2, "the machine can give 64.00 GiB");
}

#[test]
fn reconstruct_writes_a_video_of_as_many_frames() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden_model().display().to_string();
    let reel = dir.path().join("a.reel").display().to_string();
    let out = dir.path().join("a.mp4").display().to_string();
    longreel(&[
        "encode",
        &golden_clip().display().to_string(),
        "--out",
        &reel,
        "--model",
        &model,
        "--all-frames",
        "--json",
    ])
    .json();
    let json = longreel(&[
        "reconstruct",
        &reel,
        "--out",
        &out,
        "--model",
        &model,
        "--json",
    ])
    .json();
    assert_eq!(json["frames"], 5);
    let frames = dir.path().join("frames").display().to_string();
    let seen = longreel(&["frames", &out, "--out", &frames, "--all-frames", "--json"]).json();
    assert_eq!(seen["frames"], 5);
}

#[test]
fn an_imported_model_is_sound() {
    let model = golden_model().display().to_string();
    assert_eq!(longreel(&["models", "verify", &model]).code, 0);
    let json = longreel(&["models", "show", &model, "--json"]).json();
    assert_eq!(json["tokens_per_frame"], 257);
}
