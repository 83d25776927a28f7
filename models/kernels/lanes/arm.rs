//! The vector of 64-bit ARM.

use std::arch::aarch64::*;

use super::{Lanes, ROUND};

impl Lanes for float32x4_t {
    const N: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vaddq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn times(self, factor: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vmulq_f32(self, factor) }
    }

    #[inline(always)]
    unsafe fn times_plus(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vfmaq_f32(addend, self, factor) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vbslq_f32(vcgtq_f32(self, other), self, other) }
    }

    #[inline(always)]
    unsafe fn keep(self, bits: u32) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let lane = vld1q_u32([1, 2, 4, 8].as_ptr());
            let keep = vtstq_u32(vdupq_n_u32(bits), lane);
            vbslq_f32(keep, self, vdupq_n_f32(f32::NEG_INFINITY))
        }
    }

    #[inline(always)]
    unsafe fn zip(self, other: Self) -> (Self, Self) {
        // SAFETY: the caller's promise.
        unsafe { (vzip1q_f32(self, other), vzip2q_f32(self, other)) }
    }

    #[inline(always)]
    unsafe fn split_exponent(self) -> (Self, Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let shifted = vaddq_f32(self, vdupq_n_f32(ROUND));
            let n = vsubq_f32(shifted, vdupq_n_f32(ROUND));
            let biased = vaddq_u32(vreinterpretq_u32_f32(shifted), vdupq_n_u32(127));
            (
                vsubq_f32(self, n),
                vreinterpretq_f32_u32(vshlq_n_u32::<23>(biased)),
            )
        }
    }
}
