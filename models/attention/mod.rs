//! Exact attention over a list of key-value blocks.

pub mod mask;

pub mod partial;

pub mod kv_cache;

pub mod blockwise;
