//! Loops around the decoder: prefill, text generation for one or several
//! contexts, and image or video generation with classifier-free guidance.

use candle_core::Tensor;

use crate::{
    attention::kv_cache::KvCache,
    context::vocab::Token,
    error::{Context, Error, Kind, Result},
    llama::{
        Head, Input, Positions, Row,
        group::Forward,
        sampler::{Draw, Sampler},
    },
};

/// Called before every decode step and prefill chunk; `false` ends with `Interrupted`.
pub type KeepGoing<'a> = dyn Fn() -> bool + 'a;

/// Whether generation goes on after an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuation {
    /// Draw the next id.
    Continue,
    /// Stop after this id.
    Stop,
}

/// Parameters of text generation.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Maximum length of an answer, in ids.
    pub max_new_tokens: usize,
    /// How ids are drawn.
    pub draw: Draw,
    /// An answer ends at the first of these ids.
    pub stop_ids: Vec<u32>,
}

/// One context of a batch, prefilled.
pub struct Prompted<'a> {
    /// The context; every drawn id but the last is appended.
    pub cache: &'a mut KvCache,
    /// Hidden state of its last token, `[1, hidden]`.
    pub last: Tensor,
}

/// Appends `input` to the context, `chunk` tokens at a time on every rank; activations take the memory of one chunk.
///
/// Returns the hidden state of the last token, `[1, hidden]`. `on_progress` receives the tokens of each chunk.
///
/// # Errors
/// `Interrupted` when `keep_going` returns `false`, with the chunks so far in the cache.
pub fn prefill<'a>(
    decoder: &dyn Forward,
    cache: &mut KvCache,
    input: impl Into<Input<'a>>,
    chunk: usize,
    keep_going: &KeepGoing,
    on_progress: &mut dyn FnMut(usize),
) -> Result<Tensor> {
    let input = input.into();
    check_room(decoder, cache, input)?;
    let mut last = None;
    let width = decoder.spec().feature_width();
    for part in input.chunks(decoder.step(chunk), width) {
        go_on(keep_going)?;
        last = Some(append(decoder, cache, part)?);
        on_progress(part.tokens.len());
    }
    last.ok_or_else(|| Error::new(Kind::Internal, "there are no tokens to prefill"))
}

/// `TooLarge` before the first chunk, if the last one would not fit.
fn check_room(decoder: &dyn Forward, cache: &KvCache, input: Input) -> Result<()> {
    let n = input.tokens.len();
    let given = input.positions.and_then(|all| Positions::Space(all).last());
    let counted = (cache.next_position() as usize).saturating_add(n);
    let end = given.map_or(counted, |last| last as usize + 1);
    has_room(decoder, cache, n, end)
}

/// `TooLarge` where `n` more tokens, of highest position `end − 1`, exceed the model's context.
fn has_room(decoder: &dyn Forward, cache: &KvCache, n: usize, end: usize) -> Result<()> {
    let limit = decoder.spec().max_position_embeddings;
    let held = cache.len();
    let end = end.max(held.saturating_add(n));
    if end > limit {
        let message = format!(
            "the context holds {held} tokens and {n} more reach position {end}, the model was made for {limit}"
        );
        return Err(Error::new(Kind::TooLarge, message));
    }
    Ok(())
}

/// tokens `[n]` → hidden state of the last, `[1, hidden]`.
fn append(decoder: &dyn Forward, cache: &mut KvCache, input: Input) -> Result<Tensor> {
    let mut counted = Vec::new();
    decoder.last_hidden(&mut [Row {
        tokens: input.tokens,
        features: input.features,
        positions: input.positions_from(cache.next_position(), &mut counted),
        segments: None,
        cache,
    }])
}

/// Generates an answer to the context whose last hidden state is `last`, `[1, hidden]`.
///
/// Returns the ids, a stop id included. Every id but the last is in the cache afterwards.
pub fn generate(
    decoder: &dyn Forward,
    cache: &mut KvCache,
    last: &Tensor,
    generation: &Generation,
    keep_going: &KeepGoing,
    on_token: &mut dyn FnMut(u32) -> Result<Continuation>,
) -> Result<Vec<u32>> {
    let mut rows = [Prompted {
        cache,
        last: last.clone(),
    }];
    let mut on_token = |_: usize, id: u32| on_token(id);
    let drawn = generate_batch(decoder, &mut rows, generation, keep_going, &mut on_token)?;
    Ok(drawn.into_iter().next().unwrap_or_default())
}

/// [`generate`] for several contexts at once; finished ones are no longer computed.
///
/// Upstream fills finished rows with the pad id; here their answers are shorter.
pub fn generate_batch(
    decoder: &dyn Forward,
    rows: &mut [Prompted],
    generation: &Generation,
    keep_going: &KeepGoing,
    on_token: &mut dyn FnMut(usize, u32) -> Result<Continuation>,
) -> Result<Vec<Vec<u32>>> {
    let mut answers = vec![Vec::new(); rows.len()];
    let sampler = |row| Sampler::new(&generation.draw, row);
    let mut samplers: Vec<Sampler> = (0..rows.len() as u64).map(sampler).collect();
    let mut open: Vec<usize> = (0..rows.len()).collect();
    for step in 1..=generation.max_new_tokens {
        go_on(keep_going)?;
        let mut drawn = Vec::new();
        for &row in &open {
            let logits = logits(decoder, &rows[row].last, Head::Text)?;
            let id = samplers[row]
                // Drawn for finished frames too (and replaced below), so that the random stream matches
                // upstream's.
                .next(&logits)
                .doing(|| format!("draw id {step}"))?;
            answers[row].push(id);
            let ended = generation.stop_ids.contains(&id);
            if on_token(row, id)? == Continuation::Continue && !ended {
                drawn.push((row, Token::Text(id)));
            }
        }
        // The last id is never run through the decoder: nothing is drawn after it.
        if drawn.is_empty() || step == generation.max_new_tokens {
            break;
        }
        advance(decoder, rows, &drawn)?;
        open = drawn.into_iter().map(|(row, _)| row).collect();
    }
    Ok(answers)
}

