//! Pictures, videos and chats through the processors, equal to transformers'.

use longreel_models::{
    context::{
        chat_template::ChatTemplate,
        tokenizer::Tokenizer,
        vision_prompt::{StepPlace, VisionPrompt},
    },
    error::Kind,
    spec::{
        frame_choice::{Count, FrameChoice, Spread, nearest, step_times, time_instruction},
        patches::PatchesSpec,
        processor::{FilterName, Medium, PictureSpec, Resize},
    },
    vision::{
        image::{RgbView, Rounding},
        patches::VideoPatches,
        processor::PictureProcessor,
    },
};
use serde_json::Value;

use crate::support::{
    folders,
    golden::{Golden, path},
};

/// The bytes of `noise` in `tests/golden/processors.py`.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((((i + seed) * 2_654_435_761) % (1 << 32)) >> 24) as u8)
        .collect()
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(path(&format!("processors/{name}"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn number(value: &Value, key: &str) -> usize {
    value[key].as_u64().unwrap() as usize
}

fn assert_equal(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}: numbers");
    let wrong = (got.iter().zip(expected)).filter(|(a, b)| a.to_bits() != b.to_bits());
    let far = (got.iter().zip(expected))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert_eq!(
        wrong.count(),
        0,
        "{what}: numbers that differ, by at most {far}"
    );
}

#[test]
fn pictures_become_the_pixels_of_transformers_to_the_bit() {
    let (golden, file) = (
        Golden::open("processors/pictures.safetensors"),
        json("pictures.json"),
    );
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() > 80);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let config = &file["configs"][case["processor"].as_str().unwrap()];
        let spec = PictureSpec::from_json(&config.to_string()).unwrap();
        let (width, height) = (number(case, "width"), number(case, "height"));
        let data = noise(width * height * 3, width as u64);
        let picture = RgbView::new(width, height, &data).unwrap();
        let shape = spec.shape();
        let pixels = PictureProcessor::new(spec).pixels(picture).unwrap();
        assert_equal(name, &pixels, &golden.f32(name));
        if let Some([height, width]) = shape {
            assert_eq!(golden.shape(name), [3, height, width], "{name}");
        }
    }
}

#[test]
fn pillow_and_torchvision_differ_by_two_levels_at_most() {
    let mut differ = 0;
    for (width, height) in [(61, 47), (20, 300), (300, 11), (7, 9), (21, 19), (197, 35)] {
        let data = noise(width * height * 3, 5);
        let picture = RgbView::new(width, height, &data).unwrap();
        let config = r#"{"image_processor_type": "SiglipImageProcessor", "do_normalize": false,
            "rescale_factor": 1, "size": {"height": 37, "width": 53}}"#;
        let processor = PictureProcessor::new(PictureSpec::from_json(config).unwrap());
        let torchvision = processor.pixels(picture).unwrap();
        let pillow = processor.with_rounding(Rounding::Pillow);
        for (a, b) in pillow.pixels(picture).unwrap().iter().zip(&torchvision) {
            assert!((a - b).abs() <= 2.0, "{width}x{height}: {a} and {b}");
            differ += usize::from(a != b);
        }
    }
    assert!(differ > 0, "both roundings are one");
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn the_video_part_stands_before_the_video_file_and_that_before_the_picture_file() {
    let siglip = |side: usize| {
        format!(
            r#"{{"image_processor_type": "SiglipImageProcessor", "size": {{"height": {side}, "width": {side}}}}}"#
        )
    };
    let both = format!(
        r#"{{"video_processor": {}, "image_seq_length": 576}}"#,
        siglip(3)
    );
    let (video, picture) = (siglip(2), siglip(1));
    let files = [
        ("preprocessor_config.json", picture.as_str()),
        ("video_preprocessor_config.json", video.as_str()),
        ("processor_config.json", both.as_str()),
    ];
    for n in 1..=3 {
        let dir = folder(&files[..n]);
        let spec =
            |medium| PictureSpec::of_folder(&folders::processor(dir.path()), medium).unwrap();
        assert_eq!(spec(Medium::Video).resize, Resize::Exact([n; 2]));
        assert_eq!(spec(Medium::Picture).resize, Resize::Exact([1; 2]));
    }
}

