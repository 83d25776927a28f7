//! The decode stage: video files (or reels) to frames, in order, one source after another.

use crossbeam_channel::Sender;

use crate::{
    cancel::Cancel,
    error::Result,
    flow::{EncodedStep, Frame},
    reel::ReelReader,
    sources::file::{DecodeReport, FrameReader},
    stages::progress::Progress,
};

/// Where frames come from.
pub enum Source {
    /// A video or image file, sampled.
    Video {
        /// The open file.
        reader: Box<FrameReader>,
        /// How its frames are chosen, in words.
        sampling: String,
    },
    /// A reel: frames that are already encoded.
    Reel(Box<ReelReader>),
}

impl Source {
    /// Number of its videos: a reel may hold several.
    pub fn n_videos(&self) -> usize {
        match self {
            Self::Video { .. } => 1,
            Self::Reel(reel) => reel.header().videos.len(),
        }
    }

    /// Duration of each of its videos in seconds; `None` for a still picture.
    pub fn shown_seconds(&self) -> Vec<Option<f64>> {
        match self {
            Self::Video { reader, .. } => vec![reader.shown_seconds()],
            Self::Reel(reel) => {
                let videos = reel.header().videos.iter();
                videos.map(|video| video.shown_s).collect()
            }
        }
    }

    /// Number of its frames; `None` when unknown.
    pub fn expected_frames(&self) -> Option<u64> {
        match self {
            Self::Video { reader, .. } => reader.expected_frames(),
            Self::Reel(reel) => Some(reel.n_frames()),
        }
    }
}

/// Output of the stage. `source` counts videos from 0 in the given order.
pub enum Decoded {
    /// A picture still to be encoded.
    Frame {
        /// Index of the source.
        source: usize,
        /// The picture and its time.
        frame: Frame,
    },
    /// A step of a reel.
    Encoded {
        /// Index of the source.
        source: usize,
        /// Its content and time.
        step: EncodedStep,
    },
    /// The end of a source.
    End {
        /// Index of the source.
        source: usize,
        /// Its decode report; `None` for a reel.
        report: Option<DecodeReport>,
    },
}

/// Reads every source to its end, skipping the first `skip` frames of the whole run.
///
/// Returns early and without error when the receiver is gone.
pub fn run(
    sources: Vec<Source>,
    mut skip: u64,
    out: Sender<Decoded>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    let mut next = 0;
    for source in sources {
        let first = next;
        next += source.n_videos();
        let listened = match source {
            Source::Video { reader, .. } => {
                video(first, *reader, &mut skip, &out, progress, cancel)?
            }
            Source::Reel(reader) => reel(first, *reader, &out, progress, cancel)?,
        };
        if !listened {
            return Ok(());
        }
    }
    Ok(())
}

/// `false` when the receiver is gone.
fn video(
    source: usize,
    mut reader: FrameReader,
    skip: &mut u64,
    out: &Sender<Decoded>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<bool> {
    loop {
        cancel.check()?;
        let Some(frame) = progress.decode_busy.measure(|| reader.next_frame())? else {
            break;
        };
        progress.frames_decoded.add(1);
        if *skip > 0 {
            *skip -= 1;
            continue;
        }
        if out.send(Decoded::Frame { source, frame }).is_err() {
            return Ok(false);
        }
    }
    Ok(out
        .send(Decoded::End {
            source,
            report: Some(reader.report()),
        })
        .is_ok())
}

/// The videos of a reel have numbers from `first` on. `false` when the receiver is gone.
fn reel(
    first: usize,
    mut reader: ReelReader,
    out: &Sender<Decoded>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<bool> {
    let end = |video: usize| Decoded::End {
        source: first + video,
        report: None,
    };
    let mut video = 0;
    loop {
        cancel.check()?;
        let Some(kept) = progress.decode_busy.measure(|| reader.next_step())? else {
            break;
        };
        let step = kept.step;
        progress.frames_decoded.add(step.frames.len() as u64);
        while video < kept.video {
            if out.send(end(video)).is_err() {
                return Ok(false);
            }
            video += 1;
        }
        let source = first + kept.video;
        if out.send(Decoded::Encoded { source, step }).is_err() {
            return Ok(false);
        }
    }
    Ok((video..reader.header().videos.len()).all(|video| out.send(end(video)).is_ok()))
}
