//! Rows times a weight matrix that may be bf16 and lie in a mapped file.
//!
//! Many rows (prefill): blocks of weight rows are widened to f32 in a bounded
//! scratch per thread and multiplied in registers. Few rows (generation): each
//! weight row is streamed once and widened in registers, so the speed is that
//! of memory.

use rayon::prelude::*;

use crate::{
    cpu::{Level, per_level},
    multiply::Product,
    weight_element::WeightElement,
};

/// Up to this many rows the weights are streamed; above, they are widened.
const FEW_ROWS: usize = 8;

/// x `[d]`, records `[n, skip + d]` → y `[n]`: the dot product of x and the elements of
/// each record after its first `skip`. On this thread.
///
/// # Panics
/// When the lengths do not fit.
pub fn dot_records<W: WeightElement>(x: &[f32], records: &[W], skip: usize, y: &mut [f32]) {
    let stride = skip + x.len();
    assert!(!x.is_empty() && records.len() == y.len() * stride);
    each_record(Level::current(), x, records, skip, y);
}

per_level! {
    fn each_record[W: WeightElement](x: &[f32], records: &[W], skip: usize, y: &mut [f32]) = each_record_body;
}

#[inline(always)]
fn each_record_body<W: WeightElement>(x: &[f32], records: &[W], skip: usize, y: &mut [f32]) {
    for (record, y) in records.chunks_exact(skip + x.len()).zip(y) {
        *y = dot(x, &record[skip..]);
    }
}

/// x `[n, in]` f32, w `[out, in]` f32 or bf16 → y `[n, out]` f32: `y = x · wᵀ`.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear<W: WeightElement>(x: &[f32], w: &[W], in_features: usize, y: &mut [f32]) {
    linear_at(Level::current(), x, w, in_features, y);
}

fn linear_at<W: WeightElement>(
    level: Level,
    x: &[f32],
    w: &[W],
    in_features: usize,
    y: &mut [f32],
) {
    assert!(in_features > 0 && x.len().is_multiple_of(in_features));
    assert!(w.len().is_multiple_of(in_features));
    let (n, out) = (x.len() / in_features, w.len() / in_features);
    assert_eq!(y.len(), n * out);
    if n == 0 || out == 0 {
        return;
    }
    if n <= FEW_ROWS {
        few_rows(level, x, w, in_features, y);
    } else {
        many_rows(level, x, w, in_features, y);
    }
}

/// The output, of which each thread writes its own columns.
#[derive(Clone, Copy)]
pub(crate) struct Columns(pub(crate) *mut f32);

// SAFETY: each task writes its own columns only.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    /// The columns of the output y.
    pub(crate) fn of(y: &mut [f32]) -> Self {
        Self(y.as_mut_ptr())
    }

    /// The output from column `column` on.
    ///
    /// # Safety
    /// `column` lies inside the first row of the output.
    pub(crate) unsafe fn from(self, column: usize) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { self.0.add(column) })
    }
}

fn few_rows<W: WeightElement>(level: Level, x: &[f32], w: &[W], in_features: usize, y: &mut [f32]) {
    let out = w.len() / in_features;
    // Every output is a dot product of its own: no split changes it.
    let block = out.div_ceil(4 * rayon::current_num_threads());
    let y = Columns::of(y);
    w.par_chunks(block * in_features)
        .enumerate()
        .for_each(|(task, rows)| {
            // SAFETY: the task's first column is below `out`, and its columns are its own.
            let y = unsafe { y.from(task * block) };
            stream(level, x, rows, in_features, y, out);
        });
}

per_level! {
    /// x `[n, d]`, w `[m, d]` → `y[i * stride + j] = x[i] · w[j]`.
    fn stream[W: WeightElement](x: &[f32], w: &[W], d: usize, y: Columns, stride: usize) = stream_body;
}

#[inline(always)]
fn stream_body<W: WeightElement>(x: &[f32], w: &[W], d: usize, y: Columns, stride: usize) {
    for (j, row) in w.chunks_exact(d).enumerate() {
        let store = |i: usize, value: f32| {
            // SAFETY: `i` counts rows of x and `j` this task's weight rows: inside the
            // output, and in a column that no other task writes.
            unsafe { *y.0.add(i * stride + j) = value };
        };
        // One row of x at a time: the weight row stays in the L1 cache, and the compiler keeps the sums of
        // one in registers, which it does not do with those of four.
        for (i, x) in x.chunks_exact(d).enumerate() {
            store(i, dot(x, row));
        }
    }
}

