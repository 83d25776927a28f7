//! Folders as they stand on the hub, asked about a video through the command line, answer what
//! transformers answers (`tests/golden/answers.py`, `vila.py`, `llava_video.py`).

use std::{fs, path::Path, sync::OnceLock};

use longreel_models::context::{
    chat_template::ChatTemplate, tokenizer::Tokenizer, vision_prompt::follow_up, vocab::Token,
};
use serde_json::{Value, json};

use crate::support::{
    clips, golden,
    longreel::{Run, ffmpeg, longreel, scratch},
};

/// The systems, each with the rate that takes the frames that transformers was given.
const SYSTEMS: [(&str, &[&str]); 7] = [
    ("llava15", &["--fps", "1"]),
    ("llava_onevision", &["--fps", "1"]),
    ("vila15", &["--fps", "1"]),
    // Their own processors choose.
    ("qwen2_5_vl", &[]),
    ("qwen3_vl", &[]),
    ("internvl", &[]),
    ("llava_video", &[]),
];

/// Asks `system` about the golden video, with `more` arguments.
fn ask(system: &str, more: &[&str]) -> Run {
    let video = golden::path("answers/video.mkv").display().to_string();
    ask_of(system, &video, more)
}

/// Asks `system` about `video`, with `more` arguments.
fn ask_of(system: &str, video: &str, more: &[&str]) -> Run {
    let model = golden::path(&format!("answers/{system}"))
        .display()
        .to_string();
    let fixed = ["ask", video, "What moves?", "--model", &model];
    let options = ["--max-new-tokens", "6", "--json", "--debug-ids"];
    longreel(&[&fixed[..], &options, more].concat())
}

