//! The golden data under `tests/golden`, and comparison with a stated tolerance.

use std::path::PathBuf;

use half::bf16;
use safetensors::{Dtype, SafeTensors};

/// A file under `tests/golden`.
pub fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(relative)
}

/// A clip under `tests/clips`.
pub fn clip(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clips")
        .join(name)
}

/// One golden safetensors file, read whole.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(relative: &str) -> Self {
        Self(std::fs::read(path(relative)).unwrap())
    }

    pub fn names(&self) -> Vec<String> {
        SafeTensors::deserialize(&self.0)
            .unwrap()
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0)
            .unwrap()
            .tensor(name)
            .unwrap()
            .shape()
            .to_vec()
    }

    /// The tensor as f32 (F32 or BF16 on disk).
    pub fn f32(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        match view.dtype() {
            Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            Dtype::BF16 => view
                .data()
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
                .collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    pub fn i32(&self, name: &str) -> Vec<i32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::I32, "{name}");
        view.data()
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    pub fn i64(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::I64, "{name}");
        view.data()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    pub fn u8(&self, name: &str) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::U8, "{name}");
        view.data().to_vec()
    }
}

/// Fails, printing the worst element and the first bad pairs, when any element differs by more than `tolerance`.
pub fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    let bad: Vec<usize> = (0..got.len())
        .filter(|&i| {
            (got[i] - expected[i]).abs() > tolerance || !(got[i] - expected[i]).is_finite()
        })
        .collect();
    if bad.is_empty() {
        return;
    }
    let worst = bad
        .iter()
        .copied()
        .max_by(|&a, &b| {
            (got[a] - expected[a])
                .abs()
                .total_cmp(&(got[b] - expected[b]).abs())
        })
        .unwrap();
    let pairs: Vec<String> = bad
        .iter()
        .take(5)
        .map(|&i| format!("[{i}] got {} expected {}", got[i], expected[i]))
        .collect();
    panic!(
        "{what}: {} of {} elements differ by more than {tolerance}; worst at [{worst}]: got {} expected {}; first: {}",
        bad.len(),
        got.len(),
        got[worst],
        expected[worst],
        pairs.join("; ")
    );
}
