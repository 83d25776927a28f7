//! Convolutional networks: a list of layers, run one picture at a time.
//!
//! Feature maps are `[height, width, channels]`. A batch norm is folded into the convolution
//! before it when the weights are loaded.

use longreel_kernels::conv::{Kernel, Resampling, Start, conv};

use crate::{
    checkpoint::weights::Weights,
    error::{Error, Kind, Result},
    layers::linear::Linear,
    spec::{
        conv_net::{ConvLayer, ConvNetSpec, Pool, Residual},
        encoder::HiddenAct,
    },
};

/// A network with its weights.
pub struct ConvNet {
    channels: usize,
    /// Channels of the output.
    out_channels: usize,
    layers: Vec<ConvNetLayer>,
}

/// A picture or a feature map.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `[height, width, channels]`.
    pub data: Vec<f32>,
}

enum ConvNetLayer {
    Conv(ConvWeights),
    Activation(HiddenAct),
    Pool {
        kind: Pool,
        size: usize,
        sampling: Resampling,
    },
    AdaptivePool(usize),
    Residual(ResidualBlock),
    Tap(String),
    Flatten,
    Linear(Linear),
}

struct ConvWeights {
    kernel: Kernel,
    sampling: Resampling,
}

struct ResidualBlock {
    convs: Vec<ConvWeights>,
    /// The projection of the input, where the sizes differ.
    shortcut: Option<ConvWeights>,
}

