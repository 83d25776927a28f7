//! No files import one another in a circle: whoever reads one can begin at the bottom.

use std::collections::{BTreeMap, BTreeSet};

use super::tidy::all_rust_files;

/// Folders of the crates, longest first.
const CRATES: [&str; 3] = ["models/kernels/", "models/", "pipeline/"];

/// A module: its crate's folder and the names on the way to it.
type Module = (&'static str, Vec<String>);

/// The module that a file is: `pipeline/stages/mod.rs` is `stages`, `pipeline/lib.rs` the root.
fn module_of(file: &str) -> Option<Module> {
    let folder = CRATES.into_iter().find(|folder| file.starts_with(folder))?;
    let path = file[folder.len()..].strip_suffix(".rs")?;
    let mut names: Vec<String> = path.split('/').map(str::to_owned).collect();
    if names
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
    {
        names.pop();
    }
    Some((folder, names))
}

/// The trees of the `use` statements of a file, but for those of its tests.
fn use_trees(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = Vec::new();
    for line_start in code.match_indices("use ").map(|(at, _)| at) {
        let before = code[..line_start].rsplit('\n').next().unwrap_or_default();
        if before.is_empty() || before == "pub " {
            let tree = code[line_start + 4..].split(';').next().unwrap_or_default();
            found.push(tree.split_whitespace().collect::<String>());
        }
    }
    found
}

/// The paths of a tree: `a::{b, c::{d, e}}` are `a::b`, `a::c::d` and `a::c::e`.
fn paths_of(tree: &str) -> Vec<String> {
    let Some(open) = tree.find('{') else {
        return vec![tree.to_owned()];
    };
    let (head, inner) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts
        .flat_map(|part| {
            paths_of(part)
                .into_iter()
                .map(move |path| format!("{head}{path}"))
        })
        .collect()
}

/// The names from the root of the crate on; `None` for what another crate has.
fn from_root(path: &str, own: &[String]) -> Option<Vec<String>> {
    let mut names: Vec<String> = path.split("::").map(str::to_owned).collect();
    let mut from = match names[0].as_str() {
        "crate" => Vec::new(),
        "self" => own.to_vec(),
        "super" => own[..own.len().checked_sub(1)?].to_vec(),
        _ => return None,
    };
    names.remove(0);
    while names.first().is_some_and(|name| name == "super") {
        from.pop()?;
        names.remove(0);
    }
    from.extend(names);
    Some(from)
}

/// Which files each file takes names from.
fn arrows(files: &[(String, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let modules: BTreeMap<Module, &String> = files
        .iter()
        .filter_map(|(file, _)| Some((module_of(file)?, file)))
        .collect();
    let mut arrows = BTreeMap::new();
    for (file, text) in files {
        let Some((folder, own)) = module_of(file) else {
            continue;
        };
        let trees = use_trees(text);
        let paths = trees.iter().flat_map(|tree| paths_of(tree));
        let targets = paths.filter_map(|path| {
            let mut names = from_root(&path, &own)?;
            // The longest part of the path that is a file.
            loop {
                if let Some(target) = modules.get(&(folder, names.clone())) {
                    return Some((*target).clone());
                }
                names.pop()?;
            }
        });
        // A folder's own face is its parts' common ground, not another room.
        let is_face = |target: &String| {
            let face = module_of(target);
            face.is_some_and(|(_, names)| own.starts_with(&names))
        };
        let targets = targets.filter(|target| !is_face(target)).collect();
        arrows.insert(file.clone(), targets);
    }
    arrows
}

/// A way from `file` back to a file that it has passed.
fn circle<'a>(
    file: &'a str,
    arrows: &'a BTreeMap<String, BTreeSet<String>>,
    way: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<Vec<String>> {
    if let Some(at) = way.iter().position(|passed| *passed == file) {
        return Some(
            way[at..]
                .iter()
                .map(|passed| (*passed).to_owned())
                .collect(),
        );
    }
    if !done.insert(file) {
        return None;
    }
    way.push(file);
    let found = arrows.get(file).into_iter().flatten();
    let found = found
        .into_iter()
        .find_map(|next| circle(next, arrows, way, done));
    way.pop();
    found
}

fn first_circle(files: &[(String, String)]) -> Option<Vec<String>> {
    let arrows = arrows(files);
    let mut done = BTreeSet::new();
    arrows
        .keys()
        .find_map(|file| circle(file, &arrows, &mut Vec::new(), &mut done))
}

#[test]
fn no_files_import_one_another() {
    let found = first_circle(&all_rust_files());
    assert!(found.is_none(), "{}", found.unwrap().join(" -> "));
}

#[test]
fn a_planted_circle_is_found() {
    let file = |path: &str, text: &str| (format!("pipeline/{path}"), text.to_owned());
    let files = [
        file("lib.rs", "pub mod a;\npub mod b;\n"),
        file(
            "a/mod.rs",
            "use crate::{\n    b::Two,\n    time::Pts,\n};\n",
        ),
        file("a/c.rs", "use super::super::time::Pts;\n"),
        file(
            "b.rs",
            "use crate::a::c::Three;\n#[cfg(test)]\nmod tests { use crate::a::One; }\n",
        ),
        file("time.rs", ""),
    ];
    assert_eq!(first_circle(&files), None);
    let mut planted = files;
    planted[2].1 = "use crate::b::Two;\n".to_owned();
    let found = first_circle(&planted).unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.contains(&"pipeline/a/c.rs".to_owned()), "{found:?}");
}
