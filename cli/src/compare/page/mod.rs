//! What `compare --report` writes: one page of HTML that needs nothing else.

mod chart;
mod plots;
mod scale;

use std::time::SystemTime;

use ane_matmul::BackendId;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::compare::Absent;
use crate::compare::amortization::{Cheapest, cheapest};
use crate::compare::check::Check;
use crate::compare::measure::{Contender, Timing};
use crate::compare::report::{Comparison, errors_text, share_of_best};
use crate::output::time;

/// The level of validation that a row of the evidence reached.
const LEVELS: [(&str, &str); 3] = [
    ("run on this machine", "results checked in float64, then timed"),
    ("test double", "the logic around a stand-in for hardware; never timed, no proof of any device"),
    ("not run", "nothing is known from this machine"),
];

const STYLE: &str = include_str!("style.css");

/// The page. `maud` escapes every value that is put into it.
pub(crate) fn render(comparison: &Comparison, measured_at: SystemTime) -> String {
    let date = httpdate::fmt_http_date(measured_at);
    let title = format!("Matrix products on {}", comparison.machine.cpu);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Nothing is fetched and nothing runs, whatever found its way into the text.
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:";
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    p { (comparison.kind) ", measured " (date) " with ane-matmul " (env!("CARGO_PKG_VERSION")) ". Times are medians of interleaved samples." @if let Some(checks) = comparison.checks_text() { " Every result was checked before: " (checks) "." } }
                    (findings(comparison))
                    (figures(comparison))
                    (measurements(comparison))
                    (compilation(comparison))
                    (evidence(comparison))
                    (machine(comparison))
                }
            }
        }
    };
    page.into_string()
}

/// What stands out, in words.
fn findings(comparison: &Comparison) -> Markup {
    let winners: Vec<&Contender> = comparison
        .shapes()
        .into_iter()
        .filter_map(|shape| Some(&comparison.winner(shape)?.backend))
        .collect();
    html! {
        section {
            h2 { "In short" }
            @if comparison.measured.timings.is_empty() {
                p #nothing-timed { strong { "Nothing was timed." } " The evidence below says why." }
            } @else {
                ul {
                    @for backend in plots::backends(comparison) {
                        @if let Some(stand_ins) = stand_ins(comparison, backend) {
                            li { b { (backend) } " stands for " (stand_ins) "; it wins nothing of its own." }
                        } @else if comparison.contenders() > 1 {
                            @let wins = winners.iter().filter(|winner| **winner == backend).count();
                            li { b { (backend) } " is the fastest at " (wins) " of " (plural(winners.len(), "product")) "." }
                        } @else {
                            li { "One backend was timed: " b { (backend) } ". It is compared with nothing." }
                        }
                    }
                    li #crossover { "Crossover over the square products: " (comparison.crossover_text()) "." }
                    li #memory { (comparison.memory_text()) " Winners, crossover and what compiling pays hold for that." }
                }
            }
            @for note in &comparison.measured.notes {
                p.note { "Note: " (note) }
            }
        }
    }
}

