//! The layers that all models are made of: `[n, d]` numbers in, as many rows out.

pub mod quantized;

pub mod linear;

pub mod norm;

pub mod activation;

pub mod rotary;
