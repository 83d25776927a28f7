//! Convolutional networks as lists of layers: LeNet, AlexNet, VGG, ResNet.

use serde::{Deserialize, Serialize};

use super::encoder::HiddenAct;
use crate::error::{Error, Kind, Result};

/// A network over pictures of any size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvNetSpec {
    /// Channels of a picture.
    pub num_channels: usize,
    /// The ε of batch norms.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// The layers, in order.
    pub layers: Vec<ConvLayer>,
}

/// The default of PyTorch's `BatchNorm2d`.
fn default_norm_eps() -> f64 {
    1e-5
}

/// One layer; `name` is the prefix of its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "layer", rename_all = "snake_case", deny_unknown_fields)]
pub enum ConvLayer {
    /// A convolution, and the batch norm after it.
    Conv {
        /// Prefix of its tensors.
        name: String,
        /// Output channels.
        out: usize,
        /// Side of the kernel.
        kernel: usize,
        /// The stride.
        #[serde(default = "one")]
        stride: usize,
        /// Zero padding on every side.
        #[serde(default)]
        padding: usize,
        /// Whether it has a bias.
        #[serde(default)]
        bias: bool,
        /// Prefix of the batch norm's tensors, where there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        norm: Option<String>,
    },
    /// An activation function.
    Activation {
        /// The function.
        act: HiddenAct,
    },
    /// A pooling layer.
    Pool {
        /// The kind of pooling.
        kind: Pool,
        /// Side of the window.
        size: usize,
        /// The stride.
        stride: usize,
        /// Padding on every side.
        #[serde(default)]
        padding: usize,
    },
    /// Average pooling to a fixed size (PyTorch's `AdaptiveAvgPool2d`).
    AdaptivePool {
        /// Side of the output.
        side: usize,
    },
    /// A residual block (arXiv 1512.03385).
    Residual {
        /// Prefix of its tensors.
        name: String,
        /// The block.
        block: Residual,
    },
    /// Stages of residual blocks, each of half the resolution of the one before; the output of stage N has
    /// the name `stageN`.
    Stages {
        /// Of its tensors: `{name}.{stage}.{block}`.
        name: String,
        /// The kind of blocks.
        kind: ResidualKind,
        /// Channels of each stage.
        widths: Vec<usize>,
        /// Blocks of each stage.
        depths: Vec<usize>,
        /// Whether the first stage halves the resolution too.
        #[serde(default)]
        first_halves: bool,
        /// As [`Residual::stride_in_first`].
        #[serde(default)]
        stride_in_first: bool,
    },
    /// Names the output of the layer before it.
    Tap {
        /// The name.
        name: String,
    },
    /// Flattens the feature map, channel by channel.
    Flatten,
    /// A linear layer with a bias.
    Linear {
        /// Prefix of its tensors.
        name: String,
        /// Output size; the number of rows of the stored matrix when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        out: Option<usize>,
    },
}

fn one() -> usize {
    1
}

/// The kind of pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The maximum.
    Max,
    /// The mean, padding counted as zeros.
    Mean,
}

/// The kind of a residual block; each of its convolutions has a batch norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResidualKind {
    /// 3×3 and 3×3 (ResNet-18 and 34).
    Basic,
    /// 1×1 to a quarter of the channels, 3×3, 1×1 (ResNet-50 and larger).
    Bottleneck,
}

/// A residual block; its shortcut is a 1×1 convolution where the sizes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residual {
    /// Its convolutions.
    pub kind: ResidualKind,
    /// Output channels.
    pub out: usize,
    /// The stride.
    pub stride: usize,
    /// Whether a bottleneck's stride is in its first convolution, as in the paper, instead of its second ("v1.5").
    #[serde(default)]
    pub stride_in_first: bool,
}

/// A convolution of a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResidualConv {
    /// Output channels.
    pub out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// The stride.
    pub stride: usize,
}

impl Residual {
    /// Its convolutions in order, with a ReLU between two.
    pub fn convs(self) -> Vec<ResidualConv> {
        let conv = |out, kernel, stride| ResidualConv {
            out,
            kernel,
            stride,
        };
        let inner = self.out / 4;
        let (first, second) = match self.stride_in_first {
            true => (self.stride, 1),
            false => (1, self.stride),
        };
        match self.kind {
            ResidualKind::Basic => vec![conv(self.out, 3, self.stride), conv(self.out, 3, 1)],
            ResidualKind::Bottleneck => vec![
                conv(inner, 1, first),
                conv(inner, 3, second),
                conv(self.out, 1, 1),
            ],
        }
    }
}

