//! Clips with questions: the lines that a decoder is trained on, a tokenizer of their texts, and answers counted.

use std::path::{Path, PathBuf};

use longreel::{
    bench::answers::{Answering, Exam},
    cancel::Cancel,
    encoder::{EncoderModel, PixelBudget},
    error::Kind,
    model::Choices,
    sources::sampler::{Rate, Sampling},
    stages::progress::Counter,
    synth::clip::read_questions,
    train::{
        lines::{LineRules, write_lines},
        unfinished_file::OtherJob,
    },
};
use longreel_models::{
    context::{prompt::FrameTerminators, streaming::StreamingDecoder, tokenizer::Tokenizer},
    spec::ModelSpec,
    training::{
        data::example::{ExampleRules, FieldsOf, VisionRules},
        tokenizer::learn,
    },
};
use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    folders,
    longreel::{command, golden_model, longreel},
};

/// A model with a VQGAN, of random weights: what it says is noise, and is counted all the same.
fn model() -> PathBuf {
    golden_model().to_owned()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A folder with clips in `clips`.
fn clips(n: u64, more: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let out = text(&dir.path().join("clips"));
    let n = n.to_string();
    let mut args = vec![
        "synth", "--out", &out, "--clips", &n, "--side", "64", "--fps", "1", "--split", "test",
    ];
    args.extend(more);
    assert_eq!(longreel(&args).code, 0);
    dir
}

fn lines_of(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

/// Ids of the example that a line is to the model, and which of them are predicted.
fn example(line: &Value) -> (Vec<u32>, Vec<f32>) {
    let config = std::fs::read_to_string(model().join("config.json")).unwrap();
    let spec = ModelSpec::from_json(&config).unwrap();
    let vqgan = spec.vqgan.as_ref().unwrap();
    let tokenizer = Tokenizer::open(&model()).unwrap();
    let rules = ExampleRules {
        tokenizer: &tokenizer,
        fields: FieldsOf::Line("fields".into()),
        vision: Some(VisionRules {
            codes_per_frame: vqgan.codes_per_frame(),
            terminators: FrameTerminators::from(&spec),
            codebook: vqgan.num_embeddings,
            n_frames_max: None,
        }),
        open_codes: &|path| panic!("the line names {}", path.display()),
    };
    let example = rules.example(&line.to_string(), 0).unwrap();
    let ids = example.tokens.iter().map(|token| token.id()).collect();
    (ids, example.loss)
}

#[test]
fn a_line_is_what_ask_and_its_follow_ups_put_into_the_context() {
    let dir = clips(1, &["--length", "3", "--difficulty", "2"]);
    let (clips, out) = (dir.path().join("clips"), dir.path().join("lines.jsonl"));
    let made = longreel(&[
        "train",
        "make-lines",
        &text(&clips),
        "--model",
        &text(&model()),
        "--out",
        &text(&out),
        "--questions",
        "2",
        "--json",
    ]);
    let made = made.json();
    let lines = lines_of(&out);
    assert_eq!(made["lines"], lines.len());
    let line = &lines[0];
    let word = |key: &str, before: &str, behind: &str| {
        let text = line[key].as_str().unwrap();
        let text = text.strip_prefix(before).unwrap();
        text.strip_suffix(behind).unwrap().to_owned()
    };
    let first = word("question_0", "You are a helpful assistant. USER: ", "\n");
    let second = word("question_1", " USER: ", " ASSISTANT:");
    let mut ask = command();
    ask.args(["ask", &text(&clips.join("clips/000000.mp4")), &first]);
    ask.args([
        "--json",
        "--debug-ids",
        "--interactive",
        "--model",
        &text(&model()),
    ]);
    ask.stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut asked = ask.spawn().unwrap();
    {
        use std::io::Write;
        writeln!(asked.stdin.take().unwrap(), "{second}").unwrap();
    }
    let asked = asked.wait_with_output().unwrap();
    let asked: Value = serde_json::from_slice(&asked.stdout).unwrap();
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let prompt = ids(&asked["prompt_ids"]);
    let (of_line, loss) = example(line);
    assert_eq!(of_line[..prompt.len()], prompt);
    // What is asked is not predicted; the answer is, with its end.
    let first_answer = loss[prompt.len()..]
        .iter()
        .take_while(|&&l| l == 1.0)
        .count();
    assert!(first_answer >= 2, "{first_answer} tokens of an answer");
    let behind = prompt.len() + first_answer;
    // An answer that was cut short is closed by the question behind it; that of the line has closed itself.
    let closes = usize::from(asked["finish"] == "length");
    let n = asked["follow_ups"][0]["prompt_tokens"].as_u64().unwrap() as usize - closes;
    assert!(loss[behind..behind + n].iter().all(|&l| l == 0.0));
    assert_eq!(loss[behind + n], 1.0);
}

#[test]
fn lines_go_on_behind_whole_clips_and_come_out_the_same() {
    // Of a clip of one second there is no order to ask for: it has no line.
    let dir = clips(
        8,
        &["--length", "1,6", "--kinds", "order", "--per-kind", "4"],
    );
    let path = |name: &str| dir.path().join(name);
    let encoder = EncoderModel::load(&folders::system(&model()), &PixelBudget::default()).unwrap();
    let rules = LineRules {
        sampling: Sampling::Fps(Rate::new(1, 1).unwrap()),
        questions: 2,
        seed: 1,
        predicts_codes: true,
    };
    let write = |out: &Path| {
        let (clips, done) = (path("clips"), Counter::default());
        write_lines(
            &clips,
            &encoder,
            &rules,
            out,
            OtherJob::IsRefused,
            &done,
            &Default::default(),
        )
        .unwrap()
    };
    let (whole, cut) = (path("whole.jsonl"), path("cut.jsonl"));
    let written = write(&whole);
    assert_eq!((written.clips, written.kept), (4, 0));
    let all = std::fs::read(&whole).unwrap();
    // Every place that a kill may leave, in steps; the head is what the partial file begins with.
    let head = {
        let stopped = longreel::cancel::Cancel::new();
        stopped.cancel();
        let clips = path("clips");
        let done = Counter::default();
        write_lines(
            &clips,
            &encoder,
            &rules,
            &cut,
            OtherJob::IsRefused,
            &done,
            &stopped,
        )
        .unwrap_err();
        std::fs::read(path("cut.jsonl.partial")).unwrap()
    };
    for at in [0, 1, all.len() / 3, all.len() / 2, all.len() - 1] {
        let mut partial = head.clone();
        partial.extend_from_slice(&all[..at]);
        std::fs::write(path("cut.jsonl.partial"), &partial).unwrap();
        let written = write(&cut);
        assert_eq!(std::fs::read(&cut).unwrap(), all, "cut at {at}");
        assert_eq!(written.clips, 4);
        assert_eq!(written.lines as usize, lines_of(&whole).len());
    }
    // Inside a letter.
    let in_a_letter = [&head, &all[..all.len() / 2], b"\xe4\xb8"].concat();
    std::fs::write(path("cut.jsonl.partial"), in_a_letter).unwrap();
    write(&cut);
    assert_eq!(std::fs::read(&cut).unwrap(), all);
    // Lines of other questions are another job's.
    std::fs::write(path("cut.jsonl.partial"), [&head[..], &all].concat()).unwrap();
    let questions = path("clips/questions.jsonl");
    let asked = std::fs::read_to_string(&questions).unwrap();
    std::fs::write(&questions, format!("{asked}\n")).unwrap();
    let refused = write_lines(
        &path("clips"),
        &encoder,
        &rules,
        &cut,
        OtherJob::IsRefused,
        &Counter::default(),
        &Default::default(),
    );
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("belongs to another job"), "{refused}");
}

#[test]
fn make_lines_refuses_what_it_cannot_use() {
    let dir = clips(1, &["--length", "1"]);
    let path = |name: &str| text(&dir.path().join(name));
    std::fs::write(path("there.jsonl"), "").unwrap();
    let make = |clips: &str, out: &str, more: &[&str]| {
        let model = text(&model());
        let mut args = vec![
            "train",
            "make-lines",
            clips,
            "--out",
            out,
            "--model",
            &model,
        ];
        args.extend(more);
        longreel(&args)
    };
    let (clips, out) = (path("clips"), path("out.jsonl"));
    make(&clips, &path("there.jsonl"), &[]).refused(2, "--force replaces it");
    make(&path("nothing"), &out, &[]).refused(2, "questions.jsonl");
    std::fs::write(format!("{out}.partial"), "{}\n{}\n").unwrap();
    make(&clips, &out, &[]).refused(2, "--force");
    assert!(Path::new(&format!("{out}.partial")).exists());
    make(&clips, &out, &["--questions", "0"]).refused(2, "--questions is 0");
    make(&clips, &out, &["--fps", "0"]).refused(2, "--fps");
    let silent = self::clips(2, &["--length", "1", "--kinds", "motion"]);
    let silent = text(&silent.path().join("clips"));
    let unwritten = path("unwritten.jsonl");
    make(&silent, &unwritten, &[]).refused(2, "has no questions, expected some");
    assert!(!Path::new(&unwritten).exists());
}

#[test]
fn a_learned_tokenizer_writes_any_text_and_digits_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    let lines =
        r#"{"question": "What colour is the circle?", "vision": [1, 2], "fields": "[question]"}"#;
    std::fs::write(path("lines.jsonl"), format!("{lines}\n").repeat(20)).unwrap();
    let run = longreel(&[
        "train",
        "tokenizer",
        &path("lines.jsonl"),
        "--vocab-size",
        "300",
        "--out",
        &path("tokenizer"),
        "--json",
    ]);
    assert!(run.json()["vocab_size"].as_u64().unwrap() <= 300);
    let again = |more: &[&str]| {
        let (lines, out) = (path("lines.jsonl"), path("tokenizer"));
        let fixed = [
            "train",
            "tokenizer",
            &lines,
            "--vocab-size",
            "300",
            "--out",
            &out,
        ];
        longreel(&[&fixed, more].concat())
    };
    again(&[]).refused(2, "tokenizer.json exists already; --force replaces it");
    std::fs::write(
        path("lines.jsonl"),
        format!("{lines}\n").repeat(20) + "{\"cut\n\n[1]\n",
    )
    .unwrap();
    let run = again(&["--force", "--json"]);
    assert_eq!(run.json()["skipped_lines"], 2);
    assert!(
        run.stderr.contains("2 lines that are not JSON objects"),
        "{}",
        run.stderr
    );
    let tokenizer = Tokenizer::open(Path::new(&path("tokenizer"))).unwrap();
    let ids = tokenizer.encode("What colour is the circle?").unwrap();
    assert_eq!(ids.len(), 6, "{ids:?}");
    let digits = tokenizer.encode_plain("2026").unwrap();
    assert_eq!(digits.len(), 4, "{digits:?}");
    longreel(&[
        "train",
        "tokenizer",
        &path("lines.jsonl"),
        "--vocab-size",
        "100",
        "--out",
        &path("x"),
    ])
    .refused(2, "expected at least 259");
    std::fs::write(path("empty.txt"), "").unwrap();
    longreel(&[
        "train",
        "tokenizer",
        &path("empty.txt"),
        "--out",
        &path("x"),
    ])
    .refused(2, "no text");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes are tokens, so that nothing is unknown.
    #[test]
    fn any_text_comes_back(written in "\\PC{0,40}") {
        let files = learn(["a red circle", "a blue star"].iter(), 280).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), files.tokenizer).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), files.config).unwrap();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let ids = tokenizer.encode_plain(&written).unwrap();
        let mut stream = StreamingDecoder::of_answer(&tokenizer);
        let mut back = String::new();
        for id in ids {
            back.extend(stream.push(id).unwrap());
        }
        back += &stream.finish().unwrap();
        prop_assert_eq!(back, written);
    }
}

