//! Search for moments by a vector: every vector of every reel is compared, and the best
//! are returned, exactly. Memory is a bounded buffer per thread and the best so far.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    path::PathBuf,
};

use half::{bf16, f16};
use longreel_kernels::{linear::dot_records, weight_element::WeightElement};
use longreel_models::file_name::FileName;
use rayon::prelude::*;

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    flow::FrameTime,
    reel::{RECORD_HEAD_BYTES, ReelReader, ReelStep, RowForm, RowsDtype},
    time::Pts,
};

/// Bytes that a thread reads at once, so that they stay in its cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Candidates of the first pass per wanted moment; more are taken where they lie too near one another.
const CANDIDATES: usize = 16;

/// A frame found.
#[derive(Debug, Clone)]
pub struct Hit {
    /// Index of the reel.
    pub reel: usize,
    /// Number of its record in the reel.
    pub record: u64,
    /// Cosine of its vector and the query's.
    pub score: f32,
    /// Index of its video in the reel's header.
    pub video: usize,
    /// Its number and time.
    pub time: FrameTime,
}

/// A frame and its score, ordered by score: the greatest is the best. On ties it is
/// the one of the earlier reel, then the earlier frame.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    score: f32,
    reel: usize,
    record: u64,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let earlier = (other.reel, other.record).cmp(&(self.reel, self.record));
        self.score.total_cmp(&other.score).then(earlier)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// The best candidates so far, at most `limit`.
struct Best {
    heap: BinaryHeap<Reverse<Candidate>>,
    limit: usize,
}

impl Best {
    fn new(limit: usize) -> Self {
        let heap = BinaryHeap::new();
        Self { heap, limit }
    }

    fn offer(&mut self, candidate: Candidate) {
        if self.heap.len() < self.limit {
            self.heap.push(Reverse(candidate));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && candidate > worst.0
        {
            *worst = Reverse(candidate);
        }
    }

    fn merge(mut self, other: Self) -> Self {
        other.heap.into_iter().for_each(|c| self.offer(c.0));
        self
    }

    /// The best first.
    fn into_sorted(self) -> Vec<Candidate> {
        let sorted = self.heap.into_sorted_vec();
        sorted.into_iter().map(|c| c.0).collect()
    }
}

/// Reels of vectors that are comparable with one another.
pub struct Library {
    reels: Vec<ReelReader>,
}

impl Library {
    /// Opens reels, which must hold vectors of one model.
    ///
    /// # Errors
    /// `BadInput` for a reel of other content or another model, or one without frames.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let reels = paths.iter().map(|path| ReelReader::open(path));
        let reels = reels.collect::<Result<Vec<_>>>()?;
        let mut first: Option<&ReelReader> = None;
        for reel in &reels {
            check(reel, first.get_or_insert(reel))?;
        }
        Ok(Self { reels })
    }

    /// The model that made the vectors, according to the first reel.
    pub fn model(&self) -> &str {
        self.reels.first().map_or("", |r| r.header().model.as_str())
    }

    /// The reels.
    pub fn reels(&self) -> &[ReelReader] {
        &self.reels
    }

    /// Total number of frames.
    pub fn n_frames(&self) -> u64 {
        self.reels.iter().map(ReelReader::n_frames).sum()
    }

    /// Bytes of all records.
    pub fn bytes(&self) -> u64 {
        self.reels.iter().map(ReelReader::record_bytes).sum()
    }

    /// The `k` best moments for the unit vector `query` `[width]`, best first.
    ///
    /// Frames are taken by descending score; one that is nearer than `gap` to a better one
    /// that was taken, in the same video of the same reel, belongs to that one's moment.
    ///
    /// # Errors
    /// `BadInput` for a query of another width and for damaged vectors, `Io` when reading
    /// fails, `Interrupted` on request.
    pub fn moments(&self, query: &[f32], k: usize, gap: Pts, cancel: &Cancel) -> Result<Vec<Hit>> {
        let total = usize::try_from(self.n_frames()).unwrap_or(usize::MAX);
        let apart = gap.ticks > 0;
        let mut limit = if apart {
            k.saturating_mul(CANDIDATES)
        } else {
            k
        };
        loop {
            let found = self.spaced(self.best(query, limit, cancel)?, k, gap)?;
            if found.len() == k || !apart || limit >= total {
                return Ok(found);
            }
            limit = limit.saturating_mul(8);
        }
    }

    /// The first `k` of `candidates` that lie `gap` apart.
    fn spaced(&self, candidates: Vec<Candidate>, k: usize, gap: Pts) -> Result<Vec<Hit>> {
        let mut taken: Vec<Hit> = Vec::new();
        for candidate in candidates {
            if taken.len() == k {
                break;
            }
            let hit = self.hit(candidate)?;
            if taken.iter().all(|t| !is_near(t, &hit, gap)) {
                taken.push(hit);
            }
        }
        Ok(taken)
    }

