//! An unfinished file of lines: a head that identifies the job, then the lines so far.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use longreel_models::file_name::FileName;
use serde_json::Value;

use crate::{
    error::{Context, Error, Kind, Result},
    reel::partial_path,
    sources::temporary::{persist, temporary_beside},
};

/// What to do with lines of another job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherJob {
    /// Replace them.
    IsReplaced,
    /// Keep them and refuse to run.
    IsRefused,
}

impl OtherJob {
    /// Replaced with `--force`.
    pub fn of(force: bool) -> Self {
        match force {
            true => Self::IsReplaced,
            false => Self::IsRefused,
        }
    }
}

/// The lines so far, beside the file that they will become.
pub struct UnfinishedFile {
    path: PathBuf,
    file: File,
}

/// The intact part of a file.
#[derive(Default)]
struct IntactPart {
    /// Its end in bytes; 0 where the file has another head.
    end: u64,
    /// Whether the file has lines of another job.
    is_of_another: bool,
}

impl UnfinishedFile {
    /// Opens the lines beside `out` that an earlier run wrote with the same `head`.
    ///
    /// Lines come in groups, whose last line `is_last` recognizes; `keep` receives every complete group, and the rest
    /// is truncated.
    ///
    /// # Errors
    /// `Io` where writing fails, `Usage` for lines of another job that must not be replaced.
    pub fn open(
        out: &Path,
        head: &Value,
        other: OtherJob,
        is_last: &dyn Fn(&Value) -> bool,
        keep: &mut dyn FnMut(&[Value]),
    ) -> Result<Self> {
        let path = partial_path(out);
        let doing = || format!("open {}", path.shown());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).doing(doing)?;
        let found = found(&file, head, is_last, keep).doing(doing)?;
        if found.is_of_another && other == OtherJob::IsRefused {
            let message = "it belongs to another job, expected the same input, model and options (--force replaces it)";
            return Err(Error::new(Kind::Usage, message).doing(doing()));
        }
        file.set_len(found.end).doing(doing)?;
        file.seek(SeekFrom::Start(found.end)).doing(doing)?;
        let mut partial = Self { path, file };
        if found.end == 0 {
            partial.append(std::slice::from_ref(head))?;
        }
        Ok(partial)
    }

    /// Appends lines.
    ///
    /// # Errors
    /// `Io` where that fails.
    pub fn append(&mut self, lines: &[Value]) -> Result<()> {
        let written = self.file.write_all(text_of(lines).as_bytes());
        written.doing(|| format!("write {}", self.path.shown()))
    }

    /// Renames the file to `out`.
    ///
    /// # Errors
    /// `Io` where that fails; the unfinished file stays.
    pub fn finish(mut self, out: &Path) -> Result<()> {
        let doing = || format!("write {}", out.shown());
        self.file.rewind().doing(doing)?;
        let mut lines = BufReader::new(&self.file);
        lines.skip_until(b'\n').doing(doing)?;
        let mut whole = temporary_beside(out, "").doing(doing)?;
        io::copy(&mut lines, &mut whole).doing(doing)?;
        persist(whole, out)?;
        self.remove()
    }

    /// Writes `lines`, which were made of the unfinished ones, to `out`.
    ///
    /// # Errors
    /// `Io` where that fails; the unfinished file stays.
    pub fn finish_as(self, lines: &[Value], out: &Path) -> Result<()> {
        let doing = || format!("write {}", out.shown());
        let mut whole = temporary_beside(out, "").doing(doing)?;
        for line in lines {
            whole
                .write_all(format!("{line}\n").as_bytes())
                .doing(doing)?;
        }
        persist(whole, out)?;
        self.remove()
    }

    /// Removes the unfinished file.
    ///
    /// # Errors
    /// `Io` where that fails.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).doing(|| format!("remove {}", self.path.shown()))
    }
}

fn text_of(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn found(
    file: &File,
    head: &Value,
    is_last: &dyn Fn(&Value) -> bool,
    keep: &mut dyn FnMut(&[Value]),
) -> Result<IntactPart> {
    let mut reader = BufReader::new(file);
    // Bytes, not text: a line may be cut off inside a character.
    let mut text = Vec::new();
    let mut next = || -> Result<Option<(Value, u64)>> {
        text.clear();
        let bytes = reader.read_until(b'\n', &mut text)? as u64;
        let is_whole = text.ends_with(b"\n");
        let value = serde_json::from_slice(&text).ok().filter(|_| is_whole);
        Ok(value.map(|value| (value, bytes)))
    };
    let mut end = match next()? {
        Some((value, bytes)) if value == *head => bytes,
        Some(_) => {
            let is_of_another = next()?.is_some();
            return Ok(IntactPart {
                end: 0,
                is_of_another,
            });
        }
        None => return Ok(IntactPart::default()),
    };
    let (mut group, mut bytes_of_group) = (Vec::new(), 0);
    while let Some((line, bytes)) = next()? {
        bytes_of_group += bytes;
        let is_whole = is_last(&line);
        group.push(line);
        if is_whole {
            keep(&group);
            end += bytes_of_group;
            group.clear();
            bytes_of_group = 0;
        }
    }
    Ok(IntactPart {
        end,
        is_of_another: false,
    })
}
