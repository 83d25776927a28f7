//! A VGG16 of random weights with LPIPS's own weights of channels, for the perceptual loss.

use std::{path::PathBuf, sync::OnceLock};

use longreel_models::training::vqgan::perceptual::Perceptual;

use crate::support::{
    golden,
    longreel::scratch,
    tensors::{Named, write_safetensors},
};

/// `n` numbers in [-0.5, 0.5), as `noise` of `training_vqgan.py` gives them.
pub fn noise(n: usize, seed: u32) -> Vec<f32> {
    let number = |i: u32| {
        let start = seed.wrapping_mul(2_246_822_519);
        let mut x = i.wrapping_mul(2_654_435_761).wrapping_add(start);
        x = (x ^ x >> 15).wrapping_mul(3_266_489_917);
        x = (x ^ x >> 13).wrapping_mul(668_265_263);
        (x >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n as u32).map(number).collect()
}

/// A number that seeds [`noise`] for a parameter.
pub fn seed_of(name: &str) -> u32 {
    name.bytes().map(u32::from).sum()
}

/// Numbers of torchvision's convolutions and their input and output channels.
const CONVS: [[usize; 3]; 13] = [
    [0, 3, 64],
    [2, 64, 64],
    [5, 64, 128],
    [7, 128, 128],
    [10, 128, 256],
    [12, 256, 256],
    [14, 256, 256],
    [17, 256, 512],
    [19, 512, 512],
    [21, 512, 512],
    [24, 512, 512],
    [26, 512, 512],
    [28, 512, 512],
];

/// The weights as `perceptual` of `training_vqgan.py` makes them, and a matrix of the classifier as the file of the
/// whole network has it.
pub fn vgg_tensors() -> Vec<Named> {
    let scaled = |name: String, shape: Vec<usize>, scale: f32| {
        let numbers = noise(shape.iter().product(), seed_of(&name));
        (name, shape, numbers.iter().map(|x| x * scale).collect())
    };
    let convs = CONVS.iter().flat_map(|&[number, channels, out]| {
        let he = (24.0 / (9 * channels) as f64).sqrt();
        let scale = he.log2().round().exp2() as f32;
        let name = format!("features.{number}");
        let shape = vec![out, channels, 3, 3];
        [
            scaled(format!("{name}.weight"), shape, scale),
            scaled(format!("{name}.bias"), vec![out], 0.25),
        ]
    });
    let classifier = scaled("classifier.6.weight".into(), vec![10, 4], 1.0);
    convs.chain([classifier]).collect()
}

/// LPIPS's own file, as its package 0.1.4 has it.
pub fn lpips() -> PathBuf {
    golden::path("lpips/vgg.pth")
}

/// Both files with a weight; VGG16's is written when it is first asked for.
pub fn perceptual(weight: f64) -> Perceptual {
    static VGG: OnceLock<PathBuf> = OnceLock::new();
    let vgg = VGG.get_or_init(|| {
        let path = scratch().join("vgg16.safetensors");
        // Another test run may have the file mapped.
        let whole = scratch().join(format!("vgg16-{}.safetensors", std::process::id()));
        write_safetensors(&whole, &vgg_tensors());
        std::fs::rename(&whole, &path).unwrap();
        path
    });
    Perceptual {
        vgg: vgg.clone(),
        lpips: lpips(),
        weight,
    }
}
