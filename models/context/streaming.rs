//! Detokenization one id at a time: printed text is final, never half a
//! character, and its concatenation equals decoding all ids at once.
//!
//! A byte-fallback run is decoded as a whole: valid UTF-8, or one U+FFFD per
//! byte (`ByteFallback` of the tokenizers crate). So its bytes are held back until the
//! run ends or can no longer become valid; from then on each byte is U+FFFD.

use tokenizers::{Decoder, DecoderWrapper};

use super::{
    decoding_rule::DecodingRule,
    tokenizer::{Tokenizer, failed},
};
use crate::error::Result;

/// Decodes a growing list of ids.
pub struct StreamingDecoder<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    run: ByteRun,
    /// Characters that may still be stripped from the front.
    strip_left: usize,
    /// All ids, for [`Rule::Whole`].
    ids: Vec<u32>,
}

impl<'t> StreamingDecoder<'t> {
    /// An incremental decoder for the ids of an answer, without special tokens.
    pub fn of_answer(tokenizer: &'t Tokenizer) -> Self {
        Self::new(tokenizer, true)
    }

    /// A decoder that has seen no id.
    pub fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> Self {
        let strip_left = match tokenizer.rule() {
            DecodingRule::Pieces {
                strip: Some((_, n)),
                ..
            } => *n,
            _ => 0,
        };
        Self {
            tokenizer,
            skip_special,
            run: ByteRun::default(),
            strip_left,
            ids: Vec::new(),
        }
    }

    /// Adds an id → the text that is now final, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let Some(piece) = self.tokenizer.piece(id, self.skip_special) else {
            return Ok(None);
        };
        let text = match self.tokenizer.rule() {
            DecodingRule::Pieces {
                replace,
                byte_fallback,
                strip,
            } => {
                let text = self.push_piece(substitute(replace, piece)?, *byte_fallback);
                self.strip(text, *strip)
            }
            DecodingRule::ByteLevel => self.run.push_lossy(&byte_level_bytes(&piece)),
            DecodingRule::Whole => {
                self.ids.push(id);
                String::new()
            }
        };
        Ok((!text.is_empty()).then_some(text))
    }

    fn push_piece(&mut self, piece: String, byte_fallback: bool) -> String {
        match byte_of(&piece).filter(|_| byte_fallback) {
            Some(byte) => self.run.push(byte),
            None => self.run.end() + &piece,
        }
    }

    /// Ends the ids → the text that was still held back.
    pub fn finish(&mut self) -> Result<String> {
        match self.tokenizer.rule() {
            DecodingRule::Pieces { strip, .. } => {
                let text = self.run.end();
                Ok(self.strip(text, *strip))
            }
            DecodingRule::ByteLevel => Ok(self.run.end_lossy()),
            DecodingRule::Whole => self.tokenizer.decode(&self.ids, self.skip_special),
        }
    }

    /// Strips leading characters of the whole text.
    fn strip(&mut self, text: String, strip: Option<(char, usize)>) -> String {
        let Some((content, _)) = strip else {
            return text;
        };
        let mut rest = text.as_str();
        while self.strip_left > 0 && !rest.is_empty() {
            match rest.strip_prefix(content) {
                Some(shorter) => (rest, self.strip_left) = (shorter, self.strip_left - 1),
                None => self.strip_left = 0,
            }
        }
        rest.to_owned()
    }
}

fn substitute(replace: &[DecoderWrapper], piece: String) -> Result<String> {
    let start = vec![piece];
    let pieces = replace
        .iter()
        .try_fold(start, |pieces, decoder| decoder.decode_chain(pieces))
        .map_err(failed)?;
    Ok(pieces.concat())
}

/// The byte of a byte-fallback piece: `<0x0A>` is 10.
fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// Bytes of a byte-level piece (GPT-2's `bytes_to_unicode`, inverted); a piece
/// with any other character is literal text.
fn byte_level_bytes(piece: &str) -> Vec<u8> {
    piece
        .chars()
        .map(byte_level_byte)
        .collect::<Option<_>>()
        .unwrap_or_else(|| piece.as_bytes().to_vec())
}

/// Printable Latin-1 characters map to themselves, U+0100 and up to the 68 other bytes in order.
fn byte_level_byte(c: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => u8::try_from(code).ok().filter(|&byte| printable(byte)),
        code => (0..=255u8)
            .filter(|&byte| !printable(byte))
            .nth((code - 0x100) as usize),
    }
}

/// Bytes whose text is not final yet.
#[derive(Debug, Default)]
struct ByteRun {
    held: Vec<u8>,
    /// Prefix of `held` that is whole characters.
    n_whole: usize,
    /// Whether the run is known not to be UTF-8.
    broken: bool,
}

impl ByteRun {
    /// Adds a byte of the run → text, once the run is broken.
    fn push(&mut self, byte: u8) -> String {
        self.held.push(byte);
        if !self.broken {
            self.look();
        }
        if self.broken {
            self.replace_held()
        } else {
            String::new()
        }
    }

    /// Checks the bytes after the last whole character: at most four of them.
    fn look(&mut self) {
        match std::str::from_utf8(self.held.get(self.n_whole..).unwrap_or_default()) {
            Ok(_) => self.n_whole = self.held.len(),
            Err(error) => self.broken = error.error_len().is_some(),
        }
    }

    /// Ends the run → its text, or U+FFFD for each byte not yet printed.
    fn end(&mut self) -> String {
        let whole = !self.broken && self.n_whole == self.held.len();
        self.broken = false;
        self.n_whole = 0;
        match String::from_utf8(std::mem::take(&mut self.held)) {
            Ok(text) if whole => text,
            Ok(text) => replacement(text.len()),
            Err(error) => replacement(error.as_bytes().len()),
        }
    }

    fn replace_held(&mut self) -> String {
        let n = self.held.len();
        self.held.clear();
        replacement(n)
    }

    /// Adds bytes of a stream that is decoded like `String::from_utf8_lossy`.
    fn push_lossy(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let incomplete = match self.held.utf8_chunks().last() {
            Some(last) if may_continue(last.invalid()) => last.invalid().len(),
            _ => 0,
        };
        let tail = self.held.split_off(self.held.len() - incomplete);
        String::from_utf8_lossy(&std::mem::replace(&mut self.held, tail)).into_owned()
    }

    fn end_lossy(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Whether more bytes could make this a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

fn replacement(n: usize) -> String {
    "\u{FFFD}".repeat(n)
}