    /// The frame of a candidate, read in full, so that NaN in its vector is detected.
    fn hit(&self, candidate: Candidate) -> Result<Hit> {
        let Candidate { reel, record, .. } = candidate;
        let reader = &self.reels[reel];
        let mut bytes = vec![0; reader.header().record_bytes(0)?];
        reader.read_records(record, &mut bytes)?;
        let doing = || format!("read frame {record} of the reel {}", reader.path().shown());
        let found = ReelStep::parse(reader.header(), &bytes).doing(doing)?;
        let frame = found.step.frames.first().ok_or_else(|| {
            let message = "a record without a frame";
            Error::new(Kind::Internal, message).doing(doing())
        })?;
        Ok(Hit {
            reel,
            record,
            score: candidate.score,
            video: found.video,
            time: frame.time,
        })
    }

    /// The `limit` best frames, the best first.
    fn best(&self, query: &[f32], limit: usize, cancel: &Cancel) -> Result<Vec<Candidate>> {
        let mut best = Best::new(limit);
        for (reel, reader) in self.reels.iter().enumerate() {
            let rows = reader.header().vectors()?;
            if rows.width != query.len() {
                return Err(widths_differ(reader, rows.width, query.len()));
            }
            best = best.merge(best_of(reel, reader, rows, query, limit, cancel)?);
        }
        Ok(best.into_sorted())
    }
}

/// # Errors
/// As [`Library::open`].
fn check(reel: &ReelReader, first: &ReelReader) -> Result<()> {
    let doing = || format!("search the reel {}", reel.path().shown());
    let (header, other) = (reel.header(), first.header());
    let refuse = |message| Err(Error::new(Kind::BadInput, message).doing(doing()));
    let rows = header.vectors().doing(doing)?;
    if reel.n_frames() == 0 {
        return refuse("it holds no frame, expected at least one".to_owned());
    }
    let is_same = header.model == other.model && header.model_modified_s == other.model_modified_s;
    if !is_same {
        return refuse(format!(
            "its vectors were made by {} (weights of {} s), those of {} by {} (weights of {} s): expected one model",
            header.model,
            header.model_modified_s,
            first.path().shown(),
            other.model,
            other.model_modified_s
        ));
    }
    match other.vectors().doing(doing)? {
        expected if expected.width == rows.width => Ok(()),
        expected => Err(widths_differ(reel, rows.width, expected.width)),
    }
}

fn widths_differ(reel: &ReelReader, found: usize, expected: usize) -> Error {
    let message = format!("its vectors have {found} numbers, expected {expected}");
    Error::new(Kind::BadInput, message).doing(format!("search the reel {}", reel.path().shown()))
}

fn is_near(a: &Hit, b: &Hit, gap: Pts) -> bool {
    if (a.reel, a.video) != (b.reel, b.video) {
        return false;
    }
    a.time.pts.distance(b.time.pts) < gap
}

/// The `limit` best frames of one reel.
fn best_of(
    reel: usize,
    reader: &ReelReader,
    row: RowForm,
    query: &[f32],
    limit: usize,
    cancel: &Cancel,
) -> Result<Best> {
    let record_bytes = reader.header().record_bytes(0)?;
    let per_chunk = (CHUNK_BYTES / record_bytes).max(1) as u64;
    let chunks = reader.n_frames().div_ceil(per_chunk);
    let scan = |(mut best, mut buffer): (Best, Vec<u32>), chunk: u64| {
        cancel.check()?;
        let first = chunk * per_chunk;
        let n = per_chunk.min(reader.n_frames() - first) as usize;
        // In words of 4 bytes, so that elements of every type are aligned.
        buffer.resize((n * record_bytes).div_ceil(4), 0);
        let bytes = &mut bytemuck::cast_slice_mut(&mut buffer)[..n * record_bytes];
        reader.read_records(first, bytes)?;
        for (i, score) in scores(row.dtype, query, bytes, n).into_iter().enumerate() {
            let record = first + i as u64;
            best.offer(Candidate {
                score,
                reel,
                record,
            });
        }
        Ok::<_, Error>((best, buffer))
    };
    let start = || (Best::new(limit), Vec::new());
    let found = (0..chunks).into_par_iter().try_fold(start, scan);
    let found = found.map(|found| found.map(|(best, _)| best));
    found.try_reduce(|| Best::new(limit), |a, b| Ok(a.merge(b)))
}

/// Cosine of `query` and `vector`, `[width]` each, with the rounding of a reel: `vector` in f16, the same order of sums.
pub fn cosine_as_kept(query: &[f32], vector: &[f32]) -> f32 {
    let kept: Vec<f16> = vector.iter().map(|&x| f16::from_f32(x)).collect();
    let mut score = [0.0];
    dot_records(query, &kept, 0, &mut score);
    score[0]
}

/// Cosines of `query` and the `n` vectors of whole records.
fn scores(dtype: RowsDtype, query: &[f32], records: &[u8], n: usize) -> Vec<f32> {
    match dtype {
        RowsDtype::F16 => scores_of::<f16>(query, records, n),
        RowsDtype::Bf16 => scores_of::<bf16>(query, records, n),
        RowsDtype::F32 => scores_of::<f32>(query, records, n),
    }
}

fn scores_of<E: WeightElement + bytemuck::AnyBitPattern>(
    query: &[f32],
    records: &[u8],
    n: usize,
) -> Vec<f32> {
    let mut scores = vec![0.0; n];
    let skip = RECORD_HEAD_BYTES / size_of::<E>();
    dot_records(
        query,
        bytemuck::cast_slice::<u8, E>(records),
        skip,
        &mut scores,
    );
    scores
}
