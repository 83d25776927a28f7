//! Plots of a run's losses by step (SVG).

use std::path::Path;

use longreel_models::file_name::FileName;
use plotters::prelude::{
    BLACK, BLUE, ChartBuilder, Color, IntoDrawingArea, LineSeries, PathElement, RED, RGBColor,
    SVGBackend, SeriesLabelPosition, WHITE,
};

use crate::{
    error::{Context, Error, Kind, Result},
    sources::temporary::write_whole,
    train::metrics::MetricsLine,
};

/// Width and height in pixels.
const SIZE: (u32, u32) = (960, 540);

/// Colours of the curves, in order.
const COLOURS: [RGBColor; 5] = [
    BLUE,
    RED,
    RGBColor(0, 128, 64),
    RGBColor(200, 120, 0),
    RGBColor(140, 0, 140),
];

/// A curve: its name, and its value at a line that has one.
pub type Curve<L> = (&'static str, fn(&L) -> Option<f64>);

/// A plot of a run.
pub struct Plot<'a, L> {
    /// The title.
    pub title: &'a str,
    /// The unit of the values.
    pub unit: &'static str,
    /// At most five; those without a value are left out.
    pub curves: &'a [Curve<L>],
}

/// Draws the losses of `figures` into the file at `path`; nothing where there are fewer than two.
///
/// # Errors
/// `Io` where writing fails.
pub fn write_plot<L: MetricsLine>(path: &Path, plot: &Plot<L>, figures: &[L]) -> Result<()> {
    let Some(last) = figures.last().filter(|last| last.step() > 1) else {
        return Ok(());
    };
    let values = figures
        .iter()
        .flat_map(|f| plot.curves.iter().filter_map(|curve| curve.1(f)));
    let most = values.filter(|v| v.is_finite()).fold(0.1, f64::max) * 1.05;
    let mut svg = String::new();
    draw(&mut svg, plot, figures, last.step(), most)
        .map_err(|e| Error::new(Kind::Internal, format!("draw the losses: {e}")))?;
    write_whole(path, svg.as_bytes()).doing(|| format!("write {}", path.shown()))
}

fn draw<L: MetricsLine>(
    svg: &mut String,
    plot: &Plot<L>,
    figures: &[L],
    steps: u64,
    most: f64,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(48)
        .build_cartesian_2d(0..steps, 0.0..most)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(plot.unit)
        .draw()?;
    for (&(name, of), colour) in plot.curves.iter().zip(COLOURS) {
        let points: Vec<(u64, f64)> = figures
            .iter()
            .filter_map(|f| Some((f.step(), of(f)?)))
            .collect();
        if points.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(points, &colour))?
            .label(name)
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
