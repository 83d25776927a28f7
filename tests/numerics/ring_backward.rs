//! Gradients of a ring are those of one rank, of the dense computation, and of the
//! official ring, for every way of dealing; a rank that is lost is named.

use std::{
    ops::Range,
    panic::resume_unwind,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use candle_core::{Device, Tensor, Var};
use longreel_models::{
    attention::{
        blockwise::Heads,
        link::{Link, Message, in_process::InProcess},
        ring::Ring,
        shard::ShardLayout,
    },
    error::{Kind, Result},
    training::{
        attention::attention, batch_mask::BatchMask, ring_attention::ring_attention,
        ring_gradients::TokenShards,
    },
};
use proptest::prelude::*;

#[cfg(feature = "mpi")]
use crate::support::longreel::mpirun;
#[cfg(feature = "mpi")]
use longreel_models::attention::link::mpi;

use crate::support::golden::{Golden, assert_close};

const DEADLINE: Duration = Duration::from_secs(60);
const LAYOUTS: [ShardLayout; 3] = [
    ShardLayout::Contiguous,
    ShardLayout::Zigzag,
    ShardLayout::Striped,
];
const NAMES: [&str; 4] = ["out", "dq", "dk", "dv"];
const HEADS: Heads = Heads {
    query: 4,
    key_value: 2,
    d: 16,
};

type Runs = Vec<Range<usize>>;
/// out, dq, dk, dv.
type Parts = [Vec<f32>; 4];
type Input = fn(&mut Batch) -> &mut Vec<f32>;

/// Random numbers in [-1, 1).
fn random(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Whole sequences: q, d_out `[rows, s, heads, d]`, k, v `[rows, s, kv_heads, d]`.
#[derive(Clone)]
struct Batch {
    heads: Heads,
    mask: BatchMask,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
}

impl Batch {
    fn random(heads: Heads, mask: BatchMask) -> Self {
        let tokens = mask.rows() * mask.tokens();
        let (of_q, of_k) = (heads.query * heads.d, heads.key_value * heads.d);
        Self {
            heads,
            mask,
            q: random(tokens * of_q, 1),
            k: random(tokens * of_k, 2),
            v: random(tokens * of_k, 3),
            d_out: random(tokens * of_q, 4),
        }
    }

    /// Numbers of a token of q, of k.
    fn widths(&self) -> (usize, usize) {
        let Heads {
            query,
            key_value,
            d,
        } = self.heads;
        (query * d, key_value * d)
    }

    /// The rows of x `[rows, s, width]` at `runs`.
    fn cut(&self, x: &[f32], width: usize, runs: &[Range<usize>]) -> Vec<f32> {
        let s = self.mask.tokens();
        let of_row = |row: usize| {
            let place = move |run: &Range<usize>| row * s + run.start..row * s + run.end;
            runs.iter().map(place)
        };
        (0..self.mask.rows())
            .flat_map(of_row)
            .flat_map(|run| x[run.start * width..run.end * width].to_vec())
            .collect()
    }

    /// x `[rows, n, width]` at `runs`, put into whole sequences.
    fn put(&self, whole: &mut [f32], x: &[f32], width: usize, runs: &[Range<usize>]) {
        let s = self.mask.tokens();
        let mut rest = x;
        for row in 0..self.mask.rows() {
            for run in runs {
                let (part, more) = rest.split_at(run.len() * width);
                let start = (row * s + run.start) * width;
                whole[start..start + part.len()].copy_from_slice(part);
                rest = more;
            }
        }
    }

    fn var(&self, x: &[f32], heads: usize, runs: &[Range<usize>]) -> Var {
        let d = self.heads.d;
        let n: usize = runs.iter().map(Range::len).sum();
        let x = self.cut(x, heads * d, runs);
        let x = Tensor::from_vec(x, (self.mask.rows(), n, heads, d), &Device::Cpu).unwrap();
        Var::from_tensor(&x).unwrap()
    }

    /// out, dq, dk, dv of the tokens at `runs` by an attention.
    fn differentiate(
        &self,
        runs: &[Range<usize>],
        attention: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> std::result::Result<Parts, String> {
        let Heads {
            query, key_value, ..
        } = self.heads;
        let q = self.var(&self.q, query, runs);
        let (k, v) = (
            self.var(&self.k, key_value, runs),
            self.var(&self.v, key_value, runs),
        );
        let d_out = self.var(&self.d_out, query, runs).detach();
        let out = attention(&q, &k, &v).map_err(|e| e.to_string())?;
        let loss = (&out * &d_out).unwrap().sum_all().unwrap();
        let gradients = loss.backward().map_err(|e| e.to_string())?;
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let gradient = |x: &Tensor| flat(gradients.get(x).unwrap());
        Ok([flat(&out), gradient(&q), gradient(&k), gradient(&v)])
    }

    /// out, dq, dk, dv of this rank's tokens.
    fn share(
        &self,
        ring: &Arc<Mutex<Ring>>,
        shards: &[Runs],
    ) -> std::result::Result<Parts, String> {
        let runs = &shards[ring.lock().unwrap().rank()];
        let shards = Arc::new(TokenShards::new(shards.to_vec(), self.mask.clone()).unwrap());
        self.differentiate(runs, |q, k, v| ring_attention(q, k, v, ring, &shards))
    }

    /// out, dq, dk, dv of all tokens by a ring.
    fn ring(&self, shards: &[Runs]) -> Parts {
        let (of_q, of_k) = self.widths();
        let shares = each_rank(shards.len(), |link| {
            self.share(&shared(link), shards).unwrap()
        });
        let (q, k) = (vec![0.0; self.q.len()], vec![0.0; self.k.len()]);
        let mut whole = [q.clone(), q, k.clone(), k];
        for (share, runs) in shares.iter().zip(shards) {
            for ((whole, x), width) in whole.iter_mut().zip(share).zip([of_q, of_q, of_k, of_k]) {
                self.put(whole, x, width, runs);
            }
        }
        whole
    }

    fn layout(&self, layout: ShardLayout, ranks: usize) -> Vec<Runs> {
        (0..ranks)
            .map(|rank| layout.runs(self.mask.tokens(), rank, ranks))
            .collect()
    }

    /// out, dq, dk, dv by the operation of one rank.
    fn alone(&self) -> Parts {
        let mask = Arc::new(self.mask.clone());
        let whole = 0..self.mask.tokens();
        self.differentiate(&[whole], |q, k, v| attention(q, k, v, &mask))
            .unwrap()
    }

    /// out, dq, dk, dv by the definition, in f64.
    fn dense(&self) -> Parts {
        let (rows, s) = (self.mask.rows(), self.mask.tokens());
        let mut all = [&self.q, &self.q, &self.k, &self.k].map(|x| vec![0f64; x.len()]);
        for row in 0..rows {
            for (i, h) in (0..s).flat_map(|i| (0..self.heads.query).map(move |h| (i, h))) {
                self.dense_query(row, i, h, &mut all);
            }
        }
        all.map(|x| x.into_iter().map(|x| x as f32).collect())
    }

    fn dense_query(&self, row: usize, i: usize, h: usize, all: &mut [Vec<f64>; 4]) {
        let (heads, s) = (self.heads, self.mask.tokens());
        let d = heads.d;
        let scale = 1.0 / (d as f64).sqrt();
        let of_q = ((row * s + i) * heads.query + h) * d;
        let of_k = |j: usize| ((row * s + j) * heads.key_value + h / heads.group()) * d;
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum()
        };
        let (q, d_out) = (&self.q[of_q..of_q + d], &self.d_out[of_q..of_q + d]);
        let mask = self.mask.of_row(row);
        let seen: Vec<usize> = (0..s).filter(|&j| mask.sees(i, j)).collect();
        let scores: Vec<f64> = seen
            .iter()
            .map(|&j| scale * dot(q, &self.k[of_k(j)..of_k(j) + d]))
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
        let weights: Vec<f64> = scores.iter().map(|x| (x - max).exp() / sum).collect();
        let of_weights: Vec<f64> = seen
            .iter()
            .map(|&j| dot(d_out, &self.v[of_k(j)..of_k(j) + d]))
            .collect();
        let delta: f64 = weights.iter().zip(&of_weights).map(|(p, dp)| p * dp).sum();
        let [out, dq, dk, dv] = all;
        for ((&j, p), dp) in seen.iter().zip(&weights).zip(&of_weights) {
            let ds = p * (dp - delta) * scale;
            for c in 0..d {
                let (q_at, k_at) = (of_q + c, of_k(j) + c);
                out[q_at] += p * f64::from(self.v[k_at]);
                dq[q_at] += ds * f64::from(self.k[k_at]);
                dk[k_at] += ds * f64::from(self.q[q_at]);
                dv[k_at] += p * f64::from(self.d_out[q_at]);
            }
        }
    }
}

fn shared(link: impl Link + 'static) -> Arc<Mutex<Ring>> {
    Arc::new(Mutex::new(Ring::new(Box::new(link))))
}

/// Runs `work` on as many threads as there are ranks → their results in order of rank.
fn each_rank<T: Send>(ranks: usize, work: impl Fn(InProcess) -> T + Sync) -> Vec<T> {
    let done = thread::scope(|scope| {
        let links = InProcess::connect(ranks, DEADLINE).into_iter();
        let threads: Vec<_> = links.map(|link| scope.spawn(|| work(link))).collect();
        let join = |thread: thread::ScopedJoinHandle<T>| thread.join();
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    done.into_iter().map(std::result::Result::unwrap).collect()
}

fn assert_all_close(what: &str, got: &Parts, expected: &Parts, tolerance: f32) {
    for (name, (got, expected)) in NAMES.iter().zip(got.iter().zip(expected)) {
        assert_close(&format!("{what}: {name}"), got, expected, tolerance);
    }
}

const GOLDEN: [&str; 2] = ["ring/case0.safetensors", "ring/case1.safetensors"];

/// The golden inputs, and the results with their tolerances for out and for gradients.
fn golden(case: &str) -> (Batch, Vec<(Parts, [f32; 4])>) {
    let file = Golden::open(case);
    let [rows, s, n_heads, d] = file.shape("q")[..] else {
        panic!("{case}");
    };
    let segments = file
        .i32("segment_ids")
        .iter()
        .map(|&id| id as u32)
        .collect();
    let batch = Batch {
        heads: Heads {
            query: n_heads,
            key_value: n_heads,
            d,
        },
        mask: BatchMask::causal(rows, s).with_segments(segments).unwrap(),
        q: file.f32("q"),
        k: file.f32("k"),
        v: file.f32("v"),
        d_out: file.f32("d_out"),
    };
    // Those of f64 are ten times the distance of the official f32 results from them.
    let tolerances = [
        ("dev1", 2e-5, 1e-4),
        ("dev4", 2e-5, 1e-4),
        ("ref64", 1.5e-5, 3e-5),
    ];
    let expected = tolerances.map(|(of, out, gradients)| {
        let parts = NAMES.map(|name| file.f32(&format!("{of}.{name}")));
        (parts, [out, gradients, gradients, gradients])
    });
    (batch, expected.into())
}

/// What one rank has of the golden cases, in every layout, against its part of them: for any link.
fn check_share(link: Box<dyn Link>) {
    let ring = Arc::new(Mutex::new(Ring::new(link)));
    let (rank, ranks) = {
        let ring = ring.lock().unwrap();
        (ring.rank(), ring.ranks())
    };
    for case in GOLDEN {
        let (batch, expected) = golden(case);
        let (of_q, of_k) = batch.widths();
        for layout in LAYOUTS {
            let shards = batch.layout(layout, ranks);
            let got = batch.share(&ring, &shards).unwrap();
            for (parts, tolerances) in &expected {
                for (i, width) in [of_q, of_q, of_k, of_k].into_iter().enumerate() {
                    let part = batch.cut(&parts[i], width, &shards[rank]);
                    let what = format!("{case} {layout:?}, rank {rank} of {ranks}, {}", NAMES[i]);
                    assert_close(&what, &got[i], &part, tolerances[i]);
                }
            }
        }
    }
}

#[test]
fn official_gradients_are_met_on_one_to_four_ranks() {
    for ranks in 1..=4 {
        each_rank(ranks, |link| check_share(Box::new(link)));
    }
}

/// One test that is several programs: it starts itself under `mpirun`, and is then one of the ranks.
#[cfg(feature = "mpi")]
#[test]
fn official_gradients_are_met_by_processes() {
    const NAME: &str = "numerics::ring_backward::official_gradients_are_met_by_processes";
    if mpi::launched().is_some() {
        let (session, link) = mpi::connect(DEADLINE).unwrap();
        check_share(link);
        return session.finish();
    }
    for ranks in [2, 3, 4] {
        let mut ranks = mpirun(ranks, &std::env::current_exe().unwrap());
        ranks.args(["--exact", NAME, "--nocapture"]);
        let output = ranks.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert!(text.contains("1 passed"), "{text}");
    }
}

fn masks(rows: usize, s: usize) -> [BatchMask; 3] {
    let segments = (0..rows * s).map(|i| (i / 170) as u32).collect();
    let keys = (0..rows * s).map(|i| i % s >= 20 && i % 7 != 0).collect();
    let packed = BatchMask::causal(rows, s).with_segments(segments).unwrap();
    let padded = BatchMask::all(rows, s).with_keys(keys).unwrap();
    [BatchMask::causal(rows, s), packed, padded]
}

#[test]
fn gradients_are_those_of_the_dense_computation_in_f64() {
    for mask in masks(1, 700) {
        let batch = Batch::random(HEADS, mask);
        let dense = batch.dense();
        for ranks in 1..=4 {
            for layout in LAYOUTS {
                let got = batch.ring(&batch.layout(layout, ranks));
                assert_all_close(&format!("{ranks} {layout:?}"), &got, &dense, 2e-5);
            }
        }
    }
}

#[test]
fn a_ring_of_one_rank_is_the_operation_of_one_rank_to_the_bit() {
    for mask in masks(2, 600) {
        let batch = Batch::random(HEADS, mask);
        assert!(batch.ring(&batch.layout(ShardLayout::Contiguous, 1)) == batch.alone());
    }
}

#[test]
fn gradients_are_the_same_bits_in_every_run() {
    let [_, mask, _] = masks(2, 600);
    let batch = Batch::random(HEADS, mask);
    let shards = batch.layout(ShardLayout::Zigzag, 3);
    let first = batch.ring(&shards);
    for _ in 0..3 {
        assert!(batch.ring(&shards) == first);
    }
}

#[test]
fn unequal_shards_and_shards_of_one_token_or_none_have_the_gradients_of_one_rank() {
    let deals: [Vec<Runs>; 5] = [
        vec![vec![0..1], vec![1..399], vec![399..400]],
        vec![vec![0..7, 390..400], vec![], vec![7..390]],
        vec![vec![], vec![200..400], vec![0..200]],
        vec![vec![], vec![], vec![0..400]],
        vec![vec![300..400, 10..200], vec![200..300, 0..10]],
    ];
    for mask in masks(2, 400) {
        let batch = Batch::random(HEADS, mask);
        let alone = batch.alone();
        for shards in &deals {
            assert_all_close(&format!("{shards:?}"), &batch.ring(shards), &alone, 2e-5);
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let heads = Heads {
        query: 2,
        key_value: 1,
        d: 4,
    };
    let segments = vec![0, 0, 0, 0, 1, 1, 1, 1, 1];
    let mask = BatchMask::causal(1, 9).with_segments(segments).unwrap();
    let batch = Batch::random(heads, mask);
    let shards: Vec<Runs> = vec![vec![0..2, 7..9], vec![2..6], vec![6..7]];
    let loss = |batch: &Batch| -> f64 {
        let out = &batch.ring(&shards)[0];
        let products = out.iter().zip(&batch.d_out);
        products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let [_, dq, dk, dv] = batch.ring(&shards);
    let inputs: [(Input, Vec<f32>); 3] = [
        (|batch| &mut batch.q, dq),
        (|batch| &mut batch.k, dk),
        (|batch| &mut batch.v, dv),
    ];
    const STEP: f32 = 1.0 / 64.0;
    for (input, gradient) in inputs {
        for (at, expected) in gradient.iter().enumerate() {
            let [mut more, mut less] = [batch.clone(), batch.clone()];
            input(&mut more)[at] += STEP;
            input(&mut less)[at] -= STEP;
            let slope = (loss(&more) - loss(&less)) / f64::from(2.0 * STEP);
            assert_close("slope", &[slope as f32], &[*expected], 2e-4);
        }
    }
}

#[test]
fn keys_reach_all_other_ranks_and_gradients_return_to_their_own() {
    let batch = Batch::random(HEADS, BatchMask::causal(1, 1024));
    let (_, of_k) = batch.widths();
    for ranks in [1, 2, 4] {
        let shards = batch.layout(ShardLayout::Contiguous, ranks);
        let traffic = each_rank(ranks, |link| {
            let ring = shared(link);
            batch.share(&ring, &shards).unwrap();
            let ring = ring.lock().unwrap();
            ring.traffic()
        });
        let keys = 2 * 4 * of_k * 1024 / ranks;
        let hops = match ranks {
            1 => 0,
            _ => (ranks - 1) + (ranks - 1) + ranks,
        };
        for traffic in traffic {
            assert_eq!(traffic.messages, hops as u64, "{ranks} ranks");
            assert_eq!(traffic.bytes, (hops * keys) as u64, "{ranks} ranks");
        }
    }
}

/// A link whose rank dies when it has taken a number of messages.
struct Mortal {
    link: InProcess,
    left: usize,
}

impl Link for Mortal {
    fn rank(&self) -> usize {
        self.link.rank()
    }

    fn ranks(&self) -> usize {
        self.link.ranks()
    }

    fn send(&mut self, to: usize, message: Message) -> Result<()> {
        self.link.send(to, message)
    }

    fn receive(&mut self, from: usize) -> Result<Message> {
        if self.left == 0 {
            resume_unwind(Box::new("dead"));
        }
        self.left -= 1;
        self.link.receive(from)
    }
}

#[test]
fn a_rank_that_dies_is_named_by_the_rank_that_waits_for_its_gradient() {
    let batch = Batch::random(HEADS, BatchMask::causal(1, 512));
    let shards = batch.layout(ShardLayout::Zigzag, 4);
    let whole = each_rank(4, |link| batch.share(&shared(link), &shards).unwrap());
    // Three messages come in forward, seven in backward.
    for taken in 0..10 {
        let share = &|ring: Arc<Mutex<Ring>>| batch.share(&ring, &shards);
        let ends: Vec<_> = thread::scope(|scope| {
            let start = |link: InProcess| {
                let left = if link.rank() == 1 { taken } else { usize::MAX };
                let ring = shared(Mortal { link, left });
                scope.spawn(move || share(ring))
            };
            let links = InProcess::connect(4, DEADLINE).into_iter();
            let threads: Vec<_> = links.map(start).collect();
            let ends = threads.into_iter().map(thread::ScopedJoinHandle::join);
            ends.collect()
        });
        assert!(ends[1].is_err(), "rank 1 lives with {taken} messages");
        for rank in [0, 2, 3] {
            let what = format!("rank {rank}, {taken} messages");
            match ends[rank].as_ref().unwrap() {
                Err(error) => assert!(error.contains("rank 1 of 4 has ended"), "{what}: {error}"),
                // All others had added to its gradients before, and nothing is missing.
                Ok(share) => assert!(taken > 4 && *share == whole[rank], "{what}"),
            }
        }
        // The last that rank 1 adds to is the gradient of rank 2.
        assert!(taken == 9 || ends[2].as_ref().unwrap().is_err(), "{taken}");
    }
}

#[test]
fn a_rank_that_does_not_come_to_backward_is_named() {
    let batch = Batch::random(HEADS, BatchMask::causal(1, 300));
    let shards = batch.layout(ShardLayout::Contiguous, 3);
    let ends = each_rank(3, |link| {
        let (rank, ring) = (link.rank(), shared(link));
        if rank != 2 {
            return batch.share(&ring, &shards).err();
        }
        let shards = Arc::new(TokenShards::new(shards.clone(), batch.mask.clone()).unwrap());
        let runs = &shards.runs()[2];
        let q = batch.var(&batch.q, HEADS.query, runs);
        let k = batch.var(&batch.k, HEADS.key_value, runs);
        ring_attention(&q, &k, &k, &ring, &shards).unwrap();
        None
    });
    for end in &ends[..2] {
        let error = end.as_ref().unwrap();
        assert!(error.contains("rank 2 of 3 has ended"), "{error}");
        assert!(
            error.contains("gradient of attention over a ring"),
            "{error}"
        );
    }
}

#[test]
fn wrong_input_to_one_rank_is_refused_by_all() {
    let batch = Batch::random(HEADS, BatchMask::causal(1, 300));
    let shards = batch.layout(ShardLayout::Contiguous, 3);
    let refused = each_rank(3, |link| {
        let (rank, ring) = (link.rank(), shared(link));
        let deal = Arc::new(TokenShards::new(shards.clone(), batch.mask.clone()).unwrap());
        let runs: Runs = match rank {
            1 => vec![0..3, 3..7],
            _ => shards[rank].clone(),
        };
        let q = batch.var(&batch.q, HEADS.query, &runs);
        let k = batch.var(&batch.k, HEADS.key_value, &runs);
        ring_attention(&q, &k, &k, &ring, &deal).unwrap_err()
    });
    for error in refused {
        assert_eq!(error.kind(), Kind::BadInput);
        let why = "1 rows of 7 queries and 7 keys on rank 1, which holds 1 rows of 100 tokens";
        assert!(error.to_string().contains(why), "{error}");
    }
    let outside: Vec<Runs> = vec![vec![0..301]];
    let error = TokenShards::new(outside, batch.mask.clone()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("tokens 0..301 of a sequence of 300"),
        "{error}"
    );
    let few = each_rank(2, |link| batch.share(&shared(link), &shards).unwrap_err());
    for error in few {
        assert!(
            error.contains("tokens are distributed over 3 ranks, expected 2"),
            "{error}"
        );
    }
}

/// Shards of `s` places: runs that end at `cuts`, each to one of `ranks`.
fn deal(s: usize, ranks: usize, cuts: &[(usize, usize)]) -> Vec<Runs> {
    let mut ends: Vec<(usize, usize)> = cuts.iter().map(|(at, to)| (at % s, to % ranks)).collect();
    ends.sort_unstable();
    ends.push((s, 0));
    let mut shards = vec![Vec::new(); ranks];
    let mut start = 0;
    for (end, to) in ends {
        if start < end {
            shards[to].push(start..end);
        }
        start = end;
    }
    shards
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn gradients_do_not_depend_on_the_sharding(
        s in 1..420usize,
        rows in 1..3usize,
        ranks in 1..6usize,
        (key_value, group) in (1..3usize, 1..4usize),
        cuts in prop::collection::vec((0..420usize, 0..6usize), 0..9),
        segment in 1..500usize,
        is_causal: bool,
        hidden in 2..9usize,
    ) {
        let heads = Heads { query: key_value * group, key_value, d: 8 };
        let mask = if is_causal { BatchMask::causal(rows, s) } else { BatchMask::all(rows, s) };
        let segments = (0..rows * s).map(|i| (i / segment) as u32).collect();
        let keys = (0..rows * s).map(|i| i % hidden != 0).collect();
        let mask = mask.with_segments(segments).unwrap().with_keys(keys).unwrap();
        let batch = Batch::random(heads, mask);
        let shards = deal(s, ranks, &cuts);
        assert_all_close(&format!("{shards:?}"), &batch.ring(&shards), &batch.alone(), 2e-5);
    }
}
