//! The header of a GGUF file, read in place: metadata, and where tensors lie
//! (`docs/gguf.md` of ggml; versions 2 and 3, little-endian).
//!
//! Nothing is copied but names: arrays stay in the file until their elements are requested.
//! candle has a reader (`gguf_file::Content`); it makes a value of 32 bytes of every byte of an array, and
//! copies tensors. Here hostile bytes give an error, and no length in a file decides an allocation.

use std::{collections::BTreeMap, ops::Range};

use longreel_kernels::quantized::Format;
use serde_json::{Map, Number, Value as Json};

use crate::{
    checkpoint::{
        foreign::{element_count, shortened},
        stored::Stored,
    },
    error::{Context, Error, Kind, Result},
};

/// The first four bytes of every file.
const MAGIC: &[u8; 4] = b"GGUF";

/// Maximum axes of a tensor (`GGML_MAX_DIMS`).
const MAX_AXES: u32 = 4;

/// Default alignment of tensors.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Maximum experts in one tensor.
const MAX_EXPERTS: usize = 1024;

/// Maximum parts of a key that becomes part of a configuration.
const MAX_PARTS: usize = 8;

/// Maximum length of an array of numbers in a configuration: one number per layer.
const MAX_LISTED: usize = 1024;

/// A metadata value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// An integer of any width.
    Whole(i128),
    /// A floating-point number.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string, as bytes: some writers store other encodings than UTF-8.
    Text(&'a [u8]),
    /// An array.
    Array(Array<'a>),
}

/// An array of values of one type, contiguous in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

/// A tensor's entry in the header.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub stored: Stored,
    /// Its shape in row-major order.
    pub shape: Vec<usize>,
    /// Its byte range, from the start of the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Splits a tensor with the matrices of all experts into one tensor per expert (`ffn_up.E`); any other, and one of
    /// more than [`MAX_EXPERTS`] experts, is returned unchanged.
    pub fn by_expert(self) -> Vec<Self> {
        let block = self.name.strip_suffix("_exps.weight");
        let (Some(block), &[experts, _, _]) = (block, self.shape.as_slice()) else {
            return vec![self];
        };
        if !(1..=MAX_EXPERTS).contains(&experts) {
            return vec![self];
        }
        let bytes = self.range.len() / experts;
        let part = |expert: usize| Self {
            name: format!("{block}.{expert}.weight"),
            stored: self.stored,
            shape: self.shape[1..].to_vec(),
            range: self.range.start + expert * bytes..self.range.start + (expert + 1) * bytes,
        };
        // Quantized blocks do not cross rows, so that every expert has whole blocks.
        (0..experts).map(part).collect()
    }
}

/// The header of a file.
#[derive(Debug)]
pub struct Header<'a> {
    values: BTreeMap<&'a str, Value<'a>>,
    /// Every tensor, in the order of the file.
    pub tensors: Vec<TensorInfo>,
}

impl<'a> Header<'a> {
    /// Parses the header of `file`; every range lies inside the file.
    ///
    /// # Errors
    /// `BadInput` for bytes that are not a GGUF file, or tensors of an unknown storage type.
    pub fn read(file: &'a [u8]) -> Result<Self> {
        Self::read_all(file).doing(|| "read the GGUF header")
    }

