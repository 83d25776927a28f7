//! Preprocessing of pictures for an encoder, as in `preprocessor_config.json`.
//!
//! Absent keys have the default of the file's class in transformers 5; a folder without
//! a file has the defaults of the `model_type` of its `config.json`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::{Context, Error, Kind, Result},
    file_name::FileName,
    folder_file,
};

/// Mean and standard deviation of OpenAI's CLIP.
const CLIP: [[f64; 3]; 2] = [
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
];
/// Mean and standard deviation of ImageNet.
const IMAGENET: [[f64; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
/// Normalizes to [-1, 1].
const HALF: [[f64; 3]; 2] = [[0.5; 3]; 2];

/// `1 / 255` as written in the files.
const RESCALE: f64 = 0.003_921_568_627_450_98;

/// From this size on, ConvNext's pictures are resized to the square without a crop.
const CONVNEXT_SQUARE: usize = 384;

/// LLaVA-Video, and LLaVA-OneVision as its authors store it.
const LLAVA_QWEN: &str = "llava_qwen";

/// Maximum side of a picture for an encoder.
pub const SIDE_MAX: usize = 16_384;

/// Maximum bytes of a JSON file.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// How a picture is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// No resize.
    None,
    /// The shorter side becomes this; the longer one is scaled and truncated.
    ShortestEdge(usize),
    /// To this height and width, whatever the aspect ratio.
    Exact([usize; 2]),
}

/// The resize filter; `resample` 3 and 2 of Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterName {
    /// 3
    Bicubic,
    /// 2
    Bilinear,
}

/// The normalization of bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalize {
    /// Factor of each byte.
    pub rescale: Option<f64>,
    /// Then mean and standard deviation per channel, red first.
    pub mean_std: Option<[[f64; 3]; 2]>,
}

impl Normalize {
    /// CLIP's normalization.
    pub(crate) const CLIP: Self = Self::by(CLIP);
    /// Normalizes to [-1, 1].
    pub(crate) const HALF: Self = Self::by(HALF);

    const fn by(mean_std: [[f64; 3]; 2]) -> Self {
        Self {
            rescale: Some(RESCALE),
            mean_std: Some(mean_std),
        }
    }

    /// A class's values, overridden by a file's.
    pub(crate) fn with(
        self,
        (do_rescale, factor): (Option<bool>, Option<f64>),
        (do_normalize, mean, std): (Option<bool>, Option<Channels>, Option<Channels>),
    ) -> Result<Self> {
        check_above_zero("rescale_factor", factor)?;
        let [usual_mean, usual_std] = self.mean_std.unwrap_or(HALF);
        let mean = mean.map_or(usual_mean, Channels::three);
        let std = std.map_or(usual_std, Channels::three);
        if mean.iter().any(|m| !m.is_finite()) || std.iter().any(|s| !s.is_finite() || *s == 0.0) {
            return Err(bad(format!(
                "mean {mean:?} and standard deviation {std:?}, expected numbers and no division by 0"
            )));
        }
        Ok(Self {
            rescale: (do_rescale != Some(false)).then_some(factor.unwrap_or(RESCALE)),
            mean_std: (do_normalize != Some(false)).then_some([mean, std]),
        })
    }
}

/// Whether a folder's processor is used for pictures or for video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Single pictures.
    Picture,
    /// The frames of a video, for which some folders have a file of their own.
    Video,
}

/// The preprocessing of a picture, in the order of the fields.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureSpec {
    /// Whether it is first padded to a square with the mean colour, centred
    /// (LLaVA-1.5's original `image_aspect_ratio: pad`).
    pub pad_to_square: bool,
    /// The resize.
    pub resize: Resize,
    /// The resize filter.
    pub filter: FilterName,
    /// Centre crop to this height and width, zero-padded where the picture is smaller.
    pub crop: Option<[usize; 2]>,
    /// The normalization of bytes.
    pub normalize: Normalize,
    /// Whether blue comes first.
    pub flip_channels: bool,
}

