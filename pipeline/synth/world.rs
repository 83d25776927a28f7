//! Scripts of clips (what happens when), drawn from seeded rules.
//!
//! A script is a sequence of shots of whole seconds. In a shot one to three objects stand
//! or move, each in a lane of its own, so that they never overlap. A needle's
//! script has one object for one second, and grey blobs that drift throughout.

use serde::{Deserialize, Serialize};

use super::draws::Draws;
use crate::{
    error::{Error, Kind, Result},
    time::Pts,
};

/// The frame's side in units of positions and sizes, which are integers: per mille.
pub const SIDE: i32 = 1000;
/// Maximum length of a shot, in seconds.
const SHOT_SECONDS_MAX: u32 = 4;
/// Space between an object and the end of its lane, per mille of the side.
const MARGIN: i32 = 10;
/// Range of sizes of an object where one, two or three are shown, per mille of the side.
const SIZES: [(i32, i32); 3] = [(500, 560), (400, 440), (250, 280)];
/// Number of blobs in a needle clip.
const N_BLOBS: usize = 6;

/// Declares an enum with a word for each variant, which is also its serialized form.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$of:meta])* $member:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$of])* #[serde(rename = $word)] $member,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$member),+];

            /// The variant's word.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$member => $word,)+
                }
            }
        }
    };
}
pub(super) use words;

words! {
    /// Shape of an object.
    Shape {
        /// A filled disc.
        Circle = "circle",
        /// Axis-aligned.
        Square = "square",
        /// Point up.
        Triangle = "triangle",
        /// Five points.
        Star = "star",
        /// Four equal arms, axis-aligned.
        Cross = "cross",
        /// A disc with a hole.
        Ring = "ring",
    }
}

words! {
    /// Colour of an object.
    Colour {
        /// 225, 40, 40.
        Red = "red",
        /// 40, 185, 60.
        Green = "green",
        /// 50, 90, 245.
        Blue = "blue",
        /// 240, 220, 40.
        Yellow = "yellow",
        /// 165, 60, 215.
        Purple = "purple",
        /// 240, 240, 240.
        White = "white",
        /// 250, 135, 20.
        Orange = "orange",
        /// 40, 210, 225.
        Cyan = "cyan",
    }
}

words! {
    /// Motion of an object during its shot; the words are those of answers.
    Motion {
        /// No motion.
        Still = "it stands still",
        /// Towards smaller x.
        Left = "left",
        /// Towards larger x.
        Right = "right",
        /// Towards smaller y.
        Up = "up",
        /// Towards larger y.
        Down = "down",
    }
}

words! {
    /// Background of a shot: one dark colour.
    Background {
        /// 16, 16, 16.
        Black = "black",
        /// 56, 56, 56.
        Grey = "grey",
        /// 16, 20, 60.
        DarkBlue = "dark blue",
        /// 14, 46, 24.
        DarkGreen = "dark green",
        /// 52, 34, 16.
        Brown = "brown",
    }
}

impl Colour {
    /// Red, green, blue.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [225, 40, 40],
            Self::Green => [40, 185, 60],
            Self::Blue => [50, 90, 245],
            Self::Yellow => [240, 220, 40],
            Self::Purple => [165, 60, 215],
            Self::White => [240, 240, 240],
            Self::Orange => [250, 135, 20],
            Self::Cyan => [40, 210, 225],
        }
    }
}

impl Background {
    /// Red, green, blue.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Black => [16, 16, 16],
            Self::Grey => [56, 56, 56],
            Self::DarkBlue => [16, 20, 60],
            Self::DarkGreen => [14, 46, 24],
            Self::Brown => [52, 34, 16],
        }
    }
}

/// Colour and shape of an object, which name it: "red circle".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Appearance {
    /// Its colour.
    pub colour: Colour,
    /// Its shape.
    pub shape: Shape,
}

impl Appearance {
    /// All colours of all shapes, 48.
    pub fn all() -> Vec<Self> {
        let of = |&colour: &Colour| Shape::ALL.iter().map(move |&shape| Self { colour, shape });
        Colour::ALL.iter().flat_map(of).collect()
    }

