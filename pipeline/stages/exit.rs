//! The end of a run of several stages: the first failure stops all of them, and is reported.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

use crate::{
    cancel::Cancel,
    error::{Error, Kind, Result},
};

/// Keeps the first failure of a run and stops the other stages.
pub struct FirstFailure {
    first: Mutex<Option<Error>>,
    stop: Cancel,
}

impl FirstFailure {
    /// `stop`, which all stages poll, is set when a stage fails.
    pub fn new(stop: Cancel) -> Self {
        Self {
            first: Mutex::new(None),
            stop,
        }
    }

    /// Runs one stage to its end; keeps its failure, or its panic, when it is the first.
    ///
    /// `None` when the stage failed.
    pub fn run<T>(&self, name: &str, stage: impl FnOnce() -> Result<T>) -> Option<T> {
        // A stage owns its channel ends and shares no partial state with others,
        // so that no state of a panicked stage is observable.
        let error = match catch_unwind(AssertUnwindSafe(stage)) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error,
            Err(panic) => panic_error(name, panic.as_ref()),
        };
        self.keep(error);
        None
    }

    fn keep(&self, error: Error) {
        let mut first = self
            .first
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        first.get_or_insert(error);
        self.stop.cancel();
    }

    /// The first failure, if any stage failed; otherwise `value`.
    pub fn result<T>(self, value: Option<T>) -> Result<T> {
        let first = self
            .first
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match (first, value) {
            (Some(error), _) => Err(error),
            (None, Some(value)) => Ok(value),
            (None, None) => Err(Error::new(
                Kind::Internal,
                "a stage ended without result and without error",
            )),
        }
    }
}

fn panic_error(name: &str, panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Error::new(Kind::Internal, format!("the {name} stage panicked: {text}"))
}