/// A processor's file, whatever its class.
#[derive(Debug, Clone, Default, Deserialize)]
struct ProcessorFile {
    image_processor_type: Option<String>,
    video_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<Size>,
    resample: Option<u32>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    crop_pct: Option<f64>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<Channels>,
    image_std: Option<Channels>,
    do_pad: Option<bool>,
    do_flip_channel_order: Option<bool>,
}

/// A size: a number in old files, an object in new ones.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Number(usize),
    Sides { height: usize, width: usize },
    Edge { shortest_edge: usize },
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(crate) enum Channels {
    One(f64),
    Three([f64; 3]),
}

impl Channels {
    fn three(self) -> [f64; 3] {
        match self {
            Self::One(value) => [value; 3],
            Self::Three(values) => values,
        }
    }
}

/// A folder as far as pictures are prepared: its processor's files lie there, and its `config.json` says what those do not.
#[derive(Debug, Clone)]
pub struct ProcessorFolder {
    pub(crate) dir: PathBuf,
    pub(crate) model: Option<ProcessorModel>,
}

impl ProcessorFolder {
    /// The folder `dir`, whose `config.json` is `config`.
    ///
    /// # Errors
    /// `BadInput` for a key of another type than it has.
    pub fn new(dir: &Path, config: Option<&Value>) -> Result<Self> {
        let model = config.map(serde_path_to_error::deserialize).transpose();
        Ok(Self {
            dir: dir.to_owned(),
            model: model.map_err(|e| bad(e.to_string()))?,
        })
    }

    /// `model_type` of its `config.json`.
    pub(crate) fn model_type(&self) -> Option<&str> {
        self.model.as_ref().and_then(ProcessorModel::family)
    }

    /// What is being done when its `config.json` does not say how.
    pub(crate) fn config(&self) -> String {
        format!("config.json of {}", self.dir.shown())
    }
}

/// The fields of a folder's `config.json` that preprocessing depends on.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct ProcessorModel {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    vision_config: Option<VisionModel>,
    image_size: Option<Value>,
    /// Original LLaVA and VILA.
    image_aspect_ratio: Option<String>,
    mm_vision_tower: Option<String>,
    /// LLaVA-Video: always take the maximum number of frames, however short the video.
    pub(crate) force_sample: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct VisionModel {
    image_size: Option<Value>,
}

impl PictureSpec {
    /// The specification of a folder.
    ///
    /// The file is that of [`processor_json`].
    ///
    /// # Errors
    /// When the folder has no such file and no `config.json` of a known model, and for keys
    /// that are not supported.
    pub fn of_folder(folder: &ProcessorFolder, medium: Medium) -> Result<Self> {
        let ProcessorFolder { dir, model } = folder;
        let mut spec = match processor_json(folder, medium)? {
            Some((name, json)) => {
                Self::of_json(json, model.as_ref()).doing(|| dir.join(name).shown().to_string())?
            }
            None => {
                let model = model.as_ref().ok_or_else(|| none_there(dir))?;
                Self::of_model(model).doing(|| folder.config())?
            }
        };
        let aspect = model.as_ref().and_then(|m| m.image_aspect_ratio.as_deref());
        match aspect {
            // LLaVA-NeXT pads pictures, and resizes the frames of a video straight to the square.
            _ if model.as_ref().and_then(ProcessorModel::family) == Some(LLAVA_QWEN) => {}
            Some("pad") => spec.pad_to_square = true,
            Some("resize") => spec.make_square(),
            _ => {}
        }
        Ok(spec)
    }

