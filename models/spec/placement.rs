//! Where the features of a video are placed in a prompt.

use serde::{Deserialize, Serialize};

/// How the steps of a video are placed in the text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "steps", rename_all = "snake_case", deny_unknown_fields)]
pub enum Placement {
    /// Each step is a picture of its own for the chat template (LLaVA-1.5, VILA).
    #[default]
    Pictures,
    /// All steps replace the template's single video token (Qwen2.5-VL, LLaVA-OneVision).
    Together,
    /// All steps replace it, with text around each (Qwen3-VL, InternVL).
    Apart {
        /// The template's text for a video, which is replaced.
        instead_of: String,
        /// Text before a step; `{seconds}` is its time with one digit, `{number}` counts from 1.
        before: String,
        /// Text after a step.
        behind: String,
        /// Text between two steps.
        #[serde(default)]
        between: String,
    },
}
