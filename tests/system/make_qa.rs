//! `longreel train make-qa`: a small model is taught to write pairs, and what it writes about long texts and reels
//! becomes lines that a decoder is trained on.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::Duration,
};

use longreel::{
    model::ModelFiles,
    train::{
        lines::{Subject, line},
        make_qa::{
            ABOUT_TEXT, Chunk, ChunkContent, chunks_of_reel, chunks_of_text, question_about,
        },
        pairs::{End, pairs_of},
    },
};
use longreel_models::context::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{
    folders, golden,
    longreel::{Run, command, golden_clip, golden_model, longreel, scratch},
};

const THINGS: [(&str, &str); 12] = [
    ("boat", "at the pier"),
    ("cat", "on the roof"),
    ("piano", "in the hall"),
    ("bicycle", "behind the house"),
    ("letter", "under the stone"),
    ("lamp", "over the table"),
    ("horse", "near the river"),
    ("key", "beside the door"),
    ("bell", "above the gate"),
    ("mirror", "between two windows"),
    ("carpet", "along the corridor"),
    ("clock", "inside the tower"),
];

/// Most tokens of a line of the tests.
const CONTEXT: usize = 220;

/// One thing a line.
fn document() -> String {
    let sentence = |(thing, place): (&str, &str)| format!("The {thing} is {place}.\n");
    THINGS.into_iter().map(sentence).collect()
}

/// Two pairs about a thing, as the model is taught to write them.
fn pairs_about((thing, place): (&str, &str)) -> [(String, String); 2] {
    [
        (format!("Where is the {thing}?"), place.to_owned()),
        (format!("What is {place}?"), format!("the {thing}")),
    ]
}

fn words(chunk: &Chunk) -> &str {
    match &chunk.content {
        ChunkContent::Words(words) => words,
        ChunkContent::Codes(_) => panic!("codes of a text"),
    }
}

/// The folder where a model was taught to write pairs about [`document`], and the tokens of its chunks.
struct Taught {
    dir: PathBuf,
    chunk: usize,
}

impl Taught {
    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

fn recipe(model: &str, lines: &str, steps: u32, row: [usize; 2], lr: f64) -> String {
    let [rows, seq_length] = row;
    format!(
        r#"
steps = {steps}
checkpoint_every = 10000
[model]
{model}
[data]
train = ["{lines}"]
dealing = "packed"
seq_length = {seq_length}
rows = {rows}
[recipe]
reduction = "examples"
[recipe.optimizer]
b1 = 0.9
b2 = 0.95
eps = 1e-8
weight_decay = 0.0
clip_gradient = 1.0
[recipe.schedule]
lr = {lr:e}
lr_warmup_steps = 10
"#
    )
}

const SPEC: &str = r#"
model_type = "llama"
[decoder]
vocab_size = 512
hidden_size = 64
intermediate_size = 176
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 256
rms_norm_eps = 1e-6
rope_theta = 10000.0
rope_pairs = "halves"
"#;

/// Trains by `config` in `dir`, whose run is `out`.
fn train(dir: &Path, config: &str, out: &str) -> Value {
    fs::write(dir.join("stage.toml"), config).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let run = longreel(&[
        "train",
        "decoder",
        &path("stage.toml"),
        "--out",
        &path(out),
        "--json",
    ]);
    run.json()
}

/// Once per test run.
fn taught() -> &'static Taught {
    static TAUGHT: OnceLock<Taught> = OnceLock::new();
    TAUGHT.get_or_init(|| teach(&scratch().join("make-qa")))
}

