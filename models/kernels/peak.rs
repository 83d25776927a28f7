//! Work that reaches the processor's peak rates, to be timed: independent multiply-adds,
//! and pure reads from memory. A kernel's speed is reported as a
//! fraction of these.

use std::hint::black_box;

use memmap2::MmapMut;

use crate::{cpu::Level, lanes::Lanes};

/// A kind of multiply-add that has a peak of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Multiply {
    /// f32 times f32 plus f32, in the widest vectors of the level.
    F32,
    /// Pairs of bf16, summed in f32 (`vdpbf16ps`).
    Bf16,
    /// Groups of four 8-bit integers, summed in i32 (`vpdpbusd`).
    Int8,
}

impl Multiply {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// Whether `level` has an instruction for it; f32 is everywhere.
    pub fn is_in(self, level: Level) -> bool {
        self == Self::F32 || level == Level::Avx512Bf16
    }
}

/// Independent sums: twice the multiply-adds in flight in any known core.
const SUMS: usize = 16;

/// Multiplies and adds `rounds` times into every sum on this thread → operations done, two
/// per multiply-add; `None` where `level` (or what the processor has of it) lacks the instruction.
pub fn multiply(kind: Multiply, level: Level, rounds: u64) -> Option<u64> {
    let level = level.min(Level::detected());
    if !kind.is_in(level) {
        return None;
    }
    let lanes = multiply_at(kind, level, rounds);
    Some(2 * rounds * (SUMS * lanes) as u64)
}

