//! The LLaMA decoder and generation.

pub mod input;

pub mod rope;

pub mod feed_forward;

pub mod block;

pub mod sampler;

pub mod group;

pub mod generate;

pub mod packed;

use std::ops::Range;

use candle_core::{Device, Tensor};

pub use input::{Input, Positions, Row};

use crate::{
    attention::{ring::Ring, shard::striped},
    checkpoint::weights::Weights,
    context::vocab::Token,
    error::{Context, Error, Kind, Result},
    layers::{linear::Linear, norm::RmsNorm, rotary::Rotations},
    llama::{
        block::{Contexts, DecoderBlock, RowContext},
        input::count_features,
        rope::Rope,
    },
    spec::DecoderSpec,
};

/// The language-model head: which vocabulary is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// `lm_head`.
    Text,
    /// `vision_head`; LWM only.
    Vision,
}

/// A LLaMA decoder; with a second embedding table and head it is LWM's VideoLLaMA.
pub struct Decoder {
    spec: DecoderSpec,
    text_embedding: Linear,
    vision_embedding: Option<Linear>,
    rope: Rope,
    blocks: Vec<DecoderBlock>,
    norm: RmsNorm,
    /// `None` when the embedding table is the text head (tied embeddings).
    text_head: Option<Linear>,
    vision_head: Option<Linear>,
}

/// The callback of [`Decoder::forward_traced`]: the name of a layer and its output `[n, hidden]`.
pub type Trace<'a> = dyn FnMut(&str, &[f32]) + 'a;

impl Decoder {
    /// Takes the decoder's weights; bf16 and quantized matrices stay in the mapped file.
    pub fn load(spec: &DecoderSpec, weights: &mut Weights) -> Result<Self> {
        let hidden = spec.hidden_size;
        let mut linear = |name: &str, out| Linear::load(weights, name, out, hidden);
        let vision = spec.vision_vocab_size;
        let text_embedding = linear("model.embed_tokens.weight", spec.vocab_size)?;
        let vision_embedding = vision
            .map(|n| linear("model.vision_embed_tokens.weight", n))
            .transpose()?;
        let text_head = (!spec.tie_word_embeddings)
            .then(|| linear("lm_head.weight", spec.vocab_size))
            .transpose()?;
        let vision_head = vision
            .map(|n| linear("vision_head.weight", n))
            .transpose()?;
        let blocks = (0..spec.num_hidden_layers)
            .map(|index| DecoderBlock::load(spec, weights, index))
            .collect::<Result<_>>()?;
        Ok(Self {
            spec: spec.clone(),
            text_embedding,
            vision_embedding,
            rope: Rope::load(spec, weights)?,
            blocks,
            norm: RmsNorm::load(weights, "model.norm.weight", hidden, spec.rms_norm_eps)?,
            text_head,
            vision_head,
        })
    }

    /// The decoder's specification.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// rows with n tokens in total → hidden states `[n, hidden]` after the final norm, row after row.
    ///
    /// # Errors
    /// `TooLarge` when a row does not fit the context, `BadInput` for an id
    /// outside its vocabulary; the caches are then unchanged.
    pub fn forward(&self, rows: &mut [Row]) -> Result<Tensor> {
        self.forward_traced(rows, &mut |_, _| {})
    }

    /// [`Decoder::forward`] that passes `embedding`, `layers.N.attention`, `layers.N` and `norm` to `trace`.
    pub fn forward_traced(&self, rows: &mut [Row], trace: &mut Trace) -> Result<Tensor> {
        self.forward_on(rows, None, trace)
    }

    /// [`Decoder::forward`] for this rank's tokens: those whose blocks it owns.
    ///
    /// Every rank of the ring calls this with the same tokens and its own part of the contexts.
    ///
    /// # Errors
    /// Also `Network` when another rank is lost.
    pub fn forward_share(&self, rows: &mut [Row], ring: &mut Ring) -> Result<Tensor> {
        self.forward_on(rows, Some(ring), &mut |_, _| {})
    }

    fn forward_on(
        &self,
        rows: &mut [Row],
        ring: Option<&mut Ring>,
        trace: &mut Trace,
    ) -> Result<Tensor> {
        let before: Vec<usize> = rows.iter().map(|row| row.cache.len()).collect();
        let result = self.forward_or_leave_marks(rows, ring, trace);
        if result.is_err() {
            for (row, len) in rows.iter_mut().zip(before) {
                // A caller may retry with other tokens: contexts must not keep half of a failed call.
                row.cache.truncate(len);
            }
        }
        result
    }

