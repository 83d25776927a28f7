//! The vectors of x86-64.

use std::arch::x86_64::*;

use super::{Lanes, ROUND};

macro_rules! arithmetic {
    ($n:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $mul:ident, $fma:ident, $max:ident) => {
        const N: usize = $n;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $splat(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $load(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { $store(to, self) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $add(self, other) }
        }

        #[inline(always)]
        unsafe fn times(self, factor: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $mul(self, factor) }
        }

        #[inline(always)]
        unsafe fn times_plus(self, factor: Self, addend: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $fma(self, factor, addend) }
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $max(self, other) }
        }
    };
}

impl Lanes for __m512 {
    arithmetic!(
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps
    );

    #[inline(always)]
    unsafe fn keep(self, bits: u32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mask_blend_ps(bits as u16, _mm512_set1_ps(f32::NEG_INFINITY), self) }
    }

    #[inline(always)]
    unsafe fn zip(self, other: Self) -> (Self, Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            (
                _mm512_permutex2var_ps(self, low, other),
                _mm512_permutex2var_ps(self, high, other),
            )
        }
    }

    #[inline(always)]
    unsafe fn split_exponent(self) -> (Self, Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let shifted = _mm512_add_ps(self, _mm512_set1_ps(ROUND));
            let n = _mm512_sub_ps(shifted, _mm512_set1_ps(ROUND));
            // The bits of ROUND vanish in the shift, but for its lowest 9.
            let bias = _mm512_set1_epi32(127);
            let scale =
                _mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_castps_si512(shifted), bias));
            (_mm512_sub_ps(self, n), _mm512_castsi512_ps(scale))
        }
    }

    #[inline(always)]
    unsafe fn exp2(self, terms: &[f32]) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let x = _mm512_max_ps(_mm512_set1_ps(-200.0), self);
            let n = _mm512_roundscale_ps::<0>(x);
            let r = _mm512_sub_ps(x, n);
            let [first, rest @ ..] = terms else {
                return n;
            };
            let mut p = Self::splat(*first);
            for &term in rest {
                p = p.times_plus(r, Self::splat(term));
            }
            _mm512_scalef_ps(p.times_plus(r, Self::splat(1.0)), n)
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_reduce_add_ps(self) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_reduce_max_ps(self) }
    }
}

impl Lanes for __m256 {
    arithmetic!(
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps
    );

    #[inline(always)]
    unsafe fn keep(self, bits: u32) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let set = _mm256_and_si256(_mm256_set1_epi32(bits as i32), lane);
            let keep = _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane));
            _mm256_blendv_ps(_mm256_set1_ps(f32::NEG_INFINITY), self, keep)
        }
    }

    #[inline(always)]
    unsafe fn zip(self, other: Self) -> (Self, Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (
                _mm256_unpacklo_ps(self, other),
                _mm256_unpackhi_ps(self, other),
            );
            (
                _mm256_permute2f128_ps::<0x20>(low, high),
                _mm256_permute2f128_ps::<0x31>(low, high),
            )
        }
    }

    #[inline(always)]
    unsafe fn split_exponent(self) -> (Self, Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let shifted = _mm256_add_ps(self, _mm256_set1_ps(ROUND));
            let n = _mm256_sub_ps(shifted, _mm256_set1_ps(ROUND));
            let bias = _mm256_set1_epi32(127);
            let scale =
                _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_castps_si256(shifted), bias));
            (_mm256_sub_ps(self, n), _mm256_castsi256_ps(scale))
        }
    }
}
