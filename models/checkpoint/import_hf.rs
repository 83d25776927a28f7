//! Hugging Face LLaMA directories: `config.json` to our specification, and
//! safetensors or torch shards to a model directory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    checkpoint::{
        architecture::{Architecture, ModelKind},
        foreign::View,
        gguf_model::{GgufModel, gguf_of},
        tensor_file,
        weights::{self, Weights},
        writer::{ImportOptions, Planned, Written, check_layout, write_model},
    },
    error::{Context, Error, Kind, Result},
    spec::{
        DecoderSpec, FrameEnd, ModelSpec, ModelType, VqganSpec,
        conv_net::ConvNetSpec,
        default_end_of_frame_id, default_end_of_vision_id,
        encoder::{DualEncoderSpec, VitSpec},
        features::{VisionLanguageSpec, VisionSpec},
        vqgan_alone::VqganAlone,
    },
};

/// The specification of a model directory: our `config.json`, a Hugging Face LLaMA's, or that of its GGUF file ([`gguf_of`]).
///
/// # Errors
/// `BadInput` for a configuration that this program cannot run, naming the key.
pub fn spec_of_directory(dir: &Path) -> Result<ModelSpec> {
    if let Some(file) = gguf_of(dir)? {
        return GgufModel::open(&file)?.spec();
    }
    let config = config_of_directory(dir)?;
    spec_of_json(&config).doing(|| format!("read {}", dir.join("config.json").display()))
}

/// The `config.json` of a model directory, with those of the parts that have folders of their own in their places.
fn config_of_directory(dir: &Path) -> Result<Value> {
    let mut config = read_config(&dir.join("config.json"))?;
    if is_ours(&config) {
        return Ok(config);
    }
    let doing = || format!("read {}", dir.join("config.json").display());
    for (key, folder) in Architecture::of_config(&config).doing(doing)?.parts() {
        config[key.as_str()] = read_config(&dir.join(folder).join("config.json"))?;
    }
    Ok(config)
}

fn read_config(path: &Path) -> Result<Value> {
    let doing = || format!("read {}", path.display());
    let config = config_of(&std::fs::read_to_string(path).doing(doing)?).doing(doing)?;
    if config.is_object() {
        return Ok(config);
    }
    Err(bad("expected an object".into()).doing(doing()))
}

/// The shape of a VQGAN in a directory that has no decoder; `None` for a model of another kind.
///
/// # Errors
/// `BadInput` for a configuration that cannot be read, or a shape that cannot be.
pub fn vqgan_alone_of_directory(dir: &Path) -> Result<Option<VqganSpec>> {
    if gguf_of(dir)?.is_some() {
        return Ok(None);
    }
    let path = dir.join("config.json");
    let config = read_config(&path)?;
    if !is_vqgan_alone(&config) {
        return Ok(None);
    }
    let alone = VqganAlone::from_json(&config.to_string());
    let alone = alone.doing(|| format!("read {}", path.display()))?;
    Ok(Some(alone.vqgan))
}

/// The shape of the VQGAN in a model directory, with a decoder or without.
///
/// # Errors
/// `BadInput` for a model that has none.
pub fn vqgan_of_directory(dir: &Path) -> Result<VqganSpec> {
    let found = match vqgan_alone_of_directory(dir)? {
        Some(spec) => Some(spec),
        None => spec_of_directory(dir)?.vqgan,
    };
    found.ok_or_else(|| {
        bad(format!(
            "the model {} has no VQGAN, expected one that makes codes of frames",
            dir.display()
        ))
    })
}

/// What makes one vector of a picture.
#[derive(Debug, Clone, PartialEq)]
pub enum PictureModelSpec {
    /// CLIP or SigLIP, which makes vectors of texts as well.
    Dual(DualEncoderSpec),
    /// A vision transformer.
    Vit(VitSpec),
    /// A convolutional network.
    ConvNet(ConvNetSpec),
}

/// The specification of a directory with an encoder of pictures; `None` for a model of another kind.
///
/// # Errors
/// `BadInput` for a configuration that this program cannot run, naming the key.
pub fn picture_model_of_directory(dir: &Path) -> Result<Option<PictureModelSpec>> {
    if gguf_of(dir)?.is_some() {
        return Ok(None);
    }
    let path = dir.join("config.json");
    let doing = || format!("read {}", path.display());
    let config = config_of(&std::fs::read_to_string(&path).doing(doing)?).doing(doing)?;
    if is_ours(&config) {
        return Ok(None);
    }
    let architecture = Architecture::of_config(&config).doing(doing)?;
    picture_model(&architecture, &config).doing(doing)
}

fn picture_model(architecture: &Architecture, config: &Value) -> Result<Option<PictureModelSpec>> {
    Ok(Some(match architecture.kind() {
        kind @ ModelKind::DualEncoder => {
            let spec: DualEncoderSpec = architecture.spec(kind, config)?;
            spec.validate()?;
            PictureModelSpec::Dual(spec)
        }
        kind @ ModelKind::Classifier => {
            let spec: VitSpec = architecture.spec(kind, config)?;
            spec.validate("vision")?;
            PictureModelSpec::Vit(spec)
        }
        kind @ ModelKind::ConvNet => PictureModelSpec::ConvNet(architecture.spec(kind, config)?),
        ModelKind::Decoder | ModelKind::VisionLanguage => return Ok(None),
    }))
}