    fn read_all(file: &'a [u8]) -> Result<Self> {
        let mut rest = Rest { file, at: 0 };
        let magic = rest.bytes(4)?;
        if magic != MAGIC {
            return Err(bad(format!("it begins with {magic:?}, expected GGUF")));
        }
        match rest.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err(bad("it is big-endian, expected little-endian".into()));
            }
            version => return Err(bad(format!("its version is {version}, expected 2 or 3"))),
        }
        let (n_tensors, n_values) = (rest.u64()?, rest.u64()?);
        let mut values = BTreeMap::new();
        for _ in 0..n_values {
            let key = rest.name()?;
            let kind = rest.u32()?;
            let value = rest.value(kind).doing(|| shortened(key))?;
            if values.insert(key, value).is_some() {
                return Err(bad(format!("the key {} occurs twice", shortened(key))));
            }
        }
        let mut tensors = Vec::new();
        for _ in 0..n_tensors {
            let name = rest.name()?;
            let tensor = rest.tensor(name);
            tensors.push(tensor.doing(|| format!("tensor {}", shortened(name)))?);
        }
        let mut header = Self { values, tensors };
        header.place(rest.at, file.len())?;
        Ok(header)
    }

    /// Turns offsets relative to the end of the header into file positions.
    fn place(&mut self, head: usize, file_len: usize) -> Result<()> {
        let alignment = match self.values.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Whole(n @ 8..=0x10_0000)) if n % 8 == 0 => *n as u64,
            Some(other) => {
                let message = format!("general.alignment is {other:?}, expected a multiple of 8");
                return Err(bad(message));
            }
        };
        let start = (head as u64).next_multiple_of(alignment);
        for tensor in &mut self.tensors {
            let TensorInfo { name, range, .. } = tensor;
            if !(range.start as u64).is_multiple_of(alignment) {
                let message = format!(
                    "tensor {name} begins {} bytes after the header, expected a multiple of {alignment}",
                    range.start
                );
                return Err(bad(message));
            }
            let place = |offset: usize| usize::try_from(start.checked_add(offset as u64)?).ok();
            *range = match (place(range.start), place(range.end)) {
                (Some(first), Some(end)) if end <= file_len => first..end,
                _ => {
                    let message = format!(
                        "tensor {name} ends {} bytes after the header, but the file has {file_len} bytes",
                        range.end
                    );
                    return Err(bad(message));
                }
            };
        }
        Ok(())
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.values.get(key).copied()
    }

    /// The string value of `key`.
    ///
    /// # Errors
    /// `BadInput` for another type, or invalid UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(bytes)) => utf8(bytes).map(Some).doing(|| key.to_owned()),
            Some(other) => Err(unexpected(key, &other, "a text")),
        }
    }

    /// The integer value of `key`.
    ///
    /// # Errors
    /// `BadInput` for another type, or a value that does not fit 32 bits.
    pub fn id(&self, key: &str) -> Result<Option<u32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Whole(n)) if u32::try_from(n).is_ok() => Ok(u32::try_from(n).ok()),
            Some(other) => Err(unexpected(key, &other, "a number of 32 bits")),
        }
    }

    /// The boolean value of `key`.
    ///
    /// # Errors
    /// `BadInput` for another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(unexpected(key, &other, "true or false")),
        }
    }

    /// The array value of `key`.
    ///
    /// # Errors
    /// `BadInput` for another type.
    pub fn array(&self, key: &str) -> Result<Option<Array<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(other) => Err(unexpected(key, &other, "an array")),
        }
    }

    /// The values of keys that begin with `prefix` and a dot, as nested objects. Long arrays, and
    /// arrays of strings, become a description that no specification accepts as a number.
    pub fn config(&self, prefix: &str) -> Json {
        let mut config = Json::Object(Map::new());
        for (key, value) in &self.values {
            let path = key.strip_prefix(prefix).and_then(|k| k.strip_prefix('.'));
            if let Some(path) = path.filter(|path| path.split('.').count() <= MAX_PARTS) {
                put(&mut config, path, value.json());
            }
        }
        config
    }
}

/// Sets the value at a path of keys; a value on the path is replaced by an object.
fn put(config: &mut Json, path: &str, value: Json) {
    let mut place = config;
    for key in path.split('.') {
        if !place.is_object() {
            *place = Json::Object(Map::new());
        }
        place = &mut place[key];
    }
    *place = value;
}

impl Value<'_> {
    fn json(&self) -> Json {
        let float = |x: f64| Number::from_f64(x).map_or(Json::Null, Json::Number);
        match self {
            Self::Whole(n) => Number::from_i128(*n).map_or(Json::Null, Json::Number),
            Self::Float(x) => float(*x),
            Self::Bool(b) => Json::Bool(*b),
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into(),
            Self::Array(array) => match array.numbers() {
                Ok(numbers) if array.count <= MAX_LISTED => numbers.map(float).collect(),
                _ => format!("an array of {} values", array.count).into(),
            },
        }
    }
}

