//! Picture sizes of Qwen's encoders: sides that are multiples of a merged patch, within a pixel budget.

use serde::Deserialize;
use serde_json::Value;

use super::processor::{
    Channels, FilterName, Medium, Normalize, ProcessorFolder, filter, processor_json,
};
use crate::{
    error::{Context, Error, Kind, Result},
    file_name::FileName,
};

/// Maximum aspect ratio.
const ASPECT_MAX: f64 = 200.0;

/// Maximum side of a patch.
const PATCH_MAX: usize = 256;

/// The scope of a pixel budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetScope {
    /// Each frame: Qwen2-VL and Qwen2.5-VL; every model's pictures.
    Frame,
    /// All frames of a video: Qwen3-VL.
    Video,
}

/// A processor of the class `Qwen2VL…` or `Qwen3VL…`.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchesSpec {
    /// Side of a patch.
    pub patch_size: usize,
    /// Frames per patch.
    pub temporal_patch_size: usize,
    /// Patches per side of one feature.
    pub merge_size: usize,
    /// The scope of the two limits.
    pub budget: BudgetScope,
    /// Minimum pixels (`size.shortest_edge` of the file).
    pub min_pixels: usize,
    /// Maximum pixels (`size.longest_edge`); the processor's own cap, which a user may lift.
    pub max_pixels: usize,
    /// qwen-vl-utils' additional cap, in features (`max_video_tokens`, where `cap_pixels_per_frame` is set):
    /// those of a video for [`BudgetScope::Frame`], shared evenly, those of a frame for [`BudgetScope::Video`].
    pub cap: Option<usize>,
    /// The resize filter.
    pub filter: FilterName,
    /// The normalization.
    pub normalize: Normalize,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct PatchesFile {
    video_processor_type: Option<String>,
    size: Option<PixelLimits>,
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    patch_size: Option<usize>,
    temporal_patch_size: Option<usize>,
    merge_size: Option<usize>,
    cap_pixels_per_frame: Option<bool>,
    max_video_tokens: Option<usize>,
    do_resize: Option<bool>,
    resample: Option<u32>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<Channels>,
    image_std: Option<Channels>,
}

/// A few files have `min_pixels` and `max_pixels` here.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct PixelLimits {
    #[serde(alias = "min_pixels")]
    shortest_edge: Option<usize>,
    #[serde(alias = "max_pixels")]
    longest_edge: Option<usize>,
}

impl PatchesSpec {
    /// The specification of the folder of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL, as transformers 5 reads it.
    ///
    /// # Errors
    /// For another model, and for a file that cannot be read or has invalid numbers.
    pub fn of_folder(folder: &ProcessorFolder, medium: Medium) -> Result<Self> {
        let (dir, model) = (&folder.dir, folder.model_type());
        match processor_json(folder, medium)? {
            Some((name, json)) => {
                Self::of_json(json, medium, model).doing(|| dir.join(name).shown().to_string())
            }
            None => Self::of_json(Value::Object(serde_json::Map::new()), medium, model)
                .doing(|| folder.config()),
        }
    }

    /// Parses a file's text, for a model of `model_type`.
    pub fn from_json(text: &str, medium: Medium, model_type: &str) -> Result<Self> {
        let json = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        Self::of_json(json, medium, Some(model_type)).doing(|| "read preprocessor_config.json")
    }

    fn of_json(json: Value, medium: Medium, model: Option<&str>) -> Result<Self> {
        let file: PatchesFile =
            serde_path_to_error::deserialize(json).map_err(|e| bad(e.to_string()))?;
        let class = file.video_processor_type.as_deref().unwrap_or_default();
        let third =
            class.starts_with("Qwen3VL") || model.is_some_and(|m| m.starts_with("qwen3_vl"));
        let second =
            class.starts_with("Qwen2VL") || matches!(model, Some("qwen2_vl" | "qwen2_5_vl"));
        let usual = match (medium, third, second) {
            (Medium::Video, true, _) => Self::qwen3_video(),
            (Medium::Video, false, true) => Self::qwen2_video(),
            (Medium::Picture, true, _) | (Medium::Picture, _, true) => Self::qwen2_picture(),
            (_, false, false) => {
                return Err(bad(format!(
                    "model_type is {:?}, expected qwen2_vl, qwen2_5_vl or qwen3_vl",
                    model.unwrap_or_default()
                )));
            }
        };
        usual.with(&file)?.checked()
    }

    /// Defaults of `Qwen2VLVideoProcessor`.
    pub fn qwen2_video() -> Self {
        Self {
            min_pixels: 128 * 28 * 28,
            max_pixels: 768 * 28 * 28,
            ..Self::qwen2_picture()
        }
    }

    /// Defaults of `Qwen2VLImageProcessor`.
    pub fn qwen2_picture() -> Self {
        Self {
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            budget: BudgetScope::Frame,
            min_pixels: 56 * 56,
            max_pixels: 28 * 28 * 1280,
            cap: None,
            filter: FilterName::Bicubic,
            normalize: Normalize::CLIP,
        }
    }

    /// Defaults of `Qwen3VLVideoProcessor`.
    pub fn qwen3_video() -> Self {
        Self {
            patch_size: 16,
            budget: BudgetScope::Video,
            min_pixels: 128 * 32 * 32,
            max_pixels: 768 * 32 * 32,
            normalize: Normalize::HALF,
            ..Self::qwen2_picture()
        }
    }

