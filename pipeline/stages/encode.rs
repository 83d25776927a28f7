//! The encode stage: frames to codes, features or vectors.

use crossbeam_channel::{Receiver, Sender};

use crate::{
    cancel::Cancel,
    encoder::FrameEncoder,
    error::{Context, Error, Kind, Result},
    flow::{EncodedStep, Frame, FrameMark},
    sources::file::DecodeReport,
    stages::{decode::Decoded, progress::Progress},
};

/// Output of the stage. `source` counts from 0 in the given order.
pub enum Encoded {
    /// An encoded step.
    Step {
        /// Index of the source.
        source: usize,
        /// Their times and content.
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

/// Encodes step by step until the decode stage ends.
///
/// `encoder` may be absent when every source is a reel; `expected` are the frames of each source, where known.
pub fn run(
    frames: Receiver<Decoded>,
    encoder: Option<&FrameEncoder>,
    expected: &[Option<u64>],
    out: Sender<Encoded>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    let mut waiting = Waiting {
        encoder,
        expected,
        frames: Vec::new(),
        size: None,
        progress,
    };
    for message in frames {
        cancel.check()?;
        let send = |source, step: Option<EncodedStep>| {
            let Some(step) = step else { return true };
            progress.frames_encoded.add(step.frames.len() as u64);
            out.send(Encoded::Step { source, step }).is_ok()
        };
        let listened = match message {
            Decoded::Encoded { source, step } => send(source, Some(step)),
            Decoded::Frame { source, frame } => send(source, waiting.push(source, frame)?),
            Decoded::End { source, report } => {
                send(source, waiting.finish()?) && out.send(Encoded::End { source, report }).is_ok()
            }
        };
        if !listened {
            return Ok(());
        }
    }
    Ok(())
}

/// Frames of an incomplete step.
struct Waiting<'a> {
    encoder: Option<&'a FrameEncoder>,
    expected: &'a [Option<u64>],
    frames: Vec<Frame>,
    /// The size of this source's frames, known from its first.
    size: Option<[usize; 2]>,
    progress: &'a Progress,
}

impl<'a> Waiting<'a> {
    /// Adds a frame → the step that it completes.
    fn push(&mut self, source: usize, frame: Frame) -> Result<Option<EncodedStep>> {
        let encoder = self.encoder()?;
        if self.size.is_none() {
            let n_frames = self.expected.get(source).copied().flatten();
            let n_frames = n_frames.and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
            let size = [frame.image.height, frame.image.width];
            self.size = encoder.frame_size(size, n_frames)?;
        }
        self.frames.push(frame);
        if self.frames.len() < encoder.frames_per_step() {
            return Ok(None);
        }
        self.encode(encoder).map(Some)
    }

    /// The incomplete step at the end of a source, whose last frame is repeated.
    fn finish(&mut self) -> Result<Option<EncodedStep>> {
        let step = match self.frames.is_empty() {
            true => None,
            false => Some(self.encode(self.encoder()?)?),
        };
        self.size = None;
        Ok(step)
    }

    fn encode(&mut self, encoder: &FrameEncoder) -> Result<EncodedStep> {
        let frames: Vec<FrameMark> = self.frames.iter().map(FrameMark::from).collect();
        let pictures: Vec<_> = self.frames.drain(..).map(|frame| frame.image).collect();
        let content = self
            .progress
            .encode_busy
            .measure(|| encoder.encode(&pictures, self.size));
        let at = frames.first().map(|frame| frame.time.since_start());
        let doing = || at.map_or_else(String::new, |at| format!("encode frame at {at}"));
        Ok(EncodedStep {
            content: content.doing(doing)?,
            frames,
        })
    }

    fn encoder(&self) -> Result<&'a FrameEncoder> {
        self.encoder.ok_or_else(|| {
            let message = "the model is a text model, expected one with a frame encoder";
            Error::new(Kind::BadInput, message)
        })
    }
}
