//! A restricted reader of Python pickles that executes nothing.
//!
//! A pickle is a program for a stack machine. This machine knows the opcodes
//! that numpy arrays and torch tensors in dicts need, as Python 2 and 3 write
//! them, and a closed list of globals with built-in meanings;
//! everything else is an error with the opcode's offset. Containers live in
//! arenas and values are plain indices, so that no input makes the machine recurse.

use std::{collections::HashMap, ops::Range};

use crate::{
    checkpoint::{
        foreign::{Element, shortened},
        msgpack::{Bounds, check_bytes},
    },
    error::{Context, Error, Kind, Result},
};

/// Maximum nesting of dicts.
const MAX_DEPTH: usize = 32;
/// Maximum arguments that any of the globals uses.
const MAX_ARGUMENTS: usize = 8;
/// Maximum bytes of a dict's key or a storage's name.
const MAX_NAME: usize = 256;
/// Maximum axes of an array.
const MAX_AXES: usize = 32;

/// The program that wrote the pickle, which determines the allowed globals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// numpy, flax or JAX: arrays inside the file.
    Numpy,
    /// `torch.save`: storages beside the file.
    Torch,
}

/// Location of an array's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// In the file, unencoded.
    InFile(Range<usize>),
    /// In the file as UTF-8 text whose characters are the bytes (protocol 2).
    Latin1 {
        /// The text's byte range.
        text: Range<usize>,
        /// Its characters, each of which is one byte.
        len: usize,
    },
}

/// A numpy array in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumpyArray {
    /// Type of the elements.
    pub element: Element,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// The first index moves fastest (Fortran order).
    pub column_major: bool,
    /// Its bytes.
    pub data: Data,
}

/// A torch tensor: strides over a storage in another file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchTensor {
    /// Type of the elements.
    pub element: Element,
    /// Name of the storage in the archive.
    pub storage: String,
    /// Elements of the storage.
    pub storage_len: usize,
    /// First element.
    pub offset: usize,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// Stride of each axis, in elements.
    pub strides: Vec<usize>,
}

/// A leaf of the nested dict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf {
    /// numpy or JAX.
    Array(NumpyArray),
    /// torch.
    Torch(TorchTensor),
}

/// The leaves of the nested dict that `file` pickles, with their paths, in the order of the file.
///
/// # Errors
/// `BadInput` for an opcode or a global that is not on the list, for lengths
/// beyond the file, and for a pickle that is not a nested dict of arrays.
pub fn read(file: &[u8], writer: Writer) -> Result<Vec<(Vec<String>, Leaf)>> {
    let mut machine = PickleMachine::new(file, writer);
    let root = machine.run().doing(|| "read the pickle")?;
    machine.leaves(root).doing(|| "read the pickle")
}

/// A `torch.save` file older than torch 1.6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldTorch {
    /// The leaves, as from [`read`].
    pub leaves: Vec<(Vec<String>, Leaf)>,
    /// Byte range of each storage, by name.
    pub storages: HashMap<String, Range<usize>>,
}

/// The first bytes of such a file: torch's magic number (`torch/serialization.py`), pickled.
const OLD_TORCH: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// The version of the format.
const OLD_TORCH_VERSION: i64 = 1001;

/// Whether `file` begins like a `torch.save` file older than torch 1.6.
pub fn is_old_torch(file: &[u8]) -> bool {
    file.starts_with(OLD_TORCH)
}

/// Five pickles one after the other (the magic number, a version, the machine, the tensors, names of storages), and
/// the storages in the order of their names.
///
/// # Errors
/// As [`read`], and `BadInput` for another version, a big-endian machine, a name that comes twice or that no tensor
/// uses, and storages beyond the end of the file.
pub fn read_old_torch(file: &[u8]) -> Result<OldTorch> {
    let mut machine = PickleMachine::new(file, Writer::Torch);
    machine.at = OLD_TORCH.len().min(file.len());
    machine.old_torch().doing(|| "read the pickles")
}

