//! `longreel models`: list, show, verify, pull.

use std::path::Path;

use longreel_models::{
    checkpoint::weights::Weights,
    file_name::{FileName, as_text},
    spec::{
        ModelSpec, VqganSpec,
        conv_net::ConvNetSpec,
        encoder::{DualEncoderSpec, VitSpec},
        system::{SystemKind, SystemSpec},
    },
    systems::{System, verify},
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::ModelsVerb, open, output::Voice},
    encoder::{FrameEncoder, PixelBudget},
    error::{Error, Kind, Result},
    hub, plan,
    vectors::PictureEncoder,
};

/// Runs the verb.
pub fn run(verb: ModelsVerb, voice: Voice, cancel: &Cancel) -> Result<()> {
    match verb {
        ModelsVerb::List => list(voice),
        ModelsVerb::Show { model } => show(&*open::system(&model, voice, cancel)?, voice),
        ModelsVerb::Verify { model } => {
            check(&*open::system(&model, voice, cancel)?, voice, cancel)
        }
        ModelsVerb::Pull { model } => {
            let dir = open::model_dir(&model, voice, cancel)?;
            voice.say(&serde_json::json!({ "model": model.text().into_owned(), "path": dir.text().into_owned() }), || {
                dir.text().into_owned()
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
                    m.path.shown()
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

/// Number, size and element types of the stored weights.
#[derive(Serialize)]
struct WeightFileSummary {
    tensors: usize,
    weight_bytes: u64,
    parameters: u64,
    dtypes: Vec<String>,
}

impl WeightFileSummary {
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
    #[serde(serialize_with = "as_text")]
    path: &'a Path,
    kind: SystemKind,
    /// The specification; under `vqgan` that of a VQGAN without a decoder.
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<&'a SystemSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vqgan: Option<&'a VqganSpec>,
    #[serde(flatten)]
    stored: WeightFileSummary,
    /// What of its files is not followed.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_bytes_per_token_f32: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_frame: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    codes_per_frame: Option<usize>,
    /// Width of a picture's vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    vector_width: Option<usize>,
}

fn show(system: &System, voice: Voice) -> Result<()> {
    let spec = system.spec();
    let alone = match spec {
        SystemSpec::Vqgan(vqgan) => Some(vqgan.as_ref()),
        _ => None,
    };
    let answering = spec.answering();
    let json = ShowJson {
        path: system.path(),
        kind: system.kind(),
        spec: Some(spec).filter(|_| alone.is_none()),
        vqgan: alone,
        stored: WeightFileSummary::of(&system.weights()?),
        warnings: system.warnings(),
        kv_bytes_per_token_f32: answering.map(|spec| spec.decoder.kv_bytes_per_token(4)),
        tokens_per_frame: answering.and_then(ModelSpec::tokens_per_frame),
        codes_per_frame: alone.map(VqganSpec::codes_per_frame),
        vector_width: spec.vector_width(),
    };
    voice.say(&json, || {
        let mut lines = vec![json.path.shown().to_string()];
        let mut line = |name: &str, words: String| lines.push(format!("  {name:<13} {words}"));
        line("kind", json.kind.to_string());
        line("parameters", json.stored.words());
        for (name, words) in parts(spec) {
            line(name, words);
        }
        if let Some(width) = json.vector_width {
            line(
                "vector",
                format!("{width} elements, normalized to length 1"),
            );
        }
        lines.join("\n")
    })
}

/// The lines that describe a model's parts.
fn parts(spec: &SystemSpec) -> Vec<(&'static str, String)> {
    match spec {
        SystemSpec::Answers(spec) => of_answering(spec),
        SystemSpec::DualEncoder(spec) => of_dual(spec),
        SystemSpec::Classifier(spec) => vec![("frame", frame_of(spec)), ("tower", tower(spec))],
        SystemSpec::ConvNet(spec) => of_conv_net(spec),
        SystemSpec::Vqgan(spec) => of_vqgan(spec),
    }
}

fn of_answering(spec: &ModelSpec) -> Vec<(&'static str, String)> {
    let d = &spec.decoder;
    let decoder = format!(
        "{} layers, hidden {}, {} heads, {} key-value heads of {}",
        d.num_hidden_layers,
        d.hidden_size,
        d.num_attention_heads,
        d.n_kv_heads(),
        d.head_dim()
    );
    let context = format!(
        "{} tokens, {} of keys and values per token in f32",
        d.max_position_embeddings,
        plan::bytes(d.kv_bytes_per_token(4) as u64)
    );
    let (text, codes) = (d.vocab_size, d.vision_vocab_size.unwrap_or(0));
    vec![
        ("decoder", decoder),
        ("context", context),
        ("vocabulary", format!("{text} text, {codes} vision")),
        ("frame", frame(spec)),
    ]
}

fn of_dual(spec: &DualEncoderSpec) -> Vec<(&'static str, String)> {
    let text = &spec.text;
    let words = format!(
        "{} layers, hidden {}, {} heads, at most {} tokens of {}",
        text.encoder.num_hidden_layers,
        text.encoder.hidden_size,
        text.encoder.num_attention_heads,
        text.max_position_embeddings,
        text.vocab_size
    );
    vec![
        ("frame", frame_of(&spec.vision)),
        ("tower", tower(&spec.vision)),
        ("text", words),
    ]
}

fn of_conv_net(spec: &ConvNetSpec) -> Vec<(&'static str, String)> {
    let words = format!("{} layers", spec.layers.len());
    vec![
        ("frame", "pictures of any size".to_owned()),
        ("network", words),
    ]
}

fn of_vqgan(spec: &VqganSpec) -> Vec<(&'static str, String)> {
    let (side, codes) = (spec.resolution, spec.codes_per_frame());
    let (rows, width) = (spec.num_embeddings, spec.quantized_embed_dim);
    vec![
        ("codebook", format!("{rows} rows of {width}")),
        ("frame", format!("{side}x{side} pixels, {codes} codes")),
    ]
}

fn frame_of(vit: &VitSpec) -> String {
    let (side, patch) = (vit.image_size, vit.patch_size);
    format!("{side}x{side} pixels, patches of {patch}")
}

fn tower(vit: &VitSpec) -> String {
    let encoder = &vit.encoder;
    format!(
        "{} layers, hidden {}, {} heads",
        encoder.num_hidden_layers, encoder.hidden_size, encoder.num_attention_heads
    )
}

/// How the model encodes a frame, in words.
fn frame(spec: &ModelSpec) -> String {
    match (&spec.vqgan, &spec.vision, spec.tokens_per_frame()) {
        (Some(v), _, Some(n)) => {
            let (side, codes) = (v.resolution, v.codes_per_frame());
            format!("{side}x{side} pixels, {codes} codes, {n} tokens")
        }
        (_, Some(_), Some(n)) => format!("{n} features"),
        (_, Some(_), None) => "features in proportion to its size".to_owned(),
        _ => "none: a text model".to_owned(),
    }
}

fn check(system: &System, voice: Voice, cancel: &Cancel) -> Result<()> {
    let load = |weights: &mut Weights| take_encoder(system, weights);
    let report = verify::verify(system, &load, &|| !cancel.is_cancelled())?;
    let sound = report.is_sound();
    voice.say(&report, || report.to_string())?;
    if sound {
        return Ok(());
    }
    Err(Error::new(
        Kind::BadInput,
        format!(
            "the weights of the model {} are faulty",
            system.path().shown()
        ),
    ))
}

/// Takes the weights of the encoder, for which there is no list of names.
fn take_encoder(system: &System, weights: &mut Weights) -> Result<()> {
    match system.spec() {
        SystemSpec::Answers(spec) if spec.vision.is_some() => {
            FrameEncoder::load(system, spec, &PixelBudget::default(), weights).map(drop)
        }
        SystemSpec::Answers(_) | SystemSpec::Vqgan(_) => Ok(()),
        SystemSpec::DualEncoder(_) | SystemSpec::Classifier(_) | SystemSpec::ConvNet(_) => {
            PictureEncoder::load(system, weights).map(drop)
        }
    }
}
