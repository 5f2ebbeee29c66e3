//! What the runs found, gathered by case and candidate.

use std::collections::BTreeSet;

use crate::candidates::{Kind, Missing, Origin, Peer};
use crate::machine::Machine;
use crate::measure::{CaseRun, NotRun};
use crate::peaks::{Bandwidth, Rate};
use crate::shapes::{Case, Group, Precision};
use crate::stats::median;

/// One candidate in one case.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) candidate: String,
    pub(crate) kind: Kind,
    pub(crate) origin: Origin,
    /// The median of each run.
    pub(crate) run_medians_ns: Vec<f64>,
    pub(crate) min_ns: f64,
    /// The largest share of a run's samples during which the threads had to wait for a core.
    pub(crate) disturbed: f64,
    pub(crate) max_rel_error: Option<f64>,
}

impl Entry {
    pub(crate) fn median_ns(&self) -> f64 {
        median(&self.run_medians_ns)
    }
}

/// One case.
#[derive(Debug, Clone)]
pub(crate) struct CaseResult {
    pub(crate) case: Case,
    pub(crate) entries: Vec<Entry>,
    pub(crate) not_run: Vec<NotRun>,
}

impl CaseResult {
    pub(crate) fn new(case: Case) -> Self {
        Self { case, entries: Vec::new(), not_run: Vec::new() }
    }

    pub(crate) fn add(&mut self, run: CaseRun) {
        for sampled in run.sampled {
            let place = self.entries.iter().position(|entry| entry.candidate == sampled.candidate);
            let place = place.unwrap_or_else(|| {
                self.entries.push(Entry {
                    candidate: sampled.candidate,
                    kind: sampled.kind,
                    origin: sampled.origin,
                    run_medians_ns: Vec::new(),
                    min_ns: f64::INFINITY,
                    disturbed: 0.0,
                    max_rel_error: None,
                });
                self.entries.len() - 1
            });
            let entry = &mut self.entries[place];
            entry.run_medians_ns.push(sampled.median_ns);
            entry.min_ns = entry.min_ns.min(sampled.min_ns);
            entry.disturbed = entry.disturbed.max(sampled.disturbed);
            entry.max_rel_error = entry.max_rel_error.or(sampled.max_rel_error);
        }
        for not_run in run.not_run {
            // Numbers that are wrong once are not shown again by a later run that did not look.
            if not_run.wrong || self.not_run.iter().all(|known| known.candidate != not_run.candidate) {
                self.not_run.push(not_run);
            }
        }
    }

    /// The candidates whose numbers were wrong: no later run measures them.
    pub(crate) fn is_wrong(&self, candidate: &str) -> bool {
        self.not_run.iter().any(|not_run| not_run.wrong && not_run.candidate == candidate)
    }

    pub(crate) fn entry(&self, candidate: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.candidate == candidate)
    }

    /// The fastest of the entries that `takes_part`.
    pub(crate) fn best(&self, takes_part: impl Fn(&Entry) -> bool) -> Option<&Entry> {
        let entries = self.entries.iter().filter(|entry| takes_part(entry));
        entries.min_by(|a, b| a.median_ns().total_cmp(&b.median_ns()))
    }

    /// The fastest peer, whether it packed B ahead or not.
    pub(crate) fn best_peer(&self) -> Option<&Entry> {
        self.best(|entry| is_peer(entry) && entry.kind != Kind::Fused)
    }

    /// The fastest peer that gets B with every run.
    pub(crate) fn best_plain_peer(&self) -> Option<&Entry> {
        self.best(|entry| is_peer(entry) && entry.kind == Kind::Plain)
    }

    pub(crate) fn best_rust_crate(&self) -> Option<&Entry> {
        self.best(|entry| entry.origin == Origin::RustCrate)
    }
}

fn is_peer(entry: &Entry) -> bool {
    matches!(entry.origin, Origin::RustCrate | Origin::NativeLibrary)
}

/// Everything that a report needs.
#[derive(Debug, Clone)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) peers: Vec<Peer>,
    pub(crate) missing: Vec<Missing>,
    pub(crate) rates: Vec<Rate>,
    pub(crate) bandwidths: Vec<Bandwidth>,
    pub(crate) cases: Vec<CaseResult>,
    /// The share of the machine that others used, in each run.
    pub(crate) others: Vec<f64>,
}

