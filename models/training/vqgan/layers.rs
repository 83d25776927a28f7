//! Layers over one picture, forward and backward: those of `vision::vqgan`, a discriminator and VGG16, with the kernels'
//! own gradients.

use std::ops::Range;

use longreel_kernels::{
    conv::{Kernel, Resampling, Start, conv},
    conv_backward::{BackKernel, input_gradient, weight_gradient},
    group_norm::group_norm_silu,
    group_norm_backward::group_norm_silu_backward,
};
use rayon::prelude::*;

use crate::{
    error::Result,
    training::{
        operands::numbers, parameters::Parameters, vqgan::parameter_ranges::ParameterRanges,
    },
    vision::vqgan::{LayerSpec, tensor_name},
};

/// A square picture between two layers: `[side, side, channels]`.
#[derive(Clone)]
pub struct Picture {
    pub side: usize,
    pub data: Vec<f32>,
}

impl Picture {
    fn like(&self) -> Self {
        Self {
            side: self.side,
            data: vec![0.0; self.data.len()],
        }
    }
}

/// The parameters, and where their gradients lie in a gradient row.
#[derive(Clone, Copy)]
pub struct ParameterSource<'a> {
    pub parameters: &'a Parameters,
    pub ranges: &'a ParameterRanges,
}

impl ParameterSource<'_> {
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let var = self.parameters.get(name)?;
        Ok(numbers(var).as_slice()?.to_vec())
    }
}

/// The row that gradients of weights are added to, where they are needed.
pub type GradientRow<'a> = Option<&'a mut [f32]>;

/// A convolution.
pub struct Conv {
    forward: Kernel,
    back: BackKernel,
    sampling: Resampling,
    kernel: Range<usize>,
    bias: Range<usize>,
}

impl Conv {
    /// Takes `NAME.kernel` of `shape`, and `NAME.bias`.
    pub fn load(
        source: ParameterSource<'_>,
        name: &str,
        shape: [usize; 4],
        sampling: Resampling,
    ) -> Result<Self> {
        let (kernel, bias) = (format!("{name}.kernel"), format!("{name}.bias"));
        let weights = source.values(&kernel)?;
        Ok(Self {
            forward: Kernel::pack(&weights, &source.values(&bias)?, shape),
            back: BackKernel::pack(&weights, shape, sampling),
            sampling,
            kernel: source.ranges.get(&kernel)?,
            bias: source.ranges.get(&bias)?,
        })
    }

    /// A convolution whose weights, `[kh, kw, in, out]` and `[out]`, are not trained.
    pub fn frozen(weights: &[f32], bias: &[f32], shape: [usize; 4], sampling: Resampling) -> Self {
        Self {
            forward: Kernel::pack(weights, bias, shape),
            back: BackKernel::pack(weights, shape, sampling),
            sampling,
            kernel: 0..0,
            bias: 0..0,
        }
    }

    /// x `[side, side, in]` → y `[.., .., out]`.
    fn run(&self, x: &Picture) -> Picture {
        let [taps, _, _, channels] = self.forward.shape();
        let side = self.sampling.output(x.side, taps);
        let mut data = vec![0.0; side * side * channels];
        self.run_into(x, Start::Bias, &mut data);
        Picture { side, data }
    }

    fn run_into(&self, x: &Picture, start: Start, y: &mut [f32]) {
        let size = [x.side; 2];
        conv(&x.data, size, &self.forward, self.sampling, start, y);
    }

    /// x, dy → the kernel's gradient in a row of its own.
    pub fn kernel_gradient(&self, x: &Picture, dy: &[f32]) -> Vec<f32> {
        let mut dw = vec![0.0; self.kernel.len()];
        let mut db = vec![0.0; self.bias.len()];
        self.add_weights(x, dy, [&mut dw, &mut db]);
        dw
    }

