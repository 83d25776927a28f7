//! Reels of features: a question of a reel is answered as one of its videos is, and what is no such reel is refused.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::OnceLock,
    time::{Duration, Instant},
};

use half::bf16;
use longreel::{
    error::Kind,
    flow::{EncodedStep, FeatureRows, FrameMark, FrameTime, StepContent},
    reel::{
        self, ReelContent, ReelHeader, ReelReader, ReelStep, ReelVideo, ReelWriter, RowForm,
        RowsDtype, StepRows, partial_path,
    },
    time::{Pts, TimeBase},
};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{
    golden,
    longreel::{Run, command, ffmpeg, golden_clip, golden_model, longreel, scratch},
};

/// The systems, with frames as their own rules choose them and with an odd number of them.
const CASES: [(&str, &[&str]); 15] = [
    ("llava15", &["--fps", "1"]),
    ("llava15", &["--frames", "3"]),
    ("llava_onevision", &["--fps", "1"]),
    ("llava_onevision", &["--frames", "3"]),
    ("vila15", &["--fps", "1"]),
    ("llava_video", &[]),
    ("llava_video", &["--frames", "3"]),
    ("llava_video", &["--sampler", "change", "--all-frames"]),
    ("internvl", &[]),
    ("internvl", &["--all-frames"]),
    ("qwen2_5_vl", &[]),
    ("qwen2_5_vl", &["--all-frames"]),
    ("qwen3_vl", &[]),
    ("qwen3_vl", &["--all-frames"]),
    ("qwen3_vl", &["--fps", "1", "--max-pixels", "200000"]),
];

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn model(system: &str) -> String {
    text(&golden::path(&format!("answers/{system}")))
}

fn video() -> String {
    text(&golden::path("answers/video.mkv"))
}

/// A clip of another size and rate, of 7 frames.
fn other_video() -> String {
    static CLIP: OnceLock<String> = OnceLock::new();
    CLIP.get_or_init(|| {
        let out = scratch().join("reels-other.mkv");
        let source = "-f lavfi -i testsrc2=size=96x64:rate=2 -frames:v 7 -c:v ffv1 -pix_fmt gbrp";
        ffmpeg(source, &out);
        text(&out)
    })
    .clone()
}

fn encode(videos: &[&str], out: &Path, model: &str, more: &[&str]) -> Run {
    let out = text(out);
    let fixed = ["--out", &out, "--model", model, "--json"];
    longreel(&[&["encode"], videos, &fixed, more].concat())
}

fn ask(inputs: &[&str], model: &str, more: &[&str]) -> Run {
    let fixed = ["What moves?", "--model", model, "--json", "--debug-ids"];
    let short = ["--max-new-tokens", "6"];
    longreel(&[&["ask"], inputs, &fixed, &short, more].concat())
}

fn plan(inputs: &[&str], model: &str, more: &[&str]) -> Value {
    let fixed = ["--question", "What moves?", "--model", model, "--json"];
    let short = ["--max-new-tokens", "6"];
    let run = longreel(&[&["plan"], inputs, &fixed, &short, more].concat());
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {run:?}"))
}

/// What was seen and said must be the same to the id.
#[track_caller]
fn assert_same_answer(what: &str, of_reel: &Value, of_video: &Value) {
    let videos = |json: &Value| json["video"].as_array().unwrap().clone();
    let (kept, seen) = (videos(of_reel), videos(of_video));
    assert_eq!(kept.len(), seen.len(), "{what}");
    for (kept, seen) in kept.iter().zip(&seen) {
        for key in ["index", "ticks", "pts", "time_base", "frames", "duration_s"] {
            assert_eq!(kept[key], seen[key], "{what} {key}");
        }
    }
    for key in ["prompt_ids", "prompt_vision_mask", "generated_ids"] {
        assert_eq!(of_reel[key], of_video[key], "{what} {key}");
    }
}

#[test]
fn a_reel_answers_as_its_video_and_its_plan_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let reel = dir.path().join("a.reel");
    for (system, sampling) in CASES {
        let what = format!("{system} {sampling:?}");
        let model = model(system);
        let options = [sampling, &["--reel-dtype", "f32", "--force"]].concat();
        let encoded = encode(&[&video()], &reel, &model, &options).json();
        let of_reel = ask(&[&text(&reel)], &model, &[]).json();
        let of_video = ask(&[&video()], &model, sampling).json();
        assert_same_answer(&what, &of_reel, &of_video);
        assert_eq!(encoded["frames"], of_video["video"][0]["frames"], "{what}");
        let plan = plan(&[&text(&reel)], &model, &[]);
        assert_eq!(plan["prompt_tokens"], of_reel["tokens"]["prompt"], "{what}");
        assert_eq!(plan["frames"], encoded["frames"], "{what}");
    }
}

