//! A VILA-1.5 folder, whose parts have folders of their own, gives what its parts give
//! (`tests/golden/vila.py`).

use std::{fs, path::Path};

use longreel_models::{
    attention::kv_cache::{KvCache, KvDtype},
    context::{
        chat_template::{ChatTemplate, Content, Part, Role, Turn},
        tokenizer::Tokenizer,
        vocab::Token,
    },
    error::{Error, Kind},
    llama::{Decoder, Head, Input, Positions, Row, generate::prefill},
    spec::{
        ModelSpec,
        features::{ConnectorStep, FeatureSpec, MergeOrder},
        processor::{Medium, PictureSpec, Resize},
    },
    systems::verify::verify,
    vision::features::FeatureEncoder,
};
use serde_json::Value;

use crate::support::{
    folders,
    golden::{self, Golden, assert_close},
};

/// Ten times what f32 differs from f64 in networks of this size.
const TOLERANCE: f32 = 1e-4;

fn folder() -> std::path::PathBuf {
    golden::path("answers/vila15")
}

/// The features of the golden frames, and the decoder.
fn parts(spec: &ModelSpec, dir: &Path) -> (FeatureEncoder, Decoder) {
    let mut weights = folders::weights(dir).unwrap();
    let features = &spec.vision.as_ref().unwrap().features;
    let encoder = FeatureEncoder::load(features, spec.decoder.hidden_size, &mut weights).unwrap();
    let decoder = Decoder::load(&spec.decoder, &mut weights).unwrap();
    weights.finish().unwrap();
    (encoder, decoder)
}

