//! A GGUF file, or a split one, as a decoder: its specification and its weights.
//!
//! The files of `systems/architectures/gguf` map its keys and tensors.

use std::path::{Path, PathBuf};

use longreel_kernels::mapping::MappedBytes;
use serde_json::{Value as Json, json};

use crate::{
    checkpoint::{
        gguf::{Header, TensorInfo},
        layout,
        weight_files::{self, weight_files},
        weights::Weights,
    },
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    spec::{
        DecoderSpec, FrameEnd, ModelSpec, ModelType, default_end_of_frame_id,
        default_end_of_vision_id,
    },
    systems::architecture::Architecture,
};

/// The GGUF file of a model: `path` itself, or the one of a folder that has no safetensors.
///
/// # Errors
/// `BadInput` for a folder that has several.
pub fn gguf_of(path: &Path) -> Result<Option<PathBuf>> {
    if path.is_file() {
        return Ok(is_gguf(path).then(|| path.to_owned()));
    }
    if !path.is_dir() || !weight_files(path)?.is_empty() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let later = SplitPart::of(&path).is_some_and(|part| part.number > 1);
        if is_gguf(&path) && path.is_file() && !later {
            found.push(path);
        }
    }
    found.sort();
    if found.len() < 2 {
        return Ok(found.pop());
    }
    let names = found.iter().filter_map(|path| path.file_name());
    let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
    let message = format!(
        "{} has {}, expected one *.gguf file: give the file itself",
        path.shown(),
        names.join(", ")
    );
    Err(Error::new(Kind::BadInput, message))
}

fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// One file of a split model: `NAME-00001-of-00003.gguf`.
struct SplitPart {
    name: String,
    number: usize,
    count: usize,
}

impl SplitPart {
    fn of(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| text.parse().ok().filter(|_| text.len() == 5);
        Some(Self {
            name: name.to_owned(),
            number: digits(number)?,
            count: digits(count)?,
        })
    }

    fn file(&self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.name, self.count)
    }
}

/// The files of a model, mapped.
pub struct GgufModel {
    files: Vec<(PathBuf, MappedBytes)>,
}

impl GgufModel {
    /// Maps the file at `path`, and the further files of a split model.
    ///
    /// # Errors
    /// `BadInput` for a file that is not the first, or whose number of files differs from its name.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("open {}", path.shown());
        let first = map(path)?;
        let count = Header::read(first.as_bytes())
            .and_then(|header| header.id("split.count"))
            .doing(doing)?;
        let mut files = vec![(path.to_owned(), first)];
        if let Some(count @ 2..) = count {
            let part = SplitPart::of(path).filter(|p| p.number == 1 && p.count == count as usize);
            let part = part.ok_or_else(|| {
                let message = format!(
                    "it is one of {count} parts, expected the first, NAME-00001-of-{count:05}.gguf"
                );
                Error::new(Kind::BadInput, message).doing(doing())
            })?;
            for number in 2..=part.count {
                let next = path.with_file_name(part.file(number));
                files.push((next.clone(), map(&next)?));
            }
        }
        Ok(Self { files })
    }

    /// The path of the first file.
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |(path, _)| path)
    }

    /// The header of the first file, which describes the model.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn header(&self) -> Result<Header<'_>> {
        let bytes = self.files.first().map(|(_, bytes)| bytes.as_bytes());
        Header::read(bytes.unwrap_or_default()).doing(|| self.path().shown().to_string())
    }

    /// The specification of the decoder.
    ///
    /// # Errors
    /// `BadInput` for an unknown architecture, or an unsupported value of a key.
    pub fn decoder(&self) -> Result<DecoderSpec> {
        let doing = || format!("read {}", self.path().shown());
        let config = self.config()?;
        let spec = Architecture::of_gguf(&config)
            .and_then(|architecture| architecture.gguf_spec(&config))
            .doing(doing)?;
        spec.validate().doing(doing)?;
        check_heads(&config, &spec).doing(doing)?;
        Ok(spec)
    }

    /// The specification as a text model.
    ///
    /// # Errors
    /// As [`GgufModel::decoder`].
    pub fn spec(&self) -> Result<ModelSpec> {
        let name = self.header()?.text("general.name");
        Ok(ModelSpec {
            model_type: ModelType::Llama,
            description: name.ok().flatten().map(str::to_owned),
            decoder: self.decoder()?,
            vqgan: None,
            vision: None,
            frame_end: FrameEnd::Upstream,
            end_of_frame_id: default_end_of_frame_id(),
            end_of_vision_id: default_end_of_vision_id(),
        })
    }

    /// Its tensors under this program's names.
    ///
    /// # Errors
    /// As [`Weights::open_gguf`] and [`Weights::renamed`].
    pub fn weights(&self) -> Result<Weights> {
        let architecture = Architecture::of_gguf(&self.config()?)?;
        Weights::open_gguf(&self.files)?.renamed(&architecture.keys()?)
    }

    /// The files' metadata: keys without the architecture's name, and facts that follow from the tensors.
    fn config(&self) -> Result<Json> {
        let header = self.header()?;
        let name = header.text("general.architecture")?.ok_or_else(|| {
            let message = "general.architecture is missing, expected the name of a decoder";
            Error::new(Kind::BadInput, message).doing(format!("read {}", self.path().shown()))
        })?;
        let mut tensors = Vec::new();
        for (path, bytes) in &self.files {
            let header = Header::read(bytes.as_bytes()).doing(|| path.shown().to_string())?;
            tensors.extend(header.tensors);
        }
        let mut config = header.config(name);
        config["model_type"] = name.into();
        tell_of_tensors(&mut config, &tensors);
        Ok(config)
    }
}

