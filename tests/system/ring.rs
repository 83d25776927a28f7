//! Several ranks answer as one does, and a rank that is lost is named.

use std::{fs, path::PathBuf, sync::OnceLock};

use serde_json::Value;

use crate::support::longreel::{golden_clip, golden_model, longreel, scratch};

/// The golden model with room for many frames, once per test run.
fn roomy_model() -> &'static PathBuf {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let out = scratch().join("roomy-model");
        fs::create_dir_all(&out).unwrap();
        for entry in fs::read_dir(golden_model()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, out.join(path.file_name().unwrap())).unwrap();
        }
        let config = out.join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        json["decoder"]["max_position_embeddings"] = 1_000_000.into();
        fs::write(&config, json.to_string()).unwrap();
        out
    })
}

/// A question about the golden clip, three times over: about eight thousand tokens and a half.
fn question(more: &[&str]) -> Vec<String> {
    let text = |path: &std::path::Path| path.display().to_string();
    let clip = text(golden_clip());
    let model = text(roomy_model());
    let fixed = ["ask", &clip, &clip, &clip, "What?", "--model", &model];
    let rest = [
        "--frames",
        "5",
        "--max-new-tokens",
        "6",
        "--json",
        "--debug-ids",
    ];
    let args = fixed.iter().chain(&rest).chain(more);
    args.map(|arg| (*arg).to_owned()).collect()
}

#[test]
fn threads_answer_as_one_rank_does() {
    let alone = longreel(&question(&[])).json();
    assert!(alone["ring"].is_null());
    for n in ["2", "3", "16"] {
        let ring = longreel(&question(&["--ring", n])).json();
        assert_eq!(ring["generated_ids"], alone["generated_ids"], "{n} ranks");
        assert_eq!(ring["prompt_ids"], alone["prompt_ids"]);
        assert_eq!(
            (&ring["ring"]["link"], ring["ring"]["ranks"].to_string()),
            (&"threads".into(), n.to_owned())
        );
        assert!(ring["ring"]["bytes"].as_u64().unwrap() > 100_000);
    }
}

#[test]
fn a_ring_of_one_rank_is_refused() {
    let alone = longreel(&question(&["--ring", "1"])).json();
    assert!(alone["ring"].is_null());
}

