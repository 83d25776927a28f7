//! Gradients of attention are those of the dense computation, whatever is
//! masked, and those of the official ring.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use longreel_models::{
    attention::blockwise::Heads,
    error::Kind,
    training::{attention::attention, batch_mask::BatchMask},
};

use crate::support::golden::{Golden, assert_close};

/// Random numbers in [-1, 1).
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The last `t` of `s` tokens ask, in each of `rows` sequences.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    t: usize,
    s: usize,
    heads: Heads,
}

const fn sizes(rows: usize, t: usize, s: usize, [query, key_value, d]: [usize; 3]) -> Sizes {
    let heads = Heads {
        query,
        key_value,
        d,
    };
    Sizes { rows, t, s, heads }
}

/// Inputs and what comes back to the outputs.
struct Case {
    q: Var,
    k: Var,
    v: Var,
    d_out: Tensor,
}

impl Case {
    fn new(sizes: Sizes) -> Self {
        let Sizes { rows, t, s, heads } = sizes;
        let tensor = |tokens, heads, d, seed| {
            let numbers = numbers(rows * tokens * heads * d, seed);
            Tensor::from_vec(numbers, (rows, tokens, heads, d), &Device::Cpu).unwrap()
        };
        let var = |x: Tensor| Var::from_tensor(&x.affine(2.0, 0.0).unwrap()).unwrap();
        Self {
            q: var(tensor(t, heads.query, heads.d, 1)),
            k: var(tensor(s, heads.key_value, heads.d, 2)),
            v: var(tensor(s, heads.key_value, heads.d, 3)),
            d_out: tensor(t, heads.query, heads.d, 4),
        }
    }

    /// out, dq, dk, dv of an attention.
    fn run(&self, attention: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor) -> [Vec<f32>; 4] {
        let out = attention(&self.q, &self.k, &self.v);
        let loss = (&out * &self.d_out).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = |x: &Tensor| flat(gradients.get(x).unwrap());
        [
            flat(&out),
            gradient(&self.q),
            gradient(&self.k),
            gradient(&self.v),
        ]
    }

