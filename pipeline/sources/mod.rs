//! Bytes to frames.

pub mod ffmpeg;
pub mod file;
pub mod sampler;
