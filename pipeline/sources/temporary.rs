//! Output that appears under its name only when it is whole.

use std::{io::Write, os::unix::fs::PermissionsExt, path::Path};

use crate::error::{Context, Error, Kind, Result};

/// A new file beside `path`, to be persisted as `path`; removed when dropped.
///
/// # Errors
/// `Usage` when `path` is a directory, `Io` or `NotFound` when its directory cannot be written.
pub fn temporary_beside(path: &Path, suffix: &str) -> Result<tempfile::NamedTempFile> {
    if path.is_dir() {
        return Err(Error::new(
            Kind::Usage,
            "is a directory, expected the name of a file",
        ));
    }
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // The usual mode of a new file; the process's mask takes its bits away.
    let mode = std::fs::Permissions::from_mode(0o666);
    let mut builder = tempfile::Builder::new();
    builder
        .prefix(".longreel-")
        .suffix(suffix)
        .permissions(mode);
    Ok(builder.tempfile_in(directory)?)
}

/// Gives `file` the name `path`, replacing what had it.
pub fn persist(file: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    let kept = file.persist(path).map_err(|e| Error::from(e.error));
    kept.map(drop).doing(|| format!("write {}", path.display()))
}

/// Writes `bytes` beside `path` and gives them its name.
///
/// # Errors
/// `Io` where that fails.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temporary_beside(path, "")?;
    file.write_all(bytes)?;
    persist(file, path)
}
