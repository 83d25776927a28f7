//! The files that hold a model's weights: which they are, whether all of them are there, and their bytes, mapped.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use longreel_kernels::mapping::MappedBytes;

use crate::{
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    folder_file,
};

/// Maximum bytes of an index.
const INDEX_BYTES_MAX: u64 = 256 << 20;

/// Weights of an adapter, which is no part of the model that it lies beside.
const ADAPTER: &str = "adapter_model.safetensors";

/// Names shown of files that are missing.
const SHOWN_MAX: usize = 5;

/// The safetensors files that make up the model in `dir`, sorted: those that
/// `model.safetensors.index.json` names, else `model.safetensors`, else all but an adapter's.
/// Other files are ignored: snapshots often hold the same weights twice, under other file names.
///
/// # Errors
/// `NotFound`, naming them, where some are missing.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    if let Some(files) = indexed(dir, "model.safetensors.index.json")? {
        return Ok(files);
    }
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    folder_file::check_link(&single).doing(|| single.shown().to_string())?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let is_adapter = path.file_name().is_some_and(|name| name == ADAPTER);
        if path.extension().is_some_and(|e| e == "safetensors") && !is_adapter {
            folder_file::check_link(&path).doing(|| path.shown().to_string())?;
            files.push(path);
        }
    }
    files.sort();
    check_shards(dir, &files)?;
    Ok(files)
}

/// The files that the index `name` in `dir` names, sorted; they must be in the same directory. `None` without an index.
///
/// # Errors
/// `NotFound`, naming them, where some are missing; `BadInput` for an index that is none.
pub fn indexed(dir: &Path, name: &str) -> Result<Option<Vec<PathBuf>>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = dir.join(name);
    let doing = || format!("read {}", path.shown());
    let Some(text) = folder_file::text(&path, INDEX_BYTES_MAX)? else {
        return Ok(None);
    };
    let index: Index = serde_json::from_str(&text)
        .map_err(|e| Error::new(Kind::BadInput, e.to_string()))
        .doing(doing)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    let beside = |name: &String| Path::new(name).file_name() == Some(name.as_ref());
    if let Some(name) = names.iter().find(|n| !beside(n)) {
        let message = format!("it names {name:?}, expected files beside it");
        return Err(Error::new(Kind::BadInput, message).doing(doing()));
    }
    let files: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    check_all_there(&files).doing(doing)?;
    Ok(Some(files))
}

/// The bytes of a regular file, mapped.
///
/// # Errors
/// `BadInput` for a directory, and for what stands in the place of a file that was not fetched.
pub fn map(path: &Path) -> Result<MappedBytes> {
    if path.is_dir() {
        let message = "it is a directory, expected a file";
        return Err(Error::new(Kind::BadInput, message));
    }
    folder_file::check_link(path)?;
    let bytes = MappedBytes::open(path)?;
    folder_file::check_content(bytes.as_bytes())?;
    Ok(bytes)
}

/// Refuses shards `NAME-00001-of-00003.safetensors` without those that they count.
fn check_shards(dir: &Path, files: &[PathBuf]) -> Result<()> {
    let counted = files.iter().find_map(|file| {
        let stem = file.file_stem()?.to_str()?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, _) = rest.rsplit_once('-')?;
        let is_number = count.len() == 5 && count.bytes().all(|b| b.is_ascii_digit());
        is_number.then_some((name, count))
    });
    let Some((name, count)) = counted else {
        return Ok(());
    };
    let numbers = 1..=count.parse().unwrap_or(0);
    let all = numbers.map(|n: u32| dir.join(format!("{name}-{n:05}-of-{count}.safetensors")));
    check_all_there(&all.collect::<Vec<_>>())
}

/// Refuses a model of which some of `files` are missing.
fn check_all_there(files: &[PathBuf]) -> Result<()> {
    let missing = files.iter().filter(|file| !file.is_file());
    let missing: Vec<&PathBuf> = missing.collect();
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let names = missing.iter().filter_map(|file| file.file_name());
    let names = names.map(|name| Path::new(name).shown().to_string());
    let shown: Vec<String> = names.take(SHOWN_MAX).collect();
    let more = match missing.len().saturating_sub(SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "no such file: {}{more}, {} of the model's {} files of weights{}",
        shown.join(", "),
        missing.len(),
        files.len(),
        folder_file::how_to_fetch(first)
    );
    Err(Error::new(Kind::NotFound, message))
}
