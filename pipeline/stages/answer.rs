//! The answer stage: context to answer. A conversation keeps its context, so that a
//! follow-up question costs only its own tokens.

use candle_core::Tensor;
use crossbeam_channel::Receiver;
use longreel_models::{
    attention::{
        budget::Budget,
        kv_cache::{KvCache, KvDtype},
        ring::Traffic,
    },
    context::{streaming::StreamingDecoder, vocab::Token},
    llama::{
        generate::{Continuation, Generation, generate, prefill},
        group::Forward,
        sampler::Draw,
    },
};
use serde::Serialize;

use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    model::Model,
    stages::{piece::Piece, progress::Progress},
};

/// Generation options.
#[derive(Debug, Clone)]
pub struct AnswerOptions {
    /// Maximum length of an answer, in tokens.
    pub max_new_tokens: usize,
    /// How ids are drawn.
    pub draw: Draw,
    /// The answer ends before any of these texts.
    pub stop: Vec<String>,
    /// Tokens per prefill chunk and rank.
    pub prefill_chunk: usize,
    /// Element type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Maximum bytes of the leading rank's part of the KV cache; no limit when absent.
    pub kv_limit_bytes: Option<usize>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it.
    Eos,
    /// A stop text occurred.
    Stop,
    /// It reached the maximum length.
    Length,
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The text, without the stop text.
    pub text: String,
    /// Ids of the answer, the end of sequence included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// A context under construction and the answers drawn from it.
pub struct Conversation<'a> {
    model: &'a Model,
    decoder: &'a dyn Forward,
    options: AnswerOptions,
    cache: KvCache,
    /// Prompt so far, as tokens.
    prompt: Vec<Token>,
    /// Input that does not yet fill a prefill chunk.
    waiting: Piece,
    /// Hidden state of the last prefilled token, `[1, hidden]`.
    last: Option<Tensor>,
}

impl<'a> Conversation<'a> {
    /// An empty context for `model`, whose decoder runs on one rank or several.
    pub fn new(model: &'a Model, decoder: &'a dyn Forward, options: AnswerOptions) -> Self {
        let limit = options.kv_limit_bytes.unwrap_or(usize::MAX);
        let cache = decoder.context(options.kv_dtype);
        Self {
            model,
            cache: cache.within(Budget::new(limit)),
            decoder,
            options,
            prompt: Vec::new(),
            waiting: Piece::default(),
            last: None,
        }
    }

    /// Every token of the context so far, answers included.
    pub fn tokens(&self) -> &[Token] {
        &self.prompt
    }

    /// Traffic between ranks so far; `None` for a single rank.
    pub fn traffic(&self) -> Option<Traffic> {
        self.decoder.traffic()
    }

    /// Bytes of keys and values held.
    pub fn kv_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Prefills pieces as they arrive, in whole chunks, so that the result does
    /// not depend on how the prompt was split into pieces.
    pub fn listen(
        &mut self,
        pieces: Receiver<Piece>,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        for piece in pieces {
            cancel.check()?;
            self.prompt.extend_from_slice(&piece.tokens);
            self.waiting.append(piece);
            let step = self.decoder.step(self.options.prefill_chunk);
            let whole = self.waiting.tokens.len() / step * step;
            self.prefill(whole, progress, cancel)?;
        }
        cancel.check()
    }

    /// Adds text to the context.
    pub fn say(&mut self, tokens: &[Token]) {
        self.prompt.extend_from_slice(tokens);
        self.waiting.append(Piece::from(tokens.to_vec()));
    }

    fn prefill(&mut self, n: usize, progress: &Progress, cancel: &Cancel) -> Result<()> {
        if n == 0 {
            return Ok(());
        }
        let piece = self.waiting.take(n, self.decoder.spec().feature_width());
        let keep_going = || !cancel.is_cancelled();
        let chunk = self.options.prefill_chunk;
        let hidden = progress.prefill_busy.measure(|| {
            prefill(
                self.decoder,
                &mut self.cache,
                piece.input(),
                chunk,
                &keep_going,
                &mut |n| {
                    progress.tokens_prefilled.add(n as u64);
                },
            )
        });
        self.last = Some(hidden.doing(|| format!("prefill {} tokens", self.prompt.len()))?);
        Ok(())
    }

