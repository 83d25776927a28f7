//! The joint id space: text ids and vision ids overlap as numbers, so an id
//! always travels with its modality.

use crate::spec::ModelSpec;

/// One position of the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Token {
    /// An id of the text vocabulary.
    Text(u32),
    /// An id of the vision vocabulary: a code of the codebook or a terminator.
    Vision(u32),
}

impl Token {
    /// The id without its modality.
    pub fn id(self) -> u32 {
        match self {
            Self::Text(id) | Self::Vision(id) => id,
        }
    }

    /// Whether the id belongs to the vision vocabulary.
    pub fn is_vision(self) -> bool {
        matches!(self, Self::Vision(_))
    }
}

/// The vision ids that end a frame; they follow the codes of the codebook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEndIds {
    /// Ends a frame that another follows (`<eof>` of `lwm/data.py`).
    pub end_of_frame: u32,
    /// Ends the last frame (`<eov>` of `lwm/data.py`).
    pub end_of_vision: u32,
}

/// The ids of every released LWM.
pub const LWM_FRAME_ENDS: FrameEndIds = FrameEndIds {
    end_of_frame: 8192,
    end_of_vision: 8193,
};

impl From<&ModelSpec> for FrameEndIds {
    fn from(spec: &ModelSpec) -> Self {
        Self {
            end_of_frame: spec.end_of_frame_id,
            end_of_vision: spec.end_of_vision_id,
        }
    }
}
