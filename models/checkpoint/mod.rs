//! Weights: read in place from a model directory ([`weights`]), and imported
//! once from foreign formats.

pub mod weights;
pub mod msgpack;
pub mod pickle;
pub mod writer;
pub mod import_lwm;
pub mod import_hf;
