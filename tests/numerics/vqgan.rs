//! The VQGAN against LWM's own: codes equal, latents and pictures within tolerance,
//! every layer against an independent f64 computation.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use longreel_kernels::{codebook, codebook::Codebook, conv, conv::Resampling, group_norm};
use longreel_models::{
    checkpoint::{layout::vqgan_tensors, weights::Weights},
    error::Result,
    spec::VqganSpec,
    vision::{image::to_u8, vqgan::Vqgan},
};
use safetensors::{Dtype, tensor::TensorView};

use crate::support::golden::{Golden, assert_close};

/// Tensors by the name they have in a model directory.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The shape of the golden checkpoint (`manifest.json`, `parts.vqgan.config`).
fn golden_spec() -> VqganSpec {
    VqganSpec {
        resolution: 64,
        hidden_channels: 32,
        channel_mult: vec![1, 1, 2],
        num_res_blocks: 1,
        z_channels: 24,
        num_embeddings: 128,
        quantized_embed_dim: 16,
    }
}

fn golden_tensors() -> Tensors {
    let golden = Golden::open("vqgan/weights.safetensors");
    let tensor = |name: String| {
        let value = (golden.shape(&name), golden.f32(&name));
        (format!("vqgan.{}", name.replace('/', ".")), value)
    };
    golden.names().into_iter().map(tensor).collect()
}

/// Writes `tensors` to a file and loads them from there.
fn load(spec: &VqganSpec, tensors: &Tensors) -> Result<Vqgan> {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, data))| {
            (
                name,
                shape,
                data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            )
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, data)| {
        (
            *name,
            TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap(),
        )
    });
    let file = tempfile::Builder::new()
        .suffix(".safetensors")
        .tempfile()
        .unwrap();
    std::fs::write(file.path(), safetensors::serialize(views, None).unwrap()).unwrap();
    let mut weights = Weights::open(file.path())?;
    let vqgan = Vqgan::load(spec, &mut weights)?;
    weights.finish()?;
    Ok(vqgan)
}

fn golden_vqgan() -> Vqgan {
    load(&golden_spec(), &golden_tensors()).unwrap()
}

fn pixels(io: &Golden) -> Tensor {
    Tensor::from_vec(io.f32("pixels"), io.shape("pixels"), &Device::Cpu).unwrap()
}

