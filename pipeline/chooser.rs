//! Frames chosen by their content, in a pass of its own before the one that uses them.
//!
//! The pass reads the candidates once, in order, and keeps of each only its number and
//! a rating (16 bytes). Its result is frame numbers: from then on a chosen frame is decoded
//! like any other, and the number of frames is known in advance.

use std::{collections::BTreeSet, path::PathBuf};

use longreel_models::{file_name::FileName, vision::image::RgbView};

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    flow::Frame,
    reel::{ReelReader, ReelStep, ReelVideo, absolute},
    search::cosine_as_kept,
    sources::{
        change::ChangeDetector,
        file::{FrameReader, Timeline, VideoInfo},
        sampler::TimeRange,
    },
    stages::progress::Progress,
    time::Pts,
    vectors::VectorModel,
};

/// How frames are chosen among candidates.
pub enum Chooser {
    /// Frames that show something new.
    Change(Changes),
    /// Frames that match a text best.
    Query(Query),
}

/// Frames that differ from the last one kept (`sources::change`).
#[derive(Debug, Clone, Copy)]
pub struct Changes {
    /// A frame is kept when it differs by more than this, 0 to 1.
    pub threshold: f64,
    /// Maximum gap between frames that are kept.
    pub max_gap: Option<Pts>,
    /// Maximum number: the first, and those that differ most from the one kept before.
    pub most: Option<usize>,
}

/// Frames whose vectors are nearest to a text's.
pub struct Query {
    /// The text.
    pub text: String,
    /// Its unit vector, `[width]`.
    pub vector: Vec<f32>,
    /// Where the vectors of frames come from.
    pub vectors: Vectors,
    /// Number of frames; all where there are fewer.
    pub n: usize,
    /// Minimum distance between chosen frames.
    pub min_gap: Option<Pts>,
}

/// Where the vectors of frames come from.
pub enum Vectors {
    /// Encode every candidate.
    Model(Box<VectorModel>),
    /// Read them from a reel, whose frames are the candidates.
    Reel(PathBuf),
}

/// The candidate frames of one video.
pub struct Candidates<'a> {
    /// The reader of the candidates.
    pub reader: FrameReader,
    /// Their time range.
    pub range: &'a TimeRange,
    /// How they were sampled, in words.
    pub sampling: &'a str,
}

/// The chosen frames.
pub struct Choice {
    /// The reader of the chosen frames.
    pub reader: FrameReader,
    /// Number of candidates.
    pub candidates: usize,
    /// How the frames were chosen, in words.
    pub sampling: String,
}

/// A candidate and its rating.
struct Rated {
    number: usize,
    rating: f64,
}

/// The rated candidates of a pass.
struct CandidatePool {
    rated: Vec<Rated>,
    candidates: usize,
    sampling: String,
}

impl Chooser {
    /// Rates the candidates, and returns a reader of the chosen ones.
    ///
    /// # Errors
    /// Those of decoding and encoding, with the frame's time; `BadInput` where no candidate decodes, for
    /// a reel that was not made of this file, and for one without a frame of it in the range.
    pub fn choose(
        &self,
        mut candidates: Candidates<'_>,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Choice> {
        let pool = match self {
            Self::Change(changes) => changes.look(&mut candidates, progress)?,
            Self::Query(query) => query.look(&mut candidates, progress, cancel)?,
        };
        if pool.rated.is_empty() {
            let message = format!("none of the candidates decodes ({})", pool.sampling);
            return Err(Error::new(Kind::BadInput, message));
        }
        let reader = candidates.reader;
        let chosen = self.best(pool.rated, reader.timeline());
        Ok(Choice {
            reader: reader.again(chosen)?,
            candidates: pool.candidates,
            sampling: pool.sampling,
        })
    }