    fn forward_or_leave_marks(
        &self,
        rows: &mut [Row],
        ring: Option<&mut Ring>,
        trace: &mut Trace,
    ) -> Result<Tensor> {
        rows.iter().try_for_each(|row| self.check(row))?;
        let Own {
            tokens,
            rotations,
            features,
        } = self.own_tokens(rows);
        let mut x = self.embed(&tokens, &features)?;
        trace("embedding", &x);
        let mut contexts = open(rows, ring)?;
        for (index, block) in self.blocks.iter().enumerate() {
            block.attention(&mut x, &self.rope, &rotations, &mut contexts)?;
            trace(&format!("layers.{index}.attention"), &x);
            block.feed_forward(&mut x);
            trace(&format!("layers.{index}"), &x);
            self.add_deeper(index, &mut x, &tokens, &features);
        }
        let x = self.norm.forward(&x);
        trace("norm", &x);
        let shape = (tokens.len(), self.spec.hidden_size);
        Ok(Tensor::from_vec(x, shape, &Device::Cpu)?)
    }

    /// hidden `[n, hidden]` → logits `[n, vocabulary]` of one head.
    ///
    /// # Errors
    /// `Usage` when a text model is asked for vision logits.
    pub fn logits(&self, hidden: &Tensor, head: Head) -> Result<Tensor> {
        let head = match head {
            Head::Text => Some(self.text_head.as_ref().unwrap_or(&self.text_embedding)),
            Head::Vision => self.vision_head.as_ref(),
        };
        let head = head.ok_or_else(|| no_vision("a vision head"))?;
        let n = hidden.dim(0)?;
        let logits = head.forward(&hidden.flatten_all()?.to_vec1()?);
        Ok(Tensor::from_vec(
            logits,
            (n, head.out_features()),
            &Device::Cpu,
        )?)
    }

    fn check(&self, row: &Row) -> Result<()> {
        let n = row.tokens.len();
        let same_length = n == row.positions.len() && row.segments.is_none_or(|s| s.len() == n);
        if n == 0 || !same_length {
            let sizes = format!(
                "{n} tokens, {} positions, {:?} segments, expected as many of each and at least one",
                row.positions.len(),
                row.segments.map(<[u32]>::len)
            );
            return Err(Error::new(Kind::Internal, sizes));
        }
        let (features, width) = (count_features(row.tokens), self.spec.feature_width());
        if features * width != row.features.len() {
            let message = format!(
                "{} numbers for {features} feature tokens, expected {width} for each",
                row.features.len()
            );
            return Err(Error::new(Kind::Internal, message));
        }
        if self.spec.mrope.is_none() && matches!(row.positions, Positions::Space(_)) {
            let message = "positions have three components, the decoder expects one";
            return Err(Error::new(Kind::Internal, message));
        }
        let limit = self.spec.max_position_embeddings;
        let total = row.cache.len() + n;
        let last = row.positions.last().map_or(0, |p| p as usize);
        // Both, as M-RoPE positions may rise slower or faster than the token count.
        if total > limit || last >= limit {
            let held = row.cache.len();
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "the context holds {held} tokens and {n} more make {total} (last position {last}), \
                     the model was made for {limit}"
                ),
            ));
        }
        Ok(())
    }

    /// `BadInput` for an id outside its vocabulary.
    fn check_ids(&self, tokens: &[Token]) -> Result<()> {
        tokens.iter().try_for_each(|token| match token {
            Token::Text(id) => in_vocabulary(*id, self.spec.vocab_size),
            Token::Feature(_) => Ok(()),
            Token::Vision(id) => match self.spec.vision_vocab_size {
                Some(n) => in_vocabulary(*id, n),
                None => Err(no_vision("a vision vocabulary")),
            },
        })
    }

    fn embed(&self, tokens: &[Token], features: &[&[f32]]) -> Result<Vec<f32>> {
        let hidden = self.spec.hidden_size;
        let mut x = Vec::with_capacity(tokens.len() * hidden);
        let mut features = features.iter();
        for token in tokens {
            match (token, &self.vision_embedding) {
                (Token::Feature(_), _) => {
                    let row = features.next().and_then(|row| row.get(..hidden));
                    x.extend_from_slice(row.unwrap_or_default());
                    Ok(())
                }
                (&Token::Text(id), _) => {
                    self.text_embedding.append_row(id, &mut x).doing(|| "text")
                }
                (&Token::Vision(id), Some(table)) => {
                    table.append_row(id, &mut x).doing(|| "vision")
                }
                (Token::Vision(_), None) => Err(no_vision("a vision vocabulary")),
            }
            .doing(|| "look up an embedding")?;
        }
        Ok(x)
    }

    /// DeepStack (arXiv 2406.04334): x `[n, hidden]` after layer `index` → x plus the features' rows for that layer.
    fn add_deeper(&self, index: usize, x: &mut [f32], tokens: &[Token], features: &[&[f32]]) {
        if index >= self.spec.deepstack_layers {
            return;
        }
        let hidden = self.spec.hidden_size;
        let rows = x.chunks_exact_mut(hidden).zip(tokens);
        let feature_rows = rows.filter(|(_, token)| token.is_feature());
        for ((x, _), feature) in feature_rows.zip(features) {
            // Row 0 replaced the embedding; row `index + 1` belongs to layer `index`.
            let deeper = feature.chunks_exact(hidden).nth(index + 1);
            let deeper = deeper.unwrap_or_default();
            x.iter_mut().zip(deeper).for_each(|(x, y)| *x += y);
        }
    }

    /// This rank's tokens of all rows.
    fn own_tokens<'a>(&self, rows: &[Row<'a>]) -> Own<'a> {
        let width = self.spec.feature_width();
        let mut own = Own::default();
        for row in rows {
            // Before `open`, which extends the caches: indices of new tokens start at the current length.
            let first = row.cache.len();
            let mut given = row.features.chunks_exact(width);
            let mut seen = 0;
            for run in own_indices(row) {
                let run = run.start - first..run.end - first;
                let of = |run| row.tokens.get(run).unwrap_or_default();
                let skipped = count_features(of(seen..run.start));
                let tokens = of(run.clone());
                let features = given.by_ref().skip(skipped).take(count_features(tokens));
                own.features.extend(features);
                seen = run.end;
                own.tokens.extend_from_slice(tokens);
                self.rope
                    .append(row.positions.part(run), &mut own.rotations);
            }
        }
        own
    }
}

