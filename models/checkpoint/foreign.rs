//! Tensors of foreign checkpoints in place: strided views of element
//! ranges in mapped files, converted block by block without being loaded as a whole.

use std::sync::Arc;

use half::{bf16, f16};
use longreel_kernels::mapping::MappedBytes;
use rayon::prelude::*;
use safetensors::Dtype;

use crate::error::{Error, Kind, Result};

/// Rows of a block that is gathered at once.
const TILE_ROWS: usize = 128;
/// Columns of a block that is gathered at once.
const TILE_COLUMNS: usize = 64;
/// Output bytes held in memory at once.
const BLOCK_BYTES: usize = 64 << 20;

/// Element types of foreign weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
}

impl Element {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The element type that numpy calls `name`.
    ///
    /// # Errors
    /// `BadInput` for an unsupported type.
    pub fn from_numpy(name: &str) -> Result<Self> {
        match name {
            "float64" | "f8" => Ok(Self::F64),
            "float32" | "f4" => Ok(Self::F32),
            "float16" | "f2" => Ok(Self::F16),
            "bfloat16" => Ok(Self::Bf16),
            _ => Err(bad(format!(
                "element type {name:?}, expected float64, float32, float16 or bfloat16"
            ))),
        }
    }

    /// The element type of a safetensors entry.
    ///
    /// # Errors
    /// `BadInput` for an unsupported type.
    pub fn from_safetensors(dtype: Dtype) -> Result<Self> {
        match dtype {
            Dtype::F64 => Ok(Self::F64),
            Dtype::F32 => Ok(Self::F32),
            Dtype::F16 => Ok(Self::F16),
            Dtype::BF16 => Ok(Self::Bf16),
            other => Err(bad(format!(
                "dtype {other:?}, expected F64, F32, F16 or BF16"
            ))),
        }
    }

    /// The type it is stored as by default: a model directory
    /// holds bf16 and f32 only, and f32 holds every f16 number exactly.
    pub fn stored(self) -> Dtype {
        match self {
            Self::F64 | Self::F32 | Self::F16 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
        }
    }
}

/// The number of elements of `shape`, or `None` where it overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// A name from the file, shortened to 200 characters.
pub(crate) fn shortened(name: &str) -> String {
    name.chars().take(200).collect()
}

/// Bytes of elements: in a mapped file, or decoded from one.
#[derive(Clone)]
pub enum StoragePiece {
    /// In the mapped file.
    Mapped(MappedBytes),
    /// Decoded from the file's encoding.
    Owned(Arc<[u8]>),
}