    /// `red circle`
    pub fn name(self) -> String {
        format!("{} {}", self.colour.word(), self.shape.word())
    }

    /// `a red circle`, `an orange star`
    pub fn with_article(self) -> String {
        let article = match self.colour {
            Colour::Orange => "an",
            _ => "a",
        };
        format!("{article} {}", self.name())
    }
}

/// One object during one shot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its appearance.
    #[serde(flatten)]
    pub look: Appearance,
    /// Its motion.
    pub motion: Motion,
    /// Its width and height, per mille of the frame's side.
    pub size: i32,
    /// Its centre `[x, y]` when the shot begins, per mille of the side.
    pub from: [i32; 2],
    /// Its centre when the shot ends.
    pub to: [i32; 2],
}

/// What is shown between two whole seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shot {
    /// The first second.
    pub from: u32,
    /// The first second after it.
    pub to: u32,
    /// The background.
    pub background: Background,
    /// No to three objects.
    pub objects: Vec<Object>,
}

/// A soft grey disc that drifts and is reflected at the frame's borders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its radius, per mille of the side.
    pub radius: i32,
    /// Brightness of its centre, of 255.
    pub level: u8,
    /// Its centre at 0 s, per mille of the side.
    pub from: [i32; 2],
    /// Velocity, per mille of the side per second.
    pub velocity: [i32; 2],
}

/// Noise that is added to every channel of every pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noise {
    /// Maximum deviation, in levels.
    pub level: u8,
    /// Seed of the noise.
    pub seed: u64,
}

/// The script of a clip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Its length.
    pub seconds: u32,
    /// The shots, consecutive from 0 to the end.
    pub shots: Vec<Shot>,
    /// Distractors of a needle clip.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Blob>,
    /// The noise, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
}

impl Shot {
    /// Its length in seconds.
    pub fn seconds(&self) -> u32 {
        self.to - self.from
    }

    /// The fraction of the shot that has passed at a time.
    fn passed(&self, at: Pts) -> f64 {
        let (num, den) = (i128::from(at.time_base.num), i128::from(at.time_base.den));
        let passed = i128::from(at.ticks) * num - i128::from(self.from) * den;
        passed as f64 / (i128::from(self.seconds()) * den) as f64
    }

    /// The centre `[x, y]` of `object` at a time within the shot, in units of the frame's side.
    pub fn centre(&self, object: &Object, at: Pts) -> [f64; 2] {
        let share = self.passed(at);
        [0, 1].map(|axis| {
            let (from, to) = (f64::from(object.from[axis]), f64::from(object.to[axis]));
            (from + (to - from) * share) / f64::from(SIDE)
        })
    }
}

impl Blob {
    fn is_in_frame(&self) -> bool {
        let speeds = -SIDE..=SIDE;
        (1..=SIDE).contains(&self.radius)
            && are_in_frame(&[self.from])
            && self.velocity.iter().all(|v| speeds.contains(v))
    }

    /// Its centre `[x, y]`, in units of the frame's side.
    pub fn centre(&self, at: Pts) -> [f64; 2] {
        let seconds = at.seconds();
        [0, 1].map(|axis| {
            let way = f64::from(self.from[axis]) + f64::from(self.velocity[axis]) * seconds;
            folded(way / f64::from(SIDE))
        })
    }
}

fn are_in_frame(places: &[[i32; 2]]) -> bool {
    let mut coordinates = places.iter().flatten();
    coordinates.all(|at| (0..=SIDE).contains(at))
}

/// A coordinate reflected at 0 and 1.
fn folded(way: f64) -> f64 {
    let there_and_back = way.rem_euclid(2.0);
    if there_and_back > 1.0 {
        2.0 - there_and_back
    } else {
        there_and_back
    }
}

impl Script {
    /// The shot at a time; the last one after the end, the first before the beginning.
    pub fn shot_at(&self, at: Pts) -> &Shot {
        let second = i128::from(at.ticks) * i128::from(at.time_base.num);
        let second = second.div_euclid(i128::from(at.time_base.den));
        let begun = |shot: &Shot| i128::from(shot.from) <= second;
        let n = self.shots.partition_point(begun);
        &self.shots[n.max(1) - 1]
    }

