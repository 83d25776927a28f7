//! Model directories: safetensors shards with their index, written beside the
//! target and renamed to it once complete, so that no half-written directory is ever seen.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use safetensors::Dtype;
use serde_json::json;

use crate::{
    checkpoint::{foreign::View, layout},
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    spec::{ModelSpec, VqganSpec, vqgan_alone::VqganAlone},
};

/// Default limit of a shard's data bytes.
pub const SHARD_BYTES: u64 = 4 << 30;

/// Tokenizer files that are copied into a model directory.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoredDtype {
    /// As in the foreign checkpoint; f64 and f16 become f32.
    #[default]
    AsStored,
    /// Single precision.
    F32,
    /// The upper half of single precision: half the size, the same range.
    Bf16,
}

/// Options of an import.
pub struct ImportOptions<'a> {
    /// How weights are stored.
    pub dtype: StoredDtype,
    /// Most data bytes of a shard; a tensor larger than that has a shard to itself.
    pub shard_bytes: u64,
    /// Replace an existing model directory.
    pub force: bool,
    /// Called with bytes done and bytes in all.
    pub progress: &'a mut dyn FnMut(u64, u64),
    /// Called between blocks; the import stops when it returns false.
    pub keep_going: &'a dyn Fn() -> bool,
}

impl Default for ImportOptions<'_> {
    fn default() -> Self {
        Self {
            dtype: StoredDtype::AsStored,
            shard_bytes: SHARD_BYTES,
            force: false,
            // A closure that captures nothing takes no memory.
            progress: Box::leak(Box::new(|_, _| {})),
            keep_going: &|| true,
        }
    }
}

/// What an import wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportReport {
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of their elements.
    pub bytes: u64,
}

/// A tensor to write: its name and shape in the model directory, and a view of its elements.
pub struct Planned {
    /// Name in the model directory.
    pub name: String,
    /// Shape in the model directory.
    pub shape: Vec<usize>,
    /// The elements, as many as the shape holds.
    pub view: View,
}

/// Writes the model directory `out`: weights, `config.json`, the tokenizer's
/// files and, for a vision-language model, `preprocessor_config.json`.
///
/// # Errors
/// `Usage` when `out` exists and may not be replaced, `Interrupted`
/// when `keep_going` returns false, and errors of reading and writing. On every error
/// the partly written directory is removed.
pub fn write_model(
    out: &Path,
    spec: &ModelSpec,
    tensors: &[Planned],
    tokenizer: &Path,
    options: ImportOptions,
) -> Result<ImportReport> {
    let parts = Parts {
        config: spec.to_json()?,
        vqgan: spec.vqgan.as_ref(),
        tokenizer: Some(tokenizer),
    };
    parts.write(out, tensors, options)
}

/// Writes the model directory `out` of a VQGAN without a decoder.
///
/// # Errors
/// As [`write_model`]; `BadInput` for tensors that are not those of the shape.
pub fn write_vqgan(
    out: &Path,
    spec: &VqganAlone,
    tensors: &[Planned],
    options: ImportOptions,
) -> Result<ImportReport> {
    check_tensors(&layout::vqgan_tensors(&spec.vqgan), tensors)?;
    let parts = Parts {
        config: spec.to_json()?,
        vqgan: Some(&spec.vqgan),
        tokenizer: None,
    };
    parts.write(out, tensors, options)
}

/// The files of a model directory other than its weights.
struct Parts<'a> {
    /// Text of `config.json`.
    config: String,
    vqgan: Option<&'a VqganSpec>,
    tokenizer: Option<&'a Path>,
}

