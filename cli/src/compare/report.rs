//! What `compare` says: a table, and JSON.

use std::collections::HashSet;
use std::fmt::Write as _;

use ane_matmul::{BackendId, BackendInfo};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::args::Shape;
use crate::compare::Absent;
use crate::compare::check::{Check, FAILURE_PROBABILITY};
use crate::compare::measure::{Contender, Measured, Timing};
use crate::compare::operands::Kind;
use crate::machine::Machine;
use crate::output::time;

/// Figures and what they were taken on.
pub(crate) struct Comparison {
    pub(crate) machine: Machine,
    pub(crate) kind: Kind,
    pub(crate) measured: Measured,
    /// The backends that were asked to run.
    pub(crate) timed: Vec<(BackendId, BackendInfo)>,
    pub(crate) unavailable: Vec<Absent>,
}

/// Where the fastest backend changes: at `last_below` something else wins, from `size` on `winner`
/// wins every larger size measured.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Crossover<'a> {
    pub(crate) last_below: usize,
    pub(crate) winner_below: &'a Contender,
    pub(crate) size: usize,
    pub(crate) winner: &'a Contender,
}

impl Comparison {
    /// The products in the order measured, each once.
    pub(crate) fn shapes(&self) -> Vec<Shape> {
        let mut shapes: Vec<Shape> = Vec::new();
        for timing in &self.measured.timings {
            if !shapes.contains(&timing.shape) {
                shapes.push(timing.shape);
            }
        }
        shapes
    }

    pub(crate) fn timings_of(&self, shape: Shape) -> impl Iterator<Item = &Timing> {
        self.measured.timings.iter().filter(move |timing| timing.shape == shape)
    }

    /// The timings that win or lose: `auto` is no engine, and what it stands for is one already.
    pub(crate) fn contenders_of(&self, shape: Shape) -> impl Iterator<Item = &Timing> {
        self.timings_of(shape).filter(|timing| timing.is_contender())
    }

    pub(crate) fn winner(&self, shape: Shape) -> Option<&Timing> {
        self.contenders_of(shape).min_by(|a, b| a.median_ns.total_cmp(&b.median_ns))
    }

    /// Whether something ran on operands that stay on the device.
    fn has_resident(&self) -> bool {
        self.measured.timings.iter().any(|timing| timing.backend.resident)
    }

    /// Where operands and result are in every run.
    pub(crate) fn memory_text(&self) -> String {
        let operands = if self.kind.constant_b { "A and C" } else { "A, B and C" };
        let resident = if self.has_resident() { " Those of resident rows stay on the device." } else { "" };
        format!("{operands} are in host memory before and after every run.{resident}")
    }

    /// The sizes of the square products, ascending, and who wins each. One without work says nothing.
    fn square_winners(&self) -> Vec<(usize, &Contender)> {
        let mut squares: Vec<Shape> =
            self.shapes().into_iter().filter(|s| s.m == s.n && s.n == s.k && s.m > 0).collect();
        squares.sort_by_key(|shape| shape.m);
        squares.iter().filter_map(|&shape| Some((shape.m, &self.winner(shape)?.backend))).collect()
    }

    /// How many backends were timed that may win.
    pub(crate) fn contenders(&self) -> usize {
        let contenders = self.measured.timings.iter().filter(|timing| timing.is_contender());
        contenders.map(|timing| &timing.backend).collect::<HashSet<_>>().len()
    }

    /// How results were checked, in words; `None` where there are none.
    pub(crate) fn checks_text(&self) -> Option<String> {
        let timings = &self.measured.timings;
        let of = |projections| timings.iter().any(|t| (t.check == Check::Projections) == projections);
        let by_projections = format!(
            "by random projections (Freivalds), which miss an error as large as the mean bound of its row with probability {FAILURE_PROBABILITY:.0e} at most and measure none"
        );
        let by_reference = "every element against a float64 reference";
        match (of(false), of(true)) {
            (true, true) => Some(format!("{by_reference}, or, where large, {by_projections}")),
            (false, true) => Some(by_projections),
            (true, false) => Some(by_reference.to_owned()),
            (false, false) => None,
        }
    }

