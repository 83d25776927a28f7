//! Decoders in GGUF files give transformers' logits, their vocabularies the ids of the tokenizers
//! they were made from (`tests/golden/gguf.py`).

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use longreel_kernels::quantized::{Format, widen};
use longreel_models::{
    attention::kv_cache::{KvCache, KvDtype},
    checkpoint::{gguf::Header, layout::decoder_tensors},
    context::{gguf, tokenizer::Tokenizer, vocab::Token},
    llama::{Decoder, Head, Positions, Row},
    spec::RopePairs,
    systems::gguf::{GgufModel, gguf_of, with_decoder},
};
use serde_json::Value;

use crate::support::{
    folders,
    gguf::{BF16, GgufFile, Said},
    golden::{self, Golden, assert_close},
};

/// Files with logits. Multiplied in place, quantized files are held to what the others are held to: x is not rounded.
const CASES: [&str; 9] = [
    "llama_f32",
    "llama_f16",
    "llama_bf16",
    "llama_mixed",
    "llama_k",
    "llama_3",
    "mixtral",
    "qwen2_q4_0",
    "qwen3_q8_0",
];
/// Against transformers', and one sum taken in another order.
const LOGITS: f32 = 1e-4;

fn file(name: &str) -> PathBuf {
    golden::path(&format!("gguf/{name}.gguf"))
}

/// Multiplied where the file has them.
fn decoder(path: &Path) -> Decoder {
    load(path, true)
}

fn load(path: &Path, in_place: bool) -> Decoder {
    let file = GgufModel::open(path).unwrap();
    let mut weights = file.weights().unwrap();
    if in_place {
        weights.keep_blocks_in_place();
    }
    let decoder = Decoder::load(&file.decoder().unwrap(), &mut weights).unwrap();
    weights.finish().unwrap();
    decoder
}

fn tokens(case: &str) -> Vec<Token> {
    let ids = Golden::open(&format!("gguf/{case}.safetensors")).i32("ids");
    let ids = ids.into_iter();
    ids.map(|id| Token::Text(id.try_into().unwrap())).collect()
}

/// Logits of tokens that go through the decoder in pieces of `chunk`.
fn logits(decoder: &Decoder, tokens: &[Token], chunk: usize) -> Vec<f32> {
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
    let mut all = Vec::new();
    for piece in tokens.chunks(chunk) {
        let first = cache.next_position();
        let positions: Vec<u32> = (0..piece.len() as u32).map(|i| first + i).collect();
        let mut rows = [Row {
            tokens: piece,
            positions: Positions::Line(&positions),
            segments: None,
            features: &[],
            cache: &mut cache,
        }];
        let hidden: Tensor = decoder.forward(&mut rows).unwrap();
        let logits = decoder.logits(&hidden, Head::Text).unwrap();
        all.extend(logits.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
    all
}

#[test]
fn logits_of_every_file_are_those_of_transformers() {
    for case in CASES {
        let expected = Golden::open(&format!("gguf/{case}.safetensors")).f32("logits");
        let got = logits(&decoder(&file(case)), &tokens(case), 40);
        let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        println!("{case}: {:.1e} away", worst.fold(0.0, f32::max));
        assert_close(case, &got, &expected, LOGITS);
    }
}

/// Candle rounds x to 8 bits a number, as llama.cpp does: by 1/254 of the largest of 32 or 256 numbers at most. Random
/// weights of few channels hide that least: the logits of such a decoder are off by up to an eighth of the largest.
const ROUNDED: f32 = 0.15;

#[test]
fn copies_give_the_logits_up_to_the_rounding_of_x() {
    for case in CASES {
        let expected = Golden::open(&format!("gguf/{case}.safetensors")).f32("logits");
        let most = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        let (decoder, tokens) = (load(&file(case), false), tokens(case));
        let whole = logits(&decoder, &tokens, 40);
        assert_close(case, &whole, &expected, ROUNDED * most);
        let errors: f32 = whole
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).powi(2))
            .sum();
        let signal: f32 = expected.iter().map(|x| x * x).sum();
        let off = (errors / signal).sqrt();
        println!("{case}: {off:.1e} of its length away");
        assert!(off < 0.06, "{case}: {off} of its length away");
        for chunk in [1, 7, 39] {
            let got = logits(&decoder, &tokens, chunk);
            assert_close(&format!("{case} by {chunk}"), &got, &whole, ROUNDED * most);
        }
    }
}

