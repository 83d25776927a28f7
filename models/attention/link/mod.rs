//! The transport between ranks. The ring above knows nothing of threads, processes or hosts.

pub mod in_process;

pub mod wire;

pub mod mpi;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    attention::kv_cache::PositionedBlock,
    error::{Error, Kind, Result},
};

/// Default time that another process may be silent before it counts as lost.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A message from one rank to another.
#[derive(Clone, Default)]
pub struct Message {
    /// A short text: the kind of message, or a command.
    pub header: String,
    /// Queries, or partial results.
    pub numbers: Vec<f32>,
    /// Keys and values.
    pub blocks: Vec<PositionedBlock>,
    /// Why the sender failed; the message then has no other content.
    pub failure: Option<Failure>,
}

/// Why a rank failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of its error.
    pub kind: Kind,
    /// The error's message.
    pub message: String,
}

impl Message {
    /// A message of text alone.
    pub fn words(header: String) -> Self {
        Self {
            header,
            ..Self::default()
        }
    }

    /// A message of numbers alone.
    pub fn numbers(numbers: Vec<f32>) -> Self {
        Self {
            numbers,
            ..Self::default()
        }
    }

    /// A message of keys and values alone.
    pub fn blocks(blocks: Vec<PositionedBlock>) -> Self {
        Self {
            blocks,
            ..Self::default()
        }
    }

    /// The message of a rank that failed with `error`.
    pub fn failure(error: &Error) -> Self {
        let (kind, message) = (error.kind(), error.to_string());
        Self {
            failure: Some(Failure { kind, message }),
            ..Self::default()
        }
    }

    /// Bytes sent; blocks count in full.
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

    /// Queues a message; it is sent while the caller continues.
    ///
    /// # Errors
    /// `Network` when the rank is gone; the error names it.
    fn send(&mut self, to: usize, message: Message) -> Result<()>;

    /// The next message of `from`; until it arrives, the rank must send heartbeats.
    ///
    /// # Errors
    /// `Network` when the rank is gone or silent past the deadline; the error names it.
    fn receive(&mut self, from: usize) -> Result<Message>;
}

/// The error for a rank that has ended.
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
