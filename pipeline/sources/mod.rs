//! Bytes to frames: which frames (`sampler`), what the file says (`info`), how a
//! picture stands (`orientation`), the codecs (`ffmpeg`), and the reader that
//! joins them (`file`).

pub mod sampler;
pub mod orientation;
pub mod info;
pub mod ffmpeg;
pub mod file;