    /// The crossover between backends over the square products, if there is one.
    pub(crate) fn crossover(&self) -> Option<Crossover<'_>> {
        let winners = self.square_winners();
        let &(_, winner) = winners.last()?;
        let last_other = winners.iter().rposition(|&(_, other)| other != winner)?;
        let (last_below, winner_below) = winners[last_other];
        let (size, _) = winners[last_other + 1];
        Some(Crossover { last_below, winner_below, size, winner })
    }

    /// The crossover, or why there is none, in words.
    pub(crate) fn crossover_text(&self) -> String {
        match (self.crossover(), self.square_winners().len()) {
            (Some(crossover), _) => format!(
                "{} wins at {}, {} from {} on",
                crossover.winner_below, crossover.last_below, crossover.winner, crossover.size
            ),
            (None, _) if self.contenders() == 0 && !self.measured.timings.is_empty() => {
                "not known, auto alone was timed, and it stands for others".to_owned()
            }
            (None, 0 | 1) => "not known, it takes square products of two sizes".to_owned(),
            (None, _) if self.contenders() == 1 => "none, one backend was measured".to_owned(),
            (None, _) => "none, one backend wins every square product measured".to_owned(),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let results: Vec<Value> =
            self.measured.timings.iter().map(|timing| result_json(self.kind, timing)).collect();
        let unavailable: Vec<Value> = self
            .unavailable
            .iter()
            .map(|absent| json!({ "backend": absent.backend.as_str(), "reason": absent.reason }))
            .collect();
        let refused: Vec<Value> = self
            .measured
            .refused
            .iter()
            .map(|(id, shape, reason)| {
                json!({ "backend": id.as_str(), "m": shape.m, "n": shape.n, "k": shape.k, "reason": reason })
            })
            .collect();
        let winners: Vec<Value> = self
            .shapes()
            .into_iter()
            .filter_map(|shape| {
                let winner = self.winner(shape)?;
                Some(json!({
                    "batch": 1, "m": shape.m, "n": shape.n, "k": shape.k,
                    "backend": winner.backend.id.as_str(), "memory": winner.backend.memory(),
                    "median_ns": winner.median_ns,
                }))
            })
            .collect();
        let crossover = self.crossover().map(|crossover| {
            json!({
                "size": crossover.size,
                "backend": crossover.winner.id.as_str(),
                "memory": crossover.winner.memory(),
                "last_size_below": crossover.last_below,
                "backend_below": crossover.winner_below.id.as_str(),
                "memory_below": crossover.winner_below.memory(),
            })
        });
        json!({
            "machine": self.machine.to_json(),
            "precision": self.kind.precision.name(),
            "constant_b": self.kind.constant_b,
            "memory": if self.has_resident() { "host and device" } else { "host" },
            "results": results,
            "unavailable": unavailable,
            "refused": refused,
            "notes": self.measured.notes,
            "winners": winners,
            "crossover": crossover,
        })
    }

    pub(crate) fn to_text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "m x n x k",
            "backend",
            "threads",
            "median",
            "min",
            "GFLOP/s",
            "of best",
            "compile",
            "check",
            "max error",
            "bound",
            "",
        ]);
        for index in (2..8).chain(9..11) {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for shape in self.shapes() {
            let winner = self.winner(shape);
            for (index, timing) in self.timings_of(shape).enumerate() {
                let [max_abs_error, error_bound] = errors_text(&timing.check);
                table.add_row([
                    if index == 0 { shape.to_string() } else { String::new() },
                    timing.name(),
                    timing.threads.map_or_else(|| "?".into(), |threads| threads.to_string()),
                    time(timing.median_ns),
                    time(timing.min_ns),
                    format!("{:.1}", timing.gflops),
                    winner.map_or_else(
                        || "-".into(),
                        |winner| format!("{:.0} %", 100.0 * share_of_best(timing, winner)),
                    ),
                    #[allow(clippy::cast_precision_loss)]
                    time(timing.compile_ns as f64),
                    timing.check.name().into(),
                    max_abs_error,
                    error_bound,
                    if winner.is_some_and(|winner| std::ptr::eq(timing, winner)) {
                        "winner".into()
                    } else {
                        String::new()
                    },
                ]);
            }
        }
        let machine = &self.machine;
        let mut text =
            format!("{}, {} threads allowed; {}\n{table}\n", machine.cpu, machine.allowed_threads, self.kind);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "crossover: {}", self.crossover_text());
        if self.has_resident() {
            let _ = writeln!(text, "memory: {}", self.memory_text());
        }
        if let Some(checks) = self.checks_text() {
            let _ = writeln!(text, "checked: {checks}");
        }
        for note in &self.measured.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for (id, shape, reason) in &self.measured.refused {
            let _ = writeln!(text, "refused: {id} at {shape}: {reason}");
        }
        for Absent { backend, reason, .. } in &self.unavailable {
            let _ = writeln!(text, "not here: {backend}: {reason}");
        }
        text.trim_end().to_owned()
    }
}

