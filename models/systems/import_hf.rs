//! Imports Hugging Face directories of decoders, with safetensors or torch shards, to a model directory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    checkpoint::{
        foreign::View,
        layout::model_tensors,
        tensor_file, weight_files, weights,
        writer::{ImportOptions, ImportReport, Planned, check_layout, write_model},
    },
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    spec::{DecoderSpec, ModelSpec},
    systems::{
        self,
        tied_head::{HEAD, TABLE, TiedHead},
    },
};

/// Imports the Hugging Face LLaMA directory `dir` to the model directory `out`.
///
/// Names and layouts stay as they are; what changes is the configuration, the
/// container of torch shards, and the element type if requested.
///
/// # Errors
/// `BadInput` for an unsupported configuration and for unknown, missing,
/// repeated or misshapen tensors; see [`write_model`] for the rest.
pub fn import_hf(dir: &Path, out: &Path, options: ImportOptions) -> Result<ImportReport> {
    let doing = || format!("import {}", dir.shown());
    let system = systems::open(dir).doing(doing)?;
    let mut spec = system.answering()?.clone();
    let mut found = tensors_of(dir).doing(doing)?;
    if spec.decoder.tie_word_embeddings {
        settle_head(&mut spec.decoder, &mut found).doing(doing)?;
    }
    let tensors: Vec<Planned> = found
        .into_iter()
        .map(|(name, view)| Planned {
            shape: view.shape().to_vec(),
            name,
            view,
        })
        .collect();
    check_layout(&spec, &tensors).doing(doing)?;
    write_model(out, &spec, &in_model_order(&spec, tensors), dir, options)
}

/// [`tied_head::settle`] of tensors that are not mapped weights: torch files have the tied head a second time.
fn settle_head(spec: &mut DecoderSpec, found: &mut BTreeMap<String, View>) -> Result<()> {
    let values = |name: &str| found.get(name).map(View::to_f32).transpose();
    let equal = || Ok(values(TABLE)? == values(HEAD)?);
    match TiedHead::of(|name| found.contains_key(name), equal)? {
        TiedHead::Table => {}
        TiedHead::HeadAlone => {
            let head = found.remove(HEAD);
            found.extend(head.map(|head| (TABLE.to_owned(), head)));
        }
        TiedHead::Same => drop(found.remove(HEAD)),
        TiedHead::Different => spec.tie_word_embeddings = false,
    }
    Ok(())
}

/// The tensors in the order of the layout, so that a shard holds adjacent ones.
fn in_model_order(spec: &ModelSpec, mut tensors: Vec<Planned>) -> Vec<Planned> {
    let order: BTreeMap<String, usize> = model_tensors(spec)
        .into_iter()
        .enumerate()
        .map(|(i, (name, _))| (name, i))
        .collect();
    tensors.sort_by_key(|t| order.get(&t.name).copied());
    tensors
}

fn tensors_of(dir: &Path) -> Result<BTreeMap<String, View>> {
    let mut paths = weight_files::weight_files(dir)?;
    if paths.is_empty() {
        let indexed = weight_files::indexed(dir, "pytorch_model.bin.index.json")?;
        paths = indexed.map_or_else(|| files(dir, "bin"), Ok)?;
    }
    let mut found = BTreeMap::new();
    for path in paths {
        add(&mut found, tensor_file::read(&path)?)?;
    }
    if found.is_empty() {
        return Err(bad("no *.safetensors and no pytorch_model*.bin file".into()));
    }
    Ok(found)
}

fn add(found: &mut BTreeMap<String, View>, tensors: Vec<(String, View)>) -> Result<()> {
    for (name, view) in tensors {
        if weights::is_derived(&name) {
            continue;
        }
        if found.contains_key(&name) {
            return Err(bad(format!("tensor {name} is in more than one file")));
        }
        found.insert(name, view);
    }
    Ok(())
}

/// The weight files of `dir` with this extension, sorted, without other `.bin` files (optimizer, arguments).
fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        let named = name.is_some_and(|n| extension != "bin" || n.starts_with("pytorch_model"));
        if named && path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
