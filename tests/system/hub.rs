//! Model names through a hub on this machine: what is asked of it, what lies in
//! the cache afterwards, and what a person reads when it does not work.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use longreel::{
    cancel::Cancel,
    error::{Error, Kind, Result},
    hub::{Settings, list_cached, resolve, wanted},
};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";

/// One request as the hub saw it: `GET /path`, and the headers that matter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    line: String,
    range: Option<String>,
    authorization: Option<String>,
}

/// What the hub does, and what it was asked.
#[derive(Default)]
struct State {
    /// Name to ETag and content.
    files: BTreeMap<String, (String, Vec<u8>)>,
    /// Cuts the connection after so many bytes of the weights, once per entry.
    cuts: Vec<usize>,
    /// States the weights longer than they are.
    overstate: bool,
    /// Answers everything with this status and `X-Error-Code`.
    refuse: Option<(u16, &'static str)>,
    /// Accepts only this token.
    token: Option<&'static str>,
    seen: Vec<Seen>,
}

/// A hub with one model, `org/tiny`, on a port of its own.
struct Hub {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

/// 1 MB that no two offsets share.
fn weights() -> Vec<u8> {
    (0..250_000u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

impl Hub {
    fn start() -> Self {
        let mut state = State::default();
        let mut add = |name: &str, etag: &str, content: &[u8]| {
            state
                .files
                .insert(name.to_owned(), (etag.to_owned(), content.to_vec()));
        };
        add("config.json", "c0ffee", b"{}");
        add("tokenizer.json", "70ce41", b"{\"model\": {}}");
        add(WEIGHTS, &sha256(&weights()), &weights());
        add(".gitattributes", "aaaa", b"* text");
        add("README.md", "bbbb", b"# tiny");
        add("pytorch_model.bin", "cccc", b"the same weights");
        let state = Arc::new(Mutex::new(state));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that went away is no failure of the hub.
                let _ = answer(stream, &shared);
            }
        });
        Self { endpoint, state }
    }

    fn with(self, change: impl FnOnce(&mut State)) -> Self {
        change(&mut self.state.lock().unwrap());
        self
    }

    fn settings(&self, cache: &TempDir) -> Settings {
        Settings {
            endpoint: self.endpoint.clone(),
            cache_dir: Some(cache.path().to_owned()),
            token: None,
            certificates: None,
            offline: false,
            attempts_max: 3,
            retry_wait: Duration::ZERO,
        }
    }

    /// Requests since the last call.
    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }
}

/// Reads one request and answers it; the connection ends with it.
fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let line = lines
        .next()
        .unwrap()?
        .trim_end_matches(" HTTP/1.1")
        .to_owned();
    let headers: BTreeMap<String, String> = lines
        .map_while(|line| line.ok().filter(|l| !l.is_empty()))
        .filter_map(|l| {
            l.split_once(": ")
                .map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned()))
        })
        .collect();
    let mut state = state.lock().unwrap();
    let get = |key: &str| headers.get(key).cloned();
    state.seen.push(Seen {
        line: line.clone(),
        range: get("range"),
        authorization: get("authorization"),
    });
    let (head, body) = respond(&mut state, &line, get("range"), get("authorization"));
    stream.write_all(head.as_bytes())?;
    if line.starts_with("GET") {
        stream.write_all(&body)?;
    }
    Ok(())
}

fn reply(status: &str, headers: &str, body: Vec<u8>) -> (String, Vec<u8>) {
    let length = if headers.contains("Content-Length") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    (
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nX-Repo-Commit: {COMMIT}\r\n{length}{headers}\r\n"
        ),
        body,
    )
}

