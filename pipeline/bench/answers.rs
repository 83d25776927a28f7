//! Accuracy of a model's answers to questions about clips, beside the blind baseline.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use longreel_models::file_name::FileName;
use longreel_models::{attention::kv_cache::KvDtype, llama::sampler::Draw, systems::System};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    flow::RgbImage,
    model::{Choices, GgufProducts, Model, ModelFiles},
    sources::{
        ffmpeg::VideoWriter,
        file::FrameReader,
        sampler::{Rate, Sampling, TimeRange},
    },
    stages::{
        self, QueueBounds, Viewing,
        answer::{AnswerOptions, Conversation, Finish},
        decode::Source,
        layout::Layout,
        progress::{Counter, Progress},
        seen::SourceSeen,
    },
    synth::{
        clip::ClipLine,
        draws::Draws,
        questions::Question,
        score::{Prior, Score, is_exact, priors, scores},
    },
};

/// Side of a noise video, in pixels.
const NOISE_SIDE: usize = 64;

/// A question that was asked, with the model's answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AskedQuestion {
    /// The clip.
    pub video: String,
    /// Its length.
    pub seconds: u32,
    /// The kind of question.
    pub kind: &'static str,
    /// The question's text.
    pub question: String,
    /// The right answer.
    pub answer: String,
    /// The model's answer.
    pub said: String,
    /// Whether it is exact ([`is_exact`]).
    pub exact: bool,
    /// Whether the answer was cut off at the maximum length.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Depth of the object, as a share of the clip; for needles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// The form of the question ([`Question::form`]).
    #[serde(skip)]
    form: String,
}

/// The results of one kind of question.
#[derive(Debug, Clone, Serialize)]
pub struct OfKind {
    /// `shape`, `when`, ...; `all` of them.
    pub kind: String,
    /// Questions and exact answers.
    #[serde(flatten)]
    pub score: Score,
    /// Share of exact answers.
    pub accuracy: f64,
    /// Accuracy of always giving the kind's most frequent answer.
    pub prior: f64,
    /// Accuracy of giving the most frequent answer to each form of question: the blind baseline.
    pub prior_by_form: f64,
}

/// Needles of one length at one depth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cell {
    /// Seconds of the clips.
    pub seconds: u32,
    /// Depth in tenths, from 0 to 10.
    pub depth_tenths: u32,
    /// Questions and exact answers.
    #[serde(flatten)]
    pub score: Score,
}

/// The model that is asked, and its options.
pub struct Answering {
    /// The model's files.
    pub files: ModelFiles,
    /// The model.
    pub model: Model,
    /// The frames to take.
    pub sampling: Sampling,
    /// The sampling in words.
    pub sampling_words: String,
    /// Generation options.
    pub options: AnswerOptions,
}

/// The answer to one question.
pub struct ModelAnswer {
    /// The trimmed text.
    pub text: String,
    /// Whether it reached the maximum length.
    pub is_cut: bool,
    /// The frames that were shown.
    pub video: Vec<SourceSeen>,
}

/// All questions of a benchmark.
pub struct Exam<'a> {
    /// The model that is asked.
    pub answering: &'a Answering,
    /// The directory of the clips.
    pub dir: &'a Path,
    /// Clips and questions.
    pub clips: &'a [ClipLine],
    /// Show noise of the same length in place of each clip.
    pub noise: bool,
    /// Clips processed at a time.
    pub workers: usize,
}

/// Greedy decoding of short answers.
fn greedy(max_new_tokens: usize) -> AnswerOptions {
    AnswerOptions {
        max_new_tokens,
        draw: Draw::GREEDY,
        stop: Vec::new(),
        prefill_chunk: 512,
        kv_dtype: KvDtype::F32,
        kv_limit_bytes: None,
    }
}

impl Answering {
    /// Takes the model that `system` is, for greedy answers of at most `max_new_tokens`.
    ///
    /// # Errors
    /// For a directory without a vision-language model.
    pub fn open(
        system: &Arc<System>,
        choices: Choices<'_>,
        sampling: Sampling,
        sampling_words: String,
        max_new_tokens: usize,
    ) -> Result<Self> {
        let files = ModelFiles::open_with(system, choices)?;
        files.check_vision()?;
        Ok(Self {
            model: files.load()?,
            files,
            sampling,
            sampling_words,
            options: greedy(max_new_tokens),
        })
    }

