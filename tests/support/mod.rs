//! What several test files need: where the golden data lie, how to compare with
//! them, how to run the program.

pub mod golden;

pub mod longreel;
