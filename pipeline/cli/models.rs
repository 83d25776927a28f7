//! `longreel models`: list, show, verify, pull.

use std::path::Path;

use longreel_models::{
    checkpoint::{
        import_hf::{spec_of_directory, vqgan_alone_of_directory, weights_of_directory},
        verify,
        weights::Weights,
    },
    spec::{ModelSpec, VqganSpec},
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::ModelsVerb, output::Voice, resolve},
    encoder::{FrameEncoder, PixelBudget},
    error::{Error, Kind, Result},
    hub, plan,
};

/// Runs the verb.
pub fn run(verb: ModelsVerb, voice: Voice, cancel: &Cancel) -> Result<()> {
    match verb {
        ModelsVerb::List => list(voice),
        ModelsVerb::Show { model } => show(&resolve::model_dir(&model, voice, cancel)?, voice),
        ModelsVerb::Verify { model } => {
            check(&resolve::model_dir(&model, voice, cancel)?, voice, cancel)
        }
        ModelsVerb::Pull { model } => {
            let dir = resolve::model_dir(&model, voice, cancel)?;
            voice.say(&serde_json::json!({ "model": model, "path": dir }), || {
                dir.display().to_string()
            })
        }
    }
}

fn list(voice: Voice) -> Result<()> {
    let models = hub::list_cached(&hub::Settings::from_env()?)?;
    voice.say(&models, || {
        let lines: Vec<String> = models
            .iter()
            .map(|m| {
                format!(
                    "{:<48} {:>12}  {}",
                    m.name,
                    plan::bytes(m.bytes),
                    m.path.display()
                )
            })
            .collect();
        if lines.is_empty() {
            "no model in the cache".to_owned()
        } else {
            lines.join("\n")
        }
    })
}

/// What the files of weights hold.
#[derive(Serialize)]
struct Stored {
    tensors: usize,
    weight_bytes: u64,
    parameters: u64,
    dtypes: Vec<String>,
}

impl Stored {
    fn of(weights: &Weights) -> Self {
        let mut dtypes: Vec<String> = weights
            .list()
            .map(|(_, stored, _)| stored.to_string())
            .collect();
        dtypes.sort();
        dtypes.dedup();
        Self {
            tensors: weights.list().count(),
            weight_bytes: weights.total_bytes(),
            parameters: weights
                .list()
                .map(|(_, _, shape)| shape.iter().product::<usize>() as u64)
                .sum(),
            dtypes,
        }
    }

    /// `7 in 2 tensors (F32, 28 B)`
    fn words(&self) -> String {
        format!(
            "{} in {} tensors ({}, {})",
            self.parameters,
            self.tensors,
            self.dtypes.join(", "),
            plan::bytes(self.weight_bytes)
        )
    }
}

#[derive(Serialize)]
struct ShowJson<'a> {
    path: &'a Path,
    spec: ModelSpec,
    #[serde(flatten)]
    stored: Stored,
    kv_bytes_per_token_f32: usize,
    tokens_per_frame: Option<usize>,
}

#[derive(Serialize)]
struct ShowVqganJson<'a> {
    path: &'a Path,
    vqgan: VqganSpec,
    #[serde(flatten)]
    stored: Stored,
    codes_per_frame: usize,
}

fn show(dir: &Path, voice: Voice) -> Result<()> {
    if let Some(vqgan) = vqgan_alone_of_directory(dir)? {
        return show_vqgan(dir, vqgan, voice);
    }
    let spec = spec_of_directory(dir)?;
    let json = ShowJson {
        path: dir,
        stored: Stored::of(&weights_of_directory(dir)?),
        kv_bytes_per_token_f32: spec.decoder.kv_bytes_per_token(4),
        tokens_per_frame: spec.tokens_per_frame(),
        spec,
    };
    voice.say(&json, || {
        let d = &json.spec.decoder;
        format!(
            "{}\n  family        {:?}\n  parameters    {}\n  decoder       {} layers, hidden {}, {} heads, {} key-value heads of {}\n  \
             context       {} tokens, {} of keys and values per token in f32\n  vocabulary    {} text, {} vision\n  frame         {}",
            dir.display(),
            json.spec.model_type,
            json.stored.words(),
            d.num_hidden_layers,
            d.hidden_size,
            d.num_attention_heads,
            d.n_kv_heads(),
            d.head_dim(),
            d.max_position_embeddings,
            plan::bytes(json.kv_bytes_per_token_f32 as u64),
            d.vocab_size,
            d.vision_vocab_size.unwrap_or(0),
            frame(&json.spec)
        )
    })
}

fn show_vqgan(dir: &Path, vqgan: VqganSpec, voice: Voice) -> Result<()> {
    let json = ShowVqganJson {
        path: dir,
        stored: Stored::of(&weights_of_directory(dir)?),
        codes_per_frame: vqgan.codes_per_frame(),
        vqgan,
    };
    voice.say(&json, || {
        let (side, rows) = (json.vqgan.resolution, json.vqgan.num_embeddings);
        format!(
            "{}\n  family        VQGAN alone\n  parameters    {}\n  codebook      {rows} rows of {}\n  frame         {side}x{side} pixels, {} codes",
            dir.display(),
            json.stored.words(),
            json.vqgan.quantized_embed_dim,
            json.codes_per_frame
        )
    })
}

/// What a frame is to the model, in words.
fn frame(spec: &ModelSpec) -> String {
    match (&spec.vqgan, &spec.vision, spec.tokens_per_frame()) {
        (Some(v), _, Some(n)) => {
            let (side, codes) = (v.resolution, v.codes_per_frame());
            format!("{side}x{side} pixels, {codes} codes, {n} tokens")
        }
        (_, Some(_), Some(n)) => format!("{n} features"),
        (_, Some(_), None) => "as many features as its size asks for".to_owned(),
        _ => "none: a text model".to_owned(),
    }
}

fn check(dir: &Path, voice: Voice, cancel: &Cancel) -> Result<()> {
    let vision = |spec: &ModelSpec, weights: &mut Weights| {
        FrameEncoder::load(dir, spec, &PixelBudget::default(), weights).map(drop)
    };
    let report = verify::verify(dir, &vision, &|| !cancel.is_cancelled())?;
    let sound = report.is_sound();
    voice.say(&report, || report.to_string())?;
    if sound {
        return Ok(());
    }
    Err(Error::new(
        Kind::BadInput,
        format!("the model {} is not sound", dir.display()),
    ))
}
