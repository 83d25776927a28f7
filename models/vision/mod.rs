//! Frames to tokens: preprocessing and the VQGAN.

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