    /// Parses the text of a `preprocessor_config.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        let json = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        Self::of_json(json, None).doing(|| "read preprocessor_config.json")
    }

    fn of_json(json: Value, model: Option<&ProcessorModel>) -> Result<Self> {
        let file: ProcessorFile =
            serde_path_to_error::deserialize(json).map_err(|e| bad(e.to_string()))?;
        let class = file.class();
        let spec = match (class, model) {
            (Some(class), _) => Self::of_class(class)?,
            (None, Some(model)) => Self::of_model(model)?,
            (None, None) => Self::clip(224),
        };
        spec.with(&file, class)?.checked()
    }

    /// The defaults of a class of transformers 5.
    fn of_class(class: &str) -> Result<Self> {
        Ok(match class {
            "CLIP" | "Llava" | "Bit" | "LlavaNext" => Self::clip(224),
            "Siglip" => Self::square(224, HALF),
            "ViT" => Self {
                filter: FilterName::Bilinear,
                ..Self::square(224, HALF)
            },
            "DeiT" => Self {
                crop: Some([224; 2]),
                ..Self::square(256, HALF)
            },
            "Blip" | "LlavaOnevision" | "InternVL" | "GotOcr2" => Self::square(384, CLIP),
            "ConvNext" => Self {
                resize: Resize::ShortestEdge(CONVNEXT_SQUARE),
                ..Self::square(CONVNEXT_SQUARE, HALF)
            },
            other => {
                return Err(bad(format!(
                    "pictures go through the class {other:?}, expected CLIP, Siglip, ViT, DeiT, Bit, Blip, ConvNext, \
                     Llava, LlavaNext, LlavaOnevision, InternVL or GotOcr2"
                )));
            }
        })
    }

    /// The usual values of a model, for a folder without a file.
    fn of_model(model: &ProcessorModel) -> Result<Self> {
        let side = |usual| model.side().unwrap_or(usual);
        let spec = match model.family().unwrap_or_default() {
            // Defaults of transformers' processor classes, for directories without a processor file.
            "clip" | "clip_vision_model" => Self::clip(side(224)),
            "siglip" | "siglip_vision_model" => Self::square(side(224), HALF),
            "vit" => Self {
                filter: FilterName::Bilinear,
                ..Self::square(side(224), HALF)
            },
            // The picture sizes in DINOv2's configurations (518) are not those of its processor.
            "dinov2" | "dinov2_with_registers" => Self {
                resize: Resize::ShortestEdge(256),
                normalize: Normalize::by(IMAGENET),
                ..Self::clip(224)
            },
            "resnet" => Self {
                resize: Resize::ShortestEdge(256),
                normalize: Normalize::by(IMAGENET),
                ..Self::clip(224)
            },
            "llava" | "llava_llama" | "vipllava" => Self::clip(side(336)),
            "llava_onevision" | LLAVA_QWEN => Self::square(side(384), HALF),
            "internvl" => Self::square(side(448), IMAGENET),
            other => {
                return Err(bad(format!(
                    "there is no preprocessor_config.json, and model_type {other:?} has no known defaults"
                )));
            }
        };
        spec.checked()
    }

    fn clip(side: usize) -> Self {
        Self {
            resize: Resize::ShortestEdge(side),
            crop: Some([side; 2]),
            ..Self::square(side, CLIP)
        }
    }

    fn square(side: usize, normalize: [[f64; 3]; 2]) -> Self {
        Self {
            pad_to_square: false,
            resize: Resize::Exact([side; 2]),
            filter: FilterName::Bicubic,
            crop: None,
            normalize: Normalize::by(normalize),
            flip_channels: false,
        }
    }

    /// The class's values, overridden by the file's.
    fn with(mut self, file: &ProcessorFile, class: Option<&str>) -> Result<Self> {
        // A single number is a square size for classes that resize to squares.
        let square = matches!(self.resize, Resize::Exact(_)) && class != Some("Siglip");
        match (file.do_resize, file.size) {
            (Some(false), _) => self.resize = Resize::None,
            (_, Some(size)) => self.resize = size.resize(square),
            (_, None) => {}
        }
        match (file.do_center_crop, file.crop_size) {
            (Some(false), _) => self.crop = None,
            (Some(true), Some(size)) => self.crop = Some(size.sides()?),
            (None, Some(size)) if self.crop.is_some() => self.crop = Some(size.sides()?),
            (Some(true), None) if self.crop.is_none() => {
                return Err(bad(
                    "do_center_crop is true and there is no crop_size".into()
                ));
            }
            _ => {}
        }
        if let Some(code) = file.resample {
            self.filter = filter(code)?;
        }
        check_above_zero("crop_pct", file.crop_pct)?;
        self.normalize = self.normalize.with(
            (file.do_rescale, file.rescale_factor),
            (file.do_normalize, file.image_mean, file.image_std),
        )?;
        // Other classes use `do_pad` for batches of pictures of different sizes, which do not occur here.
        self.pad_to_square = file.do_pad == Some(true) && class == Some("Llava");
        self.flip_channels = file.do_flip_channel_order == Some(true);
        if class == Some("ConvNext") {
            self.crop_as_convnext(file.crop_pct.unwrap_or(224.0 / 256.0));
        }
        Ok(self)
    }

    /// `size` is what is cropped, from a picture whose shorter side is larger (transformers,
    /// `image_processing_convnext.py`).
    fn crop_as_convnext(&mut self, crop_pct: f64) {
        match self.resize {
            // ConvNeXT below 384 pixels resizes to side / crop_pct, then crops (`ConvNextImageProcessor.resize`).
            Resize::ShortestEdge(side) if side < CONVNEXT_SQUARE => {
                self.resize = Resize::ShortestEdge((side as f64 / crop_pct) as usize);
                self.crop = Some([side; 2]);
            }
            Resize::ShortestEdge(side) => self.resize = Resize::Exact([side; 2]),
            Resize::None | Resize::Exact(_) => {}
        }
    }

    /// Resizes straight to the square, without a crop (VILA's `image_aspect_ratio: resize`).
    fn make_square(&mut self) {
        match (self.crop.take(), self.resize) {
            (Some(crop), _) => self.resize = Resize::Exact(crop),
            (None, Resize::ShortestEdge(side)) => self.resize = Resize::Exact([side; 2]),
            (None, Resize::None | Resize::Exact(_)) => {}
        }
    }

    /// Height and width of the output, where they do not depend on the picture.
    pub fn shape(&self) -> Option<[usize; 2]> {
        match (self.crop, self.resize) {
            (Some(crop), _) => Some(crop),
            (None, Resize::Exact(size)) => Some(size),
            (None, Resize::ShortestEdge(side)) if self.pad_to_square => Some([side; 2]),
            (None, Resize::None | Resize::ShortestEdge(_)) => None,
        }
    }

    fn checked(self) -> Result<Self> {
        let resize = match self.resize {
            Resize::None => [1; 2],
            Resize::ShortestEdge(side) => [side; 2],
            Resize::Exact(size) => size,
        };
        let sides = resize.into_iter().chain(self.crop.unwrap_or([1; 2]));
        for side in sides {
            if !(1..=SIDE_MAX).contains(&side) {
                return Err(bad(format!(
                    "a side of the picture is {side} pixels, expected 1 to {SIDE_MAX}"
                )));
            }
        }
        Ok(self)
    }
}

