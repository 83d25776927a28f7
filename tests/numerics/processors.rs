//! Pictures, videos and chats through the processors, equal to transformers'.

use longreel_models::{
    error::Kind,
    spec::processor::{FilterName, Medium, PictureSpec, Resize},
    vision::{
        image::{RgbView, Rounding},
        processor::PictureProcessor,
    },
};
use serde_json::Value;

use crate::support::golden::{Golden, path};

/// The bytes of `noise` in `tests/golden/processors.py`.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((((i + seed) * 2_654_435_761) % (1 << 32)) >> 24) as u8)
        .collect()
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(path(&format!("processors/{name}"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn number(value: &Value, key: &str) -> usize {
    value[key].as_u64().unwrap() as usize
}

fn assert_equal(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}: numbers");
    let wrong = (got.iter().zip(expected)).filter(|(a, b)| a.to_bits() != b.to_bits());
    let far = (got.iter().zip(expected))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert_eq!(
        wrong.count(),
        0,
        "{what}: numbers that differ, by at most {far}"
    );
}

#[test]
fn pictures_become_the_pixels_of_transformers_to_the_bit() {
    let (golden, file) = (
        Golden::open("processors/pictures.safetensors"),
        json("pictures.json"),
    );
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() > 80);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let config = &file["configs"][case["processor"].as_str().unwrap()];
        let spec = PictureSpec::from_json(&config.to_string()).unwrap();
        let (width, height) = (number(case, "width"), number(case, "height"));
        let data = noise(width * height * 3, width as u64);
        let picture = RgbView::new(width, height, &data).unwrap();
        let shape = spec.shape();
        let pixels = PictureProcessor::new(spec).pixels(picture).unwrap();
        assert_equal(name, &pixels, &golden.f32(name));
        if let Some([height, width]) = shape {
            assert_eq!(golden.shape(name), [3, height, width], "{name}");
        }
    }
}

#[test]
fn pillow_and_torchvision_differ_by_one_level_at_most() {
    let data = noise(61 * 47 * 3, 5);
    let picture = RgbView::new(61, 47, &data).unwrap();
    let config = r#"{"image_processor_type": "CLIPImageProcessor", "do_normalize": false, "rescale_factor": 1,
        "size": 20, "crop_size": 20}"#;
    let processor = PictureProcessor::new(PictureSpec::from_json(config).unwrap());
    let torchvision = processor.pixels(picture).unwrap();
    let pillow = processor.with_rounding(Rounding::Pillow);
    let pillow = pillow.pixels(picture).unwrap();
    let far = (pillow.iter().zip(&torchvision)).map(|(a, b)| (a - b).abs());
    assert!(far.fold(0.0, f32::max) <= 1.0);
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn the_video_part_stands_before_the_video_file_and_that_before_the_picture_file() {
    let siglip = |side: usize| {
        format!(
            r#"{{"image_processor_type": "SiglipImageProcessor", "size": {{"height": {side}, "width": {side}}}}}"#
        )
    };
    let both = format!(
        r#"{{"video_processor": {}, "image_seq_length": 576}}"#,
        siglip(3)
    );
    let (video, picture) = (siglip(2), siglip(1));
    let files = [
        ("preprocessor_config.json", picture.as_str()),
        ("video_preprocessor_config.json", video.as_str()),
        ("processor_config.json", both.as_str()),
    ];
    for n in 1..=3 {
        let dir = folder(&files[..n]);
        let spec = |medium| PictureSpec::of_directory(dir.path(), medium).unwrap();
        assert_eq!(spec(Medium::Video).resize, Resize::Exact([n; 2]));
        assert_eq!(spec(Medium::Picture).resize, Resize::Exact([1; 2]));
    }
}

