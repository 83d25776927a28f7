//! What stands between a vision encoder and a decoder: a chain of small steps.

use crate::{
    checkpoint::weights::Weights,
    error::{Error, Kind, Result},
    layers::{linear::Linear, norm::LayerNorm},
    spec::{
        encoder::HiddenAct,
        features::{ConnectorStep, MergeOrder},
    },
};

/// A chain with its weights.
pub struct Connector {
    steps: Vec<Step>,
}

enum Step {
    Linear(Linear),
    Activation(HiddenAct),
    Norm(LayerNorm),
    Merge(MergeOrder),
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
                    Step::Linear(Linear::named(weights, &of, *out, inputs, *bias)?)
                }
                ConnectorStep::Activation { act } => Step::Activation(*act),
                ConnectorStep::Norm { name: of, eps } => {
                    let of = format!("{name}.{of}");
                    Step::Norm(LayerNorm::load(weights, &of, width, *eps)?)
                }
                ConnectorStep::Merge { order } => {
                    width *= 4;
                    Step::Merge(*order)
                }
            })
        };
        let steps = steps.iter().map(step).collect::<Result<_>>()?;
        Ok(Self { steps })
    }

    /// tokens `[n, grid, grid, width]` of `n` pictures → features `[n, rows, out]`.
    ///
    /// # Errors
    /// `Internal` when the tokens are not those of square grids.
    pub fn forward(&self, tokens: Vec<f32>, pictures: usize, width: usize) -> Result<Vec<f32>> {
        let (mut x, mut width) = (tokens, width);
        for step in &self.steps {
            match step {
                Step::Linear(layer) => {
                    x = layer.forward(&x);
                    width = layer.out_features();
                }
                Step::Activation(act) => act.apply(&mut x),
                Step::Norm(norm) => x = norm.forward(&x),
                Step::Merge(order) => {
                    let merge = |picture: &[f32]| merge(picture, width, *order);
                    let pictures = x.chunks_exact(x.len() / pictures.max(1)).map(merge);
                    x = pictures.collect::<Result<Vec<_>>>()?.concat();
                    width *= 4;
                }
            }
        }
        Ok(x)
    }
}

/// tokens `[grid, grid, width]` → `[merged, merged, 4 width]`.
fn merge(tokens: &[f32], width: usize, order: MergeOrder) -> Result<Vec<f32>> {
    let n = tokens.len() / width;
    let grid = n.isqrt();
    if grid * grid != n {
        let message = format!("{n} tokens of a picture, expected a square grid");
        return Err(Error::new(Kind::Internal, message));
    }
    let merged = grid.div_ceil(2);
    let squares = (0..merged).flat_map(|a| (0..merged).map(move |b| (a, b)));
    let parts = (0..2).flat_map(|a| (0..2).map(move |b| (a, b)));
    let mut out = Vec::with_capacity(merged * merged * 4 * width);
    for (a, b) in squares {
        let (row, column) = match order {
            MergeOrder::Transposed => (b, a),
            MergeOrder::Rows => (a, b),
        };
        for (down, right) in parts.clone() {
            let (row, column) = (2 * row + down, 2 * column + right);
            if row < grid && column < grid {
                out.extend_from_slice(&tokens[(row * grid + column) * width..][..width]);
            } else {
                out.resize(out.len() + width, 0.0);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::{MergeOrder, merge};

    /// Grid of 3×3, one channel, numbered 1 to 9.
    fn merged(order: MergeOrder) -> Vec<f32> {
        let tokens: Vec<f32> = (1..10).map(|i| i as f32).collect();
        merge(&tokens, 1, order).unwrap()
    }

    #[test]
    fn orders_differ_over_the_grid_and_odd_sides_get_zeros() {
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
}
