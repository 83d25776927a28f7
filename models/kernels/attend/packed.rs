//! Keys and values of 256 tokens as the attention kernel reads them: one run of
//! bytes, which can be computed on, sent to another rank, or mapped from a file.
//!
//! Per key-value head, in this order: keys, values, and for quantized types the
//! scales. Keys stand in panels of 32 tokens, `[panel, d / g, 32, g]`, and
//! values as `[256 / g, d, g]`, where the `g` elements that one dot-product instruction
//! consumes are adjacent: 1 for f32, 2 for bf16 and int4, 4 for int8.

use std::ops::Range;

use half::bf16;

use crate::mapping::{MappedBytes, Pages};

/// Tokens of one block.
pub const BLOCK_TOKENS: usize = 256;

/// Tokens whose keys are multiplied together: two vectors of 16 lanes.
pub const PANEL: usize = 32;

/// Channels that share one scale of int4.
pub(super) const GROUP: usize = 32;

/// Element type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvDtype {
    /// 4 bytes, exact.
    #[default]
    F32,
    /// 2 bytes, 8 bits of precision.
    Bf16,
    /// 1 byte and a scale per token and head.
    Int8,
    /// Half a byte and a scale per token, head and 32 channels.
    Int4,
}

impl KvDtype {
    /// Every type, largest first.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4];

    /// The name that users write.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// The type of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Adjacent elements that one dot-product instruction consumes.
    pub(super) fn interleave(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 | Self::Int4 => 2,
            Self::Int8 => 4,
        }
    }

    /// `n` elements in bytes.
    fn bytes(self, n: usize) -> usize {
        match self {
            Self::F32 => 4 * n,
            Self::Bf16 => 2 * n,
            Self::Int8 => n,
            Self::Int4 => n / 2,
        }
    }
}

/// Heads, channels and element type of a block: all that its layout depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of one head.
    pub d: usize,
    /// Element type.
    pub dtype: KvDtype,
}

impl KvShape {
    /// Channels of a key with padding: a multiple of four.
    pub(super) fn key_width(self) -> usize {
        self.d.next_multiple_of(4)
    }

    /// Channels of a value with padding: whole vectors.
    pub(super) fn value_width(self) -> usize {
        self.d.next_multiple_of(16)
    }

    /// Scales per token of int4.
    pub(super) fn groups(self) -> usize {
        self.d.div_ceil(GROUP)
    }

    /// Where keys, values, scales of keys, scales of values, sums of keys, and the next head begin.
    fn offsets(self) -> [usize; 6] {
        let scale_bytes = match self.dtype {
            KvDtype::F32 | KvDtype::Bf16 => 0,
            KvDtype::Int8 => 4 * BLOCK_TOKENS,
            KvDtype::Int4 => 2 * BLOCK_TOKENS * self.groups(),
        };
        let sum_bytes = match self.dtype {
            KvDtype::Int8 => 4 * BLOCK_TOKENS,
            _ => 0,
        };
        let values = self.dtype.bytes(BLOCK_TOKENS * self.key_width());
        let key_scales = values + self.dtype.bytes(BLOCK_TOKENS * self.value_width());
        let value_scales = key_scales + scale_bytes;
        let key_sums = value_scales + scale_bytes;
        [
            0,
            values,
            key_scales,
            value_scales,
            key_sums,
            key_sums + sum_bytes,
        ]
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.kv_heads * self.offsets()[5]
    }
}

/// 64 bytes with the alignment of a cache line and of the widest vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