impl ProcessorFile {
    /// `CLIPImageProcessorFast` and `CLIPFeatureExtractor` are `CLIP`.
    fn class(&self) -> Option<&str> {
        let name = (self.video_processor_type.as_deref())
            .or(self.image_processor_type.as_deref())
            .or(self.feature_extractor_type.as_deref())?;
        // `CLIPImageProcessorFast` and `…Pil` are the same processor on another backend.
        let name = name.trim_end_matches("Fast").trim_end_matches("Pil");
        ["ImageProcessor", "VideoProcessor", "FeatureExtractor"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .or(Some(name))
    }
}

impl Size {
    fn resize(self, square: bool) -> Resize {
        match self {
            Self::Number(side) if square => Resize::Exact([side; 2]),
            Self::Number(side)
            | Self::Edge {
                shortest_edge: side,
            } => Resize::ShortestEdge(side),
            Self::Sides { height, width } => Resize::Exact([height, width]),
        }
    }

    fn sides(self) -> Result<[usize; 2]> {
        match self {
            Self::Number(side) => Ok([side; 2]),
            Self::Sides { height, width } => Ok([height, width]),
            Self::Edge { shortest_edge } => Err(bad(format!(
                "crop_size has a shortest_edge of {shortest_edge}, expected height and width"
            ))),
        }
    }
}

impl ProcessorModel {
    /// `model_type`, or that of LLaVA-NeXT's class where the authors' folders name another.
    pub(crate) fn family(&self) -> Option<&str> {
        let mut classes = self.architectures.iter().flatten();
        match classes.any(|class| class == "LlavaQwenForCausalLM") {
            true => Some(LLAVA_QWEN),
            false => self.model_type.as_deref(),
        }
    }

