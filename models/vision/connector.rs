//! The connector between a vision encoder and a decoder: a chain of small steps.

use crate::{
    checkpoint::weights::Weights,
    error::{Error, Kind, Result},
    layers::{linear::Linear, norm::Norm},
    spec::{
        encoder::HiddenAct,
        features::{ConnectorStep, MergeOrder, PoolMode},
    },
};

/// A connector with its weights.
pub struct Connector {
    steps: Vec<LoadedStep>,
}

enum LoadedStep {
    Linear(Linear),
    Activation(HiddenAct),
    Norm(Norm),
    Merge(MergeOrder),
    Pool(PoolMode, usize),
}

impl Connector {
    /// Takes the tensors under `name` for rows of `width` channels.
    pub fn load(
        steps: &[ConnectorStep],
        width: usize,
        weights: &mut Weights,
        name: &str,
    ) -> Result<Self> {
        let mut width = width;
        let step = |step: &ConnectorStep| {
            Ok(match step {
                ConnectorStep::Linear {
                    name: of,
                    out,
                    bias,
                } => {
                    let inputs = std::mem::replace(&mut width, *out);
                    let of = format!("{name}.{of}");
                    LoadedStep::Linear(Linear::named(weights, &of, *out, inputs, *bias)?)
                }
                ConnectorStep::Activation { act } => LoadedStep::Activation(*act),
                ConnectorStep::Norm {
                    name: of,
                    kind,
                    eps,
                } => {
                    let of = format!("{name}.{of}");
                    LoadedStep::Norm(Norm::load(*kind, weights, &of, width, *eps)?)
                }
                ConnectorStep::Merge { order } => {
                    width *= 4;
                    LoadedStep::Merge(*order)
                }
                ConnectorStep::Pool { mode, stride } => LoadedStep::Pool(*mode, *stride),
            })
        };
        let steps = steps.iter().map(step).collect::<Result<_>>()?;
        Ok(Self { steps })
    }

    /// tokens `[n, grid, grid, width]` of `n` pictures → features `[n, rows, out]`.
    ///
    /// # Errors
    /// `Internal` when the tokens do not form square grids.
    pub fn forward(&self, tokens: Vec<f32>, pictures: usize, width: usize) -> Result<Vec<f32>> {
        let (mut x, mut width) = (tokens, width);
        for step in &self.steps {
            match step {
                LoadedStep::Linear(layer) => {
                    x = layer.forward(&x);
                    width = layer.out_features();
                }
                LoadedStep::Activation(act) => act.apply(&mut x),
                LoadedStep::Norm(norm) => x = norm.forward(&x),
                LoadedStep::Merge(order) => {
                    x = each(&x, pictures, |picture| merge(picture, width, *order))?;
                    width *= 4;
                }
                LoadedStep::Pool(mode, stride) => {
                    x = each(&x, pictures, |picture| pool(picture, width, *mode, *stride))?;
                }
            }
        }
        Ok(x)
    }
}

/// Applies `change` to the tokens of each picture and concatenates the results.
fn each(
    tokens: &[f32],
    pictures: usize,
    change: impl Fn(&[f32]) -> Result<Vec<f32>>,
) -> Result<Vec<f32>> {
    let of_picture = (tokens.len() / pictures.max(1)).max(1);
    let changed = tokens.chunks_exact(of_picture).map(change);
    Ok(changed.collect::<Result<Vec<_>>>()?.concat())
}

/// The side of a square grid of `n` tokens.
fn side(n: usize) -> Result<usize> {
    let grid = n.isqrt();
    if grid * grid == n {
        return Ok(grid);
    }
    let message = format!("{n} tokens of a picture, expected a square grid");
    Err(Error::new(Kind::Internal, message))
}

/// tokens `[grid, grid, width]` → `[side, side, width]`, with [`PoolMode::side`].
fn pool(tokens: &[f32], width: usize, mode: PoolMode, stride: usize) -> Result<Vec<f32>> {
    let grid = side(tokens.len() / width)?;
    let to = mode.side(grid, stride);
    Ok(match mode {
        PoolMode::Bilinear => interpolate(tokens, width, grid, to),
        PoolMode::Average => {
            let share = 1.0 / (stride * stride) as f32;
            let mut means = squares(tokens, width, [grid, to, stride], 0.0, |sum, x| sum + x);
            means.iter_mut().for_each(|mean| *mean *= share);
            means
        }
        PoolMode::Max => squares(
            tokens,
            width,
            [grid, to, stride],
            f32::NEG_INFINITY,
            f32::max,
        ),
    })
}

/// tokens `[grid, grid, width]` → `[to, to, width]`, each the fold of a square of `stride` by `stride`.
fn squares(
    tokens: &[f32],
    width: usize,
    [grid, to, stride]: [usize; 3],
    first: f32,
    fold: impl Fn(f32, f32) -> f32,
) -> Vec<f32> {
    let mut out = vec![first; to * to * width];
    let reach = to * stride;
    for (row, column) in (0..reach).flat_map(|r| (0..reach).map(move |c| (r, c))) {
        let token = &tokens[(row * grid + column) * width..][..width];
        let at = (row / stride * to + column / stride) * width;
        for (x, &y) in out[at..at + width].iter_mut().zip(token) {
            *x = fold(*x, y);
        }
    }
    out
}

