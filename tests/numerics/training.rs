//! The trained network is the one that answers; its losses and gradients are upstream's, those of finite
//! differences, and the same on one rank or several, kept or computed again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use candle_core::{Device, Tensor};
use longreel::train::{
    config::TrainConfig, config_file::ConfigFile, decoder::spec_of, vqgan_config::VqganConfig,
};
use longreel_models::{
    attention::{link::in_process::InProcess, ring::Ring, shard::ShardLayout},
    context::vocab::Token,
    error::Kind,
    spec::DecoderSpec,
    spec::ModelSpec,
    training::{
        batch_mask::BatchMask,
        data::{
            batch::{Batch, BatchRules, PadRule, packed},
            example::Example,
        },
        loss::{MODALITY_SHARE, Reduction, token_weights},
        network::{Activations, Attending, HeadLosses, Network, Sequences, add},
        optimizer::{AdamW, Moments, length},
        parameters::{ByName, Parameters},
        ring_gradients::TokenShards,
    },
};

use crate::support::{
    golden::{Golden, assert_close},
    tiny_decoder::Tiny,
};

/// What the manifest states for losses and gradients.
const GOLDEN: f32 = 1e-4;

fn network(tiny: &Tiny) -> Network {
    let tensors = tiny.tensors.iter().map(|(name, (shape, data))| {
        let tensor = Tensor::from_vec(data.clone(), shape.as_slice(), &Device::Cpu).unwrap();
        (name.clone(), tensor)
    });
    Network::new(
        tiny.spec.clone(),
        Parameters::of(tensors.collect()).unwrap(),
    )
    .unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The weights of targets in the loss: each modality's half of the mean over groups.
fn weights(batch: &Batch, reduction: Reduction) -> Vec<f32> {
    let (weights, groups) = token_weights(batch, reduction);
    let share = MODALITY_SHARE / groups as f32;
    weights.into_iter().map(|w| w * share).collect()
}

fn mask(batch: &Batch) -> BatchMask {
    let mask = BatchMask::causal(batch.rows(), batch.seq_length);
    match &batch.segments {
        Some(segments) => mask.with_segments(segments.clone()).unwrap(),
        None => mask,
    }
}

fn run(
    network: &Network,
    batch: &Batch,
    reduction: Reduction,
    activations: Activations,
) -> (HeadLosses, ByName) {
    let weights = weights(batch, reduction);
    network
        .gradients(&whole(batch, &weights), activations)
        .unwrap()
}

fn whole<'a>(batch: &'a Batch, weights: &'a [f32]) -> Sequences<'a> {
    Sequences {
        rows: batch.rows(),
        input: &batch.input,
        target: &batch.target,
        weights,
        positions: &batch.positions,
        attending: Attending::Alone(Arc::new(mask(batch))),
    }
}

/// The batch of `train.py` in the golden data: no segments, positions along the row.
fn golden_batch(file: &Golden) -> Batch {
    let tokens = |ids: &str, vision: &str| -> Vec<Token> {
        let ids = file.i32(&format!("loss.{ids}"));
        let vision = file.u8(&format!("loss.{vision}"));
        let token = |(&id, &vision): (&i32, &u8)| match vision {
            0 => Token::Text(id as u32),
            _ => Token::Vision(id as u32),
        };
        ids.iter().zip(&vision).map(token).collect()
    };
    let seq_length = file.shape("loss.input_tokens")[1];
    let input = tokens("input_tokens", "input_vision_masks");
    Batch {
        seq_length,
        positions: (0..input.len()).map(|i| (i % seq_length) as u32).collect(),
        input,
        target: tokens("target_tokens", "target_vision_masks"),
        loss: file.f32("loss.loss_masks"),
        segments: None,
    }
}

#[test]
fn losses_and_gradients_are_those_of_upstream_s_training_step() {
    let file = Golden::open("llama/cases.safetensors");
    let network = network(&Tiny::golden());
    let batch = golden_batch(&file);
    let (losses, gradients) = run(&network, &batch, Reduction::Rows, Activations::Kept);
    let halves = 1.0 / f64::from(MODALITY_SHARE);
    let got = [
        losses.total(),
        losses.vision.loss * halves,
        losses.vision.accuracy * halves,
        losses.text.loss * halves,
        losses.text.accuracy * halves,
    ];
    assert_close(
        "losses",
        &got.map(|x| x as f32),
        &file.f32("loss.values"),
        GOLDEN,
    );

    let of_layers = |part: &str| -> Vec<f32> {
        let name = |layer| format!("model.layers.{layer}.{part}.weight");
        (0..2)
            .flat_map(|layer| numbers(&gradients[&name(layer)]))
            .collect()
    };
    for (got, expected) in [
        (numbers(&gradients["model.norm.weight"]), "ln_f"),
        (
            of_layers("input_layernorm"),
            "h.scan_decoder.attention_norm",
        ),
        (
            of_layers("post_attention_layernorm"),
            "h.scan_decoder.ffn_norm",
        ),
    ] {
        let name = format!("loss.grad.transformer.{expected}.kernel");
        assert_close(&name, &got, &file.f32(&name), GOLDEN);
    }
    let euclid = |numbers: Vec<f32>| numbers.iter().map(|x| x * x).sum::<f32>().sqrt();
    let whole = |name: &str| numbers(&gradients[name]);
    let got = [
        whole("lm_head.weight"),
        of_layers("self_attn.k_proj"),
        of_layers("self_attn.o_proj"),
        of_layers("self_attn.q_proj"),
        of_layers("self_attn.v_proj"),
        of_layers("input_layernorm"),
        of_layers("mlp.gate_proj"),
        of_layers("mlp.down_proj"),
        of_layers("mlp.up_proj"),
        of_layers("post_attention_layernorm"),
        whole("model.norm.weight"),
        whole("model.vision_embed_tokens.weight"),
        whole("model.embed_tokens.weight"),
        whole("vision_head.weight"),
    ];
    assert_close(
        "lengths",
        &got.map(euclid),
        &file.f32("loss.grad_norms"),
        1e-3,
    );
}

/// A small decoder with grouped heads, and examples of both modalities and several lengths.
fn small() -> (Tiny, Vec<Example>) {
    let mut numbers = 12_345_u32;
    let mut next = move || {
        numbers = numbers.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        numbers >> 8
    };
    let spec = DecoderSpec {
        vocab_size: 24,
        vision_vocab_size: Some(18),
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: Some(2),
        ..Tiny::golden().spec
    };
    let shapes = longreel_models::checkpoint::layout::decoder_tensors(&spec);
    let parameters = Parameters::random(&shapes, 0.3, 5).unwrap();
    let array = |tensor: &Tensor| (tensor.dims().to_vec(), self::numbers(tensor));
    let tensors = parameters
        .iter()
        .map(|(name, var)| (name.clone(), array(var)));
    let tiny = Tiny {
        tensors: tensors.collect::<BTreeMap<_, _>>(),
        spec,
    };
    let examples = [5, 19, 3, 11, 8].map(|n| {
        let token = |next: &mut dyn FnMut() -> u32| match next() % 2 {
            0 => Token::Text(next() % 24),
            _ => Token::Vision(next() % 18),
        };
        let tokens: Vec<Token> = (0..n).map(|_| token(&mut next)).collect();
        let loss = (0..n).map(|i| if i % 3 == 0 { 0.0 } else { 1.0 }).collect();
        Example { tokens, loss }
    });
    (tiny, examples.to_vec())
}

fn rules(seq_length: usize) -> BatchRules {
    BatchRules {
        rows: 1,
        seq_length,
        fill: Token::Text(1),
        pad_rule: PadRule::Aligned,
    }
}

#[track_caller]
fn assert_same(what: &str, got: &ByName, expected: &ByName, tolerance: f32) {
    let names = |all: &ByName| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(expected), "{what}");
    for (name, gradient) in got {
        let what = format!("{what}, {name}");
        assert_close(
            &what,
            &numbers(gradient),
            &numbers(&expected[name]),
            tolerance,
        );
    }
}