impl Parts<'_> {
    fn write(
        &self,
        out: &Path,
        tensors: &[Planned],
        mut options: ImportOptions,
    ) -> Result<ImportReport> {
        let target = TemporaryDirectory::prepare(out, options.force)?;
        let doing = || format!("write the model directory {}", out.shown());
        let dir = target.temporary.as_path();
        if let Some(tokenizer) = self.tokenizer {
            copy_tokenizer(tokenizer, dir)?;
        }
        write_file(dir, "config.json", &self.config).doing(doing)?;
        if let Some(vqgan) = self.vqgan {
            let text = preprocessor(vqgan.resolution)?;
            write_file(dir, "preprocessor_config.json", &text).doing(doing)?;
        }
        let written = write_weights(dir, tensors, &mut options).doing(doing)?;
        target.rename().doing(doing)?;
        Ok(written)
    }
}

/// Checks that `tensors` are exactly those of `spec`, in name, number and shape.
///
/// # Errors
/// `BadInput` naming the tensors that are unknown, missing or of another shape.
pub fn check_layout(spec: &ModelSpec, tensors: &[Planned]) -> Result<()> {
    check_tensors(&layout::model_tensors(spec), tensors)
}

fn check_tensors(expected: &[layout::NamedShape], tensors: &[Planned]) -> Result<()> {
    let found: std::collections::HashMap<&str, &Planned> =
        tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut complaints = Vec::new();
    for (name, shape) in expected {
        match found.get(name.as_str()) {
            None => complaints.push(format!("{name} is missing, expected shape {shape:?}")),
            Some(t) if t.shape != *shape => complaints.push(format!(
                "{name} has shape {:?}, expected {shape:?}",
                t.shape
            )),
            Some(_) => {}
        }
    }
    let names: BTreeSet<&str> = expected.iter().map(|(n, _)| n.as_str()).collect();
    for tensor in tensors.iter().filter(|t| !names.contains(t.name.as_str())) {
        complaints.push(format!("{} is unknown", tensor.name));
    }
    refuse("tensor", &complaints)
}

/// An error that lists the first few of `complaints`, if there are any.
pub(crate) fn refuse(what: &str, complaints: &[String]) -> Result<()> {
    if complaints.is_empty() {
        return Ok(());
    }
    let shown = complaints
        .iter()
        .take(5)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    let more = match complaints.len().saturating_sub(5) {
        0 => String::new(),
        n => format!("; and {n} more"),
    };
    Err(Error::new(Kind::BadInput, format!("{what} {shown}{more}")))
}

/// The temporary directory being written, removed on drop unless it was renamed.
struct TemporaryDirectory {
    temporary: PathBuf,
    out: PathBuf,
}

impl TemporaryDirectory {
    fn prepare(out: &Path, force: bool) -> Result<Self> {
        let doing = || format!("make the model directory {}", out.shown());
        check_replaceable(out, force).doing(doing)?;
        let (Some(name), parent) = (out.file_name(), out.parent()) else {
            return Err(Error::new(Kind::Usage, "not the name of a directory").doing(doing()));
        };
        let name = format!(
            ".{}.importing-{}",
            name.to_string_lossy(),
            std::process::id()
        );
        let parent = parent.filter(|p| !p.as_os_str().is_empty());
        if let Some(parent) = parent {
            fs::create_dir_all(parent).doing(doing)?;
        }
        let temporary = parent.unwrap_or(Path::new("")).join(name);
        fs::create_dir(&temporary).doing(doing)?;
        Ok(Self {
            temporary,
            out: out.to_owned(),
        })
    }

    /// Renames the finished directory to the target, replacing what was there.
    fn rename(self) -> Result<()> {
        let old = self.temporary.with_extension("replaced");
        let replaces = self.out.is_dir();
        if replaces {
            fs::rename(&self.out, &old)?;
        }
        if let Err(error) = fs::rename(&self.temporary, &self.out) {
            if replaces {
                fs::rename(&old, &self.out)?;
            }
            return Err(error.into());
        }
        if replaces {
            fs::remove_dir_all(&old)?;
        }
        Ok(())
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // After a rename nothing is left to remove, and that failure is expected.
        let _ = fs::remove_dir_all(&self.temporary);
    }
}

