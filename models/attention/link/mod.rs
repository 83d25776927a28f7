//! How bytes move between ranks. The ring above knows nothing of threads, processes or hosts.

pub mod in_process;

pub mod wire;

pub mod mpi;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    attention::kv_cache::PositionedBlock,
    error::{Error, Kind, Result},
};

/// How long another process may be silent before it counts as lost, unless the user says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What one rank sends to another.
#[derive(Clone, Default)]
pub struct Message {
    /// A few words that say what this is.
    pub header: String,
    /// Queries, or partial results.
    pub numbers: Vec<f32>,
    /// Keys and values.
    pub blocks: Vec<PositionedBlock>,
    /// Why the sender can do no more; nothing else comes with it.
    pub failure: Option<Failure>,
}

/// The last words of a rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong there.
    pub kind: Kind,
    /// In a sentence.
    pub message: String,
}

impl Message {
    /// Nothing but words.
    pub fn words(header: String) -> Self {
        Self {
            header,
            ..Self::default()
        }
    }

    /// Nothing but numbers.
    pub fn numbers(numbers: Vec<f32>) -> Self {
        Self {
            numbers,
            ..Self::default()
        }
    }

    /// Nothing but keys and values.
    pub fn blocks(blocks: Vec<PositionedBlock>) -> Self {
        Self {
            blocks,
            ..Self::default()
        }
    }

    /// The last words of a rank that met `error`.
    pub fn failure(error: &Error) -> Self {
        let (kind, message) = (error.kind(), error.to_string());
        Self {
            failure: Some(Failure { kind, message }),
            ..Self::default()
        }
    }

    /// Bytes that travel, blocks in whole.
    pub fn bytes(&self) -> usize {
        let blocks = self.blocks.iter().map(|b| b.block.as_bytes().len());
        self.header.len() + 4 * self.numbers.len() + blocks.sum::<usize>()
    }
}

/// One rank's connections to all others. Messages of one rank to another arrive in order.
pub trait Link: Send {
    /// Which rank this is, below [`Link::ranks`].
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// Hands a message over; it travels while the caller goes on.
    ///
    /// # Errors
    /// `Network` when the rank is gone; the error names it.
    fn send(&mut self, to: usize, message: Message) -> Result<()>;

    /// The next message of `from`; until it comes the rank must show signs of life.
    ///
    /// # Errors
    /// `Network` when the rank is gone or silent past the deadline; the error names it.
    fn receive(&mut self, from: usize) -> Result<Message>;
}

/// The error for a rank that is no longer there.
pub(crate) fn gone(rank: usize, ranks: usize) -> Error {
    Error::new(
        Kind::Network,
        format!("rank {rank} of {ranks} has ended before the work was done"),
    )
}

/// The error for a rank that has sent nothing for `deadline`.
pub(crate) fn silent(rank: usize, ranks: usize, deadline: Duration) -> Error {
    Error::new(
        Kind::Network,
        format!(
            "rank {rank} of {ranks} has been silent for {} s",
            deadline.as_secs_f64()
        ),
    )
}
