//! A part of a prompt, on its way into the context.

use longreel_models::{context::vocab::Token, llama::Input};

/// Tokens, with features and positions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// `[features, feature_width]`, one row for each `Token::Feature`.
    pub features: Vec<f32>,
    /// Time, height and width of each token; empty where positions continue the context's.
    pub positions: Vec<[u32; 3]>,
}

impl From<Vec<Token>> for Piece {
    fn from(tokens: Vec<Token>) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }
}

impl Piece {
    /// Appends another piece.
    pub fn append(&mut self, mut next: Self) {
        self.tokens.append(&mut next.tokens);
        self.features.append(&mut next.features);
        self.positions.append(&mut next.positions);
    }

    /// Takes the first `n` tokens, whose features have `width` numbers each.
    pub fn take(&mut self, n: usize, width: usize) -> Self {
        let tokens: Vec<Token> = self.tokens.drain(..n).collect();
        let own = width * tokens.iter().filter(|token| token.is_feature()).count();
        let placed = n.min(self.positions.len());
        Self {
            tokens,
            features: self
                .features
                .drain(..own.min(self.features.len()))
                .collect(),
            positions: self.positions.drain(..placed).collect(),
        }
    }

    /// The decoder's input.
    pub fn input(&self) -> Input<'_> {
        Input {
            tokens: &self.tokens,
            features: &self.features,
            positions: (!self.positions.is_empty()).then_some(&self.positions),
        }
    }
}
