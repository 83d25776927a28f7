//! The learning rate by step, as optax computes it (`tux/optimizers.py`).

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// The learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Constant.
    #[default]
    Constant,
    /// Cosine decay to `end_lr`.
    Cosine,
}

/// A learning rate with linear warm-up, then constant or decaying.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Learning rate of the first step.
    #[serde(default)]
    pub init_lr: f64,
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Learning rate at the end of the decay.
    #[serde(default)]
    pub end_lr: f64,
    /// Steps of the warm-up.
    #[serde(default)]
    pub lr_warmup_steps: u64,
    /// Steps until `end_lr`, the warm-up included.
    #[serde(default)]
    pub lr_decay_steps: u64,
    /// What follows the warm-up.
    #[serde(default)]
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.lr_warmup_steps {
            let share = step as f64 / self.lr_warmup_steps as f64;
            return self.init_lr + (self.lr - self.init_lr) * share;
        }
        match self.decay {
            Decay::Constant => self.lr,
            Decay::Cosine => {
                let steps = self
                    .lr_decay_steps
                    .saturating_sub(self.lr_warmup_steps)
                    .max(1);
                let share = ((step - self.lr_warmup_steps) as f64 / steps as f64).min(1.0);
                self.end_lr + (self.lr - self.end_lr) * 0.5 * (1.0 + (PI * share).cos())
            }
        }
    }

    /// # Errors
    /// `BadInput` for negative, NaN or infinite rates, or a decay that ends before the warm-up.
    pub fn validate(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(Kind::BadInput, message));
        for (key, rate) in [
            ("init_lr", self.init_lr),
            ("lr", self.lr),
            ("end_lr", self.end_lr),
        ] {
            if !(rate.is_finite() && rate >= 0.0) {
                return bad(format!("{key} is {rate}, expected 0 or more"));
            }
        }
        if self.decay == Decay::Cosine && self.lr_decay_steps <= self.lr_warmup_steps {
            return bad(format!(
                "lr_decay_steps is {}, expected more than lr_warmup_steps = {}",
                self.lr_decay_steps, self.lr_warmup_steps
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Decay, Schedule};

    #[test]
    fn the_rate_warms_up_linearly_and_decays_along_a_cosine() {
        let schedule = Schedule {
            init_lr: 0.0,
            lr: 1.0,
            end_lr: 0.1,
            lr_warmup_steps: 10,
            lr_decay_steps: 110,
            decay: Decay::Cosine,
        };
        for (step, expected) in [
            (0, 0.0),
            (5, 0.5),
            (10, 1.0),
            (60, 0.55),
            (110, 0.1),
            (500, 0.1),
        ] {
            assert!((schedule.at(step) - expected).abs() < 1e-12, "{step}");
        }
        let constant = Schedule {
            decay: Decay::Constant,
            ..schedule
        };
        assert_eq!(
            [constant.at(5), constant.at(10), constant.at(500)],
            [0.5, 1.0, 1.0]
        );
    }
}
