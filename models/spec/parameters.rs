//! Parameter counts of an encoder and its connector, for plans without weights.

use super::{
    conv_net::{ConvNetSpec, Convolution},
    encoder::{
        DualEncoderSpec, EncoderSpec, NativeVitSpec, NormKind, TextEncoderSpec, VisionPool, VitSpec,
    },
    features::{ConnectorStep, FeatureSpec, NativeSpec, Newline, SquareSpec},
};
use crate::error::Result;

impl FeatureSpec {
    /// Number of parameters of encoder and connector, for a decoder of `hidden` channels.
    pub fn parameters(&self, hidden: usize) -> usize {
        match self {
            Self::Square(spec) => square(spec, hidden),
            Self::Native(spec) => native(spec),
        }
    }
}

impl VitSpec {
    /// Numbers of the tower, without a classifier.
    pub fn parameters(&self) -> usize {
        vit(self)
    }
}

impl DualEncoderSpec {
    /// Numbers of both towers and of what compares them.
    pub fn parameters(&self) -> usize {
        let width = self.vision.encoder.hidden_size;
        let projection = if self.vision_projection {
            matrix(width, self.embedding_size, false)
        } else {
            0
        };
        let scale_and_bias = 1 + usize::from(self.logit_bias);
        vit(&self.vision) + projection + text(&self.text, self.embedding_size) + scale_and_bias
    }
}

impl ConvNetSpec {
    /// Numbers of the network, without a classifier.
    ///
    /// # Errors
    /// As [`ConvNetSpec::convolutions`].
    pub fn parameters(&self) -> Result<usize> {
        let convolutions = self.convolutions(SIDE)?;
        let numbers = |conv: &Convolution| {
            let weights = conv.kernel * conv.kernel * conv.inputs * conv.out;
            weights + conv.numbers_a_channel * conv.out
        };
        Ok(convolutions.iter().map(numbers).sum())
    }
}

/// A side at which every layer has pixels; numbers do not depend on it.
const SIDE: usize = 1024;

fn text(spec: &TextEncoderSpec, embedding_size: usize) -> usize {
    let width = spec.encoder.hidden_size;
    let table = (spec.vocab_size + spec.max_position_embeddings) * width;
    let last_norm = norm(spec.encoder.norm, width);
    let projection = matrix(width, embedding_size, spec.projection_bias);
    table + blocks(&spec.encoder) + last_norm + projection
}

fn square(spec: &SquareSpec, hidden: usize) -> usize {
    let newline = match spec.video_newline {
        Newline::None => 0,
        Newline::End | Newline::Frame | Newline::Grid => hidden,
    };
    let width = spec.vision.encoder.hidden_size;
    vit(&spec.vision) + connector(&spec.connector, width) + newline
}

fn native(spec: &NativeSpec) -> usize {
    let width = spec.vision.encoder.hidden_size;
    let deep = spec
        .deepstack
        .iter()
        .map(|deep| deep.blocks.len() * connector(&deep.connector, width));
    native_vit(&spec.vision) + connector(&spec.connector, width) + deep.sum::<usize>()
}

/// Parameters of a linear layer.
fn matrix(inputs: usize, outputs: usize, bias: bool) -> usize {
    inputs * outputs + if bias { outputs } else { 0 }
}

fn norm(kind: NormKind, width: usize) -> usize {
    match kind {
        NormKind::Layer => 2 * width,
        NormKind::Rms => width,
    }
}

fn blocks(spec: &EncoderSpec) -> usize {
    let (width, inner) = (spec.hidden_size, spec.intermediate_size);
    let up = if spec.gated { 2 } else { 1 };
    let scales = if spec.layer_scale { 2 * width } else { 0 };
    let qk_norms = if spec.qk_norm { 2 * width } else { 0 };
    let attention = 3 * matrix(width, width, spec.qkv_bias) + matrix(width, width, true) + qk_norms;
    let feed_forward = up * matrix(width, inner, true) + matrix(inner, width, true);
    spec.num_hidden_layers * (attention + feed_forward + 2 * norm(spec.norm, width) + scales)
}

fn vit(spec: &VitSpec) -> usize {
    let width = spec.encoder.hidden_size;
    let norms = usize::from(spec.pre_norm) + usize::from(spec.post_norm);
    let class = if spec.class_token { width } else { 0 };
    // One query, the matrices of attention and of a feed-forward layer, and a norm.
    let head = match spec.pool {
        Some(VisionPool::Attention) => {
            let inner = spec.encoder.intermediate_size;
            let mlp = matrix(width, inner, true) + matrix(inner, width, true);
            width + 4 * matrix(width, width, true) + mlp + 2 * width
        }
        _ => 0,
    };
    let patches = matrix(
        3 * spec.patch_size * spec.patch_size,
        width,
        spec.patch_bias,
    );
    let around = patches + class + spec.tokens() * width + 2 * width * norms + head;
    blocks(&spec.encoder) + around
}

fn native_vit(spec: &NativeVitSpec) -> usize {
    let width = spec.encoder.hidden_size;
    let positions = spec.num_position_embeddings.unwrap_or(0) * width;
    blocks(&spec.encoder) + matrix(spec.patch_len(), width, spec.patch_bias) + positions
}

fn connector(steps: &[ConnectorStep], mut width: usize) -> usize {
    let mut sum = 0;
    for step in steps {
        match step {
            ConnectorStep::Linear { out, bias, .. } => {
                sum += matrix(width, *out, *bias);
                width = *out;
            }
            ConnectorStep::Norm { kind, .. } => sum += norm(*kind, width),
            ConnectorStep::Merge { .. } => width *= 4,
            ConnectorStep::Activation { .. } | ConnectorStep::Pool { .. } => {}
        }
    }
    sum
}
