//! Text to ids and back: equal to transformers' fast LLaMA tokenizer, whichever
//! file the model directory brings, whole or one id at a time.
//!
//! `tests/golden/tokenizer/cases.json` has seven encoders. Reproduced here:
//! `auto_fast_nobos`, `fast_nonlegacy_nobos` (what transformers 4.40 makes of
//! `AutoTokenizer`, as LWM's inference does), `fast_legacy_bos`, and
//! `slow_legacy_nobos`, `slow_legacy_bos`, whose ids are the same. Not
//! reproduced: `slow_nonlegacy_nobos` (adds no space sign after a special token)
//! and `sentencepiece_raw` (reads `<s>` as text): LWM uses neither. Of the
//! decoders the two fast ones are reproduced; SentencePiece's own, which keeps
//! the valid part of a broken byte run, is not.

use std::time::{Duration, Instant};

use longreel_models::{
    context::{
        streaming::StreamingDecoder,
        tokenizer::{Tokenizer, TokenizerConfig},
    },
    error::Kind,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{folder_cases::FolderCase, golden};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(golden::path("tokenizer").join(name)).unwrap()
}

fn cases() -> Value {
    serde_json::from_slice(&file("cases.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap().try_into().unwrap())
        .collect()
}

fn lwm() -> Tokenizer {
    Tokenizer::open(&golden::path("tokenizer")).unwrap()
}

fn with_config(json: &str) -> Tokenizer {
    Tokenizer::from_sentencepiece(
        &file("tokenizer.model"),
        &TokenizerConfig::from_json(json).unwrap(),
    )
    .unwrap()
}

fn from_json() -> Tokenizer {
    Tokenizer::from_json(&file("tokenizer_fast_export.json")).unwrap()
}

fn check_encoder(encoder: &str, tokenizer: &Tokenizer) {
    let cases = cases();
    let cases = cases["encode"][encoder]["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        assert_eq!(
            tokenizer.encode(text).unwrap(),
            ids(&case["ids"]),
            "{encoder}: {text:?}"
        );
        assert_eq!(
            tokenizer.encode_plain(text).unwrap(),
            ids(&case["ids_no_special"]),
            "{encoder}, plain: {text:?}"
        );
    }
}

/// Tokens of `added_tokens.json`, `special_tokens_map.json` and `tokenizer_config.json`, beside either tokenizer file.
#[test]
fn every_added_token_is_one_id_as_in_transformers() {
    let cases = FolderCase::with("texts");
    assert!(cases.len() > 15);
    for case in cases {
        let dir = case.folder();
        let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let model_type = config["model_type"].as_str();
        let tokenizer = Tokenizer::of_model(dir.path(), model_type)
            .unwrap()
            .unwrap();
        for case_of_text in case.0["texts"].as_array().unwrap() {
            let text = case_of_text[0].as_str().unwrap();
            let got = tokenizer.encode_plain(text).unwrap();
            assert_eq!(got, ids(&case_of_text[1]), "{}: {text:?}", case.name());
        }
    }
}

#[test]
fn sentencepiece_ids_are_those_of_the_fast_tokenizer() {
    for encoder in [
        "auto_fast_nobos",
        "fast_nonlegacy_nobos",
        "slow_legacy_nobos",
    ] {
        check_encoder(encoder, &lwm());
    }
}

#[test]
fn tokenizer_json_gives_the_same_ids_as_tokenizer_model() {
    check_encoder("auto_fast_nobos", &from_json());
}

#[test]
fn add_bos_token_puts_bos_before_every_text() {
    for encoder in ["fast_legacy_bos", "slow_legacy_bos"] {
        check_encoder(encoder, &with_config(r#"{"add_bos_token": true}"#));
    }
    let config = TokenizerConfig::from_json(
        r#"{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}"#,
    )
    .unwrap();
    let json = Tokenizer::from_json_with(&file("tokenizer_fast_export.json"), &config).unwrap();
    check_encoder("fast_legacy_bos", &json);
}

#[test]
fn add_eos_token_puts_eos_after_every_text() {
    let tokenizer = with_config(
        r#"{"add_eos_token": true, "eos_token": {"content": "</s>", "lstrip": false}}"#,
    );
    assert_eq!(
        tokenizer.encode("hello").unwrap(),
        [301, 265, 311, 311, 303, 2]
    );
    assert_eq!(
        tokenizer.encode_plain("hello").unwrap(),
        [301, 265, 311, 311, 303]
    );
}

#[test]
fn text_is_that_of_the_fast_tokenizer() {
    for tokenizer in [lwm(), from_json()] {
        for case in cases()["decode"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            assert_eq!(
                tokenizer.decode(&ids, true).unwrap(),
                case["auto_fast_skip_special"].as_str().unwrap(),
                "{ids:?}"
            );
            assert_eq!(
                tokenizer.decode(&ids, false).unwrap(),
                case["auto_fast"].as_str().unwrap(),
                "{ids:?}"
            );
        }
    }
}

#[test]
fn special_tokens_are_those_of_the_configuration() {
    let cases = cases();
    let expected = ["bos", "eos", "pad", "unk"]
        .map(|key| Some(u32::try_from(cases[key].as_u64().unwrap()).unwrap()));
    let tokenizer = lwm();
    assert_eq!(
        [
            tokenizer.bos_id(),
            tokenizer.eos_id(),
            tokenizer.pad_id(),
            tokenizer.unk_id()
        ],
        expected
    );
    assert_eq!(
        tokenizer.vocab_size() as u64,
        cases["vocab"].as_u64().unwrap()
    );
    assert_eq!(
        with_config("{}").pad_id(),
        None,
        "no configuration, no pad token"
    );
}

#[test]
fn added_tokens_stand_at_the_ids_the_configuration_gives() {
    let added = |id: u32| {
        let token = r#"{"content": "<pad>", "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true}"#;
        TokenizerConfig::from_json(&format!(
            r#"{{"pad_token": "<pad>", "added_tokens_decoder": {{"{id}": {token}}}}}"#
        ))
        .unwrap()
    };
    let tokenizer = Tokenizer::from_sentencepiece(&file("tokenizer.model"), &added(352)).unwrap();
    assert_eq!(
        (tokenizer.pad_id(), tokenizer.vocab_size()),
        (Some(352), 353)
    );
    assert_eq!(tokenizer.encode("a<pad>").unwrap(), [259, 352]);
    let error = Tokenizer::from_sentencepiece(&file("tokenizer.model"), &added(400)).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"the added token "<pad>" has id 400, but the vocabulary gives it 352"#
    );
}

/// Everything the stream printed, and the pieces it was printed in.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> (String, Vec<String>) {
    let mut stream = StreamingDecoder::new(tokenizer, skip_special);
    let mut pieces: Vec<String> = ids
        .iter()
        .filter_map(|&id| stream.push(id).unwrap())
        .collect();
    pieces.push(stream.finish().unwrap());
    (pieces.concat(), pieces)
}

#[test]
fn a_character_of_several_byte_tokens_is_printed_whole() {
    let tokenizer = lwm();
    let ids = tokenizer.encode("a東b").unwrap();
    let (_, pieces) = streamed(&tokenizer, &ids, true);
    assert_eq!(pieces, ["a", "東b", ""]);
}

#[test]
fn a_broken_byte_run_is_printed_as_soon_as_it_is_known_to_be_broken() {
    let tokenizer = lwm();
    // The three bytes of a character, then a byte that cannot follow.
    let (_, pieces) = streamed(&tokenizer, &[233, 160, 180, 255 + 3, 10 + 3, 259], true);
    assert_eq!(
        pieces,
        ["\u{FFFD}".repeat(4).as_str(), "\u{FFFD}", " a", ""]
    );
}

#[test]
fn the_golden_cases_stream_to_the_same_text() {
    for tokenizer in [lwm(), from_json()] {
        for case in cases()["decode"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            for skip_special in [true, false] {
                assert_eq!(
                    streamed(&tokenizer, &ids, skip_special).0,
                    tokenizer.decode(&ids, skip_special).unwrap(),
                    "{ids:?}"
                );
            }
        }
    }
}

/// A byte-level BPE (GPT-2's kind) whose pieces are the 256 bytes.
fn byte_level() -> Tokenizer {
    let printable = |b: &u32| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..256u32).filter(|b| !printable(b)).zip(0x100u32..);
    let mut pieces: Vec<(u32, u32)> = (0..256)
        .filter(printable)
        .map(|b| (b, b))
        .chain(others)
        .collect();
    pieces.sort_unstable();
    let vocab: serde_json::Map<String, Value> = pieces
        .into_iter()
        .map(|(byte, code)| (char::from_u32(code).unwrap().to_string(), byte.into()))
        .collect();
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn a_byte_level_character_is_printed_whole() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("a東b").unwrap();
    assert_eq!(ids, [97, 0xE6, 0x9D, 0xB1, 98]);
    assert_eq!(streamed(&tokenizer, &ids, true).1, ["a", "東", "b", ""]);
}

