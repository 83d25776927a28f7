//! The VQGAN that turns a frame into codes and codes into a frame
//! (`lwm/vqgan.py`; Esser et al., "Taming Transformers").
//!
//! Encoder and decoder are each one list of layers, run one frame at a time:
//! memory does not grow with the batch. A channel layout is NHWC throughout,
//! weights are as flax has them, and so are the names.

use candle_core::{Device, Tensor};
use longreel_kernels::{
    codebook::Codebook,
    conv::{Kernel, Resampling, Start, conv},
    group_norm::group_norm_silu,
};

use crate::{
    checkpoint::weights::Weights,
    error::{Context, Error, Kind, Result},
    spec::VqganSpec,
};

/// Channels of a picture.
pub(crate) const RGB: usize = 3;

/// Called after each layer with its flax path, its shape `[h, w, channels]` and its output.
///
/// A GroupNorm's output is taken after its SiLU, a ResBlock's after its shortcut,
/// under the block's own path.
pub type LayerTrace<'a> = &'a mut dyn FnMut(&str, [usize; 3], &[f32]);

/// One step of the encoder or decoder, before its weights are known.
pub(crate) enum LayerSpec {
    /// A convolution with a kernel of `shape`.
    Conv {
        path: String,
        shape: [usize; 4],
        sampling: Resampling,
    },
    /// A residual block from one number of channels to another.
    Resnet { path: String, channels: [usize; 2] },
    /// GroupNorm and SiLU.
    NormSilu { path: String, channels: usize },
}

/// One step with its weights.
enum VqganLayer {
    Conv {
        path: String,
        kernel: Kernel,
        sampling: Resampling,
    },
    Resnet {
        path: String,
        block: Box<ResnetWeights>,
    },
    NormSilu {
        path: String,
        norm: NormWeights,
    },
}

struct NormWeights {
    scale: Vec<f32>,
    bias: Vec<f32>,
}

struct ResnetWeights {
    norms: [NormWeights; 2],
    convs: [Kernel; 2],
    /// The 1×1 convolution of the shortcut, when the channel count changes.
    shortcut: Option<Kernel>,
}

/// A loaded VQGAN.
pub struct Vqgan {
    spec: VqganSpec,
    encoder: Vec<VqganLayer>,
    decoder: Vec<VqganLayer>,
    codebook: Codebook,
    /// `[num_embeddings, quantized_embed_dim]`.
    rows: Vec<f32>,
}

impl Vqgan {
    /// Takes the tensors that `checkpoint::layout::vqgan_tensors` lists for `spec` out of `weights`.
    pub fn load(spec: &VqganSpec, weights: &mut Weights) -> Result<Self> {
        spec.validate()?;
        let doing = || "load the VQGAN";
        let rows = take(weights, EMBEDDINGS, &codebook_shape(spec)).doing(doing)?;
        let mut load = |plans: Vec<LayerSpec>| -> Result<Vec<VqganLayer>> {
            plans.into_iter().map(|p| p.load(weights)).collect()
        };
        Ok(Self {
            spec: spec.clone(),
            encoder: load(encoder_plan(spec)).doing(doing)?,
            decoder: load(decoder_plan(spec)).doing(doing)?,
            codebook: Codebook::pack(&rows, spec.quantized_embed_dim),
            rows,
        })
    }

    /// The shape it was loaded with.
    pub fn spec(&self) -> &VqganSpec {
        &self.spec
    }

    /// pixels `[n, h, w, 3]` in [-1, 1] → z `[n, g, g, e]`, before quantization.
    pub fn latent(&self, pixels: &Tensor) -> Result<Tensor> {
        self.latent_traced(pixels, &mut |_, _, _| {})
    }

