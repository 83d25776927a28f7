//! The reel: what is written is what is read, however it was stopped.

use std::fs;

use longreel::{
    error::Kind,
    flow::{EncodedStep, FeatureRows, FrameMark, FrameTime, StepContent},
    reel::{self, ReelContent, ReelHeader, ReelReader, ReelStep, ReelVideo, ReelWriter},
    time::{Pts, TimeBase},
};
use proptest::prelude::*;

fn header() -> ReelHeader {
    let video = |path: &str, den| ReelVideo {
        path: path.into(),
        bytes: 1000,
        modified_s: 1,
        time_base: [1, den],
        duration_s: Some(2.0),
        sampling: "every frame".into(),
        step: None,
        start: 0,
        shown_s: None,
    };
    ReelHeader {
        model: "m".into(),
        model_modified_s: 2,
        content: ReelContent::Codes {
            grid: 2,
            codebook: 16,
        },
        videos: vec![video("a", 90_000), video("b", 1000)],
    }
}

fn frame(video: usize, index: u64) -> ReelStep {
    let den = if video == 0 { 90_000 } else { 1000 };
    let pts = Pts::new(index as i64 * 3003 - 5, TimeBase::new(1, den).unwrap());
    let mark = FrameMark {
        time: FrameTime {
            index,
            pts,
            start: 0,
        },
        key: index.is_multiple_of(3),
        corrupt: index % 5 == 1,
    };
    ReelStep {
        video,
        step: EncodedStep {
            frames: vec![mark],
            content: StepContent::Codes((0..4).map(|c| ((index + c) % 16) as u32).collect()),
        },
    }
}

#[test]
fn a_reel_gives_back_what_was_appended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.reel");
    let frames: Vec<ReelStep> = (0..7).map(|i| frame(usize::from(i > 3), i)).collect();
    let mut writer = ReelWriter::open(&path, header(), false).unwrap();
    frames.iter().for_each(|f| writer.append(f).unwrap());
    assert!(
        !path.exists(),
        "the reel has its name only when it is whole"
    );
    writer.finish().unwrap();
    assert!(reel::is_reel(&path));
    let mut reader = ReelReader::open(&path).unwrap();
    let mut read = Vec::new();
    while let Some(frame) = reader.next_step().unwrap() {
        read.push(frame);
    }
    assert_eq!(read, frames);
    assert_eq!(
        reel::parse(&fs::read(&path).unwrap()).unwrap(),
        (header(), frames)
    );
}

#[test]
fn a_record_cut_short_is_left_out_and_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.reel");
    let mut writer = ReelWriter::open(&path, header(), false).unwrap();
    (0..5).for_each(|i| writer.append(&frame(0, i)).unwrap());
    writer.flush().unwrap();
    drop(writer);
    let partial = reel::partial_path(&path);
    let length = fs::metadata(&partial).unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(&partial)
        .unwrap()
        .set_len(length - 3)
        .unwrap();
    let mut writer = ReelWriter::open(&path, header(), false).unwrap();
    assert_eq!(writer.n_frames(), 4);
    writer.append(&frame(0, 4)).unwrap();
    writer.finish().unwrap();
    assert_eq!(ReelReader::open(&path).unwrap().n_frames(), 5);
}

#[test]
fn reels_of_codes_and_vectors_of_the_first_form_are_read() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, content, expected) in [
        (
            "one_frame",
            "1x1 codes out of 4",
            StepContent::Codes(vec![3]),
        ),
        (
            "one_vector",
            "vectors of 3 numbers",
            StepContent::Features(FeatureRows {
                rows: vec![0.5, -0.5, 0.25],
                width: 3,
                grid: None,
            }),
        ),
    ] {
        let bytes = fs::read(root.join("tests/fuzz/corpus/reel").join(name)).unwrap();
        let (header, steps) = reel::parse(&bytes).unwrap();
        assert_eq!(header.content.to_string(), content);
        assert_eq!(
            (steps.len(), &steps[0].step.content),
            (1, &expected),
            "{name}"
        );
        assert_eq!(steps[0].step.frames.len(), 1, "{name}");
    }
}

#[test]
fn two_jobs_do_not_write_the_same_reel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.reel");
    let writer = ReelWriter::open(&path, header(), false).unwrap();
    let refused = ReelWriter::open(&path, header(), false)
        .map(drop)
        .unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    drop(writer);
    assert!(
        !reel::partial_path(&path).exists(),
        "an empty partial reel stays behind"
    );
}

#[test]
fn a_partial_reel_of_another_job_is_neither_continued_nor_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.reel");
    let mut writer = ReelWriter::open(&path, header(), false).unwrap();
    writer.append(&frame(0, 0)).unwrap();
    writer.flush().unwrap();
    drop(writer);
    let other = ReelHeader {
        model: "another".into(),
        ..header()
    };
    let refused = ReelWriter::open(&path, other.clone(), false)
        .map(drop)
        .unwrap_err();
    assert!(
        refused.to_string().contains("belongs to another job"),
        "{refused}"
    );
    assert_eq!(
        ReelWriter::open(&path, header(), false).unwrap().n_frames(),
        1
    );
    assert_eq!(ReelWriter::open(&path, other, true).unwrap().n_frames(), 0);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), real in any::<bool>()) {
        if real {
            bytes.splice(0..0, reel::MAGIC);
        }
        if let Err(error) = reel::parse(&bytes) {
            prop_assert!(matches!(error.kind(), Kind::BadInput), "{error}");
        }
    }
}
