//! Questions about a script, with exact answers.
//!
//! Answers are balanced: within every kind but stories they are about equally frequent, so that a question
//! does not give its answer away. Appearances, motions and numbers of objects are drawn evenly, and
//! a too frequent answer (that something begins with the video) is asked for less often.

use serde::{Deserialize, Serialize};

use super::{
    draws::Draws,
    world::{Appearance, Colour, Object, Script, Shape, Shot, words},
};

/// Attempts at drawing a question of a kind before the clip counts as having none.
const TRIES: usize = 64;

words! {
    /// What a question is about.
    QuestionKind {
        /// The shape of an object.
        Shape = "shape",
        /// The colour of an object.
        Colour = "colour",
        /// The direction in which an object moves.
        Motion = "motion",
        /// The number of objects at a second.
        Count = "count",
        /// Which of two objects comes first, or what follows an object.
        Order = "order",
        /// The second at which an object appears.
        When = "when",
        /// What is shown at a second.
        WhatAt = "what_at",
        /// One object in one second of a long clip.
        Needle = "needle",
        /// All that happens, and when.
        Story = "story",
    }
}

impl QuestionKind {
    /// Whether it is asked by default. Stories are for training: one answer tells much.
    pub fn is_usual(self) -> bool {
        self != Self::Story
    }
}

/// A question about a clip, with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Its kind.
    pub kind: QuestionKind,
    /// The question's text.
    pub question: String,
    /// The answer: lower case, from a closed set of words.
    pub answer: String,
    /// The seconds that show the answer: the first, and the first one after.
    pub time: [u32; 2],
}

impl Question {
    /// The question with placeholders for names and numbers: `What colour is the SHAPE at second N?`
    ///
    /// Answers to one form are of one sort, so that its most frequent answer is the best guess
    /// without the video: the blind baseline.
    pub fn form(&self) -> String {
        let words = self
            .question
            .split_inclusive(|c: char| !c.is_alphanumeric());
        words.map(form_of).collect()
    }
}

fn form_of(word: &str) -> String {
    let name = word.trim_end_matches(|c: char| !c.is_alphanumeric());
    let end = &word[name.len()..];
    let placeholder = match name {
        _ if Colour::ALL.iter().any(|c| c.word() == name) => "COLOUR",
        _ if Shape::ALL.iter().any(|s| s.word() == name) => "SHAPE",
        _ if !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) => "N",
        _ => name,
    };
    format!("{placeholder}{end}")
}

/// Up to `n` different questions of `kind` about `script`.
pub fn questions(
    script: &Script,
    kind: QuestionKind,
    n: usize,
    draws: &mut Draws,
) -> Vec<Question> {
    let told = IndexedScript::of(script);
    let mut asked: Vec<Question> = Vec::new();
    for _ in 0..TRIES.saturating_mul(n) {
        if asked.len() == n {
            break;
        }
        let found = told.ask(kind, draws);
        let is_new = |q: &Question| asked.iter().all(|a| a.question != q.question);
        asked.extend(found.filter(is_new));
    }
    asked
}

/// An object and its shot.
#[derive(Clone, Copy)]
struct SeenObject<'s> {
    shot: &'s Shot,
    object: &'s Object,
}

/// A script and the list of its objects.
struct IndexedScript<'s> {
    script: &'s Script,
    seen: Vec<SeenObject<'s>>,
}

