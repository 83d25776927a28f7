//! Which instructions the kernels may use: detected once.
//!
//! `LONGREEL_CPU=scalar|neon|avx2|avx512|avx512bf16` lowers the level, so that
//! every variant of a kernel can be tested on one machine; it never raises it.

use std::sync::{
    OnceLock,
    atomic::{AtomicUsize, Ordering},
};

/// The level in use, as its index in [`Level::ALL`] plus one; 0 until first use.
static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// Instruction sets, each including the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust.
    Scalar,
    /// NEON, on 64-bit ARM.
    Neon,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL (and AVX2, FMA).
    Avx512,
    /// AVX-512 with its bf16 and int8 dot products (AVX512-BF16, AVX512-VNNI).
    Avx512Bf16,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Self; 5] = [
        Self::Scalar,
        Self::Neon,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Bf16,
    ];

    /// The highest level that the processor supports.
    pub fn detected() -> Self {
        static DETECTED: OnceLock<Level> = OnceLock::new();
        *DETECTED.get_or_init(detect)
    }

    /// The level that kernels use: what the processor supports, lowered by `LONGREEL_CPU`.
    pub fn current() -> Self {
        let number = IN_USE.load(Ordering::Relaxed).wrapping_sub(1);
        Self::ALL.get(number).copied().unwrap_or_else(|| {
            let allowed = Self::allowed();
            allowed.put_in_use();
            allowed
        })
    }

    /// What the processor supports, lowered by `LONGREEL_CPU`.
    pub fn allowed() -> Self {
        static ALLOWED: OnceLock<Level> = OnceLock::new();
        *ALLOWED.get_or_init(|| {
            let wanted = std::env::var("LONGREEL_CPU").ok();
            let wanted = wanted.as_deref().and_then(Self::named);
            wanted.map_or(Self::detected(), |level| level.min(Self::detected()))
        })
    }

    /// From now on every kernel of this process uses this level, at most the allowed one: for
    /// measurements, while nothing else computes.
    pub fn put_in_use(self) {
        let level = self.min(Self::allowed());
        let number = Self::ALL.iter().position(|&l| l == level);
        IN_USE.store(number.map_or(0, |n| n + 1), Ordering::Relaxed);
    }

    /// The level of a `LONGREEL_CPU` value; `None` for any other text.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "scalar" => Some(Self::Scalar),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            "avx512bf16" => Some(Self::Avx512Bf16),
            "neon" => Some(Self::Neon),
            _ => None,
        }
    }

    /// The levels this processor can run, lowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        let foreign = |level| match level {
            Self::Neon => cfg!(target_arch = "x86_64"),
            Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 => cfg!(not(target_arch = "x86_64")),
            Self::Scalar => false,
        };
        Self::ALL
            .into_iter()
            .filter(move |&l| l <= Self::detected() && !foreign(l))
    }

    /// The name that `LONGREEL_CPU` knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let dots = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
    match (avx2, avx512, dots) {
        (true, true, true) => Level::Avx512Bf16,
        (true, true, false) => Level::Avx512,
        (true, false, _) => Level::Avx2,
        _ => Level::Scalar,
    }
}

/// NEON is part of every 64-bit ARM processor.
#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    if cfg!(target_arch = "aarch64") {
        Level::Neon
    } else {
        Level::Scalar
    }
}

/// Defines `fn NAME(level, args...)` that runs an `#[inline(always)]` body
/// compiled for each level, so that plain loops become the widest vectors.
macro_rules! per_level {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $([$g:ident: $bound:ident])? ($($arg:ident: $ty:ty),* $(,)?) = $body:path;) => {
        $(#[$doc])*
        $vis fn $name $(<$g: $bound>)? (level: $crate::cpu::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$g: $bound>)? ($($arg: $ty),*) {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512 $(<$g: $bound>)? ($($arg: $ty),*) {
                $body($($arg),*)
            }
            match level.min($crate::cpu::Level::detected()) {
                // SAFETY: the level is at most what the processor was found to have.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Level::Avx512 | $crate::cpu::Level::Avx512Bf16 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body($($arg),*),
            }
        }
    };
}
pub(crate) use per_level;

/// Prefetches the cache line at `address`, which may be invalid.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, and it never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Prefetches every cache line of `bytes`.
#[inline(always)]
pub(crate) fn prefetch_all(bytes: &[u8]) {
    bytes.chunks(64).for_each(|line| prefetch(line.as_ptr()));
}

#[cfg(test)]
mod tests {
    use super::Level;

    #[test]
    fn names_are_those_of_the_environment_variable() {
        assert_eq!(Level::named("avx2"), Some(Level::Avx2));
        assert_eq!(Level::named("sse"), None);
        assert!(Level::Scalar < Level::Avx2 && Level::Avx2 < Level::Avx512);
    }
}