#[test]
fn several_videos_of_a_reel_are_those_asked_one_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let reel = dir.path().join("a.reel");
    let (first, second) = (video(), other_video());
    for system in [
        "llava_onevision",
        "llava_video",
        "qwen2_5_vl",
        "qwen3_vl",
        "internvl",
    ] {
        let model = model(system);
        let options = ["--fps", "1", "--reel-dtype", "f32", "--force"];
        encode(&[&first, &second], &reel, &model, &options).json();
        let of_reel = ask(&[&text(&reel)], &model, &[]).json();
        let of_videos = ask(&[&first, &second], &model, &["--fps", "1"]).json();
        assert_same_answer(system, &of_reel, &of_videos);
        let plan = plan(&[&text(&reel)], &model, &[]);
        assert_eq!(
            plan["prompt_tokens"], of_reel["tokens"]["prompt"],
            "{system}"
        );
        let twice = [text(&reel), text(&reel)];
        let twice = twice.each_ref().map(String::as_str);
        let mixed = ask(&twice, &model, &[]).json();
        assert_eq!(mixed["video"].as_array().unwrap().len(), 4, "{system}");
        let plan = self::plan(&twice, &model, &[]);
        assert_eq!(plan["prompt_tokens"], mixed["tokens"]["prompt"], "{system}");
    }
}

#[test]
fn a_range_of_a_reel_is_that_of_its_video() {
    let dir = tempfile::tempdir().unwrap();
    let reel = dir.path().join("a.reel");
    // A budget a frame: as many frames as there may be, each has the same size.
    for (system, range) in [
        ("qwen2_5_vl", ["--from", "1"]),
        ("internvl", ["--to", "2.5"]),
        ("llava_video", ["--from", "1"]),
    ] {
        let model = model(system);
        let options = ["--fps", "2", "--reel-dtype", "f32", "--force"];
        encode(&[&video()], &reel, &model, &options).json();
        let of_reel = ask(&[&text(&reel)], &model, &range).json();
        let of_video = ask(&[&video()], &model, &[&["--fps", "2"], &range[..]].concat()).json();
        assert_same_answer(system, &of_reel, &of_video);
        let plan = plan(&[&text(&reel)], &model, &range);
        assert_eq!(
            plan["prompt_tokens"], of_reel["tokens"]["prompt"],
            "{system}"
        );
        let said = of_reel["video"][0]["sampling"].as_str().unwrap();
        assert!(said.contains("of these"), "{said}");
    }
    let codes = dir.path().join("codes.reel");
    encode(
        &[&text(golden_clip())],
        &codes,
        &text(golden_model()),
        &["--all-frames"],
    )
    .json();
    let range = ["--from", "0.4", "--to", "0.8"];
    let of_reel = ask(&[&text(&codes)], &text(golden_model()), &range).json();
    let every = ["--all-frames", "--from", "0.4", "--to", "0.8"];
    let of_video = ask(&[&text(golden_clip())], &text(golden_model()), &every).json();
    assert_same_answer("codes", &of_reel, &of_video);
    let refused = |range: &[&str], expected| {
        ask(&[&text(&codes)], &text(golden_model()), range).refused(2, expected);
    };
    refused(&["--from", "5"], "no step of it begins from 00:00:05.000");
    refused(
        &["--from", "1", "--to", "1"],
        "is empty, expected from < to",
    );
}

/// The folder of LLaVA-Video with its learned row at another `place`.
fn with_newline_at(place: &str, to: &Path) -> String {
    let folder = copied("llava_video", to);
    let path = to.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["mm_newline_position"] = place.into();
    fs::write(&path, config.to_string()).unwrap();
    folder
}