fn respond(
    state: &mut State,
    line: &str,
    range: Option<String>,
    authorization: Option<String>,
) -> (String, Vec<u8>) {
    let (method, path) = line.split_once(' ').unwrap();
    if let Some((status, code)) = state.refuse {
        return reply(
            &format!("{status} No"),
            &format!("X-Error-Code: {code}\r\n"),
            vec![],
        );
    }
    if state
        .token
        .is_some_and(|token| authorization != Some(format!("Bearer {token}")))
    {
        return reply("401 Unauthorized", "X-Error-Code: \r\n", vec![]);
    }
    let path = path.split('?').next().unwrap();
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/") {
        if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return reply(
                "404 Not Found",
                "X-Error-Code: RevisionNotFound\r\n",
                vec![],
            );
        }
        let siblings: Vec<_> = state
            .files
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        return reply(
            "200 OK",
            "",
            serde_json::json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings})
                .to_string()
                .into_bytes(),
        );
    }
    if let Some(name) = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")) {
        let Some((etag, content)) = state.files.get(name).cloned() else {
            return reply("404 Not Found", "X-Error-Code: EntryNotFound\r\n", vec![]);
        };
        if name != WEIGHTS {
            return reply("200 OK", &format!("ETag: W/\"{etag}\"\r\n"), content);
        }
        let size = content.len() + usize::from(state.overstate);
        let linked =
            format!("X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\nETag: \"pointer\"\r\n");
        return reply(
            "302 Found",
            &format!("{linked}Location: ../../../../lfs/weights?signed=yes\r\n"),
            vec![],
        );
    }
    if path == "/lfs/weights" {
        assert_eq!(method, "GET", "an address that was signed for GET");
        return send_weights(state, range);
    }
    reply("404 Not Found", "X-Error-Code: RepoNotFound\r\n", vec![])
}

/// The weights from where `range` says, cut short when it is time to.
fn send_weights(state: &mut State, range: Option<String>) -> (String, Vec<u8>) {
    let content = state.files[WEIGHTS].1.clone();
    let from: usize = range.as_deref().map_or(0, |r| {
        r.strip_prefix("bytes=")
            .unwrap()
            .trim_end_matches('-')
            .parse()
            .unwrap()
    });
    let rest = content[from..].to_vec();
    let headers = format!(
        "Content-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n",
        rest.len(),
        content.len() - 1,
        content.len()
    );
    let sent = if state.cuts.is_empty() {
        rest.len()
    } else {
        state.cuts.remove(0)
    };
    let status = if range.is_some() {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    reply(status, &headers, rest[..sent].to_vec())
}

fn quiet(name: &str, settings: &Settings) -> Result<PathBuf> {
    resolve(name, settings, &mut |_, _, _| {}, &Cancel::new())
}

fn refused(hub: &Hub, name: &str, change: impl FnOnce(&mut Settings)) -> Error {
    let cache = TempDir::new().unwrap();
    let mut settings = hub.settings(&cache);
    change(&mut settings);
    let error = quiet(name, &settings).unwrap_err();
    assert!(
        !cache
            .path()
            .join("models--org--tiny/snapshots")
            .join(COMMIT)
            .join(WEIGHTS)
            .exists()
    );
    error
}

/// The message, with the port that changes from run to run taken out.
fn sentence(hub: &Hub, error: &Error) -> String {
    error.to_string().replace(&hub.endpoint, "HUB")
}

fn incomplete(cache: &TempDir) -> PathBuf {
    cache
        .path()
        .join("models--org--tiny/blobs")
        .join(format!("{}.incomplete", sha256(&weights())))
}

#[test]
fn a_path_that_exists_is_used_as_it_is() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    let path = cache.path().to_str().unwrap();
    assert_eq!(quiet(path, &hub.settings(&cache)).unwrap(), Path::new(path));
    assert_eq!(hub.lines(), Vec::<String>::new());
}

#[test]
fn a_name_that_is_neither_a_path_nor_a_hub_name_is_not_asked_for() {
    let hub = Hub::start();
    for name in [
        "tiny",
        "./org/tiny",
        "a/b/c",
        "org/",
        "org/ti..ny",
        "org/tiny@",
        "org/tiny@../x",
        "org/tiny?x=y",
        "-o/tiny",
    ] {
        let error = refused(&hub, name, |_| {});
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(
            error.to_string(),
            format!("no such file or directory: {name} (and a model on the hub is named org/name)")
        );
    }
    assert_eq!(hub.lines(), Vec::<String>::new());
}

