//! Frames of any size to the patches of Qwen's encoders, in merge order.

use rayon::prelude::*;

use super::{
    image::{RgbView, Rounding, resize},
    processor::{Scale, resample},
};
use crate::{
    error::{Error, Kind, Result},
    spec::{
        patches::PatchesSpec,
        processor::{Medium, ProcessorFolder, SIDE_MAX},
    },
};

/// Frames to patches.
#[derive(Debug, Clone)]
pub struct VideoPatches {
    spec: PatchesSpec,
}

/// The patches of one temporal step.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// `[h · w, 3 · T · P · P]`, square after square of `merge_size` × `merge_size` patches.
    pub rows: Vec<f32>,
    /// Number of patch rows and columns.
    pub grid: [usize; 2],
}

impl VideoPatches {
    /// A processor for `spec`.
    pub fn new(spec: PatchesSpec) -> Self {
        Self { spec }
    }

    /// The processor of a model's folder ([`PatchesSpec::of_folder`]).
    ///
    /// # Errors
    /// As there.
    pub fn of_folder(folder: &ProcessorFolder, medium: Medium) -> Result<Self> {
        PatchesSpec::of_folder(folder, medium).map(Self::new)
    }

    /// The specification; [`PatchesSpec::size`] gives the size of a video's frames.
    pub fn spec(&self) -> &PatchesSpec {
        &self.spec
    }

    /// frames: one to `T` pictures of one temporal step, `size` (height, width) → `[h · w, 3 · T · P · P]`.
    ///
    /// The last frame is repeated where there are fewer than `T`.
    ///
    /// # Errors
    /// When there are no frames or too many, or `size` is not a multiple of merged patches.
    pub fn step(&self, frames: &[RgbView<'_>], size: [usize; 2]) -> Result<Patches> {
        let per_step = self.spec.temporal_patch_size;
        self.check(frames.len(), size)?;
        let resized: Vec<Vec<u8>> = frames.iter().map(|&f| self.resized(f, size)).collect();
        let frames: Vec<&[u8]> = (0..per_step)
            .filter_map(|t| resized.get(t).or(resized.last()).map(Vec::as_slice))
            .collect();
        Ok(self.patches(&frames, size))
    }

    /// One frame → bytes `[height, width, 3]` of `size`.
    ///
    /// # Errors
    /// When `size` is not a multiple of merged patches.
    pub fn shown(&self, frame: RgbView<'_>, size: [usize; 2]) -> Result<Vec<u8>> {
        self.check(1, size)?;
        Ok(self.resized(frame, size))
    }

    fn resized(&self, frame: RgbView<'_>, [height, width]: [usize; 2]) -> Vec<u8> {
        let resample = resample(self.spec.filter, Rounding::Torchvision);
        resize(frame, [width, height], resample)
    }

    /// frames `[T, height, width, 3]` → patches.
    fn patches(&self, frames: &[&[u8]], [height, width]: [usize; 2]) -> Patches {
        let (patch, merge) = (self.spec.patch_size, self.spec.merge_size);
        let grid = [height / patch, width / patch];
        let row = 3 * frames.len() * patch * patch;
        let mut rows = vec![0.0; grid[0] * grid[1] * row];
        let scales = Scale::of(self.spec.normalize);
        let line = grid[1] / merge;
        rows.par_chunks_mut(row).enumerate().for_each(|(i, out)| {
            let (square, inside) = (i / (merge * merge), i % (merge * merge));
            let y = (square / line * merge + inside / merge) * patch;
            let x = (square % line * merge + inside % merge) * patch;
            fill(out, frames, scales, [y, x], width, patch);
        });
        Patches { rows, grid }
    }

    fn check(&self, n_frames: usize, size: [usize; 2]) -> Result<()> {
        let (per_step, factor) = (self.spec.temporal_patch_size, self.spec.factor());
        let fits = |side: &usize| side.is_multiple_of(factor) && (1..=SIDE_MAX).contains(side);
        if (1..=per_step).contains(&n_frames) && size.iter().all(fits) {
            return Ok(());
        }
        let [height, width] = size;
        Err(Error::new(
            Kind::BadInput,
            format!(
                "cut {n_frames} frames of {width}x{height} pixels into patches, expected 1 to {per_step} frames \
                 and sides of up to {SIDE_MAX} pixels that are multiples of {factor}"
            ),
        ))
    }
}

/// Fills out `[3, T, patch, patch]` from frames `[T, _, width, 3]` at pixel `[y, x]`.
fn fill(
    out: &mut [f32],
    frames: &[&[u8]],
    scales: [Scale; 3],
    [y, x]: [usize; 2],
    width: usize,
    patch: usize,
) {
    let planes = out.chunks_exact_mut(frames.len() * patch * patch);
    for (c, (plane, scale)) in planes.zip(scales).enumerate() {
        for (square, frame) in plane.chunks_exact_mut(patch * patch).zip(frames) {
            for (dy, line) in square.chunks_exact_mut(patch).enumerate() {
                let from = &frame[((y + dy) * width + x) * 3..][..patch * 3];
                for (value, pixel) in line.iter_mut().zip(from.chunks_exact(3)) {
                    *value = scale.of_byte(pixel[c]);
                }
            }
        }
    }
}
