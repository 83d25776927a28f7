//! Inputs of `longreel plan`: a model or model file, and videos or a number of hours.

use std::{path::PathBuf, sync::Arc};

use longreel_models::file_name::{FileName, as_text};
use longreel_models::{spec::system::SystemSpec, systems::System};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::PlanArgs, open, output::Voice},
    error::{Error, Kind, Result},
    plan::available_memory_bytes,
    shown::usual_sampling,
    sources::sampler::{Sampling, TimeRange},
    stages::{self, decode::Source},
};

/// Frame rate assumed for `--hours`, which names no video.
const ASSUMED_RATE: f64 = 25.0;

/// The model to plan for.
pub enum PlannedModel {
    /// A file of `configs/models`.
    File(Box<SystemSpec>),
    /// A folder, or a GGUF file.
    System(Arc<System>),
}

impl PlannedModel {
    /// The model that `--model` names.
    pub fn open(args: &PlanArgs, voice: Voice, cancel: &Cancel) -> Result<Self> {
        let path = args.model.as_path();
        match path.extension().is_some_and(|e| e == "toml") {
            true => open::model_file(path).map(|spec| Self::File(Box::new(spec))),
            false => open::system(&args.model, voice, cancel).map(Self::System),
        }
    }

    /// Its specification.
    pub fn spec(&self) -> &SystemSpec {
        match self {
            Self::File(spec) => spec,
            Self::System(system) => system.spec(),
        }
    }

    /// The model's default sampling of frames.
    pub fn usual_sampling(&self) -> Result<Sampling> {
        match self {
            Self::File(_) => Ok(Sampling::ONE_A_SECOND),
            Self::System(system) => usual_sampling(system),
        }
    }
}

/// One source of the plan.
#[derive(Serialize)]
pub struct SourcePlan {
    #[serde(serialize_with = "as_text")]
    path: PathBuf,
    duration_s: Option<f64>,
    frames: Option<u64>,
    sampling: String,
}

impl SourcePlan {
    /// `video      a.mp4 (13 frames, 1 frames/s)`
    pub fn line(&self) -> String {
        let frames = self.frames.map_or("?".to_owned(), |n| n.to_string());
        let (path, sampling) = (self.path.shown(), &self.sampling);
        format!("video      {path} ({frames} frames, {sampling})")
    }
}

/// The summary of a source.
pub fn source_plan(source: &Source) -> SourcePlan {
    let (path, duration_s, sampling) = match source {
        Source::Video { reader, sampling } => {
            let info = reader.info();
            let duration_s = info.duration.map(|d| d.seconds());
            (info.path.clone(), duration_s, sampling.clone())
        }
        Source::Reel(reel) => {
            let sampling = match reel.range() {
                TimeRange::ALL => "as in the reel".to_owned(),
                range => format!("as in the reel, {range}"),
            };
            (reel.path().to_owned(), None, sampling)
        }
    };
    SourcePlan {
        path,
        duration_s,
        frames: source.expected_frames(),
        sampling,
    }
}

/// Number of frames of the sources, or of `--hours`.
pub fn expected_frames(args: &PlanArgs, sources: &[Source], sampling: &Sampling) -> Result<u64> {
    let Some(hours) = args.hours else {
        return stages::expected_frames(sources).ok_or_else(|| {
            Error::new(
                Kind::BadInput,
                "a video does not state its number of frames",
            )
        });
    };
    if !(hours.is_finite() && hours > 0.0 && hours < 1e6) {
        return Err(Error::new(
            Kind::Usage,
            format!("--hours is {hours}, expected more than 0 and below 1000000"),
        ));
    }
    match sampling {
        Sampling::Fps(rate) => {
            Ok((hours * 3600.0 * f64::from(rate.num()) / f64::from(rate.den())).ceil() as u64)
        }
        Sampling::Uniform(n) => Ok(*n as u64),
        Sampling::Rule { choice, .. } => {
            let seconds = hours * 3600.0;
            let total = (seconds * ASSUMED_RATE) as usize;
            Ok(choice.numbers(total.max(1), ASSUMED_RATE)?.len() as u64)
        }
        _ => Err(Error::new(Kind::Usage, "--hours needs --fps or --frames")),
    }
}

/// Available memory in bytes: this machine's, or `--memory-gib`.
pub fn available(args: &PlanArgs) -> Result<Option<u64>> {
    match args.memory_gib {
        None => Ok(available_memory_bytes()),
        Some(gib) if gib.is_finite() && gib > 0.0 => Ok(Some((gib * (1u64 << 30) as f64) as u64)),
        Some(gib) => Err(Error::new(
            Kind::Usage,
            format!("--memory-gib is {gib}, expected more than 0"),
        )),
    }
}
