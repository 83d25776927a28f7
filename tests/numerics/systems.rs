//! Other people's models, read from their own folders, give what their own code gives.
//!
//! Each folder of `tests/golden/systems` is read twice: with the configuration as
//! transformers 5 writes it, and as it stands on the hub. Those with a name in two parts have the switches of
//! the first part's system that it has not (`tests/golden/variants.py`).

use std::{thread, time::Duration};

use candle_core::Tensor;
use longreel_models::{
    attention::{
        kv_cache::{KvCache, KvDtype},
        link::in_process::InProcess,
    },
    checkpoint::weights::Weights,
    context::{
        positions::{PositionBuilder, Seconds},
        vocab::Token,
    },
    dual_encoder::DualEncoder,
    error::{Kind, Result},
    llama::{
        Decoder, Head, Input, Positions, Row, Trace,
        generate::{Continuation, Generation, generate, prefill},
        group::{Forward, Leader, serve},
        packed::{PackedPrefill, Prefilled, prefill_packed},
        sampler::Draw,
    },
    spec::{
        DecoderSpec,
        encoder::{HiddenAct, NormKind},
        features::{AfterVideo, ConnectorStep, MergeOrder, PositionRule, VisionLanguageSpec},
        processor::Medium,
    },
    systems::architecture::{Architecture, ModelKind},
    vision::{
        classifier::Classifier,
        connector::Connector,
        features::FeatureEncoder,
        image::RgbView,
        native::{Grid, NativeEncoder},
        patches::VideoPatches,
        processor::PictureProcessor,
        vit::Vit,
    },
};
use serde_json::Value;

use crate::support::{
    folders,
    golden::{self, Golden, assert_close},
};

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

    /// [`System::check`] of a tensor that not every folder has.
    fn check_if_there(&self, tensor: &str, got: &[f32]) {
        if self.has(tensor) {
            self.check(tensor, got);
        }
    }

    fn has(&self, tensor: &str) -> bool {
        self.expected().names().iter().any(|name| name == tensor)
    }

    /// The ids and the logits of greedy steps behind `input`, by whole passes, are the official ones.
    fn check_answer(&self, decoder: &Decoder, input: Input) {
        let file = self.expected();
        let ids: Vec<Token> = file
            .i64("gen.tokens")
            .into_iter()
            .map(|id| Token::Text(id as u32))
            .collect();
        let mut tokens = input.tokens.to_vec();
        let mut logits = Vec::new();
        for &id in &ids {
            let all = logits_of(
                decoder,
                Input {
                    tokens: &tokens,
                    ..input
                },
                &mut |_, _| {},
            );
            logits.extend_from_slice(&all[all.len() - decoder.spec().vocab_size..]);
            tokens.push(id);
        }
        self.check("gen.logits", &logits);
        let most =
            |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        let steps = logits.chunks(decoder.spec().vocab_size);
        let drawn: Vec<Token> = steps
            .map(|step| Token::Text(most(step).unwrap() as u32))
            .collect();
        assert_eq!(drawn, ids, "{}", self.name);
    }
}

/// Logits at every place of a prompt that counts its positions from 0, in one pass.
fn logits_of(decoder: &Decoder, input: Input, trace: &mut Trace) -> Vec<f32> {
    let positions: Vec<u32> = (0..input.tokens.len() as u32).collect();
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
    let mut rows = [Row {
        tokens: input.tokens,
        positions: Positions::Line(&positions),
        segments: None,
        features: input.features,
        cache: &mut cache,
    }];
    let states = decoder.forward_traced(&mut rows, trace).unwrap();
    numbers(&decoder.logits(&states, Head::Text).unwrap())
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
    for (name, embeddings) in [
        ("vit", Some("mid.embeddings")),
        ("vit_no_bias", Some("mid.embeddings")),
        ("dinov2", None),
        ("dinov2_swiglu", Some("mid.embeddings")),
    ] {
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
            let vision = model.vision();
            let last = vision.hidden(&pixels, vision.layers()).unwrap();
            system.check_if_there("mid.final_norm", &vision.normed(&last));
            system.check("out.logits", &model.logits(&pixels).unwrap());
        }
    }
}

