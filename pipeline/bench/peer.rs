//! A peer: another program that runs the same operations, in turn with ours.
//!
//! It is started once. It reads one request a line on stdin, an object with the
//! fields of [`Request`], and answers each with one line on stdout:
//! `{"peer": "name and version", "seconds": 0.123}` for one run of it, or
//! `{"skip": "why"}`.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::{Deserialize, Serialize};

use crate::{
    bench::{case::Case, sample_summary::SampleSummary},
    error::{Context, Error, Kind, Result},
};

/// A request to the peer.
#[derive(Serialize)]
struct Request {
    #[serde(flatten)]
    case: Case,
    threads: usize,
    /// Runs to time; the answer is the mean of one run.
    runs: usize,
}

#[derive(Deserialize)]
struct PeerResponse {
    peer: Option<String>,
    seconds: Option<f64>,
    skip: Option<String>,
}

/// A peer's result.
#[derive(Debug, Clone, Serialize)]
pub struct PeerRow {
    /// Its name and version.
    pub name: String,
    /// Seconds of one run.
    pub seconds: SampleSummary,
    /// Speedup over the peer: its median time over ours.
    pub ratio: f64,
}

/// A running peer.
pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `command`, a program and its arguments separated by spaces.
    ///
    /// # Errors
    /// `Usage` when it is empty, `NotFound` when it does not start.
    pub fn start(command: &str) -> Result<Self> {
        let mut words = command.split_whitespace();
        let program = words
            .next()
            .ok_or_else(|| Error::new(Kind::Usage, "--peer is empty, expected a command"))?;
        let mut child = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .doing(|| format!("start the peer {command}"))?;
        let ends = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) =
            ends.ok_or_else(|| Error::new(Kind::Internal, "the peer has no stdin or stdout"))?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// The peer's name and seconds of one run; `None` when it skips the case.
    ///
    /// # Errors
    /// When it has ended, or its answer does not follow the protocol.
    pub fn ask(
        &mut self,
        case: &Case,
        threads: usize,
        runs: usize,
    ) -> Result<Option<(String, f64)>> {
        let doing = || format!("ask the peer for {} {}", case.op.name(), case.dtype.name());
        self.exchange(case, threads, runs).doing(doing)
    }

    fn exchange(
        &mut self,
        case: &Case,
        threads: usize,
        runs: usize,
    ) -> Result<Option<(String, f64)>> {
        let request = Request {
            case: *case,
            threads,
            runs,
        };
        let wrong = |what: String| Error::new(Kind::BadInput, what);
        let mut line = serde_json::to_string(&request).map_err(|e| wrong(e.to_string()))?;
        line.push('\n');
        let ended = |_| wrong("the peer ended".to_owned());
        self.stdin.write_all(line.as_bytes()).map_err(ended)?;
        self.stdin.flush().map_err(ended)?;
        let mut answer = String::new();
        if self.stdout.read_line(&mut answer)? == 0 {
            return Err(wrong("the peer ended".to_owned()));
        }
        let unclear = |e| wrong(format!("the peer answered {:?} ({e})", answer.trim_end()));
        match serde_json::from_str(&answer).map_err(unclear)? {
            PeerResponse { skip: Some(_), .. } => Ok(None),
            PeerResponse {
                peer: Some(peer),
                seconds: Some(seconds),
                ..
            } if seconds > 0.0 => Ok(Some((peer, seconds))),
            _ => Err(wrong(format!("the peer answered {:?}", answer.trim_end()))),
        }
    }
}

impl Drop for Peer {
    /// Ends the peer.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