    fn ours(&self, mask: &BatchMask) -> [Vec<f32>; 4] {
        let mask = Arc::new(mask.clone());
        self.run(|q, k, v| attention(q, k, v, &mask).unwrap())
    }
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

const NAMES: [&str; 4] = ["out", "dq", "dk", "dv"];

fn assert_all_close(what: &str, got: &[Vec<f32>; 4], expected: &[Vec<f32>; 4], tolerance: f32) {
    for (name, (got, expected)) in NAMES.iter().zip(got.iter().zip(expected)) {
        assert_close(&format!("{what}: {name}"), got, expected, tolerance);
    }
}

/// The dense computation out of candle's own operations; a query that sees nothing gives zeros.
fn dense(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes, mask: &BatchMask) -> Tensor {
    let Sizes { rows, t, s, heads } = sizes;
    let repeated = |x: &Tensor| {
        let shape = (rows, heads.key_value, heads.group(), s, heads.d);
        let x = x.transpose(1, 2).unwrap().unsqueeze(2).unwrap();
        let x = x.broadcast_as(shape).unwrap().contiguous().unwrap();
        x.reshape((rows, heads.query, s, heads.d)).unwrap()
    };
    let (mut bias, mut asks) = (Vec::new(), Vec::new());
    for (row, place) in (0..rows).flat_map(|row| (s - t..s).map(move |place| (row, place))) {
        let sees = |key: usize| mask.of_row(row).sees(place, key);
        bias.extend((0..s).map(|key| if sees(key) { 0f32 } else { -1e30 }));
        asks.push(f32::from(u8::from((0..s).any(sees))));
    }
    let bias = Tensor::from_vec(bias, (rows, 1, t, s), &Device::Cpu).unwrap();
    let asks = Tensor::from_vec(asks, (rows, 1, t, 1), &Device::Cpu).unwrap();
    let q = q.transpose(1, 2).unwrap().contiguous().unwrap();
    let scores = q.matmul(&repeated(k).t().unwrap()).unwrap();
    let scores = scores.affine(1.0 / (heads.d as f64).sqrt(), 0.0).unwrap();
    let scores = scores.broadcast_add(&bias).unwrap();
    let max = scores.max_keepdim(3).unwrap().detach();
    let weights = scores.broadcast_sub(&max).unwrap().exp().unwrap();
    let sum = weights.sum_keepdim(3).unwrap();
    let weights = weights.broadcast_div(&sum).unwrap();
    let weights = weights.broadcast_mul(&asks).unwrap();
    let out = weights.matmul(&repeated(v)).unwrap();
    out.transpose(1, 2).unwrap().contiguous().unwrap()
}

fn check(sizes: Sizes, mask: &BatchMask) {
    let case = Case::new(sizes);
    let expected = case.run(|q, k, v| dense(q, k, v, sizes, mask));
    assert_all_close(&format!("{sizes:?}"), &case.ours(mask), &expected, 4e-5);
}

#[test]
fn gradients_are_those_of_the_dense_computation_for_every_shape() {
    for sizes in [
        sizes(1, 1, 1, [1, 1, 2]),
        sizes(2, 5, 9, [6, 2, 20]),
        sizes(1, 1, 300, [4, 4, 32]),
        sizes(1, 300, 300, [4, 4, 16]),
        sizes(2, 130, 259, [6, 2, 8]),
        sizes(1, 513, 513, [2, 1, 64]),
    ] {
        check(sizes, &BatchMask::causal(sizes.rows, sizes.s));
        check(sizes, &BatchMask::all(sizes.rows, sizes.s));
    }
}

#[test]
fn gradients_are_those_of_the_dense_computation_for_every_mask() {
    let sizes = sizes(2, 300, 600, [4, 2, 16]);
    let n = sizes.rows * sizes.s;
    let sorted: Vec<u32> = (0..n).map(|i| (i / 170) as u32).collect();
    let mixed: Vec<u32> = (0..n).map(|i| (i * 7 % 3) as u32).collect();
    let keys: Vec<bool> = (0..n).map(|i| i % 600 >= 320 && i % 5 != 0).collect();
    for mask in [BatchMask::causal(2, 600), BatchMask::all(2, 600)] {
        let with = |segments: &[u32]| mask.clone().with_segments(segments.to_vec()).unwrap();
        for mask in [mask.clone(), with(&sorted), with(&mixed)] {
            check(sizes, &mask);
            check(sizes, &mask.with_keys(keys.clone()).unwrap());
        }
    }
}

#[test]
fn a_query_without_visible_keys_has_no_gradient() {
    let sizes = sizes(1, 300, 300, [2, 2, 8]);
    let mask = BatchMask::causal(1, 300)
        .with_keys(vec![false; 300])
        .unwrap();
    for (name, got) in NAMES.iter().zip(Case::new(sizes).ours(&mask)) {
        assert!(got.iter().all(|&x| x == 0.0), "{name}");
    }
}

#[test]
fn packed_segments_have_the_gradients_of_separate_sequences() {
    let heads = [4, 2, 16];
    let whole = Case::new(sizes(1, 500, 500, heads));
    let segments = (0..500).map(|i| u32::from(i >= 290)).collect();
    let mask = BatchMask::causal(1, 500).with_segments(segments).unwrap();
    let packed = whole.ours(&mask);
    let mut separate: [Vec<f32>; 4] = Default::default();
    for (start, len) in [(0, 290), (290, 210)] {
        let cut = |x: &Tensor| x.narrow(1, start, len).unwrap().contiguous().unwrap();
        let part = Case {
            q: Var::from_tensor(&cut(&whole.q)).unwrap(),
            k: Var::from_tensor(&cut(&whole.k)).unwrap(),
            v: Var::from_tensor(&cut(&whole.v)).unwrap(),
            d_out: cut(&whole.d_out),
        };
        let part = part.ours(&BatchMask::causal(1, len));
        separate.iter_mut().zip(part).for_each(|(s, p)| s.extend(p));
    }
    assert_all_close("packed", &packed, &separate, 1e-5);
}

#[test]
fn the_number_of_threads_does_not_change_a_bit_of_the_gradients() {
    let sizes = sizes(2, 700, 900, [4, 2, 32]);
    let case = Case::new(sizes);
    let mask = BatchMask::causal(2, 900);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| case.ours(&mask))
    };
    let alone = on(1);
    for threads in [2, 3, 5] {
        assert!(on(threads) == alone, "{threads} threads");
    }
}

#[test]
fn gradients_flow_through_operations_before_and_after() {
    let sizes = sizes(1, 6, 6, [2, 1, 8]);
    let case = Case::new(sizes);
    let mask = BatchMask::causal(1, 6);
    let shared = Arc::new(mask.clone());
    // q is not contiguous, and k is also v.
    let turned = |x: &Tensor| x.flip(&[3]).unwrap().t().unwrap().contiguous().unwrap();
    let before = |x: &Tensor| turned(x).t().unwrap();
    let ours = case.run(|q, k, v| {
        let v = (v + k).unwrap();
        attention(&before(q), k, &v, &shared)
            .unwrap()
            .sqr()
            .unwrap()
    });
    let expected = case.run(|q, k, v| {
        let v = (v + k).unwrap();
        dense(&before(q), k, &v, sizes, &mask).sqr().unwrap()
    });
    assert_all_close("in the middle", &ours, &expected, 2e-5);
}

