//! The four stages, wired front to back.
//!
//! Each stage is a plain thread with one bounded inbox. A stage that ends
//! drops its channel ends, so the stages before it stop sending and the stages
//! after it see the end of their input; the first failure is the one reported.

pub mod answer;
pub mod assemble;
pub mod decode;
pub mod encode;
pub mod exit;
pub mod layout;
pub mod picture;
pub mod piece;
pub mod progress;
pub mod seen;

use std::thread;

use crossbeam_channel::bounded;

use crate::{
    cancel::Cancel,
    encoder::{EncoderModel, FrameEncoder},
    error::{Error, Kind, Result},
    reel::{ReelReader, ReelStep, ReelWriter},
    stages::{
        answer::Conversation, assemble::Assembly, decode::Source, encode::Encoded,
        exit::FirstFailure, layout::Layout, progress::Progress, seen::SourceSeen,
    },
};

/// Capacities of the queues between stages.
#[derive(Debug, Clone, Copy)]
pub struct QueueBounds {
    /// Decoded pictures: 6 MB each at 1080p.
    pub frames: usize,
    /// Encoded steps: about 1 kB of codes each, or up to 10 MB of features.
    pub steps: usize,
    /// Pieces of the prompt, of the same size.
    pub pieces: usize,
}

impl Default for QueueBounds {
    fn default() -> Self {
        Self {
            frames: 4,
            steps: 64,
            pieces: 64,
        }
    }
}

/// The inputs of a question about videos besides the model.
pub struct Viewing {
    /// Where frames come from.
    pub sources: Vec<Source>,
    /// The layout of question and frames.
    pub layout: Layout,
    /// Maximum tokens of the prompt, frames included.
    pub prompt_tokens_max: usize,
}

/// Prefills the whole prompt into the conversation's context: decode, encode, assemble and prefill overlap.
///
/// Returns the frames seen of each source.
pub fn view(
    viewing: Viewing,
    encoder: Option<&FrameEncoder>,
    conversation: &mut Conversation<'_>,
    bounds: QueueBounds,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<SourceSeen>> {
    let Viewing {
        sources,
        layout,
        prompt_tokens_max,
    } = viewing;
    let seen = sources.iter().flat_map(seen_of).collect();
    let expected = expected_of(&sources);
    let assembly = Assembly {
        layout,
        prompt_tokens_max,
        newline: encoder.map(FrameEncoder::newline).unwrap_or_default(),
        shown_seconds: sources.iter().flat_map(Source::shown_seconds).collect(),
        seen,
    };

    let (decoded_out, decoded_in) = bounded(bounds.frames);
    let (encoded_out, encoded_in) = bounded(bounds.steps);
    let (pieces_out, pieces_in) = bounded(bounds.pieces);
    let stop = cancel.child();
    let failure = FirstFailure::new(stop.clone());
    let cancel = &stop;
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            failure.run("decode", || {
                decode::run(sources, 0, decoded_out, progress, cancel)
            })
        });
        scope.spawn(|| {
            failure.run("encode", || {
                encode::run(
                    decoded_in,
                    encoder,
                    &expected,
                    encoded_out,
                    progress,
                    cancel,
                )
            })
        });
        let assembled = scope.spawn(|| {
            failure.run("assemble", || {
                assemble::run(encoded_in, assembly, pieces_out, cancel)
            })
        });
        failure.run("answer", || {
            conversation.listen(pieces_in, progress, cancel)
        });
        assembled.join().ok().flatten()
    });
    failure.result(seen)
}

/// Appends the steps of all frames of `sources` to `writer`: decode and encode overlap.
///
/// Returns counts of the frames seen of each source.
pub fn encode_to_reel(
    sources: Vec<Source>,
    model: &EncoderModel,
    writer: &mut ReelWriter,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<SourceSeen>> {
    let mut seen: Vec<SourceSeen> = sources.iter().flat_map(seen_of).collect();
    count_resumed(writer, &mut seen)?;
    let encoder = Some(&model.encoder);
    let expected = expected_of(&sources);
    let resumed = writer.n_frames();
    let bounds = QueueBounds::default();

    let (decoded_out, decoded_in) = bounded(bounds.frames);
    let (encoded_out, encoded_in) = bounded(bounds.steps);
    let stop = cancel.child();
    let failure = FirstFailure::new(stop.clone());
    let cancel = &stop;
    let written = thread::scope(|scope| {
        scope.spawn(|| {
            failure.run("decode", || {
                decode::run(sources, resumed, decoded_out, progress, cancel)
            })
        });
        scope.spawn(|| {
            failure.run("encode", || {
                encode::run(
                    decoded_in,
                    encoder,
                    &expected,
                    encoded_out,
                    progress,
                    cancel,
                )
            })
        });
        failure.run("write", || write_reel(encoded_in, writer, &mut seen))
    });
    // Encoded steps are kept even after a failure: the next run resumes after them.
    let flushed = writer.flush();
    failure.result(written).and(flushed)?;
    if writer.n_frames() == 0 {
        return Err(Error::new(
            Kind::BadInput,
            "no frame in the range asked for, expected at least one",
        ));
    }
    Ok(seen)
}

fn write_reel(
    frames: crossbeam_channel::Receiver<Encoded>,
    writer: &mut ReelWriter,
    seen: &mut [SourceSeen],
) -> Result<()> {
    for message in frames {
        match message {
            Encoded::Step { source, step } => {
                let kept = ReelStep {
                    video: source,
                    step,
                };
                writer.append(&kept)?;
                if let Some(entry) = seen.get_mut(source) {
                    let frames = kept.step.frames.iter();
                    frames.for_each(|frame| entry.count(frame.time));
                }
            }
            Encoded::End { source, report } => {
                if let Some(entry) = seen.get_mut(source) {
                    entry.end(report);
                }
            }
        }
    }
    Ok(())
}

/// Counts the frames of the resumed part of the reel.
fn count_resumed(writer: &ReelWriter, seen: &mut [SourceSeen]) -> Result<()> {
    if writer.n_frames() == 0 {
        return Ok(());
    }
    let reader = ReelReader::open(writer.partial())?;
    for head in reader.heads() {
        let head = head?;
        if let Some(entry) = seen.get_mut(head.video) {
            head.frames.iter().for_each(|frame| entry.count(frame.time));
        }
    }
    Ok(())
}

fn seen_of(source: &Source) -> Vec<SourceSeen> {
    match source {
        Source::Video { reader, sampling } => vec![SourceSeen::video(reader, sampling)],
        Source::Reel(reel) => SourceSeen::reel(reel).collect(),
    }
}

/// Number of frames of each video of `sources`, where known.
fn expected_of(sources: &[Source]) -> Vec<Option<u64>> {
    let of = |source: &Source| match source {
        Source::Video { .. } => vec![source.expected_frames()],
        Source::Reel(_) => vec![None; source.n_videos()],
    };
    sources.iter().flat_map(of).collect()
}

/// Total number of frames of `sources`; `None` when one is unknown.
pub fn expected_frames(sources: &[Source]) -> Option<u64> {
    sources.iter().map(Source::expected_frames).sum()
}