    /// Where the chat template stands, where one is used.
    pub fn template(&self) -> Option<&str> {
        self.model.template.as_ref().map(|template| template.name())
    }

    /// How quantized matrices are multiplied, where there are some.
    pub fn gguf_products(&self) -> Option<GgufProducts> {
        self.model.gguf_products
    }

    /// The answer to one question.
    ///
    /// # Errors
    /// Errors of the video, a prompt that does not fit, `Interrupted` on request.
    pub fn answer(&self, path: &Path, question: &str, cancel: &Cancel) -> Result<ModelAnswer> {
        let reader = FrameReader::open(path, &self.sampling, &TimeRange::ALL, cancel.clone())?;
        let (files, model) = (&self.files, &self.model);
        let limit = files.spec.decoder.max_position_embeddings;
        let viewing = Viewing {
            sources: vec![Source::Video {
                reader: Box::new(reader),
                sampling: self.sampling_words.clone(),
            }],
            layout: Layout::of(files, question, 1, None)?,
            prompt_tokens_max: limit.saturating_sub(self.options.max_new_tokens),
        };
        let mut conversation = Conversation::new(model, &model.decoder, self.options.clone());
        let progress = Progress::default();
        let bounds = QueueBounds::default();
        let encoder = model.frames.as_ref();
        let video = stages::view(
            viewing,
            encoder,
            &mut conversation,
            bounds,
            &progress,
            cancel,
        )?;
        let answer = conversation.answer(&mut |_| {}, &progress, cancel)?;
        Ok(ModelAnswer {
            text: answer.text.trim().to_owned(),
            is_cut: answer.finish == Finish::Length,
            video,
        })
    }
}

impl Exam<'_> {
    /// Asks every question in a context of its own, as `ask` does; `asked` receives them in the order of clips and questions.
    ///
    /// # Errors
    /// Errors of the first clip that cannot be read, `Interrupted` on request; `asked` keeps the answers until then.
    pub fn take(
        &self,
        asked: &mut Vec<AskedQuestion>,
        done: &Counter,
        cancel: &Cancel,
    ) -> Result<()> {
        let noise = self.noise.then(NoiseClips::new).transpose()?;
        let (next, stop) = (AtomicUsize::new(0), cancel.child());
        let results = Mutex::new(BTreeMap::new());
        // Not rayon's threads: these block on channels, and rayon's must not wait for one another.
        thread::scope(|scope| {
            for _ in 0..self.workers.max(1) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(clip) = self.clips.get(number) else {
                            return;
                        };
                        let mut asked = Vec::new();
                        let ended = self.ask_clip(clip, noise.as_ref(), &mut asked, done, &stop);
                        if ended.is_err() {
                            stop.cancel();
                        }
                        if let Ok(mut results) = results.lock() {
                            results.insert(number, (asked, ended));
                        }
                    }
                });
            }
        });
        let results = results.into_inner().map_err(|_| {
            let message = "a worker thread panicked";
            Error::new(Kind::Internal, message)
        })?;
        let mut stopped = Ok(());
        for (of_clip, ended) in results.into_values() {
            asked.extend(of_clip);
            stopped = match (stopped, ended) {
                (Ok(()), ended) => ended,
                // Interrupted only because the other worker failed.
                (Err(error), Err(other)) if error.kind() == Kind::Interrupted => Err(other),
                (stopped, _) => stopped,
            };
        }
        stopped
    }

    fn ask_clip(
        &self,
        clip: &ClipLine,
        noise: Option<&NoiseClips>,
        asked: &mut Vec<AskedQuestion>,
        done: &Counter,
        cancel: &Cancel,
    ) -> Result<()> {
        for question in &clip.questions {
            cancel.check()?;
            let path = match noise {
                Some(noise) => noise.video(clip.seconds)?,
                None => self.dir.join(&clip.video),
            };
            let said = self
                .answering
                .answer(&path, &question.question, cancel)
                .doing(|| format!("ask {}: {}", path.shown(), question.question))?;
            done.add(1);
            asked.push(AskedQuestion {
                video: clip.video.clone(),
                seconds: clip.seconds,
                kind: question.kind.word(),
                exact: is_exact(&said.text, &question.answer),
                cut: said.is_cut,
                form: question.form(),
                question: question.question.clone(),
                answer: question.answer.clone(),
                said: said.text,
                depth: depth(clip, question),
            });
        }
        Ok(())
    }
}

