//! Generation gives LWM's ids: answers, batches that stop early, guided images
//! and videos; and it can be stopped, resumed, repeated.

use candle_core::{Device, Tensor};
use longreel_models::{
    attention::kv_cache::{KvCache, KvDtype},
    context::vocab::Token,
    error::{Kind, Result},
    llama::{
        Decoder, Head, Unpadded,
        generate::{
            Continuation, Generation, Prompted, VisionGeneration, generate, generate_batch,
            generate_vision, prefill,
        },
        sampler::{Draw, Sampler},
    },
};
use safetensors::Dtype;

use crate::support::{
    golden::{Golden, assert_close},
    tiny_decoder::{Tiny, row, some_tokens},
};

fn greedy(max_new_tokens: usize, stop_ids: &[u32]) -> Generation {
    Generation {
        max_new_tokens,
        draw: Draw::GREEDY,
        stop_ids: stop_ids.to_vec(),
    }
}

fn start(decoder: &Decoder, cache: &mut KvCache, tokens: &[Token], chunk: usize) -> Tensor {
    prefill(decoder, cache, tokens, chunk, &|| true, &mut |_| {}).unwrap()
}

fn go_on(_: u32) -> Result<Continuation> {
    Ok(Continuation::Continue)
}

fn answer(decoder: &Decoder, tokens: &[Token], generation: &Generation) -> Vec<u32> {
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
    let last = start(decoder, &mut cache, tokens, 64);
    generate(decoder, &mut cache, &last, generation, &|| true, &mut go_on).unwrap()
}

/// Answers of a batch, as upstream writes them: filled with pad id 0.
fn answers(decoder: &Decoder, inputs: &[Unpadded], generation: &Generation) -> Vec<i32> {
    let mut caches: Vec<KvCache> = inputs
        .iter()
        .map(|_| KvCache::new(decoder.spec(), KvDtype::F32))
        .collect();
    let mut rows: Vec<Prompted> = inputs
        .iter()
        .zip(&mut caches)
        .map(|(input, cache)| Prompted {
            last: start(decoder, cache, &input.tokens, 64),
            cache,
        })
        .collect();
    let drawn = generate_batch(decoder, &mut rows, generation, &|| true, &mut |_, id| {
        go_on(id)
    })
    .unwrap();
    let padded = |mut ids: Vec<u32>| {
        ids.resize(generation.max_new_tokens, 0);
        ids.into_iter()
            .map(|id| id.try_into().unwrap())
            .collect::<Vec<i32>>()
    };
    drawn.into_iter().flat_map(padded).collect()
}

#[test]
fn a_greedy_batch_continues_as_the_official_one() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let file = Golden::open("llama/cases.safetensors");
    let inputs = [row(&file, "leftpad", 0), row(&file, "leftpad", 1)];
    assert_eq!(
        answers(&decoder, &inputs, &greedy(24, &[2])),
        file.i32("decode.tokens")
    );
}

#[test]
fn a_row_of_a_batch_is_the_row_alone() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let file = Golden::open("llama/cases.safetensors");
    let expected = file.i32("decode.tokens");
    for (i, expected) in expected.chunks(24).enumerate() {
        let input = row(&file, "leftpad", i);
        assert_eq!(
            answers(&decoder, &[input], &greedy(24, &[2])),
            expected,
            "row {i}"
        );
    }
}

#[test]
fn a_finished_row_stops_and_the_other_goes_on() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let file = Golden::open("llama/cases.safetensors");
    let inputs = [row(&file, "leftpad", 0), row(&file, "leftpad", 1)];
    let mut expected = file.i32("decode.tokens");
    // The first row draws 104 at its fifth step, the second never.
    expected[5..24].fill(0);
    assert_eq!(answers(&decoder, &inputs, &greedy(24, &[104])), expected);
}

fn expected() -> Golden {
    Golden::open("e2e/expected.safetensors")
}

#[test]
fn answers_about_videos_and_images_are_the_official_ones() {
    let decoder = Tiny::end_to_end().load(Dtype::BF16);
    for case in ["video", "video_train_eof", "image", "batch"] {
        let file = expected();
        let n_rows = file.shape(&format!("{case}.input_ids"))[0];
        let inputs: Vec<Unpadded> = (0..n_rows).map(|i| row(&file, case, i)).collect();
        assert_eq!(
            answers(&decoder, &inputs, &greedy(32, &[2])),
            file.i32(&format!("{case}.answer_ids")),
            "{case}"
        );
    }
}

