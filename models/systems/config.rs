//! The `config.json` of a model directory, read once.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::{
    checkpoint::weights::Weights,
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    folder_file,
    spec::{
        DecoderSpec, FrameEnd, ModelSpec, ModelType, default_end_of_frame_id,
        default_end_of_vision_id,
        features::{VisionLanguageSpec, VisionSpec},
        processor::ProcessorFolder,
        system::SystemSpec,
        vqgan_alone::VqganAlone,
    },
    systems::{
        architecture::{Architecture, ModelKind},
        refused_folder::{adapter_beside, check_quantization, no_configuration},
        rope_parameters::standardize,
    },
};

/// A `config.json` and the program that wrote it.
pub struct Config {
    path: PathBuf,
    json: Json,
    writer: ConfigWriter,
    warnings: Vec<String>,
}

/// Maximum bytes of a configuration.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The program that wrote a configuration.
enum ConfigWriter {
    /// This program, for a model that answers questions.
    Ours,
    /// This program, for a VQGAN without a decoder.
    OursVqgan,
    /// Another program, for a known architecture.
    Other(Box<Architecture>),
}

impl Config {
    /// The configuration of the directory `dir`; those of parts in directories of their own are inserted under their keys.
    ///
    /// # Errors
    /// `NotFound` without `config.json`, `BadInput` for anything but a configuration of a known architecture.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let json = whole_model(dir)?;
        let mut config = Self::of_json(json, path)?;
        config.warnings.extend(adapter_beside(dir));
        if let ConfigWriter::Other(architecture) = &config.writer {
            for (key, folder) in architecture.parts() {
                config.json[key.as_str()] = whole_model(&dir.join(folder))?;
            }
            let warnings = standardize(&mut config.json).doing(|| config.doing())?;
            config.warnings.extend(warnings);
            // The values that the architecture requires may be in the parts' configurations, so they are checked after inserting them.
            let doing = || format!("read {}", config.path.shown());
            architecture.check(&config.json).doing(doing)?;
        }
        Ok(config)
    }

    /// Parses the text of a configuration.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn of_text(text: &str) -> Result<Self> {
        Self::of_json(parsed(text)?, PathBuf::from("config.json"))
    }

    fn of_json(mut json: Json, path: PathBuf) -> Result<Self> {
        let doing = || format!("read {}", path.shown());
        let warnings = standardize(&mut json).doing(doing)?;
        let writer = ConfigWriter::of(&json).doing(doing)?;
        Ok(Self {
            path,
            json,
            writer,
            warnings,
        })
    }

    /// What a user should know of it, each in a sentence.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The ids that end an answer where no `generation_config.json` names them: those at the top, else the decoder's.
    pub fn end_ids(&self) -> Vec<u32> {
        let places = [
            "/eos_token_id",
            "/text_config/eos_token_id",
            "/llm_cfg/eos_token_id",
        ];
        let mut named = places.iter().filter_map(|place| self.json.pointer(place));
        let named = named.find(|named| !named.is_null());
        named.map(ids).unwrap_or_default()
    }

    /// `model_type`, by which transformers chooses a tokenizer; `None` for models that transformers does not know.
    pub fn model_type(&self) -> Option<&str> {
        match &self.writer {
            ConfigWriter::Other(architecture) if architecture.parts().is_empty() => {
                self.json["model_type"].as_str()
            }
            _ => None,
        }
    }

    /// The context of errors about its values.
    pub fn doing(&self) -> String {
        format!("read {}", self.path.shown())
    }

    /// The model's specification.
    ///
    /// # Errors
    /// `BadInput` for an unsupported value, naming the key.
    pub fn spec(&self) -> Result<SystemSpec> {
        let spec = match &self.writer {
            ConfigWriter::Ours => {
                SystemSpec::Answers(Box::new(ModelSpec::from_json(&self.json.to_string())?))
            }
            ConfigWriter::OursVqgan => {
                let alone = VqganAlone::from_json(&self.json.to_string())?;
                SystemSpec::Vqgan(Box::new(alone.vqgan))
            }
            ConfigWriter::Other(architecture) => spec_of(architecture, &self.json)?,
        };
        spec.validate()?;
        Ok(spec)
    }

    /// The configurations of the picture and video processors in `dir`.
    ///
    /// # Errors
    /// `BadInput` for a value of the wrong type.
    pub fn processor(&self, dir: &Path) -> Result<ProcessorFolder> {
        ProcessorFolder::new(dir, Some(&self.json)).doing(|| self.doing())
    }

    /// The tensors of the directory `dir` under this program's names.
    ///
    /// # Errors
    /// As [`Weights::open`] and [`Weights::renamed`].
    pub fn weights(&self, dir: &Path) -> Result<Weights> {
        let ConfigWriter::Other(architecture) = &self.writer else {
            return Weights::open(dir);
        };
        let weights = match architecture.parts() {
            none if none.is_empty() => Weights::open(dir)?,
            parts => Weights::open_parts(dir, parts.values())?,
        };
        weights.renamed(&architecture.keys()?)
    }
}

