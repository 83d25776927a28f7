//! Importing LWM's files: every form of one checkpoint gives the same model,
//! and a file that is cut, padded or hostile is refused with its fault named.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use longreel_kernels::mapping::MappedBytes;
use longreel_models::{
    checkpoint::{
        import_lwm::{LwmFiles, import_lwm, read_pickle},
        layout, msgpack,
        stored::Stored,
        weights::Weights,
        writer::{ImportOptions, ImportReport, StoredDtype},
    },
    error::{Kind, Result},
    spec::{ModelSpec, VqganSpec},
    systems::verify::verify,
};
use safetensors::Dtype;

use crate::support::{
    folders,
    golden::{self, Golden},
    tux,
};

/// The golden llama model as TOML: two layers of width 64.
const SPEC: &str = r#"
model_type = "lwm"
end_of_frame_id = 128
end_of_vision_id = 129
[decoder]
vocab_size = 320
vision_vocab_size = 144
hidden_size = 64
intermediate_size = 172
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 1024
rms_norm_eps = 1e-6
rope_theta = 5e7
rope_pairs = "adjacent"
[vqgan]
resolution = 64
hidden_channels = 32
channel_mult = [1, 1, 2]
num_res_blocks = 1
z_channels = 24
num_embeddings = 128
quantized_embed_dim = 16
"#;

fn files(params: &str) -> LwmFiles {
    LwmFiles {
        spec: ModelSpec::from_toml(SPEC).unwrap(),
        params: params.parse().unwrap(),
        vqgan: Some(golden::path("vqgan/vqgan.pkl")),
        tokenizer: golden::path("tokenizer"),
    }
}

fn golden_params(name: &str) -> String {
    golden::path(&format!("llama/{name}")).display().to_string()
}

fn import(params: &str, out: &Path) -> Result<ImportReport> {
    import_lwm(&files(params), out, ImportOptions::default())
}

/// Every tensor of a model directory as f32.
fn contents(dir: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut weights = Weights::open(dir).unwrap();
    let list: Vec<(String, Vec<usize>)> = weights
        .list()
        .map(|(n, _, s)| (n.to_owned(), s.to_vec()))
        .collect();
    list.into_iter()
        .map(|(name, shape)| {
            let values = weights.tensor(&name, &shape).unwrap();
            let values = values.flatten_all().unwrap().to_vec1().unwrap();
            (name, shape, values)
        })
        .collect()
}

/// `[rows, columns]` → `[columns, rows]`.
fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    (0..columns)
        .flat_map(|c| (0..rows).map(move |r| values[r * columns + c]))
        .collect()
}

/// One tensor of `llama/weights.safetensors` as a model directory has it.
fn expected(golden: &Golden, name: &str, shape: &[usize]) -> Vec<f32> {
    let outside = [
        ("model.embed_tokens.weight", "transformer/wte/embedding"),
        (
            "model.vision_embed_tokens.weight",
            "transformer/vte/embedding",
        ),
        ("model.norm.weight", "transformer/ln_f/kernel"),
        ("lm_head.weight", "lm_head/kernel"),
        ("vision_head.weight", "vision_head/kernel"),
    ];
    if let Some((_, source)) = outside.iter().find(|(n, _)| *n == name) {
        let values = golden.f32(source);
        return if name.contains("head") {
            transposed(&values, shape[1])
        } else {
            values
        };
    }
    let mut parts = name.strip_prefix("model.layers.").unwrap().splitn(2, '.');
    let layer: usize = parts.next().unwrap().parse().unwrap();
    let inside = [
        ("input_layernorm.weight", "attention_norm"),
        ("post_attention_layernorm.weight", "ffn_norm"),
        ("self_attn.q_proj.weight", "attention/wq"),
        ("self_attn.k_proj.weight", "attention/wk"),
        ("self_attn.v_proj.weight", "attention/wv"),
        ("self_attn.o_proj.weight", "attention/wo"),
        ("mlp.gate_proj.weight", "feed_forward/w1"),
        ("mlp.up_proj.weight", "feed_forward/w3"),
        ("mlp.down_proj.weight", "feed_forward/w2"),
    ];
    let rest = parts.next().unwrap();
    let (_, source) = inside.iter().find(|(n, _)| *n == rest).unwrap();
    let all = golden.f32(&format!("transformer/h/scan_decoder/{source}/kernel"));
    let n: usize = shape.iter().product();
    let values = &all[layer * n..(layer + 1) * n];
    if shape.len() == 2 {
        transposed(values, shape[1])
    } else {
        values.to_vec()
    }
}

