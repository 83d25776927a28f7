//! The manual is true: every command of README.md and `docs` runs as printed, every verb and option is explained, and
//! every link leads somewhere.
//!
//! A fenced `sh` block is run in a folder of its page, in which the files that the pages name lie ready: small clips and
//! the tiny models of the golden data, the latter also under the hub names of the real ones. A `toml` block whose first
//! line is `# NAME.toml` is written there. A comment behind a command may state its exit code, as in `# exit 2`.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, OnceLock},
};

use serde_json::json;

use crate::support::{
    gguf::{F32, GgufFile},
    golden,
    longreel::{ffmpeg, golden_model, longreel, scratch},
};

/// Why a block is not run, as a comment above it states it, and the pages that have such blocks.
const NOT_RUN: [(&str, &str); 4] = [
    (
        "train.md",
        "needs a model that can write pairs; tests/system/make_qa.rs trains one",
    ),
    ("train.md", "needs VGG16, which longreel does not fetch"),
    ("models.md", "downloads"),
    ("bench.md", "takes minutes, or needs PyTorch"),
];

/// Pages that every verb's page may lean on.
const SHARED: [&str; 5] = [
    "sampling.md",
    "model-folders.md",
    "ring.md",
    "reels.md",
    "output.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Name and text of a page.
struct Page {
    name: String,
    text: String,
}

fn pages() -> Vec<Page> {
    let inside = fs::read_dir(root().join("docs")).unwrap();
    let mut paths: Vec<PathBuf> = inside.map(|entry| entry.unwrap().path()).collect();
    paths.push(root().join("README.md"));
    paths.sort();
    let page = |path: PathBuf| Page {
        name: path.file_name().unwrap().to_string_lossy().into_owned(),
        text: fs::read_to_string(&path).unwrap(),
    };
    paths.into_iter().map(page).collect()
}

/// A fenced block.
struct Block<'a> {
    language: &'a str,
    lines: Vec<&'a str>,
    /// Why it is not run, where the line above it says so.
    not_run: Option<&'a str>,
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    let mut not_run = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let lines = lines.by_ref().take_while(|line| *line != "```").collect();
            found.push(Block {
                language,
                lines,
                not_run,
            });
        }
        let reason = line.strip_prefix("<!-- not run: ");
        not_run = reason.and_then(|rest| rest.strip_suffix(" -->"));
    }
    found
}

/// The commands of a block, `make` and `cargo` aside, each with the exit code that its comment states.
fn commands(block: &Block<'_>) -> Vec<(String, i32)> {
    let whole = block.lines.join("\n").replace("\\\n", " ");
    let runs_it = |line: &&str| {
        ["longreel ", "mpirun ", "echo ", "HF_HUB_OFFLINE="]
            .iter()
            .any(|word| line.starts_with(word))
    };
    let coded = |line: &str| {
        let stated = line
            .split_once("# exit ")
            .map(|(_, code)| code.trim().parse().unwrap());
        (line.to_owned(), stated.unwrap_or(0))
    };
    whole.lines().filter(runs_it).map(coded).collect()
}

/// The folder with everything that the pages name, once per test run.
fn fixture() -> &'static Path {
    static FIXTURE: OnceLock<PathBuf> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let folder = scratch().join("manual");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("files")).unwrap();
        fs::create_dir_all(folder.join("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_longreel"), folder.join("bin/longreel")).unwrap();
        make_media(&folder.join("files"));
        make_models(&folder.join("files"));
        fill_hub(&folder.join("hub"));
        folder
    })
}

fn make_media(files: &Path) {
    for (name, seconds) in [("holiday.mp4", "8"), ("cam1.mp4", "4"), ("cam2.mp4", "4")] {
        let source = format!("-f lavfi -i testsrc2=s=160x120:r=10:d={seconds}");
        ffmpeg(&source, &files.join(name));
    }
    ffmpeg(
        "-f lavfi -i color=red:s=64x48 -frames:v 1",
        &files.join("boat.png"),
    );
}

/// A copy of the files of `from`, links followed.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let out = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &out),
            false => drop(fs::copy(&path, &out).unwrap()),
        }
    }
}

