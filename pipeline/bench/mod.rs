//! Benchmarks: the machine's peak rates and the program's speed, measured in the same run.

pub mod sample_summary;

pub mod machine;

pub mod ceilings;

pub mod case;

pub mod work;

pub mod peer;

pub mod kernels;

pub mod random_weights;

pub mod context;

pub mod answers;

pub mod heat_map;
