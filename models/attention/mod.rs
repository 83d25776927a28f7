//! Exact attention over a list of key-value blocks, on one rank or several.

pub mod mask;

pub mod partial;

pub mod budget;

pub mod spill;

pub mod kv_cache;

pub mod blockwise;

pub mod shard;

pub mod link;

pub mod ring;
