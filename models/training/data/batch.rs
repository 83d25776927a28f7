//! Examples to batches: as LWM's `JsonVisionDataset` and `JsonDataset` (`lwm/data.py`) deal them, in one
//! stream (`no_pad`) or one a row (`pad`), and packed with segments, as the paper has it (arXiv 2402.08268).

use serde::{Deserialize, Serialize};

use crate::{
    context::{packing::pack, vocab::Token},
    error::{Error, Kind, Result},
    training::data::example::Example,
};

/// Rows of one length: what is read, what should follow each token, and what that counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Tokens of a row.
    pub seq_length: usize,
    /// `rows × seq_length`.
    pub input: Vec<Token>,
    /// What follows each token.
    pub target: Vec<Token>,
    /// How much of the loss each target is.
    pub loss: Vec<f32>,
    /// The example that each token belongs to, counted in its row; what is left over belongs to none of them.
    /// Absent where upstream's attention crosses from one example into the next.
    pub segments: Option<Vec<u32>>,
    /// Where each token stands in its example.
    pub positions: Vec<u32>,
}

/// How examples become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dealing {
    /// One stream of all examples, cut into rows: upstream's `no_pad`.
    NoPad,
    /// One example a row, filled up or cut off: upstream's `pad`.
    Pad,
    /// Whole examples side by side, each a segment of its own.
    Packed,
}

/// How an example stands in a row of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadRule {
    /// Each target has its own loss (upstream's `JsonDataset`, for text).
    #[default]
    Aligned,
    /// Upstream's `JsonVisionDataset`: the last token of a short example is not read, and where one is cut off
    /// each target has the loss of the one behind it, the last has none (`lwm/data.py:714`).
    Vision,
}

/// The shape of a batch, and what fills it.
#[derive(Debug, Clone, Copy)]
pub struct BatchRules {
    /// Rows.
    pub rows: usize,
    /// Tokens of a row.
    pub seq_length: usize,
    /// Stands behind what is shorter than its row: upstream's is the token that begins a text.
    pub fill: Token,
    /// Of [`padded`] rows.
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

/// Upstream's `no_pad`: a stream of tokens, which is emitted when it holds more than a batch and one token.
#[derive(Debug, Default)]
pub struct TokenStream {
    tokens: Vec<Token>,
    loss: Vec<f32>,
}

impl TokenStream {
    /// Puts `example` behind what is there.
    pub fn push(&mut self, example: &Example) {
        self.tokens.extend_from_slice(&example.tokens);
        self.loss.extend_from_slice(&example.loss);
    }

    /// The next batch, if there is enough for one.
    pub fn next_batch(&mut self, rules: &BatchRules) -> Option<Batch> {
        let chunk = rules.rows * rules.seq_length;
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

    /// Tokens that wait, and how much of the loss each is.
    pub fn waiting(&self) -> (&[Token], &[f32]) {
        (&self.tokens, &self.loss)
    }

    /// How many tokens wait.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token waits.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// Upstream's `pad`: `examples`, one a row, cut off or filled up with a token that is not predicted.
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
/// positions begin at 0; returned are as many rows as that takes.
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

/// How many of `lengths`, from the first on, stand together in `rows` rows of `seq_length` read tokens (best fit,
/// in their order): the next one would open another row.
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
