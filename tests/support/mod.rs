//! What several test files need: where the golden data lie, and how to compare with them.

pub mod golden;
