//! A vision transformer over pictures of any size, and over pairs of frames, with 2-D RoPE by
//! patch row and column (Qwen2-VL, arXiv 2409.12191; Qwen2.5-VL, arXiv 2502.13923).
//!
//! No block attends across steps of a video, so that a video is encoded step by step.

use std::ops::Range;

use crate::{
    checkpoint::weights::Weights,
    encoder::{Encoder, Visibility},
    error::{Error, Kind, Result},
    layers::{
        linear::Linear,
        rotary::{Rotations, angle, frequencies},
    },
    spec::{encoder::NativeVitSpec, features::NativeSpec},
    vision::connector::Connector,
};

/// The patch grid of a picture, or of one step of a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Rows of patches; even.
    pub rows: usize,
    /// Columns of patches; even.
    pub columns: usize,
}

impl Grid {
    /// Number of patches.
    pub fn patches(self) -> usize {
        self.rows.saturating_mul(self.columns)
    }

    /// Number of squares of 2×2 patches; each becomes one feature row.
    pub fn squares(self) -> usize {
        self.patches() / 4
    }

    /// Row and column of every square.
    fn of_squares(self) -> impl Iterator<Item = (usize, usize)> {
        let columns = self.columns / 2;
        (0..self.squares()).map(move |square| (square / columns, square % columns))
    }

    /// Row and column of every patch, square after square.
    fn of_patches(self) -> impl Iterator<Item = (usize, usize)> {
        self.of_squares().flat_map(|(row, column)| {
            let parts = [(0, 0), (0, 1), (1, 0), (1, 1)];
            parts.map(|(down, right)| (2 * row + down, 2 * column + right))
        })
    }
}

/// A native-resolution encoder with its connectors.
pub struct NativeEncoder {
    spec: NativeSpec,
    patches: Linear,
    /// `[side, side, hidden]`.
    positions: Option<Vec<f32>>,
    frequencies: Vec<f64>,
    encoder: Encoder,
    connector: Connector,
    /// One for each block of `spec.deepstack`.
    deeper: Vec<Connector>,
}

impl NativeEncoder {
    /// Takes the tensors under `vision`, `connector` and `deepstack`, as far as `spec` has them.
    pub fn load(spec: &NativeSpec, weights: &mut Weights) -> Result<Self> {
        spec.validate()?;
        let vision = &spec.vision;
        let width = vision.encoder.hidden_size;
        let side = vision.patch_size;
        let kernel = [3, vision.temporal_patch_size, side, side];
        let (name, has_bias) = ("vision.patch_embedding", vision.patch_bias);
        let table = |n: usize| weights.numbers("vision.positions", &[n, width]);
        let positions = vision.num_position_embeddings.map(table).transpose()?;
        let patches = Linear::of_patches(weights, name, width, &kernel, has_bias)?;
        let mut connector = |steps, name: &str| Connector::load(steps, width, weights, name);
        let mut deeper = Vec::new();
        if let Some(deepstack) = &spec.deepstack {
            for number in 0..deepstack.blocks.len() {
                deeper.push(connector(
                    &deepstack.connector,
                    &format!("deepstack.{number}"),
                )?);
            }
        }
        Ok(Self {
            connector: connector(&spec.connector, "connector")?,
            deeper,
            patches,
            positions,
            // Half of a head's channel pairs rotate by the row, half by the column.
            frequencies: frequencies(
                vision.rope_theta,
                width / vision.encoder.num_attention_heads / 2,
            ),
            encoder: Encoder::load(&vision.encoder, weights, "vision")?,
            spec: spec.clone(),
        })
    }

    /// The encoder's specification.
    pub fn spec(&self) -> &NativeSpec {
        &self.spec
    }

    /// patches `[rows · columns, 3 · frames · side · side]`, square of 2×2 after square → features
    /// `[squares, (1 + deepstack) · hidden of the decoder]`.
    ///
    /// # Errors
    /// `Internal` when the patches do not fit the grid; `Compute` when a weight or a patch is NaN or infinite.
    pub fn step(&self, patches: &[f32], grid: Grid) -> Result<Vec<f32>> {
        self.check(patches, grid)?;
        let hidden = self.spec.vision.encoder.hidden_size;
        let order = PatchOrder::of(&self.spec.vision, grid);
        let mut x = order.patches(&self.embed(patches, grid), hidden);
        let rotations = self.rotations(&order, grid);
        let whole = Visibility {
            rotations: Some(&rotations),
            ..Visibility::of_all(grid.patches())
        };
        let mut features = Vec::with_capacity(1 + self.deeper.len());
        for index in 0..self.encoder.layers() {
            let view = Visibility {
                segments: order.segments_of_block(index, &self.spec.vision),
                ..whole
            };
            self.encoder.block(index, &mut x, view)?;
            if let Some(connector) = self.deeper_behind(index) {
                features.push(connector.forward(x.clone(), 1, hidden)?);
            }
        }
        features.insert(0, self.connector.forward(x, 1, hidden)?);
        Ok(order.side_by_side(&features))
    }

    fn deeper_behind(&self, block: usize) -> Option<&Connector> {
        let blocks = &self.spec.deepstack.as_ref()?.blocks;
        self.deeper.get(blocks.iter().position(|&b| b == block)?)
    }

