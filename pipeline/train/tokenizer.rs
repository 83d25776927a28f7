//! Learning a tokenizer from the texts of files.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use longreel_models::{
    file_name::FileName,
    training::{
        data::example::VISION_TAGS,
        tokenizer::{TokenizerFiles, learn},
    },
};
use serde_json::Value;

use crate::{
    error::{Context, Error, Kind, Result},
    sources::temporary::write_whole,
};

/// Maximum bytes of text read; more do not improve a small vocabulary.
const BYTES_MAX: u64 = 256 << 20;

/// File name of the tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";

/// A learned tokenizer, and the number of `.jsonl` lines left out because they are not JSON objects.
pub struct Learned {
    /// The tokenizer's files.
    pub files: TokenizerFiles,
    /// Lines left out.
    pub left_out: u64,
}

/// Learns a tokenizer from `files`: the texts in lines of `.jsonl` files, and other files as text.
///
/// # Errors
/// `NotFound` or `Io` for a file that cannot be read, `BadInput` for files without text.
pub fn learn_from(files: &[PathBuf], vocab_size: usize) -> Result<Learned> {
    let mut texts = Texts::default();
    let mut room = BYTES_MAX;
    for path in files {
        let doing = || format!("read {}", path.shown());
        room = texts.add_file(path, room).doing(doing)?;
    }
    let Texts { texts, left_out } = texts;
    if texts.is_empty() {
        let message = "the files have no text, expected some to learn from";
        return Err(Error::new(Kind::BadInput, message));
    }
    let files = learn(texts.into_iter(), vocab_size)?;
    Ok(Learned { files, left_out })
}

/// Writes them into `dir`.
///
/// # Errors
/// `Io` where that fails.
pub fn write(files: &TokenizerFiles, dir: &Path) -> Result<()> {
    let doing = || format!("write the tokenizer {}", dir.shown());
    std::fs::create_dir_all(dir).doing(doing)?;
    let named = [
        (TOKENIZER, &files.tokenizer),
        ("tokenizer_config.json", &files.config),
    ];
    let mut named = named.into_iter();
    named.try_for_each(|(name, text)| write_whole(&dir.join(name), text.as_bytes()).doing(doing))
}

/// The texts read.
#[derive(Default)]
struct Texts {
    texts: Vec<String>,
    left_out: u64,
}

impl Texts {
    /// Adds the texts of the file at `path`, at most `room` bytes of it → the remaining room.
    fn add_file(&mut self, path: &Path, room: u64) -> Result<u64> {
        let is_json = path.extension().is_some_and(|e| e == "jsonl");
        let mut reader = std::io::Read::take(BufReader::new(File::open(path)?), room);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            if reader.read_until(b'\n', &mut bytes)? == 0 {
                return Ok(reader.limit());
            }
            let line = match std::str::from_utf8(&bytes) {
                Ok(line) => line,
                // The limit may cut the last character.
                Err(error) if reader.limit() == 0 && error.error_len().is_none() => {
                    std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
                }
                Err(error) => {
                    let message = "a line is not valid UTF-8, expected text";
                    return Err(Error::with_source(Kind::BadInput, message, error));
                }
            };
            match serde_json::from_str::<Value>(line) {
                Ok(Value::Object(values)) if is_json => {
                    // The tags around frames, which a small vocabulary would otherwise spell out.
                    if values.keys().any(|key| key.contains("vision")) {
                        self.texts.extend(VISION_TAGS.map(str::to_owned));
                    }
                    let values = values.into_iter().filter(|(key, _)| !is_of_fields(key));
                    self.texts
                        .extend(values.filter_map(|(_, value)| value.as_str().map(str::to_owned)));
                }
                // The limit may cut the last line.
                _ if is_json && (reader.limit() == 0 || line.trim().is_empty()) => {}
                _ if is_json => self.left_out += 1,
                _ => self.texts.push(line.to_owned()),
            }
        }
    }
}

/// Whether a key lists fields, whose value is not text of an example.
fn is_of_fields(key: &str) -> bool {
    key == "fields" || key == "clip" || key.contains("vision")
}

#[cfg(test)]
mod tests {
    use super::Texts;
    use crate::error::Kind;

    #[test]
    fn a_character_cut_by_the_limit_is_left_out_and_invalid_utf8_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.txt");
        std::fs::write(&path, "a\u{4e2d}b").unwrap();
        let texts = |room| {
            let mut texts = Texts::default();
            let left = texts.add_file(&path, room);
            left.map(|left| (left, texts.texts.concat()))
        };
        assert_eq!(texts(3).unwrap(), (0, "a".to_owned()));
        assert_eq!(texts(4).unwrap(), (0, "a\u{4e2d}".to_owned()));
        assert_eq!(texts(9).unwrap(), (4, "a\u{4e2d}b".to_owned()));
        std::fs::write(&path, b"a\xffb").unwrap();
        assert_eq!(texts(9).unwrap_err().kind(), Kind::BadInput);
    }
}
