//! The small model that comes with the program: it was trained on clips of `longreel synth` (`configs/train/demo-*.toml`)
//! and knows nothing else.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    error::{Context, Error, Kind, Result},
    sources::temporary::write_whole,
};

/// Most objects of a shot that it was trained on.
pub const OBJECTS: u8 = 2;

macro_rules! files {
    ($($name:literal),+) => {
        [$(($name, include_bytes!(concat!("../models/demo/", $name)) as &[u8])),+]
    };
}

/// The model directory, file by file.
const FILES: [(&str, &[u8]); 6] = files![
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "model-00001-of-00001.safetensors"
];

/// The directory of the model: written into the user's cache by the first call.
///
/// # Errors
/// `Io` where the cache cannot be written.
pub fn directory() -> Result<PathBuf> {
    let mut digest = Sha256::new();
    FILES.iter().for_each(|(_, bytes)| digest.update(bytes));
    let name: String = digest.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let dir = cache()?.join(format!("demo-{name}"));
    let doing = || format!("write the demo model {}", dir.display());
    fs::create_dir_all(&dir).doing(doing)?;
    for (name, bytes) in FILES {
        let path = dir.join(name);
        if !is_whole(&path, bytes) {
            write_whole(&path, bytes).doing(doing)?;
        }
    }
    Ok(dir)
}

/// Files appear whole; one of another length was changed by somebody.
fn is_whole(path: &Path, bytes: &[u8]) -> bool {
    fs::metadata(path).is_ok_and(|found| found.len() == bytes.len() as u64)
}

/// `$XDG_CACHE_HOME/longreel`, else `~/.cache/longreel`.
fn cache() -> Result<PathBuf> {
    let of = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")));
    cache.map(|cache| cache.join("longreel")).ok_or_else(|| {
        let message = "HOME is not set, expected a place for the demo model; --model names another";
        Error::new(Kind::NotFound, message)
    })
}