/// Golden inputs of one case.
fn golden_case(file: &Golden) -> (Case, BatchMask) {
    let shape = file.shape("q");
    let tensor = |name| Tensor::from_vec(file.f32(name), shape.clone(), &Device::Cpu).unwrap();
    let segments = file.i32("segment_ids").iter().map(|&s| s as u32).collect();
    let mask = BatchMask::causal(shape[0], shape[1]).with_segments(segments);
    let var = |name| Var::from_tensor(&tensor(name)).unwrap();
    let case = Case {
        q: var("q"),
        k: var("k"),
        v: var("v"),
        d_out: tensor("d_out"),
    };
    (case, mask.unwrap())
}

#[test]
fn golden_gradients_of_the_official_ring() {
    for name in ["ring/case0.safetensors", "ring/case1.safetensors"] {
        let file = Golden::open(name);
        let (case, mask) = golden_case(&file);
        let got = case.ours(&mask);
        for (of, tolerance_of_out, tolerance) in [
            ("dev1", 2e-5, 1e-4),
            ("dev4", 2e-5, 1e-4),
            // Ten times the distance of the official f32 results from these.
            ("ref64", 1.5e-5, 3e-5),
        ] {
            for (part, got) in NAMES.iter().zip(&got) {
                let expected = file.f32(&format!("{of}.{part}"));
                let tolerance = if *part == "out" {
                    tolerance_of_out
                } else {
                    tolerance
                };
                assert_close(&format!("{name} {of}.{part}"), got, &expected, tolerance);
            }
        }
    }
}

#[test]
fn golden_outputs_with_padding() {
    for name in ["ring/case0.safetensors", "ring/case1.safetensors"] {
        let file = Golden::open(name);
        let (case, _) = golden_case(&file);
        let shape = file.shape("q");
        let keys = file.i32("attention_mask").iter().map(|&m| m == 1).collect();
        let mask = BatchMask::causal(shape[0], shape[1])
            .with_keys(keys)
            .unwrap();
        let out = case.ours(&mask)[0].clone();
        assert_close(name, &out, &file.f32("padded.out"), 2e-5);
    }
}

#[test]
fn zero_queries_or_keys_are_allowed() {
    for sizes in [sizes(2, 0, 5, [2, 1, 4]), sizes(0, 3, 3, [2, 1, 4])] {
        let case = Case::new(sizes);
        let [out, dq, dk, dv] = case.ours(&BatchMask::causal(sizes.rows, sizes.s));
        assert!(out.is_empty() && dq.is_empty(), "{sizes:?}");
        assert!(dk.iter().chain(&dv).all(|&x| x == 0.0), "{sizes:?}");
    }
}

#[test]
fn operands_that_do_not_fit_are_refused_with_the_reason() {
    let ones = |shape: [usize; 4]| Tensor::ones(&shape, DType::F32, &Device::Cpu).unwrap();
    let (q, kv) = (ones([1, 3, 4, 8]), ones([1, 3, 2, 8]));
    let half = q.to_dtype(DType::BF16).unwrap();
    let nan = (&kv * f64::NAN).unwrap();
    let mask = BatchMask::causal(1, 3);
    let cases = [
        (
            &half,
            &kv,
            &kv,
            &mask,
            "q is bf16; gradients are computed in f32",
        ),
        (
            &q,
            &ones([1, 3, 3, 8]),
            &ones([1, 3, 3, 8]),
            &mask,
            "4 query heads cannot share 3",
        ),
        (&q, &kv, &ones([1, 4, 2, 8]), &mask, "do not fit together"),
        (
            &q,
            &ones([2, 3, 2, 8]),
            &ones([2, 3, 2, 8]),
            &mask,
            "do not fit together",
        ),
        (
            &q.flatten(0, 1).unwrap(),
            &kv,
            &kv,
            &mask,
            "expected four dimensions",
        ),
        (
            &q,
            &kv,
            &kv,
            &BatchMask::causal(1, 4),
            "a mask of 1 rows of 4 tokens",
        ),
        (&ones([1, 4, 4, 8]), &kv, &kv, &mask, "4 queries"),
        (&q, &nan, &kv, &mask, "output 0 is NaN"),
    ];
    for (q, k, v, mask, expected) in cases {
        let error = attention(q, k, v, &Arc::new(mask.clone())).unwrap_err();
        let kind = if expected.contains("NaN") {
            Kind::Compute
        } else {
            Kind::BadInput
        };
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = mask.clone().with_segments(vec![0; 4]).unwrap_err();
    assert!(
        error.to_string().contains("4 segments for 1 rows of 3"),
        "{error}"
    );
    let error = mask.with_keys(vec![true; 2]).unwrap_err();
    assert!(error.to_string().contains("2 key flags"), "{error}");
}
