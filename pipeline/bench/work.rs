//! A case ready to run: its inputs, and a closure that runs it once.

use std::{hint::black_box, sync::Arc};

use half::bf16;
use longreel_kernels::{
    attend::{BLOCK_TOKENS, KvDtype, KvShape, PackedBlock},
    conv::{Kernel, Resampling, Start, conv},
    group_norm::group_norm_silu,
    linear::linear,
    rms_norm::rms_norm,
    rope::{Pairs, rotate},
    swiglu::swiglu,
    weight_element::WeightElement,
};
use longreel_models::attention::{
    blockwise::{Heads, Queries, attend},
    kv_cache::PositionedBlock,
    mask::Mask,
};
use rayon::prelude::*;

use crate::{
    bench::case::{Case, Op, Shape},
    error::{Error, Kind, Result},
};

/// A case ready to run.
pub struct Work {
    /// Runs the case once.
    pub run: Box<dyn FnMut() + Send>,
    /// Bytes of arguments and results, each counted once.
    pub bytes: f64,
}

/// Prepares the inputs of `case`.
///
/// # Errors
/// `TooLarge` when there is no memory for the cache.
pub fn prepare(case: &Case) -> Result<Work> {
    match (case.op, case.shape) {
        (
            Op::Attend | Op::Decode,
            Shape::Attention {
                s,
                d,
                heads,
                kv_heads,
            },
        ) => {
            let heads = Heads {
                query: heads,
                key_value: kv_heads,
                d,
            };
            let n = if case.op == Op::Attend { s } else { 1 };
            attention(heads, case.dtype, n, s)
        }
        (
            _,
            Shape::Matrix {
                rows,
                inputs,
                outputs,
            },
        ) => Ok(match case.dtype {
            KvDtype::Bf16 => matrix(
                [rows, inputs, outputs],
                narrow(numbers(inputs * outputs, 2)),
            ),
            _ => matrix([rows, inputs, outputs], numbers(inputs * outputs, 2)),
        }),
        (Op::Conv, Shape::Picture { side, channels }) => Ok(convolution(side, channels)),
        (_, Shape::Picture { side, channels }) => Ok(normalization(side, channels)),
        (op, Shape::Tokens { rows, channels }) => Ok(tokens(op, rows, channels)),
        (op, shape) => Err(Error::new(
            Kind::Internal,
            format!("{} has no shape {shape}", op.name()),
        )),
    }
}

/// `n` numbers of an approximately normal distribution, determined by `seed`.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // The sum of four uniform bytes has mean 510 and standard deviation 147.8.
        let [a, b, c, d, ..] = state.to_le_bytes().map(f32::from);
        (a + b + c + d - 510.0) / 147.8
    };
    (0..n).map(|_| next()).collect()
}

fn narrow(numbers: Vec<f32>) -> Vec<bf16> {
    numbers.into_iter().map(bf16::from_f32).collect()
}

/// Attention of the last `n` of `s` tokens to themselves and all before them.
fn attention(heads: Heads, dtype: KvDtype, n: usize, s: usize) -> Result<Work> {
    let shape = KvShape {
        kv_heads: heads.key_value,
        d: heads.d,
        dtype,
    };
    let starts: Vec<usize> = (0..s).step_by(BLOCK_TOKENS).collect();
    let blocks = starts.into_par_iter().map(|start| block(shape, start, s));
    let keys = blocks
        .collect::<Option<Vec<PositionedBlock>>>()
        .ok_or_else(|| {
            Error::new(
                Kind::TooLarge,
                format!("no memory for a cache of {s} tokens"),
            )
        })?;
    let q = numbers(n * heads.query * heads.d, 1);
    let moved = keys.len() * shape.block_bytes() + 2 * 4 * q.len();
    let places = s - n..s;
    let run = move || {
        let runs = std::slice::from_ref(&places);
        let queries = Queries { q: &q, runs };
        black_box(attend(queries, heads, &keys, &Mask::CAUSAL));
    };
    Ok(Work {
        run: Box::new(run),
        bytes: moved as f64,
    })
}

/// Keys and values of the tokens `start..end`.
fn block(shape: KvShape, start: usize, end: usize) -> Option<PositionedBlock> {
    let mut block = PackedBlock::try_new(shape)?;
    let len = (end - start).min(BLOCK_TOKENS);
    let n = len * shape.kv_heads * shape.d;
    let seed = 2 * start as u64;
    block.write(0, &numbers(n, seed + 2), &numbers(n, seed + 3));
    Some(PositionedBlock {
        start,
        len,
        block: Arc::new(block),
    })
}

fn matrix<W: WeightElement>([rows, inputs, outputs]: [usize; 3], weights: Vec<W>) -> Work {
    let x = numbers(rows * inputs, 1);
    let mut y = vec![0.0; rows * outputs];
    let bytes = size_of_val(weights.as_slice()) + 4 * (x.len() + y.len());
    Work {
        run: Box::new(move || linear(&x, &weights, inputs, black_box(&mut y))),
        bytes: bytes as f64,
    }
}

fn convolution(side: usize, channels: usize) -> Work {
    let weights = numbers(9 * channels * channels, 2);
    let kernel = Kernel::pack(&weights, &vec![0.0; channels], [3, 3, channels, channels]);
    let x = numbers(side * side * channels, 1);
    let mut y = vec![0.0; x.len()];
    let bytes = kernel.bytes() + 4 * (x.len() + y.len());
    let run = move || {
        let y = black_box(&mut y);
        conv(&x, [side, side], &kernel, Resampling::Same, Start::Bias, y);
    };
    Work {
        run: Box::new(run),
        bytes: bytes as f64,
    }
}

fn normalization(side: usize, channels: usize) -> Work {
    let x = numbers(side * side * channels, 1);
    let mut y = vec![0.0; x.len()];
    let (scale, bias) = (vec![1.0; channels], vec![0.0; channels]);
    Work {
        bytes: 4.0 * (x.len() + y.len()) as f64,
        run: Box::new(move || group_norm_silu(&x, &scale, &bias, black_box(&mut y))),
    }
}

/// Token-wise operations.
fn tokens(op: Op, rows: usize, channels: usize) -> Work {
    const HALF: usize = 64;
    let (mut x, other) = (numbers(rows * channels, 1), numbers(rows * channels, 2));
    let moved = 4 * rows * channels;
    match op {
        Op::RmsNorm => {
            let weight = vec![1.0; channels];
            Work {
                run: Box::new(move || rms_norm(&other, &weight, 1e-6, black_box(&mut x))),
                bytes: 2.0 * moved as f64,
            }
        }
        Op::Rope => {
            let (cos, sin) = (vec![0.6; rows * HALF], vec![0.8; rows * HALF]);
            let heads = channels / (2 * HALF);
            let run = move || rotate(black_box(&mut x), heads, &cos, &sin, HALF, Pairs::Adjacent);
            Work {
                run: Box::new(run),
                bytes: (2 * moved + 8 * rows * HALF) as f64,
            }
        }
        _ => {
            // The gate is restored before each run: applied repeatedly, it would underflow to denormals, which are slow.
            let gate = x.clone();
            let run = move || {
                x.copy_from_slice(&gate);
                swiglu(black_box(&mut x), &other);
            };
            Work {
                run: Box::new(run),
                bytes: 5.0 * moved as f64,
            }
        }
    }
}
