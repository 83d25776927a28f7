//! LWM's released files to a model directory: the parameter stream, the VQGAN
//! pickle and the tokenizer.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use longreel_kernels::mapping::MappedBytes;

use crate::{
    checkpoint::{
        foreign::{Storage, StoragePiece, View, shortened},
        layout,
        msgpack::{self, TensorRef},
        pickle::{self, Data, Leaf},
        tensor_file,
        weight_files::map,
        writer::{ImportOptions, ImportReport, Planned, check_layout, refuse, write_model},
    },
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    spec::{DecoderSpec, ModelSpec, VqganSpec},
};

/// Which of upstream's forms a parameter file has (tux `load_trainstate_checkpoint`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamsForm {
    /// A stream of the parameters alone.
    Params,
    /// A stream of the whole training state; only its parameters are read.
    TrainStateParams,
    /// One flax document instead of a stream.
    FlaxParams,
}

/// A parameter file and its form, as written: `params::PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamsSource {
    /// The form.
    pub form: ParamsForm,
    /// The file.
    pub path: PathBuf,
}

impl FromStr for ParamsSource {
    type Err = Error;

    /// `params::PATH`, `trainstate_params::PATH`, `flax_params::PATH`; a bare path is `params`.
    fn from_str(text: &str) -> Result<Self> {
        let (form, path) = match text.split_once("::") {
            None => (ParamsForm::Params, text),
            Some(("params", path)) => (ParamsForm::Params, path),
            Some(("trainstate_params", path)) => (ParamsForm::TrainStateParams, path),
            Some(("flax_params", path)) => (ParamsForm::FlaxParams, path),
            Some((other, _)) => {
                return Err(Error::new(
                    Kind::Usage,
                    format!(
                        "{other}:: in front of a checkpoint, expected params::, trainstate_params:: or flax_params::"
                    ),
                ));
            }
        };
        Ok(Self {
            form,
            path: path.into(),
        })
    }
}

/// The files that an LWM model is imported from.
pub struct LwmFiles {
    /// The model's specification; the checkpoint holds weights only.
    pub spec: ModelSpec,
    /// The decoder's parameters.
    pub params: ParamsSource,
    /// The VQGAN: a pickle, or safetensors under the flax paths. Absent for a text model.
    pub vqgan: Option<PathBuf>,
    /// `tokenizer.model`, `tokenizer.json`, or a directory with one of them.
    pub tokenizer: PathBuf,
}

/// Imports `files` to the model directory `out`.
///
/// # Errors
/// `BadInput` naming unknown, missing, repeated or misshapen tensors; see
/// [`write_model`] for the rest.
pub fn import_lwm(files: &LwmFiles, out: &Path, options: ImportOptions) -> Result<ImportReport> {
    let mut tensors = decoder(&files.params, &files.spec.decoder)
        .doing(|| format!("import {}", files.params.path.shown()))?;
    match (&files.spec.vqgan, &files.vqgan) {
        (Some(spec), Some(path)) => tensors
            .extend(vqgan(path, spec).doing(|| format!("import the VQGAN {}", path.shown()))?),
        (None, None) => {}
        (Some(_), None) => return Err(usage("the model has a VQGAN, but no file of it is given")),
        (None, Some(_)) => return Err(usage("a VQGAN is given, but the model has none")),
    }
    check_layout(&files.spec, &tensors)?;
    write_model(out, &files.spec, &tensors, &files.tokenizer, options)
}

/// Foreign tensors by path, joined with `/`.
type Found = BTreeMap<String, View>;

fn insert(found: &mut Found, name: String, view: View) -> Result<()> {
    if found.contains_key(&name) {
        return Err(bad(format!("tensor {name} is in the checkpoint twice")));
    }
    found.insert(name, view);
    Ok(())
}

fn decoder(source: &ParamsSource, spec: &DecoderSpec) -> Result<Vec<Planned>> {
    let file = map(&source.path)?;
    let mut found = match source.form {
        ParamsForm::FlaxParams => flax_document(&file)?,
        ParamsForm::Params => stream(&file, &[])?,
        ParamsForm::TrainStateParams => stream(&file, &["params", "params"])?,
    };
    let planned = plan_decoder(&mut found, spec)?;
    let unknown: Vec<String> = found
        .keys()
        .map(|name| format!("{name} is unknown"))
        .collect();
    refuse("tensor", &unknown)?;
    Ok(planned)
}

/// The tensors whose path starts with `prefix`, without it.
fn stream(file: &MappedBytes, prefix: &[&str]) -> Result<Found> {
    let mut found = Found::new();
    for entry in msgpack::Stream::new(file.as_bytes()) {
        let entry = entry?;
        let starts = entry.path.iter().zip(prefix).all(|(part, p)| part == p);
        if !starts || entry.path.len() < prefix.len() {
            continue;
        }
        let name = entry.path[prefix.len()..].join("/");
        let tensor = msgpack::tensor(file.as_bytes(), entry.value)
            .doing(|| format!("tensor {}", shortened(&name)))?;
        insert(&mut found, name, view_of(file, tensor)?)?;
    }
    if found.is_empty() {
        return Err(match prefix {
            [] => bad("no tensors in it".into()),
            _ => bad(format!("no tensors under {}", prefix.join("/"))),
        });
    }
    Ok(found)
}