    fn check(&self, patches: &[f32], grid: Grid) -> Result<()> {
        let of_patch = self.spec.vision.patch_len();
        let is_even = grid.rows.is_multiple_of(2) && grid.columns.is_multiple_of(2);
        let expected = grid.patches().saturating_mul(of_patch);
        if is_even && expected > 0 && patches.len() == expected {
            return Ok(());
        }
        let message = format!(
            "{} numbers for {}x{} patches, expected {of_patch} for each, and even numbers of rows and columns",
            patches.len(),
            grid.rows,
            grid.columns
        );
        Err(Error::new(Kind::Internal, message))
    }

    /// patches `[n, 3 · frames · side · side]` → `[n, hidden]` before the first block.
    fn embed(&self, patches: &[f32], grid: Grid) -> Vec<f32> {
        let mut x = self.patches.forward(patches);
        if let Some(table) = &self.positions {
            let width = self.spec.vision.encoder.hidden_size;
            let side = (table.len() / width).isqrt();
            let rows = x.chunks_exact_mut(width);
            for (x, (row, column)) in rows.zip(grid.of_patches()) {
                let down = taps(row, grid.rows, side);
                let right = taps(column, grid.columns, side);
                add_position(x, table, side, down, right);
            }
        }
        x
    }

    /// Cosine and sine of every patch, `[n, d/2]`.
    fn rotations(&self, order: &PatchOrder, grid: Grid) -> Rotations {
        let places: Vec<[usize; 2]> = grid.of_patches().map(|(r, c)| [r, c]).collect();
        let mut rotations = Rotations::default();
        for place in order.patches(&places.concat(), 2) {
            let angles = self.frequencies.iter();
            rotations.extend(angles.map(|&f| angle(place as u32, f)), 1.0);
        }
        rotations
    }
}

/// The order of patches inside the encoder: window after window, as Qwen2.5-VL computes them.
struct PatchOrder {
    /// Numbers of squares.
    squares: Vec<usize>,
    /// Window of every patch, in that order.
    windows: Option<Vec<u32>>,
}

impl PatchOrder {
    fn of(spec: &NativeVitSpec, grid: Grid) -> Self {
        let squares = 0..grid.squares();
        let Some(side) = spec.window_side() else {
            return Self {
                squares: squares.collect(),
                windows: None,
            };
        };
        let across = (grid.columns / 2).div_ceil(side);
        let window = |(row, column)| (row / side * across + column / side) as u32;
        let mut numbered: Vec<(u32, usize)> = grid.of_squares().map(window).zip(squares).collect();
        // Pairs are distinct, so that an unstable sort keeps squares of a window in order.
        numbered.sort_unstable();
        let (windows, squares): (Vec<u32>, _) = numbered.into_iter().unzip();
        Self {
            squares,
            windows: Some(windows.into_iter().flat_map(|window| [window; 4]).collect()),
        }
    }

    /// rows `[n, width]` of patches, square after square → in this order.
    fn patches<T: Copy>(&self, rows: &[T], width: usize) -> Vec<T> {
        let square = |&square: &usize| &rows[four(square, width)];
        self.squares.iter().flat_map(square).copied().collect()
    }

    /// The windows, where block `index` attends within windows; `None` where it attends to all.
    fn segments_of_block(&self, index: usize, spec: &NativeVitSpec) -> Option<&[u32]> {
        let full = &spec.windows.as_ref()?.full_attention_blocks;
        let windows = self.windows.as_deref()?;
        (!full.contains(&index)).then_some(windows)
    }

    /// features `[squares, width]` per layer in this order → `[squares, layers · width]` in row-major order.
    fn side_by_side(&self, layers: &[Vec<f32>]) -> Vec<f32> {
        let numbers: usize = layers.iter().map(Vec::len).sum();
        let wide = numbers / self.squares.len().max(1);
        let mut out = vec![0.0; numbers];
        for (from, &to) in self.squares.iter().enumerate() {
            let rows = layers.iter().flat_map(|layer| {
                let width = layer.len() / self.squares.len();
                &layer[from * width..(from + 1) * width]
            });
            let place = out[to * wide..(to + 1) * wide].iter_mut();
            place.zip(rows).for_each(|(to, from)| *to = *from);
        }
        out
    }
}

/// The rows of a square's four patches.
fn four(square: usize, width: usize) -> Range<usize> {
    4 * square * width..4 * (square + 1) * width
}

/// The two table indices around the `index`-th of `n` in a table of `side`, and the fraction beyond the first
/// (`align_corners`).
fn taps(index: usize, n: usize, side: usize) -> (usize, usize, f32) {
    let at = index as f32 * (side - 1) as f32 / (n - 1).max(1) as f32;
    let first = (at as usize).min(side - 1);
    (first, (first + 1).min(side - 1), at - first as f32)
}

/// Adds to x `[width]` the table's position, interpolated between four entries.
fn add_position(
    x: &mut [f32],
    table: &[f32],
    side: usize,
    (up, down, y): (usize, usize, f32),
    (left, right, z): (usize, usize, f32),
) {
    let position = |row: usize, column: usize| table[(row * side + column) * x.len()..].iter();
    let corners = position(up, left)
        .zip(position(up, right))
        .zip(position(down, left).zip(position(down, right)));
    let mixed: Vec<f32> = corners
        .take(x.len())
        .map(|((a, b), (c, d))| {
            (1.0 - y) * (1.0 - z) * a + (1.0 - y) * z * b + y * (1.0 - z) * c + y * z * d
        })
        .collect();
    x.iter_mut().zip(mixed).for_each(|(x, p)| *x += p);
}