#[test]
fn a_tokenizer_that_only_decodes_whole_texts_prints_at_the_end() {
    let mut json: Value = serde_json::from_slice(&file("tokenizer_fast_export.json")).unwrap();
    json["decoder"] = serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    let ids = [301, 265, 311, 311, 303];
    assert_eq!(
        streamed(&tokenizer, &ids, true).1,
        [tokenizer.decode(&ids, true).unwrap()]
    );
}

/// Ids of the vocabulary, byte pieces as often as the others, and a few outside it.
fn any_ids() -> impl Strategy<Value = Vec<u32>> {
    let id = prop_oneof![4 => 0..352u32, 4 => 3..259u32, 1 => 0..3u32, 1 => 352..1000u32];
    // Bytes of a real character, so that whole, cut and mixed runs all occur.
    let character = prop::char::any().prop_map(|c| {
        c.to_string()
            .bytes()
            .map(|b| u32::from(b) + 3)
            .collect::<Vec<u32>>()
    });
    let part = prop_oneof![2 => id.prop_map(|id| vec![id]), 1 => character];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

/// Text without the space sign (it would come back as a space) and without a special token spelled out.
fn any_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        ".{0,12}",
        "[a-z .,]{0,30}",
        Just("  ".to_owned()),
        Just("\n".to_owned()),
        Just("東".to_owned())
    ];
    prop::collection::vec(part, 0..20)
        .prop_map(|parts| parts.concat().replace('▁', "_").replace('<', "("))
}

