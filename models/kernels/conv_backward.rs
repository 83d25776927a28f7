//! The backward pass of a convolution: gradients of its picture, kernel and bias.
//!
//! The picture's gradient is a convolution again. With an odd number of taps and stride 1 it is
//! the forward one over the output's gradient, with the kernel mirrored; otherwise that gradient is
//! multiplied by all taps at once, and each product is added to the pixel that its tap read.
//! The kernel's gradient is, tap by tap, the product of the shifted picture and the output's
//! gradient: a tile of it stays in registers while pixels are streamed. Every sum has a fixed order,
//! whatever the number of threads.

use rayon::prelude::*;

use crate::{
    conv::{Kernel, Resampling, Start, conv},
    cpu::Level,
    lanes::Lanes,
};

/// Output channels of the kernel's gradient are padded to a multiple of this.
const COLUMNS: usize = 32;

/// Pixels streamed past a tile in registers: those of both pictures fit the L1 cache.
const RUN_PIXELS: usize = 128;

/// How the picture's gradient is computed.
#[derive(Clone, Copy)]
enum Way {
    /// The mirrored kernel over the output's gradient; for a doubled picture four pixels are then added to one.
    Mirrored,
    /// The product of each output's gradient with all taps, added tap by tap.
    Scattered,
}

/// Weights of one convolution, packed for the backward pass.
pub struct BackKernel {
    product: Kernel,
    shape: [usize; 4],
    sampling: Resampling,
    way: Way,
}

impl BackKernel {
    /// weights `[kh, kw, in, out]` of a convolution with `sampling` → the packed kernel.
    ///
    /// # Panics
    /// When the length does not fit `shape`, or an extent is 0.
    pub fn pack(weights: &[f32], shape: [usize; 4], sampling: Resampling) -> Self {
        let [kh, kw, cin, cout] = shape;
        assert_eq!(weights.len(), kh * kw * cin * cout);
        let is_odd = kh % 2 == 1 && kw % 2 == 1;
        let way = match sampling {
            Resampling::Same | Resampling::Double if is_odd => Way::Mirrored,
            _ => Way::Scattered,
        };
        let product = match way {
            Way::Mirrored => {
                let taps = weights.chunks_exact(cin * cout).rev();
                let turned: Vec<f32> = taps.flat_map(|tap| turned(tap, cout)).collect();
                Kernel::pack(&turned, &vec![0.0; cin], [kh, kw, cout, cin])
            }
            Way::Scattered => {
                let rows = kh * kw * cin;
                Kernel::pack(&turned(weights, cout), &vec![0.0; rows], [1, 1, cout, rows])
            }
        };
        Self {
            product,
            shape,
            sampling,
            way,
        }
    }
}

/// `[rows, columns]` → `[columns, rows]`.
fn turned(matrix: &[f32], columns: usize) -> Vec<f32> {
    let column = |i| matrix[i..].iter().step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}

/// dy `[oh, ow, out]` → dx `[h, w, in]`; adds to dx with [`Start::Residual`].
///
/// # Panics
/// When the lengths do not fit.
pub fn input_gradient(
    dy: &[f32],
    [height, width]: [usize; 2],
    kernel: &BackKernel,
    start: Start,
    dx: &mut [f32],
) {
    let [kh, kw, cin, cout] = kernel.shape;
    let out = [
        kernel.sampling.output(height, kh),
        kernel.sampling.output(width, kw),
    ];
    assert_eq!(dy.len(), out[0] * out[1] * cout);
    assert_eq!(dx.len(), height * width * cin);
    let one_to_one = kernel.sampling == Resampling::Same;
    match kernel.way {
        Way::Mirrored if one_to_one => {
            conv(dy, out, &kernel.product, Resampling::Same, start, dx);
            return;
        }
        _ if start == Start::Bias => dx.fill(0.0),
        _ => {}
    }
    let product = &kernel.product;
    let mut products = vec![0.0; out[0] * out[1] * product.shape()[3]];
    conv(
        dy,
        out,
        product,
        Resampling::Same,
        Start::Bias,
        &mut products,
    );
    match kernel.way {
        Way::Mirrored => add_quarters(&products, width, cin, dx),
        Way::Scattered => add_taps(&products, [height, width], kernel, dx),
    }
}

