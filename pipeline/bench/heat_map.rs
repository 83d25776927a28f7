//! Heat map (SVG) of needles found, by length of the clip and depth in it.

use std::path::Path;

use longreel_models::file_name::FileName;
use plotters::prelude::{
    BLACK, Color, IntoDrawingArea, IntoFont, RGBColor, Rectangle, SVGBackend, Text, WHITE,
};

use crate::{
    bench::answers::Cell,
    error::{Context, Error, Kind, Result},
    sources::temporary::write_whole,
};

/// Width and height of a cell in pixels.
const CELL: (i32, i32) = (64, 44);
/// Left of the cells, above them, and below.
const MARGIN: (i32, i32, i32) = (110, 60, 50);

/// Draws `cells` into the file at `path`.
///
/// # Errors
/// `BadInput` where there are none, `Io` where writing fails.
pub fn write_heat_map(path: &Path, title: &str, cells: &[Cell]) -> Result<()> {
    if cells.is_empty() {
        return Err(no_needles());
    }
    let svg = drawn(title, cells)
        .map_err(|e| Error::new(Kind::Internal, format!("draw the heat map: {e}")))?;
    write_whole(path, svg.as_bytes()).doing(|| format!("write {}", path.shown()))
}

/// The error for clips without needles.
pub fn no_needles() -> Error {
    let message = "the clips have no needles, expected some for a heat map";
    Error::new(Kind::BadInput, message)
}

/// A row for each depth, a column for each length.
fn drawn(title: &str, cells: &[Cell]) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let of = |key: fn(&Cell) -> u32| {
        let mut keys: Vec<u32> = cells.iter().map(key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let (lengths, depths) = (of(|c| c.seconds), of(|c| c.depth_tenths));
    let (left, top, bottom) = MARGIN;
    let width = left + CELL.0 * lengths.len() as i32 + 30;
    let height = top + CELL.1 * depths.len() as i32 + bottom;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width as u32, height as u32));
        let area = area.into_drawing_area();
        area.fill(&WHITE)?;
        let font = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
        let write = |text: String, x: i32, y: i32, size: i32| {
            area.draw(&Text::new(text, (x, y), font(size)))
        };
        write(title.to_owned(), 12, 10, 17)?;
        write("depth, %  /  length, s".to_owned(), 12, 36, 12)?;
        for cell in cells {
            let column = lengths.iter().position(|&s| s == cell.seconds).unwrap_or(0) as i32;
            let row = depths
                .iter()
                .position(|&d| d == cell.depth_tenths)
                .unwrap_or(0) as i32;
            let (x, y) = (left + column * CELL.0, top + row * CELL.1);
            let corners = [(x, y), (x + CELL.0 - 2, y + CELL.1 - 2)];
            let share = cell.score.share();
            area.draw(&Rectangle::new(corners, colour(share).filled()))?;
            write(format!("{:.0}%", 100.0 * share), x + 16, y + 14, 14)?;
        }
        for (row, depth) in depths.iter().enumerate() {
            let y = top + row as i32 * CELL.1 + 14;
            write(format!("{}%", depth * 10), left - 50, y, 14)?;
        }
        for (column, seconds) in lengths.iter().enumerate() {
            let x = left + column as i32 * CELL.0 + 14;
            write(format!("{seconds} s"), x, height - bottom + 12, 14)?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// Red for 0, yellow for a half, green for 1.
fn colour(share: f64) -> RGBColor {
    let mix = |from: f64, to: f64, at: f64| (from + (to - from) * at).round() as u8;
    match share < 0.5 {
        true => RGBColor(240, mix(90.0, 220.0, share * 2.0), 90),
        false => RGBColor(mix(240.0, 90.0, share * 2.0 - 1.0), 220, 90),
    }
}
