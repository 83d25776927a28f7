//! Importing Hugging Face LLaMA directories: safetensors and torch shards,
//! their configuration, and the two orders of RoPE's pairs.

use std::{fs, io::Write, path::Path};

use longreel_kernels::mapping::MappedBytes;
use longreel_models::{
    checkpoint::{
        foreign::{Element, Storage, StoragePiece, View},
        layout, torch,
        weights::Weights,
        writer::ImportOptions,
    },
    error::Result,
    spec::{ModelSpec, ModelType, RopePairs},
    systems::{self, import_hf::import_hf, verify::verify},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{
    folders, golden,
    tensors::{Named, bytes_of, write_safetensors},
};

/// A small grouped-head LLaMA in Hugging Face's words.
fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 48,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e7,
        "rope_scaling": null,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
    })
}

/// Every tensor of the configuration with values that tell place and name apart.
fn tensors(config: &Value) -> Vec<Named> {
    let spec = spec_of_config(&config.to_string()).unwrap();
    layout::decoder_tensors(&spec.decoder)
        .into_iter()
        .enumerate()
        .map(|(t, (name, shape))| {
            let n: usize = shape.iter().product();
            let values = (0..n)
                .map(|i| ((i * 7919 + t * 131) % 1009) as f32 / 64.0 - 8.0)
                .collect();
            (name, shape, values)
        })
        .collect()
}

/// A Hugging Face directory with the tensors in two safetensors shards.
fn snapshot(dir: &Path, config: &Value, tensors: &[Named]) {
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::copy(
        golden::path("tokenizer/tokenizer.model"),
        dir.join("tokenizer.model"),
    )
    .unwrap();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    write_safetensors(&dir.join("model-00001-of-00002.safetensors"), first);
    write_safetensors(&dir.join("model-00002-of-00002.safetensors"), second);
}

fn check(dir: &Path, tensors: &[Named]) {
    let mut weights = Weights::open(dir).unwrap();
    for (name, shape, values) in tensors {
        let found = weights
            .tensor(name, shape)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_eq!(&found, values, "{name}");
    }
    weights.finish().unwrap();
}

/// Imports `dir` and checks what comes out.
fn check_import(dir: &Path, tensors: &[Named]) {
    let out = dir.join("model");
    import_hf(dir, &out, ImportOptions::default()).unwrap();
    check(&out, tensors);
    assert!(
        verify(&folders::system(&out), &no_vision, &|| true)
            .unwrap()
            .is_sound()
    );
    assert_eq!(
        folders::answering(&out).unwrap(),
        folders::answering(dir).unwrap()
    );
    assert!(out.join("tokenizer.model").is_file());
}

#[test]
fn a_snapshot_is_read_as_it_is_and_imports_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let mut stored = tensors(&config());
    let wanted = stored.clone();
    // Frequencies that older snapshots carry follow from the configuration.
    stored.push((
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        vec![4],
        vec![1.0; 4],
    ));
    snapshot(dir.path(), &config(), &stored);
    check(dir.path(), &wanted);
    check_import(dir.path(), &wanted);
}

#[test]
fn duplicate_weights_under_other_names_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = tensors(&config());
    fs::write(dir.path().join("config.json"), config().to_string()).unwrap();
    write_safetensors(&dir.path().join("model.safetensors"), &tensors);
    write_safetensors(&dir.path().join("consolidated.safetensors"), &tensors);
    check(dir.path(), &tensors);
}

#[test]
fn an_index_names_files_beside_it_only() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "../secret.safetensors"}}"#).unwrap();
    let error = Weights::open(dir.path()).map(drop).unwrap_err();
    assert!(
        error.to_string().contains("expected files beside it"),
        "{error}"
    );
}

