//! How the elements of a tensor are stored in its file.

use std::fmt;

use longreel_kernels::quantized::Format;
use safetensors::Dtype;

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// One by one.
    Plain(Dtype),
    /// In blocks with scales.
    Blocks(Format),
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(format) => write!(f, "{format}"),
        }
    }
}