impl<'a> Array<'a> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its strings.
    ///
    /// # Errors
    /// `BadInput` for another type; each string that is not UTF-8 is an error of its own.
    pub fn texts(&self) -> Result<impl Iterator<Item = Result<&'a str>> + use<'a>> {
        if self.kind != TEXT {
            return Err(bad(format!("values of type {}, expected texts", self.kind)));
        }
        let mut rest = Rest {
            file: self.bytes,
            at: 0,
        };
        Ok((0..self.count).map(move |_| rest.text().and_then(utf8)))
    }

    /// Its numbers.
    ///
    /// # Errors
    /// `BadInput` for another type.
    pub fn numbers(&self) -> Result<impl Iterator<Item = f64> + use<'a>> {
        let kind = self.kind;
        let size = size_of_kind(kind).filter(|_| kind != BOOL);
        let size = size.ok_or_else(|| bad(format!("values of type {kind}, expected numbers")))?;
        let values = self.bytes.chunks_exact(size);
        Ok(values.map(move |bytes| number(kind, bytes).unwrap_or(f64::NAN)))
    }
}

/// Value types that are not numbers (`gguf_type`).
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of a fixed-size type.
fn size_of_kind(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Parses a value of the fixed-size type `kind` at the start of `bytes`.
fn scalar(kind: u32, bytes: &[u8]) -> Option<Value<'static>> {
    let whole = |n: i128| Some(Value::Whole(n));
    match kind {
        0 => whole(u8::from_le_bytes(*bytes.first_chunk()?).into()),
        1 => whole(i8::from_le_bytes(*bytes.first_chunk()?).into()),
        2 => whole(u16::from_le_bytes(*bytes.first_chunk()?).into()),
        3 => whole(i16::from_le_bytes(*bytes.first_chunk()?).into()),
        4 => whole(u32::from_le_bytes(*bytes.first_chunk()?).into()),
        5 => whole(i32::from_le_bytes(*bytes.first_chunk()?).into()),
        6 => Some(Value::Float(
            f32::from_le_bytes(*bytes.first_chunk()?).into(),
        )),
        BOOL => match bytes.first()? {
            0 => Some(Value::Bool(false)),
            1 => Some(Value::Bool(true)),
            _ => None,
        },
        10 => whole(u64::from_le_bytes(*bytes.first_chunk()?).into()),
        11 => whole(i64::from_le_bytes(*bytes.first_chunk()?).into()),
        12 => Some(Value::Float(f64::from_le_bytes(*bytes.first_chunk()?))),
        _ => None,
    }
}

fn number(kind: u32, bytes: &[u8]) -> Option<f64> {
    match scalar(kind, bytes)? {
        Value::Whole(n) => Some(n as f64),
        Value::Float(x) => Some(x),
        _ => None,
    }
}

/// The unread rest of the file.
#[derive(Clone, Copy)]
struct Rest<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n);
        let found = end.and_then(|end| self.file.get(self.at..end));
        let found = found.ok_or_else(|| {
            let left = self.file.len() - self.at;
            bad(format!(
                "{n} bytes expected at byte {}, but {left} are left",
                self.at
            ))
        })?;
        self.at += n;
        Ok(found)
    }

    fn u32(&mut self) -> Result<u32> {
        let bytes = self.bytes(4)?.first_chunk().copied();
        Ok(u32::from_le_bytes(bytes.unwrap_or_default()))
    }

    fn u64(&mut self) -> Result<u64> {
        let bytes = self.bytes(8)?.first_chunk().copied();
        Ok(u64::from_le_bytes(bytes.unwrap_or_default()))
    }

    fn count(&mut self) -> Result<usize> {
        let n = self.u64()?;
        usize::try_from(n).map_err(|_| bad(format!("a length of {n}, more than any file has")))
    }

    fn text(&mut self) -> Result<&'a [u8]> {
        let n = self.count()?;
        self.bytes(n)
    }

    /// A key, or the name of a tensor.
    fn name(&mut self) -> Result<&'a str> {
        let at = self.at;
        let name = self.text()?;
        utf8(name).doing(|| format!("the name at byte {at}"))
    }

    fn value(&mut self, kind: u32) -> Result<Value<'a>> {
        match kind {
            TEXT => Ok(Value::Text(self.text()?)),
            ARRAY => self.array().map(Value::Array),
            _ => {
                let unknown = || bad(format!("a value of type {kind}, expected 0 to 12"));
                let bytes = self.bytes(size_of_kind(kind).ok_or_else(unknown)?)?;
                let wrong = || bad(format!("byte {:?} is neither true nor false", bytes[0]));
                scalar(kind, bytes).ok_or_else(wrong)
            }
        }
    }

    fn array(&mut self) -> Result<Array<'a>> {
        let (kind, count) = (self.u32()?, self.count()?);
        let start = self.at;
        match size_of_kind(kind) {
            Some(size) => {
                let too_many = || {
                    bad(format!(
                        "an array of {count} values, more than any file has"
                    ))
                };
                self.bytes(count.checked_mul(size).ok_or_else(too_many)?)?;
            }
            None if kind == TEXT => {
                for _ in 0..count {
                    self.text()?;
                }
            }
            None => {
                let message =
                    format!("an array of values of type {kind}, expected numbers or texts");
                return Err(bad(message));
            }
        }
        let bytes = &self.file[start..self.at];
        Ok(Array { kind, count, bytes })
    }

    /// A tensor, with a range relative to the end of the header.
    fn tensor(&mut self, name: &str) -> Result<TensorInfo> {
        let axes = self.u32()?;
        if !(1..=MAX_AXES).contains(&axes) {
            return Err(bad(format!("{axes} axes, expected 1 to {MAX_AXES}")));
        }
        let shape = (0..axes).map(|_| self.count());
        let mut shape = shape.collect::<Result<Vec<usize>>>()?;
        let stored = stored_as(self.u32()?)?;
        let start = self.count()?;
        // GGUF lists the fastest axis first.
        shape.reverse();
        let bytes = bytes_of(stored, &shape)?;
        let end = start.checked_add(bytes);
        let end = end.ok_or_else(|| bad(format!("it begins at byte {start}, beyond any file")))?;
        Ok(TensorInfo {
            name: name.to_owned(),
            stored,
            shape,
            range: start..end,
        })
    }
}

