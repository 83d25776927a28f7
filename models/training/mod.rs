//! Training: data, gradients of our own operations, losses and the optimizer, for the decoder
//! and for the VQGAN.

pub mod data;

pub mod batch_mask;

pub mod gradients;

mod operands;

mod recorded;

pub mod attention;

pub mod ring_gradients;

pub mod ring_attention;

mod pointwise;

pub mod loss;

pub mod parameters;

pub mod network;

pub mod schedule;

pub mod optimizer;

pub mod trainer;

pub mod model_directory;

pub mod vqgan;

pub mod tokenizer;
