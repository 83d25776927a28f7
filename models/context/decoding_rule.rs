//! How the pieces of a vocabulary are joined to text.

use tokenizers::DecoderWrapper;

/// How pieces become text incrementally.
#[derive(Debug)]
pub(super) enum DecodingRule {
    /// LLaMA: substitutions within a piece, byte runs, characters stripped from the front.
    Pieces {
        replace: Vec<DecoderWrapper>,
        byte_fallback: bool,
        strip: Option<(char, usize)>,
    },
    /// GPT-2: every character of a piece is one byte.
    ByteLevel,
    /// Anything else: only the complete text is final.
    Whole,
}

impl DecodingRule {
    /// The rule equivalent to `decoder`.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::Sequence(sequence)) => {
                Self::of_sequence(sequence.get_decoders()).unwrap_or(Self::Whole)
            }
            Some(DecoderWrapper::ByteLevel(_)) => Self::ByteLevel,
            _ => Self::Whole,
        }
    }

    /// `Replace* ByteFallback? Fuse Strip?`, in this order.
    fn of_sequence(decoders: &[DecoderWrapper]) -> Option<Self> {
        let n_replace = decoders
            .iter()
            .take_while(|d| matches!(d, DecoderWrapper::Replace(_)))
            .count();
        let (replace, rest) = decoders.split_at_checked(n_replace)?;
        let (byte_fallback, rest) = match rest {
            [DecoderWrapper::ByteFallback(_), rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let strip = match rest {
            [DecoderWrapper::Fuse(_)] => None,
            [DecoderWrapper::Fuse(_), DecoderWrapper::Strip(strip)] if strip.stop == 0 => {
                Some((strip.content, strip.start))
            }
            _ => return None,
        };
        Some(Self::Pieces {
            replace: replace.to_vec(),
            byte_fallback,
            strip,
        })
    }
}
