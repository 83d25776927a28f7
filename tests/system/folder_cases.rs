//! Folders as others leave them, changed in one place and asked through the command line: the ids of transformers
//! (`tests/golden/folders.py`), or what is said of them.

use crate::support::{folder_cases::FolderCase, golden, longreel::longreel};

/// The options that take the frames which transformers was given.
fn sampling(of: &str) -> &'static [&'static str] {
    match of {
        "answers/llava15" | "answers/llava_onevision" => &["--fps", "1"],
        // Their own processors choose.
        _ => &[],
    }
}

#[test]
fn changed_folders_are_prompted_and_answer_as_in_transformers() {
    let video = golden::path("answers/video.mkv").display().to_string();
    let cases = FolderCase::with("generated_ids");
    assert!(cases.len() > 40);
    let mut wrong = Vec::new();
    for case in cases {
        let dir = case.folder();
        let model = dir.path().display().to_string();
        let fixed = ["ask", &video, "What moves?", "--model", &model];
        let options = ["--max-new-tokens", "6", "--json", "--debug-ids"];
        let run = longreel(&[&fixed[..], &options, sampling(case.of())].concat());
        assert_eq!(run.code, 0, "{}: {}", case.name(), run.stderr);
        let got = run.json();
        for key in ["prompt_ids", "generated_ids"] {
            if got[key] != case.0[key] {
                wrong.push(format!(
                    "{}: {key} {} are not {}",
                    case.name(),
                    got[key],
                    case.0[key]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The warnings of a case's folder.
fn warnings(name: &str) -> String {
    let cases = FolderCase::with("of").into_iter();
    let case = cases.into_iter().find(|case| case.name() == name).unwrap();
    let dir = case.folder();
    let shown = longreel(&[
        "models",
        "show",
        &dir.path().display().to_string(),
        "--json",
    ]);
    shown.json()["warnings"].to_string()
}

#[test]
fn what_is_not_followed_is_said() {
    for (name, expected) in [
        ("tied, another head stored", "the stored head is used"),
        (
            "rope_scaling beside rope_parameters",
            "rope_scaling takes the place of rope_parameters",
        ),
        (
            "yarn: finetuned",
            "rope_parameters.finetuned has no meaning for the kind yarn",
        ),
        (
            "linear: keys of others",
            "rope_parameters.original_max_position_embeddings",
        ),
    ] {
        let got = warnings(name);
        assert!(got.contains(expected), "{name}: {got}");
    }
    for name in [
        "unchanged llava",
        "tied, the same head stored",
        "yarn: betas",
    ] {
        assert_eq!(warnings(name), "null", "{name}");
    }
}
