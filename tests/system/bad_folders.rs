//! Model folders that are spoilt in one place: a sentence that names the place, a non-zero exit, no answer.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    folder_cases::copied,
    golden,
    longreel::{Run, ffmpeg, longreel, scratch},
};

/// A LLaVA folder that answers, copied.
fn folder() -> TempDir {
    copied("answers/llava15")
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

/// What `git clone` leaves without Git LFS.
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4976698672\n";

#[test]
fn a_pointer_of_git_lfs_is_named_whatever_file_it_stands_for() {
    for name in [
        "model.safetensors",
        "tokenizer.json",
        "config.json",
        "processor_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "added_tokens.json",
        "preprocessor_config.json",
        "model.safetensors.index.json",
    ] {
        // A file in which the folder's own has the processors hides the other.
        let hidden = name == "preprocessor_config.json";
        let spoil = |dir: &Path| {
            if hidden {
                fs::remove_file(dir.join("processor_config.json")).unwrap();
            }
            if name == "added_tokens.json" {
                fs::write(dir.join("tokenizer_config.json"), "{}").unwrap();
            }
            fs::write(dir.join(name), POINTER).unwrap();
        };
        refused(
            spoil,
            2,
            &[name, "it is a Git LFS pointer to 4976698672 bytes"],
        );
    }
}

#[test]
fn a_gguf_file_that_is_a_pointer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    fs::write(&file, POINTER).unwrap();
    let file = file.display().to_string();
    let run = longreel(&["ask", "What?", "--model", &file]);
    run.refused(2, "it is a Git LFS pointer");
    let model = golden::path("answers/llava15").display().to_string();
    let shown = longreel(&[
        "plan",
        "--model",
        &model,
        "--decoder",
        &file,
        "--hours",
        "1",
        "--fps",
        "1",
    ]);
    shown.refused(2, "it is a Git LFS pointer");
}

/// Names of shards, as an index or as files.
fn shards(of: std::ops::RangeInclusive<u32>) -> Vec<String> {
    of.map(|n| format!("model-{n:05}-of-00003.safetensors"))
        .collect()
}

#[test]
fn every_file_that_a_download_left_out_is_named() {
    let index = |dir: &Path| {
        let map: BTreeMap<String, String> =
            shards(1..=3).into_iter().map(|s| (s.clone(), s)).collect();
        let index = json!({ "weight_map": map }).to_string();
        fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    };
    let move_first = |dir: &Path| {
        fs::rename(dir.join("model.safetensors"), dir.join(&shards(1..=1)[0])).unwrap();
    };
    let expected = shards(2..=3).join(", ") + ", 2 of the model's 3 files of weights";
    let with_index = |dir: &Path| {
        move_first(dir);
        index(dir);
    };
    refused(with_index, 2, &["index.json", &expected]);
    // The index itself may be what is missing.
    refused(move_first, 2, &[&expected]);
}

