//! Blockwise attention is dense attention, whatever is masked; partial results
//! merge as sums do.

use longreel_kernels::attend::{MASK_WORDS, reference};
use longreel_models::{
    attention::{
        blockwise::{Heads, Queries, attend},
        kv_cache::{BLOCK_TOKENS, KvCache, KvDtype},
        mask::{Mask, Verdict},
        partial::{EMPTY, Partial},
    },
    spec::{DecoderSpec, RopePairs},
};
use proptest::prelude::*;

/// Random numbers in [-2, 2) that bf16 holds exactly.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f32::from((state >> 24) as u8) - 128.0) / 64.0
    };
    (0..n).map(|_| next()).collect()
}

fn spec(heads: Heads) -> DecoderSpec {
    DecoderSpec {
        vocab_size: 1,
        vision_vocab_size: None,
        hidden_size: heads.query * heads.d,
        intermediate_size: 1,
        num_hidden_layers: 1,
        num_attention_heads: heads.query,
        num_key_value_heads: Some(heads.key_value),
        head_dim: Some(heads.d),
        max_position_embeddings: 1 << 20,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        rope_pairs: RopePairs::Halves,
        tie_word_embeddings: false,
        sliding_window: None,
        qkv_bias: false,
        attention_output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        experts: None,
        rope_scaling: None,
        mrope: None,
        deepstack_layers: 0,
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let heads = Heads {
        query: 4,
        key_value: 2,
        d: 16,
    };
    let s = 9 * BLOCK_TOKENS + 5;
    let (k, v) = (numbers(s * 32, 2), numbers(s * 32, 3));
    let mut cache = KvCache::new(&spec(heads), KvDtype::F32);
    cache.extend(&vec![0; s], None).unwrap();
    cache.write(0, 0, &k, &v).unwrap();
    for n in [1, 3, 200] {
        let q = numbers(n * 64, 1);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let places = s - n..s;
            let queries = Queries {
                q: &q,
                runs: std::slice::from_ref(&places),
            };
            let attend = || attend(queries, heads, cache.blocks(0), &Mask::CAUSAL);
            let got = pool.unwrap().install(attend);
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            (bits(&got.out), bits(&got.lse))
        };
        let alone = on(1);
        for threads in [2, 3] {
            assert!(on(threads) == alone, "{n} queries on {threads} threads");
        }
    }
}

/// One head of x `[n, heads, d]`.
fn head(x: &[f32], heads: usize, d: usize, h: usize) -> Vec<f32> {
    x.chunks(heads * d)
        .flat_map(|token| token[h * d..(h + 1) * d].to_vec())
        .collect()
}

/// Largest error of numbers in [-2, 2): that of the arithmetic, which follows the element type.
fn tolerance(dtype: KvDtype) -> f64 {
    match dtype {
        KvDtype::F32 => 2e-5,
        KvDtype::Bf16 => 1e-2,
        KvDtype::Int8 => 4e-2,
        KvDtype::Int4 => 0.4,
    }
}

/// The last `n` of `s` tokens ask; blockwise must give what the dense f64 reference gives.
fn check(n: usize, s: usize, heads: Heads, dtype: KvDtype, mask: &Mask) {
    let (q, k, v) = (
        numbers(n * heads.query * heads.d, 1),
        numbers(s * heads.key_value * heads.d, 2),
        numbers(s * heads.key_value * heads.d, 3),
    );
    let mut cache = KvCache::new(&spec(heads), dtype);
    cache.extend(&vec![0; s], None).unwrap();
    cache.write(0, 0, &k, &v).unwrap();
    let places = s - n..s;
    let queries = Queries {
        q: &q,
        runs: std::slice::from_ref(&places),
    };
    let got = attend(queries, heads, cache.blocks(0), mask);
    for h in 0..heads.query {
        let kv = h / (heads.query / heads.key_value);
        let (out, lse) = reference(
            &head(&q, heads.query, heads.d, h),
            &head(&k, heads.key_value, heads.d, kv),
            &head(&v, heads.key_value, heads.d, kv),
            heads.d,
            |i, j| mask.sees(s - n + i, j),
        );
        let got_out = head(&got.out, heads.query, heads.d, h);
        let got_lse = head(&got.lse, heads.query, 1, h);
        for (i, (&g, &e)) in got_out
            .iter()
            .zip(&out)
            .chain(got_lse.iter().zip(&lse))
            .enumerate()
        {
            let close = f64::from(g) == e || (f64::from(g) - e).abs() <= tolerance(dtype);
            assert!(
                close,
                "n={n} s={s} {heads:?} {dtype:?} head {h} [{i}]: got {g}, expected {e}"
            );
        }
    }
}

