//! Which files of a repository make a model directory.

/// Files that describe a model and its inputs, by exact name.
const EXACT: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    // What says that a folder is no whole model: it is refused by name then.
    "adapter_config.json",
    "quantize_config.json",
    "quant_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
];

/// Folders with the parts of a VILA model.
const PARTS: [&str; 3] = ["llm/", "vision_tower/", "mm_projector/"];

/// The files of a model directory among `files`, descriptions first, weights last.
///
/// Only the top folder counts, or VILA's part folders where it has no weights. Weights are the `*.safetensors` files, or
/// the `*.bin` files where there is none; copies of the same weights in another
/// form (`consolidated.*`, `model.fp16.safetensors`) and files that only training
/// needs are left out.
pub fn wanted(files: &[String]) -> Vec<String> {
    let mut all = wanted_of(files, "");
    if !all.iter().any(|name| is_weights(name)) {
        all.extend(PARTS.iter().flat_map(|folder| wanted_of(files, folder)));
    }
    all
}

/// The wanted files of one folder.
fn wanted_of(files: &[String], folder: &str) -> Vec<String> {
    let own = files.iter().filter_map(|name| name.strip_prefix(folder));
    let own: Vec<String> = own
        .filter(|name| !name.contains('/'))
        .map(str::to_owned)
        .collect();
    let weights = |extension: &str| -> Vec<String> {
        own.iter()
            .filter(|name| name.ends_with(extension) && !is_copy(name, &own))
            .cloned()
            .collect()
    };
    let (weights, index) = match (weights(".safetensors"), weights(".bin")) {
        (safetensors, bin) if safetensors.is_empty() => (bin, ".bin.index.json"),
        (safetensors, _) => (safetensors, ".safetensors.index.json"),
    };
    let mut wanted: Vec<String> = own
        .iter()
        .filter(|name| is_description(name) || name.ends_with(index))
        .cloned()
        .collect();
    wanted.sort();
    wanted.dedup();
    wanted.extend(weights);
    wanted
        .iter()
        .map(|name| format!("{folder}{name}"))
        .collect()
}

/// Whether `name` is a file of weights.
pub(super) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

fn is_description(name: &str) -> bool {
    EXACT.contains(&name) || name.starts_with("tokenizer") || name.starts_with("chat_template")
}

/// Whether `name` repeats other weights, or does not belong to the model.
fn is_copy(name: &str, files: &[String]) -> bool {
    let training = ["training_args.bin", "optimizer.bin", "scheduler.bin"];
    if training.contains(&name) || name.starts_with("consolidated") {
        return true;
    }
    // `model.fp16.safetensors` beside `model.safetensors`.
    let mut parts = name.splitn(3, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(stem), Some(_), Some(extension)) => files
            .iter()
            .any(|other| *other == format!("{stem}.{extension}")),
        _ => false,
    }
}
