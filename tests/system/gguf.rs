//! GGUF files through the command line: alone, in a folder, and as the decoder of another model.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    gguf::{BF16, F32, GgufFile},
    golden,
    longreel::{Run, golden_clip, golden_model, longreel},
};

fn chat() -> String {
    golden::path("gguf/chat.gguf").display().to_string()
}

/// What transformers answers (`tests/golden/gguf.py`).
fn expected() -> Value {
    let text = fs::read_to_string(golden::path("gguf/chat.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ask(model: &str, more: &[&str]) -> Run {
    let fixed = ["ask", "What moves?", "--model", model];
    let options = ["--max-new-tokens", "12", "--json", "--debug-ids"];
    longreel(&[&fixed[..], &options, more].concat())
}

#[test]
fn a_file_alone_is_asked_with_its_own_vocabulary_and_template() {
    let expected = expected();
    for more in [&[][..], &["--prefill-chunk", "3"], &["--ring", "2"]] {
        let got = ask(&chat(), more).json();
        assert_eq!(got["prompt_ids"], expected["prompt_ids"], "{more:?}");
        assert_eq!(got["generated_ids"], expected["generated_ids"], "{more:?}");
    }
}

#[test]
fn a_folder_with_one_file_is_that_file_and_one_with_two_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::copy(chat(), dir.path().join("a.gguf")).unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let folder = dir.path().display().to_string();
    let got = ask(&folder, &[]).json();
    assert_eq!(got["generated_ids"], expected()["generated_ids"]);
    fs::copy(chat(), dir.path().join("b.gguf")).unwrap();
    ask(&folder, &[]).refused(2, "has a.gguf, b.gguf, expected one *.gguf file");
}

#[test]
fn a_tokenizer_beside_the_file_comes_first() {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("model.gguf");
    fs::copy(chat(), &model).unwrap();
    let other = golden::path("answers/llava15/tokenizer.json");
    fs::copy(other, dir.path().join("tokenizer.json")).unwrap();
    let got = ask(&model.display().to_string(), &[]).json();
    assert_ne!(got["prompt_ids"], expected()["prompt_ids"]);
}

#[test]
fn show_verify_plan_and_bench_know_the_file() {
    let shown = longreel(&["models", "show", &chat(), "--json"]).json();
    assert_eq!(shown["dtypes"], serde_json::json!(["F32", "Q8_0"]));
    assert_eq!(shown["spec"]["decoder"]["qkv_bias"], true);
    let report = longreel(&["models", "verify", &chat(), "--json"]).json();
    assert_eq!(report["missing"], serde_json::json!([]));
    assert_eq!(report["unknown"], serde_json::json!([]));
    let plan = longreel(&["plan", "--model", &chat(), "--json"]).json();
    assert_eq!(plan["context_limit"], 512);
    // Blocks of Q8_0 are copied, in two orders: 17 bits a weight instead of 8.5.
    let [planned, stored] = [&plan, &shown].map(|json| json["weight_bytes"].as_u64().unwrap());
    assert!(
        (stored..=2 * stored).contains(&planned),
        "{planned} of {stored}"
    );
    let bench = [
        "bench",
        "context",
        "--model",
        &chat(),
        "--tokens",
        "64",
        "--json",
    ];
    let row = &longreel(&[&bench[..], &["--question", "8", "--answer", "4"]].concat()).json();
    assert_eq!(row["rows"][0]["tokens"], 64);
}

/// Quantized matrices are multiplied as the option says, whatever memory is free.
#[test]
fn how_quantized_matrices_are_multiplied_is_chosen_and_told() {
    // The one file of Q8_0, and one without blocks.
    let (quantized, plain) = (
        golden::path("gguf/qwen3_q8_0.gguf"),
        golden::path("gguf/llama_f32.gguf"),
    );
    let plan = |file: &Path, more: &[&str]| {
        let dir = TempDir::new().unwrap();
        let model = dir.path().join("model.gguf");
        fs::copy(file, &model).unwrap();
        fs::copy(
            golden::path("answers/llava15/tokenizer.json"),
            dir.path().join("tokenizer.json"),
        )
        .unwrap();
        let model = model.display().to_string();
        longreel(
            &[
                &[
                    "plan",
                    "--model",
                    &model,
                    "--question",
                    "a",
                    "--max-new-tokens",
                    "1",
                ][..],
                more,
            ]
            .concat(),
        )
    };
    let json = |file: &Path, more: &[&str]| plan(file, &[more, &["--json"]].concat()).json();
    let (rounded, exact) = (
        json(&quantized, &[]),
        json(&quantized, &["--gguf-products", "exact"]),
    );
    assert_eq!(rounded["gguf_products"], "rounded");
    assert_eq!(exact["gguf_products"], "exact");
    let bytes = |plan: &Value, key: &str| plan[key].as_u64().unwrap_or(0);
    let saved = bytes(&rounded, "weight_bytes") - bytes(&exact, "weight_bytes");
    assert!(saved > 0);
    assert_eq!(bytes(&rounded, "copied_bytes"), saved);
    assert_eq!(bytes(&exact, "copied_bytes"), 0);
    assert_eq!(json(&plain, &[])["gguf_products"], Value::Null);
    let refused = plan(&quantized, &["--memory-gib", "0.001"]);
    refused.refused(2, "--gguf-products exact takes");
    let refused = plan(
        &quantized,
        &["--memory-gib", "0.001", "--gguf-products", "exact"],
    );
    refused.refused(2, "this needs");
    assert!(
        !refused.stderr.contains("--gguf-products"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_nan_scale_is_found_by_verify() {
    let mut bytes = fs::read(chat()).unwrap();
    let header = longreel_models::checkpoint::gguf::Header::read(&bytes).unwrap();
    let tensor = header
        .tensors
        .iter()
        .find(|t| t.name == "blk.1.ffn_up.weight");
    let at = tensor.unwrap().range.start;
    bytes[at + 1] = 0x7f;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("spoilt.gguf");
    fs::write(&path, bytes).unwrap();
    let path = path.display().to_string();
    let run = longreel(&["models", "verify", &path]);
    run.refused(2, "are faulty");
    let found = "not a finite number: 32 values of model.layers.1.mlp.up_proj.weight";
    assert!(run.stdout.contains(found), "{}", run.stdout);
    ask(&path, &[]).refused(1, "is NaN, expected a finite number");
}

#[test]
fn text_models_refuse_videos_and_frames() {
    let video = golden_clip().display().to_string();
    let run = longreel(&["ask", &video, "What moves?", "--model", &chat()]);
    run.refused(2, "is a text model");
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("a.reel").display().to_string();
    let run = longreel(&["encode", &video, "--out", &out, "--model", &chat()]);
    run.refused(2, "is a text model");
}

#[test]
fn files_that_are_cut_or_of_another_kind_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    let text = path.display().to_string();
    let whole = fs::read(chat()).unwrap();
    let spoilt: [(Vec<u8>, &str); 4] = [
        (whole[..whole.len() / 2].to_vec(), "but the file has"),
        (whole[..100].to_vec(), "are left"),
        (b"not a model".to_vec(), "expected GGUF"),
        (Vec::new(), "model.gguf"),
    ];
    for (bytes, expected) in spoilt {
        fs::write(&path, bytes).unwrap();
        for verb in [
            &["ask", "Why?", "--model", &text][..],
            &["models", "show", &text],
            &["models", "verify", &text],
            &["plan", "--model", &text],
        ] {
            longreel(verb).refused(2, expected);
        }
    }
}

/// The systems of `tests/golden/answers` with the rate that takes the frames that transformers was given.
const SYSTEMS: [(&str, &[&str]); 7] = [
    ("llava15", &["--fps", "1"]),
    ("llava_onevision", &["--fps", "1"]),
    ("vila15", &["--fps", "1"]),
    ("qwen2_5_vl", &[]),
    ("qwen3_vl", &[]),
    ("internvl", &[]),
    ("llava_video", &[]),
];

/// The decoder of the folder `dir`, as a file of its own.
fn decoder(dir: &Path, kind: u32) -> (TempDir, String) {
    let temporary = TempDir::new().unwrap();
    let path = temporary.path().join("decoder.gguf");
    GgufFile::decoder_of(dir, kind).write(&path);
    let text = path.display().to_string();
    (temporary, text)
}

#[test]
fn a_vision_language_folder_answers_the_same_with_its_decoder_in_a_file() {
    let video = golden::path("answers/video.mkv").display().to_string();
    for (system, sampling) in SYSTEMS {
        let dir = golden::path(&format!("answers/{system}"));
        let text = fs::read_to_string(dir.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        let (_kept, file) = decoder(&dir, F32);
        let model = dir.display().to_string();
        let fixed = [
            "ask",
            &video,
            "What moves?",
            "--model",
            &model,
            "--decoder",
            &file,
        ];
        let options = ["--max-new-tokens", "6", "--json", "--debug-ids"];
        let got = longreel(&[&fixed[..], &options, sampling].concat()).json();
        assert_eq!(got["prompt_ids"], expected["prompt_ids"], "{system}");
        assert_eq!(got["generated_ids"], expected["generated_ids"], "{system}");
    }
}

#[test]
fn a_reel_of_the_folder_is_asked_and_planned_with_its_decoder_in_a_file() {
    let temporary = TempDir::new().unwrap();
    let reel = temporary.path().join("a.reel").display().to_string();
    let video = golden::path("answers/video.mkv").display().to_string();
    for system in ["llava_video", "qwen3_vl"] {
        let dir = golden::path(&format!("answers/{system}"));
        let (_kept, file) = decoder(&dir, F32);
        let model = dir.display().to_string();
        let of_reel = ["--out", &reel, "--reel-dtype", "f32", "--force"];
        let encode = ["encode", &video, "--model", &model];
        let kept = longreel(&[&encode[..], &of_reel].concat());
        assert_eq!(kept.code, 0, "{system}: {}", kept.stderr);
        let taken = ["--model", &model, "--decoder", &file, "--json"];
        let options = ["--max-new-tokens", "6", "--debug-ids"];
        let ask = [&["ask", &reel, "What moves?"][..], &taken, &options];
        let got = longreel(&ask.concat()).json();
        let text = fs::read_to_string(dir.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(got["prompt_ids"], expected["prompt_ids"], "{system}");
        assert_eq!(got["generated_ids"], expected["generated_ids"], "{system}");
        let plan = [&["plan", &reel, "--question", "What moves?"][..], &taken];
        let plan = longreel(&plan.concat()).json();
        assert_eq!(plan["prompt_tokens"], got["tokens"]["prompt"], "{system}");
    }
}

#[test]
fn lwm_keeps_its_codes_and_its_vision_head() {
    let (video, model) = (golden_clip().display().to_string(), golden_model());
    let (_kept, file) = decoder(model, F32);
    let model = model.display().to_string();
    let ask = |more: &[&str]| {
        let fixed = [
            "ask",
            &video,
            "What moves?",
            "--model",
            &model,
            "--frames",
            "2",
        ];
        let options = ["--max-new-tokens", "8", "--json", "--debug-ids"];
        longreel(&[&fixed[..], &options, more].concat()).json()
    };
    let (own, taken) = (ask(&[]), ask(&["--decoder", &file]));
    assert_eq!(own["prompt_ids"], taken["prompt_ids"]);
    assert_eq!(own["generated_ids"], taken["generated_ids"]);
}

#[test]
fn the_plan_counts_the_decoder_that_is_taken() {
    let dir = golden::path("answers/llava15");
    let (_kept, file) = decoder(&dir, BF16);
    let model = dir.display().to_string();
    let plan = |more: &[&str]| {
        let fixed = [
            "plan", "--model", &model, "--hours", "0.001", "--fps", "1", "--json",
        ];
        let json = longreel(&[&fixed[..], more].concat()).json();
        json["weight_bytes"].as_u64().unwrap()
    };
    let (own, taken) = (plan(&[]), plan(&["--decoder", &file]));
    // Matrices of 260 words and two layers, at 4 and at 2 bytes.
    let of_layer = 32 * (32 + 16 + 16 + 32 + 3 * 64);
    assert_eq!(own - taken, 2 * (2 * 260 * 32 + 2 * of_layer));
}

#[test]
fn a_decoder_of_another_model_is_refused_and_both_are_named() {
    let video = golden::path("answers/video.mkv").display().to_string();
    let model = golden::path("answers/llava15").display().to_string();
    let run = longreel(&[
        "ask",
        &video,
        "Why?",
        "--model",
        &model,
        "--decoder",
        &chat(),
    ]);
    run.refused(
        2,
        "qkv_bias of the folder's configuration is 0, of the GGUF file 1",
    );
    assert!(run.stderr.contains("chat.gguf"), "{}", run.stderr);
    assert!(run.stderr.contains("answers/llava15"), "{}", run.stderr);
    let file = "configs/models/llama-3.1-8b.toml";
    longreel(&["plan", "--model", file, "--decoder", &chat()]).refused(2, "--decoder needs");
}