const SHAPES: [Heads; 3] = [
    Heads {
        query: 4,
        key_value: 4,
        d: 16,
    },
    Heads {
        query: 6,
        key_value: 2,
        d: 20,
    },
    Heads {
        query: 2,
        key_value: 1,
        d: 128,
    },
];

#[test]
fn blockwise_is_dense_for_every_shape() {
    for heads in SHAPES {
        for dtype in KvDtype::ALL {
            for (n, s) in [
                (1, 1),
                (1, 700),
                (3, 257),
                (130, 130),
                (65, 513),
                (300, 600),
            ] {
                check(n, s, heads, dtype, &Mask::CAUSAL);
            }
        }
    }
}

#[test]
fn blockwise_is_dense_for_every_mask() {
    let s = 600;
    let sorted: Vec<u32> = (0..s as u32).map(|i| i / 170).collect();
    let mixed: Vec<u32> = (0..s as u32).map(|i| i * 7 % 3).collect();
    let keys: Vec<bool> = (0..s).map(|i| i >= 300 && i % 5 != 0).collect();
    for causal in [true, false] {
        for segments in [None, Some(sorted.as_slice()), Some(&mixed)] {
            for keys in [None, Some(keys.as_slice())] {
                for window in [None, Some(1), Some(130)] {
                    let mask = Mask {
                        causal,
                        window,
                        segments,
                        keys,
                    };
                    check(600, s, SHAPES[1], KvDtype::F32, &mask);
                    check(2, s, SHAPES[0], KvDtype::Bf16, &mask);
                }
            }
        }
    }
}

#[test]
fn a_query_without_a_visible_key_is_empty() {
    let keys = vec![false; 300];
    let mask = Mask {
        keys: Some(&keys),
        ..Mask::CAUSAL
    };
    check(5, 300, SHAPES[0], KvDtype::F32, &mask);
}

#[test]
fn a_shared_block_is_copied_on_write() {
    let heads = SHAPES[0];
    let width = heads.key_value * heads.d;
    let mut cache = KvCache::new(&spec(heads), KvDtype::F32);
    cache.extend(&[0; 10], None).unwrap();
    cache
        .write(0, 0, &numbers(10 * width, 1), &numbers(10 * width, 2))
        .unwrap();
    let mut fork = cache.fork();
    assert!(
        std::ptr::eq(&*cache.blocks(0)[0].block, &*fork.blocks(0)[0].block),
        "a fork copies no block"
    );
    fork.extend(&[0], None).unwrap();
    fork.write(0, 10, &vec![9.0; width], &vec![9.0; width])
        .unwrap();
    assert!(!std::ptr::eq(
        &*cache.blocks(0)[0].block,
        &*fork.blocks(0)[0].block
    ));
    let keys = |cache: &KvCache, n: usize| {
        let mut keys = vec![0.0; n * heads.d];
        cache.blocks(0)[0].block.read_keys(1, n, &mut keys);
        keys
    };
    assert_eq!(keys(&cache, 10), keys(&fork, 10));
    assert_ne!(keys(&cache, 11), keys(&fork, 11));
}

