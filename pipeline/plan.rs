//! Plans: tokens, bytes and operations of a job, before anything runs.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use longreel_models::{
    attention::kv_cache::{BLOCK_TOKENS, KvCache, KvDtype},
    spec::{
        DecoderSpec, ModelSpec, VqganSpec,
        conv_net::Convolution,
        encoder::VitSpec,
        features::{ConnectorStep, FeatureSpec, NativeSpec, SquareSpec},
        system::SystemSpec,
    },
};
use rayon::prelude::*;
use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    reel::{ReelContent, ReelHeader},
};

/// The inputs of a plan.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Number of frames.
    pub frames: u64,
    /// Tokens of one frame, text around it included; rounded up where a step has several frames.
    pub tokens_per_frame: u64,
    /// Tokens of all frames.
    pub vision_tokens: u64,
    /// Tokens of the prompt around the frames.
    pub text_tokens: u64,
    /// Maximum tokens of the answer.
    pub max_new_tokens: u64,
    /// Element type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Contexts held at the same time: two for guided generation.
    pub contexts: u64,
    /// Processes that share every context: each holds all weights and its part of the keys and values.
    pub processes: u64,
    /// Bytes of the weights in memory.
    pub weight_bytes: u64,
    /// Bytes of them that copies of quantized matrices take, which can be done without.
    pub copied_bytes: u64,
    /// Ranks of all processes.
    pub ranks: u64,
    /// Tokens of a prefill chunk per rank.
    pub prefill_chunk: u64,
}

/// Tokens, bytes and operations of a job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Number of frames.
    pub frames: u64,
    /// Tokens of one frame: codes and terminator, or features and the text around them.
    pub tokens_per_frame: u64,
    /// Tokens of all frames.
    pub vision_tokens: u64,
    /// Tokens of the prompt, frames included.
    pub prompt_tokens: u64,
    /// Tokens of prompt and answer.
    pub context_tokens: u64,
    /// Maximum context of the model.
    pub context_limit: u64,
    /// Maximum frames that fit with this question and answer.
    pub frames_that_fit: u64,
    /// Bytes of the weights as stored.
    pub weight_bytes: u64,
    /// Bytes of copies of quantized matrices among them, which can be done without.
    #[serde(skip_serializing_if = "is_zero")]
    pub copied_bytes: u64,
    /// Bytes of keys and values for one token over all layers.
    pub kv_bytes_per_token: u64,
    /// Bytes of keys and values for the whole context.
    pub kv_bytes: u64,
    /// Bytes of keys and values in one process.
    pub kv_bytes_per_process: u64,
    /// Bytes of weights, keys, values and working memory in one process.
    pub total_bytes: u64,
    /// Available bytes of this machine, where known.
    pub available_bytes: Option<u64>,
    /// Operations of the linear layers over the prompt (2 per multiply-add).
    pub prefill_linear_flops: f64,
    /// Operations of causal attention over the prompt.
    pub prefill_attention_flops: f64,
    /// Operations of one generated token at the end of the context.
    pub decode_flops_per_token: f64,
    /// Operations of the frame tokenizer over all frames.
    pub encode_flops: f64,
}

/// The question assumed where none is given.
pub const SHORT_QUESTION: &str = "What is the video about?";