fn teach(dir: &Path) -> Taught {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let instruction = ABOUT_TEXT.replace("{pairs}", "2");
    let answer = |thing| {
        let pairs = pairs_about(thing);
        let lines = pairs.map(|(q, a)| format!(" Question: {q}\nAnswer: {a}"));
        lines.join("\n").replace("\n ", "\n")
    };
    let answers: Vec<String> = THINGS.into_iter().map(answer).collect();
    fs::write(dir.join("document.txt"), document()).unwrap();
    let chat = "You are a helpful assistant. USER: ASSISTANT:\n".repeat(20);
    let texts = [chat, document(), instruction.clone(), answers.join("\n")].join("\n");
    fs::write(dir.join("texts.txt"), texts).unwrap();
    let learned = longreel(&[
        "train",
        "tokenizer",
        &path("texts.txt"),
        "--vocab-size",
        "512",
        "--out",
        &path("tokenizer"),
    ]);
    assert_eq!(learned.code, 0, "{}", learned.stderr);
    // As for LLaMA, a prompt begins with the token that begins a text.
    let config = json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    fs::write(
        dir.join("tokenizer/tokenizer_config.json"),
        config.to_string(),
    )
    .unwrap();
    let tokenizer = Tokenizer::open(&dir.join("tokenizer")).unwrap();
    let length = |line: &str| tokenizer.encode_plain(line).unwrap().len();
    let text = document();
    let chunk = text.split_inclusive('\n').map(length).max().unwrap();
    let chunks = chunks_of_text(&tokenizer, &text, chunk).unwrap();
    assert_eq!(chunks.len(), THINGS.len());
    let lines = chunks.iter().zip(&answers).map(|(chunk, answer)| {
        let question = question_about(words(chunk), &instruction);
        let prompt = format!("You are a helpful assistant. USER: {question} ASSISTANT:");
        json!({"prompt": prompt, "answer": answer, "fields": "[prompt],answer"}).to_string()
    });
    let lines: Vec<String> = lines.collect();
    fs::write(dir.join("lessons.jsonl"), lines.join("\n")).unwrap();
    fs::write(dir.join("model.toml"), SPEC).unwrap();
    let model = "spec = \"model.toml\"\ntokenizer = \"tokenizer\"";
    let json = train(
        dir,
        &recipe(model, "lessons.jsonl", 110, [5, 256], 3e-3),
        "run",
    );
    let accuracy = json["last"]["text_accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.99, "{accuracy}");
    Taught {
        dir: dir.to_owned(),
        chunk,
    }
}

/// Arguments of the verb about the document.
fn arguments(taught: &Taught, out: &str) -> Vec<String> {
    let mut all: Vec<String> = ["train", "make-qa"].map(String::from).into();
    all.extend([
        taught.path("document.txt"),
        "--model".into(),
        taught.path("run/model"),
        "--out".into(),
        taught.path(out),
        "--chunk".into(),
        taught.chunk.to_string(),
        "--context".into(),
        CONTEXT.to_string(),
        "--max-new-tokens".into(),
        "80".into(),
        "--json".into(),
    ]);
    all
}

fn make_qa(taught: &Taught, out: &str, more: &[&str]) -> Run {
    let _ = fs::remove_file(taught.path(out));
    let mut all = arguments(taught, out);
    all.extend(more.iter().map(|s| (*s).to_owned()));
    longreel(&all)
}

fn lines_of(path: impl AsRef<Path>) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn lines_hold_the_whole_document_followed_by_all_pairs() {
    let taught = taught();
    let json = make_qa(taught, "qa.jsonl", &[]).json();
    assert_eq!(json["chunks"], 12, "{json}");
    assert_eq!(json["chunks_without_pairs"], json!([]));
    assert_eq!(json["pairs"], 24);
    let lines = lines_of(taught.path("qa.jsonl"));
    assert!(lines.len() > 1 && lines.len() < 12, "{}", lines.len());
    assert_eq!(json["lines"], lines.len());
    let documents = lines.iter().map(|line| line["document"].as_str().unwrap());
    assert_eq!(documents.collect::<String>(), document());
    let mut things = THINGS.into_iter();
    for line in &lines {
        let sentences = line["document"].as_str().unwrap().lines().count();
        let about = things.by_ref().take(sentences).flat_map(pairs_about);
        let mut fields = "[document]".to_owned();
        for (i, (question, answer)) in about.enumerate() {
            assert_eq!(
                line[format!("question_{i}")],
                format!(" USER: {question} ASSISTANT:")
            );
            assert_eq!(line[format!("answer_{i}")], format!(" {answer}"));
            fields += if i == 0 { "" } else { ",<|eos|>" };
            fields += &format!(",[question_{i}],answer_{i}");
        }
        assert_eq!(line["fields"], fields);
    }
    // What a decoder is trained on: rows of as many tokens hold every line.
    let longest = json["longest_line_tokens"].as_u64().unwrap() as usize;
    assert!(longest <= CONTEXT && longest > CONTEXT / 2, "{longest}");
    let model = "spec = \"model.toml\"\ntokenizer = \"tokenizer\"";
    let config = recipe(model, "qa.jsonl", 2, [lines.len(), longest - 1], 1e-3);
    let trained = train(&taught.dir, &config, "trained-on-pairs");
    assert_eq!(
        (&trained["steps"], &trained["skipped_lines"]),
        (&json!(2), &json!(0))
    );
}

#[test]
fn a_stopped_run_goes_on_to_the_same_file() {
    let taught = taught();
    assert_eq!(
        make_qa(taught, "whole.jsonl", &["--temperature", "0.3"]).code,
        0
    );
    let mut stopped = arguments(taught, "stopped.jsonl");
    stopped.extend(["--temperature", "0.3"].map(String::from));
    let child = command().args(&stopped).spawn().unwrap();
    let partial = taught.path("stopped.jsonl.partial");
    let n_lines = || fs::read_to_string(&partial).map_or(0, |text| text.matches('\n').count());
    while n_lines() < 4 {
        thread::sleep(Duration::from_millis(1));
    }
    let stop = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(stop.unwrap().success());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(75));
    assert!(!Path::new(&taught.path("stopped.jsonl")).is_file());
    // Other options would be another job.
    longreel(&arguments(taught, "stopped.jsonl")).refused(2, "belongs to another job");
    let json = longreel(&stopped).json();
    assert!(json["kept"].as_u64().unwrap() >= 3, "{json}");
    let bytes = |name| fs::read(taught.path(name)).unwrap();
    assert!(bytes("stopped.jsonl") == bytes("whole.jsonl"));
    assert!(!Path::new(&partial).exists());
    longreel(&stopped).refused(2, "exists already; --force replaces it");
    stopped.push("--force".into());
    assert_eq!(longreel(&stopped).json()["kept"], 0);
}