/// The model directory holds the golden weights, bit for bit.
fn check_golden(dir: &Path) {
    let llama = Golden::open("llama/weights.safetensors");
    let vqgan = Golden::open("vqgan/weights.safetensors");
    let contents = contents(dir);
    assert_eq!(contents.len(), 23 + vqgan.names().len());
    for (name, shape, values) in contents {
        let expected = match name.strip_prefix("vqgan.") {
            Some(path) => vqgan.f32(&path.replace('.', "/")),
            None => expected(&llama, &name, &shape),
        };
        assert_eq!(values, expected, "{name}");
    }
}

#[test]
fn every_golden_form_imports_to_the_same_weights() {
    for form in ["params_stream_fp32", "params_stream_bf16"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");
        let written = import(&format!("params::{}", golden_params(form)), &out).unwrap();
        check_golden(&out);
        assert_eq!(written.tensors, Weights::open(&out).unwrap().list().count());
        assert!(
            verify(&folders::system(&out), &no_vision, &|| true)
                .unwrap()
                .is_sound()
        );
    }
}

#[test]
fn an_array_in_more_than_ten_chunks_is_joined_in_numeric_order() {
    let file = fs::read(golden_params("params_stream_chunked_fp32")).unwrap();
    let golden = Golden::open("llama/weights.safetensors");
    let mut n_chunked = 0;
    for entry in msgpack::Stream::new(&file) {
        let entry = entry.unwrap();
        let tensor = msgpack::tensor(&file, entry.value).unwrap();
        n_chunked += usize::from(tensor.chunks.len() > 1);
        let bytes: Vec<u8> = tensor
            .chunks
            .iter()
            .flat_map(|r| &file[r.clone()])
            .copied()
            .collect();
        let values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(values, golden.f32(&entry.path.join("/")));
    }
    assert_eq!(n_chunked, 2);
    // Eleven chunks and more: "10" stands before "2" as text.
    let data: Vec<u8> = (0..26u16)
        .flat_map(|i| f32::from(i).to_le_bytes())
        .collect();
    let (mut out, mut at) = (Vec::new(), 0);
    tux::write_array(&mut out, &["w"], ("float32", 4), &[26], 8, |out, n| {
        out.extend_from_slice(&data[at..at + n]);
        at += n;
        Ok(())
    })
    .unwrap();
    let entry = msgpack::Stream::new(&out).next().unwrap().unwrap();
    let tensor = msgpack::tensor(&out, entry.value).unwrap();
    assert_eq!(tensor.chunks.len(), 13);
    let joined: Vec<u8> = tensor
        .chunks
        .iter()
        .flat_map(|r| &out[r.clone()])
        .copied()
        .collect();
    assert_eq!(joined, data);
}

/// How a variant of the golden stream is written.
#[derive(Clone, Copy)]
struct Variant {
    dtype: (&'static str, usize),
    layers: Layers,
    chunk_bytes: usize,
    prefix: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq)]
enum Layers {
    First,
    Second,
    Apart,
}

const PLAIN: Variant = Variant {
    dtype: ("float32", 4),
    layers: Layers::First,
    chunk_bytes: tux::CHUNK_BYTES,
    prefix: &[],
};

