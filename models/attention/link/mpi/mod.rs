//! Ranks as processes, on one host or many, as `mpirun` or `srun` starts them.

#[cfg(feature = "mpi")]
mod processes;

#[cfg(feature = "mpi")]
pub use processes::{Session, connect};

#[cfg(not(feature = "mpi"))]
mod absent;

#[cfg(not(feature = "mpi"))]
pub use absent::{Session, connect};

/// The number of processes according to the launcher: Open MPI, MPICH, and Slurm with PMI or PMIx.
pub fn launched() -> Option<usize> {
    // SLURM_NTASKS is also set in a batch script outside `srun`, where there is one process: only PMIX_RANK
    // proves a launch.
    let of_slurm = || first_of(&["PMIX_RANK"]).and_then(|_| first_of(&["SLURM_NTASKS"]));
    first_of(&["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]).or_else(of_slurm)
}

/// This process's rank according to the launcher.
pub fn launched_as() -> Option<usize> {
    first_of(&["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"])
}

/// The number of processes on this host, where the launcher tells.
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