    /// [`Vqgan::latent`], showing each layer's output.
    pub fn latent_traced(&self, pixels: &Tensor, trace: LayerTrace<'_>) -> Result<Tensor> {
        let (n, grid) = (self.frames_of(pixels)?, self.spec.grid());
        let z = self.latents(pixels, trace)?.concat();
        Ok(Tensor::from_vec(
            z,
            (n, grid, grid, self.spec.quantized_embed_dim),
            &Device::Cpu,
        )?)
    }

    /// pixels `[n, h, w, 3]` in [-1, 1] → n lists of `g · g` codes, row-major.
    pub fn encode(&self, pixels: &Tensor) -> Result<Vec<Vec<u32>>> {
        let latents = self.latents(pixels, &mut |_, _, _| {})?;
        Ok(latents.iter().map(|z| self.codebook.nearest(z)).collect())
    }

    /// codes `[n, g · g]` → the codebook's rows `[n, g, g, e]`.
    pub fn quantized(&self, codes: &Tensor) -> Result<Tensor> {
        let (frames, grid) = (self.rows_of(codes)?, self.spec.grid());
        let shape = (frames.len(), grid, grid, self.spec.quantized_embed_dim);
        Ok(Tensor::from_vec(frames.concat(), shape, &Device::Cpu)?)
    }

    /// codes `[n, g · g]` → pixels `[n, h, w, 3]`, clipped to [-1, 1].
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        Ok(self.decode_unclipped(codes)?.clamp(-1.0_f32, 1.0_f32)?)
    }

    /// codes `[n, g · g]` → pixels `[n, h, w, 3]` as the last layer gives them.
    pub fn decode_unclipped(&self, codes: &Tensor) -> Result<Tensor> {
        self.decode_traced(codes, &mut |_, _, _| {})
    }

    /// [`Vqgan::decode_unclipped`], showing each layer's output.
    pub fn decode_traced(&self, codes: &Tensor, trace: LayerTrace<'_>) -> Result<Tensor> {
        let frames = self.rows_of(codes)?;
        let (grid, side) = (self.spec.grid(), self.spec.resolution);
        let mut pixels = Vec::with_capacity(frames.len() * side * side * RGB);
        let shape = (frames.len(), side, side, RGB);
        let mut buffers = Buffers::default();
        for rows in frames {
            let picture = LayerOutput {
                height: grid,
                width: grid,
                data: rows,
            };
            pixels.extend(run(&self.decoder, picture, &mut buffers, trace).data);
        }
        Ok(Tensor::from_vec(pixels, shape, &Device::Cpu)?)
    }

    /// The number of frames in `pixels`, once its shape is right.
    fn frames_of(&self, pixels: &Tensor) -> Result<usize> {
        let side = self.spec.resolution;
        match *pixels.dims() {
            [n, h, w, RGB] if (h, w) == (side, side) => Ok(n),
            _ => Err(Error::new(
                Kind::BadInput,
                format!(
                    "pixels have shape {:?}, expected [n, {side}, {side}, {RGB}]",
                    pixels.dims()
                ),
            )),
        }
    }

    /// pixels `[n, h, w, 3]` → n times z `[g · g, e]`.
    fn latents(&self, pixels: &Tensor, trace: LayerTrace<'_>) -> Result<Vec<Vec<f32>>> {
        let side = self.spec.resolution;
        let mut buffers = Buffers::default();
        let mut latents = Vec::new();
        for frame in 0..self.frames_of(pixels)? {
            let data = pixels.get(frame)?.flatten_all()?.to_vec1::<f32>()?;
            let picture = LayerOutput {
                height: side,
                width: side,
                data,
            };
            latents.push(run(&self.encoder, picture, &mut buffers, trace).data);
        }
        Ok(latents)
    }

    /// codes `[n, g · g]` → n times the codebook's rows `[g · g, e]`.
    fn rows_of(&self, codes: &Tensor) -> Result<Vec<Vec<f32>>> {
        let expected = self.spec.codes_per_frame();
        if codes.dims().len() != 2 || codes.dims()[1] != expected {
            return Err(Error::new(
                Kind::BadInput,
                format!(
                    "codes have shape {:?}, expected [n, {expected}]",
                    codes.dims()
                ),
            ));
        }
        let codes = codes.to_vec2::<u32>()?;
        codes
            .iter()
            .map(|codes| self.rows_of_frame(codes))
            .collect()
    }

    fn rows_of_frame(&self, codes: &[u32]) -> Result<Vec<f32>> {
        let (n, width) = (self.spec.num_embeddings, self.spec.quantized_embed_dim);
        let mut rows = Vec::with_capacity(codes.len() * width);
        for (i, &code) in codes.iter().enumerate() {
            let Some(row) = self.rows.chunks_exact(width).nth(code as usize) else {
                return Err(Error::new(
                    Kind::BadInput,
                    format!("code {code} at position {i} of a frame, expected a code below {n}"),
                ));
            };
            rows.extend_from_slice(row);
        }
        Ok(rows)
    }
}

