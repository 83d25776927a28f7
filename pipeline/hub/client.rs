//! The three requests to the hub: the files of a revision, the metadata of a
//! file (HEAD), and its bytes (GET, with Range to resume).

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use longreel_models::file_name::FileName;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::{
    Agent, Body,
    http::{HeaderMap, Method, Response, StatusCode, Uri},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::{Repo, Settings};
use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
};

/// Maximum bytes of a listing; the largest repositories need about a tenth.
const LISTING_BYTES_MAX: u64 = 64 << 20;

/// Maximum redirects of one request.
const REDIRECTS_MAX: usize = 5;

/// Bytes read at a time; cancellation is checked between reads.
const CHUNK_BYTES: usize = 1 << 18;

/// A connection without data for this long counts as cut.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// A client for one repository of the hub.
pub(super) struct Client<'a> {
    agent: Agent,
    settings: &'a Settings,
    repo: &'a Repo,
}

/// The files of a revision.
pub(super) struct Listing {
    /// The commit that the revision refers to.
    pub commit: String,
    /// Paths of its files.
    pub files: Vec<String>,
}

/// A file's metadata.
pub(super) struct Metadata {
    /// Identifies the content; for large files its SHA-256.
    pub etag: String,
    /// Bytes.
    pub size: u64,
    /// Its URL on the hub: the target of its redirect is valid for an hour only.
    url: String,
}

