//! Decoding on the clips of the tests, preprocessing at 1080p, and synthetic clips:
//! median and spread, by Criterion.

use std::{hint::black_box, path::Path};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use longreel::{
    cancel::Cancel,
    error::Result,
    sources::{
        file::FrameReader,
        sampler::{Sampling, TimeRange, parse_rate},
    },
    stages::progress::Counter,
    synth::{clip::Collection, draw::whole_seconds, recipe::Recipe},
};
use longreel_models::vision::image::{RgbView, lwm_frame};
use rayon::prelude::*;

fn clip(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clips")
        .join(name)
}

/// Decodes `name` with `sampling` and returns the number of frames.
fn decode(name: &str, sampling: &Sampling) -> Result<usize> {
    let mut reader = FrameReader::open(&clip(name), sampling, &TimeRange::ALL, Cancel::new())?;
    let mut frames = 0;
    while let Some(frame) = reader.next_frame()? {
        black_box(&frame);
        frames += 1;
    }
    Ok(frames)
}

fn decode_stage(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.sample_size(10);
    for name in ["nasa_13013.mp4", "av1_video.mkv", "h265_10bits.mp4"] {
        group.bench_function(format!("{name}, every frame"), |b| {
            b.iter(|| decode(name, &Sampling::Every))
        });
        let Ok(rate) = parse_rate("1") else { return };
        group.bench_function(format!("{name}, 1 fps"), |b| {
            b.iter(|| decode(name, &Sampling::Fps(rate)))
        });
    }
    group.finish();
}

fn preprocess(c: &mut Criterion) {
    let (width, height) = (1920, 1080);
    let data: Vec<u8> = (0..width * height * 3)
        .map(|i| (i * 7 % 251) as u8)
        .collect();
    let mut group = c.benchmark_group("preprocess");
    group.throughput(Throughput::Elements(1));
    group.bench_function("1080p to 256x256", |b| {
        b.iter(|| RgbView::new(width, height, &data).and_then(|view| lwm_frame(view, 256)));
    });
    group.finish();
}

/// Clips of 16 s with up to three objects, on all cores: as pictures at whole seconds, and as files.
fn synthetic_clips(c: &mut Criterion) {
    const CLIPS: u64 = 64;
    let recipe = Recipe {
        difficulty: 3,
        ..Recipe::default()
    };
    let mut group = c.benchmark_group("synth");
    group.sample_size(10);
    group.throughput(Throughput::Elements(CLIPS));
    group.bench_function("clips as pictures", |b| {
        b.iter(|| {
            let drawn = (0..CLIPS).into_par_iter().map(|index| {
                let clip = recipe.clip(index)?;
                Ok(whole_seconds(&clip.script, 96).len())
            });
            drawn.sum::<Result<usize>>()
        });
    });
    let collection = Collection {
        clips: CLIPS,
        side: 96,
        fps: 8,
        recipe: recipe.clone(),
    };
    group.bench_function("clips as mp4", |b| b.iter(|| written(&collection)));
    group.finish();
}

/// Writes all clips of `collection` to a directory that is removed afterwards.
fn written(collection: &Collection) -> Result<u64> {
    let dir = tempfile::tempdir()?;
    collection.open(dir.path(), false)?;
    let made = collection.write(dir.path(), &Counter::default(), &Cancel::new())?;
    Ok(made.written)
}

criterion_group!(benches, decode_stage, preprocess, synthetic_clips);
criterion_main!(benches);
