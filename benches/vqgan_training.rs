//! Steps of a VQGAN's training on pictures of noise and gradients, and how much of them is matrix products:
//!
//! `cargo bench --bench vqgan_training -- --resolution 32 --hidden 32 --mult 1,2,2,4 --batch 64 --steps 5 [--judge]`
//!
//! Products are counted, not timed inside a step: their least time is their number over what the same kernels do by
//! themselves on the largest layer. Without options a small network shows that it runs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Instant;

use candle_core::{Device, Tensor};
use longreel_kernels::{
    conv::{Kernel, Resampling, Start, conv},
    conv_backward::weight_gradient,
};
use longreel_models::{
    checkpoint::layout::vqgan_tensors,
    spec::VqganSpec,
    training::vqgan::{
        initial::first_parameters,
        options::{Adversarial, VqganOptions},
        trainer::VqganTrainer,
    },
};
use rayon::prelude::*;
use serde_json::json;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| Some(args[args.iter().position(|a| a == name)? + 1].as_str());
    let number = |name, default| option(name).map_or(default, |n: &str| n.parse().unwrap());
    let mult = option("--mult").unwrap_or("1,2").split(',');
    let spec = VqganSpec {
        resolution: number("--resolution", 16),
        hidden_channels: number("--hidden", 32),
        channel_mult: mult.map(|m| m.parse().unwrap()).collect(),
        num_res_blocks: number("--blocks", 1),
        z_channels: number("--z", 16),
        num_embeddings: number("--codes", 256),
        quantized_embed_dim: number("--width", 16),
    };
    let options = VqganOptions {
        adversarial: args.iter().any(|a| a == "--judge").then(|| Adversarial {
            channels: 32,
            layers: 2,
            ..Adversarial::default()
        }),
        ..VqganOptions::default()
    };
    let (batch, steps) = (number("--batch", 4), number("--steps", 2));
    let parameters = first_parameters(&spec, 1).unwrap();
    let n_parameters = parameters.count();
    let products = products_of_a_picture(&spec) * batch as f64;
    let mut trainer = VqganTrainer::new(spec.clone(), parameters, options).unwrap();
    let pixels = pixels(batch, spec.resolution);
    trainer.step(&pixels).unwrap();
    let seconds: Vec<f64> = (0..steps)
        .map(|_| {
            let begun = Instant::now();
            trainer.step(&pixels).unwrap();
            begun.elapsed().as_secs_f64()
        })
        .collect();
    let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let per_second = kernels_per_second(&spec, batch);
    let row = json!({
        "spec": spec,
        "parameters": n_parameters,
        "batch": batch,
        "threads": rayon::current_num_threads(),
        "seconds_a_step": seconds,
        "gflop_a_step": products / 1e9,
        "gflop_per_second": products / least / 1e9,
        "gflop_per_second_of_the_kernels_alone": per_second / 1e9,
        "share_of_products": products / per_second / least,
    });
    println!("{row:#}");
}

/// Smooth colours with some noise.
fn pixels(n: usize, side: usize) -> Tensor {
    let number = |i: usize| {
        let mixed = (i as u32).wrapping_mul(2_654_435_761);
        let mixed = (mixed ^ mixed >> 15).wrapping_mul(2_246_822_519) >> 8;
        let noise = mixed as f32 / (1 << 24) as f32 - 0.5;
        (i as f32 * 0.003).sin() * 0.8 + noise * 0.2
    };
    let numbers: Vec<f32> = (0..n * side * side * 3).map(number).collect();
    Tensor::from_vec(numbers, (n, side, side, 3), &Device::Cpu).unwrap()
}

/// Multiplications and additions of forward, and twice as many of backward, for one picture.
fn products_of_a_picture(spec: &VqganSpec) -> f64 {
    let side = |name: &str| {
        let levels = spec.channel_mult.len() - 1;
        let level = |prefix: &str| -> Option<usize> {
            let rest = name.split(prefix).nth(1)?;
            rest.split('.').next()?.parse().ok()
        };
        let down = level("DownsamplingBlock_").map(|l| l + usize::from(name.contains("sample_0")));
        let up = level("UpsamplingBlock_");
        let up = up.map(|l| levels - l - usize::from(name.contains("sample_0")));
        let outer = ["encoder.Conv_0", "decoder.Conv_1"]
            .iter()
            .any(|o| name.contains(&format!("vqgan.{o}")));
        let halvings = down.or(up).unwrap_or(if outer { 0 } else { levels });
        spec.resolution >> halvings
    };
    let kernels = vqgan_tensors(spec).into_iter();
    let kernels = kernels.filter(|(name, _)| name.ends_with(".kernel"));
    let of_kernel = |(name, shape): (String, Vec<usize>)| {
        let n: usize = shape.iter().product();
        6.0 * n as f64 * (side(&name) * side(&name)) as f64
    };
    kernels.map(of_kernel).sum()
}

/// Multiplications and additions per second of one forward and one backward kernel over the finest level's pictures.
fn kernels_per_second(spec: &VqganSpec, batch: usize) -> f64 {
    let (side, n) = (spec.resolution, spec.hidden_channels);
    let shape = [3, 3, n, n];
    let (weights, x) = (vec![0.01; 9 * n * n], vec![0.5; side * side * n]);
    let kernel = Kernel::pack(&weights, &vec![0.0; n], shape);
    let run = || {
        (0..batch).into_par_iter().for_each(|_| {
            let (mut y, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; 9 * n * n], vec![0.0; n]);
            let size = [side; 2];
            conv(&x, size, &kernel, Resampling::Same, Start::Bias, &mut y);
            weight_gradient(&x, size, &y, shape, Resampling::Same, [&mut dw, &mut db]);
        });
    };
    run();
    let times = (0..5).map(|_| {
        let begun = Instant::now();
        run();
        begun.elapsed().as_secs_f64()
    });
    let least = times.fold(f64::INFINITY, f64::min);
    (4 * 9 * n * n * side * side * batch) as f64 / least
}
