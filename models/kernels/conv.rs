//! Convolution of pictures `[h, w, channels]` (NHWC) with kernels `[kh, kw, in, out]` (HWIO).
//!
//! The fast body is an implicit matrix product: a tile of output pixels by a
//! panel of output channels stays in registers while the taps and the input
//! channels are streamed. Each pixel of the tile has its own input pointer, so that
//! borders, strides and up-sampling are only a matter of where it points; a tap
//! that falls into the padding points at zeros. The order of the additions
//! does not depend on the picture's size, the thread or the batch.

use rayon::prelude::*;

use crate::{cpu::Level, lanes::Lanes};

/// Output channels that are adjacent in packed weights.
const PANEL: usize = 32;

/// Output pixels of one task: the panel's weights are read once for all of them.
const TASK_PIXELS: usize = 2048;

/// How output pixels map to input pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampling {
    /// Stride 1, zeros on every side: the output has the size of the input.
    Same,
    /// Stride 2, zeros at the bottom and on the right only (flax `Downsample` of `lwm/vqgan.py`).
    Halve,
    /// The input is doubled by nearest neighbour first, then as [`Resampling::Same`].
    Double,
    /// Steps of `stride`, `padding` zeros on every side (PyTorch's `Conv2d`).
    Strided {
        /// Pixels from one output to the next.
        stride: usize,
        /// Zeros before the first pixel and behind the last.
        padding: usize,
    },
}

/// The value that the first product is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The bias alone; the output's old content is ignored.
    Bias,
    /// The output's old content (a residual) and the bias.
    Residual,
}

/// Weights of one convolution, packed for the fast body.
pub struct Kernel {
    /// `[panels, kh, kw, in, PANEL]`, zeros beyond the last output channel.
    packed: Vec<f32>,
    /// `[panels, PANEL]`.
    bias: Vec<f32>,
    shape: [usize; 4],
    /// What taps in the padding read: one zero per input channel.
    zeros: Vec<f32>,
}

impl Kernel {
    /// weights `[kh, kw, in, out]`, bias `[out]` → the packed kernel.
    ///
    /// # Panics
    /// When the lengths do not fit `shape`, or an extent is 0.
    pub fn pack(weights: &[f32], bias: &[f32], shape: [usize; 4]) -> Self {
        let [kh, kw, cin, cout] = shape;
        assert!(shape.iter().all(|&n| n > 0));
        assert_eq!(weights.len(), kh * kw * cin * cout);
        assert_eq!(bias.len(), cout);
        let rows = kh * kw * cin;
        let panels = cout.div_ceil(PANEL);
        let mut packed = vec![0.0; panels * rows * PANEL];
        for (i, row) in packed.chunks_exact_mut(PANEL).enumerate() {
            let (panel, k) = (i / rows, i % rows);
            let first = panel * PANEL;
            let n = PANEL.min(cout - first);
            row[..n].copy_from_slice(&weights[k * cout + first..][..n]);
        }
        let mut padded_bias = bias.to_vec();
        padded_bias.resize(panels * PANEL, 0.0);
        Self {
            packed,
            bias: padded_bias,
            shape,
            zeros: vec![0.0; cin],
        }
    }

    /// `[kh, kw, in, out]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        4 * (self.packed.len() + self.bias.len())
    }
}

impl Resampling {
    /// Output rows (columns) for `n` input rows and kernels of `taps` rows; 0 where the kernel does not fit.
    pub fn output(self, n: usize, taps: usize) -> usize {
        match self {
            Self::Same => n,
            Self::Halve => n / 2,
            Self::Double => 2 * n,
            Self::Strided { stride, padding } => match (n + 2 * padding).checked_sub(taps) {
                Some(room) => room / stride + 1,
                None => 0,
            },
        }
    }

    /// The input row (column) that tap `k` of `taps` of output row (column) `o` reads;
    /// `None` in the padding. `n` is the input's extent.
    #[inline(always)]
    pub fn input(self, o: usize, k: usize, taps: usize, n: usize) -> Option<usize> {
        match self {
            Self::Same => (o + k).checked_sub((taps - 1) / 2).filter(|&i| i < n),
            Self::Halve => Some(2 * o + k).filter(|&i| i < n),
            Self::Double => (o + k)
                .checked_sub((taps - 1) / 2)
                .filter(|&i| i < 2 * n)
                .map(|i| i / 2),
            Self::Strided { stride, padding } => {
                (stride * o + k).checked_sub(padding).filter(|&i| i < n)
            }
        }
    }
}