#[test]
fn packed_examples_have_the_loss_and_gradients_of_each_alone() {
    let (tiny, examples) = small();
    let network = network(&tiny);
    let batch = packed(&examples, &rules(24)).unwrap();
    assert!(batch.rows() >= 2 && batch.rows() < examples.len());
    let (losses, gradients) = run(&network, &batch, Reduction::Examples, Activations::Kept);
    let (mut alone, mut sum) = (ByName::new(), 0.0);
    for example in &examples {
        let one = packed(
            std::slice::from_ref(example),
            &rules(example.tokens.len() - 1),
        )
        .unwrap();
        let (losses, gradients) = run(&network, &one, Reduction::Examples, Activations::Kept);
        sum += losses.total() / examples.len() as f64;
        let scaled = gradients
            .into_iter()
            .map(|(name, g)| (name, (g / examples.len() as f64).unwrap()));
        add(&mut alone, scaled.collect()).unwrap();
    }
    assert!(
        (losses.total() - sum).abs() < 1e-5,
        "{} {sum}",
        losses.total()
    );
    assert_same("packed", &gradients, &alone, 1e-5);
}

#[test]
fn the_two_reductions_differ_where_rows_are_crowded() {
    let (tiny, examples) = small();
    let network = network(&tiny);
    let batch = packed(&examples, &rules(48)).unwrap();
    let of = |reduction| {
        run(&network, &batch, reduction, Activations::Kept)
            .0
            .total()
    };
    let (rows, examples) = (of(Reduction::Rows), of(Reduction::Examples));
    assert!((rows - examples).abs() > 1e-3, "{rows} {examples}");
}

