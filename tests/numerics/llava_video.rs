//! LLaVA-Video's folder gives what its parts give in PyTorch, and its rule takes the frames that its authors take
//! (`tests/golden/llava_video.py`).

use std::fs;

use longreel_models::{
    error::{Kind, Result},
    llama::Decoder,
    spec::{
        features::{FeatureSpec, Newline, VisionLanguageSpec},
        frame_choice::{FrameChoice, one_time, time_instruction, time_instruction_len},
        processor::{Medium, PictureSpec, Resize},
    },
    systems::architecture::{Architecture, ModelKind},
    vision::features::{FeatureEncoder, SquareEncoder},
};
use serde_json::{Value, json};

use crate::support::{
    folders,
    golden::{self, Golden, assert_close},
};

/// Ten times what f32 differs from f64 in networks of this size.
const TOLERANCE: f32 = 1e-4;

fn folder() -> std::path::PathBuf {
    golden::path("answers/llava_video")
}

fn json_of(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder().join(name)).unwrap()).unwrap()
}

/// The specification of the folder's `config.json` with other values.
fn spec(changes: &[(&str, Value)]) -> Result<VisionLanguageSpec> {
    let mut config = json_of("config.json");
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    let architecture = Architecture::of_config(&config)?;
    let spec: VisionLanguageSpec = architecture.spec(ModelKind::VisionLanguage, &config)?;
    let (decoder, vision) = spec.clone().into_parts();
    vision.validate(&decoder)?;
    Ok(spec)
}

/// The folder's encoder, read with other values; every tensor of the folder is taken.
fn encoder(changes: &[(&str, Value)]) -> (Newline, Box<SquareEncoder>) {
    let spec = spec(changes).unwrap();
    let mut weights = folders::weights(&folder()).unwrap();
    let hidden = spec.decoder.hidden_size;
    let encoder = FeatureEncoder::load(&spec.features, hidden, &mut weights).unwrap();
    Decoder::load(&spec.decoder, &mut weights).unwrap();
    weights.finish().unwrap();
    match (&spec.features, encoder) {
        (FeatureSpec::Square(square), FeatureEncoder::Square(encoder)) => {
            (square.video_newline, encoder)
        }
        _ => panic!("no tower of square pictures"),
    }
}

#[test]
fn the_learned_row_and_the_pool_are_those_that_the_configuration_names() {
    let file = Golden::open("answers/llava_video/expected.safetensors");
    let pixels = file.f32("in.pixel_values");
    let check = |changes: &[(&str, Value)], place: Newline, expected: &str| {
        let (newline, encoder) = encoder(changes);
        assert_eq!(newline, place, "{changes:?}");
        let got = encoder.video(&pixels).unwrap();
        assert_close(expected, &got, &file.f32(expected), TOLERANCE);
        let rows = spec(changes).unwrap().features.rows().unwrap();
        let behind = usize::from(place == Newline::End);
        assert_eq!(got.len(), (2 * rows + behind) * 32, "{changes:?}");
    };
    for (position, place) in [
        ("grid", Newline::Grid),
        ("frame", Newline::Frame),
        ("one_token", Newline::End),
        ("no_token", Newline::None),
    ] {
        let changes = [("mm_newline_position", json!(position))];
        check(&changes, place, &format!("out.{position}.bilinear"));
    }
    for mode in ["average", "max"] {
        let changes = [("mm_spatial_pool_mode", json!(mode))];
        check(&changes, Newline::Grid, &format!("out.grid.{mode}"));
    }
    // What LLaVA-NeXT takes where a folder says nothing.
    let silent = [
        ("mm_spatial_pool_mode", Value::Null),
        ("mm_spatial_pool_stride", Value::Null),
    ];
    check(&silent, Newline::Grid, "out.grid.bilinear");
    let flat = [("mm_patch_merge_type", json!("flat"))];
    check(&flat, Newline::None, "out.no_token.bilinear");
}

#[test]
fn unsupported_keys_are_refused_by_name() {
    for (key, value, expected) in [
        (
            "mm_newline_position",
            json!("line"),
            "expected one of frame, grid, no_token, one_token",
        ),
        (
            "mm_patch_merge_type",
            json!("spatial"),
            "expected one of flat, spatial_unpad",
        ),
        (
            "mm_spatial_pool_mode",
            json!("cubic"),
            "unknown variant `cubic`",
        ),
        (
            "mm_spatial_pool_stride",
            json!(0),
            "stride of a pool is 0, expected 1 to 1024",
        ),
        (
            "mm_spatial_pool_stride",
            json!(1u64 << 40),
            "expected 1 to 1024",
        ),
        (
            "mm_projector_type",
            json!("linear"),
            r#"expected "mlp2x_gelu""#,
        ),
        (
            "mm_resampler_type",
            json!("perceiver"),
            "mm_resampler_type is",
        ),
        (
            "add_faster_video",
            json!(true),
            "add_faster_video is true, expected false",
        ),
        ("use_sliding_window", json!(true), "expected false"),
        ("mm_use_im_start_end", json!(true), "expected false"),
    ] {
        let error = spec(&[(key, value)]).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput, "{key}");
        assert!(error.to_string().contains(expected), "{key}: {error}");
    }
    let average = [
        ("mm_spatial_pool_mode", json!("average")),
        ("mm_spatial_pool_stride", json!(4)),
    ];
    let error = spec(&average).unwrap_err().to_string();
    assert!(error.contains("leaves no features"), "{error}");
}

#[test]
fn the_rule_takes_the_frames_that_the_authors_take() {
    let cases = json_of("expected.json")["frame_numbers"].clone();
    for case in cases.as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({
            "model_type": "llava",
            "architectures": ["LlavaQwenForCausalLM"],
            "force_sample": case["force"],
        });
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let choice = FrameChoice::of_folder(&folders::processor(dir.path())).unwrap();
        let total = case["total"].as_u64().unwrap() as usize;
        let got = choice
            .numbers(total, case["rate"].as_f64().unwrap())
            .unwrap();
        assert_eq!(json!(got), case["taken"], "{case}");
    }
    assert!(cases.as_array().unwrap().len() >= 8);
}

#[test]
fn frames_go_to_the_square_whatever_is_done_to_pictures() {
    let square = |changes: Value| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({
            "model_type": "llava_qwen",
            "mm_vision_tower": "google/siglip-so400m-patch14-384",
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        PictureSpec::of_folder(&folders::processor(dir.path()), Medium::Video).unwrap()
    };
    for aspect in ["anyres_max_9", "pad", "square"] {
        let spec = square(json!({"image_aspect_ratio": aspect}));
        assert_eq!(spec.resize, Resize::Exact([384; 2]), "{aspect}");
        assert_eq!((spec.crop, spec.pad_to_square), (None, false), "{aspect}");
    }
    let sized = square(json!({"vision_config": {"image_size": 42}}));
    assert_eq!(sized.resize, Resize::Exact([42; 2]));
}

#[test]
fn no_instruction_is_longer_than_the_plan_says() {
    for (n, last) in [(0, 0.0), (1, 7.0), (64, 86_400.0), (1000, 99_999.99)] {
        let times: Vec<f64> = (0..n).map(|i| last * i as f64 / n as f64).collect();
        let said = time_instruction(last, &times).len() as u64;
        let most = time_instruction_len(n);
        assert!(
            (said..=said + 10 * n + 20).contains(&most),
            "{n}: {said}, {most}"
        );
    }
    assert_eq!(one_time().len(), 10);
}