#[test]
fn answers_are_counted_by_kind_beside_the_blind_baseline() {
    let dir = clips(6, &["--length", "2", "--difficulty", "2"]);
    let (clips, said) = (
        text(&dir.path().join("clips")),
        dir.path().join("said.jsonl"),
    );
    let model = text(&model());
    let bench = |more: &[&str]| {
        let mut args = vec!["bench", "answers", &clips, "--model", &model, "--json"];
        args.extend(more);
        longreel(&args).json()
    };
    let seeing = bench(&["--answers", &text(&said)]);
    let blind = bench(&["--noise"]);
    let row = |report: &Value, kind: &str| {
        let rows = report["kinds"].as_array().unwrap();
        rows.iter().find(|row| row["kind"] == kind).unwrap().clone()
    };
    let (all, noise) = (row(&seeing, "all"), row(&blind, "all"));
    let answers = lines_of(&said);
    let right = answers.iter().filter(|a| a["exact"] == true).count();
    assert_eq!(
        (all["asked"].as_u64(), all["right"].as_u64()),
        (Some(answers.len() as u64), Some(right as u64))
    );
    let exact = |a: &Value| {
        let same = |key: &str| a[key].as_str().unwrap().trim().to_lowercase();
        same("said").trim_end_matches('.').trim_end() == same("answer")
    };
    assert!(answers.iter().all(|a| exact(a) == (a["exact"] == true)));
    assert_eq!(all["asked"], noise["asked"]);
    let prior = |row: &Value, key: &str| row[key].as_f64().unwrap();
    assert!(prior(&all, "prior") > 0.1 && prior(&all, "prior") <= prior(&all, "prior_by_form"));
    assert_eq!(
        (all["prior"].clone(), seeing["noise"].clone()),
        (noise["prior"].clone(), false.into())
    );
}

