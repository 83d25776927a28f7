//! `longreel import`: a foreign checkpoint to a model directory.

use std::path::Path;

use longreel_models::{
    checkpoint::{
        import_lwm::{LwmFiles, import_lwm},
        writer::{ImportOptions, StoredDtype},
    },
    file_name::{FileName, as_text},
    systems::import_hf::import_hf,
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::{ImportArgs, WeightDtypeArg},
        open,
        output::Voice,
    },
    error::{Error, Kind, Result},
    plan,
};

#[derive(Serialize)]
struct ImportJson<'a> {
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    tensors: usize,
    bytes: u64,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

/// Runs the verb.
pub fn run(args: ImportArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = std::time::Instant::now();
    let bar = voice.byte_bar("import");
    let options = ImportOptions {
        dtype: match args.dtype {
            WeightDtypeArg::F32 => StoredDtype::F32,
            WeightDtypeArg::Bf16 => StoredDtype::Bf16,
            WeightDtypeArg::Stored => StoredDtype::AsStored,
        },
        force: args.force,
        progress: &mut |done, total| bar.set("import", done, total),
        keep_going: &|| !cancel.is_cancelled(),
        ..ImportOptions::default()
    };
    let written = match &args.hf {
        Some(dir) => import_hf(dir, &args.out, options)?,
        None => import_lwm(&lwm_files(&args)?, &args.out, options)?,
    };
    drop(bar);
    let result = ImportJson {
        out: &args.out,
        tensors: written.tensors,
        bytes: written.bytes,
        seconds: start.elapsed().as_secs_f64(),
        peak_memory_bytes: plan::peak_memory_bytes(),
    };
    voice.say(&result, || {
        format!(
            "{} tensors, {} in {} ({:.1} s)",
            result.tensors,
            plan::bytes(result.bytes),
            args.out.shown(),
            result.seconds
        )
    })
}

fn lwm_files(args: &ImportArgs) -> Result<LwmFiles> {
    let missing = |flag: &str| Error::new(Kind::Usage, format!("{flag} is missing"));
    let spec_path = args.spec.as_ref().ok_or_else(|| missing("--spec"))?;
    let spec = open::spec_file(spec_path)?;
    Ok(LwmFiles {
        spec,
        params: args
            .params
            .as_deref()
            .ok_or_else(|| missing("--params"))?
            .parse()?,
        vqgan: args.vqgan.clone(),
        tokenizer: args
            .tokenizer
            .clone()
            .ok_or_else(|| missing("--tokenizer"))?,
    })
}
