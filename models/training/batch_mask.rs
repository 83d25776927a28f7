//! The attention mask of a batch: one rule, with segments and hidden keys per row.

use crate::{
    attention::mask::Mask,
    error::{Error, Kind, Result},
};

/// The mask of every row of a batch, over all tokens of a sequence, whichever rank computes them.
#[derive(Debug, Clone)]
pub struct BatchMask {
    rows: usize,
    tokens: usize,
    causal: bool,
    segments: Option<Vec<u32>>,
    keys: Option<Vec<bool>>,
}

impl BatchMask {
    /// Causal masks of `rows` sequences of `tokens` tokens.
    pub fn causal(rows: usize, tokens: usize) -> Self {
        Self {
            causal: true,
            ..Self::all(rows, tokens)
        }
    }

    /// Full masks of `rows` sequences of `tokens` tokens.
    pub fn all(rows: usize, tokens: usize) -> Self {
        Self {
            rows,
            tokens,
            causal: false,
            segments: None,
            keys: None,
        }
    }

    /// segments `[rows, tokens]`: tokens attend within their segment only.
    ///
    /// # Errors
    /// `BadInput` for another number.
    pub fn with_segments(mut self, segments: Vec<u32>) -> Result<Self> {
        self.check("segments", segments.len())?;
        self.segments = Some(segments);
        Ok(self)
    }

    /// keys `[rows, tokens]`: a key with `false` is masked for every query, as padding is.
    ///
    /// # Errors
    /// `BadInput` for another number.
    pub fn with_keys(mut self, keys: Vec<bool>) -> Result<Self> {
        self.check("key flags", keys.len())?;
        self.keys = Some(keys);
        Ok(self)
    }

    /// Sequences.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens of each sequence.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The mask of one row.
    pub fn of_row(&self, row: usize) -> Mask<'_> {
        let tokens = row * self.tokens..(row + 1) * self.tokens;
        Mask {
            causal: self.causal,
            window: None,
            segments: self.segments.as_deref().map(|all| &all[tokens.clone()]),
            keys: self.keys.as_deref().map(|all| &all[tokens]),
        }
    }

    fn check(&self, what: &str, n: usize) -> Result<()> {
        let (rows, tokens) = (self.rows, self.tokens);
        if n == rows * tokens {
            return Ok(());
        }
        let message = format!("{n} {what} for {rows} rows of {tokens} tokens");
        Err(Error::new(Kind::BadInput, message))
    }
}
