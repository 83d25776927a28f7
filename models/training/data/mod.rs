//! Training data: lines of JSON to examples, examples to batches.

pub mod python_random;

pub mod fields;

pub mod example;

pub mod batch;