/// tokens `[grid, grid, width]` → `[half, half, width]`: PyTorch's bilinear interpolation with half-pixel centres.
fn interpolate(tokens: &[f32], width: usize, grid: usize, half: usize) -> Vec<f32> {
    let taps = |i: usize| {
        let at = ((i as f32 + 0.5) * grid as f32 / half as f32 - 0.5).max(0.0);
        let first = (at as usize).min(grid - 1);
        (first, (first + 1).min(grid - 1), at - first as f32)
    };
    let token = |row: usize, column: usize| &tokens[(row * grid + column) * width..][..width];
    let mut out = Vec::with_capacity(half * half * width);
    for (row, column) in (0..half).flat_map(|r| (0..half).map(move |c| (r, c))) {
        let ((up, down, y), (left, right, x)) = (taps(row), taps(column));
        let corners = [
            (token(up, left), (1.0 - y) * (1.0 - x)),
            (token(up, right), (1.0 - y) * x),
            (token(down, left), y * (1.0 - x)),
            (token(down, right), y * x),
        ];
        out.extend((0..width).map(|c| corners.iter().map(|(t, w)| t[c] * w).sum::<f32>()));
    }
    out
}

/// tokens `[grid, grid, width]` → `[merged, merged, 4 width]`.
fn merge(tokens: &[f32], width: usize, order: MergeOrder) -> Result<Vec<f32>> {
    if order == MergeOrder::Given {
        return Ok(tokens.to_vec());
    }
    let grid = side(tokens.len() / width)?;
    let merged = grid.div_ceil(2);
    let squares = (0..merged).flat_map(|a| (0..merged).map(move |b| (a, b)));
    let parts = (0..2).flat_map(|a| (0..2).map(move |b| (a, b)));
    let mut out = Vec::with_capacity(merged * merged * 4 * width);
    for (a, b) in squares {
        let (row, column) = match order {
            MergeOrder::Transposed => (b, a),
            _ => (a, b),
        };
        for (down, right) in parts.clone() {
            let (row, column) = (2 * row + down, 2 * column + right);
            if row < grid && column < grid {
                out.extend_from_slice(&tokens[(row * grid + column) * width..][..width]);
            } else {
                // VILA pads odd grids with zeros at the right and bottom.
                out.resize(out.len() + width, 0.0);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::{MergeOrder, PoolMode, merge, pool};

    /// Grid of 3×3, one channel, numbered 1 to 9.
    fn merged(order: MergeOrder) -> Vec<f32> {
        let tokens: Vec<f32> = (1..10).map(|i| i as f32).collect();
        merge(&tokens, 1, order).unwrap()
    }

    #[test]
    fn merge_orders_differ_and_odd_sides_are_zero_padded() {
        let rows = [
            1., 2., 4., 5., 3., 0., 6., 0., 7., 8., 0., 0., 9., 0., 0., 0.,
        ];
        assert_eq!(merged(MergeOrder::Rows), rows);
        let transposed = [
            1., 2., 4., 5., 7., 8., 0., 0., 3., 0., 6., 0., 9., 0., 0., 0.,
        ];
        assert_eq!(merged(MergeOrder::Transposed), transposed);
        assert!(merge(&[0.0; 8], 1, MergeOrder::Rows).is_err());
    }

    /// A grid of this side, one channel, numbered from 0.
    fn pooled(grid: usize, mode: PoolMode, stride: usize) -> Vec<f32> {
        let tokens: Vec<f32> = (0..grid * grid).map(|i| i as f32).collect();
        pool(&tokens, 1, mode, stride).unwrap()
    }

    #[test]
    fn pooling_of_even_and_odd_grids_is_that_of_pytorch() {
        use PoolMode::{Average, Bilinear, Max};
        assert_eq!(pooled(4, Bilinear, 2), [2.5, 4.5, 10.5, 12.5]);
        assert_eq!(pooled(4, Average, 2), [2.5, 4.5, 10.5, 12.5]);
        assert_eq!(pooled(4, Max, 2), [5.0, 7.0, 13.0, 15.0]);
        // Centres at 0.25 and 1.75 of a side of three.
        assert_eq!(pooled(3, Bilinear, 2), [1.0, 2.5, 5.5, 7.0]);
        assert_eq!(pooled(3, Average, 2), [2.0]);
        assert_eq!(pooled(3, Max, 2), [4.0]);
        for mode in [Average, Bilinear, Max] {
            assert_eq!(
                pooled(3, mode, 1),
                (0..9).map(|i| i as f32).collect::<Vec<_>>()
            );
        }
    }
}
