//! Root-mean-square normalization (Zhang and Sennrich 2019).

use rayon::prelude::*;

use crate::cpu::{Level, per_level};

/// x `[n, d]`, weight `[d]` → y `[n, d]`: `y = x / sqrt(mean(x²) + eps) · weight` per row.
///
/// # Panics
/// When the lengths do not fit.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let d = weight.len();
    assert!(d > 0 && x.len() == y.len() && x.len().is_multiple_of(d));
    let level = Level::current();
    x.par_chunks(d)
        .zip(y.par_chunks_mut(d))
        .with_min_len(8)
        .for_each(|(x, y)| normalize_row(level, x, weight, eps, y));
}

per_level! {
    fn normalize_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) = body;
}

/// Sums in 16 lanes: more accurate than one running sum, and a vector add.
#[inline(always)]
fn body(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let mut lanes = [0f32; 16];
    let chunks = x.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|v| v * v).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = v.mul_add(v, *lane);
        }
    }
    let mean = (lanes.iter().sum::<f32>() + rest) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

/// Reference for [`rms_norm`], in f64.
pub fn reference(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let d = weight.len();
    x.chunks(d)
        .flat_map(|row| {
            let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / d as f64;
            let scale = 1.0 / (mean + eps).sqrt();
            row.iter()
                .zip(weight)
                .map(move |(&v, &w)| f64::from(v) * scale * f64::from(w))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Level, normalize_row, reference, rms_norm};

    #[test]
    fn every_level_agrees_with_the_reference_on_odd_widths() {
        for d in [1, 2, 15, 16, 17, 64, 172, 1000] {
            let x: Vec<f32> = (0..d)
                .map(|i| ((i * 29 % 31) as f32 - 15.0) * 0.3)
                .collect();
            let weight: Vec<f32> = (0..d).map(|i| 1.0 + (i % 7) as f32 * 0.1).collect();
            let expected = reference(&x, &weight, 1e-6);
            for level in Level::available() {
                let mut y = vec![0.0; d];
                normalize_row(level, &x, &weight, 1e-6, &mut y);
                for (&got, &e) in y.iter().zip(&expected) {
                    assert!(
                        (f64::from(got) - e).abs() <= 1e-6 * e.abs().max(1.0),
                        "{level:?} d={d}: got {got}, expected {e}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let mut y = [1.0; 8];
        rms_norm(&[0.0; 8], &[1.0; 4], 1e-6, &mut y);
        assert_eq!(y, [0.0; 8]);
    }
}
