//! Examples to batches: as LWM's `JsonVisionDataset` and `JsonDataset` (`lwm/data.py`) do it, in one
//! stream (`no_pad`) or one per row (`pad`), and packed with segments, as in the paper (arXiv 2402.08268).

use serde::{Deserialize, Serialize};

use crate::{
    context::{packing::pack, vocab::Token},
    error::{Error, Kind, Result},
    training::data::example::Example,
};

/// Rows of equal length: inputs, targets and the loss weight of each target.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Tokens per row.
    pub seq_length: usize,
    /// `[rows · seq_length]`.
    pub input: Vec<Token>,
    /// The next token of each input.
    pub target: Vec<Token>,
    /// The loss weight of each target.
    pub loss: Vec<f32>,
    /// Segment id: the number of the token's example in its row; padding has an id of its own.
    /// Absent where, as upstream, attention crosses from one example into the next.
    pub segments: Option<Vec<u32>>,
    /// Position of each token in its example.
    pub positions: Vec<u32>,
}

/// How examples become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchLayout {
    /// One stream of all examples, cut into rows: upstream's `no_pad`.
    NoPad,
    /// One example per row, padded or truncated: upstream's `pad`.
    Pad,
    /// Packed: whole examples side by side, each a segment of its own.
    Packed,
}

/// How losses are aligned in a padded row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadRule {
    /// Each target has its own loss (upstream's `JsonDataset`, for text).
    #[default]
    Aligned,
    /// Upstream's `JsonVisionDataset`: the last token of a short example is not read, and in a truncated one
    /// each target has the loss of the next, the last has none (`lwm/data.py:714`).
    Vision,
}

/// The shape of a batch, and its padding.
#[derive(Debug, Clone, Copy)]
pub struct BatchRules {
    /// Rows.
    pub rows: usize,
    /// Tokens per row.
    pub seq_length: usize,
    /// The padding token; upstream's is the beginning-of-text token.
    pub fill: Token,
    /// The alignment of [`padded`] rows.
    pub pad_rule: PadRule,
}

impl Batch {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.input.len() / self.seq_length.max(1)
    }

    /// An empty batch of `seq_length`.
    fn of_length(seq_length: usize) -> Self {
        Self {
            seq_length,
            input: Vec::new(),
            target: Vec::new(),
            loss: Vec::new(),
            segments: None,
            positions: Vec::new(),
        }
    }

    fn push(&mut self, input: Token, target: Token, loss: f32, position: u32) {
        self.input.push(input);
        self.target.push(target);
        self.loss.push(loss);
        self.positions.push(position);
    }
}

/// Upstream's `no_pad`: a stream of tokens, which gives a batch once it holds more than a batch and one token.
#[derive(Debug, Default)]
pub struct TokenStream {
    tokens: Vec<Token>,
    loss: Vec<f32>,
}

impl TokenStream {
    /// Appends `example`.
    pub fn push(&mut self, example: &Example) {
        self.tokens.extend_from_slice(&example.tokens);
        self.loss.extend_from_slice(&example.loss);
    }

    /// The next batch, if the stream holds enough.
    pub fn next_batch(&mut self, rules: &BatchRules) -> Option<Batch> {
        let chunk = rules.rows * rules.seq_length;
        // Upstream's condition, one token stricter than needed: kept so that batches are equal.
        if self.tokens.len() <= chunk + 1 {
            return None;
        }
        let mut batch = Batch::of_length(rules.seq_length);
        for i in 0..chunk {
            let position = (i % rules.seq_length) as u32;
            batch.push(
                self.tokens[i],
                self.tokens[i + 1],
                self.loss[i + 1],
                position,
            );
        }
        self.tokens.drain(..chunk);
        self.loss.drain(..chunk);
        Some(batch)
    }

    /// Buffered tokens, and the loss weight of each.
    pub fn waiting(&self) -> (&[Token], &[f32]) {
        (&self.tokens, &self.loss)
    }

    /// Number of buffered tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing is buffered.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// Upstream's `pad`: `examples`, one per row, truncated or padded with a token that is not predicted.
pub fn padded(examples: &[Example], rules: &BatchRules) -> Batch {
    let n = rules.seq_length;
    let mut batch = Batch::of_length(n);
    for Example { tokens, loss } in examples {
        let is_vision = rules.pad_rule == PadRule::Vision;
        let is_cut = tokens.len() > n;
        let read = tokens.len() - usize::from(is_vision && !is_cut);
        let late = usize::from(is_vision && is_cut);
        let at = |i: usize| tokens.get(i).copied().unwrap_or(rules.fill);
        for i in 0..n {
            let input = if i < read { at(i) } else { rules.fill };
            let counts = loss.get(i + 1 + late).filter(|_| i + late < n);
            batch.push(input, at(i + 1), counts.copied().unwrap_or(0.0), i as u32);
        }
    }
    batch
}

/// Whole examples side by side in rows of `seq_length` (best-fit decreasing), each a segment whose
/// positions begin at 0; the batch has as many rows as that takes.
///
/// # Errors
/// `TooLarge` for an example that no row holds, `BadInput` for one of fewer than two tokens.
pub fn packed(examples: &[Example], rules: &BatchRules) -> Result<Batch> {
    if let Some(short) = examples.iter().find(|e| e.tokens.len() < 2) {
        let message = format!(
            "an example has {} tokens, expected at least two: one to read and one to predict",
            short.tokens.len()
        );
        return Err(Error::new(Kind::BadInput, message));
    }
    // Of n tokens n − 1 are read: the last is only predicted.
    let lengths: Vec<usize> = examples.iter().map(|e| e.tokens.len() - 1).collect();
    let packing = pack(&lengths, rules.seq_length)?;
    let mut batch = Batch::of_length(rules.seq_length);
    let mut segments = Vec::new();
    for row in &packing.rows {
        for (id, segment) in (0_u32..).zip(&row.segments) {
            let Example { tokens, loss } = &examples[segment.prompt];
            for i in 0..segment.indices.len() {
                batch.push(tokens[i], tokens[i + 1], loss[i + 1], i as u32);
                segments.push(id);
            }
        }
        let n_segments = row.segments.len() as u32;
        for i in 0..rules.seq_length - row.len() {
            batch.push(rules.fill, rules.fill, 0.0, i as u32);
            segments.push(n_segments);
        }
    }
    batch.segments = Some(segments);
    Ok(batch)
}

/// How many of `lengths`, from the first on, fit together in `rows` rows of `seq_length` input tokens (best fit,
/// in their order): the next one would need another row.
pub fn fitting(lengths: impl IntoIterator<Item = usize>, rules: &BatchRules) -> usize {
    let mut room = vec![rules.seq_length; rules.rows];
    let mut n = 0;
    for length in lengths {
        let read = length.saturating_sub(1);
        let fits = room.iter_mut().filter(|room| **room >= read);
        let Some(best) = fits.min() else {
            break;
        };
        *best -= read;
        n += 1;
    }
    n
}
