//! Folders as they stand on the hub, asked about a video through the command line, answer what
//! transformers answers (`tests/golden/answers.py`).

use serde_json::Value;

use crate::support::{
    golden,
    longreel::{Run, longreel},
};

/// The systems, each with the rate that takes the frames that transformers was given.
const SYSTEMS: [(&str, &[&str]); 2] = [
    ("llava15", &["--fps", "1"]),
    ("llava_onevision", &["--fps", "1"]),
];

/// Asks `system` about the golden video, with `more` arguments.
fn ask(system: &str, more: &[&str]) -> Run {
    let path = |name: &str| {
        golden::path(&format!("answers/{name}"))
            .display()
            .to_string()
    };
    let (video, model) = (path("video.mkv"), path(system));
    let fixed = ["ask", &video, "What moves?", "--model", &model];
    let options = ["--max-new-tokens", "6", "--json", "--debug-ids"];
    longreel(&[&fixed[..], &options, more].concat())
}

/// What transformers made of it.
fn expected(system: &str) -> Value {
    let path = golden::path(&format!("answers/{system}/expected.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[track_caller]
fn check(system: &str, more: &[&str]) {
    let (got, expected) = (ask(system, more).json(), expected(system));
    assert_eq!(got["video"][0]["index"], expected["frames"], "{system}");
    assert_eq!(got["prompt_ids"], expected["prompt_ids"], "{system}");
    assert_eq!(got["generated_ids"], expected["generated_ids"], "{system}");
}

#[test]
fn frames_prompt_and_answer_are_those_of_transformers() {
    for (system, sampling) in SYSTEMS {
        check(system, sampling);
    }
}

#[test]
fn a_ring_and_short_chunks_change_no_answer() {
    for (system, sampling) in SYSTEMS {
        for options in [["--ring", "2"], ["--ring", "3"], ["--prefill-chunk", "7"]] {
            check(system, &[sampling, &options].concat());
        }
    }
}

#[test]
fn a_folder_of_the_hub_is_shown_verified_and_planned_with() {
    for (system, _) in SYSTEMS {
        let folder = golden::path(&format!("answers/{system}"))
            .display()
            .to_string();
        let video = golden::path("answers/video.mkv").display().to_string();
        let shown = longreel(&["models", "show", &folder, "--json"]).json();
        assert_eq!(shown["spec"]["model_type"], "vision_language", "{system}");
        let sound = longreel(&["models", "verify", &folder]);
        assert_eq!(sound.code, 0, "{}", sound.stderr);
        let plan = longreel(&["plan", &video, "--model", &folder, "--fps", "1", "--json"]).json();
        assert_eq!(plan["frames"], 4, "{system}");
        assert_eq!(plan["fits"], true, "{system}");
    }
}
