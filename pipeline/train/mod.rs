//! Training of decoders and VQGANs: what is trained on what, kept where, and shown how.

pub mod written;

pub mod config;

pub mod dataset;

pub mod feed;

pub mod run_directory;

pub mod metrics;

pub mod plot;

pub mod decoder;

pub mod vqgan_config;

pub mod frame_file;

pub mod vqgan;

pub mod partial;

pub mod lines;

pub mod pairs;

pub mod make_qa;

pub mod tokenizer;
