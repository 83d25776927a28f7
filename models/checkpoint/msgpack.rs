//! LWM's streaming checkpoints: `[path, value]` pairs in msgpack, one after the
//! other (tux `StreamingCheckpointer`), with arrays as flax serializes them.
//!
//! Nothing is copied: a tensor is the byte ranges of its chunks. Every length
//! is checked against the remaining bytes before it is used.

use std::ops::Range;

use rmp::Marker;

use crate::{
    checkpoint::foreign::{Element, element_count},
    error::{Context, Error, Kind, Result},
};

/// Maximum parts of a tensor's path; upstream's have six.
const MAX_PATH: usize = 32;
/// Maximum bytes of a flax document's key; upstream's have at most 20.
const MAX_KEY: usize = 256;
/// Maximum maps and tensors of a flax document.
const MAX_NODES: usize = 1 << 16;
/// Maximum total bytes of tensors' paths.
const MAX_PATH_BYTES: usize = 16 << 20;
/// Maximum axes of a tensor.
const MAX_AXES: usize = 16;
/// Key that marks an array in chunks (flax `_chunk`).
const CHUNKED: &str = "__msgpack_chunked_array__";

/// A tensor in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    /// Type of the elements.
    pub element: Element,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// Where the little-endian, row-major elements lie, in order.
    pub chunks: Vec<Range<usize>>,
}

/// One pair of the stream, with an unparsed value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// Path of the tensor, outermost first.
    pub path: Vec<String>,
    /// Bytes of the inner document.
    pub value: Range<usize>,
}

/// The pairs of a streaming checkpoint.
pub struct Stream<'a> {
    reader: Reader<'a>,
    failed: bool,
}

impl<'a> Stream<'a> {
    /// The pairs in `file`.
    pub fn new(file: &'a [u8]) -> Self {
        Self {
            reader: Reader::new(file, 0..file.len()),
            failed: false,
        }
    }
}

impl Iterator for Stream<'_> {
    type Item = Result<CheckpointEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.at >= self.reader.end {
            return None;
        }
        let start = self.reader.at;
        let entry = self
            .reader
            .entry()
            .doing(|| format!("read the checkpoint entry at byte {start}"));
        self.failed = entry.is_err();
        Some(entry)
    }
}

/// The tensor that the inner document `value` of `file` holds.
///
/// # Errors
/// `BadInput` when it is not an array of floating point numbers.
pub fn tensor(file: &[u8], value: Range<usize>) -> Result<TensorRef> {
    let mut reader = Reader::new(file, value);
    let tensor = reader.tensor()?;
    reader.expect_end()?;
    Ok(tensor)
}

/// The tensors of one flax document: nested maps whose leaves are arrays.
///
/// # Errors
/// `BadInput` for anything else, and for maps nested deeper than a model's are.
pub fn document(file: &[u8]) -> Result<Vec<(Vec<String>, TensorRef)>> {
    let mut reader = Reader::new(file, 0..file.len());
    let mut tensors = Vec::new();
    reader.tree(&mut Vec::new(), &mut Bounds::default(), &mut tensors)?;
    reader.expect_end()?;
    Ok(tensors)
}

/// Limits on the leaves of a tree, shared by nested formats.
#[derive(Default)]
pub(crate) struct Bounds {
    nodes: usize,
    path_bytes: usize,
}

impl Bounds {
    /// Counts a map or a leaf.
    pub(crate) fn node(&mut self) -> Result<()> {
        self.nodes += 1;
        match self.nodes {
            0..=MAX_NODES => Ok(()),
            _ => Err(bad(format!("more than {MAX_NODES} maps and tensors"))),
        }
    }

    /// Counts the path of a leaf, before it is copied.
    pub(crate) fn leaf(&mut self, path: &[String]) -> Result<()> {
        self.path_bytes += path.iter().map(String::len).sum::<usize>();
        match self.path_bytes {
            0..=MAX_PATH_BYTES => Ok(()),
            _ => Err(bad(format!(
                "the tensors' paths take more than {MAX_PATH_BYTES} bytes"
            ))),
        }
    }
}

