//! Losses of a batch as sums over its pictures, their gradients, and metrics.

/// Added to the divisor of the adaptive weight (arXiv 2012.09841, equation 7).
const LEAST_LENGTH: f64 = 1e-6;

/// Largest adaptive weight (`vqperceptual.py`).
const LARGEST_WEIGHT: f64 = 1e4;

/// Sums over the numbers of pictures.
#[derive(Debug, Clone, Copy, Default)]
pub struct Differences {
    /// Σ |picture − pixels|.
    pub absolute: f64,
    /// Σ (picture − pixels)².
    pub squared: f64,
    /// Σ (picture − pixels)² of the picture clipped to [-1, 1].
    pub shown: f64,
}

impl Differences {
    /// picture, pixels of equal length → their differences.
    pub fn of(picture: &[f32], pixels: &[f32]) -> Self {
        let mut sums = Self::default();
        for (&y, &x) in picture.iter().zip(pixels) {
            let difference = f64::from(y) - f64::from(x);
            sums.absolute += difference.abs();
            sums.squared += difference * difference;
            sums.shown += (f64::from(y.clamp(-1.0, 1.0)) - f64::from(x)).powi(2);
        }
        sums
    }

    /// The sums of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            absolute: self.absolute + other.absolute,
            squared: self.squared + other.squared,
            shown: self.shown + other.shown,
        }
    }
}

/// picture, pixels → the gradient of `l1 · Σ |difference| + l2 · Σ difference²`.
pub fn differences_back(picture: &[f32], pixels: &[f32], [l1, l2]: [f64; 2]) -> Vec<f32> {
    let (l1, l2) = (l1 as f32, 2.0 * l2 as f32);
    let back = |(y, x): (&f32, &f32)| {
        let difference = y - x;
        let sign = if difference == 0.0 {
            0.0
        } else {
            difference.signum()
        };
        l1 * sign + l2 * difference
    };
    picture.iter().zip(pixels).map(back).collect()
}

/// PSNR in decibels for a mean squared difference; the peak, from black to white, is 2.
pub fn psnr_db(mean_squared: f64) -> f64 {
    10.0 * (4.0 / mean_squared).log10()
}

/// Whether a picture is real or reconstructed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Real,
    Made,
}

/// logits → hinge loss: `Σ max(0, 1 − logit)` for real pictures, `Σ max(0, 1 + logit)` for reconstructed ones.
pub fn hinge(logits: &[f32], origin: Origin) -> f64 {
    let part = |&logit: &f32| match origin {
        Origin::Real => (1.0 - f64::from(logit)).max(0.0),
        Origin::Made => (1.0 + f64::from(logit)).max(0.0),
    };
    logits.iter().map(part).sum()
}

/// logits → the gradient of `share ·` [`hinge`].
pub fn hinge_back(logits: &[f32], origin: Origin, share: f32) -> Vec<f32> {
    let back = |&logit: &f32| match origin {
        Origin::Real if logit < 1.0 => -share,
        Origin::Made if logit > -1.0 => share,
        _ => 0.0,
    };
    logits.iter().map(back).collect()
}

/// Gradients of the reconstruction and of the adversarial loss with respect to the last layer's kernel → the weight
/// of the latter that makes both gradients equally long.
pub fn adaptive_weight(reconstruction: &[f32], adversarial: &[f32]) -> f64 {
    let ratio = length(reconstruction) / (length(adversarial) + LEAST_LENGTH);
    ratio.clamp(0.0, LARGEST_WEIGHT)
}

fn length(row: &[f32]) -> f64 {
    let squares = row.iter().map(|&x| f64::from(x) * f64::from(x));
    squares.sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::{Origin, adaptive_weight, differences_back, hinge, hinge_back, psnr_db};

    #[test]
    fn hinge_has_no_gradient_beyond_a_margin_of_one() {
        let logits = [-2.0, -0.5, 0.5, 2.0];
        assert_eq!(hinge(&logits, Origin::Real), 3.0 + 1.5 + 0.5);
        assert_eq!(hinge(&logits, Origin::Made), 0.5 + 1.5 + 3.0);
        assert_eq!(
            hinge_back(&logits, Origin::Real, 0.5),
            [-0.5, -0.5, -0.5, 0.0]
        );
        assert_eq!(hinge_back(&logits, Origin::Made, 0.5), [0.0, 0.5, 0.5, 0.5]);
    }

    #[test]
    fn the_adaptive_weight_is_a_ratio_of_lengths_and_bounded() {
        assert!((adaptive_weight(&[3.0, 4.0], &[0.0, 2.0]) - 2.5).abs() < 2e-6);
        assert_eq!(adaptive_weight(&[3.0, 4.0], &[0.0, 0.0]), 1e4);
        assert_eq!(adaptive_weight(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }

    #[test]
    fn equal_pixels_have_no_gradient_and_half_the_range_is_six_decibels() {
        let back = differences_back(&[1.0, 0.0, 0.5], &[0.5, 0.5, 0.5], [2.0, 3.0]);
        assert_eq!(back, [5.0, -5.0, 0.0]);
        assert!(psnr_db(4.0).abs() < 1e-12 && (psnr_db(1.0) - 6.020_6).abs() < 1e-4);
    }
}