#[test]
fn a_clip_that_fails_loses_no_answer_to_others() {
    let dir = clips(4, &["--length", "1"]);
    let path = |name: &str| text(&dir.path().join(name));
    std::fs::remove_file(path("clips/clips/000003.mp4")).unwrap();
    let (clips, said, model) = (path("clips"), path("said.jsonl"), text(&model()));
    let bench = |more: &[&str]| {
        let mut args = vec!["bench", "answers", &clips, "--model", &model];
        args.extend(more);
        longreel(&args)
    };
    bench(&["--answers", &said, "--max-new-tokens", "1"]).refused(2, "000003.mp4");
    let answers = lines_of(Path::new(&said));
    let videos: Vec<&str> = answers.iter().filter_map(|a| a["video"].as_str()).collect();
    assert!(videos.contains(&"clips/000000.mp4"), "{videos:?}");
    assert!(!videos.contains(&"clips/000003.mp4"), "{videos:?}");
    assert!(answers.iter().any(|a| a["cut"] == true), "{answers:?}");
    // Before anything is asked.
    bench(&["--out", &path("nowhere/rows.jsonl")]).refused(2, "is not a directory");
    bench(&["--first", "0"]).refused(2, "--first is 0, expected 1");
    for option in ["--answers", "--heat-map"] {
        bench(&[option, "/dev/full"]).refused(2, "/dev/full: is a device or a pipe");
    }
}

