//! Convolutional networks, from lists of layers, give what torch gives.

use longreel_models::{
    checkpoint::{key_map::KeyMap, weights::Weights},
    error::Kind,
    spec::conv_net::ConvNetSpec,
    systems::architecture::{Architecture, ModelKind},
    vision::conv_net::{ConvNet, Map},
};

use serde_json::{Value, json};

use crate::support::golden::{self, Golden, assert_close};

/// As far as f32 is from f64 in `meta.json`, twenty times.
const TOLERANCE: f32 = 5e-5;

/// The network of a folder under `tests/golden`, all of whose tensors are taken.
fn load(folder: &str, spec: &ConvNetSpec, keys: &KeyMap) -> ConvNet {
    let path = golden::path(&format!("{folder}/model.safetensors"));
    let weights = Weights::open(&path).unwrap();
    let mut weights = weights.renamed(keys).unwrap();
    let net = ConvNet::load(spec, &mut weights).unwrap();
    weights.finish().unwrap();
    net
}

/// pixels `[n, channels, height, width]`, and the last two.
fn pixels(expected: &Golden) -> (Vec<f32>, [usize; 2]) {
    let shape = expected.shape("in.pixel_values");
    (expected.f32("in.pixel_values"), [shape[2], shape[3]])
}

/// Channel by channel, as torch has it.
fn channels_first(maps: &[Map]) -> Vec<f32> {
    let mut out = Vec::new();
    for map in maps {
        let channels = map.data.len() / (map.height * map.width);
        for c in 0..channels {
            out.extend(map.data.iter().skip(c).step_by(channels));
        }
    }
    out
}

fn architecture(folder: &str, config: &str) -> (ConvNetSpec, KeyMap) {
    let text = std::fs::read_to_string(golden::path(&format!("{folder}/{config}"))).unwrap();
    let config = serde_json::from_str(&text).unwrap();
    let architecture = Architecture::of_config(&config).unwrap();
    let spec = architecture.spec(ModelKind::ConvNet, &config).unwrap();
    (spec, architecture.keys().unwrap())
}

#[test]
fn resnets_give_the_official_stages_and_logits() {
    for (folder, config) in [
        ("systems/resnet", "config.json"),
        ("systems/resnet", "config_v4.json"),
        ("conv_nets/resnet_basic", "config.json"),
        ("conv_nets/resnet_v1", "config.json"),
    ] {
        let (spec, keys) = architecture(folder, config);
        let net = load(folder, &spec, &keys);
        let expected = Golden::open(&format!("{folder}/expected.safetensors"));
        let (pixels, size) = pixels(&expected);
        for (n, tap) in net.taps().enumerate() {
            let grids = net.grids(&pixels, size, tap).unwrap();
            let tensor = format!("mid.stage{n}");
            let shape = expected.shape(&tensor);
            assert_eq!(
                [grids[0].height, grids[0].width],
                shape[2..],
                "{folder} {tap}"
            );
            let what = format!("{folder} {tap}");
            let (got, official) = (channels_first(&grids), expected.f32(&tensor));
            assert_close(&what, &got, &official, TOLERANCE);
        }
        assert_eq!(net.taps().count(), 1 + stages(&expected), "{folder}");
        let logits = net.forward(&pixels, size).unwrap();
        assert_close(folder, &logits, &expected.f32("out.logits"), TOLERANCE);
    }
}

#[test]
fn a_resnet_without_its_classes_gives_the_official_vector() {
    let golden = Golden::open("search/pictures.safetensors");
    for config in ["config.json", "config_v4.json"] {
        let (spec, keys) = architecture("systems/resnet", config);
        let path = golden::path("systems/resnet/model.safetensors");
        let mut weights = Weights::open(&path).unwrap().renamed(&keys).unwrap();
        weights.leave_out("classifier");
        let net = ConvNet::load(&spec.grid(), &mut weights).unwrap();
        weights.finish().unwrap();
        let expected = Golden::open("systems/resnet/expected.safetensors");
        let (pixels, size) = pixels(&expected);
        let got = net.pooled(&pixels, size).unwrap();
        assert_eq!(net.out_channels() * 2, got.len());
        assert_close(config, &got, &golden.f32("resnet.pooled"), TOLERANCE);
    }
}

fn stages(expected: &Golden) -> usize {
    let names = expected.names();
    names.iter().filter(|n| n.starts_with("mid.stage")).count() - 1
}

/// A list of layers, from pieces of TOML.
fn listed(channels: usize, layers: &[String]) -> String {
    let layers = layers.join(",\n    ");
    format!("num_channels = {channels}\nlayers = [\n    {layers},\n]")
}