#[test]
fn a_fresh_download_has_the_layout_of_huggingface_hub() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    let mut told = Vec::new();
    let dir = resolve(
        "org/tiny",
        &hub.settings(&cache),
        &mut |file, done, total| told.push((file.to_owned(), done, total)),
        &Cancel::new(),
    )
    .unwrap();
    let root = cache.path().join("models--org--tiny");
    assert_eq!(dir, root.join("snapshots").join(COMMIT));
    assert_eq!(fs::read(dir.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(
        fs::read_link(dir.join(WEIGHTS)).unwrap(),
        Path::new("../../blobs").join(sha256(&weights()))
    );
    assert_eq!(
        fs::read_link(dir.join("config.json")).unwrap(),
        Path::new("../../blobs/c0ffee")
    );
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let mut names: Vec<String> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["config.json", WEIGHTS, "tokenizer.json"],
        "neither README nor the .bin copy"
    );

    let total = 1_000_000 + 2 + 13;
    assert!(
        told.windows(2).all(|pair| pair[0].1 <= pair[1].1),
        "progress goes forward: {told:?}"
    );
    assert!(told.len() > 4 && told.iter().all(|t| t.2 == total));
    assert_eq!(told.last().unwrap(), &(WEIGHTS.to_owned(), total, total));
}

#[test]
fn a_second_call_asks_for_the_commit_and_nothing_else() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    let settings = hub.settings(&cache);
    let dir = quiet("org/tiny", &settings).unwrap();
    hub.lines();
    assert_eq!(quiet("org/tiny", &settings).unwrap(), dir);
    assert_eq!(hub.lines(), ["GET /api/models/org/tiny/revision/main"]);
    assert_eq!(
        quiet(&format!("org/tiny@{COMMIT}"), &settings).unwrap(),
        dir
    );
    assert_eq!(
        hub.lines(),
        Vec::<String>::new(),
        "a commit hash needs no network"
    );
}

#[test]
fn a_file_that_went_missing_is_fetched_again_and_no_other() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    let settings = hub.settings(&cache);
    let name = format!("org/tiny@{COMMIT}");
    let dir = quiet(&name, &settings).unwrap();
    fs::remove_file(cache.path().join("models--org--tiny/blobs/c0ffee")).unwrap();
    hub.lines();
    assert_eq!(quiet(&name, &settings).unwrap(), dir);
    let gets: Vec<String> = hub
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("GET /org"))
        .collect();
    assert_eq!(
        gets,
        [format!("GET /org/tiny/resolve/{COMMIT}/config.json")]
    );
}

#[test]
fn a_branch_with_slashes_is_one_revision() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    quiet("org/tiny@refs/pr/1", &hub.settings(&cache)).unwrap();
    assert_eq!(
        hub.lines()[0],
        "GET /api/models/org/tiny/revision/refs%2Fpr%2F1"
    );
    assert_eq!(
        fs::read_to_string(cache.path().join("models--org--tiny/refs/refs/pr/1")).unwrap(),
        COMMIT
    );
}

#[test]
fn a_connection_cut_in_the_middle_is_resumed_by_range() {
    let (hub, cache) = (
        Hub::start().with(|s| s.cuts = vec![400_000, 100_000]),
        TempDir::new().unwrap(),
    );
    let dir = quiet("org/tiny", &hub.settings(&cache)).unwrap();
    assert_eq!(fs::read(dir.join(WEIGHTS)).unwrap(), weights());
    let ranges: Vec<Option<String>> = hub
        .seen()
        .into_iter()
        .filter(|s| s.line.starts_with("GET /lfs"))
        .map(|s| s.range)
        .collect();
    assert_eq!(
        ranges,
        [
            None,
            Some("bytes=400000-".to_owned()),
            Some("bytes=500000-".to_owned())
        ]
    );
}