#[test]
fn learned_rows_and_times_stand_in_a_reel_s_answer_as_in_its_video_s() {
    let dir = tempfile::tempdir().unwrap();
    let (reel, video) = (dir.path().join("a.reel"), video());
    let mut prompts = Vec::new();
    for place in ["grid", "frame", "one_token", "no_token"] {
        let model = with_newline_at(place, &dir.path().join(place));
        let options = ["--frames", "3", "--reel-dtype", "f32", "--force"];
        encode(&[&video], &reel, &model, &options).json();
        for times in ["on", "off"] {
            let what = format!("{place}, times {times}");
            let times = ["--time-instruction", times];
            let of_reel = ask(&[&text(&reel)], &model, &times).json();
            let of_video = [&["--frames", "3"][..], &times].concat();
            let of_video = ask(&[&video], &model, &of_video).json();
            assert_same_answer(&what, &of_reel, &of_video);
            let plan = plan(&[&text(&reel)], &model, &times);
            assert_eq!(plan["prompt_tokens"], of_reel["tokens"]["prompt"], "{what}");
            prompts.push(of_reel["tokens"]["prompt"].as_u64().unwrap());
        }
    }
    prompts.sort_unstable();
    prompts.dedup();
    assert_eq!(prompts.len(), 8, "each place has its own number of rows");
    // Rows of one place mean nothing at another.
    let grid = text(&dir.path().join("grid"));
    ask(&[&text(&reel)], &grid, &[]).refused(2, "and has features");
}

#[test]
fn a_reel_tells_how_long_a_video_is_shown_where_its_file_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let source = "-f lavfi -i testsrc2=size=96x64:rate=2 -frames:v 7 -c:v libx264";
    ffmpeg(source, &at("raw.h264"));
    ffmpeg(
        "-f lavfi -i color=red:s=64x48 -frames:v 1",
        &at("still.png"),
    );
    let model = model("llava_video");
    for input in ["raw.h264", "still.png"] {
        let input = text(&at(input));
        let options = ["--all-frames", "--reel-dtype", "f32", "--force"];
        encode(&[&input], &at("a.reel"), &model, &options).json();
        let of_video = ask(&[&input], &model, &["--all-frames"]).json();
        let seconds = &of_video["video"][0]["duration_s"];
        let is_still = input.ends_with("still.png");
        assert_eq!(seconds.is_null(), is_still, "{input}: {seconds}");
        let of_reel = ask(&[&text(&at("a.reel"))], &model, &[]).json();
        assert_same_answer(&input, &of_reel, &of_video);
        let plan = plan(&[&text(&at("a.reel"))], &model, &[]);
        assert_eq!(
            plan["prompt_tokens"], of_reel["tokens"]["prompt"],
            "{input}"
        );
    }
}

/// All numbers of a reel.
fn numbers(path: &Path) -> Vec<f32> {
    let mut reader = ReelReader::open(path).unwrap();
    let mut all = Vec::new();
    while let Some(kept) = reader.next_step().unwrap() {
        let StepContent::Features(features) = kept.step.content else {
            panic!("no features")
        };
        all.extend(features.rows);
    }
    all
}

#[test]
fn shorter_numbers_are_the_exact_ones_rounded_once() {
    let dir = tempfile::tempdir().unwrap();
    for system in ["llava15", "qwen3_vl"] {
        let kept = |dtype: &[&str]| {
            let reel = dir.path().join("a.reel");
            let options = [dtype, &["--fps", "1", "--force"]].concat();
            encode(&[&video()], &reel, &model(system), &options).json();
            numbers(&reel)
        };
        let exact = kept(&["--reel-dtype", "f32"]);
        let rounded: Vec<f32> = exact.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        assert!(exact != rounded, "{system}: nothing to round");
        assert_eq!(kept(&[]), rounded, "{system}: bf16 where nothing is said");
        let halves = kept(&["--reel-dtype", "f16"]);
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= a.abs() / 2048.0 + 6e-8;
        assert!(exact.iter().zip(&halves).all(near), "{system}");
    }
}

