//! Writes a picture as PNG.

use std::{fs::File, io::BufWriter, path::Path};

use longreel_models::file_name::FileName;

use crate::{
    error::{Context, Error, Kind, Result},
    flow::RgbImage,
    sources::temporary::{persist, temporary_beside},
};

/// Writes `image` to `path` through a temporary name beside it, so that an interrupted
/// write leaves no partial file.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<()> {
    let doing = || format!("write {}", path.shown());
    let file = temporary_beside(path, ".png").doing(doing)?;
    encode(image, file.as_file()).doing(doing)?;
    persist(file, path)
}

fn encode(image: &RgbImage, file: &File) -> Result<()> {
    let size = |n: usize| {
        u32::try_from(n).map_err(|_| {
            Error::new(
                Kind::TooLarge,
                format!("a side of {n} pixels is too long for PNG"),
            )
        })
    };
    let mut encoder = png::Encoder::new(
        BufWriter::new(file),
        size(image.width)?,
        size(image.height)?,
    );
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(png_error)?;
    writer.write_image_data(&image.data).map_err(png_error)?;
    writer.finish().map_err(png_error)
}

fn png_error(error: png::EncodingError) -> Error {
    match error {
        png::EncodingError::IoError(e) => Error::from(e),
        other => Error::with_source(Kind::Internal, "encode PNG", other),
    }
}
