//! Configuration of a VQGAN's training.

use std::path::PathBuf;

use longreel_models::{
    file_name::FileName,
    spec::{
        VqganSpec,
        system::{Need, SystemSpec, refusal},
    },
    systems,
    training::vqgan::options::VqganOptions,
};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    error::{Context, Result},
    sources::sampler::{Rate, parse_rate},
    train::config_file::{ConfigFile, MOST, a_hundred, bad, check_counts},
};

/// Maximum pictures of a batch: all are in memory with their saved activations.
const BATCH_MOST: u64 = 1 << 16;

/// The configuration of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqganConfig {
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Total steps.
    pub steps: u64,
    /// Seed of the initial weights, of the order of frames, and of restarts.
    #[serde(default)]
    pub seed: u64,
    /// Steps between checkpoints.
    #[serde(default = "a_hundred")]
    pub checkpoint_every: u64,
    /// Steps between evaluations of the held-out frames.
    #[serde(default = "a_hundred")]
    pub evaluate_every: u64,
    /// Where the network comes from.
    pub model: VqganModelConfig,
    /// The training data.
    pub data: FramesConfig,
    /// Losses, optimizer, learning rate, codebook.
    #[serde(default)]
    pub recipe: VqganOptions,
}

/// The VQGAN to train: exactly one of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqganModelConfig {
    /// A model file with a `[vqgan]` table: random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PathBuf>,
    /// A model directory whose VQGAN is trained further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Its specification: random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vqgan: Option<VqganSpec>,
}

/// The training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FramesConfig {
    /// Videos, or folders of videos.
    pub train: Vec<PathBuf>,
    /// Held-out videos or folders.
    #[serde(default)]
    pub held_out: Vec<PathBuf>,
    /// Frames per second, as a number or a fraction.
    #[serde(default = "one_a_second", deserialize_with = "rate_text")]
    pub fps: String,
    /// Maximum frames of all videos of a list; further ones are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames_max: Option<u64>,
    /// Frames per step.
    pub batch: usize,
    /// Share of the frames of a step, 0 to 1, that exchange their cells: a code then depends only on
    /// its own cell, which a decoder learns to read from fewer examples.
    #[serde(default, skip_serializing_if = "is_none")]
    pub mosaic: f64,
}

/// Zero is not serialized, so that configurations of earlier runs stay equal.
fn is_none(share: &f64) -> bool {
    *share == 0.0
}

fn one_a_second() -> String {
    "1".to_owned()
}

/// `fps = 1`, `fps = 0.5` and `fps = "30000/1001"`.
fn rate_text<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number, or a fraction as a text")]
    enum AsWritten {
        Whole(u64),
        Decimal(f64),
        Text(String),
    }
    Ok(match AsWritten::deserialize(deserializer)? {
        AsWritten::Whole(n) => n.to_string(),
        AsWritten::Decimal(x) => x.to_string(),
        AsWritten::Text(text) => text,
    })
}

impl ConfigFile for VqganConfig {
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let single = [&mut self.model.spec, &mut self.model.init];
        let data = self.data.train.iter_mut().chain(&mut self.data.held_out);
        let perceptual = self.recipe.perceptual.iter_mut();
        let perceptual = perceptual.flat_map(|p| [&mut p.vgg, &mut p.lpips]);
        let single = single.into_iter().flatten();
        single.chain(data).chain(perceptual).collect()
    }

    fn validate(&self) -> Result<()> {
        let (model, data) = (&self.model, &self.data);
        let counts = [
            ("steps", self.steps, MOST),
            ("checkpoint_every", self.checkpoint_every, MOST),
            ("evaluate_every", self.evaluate_every, MOST),
            ("data.batch", data.batch as u64, BATCH_MOST),
            ("data.frames_max", data.frames_max.unwrap_or(1), MOST),
        ];
        check_counts(&counts)?;
        if data.train.is_empty() {
            let message = "data.train is empty, expected at least one video or folder";
            return Err(bad(message.into()));
        }
        if !(0.0..=1.0).contains(&data.mosaic) {
            let mosaic = data.mosaic;
            return Err(bad(format!("data.mosaic is {mosaic}, expected 0 to 1")));
        }
        self.rate()?;
        let sources = [
            model.spec.is_some(),
            model.init.is_some(),
            model.vqgan.is_some(),
        ];
        if sources.into_iter().filter(|&is_there| is_there).count() != 1 {
            let message = "model.spec, model.init and [model.vqgan]: expected exactly one of them";
            return Err(bad(message.into()));
        }
        if let Some(vqgan) = &model.vqgan {
            vqgan.validate().doing(|| "model.vqgan")?;
        }
        if self.recipe.seed != 0 {
            let seed = self.recipe.seed;
            let message = format!("recipe.seed is {seed}, expected none: `seed` is the only seed");
            return Err(bad(message));
        }
        self.recipe.validate().doing(|| "recipe")
    }
}

impl VqganConfig {
    /// Frames per second.
    ///
    /// # Errors
    /// `BadInput` for a text that is not a rate.
    pub fn rate(&self) -> Result<Rate> {
        parse_rate(&self.data.fps).map_err(|e| bad(format!("data.fps: {e}")))
    }

    /// The trainer's options: the recipe, with the run's seed.
    pub fn options(&self) -> VqganOptions {
        VqganOptions {
            seed: self.seed,
            ..self.recipe.clone()
        }
    }

    /// The specification of the network.
    ///
    /// # Errors
    /// `BadInput` for a file or a directory without one.
    pub fn shape(&self) -> Result<VqganSpec> {
        match (&self.model.vqgan, &self.model.spec, &self.model.init) {
            (Some(vqgan), ..) => Ok(vqgan.clone()),
            (_, Some(path), _) => {
                let doing = || format!("read {}", path.shown());
                let text = std::fs::read_to_string(path).doing(doing)?;
                let spec = SystemSpec::from_toml(&text).doing(doing)?;
                let name = path.shown().to_string();
                let vqgan = spec.vqgan().cloned();
                vqgan.ok_or_else(|| refusal(&name, spec.kind(), Need::Codes))
            }
            (.., Some(dir)) => systems::open(dir)?.vqgan().cloned(),
            _ => Err(bad("the model is missing, expected one".into())),
        }
    }
}