/// Runs with the instructions of `level`, which the processor must support → products per instruction.
fn multiply_at(kind: Multiply, level: Level, rounds: u64) -> usize {
    match (kind, level) {
        // SAFETY: the level is at most what the processor was found to have.
        #[cfg(target_arch = "x86_64")]
        (Multiply::Bf16, _) => unsafe { x86::bf16(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Multiply::Int8, _) => unsafe { x86::int8(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (_, Level::Avx512 | Level::Avx512Bf16) => unsafe { x86::avx512(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (_, Level::Avx2) => unsafe { x86::avx2(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        (_, Level::Neon) => unsafe { floats::<std::arch::aarch64::float32x4_t>(rounds) },
        // SAFETY: plain Rust runs everywhere.
        _ => unsafe { floats::<[f32; 4]>(rounds) },
    }
}

/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn floats<V: Lanes>(rounds: u64) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        // Every sum stays near 2: x ← x / 2 + 1.
        let (half, one) = (V::splat(black_box(0.5)), V::splat(black_box(1.0)));
        let mut sums = [V::splat(black_box(2.0)); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = sum.times_plus(half, one);
            }
        }
        black_box(sums);
    }
    V::N
}

/// A buffer for timing reads, in large pages where the system gives them.
pub struct ReadBuffer(MmapMut);

/// Streams that one thread reads in parallel, so that more memory requests are in flight.
const STREAMS: usize = 4;

/// Bytes of one step of a stream.
const STEP: usize = 256;

/// Prefetch distance in bytes.
const AHEAD: usize = 2048;

impl ReadBuffer {
    /// At least `bytes` bytes, every page of which is resident.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let mut map = MmapMut::map_anon(bytes.next_multiple_of(STREAMS * STEP))?;
        // Without large pages the buffer serves too.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        map.fill(1);
        Ok(Self(map))
    }

    /// Part `part` of `parts` equal ones is read on this thread → bytes read.
    pub fn read(&self, level: Level, part: usize, parts: usize) -> usize {
        let len = self.0.len() / parts.max(1) / (STREAMS * STEP) * (STREAMS * STEP);
        let bytes = self.0.get(part * len..(part + 1) * len).unwrap_or_default();
        black_box(sum_at(level.min(Level::detected()), bytes));
        bytes.len()
    }
}

/// Reads every byte with the instructions of `level`, which the processor has.
fn sum_at(level: Level, bytes: &[u8]) -> f32 {
    match level {
        // SAFETY: the level is at most what the processor was found to have, and the length
        // is a whole number of steps of every stream.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 => unsafe { x86::sum_avx512(bytes) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::sum_avx2(bytes) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => unsafe { sum::<std::arch::aarch64::float32x4_t>(bytes) },
        // SAFETY: as above.
        _ => unsafe { sum::<[f32; 4]>(bytes) },
    }
}

/// # Safety
/// The processor has the instructions of `V`; the length is a multiple of `STREAMS * STEP`.
#[inline(always)]
unsafe fn sum<V: Lanes>(bytes: &[u8]) -> f32 {
    let stream = bytes.len() / STREAMS;
    // SAFETY: the caller's promise; every load lies inside the stream's step.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        for at in (0..stream).step_by(STEP) {
            for step in (0..STREAMS).map(|s| bytes.as_ptr().add(s * stream + at)) {
                fetch(step.wrapping_add(AHEAD));
                for (i, vector) in (0..STEP).step_by(4 * V::N).enumerate() {
                    let sum = &mut sums[i % 4];
                    *sum = sum.add(V::load(step.add(vector).cast()));
                }
            }
        }
        let halves = [sums[0].add(sums[1]), sums[2].add(sums[3])];
        halves[0].add(halves[1]).sum()
    }
}

/// Prefetches the cache lines of the step at `from`, which may lie past the end.
#[inline(always)]
fn fetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..STEP).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults, and every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The bodies compiled for x86-64.

    use std::{arch::x86_64::*, hint::black_box};

    use super::SUMS;

    /// # Safety
    /// The processor has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(rounds: u64) -> usize {
        // SAFETY: the caller's promise.
        unsafe { super::floats::<__m512>(rounds) }
    }

    /// # Safety
    /// The processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(rounds: u64) -> usize {
        // SAFETY: the caller's promise.
        unsafe { super::floats::<__m256>(rounds) }
    }

    /// # Safety
    /// The processor has AVX-512 with the bf16 dot product.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn bf16(rounds: u64) -> usize {
        // 1.0 in bf16, twice.
        let ones = black_box(_mm512_set1_epi32(0x3f80_3f80));
        // SAFETY: both are 64 bytes of plain numbers.
        let ones: __m512bh = unsafe { std::mem::transmute(ones) };
        let mut sums = [black_box(_mm512_setzero_ps()); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
        32
    }

    /// # Safety
    /// The processor has AVX-512 with the int8 dot product.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn int8(rounds: u64) -> usize {
        let ones = black_box(_mm512_set1_epi8(1));
        let mut sums = [black_box(_mm512_setzero_si512()); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, ones, ones);
            }
        }
        black_box(sums);
        64
    }

    /// # Safety
    /// The processor has AVX-512; see [`super::sum`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn sum_avx512(bytes: &[u8]) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { super::sum::<__m512>(bytes) }
    }

    /// # Safety
    /// The processor has AVX2; see [`super::sum`].
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn sum_avx2(bytes: &[u8]) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { super::sum::<__m256>(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Level, Multiply, ReadBuffer, SUMS, multiply, sum_at};

    #[test]
    fn every_level_counts_the_operations_of_its_vectors() {
        for level in Level::available() {
            let lanes = match level {
                Level::Scalar | Level::Neon => 4,
                Level::Avx2 => 8,
                Level::Avx512 | Level::Avx512Bf16 => 16,
            };
            let expected = 2 * 3 * (SUMS * lanes) as u64;
            assert_eq!(
                multiply(Multiply::F32, level, 3),
                Some(expected),
                "{level:?}"
            );
        }
    }

    #[test]
    fn a_level_without_the_dot_product_has_no_peak_of_it() {
        for kind in [Multiply::Bf16, Multiply::Int8] {
            assert_eq!(
                multiply(kind, Level::Avx512.min(Level::detected()), 1),
                None
            );
            let has = Level::detected() == Level::Avx512Bf16;
            assert_eq!(multiply(kind, Level::Avx512Bf16, 1).is_some(), has);
        }
    }

    #[test]
    fn every_byte_is_read_once_at_every_level() {
        let ones: Vec<u8> = 1f32.to_ne_bytes().repeat(4096);
        for level in Level::available() {
            assert_eq!(sum_at(level, &ones), 4096.0, "{level:?}");
        }
    }

    #[test]
    fn parts_cover_the_buffer() {
        let buffer = ReadBuffer::new(1 << 16).unwrap();
        let read = |part| buffer.read(Level::detected(), part, 4);
        assert_eq!((0..4).map(read).sum::<usize>(), 1 << 16);
        assert_eq!(buffer.read(Level::detected(), 4, 4), 0);
    }
}
