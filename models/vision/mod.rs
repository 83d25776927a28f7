//! Pictures and frames to codes, features or vectors: preprocessing and the vision encoders.

pub mod image;
pub mod patches;
pub mod processor;
pub mod vqgan;

pub mod table;

pub mod vit;

pub mod classifier;

pub mod conv_net;

pub mod connector;

pub mod native;

pub mod features;
