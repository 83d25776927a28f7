//! The layout of a prompt: how a question and its videos are placed in a context.

use std::{cmp::Ordering, sync::Arc};

use longreel_models::{
    context::{
        positions::{PositionBuilder, Seconds},
        prompt::{ChatPrompt, FrameTerminators, frame_tokens, text_prompt},
        tokenizer::Tokenizer,
        vision_prompt::{StepPlace, VisionPrompt, words_prompt},
        vocab::Token,
    },
    file_name::FileName,
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
    reel::{RecordHead, ReelContent, ReelReader, ReelVideo},
    stages::{decode::Source, piece::Piece},
    time::Pts,
};

/// Height and width that a plan assumes for an unknown video.
pub const ASSUMED_SIZE: [usize; 2] = [1080, 1920];

/// Numbers of frames and of their tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sight {
    /// Frames.
    pub frames: u64,
    /// Tokens per frame, rounded up where a step has several; of the video with the most.
    pub tokens_per_frame: u64,
    /// Tokens of all frames, text around them included.
    pub vision_tokens: u64,
}

impl Sight {
    fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.tokens_per_frame = self.tokens_per_frame.max(other.tokens_per_frame);
        self.vision_tokens = self.vision_tokens.saturating_add(other.vision_tokens);
    }
}

/// The text around the steps of videos, and the tokens of a step.
pub enum Layout {
    /// Text, and codes as tokens of their own vocabulary (LWM).
    Codes {
        /// The question, split where frames go.
        prompt: ChatPrompt,
        /// The terminators after a frame's codes.
        terminators: FrameTerminators,
    },
    /// Text, and features in place of embeddings.
    Features(Box<FeatureLayout>),
}

/// The prompt of a vision-language model, with the progress of its videos.
pub struct FeatureLayout {
    tokenizer: Arc<Tokenizer>,
    prompt: VisionPrompt,
    /// The position builder of models whose positions have three components.
    positions: Option<PositionBuilder>,
    /// Positions per second of video, where positions follow time.
    per_second: Option<u32>,
    /// Newline rows after a video.
    newlines: usize,
    /// Steps of the current video so far.
    steps: usize,
    /// The time of its first frame.
    start: Option<Pts>,
    /// The times of its frames in seconds, where the prompt states them.
    times: Vec<f64>,
}

impl FeatureLayout {
    /// The layout of `prompt` for a model of `vision`, before its first video.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: VisionPrompt, vision: &VisionSpec) -> Self {
        let positions = vision.positions;
        Self {
            tokenizer,
            prompt,
            newlines: vision.features.newlines(),
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

    /// A piece of text, with positions.
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
            let seconds = frames.iter().map(|frame| frame.time.seconds());
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

    /// The features of one step, with positions.
    fn placed(&mut self, tokens: Vec<Token>, grid: Option<[usize; 2]>, time: Seconds) -> Piece {
        let mut piece = Piece::from(tokens);
        if let (Some(builder), Some([rows, columns])) = (&mut self.positions, grid) {
            builder.step(rows, columns, Some(time), &mut piece.positions);
        }
        piece
    }

    /// Time of a step since the first frame of its video.
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
        let instruction = instruction(shown_seconds, &times);
        let tokens = self
            .prompt
            .after(&self.tokenizer, is_last, instruction.as_deref())?;
        Ok(self.words(tokens))
    }

    /// Tokens of the steps of each video of a reel of features, without those of their times.
    fn kept(&self, reel: &ReelReader) -> Result<Vec<KeptSteps>> {
        let header = reel.header();
        let kept = |video: &ReelVideo| KeptSteps::new(header.content.step_frames(), video.shown_s);
        let mut videos: Vec<KeptSteps> = header.videos.iter().map(kept).collect();
        for head in reel.heads() {
            let RecordHead { video, frames } = head?;
            let step = header.videos.get(video).and_then(|video| video.step);
            let (Some(steps), Some(step)) = (videos.get_mut(video), step) else {
                continue;
            };
            let place = StepPlace {
                number: steps.tokens.len(),
                seconds: middle(&frames),
                is_last: false,
            };
            let tokens = |place, rows| self.prompt.step(&self.tokenizer, place, rows);
            let here = tokens(place, step.rows)?.len() as u64;
            if steps.tokens.is_empty() {
                let is_last = true;
                let last = tokens(StepPlace { is_last, ..place }, step.rows + self.newlines)?;
                steps.more_at_end = last.len() as i64 - here as i64;
            }
            steps.push(&frames, here);
        }
        Ok(videos)
    }

    /// The videos of a reel of features; `is_last` if it is the last source.
    fn footage(&self, reel: &ReelReader, is_last: bool) -> Result<Vec<Footage>> {
        let mut videos = self.kept(reel)?;
        let n = videos.len();
        for (i, steps) in videos.iter_mut().enumerate() {
            steps.told = self.told(steps, is_last && i + 1 == n)?;
        }
        Ok(videos.into_iter().map(Footage::Kept).collect())
    }