/// The golden parameters as a stream of another form.
fn stream(variant: Variant) -> Vec<u8> {
    let golden = Golden::open("llama/weights.safetensors");
    let mut out = Vec::new();
    if !variant.prefix.is_empty() {
        out.extend(tux::integer(&["step"], 7));
        out.extend(tux::array(
            &["opt_state", "mu", "lm_head", "kernel"],
            ("float32", 4),
            &[1],
            &[0; 4],
        ));
    }
    let mut put = |name: &str, shape: &[usize], values: &[f32]| {
        let bytes: Vec<u8> = match variant.dtype.0 {
            "float16" => values
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
            "bfloat16" => values
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
            "float64" => values
                .iter()
                .flat_map(|v| f64::from(*v).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let path: Vec<&str> = variant
            .prefix
            .iter()
            .copied()
            .chain(name.split('/'))
            .collect();
        let mut at = 0;
        tux::write_array(
            &mut out,
            &path,
            variant.dtype,
            shape,
            variant.chunk_bytes,
            |out, n| {
                out.extend_from_slice(&bytes[at..at + n]);
                at += n;
                Ok(())
            },
        )
        .unwrap();
    };
    for name in golden.names().iter().rev() {
        let (shape, values) = (golden.shape(name), golden.f32(name));
        let Some(rest) = name.strip_prefix("transformer/h/scan_decoder/") else {
            put(name, &shape, &values);
            continue;
        };
        let n = values.len() / shape[0];
        match variant.layers {
            Layers::First => put(name, &shape, &values),
            Layers::Apart => {
                for layer in 0..shape[0] {
                    put(
                        &format!("transformer/h/{layer}/{rest}"),
                        &shape[1..],
                        &values[layer * n..(layer + 1) * n],
                    );
                }
            }
            Layers::Second => {
                // [layers, a, ..] → [a, layers, ..]
                let inner: usize = shape[2..].iter().product();
                let moved: Vec<f32> = (0..shape[1])
                    .flat_map(|a| (0..shape[0]).map(move |l| (l, a)))
                    .flat_map(|(l, a)| values[l * n + a * inner..l * n + (a + 1) * inner].to_vec())
                    .collect();
                let mut moved_shape = shape.clone();
                moved_shape.swap(0, 1);
                put(name, &moved_shape, &moved);
            }
        }
    }
    out
}

fn write(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("params");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn stacking_axis_dtype_chunks_and_training_state_make_no_difference() {
    let variants = [
        ("params", PLAIN),
        (
            "params",
            Variant {
                layers: Layers::Second,
                ..PLAIN
            },
        ),
        (
            "params",
            Variant {
                layers: Layers::Apart,
                ..PLAIN
            },
        ),
        (
            "params",
            Variant {
                dtype: ("bfloat16", 2),
                layers: Layers::Second,
                ..PLAIN
            },
        ),
        (
            "params",
            Variant {
                dtype: ("float64", 8),
                ..PLAIN
            },
        ),
        (
            "params",
            Variant {
                chunk_bytes: 1000,
                ..PLAIN
            },
        ),
        (
            "params",
            Variant {
                chunk_bytes: 996,
                layers: Layers::Second,
                ..PLAIN
            },
        ),
        (
            "trainstate_params",
            Variant {
                prefix: &["params", "params"],
                ..PLAIN
            },
        ),
    ];
    for (form, variant) in variants {
        let dir = tempfile::tempdir().unwrap();
        let params = write(dir.path(), &stream(variant));
        let out = dir.path().join("model");
        import(&format!("{form}::{}", params.display()), &out).unwrap();
        check_golden(&out);
    }
}

#[test]
fn half_precision_keeps_what_half_precision_can_hold() {
    let dir = tempfile::tempdir().unwrap();
    let params = write(
        dir.path(),
        &stream(Variant {
            dtype: ("float16", 2),
            ..PLAIN
        }),
    );
    let out = dir.path().join("model");
    import(&params.display().to_string(), &out).unwrap();
    let golden = Golden::open("llama/weights.safetensors");
    let weights = Weights::open(&out).unwrap();
    for (name, stored, _) in weights.list() {
        assert_eq!(stored, Stored::Plain(Dtype::F32), "{name}");
    }
    assert_eq!(weights.resident_bytes(), weights.total_bytes());
    assert_eq!(weights.mapped_bytes(), 0);
    for (name, shape, values) in contents(&out) {
        if !name.starts_with("vqgan.") {
            let halves: Vec<f32> = expected(&golden, &name, &shape)
                .iter()
                .map(|v| f16::from_f32(*v).to_f32())
                .collect();
            assert_eq!(values, halves, "{name}");
        }
    }
}

#[test]
fn bf16_matrices_of_the_decoder_stay_mapped_and_the_rest_takes_four_bytes_an_element() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let options = ImportOptions {
        dtype: StoredDtype::Bf16,
        ..ImportOptions::default()
    };
    import_lwm(&files(&golden_params("params_stream_fp32")), &out, options).unwrap();
    let weights = Weights::open(&out).unwrap();
    let (mut mapped, mut resident) = (0, 0);
    for (name, _, shape) in weights.list() {
        let elements = shape.iter().product::<usize>() as u64;
        match (shape.len(), name.starts_with("vqgan.")) {
            (2, false) => mapped += 2 * elements,
            _ => resident += 4 * elements,
        }
    }
    assert_eq!(weights.mapped_bytes(), mapped);
    assert_eq!(weights.resident_bytes(), resident);
    assert!(mapped > 0 && resident > weights.total_bytes() - mapped);
}

#[test]
fn a_flax_document_is_read_like_a_stream() {
    let golden = Golden::open("llama/weights.safetensors");
    let mut tree = serde_json::Map::new();
    for name in golden.names() {
        let mut at = &mut tree;
        let parts: Vec<&str> = name.split('/').collect();
        for part in &parts[..parts.len() - 1] {
            let next = at
                .entry((*part).to_owned())
                .or_insert_with(|| serde_json::json!({}));
            at = next.as_object_mut().unwrap();
        }
        at.insert(parts[parts.len() - 1].to_owned(), name.clone().into());
    }
    fn write_tree(
        golden: &Golden,
        tree: &serde_json::Map<String, serde_json::Value>,
        out: &mut Vec<u8>,
    ) {
        out.push(0x80 | tree.len() as u8);
        for (key, value) in tree {
            out.extend(tux::text(key));
            match value.as_str() {
                None => write_tree(golden, value.as_object().unwrap(), out),
                Some(name) => {
                    let bytes: Vec<u8> = golden
                        .f32(name)
                        .iter()
                        .flat_map(|v| v.to_le_bytes())
                        .collect();
                    out.extend(tux::inner(("float32", 4), &golden.shape(name), &bytes));
                }
            }
        }
    }
    let mut document = Vec::new();
    write_tree(&golden, &tree, &mut document);
    let dir = tempfile::tempdir().unwrap();
    let params = write(dir.path(), &document);
    let out = dir.path().join("model");
    import(&format!("flax_params::{}", params.display()), &out).unwrap();
    check_golden(&out);
}

#[test]
fn shards_stay_within_their_limit_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let options = ImportOptions {
        shard_bytes: 200_000,
        dtype: StoredDtype::Bf16,
        ..ImportOptions::default()
    };
    import_lwm(&files(&golden_params("params_stream_fp32")), &out, options).unwrap();
    check_golden(&out);
    let index: serde_json::Value = serde_json::from_str(
        &fs::read_to_string(out.join("model.safetensors.index.json")).unwrap(),
    )
    .unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let mut shards: Vec<&str> = map.values().map(|v| v.as_str().unwrap()).collect();
    shards.sort();
    shards.dedup();
    assert!(shards.len() > 5, "{shards:?}");
    for shard in &shards {
        assert!(shard.ends_with(&format!("-of-{:05}.safetensors", shards.len())));
        assert!(fs::metadata(out.join(shard)).unwrap().len() < 220_000);
    }
    assert_eq!(map.len(), Weights::open(&out).unwrap().list().count());
}

#[test]
fn every_pickle_variant_holds_what_numpy_wrote() {
    let expected = Golden::open("vqgan/variants/expected.safetensors");
    for name in [
        "dict_numpy_p2",
        "dict_numpy_p5",
        "frozendict_numpy_p4",
        "frozendict_jax_p4",
        "frozendict_bf16_p4",
    ] {
        let file = MappedBytes::open(&golden::path(&format!("vqgan/variants/{name}.pkl"))).unwrap();
        let found = read_pickle(&file).unwrap();
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "quant_conv/bias",
                "quant_conv/kernel",
                "quantize/embeddings"
            ]
        );
        for (tensor, view) in found {
            assert_eq!(view.shape(), expected.shape(&tensor), "{name} {tensor}");
            let mut values = expected.f32(&tensor);
            if name.contains("bf16") {
                values
                    .iter_mut()
                    .for_each(|v| *v = bf16::from_f32(*v).to_f32());
            }
            assert_eq!(view.to_f32().unwrap(), values, "{name} {tensor}");
        }
    }
}