/// What `config.json` of a folder of `systems` says.
fn config(folder: &str) -> Value {
    let path = golden::path(&format!("{folder}/config.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn conv(name: &str, out: &Value, rest: &str) -> String {
    format!(r#"{{ layer = "conv", name = "{name}", out = {out}, {rest}, bias = true }}"#)
}

fn linear(name: &str) -> String {
    format!(r#"{{ layer = "linear", name = "{name}" }}"#)
}

fn activation(act: &Value) -> String {
    format!(r#"{{ layer = "activation", act = {act} }}"#)
}

fn pool(kind: &str, size: usize) -> String {
    format!(r#"{{ layer = "pool", kind = "{kind}", size = {size}, stride = 2 }}"#)
}

/// torchvision's AlexNet at the widths of its folder.
fn alexnet() -> String {
    let (config, relu) = (config("systems/x_alexnet"), activation(&json!("relu")));
    let mut layers = Vec::new();
    for (i, at, rest) in [
        (0, 0, "kernel = 11, stride = 4, padding = 2"),
        (1, 3, "kernel = 5, padding = 2"),
        (2, 6, "kernel = 3, padding = 1"),
        (3, 8, "kernel = 3, padding = 1"),
        (4, 10, "kernel = 3, padding = 1"),
    ] {
        layers.push(conv(
            &format!("features.{at}"),
            &config["channels"][i],
            rest,
        ));
        layers.push(relu.clone());
        if [0, 3, 10].contains(&at) {
            layers.push(pool("max", 3));
        }
    }
    let around = [
        r#"{ layer = "tap", name = "features" }"#.to_owned(),
        r#"{ layer = "adaptive_pool", side = 6 }"#.to_owned(),
        r#"{ layer = "flatten" }"#.to_owned(),
        linear("classifier.1"),
        relu.clone(),
        linear("classifier.4"),
        relu,
        linear("classifier.6"),
    ];
    layers.extend(around);
    listed(3, &layers)
}

/// torchvision's VGG by the `cfg` of its folder, with batch norms or without.
fn vgg() -> String {
    let (config, relu) = (config("systems/x_vgg"), activation(&json!("relu")));
    let has_norm = config["batch_norm"] == true;
    let (mut layers, mut at) = (Vec::new(), 0);
    for entry in config["cfg"].as_array().unwrap() {
        if entry == "M" {
            layers.push(pool("max", 2));
            at += 1;
            continue;
        }
        let norm = match has_norm {
            true => format!(r#"kernel = 3, padding = 1, norm = "features.{}""#, at + 1),
            false => "kernel = 3, padding = 1".to_owned(),
        };
        layers.push(conv(&format!("features.{at}"), entry, &norm));
        layers.push(relu.clone());
        at += if has_norm { 3 } else { 2 };
    }
    let side = &config["avgpool"][0];
    layers.extend([
        r#"{ layer = "tap", name = "features" }"#.to_owned(),
        format!(r#"{{ layer = "adaptive_pool", side = {side} }}"#),
        r#"{ layer = "flatten" }"#.to_owned(),
        linear("classifier.0"),
        relu.clone(),
        linear("classifier.3"),
        relu,
        linear("classifier.6"),
    ]);
    listed(3, &layers)
}

/// LeNet-5 as its folder has it: of 1998, or with the rectifiers, largest values and padding of later days.
fn lenet(config: &Value) -> String {
    let act = activation(&config["act"]);
    let kind = match config["pool"].as_str() {
        Some("max") => "max",
        _ => "mean",
    };
    let first = format!("kernel = 5, padding = {}", config["padding"]);
    listed(
        1,
        &[
            conv("conv1", &json!(6), &first),
            act.clone(),
            pool(kind, 2),
            conv("conv2", &json!(16), "kernel = 5"),
            act.clone(),
            pool(kind, 2),
            r#"{ layer = "flatten" }"#.to_owned(),
            linear("fc1"),
            act.clone(),
            linear("fc2"),
            act,
            linear("fc3"),
        ],
    )
}

const VGG_NORM: &str = r#"
num_channels = 3
layers = [
    { layer = "conv", name = "features.0", out = 4, kernel = 3, padding = 1, bias = true, norm = "features.1" },
    { layer = "activation", act = "relu" },
    { layer = "pool", kind = "max", size = 2, stride = 2 },
    { layer = "conv", name = "features.4", out = 6, kernel = 3, padding = 1, bias = true, norm = "features.5" },
    { layer = "activation", act = "relu" },
    { layer = "pool", kind = "max", size = 2, stride = 2 },
    { layer = "adaptive_pool", side = 3 },
    { layer = "flatten" },
    { layer = "linear", name = "classifier.0" },
    { layer = "activation", act = "relu" },
    { layer = "linear", name = "classifier.3" },
]"#;

const LENET: &str = r#"
num_channels = 1
layers = [
    { layer = "conv", name = "conv1", out = 6, kernel = 5, bias = true },
    { layer = "activation", act = "tanh" },
    { layer = "pool", kind = "mean", size = 2, stride = 2 },
    { layer = "conv", name = "conv2", out = 16, kernel = 5, bias = true },
    { layer = "activation", act = "tanh" },
    { layer = "pool", kind = "mean", size = 2, stride = 2 },
    { layer = "flatten" },
    { layer = "linear", name = "fc1", out = 120 },
    { layer = "activation", act = "tanh" },
    { layer = "linear", name = "fc2", out = 84 },
    { layer = "activation", act = "tanh" },
    { layer = "linear", name = "fc3", out = 10 },
]"#;

fn spec(text: &str) -> ConvNetSpec {
    toml::from_str(text).unwrap()
}

/// What training leaves in a batch norm is no weight.
fn no_counters() -> KeyMap {
    KeyMap::new(&[("num_batches_tracked$".into(), String::new())]).unwrap()
}

#[test]
fn other_nets_are_other_lists_of_layers() {
    for (folder, text) in [
        ("systems/x_alexnet", alexnet()),
        ("systems/x_vgg", vgg()),
        ("systems/x_lenet5", lenet(&config("systems/x_lenet5"))),
        ("conv_nets/lenet_max", lenet(&config("conv_nets/lenet_max"))),
        ("conv_nets/vgg_norm", VGG_NORM.to_owned()),
    ] {
        let net = load(folder, &spec(&text), &no_counters());
        let expected = Golden::open(&format!("{folder}/expected.safetensors"));
        let (pixels, size) = pixels(&expected);
        for tap in net.taps() {
            let grids = net.grids(&pixels, size, tap).unwrap();
            let official = expected.f32(&format!("mid.{tap}"));
            assert_close(folder, &channels_first(&grids), &official, TOLERANCE);
        }
        let logits = net.forward(&pixels, size).unwrap();
        assert_close(folder, &logits, &expected.f32("out.logits"), TOLERANCE);
    }
}

#[test]
fn pictures_of_an_unusable_size_are_refused() {
    let lenet = load("systems/x_lenet5", &spec(LENET), &no_counters());
    let refused = |pixels: usize, size| lenet.forward(&vec![0.5; pixels], size).unwrap_err();
    let small = refused(5 * 5, [5, 5]);
    assert_eq!(small.kind(), Kind::BadInput);
    assert!(
        small.to_string().contains("the picture is too small"),
        "{small}"
    );
    let other = refused(64 * 64, [64, 64]);
    let expected = "the flattened feature map has 2704 numbers, the linear layer takes 400";
    assert!(other.to_string().contains(expected), "{other}");
    assert_eq!(refused(33, [32, 32]).kind(), Kind::Internal);
    let unknown = lenet.grids(&[0.5; 1024], [32, 32], "stage7").unwrap_err();
    assert_eq!(unknown.kind(), Kind::Usage);
}

#[test]
fn a_nan_pixel_is_detected_after_every_layer() {
    for (folder, text) in [
        ("systems/x_lenet5", LENET.to_owned()),
        ("systems/x_alexnet", alexnet()),
    ] {
        let net = load(folder, &spec(&text), &no_counters());
        let expected = Golden::open(&format!("{folder}/expected.safetensors"));
        let (mut pixels, size) = pixels(&expected);
        // Inside what the kernels see of the first picture.
        let middle = size[1] * size[0] / 2 + size[1] / 2;
        pixels[middle] = f32::NAN;
        let error = net.forward(&pixels, size).unwrap_err();
        assert_eq!(error.kind(), Kind::Compute, "{error}");
        assert!(error.to_string().contains("is NaN"), "{error}");
    }
}

#[test]
fn invalid_lists_of_layers_are_refused() {
    for (from, to, expected) in [
        ("out = 6", "out = 0", "layers.0.out is 0"),
        (
            "kernel = 5, bias",
            "kernel = 5, padding = 5, bias",
            "layers.0.padding is 5, expected less than 5",
        ),
        (
            "size = 2",
            "size = 100000",
            "layers.2.size is 100000, expected 1 to 1024",
        ),
        ("num_channels = 1", "num_channels = 0", "num_channels is 0"),
        (
            "num_channels = 1",
            "num_channels = 1\nnorm_eps = -1.0",
            "norm_eps is -1, expected a positive",
        ),
        (
            r#"{ layer = "flatten" }"#,
            r#"{ layer = "stages", name = "s", kind = "basic", widths = [8, 8], depths = [1] }"#,
            "2 widths and 1 depths",
        ),
        (
            r#"{ layer = "flatten" }"#,
            r#"{ layer = "residual", name = "r", block = { kind = "bottleneck", out = 6, stride = 1 } }"#,
            "expected a multiple of 4",
        ),
    ] {
        let error = spec(&LENET.replacen(from, to, 1)).validate().unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let misspelt = LENET.replacen("kernel", "kernels", 1);
    assert!(toml::from_str::<ConvNetSpec>(&misspelt).is_err());
}
