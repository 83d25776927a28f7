//! A context is what was written to it, in every element type, in memory or in a file,
//! however it was forked, cut and dropped from.

use std::{fs, ops::Range, path::Path, sync::Arc};

use longreel_models::{
    attention::{
        blockwise::{Heads, Queries, attend},
        budget::Budget,
        kv_cache::{BLOCK_TOKENS, KvCache, KvDtype, KvShape},
        mask::Mask,
        spill::{self, SpillDir, SpillHeader},
    },
    context::vocab::Token,
    error::{Error, Kind},
    llama::{Decoder, Positions, Row},
    spec::DecoderSpec,
};
use proptest::prelude::*;
use safetensors::Dtype;

use crate::support::{
    golden::assert_close,
    tiny_decoder::{Tiny, some_tokens},
};

/// Hidden states of the tiny decoder, whose numbers are about 1, against those of an f32 cache.
fn tolerance(dtype: KvDtype) -> f32 {
    match dtype {
        KvDtype::F32 => 2e-4,
        KvDtype::Bf16 => 0.05,
        KvDtype::Int8 => 0.1,
        KvDtype::Int4 => 1.0,
    }
}

fn root_mean_square(a: &[f32], b: &[f32]) -> f32 {
    let squares: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (squares / a.len() as f32).sqrt()
}

/// Appends tokens at the positions that follow → hidden states.
fn append(decoder: &Decoder, cache: &mut KvCache, tokens: &[Token]) -> Result<Vec<f32>, Error> {
    let first = cache.next_position();
    let positions: Vec<u32> = (first..first + tokens.len() as u32).collect();
    let mut rows = [Row {
        tokens,
        positions: Positions::Line(&positions),
        segments: None,
        features: &[],
        cache,
    }];
    let hidden = decoder.forward(&mut rows)?;
    Ok(hidden.flatten_all().unwrap().to_vec1().unwrap())
}

fn in_chunks(decoder: &Decoder, cache: &mut KvCache, tokens: &[Token], chunk: usize) -> Vec<f32> {
    let hidden = |tokens| append(decoder, cache, tokens).unwrap();
    tokens.chunks(chunk).flat_map(hidden).collect()
}

#[test]
fn a_cached_prefix_gives_what_the_whole_prompt_gives_in_every_type() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(600);
    let mut exact = KvCache::new(decoder.spec(), KvDtype::F32);
    let exact = append(&decoder, &mut exact, &tokens).unwrap();
    for dtype in KvDtype::ALL {
        let mut cache = KvCache::new(decoder.spec(), dtype);
        let whole = append(&decoder, &mut cache, &tokens).unwrap();
        for chunk in [7, 256, 300] {
            let mut cache = KvCache::new(decoder.spec(), dtype);
            let got = in_chunks(&decoder, &mut cache, &tokens, chunk);
            // Rounded weights of keys depend on which keys are seen together.
            let bound = match dtype {
                KvDtype::F32 | KvDtype::Bf16 => tolerance(dtype) / 10.0,
                KvDtype::Int8 | KvDtype::Int4 => tolerance(dtype),
            };
            assert_close(
                &format!("{dtype:?}, chunks of {chunk}"),
                &got,
                &whole,
                bound,
            );
        }
        let error = root_mean_square(&whole, &exact);
        assert!(
            error <= tolerance(dtype) / 5.0,
            "{dtype:?} against f32: {error}"
        );
    }
}

/// Bytes that blocks of all layers for 256 tokens take.
fn column_bytes(decoder: &Decoder, dtype: KvDtype) -> usize {
    KvCache::bytes_for(decoder.spec(), BLOCK_TOKENS, dtype)
}

