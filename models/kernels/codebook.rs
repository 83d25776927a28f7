//! The nearest row of a codebook (van den Oord et al., "Neural Discrete Representation Learning").

use rayon::prelude::*;

use crate::conv::{Kernel, Resampling, Start, conv};

/// Vectors whose distances to all rows are in memory at once: 2 MiB for LWM's 8192 rows.
const BLOCK: usize = 64;

/// A codebook, packed for the search.
///
/// The products are a 1×1 convolution, in which every row's sum runs in the same
/// order: equal rows get equal distances, and the lower index wins.
pub struct Codebook {
    /// `[1, 1, channels, rows]`.
    product: Kernel,
    /// |e|² per row.
    squares: Vec<f32>,
    channels: usize,
}

impl Codebook {
    /// rows `[rows, channels]` → the packed codebook.
    ///
    /// # Panics
    /// When there is no row, or the length is not a multiple of `channels`.
    pub fn pack(rows: &[f32], channels: usize) -> Self {
        assert!(channels > 0 && !rows.is_empty() && rows.len().is_multiple_of(channels));
        let n = rows.len() / channels;
        let mut transposed = vec![0.0; rows.len()];
        for (i, row) in rows.chunks_exact(channels).enumerate() {
            for (c, &value) in row.iter().enumerate() {
                transposed[c * n + i] = value;
            }
        }
        Self {
            product: Kernel::pack(&transposed, &vec![0.0; n], [1, 1, channels, n]),
            squares: rows.chunks_exact(channels).map(square).collect(),
            channels,
        }
    }

    /// z `[n, channels]` → codes `[n]`: the row with the least `|z|² + |e|² − 2 z·e` in f32, the
    /// lowest index on ties (`lwm/vqgan.py`, `VectorQuantizer`).
    ///
    /// # Panics
    /// When the length of `z` is not a multiple of `channels`.
    pub fn nearest(&self, z: &[f32]) -> Vec<u32> {
        assert!(z.len().is_multiple_of(self.channels));
        let mut products = Vec::new();
        let mut codes = Vec::with_capacity(z.len() / self.channels);
        for block in z.chunks(BLOCK * self.channels) {
            let n = block.len() / self.channels;
            products.resize(n * self.squares.len(), 0.0);
            conv(
                block,
                [1, n],
                &self.product,
                Resampling::Same,
                Start::Bias,
                &mut products,
            );
            codes.par_extend(
                block
                    .par_chunks(self.channels)
                    .zip(products.par_chunks(self.squares.len()))
                    .map(|(z, products)| least(square(z), &self.squares, products)),
            );
        }
        codes
    }
}

/// |v|² in f32.
fn square(v: &[f32]) -> f32 {
    v.iter().map(|x| x * x).sum()
}

/// The index of the smallest distance, the first on ties; 0 where every distance is NaN.
fn least(z_square: f32, squares: &[f32], products: &[f32]) -> u32 {
    let mut best = (f32::INFINITY, 0);
    for (i, (&square, &product)) in (0_u32..).zip(squares.iter().zip(products)) {
        // In this order upstream's f32 ties are reproduced.
        let distance = z_square + square - 2.0 * product;
        if distance < best.0 {
            best = (distance, i);
        }
    }
    best.1
}

/// Reference for [`Codebook::nearest`] up to rounding: the index of the smallest squared distance, and all of them in f64.
pub fn reference(z: &[f32], rows: &[f32], channels: usize) -> Vec<(u32, Vec<f64>)> {
    let distance = |z: &[f32], row: &[f32]| -> f64 {
        z.iter()
            .zip(row)
            .map(|(&z, &e)| (f64::from(z) - f64::from(e)).powi(2))
            .sum()
    };
    z.chunks_exact(channels)
        .map(|z| {
            let distances: Vec<f64> = rows
                .chunks_exact(channels)
                .map(|row| distance(z, row))
                .collect();
            let first_least =
                (0_u32..)
                    .zip(&distances)
                    .fold(
                        (0, f64::INFINITY),
                        |best, (i, &d)| {
                            if d < best.1 { (i, d) } else { best }
                        },
                    );
            (first_least.0, distances)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Codebook, reference};

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n)
            .map(|i| (i as f32 * step).sin() + (i as f32 * 0.73).cos())
            .collect()
    }

    #[test]
    fn of_equal_rows_the_lowest_index_is_taken_wherever_they_stand() {
        for (low, high) in [(0, 1), (5, 121), (3, 31), (30, 33), (64, 127)] {
            let mut rows = wave(128 * 6, 0.31);
            let row: Vec<f32> = rows[low * 6..][..6].to_vec();
            rows[high * 6..][..6].copy_from_slice(&row);
            assert_eq!(Codebook::pack(&rows, 6).nearest(&row), [low as u32]);
        }
    }

    #[test]
    fn halfway_between_two_rows_the_lowest_index_is_taken() {
        let codebook = Codebook::pack(&[1.0, 0.0, -1.0, 0.0, 0.0, 1.0], 2);
        assert_eq!(codebook.nearest(&[0.0, 0.0, 0.0, -3.0]), [0, 0]);
    }

    #[test]
    fn an_infinite_vector_gives_a_valid_code() {
        let codebook = Codebook::pack(&[1.0, -1.0], 1);
        for z in [f32::INFINITY, f32::NAN, f32::MAX] {
            assert!(codebook.nearest(&[z])[0] < 2);
        }
    }

    #[test]
    fn no_vectors_give_no_codes() {
        assert!(Codebook::pack(&[1.0], 1).nearest(&[]).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn no_other_row_is_nearer_than_rounding(
            n in 1..150_usize, rows in 1..200_usize, channels in 1..40_usize, step in 0.01..2.0_f32,
        ) {
            let (z, e) = (wave(n * channels, step), wave(rows * channels, step * 0.7));
            let got = Codebook::pack(&e, channels).nearest(&z);
            for (code, (least, distances)) in got.iter().zip(reference(&z, &e, channels)) {
                let excess = distances[*code as usize] - distances[least as usize];
                prop_assert!(excess <= 1e-5 * channels as f64, "code {code}, expected {least}: {excess} farther");
            }
        }
    }
}
