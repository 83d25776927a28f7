//! Trainable parameters, f32, by their names in a model directory.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    checkpoint::{layout::NamedShape, weights::Weights},
    error::{Error, Kind, Result},
};

/// Gradients, or other tensors shaped like parameters, by parameter name.
pub type ByName = BTreeMap<String, Tensor>;

/// The trainable tensors, by name.
#[derive(Clone)]
pub struct Parameters(BTreeMap<String, Var>);

impl Parameters {
    /// Random tensors of these names and shapes: matrices from a normal distribution of standard deviation `spread`
    /// (`initializer_range` of `lwm/llama.py`), vectors, which belong to norms, all ones.
    ///
    /// # Errors
    /// When candle has no memory for them.
    pub fn random(shapes: &[NamedShape], spread: f32, seed: u64) -> Result<Self> {
        let made = shapes.iter().zip(0_u64..).map(|((name, shape), stream)| {
            let mut numbers = ChaCha8Rng::seed_from_u64(seed);
            numbers.set_stream(stream);
            let n = shape.iter().product();
            let values: Vec<f32> = match shape.len() {
                1 => vec![1.0; n],
                _ => (0..n).map(|_| normal(&mut numbers) * spread).collect(),
            };
            let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?;
            Ok((name.clone(), Var::from_tensor(&tensor)?))
        });
        made.collect::<Result<_>>().map(Self)
    }

    /// Tensors of these names and shapes out of `weights`, widened to f32.
    ///
    /// # Errors
    /// `BadInput` for one that is missing or has another shape.
    pub fn of_weights(shapes: &[NamedShape], weights: &mut Weights) -> Result<Self> {
        let taken = shapes.iter().map(|(name, shape)| {
            let tensor = weights.tensor(name, shape)?;
            Ok((name.clone(), Var::from_tensor(&tensor)?))
        });
        taken.collect::<Result<_>>().map(Self)
    }

    /// `tensors`, by name.
    ///
    /// # Errors
    /// When candle has no memory for them.
    pub fn of(tensors: ByName) -> Result<Self> {
        let made = tensors.into_iter();
        let made = made.map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)));
        made.collect::<Result<_>>().map(Self)
    }

    /// The parameter `name`.
    ///
    /// # Errors
    /// `Internal` when there is none.
    pub fn get(&self, name: &str) -> Result<&Var> {
        let missing = || Error::new(Kind::Internal, format!("there is no parameter {name}"));
        self.0.get(name).ok_or_else(missing)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Var)> {
        self.0.iter()
    }

    /// The parameters whose names pass `wanted`: shared, not copied.
    pub fn select(&self, wanted: impl Fn(&str) -> bool) -> Self {
        let taken = self.0.iter().filter(|(name, _)| wanted(name));
        Self(taken.map(|(n, var)| (n.clone(), var.clone())).collect())
    }

    /// Number of trainable numbers.
    pub fn count(&self) -> usize {
        self.0.values().map(|var| var.elem_count()).sum()
    }
}

/// One draw from the standard normal distribution (Box and Muller, 1958).
pub(super) fn normal(numbers: &mut ChaCha8Rng) -> f32 {
    let above_zero = 1.0 - numbers.random::<f64>();
    let angle = 2.0 * std::f64::consts::PI * numbers.random::<f64>();
    ((-2.0 * above_zero.ln()).sqrt() * angle.cos()) as f32
}
