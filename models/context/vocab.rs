//! The joint id space: text ids and vision ids overlap as numbers, so an id
//! always travels with its modality.

use serde::{Deserialize, Serialize};

/// One token of the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Token {
    /// An id of the text vocabulary.
    Text(u32),
    /// An id of the vision vocabulary: a code of the codebook or a terminator.
    Vision(u32),
    /// A token whose embedding is a row of features, with the text id that is its placeholder.
    Feature(u32),
}

impl Token {
    /// The id without its modality.
    pub fn id(self) -> u32 {
        match self {
            Self::Text(id) | Self::Vision(id) | Self::Feature(id) => id,
        }
    }

    /// Whether the id belongs to the vision vocabulary.
    pub fn is_vision(self) -> bool {
        matches!(self, Self::Vision(_))
    }

    /// Whether its embedding is a row of features.
    pub fn is_feature(self) -> bool {
        matches!(self, Self::Feature(_))
    }
}