/// Working memory besides weights, cache and prefill: decoded pictures in the
/// queues, the tokenizer's activations for one frame.
const WORKING_BYTES: u64 = 512 << 20;

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl Plan {
    /// The plan of `demand` on a model of `spec`.
    pub fn new(spec: &ModelSpec, demand: Demand, available_bytes: Option<u64>) -> Self {
        let decoder = &spec.decoder;
        let tokens_per_frame = demand.tokens_per_frame;
        let vision_tokens = demand.vision_tokens;
        let prompt_tokens = vision_tokens.saturating_add(demand.text_tokens);
        let context_tokens = prompt_tokens.saturating_add(demand.max_new_tokens);
        let context_limit = decoder.max_position_embeddings as u64;
        let room = context_limit
            .saturating_sub(demand.text_tokens)
            .saturating_sub(demand.max_new_tokens);
        let kv_bytes_of = |tokens: u64| {
            let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
            let one = KvCache::bytes_for(decoder, tokens, demand.kv_dtype) as u64;
            one.saturating_mul(demand.contexts)
        };
        let kv_bytes_per_token = kv_bytes_of(BLOCK_TOKENS as u64) / BLOCK_TOKENS as u64;
        let kv_bytes = kv_bytes_of(context_tokens);
        let blocks = context_tokens.div_ceil(BLOCK_TOKENS as u64);
        let own_blocks = blocks.div_ceil(demand.processes.max(1));
        let kv_bytes_per_process = kv_bytes_of(own_blocks.saturating_mul(BLOCK_TOKENS as u64));
        let working = WORKING_BYTES.saturating_add(prefill_bytes(decoder, &demand, prompt_tokens));
        Self {
            frames: demand.frames,
            tokens_per_frame,
            vision_tokens,
            prompt_tokens,
            context_tokens,
            context_limit,
            frames_that_fit: room.checked_div(tokens_per_frame).unwrap_or(0),
            weight_bytes: demand.weight_bytes,
            copied_bytes: demand.copied_bytes,
            kv_bytes_per_token,
            kv_bytes,
            kv_bytes_per_process,
            total_bytes: demand
                .weight_bytes
                .saturating_add(kv_bytes_per_process)
                .saturating_add(working),
            available_bytes,
            prefill_linear_flops: 2.0 * linear_weights(decoder) * prompt_tokens as f64,
            prefill_attention_flops: attention_flops(decoder, pairs(decoder, prompt_tokens)),
            decode_flops_per_token: 2.0 * (linear_weights(decoder) + head_weights(decoder))
                + attention_flops(decoder, seen(decoder, context_tokens) as f64),
            encode_flops: encode_flops(spec, &demand),
        }
    }

    /// Tokens that text and answer leave to frames.
    pub fn room(&self) -> u64 {
        let text = self.context_tokens - self.vision_tokens;
        self.context_limit.saturating_sub(text)
    }

    /// Bytes available to keys and values of this process; `None` where unknown.
    pub fn kv_room(&self) -> Option<u64> {
        let others = self.total_bytes.saturating_sub(self.kv_bytes_per_process);
        Some(self.available_bytes?.saturating_sub(others))
    }

    /// `TooLarge`, with the numbers, for a job that does not fit the context or the memory.
    ///
    /// `option` is the option that sets the frames of each of `n_videos`, for the advice.
    pub fn check(&self, option: &str, n_videos: usize) -> Result<()> {
        if self.context_tokens > self.context_limit {
            return Err(Error::new(
                Kind::TooLarge,
                self.too_long(option, n_videos as u64),
            ));
        }
        if let Some(available) = self.available_bytes.filter(|&a| a < self.total_bytes) {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "this needs {} (weights {}, keys and values {}), the machine can give {}{}",
                    bytes(self.total_bytes),
                    bytes(self.weight_bytes),
                    bytes(self.kv_bytes_per_process),
                    bytes(available),
                    self.without_copies()
                ),
            ));
        }
        Ok(())
    }

    /// What can be done about copies of quantized matrices.
    fn without_copies(&self) -> String {
        match self.copied_bytes {
            0 => String::new(),
            copied => format!(
                ": --gguf-products exact takes {} less, and is slower",
                bytes(copied)
            ),
        }
    }

    fn too_long(&self, option: &str, n_videos: u64) -> String {
        let each = self.frames_that_fit / n_videos.max(1);
        let text = self.context_tokens - self.vision_tokens;
        if self.frames == 0 {
            return format!(
                "text and answer take {text} tokens, the model's context is {} tokens",
                self.context_limit
            );
        }
        if self.frames_that_fit == 0 {
            return format!(
                "question and answer take {text} tokens and one frame {}, the model's context is {} tokens: no frame fits",
                self.tokens_per_frame, self.context_limit
            );
        }
        format!(
            "{} frames and {text} tokens of question and answer make {} tokens, the model's context is {} tokens: \
             {} frames fit (try {option} {each})",
            self.frames, self.context_tokens, self.context_limit, self.frames_that_fit
        )
    }
}

/// What encoding frames takes: no context, no answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EncodePlan {
    /// Frames that will be seen.
    pub frames: u64,
    /// What each becomes, in words.
    pub content: String,
    /// Bytes of the reel, its header aside.
    pub reel_bytes: u64,
    /// Bytes of the weights in memory.
    pub weight_bytes: u64,
    /// Bytes of weights and working memory.
    pub total_bytes: u64,
    /// Bytes that this machine can give, where known.
    pub available_bytes: Option<u64>,
    /// Operations of the encoder over all frames (2 per multiply-add).
    pub encode_flops: f64,
}