impl ConvNet {
    /// Takes the tensors that the layers of `spec` name.
    pub fn load(spec: &ConvNetSpec, weights: &mut Weights) -> Result<Self> {
        let mut loader = Loader {
            weights,
            channels: spec.num_channels,
            norm_eps: spec.norm_eps,
        };
        let layers = spec.unfolded()?;
        let layers = layers.iter().map(|layer| loader.layer(layer));
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            channels: spec.num_channels,
            out_channels: loader.channels,
        })
    }

    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// pixels `[n, channels, height, width]` → `[n, out]`: the output's mean over its pixels.
    ///
    /// # Errors
    /// As [`ConvNet::forward`].
    pub fn pooled(&self, pixels: &[f32], size: [usize; 2]) -> Result<Vec<f32>> {
        let ends = self.run(pixels, size, self.layers.len())?;
        Ok(ends.iter().flat_map(|x| adaptive_pool(x, 1).data).collect())
    }

    /// Names of the layers whose outputs [`ConvNet::grids`] can return.
    pub fn taps(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().filter_map(|layer| match layer {
            ConvNetLayer::Tap(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// pixels `[n, channels, height, width]` → `[n, out]`: class logits, of a network that ends in a linear layer.
    ///
    /// # Errors
    /// `BadInput` for pictures that are too small, `Compute` when a weight or a pixel is NaN or infinite.
    pub fn forward(&self, pixels: &[f32], size: [usize; 2]) -> Result<Vec<f32>> {
        let ends = self.run(pixels, size, self.layers.len())?;
        Ok(ends.into_iter().flat_map(|map| map.data).collect())
    }

    /// pixels `[n, channels, height, width]` → the feature maps at `tap`.
    ///
    /// # Errors
    /// `Usage` when there is no such tap, and as [`ConvNet::forward`].
    pub fn grids(&self, pixels: &[f32], size: [usize; 2], tap: &str) -> Result<Vec<Map>> {
        let is_it = |layer: &ConvNetLayer| matches!(layer, ConvNetLayer::Tap(name) if name == tap);
        let end = self.layers.iter().position(is_it).ok_or_else(|| {
            let known: Vec<&str> = self.taps().collect();
            let message = format!("no tap {tap:?}, expected one of {}", known.join(", "));
            Error::new(Kind::Usage, message)
        })?;
        self.run(pixels, size, end)
    }

    /// Each picture after the first `layers` layers.
    fn run(&self, pixels: &[f32], size: [usize; 2], layers: usize) -> Result<Vec<Map>> {
        let of_picture = self.channels * size[0] * size[1];
        if of_picture == 0 || !pixels.len().is_multiple_of(of_picture) {
            let message = format!(
                "{} numbers, expected pictures of {}x{}x{}",
                pixels.len(),
                self.channels,
                size[0],
                size[1]
            );
            return Err(Error::new(Kind::Internal, message));
        }
        let pictures = pixels.chunks_exact(of_picture);
        let run = |picture| {
            let picture = channels_last(picture, self.channels, size);
            let end = self.layers[..layers]
                .iter()
                .try_fold(picture, |map, layer| layer.forward(map))?;
            check_finite(end)
        };
        pictures.map(run).collect()
    }
}

/// # Errors
/// `Compute` for NaN or infinity.
fn check_finite(map: Map) -> Result<Map> {
    match map.data.iter().find(|x| !x.is_finite()) {
        None => Ok(map),
        Some(found) => {
            let message = format!(
                "a feature of a picture is {found}, expected a finite number: a weight or a pixel is NaN or too large"
            );
            Err(Error::new(Kind::Compute, message))
        }
    }
}

/// State while a list of layers is loaded.
struct Loader<'a> {
    weights: &'a mut Weights,
    /// Channels of the next layer's input.
    channels: usize,
    norm_eps: f64,
}

impl Loader<'_> {
    fn layer(&mut self, layer: &ConvLayer) -> Result<ConvNetLayer> {
        Ok(match layer {
            ConvLayer::Conv {
                name,
                out,
                kernel,
                stride,
                padding,
                bias,
                norm,
            } => {
                let sampling = Resampling::Strided {
                    stride: *stride,
                    padding: *padding,
                };
                ConvNetLayer::Conv(self.conv(
                    name,
                    [*out, *kernel],
                    sampling,
                    *bias,
                    norm.as_deref(),
                )?)
            }
            ConvLayer::Activation { act } => ConvNetLayer::Activation(*act),
            ConvLayer::Pool {
                kind,
                size,
                stride,
                padding,
            } => ConvNetLayer::Pool {
                kind: *kind,
                size: *size,
                sampling: Resampling::Strided {
                    stride: *stride,
                    padding: *padding,
                },
            },
            ConvLayer::AdaptivePool { side } => ConvNetLayer::AdaptivePool(*side),
            ConvLayer::Residual { name, block } => {
                ConvNetLayer::Residual(self.block(name, *block)?)
            }
            ConvLayer::Stages { .. } => {
                let message = "a `stages` entry among layers that were already unfolded";
                return Err(Error::new(Kind::Internal, message));
            }
            ConvLayer::Tap { name } => ConvNetLayer::Tap(name.clone()),
            ConvLayer::Flatten => ConvNetLayer::Flatten,
            ConvLayer::Linear { name, out } => ConvNetLayer::Linear(self.linear(name, *out)?),
        })
    }

    /// Takes `{name}.weight` of shape `[out, channels, side, side]`, its bias, and the batch norm that follows.
    fn conv(
        &mut self,
        name: &str,
        [out, side]: [usize; 2],
        sampling: Resampling,
        bias: bool,
        norm: Option<&str>,
    ) -> Result<ConvWeights> {
        let channels = std::mem::replace(&mut self.channels, out);
        let shape = [out, channels, side, side];
        let mut weight = self.weights.numbers(&format!("{name}.weight"), &shape)?;
        let mut offset = match bias {
            true => self.weights.vector(&format!("{name}.bias"), out)?,
            false => vec![0.0; out],
        };
        if let Some(norm) = norm {
            self.fold(norm, &mut weight, &mut offset)?;
        }
        let weight = taps_first(&weight, [out, channels, side * side]);
        Ok(ConvWeights {
            kernel: Kernel::pack(&weight, &offset, [side, side, channels, out]),
            sampling,
        })
    }

    /// Folds the batch norm `name` into weight `[out, …]` and offset `[out]`:
    /// `(x − mean) / √(variance + ε) · weight + bias` (arXiv 1502.03167, with the running statistics).
    fn fold(&mut self, name: &str, weight: &mut [f32], offset: &mut [f32]) -> Result<()> {
        let out = offset.len();
        let mut part = |part: &str| self.weights.vector(&format!("{name}.{part}"), out);
        let (scale, bias) = (part("weight")?, part("bias")?);
        let (mean, variance) = (part("running_mean")?, part("running_var")?);
        // In f64, rounded once: folding must not cost more than the batch norm's own rounding.
        let of_channel = weight.len() / out;
        for (c, row) in weight.chunks_exact_mut(of_channel).enumerate() {
            let spread = (f64::from(variance[c]) + self.norm_eps).sqrt();
            let factor = f64::from(scale[c]) / spread;
            row.iter_mut()
                .for_each(|w| *w = (f64::from(*w) * factor) as f32);
            let centred = f64::from(offset[c]) - f64::from(mean[c]);
            offset[c] = (centred * factor + f64::from(bias[c])) as f32;
        }
        Ok(())
    }

    /// Takes `{name}.convN`, `{name}.normN`, and `{name}.shortcut` where the sizes differ.
    fn block(&mut self, name: &str, block: Residual) -> Result<ResidualBlock> {
        let before = self.channels;
        let mut convs = Vec::new();
        for (n, part) in block.convs().iter().enumerate() {
            let (conv, norm) = (format!("{name}.conv{n}"), format!("{name}.norm{n}"));
            let sampling = Resampling::Strided {
                stride: part.stride,
                padding: part.kernel / 2,
            };
            convs.push(self.conv(&conv, [part.out, part.kernel], sampling, false, Some(&norm))?);
        }
        let mut shortcut = None;
        if before != block.out || block.stride != 1 {
            let (conv, norm) = (format!("{name}.shortcut"), format!("{name}.shortcut_norm"));
            let sampling = Resampling::Strided {
                stride: block.stride,
                padding: 0,
            };
            // The convolutions above changed it; the shortcut reads the block's input.
            self.channels = before;
            shortcut = Some(self.conv(&conv, [block.out, 1], sampling, false, Some(&norm))?);
        }
        Ok(ResidualBlock { convs, shortcut })
    }

    /// Takes `{name}.weight`, with one column per number of the flattened feature map, and `{name}.bias`.
    fn linear(&mut self, name: &str, out: Option<usize>) -> Result<Linear> {
        let tensor = format!("{name}.weight");
        let (rows, columns) = match self.weights.shape(&tensor) {
            Some(&[rows, columns]) => (rows, columns),
            found => {
                let message = format!("tensor {tensor} has shape {found:?}, expected [out, in]");
                return Err(Error::new(Kind::BadInput, message));
            }
        };
        let out = out.unwrap_or(rows);
        self.channels = out;
        Linear::named(self.weights, name, out, columns, true)
    }
}

impl ConvNetLayer {
    fn forward(&self, x: Map) -> Result<Map> {
        Ok(match self {
            Self::Conv(conv) => conv.forward(&x)?,
            Self::Activation(act) => activated(*act, x),
            Self::Pool {
                kind,
                size,
                sampling,
            } => pool(*kind, *size, *sampling, &x)?,
            Self::AdaptivePool(side) => adaptive_pool(&x, *side),
            Self::Residual(block) => block.forward(x)?,
            Self::Tap(_) => x,
            Self::Flatten => row(channels_first(&x)),
            Self::Linear(matrix) => product(matrix, &x)?,
        })
    }
}

impl Map {
    fn channels(&self) -> usize {
        self.data.len() / (self.height * self.width)
    }

    fn pixel(&self, line: usize, column: usize) -> &[f32] {
        let channels = self.channels();
        &self.data[(line * self.width + column) * channels..][..channels]
    }

    /// Rows and columns after kernels or pooling windows of `side`.
    fn sampled(&self, sampling: Resampling, side: usize) -> Result<[usize; 2]> {
        let size = [self.height, self.width].map(|n| sampling.output(n, side));
        if size.contains(&0) {
            let message = format!(
                "a feature map of {}x{} pixels, expected at least {side}x{side}: the picture is too small",
                self.height, self.width
            );
            return Err(Error::new(Kind::BadInput, message));
        }
        Ok(size)
    }
}

impl ConvWeights {
    fn forward(&self, x: &Map) -> Result<Map> {
        let [side, _, _, channels] = self.kernel.shape();
        let [height, width] = x.sampled(self.sampling, side)?;
        let mut data = vec![0.0; height * width * channels];
        self.run(x, Start::Bias, &mut data);
        Ok(Map {
            height,
            width,
            data,
        })
    }

    fn run(&self, x: &Map, start: Start, y: &mut [f32]) {
        let size = [x.height, x.width];
        conv(&x.data, size, &self.kernel, self.sampling, start, y);
    }
}

impl ResidualBlock {
    fn forward(&self, x: Map) -> Result<Map> {
        let Some((last, before)) = self.convs.split_last() else {
            return Ok(x);
        };
        let mut inner: Option<Map> = None;
        for conv in before {
            let y = conv.forward(inner.as_ref().unwrap_or(&x))?;
            inner = Some(activated(HiddenAct::Relu, y));
        }
        let mut sum = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&x)?,
            None => x.clone(),
        };
        let inner = inner.unwrap_or(x);
        last.run(&inner, Start::Residual, &mut sum.data);
        Ok(activated(HiddenAct::Relu, sum))
    }
}

