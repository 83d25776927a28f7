//! CLIP and SigLIP, opened: pictures and texts to vectors of one space.

use std::path::{Path, PathBuf};

use longreel_models::{
    checkpoint::import_hf::{dual_encoder_of_directory, weights_of_directory},
    context::tokenizer::Tokenizer,
    dual_encoder::DualEncoder,
    spec::processor::Medium,
    vision::{image::RgbView, processor::PictureProcessor},
};

use crate::error::{Context, Error, Kind, Result};

/// What pictures and texts are compared with.
pub struct VectorModel {
    /// Where it came from.
    pub dir: PathBuf,
    encoder: DualEncoder,
    processor: PictureProcessor,
}

impl VectorModel {
    /// Opens CLIP or SigLIP in `dir`; `None` for a model of another kind.
    ///
    /// # Errors
    /// `BadInput` for a directory that is damaged, or that this program cannot run.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let doing = || format!("open the model {}", dir.display());
        let Some(spec) = dual_encoder_of_directory(dir).doing(doing)? else {
            return Ok(None);
        };
        let mut weights = weights_of_directory(dir).doing(doing)?;
        let encoder = DualEncoder::load(&spec, &mut weights).doing(doing)?;
        weights.finish().doing(doing)?;
        Ok(Some(Self {
            dir: dir.to_owned(),
            encoder,
            processor: PictureProcessor::of_directory(dir, Medium::Picture).doing(doing)?,
        }))
    }

    /// [`VectorModel::open`], of a model that must be one of these.
    ///
    /// # Errors
    /// `BadInput` for a model of another kind.
    pub fn expect(dir: &Path) -> Result<Self> {
        Self::open(dir)?.ok_or_else(|| {
            let message = format!(
                "the model {} makes no vectors of texts, expected CLIP or SigLIP",
                dir.display()
            );
            Error::new(Kind::BadInput, message)
        })
    }

    /// Numbers of a vector.
    pub fn width(&self) -> usize {
        self.encoder.width()
    }

    /// picture → `[width]`, of length one.
    ///
    /// # Errors
    /// `BadInput` for a picture that cannot be prepared.
    pub fn of_picture(&self, picture: RgbView<'_>) -> Result<Vec<f32>> {
        self.encoder
            .encode_pictures(&self.processor.pixels(picture)?)
    }

    /// text → `[width]`, of length one; the tokenizer is that of the model's directory.
    ///
    /// # Errors
    /// `NotFound` when there is no tokenizer, `BadInput` for an empty text.
    pub fn of_text(&self, text: &str) -> Result<Vec<f32>> {
        let tokenizer = Tokenizer::open(&self.dir)?;
        let ids = self.encoder.text().ids(&tokenizer, text)?;
        self.encoder.encode_text(&ids)
    }

    /// The model's score for a cosine, and SigLIP's probability that text and picture belong together.
    pub fn judge(&self, cosine: f32) -> (f32, Option<f32>) {
        let logit = self.encoder.logit(cosine);
        (logit, self.encoder.probability(logit))
    }
}