#[test]
fn the_layout_lists_the_golden_vqgan_exactly() {
    let spec: VqganSpec = ModelSpec::from_toml(SPEC).unwrap().vqgan.unwrap();
    let golden = Golden::open("vqgan/weights.safetensors");
    let mut listed: Vec<(String, Vec<usize>)> = layout::vqgan_tensors(&spec)
        .into_iter()
        .map(|(n, s)| (n.trim_start_matches("vqgan.").replace('.', "/"), s))
        .collect();
    listed.sort();
    let mut names = golden.names();
    names.sort();
    let found: Vec<(String, Vec<usize>)> = names
        .into_iter()
        .map(|n| (n.clone(), golden.shape(&n)))
        .collect();
    assert_eq!(listed, found);
}

/// The import of `bytes` is refused with `expected`, and nothing is left behind.
fn refused(bytes: &[u8], expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let params = write(dir.path(), bytes);
    let error = import(&params.display().to_string(), &dir.path().join("model")).unwrap_err();
    assert!(
        error.to_string().contains(expected),
        "expected {expected:?}, got {error}"
    );
    assert_eq!(error.kind(), Kind::BadInput);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "something is left behind"
    );
}

#[test]
fn a_stream_that_does_not_fit_the_model_is_refused_by_name() {
    let whole = stream(PLAIN);
    let lm_head = ["lm_head", "kernel"];
    refused(
        &[
            whole.clone(),
            tux::array(&lm_head, ("float32", 4), &[1], &[0; 4]),
        ]
        .concat(),
        "lm_head/kernel is in the checkpoint twice",
    );
    refused(
        &[
            whole.clone(),
            tux::array(&["extra"], ("float32", 4), &[1], &[0; 4]),
        ]
        .concat(),
        "extra is unknown",
    );
    refused(
        &[
            whole.clone(),
            tux::array(&["extra"], ("int32", 4), &[1], &[0; 4]),
        ]
        .concat(),
        "tensor extra: element type \"int32\"",
    );
    refused(
        &tux::array(&lm_head, ("float32", 4), &[1], &[0; 4]),
        "lm_head/kernel has shape [1], expected [64, 320]",
    );
    refused(
        &tux::array(&lm_head, ("float32", 4), &[1], &[0; 4]),
        "transformer/wte/embedding is missing",
    );
    refused(&[], "no tensors in it");
}

