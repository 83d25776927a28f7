//! Packed prefill against one prompt after another:
//!
//! `cargo bench --bench packing -- --prompts 200 --longest 5000 [--json]`
//!
//! Prompts of 50 tokens and more, lengths drawn with a fixed seed. Reports the share
//! of padding, the largest difference of the last logits, and seconds. Without
//! `--prompts` a few short ones show that it runs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Instant;

use candle_core::Tensor;
use longreel_models::{
    attention::kv_cache::{KvCache, KvDtype},
    context::vocab::Token,
    llama::{
        Decoder, Head, Row,
        generate::prefill,
        packed::{PackedPrefill, prefill_packed},
    },
};
use micro_decoder::{Random, Size};
use serde_json::json;

mod micro_decoder;

/// Fewest tokens of a prompt.
const SHORTEST: usize = 50;

const SIZE: Size = Size {
    layers: 2,
    hidden: 256,
    heads: 4,
    kv_heads: 2,
    ffn: 688,
};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: usize| {
        let at = args.iter().position(|a| a == name);
        at.map_or(default, |at| args[at + 1].parse().unwrap())
    };
    let options = PackedPrefill {
        capacity: number("--capacity", 8192),
        chunk: number("--chunk", 512),
        kv_dtype: KvDtype::F32,
    };
    let (n, longest) = (number("--prompts", 6), number("--longest", 300));
    let decoder = micro_decoder::decoder(SIZE);
    let mut random = Random::new(7);
    let prompts: Vec<Vec<Token>> = (0..n)
        .map(|_| SHORTEST + random.below(longest - SHORTEST + 1))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|tokens| random.tokens(tokens, 512))
        .collect();
    let report = measure(&decoder, &prompts, &options);
    if args.iter().any(|a| a == "--json") {
        println!("{report:#}");
    } else {
        report
            .as_object()
            .unwrap()
            .iter()
            .for_each(|(key, value)| println!("{key}: {value}"));
    }
}

fn measure(
    decoder: &Decoder,
    prompts: &[Vec<Token>],
    options: &PackedPrefill,
) -> serde_json::Value {
    let tokens: Vec<&[Token]> = prompts.iter().map(Vec::as_slice).collect();
    let mut packed: Vec<Option<Tensor>> = prompts.iter().map(|_| None).collect();
    let start = Instant::now();
    let packing = prefill_packed(
        decoder,
        &tokens,
        options,
        &|| true,
        &mut |prompt, prefilled| {
            packed[prompt] = Some(prefilled.last);
            Ok(())
        },
    )
    .unwrap();
    let packed_s = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let alone: Vec<Tensor> = tokens
        .iter()
        .map(|tokens| alone(decoder, tokens, options))
        .collect();
    let alone_s = start.elapsed().as_secs_f64();

    let start = Instant::now();
    tokens
        .chunks(8)
        .for_each(|tokens| batch(decoder, tokens, options));
    let batch_s = start.elapsed().as_secs_f64();

    let errors = packed.iter().zip(&alone).map(|(packed, alone)| {
        let logits = |last: &Tensor| {
            decoder
                .logits(last, Head::Text)
                .unwrap()
                .flatten_all()
                .unwrap()
        };
        let (packed, alone) = (logits(packed.as_ref().unwrap()), logits(alone));
        let worst = (packed - alone).unwrap().abs().unwrap().max(0).unwrap();
        worst.to_scalar::<f32>().unwrap()
    });
    json!({
        "model": SIZE.words(),
        "threads": rayon::current_num_threads(),
        "prompts": prompts.len(),
        "shortest": prompts.iter().map(Vec::len).min(),
        "longest": prompts.iter().map(Vec::len).max(),
        "tokens": packing.tokens(),
        "capacity": packing.capacity,
        "chunk": options.chunk,
        "rows": packing.rows.len(),
        "padding": packing.padding(),
        "largest_logit_difference": errors.fold(0.0, f32::max),
        "seconds_packed": packed_s,
        "seconds_one_by_one": alone_s,
        "seconds_ragged_batches_of_8": batch_s,
        "one_by_one_over_packed": alone_s / packed_s,
    })
}

fn alone(decoder: &Decoder, tokens: &[Token], options: &PackedPrefill) -> Tensor {
    let mut cache = KvCache::new(decoder.spec(), options.kv_dtype);
    prefill(
        decoder,
        &mut cache,
        tokens,
        options.chunk,
        &|| true,
        &mut |_| {},
    )
    .unwrap()
}

/// Prompts side by side, each in its own context, `chunk / 8` tokens of each at a time.
fn batch(decoder: &Decoder, prompts: &[&[Token]], options: &PackedPrefill) {
    let step = (options.chunk / 8).max(1);
    let mut caches: Vec<KvCache> = prompts
        .iter()
        .map(|_| KvCache::new(decoder.spec(), options.kv_dtype))
        .collect();
    let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
    for start in (0..longest).step_by(step) {
        let positions: Vec<u32> = (start as u32..(start + step) as u32).collect();
        let mut rows: Vec<Row> = prompts
            .iter()
            .zip(&mut caches)
            .filter(|(tokens, _)| tokens.len() > start)
            .map(|(tokens, cache)| {
                let tokens = &tokens[start..tokens.len().min(start + step)];
                Row {
                    tokens,
                    positions: &positions[..tokens.len()],
                    segments: None,
                    cache,
                }
            })
            .collect();
        decoder.forward(&mut rows).unwrap();
    }
}
