//! The decoder gives LWM's logits, layer by layer, however its input is cut:
//! whole, in chunks, with a cache, in a batch, packed.

use candle_core::Tensor;
use longreel_models::{
    attention::kv_cache::{KvCache, KvDtype},
    checkpoint::weights::Weights,
    context::vocab::Token,
    error::Kind,
    llama::{Decoder, Head, Positions, Row, Unpadded, rope::Rope},
    spec::{DecoderSpec, RopePairs, rope_scaling::RopeScaling},
};
use safetensors::Dtype;

use crate::support::{
    folder_cases::FolderCase,
    folders,
    golden::{self, Golden, assert_close},
    tiny_decoder::{Tiny, row, some_tokens},
};

/// The manifest's tolerances are 1e-4 to 1.29e-4.
const LOGITS: f32 = 1e-4;
/// One sum taken in another order.
const REORDERED: f32 = 1e-5;

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn cases() -> Golden {
    Golden::open("llama/cases.safetensors")
}

fn new_cache(decoder: &Decoder) -> KvCache {
    KvCache::new(decoder.spec(), KvDtype::F32)
}

/// Appends tokens at the positions that follow → hidden states.
fn append(decoder: &Decoder, cache: &mut KvCache, tokens: &[Token]) -> Vec<f32> {
    let first = cache.next_position();
    let positions: Vec<u32> = (0..tokens.len() as u32).map(|i| first + i).collect();
    let mut rows = [Row {
        tokens,
        positions: Positions::Line(&positions),
        segments: None,
        features: &[],
        cache,
    }];
    numbers(&decoder.forward(&mut rows).unwrap())
}

fn whole(decoder: &Decoder, tokens: &[Token]) -> Vec<f32> {
    append(decoder, &mut new_cache(decoder), tokens)
}

fn unsigned(values: Vec<i32>) -> Vec<u32> {
    values.into_iter().map(|v| v.try_into().unwrap()).collect()
}

/// Hidden states of a golden row whose positions and segments are given.
fn packed(decoder: &Decoder, case: &str, trace: &mut dyn FnMut(&str, &[f32])) -> Tensor {
    let file = cases();
    let tokens = row(&file, case, 0).tokens;
    let positions = unsigned(file.i32(&format!("{case}.position_ids")));
    let segments = unsigned(file.i32(&format!("{case}.segment_ids")));
    let mut cache = new_cache(decoder);
    let mut rows = [Row {
        tokens: &tokens,
        positions: Positions::Line(&positions),
        segments: Some(&segments),
        features: &[],
        cache: &mut cache,
    }];
    decoder.forward_traced(&mut rows, trace).unwrap()
}

fn check_heads(decoder: &Decoder, case: &str, hidden: &Tensor) {
    for (head, name) in [(Head::Vision, "vision_logits"), (Head::Text, "text_logits")] {
        let got = numbers(&decoder.logits(hidden, head).unwrap());
        let name = format!("{case}.{name}");
        assert_close(&name, &got, &cases().f32(&name), LOGITS);
    }
}

#[test]
fn logits_of_both_heads_are_the_official_ones() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let decoder = Tiny::golden().load(dtype);
        for case in ["plain", "packed_restart"] {
            check_heads(&decoder, case, &packed(&decoder, case, &mut |_, _| {}));
        }
    }
}

#[test]
fn a_left_padded_batch_gives_the_official_logits_without_computing_pads() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let file = cases();
    let inputs: Vec<Unpadded> = (0..2).map(|i| row(&file, "leftpad", i)).collect();
    assert_eq!(
        inputs.iter().map(|r| r.tokens.len()).collect::<Vec<_>>(),
        [192, 155]
    );
    let mut caches = [new_cache(&decoder), new_cache(&decoder)];
    let mut rows: Vec<Row> = inputs
        .iter()
        .zip(&mut caches)
        .map(|(row, cache)| Row {
            tokens: &row.tokens,
            positions: Positions::Line(&row.positions),
            segments: None,
            features: &[],
            cache,
        })
        .collect();
    let hidden = decoder.forward(&mut rows).unwrap();
    for (head, name, width) in [(Head::Vision, "vision", 144), (Head::Text, "text", 320)] {
        let got = numbers(&decoder.logits(&hidden, head).unwrap());
        let expected = file.f32(&format!("leftpad.{name}_logits"));
        let (first, second) = expected.split_at(192 * width);
        assert_close(
            name,
            &got,
            &[first, &second[(192 - 155) * width..]].concat(),
            LOGITS,
        );
    }
}

