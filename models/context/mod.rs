//! Tokens to context: the vocabulary, the tokenizer, the prompt.

pub mod vocab;
pub mod tokenizer;
pub mod prompt;
