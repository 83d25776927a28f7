//! A decoder of stated size with random weights, for measuring: included by the
//! benches that need one.

use std::path::Path;

use half::bf16;
use longreel_models::{
    checkpoint::weights::Weights,
    context::vocab::Token,
    llama::Decoder,
    spec::{DecoderSpec, RopePairs},
};
use safetensors::{Dtype, tensor::TensorView};

/// Vigna's xorshift64*.
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Uniform in `0..below`.
    pub fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((word >> 32) as usize * below) >> 32
    }

    /// Uniform around zero with this standard deviation.
    pub fn number(&mut self, deviation: f32) -> f32 {
        (self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * deviation * 3f32.sqrt()
    }

    /// Text tokens of a vocabulary of `ids`.
    pub fn tokens(&mut self, n: usize, ids: usize) -> Vec<Token> {
        (0..n)
            .map(|_| Token::Text(self.below(ids) as u32))
            .collect()
    }
}

/// Layers, hidden size, heads, key-value heads and feed-forward size of a text decoder with 512 ids.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub ffn: usize,
}

impl Size {
    /// The size in one line.
    pub fn words(self) -> String {
        let Self {
            layers,
            hidden,
            heads,
            kv_heads,
            ffn,
        } = self;
        format!(
            "{layers} layers, hidden {hidden}, {heads} heads of {}, {kv_heads} key-value heads, ffn {ffn}, 512 ids, bf16 weights",
            hidden / heads
        )
    }

    fn spec(self) -> DecoderSpec {
        DecoderSpec {
            vocab_size: 512,
            vision_vocab_size: None,
            hidden_size: self.hidden,
            intermediate_size: self.ffn,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: Some(self.kv_heads),
            head_dim: None,
            max_position_embeddings: 2 << 20,
            rms_norm_eps: 1e-6,
            rope_theta: 5e7,
            rope_pairs: RopePairs::Adjacent,
            tie_word_embeddings: false,
        }
    }
}

/// A decoder of `size`; matrices uniform, scaled by fan-in, norms ones.
pub fn decoder(size: Size) -> Decoder {
    let spec = size.spec();
    let dir = tempfile::tempdir().unwrap();
    write(&spec, &dir.path().join("model.safetensors"));
    let mut weights = Weights::open(dir.path()).unwrap();
    Decoder::load(&spec, &mut weights).unwrap()
}

fn write(spec: &DecoderSpec, path: &Path) {
    let (hidden, ffn) = (spec.hidden_size, spec.intermediate_size);
    let kv = spec.n_kv_heads() * spec.head_dim();
    let mut shapes = vec![
        (
            "model.embed_tokens".to_owned(),
            vec![spec.vocab_size, hidden],
        ),
        ("lm_head".to_owned(), vec![spec.vocab_size, hidden]),
        ("model.norm".to_owned(), vec![hidden]),
    ];
    for layer in 0..spec.num_hidden_layers {
        for (name, shape) in [
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    let mut random = Random::new(1);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let n: usize = shape.iter().product();
            let deviation = (shape[shape.len() - 1] as f32).sqrt().recip();
            let mut element = || {
                if shape.len() == 1 {
                    1.0
                } else {
                    random.number(deviation)
                }
            };
            let bytes = (0..n)
                .flat_map(|_| bf16::from_f32(element()).to_le_bytes())
                .collect();
            (format!("{name}.weight"), shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}