fn flax_document(file: &MappedBytes) -> Result<Found> {
    let tensors = msgpack::document(file.as_bytes())?;
    let wrapped = tensors
        .iter()
        .all(|(path, _)| path.first().is_some_and(|p| p == "params"));
    let mut found = Found::new();
    for (path, tensor) in tensors {
        let name = path[usize::from(wrapped)..].join("/");
        insert(&mut found, name, view_of(file, tensor)?)?;
    }
    Ok(found)
}

fn view_of(file: &MappedBytes, tensor: TensorRef) -> Result<View> {
    let pieces = tensor
        .chunks
        .into_iter()
        .map(|range| mapped(file, range))
        .collect::<Result<_>>()?;
    View::row_major(Storage::new(tensor.element, pieces)?, &tensor.shape)
}

fn mapped(file: &MappedBytes, range: Range<usize>) -> Result<StoragePiece> {
    file.slice(range)
        .map(StoragePiece::Mapped)
        .ok_or_else(|| bad("a tensor beyond the end of the file".into()))
}

/// A parameter of a decoder block: Hugging Face's name, flax's name, whether it is a kernel `[in, out]`.
const LAYER: [(&str, &str, bool); 9] = [
    ("input_layernorm.weight", "attention_norm/kernel", false),
    ("self_attn.q_proj.weight", "attention/wq/kernel", true),
    ("self_attn.k_proj.weight", "attention/wk/kernel", true),
    ("self_attn.v_proj.weight", "attention/wv/kernel", true),
    ("self_attn.o_proj.weight", "attention/wo/kernel", true),
    ("post_attention_layernorm.weight", "ffn_norm/kernel", false),
    ("mlp.gate_proj.weight", "feed_forward/w1/kernel", true),
    ("mlp.up_proj.weight", "feed_forward/w3/kernel", true),
    ("mlp.down_proj.weight", "feed_forward/w2/kernel", true),
];

/// A parameter outside the blocks, likewise.
const OUTSIDE: [(&str, &str, bool); 5] = [
    (
        "model.embed_tokens.weight",
        "transformer/wte/embedding",
        false,
    ),
    (
        "model.vision_embed_tokens.weight",
        "transformer/vte/embedding",
        false,
    ),
    ("model.norm.weight", "transformer/ln_f/kernel", false),
    ("lm_head.weight", "lm_head/kernel", true),
    ("vision_head.weight", "vision_head/kernel", true),
];

/// Where `lwm/llama.py` keeps the stacked layers.
const STACKED: &str = "transformer/h/scan_decoder";

/// Takes the decoder's tensors out of `found`, under Hugging Face names and shapes.
fn plan_decoder(found: &mut Found, spec: &DecoderSpec) -> Result<Vec<Planned>> {
    let expected: BTreeMap<String, Vec<usize>> =
        layout::decoder_tensors(spec).into_iter().collect();
    let mut planned = Vec::new();
    let mut complaints = Vec::new();
    let mut take = |name: &str, source: String, view: Option<View>, kernel: bool| {
        let Some(shape) = expected.get(name) else {
            return complaints.push(format!("{source} is unknown"));
        };
        let Some(view) = view.map(|v| if kernel { v.transposed() } else { v }) else {
            return complaints.push(format!("{source} is missing"));
        };
        if view.shape() != shape {
            return complaints.push(format!(
                "{source} has shape {}, expected {}",
                ForeignShape(view.shape(), kernel),
                ForeignShape(shape, kernel)
            ));
        }
        planned.push(Planned {
            name: name.to_owned(),
            shape: shape.clone(),
            view,
        });
    };
    for (name, source, kernel) in OUTSIDE {
        let view = found.remove(source);
        if view.is_some() || expected.contains_key(name) {
            take(name, source.to_owned(), view, kernel);
        }
    }
    let scanned = found.keys().any(|name| name.starts_with(STACKED));
    let stacked = if scanned {
        take_stacked(found, spec)?
    } else {
        Vec::new()
    };
    for layer in 0..spec.num_hidden_layers {
        for (i, (name, source, kernel)) in LAYER.into_iter().enumerate() {
            let name = format!("model.layers.{layer}.{name}");
            if scanned {
                let slice = stacked.get(i).and_then(|(axis, v)| v.select(*axis, layer));
                take(&name, format!("{STACKED}/{source}"), slice, kernel);
            } else {
                let source = format!("transformer/h/{layer}/{source}");
                let view = found.remove(&source);
                take(&name, source, view, kernel);
            }
        }
    }
    refuse("tensor", &complaints)?;
    Ok(planned)
}

