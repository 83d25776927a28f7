//! The folder of a run: configuration, metrics, and the last checkpoint, which is complete or absent.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use candle_core::Device;
use longreel_models::{file_name::FileName, training::parameters::ByName};
use safetensors::SafeTensorError;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Context, Error, Kind, Result},
    sources::temporary::write_whole,
};

/// The folder of a run, locked against other processes.
pub struct RunDirectory {
    path: PathBuf,
    /// Unlocked when it is closed, however the process ends.
    _lock: File,
}

impl RunDirectory {
    /// Creates the folder, or opens that of an earlier run. A configuration without results is replaced.
    ///
    /// # Errors
    /// `Usage` where it holds results of another configuration than `config`, or another process trains in it.
    pub fn open(path: &Path, config: &str) -> Result<Self> {
        let doing = || format!("open the run {}", path.shown());
        fs::create_dir_all(path).doing(doing)?;
        let lock = File::open(path).doing(doing)?;
        // A file system without locks must not prevent training.
        if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            let message = "another process trains in it, expected none";
            return Err(Error::new(Kind::Usage, message).doing(doing()));
        }
        let run = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        let written = path.join("config.toml");
        match fs::read_to_string(&written) {
            Ok(text) if text == config => {}
            Ok(_other) if !is_alone(&written).doing(doing)? => {
                let message =
                    "it was begun with another configuration, expected the same or an empty folder";
                return Err(Error::new(Kind::Usage, message).doing(doing()));
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).doing(doing);
            }
            _ => write_whole(&written, config.as_bytes()).doing(doing)?,
        }
        Ok(run)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory of the trained model.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// The last checkpoint, if there is one: the run's progress, and the tensors of `files`.
    ///
    /// # Errors
    /// `BadInput` for one that cannot be read.
    pub fn checkpoint<S: DeserializeOwned, const N: usize>(
        &self,
        files: [&str; N],
    ) -> Result<Option<(S, [ByName; N])>> {
        let Some(path) = self.newest()? else {
            return Ok(None);
        };
        let doing = || format!("read the checkpoint {}", path.shown());
        let text = fs::read_to_string(path.join("state.json")).doing(doing)?;
        let standing = serde_json::from_str(&text)
            .map_err(|e| Error::with_source(Kind::BadInput, "read state.json", e))
            .doing(doing)?;
        let mut tensors = [const { ByName::new() }; N];
        for (tensors, name) in tensors.iter_mut().zip(files) {
            let loaded = candle_core::safetensors::load(path.join(name), &Device::Cpu);
            *tensors = loaded
                .map_err(Error::from)
                .doing(doing)?
                .into_iter()
                .collect();
        }
        Ok(Some((standing, tensors)))
    }

    /// Writes the checkpoint of step `step` beside the last one, then removes the last one.
    ///
    /// # Errors
    /// `Io` where writing fails: the last checkpoint stays.
    pub fn write_checkpoint(
        &self,
        step: u64,
        standing: &impl Serialize,
        files: &[(&str, &ByName)],
    ) -> Result<()> {
        let name = format!("checkpoint-{step}");
        let doing = || format!("write the checkpoint {}", self.path.join(&name).shown());
        let last = self.newest()?;
        let partial = self.path.join(format!(".{name}.partial"));
        let write = || -> Result<()> {
            remove(&partial)?;
            fs::create_dir(&partial)?;
            for (file, tensors) in files {
                save(tensors, &partial.join(file))?;
            }
            let state = serde_json::to_string(standing)
                .map_err(|e| Error::with_source(Kind::Internal, "write state.json", e))?;
            fs::write(partial.join("state.json"), state)?;
            sync(&partial)?;
            fs::rename(&partial, self.path.join(&name))?;
            Ok(())
        };
        let written = write().doing(doing);
        if written.is_err() {
            // The rest only takes space; the last checkpoint is complete.
            let _ = fs::remove_dir_all(&partial);
        }
        written?;
        match last.filter(|last| *last != self.path.join(&name)) {
            Some(last) => remove(&last).doing(doing),
            None => Ok(()),
        }
    }

    /// The checkpoint of most steps.
    fn newest(&self) -> Result<Option<PathBuf>> {
        let mut newest: Option<(u64, PathBuf)> = None;
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let step = name.and_then(|n| n.strip_prefix("checkpoint-")?.parse().ok());
            if let Some(step) = step
                && newest.as_ref().is_none_or(|(most, _)| step > *most)
            {
                newest = Some((step, path));
            }
        }
        Ok(newest.map(|(_, path)| path))
    }
}

/// Whether `file` is alone in its folder.
fn is_alone(file: &Path) -> Result<bool> {
    for entry in fs::read_dir(file.parent().unwrap_or(Path::new("")))? {
        if entry?.path() != file {
            return Ok(false);
        }
    }
    Ok(true)
}

fn save(tensors: &ByName, path: &Path) -> Result<()> {
    match safetensors::serialize_to_file(tensors, None, path) {
        Err(SafeTensorError::IoError(error)) => Err(error.into()),
        Err(error) => {
            let message = "give the tensors to a file";
            Err(Error::with_source(Kind::Internal, message, error))
        }
        Ok(()) => Ok(()),
    }
}

/// Flushes the files of `folder` to the disk before they are renamed.
fn sync(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        File::open(entry?.path())?.sync_all()?;
    }
    Ok(File::open(folder)?.sync_all()?)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