impl EncodePlan {
    /// Counts what an encoder of `spec` takes on `frames` frames, each brought to `side` pixels and kept as `content`.
    ///
    /// # Errors
    /// `BadInput` for a network that such pictures do not go through.
    pub fn new(
        spec: &SystemSpec,
        side: usize,
        frames: u64,
        content: ReelContent,
        weight_bytes: u64,
        available_bytes: Option<u64>,
    ) -> Result<Self> {
        let header = ReelHeader {
            model: String::new(),
            model_modified_s: 0,
            content,
            videos: Vec::new(),
        };
        let record = header.record_bytes(0)? as u64;
        Ok(Self {
            frames,
            content: content.to_string(),
            reel_bytes: frames.saturating_mul(record),
            weight_bytes,
            total_bytes: weight_bytes.saturating_add(WORKING_BYTES),
            available_bytes,
            encode_flops: encoder_flops(spec, side)? * frames as f64,
        })
    }

    /// Refuses, with the numbers, what does not fit the memory.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn check(&self) -> Result<()> {
        match self.available_bytes {
            Some(available) if available < self.total_bytes => {
                let message = format!(
                    "this needs {} (weights {}), the machine can give {}",
                    bytes(self.total_bytes),
                    bytes(self.weight_bytes),
                    bytes(available)
                );
                Err(Error::new(Kind::TooLarge, message))
            }
            _ => Ok(()),
        }
    }
}

/// Operations of an encoder alone on one picture of `side` pixels.
fn encoder_flops(spec: &SystemSpec, side: usize) -> Result<f64> {
    Ok(match spec {
        SystemSpec::DualEncoder(spec) => {
            let width = spec.vision.encoder.hidden_size as f64;
            let projection = 2.0 * width * spec.embedding_size as f64;
            vit_flops(&spec.vision, spec.vision.encoder.num_hidden_layers) + projection
        }
        SystemSpec::Classifier(spec) => {
            // Positions are interpolated to the processor's pictures.
            let spec = VitSpec {
                image_size: side,
                ..spec.as_ref().clone()
            };
            vit_flops(&spec, spec.encoder.num_hidden_layers)
        }
        SystemSpec::ConvNet(spec) => spec.convolutions(side)?.iter().map(conv_flops).sum(),
        SystemSpec::Vqgan(spec) => vqgan_encode_flops(spec),
        SystemSpec::Answers(_) => 0.0,
    })
}

fn conv_flops(conv: &Convolution) -> f64 {
    let sizes = [
        conv.side,
        conv.side,
        conv.kernel,
        conv.kernel,
        conv.inputs,
        conv.out,
    ];
    2.0 * sizes.iter().map(|&n| n as f64).product::<f64>()
}

/// Operations of the first `blocks` blocks of a vision transformer on one picture.
fn vit_flops(spec: &VitSpec, blocks: usize) -> f64 {
    let [hidden, inner, tokens] = [
        spec.encoder.hidden_size,
        spec.encoder.intermediate_size,
        spec.tokens(),
    ]
    .map(|n| n as f64);
    let matrices = 4.0 * hidden * hidden + 2.0 * hidden * inner;
    let attention = 2.0 * tokens * hidden;
    2.0 * blocks as f64 * tokens * (matrices + attention)
}

/// This machine's speed in a short measurement.
#[derive(Debug, Clone, Copy)]
pub struct MachineSpeed {
    /// f32 operations per second of a matrix product on all threads.
    pub flops: f64,
    /// Bytes per second of reading memory on all threads.
    pub read_bytes_per_s: f64,
}

impl MachineSpeed {
    /// Measures for about a second.
    ///
    /// # Errors
    /// `Compute` when the product fails for lack of memory.
    pub fn measure() -> Result<Self> {
        Ok(Self {
            flops: measure_flops()?,
            read_bytes_per_s: measure_read(),
        })
    }
}

