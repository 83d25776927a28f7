//! Every body of the attention kernel against the slow reference: operation by
//! level by element type by shape by extreme values, compared and timed (the idea
//! of dav1d's checkasm).
//!
//! The reference sees the keys and values as they were stored, so the error is
//! that of the arithmetic alone.

use std::time::Instant;

use crate::{
    attend::{
        Accumulator, BLOCK_TOKENS, KvDtype, KvShape, MASK_WORDS, PackedBlock, Visible, reference,
    },
    cpu::Level,
};

/// The distribution of a case's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Between −2 and 2.
    Usual,
    /// Scores in the thousands: one key takes all the weight.
    Large,
    /// So small that products vanish.
    Tiny,
    /// Zeros: every key weighs the same.
    Zero,
    /// One channel of one key is a hundred times the others.
    Outlier,
    /// One channel of one query is NaN.
    NotANumber,
}

/// Which keys the rows of a case attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskKind {
    /// Every key.
    All,
    /// The keys up to the row's own index; the last row attends to all.
    Causal,
    /// Every third key, and every fifth row none.
    Holes,
}

/// One comparison.
#[derive(Debug, Clone, Copy)]
pub struct CheckCase {
    /// Element type of keys and values.
    pub dtype: KvDtype,
    /// Queries.
    pub rows: usize,
    /// Keys, in as many blocks as it takes.
    pub tokens: usize,
    /// Channels.
    pub d: usize,
    /// The distribution of the numbers.
    pub values: Values,
    /// Which keys rows attend to.
    pub sight: MaskKind,
}

/// Error and time of one kernel on one case.
#[derive(Debug, Clone, Copy)]
pub struct CheckOutcome {
    /// Largest error of outputs, over the largest value, and of log-sum-exps; infinite
    /// where one is NaN and the other is not.
    pub error: f64,
    /// The largest allowed error.
    pub tolerance: f64,
    /// Nanoseconds of one pass over all blocks, the fastest of several runs.
    pub nanoseconds: f64,
}

/// Every case: all element types, head dimensions 32 to 256 and odd ones, whole and cut blocks,
/// every tile height, every distribution and mask.
pub fn cases() -> Vec<CheckCase> {
    let shapes = [
        (1, 1, 2),
        (1, 513, 128),
        (3, 17, 80),
        (8, 256, 32),
        (13, 300, 64),
        (24, 256, 128),
        (27, 100, 36),
        (40, 520, 256),
    ];
    let mut cases = Vec::new();
    for dtype in KvDtype::ALL {
        for (rows, tokens, d) in shapes {
            for sight in [MaskKind::All, MaskKind::Causal, MaskKind::Holes] {
                cases.push(CheckCase {
                    dtype,
                    rows,
                    tokens,
                    d,
                    values: Values::Usual,
                    sight,
                });
            }
        }
        for values in [
            Values::Large,
            Values::Tiny,
            Values::Zero,
            Values::Outlier,
            Values::NotANumber,
        ] {
            for sight in [MaskKind::All, MaskKind::Holes] {
                cases.push(CheckCase {
                    dtype,
                    rows: 14,
                    tokens: 300,
                    d: 64,
                    values,
                    sight,
                });
            }
        }
    }
    cases
}

/// Runs `case` with the instructions of `level`.
///
/// # Panics
/// When there is no memory for the blocks.
pub fn run(level: Level, case: CheckCase) -> CheckOutcome {
    let (queries, blocks) = inputs(case);
    let bits = sights(case);
    let shape = shape(case);
    let mut state = Accumulator::at_level(level, &queries, shape);
    let mut nanoseconds = f64::INFINITY;
    let mut got = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let start = Instant::now();
        for ((block, tokens), bits) in blocks.iter().zip(&bits) {
            let visible = Visible {
                bits,
                rows_per_mask: 1,
            };
            state.add(block, 0, *tokens, Some(visible), None);
        }
        nanoseconds = nanoseconds.min(start.elapsed().as_nanos() as f64);
        got = state.take();
    }
    let (error, tolerance) = (
        error(case, &queries, &blocks, &got, rounds(level, case)),
        tolerance(level, case),
    );
    CheckOutcome {
        error,
        tolerance,
        nanoseconds,
    }
}

fn shape(case: CheckCase) -> KvShape {
    KvShape {
        kv_heads: 1,
        d: case.d,
        dtype: case.dtype,
    }
}

/// Reproducible numbers between −2 and 2.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 2.0
    };
    (0..n).map(|_| next()).collect()
}

