//! One token that every stage polls: Ctrl-C and the first failing stage set it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::error::{Error, Kind, Result};

/// A shared flag, set once, that also hears its parent.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    parent: Option<Arc<AtomicBool>>,
}

impl Cancel {
    /// A token that nobody has set.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token for one run: it stops when this one does, and may stop alone.
    pub fn child(&self) -> Self {
        Self {
            own: Arc::default(),
            parent: Some(self.own.clone()),
        }
    }

    /// Asks everyone who holds this token to stop.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::Release);
    }

    /// The flag itself, for signal handlers that set it.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.own.clone()
    }

    /// Whether someone asked to stop.
    pub fn is_cancelled(&self) -> bool {
        let is_set = |flag: &Arc<AtomicBool>| flag.load(Ordering::Acquire);
        is_set(&self.own) || self.parent.as_ref().is_some_and(is_set)
    }

    /// `Interrupted` when someone asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(Error::new(Kind::Interrupted, "stopped on request"))
        } else {
            Ok(())
        }
    }
}
