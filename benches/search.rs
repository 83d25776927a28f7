//! Exact search among many vectors, against another program on the same vectors and threads:
//!
//! `cargo bench --bench search -- [--peer "python benches/peers/torch_search.py"] [--frames N] [--width N] [--dtype f16|f32]
//! [--top K] [--repeats N] [--out FILE]`
//!
//! A reel of random vectors is written to a temporary folder and searched as `longreel search` does. The peer reads
//! the same reel; both must find the same frames.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/peer.rs"]
mod peer;
#[path = "support/row.rs"]
mod row;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use longreel::{
    bench::{
        machine::{Build, Machine},
        sample_summary::SampleSummary,
    },
    cancel::Cancel,
    flow::{EncodedStep, FeatureRows, FrameMark, FrameTime, StepContent},
    reel::{ReelContent, ReelHeader, ReelStep, ReelVideo, ReelWriter, RowForm, RowsDtype},
    search::Library,
    time::{Pts, TimeBase},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::peer::{Peer, load_average};

/// Largest difference of a score from the peer's, both sums of f32 products in their own order.
const TOLERANCE: f64 = 1e-5;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| Some(args[args.iter().position(|a| a == name)? + 1].as_str());
    let number = |name, default| option(name).map_or(default, |n: &str| n.parse().unwrap());
    if !args.iter().any(|a| a == "--bench") {
        return; // `cargo test --benches` runs every bench; this one only measures.
    }
    let dtype = match option("--dtype").unwrap_or("f16") {
        "f16" => RowsDtype::F16,
        "f32" => RowsDtype::F32,
        other => panic!("--dtype is {other}, expected f16 or f32"),
    };
    let shape = Shape {
        frames: number("--frames", 1_000_000),
        width: number("--width", 512),
        dtype,
    };
    let folder = tempfile::tempdir().unwrap();
    let reel = folder.path().join("random.reel");
    let query = write(&reel, &shape);
    let peer = option("--peer").map(Peer::start);
    let row = measure(
        &reel,
        &query,
        &shape,
        number("--top", 10),
        peer,
        number("--repeats", 7),
    );
    row::tell(&row, option("--out"));
}

struct Shape {
    frames: usize,
    width: usize,
    dtype: RowsDtype,
}

/// Writes vectors of length one, a second apart, and gives another one to look for.
fn write(path: &Path, shape: &Shape) -> Vec<f32> {
    let mut numbers = ChaCha8Rng::seed_from_u64(7);
    let mut unit = || {
        let mut vector: Vec<f32> = (0..shape.width)
            .map(|_| numbers.random_range(-1.0..1.0))
            .collect();
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
        vector
    };
    let query = unit();
    let mut writer = ReelWriter::open(path, header(shape), false).unwrap();
    for index in 0..shape.frames {
        writer.append(&frame(index, unit())).unwrap();
    }
    writer.finish().unwrap();
    query
}

fn header(shape: &Shape) -> ReelHeader {
    ReelHeader {
        model: "random".into(),
        model_modified_s: 0,
        content: ReelContent::Vectors(RowForm {
            width: shape.width,
            dtype: shape.dtype,
        }),
        videos: vec![ReelVideo {
            path: "random.mp4".into(),
            bytes: 0,
            modified_s: 0,
            time_base: [1, 1],
            duration_s: None,
            sampling: "1 frames/s".into(),
            step: None,
            start: 0,
            shown_s: None,
        }],
    }
}

fn frame(index: usize, vector: Vec<f32>) -> ReelStep {
    let mark = FrameMark {
        time: FrameTime {
            index: index as u64,
            pts: Pts::new(index as i64, TimeBase::new(1, 1).unwrap()),
            start: 0,
        },
        key: false,
        corrupt: false,
    };
    ReelStep {
        video: 0,
        step: EncodedStep {
            frames: vec![mark],
            content: StepContent::Features(FeatureRows {
                width: vector.len(),
                rows: vector,
                grid: None,
            }),
        },
    }
}

fn measure(
    reel: &Path,
    query: &[f32],
    shape: &Shape,
    top: usize,
    mut peer: Option<Peer>,
    repeats: usize,
) -> Value {
    let library = Library::open(&[PathBuf::from(reel)]).unwrap();
    let every_frame = Pts::new(0, TimeBase::new(1, 1).unwrap());
    let find = || {
        library
            .moments(query, top, every_frame, &Cancel::default())
            .unwrap()
    };
    let request = json!({
        "reel": reel, "width": shape.width, "dtype": shape.dtype, "query": query, "top": top,
        "threads": rayon::current_num_threads(),
    });
    // The first runs are not counted: they fill caches.
    let hits = find();
    let found = peer.as_mut().map(|peer| peer.ask(&request));
    if let Some(found) = &found {
        for (hit, [index, score]) in hits.iter().zip(pairs(found)) {
            assert_eq!(hit.record as f64, index, "another frame than the peer's");
            assert!((f64::from(hit.score) - score).abs() < TOLERANCE);
        }
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        let start = Instant::now();
        find();
        ours.push(start.elapsed().as_secs_f64());
        let answer = peer.as_mut().map(|peer| peer.ask(&request));
        theirs.extend(answer.map(|answer| answer["seconds"].as_f64().unwrap()));
    }
    let ours = SampleSummary::of(&ours).unwrap();
    let bytes = library.bytes();
    let gb_per_s = bytes as f64 / 1e9 / ours.median;
    let peer = SampleSummary::of(&theirs).map(|theirs| {
        json!({"name": found.map(|f| f["peer"].clone()), "seconds": theirs, "ratio": theirs.median / ours.median})
    });
    json!({
        "longreel": Build::HERE.longreel,
        "commit": Build::HERE.commit,
        "machine": Machine::here(),
        "op": "search",
        "frames": shape.frames,
        "width": shape.width,
        "dtype": shape.dtype,
        "top": top,
        "threads": rayon::current_num_threads(),
        "bytes": bytes,
        "load_average": load_average(),
        "seconds": ours,
        "gb_per_s": gb_per_s,
        "peer": peer,
    })
}

/// The peer's frames and scores, the best first.
fn pairs(found: &Value) -> Vec<[f64; 2]> {
    serde_json::from_value(found["found"].clone()).unwrap()
}
