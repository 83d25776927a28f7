//! Configuration of a training stage: `configs/train/*.toml`.

use std::path::PathBuf;

use longreel_models::training::{
    data::{
        batch::{BatchLayout, PadRule},
        example::FieldsOf,
    },
    trainer::TrainingRecipe,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Result},
    train::config_file::{ConfigFile, MOST, a_hundred, bad, check_counts},
};

/// Maximum tokens of a row.
const ROW_MOST: u64 = 1 << 24;

/// Maximum tokens of a batch, which is in memory as a whole.
const BATCH_MOST: u64 = 1 << 28;

/// One training stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where the network comes from.
    pub model: ModelConfig,
    /// The training data.
    pub data: DataConfig,
    /// Total steps.
    pub steps: u64,
    /// Seed of the initial weights and of the order of lines.
    #[serde(default)]
    pub seed: u64,
    /// Steps between checkpoints.
    #[serde(default = "a_hundred")]
    pub checkpoint_every: u64,
    /// Steps between evaluations of the held-out lines.
    #[serde(default = "a_hundred")]
    pub evaluate_every: u64,
    /// Loss, optimizer, learning rate.
    pub recipe: TrainingRecipe,
}

/// The network to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A model file: random weights, or those of `init`, with random ones for codes that `init` does not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PathBuf>,
    /// A model directory whose weights are trained further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// A directory with tokenizer.json or tokenizer.model; that of `init` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// A model directory whose VQGAN the trained model keeps; that of `init` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vqgan: Option<PathBuf>,
    /// With random weights: the embedding of each code is a projection of its codebook row, so that codes that look
    /// alike have similar initial embeddings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub codes_from_codebook: bool,
    /// RoPE theta in place of the model's; longer contexts take larger ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Maximum context in place of the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_position_embeddings: Option<usize>,
    /// Standard deviation of random weights (`initializer_range`).
    #[serde(default = "initializer_range")]
    pub initializer_range: f32,
}

/// The training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Lines of JSON.
    pub train: Vec<PathBuf>,
    /// Held-out lines.
    #[serde(default)]
    pub held_out: Vec<PathBuf>,
    /// The same fields for all lines, e.g. `[question],[vision],answer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<String>,
    /// The key under which each line lists its fields.
    #[serde(default = "fields_key")]
    pub fields_key: String,
    /// How examples become rows.
    pub dealing: BatchLayout,
    /// Loss alignment of padded rows.
    #[serde(default)]
    pub pad_rule: PadRule,
    /// Tokens per row.
    pub seq_length: usize,
    /// Rows per batch.
    pub rows: usize,
    /// Batches per step (gradient accumulation).
    #[serde(default = "one")]
    pub batches_per_step: usize,
    /// Maximum frames of a vision field, spread evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_frames_max: Option<usize>,
    /// Shuffles lines in every pass; when false they keep their order, as upstream.
    #[serde(default)]
    pub shuffle: bool,
}

fn one() -> usize {
    1
}

fn initializer_range() -> f32 {
    0.02
}

fn fields_key() -> String {
    "fields".to_owned()
}

impl ConfigFile for TrainConfig {
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let model = &mut self.model;
        let single = [
            &mut model.spec,
            &mut model.init,
            &mut model.tokenizer,
            &mut model.vqgan,
        ];
        let data = self.data.train.iter_mut().chain(&mut self.data.held_out);
        single.into_iter().flatten().chain(data).collect()
    }

    fn validate(&self) -> Result<()> {
        let data = &self.data;
        let counts = [
            ("steps", self.steps),
            ("checkpoint_every", self.checkpoint_every),
            ("evaluate_every", self.evaluate_every),
            ("data.batches_per_step", data.batches_per_step as u64),
            ("data.n_frames_max", data.n_frames_max.unwrap_or(1) as u64),
        ];
        check_counts(&counts.map(|(key, n)| (key, n, MOST)))?;
        let (rows, row) = (data.rows as u64, data.seq_length as u64);
        check_counts(&[("data.seq_length", row, ROW_MOST)])?;
        check_counts(&[("data.rows", rows, BATCH_MOST / row)])?;
        if data.train.is_empty() {
            return Err(bad("data.train is empty, expected at least one file".into()));
        }
        let model = &self.model;
        if model.codes_from_codebook && (model.spec.is_none() || model.vqgan.is_none()) {
            return Err(bad(
                "model.codes_from_codebook is true, expected model.spec and model.vqgan with it"
                    .into(),
            ));
        }
        let spread = self.model.initializer_range;
        if !(spread.is_finite() && spread > 0.0) {
            return Err(bad(format!(
                "model.initializer_range is {spread}, expected more than 0"
            )));
        }
        self.recipe
            .schedule
            .validate()
            .doing(|| "recipe.schedule")?;
        match (&self.model.spec, &self.model.init, &self.model.tokenizer) {
            (None, None, _) => Err(bad(
                "model.spec and model.init are missing, expected one of them".into(),
            )),
            (Some(_), None, None) => Err(bad(
                "model.tokenizer is missing, expected one for random weights".into(),
            )),
            _ => Ok(()),
        }
    }
}

impl TrainConfig {
    /// Where the fields of lines are listed.
    pub fn fields(&self) -> FieldsOf {
        match &self.data.fields {
            Some(fields) => FieldsOf::All(fields.clone()),
            None => FieldsOf::Line(self.data.fields_key.clone()),
        }
    }
}
