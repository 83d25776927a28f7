//! Does it behave: sources, sampling, stages, the command line, bad input.

mod decode;
mod sampler;
mod hub;
mod stages;
mod command_line;
mod bad_input;
mod fuzz_corpus;
mod tidy;