/// The golden codes, `[2, 256]`.
fn codes(io: &Golden) -> Tensor {
    let codes: Vec<u32> = io.i32("indices").into_iter().map(|i| i as u32).collect();
    Tensor::from_vec(codes, (2, 256), &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    flat(tensor).into_iter().map(f32::to_bits).collect()
}

#[test]
fn all_codes_equal_the_official_ones() {
    let io = Golden::open("vqgan/io.safetensors");
    let got = golden_vqgan().encode(&pixels(&io)).unwrap();
    assert_eq!(got, codes(&io).to_vec2::<u32>().unwrap());
}

#[test]
fn the_latent_before_quantization_is_the_official_one() {
    let io = Golden::open("vqgan/io.safetensors");
    let z = golden_vqgan().latent(&pixels(&io)).unwrap();
    assert_eq!(z.dims(), io.shape("z"));
    assert_close("z", &flat(&z), &io.f32("z"), 4.852_635e-5);
}

#[test]
fn quantized_and_decoded_are_the_official_ones() {
    let io = Golden::open("vqgan/io.safetensors");
    let (vqgan, codes) = (golden_vqgan(), codes(&io));
    assert_close(
        "z_q",
        &flat(&vqgan.quantized(&codes).unwrap()),
        &io.f32("z_q"),
        1e-6,
    );
    let decoded = vqgan.decode(&codes).unwrap();
    assert_eq!(decoded.dims(), io.shape("decoded"));
    assert_close("decoded", &flat(&decoded), &io.f32("decoded"), 6.546_112e-5);
    let unclipped = vqgan.decode_unclipped(&codes).unwrap();
    assert_close(
        "decoded, unclipped",
        &flat(&unclipped),
        &io.f32("decoded_unclipped_f64"),
        1e-4,
    );
    let bytes = to_u8(&flat(&decoded));
    let far = bytes
        .iter()
        .zip(io.u8("decoded_u8"))
        .filter(|(a, b)| a.abs_diff(*b) > 1)
        .count();
    assert_eq!(far, 0, "bytes more than one level from the official ones");
}

#[test]
fn of_equal_codebook_rows_the_lower_code_is_taken() {
    let io = Golden::open("vqgan/io.safetensors");
    let tensors = golden_tensors();
    let codebook = Codebook::pack(&tensors["vqgan.quantize.embeddings"].1, 16);
    // The last vector lies midway between two rows, where rounding decides.
    let expected: Vec<u32> = io
        .i32("tie_indices")
        .into_iter()
        .map(|i| i as u32)
        .collect();
    assert_eq!(codebook.nearest(&io.f32("tie_z"))[..4], expected[..4]);
    let used = codes(&io).flatten_all().unwrap().to_vec1::<u32>().unwrap();
    assert!(
        used.contains(&5) && !used.contains(&121),
        "rows 5 and 121 are equal"
    );
}

#[test]
fn a_batch_is_its_frames_one_by_one_to_the_bit() {
    let io = Golden::open("vqgan/io.safetensors");
    let (vqgan, pixels, codes) = (golden_vqgan(), pixels(&io), codes(&io));
    let (z, decoded) = (
        vqgan.latent(&pixels).unwrap(),
        vqgan.decode(&codes).unwrap(),
    );
    let ids = vqgan.encode(&pixels).unwrap();
    for (i, ids) in ids.iter().enumerate() {
        let frame = pixels.narrow(0, i, 1).unwrap();
        assert_eq!(
            bits(&vqgan.latent(&frame).unwrap()),
            bits(&z.get(i).unwrap()),
            "latent of frame {i}"
        );
        assert_eq!(
            vqgan.encode(&frame).unwrap(),
            std::slice::from_ref(ids),
            "codes of frame {i}"
        );
        let alone = vqgan.decode(&codes.narrow(0, i, 1).unwrap()).unwrap();
        assert_eq!(bits(&alone), bits(&decoded.get(i).unwrap()), "picture {i}");
    }
}

#[test]
fn no_frames_give_no_codes() {
    let none = Tensor::zeros((0, 64, 64, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(golden_vqgan().encode(&none).unwrap().is_empty());
}

/// The first layer of the first golden picture that is not as the f64 computation has it.
fn first_wrong_layer(vqgan: &Vqgan) -> Option<String> {
    let (io, layers) = (
        Golden::open("vqgan/io.safetensors"),
        Golden::open("vqgan/layers.safetensors"),
    );
    let (mut seen, mut wrong) = (Vec::new(), None);
    let mut compare = |path: &str, _: [usize; 3], got: &[f32]| {
        let expected = layers.f32(path);
        let step = (got.len() / 512) | 1;
        let got: Vec<f32> = got.iter().copied().step_by(step).collect();
        let largest = expected.iter().fold(1.0_f32, |m, x| m.max(x.abs()));
        let same = got.len() == expected.len()
            && got
                .iter()
                .zip(&expected)
                .all(|(a, b)| (a - b).abs() <= 2e-5 * largest);
        if !same && wrong.is_none() {
            wrong = Some(path.to_owned());
        }
        seen.push(path.to_owned());
    };
    vqgan
        .latent_traced(&pixels(&io).narrow(0, 0, 1).unwrap(), &mut compare)
        .unwrap();
    vqgan
        .decode_traced(&codes(&io).narrow(0, 0, 1).unwrap(), &mut compare)
        .unwrap();
    seen.sort();
    let mut all = layers.names();
    all.sort();
    assert_eq!(seen, all, "layers that were compared");
    wrong
}

#[test]
fn every_layer_agrees_with_an_independent_f64_computation() {
    if let Some(layer) = first_wrong_layer(&golden_vqgan()) {
        panic!("the first wrong layer is {layer}");
    }
}

#[test]
fn one_wrong_weight_is_traced_to_its_layer() {
    for path in [
        "encoder.DownsamplingBlock_1.Downsample_0.Conv_0",
        "encoder.MidBlock_0.ResnetBlock_1.Conv_0",
        "decoder.UpsamplingBlock_1.ResnetBlock_0.Conv_2",
        "decoder.Conv_1",
    ] {
        let mut tensors = golden_tensors();
        let (_, kernel) = tensors.get_mut(&format!("vqgan.{path}.kernel")).unwrap();
        kernel[17] += 0.5;
        let vqgan = load(&golden_spec(), &tensors).unwrap();
        assert_eq!(first_wrong_layer(&vqgan).as_deref(), Some(path));
    }
}

#[test]
fn the_listed_tensors_are_those_of_the_official_checkpoint() {
    let listed: BTreeMap<String, Vec<usize>> = vqgan_tensors(&golden_spec()).into_iter().collect();
    let official = golden_tensors()
        .into_iter()
        .map(|(name, (shape, _))| (name, shape))
        .collect();
    assert_eq!(listed, official);
}

#[test]
fn a_code_outside_the_codebook_is_an_error_that_names_it() {
    let codes = Tensor::from_vec(
        [vec![0_u32; 255], vec![128]].concat(),
        (1, 256),
        &Device::Cpu,
    )
    .unwrap();
    for result in [
        golden_vqgan().decode(&codes),
        golden_vqgan().quantized(&codes),
    ] {
        let error = result.unwrap_err().to_string();
        assert_eq!(
            error,
            "code 128 at position 255 of a frame, expected a code below 128"
        );
    }
}

#[test]
fn wrong_shapes_are_errors_that_say_what_was_expected() {
    let vqgan = golden_vqgan();
    let zeros =
        |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    for shape in [&[1, 3, 64, 64][..], &[1, 64, 32, 3], &[64, 64, 3]] {
        let error = vqgan.encode(&zeros(shape)).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("pixels have shape {shape:?}, expected [n, 64, 64, 3]")
        );
    }
    let short = Tensor::zeros((1, 255), candle_core::DType::U32, &Device::Cpu).unwrap();
    let error = vqgan.decode(&short).unwrap_err().to_string();
    assert_eq!(error, "codes have shape [1, 255], expected [n, 256]");
}

#[test]
fn a_missing_or_misshapen_weight_is_named() {
    let name = "vqgan.encoder.MidBlock_0.ResnetBlock_0.GroupNorm_1.scale";
    let mut tensors = golden_tensors();
    tensors.insert(name.into(), (vec![32], vec![1.0; 32]));
    let error = load(&golden_spec(), &tensors).err().unwrap().to_string();
    assert_eq!(
        error,
        format!("load the VQGAN: tensor {name} has shape [32], expected [64]")
    );
    tensors.remove(name);
    let error = load(&golden_spec(), &tensors).err().unwrap().to_string();
    assert_eq!(
        error,
        format!("load the VQGAN: tensor {name} is missing, expected shape [64]")
    );
}

#[test]
fn a_shape_that_cannot_be_is_refused_before_any_tensor_is_read() {
    let mut tensors = Tensors::new();
    tensors.insert("x".into(), (vec![1], vec![0.0]));
    for spec in [
        VqganSpec {
            hidden_channels: 24,
            ..golden_spec()
        },
        VqganSpec {
            hidden_channels: 16,
            channel_mult: vec![2, 4, 2],
            ..golden_spec()
        },
        VqganSpec {
            channel_mult: vec![],
            ..golden_spec()
        },
        VqganSpec {
            channel_mult: vec![1, usize::MAX],
            ..golden_spec()
        },
        VqganSpec {
            resolution: 66,
            ..golden_spec()
        },
    ] {
        let error = load(&spec, &tensors).err().unwrap().to_string();
        assert!(error.contains("vqgan"), "{error}");
    }
}

/// The VQGAN once more, one layer after the other through the kernels' slow references.
struct Slow<'a> {
    spec: &'a VqganSpec,
    tensors: &'a Tensors,
}

/// `[side, side, channels]`, flattened.
type Picture = (usize, Vec<f32>);

impl Slow<'_> {
    fn tensor(&self, path: &str, leaf: &str) -> (&[usize], &[f32]) {
        let (shape, data) = &self.tensors[&format!("vqgan.{path}.{leaf}")];
        (shape, data)
    }

    fn conv(
        &self,
        path: &str,
        (side, x): &Picture,
        sampling: Resampling,
        residual: Option<&[f32]>,
    ) -> Picture {
        let (shape, kernel) = self.tensor(path, "kernel");
        let shape: [usize; 4] = shape.try_into().unwrap();
        let bias = self.tensor(path, "bias").1;
        let y = conv::reference(x, [*side; 2], kernel, bias, shape, sampling, residual);
        (
            sampling.output(*side, shape[0]),
            y.into_iter().map(|v| v as f32).collect(),
        )
    }

    fn norm_silu(&self, path: &str, (side, x): &Picture) -> Picture {
        let y = group_norm::reference(x, self.tensor(path, "scale").1, self.tensor(path, "bias").1);
        (*side, y.into_iter().map(|v| v as f32).collect())
    }

    fn resnet(&self, path: &str, x: &Picture) -> Picture {
        let y = self.conv(
            &format!("{path}.Conv_0"),
            &self.norm_silu(&format!("{path}.GroupNorm_0"), x),
            Resampling::Same,
            None,
        );
        let y = self.norm_silu(&format!("{path}.GroupNorm_1"), &y);
        let shortcut = match self
            .tensors
            .contains_key(&format!("vqgan.{path}.Conv_2.kernel"))
        {
            true => self.conv(&format!("{path}.Conv_2"), x, Resampling::Same, None),
            false => x.clone(),
        };
        self.conv(
            &format!("{path}.Conv_1"),
            &y,
            Resampling::Same,
            Some(&shortcut.1),
        )
    }

    fn levels(
        &self,
        mut x: Picture,
        coder: &str,
        block: &str,
        blocks: usize,
        change: (&str, Resampling),
    ) -> Picture {
        for level in 0..self.spec.channel_mult.len() {
            for i in 0..blocks {
                x = self.resnet(&format!("{coder}.{block}_{level}.ResnetBlock_{i}"), &x);
            }
            if level + 1 < self.spec.channel_mult.len() {
                x = self.conv(
                    &format!("{coder}.{block}_{level}.{}_0.Conv_0", change.0),
                    &x,
                    change.1,
                    None,
                );
            }
        }
        x
    }

    fn middle(&self, mut x: Picture, coder: &str) -> Picture {
        for i in 0..2 {
            x = self.resnet(&format!("{coder}.MidBlock_0.ResnetBlock_{i}"), &x);
        }
        x
    }

    fn end(&self, x: &Picture, coder: &str) -> Picture {
        let x = self.norm_silu(&format!("{coder}.GroupNorm_0"), x);
        self.conv(&format!("{coder}.Conv_1"), &x, Resampling::Same, None)
    }

    fn latent(&self, pixels: Vec<f32>) -> Vec<f32> {
        let x = self.conv(
            "encoder.Conv_0",
            &(self.spec.resolution, pixels),
            Resampling::Same,
            None,
        );
        let halve = ("Downsample", Resampling::Halve);
        let x = self.levels(
            x,
            "encoder",
            "DownsamplingBlock",
            self.spec.num_res_blocks,
            halve,
        );
        let x = self.end(&self.middle(x, "encoder"), "encoder");
        self.conv("quant_conv", &x, Resampling::Same, None).1
    }

    fn decode(&self, codes: &[u32]) -> Vec<f32> {
        let width = self.spec.quantized_embed_dim;
        let rows = self.tensor("quantize", "embeddings").1;
        let z = codes
            .iter()
            .flat_map(|&c| rows[c as usize * width..][..width].to_vec())
            .collect();
        let x = self.conv(
            "post_quant_conv",
            &(self.spec.grid(), z),
            Resampling::Same,
            None,
        );
        let x = self.middle(
            self.conv("decoder.Conv_0", &x, Resampling::Same, None),
            "decoder",
        );
        let double = ("Upsample", Resampling::Double);
        let x = self.levels(
            x,
            "decoder",
            "UpsamplingBlock",
            self.spec.num_res_blocks + 1,
            double,
        );
        self.end(&x, "decoder").1
    }
}

