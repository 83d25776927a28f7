//! Training runs of decoders and VQGANs: configuration, data, checkpoints, metrics and plots.

pub mod config_file;

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

pub mod unfinished_file;

pub mod lines;

pub mod pairs;

pub mod make_qa;

pub mod tokenizer;