#[test]
fn answers_before_an_interruption_are_kept() {
    let dir = clips(40, &["--length", "1", "--difficulty", "1"]);
    let dir = dir.path().join("clips");
    let mut clips = Vec::new();
    let mut keep = |line| {
        clips.push(line);
        Ok(())
    };
    read_questions(&dir, &mut keep).unwrap();
    let sampling = Sampling::Fps(Rate::new(1, 1).unwrap());
    let words = "one a second".to_owned();
    let answering = Answering::open(
        &folders::system(&model()),
        Choices::default(),
        sampling,
        words,
        4,
    )
    .unwrap();
    let exam = Exam {
        answering: &answering,
        dir: &dir,
        clips: &clips,
        noise: false,
        workers: 1,
    };
    let (done, cancel, mut asked) = (Counter::default(), Cancel::default(), Vec::new());
    let of_two_clips = (clips[0].questions.len() + clips[1].questions.len()) as u64;
    let taken = std::thread::scope(|scope| {
        scope.spawn(|| {
            while done.get() <= of_two_clips {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            cancel.cancel();
        });
        exam.take(&mut asked, &done, &cancel)
    });
    assert_eq!(taken.unwrap_err().kind(), Kind::Interrupted);
    let questions: usize = clips.iter().map(|clip| clip.questions.len()).sum();
    assert!(
        asked.len() as u64 >= of_two_clips && asked.len() < questions,
        "{} of {questions}",
        asked.len()
    );
    // The clips that were done, from the first one on.
    let truths = clips.iter().flat_map(|clip| &clip.questions);
    let truths: Vec<&str> = truths.map(|q| q.answer.as_str()).collect();
    let answers: Vec<&str> = asked.iter().map(|a| a.answer.as_str()).collect();
    assert_eq!(answers, truths[..answers.len()]);
}

#[test]
fn needles_are_drawn_by_length_and_depth() {
    let other_clips = clips(1, &["--length", "2"]);
    let dir = clips(4, &["--needle", "--length", "2,4", "--depth", "0,100"]);
    let (clips, map) = (text(&dir.path().join("clips")), dir.path().join("map.svg"));
    let model = text(&model());
    let report = longreel(&[
        "bench",
        "answers",
        &clips,
        "--model",
        &model,
        "--heat-map",
        &text(&map),
        "--json",
    ])
    .json();
    let cells = report["needles"].as_array().unwrap();
    let places: Vec<(u64, u64)> = cells
        .iter()
        .map(|c| {
            (
                c["seconds"].as_u64().unwrap(),
                c["depth_tenths"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(places, [(2, 0), (2, 10), (4, 0), (4, 10)]);
    let svg = std::fs::read_to_string(map).unwrap();
    assert!(svg.contains("4 s") && svg.contains("100%"), "{svg}");
    let others = text(&other_clips.path().join("clips"));
    longreel(&[
        "bench",
        "answers",
        &others,
        "--model",
        &model,
        "--heat-map",
        &text(&dir.path().join("none.svg")),
    ])
    .refused(2, "have no needles");
}

#[test]
fn the_demo_asks_all_about_a_clip_made_on_the_spot() {
    let dir = tempfile::tempdir().unwrap();
    let demo = |seed: &str| {
        let (out, model) = (text(dir.path()), text(&model()));
        let args = [
            "demo", "--model", &model, "--out", &out, "--seed", seed, "--length", "3",
        ];
        let run = longreel(&[&args[..], &["--json"]].concat());
        run.json()
    };
    let (first, again, other) = (demo("5"), demo("5"), demo("6"));
    let questions = |run: &Value| -> Vec<Value> {
        let answers = run["answers"].as_array().unwrap();
        answers.iter().map(|a| a["question"].clone()).collect()
    };
    assert_eq!(questions(&first), questions(&again));
    assert_ne!(questions(&first), questions(&other));
    assert_eq!(first["video"][0]["pts"], serde_json::json!([0.0, 1.0, 2.0]));
    assert!(
        first["answers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|a| a["expected"] != "")
    );
}

/// The program with an empty cache in `dir`.
fn with_cache(dir: &Path, args: &[&str]) -> std::process::Output {
    let mut command = command();
    command.args(args).env("XDG_CACHE_HOME", dir.join("cache"));
    command.output().unwrap()
}

#[test]
fn the_demo_model_is_the_default_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (mut asked, mut right) = (0, 0);
    for seed in ["1", "2", "3", "4"] {
        let out = text(&dir.path().join("clip"));
        let args = ["demo", "--out", &out, "--seed", seed, "--json"];
        let run = with_cache(dir.path(), &args);
        assert!(run.status.success(), "{run:?}");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(said.contains("the demo model answers"), "{said}");
        let report: Value = serde_json::from_slice(&run.stdout).unwrap();
        asked += report["answers"].as_array().unwrap().len() as u64;
        right += report["right"].as_u64().unwrap();
    }
    // Someone who sees nothing has fewer than one of three right.
    assert!(asked >= 16 && 4 * right >= 3 * asked, "{right} of {asked}");

    let clip = text(&dir.path().join("clip/clips/000000.mp4"));
    let ask = || with_cache(dir.path(), &["ask", &clip, "What is shown at second 0?"]);
    let first = ask();
    let said = String::from_utf8(first.stderr).unwrap();
    assert!(
        said.contains("no model is named: the demo model answers"),
        "{said}"
    );
    // A file that holds something else is written again, whatever its length.
    let model = std::fs::read_dir(dir.path().join("cache/longreel")).unwrap();
    let model = model.map(|entry| entry.unwrap().path()).next().unwrap();
    let config = model.join("config.json");
    let length = std::fs::metadata(&config).unwrap().len() as usize;
    std::fs::write(&config, " ".repeat(length)).unwrap();
    assert_eq!(ask().stdout, first.stdout);
    let nowhere = command()
        .args(["ask", &clip, "What is shown?"])
        .env_remove("XDG_CACHE_HOME")
        .env_remove("HOME")
        .output()
        .unwrap();
    let said = String::from_utf8(nowhere.stderr).unwrap();
    assert!(said.contains("the demo model has no place"), "{said}");
    assert_eq!(nowhere.status.code(), Some(2));
}

#[test]
fn questions_beyond_the_demo_model_are_refused_or_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let out = text(&dir.path().join("clip"));
    let told = |more: &[&str]| {
        let args = [&["demo", "--out", &out, "--seed", "1"], more].concat();
        let run = with_cache(dir.path(), &args);
        assert!(run.status.success(), "{run:?}");
        String::from_utf8(run.stderr).unwrap()
    };
    let said = told(&["--length", "9"]);
    assert!(said.contains("at most 4 frames, these are 9"), "{said}");
    let said = told(&["--difficulty", "2"]);
    assert!(said.contains("one object at a time"), "{said}");
    let said = told(&[]);
    assert!(!said.contains("do not trust"), "{said}");
    let refused = |args: &[&str], why: &str| {
        let run = with_cache(dir.path(), args);
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(said.contains(why), "{said}");
        assert_eq!(run.status.code(), Some(2));
    };
    refused(&["ask", "What is a shard?"], "only answers about videos");
    let gguf = ["ask", "a.mp4", "What?", "--decoder", "x.gguf"];
    refused(&gguf, "--model");
}

#[test]
fn the_demo_replaces_its_own_clip_and_no_other() {
    let dir = clips(3, &["--length", "2"]);
    let (out, model) = (text(&dir.path().join("clips")), text(&model()));
    let refused =
        || longreel(&["demo", "--model", &model, "--out", &out]).refused(2, "did not make");
    refused();
    let n = std::fs::read_dir(dir.path().join("clips/clips")).unwrap();
    assert_eq!(n.count(), 3);
    // One clip of the demo's size is not a demo's for that.
    let one = [
        "synth", "--out", &out, "--clips", "1", "--side", "256", "--fps", "8", "--force",
    ];
    assert_eq!(longreel(&one).code, 0);
    refused();
}