#[test]
fn a_model_that_writes_no_pair_is_quoted() {
    let taught = taught();
    let out = taught.path("none.jsonl");
    let run = longreel(&[
        "train",
        "make-qa",
        &taught.path("document.txt"),
        "--model",
        &golden_model().display().to_string(),
        "--out",
        &out,
        "--chunk",
        "200",
        "--max-new-tokens",
        "4",
    ]);
    run.refused(2, "the model wrote no pair about any of ");
    run.refused(2, "; about bytes ");
    assert!(!Path::new(&out).exists() && !Path::new(&(out + ".partial")).exists());
}

#[test]
fn unusable_inputs_are_refused_with_what_was_expected() {
    let taught = taught();
    make_qa(taught, "no.jsonl", &["--pairs", "0"]).refused(2, "--pairs is 0, expected 1 to");
    let mut long = arguments(taught, "no.jsonl");
    let answer = long.iter().position(|a| a == "80").unwrap();
    long[answer] = "250".into();
    longreel(&long).refused(
        2,
        "the model's context is 256 tokens: take a smaller --chunk",
    );
    let mut tight = arguments(taught, "no.jsonl");
    let context = tight.iter().position(|a| a == "--context").unwrap();
    tight[context + 1] = "8".into();
    longreel(&tight).refused(
        2,
        "a line has 8: take a smaller --chunk or a larger --context",
    );
    tight[context + 1] = (taught.chunk + 4).to_string();
    longreel(&tight).refused(2, "no chunk fits a line of");
    for (name, bytes, expected) in [
        (
            "blank.txt",
            &b" \n\t\n"[..],
            "it has no words, expected a text",
        ),
        (
            "bytes.txt",
            b"abc\xff",
            "byte 3 is not UTF-8, expected a text or a reel",
        ),
    ] {
        fs::write(taught.dir.join(name), bytes).unwrap();
        let mut all = arguments(taught, "no.jsonl");
        all[2] = taught.path(name);
        longreel(&all).refused(2, expected);
    }
    let blank = taught.path("blank.txt");
    make_qa(taught, "no.jsonl", &["--prompt", &blank])
        .refused(2, "it has no words, expected what the model is asked");
}

