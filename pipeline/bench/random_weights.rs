//! A decoder of a given shape with random weights: memory and speed do not
//! depend on the values of the weights.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use half::bf16;
use longreel_models::{
    checkpoint::{layout::decoder_tensors, weights::Weights},
    llama::Decoder,
    spec::DecoderSpec,
};
use serde_json::{Map, json};

use crate::error::{Context, Error, Kind, Result};

/// The decoder of `spec`, equal in every call, and the bytes of its weights: matrices uniform with standard deviation
/// `1/sqrt(inputs)`, norms ones, in bf16.
///
/// The weights are in an unlinked temporary file.
///
/// # Errors
/// `Io` when there is no room for them.
pub fn random_decoder(spec: &DecoderSpec) -> Result<(Decoder, u64)> {
    let doing = || "write random weights".to_owned();
    let dir = tempfile::tempdir().map_err(Error::from).doing(doing)?;
    write(spec, &dir.path().join("model.safetensors")).doing(doing)?;
    let mut weights = Weights::open(dir.path())?;
    let bytes = weights.total_bytes();
    Ok((Decoder::load(spec, &mut weights)?, bytes))
}

/// Bytes of the weights of [`random_decoder`].
pub fn random_bytes(spec: &DecoderSpec) -> u64 {
    let elements = |(_, shape): &(String, Vec<usize>)| shape.iter().product::<usize>() as u64;
    2 * decoder_tensors(spec).iter().map(elements).sum::<u64>()
}

fn write(spec: &DecoderSpec, path: &Path) -> Result<()> {
    let tensors = decoder_tensors(spec);
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)
        .map_err(|e| Error::with_source(Kind::Internal, "write a header", e))?;
    // Aligns the tensors, so that they can be used where they are mapped.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut state = 1;
    for (_, shape) in &tensors {
        write_tensor(&mut out, shape, &mut state)?;
    }
    Ok(out.flush()?)
}

fn write_tensor(out: &mut impl Write, shape: &[usize], state: &mut u64) -> Result<()> {
    let inputs = shape.last().copied().unwrap_or(1);
    let width = (3.0 / inputs as f32).sqrt();
    for _ in 0..shape.iter().product() {
        let number = if shape.len() == 1 {
            1.0
        } else {
            width * next(state)
        };
        out.write_all(&bf16::from_f32(number).to_le_bytes())?;
    }
    Ok(())
}

/// A uniform number in −1..1 (xorshift64*).
fn next(state: &mut u64) -> f32 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let word = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
    (word >> 40) as f32 / (1 << 23) as f32 - 1.0
}