/// The depth of the questioned second, for needle clips.
fn depth(clip: &ClipLine, question: &Question) -> Option<f64> {
    let last = clip.seconds.saturating_sub(1).max(1);
    let is_needle = !clip.script.blobs.is_empty();
    is_needle.then(|| f64::from(question.time[0]) / f64::from(last))
}

/// Noise videos, one for each length.
struct NoiseClips {
    folder: tempfile::TempDir,
    made: Mutex<BTreeMap<u32, PathBuf>>,
}

impl NoiseClips {
    fn new() -> Result<Self> {
        Ok(Self {
            folder: tempfile::tempdir().doing(|| "make a folder for noise")?,
            made: Mutex::default(),
        })
    }

    /// A video of `seconds` frames of random bytes, one per second.
    fn video(&self, seconds: u32) -> Result<PathBuf> {
        let fell = |_| Error::new(Kind::Internal, "a thread that wrote a noise video panicked");
        let mut made = self.made.lock().map_err(fell)?;
        if let Some(path) = made.get(&seconds) {
            return Ok(path.clone());
        }
        let path = self.folder.path().join(format!("{seconds}.mp4"));
        let mut video = VideoWriter::create(&path, NOISE_SIDE, NOISE_SIDE, Rate::new(1, 1)?)?;
        let mut draws = Draws::new(&[u64::from(seconds)]);
        for _ in 0..seconds {
            let words = (0..NOISE_SIDE * NOISE_SIDE * 3 / 8).map(|_| draws.bits());
            video.write(&RgbImage {
                width: NOISE_SIDE,
                height: NOISE_SIDE,
                data: words.flat_map(u64::to_le_bytes).collect(),
            })?;
        }
        video.finish()?;
        made.insert(seconds, path.clone());
        Ok(path)
    }
}

/// Results of every kind, and of all together at the end.
pub fn by_kind(asked: &[AskedQuestion]) -> Vec<OfKind> {
    let found = scores(
        asked
            .iter()
            .map(|a| (a.kind, a.said.as_str(), a.answer.as_str())),
    );
    let of_kinds = priors(asked.iter().map(|a| (a.kind, a.answer.as_str())));
    let kind_and_form = |a: &AskedQuestion| format!("{} {}", a.kind, a.form);
    let named: Vec<(String, &str)> = asked
        .iter()
        .map(|a| (kind_and_form(a), a.answer.as_str()))
        .collect();
    let of_forms = priors(named.iter().map(|(form, answer)| (form.as_str(), *answer)));
    let best = |kind: &str| -> u64 {
        let of_kind = of_forms
            .iter()
            .filter(|(form, _)| form.split_once(' ').is_some_and(|(of, _)| of == kind));
        of_kind.map(|(_, prior)| prior.score.right).sum()
    };
    let (mut rows, mut all, mut guessed, mut best_guessed) = (Vec::new(), Score::default(), 0, 0);
    for (kind, score) in found {
        let prior = of_kinds
            .get(&kind)
            .map_or(0, |Prior { score, .. }| score.right);
        let by_form = best(&kind);
        all.asked += score.asked;
        all.right += score.right;
        guessed += prior;
        best_guessed += by_form;
        rows.push(of_kind(kind, score, prior, by_form));
    }
    rows.push(of_kind("all".to_owned(), all, guessed, best_guessed));
    rows
}

fn of_kind(kind: String, score: Score, prior: u64, by_form: u64) -> OfKind {
    let share = |right| Score { right, ..score }.share();
    OfKind {
        kind,
        accuracy: score.share(),
        prior: share(prior),
        prior_by_form: share(by_form),
        score,
    }
}

/// Needles by length and depth; empty where there are none.
pub fn by_depth(asked: &[AskedQuestion]) -> Vec<Cell> {
    let mut cells: BTreeMap<(u32, u32), Score> = BTreeMap::new();
    for asked in asked {
        let Some(depth) = asked.depth else { continue };
        let tenths = (depth * 10.0).round() as u32;
        let score = cells.entry((asked.seconds, tenths)).or_default();
        score.asked += 1;
        score.right += u64::from(asked.exact);
    }
    let cells = cells.into_iter();
    cells
        .map(|((seconds, depth_tenths), score)| Cell {
            seconds,
            depth_tenths,
            score,
        })
        .collect()
}
