//! The report for the terminal.

use std::fmt::Write as _;

use crate::candidates::{Kind, Origin};
use crate::results::{CaseResult, Entry, Results};
use crate::stats::Interval;
use crate::targets::{Outcome, Verdict};

/// Every case's candidates, the fastest first.
pub(crate) fn cases(results: &Results) -> String {
    let mut text = String::new();
    for result in &results.cases {
        case(&mut text, result, results.peak_gflops(result.case.precision, result.case.threads));
    }
    text
}

fn case(text: &mut String, result: &CaseResult, peak_gflops: Option<f64>) {
    let _ = writeln!(text, "\n{}", result.case);
    let mut entries: Vec<&Entry> = result.entries.iter().collect();
    entries.sort_by(|a, b| a.median_ns().total_cmp(&b.median_ns()));
    let best = result.best_peer();
    for entry in entries {
        let gflops = result.case.shape.flops() / entry.median_ns();
        let rate = if entry.origin == Origin::Ceiling {
            format!("{:9.1} GB/s   ", result.case.b_bytes() as f64 / entry.median_ns())
        } else {
            let share =
                peak_gflops.map_or_else(String::new, |peak| format!("{:3.0} %", 100.0 * gflops / peak));
            format!("{gflops:9.1} GFLOP/s {share:>5}")
        };
        let _ = write!(text, "  {:<22} {:>12}  {rate}", entry.candidate, duration(entry.median_ns()));
        if let Some(best) = best.filter(|_| entry.origin == Origin::Own && entry.kind != Kind::Fused) {
            let ratio = Interval::of_speed(&entry.run_medians_ns, &best.run_medians_ns);
            let _ = write!(text, "   {} of {}", interval(&ratio), best.candidate);
        }
        if entry.disturbed > 0.5 {
            text.push_str("   (disturbed)");
        }
        text.push('\n');
    }
    for not_run in result.not_run.iter().filter(|not_run| not_run.wrong) {
        let _ = writeln!(text, "  {:<22} WRONG: {}", not_run.candidate, not_run.reason);
    }
}

/// A ratio and its interval.
pub(crate) fn interval(ratio: &Interval) -> String {
    format!("{:.3} [{:.3}, {:.3}]", ratio.middle, ratio.low, ratio.high)
}

/// A time with a unit that suits it.
pub(crate) fn duration(time_ns: f64) -> String {
    match time_ns {
        ..1e4 => format!("{time_ns:.1} ns"),
        ..1e7 => format!("{:.2} us", time_ns / 1e3),
        _ => format!("{:.2} ms", time_ns / 1e6),
    }
}

/// Machine, versions and peaks.
pub(crate) fn surroundings(results: &Results) -> String {
    let mut text = String::new();
    let machine = &results.machine;
    let _ = writeln!(text, "{}, {} cores, {}, {}", machine.cpu, machine.cores, machine.system, machine.date);
    let caches: Vec<String> =
        machine.caches.iter().map(|cache| format!("L{} {} KiB", cache.level, cache.bytes >> 10)).collect();
    let _ = writeln!(text, "caches {}; {}", caches.join(", "), machine.instructions.join(" "));
    for peer in &results.peers {
        let _ = writeln!(text, "  {:<16} {}", peer.name, peer.version);
    }
    for missing in &results.missing {
        let _ = writeln!(text, "  {:<16} not run: {}", missing.name, missing.reason);
    }
    text.push_str("\npeaks\n");
    for rate in &results.rates {
        let threads = rate.threads;
        let _ = writeln!(
            text,
            "  {:<6} {:<18} {threads} thread(s) {:9.1} GFLOP/s",
            rate.precision, rate.instruction, rate.gflops
        );
    }
    for bandwidth in &results.bandwidths {
        let _ = writeln!(
            text,
            "  read   {:<18} {} thread(s) {:9.1} GB/s   ({} KiB)",
            bandwidth.level,
            bandwidth.threads,
            bandwidth.gbytes_per_s,
            bandwidth.working_set_bytes >> 10
        );
    }
    text
}

/// The verdict on every target.
pub(crate) fn verdicts(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    let mut target = "";
    for verdict in verdicts {
        if verdict.target != target {
            target = verdict.target;
            let _ = writeln!(text, "\n{target}");
        }
        let word = match verdict.outcome() {
            Outcome::Missed => "MISSED",
            outcome => outcome.name(),
        };
        let Verdict { subject, against, ratio, .. } = verdict;
        let _ = writeln!(text, "  {word:<7}  {subject:<44} {}  {against}", interval(ratio));
    }
    let met = verdicts.iter().filter(|verdict| verdict.is_met()).count();
    let unclear = verdicts.iter().filter(|verdict| verdict.outcome() == Outcome::Unclear).count();
    let _ = writeln!(text, "\n{met} of {} targets met, {unclear} unclear", verdicts.len());
    text
}

/// Warnings that belong beside the figures.
pub(crate) fn warnings(results: &Results) -> String {
    let mut text = String::new();
    let busiest = results.others.iter().copied().fold(0.0, f64::max);
    if busiest > 0.03 {
        let _ = writeln!(
            text,
            "warning: others used up to {:.0} % of the machine during a run; the intervals show what that did",
            100.0 * busiest
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{case_result, results};
    use crate::shapes::{Case, Precision, Shape};

    #[test]
    fn durations_have_fitting_units() {
        assert_eq!(duration(12.34), "12.3 ns");
        assert_eq!(duration(123_456.0), "123.46 us");
        assert_eq!(duration(12_345_678.0), "12.35 ms");
    }

    #[test]
    fn the_table_has_ratios_for_the_own_candidates() {
        let case = Case { precision: Precision::F32, shape: Shape::square(100), threads: 1, cold: false };
        let result = case_result(
            case,
            &[
                ("ane-matmul", Kind::Packed, Origin::Own, &[1e4, 1e4]),
                ("faer", Kind::Plain, Origin::RustCrate, &[2e4, 3e4]),
            ],
        );
        let text = cases(&results(vec![result]));
        assert!(text.contains("100^3, 1 thread"), "{text}");
        assert!(text.contains("2.500 [2.000, 3.000] of faer"), "{text}");
        assert!(text.contains("200.0 GFLOP/s"), "{text}");
    }
}
