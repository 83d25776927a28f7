//! Input of the decoder: tokens, their positions, and the features among them.

use std::{borrow::Cow, ops::Range};

use crate::{attention::kv_cache::KvCache, context::vocab::Token};

/// New tokens of one context. Rows of a call may differ in length: nothing is padded.
pub struct Row<'a> {
    /// The tokens, at least one.
    pub tokens: &'a [Token],
    /// RoPE position of each.
    pub positions: Positions<'a>,
    /// Segment id of each; without them the tokens continue the context's last segment.
    pub segments: Option<&'a [u32]>,
    /// The rows that replace embeddings at each `Token::Feature`, in order, `[features, feature_width]`.
    pub features: &'a [f32],
    /// The context, to which the tokens are appended.
    pub cache: &'a mut KvCache,
}

/// RoPE positions of tokens.
#[derive(Debug, Clone, Copy)]
pub enum Positions<'a> {
    /// One number per token.
    Line(&'a [u32]),
    /// Time, height and width per token (M-RoPE, arXiv 2409.12191).
    Space(&'a [[u32; 3]]),
}

impl<'a> Positions<'a> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Self::Line(positions) => positions.len(),
            Self::Space(positions) => positions.len(),
        }
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The positions of the tokens in `range`; none where it is out of bounds.
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Line(positions) => Self::Line(positions.get(range).unwrap_or_default()),
            Self::Space(positions) => Self::Space(positions.get(range).unwrap_or_default()),
        }
    }

    /// The highest component of each.
    pub fn highest(self) -> Cow<'a, [u32]> {
        match self {
            Self::Line(positions) => Cow::Borrowed(positions),
            Self::Space(positions) => positions.iter().map(highest).collect(),
        }
    }

    /// The highest component of all.
    pub fn last(self) -> Option<u32> {
        match self {
            Self::Line(positions) => positions.iter().copied().max(),
            Self::Space(positions) => positions.iter().map(highest).max(),
        }
    }
}

fn highest(position: &[u32; 3]) -> u32 {
    position.iter().copied().max().unwrap_or(0)
}

/// Tokens, and the features of those that are `Token::Feature`.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The tokens.
    pub tokens: &'a [Token],
    /// As [`Row::features`].
    pub features: &'a [f32],
    /// Time, height and width of each token; without them all three continue from the context's last position.
    pub positions: Option<&'a [[u32; 3]]>,
}

impl<'a> Input<'a> {
    /// Chunks of `n` tokens, each with its positions and its features of `width` numbers.
    pub fn chunks(self, n: usize, width: usize) -> impl Iterator<Item = Self> {
        let mut features = self.features;
        let mut positions = self.positions;
        self.tokens.chunks(n).map(move |tokens| {
            let own = width * count_features(tokens);
            Input {
                tokens,
                features: split_off(&mut features, own),
                positions: positions.as_mut().map(|all| split_off(all, tokens.len())),
            }
        })
    }

    /// RoPE positions of the tokens; where none are given, they count up from `first`, stored in `counted`.
    pub fn positions_from(self, first: u32, counted: &'a mut Vec<u32>) -> Positions<'a> {
        match self.positions {
            Some(positions) => Positions::Space(positions),
            None => {
                let count = (0..self.tokens.len() as u32).map(|i| first.saturating_add(i));
                counted.extend(count);
                Positions::Line(counted)
            }
        }
    }
}

/// Takes the first `n` elements of `left`, or all of them.
fn split_off<'a, T>(left: &mut &'a [T], n: usize) -> &'a [T] {
    let (first, others) = left.split_at(n.min(left.len()));
    *left = others;
    first
}

/// Number of feature tokens.
pub fn count_features(tokens: &[Token]) -> usize {
    tokens.iter().filter(|token| token.is_feature()).count()
}

impl<'a> From<&'a [Token]> for Input<'a> {
    fn from(tokens: &'a [Token]) -> Self {
        Self {
            tokens,
            features: &[],
            positions: None,
        }
    }
}

impl<'a> From<&'a Vec<Token>> for Input<'a> {
    fn from(tokens: &'a Vec<Token>) -> Self {
        Self::from(tokens.as_slice())
    }
}

impl<'a, const N: usize> From<&'a [Token; N]> for Input<'a> {
    fn from(tokens: &'a [Token; N]) -> Self {
        Self::from(tokens.as_slice())
    }
}
