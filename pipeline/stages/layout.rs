//! How a question and what its videos show stand in a context.

use longreel_models::context::prompt::{ChatPrompt, FrameTerminators, frame_tokens};

use crate::{
    error::{Error, Kind, Result},
    flow::{EncodedStep, StepContent},
    stages::piece::Piece,
};

/// What stands around the steps of videos, and how a step stands there.
pub enum Layout {
    /// Text, and codes as tokens of their own vocabulary (LWM).
    Codes {
        /// The question, cut where frames go.
        prompt: ChatPrompt,
        /// What follows a frame's codes.
        terminators: FrameTerminators,
    },
}

impl Layout {
    /// What stands before the first step.
    pub fn head(&mut self) -> Piece {
        match self {
            Self::Codes { prompt, .. } => Piece::from(prompt.head.clone()),
        }
    }

    /// One step; `last` is said of the last of its video.
    ///
    /// # Errors
    /// `Internal` for a step of another model.
    pub fn step(&mut self, step: EncodedStep, last: bool) -> Result<Piece> {
        match (self, step.content) {
            (Self::Codes { terminators, .. }, StepContent::Codes(codes)) => {
                Ok(Piece::from(frame_tokens(&codes, last, *terminators)))
            }
            (Self::Codes { .. }, StepContent::Features(_)) => {
                let message = "features of a frame, expected codes";
                Err(Error::new(Kind::Internal, message))
            }
        }
    }

    /// What stands behind a video, which `is_last` or not.
    pub fn after(&mut self, is_last: bool) -> Piece {
        match self {
            Self::Codes { prompt, .. } if is_last => Piece::from(prompt.tail.clone()),
            Self::Codes { prompt, .. } => Piece::from(prompt.between.clone()),
        }
    }

    /// Tokens beside those of the steps, for `n_videos` videos.
    pub fn n_text_tokens(&self, n_videos: usize) -> usize {
        match self {
            Self::Codes { prompt, .. } => prompt.n_text_tokens(n_videos),
        }
    }
}
