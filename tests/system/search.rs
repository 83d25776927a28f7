//! Vectors of frames, and moments found among them: what PyTorch and transformers find.

use std::{
    fs,
    path::{Path, PathBuf},
};

use longreel::{
    cancel::Cancel,
    error::Kind,
    flow::{EncodedStep, FeatureRows, FrameMark, FrameTime, StepContent},
    reel::{
        ReelContent, ReelHeader, ReelReader, ReelStep, ReelVideo, ReelWriter, RowForm, RowsDtype,
    },
    search::{Hit, Library},
    time::{Pts, TimeBase},
};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};

use crate::support::{
    golden::{self, Golden},
    longreel::{Run, ffmpeg, golden_clip, golden_model, longreel},
};

/// Frames of the golden file, a second apart.
fn golden_vectors() -> Vec<Vec<f32>> {
    let file = Golden::open("search/vectors.safetensors");
    let width = file.shape("vectors")[1];
    let vectors = file.f32("vectors");
    vectors.chunks(width).map(<[f32]>::to_vec).collect()
}

fn header(dtype: RowsDtype, width: usize) -> ReelHeader {
    ReelHeader {
        model: "clip".into(),
        model_modified_s: 1,
        content: ReelContent::Vectors(RowForm { width, dtype }),
        videos: vec![ReelVideo {
            path: "a.mp4".into(),
            bytes: 1,
            modified_s: 1,
            time_base: [1, 10],
            duration_s: None,
            sampling: "1 frames/s".into(),
            step: None,
            start: 0,
            shown_s: None,
        }],
    }
}

fn frame(index: usize, vector: &[f32]) -> ReelStep {
    let mark = FrameMark {
        time: FrameTime {
            index: index as u64,
            pts: seconds(index as i64),
            start: 0,
        },
        key: false,
        corrupt: false,
    };
    ReelStep {
        video: 0,
        step: EncodedStep {
            frames: vec![mark],
            content: StepContent::Features(FeatureRows {
                rows: vector.to_vec(),
                width: vector.len(),
                grid: None,
            }),
        },
    }
}

fn seconds(n: i64) -> Pts {
    Pts::new(n * 10, TimeBase::new(1, 10).unwrap())
}

fn write(path: &Path, header: ReelHeader, vectors: &[Vec<f32>]) {
    let mut writer = ReelWriter::open(path, header, false).unwrap();
    for (i, vector) in vectors.iter().enumerate() {
        writer.append(&frame(i, vector)).unwrap();
    }
    writer.finish().unwrap();
}

/// The golden vectors in two reels, cut behind `first`.
fn library(dir: &Path, dtype: RowsDtype, first: usize) -> Library {
    let vectors = golden_vectors();
    let paths = [dir.join("a.reel"), dir.join("b.reel")];
    let width = vectors[0].len();
    write(&paths[0], header(dtype, width), &vectors[..first]);
    write(&paths[1], header(dtype, width), &vectors[first..]);
    Library::open(&paths).unwrap()
}

#[test]
fn the_best_are_those_of_pytorch_in_its_order() {
    let file = Golden::open("search/vectors.safetensors");
    let (ids, scores) = (file.i64("ids"), file.f32("scores"));
    let (k, width) = (file.shape("ids")[1], file.shape("queries")[1]);
    for (dtype, tolerance) in [(RowsDtype::F32, 1e-6), (RowsDtype::F16, 1e-6)] {
        let dir = tempfile::tempdir().unwrap();
        let first = 300;
        let library = library(dir.path(), dtype, first);
        for (q, query) in file.f32("queries").chunks(width).enumerate() {
            let found = library
                .moments(query, k, seconds(0), &Cancel::new())
                .unwrap();
            let place = |hit: &Hit| (hit.reel * first) as i64 + hit.record as i64;
            let places: Vec<i64> = found.iter().map(place).collect();
            assert_eq!(places, ids[q * k..(q + 1) * k], "{dtype:?} query {q}");
            for (hit, expected) in found.iter().zip(&scores[q * k..]) {
                assert!(
                    (hit.score - expected).abs() < tolerance,
                    "{dtype:?} {hit:?}"
                );
            }
        }
    }
}

#[test]
fn bf16_scores_are_those_of_its_own_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let library = library(dir.path(), RowsDtype::Bf16, 300);
    let query = &golden_vectors()[33];
    let found = library
        .moments(query, 700, seconds(0), &Cancel::new())
        .unwrap();
    assert_eq!(found.len(), 700);
    let vectors = golden_vectors();
    for hit in found {
        let kept = &vectors[300 * hit.reel + hit.record as usize];
        let kept = kept.iter().map(|&x| half::bf16::from_f32(x).to_f32());
        let expected: f32 = kept.zip(query).map(|(a, b)| a * b).sum();
        assert!((hit.score - expected).abs() < 1e-6, "{hit:?}");
    }
}

