//! Bytes that contexts may hold in memory, counted before they are taken.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// A limit that several contexts share; forks count what they share once.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: usize,
    used_bytes: AtomicUsize,
}

/// Bytes taken out of a budget; given back when the last owner goes.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// At most `limit_bytes` at once.
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            used_bytes: AtomicUsize::new(0),
        })
    }

    /// No limit; what is used is counted all the same.
    pub fn unlimited() -> Arc<Self> {
        Self::new(usize::MAX)
    }

    /// Most bytes at once.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Bytes taken at present.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, or nothing when they would pass the limit.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let taken = |used: usize| used.checked_add(bytes).filter(|&n| n <= self.limit_bytes);
        let order = Ordering::Relaxed;
        self.used_bytes.fetch_update(order, order, taken).ok()?;
        Some(Charge {
            budget: self.clone(),
            bytes,
        })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget
            .used_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
