//! Tensors by name, and files of them.

use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};

/// Name, shape, numbers.
pub type Named = (String, Vec<usize>, Vec<f32>);

pub fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Writes tensors of f32.
pub fn write_safetensors(path: &Path, tensors: &[Named]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(.., x)| bytes_of(x)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name, view.unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}
