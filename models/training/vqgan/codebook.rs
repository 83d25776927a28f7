//! Training of the codebook: usage, moving averages in place of a loss, and restarts of dead rows.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A row whose average size is below this is not updated.
const LEAST_SIZE: f32 = 1e-12;

/// The vectors of a batch and the rows they were quantized to.
pub struct Assigned<'a> {
    /// `[n, width]`.
    pub z: &'a [f32],
    /// `[n]`.
    pub codes: &'a [u32],
    /// Channels of a row.
    pub width: usize,
}

impl Assigned<'_> {
    /// The number of vectors assigned to each of `rows` rows.
    pub fn counts(&self, rows: usize) -> Vec<u32> {
        let mut counts = vec![0; rows];
        self.codes.iter().for_each(|&c| counts[c as usize] += 1);
        counts
    }

    /// The sums of the vectors assigned to each of `rows` rows, `[rows, width]`.
    fn sums(&self, rows: usize) -> Vec<f32> {
        let mut sums = vec![0.0; rows * self.width];
        for (z, &code) in self.z.chunks_exact(self.width).zip(self.codes) {
            let sum = &mut sums[code as usize * self.width..][..self.width];
            sum.iter_mut().zip(z).for_each(|(sum, z)| *sum += z);
        }
        sums
    }
}

/// The number of distinct codes, and the perplexity: `e` to the entropy of their frequencies.
pub fn usage(counts: &[u32]) -> (usize, f64) {
    let total: f64 = counts.iter().map(|&n| f64::from(n)).sum();
    let used = counts.iter().filter(|&&n| n > 0);
    let shares = used.clone().map(|&n| f64::from(n) / total);
    let entropy: f64 = shares.map(|p| -p * p.ln()).sum();
    (used.count(), entropy.exp())
}

/// Moving averages of assigned vectors: `sums / sizes` is the codebook.
#[derive(Debug, Clone, PartialEq)]
pub struct Averages {
    /// Average number of vectors assigned to each row, `[rows]`.
    pub sizes: Vec<f32>,
    /// Averages of their sums, `[rows, width]`.
    pub sums: Vec<f32>,
}

impl Averages {
    /// Starts each row as the average of one vector, the row itself.
    pub fn of(rows: &[f32], width: usize) -> Self {
        Self {
            sizes: vec![1.0; rows.len() / width],
            sums: rows.to_vec(),
        }
    }

    /// Adds a batch: `average ← decay · average + (1 − decay) · batch`, then rows `[rows, width]` are the quotients.
    pub fn follow(&mut self, assigned: &Assigned, decay: f64, rows: &mut [f32]) {
        let (keep, take) = (decay as f32, (1.0 - decay) as f32);
        let counts = assigned.counts(self.sizes.len());
        let sums = assigned.sums(self.sizes.len());
        for (size, n) in self.sizes.iter_mut().zip(counts) {
            *size = keep * *size + take * n as f32;
        }
        for (sum, more) in self.sums.iter_mut().zip(sums) {
            *sum = keep * *sum + take * more;
        }
        let width = assigned.width;
        let quotients = self.sums.chunks_exact(width).zip(&self.sizes);
        for (row, (sum, &size)) in rows.chunks_exact_mut(width).zip(quotients) {
            if size > LEAST_SIZE {
                row.iter_mut().zip(sum).for_each(|(r, sum)| *r = sum / size);
            }
        }
    }

    /// Restarts a row at the vector `z`.
    pub fn begin(&mut self, row: usize, z: &[f32]) {
        self.sizes[row] = 1.0;
        self.sums[row * z.len()..][..z.len()].copy_from_slice(z);
    }
}

/// Updates the number of steps since each row was last used, after a batch with `counts`.
pub fn wait(unused: &mut [u32], counts: &[u32]) {
    for (unused, &n) in unused.iter_mut().zip(counts) {
        *unused = if n > 0 { 0 } else { unused.saturating_add(1) };
    }
}

/// Rows unused for `after` steps, each with the vector of the batch at which it restarts, no vector twice while there
/// are others; their counters are reset.
pub fn restarts(
    unused: &mut [u32],
    after: u32,
    vectors: usize,
    [seed, step]: [u64; 2],
) -> Vec<(usize, usize)> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(step);
    let mut taken = BTreeSet::new();
    let mut pairs = Vec::new();
    for (row, unused) in unused.iter_mut().enumerate() {
        if after == 0 || *unused < after || vectors == 0 {
            continue;
        }
        if taken.len() == vectors {
            taken.clear();
        }
        let mut vector = random.random_range(0..vectors);
        while !taken.insert(vector) {
            vector = (vector + 1) % vectors;
        }
        pairs.push((row, vector));
        *unused = 0;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::{Assigned, Averages, restarts, usage, wait};

    #[test]
    fn perplexity_of_equally_used_codes_is_their_number() {
        let (distinct, perplexity) = usage(&[4, 4, 0, 4]);
        assert!(distinct == 3 && (perplexity - 3.0).abs() < 1e-12);
        let (distinct, perplexity) = usage(&[100, 1]);
        assert!(distinct == 2 && perplexity < 1.1);
    }

    #[test]
    fn an_average_moves_a_row_to_its_vectors_and_leaves_an_unused_one() {
        let mut rows = vec![0.0, 0.0, 7.0, 7.0];
        let mut averages = Averages::of(&rows, 2);
        let assigned = Assigned {
            z: &[1.0, 3.0, 3.0, 5.0],
            codes: &[0, 0],
            width: 2,
        };
        averages.follow(&assigned, 0.5, &mut rows);
        // Half of one vector of zeros, half of two that sum up to (4, 8).
        assert_eq!(averages.sizes, [1.5, 0.5]);
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(near(rows[0], 2.0 / 1.5) && near(rows[1], 4.0 / 1.5));
        assert_eq!(rows[2..], [7.0, 7.0]);
        for _ in 0..10_000 {
            averages.follow(&assigned, 0.5, &mut rows);
        }
        assert!(near(rows[0], 2.0) && near(rows[1], 4.0));
        assert_eq!(rows[2..], [7.0, 7.0], "however long it is unused");
    }

    #[test]
    fn rows_restart_after_the_given_steps_at_different_vectors() {
        let mut unused = [0, 2, 2, 2];
        wait(&mut unused, &[1, 0, 0, 1]);
        assert_eq!(unused, [0, 3, 3, 0]);
        assert!(restarts(&mut unused, 4, 10, [1, 1]).is_empty());
        assert!(restarts(&mut unused, 0, 10, [1, 1]).is_empty());
        let pairs = restarts(&mut unused, 3, 2, [1, 1]);
        let (rows, mut vectors): (Vec<usize>, Vec<usize>) = pairs.into_iter().unzip();
        vectors.sort();
        assert_eq!((rows, vectors), (vec![1, 2], vec![0, 1]));
        assert_eq!(unused, [0; 4]);
        let mut all = [9; 5];
        assert_eq!(restarts(&mut all, 3, 2, [1, 1]).len(), 5);
    }
}