/// doubled `[2h, 2w, in]` → dx `[h, w, in]` += the four pixels of each.
fn add_quarters(doubled: &[f32], width: usize, cin: usize, dx: &mut [f32]) {
    let rows = dx.par_chunks_mut(width * cin);
    let pairs = doubled.par_chunks(4 * width * cin);
    rows.zip(pairs).for_each(|(row, pair)| {
        for line in pair.chunks_exact(2 * width * cin) {
            for (dx, two) in row.chunks_exact_mut(cin).zip(line.chunks_exact(2 * cin)) {
                let (left, right) = two.split_at(cin);
                for ((dx, left), right) in dx.iter_mut().zip(left).zip(right) {
                    *dx += left + right;
                }
            }
        }
    });
}

/// products `[oh, ow, kh, kw, in]` → dx `[h, w, in]` += each product at the pixel that its tap read.
fn add_taps(products: &[f32], [height, width]: [usize; 2], kernel: &BackKernel, dx: &mut [f32]) {
    let ([kh, kw, cin, _], sampling) = (kernel.shape, kernel.sampling);
    let out_width = sampling.output(width, kw);
    for (i, product) in products.chunks_exact(cin).enumerate() {
        let (pixel, ky, kx) = (i / (kh * kw), i / kw % kh, i % kw);
        let iy = sampling.input(pixel / out_width, ky, kh, height);
        let ix = sampling.input(pixel % out_width, kx, kw, width);
        if let (Some(iy), Some(ix)) = (iy, ix) {
            let dx = &mut dx[(iy * width + ix) * cin..][..cin];
            dx.iter_mut().zip(product).for_each(|(dx, p)| *dx += p);
        }
    }
}

/// x `[h, w, in]`, dy `[oh, ow, out]` → adds to dw `[kh, kw, in, out]` and db `[out]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn weight_gradient(
    x: &[f32],
    size: [usize; 2],
    dy: &[f32],
    shape: [usize; 4],
    sampling: Resampling,
    [dw, db]: [&mut [f32]; 2],
) {
    weight_gradient_at(Level::current(), x, size, dy, shape, sampling, dw);
    assert_eq!(db.len(), shape[3]);
    for pixel in dy.chunks_exact(db.len()) {
        db.iter_mut().zip(pixel).for_each(|(db, dy)| *db += dy);
    }
}

fn weight_gradient_at(
    level: Level,
    x: &[f32],
    [height, width]: [usize; 2],
    dy: &[f32],
    shape: [usize; 4],
    sampling: Resampling,
    dw: &mut [f32],
) {
    let [kh, kw, cin, cout] = shape;
    let out = [sampling.output(height, kh), sampling.output(width, kw)];
    assert_eq!(x.len(), height * width * cin);
    assert_eq!(dy.len(), out[0] * out[1] * cout);
    assert_eq!(dw.len(), kh * kw * cin * cout);
    let columns = cout.next_multiple_of(COLUMNS);
    let padded = match columns == cout {
        true => Vec::new(),
        false => padded(dy, cout, columns),
    };
    let job = ConvBackwardJob {
        x,
        dy: if columns == cout { dy } else { &padded },
        size: [height, width],
        out,
        shape,
        sampling,
        columns,
    };
    let taps = dw.par_chunks_mut(cin * cout).enumerate();
    taps.for_each(|(tap, dw)| job.tap(level, tap, dw));
}

