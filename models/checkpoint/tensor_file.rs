//! One file of named tensors, written by another program.

use std::path::Path;

use longreel_kernels::mapping::MappedBytes;

use crate::{
    checkpoint::{
        foreign::{Element, Storage, StoragePiece, View},
        torch,
        weight_files::map,
        weights::{HeaderEntry, read_header},
    },
    error::{Context, Error, Kind, Result},
    file_name::FileName,
};

/// The tensors of `path` by name: a safetensors file if its extension says so, else a `torch.save` file.
///
/// # Errors
/// `Io` for a file that cannot be opened, `BadInput` for one of another format.
pub fn read(path: &Path) -> Result<Vec<(String, View)>> {
    let doing = || path.shown().to_string();
    let file = map(path).doing(doing)?;
    let is_safetensors = path.extension().is_some_and(|e| e == "safetensors");
    let tensors = match is_safetensors {
        true => safetensors(&file),
        false => torch::read(&file),
    };
    tensors.doing(doing)
}

/// The tensors of a safetensors file by name.
pub(crate) fn safetensors(file: &MappedBytes) -> Result<Vec<(String, View)>> {
    let entries = read_header(file.as_bytes())?.into_iter();
    let view = |entry: HeaderEntry| {
        let HeaderEntry {
            name,
            dtype,
            shape,
            range,
        } = entry;
        let element = Element::from_safetensors(dtype).doing(|| format!("tensor {name}"))?;
        let bytes = file.slice(range).ok_or_else(|| {
            let message = format!("tensor {name} lies beyond the end of the file");
            Error::new(Kind::BadInput, message)
        })?;
        let storage = Storage::new(element, vec![StoragePiece::Mapped(bytes)])?;
        Ok((name, View::row_major(storage, &shape)?))
    };
    entries.map(view).collect()
}
