//! Folders that hold something else than a model's weights in full: quantized weights of other programs, and adapters.

use std::path::Path;

use serde_json::Value as Json;

use crate::{
    error::{Error, Kind, Result},
    file_name::FileName,
    folder_file,
};

/// Largest JSON file that is read here.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The file that says of what model an adapter is.
const ADAPTER: &str = "adapter_config.json";

/// Names of methods, as configurations write them and as people know them.
const METHODS: [(&str, &str); 21] = [
    ("aqlm", "AQLM"),
    ("auto-round", "AutoRound"),
    ("awq", "AWQ"),
    ("bitnet", "BitNet"),
    ("bitsandbytes", "bitsandbytes"),
    ("compressed-tensors", "compressed-tensors"),
    ("eetq", "EETQ"),
    ("fbgemm_fp8", "FBGEMM FP8"),
    ("fp8", "fine-grained FP8"),
    ("fp_quant", "FP-Quant"),
    ("gptq", "GPTQ"),
    ("higgs", "HIGGS"),
    ("hqq", "HQQ"),
    ("modelopt", "ModelOpt"),
    ("mxfp4", "MXFP4"),
    ("quanto", "Quanto"),
    ("quark", "Quark"),
    ("spqr", "SpQR"),
    ("torchao", "torchao"),
    ("vptq", "VPTQ"),
    ("sinq", "SINQ"),
];

/// Files of folders whose `config.json` says nothing of it: AutoGPTQ's and AutoAWQ's.
const METHOD_FILES: [(&str, &str); 2] = [
    ("quantize_config.json", "gptq"),
    ("quant_config.json", "awq"),
];

/// Refuses weights that another program quantized.
///
/// # Errors
/// `BadInput`, naming the method and what to use instead.
pub fn check_quantization(config: &Json, dir: &Path) -> Result<()> {
    let places = ["", "/text_config", "/llm_cfg", "/language_config"];
    let keys = ["quantization_config", "compression_config"];
    let mut said = places.iter().flat_map(|place| {
        let part = config.pointer(place);
        keys.iter().filter_map(move |key| part?.get(key))
    });
    if let Some(found) = said.find(|found| found.as_object().is_some_and(|o| !o.is_empty())) {
        return Err(quantized(found, method_of(found)));
    }
    for (name, method) in METHOD_FILES {
        if let Some(found) = json(&dir.join(name))? {
            return Err(quantized(&found, Some(method)));
        }
    }
    Ok(())
}

/// The method of a `quantization_config`; bitsandbytes once left its name out.
fn method_of(config: &Json) -> Option<&str> {
    let is_bitsandbytes = [
        "load_in_4bit",
        "load_in_8bit",
        "_load_in_4bit",
        "_load_in_8bit",
    ]
    .iter()
    .any(|key| config[key] == true);
    let named = config["quant_method"].as_str();
    named.or(is_bitsandbytes.then_some("bitsandbytes"))
}

fn quantized(config: &Json, method: Option<&str>) -> Error {
    let name = match method {
        Some(method) => METHODS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(method))
            .map_or_else(
                || format!("the method {method:?}"),
                |(_, name)| (*name).to_owned(),
            ),
        None => "a method that is not named".to_owned(),
    };
    let bits = bits_of(config).map_or(String::new(), |bits| format!(" ({bits} bits)"));
    let message = format!(
        "its weights are quantized by {name}{bits}, expected F32, F16 or BF16: use the model that it was made from, in BF16; \
         quantized weights are read from GGUF files (a text model's as the model itself, another's as --decoder beside its \
         BF16 folder)"
    );
    Error::new(Kind::BadInput, message)
}

/// Bits of a weight, where the configuration tells them.
fn bits_of(config: &Json) -> Option<u64> {
    let stated = ["bits", "w_bit", "nbits", "wbits"];
    let stated = stated.iter().find_map(|key| config[key].as_u64());
    let loaded = |key: &str, bits| (config[key] == true).then_some(bits);
    stated
        .or_else(|| loaded("load_in_4bit", 4))
        .or_else(|| loaded("_load_in_4bit", 4))
        .or_else(|| loaded("load_in_8bit", 8))
        .or_else(|| loaded("_load_in_8bit", 8))
}

/// The error of the folder `dir`, which has no `config.json`.
pub fn no_configuration(dir: &Path) -> Error {
    match json(&dir.join(ADAPTER)) {
        Ok(Some(adapter)) => only_adapter(&adapter),
        Ok(None) => Error::new(Kind::NotFound, "no such file or directory"),
        Err(error) => error,
    }
}

fn only_adapter(adapter: &Json) -> Error {
    let kind = adapter["peft_type"].as_str().unwrap_or("LORA");
    let base = adapter["base_model_name_or_path"].as_str();
    let base = base.filter(|base| !base.is_empty());
    let of = base.map_or("a model that is not named".to_owned(), |base| {
        Path::new(base).shown().to_string()
    });
    let message = format!(
        "the folder has only an adapter ({kind}) of {of}, expected a whole model: merge it into its base model first (PEFT: \
         `PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(out)`) and use that folder"
    );
    Error::new(Kind::BadInput, message)
}

/// What a user should know of an adapter that stands beside a whole model in `dir`.
pub fn adapter_beside(dir: &Path) -> Option<String> {
    let names = [ADAPTER, "adapter_model.safetensors", "adapter_model.bin"];
    let is_there = |name: &&str| dir.join(name).symlink_metadata().is_ok();
    let name = names.into_iter().find(is_there)?;
    Some(format!(
        "an adapter lies beside the model ({name}) and is not applied: merge it into the model first (PEFT, merge_and_unload)"
    ))
}

fn json(path: &Path) -> Result<Option<Json>> {
    let Some(bytes) = folder_file::read(path, FILE_BYTES_MAX)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|e| {
        let doing = format!("read {}", path.shown());
        Error::with_source(Kind::BadInput, "not JSON", e).doing(doing)
    })
}
