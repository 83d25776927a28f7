//! Refuses addresses (URLs) given for a file, with advice.

use std::path::Path;

use crate::error::{Error, Kind, Result};

/// Schemes of cameras and live streams, which have no end and so cannot be downloaded as a file.
const LIVE: [&str; 7] = ["rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt"];

/// Refuses `path` if no such file exists and it has the form of an address, `scheme://…`.
///
/// # Errors
/// `Usage`, with advice.
pub fn refuse(path: &Path) -> Result<()> {
    let scheme = path.to_str().and_then(scheme);
    let Some(scheme) = scheme.filter(|_| !path.exists()) else {
        return Ok(());
    };
    let message = match LIVE.contains(&scheme.to_ascii_lowercase().as_str()) {
        true => {
            "is the address of a camera or live stream, expected a file: live streams are not read (that will be \
             `longreel serve`); record a part of it first, e.g. ffmpeg -i ADDRESS -c copy -t 60 part.mkv"
        }
        false => "is an address, expected a file: download it first, e.g. curl -LO ADDRESS",
    };
    Err(Error::new(Kind::Usage, message))
}

/// The scheme before `://` (RFC 3986 section 3.1).
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let is_scheme =
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(is_letter);
    is_scheme.then_some(scheme)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::refuse;

    #[test]
    fn only_what_begins_with_a_scheme_is_an_address() {
        for address in [
            "rtsp://cam/1",
            "RTSPS://u:p@cam",
            "http://a/b.mp4",
            "srt://h:1?x=y",
            "s3://b/k",
        ] {
            assert!(refuse(Path::new(address)).is_err(), "{address}");
        }
        for file in [
            "gone.mp4",
            "a://b".strip_prefix('a').unwrap(),
            "dir/http://a",
            "/://",
            "C:/a",
        ] {
            assert!(refuse(Path::new(file)).is_ok(), "{file}");
        }
    }
}
