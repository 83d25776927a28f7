#![no_main]
//! One call: the logic is in `targets.rs`, which the replay under `tests/system` shares.

#[allow(dead_code)]
#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::gguf_file(bytes));
