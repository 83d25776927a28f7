//! The state of a trainer, as tensors by name and a few numbers; the caller saves them.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::layout::NamedShape,
    error::{Error, Kind, Result},
    training::{
        operands::numbers,
        optimizer::Moments,
        parameters::{ByName, Parameters},
    },
};

/// Steps since each code was last used.
pub(super) const UNUSED: &str = "codebook.unused";

/// Moving averages of the codebook.
pub(super) const SIZES: &str = "codebook.sizes";
pub(super) const SUMS: &str = "codebook.sums";

/// Prefixes of the optimizer's means of gradients and of their squares.
const MEANS: [&str; 2] = ["adam.mean", "adam.square"];

/// The state between two steps. Random draws follow from the seed and the step.
#[derive(Debug, Clone)]
pub struct State {
    /// Parameters by the names of a model directory, those of the discriminator, `adam.*` and `codebook.*`.
    pub tensors: ByName,
    /// Numbers that are not tensors.
    pub counters: Counters,
}

/// Steps taken, and the digest of the perceptual network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Steps of the VQGAN.
    pub steps: u64,
    /// Steps of the discriminator.
    pub discriminator_steps: u64,
    /// A digest of the perceptual loss's network, which is not among the tensors: it does not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perceptual: Option<u64>,
}

/// `parameters` and the optimizer's means of them, as copies.
pub(super) fn export(parameters: &Parameters, moments: &Moments, to: &mut ByName) -> Result<()> {
    for (name, var) in parameters.iter() {
        let shape = var.shape();
        let values = numbers(var).as_slice()?.to_vec();
        to.insert(name.clone(), Tensor::from_vec(values, shape, &Device::Cpu)?);
        for (i, prefix) in MEANS.iter().enumerate() {
            let means = moments.means.get(name).map(|means| means[i].clone());
            let means = means.unwrap_or_else(|| vec![0.0; var.elem_count()]);
            let tensor = Tensor::from_vec(means, shape, &Device::Cpu)?;
            to.insert(format!("{prefix}.{name}"), tensor);
        }
    }
    Ok(())
}

/// Tensors not yet taken.
pub(super) struct Remaining(pub ByName);

impl Remaining {
    /// # Errors
    /// `BadInput` when there is none, or one of another shape or element type.
    pub fn take(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let refused = |message: String| Err(Error::new(Kind::BadInput, message));
        let wanted = dtype.as_str();
        let Some(tensor) = self.0.remove(name) else {
            return refused(format!("{name} is missing, expected {wanted} {shape:?}"));
        };
        if tensor.dims() != shape || tensor.dtype() != dtype {
            let (found, dims) = (tensor.dtype().as_str(), tensor.dims());
            return refused(format!(
                "{name} is {found} {dims:?}, expected {wanted} {shape:?}"
            ));
        }
        Ok(tensor)
    }

    /// The numbers of an f32 tensor.
    pub fn f32(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self
            .take(name, shape, DType::F32)?
            .flatten_all()?
            .to_vec1()?)
    }

    /// Takes what [`export`] wrote for tensors of these names and shapes, after `steps` steps.
    pub fn parameters(
        &mut self,
        shapes: &[NamedShape],
        steps: u64,
    ) -> Result<(Parameters, Moments)> {
        let (mut tensors, mut means) = (ByName::new(), BTreeMap::new());
        for (name, shape) in shapes {
            tensors.insert(name.clone(), self.take(name, shape, DType::F32)?);
            let [mean, square] = MEANS.map(|prefix| self.f32(&format!("{prefix}.{name}"), shape));
            means.insert(name.clone(), [mean?, square?]);
        }
        Ok((Parameters::of(tensors)?, Moments { steps, means }))
    }

    /// # Errors
    /// `BadInput` naming a tensor that was not taken.
    pub fn finish(self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => {
                let message = format!("there is a tensor {name}, which these options do not have");
                Err(Error::new(Kind::BadInput, message))
            }
        }
    }
}
