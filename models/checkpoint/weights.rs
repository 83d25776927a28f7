//! A model directory's tensors, taken by name with an expected shape.
//!
//! The directory's `*.safetensors` files, or those of a GGUF model, are mapped; nothing is read until
//! a tensor is taken. [`Weights::finish`] fails for a tensor that the
//! model did not take.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use longreel_kernels::{
    mapping::MappedBytes,
    quantized::{self, Format},
};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use crate::{
    checkpoint::{
        digest::Digest,
        foreign::element_count,
        gguf::Header,
        key_map::KeyMap,
        stored::Stored,
        weight_files::{map, weight_files},
    },
    error::{Context, Error, Kind, Result},
    file_name::FileName,
};

/// One tensor in a mapped file.
#[derive(Clone)]
struct Entry {
    shard: usize,
    stored: Stored,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Entry {
    /// Elements of the tensor; [`read_header`] checked that its bytes hold as many.
    fn elements(&self) -> u64 {
        element_count(&self.shape).map_or(u64::MAX, |n| n as u64)
    }
}

/// The tensors of a model directory (or of one safetensors file); a copy maps the same files.
#[derive(Clone)]
pub struct Weights {
    shards: Vec<(PathBuf, MappedBytes)>,
    entries: BTreeMap<String, Entry>,
    taken: BTreeSet<String>,
    /// Quantized matrices are multiplied from the mapped file, not from copies.
    blocks_in_place: bool,
}

/// How many samples of a tensor's bytes go into a digest, and their length.
const DIGEST_SAMPLES: usize = 4;
const DIGEST_SAMPLE_BYTES: usize = 64;

/// A two-dimensional weight `[out, in]`, kept as it is stored.
#[derive(Clone)]
pub enum Matrix {
    /// `[out, in]` f32.
    F32(Tensor),
    /// `[out, in]` bf16, row-major, still in the mapped file.
    MappedBf16 {
        /// `out * in` little-endian bf16 elements, 2-byte aligned.
        bytes: MappedBytes,
        /// Rows.
        out_features: usize,
        /// Columns.
        in_features: usize,
    },
    /// `[out, in]` in blocks, row-major, still in the mapped file.
    MappedBlocks {
        /// Whole blocks; `in` weights per row.
        bytes: MappedBytes,
        /// Layout of a block.
        format: Format,
        /// Whether products read the mapped file rather than a copy.
        in_place: bool,
    },
}

impl Weights {
    /// Maps the weight files of `dir` (see [`weight_files`]), or the single file `dir` itself.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut weights = Self::none();
        weights.add_directory(dir, "")?;
        Ok(weights)
    }

