//! Figures of a run as a picture (SVG), by step.

use std::path::Path;

use plotters::prelude::{
    BLACK, BLUE, ChartBuilder, Color, IntoDrawingArea, LineSeries, PathElement, RED, RGBColor,
    SVGBackend, SeriesLabelPosition, WHITE,
};

use crate::{
    error::{Context, Error, Kind, Result},
    sources::temporary::write_whole,
};

/// Pixels across and down.
const SIZE: (u32, u32) = (960, 540);

/// Of the curves, in their order.
const COLOURS: [RGBColor; 4] = [BLUE, RED, RGBColor(0, 128, 64), RGBColor(200, 120, 0)];

/// One figure by step.
pub struct Curve {
    /// What it is.
    pub name: &'static str,
    /// Step and value.
    pub points: Vec<(u64, f64)>,
}

/// Draws `curves`, whose values are `what`, into the file at `path`; nothing where there are fewer than two steps.
///
/// # Errors
/// `Io` where writing fails.
pub fn write_plot(path: &Path, title: &str, what: &str, curves: &[Curve]) -> Result<()> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let last = points().map(|point| point.0).max().unwrap_or(0);
    if last < 2 {
        return Ok(());
    }
    let values = points().map(|point| point.1).filter(|v| v.is_finite());
    let most = values.fold(0.1, f64::max) * 1.05;
    let mut svg = String::new();
    draw(&mut svg, [title, what], curves, (last, most))
        .map_err(|e| Error::new(Kind::Internal, format!("draw the figures: {e}")))?;
    write_whole(path, svg.as_bytes()).doing(|| format!("write {}", path.display()))
}

fn draw(
    svg: &mut String,
    [title, what]: [&str; 2],
    curves: &[Curve],
    (last, most): (u64, f64),
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(48)
        .build_cartesian_2d(0..last, 0.0..most)?;
    chart.configure_mesh().x_desc("step").y_desc(what).draw()?;
    for (Curve { name, points }, colour) in curves.iter().zip(COLOURS) {
        if points.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(points.iter().copied(), &colour))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}