#[test]
fn pieces_of_any_length_give_what_the_whole_gives() {
    for case in ["llama_mixed", "llama_k", "qwen2_q4_0", "qwen3_q8_0"] {
        let (decoder, tokens) = (decoder(&file(case)), tokens(case));
        let whole = logits(&decoder, &tokens, 40);
        for chunk in [1, 2, 7, 39] {
            let got = logits(&decoder, &tokens, chunk);
            assert_close(&format!("{case} by {chunk}"), &got, &whole, LOGITS);
        }
    }
}

#[test]
fn blocks_stand_for_the_weights_that_their_writer_reads() {
    let golden = Golden::open("gguf/blocks.safetensors");
    let mut seen = 0;
    for format in Format::ALL {
        // gguf has no reader of Q8_K; the kernels compare it with candle's.
        if format == Format::Q8K {
            continue;
        }
        let expected = golden.f32(&format!("{format}.weights"));
        let mut got = vec![f32::NAN; expected.len()];
        widen(format, &golden.u8(&format.to_string()), &mut got);
        // One product and one sum, rounded together or apart.
        let most = expected.iter().fold(0f32, |most, w| most.max(w.abs()));
        assert_close(&format.to_string(), &got, &expected, 1e-6 * most);
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn rows_are_looked_up_where_they_are_mapped() {
    let file = GgufModel::open(&file("llama_k")).unwrap();
    let mut weights = file.weights().unwrap();
    let (hidden, vocab) = (256, 64);
    let name = "model.embed_tokens.weight";
    let whole = weights.tensor(name, &[vocab, hidden]).unwrap();
    let whole: Vec<f32> = whole.flatten_all().unwrap().to_vec1().unwrap();
    let table = longreel_models::layers::linear::Linear::load(&mut weights, name, vocab, hidden);
    let table = table.unwrap();
    for id in [0, 1, 63] {
        let mut row = vec![7.0];
        table.append_row(id, &mut row).unwrap();
        let at = id as usize * hidden;
        assert_eq!(row[1..], whole[at..at + hidden], "row {id}");
    }
    let error = table.append_row(64, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("outside the vocabulary of 64"));
}

#[test]
fn quantized_matrices_stay_mapped_and_norms_take_four_bytes_an_element() {
    let file = GgufModel::open(&file("llama_k")).unwrap();
    let mut weights = file.weights().unwrap();
    let copied = weights.resident_bytes();
    assert!(weights.mapped_bytes() < weights.total_bytes() / 2);
    weights.keep_blocks_in_place();
    assert!(copied > weights.resident_bytes() + weights.mapped_bytes() / 2);
    let (mut mapped, mut resident) = (0, 0);
    for (name, _, shape) in weights.list() {
        match shape.len() {
            2 => mapped += weights.bytes(name).unwrap().len() as u64,
            _ => resident += 4 * shape.iter().product::<usize>() as u64,
        }
    }
    assert_eq!(weights.mapped_bytes(), mapped);
    assert_eq!(weights.resident_bytes(), resident);
    // 4.9 bits a weight.
    let elements = decoder_tensors(&file.decoder().unwrap());
    let elements: usize = elements
        .iter()
        .map(|(_, s)| s.iter().product::<usize>())
        .sum();
    let bits = 8.0 * mapped as f64 / elements as f64;
    assert!((4.0..6.0).contains(&bits), "{bits}");
}

#[test]
fn a_model_in_several_files_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let whole = GgufFile::decoder_of(&golden::path("decoders/qwen3"), BF16);
    whole.write(&dir.path().join("whole.gguf"));
    let name = |n: usize| dir.path().join(format!("part-{n:05}-of-00003.gguf"));
    let mut rest = whole.tensors.clone();
    for n in 1..=3 {
        let mut part = GgufFile {
            values: if n == 1 {
                whole.values.clone()
            } else {
                Vec::new()
            },
            tensors: rest.drain(..rest.len() / (4 - n)).collect(),
        };
        part.say("split.count", Said::Small(3));
        part.write(&name(n));
    }
    let tokens: Vec<Token> = (0..30).map(|i| Token::Text(i * 7 % 48)).collect();
    let expected = logits(&decoder(&dir.path().join("whole.gguf")), &tokens, 30);
    assert_eq!(logits(&decoder(&name(1)), &tokens, 30), expected);
    let error = GgufModel::open(&name(2)).err().unwrap().to_string();
    assert!(
        error.contains("it is one of 3 parts, expected the first"),
        "{error}"
    );
    std::fs::remove_file(dir.path().join("whole.gguf")).unwrap();
    assert_eq!(gguf_of(dir.path()).unwrap(), Some(name(1)));
    std::fs::remove_file(name(3)).unwrap();
    let error = GgufModel::open(&name(1)).err().unwrap().to_string();
    assert!(error.contains("part-00003-of-00003.gguf"), "{error}");
}

#[test]
fn a_decoder_of_a_file_gives_what_the_folder_gives() {
    for folder in ["decoders/qwen2", "decoders/qwen3", "answers/llava15"] {
        let dir = golden::path(folder);
        let (spec, weights) = (folders::answering(&dir), folders::weights(&dir));
        let (spec, mut weights) = (spec.unwrap(), weights.unwrap());
        let own = Decoder::load(&spec.decoder, &mut weights).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("decoder.gguf");
        GgufFile::decoder_of(&dir, crate::support::gguf::F32).write(&path);
        let file = GgufModel::open(&path).unwrap();
        let weights = folders::weights(&dir).unwrap();
        let (spec, mut weights) = with_decoder((spec, weights), &file).unwrap();
        let is_llama = folder == "answers/llava15";
        let pairs = if is_llama {
            RopePairs::Adjacent
        } else {
            RopePairs::Halves
        };
        assert_eq!(spec.decoder.rope_pairs, pairs, "{folder}");
        let taken = Decoder::load(&spec.decoder, &mut weights).unwrap();
        let tokens: Vec<Token> = (0..40).map(|i| Token::Text(i * 11 % 48)).collect();
        let (got, expected) = (logits(&taken, &tokens, 40), logits(&own, &tokens, 40));
        assert_close(folder, &got, &expected, LOGITS);
    }
}

#[test]
fn a_decoder_of_another_shape_is_refused_with_both_numbers() {
    let dir = golden::path("decoders/qwen3");
    for (key, value, expected) in [
        (
            "qwen3.block_count",
            Said::Number(3),
            "num_hidden_layers of the folder's configuration is 2, of the GGUF file 3",
        ),
        (
            "qwen3.feed_forward_length",
            Said::Number(41),
            "intermediate_size of the folder's configuration is 40, of the GGUF file 41",
        ),
        (
            "qwen3.rope.freq_base",
            Said::Float(500.0),
            "rope_theta of the folder's configuration is 10000, of the GGUF file 500",
        ),
    ] {
        let mut file = GgufFile::decoder_of(&dir, BF16);
        file.say(key, value);
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("decoder.gguf");
        file.write(&path);
        let model = (
            folders::answering(&dir).unwrap(),
            folders::weights(&dir).unwrap(),
        );
        let error = with_decoder(model, &GgufModel::open(&path).unwrap());
        let error = error.err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// What `spoil` makes of a file that is well as it is, as the sentence that refuses it.
fn refused(spoil: impl FnOnce(&mut GgufFile)) -> String {
    let mut file = GgufFile::decoder_of(&golden::path("decoders/qwen3"), BF16);
    spoil(&mut file);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    file.write(&path);
    let open = || {
        let file = GgufModel::open(&path)?;
        let (spec, mut weights) = (file.decoder()?, file.weights()?);
        Decoder::load(&spec, &mut weights)?;
        weights.finish()
    };
    open()
        .err()
        .map_or("not refused".to_owned(), |e| e.to_string())
}

#[test]
fn unsupported_features_are_refused_by_name() {
    assert_eq!(refused(|_| {}), "not refused");
    let say = |key: &'static str, value: Said| refused(move |file| file.say(key, value));
    let text = |text: &str| Said::Text(text.to_owned());
    for (error, expected) in [
        (
            say("general.architecture", text("gemma3")),
            "general.architecture is \"gemma3\", expected one of llama, qwen2, qwen2vl, qwen3, qwen3vl",
        ),
        (
            say("qwen3.rope.scaling.type", text("longrope")),
            "is \"longrope\", expected one of",
        ),
        (
            say("qwen3.rope.dimension_count", Said::Number(6)),
            "rope.dimension_count is 6, expected 12",
        ),
        (
            say("qwen3.attention.value_length", Said::Number(8)),
            "attention.value_length is 8, expected 12",
        ),
        (
            say("qwen3.attention.scale", Said::Float(0.5)),
            "attention.scale is 0.5, expected 0.0",
        ),
        (
            say("qwen3.rope.scale_linear", Said::Float(4.0)),
            "rope.scale_linear is 4.0, expected 1.0",
        ),
        (
            say("qwen3.attention.head_count_kv", Said::Numbers(vec![2, 1])),
            "num_key_value_heads: invalid type: sequence",
        ),
        (
            say("qwen3.embedding_length", text("wide")),
            "hidden_size: invalid type: string \"wide\"",
        ),
        (
            say("general.alignment", Said::Number(7)),
            "general.alignment is",
        ),
        (
            refused(|file| file.tensor("blk.0.attn_q.weight").kind = 23),
            "tensor blk.0.attn_q.weight: it is stored as IQ4_XS, expected F32, F16, BF16, Q4_0",
        ),
        (
            refused(|file| file.tensor("blk.0.attn_q.weight").kind = 99),
            "it is stored as type 99",
        ),
        (
            refused(|file| file.tensor("blk.1.ffn_up.weight").kind = 12),
            "tensor blk.1.ffn_up.weight: its rows have 32 numbers, expected a multiple of 256 (a block of Q4_K)",
        ),
        (
            refused(|file| file.tensors.retain(|t| t.name != "blk.1.ffn_up.weight")),
            "tensor model.layers.1.mlp.up_proj.weight is missing, expected shape [40, 32]",
        ),
        (
            refused(|file| file.tensor("blk.1.ffn_up.weight").shape = vec![20, 64]),
            "tensor model.layers.1.mlp.up_proj.weight has shape [20, 64], expected [40, 32]",
        ),
        (
            refused(|file| {
                let mut more = file.tensor("blk.1.ffn_up.weight").clone();
                more.name = "blk.1.ffn_sideways.weight".to_owned();
                file.tensors.push(more);
            }),
            "the model does not use 1 tensors: model.layers.1.ffn_sideways.weight",
        ),
        (
            refused(|file| {
                let more = file.tensor("output_norm.weight").clone();
                file.tensors.push(more);
            }),
            "tensor output_norm.weight is in more than one file",
        ),
        (
            refused(|file| {
                let mut divisors = file.tensor("output_norm.weight").clone();
                divisors.name = "rope_freqs.weight".to_owned();
                divisors.shape = vec![32];
                file.tensors.push(divisors);
            }),
            "tensor model.rope_divisors has shape [32], expected [6]",
        ),
    ] {
        assert!(
            error.contains(expected),
            "expected {expected:?}, got {error:?}"
        );
    }
}

#[test]
fn cut_and_foreign_files_are_refused_wherever_they_end() {
    let whole = std::fs::read(file("qwen2_q4_0")).unwrap();
    assert!(Header::read(&whole).is_ok());
    for end in (0..whole.len()).step_by(13) {
        Header::read(&whole[..end]).err().unwrap();
    }
    let mut file = whole.clone();
    file[..4].copy_from_slice(b"GGML");
    let error = Header::read(&file).err().unwrap().to_string();
    assert!(error.contains("expected GGUF"), "{error}");
    let mut file = whole.clone();
    file[4..8].copy_from_slice(&3u32.to_be_bytes());
    let error = Header::read(&file).err().unwrap().to_string();
    assert!(error.contains("big-endian"), "{error}");
    let mut file = whole;
    file[4] = 1;
    let error = Header::read(&file).err().unwrap().to_string();
    assert!(error.contains("version is 1, expected 2 or 3"), "{error}");
}

fn cases() -> Value {
    let text = std::fs::read_to_string(golden::path("gguf/tokenizers.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn tokenizer_of(name: &str) -> Tokenizer {
    let file = GgufModel::open(&file(name)).unwrap();
    gguf::tokenizer(&file.header().unwrap()).unwrap()
}

#[test]
fn byte_vocabularies_give_the_ids_of_the_tokenizers_that_they_were_made_from() {
    let mut seen = 0;
    for (name, case) in cases().as_object().unwrap() {
        let tokenizer = tokenizer_of(name);
        let texts = case["texts"].as_array().unwrap();
        for (i, text) in texts.iter().enumerate() {
            let text = text.as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(case["ids"][i].clone()).unwrap();
            let got = tokenizer.encode(text).unwrap();
            assert_eq!(got, expected, "{name}: {text:?}");
            let decoded = tokenizer.decode(&got, true).unwrap();
            assert_eq!(decoded, case["decoded"][i], "{name}: {text:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 40);
}

#[test]
fn pieces_give_the_ids_of_the_file_that_they_were_made_from() {
    let (got, expected) = (
        tokenizer_of("pieces"),
        Tokenizer::open(&golden::path("tokenizer")).unwrap(),
    );
    let text = std::fs::read_to_string(golden::path("tokenizer/cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let cases = cases["encode"]["auto_fast_nobos"]["cases"]
        .as_array()
        .unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids = expected.encode_plain(text).unwrap();
        assert_eq!(got.encode_plain(text).unwrap(), ids, "{text:?}");
        // The first token stands before a text where the file does not say otherwise.
        let first = got.bos_id().into_iter();
        assert_eq!(
            got.encode(text).unwrap(),
            first.chain(ids).collect::<Vec<_>>()
        );
    }
    for id in [Tokenizer::bos_id, Tokenizer::eos_id, Tokenizer::unk_id] {
        assert_eq!(id(&got), id(&expected));
    }
}

#[test]
fn vocabularies_that_do_not_fit_together_are_refused() {
    let text = |text: &str| Said::Text(text.to_owned());
    let texts = |list: &[&str]| Said::Texts(list.iter().map(|&t| t.to_owned()).collect());
    let vocabulary = || {
        let mut file = GgufFile::default();
        file.say("tokenizer.ggml.model", text("gpt2"));
        file.say("tokenizer.ggml.tokens", texts(&["a", "b", "ab"]));
        file.say("tokenizer.ggml.merges", texts(&["a b"]));
        file
    };
    let read = |file: &GgufFile| {
        let bytes = file.bytes();
        gguf::tokenizer(&Header::read(&bytes).unwrap()).map(drop)
    };
    read(&vocabulary()).unwrap();
    for (key, value, expected) in [
        ("model", text("unigram"), "expected llama or gpt2"),
        (
            "pre",
            text("tekken"),
            "tokenizer.ggml.pre is \"tekken\", expected one of default, gpt-2, llama-bpe",
        ),
        (
            "tokens",
            Said::Number(3),
            "tokenizer.ggml.tokens is 3, expected an array",
        ),
        (
            "tokens",
            texts(&["a", "a", "ab"]),
            "expected two tokens that make a third",
        ),
        ("tokens", texts(&["a", "b", "ab", "b"]), "has a token twice"),
        ("merges", texts(&["b a"]), "the merge \"b a\""),
        ("merges", Said::Numbers(vec![1]), "expected texts"),
        (
            "token_type",
            Said::Numbers(vec![1]),
            "has 1 values, expected one for each of 3 tokens",
        ),
        (
            "eos_token_id",
            Said::Number(3),
            "is 3, expected one of 3 tokens",
        ),
        ("model", text("llama"), "tokenizer.ggml.scores is missing"),
    ] {
        let mut file = vocabulary();
        file.say(&format!("tokenizer.ggml.{key}"), value);
        let error = read(&file).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "expected {expected:?}, got {error:?}"
        );
    }
}
