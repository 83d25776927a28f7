//! `longreel train vqgan` as a user runs it: on clips of the synthetic world, stopped, killed, gone on with, and the
//! model that it leaves.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::Duration,
};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    longreel::{Run, command, longreel},
    vgg::perceptual,
};

/// Shape of the tests: 4 × 4 codes of a frame of 16 × 16 pixels.
const SHAPE: &str = "
resolution = 16
hidden_channels = 32
channel_mult = [1, 1, 1]
num_res_blocks = 1
z_channels = 16
num_embeddings = 64
quantized_embed_dim = 16
";

fn config(steps: u64) -> String {
    format!(
        r#"
description = "A small VQGAN"
steps = {steps}
seed = 3
checkpoint_every = 5
evaluate_every = 10
[model.vqgan]{SHAPE}
[data]
train = ["train"]
held_out = ["test/000000.mp4", "test/000001.mp4"]
fps = 2
batch = 8
[recipe]
l2_weight = 1.0
restart_after = 4
[recipe.schedule]
lr = 2e-3
"#
    )
}

/// A folder with clips and a configuration.
struct Stage(TempDir);

impl Stage {
    fn new(config: &str) -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        for (split, clips) in [("train", "6"), ("test", "2")] {
            let out = stage.text(&format!("{split}-made"));
            let made = longreel(&[
                "synth", "--out", &out, "--clips", clips, "--split", split, "--fps", "2", "--side",
                "16", "--length", "4", "--quiet",
            ]);
            assert_eq!(made.code, 0, "{}", made.stderr);
            let clips = Path::new(&out).join("clips");
            std::fs::rename(clips, stage.path(split)).unwrap();
        }
        stage.write(config);
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, config: &str) {
        std::fs::write(self.path("vqgan.toml"), config).unwrap();
    }

    fn arguments(&self, out: &str) -> Vec<String> {
        let (config, out) = (self.text("vqgan.toml"), self.text(out));
        ["train", "vqgan", &config, "--out", &out, "--json"]
            .map(String::from)
            .into()
    }

    fn train(&self, out: &str) -> Run {
        longreel(&self.arguments(out))
    }

    fn lines(&self, out: &str) -> String {
        let path = self.path(out).join("metrics.jsonl");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    fn figures(&self, out: &str, held_out: bool) -> Vec<Value> {
        let lines = self.lines(out);
        let all = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        all.filter(|f: &Value| f["held_out"] == held_out).collect()
    }

    /// Figures of steps without the times, which no two runs share.
    fn curve(&self, out: &str) -> Vec<Value> {
        let mut figures = self.figures(out, false);
        figures
            .iter_mut()
            .for_each(|f| f["frames_per_s"] = json!(0));
        figures
    }

    fn weights(&self, out: &str) -> Vec<u8> {
        std::fs::read(
            self.path(out)
                .join("model/model-00001-of-00001.safetensors"),
        )
        .unwrap()
    }

    /// A run that has gone `steps` steps and goes on.
    fn running(&self, out: &str, steps: usize) -> Child {
        let mut child = command().args(self.arguments(out)).spawn().unwrap();
        while self.lines(out).matches('\n').count() < steps {
            thread::sleep(Duration::from_millis(5));
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the run ended by itself");
        }
        child
    }
}

fn number(figures: &Value, key: &str) -> f64 {
    figures[key].as_f64().unwrap()
}

