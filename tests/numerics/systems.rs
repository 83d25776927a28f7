//! Other people's models, read from their own folders, give what their own code gives.
//!
//! Each folder of `tests/golden/systems` is read twice: with the configuration as
//! transformers 5 writes it, and as it stands on the hub.

use longreel_models::{
    checkpoint::{
        architecture::{Architecture, ModelKind},
        weights::Weights,
    },
    dual_encoder::DualEncoder,
    error::{Kind, Result},
    vision::{classifier::Classifier, vit::Vit},
};
use serde_json::Value;

use crate::support::golden::{self, Golden, assert_close};

/// Ten times what f32 differs from f64 here, and more (`meta.json`, `fp32_err`).
const TOLERANCE: f32 = 1e-4;

/// One folder under one of its configurations.
struct System {
    name: &'static str,
    config: Value,
}

impl System {
    /// The folder `name`, with each of its configurations.
    fn both(name: &'static str) -> [Self; 2] {
        ["config.json", "config_v4.json"].map(|file| {
            let path = golden::path(&format!("systems/{name}/{file}"));
            let text = std::fs::read_to_string(path).unwrap();
            let config = serde_json::from_str(&text).unwrap();
            Self { name, config }
        })
    }

    fn expected(&self) -> Golden {
        Golden::open(&format!("systems/{}/expected.safetensors", self.name))
    }

    /// Every tensor of the folder must be taken.
    fn load<S: serde::de::DeserializeOwned, M>(
        &self,
        kind: ModelKind,
        load: impl FnOnce(&S, &mut Weights) -> Result<M>,
    ) -> M {
        let architecture = Architecture::of_config(&self.config).unwrap();
        let spec: S = architecture.spec(kind, &self.config).unwrap();
        let dir = golden::path(&format!("systems/{}", self.name));
        let model = dir.join("model.safetensors");
        let weights = Weights::open(&model).unwrap();
        let mut weights = weights.renamed(&architecture.keys().unwrap()).unwrap();
        let model = load(&spec, &mut weights).unwrap();
        weights.finish().unwrap();
        model
    }

    fn check(&self, tensor: &str, got: &[f32]) {
        let what = format!("{} {tensor}", self.name);
        assert_close(&what, got, &self.expected().f32(tensor), TOLERANCE);
    }
}

fn check_vit(system: &System, vit: &Vit, embeddings: Option<&str>, first: &str, last: &str) {
    let pixels = system.expected().f32("in.pixel_values");
    if let Some(embeddings) = embeddings {
        system.check(embeddings, &vit.embed(&pixels).unwrap());
    }
    system.check(first, &vit.hidden(&pixels, 1).unwrap());
    system.check(last, &vit.hidden(&pixels, vit.layers()).unwrap());
}

#[test]
fn classifiers_give_the_official_logits() {
    for (name, embeddings) in [("vit", Some("mid.embeddings")), ("dinov2", None)] {
        for system in System::both(name) {
            let model = system.load(ModelKind::Classifier, Classifier::load);
            check_vit(
                &system,
                model.vision(),
                embeddings,
                "mid.layer0",
                "mid.last_layer",
            );
            let pixels = system.expected().f32("in.pixel_values");
            system.check("out.logits", &model.logits(&pixels).unwrap());
        }
    }
}

/// Texts of the golden file without what its attention mask hides, and the expected
/// hidden states of what is left.
fn texts(file: &Golden) -> (Vec<Vec<u32>>, Vec<f32>) {
    let length = file.shape("in.input_ids")[1];
    let ids = file.i64("in.input_ids");
    let has_mask = file.names().iter().any(|name| name == "in.attention_mask");
    let mask = if has_mask {
        file.i64("in.attention_mask")
    } else {
        vec![1; ids.len()]
    };
    let hidden = file.f32("mid.text_last");
    let width = hidden.len() / ids.len();
    let seen = |at: &usize| mask[*at] == 1;
    let hidden = (0..ids.len())
        .filter(seen)
        .flat_map(|at| &hidden[at * width..][..width]);
    let row = |row: usize| {
        (row * length..(row + 1) * length)
            .filter(seen)
            .map(|at| ids[at] as u32)
            .collect()
    };
    (
        (0..ids.len() / length).map(row).collect(),
        hidden.copied().collect(),
    )
}

#[test]
fn dual_encoders_give_the_official_vectors_and_scores() {
    for name in ["clip", "siglip"] {
        for system in System::both(name) {
            let model = system.load(ModelKind::DualEncoder, DualEncoder::load);
            let file = system.expected();
            let pixels = file.f32("in.pixel_values");
            let (vision, layers) = (model.vision(), model.vision().layers());
            let last = vision.hidden(&pixels, layers).unwrap();
            if name == "clip" {
                system.check("mid.vision_last", &last);
                let penultimate = vision.hidden(&pixels, layers - 1).unwrap();
                system.check("mid.vision_penultimate", &penultimate);
            } else {
                system.check("mid.vision_last", &vision.normed(&last));
            }
            let pictures = model.encode_pictures(&pixels).unwrap();
            system.check("out.image_embeds", &pictures);
            let (texts, expected) = texts(&file);
            let hidden = texts.iter().map(|ids| model.text().hidden(ids).unwrap());
            let hidden: Vec<_> = hidden.collect();
            assert_close("text_last", &hidden.concat(), &expected, TOLERANCE);
            let vectors: Vec<Vec<f32>> = texts
                .iter()
                .map(|ids| model.encode_text(ids).unwrap())
                .collect();
            system.check("out.text_embeds", &vectors.concat());
            let scores: Vec<f32> = pictures
                .chunks(vectors[0].len())
                .flat_map(|picture| vectors.iter().map(|text| model.score(picture, text)))
                .collect();
            system.check("out.logits_per_image", &scores);
        }
    }
}

#[test]
fn an_unknown_architecture_is_refused_with_those_that_are_known() {
    let mut system = System::both("clip").into_iter().next().unwrap();
    system.config["model_type"] = "bloom".into();
    let error = Architecture::of_config(&system.config).unwrap_err();
    assert_eq!(error.kind(), Kind::BadInput);
    let message = error.to_string();
    assert!(
        message.contains(r#"model_type is "bloom""#)
            && message.contains("expected one of clip, dinov2, llama"),
        "{message}"
    );
}
