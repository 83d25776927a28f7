//! Packed prompts are the prompts one by one: nothing is lost, split or mixed,
//! and each goes on alone afterwards.

use std::collections::BTreeMap;

use candle_core::Tensor;
use longreel_models::{
    attention::kv_cache::{KvCache, KvDtype},
    context::{
        packing::{PackedRow, Packing, pack},
        vocab::Token,
    },
    error::Kind,
    llama::{
        Decoder, Head,
        generate::{Continuation, Generation, generate, prefill},
        packed::{PackedPrefill, Prefilled, prefill_packed},
        sampler::Draw,
    },
};
use proptest::prelude::*;
use safetensors::Dtype;

use crate::support::{
    golden::assert_close,
    tiny_decoder::{Tiny, some_tokens},
};

/// What the issue allows between a packed prompt and the prompt alone.
const LOGITS: f32 = 1e-4;

fn row_lengths(packing: &Packing) -> Vec<Vec<usize>> {
    let of_row = |row: &PackedRow| row.segments.iter().map(|s| s.indices.len()).collect();
    packing.rows.iter().map(of_row).collect()
}

#[test]
fn the_longest_prompt_goes_first_and_each_into_the_tightest_room() {
    let packing = pack(&[3, 7, 2, 5, 3], 10).unwrap();
    assert_eq!(row_lengths(&packing), [vec![7, 3], vec![5, 3, 2]]);
    let prompts: Vec<Vec<usize>> = packing
        .rows
        .iter()
        .map(|row| row.segments.iter().map(|s| s.prompt).collect())
        .collect();
    assert_eq!(prompts, [vec![1, 0], vec![3, 4, 2]]);
    assert_eq!(packing.padding(), 0.0);
    assert_eq!(
        packing.rows[0].segment_ids(),
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    );
    assert_eq!(packing.rows[0].positions(), [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]);
}

#[test]
fn padding_is_the_share_of_unused_tokens() {
    let padding = |lengths: &[usize]| pack(lengths, 8).unwrap().padding();
    assert_eq!(padding(&[8, 8]), 0.0);
    assert_eq!(padding(&[6, 6]), 0.25);
    assert_eq!(padding(&[]), 0.0);
}

#[test]
fn a_prompt_that_no_row_holds_is_refused_with_the_numbers() {
    let refused = |lengths: &[usize], capacity| {
        let error = pack(lengths, capacity).unwrap_err();
        (error.kind(), error.to_string())
    };
    assert_eq!(
        refused(&[4, 9], 8),
        (
            Kind::TooLarge,
            "prompt 1 has 9 tokens, a row holds 8".into()
        )
    );
    assert_eq!(
        refused(&[4, 0], 8),
        (
            Kind::BadInput,
            "prompt 1 has no tokens, expected at least 1".into()
        )
    );
    assert_eq!(refused(&[1], 0).0, Kind::TooLarge);
}

proptest! {
    #[test]
    fn packing_keeps_every_prompt_whole_and_within_capacity(
        lengths in prop::collection::vec(1..200usize, 0..60),
        spare in 0..300usize,
    ) {
        let capacity = lengths.iter().max().unwrap_or(&1) + spare;
        let packing = pack(&lengths, capacity).unwrap();
        let tokens: Vec<Vec<(usize, usize)>> = (0..).zip(&lengths).map(|(p, &n)| (0..n).map(|i| (p, i)).collect()).collect();
        let prompts: Vec<&[(usize, usize)]> = tokens.iter().map(Vec::as_slice).collect();
        let mut seen = vec![0; lengths.len()];
        for row in &packing.rows {
            prop_assert!(!row.is_empty() && row.len() <= capacity);
            let (ids, positions, gathered) = (row.segment_ids(), row.positions(), row.gather(&prompts));
            prop_assert!(ids.len() == row.len() && positions.len() == row.len() && gathered.len() == row.len());
            let mut owner = BTreeMap::new();
            for ((id, position), (prompt, index)) in ids.into_iter().zip(positions).zip(gathered) {
                prop_assert_eq!(*owner.entry(id).or_insert(prompt), prompt, "two prompts share a segment");
                prop_assert_eq!(position as usize, index, "positions begin anew with every prompt");
            }
            prop_assert_eq!(owner.len(), row.segments.len());
            let mut end = 0;
            for segment in &row.segments {
                prop_assert_eq!(segment.indices.start, end);
                prop_assert_eq!(segment.indices.len(), lengths[segment.prompt]);
                end = segment.indices.end;
                seen[segment.prompt] += 1;
            }
        }
        prop_assert!(seen.iter().all(|&n| n == 1), "every prompt is packed once");
        // Any two rows together hold more than one row could: best fit leaves no mergeable pair.
        for (i, a) in packing.rows.iter().enumerate() {
            prop_assert!(packing.rows[..i].iter().all(|b| a.len() + b.len() > capacity));
        }
    }
}

fn prompts() -> Vec<Vec<Token>> {
    let all = some_tokens(2000);
    let lengths = [1, 37, 255, 256, 257, 90, 400, 3, 120, 61];
    let starts = lengths.iter().scan(0, |at, n| {
        *at += n;
        Some(*at - n)
    });
    lengths
        .iter()
        .zip(starts)
        .map(|(n, at)| all[at..at + n].to_vec())
        .collect()
}

fn options(capacity: usize, chunk: usize, kv_dtype: KvDtype) -> PackedPrefill {
    PackedPrefill {
        capacity,
        chunk,
        kv_dtype,
    }
}

