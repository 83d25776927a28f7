//! The tiny decoders of `tests/golden/llama` and `tests/golden/e2e`, in the layout
//! of a model directory: read here by other code than the importer's.

use std::collections::BTreeMap;

use half::bf16;
use longreel_models::{
    checkpoint::weights::Weights,
    context::vocab::Token,
    llama::{Decoder, Unpadded},
    spec::{DecoderSpec, RopePairs},
};
use safetensors::{Dtype, tensor::TensorView};

use crate::support::golden::{self, Golden};

/// Shape and elements of one tensor.
pub type Array = (Vec<usize>, Vec<f32>);

/// Specification and weights, to be changed before they are loaded.
#[derive(Clone)]
pub struct Tiny {
    pub spec: DecoderSpec,
    pub tensors: BTreeMap<String, Array>,
}

/// `[rows, columns]` → `[columns, rows]`.
fn transposed(data: &[f32], rows: usize, columns: usize) -> Array {
    let at = |c: usize, r: usize| data[r * columns + c];
    let elements = (0..columns).flat_map(|c| (0..rows).map(move |r| (c, r)));
    (
        vec![columns, rows],
        elements.map(|(c, r)| at(c, r)).collect(),
    )
}

impl Tiny {
    /// The decoder of `llama/`.
    pub fn golden() -> Self {
        let file = Golden::open("llama/weights.safetensors");
        let flax = file
            .names()
            .into_iter()
            .map(|name| (name.clone(), (file.shape(&name), file.f32(&name))));
        Self::from_flax(&flax.collect())
    }

    /// The decoder of `e2e/`, whose only file is LWM's parameter stream.
    pub fn end_to_end() -> Self {
        let bytes = std::fs::read(golden::path("e2e/params")).unwrap();
        let mut rest = bytes.as_slice();
        let mut flax = BTreeMap::new();
        while !rest.is_empty() {
            let (name, array) = stream_entry(&mut rest);
            flax.insert(name, array);
        }
        Self::from_flax(&flax)
    }

    /// Unstacks and transposes flax's arrays; the sizes are theirs.
    fn from_flax(flax: &BTreeMap<String, Array>) -> Self {
        let shape = |name: &str| flax[name].0.as_slice();
        let mlp = shape("transformer/h/scan_decoder/feed_forward/w1/kernel");
        let (layers, hidden) = (mlp[0], mlp[1]);
        let spec = DecoderSpec {
            vocab_size: shape("transformer/wte/embedding")[0],
            vision_vocab_size: Some(shape("transformer/vte/embedding")[0]),
            hidden_size: hidden,
            intermediate_size: mlp[2],
            num_hidden_layers: layers,
            num_attention_heads: hidden / 16,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: if layers == 2 { 1024 } else { 4096 },
            rms_norm_eps: 1e-6,
            rope_theta: 5e7,
            rope_pairs: RopePairs::Adjacent,
            tie_word_embeddings: false,
            sliding_window: None,
            qkv_bias: false,
            attention_output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            experts: None,
            rope_scaling: None,
            mrope: None,
            deepstack_layers: 0,
        };
        let mut tensors = BTreeMap::new();
        for (to, from) in [
            ("model.embed_tokens", "transformer/wte/embedding"),
            ("model.vision_embed_tokens", "transformer/vte/embedding"),
            ("model.norm", "transformer/ln_f/kernel"),
        ] {
            tensors.insert(format!("{to}.weight"), flax[from].clone());
        }
        for head in ["lm_head", "vision_head"] {
            let (shape, data) = &flax[&format!("{head}/kernel")];
            tensors.insert(
                format!("{head}.weight"),
                transposed(data, shape[0], shape[1]),
            );
        }
        for (to, from) in [
            ("self_attn.q_proj", "attention/wq"),
            ("self_attn.k_proj", "attention/wk"),
            ("self_attn.v_proj", "attention/wv"),
            ("self_attn.o_proj", "attention/wo"),
            ("mlp.gate_proj", "feed_forward/w1"),
            ("mlp.down_proj", "feed_forward/w2"),
            ("mlp.up_proj", "feed_forward/w3"),
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ] {
            let (shape, data) = &flax[&format!("transformer/h/scan_decoder/{from}/kernel")];
            for (layer, data) in data.chunks(data.len() / shape[0]).enumerate() {
                let array = match shape[1..] {
                    [inputs, outputs] => transposed(data, inputs, outputs),
                    _ => (shape[1..].to_vec(), data.to_vec()),
                };
                tensors.insert(format!("model.layers.{layer}.{to}.weight"), array);
            }
        }
        Self { spec, tensors }
    }

