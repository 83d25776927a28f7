//! How good answers are: exact matches, and what someone reaches who saw no video.

use std::collections::BTreeMap;

use serde::Serialize;

/// An answer as it is compared: without blanks around it, in lower case, without a final full stop.
pub fn normalized(answer: &str) -> String {
    let answer = answer.trim();
    let answer = answer.strip_suffix('.').unwrap_or(answer);
    answer.trim_end().to_lowercase()
}

/// Whether two answers are the same once both are [`normalized`].
pub fn is_exact(said: &str, expected: &str) -> bool {
    normalized(said) == normalized(expected)
}

/// Questions asked, and how many were answered exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// Questions.
    pub asked: u64,
    /// Exact answers.
    pub right: u64,
}

impl Score {
    /// Exact answers of one question; 0 where nothing was asked.
    pub fn share(self) -> f64 {
        self.right as f64 / self.asked.max(1) as f64
    }
}

/// The scores of `(kind, said, expected)`, by kind.
pub fn scores<'a>(
    answers: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>,
) -> BTreeMap<String, Score> {
    let mut scores: BTreeMap<String, Score> = BTreeMap::new();
    for (kind, said, expected) in answers {
        let score = scores.entry(kind.to_owned()).or_default();
        score.asked += 1;
        score.right += u64::from(is_exact(said, expected));
    }
    scores
}

/// The most frequent answer: the best that can be said without looking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prior {
    /// What is said; of equally frequent answers the first by letters.
    pub answer: String,
    /// What saying it always is worth.
    #[serde(flatten)]
    pub score: Score,
}

/// The priors of `(kind, answer)`, by kind. Whatever stands for the kind (say, a question's form) is told apart.
pub fn priors<'a>(
    answers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> BTreeMap<String, Prior> {
    let mut counts: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for (kind, answer) in answers {
        let of_kind = counts.entry(kind.to_owned()).or_default();
        *of_kind.entry(normalized(answer)).or_default() += 1;
    }
    let priors = counts.into_iter();
    priors
        .filter_map(|(kind, counts)| Some((kind, prior(counts)?)))
        .collect()
}

/// `None` where nothing was asked.
fn prior(counts: BTreeMap<String, u64>) -> Option<Prior> {
    let asked = counts.values().sum();
    // The last of the largest counts wins, so letters go backwards.
    let (answer, right) = counts.into_iter().rev().max_by_key(|(_, n)| *n)?;
    Some(Prior {
        answer,
        score: Score { asked, right },
    })
}
