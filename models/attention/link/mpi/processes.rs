//! Ranks over MPI, and the detection of lost ranks, which MPI does not provide.
//!
//! MPI makes no progress on a message while its rank computes, so that each peer has a
//! sending thread, and one thread receives from all. A sending thread that has had nothing to
//! send for a second, or a quarter of the deadline, sends a heartbeat. The receiving
//! thread polls and sleeps: waiting inside MPI busies a whole core, which the attention
//! needs.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use mpi::{
    environment::Universe,
    point_to_point::{Message as Matched, Status},
    topology::SimpleCommunicator,
    traits::*,
};
use serde::{Deserialize, Serialize};

use crate::{
    attention::link::{
        Link, Message, gone, silent,
        wire::{Arriving, envelope},
    },
    error::{Context, Error, Kind, Result},
    file_name::FileName,
};

/// The tag of all messages.
const TAG: mpi::Tag = 1;

/// Capacity of the queue between two ranks on either side, in messages.
const BOUND: usize = 4;

/// Longest interval between heartbeats of an idle rank.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How often the process of a rank on the same host is looked up in `/proc`.
const LOOK: Duration = Duration::from_millis(200);

/// Sleep between polls: of a send in progress, of an idle receiver, and of a receiver that a caller waits for.
const SENDING: Duration = Duration::from_micros(50);
const IDLE: Duration = Duration::from_micros(500);
const AWAITED: Duration = Duration::from_micros(10);

/// How long a rank that ends waits for its unsent messages.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The processes that were started together.
pub struct Session(Option<Universe>);

