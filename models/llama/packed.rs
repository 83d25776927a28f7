//! Prefill of many prompts in packed rows: few full calls instead of many small
//! ones; each prompt receives a context of its own.

use candle_core::{Device, Tensor};

use crate::{
    attention::kv_cache::{KvCache, KvDtype},
    context::{
        packing::{PackedRow, Packing, pack},
        vocab::Token,
    },
    error::{Context, Error, Kind, Result},
    llama::{Decoder, Input, Positions, Row, generate::KeepGoing},
};

/// How prompts are packed and kept.
#[derive(Debug, Clone, Copy)]
pub struct PackedPrefill {
    /// Maximum tokens of a row, at most the model's context.
    pub capacity: usize,
    /// Tokens per prefill chunk.
    pub chunk: usize,
    /// Element type of keys and values.
    pub kv_dtype: KvDtype,
}

/// One prompt after its prefill.
pub struct Prefilled {
    /// Its own context, with token indices from 0.
    pub cache: KvCache,
    /// Hidden state of its last token, `[1, hidden]`.
    pub last: Tensor,
}

/// Prefills `prompts` in packed rows, row after row; `on_row` receives each prompt when its row is done.
///
/// Returns the packing. Beside what `on_row` keeps, memory is that of one row and
/// the contexts copied out of it. Every prompt gives the same result as it would alone.
///
/// # Errors
/// `TooLarge` for a prompt longer than `capacity`, `BadInput` for one without tokens,
/// both before anything is computed; `Interrupted` when `keep_going` returns `false`.
pub fn prefill_packed<'a>(
    decoder: &Decoder,
    prompts: &[impl Into<Input<'a>> + Copy],
    options: &PackedPrefill,
    keep_going: &KeepGoing,
    on_row: &mut dyn FnMut(usize, Prefilled) -> Result<()>,
) -> Result<Packing> {
    let prompts: Vec<Input> = prompts.iter().map(|&prompt| prompt.into()).collect();
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    let packing = pack(&lengths, options.capacity)?;
    check_rows(&packing, decoder.spec().max_position_embeddings)?;
    for (number, row) in packing.rows.iter().enumerate() {
        let doing = || format!("prefill packed row {number}");
        let (cache, last) = prefill_row(
            decoder,
            &Gathered::of(row, &prompts),
            row,
            options,
            keep_going,
        )
        .doing(doing)?;
        for (segment, last) in row.segments.iter().zip(last) {
            let cache = cache.part(segment.indices.clone()).doing(doing)?;
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

/// The prompts of one row, concatenated.
struct Gathered {
    tokens: Vec<Token>,
    features: Vec<f32>,
    counted: Vec<u32>,
    /// Positions, where at least one prompt gives them; the other prompts' count up.
    given: Option<Vec<[u32; 3]>>,
    segments: Vec<u32>,
}

impl Gathered {
    fn of(row: &PackedRow, prompts: &[Input]) -> Self {
        let tokens: Vec<&[Token]> = prompts.iter().map(|prompt| prompt.tokens).collect();
        let own = || row.segments.iter().map(|segment| prompts[segment.prompt]);
        let position = |prompt: Input<'_>| -> Vec<[u32; 3]> {
            let counted = || (0..prompt.tokens.len() as u32).map(|i| [i; 3]).collect();
            prompt.positions.map_or_else(counted, <[_]>::to_vec)
        };
        let is_given = own().any(|prompt| prompt.positions.is_some());
        Self {
            tokens: row.gather(&tokens),
            features: own().flat_map(|prompt| prompt.features).copied().collect(),
            counted: row.positions(),
            given: is_given.then(|| own().flat_map(position).collect()),
            segments: row.segment_ids(),
        }
    }

    fn positions(&self) -> Positions<'_> {
        match &self.given {
            Some(positions) => Positions::Space(positions),
            None => Positions::Line(&self.counted),
        }
    }
}

/// Prefills one row chunk by chunk → its context, and the last hidden state of every segment.
fn prefill_row(
    decoder: &Decoder,
    gathered: &Gathered,
    row: &PackedRow,
    options: &PackedPrefill,
    keep_going: &KeepGoing,
) -> Result<(KvCache, Vec<Tensor>)> {
    let mut cache = KvCache::new(decoder.spec(), options.kv_dtype);
    let mut ends = row.segments.iter().map(|s| s.indices.end - 1).peekable();
    let mut last = Vec::with_capacity(row.segments.len());
    let input = Input {
        tokens: &gathered.tokens,
        features: &gathered.features,
        positions: None,
    };
    let mut start = 0;
    for part in input.chunks(options.chunk.max(1), decoder.spec().feature_width()) {
        if !keep_going() {
            return Err(Error::new(Kind::Interrupted, "stopped on request"));
        }
        let indices = start..start + part.tokens.len();
        let hidden = decoder.forward(&mut [Row {
            tokens: part.tokens,
            positions: gathered.positions().part(indices.clone()),
            segments: Some(&gathered.segments[indices.clone()]),
            features: part.features,
            cache: &mut cache,
        }])?;
        while let Some(end) = ends.next_if(|end| indices.contains(end)) {
            last.push(row_of(&hidden, end - start)?);
        }
        start = indices.end;
    }
    Ok((cache, last))
}

/// Row `row` of hidden `[n, hidden]` as `[1, hidden]`, which keeps no other row in memory.
fn row_of(hidden: &Tensor, row: usize) -> Result<Tensor> {
    let row: Vec<f32> = hidden.get(row)?.to_vec1()?;
    let shape = (1, row.len());
    Ok(Tensor::from_vec(row, shape, &Device::Cpu)?)
}