    /// Checks that it can be drawn: shots are consecutive from 0 to the end, everything has a size and lies in the frame.
    ///
    /// # Errors
    /// `BadInput`, naming the shot.
    pub fn check(&self) -> Result<()> {
        let bad = |message| Err(Error::new(Kind::BadInput, message));
        let mut end = 0;
        for Shot {
            from, to, objects, ..
        } in &self.shots
        {
            if *from != end || from >= to {
                return bad(format!(
                    "a shot goes from {from} s to {to} s, expected one that begins at {end} s"
                ));
            }
            if !objects.iter().all(Object::is_in_frame) {
                return bad(format!(
                    "the shot at {from} s has an object outside the frame"
                ));
            }
            end = *to;
        }
        if end != self.seconds || end == 0 {
            let seconds = self.seconds;
            return bad(format!("the shots end at {end} s, the clip at {seconds} s"));
        }
        match self.blobs.iter().all(Blob::is_in_frame) {
            true => Ok(()),
            false => bad("a blob is outside the frame".to_owned()),
        }
    }

    /// The story: what happens, without positions and backgrounds.
    ///
    /// Clips with one story have the same questions and answers. A needle's story includes its blobs:
    /// there are few needles otherwise, and a benchmark needs each at every depth.
    pub fn story(&self) -> String {
        let mut story = format!("{} s", self.seconds);
        for shot in &self.shots {
            story += &format!("; {}-{}", shot.from, shot.to);
            let mut told: Vec<String> = shot.objects.iter().map(Object::told).collect();
            told.sort_unstable();
            story += &format!(" {}", told.join(", "));
        }
        for blob in &self.blobs {
            story += &format!("; {:?} {:?}", blob.from, blob.velocity);
        }
        story
    }
}

impl Object {
    fn is_in_frame(&self) -> bool {
        (1..=SIDE).contains(&self.size) && are_in_frame(&[self.from, self.to])
    }

    fn told(&self) -> String {
        format!("{} {}", self.look.name(), self.motion.word())
    }
}

/// The kind of script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// Shots with one up to `n_objects_max` objects.
    Shots {
        /// Maximum objects of a shot, 1 to 3.
        n_objects_max: usize,
    },
    /// One object for one second.
    Needle {
        /// Depth of that second, percent of the clip; random when absent.
        depth: Option<u32>,
    },
}

impl World {
    /// A script of `seconds` (at least 1), with noise of up to `noise` levels.
    pub fn script(self, seconds: u32, noise: u8, draws: &mut Draws) -> Script {
        let mut script = match self {
            Self::Shots { n_objects_max } => shots(seconds, n_objects_max, draws),
            Self::Needle { depth } => needle(seconds, depth, draws),
        };
        let seed = draws.bits();
        script.noise = (noise > 0).then_some(Noise { level: noise, seed });
        script
    }
}

fn shots(seconds: u32, n_objects_max: usize, draws: &mut Draws) -> Script {
    let mut deck = Deck::default();
    let mut shots = Vec::new();
    let mut from = 0;
    while from < seconds {
        let length = 1 + draws.below(SHOT_SECONDS_MAX as usize) as u32;
        let to = (from + length).min(seconds);
        let n = 1 + draws.below(n_objects_max);
        let looks = deck.deal(n, draws);
        shots.push(shot(from..to, &looks, draws));
        from = to;
    }
    Script {
        seconds,
        shots,
        blobs: Vec::new(),
        noise: None,
    }
}

/// One object for one second on a constant background.
fn needle(seconds: u32, depth: Option<u32>, draws: &mut Draws) -> Script {
    let last = seconds - 1;
    let anywhere = draws.below(seconds as usize) as u32;
    let at = depth.map_or(anywhere, |d| (last * d.min(100) + 50) / 100);
    let look = draws.one_of(&Appearance::all());
    let shown = shot(at..at + 1, &[look], draws);
    let empty = |from, to| Shot {
        from,
        to,
        background: shown.background,
        objects: Vec::new(),
    };
    let mut shots = vec![empty(0, at), shown.clone(), empty(at + 1, seconds)];
    shots.retain(|shot| shot.from < shot.to);
    Script {
        seconds,
        shots,
        blobs: (0..N_BLOBS).map(|_| blob(draws)).collect(),
        noise: None,
    }
}