fn map(path: &Path) -> Result<MappedBytes> {
    weight_files::map(path).doing(|| format!("open {}", path.shown()))
}

/// Adds the facts that only the presence of tensors shows: biases, experts, RoPE factors.
fn tell_of_tensors(config: &mut Json, tensors: &[TensorInfo]) {
    let named = |name: &str| tensors.iter().find(|t| t.name == name);
    let is_there = |name: &str| named(name).is_some();
    if let Some(&[vocab, _]) = named("token_embd.weight").map(|t| t.shape.as_slice()) {
        config["vocab_size"] = vocab.into();
    }
    config["tied"] = (!is_there("output.weight")).into();
    config["has"] = json!({
        "qkv_bias": is_there("blk.0.attn_q.bias"),
        "output_bias": is_there("blk.0.attn_output.bias"),
        "ffn_bias": is_there("blk.0.ffn_up.bias"),
        "gate_bias": is_there("blk.0.ffn_gate_inp.bias"),
        "experts": is_there("blk.0.ffn_gate_inp.weight"),
    });
    let says = config.pointer("/rope/scaling/type").and_then(Json::as_str);
    if is_there("rope_freqs.weight") && matches!(says, None | Some("none")) {
        if !config["rope"].is_object() {
            config["rope"] = json!({});
        }
        config["rope"]["scaling"] = json!({ "type": "stored" });
    }
}

/// `BadInput` for heads whose values have other channels than their keys, or of which only some channels are rotated.
fn check_heads(config: &Json, spec: &DecoderSpec) -> Result<()> {
    let d = spec.head_dim();
    for key in ["/rope/dimension_count", "/attention/value_length"] {
        match config.pointer(key).and_then(Json::as_u64) {
            Some(n) if n != d as u64 => {
                let key = key[1..].replace('/', ".");
                let message = format!("{key} is {n}, expected {d}, the channels of a head");
                return Err(Error::new(Kind::BadInput, message));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A folder's model with the decoder of a GGUF file: encoder, codes and configuration are the folder's.
///
/// # Errors
/// `BadInput` when their shapes or constants differ; the error names both.
pub fn with_decoder(
    (mut spec, weights): (ModelSpec, Weights),
    file: &GgufModel,
) -> Result<(ModelSpec, Weights)> {
    let decoder = file.decoder()?;
    check_same(&spec.decoder, &decoder)
        .doing(|| format!("replace the decoder by that of {}", file.path().shown()))?;
    let folders = DecoderSpec {
        vision_vocab_size: None,
        ..spec.decoder.clone()
    };
    let gone = layout::decoder_tensors(&folders);
    let weights = weights.replaced(gone.into_iter().map(|(name, _)| name), file.weights()?)?;
    // The file may differ in the size of its vocabulary and the order of its rows.
    spec.decoder.vocab_size = decoder.vocab_size;
    spec.decoder.tie_word_embeddings = decoder.tie_word_embeddings;
    spec.decoder.rope_pairs = decoder.rope_pairs;
    if decoder.rope_scaling.is_some() {
        spec.decoder.rope_scaling = decoder.rope_scaling;
    }
    spec.validate()?;
    Ok((spec, weights))
}

/// `BadInput` for a decoder of another shape than the folder's.
fn check_same(folder: &DecoderSpec, file: &DecoderSpec) -> Result<()> {
    let experts = |spec: &DecoderSpec| spec.experts.map_or(0, |e| e.num_local_experts);
    let sizes = |spec: &DecoderSpec| {
        [
            ("hidden_size", spec.hidden_size),
            ("intermediate_size", spec.intermediate_size),
            ("num_hidden_layers", spec.num_hidden_layers),
            ("num_attention_heads", spec.num_attention_heads),
            ("num_key_value_heads", spec.n_kv_heads()),
            ("head_dim", spec.head_dim()),
            ("num_local_experts", experts(spec)),
            ("qkv_bias", spec.qkv_bias.into()),
            ("attention_output_bias", spec.attention_output_bias.into()),
            ("mlp_bias", spec.mlp_bias.into()),
            ("qk_norm", spec.qk_norm.into()),
        ]
    };
    for ((key, folders), (_, files)) in sizes(folder).into_iter().zip(sizes(file)) {
        if folders != files {
            return Err(differ(key, &folders, &files));
        }
    }
    for (key, folders, files) in [
        ("rope_theta", folder.rope_theta, file.rope_theta),
        ("rms_norm_eps", folder.rms_norm_eps, file.rms_norm_eps),
    ] {
        // GGUF stores them as f32, `config.json` as decimal text.
        if (folders - files).abs() > 1e-6 * folders.abs() {
            return Err(differ(key, &folders, &files));
        }
    }
    Ok(())
}

fn differ(key: &str, folder: &dyn std::fmt::Display, file: &dyn std::fmt::Display) -> Error {
    let message = format!(
        "{key} of the folder's configuration is {folder}, of the GGUF file {file}, expected the same"
    );
    Error::new(Kind::BadInput, message)
}