/// Numbers in [-1, 1) that look random.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Random weights of about the size that keeps activations near 1.
fn random_tensors(spec: &VqganSpec) -> Tensors {
    let tensor = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let n: usize = shape.iter().product();
        let inputs = n / shape.last().unwrap();
        let scale = if shape.len() == 4 {
            1.7 / (inputs as f32).sqrt()
        } else {
            0.5
        };
        let data = noise(n, i as u64 + 1)
            .into_iter()
            .map(|x| x * scale)
            .collect();
        (name, (shape, data))
    };
    vqgan_tensors(spec)
        .into_iter()
        .enumerate()
        .map(tensor)
        .collect()
}

fn odd_config(
    resolution: usize,
    hidden: usize,
    mult: &[usize],
    blocks: usize,
    z: usize,
    rows: usize,
    embed: usize,
) -> VqganSpec {
    VqganSpec {
        resolution,
        hidden_channels: hidden,
        channel_mult: mult.to_vec(),
        num_res_blocks: blocks,
        z_channels: z,
        num_embeddings: rows,
        quantized_embed_dim: embed,
    }
}

#[test]
fn any_config_of_the_family_agrees_with_the_slow_references() {
    for spec in [
        odd_config(5, 32, &[1], 1, 3, 5, 7),
        odd_config(12, 32, &[2, 1, 3], 2, 8, 33, 4),
        odd_config(10, 64, &[1, 2], 1, 65, 100, 64),
    ] {
        let tensors = random_tensors(&spec);
        let (fast, slow) = (
            load(&spec, &tensors).unwrap(),
            Slow {
                spec: &spec,
                tensors: &tensors,
            },
        );
        let side = spec.resolution;
        let pixels = noise(2 * side * side * 3, 99);
        let frames = Tensor::from_slice(&pixels, (2, side, side, 3), &Device::Cpu).unwrap();
        let slow_z: Vec<f32> = pixels
            .chunks_exact(side * side * 3)
            .flat_map(|p| slow.latent(p.to_vec()))
            .collect();
        assert_close(
            &format!("z of {spec:?}"),
            &flat(&fast.latent(&frames).unwrap()),
            &slow_z,
            1e-4,
        );
        let codes = fast.encode(&frames).unwrap();
        let rows = &tensors["vqgan.quantize.embeddings"].1;
        for (&code, (nearest, distances)) in
            codes
                .concat()
                .iter()
                .zip(codebook::reference(&slow_z, rows, spec.quantized_embed_dim))
        {
            assert!(
                distances[code as usize] - distances[nearest as usize] <= 1e-3,
                "{spec:?}: code {code}"
            );
        }
        let ids = Tensor::from_slice(&codes[1], (1, codes[1].len()), &Device::Cpu).unwrap();
        let decoded = flat(&fast.decode_unclipped(&ids).unwrap());
        assert_close(
            &format!("decoded of {spec:?}"),
            &decoded,
            &slow.decode(&codes[1]),
            1e-4,
        );
    }
}