#[test]
fn logits_of_the_golden_continuation_are_the_official_ones_one_token_at_a_time() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let (file, expected) = (cases(), cases().f32("decode.text_logits"));
    for (i, continuation) in unsigned(file.i32("decode.tokens")).chunks(24).enumerate() {
        let mut cache = new_cache(&decoder);
        let mut hidden = append(&decoder, &mut cache, &row(&file, "leftpad", i).tokens);
        for (step, &id) in continuation.iter().enumerate() {
            let last = Tensor::from_slice(
                &hidden[hidden.len() - 64..],
                (1, 64),
                &candle_core::Device::Cpu,
            )
            .unwrap();
            let got = numbers(&decoder.logits(&last, Head::Text).unwrap());
            let at = (i * 24 + step) * 320;
            assert_close(
                &format!("row {i} step {step}"),
                &got,
                &expected[at..at + 320],
                LOGITS,
            );
            hidden = append(&decoder, &mut cache, &[Token::Text(id)]);
        }
    }
}

/// The first step whose output is not that of `layers.safetensors`, with its largest error.
fn first_wrong_step(tiny: &Tiny, case: &str) -> Option<(String, f32)> {
    const EVERY: usize = 4;
    let expected = Golden::open("llama/layers.safetensors");
    let mut wrong = None;
    let mut seen = 0;
    packed(&tiny.load(Dtype::F32), case, &mut |step, output| {
        seen += 1;
        let kept: Vec<f32> = output
            .chunks(64)
            .step_by(EVERY)
            .flatten()
            .copied()
            .collect();
        let expected = expected.f32(&format!("{case}.{step}"));
        assert_eq!(kept.len(), expected.len());
        let error = kept
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        if error > 2e-5 && wrong.is_none() {
            wrong = Some((step.to_owned(), error));
        }
    });
    assert_eq!(seen, 6, "embedding, two steps of two layers, norm");
    wrong
}

#[test]
fn every_layer_is_that_of_the_independent_computation() {
    for case in ["plain", "packed_restart"] {
        assert_eq!(
            first_wrong_step(&Tiny::golden(), case),
            None,
            "{case}: first wrong step"
        );
    }
}

#[test]
fn a_wrong_weight_is_named_by_the_first_layer_it_spoils() {
    for (weight, step) in [
        ("model.embed_tokens", "embedding"),
        ("model.layers.0.self_attn.v_proj", "layers.0.attention"),
        ("model.layers.0.mlp.up_proj", "layers.0"),
        ("model.layers.1.self_attn.q_proj", "layers.1.attention"),
        ("model.layers.1.mlp.down_proj", "layers.1"),
        ("model.norm", "norm"),
    ] {
        let mut tiny = Tiny::golden();
        for element in tiny.matrix(&format!("{weight}.weight")).iter_mut() {
            *element *= 1.05;
        }
        let wrong = first_wrong_step(&tiny, "plain").map(|(step, _)| step);
        assert_eq!(wrong.as_deref(), Some(step), "{weight}");
    }
}

#[test]
fn chunked_prefill_is_whole_prefill() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(300);
    let expected = whole(&decoder, &tokens);
    for chunk in [1, 7, 64, 256, 300] {
        let mut cache = new_cache(&decoder);
        let got: Vec<f32> = tokens
            .chunks(chunk)
            .flat_map(|c| append(&decoder, &mut cache, c))
            .collect();
        assert_close(&format!("chunks of {chunk}"), &got, &expected, REORDERED);
    }
}

