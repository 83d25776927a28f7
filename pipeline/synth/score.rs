//! Scoring of answers: exact matches, and the blind baseline.

use std::collections::BTreeMap;

use serde::Serialize;

/// The normal form for comparison: trimmed, lower case, without a final full stop.
pub fn normalized(answer: &str) -> String {
    let answer = answer.trim();
    let answer = answer.strip_suffix('.').unwrap_or(answer);
    answer.trim_end().to_lowercase()
}

/// Whether two answers are equal after [`normalized`].
pub fn is_exact(said: &str, expected: &str) -> bool {
    normalized(said) == normalized(expected)
}

/// Numbers of questions and of exact answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// Questions.
    pub asked: u64,
    /// Exact answers.
    pub right: u64,
}

impl Score {
    /// Share of exact answers; 0 where nothing was asked.
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

/// The blind baseline: always giving the most frequent answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prior {
    /// The answer; on ties the alphabetically first.
    pub answer: String,
    /// Its score.
    #[serde(flatten)]
    pub score: Score,
}

/// The baselines of `(kind, answer)`, by kind, which may be any grouping (such as a question's form).
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
    // max_by_key takes the last maximum: reversed, that is the alphabetically first answer.
    let (answer, right) = counts.into_iter().rev().max_by_key(|(_, n)| *n)?;
    Some(Prior {
        answer,
        score: Score { asked, right },
    })
}
