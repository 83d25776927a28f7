//! Files of a model folder, which may be absent, and what stands in their place where a copy of the folder is not
//! whole: links to nothing, and the pointers of Git LFS.

use std::{io, path::Path};

use crate::{
    error::{Context, Error, Kind, Result},
    file_name::FileName,
};

/// How pointers begin: those of Git LFS, under its first name and its present one, and those of Xet.
const POINTERS: [(&[u8], &str); 3] = [
    (b"version https://git-lfs.github.com/spec/", "Git LFS"),
    (b"version https://hawser.github.com/spec/", "Git LFS"),
    (b"# xet version ", "Xet"),
];

/// The bytes of the file at `path`, `None` where nothing is called so.
///
/// # Errors
/// `NotFound` for a link to nothing, `BadInput` for a pointer and for more than `bytes_max`.
pub fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
    let doing = || format!("read {}", path.shown());
    let Some(len) = size(path).doing(doing)? else {
        return Ok(None);
    };
    if len > bytes_max {
        let message = format!("the file has {len} bytes, expected at most {bytes_max}");
        return Err(Error::new(Kind::BadInput, message).doing(doing()));
    }
    let bytes = std::fs::read(path).doing(doing)?;
    check_content(&bytes).doing(doing)?;
    Ok(Some(bytes))
}

/// [`read`] of a file of text.
///
/// # Errors
/// As there; `BadInput` for what is not UTF-8.
pub fn text(path: &Path, bytes_max: u64) -> Result<Option<String>> {
    let Some(bytes) = read(path, bytes_max)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|e| {
        let doing = format!("read {}", path.shown());
        Error::with_source(Kind::BadInput, "it is not UTF-8 text", e).doing(doing)
    })
}

/// Refuses a link whose target is gone: the cache of the hub has such where a download was stopped or blobs were deleted.
///
/// # Errors
/// `NotFound`, naming the target and how to fetch it.
pub fn check_link(path: &Path) -> Result<()> {
    let Ok(target) = std::fs::read_link(path) else {
        return Ok(());
    };
    match path.try_exists() {
        Ok(false) => Err(Error::new(
            Kind::NotFound,
            format!(
                "it is a link to {}, which is not there: the copy of the model is not whole{}",
                target.shown(),
                how_to_fetch(path)
            ),
        )),
        _ => Ok(()),
    }
}

/// Refuses a pointer that Git keeps in the place of a large file.
///
/// # Errors
/// `BadInput`, saying what the pointer stands for and how to fetch it.
pub fn check_content(bytes: &[u8]) -> Result<()> {
    let found = POINTERS.iter().find(|(start, _)| bytes.starts_with(start));
    let Some((_, name)) = found else {
        return Ok(());
    };
    let of = match pointed_size(bytes) {
        Some(size) => format!(" to {size} bytes"),
        None => String::new(),
    };
    let message = format!(
        "it is a {name} pointer{of}, not the file itself: run `git lfs pull` in the model's folder, or download the file"
    );
    Err(Error::new(Kind::BadInput, message))
}

/// Where a file of the model belongs that is not there: ` (longreel models pull ORG/NAME fetches it)` in the hub's cache.
pub fn how_to_fetch(path: &Path) -> String {
    let in_cache = |part: std::path::Component<'_>| {
        let name = part.as_os_str().to_str()?.strip_prefix("models--")?;
        Some(name.replace("--", "/"))
    };
    match path.components().find_map(in_cache) {
        Some(name) => format!(" (longreel models pull {name} fetches what is missing)"),
        None => String::new(),
    }
}

/// The size of the file that is called so.
fn size(path: &Path) -> Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            check_link(path)?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The line `size N` of a pointer.
fn pointed_size(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes.get(..bytes.len().min(1024))?).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("size "))?;
    line.trim().parse().ok()
}
