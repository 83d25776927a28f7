//! A VQGAN's training as written: `configs/train/*-vqgan.toml`.

use std::path::{Path, PathBuf};

use longreel_models::training::vqgan::options::VqganOptions;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Result},
    sources::sampler::parse_rate,
    train::config::{a_hundred, bad},
};

/// Most frames, steps or pictures that a file may ask for.
const MOST: u64 = 1 << 40;

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqganConfig {
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where the network comes from.
    pub model: VqganModelConfig,
    /// What it learns from.
    pub data: VqganDataConfig,
    /// Steps in all.
    pub steps: u64,
    /// Of the first weights, and of the order of frames.
    #[serde(default)]
    pub seed: u64,
    /// A checkpoint every so many steps.
    #[serde(default = "a_hundred")]
    pub checkpoint_every: u64,
    /// The held-out frames are looked at every so many steps.
    #[serde(default = "a_hundred")]
    pub evaluate_every: u64,
    /// Losses, optimizer, learning rate, codebook.
    pub recipe: VqganOptions,
}

/// Where a network comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqganModelConfig {
    /// A model file with a VQGAN: random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PathBuf>,
    /// A model directory, whose VQGAN is trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

/// What a network learns from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqganDataConfig {
    /// Videos or pictures, or folders of them.
    pub train: Vec<PathBuf>,
    /// Held-out ones.
    #[serde(default)]
    pub held_out: Vec<PathBuf>,
    /// Frames that are taken of a second.
    #[serde(default = "one_a_second")]
    pub fps: String,
    /// Most frames of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames_max: Option<u64>,
    /// Frames of a step.
    pub batch: usize,
}

fn one_a_second() -> String {
    "1".to_owned()
}

impl VqganConfig {
    /// Reads the file at `path`; paths in it are relative to its folder.
    ///
    /// # Errors
    /// `BadInput` for an unknown key or a value outside its range.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("read {}", path.display());
        let text = std::fs::read_to_string(path).doing(doing)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::from_toml(&text)
            .doing(doing)
            .map(|c| c.inside(folder))
    }

    /// Parses and checks the text of such a file.
    ///
    /// # Errors
    /// As [`VqganConfig::open`].
    pub fn from_toml(text: &str) -> Result<Self> {
        let config: Self =
            toml::from_str(text).map_err(|e| bad(e.to_string().trim_end().replace('\n', " ")))?;
        config.validate()?;
        Ok(config)
    }

    fn inside(mut self, folder: &Path) -> Self {
        let single = [&mut self.model.spec, &mut self.model.init];
        let data = self.data.train.iter_mut().chain(&mut self.data.held_out);
        for path in single.into_iter().flatten().chain(data) {
            let inside = folder.join(&*path);
            *path = std::path::absolute(&inside).unwrap_or(inside);
        }
        self
    }

    /// # Errors
    /// `BadInput` naming the key, its value and what it may be.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("steps", self.steps),
            ("checkpoint_every", self.checkpoint_every),
            ("evaluate_every", self.evaluate_every),
            ("data.frames_max", self.data.frames_max.unwrap_or(1)),
            ("data.batch", self.data.batch as u64),
        ];
        for (key, value) in counts {
            if !(1..=MOST).contains(&value) {
                return Err(bad(format!("{key} is {value}, expected 1 to {MOST}")));
            }
        }
        if self.data.train.is_empty() {
            return Err(bad("data.train is empty, expected at least one file".into()));
        }
        parse_rate(&self.data.fps).doing(|| "data.fps")?;
        self.recipe.validate().doing(|| "recipe")?;
        match (&self.model.spec, &self.model.init) {
            (Some(_), Some(_)) | (None, None) => Err(bad(
                "model.spec and model.init: expected exactly one of them".into(),
            )),
            _ => Ok(()),
        }
    }
}
