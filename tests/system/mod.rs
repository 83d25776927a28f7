//! Does it behave: sources, sampling, stages, the command line, bad input.

mod bad_folders;
mod bad_input;
mod bench;
mod chooser;
mod command_line;
mod decode;
mod demo;
mod every_folder;
mod file_names;
mod fuzz_corpus;
mod gguf;
mod hub;
mod make_qa;
mod odd_files;
mod opening;
mod pictures;
mod reels;
mod ring;
mod sampler;
mod search;
mod stages;
mod synth;
mod systems;
mod tidy;
mod train;
mod train_vqgan;