/// A position in a byte range of the file.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    /// A reader of `range`, clipped to `file`.
    fn new(file: &'a [u8], range: Range<usize>) -> Self {
        let end = range.end.min(file.len());
        Self {
            file,
            at: range.start.min(end),
            end,
        }
    }

    fn entry(&mut self) -> Result<CheckpointEntry> {
        let parts = self.array_len()?;
        if parts != 2 {
            return Err(bad(format!(
                "an array of {parts} values, expected [path, value]"
            )));
        }
        let depth = self.array_len()?;
        if depth > MAX_PATH {
            return Err(bad(format!(
                "a path of {depth} parts, expected at most {MAX_PATH}"
            )));
        }
        let path = (0..depth)
            .map(|_| self.key().map(str::to_owned))
            .collect::<Result<_>>()?;
        let value = self.bin()?;
        Ok(CheckpointEntry { path, value })
    }

    fn tree(
        &mut self,
        path: &mut Vec<String>,
        bounds: &mut Bounds,
        tensors: &mut Vec<(Vec<String>, TensorRef)>,
    ) -> Result<()> {
        if path.len() > MAX_PATH {
            return Err(bad(format!("maps nested deeper than {MAX_PATH}")));
        }
        bounds.node()?;
        if !self.is_map() || self.is_chunked() {
            bounds.leaf(path)?;
            let tensor = self.tensor().doing(|| path.join("/"))?;
            tensors.push((path.clone(), tensor));
            return Ok(());
        }
        for _ in 0..self.map_len()? {
            path.push(self.key()?.to_owned());
            self.tree(path, bounds, tensors)?;
            path.pop();
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<TensorRef> {
        if self.is_map() {
            return self.chunked();
        }
        self.whole()
    }

    fn whole(&mut self) -> Result<TensorRef> {
        let start = self.at;
        let (kind, payload) = self.ext()?;
        match kind {
            // flax `_MsgpackExtType`: 1 is an array, 3 a numpy scalar.
            1 | 3 => Reader::new(self.file, payload).array(),
            _ => Err(bad(format!(
                "extension type {kind} at byte {start}, expected 1 (array) or 3 (scalar)"
            ))),
        }
    }

    /// `[shape, dtype, bytes]`.
    fn array(&mut self) -> Result<TensorRef> {
        let parts = self.array_len()?;
        if parts != 3 {
            return Err(bad(format!(
                "an array of {parts} values, expected [shape, dtype, bytes]"
            )));
        }
        let axes = self.array_len()?;
        let shape = self.shape(axes)?;
        let element = Element::from_numpy(self.str()?)?;
        let bytes = self.bin()?;
        self.expect_end()?;
        check_bytes(element, &shape, bytes.len())?;
        Ok(TensorRef {
            element,
            shape,
            chunks: vec![bytes],
        })
    }

    fn shape(&mut self, axes: usize) -> Result<Vec<usize>> {
        check_axes(axes)?;
        (0..axes).map(|_| self.uint()).collect()
    }

    /// Flat pieces of an array larger than flax's limit, numbered by decimal strings.
    fn chunked(&mut self) -> Result<TensorRef> {
        let (mut shape, mut chunks) = (None, None);
        for _ in 0..self.map_len()? {
            match self.str()? {
                CHUNKED => self.boolean()?,
                "shape" => shape = Some(self.numbered(MAX_AXES, Self::uint)?),
                "chunks" => chunks = Some(self.numbered(usize::MAX, Self::whole)?),
                other => {
                    return Err(bad(format!(
                        "key {other:?}, expected {CHUNKED}, shape or chunks"
                    )));
                }
            }
        }
        let (Some(shape), Some(chunks)) = (shape, chunks) else {
            return Err(bad("an array in chunks without shape or chunks".into()));
        };
        join_chunks(shape, chunks)
    }

    /// A map `{"0": …, "1": …}` in the order of its numbers.
    fn numbered<T>(
        &mut self,
        limit: usize,
        read: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.map_len()?;
        if count > limit {
            return Err(bad(format!("{count} values, expected at most {limit}")));
        }
        let mut values = Vec::new();
        for _ in 0..count {
            let key = self.str()?;
            let number: usize = key
                .parse()
                .map_err(|_| bad(format!("key {key:?}, expected a number")))?;
            values.push((number, read(self)?));
        }
        values.sort_by_key(|(number, _)| *number);
        if values
            .iter()
            .enumerate()
            .any(|(i, (number, _))| i != *number)
        {
            return Err(bad(format!(
                "keys are not 0 to {}",
                count.saturating_sub(1)
            )));
        }
        Ok(values.into_iter().map(|(_, value)| value).collect())
    }

    fn is_map(&self) -> bool {
        matches!(
            self.peek(),
            Some(Marker::FixMap(_) | Marker::Map16 | Marker::Map32)
        )
    }

    /// Whether the map ahead is an array in chunks.
    fn is_chunked(&self) -> bool {
        let mut ahead = Reader::new(self.file, self.at..self.end);
        ahead.map_len().is_ok_and(|n| n > 0) && ahead.str().is_ok_and(|key| key == CHUNKED)
    }

    fn peek(&self) -> Option<Marker> {
        (self.at < self.end).then(|| Marker::from_u8(self.file[self.at]))
    }

    fn marker(&mut self) -> Result<Marker> {
        let byte = self.take(1)?;
        Ok(Marker::from_u8(self.file[byte.start]))
    }

    /// The next `n` bytes.
    fn take(&mut self, n: usize) -> Result<Range<usize>> {
        if n > self.end - self.at {
            return Err(bad(format!(
                "{n} bytes at byte {}, but only {} are left",
                self.at,
                self.end - self.at
            )));
        }
        let range = self.at..self.at + n;
        self.at = range.end;
        Ok(range)
    }

    /// A big-endian unsigned integer of `n` bytes.
    fn number(&mut self, n: usize) -> Result<u64> {
        let range = self.take(n)?;
        Ok(self.file[range]
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn length(&mut self, n: usize) -> Result<usize> {
        let value = self.number(n)?;
        usize::try_from(value).map_err(|_| bad(format!("length {value} is out of range")))
    }

    /// A number of values, each of which takes at least one byte.
    fn count(&self, n: usize, bytes_each: usize) -> Result<usize> {
        if n > (self.end - self.at) / bytes_each {
            return Err(bad(format!(
                "{n} values at byte {}, but only {} bytes are left",
                self.at,
                self.end - self.at
            )));
        }
        Ok(n)
    }

    fn array_len(&mut self) -> Result<usize> {
        let start = self.at;
        let n = match self.marker()? {
            Marker::FixArray(n) => usize::from(n),
            Marker::Array16 => self.length(2)?,
            Marker::Array32 => self.length(4)?,
            other => return Err(unexpected(start, other, "an array")),
        };
        self.count(n, 1)
    }

    fn map_len(&mut self) -> Result<usize> {
        let start = self.at;
        let n = match self.marker()? {
            Marker::FixMap(n) => usize::from(n),
            Marker::Map16 => self.length(2)?,
            Marker::Map32 => self.length(4)?,
            other => return Err(unexpected(start, other, "a map")),
        };
        self.count(n, 2)
    }

    fn str(&mut self) -> Result<&'a str> {
        let start = self.at;
        let n = match self.marker()? {
            Marker::FixStr(n) => usize::from(n),
            Marker::Str8 => self.length(1)?,
            Marker::Str16 => self.length(2)?,
            Marker::Str32 => self.length(4)?,
            other => return Err(unexpected(start, other, "a string")),
        };
        let range = self.take(n)?;
        std::str::from_utf8(&self.file[range])
            .map_err(|_| bad(format!("the string at byte {start} is not UTF-8")))
    }

    fn key(&mut self) -> Result<&'a str> {
        let key = self.str()?;
        if key.len() > MAX_KEY {
            let n = key.len();
            return Err(bad(format!(
                "a key of {n} bytes, expected at most {MAX_KEY}"
            )));
        }
        Ok(key)
    }

    fn bin(&mut self) -> Result<Range<usize>> {
        let start = self.at;
        let n = match self.marker()? {
            Marker::Bin8 => self.length(1)?,
            Marker::Bin16 => self.length(2)?,
            Marker::Bin32 => self.length(4)?,
            other => return Err(unexpected(start, other, "bytes")),
        };
        self.take(n)
    }

    fn ext(&mut self) -> Result<(i8, Range<usize>)> {
        let start = self.at;
        let n = match self.marker()? {
            Marker::FixExt1 => 1,
            Marker::FixExt2 => 2,
            Marker::FixExt4 => 4,
            Marker::FixExt8 => 8,
            Marker::FixExt16 => 16,
            Marker::Ext8 => self.length(1)?,
            Marker::Ext16 => self.length(2)?,
            Marker::Ext32 => self.length(4)?,
            other => return Err(unexpected(start, other, "an array in an extension")),
        };
        let kind = self.number(1)? as u8 as i8;
        Ok((kind, self.take(n)?))
    }

    fn uint(&mut self) -> Result<usize> {
        let start = self.at;
        match self.marker()? {
            Marker::FixPos(n) => Ok(usize::from(n)),
            Marker::U8 => self.length(1),
            Marker::U16 => self.length(2),
            Marker::U32 => self.length(4),
            Marker::U64 => self.length(8),
            other => Err(unexpected(start, other, "a non-negative integer")),
        }
    }

    fn boolean(&mut self) -> Result<()> {
        let start = self.at;
        match self.marker()? {
            Marker::True | Marker::False => Ok(()),
            other => Err(unexpected(start, other, "a truth value")),
        }
    }

    fn expect_end(&self) -> Result<()> {
        match self.end - self.at {
            0 => Ok(()),
            n => Err(bad(format!("{n} bytes left over at byte {}", self.at))),
        }
    }
}

fn join_chunks(shape: Vec<usize>, parts: Vec<TensorRef>) -> Result<TensorRef> {
    let Some(element) = parts.first().map(|p| p.element) else {
        return Err(bad("an array in chunks without chunks".into()));
    };
    if let Some(other) = parts.iter().find(|p| p.element != element) {
        return Err(bad(format!(
            "chunks of {element:?} and {:?}, expected one element type",
            other.element
        )));
    }
    let chunks: Vec<Range<usize>> = parts.into_iter().flat_map(|p| p.chunks).collect();
    check_axes(shape.len())?;
    check_bytes(element, &shape, chunks.iter().map(Range::len).sum())?;
    Ok(TensorRef {
        element,
        shape,
        chunks,
    })
}

fn check_axes(axes: usize) -> Result<()> {
    if axes > MAX_AXES {
        return Err(bad(format!("{axes} axes, expected at most {MAX_AXES}")));
    }
    Ok(())
}

/// Shape times element size must be the number of bytes.
pub(crate) fn check_bytes(element: Element, shape: &[usize], bytes: usize) -> Result<()> {
    let expected = element_count(shape).and_then(|n| n.checked_mul(element.bytes()));
    if expected != Some(bytes) {
        return Err(bad(format!(
            "shape {shape:?} of {element:?} does not fit {bytes} bytes"
        )));
    }
    Ok(())
}

fn unexpected(at: usize, marker: Marker, expected: &str) -> Error {
    bad(format!("{marker:?} at byte {at}, expected {expected}"))
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
