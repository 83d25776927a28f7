//! A vision transformer (ViT): a square picture becomes a sequence of patch
//! tokens with full attention (Dosovitskiy et al., arXiv 2010.11929).

use crate::{
    attention::{
        blockwise::{Heads, Queries, attend, blocks_of},
        mask::Mask,
    },
    checkpoint::weights::Weights,
    encoder::Encoder,
    error::{Error, Kind, Result},
    layers::{
        linear::{Linear, add_rows},
        norm::LayerNorm,
    },
    spec::encoder::{EncoderSpec, VisionPool, VitSpec},
    vision::table::stretched,
};

/// Channels of a picture.
const CHANNELS: usize = 3;

/// A vision transformer with its weights.
pub struct Vit {
    spec: VitSpec,
    patches: Linear,
    /// `[hidden]`.
    class_token: Option<Vec<f32>>,
    /// `[tokens, hidden]`.
    positions: Vec<f32>,
    pre_norm: Option<LayerNorm>,
    encoder: Encoder,
    post_norm: Option<LayerNorm>,
    attention_pool: Option<AttentionPool>,
}

impl Vit {
    /// Takes the tensors under `name`: `patch_embedding`, `class_token`, `positions`, `pre_norm`, `layers`,
    /// `post_norm`, `head`, as far as `spec` has them.
    pub fn load(spec: &VitSpec, weights: &mut Weights, name: &str) -> Result<Self> {
        let (hidden, eps) = (spec.encoder.hidden_size, spec.encoder.layer_norm_eps);
        let part = |part: &str| format!("{name}.{part}");
        let shape = [CHANNELS, spec.patch_size, spec.patch_size];
        let patches = Linear::of_patches(
            weights,
            &part("patch_embedding"),
            hidden,
            &shape,
            spec.patch_bias,
        )?;
        let class_token = match spec.class_token {
            true => Some(weights.numbers(&part("class_token"), &[hidden])?),
            false => None,
        };
        let norm = |weights: &mut Weights, is_there: bool, which: &str| {
            let load = || LayerNorm::load(weights, &part(which), hidden, eps);
            is_there.then(load).transpose()
        };
        let attention_pool = match spec.pool {
            Some(VisionPool::Attention) => {
                Some(AttentionPool::load(&spec.encoder, weights, &part("head"))?)
            }
            _ => None,
        };
        Ok(Self {
            spec: spec.clone(),
            patches,
            class_token,
            positions: weights.numbers(&part("positions"), &[spec.tokens(), hidden])?,
            pre_norm: norm(weights, spec.pre_norm, "pre_norm")?,
            encoder: Encoder::load(&spec.encoder, weights, name)?,
            post_norm: norm(weights, spec.post_norm, "post_norm")?,
            attention_pool,
        })
    }

    /// Adapts the encoder to pictures of another side by interpolating its table of positions
    /// ([`stretched`]).
    ///
    /// # Errors
    /// `BadInput` for a side that holds no patch.
    pub fn for_pictures_of(mut self, side: usize) -> Result<Self> {
        let from = self.spec.grid();
        self.spec.image_size = side;
        self.spec.validate("vision")?;
        let hidden = self.spec.encoder.hidden_size;
        let class = if self.spec.class_token { hidden } else { 0 };
        let to = self.spec.grid();
        if to != from {
            let patches = stretched(&self.positions[class..], hidden, from, to);
            self.positions.truncate(class);
            self.positions.extend(patches);
        }
        Ok(self)
    }

    /// The encoder's specification.
    pub fn spec(&self) -> &VitSpec {
        &self.spec
    }

    /// pixels `[n, 3, side, side]` → tokens `[n, tokens, hidden]` before the first block.
    ///
    /// # Errors
    /// `Internal` when the pixels are not whole pictures.
    pub fn embed(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let side = self.spec.image_size;
        let of_picture = CHANNELS * side * side;
        if !pixels.len().is_multiple_of(of_picture) {
            let message = format!(
                "{} numbers, expected pictures of 3x{side}x{side}",
                pixels.len()
            );
            return Err(Error::new(Kind::Internal, message));
        }
        let hidden = self.spec.encoder.hidden_size;
        let of_patches = self
            .patches
            .forward(&cut(pixels, side, self.spec.patch_size));
        let mut tokens = Vec::with_capacity(pixels.len() / of_picture * self.positions.len());
        let patches = self.spec.grid() * self.spec.grid();
        for of_picture in of_patches.chunks_exact(patches * hidden) {
            tokens.extend_from_slice(self.class_token.as_deref().unwrap_or_default());
            tokens.extend_from_slice(of_picture);
        }
        add_rows(&mut tokens, &self.positions);
        Ok(match &self.pre_norm {
            Some(norm) => norm.forward(&tokens),
            None => tokens,
        })
    }