    /// Maps the weight files of the folders `parts` of `dir`; a folder's name is the prefix of its tensors' names.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn open_parts<'a>(dir: &Path, parts: impl Iterator<Item = &'a String>) -> Result<Self> {
        let mut weights = Self::none();
        for part in parts {
            weights.add_directory(&dir.join(part), &format!("{part}."))?;
        }
        Ok(weights)
    }

    /// Maps the files of a GGUF model; a tensor that stacks several experts becomes one tensor per expert.
    ///
    /// # Errors
    /// As [`Header::read`]; `BadInput` when a tensor is in more than one file.
    pub fn open_gguf(files: &[(PathBuf, MappedBytes)]) -> Result<Self> {
        let mut weights = Self::none();
        for (path, bytes) in files {
            let doing = || path.shown().to_string();
            let header = Header::read(bytes.as_bytes()).doing(doing)?;
            let shard = weights.shards.len();
            let tensors = header.tensors.into_iter().flat_map(|t| t.by_expert());
            for tensor in tensors {
                let entry = Entry {
                    shard,
                    stored: tensor.stored,
                    shape: tensor.shape,
                    range: tensor.range,
                };
                weights.insert(tensor.name, entry).doing(doing)?;
            }
            weights.shards.push((path.clone(), bytes.clone()));
        }
        Ok(weights)
    }

    /// These tensors without those that `gone` names, plus those of `others`.
    ///
    /// # Errors
    /// `BadInput` when both have a tensor of one name that `gone` does not name.
    pub fn replaced(mut self, gone: impl Iterator<Item = String>, others: Self) -> Result<Self> {
        gone.for_each(|name| drop(self.entries.remove(&name)));
        let shards = self.shards.len();
        self.shards.extend(others.shards);
        for (name, entry) in others.entries {
            let shard = shards + entry.shard;
            self.insert(name, Entry { shard, ..entry })?;
        }
        Ok(self)
    }

    fn insert(&mut self, name: String, entry: Entry) -> Result<()> {
        match self.entries.insert(name.clone(), entry) {
            None => Ok(()),
            Some(_) => {
                let message = format!("tensor {name} is in more than one file");
                Err(Error::new(Kind::BadInput, message))
            }
        }
    }

    fn none() -> Self {
        Self {
            shards: Vec::new(),
            entries: BTreeMap::new(),
            taken: BTreeSet::new(),
            blocks_in_place: false,
        }
    }

    fn add_directory(&mut self, dir: &Path, prefix: &str) -> Result<()> {
        let doing = || format!("open the weights in {}", dir.shown());
        let files = if dir.is_dir() {
            weight_files(dir).doing(doing)?
        } else {
            vec![dir.to_owned()]
        };
        if files.is_empty() {
            let message = "no *.safetensors file, expected at least one \
                           (`longreel import --hf` turns .bin files into them)";
            return Err(Error::new(Kind::BadInput, message).doing(doing()));
        }
        for path in files {
            self.add_shard(path, prefix).doing(doing)?;
        }
        Ok(())
    }

    fn add_shard(&mut self, path: PathBuf, prefix: &str) -> Result<()> {
        let bytes = map(&path).doing(|| path.shown().to_string())?;
        let header = read_header(bytes.as_bytes()).doing(|| path.shown().to_string())?;
        let shard = self.shards.len();
        for HeaderEntry {
            name,
            dtype,
            shape,
            range,
        } in header
        {
            if is_derived(&name) {
                continue;
            }
            let name = format!("{prefix}{name}");
            let entry = Entry {
                shard,
                stored: Stored::Plain(dtype),
                shape,
                range,
            };
            self.insert(name, entry)
                .doing(|| path.shown().to_string())?;
        }
        self.shards.push((path, bytes));
        Ok(())
    }

    /// The tensors renamed by `keys`; those that `keys` drops are left out.
    ///
    /// # Errors
    /// `BadInput` when two tensors get one name.
    pub fn renamed(mut self, keys: &KeyMap) -> Result<Self> {
        let entries = std::mem::take(&mut self.entries);
        for (name, entry) in entries {
            let Some(renamed) = keys.rename(&name) else {
                continue;
            };
            if self.entries.insert(renamed.clone(), entry).is_some() {
                let message =
                    format!("tensor {name} is renamed to {renamed}, which another tensor has");
                return Err(Error::new(Kind::BadInput, message));
            }
        }
        Ok(self)
    }

    /// Whether some matrices are quantized.
    pub fn has_blocks(&self) -> bool {
        let mut all = self.entries.values();
        all.any(|entry| matches!(entry.stored, Stored::Blocks(_)))
    }

    /// Gives the tensor `name` another name.
    pub fn rename(&mut self, name: &str, renamed: &str) {
        if let Some(entry) = self.entries.remove(name) {
            self.entries.insert(renamed.to_owned(), entry);
        }
    }

    /// Leaves the tensor `name` out.
    pub fn remove(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// Whether two tensors have the same shape and values, whatever their types.
    ///
    /// # Errors
    /// `BadInput` for elements of a type that no weight has.
    pub fn are_equal(&self, a: &str, b: &str) -> Result<bool> {
        let (Some(of_a), Some(of_b)) = (self.entries.get(a), self.entries.get(b)) else {
            return Ok(false);
        };
        if of_a.shape != of_b.shape {
            return Ok(false);
        }
        let (bytes_a, bytes_b) = (self.bytes(a), self.bytes(b));
        if of_a.stored == of_b.stored {
            return Ok(bytes_a == bytes_b);
        }
        let values =
            |entry: &Entry, bytes: Option<&[u8]>| to_f32(entry.stored, bytes.unwrap_or_default());
        Ok(values(of_a, bytes_a)? == values(of_b, bytes_b)?)
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shape of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.entries.get(name)?.shape)
    }

    /// Name, kind of storage and shape of every tensor, sorted by name.
    pub fn list(&self) -> impl Iterator<Item = (&str, Stored, &[usize])> {
        self.entries
            .iter()
            .map(|(name, e)| (name.as_str(), e.stored, e.shape.as_slice()))
    }

    /// The elements of the tensor `name` as stored.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let entry = self.entries.get(name)?;
        let (_, shard) = self.shards.get(entry.shard)?;
        shard.as_bytes().get(entry.range.clone())
    }

    /// A digest (64-bit FNV-1a) of the tensors whose names begin with one of `parts`: their names, types, shapes and samples
    /// of their bytes, spread over each tensor.
    pub fn digest(&self, parts: &[&str]) -> u64 {
        let mut digest = Digest::default();
        for (name, entry) in &self.entries {
            if !parts.iter().any(|part| is_part(name, part)) {
                continue;
            }
            let what = format!("{name} {} {:?}", entry.stored, entry.shape);
            digest.add(what.as_bytes());
            let bytes = self.bytes(name).unwrap_or_default();
            for sample in 0..DIGEST_SAMPLES {
                let start = bytes.len() * sample / DIGEST_SAMPLES;
                let rest = &bytes[start..];
                digest.add(&rest[..rest.len().min(DIGEST_SAMPLE_BYTES)]);
            }
        }
        digest.0
    }

    /// Bytes of all tensors as stored.
    pub fn total_bytes(&self) -> u64 {
        self.entries.values().map(|e| e.range.len() as u64).sum()
    }

    /// Bytes that loading all tensors takes on the heap: four for every element of
    /// each tensor that does not stay mapped.
    pub fn resident_bytes(&self) -> u64 {
        self.entries
            .iter()
            .filter(|(name, entry)| !self.stays_mapped(name, entry))
            .map(|(_, entry)| match entry.stored {
                Stored::Blocks(format) if entry.shape.len() == 2 => {
                    self.bytes_of_copy(entry, format)
                }
                _ => entry.elements().saturating_mul(4),
            })
            .fold(0, u64::saturating_add)
    }

    /// Makes products read quantized matrices from the mapped file: several times slower, with the least memory.
    pub fn keep_blocks_in_place(&mut self) {
        self.blocks_in_place = true;
    }

    /// Bits per weight of the copies used by products; `None` where products read the mapped file.
    fn bits_of_copy(&self, format: Format) -> Option<f64> {
        bits_of_copy(format).filter(|_| !self.blocks_in_place)
    }

    fn bytes_of_copy(&self, entry: &Entry, format: Format) -> u64 {
        let bits = self.bits_of_copy(format).unwrap_or_default();
        (entry.elements() as f64 * bits / 8.0).ceil() as u64
    }

    /// Bytes of the tensors that are read from the mapping: the decoder's bf16 and quantized matrices.
    pub fn mapped_bytes(&self) -> u64 {
        self.entries
            .iter()
            .filter(|(name, entry)| self.stays_mapped(name, entry))
            .map(|(_, entry)| entry.range.len() as u64)
            .sum()
    }

    fn stays_mapped(&self, name: &str, entry: &Entry) -> bool {
        let is_matrix = entry.shape.len() == 2 && !name.starts_with("vqgan.");
        let is_aligned = || {
            let (_, shard) = self.shards.get(entry.shard)?;
            shard
                .slice(entry.range.clone())?
                .as_elements::<bf16>()
                .map(drop)
        };
        match entry.stored {
            Stored::Blocks(format) => is_matrix && self.bits_of_copy(format).is_none(),
            Stored::Plain(Dtype::BF16) => is_matrix && is_aligned().is_some(),
            Stored::Plain(_) => false,
        }
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<(Stored, MappedBytes)> {
        let Some(entry) = self.entries.get(name) else {
            return Err(Error::new(
                Kind::BadInput,
                format!("tensor {name} is missing, expected shape {shape:?}"),
            ));
        };
        if entry.shape != shape {
            return Err(Error::new(
                Kind::BadInput,
                format!(
                    "tensor {name} has shape {:?}, expected {shape:?}",
                    entry.shape
                ),
            ));
        }
        let bytes = self.shards[entry.shard]
            .1
            .slice(entry.range.clone())
            .ok_or_else(|| {
                Error::new(
                    Kind::BadInput,
                    format!("tensor {name} lies beyond the end of its file"),
                )
            })?;
        self.taken.insert(name.to_owned());
        Ok((entry.stored, bytes))
    }

    /// The tensor `name` of exactly `shape`, converted to f32 on the CPU.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (stored, bytes) = self.take(name, shape)?;
        let data = to_f32(stored, bytes.as_bytes()).doing(|| format!("tensor {name}"))?;
        Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
    }

    /// The tensor `name` of shape `[n]` as `n` values.
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        Ok(self.tensor(name, &[n])?.to_vec1()?)
    }

    /// The tensor `name` as values in row-major order; leading axes of length 1 beyond `shape` are ignored.
    pub fn numbers(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let stored = self.entries.get(name).map(|entry| entry.shape.clone());
        let whole = match stored {
            Some(stored) if stored.ends_with(shape) => {
                let (before, _) = stored.split_at(stored.len() - shape.len());
                before.iter().all(|&n| n == 1).then_some(stored)
            }
            _ => None,
        };
        let tensor = self.tensor(name, whole.as_deref().unwrap_or(shape))?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    /// The matrix `name` of shape `[out_features, in_features]`: bf16 and blocks stay mapped, the rest becomes f32.
    pub fn matrix(
        &mut self,
        name: &str,
        out_features: usize,
        in_features: usize,
    ) -> Result<Matrix> {
        let (stored, bytes) = self.take(name, &[out_features, in_features])?;
        match stored {
            Stored::Blocks(format) => {
                return Ok(Matrix::MappedBlocks {
                    bytes,
                    format,
                    in_place: self.blocks_in_place,
                });
            }
            Stored::Plain(Dtype::BF16) if bytes.as_elements::<bf16>().is_some() => {
                return Ok(Matrix::MappedBf16 {
                    bytes,
                    out_features,
                    in_features,
                });
            }
            Stored::Plain(_) => {}
        }
        let data = to_f32(stored, bytes.as_bytes()).doing(|| format!("tensor {name}"))?;
        Ok(Matrix::F32(Tensor::from_vec(
            data,
            (out_features, in_features),
            &Device::Cpu,
        )?))
    }

    /// Marks the tensors whose names begin with `part` and a dot as taken: this use of the model does not need them.
    pub fn leave_out(&mut self, part: &str) {
        let names = self.entries.keys().filter(|name| is_part(name, part));
        let names: Vec<String> = names.cloned().collect();
        self.taken.extend(names);
    }

    /// Whether the tensor `name` was taken.
    pub fn is_taken(&self, name: &str) -> bool {
        self.taken.contains(name)
    }

    /// Fails, naming the tensors that were not taken.
    pub fn finish(self) -> Result<()> {
        let unused: Vec<&str> = self
            .entries
            .keys()
            .map(String::as_str)
            .filter(|n| !self.taken.contains(*n))
            .collect();
        if unused.is_empty() {
            return Ok(());
        }
        let shown = unused
            .iter()
            .take(5)
            .copied()
            .collect::<Vec<_>>()
            .join(", ");
        let more = if unused.len() > 5 {
            format!(" and {} more", unused.len() - 5)
        } else {
            String::new()
        };
        Err(Error::new(
            Kind::BadInput,
            format!(
                "the model does not use {} tensors: {shown}{more}",
                unused.len()
            ),
        ))
    }
}

