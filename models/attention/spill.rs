//! Blocks of keys and values in mapped files: the operating system's page cache
//! keeps what is read often, the disk the rest.
//!
//! A file is a header of 4,096 bytes, numbers little-endian (magic, version, layers,
//! key-value heads, channels, element type, tokens of a block, number of columns), and
//! columns: the blocks of every layer for the same 256 tokens, as the kernel
//! reads them, padded to whole pages.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use longreel_kernels::{
    attend::{BLOCK_TOKENS, KvDtype, KvShape, PackedBlock},
    mapping::MappedBytes,
};

use crate::{
    error::{Context, Error, Kind, Result},
    file_name::FileName,
};

/// The first bytes of a file of blocks.
const MAGIC: [u8; 8] = *b"longrlKV";
const VERSION: u32 = 1;

/// Bytes of the header, and what columns are padded to: a page.
const PAGE: usize = 4096;

/// The header of a file of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpillHeader {
    /// Decoder layers.
    pub layers: usize,
    /// Heads, channels and element type of a block.
    pub shape: KvShape,
    /// Number of columns that follow.
    pub columns: u64,
}

impl SpillHeader {
    /// Parses the header of a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// `BadInput` when it is not such a header, of another version, or does not match the file's length.
    pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Self> {
        let bad = |message: String| Error::new(Kind::BadInput, message);
        let found = bytes.get(..8).unwrap_or(bytes);
        if found != MAGIC {
            let message = format!("a file of blocks begins with {MAGIC:02x?}, found {found:02x?}");
            return Err(bad(message));
        }
        let cut = || bad(format!("the file ends in its header ({file_bytes} bytes)"));
        let number = |index: usize| {
            let bytes = bytes.get(8 + 4 * index..12 + 4 * index)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let [version, layers, kv_heads, d, dtype, tokens, low, high] =
            [0, 1, 2, 3, 4, 5, 6, 7].map(|index| number(index).ok_or_else(cut));
        let version = version?;
        if version != VERSION {
            return Err(bad(format!("version {version}, expected {VERSION}")));
        }
        let (dtype, tokens) = (dtype?, tokens?);
        let known = KvDtype::ALL.get(dtype as usize).copied();
        let dtype = known.ok_or_else(|| bad(format!("element type {dtype}, expected 0 to 3")))?;
        if tokens as usize != BLOCK_TOKENS {
            return Err(bad(format!(
                "{tokens} tokens a block, expected {BLOCK_TOKENS}"
            )));
        }
        let (layers, kv_heads, d) = (layers? as usize, kv_heads? as usize, d? as usize);
        let most = [layers, kv_heads, d].into_iter().max().unwrap_or(0);
        // Bounded before they are multiplied, so that no product of the header's numbers overflows.
        let least = [layers, kv_heads, d].into_iter().min().unwrap_or(0);
        if least == 0 || most > 1 << 16 {
            let found = format!("{layers} layers, {kv_heads} heads, {d} channels");
            return Err(bad(format!("{found}, expected 1 to 65536 of each")));
        }
        let header = Self {
            layers,
            shape: KvShape { kv_heads, d, dtype },
            columns: u64::from(low?) | u64::from(high?) << 32,
        };
        let expected = header.file_bytes();
        if u128::from(file_bytes) != expected {
            let message = format!(
                "the file has {file_bytes} bytes, {} blocks of {layers} layers take {expected}",
                header.columns
            );
            return Err(bad(message));
        }
        Ok(header)
    }

    /// The header as it is written.
    fn to_bytes(self) -> Vec<u8> {
        let dtype = KvDtype::ALL.iter().position(|&d| d == self.shape.dtype);
        let mut bytes = MAGIC.to_vec();
        for number in [
            VERSION,
            self.layers as u32,
            self.shape.kv_heads as u32,
            self.shape.d as u32,
            dtype.unwrap_or(0) as u32,
            BLOCK_TOKENS as u32,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.columns.to_le_bytes());
        bytes.resize(PAGE, 0);
        bytes
    }

    /// Bytes of one column, without padding.
    fn column_bytes(&self) -> u128 {
        self.layers as u128 * self.shape.block_bytes() as u128
    }

    fn column_stride(&self) -> u128 {
        self.column_bytes().next_multiple_of(PAGE as u128)
    }

    fn file_bytes(&self) -> u128 {
        PAGE as u128 + u128::from(self.columns) * self.column_stride()
    }
}

/// Writes a header and the columns, each the blocks of every layer.
pub fn write<'a>(
    out: &mut dyn Write,
    header: SpillHeader,
    columns: impl IntoIterator<Item = Vec<&'a PackedBlock>>,
) -> Result<()> {
    out.write_all(&header.to_bytes())?;
    let padding = vec![0; (header.column_stride() - header.column_bytes()) as usize];
    for column in columns {
        for block in column {
            out.write_all(block.as_bytes())?;
        }
        out.write_all(&padding)?;
    }
    Ok(out.flush()?)
}

