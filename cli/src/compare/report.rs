//! What `compare` says: a table, and JSON.

use std::collections::HashSet;
use std::fmt::Write as _;

use ane_matmul::{BackendId, BackendInfo};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::args::Shape;
use crate::compare::Absent;
use crate::compare::measure::{Measured, Timing};
use crate::machine::Machine;
use crate::output::time;

/// Figures and what they were taken on.
pub(crate) struct Comparison {
    pub(crate) machine: Machine,
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
    pub(crate) winner_below: &'a BackendId,
    pub(crate) size: usize,
    pub(crate) winner: &'a BackendId,
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

    pub(crate) fn winner(&self, shape: Shape) -> Option<&Timing> {
        self.timings_of(shape).min_by(|a, b| a.median_ns.total_cmp(&b.median_ns))
    }

    /// The sizes of the square products, ascending, and who wins each. One without work says nothing.
    fn square_winners(&self) -> Vec<(usize, &BackendId)> {
        let mut squares: Vec<Shape> =
            self.shapes().into_iter().filter(|s| s.m == s.n && s.n == s.k && s.m > 0).collect();
        squares.sort_by_key(|shape| shape.m);
        squares.iter().filter_map(|&shape| Some((shape.m, &self.winner(shape)?.backend))).collect()
    }

    pub(crate) fn backends_timed(&self) -> usize {
        self.measured.timings.iter().map(|timing| &timing.backend).collect::<HashSet<_>>().len()
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
            (None, 0 | 1) => "not known, it takes square products of two sizes".to_owned(),
            (None, _) if self.backends_timed() == 1 => "none, one backend was measured".to_owned(),
            (None, _) => "none, one backend wins every square product measured".to_owned(),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let results: Vec<Value> = self.measured.timings.iter().map(result_json).collect();
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
                    "backend": winner.backend.as_str(), "median_ns": winner.median_ns,
                }))
            })
            .collect();
        let crossover = self.crossover().map(|crossover| {
            json!({
                "size": crossover.size,
                "backend": crossover.winner.as_str(),
                "last_size_below": crossover.last_below,
                "backend_below": crossover.winner_below.as_str(),
            })
        });
        json!({
            "machine": self.machine.to_json(),
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
            "max error",
            "bound",
            "",
        ]);
        for index in 2..10 {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for shape in self.shapes() {
            let Some(winner) = self.winner(shape) else { continue };
            for (index, timing) in self.timings_of(shape).enumerate() {
                let share = share_of_best(timing, winner);
                table.add_row([
                    if index == 0 { shape.to_string() } else { String::new() },
                    timing.backend.to_string(),
                    timing.threads.map_or_else(|| "?".into(), |threads| threads.to_string()),
                    time(timing.median_ns),
                    time(timing.min_ns),
                    format!("{:.1}", timing.gflops),
                    format!("{:.0} %", 100.0 * share),
                    #[allow(clippy::cast_precision_loss)]
                    time(timing.compile_ns as f64),
                    format!("{:.1e}", timing.max_abs_error),
                    format!("{:.1e}", timing.error_bound),
                    if std::ptr::eq(timing, winner) { "winner".into() } else { String::new() },
                ]);
            }
        }
        let machine = &self.machine;
        let mut text = format!("{}, {} threads allowed\n{table}\n", machine.cpu, machine.allowed_threads);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "crossover: {}", self.crossover_text());
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

fn result_json(timing: &Timing) -> Value {
    json!({
        "backend": timing.backend.as_str(),
        "precision": "f32",
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
        "max_abs_error": timing.max_abs_error,
        "error_bound": timing.error_bound,
        "worst_error_to_bound": timing.worst_ratio,
    })
}

/// The speed as a part of the fastest's.
pub(crate) fn share_of_best(timing: &Timing, winner: &Timing) -> f64 {
    if timing.median_ns > 0.0 { winner.median_ns / timing.median_ns } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!((crossover.last_below, crossover.winner_below.as_str()), (512, "accelerate"));
        assert_eq!((crossover.size, crossover.winner.as_str()), (1024, "metal"));
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