#[test]
fn a_batch_is_its_rows_one_by_one() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let all = some_tokens(120);
    let texts = [&all[..50], &all[50..51], &all[51..120]];
    let positions: Vec<Vec<u32>> = texts
        .iter()
        .map(|t| (0..t.len() as u32).collect())
        .collect();
    let mut caches: Vec<KvCache> = texts.iter().map(|_| new_cache(&decoder)).collect();
    let mut rows: Vec<Row> = texts
        .iter()
        .zip(&positions)
        .zip(&mut caches)
        .map(|((tokens, positions), cache)| Row {
            tokens,
            positions: Positions::Line(positions),
            segments: None,
            features: &[],
            cache,
        })
        .collect();
    let got = numbers(&decoder.forward(&mut rows).unwrap());
    let expected: Vec<f32> = texts.iter().flat_map(|t| whole(&decoder, t)).collect();
    assert_close("batch", &got, &expected, REORDERED);
}

#[test]
fn packed_segments_are_separate_contexts_and_the_last_goes_on_in_the_cache() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(400);
    let (first, second) = tokens[..390].split_at(130);
    let segments: Vec<u32> = [vec![7; 130], vec![3; 260]].concat();
    let positions: Vec<u32> = (0..130).chain(0..260).collect();
    let mut cache = new_cache(&decoder);
    let mut rows = [Row {
        tokens: &tokens[..390],
        positions: Positions::Line(&positions),
        segments: Some(&segments),
        features: &[],
        cache: &mut cache,
    }];
    let got = numbers(&decoder.forward(&mut rows).unwrap());
    assert_close(
        "packed",
        &got,
        &[whole(&decoder, first), whole(&decoder, second)].concat(),
        REORDERED,
    );

    let got = append(&decoder, &mut cache, &tokens[390..]);
    let alone = whole(&decoder, &tokens[130..]);
    assert_close("after packing", &got, &alone[260 * 64..], REORDERED);
}

#[test]
fn forks_of_a_context_diverge_as_if_they_had_been_separate() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(330);
    let (shared, a, b) = (&tokens[..280], &tokens[280..300], &tokens[300..]);
    let mut first = new_cache(&decoder);
    append(&decoder, &mut first, shared);
    let mut second = first.fork();
    let got_a = append(&decoder, &mut first, a);
    let got_b = append(&decoder, &mut second, b);
    for (name, got, tail) in [("first", got_a, a), ("second", got_b, b)] {
        let alone = whole(&decoder, &[shared, tail].concat());
        assert_close(name, &got, &alone[280 * 64..], REORDERED);
    }
}

#[test]
fn a_truncated_context_is_the_shorter_one() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(600);
    let mut cache = new_cache(&decoder);
    append(&decoder, &mut cache, &tokens[..550]);
    cache.truncate(270);
    assert_eq!((cache.len(), cache.next_position()), (270, 270));
    assert_eq!(
        cache.bytes(),
        KvCache::bytes_for(decoder.spec(), 270, KvDtype::F32)
    );
    let got = append(&decoder, &mut cache, &tokens[580..]);
    let alone = whole(&decoder, &[&tokens[..270], &tokens[580..]].concat());
    assert_close("after truncation", &got, &alone[270 * 64..], REORDERED);
}