#[test]
fn three_folders_are_one_model() {
    let spec = folders::answering(&folder()).unwrap();
    let file = Golden::open("answers/vila15/expected.safetensors");
    let (encoder, decoder) = parts(&spec, &folder());
    let FeatureEncoder::Square(encoder) = encoder else {
        panic!("no tower of square pictures");
    };
    let features = encoder.forward(&file.f32("in.pixel_values")).unwrap();
    assert_close("features", &features, &file.f32("out.features"), TOLERANCE);
    // 3x3 patches are padded to 4x4 and merged.
    assert_eq!(spec.tokens_per_frame(), Some(4));
    let text = fs::read_to_string(folder().join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let picture = spec.vision.as_ref().unwrap().image_token_id;
    let ids = expected["prompt_ids"].as_array().unwrap().iter();
    let tokens: Vec<Token> = ids
        .map(|id| match u32::try_from(id.as_u64().unwrap()).unwrap() {
            id if id == picture => Token::Feature(id),
            id => Token::Text(id),
        })
        .collect();
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let states = decoder.forward(&mut [Row {
        tokens: &tokens,
        positions: Positions::Line(&positions),
        segments: None,
        features: &features,
        cache: &mut cache,
    }]);
    let logits = decoder.logits(&states.unwrap(), Head::Text).unwrap();
    let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let last = &logits[logits.len() - decoder.spec().vocab_size..];
    assert_close("logits", last, &file.f32("out.logits"), TOLERANCE);
    let input = Input {
        tokens: &tokens,
        features: &features,
        positions: None,
    };
    let mut chunked = KvCache::new(decoder.spec(), KvDtype::F32);
    let state = prefill(&decoder, &mut chunked, input, 7, &|| true, &mut |_| {}).unwrap();
    let logits = decoder.logits(&state, Head::Text).unwrap();
    let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_close(
        "logits of chunks",
        &logits,
        &file.f32("out.logits"),
        TOLERANCE,
    );
}

#[test]
fn pictures_use_the_vision_towers_own_processor() {
    let spec = PictureSpec::of_folder(&folders::processor(&folder()), Medium::Video).unwrap();
    assert_eq!(spec.resize, Resize::Exact([42; 2]));
    assert_eq!((spec.crop, spec.pad_to_square), (None, false));
}

/// A copy of the folder in `dir`.
fn copy(dir: &Path) {
    for part in ["llm", "vision_tower", "mm_projector", ""] {
        let (from, to) = (folder().join(part), dir.join(part));
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
    }
}

/// Changes one key of a JSON file.
fn set(path: &Path, key: &str, value: Value) {
    let mut config: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// What opening says of a copy that `change` has spoilt.
fn refused(change: impl FnOnce(&Path)) -> Error {
    let dir = tempfile::tempdir().unwrap();
    copy(dir.path());
    change(dir.path());
    folders::answering(dir.path()).unwrap_err()
}

#[test]
fn a_parts_own_configuration_stands_before_its_copy_in_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    copy(dir.path());
    // As the hub has it after a move: a name and no configuration.
    set(
        &dir.path().join("config.json"),
        "llm_cfg",
        "/somewhere/else".into(),
    );
    assert_eq!(
        folders::answering(dir.path()).unwrap(),
        folders::answering(&folder()).unwrap()
    );
    let newer = |path: &Path| {
        let path = path.join("mm_projector/config.json");
        set(&path, "mm_projector_type", "mlp_downsample_2x2_fix".into());
    };
    newer(dir.path());
    let spec = folders::answering(dir.path()).unwrap();
    let FeatureSpec::Square(features) = spec.vision.unwrap().features else {
        panic!("no tower of square pictures");
    };
    let rows = ConnectorStep::Merge {
        order: MergeOrder::Rows,
    };
    assert_eq!(features.connector[0], rows);
}

#[test]
fn parts_that_are_missing_or_of_another_kind_are_named() {
    let missing = refused(|dir| fs::remove_file(dir.join("vision_tower/config.json")).unwrap());
    assert!(
        missing.to_string().contains("vision_tower/config.json"),
        "{missing}"
    );
    let decoder = refused(|dir| set(&dir.join("llm/config.json"), "model_type", "mpt".into()));
    let expected = r#"llm_cfg.model_type is "mpt", expected "llama""#;
    assert!(decoder.to_string().contains(expected), "{decoder}");
    let path = "mm_projector/config.json";
    let connector = refused(|dir| set(&dir.join(path), "mm_projector_type", "resampler".into()));
    assert_eq!(connector.kind(), Kind::BadInput);
    assert!(
        connector
            .to_string()
            .contains(r#"is "resampler", expected one of"#),
        "{connector}"
    );
    let list = refused(|dir| fs::write(dir.join(path), "[1]").unwrap());
    assert!(list.to_string().contains("expected an object"), "{list}");
}

#[test]
fn a_folder_with_a_part_of_other_sizes_is_not_sound() {
    let dir = tempfile::tempdir().unwrap();
    copy(dir.path());
    let load = |weights: &mut _| {
        let spec = folders::answering(&folder())?;
        let features = &spec.vision.as_ref().unwrap().features;
        FeatureEncoder::load(features, spec.decoder.hidden_size, weights).map(drop)
    };
    let report = verify(&folders::system(dir.path()), &load, &|| true).unwrap();
    assert!(report.is_sound(), "{report}");
    set(
        &dir.path().join("llm/config.json"),
        "intermediate_size",
        65.into(),
    );
    let report = verify(&folders::system(dir.path()), &load, &|| true).unwrap();
    assert!(report.to_string().contains("expected [65, 32]"), "{report}");
}

/// VILA cuts a text at `<image>` and tokenizes what is left piece by piece; a special token does the same.
#[test]
fn a_token_that_the_tokenizer_does_not_know_cuts_the_text() {
    let mut tokenizer = Tokenizer::open(&golden::path("tokenizer")).unwrap();
    let vocabulary = tokenizer.vocab_size() as u32;
    let plain = |tokenizer: &Tokenizer, text: &str| tokenizer.encode_plain(text).unwrap();
    let alone: Vec<Vec<u32>> = ["A user. USER: ", "\n", "\nWhat moves? ASSISTANT:"]
        .map(|part| plain(&tokenizer, part))
        .into();
    let id = tokenizer.add_special("<image>").unwrap();
    assert_eq!(id, vocabulary);
    assert_eq!(
        tokenizer.add_special("<image>").unwrap(),
        id,
        "known by now"
    );
    let whole = plain(
        &tokenizer,
        "A user. USER: <image>\n<image>\nWhat moves? ASSISTANT:",
    );
    assert_eq!(whole, alone.join(&id));
}

#[test]
fn vilas_llama_3_conversation_is_theirs() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/context/templates/vila_llama_3.jinja");
    let source = fs::read_to_string(path).unwrap();
    let bos = ("bos_token".to_owned(), "<|begin_of_text|>".to_owned());
    let template = ChatTemplate::new("vila_llama_3", source, vec![bos]).unwrap();
    let content = Content::Parts(vec![
        Part::Image,
        Part::Image,
        Part::Text {
            text: "What moves?".to_owned(),
        },
    ]);
    let asked = Turn {
        role: Role::User,
        content,
    };
    let got = template.render(&[asked]).unwrap();
    let expected = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n\
        You are a helpful language and vision assistant. You are able to understand the visual content that the user \
        provides, and assist the user with a variety of tasks using natural language.<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\n<image>\n<image>\nWhat moves?<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(got, expected);
}

/// LLaVA's `SeparatorStyle.TWO`: a blank behind what the user says, `</s>` and no blank behind an answer.
#[test]
fn vicunas_turns_are_parted_as_in_training() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/context/templates/vicuna_v1.jinja");
    let source = fs::read_to_string(path).unwrap();
    let special = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
    let specials = [("bos_token", "<s>"), ("eos_token", "</s>")].map(special);
    let template = ChatTemplate::new("vicuna_v1", source, specials.to_vec()).unwrap();
    let said = |role, words: &str| Turn {
        role,
        content: Content::Words(words.to_owned()),
    };
    let turns = [
        said(Role::User, "What?"),
        said(Role::Assistant, "A dog."),
        said(Role::User, "Where?"),
    ];
    let expected = "<s>A chat between a curious user and an artificial intelligence assistant. \
        The assistant gives helpful, detailed, and polite answers to the user's questions. \
        USER: What? ASSISTANT: A dog.</s>USER: Where? ASSISTANT:";
    assert_eq!(template.render(&turns).unwrap(), expected);
}