/// The largest error and the largest bound; dashes where none was measured.
pub(crate) fn errors_text(check: &Check) -> [String; 2] {
    match check {
        Check::Reference { max_abs_error, error_bound, .. } => {
            [max_abs_error, error_bound].map(|figure| format!("{figure:.1e}"))
        }
        Check::Projections => ["-", "-"].map(str::to_owned),
    }
}

fn result_json(kind: Kind, timing: &Timing) -> Value {
    let errors = match timing.check {
        Check::Reference { max_abs_error, error_bound, worst_ratio } => {
            [max_abs_error, error_bound, worst_ratio].map(Some)
        }
        Check::Projections => [None; 3],
    };
    json!({
        "backend": timing.backend.id.as_str(),
        "memory": timing.backend.memory(),
        "stands_for": timing.stands_for.as_ref().map(BackendId::as_str),
        "precision": kind.precision.name(),
        "constant_b": kind.constant_b,
        "batch": 1,
        "m": timing.shape.m,
        "n": timing.shape.n,
        "k": timing.shape.k,
        "threads": timing.threads,
        "requested": timing.requested.name(),
        "observed": timing.observed.name(),
        "compile_ns": u64::try_from(timing.compile_ns).unwrap_or(u64::MAX),
        "first_run_ns": u64::try_from(timing.first_run_ns).unwrap_or(u64::MAX),
        "median_ns": timing.median_ns,
        "min_ns": timing.min_ns,
        "samples": timing.samples,
        "gflops": timing.gflops,
        "check": timing.check.name(),
        "max_abs_error": errors[0],
        "error_bound": errors[1],
        "worst_error_to_bound": errors[2],
    })
}

