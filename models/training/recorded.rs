//! An operation on queries, keys and values in candle's graph: computed before candle
//! records it, so that errors keep their kind, and differentiated by our own code.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Shape, Tensor};

use crate::error::{Context, Result};

/// The backward pass of an operation, with its saved state except tensors.
pub(super) trait Backward: Send + Sync {
    /// The operation's name in errors.
    const NAME: &'static str;

    /// q, k, v, out, d_out → dq, dk, dv, each of its operand's length.
    fn backward(&self, tensors: [&Tensor; 5]) -> Result<[Vec<f32>; 3]>;
}

/// q, k, v and `out`, which was computed from them and has q's shape → a tensor whose gradients `backward` computes.
pub(super) fn record<B: Backward + 'static>(
    [q, k, v]: [&Tensor; 3],
    out: Vec<f32>,
    backward: B,
) -> Result<Tensor> {
    let out = Mutex::new(out);
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    Ok(q.apply_op3(&k, &v, RecordedOp { out, backward })?)
}

struct RecordedOp<B> {
    /// The output, until candle takes it.
    out: Mutex<Vec<f32>>,
    backward: B,
}

impl<B: Backward> CustomOp3 for RecordedOp<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let out = std::mem::take(&mut *self.out.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        d_out: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let tensors = [q, k, v, out, &d_out.contiguous()?];
        let gradients = self.backward.backward(tensors);
        let [dq, dk, dv] = gradients
            .doing(|| format!("gradient of {}", B::NAME))
            .map_err(candle_core::Error::wrap)?;
        let tensor = |x, like: &Tensor| Tensor::from_vec(x, like.shape(), &Device::Cpu).map(Some);
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}
