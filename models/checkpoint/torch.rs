//! `torch.save` files: a zip archive with a pickle (`data.pkl`) and one
//! uncompressed entry per storage, or, older than torch 1.6, pickles and the
//! storages one after the other. Storages are read in place.

use std::{collections::HashMap, io::Cursor};

use longreel_kernels::mapping::MappedBytes;
use zip::{CompressionMethod, ZipArchive};

use crate::{
    checkpoint::{
        foreign::{Storage, StoragePiece, View},
        pickle::{self, Leaf, OldTorch, TorchTensor, Writer},
    },
    error::{Context, Error, Kind, Result},
};

/// Storages by name, borrowed from the mapped file.
type Storages = HashMap<String, MappedBytes>;

/// The tensors of a `torch.save` file by name, in the order of the file.
///
/// # Errors
/// `BadInput` for anything but a zip archive of uncompressed entries with a
/// pickle of named tensors, or an older file of the same.
pub fn read(file: &MappedBytes) -> Result<Vec<(String, View)>> {
    if pickle::is_old_torch(file.as_bytes()) {
        let OldTorch { leaves, storages } = pickle::read_old_torch(file.as_bytes())?;
        let storages = storages.into_iter();
        let storages = storages.filter_map(|(name, range)| Some((name, file.slice(range)?)));
        return views(leaves, "", &storages.collect());
    }
    let entries = entries(file)?;
    let (name, pickle) = entries
        .iter()
        .find(|(name, _)| name.ends_with("/data.pkl") || *name == "data.pkl")
        .ok_or_else(|| bad("no data.pkl in the archive".into()))?;
    let folder = name.trim_end_matches("data.pkl");
    let leaves = pickle::read(pickle.as_bytes(), Writer::Torch)?;
    views(leaves, &format!("{folder}data/"), &entries)
}

/// Resolves each tensor's storage: the entry `folder/data/<storage>` of the archive.
fn views(
    leaves: Vec<(Vec<String>, Leaf)>,
    folder: &str,
    storages: &Storages,
) -> Result<Vec<(String, View)>> {
    let mut tensors = Vec::with_capacity(leaves.len());
    for (path, leaf) in leaves {
        let name = path.join(".");
        let Leaf::Torch(tensor) = leaf else {
            return Err(bad(format!("{name} is not a torch tensor")));
        };
        let view = view(&tensor, folder, storages).doing(|| format!("tensor {name}"))?;
        tensors.push((name, view));
    }
    Ok(tensors)
}

fn view(tensor: &TorchTensor, folder: &str, storages: &Storages) -> Result<View> {
    let entry = format!("{folder}{}", tensor.storage);
    let bytes = storages
        .get(&entry)
        .ok_or_else(|| bad(format!("no storage {entry} in the file")))?;
    let storage = Storage::new(tensor.element, vec![StoragePiece::Mapped(bytes.clone())])?;
    if storage.len() != tensor.storage_len {
        return Err(bad(format!(
            "storage {entry} has {} elements, expected {}",
            storage.len(),
            tensor.storage_len
        )));
    }
    View::strided(storage, tensor.offset, &tensor.shape, &tensor.strides)
}

/// Every entry of the archive, borrowed from the mapped file.
fn entries(file: &MappedBytes) -> Result<Storages> {
    let not_zip = |e: zip::result::ZipError| {
        let text = "neither a zip archive nor pickles and storages, as torch.save writes them \
                    (torch can load what it wrote otherwise, and save it again)";
        Error::with_source(Kind::BadInput, text, e.to_string())
    };
    let mut archive = ZipArchive::new(Cursor::new(file.as_bytes())).map_err(not_zip)?;
    let mut entries = Storages::new();
    for i in 0..archive.len() {
        let entry = archive.by_index(i).map_err(not_zip)?;
        let name = entry.name().map_err(not_zip)?.into_owned();
        if entry.compression() != CompressionMethod::Stored {
            return Err(bad(format!("{name} is compressed, expected it stored")));
        }
        let range = entry
            .data_start()
            .and_then(|start| Some((start, start.checked_add(entry.size())?)));
        let bytes = range
            .and_then(|(from, to)| Some(usize::try_from(from).ok()?..usize::try_from(to).ok()?))
            .and_then(|range| file.slice(range))
            .ok_or_else(|| bad(format!("{name} lies beyond the end of the file")))?;
        entries.insert(name, bytes);
    }
    Ok(entries)
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
