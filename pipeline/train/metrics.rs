//! Metrics of a run, one JSON object per line, consistent with its checkpoints.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    marker::PhantomData,
    path::PathBuf,
};

use longreel_models::{file_name::FileName, training::trainer::StepReport};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Context, Error, Kind, Result},
    sources::temporary::write_whole,
};

/// One line of metrics.
pub trait MetricsLine: Serialize + DeserializeOwned {
    /// Steps done.
    fn step(&self) -> u64;
}

/// Metrics of a decoder's run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Steps done.
    pub step: u64,
    /// Whether these are of held-out lines, or of the batches that were trained on.
    pub held_out: bool,
    /// The minimized loss.
    pub loss: f64,
    /// Mean loss of text targets.
    pub text_loss: f64,
    /// Share of text targets that were the most likely ids.
    pub text_accuracy: f64,
    /// Mean loss of codes and terminators.
    pub vision_loss: f64,
    /// Share of these that were the most likely ids.
    pub vision_accuracy: f64,
    /// Norm of the gradient before clipping; 0 for held-out lines.
    pub gradient: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens read so far.
    pub tokens: u64,
    /// Tokens per second of this step; 0 for held-out lines.
    pub tokens_per_s: f64,
}

impl MetricsLine for Figures {
    fn step(&self) -> u64 {
        self.step
    }
}

impl Figures {
    /// Metrics of a step that took `seconds`; `tokens` were read so far.
    pub fn of_step(report: &StepReport, tokens: u64, seconds: f64) -> Self {
        Self {
            tokens_per_s: report.tokens as f64 / seconds,
            ..Self::of(report, report.step, tokens, false)
        }
    }

    /// Metrics of held-out lines after `step`.
    pub fn held_out(report: &StepReport, step: u64, tokens: u64) -> Self {
        Self::of(report, step, tokens, true)
    }

    fn of(report: &StepReport, step: u64, tokens: u64, held_out: bool) -> Self {
        Self {
            step,
            held_out,
            loss: report.loss,
            text_loss: report.text_loss,
            text_accuracy: report.text_accuracy,
            vision_loss: report.vision_loss,
            vision_accuracy: report.vision_accuracy,
            gradient: report.gradient,
            lr: report.lr,
            tokens,
            tokens_per_s: 0.0,
        }
    }
}

/// The metrics file of a run.
pub struct MetricsFile<L> {
    path: PathBuf,
    lines: PhantomData<L>,
}

impl<L: MetricsLine> MetricsFile<L> {
    /// Opens the file at `path` and drops lines after `step`, which will be computed again.
    ///
    /// # Errors
    /// `BadInput` for an invalid line.
    pub fn open(path: PathBuf, step: u64) -> Result<Self> {
        let lines = PhantomData;
        let file = Self { path, lines };
        let kept = file.read()?.into_iter();
        let kept = kept.filter(|figures| figures.step() <= step);
        let text: String = kept.map(|figures| line(&figures)).collect::<Result<_>>()?;
        write_whole(&file.path, text.as_bytes())?;
        Ok(file)
    }

    /// All lines; none where there is no file.
    ///
    /// # Errors
    /// `BadInput` for an invalid line; an incomplete last line is left out.
    pub fn read(&self) -> Result<Vec<L>> {
        let doing = || format!("read {}", self.path.shown());
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.doing(doing)?,
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parsed = whole.lines().map(|line| {
            serde_json::from_str(line)
                .map_err(|e| Error::with_source(Kind::BadInput, "a line is not one of metrics", e))
        });
        parsed.collect::<Result<_>>().doing(doing)
    }

    /// Appends a line.
    ///
    /// # Errors
    /// `Io` where writing fails.
    pub fn append(&self, figures: &L) -> Result<()> {
        let doing = || format!("write {}", self.path.shown());
        let mut options = OpenOptions::new();
        let mut file = options
            .append(true)
            .create(true)
            .open(&self.path)
            .doing(doing)?;
        file.write_all(line(figures)?.as_bytes()).doing(doing)
    }
}

fn line(figures: &impl MetricsLine) -> Result<String> {
    let json = serde_json::to_string(figures);
    json.map(|json| json + "\n")
        .map_err(|e| Error::with_source(Kind::Internal, "write figures", e))
}

#[cfg(test)]
mod tests {
    use super::{Figures, MetricsFile};

    #[test]
    fn earlier_lines_are_kept_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let line = |step: u64, loss: &str| {
            format!(
                r#"{{"step":{step},"held_out":false,"loss":{loss},"text_loss":0.1,"text_accuracy":0.0,"vision_loss":0.0,"vision_accuracy":0.0,"gradient":0.0,"lr":0.0,"tokens":5,"tokens_per_s":0.0}}"#
            ) + "\n"
        };
        // Numbers that a parser of less than full precision would round to their neighbours.
        let kept = [
            line(1, "1.1770459120124355"),
            line(2, "0.09579876899623667"),
        ]
        .concat();
        std::fs::write(&path, format!("{kept}{}", line(3, "2.0"))).unwrap();
        MetricsFile::<Figures>::open(path.clone(), 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), kept);
    }
}
