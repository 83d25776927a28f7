//! Frames chosen by what they show: those that changed, and those that a text describes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use longreel::{
    cancel::Cancel,
    chooser::{Candidates, Changes, Choice, Chooser, Query, Vectors},
    error::{Kind, Result},
    flow::{Frame, FrameTime, RgbImage},
    sources::{
        change::{ChangeDetector, Thumbnail},
        file::{FrameReader, Strategy},
        sampler::{Sampling, TimeRange, parse_rate, parse_time},
    },
    stages::progress::Progress,
    time::{Pts, TimeBase},
};
use proptest::prelude::*;
use serde_json::Value;

use super::search::{encode, model, text};
use crate::support::{
    clips, golden,
    longreel::{Run, golden_clip, golden_model, longreel},
};

/// Frames at which a scene begins, of 95 at ten a second.
const SCENES: [u64; 5] = [0, 30, 47, 48, 80];

/// Scenes of one colour under noise that changes with every frame, between [`SCENES`]; the second and the third are equally bright.
fn scenes() -> PathBuf {
    let scene = |colour: &str, frames: u32| {
        let seconds = f64::from(frames) / 10.0;
        format!("color=c={colour}:s=480x360:r=10:d={seconds},noise=alls=10:allf=t")
    };
    let graph = [
        ("red", 30),
        ("0x3060C0", 17),
        ("0xA03040", 1),
        ("black", 32),
        ("0x202020", 15),
    ]
    .iter()
    .enumerate()
    .map(|(i, (colour, frames))| format!("{}[s{i}];", scene(colour, *frames)))
    .collect::<String>();
    let graph = format!("{graph}[s0][s1][s2][s3][s4]concat=n=5");
    let encoder = ["-c:v", "libx264", "-g", "12", "-pix_fmt", "yuv420p"];
    clips::make(
        "scenes.mp4",
        &[&["-f", "lavfi", "-i", &graph], &encoder[..]].concat(),
    )
}

/// Twenty seconds at a frame a second in which nothing happens, lossless.
fn still() -> PathBuf {
    let source = "color=c=gray:s=64x48:r=1:d=20";
    clips::make("still.mkv", &["-f", "lavfi", "-i", source, "-c:v", "ffv1"])
}

fn frame(index: u64, ticks: i64, image: RgbImage) -> Frame {
    Frame {
        time: FrameTime {
            index,
            pts: Pts::new(ticks, TimeBase::new(1, 10).unwrap()),
            start: 0,
        },
        key: false,
        corrupt: false,
        image,
    }
}

fn picture(width: usize, height: usize, data: Vec<u8>) -> RgbImage {
    RgbImage {
        width,
        height,
        data,
    }
}

fn grey(level: u8) -> RgbImage {
    picture(256, 260, vec![level; 256 * 260 * 3])
}

/// The mean of every cell by the definition, pixel by pixel.
fn plain_means(image: &RgbImage) -> Vec<f64> {
    let (w, h) = (image.width, image.height);
    let cells = |pixels: usize| (pixels / 8).clamp(1, 32);
    let (columns, rows) = (cells(w), cells(h));
    let mut sums = vec![(0.0, 0.0); columns * rows * 3];
    for (i, &value) in image.data.iter().enumerate() {
        let (x, y, channel) = (i / 3 % w, i / 3 / w, i % 3);
        let cell = y * rows / h * columns + x * columns / w;
        let (sum, n) = &mut sums[cell * 3 + channel];
        (*sum, *n) = (*sum + f64::from(value), *n + 1.0);
    }
    sums.into_iter().map(|(sum, n)| sum / n).collect()
}

proptest! {
    #[test]
    fn the_difference_is_that_of_the_means_of_cells(
        (w, h) in (1usize..300, 1usize..300),
        seed in any::<u64>(),
    ) {
        let image = |salt: u64| {
            let mut state = seed ^ salt;
            let next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(salt);
                (state >> 56) as u8
            };
            picture(w, h, std::iter::repeat_with(next).take(w * h * 3).collect())
        };
        let (a, b) = (image(1), image(77));
        let (means_a, means_b) = (plain_means(&a), plain_means(&b));
        let pairs = means_a.iter().zip(&means_b);
        let expected = pairs.map(|(a, b)| (a - b).abs()).sum::<f64>() / means_a.len() as f64 / 255.0;
        let (a, b) = (Thumbnail::of(&a), Thumbnail::of(&b));
        // Means are cut to 1/256 of a level.
        prop_assert!((a.difference(&b) - expected).abs() < 2e-5);
        prop_assert_eq!(a.difference(&b), b.difference(&a));
        prop_assert_eq!(a.difference(&a), 0.0);
    }
}