#[test]
fn a_reel_cut_anywhere_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let reel = dir.path().join("a.reel");
    let (first, second) = (video(), other_video());
    let run = |options: &[&str]| encode(&[&first, &second], &reel, &model("qwen3_vl"), options);
    let encode = || run(&["--all-frames", "--force"]).json();
    let all = encode();
    assert_eq!(all["frames"], 20);
    let whole = fs::read(&reel).unwrap();
    let mut resumed = Vec::new();
    let header = ReelReader::open(&reel).unwrap().header().clone();
    let of_video = |video: usize| header.record_bytes(video).unwrap();
    let (large, small) = (of_video(0), of_video(1));
    for cut in [
        1,
        small,
        small + 1,
        4 * small,
        4 * small + large - 1,
        4 * small + 7 * large,
    ] {
        fs::remove_file(&reel).unwrap();
        fs::write(partial_path(&reel), &whole[..whole.len() - cut]).unwrap();
        let json = encode();
        resumed.push(json["resumed_frames"].as_u64().unwrap());
        assert_eq!(json["video"], all["video"], "cut by {cut}: {json}");
        assert!(fs::read(&reel).unwrap() == whole, "cut by {cut}");
    }
    fs::rename(&reel, partial_path(&reel)).unwrap();
    let smaller = ["--all-frames", "--max-pixels", "9000"];
    run(&smaller).refused(2, "it belongs to another job");
    // Each video has an odd number of frames: the last of it is a step of its own.
    assert_eq!(resumed, [19, 19, 17, 13, 12, 0]);
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let clip = dir.path().join("long.mp4");
    let source = "-f lavfi -i testsrc2=duration=30:size=320x240:rate=25 -pix_fmt yuv420p";
    ffmpeg(&format!("{source} -preset ultrafast"), &clip);
    let (model, clip) = (model("qwen2_5_vl"), text(&clip));
    let (whole, killed) = (
        dir.path().join("whole.reel"),
        dir.path().join("killed.reel"),
    );
    encode(&[&clip], &whole, &model, &["--all-frames"]).json();
    let out = text(&killed);
    let args = [
        "encode",
        &clip,
        "--out",
        &out,
        "--model",
        &model,
        "--all-frames",
    ];
    let mut child = command().args(args).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while fs::metadata(partial_path(&killed)).map_or(0, |m| m.len()) < 40_000 {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "nothing is written"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.exists(), "it was done before it was killed");
    let json = encode(&[&clip], &killed, &model, &["--all-frames"]).json();
    let resumed = json["resumed_frames"].as_u64().unwrap();
    assert!((1..750).contains(&resumed), "{json}");
    assert!(fs::read(&killed).unwrap() == fs::read(&whole).unwrap());
}

/// The folder of `system`, copied.
fn copied(system: &str, to: &Path) -> String {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(golden::path(&format!("answers/{system}"))).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    text(to)
}

/// Flips a bit of the first weight whose name has `part` in it.
fn change_a_weight(file: &Path, part: &str) {
    let mut bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let names = tensors.names();
    let name = names.iter().find(|name| name.contains(part)).unwrap();
    let data = tensors.tensor(name).unwrap().data().as_ptr() as usize;
    let at = data - bytes.as_ptr() as usize;
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_reel_of_another_model_is_refused_with_both_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let kept = |name: &str, system: &str| {
        encode(&[&video()], &at(name), &model(system), &["--fps", "1"]).json();
        text(&at(name))
    };
    let (llava, qwen, qwen3) = (
        kept("llava.reel", "llava15"),
        kept("qwen.reel", "qwen2_5_vl"),
        kept("qwen3.reel", "qwen3_vl"),
    );
    let codes = text(&at("codes.reel"));
    encode(
        &[&text(golden_clip())],
        &at("codes.reel"),
        &text(golden_model()),
        &[],
    )
    .json();
    let refused = |reel: &str, system: &str, more: &[&str], expected: &str| {
        ask(&[reel], &model(system), more).refused(2, expected);
        ask(&[reel], &model(system), more).refused(2, &model(system));
    };
    refused(&codes, "llava15", &[], "has 16x16 codes");
    refused(
        &llava,
        "qwen2_5_vl",
        &[],
        "answers/llava15 and has features",
    );
    refused(&qwen, "llava15", &[], "2 frames a step");
    refused(&qwen, "qwen3_vl", &[], "makes features of 96 numbers");
    refused(&qwen3, "qwen2_5_vl", &[], "makes features of 32 numbers");
    refused(&qwen3, "internvl", &[], "2 frames a step");
    refused(&llava, "llava_onevision", &[], "other encoder weights");
    let golden = text(golden_model());
    ask(&[&qwen], &golden, &[]).refused(2, "answers/qwen2_5_vl and has features");
    for verb in [
        ["plan", &qwen, "--model", &golden],
        ["plan", &llava, "--model", &model("qwen3_vl")],
    ] {
        longreel(&verb).refused(2, "and has features");
    }
    // The same model, moved; then with one weight of its encoder changed.
    let copy = copied("qwen2_5_vl", &at("copy"));
    assert_eq!(ask(&[&qwen], &copy, &[]).code, 0);
    change_a_weight(&at("copy/model.safetensors"), "visual");
    ask(&[&qwen], &copy, &[]).refused(2, "has other encoder weights");
    longreel(&["plan", &qwen, "--model", &copy]).refused(2, "expected the same model");
    for option in [["--min-pixels", "1"], ["--max-pixels", "90000"]] {
        ask(&[&qwen], &model("qwen2_5_vl"), &option).refused(2, "the reel fixes the size");
    }
    for option in [
        &["--fps", "1"][..],
        &["--frames", "2"],
        &["--sampler", "change"],
        &["--sampler", "change", "--from", "1", "--to", "2"],
    ] {
        ask(&[&qwen], &model("qwen2_5_vl"), option)
            .refused(2, "frames were chosen when it was made");
    }
    let out = text(&at("seen.mp4"));
    let reconstruct =
        |model: &str| longreel(&["reconstruct", &qwen, "--out", &out, "--model", model]);
    reconstruct(&model("qwen2_5_vl")).refused(
        2,
        "is a vision-language model, expected a model with a VQGAN",
    );
    reconstruct(&golden).refused(2, "and has features");
    longreel(&["search", "a boat", &qwen]).refused(
        2,
        "has features of 32 numbers for 2 frames a step, expected vectors",
    );
    let options = ["--reel-dtype", "f32", "--force"];
    encode(
        &[&text(golden_clip())],
        &at("codes.reel"),
        &golden,
        &options,
    )
    .refused(2, "--reel-dtype");
    encode(&[&qwen], &at("b.reel"), &model("qwen2_5_vl"), &[]).refused(2, "is a reel already");
}

