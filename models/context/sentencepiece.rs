//! Converts a SentencePiece `tokenizer.model` to a `tokenizers` BPE, the
//! way transformers 4.40 converts a `LlamaTokenizer` (`LlamaConverter` and
//! `SentencePieceExtractor` in its `convert_slow_tokenizer.py`).
//!
//! transformers 5 puts space signs otherwise ([`Prefix`]). User-defined pieces are not treated specially, and the file's
//! character map and white space rules are not applied (LLaMA's file has none).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost::Message;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, Tokenizer,
    decoders::{
        byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as DecoderSequence,
        strip::Strip,
    },
    models::bpe::{BPE, Vocab},
    normalizers::{Prepend, Replace, Sequence as NormalizerSequence},
    pre_tokenizers::metaspace::{Metaspace, PrependScheme},
};

use crate::error::{Error, Kind, Result};

/// SentencePiece's sign for a space.
const SPACE: &str = "▁";
const SPACE_SIGN: char = '▁';

/// Maximum bytes of a piece. SentencePiece's own default is 16
/// characters; the bound keeps the search for merges linear in the file.
const PIECE_BYTES_MAX: usize = 1024;

/// `sentencepiece.ModelProto`, the fields that are used.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<VocabPiece>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
}

/// `sentencepiece.ModelProto.SentencePiece`.
#[derive(Clone, PartialEq, Message)]
struct VocabPiece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(enumeration = "PieceType", optional, tag = "3")]
    r#type: Option<i32>,
}

/// `sentencepiece.ModelProto.SentencePiece.Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum PieceType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// `sentencepiece.TrainerSpec`, the fields that are used.
#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
}

/// `sentencepiece.NormalizerSpec`, the fields that are used.
#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
}

/// A converted model and the names of its special pieces.
pub(super) struct Converted {
    /// The model, with its special pieces registered.
    pub tokenizer: Tokenizer,
    /// The unknown piece, `<unk>`.
    pub unk: String,
    /// The first control piece, `<s>`.
    pub bos: Option<String>,
    /// The second control piece, `</s>`.
    pub eos: Option<String>,
}

/// Where a space sign is put before text that does not have it. A run is the text between two added tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    /// Before every run, whatever it begins with.
    EveryRun,
    /// Before every run that does not begin with a space.
    EveryRunWithoutSpace,
    /// Before the first run, if it begins the text and not with a space.
    First,
}

/// Converts the bytes of a `tokenizer.model`.
///
/// Pieces whose ids `added` names get those names: folders rename placeholders of the vocabulary. `prefix` gives
/// the rule of space signs for what the file says of one before a text (`add_dummy_prefix`).
pub(super) fn convert(
    bytes: &[u8],
    added: &BTreeMap<u32, &str>,
    prefix: impl FnOnce(bool) -> Option<Prefix>,
) -> Result<Converted> {
    let mut model =
        ModelProto::decode(bytes).map_err(|e| bad(format!("not a protobuf model: {e}")))?;
    rename(&mut model.pieces, added);
    let asks = model
        .normalizer_spec
        .as_ref()
        .and_then(|n| n.add_dummy_prefix)
        .unwrap_or(true);
    convert_model(&model, prefix(asks))
}

/// Gives pieces the names of the added tokens with their ids, unless a piece with another id keeps that name.
fn rename(pieces: &mut [VocabPiece], added: &BTreeMap<u32, &str>) {
    let kept = pieces
        .iter()
        .zip(0u32..)
        .filter(|(_, id)| !added.contains_key(id));
    let kept: BTreeSet<String> = kept.filter_map(|(piece, _)| piece.piece.clone()).collect();
    for (piece, id) in pieces.iter_mut().zip(0u32..) {
        if let Some(&name) = added.get(&id).filter(|name| !kept.contains(**name)) {
            piece.piece = Some(name.to_owned());
        }
    }
}