    fn add_weights(&self, x: &Picture, dy: &[f32], gradients: [&mut [f32]; 2]) {
        let (size, shape) = ([x.side; 2], self.forward.shape());
        weight_gradient(&x.data, size, dy, shape, self.sampling, gradients);
    }

    /// x, dy → adds the gradients of kernel and bias to `row`, where there is one.
    fn weights_back(&self, x: &Picture, dy: &Picture, row: GradientRow<'_>) {
        if let Some(row) = row {
            // Parameters are sorted by name: a bias lies before its kernel.
            let (before, from) = row.split_at_mut(self.kernel.start);
            let dw = &mut from[..self.kernel.len()];
            self.add_weights(x, &dy.data, [dw, &mut before[self.bias.clone()]]);
        }
    }

    /// dy → dx, which is added to or replaced as `start` says; `dx` has the input's side.
    fn input_back(&self, dy: &Picture, start: Start, dx: &mut Picture) {
        let size = [dx.side; 2];
        input_gradient(&dy.data, size, &self.back, start, &mut dx.data);
    }
}

fn add(sum: &mut [f32], more: &[f32]) {
    sum.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
}

/// GroupNorm and SiLU.
pub struct GroupNorm {
    scale: Vec<f32>,
    bias: Vec<f32>,
    ranges: [Range<usize>; 2],
}

impl GroupNorm {
    fn load(source: ParameterSource<'_>, name: &str) -> Result<Self> {
        let (scale, bias) = (format!("{name}.scale"), format!("{name}.bias"));
        Ok(Self {
            scale: source.values(&scale)?,
            bias: source.values(&bias)?,
            ranges: [source.ranges.get(&scale)?, source.ranges.get(&bias)?],
        })
    }

    fn run(&self, x: &Picture) -> Picture {
        let mut y = x.like();
        group_norm_silu(&x.data, &self.scale, &self.bias, &mut y.data);
        y
    }

    /// x, dy → adds to dx.
    fn back(&self, x: &Picture, dy: &Picture, dx: &mut Picture, row: GradientRow<'_>) {
        let n = self.scale.len();
        let (mut d_scale, mut d_bias) = (vec![0.0; n], vec![0.0; n]);
        let weights = [&self.scale[..], &self.bias];
        let gradients = [&mut d_scale[..], &mut d_bias];
        group_norm_silu_backward(&x.data, weights, &dy.data, &mut dx.data, gradients);
        if let Some(row) = row {
            add(&mut row[self.ranges[0].clone()], &d_scale);
            add(&mut row[self.ranges[1].clone()], &d_bias);
        }
    }
}

/// `x → conv(silu(gn(conv(silu(gn(x)))))) + shortcut(x)`.
pub struct Resnet {
    norms: [GroupNorm; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
}

/// Saved activations of a residual block: its input, and the inputs of its first convolution, second norm and second
/// convolution.
type Inside = [Picture; 4];

impl Resnet {
    fn load(source: ParameterSource<'_>, name: &str, [cin, cout]: [usize; 2]) -> Result<Self> {
        let norm = |i| GroupNorm::load(source, &format!("{name}.GroupNorm_{i}"));
        let conv = |i, taps, cin| {
            let name = format!("{name}.Conv_{i}");
            Conv::load(source, &name, [taps, taps, cin, cout], Resampling::Same)
        };
        Ok(Self {
            norms: [norm(0)?, norm(1)?],
            convs: [conv(0, 3, cin)?, conv(1, 3, cout)?],
            shortcut: (cin != cout).then(|| conv(2, 1, cin)).transpose()?,
        })
    }

    fn run(&self, x: Picture) -> (Picture, Inside) {
        let first = self.norms[0].run(&x);
        let hidden = self.convs[0].run(&first);
        let second = self.norms[1].run(&hidden);
        let mut y = match &self.shortcut {
            None => x.clone(),
            Some(conv) => conv.run(&x),
        };
        self.convs[1].run_into(&second, Start::Residual, &mut y.data);
        (y, [x, first, hidden, second])
    }