/// A context that keeps `columns` blocks a layer in memory and the rest in files of `dir`.
fn spilling(decoder: &Decoder, dtype: KvDtype, columns: usize, dir: &Path) -> KvCache {
    let budget = Budget::new(columns * column_bytes(decoder, dtype));
    let spill = Arc::new(SpillDir::new(dir).unwrap());
    KvCache::new(decoder.spec(), dtype)
        .within(budget)
        .spilling_to(spill)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_spilled_context_is_the_resident_one_to_the_bit() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(1000);
    let dir = tempfile::tempdir().unwrap();
    for dtype in KvDtype::ALL {
        let mut resident = KvCache::new(decoder.spec(), dtype);
        let mut spilled = spilling(&decoder, dtype, 2, dir.path());
        let expected = in_chunks(&decoder, &mut resident, &tokens, 90);
        let got = in_chunks(&decoder, &mut spilled, &tokens, 90);
        assert!(bits(&got) == bits(&expected), "{dtype:?}");
        assert_eq!(spilled.bytes(), resident.bytes());
        assert_eq!(spilled.spilled_bytes(), 2 * column_bytes(&decoder, dtype));
        assert_eq!(resident.spilled_bytes(), 0);
        let files = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 0, "a file of blocks has no name any more");
    }
}

#[test]
fn forks_and_cuts_of_a_spilled_context_go_on_as_if_it_were_resident() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(1000);
    let dir = tempfile::tempdir().unwrap();
    let mut resident = KvCache::new(decoder.spec(), KvDtype::F32);
    let mut spilled = spilling(&decoder, KvDtype::F32, 3, dir.path());
    for cache in [&mut resident, &mut spilled] {
        in_chunks(&decoder, cache, &tokens[..800], 100);
    }
    spilled.reserve(100).unwrap();
    for cut in [800, 700, 512, 300, 256, 10] {
        let answer = |cache: &KvCache| {
            let mut fork = cache.fork();
            fork.truncate(cut);
            bits(&append(&decoder, &mut fork, &tokens[900..]).unwrap())
        };
        assert!(answer(&spilled) == answer(&resident), "cut to {cut}");
    }
    let rest = |cache: &mut KvCache| bits(&append(&decoder, cache, &tokens[800..]).unwrap());
    assert!(
        rest(&mut spilled) == rest(&mut resident),
        "the forks left no mark"
    );
}

#[test]
fn shared_blocks_are_charged_once_and_returned_by_the_last_fork() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(1000);
    let column = column_bytes(&decoder, KvDtype::F32);
    let budget = Budget::new(3 * column);
    let mut cache = KvCache::new(decoder.spec(), KvDtype::F32).within(budget.clone());
    append(&decoder, &mut cache, &tokens[..300]).unwrap();
    assert_eq!(budget.used_bytes(), 2 * column);
    let mut fork = cache.fork();
    assert_eq!(budget.used_bytes(), 2 * column, "a fork takes nothing");
    append(&decoder, &mut fork, &tokens[..10]).unwrap();
    assert_eq!(
        budget.used_bytes(),
        3 * column,
        "but for the block that it goes on in"
    );

    let error = append(&decoder, &mut cache, &tokens[..300]).unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge);
    assert_eq!(
        error.to_string(),
        format!(
            "no room for keys and values of 600 tokens: {column} bytes more are needed, \
             and {} of the {} bytes allowed in memory are taken",
            3 * column,
            3 * column
        )
    );
    assert_eq!(
        (cache.len(), cache.bytes()),
        (300, 2 * column),
        "and nothing has changed"
    );
    append(&decoder, &mut cache, &tokens[..10]).unwrap();
    drop(fork);
    assert_eq!(budget.used_bytes(), 2 * column);
    drop(cache);
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn a_failing_disk_is_an_error_and_the_context_stays_usable() {
    let decoder = Tiny::golden().load(Dtype::BF16);
    let tokens = some_tokens(1000);
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("gone");
    let mut resident = KvCache::new(decoder.spec(), KvDtype::F32);
    let mut cache = spilling(&decoder, KvDtype::F32, 3, &place);
    for cache in [&mut resident, &mut cache] {
        append(&decoder, cache, &tokens[..700]).unwrap();
    }
    fs::remove_dir(&place).unwrap();
    let error = append(&decoder, &mut cache, &tokens[700..]).unwrap_err();
    assert!(
        error.to_string().starts_with("spill keys and values to "),
        "{error}"
    );
    assert_eq!(cache.len(), 700);
    let next = |cache: &mut KvCache| bits(&append(&decoder, cache, &tokens[700..760]).unwrap());
    assert!(next(&mut cache) == next(&mut resident));
}