#[test]
fn recomputing_activations_does_not_change_a_bit() {
    let (tiny, examples) = small();
    let network = network(&tiny);
    let batch = packed(&examples, &rules(24)).unwrap();
    let of = |activations| run(&network, &batch, Reduction::Examples, activations);
    let (kept, again) = (of(Activations::Kept), of(Activations::Recomputed));
    assert_eq!(kept.0, again.0);
    assert_same("recomputed", &again.1, &kept.1, 0.0);
    let weights = weights(&batch, Reduction::Examples);
    assert_eq!(network.evaluate(&whole(&batch, &weights)).unwrap(), kept.0);
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (tiny, examples) = small();
    let batch = packed(&examples, &rules(24)).unwrap();
    let (_, gradients) = run(
        &network(&tiny),
        &batch,
        Reduction::Examples,
        Activations::Kept,
    );
    let loss = |tiny: &Tiny| {
        run(
            &network(tiny),
            &batch,
            Reduction::Examples,
            Activations::Kept,
        )
        .0
        .total()
    };
    let step = 2e-2_f32;
    let mut compared = 0;
    for (name, (_, data)) in &tiny.tensors {
        // Along the gradient itself, and along one number of each.
        let gradient = numbers(&gradients[name]);
        let length: f32 = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
        let unit: Vec<f32> = gradient.iter().map(|g| g / length).collect();
        let at = |sign: f32| {
            let mut moved = tiny.clone();
            let values = data.iter().zip(&unit).map(|(x, u)| x + sign * step * u);
            moved.tensors.get_mut(name).unwrap().1 = values.collect();
            loss(&moved)
        };
        let difference = (at(1.0) - at(-1.0)) / f64::from(2.0 * step);
        let error = (difference as f32 - length).abs() / length;
        assert!(
            error < 1e-2,
            "{name}: {difference} along a gradient of {length}"
        );
        compared += 1;
    }
    assert_eq!(compared, tiny.tensors.len());
}

