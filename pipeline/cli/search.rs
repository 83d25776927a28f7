//! `longreel search`: the moments that a text or a picture describes.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use longreel_models::{
    file_name::{FileName, as_text},
    vision::image::RgbView,
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::SearchArgs, open, output::Voice, resolve},
    encoder::weights_modified_s,
    error::{Context, Error, Kind, Result},
    flow::RgbImage,
    plan,
    reel::ReelHeader,
    search::{Hit, Library},
    sources::{
        file::FrameReader,
        sampler::{Sampling, TimeRange, parse_time},
    },
    time::Pts,
    vectors::VectorModel,
};

/// Upper bound of `--top`.
const TOP_MAX: usize = 100_000;

#[derive(Serialize)]
struct SearchJson {
    query: String,
    model: String,
    frames: u64,
    bytes: u64,
    results: Vec<MomentJson>,
    seconds: SearchSeconds,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct MomentJson {
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    logit: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f32>,
    video: String,
    #[serde(serialize_with = "as_text")]
    reel: PathBuf,
    time: String,
    seconds: f64,
    pts: i64,
    time_base: String,
    frame: u64,
}

#[derive(Serialize)]
struct SearchSeconds {
    query: f64,
    search: f64,
    total: f64,
}

/// Runs the verb.
pub fn run(args: SearchArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = std::time::Instant::now();
    let k = resolve::within("--top", args.top, 1..=TOP_MAX)?;
    let gap = gap(&args.min_gap)?;
    let (query, reels) = inputs(&args)?;
    let library = Library::open(&reels)?;
    let first = library.reels().first().ok_or_else(no_reel)?;
    let named = args.model.as_deref();
    let model = model_of_reel(named, "--model", first.header(), voice, cancel)?;
    let vector = match &args.image {
        Some(path) => {
            let picture = picture(path, cancel)?;
            RgbView::new(picture.width, picture.height, &picture.data)
                .and_then(|view| model.of_picture(view))
        }
        None => model.of_text(&query),
    };
    let vector = vector.doing(|| format!("encode the query {query:?}"))?;
    let queried = start.elapsed().as_secs_f64();
    let hits = library.moments(&vector, k, gap, cancel)?;
    let total = start.elapsed().as_secs_f64();
    let moments = hits.iter().map(|hit| moment(hit, &library, &model));
    let result = SearchJson {
        query,
        model: model.system.path().text().into_owned(),
        frames: library.n_frames(),
        bytes: library.bytes(),
        results: moments.collect(),
        seconds: SearchSeconds {
            query: queried,
            search: total - queried,
            total,
        },
        peak_memory_bytes: plan::peak_memory_bytes(),
    };
    voice.say(&result, || table(&result))
}

/// The query and the reels to search.
fn inputs(args: &SearchArgs) -> Result<(String, Vec<PathBuf>)> {
    let paths = |inputs: &[OsString]| inputs.iter().map(PathBuf::from).collect();
    match (&args.image, args.inputs.split_first()) {
        (Some(image), _) => Ok((image.text().into_owned(), paths(&args.inputs))),
        (None, Some((query, reels))) if !reels.is_empty() => {
            let not_text = || Error::new(Kind::Usage, "what to look for is not UTF-8 text");
            let query = query.to_str().ok_or_else(not_text)?;
            Ok((query.to_owned(), paths(reels)))
        }
        _ => Err(no_reel()),
    }
}

fn no_reel() -> Error {
    let message = "one argument was given, expected a query and at least one reel";
    Error::new(Kind::Usage, message)
}

fn gap(text: &str) -> Result<Pts> {
    let gap = parse_time(text).doing(|| "--min-gap")?;
    if gap.ticks >= 0 {
        return Ok(gap);
    }
    let message = format!("--min-gap is {text}, expected 0 or more seconds");
    Err(Error::new(Kind::Usage, message))
}

/// The model that made the vectors of a reel with `header`: `name`, the value of `option`, else the one the reel names.
pub(super) fn model_of_reel(
    name: Option<&Path>,
    option: &str,
    header: &ReelHeader,
    voice: Voice,
    cancel: &Cancel,
) -> Result<VectorModel> {
    let made_by = header.model.as_str();
    if name.is_none() && !Path::new(made_by).is_dir() {
        let message = format!(
            "the reel was made by the model {made_by}, which does not exist: expected {option} with its path"
        );
        return Err(Error::new(Kind::NotFound, message));
    }
    let system = open::system(name.unwrap_or(Path::new(made_by)), voice, cancel)?;
    let model = VectorModel::load(&system)?;
    if header.model_modified_s != weights_modified_s(&system) {
        voice.note(&format!(
            "the weights in {} were modified at another time than those that made the reel: vectors of other weights do not compare",
            system.path().shown()
        ));
    }
    Ok(model)
}

/// The first picture of an image file.
fn picture(path: &Path, cancel: &Cancel) -> Result<RgbImage> {
    let first = Sampling::Indices(vec![0]);
    let mut reader = FrameReader::open(path, &first, &TimeRange::ALL, cancel.clone())?;
    let frame = reader.next_frame()?.ok_or_else(|| {
        let message = format!("{} has no picture", path.shown());
        Error::new(Kind::BadInput, message)
    })?;
    Ok(frame.image)
}

fn moment(hit: &Hit, library: &Library, model: &VectorModel) -> MomentJson {
    let reel = &library.reels()[hit.reel];
    let time = hit.time;
    let (logit, probability) = model.judge(hit.score);
    MomentJson {
        score: hit.score,
        logit,
        probability,
        video: reel.header().videos[hit.video].path.clone(),
        reel: reel.path().to_owned(),
        time: time.since_start().to_string(),
        seconds: time.seconds(),
        pts: time.pts.ticks,
        time_base: time.pts.time_base.to_string(),
        frame: time.index,
    }
}

/// One line per moment: time, score, probability, frame number, video.
fn table(result: &SearchJson) -> String {
    let line = |m: &MomentJson| {
        let probability = m
            .probability
            .map_or(String::new(), |p| format!("  p {p:.4}"));
        format!(
            "{}  {:.4}{probability}  frame {}  {}",
            m.time, m.score, m.frame, m.video
        )
    };
    let lines: Vec<String> = result.results.iter().map(line).collect();
    lines.join("\n")
}