/// The codebook's name.
pub(crate) const EMBEDDINGS: &str = "vqgan.quantize.embeddings";

fn codebook_shape(spec: &VqganSpec) -> [usize; 2] {
    [spec.num_embeddings, spec.quantized_embed_dim]
}

/// A path without the `vqgan.` that every tensor's name begins with.
pub(crate) fn tensor_name(path: &str, leaf: &str) -> String {
    format!("vqgan.{path}.{leaf}")
}

fn take(weights: &mut Weights, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    Ok(weights
        .tensor(name, shape)?
        .flatten_all()?
        .to_vec1::<f32>()?)
}

fn conv_plan(
    path: impl Into<String>,
    side: usize,
    channels: [usize; 2],
    sampling: Resampling,
) -> LayerSpec {
    let [cin, cout] = channels;
    LayerSpec::Conv {
        path: path.into(),
        shape: [side, side, cin, cout],
        sampling,
    }
}

/// Residual blocks `0..n` under `path`: the first one changes the channel count.
fn resnet_plans(path: &str, n: usize, [cin, cout]: [usize; 2]) -> impl Iterator<Item = LayerSpec> {
    (0..n).map(move |i| LayerSpec::Resnet {
        path: format!("{path}.ResnetBlock_{i}"),
        channels: [if i == 0 { cin } else { cout }, cout],
    })
}

/// Pixels to z.
pub(crate) fn encoder_plan(spec: &VqganSpec) -> Vec<LayerSpec> {
    let mut channels = spec.hidden_channels;
    let mut plans = vec![conv_plan(
        "encoder.Conv_0",
        3,
        [RGB, channels],
        Resampling::Same,
    )];
    for (level, &mult) in spec.channel_mult.iter().enumerate() {
        let path = format!("encoder.DownsamplingBlock_{level}");
        let out = spec.hidden_channels * mult;
        plans.extend(resnet_plans(&path, spec.num_res_blocks, [channels, out]));
        channels = out;
        if level + 1 < spec.channel_mult.len() {
            plans.push(conv_plan(
                format!("{path}.Downsample_0.Conv_0"),
                3,
                [channels; 2],
                Resampling::Halve,
            ));
        }
    }
    plans.extend(resnet_plans("encoder.MidBlock_0", 2, [channels; 2]));
    plans.push(LayerSpec::NormSilu {
        path: "encoder.GroupNorm_0".into(),
        channels,
    });
    plans.push(conv_plan(
        "encoder.Conv_1",
        3,
        [channels, spec.z_channels],
        Resampling::Same,
    ));
    plans.push(conv_plan(
        "quant_conv",
        1,
        [spec.z_channels, spec.quantized_embed_dim],
        Resampling::Same,
    ));
    plans
}

