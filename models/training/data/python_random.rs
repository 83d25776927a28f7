//! `random.Random(seed).choice(list)` of Python: LWM chooses among a line's alternatives by the line's number
//! (`lwm/data.py`).

use rand_mt::Mt;

/// The index that Python chooses among `n`, seeded with `seed`; `None` for `n = 0`.
///
/// CPython seeds the Mersenne Twister with the 32-bit words of the seed, the lowest first, and draws as many
/// bits as `n` has until the number is below `n` (`Lib/random.py`, `_randbelow_with_getrandbits`).
pub fn choice(seed: u64, n: usize) -> Option<usize> {
    let n = u32::try_from(n).ok().filter(|&n| n > 0)?;
    let words = [seed as u32, (seed >> 32) as u32];
    let n_words = if words[1] == 0 { 1 } else { 2 };
    let mut numbers = Mt::new_with_key(words[..n_words].iter().copied());
    let shift = n.leading_zeros();
    loop {
        let drawn = numbers.next_u32() >> shift;
        if drawn < n {
            return usize::try_from(drawn).ok();
        }
    }
}
