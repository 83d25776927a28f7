//! Lines that wait for the last one: what they are made by, then the lines themselves.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    error::{Context, Error, Kind, Result},
    reel::partial_path,
    sources::temporary::{persist, temporary_beside},
};

/// What becomes of lines that another job left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherJob {
    /// They go.
    IsReplaced,
    /// They stay, and the run ends.
    IsRefused,
}

impl OtherJob {
    /// They go where the user says so.
    pub fn of(force: bool) -> Self {
        match force {
            true => Self::IsReplaced,
            false => Self::IsRefused,
        }
    }
}

/// Lines beside the file that they will be.
pub struct UnfinishedFile {
    path: PathBuf,
    file: File,
}

/// What stands whole in a file.
#[derive(Default)]
struct IntactPart {
    /// Where it ends; 0 where the file was made by another head.
    end: u64,
    /// Whether lines of another head stand in it.
    is_of_another: bool,
}

impl UnfinishedFile {
    /// The lines beside `out` that an earlier run wrote by the same `head`.
    ///
    /// Lines stand in groups, of which `is_last` knows the last one; `keep` gets every whole group, and what stands
    /// behind them is cut off.
    ///
    /// # Errors
    /// `Io` where the place cannot be written, `Usage` for lines of a job that is not to be replaced.
    pub fn open(
        out: &Path,
        head: &Value,
        other: OtherJob,
        is_last: &dyn Fn(&Value) -> bool,
        keep: &mut dyn FnMut(&[Value]),
    ) -> Result<Self> {
        let path = partial_path(out);
        let doing = || format!("open {}", path.display());
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

    /// Adds lines behind those that are there.
    ///
    /// # Errors
    /// `Io` where that fails.
    pub fn append(&mut self, lines: &[Value]) -> Result<()> {
        let written = self.file.write_all(text_of(lines).as_bytes());
        written.doing(|| format!("write {}", self.path.display()))
    }

    /// Gives the lines the name `out`.
    ///
    /// # Errors
    /// `Io` where that fails; the lines stay.
    pub fn finish(mut self, out: &Path) -> Result<()> {
        let doing = || format!("write {}", out.display());
        self.file.rewind().doing(doing)?;
        let mut lines = BufReader::new(&self.file);
        lines.skip_until(b'\n').doing(doing)?;
        let mut whole = temporary_beside(out, "").doing(doing)?;
        io::copy(&mut lines, &mut whole).doing(doing)?;
        persist(whole, out)?;
        self.remove()
    }

    /// Writes `lines`, which were made of those that waited, to `out`.
    ///
    /// # Errors
    /// `Io` where that fails; what waited stays.
    pub fn finish_as(self, lines: &[Value], out: &Path) -> Result<()> {
        let doing = || format!("write {}", out.display());
        let mut whole = temporary_beside(out, "").doing(doing)?;
        for line in lines {
            whole
                .write_all(format!("{line}\n").as_bytes())
                .doing(doing)?;
        }
        persist(whole, out)?;
        self.remove()
    }

    /// Takes the waiting lines away.
    ///
    /// # Errors
    /// `Io` where that fails.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).doing(|| format!("remove {}", self.path.display()))
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
    // Bytes: a line may be cut off inside a letter.
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
