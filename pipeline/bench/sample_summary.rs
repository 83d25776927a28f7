//! Summary of samples of one quantity: median and range.

use serde::Serialize;

/// Median, minimum and maximum of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SampleSummary {
    /// The median; the mean of the middle two of an even number.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
    /// Number of samples.
    pub samples: usize,
}

impl SampleSummary {
    /// No samples at all.
    pub const NONE: Self = Self {
        median: f64::NAN,
        min: f64::NAN,
        max: f64::NAN,
        samples: 0,
    };

    /// The summary of `samples`; `None` without samples.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let (low, high) = (
            sorted.get((sorted.len() - 1) / 2)?,
            sorted.get(sorted.len() / 2)?,
        );
        Some(Self {
            median: (low + high) / 2.0,
            min,
            max,
            samples: sorted.len(),
        })
    }

    /// The summary of `amount` per sample: operations per second from seconds, say.
    pub fn rate(amount: f64, seconds: &[f64]) -> Option<Self> {
        let rates: Vec<f64> = seconds.iter().map(|s| amount / s).collect();
        Self::of(&rates)
    }
}

#[cfg(test)]
mod tests {
    use super::SampleSummary;

    #[test]
    fn an_even_number_of_samples_has_the_mean_of_the_middle_two() {
        let spread = SampleSummary::of(&[4.0, 1.0, 3.0, 10.0]).unwrap();
        assert_eq!(
            (spread.median, spread.min, spread.max, spread.samples),
            (3.5, 1.0, 10.0, 4)
        );
        assert_eq!(SampleSummary::of(&[2.0]).unwrap().median, 2.0);
        assert_eq!(SampleSummary::of(&[]), None);
    }

    #[test]
    fn the_fastest_sample_has_the_largest_rate() {
        let spread = SampleSummary::rate(8.0, &[1.0, 2.0, 4.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (4.0, 2.0, 8.0));
    }
}