#[test]
fn a_folder_without_a_file_is_read_by_its_model_type() {
    let shape = |config: &str| {
        let dir = folder(&[("config.json", config)]);
        PictureSpec::of_folder(&folders::processor(dir.path()), Medium::Video)
            .map(|spec| (spec.shape(), spec))
    };
    for (config, side) in [
        (
            r#"{"model_type": "clip", "vision_config": {"image_size": 64}}"#,
            64,
        ),
        (
            r#"{"model_type": "siglip", "vision_config": {"image_size": 384}}"#,
            384,
        ),
        (r#"{"model_type": "vit", "image_size": 96}"#, 96),
        (r#"{"model_type": "dinov2", "image_size": 518}"#, 224),
        (
            r#"{"model_type": "internvl", "vision_config": {"image_size": [448, 448]}}"#,
            448,
        ),
        (
            r#"{"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}"#,
            336,
        ),
    ] {
        assert_eq!(shape(config).unwrap().0, Some([side; 2]), "{config}");
    }
    let padded = shape(r#"{"model_type": "llava_llama", "image_aspect_ratio": "pad"}"#)
        .unwrap()
        .1;
    assert!(padded.pad_to_square);
    let vila = shape(r#"{"model_type": "llava_llama", "image_aspect_ratio": "resize"}"#)
        .unwrap()
        .1;
    assert_eq!((vila.resize, vila.crop), (Resize::Exact([336; 2]), None));
    let error = shape(r#"{"model_type": "bert"}"#).unwrap_err().to_string();
    assert!(
        error.contains("\"bert\"") && error.contains("config.json"),
        "{error}"
    );
}

#[test]
fn old_files_write_numbers_for_sizes_and_other_names_for_classes() {
    let spec = |text: &str| PictureSpec::from_json(text).unwrap();
    let old = spec(
        r#"{"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336, "resample": 2}"#,
    );
    assert_eq!(
        (old.resize, old.crop),
        (Resize::ShortestEdge(336), Some([336; 2]))
    );
    assert_eq!(old.filter, FilterName::Bilinear);
    let vit = spec(
        r#"{"image_processor_type": "ViTImageProcessorFast", "size": 32, "image_mean": null}"#,
    );
    assert_eq!((vit.resize, vit.crop), (Resize::Exact([32; 2]), None));
}

#[test]
fn odd_files_are_errors_that_say_what_they_are_about() {
    for (text, part) in [
        ("[", "EOF"),
        (
            r#"{"image_processor_type": "Owlv2ImageProcessor"}"#,
            "Owlv2",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "resample": 1}"#,
            "resample is 1",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 0}}"#,
            "0 pixels",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 5}}"#,
            "size",
        ),
        (
            r#"{"image_processor_type": "SiglipImageProcessor", "size": {"height": 99999, "width": 2}}"#,
            "99999",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "image_std": [1, 0, 1]}"#,
            "division by 0",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "image_mean": [1, 0]}"#,
            "image_mean",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "rescale_factor": 0}"#,
            "rescale_factor",
        ),
        (
            r#"{"image_processor_type": "ConvNextImageProcessor", "size": 12, "crop_pct": 0}"#,
            "crop_pct",
        ),
        (
            r#"{"image_processor_type": "SiglipImageProcessor", "do_center_crop": true}"#,
            "no crop_size",
        ),
    ] {
        let error = PictureSpec::from_json(text).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput, "{text}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
    let error =
        PictureSpec::of_folder(&folders::processor(folder(&[]).path()), Medium::Video).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn pictures_of_extreme_proportions_are_cut_or_refused_not_built() {
    let clip = PictureSpec::from_json(r#"{"image_processor_type": "CLIPImageProcessor"}"#).unwrap();
    let uncut = PictureSpec {
        crop: None,
        ..clip.clone()
    };
    let data = vec![7; 20_000 * 3 * 3];
    let strip = RgbView::new(20_000, 3, &data).unwrap();
    let cut = PictureProcessor::new(clip.clone());
    assert_eq!(cut.pixels(strip).unwrap().len(), 3 * 224 * 224);
    for processor in [PictureProcessor::new(uncut), cut.padded_to_square()] {
        assert_eq!(processor.pixels(strip).unwrap_err().kind(), Kind::TooLarge);
    }
}

/// The specification of a configuration of `tests/golden/processors.py`.
fn patches(name: &str, configs: &Value) -> PatchesSpec {
    let (medium, model) = match name {
        "qwen2_picture" => (Medium::Picture, "qwen2_vl"),
        name if name.starts_with("qwen2") => (Medium::Video, "qwen2_5_vl"),
        _ => (Medium::Video, "qwen3_vl"),
    };
    PatchesSpec::from_json(&configs[name].to_string(), medium, model).unwrap()
}

#[test]
fn videos_become_the_patches_of_transformers_to_the_bit() {
    let (golden, file) = (
        Golden::open("processors/videos.safetensors"),
        json("videos.json"),
    );
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let processor = patches(case["processor"].as_str().unwrap(), &file["configs"]);
        let n = number(case, "frames");
        let (width, height) = (number(case, "width"), number(case, "height"));
        let size = processor.size([height, width], n).unwrap();
        let data = noise(n * width * height * 3, n as u64);
        let frames: Vec<RgbView<'_>> = data
            .chunks(width * height * 3)
            .map(|frame| RgbView::new(width, height, frame).unwrap())
            .collect();
        let processor = VideoPatches::new(processor);
        let (mut rows, mut grid) = (Vec::new(), [0; 3]);
        for step in frames.chunks(processor.spec().temporal_patch_size) {
            let patches = processor.step(step, size).unwrap();
            rows.extend(patches.rows);
            grid = [grid[0] + 1, patches.grid[0], patches.grid[1]];
        }
        let expected: Vec<usize> = serde_json::from_value(case["grid"].clone()).unwrap();
        assert_eq!(grid.to_vec(), expected, "{name}");
        assert_equal(name, &rows, &golden.f32(name));
    }
}

#[test]
fn frames_are_brought_to_the_sizes_of_transformers_or_refused_as_there() {
    let file = json("sizes.json");
    let cases = file["cases"].as_array().unwrap();
    let refused = cases.iter().filter(|case| case[4].is_null()).count();
    assert!(cases.len() > 400 && refused > 20);
    for case in cases {
        let spec = patches(case[0].as_str().unwrap(), &file["configs"]);
        let [n, width, height] = [1, 2, 3].map(|i| case[i].as_u64().unwrap() as usize);
        let size = spec.size([height, width], n);
        match serde_json::from_value::<Option<[usize; 2]>>(case[4].clone()).unwrap() {
            Some(expected) => assert_eq!(size.unwrap(), expected, "{case}"),
            None => {
                let error = size.unwrap_err();
                assert_eq!(error.kind(), Kind::BadInput);
                assert!(error.to_string().contains("at most 200"), "{error}");
            }
        }
    }
}

/// The rule of a case of `frames.json`.
fn rule(name: &str) -> FrameChoice {
    let (model, how) = name.split_once(' ').unwrap_or((name, ""));
    let choice = FrameChoice::of_model(match model {
        "qwen2" => "qwen2_5_vl",
        "qwen3" => "qwen3_vl",
        "onevision" => "llava_onevision",
        "llava" => "llava_qwen",
        other => other,
    });
    match how.split_once(' ') {
        Some(("of", n)) => FrameChoice {
            count: Count::Frames(n.parse().unwrap()),
            ..choice
        },
        Some(("at", "1")) => FrameChoice {
            count: Count::PerSecond(1.0),
            ..choice
        },
        Some(("at", "3.3 to 5000")) => FrameChoice {
            count: Count::PerSecond(3.3),
            min_frames: 6,
            max_frames: 5000,
            ..choice
        },
        _ => choice,
    }
}

#[test]
fn frames_are_chosen_as_by_transformers_and_by_times_too() {
    let cases = json("frames.json");
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 800);
    for case in cases {
        let (total, rate) = (number(case, "total"), case["rate"].as_f64().unwrap());
        let numbers = rule(case["rule"].as_str().unwrap())
            .numbers(total, rate)
            .unwrap();
        let sum: usize = numbers.iter().enumerate().map(|(i, n)| (i + 1) * n).sum();
        let first: Vec<usize> = serde_json::from_value(case["numbers"].clone()).unwrap();
        assert_eq!(numbers[..first.len()], first, "{case}");
        assert_eq!(
            (numbers.len(), sum),
            (number(case, "n"), number(case, "sum")),
            "{case}"
        );
        if total < 2000 {
            // In milliseconds, rounded, as many containers keep them.
            let ticks: Vec<i64> = (0..total)
                .map(|i| 40 + (i as f64 * 1000.0 / rate).round() as i64)
                .collect();
            assert_eq!(nearest(&numbers, &ticks), numbers, "{case}");
        }
        if let Some(times) = case["times"].as_array() {
            let seconds: Vec<f64> = numbers.iter().map(|&n| n as f64 / rate).collect();
            let told: Vec<String> = (step_times(&seconds, 2).iter())
                .map(|t| format!("<{t:.1} seconds>"))
                .collect();
            assert_eq!(told, *times, "{case}");
        }
    }
}

