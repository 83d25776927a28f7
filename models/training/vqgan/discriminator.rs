//! A PatchGAN discriminator (Isola et al., "Image-to-Image Translation", arXiv 1611.07004): convolutions and leaky
//! ReLUs, without norms, so that a picture's logits do not depend on its batch.

use longreel_kernels::conv::Resampling;

use crate::{
    checkpoint::layout::NamedShape,
    error::{Error, Kind, Result},
    training::vqgan::{
        layers::{Chain, Conv, Layer, ParameterSource, Picture, SavedForBackward, Wanted},
        options::Adversarial,
    },
    vision::vqgan::RGB,
};

/// Slope of the leaky ReLUs for negative numbers.
const LEAK: f32 = 0.2;

/// Rows and columns of every kernel.
const TAPS: usize = 4;

/// The most channels, as a multiple of the first convolution's.
const WIDEST: usize = 8;

/// Its convolutions: stride, input channels, output channels.
fn plan(adversarial: &Adversarial) -> Vec<[usize; 3]> {
    let width = |layer: usize| adversarial.channels * WIDEST.min(1 << layer);
    let n = adversarial.layers;
    let mut convs = vec![[2, RGB, width(0)]];
    convs.extend((1..n).map(|i| [2, width(i - 1), width(i)]));
    convs.push([1, width(n - 1), width(n)]);
    convs.push([1, width(n), 1]);
    convs
}

fn sampling(stride: usize) -> Resampling {
    Resampling::Strided { stride, padding: 1 }
}

/// Names and shapes of its tensors, kernels `[4, 4, in, out]`.
pub fn tensors(adversarial: &Adversarial) -> Vec<NamedShape> {
    let convs = plan(adversarial).into_iter().enumerate();
    let tensors = convs.flat_map(|(i, [_, cin, cout])| {
        let name = format!("discriminator.Conv_{i}");
        [
            (format!("{name}.kernel"), vec![TAPS, TAPS, cin, cout]),
            (format!("{name}.bias"), vec![cout]),
        ]
    });
    tensors.collect()
}

/// Number of logits for a picture of `side` pixels.
///
/// # Errors
/// `BadInput` when the picture is too small for the layers.
pub fn logits_of(adversarial: &Adversarial, side: usize) -> Result<usize> {
    let convs = plan(adversarial).into_iter();
    let left = convs.fold(side, |side, [stride, ..]| {
        sampling(stride).output(side, TAPS)
    });
    if left > 0 {
        return Ok(left * left);
    }
    let message = format!(
        "a discriminator of {} layers has no output for {side} pixels, expected fewer layers",
        adversarial.layers
    );
    Err(Error::new(Kind::BadInput, message))
}

/// The discriminator with the weights of one step.
pub struct Discriminator(Chain);

impl Discriminator {
    /// # Errors
    /// `Internal` when a parameter is missing.
    pub fn load(source: ParameterSource<'_>, adversarial: &Adversarial) -> Result<Self> {
        let mut layers = Vec::new();
        for (i, [stride, cin, cout]) in plan(adversarial).into_iter().enumerate() {
            if i > 0 {
                layers.push(Layer::Rectifier(LEAK));
            }
            let name = format!("discriminator.Conv_{i}");
            let shape = [TAPS, TAPS, cin, cout];
            let conv = Conv::load(source, &name, shape, sampling(stride))?;
            layers.push(Layer::Conv(Box::new(conv)));
        }
        Ok(Self(Chain(layers)))
    }

    /// pixels `[side, side, 3]` → a logit per patch, and the saved activations.
    pub fn run(&self, pixels: Picture) -> (Picture, Vec<SavedForBackward>) {
        self.0.run(pixels)
    }

    /// Gradients of the logits → gradients of the pixels.
    pub fn pixels_back(&self, kept: &[SavedForBackward], logits: Picture) -> Vec<f32> {
        self.0.back(kept, logits, None, Wanted::Input).data
    }

    /// Gradients of the logits → adds the gradients of the weights to `row`.
    pub fn weights_back(&self, kept: &[SavedForBackward], logits: Picture, row: &mut [f32]) {
        self.0.back(kept, logits, Some(row), Wanted::Weights);
    }
}
