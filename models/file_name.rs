//! Shows file names in messages: names need not be UTF-8 and may contain line breaks.

use std::{
    fmt::{self, Write},
    path::Path,
};

use serde::Serializer;

/// A file name for a message: bytes that are not UTF-8 are escaped as `\xff`, control characters as `\n`.
pub struct ShownName<'a>(&'a Path);

/// An exact alternative to [`Path::display`], which replaces what it cannot show.
pub trait FileName {
    /// The name for a message.
    fn shown(&self) -> ShownName<'_>;
}

impl FileName for Path {
    fn shown(&self) -> ShownName<'_> {
        ShownName(self)
    }
}

impl fmt::Display for ShownName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.as_os_str().as_encoded_bytes().utf8_chunks() {
            for letter in chunk.valid().chars() {
                match letter.is_control() {
                    true => write!(f, "{}", letter.escape_default())?,
                    false => f.write_char(letter)?,
                }
            }
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        Ok(())
    }
}

/// Serializes `path` as it is shown in messages, for `serde(serialize_with)`.
///
/// # Errors
/// Those of the serializer.
pub fn as_text<S: Serializer>(path: impl AsRef<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.as_ref().shown())
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

    use super::FileName;

    #[test]
    fn names_are_shown_whole_and_on_one_line() {
        let shown = |bytes: &[u8]| Path::new(OsStr::from_bytes(bytes)).shown().to_string();
        assert_eq!(shown("dé/á 100%.mp4".as_bytes()), "dé/á 100%.mp4");
        assert_eq!(
            shown(b"a\xff\xfe\nb\t\x1b[2Jc"),
            r"a\xff\xfe\nb\t\u{1b}[2Jc"
        );
    }
}
