//! The plots: rate by size beside the peak, and ratio to the best peer by shape.

use std::error::Error;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::{
    ChartBuilder, Circle, DashedLineSeries, DrawingArea, EmptyElement, IntoDrawingArea, IntoLogRange,
    LineSeries, PathElement, RGBColor, SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, ShapeStyle, TextStyle};

use crate::results::{CaseResult, Results};
use crate::shapes::{Group, Shape};
use crate::stats::Interval;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(215, 215, 215);
const FONT: &str = "sans-serif";

/// The candidates of the plot over sizes, the project's own last and thickest.
const LINES: [(&str, RGBColor, u32); 9] = [
    ("matrixmultiply", RGBColor(190, 170, 140), 1),
    ("gemm", RGBColor(150, 120, 190), 1),
    ("faer", RGBColor(60, 150, 110), 1),
    ("blis", RGBColor(220, 150, 40), 1),
    ("openblas", RGBColor(90, 160, 220), 1),
    ("onednn-debian", RGBColor(110, 135, 190), 1),
    ("onednn-pypi", RGBColor(35, 85, 160), 2),
    ("ane-matmul/dynamic", RGBColor(235, 120, 120), 2),
    ("ane-matmul", RGBColor(200, 30, 40), 3),
];

/// Writes what the results are enough for, and returns the files.
pub(crate) fn write(results: &Results, directory: &Path) -> Result<Vec<PathBuf>, String> {
    let wrong = |error: Box<dyn Error>| format!("{}: {error}", directory.display());
    std::fs::create_dir_all(directory).map_err(|error| wrong(error.into()))?;
    let mut files = Vec::new();
    for group in results.groups() {
        let (precision, threads) = (group.0.name(), group.1);
        let squares: Vec<&CaseResult> = squares(results, group);
        if squares.len() >= 2 {
            let file = directory.join(format!("rate-by-size-{precision}-{threads}.svg"));
            rate_by_size(results, group, &squares, &file).map_err(wrong)?;
            files.push(file);
        }
        let compared = compared(results, group);
        if !compared.is_empty() {
            let file = directory.join(format!("ratio-by-shape-{precision}-{threads}.svg"));
            ratio_by_shape(results, group, &compared, &file).map_err(wrong)?;
            files.push(file);
        }
    }
    Ok(files)
}

fn squares(results: &Results, group: Group) -> Vec<&CaseResult> {
    let fits = |result: &&CaseResult| {
        result.case.group() == group
            && !result.case.cold
            && result.case.shape == Shape::square(result.case.shape.m)
    };
    let mut squares: Vec<&CaseResult> = results.cases.iter().filter(fits).collect();
    squares.sort_by_key(|result| result.case.shape.m);
    squares
}

fn subtitle(results: &Results, (precision, threads): Group) -> String {
    let precision = precision.name();
    let plural = if threads == 1 { "" } else { "s" };
    format!("{precision}, {threads} thread{plural}, {}, {}", results.machine.cpu, results.machine.date)
}

fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

/// Title and machine above, and the area below them.
fn titled<'a>(
    root: &DrawingArea<SVGBackend<'a>, Shift>,
    title: &str,
    subtitle: &str,
) -> Outcome<DrawingArea<SVGBackend<'a>, Shift>> {
    root.fill(&WHITE)?;
    root.draw(&Text::new(title.to_owned(), (20, 14), text(22)))?;
    root.draw(&Text::new(subtitle.to_owned(), (20, 42), text(14)))?;
    Ok(root.margin(66, 10, 10, 20))
}