#[test]
fn links_to_nothing_in_the_cache_of_the_hub_are_named_with_what_fetches_them() {
    for name in [
        "model.safetensors",
        "tokenizer.json",
        "config.json",
        "processor_config.json",
        "chat_template.jinja",
    ] {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("models--org--name/snapshots/0123");
        fs::create_dir_all(&dir).unwrap();
        for entry in fs::read_dir(folder().path()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
        fs::remove_file(dir.join(name)).unwrap();
        std::os::unix::fs::symlink("../../blobs/abcdef", dir.join(name)).unwrap();
        let run = ask(&dir);
        run.refused(2, name);
        run.refused(2, "it is a link to ../../blobs/abcdef, which is not there");
        run.refused(2, "longreel models pull org/name");
    }
}

#[test]
fn an_adapter_alone_is_named_with_its_base_and_what_to_do() {
    let spoil = |dir: &Path| {
        let adapter = json!({"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8});
        fs::write(dir.join("adapter_config.json"), adapter.to_string()).unwrap();
        fs::rename(
            dir.join("model.safetensors"),
            dir.join("adapter_model.safetensors"),
        )
        .unwrap();
        fs::remove_file(dir.join("config.json")).unwrap();
    };
    refused(
        spoil,
        2,
        &["only an adapter (LORA) of org/base", "merge_and_unload"],
    );
}

#[test]
fn an_adapter_beside_a_model_is_said_and_not_applied() {
    let whole = ask(folder().path());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let dir = folder();
        fs::copy(dir.path().join("model.safetensors"), dir.path().join(name)).unwrap();
        let run = ask(dir.path());
        assert_eq!(run.stdout, whole.stdout);
        assert!(
            run.stderr.contains("an adapter lies beside the model"),
            "{}",
            run.stderr
        );
    }
    // Shards without an index are all files of that name but an adapter's.
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    fs::copy(path("model.safetensors"), path("adapter_model.safetensors")).unwrap();
    fs::rename(path("model.safetensors"), path("weights.safetensors")).unwrap();
    assert_eq!(ask(dir.path()).stdout, whole.stdout);
}

#[test]
fn weights_that_another_program_quantized_are_refused_by_the_method_s_name() {
    for (config, expected) in [
        (
            json!({"quant_method": "awq", "bits": 4}),
            "quantized by AWQ (4 bits)",
        ),
        (
            json!({"quant_method": "gptq", "bits": 8}),
            "quantized by GPTQ (8 bits)",
        ),
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "quantized by bitsandbytes (4 bits)",
        ),
        (
            json!({"load_in_8bit": true}),
            "quantized by bitsandbytes (8 bits)",
        ),
        (
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "quantized by compressed-tensors",
        ),
        (
            json!({"quant_method": "fbgemm_fp8"}),
            "quantized by FBGEMM FP8",
        ),
        (
            json!({"quant_method": "fp8"}),
            "quantized by fine-grained FP8",
        ),
        (json!({"quant_method": "mxfp4"}), "quantized by MXFP4"),
        (json!({"quant_method": "hqq"}), "quantized by HQQ"),
        (json!({"quant_method": "quanto"}), "quantized by Quanto"),
        (json!({"quant_method": "torchao"}), "quantized by torchao"),
        (
            json!({"quant_method": "newest"}),
            "quantized by the method \"newest\"",
        ),
        (
            json!({"weights": "int3"}),
            "quantized by a method that is not named",
        ),
    ] {
        let spoil = |dir: &Path| set(dir, "quantization_config", config.clone());
        refused(spoil, 2, &["config.json", expected, "in BF16", "--decoder"]);
        let spoil = |dir: &Path| {
            let path = dir.join("config.json");
            let mut all: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            all["text_config"]["quantization_config"] = config.clone();
            fs::write(path, all.to_string()).unwrap();
        };
        refused(spoil, 2, &[expected]);
    }
    for (file, expected) in [
        ("quantize_config.json", "GPTQ"),
        ("quant_config.json", "AWQ"),
    ] {
        let spoil = |dir: &Path| fs::write(dir.join(file), r#"{"bits": 4, "w_bit": 4}"#).unwrap();
        refused(spoil, 2, &[&format!("quantized by {expected} (4 bits)")]);
    }
}

#[test]
fn a_template_that_is_missing_is_asked_for_and_can_be_given() {
    let dir = copied("answers/llava_onevision");
    let (own, given) = (
        dir.path().join("chat_template.jinja"),
        dir.path().join("given.txt"),
    );
    fs::rename(&own, &given).unwrap();
    let text = fs::read_to_string(&given).unwrap();
    let json_file = dir.path().join("given.json");
    fs::write(&json_file, json!({ "chat_template": text }).to_string()).unwrap();
    let run = ask(dir.path());
    run.refused(2, "it has no chat template");
    run.refused(2, "--template FILE");
    let with = |template: &Path| {
        let video = golden::path("answers/video.mkv").display().to_string();
        let (model, template) = (
            dir.path().display().to_string(),
            template.display().to_string(),
        );
        let fixed = [
            "ask",
            &video,
            "What moves?",
            "--model",
            &model,
            "--template",
            &template,
        ];
        longreel(
            &[
                &fixed[..],
                &[
                    "--fps",
                    "1",
                    "--max-new-tokens",
                    "6",
                    "--json",
                    "--debug-ids",
                ],
            ]
            .concat(),
        )
    };
    let expected =
        fs::read_to_string(golden::path("answers/llava_onevision/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    for template in [&given, &json_file] {
        let got = with(template).json();
        assert_eq!(got["prompt_ids"], expected["prompt_ids"]);
        assert_eq!(got["generated_ids"], expected["generated_ids"]);
        assert_eq!(got["template"], template.display().to_string());
    }
    // It replaces a template that the folder has, even one that does not compile.
    fs::write(&own, "{% for m in messages %}").unwrap();
    assert_eq!(with(&given).json()["prompt_ids"], expected["prompt_ids"]);
    with(&dir.path().join("absent")).refused(2, "no such file");
    fs::write(&json_file, "{}").unwrap();
    with(&json_file).refused(2, "JSON without a text `chat_template`");
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