proptest! {
    #[test]
    fn a_stream_prints_what_decoding_the_whole_gives(ids in any_ids(), skip_special: bool) {
        for tokenizer in [lwm(), byte_level()] {
            prop_assert_eq!(streamed(&tokenizer, &ids, skip_special).0, tokenizer.decode(&ids, skip_special).unwrap());
        }
    }

    #[test]
    fn decoding_an_encoding_gives_the_text(text in any_text()) {
        let tokenizer = lwm();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.as_str());
        let (whole, pieces) = streamed(&tokenizer, &ids, true);
        prop_assert_eq!(whole, text.as_str());
        let half = pieces.iter().any(|p| p.contains('\u{FFFD}')) && !text.contains('\u{FFFD}');
        prop_assert!(!half, "half a character in {pieces:?}");
    }

    #[test]
    fn arbitrary_bytes_are_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Tokenizer::from_sentencepiece(&bytes, &TokenizerConfig::default()).is_err());
        prop_assert!(Tokenizer::from_json(&bytes).is_err());
    }

    #[test]
    fn a_damaged_file_is_an_error_or_still_a_tokenizer(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
        let damaged = |name| {
            let mut bytes = file(name);
            let (at, cut) = (at.index(bytes.len()), cut.index(bytes.len()));
            bytes[at] = byte;
            [bytes.clone(), bytes[..cut].to_vec()]
        };
        let models = damaged("tokenizer.model").map(|bytes| Tokenizer::from_sentencepiece(&bytes, &TokenizerConfig::default()));
        let jsons = damaged("tokenizer_fast_export.json").map(|bytes| Tokenizer::from_json(&bytes));
        for tokenizer in models.into_iter().chain(jsons).flatten() {
            let Ok(ids) = tokenizer.encode("The video shows <s> a person.") else { continue };
            if let Ok(text) = tokenizer.decode(&ids, false) {
                prop_assert_eq!(streamed(&tokenizer, &ids, false).0, text);
            }
        }
    }
}

/// One field of a protobuf message: tag, wire type 2, length, bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

/// A piece message: name, score 0, type.
fn piece(name: &[u8], kind: u8) -> Vec<u8> {
    field(
        1,
        &[field(1, name), vec![0x15, 0, 0, 0, 0], vec![0x18, kind]].concat(),
    )
}

fn check_refused(model: &[Vec<u8>], expected: &str) {
    let error =
        Tokenizer::from_sentencepiece(&model.concat(), &TokenizerConfig::default()).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.kind()),
        (expected, Kind::BadInput)
    );
}