/// Only an empty directory may be replaced, or with `force` one that holds a model and nothing else.
fn check_replaceable(out: &Path, force: bool) -> Result<()> {
    let usage = |text: String| Err(Error::new(Kind::Usage, text));
    if !out.is_dir() {
        return match out.symlink_metadata() {
            Ok(_) => usage("a file of this name exists".into()),
            Err(_) => Ok(()),
        };
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(out)? {
        files.push(entry?.file_name().to_string_lossy().into_owned());
    }
    match files.iter().find(|f| !is_model_file(f)) {
        _ if files.is_empty() => Ok(()),
        _ if !force => usage("it exists and is not empty (--force replaces a model)".into()),
        Some(other) => usage(format!(
            "it holds {other}, which is not a file of a model, so it is not replaced"
        )),
        None => Ok(()),
    }
}

fn is_model_file(name: &str) -> bool {
    TOKENIZER_FILES.contains(&name)
        || name.ends_with(".safetensors")
        || matches!(
            name,
            "config.json" | "preprocessor_config.json" | "model.safetensors.index.json"
        )
}

/// Copies a tokenizer: `tokenizer.model`, `tokenizer.json`, or a directory of tokenizer files.
fn copy_tokenizer(from: &Path, dir: &Path) -> Result<()> {
    let doing = || format!("copy the tokenizer {}", from.shown());
    let (source, wanted): (&Path, Vec<&str>) = if from.is_dir() {
        (from, TOKENIZER_FILES.to_vec())
    } else {
        let name = match from.extension().and_then(|e| e.to_str()) {
            Some("model") => "tokenizer.model",
            Some("json") => "tokenizer.json",
            _ => {
                return Err(Error::new(
                    Kind::Usage,
                    "expected a .model or .json file, or a directory with tokenizer.model or tokenizer.json",
                )
                .doing(doing()));
            }
        };
        copy(from, &dir.join(name)).doing(doing)?;
        let beside = from.parent().unwrap_or(Path::new(""));
        (beside, vec!["tokenizer_config.json"])
    };
    for name in wanted {
        if source.join(name).is_file() {
            copy(&source.join(name), &dir.join(name)).doing(doing)?;
        }
    }
    if ["tokenizer.model", "tokenizer.json"]
        .iter()
        .any(|n| dir.join(n).is_file())
    {
        return Ok(());
    }
    Err(Error::new(
        Kind::NotFound,
        "no tokenizer.model and no tokenizer.json in it",
    )
    .doing(doing()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::write(to, fs::read(from)?)?;
    Ok(())
}

fn write_file(dir: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(dir.join(name), text).doing(|| name.to_owned())
}

/// LWM's frame preprocessing (`vision_chat.py`) as a Hugging Face `preprocessor_config.json`.
fn preprocessor(resolution: usize) -> Result<String> {
    let side = json!({ "height": resolution, "width": resolution });
    let value = json!({
        "image_processor_type": "LwmImageProcessor",
        "do_resize": true,
        "size": { "shortest_edge": resolution },
        "resample": 3,
        "do_center_crop": true,
        "crop_size": side,
        "do_rescale": true,
        "rescale_factor": 1.0 / 127.5,
        "rescale_offset": true,
        "do_normalize": false,
    });
    json_text(&value)
}

fn json_text(value: &serde_json::Value) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|e| Error::with_source(Kind::Internal, "serialize JSON", e))
}

/// A tensor with its stored type and size, to be assigned to a shard.
struct Placed<'a> {
    tensor: &'a Planned,
    dtype: Dtype,
    bytes: u64,
}

fn stored_dtype(tensor: &Planned, dtype: StoredDtype) -> Dtype {
    match dtype {
        StoredDtype::AsStored => tensor.view.element().stored(),
        StoredDtype::F32 => Dtype::F32,
        StoredDtype::Bf16 => Dtype::BF16,
    }
}