#[test]
fn the_frames_of_a_reel_stand_in_one_line_with_pairs_about_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let golden = golden_model().display().to_string();
    let clip = golden_clip().display().to_string();
    let encoded = longreel(&[
        "encode",
        &clip,
        "--out",
        &path("clip.reel"),
        "--model",
        &golden,
        "--all-frames",
    ]);
    assert_eq!(encoded.code, 0, "{}", encoded.stderr);
    fs::write(dir.path().join("ask.txt"), "Ask {pairs}.").unwrap();
    let files = ModelFiles::open(&folders::system(golden_model())).unwrap();
    let chunks = chunks_of_reel(&dir.path().join("clip.reel"), &files, 2).unwrap();
    let codes = chunks.iter().map(|chunk| match &chunk.content {
        ChunkContent::Codes(codes) => codes.as_slice(),
        ChunkContent::Words(_) => panic!("words of a reel"),
    });
    let codes: Vec<&[u32]> = codes.collect();
    assert_eq!(
        codes.iter().map(|c| c.len() / 256).collect::<Vec<_>>(),
        [2, 2, 1]
    );
    let lessons = codes.iter().map(|codes| {
        let shown = Subject::Codes {
            codes,
            are_predicted: false,
        };
        line(shown, [("Ask 1.", "Q: Is it?\nA: It is.")]).to_string()
    });
    let lessons: Vec<String> = lessons.collect();
    fs::write(dir.path().join("lessons.jsonl"), lessons.join("\n")).unwrap();
    let model = format!("init = \"{golden}\"");
    let config = recipe(&model, "lessons.jsonl", 80, [3, 640], 1e-2);
    let trained = train(dir.path(), &config, "run");
    let accuracy = trained["last"]["text_accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.97, "{accuracy}");
    let made = longreel(&[
        "train",
        "make-qa",
        &path("clip.reel"),
        "--model",
        &path("run/model"),
        "--out",
        &path("qa.jsonl"),
        "--chunk",
        "2",
        "--pairs",
        "1",
        "--prompt",
        &path("ask.txt"),
        "--max-new-tokens",
        "60",
        "--json",
    ]);
    let json = made.json();
    assert_eq!(
        (&json["chunks"], &json["pairs"]),
        (&json!(3), &json!(3)),
        "{json}"
    );
    let lines = lines_of(dir.path().join("qa.jsonl"));
    let pairs = [("Is it?", "It is."); 3];
    let shown = Subject::Codes {
        codes: &codes.concat(),
        are_predicted: false,
    };
    assert_eq!(lines, [line(shown, pairs)]);
    let fields = "[question_0],[vision],[call],answer_0,<|eos|>,[question_1],answer_1,<|eos|>,[question_2],answer_2";
    assert_eq!(lines[0]["fields"], fields);
}