#[test]
fn a_download_that_failed_goes_on_in_the_next_call() {
    let (hub, cache) = (
        Hub::start().with(|s| s.cuts = vec![400_000]),
        TempDir::new().unwrap(),
    );
    let settings = Settings {
        attempts_max: 1,
        ..hub.settings(&cache)
    };
    let error = quiet("org/tiny", &settings).unwrap_err();
    assert_eq!(error.kind(), Kind::Network);
    assert!(
        sentence(&hub, &error).starts_with(
            "org/tiny is not a path here; fetch it from HUB: model.safetensors: the connection ended after 400000 of 1000000 bytes; the next run goes on from there"
        ),
        "{error}"
    );
    assert_eq!(fs::read(incomplete(&cache)).unwrap(), weights()[..400_000]);
    hub.seen();

    let mut first = None;
    let dir = resolve(
        "org/tiny",
        &settings,
        &mut |file, done, _| {
            if file == WEIGHTS {
                first.get_or_insert(done);
            }
        },
        &Cancel::new(),
    )
    .unwrap();
    assert_eq!(
        first,
        Some(400_015),
        "progress goes on from the part that is here"
    );
    assert_eq!(fs::read(dir.join(WEIGHTS)).unwrap(), weights());
    let ranges: Vec<Option<String>> = hub
        .seen()
        .into_iter()
        .filter(|s| s.line.starts_with("GET /lfs"))
        .map(|s| s.range)
        .collect();
    assert_eq!(ranges, [Some("bytes=400000-".to_owned())]);
    assert!(!incomplete(&cache).exists());
}

#[test]
fn a_connection_that_is_always_cut_at_once_is_given_up() {
    let hub = Hub::start().with(|s| s.cuts = vec![0; 10]);
    let error = refused(&hub, "org/tiny", |_| {});
    assert!(
        error
            .to_string()
            .contains("the connection ended after 0 of 1000000 bytes"),
        "{error}"
    );
    assert_eq!(
        hub.lines()
            .iter()
            .filter(|line| line.starts_with("GET /lfs"))
            .count(),
        3
    );
}

#[test]
fn a_damaged_part_is_found_by_its_hash_and_fetched_anew() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    fs::create_dir_all(incomplete(&cache).parent().unwrap()).unwrap();
    fs::write(incomplete(&cache), vec![7; 400_000]).unwrap();
    let error = quiet("org/tiny", &hub.settings(&cache)).unwrap_err();
    assert!(
        error.to_string().contains("what came has SHA-256"),
        "{error}"
    );
    assert!(!incomplete(&cache).exists());
    let dir = quiet("org/tiny", &hub.settings(&cache)).unwrap();
    assert_eq!(fs::read(dir.join(WEIGHTS)).unwrap(), weights());
}

#[test]
fn a_size_that_does_not_match_is_an_error() {
    let hub = Hub::start().with(|s| s.overstate = true);
    let error = refused(&hub, "org/tiny", |_| {});
    assert_eq!(
        sentence(&hub, &error),
        "org/tiny is not a path here; fetch it from HUB: model.safetensors: the hub stated 1000001 bytes and sends 1000000"
    );
}

#[test]
fn two_programs_at_once_fetch_a_file_once() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    let settings = hub.settings(&cache);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert_eq!(
                    fs::read(quiet("org/tiny", &settings).unwrap().join(WEIGHTS)).unwrap(),
                    weights()
                )
            });
        }
    });
    assert_eq!(
        hub.lines()
            .iter()
            .filter(|line| line.starts_with("GET /lfs"))
            .count(),
        1
    );
}

#[test]
fn a_request_to_stop_leaves_the_part_for_the_next_run() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    let cancel = Cancel::new();
    let mut stop_in_weights = |file: &str, done: u64, _: u64| {
        if file == WEIGHTS && done > 100 {
            cancel.cancel();
        }
    };
    let error = resolve(
        "org/tiny",
        &hub.settings(&cache),
        &mut stop_in_weights,
        &cancel,
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    let part = fs::read(incomplete(&cache)).unwrap();
    assert_eq!(part, weights()[..part.len()]);
}

#[test]
fn the_token_goes_to_the_hub() {
    let (hub, cache) = (
        Hub::start().with(|s| s.token = Some("hf_good")),
        TempDir::new().unwrap(),
    );
    quiet(
        "org/tiny",
        &Settings {
            token: Some("hf_good".into()),
            ..hub.settings(&cache)
        },
    )
    .unwrap();
    assert!(
        hub.seen()
            .iter()
            .all(|seen| seen.authorization.as_deref() == Some("Bearer hf_good"))
    );
}

