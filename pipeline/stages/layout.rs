//! How a question and what its videos show stand in a context.

use std::sync::Arc;

use longreel_models::{
    context::{
        positions::{PositionBuilder, Seconds},
        prompt::{ChatPrompt, FrameTerminators, frame_tokens, text_prompt},
        tokenizer::Tokenizer,
        vision_prompt::{StepPlace, VisionPrompt, words_prompt},
        vocab::Token,
    },
    spec::{
        FrameEnd,
        features::{PositionRule, VisionSpec},
        frame_choice::time_instruction,
    },
};

use crate::{
    encoder::StepShape,
    error::{Error, Kind, Result},
    flow::{EncodedStep, FeatureRows, FrameMark, StepContent},
    model::ModelFiles,
    stages::{decode::Source, piece::Piece},
    time::Pts,
};

/// Height and width of a video that nobody has seen yet.
pub const ASSUMED_SIZE: [usize; 2] = [1080, 1920];

/// How many frames are seen, and the positions that they take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sight {
    /// Frames.
    pub frames: u64,
    /// Positions of one, rounded up where a step has several; of the video where it has most.
    pub tokens_per_frame: u64,
    /// Positions of all, words about them included.
    pub vision_tokens: u64,
}

impl Sight {
    fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.tokens_per_frame = self.tokens_per_frame.max(other.tokens_per_frame);
        self.vision_tokens = self.vision_tokens.saturating_add(other.vision_tokens);
    }
}

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
    Features(Box<FeatureLayout>),
}

/// A prompt of a vision-language model, and how far its videos have come.
pub struct FeatureLayout {
    tokenizer: Arc<Tokenizer>,
    prompt: VisionPrompt,
    /// What numbers the tokens of models whose positions have three components.
    positions: Option<PositionBuilder>,
    /// Positions of a second of video, where time is counted so.
    per_second: Option<u32>,
    /// Learned rows behind a video.
    rows_behind: u64,
    /// Steps of this video so far.
    steps: usize,
    /// The time of its first frame.
    start: Option<Pts>,
    /// The times of its frames in seconds, where they are told behind it.
    times: Vec<f64>,
}

