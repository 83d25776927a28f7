//! Parses a model's reply into questions and answers.

use std::mem;

use serde::{Deserialize, Serialize};

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is complete.
    Whole,
    /// It was cut off: its last line may be incomplete.
    Cut,
}

/// The mark at the beginning of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Question,
    Answer,
}

const MARKS: [(&str, Mark); 4] = [
    ("question", Mark::Question),
    ("answer", Mark::Answer),
    ("q", Mark::Question),
    ("a", Mark::Answer),
];

/// The pair being read.
#[derive(Default)]
enum Open {
    #[default]
    Nothing,
    Question(String),
    Both(Pair),
}

/// The pairs of a text whose lines are `Question: ...` and `Answer: ...`, or `Q:` and `A:`, with or without numbers,
/// list marks and emphasis.
///
/// Lines without a mark continue the previous one; an empty line ends an answer. A question without an answer
/// is left out, as is a last answer that was cut off.
pub fn pairs_of(text: &str, end: End) -> Vec<Pair> {
    let (mut pairs, mut open) = (Vec::new(), Open::Nothing);
    for line in text.lines().map(str::trim) {
        open = match (marked(line), open) {
            (Some((Mark::Question, rest)), before) => {
                close(before, &mut pairs);
                begun(rest)
            }
            (Some((Mark::Answer, answer)), Open::Question(question)) => Open::Both(Pair {
                question,
                answer: answer.to_owned(),
            }),
            (Some((Mark::Answer, _)), before) => {
                close(before, &mut pairs);
                Open::Nothing
            }
            (None, Open::Both(pair)) if line.is_empty() && has_words(&pair.answer) => {
                close(Open::Both(pair), &mut pairs);
                Open::Nothing
            }
            (None, before) => continued(before, line),
        };
    }
    if end == End::Whole || text.ends_with('\n') {
        close(open, &mut pairs);
    }
    pairs
}

/// A question, and its answer where both stand on one line.
fn begun(rest: &str) -> Open {
    // ASCII lowercasing keeps byte offsets.
    let lower = rest.to_ascii_lowercase();
    let answer = lower
        .find(" answer:")
        .map(|at| (&rest[..at], &rest[at + " answer:".len()..]));
    match answer {
        Some((question, answer)) => Open::Both(Pair {
            question: question.trim().to_owned(),
            answer: answer.trim().to_owned(),
        }),
        None => Open::Question(rest.to_owned()),
    }
}

fn continued(mut open: Open, line: &str) -> Open {
    let text = match &mut open {
        Open::Question(question) => question,
        Open::Both(pair) => &mut pair.answer,
        Open::Nothing => return open,
    };
    let before = mem::take(text);
    *text = format!("{before} {line}").trim().to_owned();
    open
}

fn close(open: Open, pairs: &mut Vec<Pair>) {
    match open {
        Open::Both(pair) if has_words(&pair.question) && has_words(&pair.answer) => {
            pairs.push(pair);
        }
        _ => {}
    }
}

/// `false` for the dots of a form that was merely repeated.
fn has_words(text: &str) -> bool {
    text.contains(char::is_alphanumeric)
}

/// The mark of a line, and the text after it.
fn marked(line: &str) -> Option<(Mark, &str)> {
    let line = without_number(line.trim_start_matches(is_decoration));
    let line = line.trim_start_matches(is_decoration);
    MARKS.into_iter().find_map(|(word, mark)| {
        let (here, rest) = line.split_at_checked(word.len())?;
        let rest = here.eq_ignore_ascii_case(word).then_some(rest)?;
        Some((mark, behind_mark(rest)?))
    })
}

/// The text after the colon of `: ...`, ` 1: ...`, `1. ...` or `:** ...**`.
fn behind_mark(rest: &str) -> Option<&str> {
    let rest = rest.trim_start_matches(is_decoration);
    let behind_number = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_numbered = behind_number.len() < rest.len();
    let rest = behind_number.trim_start_matches(is_decoration);
    let is_end = |c: char| matches!(c, ':' | '：') || is_numbered && matches!(c, '.' | ')');
    let rest = rest.strip_prefix(is_end)?.trim_start_matches('*').trim();
    Some(rest.strip_suffix("**").unwrap_or(rest).trim_end())
}

/// `text` without a `1.`, `1)`, `(1)` or `1:` before it.
fn without_number(text: &str) -> &str {
    let behind = text.trim_start_matches(|c: char| c.is_ascii_digit());
    match behind.strip_prefix(['.', ')', ':']) {
        Some(rest) if behind.len() < text.len() => rest,
        _ => text,
    }
}

fn is_decoration(c: char) -> bool {
    c.is_whitespace() || matches!(c, '*' | '#' | '-' | '>' | '•' | '(' | '_')
}
