//! `longreel train decoder` as a user runs it: begun, stopped, killed, gone on with, shared among ranks.

use std::{
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    golden,
    longreel::{Run, command, golden_model, longreel},
};

/// A folder with lines and a configuration that trains the golden decoder on.
struct Stage(TempDir);

/// The recipe of the tests; `more` are further keys of the data.
fn config(steps: u64, more: &str) -> String {
    let model = golden_model().display().to_string();
    format!(
        r#"
steps = {steps}
checkpoint_every = 4
evaluate_every = 10
[model]
init = "{model}"
[data]
train = ["train.jsonl"]
held_out = ["held_out.jsonl"]
dealing = "packed"
seq_length = 320
rows = 2
shuffle = true
{more}
[recipe]
reduction = "examples"
[recipe.schedule]
lr = 1e-3
lr_warmup_steps = 2
"#
    )
}

/// Lines with a frame of 256 codes each, and one that is none.
fn lines(n: u32) -> String {
    let line = |i: u32| {
        let codes: Vec<u32> = (0..256).map(|k| (k * 7 + i * 13) % 128).collect();
        json!({"q": format!("What is the video about? {i}"), "vision": codes, "a": "a red car",
               "fields": "[q],[vision],a"})
        .to_string()
    };
    let mut all: Vec<String> = (0..n).map(line).collect();
    all.insert(1, "{\"broken".to_owned());
    all.join("\n") + "\n"
}

impl Stage {
    fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("stage.toml"), config).unwrap();
        std::fs::write(dir.path().join("train.jsonl"), lines(9)).unwrap();
        std::fs::write(dir.path().join("held_out.jsonl"), lines(3)).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn arguments(&self, out: &str, more: &[&str]) -> Vec<String> {
        let path = |name| self.path(name).display().to_string();
        let mut all: Vec<String> = ["train", "decoder"].map(String::from).into();
        all.extend([
            path("stage.toml"),
            "--out".into(),
            path(out),
            "--json".into(),
        ]);
        all.extend(more.iter().map(|s| (*s).to_owned()));
        all
    }

    fn train(&self, out: &str, more: &[&str]) -> Run {
        longreel(&self.arguments(out, more))
    }

    fn figures(&self, out: &str) -> Vec<Value> {
        let text =
            std::fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn weights(&self, out: &str) -> Vec<u8> {
        let files = std::fs::read_dir(self.path(out).join("model")).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let is_weights = |path: &PathBuf| path.extension().is_some_and(|e| e == "safetensors");
        let mut weights: Vec<PathBuf> = paths.filter(is_weights).collect();
        weights.sort();
        assert!(!weights.is_empty());
        weights
            .iter()
            .flat_map(|path| std::fs::read(path).unwrap())
            .collect()
    }
}

/// Losses of the batches, step by step.
fn curve(figures: &[Value]) -> Vec<f64> {
    let of_steps = figures.iter().filter(|f| f["held_out"] == false);
    of_steps.map(|f| f["loss"].as_f64().unwrap()).collect()
}