/// Losses summed over ranks, and gradients likewise.
fn on_ring(tiny: &Tiny, batch: &Batch, ranks: usize) -> (HeadLosses, ByName) {
    let shards: Vec<_> = (0..ranks)
        .map(|rank| ShardLayout::Zigzag.runs(batch.seq_length, rank, ranks))
        .collect();
    let weights = weights(batch, Reduction::Examples);
    let deadline = Duration::from_secs(60);
    let links = InProcess::connect(ranks, deadline).into_iter();
    let shares: Vec<(HeadLosses, ByName)> = thread::scope(|scope| {
        let started: Vec<_> = links
            .map(|link| {
                let (shards, weights) = (&shards, &weights);
                scope.spawn(move || {
                    let ring = Ring::new(Box::new(link));
                    let places: Vec<usize> = (0..batch.rows())
                        .flat_map(|row| {
                            shards[ring.rank()]
                                .iter()
                                .cloned()
                                .map(move |run| (row, run))
                        })
                        .flat_map(|(row, run)| run.map(move |i| row * batch.seq_length + i))
                        .collect();
                    let token = |all: &[Token]| places.iter().map(|&i| all[i]).collect::<Vec<_>>();
                    let (input, target) = (token(&batch.input), token(&batch.target));
                    let weights: Vec<f32> = places.iter().map(|&i| weights[i]).collect();
                    let positions: Vec<u32> = places.iter().map(|&i| batch.positions[i]).collect();
                    let sequences = Sequences {
                        rows: batch.rows(),
                        input: &input,
                        target: &target,
                        weights: &weights,
                        positions: &positions,
                        attending: Attending::Ring {
                            ring: Arc::new(Mutex::new(ring)),
                            shards: Arc::new(
                                TokenShards::new(shards.clone(), mask(batch)).unwrap(),
                            ),
                        },
                    };
                    network(tiny)
                        .gradients(&sequences, Activations::Recomputed)
                        .unwrap()
                })
            })
            .collect();
        started
            .into_iter()
            .map(|rank| rank.join().unwrap())
            .collect()
    });
    let (mut losses, mut all) = (HeadLosses::default(), ByName::new());
    for (of_rank, gradients) in shares {
        for (sum, part) in [
            (&mut losses.text, of_rank.text),
            (&mut losses.vision, of_rank.vision),
        ] {
            sum.loss += part.loss;
            sum.accuracy += part.accuracy;
        }
        add(&mut all, gradients).unwrap();
    }
    (losses, all)
}

#[test]
fn a_ring_has_the_loss_and_gradients_of_one_rank() {
    let (tiny, examples) = small();
    let batch = packed(&examples, &rules(24)).unwrap();
    let (alone, expected) = run(
        &network(&tiny),
        &batch,
        Reduction::Examples,
        Activations::Kept,
    );
    for ranks in [2, 3] {
        let (losses, gradients) = on_ring(&tiny, &batch, ranks);
        assert!(
            (losses.total() - alone.total()).abs() < 1e-6,
            "{ranks} ranks"
        );
        assert_same(&format!("{ranks} ranks"), &gradients, &expected, 1e-5);
    }
}

#[test]
fn a_step_descends_the_clipped_gradient_and_decays_weights() {
    let values = Tensor::from_vec(vec![1.0_f32, -2.0], 2, &Device::Cpu).unwrap();
    let parameters = Parameters::of([("w".to_owned(), values)].into()).unwrap();
    let gradient = Tensor::from_vec(vec![3.0_f32, -4.0], 2, &Device::Cpu).unwrap();
    let gradients: ByName = [("w".to_owned(), gradient)].into();
    let adam = AdamW {
        weight_decay: 0.5,
        ..AdamW::default()
    };
    let mut moments = Moments::default();
    let found = adam
        .step(&parameters, &gradients, &mut moments, 0.1)
        .unwrap();
    assert_eq!((found, length(&gradients).unwrap()), (5.0, 5.0));
    // The first step is of length one in each number, whatever the gradient: bias correction makes it so.
    let got = numbers(parameters.get("w").unwrap());
    assert_close("values", &got, &[1.0 - 0.1 * 1.5, -2.0 + 0.1 * 2.0], 1e-6);
    assert_close("means", &moments.means["w"][0], &[0.06, -0.08], 1e-6);
    assert_close("squares", &moments.means["w"][1], &[0.018, 0.032], 1e-6);
}

#[test]
fn nan_ends_a_step_without_an_update() {
    let (tiny, examples) = small();
    let mut spoilt = tiny.clone();
    spoilt.tensors.get_mut("model.norm.weight").unwrap().1[3] = f32::NAN;
    let batch = packed(&examples, &rules(24)).unwrap();
    let weights = weights(&batch, Reduction::Examples);
    let error = network(&spoilt)
        .gradients(&whole(&batch, &weights), Activations::Kept)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Compute, "{error}");
    let network = network(&tiny);
    let nan = Tensor::full(f32::NAN, 16, &Device::Cpu).unwrap();
    let gradients: ByName = [("model.norm.weight".to_owned(), nan)].into();
    let mut moments = Moments::default();
    let step = AdamW::default().step(network.parameters(), &gradients, &mut moments, 0.1);
    assert!(step.unwrap_err().to_string().contains("model.norm.weight"));
    assert_eq!(moments.steps, 0);
    let kept = numbers(network.parameters().get("model.norm.weight").unwrap());
    assert_eq!(kept, tiny.tensors["model.norm.weight"].1);
}

