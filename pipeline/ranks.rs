//! The ranks that compute: one, several threads, or several processes that a launcher started.
//!
//! One rank leads: it decodes, encodes, samples and prints. The others hold the weights and
//! their part of every context, and obey its commands.

use std::{thread, time::Duration};

use longreel_models::{
    attention::{
        link::{Link, in_process::InProcess, mpi},
        ring::Ring,
    },
    llama::{
        Decoder,
        group::{Forward, Leader, serve},
    },
};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Kind, Result};

/// The ranks that compute.
pub enum Ranks {
    /// One rank, this process.
    One,
    /// This many ranks, threads of this process.
    Threads(usize),
    /// Several processes, of which this is one.
    Processes(Process),
}

/// One of several processes.
pub struct Process {
    session: mpi::Session,
    link: Box<dyn Link>,
}

impl Ranks {
    /// The processes that were started together, or `ring` threads of this one.
    ///
    /// A process that is silent for `deadline` counts as lost. Threads of one process end
    /// together, however long they are silent.
    ///
    /// # Errors
    /// `Usage` when `ring` is not the number of processes, `Network` when they cannot connect.
    pub fn join(ring: Option<usize>, deadline: Duration) -> Result<Self> {
        let launched = mpi::launched().unwrap_or(1);
        if launched == 1 {
            return Ok(ring.filter(|&n| n > 1).map_or(Self::One, Self::Threads));
        }
        if let Some(ring) = ring.filter(|&ring| ring != launched) {
            let message = format!("--ring is {ring}, {launched} processes were started");
            return Err(Error::new(Kind::Usage, message));
        }
        let (session, link) = mpi::connect(deadline)?;
        Ok(Self::Processes(Process { session, link }))
    }

    /// The transport: `threads` or `mpi`; `None` for one rank.
    pub fn link(&self) -> Option<&'static str> {
        match self {
            Self::One => None,
            Self::Threads(_) => Some("threads"),
            Self::Processes(_) => Some("mpi"),
        }
    }

    /// Total number of ranks.
    pub fn count(&self) -> usize {
        self.here() * self.place().1
    }

    /// Processes on this host, which share its memory.
    pub fn processes_here(&self) -> usize {
        match self {
            Self::One | Self::Threads(_) => 1,
            Self::Processes(_) => mpi::launched_here().unwrap_or(1).max(1),
        }
    }

    /// Ranks of this process.
    pub fn here(&self) -> usize {
        match self {
            Self::Threads(n) => *n,
            Self::One | Self::Processes(_) => 1,
        }
    }

    /// This process's rank, and the number of processes.
    pub fn place(&self) -> (usize, usize) {
        match self {
            Self::Processes(process) => (process.link.rank(), process.link.ranks()),
            Self::One | Self::Threads(_) => (0, 1),
        }
    }

    /// Whether another process leads.
    pub fn follows(&self) -> bool {
        self.place().0 > 0
    }

    /// Serves the leading process until it stops.
    ///
    /// # Errors
    /// `Network` when another rank is lost, and the decoder's errors.
    pub fn serve(self, decoder: &Decoder) -> Result<()> {
        let Self::Processes(process) = self else {
            return Err(Error::new(Kind::Internal, "no other process leads"));
        };
        let (rank, ranks) = (process.link.rank(), process.link.ranks());
        let served = serve(decoder, process.link);
        served.map_err(|e| e.doing(format!("rank {rank} of {ranks}")))?;
        process.session.finish();
        Ok(())
    }

    /// Tells the other processes that this one cannot start because of `error`, which is returned.
    pub fn give_up(self, error: Error) -> Error {
        if let Self::Processes(Process { link, .. }) = self {
            Ring::new(link).fail(&error);
        }
        error
    }

    /// Runs `work` with a decoder on all ranks.
    ///
    /// # Errors
    /// Those of `work`, and `Network` when another rank is lost.
    pub fn lead<T>(
        self,
        decoder: &Decoder,
        work: impl FnOnce(&dyn Forward) -> Result<T>,
    ) -> Result<T> {
        match self {
            Self::One => work(decoder),
            Self::Threads(n) => lead_threads(n, decoder, work),
            Self::Processes(process) => process.lead(decoder, work),
        }
    }
}

impl Process {
    fn lead<T>(self, decoder: &Decoder, work: impl FnOnce(&dyn Forward) -> Result<T>) -> Result<T> {
        let leader = Leader::new(decoder, self.link, None);
        let done = work(&leader)?;
        drop(leader);
        self.session.finish();
        Ok(done)
    }
}

fn lead_threads<T>(
    n: usize,
    decoder: &Decoder,
    work: impl FnOnce(&dyn Forward) -> Result<T>,
) -> Result<T> {
    let per_rank = (rayon::current_num_threads() / n).max(1);
    let pools = (0..n).map(|_| pool(per_rank));
    let mut pools = pools.collect::<Result<Vec<_>>>()?.into_iter();
    let own = pools.next();
    thread::scope(|scope| {
        let mut links = InProcess::connect(n, Duration::MAX).into_iter();
        let Some(link) = links.next() else {
            return Err(Error::new(Kind::Internal, "a ring of no ranks"));
        };
        for (link, pool) in links.zip(pools) {
            // A failing rank tells the leader why, so that its own result can be dropped.
            scope.spawn(move || pool.install(|| serve(decoder, Box::new(link))).err());
        }
        work(&Leader::new(decoder, Box::new(link), own))
    })
}

fn pool(threads: usize) -> Result<ThreadPool> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Error::with_source(Kind::Internal, "start the threads of a rank", e))
}