    /// Tokens of the sentence with the times of all frames of `steps`, after the last of all videos or another.
    fn told(&self, steps: &KeptSteps, is_last: bool) -> Result<u64> {
        if !self.prompt.tells_times() {
            return Ok(0);
        }
        let instruction = instruction(steps.shown_seconds, &steps.times);
        let behind = |words: Option<&str>| self.prompt.after(&self.tokenizer, is_last, words);
        let (with, without) = (behind(instruction.as_deref())?, behind(None)?);
        Ok(with.len().saturating_sub(without.len()) as u64)
    }

    /// Maximum tokens of one of `steps` steps with `rows` features.
    fn step_tokens(&self, rows: usize, steps: u64) -> Result<usize> {
        let place = StepPlace {
            number: usize::try_from(steps).unwrap_or(usize::MAX - 1),
            seconds: 99_999.9,
            is_last: false,
        };
        Ok(self.prompt.step(&self.tokenizer, place, rows)?.len())
    }
}

/// Token counts of the steps of a video in a reel, text between them included.
struct KeptSteps {
    /// Frames per step.
    of_step: u64,
    /// Tokens of each step, as if another followed.
    tokens: Vec<u64>,
    /// Additional tokens of the last step of a video; may be negative.
    more_at_end: i64,
    /// Tokens of the sentence with all frames' times.
    told: u64,
    /// Times of the frames, in seconds.
    times: Vec<f64>,
    /// Duration of the video in seconds.
    shown_seconds: Option<f64>,
}

impl KeptSteps {
    fn new(of_step: usize, shown_seconds: Option<f64>) -> Self {
        Self {
            of_step: of_step.max(1) as u64,
            tokens: Vec::new(),
            more_at_end: 0,
            told: 0,
            times: Vec::new(),
            shown_seconds,
        }
    }

    fn push(&mut self, frames: &[FrameMark], tokens: u64) {
        let times = frames.iter().map(|frame| frame.time.seconds());
        self.times.extend(times);
        self.tokens.push(tokens);
    }

    fn frames(&self) -> u64 {
        self.times.len() as u64
    }

    /// Tokens of the first `n_frames` frames and of their times, of which there are at most `most_told`; where there
    /// are fewer frames, further steps count like the last.
    fn of_frames(&self, n_frames: u64, most_told: u64) -> u64 {
        let told = match n_frames.cmp(&self.frames()) {
            Ordering::Less => most_told.min(self.told),
            Ordering::Equal => self.told,
            Ordering::Greater => most_told.max(self.told),
        };
        self.of_steps(n_frames).saturating_add(told)
    }

    /// Tokens of the steps of the first `n_frames` frames.
    fn of_steps(&self, n_frames: u64) -> u64 {
        let steps = n_frames.div_ceil(self.of_step);
        let here = usize::try_from(steps).map_or(self.tokens.len(), |n| n.min(self.tokens.len()));
        let last = self.tokens.last().copied().unwrap_or_default();
        let beyond = (steps - here as u64).saturating_mul(last);
        let all = self.tokens[..here]
            .iter()
            .sum::<u64>()
            .saturating_add(beyond);
        match steps {
            0 => 0,
            _ => all.saturating_add_signed(self.more_at_end),
        }
    }

    fn sight(&self) -> Sight {
        let most = self.tokens.iter().copied().max().unwrap_or_default();
        Sight {
            frames: self.frames(),
            tokens_per_frame: most.div_ceil(self.of_step),
            vision_tokens: self.of_frames(self.frames(), self.told),
        }
    }

    /// Seconds from the first frame to the last.
    fn seconds(&self) -> f64 {
        let ends = self.times.first().zip(self.times.last());
        ends.map_or(0.0, |(first, last)| last - first)
    }
}

/// One video of a job, before it is decoded or read.
enum Footage {
    /// Pictures of one height and width.
    Pictures { size: [usize; 2], n_frames: u64 },
    /// Steps of a reel of features.
    Kept(KeptSteps),
}

/// The sentence with the times of a video's frames; `None` for a still picture, and without frames.
fn instruction(shown_seconds: Option<f64>, times: &[f64]) -> Option<String> {
    let shown = shown_seconds.filter(|_| !times.is_empty())?;
    Some(time_instruction(shown, times))
}

/// The mean time of the first and the last frame of a step, in seconds.
fn middle(frames: &[FrameMark]) -> f64 {
    let seconds = |frame: Option<&FrameMark>| frame.map_or(0.0, |f| f.time.seconds());
    (seconds(frames.first()) + seconds(frames.last())) / 2.0
}

impl Layout {
    /// The layout of `question` and `n_videos` videos for `model`; `end` is the user's
    /// choice of terminators.
    ///
    /// # Errors
    /// `BadInput` for videos with a text model, or a chat template that rejects the question.
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

    /// The prompt before the first step.
    pub fn head(&mut self) -> Piece {
        match self {
            Self::Codes { prompt, .. } => Piece::from(prompt.head.clone()),
            Self::Features(layout) => layout.head(),
        }
    }

    /// A step that is not the last of its video.
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

    /// The last step of a video; `newline` is the newline row, where the model has one.
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

