//! RMSNorm, RoPE and SwiGLU as operations with gradients of their own, each in one pass over memory.
//!
//! Sums over rows run in fixed groups of rows, so that the number of threads does not change a bit.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Shape, Tensor};
use longreel_kernels::{rms_norm, swiglu};
use rayon::prelude::*;

use crate::{
    error::Result,
    layers::rotary::Rotations,
    llama::rope::Rope,
    training::operands::{numbers, slice_of},
};

/// Rows that one task sums.
const GROUP: usize = 256;

/// Numbers of one task.
const TASK: usize = 1 << 14;

/// x `[n, d]`, weight `[d]` → `x / sqrt(mean(x²) + eps) · weight`, `[n, d]`.
///
/// # Errors
/// `BadInput` when candle cannot take the tensors.
pub fn norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let eps = eps as f32;
    Ok(x.contiguous()?
        .apply_op2(&weight.contiguous()?, NormOp { eps })?)
}

/// x `[n, heads, d]` → x rotated by `rotations` of n positions.
///
/// # Errors
/// `BadInput` when candle cannot take the tensor.
pub fn rotated(x: &Tensor, rope: &Arc<Rope>, rotations: &Arc<Rotations>) -> Result<Tensor> {
    let op = RotationOp {
        rope: Arc::clone(rope),
        rotations: Arc::clone(rotations),
        is_back: false,
    };
    Ok(x.contiguous()?.apply_op1(op)?)
}

/// gate, up, of equal shape → `silu(gate) · up`.
///
/// # Errors
/// `BadInput` when candle cannot take the tensors.
pub fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, GatedOp)?)
}

struct NormOp {
    eps: f32,
}

impl CustomOp2 for NormOp {
    fn name(&self) -> &'static str {
        "rms norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        of_x: &Layout,
        weight: &CpuStorage,
        of_weight: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice_of(x, of_x)?, slice_of(weight, of_weight)?);
        let mut y = vec![0.0; x.len()];
        rms_norm::rms_norm(x, weight, self.eps, &mut y);
        Ok((CpuStorage::F32(y), of_x.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let held = [x, weight, &dy].map(numbers);
        let [of_x, of_weight, of_dy] = &held;
        let slice = |n: &super::operands::Numbers| n.as_slice().map(<[f32]>::to_vec);
        let weight_row = slice(of_weight).map_err(candle_core::Error::wrap)?;
        let of_x = of_x.as_slice().map_err(candle_core::Error::wrap)?;
        let of_dy = of_dy.as_slice().map_err(candle_core::Error::wrap)?;
        let (dx, dw) = norm_backward(of_x, &weight_row, of_dy, self.eps);
        let dx = Tensor::from_vec(dx, x.shape(), &Device::Cpu)?;
        let dw = Tensor::from_vec(dw, weight.shape(), &Device::Cpu)?;
        Ok((Some(dx), Some(dw)))
    }
}

/// x, dy `[n, d]`, weight `[d]` → dx `[n, d]`, d weight `[d]`.
///
/// With `r = 1 / sqrt(mean(x²) + eps)`: `dx = r · (w·dy − x · r² · mean(x·w·dy))`, `dw = Σ dy · x · r`.
fn norm_backward(x: &[f32], weight: &[f32], dy: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let d = weight.len();
    let mut dx = vec![0.0; x.len()];
    let groups = dx.par_chunks_mut(GROUP * d).zip(x.par_chunks(GROUP * d));
    let of_groups: Vec<Vec<f32>> = groups
        .zip(dy.par_chunks(GROUP * d))
        .map(|((dx, x), dy)| {
            let mut dw = vec![0.0; d];
            let rows = dx.chunks_exact_mut(d).zip(x.chunks_exact(d));
            for ((dx, x), dy) in rows.zip(dy.chunks_exact(d)) {
                norm_row_backward(x, weight, dy, eps, dx, &mut dw);
            }
            dw
        })
        .collect();
    let mut dw = vec![0.0; d];
    for group in of_groups {
        dw.iter_mut()
            .zip(group)
            .for_each(|(all, part)| *all += part);
    }
    (dx, dw)
}

fn norm_row_backward(x: &[f32], w: &[f32], dy: &[f32], eps: f32, dx: &mut [f32], dw: &mut [f32]) {
    let n = x.len() as f32;
    let mean = x.iter().map(|x| x * x).sum::<f32>() / n;
    let r = 1.0 / (mean + eps).sqrt();
    let along = x.iter().zip(w).zip(dy).map(|((x, w), dy)| x * w * dy);
    let along = along.sum::<f32>() / n * r * r;
    for (i, dx) in dx.iter_mut().enumerate() {
        *dx = r * (w[i] * dy[i] - x[i] * along);
        dw[i] += dy[i] * x[i] * r;
    }
}

struct RotationOp {
    rope: Arc<Rope>,
    rotations: Arc<Rotations>,
    /// The inverse rotation, for the backward pass.
    is_back: bool,
}

impl CustomOp1 for RotationOp {
    fn name(&self) -> &'static str {
        "rotary position embedding"
    }

    fn cpu_fwd(&self, x: &CpuStorage, of_x: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut y = slice_of(x, of_x)?.to_vec();
        let (_, heads, _) = of_x.shape().dims3()?;
        match self.is_back {
            false => self.rope.apply(&mut y, heads, &self.rotations),
            true => self.rope.apply(&mut y, heads, &self.rotations.reversed()),
        }
        Ok((CpuStorage::F32(y), of_x.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let back = Self {
            rope: Arc::clone(&self.rope),
            rotations: Arc::clone(&self.rotations),
            is_back: !self.is_back,
        };
        dy.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}

struct GatedOp;

impl CustomOp2 for GatedOp {
    fn name(&self) -> &'static str {
        "gated activation"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        of_gate: &Layout,
        up: &CpuStorage,
        of_up: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut y = slice_of(gate, of_gate)?.to_vec();
        swiglu::swiglu(&mut y, slice_of(up, of_up)?);
        Ok((CpuStorage::F32(y), of_gate.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let held = [gate, up, &dy].map(numbers);
        let [g, u, dy] = &held;
        let slices = [g, u, dy].map(|n| n.as_slice().map_err(candle_core::Error::wrap));
        let [g, u, dy] = slices;
        let (g, u, dy) = (g?, u?, dy?);
        let (mut dg, mut du) = (vec![0.0; g.len()], vec![0.0; g.len()]);
        let out = dg.par_chunks_mut(TASK).zip(du.par_chunks_mut(TASK));
        let inputs = g.par_chunks(TASK).zip(u.par_chunks(TASK));
        out.zip(inputs.zip(dy.par_chunks(TASK)))
            .for_each(|((dg, du), ((g, u), dy))| gate_backward(g, u, dy, dg, du));
        let dg = Tensor::from_vec(dg, gate.shape(), &Device::Cpu)?;
        let du = Tensor::from_vec(du, up.shape(), &Device::Cpu)?;
        Ok((Some(dg), Some(du)))
    }
}

/// With `s = 1 / (1 + e^−g)`: `dg = dy · u · (s + g · s · (1 − s))`, `du = dy · g · s`.
fn gate_backward(g: &[f32], u: &[f32], dy: &[f32], dg: &mut [f32], du: &mut [f32]) {
    for i in 0..g.len() {
        let s = 1.0 / (1.0 + (-g[i]).exp());
        dg[i] = dy[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
        du[i] = dy[i] * g[i] * s;
    }
}