/// Codebook rows to pixels. `UpsamplingBlock_0` is the first to run, the deepest level.
pub(crate) fn decoder_plan(spec: &VqganSpec) -> Vec<LayerSpec> {
    let deepest = spec.channel_mult.last().copied().unwrap_or(1);
    let mut channels = spec.hidden_channels * deepest;
    let mut plans = vec![
        conv_plan(
            "post_quant_conv",
            1,
            [spec.quantized_embed_dim, spec.z_channels],
            Resampling::Same,
        ),
        conv_plan(
            "decoder.Conv_0",
            3,
            [spec.z_channels, channels],
            Resampling::Same,
        ),
    ];
    plans.extend(resnet_plans("decoder.MidBlock_0", 2, [channels; 2]));
    for (step, &mult) in spec.channel_mult.iter().rev().enumerate() {
        let path = format!("decoder.UpsamplingBlock_{step}");
        let out = spec.hidden_channels * mult;
        plans.extend(resnet_plans(
            &path,
            spec.num_res_blocks + 1,
            [channels, out],
        ));
        channels = out;
        if step + 1 < spec.channel_mult.len() {
            plans.push(conv_plan(
                format!("{path}.Upsample_0.Conv_0"),
                3,
                [channels; 2],
                Resampling::Double,
            ));
        }
    }
    plans.push(LayerSpec::NormSilu {
        path: "decoder.GroupNorm_0".into(),
        channels,
    });
    plans.push(conv_plan(
        "decoder.Conv_1",
        3,
        [channels, RGB],
        Resampling::Same,
    ));
    plans
}

impl LayerSpec {
    fn load(self, weights: &mut Weights) -> Result<VqganLayer> {
        Ok(match self {
            Self::Conv {
                path,
                shape,
                sampling,
            } => VqganLayer::Conv {
                kernel: load_kernel(weights, &path, shape)?,
                path,
                sampling,
            },
            Self::NormSilu { path, channels } => VqganLayer::NormSilu {
                norm: load_norm(weights, &path, channels)?,
                path,
            },
            Self::Resnet { path, channels } => VqganLayer::Resnet {
                block: Box::new(load_resnet(weights, &path, channels)?),
                path,
            },
        })
    }
}

fn load_kernel(weights: &mut Weights, path: &str, shape: [usize; 4]) -> Result<Kernel> {
    let kernel = take(weights, &tensor_name(path, "kernel"), &shape)?;
    let bias = take(weights, &tensor_name(path, "bias"), &shape[3..])?;
    Ok(Kernel::pack(&kernel, &bias, shape))
}

fn load_norm(weights: &mut Weights, path: &str, channels: usize) -> Result<NormWeights> {
    Ok(NormWeights {
        scale: take(weights, &tensor_name(path, "scale"), &[channels])?,
        bias: take(weights, &tensor_name(path, "bias"), &[channels])?,
    })
}

fn load_resnet(
    weights: &mut Weights,
    path: &str,
    [cin, cout]: [usize; 2],
) -> Result<ResnetWeights> {
    let norm = |weights: &mut Weights, i: usize, n: usize| {
        load_norm(weights, &format!("{path}.GroupNorm_{i}"), n)
    };
    let conv = |weights: &mut Weights, i: usize, side: usize, cin: usize| {
        load_kernel(
            weights,
            &format!("{path}.Conv_{i}"),
            [side, side, cin, cout],
        )
    };
    Ok(ResnetWeights {
        norms: [norm(weights, 0, cin)?, norm(weights, 1, cout)?],
        convs: [conv(weights, 0, 3, cin)?, conv(weights, 1, 3, cout)?],
        shortcut: (cin != cout)
            .then(|| conv(weights, 2, 1, cin))
            .transpose()?,
    })
}

/// One frame between two layers: `[height, width, channels]`.
struct LayerOutput {
    height: usize,
    width: usize,
    data: Vec<f32>,
}

impl LayerOutput {
    fn shape(&self) -> [usize; 3] {
        let pixels = self.height * self.width;
        [self.height, self.width, self.data.len() / pixels.max(1)]
    }
}

