//! Many rows times a few weight rows on one thread: weights are widened and transposed into
//! panels that stay in the L2 cache, and a tile of sums stays in registers while a
//! panel is streamed (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication").
//!
//! Sums run in the order of the inputs, whatever else is computed: neither the
//! number of rows nor of threads changes a bit.

use std::cell::RefCell;

use crate::{cpu::Level, lanes::Lanes, weight_element::WeightElement};

/// Inputs of one panel: 12 rows of them fill half of the L1 cache.
const BLOCK: usize = 512;

/// Maximum rows and columns of a tile.
const MAX_ROWS: usize = 12;
const MAX_COLUMNS: usize = 32;

thread_local! {
    /// `[panel, inputs of a block, columns]` of this thread: the weight rows of a task, [`BLOCK`] inputs of each.
    static PANELS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// x `[n, d]`, w `[m, d]` → `y[i * stride + j] = x[i] · w[j]`.
pub(crate) struct Product<'a, W> {
    pub x: &'a [f32],
    pub w: &'a [W],
    pub d: usize,
    pub y: *mut f32,
    pub stride: usize,
}

impl<W: WeightElement> Product<'_, W> {
    /// Computes the product with the instructions of `level`.
    ///
    /// # Safety
    /// There is room for `m` numbers at the start of each of the `n` rows of y, and no other thread uses it.
    pub(crate) unsafe fn run(&self, level: Level) {
        PANELS.with_borrow_mut(|panels| {
            let columns = (self.w.len() / self.d).next_multiple_of(MAX_COLUMNS);
            let size = columns * self.d.min(BLOCK);
            panels.resize(panels.len().max(size), 0.0);
            match level.min(Level::detected()) {
                // SAFETY: the level is at most what the processor was found to have; the caller's promise.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx512Bf16 => unsafe { x86::avx512(self, panels) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { x86::avx2(self, panels) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Level::Neon => unsafe {
                    self.body::<std::arch::aarch64::float32x4_t, 6, 4>(panels)
                },
                // SAFETY: plain Rust runs everywhere; the caller's promise.
                _ => unsafe { self.body::<[f32; 4], 4, 2>(panels) },
            }
        });
    }

    /// In tiles of `R` rows and `C` vectors of columns.
    #[inline(always)]
    unsafe fn body<V: Lanes, const R: usize, const C: usize>(&self, panels: &mut [f32]) {
        let n = self.x.len() / self.d;
        for first in (0..self.d).step_by(BLOCK) {
            let inputs = BLOCK.min(self.d - first);
            let of_panel = C * V::N * inputs;
            let weights = self.w.chunks(C * V::N * self.d);
            for (weights, panel) in weights.zip(panels.chunks_exact_mut(of_panel)) {
                // SAFETY: the caller's promise.
                unsafe { self.pack::<V>(weights, first, C * V::N, panel) };
            }
            let mut row = 0;
            while row < n {
                // SAFETY: the caller's promise, and as many rows as the tile takes are left.
                row += unsafe {
                    match n - row {
                        left if left >= R => self.tiles::<V, R, C>(row, first, panels),
                        left if left >= 8 && R > 8 => self.tiles::<V, 8, C>(row, first, panels),
                        left if left >= 4 => self.tiles::<V, 4, C>(row, first, panels),
                        2.. => self.tiles::<V, 2, C>(row, first, panels),
                        _ => self.tiles::<V, 1, C>(row, first, panels),
                    }
                };
            }
        }
    }

    /// weights `[at most columns, d]` → panel `[inputs, columns]` of the inputs from `first` on; missing rows are zeros.
    #[inline(always)]
    unsafe fn pack<V: Lanes>(
        &self,
        weights: &[W],
        first: usize,
        columns: usize,
        panel: &mut [f32],
    ) {
        let inputs = panel.len() / columns;
        for column in (0..columns).step_by(V::N) {
            for input in (0..inputs).step_by(V::N) {
                let mut square = [[0f32; 16]; 16];
                let rows = weights.chunks_exact(self.d).skip(column).take(V::N);
                for (wide, row) in square.iter_mut().zip(rows) {
                    let row = &row[first + input..first + inputs];
                    match row.get(..V::N) {
                        Some(whole) => widen(&mut wide[..V::N], whole),
                        None => widen(wide, row),
                    }
                }
                // SAFETY: the caller's promise; a line of the square is as long as the widest vector,
                // and the panel has a vector's room at `column` of each of its lines.
                unsafe {
                    let turned = transpose::<V>(square);
                    let lines = panel[input * columns..].chunks_exact_mut(columns);
                    for (line, turned) in lines.zip(&turned[..V::N]) {
                        turned.store(line[column..column + V::N].as_mut_ptr());
                    }
                }
            }
        }
    }

    /// Rows `row..row + R` times every panel → `R`.
    #[inline(always)]
    unsafe fn tiles<V: Lanes, const R: usize, const C: usize>(
        &self,
        row: usize,
        first: usize,
        panels: &[f32],
    ) -> usize {
        let (columns, m) = (C * V::N, self.w.len() / self.d);
        let inputs = BLOCK.min(self.d - first);
        let rows = self.x[row * self.d + first..].as_ptr();
        let panels = panels.chunks_exact(columns * inputs);
        for (column, panel) in (0..m).step_by(columns).zip(panels) {
            let tile = Tile {
                rows,
                d: self.d,
                panel,
                is_first: first == 0,
            };
            let left = columns.min(m - column);
            // SAFETY: the caller's promise: there is room for `left` columns in each row of y,
            // and for all of a tile in `edge`.
            unsafe {
                let y = self.y.add(row * self.stride + column);
                if left == columns {
                    tile.run::<V, R, C>(y, self.stride);
                    continue;
                }
                let mut edge = [0f32; MAX_ROWS * MAX_COLUMNS];
                for r in 0..R {
                    let to = edge[r * columns..][..left].as_mut_ptr();
                    to.copy_from_nonoverlapping(y.add(r * self.stride), left);
                }
                tile.run::<V, R, C>(edge.as_mut_ptr(), columns);
                for r in 0..R {
                    let from = edge[r * columns..][..left].as_ptr();
                    y.add(r * self.stride).copy_from_nonoverlapping(from, left);
                }
            }
        }
        R
    }
}

