//! The plots of the page, from the figures of a comparison.

use super::chart::{Axis, Chart, Marker, Series};
use super::count;
use crate::args::Shape;
use crate::compare::amortization::{Cheapest, cheapest, total_ns};
use crate::compare::measure::{Contender, Timing};
use crate::compare::report::{Comparison, share_of_best};
use crate::output::time;

/// Numbers of runs at which a line is computed, for each power of ten.
const STEPS_PER_DECADE: u32 = 8;

/// The backends timed, in the order measured: the place of each says how it is drawn.
pub(super) fn backends(comparison: &Comparison) -> Vec<&Contender> {
    let mut backends: Vec<&Contender> = Vec::new();
    for timing in &comparison.measured.timings {
        if !backends.contains(&&timing.backend) {
            backends.push(&timing.backend);
        }
    }
    backends
}

/// GFLOP/s by size; `None` where nothing has a speed.
pub(super) fn speed(comparison: &Comparison) -> Option<Chart> {
    let band = comparison.crossover().map(|crossover| {
        #[allow(clippy::cast_precision_loss, reason = "a position in a picture")]
        let band = (crossover.last_below as f64, crossover.size as f64, "crossover");
        band
    });
    by_size(
        comparison,
        |_| true,
        |timing| timing.gflops,
        |timing| format!("{:.1} GFLOP/s", timing.gflops),
        |series| {
            Chart {
            id: "speed",
            title: "GFLOP/s by size".into(),
            description: "Speed over the size of the product; higher is faster. The size of a product that is no cube is the cube root of m n k; such products are points off the lines. The figures are in the table of all measurements.".into(),
            x: size_axis(comparison),
            y: Axis { label: "GFLOP/s (median)", format: number, ticks: Vec::new() },
            series,
            band,
        }
        },
    )
}

/// How many times the fastest's time each backend takes; `None` with fewer than two that may win.
pub(super) fn ratio(comparison: &Comparison) -> Option<Chart> {
    let times_fastest = |timing: &Timing| {
        comparison.winner(timing.shape).map_or(1.0, |winner| 1.0 / share_of_best(timing, winner))
    };
    if comparison.contenders() < 2 {
        return None;
    }
    by_size(
        comparison,
        Timing::is_contender,
        times_fastest,
        |timing| format!("{:.2} times the fastest's time", times_fastest(timing)),
        |series| {
            Chart {
            id: "ratio",
            title: "Time as a multiple of the fastest's".into(),
            description: "Each backend's median time divided by that of the fastest at that size; 1 is the fastest, lower is faster. The figures are in the table of all measurements.".into(),
            x: size_axis(comparison),
            y: Axis { label: "times the fastest's time", format: number, ticks: Vec::new() },
            series,
            band: None,
        }
        },
    )
}

/// The time of a run, its part of the compilation included, by the number of runs, for the largest
/// product; `None` where nothing took time.
pub(super) fn amortization(comparison: &Comparison) -> Option<Chart> {
    let largest =
        comparison.measured.timings.iter().filter(|timing| timing.is_contender() && timing.gflops > 0.0);
    let shape = largest.max_by(|a, b| size(a.shape).total_cmp(&size(b.shape)))?.shape;
    let timings: Vec<&Timing> = comparison.contenders_of(shape).collect();
    let last_change = cheapest(&timings).iter().map(|range| range.first).max().unwrap_or(1);
    let decades = (last_change.max(100).ilog10() + 2).min(12);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 10^12")]
    let runs = || {
        (0..=decades * STEPS_PER_DECADE)
            .map(|step| 10f64.powf(f64::from(step) / f64::from(STEPS_PER_DECADE)).round() as u64)
    };
    #[allow(clippy::cast_precision_loss, reason = "a position in a picture")]
    let point = |timing: &Timing, runs: u64| (runs as f64, total_ns(timing, runs) / runs as f64);
    let series = timings
        .iter()
        .map(|timing| Series {
            name: timing.backend.to_string(),
            style: style(comparison, &timing.backend),
            line: runs().map(|runs| point(timing, runs)).collect(),
            markers: (0..=decades)
                .map(|decade| {
                    let runs = 10u64.pow(decade);
                    let (x, y) = point(timing, runs);
                    Marker {
                        x,
                        y,
                        label: format!("{}, {} runs: {} a run", timing.backend, count(runs), time(y)),
                    }
                })
                .collect(),
        })
        .collect();
    Some(Chart {
        id: "amortization",
        title: format!("Time of a run with its share of the compilation, {shape}"),
        description: format!(
            "The largest product measured, {shape}: compiling, opening, the first run and every other at the median, divided by the number of runs; lower is cheaper. {} {} The table of compilation has every product.",
            sentence(&cheapest(&timings)),
            comparison.memory_text()
        ),
        x: Axis { label: "runs", format: short_count, ticks: Vec::new() },
        y: Axis { label: "time of a run", format: tick_time, ticks: Vec::new() },
        series,
        band: None,
    })
}