#[test]
fn grouped_heads_are_full_heads_that_repeat() {
    let mut grouped = Tiny::golden();
    grouped.spec.num_key_value_heads = Some(2);
    let mut full = grouped.clone();
    full.spec.num_key_value_heads = None;
    for layer in 0..2 {
        for part in ["k_proj", "v_proj"] {
            let name = format!("model.layers.{layer}.self_attn.{part}.weight");
            let two_heads = grouped.matrix(&name)[..32 * 64].to_vec();
            let repeated: Vec<f32> = two_heads
                .chunks(16 * 64)
                .flat_map(|head| [head, head].concat())
                .collect();
            grouped
                .tensors
                .insert(name.clone(), (vec![32, 64], two_heads));
            full.tensors.insert(name, (vec![64, 64], repeated));
        }
    }
    let tokens = some_tokens(300);
    let got = whole(&grouped.load(Dtype::F32), &tokens);
    assert_close(
        "grouped heads",
        &got,
        &whole(&full.load(Dtype::F32), &tokens),
        REORDERED,
    );
}

#[test]
fn rotated_halves_are_adjacent_pairs_with_permuted_weights() {
    let adjacent = Tiny::golden();
    let mut halves = adjacent.clone();
    halves.spec.rope_pairs = RopePairs::Halves;
    for layer in 0..2 {
        for part in ["q_proj", "k_proj"] {
            let weight = halves.matrix(&format!("model.layers.{layer}.self_attn.{part}.weight"));
            let rows: Vec<Vec<f32>> = weight.chunks(64).map(<[f32]>::to_vec).collect();
            // Channel 2i of a head becomes i, channel 2i + 1 becomes i + d/2.
            let from = |row: usize| row / 16 * 16 + row % 8 * 2 + row % 16 / 8;
            *weight = (0..64).flat_map(|row| rows[from(row)].clone()).collect();
        }
    }
    let tokens = some_tokens(200);
    let got = whole(&halves.load(Dtype::F32), &tokens);
    assert_close(
        "halves",
        &got,
        &whole(&adjacent.load(Dtype::F32), &tokens),
        REORDERED,
    );
}

#[test]
fn bf16_weights_in_the_mapped_file_are_the_same_weights_in_f32() {
    let tokens = some_tokens(100);
    let got = whole(&Tiny::golden().load(Dtype::BF16), &tokens);
    assert_close(
        "bf16",
        &got,
        &whole(&Tiny::golden().load(Dtype::F32), &tokens),
        REORDERED,
    );
}

#[test]
fn tied_embeddings_are_the_text_head() {
    let mut tied = Tiny::golden();
    let mut copied = Tiny::golden();
    tied.spec.tie_word_embeddings = true;
    tied.tensors.remove("lm_head.weight");
    *copied.matrix("lm_head.weight") = copied.matrix("model.embed_tokens.weight").clone();
    let hidden = Tensor::from_vec(
        whole(&tied.load(Dtype::F32), &some_tokens(5)),
        (5, 64),
        &candle_core::Device::Cpu,
    )
    .unwrap();
    let logits = |tiny: &Tiny| numbers(&tiny.load(Dtype::F32).logits(&hidden, Head::Text).unwrap());
    assert_eq!(logits(&tied), logits(&copied));
}

/// A decoder of `tests/golden/decoders`, perhaps changed, and the ids of its case.
fn descendant(name: &str, change: impl FnOnce(&mut DecoderSpec)) -> (Decoder, Vec<Token>) {
    let dir = golden::path(&format!("decoders/{name}"));
    let mut spec = folders::answering(&dir).unwrap().decoder;
    change(&mut spec);
    let mut weights = Weights::open(&dir.join("model.safetensors")).unwrap();
    let decoder = Decoder::load(&spec, &mut weights).unwrap();
    weights.finish().unwrap();
    let ids = Golden::open(&format!("decoders/{name}/cases.safetensors")).i32("ids");
    (
        decoder,
        unsigned(ids).into_iter().map(Token::Text).collect(),
    )
}

