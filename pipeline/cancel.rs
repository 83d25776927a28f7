//! The cancellation token that every stage polls: Ctrl-C and the first failing stage set it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::error::{Error, Kind, Result};

/// A shared flag that is set once; a child is also set by its parent.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    parent: Option<Arc<AtomicBool>>,
}

impl Cancel {
    /// A token that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// A child token: cancelled with this one, or alone.
    pub fn child(&self) -> Self {
        Self {
            own: Arc::default(),
            parent: Some(self.own.clone()),
        }
    }

    /// Cancels this token and its children.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::Release);
    }

    /// The flag itself, for signal handlers that set it.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.own.clone()
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        let is_set = |flag: &Arc<AtomicBool>| flag.load(Ordering::Acquire);
        is_set(&self.own) || self.parent.as_ref().is_some_and(is_set)
    }

    /// `Interrupted` when it was cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(Error::new(Kind::Interrupted, "stopped on request"))
        } else {
            Ok(())
        }
    }
}
