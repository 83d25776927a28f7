//! Activation functions by their names in configurations.

use longreel_kernels::activation::Activation;

use crate::spec::encoder::HiddenAct;

impl HiddenAct {
    /// x `[n]` → x `[n]`, in place.
    pub fn apply(self, x: &mut [f32]) {
        let activation = match self {
            Self::Relu => Activation::Relu,
            Self::Gelu => Activation::Gelu,
            Self::GeluTanh => Activation::GeluTanh,
            Self::QuickGelu => Activation::QuickGelu,
            Self::Silu => Activation::Silu,
            Self::Tanh => Activation::Tanh,
        };
        activation.apply(x);
    }
}
