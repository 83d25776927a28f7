//! Rotary position embedding (RoPE, Su et al. 2021): each pair of channels is rotated
//! by an angle that grows with the position.

use rayon::prelude::*;

/// Which channels of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Channels `2i` and `2i + 1`.
    Adjacent,
    /// Channels `i` and `i + d/2`.
    Halves,
}

/// x `[n, heads, d]`, cos and sin `[n, d/2]` → x rotated in place: `(a, b) ← (a·cos − b·sin, a·sin + b·cos)`.
///
/// # Panics
/// When the lengths do not fit.
pub fn rotate(x: &mut [f32], heads: usize, cos: &[f32], sin: &[f32], half: usize, pairs: Pairs) {
    let width = heads * half * 2;
    assert!(width > 0 && x.len().is_multiple_of(width) && cos.len() == sin.len());
    assert_eq!(cos.len(), x.len() / width * half);
    x.par_chunks_mut(width)
        .zip(cos.par_chunks(half).zip(sin.par_chunks(half)))
        .with_min_len(8)
        .for_each(|(token, (cos, sin))| {
            for head in token.chunks_exact_mut(half * 2) {
                match pairs {
                    Pairs::Adjacent => rotate_adjacent(head, cos, sin),
                    Pairs::Halves => rotate_halves(head, cos, sin),
                }
            }
        });
}

fn rotate_adjacent(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for (pair, (&c, &s)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * c - b * s;
        pair[1] = a * s + b * c;
    }
}

fn rotate_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for ((a, b), (&c, &s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
    }
}

#[cfg(test)]
mod tests {
    use super::{Pairs, rotate};

    #[test]
    fn a_quarter_turn_sends_a_to_b() {
        let mut adjacent = [1.0, 0.0, 3.0, 4.0];
        rotate(
            &mut adjacent,
            1,
            &[0.0, 1.0],
            &[1.0, 0.0],
            2,
            Pairs::Adjacent,
        );
        assert_eq!(adjacent, [0.0, 1.0, 3.0, 4.0]);
        let mut halves = [1.0, 3.0, 0.0, 4.0];
        rotate(&mut halves, 1, &[0.0, 1.0], &[1.0, 0.0], 2, Pairs::Halves);
        assert_eq!(halves, [0.0, 3.0, 1.0, 4.0]);
    }

    #[test]
    fn heads_of_a_token_share_their_rotation_and_tokens_do_not() {
        let mut x = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        rotate(&mut x, 2, &[1.0, 0.0], &[0.0, 1.0], 1, Pairs::Adjacent);
        assert_eq!(x, [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
    }
}