    /// The side of the encoder's pictures, where the configuration has it.
    fn side(&self) -> Option<usize> {
        let vision = self
            .vision_config
            .as_ref()
            .and_then(|v| v.image_size.as_ref());
        let size = vision
            .or(self.image_size.as_ref())
            .and_then(|size| match size {
                Value::Array(sides) => sides.first().and_then(Value::as_u64),
                other => other.as_u64(),
            });
        let tower = self.mm_vision_tower.as_deref();
        size.and_then(|size| usize::try_from(size).ok())
            // LLaVA 1.5 states the side only in its tower's name, `clip-vit-large-patch14-336`.
            .or_else(|| tower?.rsplit('-').next()?.parse().ok())
    }
}

fn check_above_zero(key: &str, value: Option<f64>) -> Result<()> {
    match value {
        Some(value) if !(value.is_finite() && value > 0.0) => {
            Err(bad(format!("{key} is {value}, expected a number above 0")))
        }
        _ => Ok(()),
    }
}

pub(crate) fn filter(code: u32) -> Result<FilterName> {
    match code {
        2 => Ok(FilterName::Bilinear),
        3 => Ok(FilterName::Bicubic),
        other => Err(bad(format!(
            "resample is {other}, expected 2 (bilinear) or 3 (bicubic)"
        ))),
    }
}

/// The file that has the parts of a processor, as transformers 5 writes it.
const PARTS: &str = "processor_config.json";

/// Where the processor of pictures is described: a file, and the key in it whose value is meant, or all of it.
///
/// VILA has its file in the folder of its tower.
const OF_PICTURES: &[(&str, Option<&str>)] = &[
    (PARTS, Some("image_processor")),
    ("preprocessor_config.json", None),
    ("vision_tower/preprocessor_config.json", None),
];

/// Where that of videos is; the part for pictures comes last, where transformers finds none.
const OF_VIDEOS: &[(&str, Option<&str>)] = &[
    (PARTS, Some("video_processor")),
    ("video_preprocessor_config.json", None),
    ("preprocessor_config.json", None),
    ("vision_tower/preprocessor_config.json", None),
    (PARTS, Some("image_processor")),
];

/// The description of the folder's processor of `medium`, and the name of its file: the first that is there, in the
/// order of transformers 5.
///
/// Models without a processor of videos are shown a video's frames as pictures: LLaVA-1.5, VILA, LLaVA-Video, and encoders.
pub(crate) fn processor_json(
    folder: &ProcessorFolder,
    medium: Medium,
) -> Result<Option<(&'static str, Value)>> {
    let has_own = matches!(
        folder.model_type(),
        None | Some("llava_onevision" | "internvl" | "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl")
    );
    let places = match medium {
        Medium::Video if has_own => OF_VIDEOS,
        Medium::Video | Medium::Picture => OF_PICTURES,
    };
    for &(name, part) in places {
        let found = json(&folder.dir.join(name))?.and_then(|mut json| match part {
            Some(part) => json.get_mut(part).map(Value::take),
            None => Some(json),
        });
        if let Some(found) = found.filter(|found| !found.is_null()) {
            return Ok(Some((name, found)));
        }
    }
    Ok(None)
}

/// The JSON of a file; `None` where there is none.
fn json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = folder_file::read(path, FILE_BYTES_MAX)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()));
    parsed.map(Some).doing(|| path.shown().to_string())
}

fn none_there(dir: &Path) -> Error {
    Error::new(
        Kind::NotFound,
        "no preprocessor_config.json and no config.json, expected one of them",
    )
    .doing(format!("read the preprocessing of {}", dir.shown()))
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
