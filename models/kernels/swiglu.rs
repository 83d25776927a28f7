//! The gate of LLaMA's feed-forward layer (Shazeer, "GLU Variants Improve Transformer").

use rayon::prelude::*;

use crate::{
    cpu::{Level, per_level},
    exp::exp,
};

/// Elements per task: large enough that splitting costs nothing.
const TASK: usize = 1 << 14;

/// gate, up `[n]` → gate `[n]`: `gate ← silu(gate) · up`, `silu(x) = x / (1 + e^−x)`.
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    let level = Level::current();
    gate.par_chunks_mut(TASK)
        .zip(up.par_chunks(TASK))
        .for_each(|(gate, up)| swiglu_task(level, gate, up));
}

per_level! {
    fn swiglu_task(gate: &mut [f32], up: &[f32]) = body;
}

#[inline(always)]
fn body(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

/// Reference for [`swiglu`], in f64.
pub fn reference(gate: &[f32], up: &[f32]) -> Vec<f64> {
    gate.iter()
        .zip(up)
        .map(|(&g, &u)| f64::from(g) / (1.0 + (-f64::from(g)).exp()) * f64::from(u))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Level, reference, swiglu_task};

    #[test]
    fn every_level_agrees_with_the_reference() {
        let gate: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.21).collect();
        let up: Vec<f32> = (0..1003)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.04)
            .collect();
        let expected = reference(&gate, &up);
        for level in Level::available() {
            let mut got = gate.clone();
            swiglu_task(level, &mut got, &up);
            for (i, (&g, &e)) in got.iter().zip(&expected).enumerate() {
                assert!(
                    (f64::from(g) - e).abs() <= 5e-7 * e.abs().max(1.0),
                    "{level:?} [{i}]: got {g}, expected {e}"
                );
            }
        }
    }
}
