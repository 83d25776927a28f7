//! Model folders that are spoilt in one place: a sentence that names the place, a non-zero exit, no answer.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    golden,
    longreel::{Run, ffmpeg, longreel, scratch},
};

/// A LLaVA folder that answers, copied.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden::path("answers/llava15")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn ask(dir: &Path) -> Run {
    let (video, model) = (golden::path("answers/video.mkv"), dir.display().to_string());
    let video = video.display().to_string();
    let fixed = ["ask", &video, "What moves?", "--model", &model];
    longreel(&[&fixed[..], &["--fps", "1", "--max-new-tokens", "2"]].concat())
}

/// Asked, the copy that `spoil` has changed is refused with `expected` and says nothing else.
#[track_caller]
fn refused(spoil: impl FnOnce(&Path), code: i32, expected: &[&str]) {
    let dir = folder();
    spoil(dir.path());
    let run = ask(dir.path());
    for expected in expected {
        run.refused(code, expected);
    }
    assert_eq!(run.stdout, "");
}

fn set(dir: &Path, key: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// Writes the folder's tensors (f32) as `change` leaves them.
fn rewrite(dir: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .iter()
        .map(|(name, view)| {
            (
                name.to_owned(),
                (view.shape().to_vec(), view.data().to_vec()),
            )
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (shape, data))| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    serialize_to_file(views, None, &path).unwrap();
}

/// The one tensor whose name ends so.
fn ending(tensors: &Tensors, end: &str) -> String {
    tensors
        .keys()
        .find(|name| name.ends_with(end))
        .unwrap()
        .clone()
}

#[test]
fn a_file_of_weights_is_no_folder() {
    let dir = folder();
    let run = ask(&dir.path().join("model.safetensors"));
    run.refused(2, "a file stands where a directory was expected");
    assert_eq!(run.stdout, "");
}

#[test]
fn the_folder_that_is_spoilt_below_answers() {
    let run = ask(folder().path());
    assert_eq!(run.code, 0, "{}", run.stderr);
}

#[test]
fn an_unknown_architecture_is_refused_with_the_known_ones() {
    let known = "expected one of clip, dinov2, internvl, llama, llava";
    let spoil = |dir: &Path| set(dir, "model_type", "bloom".into());
    refused(
        spoil,
        2,
        &["config.json", r#"model_type is "bloom""#, known],
    );
}

#[test]
fn an_unsupported_decoder_is_named() {
    let spoil = |dir: &Path| set(dir, "text_config", json!({"model_type": "mpt"}));
    refused(
        spoil,
        2,
        &[r#"text_config.model_type is "mpt", expected "llama""#],
    );
}

#[test]
fn an_encoder_alone_is_refused_for_answers() {
    let spoil = |dir: &Path| {
        fs::copy(
            golden::path("systems/clip/config.json"),
            dir.join("config.json"),
        )
        .unwrap();
    };
    refused(spoil, 2, &["expected a model that answers in words"]);
}

#[test]
fn a_shard_missing_from_disk_is_named() {
    let spoil = |dir: &Path| {
        let shards = json!({"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"});
        let index = json!({ "weight_map": shards });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    refused(
        spoil,
        2,
        &["model-00002-of-00002.safetensors", "no such file"],
    );
}

#[test]
fn an_unused_tensor_is_named() {
    let spoil = |dir: &Path| {
        rewrite(dir, |tensors| {
            tensors.insert("adapter.down.weight".to_owned(), (vec![2], vec![0; 8]));
        });
    };
    refused(spoil, 2, &["does not use 1 tensors: adapter.down.weight"]);
}

#[test]
fn a_tensor_that_is_missing_is_named_with_its_shape() {
    let spoil = |dir: &Path| {
        rewrite(dir, |tensors| {
            tensors.remove(&ending(tensors, "layers.1.self_attn.k_proj.weight"));
        });
    };
    refused(spoil, 2, &["k_proj.weight is missing, expected shape"]);
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both() {
    let spoil = |dir: &Path| {
        rewrite(dir, |tensors| {
            let name = ending(tensors, "linear_2.bias");
            tensors.insert(name, (vec![31], vec![0; 4 * 31]));
        });
    };
    let expected = "connector.linear_2.bias has shape [31], expected [32]";
    refused(spoil, 2, &[expected]);
}

#[test]
fn a_folder_without_a_tokenizer_says_so() {
    let spoil = |dir: &Path| fs::remove_file(dir.join("tokenizer.json")).unwrap();
    refused(
        spoil,
        2,
        &["no tokenizer.json and no tokenizer.model, expected one of them"],
    );
}

#[test]
fn an_unusable_chat_template_is_named() {
    let with = |template: &'static str, expected: &[&str]| {
        let write = |dir: &Path| fs::write(dir.join("chat_template.jinja"), template).unwrap();
        refused(write, 2, expected);
    };
    with(
        "{{ messages[0].content[3].text }}",
        &["places for features", "expected 3"],
    );
    with(
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        &["chat_template.jinja", "does not come to an end"],
    );
    with(
        "{{ raise_exception('no pictures') }}",
        &["chat_template.jinja, line 1", "no pictures"],
    );
    with("{% for m in messages %}", &["chat_template.jinja, line 1"]);
}

#[test]
fn pictures_of_one_pixel_and_of_extreme_sides_are_answered_or_refused_with_their_size() {
    let picture = |size: &str| {
        let out = scratch().join(format!("of-{size}.png"));
        let (width, height) = size.split_once('x').unwrap();
        let cut = format!("color=red:s=20000x16,format=rgb24,crop={width}:{height}");
        ffmpeg(&format!("-f lavfi -i {cut} -frames:v 1"), &out);
        out.display().to_string()
    };
    let ask = |system: &str, size: &str| {
        let model = golden::path(&format!("answers/{system}"))
            .display()
            .to_string();
        longreel(&[
            "ask",
            &picture(size),
            "What?",
            "--model",
            &model,
            "--max-new-tokens",
            "2",
        ])
    };
    let square = ["llava15", "llava_onevision", "llava_video", "internvl"];
    for system in square.iter().chain(&["qwen2_5_vl", "qwen3_vl"]) {
        assert_eq!(ask(system, "1x1").code, 0, "{system}");
    }
    // Brought to a square, or cut to one, whatever their proportions.
    for system in square {
        assert_eq!(ask(system, "20000x3").code, 0, "{system}");
    }
    for (system, size) in [("clip", "1x1"), ("clip", "20000x3"), ("siglip", "20000x3")] {
        let model = golden::path(&format!("systems/{system}"));
        let model = model.display().to_string();
        let out = scratch().join(format!("{system}-{size}.reel"));
        let out = out.display().to_string();
        let encode = ["encode", &picture(size), "--out", &out, "--model", &model];
        let run = longreel(&[&encode[..], &["--force"]].concat());
        assert_eq!(run.code, 0, "{system} {size}: {}", run.stderr);
    }
    ask("qwen2_5_vl", "20000x3").refused(2, "20000x3");
    ask("qwen3_vl", "20000x3").refused(2, "expected at most 200");
}

/// Sets the first number of the tensor whose name ends so to NaN.
fn spoil_number(dir: &Path, end: &str) {
    rewrite(dir, |tensors| {
        let name = ending(tensors, end);
        let (_, data) = tensors.get_mut(&name).unwrap();
        data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
}

#[test]
fn a_nan_weight_ends_the_question_and_is_found_by_verify() {
    for end in [
        "patch_embedding.weight",
        "layers.0.mlp.fc1.weight",
        "linear_1.weight",
        "layers.0.self_attn.v_proj.weight",
        "layers.1.mlp.down_proj.weight",
        "lm_head.weight",
    ] {
        let dir = folder();
        spoil_number(dir.path(), end);
        let run = ask(dir.path());
        assert_ne!(run.code, 0, "{end}: {}", run.stdout);
        assert_eq!(run.stdout, "", "{end}");
        let said = ["NaN", "not a number", "no number", "not a finite number"];
        assert!(
            said.iter().any(|s| run.stderr.contains(s)),
            "{end}: {}",
            run.stderr
        );
        assert!(!run.stderr.contains("panicked"), "{end}: {}", run.stderr);
        let verified = longreel(&["models", "verify", &dir.path().display().to_string()]);
        assert_eq!(verified.code, 2, "{end}: {}", verified.stdout);
        assert!(
            verified.stdout.contains("not a finite number: 1 values of"),
            "{end}: {}",
            verified.stdout
        );
    }
}