impl FeatureLayout {
    /// A prompt for a model of `vision`, whose videos have not begun.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: VisionPrompt, vision: &VisionSpec) -> Self {
        let positions = vision.positions;
        Self {
            rows_behind: vision.features.rows_behind(),
            tokenizer,
            prompt,
            per_second: match positions {
                Some(PositionRule::Timed {
                    tokens_per_second, ..
                }) => Some(tokens_per_second),
                _ => None,
            },
            positions: positions.map(PositionBuilder::new),
            steps: 0,
            start: None,
            times: Vec::new(),
        }
    }

    /// Words of the prompt, where they stand.
    fn words(&mut self, tokens: Vec<Token>) -> Piece {
        let mut piece = Piece::from(tokens);
        if let Some(builder) = &mut self.positions
            && !piece.tokens.is_empty()
        {
            builder.text(piece.tokens.len(), &mut piece.positions);
        }
        piece
    }

    fn head(&mut self) -> Piece {
        self.words(self.prompt.head().to_vec())
    }

    fn step(
        &mut self,
        frames: &[FrameMark],
        features: FeatureRows,
        newline: Option<&[f32]>,
    ) -> Result<Piece> {
        let place = StepPlace {
            number: self.steps,
            seconds: middle(frames),
            is_last: newline.is_some(),
        };
        let mut rows = features.rows;
        rows.extend_from_slice(newline.unwrap_or_default());
        let n_rows = rows.len() / features.width.max(1);
        let tokens = self.prompt.step(&self.tokenizer, place, n_rows)?;
        let time = self.time(frames);
        if self.prompt.tells_times() {
            let seconds = frames.iter().map(|frame| frame.time.pts.seconds());
            self.times.extend(seconds);
        }
        self.steps += 1;
        let first = tokens
            .iter()
            .position(|token| token.is_feature())
            .unwrap_or(0);
        let (before, rest) = tokens.split_at(first);
        let (here, behind) = rest.split_at(n_rows.min(rest.len()));
        let mut piece = self.words(before.to_vec());
        piece.append(self.placed(here.to_vec(), features.grid, time));
        piece.append(self.words(behind.to_vec()));
        piece.features = rows;
        Ok(piece)
    }

    /// The rows of one step, where they stand.
    fn placed(&mut self, tokens: Vec<Token>, grid: Option<[usize; 2]>, time: Seconds) -> Piece {
        let mut piece = Piece::from(tokens);
        if let (Some(builder), Some([rows, columns])) = (&mut self.positions, grid) {
            builder.step(rows, columns, Some(time), &mut piece.positions);
        }
        piece
    }

    /// How long behind the first frame of its video a step begins.
    fn time(&mut self, frames: &[FrameMark]) -> Seconds {
        let Some(now) = frames.first().map(|frame| frame.time.pts) else {
            return Seconds::whole(0);
        };
        let start = *self.start.get_or_insert(now);
        Seconds {
            ticks: u64::try_from(now.ticks.saturating_sub(start.ticks)).unwrap_or(0),
            num: now.time_base.num,
            den: now.time_base.den,
        }
    }

    fn after(&mut self, is_last: bool, shown_seconds: Option<f64>) -> Result<Piece> {
        (self.steps, self.start) = (0, None);
        let times = std::mem::take(&mut self.times);
        let instruction = shown_seconds.map(|shown| time_instruction(shown, &times));
        let tokens = self
            .prompt
            .after(&self.tokenizer, is_last, instruction.as_deref())?;
        Ok(self.words(tokens))
    }

    /// Most tokens of one of `steps` steps with `rows` features.
    fn step_tokens(&self, rows: usize, steps: u64) -> Result<usize> {
        let place = StepPlace {
            number: usize::try_from(steps).unwrap_or(usize::MAX - 1),
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
            let layout = FeatureLayout::new(Arc::clone(tokenizer), prompt, vision);
            return Ok(Self::Features(Box::new(layout)));
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
    pub fn head(&mut self) -> Piece {
        match self {
            Self::Codes { prompt, .. } => Piece::from(prompt.head.clone()),
            Self::Features(layout) => layout.head(),
        }
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
                layout.step(&step.frames, features, None)
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
                layout.step(&step.frames, features, Some(newline))
            }
            _ => Err(of_another_model()),
        }
    }

    /// What stands behind a video, which `is_last` or not and is shown so long; `None` for a still picture, whose
    /// time nobody tells.
    ///
    /// # Errors
    /// `BadInput` when the words cannot be tokenized.
    pub fn after(&mut self, is_last: bool, shown_seconds: Option<f64>) -> Result<Piece> {
        match self {
            Self::Codes { prompt, .. } if is_last => Ok(Piece::from(prompt.tail.clone())),
            Self::Codes { prompt, .. } => Ok(Piece::from(prompt.between.clone())),
            Self::Features(layout) => layout.after(is_last, shown_seconds),
        }
    }

    /// Tokens beside those of the steps, for `n_videos` videos.
    pub fn n_text_tokens(&self, n_videos: usize) -> usize {
        match self {
            Self::Codes { prompt, .. } => prompt.n_text_tokens(n_videos),
            Self::Features(layout) => layout.prompt.n_text_tokens(n_videos),
        }
    }

    /// Positions of a video of `n_frames` pictures of height and width `size`, words between its steps and about their
    /// times included; at most.
    ///
    /// # Errors
    /// `BadInput` for pictures that the model does not take, or words around them that cannot be tokenized.
    pub fn video_tokens(
        &self,
        shape: &StepShape,
        size: [usize; 2],
        n_frames: u64,
    ) -> Result<Sight> {
        let n = usize::try_from(n_frames).unwrap_or(usize::MAX);
        let rows = shape.rows(size, n)?;
        let per_step = shape.frames() as u64;
        let steps = n_frames.div_ceil(per_step);
        let of_step = match self {
            Self::Codes { .. } => rows,
            Self::Features(layout) => layout.step_tokens(rows, steps)?,
        } as u64;
        let behind = match self {
            Self::Codes { .. } => 0,
            Self::Features(layout) => {
                let times = layout.prompt.times_tokens(&layout.tokenizer, n_frames)?;
                times.saturating_add(layout.rows_behind)
            }
        };
        Ok(Sight {
            frames: n_frames,
            tokens_per_frame: of_step.div_ceil(per_step),
            vision_tokens: steps.saturating_mul(of_step).saturating_add(behind),
        })
    }

    /// Most frames of `sources` together, as many of each, that take at most `room` positions.
    ///
    /// Where a budget of pixels is shared by all frames of a video, fewer of them are larger each: no division tells.
    ///
    /// # Errors
    /// As [`Layout::video_tokens`].
    pub fn frames_that_fit(&self, shape: &StepShape, sources: &[Source], room: u64) -> Result<u64> {
        let videos = sources.len().max(1) as u64;
        let taken = |each: u64| -> Result<u64> {
            let mut all = Sight::default();
            for size in sources.iter().map(size_of) {
                all.add(self.video_tokens(shape, size, each)?);
            }
            Ok(all.vision_tokens)
        };
        let (mut fits, mut too_many) = (0, room.saturating_mul(shape.frames() as u64) + 1);
        while fits + 1 < too_many {
            let middle = fits + (too_many - fits) / 2;
            match taken(middle)? <= room {
                true => fits = middle,
                false => too_many = middle,
            }
        }
        Ok(fits * videos)
    }

    /// Refuses videos whose times reach positions beyond `limit`, of models that count positions by time (Qwen2.5-VL).
    ///
    /// # Errors
    /// `TooLarge`, with the numbers.
    pub fn check_times(&self, sources: &[Source], limit: usize) -> Result<()> {
        let Self::Features(layout) = self else {
            return Ok(());
        };
        let Some(per_second) = layout.per_second else {
            return Ok(());
        };
        let seconds = |source: &Source| match source {
            Source::Video { reader, .. } => reader.chosen_seconds(),
            Source::Reel(_) => 0.0,
        };
        let seconds: f64 = sources.iter().map(seconds).sum();
        let last = seconds * f64::from(per_second);
        if last < limit as f64 {
            return Ok(());
        }
        let message = format!(
            "the frames are {seconds:.0} s apart and the model counts {per_second} positions a second, expected at most its {limit} positions: \
             take {:.0} s (--from, --to)",
            limit as f64 / f64::from(per_second)
        );
        Err(Error::new(Kind::TooLarge, message))
    }

    /// [`Layout::video_tokens`] of all sources together.
    ///
    /// # Errors
    /// As there.
    pub fn sight(&self, shape: Option<&StepShape>, sources: &[Source]) -> Result<Sight> {
        let Some(shape) = shape else {
            return Ok(Sight::default());
        };
        let mut all = Sight::default();
        for source in sources {
            // A video that cannot tell is counted as it comes, by the assemble stage.
            let n_frames = source.expected_frames().unwrap_or(0);
            all.add(self.video_tokens(shape, size_of(source), n_frames)?);
        }
        Ok(all)
    }
}

/// Height and width of a source's pictures.
fn size_of(source: &Source) -> [usize; 2] {
    match source {
        Source::Video { reader, .. } => [reader.info().height, reader.info().width],
        Source::Reel(_) => ASSUMED_SIZE,
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