/// A rank's tokens of all rows, their rotations, and the features `[feature_width]` among them.
#[derive(Default)]
struct Own<'a> {
    tokens: Vec<Token>,
    rotations: Rotations,
    features: Vec<&'a [f32]>,
}

/// Token indices of this rank's new tokens of a row.
fn own_indices(row: &Row) -> Vec<Range<usize>> {
    let (first, share) = (row.cache.len(), row.cache.share());
    striped(first..first + row.tokens.len(), share.rank, share.ranks)
}

/// Makes room in every cache for its row's tokens.
fn open<'a>(rows: &'a mut [Row], ring: Option<&'a mut Ring>) -> Result<Contexts<'a>> {
    let mut opened = Vec::with_capacity(rows.len());
    for row in rows {
        let (first, own) = (row.cache.len(), own_indices(row));
        row.cache.extend(&row.positions.highest(), row.segments)?;
        opened.push(RowContext {
            indices: first..row.cache.len(),
            own,
            cache: &mut *row.cache,
        });
    }
    Ok(Contexts { rows: opened, ring })
}

fn in_vocabulary(id: u32, n: usize) -> Result<()> {
    if (id as usize) < n {
        return Ok(());
    }
    Err(Error::new(
        Kind::BadInput,
        format!("token id {id} is outside the vocabulary of {n}"),
    ))
}

fn no_vision(what: &str) -> Error {
    Error::new(
        Kind::Usage,
        format!("the model is a text model, expected one with {what}"),
    )
}

/// One row of a left-padded batch, without padding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unpadded {
    /// The real tokens.
    pub tokens: Vec<Token>,
    /// `cumsum(attention_mask) − 1` of each.
    pub positions: Vec<u32>,
}

impl Unpadded {
    /// ids, vision_mask, attention_mask `[n]` of one padded row → its real tokens and their positions.
    ///
    /// # Errors
    /// `BadInput` when the lengths differ.
    pub fn from_left_padded(
        ids: &[u32],
        vision_mask: &[bool],
        attention_mask: &[bool],
    ) -> Result<Self> {
        if ids.len() != vision_mask.len() || ids.len() != attention_mask.len() {
            let message = format!(
                "{} ids, {} vision marks, {} attention marks, expected as many of each",
                ids.len(),
                vision_mask.len(),
                attention_mask.len()
            );
            return Err(Error::new(Kind::BadInput, message));
        }
        let mut row = Self::default();
        for ((&id, &is_vision), _) in ids
            .iter()
            .zip(vision_mask)
            .zip(attention_mask)
            .filter(|(_, real)| **real)
        {
            row.positions.push(row.tokens.len() as u32);
            row.tokens.push(if is_vision {
                Token::Vision(id)
            } else {
                Token::Text(id)
            });
        }
        Ok(row)
    }
}