fn make_models(files: &Path) {
    copy(golden_model(), &files.join("lwm-1m"));
    copy(
        &golden::path("systems/llama"),
        &files.join("LWM-Text-Chat-1M"),
    );
    let [spec, weights] = ["tests/golden/lwm-golden.toml", "models/demo"].map(|p| root().join(p));
    copy(&root().join("configs"), &files.join("configs"));
    // The golden checkpoint has another shape than the released one, and both have room for a million tokens.
    let text = fs::read_to_string(spec).unwrap();
    let roomy = text.replace(
        "max_position_embeddings = 4096",
        "max_position_embeddings = 1048576",
    );
    fs::write(files.join("configs/models/lwm-chat-1m.toml"), roomy).unwrap();
    let config = files.join("lwm-1m/config.json");
    let mut shape: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    shape["decoder"]["max_position_embeddings"] = 1_048_576.into();
    fs::write(&config, shape.to_string()).unwrap();
    copy(&weights, &files.join("models/demo"));
    fs::copy(golden::path("e2e/params"), files.join("streaming_params")).unwrap();
    fs::copy(golden::path("vqgan/vqgan.pkl"), files.join("vqgan")).unwrap();
    for folder in [files.to_owned(), files.join("LWM-Text-Chat-1M")] {
        let tokenizer = golden::path("tokenizer/tokenizer.model");
        fs::copy(tokenizer, folder.join("tokenizer.model")).unwrap();
    }
    let chat = golden::path("gguf/chat.gguf");
    fs::copy(chat, files.join("qwen3-4b-Q8_0.gguf")).unwrap();
    GgufFile::decoder_of(&golden::path("answers/llava15"), F32)
        .write(&files.join("llava-7b-Q4_K_M.gguf"));
}

/// A hub cache that has the golden models under the names of the real ones.
fn fill_hub(hub: &Path) {
    for (name, folder) in [
        ("Qwen/Qwen3-VL-8B-Instruct", "answers/qwen3_vl"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "answers/qwen2_5_vl"),
        ("llava-hf/llava-1.5-7b-hf", "answers/llava15"),
        ("openai/clip-vit-base-patch32", "systems/clip"),
        ("facebook/dinov2-base", "systems/dinov2"),
    ] {
        let model = hub.join(format!("models--{}", name.replace('/', "--")));
        let snapshot = model.join("snapshots/0123456789abcdef0123456789abcdef01234567");
        copy(&golden::path(folder), &snapshot);
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::write(
            model.join("refs/main"),
            "0123456789abcdef0123456789abcdef01234567",
        )
        .unwrap();
        if name.starts_with("openai") {
            fs::write(snapshot.join("tokenizer.json"), words_tokenizer()).unwrap();
        }
    }
}

/// A word is an id, any other text the unknown one.
fn words_tokenizer() -> String {
    let vocab: serde_json::Map<_, _> = (0..99).map(|i| (format!("w{i}"), json!(i))).collect();
    let ends = json!({"type": "BertProcessing", "cls": ["w0", 0], "sep": ["w98", 98]});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": ends, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w3"},
    });
    tokenizer.to_string()
}

/// The folder of a page: the fixture's files, but those that its own commands write.
fn page_folder(page: &Page) -> PathBuf {
    let folder = fixture().join("pages").join(&page.name);
    fs::create_dir_all(&folder).unwrap();
    let written: BTreeSet<&str> = page
        .text
        .split("--out ")
        .skip(1)
        .filter_map(first_word)
        .collect();
    for entry in fs::read_dir(fixture().join("files")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !written.contains(name.as_str()) {
            symlink(&path, folder.join(&name)).unwrap();
        }
    }
    folder
}

fn first_word(text: &str) -> Option<&str> {
    Some(text.split_whitespace().next()?.trim_end_matches('/'))
}

