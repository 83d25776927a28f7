//! A part of a prompt on its way into the context.

use longreel_models::{context::vocab::Token, llama::Input};

/// Tokens, and the features that some of them stand for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// `[features, hidden]`, one row for each `Token::Feature`.
    pub features: Vec<f32>,
}

impl From<Vec<Token>> for Piece {
    fn from(tokens: Vec<Token>) -> Self {
        let features = Vec::new();
        Self { tokens, features }
    }
}

impl Piece {
    /// Adds what comes behind.
    pub fn append(&mut self, mut next: Self) {
        self.tokens.append(&mut next.tokens);
        self.features.append(&mut next.features);
    }

    /// Takes the first `n` tokens, whose features have `width` numbers each.
    pub fn take(&mut self, n: usize, width: usize) -> Self {
        let tokens: Vec<Token> = self.tokens.drain(..n).collect();
        let own = width * tokens.iter().filter(|token| token.is_feature()).count();
        let features = self.features.drain(..own).collect();
        Self { tokens, features }
    }

    /// As the decoder takes it.
    pub fn input(&self) -> Input<'_> {
        Input {
            tokens: &self.tokens,
            features: &self.features,
            positions: None,
        }
    }
}
