//! `longreel reconstruct`: a reel of codes decoded to pictures.

use std::path::Path;

use longreel_models::file_name::{FileName, as_text};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::ReconstructArgs, open, output::Voice},
    encoder::{EncoderModel, PixelBudget},
    error::{Context, Result},
    reel::ReelReader,
    sources::sampler::{Rate, parse_rate},
    stages::{picture::PictureWriter, progress::Progress},
};

#[derive(Serialize)]
struct ReconstructJson<'a> {
    #[serde(serialize_with = "as_text")]
    reel: &'a Path,
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    frames: u64,
    fps: Rate,
}

/// Runs the verb.
pub fn run(args: ReconstructArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let rate = parse_rate(&args.fps).doing(|| "--fps")?;
    let system = open::system(&args.model, voice, cancel)?;
    let model = EncoderModel::load(&system, &PixelBudget::default())?;
    let (vqgan, spec) = model.codes()?;
    let mut reel = ReelReader::open(&args.reel)?;
    reel.header()
        .check_codes(spec.grid(), spec.num_embeddings)
        .doing(|| format!("reconstruct {}", args.reel.shown()))?;
    let mut out = PictureWriter::create(&args.out, spec.resolution, rate)?;
    let progress = Progress::default();
    progress.frames_expected.add(reel.n_frames());
    let frames = voice.show(&progress, || -> Result<u64> {
        while let Some(kept) = reel.next_step()? {
            cancel.check()?;
            let at = kept
                .step
                .frames
                .first()
                .map(|frame| frame.time.since_start());
            let doing = || at.map_or_else(String::new, |at| format!("frame at {at}"));
            out.write_codes(vqgan, kept.codes()?).doing(doing)?;
            progress.frames_encoded.add(1);
        }
        Ok(progress.frames_encoded.get())
    })?;
    out.finish()?;
    let result = ReconstructJson {
        reel: &args.reel,
        out: &args.out,
        frames,
        fps: rate,
    };
    voice.say(&result, || {
        format!("{frames} frames in {}", args.out.shown())
    })
}
