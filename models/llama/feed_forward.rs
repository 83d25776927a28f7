//! The gated feed-forward layer: one for all tokens, or a mixture of experts.

use longreel_kernels::swiglu::swiglu;

use crate::{
    checkpoint::weights::Weights,
    error::Result,
    layers::linear::Linear,
    spec::{DecoderSpec, ExpertsSpec},
};

/// A feed-forward layer with its weights.
pub enum FeedForward {
    /// One layer for all tokens.
    Dense(GatedFeedForward),
    /// A few experts of many for each token.
    Experts(Experts),
}

/// `down(silu(gate(x)) · up(x))`.
pub struct GatedFeedForward {
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A mixture of experts (Mixtral, arXiv 2401.04088).
pub struct Experts {
    per_token: usize,
    router: Linear,
    experts: Vec<GatedFeedForward>,
}

impl FeedForward {
    /// Takes the tensors of the layer of block `name`.
    pub fn load(spec: &DecoderSpec, weights: &mut Weights, name: &str) -> Result<Self> {
        let names = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
        match spec.experts {
            None => Ok(Self::Dense(GatedFeedForward::load(
                spec, weights, name, names,
            )?)),
            Some(experts) => Ok(Self::Experts(Experts::load(spec, experts, weights, name)?)),
        }
    }

    /// x `[n, hidden]` → `[n, hidden]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        match self {
            Self::Dense(layer) => layer.forward(x),
            Self::Experts(layer) => layer.forward(x),
        }
    }
}

impl GatedFeedForward {
    fn load(
        spec: &DecoderSpec,
        weights: &mut Weights,
        block: &str,
        [gate, up, down]: [&str; 3],
    ) -> Result<Self> {
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let mut linear = |part: &str, out, inputs| {
            Linear::named(
                weights,
                &format!("{block}.{part}"),
                out,
                inputs,
                spec.mlp_bias,
            )
        };
        Ok(Self {
            gate: linear(gate, inner, hidden)?,
            up: linear(up, inner, hidden)?,
            down: linear(down, hidden, inner)?,
        })
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut gate = self.gate.forward(x);
        swiglu(&mut gate, &self.up.forward(x));
        self.down.forward(&gate)
    }
}

impl Experts {
    fn load(
        spec: &DecoderSpec,
        experts: ExpertsSpec,
        weights: &mut Weights,
        block: &str,
    ) -> Result<Self> {
        let layer = format!("{block}.block_sparse_moe");
        let (n, hidden) = (experts.num_local_experts, spec.hidden_size);
        let router = Linear::named(weights, &format!("{layer}.gate"), n, hidden, false)?;
        let expert = |e| {
            let name = format!("{layer}.experts.{e}");
            GatedFeedForward::load(spec, weights, &name, ["w1", "w3", "w2"])
        };
        Ok(Self {
            per_token: experts.num_experts_per_tok,
            router,
            experts: (0..n).map(expert).collect::<Result<_>>()?,
        })
    }

    /// Each expert runs once, for the tokens that chose it.
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let scores = self.router.forward(x);
        let n = self.experts.len();
        let chosen: Vec<Vec<(usize, f32)>> = scores
            .chunks_exact(n)
            .map(|scores| best(scores, self.per_token))
            .collect();
        let width = self.router.in_features();
        let mut out = vec![0.0; x.len()];
        for (e, expert) in self.experts.iter().enumerate() {
            let of = |(token, chosen): (usize, &Vec<(usize, f32)>)| {
                let share = chosen.iter().find(|(other, _)| *other == e)?.1;
                Some((token, share))
            };
            let tokens: Vec<(usize, f32)> = chosen.iter().enumerate().filter_map(of).collect();
            if tokens.is_empty() {
                continue;
            }
            let rows = tokens
                .iter()
                .flat_map(|(token, _)| &x[token * width..][..width]);
            let said = expert.forward(&rows.copied().collect::<Vec<_>>());
            for ((token, share), said) in tokens.iter().zip(said.chunks_exact(width)) {
                let row = &mut out[token * width..][..width];
                row.iter_mut().zip(said).for_each(|(x, y)| *x += share * y);
            }
        }
        out
    }
}

/// The indices of the `n` largest scores, each with its weight: the softmax over those `n`.
fn best(scores: &[f32], n: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // A stable sort: on ties the lower index comes first, as in torch.topk on the CPU.
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(n);
    let most = order.first().map_or(0.0, |&e| scores[e]);
    let weights: Vec<f32> = order.iter().map(|&e| (scores[e] - most).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let shares = order.into_iter().zip(weights);
    shares.map(|(e, weight)| (e, weight / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::best;

    #[test]
    fn weights_sum_to_one_and_ties_keep_their_order() {
        let chosen = best(&[0.5, 2.0, -1.0, 2.0], 2);
        assert_eq!(chosen, [(1, 0.5), (3, 0.5)]);
        let sum: f32 = best(&[0.1, 7.0, 3.0], 3)
            .iter()
            .map(|(_, share)| share)
            .sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }
}
