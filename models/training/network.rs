//! The decoder for training (`lwm/llama.py`, `lwm/vision_llama.py`): the same network as `llama`, over whole
//! sequences and with gradients, on one rank or over a ring.

use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor, Var, backprop::GradStore};
use serde::{Deserialize, Serialize};

use crate::{
    attention::ring::Ring,
    checkpoint::layout::decoder_tensors,
    context::vocab::Token,
    error::{Context, Error, Kind, Result},
    layers::rotary::Rotations,
    llama::{input::Positions, rope::Rope},
    spec::DecoderSpec,
    training::{
        attention::attention,
        batch_mask::BatchMask,
        loss::{HeadLoss, head_loss},
        parameters::{ByName, Parameters},
        pointwise::{gated, norm, rotated},
        ring_attention::ring_attention,
        ring_gradients::TokenShards,
    },
};

/// A decoder with trainable parameters.
pub struct Network {
    spec: DecoderSpec,
    parameters: Parameters,
    rope: Arc<Rope>,
}

/// Which tokens attend to which, and which ranks hold them.
pub enum Attending {
    /// All tokens of a row are on this rank.
    Alone(Arc<BatchMask>),
    /// Each rank holds a part of every row's tokens.
    Ring {
        /// The other ranks.
        ring: Arc<Mutex<Ring>>,
        /// Which rank holds which tokens, and the mask.
        shards: Arc<TokenShards>,
    },
}

/// Rows of equal length on this rank.
pub struct Sequences<'a> {
    /// Rows.
    pub rows: usize,
    /// `[rows · tokens per row]`.
    pub input: &'a [Token],
    /// The next token of each.
    pub target: &'a [Token],
    /// The weight of each target in the loss, which is a weighted sum.
    pub weights: &'a [f32],
    /// RoPE position of each token.
    pub positions: &'a [u32],
    /// Which tokens attend to which.
    pub attending: Attending,
}

/// Losses of the two heads.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeadLosses {
    /// The loss of text targets.
    pub text: HeadLoss,
    /// The loss of targets that are codes or terminators.
    pub vision: HeadLoss,
}

impl HeadLosses {
    /// The loss that is minimized: the sum of both.
    pub fn total(&self) -> f64 {
        self.text.loss + self.vision.loss
    }
}

/// Whether activations are kept for the backward pass or recomputed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// Keep all activations: faster.
    Kept,
    /// Keep only each block's input (gradient checkpointing, arXiv 1604.06174).
    Recomputed,
}

impl Network {
    /// A network of `spec` over `parameters`, which are named as in a model directory.
    ///
    /// # Errors
    /// `BadInput` for a decoder with features that LLaMA and LWM do not have.
    pub fn new(spec: DecoderSpec, parameters: Parameters) -> Result<Self> {
        let unknown = [
            ("experts", spec.experts.is_some()),
            (
                "biases",
                spec.qkv_bias || spec.attention_output_bias || spec.mlp_bias,
            ),
            ("qk_norm", spec.qk_norm),
            ("mrope", spec.mrope.is_some()),
            ("sliding_window", spec.sliding_window.is_some()),
        ];
        if let Some((name, _)) = unknown.iter().find(|(_, is_on)| *is_on) {
            let message = format!("the decoder has {name}, expected one of LLaMA's or LWM's shape");
            return Err(Error::new(Kind::BadInput, message).doing("train a decoder"));
        }
        for (name, shape) in decoder_tensors(&spec) {
            let found = parameters.get(&name)?.dims().to_vec();
            if found != shape {
                let message = format!("{name} has shape {found:?}, expected {shape:?}");
                return Err(Error::new(Kind::BadInput, message));
            }
        }
        Ok(Self {
            rope: Arc::new(Rope::new(&spec)),
            spec,
            parameters,
        })
    }

    /// The trainable parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The decoder's specification.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Losses of `sequences`, and the gradients of their sum.
    ///
    /// # Errors
    /// `Compute` for NaN or infinity, and the ring's errors.
    pub fn gradients(
        &self,
        sequences: &Sequences,
        activations: Activations,
    ) -> Result<(HeadLosses, ByName)> {
        match activations {
            Activations::Kept => {
                let x = self.embedded(sequences.input)?;
                let x = self.blocks(x, sequences, |x, block| block(x))?;
                let (loss, losses) = self.losses(&x, sequences)?;
                Ok((losses, self.named(&loss.backward()?)))
            }
            Activations::Recomputed => self.recomputed(sequences),
        }
    }

    /// Losses of `sequences`, without gradients.
    ///
    /// # Errors
    /// As [`Network::gradients`].
    pub fn evaluate(&self, sequences: &Sequences) -> Result<HeadLosses> {
        let x = self.embedded(sequences.input)?.detach();
        let x = self.blocks(x, sequences, |x, block| Ok(block(x)?.detach()))?;
        Ok(self.losses(&x, sequences)?.1)
    }

