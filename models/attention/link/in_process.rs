//! Ranks as threads of one process: blocks are shared, not copied.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{Link, Message, gone, silent};
use crate::error::Result;

/// Capacity of the channel between two ranks, in messages.
const BOUND: usize = 4;

/// One thread's connections.
pub struct InProcess {
    rank: usize,
    deadline: Duration,
    /// To each rank; `None` for itself.
    to: Vec<Option<Sender<Message>>>,
    /// From each rank; `None` for itself.
    from: Vec<Option<Receiver<Message>>>,
}

impl InProcess {
    /// Connects `ranks` threads → the connections of each, in order of rank.
    pub fn connect(ranks: usize, deadline: Duration) -> Vec<Self> {
        let end = |rank| Self {
            rank,
            deadline,
            to: Vec::new(),
            from: Vec::new(),
        };
        let mut ends: Vec<Self> = (0..ranks).map(end).collect();
        for from in 0..ranks {
            for to in 0..ranks {
                let (sender, receiver) = if from == to {
                    (None, None)
                } else {
                    let (sender, receiver) = bounded(BOUND);
                    (Some(sender), Some(receiver))
                };
                ends[from].to.push(sender);
                ends[to].from.push(receiver);
            }
        }
        ends
    }
}

impl Link for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.to.len()
    }

    fn send(&mut self, to: usize, message: Message) -> Result<()> {
        let lost = || gone(to, self.to.len());
        let channel = self.to.get(to).and_then(Option::as_ref);
        let sent = channel
            .ok_or_else(lost)?
            .send_timeout(message, self.deadline);
        sent.map_err(|error| match error.is_timeout() {
            true => silent(to, self.to.len(), self.deadline),
            false => lost(),
        })
    }

    fn receive(&mut self, from: usize) -> Result<Message> {
        let lost = || gone(from, self.to.len());
        let channel = self.from.get(from).and_then(Option::as_ref);
        let received = channel.ok_or_else(lost)?.recv_timeout(self.deadline);
        received.map_err(|error| match error {
            RecvTimeoutError::Timeout => silent(from, self.to.len(), self.deadline),
            RecvTimeoutError::Disconnected => lost(),
        })
    }
}