/// Whom `auto` stands for, and at how many products; `None` for a contender.
fn stand_ins(comparison: &Comparison, backend: &Contender) -> Option<String> {
    let of_backend = comparison.measured.timings.iter().filter(|timing| timing.backend == *backend);
    let all: Vec<&BackendId> = of_backend.filter_map(|timing| timing.stands_for.as_ref()).collect();
    let mut each = all.clone();
    each.sort_unstable();
    each.dedup();
    let parts: Vec<String> = each
        .into_iter()
        .map(|other| {
            let count = all.iter().filter(|stand_in| **stand_in == other).count();
            format!("{other} at {}", plural(count, "product"))
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn figures(comparison: &Comparison) -> Markup {
    let charts = [plots::speed(comparison), plots::ratio(comparison), plots::amortization(comparison)];
    html! {
        @if charts.iter().any(Option::is_some) {
            section {
                h2 { "Plots" }
                div.figures { @for chart in charts.iter().flatten() { (chart.render()) } }
            }
        }
    }
}

fn measurements(comparison: &Comparison) -> Markup {
    let columns = ["median", "min", "GFLOP/s", "times the fastest", "samples"];
    html! {
        @if !comparison.measured.timings.is_empty() {
            section {
                h2 { "All measurements" }
                (table("measurements", "Every product on every backend, with its time, speed and error", &html! {
                    thead { tr {
                        th scope="col" { "m x n x k" } th scope="col" { "backend" } th.number scope="col" { "threads" }
                        @for column in columns { th.number scope="col" { (column) } }
                        th scope="col" { "check" }
                        @for column in ["max error", "bound"] { th.number scope="col" { (column) } }
                    } }
                    @for shape in comparison.shapes() {
                        @let winner = comparison.winner(shape);
                        tbody {
                            @for (index, timing) in comparison.timings_of(shape).enumerate() {
                                @let won = winner.is_some_and(|winner| std::ptr::eq(timing, winner));
                                tr.winner[comparison.contenders() > 1 && won] {
                                    @if index == 0 {
                                        th scope="rowgroup" rowspan=(comparison.timings_of(shape).count()) { (shape) }
                                    }
                                    th scope="row" { (backend_name(comparison, timing)) }
                                    td.number { @match timing.threads { Some(threads) => (threads), None => "unknown" } }
                                    td.number { (time(timing.median_ns)) }
                                    td.number { (time(timing.min_ns)) }
                                    td.number { (format!("{:.1}", timing.gflops)) }
                                    td.number {
                                        @match winner {
                                            Some(winner) => (format!("{:.2}", 1.0 / share_of_best(timing, winner))),
                                            None => "-",
                                        }
                                    }
                                    td.number { (timing.samples) }
                                    td { (timing.check.name()) }
                                    @for figure in errors_text(&timing.check) { td.number { (figure) } }
                                }
                            }
                        }
                    }
                }))
            }
        }
    }
}

/// From how many runs on compiling for a backend pays.
fn compilation(comparison: &Comparison) -> Markup {
    html! {
        @if !comparison.measured.timings.is_empty() {
            section {
                h2 { "Compilation, spread over the runs" }
                p { "The time of r runs is compiling, opening with the first run, and r - 1 times the median. A backend pays where no other takes less. " (comparison.memory_text()) }
                (table("compilation", "Compile time, and the numbers of runs for which each backend is the cheapest", &html! {
                    thead { tr {
                        th scope="col" { "m x n x k" } th scope="col" { "backend" }
                        @for column in ["compiling", "first run", "every other run"] { th.number scope="col" { (column) } }
                        th scope="col" { "pays for" }
                    } }
                    @for shape in comparison.shapes() {
                        @let timings: Vec<&Timing> = comparison.timings_of(shape).collect();
                        @let contenders: Vec<&Timing> = comparison.contenders_of(shape).collect();
                        @let ranges = cheapest(&contenders);
                        tbody {
                            @for (index, timing) in timings.iter().enumerate() {
                                tr {
                                    @if index == 0 { th scope="rowgroup" rowspan=(timings.len()) { (shape) } }
                                    th scope="row" { (backend_name(comparison, timing)) }
                                    td.number { (time_of(timing.compile_ns)) }
                                    td.number { (time_of(timing.first_run_ns)) }
                                    td.number { (time(timing.median_ns)) }
                                    td { (pays_for(&ranges, timing)) }
                                }
                            }
                        }
                    }
                }))
            }
        }
    }
}

fn pays_for(ranges: &[Cheapest<'_>], timing: &Timing) -> String {
    if let Some(other) = &timing.stands_for {
        return format!("stands for {other}");
    }
    let range = ranges.iter().find(|range| *range.backend == timing.backend);
    range.map_or_else(|| "never".to_owned(), plots::runs_text)
}

/// What each backend is, what was asked of it, and what was seen.
fn evidence(comparison: &Comparison) -> Markup {
    html! {
        section {
            h2 { "Evidence" }
            p { "Requested is what was asked for; observed is what the engine gave evidence of. Nothing here was taken for a device because it was asked for." }
            (table("evidence", "Devices requested and observed, and the proof for each backend", &html! {
                thead { tr {
                    @for column in ["backend", "level of validation", "requested", "observed", "what it is", "what was seen"] {
                        th scope="col" { (column) }
                    }
                } }
                tbody {
                    @for (backend, info) in &comparison.timed {
                        @let timings: Vec<&Timing> =
                            comparison.measured.timings.iter().filter(|timing| timing.backend.id == *backend).collect();
                        tr {
                            th scope="row" { (backend) }
                            td { (if timings.is_empty() { LEVELS[2].0 } else { LEVELS[0].0 }) }
                            td { (devices(timings.iter().map(|timing| timing.requested.name()))) }
                            td { (devices(timings.iter().map(|timing| timing.observed.name()))) }
                            td { (info.description) "; " (info.device_name) }
                            td { (seen(comparison, backend, &timings)) }
                        }
                    }
                    @for Absent { backend, reason, is_test_double } in &comparison.unavailable {
                        tr {
                            th scope="row" { (backend) }
                            td { (if *is_test_double { LEVELS[1].0 } else { LEVELS[2].0 }) }
                            td { "nothing" } td { "nothing" } td {}
                            td { (reason) }
                        }
                    }
                }
            }))
            p.note { "What was proved on other machines stands in ane-matmul's README, under \"Backends, and the evidence for each\"." }
            dl { @for (level, meaning) in LEVELS { div { dt { (level) } dd { (meaning) } } } }
        }
    }
}

/// The devices named, each once.
fn devices<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn seen(comparison: &Comparison, backend: &BackendId, timings: &[&Timing]) -> Markup {
    let ratios: Vec<f64> = timings
        .iter()
        .filter_map(|timing| match timing.check {
            Check::Reference { worst_ratio, .. } => Some(worst_ratio),
            Check::Projections => None,
        })
        .collect();
    let worst = ratios.iter().copied().fold(0.0, f64::max);
    let projected = timings.len() - ratios.len();
    html! {
        @if !ratios.is_empty() {
            p { (plural(ratios.len(), "product")) " within the error bound, the worst element at " (format!("{worst:.2}")) " of it" }
        }
        @if projected > 0 {
            p { (plural(projected, "product")) " found right by random projections" }
        }
        @for (_, shape, reason) in comparison.measured.refused.iter().filter(|(id, ..)| id == backend) {
            p { "refused " (shape) ": " (reason) }
        }
    }
}

fn machine(comparison: &Comparison) -> Markup {
    let machine = &comparison.machine;
    let sets = machine.instruction_sets.join(" ");
    let facts = [
        ("CPU", machine.cpu.clone()),
        ("cores", format!("{}, {} threads allowed", machine.cores, machine.allowed_threads)),
        ("instruction sets", if sets.is_empty() { "none detected".into() } else { sets }),
        ("system", format!("{}, {}", machine.os, std::env::consts::ARCH)),
        ("ane-matmul", env!("CARGO_PKG_VERSION").to_owned()),
        ("features", features()),
        (
            "build",
            if cfg!(debug_assertions) { "debug: times are not those of a release" } else { "release" }.into(),
        ),
    ];
    html! {
        section #machine {
            h2 { "Machine and versions" }
            dl { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } }
        }
    }
}

/// The library's features in this build.
fn features() -> String {
    let features = [
        ("blas", cfg!(feature = "blas")),
        ("energy", cfg!(feature = "energy")),
        ("evidence", true),
        ("half", true),
        ("npy", true),
        ("profile", true),
        ("safetensors", true),
    ];
    features.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

/// A table that scrolls in a frame of its own where the window is narrow.
fn table(id: &str, caption: &str, rows: &Markup) -> Markup {
    html! {
        div.scroll role="region" aria-label=(caption) tabindex="0" {
            table id=(id) { caption { span { (caption) } } (rows) }
        }
    }
}

fn backend_name(comparison: &Comparison, timing: &Timing) -> Markup {
    html! { (chart::sample(plots::style(comparison, &timing.backend))) " " (timing.name()) }
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds below 2^53")]
fn time_of(ns: u128) -> String {
    time(ns as f64)
}

fn plural(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// A number with its thousands apart.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let groups =
        digits.as_bytes()[first..].chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let head = (first > 0).then(|| digits[..first].to_owned());
    head.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
