//! A ring of ranks gives what one rank gives: the official numbers, for every
//! way of dealing, of travelling, and of growing.

use std::{ops::Range, sync::Arc, thread, time::Duration};

use longreel_kernels::attend::reference;
use longreel_models::{
    attention::{
        blockwise::{Heads, lanes},
        kv_cache::{BLOCK_TOKENS, KvCache, KvDtype, KvShape, PackedBlock, PositionedBlock},
        link::{Link, Message, in_process::InProcess},
        mask::Mask,
        partial::Partial,
        ring::{Ring, Traveller, schedule, traveller},
        shard::{ShardLayout, owner, striped},
    },
    context::vocab::Token,
    error::{Error, Kind, Result},
    llama::{
        Decoder, Head,
        generate::{Continuation, Generation, generate, prefill},
        group::{Forward, Leader, serve},
        sampler::Draw,
    },
};
use proptest::prelude::*;
use safetensors::Dtype;

#[cfg(feature = "mpi")]
use crate::support::longreel::mpirun;
#[cfg(feature = "mpi")]
use longreel_models::attention::link::mpi;

use crate::support::{
    golden::{Golden, assert_close},
    tiny_decoder::{Tiny, some_tokens},
};

const DEADLINE: Duration = Duration::from_secs(60);
const LAYOUTS: [ShardLayout; 3] = [
    ShardLayout::Contiguous,
    ShardLayout::Zigzag,
    ShardLayout::Striped,
];

/// q `[s, heads, d]`, k and v `[s, kv_heads, d]` of one sequence.
struct Sequence {
    heads: Heads,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    segments: Option<Vec<u32>>,
    keys: Option<Vec<bool>>,
}

impl Sequence {
    fn random(s: usize, heads: Heads) -> Self {
        Self {
            heads,
            q: numbers(s * heads.query * heads.d, 1),
            k: numbers(s * heads.key_value * heads.d, 2),
            v: numbers(s * heads.key_value * heads.d, 3),
            segments: None,
            keys: None,
        }
    }

    fn len(&self) -> usize {
        self.q.len() / (self.heads.query * self.heads.d)
    }