/// Appends one token to each of the drawn contexts and updates their last hidden states.
fn advance(decoder: &dyn Forward, rows: &mut [Prompted], drawn: &[(usize, Token)]) -> Result<()> {
    let mut tokens: Vec<Option<Token>> = vec![None; rows.len()];
    for &(row, token) in drawn {
        tokens[row] = Some(token);
    }
    let positions: Vec<u32> = rows.iter().map(|row| row.cache.next_position()).collect();
    let mut batch = Vec::with_capacity(drawn.len());
    for ((row, token), position) in rows.iter_mut().zip(&tokens).zip(&positions) {
        if let Some(token) = token {
            batch.push(Row {
                tokens: std::slice::from_ref(token),
                positions: Positions::Line(std::slice::from_ref(position)),
                segments: None,
                features: &[],
                cache: &mut *row.cache,
            });
        }
    }
    let hidden = decoder.last_hidden(&mut batch)?;
    let moved = rows
        .iter_mut()
        .zip(&tokens)
        .filter(|(_, token)| token.is_some());
    for (i, (row, _)) in moved.enumerate() {
        row.last = hidden.narrow(0, i, 1)?;
    }
    Ok(())
}

/// Parameters of frame generation.
#[derive(Debug, Clone)]
pub struct VisionGeneration {
    /// Frames to generate.
    pub frames: usize,
    /// Tokens of one frame: its codes and the end-of-frame id.
    pub tokens_per_frame: usize,
    /// The id that ends every frame, replacing the drawn one.
    pub end_of_frame_id: u32,
    /// Logits are `uncond + guidance · (cond − uncond)`.
    pub guidance: f64,
    /// How ids are drawn.
    pub draw: Draw,
}

/// Generates `frames · tokens_per_frame` vision ids with classifier-free guidance
/// (`lwm/vision_llama.py`, `generate_vision`): two contexts, the second
/// without the description, receive the same ids.
///
/// The tokens given with each cache, at least one, are prefilled first. Every id but
/// the last is in the caches afterwards: a later call continues with it.
pub fn generate_vision(
    decoder: &dyn Forward,
    conditional: (&mut KvCache, &[Token]),
    unconditional: (&mut KvCache, &[Token]),
    generation: &VisionGeneration,
    keep_going: &KeepGoing,
    on_token: &mut dyn FnMut(u32),
) -> Result<Vec<u32>> {
    let n = generation
        .frames
        .saturating_mul(generation.tokens_per_frame);
    let mut rows = Vec::with_capacity(2);
    for (cache, tokens) in [conditional, unconditional] {
        let all = tokens.len().saturating_add(n.saturating_sub(1));
        let end = (cache.next_position() as usize).saturating_add(all);
        has_room(decoder, cache, all, end)?;
        let last = prefill(
            decoder,
            cache,
            tokens,
            PROMPT_CHUNK,
            keep_going,
            &mut |_| {},
        )?;
        rows.push(Prompted { cache, last });
    }
    // The stream is the context's length, so that a later call does not repeat the draws of an earlier one.
    let stream = rows.first().map_or(0, |row| row.cache.len() as u64);
    let mut sampler = Sampler::new(&generation.draw, stream);
    let mut ids = Vec::new();
    for step in 1..=n {
        go_on(keep_going)?;
        let logits = guided_logits(decoder, &rows, generation.guidance)?;
        let drawn = sampler
            .next(&logits)
            .doing(|| format!("draw vision id {step}"))?;
        let ends = step.is_multiple_of(generation.tokens_per_frame);
        let id = if ends {
            generation.end_of_frame_id
        } else {
            drawn
        };
        ids.push(id);
        on_token(id);
        if step < n {
            let token = Token::Vision(id);
            advance(decoder, &mut rows, &[(0, token), (1, token)])?;
        }
    }
    Ok(ids)
}

/// Prefill chunk of generation prompts, which are short.
const PROMPT_CHUNK: usize = 512;

fn guided_logits(decoder: &dyn Forward, rows: &[Prompted], guidance: f64) -> Result<Vec<f32>> {
    let [conditional, unconditional] = rows else {
        return Err(Error::new(Kind::Internal, "guidance needs two contexts"));
    };
    let mut logits = logits(decoder, &conditional.last, Head::Vision)?;
    let without = self::logits(decoder, &unconditional.last, Head::Vision)?;
    for (with, without) in logits.iter_mut().zip(without) {
        *with = without + guidance as f32 * (*with - without);
    }
    Ok(logits)
}

fn logits(decoder: &dyn Forward, last: &Tensor, head: Head) -> Result<Vec<f32>> {
    Ok(decoder.logits(last, head)?.flatten_all()?.to_vec1()?)
}

fn go_on(keep_going: &KeepGoing) -> Result<()> {
    if keep_going() {
        Ok(())
    } else {
        Err(Error::new(Kind::Interrupted, "stopped on request"))
    }
}
