//! Bytes to frames: which frames (`sampler`), what the file says (`info`), how a
//! picture stands (`orientation`), the codecs (`ffmpeg`), the reader that joins
//! them (`file`); and one picture back to bytes (`png`).

pub mod ffmpeg;
pub mod file;
pub mod info;
pub mod orientation;
pub mod png;
pub mod sampler;