#[test]
fn a_cut_stream_is_refused_wherever_it_is_cut() {
    let whole = fs::read(golden_params("params_stream_bf16")).unwrap();
    for cut in [1, 3, 20, 40, 1000, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..cut], "are left");
    }
}

#[test]
fn the_vqgan_pickle_that_is_cut_or_names_other_globals_is_refused() {
    let whole = fs::read(golden::path("vqgan/vqgan.pkl")).unwrap();
    let system = [
        b"\x80\x04".as_slice(),
        b"cos\nsystem\n",
        b"X\x02\0\0\0ls",
        b"\x85R.",
    ]
    .concat();
    let cases: [(&[u8], &str); 4] = [
        (&whole[..whole.len() / 2], "are left"),
        (&whole[..2], "are left"),
        (&system, "global os.system is not on the list"),
        (
            b"not a pickle",
            "opcode 0x6e at byte 0: not allowed in a checkpoint",
        ),
    ];
    for (bytes, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vqgan.pkl");
        fs::write(&path, bytes).unwrap();
        let files = LwmFiles {
            vqgan: Some(path),
            ..files(&golden_params("params_stream_bf16"))
        };
        let error =
            import_lwm(&files, &dir.path().join("model"), ImportOptions::default()).unwrap_err();
        assert!(
            error.to_string().contains(expected),
            "expected {expected:?}, got {error}"
        );
    }
}

