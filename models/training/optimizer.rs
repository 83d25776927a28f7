//! AdamW with gradient clipping (arXiv 1711.05101; `tux/optimizers.py`).

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Kind, Result},
    training::{
        operands::numbers,
        parameters::{ByName, Parameters},
    },
};

/// Numbers of one task; sums run in chunks of this size, so that the number of threads does not change a bit.
const TASK: usize = 1 << 14;

/// The optimizer's constants; the defaults are LWM's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Decay of the mean of gradients (β₁).
    pub b1: f64,
    /// Decay of the mean of squared gradients (β₂).
    pub b2: f64,
    /// ε, added to the root of the mean of squares.
    pub eps: f64,
    /// Weight decay per step, times the learning rate.
    pub weight_decay: f64,
    /// The largest norm of the gradient over all parameters; a longer gradient is scaled down to it.
    pub clip_gradient: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            b1: 0.9,
            b2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_gradient: 1.0,
        }
    }
}

/// The optimizer's state: means of gradients and of their squares, and the number of steps.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// Steps taken.
    pub steps: u64,
    /// For each parameter, the means of its gradient and of the gradient's square.
    pub means: BTreeMap<String, [Vec<f32>; 2]>,
}

impl AdamW {
    /// One step with learning rate `rate`; returns the norm of all gradients before clipping.
    ///
    /// # Errors
    /// `Compute` for a gradient that is NaN or infinite; then nothing has changed.
    pub fn step(
        &self,
        parameters: &Parameters,
        gradients: &ByName,
        moments: &mut Moments,
        rate: f64,
    ) -> Result<f64> {
        // Fails on NaN before anything is written.
        let length = length(gradients)?;
        let shortened = match length > self.clip_gradient {
            true => self.clip_gradient / length,
            false => 1.0,
        };
        moments.steps += 1;
        let steps = moments.steps as f64;
        let update = Update {
            adam: *self,
            rate,
            shortened: shortened as f32,
            corrections: [1.0 - self.b1.powf(steps), 1.0 - self.b2.powf(steps)],
        };
        for (name, var) in parameters.iter() {
            let n = var.elem_count();
            let means = moments.means.entry(name.clone());
            let means = means.or_insert_with(|| [vec![0.0; n], vec![0.0; n]]);
            let mut values = numbers(var).as_slice()?.to_vec();
            let gradient = match gradients.get(name) {
                Some(gradient) => gradient.flatten_all()?.to_vec1()?,
                // vec![0.0; n], => A parameter without a gradient still decays, and its means too, as in
                // optax.
                None => vec![0.0; n],
            };
            update.apply(&mut values, &gradient, means);
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
        }
        Ok(length)
    }
}

/// The constants of one step.
struct Update {
    adam: AdamW,
    rate: f64,
    shortened: f32,
    corrections: [f64; 2],
}

impl Update {
    fn apply(&self, values: &mut [f32], gradient: &[f32], [first, second]: &mut [Vec<f32>; 2]) {
        let means = first.par_chunks_mut(TASK).zip(second.par_chunks_mut(TASK));
        let values = values.par_chunks_mut(TASK).zip(gradient.par_chunks(TASK));
        values.zip(means).for_each(|((values, gradient), (m, v))| {
            for i in 0..values.len() {
                self.number(
                    &mut values[i],
                    gradient[i] * self.shortened,
                    &mut m[i],
                    &mut v[i],
                );
            }
        });
    }

    fn number(&self, value: &mut f32, gradient: f32, m: &mut f32, v: &mut f32) {
        let AdamW {
            b1,
            b2,
            eps,
            weight_decay,
            ..
        } = self.adam;
        *m = (b1 as f32) * *m + (1.0 - b1) as f32 * gradient;
        *v = (b2 as f32) * *v + (1.0 - b2) as f32 * gradient * gradient;
        let [of_m, of_v] = self.corrections;
        let direction = f64::from(*m) / of_m / ((f64::from(*v) / of_v).sqrt() + eps);
        *value -= (self.rate * (direction + weight_decay * f64::from(*value))) as f32;
    }
}

/// The norm of all gradients as one vector.
///
/// # Errors
/// `Compute` naming the parameter whose gradient is NaN or infinite.
pub fn length(gradients: &ByName) -> Result<f64> {
    let mut sum = 0.0;
    for (name, gradient) in gradients {
        let gradient = gradient.contiguous()?;
        let held = numbers(&gradient);
        let parts: Vec<f64> = held.as_slice()?.par_chunks(TASK).map(squares).collect();
        let squares: f64 = parts.into_iter().sum();
        if !squares.is_finite() {
            let message = format!("the gradient of {name} is NaN or infinite");
            return Err(Error::new(Kind::Compute, message));
        }
        sum += squares;
    }
    Ok(sum.sqrt())
}

fn squares(numbers: &[f32]) -> f64 {
    numbers.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}
