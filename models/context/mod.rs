//! Tokens to context: the vocabulary, the tokenizer, the prompt, packed prompts, positions.

pub mod chat_template;
mod decoding_rule;
pub mod gguf;
pub mod packing;
pub mod positions;
pub mod prompt;
pub mod sentencepiece;
pub mod streaming;
pub mod text_encoder;
pub mod tokenizer;
mod tokenizer_config;
pub mod vision_prompt;
pub mod vocab;
