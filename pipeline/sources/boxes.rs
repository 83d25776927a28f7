//! The box structure of ISO base media files (mp4, mov, HEIF; ISO 14496-12 section 4.2).
//!
//! For what FFmpeg does not report: which tracks are encrypted, and the orientation of a HEIF picture.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// Maximum children read of one box: a moov has tens, a list of properties hundreds.
const CHILDREN_MAX: usize = 4096;
/// Maximum bytes read of one box: tables of properties have a few hundred.
const BYTES_MAX: u64 = 1 << 16;

/// One box: its type, and where its content lies in the file.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The type, e.g. `moov`.
    pub kind: [u8; 4],
    /// First byte after the box header.
    pub start: u64,
    /// First byte after the box, at most the end of the file.
    pub end: u64,
}

impl Section {
    /// The box without the first `n` bytes of its content, which are not boxes.
    pub fn behind(self, n: u64) -> Self {
        let start = self.start.saturating_add(n).min(self.end);
        Self { start, ..self }
    }
}

/// A file whose boxes are read.
pub struct BoxFile(File);

impl BoxFile {
    /// Opens `path`, whatever it is.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(File::open(path)?))
    }

    /// The whole file, as the box around all boxes.
    pub fn whole(&self) -> io::Result<Section> {
        let end = self.0.metadata()?.len();
        Ok(Section {
            kind: *b"file",
            start: 0,
            end,
        })
    }

    /// The boxes in `parent`, up to the first invalid one.
    pub fn children(&mut self, parent: Section) -> io::Result<Vec<Section>> {
        let (mut found, mut at) = (Vec::new(), parent.start);
        while at < parent.end && found.len() < CHILDREN_MAX {
            let Some(section) = self.head(at, parent.end)? else {
                break;
            };
            at = section.end;
            found.push(section);
        }
        Ok(found)
    }

    /// The boxes of type `kind` in `parent`.
    pub fn named(&mut self, parent: Section, kind: &[u8; 4]) -> io::Result<Vec<Section>> {
        let mut children = self.children(parent)?;
        children.retain(|section| section.kind == *kind);
        Ok(children)
    }

    /// The first box at a path of nested types.
    pub fn inside(&mut self, parent: Section, path: &[&[u8; 4]]) -> io::Result<Option<Section>> {
        let mut section = parent;
        for kind in path {
            let Some(&child) = self.named(section, kind)?.first() else {
                return Ok(None);
            };
            section = child;
        }
        Ok(Some(section))
    }

    /// The content of `section`, at most [`BYTES_MAX`] bytes of it.
    pub fn bytes(&mut self, section: Section) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.0.seek(SeekFrom::Start(section.start))?;
        let n = (section.end - section.start).min(BYTES_MAX);
        self.0.by_ref().take(n).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The box at `at`, which must end before `end`.
    fn head(&mut self, at: u64, end: u64) -> io::Result<Option<Section>> {
        let head = self.bytes(Section {
            kind: *b"head",
            start: at,
            end: end.min(at + 16),
        })?;
        let Some((size, kind)) = word(&head, 0).zip(word(&head, 4)) else {
            return Ok(None);
        };
        let (head_bytes, size) = match size {
            0 => (8, end - at),
            1 => match word(&head, 8).zip(word(&head, 12)) {
                Some((high, low)) => (16, u64::from(high) << 32 | u64::from(low)),
                None => return Ok(None),
            },
            n => (8, u64::from(n)),
        };
        Ok((size >= head_bytes).then(|| Section {
            kind: kind.to_be_bytes(),
            start: at + head_bytes,
            end: at.saturating_add(size).min(end),
        }))
    }
}

/// The big-endian number of 32 bits at `at`.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The big-endian number of 16 bits at `at`.
pub fn half_word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::BoxFile;

    #[test]
    fn boxes_are_clipped_to_their_parent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boxes");
        // A box of 2^63 bytes with a child of 2^32 - 1.
        let mut bytes = b"\0\0\0\x01moov\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec();
        bytes.extend(b"\xff\xff\xff\xfftrak1234");
        std::fs::write(&path, &bytes).unwrap();
        let mut file = BoxFile::open(&path).unwrap();
        let whole = file.whole().unwrap();
        let trak = file.inside(whole, &[b"moov", b"trak"]).unwrap().unwrap();
        assert_eq!((trak.start, trak.end), (24, 28));
        assert_eq!(file.bytes(trak).unwrap(), b"1234");
        assert!(file.children(trak).unwrap().is_empty());
    }
}
