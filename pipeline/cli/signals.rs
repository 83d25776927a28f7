//! Ctrl-C and SIGTERM: the first asks every stage to stop, the second ends the process at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use crate::{
    cancel::Cancel,
    error::{Error, Kind, Result},
};

/// Exit code of a process that was interrupted twice.
const INTERRUPTED: i32 = 130;

/// Flags set by the signal handlers.
pub struct Signals {
    cancel: Cancel,
    terminated: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers.
    pub fn install() -> Result<Self> {
        let signals = Self {
            cancel: Cancel::new(),
            terminated: Arc::default(),
        };
        signals
            .register()
            .map_err(|e| Error::with_source(Kind::Internal, "install signal handlers", e))?;
        Ok(signals)
    }

    fn register(&self) -> std::io::Result<()> {
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the shutdown handler runs first, so that at the first signal it still sees the flag unset.
            flag::register_conditional_shutdown(signal, INTERRUPTED, self.cancel.flag())?;
            flag::register(signal, self.cancel.flag())?;
        }
        flag::register(SIGTERM, self.terminated.clone())?;
        Ok(())
    }

    /// The token that the first signal sets.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Whether SIGTERM was received.
    pub fn terminated(&self) -> bool {
        self.terminated.load(Ordering::Acquire)
    }
}