#[test]
fn the_difference_is_zero_for_equal_frames_and_one_for_black_and_white() {
    let of = |image: &RgbImage| Thumbnail::of(image);
    assert_eq!(of(&grey(0)).difference(&of(&grey(255))), 1.0);
    assert_eq!(of(&grey(100)).difference(&of(&grey(151))), 0.2);
    // The same picture in other sizes has the same cells, until cells are missing.
    let large = picture(640, 360, vec![100; 640 * 360 * 3]);
    assert_eq!(of(&large).difference(&of(&grey(100))), 0.0);
    let tiny = picture(3, 2, vec![100; 18]);
    assert_eq!(of(&tiny).difference(&of(&grey(100))), 1.0);
    // Red and green of one brightness differ.
    let colour = |c: [u8; 3]| picture(64, 64, c.repeat(64 * 64));
    let (red, green) = (colour([200, 0, 0]), colour([0, 102, 0]));
    assert!(of(&red).difference(&of(&green)) > 0.3);
}

/// Feeds grey frames at `ticks` and gives the places of those that were kept.
fn kept(levels: &[u8], ticks: &[i64], threshold: f64, max_gap: Option<i64>) -> Vec<usize> {
    let base = TimeBase::new(1, 10).unwrap();
    let mut detector = ChangeDetector::new(threshold, max_gap.map(|t| Pts::new(t, base)));
    let keeps = |&i: &usize| {
        let next = ticks.get(i + 1).map(|&t| Pts::new(t, base));
        let now = frame(i as u64, ticks[i], grey(levels[i]));
        detector.push(&now, next).is_some()
    };
    (0..levels.len()).filter(keeps).collect()
}

proptest! {
    #[test]
    fn kept_frames_differ_and_skipped_ones_do_not(
        steps in prop::collection::vec((any::<u8>(), 1i64..30), 1..60),
        level in 0u8..=255,
        max_gap in prop::option::of(1i64..60),
    ) {
        let levels: Vec<u8> = steps.iter().map(|s| s.0).collect();
        let ticks: Vec<i64> = steps.iter().scan(-50, |t, s| { *t += s.1; Some(*t) }).collect();
        let threshold = f64::from(level) / 255.0;
        let kept = kept(&levels, &ticks, threshold, max_gap);
        let differs = |a: usize, b: usize| levels[a].abs_diff(levels[b]) > level;
        prop_assert_eq!(kept[0], 0, "the first is kept");
        for (n, &i) in kept.iter().enumerate() {
            let end = kept.get(n + 1).copied().unwrap_or(levels.len());
            let left_out = i + 1..end;
            prop_assert!(left_out.clone().all(|j| !differs(i, j)), "{i} to {end} of {levels:?}");
            let Some(gap) = max_gap else {
                prop_assert!(end == levels.len() || differs(i, end));
                continue;
            };
            // A hole is longer only where there is no frame in it.
            let last = end.min(levels.len() - 1);
            prop_assert!(ticks[last] - ticks[i] <= gap || left_out.is_empty() || end == levels.len());
            let rest = ticks[levels.len() - 1] - ticks[kept[kept.len() - 1]];
            prop_assert!(rest <= gap || kept[kept.len() - 1] + 1 >= levels.len() - 1);
            // None is kept without a reason.
            let must = |j: usize| ticks.get(j + 1).is_some_and(|next| next - ticks[i] > gap);
            prop_assert!(end == levels.len() || differs(i, end) || must(end));
        }
    }
}

#[test]
fn a_slow_drift_is_noticed_and_a_flicker_is_not() {
    let ticks: Vec<i64> = (0..100).collect();
    let drift: Vec<u8> = (0..100).map(|i| 50 + i).collect();
    // A step is 1/255, seven of them are the first above 0.025.
    let places = kept(&drift, &ticks, 0.025, None);
    assert_eq!(places, (0..100).step_by(7).collect::<Vec<_>>());
    let flicker: Vec<u8> = (0..100).map(|i| 50 + i % 2 * 6).collect();
    assert_eq!(kept(&flicker, &ticks, 0.025, None), [0]);
    assert_eq!(kept(&flicker, &ticks, 0.0, None).len(), 100);
    assert_eq!(kept(&[7; 100], &ticks, 0.0, None), [0]);
}

