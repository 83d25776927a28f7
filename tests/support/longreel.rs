//! Running the real program as a user does.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use crate::support::golden;

/// What a run printed and how it ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The one JSON object on stdout of a run that succeeded.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "stderr: {}", self.stderr);
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not one JSON object ({e}): {}", self.stdout))
    }

    /// The run failed with `code`, said a sentence that contains `expected`, and did not panic.
    #[track_caller]
    pub fn refused(&self, code: i32, expected: &str) {
        assert_eq!(
            self.code, code,
            "stdout: {} stderr: {}",
            self.stdout, self.stderr
        );
        assert!(
            self.stderr.contains(expected),
            "expected a sentence with {expected:?}, got: {}",
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

/// The program, not yet started.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longreel"));
    command
        .env("RUST_BACKTRACE", "0")
        .stdin(std::process::Stdio::null());
    command
}

/// Runs the program to its end.
pub fn longreel<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Run {
    Run::of(command().args(args).output().unwrap())
}

/// `program` as so many processes on this machine, not yet started; also where root runs the tests.
#[cfg(feature = "mpi")]
pub fn mpirun(ranks: usize, program: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command
        .args(["--allow-run-as-root", "--oversubscribe", "-n"])
        .arg(ranks.to_string())
        .arg(program)
        .env("RUST_BACKTRACE", "0")
        .stdin(std::process::Stdio::null());
    command
}

/// Runs an ffmpeg command line that makes `out`.
pub fn ffmpeg(args: &str, out: &Path) {
    let output = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-y"])
        .args(args.split_whitespace())
        .arg(out)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ffmpeg {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A directory for what this test run makes, kept by Cargo outside the tree.
pub fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The model directory imported from the golden end-to-end checkpoint, once per test run.
pub fn golden_model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let out = scratch().join("golden-model");
        let run = longreel(&import_args(&out, &["--force"]));
        assert_eq!(run.code, 0, "{}", run.stderr);
        out
    })
}

/// Arguments of the import of the golden end-to-end checkpoint to `out`.
pub fn import_args(out: &Path, more: &[&str]) -> Vec<String> {
    let spec = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lwm-golden.toml");
    let text = |p: PathBuf| p.display().to_string();
    let mut args = vec![
        "import".into(),
        "--spec".into(),
        text(spec),
        "--params".into(),
        format!("params::{}", golden::path("e2e/params").display()),
        "--vqgan".into(),
        text(golden::path("vqgan/vqgan.pkl")),
        "--tokenizer".into(),
        text(golden::path("tokenizer")),
        "--out".into(),
        out.display().to_string(),
    ];
    args.extend(more.iter().map(|s| (*s).to_owned()));
    args
}

/// The golden clip's five frames as a lossless RGB video, once per test run.
pub fn golden_clip() -> &'static Path {
    static CLIP: OnceLock<PathBuf> = OnceLock::new();
    CLIP.get_or_init(|| {
        let out = scratch().join("golden-clip.mkv");
        let frames = golden::path("e2e/clip/frame_%03d.png");
        ffmpeg(
            &format!(
                "-framerate 5 -i {} -c:v ffv1 -pix_fmt gbrp",
                frames.display()
            ),
            &out,
        );
        out
    })
}
