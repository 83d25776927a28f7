//! Activation functions, element by element.

use rayon::prelude::*;

use crate::{
    cpu::{Level, per_level},
    exp::exp,
};

/// Elements per task: large enough that splitting costs nothing.
const TASK: usize = 1 << 14;

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x Φ(x)`, Φ the standard normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415).
    Gelu,
    /// The tanh approximation of GELU, from the same paper.
    GeluTanh,
    /// `x σ(1.702 x)`, the approximation that CLIP uses.
    QuickGelu,
    /// `x σ(x)`.
    Silu,
    /// The hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Self; 6] = [
        Self::Relu,
        Self::Gelu,
        Self::GeluTanh,
        Self::QuickGelu,
        Self::Silu,
        Self::Tanh,
    ];

    /// x `[n]` → x `[n]`, in place.
    pub fn apply(self, x: &mut [f32]) {
        let level = Level::current();
        x.par_chunks_mut(TASK).for_each(|x| self.apply_at(level, x));
    }

    fn apply_at(self, level: Level, x: &mut [f32]) {
        match self {
            // Not `max`: f32::max(NaN, 0) is 0, and NaN must propagate.
            Self::Relu => x
                .iter_mut()
                .for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
            Self::Gelu => gelu(level, x),
            Self::GeluTanh => gelu_tanh(level, x),
            Self::QuickGelu => sigmoid_gate(level, 1.702, x),
            Self::Silu => sigmoid_gate(level, 1.0, x),
            Self::Tanh => x.iter_mut().for_each(|x| *x = x.tanh()),
        }
    }

    /// Reference for [`Activation::apply`], one number in f64.
    pub fn reference(self, x: f64) -> f64 {
        let gate = |slope: f64| x / (1.0 + (-slope * x).exp());
        match self {
            Self::Relu => x.max(0.0),
            Self::Gelu => x * normal_distribution(x),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::QuickGelu => gate(1.702),
            Self::Silu => gate(1.0),
            Self::Tanh => x.tanh(),
        }
    }
}

/// Φ(x) by Simpson's rule from 0.
fn normal_distribution(x: f64) -> f64 {
    const STEPS: usize = 2000;
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let h = x / STEPS as f64;
    let inner: f64 = (1..STEPS)
        .map(|i| if i % 2 == 0 { 2.0 } else { 4.0 } * density(i as f64 * h))
        .sum();
    0.5 + (density(0.0) + inner + density(x)) * h / 3.0
}

per_level! {
    fn sigmoid_gate(slope: f32, x: &mut [f32]) = sigmoid_gate_body;
}

#[inline(always)]
fn sigmoid_gate_body(slope: f32, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x /= 1.0 + exp(-slope * *x));
}

per_level! {
    fn gelu_tanh(x: &mut [f32]) = gelu_tanh_body;
}

/// `(1 + tanh u) / 2 = σ(2u)`.
#[inline(always)]
fn gelu_tanh_body(x: &mut [f32]) {
    // `(1 + tanh u) / 2 = σ(2u)`, so that one exponential is enough.
    const TWICE: f32 = 1.595_769_2; // 2 sqrt(2 / π)
    for x in x {
        let cubed = 0.044_715 * *x * *x * *x;
        *x /= 1.0 + exp(-TWICE * (*x + cubed));
    }
}

per_level! {
    fn gelu(x: &mut [f32]) = gelu_body;
}

#[inline(always)]
fn gelu_body(x: &mut [f32]) {
    for x in x {
        // `1 − Φ(|x|)`, which loses no digits where Φ(x) is near 0.
        let tail = 0.5 * erfc(x.abs() * std::f32::consts::FRAC_1_SQRT_2);
        *x *= if *x < 0.0 { tail } else { 1.0 - tail };
    }
}

/// `1 − erf(x)` for `x ≥ 0`, relative error at most 1.2e-7 plus f32 rounding: the Chebyshev
/// fit of Press et al., "Numerical Recipes", section 6.2.
#[inline(always)]
fn erfc(x: f32) -> f32 {
    const FIT: [f32; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    let t = 1.0 / (1.0 + 0.5 * x);
    let fit = FIT.iter().fold(0.0_f32, |sum, c| sum.mul_add(t, *c));
    t * exp((-x).mul_add(x, fit))
}

#[cfg(test)]
mod tests {
    use super::{Activation, Level};

    #[test]
    fn every_activation_agrees_with_the_reference_at_every_level() {
        let x: Vec<f32> = (0..2003).map(|i| (i as f32 - 1001.0) * 0.011).collect();
        for activation in Activation::ALL {
            for level in Level::available() {
                let mut got = x.clone();
                activation.apply_at(level, &mut got);
                for (&got, &x) in got.iter().zip(&x) {
                    let e = activation.reference(f64::from(x));
                    assert!(
                        (f64::from(got) - e).abs() <= 5e-7 * e.abs().max(1.0),
                        "{activation:?} {level:?} of {x}: got {got}, expected {e}"
                    );
                }
            }
        }
    }

    #[test]
    fn far_from_zero_an_activation_is_linear_or_zero_and_nan_propagates() {
        let flat = |activation: &Activation| *activation == Activation::Tanh;
        for activation in Activation::ALL.into_iter().filter(|a| !flat(a)) {
            let mut x = [60.0, -60.0, f32::NAN, 0.0];
            activation.apply(&mut x);
            assert_eq!(x[0], 60.0, "{activation:?}");
            assert!(x[1].abs() < 1e-20, "{activation:?} {}", x[1]);
            assert!(x[2].is_nan(), "{activation:?}");
            assert_eq!(x[3], 0.0, "{activation:?}");
        }
        let mut x = [60.0, -60.0, f32::NAN, 0.0];
        Activation::Tanh.apply(&mut x);
        assert_eq!([x[0], x[1], x[3]], [1.0, -1.0, 0.0]);
        assert!(x[2].is_nan());
    }
}
