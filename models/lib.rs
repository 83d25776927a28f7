//! The models of longreel, in the order data flows: frames become tokens in
//! [`vision`], tokens become a context in [`context`], the context becomes an
//! answer in [`llama`]; [`attention`] and [`checkpoint`] are the machinery below,
//! [`training`] has the gradients.
//!
//! Nothing here knows a clock, a queue, a socket or FFmpeg. Modules stand in
//! the order in which they may import one another.

pub mod error;

pub mod file_name;

pub mod folder_file;

pub mod spec;

pub mod checkpoint;

pub mod layers;

pub mod attention;

pub mod encoder;

pub mod vision;

pub mod context;

pub mod dual_encoder;

pub mod llama;

pub mod systems;

pub mod training;
