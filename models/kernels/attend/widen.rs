//! Widens keys and values whose type the processor cannot multiply to one that it can.
//!
//! Layouts are those of `packed`: a row of `width` units becomes as many rows of
//! wider units as there were elements in one.

use half::bf16;

use super::packed::{BLOCK_TOKENS, GROUP, HeadBytes, KvDtype, KvShape, PANEL};
use crate::cpu::{Level, per_level, prefetch_all};

/// The element type after widening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wide {
    /// f32.
    F32,
    /// bf16 pairs, from int4 only.
    Bf16,
}

/// Keys and values of one head, in units.
#[derive(Default)]
pub(super) struct WideBlock {
    /// `[PANELS, key units, PANEL]`.
    pub keys: Vec<u32>,
    /// `[BLOCK_TOKENS / interleave, value_width]`.
    pub values: Vec<u32>,
}

impl WideBlock {
    /// Widens the first `tokens` keys and values, rounded up to whole panels, panel by
    /// panel; with each a share of `next`, the bytes to be widened after these, is prefetched.
    pub fn fill(
        &mut self,
        level: Level,
        shape: KvShape,
        head: &HeadBytes,
        tokens: usize,
        wide: Wide,
        next: &[u8],
    ) {
        let elements_per_unit = if wide == Wide::F32 { 1 } else { 2 };
        let panels = tokens.div_ceil(PANEL);
        let key_units = shape.key_width() / elements_per_unit * PANEL;
        let value_units = PANEL / elements_per_unit * shape.value_width();
        self.keys.resize(panels * key_units, 0);
        self.values.resize(panels * value_units, 0);
        let keys = self.keys.chunks_exact_mut(key_units);
        let values = self.values.chunks_exact_mut(value_units);
        let share = next.len().div_ceil(panels).max(1);
        let mut shares = next.chunks(share);
        for (panel, (keys, values)) in keys.zip(values).enumerate() {
            prefetch_all(shares.next().unwrap_or_default());
            fill_panel(level, shape, &head.panel(panel), wide, keys, values);
        }
    }
}

/// Keys `[key units, PANEL]` and values `[PANEL / interleave, value_width]` of one panel.
fn fill_panel(
    level: Level,
    shape: KvShape,
    panel: &HeadBytes,
    wide: Wide,
    keys: &mut [u32],
    values: &mut [u32],
) {
    let (rows, width, groups) = (shape.key_width() / 2, shape.value_width(), shape.groups());
    match (shape.dtype, wide) {
        (KvDtype::Bf16, _) => {
            pairs(level, cast(panel.keys), PANEL, keys);
            pairs(level, cast(panel.values), width, values);
        }
        (KvDtype::Int8, _) => {
            let scales = cast(panel.key_scales);
            byte_keys(level, cast(panel.keys), scales, rows / 2, keys);
            let scales = cast(panel.value_scales);
            byte_values(level, cast(panel.values), scales, width, values);
        }
        (KvDtype::Int4, Wide::F32) => {
            let scales = cast(panel.key_scales);
            nibble_keys(level, panel.keys, scales, rows, groups, keys);
            let scales = cast(panel.value_scales);
            nibble_values(level, panel.values, scales, width, groups, values);
        }
        (KvDtype::Int4, Wide::Bf16) => {
            let scales = cast(panel.key_scales);
            nibble_key_pairs(level, panel.keys, scales, rows, groups, keys);
            let scales = cast(panel.value_scales);
            nibble_value_pairs(level, panel.values, scales, width, groups, values);
        }
        (KvDtype::F32, _) => {}
    }
}

/// Bytes of a block as its elements: it is aligned for all of them.
pub(super) fn cast<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> &[T] {
    bytemuck::cast_slice(bytes)
}

per_level! {
    /// rows of bf16 pairs `[n, width, 2]` → `[2n, width]` f32, as many as fit `wide`.
    fn pairs(narrow: &[u32], width: usize, wide: &mut [u32]) = pairs_body;
}

#[inline(always)]
fn pairs_body(narrow: &[u32], width: usize, wide: &mut [u32]) {
    for (narrow, wide) in narrow
        .chunks_exact(width)
        .zip(wide.chunks_exact_mut(2 * width))
    {
        let (low, high) = wide.split_at_mut(width);
        for ((&pair, low), high) in narrow.iter().zip(low).zip(high) {
            *low = pair << 16;
            *high = pair & 0xffff_0000;
        }
    }
}