/// x, row `[d]` → their dot product, in 32 lanes.
#[inline(always)]
fn dot<W: WeightElement>(x: &[f32], row: &[W]) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0f32; LANES];
    let whole = row.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let numbers = x[at..at + LANES].iter().zip(&row[at..at + LANES]);
        for (sum, (&x, &w)) in sums.iter_mut().zip(numbers) {
            *sum = x.mul_add(w.widen(), *sum);
        }
    }
    let rest = x[whole..].iter().zip(&row[whole..]);
    let rest: f32 = rest.map(|(&x, &w)| x * w.widen()).sum();
    sums.iter().sum::<f32>() + rest
}

/// Weight rows of a task: two panels of the widest vectors.
const TASK_ROWS: usize = 64;

fn many_rows<W: WeightElement>(
    level: Level,
    x: &[f32],
    w: &[W],
    in_features: usize,
    y: &mut [f32],
) {
    let stride = w.len() / in_features;
    let y = Columns::of(y);
    w.par_chunks(TASK_ROWS * in_features)
        .enumerate()
        .for_each(|(task, w)| {
            // SAFETY: the task's first column is below `stride`, and its columns are its own.
            let Columns(y) = unsafe { y.from(task * TASK_ROWS) };
            let product = Product {
                x,
                w,
                d: in_features,
                y,
                stride,
            };
            // SAFETY: as above.
            unsafe { product.run(level) };
        });
}

/// Reference for [`linear`], in f64.
pub fn reference<W: WeightElement>(x: &[f32], w: &[W], in_features: usize) -> Vec<f64> {
    let dot = |x: &[f32], w: &[W]| {
        x.iter()
            .zip(w)
            .map(|(&x, &w)| f64::from(x) * f64::from(w.widen()))
            .sum()
    };
    x.chunks(in_features)
        .flat_map(|x| w.chunks(in_features).map(move |w| dot(x, w)))
        .collect()
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::{Level, WeightElement, each_record, linear_at, reference};

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn check<W: WeightElement>(x: &[f32], w: &[W], in_features: usize) {
        let expected = reference(x, w, in_features);
        for level in Level::available() {
            let mut y = vec![f32::NAN; expected.len()];
            linear_at(level, x, w, in_features, &mut y);
            for (i, (&got, &e)) in y.iter().zip(&expected).enumerate() {
                let error = (f64::from(got) - e).abs();
                assert!(
                    error <= 3e-6 * (in_features as f64).sqrt(),
                    "{level:?} in={in_features} [{i}]: got {got}, expected {e}"
                );
            }
        }
    }

    #[test]
    fn every_shape_and_level_agrees_with_the_reference() {
        for (n, inputs, out) in [
            (0, 3, 4),
            (1, 1, 1),
            (1, 33, 7),
            (3, 64, 5),
            (4, 31, 9),
            (7, 172, 64),
            (8, 128, 3),
            (9, 128, 300),
            (33, 65, 17),
            (130, 256, 520),
            (25, 1100, 67),
            (35, 1024, 32),
        ] {
            let x = numbers(n * inputs, 1);
            let w = numbers(out * inputs, 2);
            let narrow: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
            check(&x, &w, inputs);
            check(&x, &narrow, inputs);
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        for n in [1, 8, 9, 40] {
            let (inputs, out) = (1100, 517);
            let (x, w) = (numbers(n * inputs, 1), numbers(out * inputs, 2));
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let mut y = vec![f32::NAN; n * out];
                pool.unwrap()
                    .install(|| linear_at(Level::current(), &x, &w, inputs, &mut y));
                y
            };
            let alone = on(1);
            assert!(
                [2, 3, 7].into_iter().all(|threads| on(threads) == alone),
                "{n} rows"
            );
        }
    }

    #[test]
    fn records_are_multiplied_after_their_skipped_elements() {
        for (d, skip) in [(1, 12), (33, 6), (512, 12), (1152, 0)] {
            let (x, w) = (numbers(d, 1), numbers(5 * d, 2));
            let record = |w: &[f32]| {
                let head = std::iter::repeat_n(f16::NAN, skip);
                head.chain(w.iter().map(|&w| f16::from_f32(w)))
                    .collect::<Vec<_>>()
            };
            let records = w.chunks(d).flat_map(record).collect::<Vec<_>>();
            let narrow: Vec<f16> = w.iter().map(|&w| f16::from_f32(w)).collect();
            let expected = reference(&x, &narrow, d);
            for level in Level::available() {
                let mut y = [f32::NAN; 5];
                each_record(level, &x, &records, skip, &mut y);
                for (&got, &e) in y.iter().zip(&expected) {
                    let error = (f64::from(got) - e).abs();
                    assert!(
                        error <= 3e-6 * (d as f64).sqrt(),
                        "{level:?} {d}: {got} {e}"
                    );
                }
            }
        }
    }
}
