//! Frame encoders: a VQGAN that gives codes, a vision transformer with a
//! connector that gives features, or an encoder of pictures that gives vectors.

use std::{path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use longreel_models::{
    checkpoint::weights::Weights,
    file_name::FileName,
    spec::{
        ModelSpec, VqganSpec,
        patches::PatchesSpec,
        processor::Medium,
        system::{Need, SystemSpec},
    },
    systems::System,
    vision::{
        features::{FeatureEncoder, SquareEncoder},
        image::{RgbView, lwm_frame, to_signed_unit},
        native::{Grid, NativeEncoder},
        patches::VideoPatches,
        processor::PictureProcessor,
        vqgan::Vqgan,
    },
};

use crate::{
    error::{Context, Error, Kind, Result},
    flow::{FeatureRows, RgbImage, StepContent},
    reel::{ReelContent, ReelHeader, RowForm, RowsDtype, StepRows, modified_s},
    vectors::VectorModel,
};

/// The shape of a model's step, known before its weights are loaded.
#[derive(Debug, Clone, PartialEq)]
pub enum StepShape {
    /// One frame with a fixed number of codes or rows.
    Fixed {
        /// Tokens per frame.
        rows: usize,
    },
    /// Frames of any size, several per step.
    Native(PatchesSpec),
}

impl StepShape {
    /// Of `system`, whose model is of `spec`; `None` for a text model.
    ///
    /// # Errors
    /// `BadInput` where the folder's processor cannot be read.
    pub fn of(system: &System, spec: &ModelSpec, budget: &PixelBudget) -> Result<Option<Self>> {
        if let Some(rows) = spec.tokens_per_frame() {
            return Ok(Some(Self::Fixed { rows }));
        }
        if spec.vision.is_none() {
            return Ok(None);
        }
        let patches = PatchesSpec::of_folder(system.processor(), Medium::Video)?;
        Ok(Some(Self::Native(budget.lift(patches)?)))
    }

    /// Frames per step.
    pub fn frames(&self) -> usize {
        match self {
            Self::Fixed { .. } => 1,
            Self::Native(patches) => patches.temporal_patch_size,
        }
    }

    /// Codes or rows per step of a video of `n_frames` pictures of height and width `size`.
    ///
    /// # Errors
    /// `BadInput` for sizes that the model does not accept.
    pub fn rows(&self, size: [usize; 2], n_frames: usize) -> Result<usize> {
        self.step(size, n_frames).map(|step| step.rows)
    }

    /// [`StepShape::rows`], with their grid.
    ///
    /// # Errors
    /// As there.
    pub fn step(&self, size: [usize; 2], n_frames: usize) -> Result<StepRows> {
        match self {
            Self::Fixed { rows } => Ok(StepRows {
                rows: *rows,
                grid: None,
            }),
            Self::Native(patches) => {
                let sides = patches.size(size, n_frames)?;
                let [rows, columns] = sides.map(|side| side / patches.factor());
                Ok(StepRows {
                    rows: rows.saturating_mul(columns),
                    grid: Some([rows, columns]),
                })
            }
        }
    }

    /// Checks that a reel has features of the model in `dir`, whose rows have `width` numbers.
    ///
    /// # Errors
    /// `BadInput`, with what the reel has and both models.
    pub fn check_reel(&self, header: &ReelHeader, dir: &Path, width: usize) -> Result<()> {
        let frames = self.frames();
        let is_ours = |step: StepRows| match self {
            Self::Fixed { rows } => step.rows == *rows && step.grid.is_none(),
            Self::Native(_) => step.grid.is_some(),
        };
        let steps = || header.videos.iter().filter_map(|video| video.step);
        match header.content {
            ReelContent::Features {
                row, frames: found, ..
            } if row.width == width && found == frames && steps().all(is_ours) => Ok(()),
            found => {
                let found = match steps().find(|step| !is_ours(*step)) {
                    Some(step) => format!("{found}, {step}"),
                    None => found.to_string(),
                };
                let message = format!(
                    "the reel was made by {} and has {found}, the model {} makes features of {width} numbers, {self}",
                    header.model,
                    dir.shown()
                );
                Err(Error::new(Kind::BadInput, message))
            }
        }
    }
}

impl std::fmt::Display for StepShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed { rows } => write!(f, "{rows} for each frame"),
            Self::Native(_) => write!(f, "a grid of them for {} frames", self.frames()),
        }
    }
}