fn measure_flops() -> Result<f64> {
    const SIDE: usize = 1536;
    let a = Tensor::ones((SIDE, SIDE), DType::F32, &Device::Cpu)?;
    let once = || -> Result<f64> {
        let start = Instant::now();
        a.matmul(&a)?;
        Ok(2.0 * (SIDE as f64).powi(3) / start.elapsed().as_secs_f64())
    };
    let mut best = once()?;
    for _ in 0..4 {
        best = best.max(once()?);
    }
    Ok(best)
}

fn measure_read() -> f64 {
    const WORDS: usize = 32 << 20;
    let words = vec![1u64; WORDS];
    let once = || {
        let start = Instant::now();
        let sum: u64 = words
            .par_chunks(1 << 16)
            .map(|c| c.iter().fold(0u64, |s, w| s.wrapping_add(*w)))
            .sum();
        std::hint::black_box(sum);
        (WORDS * 8) as f64 / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}

/// `n` bytes for people, in binary units.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.2} {}", UNITS[unit])
    }
}

/// Working memory of one process in a prefill chunk: activations, and in a ring one partial result per rank.
fn prefill_bytes(d: &DecoderSpec, demand: &Demand, prompt_tokens: u64) -> u64 {
    let ranks = demand.ranks.max(1);
    let here = ranks / demand.processes.max(1);
    let least = if ranks > 1 { BLOCK_TOKENS as u64 } else { 1 };
    let chunk = demand.prefill_chunk.min(prompt_tokens).max(least);
    let activations = 6 * d.hidden_size + 3 * d.intermediate_size;
    let partial = d.num_attention_heads * (d.head_dim() + 1);
    let partials = if ranks > 1 { ranks } else { 0 }.saturating_mul(partial as u64);
    let of_token = partials
        .saturating_add(activations as u64)
        .saturating_mul(4);
    chunk.saturating_mul(of_token).saturating_mul(here.max(1))
}

/// Bytes that this process can allocate without swapping (Linux): what the
/// machine has, or less where the control group allows less.
pub fn available_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let machine = kib_of(&text, "MemAvailable:")?;
    Some(control_group_bytes().map_or(machine, |group| group.min(machine)))
}

