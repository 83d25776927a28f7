//! Vision encoders against another program on the same weights, threads and pixels:
//!
//! `cargo bench --bench vit -- --peer "python benches/peers/torch_vit.py" [--model NAME] [--dtype f32|bf16] [--layers N]
//! [--pictures N] [--repeats N] [--out FILE]`
//!
//! The peer writes random weights of the model's real shape and its own results; ours must agree with them. Then
//! both encode in turn. `--layers` takes fewer blocks than the model has, to see quickly what a change did. Without
//! a peer there are no weights, and nothing is done.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/peer.rs"]
mod peer;
#[path = "support/row.rs"]
mod row;

use std::{path::Path, time::Instant};

use longreel::bench::{
    machine::{Build, Machine},
    sample_summary::SampleSummary,
};
use longreel_models::{
    checkpoint::weights::Weights,
    dual_encoder::DualEncoder,
    spec::encoder::DualEncoderSpec,
    systems::architecture::{Architecture, ModelKind},
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::peer::{Peer, load_average};

/// Largest difference of a token or a vector from the peer's arithmetic in f32, over the largest of them.
const TOLERANCE: f32 = 1e-3;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| Some(args[args.iter().position(|a| a == name)? + 1].as_str());
    let number = |name, default| option(name).map_or(default, |n: &str| n.parse().unwrap());
    let Some(peer) = option("--peer") else {
        println!("vit: nothing to do without --peer");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let request = json!({
        "folder": folder.path(),
        "model": option("--model").unwrap_or("clip-l-14-336"),
        "dtype": option("--dtype").unwrap_or("f32"),
        "layers": number("--layers", 0),
        "pictures": number("--pictures", 1),
        "threads": rayon::current_num_threads(),
    });
    let row = measure(&mut Peer::start(peer), &request, number("--repeats", 5));
    row::tell(&row, option("--out"));
}

fn measure(peer: &mut Peer, request: &Value, repeats: usize) -> Value {
    // The first answer is not counted: the peer writes the weights for it.
    let name = peer.ask(request)["peer"].clone();
    let folder = Path::new(request["folder"].as_str().unwrap());
    let model = load(folder);
    let (pixels, difference) = compare(&model, folder);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        let start = Instant::now();
        model.vision().pooled(&pixels).unwrap();
        ours.push(start.elapsed().as_secs_f64());
        theirs.push(peer.ask(request)["seconds"].as_f64().unwrap());
    }
    let [ours, theirs] = [ours, theirs].map(|seconds| SampleSummary::of(&seconds).unwrap());
    let vision = model.vision();
    json!({
        "longreel": Build::HERE.longreel,
        "commit": Build::HERE.commit,
        "machine": Machine::here(),
        "op": "vit",
        "model": request["model"],
        "dtype": request["dtype"],
        "threads": request["threads"],
        "layers": vision.layers(),
        "tokens": vision.spec().tokens(),
        "pictures": request["pictures"],
        "largest_difference": difference,
        "load_average": load_average(),
        "seconds": ours,
        "peer": {"name": name, "seconds": theirs, "ratio": theirs.median / ours.median},
    })
}

fn load(folder: &Path) -> DualEncoder {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = serde_json::from_str(&config).unwrap();
    let architecture = Architecture::of_config(&config).unwrap();
    let spec: DualEncoderSpec = architecture.spec(ModelKind::DualEncoder, &config).unwrap();
    let weights = Weights::open(&folder.join("model.safetensors")).unwrap();
    let mut weights = weights.renamed(&architecture.keys().unwrap()).unwrap();
    DualEncoder::load(&spec, &mut weights).unwrap()
}

/// The peer's pixels, and the largest difference of tokens and vectors from its own.
///
/// # Panics
/// When the difference is above [`TOLERANCE`].
fn compare(model: &DualEncoder, folder: &Path) -> (Vec<f32>, f32) {
    let bytes = std::fs::read(folder.join("case.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data();
        let numbers = data.chunks_exact(4);
        numbers
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let (pixels, vision) = (numbers("pixels"), model.vision());
    let tokens = vision.hidden(&pixels, vision.layers()).unwrap();
    // CLIP's tokens are those before the last norm, SigLIP's those behind it.
    let tokens = match vision.spec().class_token {
        true => tokens,
        false => vision.normed(&tokens),
    };
    let of_tokens = distance(&tokens, &numbers("tokens"));
    let of_vectors = distance(&vision.pooled(&pixels).unwrap(), &numbers("vectors"));
    let difference = of_tokens.max(of_vectors);
    assert!(
        difference <= TOLERANCE,
        "tokens differ by {of_tokens}, vectors by {of_vectors}"
    );
    (pixels, difference)
}

fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f32, |most, e| most.max(e.abs()));
    let pairs = got.iter().zip(expected);
    pairs.map(|(g, e)| (g - e).abs()).fold(0.0, f32::max) / largest
}