#[test]
fn outputs_of_many_forms_are_read_as_pairs() {
    let one = &[("What is it?", "A boat.")][..];
    let two = &[("What is it?", "A boat."), ("Where?", "At sea.")][..];
    let none = &[][..];
    for (text, end, expected) in [
        ("Question: What is it?\nAnswer: A boat.", End::Whole, one),
        (
            "Q: What is it?\nA: A boat.\nQ: Where?\nA: At sea.",
            End::Whole,
            two,
        ),
        (
            "\n\nquestion:What is it?\n\nANSWER :  A boat.  \n\n",
            End::Whole,
            one,
        ),
        (
            "1. Question: What is it?\nAnswer: A boat.\n2) Q: Where?\n   A: At sea.",
            End::Whole,
            two,
        ),
        (
            "Question 1: What is it?\nAnswer 1: A boat.\nQ2. Where?\nA2) At sea.",
            End::Whole,
            two,
        ),
        (
            "**Question:** What is it?\n**Answer: A boat.**",
            End::Whole,
            one,
        ),
        ("- Q: What is it?\n- A: A boat.", End::Whole, one),
        ("Question: What is it? Answer: A boat.", End::Whole, one),
        (
            "Here are pairs.\nQ: What\nis it?\nA: A\nboat.\n\nI hope this helps.",
            End::Whole,
            one,
        ),
        (
            "Question:\nWhat is it?\nAnswer:\n\nA boat.",
            End::Whole,
            one,
        ),
        ("Q: What is it?\nA: A boat.\nQ: Where?", End::Whole, one),
        (
            "Q: What is it?\nA: A boat.\nQ: Where?\nA: At s",
            End::Cut,
            one,
        ),
        ("Q: What is it?\nA: A boat.\n", End::Cut, one),
        (
            "Q: Why?\nQ: What is it?\nA: A boat.\nA: Not a boat.",
            End::Whole,
            one,
        ),
        ("Question: ...\nAnswer: ...", End::Whole, none),
        ("A: A boat.", End::Whole, none),
        ("A boat is at the pier. Qatar: a land", End::Whole, none),
        ("", End::Cut, none),
    ] {
        let pairs = pairs_of(text, end);
        let pairs: Vec<(&str, &str)> = pairs
            .iter()
            .map(|pair| (pair.question.as_str(), pair.answer.as_str()))
            .collect();
        assert_eq!(pairs, expected, "{text:?}");
    }
}

#[test]
fn a_text_is_cut_behind_sentences_and_lines() {
    let tokenizer = Tokenizer::open(&golden::path("tokenizer")).unwrap();
    let text = "It rains. \"Does it?\" he said! 3.5 mm fell.\nA line\n\nその通り。次";
    let chunks = chunks_of_text(&tokenizer, text, 1 << 20).unwrap();
    assert_eq!(chunks.iter().map(words).collect::<String>(), text);
    assert_eq!(chunks.len(), 1);
    let length = |part: &str| tokenizer.encode_plain(part).unwrap().len();
    let parts = [
        "It rains. ",
        "\"Does it?\" ",
        "he said! ",
        "3.5 mm fell.\n",
        "A line\n\n",
        "その通り。",
        "次",
    ];
    let most = parts.iter().map(|part| length(part)).max().unwrap();
    let chunks = chunks_of_text(&tokenizer, text, most).unwrap();
    let mut parts = parts.as_slice();
    for chunk in &chunks {
        let n = (1..=parts.len()).find(|&n| parts[..n].concat() == words(chunk));
        parts = &parts[n.unwrap_or_else(|| panic!("{:?} ends in a sentence", words(chunk)))..];
    }
}

proptest! {
    #[test]
    fn the_parser_of_pairs_accepts_any_text(
        parts in proptest::collection::vec(prop_oneof![
            any::<String>(),
            "(Question|question 1|Q|A|Answer|\\*\\*A|answer)(:|\\.|：| :)?",
            "[\n .:*0-9]{0,4}",
        ], 0..20),
        is_cut in any::<bool>(),
    ) {
        let text = parts.concat();
        for pair in pairs_of(&text, if is_cut { End::Cut } else { End::Whole }) {
            for text in [&pair.question, &pair.answer] {
                prop_assert!(text.trim() == text && !text.contains('\n'), "{:?}", text);
                prop_assert!(text.contains(char::is_alphanumeric), "{:?}", text);
            }
        }
    }

    #[test]
    fn chunks_are_the_text(text in any::<String>(), stops in "([a-z]{1,9}[.!?]?[ \n]{0,3}){0,30}", most in 1usize..30) {
        let tokenizer = Tokenizer::open(&golden::path("tokenizer")).unwrap();
        for text in [text, stops] {
            let chunks = chunks_of_text(&tokenizer, &text, most).unwrap();
            prop_assert_eq!(chunks.iter().map(words).collect::<String>(), text);
            prop_assert!(chunks.iter().all(|chunk| !words(chunk).is_empty()));
        }
    }
}