/// One convolution of one picture, shared by all tasks.
struct ConvJob<'a> {
    x: &'a [f32],
    height: usize,
    width: usize,
    out_width: usize,
    kernel: &'a Kernel,
    sampling: Resampling,
    start: Start,
    y: Output,
}

/// The output, of which each task writes its own pixels and channels.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: each task writes its own pixels and channels only.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// x `[h, w, in]`, kernel `[kh, kw, in, out]` → y `[oh, ow, out]`, with `oh`, `ow` from `sampling`.
///
/// Cross-correlation, as in flax: taps are not mirrored.
///
/// # Panics
/// When the lengths do not fit.
pub fn conv(
    x: &[f32],
    [height, width]: [usize; 2],
    kernel: &Kernel,
    sampling: Resampling,
    start: Start,
    y: &mut [f32],
) {
    conv_at(
        Level::current(),
        x,
        [height, width],
        kernel,
        sampling,
        start,
        y,
    );
}

fn conv_at(
    level: Level,
    x: &[f32],
    [height, width]: [usize; 2],
    kernel: &Kernel,
    sampling: Resampling,
    start: Start,
    y: &mut [f32],
) {
    let [kh, kw, cin, cout] = kernel.shape;
    let (out_height, out_width) = (sampling.output(height, kh), sampling.output(width, kw));
    let pixels = out_height * out_width;
    assert_eq!(x.len(), height * width * cin);
    assert_eq!(y.len(), pixels * cout);
    let job = ConvJob {
        x,
        height,
        width,
        out_width,
        kernel,
        sampling,
        start,
        y: Output(y.as_mut_ptr()),
    };
    let bands = pixels.div_ceil(TASK_PIXELS);
    let panels = cout.div_ceil(PANEL);
    // Panels outermost: tasks that run one after another share a panel's weights.
    (0..panels * bands).into_par_iter().for_each(|task| {
        let (panel, band) = (task / bands, task % bands);
        let first = band * TASK_PIXELS;
        let last = pixels.min(first + TASK_PIXELS);
        job.run(level, panel, first, last);
    });
}

