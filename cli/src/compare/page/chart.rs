//! A line plot as inline SVG.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::scale::Scale;

/// The picture's size in its own units; the style sheet scales it to the page.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = HEIGHT - 54.0;

/// Colours, shapes of markers and dashes that the style sheet knows.
const STYLES: usize = 6;

/// One line with its markers.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// Which colour, marker and dashes; equal for one backend in every plot.
    pub(super) style: usize,
    pub(super) line: Vec<(f64, f64)>,
    pub(super) markers: Vec<Marker>,
}

/// A point with what is said of it.
#[derive(Debug)]
pub(super) struct Marker {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) label: String,
}

/// What stands along an axis.
pub(super) struct Axis {
    pub(super) label: &'static str,
    pub(super) format: fn(f64) -> String,
    /// Where to put ticks; empty: at round values.
    pub(super) ticks: Vec<f64>,
}

/// A plot with logarithmic axes.
pub(super) struct Chart {
    /// Distinguishes this plot's elements from those of others on the page.
    pub(super) id: &'static str,
    pub(super) title: String,
    /// The plot in words, and where its figures stand as text.
    pub(super) description: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// A range of x to mark, and its name.
    pub(super) band: Option<(f64, f64, &'static str)>,
}

impl Chart {
    /// The figure: heading, legend and picture.
    pub(super) fn render(&self) -> Markup {
        let (title_id, description_id) = (format!("{}-title", self.id), format!("{}-description", self.id));
        html! {
            figure id=(self.id) {
                figcaption { (self.title) }
                ul.legend aria-hidden="true" {
                    @for series in &self.series {
                        li { (sample(series.style)) " " (series.name) }
                    }
                }
                svg.plot role="img" viewBox=(format!("0 0 {WIDTH} {HEIGHT}"))
                    aria-labelledby=(format!("{title_id} {description_id}"))
                {
                    title id=(title_id) { (self.title) }
                    desc id=(description_id) { (self.description) }
                    (self.picture())
                }
                p.note { (self.description) }
            }
        }
    }

    fn picture(&self) -> Markup {
        let points = || {
            let lines = self.series.iter().flat_map(|series| series.line.iter().copied());
            lines.chain(self.series.iter().flat_map(|series| series.markers.iter().map(|m| (m.x, m.y))))
        };
        let x = Scale::new(points().map(|point| point.0), 1.15, LEFT, RIGHT);
        let y = Scale::new(points().map(|point| point.1), 1.35, BOTTOM, TOP);
        let x_ticks = if self.x.ticks.is_empty() { x.ticks() } else { self.x.ticks.clone() };
        let middle = f64::midpoint(TOP, BOTTOM);
        html! {
            @if let Some((from, to, name)) = self.band {
                rect.band x=(place(x.at(from))) y=(place(TOP)) width=(place(x.at(to) - x.at(from)))
                    height=(place(BOTTOM - TOP)) {}
                text.band-name x=(place(f64::midpoint(x.at(from), x.at(to)))) y=(place(TOP + 16.0)) text-anchor="middle" {
                    (name)
                }
            }
            @for tick in y.spaced(&y.ticks(), 22.0) {
                line.grid x1=(place(LEFT)) x2=(place(RIGHT)) y1=(place(y.at(tick))) y2=(place(y.at(tick))) {}
                text x=(place(LEFT - 7.0)) y=(place(y.at(tick) + 5.0)) text-anchor="end" { ((self.y.format)(tick)) }
            }
            @for tick in x.spaced(&x_ticks, 44.0) {
                line.grid x1=(place(x.at(tick))) x2=(place(x.at(tick))) y1=(place(TOP)) y2=(place(BOTTOM)) {}
                text x=(place(x.at(tick))) y=(place(BOTTOM + 20.0)) text-anchor="middle" { ((self.x.format)(tick)) }
            }
            path.axis d=(format!("M{LEFT} {TOP}V{BOTTOM}H{RIGHT}")) {}
            text x=(place(f64::midpoint(LEFT, RIGHT))) y=(place(HEIGHT - 10.0)) text-anchor="middle" { (self.x.label) }
            text x="14" y=(place(middle)) text-anchor="middle" transform=(format!("rotate(-90 14 {})", place(middle))) {
                (self.y.label)
            }
            @for series in &self.series {
                g class=(class(series.style)) data-series=(series.name) {
                    @if series.line.len() > 1 { path.line d=(path(&series.line, &x, &y)) {} }
                    @for marker in &series.markers {
                        (marker_shape(series.style, x.at(marker.x), y.at(marker.y), Some(&marker.label)))
                    }
                }
            }
        }
    }
}

/// What a line of this style looks like, for text beside a plot.
pub(super) fn sample(style: usize) -> Markup {
    html! {
        svg.sample aria-hidden="true" viewBox="0 0 36 14" {
            g class=(class(style)) { path.line d="M1 7H35" {} (marker_shape(style, 18.0, 7.0, None)) }
        }
    }
}

fn class(style: usize) -> String {
    format!("series style-{} dashes-{}", style % STYLES, style / STYLES % 3)
}

fn path(points: &[(f64, f64)], x: &Scale, y: &Scale) -> String {
    let mut path = String::new();
    for (index, point) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        // Writing to a string cannot fail.
        let _ = write!(path, "{command}{} {}", place(x.at(point.0)), place(y.at(point.1)));
    }
    path
}

/// Shapes tell the series apart where colours do not.
fn marker_shape(style: usize, x: f64, y: f64, label: Option<&str>) -> Markup {
    let outline: &[(f64, f64)] = match style % STYLES {
        0 => &[],
        1 => &[(-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)],
        2 => &[(0.0, -6.0), (5.5, 4.5), (-5.5, 4.5)],
        3 => &[(0.0, -6.5), (6.5, 0.0), (0.0, 6.5), (-6.5, 0.0)],
        4 => &[(0.0, 6.0), (5.5, -4.5), (-5.5, -4.5)],
        _ => &[(-6.0, -2.0), (0.0, -6.5), (6.0, -2.0), (4.0, 5.0), (-4.0, 5.0)],
    };
    let corners: Vec<String> =
        outline.iter().map(|(dx, dy)| format!("{},{}", place(x + dx), place(y + dy))).collect();
    html! {
        @if corners.is_empty() {
            circle.marker cx=(place(x)) cy=(place(y)) r="5" { @if let Some(label) = label { title { (label) } } }
        } @else {
            polygon.marker points=(corners.join(" ")) { @if let Some(label) = label { title { (label) } } }
        }
    }
}

/// A coordinate, to a tenth of a unit.
fn place(value: f64) -> String {
    format!("{value:.1}")
}
