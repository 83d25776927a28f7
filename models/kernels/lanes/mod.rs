//! A vector of floats, so that one body of a kernel serves every instruction set.
//!
//! A body that is generic over [`Lanes`] is `#[inline(always)]` and instantiated
//! inside a function that has the instructions switched on.

#[cfg(target_arch = "aarch64")]
pub(crate) mod arm;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

/// A vector of floats.
///
/// Every function needs a processor that has this vector's instructions.
pub(crate) trait Lanes: Copy {
    /// Number of floats.
    const N: usize;
    /// # Safety
    /// The processor has this vector's instructions.
    unsafe fn splat(x: f32) -> Self;
    /// # Safety
    /// As `splat`; `N` floats behind `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// As `splat`; room for `N` floats behind `to`.
    unsafe fn store(self, to: *mut f32);
    /// # Safety
    /// As `splat`.
    unsafe fn add(self, other: Self) -> Self;
    /// # Safety
    /// As `splat`.
    unsafe fn times(self, factor: Self) -> Self;
    /// `self · factor + addend`.
    ///
    /// # Safety
    /// As `splat`.
    unsafe fn times_plus(self, factor: Self, addend: Self) -> Self;
    /// The larger of each pair; `other` where either is NaN.
    ///
    /// # Safety
    /// As `splat`.
    unsafe fn max(self, other: Self) -> Self;
    /// Lane `i` where bit `i` is set, −∞ elsewhere.
    ///
    /// # Safety
    /// As `splat`.
    unsafe fn keep(self, bits: u32) -> Self;
    /// The lanes of both interleaved: the lower halves, then the upper halves.
    ///
    /// # Safety
    /// As `splat`.
    unsafe fn zip(self, other: Self) -> (Self, Self);
    /// `(x − n, 2^n)` for the integer `n ≥ −127` nearest to `x ≤ 127`; `2^-127` is 0.
    ///
    /// # Safety
    /// As `splat`.
    unsafe fn split_exponent(self) -> (Self, Self);

    /// `2^x` for `x ≤ 127` with the polynomial `terms`; 0 below −150, possibly already below −127.
    ///
    /// # Safety
    /// As `splat`.
    #[inline(always)]
    unsafe fn exp2(self, terms: &[f32]) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let (r, scale) = Self::splat(-127.0).max(self).split_exponent();
            let [first, rest @ ..] = terms else {
                return scale;
            };
            let mut p = Self::splat(*first);
            for &term in rest {
                p = p.times_plus(r, Self::splat(term));
            }
            p.times_plus(r, Self::splat(1.0)).times(scale)
        }
    }

    /// The sum of the lanes, added pairwise by halves.
    ///
    /// # Safety
    /// As `splat`.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.fold(|a, b| a + b) }
    }

    /// The largest of the lanes.
    ///
    /// # Safety
    /// As `splat`.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.fold(|a, b| if b > a { b } else { a }) }
    }

    /// Reduces the lanes to one, pairwise by halves.
    ///
    /// # Safety
    /// As `splat`.
    #[inline(always)]
    unsafe fn fold(self, join: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0; 16];
        // SAFETY: no vector is wider than 16 floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut n = Self::N;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] = join(lanes[i], lanes[i + n]);
            }
        }
        lanes[0]
    }
}

/// Coefficients of `2^r − 1` for `|r| ≤ 1/2`, highest power first: relative error 1.1e-7
/// (minimax fit with f32 coefficients).
pub(crate) const EXP2_EXACT: [f32; 5] = [
    0.001_330_060_8,
    0.009_669_692,
    0.055_505_585,
    0.240_222_83,
    std::f32::consts::LN_2,
];

/// The same with relative error 1.0e-4, far below the 2e-3 of a weight in bf16.
pub(crate) const EXP2_SHORT: [f32; 3] = [0.055_008_903, 0.242_210_97, 0.693_282_96];

/// Adding 1.5·2^23 rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