impl ConvJob<'_> {
    /// Computes output pixels `first..last` of the channels of `panel`.
    fn run(&self, level: Level, panel: usize, first: usize, last: usize) {
        match level.min(Level::detected()) {
            // SAFETY: the level is at most what the processor was found to have.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => unsafe { x86::avx512(self, panel, first, last) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::avx2(self, panel, first, last) },
            // SAFETY: plain Rust runs everywhere.
            _ => unsafe { self.body::<[f32; 4], 2>(panel, first, last) },
        }
    }

    /// # Safety
    /// The processor must have the instructions of `V`.
    #[inline(always)]
    unsafe fn body<V: Lanes, const P: usize>(&self, panel: usize, first: usize, last: usize) {
        let [kh, _, _, cout] = self.kernel.shape;
        for lane in (0..PANEL).step_by(2 * V::N) {
            let channel = panel * PANEL + lane;
            if channel >= cout {
                break;
            }
            for ky in 0..kh {
                for pixel in (first..last).step_by(P) {
                    // SAFETY: the caller's promise; pixel and channel lie inside the output.
                    unsafe { self.tile::<V, P>(ky, pixel, last.min(pixel + P), panel, lane) };
                }
            }
        }
    }

    /// Adds kernel row `ky` to output pixels `first..last` (at most `P`) and channels
    /// `lane..lane + 2 V::N` of `panel`.
    ///
    /// # Safety
    /// The processor must have the instructions of `V`; pixels and the first channel lie inside the output.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const P: usize>(
        &self,
        ky: usize,
        first: usize,
        last: usize,
        panel: usize,
        lane: usize,
    ) {
        let [kh, kw, cin, _] = self.kernel.shape;
        // SAFETY: `first..last` and the channel lie inside the output, the caller's promise.
        let mut acc = unsafe { self.load::<V, P>(ky, first, last, panel * PANEL + lane) };
        for kx in 0..kw {
            let pointers = self.pointers::<P>(ky, kx, first, last);
            let row = ((panel * kh + ky) * kw + kx) * cin * PANEL + lane;
            let weights = self.kernel.packed[row..].as_ptr();
            // SAFETY: every pointer is followed by `cin` floats of the input or the zeros, and
            // `weights` by `cin - 1` rows of `PANEL` and the lanes of the last one.
            unsafe { accumulate::<V, P>(&mut acc, &pointers, weights, cin) };
        }
        // SAFETY: as for the load.
        unsafe { self.store::<V, P>(&acc, first, last, panel * PANEL + lane) };
    }

    /// The input of tap (`ky`, `kx`) for each output pixel; zeros in the padding and past `last`.
    #[inline(always)]
    fn pointers<const P: usize>(
        &self,
        ky: usize,
        kx: usize,
        first: usize,
        last: usize,
    ) -> [*const f32; P] {
        let [kh, kw, cin, _] = self.kernel.shape;
        let mut pointers = [self.kernel.zeros.as_ptr(); P];
        let (mut oy, mut ox) = (first / self.out_width, first % self.out_width);
        for pointer in pointers.iter_mut().take(last - first) {
            let iy = self.sampling.input(oy, ky, kh, self.height);
            let ix = self.sampling.input(ox, kx, kw, self.width);
            if let (Some(iy), Some(ix)) = (iy, ix) {
                *pointer = self.x[(iy * self.width + ix) * cin..][..cin].as_ptr();
            }
            ox += 1;
            if ox == self.out_width {
                (oy, ox) = (oy + 1, 0);
            }
        }
        pointers
    }

    /// # Safety
    /// As [`ConvJob::tile`].
    #[inline(always)]
    unsafe fn load<V: Lanes, const P: usize>(
        &self,
        ky: usize,
        first: usize,
        last: usize,
        channel: usize,
    ) -> [[V; 2]; P] {
        // SAFETY: the bias is padded to whole panels; the processor has `V`.
        let bias = unsafe {
            let bias = self.kernel.bias[channel..][..2 * V::N].as_ptr();
            [V::load(bias), V::load(bias.add(V::N))]
        };
        let fresh = ky == 0;
        let mut acc = [bias; P];
        if fresh && self.start == Start::Bias {
            return acc;
        }
        for (pixel, acc) in (first..last).zip(acc.iter_mut()) {
            // SAFETY: pixel and channel lie inside the output; `read` stays inside its row.
            let old = unsafe { self.read::<V>(pixel, channel) };
            *acc = old;
            if fresh {
                // SAFETY: the processor has `V`.
                *acc = unsafe { [old[0].add(bias[0]), old[1].add(bias[1])] };
            }
        }
        acc
    }

    /// # Safety
    /// As [`ConvJob::tile`].
    #[inline(always)]
    unsafe fn read<V: Lanes>(&self, pixel: usize, channel: usize) -> [V; 2] {
        let cout = self.kernel.shape[3];
        let lanes = (2 * V::N).min(cout - channel);
        let mut edge = [0.0_f32; PANEL];
        // SAFETY: `lanes` floats from here on lie in this pixel's row of the output, which
        // only this task touches; shorter rows go through `edge`.
        unsafe {
            let mut from = self.y.0.add(pixel * cout + channel).cast_const();
            if lanes < 2 * V::N {
                std::ptr::copy_nonoverlapping(from, edge.as_mut_ptr(), lanes);
                from = edge.as_ptr();
            }
            [V::load(from), V::load(from.add(V::N))]
        }
    }

    /// # Safety
    /// As [`ConvJob::tile`].
    #[inline(always)]
    unsafe fn store<V: Lanes, const P: usize>(
        &self,
        acc: &[[V; 2]; P],
        first: usize,
        last: usize,
        channel: usize,
    ) {
        let cout = self.kernel.shape[3];
        let lanes = (2 * V::N).min(cout - channel);
        for (pixel, acc) in (first..last).zip(acc) {
            let mut edge = [0.0_f32; PANEL];
            // SAFETY: as in `read`.
            unsafe {
                let to = self.y.0.add(pixel * cout + channel);
                let whole = lanes == 2 * V::N;
                let at = if whole { to } else { edge.as_mut_ptr() };
                acc[0].store(at);
                acc[1].store(at.add(V::N));
                if !whole {
                    std::ptr::copy_nonoverlapping(edge.as_ptr(), to, lanes);
                }
            }
        }
    }
}

