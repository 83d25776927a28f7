//! Group normalization followed by SiLU (Wu and He, "Group Normalization"; flax `GroupNorm`).
//!
//! Fused, because each alone is memory-bound: one pass sums, one pass writes.

use rayon::prelude::*;

use crate::{
    cpu::{Level, per_level},
    exp::exp,
};

/// Groups of every layer of the VQGAN (the default of flax).
pub const GROUPS: usize = 32;

/// Added to the variance (the default of flax).
pub const EPS: f64 = 1e-6;

/// Pixels whose sums are kept in f32 before they are added up in f64.
pub(crate) const RUN_PIXELS: usize = 16;

/// Pixels of one task.
pub(crate) const TASK_PIXELS: usize = 1024;

/// x `[pixels, channels]`, scale, bias `[channels]` → y `[pixels, channels]`:
/// `y = silu((x − mean) / √(var + ε) · scale + bias)`, `silu(v) = v / (1 + e^−v)`.
///
/// Mean and variance are over all pixels and the consecutive channels of a group;
/// `var = max(0, E[x²] − E[x]²)`, as in flax.
///
/// # Panics
/// When the lengths do not fit, or the channels are not a multiple of [`GROUPS`].
pub fn group_norm_silu(x: &[f32], scale: &[f32], bias: &[f32], y: &mut [f32]) {
    group_norm_silu_at(Level::current(), x, scale, bias, y);
}

fn group_norm_silu_at(level: Level, x: &[f32], scale: &[f32], bias: &[f32], y: &mut [f32]) {
    let channels = scale.len();
    assert!(channels > 0 && channels.is_multiple_of(GROUPS));
    assert!(bias.len() == channels && x.len() == y.len() && x.len().is_multiple_of(channels));
    let (mean, factor) = statistics(level, x, scale);
    let task = TASK_PIXELS * channels;
    y.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .for_each(|(y, x)| write(level, x, &mean, &factor, bias, y));
}

/// Each channel's mean and factor, `scale / √(var + ε)`.
pub(crate) fn statistics(level: Level, x: &[f32], scale: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let channels = scale.len();
    let per_group = channels / GROUPS;
    let sums = channel_sums(level, x, channels);
    let (sums, squares) = sums.split_at(channels);
    let n = (x.len() / GROUPS) as f64;
    let (mut means, mut factors) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
    for group in 0..GROUPS {
        let range = group * per_group..(group + 1) * per_group;
        let mean = sums[range.clone()].iter().sum::<f64>() / n;
        let square = squares[range.clone()].iter().sum::<f64>() / n;
        let inverse = 1.0 / ((square - mean * mean).max(0.0) + EPS).sqrt();
        for &scale in &scale[range] {
            means.push(mean as f32);
            factors.push((inverse * f64::from(scale)) as f32);
        }
    }
    (means, factors)
}

/// x `[pixels, channels]` → `[2, channels]`: the sums of x and of x², the same for any number of threads.
fn channel_sums(level: Level, x: &[f32], channels: usize) -> Vec<f64> {
    let parts: Vec<Vec<f64>> = x
        .par_chunks(TASK_PIXELS * channels)
        .map(|x| {
            let mut sums = vec![0.0; 2 * channels];
            add_sums(level, x, channels, &mut sums);
            sums
        })
        .collect();
    let mut sums = vec![0.0; 2 * channels];
    for part in parts {
        for (sum, part) in sums.iter_mut().zip(part) {
            *sum += part;
        }
    }
    sums
}

per_level! {
    fn add_sums(x: &[f32], channels: usize, sums: &mut [f64]) = add_sums_body;
}

#[inline(always)]
fn add_sums_body(x: &[f32], channels: usize, sums: &mut [f64]) {
    let mut run = vec![0.0_f32; 2 * channels];
    for pixels in x.chunks(RUN_PIXELS * channels) {
        run.fill(0.0);
        let (run_x, run_square) = run.split_at_mut(channels);
        for pixel in pixels.chunks_exact(channels) {
            for ((&x, sum), square) in pixel.iter().zip(&mut *run_x).zip(&mut *run_square) {
                *sum += x;
                *square += x * x;
            }
        }
        for (sum, &run) in sums.iter_mut().zip(&run) {
            *sum += f64::from(run);
        }
    }
}