/// Every prompt, prefilled packed, in the order given.
fn packed(decoder: &Decoder, prompts: &[Vec<Token>], options: &PackedPrefill) -> Vec<Prefilled> {
    let tokens: Vec<&[Token]> = prompts.iter().map(Vec::as_slice).collect();
    let mut done: Vec<Option<Prefilled>> = prompts.iter().map(|_| None).collect();
    let packing = prefill_packed(
        decoder,
        &tokens,
        options,
        &|| true,
        &mut |prompt, prefilled| {
            assert!(done[prompt].replace(prefilled).is_none());
            Ok(())
        },
    );
    assert_eq!(
        packing.unwrap().tokens(),
        prompts.iter().map(Vec::len).sum::<usize>()
    );
    done.into_iter().map(Option::unwrap).collect()
}

fn alone(decoder: &Decoder, tokens: &[Token], kv_dtype: KvDtype) -> Prefilled {
    let mut cache = KvCache::new(decoder.spec(), kv_dtype);
    let last = prefill(decoder, &mut cache, tokens, 512, &|| true, &mut |_| {}).unwrap();
    Prefilled { cache, last }
}

fn logits(decoder: &Decoder, last: &Tensor, head: Head) -> Vec<f32> {
    decoder
        .logits(last, head)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[test]
fn packed_prompts_have_the_logits_of_the_prompts_alone() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let prompts = prompts();
    for (capacity, chunk) in [(1024, 4096), (1024, 100), (400, 256)] {
        let got = packed(&decoder, &prompts, &options(capacity, chunk, KvDtype::F32));
        for (tokens, got) in prompts.iter().zip(got) {
            let expected = alone(&decoder, tokens, KvDtype::F32);
            for head in [Head::Text, Head::Vision] {
                assert_close(
                    &format!(
                        "{} tokens in rows of {capacity}, chunks of {chunk}",
                        tokens.len()
                    ),
                    &logits(&decoder, &got.last, head),
                    &logits(&decoder, &expected.last, head),
                    LOGITS,
                );
            }
        }
    }
}

#[test]
fn a_packed_prompt_goes_on_alone_with_the_answer_it_would_have_had() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let prompts = prompts();
    let generation = Generation {
        max_new_tokens: 12,
        draw: Draw {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            seed: 0,
        },
        stop_ids: Vec::new(),
    };
    let answer = |mut start: Prefilled| {
        let ids = generate(
            &decoder,
            &mut start.cache,
            &start.last,
            &generation,
            &|| true,
            &mut |_| Ok(Continuation::Continue),
        );
        (ids.unwrap(), start.cache)
    };
    let got = packed(&decoder, &prompts, &options(1024, 512, KvDtype::F32));
    for (tokens, got) in prompts.iter().zip(got) {
        let (ids, cache) = answer(got);
        let (expected, alone) = answer(alone(&decoder, tokens, KvDtype::F32));
        assert_eq!(ids, expected, "{} tokens", tokens.len());
        assert_eq!(cache.positions(), alone.positions());
        assert_eq!(cache.bytes(), alone.bytes());
    }
}

#[test]
fn a_part_of_a_context_equals_it_to_the_bit_in_every_type() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(700);
    for dtype in KvDtype::ALL {
        let Prefilled { cache, .. } = alone(&decoder, &tokens, dtype);
        for indices in [0..700, 256..700, 100..101, 13..600, 300..300] {
            let part = cache.part(indices.clone()).unwrap();
            assert_eq!(part.len(), indices.len());
            assert_eq!(part.positions(), &cache.positions()[indices.clone()]);
            for layer in 0..decoder.spec().num_hidden_layers {
                let (got, all) = (read(&part, layer), read(&cache, layer));
                assert!(
                    got[..] == all[indices.clone()],
                    "{dtype:?} {indices:?} layer {layer}"
                );
            }
        }
        assert_eq!(cache.part(600..701).err().unwrap().kind(), Kind::Internal);
    }
}

/// Bits of keys and values of every token of a layer, head after head.
fn read(cache: &KvCache, layer: usize) -> Vec<Vec<u32>> {
    let mut tokens = Vec::new();
    for placed in cache.blocks(layer) {
        let shape = placed.block.shape();
        let mut of_block = vec![Vec::new(); placed.len];
        for head in 0..shape.kv_heads {
            let (mut keys, mut values) = (
                vec![0.0; placed.len * shape.d],
                vec![0.0; placed.len * shape.d],
            );
            placed.block.read_keys(head, placed.len, &mut keys);
            placed.block.read_values(head, placed.len, &mut values);
            for (token, both) in of_block
                .iter_mut()
                .zip(keys.chunks(shape.d).zip(values.chunks(shape.d)))
            {
                token.extend(both.0.iter().chain(both.1).map(|x| x.to_bits()));
            }
        }
        tokens.append(&mut of_block);
    }
    tokens
}

#[test]
fn prompts_that_cannot_be_packed_are_refused_before_anything_is_computed() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(500);
    let refused = |prompts: &[&[Token]], capacity| {
        let options = options(capacity, 512, KvDtype::F32);
        let mut never = |_, _: Prefilled| panic!("a prompt came back");
        let error = prefill_packed(&decoder, prompts, &options, &|| true, &mut never).unwrap_err();
        error.kind()
    };
    assert_eq!(refused(&[&tokens[..10], &tokens], 400), Kind::TooLarge);
    assert_eq!(refused(&[&tokens, &[]], 512), Kind::BadInput);
    let many: Vec<&[Token]> = vec![&tokens; 3];
    assert_eq!(
        refused(&many, 2000),
        Kind::TooLarge,
        "a row longer than the model's context"
    );
}