    /// The backward pass block by block, each recomputed from its input.
    fn recomputed(&self, sequences: &Sequences) -> Result<(HeadLosses, ByName)> {
        let first = self.embedded(sequences.input)?;
        let mut inputs = Vec::new();
        let last = self.blocks(first.detach(), sequences, |x, block| {
            let y = block(x.clone())?.detach();
            inputs.push(x);
            Ok(y)
        })?;
        let last = Var::from_tensor(&last)?;
        let (loss, losses) = self.losses(last.as_tensor(), sequences)?;
        let grads = loss.backward()?;
        let mut all = self.named(&grads);
        let mut dx = gradient_of(&grads, &last)?;
        let rotations = self.rotations(sequences);
        for (index, input) in inputs.iter().enumerate().rev() {
            let input = Var::from_tensor(input)?;
            let y = self.block(index, input.as_tensor().clone(), sequences, &rotations)?;
            // The gradient of Σ y · dx with respect to the input is the block's vector-Jacobian product.
            let grads = (y * dx)?.sum_all()?.backward()?;
            add(&mut all, self.named(&grads))?;
            dx = gradient_of(&grads, &input)?;
        }
        let grads = (first * dx)?.sum_all()?.backward()?;
        add(&mut all, self.named(&grads))?;
        Ok((losses, all))
    }

    fn named(&self, grads: &GradStore) -> ByName {
        let found = |(name, var): (&String, &Var)| Some((name.clone(), grads.get(var)?.clone()));
        self.parameters.iter().filter_map(found).collect()
    }

    /// tokens `[n]` → their embeddings from the two tables, `[n, hidden]`.
    fn embedded(&self, tokens: &[Token]) -> Result<Tensor> {
        let [text, vision] = by_modality(tokens);
        let mut rows = Vec::new();
        let mut order = vec![0_u32; tokens.len()];
        let mut next = 0;
        for (of_modality, table) in [
            (text, "model.embed_tokens.weight"),
            (vision, "model.vision_embed_tokens.weight"),
        ] {
            if of_modality.is_empty() {
                continue;
            }
            let ids: Vec<u32> = of_modality.iter().map(|&i| tokens[i].id()).collect();
            for index in of_modality {
                order[index] = next;
                next += 1;
            }
            let table = self.parameters.get(table)?;
            check_ids(&ids, table.dim(0)?)?;
            rows.push(table.index_select(&indices(ids)?, 0)?);
        }
        Ok(Tensor::cat(&rows, 0)?.index_select(&indices(order)?, 0)?)
    }

