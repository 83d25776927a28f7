//! Model names: a path is used as it is, `org/name[@revision]` is looked up in the
//! Hugging Face cache or downloaded into it from the hub.
//!
//! The cache is shared with Python's `huggingface_hub`, whose layout, locks and
//! environment variables are used. An interrupted download is resumed where it
//! stopped, in the same call or the next. hf-hub, the official crate, restarts
//! such a file from the beginning, so the little HTTP needed is in `hub/client.rs`.

mod cache;
mod client;
mod files;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

pub use cache::{CachedModel, list_cached};
pub use files::wanted;

use longreel_models::file_name::FileName;

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
};
use cache::RepoCache;
use client::{Client, Metadata};

/// Settings of the hub and its cache.
#[derive(Clone)]
pub struct Settings {
    /// Address of the hub, without a final slash.
    pub endpoint: String,
    /// The hub cache; unknown where neither `HF_HOME` nor `HOME` is set.
    pub cache_dir: Option<PathBuf>,
    /// Access token, sent to the hub only.
    pub token: Option<String>,
    /// Certificates (PEM) to trust instead of Mozilla's, for networks with their own authority.
    pub certificates: Option<PathBuf>,
    /// Whether the network must not be used.
    pub offline: bool,
    /// Consecutive failed attempts without a byte received before a download is given up.
    pub attempts_max: u32,
    /// Pause before another attempt.
    pub retry_wait: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            endpoint,
            cache_dir,
            token,
            offline,
            ..
        } = self;
        f.debug_struct("Settings")
            .field("endpoint", endpoint)
            .field("cache_dir", cache_dir)
            .field("token", &token.as_ref().map(|_| "set"))
            .field("offline", offline)
            .finish_non_exhaustive()
    }
}

/// The user's cache directory, by the environment variables in `var`; unknown where
/// neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn user_cache(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |key: &str| var(key).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
    cache.or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
}

impl Settings {
    /// Settings from the environment: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`,
    /// `HF_HUB_OFFLINE`, and `REQUESTS_CA_BUNDLE` or `SSL_CERT_FILE`; `ureq` itself reads `HTTPS_PROXY` and `NO_PROXY`.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(|key| std::env::var_os(key))
    }

    /// Settings from the variables in `var`, by the rules of `huggingface_hub`.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |key: &str| var(key).filter(|value| !value.is_empty());
        let text = |key: &str| match set(key).map(OsString::into_string) {
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(Error::new(Kind::Usage, format!("{key} is not valid UTF-8"))),
            None => Ok(None),
        };
        let home = set("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| user_cache(&var).map(|cache| cache.join("huggingface")));
        let token_file = set("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .or_else(|| home.as_ref().map(|home| home.join("token")));
        let token = text("HF_TOKEN")?.or_else(|| std::fs::read_to_string(token_file?).ok());
        Ok(Self {
            endpoint: endpoint(text("HF_ENDPOINT")?)?,
            cache_dir: set("HF_HUB_CACHE")
                .map(PathBuf::from)
                .or_else(|| home.map(|home| home.join("hub"))),
            token: token
                .map(|token| checked_token(token.trim()))
                .transpose()?
                .filter(|token| !token.is_empty()),
            certificates: set("REQUESTS_CA_BUNDLE")
                .or_else(|| set("SSL_CERT_FILE"))
                .map(PathBuf::from),
            offline: text("HF_HUB_OFFLINE")?.is_some_and(|value| is_true(&value)),
            attempts_max: 5,
            retry_wait: Duration::from_secs(1),
        })
    }

    fn cache_dir(&self) -> Result<&Path> {
        let missing = || {
            Error::new(
                Kind::Usage,
                "the model cache has no directory: set HF_HOME or HF_HUB_CACHE",
            )
        };
        self.cache_dir.as_deref().ok_or_else(missing)
    }
}

fn endpoint(value: Option<String>) -> Result<String> {
    let value = value.unwrap_or_else(|| "https://huggingface.co".to_owned());
    if value.starts_with("https://") || value.starts_with("http://") {
        return Ok(value.trim_end_matches('/').to_owned());
    }
    Err(Error::new(
        Kind::Usage,
        format!(
            "HF_ENDPOINT is {value:?}, expected an address that starts with https:// or http://"
        ),
    ))
}

fn checked_token(token: &str) -> Result<String> {
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token.to_owned());
    }
    Err(Error::new(
        Kind::Usage,
        "HF_TOKEN has characters that no token has, such as spaces",
    ))
}

/// The values that `huggingface_hub` treats as true.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}

/// `org/name[@revision]`, with parts that are safe in paths and URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Repo {
    /// `org/name`.
    id: String,
    /// Branch, tag or commit.
    revision: String,
}

