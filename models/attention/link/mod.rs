//! How bytes move between ranks. The ring above knows nothing of threads, processes or hosts.

pub mod in_process;

use std::time::Duration;

use crate::{
    attention::kv_cache::Placed,
    error::{Error, Kind, Result},
};

/// How long a rank may be silent before it counts as lost, unless the user says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What one rank sends to another.
#[derive(Clone, Default)]
pub struct Message {
    /// A few bytes that say what this is.
    pub header: Vec<u8>,
    /// Queries, or partial results.
    pub numbers: Vec<f32>,
    /// Keys and values.
    pub blocks: Vec<Placed>,
}

impl Message {
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

    /// The next message of `from`, which is at work on it.
    ///
    /// # Errors
    /// `Network` when the rank is gone or silent past the deadline; the error names it.
    fn receive(&mut self, from: usize) -> Result<Message>;

    /// The next message of `from`, which may have nothing to say for long: a command.
    ///
    /// # Errors
    /// `Network` when the rank is gone; the error names it.
    fn wait(&mut self, from: usize) -> Result<Message>;
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
