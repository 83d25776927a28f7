//! Lines become the examples of LWM's processors, and examples its batches, token for token.

use std::path::Path;

use longreel_models::{
    context::{
        prompt::FrameTerminators,
        tokenizer::{Tokenizer, TokenizerConfig},
        vocab::Token,
    },
    error::{Error, Kind, Result},
    spec::FrameEnd,
    training::data::{
        batch::{Batch, BatchRules, PadRule, TokenStream, packed, padded},
        example::{Example, ExampleRules, FieldsOf, VisionRules},
        python_random::choice,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::golden::{Golden, path};

/// Ids of the golden run, where a frame has 16 codes of 128 (`manifest.json`, `parts.packing`).
const VISION: VisionRules = VisionRules {
    codes_per_frame: 16,
    terminators: FrameTerminators {
        end: FrameEnd::Training,
        end_of_frame_id: 128,
        end_of_vision_id: 129,
    },
    codebook: 128,
    n_frames_max: None,
};

const BOS: Token = Token::Text(1);

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

fn manifest() -> Value {
    serde_json::from_str(&text("manifest.json")).unwrap()
}

fn tokenizer(add_bos: bool) -> Tokenizer {
    let config = format!(r#"{{"add_bos_token": {add_bos}, "add_eos_token": false}}"#);
    let model = std::fs::read(path("tokenizer/tokenizer.model")).unwrap();
    Tokenizer::from_sentencepiece(&model, &TokenizerConfig::from_json(&config).unwrap()).unwrap()
}

fn no_file(path: &Path) -> Result<Vec<u32>> {
    let message = format!("no reel {}", path.display());
    Err(Error::new(Kind::NotFound, message))
}

/// Examples of the lines that are some, with their numbers.
fn examples(file: &str, rules: &ExampleRules) -> Vec<(u64, Example)> {
    let lines = text(file);
    let numbered = (0..).zip(lines.lines());
    let some = numbered.filter_map(|(i, line)| Some((i, rules.example(line, i).ok()?)));
    some.collect()
}

/// The examples of a golden run of the file, read again and again: batches need more than one pass.
fn cycled(examples: &[(u64, Example)]) -> impl Iterator<Item = &Example> {
    examples.iter().map(|(_, example)| example).cycle()
}

#[test]
fn alternatives_are_chosen_as_by_python() {
    let golden: Value = serde_json::from_str(&text("packing/python_random_choice.json")).unwrap();
    let mut compared = 0;
    for (n, chosen) in golden["choice"].as_object().unwrap() {
        let seeds = golden["line_index"].as_array().unwrap();
        for (seed, expected) in seeds.iter().zip(chosen.as_array().unwrap()) {
            let got = choice(seed.as_u64().unwrap(), n.parse().unwrap());
            assert_eq!(got, expected.as_u64().map(|i| i as usize), "{seed} of {n}");
            compared += 1;
        }
    }
    assert!(compared >= 100);
    assert_eq!(choice(5, 0), None);
}

#[test]
fn lines_become_the_examples_of_upstream_s_processor() {
    for (name, add_bos) in [("nobos", false), ("bos", true)] {
        let tokenizer = tokenizer(add_bos);
        // The file of examples was made with at most four frames a field.
        let vision = VisionRules {
            n_frames_max: Some(4),
            ..VISION
        };
        let rules = rules(&tokenizer, Some(vision));
        let got = examples("packing/input.jsonl", &rules);
        let expected: Value =
            serde_json::from_str(&text(&format!("packing/examples_{name}.json"))).unwrap();
        let expected = expected.as_array().unwrap();
        assert_eq!(got.len(), expected.len());
        for ((line, got), expected) in got.iter().zip(expected) {
            let ids: Vec<u32> = got.tokens.iter().map(|t| t.id()).collect();
            let vision: Vec<u8> = got.tokens.iter().map(|t| u8::from(t.is_vision())).collect();
            assert_eq!(json!(line), expected["line"]);
            assert_eq!(json!(ids), expected["tokens"], "{name}, line {line}");
            assert_eq!(
                json!(got.loss),
                expected["loss_mask"],
                "{name}, line {line}"
            );
            assert_eq!(
                json!(vision),
                expected["vision_mask"],
                "{name}, line {line}"
            );
        }
    }
}

fn rules(tokenizer: &Tokenizer, vision: Option<VisionRules>) -> ExampleRules<'_> {
    ExampleRules {
        tokenizer,
        fields: FieldsOf::Line("fields".into()),
        vision,
        open_codes: &no_file,
    }
}

#[track_caller]
fn check_batch(name: &str, number: usize, got: &Batch) {
    let file = Golden::open(&format!("packing/{name}.safetensors"));
    let ids = |tokens: &[Token]| -> Vec<i32> { tokens.iter().map(|t| t.id() as i32).collect() };
    let vision =
        |tokens: &[Token]| -> Vec<u8> { tokens.iter().map(|t| u8::from(t.is_vision())).collect() };
    let what = |part: &str| format!("{name}, batch {number}, {part}");
    let key = |part: &str| format!("{number}.{part}");
    let (input, target) = (ids(&got.input), ids(&got.target));
    assert_eq!(input, file.i32(&key("input_tokens")), "{}", what("input"));
    assert_eq!(
        target,
        file.i32(&key("target_tokens")),
        "{}",
        what("target")
    );
    assert_eq!(got.loss, file.f32(&key("loss_masks")), "{}", what("loss"));
    let masks = [
        ("input_vision_masks", &got.input),
        ("target_vision_masks", &got.target),
    ];
    for (part, tokens) in masks {
        assert_eq!(vision(tokens), file.u8(&key(part)), "{}", what(part));
    }
}

#[test]
fn batches_are_those_of_upstream_s_datasets_in_both_modes() {
    for run in manifest()["parts"]["packing"]["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        let is_text = run["type"] == "json";
        let tokenizer = tokenizer(run["add_bos_token"] == true);
        let n_frames_max = run["max_n_frames"].as_u64().map(|n| n as usize);
        let vision = VisionRules {
            n_frames_max,
            ..VISION
        };
        let mut rules = rules(&tokenizer, (!is_text).then_some(vision));
        if let Some(fields) = run["fields"].as_str() {
            rules.fields = FieldsOf::All(fields.into());
        }
        let file = if is_text {
            "packing/text.jsonl"
        } else {
            "packing/input.jsonl"
        };
        let examples = examples(file, &rules);
        let shape = BatchRules {
            rows: run["batch_size"].as_u64().unwrap() as usize,
            seq_length: run["seq_length"].as_u64().unwrap() as usize,
            fill: BOS,
            pad_rule: if is_text {
                PadRule::Aligned
            } else {
                PadRule::Vision
            },
        };
        let is_padded = run["mode"] == "pad" || run["pad"] == true;
        let mut examples = cycled(&examples);
        let mut stream = TokenStream::default();
        for number in 0..3 {
            let batch = if is_padded {
                let rows: Vec<Example> = examples.by_ref().take(shape.rows).cloned().collect();
                if shape.rows == 1 {
                    // Upstream waits for more than a row and one token, and then throws all that waited away.
                    examples.next();
                }
                padded(&rows, &shape)
            } else {
                loop {
                    stream.push(examples.next().unwrap());
                    if let Some(batch) = stream.next_batch(&shape) {
                        break batch;
                    }
                }
            };
            check_batch(name, number, &batch);
        }
    }
}

#[test]
fn an_invalid_line_says_why() {
    let tokenizer = tokenizer(false);
    let with_vision = rules(&tokenizer, Some(VISION));
    let of_text = rules(&tokenizer, None);
    let sixteen: Vec<u32> = (0..16).collect();
    for (line, expected) in [
        ("{\"broken".to_owned(), "it is no JSON"),
        ("[1]".to_owned(), "it is no JSON object"),
        (
            json!({"a": "b"}).to_string(),
            "its \"fields\" is null, expected a string",
        ),
        (
            json!({"fields": []}).to_string(),
            "expected a string or a list",
        ),
        (
            json!({"fields": "question"}).to_string(),
            "its \"question\" is null, expected text",
        ),
        (
            json!({"fields": "vision"}).to_string(),
            "expected a list of codes below 128",
        ),
        (
            json!({"fields": "vision", "vision": sixteen[..15]}).to_string(),
            "has 15 codes, expected at least one frame of 16",
        ),
        (
            json!({"fields": "vision", "vision": [128]}).to_string(),
            "expected a list of codes below 128",
        ),
        (
            json!({"fields": "vision", "vision": "a.reel"}).to_string(),
            "no reel a.reel",
        ),
        (
            json!({"fields": "<|x|>"}).to_string(),
            "expected <|bos|>, <|eos|> or a key",
        ),
    ] {
        let error = with_vision.example(&line, 0).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
    let line = json!({"fields": "vision", "vision": sixteen}).to_string();
    let error = of_text.example(&line, 0).unwrap_err().to_string();
    assert!(error.contains("the model reads text"), "{error}");
}

#[test]
fn codes_of_a_named_reel_are_those_of_a_list() {
    let tokenizer = tokenizer(false);
    let codes: Vec<u32> = (0..40).collect();
    let open = |path: &Path| match path.to_str() {
        Some("a.reel") => Ok(codes.clone()),
        _ => no_file(path),
    };
    let rules = ExampleRules {
        open_codes: &open,
        ..rules(&tokenizer, Some(VISION))
    };
    let of = |vision: Value| {
        let line = json!({"fields": "vision", "vision": vision}).to_string();
        rules.example(&line, 0).unwrap()
    };
    assert_eq!(of(json!("a.reel")), of(json!(codes)));
}

fn any_examples() -> impl Strategy<Value = Vec<Example>> {
    let token = (0_u32..50, any::<bool>(), any::<bool>());
    let example = prop::collection::vec(token, 2..30).prop_map(|tokens| {
        let (mut loss, mut all) = (Vec::new(), Vec::new());
        for (id, vision, predicted) in tokens {
            all.push(if vision {
                Token::Vision(id)
            } else {
                Token::Text(id)
            });
            loss.push(if predicted { 1.0 } else { 0.0 });
        }
        Example { tokens: all, loss }
    });
    prop::collection::vec(example, 1..12)
}

proptest! {
    /// Every pair of a token and what follows it stands in exactly one place, with its loss.
    #[test]
    fn packing_loses_no_pair_and_crosses_no_example(examples in any_examples()) {
        let rules = BatchRules { rows: 0, seq_length: 32, fill: BOS, pad_rule: PadRule::Aligned };
        let batch = packed(&examples, &rules).unwrap();
        let segments = batch.segments.as_ref().unwrap();
        let mut found: Vec<Example> = Vec::new();
        for row in 0..batch.rows() {
            let places: Vec<usize> = (row * 32..(row + 1) * 32).collect();
            for run in places.chunk_by(|&a, &b| segments[a] == segments[b]) {
                let positions: Vec<u32> = run.iter().map(|&i| batch.positions[i]).collect();
                prop_assert_eq!(positions, (0..run.len() as u32).collect::<Vec<_>>());
                let last = run[run.len() - 1];
                let tokens = run.iter().map(|&i| batch.input[i]).chain([batch.target[last]]);
                let loss = run.iter().map(|&i| batch.loss[i]);
                found.push(Example {
                    tokens: tokens.collect(),
                    loss: std::iter::once(0.0).chain(loss).collect(),
                });
                for pair in run.windows(2) {
                    prop_assert_eq!(batch.target[pair[0]], batch.input[pair[1]]);
                }
            }
        }
        let mut expected: Vec<Example> = examples.clone();
        expected.iter_mut().for_each(|e| e.loss[0] = 0.0);
        for example in &expected {
            let at = found.iter().position(|f| f == example);
            prop_assert!(at.is_some(), "an example is nowhere");
            found.swap_remove(at.unwrap());
        }
        // What is left fills rows, and counts nothing.
        prop_assert!(found.iter().all(|f| f.loss.iter().all(|&loss| loss == 0.0)));
    }

    #[test]
    fn arbitrary_lines_are_an_error_or_an_example(line in ".{0,200}", index: u64) {
        let tokenizer = tokenizer(false);
        if let Ok(example) = rules(&tokenizer, Some(VISION)).example(&line, index) {
            prop_assert_eq!(example.tokens.len(), example.loss.len());
        }
    }
}
