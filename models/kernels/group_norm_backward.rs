//! The backward pass of group normalization followed by SiLU.
//!
//! Two passes over memory, like the forward: SiLU with the sums, then the norm.

use rayon::prelude::*;

use crate::{
    cpu::{Level, per_level},
    exp::exp,
    group_norm::{EPS, GROUPS, RUN_PIXELS, TASK_PIXELS, statistics},
};

/// The affine map of each channel in the forward pass: `v = (x − mean) · inverse · scale + bias`.
struct ChannelStatistics<'a> {
    mean: &'a [f32],
    inverse: &'a [f32],
    scale: &'a [f32],
    bias: &'a [f32],
}

/// x, dy `[pixels, channels]`, scale, bias `[channels]` → adds to dx `[pixels, channels]`, d scale and
/// d bias `[channels]` of [`crate::group_norm::group_norm_silu`].
///
/// With `n = (x − mean) / √(var + ε)`, `v = n · scale + bias`, `s = 1 / (1 + e^−v)`:
/// `dv = dy · s · (1 + v · (1 − s))`, `d scale = Σ dv · n`, `d bias = Σ dv` and, with means over a
/// group, `dx = (dn − mean(dn) − n · mean(dn · n)) / √(var + ε)` for `dn = dv · scale`.
///
/// # Panics
/// When the lengths do not fit, or the channels are not a multiple of [`GROUPS`].
pub fn group_norm_silu_backward(
    x: &[f32],
    [scale, bias]: [&[f32]; 2],
    dy: &[f32],
    dx: &mut [f32],
    gradients: [&mut [f32]; 2],
) {
    backward_at(Level::current(), x, [scale, bias], dy, dx, gradients);
}

fn backward_at(
    level: Level,
    x: &[f32],
    [scale, bias]: [&[f32]; 2],
    dy: &[f32],
    dx: &mut [f32],
    [d_scale, d_bias]: [&mut [f32]; 2],
) {
    let n = scale.len();
    assert!(n > 0 && n.is_multiple_of(GROUPS) && x.len().is_multiple_of(n));
    assert!(bias.len() == n && d_scale.len() == n && d_bias.len() == n);
    assert!(x.len() == dy.len() && x.len() == dx.len());
    let (mean, inverse) = statistics(level, x, &vec![1.0; n]);
    let channels = ChannelStatistics {
        mean: &mean,
        inverse: &inverse,
        scale,
        bias,
    };
    let mut dv = vec![0.0; x.len()];
    let sums = silu_backward(level, x, &channels, dy, &mut dv);
    let (of_bias, of_scale) = sums.split_at(n);
    for (gradient, sums) in [(d_bias, of_bias), (d_scale, of_scale)] {
        let pairs = gradient.iter_mut().zip(sums);
        pairs.for_each(|(gradient, &sum)| *gradient += sum as f32);
    }
    let line = Affine::of(&channels, x.len(), of_bias, of_scale);
    let task = TASK_PIXELS * n;
    let inputs = x.par_chunks(task).zip(dv.par_chunks(task));
    dx.par_chunks_mut(task)
        .zip(inputs)
        .for_each(|(dx, (x, dv))| add(level, x, dv, &line, dx));
}

/// dv `[pixels, channels]`, and `[2, channels]`: the sums of dv and of dv · n, the same for any number of threads.
fn silu_backward(
    level: Level,
    x: &[f32],
    channels: &ChannelStatistics<'_>,
    dy: &[f32],
    dv: &mut [f32],
) -> Vec<f64> {
    let n = channels.mean.len();
    let task = TASK_PIXELS * n;
    let inputs = x.par_chunks(task).zip(dy.par_chunks(task));
    let parts: Vec<Vec<f64>> = dv
        .par_chunks_mut(task)
        .zip(inputs)
        .map(|(dv, (x, dy))| {
            let mut sums = vec![0.0; 2 * n];
            through_silu(level, x, channels, dy, dv, &mut sums);
            sums
        })
        .collect();
    let mut sums = vec![0.0; 2 * n];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, p)| *sum += p);
    }
    sums
}