impl ConfigWriter {
    /// This program, if the keys are those of [`ModelSpec::to_json`] or [`VqganAlone::to_json`]; else by architecture.
    fn of(config: &Json) -> Result<Self> {
        if config["model_type"] == "vqgan" && config["vqgan"].is_object() {
            return Ok(Self::OursVqgan);
        }
        if config.get("decoder").is_some() {
            return Ok(Self::Ours);
        }
        Architecture::of_config(config).map(|found| Self::Other(Box::new(found)))
    }
}

/// The configuration in `dir`, which must be of a model with its weights as they are.
fn whole_model(dir: &Path) -> Result<Json> {
    let path = dir.join("config.json");
    let doing = || format!("read {}", path.shown());
    let json = read_json(&path)?;
    let json = json.ok_or_else(|| no_configuration(dir)).doing(doing)?;
    check_quantization(&json, dir).doing(doing)?;
    Ok(json)
}

/// The ids of an `eos_token_id`: one or a list.
pub(super) fn ids(named: &Json) -> Vec<u32> {
    let list = named.as_array();
    let list = list.map_or(std::slice::from_ref(named), Vec::as_slice);
    let id = |id: &Json| u32::try_from(id.as_u64()?).ok();
    list.iter().filter_map(id).collect()
}

/// The object in the file at `path`; `None` where nothing is called so.
pub(super) fn read_json(path: &Path) -> Result<Option<Json>> {
    let doing = || format!("read {}", path.shown());
    let Some(text) = folder_file::text(path, FILE_BYTES_MAX)? else {
        return Ok(None);
    };
    let json = parsed(&text).doing(doing)?;
    if json.is_object() {
        return Ok(Some(json));
    }
    Err(Error::new(Kind::BadInput, "expected an object").doing(doing()))
}

fn parsed(text: &str) -> Result<Json> {
    serde_json::from_str(text).map_err(|e| Error::with_source(Kind::BadInput, "not JSON", e))
}

/// The specification given by another program's configuration.
fn spec_of(architecture: &Architecture, config: &Json) -> Result<SystemSpec> {
    Ok(match architecture.kind() {
        kind @ ModelKind::DualEncoder => SystemSpec::DualEncoder(architecture.spec(kind, config)?),
        kind @ ModelKind::Classifier => SystemSpec::Classifier(architecture.spec(kind, config)?),
        kind @ ModelKind::ConvNet => SystemSpec::ConvNet(architecture.spec(kind, config)?),
        kind @ ModelKind::Decoder => {
            let decoder = architecture.spec(kind, config)?;
            SystemSpec::Answers(Box::new(answering(config, decoder, None)))
        }
        kind @ ModelKind::VisionLanguage => {
            let spec: VisionLanguageSpec = architecture.spec(kind, config)?;
            let (decoder, vision) = spec.into_parts();
            SystemSpec::Answers(Box::new(answering(config, decoder, Some(vision))))
        }
    })
}

fn answering(config: &Json, decoder: DecoderSpec, vision: Option<VisionSpec>) -> ModelSpec {
    ModelSpec {
        model_type: match vision {
            Some(_) => ModelType::VisionLanguage,
            None => ModelType::Llama,
        },
        description: config
            .get("_name_or_path")
            .and_then(Json::as_str)
            .map(str::to_owned),
        decoder,
        vqgan: None,
        vision,
        frame_end: FrameEnd::Upstream,
        end_of_frame_id: default_end_of_frame_id(),
        end_of_vision_id: default_end_of_vision_id(),
    }
}
