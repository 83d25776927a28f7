//! Encoders of pictures, opened: CLIP and SigLIP, whose vectors are those of texts as well, and ViT, DINOv2 and ResNet.

use std::path::{Path, PathBuf};

use longreel_models::{
    checkpoint::import_hf::{PictureModelSpec, picture_model_of_directory, weights_of_directory},
    context::tokenizer::Tokenizer,
    dual_encoder::{DualEncoder, normalize},
    spec::processor::Medium,
    vision::{conv_net::ConvNet, image::RgbView, processor::PictureProcessor, vit::Vit},
};

use crate::error::{Context, Error, Kind, Result};

/// What pictures are compared with, and texts where it reads them.
pub struct VectorModel {
    /// Where it came from.
    pub dir: PathBuf,
    encoder: PictureEncoder,
    processor: PictureProcessor,
}

enum PictureEncoder {
    /// CLIP or SigLIP.
    Dual(Box<DualEncoder>),
    /// ViT or DINOv2: the class token behind the last norm.
    Vit(Box<Vit>),
    /// ResNet: the mean of the last stage.
    ConvNet(ConvNet),
}

impl VectorModel {
    /// Opens the encoder of pictures in `dir`; `None` for a model of another kind.
    ///
    /// # Errors
    /// `BadInput` for a directory that is damaged, or that this program cannot run.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let doing = || format!("open the model {}", dir.display());
        let Some(spec) = picture_model_of_directory(dir).doing(doing)? else {
            return Ok(None);
        };
        let processor = PictureProcessor::of_directory(dir, Medium::Picture).doing(doing)?;
        Ok(Some(Self {
            dir: dir.to_owned(),
            encoder: PictureEncoder::load(dir, spec, &processor).doing(doing)?,
            processor,
        }))
    }

    /// [`VectorModel::open`], of a model that must be one of these.
    ///
    /// # Errors
    /// `BadInput` for a model of another kind.
    pub fn expect(dir: &Path) -> Result<Self> {
        Self::open(dir)?.ok_or_else(|| {
            let message = format!(
                "the model {} makes no vectors of pictures, expected CLIP or SigLIP, or ViT, DINOv2 or ResNet",
                dir.display()
            );
            Error::new(Kind::BadInput, message)
        })
    }

    /// Numbers of a vector.
    pub fn width(&self) -> usize {
        match &self.encoder {
            PictureEncoder::Dual(model) => model.width(),
            PictureEncoder::Vit(vit) => vit.spec().encoder.hidden_size,
            PictureEncoder::ConvNet(net) => net.out_channels(),
        }
    }

    /// picture → `[width]`, of length one.
    ///
    /// # Errors
    /// `BadInput` for a picture that cannot be prepared.
    pub fn of_picture(&self, picture: RgbView<'_>) -> Result<Vec<f32>> {
        let (pixels, size) = self.processor.sized_pixels(picture)?;
        let mut vector = match &self.encoder {
            PictureEncoder::Dual(model) => return model.encode_pictures(&pixels),
            PictureEncoder::Vit(vit) => vit.class_tokens(&pixels)?,
            PictureEncoder::ConvNet(net) => net.pooled(&pixels, size)?,
        };
        normalize(&mut vector);
        Ok(vector)
    }

    /// text → `[width]`, of length one; the tokenizer is that of the model's directory.
    ///
    /// # Errors
    /// `NotFound` when there is no tokenizer, `BadInput` for an empty text or an encoder of pictures alone.
    pub fn of_text(&self, text: &str) -> Result<Vec<f32>> {
        let PictureEncoder::Dual(model) = &self.encoder else {
            let message = format!(
                "the model {} has no text encoder, expected CLIP or SigLIP, or a picture to look for (--image)",
                self.dir.display()
            );
            return Err(Error::new(Kind::BadInput, message));
        };
        let tokenizer = Tokenizer::open(&self.dir)?;
        let ids = model.text().ids(&tokenizer, text)?;
        model.encode_text(&ids)
    }

    /// The score for a cosine of CLIP and SigLIP, and SigLIP's probability that text and picture belong together.
    pub fn judge(&self, cosine: f32) -> (Option<f32>, Option<f32>) {
        let PictureEncoder::Dual(model) = &self.encoder else {
            return (None, None);
        };
        let logit = model.logit(cosine);
        (Some(logit), model.probability(logit))
    }
}

impl PictureEncoder {
    fn load(dir: &Path, spec: PictureModelSpec, processor: &PictureProcessor) -> Result<Self> {
        let mut weights = weights_of_directory(dir)?;
        let encoder = match spec {
            PictureModelSpec::Dual(spec) => {
                Self::Dual(Box::new(DualEncoder::load(&spec, &mut weights)?))
            }
            PictureModelSpec::Vit(spec) => {
                weights.leave_out("classifier");
                let vit = Vit::load(&spec, &mut weights, "vision")?;
                let side = square(processor, spec.image_size)?;
                Self::Vit(Box::new(vit.for_pictures_of(side)?))
            }
            PictureModelSpec::ConvNet(spec) => {
                weights.leave_out("classifier");
                Self::ConvNet(ConvNet::load(&spec.grid(), &mut weights)?)
            }
        };
        weights.finish()?;
        Ok(encoder)
    }
}

/// The side of what the processor makes of every picture; `usual` is what the configuration says.
fn square(processor: &PictureProcessor, usual: usize) -> Result<usize> {
    match processor.spec().shape() {
        Some([height, width]) if height == width => Ok(height),
        found => {
            let message = format!(
                "its processor makes pictures of {found:?}, expected squares, of {usual}x{usual} pixels say"
            );
            Err(Error::new(Kind::BadInput, message))
        }
    }
}
