//! The report for the terminal.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use crate::candidates::{Kind, Origin};
use crate::results::{CaseResult, Entry, Results};
use crate::stats::Interval;
use crate::targets::{Outcome, Verdict};

/// A table as Markdown has it, with an empty line before it; the columns `right` are aligned to the right.
fn table<const N: usize>(
    header: [&str; N],
    right: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("\n{table}\n")
}

/// Every case's candidates, the fastest first.
pub(crate) fn cases(results: &Results) -> String {
    let case =
        |result: &CaseResult| case(result, results.peak_gflops(result.case.precision, result.case.threads));
    results.cases.iter().map(case).collect()
}

fn case(result: &CaseResult, peak_gflops: Option<f64>) -> String {
    let mut entries: Vec<&Entry> = result.entries.iter().collect();
    entries.sort_by(|a, b| a.median_ns().total_cmp(&b.median_ns()));
    let best = result.best_peer();
    let rows = entries.into_iter().map(|entry| {
        let gflops = result.case.shape.flops() / entry.median_ns();
        let (rate, share) = if entry.origin == Origin::Ceiling {
            (format!("{:.1} GB/s", result.case.b_bytes() as f64 / entry.median_ns()), String::new())
        } else {
            let share = peak_gflops.map(|peak| format!("{:.0} %", 100.0 * gflops / peak));
            (format!("{gflops:.1} GFLOP/s"), share.unwrap_or_default())
        };
        let best = best.filter(|_| entry.origin == Origin::Own && entry.kind != Kind::Fused);
        let ratio = best.map(|best| {
            let ratio = Interval::of_speed(&entry.run_medians_ns, &best.run_medians_ns);
            format!("{} of {}", interval(&ratio), best.candidate)
        });
        let disturbed = if entry.disturbed > 0.5 { "disturbed" } else { "" };
        let time = duration(entry.median_ns());
        [entry.candidate.clone(), time, rate, share, ratio.unwrap_or_default(), disturbed.to_owned()]
    });
    let header = ["candidate", "median", "rate", "of the peak", "beside the best peer", "note"];
    let mut text = format!("\n{}\n{}", result.case, table(header, &[1, 2, 3], rows));
    for not_run in result.not_run.iter().filter(|not_run| not_run.wrong) {
        let _ = writeln!(text, "{} is WRONG: {}", not_run.candidate, not_run.reason);
    }
    text
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
    let machine = &results.machine;
    let caches: Vec<String> =
        machine.caches.iter().map(|cache| format!("L{} {} KiB", cache.level, cache.bytes >> 10)).collect();
    let peers = results.peers.iter().map(|peer| [peer.name.clone(), peer.version.clone()]);
    let missing =
        results.missing.iter().map(|missing| [missing.name.clone(), format!("not run: {}", missing.reason)]);
    let rates = results.rates.iter().map(|rate| {
        let what = format!("{} {}", rate.precision, rate.instruction);
        [what, rate.threads.to_string(), format!("{:.1} GFLOP/s", rate.gflops), String::new()]
    });
    let bandwidths = results.bandwidths.iter().map(|bandwidth| {
        [
            format!("read {}", bandwidth.level),
            bandwidth.threads.to_string(),
            format!("{:.1} GB/s", bandwidth.gbytes_per_s),
            format!("{} KiB", bandwidth.working_set_bytes >> 10),
        ]
    });
    format!(
        "{}, {} cores, {}, {}\ncaches {}; {}\n{}{}",
        machine.cpu,
        machine.cores,
        machine.system,
        machine.date,
        caches.join(", "),
        machine.instructions.join(" "),
        table(["library", "version"], &[], peers.chain(missing)),
        table(["peak", "threads", "rate", "working set"], &[1, 2, 3], rates.chain(bandwidths)),
    )
}

/// The verdict on every target.
pub(crate) fn verdicts(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for verdicts in verdicts.chunk_by(|a, b| a.target == b.target) {
        let rows = verdicts.iter().map(|verdict| {
            let word = match verdict.outcome() {
                Outcome::Missed => "MISSED",
                outcome => outcome.name(),
            };
            let Verdict { subject, against, ratio, .. } = verdict;
            [word.to_owned(), subject.clone(), interval(ratio), against.clone()]
        });
        let _ = write!(
            text,
            "\n{}\n{}",
            verdicts[0].target,
            table(["verdict", "subject", "ratio", "against"], &[], rows)
        );
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
