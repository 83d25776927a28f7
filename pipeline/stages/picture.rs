//! Codes to a picture file: PNG for one frame, mp4 for many.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use longreel_models::{
    file_name::FileName,
    vision::{image::to_u8, vqgan::Vqgan},
};

use crate::{
    error::{Error, Kind, Result},
    flow::RgbImage,
    sources::{ffmpeg::VideoWriter, png::write_png, sampler::Rate},
};

/// Writes square pictures of one size.
pub struct PictureWriter {
    side: usize,
    sink: Sink,
}

enum Sink {
    Png {
        path: PathBuf,
        image: Option<RgbImage>,
    },
    Video(Box<VideoWriter>),
}

impl PictureWriter {
    /// The format follows from the extension of `path`: `.png` for one picture, `.mp4` for a video at `rate`.
    pub fn create(path: &Path, side: usize, rate: Rate) -> Result<Self> {
        let ending = path.extension().map(|e| e.to_ascii_lowercase());
        let sink = match ending.as_deref().and_then(|e| e.to_str()) {
            Some("png") => Sink::Png {
                path: path.to_owned(),
                image: None,
            },
            Some("mp4") => Sink::Video(Box::new(VideoWriter::create(path, side, side, rate)?)),
            _ => {
                let what = format!("{} ends in neither .png nor .mp4", path.shown());
                return Err(Error::new(Kind::Usage, what));
            }
        };
        Ok(Self { side, sink })
    }

    /// Whether this is a video.
    pub fn is_video(&self) -> bool {
        matches!(self.sink, Sink::Video(_))
    }

    /// Decodes one frame's codes (row-major over the grid) and writes the picture.
    pub fn write_codes(&mut self, vqgan: &Vqgan, codes: &[u32]) -> Result<()> {
        let codes = Tensor::from_slice(codes, (1, codes.len()), &Device::Cpu)?;
        let pixels = vqgan.decode(&codes)?.flatten_all()?.to_vec1::<f32>()?;
        self.write(RgbImage {
            width: self.side,
            height: self.side,
            data: to_u8(&pixels),
        })
    }

    fn write(&mut self, picture: RgbImage) -> Result<()> {
        match &mut self.sink {
            Sink::Video(video) => video.write(&picture),
            Sink::Png {
                image: Some(_),
                path,
            } => {
                let what = format!(
                    "{} can hold one picture, expected a name in .mp4 for more",
                    path.shown()
                );
                Err(Error::new(Kind::Usage, what))
            }
            Sink::Png { image, .. } => {
                *image = Some(picture);
                Ok(())
            }
        }
    }

    /// Renames the file to its final name.
    pub fn finish(self) -> Result<()> {
        match self.sink {
            Sink::Video(video) => video.finish(),
            Sink::Png {
                path,
                image: Some(image),
            } => write_png(&path, &image),
            Sink::Png { path, image: None } => Err(Error::new(
                Kind::BadInput,
                format!("there is no frame to write to {}", path.shown()),
            )),
        }
    }
}
