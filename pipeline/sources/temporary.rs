//! Output files that appear under their name only when complete.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use longreel_models::file_name::FileName;

use crate::error::{Context, Error, Kind, Result};

/// The file that `path` refers to: for a symbolic link, its target.
///
/// # Errors
/// `Usage` when `path` is a directory, a device or a pipe, which must not be replaced by a file.
pub fn replaceable(path: &Path) -> Result<PathBuf> {
    let Ok(metadata) = path.metadata() else {
        return Ok(path.to_owned());
    };
    let what = match (metadata.is_file(), metadata.is_dir()) {
        (true, _) if path.is_symlink() => return Ok(path.canonicalize()?),
        (true, _) => return Ok(path.to_owned()),
        (_, true) => "is a directory",
        _ => "is a device or a pipe",
    };
    let message = format!("{what}, expected the name of a file");
    Err(Error::new(Kind::Usage, message))
}

/// A new file in the directory of `path`, to be persisted as `path`; removed when dropped.
///
/// # Errors
/// As [`replaceable`]; `Io` or `NotFound` when its directory cannot be written.
pub fn temporary_beside(path: &Path, suffix: &str) -> Result<tempfile::NamedTempFile> {
    let path = replaceable(path)?;
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // The usual mode of a new file, which the umask restricts; temporary files default to 0600.
    let mode = std::fs::Permissions::from_mode(0o666);
    let mut builder = tempfile::Builder::new();
    builder
        .prefix(".longreel-")
        .suffix(suffix)
        .permissions(mode);
    Ok(builder.tempfile_in(directory)?)
}

/// Renames `file` to `path`, replacing an existing file.
///
/// # Errors
/// As [`replaceable`]; `Io` where that fails.
pub fn persist(file: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    let doing = || format!("write {}", path.shown());
    let kept = file.persist(replaceable(path).doing(doing)?);
    kept.map(drop)
        .map_err(|e| Error::from(e.error))
        .doing(doing)
}

/// Writes `bytes` to a temporary file and renames it to `path`.
///
/// # Errors
/// `Io` where that fails.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temporary_beside(path, "")?;
    file.write_all(bytes)?;
    persist(file, path)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::write_whole;
    use crate::error::Kind;

    #[test]
    fn writing_to_a_link_replaces_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_whole(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }

    #[test]
    fn devices_and_directories_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (link, inside) = (dir.path().join("link"), dir.path().to_owned());
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        for (path, what) in [
            (Path::new("/dev/null"), "is a device or a pipe"),
            (&link, "is a device or a pipe"),
            (&inside, "is a directory"),
        ] {
            let error = write_whole(path, b"").unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().starts_with(what), "{error}");
        }
        assert!(!Path::new("/dev/null").is_file());
    }
}
