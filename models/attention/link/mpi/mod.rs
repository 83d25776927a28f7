//! Ranks that are processes, on one host or many, as `mpirun` or `srun` starts them.

#[cfg(feature = "mpi")]
mod processes;

#[cfg(feature = "mpi")]
pub use processes::{Session, connect};

#[cfg(not(feature = "mpi"))]
mod absent;

#[cfg(not(feature = "mpi"))]
pub use absent::{Session, connect};

/// How many processes a launcher says that there are: Open MPI, and MPICH or Slurm.
pub fn launched() -> Option<usize> {
    first_of(&["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
}

/// Which of them a launcher says that this one is.
pub fn launched_as() -> Option<usize> {
    first_of(&["OMPI_COMM_WORLD_RANK", "PMI_RANK"])
}

fn first_of(names: &[&str]) -> Option<usize> {
    let number = |name: &&str| std::env::var(name).ok()?.parse().ok();
    names.iter().find_map(number)
}
