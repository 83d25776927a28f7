//! Prefill of many prompts in packed rows: few full calls in place of many small
//! ones; each prompt comes back with a context of its own and can go on alone.

use candle_core::{Device, Tensor};

use crate::{
    attention::kv_cache::{KvCache, KvDtype},
    context::{
        packing::{PackedRow, Packing, pack},
        vocab::Token,
    },
    error::{Context, Error, Kind, Result},
    llama::{Decoder, Row, generate::KeepGoing},
};

/// How prompts are packed and kept.
#[derive(Debug, Clone, Copy)]
pub struct PackedPrefill {
    /// Most tokens of a row, at most the model's context.
    pub capacity: usize,
    /// Tokens that go through the decoder together.
    pub chunk: usize,
    /// Element type of keys and values.
    pub kv_dtype: KvDtype,
}

/// One prompt after its prefill.
pub struct Prefilled {
    /// Its own context, at places from 0 on.
    pub cache: KvCache,
    /// Hidden state of its last token, `[1, hidden]`.
    pub last: Tensor,
}

/// Prefills `prompts` in packed rows, row after row; `on_row` is told of each prompt as its row ends.
///
/// → how they were packed. Memory beside what `on_row` keeps is that of one row and
/// the contexts copied out of it. What the prompts give is what each alone would give.
///
/// # Errors
/// `TooLarge` for a prompt longer than `capacity`, `BadInput` for one without tokens,
/// both before anything is computed; `Interrupted` when `keep_going` says no.
pub fn prefill_packed(
    decoder: &Decoder,
    prompts: &[&[Token]],
    options: &PackedPrefill,
    keep_going: &KeepGoing,
    on_row: &mut dyn FnMut(usize, Prefilled) -> Result<()>,
) -> Result<Packing> {
    let lengths: Vec<usize> = prompts.iter().map(|p| p.len()).collect();
    let packing = pack(&lengths, options.capacity)?;
    check_rows(&packing, decoder.spec().max_position_embeddings)?;
    for (number, row) in packing.rows.iter().enumerate() {
        let doing = || format!("prefill packed row {number}");
        let (cache, last) = prefill_row(decoder, prompts, row, options, keep_going).doing(doing)?;
        for (segment, last) in row.segments.iter().zip(last) {
            let cache = cache.part(segment.places.clone()).doing(doing)?;
            on_row(segment.prompt, Prefilled { cache, last })?;
        }
    }
    Ok(packing)
}

fn check_rows(packing: &Packing, limit: usize) -> Result<()> {
    let longest = packing.rows.iter().map(PackedRow::len).max().unwrap_or(0);
    if longest > limit {
        let message = format!("a packed row has {longest} tokens, the model was made for {limit}");
        return Err(Error::new(Kind::TooLarge, message));
    }
    Ok(())
}

/// One row, chunk by chunk → its context, and the last hidden state of every segment.
fn prefill_row(
    decoder: &Decoder,
    prompts: &[&[Token]],
    row: &PackedRow,
    options: &PackedPrefill,
    keep_going: &KeepGoing,
) -> Result<(KvCache, Vec<Tensor>)> {
    let mut cache = KvCache::new(decoder.spec(), options.kv_dtype);
    let (tokens, positions, ids) = (row.gather(prompts), row.positions(), row.segment_ids());
    let mut ends = row.segments.iter().map(|s| s.places.end - 1).peekable();
    let mut last = Vec::with_capacity(row.segments.len());
    let chunk = options.chunk.max(1);
    for start in (0..tokens.len()).step_by(chunk) {
        if !keep_going() {
            return Err(Error::new(Kind::Interrupted, "stopped on request"));
        }
        let places = start..tokens.len().min(start + chunk);
        let hidden = decoder.forward(&mut [Row {
            tokens: &tokens[places.clone()],
            positions: &positions[places.clone()],
            segments: Some(&ids[places.clone()]),
            features: &[],
            cache: &mut cache,
        }])?;
        while let Some(end) = ends.next_if(|end| places.contains(end)) {
            last.push(row_of(&hidden, end - start)?);
        }
    }
    Ok((cache, last))
}

/// Row `row` of hidden `[n, hidden]` as `[1, hidden]`, which keeps no other row in memory.
fn row_of(hidden: &Tensor, row: usize) -> Result<Tensor> {
    let row: Vec<f32> = hidden.get(row)?.to_vec1()?;
    let shape = (1, row.len());
    Ok(Tensor::from_vec(row, shape, &Device::Cpu)?)
}