/// The stacked tensors in the order of [`LAYER`], with the axis that counts layers (`param_scan_axis`).
fn take_stacked(found: &mut Found, spec: &DecoderSpec) -> Result<Vec<(usize, View)>> {
    let shapes: BTreeMap<String, Vec<usize>> = layout::layer_tensors(spec).into_iter().collect();
    let mut views = Vec::new();
    let mut missing = Vec::new();
    for (name, source, kernel) in LAYER {
        let path = format!("{STACKED}/{source}");
        let mut shape = shapes.get(name).cloned().unwrap_or_default();
        if kernel {
            shape.reverse();
        }
        match found.remove(&path) {
            Some(view) => views.push((path, shape, view)),
            None => missing.push(format!("{path} is missing")),
        }
    }
    refuse("tensor", &missing)?;
    let stacked_on = |axis: usize, shape: &[usize]| {
        let mut shape = shape.to_vec();
        shape.insert(axis, spec.num_hidden_layers);
        shape
    };
    let fits = |axis| {
        views
            .iter()
            .all(|(_, s, v)| v.shape() == stacked_on(axis, s))
    };
    let Some(axis) = [0, 1].into_iter().find(|&axis| fits(axis)) else {
        let wrong: Vec<String> = views
            .iter()
            .filter(|(_, s, v)| v.shape() != stacked_on(0, s))
            .map(|(path, s, v)| {
                format!(
                    "{path} has shape {:?}, expected {:?} (layers first) or {:?}",
                    v.shape(),
                    stacked_on(0, s),
                    stacked_on(1, s)
                )
            })
            .collect();
        refuse("tensor", &wrong)?;
        return Err(bad("the layers are stacked on different axes".into()));
    };
    Ok(views.into_iter().map(|(_, _, view)| (axis, view)).collect())
}

/// A shape as it is in the foreign file.
struct ForeignShape<'a>(&'a [usize], bool);

impl fmt::Display for ForeignShape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shape = self.0.to_vec();
        if self.1 {
            shape.reverse();
        }
        write!(f, "{shape:?}")
    }
}

/// The VQGAN's tensors under `vqgan.` and their flax paths.
fn vqgan(path: &Path, spec: &VqganSpec) -> Result<Vec<Planned>> {
    let mut found = vqgan_file(path)?;
    let mut planned = Vec::new();
    let mut complaints = Vec::new();
    for (name, shape) in layout::vqgan_tensors(spec) {
        let source = name.trim_start_matches("vqgan.").replace('.', "/");
        match found.remove(&source) {
            None => complaints.push(format!("{source} is missing, expected shape {shape:?}")),
            Some(view) if view.shape() != shape => complaints.push(format!(
                "{source} has shape {:?}, expected {shape:?}",
                view.shape()
            )),
            Some(view) => planned.push(Planned { name, shape, view }),
        }
    }
    complaints.extend(found.keys().map(|name| format!("{name} is unknown")));
    refuse("tensor", &complaints)?;
    Ok(planned)
}

/// Every array of a VQGAN checkpoint by its flax path joined with `/`.
fn vqgan_file(path: &Path) -> Result<Found> {
    let file = map(path)?;
    if path.extension().is_some_and(|e| e == "safetensors") {
        return safetensors_file(&file);
    }
    read_pickle(&file)
}

/// Every array of a pickled nested dict by its path joined with `/`.
///
/// # Errors
/// See [`pickle::read`].
pub fn read_pickle(file: &MappedBytes) -> Result<BTreeMap<String, View>> {
    let mut found = Found::new();
    for (path, leaf) in pickle::read(file.as_bytes(), pickle::Writer::Numpy)? {
        let name = path.join("/");
        let Leaf::Array(array) = leaf else {
            return Err(bad(format!("{name} is a torch tensor")));
        };
        let piece = match array.data {
            Data::InFile(range) => mapped(file, range)?,
            Data::Latin1 { text, .. } => StoragePiece::Owned(latin1(file, text)?),
        };
        let storage = Storage::new(array.element, vec![piece])?;
        let view = if array.column_major {
            View::column_major(storage, &array.shape)?
        } else {
            View::row_major(storage, &array.shape)?
        };
        insert(&mut found, name, view)?;
    }
    Ok(found)
}

fn latin1(file: &MappedBytes, text: Range<usize>) -> Result<Arc<[u8]>> {
    let bytes = file.as_bytes().get(text).unwrap_or_default();
    let text = std::str::from_utf8(bytes).map_err(|_| bad("text that is not UTF-8".into()))?;
    Ok(pickle::latin1(text)?.into())
}

fn safetensors_file(file: &MappedBytes) -> Result<Found> {
    let mut found = Found::new();
    for (name, view) in tensor_file::safetensors(file)? {
        insert(&mut found, name.replace('.', "/"), view)?;
    }
    Ok(found)
}

fn usage(message: &str) -> Error {
    Error::new(Kind::Usage, message)
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