/// `[rows, n]` → `[rows, columns]`, zeros at the end of each row.
fn padded(rows: &[f32], n: usize, columns: usize) -> Vec<f32> {
    let mut wide = vec![0.0; rows.len() / n * columns];
    for (wide, row) in wide.chunks_exact_mut(columns).zip(rows.chunks_exact(n)) {
        wide[..n].copy_from_slice(row);
    }
    wide
}

/// One picture and the output's gradient, shared by all tasks.
struct ConvBackwardJob<'a> {
    /// `[h, w, in]`.
    x: &'a [f32],
    /// `[oh, ow, columns]`.
    dy: &'a [f32],
    size: [usize; 2],
    out: [usize; 2],
    shape: [usize; 4],
    sampling: Resampling,
    columns: usize,
}

impl ConvBackwardJob<'_> {
    /// Adds to dw `[in, out]` of one tap.
    fn tap(&self, level: Level, tap: usize, dw: &mut [f32]) {
        let cout = self.shape[3];
        if self.columns == cout {
            return self.add(level, tap, dw);
        }
        let mut wide = vec![0.0; self.shape[2] * self.columns];
        self.add(level, tap, &mut wide);
        let rows = dw.chunks_exact_mut(cout);
        for (dw, wide) in rows.zip(wide.chunks_exact(self.columns)) {
            dw.iter_mut().zip(wide).for_each(|(dw, sum)| *dw += sum);
        }
    }

    /// Adds to dw `[in, columns]` of one tap.
    fn add(&self, level: Level, tap: usize, dw: &mut [f32]) {
        let [_, kw, ..] = self.shape;
        let columns = self.columns_seen(tap % kw);
        let rows = (RUN_PIXELS / self.out[1].max(1)).max(1);
        let mut seen = Vec::with_capacity(RUN_PIXELS);
        for first in (0..self.out[0]).step_by(rows) {
            seen.clear();
            for row in first..self.out[0].min(first + rows) {
                self.see(row, tap / kw, &columns, &mut seen);
            }
            self.add_seen(level, &seen, dw);
        }
    }

    /// Column pairs of picture and output gradient that meet at the taps of column `kx`.
    fn columns_seen(&self, kx: usize) -> Vec<[usize; 2]> {
        let (taps, width) = (self.shape[1], self.size[1]);
        let seen = |o| Some([self.sampling.input(o, kx, taps, width)?, o]);
        (0..self.out[1]).filter_map(seen).collect()
    }

    /// Offsets in x and dy of the pixels of output row `oy` that meet at a tap of row `ky`.
    fn see(&self, oy: usize, ky: usize, columns: &[[usize; 2]], seen: &mut Vec<[usize; 2]>) {
        let [kh, _, cin, _] = self.shape;
        if let Some(iy) = self.sampling.input(oy, ky, kh, self.size[0]) {
            let (x, dy) = (iy * self.size[1], oy * self.out[1]);
            let begin = |&[ix, ox]: &[usize; 2]| [(x + ix) * cin, (dy + ox) * self.columns];
            seen.extend(columns.iter().map(begin));
        }
    }

    fn add_seen(&self, level: Level, seen: &[[usize; 2]], dw: &mut [f32]) {
        match level.min(Level::detected()) {
            // SAFETY: the level is at most what the processor was found to have.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => unsafe { x86::avx512(self, seen, dw) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::avx2(self, seen, dw) },
            // SAFETY: plain Rust runs everywhere.
            _ => unsafe { self.body::<[f32; 4], 2>(seen, dw) },
        }
    }

    /// # Safety
    /// The processor must have the instructions of `V`.
    #[inline(always)]
    unsafe fn body<V: Lanes, const P: usize>(&self, seen: &[[usize; 2]], dw: &mut [f32]) {
        let cin = self.shape[2];
        let mut channel = 0;
        while channel < cin {
            let wide = cin - channel >= P;
            for column in (0..self.columns).step_by(2 * V::N) {
                // SAFETY: the caller's promise; as many channels as the tile takes are left.
                unsafe {
                    match wide {
                        true => self.tile::<V, P>(seen, channel, column, dw),
                        false => self.tile::<V, 1>(seen, channel, column, dw),
                    }
                }
            }
            channel += if wide { P } else { 1 };
        }
    }

    /// `P` channels by `2 V::N` columns.
    ///
    /// # Safety
    /// The processor must have the instructions of `V`; the tile lies inside dw.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const P: usize>(
        &self,
        seen: &[[usize; 2]],
        channel: usize,
        column: usize,
        dw: &mut [f32],
    ) {
        let to = dw[channel * self.columns + column..].as_mut_ptr();
        let (x, dy) = (self.x.as_ptr(), self.dy.as_ptr());
        // SAFETY: the caller's promise; `seen` holds begins of whole pixels of x and dy, so that
        // `P` channels and two vectors of columns lie behind each.
        unsafe {
            let mut sums = [[V::splat(0.0); 2]; P];
            for (p, sum) in sums.iter_mut().enumerate() {
                let from = to.add(p * self.columns).cast_const();
                *sum = [V::load(from), V::load(from.add(V::N))];
            }
            for &[of_x, of_dy] in seen {
                let dy = dy.add(of_dy + column);
                let dy = [V::load(dy), V::load(dy.add(V::N))];
                let x = x.add(of_x + channel);
                for (p, sum) in sums.iter_mut().enumerate() {
                    let x = V::splat(*x.add(p));
                    sum[0] = x.times_plus(dy[0], sum[0]);
                    sum[1] = x.times_plus(dy[1], sum[1]);
                }
            }
            for (p, sum) in sums.into_iter().enumerate() {
                let to = to.add(p * self.columns);
                sum[0].store(to);
                sum[1].store(to.add(V::N));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The bodies compiled for the vectors of x86-64.

    use std::arch::x86_64::{__m256, __m512};

    use super::ConvBackwardJob;

    /// # Safety
    /// The processor has AVX-512 F.
    #[target_feature(enable = "avx2,fma,avx512f")]
    pub(super) unsafe fn avx512(job: &ConvBackwardJob<'_>, seen: &[[usize; 2]], dw: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { job.body::<__m512, 8>(seen, dw) }
    }

    /// # Safety
    /// The processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(job: &ConvBackwardJob<'_>, seen: &[[usize; 2]], dw: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { job.body::<__m256, 4>(seen, dw) }
    }
}

/// Gradients of [`conv`], tap by tap in f64: dx `[h, w, in]`, dw `[kh, kw, in, out]`, db `[out]`.
pub fn reference(
    x: &[f32],
    [height, width]: [usize; 2],
    weights: &[f32],
    dy: &[f32],
    [kh, kw, cin, cout]: [usize; 4],
    sampling: Resampling,
) -> [Vec<f64>; 3] {
    let out_width = sampling.output(width, kw);
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weights.len()]);
    let mut db = vec![0.0; cout];
    for (i, &dy) in dy.iter().enumerate() {
        let (oy, ox, o) = (i / cout / out_width, i / cout % out_width, i % cout);
        let dy = f64::from(dy);
        db[o] += dy;
        for tap in 0..kh * kw {
            let iy = sampling.input(oy, tap / kw, kh, height);
            let ix = sampling.input(ox, tap % kw, kw, width);
            let (Some(iy), Some(ix)) = (iy, ix) else {
                continue;
            };
            for c in 0..cin {
                let (from, weight) = ((iy * width + ix) * cin + c, (tap * cin + c) * cout + o);
                dx[from] += dy * f64::from(weights[weight]);
                dw[weight] += dy * f64::from(x[from]);
            }
        }
    }
    [dx, dw, db]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BackKernel, input_gradient, reference, weight_gradient, weight_gradient_at};
    use crate::{
        conv::{Resampling, Start},
        cpu::Level,
    };

    /// Pseudorandom numbers in [-1, 1).
    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let number = |i: u32| {
            let mixed = (i ^ seed << 20).wrapping_mul(2_654_435_761);
            let mixed = (mixed ^ mixed >> 15).wrapping_mul(2_246_822_519);
            (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n as u32).map(number).collect()
    }

    fn assert_near(what: &str, got: &[f32], expected: &[f64], terms: usize) {
        assert_eq!(got.len(), expected.len(), "{what}");
        let tolerance = 1e-6 * (terms + 2) as f64;
        for (i, (&got, &want)) in got.iter().zip(expected).enumerate() {
            assert!(
                (f64::from(got) - want).abs() <= tolerance,
                "{what} [{i}]: got {got}, expected {want}"
            );
        }
    }

    fn check(size: [usize; 2], shape: [usize; 4], sampling: Resampling) {
        let [kh, kw, cin, cout] = shape;
        let pixels = sampling.output(size[0], kh) * sampling.output(size[1], kw);
        let x = noise(size[0] * size[1] * cin, 1);
        let weights = noise(kh * kw * cin * cout, 2);
        let dy = noise(pixels * cout, 3);
        let [dx, dw, db] = reference(&x, size, &weights, &dy, shape, sampling);
        let what = format!("{size:?} {shape:?} {sampling:?}");

        let kernel = BackKernel::pack(&weights, shape, sampling);
        let mut got = vec![f32::NAN; x.len()];
        input_gradient(&dy, size, &kernel, Start::Bias, &mut got);
        assert_near(&format!("dx {what}"), &got, &dx, 4 * kh * kw * cout);
        let mut more = vec![1.0; x.len()];
        input_gradient(&dy, size, &kernel, Start::Residual, &mut more);
        let more: Vec<f32> = more.iter().map(|x| x - 1.0).collect();
        assert_near(&format!("dx added {what}"), &more, &dx, 8 * kh * kw * cout);

        for level in Level::available() {
            let mut got = vec![0.0; dw.len()];
            weight_gradient_at(level, &x, size, &dy, shape, sampling, &mut got);
            assert_near(&format!("dw {level:?} {what}"), &got, &dw, pixels);
        }
        let (mut got, mut bias) = (vec![0.5; dw.len()], vec![0.0; cout]);
        let gradients = [&mut got[..], &mut bias[..]];
        weight_gradient(&x, size, &dy, shape, sampling, gradients);
        let got: Vec<f32> = got.iter().map(|x| x - 0.5).collect();
        assert_near(&format!("dw added {what}"), &got, &dw, 2 * pixels);
        assert_near(&format!("db {what}"), &bias, &db, pixels);
    }

    #[test]
    fn every_sampling_and_ragged_size_agrees_with_the_reference() {
        for sampling in [Resampling::Same, Resampling::Halve, Resampling::Double] {
            check([6, 10], [3, 3, 5, 33], sampling);
            check([4, 4], [3, 3, 32, 64], sampling);
            check([2, 2], [1, 1, 17, 8], sampling);
        }
        for (stride, padding) in [(1, 0), (2, 1), (2, 3), (3, 1)] {
            let strided = Resampling::Strided { stride, padding };
            check([9, 12], [4, 4, 3, 40], strided);
            check([7, 6], [2, 5, 9, 1], strided);
        }
    }

    #[test]
    fn every_pixel_counts_in_pictures_of_many_runs() {
        check([30, 31], [3, 3, 9, 32], Resampling::Same);
        check([3, 200], [3, 3, 2, 3], Resampling::Same);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_shape_agrees_with_the_reference(
            h in 1..7_usize, w in 1..15_usize, cin in 1..20_usize, cout in 1..70_usize,
            taps in 1..5_usize, sampling in 0..3,
        ) {
            let strided = Resampling::Strided { stride: 2, padding: 2 };
            let sampling = [Resampling::Same, Resampling::Double, strided][sampling as usize];
            check([h, w], [taps, taps, cin, cout], sampling);
        }
    }
}