/// The weights of a model directory under the names that they have here.
///
/// # Errors
/// As [`Weights::open`], [`Architecture::of_config`] and [`Weights::renamed`].
pub fn weights_of_directory(dir: &Path) -> Result<Weights> {
    if let Some(file) = gguf_of(dir)? {
        return GgufModel::open(&file)?.weights();
    }
    let config = config_of_directory(dir)?;
    if is_ours(&config) {
        return Weights::open(dir);
    }
    let doing = || format!("read {}", dir.join("config.json").display());
    let architecture = Architecture::of_config(&config).doing(doing)?;
    let weights = match architecture.parts() {
        none if none.is_empty() => Weights::open(dir)?,
        parts => Weights::open_parts(dir, parts.values())?,
    };
    weights.renamed(&architecture.keys()?)
}

fn config_of(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::with_source(Kind::BadInput, "not JSON", e))
}

/// Whether a `config.json` was written by [`ModelSpec::to_json`] or [`VqganAlone::to_json`].
fn is_ours(config: &Value) -> bool {
    config.get("decoder").is_some() || is_vqgan_alone(config)
}

fn is_vqgan_alone(config: &Value) -> bool {
    config["model_type"] == "vqgan" && config["vqgan"].is_object()
}

/// The specification that the text of a `config.json` gives.
///
/// # Errors
/// See [`spec_of_directory`].
pub fn spec_of_config(text: &str) -> Result<ModelSpec> {
    spec_of_json(&config_of(text)?)
}

fn spec_of_json(config: &Value) -> Result<ModelSpec> {
    if is_vqgan_alone(config) {
        let message = "it is a VQGAN alone, expected a model that answers in words";
        return Err(bad(message.into()));
    }
    if is_ours(config) {
        return ModelSpec::from_json(&config.to_string());
    }
    let architecture = Architecture::of_config(config)?;
    let (model_type, decoder, vision) = parts(&architecture, config)?;
    let spec = ModelSpec {
        model_type,
        description: config
            .get("_name_or_path")
            .and_then(Value::as_str)
            .map(str::to_owned),
        decoder,
        vqgan: None,
        vision,
        frame_end: FrameEnd::Upstream,
        end_of_frame_id: default_end_of_frame_id(),
        end_of_vision_id: default_end_of_vision_id(),
    };
    spec.validate()?;
    Ok(spec)
}

/// The family, the decoder, and what it reads beside text.
fn parts(
    architecture: &Architecture,
    config: &Value,
) -> Result<(ModelType, DecoderSpec, Option<VisionSpec>)> {
    match architecture.kind() {
        ModelKind::VisionLanguage => {
            let spec: VisionLanguageSpec = architecture.spec(ModelKind::VisionLanguage, config)?;
            let (decoder, vision) = spec.into_parts();
            Ok((ModelType::VisionLanguage, decoder, Some(vision)))
        }
        ModelKind::Decoder => {
            let decoder = architecture.spec(ModelKind::Decoder, config)?;
            Ok((ModelType::Llama, decoder, None))
        }
        kind => Err(bad(format!(
            "{} is a {kind:?}, expected a model that answers in words",
            config["model_type"]
        ))),
    }
}

/// Imports the Hugging Face LLaMA directory `dir` to the model directory `out`.
///
/// Names and layouts stay as they are; what changes is the configuration, the
/// container of torch shards, and the element type if one is asked for.
///
/// # Errors
/// `BadInput` for an unsupported configuration and for unknown, missing,
/// repeated or misshapen tensors; see [`write_model`] for the rest.
pub fn import_hf(dir: &Path, out: &Path, options: ImportOptions) -> Result<Written> {
    let doing = || format!("import {}", dir.display());
    let spec = spec_of_directory(dir).doing(doing)?;
    let mut found = tensors_of(dir).doing(doing)?;
    if spec.decoder.tie_word_embeddings {
        // Some writers store the tied head a second time.
        found.remove("lm_head.weight");
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

/// The tensors in the order of the layout, so that a shard holds neighbours.
fn in_model_order(spec: &ModelSpec, mut tensors: Vec<Planned>) -> Vec<Planned> {
    let order: BTreeMap<String, usize> = crate::checkpoint::layout::model_tensors(spec)
        .into_iter()
        .enumerate()
        .map(|(i, (name, _))| (name, i))
        .collect();
    tensors.sort_by_key(|t| order.get(&t.name).copied());
    tensors
}

fn tensors_of(dir: &Path) -> Result<BTreeMap<String, View>> {
    let mut paths = weights::weight_files(dir)?;
    if paths.is_empty() {
        paths = files(dir, "bin")?;
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
            return Err(bad(format!("tensor {name} is in more than one place")));
        }
        found.insert(name, view);
    }
    Ok(())
}

/// The weight files of `dir` with this extension, sorted; other `.bin` files (optimizer, arguments) are none.
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
