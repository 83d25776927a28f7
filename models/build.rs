//! Gathers the tables that are compiled in, so that a new one is a new file and nothing else.

use std::{
    env, fs,
    io::{Error, Result},
    path::{Path, PathBuf},
};

/// Folders of tables, and the list that each becomes in `OUT_DIR`.
const TABLES: [(&str, &str, &str); 3] = [
    ("systems/architectures", "toml", "architectures.rs"),
    (
        "systems/architectures/gguf",
        "toml",
        "gguf_architectures.rs",
    ),
    ("context/templates", "jinja", "templates.rs"),
];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    for (folder, extension, list) in TABLES {
        println!("cargo::rerun-if-changed={folder}");
        let files = files(&root.join(folder), extension)?;
        fs::write(out.join(list), list_of(&files))?;
    }
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    env::var(name).map_err(|e| Error::other(format!("{name}: {e}")))
}

/// The folder's own files of that extension, by name, so that the list is the same on every machine.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// `&[("llava", include_str!("…/llava.toml")), …]`
fn list_of(files: &[PathBuf]) -> String {
    let line = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default();
        format!("    ({name:?}, include_str!({path:?})),\n")
    };
    let lines: String = files.iter().map(line).collect();
    format!("&[\n{lines}]\n")
}