/// Converts pieces, each with its score and the number of its type, as GGUF files have them.
///
/// User-defined pieces are matched before merging, as in llama.cpp.
pub(super) fn of_pieces(pieces: Vec<(String, f32, i32)>, prefix: bool) -> Result<Converted> {
    let has_bytes = pieces.iter().any(|p| p.2 == PieceType::Byte as i32);
    let piece = |(piece, score, kind)| VocabPiece {
        piece: Some(piece),
        score: Some(score),
        r#type: Some(kind),
    };
    let model = ModelProto {
        pieces: pieces.into_iter().map(piece).collect(),
        trainer_spec: Some(TrainerSpec {
            model_type: Some(2),
            byte_fallback: Some(has_bytes),
        }),
        normalizer_spec: None,
    };
    let mut converted = convert_model(&model, prefix.then_some(Prefix::EveryRun))?;
    // llama.cpp matches user-defined tokens in a text before BPE, so they are added tokens here.
    let defined = names(&model.pieces, PieceType::UserDefined);
    let defined = defined.map(|name| AddedToken::from(name, false).normalized(false));
    let added = converted.tokenizer.add_tokens(defined.collect::<Vec<_>>());
    added.map_err(|e| bad(e.to_string()))?;
    Ok(converted)
}

fn convert_model(model: &ModelProto, prefix: Option<Prefix>) -> Result<Converted> {
    check_model_type(model.trainer_spec.as_ref())?;
    let vocab = vocabulary(&model.pieces)?;
    let byte_fallback = model
        .trainer_spec
        .as_ref()
        .and_then(|t| t.byte_fallback)
        .unwrap_or(false);
    if byte_fallback {
        check_byte_pieces(&vocab)?;
    }
    let mut controls = names(&model.pieces, PieceType::Control);
    // By SentencePiece's convention the first unknown piece is `<unk>`, the first two control pieces are
    // `<s>` and `</s>`.
    let unk = names(&model.pieces, PieceType::Unknown)
        .next()
        .ok_or_else(|| bad("it has no unknown piece".into()))?;
    let bpe = BPE::builder()
        .vocab_and_merges(
            vocab
                .iter()
                .map(|(piece, &id)| ((*piece).to_owned(), id))
                .collect::<Vocab>(),
            merges(&model.pieces, &vocab),
        )
        .unk_token(unk.to_owned())
        .fuse_unk(true)
        .byte_fallback(byte_fallback)
        .build()
        .map_err(|e| bad(e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    dress(&mut tokenizer, prefix).map_err(|e| bad(e.to_string()))?;
    let (unk, bos, eos) = (
        unk.to_owned(),
        controls.next().map(str::to_owned),
        controls.next().map(str::to_owned),
    );
    let special = std::iter::once(unk.as_str()).chain(names(&model.pieces, PieceType::Control));
    let special: Vec<AddedToken> = special
        .map(|name| AddedToken::from(name, true).normalized(false))
        .collect();
    tokenizer
        .add_special_tokens(special)
        .map_err(|e| bad(e.to_string()))?;
    Ok(Converted {
        tokenizer,
        unk,
        bos,
        eos,
    })
}

/// Space signs and decoder of `LlamaTokenizerFast` (4.40) and `LlamaTokenizer` (5).
fn dress(tokenizer: &mut Tokenizer, prefix: Option<Prefix>) -> tokenizers::Result<()> {
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE, " ")?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix.is_some() {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
    let scheme = match prefix {
        Some(Prefix::EveryRunWithoutSpace) => PrependScheme::Always,
        Some(Prefix::First) => PrependScheme::First,
        Some(Prefix::EveryRun) | None => return normalize(tokenizer, prefix.is_some()),
    };
    tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE_SIGN, scheme, false)));
    Ok(())
}

/// Space signs by a normalizer, which prepends one whatever a run begins with.
fn normalize(tokenizer: &mut Tokenizer, prefix: bool) -> tokenizers::Result<()> {
    let mut normalizers: Vec<NormalizerWrapper> = vec![Replace::new(" ", SPACE)?.into()];
    if prefix {
        // Before the spaces are replaced, as in `LlamaConverter.normalizer` of transformers.
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
    }
    tokenizer.with_normalizer(Some(NormalizerSequence::new(normalizers)))?;
    Ok(())
}