#[test]
fn a_run_leaves_figures_a_plot_and_a_model_that_answers() {
    let stage = Stage::new(&config(12, ""));
    let json = stage.train("run", &[]).json();
    // One line of those trained on and one held out are none, in however many passes.
    assert_eq!(
        (&json["steps"], &json["skipped_lines"]),
        (&json!(12), &json!(2))
    );
    let figures = stage.figures("run");
    assert_eq!(figures.iter().filter(|f| f["held_out"] == true).count(), 2);
    let curve = curve(&figures);
    assert_eq!(curve.len(), 12);
    // What a configuration does not ask for is not in a run's: later versions may have more to ask for.
    let begun = std::fs::read_to_string(stage.path("run/config.toml")).unwrap();
    assert!(!begun.contains("batches_at_a_time"), "{begun}");
    assert!(curve[11] < 0.8 * curve[0], "{curve:?}");
    let svg = std::fs::read_to_string(stage.path("run/loss.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("held out"));
    let model = stage.path("run/model").display().to_string();
    assert_eq!(longreel(&["models", "verify", &model]).code, 0);
    let clip = golden::clip("nasa_13013.mp4").display().to_string();
    let answer = longreel(&[
        "ask",
        &clip,
        "What?",
        "--model",
        &model,
        "--frames",
        "1",
        "--max-new-tokens",
        "4",
    ]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
}

#[test]
fn an_invalid_line_is_named_with_its_number() {
    let stage = Stage::new(&config(2, ""));
    let run = stage.train("run", &[]);
    assert!(
        run.stderr.contains("train.jsonl, line 2: it is no JSON"),
        "{}",
        run.stderr
    );
}

#[test]
fn skipped_lines_are_counted_once_and_the_first_few_are_named() {
    let stage = Stage::new(&config(20, ""));
    let broken = "{\"broken\n".repeat(6);
    std::fs::write(stage.path("train.jsonl"), lines(9) + &broken).unwrap();
    let run = stage.train("run", &[]);
    assert_eq!(run.json()["skipped_lines"], 8);
    let named = run.stderr.matches(".jsonl, line ").count();
    assert_eq!(named, 6, "{}", run.stderr);
    assert!(
        run.stderr.contains("left out: 2 more lines"),
        "{}",
        run.stderr
    );
    // A run that is at its end says what its last step came to.
    let again = stage.train("run", &[]).json();
    assert_eq!(again["last"], stage.figures("run")[20]);
}

#[test]
fn too_long_lines_are_skipped_where_there_are_shorter_ones() {
    let text = config(3, "").replace("seq_length = 320", "seq_length = 100");
    let stage = Stage::new(&text.replace("[\"held_out.jsonl\"]", "[]"));
    let short = r#"{"q": "What is it?", "a": "a car", "fields": "[q],a"}"#;
    let all = lines(9) + &format!("{short}\n").repeat(3);
    std::fs::write(stage.path("train.jsonl"), all).unwrap();
    // A batch takes several passes, each with more long lines than short ones.
    let run = stage.train("run", &[]);
    assert_eq!(run.json()["skipped_lines"], 10);
    assert!(run.stderr.contains("line 1: it has"), "{}", run.stderr);
}

#[test]
fn held_out_lines_are_read_before_the_first_step() {
    let stage = Stage::new(&config(2, ""));
    let refused = |expected: &str| {
        stage.train("run", &[]).refused(2, expected);
        assert_eq!(stage.figures("run"), [] as [Value; 0]);
    };
    std::fs::write(stage.path("held_out.jsonl"), "{\"broken\n").unwrap();
    refused("data.held_out: no line is an example");
    let long = lines(9).replace("a red car", &"a red car ".repeat(99));
    std::fs::write(stage.path("held_out.jsonl"), long).unwrap();
    refused("data.held_out: no line is an example of at most 321 tokens");
    std::fs::remove_file(stage.path("held_out.jsonl")).unwrap();
    refused("held_out.jsonl: no such file");
}

#[test]
fn held_out_lines_have_one_loss_in_however_many_batches() {
    let losses = ["rows = 1", "rows = 8"].map(|rows| {
        let text = config(1, "").replace("rows = 2", rows);
        let stage = Stage::new(&text.replace("lr = 1e-3", "lr = 0.0"));
        std::fs::write(stage.path("held_out.jsonl"), lines(7)).unwrap();
        assert_eq!(stage.train("run", &[]).code, 0);
        let figures = stage.figures("run");
        let held_out = figures.iter().find(|f| f["held_out"] == true);
        held_out.unwrap()["loss"].as_f64().unwrap()
    });
    assert!((losses[0] - losses[1]).abs() < 1e-5, "{losses:?}");
}

#[test]
fn a_folder_that_is_trained_in_is_refused() {
    let stage = Stage::new(&config(100_000, ""));
    let mut child = command().args(stage.arguments("run", &[])).spawn().unwrap();
    while stage.figures_so_far("run") < 2 {
        thread::sleep(Duration::from_millis(5));
    }
    stage
        .train("run", &[])
        .refused(2, "another process trains in it");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let stage = Stage::new(&config(30, ""));
    let whole = stage.train("whole", &[]);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    for after in [3, 9, 17] {
        let out = format!("killed-{after}");
        let mut child = command().args(stage.arguments(&out, &[])).spawn().unwrap();
        while stage.figures_so_far(&out) < after {
            thread::sleep(Duration::from_millis(5));
            assert!(
                child.try_wait().unwrap().is_none(),
                "the run ended before it was killed"
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(stage.train(&out, &[]).json()["steps"], 30);
        assert!(
            stage.weights(&out) == stage.weights("whole"),
            "killed behind step {after}"
        );
        assert_eq!(curve(&stage.figures(&out)), curve(&stage.figures("whole")));
    }
}

impl Stage {
    /// Whole lines of figures that are there while a run goes on.
    fn figures_so_far(&self, out: &str) -> usize {
        let text = std::fs::read_to_string(self.path(out).join("metrics.jsonl"));
        text.map_or(0, |text| text.matches('\n').count())
    }
}

#[test]
fn a_stopped_run_keeps_its_last_step() {
    let stage = Stage::new(
        &config(100_000, "").replace("checkpoint_every = 4", "checkpoint_every = 50000"),
    );
    let child = command().args(stage.arguments("run", &[])).spawn().unwrap();
    while stage.figures_so_far("run") < 3 {
        thread::sleep(Duration::from_millis(5));
    }
    let stop = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(stop.unwrap().success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(75));
    let done = stage.figures_so_far("run");
    let checkpoint = stage.path(&format!("run/checkpoint-{done}/state.json"));
    assert!(checkpoint.is_file(), "{}", checkpoint.display());
}

#[test]
fn two_ranks_have_the_losses_of_one() {
    let stage = Stage::new(&config(50, ""));
    for (out, ring) in [("one", "1"), ("two", "2")] {
        let run = stage.train(out, &["--ring", ring]);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    let (one, two) = (curve(&stage.figures("one")), curve(&stage.figures("two")));
    let worst = one
        .iter()
        .zip(&two)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(one.len() == 50 && worst < 1e-4, "{worst}");
}

#[test]
fn upstream_s_batch_layouts_train_and_resume_to_the_same_bits() {
    for dealing in ["no_pad", "pad"] {
        let text = config(6, "").replace("\"packed\"", &format!("\"{dealing}\""));
        let stage = Stage::new(&text.replace("\"examples\"", "\"rows\""));
        assert_eq!(stage.train("whole", &[]).code, 0);
        let half = Stage::new(
            &text
                .replace("\"examples\"", "\"rows\"")
                .replace("steps = 6", "steps = 4"),
        );
        assert_eq!(half.train("run", &[]).code, 0);
        // The same run with more steps is another configuration: only its checkpoint is taken along.
        assert_eq!(
            curve(&half.figures("run")),
            curve(&stage.figures("whole"))[..4]
        );
    }
}

#[test]
fn a_nan_loss_ends_the_run_and_keeps_the_last_checkpoint() {
    let text = config(40, "")
        .replace("lr = 1e-3", "lr = 1e30")
        .replace("checkpoint_every = 4", "checkpoint_every = 1");
    let stage = Stage::new(&text.replace("lr_warmup_steps = 2", "lr_warmup_steps = 0"));
    let run = stage.train("run", &[]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("step 2"), "{}", run.stderr);
    assert!(stage.path("run/checkpoint-1/state.json").is_file());
    assert!(!stage.path("run/model").is_dir());
}

#[track_caller]
fn refused(config: &str, expected: &str) {
    Stage::new(config).train("run", &[]).refused(2, expected);
}

#[test]
fn invalid_training_configurations_are_refused_with_what_was_expected() {
    let good = config(2, "");
    refused(
        &good.replace("steps = 2", "steps = 0"),
        "steps is 0, expected 1 to",
    );
    refused(&good.replace("rows = 2", "rowz = 2"), "rowz");
    refused(
        &good.replace("[\"train.jsonl\"]", "[]"),
        "data.train is empty",
    );
    refused(
        &good.replace("[\"train.jsonl\"]", "[\"nowhere.jsonl\"]"),
        "nowhere.jsonl",
    );
    refused(
        &good.replace("lr = 1e-3", "lr = -1.0"),
        "lr is -1, expected 0 or more",
    );
    refused(
        &good.replace("seq_length = 320", "seq_length = 100"),
        "larger data.seq_length",
    );
    refused(
        &good.replace("[model]", "[model]\nspec = \"a.toml\""),
        "a.toml: no such file",
    );
    refused(
        &good.replace("init = ", "tokenizer = "),
        "model.spec and model.init are missing",
    );
    refused(
        &good.replace("rows = 2", "rows = 100000000000"),
        "data.rows is 100000000000, expected 1 to",
    );
    refused(
        &good.replace("[data]", "max_position_embeddings = 64\n[data]"),
        "data.seq_length is 320, the model's context 64",
    );
    let none = good
        .replace("fields", "x")
        .replace("[data]", "[data]\nfields_key = \"nothing\"");
    refused(&none, "no line is an example");
    let stage = Stage::new(&good);
    assert_eq!(stage.train("run", &[]).code, 0);
    std::fs::write(stage.path("stage.toml"), good.replace("1e-3", "2e-3")).unwrap();
    stage
        .train("run", &[])
        .refused(2, "begun with another configuration");
}

#[test]
fn a_longer_context_takes_another_theta() {
    let stage = Stage::new(&config(1, "").replace(
        "[data]",
        "rope_theta = 1e7\nmax_position_embeddings = 8192\n[data]",
    ));
    assert_eq!(stage.train("run", &[]).code, 0);
    let text = std::fs::read_to_string(stage.path("run/model/config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["decoder"]["rope_theta"], 1e7);
    assert_eq!(config["decoder"]["max_position_embeddings"], 8192);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let stage = Stage::new(&config(1, ""));
    std::fs::write(stage.path("file"), "").unwrap();
    let run = stage.train("file/run", &[]);
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("open the run"), "{}", run.stderr);
    assert!(Path::new(&stage.path("file")).is_file());
}

#[test]
fn batches_computed_together_do_not_change_a_bit() {
    let one = config(6, "batches_per_step = 2");
    let two = one.replace("[recipe]", "[recipe]\nbatches_at_a_time = 2");
    let weights = [one, two].map(|text| {
        let stage = Stage::new(&text);
        assert_eq!(stage.train("run", &[]).code, 0);
        stage.weights("run")
    });
    assert!(weights[0] == weights[1]);
}
