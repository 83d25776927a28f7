//! The folders of `tests/golden/folders.json`: golden folders changed in one place, and what transformers makes of each.

use std::{fs, path::Path};

use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::support::golden;

/// One changed folder.
pub struct FolderCase(pub Value);

impl FolderCase {
    /// Those that have the key `key`.
    pub fn with(key: &str) -> Vec<Self> {
        let text = fs::read_to_string(golden::path("folders.json")).unwrap();
        let all: Vec<Value> = serde_json::from_str(&text).unwrap();
        let found = all.into_iter().filter(|case| case.get(key).is_some());
        found.map(Self).collect()
    }

    pub fn name(&self) -> &str {
        self.0["name"].as_str().unwrap()
    }

    /// The golden folder that is changed.
    pub fn of(&self) -> &str {
        self.0["of"].as_str().unwrap()
    }

    /// A copy of the golden folder with the changes.
    pub fn folder(&self) -> TempDir {
        let dir = copied(self.of());
        let files = self.0["files"].as_object().into_iter().flatten();
        files.for_each(|(name, change)| change_file(&dir.path().join(name), change));
        let changes = self.0["tensors"].as_array().into_iter().flatten();
        let changes: Vec<&Value> = changes.collect();
        if !changes.is_empty() {
            change_tensors(&dir.path().join("model.safetensors"), &changes);
        }
        dir
    }
}

/// A copy of a golden folder.
pub fn copied(folder: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden::path(folder)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn change_file(path: &Path, change: &Value) {
    match change {
        Value::Null => fs::remove_file(path).unwrap(),
        Value::String(text) => fs::write(path, text).unwrap(),
        change => {
            let text = fs::read_to_string(path).unwrap_or_else(|_| "{}".to_owned());
            let mut json: Value = serde_json::from_str(&text).unwrap();
            for (key, value) in change.as_object().unwrap() {
                set(json.as_object_mut().unwrap(), key, value);
            }
            fs::write(path, json.to_string()).unwrap();
        }
    }
}

/// Sets the key at a path with dots; `"-"` removes it.
fn set(json: &mut Map<String, Value>, path: &str, value: &Value) {
    match path.split_once('.') {
        Some((key, rest)) => {
            let part = json.entry(key).or_insert_with(|| Value::Object(Map::new()));
            set(part.as_object_mut().unwrap(), rest, value);
        }
        None if value == "-" => drop(json.remove(path)),
        None => drop(json.insert(path.to_owned(), value.clone())),
    }
}

type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;

fn change_tensors(path: &Path, changes: &[&Value]) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    changes
        .iter()
        .for_each(|change| change_tensor(&mut tensors, change));
    let views = tensors.iter().map(|(name, shape, data)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    serialize_to_file(views, None, path).unwrap();
}

fn change_tensor(tensors: &mut Tensors, change: &Value) {
    let find = |tensors: &Tensors, end: &Value| {
        let end = end.as_str().unwrap();
        tensors.iter().position(|(name, ..)| name.ends_with(end))
    };
    if let Some([source, target]) = change["copy"].as_array().map(Vec::as_slice) {
        let (_, shape, data) = tensors[find(tensors, source).unwrap()].clone();
        match find(tensors, target) {
            Some(at) => tensors[at].2 = data,
            None => tensors.push((target.as_str().unwrap().to_owned(), shape, data)),
        }
    }
    if !change["remove"].is_null() {
        tensors.remove(find(tensors, &change["remove"]).unwrap());
    }
    if !change["reverse"].is_null() {
        let at = find(tensors, &change["reverse"]).unwrap();
        let numbers = tensors[at].2.as_chunks::<4>().0.iter().rev();
        tensors[at].2 = numbers.flatten().copied().collect();
    }
}
