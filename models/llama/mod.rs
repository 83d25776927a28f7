//! Context to answer: the decoder.

pub mod block;
pub mod rope;
pub mod sampler;
pub mod generate;