/// All memory of this machine (Linux).
pub fn total_memory_bytes() -> Option<u64> {
    kib_of(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// Bytes left by the control group, counting file pages that it can drop; `None` without a limit.
fn control_group_bytes() -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let limit = number(read("memory.max")?)?;
    let used = number(read("memory.current")?)?;
    let stat = read("memory.stat")?;
    let files = stat
        .lines()
        .find_map(|l| l.strip_prefix("file ")?.parse::<u64>().ok())?;
    Some(limit.saturating_sub(used.saturating_sub(files)))
}

/// The value of `key` in a `/proc` table in KiB, as bytes.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Weights used for every token, without the heads.
fn linear_weights(d: &DecoderSpec) -> f64 {
    let (hidden, head) = (d.hidden_size as f64, d.head_dim() as f64);
    let queries = d.num_attention_heads as f64 * head;
    let keys = d.n_kv_heads() as f64 * head;
    let attention = hidden * (2.0 * queries + 2.0 * keys);
    let one = 3.0 * hidden * d.intermediate_size as f64;
    let feed_forward = d.experts.map_or(one, |experts| {
        let router = hidden * experts.num_local_experts as f64;
        router + experts.num_experts_per_tok as f64 * one
    });
    d.num_hidden_layers as f64 * (attention + feed_forward)
}

/// Weights of the text head.
fn head_weights(d: &DecoderSpec) -> f64 {
    d.hidden_size as f64 * d.vocab_size as f64
}

/// Keys visible to the last of `tokens` queries.
fn seen(d: &DecoderSpec, tokens: u64) -> u64 {
    d.sliding_window
        .map_or(tokens, |window| tokens.min(window as u64))
}

/// Visible query-key pairs of `tokens` tokens, counting half of the diagonal blocks.
pub(crate) fn pairs(d: &DecoderSpec, tokens: u64) -> f64 {
    let (all, seen) = (tokens as f64, seen(d, tokens) as f64);
    seen * all - seen * seen / 2.0
}

/// Operations of `pairs` query-key pairs: scores and weighted values.
pub(crate) fn attention_flops(d: &DecoderSpec, pairs: f64) -> f64 {
    4.0 * d.num_hidden_layers as f64 * d.num_attention_heads as f64 * d.head_dim() as f64 * pairs
}

/// Operations of the vision encoder on all frames.
fn encode_flops(spec: &ModelSpec, demand: &Demand) -> f64 {
    let frames = demand.frames as f64;
    if let Some(vqgan) = &spec.vqgan {
        return vqgan_encode_flops(vqgan) * frames;
    }
    match spec.vision.as_ref().map(|vision| &vision.features) {
        Some(FeatureSpec::Square(spec)) => feature_flops(spec) * frames,
        Some(FeatureSpec::Native(spec)) => native_flops(spec, demand),
        None => 0.0,
    }
}

/// Operations of a native-resolution encoder on all frames: four patches per feature; text tokens around them are
/// counted as features.
fn native_flops(spec: &NativeSpec, demand: &Demand) -> f64 {
    let (vision, encoder) = (&spec.vision, &spec.vision.encoder);
    let [hidden, inner, blocks] = [
        encoder.hidden_size,
        encoder.intermediate_size,
        encoder.num_hidden_layers,
    ]
    .map(|n| n as f64);
    let rows = demand.vision_tokens as f64;
    let of_step = 4.0 * (demand.tokens_per_frame * vision.temporal_patch_size as u64) as f64;
    let (full, seen) = match &vision.windows {
        Some(windows) => {
            let side = (windows.window_size / vision.patch_size.max(1)) as f64;
            (windows.full_attention_blocks.len() as f64, side * side)
        }
        None => (blocks, 0.0),
    };
    let matrices = 4.0 * hidden * hidden + if encoder.gated { 3.0 } else { 2.0 } * hidden * inner;
    let attention = 2.0 * hidden * (full * of_step + (blocks - full) * seen.min(of_step));
    let deep = spec.deepstack.as_ref();
    let deep = deep.map_or(0.0, |d| {
        d.blocks.len() as f64 * connector_flops(&d.connector, 4.0 * hidden)
    });
    let connector = connector_flops(&spec.connector, 4.0 * hidden) + deep;
    2.0 * rows * (4.0 * (blocks * matrices + attention) + connector)
}

/// Multiply-adds of a connector's linear layers on one row of `width` channels.
fn connector_flops(steps: &[ConnectorStep], mut width: f64) -> f64 {
    let mut all = 0.0;
    for step in steps {
        if let ConnectorStep::Linear { out, .. } = step {
            all += width * *out as f64;
            width = *out as f64;
        }
    }
    all
}

/// Operations of a vision transformer's blocks and its connector on one frame.
fn feature_flops(spec: &SquareSpec) -> f64 {
    let hidden = spec.vision.encoder.hidden_size as f64;
    let connector = spec.rows() as f64 * connector_flops(&spec.connector, hidden);
    vit_flops(&spec.vision, spec.blocks().unwrap_or(0)) + 2.0 * connector
}

/// Operations of the VQGAN's encoder on one frame, by its convolutions.
fn vqgan_encode_flops(v: &VqganSpec) -> f64 {
    let conv = |side: usize, taps: usize, cin: usize, cout: usize| {
        2.0 * [side, side, taps, cin, cout]
            .map(|n| n as f64)
            .iter()
            .product::<f64>()
    };
    let mut side = v.resolution;
    let mut channels = v.hidden_channels;
    let mut flops = conv(side, 9, 3, channels);
    let res_block = |side: usize, cin: usize, cout: usize| {
        let shortcut = if cin == cout {
            0.0
        } else {
            conv(side, 1, cin, cout)
        };
        conv(side, 9, cin, cout) + conv(side, 9, cout, cout) + shortcut
    };
    for (level, mult) in v.channel_mult.iter().enumerate() {
        let out = v.hidden_channels * mult;
        for _ in 0..v.num_res_blocks {
            flops += res_block(side, channels, out);
            channels = out;
        }
        if level + 1 < v.channel_mult.len() {
            side /= 2;
            flops += conv(side, 9, channels, channels);
        }
    }
    flops += 2.0 * res_block(side, channels, channels);
    flops +=
        conv(side, 9, channels, v.z_channels) + conv(side, 1, v.z_channels, v.quantized_embed_dim);
    flops + 2.0 * (side * side * v.num_embeddings * v.quantized_embed_dim) as f64
}

/// Peak memory of this process (Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    kib_of(
        &std::fs::read_to_string("/proc/self/status").ok()?,
        "VmHWM:",
    )
}
