//! Training options of a VQGAN; the defaults are those of the paper's code (`taming-transformers`, `vqperceptual.py`)
//! where it has them.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Kind, Result},
    training::{
        optimizer::AdamW,
        schedule::{Decay, Schedule},
        vqgan::perceptual::Perceptual,
    },
};

/// How the codebook is trained.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CodebookRule {
    /// By the codebook loss `mean (e − sg(z))²`, like any parameter.
    #[default]
    Loss,
    /// Each row is the moving average of the vectors assigned to it (arXiv 1711.00937, appendix A.1).
    Average {
        /// Decay of the average.
        decay: f64,
    },
}

/// The adversarial loss and its discriminator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adversarial {
    /// The first step with it, from 0.
    pub start: u64,
    /// Weight of the adversarial loss, times the adaptive weight.
    pub weight: f64,
    /// Channels of the discriminator's first convolution.
    pub channels: usize,
    /// Number of its convolutions with stride 2.
    pub layers: usize,
}

impl Default for Adversarial {
    fn default() -> Self {
        Self {
            start: 0,
            weight: 0.8,
            channels: 64,
            layers: 3,
        }
    }
}

/// The options of a trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VqganOptions {
    /// The learning rate, also of the discriminator.
    pub schedule: Schedule,
    /// Constants of the optimizer; keys absent from this table have [`AdamW`]'s defaults.
    pub adam: AdamW,
    /// Weight of the mean absolute difference (L1).
    pub l1_weight: f64,
    /// Weight of the mean squared difference (L2).
    pub l2_weight: f64,
    /// The perceptual loss, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perceptual: Option<Perceptual>,
    /// Weight of the codebook's two losses.
    pub codebook_weight: f64,
    /// Relative weight of the commitment loss, β in the paper.
    pub commitment: f64,
    /// How the codebook is trained.
    pub codebook: CodebookRule,
    /// Steps after which an unused code is restarted at one of the batch's vectors; 0: never.
    pub restart_after: u32,
    /// The adversarial loss, if there is one.
    pub adversarial: Option<Adversarial>,
    /// Seed of the initial weights and of restarts.
    pub seed: u64,
}

impl Default for VqganOptions {
    fn default() -> Self {
        Self {
            schedule: Schedule {
                init_lr: 0.0,
                lr: 4.5e-6,
                end_lr: 0.0,
                lr_warmup_steps: 0,
                lr_decay_steps: 0,
                decay: Decay::Constant,
            },
            adam: AdamW {
                b1: 0.5,
                b2: 0.9,
                weight_decay: 0.0,
                ..AdamW::default()
            },
            l1_weight: 1.0,
            l2_weight: 0.0,
            perceptual: None,
            codebook_weight: 1.0,
            commitment: 0.25,
            codebook: CodebookRule::Loss,
            restart_after: 0,
            adversarial: None,
            seed: 0,
        }
    }
}

impl VqganOptions {
    /// # Errors
    /// `BadInput` naming the invalid option.
    pub fn validate(&self) -> Result<()> {
        self.schedule.validate()?;
        let mut weights = vec![
            ("l1_weight", self.l1_weight),
            ("l2_weight", self.l2_weight),
            ("codebook_weight", self.codebook_weight),
            ("commitment", self.commitment),
        ];
        let perceptual = self.perceptual.as_ref();
        weights.extend(perceptual.map(|p| ("perceptual.weight", p.weight)));
        weights.extend(self.adversarial.map(|a| ("adversarial.weight", a.weight)));
        for (key, weight) in weights {
            if !(weight.is_finite() && weight >= 0.0) {
                return refused(format!("{key} is {weight}, expected 0 or more"));
            }
        }
        if let CodebookRule::Average { decay } = self.codebook
            && !(0.0..1.0).contains(&decay)
        {
            return refused(format!(
                "codebook.average.decay is {decay}, expected 0 or more and less than 1"
            ));
        }
        match self.adversarial {
            Some(Adversarial {
                channels, layers, ..
            }) if !(1..=4096).contains(&channels) || !(1..=8).contains(&layers) => {
                refused(format!(
                    "adversarial has {layers} layers of {channels} channels, expected 1 to 8 of 1 to 4096"
                ))
            }
            _ => Ok(()),
        }
    }
}

fn refused<T>(message: String) -> Result<T> {
    Err(Error::new(Kind::BadInput, message))
}