impl ConvNetSpec {
    /// The layers, with stages replaced by their blocks.
    ///
    /// # Errors
    /// As [`ConvNetSpec::validate`].
    pub fn unfolded(&self) -> Result<Vec<ConvLayer>> {
        self.validate()?;
        Ok(self.layers.iter().flat_map(ConvLayer::unfolded).collect())
    }

    /// The network without its classification head: the encoder, whose output is a feature map.
    pub fn grid(mut self) -> Self {
        let is_behind = |layer: &ConvLayer| {
            matches!(
                layer,
                ConvLayer::AdaptivePool { .. } | ConvLayer::Flatten | ConvLayer::Linear { .. }
            )
        };
        let end = self.layers.iter().position(is_behind);
        self.layers.truncate(end.unwrap_or(self.layers.len()));
        self
    }

    /// The convolutions of that encoder over a picture of `side` pixels, one after another, shortcuts behind their blocks.
    ///
    /// # Errors
    /// As [`ConvNetSpec::validate`]; `BadInput` for a picture that is smaller than a kernel.
    pub fn convolutions(&self, side: usize) -> Result<Vec<Convolution>> {
        let mut walk = Walk {
            side,
            channels: self.num_channels,
            seen: Vec::new(),
        };
        for layer in self.clone().grid().unfolded()? {
            walk.layer(&layer)?;
        }
        Ok(walk.seen)
    }

    /// Channels of that grid of features.
    pub fn grid_channels(&self) -> usize {
        let of = |channels, layer: &ConvLayer| match layer {
            ConvLayer::Conv { out, .. } => *out,
            ConvLayer::Residual { block, .. } => block.out,
            ConvLayer::Stages { widths, .. } => widths.last().copied().unwrap_or(channels),
            _ => channels,
        };
        let grid = self.clone().grid();
        grid.layers.iter().fold(self.num_channels, of)
    }

    /// # Errors
    /// `BadInput` for invalid sizes, naming the layer.
    pub fn validate(&self) -> Result<()> {
        super::in_range("num_channels", self.num_channels)?;
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            let eps = self.norm_eps;
            return Err(bad(format!(
                "norm_eps is {eps}, expected a positive number"
            )));
        }
        for (at, layer) in self.layers.iter().enumerate() {
            layer.validate(&format!("layers.{at}"))?;
        }
        Ok(())
    }
}

/// A convolution as it stands in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// Channels that go in.
    pub inputs: usize,
    /// Output channels.
    pub out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Side of what comes out.
    pub side: usize,
    /// Numbers of each channel beside the kernel: its bias, and four of its batch norm.
    pub numbers_a_channel: usize,
}

/// Numbers that a batch norm keeps of a channel: scale, offset, mean and variance.
const NORM_NUMBERS: usize = 4;

/// How far a picture has come through the layers.
struct Walk {
    side: usize,
    channels: usize,
    seen: Vec<Convolution>,
}

impl Walk {
    fn layer(&mut self, layer: &ConvLayer) -> Result<()> {
        match layer {
            ConvLayer::Conv {
                out,
                kernel,
                stride,
                padding,
                bias,
                norm,
                ..
            } => {
                let norm = if norm.is_some() { NORM_NUMBERS } else { 0 };
                self.slide(*kernel, *stride, *padding)?;
                self.convolve(*out, *kernel, usize::from(*bias) + norm);
            }
            ConvLayer::Pool {
                size,
                stride,
                padding,
                ..
            } => self.slide(*size, *stride, *padding)?,
            ConvLayer::Residual { block, .. } => self.block(*block)?,
            _ => {}
        }
        Ok(())
    }

    fn block(&mut self, block: Residual) -> Result<()> {
        let before = self.channels;
        for conv in block.convs() {
            self.slide(conv.kernel, conv.stride, conv.kernel / 2)?;
            self.convolve(conv.out, conv.kernel, NORM_NUMBERS);
        }
        if before != block.out || block.stride != 1 {
            self.channels = before;
            self.convolve(block.out, 1, NORM_NUMBERS);
        }
        Ok(())
    }