/// Encodes text as latin-1.
///
/// # Errors
/// `BadInput` for a character above 255.
pub fn latin1(text: &str) -> Result<Vec<u8>> {
    text.chars()
        .map(|c| u8::try_from(u32::from(c)))
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| bad("text with characters above 255 as latin-1".into()))
}

/// The allowed globals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    Reconstruct,
    NdArray,
    Dtype,
    FromBuffer,
    Encode,
    FrozenDict,
    JaxArray,
    Bfloat16,
    RebuildTensor,
    /// `_rebuild_parameter`, and its equivalent class in older files.
    Parameter,
    /// A tensor class, rebuilt with the state that follows.
    Tensor(Element),
    OrderedDict,
    Storage(Element),
}

impl Global {
    fn find(writer: Writer, module: &str, name: &str) -> Option<Self> {
        match (writer, module, name) {
            (_, "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                Some(Self::Reconstruct)
            }
            (_, "numpy", "ndarray") => Some(Self::NdArray),
            (_, "numpy", "dtype") => Some(Self::Dtype),
            (_, "numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => {
                Some(Self::FromBuffer)
            }
            (_, "_codecs", "encode") => Some(Self::Encode),
            (Writer::Numpy, "flax.core.frozen_dict", "FrozenDict") => Some(Self::FrozenDict),
            (Writer::Numpy, "jax._src.array", "_reconstruct_array")
            | (Writer::Numpy, "jax._src.device_array", "reconstruct_device_array") => {
                Some(Self::JaxArray)
            }
            (Writer::Numpy, "ml_dtypes", "bfloat16") => Some(Self::Bfloat16),
            (Writer::Torch, "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                Some(Self::RebuildTensor)
            }
            (Writer::Torch, "torch._utils", "_rebuild_parameter")
            | (Writer::Torch, "torch.nn.parameter", "Parameter") => Some(Self::Parameter),
            (Writer::Torch, "collections", "OrderedDict") => Some(Self::OrderedDict),
            (Writer::Torch, "torch" | "torch.cuda", class) => Self::of_torch(class),
            _ => None,
        }
    }

    /// `FloatStorage`, `HalfTensor`.
    fn of_torch(class: &str) -> Option<Self> {
        let (kind, made): (_, fn(Element) -> Self) = match class.strip_suffix("Storage") {
            Some(kind) => (kind, Self::Storage),
            None => (class.strip_suffix("Tensor")?, Self::Tensor),
        };
        let element = match kind {
            "Double" => Element::F64,
            "Float" => Element::F32,
            "Half" => Element::F16,
            "BFloat16" => Element::Bf16,
            _ => return None,
        };
        Some(made(element))
    }
}

/// A value on the stack. Containers are indices into the machine's arenas.
#[derive(Debug, Clone, PartialEq)]
enum PickleValue {
    None,
    Bool(bool),
    Int(i64),
    /// UTF-8 text in the file.
    Text(Range<usize>),
    Bytes(Data),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Global(Global),
    Dtype(Element),
    Array(usize),
    Storage(usize),
    Tensor(usize),
}

/// A storage named by a persistent id.
#[derive(Debug, Clone)]
struct StorageId {
    element: Element,
    name: Range<usize>,
    len: usize,
}

struct PickleMachine<'a> {
    file: &'a [u8],
    at: usize,
    writer: Writer,
    stack: Vec<PickleValue>,
    marks: Vec<usize>,
    memo: HashMap<u32, PickleValue>,
    tuples: Vec<Vec<PickleValue>>,
    lists: Vec<Vec<PickleValue>>,
    dicts: Vec<Vec<(Range<usize>, PickleValue)>>,
    arrays: Vec<Option<NumpyArray>>,
    storages: Vec<StorageId>,
    tensors: Vec<Option<TorchTensor>>,
    /// Remaining bytes of text that may be decoded as latin-1.
    latin1_budget: usize,
}

