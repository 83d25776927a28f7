//! Which instructions the kernels may use: asked of the processor once.
//!
//! `LONGREEL_CPU=scalar|avx2|avx512` lowers the level, so that every body can
//! be tested on one machine; it never raises it.

use std::sync::OnceLock;

/// Instruction sets, each including the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL (and AVX2, FMA).
    Avx512,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The level that the processor has.
    pub fn detected() -> Self {
        static DETECTED: OnceLock<Level> = OnceLock::new();
        *DETECTED.get_or_init(detect)
    }

    /// The level that kernels use: what the processor has, lowered by `LONGREEL_CPU`.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Level> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let wanted = std::env::var("LONGREEL_CPU").ok();
            let wanted = wanted.as_deref().and_then(Self::named);
            wanted.map_or(Self::detected(), |level| level.min(Self::detected()))
        })
    }

    /// The level of a `LONGREEL_CPU` value; `None` for any other text.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "scalar" => Some(Self::Scalar),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            _ => None,
        }
    }

    /// The levels this processor can run, lowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|&l| l <= Self::detected())
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Scalar,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Scalar
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
                $crate::cpu::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body($($arg),*),
            }
        }
    };
}
pub(crate) use per_level;

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