/// Runs a line in `folder`; what went wrong.
fn run(line: &str, code: i32, folder: &Path) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("bash")
        .args(["-c", line])
        .current_dir(folder)
        .stdin(Stdio::null())
        .env(
            "PATH",
            format!("{}:{path}", fixture().join("bin").display()),
        )
        .env("HF_HUB_CACHE", fixture().join("hub"))
        .env("HF_HUB_OFFLINE", "1")
        .env("XDG_CACHE_HOME", fixture().join("cache"))
        .envs(["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"].map(|key| (key, "1")))
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .output()
        .unwrap();
    match output.status.code() {
        Some(found) if found == code => Ok(()),
        found => Err(format!(
            "{line}\n  exit {found:?}, expected {code}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// Runs a page from top to bottom; the first thing that went wrong.
fn run_page(page: &Page) -> Result<(), String> {
    let folder = page_folder(page);
    for block in blocks(&page.text) {
        let file = block.lines.first().and_then(|line| line.strip_prefix("# "));
        match (block.language, file) {
            ("toml", Some(name)) if name.ends_with(".toml") => {
                fs::write(folder.join(name), block.lines.join("\n")).unwrap();
            }
            ("sh", _) if block.not_run.is_none() => {
                for (line, code) in commands(&block) {
                    run(&line, code, &folder).map_err(|error| format!("{}: {error}", page.name))?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn every_command_of_the_manual_runs_as_printed() {
    let _ = fixture();
    let waiting = Mutex::new(pages());
    let faults = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().pop();
                    let Some(page) = next else { break };
                    faults.lock().unwrap().extend(run_page(&page).err());
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_is_not_run_is_listed_with_its_reason() {
    let pages = pages();
    let found: BTreeSet<(&str, &str)> = pages
        .iter()
        .flat_map(|page| {
            blocks(&page.text)
                .into_iter()
                .filter_map(|b| Some((page.name.as_str(), b.not_run?)))
        })
        .collect();
    assert_eq!(found, BTreeSet::from(NOT_RUN));
    let fenced = pages.iter().flat_map(|page| blocks(&page.text));
    for block in fenced.filter(|block| block.language != "sh") {
        let lines = block
            .lines
            .iter()
            .filter(|line| line.starts_with("longreel "));
        assert_eq!(
            lines.count(),
            0,
            "a command in a block that is not sh: {:?}",
            block.lines
        );
    }
}

/// Words of a help text that begin its indented lines: verbs, or options.
fn help(verb: &[&str]) -> String {
    let run = longreel(&[verb, &["--help"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.stdout
}

fn sub_verbs(help: &str) -> Vec<&str> {
    let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let lines = listed.lines().take_while(|line| line.starts_with("  "));
    // A line that goes on with a description stands further in.
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !["", "help"].contains(name)).collect()
}

fn options(help: &str) -> Vec<&str> {
    let indented = help
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'));
    let words =
        indented.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
    words.map(|word| word.trim_end_matches(',')).collect()
}

/// Whether `text` has `word` with nothing behind it that would make it another one.
fn mentions(text: &str, word: &str) -> bool {
    let goes_on = |rest: &str| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
    text.split(word).skip(1).any(|rest| !goes_on(rest))
}

#[test]
fn every_verb_has_a_page_and_every_option_a_place_on_it() {
    let pages = pages();
    let text = |name: &str| {
        pages
            .iter()
            .find(|page| page.name == name)
            .map(|page| page.text.as_str())
    };
    let shared: String = SHARED.iter().map(|name| text(name).unwrap()).collect();
    let top = help(&[]);
    let mut missing = Vec::new();
    for verb in sub_verbs(&top) {
        let page =
            text(&format!("{verb}.md")).unwrap_or_else(|| panic!("docs/{verb}.md is missing"));
        let own = help(&[verb]);
        let below = sub_verbs(&own);
        missing.extend(
            below
                .iter()
                .filter(|sub| !mentions(page, &format!("{verb} {sub}")))
                .map(|sub| format!("{verb} {sub}")),
        );
        let of_below: Vec<String> = below.iter().map(|sub| help(&[verb, sub])).collect();
        for option in of_below
            .iter()
            .map(String::as_str)
            .chain([own.as_str()])
            .flat_map(options)
        {
            if !mentions(page, option) && !mentions(&shared, option) {
                missing.push(format!("{verb} {option}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "no page explains {}",
        missing.join(", ")
    );
}

#[test]
fn verbs_options_and_what_is_left_out_are_found() {
    let help = "\nCommands:\n  ask   Ask a\n          question\n  help  Print\n\nOptions:\n  -m, --model <M>  A model\n      --fps <F>\n";
    assert_eq!(sub_verbs(help), ["ask"]);
    assert_eq!(options(help), ["--model", "--fps"]);
    assert!(mentions("`--fps F`", "--fps") && mentions("`--fps`, `--at`", "--fps"));
    assert!(!mentions("`--fps-most`", "--fps"));
    let block =
        "<!-- not run: slow -->\n```sh\nlongreel a \\\n    b\nmake\nlongreel c # exit 2\n```\n";
    let [block] = &blocks(block)[..] else {
        panic!("expected one block")
    };
    assert_eq!(block.not_run, Some("slow"));
    let found = commands(block);
    assert_eq!(
        found.iter().map(|(_, code)| *code).collect::<Vec<_>>(),
        [0, 2]
    );
    assert_eq!(
        found[0].0.split_whitespace().collect::<Vec<_>>(),
        ["longreel", "a", "b"]
    );
}

#[test]
fn every_link_of_the_pages_leads_to_a_file() {
    for (folder, page) in pages()
        .into_iter()
        .map(|page| (if page.name == "README.md" { "" } else { "docs" }, page))
    {
        for rest in page.text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap();
            let there = target.starts_with("http") || root().join(folder).join(target).exists();
            assert!(there, "{} links to {target}", page.name);
        }
    }
}

#[test]
fn the_readme_is_short() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let lines = text.lines().count();
    assert!(lines <= 120, "README.md has {lines} lines");
}