    /// Written as a model directory's tensors and loaded from there.
    pub fn load(&self, dtype: Dtype) -> Decoder {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, data))| (name, shape, stored(data, dtype)))
            .collect();
        let views = bytes.iter().map(|(name, shape, data)| {
            (*name, TensorView::new(dtype, shape.to_vec(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
        let mut weights = Weights::open(dir.path()).unwrap();
        let decoder = Decoder::load(&self.spec, &mut weights).unwrap();
        weights.finish().unwrap();
        decoder
    }

    /// The weight of a matrix.
    pub fn matrix(&mut self, name: &str) -> &mut Vec<f32> {
        &mut self.tensors.get_mut(name).unwrap().1
    }
}

fn stored(data: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::BF16 => data
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// Row `row` of a golden case, pads dropped; `None` marks stand for text only and no pads.
pub fn row(file: &Golden, case: &str, row: usize) -> Unpadded {
    let ids = format!("{case}.input_ids");
    let n = file.shape(&ids)[1];
    let range = row * n..(row + 1) * n;
    let ids: Vec<u32> = file.i32(&ids)[range.clone()]
        .iter()
        .map(|&id| id.try_into().unwrap())
        .collect();
    let vision = format!("{case}.vision_masks");
    let vision = match file.names().contains(&vision) {
        true => file.u8(&vision)[range.clone()]
            .iter()
            .map(|&m| m != 0)
            .collect(),
        false => vec![false; n],
    };
    let real: Vec<bool> = file.i32(&format!("{case}.attention_mask"))[range]
        .iter()
        .map(|&m| m != 0)
        .collect();
    Unpadded::from_left_padded(&ids, &vision, &real).unwrap()
}

/// Tokens of both modalities without meaning.
pub fn some_tokens(n: usize) -> Vec<Token> {
    let token = |i: u32| {
        if i.is_multiple_of(3) {
            Token::Text(i * 37 % 320)
        } else {
            Token::Vision(i * 53 % 144)
        }
    };
    (0..n as u32).map(token).collect()
}

/// A msgpack value, of the kinds that flax writes.
enum Value {
    Number(usize),
    Bytes(Vec<u8>),
    Array(Vec<Value>),
}

impl Value {
    fn bytes(self) -> Vec<u8> {
        let Self::Bytes(bytes) = self else {
            panic!("expected bytes")
        };
        bytes
    }

    fn array<const N: usize>(self) -> [Value; N] {
        let Self::Array(values) = self else {
            panic!("expected an array")
        };
        values.try_into().ok().unwrap()
    }
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(n);
    *rest = tail;
    head
}

fn number(rest: &mut &[u8], n: usize) -> usize {
    take(rest, n)
        .iter()
        .fold(0, |value, &byte| value << 8 | usize::from(byte))
}

fn value(rest: &mut &[u8]) -> Value {
    let tag = take(rest, 1)[0];
    match tag {
        0..=0x7f => Value::Number(tag.into()),
        0x90..=0x9f => Value::Array((0..tag & 15).map(|_| value(rest)).collect()),
        0xa0..=0xbf => Value::Bytes(take(rest, (tag & 31).into()).to_vec()),
        0xc4..=0xc6 | 0xc7..=0xc9 | 0xd9..=0xdb => {
            let first = match tag {
                0xc4..=0xc6 => 0xc4,
                0xc7..=0xc9 => 0xc7,
                _ => 0xd9,
            };
            let n = number(rest, 1 << (tag - first));
            // An extension says its type first; the only one here is an array.
            take(rest, usize::from(first == 0xc7));
            Value::Bytes(take(rest, n).to_vec())
        }
        0xcc..=0xce => Value::Number(number(rest, 1 << (tag - 0xcc))),
        _ => panic!("msgpack tag {tag:#x}"),
    }
}

/// One parameter of the stream: its path, and a bf16 array.
fn stream_entry(rest: &mut &[u8]) -> (String, Array) {
    let [path, document] = value(rest).array();
    let Value::Array(path) = path else {
        panic!("expected a path")
    };
    let parts: Vec<String> = path
        .into_iter()
        .map(|p| String::from_utf8(p.bytes()).unwrap())
        .collect();
    let array = value(&mut document.bytes().as_slice()).bytes();
    let [shape, dtype, data] = value(&mut array.as_slice()).array();
    assert_eq!(dtype.bytes(), b"bfloat16");
    let Value::Array(shape) = shape else {
        panic!("expected a shape")
    };
    let sizes = shape.into_iter().map(|n| match n {
        Value::Number(n) => n,
        _ => panic!("expected a size"),
    });
    let data = data
        .bytes()
        .chunks_exact(2)
        .map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
        .collect();
    (parts.join("/"), (sizes.collect(), data))
}