per_level! {
    fn write(x: &[f32], mean: &[f32], factor: &[f32], bias: &[f32], y: &mut [f32]) = write_body;
}

#[inline(always)]
fn write_body(x: &[f32], mean: &[f32], factor: &[f32], bias: &[f32], y: &mut [f32]) {
    let channels = mean.len();
    for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
        for ((((&x, y), &m), &a), &b) in x.iter().zip(y).zip(mean).zip(factor).zip(bias) {
            let v = (x - m) * a + b;
            *y = v / (1.0 + exp(-v));
        }
    }
}

/// Reference for [`group_norm_silu`], in f64 and two passes.
pub fn reference(x: &[f32], scale: &[f32], bias: &[f32]) -> Vec<f64> {
    let channels = scale.len();
    let group = |i: usize| i % channels * GROUPS / channels;
    let n = (x.len() / GROUPS) as f64;
    let mut mean = [0.0; GROUPS];
    for (i, &x) in x.iter().enumerate() {
        mean[group(i)] += f64::from(x) / n;
    }
    let mut variance = [0.0; GROUPS];
    for (i, &x) in x.iter().enumerate() {
        variance[group(i)] += (f64::from(x) - mean[group(i)]).powi(2) / n;
    }
    let normal = |i: usize| (f64::from(x[i]) - mean[group(i)]) / (variance[group(i)] + EPS).sqrt();
    let affine =
        |i: usize| normal(i) * f64::from(scale[i % channels]) + f64::from(bias[i % channels]);
    (0..x.len())
        .map(affine)
        .map(|v| v / (1.0 + (-v).exp()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{group_norm_silu, group_norm_silu_at, reference};
    use crate::cpu::Level;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n)
            .map(|i| (i as f32 * step).sin() * 3.0 + (i as f32 * 0.37).cos())
            .collect()
    }

    fn check(x: &[f32], channels: usize) {
        let (scale, bias) = (wave(channels, 0.9), wave(channels, 0.3));
        let expected = reference(x, &scale, &bias);
        for level in Level::available() {
            let mut y = vec![f32::NAN; x.len()];
            group_norm_silu_at(level, x, &scale, &bias, &mut y);
            for (i, (&got, &want)) in y.iter().zip(&expected).enumerate() {
                assert!(
                    (f64::from(got) - want).abs() <= 2e-5 * want.abs().max(1.0),
                    "{level:?} {channels} channels [{i}]: got {got}, expected {want}"
                );
            }
        }
    }

    #[test]
    fn a_constant_picture_becomes_silu_of_the_bias() {
        let mut y = vec![0.0; 7 * 32];
        group_norm_silu(&vec![5.0; 7 * 32], &[1.0; 32], &[2.0; 32], &mut y);
        let silu = 2.0 / (1.0 + (-2.0_f32).exp());
        assert!(y.iter().all(|v| (v - silu).abs() < 1e-5), "{:?}", &y[..4]);
    }

    #[test]
    fn one_pixel_of_one_channel_per_group_has_no_variance() {
        check(&wave(32, 0.7), 32);
    }

    #[test]
    fn large_and_small_scales_of_x_give_the_same_picture() {
        for scale in [1e-2, 1.0, 1e4, 1e12] {
            let x: Vec<f32> = wave(40 * 96, 0.7).iter().map(|v| v * scale).collect();
            check(&x, 96);
        }
    }

    #[test]
    fn the_sum_of_a_million_pixels_stays_accurate() {
        check(&wave(40_000 * 32, 0.001), 32);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        // Of fewer pixels all may be nearly equal: then the mean, rounded to f32, is as far away as they are apart.
        #[test]
        fn any_shape_agrees_with_the_reference(pixels in 4..1500_usize, per_group in 1..5_usize, step in 0.01..2.0_f32) {
            check(&wave(pixels * per_group * 32, step), per_group * 32);
        }
    }
}