#[test]
fn a_small_file_of_many_or_long_names_does_not_fill_the_memory() {
    let map = |n: u32| [&[0xdf], n.to_be_bytes().as_slice()].concat();
    let key = |n: usize| [&[0xda], (n as u16).to_be_bytes().as_slice(), &vec![b'k'; n]].concat();
    let leaf = tux::inner(("float32", 4), &[1], &[0; 4]);
    let many = [
        map(70_000),
        [tux::text("k"), leaf.clone()].concat().repeat(70_000),
    ]
    .concat();
    let deep = [map(1), key(250)].concat().repeat(31);
    let long = [
        deep,
        map(3000),
        [tux::text("k"), leaf.clone()].concat().repeat(3000),
    ]
    .concat();
    for (document, expected) in [
        (many, "more than 65536 maps and tensors"),
        (long, "paths take more than 16777216 bytes"),
        (
            [map(1), key(300), leaf].concat(),
            "a key of 300 bytes, expected at most 256",
        ),
    ] {
        let error = msgpack::document(&document).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn dicts_that_share_dicts_are_counted_as_often_as_they_are_named() {
    let text = |s: &str| {
        [
            b"X",
            (s.len() as u32).to_le_bytes().as_slice(),
            s.as_bytes(),
        ]
        .concat()
    };
    // Each of 20 dicts holds the one before it twice.
    let mut pickle = b"\x80\x02}q\x00".to_vec();
    for i in 0..20_u8 {
        pickle.extend(b"}(");
        for key in ["a", "b"] {
            pickle.extend([text(key), vec![b'h', i]].concat());
        }
        pickle.extend([b'u', b'q', i + 1]);
    }
    pickle.push(b'.');
    let dir = tempfile::tempdir().unwrap();
    let file = MappedBytes::open(&write(dir.path(), &pickle)).unwrap();
    let error = read_pickle(&file).err().unwrap().to_string();
    assert!(
        error.contains("more than 65536 maps and tensors"),
        "{error}"
    );
}

#[test]
fn a_stopped_import_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let calls = Cell::new(0);
    let mut last = 0;
    let options = ImportOptions {
        progress: &mut |done, total| {
            assert!(done > last && done <= total);
            last = done;
        },
        keep_going: &|| calls.replace(calls.get() + 1) < 5,
        ..ImportOptions::default()
    };
    let error = import_lwm(
        &files(&golden_params("params_stream_bf16")),
        &dir.path().join("model"),
        options,
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn only_a_model_is_replaced_and_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let params = golden_params("params_stream_bf16");
    import(&params, &out).unwrap();
    let error = import(&params, &out).unwrap_err().to_string();
    assert!(
        error.contains("exists and is not empty (--force replaces a model)"),
        "{error}"
    );
    let force = || ImportOptions {
        force: true,
        ..ImportOptions::default()
    };
    import_lwm(&files(&params), &out, force()).unwrap();
    check_golden(&out);
    fs::write(out.join("thesis.txt"), "years of work").unwrap();
    let error = import_lwm(&files(&params), &out, force())
        .unwrap_err()
        .to_string();
    assert!(error.contains("it holds thesis.txt"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn verify_counts_missing_unknown_misshapen_and_nan_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    import(&golden_params("params_stream_bf16"), &out).unwrap();
    let shard = out.join("model-00001-of-00001.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let end = bytes.len();
    // The last two bf16 values of the last tensor become NaN and infinity.
    bytes[end - 4..].copy_from_slice(&[0xc0, 0x7f, 0x80, 0xff]);
    fs::write(&shard, bytes).unwrap();
    let config = fs::read_to_string(out.join("config.json")).unwrap();
    fs::write(
        out.join("config.json"),
        config.replace("\"vocab_size\": 320", "\"vocab_size\": 321"),
    )
    .unwrap();
    let report = verify(&folders::system(&out), &no_vision, &|| true).unwrap();
    assert!(!report.is_sound());
    assert_eq!(report.not_finite.values().copied().collect::<Vec<_>>(), [2]);
    assert_eq!(report.misshapen.len(), 2, "{report}");
    fs::write(
        out.join("config.json"),
        config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
    )
    .unwrap();
    assert_eq!(
        verify(&folders::system(&out), &no_vision, &|| true)
            .unwrap()
            .unknown
            .len(),
        9
    );
    fs::write(
        out.join("config.json"),
        config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
    )
    .unwrap();
    assert_eq!(
        verify(&folders::system(&out), &no_vision, &|| true)
            .unwrap()
            .missing
            .len(),
        9
    );
    let error = verify(&folders::system(&out), &no_vision, &|| false).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
}

#[test]
fn every_file_of_lwm_parses_and_names_its_layers() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/models");
    let mut n_files = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // `model_files` reads the others.
        if !path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("lwm-")
        {
            continue;
        }
        let spec = ModelSpec::from_toml(&fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let again = ModelSpec::from_json(&spec.to_json().unwrap()).unwrap();
        assert_eq!(again, spec);
        let parameters: usize = layout::decoder_tensors(&spec.decoder)
            .iter()
            .map(|(_, s)| s.iter().product::<usize>())
            .sum();
        assert!(
            (6_700_000_000..6_900_000_000).contains(&parameters),
            "{parameters}"
        );
        n_files += 1;
    }
    assert!(n_files >= 8);
}

#[test]
fn a_misspelt_key_is_named_with_the_keys_there_are() {
    let error = ModelSpec::from_toml(&SPEC.replace("rope_theta", "rope_tetha")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "read the model's configuration: TOML parse error at line 14, column 1    | 14 | rope_tetha = 5e7    | ^^^^^^^^^^ unknown field `rope_tetha`, expected one of `vocab_size`, `vision_vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`, `head_dim`, `max_position_embeddings`, `rms_norm_eps`, `rope_theta`, `rope_pairs`, `tie_word_embeddings`, `sliding_window`, `qkv_bias`, `attention_output_bias`, `mlp_bias`, `qk_norm`, `experts`, `rope_scaling`, `mrope`, `deepstack_layers`"
    );
}

/// The models here have no encoder beside their VQGAN.
fn no_vision(_: &mut Weights) -> longreel_models::error::Result<()> {
    Ok(())
}