impl StoragePiece {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes.as_bytes(),
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A flat run of elements in one or more pieces.
#[derive(Clone)]
pub struct Storage {
    element: Element,
    pieces: Arc<[StoragePiece]>,
    /// Number of the first element of each piece.
    starts: Arc<[usize]>,
    len: usize,
}

impl Storage {
    /// The elements of `pieces`, concatenated.
    ///
    /// # Errors
    /// `BadInput` when a piece is not a whole number of elements.
    pub fn new(element: Element, pieces: Vec<StoragePiece>) -> Result<Self> {
        let mut starts = Vec::with_capacity(pieces.len());
        let mut len = 0usize;
        for piece in &pieces {
            let bytes = piece.as_bytes().len();
            if !bytes.is_multiple_of(element.bytes()) {
                return Err(bad(format!(
                    "{bytes} bytes are not a whole number of {element:?} elements"
                )));
            }
            starts.push(len);
            len += bytes / element.bytes();
        }
        Ok(Self {
            element,
            pieces: pieces.into(),
            starts: starts.into(),
            len,
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Passes the elements `start..start + count` to `take`, as bytes, piece by piece.
    fn run(&self, mut start: usize, mut count: usize, mut take: impl FnMut(&[u8])) {
        let size = self.element.bytes();
        let mut i = self
            .starts
            .partition_point(|&s| s <= start)
            .saturating_sub(1);
        while count > 0 {
            let Some(piece) = self.pieces.get(i) else {
                return;
            };
            let bytes = piece.as_bytes();
            let from = start - self.starts[i];
            let n = count.min(bytes.len() / size - from);
            take(&bytes[from * size..(from + n) * size]);
            (start, count, i) = (start + n, count - n, i + 1);
        }
    }
}

/// A tensor as a strided view of a storage.
#[derive(Clone)]
pub struct View {
    storage: Storage,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// The whole storage in row-major order (the last index moves fastest).
    ///
    /// # Errors
    /// `BadInput` when shape and number of elements disagree.
    pub fn row_major(storage: Storage, shape: &[usize]) -> Result<Self> {
        let strides = row_major_strides(shape);
        Self::whole(storage, shape, strides)
    }

    /// The whole storage in column-major order (the first index moves fastest).
    ///
    /// # Errors
    /// `BadInput` when shape and number of elements disagree.
    pub fn column_major(storage: Storage, shape: &[usize]) -> Result<Self> {
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        let mut strides = row_major_strides(&reversed);
        strides.reverse();
        Self::whole(storage, shape, strides)
    }

    fn whole(storage: Storage, shape: &[usize], strides: Vec<usize>) -> Result<Self> {
        if element_count(shape) != Some(storage.len()) {
            return Err(bad(format!(
                "shape {shape:?} does not fit the {} elements stored",
                storage.len()
            )));
        }
        Ok(Self {
            storage,
            offset: 0,
            shape: shape.to_vec(),
            strides,
        })
    }

    /// Elements at `offset + Σ index·stride`.
    ///
    /// # Errors
    /// `BadInput` when one of them lies outside the storage.
    pub fn strided(
        storage: Storage,
        offset: usize,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self> {
        let reach = |last: usize, (&d, &s): (&usize, &usize)| {
            last.checked_add(d.saturating_sub(1).checked_mul(s)?)
        };
        let last = shape.iter().zip(strides).try_fold(offset, reach);
        let fits = last.is_some_and(|last| last < storage.len()) || shape.contains(&0);
        if shape.len() != strides.len() || !fits {
            return Err(bad(format!(
                "shape {shape:?}, strides {strides:?} and offset {offset} reach beyond the {} elements stored",
                storage.len()
            )));
        }
        Ok(Self {
            storage,
            offset,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
        })
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of the elements.
    pub fn element(&self) -> Element {
        self.storage.element
    }

    /// The slice at `index` of `axis`, without that axis; `None` when there is no such slice.
    pub fn select(&self, axis: usize, index: usize) -> Option<Self> {
        if index >= *self.shape.get(axis)? {
            return None;
        }
        let mut view = self.clone();
        view.shape.remove(axis);
        view.offset += index * view.strides.remove(axis);
        Some(view)
    }

    /// The same elements with the axes in reverse order.
    pub fn transposed(&self) -> Self {
        let mut view = self.clone();
        view.shape.reverse();
        view.strides.reverse();
        view
    }

    /// `[heads·d, n]` rows with RoPE pairs in adjacent channels → the order
    /// with pairs `d/2` apart, as `[heads, 2, d/2, n]` (LWM to Hugging Face).
    ///
    /// `None` when the rows do not divide into heads of an even number of channels.
    pub fn adjacent_to_halves(&self, heads: usize) -> Option<Self> {
        self.permuted_rows(heads, |d, stride| ([2, d / 2], [stride, 2 * stride]))
    }

    /// `[heads·d, n]` rows with RoPE pairs `d/2` apart → the order with pairs
    /// in adjacent channels, as `[heads, d/2, 2, n]` (Hugging Face to LWM).
    ///
    /// `None` when the rows do not divide into heads of an even number of channels.
    pub fn halves_to_adjacent(&self, heads: usize) -> Option<Self> {
        self.permuted_rows(heads, |d, stride| ([d / 2, 2], [stride, d / 2 * stride]))
    }

    fn permuted_rows(
        &self,
        heads: usize,
        order: impl Fn(usize, usize) -> ([usize; 2], [usize; 2]),
    ) -> Option<Self> {
        let (&[rows, columns], &[row_stride, column_stride]) =
            (self.shape.as_slice(), self.strides.as_slice())
        else {
            return None;
        };
        let head_dim = rows.checked_div(heads)?;
        if head_dim * heads != rows || !head_dim.is_multiple_of(2) {
            return None;
        }
        let (shape, strides) = order(head_dim, row_stride);
        Some(Self {
            shape: vec![heads, shape[0], shape[1], columns],
            strides: vec![head_dim * row_stride, strides[0], strides[1], column_stride],
            ..self.clone()
        })
    }

    /// All elements in row-major order as f32.
    ///
    /// # Errors
    /// None of its own; see [`View::write`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.write(Dtype::F32, &mut |bytes| {
            let elements = bytes.chunks_exact(4);
            values.extend(elements.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            Ok(())
        })?;
        Ok(values)
    }

    /// Passes all elements, in row-major order and converted to `dtype`, to
    /// `sink`, at most about 64 MiB at a time.
    ///
    /// # Errors
    /// The errors of `sink`; `Internal` for an unsupported conversion.
    pub fn write(&self, dtype: Dtype, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        use Element::{Bf16, F16, F32, F64};
        let half = |b| f16::from_le_bytes(b).to_f32();
        let brain = |b| bf16::from_le_bytes(b).to_f32();
        let double = |b| f64::from_le_bytes(b);
        match (self.storage.element, dtype) {
            (F64, Dtype::F32) => self.blocks(|b: [u8; 8]| (double(b) as f32).to_le_bytes(), sink),
            (F32, Dtype::F32) => self.blocks(|b: [u8; 4]| b, sink),
            (F16, Dtype::F32) => self.blocks(|b: [u8; 2]| half(b).to_le_bytes(), sink),
            (Bf16, Dtype::F32) => self.blocks(|b: [u8; 2]| brain(b).to_le_bytes(), sink),
            (F64, Dtype::BF16) => {
                self.blocks(|b: [u8; 8]| bf16::from_f64(double(b)).to_le_bytes(), sink)
            }
            (F32, Dtype::BF16) => self.blocks(
                |b: [u8; 4]| bf16::from_f32(f32::from_le_bytes(b)).to_le_bytes(),
                sink,
            ),
            (F16, Dtype::BF16) => {
                self.blocks(|b: [u8; 2]| bf16::from_f32(half(b)).to_le_bytes(), sink)
            }
            (Bf16, Dtype::BF16) => self.blocks(|b: [u8; 2]| b, sink),
            (from, to) => Err(Error::new(
                Kind::Internal,
                format!("no conversion from {from:?} to {to:?}"),
            )),
        }
    }

    /// Splits the view into blocks of rows that fit in memory.
    fn blocks<const S: usize, const D: usize>(
        &self,
        convert: impl Fn([u8; S]) -> [u8; D] + Sync,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let plan = Rows::of(self);
        if plan.rows == 0 || plan.columns == 0 {
            return Ok(());
        }
        let rows_per_block = (BLOCK_BYTES / D / plan.columns).clamp(1, plan.rows);
        let mut block = vec![0u8; rows_per_block * plan.columns * D];
        for outer in 0..plan.outer_count() {
            let offset = self.offset + plan.outer_offset(outer);
            for first in (0..plan.rows).step_by(rows_per_block) {
                let n_rows = rows_per_block.min(plan.rows - first);
                let out = &mut block[..n_rows * plan.columns * D];
                let band_bytes = TILE_ROWS.min(n_rows) * plan.columns * D;
                out.par_chunks_mut(band_bytes)
                    .enumerate()
                    .for_each(|(i, band)| {
                        let start = offset + (first + i * TILE_ROWS) * plan.row_stride;
                        self.band(&plan, start, band, &convert);
                    });
                sink(out)?;
            }
        }
        Ok(())
    }

    /// Fills `band`, whole rows from element `start` on, tile by tile.
    fn band<const S: usize, const D: usize>(
        &self,
        plan: &Rows,
        start: usize,
        band: &mut [u8],
        convert: &impl Fn([u8; S]) -> [u8; D],
    ) {
        let rows = band.len() / (plan.columns * D);
        if plan.column_stride == 1 {
            for (r, row) in band.chunks_exact_mut(plan.columns * D).enumerate() {
                let mut at = 0;
                self.storage
                    .run(start + r * plan.row_stride, plan.columns, |bytes| {
                        at += convert_run(bytes, &mut row[at..], convert);
                    });
            }
            return;
        }
        let mut tile = [[[0u8; D]; TILE_COLUMNS]; TILE_ROWS];
        for first in (0..plan.columns).step_by(TILE_COLUMNS) {
            let columns = TILE_COLUMNS.min(plan.columns - first);
            #[expect(
                clippy::needless_range_loop,
                reason = "c counts columns of the source as well as of the tile"
            )]
            for c in 0..columns {
                let from = start + (first + c) * plan.column_stride;
                self.gather(from, rows, plan.row_stride, |r, bytes| {
                    tile[r][c] = convert(bytes);
                });
            }
            for (r, tile_row) in tile.iter().take(rows).enumerate() {
                let at = (r * plan.columns + first) * D;
                band[at..at + columns * D].copy_from_slice(tile_row[..columns].as_flattened());
            }
        }
    }

    /// Passes `rows` elements, `stride` apart from `start` on, to `put`.
    fn gather<const S: usize>(
        &self,
        start: usize,
        rows: usize,
        stride: usize,
        mut put: impl FnMut(usize, [u8; S]),
    ) {
        if stride == 1 {
            let mut r = 0;
            self.storage.run(start, rows, |bytes| {
                for &element in bytes.as_chunks::<S>().0 {
                    put(r, element);
                    r += 1;
                }
            });
            return;
        }
        for r in 0..rows {
            self.storage.run(start + r * stride, 1, |bytes| {
                if let Some(&element) = bytes.as_chunks::<S>().0.first() {
                    put(r, element);
                }
            });
        }
    }
}

/// Converts the elements of `from` into the front of `to` → bytes written.
fn convert_run<const S: usize, const D: usize>(
    from: &[u8],
    to: &mut [u8],
    convert: &impl Fn([u8; S]) -> [u8; D],
) -> usize {
    let from = from.as_chunks::<S>().0;
    for (&source, target) in from.iter().zip(to.as_chunks_mut::<D>().0) {
        *target = convert(source);
    }
    from.len() * D
}

/// A view as rows and columns under outer axes.
struct Rows {
    outer_shape: Vec<usize>,
    outer_strides: Vec<usize>,
    rows: usize,
    row_stride: usize,
    columns: usize,
    column_stride: usize,
}

impl Rows {
    fn of(view: &View) -> Self {
        let (mut shape, mut strides) = coalesced(&view.shape, &view.strides);
        if let (&[n], &[1]) = (shape.as_slice(), strides.as_slice()) {
            // One long run: cut it where the last piece may be short.
            let columns = largest_divisor_up_to(n, 1 << 16);
            (shape, strides) = (vec![n / columns, columns], vec![columns, 1]);
        }
        let columns = shape.pop().unwrap_or(1);
        let column_stride = strides.pop().unwrap_or(1);
        let rows = shape.pop().unwrap_or(1);
        let row_stride = strides.pop().unwrap_or(columns);
        Self {
            outer_shape: shape,
            outer_strides: strides,
            rows,
            row_stride,
            columns,
            column_stride,
        }
    }

    fn outer_count(&self) -> usize {
        self.outer_shape.iter().product()
    }

    fn outer_offset(&self, mut index: usize) -> usize {
        let mut offset = 0;
        for (&n, &stride) in self.outer_shape.iter().zip(&self.outer_strides).rev() {
            offset += index % n * stride;
            index /= n;
        }
        offset
    }
}

/// Joins adjacent axes where one continues the other.
fn coalesced(shape: &[usize], strides: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (&n, &stride) in shape.iter().zip(strides) {
        match out.last_mut() {
            _ if n == 1 => {}
            Some((m, s)) if *s == n.saturating_mul(stride) => (*m, *s) = (*m * n, stride),
            _ => out.push((n, stride)),
        }
    }
    if out.is_empty() {
        out.push((1, 1));
    }
    out.into_iter().unzip()
}

fn largest_divisor_up_to(n: usize, limit: usize) -> usize {
    (1..=limit.min(n))
        .rev()
        .find(|&d| n.is_multiple_of(d))
        .unwrap_or(1)
}

fn row_major_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
