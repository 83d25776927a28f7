//! Byte-pair tokenizers learned from texts, for models trained from scratch.

use serde_json::json;
use tokenizers::{
    AddedToken, Tokenizer,
    decoders::byte_level::ByteLevel,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::{PreTokenizerWrapper, digits::Digits, sequence::Sequence},
};

use crate::error::{Error, Kind, Result};

/// LLaMA's special tokens: begin, end, unknown.
const SPECIAL: [&str; 3] = ["<s>", "</s>", "<unk>"];

/// The smallest vocabulary: all bytes and the special tokens.
pub const VOCAB_MIN: usize = 256 + SPECIAL.len();

/// The two files of a tokenizer.
pub struct TokenizerFiles {
    /// Text of `tokenizer.json`.
    pub tokenizer: String,
    /// Text of `tokenizer_config.json`.
    pub config: String,
    /// The size of the vocabulary.
    pub vocab_size: usize,
}

/// Learns byte pairs of `texts` (arXiv 1508.07909), at most `vocab_size` tokens, which can encode any text. Every
/// digit is a token of its own, as in LLaMA.
///
/// # Errors
/// `Usage` for a vocabulary too small for all bytes, `BadInput` where the pairs cannot be learned.
pub fn learn<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
) -> Result<TokenizerFiles> {
    if vocab_size < VOCAB_MIN {
        let message =
            format!("the vocabulary has {vocab_size} tokens, expected at least {VOCAB_MIN}");
        return Err(Error::new(Kind::Usage, message));
    }
    let special = SPECIAL.map(|token| AddedToken::from(token, true));
    let pairs = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut trainer = TrainerWrapper::from(pairs);
    let bytes = ByteLevel::new(false, true, true);
    let mut inner = Tokenizer::new(BPE::default());
    inner.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(bytes),
    ])));
    inner.with_decoder(Some(bytes));
    let not_learned = |e| Error::with_source(Kind::BadInput, "learn byte pairs", e);
    inner.train(&mut trainer, texts).map_err(not_learned)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "unk_token": SPECIAL[2],
    });
    Ok(TokenizerFiles {
        tokenizer: inner.to_string(true).map_err(not_learned)?,
        config: format!("{config:#}\n"),
        vocab_size: inner.get_vocab_size(true),
    })
}
