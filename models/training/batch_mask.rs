//! Which token sees which in a batch: one rule, whose segments and hidden keys differ by row.

use crate::{
    attention::mask::Mask,
    error::{Error, Kind, Result},
};

/// The rule for every row of a batch, over all places of a sequence, wherever they are computed.
#[derive(Debug, Clone)]
pub struct BatchMask {
    rows: usize,
    places: usize,
    causal: bool,
    segments: Option<Vec<u32>>,
    keys: Option<Vec<bool>>,
}

impl BatchMask {
    /// `rows` sequences of `places` tokens: each sees its own and earlier places.
    pub fn causal(rows: usize, places: usize) -> Self {
        Self {
            causal: true,
            ..Self::all(rows, places)
        }
    }

    /// `rows` sequences of `places` tokens: each sees every place.
    pub fn all(rows: usize, places: usize) -> Self {
        Self {
            rows,
            places,
            causal: false,
            segments: None,
            keys: None,
        }
    }

    /// segments `[rows, places]`: tokens see those of their own segment only.
    ///
    /// # Errors
    /// `BadInput` when their number is another.
    pub fn with_segments(mut self, segments: Vec<u32>) -> Result<Self> {
        self.check("segments", segments.len())?;
        self.segments = Some(segments);
        Ok(self)
    }

    /// keys `[rows, places]`: where `false` nobody sees the key, as padding is not seen.
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
    pub fn places(&self) -> usize {
        self.places
    }

    /// The rule of one row.
    pub fn of_row(&self, row: usize) -> Mask<'_> {
        let places = row * self.places..(row + 1) * self.places;
        Mask {
            causal: self.causal,
            window: None,
            segments: self.segments.as_deref().map(|all| &all[places.clone()]),
            keys: self.keys.as_deref().map(|all| &all[places]),
        }
    }

    fn check(&self, what: &str, n: usize) -> Result<()> {
        let (rows, places) = (self.rows, self.places);
        if n == rows * places {
            return Ok(());
        }
        let message = format!("{n} {what} for {rows} rows of {places} tokens");
        Err(Error::new(Kind::BadInput, message))
    }
}
