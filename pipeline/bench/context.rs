//! Benchmark of a long context: time of its prefill and of a question about it, and memory.

use std::time::Instant;

use longreel_models::{
    attention::{
        kv_cache::{BLOCK_TOKENS, KvCache, KvDtype},
        ring::Traffic,
    },
    context::vocab::Token,
    llama::{
        Head,
        generate::{Continuation, Generation, generate, prefill},
        group::Forward,
        sampler::Draw,
    },
    spec::DecoderSpec,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    bench::sample_summary::SampleSummary,
    cancel::Cancel,
    error::Result,
    plan::{attention_flops, pairs, peak_memory_bytes},
    stages::progress::Progress,
};

/// Options of a measurement.
#[derive(Debug, Clone)]
pub struct ContextOptions {
    /// Tokens of the context.
    pub tokens: usize,
    /// Tokens of a question about it.
    pub question: usize,
    /// Tokens of an answer.
    pub answer: usize,
    /// Tokens per prefill chunk and rank.
    pub prefill_chunk: usize,
    /// Ranks of this process.
    pub ranks_here: usize,
    /// Element type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Bytes of the weights in memory.
    pub weight_bytes: u64,
}

/// Number of questions asked.
const QUESTIONS: usize = 5;

/// The results for one length.
#[derive(Debug, Clone, Serialize)]
pub struct ContextRow {
    /// Tokens of the context.
    pub tokens: usize,
    /// Number of ranks.
    pub ranks: usize,
    /// Element type of keys and values.
    pub kv_dtype: &'static str,
    /// Seconds of its prefill.
    pub prefill_s: f64,
    /// Tokens per second of the prefill.
    pub tokens_per_s: f64,
    /// 10⁹ operations of causal attention, 2 S² d heads layers, per second of the whole prefill.
    pub attention_gflops: f64,
    /// Seconds from the prefilled context to the last token of an answer, on a fork of it.
    pub question_s: SampleSummary,
    /// The former as a share of prefill plus first question.
    pub question_share: f64,
    /// Tokens per second of an answer.
    pub decode_tokens_per_s: SampleSummary,
    /// Bytes of keys and values of this rank.
    pub kv_bytes: usize,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Peak memory of this process.
    pub peak_memory_bytes: Option<u64>,
    /// Weights, keys and values of this rank, two blocks of each layer, and [`WORKING_BYTES`].
    pub expected_bytes: u64,
    /// Total traffic of the leading rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// Digest of the last logits: equal exactly where the logits are equal to the bit.
    pub logits_sha256: String,
}

/// The program itself, one prefill chunk of a small model, and MPI.
pub const WORKING_BYTES: u64 = 64 << 20;

/// Measures one length.
///
/// # Errors
/// `Interrupted` on Ctrl-C, and the decoder's errors.
pub fn measure(
    decoder: &dyn Forward,
    options: &ContextOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<ContextRow> {
    let keep_going = || !cancel.is_cancelled();
    let tokens = tokens(options.tokens, decoder.spec().vocab_size);
    let mut cache = decoder.context(options.kv_dtype);
    let start = Instant::now();
    let mut on_progress = |n: usize| progress.tokens_prefilled.add(n as u64);
    let chunk = options.prefill_chunk;
    let last = prefill(
        decoder,
        &mut cache,
        &tokens,
        chunk,
        &keep_going,
        &mut on_progress,
    )?;
    let logits: Vec<f32> = decoder
        .logits(&last, Head::Text)?
        .flatten_all()?
        .to_vec1()?;
    let prefill_s = start.elapsed().as_secs_f64();
    let mut asked = Vec::new();
    let mut rates = Vec::new();
    for _ in 0..QUESTIONS {
        let (question_s, answer_s) = ask(decoder, &cache, options, cancel)?;
        asked.push(question_s + answer_s);
        // The first token of an answer needs no decode step: it follows from the prefill of the question.
        rates.push(options.answer.saturating_sub(1) as f64 / answer_s);
    }
    let spec = decoder.spec();
    let first = asked.first().copied().unwrap_or(0.0);
    let spread = |samples: &[f64]| SampleSummary::of(samples).unwrap_or(SampleSummary::NONE);
    let question_s = spread(asked.get(1..).unwrap_or_default());
    let traffic = decoder.traffic();
    // The parts of several ranks differ by a block at most.
    let kv_bytes = cache.bytes() * options.ranks_here;
    Ok(ContextRow {
        tokens: options.tokens,
        ranks: traffic.map_or(1, |traffic| traffic.ranks),
        kv_dtype: options.kv_dtype.name(),
        prefill_s,
        tokens_per_s: options.tokens as f64 / prefill_s,
        attention_gflops: attention_flops(spec, pairs(spec, options.tokens as u64))
            / prefill_s
            / 1e9,
        question_share: question_s.median / (prefill_s + first),
        question_s,
        decode_tokens_per_s: spread(&rates),
        kv_bytes,
        weight_bytes: options.weight_bytes,
        peak_memory_bytes: peak_memory_bytes(),
        expected_bytes: expected_bytes(spec, options, kv_bytes),
        traffic,
        logits_sha256: digest(&logits),
    })
}

/// Seconds of a question's prefill on a fork of the context, and of its answer.
fn ask(
    decoder: &dyn Forward,
    cache: &KvCache,
    options: &ContextOptions,
    cancel: &Cancel,
) -> Result<(f64, f64)> {
    let keep_going = || !cancel.is_cancelled();
    let start = Instant::now();
    let mut fork = cache.fork();
    let question = tokens(options.question, decoder.spec().vocab_size);
    let chunk = options.prefill_chunk;
    let last = prefill(
        decoder,
        &mut fork,
        &question,
        chunk,
        &keep_going,
        &mut |_| {},
    )?;
    let understood = start.elapsed().as_secs_f64();
    let generation = Generation {
        max_new_tokens: options.answer,
        draw: Draw::GREEDY,
        stop_ids: Vec::new(),
    };
    let mut on_token = |_| Ok(Continuation::Continue);
    generate(
        decoder,
        &mut fork,
        &last,
        &generation,
        &keep_going,
        &mut on_token,
    )?;
    Ok((understood, start.elapsed().as_secs_f64() - understood))
}

/// Text tokens, equal in every call.
fn tokens(n: usize, vocab_size: usize) -> Vec<Token> {
    let id = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 7) % vocab_size.max(1);
    (0..n).map(|i| Token::Text(id(i) as u32)).collect()
}

fn expected_bytes(spec: &DecoderSpec, options: &ContextOptions, kv_bytes: usize) -> u64 {
    let two_blocks = KvCache::bytes_for(spec, 2 * BLOCK_TOKENS, options.kv_dtype);
    options.weight_bytes + (kv_bytes + two_blocks) as u64 + WORKING_BYTES
}

/// The first eight bytes of the digest, in hexadecimal.
fn digest(numbers: &[f32]) -> String {
    let mut digest = Sha256::new();
    for number in numbers {
        digest.update(number.to_le_bytes());
    }
    let bytes = digest.finalize();
    bytes.iter().take(8).map(|b| format!("{b:02x}")).collect()
}
