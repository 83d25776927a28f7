//! The small model compiled into the program, the default of some verbs.
//!
//! `models/demo/train` trains it on clips of `longreel synth`; it knows nothing else.

use std::path::{Path, PathBuf};

use longreel_models::file_name::FileName;
use sha2::{Digest, Sha256};

use crate::{
    error::{Context, Error, Kind, Result},
    hub,
    sources::temporary::write_whole,
};

/// Name and content of each file of its directory.
const FILES: [(&str, &[u8]); 5] = [
    (
        "model.safetensors",
        include_bytes!("../models/demo/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../models/demo/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../models/demo/tokenizer_config.json"),
    ),
    (
        "preprocessor_config.json",
        include_bytes!("../models/demo/preprocessor_config.json"),
    ),
    ("config.json", include_bytes!("../models/demo/config.json")),
];

/// Maximum length of the clips that it was trained on, in frames.
const FRAMES: u64 = 4;

/// A warning where `frames` is more than it was trained for.
pub fn doubt(frames: u64) -> Option<String> {
    (frames > FRAMES).then(|| {
        format!(
            "the demo model answers for clips of at most {FRAMES} frames, these are {frames}: do not trust its answers"
        )
    })
}

/// Its directory in the user's cache, written on first use.
///
/// # Errors
/// `Usage` where the user has no cache directory, `Io` where writing fails.
pub fn directory() -> Result<PathBuf> {
    let cache = hub::user_cache(|key| std::env::var_os(key)).ok_or_else(|| {
        let message = "no model is named, and the demo model has no place: XDG_CACHE_HOME and HOME are not set; \
                       expected one of them, or --model";
        Error::new(Kind::Usage, message)
    })?;
    let dir = cache.join("longreel").join(name());
    write_into(&dir).doing(|| {
        format!(
            "write the demo model into {} (expected a folder that can be written; XDG_CACHE_HOME names another, \
             --model another model)",
            dir.shown()
        )
    })?;
    Ok(dir)
}

/// A name that depends on the content, so that versions of the program do not overwrite one another's files.
fn name() -> String {
    let mut all = Sha256::new();
    FILES.iter().for_each(|(_, content)| all.update(content));
    let digest = all.finalize();
    let hex: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
    format!("demo-{hex}")
}

/// Files with other content are rewritten.
fn write_into(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, content) in FILES {
        let path = dir.join(name);
        if !std::fs::read(&path).is_ok_and(|found| found == content) {
            write_whole(&path, content)?;
        }
    }
    Ok(())
}