per_level! {
    /// rows of four signed bytes `[panels, rows, PANEL, 4]`, scales `[panels, PANEL]` → `[panels, 4 rows, PANEL]` f32.
    fn byte_keys(narrow: &[u32], scales: &[f32], rows: usize, wide: &mut [u32]) = byte_keys_body;
}

#[inline(always)]
fn byte_keys_body(narrow: &[u32], scales: &[f32], rows: usize, wide: &mut [u32]) {
    let panels = narrow
        .chunks_exact(rows * PANEL)
        .zip(scales.chunks_exact(PANEL));
    for ((narrow, scales), wide) in panels.zip(wide.chunks_exact_mut(4 * rows * PANEL)) {
        let rows = narrow
            .chunks_exact(PANEL)
            .zip(wide.chunks_exact_mut(4 * PANEL));
        for (narrow, wide) in rows {
            for (i, wide) in wide.chunks_exact_mut(PANEL).enumerate() {
                for ((&four, &scale), wide) in narrow.iter().zip(scales).zip(wide) {
                    let byte = (four >> (8 * i)) as u8 as i8;
                    *wide = (f32::from(byte) * scale).to_bits();
                }
            }
        }
    }
}

per_level! {
    /// rows of four signed bytes `[n, width, 4]`, scales `[4n]` → `[4n, width]` f32.
    fn byte_values(narrow: &[u32], scales: &[f32], width: usize, wide: &mut [u32]) = byte_values_body;
}

#[inline(always)]
fn byte_values_body(narrow: &[u32], scales: &[f32], width: usize, wide: &mut [u32]) {
    let rows = narrow.chunks_exact(width).zip(scales.chunks_exact(4));
    for ((narrow, scales), wide) in rows.zip(wide.chunks_exact_mut(4 * width)) {
        for ((i, wide), &scale) in wide.chunks_exact_mut(width).enumerate().zip(scales) {
            for (&four, wide) in narrow.iter().zip(wide) {
                let byte = (four >> (8 * i)) as u8 as i8;
                *wide = (f32::from(byte) * scale).to_bits();
            }
        }
    }
}

/// A four-bit number of the lower (`half` 0) or upper half of a byte, times its scale.
#[inline(always)]
fn nibble(byte: u8, half: u32, scale: bf16) -> f32 {
    let n = i32::from(byte >> (4 * half) & 15) - 8;
    n as f32 * f32::from_bits(u32::from(scale.to_bits()) << 16)
}

/// A pair of floats that bf16 represents exactly, the first in the lower half.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    low.to_bits() >> 16 | high.to_bits() & 0xffff_0000
}

per_level! {
    /// bytes `[panels, rows, PANEL]` of channel pairs, scales `[panels, groups, PANEL]` → `[panels, 2 rows, PANEL]` f32.
    fn nibble_keys(narrow: &[u8], scales: &[bf16], rows: usize, groups: usize, wide: &mut [u32]) = nibble_keys_body;
}

#[inline(always)]
fn nibble_keys_body(narrow: &[u8], scales: &[bf16], rows: usize, groups: usize, wide: &mut [u32]) {
    let panels = narrow
        .chunks_exact(rows * PANEL)
        .zip(scales.chunks_exact(groups * PANEL));
    for ((narrow, scales), wide) in panels.zip(wide.chunks_exact_mut(2 * rows * PANEL)) {
        let rows = narrow
            .chunks_exact(PANEL)
            .zip(wide.chunks_exact_mut(2 * PANEL));
        for (row, (narrow, wide)) in rows.enumerate() {
            let scales = &scales[2 * row / GROUP * PANEL..][..PANEL];
            let (low, high) = wide.split_at_mut(PANEL);
            for (((&byte, &scale), low), high) in narrow.iter().zip(scales).zip(low).zip(high) {
                *low = nibble(byte, 0, scale).to_bits();
                *high = nibble(byte, 1, scale).to_bits();
            }
        }
    }
}

per_level! {
    /// As [`nibble_keys`] → bf16 pairs `[panels, rows, PANEL]`.
    fn nibble_key_pairs(narrow: &[u8], scales: &[bf16], rows: usize, groups: usize, wide: &mut [u32]) = nibble_key_pairs_body;
}

