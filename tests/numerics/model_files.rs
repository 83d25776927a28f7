//! The files of `configs/models`: real models at their public sizes.

use std::{collections::BTreeMap, fs, path::Path};

use longreel_models::{
    checkpoint::layout,
    error::Kind,
    spec::{
        ModelSpec,
        conv_net::ConvLayer,
        system::{Need, SystemSpec, refusal},
    },
};

use crate::support::{folders, golden};

/// Name and text of every file.
fn files() -> BTreeMap<String, String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/models");
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

fn answering(name: &str) -> ModelSpec {
    let file = SystemSpec::from_toml(&files()[name]).unwrap_or_else(|e| panic!("{name}: {e}"));
    file.answering().unwrap().clone()
}

#[test]
fn every_file_is_a_model_of_the_kind_that_it_names() {
    let (mut answer, mut encode) = (0, 0);
    for (name, text) in files() {
        match SystemSpec::from_toml(&text).unwrap_or_else(|e| panic!("{name}: {e}")) {
            SystemSpec::Answers(spec) => {
                let again = ModelSpec::from_json(&spec.to_json().unwrap()).unwrap();
                assert_eq!(again, *spec, "{name}");
                answer += 1;
            }
            _ => encode += 1,
        }
    }
    assert!(answer >= 17 && encode >= 4, "{answer} and {encode}");
}

/// A decoder's billions of weights, bytes of bf16 keys and values of a token in KiB, rows of features of a frame.
type Sizes = (&'static str, f64, usize, Option<usize>);

#[test]
fn models_that_answer_have_their_public_sizes() {
    let sizes: [Sizes; 9] = [
        ("llava-1.5-7b", 6.74, 512, Some(576)),
        ("vila-1.5-3b", 2.70, 320, Some(196)),
        ("llava-onevision-qwen2-7b", 7.62, 56, Some(196)),
        ("llava-video-7b-qwen2", 7.62, 56, Some(210)),
        ("internvl3-8b", 7.61, 56, Some(256)),
        ("qwen2.5-vl-7b", 7.62, 56, None),
        ("qwen3-vl-8b", 8.19, 144, None),
        ("llama-3.1-8b", 8.03, 128, None),
        ("mixtral-8x7b", 46.70, 128, None),
    ];
    for (name, billions, kv_kib, rows) in sizes {
        let spec = answering(name);
        let weights: usize = layout::decoder_tensors(&spec.decoder)
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        let got = weights as f64 / 1e9;
        assert!((got - billions).abs() < 0.01, "{name}: {got}");
        assert_eq!(spec.decoder.kv_bytes_per_token(2), kv_kib << 10, "{name}");
        assert_eq!(spec.tokens_per_frame(), rows, "{name}");
    }
}

#[test]
fn encoders_of_specifications_have_as_many_numbers_as_their_folders() {
    for folder in [
        "systems/llava15",
        "systems/llava_onevision",
        "systems/internvl",
        "systems/qwen2_5_vl",
        "systems/qwen3_vl",
        "answers/vila15",
        "answers/llava_video",
    ] {
        let dir = golden::path(folder);
        let spec = folders::answering(&dir).unwrap();
        let decoder = layout::decoder_tensors(&spec.decoder);
        let is_decoder = |name: &str| decoder.iter().any(|(known, _)| known == name);
        let weights = folders::weights(&dir).unwrap();
        let stored: usize = weights
            .list()
            .filter(|(name, ..)| !is_decoder(name))
            .map(|(.., shape)| shape.iter().product::<usize>())
            .sum();
        let features = spec.vision.unwrap().features;
        assert_eq!(
            features.parameters(spec.decoder.hidden_size),
            stored,
            "{folder}"
        );
    }
}

#[test]
fn encoders_alone_have_as_many_numbers_as_their_folders() {
    for name in [
        "clip",
        "siglip",
        "siglip_wide",
        "vit",
        "vit_no_bias",
        "dinov2",
        "resnet",
    ] {
        let system = folders::system(&golden::path(&format!("systems/{name}")));
        let numbers = match system.spec() {
            SystemSpec::DualEncoder(spec) => spec.parameters(),
            SystemSpec::Classifier(spec) => spec.parameters(),
            SystemSpec::ConvNet(spec) => spec.parameters().unwrap(),
            other => panic!("{name} is {}", other.kind()),
        };
        let weights = system.weights().unwrap();
        let stored: usize = weights
            .list()
            .filter(|(name, ..)| !name.starts_with("classifier"))
            .map(|(.., shape)| shape.iter().product::<usize>())
            .sum();
        assert_eq!(numbers, stored, "{name}");
    }
}

/// In millions, connectors included.
#[test]
fn towers_have_their_public_sizes() {
    for (name, millions) in [
        ("llava-1.5-7b", 324.49),
        ("vila-1.5-3b", 431.35),
        ("qwen2.5-vl-7b", 676.55),
    ] {
        let spec = answering(name);
        let hidden = spec.decoder.hidden_size;
        let got = spec.vision.unwrap().features.parameters(hidden) as f64 / 1e6;
        assert!((got - millions).abs() < 0.01, "{name}: {got}");
    }
}

#[test]
fn encoders_have_their_public_sizes() {
    let of = |name: &str| SystemSpec::from_toml(&files()[name]).unwrap();
    let (SystemSpec::DualEncoder(clip), SystemSpec::DualEncoder(siglip)) =
        (of("clip-l-14-336"), of("siglip-so400m-14-384"))
    else {
        panic!("no dual encoders");
    };
    assert_eq!((clip.vision.tokens(), siglip.vision.tokens()), (577, 729));
    let SystemSpec::Classifier(vit) = of("vit-b-16-224") else {
        panic!("no classifier");
    };
    assert_eq!(vit.tokens(), 197);
    let SystemSpec::ConvNet(resnet) = of("resnet-50") else {
        panic!("no convolutional network");
    };
    let layers = resnet.unfolded().unwrap();
    let blocks = layers
        .iter()
        .filter_map(|layer| match layer {
            ConvLayer::Residual { block, .. } => Some(block.convs().len()),
            _ => None,
        })
        .sum::<usize>();
    // With the stem's convolution and the matrix: fifty layers.
    assert_eq!(blocks + 2, 50);
}

#[test]
fn an_encoder_is_refused_for_answers_and_a_misspelt_key_is_named() {
    let files = files();
    let spec = SystemSpec::from_toml(&files["resnet-50"]).unwrap();
    assert!(spec.answering().is_none());
    let error = refusal("resnet-50", spec.kind(), Need::Answers);
    assert_eq!(error.kind(), Kind::BadInput);
    assert_eq!(
        error.to_string(),
        "the model resnet-50 is an encoder of pictures, expected a model that answers in words"
    );
    for (name, from, to, expected) in [
        (
            "vit-b-16-224",
            "patch_size",
            "patchsize",
            "unknown field `patchsize`",
        ),
        (
            "clip-l-14-336",
            "num_attention_heads = 16",
            "num_attention_heads = 15",
            "expected a divisor",
        ),
        (
            "resnet-50",
            "kernel = 7",
            "kernel = 0",
            "layers.0.kernel is 0",
        ),
        (
            "llama-3.1-8b",
            "hidden_size",
            "hiddensize",
            "unknown field `hiddensize`",
        ),
        (
            "llama-3.1-8b",
            "\"llama\"",
            "\"alpaca\"",
            "unknown variant `alpaca`",
        ),
    ] {
        let text = files[name].replacen(from, to, 1);
        let error = SystemSpec::from_toml(&text).unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}
