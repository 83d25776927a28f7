//! Change detection: a frame's thumbnail compared with that of the last frame kept.
//!
//! The comparison is with the last frame kept, not with the previous one, so that a slow
//! drift is detected once it has gone far enough; cells are means of many pixels, so that noise is
//! not. A detector needs one frame at a time: a file's candidates and a camera's frames alike.

use crate::{
    flow::{Frame, RgbImage},
    time::Pts,
};

/// Maximum cells of a thumbnail per axis.
const CELLS_MAX: usize = 32;

/// Minimum pixels of a cell per axis: the mean of 64 pixels removes noise, in small pictures too.
const CELL_SIDE_MIN: usize = 8;

/// The default difference above which a frame shows something new.
///
/// Measured on real clips, and on synthetic ones with strong noise after H.264: frames of a
/// static scene differ by 0.0003 to 0.003, a slow pan over a dark scene changes by 0.01 to
/// 0.024 in a second, a cut by 0.1 to 0.6. By definition, an object that fills a twentieth of the
/// picture and differs from the background by a quarter of the range from black to white gives 0.0125.
pub const USUAL_THRESHOLD: f64 = 0.01;

/// Maximum value of a cell: 255 levels in steps of 1/256.
const VALUE_MAX: u64 = 255 << 8;

/// A picture as at most 32 × 32 cells, each the mean of its pixels in red, green and blue.
///
/// Pixel `(x, y)` of a picture of `w × h` lies in column `⌊x · c / w⌋` of `c = ⌊w / 8⌋`, at least 1 and
/// at most 32, and in rows likewise. Means are truncated to 1/256 of a level: integers, equal on every machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thumbnail {
    columns: usize,
    /// `[rows, columns, 3]`.
    values: Vec<u16>,
}

impl Thumbnail {
    /// The thumbnail of `picture`, of any size.
    pub fn of(picture: &RgbImage) -> Self {
        let cells = |pixels: usize| (pixels / CELL_SIDE_MIN).clamp(1, CELLS_MAX);
        let (columns, rows) = (cells(picture.width), cells(picture.height));
        let mut values = Vec::with_capacity(rows * columns * 3);
        for row in 0..rows {
            let lines = start(row, picture.height, rows)..start(row + 1, picture.height, rows);
            let n_lines = lines.len() as u64;
            let sums = lines.fold(vec![[0; 3]; columns], |mut sums, y| {
                add_line(line(picture, y), &mut sums);
                sums
            });
            for (column, sum) in sums.into_iter().enumerate() {
                let [first, end] = [column, column + 1].map(|c| start(c, picture.width, columns));
                let n_pixels = n_lines * (end - first) as u64;
                values.extend(sum.map(|s: u64| ((s << 8) / n_pixels) as u16));
            }
        }
        Self { columns, values }
    }

    /// The mean over cells and colours of the absolute difference, 0 for equal thumbnails and 1 for
    /// black against white; 1 where the numbers of cells differ.
    pub fn difference(&self, other: &Self) -> f64 {
        if (self.columns, self.values.len()) != (other.columns, other.values.len()) {
            return 1.0;
        }
        let pairs = self.values.iter().zip(&other.values);
        let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        sum as f64 / (self.values.len().max(1) as u64 * VALUE_MAX) as f64
    }
}

/// The first of `n` pixels in cell `cell` of `cells`.
fn start(cell: usize, n: usize, cells: usize) -> usize {
    (cell * n).div_ceil(cells)
}

/// The bytes of line `y`.
fn line(picture: &RgbImage, y: usize) -> &[u8] {
    let bytes = picture.width * 3;
    picture
        .data
        .get(y * bytes..)
        .map_or(&[], |rest| &rest[..bytes.min(rest.len())])
}

/// Adds the pixels of one line to the sums of their columns.
fn add_line(line: &[u8], sums: &mut [[u64; 3]]) {
    let (width, columns) = (line.len() / 3, sums.len());
    for (column, sum) in sums.iter_mut().enumerate() {
        let [first, end] = [column, column + 1].map(|c| start(c, width, columns));
        for pixel in line[first * 3..end * 3].chunks_exact(3) {
            sum.iter_mut()
                .zip(pixel)
                .for_each(|(s, &p)| *s += u64::from(p));
        }
    }
}

/// Decides, frame by frame, which ones show something new. Keeps one thumbnail, 6 KB.
#[derive(Debug, Clone)]
pub struct ChangeDetector {
    threshold: f64,
    max_gap: Option<Pts>,
    kept: Option<(Pts, Thumbnail)>,
}

impl ChangeDetector {
    /// Keeps the first frame, and each whose [`Thumbnail::difference`] from the last one kept is more
    /// than `threshold`; with `max_gap` also the last frame before a gap longer than that.
    pub fn new(threshold: f64, max_gap: Option<Pts>) -> Self {
        Self {
            threshold,
            max_gap,
            kept: None,
        }
    }

    /// The difference of `frame` from the last one kept, if it is to be kept itself; infinite for the first.
    ///
    /// `next` is the time of the following frame, where known: without it `max_gap` has
    /// no effect.
    pub fn push(&mut self, frame: &Frame, next: Option<Pts>) -> Option<f64> {
        let (now, thumbnail) = (frame.time.pts, Thumbnail::of(&frame.image));
        let difference = match &self.kept {
            None => f64::INFINITY,
            Some((_, kept)) => thumbnail.difference(kept),
        };
        let is_kept = difference > self.threshold || self.foresees_a_hole(next);
        is_kept.then(|| {
            self.kept = Some((now, thumbnail));
            difference
        })
    }

    /// Whether the next frame is too far from the last one kept.
    fn foresees_a_hole(&self, next: Option<Pts>) -> bool {
        let hole = self.kept.as_ref().zip(next);
        let hole = hole.map(|((kept, _), next)| next.distance(*kept));
        hole.zip(self.max_gap)
            .is_some_and(|(hole, most)| hole > most)
    }
}
