//! Second verb: frames to frame tokens.

use candle_core::{Device, Tensor};
use crossbeam_channel::{Receiver, Sender};
use longreel_models::vision::{
    image::{RgbView, lwm_frame, to_signed_unit},
    vqgan::Vqgan,
};

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    flow::RgbImage,
    reel::ReelFrame,
    sources::file::DecodeReport,
    stages::{decode::Decoded, progress::Progress},
};

/// What leaves the stage. `source` counts from 0 in the order given.
pub enum Encoded {
    /// One frame's codes and time.
    Frame {
        /// Index of the source.
        source: usize,
        /// Codes, time and flags.
        frame: ReelFrame,
    },
    /// Nothing more comes from this source.
    End {
        /// Index of the source.
        source: usize,
        /// What decoding it was like; `None` for a reel.
        report: Option<DecodeReport>,
    },
}

/// Encodes frame by frame until the decode stage ends.
///
/// `vqgan` comes with the side of its input; it may be absent when every source is a reel.
pub fn run(
    frames: Receiver<Decoded>,
    vqgan: Option<(&Vqgan, usize)>,
    out: Sender<Encoded>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    for message in frames {
        cancel.check()?;
        let encoded = match message {
            Decoded::End { source, report } => Encoded::End { source, report },
            Decoded::Encoded { source, frame } => Encoded::Frame { source, frame },
            Decoded::Frame { source, frame } => {
                let codes = progress
                    .encode_busy
                    .measure(|| codes_of(vqgan, &frame.image));
                let frame = ReelFrame {
                    video: source,
                    time: frame.time,
                    key: frame.key,
                    corrupt: frame.corrupt,
                    codes: codes.doing(|| format!("encode frame at {}", frame.time.pts))?,
                };
                Encoded::Frame { source, frame }
            }
        };
        if matches!(encoded, Encoded::Frame { .. }) {
            progress.frames_encoded.add(1);
        }
        if out.send(encoded).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// One picture → `grid²` codes.
fn codes_of(vqgan: Option<(&Vqgan, usize)>, image: &RgbImage) -> Result<Vec<u32>> {
    let Some((vqgan, side)) = vqgan else {
        return Err(Error::new(
            Kind::BadInput,
            "the model has no frame tokenizer, expected one to look at a video",
        ));
    };
    let view = RgbView::new(image.width, image.height, &image.data)?;
    let pixels = to_signed_unit(&lwm_frame(view, side)?);
    let pixels = Tensor::from_vec(pixels, (1, side, side, 3), &Device::Cpu)?;
    Ok(vqgan.encode(&pixels)?.into_iter().flatten().collect())
}
