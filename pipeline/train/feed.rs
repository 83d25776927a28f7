//! The batches of a step, from the endless sequence of examples.

use longreel_models::training::data::{
    batch::{Batch, BatchLayout, BatchRules, TokenStream, fitting, packed, padded},
    example::{Example, ExampleRules},
};

use crate::{
    error::{Error, Kind, Result},
    train::dataset::Dataset,
};

/// Takes examples from an index of the sequence on.
pub struct Feed<'a> {
    /// The sequence.
    pub lines: &'a mut Dataset,
    /// Lines to examples.
    pub examples: &'a ExampleRules<'a>,
    /// Index of the next example.
    pub next: &'a mut u64,
    /// Buffered tokens, where examples are one stream.
    pub stream: &'a mut TokenStream,
}

impl Feed<'_> {
    /// One batch of `rules`.
    ///
    /// # Errors
    /// `BadInput` where no line of a whole pass is an example that fits a row.
    pub fn batch(&mut self, dealing: BatchLayout, rules: &BatchRules) -> Result<Batch> {
        match dealing {
            BatchLayout::NoPad => loop {
                if let Some(batch) = self.stream.next_batch(rules) {
                    return Ok(batch);
                }
                let example = self.example()?;
                self.stream.push(&example);
            },
            BatchLayout::Pad => {
                let rows = (0..rules.rows).map(|_| self.example());
                Ok(padded(&rows.collect::<Result<Vec<_>>>()?, rules))
            }
            BatchLayout::Packed => self.packed(rules),
        }
    }

    fn example(&mut self) -> Result<Example> {
        let (example, behind) = self.lines.example(*self.next, self.examples)?;
        *self.next = behind;
        Ok(example)
    }

    /// As many examples as fit the rows, in order; the first that does not fit begins the next batch.
    fn packed(&mut self, rules: &BatchRules) -> Result<Batch> {
        let (mut taken, mut lengths) = (Vec::new(), Vec::new());
        let mut too_long = 0;
        loop {
            let before = *self.next;
            let example = self.example()?;
            if example.tokens.len() > rules.seq_length + 1 {
                // `next` is one past the example; invalid lines before it were skipped.
                let (at, tokens) = (*self.next - 1, example.tokens.len());
                self.lines.skip_long(at, tokens, rules.seq_length);
                too_long += 1;
                if too_long > self.lines.n_lines() {
                    return Err(all_too_long(rules));
                }
                continue;
            }
            too_long = 0;
            lengths.push(example.tokens.len());
            if fitting(lengths.iter().copied(), rules) < lengths.len() {
                *self.next = before;
                return packed(&taken, rules);
            }
            taken.push(example);
        }
    }
}

/// The examples of one pass in order, packed, for evaluation.
///
/// # Errors
/// `BadInput` where no line is an example that fits a row.
pub fn one_pass(
    lines: &mut Dataset,
    examples: &ExampleRules,
    rules: &BatchRules,
) -> Result<Vec<Batch>> {
    let (mut batches, mut taken) = (Vec::new(), Vec::<Example>::new());
    let (mut next, n) = (0, lines.n_lines() as u64);
    while next < n {
        let (example, behind) = lines.example(next, examples)?;
        next = behind;
        // The sequence is endless: examples of the next pass are left out.
        if behind > n {
            break;
        }
        if example.tokens.len() > rules.seq_length + 1 {
            lines.skip_long(behind - 1, example.tokens.len(), rules.seq_length);
            continue;
        }
        taken.push(example);
        let lengths = taken.iter().map(|example| example.tokens.len());
        let fit = fitting(lengths, rules);
        if fit < taken.len() {
            let rest = taken.split_off(fit);
            batches.push(packed(&taken, rules)?);
            taken = rest;
        }
    }
    if !taken.is_empty() {
        batches.push(packed(&taken, rules)?);
    }
    match batches.is_empty() {
        false => Ok(batches),
        true => Err(all_too_long(rules)),
    }
}

fn all_too_long(rules: &BatchRules) -> Error {
    let message = format!(
        "no line is an example of at most {} tokens: expected a larger data.seq_length",
        rules.seq_length + 1
    );
    Error::new(Kind::BadInput, message)
}
