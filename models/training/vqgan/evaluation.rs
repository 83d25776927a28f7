//! Evaluation metrics, accumulated over batches.

use rayon::prelude::*;

use crate::training::vqgan::{
    codebook::usage,
    layers::Picture,
    losses::{Differences, psnr_db},
    network::{Passed, VqganNetwork},
    options::{CodebookRule, VqganOptions},
};

/// Sums over reconstructed pictures, from which the means follow.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    pictures: u64,
    sums: Differences,
    /// Σ perceptual distances, where they were computed.
    perceptual: Option<f64>,
    /// Σ squared distances of vectors from their codebook rows.
    distance: f64,
    pixel_numbers: f64,
    latent_numbers: f64,
    /// Uses of each code.
    counts: Vec<u32>,
}

impl Evaluation {
    /// Adds pictures and their reconstructions; the codebook has `rows` rows.
    pub(super) fn add(
        &mut self,
        network: &VqganNetwork,
        frames: &[Picture],
        passed: &[Passed],
        rows: usize,
    ) {
        let pairs = frames.par_iter().zip(passed);
        let parts = pairs.map(|(frame, passed)| {
            let differences = Differences::of(&passed.picture.data, &frame.data);
            (differences, network.distance(passed))
        });
        let parts: Vec<(Differences, f64)> = parts.collect();
        for (differences, distance) in parts {
            self.sums = self.sums.plus(differences);
            self.distance += distance;
        }
        self.pictures += frames.len() as u64;
        self.pixel_numbers += frames.iter().map(|f| f.data.len()).sum::<usize>() as f64;
        self.latent_numbers += passed.iter().map(|p| p.z.data.len()).sum::<usize>() as f64;
        self.counts.resize(rows, 0);
        let codes = passed.iter().flat_map(|p| &p.codes);
        codes.for_each(|&code| self.counts[code as usize] += 1);
    }

    /// Adds the perceptual distances of pictures passed to [`Evaluation::add`].
    pub(super) fn add_perceptual(&mut self, distances: impl Iterator<Item = f64>) {
        *self.perceptual.get_or_insert(0.0) += distances.sum::<f64>();
    }

    /// Number of pictures so far.
    pub fn pictures(&self) -> u64 {
        self.pictures
    }

    /// Mean of absolute differences from the pixels.
    pub fn l1(&self) -> f64 {
        self.sums.absolute / self.pixel_numbers
    }

    /// Mean of squared differences.
    pub fn l2(&self) -> f64 {
        self.sums.squared / self.pixel_numbers
    }

    /// Mean perceptual distance, where there is a perceptual loss.
    pub fn perceptual(&self) -> Option<f64> {
        Some(self.perceptual? / self.pictures as f64)
    }

    /// PSNR of the clipped reconstructions, in decibels; infinite for exact ones.
    pub fn psnr_db(&self) -> f64 {
        psnr_db(self.sums.shown / self.pixel_numbers)
    }

    /// Mean squared distance of vectors from their codebook rows.
    pub fn quantization(&self) -> f64 {
        self.distance / self.latent_numbers
    }

    /// The number of distinct codes, and the perplexity.
    pub fn usage(&self) -> (usize, f64) {
        usage(&self.counts)
    }

    /// The loss that `options` define, without the adversarial part.
    pub fn loss(&self, options: &VqganOptions) -> f64 {
        let of_codebook = match options.codebook {
            CodebookRule::Loss => 1.0 + options.commitment,
            CodebookRule::Average { .. } => options.commitment,
        };
        let perceptual = options.perceptual.as_ref().zip(self.perceptual());
        options.l1_weight * self.l1()
            + options.l2_weight * self.l2()
            + perceptual.map_or(0.0, |(options, distance)| options.weight * distance)
            + options.codebook_weight * of_codebook * self.quantization()
    }
}