fn place<'a>(tensor: &'a Planned, options: &ImportOptions) -> Result<Placed<'a>> {
    let dtype = stored_dtype(tensor, options.dtype);
    let size = if dtype == Dtype::F32 { 4 } else { 2 };
    let bytes = tensor
        .shape
        .iter()
        .try_fold(size, |n: u64, &d| n.checked_mul(u64::try_from(d).ok()?))
        .ok_or_else(|| {
            Error::new(
                Kind::TooLarge,
                format!("tensor {} of shape {:?}", tensor.name, tensor.shape),
            )
        })?;
    Ok(Placed {
        tensor,
        dtype,
        bytes,
    })
}

fn write_weights(
    dir: &Path,
    tensors: &[Planned],
    options: &mut ImportOptions,
) -> Result<ImportReport> {
    let placed = tensors
        .iter()
        .map(|t| place(t, options))
        .collect::<Result<Vec<_>>>()?;
    let total: u64 = placed.iter().map(|p| p.bytes).sum();
    let shards = shards(&placed, options.shard_bytes);
    let mut weight_map = serde_json::Map::new();
    let mut done = 0;
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let mut on_block = |bytes: u64| {
            done += bytes;
            (options.progress)(done, total);
            keep_going(options.keep_going)
        };
        write_shard(&dir.join(&name), shard, &mut on_block).doing(|| name.clone())?;
        for placed in *shard {
            weight_map.insert(placed.tensor.name.clone(), json!(name));
        }
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write_file(dir, "model.safetensors.index.json", &json_text(&index)?)?;
    Ok(ImportReport {
        tensors: placed.len(),
        bytes: total,
    })
}

/// An `Interrupted` error when `ask` returns false.
pub(crate) fn keep_going(ask: &dyn Fn() -> bool) -> Result<()> {
    if ask() {
        return Ok(());
    }
    Err(Error::new(Kind::Interrupted, "stopped"))
}

/// Splits the tensors, in order, into shards of at most `limit` bytes, at least one tensor each.
fn shards<'p, 'a>(placed: &'p [Placed<'a>], limit: u64) -> Vec<&'p [Placed<'a>]> {
    let mut shards = Vec::new();
    let (mut from, mut bytes) = (0, 0u64);
    for (i, tensor) in placed.iter().enumerate() {
        if i > from && bytes + tensor.bytes > limit {
            shards.push(&placed[from..i]);
            (from, bytes) = (i, 0);
        }
        bytes += tensor.bytes;
    }
    shards.push(&placed[from..]);
    shards
}

/// One safetensors file: header length, header, then the elements in the header's order.
fn write_shard(
    path: &Path,
    shard: &[Placed],
    on_block: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    // Wide element types first: then every tensor is aligned to its element size, as readers that map files need.
    let mut order: Vec<&Placed> = shard.iter().collect();
    order.sort_by_key(|p| p.dtype != Dtype::F32);
    let mut file = File::create_new(path)?;
    file.write_all(&header(&order)?)?;
    for placed in order {
        let mut wrote = 0;
        placed
            .tensor
            .view
            .write(placed.dtype, &mut |bytes| {
                file.write_all(bytes)?;
                wrote += bytes.len() as u64;
                on_block(bytes.len() as u64)
            })
            .doing(|| format!("tensor {}", placed.tensor.name))?;
        if wrote != placed.bytes {
            return Err(Error::new(
                Kind::Internal,
                format!(
                    "tensor {} took {wrote} bytes, its header says {}",
                    placed.tensor.name, placed.bytes
                ),
            ));
        }
    }
    file.sync_data()?;
    Ok(())
}

/// Length and JSON of the header, padded with spaces to a multiple of 8 bytes.
fn header(order: &[&Placed]) -> Result<Vec<u8>> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut start = 0;
    for placed in order {
        let end = start + placed.bytes;
        entries.insert(
            placed.tensor.name.clone(),
            json!({
                "dtype": dtype_name(placed.dtype),
                "shape": placed.tensor.shape,
                "data_offsets": [start, end],
            }),
        );
        start = end;
    }
    let mut text = serde_json::to_vec(&entries)
        .map_err(|e| Error::with_source(Kind::Internal, "serialize the header", e))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "BF16",
        _ => "F32",
    }
}