fn activated(act: HiddenAct, mut x: Map) -> Map {
    act.apply(&mut x.data);
    x
}

/// A feature map of one pixel.
fn row(data: Vec<f32>) -> Map {
    Map {
        height: 1,
        width: 1,
        data,
    }
}

fn product(matrix: &Linear, x: &Map) -> Result<Map> {
    if x.data.len() == matrix.in_features() {
        return Ok(row(matrix.forward(&x.data)));
    }
    let message = format!(
        "the flattened feature map has {} numbers, the linear layer takes {}: expected a picture of another size",
        x.data.len(),
        matrix.in_features()
    );
    Err(Error::new(Kind::BadInput, message))
}

/// x `[h, w, c]` → `[oh, ow, c]`: pooling windows of `size`.
fn pool(kind: Pool, size: usize, sampling: Resampling, x: &Map) -> Result<Map> {
    let [height, width] = x.sampled(sampling, size)?;
    let mut data = Vec::with_capacity(height * width * x.channels());
    for (line, column) in places(height, width) {
        let seen = places(size, size).filter_map(|(down, right)| {
            let line = sampling.input(line, down, size, x.height)?;
            let column = sampling.input(column, right, size, x.width)?;
            Some(x.pixel(line, column))
        });
        data.extend(match kind {
            Pool::Max => largest(seen, x.channels()),
            // mean(seen => Divided by the whole window, padding included, as PyTorch's default
            // `count_include_pad`.
            Pool::Mean => mean(seen, x.channels(), size * size),
        });
    }
    Ok(Map {
        height,
        width,
        data,
    })
}

