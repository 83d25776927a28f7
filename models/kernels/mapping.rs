//! Files mapped read-only into memory, and anonymous pages.

use std::{fs::File, io, ops::Range, path::Path, sync::Arc};

/// A byte range of a mapped file; cheap to clone, keeps the mapping alive.
#[derive(Clone)]
pub struct MappedBytes {
    map: Arc<memmap2::Mmap>,
    range: Range<usize>,
}

impl MappedBytes {
    /// Maps the whole file at `path`.
    ///
    /// The file must not be truncated while it is mapped: reading past its new
    /// end would raise SIGBUS. Model directories are written once and renamed
    /// into place, never edited.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(&File::open(path)?)
    }

    /// Maps the whole of an open file, under the contract of [`MappedBytes::open`].
    pub fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is private and read-only; the contract above
        // rules out truncation by this program.
        let map = unsafe { memmap2::Mmap::map(file)? };
        let range = 0..map.len();
        Ok(Self {
            map: Arc::new(map),
            range,
        })
    }

    /// The sub-range `range` of these bytes, or `None` when it reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        (start <= end && end <= self.range.end).then(|| Self {
            map: self.map.clone(),
            range: start..end,
        })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    /// The bytes as elements, or `None` when length or alignment do not fit `T`.
    pub fn as_elements<T: bytemuck::AnyBitPattern>(&self) -> Option<&[T]> {
        bytemuck::try_cast_slice(self.as_bytes()).ok()
    }
}

/// Zeroed memory in pages of its own, returned to the system at once when dropped:
/// long-lived blocks do not fragment the heap of short-lived allocations.
pub struct Pages(memmap2::MmapMut);

impl Pages {
    /// `n` bytes, all 0.
    pub fn zeroed(n: usize) -> io::Result<Self> {
        Ok(Self(memmap2::MmapMut::map_anon(n)?))
    }

    /// The bytes, aligned to the page size.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes for writing.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
