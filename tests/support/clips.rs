//! Short clips made with the ffmpeg command line, and what that command makes of a clip.
//!
//! Clips are kept under the target directory by the arguments that made them, so
//! that only the first run waits for the encoders.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

/// The file that `ffmpeg ARGUMENTS FILE` writes; `name` ends in the container's extension.
pub fn make(name: &str, arguments: &[&str]) -> PathBuf {
    cached(name, arguments, |path| {
        drop(run(
            "ffmpeg",
            &[&["-y"], arguments, &[path.to_str().unwrap()]].concat(),
        ))
    })
}

/// `testsrc2` of a size, rate and length, encoded with `encoder` arguments.
pub fn test_pattern(
    name: &str,
    size: &str,
    rate: &str,
    seconds: &str,
    encoder: &[&str],
) -> PathBuf {
    let source = format!("testsrc2=s={size}:r={rate}:d={seconds}");
    make(name, &[&["-f", "lavfi", "-i", &source], encoder].concat())
}

/// The file that `write` makes of `original`, kept like [`make`]'s.
pub fn edited(name: &str, original: &Path, write: impl FnOnce(Vec<u8>) -> Vec<u8>) -> PathBuf {
    cached(name, &[original.to_str().unwrap()], |path| {
        std::fs::write(path, write(std::fs::read(original).unwrap())).unwrap();
    })
}

fn cached(name: &str, arguments: &[&str], write: impl FnOnce(&Path)) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut hasher = DefaultHasher::new();
    (name, arguments).hash(&mut hasher);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clips");
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("{:016x}-{name}", hasher.finish()));
    if !path.exists() {
        // Tests run side by side: the finished file appears at once, never in part.
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = directory.join(format!("{}-{n}-{name}", std::process::id()));
        write(&temporary);
        std::fs::rename(temporary, &path).unwrap();
    }
    path
}

/// Runs a program to its end and gives what it printed.
pub fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let quiet: &[&str] = if program == "ffmpeg" {
        &["-nostdin", "-v", "error"]
    } else {
        &["-v", "error"]
    };
    let output = Command::new(program)
        .args(quiet)
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    output.stdout
}

/// Every frame of a stream as `ffmpeg` gives it: RGB24, all frames one after the other.
pub fn reference_frames(path: &Path, stream_index: usize, filters: &[&str]) -> Vec<u8> {
    let map = format!("0:{stream_index}");
    let before = [
        "-i",
        path.to_str().unwrap(),
        "-map",
        &map,
        "-vsync",
        "passthrough",
    ];
    let after = [
        "-sws_flags",
        "bicubic",
        "-pix_fmt",
        "rgb24",
        "-f",
        "rawvideo",
        "-",
    ];
    run("ffmpeg", &[&before, filters, &after].concat())
}

/// `best_effort_timestamp` of every frame of a stream, as ffprobe prints it; `None` where it knows none.
pub fn reference_ticks(path: &Path, stream_index: usize) -> Vec<Option<i64>> {
    let stream = stream_index.to_string();
    let arguments = [
        "-select_streams",
        &stream,
        "-show_entries",
        "frame=best_effort_timestamp",
        "-of",
        "csv=p=0",
    ];
    let printed = run(
        "ffprobe",
        &[&arguments[..], &[path.to_str().unwrap()]].concat(),
    );
    let lines = String::from_utf8(printed).unwrap();
    lines
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| line.trim_end_matches(',').parse().ok())
        .collect()
}
