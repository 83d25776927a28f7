//! Layer normalization (Ba, Kiros and Hinton 2016).

use rayon::prelude::*;

use crate::cpu::{Level, per_level};

/// x `[n, d]`, weight, bias `[d]` → y `[n, d]`: `y = (x − mean) / sqrt(variance + eps) · weight + bias` per row.
///
/// # Panics
/// When the lengths do not fit.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let d = weight.len();
    assert!(d > 0 && bias.len() == d && x.len() == y.len() && x.len().is_multiple_of(d));
    let level = Level::current();
    x.par_chunks(d)
        .zip(y.par_chunks_mut(d))
        .with_min_len(8)
        .for_each(|(x, y)| normalize_row(level, x, weight, bias, eps, y));
}

per_level! {
    fn normalize_row(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) = body;
}

#[inline(always)]
fn body(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let n = x.len() as f32;
    let mean = sum_of(x, |v| v) / n;
    let variance = sum_of(x, |v| (v - mean) * (v - mean)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
        *y = (x - mean) * scale * w + b;
    }
}

/// Sums in 16 lanes: more accurate than one running sum, and a vector add.
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let chunks = x.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Reference for [`layer_norm`], in f64.
pub fn reference(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
    let d = weight.len();
    let row = |row: &[f32]| {
        let row: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
        let mean = row.iter().sum::<f64>() / d as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
        let scale = 1.0 / (variance + eps).sqrt();
        let affine = weight.iter().zip(bias);
        let normed = row.into_iter().zip(affine);
        normed
            .map(|(v, (&w, &b))| (v - mean) * scale * f64::from(w) + f64::from(b))
            .collect::<Vec<_>>()
    };
    x.chunks(d).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::{Level, layer_norm, normalize_row, reference};

    #[test]
    fn every_level_agrees_with_the_reference_on_odd_widths_and_far_from_zero() {
        for d in [2, 15, 16, 17, 64, 172, 1000] {
            let x: Vec<f32> = (0..d)
                .map(|i| ((i * 29 % 31) as f32 - 15.0) * 0.3 + 20.0)
                .collect();
            let weight: Vec<f32> = (0..d).map(|i| 1.0 + (i % 7) as f32 * 0.1).collect();
            let bias: Vec<f32> = (0..d).map(|i| (i % 5) as f32 - 2.0).collect();
            let expected = reference(&x, &weight, &bias, 1e-6);
            for level in Level::available() {
                let mut y = vec![0.0; d];
                normalize_row(level, &x, &weight, &bias, 1e-6, &mut y);
                for (&got, &e) in y.iter().zip(&expected) {
                    assert!(
                        (f64::from(got) - e).abs() <= 5e-6 * e.abs().max(1.0),
                        "{level:?} d={d}: got {got}, expected {e}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_of_one_value_becomes_the_bias() {
        let mut y = [1.0; 8];
        layer_norm(&[3.5; 8], &[2.0; 4], &[0.25; 4], 1e-12, &mut y);
        assert_eq!(y, [0.25; 8]);
    }
}