#[test]
fn the_configuration_keeps_its_values_and_its_pair_order() {
    let spec = spec_of_config(&config().to_string()).unwrap();
    assert_eq!(spec.model_type, ModelType::Llama);
    let decoder = spec.decoder;
    assert_eq!(decoder.rope_pairs, RopePairs::Halves);
    assert_eq!((decoder.n_kv_heads(), decoder.head_dim()), (2, 8));
    assert_eq!((decoder.rope_theta, decoder.rms_norm_eps), (1e7, 1e-5));
    let mut newer = config();
    newer.as_object_mut().unwrap().remove("rope_theta");
    newer["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 2e6 });
    newer["head_dim"] = json!(16);
    let decoder = spec_of_config(&newer.to_string()).unwrap().decoder;
    assert_eq!((decoder.rope_theta, decoder.head_dim()), (2e6, 16));
}

#[test]
fn unsupported_keys_that_change_the_computation_are_refused() {
    let cases = [
        (
            "rope_scaling",
            json!({ "type": "longrope", "factor": 4.0 }),
            "rope_scaling: unknown variant `longrope`, expected one of `linear`, `ntk`, `dynamic`, `llama3`, `yarn`",
        ),
        (
            "rope_scaling",
            json!({ "type": "mrope", "mrope_section": [2, 1, 1] }),
            "mrope_section: the architecture has positions of one component",
        ),
        (
            "rope_parameters",
            json!({ "rope_type": "yarn" }),
            "rope_scaling: missing field `factor`",
        ),
        (
            "rope_parameters",
            json!({ "rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5 }),
            "partial_rotary_factor is 0.5, expected 1",
        ),
        (
            "model_type",
            json!("gemma"),
            "model_type is \"gemma\", architectures [\"LlamaForCausalLM\"]: expected one of clip, ",
        ),
        (
            "hidden_act",
            json!("gelu"),
            "hidden_act is \"gelu\", expected \"silu\"",
        ),
        (
            "vocab_size",
            json!("many"),
            "vocab_size: invalid type: string \"many\", expected usize",
        ),
        ("hidden_size", Value::Null, "missing field `hidden_size`"),
        (
            "num_hidden_layers",
            json!(1u64 << 60),
            "decoder.num_hidden_layers is 1152921504606846976, expected at most 1024",
        ),
        (
            "num_key_value_heads",
            json!(3),
            "expected a multiple of num_key_value_heads = 3",
        ),
    ];
    for (key, value, expected) in cases {
        let mut config = config();
        config[key] = value;
        let error = spec_of_config(&config.to_string()).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "expected {expected:?}, got {error}"
        );
    }
}

#[test]
fn a_tied_head_may_be_stored_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config["tie_word_embeddings"] = json!(true);
    let wanted = tensors(&config);
    let mut stored = wanted.clone();
    let embeddings = stored[0].clone();
    stored.push(("lm_head.weight".into(), embeddings.1, embeddings.2));
    snapshot(dir.path(), &config, &stored);
    check_import(dir.path(), &wanted);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let mut all = tensors(&config());
    let removed = all.remove(3);
    all.push(("model.extra.weight".into(), vec![1], vec![0.0]));
    let dir = tempfile::tempdir().unwrap();
    snapshot(dir.path(), &config(), &all);
    let error = import_hf(
        dir.path(),
        &dir.path().join("model"),
        ImportOptions::default(),
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains(&format!("{} is missing", removed.0)),
        "{error}"
    );
    assert!(error.contains("model.extra.weight is unknown"), "{error}");
    assert!(!dir.path().join("model").exists());
}

/// A pickle as `torch.save` writes a state dict, every tensor over its own storage.
fn state_dict(tensors: &[Named], strides_of: impl Fn(&[usize]) -> Vec<usize>) -> Vec<u8> {
    let text = |s: &str| {
        [
            b"X".as_slice(),
            &(s.len() as u32).to_le_bytes(),
            s.as_bytes(),
        ]
        .concat()
    };
    let int = |n: usize| [b"J".as_slice(), &(n as i32).to_le_bytes()].concat();
    let sizes = |s: &[usize]| {
        [
            b"(".to_vec(),
            s.iter().flat_map(|&n| int(n)).collect(),
            b"t".to_vec(),
        ]
        .concat()
    };
    let mut out = b"\x80\x02ccollections\nOrderedDict\nq\x00)R(".to_vec();
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        out.extend(text(name));
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        out.extend(text("storage"));
        out.extend(b"ctorch\nFloatStorage\n");
        out.extend([text(&i.to_string()), text("cpu"), int(values.len())].concat());
        out.extend(b"tQ");
        out.extend([int(0), sizes(shape), sizes(&strides_of(shape))].concat());
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    // The state dict's `_metadata` attribute.
    out.extend([b"u}".as_slice(), &text("_metadata"), b"h\x00)Rsb."].concat());
    out
}

fn write_torch(path: &Path, tensors: &[Named], pickle: &[u8], method: zip::CompressionMethod) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    zip.start_file("archive/data.pkl", options).unwrap();
    zip.write_all(pickle).unwrap();
    for (i, (_, _, values)) in tensors.iter().enumerate() {
        zip.start_file(format!("archive/data/{i}"), options)
            .unwrap();
        zip.write_all(&bytes_of(values)).unwrap();
    }
    zip.finish().unwrap();
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    (0..shape.len())
        .map(|i| shape[i + 1..].iter().product())
        .collect()
}