/// YaRN's parameters, `rope_scaling` of older versions, and tied heads, in configurations changed in one place.
#[test]
fn changed_configurations_give_the_logits_of_transformers() {
    let cases = FolderCase::with("last_logits");
    assert!(cases.len() > 15);
    for case in cases {
        let dir = case.folder();
        let system = folders::system(dir.path());
        let spec = &system.answering().unwrap().decoder;
        let mut weights = system.weights().unwrap();
        let decoder = Decoder::load(spec, &mut weights).unwrap();
        weights.finish().unwrap();
        let tokens: Vec<Token> = (0..40).map(|i| Token::Text((7 * i + 3) % 48)).collect();
        let hidden = append(&decoder, &mut new_cache(&decoder), &tokens);
        let last = hidden[39 * 32..].to_vec();
        let last = Tensor::from_vec(last, (1, 32), &candle_core::Device::Cpu).unwrap();
        let got = numbers(&decoder.logits(&last, Head::Text).unwrap());
        let expected: Vec<f32> = serde_json::from_value(case.0["last_logits"].clone()).unwrap();
        assert_close(case.name(), &got, &expected, LOGITS);
    }
}

/// Windows, biases, norms of heads, tied embeddings, stretched positions.
#[test]
fn llamas_descendants_give_the_official_logits_in_chunks_of_any_length() {
    for name in [
        "mistral",
        "qwen2",
        "qwen3",
        "llama_biases",
        "llama_linear",
        "llama_llama3",
        "llama_yarn",
        "llama_dynamic",
    ] {
        let (decoder, tokens) = descendant(name, |_| {});
        let expected = Golden::open(&format!("decoders/{name}/cases.safetensors")).f32("logits");
        for chunk in [1, 5, 7, 40] {
            let mut cache = new_cache(&decoder);
            let hidden: Vec<f32> = tokens
                .chunks(chunk)
                .flat_map(|chunk| append(&decoder, &mut cache, chunk))
                .collect();
            let hidden = Tensor::from_vec(hidden, (40, 32), &candle_core::Device::Cpu).unwrap();
            let got = numbers(&decoder.logits(&hidden, Head::Text).unwrap());
            assert_close(name, &got, &expected, LOGITS);
        }
    }
}

#[test]
fn a_larger_base_divides_the_slowest_frequency_by_its_factor_and_keeps_the_fastest() {
    let rotations = |rope_scaling| {
        let spec = DecoderSpec {
            max_position_embeddings: 40,
            rope_scaling,
            ..Tiny::golden().spec
        };
        Rope::new(&spec).rotations(Positions::Line(&[15])).sin
    };
    let (plain, ntk) = (
        rotations(None),
        rotations(Some(RopeScaling::Ntk { factor: 5.0 })),
    );
    let last = plain.len() - 1;
    assert_eq!(plain[0], ntk[0]);
    assert!((plain[last] / ntk[last] - 5.0).abs() < 1e-3);
    let dynamic = |original| {
        rotations(Some(RopeScaling::Dynamic {
            factor: 4.0,
            original_max_position_embeddings: original,
        }))
    };
    assert_eq!(dynamic(Some(20.0)), ntk, "4 · 40/20 − 3 = 5");
    assert_eq!(dynamic(None), plain);
    assert_eq!(
        dynamic(Some(80.0)),
        plain,
        "a context that is not long enough"
    );
}

#[test]
fn a_window_as_long_as_the_context_has_no_effect() {
    let hidden = |window| {
        let (decoder, tokens) = descendant("mistral", |spec| spec.sliding_window = window);
        whole(&decoder, &tokens)
    };
    assert_eq!(hidden(Some(40)), hidden(None));
    assert_ne!(hidden(Some(39)), hidden(None));
}

#[test]
fn a_bf16_cache_differs_by_its_rounding_only() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(300);
    let mut cache = KvCache::new(decoder.spec(), KvDtype::Bf16);
    let got: Vec<f32> = tokens
        .chunks(100)
        .flat_map(|c| append(&decoder, &mut cache, c))
        .collect();
    assert_eq!(
        cache.bytes() * 2,
        KvCache::bytes_for(decoder.spec(), 300, KvDtype::F32)
    );
    assert_close("bf16 cache", &got, &whole(&decoder, &tokens), 0.15);
}

