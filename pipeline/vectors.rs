//! Encoders of pictures to vectors: CLIP and SigLIP, which also encode texts, and ViT, DINOv2 and ResNet.

use std::sync::Arc;

use longreel_models::{
    checkpoint::weights::Weights,
    dual_encoder::{DualEncoder, normalize},
    file_name::FileName,
    spec::{
        processor::Medium,
        system::{Need, SystemKind, SystemSpec},
    },
    systems::System,
    vision::{conv_net::ConvNet, image::RgbView, processor::PictureProcessor, vit::Vit},
};

use crate::error::{Context, Error, Kind, Result};

/// An encoder of pictures, and of texts where it has a text encoder.
pub struct VectorModel {
    /// What it was opened from.
    pub system: Arc<System>,
    encoder: PictureEncoder,
    processor: PictureProcessor,
}

/// The network of an encoder of pictures.
pub enum PictureEncoder {
    /// CLIP or SigLIP.
    Dual(Box<DualEncoder>),
    /// ViT or DINOv2: the class token after the final norm.
    Vit(Box<Vit>),
    /// ResNet: the mean of the last stage.
    ConvNet(ConvNet),
}

impl VectorModel {
    /// Loads the encoder of pictures that `system` is.
    ///
    /// # Errors
    /// `BadInput` for a model of another kind, or a directory that is damaged.
    pub fn load(system: &Arc<System>) -> Result<Self> {
        let doing = || format!("open the model {}", system.path().shown());
        let mut weights = system.weights().doing(doing)?;
        let encoder = PictureEncoder::load(system, &mut weights)?;
        weights.finish().doing(doing)?;
        let processor = PictureProcessor::of_folder(system.processor(), Medium::Picture);
        let processor = processor.doing(doing)?;
        Ok(Self {
            system: Arc::clone(system),
            encoder: encoder.for_pictures_of(&processor).doing(doing)?,
            processor,
        })
    }

    /// [`VectorModel::load`], of a model that makes vectors of texts as well.
    ///
    /// # Errors
    /// As there; `BadInput` for an encoder of pictures alone.
    pub fn of_texts(system: &Arc<System>) -> Result<Self> {
        match system.kind() {
            SystemKind::DualEncoder => Self::load(system),
            _ => Err(system.refusal(Need::TextVectors)),
        }
    }

    /// Width of a vector.
    pub fn width(&self) -> usize {
        match &self.encoder {
            PictureEncoder::Dual(model) => model.width(),
            PictureEncoder::Vit(vit) => vit.spec().encoder.hidden_size,
            PictureEncoder::ConvNet(net) => net.out_channels(),
        }
    }

    /// picture → unit vector `[width]`.
    ///
    /// # Errors
    /// `BadInput` for a picture that cannot be preprocessed.
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

    /// text → unit vector `[width]`; the tokenizer is that of the model's directory.
    ///
    /// # Errors
    /// `NotFound` when there is no tokenizer, `BadInput` for an empty text or an encoder without texts.
    pub fn of_text(&self, text: &str) -> Result<Vec<f32>> {
        let PictureEncoder::Dual(model) = &self.encoder else {
            return Err(self.system.refusal(Need::TextVectors));
        };
        let tokenizer = self.system.tokenizer()?;
        let ids = model.text().ids(&tokenizer, text)?;
        model.encode_text(&ids)
    }

    /// The logit of CLIP and SigLIP for a cosine, and SigLIP's probability that the text describes the picture.
    pub fn judge(&self, cosine: f32) -> (Option<f32>, Option<f32>) {
        let PictureEncoder::Dual(model) = &self.encoder else {
            return (None, None);
        };
        let logit = model.logit(cosine);
        (Some(logit), model.probability(logit))
    }
}

impl PictureEncoder {
    /// The network of `system`, whose classifier is left out.
    ///
    /// # Errors
    /// `BadInput` for a model of another kind, and for weights that are not those of this one.
    pub fn load(system: &System, weights: &mut Weights) -> Result<Self> {
        let loaded = match system.spec() {
            SystemSpec::DualEncoder(spec) => {
                DualEncoder::load(spec, weights).map(|model| Self::Dual(Box::new(model)))
            }
            SystemSpec::Classifier(spec) => {
                weights.leave_out("classifier");
                Vit::load(spec, weights, "vision").map(|vit| Self::Vit(Box::new(vit)))
            }
            SystemSpec::ConvNet(spec) => {
                weights.leave_out("classifier");
                ConvNet::load(&spec.clone().grid(), weights).map(Self::ConvNet)
            }
            SystemSpec::Answers(_) | SystemSpec::Vqgan(_) => {
                return Err(system.refusal(Need::PictureVectors));
            }
        };
        loaded.doing(|| format!("open the model {}", system.path().shown()))
    }

    /// The same with the positions that the pictures of `processor` need.
    fn for_pictures_of(self, processor: &PictureProcessor) -> Result<Self> {
        match self {
            Self::Vit(vit) => {
                let side = square(processor, vit.spec().image_size)?;
                Ok(Self::Vit(Box::new(vit.for_pictures_of(side)?)))
            }
            other => Ok(other),
        }
    }
}

/// The side of the processor's output; `usual` is the configuration's.
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