fn torch_snapshot(dir: &Path, tensors: &[Named]) {
    fs::write(dir.join("config.json"), config().to_string()).unwrap();
    fs::copy(
        golden::path("tokenizer/tokenizer.model"),
        dir.join("tokenizer.model"),
    )
    .unwrap();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let path = dir.join(format!("pytorch_model-{:05}-of-00002.bin", i + 1));
        write_torch(
            &path,
            part,
            &state_dict(part, row_major),
            zip::CompressionMethod::Stored,
        );
    }
}

#[test]
fn torch_shards_import_like_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = tensors(&config());
    torch_snapshot(dir.path(), &tensors);
    // The arguments of a training run lie beside the weights and are none.
    fs::write(dir.path().join("training_args.bin"), "something else").unwrap();
    check_import(dir.path(), &tensors);
}

fn read_torch(
    pickle: &[u8],
    tensors: &[Named],
    method: zip::CompressionMethod,
) -> Result<Vec<(String, View)>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    write_torch(&path, tensors, pickle, method);
    torch::read(&MappedBytes::open(&path).unwrap())
}

#[test]
fn a_transposed_torch_tensor_is_read_through_its_strides() {
    let tensors = [(
        "w".to_owned(),
        vec![2, 3],
        vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    )];
    let pickle = state_dict(&tensors, |_| vec![1, 2]);
    let found = read_torch(&pickle, &tensors, zip::CompressionMethod::Stored).unwrap();
    assert_eq!(found[0].1.to_f32().unwrap(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
}

#[test]
fn hostile_torch_files_are_refused() {
    let tensors = [("w".to_owned(), vec![2, 3], vec![0.0; 6])];
    let good = state_dict(&tensors, row_major);
    let stored = zip::CompressionMethod::Stored;
    let refused = |pickle: &[u8], tensors: &[Named], method, expected: &str| {
        let error = read_torch(pickle, tensors, method)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(expected),
            "expected {expected:?}, got {error}"
        );
    };
    refused(
        &state_dict(&tensors, |_| vec![1 << 20, 1]),
        &tensors,
        stored,
        "reach beyond the 6 elements stored",
    );
    refused(&good, &[], stored, "no storage archive/data/0 in the file");
    refused(
        &good,
        &tensors,
        zip::CompressionMethod::Deflated,
        "is compressed, expected it stored",
    );
    refused(
        b"\x80\x02ccollections\nCounter\n)R.",
        &tensors,
        stored,
        "global collections.Counter is not on the list",
    );
}

/// Rotates `x` `[d]` at `position` and gives the rotated vector.
fn rotated(x: &[f32], position: usize, pairs: RopePairs) -> Vec<f64> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for i in 0..half {
        let (a, b) = match pairs {
            RopePairs::Adjacent => (2 * i, 2 * i + 1),
            RopePairs::Halves => (i, i + half),
        };
        let angle = position as f64 / 1e4f64.powf(i as f64 / half as f64);
        let (sin, cos) = angle.sin_cos();
        let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
        (out[a], out[b]) = (xa * cos - xb * sin, xa * sin + xb * cos);
    }
    out
}

