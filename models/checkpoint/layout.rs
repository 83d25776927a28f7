//! All tensors of a model, by name and shape: the one list that importers,
//! `models verify` and loaders share.

use crate::spec::{DecoderSpec, ModelSpec, VqganSpec, rope_scaling::RopeScaling};

/// A tensor's name in a model directory and its shape.
pub type NamedShape = (String, Vec<usize>);

/// Divisors of RoPE's frequencies, `[d/2]`, where the specification has them stored.
pub const ROPE_DIVISORS: &str = "model.rope_divisors";

/// All tensors of a model: the decoder's, then the VQGAN's.
pub fn model_tensors(spec: &ModelSpec) -> Vec<NamedShape> {
    let mut tensors = decoder_tensors(&spec.decoder);
    if let Some(vqgan) = &spec.vqgan {
        tensors.extend(vqgan_tensors(vqgan));
    }
    tensors
}

/// The tensors that a decoder of text and codes has in addition to a text decoder's: embedding and head of codes.
pub const OF_CODES: [&str; 2] = ["model.vision_embed_tokens.weight", "vision_head.weight"];

/// The decoder's tensors under their Hugging Face names, matrices as `[out, in]`.
pub fn decoder_tensors(spec: &DecoderSpec) -> Vec<NamedShape> {
    let hidden = spec.hidden_size;
    let mut tensors = vec![named(
        "model.embed_tokens.weight",
        &[spec.vocab_size, hidden],
    )];
    if let Some(vision) = spec.vision_vocab_size {
        tensors.push(named(OF_CODES[0], &[vision, hidden]));
    }
    for layer in 0..spec.num_hidden_layers {
        for (name, shape) in layer_tensors(spec) {
            tensors.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    tensors.push(named("model.norm.weight", &[hidden]));
    if spec.rope_scaling == Some(RopeScaling::Stored) {
        tensors.push(named(ROPE_DIVISORS, &[spec.head_dim() / 2]));
    }
    if !spec.tie_word_embeddings {
        tensors.push(named("lm_head.weight", &[spec.vocab_size, hidden]));
    }
    if let Some(vision) = spec.vision_vocab_size {
        tensors.push(named(OF_CODES[1], &[vision, hidden]));
    }
    tensors
}

/// The feed-forward layer's matrices, or those of all experts.
fn feed_forward_tensors(spec: &DecoderSpec) -> Vec<NamedShape> {
    let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
    let Some(experts) = spec.experts else {
        return vec![
            named("mlp.gate_proj.weight", &[inner, hidden]),
            named("mlp.up_proj.weight", &[inner, hidden]),
            named("mlp.down_proj.weight", &[hidden, inner]),
        ];
    };
    let n = experts.num_local_experts;
    let mut tensors = vec![named("block_sparse_moe.gate.weight", &[n, hidden])];
    for expert in 0..n {
        for (part, shape) in [
            ("w1", [inner, hidden]),
            ("w2", [hidden, inner]),
            ("w3", [inner, hidden]),
        ] {
            let name = format!("block_sparse_moe.experts.{expert}.{part}.weight");
            tensors.push(named(&name, &shape));
        }
    }
    tensors
}

/// One decoder block's tensors, without the `model.layers.N.` in front.
pub fn layer_tensors(spec: &DecoderSpec) -> Vec<NamedShape> {
    let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
    let queries = spec.num_attention_heads * spec.head_dim();
    let keys = spec.n_kv_heads() * spec.head_dim();
    let mut tensors = vec![
        named("input_layernorm.weight", &[hidden]),
        named("self_attn.q_proj.weight", &[queries, hidden]),
        named("self_attn.k_proj.weight", &[keys, hidden]),
        named("self_attn.v_proj.weight", &[keys, hidden]),
        named("self_attn.o_proj.weight", &[hidden, queries]),
        named("post_attention_layernorm.weight", &[hidden]),
    ];
    tensors.extend(feed_forward_tensors(spec));
    let d = spec.head_dim();
    for (is_there, name, n) in [
        (spec.qkv_bias, "self_attn.q_proj.bias", queries),
        (spec.qkv_bias, "self_attn.k_proj.bias", keys),
        (spec.qkv_bias, "self_attn.v_proj.bias", keys),
        (spec.attention_output_bias, "self_attn.o_proj.bias", hidden),
        (spec.mlp_bias, "mlp.gate_proj.bias", inner),
        (spec.mlp_bias, "mlp.up_proj.bias", inner),
        (spec.mlp_bias, "mlp.down_proj.bias", hidden),
        (spec.qk_norm, "self_attn.q_norm.weight", d),
        (spec.qk_norm, "self_attn.k_norm.weight", d),
    ] {
        if is_there {
            tensors.push(named(name, &[n]));
        }
    }
    tensors
}

/// The VQGAN's tensors: `vqgan.` and the flax path, kernels as `[h, w, in, out]` (`lwm/vqgan.py`).
pub fn vqgan_tensors(spec: &VqganSpec) -> Vec<NamedShape> {
    let mut list = VqganLayout {
        tensors: Vec::new(),
    };
    list.encoder(spec);
    list.decoder(spec);
    list.conv("quant_conv", 1, spec.z_channels, spec.quantized_embed_dim);
    list.conv(
        "post_quant_conv",
        1,
        spec.quantized_embed_dim,
        spec.z_channels,
    );
    list.push(
        "quantize.embeddings",
        &[spec.num_embeddings, spec.quantized_embed_dim],
    );
    list.tensors
}

/// Colour channels of a frame.
const COLOURS: usize = 3;

struct VqganLayout {
    tensors: Vec<NamedShape>,
}

impl VqganLayout {
    fn push(&mut self, name: &str, shape: &[usize]) {
        self.tensors.push(named(&format!("vqgan.{name}"), shape));
    }

    fn conv(&mut self, name: &str, side: usize, input: usize, output: usize) {
        self.push(&format!("{name}.kernel"), &[side, side, input, output]);
        self.push(&format!("{name}.bias"), &[output]);
    }

    fn group_norm(&mut self, name: &str, channels: usize) {
        self.push(&format!("{name}.scale"), &[channels]);
        self.push(&format!("{name}.bias"), &[channels]);
    }

    fn resnet(&mut self, name: &str, input: usize, output: usize) {
        self.group_norm(&format!("{name}.GroupNorm_0"), input);
        self.conv(&format!("{name}.Conv_0"), 3, input, output);
        self.group_norm(&format!("{name}.GroupNorm_1"), output);
        self.conv(&format!("{name}.Conv_1"), 3, output, output);
        if input != output {
            self.conv(&format!("{name}.Conv_2"), 1, input, output);
        }
    }

    fn middle(&mut self, side: &str, channels: usize) {
        for i in 0..2 {
            self.resnet(
                &format!("{side}.MidBlock_0.ResnetBlock_{i}"),
                channels,
                channels,
            );
        }
    }

    fn encoder(&mut self, spec: &VqganSpec) {
        self.conv("encoder.Conv_0", 3, COLOURS, spec.hidden_channels);
        let mut channels = spec.hidden_channels;
        for (level, mult) in spec.channel_mult.iter().enumerate() {
            let block = format!("encoder.DownsamplingBlock_{level}");
            let output = spec.hidden_channels * mult;
            for i in 0..spec.num_res_blocks {
                self.resnet(&format!("{block}.ResnetBlock_{i}"), channels, output);
                channels = output;
            }
            if level + 1 < spec.channel_mult.len() {
                self.conv(
                    &format!("{block}.Downsample_0.Conv_0"),
                    3,
                    channels,
                    channels,
                );
            }
        }
        self.middle("encoder", channels);
        self.group_norm("encoder.GroupNorm_0", channels);
        self.conv("encoder.Conv_1", 3, channels, spec.z_channels);
    }

    /// `UpsamplingBlock_0` is the deepest level, which runs first.
    fn decoder(&mut self, spec: &VqganSpec) {
        let deepest = spec.channel_mult.last().copied().unwrap_or(1);
        let mut channels = spec.hidden_channels * deepest;
        self.conv("decoder.Conv_0", 3, spec.z_channels, channels);
        self.middle("decoder", channels);
        for (k, mult) in spec.channel_mult.iter().rev().enumerate() {
            let block = format!("decoder.UpsamplingBlock_{k}");
            let output = spec.hidden_channels * mult;
            for i in 0..=spec.num_res_blocks {
                self.resnet(&format!("{block}.ResnetBlock_{i}"), channels, output);
                channels = output;
            }
            if k + 1 < spec.channel_mult.len() {
                self.conv(&format!("{block}.Upsample_0.Conv_0"), 3, channels, channels);
            }
        }
        self.group_norm("decoder.GroupNorm_0", channels);
        self.conv("decoder.Conv_1", 3, channels, COLOURS);
    }
}

fn named(name: &str, shape: &[usize]) -> NamedShape {
    (name.to_owned(), shape.to_vec())
}
