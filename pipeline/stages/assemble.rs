//! The assemble stage: steps and question to a prompt, piece by piece in order.

use crossbeam_channel::{Receiver, Sender};
use longreel_models::{
    error::{Error, Kind},
    file_name::FileName,
};

use crate::{
    cancel::Cancel,
    error::Result,
    flow::EncodedStep,
    stages::{encode::Encoded, layout::Layout, piece::Piece, seen::SourceSeen},
};

/// The inputs of the assemble stage.
pub struct Assembly {
    /// The layout of the prompt.
    pub layout: Layout,
    /// Maximum tokens of the prompt, frames included.
    pub prompt_tokens_max: usize,
    /// The newline row after a video; empty for models without one.
    pub newline: Vec<f32>,
    /// Duration of each source in seconds; `None` for a still picture.
    pub shown_seconds: Vec<Option<f64>>,
    /// One empty entry per source.
    pub seen: Vec<SourceSeen>,
}

/// Sends the whole prompt as pieces, the part before the first frame at once;
/// returns the frames seen of each source.
///
/// # Errors
/// `BadInput` when a source gave no frame, `TooLarge` when the prompt outgrows its limit.
pub fn run(
    frames: Receiver<Encoded>,
    assembly: Assembly,
    out: Sender<Piece>,
    cancel: &Cancel,
) -> Result<Vec<SourceSeen>> {
    let Assembly {
        mut layout,
        prompt_tokens_max,
        newline,
        shown_seconds,
        mut seen,
    } = assembly;
    let mut pieces = Pieces {
        out,
        sent: 0,
        max: prompt_tokens_max,
    };
    pieces.send(layout.head())?;
    // A step is held back until it is known whether it is the last.
    let mut held: Option<EncodedStep> = None;
    let n_sources = seen.len();
    while let Ok(message) = frames.recv() {
        cancel.check()?;
        match message {
            Encoded::Step { source, step } => {
                if let Some(entry) = seen.get_mut(source) {
                    step.frames.iter().for_each(|frame| entry.saw(frame.time));
                }
                if let Some(before) = held.replace(step) {
                    pieces.send(layout.step(before)?)?;
                }
            }
            Encoded::End { source, report } => {
                let Some(last) = held.take() else {
                    return Err(no_frame(&seen, source));
                };
                pieces.send(layout.last_step(last, &newline)?)?;
                if let Some(entry) = seen.get_mut(source) {
                    entry.end(report);
                }
                let shown = shown_seconds.get(source).copied().flatten();
                pieces.send(layout.after(source + 1 == n_sources, shown)?)?;
            }
        }
    }
    Ok(seen)
}

fn no_frame(seen: &[SourceSeen], source: usize) -> Error {
    let path = seen
        .get(source)
        .map(|s| s.path.text().into_owned())
        .unwrap_or_default();
    Error::new(
        Kind::BadInput,
        format!("{path} gave no frame in the range asked for, expected at least one"),
    )
}

/// The output channel, with a token count.
struct Pieces {
    out: Sender<Piece>,
    sent: usize,
    max: usize,
}

impl Pieces {
    /// Sends one piece; a closed channel is not an error here.
    fn send(&mut self, piece: Piece) -> Result<()> {
        self.sent += piece.tokens.len();
        if self.sent > self.max {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "the prompt has reached {} tokens, expected at most {} beside the answer: take fewer frames",
                    self.sent, self.max
                ),
            ));
        }
        // A closed channel means that the answer stage failed, and it says why.
        let _ = self.out.send(piece);
        Ok(())
    }
}
