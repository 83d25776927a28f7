//! Packed prefill against one prompt after another:
//!
//! `cargo bench --bench packing -- --model configs/measure/small.toml --prompts 200 --shortest 50 --longest 5000 [--json]`
//!
//! The model has random weights, and the prompts have lengths drawn with a fixed seed. Reports
//! the share of padding, the largest difference of the last logits, and seconds: the ways take
//! turns `--repeats` times, after one turn that is not counted. Without options a few short
//! prompts show that it runs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{path::Path, time::Instant};

use candle_core::Tensor;
use longreel::bench::{random_weights::random_decoder, sample_summary::SampleSummary};
use longreel_models::{
    attention::kv_cache::{KvCache, KvDtype},
    context::{packing::Packing, vocab::Token},
    llama::{
        Decoder, Head, Positions, Row,
        generate::prefill,
        packed::{PackedPrefill, prefill_packed},
    },
    spec::ModelSpec,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Prompts side by side in a ragged batch.
const BATCH: usize = 8;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| Some(args[args.iter().position(|a| a == name)? + 1].as_str());
    let number = |name, default| option(name).map_or(default, |n| n.parse().unwrap());
    let model = option("--model").unwrap_or("configs/measure/micro.toml");
    let options = PackedPrefill {
        capacity: number("--capacity", 8192),
        chunk: number("--chunk", 512),
        kv_dtype: KvDtype::F32,
    };
    let lengths = number("--shortest", 50)..=number("--longest", 300);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(here.join(model)).unwrap();
    let spec = ModelSpec::from_toml(&text).unwrap();
    let bench = Bench {
        decoder: random_decoder(&spec.decoder).unwrap().0,
        prompts: prompts(number("--prompts", 6), lengths, spec.decoder.vocab_size),
        options,
    };
    let mut report = bench.report(number("--repeats", 1));
    report["model"] = model.into();
    if args.iter().any(|a| a == "--json") {
        println!("{report:#}");
    } else {
        let rows = report.as_object().unwrap().iter();
        rows.for_each(|(key, value)| println!("{key}: {value}"));
    }
}

fn prompts(n: usize, lengths: std::ops::RangeInclusive<usize>, ids: usize) -> Vec<Vec<Token>> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    (0..n)
        .map(|_| {
            let length = random.random_range(lengths.clone());
            (0..length)
                .map(|_| Token::Text(random.random_range(0..ids as u32)))
                .collect()
        })
        .collect()
}

struct Bench {
    decoder: Decoder,
    prompts: Vec<Vec<Token>>,
    options: PackedPrefill,
}

impl Bench {
    fn report(&self, repeats: usize) -> Value {
        let (packing, difference) = self.compare();
        let mut seconds = [const { Vec::new() }; 3];
        for _ in 0..repeats {
            let [packed, alone, batches] = &mut seconds;
            packed.push(timed(|| drop(self.packed())));
            alone.push(timed(|| drop(self.one_by_one())));
            batches.push(timed(|| self.in_batches()));
        }
        let [packed, alone, batches] = seconds.map(|s| SampleSummary::of(&s).unwrap());
        let lengths = || self.prompts.iter().map(Vec::len);
        json!({
            "threads": rayon::current_num_threads(),
            "prompts": self.prompts.len(),
            "shortest": lengths().min(),
            "longest": lengths().max(),
            "tokens": packing.tokens(),
            "capacity": packing.capacity,
            "chunk": self.options.chunk,
            "rows": packing.rows.len(),
            "padding": packing.padding(),
            "largest_logit_difference": difference,
            "seconds_packed": packed,
            "seconds_one_by_one": alone,
            "seconds_ragged_batches_of_8": batches,
            "one_by_one_over_packed": alone.median / packed.median,
        })
    }

    /// How the prompts were packed, and the largest difference of a logit from that of a prompt alone.
    fn compare(&self) -> (Packing, f32) {
        let (packing, packed) = self.packed();
        let alone = self.one_by_one();
        let differences = packed.iter().zip(&alone).map(|(packed, alone)| {
            let [packed, alone] =
                [packed, alone].map(|last| self.decoder.logits(last, Head::Text).unwrap());
            let worst = (packed - alone).unwrap().abs().unwrap().max_all().unwrap();
            worst.to_scalar::<f32>().unwrap()
        });
        (packing, differences.fold(0.0, f32::max))
    }

    /// How the prompts were packed, and the last hidden state of each.
    fn packed(&self) -> (Packing, Vec<Tensor>) {
        let prompts: Vec<&[Token]> = self.prompts.iter().map(Vec::as_slice).collect();
        let mut last: Vec<Option<Tensor>> = prompts.iter().map(|_| None).collect();
        let mut keep = |prompt: usize, prefilled: longreel_models::llama::packed::Prefilled| {
            last[prompt] = Some(prefilled.last);
            Ok(())
        };
        let packing =
            prefill_packed(&self.decoder, &prompts, &self.options, &|| true, &mut keep).unwrap();
        (packing, last.into_iter().map(Option::unwrap).collect())
    }

    fn one_by_one(&self) -> Vec<Tensor> {
        let alone = |tokens: &Vec<Token>| {
            let mut cache = self.cache();
            let chunk = self.options.chunk;
            prefill(
                &self.decoder,
                &mut cache,
                tokens,
                chunk,
                &|| true,
                &mut |_| {},
            )
            .unwrap()
        };
        self.prompts.iter().map(alone).collect()
    }

    /// Some prompts side by side, each in its own context, a chunk's share of each at a time.
    fn in_batches(&self) {
        self.prompts.chunks(BATCH).for_each(|p| self.batch(p));
    }

    fn batch(&self, prompts: &[Vec<Token>]) {
        let step = (self.options.chunk / BATCH).max(1);
        let mut caches: Vec<KvCache> = prompts.iter().map(|_| self.cache()).collect();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        for start in (0..longest).step_by(step) {
            let positions: Vec<u32> = (start as u32..(start + step) as u32).collect();
            let unfinished = prompts.iter().zip(&mut caches);
            let unfinished = unfinished.filter(|(tokens, _)| tokens.len() > start);
            let mut rows: Vec<Row> = unfinished
                .map(|(tokens, cache)| {
                    let tokens = &tokens[start..tokens.len().min(start + step)];
                    Row {
                        tokens,
                        positions: Positions::Line(&positions[..tokens.len()]),
                        segments: None,
                        features: &[],
                        cache,
                    }
                })
                .collect();
            self.decoder.forward(&mut rows).unwrap();
        }
    }

    fn cache(&self) -> KvCache {
        KvCache::new(self.decoder.spec(), self.options.kv_dtype)
    }
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}