#[test]
fn rope_angles_are_rounded_as_lwm_rounds_them() {
    for theta in [50_000_000, 10_000_000] {
        let spec = DecoderSpec {
            head_dim: Some(128),
            rope_theta: f64::from(theta),
            ..Tiny::golden().spec
        };
        let file = cases();
        let rotations = Rope::new(&spec).rotations(Positions::Line(&unsigned(
            file.i32(&format!("rope.{theta}.positions")),
        )));
        assert_close(
            "cos",
            &rotations.cos,
            &file.f32(&format!("rope.{theta}.cos")),
            2e-6,
        );
        assert_close(
            "sin",
            &rotations.sin,
            &file.f32(&format!("rope.{theta}.sin")),
            2e-6,
        );
    }
}

/// The error of appending tokens to an empty context, which must stay empty.
fn refused(decoder: &Decoder, tokens: &[Token], positions: &[u32]) -> (Kind, String) {
    let mut cache = new_cache(decoder);
    let mut rows = [Row {
        tokens,
        positions: Positions::Line(positions),
        segments: None,
        features: &[],
        cache: &mut cache,
    }];
    let error = decoder.forward(&mut rows).unwrap_err();
    assert!(cache.is_empty() && cache.bytes() == 0);
    (error.kind(), error.to_string())
}

#[test]
fn jobs_that_do_not_fit_are_refused_with_the_numbers() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let (kind, message) = refused(&decoder, &some_tokens(1025), &(0..1025).collect::<Vec<_>>());
    assert_eq!(kind, Kind::TooLarge);
    assert_eq!(
        message,
        "the context holds 0 tokens and 1025 more make 1025 (last position 1024), the model was made for 1024"
    );
    assert_eq!(
        refused(&decoder, &[Token::Text(1)], &[5000]).0,
        Kind::TooLarge
    );
    assert_eq!(
        refused(&decoder, &[Token::Text(1), Token::Vision(144)], &[0, 1]),
        (
            Kind::BadInput,
            "look up an embedding: vision: token id 144 is outside the vocabulary of 144".into()
        )
    );
    assert_eq!(
        refused(&decoder, &[Token::Text(320)], &[0]).0,
        Kind::BadInput
    );
    assert_eq!(refused(&decoder, &[], &[]).0, Kind::Internal);
}

#[test]
fn a_text_model_refuses_vision_with_a_sentence() {
    let mut tiny = Tiny::golden();
    tiny.spec.vision_vocab_size = None;
    tiny.tensors.retain(|name, _| !name.contains("vision"));
    let decoder = tiny.load(Dtype::F32);
    let (kind, message) = refused(&decoder, &[Token::Vision(0)], &[0]);
    assert_eq!(kind, Kind::Usage);
    assert!(
        message.ends_with("the model is a text model, expected one with a vision vocabulary"),
        "{message}"
    );
    let hidden =
        Tensor::zeros((1, 64), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    assert_eq!(
        decoder.logits(&hidden, Head::Vision).unwrap_err().kind(),
        Kind::Usage
    );
}

#[test]
fn a_nan_weight_is_reported_with_the_layer_it_spoils() {
    let mut tiny = Tiny::golden();
    tiny.matrix("model.layers.1.self_attn.k_proj.weight")[0] = f32::NAN;
    let decoder = tiny.load(Dtype::F32);
    let mut cache = new_cache(&decoder);
    let tokens = some_tokens(20);
    let positions: Vec<u32> = (0..20).collect();
    let mut rows = [Row {
        tokens: &tokens,
        positions: Positions::Line(&positions),
        segments: None,
        features: &[],
        cache: &mut cache,
    }];
    let error = decoder.forward(&mut rows).unwrap_err();
    assert_eq!(error.kind(), Kind::Compute);
    let said = error.to_string();
    assert!(
        said.starts_with("attention of layer 1, head 0 gave NaN or infinity"),
        "{said}"
    );
    assert!(cache.is_empty(), "a failed call leaves no mark");
}
