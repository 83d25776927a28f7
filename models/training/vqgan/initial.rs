//! Initial weights as in flax, which keep the variance of activations.

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    checkpoint::layout::{NamedShape, vqgan_tensors},
    error::Result,
    spec::VqganSpec,
    training::parameters::{ByName, Parameters, normal},
    vision::vqgan::EMBEDDINGS,
};

/// A VQGAN of `spec` with random weights.
///
/// # Errors
/// `BadInput` for an invalid specification.
pub fn first_parameters(spec: &VqganSpec, seed: u64) -> Result<Parameters> {
    spec.validate()?;
    drawn(&vqgan_tensors(spec), seed)
}

/// Kernels `[h, w, in, out]` from a normal distribution of variance `1 / (h · w · in)` (LeCun et al., 1998), scales
/// ones, biases zeros, and rows of the codebook evenly from `±1 / rows` (`taming-transformers`, `quantize.py`).
pub(super) fn drawn(shapes: &[NamedShape], seed: u64) -> Result<Parameters> {
    let mut tensors = ByName::new();
    for ((name, shape), stream) in shapes.iter().zip(0_u64..) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        let n: usize = shape.iter().product();
        let fan_in = n / shape.last().copied().unwrap_or(1).max(1);
        let spread = 1.0 / (fan_in.max(1) as f32).sqrt();
        let rows = shape[0] as f32;
        let mut number = || match name {
            name if name == EMBEDDINGS => (2.0 * random.random::<f32>() - 1.0) / rows,
            name if name.ends_with(".kernel") => normal(&mut random) * spread,
            name if name.ends_with(".scale") => 1.0,
            _ => 0.0,
        };
        let values: Vec<f32> = (0..n).map(|_| number()).collect();
        let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?;
        tensors.insert(name.clone(), tensor);
    }
    Parameters::of(tensors)
}
