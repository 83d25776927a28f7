//! The three dot products: f32, bf16 pairs, and groups of four 8-bit integers, each summed
//! in 32-bit lanes. A unit is 32 bits of adjacent operands.

use crate::lanes::{EXP2_EXACT, Lanes};

/// How scores and weighted values are multiplied and summed.
///
/// Every function needs a processor that has the instructions of the implementing type.
pub(super) trait Dot: Copy {
    /// The vector of scores, weights and outputs.
    type Floats: Lanes;
    /// A vector of units.
    type Units: Copy;
    /// A vector of sums.
    type Sums: Copy;
    /// Elements in a unit.
    const INTERLEAVE: usize;
    /// Coefficients of the exponential's polynomial.
    const EXP2: &'static [f32];
    /// Whether weights are relative to the largest score of the block instead of the largest so far.
    const WEIGHTS_BY_BLOCK: bool;

    /// # Safety
    /// The processor has the instructions; a vector's units behind `from`.
    unsafe fn load(from: *const u32) -> Self::Units;
    /// # Safety
    /// As `load`.
    unsafe fn splat(unit: u32) -> Self::Units;
    /// sums + row · columns, lane by lane.
    ///
    /// # Safety
    /// As `load`.
    unsafe fn dot(row: Self::Units, columns: Self::Units, sums: Self::Sums) -> Self::Sums;

    /// The sums that scores start from; `key_sums` are those of the lanes' keys.
    ///
    /// # Safety
    /// As `load`.
    unsafe fn begin_scores(key_sums: *const i32) -> Self::Sums;
    /// Sums as scores, times the scales of the lanes' keys and of the row.
    ///
    /// # Safety
    /// As `load`.
    unsafe fn end_scores(sums: Self::Sums, key_scales: *const f32, row_scale: f32) -> Self::Floats;

    /// Stores the weights of the keys from `key` on in a row of units, times the scales of the lanes' values.
    ///
    /// # Safety
    /// As `load`; room behind `to`.
    unsafe fn put_weights(
        weights: Self::Floats,
        value_scales: *const f32,
        to: *mut u32,
        key: usize,
    );

    /// The sums that outputs start from: `out · kept`, or zero where sums are integers.
    ///
    /// # Safety
    /// As `load`.
    unsafe fn begin_out(out: *const f32, kept: f32) -> Self::Sums;
    /// Writes the outputs; integer sums are scaled by `added` and added to `out · kept`.
    ///
    /// # Safety
    /// As `load`.
    unsafe fn end_out(sums: Self::Sums, out: *mut f32, kept: f32, added: f32);
}

/// f32 by f32.
#[derive(Clone, Copy)]
pub(super) struct F32<V>(std::marker::PhantomData<V>);