fn check_model_type(spec: Option<&TrainerSpec>) -> Result<()> {
    // Absent means 1 by the schema's default.
    let name = match spec.and_then(|s| s.model_type).unwrap_or(1) {
        2 => return Ok(()),
        1 => "unigram",
        3 => "word",
        4 => "char",
        _ => "of an unknown type",
    };
    Err(bad(format!(
        "the model is {name}, expected bpe (LLaMA's); a tokenizer.json of it can be used instead"
    )))
}

/// Piece to id. Duplicates, empty and oversized pieces and NaN or infinite scores are errors.
fn vocabulary(pieces: &[VocabPiece]) -> Result<HashMap<&str, u32>> {
    let mut vocab = HashMap::with_capacity(pieces.len());
    for (piece, id) in pieces.iter().zip(0u32..) {
        let name = piece.piece.as_deref().unwrap_or_default();
        if name.is_empty() || name.len() > PIECE_BYTES_MAX {
            return Err(bad(format!(
                "piece {id} has {} bytes, expected 1 to {PIECE_BYTES_MAX}",
                name.len()
            )));
        }
        if !score(piece).is_finite() {
            return Err(bad(format!(
                "piece {id} has score {}, expected a finite number",
                score(piece)
            )));
        }
        if let Some(earlier) = vocab.insert(name, id) {
            return Err(bad(format!("pieces {earlier} and {id} are both {name:?}")));
        }
    }
    Ok(vocab)
}

fn check_byte_pieces(vocab: &HashMap<&str, u32>) -> Result<()> {
    match (0..=255u8).find(|byte| !vocab.contains_key(format!("<0x{byte:02X}>").as_str())) {
        Some(byte) => Err(bad(format!(
            "byte_fallback is set, but the piece <0x{byte:02X}> is missing"
        ))),
        None => Ok(()),
    }
}

/// Every split of every piece into two pieces, best score first; splits of one
/// piece in the order of their ids.
fn merges(pieces: &[VocabPiece], vocab: &HashMap<&str, u32>) -> Vec<(String, String)> {
    let mut merges = Vec::new();
    for piece in pieces {
        let name = piece.piece.as_deref().unwrap_or_default();
        let mut splits: Vec<_> = name
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| split(name, at, vocab))
            .collect();
        // `generate_merges` of transformers sorts the splits of a piece by the ids of both halves; the order
        // decides ties of score.
        splits.sort_by_key(|&(left, right, ..)| (left, right));
        merges.extend(
            splits
                .into_iter()
                .map(|(_, _, left, right)| (score(piece), left, right)),
        );
    }
    // A stable sort: on ties merges stay in order of id.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges
        .into_iter()
        .map(|(_, left, right)| (left.to_owned(), right.to_owned()))
        .collect()
}

/// Ids and names of the two halves, when both are pieces.
fn split<'a>(
    name: &'a str,
    at: usize,
    vocab: &HashMap<&str, u32>,
) -> Option<(u32, u32, &'a str, &'a str)> {
    let (left, right) = name.split_at_checked(at)?;
    Some((*vocab.get(left)?, *vocab.get(right)?, left, right))
}

fn names(pieces: &[VocabPiece], kind: PieceType) -> impl Iterator<Item = &str> {
    pieces
        .iter()
        .filter(move |p| p.r#type == Some(kind as i32))
        .filter_map(|p| p.piece.as_deref())
}

/// Maps −0 to 0, which are equal in Python's comparison but not in `total_cmp`.
fn score(piece: &VocabPiece) -> f32 {
    piece.score.unwrap_or(0.0) + 0.0
}

fn bad(message: String) -> Error {
    Error::new(Kind::BadInput, message).doing("read the SentencePiece model")
}