fn header(width: usize, steps: &[StepRows]) -> ReelHeader {
    let video = |step: &StepRows| ReelVideo {
        path: "a".into(),
        bytes: 1,
        modified_s: 1,
        time_base: [1, 10],
        duration_s: None,
        sampling: "every frame".into(),
        step: Some(*step),
        start: 0,
        shown_s: None,
    };
    ReelHeader {
        model: "m".into(),
        model_modified_s: 1,
        content: ReelContent::Features {
            row: RowForm {
                width,
                dtype: RowsDtype::F16,
            },
            frames: 2,
            encoder: 7,
        },
        videos: steps.iter().map(video).collect(),
    }
}

fn grid(lines: usize, columns: usize) -> StepRows {
    StepRows {
        rows: lines * columns,
        grid: Some([lines, columns]),
    }
}

fn step(video: usize, numbers: &[u64], width: usize, rows: StepRows) -> ReelStep {
    let frame = |&index: &u64| FrameMark {
        time: FrameTime {
            index,
            pts: Pts::new(index as i64 * 4 - 3, TimeBase::new(1, 10).unwrap()),
            start: 0,
        },
        key: index.is_multiple_of(3),
        corrupt: index.is_multiple_of(5),
    };
    let number = |i: usize| (numbers[0] as f32 + i as f32) / 8.0;
    ReelStep {
        video,
        step: EncodedStep {
            frames: numbers.iter().map(frame).collect(),
            content: StepContent::Features(FeatureRows {
                rows: (0..rows.rows * width).map(number).collect(),
                width,
                grid: rows.grid,
            }),
        },
    }
}

/// Two videos whose steps differ in size, each with an odd last frame.
fn small_reel(dir: &Path) -> (PathBuf, ReelHeader, Vec<ReelStep>) {
    let (large, small) = (grid(2, 3), grid(1, 2));
    let header = header(4, &[large, small]);
    let steps = vec![
        step(0, &[0, 2], 4, large),
        step(0, &[4, 6], 4, large),
        step(0, &[9], 4, large),
        step(1, &[1, 2], 4, small),
        step(1, &[3], 4, small),
    ];
    let path = dir.join("small.reel");
    let mut writer = ReelWriter::open(&path, header.clone(), true).unwrap();
    steps.iter().for_each(|step| writer.append(step).unwrap());
    writer.finish().unwrap();
    (path, header, steps)
}

fn read(mut reader: ReelReader) -> Vec<ReelStep> {
    std::iter::from_fn(|| reader.next_step().unwrap()).collect()
}

