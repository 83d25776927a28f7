//! Tokens to context: the vocabulary, the tokenizer, the prompt.

pub mod prompt;
pub mod sentencepiece;
pub mod streaming;
pub mod tokenizer;
pub mod vocab;