/// Reused memory of activations: mapping fresh pages costs more time than a GroupNorm.
#[derive(Default)]
struct Buffers(Vec<Vec<f32>>);

impl Buffers {
    /// `len` floats of any content.
    fn take(&mut self, len: usize) -> Vec<f32> {
        let fitting = self.0.iter().position(|b| b.capacity() >= len);
        let mut buffer = fitting.map(|i| self.0.swap_remove(i)).unwrap_or_default();
        buffer.resize(len, 0.0);
        buffer
    }

    fn give(&mut self, buffer: Vec<f32>) {
        // A residual block holds three activations at once; a fourth is never needed again.
        self.0.push(buffer);
        if self.0.len() > 3 {
            self.0.sort_by_key(|b| std::cmp::Reverse(b.capacity()));
            self.0.truncate(3);
        }
    }
}

/// Runs `layers` over one frame.
fn run(
    layers: &[VqganLayer],
    frame: LayerOutput,
    buffers: &mut Buffers,
    trace: LayerTrace<'_>,
) -> LayerOutput {
    layers.iter().fold(frame, |x, layer| {
        let (path, y) = match layer {
            VqganLayer::Conv {
                path,
                kernel,
                sampling,
            } => (path, run_conv(kernel, *sampling, &x, buffers)),
            VqganLayer::NormSilu { path, norm } => (path, run_norm(norm, &x, buffers)),
            VqganLayer::Resnet { path, block } => {
                let y = run_resnet(block, path, x, buffers, trace);
                trace(path, y.shape(), &y.data);
                return y;
            }
        };
        trace(path, y.shape(), &y.data);
        buffers.give(x.data);
        y
    })
}

fn run_conv(
    kernel: &Kernel,
    sampling: Resampling,
    x: &LayerOutput,
    buffers: &mut Buffers,
) -> LayerOutput {
    let [kh, kw, _, channels] = kernel.shape();
    let (height, width) = (sampling.output(x.height, kh), sampling.output(x.width, kw));
    let mut data = buffers.take(height * width * channels);
    conv(
        &x.data,
        [x.height, x.width],
        kernel,
        sampling,
        Start::Bias,
        &mut data,
    );
    LayerOutput {
        height,
        width,
        data,
    }
}

fn run_norm(norm: &NormWeights, x: &LayerOutput, buffers: &mut Buffers) -> LayerOutput {
    let mut data = buffers.take(x.data.len());
    group_norm_silu(&x.data, &norm.scale, &norm.bias, &mut data);
    LayerOutput { data, ..*x }
}

/// `x → conv(silu(gn(conv(silu(gn(x)))))) + shortcut(x)` (`vqgan.py`, `ResnetBlock`).
fn run_resnet(
    block: &ResnetWeights,
    path: &str,
    x: LayerOutput,
    buffers: &mut Buffers,
    trace: LayerTrace<'_>,
) -> LayerOutput {
    let mut show =
        |part: &str, y: &LayerOutput| trace(&format!("{path}.{part}"), y.shape(), &y.data);
    let normed = run_norm(&block.norms[0], &x, buffers);
    show("GroupNorm_0", &normed);
    let hidden = run_conv(&block.convs[0], Resampling::Same, &normed, buffers);
    buffers.give(normed.data);
    show("Conv_0", &hidden);
    let mut sum = match &block.shortcut {
        None => x,
        Some(kernel) => {
            let y = run_conv(kernel, Resampling::Same, &x, buffers);
            buffers.give(x.data);
            show("Conv_2", &y);
            y
        }
    };
    let normed = run_norm(&block.norms[1], &hidden, buffers);
    buffers.give(hidden.data);
    show("GroupNorm_1", &normed);
    let size = [sum.height, sum.width];
    conv(
        &normed.data,
        size,
        &block.convs[1],
        Resampling::Same,
        Start::Residual,
        &mut sum.data,
    );
    buffers.give(normed.data);
    sum
}