    fn back(&self, inside: &Inside, dy: Picture, mut row: GradientRow<'_>) -> Picture {
        let [x, first, hidden, second] = inside;
        self.convs[1].weights_back(second, &dy, row.as_deref_mut());
        let mut inner = second.like();
        self.convs[1].input_back(&dy, Start::Bias, &mut inner);
        let mut d_hidden = hidden.like();
        self.norms[1].back(hidden, &inner, &mut d_hidden, row.as_deref_mut());
        self.convs[0].weights_back(first, &d_hidden, row.as_deref_mut());
        let mut inner = first.like();
        self.convs[0].input_back(&d_hidden, Start::Bias, &mut inner);
        let mut dx = match &self.shortcut {
            None => dy,
            Some(conv) => {
                let mut dx = x.like();
                conv.weights_back(x, &dy, row.as_deref_mut());
                conv.input_back(&dy, Start::Bias, &mut dx);
                dx
            }
        };
        self.norms[0].back(x, &inner, &mut dx, row);
        dx
    }
}

/// One layer with its weights.
pub enum Layer {
    Conv(Box<Conv>),
    Norm(GroupNorm),
    Resnet(Box<Resnet>),
    /// Leaky ReLU: x where it is positive, this factor times x elsewhere.
    Rectifier(f32),
    /// 2×2 max pooling; a last odd row or column is dropped.
    MaxPool,
}

/// What a layer saves for its backward pass.
pub enum SavedForBackward {
    Input(Picture),
    Inside(Box<Inside>),
}

impl Layer {
    /// A layer of the VQGAN.
    pub fn load(source: ParameterSource<'_>, plan: LayerSpec) -> Result<Self> {
        let name = |path: &str| {
            let whole = tensor_name(path, "");
            whole.trim_end_matches('.').to_owned()
        };
        Ok(match plan {
            LayerSpec::Conv {
                path,
                shape,
                sampling,
            } => {
                let conv = Conv::load(source, &name(&path), shape, sampling)?;
                Self::Conv(Box::new(conv))
            }
            LayerSpec::NormSilu { path, .. } => Self::Norm(GroupNorm::load(source, &name(&path))?),
            LayerSpec::Resnet { path, channels } => {
                let block = Resnet::load(source, &name(&path), channels)?;
                Self::Resnet(Box::new(block))
            }
        })
    }

    fn run(&self, x: Picture) -> (Picture, SavedForBackward) {
        let y = match self {
            Self::Conv(conv) => conv.run(&x),
            Self::Norm(norm) => norm.run(&x),
            Self::Resnet(block) => {
                let (y, inside) = block.run(x);
                return (y, SavedForBackward::Inside(Box::new(inside)));
            }
            Self::Rectifier(leak) => rectified(&x, &x, *leak),
            Self::MaxPool => max_pool(&x),
        };
        (y, SavedForBackward::Input(x))
    }