// SAFETY: 64 bytes of any value, no padding.
unsafe impl bytemuck::Zeroable for CacheLine {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for CacheLine {}

enum BlockStore {
    Owned(Vec<CacheLine>),
    Pages(Pages),
    Mapped(MappedBytes),
}

impl Clone for BlockStore {
    fn clone(&self) -> Self {
        match self {
            Self::Owned(lines) => Self::Owned(lines.clone()),
            Self::Mapped(bytes) => Self::Mapped(bytes.clone()),
            Self::Pages(pages) => Self::of(pages.as_bytes()),
        }
    }
}

impl BlockStore {
    /// A copy of bytes whose number is a multiple of 64.
    fn of(bytes: &[u8]) -> Self {
        match Pages::zeroed(bytes.len()) {
            Ok(mut pages) => {
                pages.as_bytes_mut().copy_from_slice(bytes);
                Self::Pages(pages)
            }
            Err(_full) => Self::Owned(bytemuck::pod_collect_to_vec(bytes)),
        }
    }
}

/// Blocks of at least this many bytes are allocated in pages of their own.
const OWN_PAGES: usize = 64 << 10;

/// Keys and values of [`BLOCK_TOKENS`] tokens in one layer.
#[derive(Clone)]
pub struct PackedBlock {
    shape: KvShape,
    store: BlockStore,
}

/// The bytes of one head, by section.
pub(super) struct HeadBytes<'a> {
    pub all: &'a [u8],
    pub keys: &'a [u8],
    pub values: &'a [u8],
    pub key_scales: &'a [u8],
    pub value_scales: &'a [u8],
    pub key_sums: &'a [u8],
}

impl<'a> HeadBytes<'a> {
    /// The bytes of 32 tokens.
    pub fn panel(&self, panel: usize) -> Self {
        const PANELS: usize = BLOCK_TOKENS / PANEL;
        let cut = |bytes: &'a [u8]| {
            let len = bytes.len() / PANELS;
            &bytes[panel * len..(panel + 1) * len]
        };
        Self {
            all: &[],
            keys: cut(self.keys),
            values: cut(self.values),
            key_scales: cut(self.key_scales),
            value_scales: cut(self.value_scales),
            key_sums: cut(self.key_sums),
        }
    }
}

impl PackedBlock {
    /// A block of zeros; `None` when there is no memory for it.
    pub fn try_new(shape: KvShape) -> Option<Self> {
        if shape.block_bytes() >= OWN_PAGES {
            let store = BlockStore::Pages(Pages::zeroed(shape.block_bytes()).ok()?);
            return Some(Self { shape, store });
        }
        let n = shape.block_bytes().div_ceil(64);
        let mut lines = Vec::new();
        lines.try_reserve_exact(n).ok()?;
        lines.resize(n, CacheLine([0; 64]));
        Some(Self {
            shape,
            store: BlockStore::Owned(lines),
        })
    }

    /// A copy of the bytes of a block; `None` when their number is not that of `shape` or there is no memory.
    pub fn from_bytes(shape: KvShape, bytes: &[u8]) -> Option<Self> {
        let mut block = (bytes.len() == shape.block_bytes()).then(|| Self::try_new(shape))??;
        block.bytes_mut().copy_from_slice(bytes);
        Some(block)
    }

    /// A block that lies in a mapped file; `None` when the number of bytes is not that of `shape`
    /// or their address is not a multiple of 64.
    pub fn from_mapped(shape: KvShape, bytes: MappedBytes) -> Option<Self> {
        let fits = bytes.as_bytes().len() == shape.block_bytes();
        let aligned = bytes.as_elements::<CacheLine>().is_some();
        (fits && aligned).then_some(Self {
            shape,
            store: BlockStore::Mapped(bytes),
        })
    }