impl<'s> IndexedScript<'s> {
    fn of(script: &'s Script) -> Self {
        let of_shot = |shot: &'s Shot| {
            shot.objects
                .iter()
                .map(move |object| SeenObject { shot, object })
        };
        let seen = script.shots.iter().flat_map(of_shot).collect();
        Self { script, seen }
    }

    /// A random question; `None` where the draw has no unambiguous question.
    fn ask(&self, kind: QuestionKind, draws: &mut Draws) -> Option<Question> {
        let is_needle = kind == QuestionKind::Needle;
        if self.seen.is_empty() || is_needle == self.script.blobs.is_empty() {
            return None;
        }
        let (question, answer, time) = match kind {
            QuestionKind::Shape => self.shape(draws),
            QuestionKind::Colour => self.colour(draws),
            QuestionKind::Motion => self.motion(draws),
            QuestionKind::Count => self.count(draws),
            QuestionKind::Order => self.order(draws),
            QuestionKind::When => self.when(draws),
            QuestionKind::WhatAt => self.what_at(draws),
            QuestionKind::Needle => Some(self.needle(draws)),
            QuestionKind::Story => Some(self.story()),
        }?;
        Some(Question {
            kind,
            question,
            answer,
            time,
        })
    }

    fn shape(&self, draws: &mut Draws) -> Option<AnsweredQuestion> {
        let seen = draws.one_of(&self.seen);
        let colour = seen.object.look.colour;
        let is_alike = |object: &Object| object.look.colour == colour;
        let question = match draws.below(3) {
            0 => seen.alone()?.at(draws, "What shape is shown"),
            1 => {
                let what = format!("What shape is the {} object", colour.word());
                seen.unlike_others(is_alike)?.at(draws, &what)
            }
            _ => {
                self.once(is_alike)?;
                format!("What shape is the {} object?", colour.word())
            }
        };
        let answer = seen.object.look.shape.word().to_owned();
        Some((question, answer, seen.time()))
    }

    fn colour(&self, draws: &mut Draws) -> Option<AnsweredQuestion> {
        let seen = draws.one_of(&self.seen);
        let shape = seen.object.look.shape;
        let is_alike = |object: &Object| object.look.shape == shape;
        let question = match draws.below(3) {
            0 => seen.alone()?.at(draws, "What colour is the object"),
            1 => {
                let what = format!("What colour is the {}", shape.word());
                seen.unlike_others(is_alike)?.at(draws, &what)
            }
            _ => {
                self.once(is_alike)?;
                format!("What colour is the {}?", shape.word())
            }
        };
        let answer = seen.object.look.colour.word().to_owned();
        Some((question, answer, seen.time()))
    }

    /// Motion, only in shots long enough to move.
    fn motion(&self, draws: &mut Draws) -> Option<AnsweredQuestion> {
        let seen = self.unique(draws)?;
        let question = format!("Which way does the {} move?", seen.name());
        let answer = seen.object.motion.word().to_owned();
        (seen.shot.seconds() > 1).then(|| (question, answer, seen.time()))
    }

    fn count(&self, draws: &mut Draws) -> Option<AnsweredQuestion> {
        let shots: Vec<&Shot> = self.script.shots.iter().collect();
        let shot = draws.one_of(&shots);
        let second = second_of(shot, draws);
        let question = format!("How many objects are shown at second {second}?");
        Some((
            question,
            shot.objects.len().to_string(),
            [shot.from, shot.to],
        ))
    }

    fn order(&self, draws: &mut Draws) -> Option<AnsweredQuestion> {
        let (first, second) = (self.unique(draws)?, self.unique(draws)?);
        match draws.below(2) {
            0 if first.shot.from != second.shot.from => Some(first_of(first, second)),
            1 => self.after(first),
            _ => None,
        }
    }

    /// What follows `seen`, where both are alone in their shots.
    fn after(&self, seen: SeenObject<'_>) -> Option<AnsweredQuestion> {
        let end = seen.alone()?.shot.to;
        let next = self.seen.iter().find(|next| next.shot.from == end)?;
        let question = format!("What comes right after the {}?", seen.name());
        let answer = next.alone()?.object.look.with_article();
        Some((question, answer, [seen.shot.from, next.shot.to]))
    }

    fn when(&self, draws: &mut Draws) -> Option<AnsweredQuestion> {
        let seen = self.unique(draws)?;
        // Every clip has a shot that begins at 0, but only two of five have one at any other given second.
        if seen.shot.from == 0 && draws.below(5) > 1 {
            return None;
        }
        let begin = draws.one_of(&["At what second does", "When does"]);
        let question = format!("{begin} the {} appear?", seen.name());
        Some((question, seen.shot.from.to_string(), seen.time()))
    }

    fn what_at(&self, draws: &mut Draws) -> Option<AnsweredQuestion> {
        let seen = draws.one_of(&self.seen).alone()?;
        let begin = draws.one_of(&["What is shown", "Which object is seen"]);
        let question = seen.at(draws, begin);
        Some((question, seen.object.look.with_article(), seen.time()))
    }

    fn needle(&self, draws: &mut Draws) -> AnsweredQuestion {
        let seen = self.seen[0];
        let Appearance { colour, shape } = seen.object.look;
        let (question, answer) = match draws.below(3) {
            0 => {
                let question = format!("What colour is the {}?", shape.word());
                (question, colour.word().to_owned())
            }
            1 => ("What shape appears?".to_owned(), shape.word().to_owned()),
            _ => {
                let question = "At what second does it appear?".to_owned();
                (question, seen.shot.from.to_string())
            }
        };
        (question, answer, seen.time())
    }

    /// `0: red circle, left; 3: blue star, it stands still and red ring, up`
    fn story(&self) -> AnsweredQuestion {
        let of_object =
            |object: &Object| format!("{}, {}", object.look.name(), object.motion.word());
        let of_shot = |shot: &Shot| {
            let objects: Vec<String> = shot.objects.iter().map(of_object).collect();
            format!("{}: {}", shot.from, objects.join(" and "))
        };
        let shots: Vec<String> = self.script.shots.iter().map(of_shot).collect();
        let time = [0, self.script.seconds];
        ("What happens?".to_owned(), shots.join("; "), time)
    }

    /// An object whose appearance occurs once in the clip.
    fn unique(&self, draws: &mut Draws) -> Option<SeenObject<'s>> {
        let seen = draws.one_of(&self.seen);
        self.once(|object| object.look == seen.object.look)?;
        Some(seen)
    }

    /// `None` unless exactly one object of the clip satisfies `is_alike`.
    fn once(&self, is_alike: impl Fn(&Object) -> bool) -> Option<()> {
        let n = self.seen.iter().filter(|s| is_alike(s.object)).count();
        (n == 1).then_some(())
    }
}

