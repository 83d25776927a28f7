//! Trained parameters as the tensors of a model directory.

use std::path::Path;

use safetensors::Dtype;

use crate::{
    checkpoint::{
        foreign::{Element, Storage, StoragePiece, View},
        layout::vqgan_tensors,
        stored::Stored,
        writer::Planned,
    },
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    spec::VqganSpec,
    systems,
    training::{operands::numbers, parameters::Parameters},
};

/// The parameters as tensors to write.
///
/// # Errors
/// When candle cannot give their numbers.
pub fn planned(parameters: &Parameters) -> Result<Vec<Planned>> {
    let tensor = |(name, var): (&String, &candle_core::Var)| {
        let tensor = var.contiguous()?;
        let held = numbers(&tensor);
        let bytes = held.as_slice()?.iter().flat_map(|x| x.to_le_bytes());
        owned(name, var.dims(), Element::F32, bytes.collect())
    };
    parameters.iter().map(tensor).collect()
}

/// The VQGAN of the model directory `dir` as tensors to write, in their stored type.
///
/// # Errors
/// `BadInput` for a directory without a VQGAN of `spec`.
pub fn planned_vqgan(dir: &Path, spec: &VqganSpec) -> Result<Vec<Planned>> {
    let doing = || format!("take the VQGAN of {}", dir.shown());
    let weights = systems::open(dir).and_then(|system| system.weights());
    let weights = weights.doing(doing)?;
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let stored = weights.list().find(|(n, ..)| *n == name);
        let element = match stored {
            Some((_, Stored::Plain(Dtype::F32), found)) if found == shape => Element::F32,
            Some((_, Stored::Plain(Dtype::BF16), found)) if found == shape => Element::Bf16,
            other => {
                let found = other.map_or("missing".to_owned(), |(_, stored, s)| {
                    format!("{stored} {s:?}")
                });
                let message = format!("{name} is {found}, expected F32 or BF16 {shape:?}");
                return Err(Error::new(Kind::BadInput, message));
            }
        };
        let bytes = weights.bytes(&name).unwrap_or_default().to_vec();
        owned(&name, &shape, element, bytes)
    };
    let tensors = vqgan_tensors(spec).into_iter().map(tensor);
    tensors.collect::<Result<_>>().doing(doing)
}

fn owned(name: &str, shape: &[usize], element: Element, bytes: Vec<u8>) -> Result<Planned> {
    let storage = Storage::new(element, vec![StoragePiece::Owned(bytes.into())])?;
    Ok(Planned {
        name: name.to_owned(),
        shape: shape.to_vec(),
        view: View::row_major(storage, shape)?,
    })
}
