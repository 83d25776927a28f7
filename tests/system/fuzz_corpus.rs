//! The fuzz targets on stable: the committed corpus, pieces of the golden files,
//! and thousands of mutations of both, the same at every run.

use std::{fs, path::Path};

#[path = "../fuzz/targets.rs"]
mod targets;

use targets::TARGETS;

use crate::support::golden;

/// Mutations of each corpus item.
const MUTATIONS: u64 = 3000;

/// Most bytes of an item that are mutated: the head is where parsers decide.
const ITEM_BYTES_MAX: usize = 8192;

/// A small generator: the corpus is the same at every run.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

/// Golden files that a target's parser reads.
fn golden_items(target: &str) -> Vec<&'static str> {
    match target {
        "msgpack" => vec!["e2e/params", "llama/params_stream_chunked_fp32"],
        "pickle" => vec![
            "vqgan/vqgan.pkl",
            "vqgan/variants/dict_numpy_p2.pkl",
            "vqgan/variants/dict_numpy_p5.pkl",
            "vqgan/variants/frozendict_jax_p4.pkl",
            "torch/old.pth",
            "torch/parameters.pth",
            "lpips/vgg.pth",
        ],
        "safetensors_header" => vec!["vqgan/variants/expected.safetensors"],
        "tokenizer" => vec!["tokenizer/tokenizer.model"],
        "gguf" => vec!["gguf/chat.gguf", "gguf/pieces.gguf", "gguf/mixtral.gguf"],
        _ => vec![],
    }
}

/// The corpus of `target`, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut items = Vec::new();
    for entry in fs::read_dir(root.join("tests/fuzz/corpus").join(target)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        items.push((name, fs::read(&path).unwrap()));
    }
    for name in golden_items(target) {
        items.push((name.to_owned(), fs::read(golden::path(name)).unwrap()));
    }
    if target == "config" {
        let file = root.join("tests/golden/lwm-golden.toml");
        items.push(("lwm-golden.toml".to_owned(), fs::read(file).unwrap()));
    }
    items.sort();
    items
}

/// Flips, overwrites, cuts out, repeats or cuts off a part of `bytes`.
fn mutate(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes[..bytes.len().min(ITEM_BYTES_MAX)].to_vec();
    for _ in 0..=random.next(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.next(bytes.len());
        let end = (at + 1 + random.next(16)).min(bytes.len());
        match random.next(5) {
            0 => bytes[at] ^= 1 << random.next(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xc6, 0xdb, 0xdf, 0xff][random.next(8)],
            2 => drop(bytes.drain(at..end)),
            3 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

#[test]
fn no_target_panics_on_the_corpus_or_its_mutations() {
    for (target, run) in TARGETS {
        let items = corpus(target);
        assert!(
            items.len() >= 3,
            "{target}: a corpus of {} items",
            items.len()
        );
        for (name, bytes) in &items {
            println!("{target}: {name}");
            run(bytes);
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ bytes.len() as u64);
            for round in 0..MUTATIONS {
                let mutated = mutate(bytes, &mut random);
                println!("{target}: {name}, mutation {round}");
                run(&mutated);
            }
        }
    }
}
