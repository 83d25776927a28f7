//! Ranks that are processes, on one host or many, as `mpirun` or `srun` starts them.

#[cfg(feature = "mpi")]
mod processes;

#[cfg(feature = "mpi")]
pub use processes::{Session, connect};

#[cfg(not(feature = "mpi"))]
mod absent;

#[cfg(not(feature = "mpi"))]
pub use absent::{Session, connect};

/// How many processes a launcher says that there are: Open MPI, MPICH, and Slurm with PMI or PMIx.
pub fn launched() -> Option<usize> {
    let of_slurm = || first_of(&["PMIX_RANK"]).and_then(|_| first_of(&["SLURM_NTASKS"]));
    first_of(&["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]).or_else(of_slurm)
}

/// Which of them a launcher says that this one is.
pub fn launched_as() -> Option<usize> {
    first_of(&["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"])
}

/// How many of them a launcher says to be on this host, where it says so.
pub fn launched_here() -> Option<usize> {
    first_of(&[
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "MPI_LOCALNRANKS",
        "PMI_LOCAL_SIZE",
    ])
}

fn first_of(names: &[&str]) -> Option<usize> {
    let number = |name: &&str| std::env::var(name).ok()?.parse().ok();
    names.iter().find_map(number)
}
