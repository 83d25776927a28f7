//! Preprocessing of frames as a model sees them, without its weights.

use longreel_models::{
    file_name::FileName,
    spec::{
        ModelSpec,
        frame_choice::FrameChoice,
        processor::Medium,
        system::{Need, SystemSpec},
    },
    systems::System,
    vision::{
        image::{RgbView, lwm_frame},
        patches::VideoPatches,
        processor::PictureProcessor,
    },
};

use crate::{
    encoder::{PixelBudget, StepShape},
    error::{Context, Result},
    flow::RgbImage,
    sources::sampler::Sampling,
};

/// The default sampling of frames for `system`: the rule of its processor, else one frame per second.
///
/// # Errors
/// `BadInput` where the folder's processor cannot be read.
pub fn usual_sampling(system: &System) -> Result<Sampling> {
    match system.spec() {
        SystemSpec::Answers(spec) if spec.vision.is_some() => {
            let choice = FrameChoice::of_folder(system.processor())?;
            Ok(Sampling::Rule { choice, rate: None })
        }
        _ => Ok(Sampling::ONE_A_SECOND),
    }
}

/// How frames are resized and cropped.
pub enum Shown {
    /// To a square of this side, as in LWM.
    Square(usize),
    /// By the picture processor of the model's folder.
    Picture(PictureProcessor),
    /// To whole patches, within a pixel budget.
    Patches(VideoPatches),
}

impl Shown {
    /// As `system` wants them.
    ///
    /// # Errors
    /// `BadInput` for a text model, and for a folder whose processor cannot be read.
    pub fn of(system: &System, budget: &PixelBudget) -> Result<Self> {
        let doing = || format!("open the model {}", system.path().shown());
        match system.spec() {
            SystemSpec::DualEncoder(_) | SystemSpec::Classifier(_) | SystemSpec::ConvNet(_) => {
                let processor = PictureProcessor::of_folder(system.processor(), Medium::Picture);
                processor.map(Self::Picture).doing(doing)
            }
            SystemSpec::Vqgan(vqgan) => Ok(Self::Square(vqgan.resolution)),
            SystemSpec::Answers(spec) => Self::of_spec(system, spec, budget),
        }
    }

    fn of_spec(system: &System, spec: &ModelSpec, budget: &PixelBudget) -> Result<Self> {
        let doing = || format!("open the model {}", system.path().shown());
        if let Some(vqgan) = &spec.vqgan {
            return Ok(Self::Square(vqgan.resolution));
        }
        match StepShape::of(system, spec, budget).doing(doing)? {
            Some(StepShape::Native(patches)) => Ok(Self::Patches(VideoPatches::new(patches))),
            Some(StepShape::Fixed { .. }) => {
                let processor = PictureProcessor::of_folder(system.processor(), Medium::Video);
                processor.map(Self::Picture).doing(doing)
            }
            None => Err(system.refusal(Need::Frames)),
        }
    }

    /// The preprocessed picture, one of `n_frames` of its video, before normalization.
    ///
    /// # Errors
    /// `BadInput` for a size that the model does not accept.
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
