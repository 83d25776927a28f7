//! File types by their first bytes, where FFmpeg's own probing is not enough.

use std::{fs::File, io::Read, path::Path};

/// A file type with special handling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magic {
    /// A JPEG picture.
    Jpeg,
    /// A WebP picture, or an animation of them.
    Webp,
    /// A HEIF picture coded with HEVC.
    Heic,
    /// A HEIF picture coded with AV1.
    Avif,
}

impl Magic {
    /// The type of the file at `path`; `None` for other files, and unreadable ones.
    pub fn of(path: &Path) -> Option<Self> {
        let mut bytes = [0; 64];
        let mut head = File::open(path).ok()?.take(bytes.len() as u64);
        let mut n = 0;
        while let Ok(read @ 1..) = head.read(&mut bytes[n..]) {
            n += read;
        }
        Self::of_bytes(&bytes[..n])
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let at = |at: usize, text: &[u8]| bytes.get(at..at + text.len()) == Some(text);
        if at(0, b"\xff\xd8\xff") {
            return Some(Self::Jpeg);
        }
        if at(0, b"RIFF") && at(8, b"WEBP") {
            return Some(Self::Webp);
        }
        let brands = bytes.get(8..).filter(|_| at(4, b"ftyp"))?;
        let has = |brand: &[u8]| brands.chunks_exact(4).any(|found| found == brand);
        // The common brand comes last: `mif1` means HEIF without a codec.
        if has(b"avif") || has(b"avis") {
            return Some(Self::Avif);
        }
        let heic: [&[u8]; 5] = [b"heic", b"heix", b"hevc", b"heim", b"heis"];
        (heic.iter().any(|brand| has(brand)) || brands.starts_with(b"mif1")).then_some(Self::Heic)
    }

    /// Why FFmpeg of version `found` may not open such a file; `None` where nothing is known.
    pub fn beyond(self, found: &str) -> Option<String> {
        let (name, since) = match self {
            Self::Heic => ("HEIC", "7.1"),
            Self::Avif => ("AVIF", "5.1"),
            Self::Jpeg | Self::Webp => return None,
        };
        Some(format!(
            "this FFmpeg {found} cannot read this {name} picture; FFmpeg {since} or newer can"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::Magic;

    #[test]
    fn pictures_are_known_by_their_first_bytes() {
        let heic = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic";
        let avif = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf";
        let mp4 = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41";
        for (bytes, expected) in [
            (&b"\xff\xd8\xff\xe0"[..], Some(Magic::Jpeg)),
            (b"RIFF\x10\0\0\0WEBPVP8 ", Some(Magic::Webp)),
            (heic, Some(Magic::Heic)),
            (avif, Some(Magic::Avif)),
            (mp4, None),
            (b"", None),
        ] {
            assert_eq!(Magic::of_bytes(bytes), expected, "{bytes:?}");
        }
    }
}
