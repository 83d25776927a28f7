//! Second verb: frames to frame tokens, in small groups.

use crossbeam_channel::{Receiver, Sender};
use longreel_models::vision::{
    image::{RgbView, lwm_frame, to_signed_unit},
    vqgan::Vqgan,
};

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    flow::Frame,
    reel::ReelFrame,
    sources::file::DecodeReport,
    stages::{decode::Decoded, progress::Progress},
};

/// Frames that go through the VQGAN together.
const GROUP_FRAMES: usize = 4;

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

/// Encodes until the decode stage ends; a group is as many frames as are waiting, at most four.
///
/// `vqgan` may be absent when every source is a reel.
pub fn run(
    frames: Receiver<Decoded>,
    vqgan: Option<(&Vqgan, usize)>,
    out: Sender<Encoded>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    let mut held = None;
    loop {
        let Some(next) = held.take().or_else(|| frames.recv().ok()) else {
            return Ok(());
        };
        cancel.check()?;
        let sent = match next {
            Decoded::End { source, report } => out.send(Encoded::End { source, report }).is_ok(),
            Decoded::Encoded { source, frame } => {
                progress.frames_encoded.add(1);
                out.send(Encoded::Frame { source, frame }).is_ok()
            }
            Decoded::Frame { source, frame } => {
                let mut group = vec![frame];
                held = fill_group(&frames, source, &mut group);
                let encoded = progress
                    .encode_busy
                    .measure(|| encode_group(vqgan, source, &group))?;
                progress.frames_encoded.add(encoded.len() as u64);
                encoded
                    .into_iter()
                    .all(|frame| out.send(Encoded::Frame { source, frame }).is_ok())
            }
        };
        if !sent {
            return Ok(());
        }
    }
}

/// Adds frames of `source` that already wait; gives back the first message that does not belong.
fn fill_group(
    frames: &Receiver<Decoded>,
    source: usize,
    group: &mut Vec<Frame>,
) -> Option<Decoded> {
    while group.len() < GROUP_FRAMES {
        match frames.try_recv().ok()? {
            Decoded::Frame { source: s, frame } if s == source => group.push(frame),
            other => return Some(other),
        }
    }
    None
}

fn encode_group(
    vqgan: Option<(&Vqgan, usize)>,
    source: usize,
    group: &[Frame],
) -> Result<Vec<ReelFrame>> {
    let Some((vqgan, side)) = vqgan else {
        return Err(Error::new(
            Kind::BadInput,
            "the model has no frame tokenizer, expected one to look at a video",
        ));
    };
    let first = group.first().map(|f| f.time.pts);
    let doing = || {
        format!(
            "encode frame at {}",
            first.map(|t| t.to_string()).unwrap_or_default()
        )
    };
    let codes = codes_of(vqgan, side, group).doing(doing)?;
    let frames = group.iter().zip(codes).map(|(frame, codes)| ReelFrame {
        video: source,
        time: frame.time,
        key: frame.key,
        corrupt: frame.corrupt,
        codes,
    });
    Ok(frames.collect())
}

/// n frames → n lists of `grid²` codes.
fn codes_of(vqgan: &Vqgan, side: usize, group: &[Frame]) -> Result<Vec<Vec<u32>>> {
    let mut pixels = Vec::with_capacity(group.len() * side * side * 3);
    for frame in group {
        let image = &frame.image;
        let view = RgbView::new(image.width, image.height, &image.data)?;
        pixels.extend(to_signed_unit(&lwm_frame(view, side)?));
    }
    let pixels = candle_core::Tensor::from_vec(
        pixels,
        (group.len(), side, side, 3),
        &candle_core::Device::Cpu,
    )?;
    vqgan.encode(&pixels)
}
