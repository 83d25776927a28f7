//! File names of any bytes, and addresses in their place.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::support::{
    golden,
    longreel::{Run, golden_model, longreel},
};

/// A directory whose name is no text, with this in it.
struct Odd(tempfile::TempDir);

impl Odd {
    fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix(OsStr::from_bytes(b"odd\xff\n"))
                .tempdir()
                .unwrap(),
        )
    }

    fn path(&self, name: &[u8]) -> PathBuf {
        self.0.path().join(OsStr::from_bytes(name))
    }

    fn copy(&self, of: &Path, name: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::copy(of, &path).unwrap();
        path
    }
}

fn run(args: &[&OsStr]) -> Run {
    longreel(args)
}

/// Names that something takes for more than a name.
const NAMES: [&[u8]; 7] = [
    b"\xff\xfe.mp4",
    b"a%03d.mp4",
    b"a\nb.mp4",
    b"-i.mp4",
    b"http:a.mp4",
    b"concat:a|b.mp4",
    b"*?[a].mp4",
];

#[test]
fn frames_of_a_video_of_any_name_go_into_a_folder_of_any_name() {
    let odd = Odd::new();
    for (n, name) in NAMES.iter().enumerate() {
        let video = odd.copy(&golden::clip("h265_video.mp4"), name);
        let out = odd.path(format!("out{n}").as_bytes());
        let args = [
            "frames".as_ref(),
            video.as_os_str(),
            "--out".as_ref(),
            out.as_os_str(),
        ];
        let rest: [&OsStr; 3] = ["--frames".as_ref(), "1".as_ref(), "--json".as_ref()];
        run(&[&args[..], &rest].concat()).json();
        assert!(out.join("frames.jsonl").is_file());
    }
}

#[test]
fn every_verb_takes_names_of_any_bytes() {
    let odd = Odd::new();
    let video = odd.copy(&golden::clip("h265_video.mp4"), b"\xffvideo.mp4");
    let model = odd.path(b"model\xfe");
    std::os::unix::fs::symlink(golden_model(), &model).unwrap();
    let (reel, film) = (odd.path(b"\xfd.reel"), odd.path(b"\xfc.mp4"));
    let of = |verb: &str, paths: &[&PathBuf], rest: &[&str]| {
        let paths = paths.iter().map(|path| path.as_os_str().to_owned());
        let rest = rest.iter().map(OsString::from);
        let args: Vec<OsString> = [OsString::from(verb)]
            .into_iter()
            .chain(paths)
            .chain(rest)
            .collect();
        let last = [
            OsStr::new("--model"),
            model.as_os_str(),
            OsStr::new("--json"),
        ];
        let all: Vec<&OsStr> = args.iter().map(OsString::as_os_str).chain(last).collect();
        run(&all).json()
    };
    let out = |path: &Path| [OsString::from("--out"), path.as_os_str().to_owned()];
    let encode = [
        "encode".as_ref(),
        video.as_os_str(),
        "--frames".as_ref(),
        "2".as_ref(),
    ];
    let to: [OsString; 2] = out(&reel);
    let more: [&OsStr; 4] = [&to[0], &to[1], "--model".as_ref(), model.as_os_str()];
    assert_eq!(run(&[&encode[..], &more].concat()).code, 0);
    let answer = of("ask", &[&reel], &["What is it?", "--max-new-tokens", "2"]);
    assert!(answer["answer"].is_string(), "{answer}");
    of("plan", &[&video], &["--frames", "2"]);
    let to = out(&film);
    let reconstruct = ["reconstruct".as_ref(), reel.as_os_str(), &to[0], &to[1]];
    let with: [&OsStr; 2] = ["--model".as_ref(), model.as_os_str()];
    assert_eq!(run(&[&reconstruct[..], &with].concat()).code, 0);
    assert!(film.is_file());
}

#[test]
fn a_name_that_is_not_text_is_shown_escaped() {
    let gone = OsStr::from_bytes(b"gone\xff\n.mp4");
    run(&[
        "frames".as_ref(),
        gone,
        "--out".as_ref(),
        "/tmp/never".as_ref(),
    ])
    .refused(2, r"gone\xff\n.mp4");
}

#[test]
fn an_argument_that_is_not_text_is_a_usage_error_and_no_panic() {
    let bytes = OsStr::from_bytes(b"\xff");
    for args in [
        &["frames".as_ref(), "a.mp4".as_ref(), "--fps".as_ref(), bytes][..],
        &[bytes, "--json".as_ref()],
        &["ask".as_ref(), "a.mp4".as_ref(), bytes],
    ] {
        let found = run(args);
        assert_eq!(found.code, 2, "{}", found.stderr);
        assert!(!found.stderr.contains("panicked"), "{}", found.stderr);
    }
}

#[test]
fn an_address_in_the_place_of_a_file_says_what_to_do() {
    let model = golden_model();
    let model = model.to_str().unwrap();
    let record = "record a part of it first";
    longreel(&["frames", "rtsp://cam/1", "--out", "/tmp/never"]).refused(2, record);
    longreel(&["ask", "srt://h:1", "What?", "--model", model]).refused(2, record);
    let file = "https://a/b.mp4";
    let encode = ["encode", file, "--out", "/tmp/never.reel", "--model", model];
    longreel(&encode).refused(2, "download it first");
    longreel(&["plan", file, "--model", model]).refused(2, "download it first");
}
