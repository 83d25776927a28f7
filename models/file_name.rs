//! Shows file names in messages: names need not be UTF-8 and may contain line breaks.

use std::{
    borrow::Cow,
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

    /// The name for JSON and reels, which can hold any text: unchanged where it is UTF-8, else as shown.
    fn text(&self) -> Cow<'_, str>;
}

impl FileName for Path {
    fn shown(&self) -> ShownName<'_> {
        ShownName(self)
    }

    fn text(&self) -> Cow<'_, str> {
        let shown = || Cow::Owned(self.shown().to_string());
        self.to_str().map_or_else(shown, Cow::Borrowed)
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

/// Serializes `path` as [`FileName::text`], for `serde(serialize_with)`.
///
/// # Errors
/// Those of the serializer.
pub fn as_text<S: Serializer>(path: impl AsRef<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.as_ref().text())
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

    use super::FileName;

    #[test]
    fn a_name_that_is_utf8_stays_itself_in_json() {
        let text = |bytes: &[u8]| Path::new(OsStr::from_bytes(bytes)).text().into_owned();
        assert_eq!(text(b"a\nb"), "a\nb");
        assert_eq!(text(b"a\n\xff"), r"a\n\xff");
    }

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