#[test]
fn steps_of_several_sizes_come_back_whole_wherever_the_file_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (path, header, steps) = small_reel(dir.path());
    let bytes = fs::read(&path).unwrap();
    assert_eq!(reel::parse(&bytes).unwrap(), (header, steps.clone()));
    let reader = ReelReader::open(&path).unwrap();
    assert_eq!(reader.n_frames(), 8);
    let heads: Vec<_> = reader.heads().map(Result::unwrap).collect();
    let marks = |step: &ReelStep| (step.video, step.step.frames.clone());
    let expected: Vec<_> = steps.iter().map(marks).collect();
    let found: Vec<_> = heads.into_iter().map(|h| (h.video, h.frames)).collect();
    assert_eq!(found, expected);
    assert_eq!(read(reader), steps);
    // A record is 44 bytes and 2 for each number.
    for (cut, whole) in [
        (1, 4),
        (60, 4),
        (61, 3),
        (120, 3),
        (121, 2),
        (212, 2),
        (213, 1),
        (305, 0),
    ] {
        fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
        let left = read(ReelReader::open(&path).unwrap());
        assert_eq!(left, steps[..whole], "cut by {cut}");
    }
}

#[test]
fn only_steps_of_the_reel_are_appended() {
    let dir = tempfile::tempdir().unwrap();
    let rows = grid(1, 2);
    let path = dir.path().join("a.reel");
    let mut writer = ReelWriter::open(&path, header(4, &[rows]), false).unwrap();
    let fine = step(0, &[1, 2], 4, rows);
    let mut other = fine.clone();
    for (what, wrong) in [
        ("grid", step(0, &[1, 2], 4, grid(2, 1))),
        ("rows", step(0, &[1, 2], 4, grid(1, 3))),
        ("width", step(0, &[1, 2], 3, rows)),
        ("frames", step(0, &[1, 2, 3], 4, rows)),
    ] {
        let refused = writer.append(&wrong).unwrap_err();
        assert_eq!(refused.kind(), Kind::Internal, "{what}: {refused}");
    }
    if let StepContent::Features(features) = &mut other.step.content {
        features.rows[3] = 70_000.0;
    }
    let refused = writer.append(&other).unwrap_err();
    assert!(refused.to_string().contains("has no room"), "{refused}");
    assert_eq!(refused.kind(), Kind::TooLarge);
    writer.append(&fine).unwrap();
    assert_eq!(writer.n_frames(), 2);
}

/// Address space of a run, libraries and stacks among it: less than what the headers lie about.
const MEMORY_KIB: usize = 500_000;

/// A small reel whose header has `to` in place of `from`, and whose records are changed, is refused in little memory.
#[track_caller]
fn check_spoilt(from: &str, to: &str, records: &dyn Fn(&mut Vec<u8>), expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (path, header, _) = small_reel(dir.path());
    let bytes = fs::read(&path).unwrap();
    let json = serde_json::to_string(&header).unwrap();
    let mut data = bytes[12 + json.len()..].to_vec();
    records(&mut data);
    let json = json.replace(from, to);
    let length = (json.len() as u32).to_le_bytes();
    let spoilt = [&reel::MAGIC[..], &length, json.as_bytes(), &data].concat();
    fs::write(&path, &spoilt).unwrap();
    let (program, path) = (env!("CARGO_BIN_EXE_longreel"), text(&path));
    let limited = format!("ulimit -v {MEMORY_KIB}; exec {program} \"$@\"");
    let ask = ["-c", &limited, "sh", "ask", &path, "What?", "--model"];
    let mut shell = std::process::Command::new("sh");
    let output = shell.args(ask).arg(model("qwen2_5_vl")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains(expected),
        "expected {expected:?}, got: {said}"
    );
    let parsed = reel::parse(&spoilt).map(drop);
    if let Err(error) = parsed {
        assert_eq!(error.kind(), Kind::BadInput, "{error}");
    }
}