/// What `chooser` leaves of the candidates, reached by `strategy`.
fn choose(
    path: &Path,
    sampling: &Sampling,
    chooser: &Chooser,
    strategy: Strategy,
) -> Result<Choice> {
    let range = TimeRange::ALL;
    let reader = FrameReader::open_with(path, sampling, &range, Cancel::new(), strategy)?;
    let candidates = Candidates {
        reader,
        range: &range,
        sampling: "candidates",
    };
    chooser.choose(candidates, &Progress::default(), &Cancel::new())
}

fn changes(threshold: f64, most: Option<usize>) -> Chooser {
    Chooser::Change(Changes {
        threshold,
        max_gap: None,
        most,
    })
}

/// Numbers and pixels of what is left.
fn frames_of(choice: Choice) -> Vec<(u64, Vec<u8>)> {
    let frames = choice.reader.map(Result::unwrap);
    frames.map(|f| (f.time.index, f.image.data)).collect()
}

#[test]
fn chosen_frames_are_the_same_however_they_are_reached() {
    let second = Sampling::Fps(parse_rate("2").unwrap());
    for path in [
        scenes(),
        golden::clip("nasa_13013.mp4"),
        golden::clip("av1_video.mkv"),
    ] {
        let all = FrameReader::open(&path, &Sampling::Every, &TimeRange::ALL, Cancel::new());
        let all: Vec<Frame> = all.unwrap().map(Result::unwrap).collect();
        for (sampling, threshold) in [(&Sampling::Every, 0.01), (&second, 0.02), (&second, 0.0)] {
            let chosen = |strategy| {
                let choice = choose(&path, sampling, &changes(threshold, None), strategy);
                frames_of(choice.unwrap())
            };
            let straight = chosen(Strategy::Straight);
            assert!(!straight.is_empty());
            for (index, pixels) in &straight {
                assert!(all[*index as usize].image.data == *pixels, "frame {index}");
            }
            for strategy in [Strategy::Seek, Strategy::Auto] {
                assert!(
                    chosen(strategy) == straight,
                    "{} {strategy:?}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn a_limit_keeps_the_first_and_the_most_changed_frames() {
    let path = golden::clip("nasa_13013.mp4");
    let reader = FrameReader::open(&path, &Sampling::Every, &TimeRange::ALL, Cancel::new());
    let mut detector = ChangeDetector::new(0.01, None);
    let rate = |frame: Result<Frame>| {
        let frame = frame.unwrap();
        Some((detector.push(&frame, None)?, frame.time.index))
    };
    let mut rated: Vec<(f64, u64)> = reader.unwrap().filter_map(rate).collect();
    assert!(rated.len() > 8, "{rated:?}");
    assert_eq!(rated[0], (f64::INFINITY, 0));
    rated.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for n in [1, 2, 5, rated.len(), 1000] {
        let mut expected: Vec<u64> = rated.iter().take(n).map(|r| r.1).collect();
        expected.sort_unstable();
        let chooser = changes(0.01, Some(n));
        let choice = choose(&path, &Sampling::Every, &chooser, Strategy::Auto).unwrap();
        let chosen: Vec<u64> = frames_of(choice).into_iter().map(|f| f.0).collect();
        assert_eq!(chosen, expected, "{n} of them");
    }
}

#[test]
fn a_second_pass_reports_itself_only() {
    let choice = choose(
        &scenes(),
        &Sampling::Every,
        &changes(0.01, None),
        Strategy::Straight,
    );
    let mut reader = choice.unwrap().reader;
    assert_eq!(reader.report().decoded, 0);
    assert_eq!(reader.expected_frames(), Some(5));
    reader.by_ref().for_each(|f| drop(f.unwrap()));
    let report = reader.report();
    assert_eq!((report.emitted, report.missing), (5, 0), "{report:?}");
    assert!(reader.again(vec![95]).is_err(), "the clip has 95 frames");
}

#[test]
fn a_damaged_video_gives_what_was_chosen_again() {
    let source = "testsrc2=duration=4:size=320x240:rate=10";
    let encoder = ["-pix_fmt", "yuv420p", "-g", "5"];
    let whole = [&["-f", "lavfi", "-i", source][..], &encoder].concat();
    let whole = clips::make("whole.ts", &whole);
    let torn = clips::edited("torn.ts", &whole, |mut bytes| {
        let middle = bytes.len() / 2;
        for byte in &mut bytes[middle..middle + 4000] {
            *byte = byte.wrapping_mul(31).wrapping_add(7);
        }
        bytes
    });
    for threshold in [0.0, 0.01, 0.03] {
        let choice = choose(
            &torn,
            &Sampling::Every,
            &changes(threshold, None),
            Strategy::Auto,
        );
        let choice = choice.unwrap();
        let expected = choice.reader.expected_frames().unwrap();
        assert!(
            expected > 5 && choice.candidates <= 40,
            "{expected} at {threshold}"
        );
        let again = frames_of(choice);
        assert_eq!(again.len() as u64, expected, "threshold {threshold}");
        assert!(again.is_sorted_by(|a, b| a.0 < b.0));
    }
}

#[test]
fn cancellation_works_while_choosing() {
    let cancel = Cancel::new();
    let every = Sampling::Every;
    let reader = FrameReader::open(&scenes(), &every, &TimeRange::ALL, cancel.clone()).unwrap();
    cancel.cancel();
    let candidates = Candidates {
        reader,
        range: &TimeRange::ALL,
        sampling: "",
    };
    let stopped = changes(0.01, None).choose(candidates, &Progress::default(), &cancel);
    assert_eq!(stopped.map(drop).unwrap_err().kind(), Kind::Interrupted);
}

/// Numbers of the frames that `longreel frames` writes, and its JSON.
fn written(video: &Path, more: &[&str]) -> (Vec<u64>, Value) {
    let dir = tempfile::tempdir().unwrap();
    let out = text(dir.path());
    let args = ["frames", &text(video), "--out", &out, "--json"];
    let json = longreel(&[&args, more].concat()).json();
    let lines = fs::read_to_string(dir.path().join("frames.jsonl")).unwrap();
    let number = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["index"].as_u64().unwrap()
    };
    (lines.lines().map(number).collect(), json)
}

#[test]
fn changes_are_the_beginnings_of_scenes() {
    let change = |more: &[&str]| {
        let args = ["--sampler", "change"];
        written(&scenes(), &[&args, more].concat())
    };
    let (numbers, json) = change(&["--all-frames"]);
    assert_eq!(numbers, SCENES);
    assert_eq!(
        json["sampling"],
        "changed frames of every frame, threshold 0.01"
    );
    let all: Vec<u64> = (0..95).collect();
    assert_eq!(change(&["--all-frames", "--change-threshold", "0"]).0, all);
    assert_eq!(change(&["--all-frames", "--change-threshold", "1"]).0, [0]);
    // One a second sees the change at the next second, and not the scene of one frame.
    assert_eq!(change(&[]).0, [0, 30, 50, 80]);
    assert_eq!(change(&["--fps", "2"]).0, [0, 30, 50, 80]);
    let (numbers, json) = change(&["--all-frames", "--frames", "3"]);
    assert_eq!(numbers.len(), 3);
    assert_eq!(numbers[0], 0);
    assert_eq!(
        json["sampling"],
        "the 3 most changed frames of every frame, threshold 0.01"
    );
    let (numbers, json) = change(&["--all-frames", "--from", "3.5", "--to", "8.2"]);
    assert_eq!(numbers, [35, 47, 48, 80]);
    assert_eq!(
        json["sampling"],
        "changed frames of every frame from 00:00:03.500 to 00:00:08.200, threshold 0.01"
    );
}

#[test]
fn a_static_video_gives_one_frame() {
    let change = |more: &[&str]| {
        let args = ["--sampler", "change"];
        written(&still(), &[&args, more].concat()).0
    };
    assert_eq!(change(&[]), [0]);
    assert_eq!(change(&["--max-gap", "5"]), [0, 5, 10, 15]);
    assert_eq!(change(&["--max-gap", "6.5"]), [0, 6, 12, 18]);
    assert_eq!(change(&["--max-gap", "0.5"]), (0..19).collect::<Vec<_>>());
    assert_eq!(
        change(&["--max-gap", "5", "--fps", "1/2"]),
        [0, 4, 8, 12, 16]
    );
    // A picture is a video of one frame.
    let picture = golden::path("e2e/clip/frame_003.png");
    assert_eq!(written(&picture, &["--sampler", "change"]).0, [0]);
}

#[test]
fn a_plan_counts_what_is_asked_about_and_the_echo_tells_it() {
    let (video, model) = (text(&scenes()), text(golden_model()));
    let change = [
        "--sampler",
        "change",
        "--fps",
        "5",
        "--max-new-tokens",
        "2",
        "--json",
    ];
    let plan = [&["plan", &video, "--model", &model][..], &change].concat();
    let plan = longreel(&plan).json();
    let ask = [&["ask", &video, "What?", "--model", &model][..], &change].concat();
    let ask = longreel(&ask).json();
    assert_eq!(plan["frames"], 4);
    assert_eq!(ask["video"][0]["index"], serde_json::json!([0, 30, 48, 80]));
    assert_eq!(ask["tokens"]["vision"], plan["vision_tokens"]);
    let words = "changed frames of 5 frames/s, threshold 0.01";
    assert_eq!(ask["video"][0]["sampling"], words);
    assert_eq!(plan["sources"][0]["sampling"], words);
    assert!(ask["seconds"]["choose"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_reel_of_changes_that_was_stopped_goes_on_and_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let reel = dir.path().join("a.reel");
    let change = ["--sampler", "change", "--all-frames"];
    let again = |more: &[&str]| encode(&scenes(), &reel, golden_model(), &[&change, more].concat());
    assert_eq!(again(&[]).json()["frames"], 5);
    let whole = fs::read(&reel).unwrap();
    fs::remove_file(&reel).unwrap();
    let partial = longreel::reel::partial_path(&reel);
    fs::write(&partial, &whole[..whole.len() - 2 * 536 - 100]).unwrap();
    again(&["--change-threshold", "0.03"]).refused(2, "another job");
    let json = again(&[]).json();
    assert_eq!(
        (&json["frames"], &json["resumed_frames"]),
        (&5.into(), &2.into())
    );
    assert!(
        fs::read(&reel).unwrap() == whole,
        "the resumed reel differs"
    );
}

/// Numbers of the frames that `search` finds in `reel`, in order of time.
fn found(query: &str, reel: &Path, more: &[&str]) -> Vec<u64> {
    let args = ["search", query, &text(reel), "--json"];
    let json = longreel(&[&args, more].concat()).json();
    let frames = json["results"].as_array().unwrap();
    let mut frames: Vec<u64> = frames
        .iter()
        .map(|r| r["frame"].as_u64().unwrap())
        .collect();
    frames.sort_unstable();
    frames
}

#[test]
fn a_query_takes_the_frames_that_search_finds_with_a_reel_and_without() {
    let video = golden::clip("nasa_13013.mp4");
    for name in ["clip", "siglip"] {
        let dir = tempfile::tempdir().unwrap();
        let model = model(name, dir.path());
        let (folder, reel) = (text(&model), dir.path().join("v.reel"));
        encode(&video, &reel, &model, &["--fps", "3"]).json();
        for (query, n, gap) in [
            ("w5", 4, "0"),
            ("w17 w4", 7, "0"),
            ("w5 w9", 5, "1.5"),
            ("w8", 99, "0"),
        ] {
            let count = n.to_string();
            let expected = found(query, &reel, &["--top", &count, "--min-gap", gap]);
            assert_eq!(expected.len(), n.min(39), "{name} {query}");
            let fixed = ["--sampler", "query", "--query", query, "--frames", &count];
            let fixed = [&fixed[..], &["--min-gap", gap]].concat();
            let model = ["--query-model", &folder, "--fps", "3"];
            let (encoded, said) = written(&video, &[&fixed[..], &model].concat());
            let (kept, of_reel) = written(
                &video,
                &[&fixed[..], &["--query-reel", &text(&reel)]].concat(),
            );
            assert_eq!(encoded, expected, "{name} {query}");
            assert_eq!(kept, expected, "{name} {query} from the reel");
            assert_eq!(said["sampling"], of_reel["sampling"]);
            let words = format!("the {n} of 3 frames/s nearest to {query:?} by {folder}");
            assert!(
                said["sampling"].as_str().unwrap().starts_with(&words),
                "{said}"
            );
        }
        let fixed = ["--sampler", "query", "--query", "w5", "--frames", "3"];
        let part = ["--from", "4", "--to", "9"];
        let fixed = [&fixed[..], &part].concat();
        // Ticks begin at --from, the reel's lie elsewhere.
        let kept = written(
            &video,
            &[&fixed[..], &["--query-reel", &text(&reel)]].concat(),
        )
        .0;
        let all = [&["--query-model", &folder][..], &["--all-frames"]].concat();
        let encoded = written(&video, &[&fixed[..], &all].concat()).0;
        assert_eq!((kept.len(), encoded.len()), (3, 3));
        for number in kept.iter().chain(&encoded) {
            assert!((120..270).contains(number), "{number} is outside 4 to 9 s");
        }
    }
}

#[test]
fn a_query_takes_what_transformers_finds_nearest() {
    let file = fs::read_to_string(golden::path("search/frames.json")).unwrap();
    let golden: Value = serde_json::from_str(&file).unwrap();
    for name in ["clip", "siglip"] {
        let dir = tempfile::tempdir().unwrap();
        let model = text(&model(name, dir.path()));
        let expected = &golden[name];
        for (t, query) in expected["texts"].as_array().unwrap().iter().enumerate() {
            let query = query.as_str().unwrap();
            let fixed = ["--sampler", "query", "--query", query, "--frames", "2"];
            let model = ["--query-model", &model, "--all-frames"];
            let numbers = written(golden_clip(), &[&fixed[..], &model].concat()).0;
            let cosine = |i: u64| expected["cosines"][t][i as usize].as_f64().unwrap();
            let worst = numbers.iter().map(|&i| cosine(i)).fold(f64::MAX, f64::min);
            let others = (0..5).filter(|i| !numbers.contains(i));
            // Cosines agree to 5e-3 each.
            assert!(others.clone().count() == 3 && others.map(cosine).all(|c| c <= worst + 1e-2));
        }
    }
}

#[test]
fn equal_frames_are_taken_in_order_of_time() {
    let dir = tempfile::tempdir().unwrap();
    let model = text(&model("clip", dir.path()));
    let query = |more: &[&str]| {
        let fixed = [
            "--sampler",
            "query",
            "--query",
            "w5",
            "--query-model",
            &model,
        ];
        written(&still(), &[&fixed[..], more].concat()).0
    };
    assert_eq!(query(&["--frames", "3"]), [0, 1, 2]);
    assert_eq!(query(&["--frames", "3", "--min-gap", "4"]), [0, 4, 8]);
    assert_eq!(query(&["--frames", "50"]).len(), 20, "all there are");
}

#[test]
fn frames_are_chosen_by_the_question() {
    let dir = tempfile::tempdir().unwrap();
    let (clip, reel) = (model("clip", dir.path()), dir.path().join("v.reel"));
    let video = golden::clip("nasa_13013.mp4");
    encode(&video, &reel, &clip, &[]).json();
    let ask = |more: &[&str]| {
        let (video, model) = (text(&video), text(golden_model()));
        let fixed = [
            "ask",
            &video,
            "w5 w9",
            "--model",
            &model,
            "--max-new-tokens",
            "2",
        ];
        let query = ["--sampler", "query", "--frames", "3", "--json"];
        longreel(&[&fixed[..], &query, more].concat()).json()["video"][0]["index"].clone()
    };
    let folder = text(&clip);
    let expected = found("w5 w9", &reel, &["--top", "3", "--min-gap", "0"]);
    assert_eq!(
        ask(&["--query-model", &folder]),
        serde_json::json!(expected)
    );
    assert_eq!(
        ask(&["--query-reel", &text(&reel)]),
        serde_json::json!(expected)
    );
    let other = found("w40", &reel, &["--top", "3", "--min-gap", "0"]);
    let asked = ask(&["--query-model", &folder, "--query", "w40"]);
    assert_eq!(asked, serde_json::json!(other));
}

#[test]
fn a_reel_of_chosen_frames_is_the_same_by_model_and_by_reel() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (clip, video) = (model("clip", dir.path()), scenes());
    encode(&video, &at("vectors.reel"), &clip, &["--fps", "4"]).json();
    let query = ["--sampler", "query", "--query", "w5", "--frames", "6"];
    let chosen = |out: &str, more: &[&str]| {
        encode(&video, &at(out), golden_model(), &[&query, more].concat()).json();
        fs::read(at(out)).unwrap()
    };
    let by_model = chosen("a.reel", &["--query-model", &text(&clip), "--fps", "4"]);
    let by_reel = chosen("b.reel", &["--query-reel", &text(&at("vectors.reel"))]);
    assert!(by_model == by_reel, "the reels differ");
    fs::remove_file(at("a.reel")).unwrap();
    let partial = longreel::reel::partial_path(&at("a.reel"));
    fs::write(partial, &by_model[..by_model.len() - 700]).unwrap();
    let resumed = chosen("a.reel", &["--query-model", &text(&clip), "--fps", "4"]);
    assert!(resumed == by_model, "the resumed reel differs");
}

/// Asks a vision-language model about a video or a reel, to the ids.
fn asked(input: &Path, model: &Path, more: &[&str]) -> Value {
    let fixed = ["ask", &text(input), "What moves?", "--model", &text(model)];
    let options = ["--max-new-tokens", "4", "--json", "--debug-ids"];
    longreel(&[&fixed[..], &options, more].concat()).json()
}

#[test]
fn a_reel_of_features_of_chosen_frames_answers_as_its_video() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (clip, video) = (model("clip", dir.path()), scenes());
    let (vectors, exact) = (text(&at("vectors.reel")), text(&at("exact.reel")));
    encode(&video, vectors.as_ref(), &clip, &["--fps", "4"]).json();
    let f32 = ["--fps", "4", "--reel-dtype", "f32"];
    encode(&video, exact.as_ref(), &clip, &f32).json();
    let (clip, reel) = (text(&clip), at("a.reel"));
    let query = ["--sampler", "query", "--query", "w5", "--frames", "5"];
    let choosers = [
        vec!["--sampler", "change", "--all-frames"],
        [&query[..], &["--query-model", &clip, "--fps", "4"]].concat(),
        [&query[..], &["--query-reel", &vectors]].concat(),
        [&query[..], &["--query-reel", &exact]].concat(),
    ];
    for system in ["llava_video", "qwen3_vl", "internvl"] {
        let model = golden::path(&format!("answers/{system}"));
        let mut seen = Vec::new();
        for chooser in &choosers {
            let what = format!("{system} {chooser:?}");
            let more = [&chooser[..], &["--reel-dtype", "f32", "--force"]].concat();
            let encoded = encode(&video, &reel, &model, &more).json();
            assert!(encoded["seconds"]["choose"].is_number(), "{encoded}");
            let (of_reel, of_video) = (asked(&reel, &model, &[]), asked(&video, &model, chooser));
            for key in ["prompt_ids", "generated_ids"] {
                assert_eq!(of_reel[key], of_video[key], "{what} {key}");
            }
            for key in ["index", "ticks", "sampling"] {
                let [kept, taken] = [&of_reel, &of_video].map(|json| &json["video"][0][key]);
                assert_eq!(kept, taken, "{what} {key}");
            }
            seen.push(of_reel["video"][0]["index"].clone());
        }
        assert_eq!(seen[0].as_array().unwrap().len(), 5, "{system}");
        assert_ne!(seen[0], seen[1], "{system}");
        // Vectors in f16 or exact: the same frames are nearest.
        assert!(seen[1] == seen[2] && seen[2] == seen[3], "{seen:?}");
    }
    encode(
        &video,
        &reel,
        &golden::path("answers/internvl"),
        &["--force"],
    )
    .json();
    let features = text(&reel);
    let by_features = [&query[..], &["--query-reel", &features]].concat();
    frames(&video, &by_features).refused(2, "has features of");
}

fn frames(video: &Path, more: &[&str]) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let args = ["frames", &text(video), "--out", &text(dir.path())];
    longreel(&[&args[..], more].concat())
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let (clip, golden) = (golden_clip(), text(golden_model()));
    let refused = |more: &[&str], sentence: &str| frames(clip, more).refused(2, sentence);
    for (option, value) in [
        ("--change-threshold", "0.1"),
        ("--max-gap", "1"),
        ("--query-model", "m"),
        ("--query", "q"),
        ("--query-reel", "r"),
        ("--min-gap", "1"),
    ] {
        refused(&[option, value], "--sampler");
        let other = if option.ends_with("threshold") || option == "--max-gap" {
            "query"
        } else {
            "change"
        };
        refused(
            &["--sampler", other, option, value],
            &format!("{option} is for"),
        );
    }
    let change = |more: &[&str], sentence: &str| {
        refused(&[&["--sampler", "change"], more].concat(), sentence);
    };
    for threshold in ["1.5", "-0.1", "nan", "inf"] {
        change(
            &[&format!("--change-threshold={threshold}")],
            "expected 0 to 1",
        );
    }
    change(&["--change-threshold", "x"], "--change-threshold");
    change(&["--max-gap", "0"], "--max-gap is 0");
    change(&["--max-gap=-3"], "--max-gap is -3");
    change(
        &["--max-gap", "1", "--frames", "2"],
        "cannot be used with --frames",
    );
    change(&["--frames", "0"], "--frames is 0");
    change(&["--fps", "1", "--all-frames"], "cannot be used with");
    change(&["--at", "0.1"], "cannot be used with");
    change(&["--index", "1"], "cannot be used with");
    let query = |more: &[&str], sentence: &str| {
        refused(&[&["--sampler", "query"], more].concat(), sentence);
    };
    query(&[], "expected --frames");
    query(&["--frames", "2"], "expected --query");
    query(&["--frames", "0"], "--frames is 0");
    query(
        &["--frames", "2", "--query", "w5"],
        "expected --query-model",
    );
    let named = ["--frames", "2", "--query", "w5", "--query-model"];
    query(
        &[&named[..], &[&golden]].concat(),
        "expected CLIP or SigLIP",
    );
    query(
        &[&named[..], &["/nowhere/model"]].concat(),
        "/nowhere/model",
    );
    query(
        &[
            "--frames",
            "2",
            "--query",
            "w5",
            "--query-reel",
            "r",
            "--fps",
            "1",
        ],
        "cannot be used with",
    );
    refused(&["--sampler", "changes"], "--sampler");
    let plan = [
        "plan",
        "--hours",
        "1",
        "--model",
        &golden,
        "--sampler",
        "change",
    ];
    longreel(&plan).refused(2, "cannot be used with");
}

#[test]
fn a_reel_of_another_video_or_content_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let clip = model("clip", dir.path());
    let video = at("video.mkv");
    fs::copy(golden_clip(), &video).unwrap();
    encode(&video, &at("v.reel"), &clip, &["--all-frames"]).json();
    encode(&still(), &at("other.reel"), &clip, &[]).json();
    encode(&video, &at("codes.reel"), golden_model(), &[]).json();
    let query = |reel: &str, more: &[&str]| {
        let reel = text(&at(reel));
        let fixed = ["--sampler", "query", "--frames", "2", "--query-reel", &reel];
        frames(&video, &[&fixed[..], more].concat())
    };
    let asked = ["--query", "w5"];
    assert_eq!(query("v.reel", &asked).code, 0);
    query("other.reel", &asked).refused(2, "expected a reel of it");
    query("codes.reel", &asked).refused(2, "expected vectors");
    query("none.reel", &asked).refused(2, "none.reel");
    query("v.reel", &["--query", " "]).refused(2, "the text is empty");
    query(
        "v.reel",
        &["--query", "w5", "--from", "0.5", "--to", "0.55"],
    )
    .refused(2, "range");
    let siglip = text(&model("siglip", dir.path()));
    query("v.reel", &["--query", "w5", "--query-model", &siglip]).refused(2, "expected 32");
    // Times that are not those of the video's frames.
    let mut bytes = fs::read(at("v.reel")).unwrap();
    let last = bytes.len() - (24 + 2 * 24) + 16;
    bytes[last] ^= 1;
    fs::write(at("moved.reel"), bytes).unwrap();
    query("moved.reel", &asked).refused(2, "expected the video's own frames");
    // The file grew since the reel was made.
    let mut grown = fs::read(&video).unwrap();
    grown.extend([0; 9]);
    fs::write(&video, grown).unwrap();
    query("v.reel", &asked).refused(2, "expected an unchanged file");
    fs::rename(&clip, at("gone")).unwrap();
    query("v.reel", &asked).refused(2, "expected --query-model");
}

#[test]
fn a_reel_s_frames_are_not_chosen_again() {
    let dir = tempfile::tempdir().unwrap();
    let (reel, model) = (dir.path().join("a.reel"), text(golden_model()));
    encode(golden_clip(), &reel, golden_model(), &[]).json();
    let ask = [
        "ask",
        &text(&reel),
        "What?",
        "--model",
        &model,
        "--sampler",
        "change",
    ];
    longreel(&ask).refused(2, "is a reel");
}

#[test]
fn a_query_of_the_library_needs_no_model_where_a_reel_has_its_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let (clip, reel) = (model("clip", dir.path()), dir.path().join("v.reel"));
    encode(&still(), &reel, &clip, &[]).json();
    let chooser = Chooser::Query(Query {
        text: "anything".into(),
        vector: vec![0.5; 24],
        vectors: Vectors::Reel(reel),
        n: 2,
        min_gap: Some(parse_time("3").unwrap()),
    });
    let choice = choose(&still(), &Sampling::Every, &chooser, Strategy::Auto).unwrap();
    assert_eq!(choice.candidates, 20);
    assert_eq!(choice.reader.report().decoded, 0);
    assert!(
        choice.sampling.ends_with("00:00:03.000 apart"),
        "{}",
        choice.sampling
    );
    let numbers: Vec<u64> = frames_of(choice).into_iter().map(|f| f.0).collect();
    assert_eq!(numbers, [0, 3]);
}