per_level! {
    fn through_silu(x: &[f32], channels: &ChannelStatistics<'_>, dy: &[f32], dv: &mut [f32], sums: &mut [f64]) = through_silu_body;
}

#[inline(always)]
fn through_silu_body(
    x: &[f32],
    channels: &ChannelStatistics<'_>,
    dy: &[f32],
    dv: &mut [f32],
    sums: &mut [f64],
) {
    let n = channels.mean.len();
    let mut run = vec![0.0_f32; 2 * n];
    let run_of = RUN_PIXELS * n;
    let inputs = x.chunks(run_of).zip(dy.chunks(run_of));
    for (dv, (x, dy)) in dv.chunks_mut(run_of).zip(inputs) {
        run.fill(0.0);
        let pixels = x.chunks_exact(n).zip(dy.chunks_exact(n));
        for (dv, (x, dy)) in dv.chunks_exact_mut(n).zip(pixels) {
            pixel_through_silu(x, channels, dy, dv, &mut run);
        }
        for (sum, &run) in sums.iter_mut().zip(&run) {
            *sum += f64::from(run);
        }
    }
}

#[inline(always)]
fn pixel_through_silu(
    x: &[f32],
    channels: &ChannelStatistics<'_>,
    dy: &[f32],
    dv: &mut [f32],
    run: &mut [f32],
) {
    let n = dv.len();
    let (of_dv, of_product) = run.split_at_mut(n);
    let (mean, inverse) = (&channels.mean[..n], &channels.inverse[..n]);
    let (scale, bias) = (&channels.scale[..n], &channels.bias[..n]);
    let (x, dy, of_product) = (&x[..n], &dy[..n], &mut of_product[..n]);
    for i in 0..n {
        let normal = (x[i] - mean[i]) * inverse[i];
        let v = normal * scale[i] + bias[i];
        let s = 1.0 / (1.0 + exp(-v));
        let d = dy[i] * s * (1.0 + v * (1.0 - s));
        dv[i] = d;
        of_dv[i] += d;
        of_product[i] += d * normal;
    }
}

/// `dx = dv · of_dv + (x − mean) · of_x + constant`, channel by channel.
struct Affine {
    mean: Vec<f32>,
    of_dv: Vec<f32>,
    of_x: Vec<f32>,
    constant: Vec<f32>,
}

impl Affine {
    fn of(channels: &ChannelStatistics<'_>, len: usize, of_bias: &[f64], of_scale: &[f64]) -> Self {
        let n = channels.mean.len();
        let in_group = (len / GROUPS) as f64;
        let group_mean = |sums: &[f64], channel: usize| {
            let group = channel / (n / GROUPS);
            let group = group * (n / GROUPS)..(group + 1) * (n / GROUPS);
            let scaled = group.map(|c| sums[c] * f64::from(channels.scale[c]));
            scaled.sum::<f64>() / in_group
        };
        let inverse = |c: usize| f64::from(channels.inverse[c]);
        let row = |number: &dyn Fn(usize) -> f64| (0..n).map(|c| number(c) as f32).collect();
        Self {
            mean: channels.mean.to_vec(),
            of_dv: row(&|c| inverse(c) * f64::from(channels.scale[c])),
            of_x: row(&|c| -inverse(c) * inverse(c) * group_mean(of_scale, c)),
            constant: row(&|c| -inverse(c) * group_mean(of_bias, c)),
        }
    }
}

per_level! {
    fn add(x: &[f32], dv: &[f32], line: &Affine, dx: &mut [f32]) = add_body;
}

#[inline(always)]
fn add_body(x: &[f32], dv: &[f32], line: &Affine, dx: &mut [f32]) {
    let n = line.mean.len();
    let (of_dv, of_x, constant) = (&line.of_dv[..n], &line.of_x[..n], &line.constant[..n]);
    let pixels = x.chunks_exact(n).zip(dv.chunks_exact(n));
    for (dx, (x, dv)) in dx.chunks_exact_mut(n).zip(pixels) {
        for i in 0..n {
            dx[i] += dv[i] * of_dv[i] + (x[i] - line.mean[i]) * of_x[i] + constant[i];
        }
    }
}

/// Reference for [`group_norm_silu_backward`], in f64: dx, d scale, d bias.
pub fn reference(x: &[f32], [scale, bias]: [&[f32]; 2], dy: &[f32]) -> [Vec<f64>; 3] {
    let n = scale.len();
    let group = |i: usize| i % n * GROUPS / n;
    let count = (x.len() / GROUPS) as f64;
    let group_means = |number: &dyn Fn(usize) -> f64| {
        let mut means = [0.0; GROUPS];
        (0..x.len()).for_each(|i| means[group(i)] += number(i) / count);
        means
    };
    let mean = group_means(&|i| f64::from(x[i]));
    let variance = group_means(&|i| (f64::from(x[i]) - mean[group(i)]).powi(2));
    let root = |i: usize| (variance[group(i)] + EPS).sqrt();
    let normal = |i: usize| (f64::from(x[i]) - mean[group(i)]) / root(i);
    let dv = |i: usize| {
        let v = normal(i) * f64::from(scale[i % n]) + f64::from(bias[i % n]);
        let s = 1.0 / (1.0 + (-v).exp());
        f64::from(dy[i]) * s * (1.0 + v * (1.0 - s))
    };
    let (mut d_scale, mut d_bias) = (vec![0.0; n], vec![0.0; n]);
    for i in 0..x.len() {
        d_scale[i % n] += dv(i) * normal(i);
        d_bias[i % n] += dv(i);
    }
    let dn = |i: usize| dv(i) * f64::from(scale[i % n]);
    let (first, second) = (group_means(&dn), group_means(&|i| dn(i) * normal(i)));
    let dx = |i: usize| (dn(i) - first[group(i)] - normal(i) * second[group(i)]) / root(i);
    [(0..x.len()).map(dx).collect(), d_scale, d_bias]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{backward_at, reference};
    use crate::cpu::Level;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n)
            .map(|i| (i as f32 * step).sin() * 3.0 + (i as f32 * 0.37).cos())
            .collect()
    }

    fn check(pixels: usize, channels: usize, step: f32) {
        let (x, dy) = (wave(pixels * channels, step), wave(pixels * channels, 0.61));
        let (scale, bias) = (wave(channels, 0.9), wave(channels, 0.3));
        let expected = reference(&x, [&scale, &bias], &dy);
        for level in Level::available() {
            let mut dx = vec![1.0; x.len()];
            let (mut d_scale, mut d_bias) = (vec![1.0; channels], vec![1.0; channels]);
            let gradients = [&mut d_scale[..], &mut d_bias[..]];
            backward_at(level, &x, [&scale, &bias], &dy, &mut dx, gradients);
            for (what, got, want) in [
                ("dx", &dx, &expected[0]),
                ("d scale", &d_scale, &expected[1]),
                ("d bias", &d_bias, &expected[2]),
            ] {
                let largest = want.iter().fold(1.0_f64, |m, x| m.max(x.abs()));
                for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
                    assert!(
                        (f64::from(got) - 1.0 - want).abs() <= 5e-5 * largest,
                        "{what} {level:?} {pixels} pixels {channels} channels [{i}]: got {got}, expected 1 + {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn pictures_of_several_tasks_agree_with_the_reference() {
        check(2500, 32, 0.7);
        check(1030, 96, 0.7);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        // Of two pixels both may be nearly equal: their mean, rounded to f32, is then off by much of what they are apart.
        #[test]
        fn any_shape_agrees_with_the_reference(pixels in 4..300_usize, per_group in 1..5_usize, step in 0.3..2.0_f32) {
            check(pixels, per_group * 32, step);
        }
    }
}
