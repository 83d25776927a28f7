//! Measuring runs, says where it ran, and refuses what cannot be measured.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use expect_test::expect;
use longreel_kernels::cpu::Level;
use serde_json::Value;

use crate::support::longreel::{command, longreel};

fn micro() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("configs/measure/micro.toml")
        .display()
        .to_string()
}

#[test]
fn kernels_are_reported_as_fractions_of_peaks_of_the_same_run() {
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

#[test]
fn every_operation_has_a_row_and_every_level_its_own() {
    let rows = |more: &[&str]| {
        let args = [&["bench", "kernels", "--quick", "--json"], more].concat();
        let json = longreel(&args).json();
        json["rows"].as_array().unwrap().clone()
    };
    let column = |rows: &[Value], name: &str| -> Vec<String> {
        let text = |row: &Value| row[name].as_str().unwrap().to_owned();
        rows.iter().map(text).collect()
    };
    let mut ops = column(&rows(&["--repeats", "1"]), "op");
    ops.dedup();
    assert_eq!(ops, longreel::bench::case::Op::ALL.map(|op| op.name()));
    let levels: Vec<&str> = Level::available().map(Level::name).collect();
    let of_levels = rows(&["--op", "rope", "--level", &levels.join(",")]);
    assert_eq!(column(&of_levels, "level"), levels);
}

#[test]
fn the_table_says_where_and_with_what_it_was_measured() {
    let run = longreel(&["bench", "kernels", "--quick", "--op", "attend,rope"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for expected in [
        "machine  ",
        "program  longreel ",
        ", commit ",
        "memory read",
    ] {
        assert!(run.stdout.contains(expected), "{expected}: {}", run.stdout);
    }
    // Three element types and one.
    assert!(
        run.stderr.contains("longreel: 4/4 rope f32"),
        "{}",
        run.stderr
    );
}

#[test]
fn ctrl_c_prints_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("rows.jsonl");
    let lengths = vec!["512"; 2000].join(",");
    let child = command()
        .args(["bench", "kernels", "--quick", "--op", "attend", "--dtype"])
        .args(["f32", "--json", "--quiet", "--s", &lengths, "--out"])
        .arg(&out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if fs::metadata(&out).is_ok_and(|m| m.len() > 0) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["interrupted"], true);
    let rows = json["rows"].as_array().unwrap().len();
    assert!((1..2000).contains(&rows), "{rows}");
    assert_eq!(fs::read_to_string(&out).unwrap().lines().count(), rows);
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
fn a_peer_that_ends_or_breaks_the_protocol_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    with_peer(&script(dir.path(), "#!/bin/sh\nexit 3\n"), "f32").refused(2, "peer");
    let babbles = script(dir.path(), "#!/bin/sh\nread -r x; echo hello; read -r x\n");
    with_peer(&babbles, "f32").refused(2, "the peer answered \"hello\"");
    with_peer("/nowhere/at/all", "f32").refused(2, "start the peer /nowhere/at/all");
    with_peer("", "f32").refused(2, "--peer is empty");
}

/// A peer that answers one request, keeps what it was asked, and ends.
const ONE_ANSWER: &str = "#!/bin/sh
read -r request
echo \"$request\" > \"$1\"
echo '{\"peer\": \"mortal\", \"seconds\": 0.5}'
";

#[test]
fn rows_in_the_file_are_kept_when_the_peer_dies() {
    let dir = tempfile::tempdir().unwrap();
    let [asked, out] = ["asked", "rows.jsonl"].map(|n| dir.path().join(n).display().to_string());
    let peer = format!("{} {asked}", script(dir.path(), ONE_ANSWER));
    let start = [
        "bench",
        "kernels",
        "--quick",
        "--op",
        "attend",
        "--repeats",
        "1",
    ];
    let end = [
        "--dtype",
        "f32,bf16",
        "--threads",
        "1",
        "--peer",
        &peer,
        "--out",
        &out,
    ];
    longreel(&[start.as_slice(), &end].concat()).refused(2, "the peer ended");
    let row: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(
        (&row["dtype"], &row["peer"]["name"]),
        (&"f32".into(), &"mortal".into())
    );
    let mut asked: Value = serde_json::from_str(&fs::read_to_string(&asked).unwrap()).unwrap();
    // How often it is to be run depends on how fast ours was.
    assert!(asked["runs"].take().as_u64().unwrap() > 0);
    expect![[r#"{"op":"attend","dtype":"f32","s":512,"d":128,"heads":8,"kv_heads":8,"threads":1,"runs":null}"#]]
        .assert_eq(&asked.to_string());
}

#[test]
fn impossible_measurements_are_refused_with_a_sentence() {
    for (args, expected) in [
        (["--op", "attention"].as_slice(), "attention"),
        (
            &["--heads", "3", "--kv-heads", "2"],
            "expected a multiple of --kv-heads 2",
        ),
        (&["--s", "0"], "--s is 0"),
        (
            &["--s", "16000000", "--heads", "1024"],
            "the machine can give",
        ),
        (&["--threads", "0"], "--threads is 0"),
        (&["--threads", "1,x"], "--threads"),
        (&["--repeats", "0"], "--repeats is 0, expected 1 to"),
        (&["--dtype", "f16"], "f16"),
        (&["--out", "/proc/rows.jsonl"], "open /proc/rows.jsonl"),
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
fn a_level_that_the_machine_lacks_is_refused_with_those_it_has() {
    let lacking = if Level::available().any(|l| l == Level::Neon) {
        "avx2"
    } else {
        "neon"
    };
    longreel(&["bench", "kernels", "--quick", "--level", lacking])
        .refused(2, &format!("--level is {lacking}, this machine has scalar"));
}

#[test]
fn several_thread_counts_are_for_bench_kernels_only() {
    let run = longreel(&["models", "list", "--threads", "1,2"]);
    run.refused(2, "--threads takes one number");
}

#[test]
fn the_help_lists_every_option() {
    let run = longreel(&["bench", "kernels", "--help"]);
    expect![[r#"
        Operations per second of every kernel, as a share of the machine's peak

        Usage: longreel bench kernels [OPTIONS]

        Options:
              --op <OP>           Operations to measure; all when absent [possible values: attend, decode,
                                  linear, linear-one, conv, group-norm, rms-norm, rope, swiglu]
              --dtype <TYPE>      Element types of keys, values and weights [default: f32,bf16,int8]
                                  [possible values: f32, bf16, int8, int4]
              --s <S>             Sequence lengths of `attend` [default: 8192,32768]
              --cache <N>         Tokens in the KV cache of `decode` [default: 131072]
              --d <D>             Channels of a head [default: 128]
              --heads <N>         Query heads [default: 8]
              --kv-heads <N>      Key and value heads; as many as query heads when absent
              --level <LEVEL>     Instruction sets, of those that this machine has; the widest when absent
                                  [possible values: scalar, neon, avx2, avx512, avx512bf16]
              --repeats <N>       Timed repeats of each row; at least 5 and one second when absent
              --quick             Small shapes and short measurements, to check that everything runs; its
                                  figures mean nothing
              --peer <COMMAND>    A program that performs the same operations, measured in turn
                                  (benches/README.md)
              --out <FILE.jsonl>  Append the rows to this file, one JSON object per line
              --json              Print one JSON object on stdout and nothing else there
          -q, --quiet             No progress on stderr
              --threads <N>       Threads for encoding and answering; all cores when absent
          -h, --help              Print help
          -V, --version           Print version

        Each row tells the median of its repeats and, in brackets, the least and the largest. The
        ceilings are measured between the repeats: multiply-adds in registers, and reading a
        buffer larger than the caches. Causal attention counts 2 S^2 d heads operations.
        --threads takes several numbers here, as in 1,2.

        Examples:
          longreel bench kernels
          longreel bench kernels --op attend --s 8192,32768 --dtype f32,bf16 --threads 1,2 --out mine.jsonl
          longreel bench kernels --op decode --level avx2,avx512 --json
          longreel bench kernels --op attend --peer "python3 benches/peers/torch_sdpa.py"
    "#]].assert_eq(&run.stdout);
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
        // Both ranks are in this process.
        assert_eq!(one["kv_bytes"], two["kv_bytes"]);
        assert!(one["question_s"]["samples"].as_u64().unwrap() > 1);
    }
    let tokens = |row: &Value| row["tokens"].as_u64().unwrap();
    assert_eq!(
        (tokens(&one["rows"][0]), tokens(&one["rows"][1])),
        (1000, 3000)
    );
}

#[test]
fn a_context_that_does_not_fit_is_refused_before_it_starts() {
    let model = micro();
    let run = |tokens: &str| longreel(&["bench", "context", "--model", &model, "--tokens", tokens]);
    run("200000000").refused(2, "the machine can give");
    run("0").refused(2, "--tokens is 0");
}

#[test]
fn answers_are_the_demo_models_where_no_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let clips = dir.path().join("clips").display().to_string();
    let synth = [
        "synth", "--out", &clips, "--clips", "1", "--plain", "--length", "4", "--split", "test",
    ];
    assert_eq!(longreel(&synth).code, 0);
    let mut bench = command();
    bench.args(["bench", "answers", &clips, "--json"]);
    let run = bench.env("XDG_CACHE_HOME", dir.path()).output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(
        said.contains("no model is named: the demo model answers"),
        "{said}"
    );
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["model"], "the demo model");
    assert_eq!(report["clips"], 1);
}
