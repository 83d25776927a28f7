//! longreel: a video becomes frames, frames become tokens, tokens become a
//! context, a context becomes an answer.
//!
//! Modules are declared in the order in which they may import one another: a module
//! may import those above it, never those below.

pub use longreel_models::error;

pub mod time;

pub mod cancel;

pub mod flow;

pub mod sources;

pub mod reel;

pub mod plan;

pub mod hub;

pub mod vectors;

pub mod encoder;

pub mod shown;

pub mod model;

pub mod ranks;

pub mod stages;

pub mod search;

pub mod chooser;

pub mod prepare;

pub mod synth;

pub mod train;

pub mod bench;

pub mod demo_model;

pub mod cli;
