//! The perceptual loss LPIPS over VGG16 (Zhang et al., "The Unreasonable
//! Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924).
//!
//! Both pictures pass through a network trained for classification. After each of its five groups of
//! convolutions the features of each pixel are scaled to length 1; the squared differences of both pictures' vectors
//! are weighted by channel and summed, and their means over the pixels are added up. Its weights are not trained.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use longreel_kernels::conv::Resampling;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{digest::Digest, foreign::View, tensor_file},
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    training::vqgan::layers::{Chain, Conv, Layer, Picture, Wanted},
    vision::{conv_net::taps_first, vqgan::RGB},
};

/// Output channels of VGG16's convolutions, in groups separated by max pooling (arXiv 1409.1556, configuration D).
const GROUPS: [&[usize]; 5] = [
    &[64, 64],
    &[128, 128],
    &[256, 256, 256],
    &[512, 512, 512],
    &[512, 512, 512],
];

/// Rows and columns of every kernel.
const TAPS: usize = 3;

/// Shift and scale of red, green and blue, which are from -1 to 1 (`ScalingLayer`).
const SHIFT: [f32; RGB] = [-0.030, -0.088, -0.188];
const SCALE: [f32; RGB] = [0.458, 0.448, 0.450];

/// ε, added to lengths before dividing (`normalize_tensor`).
const LEAST_LENGTH: f32 = 1e-10;

/// Smallest side of a picture for which the last group has a pixel.
const LEAST_SIDE: usize = 1 << (GROUPS.len() - 1);

/// The perceptual loss and the files of its network, which the user provides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perceptual {
    /// VGG16 by torchvision's names (`features.0.weight`), as safetensors or from `torch.save`.
    pub vgg: PathBuf,
    /// LPIPS's channel weights by its own names (`lin0.model.1.weight`), in either format.
    pub lpips: PathBuf,
    /// Weight of the mean distance.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// The network of the perceptual loss.
pub struct Lpips {
    groups: Vec<Group>,
    /// Digest of all its weights: a resumed run must use the same.
    pub(super) digest: u64,
}

/// A group of convolutions, and the weight of each output channel.
struct Group {
    chain: Chain,
    weights: Vec<f32>,
}

impl Lpips {
    /// Reads both files for pictures of `side` pixels.
    ///
    /// # Errors
    /// `BadInput` for too few pixels, and for a tensor that is missing, of another shape, or not finite, naming it and the file.
    pub fn open(perceptual: &Perceptual, side: usize) -> Result<Self> {
        if side < LEAST_SIDE {
            let message = format!("pictures of {side} pixels, expected {LEAST_SIDE} or more");
            return Err(Error::new(Kind::BadInput, message));
        }
        let mut vgg = Tensors::read(&perceptual.vgg)?;
        let mut lpips = Tensors::read(&perceptual.lpips)?;
        let (mut number, mut channels) = (0, RGB);
        let mut groups = Vec::with_capacity(GROUPS.len());
        for (i, outs) in GROUPS.iter().enumerate() {
            let mut layers = Vec::new();
            if i > 0 {
                layers.push(Layer::MaxPool);
                number += 1;
            }
            for &out in *outs {
                let conv = vgg.conv(number, [channels, out])?;
                layers.extend([Layer::Conv(Box::new(conv)), Layer::Rectifier(0.0)]);
                // torchvision numbers the convolution and its ReLU.
                (number, channels) = (number + 2, out);
            }
            let name = format!("lin{i}.model.1.weight");
            groups.push(Group {
                chain: Chain(layers),
                weights: lpips.numbers(&name, &[1, channels, 1, 1])?,
            });
        }
        let digest = vgg.digest.0 ^ lpips.digest.0.rotate_left(1);
        Ok(Self { groups, digest })
    }

    /// real, made `[side, side, 3]` → their distance.
    pub(super) fn distance(&self, real: &Picture, made: &Picture) -> f64 {
        let (mut real, mut made, mut distance) = (scaled(real), scaled(made), 0.0);
        for group in &self.groups {
            real = group.chain.through(real);
            made = group.chain.through(made);
            distance += group.distance(&real, &made);
        }
        distance
    }

    /// real, made `[side, side, 3]` → their distance, and `share` times its gradient with respect to `made`.
    pub(super) fn distance_back(
        &self,
        real: &Picture,
        made: &Picture,
        share: f64,
    ) -> (f64, Vec<f32>) {
        let (mut real, mut made, mut distance) = (scaled(real), scaled(made), 0.0);
        let mut passed = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            real = group.chain.through(real);
            let (features, kept) = group.chain.run(made);
            distance += group.distance(&real, &features);
            passed.push((group, kept, group.distance_back(&real, &features, share)));
            made = features;
        }
        let mut back = made;
        back.data.fill(0.0);
        for (group, kept, mut of_distance) in passed.into_iter().rev() {
            let pairs = of_distance.data.iter_mut().zip(&back.data);
            pairs.for_each(|(sum, more)| *sum += more);
            back = group.chain.back(&kept, of_distance, None, Wanted::Input);
        }
        let channels = back.data.iter().zip(SCALE.iter().cycle());
        (distance, channels.map(|(x, scale)| x / scale).collect())
    }
}

