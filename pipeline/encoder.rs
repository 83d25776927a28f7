//! What looks at frames: a VQGAN that gives codes, or a vision transformer with a
//! connector that gives features.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use longreel_models::{
    checkpoint::{
        import_hf::{spec_of_directory, weights_of_directory},
        weights::Weights,
    },
    spec::{ModelSpec, VqganSpec, processor::Medium},
    vision::{
        features::{FeatureEncoder, SquareEncoder},
        image::{RgbView, lwm_frame, to_signed_unit},
        processor::PictureProcessor,
        vqgan::Vqgan,
    },
};

use crate::{
    error::{Context, Error, Kind, Result},
    flow::{FeatureRows, RgbImage, StepContent},
};

/// The part of a model that looks at frames.
pub enum FrameEncoder {
    /// Frames to codes of a codebook.
    Codes {
        /// The network.
        vqgan: Box<Vqgan>,
        /// Its shape.
        spec: VqganSpec,
    },
    /// Square pictures to rows that stand in a context in place of embeddings.
    Pictures {
        /// The network.
        encoder: Box<SquareEncoder>,
        /// Pictures to its input.
        processor: PictureProcessor,
        /// Channels of a row.
        width: usize,
    },
}

impl FrameEncoder {
    /// The encoder of the model in `dir`, of `spec`; `None` for a text model.
    pub fn load(dir: &Path, spec: &ModelSpec, weights: &mut Weights) -> Result<Option<Self>> {
        if let Some(spec) = &spec.vqgan {
            let vqgan = Box::new(Vqgan::load(spec, weights)?);
            let spec = spec.clone();
            return Ok(Some(Self::Codes { vqgan, spec }));
        }
        let Some(vision) = &spec.vision else {
            return Ok(None);
        };
        let width = spec.decoder.feature_width();
        match FeatureEncoder::load(&vision.features, spec.decoder.hidden_size, weights)? {
            FeatureEncoder::Square(encoder) => Ok(Some(Self::Pictures {
                encoder,
                processor: PictureProcessor::of_directory(dir, Medium::Video)?,
                width,
            })),
            FeatureEncoder::Native(_) => {
                let message = "frames of any size have no processor here";
                Err(Error::new(Kind::BadInput, message))
            }
        }
    }

    /// Frames that are looked at together.
    pub fn frames_per_step(&self) -> usize {
        match self {
            Self::Codes { .. } | Self::Pictures { .. } => 1,
        }
    }

    /// The row that stands behind a video; empty where there is none.
    pub fn newline(&self) -> Vec<f32> {
        match self {
            Self::Codes { .. } => Vec::new(),
            Self::Pictures { encoder, .. } => encoder.newline().to_vec(),
        }
    }

    /// The pictures of one temporal step → what they are in a context.
    ///
    /// # Errors
    /// `BadInput` for a picture that cannot be prepared, `Compute` for numbers that are none.
    pub fn encode(&self, pictures: &[RgbImage]) -> Result<StepContent> {
        let [picture] = pictures else {
            let message = format!("{} pictures of a step, expected one", pictures.len());
            return Err(Error::new(Kind::Internal, message));
        };
        let view = RgbView::new(picture.width, picture.height, &picture.data)?;
        match self {
            Self::Codes { vqgan, spec } => codes_of(vqgan, spec.resolution, view),
            Self::Pictures {
                encoder,
                processor,
                width,
            } => Ok(StepContent::Features(FeatureRows {
                rows: encoder.forward(&processor.pixels(view)?)?,
                width: *width,
                grid: None,
            })),
        }
    }
}

/// One picture → `grid²` codes.
fn codes_of(vqgan: &Vqgan, side: usize, picture: RgbView) -> Result<StepContent> {
    let pixels = to_signed_unit(&lwm_frame(picture, side)?);
    let pixels = Tensor::from_vec(pixels, (1, side, side, 3), &Device::Cpu)?;
    let codes = vqgan.encode(&pixels)?.into_iter().flatten().collect();
    Ok(StepContent::Codes(codes))
}

/// Only the frame encoder of a model directory: what `encode` and `reconstruct` need.
pub struct EncoderModel {
    /// Where it came from.
    pub dir: PathBuf,
    /// Frames to what they are in a context.
    pub encoder: FrameEncoder,
}

impl EncoderModel {
    /// Opens the frame encoder of the model directory `dir`; the decoder's weights are not touched.
    ///
    /// # Errors
    /// `BadInput` for a text model.
    pub fn open(dir: &Path) -> Result<Self> {
        let doing = || format!("open the model {}", dir.display());
        let spec = spec_of_directory(dir).doing(doing)?;
        let mut weights = weights_of_directory(dir).doing(doing)?;
        let encoder = FrameEncoder::load(dir, &spec, &mut weights).doing(doing)?;
        Ok(Self {
            dir: dir.to_owned(),
            encoder: encoder.ok_or_else(|| no_vision(dir))?,
        })
    }

    /// The frame tokenizer and its shape.
    ///
    /// # Errors
    /// `BadInput` for an encoder that makes no codes.
    pub fn codes(&self) -> Result<(&Vqgan, &VqganSpec)> {
        match &self.encoder {
            FrameEncoder::Codes { vqgan, spec } => Ok((vqgan, spec)),
            FrameEncoder::Pictures { .. } => Err(no_codes(&self.dir)),
        }
    }
}

/// The model in `dir` sees nothing.
pub fn no_vision(dir: &Path) -> Error {
    let message = format!(
        "the model {} is a text model, expected one that looks at frames",
        dir.display()
    );
    Error::new(Kind::BadInput, message)
}

/// The model in `dir` cannot turn codes back into pictures.
pub fn no_codes(dir: &Path) -> Error {
    let message = format!(
        "the model {} makes no codes of frames, expected one with a VQGAN",
        dir.display()
    );
    Error::new(Kind::BadInput, message)
}