/// Maps the blocks of a file: for every column, those of every layer.
///
/// # Errors
/// `BadInput` when the file is truncated, or not a file of blocks of this shape.
pub fn map(file: &File, layers: usize, shape: KvShape) -> Result<Vec<Vec<PackedBlock>>> {
    let file_bytes = file.metadata()?.len();
    if file_bytes < PAGE as u64 {
        // An empty file cannot be mapped.
        let message = format!("the file has {file_bytes} bytes, a header takes {PAGE}");
        return Err(Error::new(Kind::BadInput, message));
    }
    let bytes = MappedBytes::of(file)?;
    let header = SpillHeader::parse(bytes.as_bytes(), file_bytes)?;
    if (header.layers, header.shape) != (layers, shape) {
        let found = format!("{} layers of {:?}", header.layers, header.shape);
        let message = format!("the blocks are of {found}, expected {layers} layers of {shape:?}");
        return Err(Error::new(Kind::BadInput, message));
    }
    let block = |column: usize, layer: usize| {
        let start = PAGE + column * header.column_stride() as usize + layer * shape.block_bytes();
        let bytes = bytes.slice(start..start + shape.block_bytes())?;
        PackedBlock::from_mapped(shape, bytes)
    };
    let column = |column| (0..layers).map(|layer| block(column, layer)).collect();
    let blocks: Option<_> = (0..header.columns as usize).map(column).collect();
    blocks.ok_or_else(|| Error::new(Kind::BadInput, "the blocks are not aligned"))
}

/// Files made so far, so that a process uses no name twice.
static FILES: AtomicU64 = AtomicU64::new(0);

/// A directory for blocks that do not fit in memory.
///
/// Every column is a file of its own, unlinked as soon as it is mapped: its
/// space is freed when the last context drops it, however the process ends.
#[derive(Debug)]
pub struct SpillDir {
    dir: PathBuf,
}

impl SpillDir {
    /// Spills to the directory `dir`, which is created when absent.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).doing(|| format!("make the directory {}", dir.shown()))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Writes the blocks of every layer for the same tokens to a file, and returns them mapped.
    ///
    /// # Errors
    /// `Io` when the disk is full or fails; nothing is left behind.
    pub fn put(&self, blocks: &[&PackedBlock]) -> Result<Vec<PackedBlock>> {
        let doing = || format!("spill keys and values to {}", self.dir.shown());
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!("longreel-{}-{number}.kv", std::process::id());
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = options.open(&path).map_err(Error::from).doing(doing)?;
        // Its error is kept until the file is unlinked: nothing stays behind on either path.
        let mapped = Self::fill(&file, blocks);
        let unlinked = fs::remove_file(&path);
        let mapped = mapped.doing(doing)?;
        unlinked.map_err(Error::from).doing(doing)?;
        Ok(mapped)
    }

    fn fill(mut file: &File, blocks: &[&PackedBlock]) -> Result<Vec<PackedBlock>> {
        let Some(first) = blocks.first() else {
            return Ok(Vec::new());
        };
        let header = SpillHeader {
            layers: blocks.len(),
            shape: first.shape(),
            columns: 1,
        };
        write(&mut file, header, [blocks.to_vec()])?;
        let mut columns = map(file, header.layers, header.shape)?;
        Ok(columns.pop().unwrap_or_default())
    }
}