/// queries `[rows, d]`, and the blocks with the tokens that each holds.
fn inputs(case: CheckCase) -> (Vec<f32>, Vec<(PackedBlock, usize)>) {
    let factor = match case.values {
        Values::Large => 50.0,
        Values::Tiny => 1e-30,
        Values::Zero => 0.0,
        Values::Usual | Values::Outlier | Values::NotANumber => 1.0,
    };
    let scaled =
        |n: usize, seed| -> Vec<f32> { numbers(n, seed).into_iter().map(|x| x * factor).collect() };
    let mut queries = scaled(case.rows * case.d, 1);
    let mut keys = scaled(case.tokens * case.d, 2);
    let values = numbers(case.tokens * case.d, 3);
    match case.values {
        Values::Outlier => keys[case.tokens / 2 * case.d] *= 100.0,
        Values::NotANumber => queries[case.rows / 2 * case.d] = f32::NAN,
        _ => {}
    }
    let blocks = keys
        .chunks(BLOCK_TOKENS * case.d)
        .zip(values.chunks(BLOCK_TOKENS * case.d));
    let blocks = blocks.filter_map(|(keys, values)| {
        let mut block = PackedBlock::try_new(shape(case))?;
        block.write(0, keys, values);
        Some((block, keys.len() / case.d))
    });
    (queries, blocks.collect())
}

fn sees(case: CheckCase, row: usize, key: usize) -> bool {
    match case.sight {
        MaskKind::All => true,
        MaskKind::Causal => key + case.rows <= row + case.tokens.max(case.rows),
        MaskKind::Holes => !row.is_multiple_of(5) && key % 3 == 1,
    }
}

/// Per block, the bits of every row.
fn sights(case: CheckCase) -> Vec<Vec<u32>> {
    let mut blocks = Vec::new();
    for start in (0..case.tokens).step_by(BLOCK_TOKENS) {
        let mut bits = vec![0u32; case.rows * MASK_WORDS];
        for (row, bits) in bits.chunks_exact_mut(MASK_WORDS).enumerate() {
            for key in 0..BLOCK_TOKENS {
                bits[key / 32] |= u32::from(sees(case, row, start + key)) << (key % 32);
            }
        }
        blocks.push(bits);
    }
    blocks
}

fn error(
    case: CheckCase,
    queries: &[f32],
    blocks: &[(PackedBlock, usize)],
    got: &(Vec<f32>, Vec<f32>),
    rounds: bool,
) -> f64 {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for (block, tokens) in blocks {
        let mut part = vec![0.0; tokens * case.d];
        block.read_keys(0, *tokens, &mut part);
        keys.extend_from_slice(&part);
        block.read_values(0, *tokens, &mut part);
        values.extend_from_slice(&part);
    }
    let (out, lse) = reference(queries, &keys, &values, case.d, |row, key| {
        sees(case, row, key)
    });
    let most = values
        .iter()
        .fold(1e-30f64, |most, v| most.max(f64::from(v.abs())));
    let outs = got
        .0
        .iter()
        .zip(&out)
        .map(|(&got, &exact)| distance(got, exact) / most);
    let lses = got
        .1
        .iter()
        .zip(&lse)
        .map(|(&got, &exact)| distance(got, exact) / exact.abs().max(1.0));
    // A row whose LSE is NaN may have any output; and where rounding
    // decides which of two keys takes all the weight, either is right.
    let is_undecided = rounds && is_steep(case);
    let outs = outs.enumerate().map(|(i, error)| {
        let is_number = !lse[i / case.d].is_nan();
        match is_number && !is_undecided {
            true => error,
            false if is_number && !got.0[i].is_finite() => f64::INFINITY,
            false => 0.0,
        }
    });
    outs.chain(lses).fold(0.0, f64::max)
}

/// Whether scores are in the thousands.
fn is_steep(case: CheckCase) -> bool {
    matches!(case.values, Values::Large | Values::Outlier)
}

/// Whether queries and weights are rounded to the type of the keys.
fn rounds(level: Level, case: CheckCase) -> bool {
    level == Level::Avx512Bf16 && case.dtype != KvDtype::F32
}

/// The difference; 0 where both are the same infinity or both NaN, infinite where only one is.
fn distance(got: f32, exact: f64) -> f64 {
    let got = f64::from(got);
    match (got.is_finite(), exact.is_finite()) {
        (true, true) => (got - exact).abs(),
        (false, false) if got == exact || got.is_nan() && exact.is_nan() => 0.0,
        _ => f64::INFINITY,
    }
}

/// The error that rounding queries and weights to the type of the products may cause.
fn tolerance(level: Level, case: CheckCase) -> f64 {
    match case.dtype {
        KvDtype::Bf16 | KvDtype::Int4 if rounds(level, case) => 8e-3,
        KvDtype::Int8 if rounds(level, case) => 2e-2,
        _ if is_steep(case) => 2e-3,
        _ => 1e-5,
    }
}

#[cfg(test)]
mod tests {
    use super::{cases, run};
    use crate::cpu::Level;

    #[test]
    fn every_kernel_agrees_with_the_reference_on_every_case() {
        let mut wrong = Vec::new();
        for level in Level::available() {
            for case in cases() {
                let outcome = run(level, case);
                if outcome.error > outcome.tolerance || outcome.error.is_nan() {
                    wrong.push(format!("{level:?} {case:?}: {outcome:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
