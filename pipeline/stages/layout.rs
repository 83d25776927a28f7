//! How a question and what its videos show stand in a context.

use std::sync::Arc;

use longreel_models::{
    context::{
        prompt::{ChatPrompt, FrameTerminators, frame_tokens, text_prompt},
        tokenizer::Tokenizer,
        vision_prompt::{StepPlace, VisionPrompt, words_prompt},
    },
    spec::FrameEnd,
};

use crate::{
    error::{Error, Kind, Result},
    flow::{EncodedStep, FrameMark, StepContent},
    model::ModelFiles,
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
    /// Text, and features in place of embeddings.
    Features(FeatureLayout),
}

/// A prompt of a vision-language model, and how far its videos have come.
pub struct FeatureLayout {
    tokenizer: Arc<Tokenizer>,
    prompt: VisionPrompt,
    /// Steps of this video so far.
    steps: usize,
}

impl FeatureLayout {
    /// A prompt whose videos have not begun.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: VisionPrompt) -> Self {
        Self {
            tokenizer,
            prompt,
            steps: 0,
        }
    }

    fn step(
        &mut self,
        frames: &[FrameMark],
        mut features: Vec<f32>,
        width: usize,
        newline: Option<&[f32]>,
    ) -> Result<Piece> {
        let place = StepPlace {
            number: self.steps,
            seconds: middle(frames),
            is_last: newline.is_some(),
        };
        features.extend_from_slice(newline.unwrap_or_default());
        let rows = features.len() / width.max(1);
        let tokens = self.prompt.step(&self.tokenizer, place, rows)?;
        self.steps += 1;
        Ok(Piece { tokens, features })
    }

    fn after(&mut self, is_last: bool) -> Piece {
        self.steps = 0;
        Piece::from(self.prompt.after(is_last).to_vec())
    }

    /// Most tokens of a step with `rows` features.
    fn step_tokens(&self, rows: usize) -> Result<usize> {
        let place = StepPlace {
            number: 99_999,
            seconds: 99_999.9,
            is_last: false,
        };
        Ok(self.prompt.step(&self.tokenizer, place, rows)?.len())
    }
}

/// The time between the first and the last frame of a step, in seconds.
fn middle(frames: &[FrameMark]) -> f64 {
    let seconds = |frame: Option<&FrameMark>| frame.map_or(0.0, |f| f.time.pts.seconds());
    (seconds(frames.first()) + seconds(frames.last())) / 2.0
}

impl Layout {
    /// How `question` and `n_videos` videos will stand in the context of `model`; `end` is the user's
    /// choice of what ends a frame's codes.
    ///
    /// # Errors
    /// `BadInput` for videos before a text model, or a chat template that does not take the question.
    pub fn of(
        model: &ModelFiles,
        question: &str,
        n_videos: usize,
        end: Option<FrameEnd>,
    ) -> Result<Self> {
        if n_videos > 0 {
            model.check_vision()?;
        }
        let tokenizer = &model.tokenizer;
        let template = model.template.as_deref();
        if let Some(vision) = &model.spec.vision {
            let template = template.ok_or_else(|| no_template(model))?;
            let prompt = VisionPrompt::new(tokenizer, template, vision, question, n_videos)?;
            let layout = FeatureLayout::new(Arc::clone(tokenizer), prompt);
            return Ok(Self::Features(layout));
        }
        let prompt = match template {
            _ if n_videos > 0 => ChatPrompt::new(tokenizer, question)?,
            Some(template) => ChatPrompt::of_words(words_prompt(tokenizer, template, question)?),
            None => text_prompt(tokenizer, question)?,
        };
        let terminators = FrameTerminators {
            end: end.unwrap_or(model.spec.frame_end),
            ..FrameTerminators::from(&model.spec)
        };
        Ok(Self::Codes {
            prompt,
            terminators,
        })
    }

    /// What stands before the first step.
    pub fn head(&self) -> Piece {
        Piece::from(match self {
            Self::Codes { prompt, .. } => prompt.head.clone(),
            Self::Features(layout) => layout.prompt.head().to_vec(),
        })
    }

    /// One step, behind which another follows in its video.
    ///
    /// # Errors
    /// `Internal` for a step of another model.
    pub fn step(&mut self, step: EncodedStep) -> Result<Piece> {
        match (self, step.content) {
            (Self::Codes { terminators, .. }, StepContent::Codes(codes)) => {
                Ok(Piece::from(frame_tokens(&codes, false, *terminators)))
            }
            (Self::Features(layout), StepContent::Features(features)) => {
                layout.step(&step.frames, features.rows, features.width, None)
            }
            _ => Err(of_another_model()),
        }
    }

    /// The last step of a video; `newline` is the row that some models put behind it.
    ///
    /// # Errors
    /// As [`Layout::step`].
    pub fn last_step(&mut self, step: EncodedStep, newline: &[f32]) -> Result<Piece> {
        match (self, step.content) {
            (Self::Codes { terminators, .. }, StepContent::Codes(codes)) => {
                Ok(Piece::from(frame_tokens(&codes, true, *terminators)))
            }
            (Self::Features(layout), StepContent::Features(features)) => {
                layout.step(&step.frames, features.rows, features.width, Some(newline))
            }
            _ => Err(of_another_model()),
        }
    }

    /// What stands behind a video, which `is_last` or not.
    pub fn after(&mut self, is_last: bool) -> Piece {
        match self {
            Self::Codes { prompt, .. } if is_last => Piece::from(prompt.tail.clone()),
            Self::Codes { prompt, .. } => Piece::from(prompt.between.clone()),
            Self::Features(layout) => layout.after(is_last),
        }
    }

    /// Tokens beside those of the steps, for `n_videos` videos.
    pub fn n_text_tokens(&self, n_videos: usize) -> usize {
        match self {
            Self::Codes { prompt, .. } => prompt.n_text_tokens(n_videos),
            Self::Features(layout) => layout.prompt.n_text_tokens(n_videos),
        }
    }

    /// Most tokens of a step that the encoder makes `rows` rows or codes of.
    ///
    /// # Errors
    /// `BadInput` when the words around a step cannot be tokenized.
    pub fn step_tokens(&self, rows: usize) -> Result<usize> {
        match self {
            Self::Codes { .. } => Ok(rows),
            Self::Features(layout) => layout.step_tokens(rows),
        }
    }
}

fn no_template(model: &ModelFiles) -> Error {
    let message =
        "it has no chat template, expected chat_template.jinja or another of transformers' files";
    Error::new(Kind::BadInput, message).doing(format!("open the model {}", model.dir.display()))
}

fn of_another_model() -> Error {
    let message = "a step of another model's encoder, expected one of this model's";
    Error::new(Kind::Internal, message)
}
