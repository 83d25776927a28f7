//! Encoder, codebook and decoder with the weights of one step, over one picture, forward and backward.

use longreel_kernels::codebook::Codebook;

use crate::{
    error::Result,
    spec::VqganSpec,
    training::vqgan::layers::{Chain, ParameterSource, Picture, SavedForBackward, Wanted, chain},
    vision::vqgan::{EMBEDDINGS, decoder_plan, encoder_plan},
};

/// The network with the weights of one step.
pub struct VqganNetwork {
    encoder: Chain,
    decoder: Chain,
    codebook: Codebook,
    /// `[num_embeddings, width]`.
    rows: Vec<f32>,
    width: usize,
}

/// One picture's forward pass.
pub struct Passed {
    encoded: Vec<SavedForBackward>,
    decoded: Vec<SavedForBackward>,
    /// z `[g, g, width]`, before quantization.
    pub z: Picture,
    /// `[g · g]`.
    pub codes: Vec<u32>,
    /// The reconstruction `[side, side, 3]`, unclipped.
    pub picture: Picture,
}

/// The weights of the codebook's two losses, per number of a batch.
#[derive(Clone, Copy)]
pub struct CodebookShares {
    /// Of `(e − sg(z))²`; 0 where averages move the codebook.
    pub codebook: f32,
    /// `(z − sg(e))²`.
    pub commitment: f32,
}

impl VqganNetwork {
    /// # Errors
    /// `Internal` when a parameter is missing.
    pub fn load(source: ParameterSource<'_>, spec: &VqganSpec) -> Result<Self> {
        let (rows, width) = (source.values(EMBEDDINGS)?, spec.quantized_embed_dim);
        Ok(Self {
            encoder: chain(source, encoder_plan(spec))?,
            decoder: chain(source, decoder_plan(spec))?,
            codebook: Codebook::pack(&rows, width),
            rows,
            width,
        })
    }

    /// pixels `[side, side, 3]` → its forward pass.
    pub fn run(&self, pixels: Picture) -> Passed {
        let (z, encoded) = self.encoder.run(pixels);
        let codes = self.codebook.nearest(&z.data);
        let rows = Picture {
            side: z.side,
            data: codes.iter().flat_map(|&c| self.row(c)).copied().collect(),
        };
        let (picture, decoded) = self.decoder.run(rows);
        Passed {
            encoded,
            decoded,
            z,
            codes,
            picture,
        }
    }

    fn row(&self, code: u32) -> &[f32] {
        &self.rows[code as usize * self.width..][..self.width]
    }

    /// Σ (z − e)² over a picture.
    pub fn distance(&self, passed: &Passed) -> f64 {
        let rows = passed.codes.iter().flat_map(|&code| self.row(code));
        let squares = passed.z.data.iter().zip(rows);
        squares
            .map(|(&z, &e)| (f64::from(z) - f64::from(e)).powi(2))
            .sum()
    }

    /// The gradient of the reconstruction → that of the decoder's last kernel, in a row of its own.
    pub fn last_kernel_gradient(&self, passed: &Passed, d_picture: &[f32]) -> Vec<f32> {
        let last = self.decoder.last(&passed.decoded);
        last.map_or_else(Vec::new, |(x, conv)| conv.kernel_gradient(x, d_picture))
    }

    /// The gradient of the reconstruction → adds those of all weights to `row`; the codebook's begin at `codebook`.
    ///
    /// The gradient of the decoder's input is passed to z unchanged (straight-through estimator).
    pub fn back(
        &self,
        passed: &Passed,
        d_picture: Picture,
        shares: CodebookShares,
        codebook: usize,
        row: &mut [f32],
    ) {
        let decoded = &passed.decoded;
        let mut dz = self
            .decoder
            .back(decoded, d_picture, Some(&mut *row), Wanted::Input);
        let vectors = passed.z.data.chunks_exact(self.width);
        let back = dz.data.chunks_exact_mut(self.width);
        for ((z, dz), &code) in vectors.zip(back).zip(&passed.codes) {
            let start = codebook + code as usize * self.width;
            let de = &mut row[start..start + self.width];
            for (((z, dz), e), de) in z.iter().zip(dz).zip(self.row(code)).zip(de) {
                *de += 2.0 * shares.codebook * (e - z);
                *dz += 2.0 * shares.commitment * (z - e);
            }
        }
        self.encoder
            .back(&passed.encoded, dz, Some(row), Wanted::Weights);
    }
}
