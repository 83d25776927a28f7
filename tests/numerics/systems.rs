//! Other people's models, read from their own folders, give what their own code gives.
//!
//! Each folder of `tests/golden/systems` is read twice: with the configuration as
//! transformers 5 writes it, and as it stands on the hub.

use std::{thread, time::Duration};

use longreel_models::{
    attention::{
        kv_cache::{KvCache, KvDtype},
        link::in_process::InProcess,
    },
    checkpoint::{
        architecture::{Architecture, ModelKind},
        weights::Weights,
    },
    context::vocab::Token,
    dual_encoder::DualEncoder,
    error::{Kind, Result},
    llama::{
        Decoder, Head, Input, Row,
        generate::{Generation, Step, generate, prefill},
        group::{Forward, Leader, serve},
        sampler::Draw,
    },
    spec::{
        DecoderSpec,
        encoder::HiddenAct,
        features::{ConnectorStep, MergeOrder, VisionLanguageSpec},
    },
    vision::{classifier::Classifier, connector::Connector, features::FeatureEncoder, vit::Vit},
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
            && message.contains("expected one of clip, dinov2, internvl, llama"),
        "{message}"
    );
}

#[test]
fn experts_give_mixtrals_logits() {
    for system in System::both("mixtral") {
        let decoder = system.load(ModelKind::Decoder, Decoder::load);
        let file = system.expected();
        let mut got = Vec::new();
        for ids in file.i64("in.input_ids").chunks(13) {
            let tokens: Vec<Token> = ids.iter().map(|&id| Token::Text(id as u32)).collect();
            let positions: Vec<u32> = (0..13).collect();
            let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
            let states = decoder.forward(&mut [Row {
                tokens: &tokens,
                positions: &positions,
                segments: None,
                features: &[],
                cache: &mut cache,
            }]);
            let logits = decoder.logits(&states.unwrap(), Head::Text).unwrap();
            got.extend(logits.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        system.check("out.logits", &got);
    }
}

/// A system that answers about pictures, and the golden prompt with its pictures' features.
struct Answering {
    decoder: Decoder,
    tokens: Vec<Token>,
    features: Vec<f32>,
}

impl Answering {
    fn open(system: &System) -> Self {
        let load = |spec: &VisionLanguageSpec, weights: &mut Weights| {
            let encoder = FeatureEncoder::load(&spec.features, spec.decoder.hidden_size, weights)?;
            let decoder = Decoder::load(&spec.decoder, weights)?;
            Ok(((spec.image_token_id, spec.video_token_id), encoder, decoder))
        };
        let ((image, video), encoder, decoder) = system.load(ModelKind::VisionLanguage, load);
        let file = system.expected();
        let token = |id: i64| match u32::try_from(id).unwrap() {
            id if id == image || Some(id) == video => Token::Feature(id),
            id => Token::Text(id),
        };
        Self {
            decoder,
            tokens: file.i64("in.input_ids").into_iter().map(token).collect(),
            features: if video.is_some() {
                encoder.video(&file.f32("in.pixel_values_videos")).unwrap()
            } else {
                encoder.forward(&file.f32("in.pixel_values")).unwrap()
            },
        }
    }

    fn input(&self) -> Input<'_> {
        Input {
            tokens: &self.tokens,
            features: &self.features,
        }
    }

    /// Logits at every place of the prompt, prefilled in parts of `chunk` tokens.
    fn logits(&self, chunk: usize) -> Vec<f32> {
        let hidden = self.decoder.spec().hidden_size;
        let mut cache = KvCache::new(self.decoder.spec(), KvDtype::F32);
        let mut logits = Vec::new();
        for part in self.input().chunks(chunk, hidden) {
            let first = cache.next_position();
            let positions: Vec<u32> = (first..first + part.tokens.len() as u32).collect();
            let states = self.decoder.forward(&mut [Row {
                tokens: part.tokens,
                positions: &positions,
                segments: None,
                features: part.features,
                cache: &mut cache,
            }]);
            let part = self.decoder.logits(&states.unwrap(), Head::Text).unwrap();
            logits.extend(part.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        logits
    }

    /// The most likely ids after the prompt, by `decoder`, which runs on one rank or several.
    fn greedy(&self, decoder: &dyn Forward, dtype: KvDtype, n: usize) -> Vec<u32> {
        let mut cache = decoder.context(dtype);
        let go_on = || true;
        let last = prefill(decoder, &mut cache, self.input(), 5, &go_on, &mut |_| {}).unwrap();
        let generation = Generation {
            max_new_tokens: n,
            draw: Draw::GREEDY,
            stop_ids: Vec::new(),
        };
        let mut fork = cache.fork();
        let mut keep = |_| Ok(Step::Continue);
        generate(decoder, &mut fork, &last, &generation, &go_on, &mut keep).unwrap()
    }
}

#[test]
fn pictures_stand_in_the_context_and_the_official_logits_and_ids_follow() {
    for system in ["llava15", "internvl"].into_iter().flat_map(System::both) {
        let model = Answering::open(&system);
        let file = system.expected();
        if system.name == "llava15" {
            system.check("mid.image_features", &model.features);
        }
        for chunk in [1, 7, 64] {
            system.check("out.logits", &model.logits(chunk));
        }
        let ids: Vec<u32> = file
            .i64("gen.tokens")
            .into_iter()
            .map(|id| id as u32)
            .collect();
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let got = model.greedy(&model.decoder, dtype, ids.len());
            assert_eq!(got, ids, "{} {dtype:?}", system.name);
        }
    }
}

#[test]
fn a_video_stands_in_the_context_as_frames_of_half_the_side_and_a_newline() {
    for system in System::both("llava_onevision") {
        let model = Answering::open(&system);
        for chunk in [1, 7, 64] {
            system.check("out.logits", &model.logits(chunk));
        }
    }
}

/// VILA's `mlp_downsample`: LayerNorm and two matrices behind squares of four patches.
#[test]
fn vilas_connector_merges_in_both_token_orders() {
    let linear = |name: &str| ConnectorStep::Linear {
        name: name.to_owned(),
        out: 32,
        bias: true,
    };
    let file = Golden::open("systems/x_vila_projector/expected.safetensors");
    for (order, expected) in [
        (MergeOrder::Rows, "out.tokens"),
        (MergeOrder::Transposed, "out.tokens_transposed_legacy"),
    ] {
        let steps = [
            ConnectorStep::Merge { order },
            ConnectorStep::Norm {
                name: "1".to_owned(),
                eps: 1e-5,
            },
            linear("2"),
            ConnectorStep::Activation {
                act: HiddenAct::Gelu,
            },
            linear("4"),
        ];
        let model = golden::path("systems/x_vila_projector/model.safetensors");
        let mut weights = Weights::open(&model).unwrap();
        let connector = Connector::load(&steps, 12, &mut weights, "layers").unwrap();
        weights.finish().unwrap();
        let got = connector.forward(file.f32("in.vit_out"), 2, 12).unwrap();
        assert_close(expected, &got, &file.f32(expected), TOLERANCE);
    }
}

#[test]
fn features_reach_every_rank_of_a_ring() {
    let [system, _] = System::both("llava15");
    let mut model = Answering::open(&system);
    // As many pictures as fill blocks of several ranks.
    let (tokens, features) = (model.tokens.clone(), model.features.clone());
    for _ in 0..19 {
        model.tokens.extend_from_slice(&tokens);
        model.features.extend_from_slice(&features);
    }
    let roomy = DecoderSpec {
        max_position_embeddings: 4096,
        ..model.decoder.spec().clone()
    };
    let load = |spec: &VisionLanguageSpec, weights: &mut Weights| {
        FeatureEncoder::load(&spec.features, spec.decoder.hidden_size, weights)?;
        Decoder::load(&roomy, weights)
    };
    model.decoder = system.load(ModelKind::VisionLanguage, load);
    let alone = model.greedy(&model.decoder, KvDtype::F32, 8);
    for ranks in [2, 3] {
        let mut links = InProcess::connect(ranks, Duration::from_secs(60)).into_iter();
        let leader = links.next().unwrap();
        thread::scope(|scope| {
            for link in links {
                scope.spawn(|| serve(&model.decoder, Box::new(link)).unwrap());
            }
            let leader = Leader::new(&model.decoder, Box::new(leader), None);
            assert_eq!(
                model.greedy(&leader, KvDtype::F32, 8),
                alone,
                "{ranks} ranks"
            );
        });
    }
}

#[test]
fn features_that_do_not_fill_their_places_are_refused() {
    let [system, _] = System::both("llava15");
    let model = Answering::open(&system);
    let short = Input {
        tokens: &model.tokens,
        features: &model.features[32..],
    };
    let mut cache = KvCache::new(model.decoder.spec(), KvDtype::F32);
    let refused = prefill(&model.decoder, &mut cache, short, 64, &|| true, &mut |_| {});
    let message = refused.unwrap_err().to_string();
    assert!(
        message.contains("992 numbers for 32 places of features"),
        "{message}"
    );
}
