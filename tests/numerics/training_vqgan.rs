//! The VQGAN in training is the one that encodes; its losses and gradients are PyTorch's and those of finite
//! differences; dead codes come back, and training goes on from its state to the bit.

use std::{collections::BTreeMap, sync::LazyLock};

use candle_core::{Device, Tensor};
use longreel_models::{
    checkpoint::{layout::vqgan_tensors, weights::Weights},
    error::Kind,
    spec::VqganSpec,
    training::{
        optimizer::AdamW,
        parameters::{ByName, Parameters},
        schedule::Schedule,
        vqgan::{
            evaluation::Evaluation,
            initial::first_parameters,
            options::{Adversarial, CodebookRule, VqganOptions},
            perceptual::Perceptual,
            state::{Counters, State},
            trainer::{Metrics, VqganTrainer},
        },
    },
    vision::vqgan::Vqgan,
};
use safetensors::{Dtype, tensor::TensorView};

use crate::support::{
    golden::{Golden, assert_close},
    tensors::{Named, write_safetensors},
    vgg::{noise, perceptual, seed_of, vgg_tensors},
};

/// What `training_vqgan.py` computes in f64 and we in f32, over the largest number of a tensor.
const GOLDEN: f32 = 5e-4;

/// The same behind VGG16, whose rectifiers and pools decide anew near 0: twice what PyTorch's own f32 is from its f64.
const GOLDEN_PERCEPTUAL: f32 = 3e-3;

fn tiny_spec() -> VqganSpec {
    VqganSpec {
        resolution: 16,
        hidden_channels: 32,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        z_channels: 8,
        num_embeddings: 16,
        quantized_embed_dim: 8,
    }
}

fn judge() -> Adversarial {
    Adversarial {
        channels: 8,
        layers: 2,
        ..Adversarial::default()
    }
}

/// Fast enough to see something in a few steps.
fn options() -> VqganOptions {
    let constant = VqganOptions::default().schedule;
    VqganOptions {
        schedule: Schedule {
            lr: 1e-3,
            ..constant
        },
        adam: AdamW {
            b1: 0.9,
            b2: 0.99,
            weight_decay: 0.0,
            ..AdamW::default()
        },
        ..VqganOptions::default()
    }
}

