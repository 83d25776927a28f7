//! The memory budget of contexts: bytes are charged before they are allocated.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// A limit that several contexts share; blocks shared by forks are counted once.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: usize,
    used_bytes: AtomicUsize,
}

/// Bytes charged to a budget; returned when the last owner is dropped.
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

    /// No limit; use is still counted.
    pub fn unlimited() -> Arc<Self> {
        Self::new(usize::MAX)
    }

    /// The limit in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Bytes charged now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Charges `bytes`; `None` when they would exceed the limit.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let taken = |used: usize| used.checked_add(bytes).filter(|&n| n <= self.limit_bytes);
        // The counter guards no other memory: only its own value must be exact.
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