    /// pixels `[n, 3, side, side]` → tokens `[n, tokens, hidden]` after the first `layers` blocks, without the final norm.
    ///
    /// # Errors
    /// `Compute` when a weight or a pixel is NaN or infinite.
    pub fn hidden(&self, pixels: &[f32], layers: usize) -> Result<Vec<f32>> {
        let tokens = self.embed(pixels)?;
        let per_picture = self.spec.tokens();
        self.encoder.forward(tokens, per_picture, false, layers)
    }

    /// Channels of a pooled vector.
    pub fn pooled_size(&self) -> usize {
        let hidden = self.spec.encoder.hidden_size;
        match self.spec.pool {
            Some(VisionPool::ClassAndMean) => 2 * hidden,
            _ => hidden,
        }
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.encoder.layers()
    }

    /// tokens `[n, tokens, hidden]` after the last block → `[n, tokens, hidden]` after the final norm.
    pub fn normed(&self, tokens: &[f32]) -> Vec<f32> {
        match &self.post_norm {
            Some(norm) => norm.forward(tokens),
            None => tokens.to_vec(),
        }
    }

    /// pixels `[n, 3, side, side]` → one vector per picture, `[n, hidden]` (twice as wide for class and mean).
    ///
    /// # Errors
    /// `Usage` when the encoder has no pool, and as [`Vit::hidden`].
    pub fn pooled(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let tokens = self.normed(&self.hidden(pixels, self.layers())?);
        self.pool(&tokens)
    }

    /// pixels `[n, 3, side, side]` → the class tokens after the final norm, `[n, hidden]`.
    ///
    /// # Errors
    /// `Usage` when the encoder has no class token, and as [`Vit::hidden`].
    pub fn class_tokens(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        if !self.spec.class_token {
            let message = "this encoder has no class token, expected one";
            return Err(Error::new(Kind::Usage, message));
        }
        let hidden = self.spec.encoder.hidden_size;
        let tokens = self.normed(&self.hidden(pixels, self.layers())?);
        let pictures = tokens.chunks_exact(self.spec.tokens() * hidden);
        Ok(pictures.flat_map(|p| &p[..hidden]).copied().collect())
    }

    /// tokens `[n, tokens, hidden]` after the final norm → one vector per picture.
    fn pool(&self, tokens: &[f32]) -> Result<Vec<f32>> {
        let hidden = self.spec.encoder.hidden_size;
        let pictures = tokens.chunks_exact(self.spec.tokens() * hidden);
        match (self.spec.pool, &self.attention_pool) {
            (Some(VisionPool::Class), _) => {
                Ok(pictures.flat_map(|p| p[..hidden].to_vec()).collect())
            }
            (Some(VisionPool::ClassAndMean), _) => {
                Ok(pictures.flat_map(|p| class_and_mean(p, hidden)).collect())
            }
            (Some(VisionPool::Attention), Some(head)) => head.forward(tokens, self.spec.tokens()),
            _ => {
                let message =
                    "this encoder has no pooled output, expected one with a vector per picture";
                Err(Error::new(Kind::Usage, message))
            }
        }
    }
}

/// tokens `[tokens, hidden]` → `[2 hidden]`: the class token, and the mean of the patch tokens.
fn class_and_mean(tokens: &[f32], hidden: usize) -> Vec<f32> {
    let (class, patches) = tokens.split_at(hidden);
    let n = (patches.len() / hidden) as f32;
    let mut mean = vec![0.0; hidden];
    for patch in patches.chunks_exact(hidden) {
        mean.iter_mut().zip(patch).for_each(|(m, p)| *m += p);
    }
    let mean = mean.into_iter().map(|m| m / n);
    class.iter().copied().chain(mean).collect()
}