/// The user's limits in place of a model's own pixel budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PixelBudget {
    /// Minimum pixels.
    pub min: Option<usize>,
    /// Maximum pixels.
    pub max: Option<usize>,
}

impl PixelBudget {
    fn lift(&self, patches: PatchesSpec) -> Result<PatchesSpec> {
        let min_pixels = self.min.unwrap_or(patches.min_pixels);
        let max_pixels = self.max.unwrap_or(patches.max_pixels);
        if !(1..=max_pixels).contains(&min_pixels) || max_pixels >= 1 << 53 {
            let message = format!(
                "the budget is {min_pixels} to {max_pixels} pixels, expected at least 1 and no more than --max-pixels"
            );
            return Err(Error::new(Kind::Usage, message));
        }
        Ok(PatchesSpec {
            min_pixels,
            max_pixels,
            ..patches
        })
    }
}

/// The frame encoder of a model.
pub enum FrameEncoder {
    /// Frames to codes of a codebook.
    Codes {
        /// The network.
        vqgan: Box<Vqgan>,
        /// Its specification.
        spec: VqganSpec,
    },
    /// Square pictures to features.
    Pictures {
        /// The network.
        encoder: Box<SquareEncoder>,
        /// Pictures to its input.
        processor: PictureProcessor,
        /// Channels of a row.
        width: usize,
    },
    /// Steps of frames of any size to features.
    Steps {
        /// The network.
        encoder: Box<NativeEncoder>,
        /// Pictures to its input.
        patches: VideoPatches,
        /// Channels of a row.
        width: usize,
    },
    /// Frames to vectors, for comparison with pictures or texts instead of a context.
    Vectors(Box<VectorModel>),
}

impl FrameEncoder {
    /// The encoder of `system`, whose model is of `spec`; `None` for a text model.
    ///
    /// # Errors
    /// `BadInput` for weights or a processor that do not fit the model.
    pub fn load(
        system: &System,
        spec: &ModelSpec,
        budget: &PixelBudget,
        weights: &mut Weights,
    ) -> Result<Option<Self>> {
        if let Some(vqgan) = &spec.vqgan {
            return Self::codes(vqgan, weights).map(Some);
        }
        let Some(vision) = &spec.vision else {
            return Ok(None);
        };
        let width = spec.decoder.feature_width();
        match FeatureEncoder::load(&vision.features, spec.decoder.hidden_size, weights)? {
            FeatureEncoder::Square(encoder) => Ok(Some(Self::Pictures {
                encoder,
                processor: PictureProcessor::of_folder(system.processor(), Medium::Video)?,
                width,
            })),
            FeatureEncoder::Native(encoder) => {
                let patches = PatchesSpec::of_folder(system.processor(), Medium::Video)?;
                Ok(Some(Self::Steps {
                    encoder,
                    patches: VideoPatches::new(budget.lift(patches)?),
                    width,
                }))
            }
        }
    }

    fn codes(spec: &VqganSpec, weights: &mut Weights) -> Result<Self> {
        Ok(Self::Codes {
            vqgan: Box::new(Vqgan::load(spec, weights)?),
            spec: spec.clone(),
        })
    }

    /// Frames per step.
    pub fn frames_per_step(&self) -> usize {
        match self {
            Self::Codes { .. } | Self::Pictures { .. } | Self::Vectors(_) => 1,
            Self::Steps { patches, .. } => patches.spec().temporal_patch_size,
        }
    }

