//! Whether a model directory holds what its configuration says: every tensor's
//! name, shape and type, and finite values only.

use std::{collections::BTreeMap, fmt};

use half::{bf16, f16};
use longreel_kernels::quantized::{self, Format};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::Serialize;

use crate::{
    checkpoint::{
        layout::{self, NamedShape},
        stored::Stored,
        weights::Weights,
        writer::keep_going,
    },
    error::Result,
    spec::system::SystemSpec,
    systems::System,
};

/// Bytes checked between two checks for an interrupt.
const BLOCK_BYTES: usize = 64 << 20;

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Tensors in the directory.
    pub tensors: usize,
    /// Bytes of their elements.
    pub bytes: u64,
    /// Number of tensors per element type.
    pub dtypes: BTreeMap<String, usize>,
    /// Names that are expected and absent.
    pub missing: Vec<String>,
    /// Names that are present and not expected.
    pub unknown: Vec<String>,
    /// Tensors of another shape, or of an element type that weights do not have.
    pub misshapen: Vec<String>,
    /// Tensors with NaN or infinite values, and how many.
    pub not_finite: BTreeMap<String, u64>,
}

impl Report {
    /// Whether no tensor is missing, unknown, misshapen or not finite.
    pub fn is_sound(&self) -> bool {
        self.missing.is_empty()
            && self.unknown.is_empty()
            && self.misshapen.is_empty()
            && self.not_finite.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtypes: Vec<String> = self
            .dtypes
            .iter()
            .map(|(d, n)| format!("{n} {d}"))
            .collect();
        write!(
            f,
            "{} tensors ({}), {} bytes",
            self.tensors,
            dtypes.join(", "),
            self.bytes
        )?;
        for (what, names) in [
            ("missing", &self.missing),
            ("unknown", &self.unknown),
            ("misshapen", &self.misshapen),
        ] {
            for name in names {
                write!(f, "\n  {what}: {name}")?;
            }
        }
        for (name, count) in &self.not_finite {
            write!(f, "\n  not a finite number: {count} values of {name}")?;
        }
        if self.is_sound() {
            f.write_str("\n  every name, shape and value is sound")?;
        }
        Ok(())
    }
}

/// Reads every value of the model `system`, calling `going` between blocks; `load` takes the weights without a list of names:
/// those of encoders.
///
/// # Errors
/// Faults of the weights are in the report; an error is a directory
/// that cannot be read, or `Interrupted`.
pub fn verify(
    system: &System,
    load: &dyn Fn(&mut Weights) -> Result<()>,
    going: &dyn Fn() -> bool,
) -> Result<Report> {
    let mut weights = system.weights()?;
    let mut expected: BTreeMap<String, Vec<usize>> = listed(system.spec()).into_iter().collect();
    let mut report = Report {
        tensors: weights.list().count(),
        bytes: weights.total_bytes(),
        dtypes: BTreeMap::new(),
        missing: Vec::new(),
        unknown: Vec::new(),
        misshapen: Vec::new(),
        not_finite: BTreeMap::new(),
    };
    let loaded = load(&mut weights);
    for (name, stored, shape) in weights.list() {
        *report.dtypes.entry(stored.to_string()).or_default() += 1;
        match expected.remove(name) {
            None if weights.is_taken(name) => {}
            // Loading stopped at the failed tensor, so the remaining ones are not unknown.
            None if loaded.is_err() => {}
            None => report.unknown.push(name.to_owned()),
            Some(s) if s != shape => report
                .misshapen
                .push(format!("{name} has shape {shape:?}, expected {s:?}")),
            Some(_) => {}
        }
        match not_finite(stored, weights.bytes(name).unwrap_or_default(), going)? {
            None => report.misshapen.push(format!(
                "{name} has dtype {stored}, expected F32, BF16 or F16"
            )),
            Some(0) => {}
            Some(count) => {
                report.not_finite.insert(name.to_owned(), count);
            }
        }
    }
    let failed = loaded.err().map(|error| error.to_string());
    report.missing.extend(failed);
    report.missing.extend(expected.into_keys());
    Ok(report)
}

/// The tensors with a list of names: those of decoders and VQGANs.
fn listed(spec: &SystemSpec) -> Vec<NamedShape> {
    match spec {
        SystemSpec::Answers(spec) => layout::model_tensors(spec),
        SystemSpec::Vqgan(spec) => layout::vqgan_tensors(spec),
        SystemSpec::DualEncoder(_) | SystemSpec::Classifier(_) | SystemSpec::ConvNet(_) => {
            Vec::new()
        }
    }
}

/// How many values are NaN or infinite; `None` for an element type that weights do not have.
fn not_finite(stored: Stored, bytes: &[u8], going: &dyn Fn() -> bool) -> Result<Option<u64>> {
    let dtype = match stored {
        Stored::Plain(dtype) => dtype,
        Stored::Blocks(format) => return blocks_not_finite(format, bytes, going).map(Some),
    };
    let count: fn(&[u8]) -> u64 = match dtype {
        Dtype::F32 => |b| bad_values(b, |b| f32::from_le_bytes(b).is_finite()),
        Dtype::BF16 => |b| bad_values(b, |b| bf16::from_le_bytes(b).is_finite()),
        Dtype::F16 => |b| bad_values(b, |b| f16::from_le_bytes(b).is_finite()),
        _ => return Ok(None),
    };
    let mut total = 0;
    for block in bytes.chunks(BLOCK_BYTES) {
        keep_going(going)?;
        total += block.par_chunks(1 << 20).map(count).sum::<u64>();
    }
    Ok(Some(total))
}

/// How many weights of quantized blocks are NaN or infinite: all those of a block whose scale is.
fn blocks_not_finite(format: Format, bytes: &[u8], going: &dyn Fn() -> bool) -> Result<u64> {
    let count = |blocks: &[u8]| {
        let mut weights = vec![0.0; format.weights_of(blocks)];
        quantized::widen(format, blocks, &mut weights);
        weights.iter().filter(|w| !w.is_finite()).count() as u64
    };
    let mut total = 0;
    for part in bytes.chunks((BLOCK_BYTES >> 14) * format.block_bytes()) {
        keep_going(going)?;
        total += part
            .par_chunks(64 * format.block_bytes())
            .map(count)
            .sum::<u64>();
    }
    Ok(total)
}

fn bad_values<const N: usize>(bytes: &[u8], is_finite: impl Fn([u8; N]) -> bool) -> u64 {
    let elements = bytes.as_chunks::<N>().0;
    elements.iter().filter(|&&e| !is_finite(e)).count() as u64
}