/// The parameter `name` as `Tensors.get` of `training_vqgan.py` makes it.
fn formula(name: &str, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let seed = seed_of(name);
    let fan_in = (n / shape[shape.len() - 1]) as f64;
    let scale = (3.5 / fan_in.sqrt()).log2().round().exp2() as f32;
    let value = |x: f32| match name {
        name if name.ends_with(".kernel") => x * scale,
        name if name.ends_with(".scale") => x * 0.5 + 1.0,
        name if name.ends_with("embeddings") => x * 4.0,
        _ => x,
    };
    let values: Vec<f32> = noise(n, seed).into_iter().map(value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn formula_parameters(spec: &VqganSpec) -> Parameters {
    let shapes = vqgan_tensors(spec).into_iter();
    let tensors = shapes.map(|(name, shape)| (name.clone(), formula(&name, &shape)));
    Parameters::of(tensors.collect()).unwrap()
}

/// `n` pictures of noise over all of [-1, 1).
fn pixels(n: usize) -> Tensor {
    noise_of(n, 16)
}

fn noise_of(n: usize, side: usize) -> Tensor {
    let numbers = noise(n * side * side * 3, 7);
    let numbers: Vec<f32> = numbers.iter().map(|x| 2.0 * x).collect();
    Tensor::from_vec(numbers, (n, side, side, 3), &Device::Cpu).unwrap()
}

/// Two pictures with edges and slopes.
fn scene() -> Tensor {
    let number = |i: usize| {
        let (picture, y, x, c) = (i / 768, i / 48 % 16, i / 3 % 16, i % 3);
        let inside = (4..12).contains(&x) && (y > 6) == (picture == 0);
        let slope = (x as f32 / 8.0 - 1.0) * [0.8, -0.5, 0.2][c];
        if inside { [0.9, -0.7, 0.4][c] } else { slope }
    };
    let numbers: Vec<f32> = (0..2 * 768).map(number).collect();
    Tensor::from_vec(numbers, (2, 16, 16, 3), &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A trainer of the golden script's VQGAN and discriminator.
fn golden_trainer(
    spec: VqganSpec,
    adversarial: Option<Adversarial>,
    perceptual: Option<Perceptual>,
) -> VqganTrainer {
    let options = VqganOptions {
        l2_weight: 0.5,
        adversarial,
        perceptual,
        ..options()
    };
    let parameters = formula_parameters(&spec);
    let trainer = VqganTrainer::new(spec.clone(), parameters, options.clone()).unwrap();
    let mut state = trainer.export().unwrap();
    for (name, tensor) in &mut state.tensors {
        if name.starts_with("discriminator.") {
            *tensor = formula(name, tensor.dims());
        }
    }
    VqganTrainer::resume(spec, options, state).unwrap()
}

fn assert_golden(file: &Golden, prefix: &str, gradients: &ByName, tolerance: f32) {
    let expected: Vec<String> = file.names();
    let expected = expected.iter().filter_map(|n| n.strip_prefix(prefix));
    let mut expected: Vec<&str> = expected.filter(|n| !n.ends_with(".length")).collect();
    expected.sort();
    assert_eq!(gradients.keys().collect::<Vec<_>>(), expected, "{prefix}");
    for (name, gradient) in gradients {
        let got = numbers(gradient);
        let step = (got.len() / 48).max(1) | 1;
        let some: Vec<f32> = got.iter().copied().step_by(step).collect();
        let what = format!("{prefix}{name}");
        let expected = file.f32(&what);
        let largest = expected.iter().fold(1e-4_f32, |m, x| m.max(x.abs()));
        assert_close(&what, &some, &expected, tolerance * largest);
        let length = got.iter().map(|x| x * x).sum::<f32>().sqrt();
        let expected = file.f32(&format!("{what}.length"));
        assert_close(
            &what,
            &[length],
            &expected,
            tolerance * expected[0].max(1e-4),
        );
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch_with_and_without_a_discriminator() {
    let file = Golden::open("training/vqgan.safetensors");
    let values = file.f32("values");
    let [
        l1,
        l2,
        quantization,
        plain,
        generator,
        discriminator,
        weight,
        total,
    ] = values[..]
    else {
        panic!("{} values", values.len());
    };
    let trainer = golden_trainer(tiny_spec(), None, None);
    let (codes, picture) = trainer.reconstruct(&pixels(2)).unwrap();
    let codes: Vec<i32> = codes.concat().into_iter().map(|c| c as i32).collect();
    assert_eq!(codes, file.i32("codes"));
    let some: Vec<f32> = numbers(&picture).into_iter().step_by(5).collect();
    assert_close("picture", &some, &file.f32("picture"), 1e-4);

    let losses = trainer.losses(&pixels(2)).unwrap();
    let metrics = losses.metrics;
    let got = [metrics.l1, metrics.l2, metrics.quantization, metrics.loss];
    let got = got.map(|x| x as f32);
    assert_close("losses", &got, &[l1, l2, quantization, plain], 1e-5);
    assert!(metrics.adversarial.is_none() && losses.discriminator.is_none());
    assert_golden(&file, "plain.", &losses.gradients, GOLDEN);

    let trainer = golden_trainer(tiny_spec(), Some(judge()), None);
    let losses = trainer.losses(&pixels(2)).unwrap();
    let adversarial = losses.metrics.adversarial.unwrap();
    let got = [
        adversarial.generator_loss,
        adversarial.discriminator_loss,
        adversarial.adaptive_weight,
        losses.metrics.loss,
    ];
    let got = got.map(|x| x as f32);
    let expected = [generator, discriminator, weight, total];
    assert_close("adversarial", &got, &expected, 1e-4);
    assert_golden(&file, "total.", &losses.gradients, GOLDEN);
    assert_golden(&file, "judge.", &losses.discriminator.unwrap(), GOLDEN);
}

/// 36, 18, 9, 4, 2: a pool of VGG16 leaves something out.
fn odd_spec() -> VqganSpec {
    VqganSpec {
        resolution: 36,
        ..tiny_spec()
    }
}

#[test]
fn the_perceptual_loss_and_its_gradients_are_those_of_the_lpips_package() {
    let file = Golden::open("training/perceptual.safetensors");
    let values = file.f32("values");
    let pixels = noise_of(2, 36);
    for (prefix, adversarial) in [("plain.", None), ("total.", Some(judge()))] {
        let trainer = golden_trainer(odd_spec(), adversarial, Some(perceptual(4.0)));
        let losses = trainer.losses(&pixels).unwrap();
        let metrics = losses.metrics;
        let distance = metrics.perceptual.unwrap() as f32;
        assert_close("distance", &[distance], &file.f32("distance"), 2e-6);
        let (loss, expected) = match metrics.adversarial {
            None => (metrics.loss, values[3]),
            Some(adversarial) => {
                // The perceptual loss is part of the reconstruction's gradient, against which the weight is set.
                let weight = adversarial.adaptive_weight as f32;
                assert_close("weight", &[weight], &values[6..7], 1e-3);
                (metrics.loss, values[7])
            }
        };
        assert_close(prefix, &[loss as f32], &[expected], 2e-4);
        assert_golden(&file, prefix, &losses.gradients, GOLDEN_PERCEPTUAL);
        let mut evaluation = Evaluation::default();
        trainer.evaluate(&pixels, &mut evaluation).unwrap();
        assert_eq!(evaluation.perceptual(), metrics.perceptual);
    }
}

#[test]
fn training_on_the_perceptual_loss_alone_reduces_it_and_resumes_to_the_bit() {
    let options = || VqganOptions {
        l1_weight: 0.0,
        perceptual: Some(perceptual(1.0)),
        ..options()
    };
    let mut trainer = trainer_of(options());
    let first = steps(&mut trainer, 20, &scene());
    let state = trainer.export().unwrap();
    let second = steps(&mut trainer, 20, &scene());
    let distance = |m: &Metrics| m.perceptual.unwrap();
    assert!(
        distance(&second[19]) < 0.5 * distance(&first[0]),
        "{second:?}"
    );
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let again = pool.unwrap().install(|| {
        let mut trainer = VqganTrainer::resume(tiny_spec(), options(), state).unwrap();
        steps(&mut trainer, 20, &scene());
        trainer.export().unwrap()
    });
    assert_eq!(bits(&again), bits(&trainer.export().unwrap()));
}

#[test]
fn unusable_perceptual_networks_are_refused_with_their_file_and_tensor() {
    let good = perceptual(1.0);
    let dir = tempfile::tempdir().unwrap();
    let broken = |name: &str, change: &dyn Fn(&mut Vec<Named>)| {
        let mut tensors = vgg_tensors();
        change(&mut tensors);
        let vgg = dir.path().join(name);
        write_safetensors(&vgg, &tensors);
        Perceptual {
            vgg,
            ..good.clone()
        }
    };
    let missing = broken("missing.safetensors", &|tensors| {
        tensors.retain(|(name, ..)| name != "features.28.bias");
    });
    let narrow = broken("narrow.safetensors", &|tensors| {
        tensors[0] = (
            "features.0.weight".into(),
            vec![64, 1, 3, 3],
            vec![0.0; 576],
        );
    });
    let nan = broken("nan.safetensors", &|tensors| tensors[3].2[5] = f32::NAN);
    let nowhere = Perceptual {
        lpips: dir.path().join("nowhere.pth"),
        ..good.clone()
    };
    let swapped = Perceptual {
        lpips: good.vgg.clone(),
        ..good.clone()
    };
    let folder = Perceptual {
        vgg: dir.path().into(),
        ..good.clone()
    };
    for (perceptual, expected) in [
        (
            missing,
            "missing.safetensors: features.28.bias: it is missing, expected [512]",
        ),
        (
            narrow,
            "narrow.safetensors: features.0.weight: it has shape [64, 1, 3, 3], expected [64, 3, 3, 3]",
        ),
        (
            nan,
            "nan.safetensors: features.2.bias: it holds NaN, expected numbers",
        ),
        (nowhere, "nowhere.pth: no such file or directory"),
        (
            swapped,
            "lin0.model.1.weight: it is missing, expected [1, 64, 1, 1]",
        ),
        (folder, "it is a directory, expected a file"),
        (
            Perceptual {
                weight: -1.0,
                ..good.clone()
            },
            "train a VQGAN: perceptual.weight is -1, expected 0 or more",
        ),
    ] {
        let options = VqganOptions {
            perceptual: Some(perceptual),
            ..options()
        };
        let parameters = formula_parameters(&tiny_spec());
        let error = VqganTrainer::new(tiny_spec(), parameters, options).err();
        let error = error.unwrap().to_string();
        assert!(
            error.starts_with("train a VQGAN: ") && error.contains(expected),
            "{error}"
        );
    }
    let small = VqganSpec {
        resolution: 8,
        ..tiny_spec()
    };
    let options = VqganOptions {
        perceptual: Some(good),
        ..options()
    };
    let error = VqganTrainer::new(small.clone(), formula_parameters(&small), options).err();
    assert_eq!(
        error.unwrap().to_string(),
        "train a VQGAN: perceptual loss: pictures of 8 pixels, expected 16 or more"
    );
}

/// A trainer like `trainer` with the tensor `name` moved by `along`, `far` times.
fn moved(
    options: &VqganOptions,
    state: &State,
    name: &str,
    along: &Tensor,
    far: f64,
) -> VqganTrainer {
    let mut state = state.clone();
    let tensor = state.tensors.get_mut(name).unwrap();
    *tensor = (&*tensor + (along * far).unwrap()).unwrap();
    VqganTrainer::resume(tiny_spec(), options.clone(), state).unwrap()
}

#[test]
fn gradients_are_the_slopes_of_the_losses() {
    let options = VqganOptions {
        l1_weight: 0.0,
        l2_weight: 1.0,
        adversarial: Some(Adversarial {
            weight: 0.0,
            ..judge()
        }),
        ..options()
    };
    let trainer = VqganTrainer::new(
        tiny_spec(),
        formula_parameters(&tiny_spec()),
        options.clone(),
    )
    .unwrap();
    let (state, pixels) = (trainer.export().unwrap(), pixels(3));
    let losses = trainer.losses(&pixels).unwrap();
    let of_discriminator = losses.discriminator.unwrap();
    for (name, gradients) in [
        ("vqgan.decoder.Conv_1.kernel", &losses.gradients),
        ("vqgan.decoder.Conv_1.bias", &losses.gradients),
        (
            "vqgan.decoder.UpsamplingBlock_0.Upsample_0.Conv_0.kernel",
            &losses.gradients,
        ),
        (
            "vqgan.decoder.UpsamplingBlock_1.ResnetBlock_0.Conv_2.kernel",
            &losses.gradients,
        ),
        (
            "vqgan.decoder.UpsamplingBlock_1.ResnetBlock_1.GroupNorm_0.scale",
            &losses.gradients,
        ),
        (
            "vqgan.decoder.MidBlock_0.ResnetBlock_0.GroupNorm_1.bias",
            &losses.gradients,
        ),
        ("vqgan.post_quant_conv.kernel", &losses.gradients),
        ("discriminator.Conv_0.kernel", &of_discriminator),
        ("discriminator.Conv_2.bias", &of_discriminator),
    ] {
        let gradient = &gradients[name];
        let square: f64 = numbers(gradient)
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum();
        // The loss moves by about a thousandth.
        let far = 5e-4 / square;
        let loss = |far: f64| {
            let metrics = moved(&options, &state, name, gradient, far).losses(&pixels);
            let metrics = metrics.unwrap().metrics;
            match name.starts_with("discriminator") {
                true => metrics.adversarial.unwrap().discriminator_loss,
                false => metrics.loss,
            }
        };
        let slope = (loss(far) - loss(-far)) / (2.0 * far);
        let ratio = slope / square;
        assert!(
            (ratio - 1.0).abs() < 0.02,
            "{name}: slope {slope}, gradient {square}"
        );
    }
}

/// Writes `parameters` to a file and loads them from there, as `longreel encode` does.
fn load(spec: &VqganSpec, parameters: &Parameters) -> Vqgan {
    let bytes: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = parameters
        .iter()
        .map(|(name, var)| {
            let data = numbers(var).into_iter().flat_map(f32::to_le_bytes);
            (name, (var.dims().to_vec(), data.collect()))
        })
        .collect();
    let views = bytes.iter().map(|(name, (shape, data))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data);
        (*name, view.unwrap())
    });
    let mut file = tempfile::Builder::new();
    let file = file.suffix(".safetensors").tempfile().unwrap();
    std::fs::write(file.path(), safetensors::serialize(views, None).unwrap()).unwrap();
    let mut weights = Weights::open(file.path()).unwrap();
    let vqgan = Vqgan::load(spec, &mut weights).unwrap();
    weights.finish().unwrap();
    vqgan
}

/// Fails when the network in training and the one that is loaded see another thing in `pixels`.
fn assert_one_network(trainer: &VqganTrainer, spec: &VqganSpec, pixels: &Tensor) {
    let vqgan = load(spec, trainer.parameters());
    let (codes, pictures) = trainer.reconstruct(pixels).unwrap();
    assert_eq!(codes, vqgan.encode(pixels).unwrap());
    let shape = (codes.len(), spec.codes_per_frame());
    let codes = Tensor::from_vec(codes.concat(), shape, &Device::Cpu).unwrap();
    let expected = vqgan.decode_unclipped(&codes).unwrap();
    let bits = |t: &Tensor| numbers(t).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(&pictures), bits(&expected));
}

#[test]
fn the_trained_network_is_the_encoding_one_to_the_bit() {
    let golden = VqganSpec {
        resolution: 64,
        hidden_channels: 32,
        channel_mult: vec![1, 1, 2],
        num_res_blocks: 1,
        z_channels: 24,
        num_embeddings: 128,
        quantized_embed_dim: 16,
    };
    let (weights, io) = (
        Golden::open("vqgan/weights.safetensors"),
        Golden::open("vqgan/io.safetensors"),
    );
    let tensors = weights.names().into_iter().map(|name| {
        let tensor = Tensor::from_vec(weights.f32(&name), weights.shape(&name), &Device::Cpu);
        (format!("vqgan.{}", name.replace('/', ".")), tensor.unwrap())
    });
    let parameters = Parameters::of(tensors.collect()).unwrap();
    let trainer = VqganTrainer::new(golden.clone(), parameters, options()).unwrap();
    let pixels = Tensor::from_vec(io.f32("pixels"), io.shape("pixels"), &Device::Cpu).unwrap();
    assert_one_network(&trainer, &golden, &pixels);

    let mut trained = trainer_of(options());
    steps(&mut trained, 3, &scene());
    assert_one_network(&trained, &tiny_spec(), &scene());
}

fn trainer_of(options: VqganOptions) -> VqganTrainer {
    let parameters = first_parameters(&tiny_spec(), options.seed).unwrap();
    VqganTrainer::new(tiny_spec(), parameters, options).unwrap()
}

fn steps(trainer: &mut VqganTrainer, n: usize, pixels: &Tensor) -> Vec<Metrics> {
    (0..n).map(|_| trainer.step(pixels).unwrap()).collect()
}

/// Everything at once: averages, restarts and a discriminator that begins late.
fn everything() -> VqganOptions {
    VqganOptions {
        codebook: CodebookRule::Average { decay: 0.9 },
        restart_after: 2,
        adversarial: Some(Adversarial {
            start: 3,
            ..judge()
        }),
        ..options()
    }
}

/// More codes than a batch has vectors, so that some are always dead.
fn many_codes() -> VqganSpec {
    VqganSpec {
        num_embeddings: 1024,
        ..tiny_spec()
    }
}

fn trainer_of_many_codes() -> VqganTrainer {
    let parameters = first_parameters(&many_codes(), 0).unwrap();
    VqganTrainer::new(many_codes(), parameters, everything()).unwrap()
}

/// All numbers of a state, as bits.
fn bits(state: &State) -> (Vec<(String, Vec<u32>)>, Counters) {
    let of = |(name, tensor): (&String, &Tensor)| {
        let flat = tensor.flatten_all().unwrap();
        let bits = match flat.to_vec1::<u32>() {
            Ok(numbers) => numbers,
            Err(_) => numbers(&flat).into_iter().map(f32::to_bits).collect(),
        };
        (name.clone(), bits)
    };
    (state.tensors.iter().map(of).collect(), state.counters)
}

/// What so many steps make of a trainer with everything.
static AFTER_TEN: LazyLock<State> = LazyLock::new(|| {
    let mut trainer = trainer_of_many_codes();
    steps(&mut trainer, 10, &pixels(10));
    trainer.export().unwrap()
});

#[test]
fn ten_steps_are_five_and_five_more_from_their_state_to_the_bit() {
    let mut trainer = trainer_of_many_codes();
    let first = steps(&mut trainer, 5, &pixels(10));
    assert!(first[2].adversarial.is_none() && first[3].adversarial.is_some());
    let exported = trainer.export().unwrap();
    let counters = serde_json::to_string(&exported.counters).unwrap();
    assert_eq!(counters, r#"{"steps":5,"discriminator_steps":2}"#);
    // An exported state is a copy: steps taken later do not change it.
    trainer.step(&pixels(10)).unwrap();
    let state = State {
        tensors: exported.tensors,
        counters: serde_json::from_str(&counters).unwrap(),
    };
    let mut trainer = VqganTrainer::resume(many_codes(), everything(), state).unwrap();
    let last = steps(&mut trainer, 5, &pixels(10));
    assert_eq!(last[4].step, 9);
    assert!(first[2].codes_restarted > 0 && last[4].codes_restarted > 0);
    assert_eq!(bits(&trainer.export().unwrap()), bits(&AFTER_TEN));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let state = pool.build().unwrap().install(|| {
            let mut trainer = trainer_of_many_codes();
            steps(&mut trainer, 10, &pixels(10));
            trainer.export().unwrap()
        });
        assert_eq!(bits(&state), bits(&AFTER_TEN), "{threads} threads");
    }
}

#[test]
fn overfitting_one_batch_raises_psnr_with_every_codebook_rule() {
    for codebook in [CodebookRule::Loss, CodebookRule::Average { decay: 0.9 }] {
        let mut trainer = trainer_of(VqganOptions {
            codebook,
            restart_after: 5,
            l2_weight: 1.0,
            ..options()
        });
        let steps = steps(&mut trainer, 80, &scene());
        let (first, last) = (steps[0], steps[79]);
        assert!(
            last.psnr_db > first.psnr_db + 6.0 && last.psnr_db > 14.0,
            "{codebook:?}: {first:?} {last:?}"
        );
    }
}

#[test]
fn dead_codes_become_vectors_of_the_batch_and_are_used() {
    let run = |restart_after| {
        let mut trainer = trainer_of(VqganOptions {
            restart_after,
            ..options()
        });
        let steps = steps(&mut trainer, 12, &pixels(4));
        let restarted: usize = steps.iter().map(|m| m.codes_restarted).sum();
        (restarted, steps[11].codes_used, steps[11].perplexity)
    };
    let (never, few, _) = run(0);
    let (restarted, many, perplexity) = run(4);
    assert!(never == 0 && restarted > 0, "{restarted} restarted");
    assert!(many > few, "{many} codes used with restarts, {few} without");
    assert!(perplexity > 1.0 && perplexity <= many as f64 + 1e-9);
}

#[test]
fn nan_is_refused_without_an_update() {
    let mut trainer = trainer_of(everything());
    let before = bits(&trainer.export().unwrap());
    for bad in [f32::NAN, f32::INFINITY] {
        let mut numbers = numbers(&pixels(1));
        numbers[5] = bad;
        let pixels = Tensor::from_vec(numbers, (1, 16, 16, 3), &Device::Cpu).unwrap();
        let error = trainer.step(&pixels).unwrap_err();
        assert_eq!(error.kind(), Kind::Compute);
        let expected =
            format!("step 0 of a VQGAN's training: pixel 5 is {bad}, expected a finite number");
        assert_eq!(error.to_string(), expected);
    }
    assert_eq!(bits(&trainer.export().unwrap()), before);

    let mut state = trainer.export().unwrap();
    let bias = state.tensors.get_mut("vqgan.decoder.Conv_1.bias").unwrap();
    *bias = Tensor::full(f32::NAN, 3, &Device::Cpu).unwrap();
    let mut trainer = VqganTrainer::resume(tiny_spec(), everything(), state).unwrap();
    let before = bits(&trainer.export().unwrap());
    let error = trainer.step(&pixels(1)).unwrap_err();
    assert_eq!(error.kind(), Kind::Compute);
    assert!(error.to_string().contains("finite"), "{error}");
    assert_eq!(bits(&trainer.export().unwrap()), before);
}

#[test]
fn pixels_of_another_shape_are_an_error_with_the_expected_shape() {
    let mut trainer = trainer_of(options());
    for shape in [&[0, 16, 16, 3][..], &[1, 3, 16, 16], &[16, 16, 3]] {
        let pixels = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = trainer.step(&pixels).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput);
        let expected = format!("pixels are f32 {shape:?}, expected f32 [1 or more, 16, 16, 3]");
        assert!(error.to_string().ends_with(&expected), "{error}");
    }
}

#[test]
fn a_state_that_does_not_fit_is_an_error_that_names_the_tensor() {
    let whole = trainer_of(everything()).export().unwrap();
    let check = |change: &dyn Fn(&mut ByName), options: VqganOptions, expected: &str| {
        let mut state = whole.clone();
        change(&mut state.tensors);
        let error = VqganTrainer::resume(tiny_spec(), options, state)
            .err()
            .unwrap();
        assert_eq!(error.kind(), Kind::BadInput);
        assert_eq!(
            error.to_string(),
            format!("resume the training of a VQGAN: {expected}")
        );
    };
    check(
        &|t| drop(t.remove("adam.square.vqgan.quant_conv.bias")),
        everything(),
        "adam.square.vqgan.quant_conv.bias is missing, expected f32 [8]",
    );
    check(
        &|t| drop(t.insert("codebook.unused".into(), t["codebook.sizes"].clone())),
        everything(),
        "codebook.unused is f32 [16], expected u32 [16]",
    );
    check(
        &|_| {},
        VqganOptions {
            codebook: CodebookRule::Loss,
            ..everything()
        },
        "there is a tensor codebook.sizes, which these options do not have",
    );
    check(
        &|_| {},
        VqganOptions {
            adversarial: Some(Adversarial {
                layers: 1,
                ..judge()
            }),
            ..everything()
        },
        "discriminator.Conv_2.kernel is f32 [4, 4, 16, 32], expected f32 [4, 4, 16, 1]",
    );
}

#[test]
fn options_that_cannot_be_are_named() {
    for (options, expected) in [
        (
            VqganOptions {
                l1_weight: -1.0,
                ..options()
            },
            "train a VQGAN: l1_weight is -1, expected 0 or more",
        ),
        (
            VqganOptions {
                codebook: CodebookRule::Average { decay: 1.0 },
                ..options()
            },
            "train a VQGAN: codebook.average.decay is 1, expected 0 or more and less than 1",
        ),
        (
            VqganOptions {
                adversarial: Some(Adversarial {
                    layers: 4,
                    ..judge()
                }),
                ..options()
            },
            "train a VQGAN: a discriminator of 4 layers has no output for 16 pixels, expected fewer layers",
        ),
    ] {
        let parameters = formula_parameters(&tiny_spec());
        let error = VqganTrainer::new(tiny_spec(), parameters, options)
            .err()
            .unwrap();
        assert_eq!(error.kind(), Kind::BadInput);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn options_are_read_as_they_are_written_and_unknown_ones_refused() {
    let text = "l2_weight = 1.0\nrestart_after = 50\n[codebook.average]\ndecay = 0.99\n[adversarial]\nstart = 100\n";
    let read: VqganOptions = toml::from_str(text).unwrap();
    let expected = VqganOptions {
        l2_weight: 1.0,
        restart_after: 50,
        codebook: CodebookRule::Average { decay: 0.99 },
        adversarial: Some(Adversarial {
            start: 100,
            ..Adversarial::default()
        }),
        ..VqganOptions::default()
    };
    assert_eq!(read, expected);
    let written = toml::to_string(&expected).unwrap();
    assert_eq!(toml::from_str::<VqganOptions>(&written).unwrap(), expected);
    let text = "[perceptual]\nvgg = \"vgg16.pth\"\nlpips = \"vgg.pth\"\n";
    let read: VqganOptions = toml::from_str(text).unwrap();
    let perceptual = Perceptual {
        vgg: "vgg16.pth".into(),
        lpips: "vgg.pth".into(),
        weight: 1.0,
    };
    assert_eq!(read.perceptual, Some(perceptual));
    for unknown in ["perception = 1.0", &format!("{text}net = \"alex\"\n")] {
        assert!(toml::from_str::<VqganOptions>(unknown).is_err());
    }
}
