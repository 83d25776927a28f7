//! The operations that decide the speed of longreel, and the only `unsafe` of
//! its models: each file holds a contract, a slow reference, and the fast kernel.
//!
//! All buffers are row-major `f32` or `bf16` slices whose last axis is
//! contiguous. Work is split over the global rayon pool.

pub mod activation;
pub mod attend;
pub mod attend_backward;
pub mod candle_threads;
pub mod check;
pub mod codebook;
pub mod conv;
pub mod conv_backward;
pub mod cpu;
mod exp;
pub mod group_norm;
pub mod group_norm_backward;
mod lanes;
pub mod layer_norm;
pub mod linear;
pub mod mapping;
mod multiply;
pub mod peak;
pub mod quantized;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;
pub mod weight_element;
