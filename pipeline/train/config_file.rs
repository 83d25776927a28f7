//! Configuration files of training runs: TOML with paths relative to the file, checked before
//! anything runs.

use std::path::{Path, PathBuf};

use longreel_models::file_name::FileName;
use serde::de::DeserializeOwned;

use crate::error::{Context, Error, Kind, Result};

/// Upper limit of any count.
pub const MOST: u64 = 1 << 40;

/// A configuration file.
pub trait ConfigFile: DeserializeOwned {
    /// # Errors
    /// `BadInput` naming the key, its value and the allowed ones.
    fn validate(&self) -> Result<()>;

    /// The files and folders that it names.
    fn paths(&mut self) -> Vec<&mut PathBuf>;

    /// Reads the file at `path`; paths in it are relative to its folder.
    ///
    /// # Errors
    /// `BadInput` for an unknown key or a value outside its range.
    fn open(path: &Path) -> Result<Self> {
        let doing = || format!("read {}", path.shown());
        let text = std::fs::read_to_string(path).doing(doing)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut config = Self::from_toml(&text).doing(doing)?;
        for path in config.paths() {
            let inside = folder.join(&*path);
            *path = std::path::absolute(&inside).unwrap_or(inside);
        }
        Ok(config)
    }

    /// Parses and checks the text of such a file.
    ///
    /// # Errors
    /// As [`ConfigFile::open`].
    fn from_toml(text: &str) -> Result<Self> {
        let config: Self =
            toml::from_str(text).map_err(|e| bad(e.to_string().trim_end().replace('\n', " ")))?;
        config.validate()?;
        Ok(config)
    }
}

/// Checks `(key, value, most)`: each value must be from 1 to `most`.
///
/// # Errors
/// `BadInput` naming the first invalid one.
pub fn check_counts(counts: &[(&str, u64, u64)]) -> Result<()> {
    let wrong = counts.iter().find(|(_, n, most)| !(1..=*most).contains(n));
    wrong.map_or(Ok(()), |(key, n, most)| {
        Err(bad(format!("{key} is {n}, expected 1 to {most}")))
    })
}

/// The default interval of checkpoints and evaluations.
pub fn a_hundred() -> u64 {
    100
}

/// The error for an invalid configuration.
pub fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
