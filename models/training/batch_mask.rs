//! Which token sees which in a batch: one rule, whose segments and hidden keys differ by row.

use crate::{
    attention::mask::Mask,
    error::{Error, Kind, Result},
};

/// The rule for every row of a batch, over all places of a sequence, wherever they are computed.
#[derive(Debug, Clone)]
pub struct BatchMask {
    rows: usize,
    tokens: usize,
    causal: bool,
    segments: Option<Vec<u32>>,
    keys: Option<Vec<bool>>,
}

impl BatchMask {
    /// `rows` sequences of `tokens` tokens: each sees its own and earlier places.
    pub fn causal(rows: usize, tokens: usize) -> Self {
        Self {
            causal: true,
            ..Self::all(rows, tokens)
        }
    }

    /// `rows` sequences of `tokens` tokens: each sees every place.
    pub fn all(rows: usize, tokens: usize) -> Self {
        Self {
            rows,
            tokens,
            causal: false,
            segments: None,
            keys: None,
        }
    }

    /// segments `[rows, tokens]`: tokens see those of their own segment only.
    ///
    /// # Errors
    /// `BadInput` when their number is another.
    pub fn with_segments(mut self, segments: Vec<u32>) -> Result<Self> {
        self.check("segments", segments.len())?;
        self.segments = Some(segments);
        Ok(self)
    }

    /// keys `[rows, tokens]`: where `false` nobody sees the key, as padding is not seen.
    ///
    /// # Errors
    /// `BadInput` when their number is another.
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

    /// The rule of one row.
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