    /// Generates an answer; `on_text` receives it piece by piece, in whole characters.
    pub fn answer(
        &mut self,
        on_text: &mut dyn FnMut(&str),
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Answer> {
        self.prefill(self.waiting.tokens.len(), progress, cancel)?;
        let last = self.last.take().ok_or_else(|| {
            Error::new(Kind::Internal, "an answer was requested without a prompt")
        })?;
        let mut text = StoppedText::new(
            StreamingDecoder::of_answer(&self.model.tokenizer),
            &self.options.stop,
        );
        let generation = Generation {
            max_new_tokens: self.options.max_new_tokens,
            draw: self.options.draw.clone(),
            stop_ids: self.model.stop_ids.clone(),
        };
        let keep_going = || !cancel.is_cancelled();
        let ids = progress.generate_busy.measure(|| {
            generate(
                self.decoder,
                &mut self.cache,
                &last,
                &generation,
                &keep_going,
                &mut |id| {
                    progress.tokens_generated.add(1);
                    text.push(id, on_text)
                },
            )
        })?;
        let ended = ids
            .last()
            .is_some_and(|id| self.model.stop_ids.contains(id));
        let (text, stopped) = text.finish(on_text)?;
        self.remember(&ids);
        let finish = match (stopped, ended) {
            (true, _) => Finish::Stop,
            (false, true) => Finish::Eos,
            (false, false) => Finish::Length,
        };
        Ok(Answer { text, ids, finish })
    }

    /// The last id of an answer is not yet in the cache: it is prefilled with the next question.
    fn remember(&mut self, ids: &[u32]) {
        self.prompt.extend(ids.iter().map(|&id| Token::Text(id)));
        let cached = self.cache.len();
        let rest = self.prompt.get(cached..).unwrap_or_default();
        self.waiting = Piece::from(rest.to_vec());
    }
}

/// Text decoded from ids, which ends before the first stop text.
struct StoppedText<'a> {
    decoder: StreamingDecoder<'a>,
    stops: &'a [String],
    text: String,
    /// Bytes of `text` already passed to `on_text`.
    told: usize,
    stopped: bool,
}

impl<'a> StoppedText<'a> {
    fn new(decoder: StreamingDecoder<'a>, stops: &'a [String]) -> Self {
        Self {
            decoder,
            stops,
            text: String::new(),
            told: 0,
            stopped: false,
        }
    }

    fn push(&mut self, id: u32, on_text: &mut dyn FnMut(&str)) -> Result<Continuation> {
        if let Some(piece) = self.decoder.push(id)? {
            self.append(&piece, on_text);
        }
        Ok(if self.stopped {
            Continuation::Stop
        } else {
            Continuation::Continue
        })
    }

    fn finish(mut self, on_text: &mut dyn FnMut(&str)) -> Result<(String, bool)> {
        let rest = self.decoder.finish()?;
        if !self.stopped {
            self.append(&rest, on_text);
        }
        self.tell(self.text.len(), on_text);
        Ok((self.text, self.stopped))
    }

    fn append(&mut self, piece: &str, on_text: &mut dyn FnMut(&str)) {
        self.text.push_str(piece);
        let found = self
            .stops
            .iter()
            .filter(|s| !s.is_empty())
            .filter_map(|s| self.text.find(s.as_str()))
            .min();
        match found {
            Some(at) => {
                self.text.truncate(at);
                self.stopped = true;
                self.tell(at, on_text);
            }
            None => self.tell(self.text.len() - self.held_back(), on_text),
        }
    }

    /// Bytes at the end that may begin a stop text.
    fn held_back(&self) -> usize {
        let longest_start = |stop: &String| {
            (1..stop.len())
                .rev()
                .find(|&n| stop.is_char_boundary(n) && self.text.ends_with(&stop[..n]))
                .unwrap_or(0)
        };
        self.stops.iter().map(longest_start).max().unwrap_or(0)
    }

    fn tell(&mut self, end: usize, on_text: &mut dyn FnMut(&str)) {
        if end > self.told {
            on_text(&self.text[self.told..end]);
            self.told = end;
        }
    }
}
