//! The tokenizer and the chat template of a GGUF file.
//!
//! `tokenizer.ggml.model` is `llama` (SentencePiece's pieces with their scores) or `gpt2` (BPE over bytes);
//! the latter's pre-tokenizer is named by `tokenizer.ggml.pre` (`llama-vocab.cpp` of llama.cpp).

use std::{collections::HashSet, path::Path};

use tokenizers::{
    AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Inner,
    models::bpe::{BPE, Vocab},
    normalizers::NFC,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::{
    chat_template::ChatTemplate,
    sentencepiece,
    tokenizer::{Named, Tokenizer, failed, guarded},
};
use crate::{
    checkpoint::gguf::Header,
    error::{Context, Error, Kind, Result},
    file_name::FileName,
};

/// Token types (`llama_token_type`).
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// A pre-tokenizer: how a text is split before bytes are merged.
struct Cut {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Patterns whose matches become pieces, applied one after another.
    patterns: &'static [&'static str],
    /// Whether a word that is a token needs no merges, and BOS is added where the file does not say.
    is_llama_3: bool,
    /// Whether text is normalized to NFC first.
    composes: bool,
}

/// GPT-2's word pattern.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

const CUTS: [Cut; 4] = [
    Cut {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]"],
        is_llama_3: false,
        composes: false,
    },
    Cut {
        names: &["gpt-2"],
        patterns: &[WORDS],
        is_llama_3: false,
        composes: false,
    },
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        is_llama_3: true,
        composes: false,
    },
    Cut {
        names: &["qwen2"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        is_llama_3: false,
        composes: true,
    },
];

/// The tokenizer of a file's header.
///
/// # Errors
/// `BadInput` for an unknown kind, and for lists of different lengths.
pub fn tokenizer(header: &Header) -> Result<Tokenizer> {
    let vocabulary = Vocabulary::of(header)?;
    match header.text("tokenizer.ggml.model")? {
        Some("llama") => of_pieces(header, vocabulary),
        Some("gpt2") => of_merges(header, vocabulary),
        other => {
            let message = format!("tokenizer.ggml.model is {other:?}, expected llama or gpt2");
            Err(bad(message))
        }
    }
}

/// The chat template that the head of `file` brings, if it has one.
///
/// # Errors
/// `BadInput` when it does not compile.
pub fn chat_template(header: &Header, file: &Path) -> Result<Option<ChatTemplate>> {
    let name = format!("tokenizer.chat_template of {}", file.shown());
    let Some(source) = header
        .text("tokenizer.chat_template")
        .doing(|| name.clone())?
    else {
        return Ok(None);
    };
    let vocabulary = Vocabulary::of(header).doing(|| name.clone())?;
    let mut specials = Vec::new();
    for token in ["bos", "eos", "unk"] {
        let text = vocabulary.special(header, token)?;
        specials.extend(text.map(|text| (format!("{token}_token"), text)));
    }
    ChatTemplate::new(&name, source.to_owned(), specials).map(Some)
}

/// Ids that end an answer besides EOS.
///
/// # Errors
/// `BadInput` when a value is not a token id.
pub fn stop_ids(header: &Header) -> Result<Vec<u32>> {
    let keys = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    let ids = keys
        .into_iter()
        .filter_map(|key| header.id(key).transpose());
    ids.collect()
}

/// Tokens and their types.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl Vocabulary {
    fn of(header: &Header) -> Result<Self> {
        let tokens = header.array("tokenizer.ggml.tokens")?;
        let missing = || bad("tokenizer.ggml.tokens is missing, expected the vocabulary".into());
        let tokens = tokens.ok_or_else(missing)?.texts()?;
        let tokens: Vec<String> = tokens
            .map(|token| token.map(str::to_owned))
            .collect::<Result<_>>()?;
        let types = match header.array("tokenizer.ggml.token_type")? {
            Some(types) => types.numbers()?.map(|n| n as i32).collect(),
            None => vec![1; tokens.len()],
        };
        if types.len() != tokens.len() {
            return Err(differ("token_type", types.len(), tokens.len()));
        }
        Ok(Self { tokens, types })
    }

    /// The tokens of one type, in the order of their ids.
    fn of_type(&self, kind: i32) -> impl Iterator<Item = &String> {
        let typed = self.tokens.iter().zip(&self.types);
        typed
            .filter(move |(_, t)| **t == kind)
            .map(|(token, _)| token)
    }

    /// The text of the special token `name`, whose id the file has.
    fn special(&self, header: &Header, name: &str) -> Result<Option<String>> {
        // GGUF spells this key out.
        let name = if name == "unk" { "unknown" } else { name };
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = header.id(&key)? else {
            return Ok(None);
        };
        let token = self.tokens.get(id as usize).cloned();
        let n = self.tokens.len();
        let beyond = || bad(format!("{key} is {id}, expected one of {n} tokens"));
        token.ok_or_else(beyond).map(Some)
    }

    fn named(&self, header: &Header, adds_bos: bool) -> Result<Named> {
        let flag = |name: &str| header.flag(&format!("tokenizer.ggml.add_{name}_token"));
        Ok(Named {
            bos: self.special(header, "bos")?,
            eos: self.special(header, "eos")?,
            pad: self.special(header, "padding")?,
            unk: self.special(header, "unk")?,
            add_bos: flag("bos")?.unwrap_or(adds_bos),
            add_eos: flag("eos")?.unwrap_or(false),
        })
    }
}