#[test]
fn hostile_sentencepiece_models_are_refused_with_a_sentence() {
    let bpe = || field(2, &[0x18, 2]);
    let bpe_with_bytes = || field(2, &[0x18, 2, 35 << 3 & 0x7F | 0x80, 0x02, 1]);
    check_refused(
        &[],
        "read the SentencePiece model: the model is unigram, expected bpe (LLaMA's); a tokenizer.json of it can be used instead",
    );
    check_refused(
        &[bpe()],
        "read the SentencePiece model: it has no unknown piece",
    );
    check_refused(
        &[bpe_with_bytes(), piece(b"<unk>", 2)],
        "read the SentencePiece model: byte_fallback is set, but the piece <0x00> is missing",
    );
    check_refused(
        &[bpe(), piece(b"a", 1), piece(b"a", 1)],
        r#"read the SentencePiece model: pieces 0 and 1 are both "a""#,
    );
    check_refused(
        &[bpe(), piece(b"", 1)],
        "read the SentencePiece model: piece 0 has 0 bytes, expected 1 to 1024",
    );
    check_refused(
        &[bpe(), piece(&[b'a'; 5000], 1)],
        "read the SentencePiece model: piece 0 has 5000 bytes, expected 1 to 1024",
    );
    let nan = field(1, &[field(1, b"a"), vec![0x15, 0, 0, 0xC0, 0x7F]].concat());
    check_refused(
        &[bpe(), nan],
        "read the SentencePiece model: piece 0 has score NaN, expected a finite number",
    );
}

#[test]
fn hostile_tokenizer_json_is_an_error() {
    let mut json: Value = serde_json::from_slice(&file("tokenizer_fast_export.json")).unwrap();
    json["model"]["merges"] = serde_json::json!([["<vision", "The video"]]);
    let error = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"a merge gives "<visionThe video", which is not in the vocabulary"#
    );

    let mut json: Value = serde_json::from_slice(&file("tokenizer_fast_export.json")).unwrap();
    json["decoder"] = serde_json::json!({"type": "Strip", "content": "▁", "start": 0, "stop": 5});
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(
        tokenizer.decode(&[301], true).unwrap_err().kind(),
        Kind::BadInput
    );
}

#[test]
fn a_directory_without_a_tokenizer_says_what_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(
        error.message(),
        "no tokenizer.json and no tokenizer.model, expected one of them"
    );
    std::fs::copy(
        golden::path("tokenizer").join("tokenizer_fast_export.json"),
        dir.path().join("tokenizer.json"),
    )
    .unwrap();
    assert_eq!(Tokenizer::open(dir.path()).unwrap().vocab_size(), 352);
}

/// Seconds to encode `n` bytes, the best of three runs.
fn encode_time(tokenizer: &Tokenizer, n: usize) -> Duration {
    let text: String = "The video shows a person. naïve café, 東京 🚗\n"
        .chars()
        .cycle()
        .take(n)
        .collect();
    (0..3)
        .map(|_| {
            let start = Instant::now();
            assert!(tokenizer.encode(&text).unwrap().len() > n / 4);
            start.elapsed()
        })
        .min()
        .unwrap()
}

#[test]
fn encoding_time_grows_with_the_text_not_its_square() {
    let tokenizer = lwm();
    let (small, large) = (
        encode_time(&tokenizer, 1 << 16),
        encode_time(&tokenizer, 1 << 20),
    );
    println!("64 Ki characters in {small:?}, 1 Mi in {large:?}");
    // Sixteen times the text: 16 when linear, 256 when quadratic.
    assert!(
        large < small * 160,
        "64 Ki characters took {small:?}, 1 Mi {large:?}"
    );
}

#[test]
fn streaming_time_grows_with_the_answer_not_its_square() {
    let tokenizer = lwm();
    let time = |ids: &[u32]| {
        let runs = (0..3).map(|_| {
            let start = Instant::now();
            assert!(!streamed(&tokenizer, ids, true).0.is_empty());
            start.elapsed()
        });
        runs.min().unwrap()
    };
    // Words, then one byte run that is valid to its end and so held to its end.
    for pattern in [vec![301, 265, 311, 311, 303], vec![233, 160, 180]] {
        let ids = |n: usize| {
            pattern
                .iter()
                .copied()
                .cycle()
                .take(n * pattern.len())
                .collect::<Vec<u32>>()
        };
        let (small, large) = (time(&ids(4_000)), time(&ids(64_000)));
        assert!(
            large < small * 160,
            "sixteen times the ids took {large:?} after {small:?}"
        );
    }
}
