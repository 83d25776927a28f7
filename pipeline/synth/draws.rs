//! Seeded random draws, equal on every machine and in every version.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Draws(u64);

impl Draws {
    /// The stream of `parts`; streams of different parts are independent.
    pub fn new(parts: &[u64]) -> Self {
        let mut draws = Self(0);
        for part in parts {
            draws.0 = draws.bits() ^ part;
        }
        Self(draws.bits())
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        // The high 64 bits of the product are below `n`, so that they fit a usize.
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// A number from `from` to `to`, inclusive.
    pub fn between(&mut self, from: i32, to: i32) -> i32 {
        let span = to.abs_diff(from) as usize;
        from + self.below(span + 1) as i32
    }

    /// One of `choices`, which must not be empty.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
