//! The folder of a run: its configuration, its figures, and the last checkpoint, which is there whole or not at all.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor, safetensors};
use longreel_models::training::parameters::ByName;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Context, Error, Kind, Result},
    sources::temporary::write_whole,
};

/// A checkpoint read back: where the run stood, and files of tensors.
pub struct Checkpoint<S> {
    /// What stands in `state.json`.
    pub standing: S,
    path: PathBuf,
}

impl<S> Checkpoint<S> {
    /// The tensors of one of its files.
    ///
    /// # Errors
    /// `BadInput` for a file that cannot be read.
    pub fn tensors(&self, file: &str) -> Result<ByName> {
        let path = self.path.join(file);
        let read = || Ok::<_, Error>(safetensors::load(&path, &Device::Cpu)?);
        let loaded = read().doing(|| format!("read the checkpoint {}", path.display()))?;
        Ok(loaded.into_iter().collect())
    }
}

/// The folder of a run.
pub struct RunDirectory(PathBuf);

impl RunDirectory {
    /// Makes the folder, or finds what an earlier run left there.
    ///
    /// # Errors
    /// `Usage` where it holds another configuration than `config`.
    pub fn open(path: &Path, config: &str) -> Result<Self> {
        let doing = || format!("open the run {}", path.display());
        fs::create_dir_all(path).doing(doing)?;
        let run = Self(path.to_owned());
        let written = path.join("config.toml");
        match fs::read_to_string(&written) {
            Ok(text) if text == config => {}
            Ok(_other) => {
                let message =
                    "it was begun with another configuration, expected the same or an empty folder";
                return Err(Error::new(Kind::Usage, message).doing(doing()));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                write_whole(&written, config.as_bytes()).doing(doing)?;
            }
            Err(error) => return Err(error).doing(doing),
        }
        Ok(run)
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where the trained model is written.
    pub fn model(&self) -> PathBuf {
        self.0.join("model")
    }

    /// The last checkpoint, if there is one.
    ///
    /// # Errors
    /// `BadInput` for one that cannot be read.
    pub fn checkpoint<S: DeserializeOwned>(&self) -> Result<Option<Checkpoint<S>>> {
        let read = |path: PathBuf| {
            let doing = || format!("read the checkpoint {}", path.display());
            let text = fs::read_to_string(path.join("state.json")).doing(doing)?;
            let standing = serde_json::from_str(&text)
                .map_err(|e| Error::with_source(Kind::BadInput, "read state.json", e))
                .doing(doing)?;
            Ok(Checkpoint { standing, path })
        };
        self.newest()?.map(read).transpose()
    }

    /// Writes a checkpoint of `files` behind `step` beside the last one, then removes that.
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
        let doing = || format!("write the checkpoint {}", self.0.join(&name).display());
        let last = self.newest()?;
        let partial = self.0.join(format!(".{name}.partial"));
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
            fs::rename(&partial, self.0.join(&name))?;
            Ok(())
        };
        let written = write().doing(doing);
        if written.is_err() {
            // What is left of it only takes place; the last checkpoint is whole.
            let _ = fs::remove_dir_all(&partial);
        }
        written?;
        match last.filter(|last| *last != self.0.join(&name)) {
            Some(last) => remove(&last).doing(doing),
            None => Ok(()),
        }
    }

    /// The checkpoint of most steps.
    fn newest(&self) -> Result<Option<PathBuf>> {
        let mut newest: Option<(u64, PathBuf)> = None;
        for entry in fs::read_dir(&self.0)? {
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

fn save(tensors: &ByName, path: &Path) -> Result<()> {
    let map: HashMap<String, Tensor> = tensors.clone().into_iter().collect();
    Ok(safetensors::save(&map, path)?)
}

/// Has the files of `folder` on the disk before they get their name.
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