fn rate_by_size(results: &Results, group: Group, squares: &[&CaseResult], file: &Path) -> Outcome {
    let root = SVGBackend::new(file, (1000, 600)).into_drawing_area();
    let area = titled(&root, "m = n = k: GFLOP/s by size", &subtitle(results, group))?;
    let (plot, legend) = area.split_horizontally(800);
    let peak = results.peak_gflops(group.0, group.1);
    let rate = |result: &CaseResult, name: &str| {
        result.entry(name).map(|entry| result.case.shape.flops() / entry.median_ns())
    };
    let fastest = squares
        .iter()
        .flat_map(|result| LINES.iter().filter_map(|(name, ..)| rate(result, name)))
        .chain(peak)
        .fold(1.0, f64::max);
    let first = squares[0].case.shape.m as f64;
    let last = squares[squares.len() - 1].case.shape.m as f64;
    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(45)
        .y_label_area_size(65)
        .build_cartesian_2d((first..last).log_scale().base(2.0), 0.0..fastest * 1.06)?;
    chart
        .configure_mesh()
        .x_desc("size")
        .y_desc("GFLOP/s")
        .x_labels(12)
        .x_label_formatter(&|size| format!("{size:.0}"))
        .y_label_formatter(&|rate| format!("{rate:.0}"))
        .bold_line_style(FAINT)
        .light_line_style(WHITE)
        .axis_style(INK)
        .label_style(text(14))
        .draw()?;
    if let Some(peak) = peak {
        let line = [(first, peak), (last, peak)];
        chart.draw_series(DashedLineSeries::new(line, 6, 4, INK.stroke_width(1)))?;
        let label = TextStyle { pos: Pos::new(HPos::Left, VPos::Bottom), ..text(13) };
        chart.draw_series([Text::new(format!("peak {peak:.0}"), (first, peak), label)])?;
    }
    let mut shown = Vec::new();
    for (name, color, width) in LINES {
        let points: Vec<(f64, f64)> = squares
            .iter()
            .filter_map(|result| Some((result.case.shape.m as f64, rate(result, name)?)))
            .collect();
        if points.is_empty() {
            continue;
        }
        let style = ShapeStyle::from(&color).stroke_width(width);
        chart.draw_series(LineSeries::new(points.clone(), style))?;
        if squares.len() < 20 {
            chart
                .draw_series(points.into_iter().map(|point| Circle::new(point, 2 + width, color.filled())))?;
        }
        shown.push((name, style));
    }
    for (row, (name, style)) in (0..).zip(shown.into_iter().rev()) {
        let y = 20 + 26 * row;
        legend.draw(&PathElement::new([(12, y), (40, y)], style))?;
        let label = TextStyle { pos: Pos::new(HPos::Left, VPos::Center), ..text(14) };
        legend.draw(&Text::new(name, (48, y), label))?;
    }
    root.present()?;
    Ok(())
}

/// A row of the plot of ratios.
struct Row {
    label: String,
    constant: Option<Interval>,
    dynamic: Option<Interval>,
}

/// The shapes that have targets or lie beside them; a sweep over sizes has its own plot.
fn compared(results: &Results, group: Group) -> Vec<Row> {
    let wanted = crate::shapes::TARGET_SHAPES.into_iter().chain(crate::shapes::OTHER_SHAPES);
    let wanted: Vec<_> = wanted.collect();
    let few = results.cases.iter().filter(|result| result.case.group() == group).count() < 40;
    let shown =
        |result: &&CaseResult| result.case.group() == group && (few || wanted.contains(&result.case.shape));
    let row = |result: &CaseResult| {
        let best = result.best_peer()?;
        let ratio = |name: &str, best: &crate::results::Entry| {
            let own = result.entry(name)?;
            Some(Interval::of_speed(&own.run_medians_ns, &best.run_medians_ns))
        };
        let cold = if result.case.cold { ", cold B" } else { "" };
        let constant = ratio("ane-matmul", best);
        let dynamic = result.best_plain_peer().and_then(|best| ratio("ane-matmul/dynamic", best));
        let label = format!("{}{cold} ({})", result.case.shape, best.candidate);
        (constant.is_some() || dynamic.is_some()).then_some(Row { label, constant, dynamic })
    };
    results.cases.iter().filter(shown).filter_map(row).collect()
}

const ROW_HEIGHT: usize = 30;

/// Ratios beyond this are drawn at the edge.
const HIGHEST_RATIO: f64 = 3.0;