impl Results {
    pub(crate) fn case(&self, case: &Case) -> Option<&CaseResult> {
        self.cases.iter().find(|result| result.case == *case)
    }

    /// Every precision and number of threads that was measured.
    pub(crate) fn groups(&self) -> BTreeSet<Group> {
        self.cases.iter().map(|result| result.case.group()).collect()
    }

    /// Takes over what is faster than before: a peak is the best that was seen.
    pub(crate) fn keep_best_peaks(&mut self, rates: Vec<Rate>, bandwidths: Vec<Bandwidth>) {
        if self.rates.is_empty() {
            (self.rates, self.bandwidths) = (rates, bandwidths);
            return;
        }
        for (known, new) in self.rates.iter_mut().zip(rates) {
            known.gflops = known.gflops.max(new.gflops);
        }
        for (known, new) in self.bandwidths.iter_mut().zip(bandwidths) {
            known.gbytes_per_s = known.gbytes_per_s.max(new.gbytes_per_s);
        }
    }

    /// The rate that no product exceeds; weight-only ones and those of f16 multiply in f32, and the multiply-adds of
    /// f64 are those of f32 on half as many lanes.
    pub(crate) fn peak_gflops(&self, precision: Precision, threads: usize) -> Option<f64> {
        let in_f32 = matches!(precision, Precision::Weights | Precision::F16 | Precision::F64);
        let name = if in_f32 { Precision::F32 } else { precision }.name();
        let rate = self.rates.iter().find(|rate| rate.precision == name && rate.threads == threads);
        rate.map(|rate| if precision == Precision::F64 { rate.gflops / 2.0 } else { rate.gflops })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::measure::Sampled;
    use crate::shapes::Shape;

    /// A case in which each candidate took the given times.
    pub(crate) fn case_result(case: Case, times_ns: &[(&str, Kind, Origin, &[f64])]) -> CaseResult {
        let mut result = CaseResult::new(case);
        for (candidate, kind, origin, runs_ns) in times_ns {
            for &median_ns in *runs_ns {
                let sampled = vec![Sampled {
                    candidate: (*candidate).to_owned(),
                    kind: *kind,
                    origin: *origin,
                    median_ns,
                    min_ns: median_ns * 0.9,
                    disturbed: 0.0,
                    max_rel_error: Some(1e-7),
                }];
                result.add(CaseRun { sampled, not_run: Vec::new() });
            }
        }
        result
    }

    pub(crate) fn results(cases: Vec<CaseResult>) -> Results {
        Results {
            machine: Machine::read(),
            peers: Vec::new(),
            missing: Vec::new(),
            rates: Vec::new(),
            bandwidths: Vec::new(),
            cases,
            others: Vec::new(),
        }
    }

    #[test]
    fn the_best_is_the_fastest_that_may_be_compared() {
        let case = Case { precision: Precision::F32, shape: Shape::square(64), threads: 1, cold: false };
        let result = case_result(
            case,
            &[
                ("ane-matmul", Kind::Packed, Origin::Own, &[1.0]),
                ("onednn-pypi", Kind::Packed, Origin::NativeLibrary, &[2.0, 2.0]),
                ("onednn-pypi/fused", Kind::Fused, Origin::NativeLibrary, &[1.5]),
                ("faer", Kind::Plain, Origin::RustCrate, &[4.0]),
                ("openblas", Kind::Plain, Origin::NativeLibrary, &[3.0]),
                ("read of B", Kind::Plain, Origin::Ceiling, &[0.5]),
            ],
        );
        let name = |entry: Option<&Entry>| entry.map(|entry| entry.candidate.clone());
        assert_eq!(name(result.best_peer()).as_deref(), Some("onednn-pypi"));
        assert_eq!(name(result.best_plain_peer()).as_deref(), Some("openblas"));
        assert_eq!(name(result.best_rust_crate()).as_deref(), Some("faer"));
        assert_eq!(result.entry("onednn-pypi").unwrap().run_medians_ns, [2.0, 2.0]);
    }
}