#[test]
fn frames_at_varying_times_are_those_nearest_to_the_times_wanted() {
    // Ten a second for a second, then one a second for nine: eighteen seconds' worth at a constant rate.
    let ticks: Vec<i64> = (0..10).chain((1..=9).map(|s| s * 10)).collect();
    let chosen = nearest(&[0, 6, 12, 18], &ticks);
    let times: Vec<i64> = chosen.iter().map(|&frame| ticks[frame]).collect();
    assert_eq!(times, [0, 30, 60, 90]);
    assert_eq!(nearest(&[0, 1], &[5]), [0, 0]);
    assert_eq!(nearest(&[3], &[]), [] as [usize; 0]);
}

#[test]
fn a_video_that_transformers_refuses_is_shown_whole() {
    let qwen2 = FrameChoice::of_model("qwen2_5_vl");
    assert_eq!(qwen2.numbers(1, 25.0).unwrap(), [0]);
    let shares = FrameChoice::of_model("llava_onevision");
    assert_eq!(shares.numbers(3, 25.0).unwrap(), [0, 1, 2]);
    for (total, rate) in [(0, 25.0), (3, 0.0), (3, f64::NAN)] {
        assert_eq!(
            shares.numbers(total, rate).unwrap_err().kind(),
            Kind::BadInput
        );
    }
    let none = FrameChoice {
        count: Count::PerSecond(-1.0),
        ..shares
    };
    assert!(none.numbers(3, 25.0).is_err());
}

