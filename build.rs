//! Tells the program which commit it is built from; nothing where there is none, as in a tarball.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(commit) = commit() {
        println!("cargo::rustc-env=LONGREEL_COMMIT={commit}");
    }
}

/// The commit that HEAD names.
fn commit() -> Option<String> {
    let dir = git_dir()?;
    let head = read(&dir.join("HEAD"))?;
    let Some(branch) = head.strip_prefix("ref: ") else {
        return Some(head);
    };
    // In a linked working tree branches are those of the first one.
    let shared = read(&dir.join("commondir")).map_or(dir.clone(), |common| dir.join(common));
    read(&shared.join(branch)).or_else(|| packed(&shared, branch))
}

/// `.git`, or the directory that a linked working tree's `.git` file names.
fn git_dir() -> Option<PathBuf> {
    let git = Path::new(".git");
    if git.is_dir() {
        return Some(git.to_owned());
    }
    Some(PathBuf::from(read(git)?.strip_prefix("gitdir: ")?))
}

/// A branch that git has put away in its one file of branches.
fn packed(dir: &Path, branch: &str) -> Option<String> {
    let branches = read(&dir.join("packed-refs"))?;
    let mut lines = branches.lines().filter_map(|l| l.split_once(' '));
    lines
        .find(|(_, name)| *name == branch)
        .map(|(commit, _)| commit.to_owned())
}

/// The text of a file, after whose change this runs again.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo::rerun-if-changed={}", path.display());
    Some(text.trim().to_owned())
}
