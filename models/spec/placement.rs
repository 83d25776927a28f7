//! Where the features of a video stand in a prompt.

use serde::{Deserialize, Serialize};

/// How the temporal steps of a video stand among the words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "steps", rename_all = "snake_case", deny_unknown_fields)]
pub enum Placement {
    /// Each is a picture of its own to the chat template (LLaVA-1.5, VILA).
    #[default]
    Pictures,
    /// All of a video stand where the template has the video's one token (Qwen2.5-VL, LLaVA-OneVision).
    Together,
    /// They stand there with words around each (Qwen3-VL, InternVL).
    Apart {
        /// What the template writes for a video, all of which gives way.
        instead_of: String,
        /// Before a step; `{seconds}` is its time with one digit, `{number}` counts from 1.
        before: String,
        /// Behind a step.
        behind: String,
        /// Between two.
        #[serde(default)]
        between: String,
    },
}
