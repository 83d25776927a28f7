//! Opens what arguments name: models, and videos whose frames may be chosen by content.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use longreel_models::{
    file_name::FileName,
    spec::{
        ModelSpec,
        system::{Need, SystemSpec, refusal},
    },
    systems::{self, System},
};

use crate::{
    cancel::Cancel,
    chooser::{Candidates, Chooser},
    cli::output::Voice,
    demo_model,
    error::{Context, Error, Kind, Result},
    hub,
    prepare::Selection,
    reel::{self, ReelReader},
    sources::{file::FrameReader, sampler::TimeRange},
    stages::{decode::Source, progress::Progress},
};

/// The directory of `model`: a path is returned as given, a name is looked up in the hub cache.
pub fn model_dir(model: &Path, voice: Voice, cancel: &Cancel) -> Result<PathBuf> {
    let bar = voice.byte_bar("fetch");
    hub::resolve(
        model,
        &hub::Settings::from_env()?,
        &mut |file, done, total| bar.set(file, done, total),
        cancel,
    )
    .doing(|| format!("find the model {}", model.shown()))
}

/// Opens `model`, a path or a name on the hub.
pub fn system(model: &Path, voice: Voice, cancel: &Cancel) -> Result<Arc<System>> {
    opened(&model_dir(model, voice, cancel)?, voice)
}

/// [`system`], or the demo model where none is named, with a note on stderr.
pub fn system_or_demo(model: Option<&Path>, voice: Voice, cancel: &Cancel) -> Result<Arc<System>> {
    if let Some(model) = model {
        return system(model, voice, cancel);
    }
    voice.note(
        "no model is named: the demo model answers, which knows clips like those of `longreel synth --plain --length 4` \
         and nothing else; --model names another",
    );
    opened(&demo_model::directory()?, voice)
}

fn opened(dir: &Path, voice: Voice) -> Result<Arc<System>> {
    let system = systems::open(dir).map(Arc::new);
    if let Ok(system) = &system {
        voice.warn(dir, system.warnings());
    }
    system.doing(|| format!("open the model {}", dir.shown()))
}

/// Reads the model file (TOML) at `path`.
pub fn model_file(path: &Path) -> Result<SystemSpec> {
    let doing = || format!("read {}", path.shown());
    let text = std::fs::read_to_string(path).doing(doing)?;
    SystemSpec::from_toml(&text).doing(doing)
}

/// [`model_file`], for a model that answers questions.
pub fn spec_file(path: &Path) -> Result<ModelSpec> {
    let spec = model_file(path)?;
    let answering = spec.answering().cloned();
    answering.ok_or_else(|| refusal(&path.shown().to_string(), spec.kind(), Need::Answers))
}

/// Opens every input: reels as such, everything else as video, whose frames `chooser` may choose.
pub fn sources(
    paths: &[PathBuf],
    selection: &Selection,
    chooser: Option<&Chooser>,
    voice: Voice,
    cancel: &Cancel,
) -> Result<Vec<Source>> {
    let open = |path: &PathBuf| source(path, selection, chooser, voice, cancel);
    paths.iter().map(open).collect()
}

fn source(
    path: &Path,
    selection: &Selection,
    chooser: Option<&Chooser>,
    voice: Voice,
    cancel: &Cancel,
) -> Result<Source> {
    if !reel::is_reel(path) {
        let (reader, sampling) = video(path, selection, chooser, voice, cancel)?;
        let reader = Box::new(reader);
        return Ok(Source::Video { reader, sampling });
    }
    if !selection.is_usual {
        let message = format!(
            "{} is a reel, whose frames were chosen when it was made: expected no --fps, --frames, --all-frames or --sampler",
            path.shown()
        );
        return Err(Error::new(Kind::Usage, message));
    }
    let reel = ReelReader::open(path)?;
    let reel = match selection.range == TimeRange::ALL {
        true => reel,
        false => reel.within(selection.range)?,
    };
    Ok(Source::Reel(Box::new(reel)))
}

/// Opens the video at `path`, whose frames `chooser` may choose; with a description of the choice.
pub fn video(
    path: &Path,
    selection: &Selection,
    chooser: Option<&Chooser>,
    voice: Voice,
    cancel: &Cancel,
) -> Result<(FrameReader, String)> {
    let Selection {
        sampling, range, ..
    } = selection;
    let reader = FrameReader::open(path, sampling, range, cancel.clone())?;
    let words = sampling.in_words(range);
    let Some(chooser) = chooser else {
        return Ok((reader, words));
    };
    let candidates = Candidates {
        reader,
        range,
        sampling: &words,
    };
    let progress = Progress::default();
    let choice = voice
        .show(&progress, || chooser.choose(candidates, &progress, cancel))
        .doing(|| format!("choose frames of {}", path.shown()))?;
    let kept = choice.reader.expected_frames().unwrap_or(0);
    let (path, all) = (path.shown(), choice.candidates);
    voice.note(&format!("{path}: {kept} of {all} frames are chosen"));
    Ok((choice.reader, choice.sampling))
}