#[inline(always)]
fn nibble_key_pairs_body(
    narrow: &[u8],
    scales: &[bf16],
    rows: usize,
    groups: usize,
    wide: &mut [u32],
) {
    let panels = narrow
        .chunks_exact(rows * PANEL)
        .zip(scales.chunks_exact(groups * PANEL));
    for ((narrow, scales), wide) in panels.zip(wide.chunks_exact_mut(rows * PANEL)) {
        let rows = narrow.chunks_exact(PANEL).zip(wide.chunks_exact_mut(PANEL));
        for (row, (narrow, wide)) in rows.enumerate() {
            let scales = &scales[2 * row / GROUP * PANEL..][..PANEL];
            for ((&byte, &scale), wide) in narrow.iter().zip(scales).zip(wide) {
                *wide = pair(nibble(byte, 0, scale), nibble(byte, 1, scale));
            }
        }
    }
}

per_level! {
    /// bytes `[n, width]` of token pairs, scales `[2n, groups]` → `[2n, width]` f32.
    fn nibble_values(narrow: &[u8], scales: &[bf16], width: usize, groups: usize, wide: &mut [u32]) = nibble_values_body;
}

#[inline(always)]
fn nibble_values_body(
    narrow: &[u8],
    scales: &[bf16],
    width: usize,
    groups: usize,
    wide: &mut [u32],
) {
    let rows = narrow
        .chunks_exact(width)
        .zip(scales.chunks_exact(2 * groups));
    for ((narrow, scales), wide) in rows.zip(wide.chunks_exact_mut(2 * width)) {
        let (low, high) = wide.split_at_mut(width);
        let columns = narrow
            .chunks(GROUP)
            .zip(low.chunks_mut(GROUP).zip(high.chunks_mut(GROUP)));
        for (group, (narrow, (low, high))) in columns.enumerate() {
            let (first, second) = (scales[group], scales[groups + group]);
            for ((&byte, low), high) in narrow.iter().zip(low).zip(high) {
                *low = nibble(byte, 0, first).to_bits();
                *high = nibble(byte, 1, second).to_bits();
            }
        }
    }
}

per_level! {
    /// As [`nibble_values`] → bf16 pairs `[n, width]`.
    fn nibble_value_pairs(narrow: &[u8], scales: &[bf16], width: usize, groups: usize, wide: &mut [u32]) = nibble_value_pairs_body;
}

#[inline(always)]
fn nibble_value_pairs_body(
    narrow: &[u8],
    scales: &[bf16],
    width: usize,
    groups: usize,
    wide: &mut [u32],
) {
    let rows = narrow
        .chunks_exact(width)
        .zip(scales.chunks_exact(2 * groups));
    for ((narrow, scales), wide) in rows.zip(wide.chunks_exact_mut(width)) {
        let columns = narrow.chunks(GROUP).zip(wide.chunks_mut(GROUP));
        for (group, (narrow, wide)) in columns.enumerate() {
            let (first, second) = (scales[group], scales[groups + group]);
            for (&byte, wide) in narrow.iter().zip(wide) {
                *wide = pair(nibble(byte, 0, first), nibble(byte, 1, second));
            }
        }
    }
}

/// Scales of the values, as 255ths of the largest, `[BLOCK_TOKENS]` → the largest divided by 255.
pub(super) fn relative_scales(level: Level, scales: &[f32], relative: &mut Vec<f32>) -> f32 {
    let mut largest = 0.0;
    relative.resize(BLOCK_TOKENS, 0.0);
    fill_relative(level, scales, relative, &mut largest);
    largest / 255.0
}

per_level! {
    /// scales `[BLOCK_TOKENS]` → relative `[BLOCK_TOKENS]`, and the largest; NaN propagates.
    fn fill_relative(scales: &[f32], relative: &mut [f32], largest: &mut f32) = fill_relative_body;
}

#[inline(always)]
fn fill_relative_body(scales: &[f32], relative: &mut [f32], largest: &mut f32) {
    let mut lanes = [0f32; 16];
    for chunk in scales.chunks_exact(16) {
        for (lane, &scale) in lanes.iter_mut().zip(chunk) {
            // Written so that NaN replaces the number and then stays.
            *lane = if scale <= *lane { *lane } else { scale };
        }
    }
    *largest = lanes.iter().fold(0.0, |a, &b| if b <= a { a } else { b });
    let factor = if *largest == 0.0 {
        0.0
    } else {
        255.0 / *largest
    };
    for (relative, scale) in relative.iter_mut().zip(scales) {
        *relative = scale * factor;
    }
}