#[test]
fn impossible_rings_are_refused_with_a_sentence() {
    for n in ["0", "17", "two"] {
        longreel(&question(&["--ring", n])).refused(2, "--ring");
    }
    for s in ["0", "NaN", "-1"] {
        let timeout = format!("--ring-timeout={s}");
        longreel(&question(&[&timeout])).refused(2, "--ring-timeout is");
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_program_without_mpi_does_not_answer_once_per_process() {
    let mut command = crate::support::longreel::command();
    command.env("OMPI_COMM_WORLD_SIZE", "2").args(question(&[]));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("built without the feature `mpi`"), "{error}");
}

#[cfg(feature = "mpi")]
mod processes {
    use std::{
        fs,
        path::{Path, PathBuf},
        process::{Child, Command, Stdio},
        sync::OnceLock,
        thread,
        time::{Duration, Instant},
    };

    use serde_json::Value;

    use super::{question, roomy_model};
    use crate::support::longreel::{ffmpeg, longreel, mpirun, scratch};

    fn run(ranks: usize, args: &[String]) -> (Option<i32>, String, String) {
        let mut command = mpirun(ranks, Path::new(env!("CARGO_BIN_EXE_longreel")));
        let output = command.args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    #[test]
    fn processes_answer_as_one_rank_does_and_one_of_them_prints() {
        let alone = longreel(&question(&[])).json();
        for ranks in [2, 3, 4] {
            let (code, out, err) = run(ranks, &question(&[]));
            assert_eq!(code, Some(0), "{err}");
            let ring: Value = serde_json::from_str(&out).unwrap();
            assert_eq!(
                ring["generated_ids"], alone["generated_ids"],
                "{ranks} ranks"
            );
            assert_eq!(
                (&ring["ring"]["link"], &ring["ring"]["ranks"]),
                (&"mpi".into(), &ranks.into())
            );
            // The golden model's blocks of 256 tokens in three layers take 196,608 bytes.
            let (whole, own) = (
                alone["kv_bytes"].as_u64().unwrap(),
                ring["kv_bytes"].as_u64().unwrap(),
            );
            assert!(
                own < whole / ranks as u64 + 196_608,
                "{own} of {whole} bytes"
            );
        }
    }

    #[test]
    fn a_refusal_by_the_leader_ends_all_ranks_with_its_message() {
        let (code, out, err) = run(2, &question(&["--ring", "3"]));
        assert_ne!(code, Some(0));
        assert!(
            err.contains("--ring is 3, 2 processes were started"),
            "{err}"
        );
        assert!(out.contains("\"kind\":\"Usage\""), "{out}");
        let model = roomy_model().display().to_string();
        let missing = ["ask", "missing.mp4", "What?", "--model", &model];
        let (code, _, err) = run(2, &missing.map(str::to_owned));
        assert_ne!(code, Some(0));
        assert!(err.contains("open missing.mp4: "), "{err}");
        let (code, _, err) = run(2, &["models".to_owned(), "list".to_owned()]);
        assert_ne!(code, Some(0));
        assert!(
            err.contains("only `ask` and `bench context` run on several"),
            "{err}"
        );
    }

    /// A thousand frames, once per test run.
    fn long_clip() -> &'static Path {
        static CLIP: OnceLock<PathBuf> = OnceLock::new();
        CLIP.get_or_init(|| {
            let out = scratch().join("ring-long.mp4");
            ffmpeg(
                "-f lavfi -i testsrc2=duration=40:size=64x64:rate=25 -pix_fmt yuv420p",
                &out,
            );
            out
        })
    }

    /// A question whose prefill takes many seconds.
    fn long_question() -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let (clip, model) = (text(long_clip()), text(roomy_model()));
        let args = ["ask", &clip, "What?", "--model", &model, "--fps", "25"];
        let rest = ["--json", "--quiet", "--ring-timeout", "2"];
        args.iter()
            .chain(&rest)
            .map(|arg| (*arg).to_owned())
            .collect()
    }

    /// Starts three ranks and waits until all are at work → the launcher, and the pid of rank 1.
    fn start(name: &str, launcher: &[&str]) -> (Child, u32) {
        let ranks = mpirun(3, Path::new(env!("CARGO_BIN_EXE_longreel")));
        let mut command = Command::new(ranks.get_program());
        command
            .args(launcher)
            .args(ranks.get_args())
            .args(long_question());
        command
            .env("LONGREEL_TEST", name)
            .env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        match begun(name) {
            Some(pid) => (child, pid),
            None => {
                child.kill().unwrap();
                panic!("rank 1 never began: {:?}", child.wait_with_output());
            }
        }
    }

    /// Rank 1 of the run `name`, well after it has begun.
    fn begun(name: &str) -> Option<u32> {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Some(pid) = pid_of(name, 1).filter(|&pid| is_at_work(pid)) {
                thread::sleep(Duration::from_millis(1500));
                return Some(pid);
            }
            thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// The process of that rank of the run `name`.
    fn pid_of(name: &str, rank: usize) -> Option<u32> {
        let (run, rank) = (
            format!("LONGREEL_TEST={name}"),
            format!("OMPI_COMM_WORLD_RANK={rank}"),
        );
        fs::read_dir("/proc").unwrap().find_map(|entry| {
            let entry = entry.ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let has = |wanted: &str| {
                environment
                    .split(|&b| b == 0)
                    .any(|v| v == wanted.as_bytes())
            };
            let program = fs::read_to_string(entry.path().join("comm")).ok()?;
            let found = program.trim() == "longreel" && has(&run) && has(&rank);
            entry.file_name().to_str()?.parse().ok().filter(|_| found)
        })
    }

    /// Whether it has the threads of its connections.
    fn is_at_work(pid: u32) -> bool {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten();
        let mut names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.any(|name| name.trim() == "mpi receive")
    }

    fn signal(pid: u32, name: &str) {
        let status = Command::new("kill").args([name, &pid.to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// What was printed once all had ended, and how they ended.
    fn end(child: Child) -> (bool, String, String) {
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    #[test]
    fn a_killed_process_is_named_and_no_answer_is_printed() {
        // The launcher is told not to end the others: they must find out for themselves.
        let (child, pid) = start("killed", &["--enable-recovery"]);
        signal(pid, "-KILL");
        let (_, out, err) = end(child);
        assert!(
            err.contains("rank 1 of 3 has ended before the work was done"),
            "{err}"
        );
        assert!(
            out.contains("\"error\"") && !out.contains("\"answer\""),
            "{out}"
        );
    }

    #[test]
    fn a_launcher_that_ends_all_names_the_killed_process() {
        let (child, pid) = start("aborted", &[]);
        signal(pid, "-KILL");
        let (succeeded, out, err) = end(child);
        assert!(!succeeded);
        assert!(err.contains("rank 1 "), "{err}");
        assert!(!out.contains("\"answer\""), "{out}");
    }

    #[test]
    fn a_stopped_process_is_named_after_the_timeout() {
        let (child, pid) = start("stopped", &[]);
        signal(pid, "-STOP");
        let (succeeded, out, err) = end(child);
        assert!(!succeeded);
        assert!(err.contains("rank 1 of 3 has been silent for 2 s"), "{err}");
        assert!(!out.contains("\"answer\""), "{out}");
        assert_eq!(pid_of("stopped", 0), None);
    }
}
