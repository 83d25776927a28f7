//! Third verb: steps and question to context, piece by piece in order.

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

/// What is made a prompt.
pub struct Assembly {
    /// Where what stands.
    pub layout: Layout,
    /// Most tokens of the prompt, frames included.
    pub prompt_tokens_max: usize,
    /// The row that some models put behind a video; empty for others.
    pub newline: Vec<f32>,
    /// How long each source is shown, in seconds; `None` for a still picture.
    pub shown_seconds: Vec<Option<f64>>,
    /// One entry a source, still empty.
    pub seen: Vec<SourceSeen>,
}

/// Sends the whole prompt as pieces, the part before the first frame at once;
/// returns what was seen of each source.
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
    // A step is held back until it is known whether another follows.
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
        .map(|s| s.path.shown().to_string())
        .unwrap_or_default();
    Error::new(
        Kind::BadInput,
        format!("{path} gave no frame in the range asked for, expected at least one"),
    )
}

/// The outgoing side, which counts.
struct Pieces {
    out: Sender<Piece>,
    sent: usize,
    max: usize,
}

impl Pieces {
    /// Sends one piece; a reader that went away is the reader's business.
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