#[test]
fn a_folder_tells_how_frames_are_chosen_and_cut() {
    let config = ("config.json", r#"{"model_type": "qwen2_5_vl"}"#);
    let hub = r#"{"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
        "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor", "fps": 1, "max_frames": 5000}"#;
    let dir = folder(&[config, ("preprocessor_config.json", hub)]);
    let choice = FrameChoice::of_folder(&folders::processor(dir.path())).unwrap();
    assert_eq!(
        (choice.spread, choice.count),
        (Spread::Steps, Count::PerSecond(1.0))
    );
    assert_eq!((choice.min_frames, choice.max_frames), (4, 5000));
    let spec = PatchesSpec::of_folder(&folders::processor(dir.path()), Medium::Video).unwrap();
    assert_eq!((spec.min_pixels, spec.max_pixels), (3136, 12_845_056));
    let usual =
        PatchesSpec::of_folder(&folders::processor(folder(&[config]).path()), Medium::Video)
            .unwrap();
    assert_eq!(usual, PatchesSpec::qwen2_video());
    assert!(PictureSpec::of_folder(&folders::processor(dir.path()), Medium::Video).is_err());
    let error =
        PatchesSpec::of_folder(&folders::processor(folder(&[]).path()), Medium::Video).unwrap_err();
    assert!(error.to_string().contains("qwen3_vl"), "{error}");
}