/// acc `[P, 2 V::N]` += pixels `[P, n]` · weights `[n, 2 V::N]` (rows `PANEL` apart).
///
/// # Safety
/// `n` floats behind every pointer, `n` rows behind `weights`, and the instructions of `V`.
#[inline(always)]
unsafe fn accumulate<V: Lanes, const P: usize>(
    acc: &mut [[V; 2]; P],
    pixels: &[*const f32; P],
    mut weights: *const f32,
    n: usize,
) {
    let mut sums = *acc;
    for c in 0..n {
        // SAFETY: the caller's promise.
        unsafe {
            let w = [V::load(weights), V::load(weights.add(V::N))];
            for (sum, pixel) in sums.iter_mut().zip(pixels) {
                let x = V::splat(*pixel.add(c));
                sum[0] = x.times_plus(w[0], sum[0]);
                sum[1] = x.times_plus(w[1], sum[1]);
            }
            weights = weights.wrapping_add(PANEL);
        }
    }
    *acc = sums;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The bodies compiled for the vectors of x86-64.

    use std::arch::x86_64::{__m256, __m512};

    use super::ConvJob;

    /// # Safety
    /// The processor has AVX-512 F.
    #[target_feature(enable = "avx2,fma,avx512f")]
    pub(super) unsafe fn avx512(job: &ConvJob<'_>, panel: usize, first: usize, last: usize) {
        // SAFETY: the caller's promise.
        unsafe { job.body::<__m512, 8>(panel, first, last) }
    }

    /// # Safety
    /// The processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(job: &ConvJob<'_>, panel: usize, first: usize, last: usize) {
        // SAFETY: the caller's promise.
        unsafe { job.body::<__m256, 6>(panel, first, last) }
    }
}

