//! From a file to an answer, through the real program: ids equal to LWM's own code.

use serde_json::Value;

use crate::support::{
    golden::{self, Golden},
    longreel::{Run, golden_clip, golden_model, longreel},
};

/// Asks with 32 new tokens, greedy, and echoes ids.
fn ask(input: &str, question: &str, more: &[&str]) -> Value {
    let model = golden_model().display().to_string();
    let mut args = vec![
        "ask",
        input,
        question,
        "--model",
        &model,
        "--max-new-tokens",
        "32",
        "--json",
        "--debug-ids",
    ];
    args.extend(more);
    longreel(&args).json()
}

fn ids(json: &Value, key: &str) -> Vec<i32> {
    json[key]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_i64().unwrap() as i32)
        .collect()
}

/// Row `row` of a golden prompt without its left padding.
fn golden_prompt(case: &str, row: usize) -> Vec<i32> {
    let golden = Golden::open("e2e/expected.safetensors");
    let shape = golden.shape(&format!("{case}.input_ids"));
    let range = row * shape[1]..(row + 1) * shape[1];
    let ids = golden.i32(&format!("{case}.input_ids"))[range.clone()].to_vec();
    let mask = golden.i32(&format!("{case}.attention_mask"))[range].to_vec();
    ids.into_iter()
        .zip(mask)
        .filter(|(_, m)| *m == 1)
        .map(|(id, _)| id)
        .collect()
}

/// Row `row` of a golden answer up to its end of sequence, as the program gives it.
fn golden_answer(case: &str, row: usize) -> Vec<i32> {
    let all = Golden::open("e2e/expected.safetensors").i32(&format!("{case}.answer_ids"));
    let row = &all[row * 32..(row + 1) * 32];
    let end = row
        .iter()
        .position(|&id| id == 2)
        .map_or(row.len(), |at| at + 1);
    row[..end].to_vec()
}

#[track_caller]
fn check(json: &Value, case: &str, row: usize) {
    assert_eq!(
        ids(json, "prompt_ids"),
        golden_prompt(case, row),
        "{case}: prompt"
    );
    assert_eq!(
        ids(json, "generated_ids"),
        golden_answer(case, row),
        "{case}: answer"
    );
}

fn clip() -> String {
    golden_clip().display().to_string()
}

fn image() -> String {
    golden::path("e2e/clip/frame_000.png").display().to_string()
}

#[test]
fn a_video_answers_with_upstreams_ids() {
    let json = ask(&clip(), "What is the video about?", &["--frames", "4"]);
    check(&json, "video", 0);
    let cases: Value =
        serde_json::from_str(&std::fs::read_to_string(golden::path("e2e/cases.json")).unwrap())
            .unwrap();
    assert_eq!(json["answer"], cases[0]["answer"][0]);
    assert_eq!(json["video"][0]["index"], serde_json::json!([0, 1, 2, 4]));
}

#[test]
fn the_training_terminators_answer_with_their_own_ids() {
    let json = ask(
        &clip(),
        "What is the video about?",
        &["--frames", "4", "--frame-end", "training"],
    );
    check(&json, "video_train_eof", 0);
}

#[test]
fn an_image_is_a_video_of_one_frame() {
    let json = ask(&image(), "What is the video about?", &["--frames", "1"]);
    check(&json, "image", 0);
}

#[test]
fn each_row_of_a_batch_has_the_ids_of_the_row_alone() {
    check(
        &ask(
            &clip(),
            "How many people walk in the scene?",
            &["--frames", "2"],
        ),
        "batch",
        0,
    );
    check(
        &ask(&image(), "What is the video about?", &["--frames", "2"]),
        "batch",
        1,
    );
}

#[test]
fn prefill_chunks_and_a_reel_do_not_change_the_answer() {
    let whole = ask(
        &clip(),
        "What is the video about?",
        &["--frames", "4", "--prefill-chunk", "4096"],
    );
    let small = ask(
        &clip(),
        "What is the video about?",
        &["--frames", "4", "--prefill-chunk", "7"],
    );
    assert_eq!(ids(&whole, "generated_ids"), ids(&small, "generated_ids"));

    let dir = tempfile::tempdir().unwrap();
    let reel = dir.path().join("clip.reel").display().to_string();
    let model = golden_model().display().to_string();
    let encoded = longreel(&[
        "encode",
        &clip(),
        "--out",
        &reel,
        "--model",
        &model,
        "--frames",
        "4",
        "--json",
    ])
    .json();
    assert_eq!(encoded["frames"], 4);
    let from_reel = ask(&reel, "What is the video about?", &[]);
    assert_eq!(ids(&whole, "prompt_ids"), ids(&from_reel, "prompt_ids"));
    assert_eq!(
        ids(&whole, "generated_ids"),
        ids(&from_reel, "generated_ids")
    );
    assert_eq!(from_reel["seconds"]["encode"], 0.0);
}

/// Draws greedily with the golden guidance.
fn generate(out: &str, more: &[&str]) -> Run {
    let model = golden_model().display().to_string();
    let mut args = vec![
        "generate",
        PICTURE,
        "--out",
        out,
        "--model",
        &model,
        "--temperature",
        "0",
        "--cfg-image",
        "3",
        "--json",
        "--debug-ids",
    ];
    args.extend(more);
    longreel(&args)
}

/// What the golden generation prompts describe.
const PICTURE: &str = "a red car";

#[test]
fn a_generated_image_has_upstreams_ids() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("image.png");
    let json = generate(&out.display().to_string(), &[]).json();
    let expected = Golden::open("e2e/expected.safetensors").i32("gen_image.tokens");
    assert_eq!(ids(&json, "generated_ids"), expected[..257]);
    assert!(out.is_file());
}