#[test]
fn the_token_goes_to_nobody_else() {
    let (store, cache) = (Hub::start(), TempDir::new().unwrap());
    // The same machine under another port: another origin.
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", front.local_addr().unwrap());
    let target = store.endpoint.clone();
    std::thread::spawn(move || {
        for mut stream in front.incoming().flatten() {
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut line)
                .unwrap();
            let path = line.split(' ').nth(1).unwrap();
            let _ = write!(
                stream,
                "HTTP/1.1 307 Moved\r\nConnection: close\r\nContent-Length: 0\r\nLocation: {target}{path}\r\n\r\n"
            );
        }
    });
    let settings = Settings {
        endpoint,
        token: Some("hf_secret".into()),
        ..store.settings(&cache)
    };
    quiet("org/tiny", &settings).unwrap();
    let seen = store.seen();
    assert!(
        seen.len() > 4 && seen.iter().all(|seen| seen.authorization.is_none()),
        "{seen:?}"
    );
    assert!(!format!("{settings:?}").contains("hf_secret"));
}

#[test]
fn refusals_say_what_to_do() {
    let with_token = |settings: &mut Settings| settings.token = Some("hf_bad".into());
    let check = |refuse: (u16, &'static str), token: bool, kind: Kind, expected: &str| {
        let hub = Hub::start().with(|s| s.refuse = Some(refuse));
        let error = refused(&hub, "org/tiny", |settings| {
            if token {
                with_token(settings)
            }
        });
        assert_eq!(
            sentence(&hub, &error),
            format!("org/tiny is not a path here; fetch it from HUB: {expected}")
        );
        assert_eq!(error.kind(), kind, "{expected}");
    };
    check(
        (403, "GatedRepo"),
        false,
        Kind::Network,
        "org/tiny is gated: accept its terms at HUB/org/tiny, then set HF_TOKEN to a token of that account",
    );
    check(
        (403, "GatedRepo"),
        true,
        Kind::Network,
        "org/tiny is gated and the account of HF_TOKEN has no access yet: ask for it at HUB/org/tiny",
    );
    check(
        (401, "RepoNotFound"),
        false,
        Kind::NotFound,
        "the hub has no public model org/tiny: check the name, or set HF_TOKEN if the model is private",
    );
    check(
        (401, ""),
        true,
        Kind::Network,
        "the hub does not accept the token in HF_TOKEN: set a valid one, or unset it for public models",
    );
    check(
        (403, ""),
        true,
        Kind::Network,
        "the token in HF_TOKEN may not read org/tiny: give it read access to the model",
    );
    check(
        (503, ""),
        false,
        Kind::Network,
        "the hub answered 503 Service Unavailable",
    );

    let hub = Hub::start();
    let error = refused(&hub, "org/other", |_| {});
    assert_eq!(
        sentence(&hub, &error),
        "org/other is not a path here; fetch it from HUB: the hub has no model org/other: check the name, and HF_TOKEN if the model is private"
    );
    let error = refused(&hub, "org/tiny@v9", |_| {});
    assert_eq!(
        sentence(&hub, &error),
        "org/tiny@v9 is not a path here; fetch it from HUB: org/tiny has no revision v9, expected a branch, a tag or a commit"
    );
}

#[test]
fn a_repository_without_weights_is_refused() {
    let hub = Hub::start().with(|s| {
        s.files
            .retain(|name, _| name == "config.json" || name == "README.md")
    });
    let error = refused(&hub, "org/tiny", |_| {});
    assert_eq!(error.kind(), Kind::BadInput);
    assert_eq!(
        error.message(),
        "it has no *.safetensors and no *.bin file, expected weights in one of these formats (LWM's own JAX files are read by longreel import)"
    );
}

#[test]
fn names_that_leave_the_snapshot_are_refused() {
    for name in [
        "../../evil.json",
        "/etc/passwd",
        "a//b",
        "tokenizer\\x.json",
    ] {
        let hub = Hub::start().with(|s| {
            s.files.insert(name.to_owned(), ("dddd".into(), vec![]));
        });
        let error = refused(&hub, "org/tiny", |_| {});
        assert!(
            error.to_string().contains("which is not a relative path"),
            "{error}"
        );
    }
    let hub = Hub::start().with(|s| {
        s.files
            .insert("config.json".into(), ("../../../../evil".into(), vec![1]));
    });
    let error = refused(&hub, "org/tiny", |_| {});
    assert!(
        error.to_string().contains(
            r#"config.json: the hub gives it the ETag "../../../../evil", expected a hash"#
        ),
        "{error}"
    );
}

