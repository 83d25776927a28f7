//! A matrix in quantized blocks: multiplied by candle from a copy, or by our kernel in the mapped file.

use std::{borrow::Cow, sync::OnceLock};

use candle_core::{
    Device, Module, Tensor,
    quantized::{GgmlDType, QMatMul, QStorage, QTensor},
};
use longreel_kernels::{
    mapping::MappedBytes,
    quantized::{Format, multiply, widen},
};

use rayon::prelude::*;

use crate::{
    checkpoint::weights::bits_of_copy,
    error::{Error, Kind, Result},
};

/// Weights that a task checks together, within a core's cache.
const WEIGHTS: usize = 1 << 14;

/// A weight matrix `[out, in]` in quantized blocks.
pub struct QuantizedMatrix {
    bytes: MappedBytes,
    format: Format,
    in_features: usize,
    /// Made at the first product: an embedding table that is never multiplied needs none. `None` where the
    /// matrix is multiplied in place.
    copy: Option<OnceLock<Option<QMatMul>>>,
}

impl QuantizedMatrix {
    /// A matrix of whole blocks, `in_features` weights per row.
    pub fn new(bytes: MappedBytes, format: Format, in_features: usize, in_place: bool) -> Self {
        let is_copied = !in_place && bits_of_copy(format).is_some();
        Self {
            bytes,
            format,
            in_features,
            copy: is_copied.then(OnceLock::new),
        }
    }

    /// x `[n, in]` → y `[n, out]`, which is zeros.
    ///
    /// With the copy, x is quantized to 8 bits in blocks of 32 or 256, as in llama.cpp; in place x is not rounded.
    pub fn multiply(&self, x: &[f32], y: &mut [f32]) {
        // Quantizing x to integers would turn NaN into a number.
        let is_number = x.iter().all(|x| x.is_finite());
        let copy = self.copy.as_ref().filter(|_| is_number);
        let copy = copy.and_then(|copy| copy.get_or_init(|| self.copied().ok()).as_ref());
        let made = copy.and_then(|copy| product(copy, x, self.in_features).ok());
        match made.filter(|made| made.len() == y.len()) {
            Some(made) => y.copy_from_slice(&made),
            // Without a copy, or where candle fails, our kernel multiplies in place.
            None => multiply(self.format, x, self.bytes.as_bytes(), self.in_features, y),
        }
    }

    /// Appends row `index`, `[in]`, to `out`; `None` when there is no such row.
    pub fn append_row(&self, index: usize, out: &mut Vec<f32>) -> Option<()> {
        let row_bytes = self.in_features / self.format.block_weights() * self.format.block_bytes();
        let start = index.checked_mul(row_bytes)?;
        let row = self
            .bytes
            .as_bytes()
            .get(start..start.checked_add(row_bytes)?)?;
        let before = out.len();
        out.resize(before + self.in_features, 0.0);
        widen(self.format, row, &mut out[before..]);
        Some(())
    }

    /// # Errors
    /// `Compute` for a weight that is NaN or infinite: candle's integer product would hide it, while ours propagates it
    /// to the check that names the layer.
    fn copied(&self) -> Result<QMatMul> {
        let bytes = self.bytes.as_bytes();
        if !self.is_finite() {
            return Err(Error::new(Kind::Compute, "a weight is NaN or infinite"));
        }
        let n = self.format.weights_of(bytes) / self.in_features.max(1);
        let dtype = name_in_candle(self.format);
        let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, dtype)?;
        let tensor = QTensor::new(storage, (n, self.in_features))?;
        Ok(QMatMul::from_qtensor(tensor)?)
    }
}

impl QuantizedMatrix {
    fn is_finite(&self) -> bool {
        let some = WEIGHTS / self.format.block_weights();
        let runs = self
            .bytes
            .as_bytes()
            .par_chunks(some * self.format.block_bytes());
        runs.all(|run| {
            let mut weights = vec![0.0; self.format.weights_of(run)];
            widen(self.format, run, &mut weights);
            weights.iter().all(|w| w.is_finite())
        })
    }
}

fn product(matrix: &QMatMul, x: &[f32], in_features: usize) -> Result<Vec<f32>> {
    let x = Tensor::from_slice(x, (x.len() / in_features, in_features), &Device::Cpu)?;
    Ok(matrix.forward(&x)?.flatten_all()?.to_vec1()?)
}

fn name_in_candle(format: Format) -> GgmlDType {
    match format {
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q4_1 => GgmlDType::Q4_1,
        Format::Q5_0 => GgmlDType::Q5_0,
        Format::Q5_1 => GgmlDType::Q5_1,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::Q2K => GgmlDType::Q2K,
        Format::Q3K => GgmlDType::Q3K,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q5K => GgmlDType::Q5K,
        Format::Q6K => GgmlDType::Q6K,
        Format::Q8K => GgmlDType::Q8K,
    }
}
