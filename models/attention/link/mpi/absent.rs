//! The build without MPI: several processes are refused, instead of each answering by itself.

use std::time::Duration;

use crate::{
    attention::link::Link,
    error::{Error, Kind, Result},
};

/// The processes that were started together; never constructed in this build.
pub enum Session {}

impl Session {
    /// Leaves the other processes when the work is done.
    pub fn finish(self) {
        match self {}
    }
}

/// Joins the processes that were started together.
///
/// # Errors
/// `Usage`, always.
pub fn connect(_deadline: Duration) -> Result<(Session, Box<dyn Link>)> {
    let message =
        "several processes were started, and this longreel was built without the feature `mpi`";
    Err(Error::new(Kind::Usage, message))
}