#[test]
fn a_folder_without_a_file_is_read_by_its_model_type() {
    let shape = |config: &str| {
        let dir = folder(&[("config.json", config)]);
        PictureSpec::of_directory(dir.path(), Medium::Video).map(|spec| (spec.shape(), spec))
    };
    for (config, side) in [
        (
            r#"{"model_type": "clip", "vision_config": {"image_size": 64}}"#,
            64,
        ),
        (
            r#"{"model_type": "siglip", "vision_config": {"image_size": 384}}"#,
            384,
        ),
        (r#"{"model_type": "vit", "image_size": 96}"#, 96),
        (r#"{"model_type": "dinov2", "image_size": 518}"#, 224),
        (
            r#"{"model_type": "internvl", "vision_config": {"image_size": [448, 448]}}"#,
            448,
        ),
        (
            r#"{"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}"#,
            336,
        ),
    ] {
        assert_eq!(shape(config).unwrap().0, Some([side; 2]), "{config}");
    }
    let padded = shape(r#"{"model_type": "llava_llama", "image_aspect_ratio": "pad"}"#)
        .unwrap()
        .1;
    assert!(padded.pad_to_square);
    let vila = shape(r#"{"model_type": "llava_llama", "image_aspect_ratio": "resize"}"#)
        .unwrap()
        .1;
    assert_eq!((vila.resize, vila.crop), (Resize::Exact([336; 2]), None));
    let error = shape(r#"{"model_type": "bert"}"#).unwrap_err().to_string();
    assert!(
        error.contains("\"bert\"") && error.contains("config.json"),
        "{error}"
    );
}

#[test]
fn old_files_write_numbers_for_sizes_and_other_names_for_classes() {
    let spec = |text: &str| PictureSpec::from_json(text).unwrap();
    let old = spec(
        r#"{"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336, "resample": 2}"#,
    );
    assert_eq!(
        (old.resize, old.crop),
        (Resize::ShortestEdge(336), Some([336; 2]))
    );
    assert_eq!(old.filter, FilterName::Bilinear);
    let vit = spec(
        r#"{"image_processor_type": "ViTImageProcessorFast", "size": 32, "image_mean": null}"#,
    );
    assert_eq!((vit.resize, vit.crop), (Resize::Exact([32; 2]), None));
}

#[test]
fn odd_files_are_errors_that_say_what_they_are_about() {
    for (text, part) in [
        ("[", "EOF"),
        (
            r#"{"image_processor_type": "Owlv2ImageProcessor"}"#,
            "Owlv2",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "resample": 1}"#,
            "resample is 1",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 0}}"#,
            "0 pixels",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 5}}"#,
            "size",
        ),
        (
            r#"{"image_processor_type": "SiglipImageProcessor", "size": {"height": 99999, "width": 2}}"#,
            "99999",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "image_std": [1, 0, 1]}"#,
            "division by 0",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "image_mean": [1, 0]}"#,
            "image_mean",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "rescale_factor": 0}"#,
            "rescale_factor",
        ),
        (
            r#"{"image_processor_type": "ConvNextImageProcessor", "size": 12, "crop_pct": 0}"#,
            "crop_pct",
        ),
        (
            r#"{"image_processor_type": "SiglipImageProcessor", "do_center_crop": true}"#,
            "no crop_size",
        ),
    ] {
        let error = PictureSpec::from_json(text).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput, "{text}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
    let error = PictureSpec::of_directory(folder(&[]).path(), Medium::Video).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn pictures_of_extreme_proportions_are_cut_or_refused_not_built() {
    let clip = PictureSpec::from_json(r#"{"image_processor_type": "CLIPImageProcessor"}"#).unwrap();
    let uncut = PictureSpec {
        crop: None,
        ..clip.clone()
    };
    let data = vec![7; 20_000 * 3 * 3];
    let strip = RgbView::new(20_000, 3, &data).unwrap();
    let cut = PictureProcessor::new(clip.clone());
    assert_eq!(cut.pixels(strip).unwrap().len(), 3 * 224 * 224);
    for processor in [PictureProcessor::new(uncut), cut.padded_to_square()] {
        assert_eq!(processor.pixels(strip).unwrap_err().kind(), Kind::TooLarge);
    }
}