#[test]
fn offline_needs_no_network_when_the_snapshot_is_whole() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    let dir = quiet("org/tiny", &hub.settings(&cache)).unwrap();
    hub.lines();
    let offline = Settings {
        offline: true,
        ..hub.settings(&cache)
    };
    assert_eq!(quiet("org/tiny", &offline).unwrap(), dir);
    assert_eq!(quiet(&format!("org/tiny@{COMMIT}"), &offline).unwrap(), dir);
    // As Python leaves it: without this program's own record.
    fs::remove_dir_all(cache.path().join("models--org--tiny/.longreel")).unwrap();
    assert_eq!(quiet("org/tiny", &offline).unwrap(), dir);
    assert_eq!(hub.lines(), Vec::<String>::new());

    fs::remove_file(dir.join(WEIGHTS)).unwrap();
    assert_eq!(
        quiet("org/tiny", &offline).unwrap_err().kind(),
        Kind::NotFound,
        "not whole any more"
    );
}

#[test]
fn offline_and_not_cached_names_the_variable() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    let error = quiet(
        "org/tiny",
        &Settings {
            offline: true,
            ..hub.settings(&cache)
        },
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "HF_HUB_OFFLINE is set, and org/tiny@main is neither a path here nor whole in the cache {}: unset it, or fetch the model where there is a network (longreel models pull org/tiny)",
            cache.path().display()
        )
    );
    assert_eq!(hub.lines(), Vec::<String>::new());
}

#[test]
fn an_unreachable_hub_does_not_matter_for_a_complete_snapshot() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    let dir = quiet("org/tiny", &hub.settings(&cache)).unwrap();
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let unreachable = Settings {
        endpoint: format!("http://{gone}"),
        ..hub.settings(&cache)
    };
    assert_eq!(quiet("org/tiny", &unreachable).unwrap(), dir);
    let error = quiet("org/other", &unreachable).unwrap_err();
    assert_eq!(error.kind(), Kind::Network);
    assert!(
        error
            .message()
            .starts_with("the hub cannot be reached (HF_HUB_OFFLINE=1 uses the cache alone)"),
        "{error}"
    );
}

#[test]
fn the_cache_lists_its_models() {
    let (hub, cache) = (Hub::start(), TempDir::new().unwrap());
    assert_eq!(list_cached(&hub.settings(&cache)).unwrap(), []);
    let dir = quiet("org/tiny", &hub.settings(&cache)).unwrap();
    let models = list_cached(&hub.settings(&cache)).unwrap();
    assert_eq!(models.len(), 1);
    let model = &models[0];
    assert_eq!(
        (model.name.as_str(), model.commit.as_str(), &model.path),
        ("org/tiny", COMMIT, &dir)
    );
    assert_eq!(
        (model.revisions.as_slice(), model.bytes, model.whole),
        (&["main".to_owned()][..], 1_000_015, true)
    );
    fs::remove_file(dir.join(WEIGHTS)).unwrap();
    assert!(!list_cached(&hub.settings(&cache)).unwrap()[0].whole);
}

#[test]
fn only_the_files_of_a_model_directory_are_wanted() {
    let check = |files: &[&str], expected: &[&str]| {
        let files: Vec<String> = files.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(wanted(&files), expected);
    };
    // VILA's parts have folders of their own.
    check(
        &[
            "README.md",
            "config.json",
            "llm/config.json",
            "llm/model-00001-of-00001.safetensors",
            "llm/model.safetensors.index.json",
            "llm/tokenizer.model",
            "mm_projector/config.json",
            "mm_projector/model.safetensors",
            "trainer_state.json",
            "vision_tower/config.json",
            "vision_tower/model.safetensors",
            "vision_tower/old/model.safetensors",
            "vision_tower/preprocessor_config.json",
        ],
        &[
            "config.json",
            "llm/config.json",
            "llm/model.safetensors.index.json",
            "llm/tokenizer.model",
            "llm/model-00001-of-00001.safetensors",
            "vision_tower/config.json",
            "vision_tower/preprocessor_config.json",
            "vision_tower/model.safetensors",
            "mm_projector/config.json",
            "mm_projector/model.safetensors",
        ],
    );
    check(
        &[
            ".gitattributes",
            "README.md",
            "LICENSE",
            "logo.png",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "onnx/model.onnx",
            "tokenizer.model",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "preprocessor_config.json",
            "chat_template.jinja",
            "pytorch_model-00001-of-00001.bin",
            "pytorch_model.bin.index.json",
            "training_args.bin",
            "original/params.json",
        ],
        &[
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "preprocessor_config.json",
            "special_tokens_map.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ],
    );
    check(
        &[
            "config.json",
            "pytorch_model.bin",
            "pytorch_model.fp16.bin",
            "optimizer.bin",
            "tf_model.h5",
        ],
        &["config.json", "pytorch_model.bin"],
    );
    check(
        &[
            "model.fp16.safetensors",
            "model.safetensors",
            "vqgan.safetensors",
        ],
        &["model.safetensors", "vqgan.safetensors"],
    );
}

fn from(vars: &[(&str, &str)]) -> Result<Settings> {
    Settings::from_vars(|key| {
        vars.iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| (*value).into())
    })
}