#[test]
fn a_full_disk_says_so() {
    let Ok(mut full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        println!("not run: this system has no /dev/full");
        return;
    };
    let error = spill::write(&mut full, header(), []).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (Kind::Io, "no space left on the device".into())
    );
}

fn header() -> SpillHeader {
    let shape = KvShape {
        kv_heads: 2,
        d: 8,
        dtype: KvDtype::Bf16,
    };
    SpillHeader {
        layers: 2,
        shape,
        columns: 0,
    }
}

/// A file of no block, changed by `change` → the error of mapping it.
fn refused(change: impl FnOnce(&mut Vec<u8>)) -> (Kind, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blocks.kv");
    let mut bytes = Vec::new();
    spill::write(&mut bytes, header(), []).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let mapped = spill::map(&fs::File::open(&path).unwrap(), 2, header().shape);
    let error = mapped.err().unwrap();
    (error.kind(), error.to_string())
}

#[test]
fn an_invalid_file_of_blocks_is_refused_with_a_sentence() {
    let bad = |message: &str| (Kind::BadInput, message.to_owned());
    assert_eq!(
        refused(|bytes| bytes.truncate(100)),
        bad("the file has 100 bytes, a header takes 4096")
    );
    assert_eq!(
        refused(|bytes| bytes.clear()),
        bad("the file has 0 bytes, a header takes 4096")
    );
    assert_eq!(
        refused(|bytes| bytes[..8].copy_from_slice(b"PK\x03\x04zipp")),
        bad(
            "a file of blocks begins with [6c, 6f, 6e, 67, 72, 6c, 4b, 56], found [50, 4b, 03, 04, 7a, 69, 70, 70]"
        )
    );
    assert_eq!(refused(|bytes| bytes[8] = 9), bad("version 9, expected 1"));
    assert_eq!(
        refused(|bytes| bytes[24] = 7),
        bad("element type 7, expected 0 to 3")
    );
    assert_eq!(
        refused(|bytes| bytes[32] = 3),
        bad("the file has 4096 bytes, 3 blocks of 2 layers take 151552")
    );
    let (kind, message) = refused(|bytes| bytes[12] = 5);
    assert_eq!(kind, Kind::BadInput);
    assert!(
        message.starts_with("the blocks are of 5 layers of KvShape"),
        "{message}"
    );
}

fn heads() -> Heads {
    Heads {
        query: 2,
        key_value: 1,
        d: 4,
    }
}

/// One head of four channels in two layers.
fn spec() -> DecoderSpec {
    DecoderSpec {
        hidden_size: 8,
        num_attention_heads: 2,
        num_key_value_heads: Some(1),
        head_dim: Some(4),
        num_hidden_layers: 2,
        ..Tiny::golden().spec
    }
}

/// Adds tokens named by `names` to a context of [`spec`].
fn add(cache: &mut KvCache, names: Range<u32>) {
    let at = cache.len();
    let first = cache.next_position();
    let positions: Vec<u32> = (first..first + names.len() as u32).collect();
    cache.extend(&positions, None).unwrap();
    for layer in 0..2 {
        let keys: Vec<f32> = names.clone().flat_map(|name| key(name, layer)).collect();
        let values: Vec<f32> = keys.iter().map(|x| -x).collect();
        cache.write(layer, at, &keys, &values).unwrap();
    }
}

