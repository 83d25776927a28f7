//! A weight matrix as a layer: f32 in memory, or bf16 or quantized blocks in the mapped file.

use half::bf16;
use longreel_kernels::{linear::linear, mapping::MappedBytes};
use rayon::prelude::*;

use crate::{
    checkpoint::weights::{Matrix, Weights},
    error::{Error, Kind, Result},
    layers::quantized::QuantizedMatrix,
};

enum WeightStore {
    F32(Vec<f32>),
    MappedBf16(MappedBytes),
    Blocks(Box<QuantizedMatrix>),
}

/// `y = x · wᵀ`, plus a bias where there is one.
pub struct Linear {
    store: WeightStore,
    bias: Option<Vec<f32>>,
    in_features: usize,
    out_features: usize,
}

impl Linear {
    /// Takes `{name}.weight` of shape `[out_features, in_features]`, and `{name}.bias` of `[out_features]`
    /// where `has_bias`.
    pub fn named(
        weights: &mut Weights,
        name: &str,
        out_features: usize,
        in_features: usize,
        has_bias: bool,
    ) -> Result<Self> {
        let weight = Self::load(
            weights,
            &format!("{name}.weight"),
            out_features,
            in_features,
        )?;
        let bias = has_bias.then(|| weights.vector(&format!("{name}.bias"), out_features));
        Ok(Self {
            bias: bias.transpose()?,
            ..weight
        })
    }

    /// Takes the kernel `name` `[out_features, ...shape]` of a convolution whose stride equals its size, as the
    /// matrix that multiplies flattened patches; and a bias where `has_bias`.
    pub fn of_patches(
        weights: &mut Weights,
        name: &str,
        out_features: usize,
        shape: &[usize],
        has_bias: bool,
    ) -> Result<Self> {
        let whole = [&[out_features], shape].concat();
        let kernel = weights.tensor(&format!("{name}.weight"), &whole)?;
        let bias = has_bias.then(|| weights.vector(&format!("{name}.bias"), out_features));
        Ok(Self {
            store: WeightStore::F32(kernel.flatten_all()?.to_vec1()?),
            bias: bias.transpose()?,
            in_features: shape.iter().product(),
            out_features,
        })
    }

    /// Takes the weight `name` of shape `[out_features, in_features]`.
    pub fn load(
        weights: &mut Weights,
        name: &str,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self> {
        let store = match weights.matrix(name, out_features, in_features)? {
            Matrix::F32(tensor) => WeightStore::F32(tensor.flatten_all()?.to_vec1()?),
            Matrix::MappedBf16 { bytes, .. } => WeightStore::MappedBf16(bytes),
            Matrix::MappedBlocks {
                bytes,
                format,
                in_place,
            } => WeightStore::Blocks(Box::new(QuantizedMatrix::new(
                bytes,
                format,
                in_features,
                in_place,
            ))),
        };
        Ok(Self {
            store,
            bias: None,
            in_features,
            out_features,
        })
    }

    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// x `[n, in]` → y `[n, out]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / self.in_features * self.out_features];
        match &self.store {
            WeightStore::F32(w) => linear(x, w, self.in_features, &mut y),
            WeightStore::MappedBf16(bytes) => linear(x, elements(bytes), self.in_features, &mut y),
            WeightStore::Blocks(blocks) => blocks.multiply(x, &mut y),
        }
        if let Some(bias) = &self.bias {
            add_rows(&mut y, bias);
        }
        y
    }

    /// Appends row `index` of the weight, `[in]`, to `out`: an embedding lookup.
    ///
    /// # Errors
    /// `BadInput` when there is no such row.
    pub fn append_row(&self, index: u32, out: &mut Vec<f32>) -> Result<()> {
        let start = (index as usize).saturating_mul(self.in_features);
        let range = start..start.saturating_add(self.in_features);
        let found = match &self.store {
            WeightStore::F32(w) => w.get(range).map(|row| out.extend_from_slice(row)),
            WeightStore::MappedBf16(bytes) => elements(bytes)
                .get(range)
                .map(|row| out.extend(row.iter().map(|v| v.to_f32()))),
            WeightStore::Blocks(blocks) => blocks.append_row(index as usize, out),
        };
        found.ok_or_else(|| {
            Error::new(
                Kind::BadInput,
                format!(
                    "token id {index} is outside the vocabulary of {}",
                    self.out_features
                ),
            )
        })
    }
}

/// Never empty for want of alignment: `Weights::matrix` maps only aligned matrices.
fn elements(bytes: &MappedBytes) -> &[bf16] {
    bytes.as_elements().unwrap_or_default()
}

/// y `[n, d]`, row `[d]` → adds the row to every row of y.
pub fn add_rows(y: &mut [f32], row: &[f32]) {
    let rows = y.par_chunks_exact_mut(row.len()).with_min_len(8);
    rows.for_each(|y| y.iter_mut().zip(row).for_each(|(y, r)| *y += r));
}
