//! Pictures are what Pillow makes of them: to the byte, upright, or refused where it raises.

use std::path::{Path, PathBuf};

use longreel::{
    cancel::Cancel,
    error::{Kind, Result},
    flow::{Frame, RgbImage},
    sources::{
        file::{FrameReader, probe},
        orientation::Orientation,
        sampler::{Sampling, TimeRange},
    },
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::{clips, golden};

fn picture(name: &str) -> PathBuf {
    golden::path(&format!("pictures/{name}"))
}

fn frames(path: &Path) -> Result<Vec<Frame>> {
    FrameReader::open(path, &Sampling::Every, &TimeRange::ALL, Cancel::new())?.collect()
}

fn only(path: &Path) -> RgbImage {
    let mut all = frames(path).unwrap();
    assert_eq!(all.len(), 1, "{path:?}");
    all.remove(0).image
}

/// What Pillow made of every file of `tests/golden/pictures`.
fn expected() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(picture("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn check(name: &str, pillow: &Value) -> std::result::Result<(), String> {
    let found = frames(&picture(name));
    let frames = match (found, &pillow["raises"]) {
        (Err(error), Value::String(_)) if error.kind() == Kind::BadInput => return Ok(()),
        (Ok(frames), Value::Null) => frames,
        (Ok(_), raises) => return Err(format!("{name} is read, Pillow says {raises}")),
        (Err(error), _) => return Err(format!("{name}: {error}, Pillow reads it")),
    };
    let mut digest = Sha256::new();
    frames
        .iter()
        .for_each(|frame| digest.update(&frame.image.data));
    let digest: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let image = &frames[0].image;
    let size = serde_json::json!([image.width, image.height]);
    let same = pillow["size"] == size
        && pillow["frames"] == frames.len()
        && (pillow["sha256"] == digest || name.ends_with(".avif"));
    match same {
        true => Ok(()),
        false => Err(format!(
            "{name}: {size}, {} frames, {digest}; Pillow {pillow}",
            frames.len()
        )),
    }
}

#[test]
fn pictures_are_those_of_pillow_to_the_byte() {
    let wrong: Vec<String> = expected()
        .iter()
        .filter_map(|(name, pillow)| check(name, pillow).err())
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_truncated_jpeg_says_so_and_one_that_is_damaged_is_marked() {
    for name in ["cut.jpg", "without_end.jpg", "progressive_cut.jpg"] {
        let error = frames(&picture(name)).unwrap_err().to_string();
        assert!(error.contains("the JPEG is truncated"), "{name}: {error}");
    }
    let damaged = frames(&picture("damaged.jpg")).unwrap();
    assert!(damaged[0].corrupt);
}

#[test]
fn a_heif_picture_is_turned_as_its_properties_say() {
    let stored = only(&picture("irot_1.avif"));
    for number in 1..=8 {
        let turned = only(&picture(&format!("irot_{number}.avif")));
        let upright = Orientation::from_exif(number).apply(stored.clone());
        assert!(turned == upright, "orientation {number}");
    }
}

#[test]
fn damaged_pictures_never_panic() {
    let names = [
        "progressive_420.jpg",
        "exif_6.jpg",
        "lossy.webp",
        "alpha.webp",
        "lossless.webp",
        "animated.webp",
        "exif_6.png",
        "exif_6.tiff",
        "irot_7.avif",
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("damaged");
    for name in names {
        let whole = std::fs::read(picture(name)).unwrap();
        // Heads are where lengths stand; a step that shares no factor with their size meets every byte of them in time.
        for n in 0..150 {
            let mut bytes = whole.clone();
            let at = if n % 2 == 0 { n * 3 } else { n * 7919 } % bytes.len();
            bytes[at] ^= [0x01, 0x80, 0xff, 0x55][n % 4];
            if n % 10 == 9 {
                bytes.truncate(at);
            }
            std::fs::write(&path, &bytes).unwrap();
            drop(frames(&path));
        }
    }
}

#[test]
fn one_turn_behind_another_is_one_turn() {
    let image = RgbImage {
        width: 3,
        height: 2,
        data: (0..18).collect(),
    };
    for (a, b) in (1..=8).flat_map(|a| (1..=8).map(move |b| (a, b))) {
        let (a, b) = (Orientation::from_exif(a), Orientation::from_exif(b));
        let step_by_step = b.apply(a.apply(image.clone()));
        assert_eq!(a.then(b).apply(image.clone()), step_by_step);
    }
}

#[test]
fn an_animation_has_the_times_of_its_frames() {
    let path = picture("animated.webp");
    let times: Vec<String> = frames(&path)
        .unwrap()
        .iter()
        .map(|frame| frame.time.pts.to_string())
        .collect();
    assert_eq!(
        times,
        [
            "00:00:00.000",
            "00:00:00.100",
            "00:00:00.150",
            "00:00:00.350"
        ]
    );
    let info = probe(&path, &Cancel::new()).unwrap();
    assert!(!info.still);
    assert!((info.duration.unwrap().seconds() - 0.42).abs() < 1e-9);
}

/// A motion-JPEG video each of whose frames says in EXIF how it is turned.
fn turned_video(number: u32) -> PathBuf {
    let still = picture(&format!("exif_{number}.jpg"));
    let still = still.to_str().unwrap();
    let name = format!("turned_{number}.mkv");
    let source = ["-loop", "1", "-framerate", "5", "-i", still];
    clips::make(&name, &[&source[..], &["-t", "1", "-c:v", "copy"]].concat())
}

#[test]
fn the_turn_that_stands_on_a_frame_is_applied() {
    for number in [1, 3, 6, 8] {
        let path = turned_video(number);
        let upright = only(&picture(&format!("exif_{number}.jpg")));
        let frames = frames(&path).unwrap();
        let info = probe(&path, &Cancel::new()).unwrap();
        assert_eq!(info.codec, "mjpeg");
        assert_eq!(
            (info.width, info.height),
            (upright.width, upright.height),
            "{number}"
        );
        assert_eq!(info.orientation, Orientation::from_exif(number));
        for frame in &frames {
            let far = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 60;
            let n_far = frame
                .image
                .data
                .iter()
                .zip(&upright.data)
                .filter(|p| far(*p))
                .count();
            assert!(
                n_far * 10 < upright.data.len(),
                "orientation {number}: {n_far} bytes are far"
            );
        }
    }
}

#[test]
fn plain_pictures_of_other_forms_are_read() {
    for name in ["a.ppm", "a.pgm", "a.pam", "a.qoi", "a.bmp"] {
        let path = clips::test_pattern(name, "32x16", "1", "1", &["-frames:v", "1"]);
        let image = only(&path);
        assert_eq!((image.width, image.height), (32, 16), "{name}");
    }
}

#[test]
fn the_turn_in_an_h264_stream_is_applied() {
    let plain = [
        "-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "3", "-bf", "1",
    ];
    let turn = [
        "-bsf:v",
        "h264_metadata=display_orientation=insert:rotate=90",
    ];
    let path = clips::test_pattern(
        "turned.ts",
        "64x48",
        "10",
        "1",
        &[&plain[..], &turn].concat(),
    );
    let upright = clips::run(
        "ffmpeg",
        &[
            "-i",
            path.to_str().unwrap(),
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-",
        ],
    );
    let found = frames(&path).unwrap();
    assert_eq!((found[0].image.width, found[0].image.height), (48, 64));
    let first = &found[0].image.data;
    assert!(upright[..first.len()] == first[..]);
    // The message stands at the frames where decoding can start; the others stand as these do.
    assert!(found.iter().all(|frame| frame.image.width == 48));
}

#[test]
fn a_tiff_that_ffmpeg_reads_wrong_is_refused() {
    // Compression 1 becomes 7 (JPEG) in the directory's entry 0x0103: type 3, one number.
    let plain = clips::test_pattern(
        "plain.tiff",
        "32x16",
        "1",
        "1",
        &[
            "-frames:v",
            "1",
            "-pix_fmt",
            "rgb24",
            "-compression_algo",
            "raw",
        ],
    );
    assert_eq!(only(&plain).width, 32);
    let jpeg = clips::edited("jpeg.tiff", &plain, |mut bytes| {
        let entry = b"\x03\x01\x03\x00\x01\x00\x00\x00";
        let at = bytes.windows(8).position(|found| found == entry).unwrap();
        bytes[at + 8] = 7;
        bytes
    });
    let error = frames(&jpeg).unwrap_err().to_string();
    assert!(error.contains("a TIFF compressed as JPEG"), "{error}");
}
