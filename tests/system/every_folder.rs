//! What is in a folder: every folder of `tests/golden/systems` is shown, verified and planned for as what it is, or refused
//! in one sentence.

use std::fs;

use serde_json::Value;

use crate::support::{
    golden,
    longreel::{Run, ffmpeg, longreel, scratch},
};

/// What a folder is.
enum Expected {
    /// Answers, and has no tokenizer here.
    Answers(&'static str),
    /// Makes vectors of so many numbers.
    Vectors(&'static str, u64),
    /// A network whose file names no architecture.
    Unknown,
}

use Expected::{Answers, Unknown, Vectors};

const FOLDERS: [(&str, Expected); 28] = [
    ("clip", Vectors("dual_encoder", 24)),
    ("clip_end", Vectors("dual_encoder", 16)),
    ("dinov2", Vectors("picture_encoder", 32)),
    ("dinov2_swiglu", Vectors("picture_encoder", 24)),
    ("internvl", Answers("vision_language")),
    ("internvl_last_norm", Answers("vision_language")),
    ("internvl_rms", Answers("vision_language")),
    ("llama", Answers("text")),
    ("llama_linear_wide", Answers("text")),
    ("llama_mqa_tied", Answers("text")),
    ("llava15", Answers("vision_language")),
    ("llava15_full", Answers("vision_language")),
    ("llava_onevision", Answers("vision_language")),
    ("llava_onevision_tied", Answers("vision_language")),
    ("mixtral", Answers("text")),
    ("mixtral_mqa", Answers("text")),
    ("qwen2_5_vl", Answers("vision_language")),
    ("qwen2_vl", Answers("vision_language")),
    ("qwen3_vl", Answers("vision_language")),
    ("resnet", Vectors("picture_encoder", 48)),
    ("siglip", Vectors("dual_encoder", 32)),
    ("siglip_wide", Vectors("dual_encoder", 24)),
    ("vit", Vectors("picture_encoder", 32)),
    ("vit_no_bias", Vectors("picture_encoder", 24)),
    ("x_alexnet", Unknown),
    ("x_lenet5", Unknown),
    ("x_vgg", Unknown),
    ("x_vila_projector", Unknown),
];

fn at(folder: &str) -> String {
    golden::path(&format!("systems/{folder}"))
        .display()
        .to_string()
}

fn video() -> String {
    golden::path("answers/video.mkv").display().to_string()
}

fn plan(folder: &str, more: &[&str]) -> Run {
    let (model, video) = (at(folder), video());
    longreel(&[&["plan", &video, "--model", &model, "--json"], more].concat())
}

#[test]
fn no_folder_is_left_out() {
    let listed = FOLDERS.map(|(name, _)| name.to_owned());
    let mut there: Vec<String> = fs::read_dir(golden::path("systems"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    assert_eq!(there, listed);
}

#[test]
fn every_folder_is_shown_as_what_it_is() {
    for (folder, expected) in &FOLDERS {
        let run = longreel(&["models", "show", &at(folder), "--json"]);
        match expected {
            Unknown => run.refused(2, "model_type is null"),
            Answers(kind) => assert_eq!(run.json()["kind"], *kind, "{folder}"),
            Vectors(kind, width) => {
                let shown = run.json();
                assert_eq!(shown["kind"], *kind, "{folder}");
                assert_eq!(shown["vector_width"], *width, "{folder}");
            }
        }
    }
}

#[test]
fn every_folder_is_sound() {
    for (folder, expected) in &FOLDERS {
        let run = longreel(&["models", "verify", &at(folder), "--json"]);
        match expected {
            Unknown => run.refused(2, "model_type is null"),
            _ => {
                let report = run.json();
                let tensors = report["tensors"].as_u64().unwrap();
                assert!(
                    tensors > 10 && report["unknown"] == Value::Array(vec![]),
                    "{folder}"
                );
            }
        }
    }
}

#[test]
fn encoders_are_planned_for_as_encode_will_take_them() {
    for (folder, expected) in &FOLDERS {
        let run = plan(folder, &[]);
        match expected {
            Unknown => run.refused(2, "model_type is null"),
            Answers(_) => run.refused(2, "no tokenizer.json and no tokenizer.model"),
            Vectors(kind, width) => {
                let plan = run.json();
                assert_eq!(plan["kind"], *kind, "{folder}");
                assert_eq!(plan["frames"], 4, "{folder}");
                let content = format!("vectors of {width} numbers");
                assert_eq!(plan["content"], content.as_str(), "{folder}");
                assert!(plan["encode_flops"].as_f64().unwrap() > 1e3, "{folder}");
            }
        }
    }
}

/// What `encode` writes is what was planned, and a header.
#[test]
fn the_reel_has_the_bytes_that_were_planned() {
    for (folder, _) in FOLDERS.iter().filter(|(_, e)| matches!(e, Vectors(..))) {
        let out = scratch().join(format!("planned-{folder}.reel"));
        let out = out.display().to_string();
        let (model, video) = (at(folder), video());
        let encode = [
            "encode", &video, "--model", &model, "--out", &out, "--force", "--json",
        ];
        let written = longreel(&encode).json();
        let plan = plan(folder, &[]).json();
        assert_eq!(written["frames"], plan["frames"], "{folder}");
        let [file, planned] = [&written["bytes"], &plan["reel_bytes"]].map(|n| n.as_u64().unwrap());
        assert!(
            (planned..planned + 2048).contains(&file),
            "{folder}: {file}, {planned}"
        );
    }
}

#[test]
fn hours_for_an_encoder_are_counted_and_what_is_of_answers_is_refused() {
    let clip = at("clip");
    let hours = [
        "plan", "--model", &clip, "--hours", "2", "--fps", "1", "--json",
    ];
    assert_eq!(longreel(&hours).json()["frames"], 7200);
    plan("clip", &["--time-instruction", "on"])
        .refused(2, "--time-instruction is for models that answer");
    plan("clip", &["--memory-gib", "0.1"]).refused(2, "the machine can give");
    let spoilt = tempfile::tempdir().unwrap();
    for name in ["config.json", "preprocessor_config.json"] {
        fs::copy(
            golden::path(&format!("systems/clip/{name}")),
            spoilt.path().join(name),
        )
        .unwrap();
    }
    let model = spoilt.path().display().to_string();
    longreel(&["models", "verify", &model]).refused(2, "no *.safetensors file");
}

/// One sentence for each verb and each kind of model that it does not take.
#[test]
fn a_verb_refuses_what_it_does_not_take_in_one_sentence() {
    let (reel, picture) = (
        scratch().join("refusal.reel"),
        scratch().join("refusal.png"),
    );
    ffmpeg("-f lavfi -i color=red:s=64x48 -frames:v 1", &picture);
    let [reel, picture] = [reel, picture].map(|path| path.display().to_string());
    let video = video();
    let refused = |args: &[&str], folder: &str, found: &str, expected: &str| {
        let run = longreel(&[args, &["--model", &at(folder)]].concat());
        run.refused(2, &format!("is {found}, expected {expected}"));
    };
    let answers = "a model that answers in words";
    let ask = ["ask", &video, "What?"];
    refused(&ask, "clip", "a dual encoder", answers);
    refused(&ask, "vit", "an encoder of pictures", answers);
    let encode = ["encode", &video, "--out", &reel, "--fps", "1"];
    refused(
        &encode,
        "llama",
        "a text model",
        "a model that takes frames",
    );
    let frames = ["frames", &picture, "--out", &reel, "--size", "model"];
    refused(
        &frames,
        "llama",
        "a text model",
        "a model that takes frames",
    );
    let codes = "a model with a VQGAN, which encodes frames to codes";
    refused(
        &["generate", "A cat", "--out", &picture],
        "clip",
        "a dual encoder",
        answers,
    );
    let lines = ["train", "make-lines", &video, "--out", &reel];
    refused(&lines, "siglip", "a dual encoder", codes);
}
