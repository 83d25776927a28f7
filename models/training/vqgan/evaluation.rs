//! What pictures came to, summed over as many batches as there are.

use rayon::prelude::*;

use crate::training::vqgan::{
    codebook::usage,
    layers::Picture,
    losses::{Differences, psnr_db},
    network::{Passed, VqganNetwork},
    options::{CodebookRule, VqganOptions},
};

/// Sums over pictures that went through a VQGAN, from which their means follow.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    pictures: u64,
    sums: Differences,
    /// Σ perceptual distances, where somebody looked.
    perceptual: Option<f64>,
    /// Σ squared distances of vectors from their rows.
    distance: f64,
    pixel_numbers: f64,
    latent_numbers: f64,
    /// How often each code was used.
    counts: Vec<u32>,
}

impl Evaluation {
    /// Adds pictures and what the network made of them; the codebook has `rows` rows.
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

    /// Adds perceptual distances of pictures that [`Evaluation::add`] was given.
    pub(super) fn add_perceptual(&mut self, distances: impl Iterator<Item = f64>) {
        *self.perceptual.get_or_insert(0.0) += distances.sum::<f64>();
    }

    /// Pictures so far.
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

    /// Of the pictures as they are shown, in decibels; infinite for pictures that equal their pixels.
    pub fn psnr_db(&self) -> f64 {
        psnr_db(self.sums.shown / self.pixel_numbers)
    }

    /// Mean squared distance of vectors from their rows.
    pub fn quantization(&self) -> f64 {
        self.distance / self.latent_numbers
    }

    /// Distinct codes, and `e` to the entropy of all codes.
    pub fn usage(&self) -> (usize, f64) {
        usage(&self.counts)
    }

    /// What `options` make small, without the discriminator's part.
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
