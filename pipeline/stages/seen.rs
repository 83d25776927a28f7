//! The frames seen of each source, echoed to the user.

use std::path::PathBuf;

use longreel_models::file_name::{FileName, as_text};
use serde::Serialize;

use crate::{
    flow::FrameTime,
    reel::{ReelReader, ReelVideo},
    sources::{
        file::{DecodeReport, FrameReader},
        sampler::TimeRange,
    },
};

/// One source of an answer or of a reel, with the frames actually taken.
#[derive(Debug, Clone, Serialize)]
pub struct SourceSeen {
    /// The file.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// The reel that its frames come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reel: Option<String>,
    /// How long the video is shown, in seconds; absent for a still picture.
    pub duration_s: Option<f64>,
    /// Frames taken.
    pub frames: u64,
    /// Frames taken per second of the span between the first and the last.
    pub fps_effective: Option<f64>,
    /// When the frames taken are shown, in seconds from the first frame of the video; empty where only counts are kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pts: Vec<f64>,
    /// Their presentation times in ticks of `time_base`, as the container has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ticks: Vec<i64>,
    /// Seconds per tick, as `num/den`.
    pub time_base: String,
    /// Decoded frame numbers of the frames taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub index: Vec<u64>,
    /// When the first frame taken is shown, in seconds from the first frame of the video.
    pub first_s: Option<f64>,
    /// When the last frame taken is shown, in seconds from the first frame of the video.
    pub last_s: Option<f64>,
    /// How the frames were chosen.
    pub sampling: String,
    /// The decode report; absent for a reel.
    pub decode: Option<DecodeReport>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

impl SourceSeen {
    /// A video without frames so far.
    pub fn video(reader: &FrameReader, sampling: &str) -> Self {
        let info = reader.info();
        Self {
            duration_s: info.duration.map(|d| d.seconds()),
            time_base: info.time_base.to_string(),
            ..Self::new(info.path.clone(), sampling.to_owned())
        }
    }

    /// The videos of a reel, without frames so far.
    pub fn reel(reader: &ReelReader) -> impl Iterator<Item = Self> {
        let range = reader.range();
        let sampling = move |video: &ReelVideo| match range == TimeRange::ALL {
            true => video.sampling.clone(),
            false => format!("{}, of these {range}", video.sampling),
        };
        reader.header().videos.iter().map(move |video| Self {
            duration_s: video.duration_s,
            time_base: format!("{}/{}", video.time_base[0], video.time_base[1]),
            reel: Some(reader.path().text().into_owned()),
            warnings: reader.straddling().map(str::to_owned).into_iter().collect(),
            ..Self::new(PathBuf::from(&video.path), sampling(video))
        })
    }

    fn new(path: PathBuf, sampling: String) -> Self {
        Self {
            path,
            reel: None,
            duration_s: None,
            frames: 0,
            fps_effective: None,
            first_s: None,
            last_s: None,
            pts: Vec::new(),
            ticks: Vec::new(),
            time_base: String::new(),
            index: Vec::new(),
            sampling,
            decode: None,
            warnings: Vec::new(),
        }
    }

    /// Counts one frame, without keeping its time.
    pub fn count(&mut self, time: FrameTime) {
        self.frames += 1;
        self.last_s = Some(time.seconds());
        self.first_s = self.first_s.or(self.last_s);
    }

    /// Counts one frame and keeps its time.
    pub fn saw(&mut self, time: FrameTime) {
        self.count(time);
        self.pts.push(time.seconds());
        self.ticks.push(time.pts.ticks);
        self.index.push(time.index);
    }

    /// Records the end of the source.
    pub fn end(&mut self, report: Option<DecodeReport>) {
        self.fps_effective = self.rate();
        self.warnings
            .extend(report.iter().flat_map(|r| r.warnings.clone()));
        self.decode = report;
    }

    /// Frames per second between the first and the last frame.
    fn rate(&self) -> Option<f64> {
        let span = self.last_s? - self.first_s?;
        (span > 0.0).then(|| (self.frames - 1) as f64 / span)
    }
}
