//! Machine and build that a figure was measured with.

use longreel_kernels::cpu::Level;
use serde::Serialize;

use crate::plan::total_memory_bytes;

/// A description of the machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Total memory, where known.
    pub memory_bytes: Option<u64>,
    /// The highest kernel level that it supports.
    pub cpu_level: &'static str,
    /// Operating system and architecture.
    pub system: String,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Self {
            cpu: cpu_name(),
            cores: cores(),
            memory_bytes: total_memory_bytes(),
            cpu_level: Level::detected().name(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// A description of the program.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Build {
    /// Its version.
    pub longreel: &'static str,
    /// The commit it was built from, without uncommitted changes.
    pub commit: &'static str,
}

impl Build {
    /// This program.
    pub const HERE: Self = Self {
        longreel: env!("CARGO_PKG_VERSION"),
        commit: match option_env!("LONGREEL_COMMIT") {
            Some(commit) => commit,
            None => "unknown",
        },
    };
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The processor's name and stepping, from Linux.
fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let Some(model) = field("model name") else {
        return field("CPU part").map_or("unknown".to_owned(), |part| format!("part {part}"));
    };
    match (field("cpu family"), field("model\t")) {
        (Some(family), Some(number)) => format!("{model} (family {family}, model {number})"),
        _ => model,
    }
}
