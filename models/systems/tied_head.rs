//! Tied embeddings as the weights have them: the text head is the embedding table, unless another head is stored.

use crate::{checkpoint::weights::Weights, error::Result, spec::DecoderSpec};

/// The embedding table.
pub const TABLE: &str = "model.embed_tokens.weight";
/// The text head.
pub const HEAD: &str = "lm_head.weight";

/// The warning about a stored head with values of its own.
const OTHER_HEAD: &str = "tie_word_embeddings is true, but lm_head.weight is stored with other values than the \
                          embedding table: the stored head is used, as in transformers";

/// What is stored of a table and a head that are to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TiedHead {
    /// The table alone, or nothing.
    Table,
    /// The head alone: it is the table too.
    HeadAlone,
    /// Both, with the same values.
    Same,
    /// Both, with different values: they are not one.
    Different,
}

impl TiedHead {
    /// By what there is; `equal` compares the two.
    ///
    /// # Errors
    /// Those of `equal`.
    pub fn of(has: impl Fn(&str) -> bool, equal: impl FnOnce() -> Result<bool>) -> Result<Self> {
        Ok(match (has(TABLE), has(HEAD)) {
            (_, false) => Self::Table,
            (false, true) => Self::HeadAlone,
            (true, true) if equal()? => Self::Same,
            (true, true) => Self::Different,
        })
    }
}

/// Brings `spec`, which ties its embeddings, and `weights` into agreement, as transformers' `tie_weights` does.
///
/// Returns the warning for the user.
///
/// # Errors
/// `BadInput` for elements of a type that no weight has.
pub fn settle(spec: &mut DecoderSpec, weights: &mut Weights) -> Result<Option<&'static str>> {
    let stored = TiedHead::of(
        |name| weights.contains(name),
        || weights.are_equal(TABLE, HEAD),
    )?;
    match stored {
        TiedHead::Table => {}
        TiedHead::HeadAlone => weights.rename(HEAD, TABLE),
        TiedHead::Same => weights.remove(HEAD),
        TiedHead::Different => {
            spec.tie_word_embeddings = false;
            return Ok(Some(OTHER_HEAD));
        }
    }
    Ok(None)
}
