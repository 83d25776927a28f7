//! Measuring runs, says where it ran, and refuses what cannot be measured.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::Value;

use crate::support::longreel::longreel;

fn micro() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("configs/measure/micro.toml")
        .display()
        .to_string()
}

#[test]
fn kernels_are_told_as_shares_of_the_peaks_of_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("rows.jsonl").display().to_string();
    let run = longreel(&[
        "bench",
        "kernels",
        "--quick",
        "--op",
        "attend,decode,conv",
        "--dtype",
        "f32,int4",
        "--threads",
        "1,2",
        "--json",
        "--out",
        &out,
    ]);
    let json = run.json();
    let rows = json["rows"].as_array().unwrap();
    // Two element types of attention, one of the convolution, on one thread and on two.
    assert_eq!(rows.len(), (2 + 2 + 1) * 2);
    for row in rows {
        let share = row["fraction_of_peak"].as_f64().unwrap();
        assert!(share > 0.0 && share.is_finite(), "{row}");
        assert!(row["gb_per_s"]["median"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert!(json["machine"]["cpu"].is_string() && json["commit"].is_string());
    assert!(json["ceilings"].as_array().unwrap().len() >= 2);
    let lines = fs::read_to_string(&out).unwrap();
    let parsed: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(parsed.len(), rows.len());
    assert_eq!(parsed[0]["op"], rows[0]["op"]);
}

/// A peer that says that every run took a second, and skips int8.
const PEER: &str = "#!/bin/sh
while read -r request; do
    case $request in
    *int8*) echo '{\"skip\": \"no int8\"}' ;;
    *) echo '{\"peer\": \"a slow one\", \"seconds\": 1.0}' ;;
    esac
done
";

fn script(dir: &Path, text: &str) -> String {
    let path = dir.join("peer.sh");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn with_peer(peer: &str, dtype: &str) -> crate::support::longreel::Run {
    longreel(&[
        "bench", "kernels", "--quick", "--op", "attend", "--dtype", dtype, "--json", "--peer", peer,
    ])
}

#[test]
fn a_peer_is_asked_in_turn_and_may_skip() {
    let dir = tempfile::tempdir().unwrap();
    let peer = script(dir.path(), PEER);
    let json = with_peer(&peer, "f32,int8").json();
    assert_eq!(json["rows"][0]["peer"]["name"], "a slow one");
    assert!(json["rows"][0]["peer"]["ratio"].as_f64().unwrap() > 1.0);
    assert!(json["rows"][1]["peer"].is_null());
}

#[test]
fn a_peer_that_ends_or_babbles_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    with_peer(&script(dir.path(), "#!/bin/sh\nexit 3\n"), "f32").refused(2, "peer");
    let babbles = script(dir.path(), "#!/bin/sh\nread -r x; echo hello; read -r x\n");
    with_peer(&babbles, "f32").refused(2, "the peer answered \"hello\"");
    with_peer("/nowhere/at/all", "f32").refused(2, "start the peer /nowhere/at/all");
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_sentence() {
    for (args, expected) in [
        (["--op", "attention"].as_slice(), "attention"),
        (
            &["--heads", "3", "--kv-heads", "2"],
            "expected a multiple of --kv-heads 2",
        ),
        (&["--s", "0"], "--s is 0"),
        (&["--s", "16000000"], "the machine can give"),
        (&["--threads", "0"], "--threads is 0"),
    ] {
        let mut all = vec!["bench", "kernels", "--op", "attend"];
        all.extend(args);
        if args[0] == "--op" {
            all.drain(2..4);
        }
        longreel(&all).refused(2, expected);
    }
}

#[test]
fn a_context_has_the_same_bits_on_one_rank_and_on_two() {
    let run = |more: &[&str]| {
        let model = micro();
        let mut args = vec![
            "bench",
            "context",
            "--model",
            &model,
            "--tokens",
            "3000,1000",
        ];
        args.extend(["--json"].iter().chain(more));
        longreel(&args).json()
    };
    let (one, two) = (run(&[]), run(&["--ring", "2"]));
    for (one, two) in [
        (&one["rows"][0], &two["rows"][0]),
        (&one["rows"][1], &two["rows"][1]),
    ] {
        assert_eq!(one["logits_sha256"], two["logits_sha256"]);
        assert_eq!((&one["ranks"], &two["ranks"]), (&1.into(), &2.into()));
        assert_eq!(
            one["kv_bytes"].as_u64().unwrap() / 2,
            two["kv_bytes"].as_u64().unwrap()
        );
        assert!(one["question_s"]["samples"].as_u64().unwrap() > 1);
    }
    let tokens = |row: &Value| row["tokens"].as_u64().unwrap();
    assert_eq!(
        (tokens(&one["rows"][0]), tokens(&one["rows"][1])),
        (1000, 3000)
    );
}

#[test]
fn a_context_that_does_not_fit_is_refused_before_it_is_begun() {
    let model = micro();
    let run = |tokens: &str| longreel(&["bench", "context", "--model", &model, "--tokens", tokens]);
    run("200000000").refused(2, "the machine can give");
    run("0").refused(2, "--tokens is 0");
}
