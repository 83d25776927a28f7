//! Tokens to context: the vocabulary, the tokenizer, the prompt.

pub mod vocab;
pub mod sentencepiece;
pub mod streaming;
pub mod tokenizer;
pub mod prompt;
