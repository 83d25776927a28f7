//! What several test files need: where the golden data lie and how to compare with
//! them, clips, how to run the program.

pub mod folder_cases;
pub mod folders;
pub mod gguf;
pub mod golden;
pub mod tiny_decoder;

pub mod clips;
pub mod longreel;
pub mod tensors;
pub mod tux;
pub mod vgg;