    /// Heads, channels and element type.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Whether the bytes lie in a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.store, BlockStore::Mapped(_))
    }

    /// Every byte of the block.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.store {
            BlockStore::Owned(lines) => bytemuck::cast_slice(lines),
            BlockStore::Pages(pages) => pages.as_bytes(),
            BlockStore::Mapped(bytes) => bytes.as_bytes(),
        }
    }

    /// The bytes for writing; a mapped block is copied to memory first.
    fn bytes_mut(&mut self) -> &mut [u8] {
        if let BlockStore::Mapped(bytes) = &self.store {
            self.store = BlockStore::of(bytes.as_bytes());
        }
        match &mut self.store {
            BlockStore::Owned(lines) => bytemuck::cast_slice_mut(lines),
            BlockStore::Pages(pages) => pages.as_bytes_mut(),
            BlockStore::Mapped(_) => &mut [],
        }
    }

    /// The bytes of one head.
    pub(super) fn head(&self, head: usize) -> HeadBytes<'_> {
        let [_, values, key_scales, value_scales, key_sums, end] = self.shape.offsets();
        let bytes = &self.as_bytes()[head * end..(head + 1) * end];
        HeadBytes {
            all: bytes,
            keys: &bytes[..values],
            values: &bytes[values..key_scales],
            key_scales: &bytes[key_scales..value_scales],
            value_scales: &bytes[value_scales..key_sums],
            key_sums: &bytes[key_sums..],
        }
    }

    /// Stores keys, values `[n, kv_heads, d]` for the tokens from `slot` on.
    ///
    /// # Panics
    /// When they do not fit the block.
    pub fn write(&mut self, slot: usize, keys: &[f32], values: &[f32]) {
        let shape = self.shape;
        let [
            _,
            at_values,
            at_key_scales,
            at_value_scales,
            at_key_sums,
            end,
        ] = shape.offsets();
        let width = shape.kv_heads * shape.d;
        assert!(width > 0 && keys.len() == values.len() && keys.len().is_multiple_of(width));
        assert!(slot + keys.len() / width <= BLOCK_TOKENS);
        let bytes = self.bytes_mut();
        for (head, bytes) in bytes.chunks_exact_mut(end).enumerate() {
            let (elements, scales) = bytes.split_at_mut(at_key_scales);
            let (k, v) = elements.split_at_mut(at_values);
            let (k_scales, rest) = scales.split_at_mut(at_value_scales - at_key_scales);
            let (v_scales, sums) = rest.split_at_mut(at_key_sums - at_value_scales);
            let tokens = keys.chunks_exact(width).zip(values.chunks_exact(width));
            for (slot, (key, value)) in (slot..).zip(tokens) {
                let key = &key[head * shape.d..(head + 1) * shape.d];
                let value = &value[head * shape.d..(head + 1) * shape.d];
                write_token(shape, slot, key, KeyOrValue::Key, k, k_scales);
                write_token(shape, slot, value, KeyOrValue::Value, v, v_scales);
                if shape.dtype == KvDtype::Int8 {
                    let sum = (0..shape.d).map(|c| k[key_at(shape, slot, c)] as i8 as i32);
                    put(sums, slot, sum.sum::<i32>());
                }
            }
        }
    }

    /// Copies the tokens `slots` of a block of the same shape, bit for bit, to the slots from `slot` on.
    ///
    /// # Panics
    /// When the shapes differ or the tokens do not fit.
    pub fn copy_tokens(&mut self, slot: usize, from: &Self, slots: Range<usize>) {
        let shape = self.shape;
        assert!(shape == from.shape && slots.end <= BLOCK_TOKENS);
        assert!(slot + slots.len() <= BLOCK_TOKENS);
        let [_, values, key_scales, value_scales, key_sums, end] = shape.offsets();
        let of_block = self
            .bytes_mut()
            .chunks_exact_mut(end)
            .zip(from.as_bytes().chunks_exact(end));
        for (to, from) in of_block {
            for (to_slot, from_slot) in (slot..).zip(slots.clone()) {
                let token = (shape, to_slot, from_slot);
                let key = (0..values, key_scales..value_scales);
                let value = (values..key_scales, value_scales..key_sums);
                copy_token(token, KeyOrValue::Key, key, to, from);
                copy_token(token, KeyOrValue::Value, value, to, from);
                if shape.dtype == KvDtype::Int8 {
                    let sum: i32 = get(&from[key_sums..], from_slot);
                    put(&mut to[key_sums..], to_slot, sum);
                }
            }
        }
    }

    /// Keys `[n, d]` of one head for the first `n` tokens, as f32, into `out`.
    pub fn read_keys(&self, head: usize, n: usize, out: &mut [f32]) {
        let bytes = self.head(head);
        read(
            self.shape,
            KeyOrValue::Key,
            bytes.keys,
            bytes.key_scales,
            n,
            out,
        );
    }

    /// Values `[n, d]` of one head for the first `n` tokens, as f32, into `out`.
    pub fn read_values(&self, head: usize, n: usize, out: &mut [f32]) {
        let bytes = self.head(head);
        read(
            self.shape,
            KeyOrValue::Value,
            bytes.values,
            bytes.value_scales,
            n,
            out,
        );
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyOrValue {
    Key,
    Value,
}

/// Index of a key's channel among the elements of its head.
fn key_at(shape: KvShape, slot: usize, c: usize) -> usize {
    let g = shape.dtype.interleave();
    let panel = slot / PANEL * PANEL * shape.key_width();
    panel + (c / g) * PANEL * g + slot % PANEL * g + c % g
}

/// Index of a value's channel among the elements of its head.
fn value_at(shape: KvShape, slot: usize, c: usize) -> usize {
    let g = shape.dtype.interleave();
    (slot / g) * shape.value_width() * g + c * g + slot % g
}

/// Index of the scale of channel `c` of a token in int4: keys by panel, values by token.
fn scale_at(shape: KvShape, side: KeyOrValue, slot: usize, c: usize) -> usize {
    let (groups, group) = (shape.groups(), c / GROUP);
    match side {
        KeyOrValue::Key => (slot / PANEL * groups + group) * PANEL + slot % PANEL,
        KeyOrValue::Value => slot * groups + group,
    }
}

fn put<T: bytemuck::NoUninit>(bytes: &mut [u8], index: usize, value: T) {
    let size = size_of::<T>();
    bytes[index * size..(index + 1) * size].copy_from_slice(bytemuck::bytes_of(&value));
}

fn get<T: bytemuck::AnyBitPattern>(bytes: &[u8], index: usize) -> T {
    bytemuck::pod_read_unaligned(&bytes[index * size_of::<T>()..(index + 1) * size_of::<T>()])
}

/// The largest magnitude divided by `steps`; NaN propagates.
#[inline(always)]
pub(super) fn scale_of(x: &[f32], steps: f32) -> f32 {
    let mut largest = 0f32;
    let mut poison = 0f32;
    for x in x {
        largest = if x.abs() > largest { x.abs() } else { largest };
        // 0 for finite x; NaN for infinity, and for NaN, which the comparison drops.
        poison += x * 0.0;
    }
    (largest + poison) / steps
}

/// `x / scale` rounded to the nearest integer of `-limit..=limit`, ties to even.
#[inline(always)]
pub(super) fn quantize(x: f32, scale: f32, limit: f32) -> i8 {
    // Adding 1.5·2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let steps = if scale > 0.0 { x / scale } else { 0.0 };
    let steps = if steps > limit { limit } else { steps };
    let steps = if steps < -limit { -limit } else { steps };
    (steps + ROUND).to_bits() as i8
}

/// Two floats as a bf16 pair, rounded to nearest even, the first in the lower half.
#[inline(always)]
pub(super) fn bf16_pair(low: f32, high: f32) -> u32 {
    let round = |x: f32| {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        if x.is_nan() {
            // Without the quiet bit, a NaN whose mantissa is cut off would become infinity.
            bits | 0x0040_0000
        } else {
            rounded
        }
    };
    round(low) >> 16 | round(high) & 0xffff_0000
}

/// `x` rounded up to 5 significant bits: its product with a four-bit integer is exact in bf16.
fn short(x: f32) -> bf16 {
    bf16::from_bits((x.to_bits().wrapping_add(0x0007_ffff) >> 16) as u16 & 0xfff8)
}

/// Writes one token of one head, `[d]`, to its slot in `elements` and `scales`.
fn write_token(
    shape: KvShape,
    slot: usize,
    token: &[f32],
    side: KeyOrValue,
    elements: &mut [u8],
    scales: &mut [u8],
) {
    let at = |c| match side {
        KeyOrValue::Key => key_at(shape, slot, c),
        KeyOrValue::Value => value_at(shape, slot, c),
    };
    match shape.dtype {
        KvDtype::F32 => {
            let elements: &mut [f32] = bytemuck::cast_slice_mut(elements);
            token
                .iter()
                .enumerate()
                .for_each(|(c, &x)| elements[at(c)] = x);
        }
        KvDtype::Bf16 => {
            let elements: &mut [bf16] = bytemuck::cast_slice_mut(elements);
            let narrow = token.iter().map(|&x| bf16::from_f32(x));
            narrow.enumerate().for_each(|(c, x)| elements[at(c)] = x);
        }
        KvDtype::Int8 => {
            let scale = scale_of(token, 127.0);
            put(scales, slot, scale);
            for (c, &x) in token.iter().enumerate() {
                elements[at(c)] = quantize(x, scale, 127.0) as u8;
            }
        }
        KvDtype::Int4 => {
            for (group, x) in token.chunks(GROUP).enumerate() {
                let scale = short(scale_of(x, 7.0));
                put(scales, scale_at(shape, side, slot, group * GROUP), scale);
                for (i, &x) in x.iter().enumerate() {
                    let nibble = (quantize(x, scale.to_f32(), 7.0) + 8) as u8;
                    let index = at(group * GROUP + i);
                    let byte = &mut elements[index / 2];
                    let shift = 4 * (index % 2);
                    *byte = *byte & !(15 << shift) | nibble << shift;
                }
            }
        }
    }
}

/// Copies elements and scales of one token of one head between blocks; `(shape, to_slot, from_slot)`.
fn copy_token(
    (shape, to_slot, from_slot): (KvShape, usize, usize),
    side: KeyOrValue,
    (elements, scales): (Range<usize>, Range<usize>),
    to: &mut [u8],
    from: &[u8],
) {
    let at = |slot, c| match side {
        KeyOrValue::Key => key_at(shape, slot, c),
        KeyOrValue::Value => value_at(shape, slot, c),
    };
    let (to_elements, from_elements) = (&mut to[elements.clone()], &from[elements]);
    for c in 0..shape.d {
        let (index, from_index) = (at(to_slot, c), at(from_slot, c));
        match shape.dtype {
            KvDtype::F32 => put(to_elements, index, get::<u32>(from_elements, from_index)),
            KvDtype::Bf16 => put(to_elements, index, get::<u16>(from_elements, from_index)),
            KvDtype::Int8 => to_elements[index] = from_elements[from_index],
            KvDtype::Int4 => {
                let nibble = from_elements[from_index / 2] >> (4 * (from_index % 2)) & 15;
                let shift = 4 * (index % 2);
                let byte = &mut to_elements[index / 2];
                *byte = *byte & !(15 << shift) | nibble << shift;
            }
        }
    }
    let (to, from) = (&mut to[scales.clone()], &from[scales]);
    match shape.dtype {
        KvDtype::F32 | KvDtype::Bf16 => {}
        KvDtype::Int8 => put(to, to_slot, get::<u32>(from, from_slot)),
        KvDtype::Int4 => {
            for c in (0..shape.d).step_by(GROUP) {
                let scale: u16 = get(from, scale_at(shape, side, from_slot, c));
                put(to, scale_at(shape, side, to_slot, c), scale);
            }
        }
    }
}

/// The first `n` tokens of one head, `[n, d]`, widened.
fn read(
    shape: KvShape,
    side: KeyOrValue,
    elements: &[u8],
    scales: &[u8],
    n: usize,
    out: &mut [f32],
) {
    for (slot, token) in out
        .chunks_exact_mut(shape.d)
        .enumerate()
        .take(n.min(BLOCK_TOKENS))
    {
        for (c, x) in token.iter_mut().enumerate() {
            let at = match side {
                KeyOrValue::Key => key_at(shape, slot, c),
                KeyOrValue::Value => value_at(shape, slot, c),
            };
            *x = match shape.dtype {
                KvDtype::F32 => get(elements, at),
                KvDtype::Bf16 => get::<bf16>(elements, at).to_f32(),
                KvDtype::Int8 => f32::from(elements[at] as i8) * get::<f32>(scales, slot),
                KvDtype::Int4 => {
                    let nibble = elements[at / 2] >> (4 * (at % 2)) & 15;
                    let scale: bf16 = get(scales, scale_at(shape, side, slot, c));
                    (f32::from(nibble) - 8.0) * scale.to_f32()
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_TOKENS, KvDtype, KvShape, PackedBlock};

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Largest error of one element whose token's largest magnitude is 1.
    fn tolerance(dtype: KvDtype) -> f32 {
        match dtype {
            KvDtype::F32 => 0.0,
            KvDtype::Bf16 => 1.0 / 256.0,
            KvDtype::Int8 => 0.5 / 127.0 + 1e-6,
            KvDtype::Int4 => 0.5 / 7.0 * 1.07,
        }
    }

    #[test]
    fn values_are_read_back_within_the_precision_of_their_type() {
        for dtype in KvDtype::ALL {
            for (kv_heads, d) in [(1, 1), (2, 8), (3, 20), (1, 80), (2, 128)] {
                let shape = KvShape { kv_heads, d, dtype };
                let n = 77;
                let (k, v) = (numbers(n * kv_heads * d, 1), numbers(n * kv_heads * d, 2));
                let mut block = PackedBlock::try_new(shape).unwrap();
                let half = 40 * kv_heads * d;
                block.write(0, &k[..half], &v[..half]);
                block.write(40, &k[half..], &v[half..]);
                let copy = PackedBlock::from_bytes(shape, block.as_bytes()).unwrap();
                for head in 0..kv_heads {
                    let (mut keys, mut values) = (vec![9.0; n * d], vec![9.0; n * d]);
                    copy.read_keys(head, n, &mut keys);
                    copy.read_values(head, n, &mut values);
                    for (got, all) in [(&keys, &k), (&values, &v)] {
                        let expected = all
                            .chunks(kv_heads * d)
                            .flat_map(|t| &t[head * d..(head + 1) * d]);
                        for (i, (g, e)) in got.iter().zip(expected).enumerate() {
                            assert!(
                                (g - e).abs() <= tolerance(dtype),
                                "{shape:?} [{i}]: got {g}, expected {e}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn copied_tokens_equal_written_tokens_bit_for_bit() {
        for dtype in KvDtype::ALL {
            for (kv_heads, d) in [(1, 1), (2, 20), (3, 80)] {
                let shape = KvShape { kv_heads, d, dtype };
                let width = kv_heads * d;
                let (k, v) = (numbers(100 * width, 1), numbers(100 * width, 2));
                let mut from = PackedBlock::try_new(shape).unwrap();
                from.write(31, &k, &v);
                let mut expected = PackedBlock::try_new(shape).unwrap();
                expected.write(7, &k[10 * width..90 * width], &v[10 * width..90 * width]);
                let mut got = PackedBlock::try_new(shape).unwrap();
                got.copy_tokens(7, &from, 41..121);
                assert!(got.as_bytes() == expected.as_bytes(), "{shape:?}");
            }
        }
    }

    #[test]
    fn bytes_of_another_length_are_rejected() {
        let shape = KvShape {
            kv_heads: 1,
            d: 8,
            dtype: KvDtype::Bf16,
        };
        assert!(PackedBlock::from_bytes(shape, &[0; 100]).is_none());
        assert_eq!(shape.block_bytes(), BLOCK_TOKENS * (8 + 16) * 2);
    }

    #[test]
    fn bytes_per_token_and_head_follow_from_the_type() {
        let bytes = |dtype| {
            KvShape {
                kv_heads: 1,
                d: 128,
                dtype,
            }
            .block_bytes()
                / BLOCK_TOKENS
        };
        assert_eq!(KvDtype::ALL.map(bytes), [1024, 512, 256 + 12, 128 + 16]);
    }
}
