//! A writer of GGUF files, for files that no other program writes.

use std::path::Path;

use half::bf16;
use longreel_models::spec::{DecoderSpec, RopePairs};

/// ggml's numbers of types.
pub const F32: u32 = 0;
pub const BF16: u32 = 30;

/// A value, of the kinds that tests need.
#[derive(Clone)]
pub enum Said {
    Number(u32),
    Small(u16),
    Float(f32),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<i32>),
}

/// A tensor as a file has it.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// The axis that moves fastest last.
    pub shape: Vec<usize>,
    pub kind: u32,
    pub bytes: Vec<u8>,
}

/// A file, to be changed before it is written.
#[derive(Clone, Default)]
pub struct GgufFile {
    pub values: Vec<(String, Said)>,
    pub tensors: Vec<Tensor>,
}

impl GgufFile {
    pub fn say(&mut self, key: &str, value: Said) {
        self.values.retain(|(other, _)| other != key);
        self.values.push((key.to_owned(), value));
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            put_text(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            let lengths = tensor.shape.iter().rev();
            lengths.for_each(|&n| out.extend((n as u64).to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(32);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        for tensor in &self.tensors {
            out.extend(&tensor.bytes);
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }

    /// The decoder of a model directory with its matrices in f32 or bf16, as llama.cpp's converter would write it.
    pub fn decoder_of(dir: &Path, kind: u32) -> Self {
        let spec = super::folders::answering(dir).unwrap().decoder;
        let mut weights = super::folders::weights(dir).unwrap();
        let mut file = Self::default();
        file.say_sizes(&spec);
        let list: Vec<(String, Vec<usize>)> = weights
            .list()
            .map(|(name, _, shape)| (name.to_owned(), shape.to_vec()))
            .collect();
        for (name, shape) in list {
            let Some(in_file) = name_in_file(&name) else {
                continue;
            };
            let tensor = weights.tensor(&name, &shape).unwrap();
            let mut data: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            if architecture(&spec) == "llama" && spec.rope_pairs == RopePairs::Halves {
                let columns = shape.get(1).copied().unwrap_or(1);
                match in_file.split('.').nth(2) {
                    Some("attn_q") => data = adjacent(&data, spec.num_attention_heads, columns),
                    Some("attn_k") => data = adjacent(&data, spec.n_kv_heads(), columns),
                    _ => {}
                }
            }
            let kind = if shape.len() == 1 { F32 } else { kind };
            file.tensors.push(Tensor {
                name: in_file,
                shape,
                kind,
                bytes: stored(&data, kind),
            });
        }
        file
    }

    fn say_sizes(&mut self, spec: &DecoderSpec) {
        let name = architecture(spec);
        self.say("general.architecture", Said::Text(name.to_owned()));
        for (key, n) in [
            ("block_count", spec.num_hidden_layers),
            ("context_length", spec.max_position_embeddings),
            ("embedding_length", spec.hidden_size),
            ("feed_forward_length", spec.intermediate_size),
            ("attention.head_count", spec.num_attention_heads),
            ("attention.head_count_kv", spec.n_kv_heads()),
            ("attention.key_length", spec.head_dim()),
            ("attention.value_length", spec.head_dim()),
        ] {
            self.say(&format!("{name}.{key}"), Said::Number(n as u32));
        }
        for (key, x) in [
            ("attention.layer_norm_rms_epsilon", spec.rms_norm_eps),
            ("rope.freq_base", spec.rope_theta),
        ] {
            self.say(&format!("{name}.{key}"), Said::Float(x as f32));
        }
    }
}

fn architecture(spec: &DecoderSpec) -> &'static str {
    match (spec.qk_norm, spec.qkv_bias) {
        (true, _) => "qwen3",
        (_, true) => "qwen2",
        _ => "llama",
    }
}

/// The name in a file of one of the decoder's text tensors.
fn name_in_file(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        "lm_head.weight" => return Some("output.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, end) = part.rsplit_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => panic!("{other}"),
    };
    Some(format!("blk.{layer}.{part}.{end}"))
}

/// `[heads · d, columns]`, rows of each head from pairs `d/2` apart to adjacent ones.
fn adjacent(data: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(data.len());
    for head in data.chunks(data.len() / heads) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks(columns).zip(second.chunks(columns)) {
            out.extend(a);
            out.extend(b);
        }
    }
    out
}

fn stored(data: &[f32], kind: u32) -> Vec<u8> {
    match kind {
        F32 => data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        BF16 => {
            let narrow = data.iter().map(|&v| bf16::from_f32(v));
            narrow.flat_map(bf16::to_le_bytes).collect()
        }
        other => panic!("type {other}"),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Said) {
    let kind = |out: &mut Vec<u8>, n: u32| out.extend(n.to_le_bytes());
    let count = |out: &mut Vec<u8>, n: usize| out.extend((n as u64).to_le_bytes());
    match value {
        Said::Small(n) => {
            kind(out, 2);
            out.extend(n.to_le_bytes());
        }
        Said::Number(n) => {
            kind(out, 4);
            out.extend(n.to_le_bytes());
        }
        Said::Float(x) => {
            kind(out, 6);
            out.extend(x.to_le_bytes());
        }
        Said::Text(text) => {
            kind(out, 8);
            put_text(out, text);
        }
        Said::Texts(texts) => {
            kind(out, 9);
            kind(out, 8);
            count(out, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Said::Numbers(numbers) => {
            kind(out, 9);
            kind(out, 5);
            count(out, numbers.len());
            numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
    }
}