#[test]
fn odd_patches_are_refused() {
    for (text, part) in [
        (r#"{"patch_size": 0}"#, "expected sizes"),
        (r#"{"min_pixels": 10, "max_pixels": 9}"#, "range of pixels"),
        (r#"{"max_pixels": 9223372036854775807}"#, "range of pixels"),
        (
            r#"{"cap_pixels_per_frame": true, "max_video_tokens": 9223372036854775807}"#,
            "cap",
        ),
        (r#"{"resample": 0}"#, "resample is 0"),
        (r#"{"do_resize": false}"#, "do_resize"),
        (r#"{"merge_size": -1}"#, "merge_size"),
    ] {
        let error = PatchesSpec::from_json(text, Medium::Video, "qwen3_vl").unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput, "{text}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
    let largest = r#"{"cap_pixels_per_frame": true, "max_video_tokens": 4294967295, "patch_size": 256,
        "merge_size": 256, "temporal_patch_size": 256}"#;
    for model in ["qwen2_vl", "qwen3_vl"] {
        let spec = PatchesSpec::from_json(largest, Medium::Video, model).unwrap();
        assert!(spec.size([480, 640], 3).is_ok());
    }
    let processor = VideoPatches::new(PatchesSpec::qwen2_video());
    let data = [0; 3];
    let dot = RgbView::new(1, 1, &data).unwrap();
    for (frames, size) in [
        (0, [28, 28]),
        (3, [28, 28]),
        (1, [28, 27]),
        (1, [0, 28]),
        (1, [28 << 40, 28]),
    ] {
        let error = processor.step(&vec![dot; frames], size).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput);
    }
}

#[test]
fn llava_video_is_told_the_times_as_its_authors_write_them() {
    assert_eq!(
        time_instruction(10.0, &[0.0, 1.0 / 3.0, 2.125]),
        "The video lasts for 10.00 seconds, and 3 frames are uniformly sampled from it. These frames are located at \
         0.00s,0.33s,2.12s.Please answer the following questions related to this video."
    );
}

/// Frames of `answers/video.mkv`, their rate, height and width (`tests/golden/answers.py`).
const VIDEO: (usize, f64, [usize; 2]) = (13, 4.0, [86, 118]);

/// Rows of features of each step of the video for a folder of `answers`, and the steps' times.
fn steps(dir: &std::path::Path, system: &str, frames: &[usize]) -> Vec<(usize, f64)> {
    let (_, rate, size) = VIDEO;
    let seconds: Vec<f64> = frames.iter().map(|&n| n as f64 / rate).collect();
    if !system.starts_with("qwen") {
        // 28x28 pixels in patches of 14; 42x42 pooled to 2x2, with one row behind the last frame.
        let rows = |i| {
            if system == "llava15" || i + 1 < frames.len() {
                4
            } else {
                5
            }
        };
        let times = seconds.into_iter().enumerate();
        return times.map(|(i, time)| (rows(i), time)).collect();
    }
    let spec = PatchesSpec::of_folder(&folders::processor(dir), Medium::Video).unwrap();
    let [height, width] = spec.size(size, frames.len()).unwrap();
    let rows = height * width / (spec.factor() * spec.factor());
    let times = step_times(&seconds, spec.temporal_patch_size);
    times.into_iter().map(|time| (rows, time)).collect()
}

#[test]
fn whole_prompts_have_the_ids_of_transformers_processors() {
    let (total, rate, _) = VIDEO;
    for system in ["llava15", "llava_onevision", "qwen2_5_vl", "qwen3_vl"] {
        let dir = path(&format!("answers/{system}"));
        let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        let frames: Vec<usize> = serde_json::from_value(expected["frames"].clone()).unwrap();
        if system.starts_with("qwen") {
            let choice = FrameChoice::of_folder(&folders::processor(&dir)).unwrap();
            assert_eq!(choice.numbers(total, rate).unwrap(), frames, "{system}");
        }
        let tokenizer = Tokenizer::open(&dir).unwrap();
        let template = ChatTemplate::of_directory(&dir).unwrap().unwrap();
        let vision = folders::answering(&dir).unwrap().vision.unwrap();
        let question = expected["question"].as_str().unwrap();
        let prompt = VisionPrompt::new(&tokenizer, &template, &vision, question, 1).unwrap();
        let mut tokens = prompt.head().to_vec();
        let steps = steps(&dir, system, &frames);
        for (number, &(rows, seconds)) in steps.iter().enumerate() {
            let place = StepPlace {
                number,
                seconds,
                is_last: number + 1 == steps.len(),
            };
            tokens.extend(prompt.step(&tokenizer, place, rows).unwrap());
        }
        tokens.extend(prompt.after(&tokenizer, true, None).unwrap());
        let ids: Vec<u32> = tokens.iter().map(|token| token.id()).collect();
        let expected: Vec<u32> = serde_json::from_value(expected["prompt_ids"].clone()).unwrap();
        assert_eq!(ids, expected, "{system}");
    }
}