/// Whether a tensor's name begins with the part's name and a dot.
fn is_part(name: &str, part: &str) -> bool {
    let rest = name.strip_prefix(part);
    rest.is_some_and(|rest| rest.starts_with('.'))
}

/// Bits per weight of the copies from which candle multiplies a matrix in `format`: its blocks, and a second copy
/// where candle has a faster block order. `None` where this crate's kernel is as fast on the mapped file.
///
/// Measured at 8192 × 4096 on two Zen 4 cores: one row of Q4_K takes 0.9 ms from the copies and 12 ms in place, 512 rows
/// 140 and 358 ms; Q4_0 6 and 8 ms, 2295 and 400 ms.
pub fn bits_of_copy(format: Format) -> Option<f64> {
    let stored = 8.0 * format.block_bytes() as f64 / format.block_weights() as f64;
    match format {
        Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => None,
        // candle's second copy of Q4_K keeps the scales of each tile of 16 rows by 256 weights in f32.
        Format::Q4K => Some(stored + 6.0),
        Format::Q6K => Some(stored + 10.0),
        Format::Q8_0 => Some(stored + 8.5),
        Format::Q2K | Format::Q3K | Format::Q5K | Format::Q8K => Some(stored),
    }
}

/// Whether a tensor's values follow from the configuration, so that it is ignored:
/// older Hugging Face snapshots store the RoPE frequencies of each layer.
pub fn is_derived(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

/// One tensor of a safetensors header.
pub struct HeaderEntry {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes, counted from the start of the file.
    pub range: Range<usize>,
}

/// Parses the header of a safetensors file.
///
/// Every range is checked to lie inside `file`; arbitrary bytes give an error, never a panic.
pub fn read_header(file: &[u8]) -> Result<Vec<HeaderEntry>> {
    let bad = |what: String| Error::new(Kind::BadInput, what).doing("read the safetensors header");
    let (header_len, metadata): (usize, Metadata) =
        SafeTensors::read_metadata(file).map_err(|e| bad(e.to_string()))?;
    let data_start = header_len
        .checked_add(8)
        .ok_or_else(|| bad("header length overflows".into()))?;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let bits = element_count(&info.shape).and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if bits != end.checked_sub(start).and_then(|n| n.checked_mul(8)) {
            return Err(bad(format!(
                "tensor {name} of shape {:?} and dtype {:?} does not fit bytes {start} to {end}",
                info.shape, info.dtype
            )));
        }
        let range = match (data_start.checked_add(start), data_start.checked_add(end)) {
            (Some(start), Some(end)) if start <= end && end <= file.len() => start..end,
            _ => {
                return Err(bad(format!(
                    "tensor {name} ends at byte {end} of the data, but the file has {} bytes",
                    file.len()
                )));
            }
        };
        tensors.push(HeaderEntry {
            name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            range,
        });
    }
    Ok(tensors)
}

/// Little-endian elements as f32.
fn to_f32(stored: Stored, bytes: &[u8]) -> Result<Vec<f32>> {
    let dtype = match stored {
        Stored::Plain(dtype) => dtype,
        Stored::Blocks(format) => {
            let mut values = vec![0.0; format.weights_of(bytes)];
            quantized::widen(format, bytes, &mut values);
            return Ok(values);
        }
    };
    let values = match dtype {
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        Dtype::BF16 => bytes
            .chunks_exact(2)
            .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        Dtype::F16 => bytes
            .chunks_exact(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        other => {
            return Err(Error::new(
                Kind::BadInput,
                format!("has dtype {other:?}, expected F32, BF16 or F16"),
            ));
        }
    };
    Ok(values)
}
