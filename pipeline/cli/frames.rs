//! `longreel frames`: what would be seen, as PNG files with exact times.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
};

use longreel_models::{
    checkpoint::import_hf::spec_of_directory,
    vision::image::{RgbView, lwm_frame},
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{
        args::{FrameSize, FramesArgs},
        choosing,
        output::{Voice, to_json},
        resolve::{self, Selection},
    },
    error::{Context, Error, Kind, Result},
    flow::{Frame, RgbImage},
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
    out: &'a Path,
    frames: u64,
    report: DecodeReport,
}

/// Runs the verb.
pub fn run(args: FramesArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let selection = selection(&args)?;
    let side = model_side(&args, voice, cancel)?;
    let chooser = choosing::chooser(&args.sampling, None, voice, cancel)?;
    let (mut reader, sampling) =
        resolve::video(&args.video, &selection, chooser.as_ref(), voice, cancel)?;
    drop(chooser);
    fs::create_dir_all(&args.out).doing(|| format!("make the directory {}", args.out.display()))?;
    let progress = Progress::default();
    progress
        .frames_expected
        .add(reader.expected_frames().unwrap_or(0));
    let frames = voice.show(&progress, || {
        write_all(&args.out, &mut reader, side, &progress, cancel)
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
        format!("{frames} frames in {}", args.out.display())
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
    resolve::selection(&args.sampling, resolve::one_a_second()?)
}

/// Side of the model's input with `--size model`.
fn model_side(args: &FramesArgs, voice: Voice, cancel: &Cancel) -> Result<Option<usize>> {
    let (FrameSize::Model, Some(model)) = (args.size, &args.model) else {
        return Ok(None);
    };
    let dir = resolve::model_dir(model, voice, cancel)?;
    let spec = spec_of_directory(&dir)?;
    let vqgan = spec.vqgan.ok_or_else(|| {
        Error::new(
            Kind::BadInput,
            format!(
                "the model {} is a text model, it sees no frames",
                dir.display()
            ),
        )
    })?;
    Ok(Some(vqgan.resolution))
}

fn write_all(
    out: &Path,
    reader: &mut FrameReader,
    side: Option<usize>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<u64> {
    let list = out.join("frames.jsonl");
    let doing = || format!("write {}", list.display());
    let mut lines = BufWriter::new(temporary_beside(&list, ".jsonl").doing(doing)?);
    let mut n = 0;
    while let Some(frame) = reader.next_frame()? {
        cancel.check()?;
        let line = write_frame(out, frame, side)?;
        writeln!(lines, "{}", to_json(&line)?).doing(doing)?;
        n += 1;
        progress.frames_encoded.add(1);
    }
    if n == 0 {
        let message = format!(
            "none of the chosen frames of {} decodes",
            reader.info().path.display()
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

fn write_frame(out: &Path, frame: Frame, side: Option<usize>) -> Result<FrameLine> {
    let Frame {
        time,
        key,
        corrupt,
        image,
    } = frame;
    let image = match side {
        None => image,
        Some(side) => {
            let data = lwm_frame(RgbView::new(image.width, image.height, &image.data)?, side)?;
            RgbImage {
                width: side,
                height: side,
                data,
            }
        }
    };
    let file = format!("frame_{:06}_pts_{}.png", time.index, time.pts.ticks);
    write_png(&out.join(&file), &image)?;
    Ok(FrameLine {
        file,
        index: time.index,
        pts: time.pts.ticks,
        time_base: time.pts.time_base.to_string(),
        seconds: time.pts.seconds(),
        key,
        corrupt,
        width: image.width,
        height: image.height,
    })
}