/// SentencePiece's pieces.
fn of_pieces(header: &Header, vocabulary: Vocabulary) -> Result<Tokenizer> {
    let named = vocabulary.named(header, true)?;
    let scores = header.array("tokenizer.ggml.scores")?;
    let scores = scores.ok_or_else(|| bad("tokenizer.ggml.scores is missing".into()))?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(differ("scores", scores.len(), vocabulary.tokens.len()));
    }
    let Vocabulary { tokens, types } = vocabulary;
    let pieces = tokens.into_iter().zip(scores.numbers()?).zip(types);
    let pieces = pieces.map(|((token, score), kind)| (token, score as f32, kind));
    let pieces = pieces.collect();
    let prefix = header.flag("tokenizer.ggml.add_space_prefix")?;
    let converted = guarded(|| sentencepiece::of_pieces(pieces, prefix.unwrap_or(true)))?;
    let named = Named {
        bos: named.bos.or(converted.bos),
        eos: named.eos.or(converted.eos),
        unk: Some(converted.unk),
        ..named
    };
    Tokenizer::of_vocabulary(converted.tokenizer, named)
}

/// BPE over bytes.
fn of_merges(header: &Header, vocabulary: Vocabulary) -> Result<Tokenizer> {
    let cut = cut(header.text("tokenizer.ggml.pre")?.unwrap_or("default"))?;
    let named = vocabulary.named(header, cut.is_llama_3)?;
    let merges = merges(header, &vocabulary)?;
    let ids = vocabulary.tokens.iter().cloned().zip(0..);
    let vocab: Vocab = ids.collect();
    if vocab.len() != vocabulary.tokens.len() {
        return Err(bad("tokenizer.ggml.tokens has a token twice".into()));
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(cut.is_llama_3);
    let mut inner = guarded(|| Ok(Inner::new(bpe.build().map_err(failed)?)))?;
    dress(&mut inner, cut).map_err(failed)?;
    let special = vocabulary.of_type(CONTROL);
    let special = special.map(|t| AddedToken::from(t.clone(), true).normalized(false));
    let defined = vocabulary.of_type(USER_DEFINED);
    let defined = defined.map(|t| AddedToken::from(t.clone(), false).normalized(false));
    let added = special.chain(defined).collect::<Vec<_>>();
    inner.add_tokens(added).map_err(failed)?;
    Tokenizer::of_vocabulary(inner, named)
}

/// Merges, in order of priority.
fn merges(header: &Header, vocabulary: &Vocabulary) -> Result<Vec<(String, String)>> {
    let merges = header.array("tokenizer.ggml.merges")?;
    let merges = merges.ok_or_else(|| bad("tokenizer.ggml.merges is missing".into()))?;
    let known: HashSet<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
    let pair = |merge: Result<&str>| {
        let merge = merge?;
        let parts = merge.split_once(' ');
        let is_known = |(a, b): &(&str, &str)| {
            let whole = format!("{a}{b}");
            known.contains(a) && known.contains(b) && known.contains(whole.as_str())
        };
        let (a, b) = parts.filter(is_known).ok_or_else(|| {
            let merge: String = merge.chars().take(200).collect();
            bad(format!(
                "the merge {merge:?}, expected two tokens that make a third"
            ))
        })?;
        Ok((a.to_owned(), b.to_owned()))
    };
    merges.texts()?.map(pair).collect()
}

/// The pre-tokenizer of a name.
fn cut(name: &str) -> Result<&'static Cut> {
    let found = CUTS.iter().find(|cut| cut.names.contains(&name));
    found.ok_or_else(|| {
        let known: Vec<&str> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
        bad(format!(
            "tokenizer.ggml.pre is {name:?}, expected one of {} (a tokenizer.json beside the file is read first)",
            known.join(", ")
        ))
    })
}

/// Adds pre-tokenizer, decoder and post-processing.
fn dress(inner: &mut Inner, cut: &Cut) -> tokenizers::Result<()> {
    let mut steps = Vec::new();
    for pattern in cut.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        steps.push(PreTokenizerWrapper::Split(split));
    }
    let bytes = ByteLevel::new(false, true, false);
    steps.push(PreTokenizerWrapper::ByteLevel(bytes));
    if cut.composes {
        inner.with_normalizer(Some(NFC))?;
    }
    inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    inner.with_decoder(Some(bytes));
    Ok(())
}

fn differ(key: &str, found: usize, tokens: usize) -> Error {
    bad(format!(
        "tokenizer.ggml.{key} has {found} values, expected one for each of {tokens} tokens"
    ))
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message)
}