/// The answer to `/api/models/ID/revision/REV`, the fields that are used.
#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The error of one attempt at a download.
enum Attempt {
    /// Another attempt may help.
    Again(Error),
    /// Another attempt will not help.
    Never(Error),
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a Settings, repo: &'a Repo) -> Result<Self> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("longreel/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(SILENCE_MAX))
            .timeout_connect(Some(SILENCE_MAX))
            .timeout_per_read(Some(SILENCE_MAX));
        if is_loopback(&settings.endpoint) {
            config = config.proxy(None);
        }
        if let Some(path) = &settings.certificates {
            let roots = certificates(path)
                .doing(|| format!("read the certificates in {}", path.shown()))?;
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self {
            agent: config.build().into(),
            settings,
            repo,
        })
    }

    /// Commit and files of the revision.
    pub(super) fn listing(&self, cancel: &Cancel) -> Result<Listing> {
        let Repo { id, revision } = self.repo;
        let url = format!(
            "{}/api/models/{id}/revision/{}",
            self.settings.endpoint,
            revision.replace('/', "%2F")
        );
        let (response, _) = self.patiently(cancel, || self.send(Method::GET, &url, None))?;
        let body = response
            .into_body()
            .into_with_config()
            .limit(LISTING_BYTES_MAX)
            .read_to_vec()
            .map_err(unreachable)?;
        let info: ModelInfo = serde_json::from_slice(&body).map_err(|e| {
            network(format!(
                "the hub's description of the model cannot be read: {e}"
            ))
        })?;
        if !super::is_commit(&info.sha) {
            return Err(network(format!(
                "the hub names the commit {:?}, expected 40 hexadecimal digits",
                info.sha
            )));
        }
        let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        match files.iter().find(|name| !is_safe_path(name)) {
            Some(name) => Err(network(format!(
                "the hub lists a file named {name:?}, which is not a relative path"
            ))),
            None => Ok(Listing {
                commit: info.sha,
                files,
            }),
        }
    }

    /// ETag, size and URL of a file's content.
    pub(super) fn metadata(&self, commit: &str, name: &str, cancel: &Cancel) -> Result<Metadata> {
        let url = format!(
            "{}/{}/resolve/{commit}/{}",
            self.settings.endpoint,
            self.repo.id,
            escape(name)
        );
        let (response, chain) = self.patiently(cancel, || self.send(Method::HEAD, &url, None))?;
        let first = |key: &str| chain.iter().find_map(|headers| text(headers, key));
        let etag = first("x-linked-etag")
            .or_else(|| text(response.headers(), "etag"))
            .map(plain_etag)
            .unwrap_or_default();
        if !is_safe_etag(&etag) {
            return Err(network(format!(
                "the hub gives it the ETag {etag:?}, expected a hash"
            )));
        }
        let size = first("x-linked-size")
            .or_else(|| text(response.headers(), "content-length"))
            .and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| network("the hub does not state its size".into()))?;
        Ok(Metadata { etag, size, url })
    }

    /// Downloads a file into `blob`, resuming `blob.incomplete`; `tell` receives the bytes so far.
    pub(super) fn download(
        &self,
        meta: &Metadata,
        blob: &Path,
        tell: &mut dyn FnMut(u64),
        cancel: &Cancel,
    ) -> Result<()> {
        let part = incomplete(blob);
        let doing = || format!("write {}", part.shown());
        std::fs::create_dir_all(blob.parent().unwrap_or(Path::new("."))).doing(doing)?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&part)
            .doing(doing)?;
        let mut failures = 0;
        loop {
            let before = file.metadata().doing(doing)?.len();
            match self.attempt(meta, &mut file, tell, cancel) {
                Ok(()) => break,
                Err(Attempt::Never(error)) => return Err(error),
                Err(Attempt::Again(error)) => {
                    let progressed = file.metadata().doing(doing)?.len() > before;
                    failures = if progressed { 1 } else { failures + 1 };
                    if failures >= self.settings.attempts_max {
                        return Err(error);
                    }
                    self.pause(cancel)?;
                }
            }
        }
        if let Err(error) = check_content(meta, &mut file, cancel) {
            if error.kind() != Kind::Interrupted {
                std::fs::remove_file(&part).doing(doing)?;
            }
            return Err(error);
        }
        file.sync_all().doing(doing)?;
        std::fs::rename(&part, blob).doing(|| format!("rename {}", part.shown()))
    }

    /// One request for the missing bytes.
    fn attempt(
        &self,
        meta: &Metadata,
        file: &mut File,
        tell: &mut dyn FnMut(u64),
        cancel: &Cancel,
    ) -> std::result::Result<(), Attempt> {
        let mut have = file.metadata().map_err(written)?.len();
        if have > meta.size {
            file.set_len(0).map_err(written)?;
            have = 0;
        }
        if have == meta.size {
            return Ok(());
        }
        let (response, _) = self.send(Method::GET, &meta.url, Some(have))?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            file.set_len(0).map_err(written)?;
            return Err(Attempt::Again(network(
                "the hub does not send the rest of the file".into(),
            )));
        }
        if response.status() != StatusCode::PARTIAL_CONTENT
            || range_start(response.headers()) != Some(have)
        {
            // The server ignored the range: the whole file comes, or another part of it.
            file.set_len(0).map_err(written)?;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                return Err(Attempt::Again(network(
                    "the hub sent another part of the file than it was asked for".into(),
                )));
            }
            have = 0;
        }
        let announced = text(response.headers(), "content-length")
            .and_then(|length| length.parse::<u64>().ok());
        if let Some(sum) = announced
            .map(|length| have.saturating_add(length))
            .filter(|&sum| sum != meta.size)
        {
            return Err(Attempt::Never(network(format!(
                "the hub stated {} bytes and sends {sum}",
                meta.size
            ))));
        }
        receive(response.into_body(), meta.size, have, file, tell, cancel)
    }

    /// Repeats a small request until it succeeds, or fails permanently.
    fn patiently<T>(
        &self,
        cancel: &Cancel,
        request: impl Fn() -> std::result::Result<T, Attempt>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            cancel.check()?;
            match request() {
                Ok(value) => return Ok(value),
                Err(Attempt::Never(error)) => return Err(error),
                Err(Attempt::Again(error)) => {
                    failures += 1;
                    // An unreachable hub is given up sooner: the cache may suffice.
                    if failures >= self.settings.attempts_max.min(2) {
                        return Err(error);
                    }
                    self.pause(cancel)?;
                }
            }
        }
    }

    /// Waits before another attempt, unless cancelled.
    fn pause(&self, cancel: &Cancel) -> Result<()> {
        let step = Duration::from_millis(20);
        let mut left = self.settings.retry_wait;
        while !left.is_zero() {
            cancel.check()?;
            std::thread::sleep(left.min(step));
            left = left.saturating_sub(step);
        }
        cancel.check()
    }

    /// Sends a request, following redirects → the last response and the
    /// headers of those before it. The token goes to the hub's own address only.
    fn send(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
    ) -> std::result::Result<(Response<Body>, Vec<HeaderMap>), Attempt> {
        let mut url = url.to_owned();
        let mut chain = Vec::new();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send_once(&method, &url, from)?;
            let location =
                text(response.headers(), "location").filter(|_| response.status().is_redirection());
            let Some(location) = location else {
                return self.judged(response).map(|response| (response, chain));
            };
            let next = join(&url, location).ok_or_else(|| {
                Attempt::Never(network(format!("the hub redirects to {location:?}")))
            })?;
            chain.push(response.headers().clone());
            url = next;
            // The hub itself describes content that is stored elsewhere.
            if method == Method::HEAD && response.headers().contains_key("x-linked-size") {
                return Ok((response, chain));
            }
        }
        Err(Attempt::Never(network(format!(
            "the hub redirects more than {REDIRECTS_MAX} times"
        ))))
    }

    fn send_once(
        &self,
        method: &Method,
        url: &str,
        from: Option<u64>,
    ) -> std::result::Result<Response<Body>, Attempt> {
        let mut request = ureq::http::Request::builder()
            .method(method.clone())
            .uri(url)
            .header("accept-encoding", "identity");
        if let Some(token) = self
            .settings
            .token
            .as_ref()
            .filter(|_| origin(url) == origin(&self.settings.endpoint))
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from.filter(|&from| from > 0) {
            request = request.header("range", format!("bytes={from}-"));
        }
        let request = request.body(()).map_err(|e| {
            Attempt::Never(network(format!("the address {url:?} cannot be used: {e}")))
        })?;
        self.agent
            .run(request)
            .map_err(|e| Attempt::Again(unreachable(e)))
    }

    /// The response if it is a success, else how to proceed.
    fn judged(&self, response: Response<Body>) -> std::result::Result<Response<Body>, Attempt> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
            return Err(Attempt::Again(network(format!(
                "the hub answered {status}"
            ))));
        }
        Err(Attempt::Never(self.refusal(
            status,
            text(response.headers(), "x-error-code").unwrap_or_default(),
        )))
    }

    /// The error for a refused request, with advice.
    fn refusal(&self, status: StatusCode, code: &str) -> Error {
        let Repo { id, revision } = self.repo;
        let endpoint = &self.settings.endpoint;
        let has_token = self.settings.token.is_some();
        let (kind, message) = match (status.as_u16(), code, has_token) {
            (_, "GatedRepo", false) => {
                (Kind::Network, format!("{id} is gated: accept its terms at {endpoint}/{id}, then set HF_TOKEN to a token of that account"))
            }
            (_, "GatedRepo", true) => {
                (Kind::Network, format!("{id} is gated and the account of HF_TOKEN has no access yet: ask for it at {endpoint}/{id}"))
            }
            (404, "RevisionNotFound", _) => (Kind::NotFound, format!("{id} has no revision {revision}, expected a branch, a tag or a commit")),
            (404, "EntryNotFound", _) => (Kind::NotFound, "the hub lists this file and does not have it".to_owned()),
            (401, "RepoNotFound", false) | (401, "", false) => (
                Kind::NotFound,
                format!("the hub has no public model {id}: check the name, or set HF_TOKEN if the model is private"),
            ),
            (401, _, true) => (Kind::Network, "the hub does not accept the token in HF_TOKEN: set a valid one, or unset it for public models".to_owned()),
            (403, ..) => (Kind::Network, format!("the token in HF_TOKEN may not read {id}: give it read access to the model")),
            (404, ..) => (Kind::NotFound, format!("the hub has no model {id}: check the name, and HF_TOKEN if the model is private")),
            (_, code, _) => (Kind::Network, format!("the hub answered {status} {code}").trim_end().to_owned()),
        };
        Error::new(kind, message)
    }
}