/// Greedy choice over all frames, in the plainest way.
fn reference_moments(query: &[f32], k: usize, gap: usize) -> Vec<usize> {
    let vectors = golden_vectors();
    let score = |i: usize| -> f64 {
        let products = vectors[i].iter().zip(query);
        products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let mut order: Vec<usize> = (0..vectors.len()).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
    let mut taken: Vec<usize> = Vec::new();
    for i in order {
        if taken.len() < k && taken.iter().all(|&t| t.abs_diff(i) >= gap) {
            taken.push(i);
        }
    }
    taken
}

#[test]
fn moments_lie_apart_and_are_the_best_that_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.reel");
    let vectors = golden_vectors();
    write(&path, header(RowsDtype::F32, vectors[0].len()), &vectors);
    let library = Library::open(&[path]).unwrap();
    for (k, gap) in [(3, 2), (5, 130), (40, 9), (700, 50)] {
        let found = library
            .moments(&vectors[0], k, seconds(gap), &Cancel::new())
            .unwrap();
        let records: Vec<usize> = found.iter().map(|h| h.record as usize).collect();
        let expected = reference_moments(&vectors[0], k, gap as usize);
        assert_eq!(records, expected, "{k} moments {gap} s apart");
    }
}

#[test]
fn vectors_come_back_as_they_were_kept() {
    let numbers = vec![0.5, -1.0, 0.25, 3.0, 0.0, -0.125];
    for dtype in [RowsDtype::F16, RowsDtype::Bf16, RowsDtype::F32] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vectors.reel");
        let header = header(dtype, numbers.len());
        let kept = frame(4, &numbers);
        let mut writer = ReelWriter::open(&path, header.clone(), false).unwrap();
        writer.append(&kept).unwrap();
        let refused = writer.append(&frame(5, &[1.0; 3])).unwrap_err();
        assert_eq!(refused.kind(), Kind::Internal, "{refused}");
        writer.finish().unwrap();
        let mut reader = ReelReader::open(&path).unwrap();
        assert_eq!(*reader.header(), header);
        assert_eq!(reader.next_step().unwrap(), Some(kept));
    }
}

#[test]
fn nan_in_a_vector_is_detected() {
    for bad in [f32::NAN, f32::INFINITY] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.reel");
        let vectors = [vec![0.6, 0.8], vec![bad, 0.1], vec![0.8, 0.6]];
        write(&path, header(RowsDtype::F16, 2), &vectors);
        let library = Library::open(&[path]).unwrap();
        let found = library.moments(&[1.0, 0.0], 1, seconds(0), &Cancel::new());
        let refused = found.map(drop).unwrap_err();
        assert_eq!(refused.kind(), Kind::BadInput);
        assert!(refused.to_string().contains("NaN or infinite"), "{refused}");
    }
}