/// Question, answer, and the seconds that show it.
type AnsweredQuestion = (String, String, [u32; 2]);

impl SeenObject<'_> {
    /// `None` where the shot has other objects.
    fn alone(self) -> Option<Self> {
        (self.shot.objects.len() == 1).then_some(self)
    }

    /// `None` where the object is alone, or another object of the shot satisfies `is_alike`.
    fn unlike_others(self, is_alike: impl Fn(&Object) -> bool) -> Option<Self> {
        let n = self.shot.objects.iter().filter(|o| is_alike(o)).count();
        (n == 1 && self.shot.objects.len() > 1).then_some(self)
    }

    /// `WHAT at second N?`, for a second at which it is shown.
    fn at(self, draws: &mut Draws, what: &str) -> String {
        format!("{what} at second {}?", second_of(self.shot, draws))
    }

    fn name(self) -> String {
        self.object.look.name()
    }

    fn time(self) -> [u32; 2] {
        [self.shot.from, self.shot.to]
    }
}

fn second_of(shot: &Shot, draws: &mut Draws) -> u32 {
    shot.from + draws.below(shot.seconds() as usize) as u32
}

/// Names them in the order in which they were drawn, which is independent of time.
fn first_of(one: SeenObject<'_>, other: SeenObject<'_>) -> AnsweredQuestion {
    let question = format!(
        "What is shown first, the {} or the {}?",
        one.name(),
        other.name()
    );
    let [earlier, later] = match one.shot.from < other.shot.from {
        true => [one, other],
        false => [other, one],
    };
    let answer = format!("the {}", earlier.name());
    (question, answer, [earlier.shot.from, later.shot.to])
}
