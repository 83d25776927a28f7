//! Rendering: a script at one moment as an antialiased picture.
//!
//! Only additions, products and comparisons of doubles are used, so that the same
//! script gives the same bytes on every machine.

use super::{
    draws::Draws,
    world::{Blob, Noise, Object, SIDE, Script, Shape, Shot},
};
use crate::{
    flow::RgbImage,
    time::{Pts, TimeBase},
};

/// Samples per axis of a pixel for antialiasing.
const SAMPLES: usize = 4;

/// Outward normals of the lines of a five-pointed star, each at distance [`STAR_LINE`] from its centre.
const STAR_NORMALS: [[f64; 2]; 5] = [
    [0.0, -1.0],
    [0.951_056_516_295_153_5, -0.309_016_994_374_947_45],
    [0.587_785_252_292_473_1, 0.809_016_994_374_947_5],
    [-0.587_785_252_292_473_1, 0.809_016_994_374_947_5],
    [-0.951_056_516_295_153_5, -0.309_016_994_374_947_45],
];
/// cos 72° of a star with its points at 1, times [`STAR_SCALE`].
const STAR_LINE: f64 = 0.309_016_994_374_947_45 * STAR_SCALE;
/// Scale and shift that make the star fill its square: five points at radius 1 leave room at the sides and below.
const STAR_SCALE: f64 = 1.05;
const STAR_DOWN: f64 = 0.09;

/// The picture of `script` at a time, `side` pixels wide and high.
pub fn draw(script: &Script, at: Pts, side: usize) -> RgbImage {
    let shot = script.shot_at(at);
    let mut canvas = Canvas::new(shot.background.rgb(), side);
    for blob in &script.blobs {
        canvas.blob(blob, blob.centre(at));
    }
    for object in &shot.objects {
        canvas.object(shot, object, at);
    }
    if let Some(noise) = script.noise {
        canvas.noise(noise, at);
    }
    RgbImage {
        width: side,
        height: side,
        data: canvas.data,
    }
}

/// The pictures at 0 s, 1 s, … of `script`: the frames of its video at `--fps 1`, without losses of the codec.
pub fn whole_seconds(script: &Script, side: usize) -> Vec<RgbImage> {
    const SECOND: TimeBase = TimeBase { num: 1, den: 1 };
    let seconds = 0..i64::from(script.seconds);
    seconds
        .map(|second| draw(script, Pts::new(second, SECOND), side))
        .collect()
}

/// Whether a point is inside a shape; x and y are from -1 to 1, y downwards.
fn is_inside(shape: Shape, x: f64, y: f64) -> bool {
    let square = x * x + y * y;
    match shape {
        Shape::Circle => square <= 1.0,
        Shape::Ring => (0.3..=1.0).contains(&square),
        Shape::Square => x.abs().max(y.abs()) <= 0.88,
        Shape::Triangle => y <= 0.85 && x.abs() <= 0.54 * (y + 1.0),
        Shape::Cross => x.abs().min(y.abs()) <= 0.32 && x.abs().max(y.abs()) <= 1.0,
        Shape::Star => is_in_star(x, y - STAR_DOWN),
    }
}

/// A point beyond one line is in a tip; beyond two it is outside.
fn is_in_star(x: f64, y: f64) -> bool {
    let is_beyond = |[a, b]: &[f64; 2]| a * x + b * y > STAR_LINE;
    STAR_NORMALS.iter().filter(|n| is_beyond(n)).count() <= 1
}

/// A square picture being drawn.
struct Canvas {
    side: usize,
    data: Vec<u8>,
}

impl Canvas {
    fn new(colour: [u8; 3], side: usize) -> Self {
        let data = colour.repeat(side * side);
        Self { side, data }
    }

    /// The pixels that a square of `half` the width around `centre` touches, along one axis.
    fn touched(&self, centre: f64, half: f64) -> std::ops::Range<usize> {
        let side = self.side as f64;
        let pixel = |at: f64| (at * side).clamp(0.0, side);
        pixel(centre - half).floor() as usize..pixel(centre + half).ceil() as usize
    }

    /// Mixes `colour` into a pixel: `share` of 256.
    fn mix(&mut self, x: usize, y: usize, colour: [u8; 3], share: u32) {
        let at = (y * self.side + x) * 3;
        for (old, new) in self.data[at..at + 3].iter_mut().zip(colour) {
            let mixed = u32::from(*old) * (256 - share) + u32::from(new) * share;
            *old = ((mixed + 128) / 256) as u8;
        }
    }

    fn object(&mut self, shot: &Shot, object: &Object, at: Pts) {
        let [cx, cy] = shot.centre(object, at);
        let half = f64::from(object.size) / f64::from(2 * SIDE);
        let outline = Outline {
            shape: object.look.shape,
            centre: [cx, cy],
            half,
        };
        for y in self.touched(cy, half) {
            for x in self.touched(cx, half) {
                let covered = outline.samples_inside(x, y, self.side);
                let share = 256 * covered / (SAMPLES * SAMPLES) as u32;
                self.mix(x, y, object.look.colour.rgb(), share);
            }
        }
    }

    /// Brightest at the centre, fading to nothing at the radius.
    fn blob(&mut self, blob: &Blob, [cx, cy]: [f64; 2]) {
        let radius = f64::from(blob.radius) / f64::from(SIDE);
        for y in self.touched(cy, radius) {
            for x in self.touched(cx, radius) {
                let part = |pixel: usize, centre: f64| {
                    ((pixel as f64 + 0.5) / self.side as f64 - centre) / radius
                };
                let (dx, dy) = (part(x, cx), part(y, cy));
                let share = 256.0 * (1.0 - dx * dx - dy * dy).max(0.0);
                self.mix(x, y, [blob.level; 3], share as u32);
            }
        }
    }

    /// Noise depends on the time, not on the frame number: it is equal at every frame rate.
    fn noise(&mut self, noise: Noise, at: Pts) {
        let micros = i128::from(at.ticks) * i128::from(at.time_base.num) * 1_000_000;
        let micros = micros / i128::from(at.time_base.den);
        let mut draws = Draws::new(&[noise.seed, micros as u64]);
        let steps = 2 * u32::from(noise.level) + 1;
        for bytes in self.data.chunks_mut(8) {
            let random = draws.bits().to_le_bytes();
            for (byte, random) in bytes.iter_mut().zip(random) {
                let up = u32::from(random) * steps / 256;
                let shifted = i32::from(*byte) + up as i32 - i32::from(noise.level);
                *byte = shifted.clamp(0, 255) as u8;
            }
        }
    }
}

/// A shape with its place and size, in units of the frame's side.
struct Outline {
    shape: Shape,
    centre: [f64; 2],
    half: f64,
}

impl Outline {
    /// The number of a pixel's samples inside the shape.
    fn samples_inside(&self, x: usize, y: usize, side: usize) -> u32 {
        let place = |pixel: usize, sample: usize, centre: f64| {
            let sample = (sample as f64 + 0.5) / SAMPLES as f64;
            ((pixel as f64 + sample) / side as f64 - centre) / self.half
        };
        let columns: [f64; SAMPLES] = std::array::from_fn(|s| place(x, s, self.centre[0]));
        let rows: [f64; SAMPLES] = std::array::from_fn(|s| place(y, s, self.centre[1]));
        let inside = |&y: &f64| {
            columns
                .iter()
                .filter(|&&x| is_inside(self.shape, x, y))
                .count()
        };
        rows.iter().map(inside).sum::<usize>() as u32
    }
}