    /// The prompt after a video; `shown_seconds` is `None` for a still picture, whose
    /// time is not stated.
    ///
    /// # Errors
    /// `BadInput` when the text cannot be tokenized.
    pub fn after(&mut self, is_last: bool, shown_seconds: Option<f64>) -> Result<Piece> {
        match self {
            Self::Codes { prompt, .. } if is_last => Ok(Piece::from(prompt.tail.clone())),
            Self::Codes { prompt, .. } => Ok(Piece::from(prompt.between.clone())),
            Self::Features(layout) => layout.after(is_last, shown_seconds),
        }
    }

    /// Tokens besides those of the steps, for `n_videos` videos.
    pub fn n_text_tokens(&self, n_videos: usize) -> usize {
        match self {
            Self::Codes { prompt, .. } => prompt.n_text_tokens(n_videos),
            Self::Features(layout) => layout.prompt.n_text_tokens(n_videos),
        }
    }

    /// Maximum tokens of a video of `n_frames` pictures of height and width `size`, text between its steps and about their
    /// times included.
    ///
    /// # Errors
    /// `BadInput` for pictures that the model does not accept, or text that cannot be tokenized.
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
        let newlines = match self {
            Self::Features(layout) if steps > 0 => layout.newlines as u64,
            _ => 0,
        };
        let behind = newlines.saturating_add(self.times_tokens(n_frames)?);
        Ok(Sight {
            frames: n_frames,
            tokens_per_frame: of_step.div_ceil(per_step),
            vision_tokens: steps.saturating_mul(of_step).saturating_add(behind),
        })
    }

    /// Maximum frames of `sources` together, equally many of each video, that take at most `room` tokens.
    ///
    /// Found by search: where a pixel budget is shared by all frames of a video, fewer frames are larger each.
    /// Frames of a reel of features have their stored size.
    ///
    /// # Errors
    /// As [`Layout::video_tokens`], and for a reel that cannot be read.
    pub fn frames_that_fit(&self, shape: &StepShape, sources: &[Source], room: u64) -> Result<u64> {
        let footage = self.footage(sources)?;
        let videos = footage.len().max(1) as u64;
        let taken = |each: u64| -> Result<u64> {
            let mut all = Sight::default();
            for video in &footage {
                all.add(match video {
                    Footage::Pictures { size, .. } => self.video_tokens(shape, *size, each)?,
                    Footage::Kept(steps) => Sight {
                        vision_tokens: steps.of_frames(each, self.times_tokens(each)?),
                        ..Sight::default()
                    },
                });
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

    /// `TooLarge` for videos whose times reach positions beyond `limit`, for models whose positions follow time (Qwen2.5-VL).
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
        let mut seconds = 0.0;
        for source in sources {
            seconds += match source {
                Source::Video { reader, .. } => reader.chosen_seconds(),
                Source::Reel(reel) => layout.kept(reel)?.iter().map(KeptSteps::seconds).sum(),
            };
        }
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
        for video in self.footage(sources)? {
            all.add(match video {
                Footage::Pictures { size, n_frames } => self.video_tokens(shape, size, n_frames)?,
                Footage::Kept(steps) => steps.sight(),
            });
        }
        Ok(all)
    }

    /// The videos of `sources` in order; a reel of codes counts as one.
    fn footage(&self, sources: &[Source]) -> Result<Vec<Footage>> {
        let mut left: usize = sources.iter().map(Source::n_videos).sum();
        let mut all = Vec::new();
        for source in sources {
            left -= source.n_videos();
            match (self, source) {
                (Self::Features(layout), Source::Reel(reel))
                    if matches!(reel.header().content, ReelContent::Features { .. }) =>
                {
                    all.extend(layout.footage(reel, left == 0)?);
                }
                _ => all.push(Footage::Pictures {
                    size: size_of(source),
                    // Where the number of frames is unknown, the assemble stage counts them.
                    n_frames: source.expected_frames().unwrap_or(0),
                }),
            }
        }
        Ok(all)
    }

    /// Maximum tokens of the sentence with the times of `n_frames` frames.
    fn times_tokens(&self, n_frames: u64) -> Result<u64> {
        match self {
            Self::Codes { .. } => Ok(0),
            Self::Features(layout) => layout.prompt.times_tokens(&layout.tokenizer, n_frames),
        }
    }
}

/// Height and width of a source's pictures; codes have a fixed number of tokens, whatever their pictures were.
fn size_of(source: &Source) -> [usize; 2] {
    match source {
        Source::Video { reader, .. } => [reader.info().height, reader.info().width],
        Source::Reel(_) => ASSUMED_SIZE,
    }
}

fn no_template(model: &ModelFiles) -> Error {
    let message = "it has no chat template (chat_template.jinja, chat_template.json, or one in tokenizer_config.json): copy one of them from the model's page on the hub, or give it with --template FILE";
    Error::new(Kind::BadInput, message)
        .doing(format!("open the model {}", model.system.path().shown()))
}

fn of_another_model() -> Error {
    let message = "a step of another model's encoder, expected one of this model's";
    Error::new(Kind::Internal, message)
}