fn blob(draws: &mut Draws) -> Blob {
    let mut place = || draws.between(0, SIDE);
    let from = [place(), place()];
    let mut speed = || draws.between(-150, 150);
    let velocity = [speed(), speed()];
    Blob {
        radius: draws.between(90, 180),
        level: draws.between(80, 140) as u8,
        from,
        velocity,
    }
}

/// Appearances in random order: none repeats before all have occurred, and none occurs in two consecutive shots.
#[derive(Default)]
struct Deck {
    left: Vec<Appearance>,
    /// Appearances of this shot and the one before.
    recent: Vec<Appearance>,
}

impl Deck {
    fn deal(&mut self, n: usize, draws: &mut Draws) -> Vec<Appearance> {
        let dealt: Vec<Appearance> = (0..n).map(|_| self.next(draws)).collect();
        self.recent.clone_from(&dealt);
        dealt
    }

    fn next(&mut self, draws: &mut Draws) -> Appearance {
        let mut fresh = self.fresh();
        if fresh.is_empty() {
            self.left = Appearance::all();
            fresh = self.fresh();
        }
        let look = draws.one_of(&fresh);
        self.left.retain(|l| *l != look);
        self.recent.push(look);
        look
    }

    fn fresh(&self) -> Vec<Appearance> {
        let is_fresh = |look: &&Appearance| !self.recent.contains(look);
        self.left.iter().filter(is_fresh).copied().collect()
    }
}

/// Lanes are columns or rows of the frame; objects move along their lane.
fn shot(seconds: std::ops::Range<u32>, looks: &[Appearance], draws: &mut Draws) -> Shot {
    let along = draws.below(2);
    let background = draws.one_of(Background::ALL);
    let width = SIDE / looks.len() as i32;
    let can_move = seconds.len() > 1;
    let lanes = looks.iter().zip(0..);
    let objects = lanes.map(|(&look, lane)| {
        let (least, most) = SIZES[looks.len() - 1];
        let lane = Lane {
            along,
            from: lane * width,
            to: (lane + 1) * width,
            size: draws.between(least, most),
        };
        lane.object(look, can_move, draws)
    });
    Shot {
        from: seconds.start,
        to: seconds.end,
        background,
        objects: objects.collect(),
    }
}

/// A strip of the frame along one axis.
struct Lane {
    /// 0: along x, 1: along y.
    along: usize,
    /// Where it begins across its axis.
    from: i32,
    to: i32,
    /// Size of its object.
    size: i32,
}

impl Lane {
    /// The five motions are equally frequent, whichever way lanes run: still, and two along each axis.
    fn object(&self, look: Appearance, can_move: bool, draws: &mut Draws) -> Object {
        let half = self.size / 2 + MARGIN;
        let across = draws.between(self.from + half, self.to - half);
        let chance = draws.below(5);
        let place = draws.between(half, SIDE - half);
        // Nearly the full length of the lane: even in the longest shot the motion shows from one second to the next.
        let slack = draws.between(0, 20);
        let (low, high) = (half + slack, SIDE - half - slack);
        let (motion, from, to) = match chance {
            1 | 2 if can_move => (backward(self.along), high, low),
            3 | 4 if can_move => (forward(self.along), low, high),
            _ => (Motion::Still, place, place),
        };
        Object {
            look,
            motion,
            size: self.size,
            from: self.point(from, across),
            to: self.point(to, across),
        }
    }

    fn point(&self, along: i32, across: i32) -> [i32; 2] {
        match self.along {
            0 => [along, across],
            _ => [across, along],
        }
    }
}

fn backward(axis: usize) -> Motion {
    [Motion::Left, Motion::Up][axis]
}

fn forward(axis: usize) -> Motion {
    [Motion::Right, Motion::Down][axis]
}