    fn mask(&self) -> Mask<'_> {
        Mask {
            segments: self.segments.as_deref(),
            keys: self.keys.as_deref(),
            ..Mask::CAUSAL
        }
    }

    /// The keys of `runs` in blocks that end with their run or with their 256 places.
    fn blocks(&self, runs: &[Range<usize>], dtype: KvDtype) -> Vec<PositionedBlock> {
        let shape = KvShape {
            kv_heads: self.heads.key_value,
            d: self.heads.d,
            dtype,
        };
        let width = shape.kv_heads * shape.d;
        let mut blocks = Vec::new();
        for run in runs {
            let mut start = run.start;
            while start < run.end {
                let end = run.end.min((start / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
                let mut block = PackedBlock::try_new(shape).unwrap();
                block.write(
                    0,
                    &self.k[start * width..end * width],
                    &self.v[start * width..end * width],
                );
                blocks.push(PositionedBlock {
                    start,
                    len: end - start,
                    block: Arc::new(block),
                });
                start = end;
            }
        }
        blocks
    }

    /// The rows of x `[s, heads, width]` at `runs`.
    fn rows(&self, x: &[f32], width: usize, runs: &[Range<usize>]) -> Vec<f32> {
        runs.iter()
            .flat_map(|run| x[run.start * width..run.end * width].to_vec())
            .collect()
    }

    /// out `[n, heads, d]`, lse `[n, heads]` of the queries of one rank.
    fn share(
        &self,
        ring: &mut Ring,
        shards: &[Vec<Range<usize>>],
        traveller: Traveller,
        dtype: KvDtype,
    ) -> Result<Partial> {
        let runs = &shards[ring.rank()];
        let q = self.rows(&self.q, self.heads.query * self.heads.d, runs);
        let keys = self.blocks(runs, dtype);
        ring.attend(traveller, &q, shards, self.heads, &keys, &self.mask())
    }

    /// out `[s, heads, d]`, lse `[s, heads]` by a ring of as many ranks as `dealt` has lists of runs.
    fn ring(&self, shards: &[Vec<Range<usize>>], traveller: Traveller, dtype: KvDtype) -> Partial {
        let (heads, s) = (self.heads, self.len());
        let parts = each_rank(shards.len(), |link| {
            self.share(&mut Ring::new(Box::new(link)), shards, traveller, dtype)
        });
        let mut whole = Partial::empty(s * heads.query, heads.d);
        for (runs, part) in shards.iter().zip(parts) {
            let part = part.unwrap();
            for (at, place) in runs.iter().cloned().flatten().enumerate() {
                let width = heads.query * heads.d;
                whole.out[place * width..(place + 1) * width]
                    .copy_from_slice(&part.out[at * width..(at + 1) * width]);
                whole.lse[place * heads.query..(place + 1) * heads.query]
                    .copy_from_slice(&part.lse[at * heads.query..(at + 1) * heads.query]);
            }
        }
        whole
    }

    fn shards(&self, layout: ShardLayout, ranks: usize) -> Vec<Vec<Range<usize>>> {
        (0..ranks)
            .map(|rank| layout.runs(self.len(), rank, ranks))
            .collect()
    }

    /// out `[s, heads, d]` in f64, one pair after another.
    fn dense(&self) -> Vec<f32> {
        let (heads, s) = (self.heads, self.len());
        let mut out = vec![0.0; self.q.len()];
        for head in 0..heads.query {
            let kv = head / heads.group();
            let of = |x: &[f32], n: usize, h: usize| -> Vec<f32> {
                x.chunks(n * heads.d)
                    .flat_map(|t| t[h * heads.d..(h + 1) * heads.d].to_vec())
                    .collect()
            };
            let (q, k, v) = (
                of(&self.q, heads.query, head),
                of(&self.k, heads.key_value, kv),
                of(&self.v, heads.key_value, kv),
            );
            let mask = self.mask();
            let (dense, _) = reference(&q, &k, &v, heads.d, |i, j| mask.sees(i, j));
            for place in 0..s {
                for c in 0..heads.d {
                    out[(place * heads.query + head) * heads.d + c] =
                        dense[place * heads.d + c] as f32;
                }
            }
        }
        out
    }
}

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Runs `work` on as many threads as there are ranks → their results in order of rank.
fn each_rank<T: Send>(ranks: usize, work: impl Fn(InProcess) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let links = InProcess::connect(ranks, DEADLINE);
        let threads: Vec<_> = links
            .into_iter()
            .map(|link| scope.spawn(|| work(link)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

const HEADS: Heads = Heads {
    query: 4,
    key_value: 2,
    d: 16,
};

const GOLDEN: [&str; 2] = ["ring/case0.safetensors", "ring/case1.safetensors"];

const WAYS: [(ShardLayout, Traveller); 4] = [
    (ShardLayout::Contiguous, Traveller::Keys),
    (ShardLayout::Zigzag, Traveller::Keys),
    (ShardLayout::Zigzag, Traveller::Queries),
    (ShardLayout::Striped, Traveller::Queries),
];

/// The rows of a batch that official ring attention has computed, with what its outputs are.
fn golden_rows(case: &str) -> Vec<(Sequence, [Vec<f32>; 3])> {
    let file = Golden::open(case);
    let [batch, s, n_heads, d] = file.shape("q")[..] else {
        panic!("{case}");
    };
    let heads = Heads {
        query: n_heads,
        key_value: n_heads,
        d,
    };
    let segments = file.i32("segment_ids");
    let row = |row: usize| {
        let width = s * n_heads * d;
        let part = |name: &str| file.f32(name)[row * width..(row + 1) * width].to_vec();
        let ids = segments[row * s..(row + 1) * s].iter();
        let sequence = Sequence {
            heads,
            q: part("q"),
            k: part("k"),
            v: part("v"),
            segments: Some(ids.map(|&id| id as u32).collect()),
            keys: None,
        };
        (sequence, ["dev1.out", "dev4.out", "ref64.out"].map(part))
    };
    (0..batch).map(row).collect()
}

#[test]
fn official_ring_attention_is_met_on_one_to_four_ranks() {
    for case in GOLDEN {
        for (sequence, expected) in golden_rows(case) {
            for ranks in 1..=4 {
                for (layout, way) in WAYS {
                    let shards = sequence.shards(layout, ranks);
                    let out = sequence.ring(&shards, way, KvDtype::F32).out;
                    let what = format!("{case}, {ranks} ranks, {layout:?}");
                    for expected in &expected {
                        assert_close(&what, &out, expected, 2e-5);
                    }
                }
            }
        }
    }
}

#[test]
fn official_ring_attention_is_met_where_pads_are_no_keys() {
    for case in GOLDEN {
        let file = Golden::open(case);
        let allowed = file.i32("attention_mask");
        for (row, (mut sequence, _)) in golden_rows(case).into_iter().enumerate() {
            let s = sequence.len();
            let keys = allowed[row * s..(row + 1) * s].iter().map(|&x| x == 1);
            let keys: Vec<bool> = keys.collect();
            let width = sequence.q.len() / s;
            // Upstream leaves the rows of pads, which stand on the left, undefined.
            let pads = keys.iter().filter(|real| !**real).count() * width;
            sequence.segments = None;
            sequence.keys = Some(keys);
            let shards = sequence.shards(ShardLayout::Zigzag, 3);
            let out = sequence.ring(&shards, Traveller::Keys, KvDtype::F32).out;
            let expected = &file.f32("padded.out")[row * s * width..(row + 1) * s * width];
            assert_close("padded", &out[pads..], &expected[pads..], 2e-5);
        }
    }
}

/// One test that is several programs: it starts itself under `mpirun`, and is then one of the ranks.
#[cfg(feature = "mpi")]
#[test]
fn official_ring_attention_is_met_by_processes() {
    const NAME: &str = "numerics::ring::official_ring_attention_is_met_by_processes";
    if mpi::launched().is_some() {
        let (session, link) = mpi::connect(DEADLINE).unwrap();
        check_share(&mut Ring::new(link));
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

/// What one rank computes of the golden cases, against its rows.
#[cfg(feature = "mpi")]
fn check_share(ring: &mut Ring) {
    for case in GOLDEN {
        for (sequence, expected) in golden_rows(case) {
            for (layout, way) in WAYS {
                let shards = sequence.shards(layout, ring.ranks());
                let out = sequence.share(ring, &shards, way, KvDtype::F32);
                let width = sequence.heads.query * sequence.heads.d;
                let own = sequence.rows(&expected[2], width, &shards[ring.rank()]);
                let what = format!("{case}, rank {}, {layout:?} {way:?}", ring.rank());
                assert_close(&what, &out.unwrap().out, &own, 2e-5);
            }
        }
    }
}

#[test]
fn every_layout_and_traveller_is_dense_attention() {
    let mut sequence = Sequence::random(1300, HEADS);
    for segments in [None, Some((0..1300).map(|i| i / 170).collect())] {
        sequence.segments = segments;
        let dense = sequence.dense();
        for ranks in [1, 2, 3, 4] {
            for layout in LAYOUTS {
                for way in [Traveller::Keys, Traveller::Queries] {
                    let out = sequence
                        .ring(&sequence.shards(layout, ranks), way, KvDtype::F32)
                        .out;
                    assert_close(
                        &format!("{ranks} ranks {layout:?} {way:?}"),
                        &out,
                        &dense,
                        2e-5,
                    );
                }
            }
        }
    }
}

#[test]
fn unequal_shards_and_shards_of_one_token_or_none_are_dense_attention() {
    let sequence = Sequence::random(400, HEADS);
    let dense = sequence.dense();
    let deals: [Vec<Vec<Range<usize>>>; 3] = [
        vec![vec![0..1], vec![1..399], vec![399..400]],
        vec![vec![0..7, 390..400], vec![], vec![7..390]],
        vec![vec![200..400], vec![0..200]],
    ];
    for shards in deals {
        for way in [Traveller::Keys, Traveller::Queries] {
            let out = sequence.ring(&shards, way, KvDtype::F32).out;
            assert_close(&format!("{shards:?} {way:?}"), &out, &dense, 2e-5);
        }
    }
}

#[test]
fn striped_ranks_that_divide_the_lanes_do_not_change_a_bit() {
    let heads = Heads {
        query: 2,
        key_value: 1,
        d: 16,
    };
    let sequence = Sequence::random(9 * BLOCK_TOKENS + 77, heads);
    for dtype in KvDtype::ALL {
        let ring =
            |ranks, way| sequence.ring(&sequence.shards(ShardLayout::Striped, ranks), way, dtype);
        let alone = ring(1, Traveller::Keys);
        for ranks in [2, 4] {
            assert_eq!(lanes(0) % ranks, 0);
            for way in [Traveller::Keys, Traveller::Queries] {
                assert_eq!(ring(ranks, way), alone, "{ranks} ranks, {way:?}, {dtype:?}");
            }
        }
    }
}

#[test]
fn keys_are_passed_in_short_contexts_and_queries_in_long_ones() {
    let heads = Heads {
        query: 32,
        key_value: 32,
        d: 128,
    };
    let shape = KvShape {
        kv_heads: 32,
        d: 128,
        dtype: KvDtype::Bf16,
    };
    assert_eq!(traveller(heads, shape, 1024, 512, 2), Traveller::Keys);
    assert_eq!(traveller(heads, shape, 65_536, 512, 2), Traveller::Queries);
    assert_eq!(traveller(heads, shape, 4096, 1, 2), Traveller::Queries);
}

#[test]
fn in_a_schedule_every_rank_attends_to_every_shard_and_sends_match_receives() {
    for ranks in 1..9 {
        let all: Vec<_> = (0..ranks).map(|rank| schedule(rank, ranks)).collect();
        for (rank, steps) in all.iter().enumerate() {
            let mut sources: Vec<usize> = steps.iter().map(|step| step.source).collect();
            assert_eq!(sources[0], rank);
            sources.sort_unstable();
            assert_eq!(sources, (0..ranks).collect::<Vec<_>>());
            for (s, step) in steps.iter().enumerate() {
                if let Some(to) = step.to {
                    assert_eq!(all[to][s].from, Some(rank));
                    assert_eq!(all[to][s + 1].source, step.source);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn every_token_has_one_owner(len in 0..5000usize, ranks in 1..9usize) {
        for layout in LAYOUTS {
            let mut seen = vec![0; len];
            for rank in 0..ranks {
                let runs = layout.runs(len, rank, ranks);
                prop_assert!(runs.windows(2).all(|w| w[0].end <= w[1].start));
                for place in runs.into_iter().flatten() {
                    seen[place] += 1;
                    prop_assert!(layout != ShardLayout::Striped || owner(place, ranks) == rank);
                }
            }
            prop_assert!(seen.iter().all(|n| *n == 1), "{layout:?}");
        }
    }

    #[test]
    fn causal_work_of_zigzag_and_striped_ranks_differs_by_at_most_a_block(blocks in 1..40usize, ranks in 1..9usize) {
        let len = blocks * 2 * ranks * BLOCK_TOKENS;
        for layout in [ShardLayout::Zigzag, ShardLayout::Striped] {
            let work = |rank| -> usize { layout.runs(len, rank, ranks).into_iter().flatten().map(|place| place + 1).sum() };
            let all: Vec<usize> = (0..ranks).map(work).collect();
            let (most, least) = (all.iter().max().unwrap(), all.iter().min().unwrap());
            // One block more of keys for every query of a rank.
            let block = len / ranks * ranks * BLOCK_TOKENS;
            prop_assert!(most - least <= block, "{layout:?}: {all:?}");
        }
    }

    #[test]
    fn striped_indices_can_be_split_piece_by_piece(cut in 0..3000usize, more in 0..3000usize, ranks in 1..5usize) {
        for rank in 0..ranks {
            let whole: Vec<usize> = striped(0..cut + more, rank, ranks).into_iter().flatten().collect();
            let pieces = striped(0..cut, rank, ranks).into_iter().chain(striped(cut..cut + more, rank, ranks));
            prop_assert_eq!(pieces.flatten().collect::<Vec<_>>(), whole);
        }
    }
}

/// Runs `lead` as rank 0 of `ranks` threads that share a decoder.
fn group<T>(
    decoder: &Decoder,
    ranks: usize,
    lead: impl FnOnce(&dyn Forward) -> T,
) -> (T, Vec<Result<()>>) {
    thread::scope(|scope| {
        let mut links = InProcess::connect(ranks, DEADLINE).into_iter();
        let first: Box<dyn Link> = Box::new(links.next().unwrap());
        let servants: Vec<_> = links
            .map(|link| scope.spawn(|| serve(decoder, Box::new(link)).map(|_| ())))
            .collect();
        let led = lead(&Leader::new(decoder, first, None));
        (
            led,
            servants.into_iter().map(|s| s.join().unwrap()).collect(),
        )
    })
}

/// Answers of 20 ids to a prompt, to a follow-up, and to another follow-up on a fork of the first context.
fn conversation(decoder: &dyn Forward, prompt: &[Token], chunk: usize) -> Result<Vec<Vec<u32>>> {
    let generation = Generation {
        max_new_tokens: 20,
        draw: Draw::GREEDY,
        stop_ids: Vec::new(),
    };
    let mut cache = decoder.context(KvDtype::F32);
    let mut answers = Vec::new();
    let mut say = |cache: &mut KvCache, tokens: &[Token]| -> Result<()> {
        let last = prefill(decoder, cache, tokens, chunk, &|| true, &mut |_| {})?;
        let mut go_on = |_| Ok(Continuation::Continue);
        answers.push(generate(
            decoder,
            cache,
            &last,
            &generation,
            &|| true,
            &mut go_on,
        )?);
        Ok(())
    };
    say(&mut cache, prompt)?;
    let mut fork = cache.fork();
    say(&mut cache, &prompt[..300])?;
    say(&mut fork, &prompt[100..350])?;
    fork.truncate(prompt.len());
    say(&mut fork, &prompt[..7])?;
    Ok(answers)
}

fn roomy() -> Decoder {
    let mut tiny = Tiny::golden();
    tiny.spec.max_position_embeddings = 1 << 16;
    tiny.load(Dtype::F32)
}

#[test]
fn a_group_answers_as_one_rank_does_follow_ups_and_forks_included() {
    let decoder = roomy();
    for n in [350, 517, 1100] {
        let prompt = some_tokens(n);
        let alone = conversation(&decoder, &prompt, 512).unwrap();
        for ranks in 1..=5 {
            let (answers, served) =
                group(&decoder, ranks, |leader| conversation(leader, &prompt, 512));
            assert_eq!(answers.unwrap(), alone, "{ranks} ranks");
            assert!(served.iter().all(Result::is_ok), "{served:?}");
        }
    }
}

#[test]
fn the_last_logits_of_one_two_and_four_ranks_are_the_same_bits() {
    let decoder = roomy();
    let tokens = some_tokens(12 * BLOCK_TOKENS);
    let logits = |decoder: &dyn Forward| {
        let mut cache = decoder.context(KvDtype::F32);
        let last = prefill(decoder, &mut cache, &tokens, 2048, &|| true, &mut |_| {}).unwrap();
        let logits = decoder.logits(&last, Head::Text).unwrap();
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let alone = logits(&decoder);
    for ranks in [2, 4] {
        let (logits, _) = group(&decoder, ranks, logits);
        assert_eq!(logits, alone, "{ranks} ranks");
    }
}

#[test]
fn a_rank_keeps_its_own_blocks_only() {
    let decoder = roomy();
    let tokens = some_tokens(7 * BLOCK_TOKENS + 9);
    let bytes = |decoder: &dyn Forward| {
        let mut cache = decoder.context(KvDtype::F32);
        prefill(decoder, &mut cache, &tokens, 512, &|| true, &mut |_| {}).unwrap();
        cache.bytes()
    };
    let alone = bytes(&decoder);
    assert_eq!(group(&decoder, 4, bytes).0 * 4, alone);
}

#[test]
fn a_failure_of_one_rank_ends_all_ranks() {
    let mut tiny = Tiny::golden();
    tiny.spec.max_position_embeddings = 1 << 16;
    // Only vision tokens of the second block meet the weight: rank 1 computes it.
    tiny.matrix("model.vision_embed_tokens.weight")[0] = f32::NAN;
    let decoder = tiny.load(Dtype::F32);
    let mut tokens = vec![Token::Text(1); 2 * BLOCK_TOKENS];
    tokens[BLOCK_TOKENS + 3] = Token::Vision(0);
    let (led, served) = group(&decoder, 2, |leader| {
        let mut cache = leader.context(KvDtype::F32);
        prefill(leader, &mut cache, &tokens, 512, &|| true, &mut |_| {}).map(|_| ())
    });
    let error = led.unwrap_err();
    assert_eq!(error.kind(), Kind::Compute, "the leader is told the reason");
    assert!(error.to_string().contains("rank 1 of 2: "), "{error}");
    assert!(
        error.to_string().contains("gave NaN or infinity"),
        "{error}"
    );
    let cause = served[0].as_ref().unwrap_err();
    assert_eq!(cause.kind(), Kind::Compute);
    assert!(
        cause.to_string().contains("gave NaN or infinity"),
        "{cause}"
    );
}

#[test]
fn an_id_outside_the_vocabulary_is_refused_before_any_command_is_sent() {
    let decoder = roomy();
    let (led, served) = group(&decoder, 2, |leader| {
        let mut cache = leader.context(KvDtype::F32);
        let bad = [Token::Text(1 << 30)];
        let refused = prefill(leader, &mut cache, &bad, 1, &|| true, &mut |_| {}).map(|_| ());
        let good = prefill(
            leader,
            &mut cache,
            &some_tokens(5),
            1,
            &|| true,
            &mut |_| {},
        )
        .map(|_| ());
        (refused, good)
    });
    assert_eq!(led.0.unwrap_err().kind(), Kind::BadInput);
    assert!(led.1.is_ok() && served[0].is_ok());
}

fn error_of<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error,
    }
}

#[test]
fn a_rank_that_ended_or_is_silent_is_named() {
    let mut ends = InProcess::connect(3, Duration::from_millis(50));
    let silent = error_of(ends[0].receive(2));
    assert_eq!(silent.to_string(), "rank 2 of 3 has been silent for 0.05 s");
    drop(ends.remove(1));
    let gone = error_of(ends[0].receive(1));
    assert_eq!(
        gone.to_string(),
        "rank 1 of 3 has ended before the work was done"
    );
    assert_eq!(
        error_of(ends[0].send(1, Message::default())).kind(),
        Kind::Network
    );
}

#[test]
fn a_rank_that_does_not_receive_is_named_by_the_sender() {
    let mut ends = InProcess::connect(2, Duration::from_millis(50));
    let full = (0..100).find_map(|_| ends[0].send(1, Message::default()).err());
    assert_eq!(
        full.unwrap().to_string(),
        "rank 1 of 2 has been silent for 0.05 s"
    );
}