    /// x `[n, hidden]` through all blocks, each run by `run`.
    fn blocks(
        &self,
        mut x: Tensor,
        sequences: &Sequences,
        mut run: impl FnMut(Tensor, &dyn Fn(Tensor) -> Result<Tensor>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let rotations = self.rotations(sequences);
        for index in 0..self.spec.num_hidden_layers {
            let block = |x| self.block(index, x, sequences, &rotations);
            x = run(x, &block).doing(|| format!("layer {index}"))?;
        }
        Ok(x)
    }

    fn rotations(&self, sequences: &Sequences) -> Arc<Rotations> {
        Arc::new(self.rope.rotations(Positions::Line(sequences.positions)))
    }

    /// x `[n, hidden]` → `[n, hidden]`.
    fn block(
        &self,
        index: usize,
        x: Tensor,
        sequences: &Sequences,
        rotations: &Arc<Rotations>,
    ) -> Result<Tensor> {
        let get = |part: &str| {
            let name = format!("model.layers.{index}.{part}.weight");
            self.parameters.get(&name).map(Var::as_tensor)
        };
        let eps = self.spec.rms_norm_eps;
        let normed = norm(&x, get("input_layernorm")?, eps)?;
        let project = |part: &str| Ok::<_, Error>(normed.matmul(&get(part)?.t()?)?);
        let heads = self.spec.num_attention_heads;
        let q = self.by_head(&project("self_attn.q_proj")?, heads)?;
        let k = self.by_head(&project("self_attn.k_proj")?, self.spec.n_kv_heads())?;
        let v = self.by_head(&project("self_attn.v_proj")?, self.spec.n_kv_heads())?;
        let (q, k) = (
            rotated(&q, &self.rope, rotations)?,
            rotated(&k, &self.rope, rotations)?,
        );
        let mixed = self.mixed([&q, &k, &v], sequences)?;
        let x = (x + mixed.matmul(&get("self_attn.o_proj")?.t()?)?)?;
        let normed = norm(&x, get("post_attention_layernorm")?, eps)?;
        let project = |part: &str| Ok::<_, Error>(normed.matmul(&get(part)?.t()?)?);
        let inner = gated(&project("mlp.gate_proj")?, &project("mlp.up_proj")?)?;
        Ok((x + inner.matmul(&get("mlp.down_proj")?.t()?)?)?)
    }

    /// x `[n, heads * d]` → `[n, heads, d]`.
    fn by_head(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        Ok(x.reshape((x.dim(0)?, heads, self.spec.head_dim()))?)
    }

    /// q `[n, heads, d]`, k, v `[n, kv_heads, d]` → `[n, heads * d]`.
    fn mixed(&self, qkv: [&Tensor; 3], sequences: &Sequences) -> Result<Tensor> {
        let rows = sequences.rows;
        let of_rows = |x: &Tensor| {
            let (n, heads, d) = x.dims3()?;
            x.reshape((rows, n / rows.max(1), heads, d))
        };
        let (q, k, v) = (of_rows(qkv[0])?, of_rows(qkv[1])?, of_rows(qkv[2])?);
        let out = match &sequences.attending {
            Attending::Alone(mask) => attention(&q, &k, &v, mask)?,
            Attending::Ring { ring, shards } => ring_attention(&q, &k, &v, ring, shards)?,
        };
        let n = sequences.input.len();
        Ok(out.reshape((n, out.elem_count() / n.max(1)))?)
    }

    /// x `[n, hidden]` after the last block → the loss as a scalar, and its parts.
    fn losses(&self, x: &Tensor, sequences: &Sequences) -> Result<(Tensor, HeadLosses)> {
        let norm_weight = self.parameters.get("model.norm.weight")?;
        let hidden = norm(x, norm_weight, self.spec.rms_norm_eps)?;
        let mut losses = HeadLosses::default();
        // A rank whose targets all have weight 0 must still run its backward pass: the other ranks wait for its keys.
        // A tensor, as candle drops the graph behind a product with the constant 0.
        let nothing = Tensor::zeros((), x.dtype(), &Device::Cpu)?;
        let mut total = hidden.narrow(0, 0, 1)?.sum_all()?.mul(&nothing)?;
        let text_head = match self.spec.tie_word_embeddings {
            true => "model.embed_tokens.weight",
            false => "lm_head.weight",
        };
        for (of_head, of_modality, head) in [text_head, "vision_head.weight"]
            .into_iter()
            .zip(by_modality(sequences.target))
            .zip([&mut losses.text, &mut losses.vision])
            .map(|((head, of_modality), of_head)| (of_head, of_modality, head))
        {
            // Targets of weight 0 are left out before the logits, which are the expensive part.
            let counted = of_modality
                .into_iter()
                .filter(|&i| sequences.weights[i] > 0.0);
            let counted: Vec<usize> = counted.collect();
            if counted.is_empty() {
                continue;
            }
            let targets: Vec<u32> = counted.iter().map(|&i| sequences.target[i].id()).collect();
            let weights: Vec<f32> = counted.iter().map(|&i| sequences.weights[i]).collect();
            let indices = indices(counted.iter().map(|&i| i as u32).collect())?;
            let hidden = hidden.index_select(&indices, 0)?;
            let (loss, sums) = head_loss(&hidden, self.parameters.get(head)?, &targets, &weights)
                .doing(|| format!("loss of {head}"))?;
            total = (total + loss)?;
            *of_head = sums;
        }
        Ok((total, losses))
    }
}

/// Indices of text tokens, and of codes and terminators.
fn by_modality(tokens: &[Token]) -> [Vec<usize>; 2] {
    let (vision, text) = (0..tokens.len()).partition(|&i: &usize| tokens[i].is_vision());
    [text, vision]
}

fn indices(ids: Vec<u32>) -> Result<Tensor> {
    let n = ids.len();
    Ok(Tensor::from_vec(ids, n, &Device::Cpu)?)
}

fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => {
            let message = format!("token id {id} is outside the vocabulary of {vocab}");
            Err(Error::new(Kind::BadInput, message))
        }
    }
}

fn gradient_of(grads: &GradStore, var: &Var) -> Result<Tensor> {
    match grads.get(var) {
        Some(gradient) => Ok(gradient.clone()),
        None => Ok(var.zeros_like()?),
    }
}

/// Adds `more` to `all`, name by name.
///
/// # Errors
/// When candle has no memory for the sum.
pub fn add(all: &mut ByName, more: ByName) -> Result<()> {
    for (name, gradient) in more {
        let sum = match all.get(&name) {
            Some(there) => (there + gradient)?,
            None => gradient,
        };
        all.insert(name, sum);
    }
    Ok(())
}
