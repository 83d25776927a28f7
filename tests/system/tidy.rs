//! The shape of the tree: import order, module headers, where `unsafe` may stand.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The pipeline's modules in the order in which they may import one another.
const PIPELINE_ORDER: [&str; 23] = [
    "error",
    "time",
    "cancel",
    "flow",
    "sources",
    "reel",
    "plan",
    "hub",
    "vectors",
    "encoder",
    "shown",
    "model",
    "ranks",
    "stages",
    "search",
    "chooser",
    "prepare",
    "synth",
    "train",
    "bench",
    "demo_model",
    "cli",
    "main",
];

/// The models' modules, likewise. `vision` and `context` see neither each other nor `llama`.
const MODELS_ORDER: [&str; 14] = [
    "error",
    "file_name",
    "folder_file",
    "spec",
    "checkpoint",
    "layers",
    "attention",
    "encoder",
    "vision",
    "context",
    "dual_encoder",
    "llama",
    "systems",
    "training",
];

/// The one folder that knows FFmpeg.
const FFMPEG: &str = "pipeline/sources/ffmpeg/";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of the project, without build output.
fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            rust_files(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

pub fn all_rust_files() -> Vec<(String, String)> {
    let mut found = Vec::new();
    rust_files(&root(), &mut found);
    found.sort();
    let relative = |p: &Path| {
        p.strip_prefix(root())
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    found
        .iter()
        .map(|p| (relative(p), fs::read_to_string(p).unwrap()))
        .collect()
}

/// The module of the crate that a file belongs to: `pipeline/stages/decode.rs` is `stages`.
fn module_of(relative: &str, prefix: &str) -> Option<String> {
    let rest = relative.strip_prefix(prefix)?;
    let first = rest.split('/').next()?;
    Some(first.trim_end_matches(".rs").to_owned())
}

/// Modules that a file's `use crate::` lines (and `crate::` paths) name.
fn imports(text: &str) -> Vec<String> {
    let code: Vec<&str> = text
        .lines()
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect();
    let code = code.join("\n");
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(names_of_group(group)),
            None => modules.push(identifier(rest)),
        }
    }
    modules
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// The first identifiers of `{a::b, c::{d, e}, f}` after its opening brace.
fn names_of_group(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut names = Vec::new();
    let mut start = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                names.push(identifier(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    names
}

/// Sentences about imports that point the wrong way.
fn wrong_imports(relative: &str, text: &str, prefix: &str, order: &[&str]) -> Vec<String> {
    let Some(module) = module_of(relative, prefix) else {
        return Vec::new();
    };
    let Some(own) = order.iter().position(|m| *m == module) else {
        return Vec::new();
    };
    let position = |name: &str| order.iter().position(|m| *m == name);
    let sees = |name: &str| match (module.as_str(), name) {
        ("context", "vision") | ("vision", "context") => false,
        _ => position(name).is_none_or(|p| p <= own),
    };
    imports(text)
        .iter()
        .filter(|name| !sees(name))
        .map(|name| format!("{relative}: `{module}` may not import `{name}`"))
        .collect()
}

#[test]
fn modules_import_only_modules_declared_above() {
    let mut wrong = Vec::new();
    for (relative, text) in all_rust_files() {
        if relative.starts_with("models/kernels/") {
            continue;
        }
        wrong.extend(wrong_imports(
            &relative,
            &text,
            "pipeline/",
            &PIPELINE_ORDER,
        ));
        wrong.extend(wrong_imports(&relative, &text, "models/", &MODELS_ORDER));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_planted_wrong_import_is_found() {
    let text = "use crate::{error::Result, cli::args};\n";
    let wrong = wrong_imports("pipeline/flow.rs", text, "pipeline/", &PIPELINE_ORDER);
    assert_eq!(wrong, ["pipeline/flow.rs: `flow` may not import `cli`"]);
}

#[test]
fn every_pipeline_and_models_module_has_a_place_in_the_order() {
    for (lib, order) in [
        ("pipeline/lib.rs", &PIPELINE_ORDER[..]),
        ("models/lib.rs", &MODELS_ORDER[..]),
    ] {
        let text = fs::read_to_string(root().join(lib)).unwrap();
        let declared: Vec<&str> = text
            .lines()
            .filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'))
            .collect();
        for module in &declared {
            assert!(
                order.contains(module),
                "{lib} declares `{module}`, which has no place in the import order"
            );
        }
        let places: Vec<usize> = declared
            .iter()
            .map(|m| order.iter().position(|o| o == m).unwrap())
            .collect();
        assert!(
            places.is_sorted(),
            "{lib} does not declare its modules in import order: {declared:?}"
        );
    }
}

#[test]
fn every_module_opens_with_its_purpose() {
    for (relative, text) in all_rust_files() {
        let first = text
            .lines()
            .find(|l| !l.starts_with("#!"))
            .unwrap_or_default();
        assert!(
            first.starts_with("//! "),
            "{relative} opens with {first:?}, expected a `//!` header"
        );
    }
}

#[test]
fn unsafe_is_confined_to_the_kernels_and_the_ffmpeg_edge() {
    for (relative, text) in all_rust_files() {
        let allowed = relative.starts_with("models/kernels/") || relative.starts_with(FFMPEG);
        let used = text.lines().any(|l| {
            let code = l.split("//").next().unwrap_or_default();
            code.contains(concat!("unsafe", " {"))
                || code.contains(concat!("unsafe", " fn"))
                || code.contains(concat!("unsafe", " impl"))
        });
        assert!(allowed || !used, "{relative} has unsafe code");
    }
}

#[test]
fn only_one_folder_knows_ffmpeg() {
    for (relative, text) in all_rust_files() {
        let allowed = relative.starts_with(FFMPEG) || relative.starts_with("tests/");
        assert!(
            allowed || !text.contains(concat!("ffmpeg", "_next")),
            "{relative} knows FFmpeg"
        );
    }
}

/// Who writes the name of a model's configuration: the one that reads it, the one that writes it, and those that fetch or
/// compile in whole folders.
const KNOW_THE_CONFIGURATION: [&str; 5] = [
    "models/checkpoint/writer.rs",
    "models/systems/config.rs",
    "pipeline/demo_model.rs",
    "pipeline/hub/cache.rs",
    "pipeline/hub/files.rs",
];

#[test]
fn one_file_reads_the_configuration_of_a_model() {
    let name = concat!("\"config", ".json\"");
    for (relative, text) in all_rust_files() {
        let is_library = relative.starts_with("models/") || relative.starts_with("pipeline/");
        let allowed = KNOW_THE_CONFIGURATION.contains(&relative.as_str());
        assert!(
            !is_library || allowed || !text.contains(name),
            "{relative} names {name}"
        );
    }
}

#[test]
fn file_names_are_shown_whole_and_arguments_may_be_any_bytes() {
    for (relative, text) in all_rust_files() {
        let is_program = relative.starts_with("pipeline/") || relative.starts_with("models/");
        let is_judge = relative == "models/file_name.rs";
        // `Path::display` hides bytes that are not UTF-8 and writes line ends; `env::args` panics.
        for hidden in [".display()", "env::args()"] {
            assert!(
                !is_program || is_judge || !text.contains(hidden),
                "{relative} has {hidden}: use `FileName::shown` and `env::args_os`"
            );
        }
    }
}

#[test]
fn no_file_is_left_unfinished() {
    for (relative, text) in all_rust_files() {
        for marker in [
            concat!("TO", "DO"),
            concat!("FIX", "ME"),
            concat!("dbg", "!("),
            concat!("Being", " built"),
        ] {
            assert!(!text.contains(marker), "{relative} contains {marker}");
        }
        assert!(
            !text.contains(concat!("#[ig", "nore")),
            "{relative} skips a test"
        );
    }
}

#[test]
fn no_module_is_named_utils_or_common() {
    for (relative, _) in all_rust_files() {
        let stem = Path::new(&relative)
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        assert!(
            !["utils", "util", "helpers", "common", "misc"].contains(&stem.as_str()),
            "{relative}"
        );
    }
}

#[test]
fn the_golden_manifest_matches_the_files() {
    let golden = root().join("tests/golden");
    let manifest: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(golden.join("manifest.json")).unwrap()).unwrap();
    for tensor in manifest["tensors"].as_array().unwrap() {
        let file = tensor["file"].as_str().unwrap();
        assert!(
            golden.join(file).is_file(),
            "{file} is in the manifest but not there"
        );
    }
    for (file, entry) in manifest["files"].as_object().unwrap() {
        let bytes = fs::metadata(golden.join(file)).unwrap().len();
        assert_eq!(Some(bytes), entry["bytes"].as_u64(), "{file}: size");
    }
}