/// pixels `[n, 3, side, side]` → patches `[n, grid, grid, 3, patch, patch]`; a remainder at the right and bottom is dropped.
fn cut(pixels: &[f32], side: usize, patch: usize) -> Vec<f32> {
    let grid = side / patch;
    let mut patches = Vec::with_capacity(pixels.len());
    for picture in pixels.chunks_exact(CHANNELS * side * side) {
        for (row, column) in (0..grid).flat_map(|r| (0..grid).map(move |c| (r, c))) {
            for channel in picture.chunks_exact(side * side) {
                for line in 0..patch {
                    let start = (row * patch + line) * side + column * patch;
                    patches.extend_from_slice(&channel[start..start + patch]);
                }
            }
        }
    }
    patches
}

/// SigLIP's attention pooling: one learned query attends to all tokens, then a feed-forward layer.
struct AttentionPool {
    spec: EncoderSpec,
    /// `[hidden]`.
    query: Vec<f32>,
    /// Query, key and value matrices in one: PyTorch's `in_proj_weight`.
    inputs: Linear,
    output: Linear,
    norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl AttentionPool {
    fn load(spec: &EncoderSpec, weights: &mut Weights, name: &str) -> Result<Self> {
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let part = |part: &str| format!("{name}.{part}");
        let query = weights.numbers(&part("probe"), &[hidden])?;
        let norm = LayerNorm::load(weights, &part("layernorm"), hidden, spec.layer_norm_eps)?;
        let mut linear =
            |which: &str, out, inputs| Linear::named(weights, &part(which), out, inputs, true);
        Ok(Self {
            spec: spec.clone(),
            query,
            inputs: linear("attention.in_proj", 3 * hidden, hidden)?,
            output: linear("attention.out_proj", hidden, hidden)?,
            norm,
            up: linear("mlp.fc1", inner, hidden)?,
            down: linear("mlp.fc2", hidden, inner)?,
        })
    }

    /// tokens `[n, tokens, hidden]` → `[n, hidden]`.
    fn forward(&self, tokens: &[f32], per_picture: usize) -> Result<Vec<f32>> {
        let hidden = self.spec.hidden_size;
        let heads = Heads {
            query: self.spec.num_attention_heads,
            key_value: self.spec.num_attention_heads,
            d: hidden / self.spec.num_attention_heads,
        };
        // Only the query third of the result is used; the probe's key and value are not.
        let query = self.inputs.forward(&self.query);
        let (keys, values) = keys_and_values(&self.inputs.forward(tokens), hidden);
        let mut mixed = Vec::new();
        let pictures = keys
            .chunks_exact(per_picture * hidden)
            .zip(values.chunks_exact(per_picture * hidden));
        for (keys, values) in pictures {
            mixed.extend(attend_one(&query[..hidden], keys, values, heads)?);
        }
        let mut x = self.output.forward(&mixed);
        let mut inner = self.up.forward(&self.norm.forward(&x));
        self.spec.hidden_act.apply(&mut inner);
        let added = self.down.forward(&inner);
        x.iter_mut().zip(added).for_each(|(x, y)| *x += y);
        Ok(x)
    }
}

/// rows of query, key and value `[n, 3 hidden]` → keys, values `[n, hidden]`.
fn keys_and_values(rows: &[f32], hidden: usize) -> (Vec<f32>, Vec<f32>) {
    let row = |part: usize| {
        let rows = rows.chunks_exact(3 * hidden);
        rows.flat_map(|row| row[part * hidden..(part + 1) * hidden].to_vec())
            .collect()
    };
    (row(1), row(2))
}

/// q `[heads, d]`, k, v `[n, heads, d]` → `[heads, d]`.
fn attend_one(q: &[f32], k: &[f32], v: &[f32], heads: Heads) -> Result<Vec<f32>> {
    let mask = Mask {
        causal: false,
        ..Mask::CAUSAL
    };
    let run = 0..1;
    let queries = Queries {
        q,
        runs: std::slice::from_ref(&run),
    };
    Ok(attend(queries, heads, &blocks_of(heads, k, v)?, &mask).out)
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn patches_are_channel_major_and_the_remainder_is_dropped() {
        // 3 channels of 5x5: value = 100 channel + 10 row + column.
        let pixels: Vec<f32> = (0..75)
            .map(|i| (100 * (i / 25) + 10 * (i % 25 / 5) + i % 5) as f32)
            .collect();
        let patches = cut(&pixels, 5, 2);
        assert_eq!(patches.len(), 4 * 12);
        assert_eq!(patches[..4], [0.0, 1.0, 10.0, 11.0]);
        assert_eq!(patches[12..16], [2.0, 3.0, 12.0, 13.0]);
        assert_eq!(patches[44..], [222.0, 223.0, 232.0, 233.0]);
    }
}