#[test]
fn a_batch_whose_first_row_stops_early_is_the_official_one() {
    let decoder = Tiny::end_to_end().load(Dtype::BF16);
    let file = expected();
    let inputs = [row(&file, "batch", 0), row(&file, "batch", 1)];
    assert_eq!(
        answers(&decoder, &inputs, &greedy(32, &[32])),
        file.i32("batch_stop.answer_ids")
    );
}

#[test]
fn logits_of_every_answered_token_are_the_official_ones() {
    let decoder = Tiny::end_to_end().load(Dtype::BF16);
    let file = expected();
    for case in ["video", "video_train_eof", "image"] {
        let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
        let mut last = start(&decoder, &mut cache, &row(&file, case, 0).tokens, 512);
        let logits = file.f32(&format!("{case}.answer_text_logits"));
        for (step, (&id, expected)) in file
            .i32(&format!("{case}.answer_ids"))
            .iter()
            .zip(logits.chunks(352))
            .enumerate()
        {
            let got: Vec<f32> = decoder
                .logits(&last, Head::Text)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            assert_close(&format!("{case} step {step}"), &got, expected, 0.005);
            last = start(
                &decoder,
                &mut cache,
                &[Token::Text(id.try_into().unwrap())],
                1,
            );
        }
    }
}

/// The golden image, then the video's second frame in the same contexts.
#[test]
fn a_guided_image_and_the_next_frame_are_the_official_ones() {
    let decoder = Tiny::end_to_end().load(Dtype::BF16);
    let file = expected();
    let one_frame = VisionGeneration {
        frames: 1,
        tokens_per_frame: 257,
        end_of_frame_id: 8192,
        guidance: 3.0,
        draw: Draw {
            temperature: 1.0,
            top_k: Some(1),
            top_p: None,
            seed: 0,
        },
    };
    for (case, expected) in [
        ("gen_image", "gen_image.tokens"),
        ("gen_video", "gen_video.tokens"),
    ] {
        let mut caches = [0, 1].map(|_| KvCache::new(decoder.spec(), KvDtype::F32));
        let [with, without] = &mut caches;
        let prompts = [row(&file, case, 0).tokens, row(&file, case, 1).tokens];
        let ids = generate_vision(
            &decoder,
            (with, &prompts[0]),
            (without, &prompts[1]),
            &one_frame,
            &|| true,
            &mut |_| {},
        );
        let ids: Vec<i32> = ids
            .unwrap()
            .into_iter()
            .map(|id| id.try_into().unwrap())
            .collect();
        assert_eq!(ids, file.i32(expected)[..257], "{case}");
    }
}

#[test]
fn every_prefill_chunk_gives_the_same_answer() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(333);
    let expected = answer(&decoder, &tokens, &greedy(20, &[]));
    for chunk in [1, 7, 64, 1000] {
        let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
        let last = start(&decoder, &mut cache, &tokens, chunk);
        let got = generate(
            &decoder,
            &mut cache,
            &last,
            &greedy(20, &[]),
            &|| true,
            &mut go_on,
        )
        .unwrap();
        assert_eq!(got, expected, "chunks of {chunk}");
        assert_eq!(
            cache.len(),
            333 + 19,
            "every id but the last is in the cache"
        );
    }
}

#[test]
fn a_follow_up_on_the_kept_context_is_the_whole_conversation_anew() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let (question, follow_up) = (some_tokens(100), some_tokens(30));
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
    let last = start(&decoder, &mut cache, &question, 64);
    let first = generate(
        &decoder,
        &mut cache,
        &last,
        &greedy(10, &[]),
        &|| true,
        &mut go_on,
    )
    .unwrap();
    let said: Vec<Token> = first.iter().map(|&id| Token::Text(id)).collect();
    let rest = [&said[9..], &follow_up].concat();
    let last = start(&decoder, &mut cache, &rest, 64);
    let second = generate(
        &decoder,
        &mut cache,
        &last,
        &greedy(10, &[]),
        &|| true,
        &mut go_on,
    )
    .unwrap();
    assert_eq!(
        second,
        answer(
            &decoder,
            &[question, said, follow_up].concat(),
            &greedy(10, &[])
        )
    );
}

