//! Steps of a decoder's training against the matrix products that this machine does meanwhile:
//!
//! `cargo bench --bench training -- --model models/demo/configs/model.toml --seq 256 --rows 4 --batches 2 --steps 40
//! [--example 90] [--out FILE]`
//!
//! The weights are random, rows are packed full of examples of one length, half of them codes. Between two steps every
//! thread multiplies large matrices for as long: the share is the median of one over the median of the other.
//! Without options a few steps show that it runs.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/row.rs"]
mod row;

use std::{path::Path, time::Instant};

use candle_core::{Device, Tensor};
use longreel::bench::{
    machine::{Build, Machine},
    sample_summary::SampleSummary,
};
use longreel_kernels::candle_threads;
use longreel_models::{
    checkpoint::layout::decoder_tensors,
    context::vocab::Token,
    spec::{DecoderSpec, ModelSpec},
    training::{
        data::batch::Batch,
        loss::Reduction,
        network::{Activations, Network},
        optimizer::AdamW,
        parameters::Parameters,
        schedule::{Decay, Schedule},
        trainer::{Trainer, TrainingRecipe},
    },
};
use serde_json::json;

/// Side of the matrices whose products are the peak.
const SIDE: usize = 1024;

fn main() {
    candle_threads::start_none();
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| Some(args[args.iter().position(|a| a == name)? + 1].as_str());
    let number = |name, default| option(name).map_or(default, |n: &str| n.parse().unwrap());
    let model = option("--model").unwrap_or("models/demo/configs/model.toml");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(here.join(model)).unwrap();
    let spec = ModelSpec::from_toml(&text).unwrap().decoder;
    let shape = Shape {
        seq_length: number("--seq", 256),
        rows: number("--rows", 4),
        batches: number("--batches", 2),
        example: number("--example", 90),
    };
    let batches: Vec<Batch> = (0..shape.batches).map(|_| batch(&spec, &shape)).collect();
    let tokens = (shape.seq_length * shape.rows * shape.batches) as f64;
    let operations = operations(&spec, &batches);
    let mut trainer = trainer(&spec, shape.batches);
    trainer.step(&batches).unwrap();
    let (mut steps, mut products) = (Vec::new(), Vec::new());
    for _ in 0..number("--steps", 3) {
        let begun = Instant::now();
        trainer.step(&batches).unwrap();
        let seconds = begun.elapsed().as_secs_f64();
        steps.push(seconds);
        products.push(products_per_second(seconds) / 1e9);
    }
    let step_gflops = SampleSummary::rate(operations / 1e9, &steps).unwrap();
    let peak = SampleSummary::of(&products).unwrap();
    let row = json!({
        "bench": "training",
        "build": Build::HERE,
        "machine": Machine::here(),
        "model": model,
        "parameters": trainer.network().parameters().count(),
        "threads": rayon::current_num_threads(),
        "seq_length": shape.seq_length,
        "rows": shape.rows,
        "batches": shape.batches,
        "tokens_of_an_example": shape.example,
        "tokens_per_s": SampleSummary::rate(tokens, &steps),
        "gflop_a_step": operations / 1e9,
        "gflops": step_gflops,
        "product_gflops": peak,
        "fraction_of_products": step_gflops.median / peak.median,
    });
    row::tell(&row, option("--out"));
}

struct Shape {
    seq_length: usize,
    rows: usize,
    batches: usize,
    /// Tokens of an example.
    example: usize,
}

/// A rate so small that the loss stays what it is, for the steps to be alike.
fn trainer(spec: &DecoderSpec, batches_at_a_time: usize) -> Trainer {
    let parameters = Parameters::random(&decoder_tensors(spec), 0.02, 1).unwrap();
    let recipe = TrainingRecipe {
        reduction: Reduction::Rows,
        activations: Activations::Kept,
        batches_at_a_time,
        optimizer: AdamW::default(),
        schedule: Schedule {
            init_lr: 0.0,
            lr: 1e-6,
            end_lr: 1e-6,
            lr_warmup_steps: 0,
            lr_decay_steps: 0,
            decay: Decay::Constant,
        },
    };
    let network = Network::new(spec.clone(), parameters).unwrap();
    Trainer::new(network, recipe, Vec::new())
}

/// Rows full of examples, codes in the first half of each where the model has any, text behind them.
fn batch(spec: &DecoderSpec, shape: &Shape) -> Batch {
    let place = |i: usize| i % shape.seq_length % shape.example;
    let token = |i: usize| {
        let mixed = (i as u32).wrapping_mul(2_654_435_761) >> 8;
        match spec.vision_vocab_size {
            Some(n) if place(i) < shape.example / 2 => Token::Vision(mixed % n as u32),
            _ => Token::Text(mixed % spec.vocab_size as u32),
        }
    };
    let n = shape.seq_length * shape.rows;
    let segment = |i: usize| (i % shape.seq_length / shape.example) as u32;
    Batch {
        seq_length: shape.seq_length,
        input: (0..n).map(token).collect(),
        target: (1..=n).map(token).collect(),
        loss: vec![1.0; n],
        segments: Some((0..n).map(segment).collect()),
        positions: (0..n).map(|i| place(i) as u32).collect(),
    }
}

/// Multiplications and additions of a step's matrix products, two of each multiply-add: forward, and twice as many
/// backward. Attention counts the pairs of a query and a key that it sees.
fn operations(spec: &DecoderSpec, batches: &[Batch]) -> f64 {
    let hidden = spec.hidden_size as f64;
    let tokens: f64 = batches.iter().map(|b| b.input.len() as f64).sum();
    let is_product = |name: &str| !name.contains("embed_tokens");
    let shapes = decoder_tensors(spec).into_iter();
    let shapes = shapes.filter(|(name, shape)| shape.len() == 2 && is_product(name));
    let weights: usize = shapes
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    let seen = |batch: &Batch| {
        batch
            .positions
            .iter()
            .map(|&p| f64::from(p) + 1.0)
            .sum::<f64>()
    };
    let pairs: f64 = batches.iter().map(seen).sum();
    let of_attention = 12.0 * hidden * pairs * spec.num_hidden_layers as f64;
    6.0 * weights as f64 * tokens + of_attention
}

/// Operations per second of large products, one on each thread, for about `seconds`.
fn products_per_second(seconds: f64) -> f64 {
    let numbers: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 17) as f32 * 0.1).collect();
    let matrix = Tensor::from_vec(numbers, (SIDE, SIDE), &Device::Cpu).unwrap();
    let begun = Instant::now();
    let runs = rayon::broadcast(|_| {
        let mut runs = 0;
        while runs == 0 || begun.elapsed().as_secs_f64() < seconds {
            matrix.matmul(&matrix).unwrap();
            runs += 1;
        }
        runs
    });
    let operations = 2.0 * (SIDE as f64).powi(3) * runs.into_iter().sum::<usize>() as f64;
    operations / begun.elapsed().as_secs_f64()
}