impl Session {
    /// Leaves the other processes when the work is done; every process must call it.
    pub fn finish(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Session {
    /// After a failure `MPI_Finalize` is not called: it would wait for the failed ranks for ever.
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

/// Joins the processes that were started together; `deadline` is the longest silence allowed.
///
/// # Errors
/// `Network` when another process does not answer, or MPI cannot serve several threads.
pub fn connect(deadline: Duration) -> Result<(Session, Box<dyn Link>)> {
    let refused = |why: &str| Error::new(Kind::Network, format!("start MPI: {why}"));
    let (universe, threading) = mpi::initialize_with_threading(mpi::Threading::Multiple)
        .ok_or_else(|| refused("it runs already"))?;
    let session = Session(Some(universe));
    if threading != mpi::Threading::Multiple {
        return Err(refused("it does not serve several threads at once"));
    }
    let mut link = Processes::start(deadline)?;
    link.greet().doing(|| "join the other processes")?;
    Ok((session, Box::new(link)))
}

/// The first message of a rank to all others.
#[derive(Serialize, Deserialize)]
struct Greeting {
    version: String,
    host: String,
    /// The PID namespace: process numbers of a container are its own.
    namespace: String,
    pid: u32,
}

/// State of another rank.
#[derive(Default)]
struct PeerRank {
    /// When its last message or heartbeat arrived.
    heard: Option<Instant>,
    /// Its process id, where it runs on this host.
    neighbour: Option<u32>,
    /// Why nothing more can arrive.
    lost: Option<String>,
}

type Peers = Arc<Mutex<Vec<PeerRank>>>;

/// One process's connections.
struct Processes {
    rank: usize,
    deadline: Duration,
    peers: Peers,
    /// To each rank; none to itself.
    to: Vec<Option<Sender<Message>>>,
    from: Vec<Receiver<Message>>,
    senders: Vec<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
    /// A caller waits: the receiving thread sleeps less.
    wanted: Arc<AtomicBool>,
    parting: Arc<AtomicBool>,
}

impl Processes {
    fn start(deadline: Duration) -> Result<Self> {
        let world = SimpleCommunicator::world();
        let (rank, ranks) = (world.rank() as usize, world.size() as usize);
        let mut link = Self {
            rank,
            deadline,
            peers: Arc::new(Mutex::new(
                (0..ranks).map(|_| PeerRank::default()).collect(),
            )),
            to: Vec::new(),
            from: Vec::new(),
            senders: Vec::new(),
            receiver: None,
            wanted: Arc::default(),
            parting: Arc::default(),
        };
        let mut arriving = Vec::new();
        for peer in 0..ranks {
            let (sender, receiver) = bounded(BOUND);
            arriving.push(Inbox {
                out: sender,
                ready: None,
                arriving: None,
            });
            link.from.push(receiver);
            let to = (peer != rank).then(|| link.sender(peer)).transpose()?;
            link.to.push(to);
        }
        let inboxes = Inboxes {
            rank,
            inboxes: arriving,
            peers: link.peers.clone(),
            wanted: link.wanted.clone(),
            parting: link.parting.clone(),
        };
        let thread = thread::Builder::new().name("mpi receive".to_owned());
        link.receiver = Some(thread.spawn(move || inboxes.run())?);
        Ok(link)
    }

    fn sender(&mut self, peer: usize) -> Result<Sender<Message>> {
        let (out, messages) = bounded(BOUND);
        let thread = thread::Builder::new().name(format!("mpi send {peer}"));
        // Several heartbeats within the deadline, so that one late heartbeat does no harm.
        let sign = SIGN_OF_LIFE.min(self.deadline / 4);
        self.senders
            .push(thread.spawn(move || send_all(peer, &messages, sign))?);
        Ok(out)
    }

    /// Exchanges greetings with every rank.
    fn greet(&mut self) -> Result<()> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (host, pid) = (
            mpi::environment::processor_name().unwrap_or_default(),
            std::process::id(),
        );
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let greeting = Greeting {
            version,
            host,
            namespace: namespace.shown().to_string(),
            pid,
        };
        let words = serde_json::to_string(&greeting)
            .map_err(|e| Error::with_source(Kind::Internal, "write a greeting", e))?;
        let (rank, ranks) = (self.rank, self.ranks());
        let others = (0..ranks).filter(|&peer| peer != rank);
        for peer in others.clone() {
            self.send(peer, Message::words(words.clone()))?;
        }
        for peer in others {
            let words = self.receive(peer)?.header;
            let theirs: Greeting = serde_json::from_str(&words).map_err(|e| {
                Error::with_source(
                    Kind::Network,
                    format!("rank {peer} is not a longreel process"),
                    e,
                )
            })?;
            if theirs.version != greeting.version {
                let (found, expected) = (theirs.version, &greeting.version);
                let message = format!(
                    "rank {peer} is longreel {found}, rank {} is {expected}",
                    self.rank
                );
                return Err(Error::new(Kind::Network, message));
            }
            let is_near = theirs.host == greeting.host && theirs.namespace == greeting.namespace;
            if is_near && Path::new("/proc/self").exists() {
                lock(&self.peers)[peer].neighbour = Some(theirs.pid);
            }
        }
        Ok(())
    }

    /// Why nothing more will come from `peer`, if that is so; the caller has waited since `since`.
    fn lost(&self, peer: usize, since: Instant) -> Option<Error> {
        let peers = lock(&self.peers);
        let state = peers.get(peer)?;
        if let Some(why) = &state.lost {
            return Some(Error::new(Kind::Network, why.clone()));
        }
        if state.neighbour.is_some_and(has_ended) {
            return Some(gone(peer, self.ranks()));
        }
        let heard = state.heard.map_or(since, |heard| heard.max(since));
        let is_silent = heard.elapsed() > self.deadline;
        is_silent.then(|| silent(peer, self.ranks(), self.deadline))
    }
}

/// Whether process `pid` of this host has ended or is a zombie.
fn has_ended(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // The state follows the name, which is in parentheses and may itself contain some.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('Z' | 'X'))
}

fn lock(peers: &Peers) -> std::sync::MutexGuard<'_, Vec<PeerRank>> {
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link for Processes {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.to.len()
    }

    fn send(&mut self, to: usize, mut message: Message) -> Result<()> {
        let since = Instant::now();
        let channel = self.to.get(to).and_then(Option::as_ref);
        let channel = channel.ok_or_else(|| gone(to, self.ranks()))?;
        loop {
            message = match channel.send_timeout(message, LOOK) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.into_inner(),
            };
            if let Some(error) = self.lost(to, since) {
                return Err(error);
            }
        }
    }