#[test]
fn twenty_steps_bring_the_loss_of_a_batch_down() {
    let (tiny, examples) = small();
    let network = network(&tiny);
    let batch = packed(&examples, &rules(24)).unwrap();
    let mut moments = Moments::default();
    let adam = AdamW {
        weight_decay: 0.0,
        ..AdamW::default()
    };
    let mut losses = Vec::new();
    for _ in 0..20 {
        let (loss, gradients) = run(&network, &batch, Reduction::Examples, Activations::Kept);
        adam.step(network.parameters(), &gradients, &mut moments, 0.02)
            .unwrap();
        losses.push(loss.total());
    }
    assert!(losses[19] < 0.5 * losses[0], "{losses:?}");
}

#[test]
fn the_stages_of_a_small_model_fit_one_another() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/configs");
    let text = std::fs::read_to_string(folder.join("model.toml")).unwrap();
    let spec = ModelSpec::from_toml(&text).unwrap();
    let shape = VqganConfig::open(&folder.join("vqgan.toml"))
        .unwrap()
        .shape();
    assert_eq!(Some(shape.unwrap()), spec.vqgan);
    let stage = |n: usize| {
        let config = TrainConfig::open(&folder.join(format!("stage_{n}.toml"))).unwrap();
        assert!(config.model.max_position_embeddings >= Some(config.data.seq_length));
        config
    };
    let first = stage(1);
    assert_eq!(spec_of(&first).unwrap().vqgan, spec.vqgan);
    assert_eq!(first.model.vqgan, Some(folder.join("run_vqgan/model")));
    for n in 2..=13 {
        let before = folder.join(format!("run_{}/model", n - 1));
        assert_eq!(stage(n).model.init, Some(before), "stage {n}");
    }
    let needles = TrainConfig::open(&folder.join("needles.toml")).unwrap();
    assert_eq!(needles.model.init, Some(folder.join("run_13/model")));
}

#[test]
fn the_demo_model_is_of_the_shape_that_its_stages_train_and_small() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("models/demo/configs/model.toml")).unwrap();
    let trained = ModelSpec::from_toml(&text).unwrap();
    let text = std::fs::read_to_string(root.join("models/demo/config.json")).unwrap();
    let shipped = ModelSpec::from_json(&text).unwrap();
    assert_eq!(shipped.vqgan, trained.vqgan);
    let last = TrainConfig::open(&root.join("models/demo/configs/stage_13.toml")).unwrap();
    let trained = longreel_models::spec::DecoderSpec {
        max_position_embeddings: last.model.max_position_embeddings.unwrap(),
        ..trained.decoder
    };
    assert_eq!(shipped.decoder, trained);
    let files = std::fs::read_dir(root.join("models/demo")).unwrap();
    let bytes: u64 = files.map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 12_000_000, "{bytes}");
}

#[test]
fn stages_of_lwm_read_the_tokens_of_the_paper_s_tables() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let config = TrainConfig::open(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let Some((_, tokens)) = TABLE.iter().find(|(stage, _)| *stage == name) else {
            continue;
        };
        let data = &config.data;
        let per_step = data.seq_length * data.rows * data.batches_per_step;
        let billions = (per_step as u64 * config.steps) as f64 / 1e9;
        assert!(
            (billions / tokens - 1.0).abs() < 0.12,
            "{name}: {billions} of {tokens}"
        );
        assert_eq!(
            config.model.max_position_embeddings,
            Some(data.seq_length),
            "{name}"
        );
        found += 1;
    }
    assert_eq!(found, TABLE.len());
}

/// Tokens of each stage, in thousand millions (arXiv 2402.08268).
const TABLE: [(&str, f64); 10] = [
    ("lwm-text-32k", 4.8),
    ("lwm-text-128k", 12.0),
    ("lwm-text-256k", 12.0),
    ("lwm-text-512k", 3.0),
    ("lwm-text-1m", 1.8),
    ("lwm-chat-1k", 363.0),
    ("lwm-chat-8k", 107.0),
    ("lwm-chat-32k", 10.0),
    ("lwm-chat-128k", 3.5),
    ("lwm-chat-1m", 0.4),
];