impl Repo {
    /// `None` where `name` does not have the form of a hub name.
    fn parse(name: &str) -> Option<Self> {
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        let (org, model) = id.split_once('/')?;
        let plain = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            part.len() <= 96
                && part.bytes().all(allowed)
                && !part.starts_with(['.', '-'])
                && !part.is_empty()
                && !part.contains("..")
        };
        let good =
            plain(org) && plain(model) && !id.contains("--") && revision.split('/').all(plain);
        good.then(|| Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// The commit, where the revision is a commit hash.
    fn commit(&self) -> Option<&str> {
        is_commit(&self.revision).then_some(self.revision.as_str())
    }
}

/// Whether it is a full commit hash, which never changes its meaning.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40
        && revision
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Callback of a download: the file, then bytes done and total bytes of all files of the model.
pub type DownloadProgress<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// The directory (or file) for a model name.
///
/// A path that exists is returned as it is. A hub name is looked up in the
/// cache and downloaded where something is missing; an unreachable hub
/// does not matter when the cached snapshot is complete.
///
/// # Errors
/// `NotFound` for a name that is neither, `Network` when the hub fails, `Interrupted` on request.
pub fn resolve(
    name: impl AsRef<Path>,
    settings: &Settings,
    progress: DownloadProgress<'_>,
    cancel: &Cancel,
) -> Result<PathBuf> {
    let path = name.as_ref();
    let name = path.shown();
    if path.try_exists().doing(|| format!("look for {name}"))? {
        return Ok(path.to_owned());
    }
    let Some(repo) = path.to_str().and_then(Repo::parse) else {
        return Err(Error::new(
            Kind::NotFound,
            format!("no such file or directory: {name} (and a model on the hub is named org/name)"),
        ));
    };
    let cache = RepoCache::new(settings.cache_dir()?, &repo.id);
    if settings.offline {
        return cache
            .whole_snapshot(&repo.revision)
            .ok_or_else(|| not_cached(&repo, settings));
    }
    if let Some(dir) = repo
        .commit()
        .and_then(|commit| cache.recorded_snapshot(commit))
    {
        return Ok(dir);
    }
    fetch(&repo, &cache, settings, progress, cancel).doing(|| {
        format!(
            "{name} is not a path here; fetch it from {}",
            settings.endpoint
        )
    })
}

fn not_cached(repo: &Repo, settings: &Settings) -> Error {
    let cache = settings
        .cache_dir
        .as_deref()
        .unwrap_or(Path::new(""))
        .shown();
    Error::new(
        Kind::NotFound,
        format!(
            "HF_HUB_OFFLINE is set, and {}@{} is neither a path here nor whole in the cache {cache}: unset it, or fetch the model where there is a network (longreel models pull {})",
            repo.id, repo.revision, repo.id
        ),
    )
}

fn fetch(
    repo: &Repo,
    cache: &RepoCache,
    settings: &Settings,
    progress: DownloadProgress<'_>,
    cancel: &Cancel,
) -> Result<PathBuf> {
    let client = Client::new(settings, repo)?;
    let listing = match client.listing(cancel) {
        Err(error) if client::is_unreachable(&error) => {
            return cache.whole_snapshot(&repo.revision).ok_or(error);
        }
        listing => listing?,
    };
    if cache.recorded_snapshot(&listing.commit).is_none() {
        let names = wanted(&listing.files);
        if !names.iter().any(|name| files::is_weights(name)) {
            return Err(Error::new(
                Kind::BadInput,
                "it has no *.safetensors and no *.bin file, expected weights in one of these formats (LWM's own JAX files are read by longreel import)",
            ));
        }
        fetch_files(&names, &listing.commit, cache, &client, progress, cancel)?;
        cache.record(&listing.commit, &names)?;
    }
    cache.set_reference(&repo.revision, &listing.commit)?;
    Ok(cache.snapshot(&listing.commit))
}

/// Downloads every file into the snapshot. Sizes are requested first, so that progress has a total.
fn fetch_files(
    names: &[String],
    commit: &str,
    cache: &RepoCache,
    client: &Client<'_>,
    progress: DownloadProgress<'_>,
    cancel: &Cancel,
) -> Result<()> {
    let mut all: Vec<(&str, Metadata)> = Vec::new();
    for name in names {
        all.push((
            name,
            client
                .metadata(commit, name, cancel)
                .doing(|| name.clone())?,
        ));
    }
    let total = all
        .iter()
        .fold(0u64, |sum, (_, meta)| sum.saturating_add(meta.size));
    let mut done = 0u64;
    for (name, meta) in &all {
        let blob = cache.blob(&meta.etag);
        if !cache::has_size(&blob, meta.size) {
            let _lock = cache.lock(&meta.etag, cancel)?;
            // Another process may have downloaded it while this one waited.
            if !cache::has_size(&blob, meta.size) {
                let mut tell =
                    |file_done: u64| progress(name, done.saturating_add(file_done), total);
                client
                    .download(meta, &blob, &mut tell, cancel)
                    .doing(|| (*name).to_owned())?;
            }
        }
        done = done.saturating_add(meta.size);
        progress(name, done, total);
        cache.link(commit, name, &meta.etag)?;
    }
    Ok(())
}