/// Bytes of a tensor of `shape`.
fn bytes_of(stored: Stored, shape: &[usize]) -> Result<usize> {
    let (weights, bytes) = match stored {
        Stored::Plain(dtype) => (1, dtype.bitsize() / 8),
        Stored::Blocks(format) => (format.block_weights(), format.block_bytes()),
    };
    let row = shape.last().copied().unwrap_or(0);
    if !row.is_multiple_of(weights) {
        return Err(bad(format!(
            "its rows have {row} numbers, expected a multiple of {weights} (a block of {stored})"
        )));
    }
    let bytes = element_count(shape).and_then(|n| (n / weights).checked_mul(bytes));
    bytes.ok_or_else(|| bad(format!("its shape {shape:?} is larger than any file")))
}

/// The storage type of ggml's type `number`.
fn stored_as(number: u32) -> Result<Stored> {
    use safetensors::Dtype;
    let stored = match number {
        0 => Stored::Plain(Dtype::F32),
        1 => Stored::Plain(Dtype::F16),
        30 => Stored::Plain(Dtype::BF16),
        2 => Stored::Blocks(Format::Q4_0),
        3 => Stored::Blocks(Format::Q4_1),
        6 => Stored::Blocks(Format::Q5_0),
        7 => Stored::Blocks(Format::Q5_1),
        8 => Stored::Blocks(Format::Q8_0),
        10 => Stored::Blocks(Format::Q2K),
        11 => Stored::Blocks(Format::Q3K),
        12 => Stored::Blocks(Format::Q4K),
        13 => Stored::Blocks(Format::Q5K),
        14 => Stored::Blocks(Format::Q6K),
        15 => Stored::Blocks(Format::Q8K),
        _ => {
            let name = OTHER_TYPES.iter().find(|(n, _)| *n == number);
            let name = name.map_or(format!("type {number}"), |(_, name)| (*name).to_owned());
            return Err(bad(format!(
                "it is stored as {name}, expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q8_K"
            )));
        }
    };
    Ok(stored)
}

/// Numbers and names of unsupported types (`ggml_type`).
const OTHER_TYPES: [(u32, &str); 21] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| bad(format!("{} bytes that are not UTF-8", bytes.len())))
}

fn unexpected(key: &str, found: &Value, expected: &str) -> Error {
    let found = match found {
        Value::Array(array) => format!("an array of {}", array.len()),
        Value::Text(text) => format!("{:?}", shortened(&String::from_utf8_lossy(text))),
        other => other.json().to_string(),
    };
    bad(format!("{key} is {found}, expected {expected}"))
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