#[test]
fn encoders_of_pictures_give_the_official_vectors() {
    let golden = Golden::open("search/pictures.safetensors");
    for name in ["vit", "dinov2"] {
        for system in System::both(name) {
            let vit = system.load(ModelKind::Classifier, |spec, weights| {
                weights.leave_out("classifier");
                Vit::load(spec, weights, "vision")
            });
            let got = vit.class_tokens(&system.expected().f32("in.pixel_values"));
            let official = golden.f32(&format!("{name}.pooled"));
            assert_close(name, &got.unwrap(), &official, TOLERANCE);
            if name == "dinov2" {
                let larger = vit.for_pictures_of(56).unwrap();
                let got = larger.class_tokens(&golden.f32("dinov2.larger.pixels"));
                let official = golden.f32("dinov2.larger.pooled");
                assert_close("larger", &got.unwrap(), &official, TOLERANCE);
            }
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
    for name in ["clip", "clip_end", "siglip", "siglip_wide"] {
        for system in System::both(name) {
            let model = system.load(ModelKind::DualEncoder, DualEncoder::load);
            let file = system.expected();
            let pixels = file.f32("in.pixel_values");
            let (vision, layers) = (model.vision(), model.vision().layers());
            let last = vision.hidden(&pixels, layers).unwrap();
            if name.starts_with("clip") {
                system.check("mid.vision_last", &last);
                let penultimate = vision.hidden(&pixels, layers - 1).unwrap();
                system.check("mid.vision_penultimate", &penultimate);
            } else {
                system.check("mid.vision_last", &vision.normed(&last));
            }
            let pictures = model.encode_pictures(&pixels).unwrap();
            system.check("out.image_embeds", &pictures);
            let pooled = |ids: &Vec<u32>| model.text().encode(ids).unwrap();
            let (texts, expected) = texts(&file);
            let hidden = texts.iter().map(|ids| model.text().hidden(ids).unwrap());
            let hidden: Vec<_> = hidden.collect();
            assert_close("text_last", &hidden.concat(), &expected, TOLERANCE);
            let vectors: Vec<Vec<f32>> = texts
                .iter()
                .map(|ids| model.encode_text(ids).unwrap())
                .collect();
            system.check("out.text_embeds", &vectors.concat());
            let pooled: Vec<f32> = texts.iter().flat_map(pooled).collect();
            system.check_if_there("mid.text_pooled", &pooled);
            let scores: Vec<f32> = pictures
                .chunks(vectors[0].len())
                .flat_map(|picture| vectors.iter().map(|text| model.score(picture, text)))
                .collect();
            system.check("out.logits_per_image", &scores);
        }
    }
}

/// The picture of each folder goes through the folder's own processor.
#[test]
fn raw_pictures_become_the_official_pixels() {
    for name in ["vit", "dinov2", "resnet", "clip", "siglip", "llava15"] {
        let file = Golden::open(&format!("systems/{name}/expected.safetensors"));
        let (shape, data) = (file.shape("raw.image_u8"), file.u8("raw.image_u8"));
        let picture = RgbView::new(shape[1], shape[0], &data).unwrap();
        let folder = golden::path(&format!("systems/{name}"));
        let processor =
            PictureProcessor::of_folder(&folders::processor(&folder), Medium::Picture).unwrap();
        let got = processor.pixels(picture).unwrap();
        let size = &file.shape("pre.pixel_values")[2..];
        assert_eq!(processor.spec().shape().unwrap(), size, "{name}");
        assert_close(name, &got, &file.f32("pre.pixel_values"), TOLERANCE);
    }
    let file = Golden::open("systems/qwen2_5_vl/expected.safetensors");
    let (shape, data) = (file.shape("raw.image_u8"), file.u8("raw.image_u8"));
    let picture = RgbView::new(shape[1], shape[0], &data).unwrap();
    let folder = golden::path("systems/qwen2_5_vl");
    let patches = VideoPatches::of_folder(&folders::processor(&folder), Medium::Picture).unwrap();
    let size = patches.spec().size([shape[0], shape[1]], 1).unwrap();
    let got = patches.step(&[picture], size).unwrap();
    let grid: Vec<usize> = file
        .i64("pre.image_grid_thw")
        .into_iter()
        .map(|n| n as usize)
        .collect();
    assert_eq!([1, got.grid[0], got.grid[1]], grid[..]);
    assert_close(
        "patches",
        &got.rows,
        &file.f32("pre.pixel_values"),
        TOLERANCE,
    );
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
fn decoders_give_the_official_layers_logits_and_ids() {
    let names = [
        "llama",
        "llama_mqa_tied",
        "llama_linear_wide",
        "mixtral",
        "mixtral_mqa",
    ];
    for system in names.into_iter().flat_map(System::both) {
        let decoder = system.load(ModelKind::Decoder, Decoder::load);
        let file = system.expected();
        let length = file.shape("in.input_ids")[1];
        let tokens = file.i64("in.input_ids").into_iter();
        let tokens: Vec<Token> = tokens.map(|id| Token::Text(id as u32)).collect();
        let (mut logits, mut first, mut normed) = (Vec::new(), Vec::new(), Vec::new());
        for text in tokens.chunks(length) {
            let mut trace = |name: &str, x: &[f32]| match name {
                "layers.0" => first.extend_from_slice(x),
                "norm" => normed.extend_from_slice(x),
                _ => {}
            };
            logits.extend(logits_of(&decoder, Input::from(text), &mut trace));
        }
        system.check("mid.layer0", &first);
        system.check_if_there("mid.final_norm", &normed);
        system.check("out.logits", &logits);
        system.check_answer(&decoder, Input::from(&tokens[..length]));
    }
}

/// A system that answers about pictures, and the golden prompt with its pictures' features.
struct Answering {
    spec: VisionLanguageSpec,
    decoder: Decoder,
    tokens: Vec<Token>,
    features: Vec<f32>,
    positions: Option<Vec<[u32; 3]>>,
}

impl Answering {
    fn open(system: &System) -> Self {
        let (spec, encoder, decoder) = system.load(ModelKind::VisionLanguage, parts);
        let (decoder_spec, vision) = spec.clone().into_parts();
        vision.validate(&decoder_spec).unwrap();
        let file = system.expected();
        let token = |id: i64| match u32::try_from(id).unwrap() {
            id if id == spec.image_token_id || Some(id) == spec.video_token_id => {
                Token::Feature(id)
            }
            id => Token::Text(id),
        };
        let tokens: Vec<Token> = file.i64("in.input_ids").into_iter().map(token).collect();
        let features = match &encoder {
            FeatureEncoder::Native(encoder) => native_features(&file, encoder),
            FeatureEncoder::Square(encoder) if spec.video_token_id.is_some() => {
                encoder.video(&file.f32("in.pixel_values_videos")).unwrap()
            }
            FeatureEncoder::Square(encoder) => {
                encoder.forward(&file.f32("in.pixel_values")).unwrap()
            }
        };
        Self {
            positions: spec
                .positions
                .map(|rule| numbered(&file, &spec, &tokens, rule)),
            spec,
            decoder,
            tokens,
            features,
        }
    }

    fn input(&self) -> Input<'_> {
        Input {
            tokens: &self.tokens,
            features: &self.features,
            positions: self.positions.as_deref(),
        }
    }

    /// Logits at every place of the prompt, prefilled in parts of `chunk` tokens.
    fn logits(&self, chunk: usize) -> Vec<f32> {
        self.traced(chunk, &mut |_, _| {})
    }

    /// Embeddings with the features in their places, the first layer and the last norm, where the folder has them.
    fn check_stages(&self, system: &System) {
        let mut stages: Vec<(String, Vec<f32>)> = Vec::new();
        let mut trace = |name: &str, x: &[f32]| {
            let tensor = match name {
                "embedding" => "mid.inputs_embeds",
                "layers.0" => "mid.layer0",
                "norm" => "mid.final_norm",
                _ => return,
            };
            stages.push((tensor.to_owned(), x.to_vec()));
        };
        self.traced(self.tokens.len(), &mut trace);
        for (tensor, x) in stages {
            system.check_if_there(&tensor, &x);
        }
    }

    fn traced(&self, chunk: usize, trace: &mut Trace) -> Vec<f32> {
        let width = self.spec.decoder.feature_width();
        let mut cache = KvCache::new(self.decoder.spec(), KvDtype::F32);
        let mut logits = Vec::new();
        for part in self.input().chunks(chunk, width) {
            let mut counted = Vec::new();
            let mut rows = [Row {
                tokens: part.tokens,
                positions: part.positions_from(cache.next_position(), &mut counted),
                segments: None,
                features: part.features,
                cache: &mut cache,
            }];
            let states = self.decoder.forward_traced(&mut rows, trace).unwrap();
            let part = self.decoder.logits(&states, Head::Text).unwrap();
            logits.extend(part.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        logits
    }

    /// The context and its last hidden state, by `decoder`, which runs on one rank or several.
    fn prefill(&self, decoder: &dyn Forward, dtype: KvDtype, chunk: usize) -> (KvCache, Tensor) {
        let mut cache = decoder.context(dtype);
        let (go_on, input) = (|| true, self.input());
        let last = prefill(decoder, &mut cache, input, chunk, &go_on, &mut |_| {}).unwrap();
        (cache, last)
    }

    /// The most likely ids after the prompt.
    fn greedy(&self, dtype: KvDtype, n: usize) -> Vec<u32> {
        let (cache, last) = self.prefill(&self.decoder, dtype, 5);
        greedy_behind(&self.decoder, &cache, &last, n)
    }

    /// The prompt `times` times over, for a decoder that is said to have been made for as much.
    fn repeated(self, system: &System, times: u32) -> Self {
        let spec = VisionLanguageSpec {
            decoder: DecoderSpec {
                max_position_embeddings: 4096,
                ..self.spec.decoder.clone()
            },
            ..self.spec.clone()
        };
        let load = |_: &VisionLanguageSpec, weights: &mut Weights| parts(&spec, weights);
        let (spec, _, decoder) = system.load(ModelKind::VisionLanguage, load);
        let n = times as usize;
        let long = self.positions.as_ref().map(|positions| {
            let reach = 1 + positions.iter().flatten().max().unwrap();
            let moved = |time: u32| positions.iter().map(move |p| p.map(|p| p + time * reach));
            (0..times).flat_map(moved).collect()
        });
        Self {
            spec,
            decoder,
            tokens: self.tokens.repeat(n),
            features: self.features.repeat(n),
            positions: long,
        }
    }
}

/// The tokens of the golden pictures behind the last block of the tower.
fn last_layer(system: &System) -> Vec<f32> {
    let (_, encoder, _) = system.load(ModelKind::VisionLanguage, parts);
    let FeatureEncoder::Square(encoder) = encoder else {
        panic!("{} has no tower of square pictures", system.name);
    };
    let (vision, pixels) = (encoder.vision(), system.expected().f32("in.pixel_values"));
    vision.hidden(&pixels, vision.layers()).unwrap()
}

type Parts = (VisionLanguageSpec, FeatureEncoder, Decoder);

fn parts(spec: &VisionLanguageSpec, weights: &mut Weights) -> Result<Parts> {
    let encoder = FeatureEncoder::load(&spec.features, spec.decoder.hidden_size, weights)?;
    let decoder = Decoder::load(&spec.decoder, weights)?;
    Ok((spec.clone(), encoder, decoder))
}

/// The most likely ids behind a fork of `cache`.
fn greedy_behind(decoder: &dyn Forward, cache: &KvCache, last: &Tensor, n: usize) -> Vec<u32> {
    let generation = Generation {
        max_new_tokens: n,
        draw: Draw::GREEDY,
        stop_ids: Vec::new(),
    };
    let mut fork = cache.fork();
    let mut keep = |_| Ok(Continuation::Continue);
    generate(decoder, &mut fork, last, &generation, &|| true, &mut keep).unwrap()
}

/// Steps, lines and columns of patches.
fn grid_of(file: &Golden, tensor: &str) -> (usize, Grid) {
    let sizes: Vec<usize> = file.i64(tensor).into_iter().map(|n| n as usize).collect();
    let (rows, columns) = (sizes[1], sizes[2]);
    (sizes[0], Grid { rows, columns })
}

/// Features of the golden picture and, step by step, of the golden video behind it.
fn native_features(file: &Golden, encoder: &NativeEncoder) -> Vec<f32> {
    let of = |pixels: &str, grid: &str| {
        let (steps, grid) = grid_of(file, grid);
        let pixels = file.f32(pixels);
        let steps = pixels.chunks_exact(pixels.len() / steps);
        steps
            .flat_map(|patches| encoder.step(patches, grid).unwrap())
            .collect::<Vec<f32>>()
    };
    let picture = of("in.pixel_values", "in.image_grid_thw");
    let video = of("in.pixel_values_videos", "in.video_grid_thw");
    [picture, video].concat()
}

/// Positions of the golden prompt: every run of places that a step or a picture takes is found in the tokens.
fn numbered(
    file: &Golden,
    spec: &VisionLanguageSpec,
    tokens: &[Token],
    rule: PositionRule,
) -> Vec<[u32; 3]> {
    let (_, video) = grid_of(file, "in.video_grid_thw");
    let (_, picture) = grid_of(file, "in.image_grid_thw");
    let has_times = file
        .names()
        .iter()
        .any(|name| name == "in.second_per_grid_ts");
    let mut builder = PositionBuilder::new(rule);
    let mut positions = Vec::new();
    let mut ticks = 0;
    while positions.len() < tokens.len() {
        let token = tokens[positions.len()];
        if !token.is_feature() {
            builder.text(1, &mut positions);
        } else if token.id() == spec.image_token_id {
            builder.picture(picture.rows / 2, picture.columns / 2, &mut positions);
        } else {
            let time = has_times.then(|| quarters(file, ticks));
            builder.step(video.rows / 2, video.columns / 2, time, &mut positions);
            ticks += 1;
        }
    }
    positions
}

/// The time of a step: golden steps take a whole number of quarters of a second.
fn quarters(file: &Golden, step: u64) -> Seconds {
    let of_step = file.f32("in.second_per_grid_ts")[0] * 4.0;
    assert_eq!(of_step.fract(), 0.0);
    Seconds {
        ticks: step * of_step as u64,
        num: 1,
        den: 4,
    }
}

#[test]
fn pictures_stand_in_the_context_and_the_official_logits_and_ids_follow() {
    let names = [
        "llava15",
        "llava15_full",
        "internvl",
        "internvl_rms",
        "internvl_last_norm",
    ];
    for system in names.into_iter().flat_map(System::both) {
        let model = Answering::open(&system);
        let file = system.expected();
        system.check_if_there("mid.image_features", &model.features);
        system.check_if_there("mid.vision_layers.last", &last_layer(&system));
        model.check_stages(&system);
        for chunk in [1, 7, 64] {
            system.check("out.logits", &model.logits(chunk));
        }
        system.check_answer(&model.decoder, model.input());
        let ids: Vec<u32> = file
            .i64("gen.tokens")
            .into_iter()
            .map(|id| id as u32)
            .collect();
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let got = model.greedy(dtype, ids.len());
            assert_eq!(got, ids, "{} {dtype:?}", system.name);
        }
    }
}

#[test]
fn a_video_stands_in_the_context_as_frames_of_half_the_side_and_a_newline() {
    let names = ["llava_onevision", "llava_onevision_tied"];
    for system in names.into_iter().flat_map(System::both) {
        let model = Answering::open(&system);
        model.check_stages(&system);
        for chunk in [1, 7, 64] {
            system.check("out.logits", &model.logits(chunk));
        }
        if system.has("gen.logits") {
            system.check_answer(&model.decoder, model.input());
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
                kind: NormKind::Layer,
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

const NATIVE: [&str; 3] = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"];

#[test]
fn native_encoders_give_the_official_features_step_by_step() {
    for system in NATIVE.into_iter().flat_map(System::both) {
        let (spec, encoder, _) = system.load(ModelKind::VisionLanguage, parts);
        let FeatureEncoder::Native(encoder) = encoder else {
            panic!("{} has no native encoder", system.name);
        };
        let file = system.expected();
        let hidden = spec.decoder.hidden_size;
        let deep = spec.features.rows_deep();
        let (_, grid) = grid_of(&file, "in.image_grid_thw");
        let features = native_features(&file, &encoder);
        let (picture, video) = features.split_at(grid.squares() * hidden * deep);
        let of = |rows: &[f32], layer: usize| -> Vec<f32> {
            let parts = rows.chunks_exact(hidden).skip(layer).step_by(deep);
            parts.flatten().copied().collect()
        };
        system.check("mid.video_embeds", &of(video, 0));
        match deep {
            1 => system.check("mid.image_embeds", &of(picture, 0)),
            _ => {
                system.check("mid.deepstack0", &of(video, 1));
                system.check("mid.deepstack1", &of(video, 2));
            }
        }
    }
}

#[test]
fn positions_of_three_components_are_the_official_ones() {
    for system in NATIVE.into_iter().flat_map(System::both) {
        let (spec, ..) = system.load(ModelKind::VisionLanguage, parts);
        let (file, model) = (system.expected(), Answering::open(&system));
        let official = |tensor: &str| -> Vec<[u32; 3]> {
            let numbers = file.i64(tensor);
            let n = numbers.len() / 3;
            (0..n)
                .map(|i| [0, 1, 2].map(|c| numbers[c * n + i] as u32))
                .collect()
        };
        assert_eq!(
            model.positions.as_ref(),
            Some(&official("out.position_ids"))
        );
        // How far what is said next stands from where its number would be.
        let delta = |positions: &[[u32; 3]]| {
            let next = 1 + i64::from(*positions.iter().flatten().max().unwrap());
            next - positions.len() as i64
        };
        let check_delta = |tensor: &str, positions: &[[u32; 3]]| {
            if system.has(tensor) {
                assert_eq!(delta(positions), file.i64(tensor)[0], "{tensor}");
            }
        };
        check_delta("out.rope_delta", model.positions.as_ref().unwrap());
        let after_video = AfterVideo::Side;
        let side = match spec.positions {
            Some(PositionRule::Timed {
                tokens_per_second, ..
            }) => PositionRule::Timed {
                tokens_per_second,
                after_video,
            },
            Some(PositionRule::Counted { .. }) => PositionRule::Counted { after_video },
            _ => continue,
        };
        let got = numbered(&file, &spec, &model.tokens, side);
        assert_eq!(got, official("alt.position_ids_transformers5"));
        check_delta("alt.rope_delta_transformers5", &got);
    }
}

#[test]
fn a_decoder_with_positions_of_three_components_gives_the_official_logits() {
    for system in NATIVE.into_iter().flat_map(System::both) {
        let model = Answering::open(&system);
        let mut first = Vec::new();
        let mut trace = |name: &str, x: &[f32]| {
            if name == "layers.0" {
                first.extend_from_slice(x);
            }
        };
        system.check("out.logits", &model.traced(64, &mut trace));
        system.check("mid.layer0", &first);
        for chunk in [1, 7] {
            system.check("out.logits", &model.logits(chunk));
        }
        let answers = format!("systems/{}/answer.safetensors", system.name);
        let ids: Vec<u32> = Golden::open(&answers)
            .i64("gen.tokens")
            .into_iter()
            .map(|id| id as u32)
            .collect();
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let got = model.greedy(dtype, ids.len());
            assert_eq!(got, ids, "{} {dtype:?}", system.name);
        }
    }
}

#[test]
fn yarn_stretches_positions_of_three_components() {
    for mut system in NATIVE.into_iter().flat_map(System::both) {
        let is_nested = system.config["text_config"].is_object();
        let text = match is_nested {
            true => &mut system.config["text_config"],
            false => &mut system.config,
        };
        for key in ["rope_parameters", "rope_scaling"] {
            if text[key].is_object() {
                // The hub's layout has one key for both.
                let kind = if is_nested { "rope_type" } else { "type" };
                text[key][kind] = "yarn".into();
                text[key]["factor"] = 4.0.into();
                text[key]["original_max_position_embeddings"] = 32.into();
            }
        }
        let got = Answering::open(&system).logits(64);
        let answers = format!("systems/{}/answer.safetensors", system.name);
        let expected = Golden::open(&answers).f32("yarn.logits");
        assert_close(system.name, &got, &expected, 2.0 * TOLERANCE);
    }
}

/// On the hub the decoder's keys of Qwen2.5-VL stand beside those of the whole.
#[test]
fn a_flat_configuration_is_the_nested_one() {
    let [_, system] = System::both("qwen2_5_vl");
    let mut flat = system.config.clone();
    let text = flat["text_config"].take();
    flat.as_object_mut().unwrap().remove("text_config");
    for (key, value) in text.as_object().unwrap() {
        if key != "model_type" {
            flat[key] = value.clone();
        }
    }
    flat["rope_scaling"]
        .as_object_mut()
        .unwrap()
        .remove("rope_type");
    let spec = |config: &Value| -> VisionLanguageSpec {
        let architecture = Architecture::of_config(config).unwrap();
        architecture
            .spec(ModelKind::VisionLanguage, config)
            .unwrap()
    };
    assert_eq!(spec(&flat), spec(&system.config));
}

#[test]
fn unsupported_features_of_native_systems_are_refused() {
    for (name, path, value, expected) in [
        (
            "qwen2_5_vl",
            "/vision_config/spatial_merge_size",
            3.into(),
            "spatial_merge_size is 3",
        ),
        (
            "qwen2_5_vl",
            "/text_config/use_sliding_window",
            true.into(),
            "expected false",
        ),
        (
            "qwen2_5_vl",
            "/vision_config/window_size",
            4.into(),
            "window_size is below 8",
        ),
        (
            "qwen2_5_vl",
            "/text_config/rope_parameters/mrope_section",
            vec![2, 2, 1].into(),
            "section is [2, 2, 1], expected three parts of 4 pairs",
        ),
        (
            "qwen3_vl",
            "/text_config/rope_parameters/mrope_interleaved",
            false.into(),
            "mrope_interleaved is false",
        ),
        (
            "qwen3_vl",
            "/vision_config/num_position_embeddings",
            63.into(),
            "expected the square",
        ),
        (
            "qwen3_vl",
            "/vision_config/deepstack_visual_indexes",
            vec![2, 0].into(),
            "expected blocks of 3, in order",
        ),
        (
            "qwen3_vl",
            "/text_config/rope_parameters/rope_type",
            "longrope".into(),
            "unknown variant `longrope`",
        ),
    ] {
        let [mut system, _] = System::both(name);
        *system.config.pointer_mut(path).unwrap() = value;
        let read = |config: &Value| {
            let architecture = Architecture::of_config(config)?;
            let spec: VisionLanguageSpec = architecture.spec(ModelKind::VisionLanguage, config)?;
            let (decoder, vision) = spec.into_parts();
            decoder.validate()?;
            vision.validate(&decoder)
        };
        let error = read(&system.config).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn patches_that_are_not_of_the_grid_are_refused() {
    let [system, _] = System::both("qwen2_5_vl");
    let (_, encoder, _) = system.load(ModelKind::VisionLanguage, parts);
    let FeatureEncoder::Native(encoder) = encoder else {
        panic!("no native encoder");
    };
    for (numbers, rows, columns) in [(96 * 12, 3, 4), (96 * 15, 4, 4), (0, 0, 4)] {
        let refused = encoder.step(&vec![0.0; numbers], Grid { rows, columns });
        let message = refused.unwrap_err().to_string();
        assert!(
            message.contains("expected 96 for each, and even numbers"),
            "{message}"
        );
    }
}

/// Sums of f32 in another order, of states of about 4.
const REORDERED: f32 = 2e-5;

/// The systems whose features, positions and deeper features take every way that a context has.
fn long_systems() -> impl Iterator<Item = Answering> {
    ["llava15", "qwen2_5_vl", "qwen3_vl"]
        .into_iter()
        .map(|name| {
            let [system, _] = System::both(name);
            // Blocks of 256 for each of three ranks.
            Answering::open(&system).repeated(&system, 22)
        })
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn features_and_positions_reach_every_rank_of_a_ring_in_chunks_and_on_forks() {
    for model in long_systems() {
        let (cache, whole) = model.prefill(&model.decoder, KvDtype::F32, 4096);
        let ids = greedy_behind(&model.decoder, &cache, &whole, 8);
        let (_, chunked) = model.prefill(&model.decoder, KvDtype::F32, 7);
        assert_close(
            "chunks of 7",
            &numbers(&chunked),
            &numbers(&whole),
            REORDERED,
        );
        for ranks in [2, 3] {
            let mut links = InProcess::connect(ranks, Duration::from_secs(60)).into_iter();
            let leader = links.next().unwrap();
            thread::scope(|scope| {
                for link in links {
                    scope.spawn(|| serve(&model.decoder, Box::new(link)).unwrap());
                }
                let leader = Leader::new(&model.decoder, Box::new(leader), None);
                let (cache, last) = model.prefill(&leader, KvDtype::F32, 100);
                let what = format!("{ranks} ranks");
                assert_close(&what, &numbers(&last), &numbers(&whole), REORDERED);
                for fork in [cache.fork(), cache.fork()] {
                    assert_eq!(greedy_behind(&leader, &fork, &last, 8), ids, "{what}");
                }
            });
        }
    }
}

#[test]
fn packed_prompts_with_features_and_positions_are_the_prompts_alone() {
    for model in long_systems() {
        let prompts = [
            model.input(),
            Input::from(&model.tokens[..3]),
            model
                .input()
                .chunks(37, model.spec.decoder.feature_width())
                .next()
                .unwrap(),
        ];
        let options = PackedPrefill {
            capacity: 1024,
            chunk: 300,
            kv_dtype: KvDtype::F32,
        };
        let mut seen = 0;
        let mut compare = |prompt: usize, packed: Prefilled| {
            let input = prompts[prompt];
            let mut cache = model.decoder.context(KvDtype::F32);
            let alone = prefill(
                &model.decoder,
                &mut cache,
                input,
                4096,
                &|| true,
                &mut |_| {},
            )
            .unwrap();
            assert_close(
                "packed",
                &numbers(&packed.last),
                &numbers(&alone),
                REORDERED,
            );
            assert_eq!(packed.cache.next_position(), cache.next_position());
            let ids = greedy_behind(&model.decoder, &cache, &alone, 4);
            assert_eq!(
                greedy_behind(&model.decoder, &packed.cache, &packed.last, 4),
                ids
            );
            seen += 1;
            Ok(())
        };
        let go_on = || true;
        prefill_packed(&model.decoder, &prompts, &options, &go_on, &mut compare).unwrap();
        assert_eq!(seen, 3);
    }
}

#[test]
fn a_context_of_fewer_bits_differs_by_its_rounding_only() {
    for model in long_systems() {
        let (_, exact) = model.prefill(&model.decoder, KvDtype::F32, 100);
        for (dtype, tolerance) in [(KvDtype::Bf16, 0.05), (KvDtype::Int8, 0.2)] {
            let (_, rounded) = model.prefill(&model.decoder, dtype, 100);
            assert_close("rounded", &numbers(&rounded), &numbers(&exact), tolerance);
        }
    }
}

#[test]
fn a_wrong_number_of_features_is_refused() {
    let [system, _] = System::both("llava15");
    let model = Answering::open(&system);
    let short = Input {
        features: &model.features[32..],
        ..model.input()
    };
    let mut cache = KvCache::new(model.decoder.spec(), KvDtype::F32);
    let refused = prefill(&model.decoder, &mut cache, short, 64, &|| true, &mut |_| {});
    let message = refused.unwrap_err().to_string();
    assert!(
        message.contains("992 numbers for 32 feature tokens"),
        "{message}"
    );
}
