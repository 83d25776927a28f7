//! Numbers as they are stored in weights, and what they are in f32.

use half::{bf16, f16};

/// A number stored in a weight matrix.
pub trait WeightElement: Copy + Send + Sync + 'static {
    /// The number as f32.
    fn widen(self) -> f32;
    /// The slice itself when it is f32 already.
    fn as_f32(slice: &[Self]) -> Option<&[f32]>;
}

impl WeightElement for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    fn as_f32(slice: &[Self]) -> Option<&[f32]> {
        Some(slice)
    }
}

impl WeightElement for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl WeightElement for f16 {
    /// Integer operations and one product, so that the compiler can vectorize it.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = bits & 0x7fff;
        // The exponent biases differ by 112; exponent 31 of f16 is infinity or NaN.
        let value = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
        let endless = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits(value.to_bits() | endless | (bits & 0x8000) << 16)
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::WeightElement;

    #[test]
    fn widening_is_exact() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let (got, expected) = (value.widen(), value.to_f32());
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan());
        }
        for bits in 0..=u16::MAX {
            let value = bf16::from_bits(bits);
            assert_eq!(value.widen().to_bits(), u32::from(bits) << 16);
        }
    }
}