    /// dy → dx; adds the gradients of weights to `row`.
    fn back(
        &self,
        kept: &SavedForBackward,
        dy: Picture,
        row: GradientRow<'_>,
        wanted: Wanted,
    ) -> Picture {
        match (self, kept) {
            (Self::Resnet(block), SavedForBackward::Inside(inside)) => block.back(inside, dy, row),
            (Self::Conv(conv), SavedForBackward::Input(x)) => {
                conv.weights_back(x, &dy, row);
                if wanted == Wanted::Weights {
                    return dy;
                }
                let mut dx = x.like();
                conv.input_back(&dy, Start::Bias, &mut dx);
                dx
            }
            (Self::Norm(norm), SavedForBackward::Input(x)) => {
                let mut dx = x.like();
                norm.back(x, &dy, &mut dx, row);
                dx
            }
            (Self::Rectifier(leak), SavedForBackward::Input(x)) => rectified(x, &dy, *leak),
            (Self::MaxPool, SavedForBackward::Input(x)) => max_pool_back(x, &dy),
            (Self::Resnet(_), SavedForBackward::Input(_)) | (_, SavedForBackward::Inside(_)) => dy,
        }
    }
}

/// y where x is positive, `leak` times y elsewhere.
fn rectified(x: &Picture, y: &Picture, leak: f32) -> Picture {
    let pairs = x.data.iter().zip(&y.data);
    let through = |(&x, &y)| if x > 0.0 { y } else { leak * y };
    Picture {
        side: y.side,
        data: pairs.map(through).collect(),
    }
}

/// x `[side, side, channels]` → for each number of the pooled picture its index in x, the first on ties.
fn largest(x: &Picture) -> impl Iterator<Item = usize> {
    let channels = x.data.len() / (x.side * x.side).max(1);
    let (side, pooled) = (x.side, x.side / 2);
    (0..pooled * pooled * channels).map(move |i| {
        let (place, c) = (i / channels, i % channels);
        let first = 2 * (place / pooled * side + place % pooled) * channels + c;
        let four = [0, channels, side * channels, (side + 1) * channels].map(|off| first + off);
        four.into_iter()
            .fold(first, |best, at| match x.data[at] > x.data[best] {
                true => at,
                false => best,
            })
    })
}

/// x `[side, side, channels]` → `[side / 2, side / 2, channels]`.
fn max_pool(x: &Picture) -> Picture {
    Picture {
        side: x.side / 2,
        data: largest(x).map(|at| x.data[at]).collect(),
    }
}

/// x, dy → dx.
fn max_pool_back(x: &Picture, dy: &Picture) -> Picture {
    let mut dx = x.like();
    for (at, dy) in largest(x).zip(&dy.data) {
        dx.data[at] = *dy;
    }
    dx
}

/// Which gradients the first layer computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Those of its weights only.
    Weights,
    /// Those of its input too.
    Input,
}

/// A sequence of layers.
pub struct Chain(pub Vec<Layer>);

impl Chain {
    /// x → y, and the saved activations of every layer.
    pub fn run(&self, x: Picture) -> (Picture, Vec<SavedForBackward>) {
        let mut kept = Vec::with_capacity(self.0.len());
        let y = self.0.iter().fold(x, |x, layer| {
            let (y, of_layer) = layer.run(x);
            kept.push(of_layer);
            y
        });
        (y, kept)
    }

    /// x → y, saving nothing.
    pub fn through(&self, x: Picture) -> Picture {
        self.0.iter().fold(x, |x, layer| layer.run(x).0)
    }

    /// dy → dx if it is wanted; adds the gradients of weights to `row`.
    pub fn back(
        &self,
        kept: &[SavedForBackward],
        dy: Picture,
        mut row: GradientRow<'_>,
        wanted: Wanted,
    ) -> Picture {
        let layers = self.0.iter().zip(kept).enumerate().rev();
        layers.fold(dy, |dy, (i, (layer, kept))| {
            let wanted = if i == 0 { wanted } else { Wanted::Input };
            layer.back(kept, dy, row.as_deref_mut(), wanted)
        })
    }

    /// The last layer and its input, where it is a convolution.
    pub fn last<'a>(&'a self, kept: &'a [SavedForBackward]) -> Option<(&'a Picture, &'a Conv)> {
        match (kept.last()?, self.0.last()?) {
            (SavedForBackward::Input(x), Layer::Conv(conv)) => Some((x, conv)),
            _ => None,
        }
    }
}

/// The layers of `plans`, loaded in parallel.
///
/// # Errors
/// `Internal` when a parameter is missing.
pub fn chain(source: ParameterSource<'_>, plans: Vec<LayerSpec>) -> Result<Chain> {
    let layers = plans.into_par_iter().map(|plan| Layer::load(source, plan));
    layers.collect::<Result<_>>().map(Chain)
}