    fn receive(&mut self, from: usize) -> Result<Message> {
        let since = Instant::now();
        let channel = self
            .from
            .get(from)
            .ok_or_else(|| gone(from, self.ranks()))?;
        self.wanted.store(true, Ordering::Relaxed);
        if let Some(receiver) = &self.receiver {
            receiver.thread().unpark();
        }
        let message = loop {
            match channel.recv_timeout(LOOK) {
                Ok(message) => break Ok(message),
                Err(RecvTimeoutError::Disconnected) => break Err(gone(from, self.ranks())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(error) = self.lost(from, since) {
                // A failure message may still be in the queue.
                break channel.recv_timeout(LOOK).map_err(|_| error);
            }
        };
        self.wanted.store(false, Ordering::Relaxed);
        message
    }
}

impl Drop for Processes {
    /// Queued messages are still sent, within [`LAST_WORDS`].
    fn drop(&mut self) {
        self.to.clear();
        let until = Instant::now() + LAST_WORDS;
        while Instant::now() < until && self.senders.iter().any(|sender| !sender.is_finished()) {
            thread::sleep(Duration::from_millis(1));
        }
        self.parting.store(true, Ordering::Relaxed);
        if let Some(receiver) = self.receiver.take() {
            while Instant::now() < until && !receiver.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Sends queued messages to `peer`, and heartbeats in between.
fn send_all(peer: usize, messages: &Receiver<Message>, sign: Duration) {
    let world = SimpleCommunicator::world();
    let process = world.process_at_rank(peer as i32);
    loop {
        let message = match messages.recv_timeout(sign) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => {
                send(&process, &[]);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // A message that cannot be serialized is replaced by the failure: the peer must not wait for it.
        let (bytes, blocks) = match envelope(&message) {
            Ok(bytes) if bytes.len() <= i32::MAX as usize => (bytes, message.blocks),
            Ok(bytes) => {
                let why = format!(
                    "a message of {} bytes is too long for MPI, take a shorter prefill chunk",
                    bytes.len()
                );
                let failure = Message::failure(&Error::new(Kind::TooLarge, why));
                (envelope(&failure).unwrap_or_default(), Vec::new())
            }
            Err(error) => (
                envelope(&Message::failure(&error)).unwrap_or_default(),
                Vec::new(),
            ),
        };
        send(&process, &bytes);
        for placed in &blocks {
            send(&process, placed.block.as_bytes());
        }
    }
}

/// Sends, and sleeps until the receiver has taken it.
fn send(process: &impl Destination, bytes: &[u8]) {
    mpi::request::scope(|scope| {
        let mut request = process.immediate_send_with_tag(scope, bytes, TAG);
        while let Err(unfinished) = request.test() {
            request = unfinished;
            thread::sleep(SENDING);
        }
    });
}

/// Messages from one rank.
struct Inbox {
    out: Sender<Message>,
    /// Complete, but the queue was full.
    ready: Option<Message>,
    /// Incomplete: blocks are missing.
    arriving: Option<Arriving>,
}

struct Inboxes {
    rank: usize,
    inboxes: Vec<Inbox>,
    peers: Peers,
    wanted: Arc<AtomicBool>,
    parting: Arc<AtomicBool>,
}

impl Inboxes {
    fn run(mut self) {
        let world = SimpleCommunicator::world();
        while !self.parting.load(Ordering::Relaxed) {
            let mut came = false;
            for peer in 0..self.inboxes.len() {
                came |= peer != self.rank && self.look(&world, peer);
            }
            if !came {
                let wanted = self.wanted.load(Ordering::Relaxed);
                thread::park_timeout(if wanted { AWAITED } else { IDLE });
            }
        }
    }

    /// Receives one part of a message of `peer`, if any has arrived → whether it did.
    fn look(&mut self, world: &SimpleCommunicator, peer: usize) -> bool {
        let inbox = &mut self.inboxes[peer];
        // Until the queue has room nothing more is received: MPI then holds back the sender.
        if !inbox.hand_over() {
            return false;
        }
        let process = world.process_at_rank(peer as i32);
        let Some((matched, status)) = process.immediate_matched_probe_with_tag(TAG) else {
            return false;
        };
        let taken = inbox.take(matched, &status);
        let state = &mut lock(&self.peers)[peer];
        state.heard = Some(Instant::now());
        if let Err(error) = taken {
            state.lost = Some(format!("rank {peer} sent an invalid message: {error}"));
        }
        true
    }
}

impl Inbox {
    /// Queues the complete message → whether there is room for more.
    fn hand_over(&mut self) -> bool {
        let Some(message) = self.ready.take() else {
            return true;
        };
        if let Err(TrySendError::Full(message)) = self.out.try_send(message) {
            self.ready = Some(message);
        }
        self.ready.is_none()
    }

    fn take(&mut self, matched: Matched, status: &Status) -> Result<()> {
        let mut bytes = vec![0u8; status.count(u8::equivalent_datatype()) as usize];
        matched.matched_receive_into(&mut bytes[..]);
        match &mut self.arriving {
            // A heartbeat never comes between the parts of a message: one thread sends both.
            Some(arriving) => arriving.take(&bytes)?,
            None => self.arriving = Arriving::open(&bytes)?,
        }
        if let Some(whole) = self.arriving.take_if(|arriving| arriving.is_whole()) {
            self.ready = Some(whole.into_message());
            self.hand_over();
        }
        Ok(())
    }
}