impl Group {
    /// Features of two pictures, `[side, side, channels]` → the mean over pixels of `Σ w · (u − v)²`, for vectors scaled to
    /// length 1.
    fn distance(&self, real: &Picture, made: &Picture) -> f64 {
        let channels = self.weights.len();
        let places = real
            .data
            .par_chunks(channels)
            .zip(made.data.par_chunks(channels));
        let of_place = |(f, g): (&[f32], &[f32])| {
            let (u, v) = (1.0 / padded_length(f), 1.0 / padded_length(g));
            let triples = f.iter().zip(g).zip(&self.weights);
            let parts =
                triples.map(|((&f, &g), &w)| f64::from(w) * f64::from(f * u - g * v).powi(2));
            parts.sum()
        };
        let parts: Vec<f64> = places.map(of_place).collect();
        parts.iter().sum::<f64>() / (made.side * made.side) as f64
    }

    /// As `distance` → `share` times its gradient with respect to the made picture's features, `[side, side, channels]`.
    ///
    /// With `v = g / n`: `dg = (dv − v · (v · dv)) / n`.
    fn distance_back(&self, real: &Picture, made: &Picture, share: f64) -> Picture {
        let channels = self.weights.len();
        let share = (2.0 * share / (made.side * made.side) as f64) as f32;
        let mut back = made.clone();
        let places = back.data.par_chunks_mut(channels);
        places
            .zip(real.data.par_chunks(channels))
            .for_each(|(g, f)| {
                let n = padded_length(g);
                let (u, v) = (1.0 / padded_length(f), 1.0 / n);
                let weighted = |(&w, (&f, &g)): (&f32, (&f32, &f32))| share * w * (g * v - f * u);
                let pairs = f.iter().zip(&*g);
                let dv: Vec<f32> = self.weights.iter().zip(pairs).map(weighted).collect();
                let along: f32 = g.iter().zip(&dv).map(|(g, dv)| g * v * dv).sum();
                for (g, dv) in g.iter_mut().zip(dv) {
                    *g = (dv - *g * v * along) / n;
                }
            });
        back
    }
}

/// vector → its length plus ε.
fn padded_length(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt() + LEAST_LENGTH
}

/// pixels `[side, side, 3]` in [-1, 1] → normalized for the network.
fn scaled(pixels: &Picture) -> Picture {
    let constants = SHIFT.iter().zip(SCALE).cycle();
    let pairs = pixels.data.iter().zip(constants);
    Picture {
        side: pixels.side,
        data: pairs
            .map(|(x, (shift, scale))| (x - shift) / scale)
            .collect(),
    }
}

/// The tensors of one file.
struct Tensors<'a> {
    path: &'a Path,
    views: BTreeMap<String, View>,
    /// Digest of the numbers taken.
    digest: Digest,
}

impl<'a> Tensors<'a> {
    fn read(path: &'a Path) -> Result<Self> {
        let views = tensor_file::read(path)?.into_iter().collect();
        Ok(Self {
            path,
            views,
            digest: Digest::default(),
        })
    }

    fn numbers(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let found = || {
            let bad = |message: String| Error::new(Kind::BadInput, message);
            let view = self.views.get(name);
            let view = view.ok_or_else(|| bad(format!("it is missing, expected {shape:?}")))?;
            if view.shape() != shape {
                let found = view.shape();
                return Err(bad(format!("it has shape {found:?}, expected {shape:?}")));
            }
            let numbers = view.to_f32()?;
            match numbers.iter().find(|x| !x.is_finite()) {
                None => Ok(numbers),
                Some(x) => Err(bad(format!("it holds {x}, expected numbers"))),
            }
        };
        let numbers = found().doing(|| format!("{}: {name}", self.path.shown()))?;
        self.digest.add(bytemuck::cast_slice(&numbers));
        Ok(numbers)
    }

    /// Takes `features.NUMBER`, a convolution that keeps the size.
    fn conv(&mut self, number: usize, [channels, out]: [usize; 2]) -> Result<Conv> {
        let name = format!("features.{number}");
        let shape = [out, channels, TAPS, TAPS];
        let weights = self.numbers(&format!("{name}.weight"), &shape)?;
        let bias = self.numbers(&format!("{name}.bias"), &[out])?;
        let weights = taps_first(&weights, [out, channels, TAPS * TAPS]);
        let shape = [TAPS, TAPS, channels, out];
        Ok(Conv::frozen(&weights, &bias, shape, Resampling::Same))
    }
}