/// Who is the cheapest for how many runs, in words.
fn sentence(ranges: &[Cheapest<'_>]) -> String {
    match ranges {
        [only] => format!("{} is the cheapest from the first run on.", only.backend),
        _ => {
            let parts: Vec<String> =
                ranges.iter().map(|range| format!("{} for {}", range.backend, runs_text(range))).collect();
            format!("The cheapest is {}.", parts.join(", "))
        }
    }
}

/// The numbers of runs of a range, in words.
pub(super) fn runs_text(range: &Cheapest<'_>) -> String {
    match range.last {
        None if range.first == 1 => "any number of runs".to_owned(),
        None => format!("{} runs and more", count(range.first)),
        Some(1) => "1 run".to_owned(),
        Some(last) if last == range.first => format!("{} runs", count(last)),
        Some(last) => format!("{} to {} runs", count(range.first), count(last)),
    }
}

fn by_size(
    comparison: &Comparison,
    drawn: impl Fn(&Timing) -> bool,
    value: impl Fn(&Timing) -> f64,
    label: impl Fn(&Timing) -> String,
    chart: impl FnOnce(Vec<Series>) -> Chart,
) -> Option<Chart> {
    let series: Vec<Series> = backends(comparison)
        .into_iter()
        .enumerate()
        .filter_map(|(style, backend)| {
            let of_backend = comparison.measured.timings.iter();
            // A product without work has no place on a logarithmic scale.
            let mut timings: Vec<&Timing> = of_backend
                .filter(|timing| timing.backend == *backend && timing.gflops > 0.0 && drawn(timing))
                .collect();
            timings.sort_by(|a, b| size(a.shape).total_cmp(&size(b.shape)));
            let cubes = timings
                .iter()
                .filter(|timing| timing.shape.m == timing.shape.n && timing.shape.n == timing.shape.k);
            let line = cubes.map(|timing| (size(timing.shape), value(timing))).collect();
            let markers = timings
                .iter()
                .map(|timing| Marker {
                    x: size(timing.shape),
                    y: value(timing),
                    label: format!("{}, {}: {}", timing.name(), timing.shape, label(timing)),
                })
                .collect();
            (!timings.is_empty()).then(|| Series { name: backend.to_string(), style, line, markers })
        })
        .collect();
    (!series.is_empty()).then(|| chart(series))
}

pub(super) fn style(comparison: &Comparison, backend: &Contender) -> usize {
    backends(comparison).iter().position(|other| *other == backend).unwrap_or(0)
}

fn size_axis(comparison: &Comparison) -> Axis {
    let mut ticks: Vec<f64> = comparison.shapes().into_iter().map(size).filter(|size| *size > 0.0).collect();
    ticks.sort_by(f64::total_cmp);
    Axis { label: "size (cube root of m n k)", format: |size| format!("{size:.0}"), ticks }
}

/// The cube root of m n k.
#[allow(clippy::cast_precision_loss, reason = "a position in a picture")]
fn size(shape: Shape) -> f64 {
    (shape.m as f64 * shape.n as f64 * shape.k as f64).cbrt()
}

/// A time at a tick, where round numbers stand.
fn tick_time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    format!("{} {unit}", number(value))
}

fn number(value: f64) -> String {
    match value {
        value if value < 0.1 => format!("{value:.0e}"),
        value if value < 10.0 => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        value if value < 1e4 => format!("{value:.0}"),
        value => short_count(value),
    }
}

/// A large number with its prefix: 20k, 5M.
fn short_count(value: f64) -> String {
    match value {
        value if value < 1e3 => format!("{value:.0}"),
        value if value < 1e6 => format!("{:.0}k", value / 1e3),
        value if value < 1e9 => format!("{:.0}M", value / 1e6),
        value => format!("{:.0}G", value / 1e9),
    }
}