#[test]
fn a_reel_with_false_lengths_is_refused_before_anything_is_allocated() {
    let nothing = |_: &mut Vec<u8>| {};
    let header = |from: &str, to: &str, expected: &str| check_spoilt(from, to, &nothing, expected);
    header(
        r#""rows":6"#,
        r#""rows":7"#,
        "a step has 7 rows and a grid of 2x3, expected as many",
    );
    header("[2,3]", "[3,2]", "makes features of 32 numbers");
    header("[2,3]", "[4294967296,4294967296]", "expected as many");
    header(
        r#"{"rows":6,"grid":[2,3]}"#,
        r#"{"rows":268435456}"#,
        "a step has 268435456 rows of 4 numbers, expected 1 to 268435456 numbers",
    );
    // As much as a step may have: no record of it is in the file.
    header(
        r#"{"rows":6,"grid":[2,3]}"#,
        r#"{"rows":67108864}"#,
        "makes features of 32 numbers",
    );
    header(r#""frames":2"#, r#""frames":0"#, "a step has 0 frames");
    header(
        r#""frames":2"#,
        r#""frames":9999999"#,
        "a step has 9999999 frames",
    );
    header(r#""width":4"#, r#""width":0"#, "rows of 0 numbers");
    header(
        r#""kind":"features""#,
        r#""kind":"colours""#,
        "unknown variant `colours`",
    );
    header(
        r#","step":{"rows":6,"grid":[2,3]}"#,
        "",
        "does not say how many rows",
    );
    header(
        r#""time_base":[1,10]"#,
        r#""time_base":[1,0]"#,
        "the time base of a is 1/0",
    );
    let records = |spoil: &dyn Fn(&mut Vec<u8>), expected| check_spoilt("\0", "", spoil, expected);
    records(&|data| data[0] = 9, "a frame belongs to video 9");
    records(&|data| data[4] = 4, "begins without a frame");
    records(&|data| data[24] = 7, "or has a gap");
    records(
        &|data| data[92 + 8] = 1,
        "does not lie behind the one before it",
    );
}

#[test]
fn a_nan_feature_ends_the_answer_naming_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.reel");
    let model = model("qwen2_5_vl");
    encode(&[&video()], &path, &model, &["--fps", "1"]).json();
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].fill(0xff);
    fs::write(&path, bytes).unwrap();
    ask(&[&text(&path)], &model, &[]).refused(2, "read step 1 of the reel");
    ask(&[&text(&path)], &model, &[]).refused(2, "NaN or infinite");
}

#[test]
fn frames_as_the_model_is_shown_them_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for (system, sampling) in [
        ("llava15", "--fps"),
        ("llava_onevision", "--fps"),
        ("internvl", "--fps"),
        ("vila15", "--fps"),
        ("llava_video", "--fps"),
        ("qwen2_5_vl", "--fps"),
        ("qwen3_vl", "--fps"),
    ] {
        let (model, out) = (model(system), dir.path().join(system));
        let args = ["frames", &video(), "--out", &text(&out), "--size", "model"];
        longreel(&[&args[..], &["--model", &model, sampling, "2", "--json"]].concat()).json();
        let pictures = dir.path().join(format!("{system}.mkv"));
        let list = format!("-framerate 2 -pattern_type glob -i {}/*.png", out.display());
        ffmpeg(&format!("{list} -c:v ffv1 -pix_fmt gbrp"), &pictures);
        let kept = |video: &str, more: &[&str]| {
            let reel = dir.path().join("a.reel");
            let options = [more, &["--reel-dtype", "f32", "--force"]].concat();
            encode(&[video], &reel, &model, &options).json();
            numbers(&reel)
        };
        let of_video = kept(&video(), &[sampling, "2"]);
        let of_pictures = kept(&text(&pictures), &["--all-frames"]);
        assert!(of_video == of_pictures, "{system}");
    }
    let out = text(&dir.path().join("none"));
    let args = [
        "frames",
        &video(),
        "--out",
        &out,
        "--size",
        "model",
        "--model",
    ];
    let budget = [
        &args[..],
        &[
            &model("qwen2_5_vl"),
            "--max-pixels",
            "4000",
            "--min-pixels",
            "1",
        ],
    ];
    assert_eq!(longreel(&budget.concat()).code, 0);
    let lines = fs::read_to_string(Path::new(&out).join("frames.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    let pixels = first["width"].as_u64().unwrap() * first["height"].as_u64().unwrap();
    assert!(pixels <= 4000, "{first}");
}

/// The folder of `system` with a context of `tokens`.
fn with_context(system: &str, tokens: usize, to: &Path) -> String {
    let folder = copied(system, to);
    let path = to.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["text_config"]["max_position_embeddings"] = tokens.into();
    fs::write(&path, config.to_string()).unwrap();
    folder
}

/// Two hours at a frame a second, small.
fn two_hours() -> String {
    static CLIP: OnceLock<String> = OnceLock::new();
    CLIP.get_or_init(|| {
        let out = scratch().join("reels-two-hours.mp4");
        let source =
            "-f lavfi -i testsrc2=size=64x48:rate=1 -t 7200 -c:v libx264 -preset ultrafast";
        ffmpeg(source, &out);
        text(&out)
    })
    .clone()
}

#[test]
fn two_hours_are_kept_once_and_every_time_in_the_prompt_is_a_pts() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_context("qwen3_vl", 1 << 17, &dir.path().join("long"));
    let reel = dir.path().join("a.reel");
    let options = ["--fps", "1", "--min-pixels", "1", "--max-pixels", "7400000"];
    let encoded = encode(&[&two_hours()], &reel, &model, &options).json();
    assert_eq!(encoded["frames"], 7200);
    let reel = text(&reel);
    let all = plan(&[&reel], &model, &[]);
    assert_eq!(
        (&all["frames"], &all["fits"]),
        (&7200.into(), &true.into()),
        "{all}"
    );
    let last = ask(&[&reel], &model, &["--from", "1:59:00"]).json();
    assert_eq!(last["video"][0]["frames"], 60);
    check_times(&last);
    // The folder's own context holds fewer: as many as it says, and none more.
    let short = golden::path("answers/qwen3_vl");
    let short = with_context(
        "qwen3_vl",
        4096,
        &dir.path().join(short.file_name().unwrap()),
    );
    let refused = ask(&[&reel], &short, &[]);
    refused.refused(2, "encode --frames");
    assert!(!refused.stderr.contains("fit its context:"), "{refused:?}");
    let (_, n) = refused.stderr.split_once("4096 tokens: ").unwrap();
    let n: u64 = n.split(' ').next().unwrap().parse().unwrap();
    let until = |frames: u64| ask(&[&reel], &short, &["--to", &frames.to_string()]);
    let fits = until(n).json();
    assert_eq!(fits["video"][0]["frames"], n);
    check_times(&fits);
    until(n + 2).refused(2, &format!("{n} frames fit"));
}