    /// The numbers of the chosen frames.
    fn best(&self, rated: Vec<Rated>, timeline: &Timeline) -> Vec<usize> {
        let time = |number: usize| Pts::new(timeline.frames[number].ticks, timeline.time_base);
        match self {
            Self::Change(changes) => best(rated, changes.most.unwrap_or(usize::MAX), |_, _| false),
            Self::Query(query) => best(rated, query.n, |a, b| {
                query
                    .min_gap
                    .is_some_and(|gap| time(a).distance(time(b)) < gap)
            }),
        }
    }
}

impl Changes {
    fn look(&self, candidates: &mut Candidates<'_>, progress: &Progress) -> Result<CandidatePool> {
        let mut detector = ChangeDetector::new(self.threshold, self.max_gap);
        let mut pool = CandidatePool::of(self.describe(candidates.sampling));
        pool.fill(&mut candidates.reader, progress, |frame, next| {
            Ok(detector.push(frame, next))
        })?;
        Ok(pool)
    }

    fn describe(&self, sampling: &str) -> String {
        let threshold = self.threshold;
        let mut words = match self.most {
            None => format!("changed frames of {sampling}, threshold {threshold}"),
            Some(n) => {
                format!("the {n} most changed frames of {sampling}, threshold {threshold}")
            }
        };
        if let Some(gap) = self.max_gap {
            words += &format!(", holes of at most {gap}");
        }
        words
    }
}

impl Query {
    fn look(
        &self,
        candidates: &mut Candidates<'_>,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<CandidatePool> {
        match &self.vectors {
            Vectors::Model(model) => self.encode(model, candidates, progress),
            Vectors::Reel(path) => {
                let reel = ReelReader::open(path)?;
                let doing = || format!("take vectors from the reel {}", path.shown());
                self.recall(reel, candidates, progress, cancel).doing(doing)
            }
        }
    }

    /// Decodes and encodes every candidate.
    fn encode(
        &self,
        model: &VectorModel,
        candidates: &mut Candidates<'_>,
        progress: &Progress,
    ) -> Result<CandidatePool> {
        let made_by = absolute(model.system.path()).text().into_owned();
        let mut pool = CandidatePool::of(self.describe(candidates.sampling, &made_by));
        pool.fill(&mut candidates.reader, progress, |frame, _| {
            let vector = RgbView::new(frame.image.width, frame.image.height, &frame.image.data)
                .and_then(|view| model.of_picture(view))
                .doing(|| {
                    format!(
                        "compare frame at {} with the query",
                        frame.time.since_start()
                    )
                })?;
            Ok(Some(f64::from(cosine_as_kept(&self.vector, &vector))))
        })?;
        Ok(pool)
    }

    /// Rates the reel's frames of this video.
    fn recall(
        &self,
        mut reel: ReelReader,
        candidates: &Candidates<'_>,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<CandidatePool> {
        let (header, reader) = (reel.header(), &candidates.reader);
        let width = header.vectors()?.width;
        if width != self.vector.len() {
            let expected = self.vector.len();
            let message = format!("its vectors have {width} numbers, expected {expected}");
            return Err(bad(message));
        }
        let video = video_of(&reel, reader.info())?;
        let kept = &header.videos[video].sampling;
        let sampling = candidates.range.behind(kept.clone());
        let mut pool = CandidatePool::of(self.describe(&sampling, &header.model));
        progress.frames_expected.add(reel.n_frames());
        while let Some(kept) = reel.next_step()? {
            cancel.check()?;
            progress.frames_encoded.add(1);
            if kept.video == video {
                let rated = self.rated(&kept, reader.timeline(), candidates.range)?;
                rated.into_iter().for_each(|rated| pool.add(rated));
            }
        }
        Ok(pool)
    }

