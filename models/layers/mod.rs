//! Layers shared by all models: `[n, d]` in, `n` rows out.

pub mod quantized;

pub mod linear;

pub mod norm;

pub mod activation;

pub mod rotary;
