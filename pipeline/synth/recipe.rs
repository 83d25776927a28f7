//! Recipes: a recipe and a number determine a clip.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    draws::Draws,
    questions::{Question, QuestionKind, questions},
    world::{Background, Script, World, words},
};
use crate::error::{Error, Kind, Result};

/// Maximum length of a clip, in seconds.
const SECONDS_MAX: u32 = 36_000;
/// Maximum noise, in levels.
const NOISE_MAX: u8 = 64;
/// Maximum questions of a kind.
const PER_KIND_MAX: usize = 100;
/// Maximum lengths, and depths.
const CHOICES_MAX: usize = 1000;
/// Scripts drawn before giving up on the split.
const ATTEMPTS: u64 = 10_000;
/// One in this many stories belongs to the test split.
const TEST_ONE_OF: u8 = 8;

words! {
    /// The split that a clip belongs to.
    Split {
        /// For training.
        Train = "train",
        /// For testing.
        Test = "test",
    }
}

impl Split {
    /// The split of a script, by the first byte of the SHA-256 of its story ([`Script::story`]).
    ///
    /// No seed and no option can therefore bring a story of one split into the other.
    pub fn of(script: &Script) -> Self {
        match Sha256::digest(script.story())[0] % TEST_ONE_OF {
            0 => Self::Test,
            _ => Self::Train,
        }
    }
}

/// The recipe of clips.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The seed.
    pub seed: u64,
    /// The split.
    pub split: Split,
    /// Lengths in seconds; clips cycle through them.
    pub lengths: Vec<u32>,
    /// Maximum objects of a shot, 1 to 3.
    pub difficulty: u8,
    /// A needle clip: one object, for one second.
    pub needle: bool,
    /// Depths of a needle, percent of the clip; each with all lengths in turn, random when empty.
    pub depths: Vec<u32>,
    /// Maximum noise, in levels; 0 for none.
    pub noise: u8,
    /// Whether all backgrounds are black.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
    /// Kinds of questions; when empty, all default ones that the clips allow.
    pub kinds: Vec<QuestionKind>,
    /// Questions of each kind per clip.
    pub per_kind: usize,
}

impl Default for Recipe {
    /// Training clips of 16 s, one object at a time, one question of each kind.
    fn default() -> Self {
        Self {
            seed: 0,
            split: Split::Train,
            lengths: vec![16],
            difficulty: 1,
            needle: false,
            depths: Vec::new(),
            noise: 0,
            plain: false,
            kinds: Vec::new(),
            per_kind: 1,
        }
    }
}

/// A clip's script and questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clip {
    /// Seed of its draws.
    pub seed: u64,
    /// The script.
    pub script: Script,
    /// The questions, by kind.
    pub questions: Vec<Question>,
}

impl Recipe {
    /// Checks the recipe.
    ///
    /// # Errors
    /// `Usage`, naming the option, its value and the allowed ones.
    pub fn check(&self) -> Result<()> {
        let (seconds, percents) = (u64::from(SECONDS_MAX), 100);
        within_list("--length", &self.lengths, 1, seconds)?;
        within_list("--depth", &self.depths, 0, percents)?;
        within("--difficulty", u64::from(self.difficulty), 1, 3)?;
        within("--noise", u64::from(self.noise), 0, u64::from(NOISE_MAX))?;
        within("--per-kind", self.per_kind as u64, 1, PER_KIND_MAX as u64)?;
        if self.lengths.is_empty() {
            return Err(usage("--length is empty, expected seconds".to_owned()));
        }
        if !self.needle && !self.depths.is_empty() {
            let message = "--depth is the depth of a needle, expected --needle with it";
            return Err(usage(message.to_owned()));
        }
        match self.kinds.iter().find(|kind| !self.fits(**kind)) {
            Some(kind) => Err(usage(self.cannot_ask(*kind))),
            None => Ok(()),
        }
    }

    fn cannot_ask(&self, kind: QuestionKind) -> String {
        let kinds = QuestionKind::ALL.iter().filter(|kind| self.fits(**kind));
        let kinds: Vec<&str> = kinds.map(|kind| kind.word()).collect();
        format!(
            "--kinds has {}, these clips can be asked for {}",
            kind.word(),
            kinds.join(", ")
        )
    }

    /// Whether its clips allow questions of `kind`: with one object at a time there is nothing to count.
    fn fits(&self, kind: QuestionKind) -> bool {
        match kind {
            QuestionKind::Needle => self.needle,
            QuestionKind::Count => !self.needle && self.difficulty > 1,
            _ => !self.needle,
        }
    }

    fn asks(&self, kind: QuestionKind) -> bool {
        let is_named = self.kinds.contains(&kind);
        self.fits(kind) && (is_named || self.kinds.is_empty() && kind.is_usual())
    }

    /// Seconds of clip `index`.
    pub fn seconds(&self, index: u64) -> u32 {
        in_turn(&self.lengths, index).unwrap_or(1)
    }

    fn world(&self, index: u64) -> World {
        if self.needle {
            let turn = index / self.lengths.len().max(1) as u64;
            return World::Needle {
                depth: in_turn(&self.depths, turn),
            };
        }
        World::Shots {
            n_objects_max: usize::from(self.difficulty),
        }
    }

    /// Clip `index`: scripts are drawn until one belongs to the split.
    ///
    /// # Errors
    /// `Usage` for a recipe that [`Recipe::check`] refuses, and when no script of the split was found.
    pub fn clip(&self, index: u64) -> Result<Clip> {
        self.check()?;
        let (seconds, world) = (self.seconds(index), self.world(index));
        for attempt in 0..ATTEMPTS {
            let seed = Draws::new(&[self.seed, index, attempt]).bits();
            let mut draws = Draws::new(&[seed]);
            let mut script = world.script(seconds, self.noise, &mut draws);
            if self.plain {
                let shots = script.shots.iter_mut();
                shots.for_each(|shot| shot.background = Background::Black);
            }
            if Split::of(&script) == self.split {
                let questions = self.questions(&script, &mut draws);
                return Ok(Clip {
                    seed,
                    script,
                    questions,
                });
            }
        }
        Err(usage(format!(
            "none of {ATTEMPTS} scripts of {seconds} s belongs to the split {}",
            self.split.word()
        )))
    }

    fn questions(&self, script: &Script, draws: &mut Draws) -> Vec<Question> {
        let kinds = QuestionKind::ALL.iter().filter(|kind| self.asks(**kind));
        kinds
            .flat_map(|&kind| questions(script, kind, self.per_kind, draws))
            .collect()
    }
}

/// Element `index` of the endless repetition of `choices`.
fn in_turn(choices: &[u32], index: u64) -> Option<u32> {
    let at = index.checked_rem(choices.len() as u64)?;
    choices.get(at as usize).copied()
}

fn within(option: &str, value: u64, from: u64, to: u64) -> Result<()> {
    if (from..=to).contains(&value) {
        return Ok(());
    }
    Err(usage(format!(
        "{option} is {value}, expected {from} to {to}"
    )))
}

fn within_list(option: &str, values: &[u32], from: u64, to: u64) -> Result<()> {
    if values.len() > CHOICES_MAX {
        let n = values.len();
        return Err(usage(format!(
            "{option} has {n} numbers, expected at most {CHOICES_MAX}"
        )));
    }
    values
        .iter()
        .try_for_each(|&value| within(option, u64::from(value), from, to))
}

fn usage(message: String) -> Error {
    Error::new(Kind::Usage, message)
}
