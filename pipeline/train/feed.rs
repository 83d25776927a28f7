//! The batches of a step, out of the endless row of examples.

use longreel_models::training::data::{
    batch::{Batch, BatchRules, Dealing, Stream, fitting, packed, padded},
    example::{Example, ExampleRules},
};

use crate::{
    error::{Error, Kind, Result},
    train::dataset::Dataset,
};

/// Takes examples from one place of the row on.
pub struct Feed<'a> {
    /// The row.
    pub lines: &'a mut Dataset,
    /// Lines to examples.
    pub examples: &'a ExampleRules<'a>,
    /// The place of the next one.
    pub next: &'a mut u64,
    /// Tokens that wait, where examples are one stream.
    pub stream: &'a mut Stream,
}

impl Feed<'_> {
    /// One batch of `rules`.
    ///
    /// # Errors
    /// `BadInput` where no line of a whole pass is an example that a row holds.
    pub fn batch(&mut self, dealing: Dealing, rules: &BatchRules) -> Result<Batch> {
        match dealing {
            Dealing::NoPad => loop {
                if let Some(batch) = self.stream.next_batch(rules) {
                    return Ok(batch);
                }
                let example = self.example()?;
                self.stream.push(&example);
            },
            Dealing::Pad => {
                let rows = (0..rules.rows).map(|_| self.example());
                Ok(padded(&rows.collect::<Result<Vec<_>>>()?, rules))
            }
            Dealing::Packed => self.packed(rules),
        }
    }

    fn example(&mut self) -> Result<Example> {
        let (example, behind) = self.lines.example(*self.next, self.examples)?;
        *self.next = behind;
        Ok(example)
    }

    /// As many examples as stand in the rows, in their order; the one that does not begins the next batch.
    fn packed(&mut self, rules: &BatchRules) -> Result<Batch> {
        let (mut taken, mut lengths) = (Vec::new(), Vec::new());
        let mut too_long = 0;
        loop {
            let before = *self.next;
            let example = self.example()?;
            if example.tokens.len() > rules.seq_length + 1 {
                self.lines
                    .skip_long(before, example.tokens.len(), rules.seq_length);
                too_long += 1;
                if too_long > self.lines.n_lines() {
                    let message = format!(
                        "no line is an example of at most {} tokens: expected a larger data.seq_length",
                        rules.seq_length + 1
                    );
                    return Err(Error::new(Kind::BadInput, message));
                }
                continue;
            }
            lengths.push(example.tokens.len());
            if fitting(lengths.iter().copied(), rules) < lengths.len() {
                *self.next = before;
                return packed(&taken, rules);
            }
            taken.push(example);
        }
    }
}