/// The speed as a part of the fastest's.
pub(crate) fn share_of_best(timing: &Timing, winner: &Timing) -> f64 {
    if timing.median_ns > 0.0 { winner.median_ns / timing.median_ns } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Precision;
    use crate::compare::fixture::comparison;

    #[test]
    fn the_origins_crossover() {
        // The origin's table: ANE through MPSGraph, Metal, Accelerate; microseconds.
        let table = [
            (256, [346.0, 385.0, 117.0]),
            (512, [845.0, 817.0, 378.0]),
            (1024, [3009.0, 2644.0, 3380.0]),
            (2048, [11628.0, 10532.0, 21964.0]),
        ];
        let mut times = Vec::new();
        for (size, us) in table {
            times.extend(
                ["mpsgraph", "metal", "accelerate"].into_iter().zip(us).map(|(name, us)| (size, name, us)),
            );
        }
        let comparison = comparison(&times);
        let crossover = comparison.crossover().expect("Accelerate wins below, Metal above");
        assert_eq!((crossover.last_below, crossover.winner_below.id.as_str()), (512, "accelerate"));
        assert_eq!((crossover.size, crossover.winner.id.as_str()), (1024, "metal"));
        assert_eq!(comparison.to_json()["crossover"]["size"], 1024);
        assert!(comparison.to_text().contains("accelerate wins at 512, metal from 1024 on"));
    }

    #[test]
    fn no_crossover_where_one_backend_wins_throughout() {
        let comparison = comparison(&[(256, "a", 1.0), (256, "b", 2.0), (512, "a", 3.0), (512, "b", 4.0)]);
        assert!(comparison.crossover().is_none());
        assert_eq!(comparison.to_json()["crossover"], Value::Null);
        assert_eq!(comparison.to_json()["winners"].as_array().map(Vec::len), Some(2));
        assert!(comparison.to_text().contains("one backend wins every square product"));
    }

    #[test]
    fn one_backend_wins_nothing() {
        let text = comparison(&[(256, "a", 1.0), (512, "a", 3.0)]).to_text();
        assert!(text.contains("crossover: none, one backend was measured"), "{text}");
    }

    #[test]
    fn one_size_or_none_shows_no_crossover() {
        for times in [&[][..], &[(256, "a", 1.0)], &[(0, "b", 1.0), (256, "a", 1.0), (256, "b", 2.0)]] {
            let comparison = comparison(times);
            assert!(comparison.crossover().is_none());
            assert!(comparison.to_text().contains("crossover: not known"), "{}", comparison.to_text());
        }
        // A winner that comes back: no claim about the sizes below.
        let comparison = comparison(&[
            (1, "a", 1.0),
            (1, "b", 2.0),
            (2, "a", 2.0),
            (2, "b", 1.0),
            (4, "a", 1.0),
            (4, "b", 2.0),
        ]);
        assert!(comparison.to_text().contains("crossover: b wins at 2, a from 4 on"));
    }

    #[test]
    fn auto_wins_nothing_and_names_whom_it_stands_for() {
        let mut comparison = comparison(&[
            (256, "cpu", 1.0),
            (256, "auto", 0.9),
            (512, "cpu", 4.0),
            (512, "gpu", 2.0),
            (512, "auto", 1.9),
        ]);
        for (index, other) in [(1, "cpu"), (4, "gpu")] {
            comparison.measured.timings[index].stands_for = Some(BackendId::new(other));
        }
        assert_eq!(comparison.contenders(), 2);
        let json = comparison.to_json();
        let winners: Vec<_> = json["winners"].as_array().unwrap().iter().map(|w| &w["backend"]).collect();
        assert_eq!(winners, ["cpu", "gpu"]);
        assert_eq!(json["crossover"]["backend"], "gpu");
        assert_eq!(
            (&json["results"][1]["stands_for"], &json["results"][0]["stands_for"]),
            (&json!("cpu"), &Value::Null)
        );
        let text = comparison.to_text();
        assert!(text.contains("crossover: cpu wins at 256, gpu from 512 on"), "{text}");
        let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(line("auto (cpu)").contains("111 %") && !line("auto (cpu)").contains("winner"), "{text}");
        assert!(line("auto (gpu)").contains("105 %"), "{text}");

        comparison.measured.timings.retain(|timing| !timing.is_contender());
        let text = comparison.to_text();
        assert!(text.contains("auto (gpu)") && !text.contains("winner |"), "{text}");
        assert!(text.contains("crossover: not known, auto alone was timed"), "{text}");
        assert_eq!(comparison.to_json()["winners"], json!([]));
    }

    #[test]
    fn errors_that_were_not_measured_are_absent() {
        let mut comparison = comparison(&[(256, "cpu", 1.0), (2048, "cpu", 4.0)]);
        let of = |comparison: &Comparison| comparison.checks_text().unwrap();
        assert_eq!(of(&comparison), "every element against a float64 reference");
        comparison.measured.timings[1].check = Check::Projections;
        assert!(of(&comparison).contains("or, where large, by random projections"), "{}", of(&comparison));
        let results = &comparison.to_json()["results"];
        for key in ["max_abs_error", "error_bound", "worst_error_to_bound"] {
            assert!(results[0][key].is_number() && results[1][key].is_null(), "{key} in {results}");
        }
        assert_eq!(
            (&results[0]["check"], &results[1]["check"]),
            (&json!("reference"), &json!("projections"))
        );
        let text = comparison.to_text();
        let line = text.lines().find(|line| line.contains("2048x2048x2048")).unwrap();
        let dashes = line.split('|').filter(|cell| cell.trim() == "-").count();
        assert!(line.contains("projections") && dashes == 2, "{text}");
        assert!(
            text.contains("which miss an error as large as the mean bound of its row with probability 1e-3")
        );
        comparison.measured.timings.remove(0);
        assert!(of(&comparison).starts_with("by random projections"));
        comparison.measured.timings.clear();
        assert_eq!(comparison.checks_text(), None);
    }

    #[test]
    fn what_was_measured_is_named() {
        let mut comparison = comparison(&[(256, "cpu", 1.0)]);
        let text = comparison.to_text();
        assert!(text.lines().next().unwrap().ends_with("threads allowed; f32"), "{text}");
        assert!(!text.contains("memory: "), "all are in host memory: {text}");
        comparison.kind = Kind { precision: Precision::Bf16, constant_b: true, resident: false };
        let text = comparison.to_text();
        assert!(text.lines().next().unwrap().ends_with("threads allowed; bf16, B constant"), "{text}");
        let json = comparison.to_json();
        for of in [&json, &json["results"][0]] {
            assert_eq!((&of["precision"], &of["constant_b"]), (&json!("bf16"), &json!(true)));
        }
        assert_eq!(json["memory"], "host");
        let picture = crate::compare::plot::draw(&comparison).unwrap();
        assert!(picture.contains("Matrix products (bf16, B constant) on"), "{picture}");
    }

    #[test]
    fn what_stays_on_the_device_is_a_contender_of_its_own() {
        let mut comparison = comparison(&[
            (256, "cpu", 1.0),
            (256, "gpu", 3.0),
            (256, "gpu, resident", 2.0),
            (512, "cpu", 8.0),
            (512, "gpu", 6.0),
            (512, "gpu, resident", 4.0),
        ]);
        comparison.kind.resident = true;
        let text = comparison.to_text();
        assert!(text.contains("crossover: cpu wins at 256, gpu, resident from 512 on"), "{text}");
        let memory =
            "memory: A, B and C are in host memory before and after every run. Those of resident rows stay";
        assert!(text.contains(memory), "{text}");
        let row =
            text.lines().find(|line| line.contains("gpu, resident") && line.contains("winner")).unwrap();
        assert!(row.contains("100 %"), "{text}");
        let json = comparison.to_json();
        let of = |value: &Value| (value["backend"].clone(), value["memory"].clone());
        let results: Vec<_> = json["results"].as_array().unwrap()[..3].iter().map(of).collect();
        let pair = |backend: &str, memory: &str| (json!(backend), json!(memory));
        assert_eq!(results, [pair("cpu", "host"), pair("gpu", "host"), pair("gpu", "device")]);
        assert_eq!(
            (of(&json["winners"][1]), of(&json["crossover"])),
            (pair("gpu", "device"), pair("gpu", "device"))
        );
        assert_eq!(
            (&json["crossover"]["memory_below"], &json["memory"]),
            (&json!("host"), &json!("host and device"))
        );
        let picture = crate::compare::plot::draw(&comparison).unwrap();
        assert!(picture.contains("gpu, resident"), "{picture}");
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time(999.4), "999 ns");
        assert_eq!(time(1500.0), "1.5 us");
        assert_eq!(time(2.5e6), "2.50 ms");
        assert_eq!(time(3.25e9), "3.25 s");
    }

    #[test]
    fn speeds_are_shares_of_the_best_and_only_squares_cross_over() {
        use crate::compare::fixture::timing;
        let share = |ns, best| share_of_best(&timing(4, "cpu", ns), &timing(4, "metal", best)).to_bits();
        assert_eq!([share(8.0, 2.0), share(0.0, 0.0)], [0.25, 1.0].map(f64::to_bits));
        let mut comparison = comparison(&[(4, "cpu", 8.0), (4, "metal", 2.0)]);
        comparison
            .measured
            .timings
            .push(Timing { shape: Shape { m: 4, n: 5, k: 5 }, ..timing(4, "cpu", 1.0) });
        assert_eq!(comparison.square_winners().len(), 1);
        let text = comparison.to_text();
        let named: Vec<_> = text.lines().filter(|line| line.contains("4x4x4")).collect();
        assert!(named.len() == 1 && named[0].contains("cpu"), "the first line alone names it: {text}");
        assert!(text.lines().any(|line| line.contains("metal") && line.contains("winner")), "{text}");
    }
}