/// Appends the body to `file`, which holds `have` of `size` bytes.
fn receive(
    body: Body,
    size: u64,
    have: u64,
    file: &mut File,
    tell: &mut dyn FnMut(u64),
    cancel: &Cancel,
) -> std::result::Result<(), Attempt> {
    let mut reader = body.into_reader();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut have = have;
    file.seek(SeekFrom::Start(have)).map_err(written)?;
    while have < size {
        cancel.check().map_err(Attempt::Never)?;
        tell(have);
        let n = match reader.read(&mut chunk) {
            Ok(0) => return Err(Attempt::Again(cut(have, size, None))),
            Ok(n) => n,
            Err(error) => return Err(Attempt::Again(cut(have, size, Some(error)))),
        };
        let bytes = chunk.get(..n).unwrap_or_default();
        file.write_all(bytes).map_err(written)?;
        have = have.saturating_add(n as u64);
    }
    Ok(())
}

/// Size, and SHA-256 where the ETag is one (the hub's large files).
fn check_content(meta: &Metadata, file: &mut File, cancel: &Cancel) -> Result<()> {
    let doing = || "read back what was fetched";
    let size = file.metadata().doing(doing)?.len();
    if size != meta.size {
        return Err(network(format!(
            "{size} bytes came, expected {}",
            meta.size
        )));
    }
    if meta.etag.len() != 64 {
        return Ok(());
    }
    file.seek(SeekFrom::Start(0)).doing(doing)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        cancel.check()?;
        match file.read(&mut chunk).doing(doing)? {
            0 => break,
            n => hash.update(chunk.get(..n).unwrap_or_default()),
        }
    }
    let found: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if found == meta.etag {
        return Ok(());
    }
    Err(network(format!(
        "what came has SHA-256 {found}, expected {}: it is discarded, try again",
        meta.etag
    )))
}

