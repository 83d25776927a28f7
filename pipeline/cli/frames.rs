//! `longreel frames`: the frames a model would be shown, as PNG files with exact times.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
};

use longreel_models::file_name::{FileName, as_text};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::{FrameSize, FramesArgs},
        choosing, open,
        output::{Voice, to_json},
        resolve,
    },
    error::{Context, Error, Kind, Result},
    flow::Frame,
    prepare::Selection,
    shown::Shown,
    sources::{
        file::{DecodeReport, FrameReader, VideoInfo},
        png::write_png,
        sampler::{Sampling, parse_time},
        temporary::{persist, temporary_beside},
    },
    stages::progress::Progress,
};

/// One line of `frames.jsonl`.
#[derive(Serialize)]
struct FrameLine {
    file: String,
    index: u64,
    pts: i64,
    time_base: String,
    seconds: f64,
    key: bool,
    corrupt: bool,
    width: usize,
    height: usize,
}

#[derive(Serialize)]
struct FramesJson<'a> {
    video: &'a VideoInfo,
    sampling: String,
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    frames: u64,
    report: DecodeReport,
}

/// Runs the verb.
pub fn run(args: FramesArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let selection = selection(&args)?;
    let shown = shown(&args, voice, cancel)?;
    let chooser = choosing::chooser(&args.sampling, None, voice, cancel)?;
    let (mut reader, sampling) =
        open::video(&args.video, &selection, chooser.as_ref(), voice, cancel)?;
    drop(chooser);
    fs::create_dir_all(&args.out).doing(|| format!("make the directory {}", args.out.shown()))?;
    let progress = Progress::default();
    progress
        .frames_expected
        .add(reader.expected_frames().unwrap_or(0));
    let frames = voice.show(&progress, || {
        write_all(&args.out, &mut reader, shown.as_ref(), &progress, cancel)
    })?;
    let report = reader.report();
    voice.warn(&args.video, &report.warnings);
    let result = FramesJson {
        video: reader.info(),
        sampling,
        out: &args.out,
        frames,
        report,
    };
    voice.say(&result, || {
        format!("{frames} frames in {}", args.out.shown())
    })
}

fn selection(args: &FramesArgs) -> Result<Selection> {
    let range = resolve::range(&args.sampling)?;
    if !args.at.is_empty() {
        let times = args
            .at
            .iter()
            .map(|t| parse_time(t))
            .collect::<Result<Vec<_>>>()
            .doing(|| "--at")?;
        return Ok(Selection::of(Sampling::At(times), range));
    }
    if !args.index.is_empty() {
        let numbers = Sampling::Indices(args.index.clone());
        return Ok(Selection::of(numbers, range));
    }
    resolve::selection(&args.sampling, Sampling::ONE_A_SECOND)
}

/// The model's preprocessing of frames, with `--size model`.
fn shown(args: &FramesArgs, voice: Voice, cancel: &Cancel) -> Result<Option<Shown>> {
    let (FrameSize::Model, Some(model)) = (args.size, &args.model) else {
        return Ok(None);
    };
    let system = open::system(model, voice, cancel)?;
    Shown::of(&system, &resolve::pixel_budget(&args.pixels)).map(Some)
}

fn write_all(
    out: &Path,
    reader: &mut FrameReader,
    shown: Option<&Shown>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<u64> {
    let list = out.join("frames.jsonl");
    let doing = || format!("write {}", list.shown());
    let mut lines = BufWriter::new(temporary_beside(&list, ".jsonl").doing(doing)?);
    let n_frames = reader.expected_frames().unwrap_or(1);
    let n_frames = usize::try_from(n_frames).unwrap_or(usize::MAX);
    let mut n = 0;
    while let Some(frame) = reader.next_frame()? {
        cancel.check()?;
        let line = write_frame(out, frame, shown, n_frames)?;
        writeln!(lines, "{}", to_json(&line)?).doing(doing)?;
        n += 1;
        progress.frames_encoded.add(1);
    }
    if n == 0 {
        let message = format!(
            "none of the chosen frames of {} can be decoded",
            reader.info().path.shown()
        );
        return Err(Error::new(Kind::BadInput, message));
    }
    let file = lines
        .into_inner()
        .map_err(|e| Error::from(e.into_error()))
        .doing(doing)?;
    persist(file, &list)?;
    Ok(n)
}

fn write_frame(
    out: &Path,
    frame: Frame,
    shown: Option<&Shown>,
    n_frames: usize,
) -> Result<FrameLine> {
    let Frame {
        time,
        key,
        corrupt,
        image,
    } = frame;
    let image = match shown {
        None => image,
        Some(shown) => shown
            .of_frame(&image, n_frames)
            .doing(|| format!("frame at {}", time.since_start()))?,
    };
    let file = format!("frame_{:06}_pts_{}.png", time.index, time.pts.ticks);
    write_png(&out.join(&file), &image)?;
    Ok(FrameLine {
        file,
        index: time.index,
        pts: time.pts.ticks,
        time_base: time.pts.time_base.to_string(),
        seconds: time.seconds(),
        key,
        corrupt,
        width: image.width,
        height: image.height,
    })
}