fn ratio_by_shape(results: &Results, group: Group, rows: &[Row], file: &Path) -> Outcome {
    let height = u32::try_from(rows.len() * ROW_HEIGHT + 190)?;
    let root = SVGBackend::new(file, (1000, height)).into_drawing_area();
    let title = "Speed as a multiple of the best peer's, by shape m x n x k";
    let area = titled(&root, title, &subtitle(results, group))?;
    let (plot, legend) = area.split_vertically(height - 126);
    let ratios = || rows.iter().flat_map(|row| [row.constant, row.dynamic]).flatten();
    let low = ratios().map(|ratio| ratio.low).fold(0.9, f64::min);
    let high = ratios().map(|ratio| ratio.high).fold(1.1, f64::max).min(HIGHEST_RATIO);
    let (first, last) = (low - 0.05, high + 0.05);
    let bottom = rows.len() as f64;
    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(30)
        .y_label_area_size(270)
        .build_cartesian_2d(first..last, bottom..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(12)
        .x_label_formatter(&|ratio| format!("{ratio:.1}"))
        .bold_line_style(FAINT)
        .light_line_style(WHITE)
        .axis_style(INK)
        .label_style(text(14))
        .draw()?;
    chart.draw_series(LineSeries::new([(1.0, 0.0), (1.0, bottom)], INK.stroke_width(1)))?;
    chart.draw_series(DashedLineSeries::new([(0.97, 0.0), (0.97, bottom)], 4, 4, INK.stroke_width(1)))?;
    for (index, row) in rows.iter().enumerate() {
        let middle = index as f64 + 0.5;
        let label = TextStyle { pos: Pos::new(HPos::Right, VPos::Center), ..text(14) };
        chart.draw_series([
            EmptyElement::at((first, middle)) + Text::new(row.label.clone(), (-10, 0), label)
        ])?;
        for (ratio, style, shift) in
            [(row.constant, own_style(false), -0.16), (row.dynamic, own_style(true), 0.16)]
        {
            let Some(ratio) = ratio else { continue };
            let y = middle + shift;
            let clamped = |x: f64| x.min(last);
            chart.draw_series(LineSeries::new([(clamped(ratio.low), y), (clamped(ratio.high), y)], style))?;
            chart.draw_series([Circle::new((clamped(ratio.middle), y), 4, style.filled())])?;
        }
    }
    let notes = [
        ("constant B, beside the best peer of all (named)", Some(own_style(false))),
        ("B with every run, beside the best peer that takes it so", Some(own_style(true))),
    ];
    for (row, (note, style)) in (0..).zip(notes) {
        let (x, y) = (20 + 370 * row, 24);
        if let Some(style) = style {
            legend.draw(&PathElement::new([(x, y), (x + 24, y)], style))?;
            legend.draw(&Circle::new((x + 12, y), 4, style.filled()))?;
        }
        let label = TextStyle { pos: Pos::new(HPos::Left, VPos::Center), ..text(14) };
        legend.draw(&Text::new(note, (x + 32, y), label))?;
    }
    root.present()?;
    Ok(())
}

fn own_style(dynamic: bool) -> ShapeStyle {
    let (_, color, _) = LINES[LINES.len() - 1 - usize::from(dynamic)];
    ShapeStyle::from(&color).stroke_width(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidates::{Kind, Origin};
    use crate::results::tests::{case_result, results};
    use crate::shapes::{Case, Precision};

    #[test]
    fn both_plots_are_written() {
        let cases = [8, 64, 512].map(|size| {
            let case =
                Case { precision: Precision::F32, shape: Shape::square(size), threads: 1, cold: false };
            case_result(
                case,
                &[
                    ("ane-matmul", Kind::Packed, Origin::Own, &[100.0, 110.0]),
                    ("faer", Kind::Plain, Origin::RustCrate, &[120.0, 120.0]),
                ],
            )
        });
        let directory = std::env::temp_dir().join(format!("ane-matmul-peers-plots-{}", std::process::id()));
        let files = write(&results(cases.to_vec()), &directory).unwrap();
        assert_eq!(files.len(), 2);
        for file in &files {
            let svg = std::fs::read_to_string(file).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{}", file.display());
        }
        let ratios = std::fs::read_to_string(&files[1]).unwrap();
        assert!(ratios.contains("512^3 (faer)"));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
