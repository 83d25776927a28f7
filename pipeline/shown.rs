//! What a model is shown of a frame, before any of its weights is loaded.

use std::path::Path;

use longreel_models::{
    checkpoint::import_hf::{
        picture_model_of_directory, spec_of_directory, vqgan_alone_of_directory,
    },
    spec::{ModelSpec, processor::Medium},
    vision::{
        image::{RgbView, lwm_frame},
        patches::VideoPatches,
        processor::PictureProcessor,
    },
};

use crate::{
    encoder::{PixelBudget, StepShape, no_vision},
    error::{Context, Result},
    flow::RgbImage,
};

/// How frames are resized and cropped.
pub enum Shown {
    /// To a square of this side, as LWM does it.
    Square(usize),
    /// By the processor of pictures of the model's folder.
    Picture(PictureProcessor),
    /// To whole patches, within a budget of pixels.
    Patches(VideoPatches),
}

impl Shown {
    /// As the model in `dir` wants them.
    ///
    /// # Errors
    /// `BadInput` for a text model, and for a folder whose processor cannot be read.
    pub fn of(dir: &Path, budget: &PixelBudget) -> Result<Self> {
        let doing = || format!("open the model {}", dir.display());
        if picture_model_of_directory(dir).doing(doing)?.is_some() {
            let processor = PictureProcessor::of_directory(dir, Medium::Picture);
            return processor.map(Self::Picture).doing(doing);
        }
        if let Some(vqgan) = vqgan_alone_of_directory(dir).doing(doing)? {
            return Ok(Self::Square(vqgan.resolution));
        }
        let spec = spec_of_directory(dir).doing(doing)?;
        Self::of_spec(dir, &spec, budget).doing(doing)
    }

    fn of_spec(dir: &Path, spec: &ModelSpec, budget: &PixelBudget) -> Result<Self> {
        if let Some(vqgan) = &spec.vqgan {
            return Ok(Self::Square(vqgan.resolution));
        }
        match StepShape::of(dir, spec, budget)? {
            Some(StepShape::Native(patches)) => Ok(Self::Patches(VideoPatches::new(patches))),
            Some(StepShape::Fixed { .. }) => {
                PictureProcessor::of_directory(dir, Medium::Video).map(Self::Picture)
            }
            None => Err(no_vision(dir)),
        }
    }

    /// The picture, one of `n_frames` of its video, as the model gets it but for the scale of its numbers.
    ///
    /// # Errors
    /// `BadInput` for a size that the model does not take.
    pub fn of_frame(&self, image: &RgbImage, n_frames: usize) -> Result<RgbImage> {
        let view = RgbView::new(image.width, image.height, &image.data)?;
        let (data, [height, width]) = match self {
            Self::Square(side) => (lwm_frame(view, *side)?, [*side; 2]),
            Self::Picture(processor) => processor.shown(view)?,
            Self::Patches(patches) => {
                let size = patches.spec().size([image.height, image.width], n_frames)?;
                (patches.shown(view, size)?, size)
            }
        };
        Ok(RgbImage {
            width,
            height,
            data,
        })
    }
}