    /// The rating of the frame of `kept`; `None` outside `range`.
    fn rated(
        &self,
        kept: &ReelStep,
        timeline: &Timeline,
        range: &TimeRange,
    ) -> Result<Option<Rated>> {
        let time = kept.step.frames.first().map(|frame| frame.time);
        let Some(time) = time.filter(|time| range.contains(time.since_start())) else {
            return Ok(None);
        };
        let number = usize::try_from(time.index).unwrap_or(usize::MAX);
        let known = timeline.frames.get(number);
        if known.is_none_or(|known| known.ticks != time.pts.ticks) {
            let message = format!(
                "its frame {number} is shown at {}, expected the video's own frames",
                time.since_start()
            );
            return Err(bad(message));
        }
        let rating = f64::from(cosine_as_kept(&self.vector, kept.vector()?));
        Ok(Some(Rated { number, rating }))
    }

    fn describe(&self, sampling: &str, made_by: &str) -> String {
        let Self { n, text, .. } = self;
        let mut words = format!("the {n} of {sampling} nearest to {text:?} by {made_by}");
        if let Some(gap) = self.min_gap {
            words += &format!(", {gap} apart");
        }
        words
    }
}

impl CandidatePool {
    fn of(sampling: String) -> Self {
        Self {
            rated: Vec::new(),
            candidates: 0,
            sampling,
        }
    }

    fn add(&mut self, rated: Rated) {
        self.candidates += 1;
        self.rated.push(rated);
    }

    /// Reads every candidate and adds those that `rate` rates; `rate` also receives the next candidate's time.
    fn fill(
        &mut self,
        reader: &mut FrameReader,
        progress: &Progress,
        mut rate: impl FnMut(&Frame, Option<Pts>) -> Result<Option<f64>>,
    ) -> Result<()> {
        progress
            .frames_expected
            .add(reader.expected_frames().unwrap_or(0));
        while let Some(frame) = reader.next_frame()? {
            self.candidates += 1;
            progress.frames_encoded.add(1);
            let number = usize::try_from(frame.time.index).unwrap_or(usize::MAX);
            // A damaged file may decode to more frames than it has packets: such frames cannot be reached again.
            let is_known = number < reader.timeline().frames.len();
            if let Some(rating) = rate(&frame, reader.next_time())?.filter(|_| is_known) {
                self.rated.push(Rated { number, rating });
            }
        }
        Ok(())
    }
}

/// The numbers of the `n` best, rising: the earlier one on ties, and none that `is_near` to a better one.
///
/// `is_near` must be monotone in distance: a frame is compared only with its neighbours among those taken.
fn best(mut rated: Vec<Rated>, n: usize, is_near: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    rated.sort_unstable_by(|a, b| {
        let earlier = a.number.cmp(&b.number);
        b.rating.total_cmp(&a.rating).then(earlier)
    });
    let mut taken = BTreeSet::new();
    for Rated { number, .. } in rated {
        if taken.len() == n {
            break;
        }
        let before = taken.range(..number).next_back();
        let behind = taken.range(number..).next();
        let mut neighbours = before.into_iter().chain(behind);
        if neighbours.all(|&other| !is_near(other, number)) {
            taken.insert(number);
        }
    }
    taken.into_iter().collect()
}

/// The index of `info`'s file among the videos of `reel`.
///
/// # Errors
/// `BadInput` where it is not one of them, or was changed since.
fn video_of(reel: &ReelReader, info: &VideoInfo) -> Result<usize> {
    let own = ReelVideo::of(info, 0, "");
    let videos = &reel.header().videos;
    let of_name = |video: &&ReelVideo| video.path == own.path;
    let is_same = |video: &ReelVideo| {
        (&video.path, video.bytes, video.modified_s) == (&own.path, own.bytes, own.modified_s)
    };
    videos.iter().position(is_same).ok_or_else(|| {
        bad(match videos.iter().find(of_name) {
            None => format!("it has no frame of {}, expected a reel of it", own.path),
            Some(kept) => format!(
                "it was made of {} with {} bytes of {} s, the file has {} bytes of {} s: expected an unchanged file",
                own.path, kept.bytes, kept.modified_s, own.bytes, own.modified_s
            ),
        })
    })
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