#[test]
fn the_listener_ends_an_answer_and_a_stop_id_is_its_last() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(50);
    let free = answer(&decoder, &tokens, &greedy(12, &[]));
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
    let last = start(&decoder, &mut cache, &tokens, 64);
    let mut heard = 0;
    let mut third = |_| {
        heard += 1;
        Ok(if heard == 3 {
            Continuation::Stop
        } else {
            Continuation::Continue
        })
    };
    let got = generate(
        &decoder,
        &mut cache,
        &last,
        &greedy(12, &[]),
        &|| true,
        &mut third,
    )
    .unwrap();
    assert_eq!(got, free[..3]);
    let at = free.iter().position(|id| *id == free[6]).unwrap();
    assert_eq!(
        answer(&decoder, &tokens, &greedy(12, &[free[6]])),
        free[..=at]
    );
    assert_eq!(
        answer(&decoder, &tokens, &greedy(0, &[])),
        Vec::<u32>::new()
    );
}

#[test]
fn a_cancelled_prefill_keeps_whole_chunks_and_can_be_resumed() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(100);
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
    let left = std::cell::Cell::new(2);
    let twice = || left.replace(left.get() - 1) > 0;
    let mut done = 0;
    let error = prefill(&decoder, &mut cache, &tokens, 30, &twice, &mut |n| {
        done += n
    })
    .unwrap_err();
    assert_eq!(
        (error.kind(), done, cache.len()),
        (Kind::Interrupted, 60, 60)
    );
    let last = start(&decoder, &mut cache, &tokens[60..], 30);
    let error = generate(
        &decoder,
        &mut cache,
        &last,
        &greedy(5, &[]),
        &|| false,
        &mut go_on,
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    let got = generate(
        &decoder,
        &mut cache,
        &last,
        &greedy(5, &[]),
        &|| true,
        &mut go_on,
    )
    .unwrap();
    assert_eq!(got, answer(&decoder, &tokens, &greedy(5, &[])));
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_before_anything_is_computed() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
    start(&decoder, &mut cache, &some_tokens(1000), 512);
    let error = prefill(
        &decoder,
        &mut cache,
        &some_tokens(25),
        8,
        &|| true,
        &mut |_| {},
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge);
    assert_eq!(
        error.to_string(),
        "the context holds 1000 tokens and 25 more reach position 1025, the model was made for 1024"
    );
    assert_eq!(cache.len(), 1000);
}

fn draws(draw: &Draw, logits: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(draw, 0);
    (0..n).map(|_| sampler.next(logits).unwrap()).collect()
}

#[test]
fn the_most_likely_id_is_the_lowest_of_equals() {
    assert_eq!(draws(&Draw::GREEDY, &[0.0, 3.0, 1.0, 3.0], 2), [1, 1]);
    let top_1 = Draw {
        temperature: 0.7,
        top_k: Some(1),
        ..Draw::GREEDY
    };
    assert_eq!(draws(&top_1, &[0.0, 3.0, 1.0, 3.0], 2), [1, 1]);
}

#[test]
fn ids_are_drawn_with_their_probabilities() {
    let draw = Draw {
        temperature: 0.5,
        top_k: None,
        top_p: None,
        seed: 7,
    };
    // Halving the temperature squares the odds: 1, 4, 16 of 21.
    let logits = [1f32, 2.0, 4.0].map(f32::ln);
    let mut counts = [0f64; 3];
    for id in draws(&draw, &logits, 21_000) {
        counts[id as usize] += 1.0;
    }
    for (count, expected) in counts.into_iter().zip([1000.0, 4000.0, 16_000.0]) {
        assert!(
            (count - expected).abs() < 5.0 * f64::sqrt(expected),
            "{counts:?}"
        );
    }
}

