//! What happens when: the script of a clip, drawn from seeded rules.
//!
//! A script is a run of shots of whole seconds. In a shot one to three objects stand
//! or move, each in a lane of its own, so that none ever covers another. A needle's
//! script has one object in one second, and grey blobs that drift all the time.

use serde::{Deserialize, Serialize};

use super::draws::Draws;
use crate::{
    error::{Error, Kind, Result},
    time::Pts,
};

/// Per mille of the frame's side: places and sizes are whole numbers of these.
pub const SIDE: i32 = 1000;
/// Longest shot, seconds.
const SHOT_SECONDS_MAX: u32 = 4;
/// Free space between an object and the end of its lane, per mille of the side.
const MARGIN: i32 = 10;
/// Sizes of an object where one, two or three are shown, per mille of the side.
const SIZES: [(i32, i32); 3] = [(500, 560), (400, 440), (250, 280)];
/// Blobs of a needle's clip.
const N_BLOBS: usize = 6;

/// Declares a closed set with the word of each member, which is also what it is written as.
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

            /// The word for it.
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
    /// Outline of an object.
    Shape {
        /// A full disc.
        Circle = "circle",
        /// Upright.
        Square = "square",
        /// Point up.
        Triangle = "triangle",
        /// Five points.
        Star = "star",
        /// Four equal arms, upright.
        Cross = "cross",
        /// A disc with a hole.
        Ring = "ring",
    }
}

words! {
    /// Paint of an object.
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
    /// Where an object goes during its shot; the words are those of answers.
    Motion {
        /// Nowhere.
        Still = "it stands still",
        /// To smaller x.
        Left = "left",
        /// To larger x.
        Right = "right",
        /// To smaller y.
        Up = "up",
        /// To larger y.
        Down = "down",
    }
}

words! {
    /// What is behind the objects of a shot: one dark colour.
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

/// What an object is called: "red circle".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Appearance {
    /// Its paint.
    pub colour: Colour,
    /// Its outline.
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
    /// What it is called.
    #[serde(flatten)]
    pub look: Appearance,
    /// Where it goes.
    pub motion: Motion,
    /// Its width and height, per mille of the frame's side.
    pub size: i32,
    /// Its centre `[x, y]` when the shot begins, per mille of the side.
    pub from: [i32; 2],
    /// Its centre when the shot ends.
    pub to: [i32; 2],
}

/// What is shown from one whole second to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shot {
    /// The first second.
    pub from: u32,
    /// The first second behind it.
    pub to: u32,
    /// Behind the objects.
    pub background: Background,
    /// None to three.
    pub objects: Vec<Object>,
}

/// A grey thing without an edge that drifts and is turned back at the frame's borders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its radius, per mille of the side.
    pub radius: i32,
    /// How light its middle is, of 255.
    pub level: u8,
    /// Its centre at 0 s, per mille of the side.
    pub from: [i32; 2],
    /// Per mille of the side in a second.
    pub velocity: [i32; 2],
}

/// Levels of noise that are added to every channel of every pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noise {
    /// At most so many levels up or down.
    pub level: u8,
    /// Which noise.
    pub seed: u64,
}

/// What happens when in a clip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Its length.
    pub seconds: u32,
    /// One behind the other, from 0 to the end.
    pub shots: Vec<Shot>,
    /// What distracts from a needle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Blob>,
    /// Absent in clean pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
}

impl Shot {
    /// Its length in seconds.
    pub fn seconds(&self) -> u32 {
        self.to - self.from
    }

    /// The share of it that has passed at a time.
    fn passed(&self, at: Pts) -> f64 {
        let (num, den) = (i128::from(at.time_base.num), i128::from(at.time_base.den));
        let passed = i128::from(at.ticks) * num - i128::from(self.from) * den;
        passed as f64 / (i128::from(self.seconds()) * den) as f64
    }

    /// The centre `[x, y]` of `object` at a time within the shot, in the frame's side.
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

    /// Its centre `[x, y]`, in the frame's side.
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

/// A way along a line, turned back at 0 and 1.
fn folded(way: f64) -> f64 {
    let there_and_back = way.rem_euclid(2.0);
    if there_and_back > 1.0 {
        2.0 - there_and_back
    } else {
        there_and_back
    }
}

impl Script {
    /// The shot that is on at a time; the last one behind the end, the first before the beginning.
    pub fn shot_at(&self, at: Pts) -> &Shot {
        let second = i128::from(at.ticks) * i128::from(at.time_base.num);
        let second = second.div_euclid(i128::from(at.time_base.den));
        let begun = |shot: &Shot| i128::from(shot.from) <= second;
        let n = self.shots.partition_point(begun);
        &self.shots[n.max(1) - 1]
    }

    /// Whether it can be drawn: shots follow one another from 0 to the end, everything has a size and lies in the frame.
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

    /// What is told in it, without where things stand and what is behind them.
    ///
    /// Clips of one story can be asked the same, with the same answers. A needle's story has its blobs:
    /// there are few needles otherwise, and a benchmark wants each at every depth.
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

/// What the world is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// Shots with one up to so many objects, 1 to 3.
    Shots {
        /// Most objects of a shot.
        n_objects_max: usize,
    },
    /// One object in one second.
    Needle {
        /// Where the second lies, percent of the clip from its beginning; anywhere when absent.
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

/// The object is on for one second; what is behind it stays the same.
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

/// Looks in random order, none twice before all had their turn, and none in two shots that follow one another.
#[derive(Default)]
struct Deck {
    left: Vec<Appearance>,
    /// Of this shot and the one before.
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

/// Lanes lie side by side, or one above the other; objects move along their lane.
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
    /// Where it begins across the axis.
    from: i32,
    to: i32,
    /// Of what is in it.
    size: i32,
}

impl Lane {
    /// Five motions come equally often, whichever way lanes lie: still, and two along each axis.
    fn object(&self, look: Appearance, can_move: bool, draws: &mut Draws) -> Object {
        let half = self.size / 2 + MARGIN;
        let across = draws.between(self.from + half, self.to - half);
        let chance = draws.below(5);
        let place = draws.between(half, SIDE - half);
        // Nearly the whole way: a step is seen from one second to the next in the longest shot.
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