/// x `[h, w, c]` → `[side, side, c]`: row `i` is the mean of rows `⌊i h / side⌋` to `⌈(i + 1) h / side⌉`, columns alike.
fn adaptive_pool(x: &Map, side: usize) -> Map {
    let reach = |i: usize, n: usize| (i * n / side, ((i + 1) * n).div_ceil(side));
    let mut data = Vec::with_capacity(side * side * x.channels());
    for (line, column) in places(side, side) {
        let ((top, bottom), (left, right)) = (reach(line, x.height), reach(column, x.width));
        let seen = places(bottom - top, right - left).map(|(d, r)| x.pixel(top + d, left + r));
        data.extend(mean(seen, x.channels(), (bottom - top) * (right - left)));
    }
    Map {
        height: side,
        width: side,
        data,
    }
}

fn places(lines: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    (0..lines).flat_map(move |line| (0..columns).map(move |column| (line, column)))
}

/// The maximum of each channel; NaN propagates.
fn largest<'a>(pixels: impl Iterator<Item = &'a [f32]>, channels: usize) -> Vec<f32> {
    let mut most = vec![f32::NEG_INFINITY; channels];
    for pixel in pixels {
        for (most, x) in most.iter_mut().zip(pixel) {
            // After NaN no comparison is true, so that it stays.
            if *x > *most || x.is_nan() {
                *most = *x;
            }
        }
    }
    most
}

fn mean<'a>(pixels: impl Iterator<Item = &'a [f32]>, channels: usize, n: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f64; channels];
    for pixel in pixels {
        let sums = sum.iter_mut().zip(pixel);
        sums.for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sum.into_iter().map(|sum| (sum / n as f64) as f32).collect()
}

/// picture `[channels, h, w]` → `[h, w, channels]`.
fn channels_last(picture: &[f32], channels: usize, [height, width]: [usize; 2]) -> Map {
    let pixels = height * width;
    let of_pixel = |at: usize| (0..channels).map(move |c| picture[c * pixels + at]);
    Map {
        height,
        width,
        data: (0..pixels).flat_map(of_pixel).collect(),
    }
}

/// `[h, w, channels]` → `[channels, h, w]`.
fn channels_first(map: &Map) -> Vec<f32> {
    let channels = map.channels();
    let of_channel = |c: usize| map.data.chunks_exact(channels).map(move |pixel| pixel[c]);
    (0..channels).flat_map(of_channel).collect()
}

/// weight `[out, in, taps]` → `[taps, in, out]`.
pub(crate) fn taps_first(weight: &[f32], [out, channels, taps]: [usize; 3]) -> Vec<f32> {
    let row = |tap: usize, c: usize| (0..out).map(move |o| weight[(o * channels + c) * taps + tap]);
    places(taps, channels)
        .flat_map(|(tap, c)| row(tap, c))
        .collect()
}
