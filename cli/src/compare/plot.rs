//! GFLOP/s by size, as a picture.

use std::error::Error;

use plotters::prelude::*;

use crate::compare::measure::Contender;
use crate::compare::report::Comparison;

const SIZE: (u32, u32) = (960, 600);

/// Okabe and Ito's palette: told apart by colour-blind readers too.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Draws a log-log plot as SVG: one line per contender; the size of a product that is no cube is the
/// cube root of m n k.
pub(crate) fn draw(comparison: &Comparison) -> Result<String, Box<dyn Error>> {
    let lines = lines(comparison);
    let points = || lines.iter().flat_map(|(_, points)| points);
    let (x_range, y_range) =
        (range(points().map(|point| point.0), 1.15), range(points().map(|point| point.1), 1.5));
    let mut sizes: Vec<f64> = points().map(|point| point.0).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(
                format!("Matrix products ({}) on {}", comparison.kind, comparison.machine.cpu),
                ("sans-serif", 20),
            )
            .margin(16)
            .x_label_area_size(48)
            .y_label_area_size(64)
            .build_cartesian_2d(
                (x_range.0..x_range.1).log_scale().with_key_points(sizes.clone()),
                (y_range.0..y_range.1).log_scale().with_key_points(ticks(y_range)),
            )?;
        chart
            .configure_mesh()
            .x_desc("size (cube root of m n k)")
            .y_desc("GFLOP/s (median)")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| if *y < 1.0 { format!("{y:.2}") } else { format!("{y:.0}") })
            .axis_desc_style(("sans-serif", 16))
            .label_style(("sans-serif", 14))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (index, (backend, points)) in lines.iter().enumerate() {
            let color = PALETTE[index % PALETTE.len()];
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
                .label(backend.to_string())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], color.stroke_width(3)));
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 4, color.filled())))?;
        }
        if !lines.is_empty() {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .label_font(("sans-serif", 16))
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }
        root.present()?;
    }
    Ok(svg)
}

type Line<'a> = (&'a Contender, Vec<(f64, f64)>);

/// The points of each backend, by size; products without work have no place on a log scale.
#[allow(clippy::cast_precision_loss, reason = "a position in a picture")]
fn lines(comparison: &Comparison) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for timing in comparison.measured.timings.iter().filter(|timing| timing.gflops > 0.0) {
        let shape = timing.shape;
        let size = (shape.m as f64 * shape.n as f64 * shape.k as f64).cbrt();
        // The cube root of a cube is not always a whole number in floating point.
        let size = if (size - size.round()).abs() < 1e-6 { size.round() } else { size };
        let point = (size, timing.gflops);
        match lines.iter_mut().find(|(backend, _)| **backend == timing.backend) {
            Some((_, points)) => points.push(point),
            None => lines.push((&timing.backend, vec![point])),
        }
    }
    for (_, points) in &mut lines {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

/// The smallest and largest number with some room around; never empty.
fn range(values: impl Iterator<Item = f64>, room: f64) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, 0f64), |(low, high), value| (low.min(value), high.max(value)));
    if low > high { (1.0, 10.0) } else { (low / room, high * room) }
}

/// 1, 2 and 5 times every power of ten within a range.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let mut ticks = Vec::new();
    let mut decade = 10f64.powf(low.log10().floor());
    while decade <= high {
        ticks.extend(
            [1.0, 2.0, 5.0]
                .map(|factor| factor * decade)
                .into_iter()
                .filter(|tick| (low..=high).contains(tick)),
        );
        decade *= 10.0;
    }
    ticks
}