/// What transformers made of it.
fn expected(system: &str) -> Value {
    let path = golden::path(&format!("answers/{system}/expected.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[track_caller]
fn check(system: &str, more: &[&str]) {
    let (got, expected) = (ask(system, more).json(), expected(system));
    assert_eq!(got["video"][0]["index"], expected["frames"], "{system}");
    assert_eq!(got["prompt_ids"], expected["prompt_ids"], "{system}");
    assert_eq!(got["generated_ids"], expected["generated_ids"], "{system}");
}

#[test]
fn frames_prompt_and_answer_are_those_of_transformers() {
    for (system, sampling) in SYSTEMS {
        check(system, sampling);
    }
}

#[test]
fn a_ring_and_short_chunks_do_not_change_an_answer() {
    for (system, sampling) in SYSTEMS {
        for options in [["--ring", "2"], ["--ring", "3"], ["--prefill-chunk", "7"]] {
            check(system, &[sampling, &options].concat());
        }
    }
}

#[test]
fn the_time_in_the_prompt_is_that_of_the_frames() {
    let got = ask("qwen3_vl", &["--fps", "4"]).json();
    let pts: Vec<f64> = serde_json::from_value(got["video"][0]["pts"].clone()).unwrap();
    assert_eq!(pts.len(), 13);
    // The tokenizer of this folder has a token for each byte: its letters stand behind '!' from id 0 on.
    let byte = |id: &Value| {
        char::from(
            u8::try_from(id.as_u64().unwrap())
                .unwrap_or(0)
                .wrapping_add(33),
        )
    };
    let text: String = got["prompt_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(byte)
        .collect();
    for (step, frames) in pts.chunks(2).enumerate() {
        let middle = (frames[0] + frames[frames.len() - 1]) / 2.0;
        let said = format!("<{middle:.1}");
        assert!(text.contains(&said), "step {step}: {said} in {text}");
    }
}

/// The frames of the golden video with these numbers, at the times that they have there.
fn only(numbers: &[u64]) -> String {
    let taken: Vec<String> = numbers.iter().map(|n| format!("eq(n,{n})")).collect();
    let filter = format!("select='{}'", taken.join("+"));
    let video = golden::path("answers/video.mkv").display().to_string();
    let encoder = ["-vsync", "vfr", "-c:v", "ffv1"];
    let arguments = [&["-i", &video, "-vf", &filter][..], &encoder].concat();
    let out = clips::make("chosen.mkv", &arguments);
    out.display().to_string()
}

#[test]
fn frames_at_irregular_times_are_prompted_like_a_video_that_has_only_them() {
    for (system, threshold) in [
        ("qwen3_vl", "0.031"),
        ("qwen3_vl", "0.047"),
        ("qwen2_5_vl", "0.031"),
        ("internvl", "0.031"),
    ] {
        let change = [
            "--sampler",
            "change",
            "--all-frames",
            "--change-threshold",
            threshold,
        ];
        let chosen = ask(system, &change).json();
        let seen = &chosen["video"][0];
        let numbers: Vec<u64> = serde_json::from_value(seen["index"].clone()).unwrap();
        let steps: Vec<u64> = numbers.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(
            steps.iter().any(|s| *s != steps[0]),
            "{numbers:?} are regular"
        );
        let alone = ask_of(system, &only(&numbers), &["--all-frames"]).json();
        assert_eq!(alone["video"][0]["ticks"], seen["ticks"], "{system}");
        for key in ["prompt_ids", "generated_ids", "tokens"] {
            assert_eq!(chosen[key], alone[key], "{system} {key}");
        }
    }
}

#[test]
fn a_follow_up_question_has_the_ids_of_transformers() {
    // VILA's folders have no template of their own, and transformers does not know them.
    for (system, _) in SYSTEMS
        .into_iter()
        .filter(|(system, _)| *system != "vila15")
    {
        let folder = golden::path(&format!("answers/{system}"));
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let template = ChatTemplate::of_directory(&folder).unwrap().unwrap();
        let ids = |last: Option<Token>| -> Vec<u32> {
            // LLaVA-Video's template knows words only.
            let in_parts = system != "llava_video";
            let tokens = follow_up(&tokenizer, &template, last, "And then?", in_parts).unwrap();
            tokens.into_iter().map(Token::id).collect()
        };
        let expected: Vec<u32> =
            serde_json::from_value(expected(system)["follow_up_ids"].clone()).unwrap();
        assert_eq!(ids(Some(Token::Text(3))), expected, "{system}");
        // An answer that ended by itself has said the first token already.
        if system != "llava15" {
            assert_eq!(
                ids(Some(Token::Text(expected[0]))),
                expected[1..],
                "{system}"
            );
        }
    }
}

/// A copy of the LLaVA-Video folder with other values in its `config.json`.
fn llava_video(changes: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden::path("answers/llava_video")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    fs::write(path, config.to_string()).unwrap();
    dir
}

fn ask_inputs(inputs: &[&str], model: &Path, more: &[&str]) -> Run {
    let model = model.display().to_string();
    let options = ["--max-new-tokens", "6", "--json", "--debug-ids"];
    longreel(&[&["ask"], inputs, &["--model", &model], &options, more].concat())
}

/// The letters of the prompt: the folder's tokenizer has a token for each byte, those of ASCII from '!' on first.
fn said(answer: &Value) -> String {
    let ids = answer["prompt_ids"].as_array().unwrap().iter();
    ids.filter_map(|id| u8::try_from(id.as_u64()? + 33).ok())
        .filter(u8::is_ascii_graphic)
        .map(char::from)
        .collect()
}

#[test]
fn times_follow_a_video_for_models_trained_so_or_on_request() {
    let video = golden::path("answers/video.mkv").display().to_string();
    let inputs = [&video, "What moves?"];
    let expected = expected("llava_video");
    let check = |changes: &[(&str, Value)], more: &[&str], expected: &Value| {
        let got = ask_inputs(&inputs, llava_video(changes).path(), more).json();
        for ids in ["prompt_ids", "generated_ids"] {
            assert_eq!(got[ids], expected[ids], "{changes:?} {more:?} {ids}");
        }
    };
    let one_token = ("mm_newline_position", json!("one_token"));
    // As the authors' folders have it on the hub.
    let onevision = [one_token.clone(), ("model_type", json!("llava"))];
    check(&[], &["--time-instruction", "on"], &expected);
    check(
        &[],
        &["--time-instruction", "off"],
        &expected["without_times"],
    );
    check(&onevision, &[], &expected["as_onevision"]);
    let told = ask_inputs(
        &inputs,
        llava_video(&[one_token]).path(),
        &["--time-instruction", "on"],
    );
    assert!(
        said(&told.json()).contains("framesareuniformly"),
        "{}",
        told.stdout
    );
    ask("qwen3_vl", &["--time-instruction", "on"]).refused(2, "--time-instruction is for LLaVA");
    ask("llava15", &["--time-instruction", "off"]).refused(2, "--time-instruction is for LLaVA");
}

#[test]
fn each_of_two_videos_has_its_own_times_and_a_picture_has_none() {
    let video = golden::path("answers/video.mkv").display().to_string();
    let picture = scratch().join("still.png");
    ffmpeg("-f lavfi -i color=red:s=64x48 -frames:v 1", &picture);
    let picture = picture.display().to_string();
    let model = golden::path("answers/llava_video");
    let told = "Thevideolastsfor3.25seconds,and2frames";
    let both = ask_inputs(&[&video, &video, "What?"], &model, &["--frames", "2"]).json();
    let words = said(&both);
    assert_eq!(words.matches(told).count(), 2, "{words}");
    assert!(words.contains("locatedat0.00s,3.00s.Please"), "{words}");
    assert!(words.ends_with("video.What?assistant"), "{words}");
    let alone = ask_inputs(&[&picture, "What?"], &model, &[]).json();
    assert!(
        said(&alone).ends_with("userWhat?assistant"),
        "{}",
        said(&alone)
    );
    let plan = [
        "plan",
        &video,
        &video,
        "--frames",
        "2",
        "--question",
        "What?",
        "--json",
    ];
    let plan = longreel(&[&plan[..], &["--model", &model.display().to_string()]].concat()).json();
    let (planned, taken) = (&plan["prompt_tokens"], &both["tokens"]["prompt"]);
    let spare = planned.as_u64().unwrap() - taken.as_u64().unwrap();
    assert!(spare < 32, "{planned} planned, {taken} taken");
}

/// Two hours at a frame a second, small.
fn two_hours() -> &'static str {
    static CLIP: OnceLock<String> = OnceLock::new();
    CLIP.get_or_init(|| {
        let out = scratch().join("two-hours.mp4");
        let source =
            "-f lavfi -i testsrc2=size=64x48:rate=1 -t 7200 -c:v libx264 -preset ultrafast";
        ffmpeg(source, &out);
        out.display().to_string()
    })
}

#[test]
fn two_hours_are_refused_with_the_number_of_frames_that_fit() {
    let video = two_hours();
    let model = golden::path("answers/qwen3_vl").display().to_string();
    let ask = |more: &[&str]| {
        let fixed = [
            "ask",
            video,
            "When?",
            "--model",
            &model,
            "--json",
            "--debug-ids",
        ];
        longreel(&[&fixed[..], &["--max-new-tokens", "4"], more].concat())
    };
    let refused = ask(&["--fps", "1"]);
    refused.refused(2, "try --frames");
    let (_, n) = refused
        .stderr
        .rsplit_once("--frames ")
        .unwrap_or_else(|| panic!("{}", refused.stdout));
    let n: u64 = n
        .chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .unwrap();
    assert_eq!(
        ask(&["--frames", &n.to_string()]).json()["video"][0]["frames"],
        n
    );
    ask(&["--frames", &(n + 2).to_string()]).refused(2, &format!("{n} frames fit"));
    let last_minute = ask(&["--from", "1:59:00", "--fps", "1"]).json();
    assert_eq!(last_minute["video"][0]["first_s"], 7140.0);
}

#[test]
fn a_model_s_own_rule_gives_way_to_its_context_and_says_so() {
    let (video, model) = (two_hours(), golden::path("answers/qwen3_vl"));
    let model = model.display().to_string();
    let ask = [
        "ask",
        video,
        "When?",
        "--model",
        &model,
        "--max-new-tokens",
        "4",
        "--json",
    ];
    let run = longreel(&ask);
    assert!(run.stderr.contains("fit its context:"), "{}", run.stderr);
    let json = run.json();
    let frames = json["video"][0]["frames"].as_u64().unwrap();
    assert!((300..768).contains(&frames), "{frames}");
    assert!(
        json["tokens"]["prompt"].as_u64().unwrap() > 3500,
        "{}",
        json["tokens"]
    );
}

#[test]
fn times_beyond_a_model_s_positions_are_refused_with_the_seconds_that_fit() {
    let (video, model) = (two_hours(), golden::path("answers/qwen2_5_vl"));
    let model = model.display().to_string();
    let ask = ["ask", video, "When?", "--model", &model, "--frames", "64"];
    longreel(&ask).refused(2, "take 2048 s (--from, --to)");
}

#[test]
fn transformers_5_s_positions_behind_a_video_are_a_named_choice() {
    let ids = |more: &[&str]| {
        let got = ask("qwen2_5_vl", more).json();
        (got["prompt_ids"].clone(), got["generated_ids"].clone())
    };
    // 2.5 s of video at two positions a second reach beyond the longest side of 4 only with more frames a second.
    let long = ["--fps", "4", "--max-pixels", "4000", "--min-pixels", "1"];
    let highest = ids(&long);
    let side = ids(&[&long[..], &["--after-video", "side"]].concat());
    assert_eq!(
        highest,
        ids(&[&long[..], &["--after-video", "highest"]].concat())
    );
    assert_eq!(highest.0, side.0);
    assert_ne!(highest.1, side.1);
    ask("qwen3_vl", &["--after-video", "side"]).refused(2, "--after-video");
}

#[test]
fn a_higher_pixel_budget_gives_more_features() {
    let rows = |more: &[&str]| {
        let got = ask("qwen2_5_vl", more).json();
        got["tokens"]["vision"].as_u64().unwrap()
    };
    assert_eq!(rows(&[]), 36);
    assert!(rows(&["--max-pixels", "200000", "--min-pixels", "100000"]) > 300);
    ask("qwen2_5_vl", &["--max-pixels", "10"]).refused(2, "--max-pixels");
}

#[test]
fn a_folder_of_the_hub_is_shown_verified_and_planned_with() {
    for (system, sampling) in SYSTEMS {
        let folder = golden::path(&format!("answers/{system}"))
            .display()
            .to_string();
        let video = golden::path("answers/video.mkv").display().to_string();
        let shown = longreel(&["models", "show", &folder, "--json"]).json();
        assert_eq!(shown["spec"]["model_type"], "vision_language", "{system}");
        let sound = longreel(&["models", "verify", &folder]);
        assert_eq!(sound.code, 0, "{}", sound.stderr);
        let plan = [
            "plan",
            &video,
            "--model",
            &folder,
            "--question",
            "What moves?",
        ];
        let plan = longreel(&[&plan[..], sampling, &["--json"]].concat()).json();
        assert_eq!(plan["fits"], true, "{system}");
        let expected = expected(system);
        let n = |list: &str| expected[list].as_array().unwrap().len();
        assert_eq!(plan["frames"], n("frames"), "{system}");
        let tokens = plan["prompt_tokens"].as_u64().unwrap() as usize;
        // At most: times in words are counted as the longest.
        assert!(
            (n("prompt_ids")..n("prompt_ids") + 32).contains(&tokens),
            "{system} {tokens}"
        );
    }
}

/// Every model file that answers, an hour of video at one frame a second: positions, whether it fits or not.
#[test]
fn an_hour_is_planned_for_every_model_file() {
    for (model, vision_tokens) in [
        ("llava-1.5-7b", Some(3600 * 576)),
        ("vila-1.5-3b", Some(3600 * 196)),
        ("llava-onevision-qwen2-7b", Some(3600 * 196 + 1)),
        ("internvl3-8b", Some(3600 * 256)),
        // 14 lines of 14 features and a learned one, ten characters of time, and the words around all times.
        ("llava-video-7b-qwen2", Some(3600 * (210 + 10) + 175)),
        // 1080 lines of 1920 columns within 768 features a pair: 20 by 36 squares of 28 pixels.
        ("qwen2.5-vl-7b", Some(1800 * 720)),
        // Its budget is that of a whole video.
        ("qwen3-vl-8b", None),
        ("lwm-chat-1m", Some(3600 * 257)),
    ] {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = root.join(format!("configs/models/{model}.toml"));
        let file = file.display().to_string();
        let hour = ["--hours", "1", "--fps", "1", "--memory-gib", "4000"];
        let run = longreel(&[&["plan", "--model", &file][..], &hour, &["--json"]].concat());
        let plan: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(plan["frames"], 3600, "{model}");
        let positions = plan["vision_tokens"].as_u64().unwrap();
        match vision_tokens {
            Some(expected) => assert_eq!(positions, expected, "{model}"),
            None => assert!(positions >= 1800, "{model}: {positions}"),
        }
        let fits = positions < plan["context_limit"].as_u64().unwrap();
        assert_eq!(
            run.code,
            if fits { 0 } else { 2 },
            "{model}: {}",
            run.stderr
        );
    }
    for model in ["llama-3.1-8b", "mixtral-8x7b"] {
        let file = format!("{}/configs/models/{model}.toml", env!("CARGO_MANIFEST_DIR"));
        let run = longreel(&["plan", "--model", &file, "--hours", "1", "--fps", "1"]);
        run.refused(2, "is a text model, expected a model that takes frames");
    }
}

/// Encoders of `configs/models`: numbers of a vector, public sizes in millions, and operations of a picture in milliards.
#[test]
fn an_hour_of_vectors_is_planned_for_every_model_file_of_an_encoder() {
    for (model, width, millions, giga) in [
        ("clip-l-14-336", 768, 427.9, 381.0),
        ("siglip-so400m-14-384", 1152, 878.0, 665.0),
        ("vit-b-16-224", 768, 85.8, 34.9),
        ("resnet-50", 2048, 23.5, 8.2),
    ] {
        let file = format!("{}/configs/models/{model}.toml", env!("CARGO_MANIFEST_DIR"));
        let hour = [
            "plan", "--model", &file, "--hours", "1", "--fps", "1", "--json",
        ];
        let plan = longreel(&hour).json();
        let number = |key: &str| plan[key].as_f64().unwrap();
        assert_eq!(
            plan["content"],
            format!("vectors of {width} numbers"),
            "{model}"
        );
        // A record has a head of 24 bytes and two bytes a number.
        assert!(
            number("reel_bytes") >= 3600.0 * 2.0 * f64::from(width),
            "{model}"
        );
        let got = number("weight_bytes") / 4e6;
        assert!(
            (got - millions).abs() < 0.1,
            "{model}: {got} million numbers"
        );
        let got = number("encode_flops") / 3600.0 / 1e9;
        assert!((got - giga).abs() < 0.02 * giga, "{model}: {got}");
    }
}
