//! A build without MPI says so, and does not answer once per process.

use std::time::Duration;

use crate::{
    attention::link::Link,
    error::{Error, Kind, Result},
};

/// The processes that were started together; there are none in this build.
pub enum Session {}

impl Session {
    /// Parts from the other processes when the work is done.
    pub fn finish(self) {
        match self {}
    }
}

/// Joins the processes that were started together.
///
/// # Errors
/// `Usage`, always: this build cannot.
pub fn connect(_deadline: Duration) -> Result<(Session, Box<dyn Link>)> {
    let message =
        "several processes were started, and this longreel was built without the feature `mpi`";
    Err(Error::new(Kind::Usage, message))
}