fn incomplete(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(".incomplete");
    name.into()
}

fn cut(have: u64, size: u64, error: Option<std::io::Error>) -> Error {
    let message = format!(
        "the connection ended after {have} of {size} bytes; the next run goes on from there"
    );
    match error {
        Some(error) => Error::with_source(Kind::Network, message, error),
        None => network(message),
    }
}

fn written(error: std::io::Error) -> Attempt {
    Attempt::Never(Error::from(error).doing("write into the model cache"))
}

fn network(message: String) -> Error {
    Error::new(Kind::Network, message)
}

/// Message of an error in reaching the hub, as opposed to its answer.
const UNREACHABLE: &str = "the hub cannot be reached (HF_HUB_OFFLINE=1 uses the cache alone)";

fn unreachable(error: ureq::Error) -> Error {
    Error::with_source(Kind::Network, UNREACHABLE, error)
}

/// Whether `error` is one in reaching the hub, as opposed to its answer.
pub(super) fn is_unreachable(error: &Error) -> bool {
    error.message() == UNREACHABLE
}

fn text<'h>(headers: &'h HeaderMap, key: &str) -> Option<&'h str> {
    headers.get(key)?.to_str().ok()
}

/// First byte of a `Content-Range: bytes 100-199/200`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    text(headers, "content-range")?
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

/// Normalizes an ETag: `W/"abc"` and `"abc"` both become `abc`.
fn plain_etag(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// Whether an ETag is safe as a file name.
fn is_safe_etag(etag: &str) -> bool {
    (1..=128).contains(&etag.len())
        && etag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether a file name of the hub is safe as a path below the snapshot.
fn is_safe_path(name: &str) -> bool {
    let safe = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', '\n'])
    };
    name.len() <= 1024 && name.split('/').all(safe)
}

/// Percent-encodes a path, except letters, digits, `-._~` and `/`.
fn escape(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// `scheme://host:port` of an address.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

/// Resolves `location` against the URL `base` (RFC 3986, section 5.2).
fn join(base: &str, location: &str) -> Option<String> {
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{}://{rest}", base.split("://").next()?));
    }
    let origin = origin(base)?;
    if location.starts_with('/') {
        return Some(format!("{origin}{location}"));
    }
    let page = base.strip_prefix(&origin)?.split('?').next()?;
    let (location, query) = match location.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (location, String::new()),
    };
    let mut path: Vec<&str> = page.split('/').collect();
    path.pop();
    for part in location.split('/') {
        match part {
            ".." if path.len() > 1 => drop(path.pop()),
            "." | ".." => {}
            part => path.push(part),
        }
    }
    Some(format!("{origin}{}{query}", path.join("/")))
}

/// The certificates of a PEM file.
fn certificates(path: &Path) -> Result<RootCerts> {
    let pem = std::fs::read(path)?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = items.collect();
    if certificates.is_empty() {
        return Err(Error::new(
            Kind::Usage,
            "no certificate in it, expected some in PEM format",
        ));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Whether the hub is on this machine, and so is not reached through a proxy.
fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint
        .parse::<Uri>()
        .ok()
        .and_then(|uri| uri.host().map(str::to_owned))
        .unwrap_or_default();
    host == "localhost" || host == "[::1]" || host.starts_with("127.")
}