/// The times that the prompt tells are those of the steps, to a tenth.
fn check_times(json: &Value) {
    let pts: Vec<f64> = serde_json::from_value(json["video"][0]["pts"].clone()).unwrap();
    let ids: Vec<u64> = serde_json::from_value(json["prompt_ids"].clone()).unwrap();
    // The folder's tokenizer has a token for each byte: its letters stand behind '!' from id 0 on.
    let letter = |&id: &u64| char::from(u8::try_from(id).unwrap_or(0).wrapping_add(33));
    let said: String = ids.iter().map(letter).collect();
    let times: Vec<&str> = said
        .split('<')
        .skip(1)
        .filter_map(|s| s.split_once(|c: char| !c.is_ascii_digit() && c != '.'))
        .map(|(n, _)| n)
        .filter(|n| n.contains('.'))
        .collect();
    let middle = |frames: &[f64]| format!("{:.1}", (frames[0] + frames[frames.len() - 1]) / 2.0);
    let expected: Vec<String> = pts.chunks(2).map(middle).collect();
    assert_eq!(times, expected);
}

#[test]
fn times_of_a_reel_that_reach_beyond_a_model_s_positions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let reel = dir.path().join("a.reel");
    let model = model("qwen2_5_vl");
    encode(&[&two_hours()], &reel, &model, &["--frames", "64"]).json();
    ask(&[&text(&reel)], &model, &[]).refused(2, "take 2048 s (--from, --to)");
    let first = ask(&[&text(&reel)], &model, &["--to", "30:00"]).json();
    assert_eq!(first["video"][0]["frames"], 16);
}

#[test]
fn a_model_s_own_rule_holds_for_reels_and_gives_way_to_its_context() {
    let dir = tempfile::tempdir().unwrap();
    let reel = dir.path().join("a.reel");
    let model = model("qwen3_vl");
    let run = encode(&[&two_hours()], &reel, &model, &[]);
    assert!(run.stderr.contains("fit its context:"), "{}", run.stderr);
    let frames = run.json()["frames"].as_u64().unwrap();
    assert!((300..768).contains(&frames), "{frames}");
    let asked = ask(&[&text(&reel)], &model, &[]).json();
    assert_eq!(asked["video"][0]["frames"], frames);
}