/// A golden CLIP or SigLIP with a tokenizer of numbered words, `w5` having the id 5.
pub(super) fn model(name: &str, dir: &Path) -> PathBuf {
    let folder = dir.join(name);
    fs::create_dir(&folder).unwrap();
    for file in [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ] {
        let from = golden::path(&format!("systems/{name}/{file}"));
        fs::copy(from, folder.join(file)).unwrap();
    }
    let vocab: serde_json::Map<_, _> = (0..99).map(|i| (format!("w{i}"), json!(i))).collect();
    let ends = json!({
        "type": "BertProcessing", "cls": ["w0", 0], "sep": ["w98", 98],
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": if name == "clip" { ends } else { Value::Null },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w3"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}

pub(super) fn encode(video: &Path, out: &Path, model: &Path, more: &[&str]) -> Run {
    let (video, out, model) = (text(video), text(out), text(model));
    let args = ["encode", &video, "--out", &out, "--model", &model, "--json"];
    longreel(&[&args, more].concat())
}

#[test]
fn a_text_finds_the_frames_that_transformers_finds() {
    let file = fs::read_to_string(golden::path("search/frames.json")).unwrap();
    let golden: Value = serde_json::from_str(&file).unwrap();
    for name in ["clip", "siglip"] {
        let dir = tempfile::tempdir().unwrap();
        let (model, reel) = (model(name, dir.path()), dir.path().join("clip.reel"));
        let encoded = encode(golden_clip(), &reel, &model, &["--all-frames"]).json();
        assert_eq!(encoded["frames"], 5);
        let expected = &golden[name];
        for (t, query) in expected["texts"].as_array().unwrap().iter().enumerate() {
            let query = query.as_str().unwrap();
            let args = ["search", query, &text(&reel), "--min-gap", "0", "--json"];
            let json = longreel(&args).json();
            let results = json["results"].as_array().unwrap();
            assert_eq!(results.len(), 5, "{json}");
            for result in results {
                let frame = result["frame"].as_u64().unwrap() as usize;
                let close = |key: &str, expected: &Value, tolerance: f64| {
                    let (got, expected) =
                        (result[key].as_f64().unwrap(), expected.as_f64().unwrap());
                    assert!(
                        (got - expected).abs() < tolerance,
                        "{name} {query} {key}: {got} {expected}"
                    );
                };
                close("score", &expected["cosines"][t][frame], 5e-3);
                close("logit", &expected["logits"][t][frame], 2e-2);
                let time = format!("00:00:00.{}00", 2 * frame);
                assert_eq!(result["time"], time, "five frames a second");
                assert!(
                    result["video"]
                        .as_str()
                        .unwrap()
                        .ends_with("golden-clip.mkv")
                );
                assert_eq!(result["probability"].is_f64(), name == "siglip");
            }
            let score = |r: &Value| r["score"].as_f64().unwrap();
            assert!(results.is_sorted_by(|a, b| score(a) >= score(b)), "{json}");
        }
    }
}

#[test]
fn a_picture_finds_itself_and_moments_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    let (model, reel) = (model("clip", dir.path()), dir.path().join("clip.reel"));
    encode(golden_clip(), &reel, &model, &["--all-frames"]).json();
    let picture = text(&golden::path("e2e/clip/frame_003.png"));
    let search = |more: &[&str]| {
        let args = ["search", "--image", &picture, &text(&reel), "--json"];
        longreel(&[&args, more].concat()).json()
    };
    let all = search(&["--min-gap", "0", "--top", "2"]);
    let results = all["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["frame"], 3, "{all}");
    assert!(results[0]["score"].as_f64().unwrap() > 0.999, "{all}");
    let merged = search(&[]);
    assert_eq!(merged["results"].as_array().unwrap().len(), 1, "{merged}");
    let said = longreel(&["search", "w5", &text(&reel), "--top", "1"]);
    assert_eq!((said.code, said.stdout.lines().count()), (0, 1), "{said:?}");
    assert!(said.stdout.starts_with("00:00:00."), "{said:?}");
}

/// Encoders of pictures alone.
const PICTURES: [&str; 3] = ["vit", "dinov2", "resnet"];

#[test]
fn encoders_of_pictures_find_frames_alike() {
    let golden = Golden::open("search/pictures.safetensors");
    for name in PICTURES {
        let dir = tempfile::tempdir().unwrap();
        let reel = dir.path().join("a.reel");
        let model = golden::path(&format!("systems/{name}"));
        encode(golden_clip(), &reel, &model, &["--all-frames"]).json();
        let width = golden.shape(&format!("{name}.frames"))[1];
        let vectors = golden.f32(&format!("{name}.frames"));
        let vectors: Vec<&[f32]> = vectors.chunks(width).collect();
        for (asked, query) in vectors.iter().enumerate() {
            let picture = text(&golden::path(&format!("e2e/clip/frame_{asked:03}.png")));
            let args = ["search", "--image", &picture, &text(&reel), "--json"];
            let json = longreel(&[&args[..], &["--min-gap", "0"]].concat()).json();
            let results = json["results"].as_array().unwrap();
            assert_eq!(results[0]["frame"], asked, "{name} {json}");
            assert_eq!(results.len(), 5);
            for result in results {
                let frame = result["frame"].as_u64().unwrap() as usize;
                let products = query.iter().zip(vectors[frame]).map(|(a, b)| a * b);
                let (got, expected) = (result["score"].as_f64().unwrap(), products.sum::<f32>());
                let what = format!("{name} {asked} {frame}: {got} {expected}");
                assert!((got - f64::from(expected)).abs() < 5e-3, "{what}");
                assert!(result.get("logit").is_none(), "{what}");
            }
        }
        let said = longreel(&["search", "a red boat", &text(&reel)]);
        said.refused(2, "is an encoder of pictures, expected CLIP or SigLIP");
        let ask = [
            "ask",
            &text(&reel),
            "What?",
            "--model",
            &text(&golden::path("answers/llava15")),
        ];
        longreel(&ask).refused(2, "has vectors of");
    }
}

/// The folder of an encoder without the classes that it was trained to name, and without the names of that model.
fn alone(name: &str, class: &str, dir: &Path) -> PathBuf {
    let from = golden::path(&format!("systems/{name}"));
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let prefix = format!("{name}.");
    let kept = tensors.tensors().into_iter();
    let kept = kept.filter_map(|(n, t)| Some((n.strip_prefix(&prefix)?.to_owned(), t)));
    serialize_to_file(kept, None, &dir.join("model.safetensors")).unwrap();
    let config = fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["architectures"] = json!([class]);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::copy(
        from.join("preprocessor_config.json"),
        dir.join("preprocessor_config.json"),
    )
    .unwrap();
    dir.to_owned()
}

#[test]
fn an_encoder_without_its_classes_makes_the_same_vectors() {
    for (name, class) in [
        ("vit", "ViTModel"),
        ("dinov2", "Dinov2Model"),
        ("resnet", "ResNetModel"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = alone(name, class, dir.path());
        let kept = |model: &Path| {
            let reel = dir.path().join("a.reel");
            encode(
                golden_clip(),
                &reel,
                model,
                &["--reel-dtype", "f32", "--force"],
            )
            .json();
            let mut reader = ReelReader::open(&reel).unwrap();
            reader.next_step().unwrap()
        };
        let classifier = golden::path(&format!("systems/{name}"));
        assert_eq!(kept(&folder), kept(&classifier), "{name}");
    }
}

#[test]
fn an_interrupted_reel_of_vectors_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let video = dir.path().join("v.mp4");
    ffmpeg(
        "-f lavfi -i testsrc2=duration=2:size=64x48:rate=10 -pix_fmt yuv420p",
        &video,
    );
    let (model, reel) = (model("siglip", dir.path()), dir.path().join("v.reel"));
    encode(&video, &reel, &model, &["--all-frames"]).json();
    let whole = fs::read(&reel).unwrap();
    fs::remove_file(&reel).unwrap();
    let partial = longreel::reel::partial_path(&reel);
    fs::write(&partial, &whole[..whole.len() - 300]).unwrap();
    let json = encode(&video, &reel, &model, &["--all-frames"]).json();
    assert_eq!(json["frames"], 20);
    assert!(json["resumed_frames"].as_u64().unwrap() > 10, "{json}");
    assert!(
        fs::read(&reel).unwrap() == whole,
        "the resumed reel differs"
    );
}

#[test]
fn unsearchable_inputs_are_refused_with_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let (clip, siglip) = (model("clip", dir.path()), model("siglip", dir.path()));
    let at = |name: &str| dir.path().join(name);
    encode(golden_clip(), &at("clip.reel"), &clip, &[]).json();
    encode(golden_clip(), &at("siglip.reel"), &siglip, &[]).json();
    encode(golden_clip(), &at("codes.reel"), golden_model(), &[]).json();
    let reel = text(&at("clip.reel"));
    let search = |args: &[&str]| longreel(&[&["search"], args].concat());
    search(&["w5"]).refused(2, "at least one reel");
    search(&["w5", &reel, "--top", "0"]).refused(2, "--top is 0");
    search(&["w5", &reel, "--min-gap=-1"]).refused(2, "--min-gap");
    search(&[" ", &reel]).refused(2, "the text is empty");
    search(&["w5", "/nowhere.reel"]).refused(2, "no such file");
    search(&["w5", &reel, &text(&at("siglip.reel"))]).refused(2, "expected one model");
    search(&["w5", &text(&at("codes.reel"))]).refused(2, "expected vectors");
    search(&["w5", &reel, "--model", &text(&siglip)]).refused(2, "expected 32");
    search(&["w5", &reel, "--model", &text(golden_model())])
        .refused(2, "expected CLIP, SigLIP, ViT");
    let ask = ["ask", &reel, "What?", "--model", &text(golden_model())];
    longreel(&ask).refused(2, "has vectors of 24 numbers");
    fs::remove_file(clip.join("tokenizer.json")).unwrap();
    search(&["w5", &reel]).refused(2, "tokenizer.json");
    fs::rename(&clip, at("moved")).unwrap();
    search(&["w5", &reel]).refused(2, "expected --model");
    fs::write(at("short.reel"), &fs::read(&reel).unwrap()[..60]).unwrap();
    search(&["w5", &text(&at("short.reel"))]).refused(2, "header");
}