impl<V: Lanes> Dot for F32<V> {
    type Floats = V;
    type Units = V;
    type Sums = V;
    const INTERLEAVE: usize = 1;
    const EXP2: &'static [f32] = &EXP2_EXACT;
    const WEIGHTS_BY_BLOCK: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const u32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(unit: u32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::splat(f32::from_bits(unit)) }
    }

    #[inline(always)]
    unsafe fn dot(row: V, columns: V, sums: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { row.times_plus(columns, sums) }
    }

    #[inline(always)]
    unsafe fn begin_scores(_: *const i32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn end_scores(sums: V, _: *const f32, _: f32) -> V {
        sums
    }

    #[inline(always)]
    unsafe fn put_weights(weights: V, _: *const f32, to: *mut u32, key: usize) {
        // SAFETY: the caller's promise.
        unsafe { weights.store(to.add(key).cast()) }
    }

    #[inline(always)]
    unsafe fn begin_out(out: *const f32, kept: f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(out).times(V::splat(kept)) }
    }

    #[inline(always)]
    unsafe fn end_out(sums: V, out: *mut f32, _: f32, _: f32) {
        // SAFETY: the caller's promise.
        unsafe { sums.store(out) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Bf16, Int8};

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The dot products of AVX512-BF16 and AVX512-VNNI.

    use std::arch::x86_64::*;

    use super::Dot;
    use crate::lanes::{EXP2_SHORT, Lanes};

    /// Pairs of bf16, summed in f32 (`VDPBF16PS`).
    #[derive(Clone, Copy)]
    pub struct Bf16;

    impl Dot for Bf16 {
        type Floats = __m512;
        type Units = __m512i;
        type Sums = __m512;
        const INTERLEAVE: usize = 2;
        const EXP2: &'static [f32] = &EXP2_SHORT;
        const WEIGHTS_BY_BLOCK: bool = false;

        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn splat(unit: u32) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_set1_epi32(unit as i32) }
        }

        #[inline(always)]
        unsafe fn dot(row: __m512i, columns: __m512i, sums: __m512) -> __m512 {
            // SAFETY: the caller's promise; both types are 512 bits of any value.
            unsafe {
                let pairs = |x: __m512i| std::mem::transmute::<__m512i, __m512bh>(x);
                _mm512_dpbf16_ps(sums, pairs(row), pairs(columns))
            }
        }

        #[inline(always)]
        unsafe fn begin_scores(_: *const i32) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn end_scores(sums: __m512, _: *const f32, _: f32) -> __m512 {
            sums
        }

        #[inline(always)]
        unsafe fn put_weights(weights: __m512, _: *const f32, to: *mut u32, key: usize) {
            // SAFETY: the caller's promise; both types are 256 bits of any value.
            unsafe {
                let narrow = _mm512_cvtneps_pbh(weights);
                let narrow = std::mem::transmute::<__m256bh, __m256i>(narrow);
                _mm256_storeu_si256(to.add(key / 2).cast(), narrow);
            }
        }

        #[inline(always)]
        unsafe fn begin_out(out: *const f32, kept: f32) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe { __m512::load(out).times(__m512::splat(kept)) }
        }

        #[inline(always)]
        unsafe fn end_out(sums: __m512, out: *mut f32, _: f32, _: f32) {
            // SAFETY: the caller's promise.
            unsafe { sums.store(out) }
        }
    }

    /// Groups of four unsigned by signed bytes, summed in i32 (`VPDPBUSD`).
    ///
    /// Rows are unsigned: a query byte is `q + 128`, which adds 128 times the sum of the
    /// key, subtracted at the start; a weight is 0 to 255, relative to the row's largest.
    #[derive(Clone, Copy)]
    pub struct Int8;

    impl Dot for Int8 {
        type Floats = __m512;
        type Units = __m512i;
        type Sums = __m512i;
        const INTERLEAVE: usize = 4;
        const EXP2: &'static [f32] = &EXP2_SHORT;
        const WEIGHTS_BY_BLOCK: bool = true;

        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn splat(unit: u32) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_set1_epi32(unit as i32) }
        }

        #[inline(always)]
        unsafe fn dot(row: __m512i, columns: __m512i, sums: __m512i) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_dpbusd_epi32(sums, row, columns) }
        }

        #[inline(always)]
        unsafe fn begin_scores(key_sums: *const i32) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe {
                let sums = _mm512_loadu_si512(key_sums.cast());
                _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(sums))
            }
        }

        #[inline(always)]
        unsafe fn end_scores(sums: __m512i, key_scales: *const f32, row_scale: f32) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe {
                let scale = __m512::load(key_scales).times(__m512::splat(row_scale));
                _mm512_cvtepi32_ps(sums).times(scale)
            }
        }

        #[inline(always)]
        unsafe fn put_weights(weights: __m512, value_scales: *const f32, to: *mut u32, key: usize) {
            // SAFETY: the caller's promise.
            unsafe {
                let scaled = weights.times(__m512::load(value_scales));
                let bytes = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(scaled));
                _mm_storeu_si128(to.add(key / 4).cast(), bytes);
            }
        }

        #[inline(always)]
        unsafe fn begin_out(_: *const f32, _: f32) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_setzero_si512() }
        }

        #[inline(always)]
        unsafe fn end_out(sums: __m512i, out: *mut f32, kept: f32, added: f32) {
            // SAFETY: the caller's promise.
            unsafe {
                let old = __m512::load(out).times(__m512::splat(kept));
                _mm512_cvtepi32_ps(sums)
                    .times_plus(__m512::splat(added), old)
                    .store(out);
            }
        }
    }
}