fn key(name: u32, layer: usize) -> [f32; 4] {
    [name as f32, layer as f32, (name % 7) as f32 / 8.0, 1.0]
}

#[test]
fn dropping_the_front_equals_masking_it() {
    for (sinks, blocks, dropped) in [
        (0, 2, 0..512),
        (1, 2, 256..768),
        (2, 9, 512..1024),
        (9, 9, 0..0),
    ] {
        let mut cache = KvCache::new(&spec(), KvDtype::F32);
        add(&mut cache, 0..1200);
        let queries: Vec<f32> = (0..40).map(|i| (i * 13 % 17) as f32 / 90.0 - 0.1).collect();
        let places = 1195..1200;
        let queries = Queries {
            q: &queries,
            runs: std::slice::from_ref(&places),
        };
        let seen: Vec<bool> = (0..1200).map(|place| !dropped.contains(&place)).collect();
        let mask = Mask {
            keys: Some(&seen),
            ..Mask::CAUSAL
        };
        let hidden = attend(queries, heads(), cache.blocks(1), &mask);
        assert_eq!(cache.drop_front(sinks, blocks), dropped.len());
        assert_eq!((cache.len(), cache.held()), (1200, 1200 - dropped.len()));
        assert_eq!(cache.next_position(), 1200);
        let got = attend(queries, heads(), cache.blocks(1), &Mask::CAUSAL);
        assert_eq!(
            (bits(&got.out), bits(&got.lse)),
            (bits(&hidden.out), bits(&hidden.lse))
        );
    }
}

#[test]
fn truncation_inside_a_dropped_range_ends_the_context_before_it() {
    for (len, left) in [
        (1000, 1000),
        (769, 769),
        (768, 256),
        (700, 256),
        (257, 256),
        (100, 100),
        (0, 0),
    ] {
        let mut cache = KvCache::new(&spec(), KvDtype::F32);
        add(&mut cache, 0..1100);
        cache.drop_front(1, 2);
        cache.truncate(len);
        assert_eq!(
            (cache.len(), cache.next_position()),
            (left, left as u32),
            "cut to {len}"
        );
        add(&mut cache, 0..300);
        assert_eq!(cache.len(), left + 300);
    }
}

/// The simple thing that a context must be: at every place the name of its token, if it is held.
#[derive(Clone, Default)]
struct Model(Vec<Option<u32>>);

impl Model {
    fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
        while self.0.last() == Some(&None) {
            self.0.pop();
        }
    }

    fn drop_front(&mut self, sinks: usize, blocks: usize) {
        let last = self.0.len().saturating_sub(1) / BLOCK_TOKENS;
        let held = |index: &usize| self.0[index * BLOCK_TOKENS].is_some();
        let dropped: Vec<usize> = (0..last).filter(held).skip(sinks).take(blocks).collect();
        for index in dropped {
            self.0[index * BLOCK_TOKENS..(index + 1) * BLOCK_TOKENS].fill(None);
        }
    }
}

fn check(cache: &KvCache, model: &Model) {
    assert_eq!(cache.len(), model.0.len());
    assert_eq!(cache.held(), model.0.iter().flatten().count());
    for layer in 0..2 {
        let mut found = vec![None; model.0.len()];
        for placed in cache.blocks(layer) {
            let (mut keys, mut values) = (vec![0.0; placed.len * 4], vec![0.0; placed.len * 4]);
            placed.block.read_keys(0, placed.len, &mut keys);
            placed.block.read_values(0, placed.len, &mut values);
            for (place, (k, v)) in placed.range().zip(keys.chunks(4).zip(values.chunks(4))) {
                let name = k[0] as u32;
                assert_eq!(k, key(name, layer));
                assert!(k.iter().zip(v).all(|(k, v)| *v == -k));
                found[place] = Some(name);
            }
        }
        assert!(found == model.0, "layer {layer}");
    }
}