#[test]
fn memory_is_counted_in_whole_blocks_before_it_is_taken() {
    let spec = spec(SHAPES[1]);
    for tokens in [0, 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 1000] {
        for dtype in KvDtype::ALL {
            let mut cache = KvCache::new(&spec, dtype);
            cache.extend(&vec![0; tokens], None).unwrap();
            assert_eq!(
                cache.bytes(),
                KvCache::bytes_for(&spec, tokens, dtype),
                "{tokens} {dtype:?}"
            );
        }
    }
}

/// Partial results of two rows, some of them over no key.
fn partials() -> impl Strategy<Value = Partial> {
    let row = prop_oneof![
        1 => Just((vec![0.0; 3], EMPTY)),
        4 => (prop::collection::vec(-5.0f32..5.0, 3), -30.0f32..30.0),
    ];
    prop::collection::vec(row, 2).prop_map(|rows| Partial {
        out: rows.iter().flat_map(|r| r.0.clone()).collect(),
        lse: rows.iter().map(|r| r.1).collect(),
    })
}

fn same(a: &Partial, b: &Partial) -> bool {
    let close = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    a.out.iter().zip(&b.out).all(close) && a.lse.iter().zip(&b.lse).all(close)
}

proptest! {
    #[test]
    fn merging_is_associative_and_commutative(a in partials(), b in partials(), c in partials()) {
        let left = a.clone().merge(&b).merge(&c);
        let right = a.clone().merge(&b.clone().merge(&c));
        prop_assert!(same(&left, &right), "{left:?} {right:?}");
        prop_assert!(same(&a.clone().merge(&b), &b.merge(&a)));
    }

    #[test]
    fn empty_is_the_identity_exactly(a in partials()) {
        prop_assert_eq!(&a.clone().merge(&Partial::empty(2, 3)), &a);
        prop_assert_eq!(&Partial::empty(2, 3).merge(&a), &a);
    }

    #[test]
    fn the_verdict_of_a_block_agrees_with_every_pair(
        causal: bool,
        window in prop::option::of(1..50usize),
        segments in prop::option::of(prop::collection::vec(0..3u32, 40)),
        keys in prop::option::of(prop::collection::vec(any::<bool>(), 40)),
        (q, n) in (0..40usize, 0..12usize),
        (k, m) in (0..40usize, 0..12usize),
    ) {
        let mask = Mask { causal, window, segments: segments.as_deref(), keys: keys.as_deref() };
        let (queries, keys) = (q..(q + n).min(40), k..(k + m).min(40));
        let pairs: Vec<bool> = queries.clone().flat_map(|q| keys.clone().map(move |k| (q, k))).map(|(q, k)| mask.sees(q, k)).collect();
        match mask.verdict(queries.clone(), keys.clone()) {
            Verdict::Skip => prop_assert!(!pairs.contains(&true)),
            Verdict::Full => prop_assert!(!pairs.contains(&false)),
            Verdict::Mixed => {
                for (query, pairs) in queries.zip(pairs.chunks(keys.len())) {
                    let mut bits = [0; MASK_WORDS];
                    mask.bits(query, keys.clone(), &mut bits);
                    let shown: Vec<bool> = (0..pairs.len()).map(|j| bits[j / 32] >> (j % 32) & 1 == 1).collect();
                    prop_assert_eq!(shown, pairs);
                }
            }
        }
    }
}

#[test]
fn merging_two_empty_results_is_empty_and_not_nan() {
    let empty = Partial::empty(2, 3);
    assert_eq!(empty.clone().merge(&empty), empty);
}

#[test]
fn nan_propagates_through_a_merge_with_an_empty_result() {
    let mut poisoned = Partial::empty(2, 3);
    poisoned.lse[0] = f32::NAN;
    for merged in [
        poisoned.clone().merge(&Partial::empty(2, 3)),
        Partial::empty(2, 3).merge(&poisoned),
    ] {
        assert!(merged.lse[0].is_nan() && merged.lse[1] == EMPTY);
    }
}