impl<'a> PickleMachine<'a> {
    fn new(file: &'a [u8], writer: Writer) -> Self {
        Self {
            file,
            at: 0,
            writer,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            tuples: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            arrays: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
            latin1_budget: file.len(),
        }
    }

    /// Runs to STOP → the value on top of the stack.
    fn run(&mut self) -> Result<PickleValue> {
        loop {
            let start = self.at;
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)
                .doing(|| format!("opcode {opcode:#04x} at byte {start}"))?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.protocol(),
            0x95 => self.take(8).map(drop), // FRAME: its length is only a hint for buffering
            b'}' => self.push_dict(),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b's' => self.set_items(self.stack.len().checked_sub(2)),
            b'u' => {
                let mark = self.marks.pop();
                self.set_items(mark)
            }
            0x8c => self.text(1),
            b'X' => self.text(4),
            0x8d => self.text(8),
            b'C' => self.bytes(1),
            b'B' => self.bytes(4),
            0x8e | 0x96 => self.bytes(8),
            b'K' => self.int(1),
            b'M' => self.int(2),
            b'J' => self.int(4),
            0x8a => self.long(),
            b')' => self.push_tuple(self.stack.len()),
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(n).ok_or_else(empty_stack)?;
                self.push_tuple(from)
            }
            b't' => {
                let mark = self.marks.pop().ok_or_else(|| bad("no mark".into()))?;
                self.push_tuple(mark)
            }
            b'R' => self.reduce(),
            // NEWOBJ: a call of a class.
            0x81 if self.writer == Writer::Torch => self.reduce(),
            b'b' => self.build(),
            0x88 => self.push(PickleValue::Bool(true)),
            0x89 => self.push(PickleValue::Bool(false)),
            b'N' => self.push(PickleValue::None),
            b'c' => self.global(),
            0x93 => self.stack_global(),
            0x94 => self.memoize(u32::try_from(self.memo.len()).ok()),
            b'q' => {
                let index = self.number(1)?;
                self.memoize(u32::try_from(index).ok())
            }
            b'r' => {
                let index = self.number(4)?;
                self.memoize(u32::try_from(index).ok())
            }
            b'h' => self.recall(1),
            b'j' => self.recall(4),
            b'Q' if self.writer == Writer::Torch => self.persistent(),
            // Python 2's strings, and the lists of pairs for its ordered dicts.
            b'U' if self.writer == Writer::Torch => self.text(1),
            b'T' if self.writer == Writer::Torch => self.text(4),
            b']' if self.writer == Writer::Torch => self.push_list(),
            b'a' if self.writer == Writer::Torch => self.append(self.stack.len().checked_sub(1)),
            b'e' if self.writer == Writer::Torch => {
                let mark = self.marks.pop();
                self.append(mark)
            }
            _ => Err(bad("not allowed in a checkpoint".into())),
        }
    }

    fn protocol(&mut self) -> Result<()> {
        match self.byte()? {
            2..=5 => Ok(()),
            n => Err(bad(format!("protocol {n}, expected 2 to 5"))),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        let range = self.take(1)?;
        Ok(self.file[range.start])
    }

    fn take(&mut self, n: usize) -> Result<Range<usize>> {
        let left = self.file.len() - self.at;
        if n > left {
            return Err(bad(format!(
                "{n} bytes at byte {}, but only {left} are left",
                self.at
            )));
        }
        let range = self.at..self.at + n;
        self.at = range.end;
        Ok(range)
    }

    /// A little-endian unsigned integer of `n` bytes.
    fn number(&mut self, n: usize) -> Result<u64> {
        let range = self.take(n)?;
        Ok(self.file[range]
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn block(&mut self, length_bytes: usize) -> Result<Range<usize>> {
        let n = self.number(length_bytes)?;
        let n = usize::try_from(n).map_err(|_| bad(format!("length {n} is out of range")))?;
        self.take(n)
    }

    fn text(&mut self, length_bytes: usize) -> Result<()> {
        let range = self.block(length_bytes)?;
        if std::str::from_utf8(&self.file[range.clone()]).is_err() {
            return Err(bad("text that is not UTF-8".into()));
        }
        self.push(PickleValue::Text(range))
    }

    fn bytes(&mut self, length_bytes: usize) -> Result<()> {
        let range = self.block(length_bytes)?;
        self.push(PickleValue::Bytes(Data::InFile(range)))
    }

    /// BININT is signed, BININT1 and BININT2 are not.
    fn int(&mut self, n: usize) -> Result<()> {
        let value = self.number(n)? as i64;
        let value = if n == 4 {
            i64::from(value as i32)
        } else {
            value
        };
        self.push(PickleValue::Int(value))
    }

    /// LONG1: up to 8 bytes here, two's complement.
    fn long(&mut self) -> Result<()> {
        let n = usize::from(self.byte()?);
        if n > 8 {
            return Err(bad(format!("an integer of {n} bytes, expected at most 8")));
        }
        let value = self.number(n)? as i64;
        let unused = 64 - 8 * n as u32;
        let value = value.checked_shl(unused).map_or(0, |v| v >> unused);
        self.push(PickleValue::Int(value))
    }

    fn push(&mut self, value: PickleValue) -> Result<()> {
        self.stack.push(value);
        Ok(())
    }

    /// Pops the top of the stack, which must be above the last mark.
    fn pop(&mut self) -> Result<PickleValue> {
        if self.marks.last().is_some_and(|&m| self.stack.len() <= m) {
            return Err(bad("a mark where a value is expected".into()));
        }
        self.stack.pop().ok_or_else(empty_stack)
    }

    fn push_dict(&mut self) -> Result<()> {
        self.dicts.push(Vec::new());
        self.push(PickleValue::Dict(self.dicts.len() - 1))
    }

    fn push_list(&mut self) -> Result<()> {
        self.lists.push(Vec::new());
        self.push(PickleValue::List(self.lists.len() - 1))
    }

    /// APPEND and APPENDS: appends the values from `from` on to the list below them.
    fn append(&mut self, from: Option<usize>) -> Result<()> {
        let from = from
            .filter(|&f| f <= self.stack.len())
            .ok_or_else(empty_stack)?;
        let items = self.stack.split_off(from);
        let Some(&PickleValue::List(list)) = self.stack.last() else {
            return Err(bad("items for something that is not a list".into()));
        };
        self.lists[list].extend(items);
        Ok(())
    }

    fn push_tuple(&mut self, from: usize) -> Result<()> {
        if from > self.stack.len() {
            return Err(empty_stack());
        }
        self.tuples.push(self.stack.split_off(from));
        self.push(PickleValue::Tuple(self.tuples.len() - 1))
    }

    /// SETITEM and SETITEMS: pairs from `from` on go into the dict below them.
    fn set_items(&mut self, from: Option<usize>) -> Result<()> {
        let from = from
            .filter(|&f| f <= self.stack.len())
            .ok_or_else(empty_stack)?;
        let items = self.stack.split_off(from);
        let Some(&PickleValue::Dict(dict)) = self.stack.last() else {
            return Err(bad("items for something that is not a dict".into()));
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(bad("a key without a value".into()));
        }
        for [key, value] in pairs {
            let PickleValue::Text(key) = key else {
                return Err(bad("a key that is not text".into()));
            };
            check_name(key)?;
            self.dicts[dict].push((key.clone(), value.clone()));
        }
        Ok(())
    }

    fn memoize(&mut self, index: Option<u32>) -> Result<()> {
        let index = index.ok_or_else(|| bad("too many memo entries".into()))?;
        let value = self.stack.last().cloned().ok_or_else(empty_stack)?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, n: usize) -> Result<()> {
        let index = self.number(n)?;
        let value = u32::try_from(index)
            .ok()
            .and_then(|i| self.memo.get(&i).cloned());
        match value {
            Some(value) => self.push(value),
            None => Err(bad(format!("memo entry {index} was never stored"))),
        }
    }

    fn global(&mut self) -> Result<()> {
        let module = self.line()?;
        let name = self.line()?;
        self.push_global(module, name)
    }

    fn stack_global(&mut self) -> Result<()> {
        let name = self.pop()?;
        let module = self.pop()?;
        let (PickleValue::Text(module), PickleValue::Text(name)) = (module, name) else {
            return Err(bad("a global whose name is not text".into()));
        };
        self.push_global(module, name)
    }

    fn push_global(&mut self, module: Range<usize>, name: Range<usize>) -> Result<()> {
        let (module, name) = (self.str(module)?, self.str(name)?);
        let global = Global::find(self.writer, module, name).ok_or_else(|| {
            bad(format!(
                "global {}.{} is not on the list of globals that a checkpoint may name",
                shortened(module),
                shortened(name)
            ))
        })?;
        self.push(PickleValue::Global(global))
    }

    fn line(&mut self) -> Result<Range<usize>> {
        let rest = &self.file[self.at..];
        let n = rest
            .iter()
            .position(|&b| b == b'\n')
            .ok_or_else(|| bad("a line without an end".into()))?;
        let range = self.take(n)?;
        self.take(1)?;
        Ok(range)
    }

    fn str(&self, range: Range<usize>) -> Result<&'a str> {
        std::str::from_utf8(&self.file[range]).map_err(|_| bad("text that is not UTF-8".into()))
    }

    fn arguments(&mut self) -> Result<Vec<PickleValue>> {
        match self.pop()? {
            PickleValue::Tuple(i) => {
                Ok(self.tuples[i].iter().take(MAX_ARGUMENTS).cloned().collect())
            }
            _ => Err(bad("arguments that are not a tuple".into())),
        }
    }

    /// REDUCE: a call of one of the globals.
    fn reduce(&mut self) -> Result<()> {
        let arguments = self.arguments()?;
        let PickleValue::Global(global) = self.pop()? else {
            return Err(bad("a call of something that is not a global".into()));
        };
        let value = self
            .call(global, &arguments)
            .doing(|| format!("{global:?}"))?;
        self.push(value)
    }

    fn call(&mut self, global: Global, arguments: &[PickleValue]) -> Result<PickleValue> {
        match (global, arguments) {
            (Global::Reconstruct, [PickleValue::Global(Global::NdArray), ..]) => {
                Ok(self.new_array())
            }
            (Global::Dtype, [name, ..]) => self.dtype(name),
            (Global::FromBuffer, [bytes, dtype, shape, PickleValue::Text(order)]) => {
                let column_major = match self.str(order.clone())? {
                    "C" => false,
                    "F" => true,
                    other => return Err(bad(format!("order {other:?}, expected C or F"))),
                };
                let array = self.array(shape, dtype, column_major, bytes)?;
                self.arrays.push(Some(array));
                Ok(PickleValue::Array(self.arrays.len() - 1))
            }
            (Global::Encode, [PickleValue::Text(text), PickleValue::Text(codec)]) => {
                self.encode(text.clone(), codec.clone())
            }
            (Global::FrozenDict, [PickleValue::Dict(dict)]) => Ok(PickleValue::Dict(*dict)),
            (Global::JaxArray, [PickleValue::Global(Global::Reconstruct), _, state, ..]) => {
                let PickleValue::Array(index) = self.new_array() else {
                    return Err(bad("no array".into()));
                };
                self.set_array(index, state)?;
                Ok(PickleValue::Array(index))
            }
            (Global::OrderedDict, []) => self.ordered_dict(&[]),
            (Global::OrderedDict, [PickleValue::List(pairs)]) => {
                let pairs = self.take_list(*pairs);
                self.ordered_dict(&pairs)
            }
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                let tensor = self.tensor([storage, offset, shape, strides])?;
                self.tensors.push(Some(tensor));
                Ok(PickleValue::Tensor(self.tensors.len() - 1))
            }
            (Global::Parameter, [PickleValue::Tensor(tensor), ..]) => {
                Ok(PickleValue::Tensor(*tensor))
            }
            (Global::Tensor(_), []) => {
                self.tensors.push(None);
                Ok(PickleValue::Tensor(self.tensors.len() - 1))
            }
            _ => Err(bad("called with unexpected arguments".into())),
        }
    }

    /// Takes a list's values, leaving it empty, so that taking it repeatedly costs nothing.
    fn take_list(&mut self, list: usize) -> Vec<PickleValue> {
        std::mem::take(&mut self.lists[list])
    }

    /// Pairs, as lists of two → a dict.
    fn ordered_dict(&mut self, pairs: &[PickleValue]) -> Result<PickleValue> {
        let mut dict = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let pair = match pair {
                PickleValue::List(pair) => self.take_list(*pair),
                _ => Vec::new(),
            };
            let [PickleValue::Text(key), value] = pair.as_slice() else {
                return Err(bad(
                    "a dict entry that is not a pair of key and value".into()
                ));
            };
            check_name(key)?;
            dict.push((key.clone(), value.clone()));
        }
        self.dicts.push(dict);
        Ok(PickleValue::Dict(self.dicts.len() - 1))
    }

    fn new_array(&mut self) -> PickleValue {
        self.arrays.push(None);
        PickleValue::Array(self.arrays.len() - 1)
    }

    fn dtype(&self, name: &PickleValue) -> Result<PickleValue> {
        match name {
            PickleValue::Global(Global::Bfloat16) => Ok(PickleValue::Dtype(Element::Bf16)),
            PickleValue::Text(name) => {
                Element::from_numpy(self.str(name.clone())?.trim_start_matches('<'))
                    .map(PickleValue::Dtype)
            }
            _ => Err(bad("called with unexpected arguments".into())),
        }
    }

    /// Protocol 2 writes bytes as `_codecs.encode(text, "latin1")`; they are decoded when they are used.
    fn encode(&mut self, text: Range<usize>, codec: Range<usize>) -> Result<PickleValue> {
        let codec = self.str(codec)?;
        if !matches!(codec, "latin1" | "latin-1") {
            return Err(bad(format!("codec {codec:?}, expected latin1")));
        }
        // Bounds the work: a small file could have the same long text encoded again and again.
        self.latin1_budget = self
            .latin1_budget
            .checked_sub(text.len())
            .ok_or_else(|| bad("more text to encode than the file holds".into()))?;
        let len = self.str(text.clone())?.chars().count();
        Ok(PickleValue::Bytes(Data::Latin1 { text, len }))
    }

    /// BUILD: the state of the array or dtype below.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match self.stack.last() {
            Some(&PickleValue::Array(index)) => {
                self.set_array(index, &state).doing(|| "array state")
            }
            Some(PickleValue::Dtype(_)) => self.check_dtype_state(&state),
            Some(&PickleValue::Tensor(index)) => {
                self.set_tensor(index, &state).doing(|| "tensor state")
            }
            // torch keeps format versions as attributes of its state dict.
            Some(PickleValue::Dict(_)) if self.writer == Writer::Torch => Ok(()),
            _ => Err(bad("a state for a value that takes none".into())),
        }
    }

    fn tuple(&self, value: &PickleValue) -> Result<&[PickleValue]> {
        match value {
            PickleValue::Tuple(i) => Ok(&self.tuples[*i]),
            _ => Err(bad("a value that is not a tuple".into())),
        }
    }

    /// `(version, byte order, …)`.
    fn check_dtype_state(&self, state: &PickleValue) -> Result<()> {
        let [_, PickleValue::Text(order), ..] = self.tuple(state)? else {
            return Err(bad("a dtype state without a byte order".into()));
        };
        match self.str(order.clone())? {
            "<" | "=" | "|" => Ok(()),
            other => Err(bad(format!("byte order {other:?}, expected little-endian"))),
        }
    }

    /// `(version, shape, dtype, Fortran order, bytes)`.
    fn set_array(&mut self, index: usize, state: &PickleValue) -> Result<()> {
        let [_, shape, dtype, PickleValue::Bool(column_major), bytes] = self.tuple(state)? else {
            return Err(bad("expected (version, shape, dtype, order, bytes)".into()));
        };
        let array = self.array(shape, dtype, *column_major, bytes)?;
        self.arrays[index] = Some(array);
        Ok(())
    }

    fn array(
        &self,
        shape: &PickleValue,
        dtype: &PickleValue,
        column_major: bool,
        bytes: &PickleValue,
    ) -> Result<NumpyArray> {
        let (&PickleValue::Dtype(element), PickleValue::Bytes(data)) = (dtype, bytes) else {
            return Err(bad("an array without dtype or bytes".into()));
        };
        let shape = self.sizes(shape)?;
        let n_bytes = match data {
            Data::InFile(range) => range.len(),
            Data::Latin1 { len, .. } => *len,
        };
        check_bytes(element, &shape, n_bytes)?;
        Ok(NumpyArray {
            element,
            shape,
            column_major,
            data: data.clone(),
        })
    }

    fn sizes(&self, value: &PickleValue) -> Result<Vec<usize>> {
        let values = self.tuple(value)?;
        if values.len() > MAX_AXES {
            return Err(bad(format!(
                "{} axes, expected at most {MAX_AXES}",
                values.len()
            )));
        }
        values.iter().map(size).collect()
    }

    /// BINPERSID: `("storage", type, name, device, elements)`; older files add None, for the whole of a storage.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let [
            _,
            PickleValue::Global(Global::Storage(element)),
            PickleValue::Text(name),
            _,
            len,
            part @ ..,
        ] = self.tuple(&id)?
        else {
            return Err(bad("a persistent id that is not a storage".into()));
        };
        if !matches!(part, [] | [PickleValue::None]) {
            return Err(bad("a part of a storage, expected a whole one".into()));
        }
        check_name(name)?;
        let storage = StorageId {
            element: *element,
            name: name.clone(),
            len: size(len)?,
        };
        self.storages.push(storage);
        self.push(PickleValue::Storage(self.storages.len() - 1))
    }

    /// `(storage, offset, shape, strides)` of a tensor that its class made; a parameter's state is ignored.
    fn set_tensor(&mut self, index: usize, state: &PickleValue) -> Result<()> {
        if self.tensors[index].is_none() {
            let [storage, offset, shape, strides] = self.tuple(state)? else {
                return Err(bad("expected (storage, offset, shape, strides)".into()));
            };
            self.tensors[index] = Some(self.tensor([storage, offset, shape, strides])?);
        }
        Ok(())
    }

    fn tensor(&self, [storage, offset, shape, strides]: [&PickleValue; 4]) -> Result<TorchTensor> {
        let PickleValue::Storage(storage) = storage else {
            return Err(bad("a tensor without a storage".into()));
        };
        let storage = &self.storages[*storage];
        Ok(TorchTensor {
            element: storage.element,
            storage: shortened(self.str(storage.name.clone())?),
            storage_len: storage.len,
            offset: size(offset)?,
            shape: self.sizes(shape)?,
            strides: self.sizes(strides)?,
        })
    }

    /// Reads the rest of the file, after the magic number.
    fn old_torch(&mut self) -> Result<OldTorch> {
        let version = self.next_pickle()?;
        if version != PickleValue::Int(OLD_TORCH_VERSION) {
            return Err(bad(format!(
                "the format is not version {OLD_TORCH_VERSION} of torch"
            )));
        }
        let PickleValue::Dict(system) = self.next_pickle()? else {
            return Err(bad("the description of the machine is missing".into()));
        };
        let is_little = |(key, value): &(Range<usize>, PickleValue)| {
            &self.file[key.clone()] == b"little_endian" && *value == PickleValue::Bool(true)
        };
        if !self.dicts[system].iter().any(is_little) {
            return Err(bad("the machine that wrote it was not little-endian".into()));
        }
        let root = self.next_pickle()?;
        let leaves = self.leaves(root)?;
        let PickleValue::List(names) = self.next_pickle()? else {
            return Err(bad("the names of the storages are not a list".into()));
        };
        let names = self.take_list(names);
        let file = self.file;
        let ids = self.storages.iter();
        let elements = ids.map(|id| (&file[id.name.clone()], id.element));
        let elements: HashMap<&[u8], Element> = elements.collect();
        let mut storages = HashMap::new();
        for name in names {
            let PickleValue::Text(name) = name else {
                return Err(bad("the name of a storage is not text".into()));
            };
            let element = elements.get(&file[name.clone()]).copied();
            let name = shortened(self.str(name)?);
            let element = element.ok_or_else(|| bad(format!("no tensor uses storage {name:?}")))?;
            let bytes = self
                .old_storage(element)
                .doing(|| format!("storage {name}"))?;
            if storages.insert(name.clone(), bytes).is_some() {
                return Err(bad(format!("storage {name} comes twice")));
            }
        }
        Ok(OldTorch { leaves, storages })
    }

    /// The number of elements as eight bytes, then the elements.
    fn old_storage(&mut self, element: Element) -> Result<Range<usize>> {
        let n = self.number(8)?;
        let bytes = usize::try_from(n).ok();
        let bytes = bytes.and_then(|n| n.checked_mul(element.bytes()));
        let bytes = bytes.ok_or_else(|| bad(format!("{n} elements are out of range")))?;
        self.take(bytes)
    }

    /// Runs the next pickle, with an empty stack and memo.
    fn next_pickle(&mut self) -> Result<PickleValue> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        self.run()
    }

    /// Walks the nested dicts below `root`.
    fn leaves(&self, root: PickleValue) -> Result<Vec<(Vec<String>, Leaf)>> {
        let mut leaves = Vec::new();
        self.walk(root, &mut Vec::new(), &mut Bounds::default(), &mut leaves)?;
        Ok(leaves)
    }

    fn walk(
        &self,
        value: PickleValue,
        path: &mut Vec<String>,
        bounds: &mut Bounds,
        leaves: &mut Vec<(Vec<String>, Leaf)>,
    ) -> Result<()> {
        // A dict that is referenced twice counts twice, so that shared references cannot multiply the output.
        bounds.node()?;
        if path.len() > MAX_DEPTH {
            let message = format!("dicts nested deeper than {MAX_DEPTH}, or in themselves");
            return Err(bad(message));
        }
        let leaf = match value {
            PickleValue::Dict(dict) => {
                for (key, value) in &self.dicts[dict] {
                    path.push(shortened(self.str(key.clone())?));
                    self.walk(value.clone(), path, bounds, leaves)?;
                    path.pop();
                }
                return Ok(());
            }
            PickleValue::Array(i) => self.arrays[i].clone().map(Leaf::Array),
            PickleValue::Tensor(i) => self.tensors[i].clone().map(Leaf::Torch),
            _ => None,
        };
        let leaf = leaf.ok_or_else(|| bad(format!("{:?} is not an array", path.join("/"))))?;
        bounds.leaf(path)?;
        leaves.push((path.clone(), leaf));
        Ok(())
    }
}

fn check_name(name: &Range<usize>) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(bad(format!(
            "a name of {} bytes, expected at most {MAX_NAME}",
            name.len()
        )));
    }
    Ok(())
}

fn size(value: &PickleValue) -> Result<usize> {
    match value {
        PickleValue::Int(n) => {
            usize::try_from(*n).map_err(|_| bad(format!("size {n} is negative")))
        }
        _ => Err(bad("a size that is not an integer".into())),
    }
}

fn empty_stack() -> Error {
    bad("the stack is empty".into())
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
