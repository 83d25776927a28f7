//! Third verb: frame tokens and question to context, piece by piece in order.

use crossbeam_channel::{Receiver, Sender};
use longreel_models::{
    context::{
        prompt::{ChatPrompt, FrameTerminators, frame_tokens},
        vocab::Token,
    },
    error::{Error, Kind},
};

use crate::{
    cancel::Cancel,
    error::Result,
    flow::FrameTokens,
    stages::{encode::Encoded, seen::SourceSeen},
};

/// What stands around the frames, and what ends them.
pub struct Assembly<'a> {
    /// The question, cut where frames go.
    pub prompt: &'a ChatPrompt,
    /// What follows a frame's codes.
    pub terminators: FrameTerminators,
    /// Most tokens of the prompt, frames included.
    pub prompt_tokens_max: usize,
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
    assembly: Assembly<'_>,
    out: Sender<Vec<Token>>,
    cancel: &Cancel,
) -> Result<Vec<SourceSeen>> {
    let Assembly {
        prompt,
        terminators,
        prompt_tokens_max,
        mut seen,
    } = assembly;
    let mut pieces = Pieces {
        out,
        sent: 0,
        max: prompt_tokens_max,
    };
    pieces.send(prompt.head.clone())?;
    // A frame is held back until it is known whether another follows.
    let mut held: Option<FrameTokens> = None;
    let n_sources = seen.len();
    while let Ok(message) = frames.recv() {
        cancel.check()?;
        match message {
            Encoded::Frame { source, frame } => {
                if let Some(entry) = seen.get_mut(source) {
                    entry.saw(frame.time);
                }
                if let Some(before) = held.replace(frame.into_tokens()) {
                    pieces.send(frame_tokens(&before.codes, false, terminators))?;
                }
            }
            Encoded::End { source, report } => {
                let Some(last) = held.take() else {
                    return Err(no_frame(&seen, source));
                };
                pieces.send(frame_tokens(&last.codes, true, terminators))?;
                if let Some(entry) = seen.get_mut(source) {
                    entry.end(report);
                }
                let after = if source + 1 < n_sources {
                    &prompt.between
                } else {
                    &prompt.tail
                };
                pieces.send(after.clone())?;
            }
        }
    }
    Ok(seen)
}

fn no_frame(seen: &[SourceSeen], source: usize) -> Error {
    let path = seen
        .get(source)
        .map(|s| s.path.display().to_string())
        .unwrap_or_default();
    Error::new(
        Kind::BadInput,
        format!("{path} gave no frame in the range asked for, expected at least one"),
    )
}

/// The outgoing side, which counts.
struct Pieces {
    out: Sender<Vec<Token>>,
    sent: usize,
    max: usize,
}

impl Pieces {
    /// Sends one piece; a reader that went away is the reader's business.
    fn send(&mut self, piece: Vec<Token>) -> Result<()> {
        self.sent += piece.len();
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
