//! The cache layout of Python's `huggingface_hub`: `blobs/ETAG` holds content,
//! `snapshots/COMMIT/FILE` links to it, `refs/REVISION` names a commit.
//!
//! One folder is added, which Python ignores: `.longreel/COMMIT` lists the files
//! of a completely downloaded snapshot, so that a commit needs no network.

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use longreel_models::file_name::{FileName, as_text};
use serde::Serialize;

use super::{Settings, files};
use crate::{
    cancel::Cancel,
    error::{Context, Result},
};

/// The cache of one repository.
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache_dir: &Path, id: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self {
            root: cache_dir.join(&folder),
            locks: cache_dir.join(".locks").join(folder),
        }
    }

    /// The content named `etag`.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    fn commit_of(&self, revision: &str) -> Option<String> {
        if super::is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| super::is_commit(commit))
    }

    /// The snapshot of `commit`, if it was downloaded completely and is still complete.
    pub(super) fn recorded_snapshot(&self, commit: &str) -> Option<PathBuf> {
        let names = fs::read_to_string(self.root.join(".longreel").join(commit)).ok()?;
        let dir = self.snapshot(commit);
        names
            .lines()
            .all(|name| dir.join(name).is_file())
            .then_some(dir)
    }

    /// The snapshot of `revision`, if it is recorded as complete or, downloaded by
    /// another program, has a configuration and all of its weights.
    pub(super) fn whole_snapshot(&self, revision: &str) -> Option<PathBuf> {
        let commit = self.commit_of(revision)?;
        self.recorded_snapshot(&commit)
            .or_else(|| Some(self.snapshot(&commit)).filter(|dir| looks_whole(dir)))
    }

    /// Records that the snapshot consists of `names`.
    pub(super) fn record(&self, commit: &str, names: &[String]) -> Result<()> {
        write(&self.root.join(".longreel").join(commit), &names.join("\n"))
    }

    /// Records the commit that `revision` refers to.
    pub(super) fn set_reference(&self, revision: &str, commit: &str) -> Result<()> {
        if super::is_commit(revision) {
            return Ok(());
        }
        write(&self.root.join("refs").join(revision), commit)
    }

    /// Links `name` of the snapshot to the blob `etag`, by a relative link.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let link = self.snapshot(commit).join(name);
        let doing = || format!("link {}", link.shown());
        let target = Path::new(&"../".repeat(2 + name.matches('/').count()))
            .join("blobs")
            .join(etag);
        let is_made = || fs::read_link(&link).is_ok_and(|found| found == target);
        if is_made() {
            return Ok(());
        }
        fs::create_dir_all(link.parent().unwrap_or(&self.root)).doing(doing)?;
        match fs::remove_file(&link) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).doing(doing),
            _ => {}
        }
        match std::os::unix::fs::symlink(&target, &link) {
            // Another process was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && is_made() => Ok(()),
            made => made.doing(doing),
        }
    }

    /// Waits until no other process downloads the blob `etag`, and locks it.
    pub(super) fn lock(&self, etag: &str, cancel: &Cancel) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        let doing = || format!("lock {}", path.shown());
        fs::create_dir_all(&self.locks).doing(doing)?;
        let file = File::create(&path).doing(doing)?;
        loop {
            cancel.check()?;
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(100)),
                Err(TryLockError::Error(error)) => return Err(error).doing(doing),
            }
        }
    }
}

/// Whether `path` is a file of `size` bytes.
pub(super) fn has_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == size)
}

/// Writes a small file atomically, by renaming.
fn write(path: &Path, text: &str) -> Result<()> {
    let doing = || format!("write {}", path.shown());
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).doing(doing)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).doing(doing)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).doing(doing)?;
    file.persist(path).map_err(|e| e.error).doing(doing)?;
    Ok(())
}

/// Whether there is a configuration, and every shard of the index or, without an index, any weights.
fn looks_whole(dir: &Path) -> bool {
    let names: Vec<String> = entries(dir)
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    let has = |name: &str| dir.join(name).is_file();
    let mut indices = names
        .iter()
        .filter(|name| {
            name.ends_with(".safetensors.index.json") || name.ends_with(".bin.index.json")
        })
        .peekable();
    let weights = match indices.peek() {
        Some(_) => indices.any(|index| {
            shards(&dir.join(index)).is_some_and(|shards| shards.iter().all(|shard| has(shard)))
        }),
        None => names
            .iter()
            .any(|name| files::is_weights(name) && has(name)),
    };
    has("config.json") && weights
}

/// The files that an index lists.
fn shards(index: &Path) -> Option<Vec<String>> {
    let index: serde_json::Value = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
    index
        .get("weight_map")?
        .as_object()?
        .values()
        .map(|file| file.as_str().map(str::to_owned))
        .collect()
}

/// Paths in `dir`; empty where it cannot be read.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachedModel {
    /// `org/name`.
    pub name: String,
    /// The commit of this snapshot.
    pub commit: String,
    /// Branches and tags that refer to this commit.
    pub revisions: Vec<String>,
    /// The model directory.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether no file is known to be missing.
    pub whole: bool,
}

/// Every model snapshot in the cache, by name and commit.
pub fn list_cached(settings: &Settings) -> Result<Vec<CachedModel>> {
    let cache_dir = settings.cache_dir()?;
    let mut models = Vec::new();
    for root in entries(cache_dir) {
        let folder = root
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if let Some(name) = folder.strip_prefix("models--") {
            models.extend(snapshots(cache_dir, &name.replacen("--", "/", 1)));
        }
    }
    models.sort_by(|a, b| (&a.name, &a.commit).cmp(&(&b.name, &b.commit)));
    Ok(models)
}

fn snapshots(cache_dir: &Path, name: &str) -> Vec<CachedModel> {
    let cache = RepoCache::new(cache_dir, name);
    let references = references(&cache.root.join("refs"));
    let commits = entries(&cache.root.join("snapshots"))
        .filter_map(|dir| Some(dir.file_name()?.to_str()?.to_owned()));
    let model = |commit: String| {
        let path = cache.snapshot(&commit);
        let mut revisions: Vec<String> = references
            .iter()
            .filter(|(_, c)| *c == commit)
            .map(|(r, _)| r.clone())
            .collect();
        revisions.sort();
        let bytes = entries(&path)
            .filter_map(|file| fs::metadata(file).ok())
            .filter(|m| m.is_file())
            .map(|m| m.len())
            .sum();
        CachedModel {
            name: name.to_owned(),
            revisions,
            path,
            bytes,
            whole: cache.whole_snapshot(&commit).is_some(),
            commit,
        }
    };
    commits
        .filter(|commit| super::is_commit(commit))
        .map(model)
        .collect()
}

/// Revision and commit of every reference, `refs/pr/1` included.
fn references(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(next) = waiting.pop() {
        for path in entries(&next) {
            if path.is_dir() {
                waiting.push(path);
            } else if let (Ok(name), Ok(commit)) =
                (path.strip_prefix(dir), fs::read_to_string(&path))
            {
                found.push((name.shown().to_string(), commit.trim().to_owned()));
            }
        }
    }
    found
}