    fn with(mut self, file: &PatchesFile) -> Result<Self> {
        let size = file.size.unwrap_or_default();
        let or = |found: Option<usize>, usual| found.unwrap_or(usual);
        self.patch_size = or(file.patch_size, self.patch_size);
        self.temporal_patch_size = or(file.temporal_patch_size, self.temporal_patch_size);
        self.merge_size = or(file.merge_size, self.merge_size);
        self.min_pixels = or(file.min_pixels.or(size.shortest_edge), self.min_pixels);
        self.max_pixels = or(file.max_pixels.or(size.longest_edge), self.max_pixels);
        if file.cap_pixels_per_frame == Some(true) {
            // qwen-vl-utils' defaults: tokens of a whole video (Qwen2-VL), tokens of a frame (Qwen3-VL).
            let usual = match self.budget {
                BudgetScope::Frame => 128_000,
                BudgetScope::Video => 768,
            };
            self.cap = Some(or(file.max_video_tokens, usual));
        }
        if let Some(code) = file.resample {
            self.filter = filter(code)?;
        }
        if file.do_resize == Some(false) {
            return Err(bad(
                "do_resize is false, expected true: sides must be multiples of a patch".into(),
            ));
        }
        self.normalize = self.normalize.with(
            (file.do_rescale, file.rescale_factor),
            (file.do_normalize, file.image_mean, file.image_std),
        )?;
        Ok(self)
    }

    fn checked(self) -> Result<Self> {
        let sizes = [self.patch_size, self.temporal_patch_size, self.merge_size];
        let fine = sizes.iter().all(|size| (1..=PATCH_MAX).contains(size));
        // Sizes are computed in f64, in which integers are exact below 2^53.
        let budget = (1..=self.max_pixels).contains(&self.min_pixels) && self.max_pixels < 1 << 53;
        match fine && budget && self.cap.is_none_or(|cap| (1..1 << 32).contains(&cap)) {
            true => Ok(self),
            false => Err(bad(format!(
                "patches of {sizes:?} and {} to {} pixels with a cap of {:?}, expected sizes of 1 to {PATCH_MAX} and a range of pixels",
                self.min_pixels, self.max_pixels, self.cap
            ))),
        }
    }

    /// Pixels per side of one feature.
    pub fn factor(&self) -> usize {
        self.patch_size * self.merge_size
    }

    /// The height and width to which `n_frames` pictures of `height` and `width` are resized.
    ///
    /// `smart_resize` of transformers' Qwen2-VL and Qwen3-VL; Python's `round` rounds half to even.
    ///
    /// # Errors
    /// When one side is more than 200 times the other.
    pub fn size(&self, [height, width]: [usize; 2], n_frames: usize) -> Result<[usize; 2]> {
        if height == 0 || width == 0 {
            return Err(bad(format!(
                "a picture of {width}x{height} pixels is empty"
            )));
        }
        // Fewer frames than a temporal patch are padded to one by repeating the last.
        let n_frames = n_frames.max(self.temporal_patch_size);
        let [height, width] = match self.budget {
            BudgetScope::Frame => [height as f64, width as f64],
            BudgetScope::Video => self.at_least_one_patch([height as f64, width as f64]),
        };
        let ratio = height.max(width) / height.min(width);
        if ratio > ASPECT_MAX {
            return Err(bad(format!(
                "a picture of {width}x{height} pixels has sides of 1 to {ratio:.1}, expected at most {ASPECT_MAX}"
            )));
        }
        let frames = match self.budget {
            BudgetScope::Frame => 1.0,
            BudgetScope::Video => n_frames as f64,
        };
        let size = self.fitted([height, width], frames, self.most_pixels(n_frames));
        Ok(size.map(|side| side as usize))
    }

    /// Scales smaller pictures up until a patch fits (Qwen3-VL).
    fn at_least_one_patch(&self, [height, width]: [f64; 2]) -> [f64; 2] {
        let factor = self.factor() as f64;
        if height >= factor && width >= factor {
            return [height, width];
        }
        let scale = (factor / height).max(factor / width);
        [(height * scale).trunc(), (width * scale).trunc()]
    }

    fn fitted(&self, [height, width]: [f64; 2], frames: f64, most: usize) -> [f64; 2] {
        let (factor, most, fewest) = (self.factor() as f64, most as f64, self.min_pixels as f64);
        // Python's `round`: ties go to the even multiple, so 42 with factor 28 becomes 56 and 70 becomes 56.
        let rounded = |n: f64, to: f64| (n / to).round_ties_even() * to;
        let size = [height, width].map(|side| rounded(side, factor));
        // Only the test against the budget rounds the frames; `beta` uses their true number, as in
        // `smart_resize` of Qwen3-VL's video processor.
        let long = match self.budget {
            BudgetScope::Frame => 1.0,
            BudgetScope::Video => rounded(frames, self.temporal_patch_size as f64),
        };
        let pixels = long * size[0] * size[1];
        if pixels > most {
            let beta = (frames * height * width / most).sqrt();
            [height, width].map(|side| factor.max((side / beta / factor).floor() * factor))
        } else if pixels < fewest {
            let beta = (fewest / (frames * height * width)).sqrt();
            [height, width].map(|side| (side * beta / factor).ceil() * factor)
        } else {
            size
        }
    }

    /// The maximum pixels, with the cap.
    fn most_pixels(&self, n_frames: usize) -> usize {
        let Some(cap) = self.cap else {
            return self.max_pixels;
        };
        let square = self.factor() * self.factor();
        // 1.05 and 0.9 as in `fetch_video` of qwen-vl-utils.
        let floor = (self.min_pixels as f64 * 1.05) as usize;
        match self.budget {
            BudgetScope::Frame => {
                let total = (cap.saturating_mul(square) as f64 * 0.9) as usize;
                let share = total.saturating_mul(self.temporal_patch_size) / n_frames;
                self.max_pixels.min(share).max(floor)
            }
            BudgetScope::Video => {
                let share = self.max_pixels / n_frames;
                (cap * square)
                    .min(share)
                    .max(floor)
                    .saturating_mul(n_frames)
            }
        }
    }
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
