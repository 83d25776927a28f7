//! Where the gradient of each parameter lies in one row of numbers.

use std::{collections::BTreeMap, ops::Range};

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::{
    error::{Error, Kind, Result},
    training::parameters::{ByName, Parameters},
};

/// The most groups whose gradients are summed separately.
const GROUPS: usize = 8;

/// Numbers of one task.
const TASK: usize = 1 << 14;

/// The ranges of parameters in one row, by name.
pub struct ParameterRanges {
    ranges: BTreeMap<String, Range<usize>>,
    len: usize,
}

impl ParameterRanges {
    /// The parameters one after another, in order of name.
    pub fn of(parameters: &Parameters) -> Self {
        let mut len = 0;
        let ranges = parameters.iter().map(|(name, var)| {
            let start = len;
            len += var.elem_count();
            (name.clone(), start..len)
        });
        let ranges = ranges.collect();
        Self { ranges, len }
    }

    /// # Errors
    /// `Internal` when there is no such parameter.
    pub fn get(&self, name: &str) -> Result<Range<usize>> {
        let missing = || Error::new(Kind::Internal, format!("there is no parameter {name}"));
        self.ranges.get(name).cloned().ok_or_else(missing)
    }

    /// Calls `work(item, row)` for every item, which adds to a row of zeros → the sum of the rows.
    ///
    /// Adjacent items share a row; the grouping depends on the number of items alone.
    pub fn gather<T: Sync>(&self, items: &[T], work: impl Fn(&T, &mut [f32]) + Sync) -> Vec<f32> {
        let of_group = items.len().div_ceil(GROUPS).max(1);
        let groups = items.par_chunks(of_group).map(|group| {
            let mut row = vec![0.0; self.len];
            group.iter().for_each(|item| work(item, &mut row));
            row
        });
        sum(groups.collect(), self.len)
    }

    /// row → gradients shaped like `parameters`.
    ///
    /// # Errors
    /// When candle has no memory for them.
    pub fn named(&self, row: &[f32], parameters: &Parameters) -> Result<ByName> {
        let tensor = |(name, var): (&String, &candle_core::Var)| {
            let numbers = row[self.get(name)?].to_vec();
            let tensor = Tensor::from_vec(numbers, var.shape(), &Device::Cpu)?;
            Ok((name.clone(), tensor))
        };
        parameters.iter().map(tensor).collect()
    }
}

fn sum(rows: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut rows = rows.into_iter();
    let mut total = rows.next().unwrap_or_else(|| vec![0.0; len]);
    for row in rows {
        let pairs = total.par_chunks_mut(TASK).zip(row.par_chunks(TASK));
        pairs.for_each(|(total, row)| total.iter_mut().zip(row).for_each(|(t, x)| *t += x));
    }
    total
}