#[test]
fn a_run_learns_and_leaves_figures_a_plot_and_a_model() {
    let stage = Stage::new(&config(60));
    let json = stage.train("run").json();
    assert_eq!(
        (&json["steps"], &json["frames"]),
        (&json!(60), &json!({"train": 48, "held_out": 16}))
    );
    let figures = stage.figures("run", false);
    let (first, last) = (&figures[0], &figures[59]);
    assert!(number(last, "loss") < 0.5 * number(first, "loss"));
    assert!(number(last, "psnr_db") > number(first, "psnr_db") + 5.0);
    let held_out = stage.figures("run", true);
    assert_eq!(held_out.len(), 6);
    assert!(number(&held_out[5], "loss") < number(&held_out[0], "loss"));
    assert_eq!((&json["last"], &json["held_out"]), (last, &held_out[5]));
    let share = number(last, "codes_used") / 64.0;
    assert_eq!(number(last, "codes_share"), share);
    assert!(number(last, "perplexity") <= number(last, "codes_used") + 1e-9);
    let svg = std::fs::read_to_string(stage.path("run/loss.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("held out"));
    let frames = std::fs::metadata(stage.path("run/frames.rgb")).unwrap();
    assert_eq!(frames.len(), 48 * 16 * 16 * 3);
    // What a configuration does not ask for is not in a run's: later versions may have more to ask for.
    let begun = std::fs::read_to_string(stage.path("run/config.toml")).unwrap();
    assert!(!begun.contains("mosaic"), "{begun}");
}

#[test]
fn its_model_encodes_and_reconstructs_and_a_decoder_takes_it() {
    let stage = Stage::new(&config(5));
    assert_eq!(stage.train("run").code, 0);
    let model = stage.text("run/model");
    let run = |arguments: &[&str]| {
        let run = longreel(arguments);
        assert_eq!(run.code, 0, "{arguments:?}: {}", run.stderr);
        run
    };
    let (clip, reel, seen) = (
        stage.text("train/000000.mp4"),
        stage.text("clip.reel"),
        stage.text("seen.mp4"),
    );
    run(&["encode", &clip, "--model", &model, "--out", &reel]);
    run(&["reconstruct", &reel, "--model", &model, "--out", &seen]);
    run(&["frames", &seen, "--out", &stage.text("frames")]);
    run(&["models", "verify", &model]);
    let shown = run(&["models", "show", &model, "--json"]).stdout;
    assert!(shown.contains("\"num_embeddings\":64"), "{shown}");
    longreel(&["ask", &clip, "What?", "--model", &model])
        .refused(2, "is a VQGAN alone, expected a model that answers");
    decoder_takes(&stage, &model, &reel);
}

/// A decoder of one block is trained on the reel, and its model holds the VQGAN.
fn decoder_takes(stage: &Stage, vqgan: &str, reel: &str) {
    let decoder = format!(
        "model_type = \"lwm\"\nend_of_frame_id = 64\nend_of_vision_id = 65\n\
         [decoder]\nvocab_size = 300\nvision_vocab_size = 66\nhidden_size = 32\nintermediate_size = 64\n\
         num_hidden_layers = 1\nnum_attention_heads = 2\nmax_position_embeddings = 256\nrms_norm_eps = 1e-6\n\
         rope_theta = 10000.0\nrope_pairs = \"adjacent\"\n[vqgan]{SHAPE}"
    );
    std::fs::write(stage.path("decoder.toml"), decoder).unwrap();
    std::fs::write(stage.path("text.txt"), "What is it? A red ball.\n").unwrap();
    let tokenizer = stage.text("tokenizer");
    let learned = longreel(&[
        "train",
        "tokenizer",
        &stage.text("text.txt"),
        "--vocab-size",
        "300",
        "--out",
        &tokenizer,
    ]);
    assert_eq!(learned.code, 0, "{}", learned.stderr);
    let text = json!({"q": "What?", "a": "A ball.", "fields": "[q],a"});
    std::fs::write(stage.path("text.jsonl"), format!("{text}\n")).unwrap();
    // A reel lies beside the line that names it.
    std::fs::create_dir(stage.path("reels")).unwrap();
    std::fs::copy(reel, stage.path("reels/beside.reel")).unwrap();
    let line =
        json!({"q": "What?", "vision": "beside.reel", "a": "A ball.", "fields": "[q],vision,a"});
    std::fs::write(stage.path("reels/lines.jsonl"), format!("{line}\n")).unwrap();
    let run = format!(
        "steps = 2\n[model]\nspec = \"decoder.toml\"\ntokenizer = \"tokenizer\"\nvqgan = {vqgan:?}\n\
         [data]\ntrain = [\"text.jsonl\", \"reels/lines.jsonl\"]\ndealing = \"packed\"\nseq_length = 255\nrows = 1\n\
         [recipe]\nreduction = \"examples\"\n[recipe.schedule]\nlr = 1e-3\n"
    );
    text_first(stage, &run);
    std::fs::write(stage.path("decoder-run.toml"), run).unwrap();
    let (config, out) = (stage.text("decoder-run.toml"), stage.text("decoder"));
    let trained = longreel(&["train", "decoder", &config, "--out", &out]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let model = stage.text("decoder/model");
    let clip = stage.text("test/000000.mp4");
    let codes = |model: &str, name: &str| {
        let reel = stage.text(name);
        let made = longreel(&["encode", &clip, "--model", model, "--out", &reel, "--json"]);
        assert_eq!(made.code, 0, "{}", made.stderr);
        let back = stage.text(&format!("{name}.mp4"));
        let seen = longreel(&["reconstruct", &reel, "--model", model, "--out", &back]);
        assert_eq!(seen.code, 0, "{}", seen.stderr);
        std::fs::read(back).unwrap()
    };
    assert!(codes(&model, "a.reel") == codes(vqgan, "b.reel"));
}

/// A decoder of texts is trained, and another that reads codes as well goes on from its weights (LWM's 1K stage, which
/// begins with the last one of texts).
fn text_first(stage: &Stage, with_codes: &str) {
    let train = |config: &str, out: &str| {
        std::fs::write(stage.path("stage.toml"), config).unwrap();
        let (config, out) = (stage.text("stage.toml"), stage.text(out));
        longreel(&["train", "decoder", &config, "--out", &out, "--json"])
    };
    let with_codes = with_codes.replace("lr = 1e-3", "lr = 0.0");
    let whole = std::fs::read_to_string(stage.path("decoder.toml")).unwrap();
    let decoder = whole.split("[vqgan]").next().unwrap();
    let decoder = decoder.split("[decoder]").nth(1).unwrap();
    let decoder = decoder.replace("vision_vocab_size = 66\n", "");
    let of_text = format!("model_type = \"llama\"\n[decoder]{decoder}");
    std::fs::write(stage.path("of_text.toml"), of_text).unwrap();
    let vqgan = with_codes.lines().find(|l| l.starts_with("vqgan")).unwrap();
    let of_text = with_codes
        .replace(vqgan, "")
        .replace("decoder.toml", "of_text.toml")
        .replace(", \"reels/lines.jsonl\"", "");
    assert_eq!(train(&of_text, "of-text").code, 0);

    let begun = |spec: &str| {
        let both = format!("{spec}init = \"of-text/model\"");
        with_codes.replace("spec = \"decoder.toml\"", &both)
    };
    let json = train(&begun("spec = \"decoder.toml\"\n"), "with-codes").json();
    assert_eq!(json["skipped_lines"], 0);
    let tensors = |out: &str| {
        let file = stage.path(out);
        let bytes = std::fs::read(file.join("model/model-00001-of-00001.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .iter()
            .map(|(name, view)| (name.to_owned(), view.data().to_vec()));
        tensors.collect::<BTreeMap<String, Vec<u8>>>()
    };
    // Nothing moved: what the first had is there, and codes have a table and a head beside.
    let (texts, codes) = (tensors("of-text"), tensors("with-codes"));
    assert!(texts.iter().all(|(name, bytes)| codes[name] == *bytes));
    for new in ["model.vision_embed_tokens.weight", "vision_head.weight"] {
        assert!(!texts.contains_key(new) && codes[new].iter().any(|&b| b != 0));
    }

    train(&begun(""), "x").refused(2, "expected model.spec with it");
    let other = whole.replace("intermediate_size = 64", "intermediate_size = 96");
    std::fs::write(stage.path("other.toml"), other).unwrap();
    train(&begun("spec = \"other.toml\"\n"), "x").refused(
        2,
        "intermediate_size is 96 in model.spec and 64 in model.init",
    );
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let stage = Stage::new(&config(30));
    let whole = stage.train("whole");
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    for after in [2, 13] {
        let out = format!("killed-{after}");
        let mut child = stage.running(&out, after);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(stage.train(&out).json()["steps"], 30);
        assert!(
            stage.weights(&out) == stage.weights("whole"),
            "killed behind step {after}"
        );
        assert_eq!(stage.curve(&out), stage.curve("whole"));
        assert_eq!(stage.figures(&out, true), stage.figures("whole", true));
    }
}

#[test]
fn a_perceptual_loss_is_in_the_figures_and_goes_on_to_the_same_bits() {
    let stage = Stage::new("");
    let files = perceptual(0.5);
    std::fs::hard_link(&files.vgg, stage.path("vgg16.safetensors")).unwrap();
    std::fs::copy(&files.lpips, stage.path("vgg.pth")).unwrap();
    // Paths are those beside the configuration.
    let table =
        "[recipe.perceptual]\nvgg = \"vgg16.safetensors\"\nlpips = \"vgg.pth\"\nweight = 0.5\n";
    let text = config(12) + table;
    stage.write(&text);
    let json = stage.train("whole").json();
    for figures in [&json["last"], &json["held_out"]] {
        assert!(number(figures, "perceptual") > 0.0, "{figures}");
    }
    let last = &json["held_out"];
    let parts = number(last, "l1") + number(last, "l2") + 0.5 * number(last, "perceptual");
    let codebook = 1.25 * number(last, "quantization");
    assert!(
        (number(last, "loss") - parts - codebook).abs() < 1e-9,
        "{last}"
    );
    let mut child = stage.running("killed", 7);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(stage.train("killed").code, 0);
    assert!(stage.weights("killed") == stage.weights("whole"));
    assert_eq!(stage.curve("killed"), stage.curve("whole"));
    let plot = std::fs::read_to_string(stage.path("whole/loss.svg")).unwrap();
    assert!(plot.contains("LPIPS, held out"));

    // The same path, another network.
    let mut weights = std::fs::read(stage.path("vgg16.safetensors")).unwrap();
    let last = weights.len() - 2;
    weights[last] ^= 1;
    std::fs::write(stage.path("vgg16.safetensors"), weights).unwrap();
    stage
        .train("killed")
        .refused(2, "another network than the run was started with");

    stage.write(&text.replace("vgg16.safetensors", "vgg.pth"));
    stage.train("other").refused(
        2,
        "vgg.pth: features.0.weight: it is missing, expected [64, 3, 3, 3]",
    );
    assert!(!stage.path("other").exists(), "nothing was begun");
}

#[test]
fn a_stopped_run_keeps_its_last_step_and_goes_on() {
    let never = |steps| config(steps).replace("checkpoint_every = 5", "checkpoint_every = 50000");
    let stage = Stage::new(&never(100_000));
    let child = stage.running("run", 3);
    let stop = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(stop.unwrap().success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(75));
    let done = stage.figures("run", false).len();
    let checkpoint = stage.path(&format!("run/checkpoint-{done}/state.json"));
    assert!(checkpoint.is_file(), "{}", checkpoint.display());
    let mut child = stage.running("run", done + 2);
    child.kill().unwrap();
    child.wait().unwrap();
    let steps = stage.figures("run", false);
    let numbers: Vec<u64> = steps.iter().map(|f| f["step"].as_u64().unwrap()).collect();
    assert!(numbers.len() > done && numbers.is_sorted_by(|a, b| a + 1 == *b));
}

#[test]
fn a_video_that_cannot_be_read_is_left_out_and_named() {
    let stage = Stage::new(&config(2));
    let good = std::fs::read(stage.path("train/000002.mp4")).unwrap();
    std::fs::write(stage.path("train/000001.mp4"), &good[..good.len() / 2]).unwrap();
    std::fs::write(stage.path("train/empty.mkv"), "").unwrap();
    std::fs::write(stage.path("train/notes.txt"), "no video").unwrap();
    std::fs::write(stage.path("train/.longreel-x.mp4"), "not finished").unwrap();
    let run = stage.train("run");
    let skipped = run.json()["skipped_videos"].clone();
    let names: Vec<&str> = skipped
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|video| video["path"].as_str()?.rsplit('/').next())
        .collect();
    assert_eq!(names, ["000001.mp4", "empty.mkv"]);
    assert!(run.stderr.contains("left out: "), "{}", run.stderr);
    assert!(run.stderr.contains("empty.mkv"), "{}", run.stderr);
    let list = std::fs::read_to_string(stage.path("run/frames.json")).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["frames"], 40);
    // Those behind a video that is left out stand where a list without it has them.
    std::fs::remove_file(stage.path("train/000001.mp4")).unwrap();
    std::fs::remove_file(stage.path("train/empty.mkv")).unwrap();
    assert_eq!(stage.train("without").code, 0);
    let frames = |out: &str| std::fs::read(stage.path(out).join("frames.rgb")).unwrap();
    assert!(frames("run") == frames("without"));
}

#[test]
fn a_run_without_usable_videos_ends_and_can_be_restarted() {
    let stage = Stage::new(&config(2).replace("[\"train\"]", "[\"broken.mp4\"]"));
    std::fs::write(stage.path("broken.mp4"), "no video").unwrap();
    stage
        .train("run")
        .refused(2, "data.train: none of 1 videos can be used");
    stage.write(&config(2));
    assert_eq!(stage.train("run").code, 0);
}

#[test]
fn frames_are_those_that_a_vqgan_is_shown() {
    let stage = Stage::new(&config(1).replace("batch = 8", "batch = 8\nframes_max = 7"));
    assert_eq!(stage.train("run").json()["frames"]["train"], 7);
    let (clip, out) = (stage.text("train/000000.mp4"), stage.text("shown"));
    let model = stage.text("run/model");
    let shown = longreel(&[
        "frames", &clip, "--size", "model", "--model", &model, "--fps", "2", "--out", &out,
    ]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    let entries = std::fs::read_dir(&out).unwrap();
    let mut pngs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    pngs.retain(|path| path.extension().is_some_and(|e| e == "png"));
    pngs.sort();
    let shown: Vec<u8> = pngs[..7].iter().flat_map(|path| rgb(path)).collect();
    assert!(std::fs::read(stage.path("run/frames.rgb")).unwrap() == shown);
}

/// The pixels of a picture.
fn rgb(path: &Path) -> Vec<u8> {
    let output = std::process::Command::new("ffmpeg")
        .args(["-loglevel", "error", "-i"])
        .arg(path)
        .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn another_run_begins_with_the_vqgan_of_a_model() {
    let stage = Stage::new(&config(20));
    assert_eq!(stage.train("first").code, 0);
    let of_first = "[model]\ninit = \"first/model\"\n";
    let inline = format!("[model.vqgan]{SHAPE}");
    stage.write(&config(1).replace(&inline, of_first));
    assert_eq!(stage.train("second").code, 0);
    let (first, second) = (
        stage.figures("first", false),
        stage.figures("second", false),
    );
    assert!(number(&second[0], "l1") < 0.7 * number(&first[0], "l1"));
    std::fs::write(
        stage.path("model.toml"),
        format!("model_type = \"vqgan\"\n[vqgan]{SHAPE}"),
    )
    .unwrap();
    stage.write(&config(1).replace(&inline, "[model]\nspec = \"model.toml\"\n"));
    assert_eq!(stage.train("third").code, 0);
    let third = stage.curve("third");
    assert_eq!(
        third[..],
        stage.curve("first")[..1],
        "the same first weights"
    );
}

#[test]
fn a_nan_loss_ends_the_run_and_keeps_the_last_checkpoint() {
    let text = config(40)
        .replace("lr = 2e-3", "lr = 1e30")
        .replace("checkpoint_every = 5", "checkpoint_every = 1");
    let stage = Stage::new(&text);
    let run = stage.train("run");
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("step "), "{}", run.stderr);
    assert!(stage.path("run/checkpoint-1/state.json").is_file());
    assert!(!stage.path("run/model").is_dir());
}

#[test]
fn weights_are_stored_as_asked_for() {
    let stage = Stage::new(&config(1));
    let mut arguments = stage.arguments("run");
    arguments.extend(["--dtype", "bf16"].map(String::from));
    assert_eq!(longreel(&arguments).code, 0);
    let half = stage.weights("run").len();
    assert_eq!(stage.train("run").code, 0);
    let whole = stage.weights("run").len();
    assert!(half < whole * 3 / 5, "{half} of {whole} bytes");
}

#[test]
fn invalid_training_configurations_are_refused_with_what_was_expected() {
    let stage = Stage::new(&config(2));
    let good = config(2);
    let refused = |config: &str, expected: &str| {
        stage.write(config);
        stage.train("refused").refused(2, expected);
    };
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    refused(&with("steps = 2", "steps = 0"), "steps is 0, expected 1 to");
    refused(
        &with("batch = 8", "batch = 0"),
        "data.batch is 0, expected 1 to",
    );
    refused(&with("batch = 8", "bach = 8"), "bach");
    refused(
        &with("batch = 8", "batch = 8\nmosaic = 1.5"),
        "data.mosaic is 1.5, expected 0 to 1",
    );
    refused(&with("fps = 2", "fps = 0"), "data.fps");
    refused(&with("fps = 2", "fps = \"2/x\""), "data.fps");
    refused(&with("[\"train\"]", "[]"), "data.train is empty");
    refused(&with("[\"train\"]", "[\"nowhere\"]"), "nowhere");
    refused(
        &with("lr = 2e-3", "lr = -1.0"),
        "lr is -1, expected 0 or more",
    );
    refused(
        &with("l2_weight = 1.0", "l2_weight = -1.0"),
        "l2_weight is -1",
    );
    refused(&with("l2_weight = 1.0", "seed = 1"), "recipe.seed is 1");
    refused(
        &with("resolution = 16", "resolution = 18"),
        "vqgan.resolution is 18",
    );
    let both = format!("[model]\ninit = \"a\"\n[model.vqgan]{SHAPE}");
    let inline = format!("[model.vqgan]{SHAPE}");
    refused(&with(&inline, &both), "expected exactly one of them");
    refused(&with(&inline, "[model]\n"), "expected exactly one of them");
    std::fs::write(stage.path("vqgan.toml"), b"steps = \xff").unwrap();
    stage.train("refused").refused(2, "valid UTF-8");
    std::fs::create_dir(stage.path("empty")).unwrap();
    refused(&with("[\"train\"]", "[\"empty\"]"), "it has no video");
    stage.write(&good);
    assert_eq!(stage.train("run").code, 0);
    stage.write(&with("lr = 2e-3", "lr = 1e-3"));
    stage
        .train("run")
        .refused(2, "begun with another configuration");
}
