//! Model folders, opened.

use std::{path::Path, sync::Arc};

use longreel_models::{
    checkpoint::weights::Weights,
    error::Result,
    spec::{ModelSpec, processor::ProcessorFolder},
    systems::{self, System},
};

/// What is in `dir`.
pub fn system(dir: &Path) -> Arc<System> {
    Arc::new(systems::open(dir).unwrap())
}

/// What the answering model in `dir` is made of.
pub fn answering(dir: &Path) -> Result<ModelSpec> {
    systems::open(dir)?.answering().cloned()
}

/// The tensors of the model in `dir`.
pub fn weights(dir: &Path) -> Result<Weights> {
    systems::open(dir)?.weights()
}

/// How `dir`, which need be no whole model, prepares pictures.
pub fn processor(dir: &Path) -> ProcessorFolder {
    let text = std::fs::read_to_string(dir.join("config.json")).ok();
    let config = text.map(|text| serde_json::from_str(&text).unwrap());
    ProcessorFolder::new(dir, config.as_ref()).unwrap()
}
