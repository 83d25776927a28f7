//! The logic of every fuzz target: arbitrary bytes in, no panic out. A finding
//! is a panic; what is not understood must be an error.

use longreel::{
    reel,
    sources::sampler::{parse_rate, parse_time},
};
use longreel_models::{
    attention::link::wire::Arriving,
    checkpoint::{gguf::Header, msgpack, pickle, weights},
    context::{
        chat_template::{ChatTemplate, Content, Role, Turn},
        gguf,
        streaming::StreamingDecoder,
        tokenizer::{Tokenizer, TokenizerConfig},
    },
    spec::{
        ModelSpec,
        patches::PatchesSpec,
        processor::{Medium, PictureSpec},
    },
    vision::{image::RgbView, processor::PictureProcessor},
};

/// A target's name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 10] = [
    ("msgpack", msgpack_stream),
    ("pickle", pickle_file),
    ("safetensors_header", safetensors_header),
    ("tokenizer", tokenizer_round_trip),
    ("config", config),
    ("reel", reel_file),
    ("envelope", envelope_of_a_message),
    ("processor", processor),
    ("chat_template", chat_template),
    ("gguf", gguf_file),
];

/// LWM's streaming checkpoint, as a stream and as one document; ranges lie inside the file.
pub fn msgpack_stream(bytes: &[u8]) {
    for entry in msgpack::Stream::new(bytes).flatten() {
        if let Ok(tensor) = msgpack::tensor(bytes, entry.value) {
            let inside = |r: &std::ops::Range<usize>| bytes.get(r.clone()).is_some();
            assert!(
                tensor.chunks.iter().all(inside),
                "a chunk lies outside the file"
            );
        }
    }
    let _ = msgpack::document(bytes);
}

/// The pickle interpreter, for both writers it knows, and for the five pickles of an old `torch.save`.
pub fn pickle_file(bytes: &[u8]) {
    let _ = pickle::read(bytes, pickle::Writer::Numpy);
    let _ = pickle::read(bytes, pickle::Writer::Torch);
    if let Ok(old) = pickle::read_old_torch(bytes) {
        let inside = |r: &std::ops::Range<usize>| bytes.get(r.clone()).is_some();
        assert!(
            old.storages.values().all(inside),
            "a storage lies outside the file"
        );
    }
}

/// The header of a safetensors file; ranges lie inside the file.
pub fn safetensors_header(bytes: &[u8]) {
    if let Ok(entries) = weights::read_header(bytes) {
        for entry in entries {
            assert!(
                bytes.get(entry.range).is_some(),
                "{} lies outside the file",
                entry.name
            );
        }
    }
}

/// Bytes as a SentencePiece model; then text through one: ids back to text, streamed and whole alike.
pub fn tokenizer_round_trip(bytes: &[u8]) {
    let config = TokenizerConfig::default();
    let Ok(tokenizer) = Tokenizer::from_sentencepiece(bytes, &config) else {
        return;
    };
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
    let Ok(ids) = tokenizer.encode_plain(&text) else {
        return;
    };
    let mut stream = StreamingDecoder::of_answer(&tokenizer);
    let mut streamed = String::new();
    for &id in &ids {
        if let Ok(Some(piece)) = stream.push(id) {
            streamed += &piece;
        }
    }
    if let (Ok(rest), Ok(whole)) = (stream.finish(), tokenizer.decode(&ids, true)) {
        assert_eq!(streamed + &rest, whole, "streamed and whole text differ");
    }
}

/// A model's configuration in either form, and the texts of the command line that become numbers.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(spec) = ModelSpec::from_toml(&text) {
        let json = spec.to_json().unwrap_or_default();
        assert_eq!(
            ModelSpec::from_json(&json).ok(),
            Some(spec),
            "config.json does not give the model back"
        );
    }
    let _ = ModelSpec::from_json(&text);
    let _ = parse_rate(&text);
    let _ = parse_time(&text);
}

/// A reel held in memory.
pub fn reel_file(bytes: &[u8]) {
    let _ = reel::parse(bytes);
}

/// What another rank sends: an envelope, and whatever follows as its first block.
pub fn envelope_of_a_message(bytes: &[u8]) {
    if let Ok(Some(mut arriving)) = Arriving::open(bytes) {
        let is_whole = arriving.is_whole();
        let taken = arriving.take(bytes);
        assert!(!is_whole || taken.is_err(), "a block too many was taken");
    }
}

/// Pictures longer than this take the fuzzer's time and nothing else.
const FUZZED_SIDE_MAX: usize = 64;

/// `preprocessor_config.json`; what is read processes a picture.
pub fn processor(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let data = [7; 5 * 3 * 3];
    if let (Ok(spec), Ok(picture)) = (PictureSpec::from_json(&text), RgbView::new(5, 3, &data)) {
        let small = |shape: [usize; 2]| shape.iter().all(|&side| side <= FUZZED_SIDE_MAX);
        if spec.shape().is_none_or(small) {
            let _ = PictureProcessor::new(spec).pixels(picture);
        }
    }
    for model in ["qwen2_5_vl", "qwen3_vl"] {
        if let Ok(spec) = PatchesSpec::from_json(&text, Medium::Video, model) {
            let sides = [spec.size([480, 640], 32), spec.size([1, 1], 1)];
            let fits = |side: &usize| side.is_multiple_of(spec.factor());
            assert!(sides.iter().flatten().flatten().all(fits), "{sides:?}");
        }
    }
}

/// A template in the words of whoever uploaded it.
pub fn chat_template(bytes: &[u8]) {
    let source = String::from_utf8_lossy(bytes).into_owned();
    let said = Turn {
        role: Role::User,
        content: Content::Words("What moves?".to_owned()),
    };
    if let Ok(template) = ChatTemplate::new("fuzzed", source, Vec::new()) {
        let _ = template.render(&[said]);
    }
}

/// The head of a GGUF file, and what it says of text; ranges lie inside the file.
pub fn gguf_file(bytes: &[u8]) {
    let Ok(header) = Header::read(bytes) else {
        return;
    };
    for tensor in &header.tensors {
        let is_inside = bytes.get(tensor.range.clone()).is_some();
        assert!(is_inside, "{} lies outside the file", tensor.name);
        for part in tensor.clone().by_expert() {
            let is_inside = bytes.get(part.range).is_some();
            assert!(is_inside, "{} lies outside the file", part.name);
        }
    }
    let _ = header.config("llama");
    if let Ok(tokenizer) = gguf::tokenizer(&header) {
        let _ = tokenizer.encode("What moves at 12:30?");
    }
}