#[derive(Debug, Clone)]
enum Op {
    Append(usize),
    Fork,
    Forget,
    Turn,
    Truncate(usize),
    DropFront(usize, usize),
    Reserve(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (1..700usize).prop_map(Op::Append),
        2 => Just(Op::Fork),
        1 => Just(Op::Forget),
        2 => Just(Op::Turn),
        2 => (0..2000usize).prop_map(Op::Truncate),
        2 => (0..3usize, 0..4usize).prop_map(|(sinks, blocks)| Op::DropFront(sinks, blocks)),
        1 => (0..600usize).prop_map(Op::Reserve),
    ];
    prop::collection::vec(op, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_sequence_of_operations_leaves_what_a_plain_list_would_hold(
        ops in ops(),
        columns in 4..20usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let column = KvCache::bytes_for(&spec(), BLOCK_TOKENS, KvDtype::F32);
        let budget = Budget::new(columns * column);
        let spill = Arc::new(SpillDir::new(dir.path()).unwrap());
        let cache = KvCache::new(&spec(), KvDtype::F32).within(budget.clone()).spilling_to(spill);
        let mut all = vec![(cache, Model::default())];
        let mut names = 0..0;
        for op in ops {
            let (cache, model) = &mut all[0];
            match op {
                // Forks keep in memory what they share: an append may be refused, and then changes nothing.
                Op::Append(n) => {
                    if cache.reserve(n).is_ok() {
                        names = names.end..names.end + n as u32;
                        add(cache, names.clone());
                        model.0.extend(names.clone().map(Some));
                    } else {
                        prop_assert_eq!(cache.extend(&vec![0; 100_000], None).unwrap_err().kind(), Kind::TooLarge);
                    }
                }
                Op::Fork => {
                    let fork = (cache.fork(), model.clone());
                    all.push(fork);
                }
                Op::Forget => drop(all.drain(1..)),
                Op::Turn => all.rotate_right(1),
                Op::Truncate(len) if len <= model.0.len() => {
                    cache.truncate(len);
                    model.truncate(len);
                }
                Op::Truncate(_) => {}
                Op::DropFront(sinks, blocks) => {
                    cache.drop_front(sinks, blocks);
                    model.drop_front(sinks, blocks);
                }
                Op::Reserve(n) => drop(cache.reserve(n)),
            }
            for (cache, model) in &all {
                check(cache, model);
            }
            prop_assert!(budget.used_bytes() <= budget.limit_bytes());
        }
        drop(all);
        prop_assert_eq!(budget.used_bytes(), 0);
    }
}

/// One token's keys and values in every layer, all of them `x`.
fn write_all(cache: &mut KvCache, places: Range<usize>, x: f32) {
    let width = heads().key_value * heads().d;
    let numbers = vec![x; places.len() * width];
    for layer in 0..spec().num_hidden_layers {
        cache
            .write(layer, places.start, &numbers, &numbers)
            .unwrap();
    }
}

#[test]
fn truncated_tokens_leave_no_trace_even_if_they_were_huge_or_nan() {
    for dtype in KvDtype::ALL {
        for forgotten in [1000.0, f32::NAN] {
            let mut fresh = KvCache::new(&spec(), dtype);
            add(&mut fresh, 0..100);
            let mut cut = fresh.fork();
            let positions: Vec<u32> = (100..300).collect();
            cut.extend(&positions, None).unwrap();
            write_all(&mut cut, 100..256, forgotten);
            cut.truncate(100);
            for cache in [&mut fresh, &mut cut] {
                add(cache, 100..103);
            }
            let places = 102..103;
            let queries = Queries {
                q: &[0.1; 8],
                runs: std::slice::from_ref(&places),
            };
            let seen = |cache: &KvCache| {
                bits(&attend(queries, heads(), cache.blocks(1), &Mask::CAUSAL).out)
            };
            assert_eq!(seen(&cut), seen(&fresh), "{dtype:?} {forgotten}");
        }
    }
}
