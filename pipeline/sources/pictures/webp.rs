//! Decodes WebP pictures and animations to the same bytes as Pillow.
//!
//! FFmpeg interpolates chroma differently, and before version 8 it does not read animations. A
//! frame that is blended over the last one may differ from Pillow's by one level.

use std::{io::Cursor, sync::Arc};

use image_webp::{DecodingError, WebPDecoder};

use super::super::info::PIXELS_MAX;
use crate::{
    error::{Error, Kind, Result},
    flow::RgbImage,
};

/// Bytes of an animation frame's header (`ANMF`) up to the end of its duration.
const FRAME_HEAD_BYTES: usize = 15;

/// A decoder of a WebP file, at its next picture.
pub struct Webp {
    decoder: WebPDecoder<Cursor<Arc<[u8]>>>,
}

impl Webp {
    /// Parses the header of `bytes`.
    ///
    /// # Errors
    /// `BadInput` for anything but a WebP file.
    pub fn open(bytes: Arc<[u8]>) -> Result<Self> {
        let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(unreadable)?;
        decoder.set_memory_limit(usize::try_from(PIXELS_MAX * 4).unwrap_or(usize::MAX));
        Ok(Self { decoder })
    }

    fn size(&self) -> (usize, usize) {
        let (width, height) = self.decoder.dimensions();
        (width as usize, height as usize)
    }

    /// Width and height in pixels as stored, and FFmpeg's name of the pixel format.
    pub fn head(&mut self) -> ((usize, usize), &'static str) {
        let pixel_format = match (self.decoder.is_lossy(), self.decoder.has_alpha()) {
            (true, false) => "yuv420p",
            (true, true) => "yuva420p",
            (false, _) => "argb",
        };
        (self.size(), pixel_format)
    }

    /// The next picture; its alpha is dropped, not blended. A still has one picture.
    ///
    /// # Errors
    /// `BadInput` for a picture that does not decode.
    pub fn decode(&mut self) -> Result<RgbImage> {
        let n = self.decoder.output_buffer_size().unwrap_or(0);
        let mut data = vec![0; n];
        match self.decoder.is_animated() {
            true => self.decoder.read_frame(&mut data).map(drop),
            false => self.decoder.read_image(&mut data),
        }
        .map_err(unreadable)?;
        if self.decoder.has_alpha() {
            data = data
                .chunks_exact(4)
                .flat_map(|p| [p[0], p[1], p[2]])
                .collect();
        }
        let (width, height) = self.size();
        Ok(RgbImage {
            width,
            height,
            data,
        })
    }
}

fn unreadable(error: DecodingError) -> Error {
    Error::with_source(Kind::BadInput, "the WebP does not decode", error)
}

/// Duration of each frame of an animation, in milliseconds; empty for a still.
///
/// A duration of 0 counts as 1 ms, so that times increase.
pub fn durations_ms(bytes: &[u8]) -> Vec<i64> {
    let (mut found, mut at) = (Vec::new(), 12);
    while let Some(head) = bytes.get(at..at + 8) {
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if let Some(frame) = bytes.get(at + 8..at + 8 + FRAME_HEAD_BYTES)
            && head.starts_with(b"ANMF")
        {
            let duration = u32::from_le_bytes([frame[12], frame[13], frame[14], 0]);
            found.push(i64::from(duration).max(1));
        }
        // Chunks of an odd size are followed by a padding byte (RIFF).
        at += 8 + size + size % 2;
    }
    found
}