/// Reference for [`conv`], tap by tap in f64; `weights` as in [`Kernel::pack`], `residual` as y's old content.
pub fn reference(
    x: &[f32],
    [height, width]: [usize; 2],
    weights: &[f32],
    bias: &[f32],
    [kh, kw, cin, cout]: [usize; 4],
    sampling: Resampling,
    residual: Option<&[f32]>,
) -> Vec<f64> {
    let out_width = sampling.output(width, kw);
    let mut y = Vec::new();
    for i in 0..sampling.output(height, kh) * out_width * cout {
        let (oy, ox, o) = (i / cout / out_width, i / cout % out_width, i % cout);
        let mut sum = f64::from(bias[o]) + residual.map_or(0.0, |r| f64::from(r[i]));
        for tap in 0..kh * kw {
            let iy = sampling.input(oy, tap / kw, kh, height);
            let ix = sampling.input(ox, tap % kw, kw, width);
            let (Some(iy), Some(ix)) = (iy, ix) else {
                continue;
            };
            for c in 0..cin {
                sum += f64::from(x[(iy * width + ix) * cin + c])
                    * f64::from(weights[(tap * cin + c) * cout + o]);
            }
        }
        y.push(sum);
    }
    y
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Kernel, Resampling, Start, conv, conv_at, reference};
    use crate::cpu::Level;

    /// Pseudorandom numbers in [-1, 1).
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn check(hw: [usize; 2], shape: [usize; 4], sampling: Resampling, start: Start, scale: f32) {
        let [kh, kw, cin, cout] = shape;
        let x: Vec<f32> = noise(hw[0] * hw[1] * cin, 1)
            .iter()
            .map(|v| v * scale)
            .collect();
        let weights = noise(kh * kw * cin * cout, 2);
        let bias = noise(cout, 3);
        let n = sampling.output(hw[0], kh) * sampling.output(hw[1], kw) * cout;
        let old = noise(n, 4);
        let residual = (start == Start::Residual).then_some(old.as_slice());
        let expected = reference(&x, hw, &weights, &bias, shape, sampling, residual);
        let tolerance = 1e-6 * (kh * kw * cin + 2) as f64 * f64::from(scale.max(1.0));
        for level in Level::available() {
            let mut y = old.clone();
            conv_at(
                level,
                &x,
                hw,
                &Kernel::pack(&weights, &bias, shape),
                sampling,
                start,
                &mut y,
            );
            for (i, (&got, &want)) in y.iter().zip(&expected).enumerate() {
                assert!(
                    (f64::from(got) - want).abs() <= tolerance,
                    "{level:?} {hw:?} {shape:?} {sampling:?} {start:?} [{i}]: got {got}, expected {want}"
                );
            }
        }
    }

    #[test]
    fn taps_outside_the_picture_read_zeros() {
        // A kernel of ones over a picture of ones counts the taps inside the picture.
        let kernel = Kernel::pack(&[1.0; 9], &[0.0], [3, 3, 1, 1]);
        let mut y = [0.0; 9];
        conv(
            &[1.0; 9],
            [3, 3],
            &kernel,
            Resampling::Same,
            Start::Bias,
            &mut y,
        );
        assert_eq!(y, [4.0, 6.0, 4.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0]);
    }

    #[test]
    fn halving_pads_the_bottom_and_the_right_only() {
        let kernel = Kernel::pack(&[1.0; 9], &[0.0], [3, 3, 1, 1]);
        let mut y = [0.0; 4];
        conv(
            &[1.0; 16],
            [4, 4],
            &kernel,
            Resampling::Halve,
            Start::Bias,
            &mut y,
        );
        assert_eq!(y, [9.0, 6.0, 6.0, 4.0]);
    }

    #[test]
    fn doubling_repeats_each_pixel_before_the_taps() {
        let kernel = Kernel::pack(&[2.0], &[0.5], [1, 1, 1, 1]);
        let mut y = [0.0; 8];
        conv(
            &[1.0, 2.0],
            [1, 2],
            &kernel,
            Resampling::Double,
            Start::Bias,
            &mut y,
        );
        assert_eq!(y, [2.5, 2.5, 4.5, 4.5, 2.5, 2.5, 4.5, 4.5]);
    }

    #[test]
    fn strides_count_the_padding_on_both_sides() {
        // Columns 1 to 5 between two zeros, a pair at every second; the line lies between two of zeros.
        let kernel = Kernel::pack(&[1.0, 10.0], &[0.0], [1, 2, 1, 1]);
        let strided = Resampling::Strided {
            stride: 2,
            padding: 2,
        };
        assert_eq!((strided.output(5, 2), strided.output(1, 1)), (4, 3));
        let mut y = [7.0; 12];
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        conv(&x, [1, 5], &kernel, strided, Start::Bias, &mut y);
        assert_eq!(y[..4], [0.0; 4]);
        assert_eq!(y[4..8], [0.0, 21.0, 43.0, 5.0]);
        assert_eq!(y[8..], [0.0; 4]);
        let none = Resampling::Strided {
            stride: 1,
            padding: 0,
        };
        assert_eq!(none.output(2, 3), 0);
    }

    #[test]
    fn every_sampling_and_ragged_size_agrees_with_the_reference() {
        for sampling in [Resampling::Same, Resampling::Halve, Resampling::Double] {
            for start in [Start::Bias, Start::Residual] {
                check([6, 10], [3, 3, 5, 33], sampling, start, 1.0);
                check([2, 2], [3, 3, 32, 64], sampling, start, 1.0);
            }
        }
        check([1, 1], [3, 3, 3, 3], Resampling::Same, Start::Bias, 1.0);
        check([48, 50], [1, 1, 24, 16], Resampling::Same, Start::Bias, 1.0);
        for (stride, padding) in [(1, 0), (2, 3), (4, 2), (3, 1)] {
            let strided = Resampling::Strided { stride, padding };
            check([13, 21], [7, 7, 3, 40], strided, Start::Bias, 1.0);
            check([9, 8], [2, 5, 4, 8], strided, Start::Residual, 1.0);
        }
    }

    #[test]
    fn large_values_lose_only_rounding() {
        check(
            [7, 9],
            [3, 3, 17, 40],
            Resampling::Same,
            Start::Residual,
            1e15,
        );
    }

    #[test]
    fn an_infinite_pixel_affects_only_its_neighbours() {
        let mut x = vec![0.0; 5 * 5];
        x[0] = f32::INFINITY;
        let kernel = Kernel::pack(&[1.0; 9], &[0.0], [3, 3, 1, 1]);
        let mut y = vec![0.0; 25];
        conv(&x, [5, 5], &kernel, Resampling::Same, Start::Bias, &mut y);
        let infinite: Vec<usize> = (0..25).filter(|&i| y[i].is_infinite()).collect();
        assert_eq!(infinite, [0, 1, 5, 6]);
        assert!((0..25).all(|i| infinite.contains(&i) || y[i] == 0.0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_shape_agrees_with_the_reference(
            h in 1..9_usize, w in 1..20_usize, cin in 1..20_usize, cout in 1..70_usize,
            taps in prop::sample::select(vec![1_usize, 3]), sampling in 0..3, residual: bool,
        ) {
            let sampling = [Resampling::Same, Resampling::Halve, Resampling::Double][sampling as usize];
            let start = if residual { Start::Residual } else { Start::Bias };
            check([h, w], [taps, taps, cin, cout], sampling, start, 1.0);
        }
    }
}