impl Lanes for [f32; 4] {
    const N: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; an array of f32 is aligned as f32.
        unsafe { from.cast::<Self>().read() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as in `load`.
        unsafe { to.cast::<Self>().write(self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }

    #[inline(always)]
    unsafe fn times(self, factor: Self) -> Self {
        std::array::from_fn(|i| self[i] * factor[i])
    }

    #[inline(always)]
    unsafe fn times_plus(self, factor: Self, addend: Self) -> Self {
        std::array::from_fn(|i| self[i] * factor[i] + addend[i])
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        std::array::from_fn(|i| {
            if self[i] > other[i] {
                self[i]
            } else {
                other[i]
            }
        })
    }

    #[inline(always)]
    unsafe fn keep(self, bits: u32) -> Self {
        std::array::from_fn(|i| {
            if bits >> i & 1 == 1 {
                self[i]
            } else {
                f32::NEG_INFINITY
            }
        })
    }

    #[inline(always)]
    unsafe fn zip(self, other: Self) -> (Self, Self) {
        let ([a, b, c, d], [e, f, g, h]) = (self, other);
        ([a, e, b, f], [c, g, d, h])
    }

    #[inline(always)]
    unsafe fn split_exponent(self) -> (Self, Self) {
        let shifted = self.map(|x| x + ROUND);
        let r = std::array::from_fn(|i| self[i] - (shifted[i] - ROUND));
        let exponent = |x: f32| x.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
        (r, shifted.map(|x| f32::from_bits(exponent(x) << 23)))
    }
}

#[cfg(test)]
mod tests {
    use super::{EXP2_EXACT, EXP2_SHORT, Lanes};
    use crate::cpu::Level;

    /// `2^x` and the other operations on one vector.
    #[inline(always)]
    unsafe fn body<V: Lanes>(x: &[f32; 16], terms: &[f32]) -> [f32; 16] {
        let mut y = [0.0; 16];
        for at in (0..16).step_by(V::N) {
            // SAFETY: the caller's promise, and both arrays hold 16 floats.
            unsafe { V::load(&x[at]).exp2(terms).store(&mut y[at]) };
        }
        y
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(x: &[f32; 16], terms: &[f32]) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { body::<std::arch::x86_64::__m256>(x, terms) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn avx512(x: &[f32; 16], terms: &[f32]) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { body::<std::arch::x86_64::__m512>(x, terms) }
    }

    fn exp2(level: Level, x: &[f32; 16], terms: &[f32]) -> [f32; 16] {
        match level {
            // SAFETY: only levels that the processor has are asked for.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2(x, terms) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => unsafe { avx512(x, terms) },
            // SAFETY: NEON is part of every 64-bit ARM processor.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => unsafe { body::<std::arch::aarch64::float32x4_t>(x, terms) },
            // SAFETY: plain Rust runs everywhere.
            _ => unsafe { body::<[f32; 4]>(x, terms) },
        }
    }

    #[test]
    fn powers_of_two_are_within_the_stated_error_at_every_level() {
        for level in Level::available() {
            for (terms, limit) in [(&EXP2_EXACT[..], 2.4e-7), (&EXP2_SHORT[..], 1.1e-4)] {
                for step in 0..2000 {
                    let x: [f32; 16] =
                        std::array::from_fn(|i| -126.4 + (step * 16 + i) as f32 * 0.00784);
                    for (x, got) in x.iter().zip(exp2(level, &x, terms)) {
                        let exact = f64::from(*x).exp2();
                        let error = (f64::from(got) - exact).abs() / exact;
                        assert!(error < limit, "{level:?} 2^{x}: got {got}, error {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_are_exact_and_nan_propagates() {
        let mut x = [f32::NEG_INFINITY; 16];
        x[..5].copy_from_slice(&[0.0, -1.0, -151.0, -1e30, f32::NAN]);
        for level in Level::available() {
            let y = exp2(level, &x, &EXP2_EXACT);
            assert_eq!(y[..4], [1.0, 0.5, 0.0, 0.0], "{level:?}");
            assert!(y[4].is_nan(), "{level:?}");
            assert_eq!(y[5..], [0.0; 11], "{level:?}");
        }
    }
}
