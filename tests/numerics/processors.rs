//! Pictures, videos and chats through the processors, equal to transformers'.

use longreel_models::{
    spec::processor::PictureSpec,
    vision::{image::RgbView, processor::PictureProcessor},
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
