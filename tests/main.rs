//! The only integration test binary: does it compute the right thing
//! (`numerics`), does it behave (`system`).
#![allow(clippy::unwrap_used, missing_docs)]

mod numerics;
mod support;
mod system;