#[inline(always)]
fn widen<W: WeightElement>(wide: &mut [f32], row: &[W]) {
    for (wide, w) in wide.iter_mut().zip(row) {
        *wide = w.widen();
    }
}

/// The first `N` rows and columns of a square, transposed.
///
/// Interleaving a row of the first half with one of the second moves the highest bit of the
/// row index below the lowest bit of the lane index; after log2 N such steps the two indices are exchanged.
#[inline(always)]
unsafe fn transpose<V: Lanes>(square: [[f32; 16]; 16]) -> [V; 16] {
    // SAFETY: the caller's promise: the processor has the instructions of `V`.
    unsafe {
        let mut lines = [V::splat(0.0); 16];
        for (line, numbers) in lines[..V::N].iter_mut().zip(&square) {
            *line = V::load(numbers.as_ptr());
        }
        for _ in 0..V::N.ilog2() {
            let before = lines;
            for i in 0..V::N / 2 {
                let (low, high) = before[i].zip(before[i + V::N / 2]);
                (lines[2 * i], lines[2 * i + 1]) = (low, high);
            }
        }
        lines
    }
}

/// Rows, every `d` numbers, times a panel `[inputs, columns]`.
struct Tile<'a> {
    rows: *const f32,
    d: usize,
    panel: &'a [f32],
    /// Whether sums start at zero or from y's content.
    is_first: bool,
}

impl Tile<'_> {
    /// # Safety
    /// The processor has the instructions of `V`; there are `R` rows of inputs, and of y.
    #[inline(always)]
    unsafe fn run<V: Lanes, const R: usize, const C: usize>(&self, y: *mut f32, stride: usize) {
        // SAFETY: the caller's promise; the panel holds whole lines of `C` vectors.
        unsafe {
            let mut sums = [[V::splat(0.0); C]; R];
            if !self.is_first {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (c, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(y.add(r * stride + c * V::N));
                    }
                }
            }
            for (input, line) in self.panel.chunks_exact(C * V::N).enumerate() {
                let mut columns = [V::splat(0.0); C];
                for (c, column) in columns.iter_mut().enumerate() {
                    *column = V::load(line.as_ptr().add(c * V::N));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = V::splat(*self.rows.add(r * self.d + input));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = x.times_plus(column, *sum);
                    }
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (c, sum) in sums.into_iter().enumerate() {
                    sum.store(y.add(r * stride + c * V::N));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The bodies compiled for x86-64.

    use std::arch::x86_64::{__m256, __m512};

    use super::{Product, WeightElement};

    /// # Safety
    /// The processor has AVX-512; see [`Product::run`].
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn avx512<W: WeightElement>(product: &Product<'_, W>, panels: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { product.body::<__m512, 12, 2>(panels) }
    }

    /// # Safety
    /// The processor has AVX2 and FMA; see [`Product::run`].
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2<W: WeightElement>(product: &Product<'_, W>, panels: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { product.body::<__m256, 6, 2>(panels) }
    }
}