#[test]
fn top_k_and_top_p_keep_the_likeliest() {
    let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
    let kept = |top_k, top_p| {
        let mut ids = draws(
            &Draw {
                temperature: 1.0,
                top_k,
                top_p,
                seed: 1,
            },
            &logits,
            2000,
        );
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(kept(Some(2), None), [1, 3]);
    assert_eq!(kept(Some(100), Some(1.0)), [0, 1, 2, 3]);
    assert_eq!(
        kept(None, Some(0.5)),
        [1, 3],
        "the id that crosses p is kept"
    );
    assert_eq!(kept(None, Some(1e-9)), [1]);
    assert_eq!(kept(Some(2), Some(0.9)), [1, 3], "p is of what top-k left");
    let equal = Draw {
        temperature: 1.0,
        top_k: Some(2),
        top_p: None,
        seed: 1,
    };
    assert!(
        draws(&equal, &[1.0; 5], 500).iter().all(|&id| id < 2),
        "exactly k, the lowest ids"
    );
}

#[test]
fn a_seed_gives_the_same_ids_and_rows_draw_apart() {
    let draw = Draw {
        temperature: 1.0,
        top_k: None,
        top_p: None,
        seed: 3,
    };
    let logits = vec![0.0; 1000];
    assert_eq!(draws(&draw, &logits, 20), draws(&draw, &logits, 20));
    assert_ne!(
        draws(&draw, &logits, 20),
        draws(
            &Draw {
                seed: 4,
                ..draw.clone()
            },
            &logits,
            20
        )
    );
    let mut other = Sampler::new(&draw, 1);
    let of_other: Vec<u32> = (0..20).map(|_| other.next(&logits).unwrap()).collect();
    assert_ne!(draws(&draw, &logits, 20), of_other);
}

#[test]
fn nan_logits_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY] {
        let error = Sampler::new(&Draw::GREEDY, 0)
            .next(&[0.0, bad])
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Compute);
        assert!(
            error.to_string().starts_with("the logit of id 1 is"),
            "{error}"
        );
    }
    assert_eq!(
        Sampler::new(&Draw::GREEDY, 0)
            .next(&[f32::NEG_INFINITY, 0.0])
            .unwrap(),
        1
    );
}

fn vision(frames: usize, guidance: f64) -> VisionGeneration {
    VisionGeneration {
        frames,
        tokens_per_frame: 5,
        end_of_frame_id: 142,
        guidance,
        draw: Draw::GREEDY,
    }
}

fn draw_frames(decoder: &Decoder, calls: &[VisionGeneration]) -> Vec<u32> {
    let mut caches = [0, 1].map(|_| KvCache::new(decoder.spec(), KvDtype::F32));
    let [with, without] = &mut caches;
    let mut said = (some_tokens(20), some_tokens(3));
    let mut ids = Vec::new();
    for call in calls {
        ids.extend(
            generate_vision(
                decoder,
                (with, &said.0),
                (without, &said.1),
                call,
                &|| true,
                &mut |_| {},
            )
            .unwrap(),
        );
        let last = vec![Token::Vision(ids[ids.len() - 1])];
        said = (last.clone(), last);
    }
    ids
}

#[test]
fn every_frame_ends_in_the_forced_id_and_calls_can_be_chained() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let ids = draw_frames(&decoder, &[vision(3, 2.0)]);
    assert_eq!(ids.len(), 15);
    assert!(ids.iter().skip(4).step_by(5).all(|&id| id == 142));
    assert_eq!(
        draw_frames(&decoder, &[vision(1, 2.0), vision(2, 2.0)]),
        ids
    );
    assert_ne!(
        draw_frames(&decoder, &[vision(3, 0.0)]),
        ids,
        "guidance matters"
    );
}

#[test]
fn guidance_of_one_is_the_description_alone_and_zero_is_without_it() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    for (guidance, prompt) in [(1.0, some_tokens(20)), (0.0, some_tokens(3))] {
        let mut caches = [0, 1].map(|_| KvCache::new(decoder.spec(), KvDtype::F32));
        let [a, b] = &mut caches;
        let both = generate_vision(
            &decoder,
            (a, &prompt),
            (b, &prompt),
            &vision(2, 1.0),
            &|| true,
            &mut |_| {},
        )
        .unwrap();
        assert_eq!(draw_frames(&decoder, &[vision(2, guidance)]), both);
    }
}

#[test]
fn hidden_states_of_a_prefill_are_those_of_the_last_token() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32);
    let last = start(&decoder, &mut cache, &some_tokens(9), 4);
    assert_eq!(last.dims(), [1, 64]);
    assert!(last.device().same_device(&Device::Cpu));
}