fn view(values: &[f32], shape: &[usize]) -> View {
    let piece = StoragePiece::Owned(bytes_of(values).into());
    View::row_major(Storage::new(Element::F32, vec![piece]).unwrap(), shape).unwrap()
}

/// `[rows, n]` times `[n]`.
fn product(matrix: &[f32], x: &[f32]) -> Vec<f32> {
    matrix
        .chunks_exact(x.len())
        .map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum())
        .collect()
}

proptest! {
    #[test]
    fn permuted_projections_give_the_same_attention_scores(
        values in prop::collection::vec(-1f32..1.0, 2 * 16 * 6),
        x in prop::collection::vec(-1f32..1.0, 6),
        (q_at, k_at) in (0usize..500, 0usize..500),
    ) {
        let (q, k) = values.split_at(16 * 6);
        let score = |q: &[f32], k: &[f32], pairs| -> Vec<f64> {
            let (q, k) = (product(q, &x), product(k, &x));
            (0..2).map(|h| {
                let head = h * 8..h * 8 + 8;
                let q = rotated(&q[head.clone()], q_at, pairs);
                let k = rotated(&k[head], k_at, pairs);
                q.iter().zip(&k).map(|(a, b)| a * b).sum()
            }).collect()
        };
        let halves = |m: &[f32]| view(m, &[16, 6]).adjacent_to_halves(2).unwrap().to_f32().unwrap();
        let adjacent = score(q, k, RopePairs::Adjacent);
        let permuted = score(&halves(q), &halves(k), RopePairs::Halves);
        for (a, b) in adjacent.iter().zip(&permuted) {
            prop_assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        let back = view(&halves(q), &[16, 6]).halves_to_adjacent(2).unwrap().to_f32().unwrap();
        prop_assert_eq!(back, q);
    }

    /// Views of every order, over pieces cut anywhere, give what index arithmetic gives.
    #[test]
    fn a_view_reads_what_its_strides_say(
        shape in prop::collection::vec(1usize..70, 2..4),
        cut in 0usize..1000,
        axis in 0usize..2,
    ) {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let bytes = bytes_of(&values);
        let cut = cut % n * 4;
        let pieces = vec![StoragePiece::Owned(bytes[..cut].into()), StoragePiece::Owned(bytes[cut..].into())];
        let whole = View::row_major(Storage::new(Element::F32, pieces).unwrap(), &shape).unwrap();
        prop_assert_eq!(&whole.to_f32().unwrap(), &values);
        let strides = row_major(&shape);
        let axes = shape.len();
        let turned: Vec<f32> = (0..n).map(|mut i| {
            let mut at = 0;
            for axis in 0..axes {
                at += i % shape[axis] * strides[axis];
                i /= shape[axis];
            }
            (at, i)
        }).map(|(at, _)| values[at]).collect();
        // Counting the first axis fastest is row-major order of the transposed view.
        prop_assert_eq!(whole.transposed().to_f32().unwrap(), turned);
        let index = cut % shape[axis];
        let slice = whole.select(axis, index).unwrap().to_f32().unwrap();
        let picked: Vec<f32> = (0..n).filter(|i| i / strides[axis] % shape[axis] == index).map(|i| values[i]).collect();
        prop_assert_eq!(slice, picked);
    }
}

/// The models here have no encoder beside their VQGAN.
fn no_vision(_: &mut Weights) -> Result<()> {
    Ok(())
}

/// The model that answers whose configuration this is.
fn spec_of_config(text: &str) -> Result<ModelSpec> {
    let spec = systems::spec_of_config(text)?;
    Ok(spec.answering().expect("a decoder").clone())
}