    /// The newline row after a video; empty where there is none.
    pub fn newline(&self) -> Vec<f32> {
        match self {
            Self::Codes { .. } | Self::Steps { .. } | Self::Vectors(_) => Vec::new(),
            Self::Pictures { encoder, .. } => encoder.newline().to_vec(),
        }
    }

    /// The height and width to which the frames of a video of `n_frames` pictures of `size` are resized; `None` where
    /// the size is fixed.
    ///
    /// # Errors
    /// `BadInput` for sizes that the model does not accept.
    pub fn frame_size(&self, size: [usize; 2], n_frames: usize) -> Result<Option<[usize; 2]>> {
        match self {
            Self::Codes { .. } | Self::Pictures { .. } | Self::Vectors(_) => Ok(None),
            Self::Steps { patches, .. } => patches.spec().size(size, n_frames).map(Some),
        }
    }

    /// Encodes the pictures of one step, at the [`FrameEncoder::frame_size`] of their video.
    ///
    /// # Errors
    /// `BadInput` for a picture that cannot be preprocessed, `Compute` for NaN or infinity.
    pub fn encode(&self, pictures: &[RgbImage], size: Option<[usize; 2]>) -> Result<StepContent> {
        let views = pictures.iter();
        let views = views.map(|p| RgbView::new(p.width, p.height, &p.data));
        let views = views.collect::<Result<Vec<_>>>()?;
        match (self, views.as_slice(), size) {
            (Self::Codes { vqgan, spec }, &[view], _) => codes_of(vqgan, spec.resolution, view),
            (
                Self::Pictures {
                    encoder,
                    processor,
                    width,
                },
                &[view],
                _,
            ) => Ok(StepContent::Features(FeatureRows {
                rows: encoder.forward(&processor.pixels(view)?)?,
                width: *width,
                grid: None,
            })),
            (Self::Vectors(model), &[view], _) => Ok(StepContent::Features(FeatureRows {
                rows: model.of_picture(view)?,
                width: model.width(),
                grid: None,
            })),
            (
                Self::Steps {
                    encoder,
                    patches,
                    width,
                },
                views,
                Some(size),
            ) => {
                let patches_of_step = patches.step(views, size)?;
                let [rows, columns] = patches_of_step.grid;
                let merge = patches.spec().merge_size;
                Ok(StepContent::Features(FeatureRows {
                    rows: encoder.step(&patches_of_step.rows, Grid { rows, columns })?,
                    width: *width,
                    grid: Some([rows / merge, columns / merge]),
                }))
            }
            (_, views, _) => {
                let message = format!("{} pictures of a step, expected one", views.len());
                Err(Error::new(Kind::Internal, message))
            }
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

/// Only the frame encoder of a model: what `encode` and `reconstruct` need.
pub struct EncoderModel {
    /// What it was opened from.
    pub system: Arc<System>,
    /// The encoder.
    pub encoder: FrameEncoder,
    /// The step shape; `None` for vectors.
    shape: Option<StepShape>,
    digest: u64,
}

impl EncoderModel {
    /// Loads the frame encoder of `system`; the decoder's weights are not touched.
    ///
    /// # Errors
    /// `BadInput` for a text model.
    pub fn load(system: &Arc<System>, budget: &PixelBudget) -> Result<Self> {
        let doing = || format!("open the model {}", system.path().shown());
        let (encoder, shape, digest) = match system.spec() {
            SystemSpec::DualEncoder(_) | SystemSpec::Classifier(_) | SystemSpec::ConvNet(_) => {
                let model = VectorModel::load(system)?;
                (Some(FrameEncoder::Vectors(Box::new(model))), None, 0)
            }
            SystemSpec::Vqgan(vqgan) => {
                let mut weights = system.weights().doing(doing)?;
                let encoder = FrameEncoder::codes(vqgan, &mut weights).doing(doing)?;
                let digest = encoder_digest(&weights);
                weights.finish().doing(doing)?;
                (Some(encoder), None, digest)
            }
            SystemSpec::Answers(spec) => {
                let mut weights = system.weights().doing(doing)?;
                let encoder = FrameEncoder::load(system, spec, budget, &mut weights);
                let shape = StepShape::of(system, spec, budget).doing(doing)?;
                (encoder.doing(doing)?, shape, encoder_digest(&weights))
            }
        };
        Ok(Self {
            encoder: encoder.ok_or_else(|| system.refusal(Need::Frames))?,
            system: Arc::clone(system),
            shape,
            digest,
        })
    }

    /// The digest of its weights ([`encoder_digest`]).
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The VQGAN and its specification.
    ///
    /// # Errors
    /// `BadInput` for an encoder without codes.
    pub fn codes(&self) -> Result<(&Vqgan, &VqganSpec)> {
        match &self.encoder {
            FrameEncoder::Codes { vqgan, spec } => Ok((vqgan, spec)),
            FrameEncoder::Pictures { .. }
            | FrameEncoder::Steps { .. }
            | FrameEncoder::Vectors(_) => Err(self.system.refusal(Need::Codes)),
        }
    }

    /// The content of a reel's steps with numbers in `dtype`, by default f16 for vectors and bf16 for features.
    ///
    /// # Errors
    /// `Usage` for a type with codes, which are integers.
    pub fn content(&self, dtype: Option<RowsDtype>) -> Result<ReelContent> {
        let row = |width: usize, usual| RowForm {
            width,
            dtype: dtype.unwrap_or(usual),
        };
        match &self.encoder {
            FrameEncoder::Codes { .. } if dtype.is_some() => {
                let message =
                    "the model makes codes, which are whole numbers: expected no type for them";
                Err(Error::new(Kind::Usage, message))
            }
            FrameEncoder::Codes { spec, .. } => Ok(ReelContent::Codes {
                grid: spec.grid(),
                codebook: spec.num_embeddings,
            }),
            FrameEncoder::Vectors(model) => {
                Ok(ReelContent::Vectors(row(model.width(), RowsDtype::F16)))
            }
            FrameEncoder::Pictures { width, .. } | FrameEncoder::Steps { width, .. } => {
                Ok(ReelContent::Features {
                    row: row(*width, RowsDtype::Bf16),
                    frames: self.encoder.frames_per_step(),
                    encoder: self.digest,
                })
            }
        }
    }

    /// The rows per step of a video of `n_frames` pictures of height and width `size`; `None` unless features.
    ///
    /// # Errors
    /// `BadInput` for sizes that the model does not accept.
    pub fn step(&self, size: [usize; 2], n_frames: usize) -> Result<Option<StepRows>> {
        match (&self.encoder, &self.shape) {
            (FrameEncoder::Pictures { .. } | FrameEncoder::Steps { .. }, Some(shape)) => {
                shape.step(size, n_frames).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// What a frame is in a reel that an encoder of `spec` makes; `None` for a model that answers.
pub fn content_of(spec: &SystemSpec) -> Option<ReelContent> {
    let vector = |width| {
        ReelContent::Vectors(RowForm {
            width,
            dtype: RowsDtype::F16,
        })
    };
    match spec {
        SystemSpec::Answers(_) => None,
        SystemSpec::Vqgan(spec) => Some(ReelContent::Codes {
            grid: spec.grid(),
            codebook: spec.num_embeddings,
        }),
        _ => spec.vector_width().map(vector),
    }
}

/// Digest of the weights that make codes or features, wherever they are stored.
pub fn encoder_digest(weights: &Weights) -> u64 {
    weights.digest(&["vqgan", "vision", "connector", "deepstack"])
}

/// Unix time at which the newest weight file of `system` was written, in seconds; 0 if unknown.
pub fn weights_modified_s(system: &System) -> u64 {
    let files = std::fs::read_dir(system.path())
        .into_iter()
        .flatten()
        .flatten();
    let paths = files.map(|f| f.path());
    let weights = paths.filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    weights.map(|p| modified_s(&p)).max().unwrap_or(0)
}