#[test]
fn settings_follow_the_rules_of_huggingface_hub() {
    let dir = |vars: &[(&str, &str)]| {
        from(vars)
            .unwrap()
            .cache_dir
            .map(|dir| dir.to_str().unwrap().to_owned())
    };
    assert_eq!(dir(&[]), None);
    assert_eq!(dir(&[("HOME", "/h")]).unwrap(), "/h/.cache/huggingface/hub");
    assert_eq!(
        dir(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap(),
        "/x/huggingface/hub"
    );
    assert_eq!(
        dir(&[("HOME", "/h"), ("HF_HOME", "/hf")]).unwrap(),
        "/hf/hub"
    );
    assert_eq!(
        dir(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]).unwrap(),
        "/c"
    );
    let plain = from(&[]).unwrap();
    assert_eq!(
        (plain.endpoint.as_str(), plain.token, plain.offline),
        ("https://huggingface.co", None, false)
    );
    assert_eq!(
        from(&[("HF_ENDPOINT", "http://mirror:8080/")])
            .unwrap()
            .endpoint,
        "http://mirror:8080"
    );
    for (value, expected) in [
        ("1", true),
        ("ON", true),
        ("yes", true),
        ("True", true),
        ("0", false),
        ("", false),
        ("no", false),
    ] {
        assert_eq!(
            from(&[("HF_HUB_OFFLINE", value)]).unwrap().offline,
            expected,
            "{value:?}"
        );
    }
}

#[test]
fn the_token_is_the_variable_else_the_file_that_a_login_leaves() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("token"), "hf_file\n").unwrap();
    let hf_home = ("HF_HOME", home.path().to_str().unwrap());
    assert_eq!(from(&[hf_home]).unwrap().token.as_deref(), Some("hf_file"));
    assert_eq!(
        from(&[hf_home, ("HF_TOKEN", " hf_var ")])
            .unwrap()
            .token
            .as_deref(),
        Some("hf_var")
    );
}

#[test]
fn settings_that_cannot_be_used_say_so() {
    let message = |vars: &[(&str, &str)]| from(vars).unwrap_err().to_string();
    assert_eq!(
        message(&[("HF_ENDPOINT", "mirror")]),
        r#"HF_ENDPOINT is "mirror", expected an address that starts with https:// or http://"#
    );
    assert_eq!(
        message(&[("HF_TOKEN", "hf_a\r\nX: y")]),
        "HF_TOKEN has characters that no token has, such as spaces"
    );
    let dir = TempDir::new().unwrap();
    let pem = dir.path().join("ca.pem");
    fs::write(&pem, "not a certificate").unwrap();
    let hf_home = ("HF_HOME", dir.path().to_str().unwrap());
    let settings = from(&[hf_home, ("SSL_CERT_FILE", pem.to_str().unwrap())]).unwrap();
    let error = quiet("org/tiny", &settings).unwrap_err().to_string();
    assert!(
        error.ends_with("ca.pem: no certificate in it, expected some in PEM format"),
        "{error}"
    );
    let error = quiet("org/tiny", &from(&[]).unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model cache has no directory: set HF_HOME or HF_HUB_CACHE"
    );
}
