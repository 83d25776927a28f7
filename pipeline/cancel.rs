//! The cancellation token that every stage polls: Ctrl-C and the first failing stage set it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::error::{Error, Kind, Result};

/// A shared flag that is set once; a child is also set by its parent, and by all before it.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    parent: Option<Arc<Cancel>>,
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
            parent: Some(Arc::new(self.clone())),
        }
    }

    /// Cancels this token, its children and theirs.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::Release);
    }

    /// The flag itself, for signal handlers that set it.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.own.clone()
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.own.load(Ordering::Acquire)
            || self
                .parent
                .as_ref()
                .is_some_and(|parent| parent.is_cancelled())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grandchild_is_cancelled_with_the_first_token_and_not_the_other_way_round() {
        let first = Cancel::new();
        let child = first.child();
        let (grandchild, sibling) = (child.child(), first.child());
        assert!(!grandchild.is_cancelled());
        child.cancel();
        assert!(grandchild.is_cancelled() && grandchild.check().is_err());
        assert!(!first.is_cancelled() && !sibling.is_cancelled());
        first.cancel();
        assert!(sibling.child().is_cancelled());
    }

    #[test]
    fn a_signal_reaches_a_grandchild_through_the_flag() {
        let first = Cancel::new();
        let grandchild = first.child().child();
        first.flag().store(true, Ordering::Release);
        assert!(grandchild.is_cancelled());
    }
}
