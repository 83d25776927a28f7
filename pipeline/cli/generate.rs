//! `longreel generate`: a description in, an image or a video out.

use std::path::Path;

use longreel_models::{
    attention::kv_cache::{KvCache, KvDtype},
    context::{
        prompt::{GeneratedMedium, GenerationPrompt},
        vocab::Token,
    },
    file_name::{FileName, as_text},
    llama::{
        generate::{VisionGeneration, generate_vision},
        sampler::Draw,
    },
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    cli::{args::GenerateArgs, open, output::Voice, resolve},
    error::{Context, Error, Kind, Result},
    model::{Model, ModelFiles},
    plan::{Demand, Plan, available_memory_bytes},
    sources::sampler::parse_rate,
    stages::{picture::PictureWriter, progress::Progress},
};

#[derive(Serialize)]
struct GenerateJson<'a> {
    prompt: &'a str,
    #[serde(serialize_with = "as_text")]
    out: &'a Path,
    model: String,
    frames: usize,
    tokens: usize,
    /// Sampled ids outside the codebook; they are decoded as code 0.
    ids_outside_codebook: usize,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated_ids: Option<Vec<u32>>,
}

/// Runs the verb.
pub fn run(args: GenerateArgs, voice: Voice, cancel: &Cancel) -> Result<()> {
    let start = std::time::Instant::now();
    check(&args)?;
    let rate = parse_rate(&args.fps).doing(|| "--fps")?;
    let system = open::system(&args.model, voice, cancel)?;
    let files = ModelFiles::open(&system)?;
    let mut out = PictureWriter::create(&args.out, files.check_codes()?.resolution, rate)?;
    let (medium, n_frames) = if out.is_video() {
        (GeneratedMedium::Video, args.n_frames)
    } else {
        (GeneratedMedium::Image, 1)
    };
    let prompt = GenerationPrompt::new(&files.tokenizer, medium, &args.prompt)?;
    check_plan(&files, &prompt, n_frames)?;
    let model = files.load()?;
    let (vqgan, spec) = model.codes()?;

    let progress = Progress::default();
    progress.frames_expected.add(n_frames as u64);
    let drawn = voice.show(&progress, || -> Result<Drawn> {
        let mut drawn = Drawn {
            ids: draw_frames(&args, &model, &prompt, n_frames, &progress, cancel)?,
            outside_codebook: 0,
        };
        for frame in drawn.ids.chunks(spec.codes_per_frame() + 1) {
            cancel.check()?;
            let codes = frame.get(..spec.codes_per_frame()).unwrap_or(frame);
            let (codes, outside) = into_codebook(codes, spec.num_embeddings);
            drawn.outside_codebook += outside;
            out.write_codes(vqgan, &codes)
                .doing(|| "decode the generated codes")?;
        }
        Ok(drawn)
    })?;
    if drawn.outside_codebook > 0 {
        voice.note(&format!(
            "{} sampled ids are outside the codebook and are decoded as code 0",
            drawn.outside_codebook
        ));
    }
    out.finish()?;
    let result = GenerateJson {
        prompt: &args.prompt,
        out: &args.out,
        model: system.path().text().into_owned(),
        frames: n_frames,
        tokens: drawn.ids.len(),
        ids_outside_codebook: drawn.outside_codebook,
        seconds: start.elapsed().as_secs_f64(),
        generated_ids: args.debug_ids.then_some(drawn.ids),
    };
    voice.say(&result, || {
        format!("{n_frames} frames in {}", args.out.shown())
    })
}

/// The sampled ids, terminators included.
struct Drawn {
    ids: Vec<u32>,
    outside_codebook: usize,
}

/// The codes, with every id outside the codebook replaced by code 0, and the number of such ids.
///
/// Any id of the vision vocabulary can be sampled, including terminators and spare ids in
/// mid-frame: LWM's code masks none of them, and this follows it.
fn into_codebook(ids: &[u32], n_codes: usize) -> (Vec<u32>, usize) {
    let inside = |&id: &u32| (id as usize) < n_codes;
    let codes = ids.iter().map(|id| if inside(id) { *id } else { 0 });
    (codes.collect(), ids.iter().filter(|id| !inside(id)).count())
}

fn check(args: &GenerateArgs) -> Result<()> {
    let positive = [
        ("--n-frames", args.n_frames),
        ("--top-k-image", args.top_k_image),
        ("--top-k-video", args.top_k_video),
    ];
    for (flag, value) in positive {
        if value == 0 {
            return Err(Error::new(
                Kind::Usage,
                format!("{flag} is 0, expected at least 1"),
            ));
        }
    }
    for (flag, value) in [
        ("--cfg-image", args.cfg_image),
        ("--cfg-video", args.cfg_video),
    ] {
        if !value.is_finite() {
            return Err(Error::new(
                Kind::Usage,
                format!("{flag} is {value}, expected a finite number"),
            ));
        }
    }
    resolve::check_temperature(args.temperature)
}

fn check_plan(model: &ModelFiles, prompt: &GenerationPrompt, n_frames: usize) -> Result<()> {
    // Classifier-free guidance decodes a conditioned and an unconditioned context.
    let demand = Demand {
        frames: n_frames as u64,
        tokens_per_frame: model.spec.tokens_per_frame().unwrap_or(0) as u64,
        vision_tokens: n_frames as u64 * model.spec.tokens_per_frame().unwrap_or(0) as u64,
        text_tokens: prompt.conditional.len() as u64,
        max_new_tokens: 0,
        kv_dtype: KvDtype::F32,
        contexts: 2,
        processes: 1,
        weight_bytes: model.weight_bytes(),
        copied_bytes: model.bytes_of_copies(),
        ranks: 1,
        prefill_chunk: prompt.conditional.len() as u64,
    };
    Plan::new(&model.spec, demand, available_memory_bytes()).check("--n-frames", 1)
}

/// The first frame with the image's guidance, the later ones with the video's (`lwm/vision_generation.py`).
fn draw_frames(
    args: &GenerateArgs,
    model: &Model,
    prompt: &GenerationPrompt,
    n_frames: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<u32>> {
    let tokens_per_frame = model.spec.tokens_per_frame().unwrap_or(1);
    let mut conditional = KvCache::new(&model.spec.decoder, KvDtype::F32);
    let mut unconditional = KvCache::new(&model.spec.decoder, KvDtype::F32);
    let mut said = (prompt.conditional.clone(), prompt.unconditional.clone());
    let mut ids: Vec<u32> = Vec::new();
    for (frames, guidance, top_k) in [
        (1, args.cfg_image, args.top_k_image),
        (n_frames - 1, args.cfg_video, args.top_k_video),
    ] {
        if frames == 0 {
            continue;
        }
        let generation = VisionGeneration {
            frames,
            tokens_per_frame,
            end_of_frame_id: model.spec.end_of_frame_id,
            guidance,
            draw: Draw {
                temperature: args.temperature,
                top_k: Some(top_k),
                top_p: None,
                seed: args.seed,
            },
        };
        let keep_going = || !cancel.is_cancelled();
        let drawn = generate_vision(
            &model.decoder,
            (&mut conditional, &said.0),
            (&mut unconditional, &said.1),
            &generation,
            &keep_going,
            &mut |_| progress.tokens_generated.add(1),
        )?;
        progress.frames_encoded.add(frames as u64);
        // The last id has been sampled but not yet appended to the contexts.
        let last: Vec<Token> = drawn
            .last()
            .map(|&id| Token::Vision(id))
            .into_iter()
            .collect();
        said = (last.clone(), last);
        ids.extend(drawn);
    }
    Ok(ids)
}