    /// The picture's side becomes that of the places where a square of `size` pixels fits.
    fn slide(&mut self, size: usize, stride: usize, padding: usize) -> Result<()> {
        let room = (self.side + 2 * padding).checked_sub(size);
        let room = room.ok_or_else(|| {
            bad(format!(
                "a picture of {} pixels is smaller than a kernel of {size}",
                self.side
            ))
        })?;
        self.side = room / stride.max(1) + 1;
        Ok(())
    }

    fn convolve(&mut self, out: usize, kernel: usize, numbers_a_channel: usize) {
        self.seen.push(Convolution {
            inputs: self.channels,
            out,
            kernel,
            side: self.side,
            numbers_a_channel,
        });
        self.channels = out;
    }
}

impl ConvLayer {
    fn unfolded(&self) -> Vec<Self> {
        let Self::Stages {
            name,
            kind,
            widths,
            depths,
            first_halves,
            stride_in_first,
        } = self
        else {
            return vec![self.clone()];
        };
        let mut layers = Vec::new();
        for (stage, (&out, &depth)) in widths.iter().zip(depths).enumerate() {
            let halves = stage > 0 || *first_halves;
            layers.extend((0..depth).map(|block| Self::Residual {
                name: format!("{name}.{stage}.{block}"),
                block: Residual {
                    kind: *kind,
                    out,
                    stride: if block == 0 && halves { 2 } else { 1 },
                    stride_in_first: *stride_in_first,
                },
            }));
            layers.push(Self::Tap {
                name: format!("stage{}", stage + 1),
            });
        }
        layers
    }

    fn validate(&self, at: &str) -> Result<()> {
        let sizes = |sizes: &[(&str, usize)]| {
            let mut sizes = sizes.iter();
            sizes.try_for_each(|(key, size)| super::in_range(&format!("{at}.{key}"), *size))
        };
        match self {
            Self::Conv {
                out,
                kernel,
                stride,
                padding,
                ..
            } => {
                small(at, "kernel", *kernel)?;
                sizes(&[("out", *out), ("stride", *stride)])?;
                padded(at, *padding, *kernel)
            }
            Self::Pool {
                size,
                stride,
                padding,
                ..
            } => {
                small(at, "size", *size)?;
                sizes(&[("stride", *stride)])?;
                padded(at, *padding, size / 2 + 1)
            }
            Self::AdaptivePool { side } => small(at, "side", *side),
            Self::Residual { block, .. } => {
                sizes(&[("out", block.out), ("stride", block.stride)])?;
                whole_quarters(at, block.kind, block.out)
            }
            Self::Stages {
                kind,
                widths,
                depths,
                ..
            } => stages(at, *kind, widths, depths),
            Self::Linear { out, .. } => sizes(&[("out", out.unwrap_or(1))]),
            Self::Activation { .. } | Self::Tap { .. } | Self::Flatten => Ok(()),
        }
    }
}

/// # Errors
/// `BadInput` for a value outside the range.
fn small(at: &str, key: &str, value: usize) -> Result<()> {
    let most = super::MAX_LAYERS;
    if (1..=most).contains(&value) {
        return Ok(());
    }
    let message = format!("{at}.{key} is {value}, expected 1 to {most}");
    Err(bad(message))
}

/// # Errors
/// `BadInput` for padding that is not smaller than the window of `size`.
fn padded(at: &str, padding: usize, size: usize) -> Result<()> {
    if padding < size {
        return Ok(());
    }
    Err(bad(format!(
        "{at}.padding is {padding}, expected less than {size}"
    )))
}

/// # Errors
/// `BadInput` for a bottleneck whose channels are not a multiple of four.
fn whole_quarters(at: &str, kind: ResidualKind, out: usize) -> Result<()> {
    if kind == ResidualKind::Basic || out.is_multiple_of(4) {
        return Ok(());
    }
    Err(bad(format!(
        "{at} is a bottleneck of {out} channels, expected a multiple of 4"
    )))
}

/// # Errors
/// `BadInput` for stages without a width or a depth, and as [`whole_quarters`].
fn stages(at: &str, kind: ResidualKind, widths: &[usize], depths: &[usize]) -> Result<()> {
    if widths.len() != depths.len() {
        return Err(bad(format!(
            "{at} has {} widths and {} depths, expected as many",
            widths.len(),
            depths.len()
        )));
    }
    for (&width, &depth) in widths.iter().zip(depths) {
        super::in_range(&format!("{at}.widths"), width)?;
        small(at, "depths", depth)?;
        whole_quarters(at, kind, width)?;
    }
    Ok(())
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
