//! Times all candidates of a case in turns.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::candidates::{Candidate, Kind, Origin, Product};
use crate::machine::{preemptions, process_cpu_ns};
use crate::operands::{Operands, copies_for_cold};
use crate::reference::Reference;
use crate::results::CaseResult;
use crate::shapes::Case;
use crate::stats::median;

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// A sample is a batch of calls that takes at least this long.
    pub(crate) sample: Duration,
    /// Rounds of all candidates are taken for about this long in each run of a case.
    pub(crate) case: Duration,
}

const ROUNDS_AT_MOST: usize = 25;

/// How often a sample is taken again because the system took a core away during it.
const RETAKES_AT_MOST: usize = 3;

/// Longer samples are always interrupted by something.
const RETAKEN_NS: f64 = 2e7;

/// What a run found of one candidate.
#[derive(Debug, Clone)]
pub(crate) struct Sampled {
    pub(crate) candidate: String,
    pub(crate) kind: Kind,
    pub(crate) origin: Origin,
    pub(crate) median_ns: f64,
    pub(crate) min_ns: f64,
    /// The share of the samples during which the system took a core away.
    pub(crate) disturbed: f64,
    /// Known where this run checked the numbers.
    pub(crate) max_rel_error: Option<f64>,
}

/// A candidate that did not do a case.
#[derive(Debug, Clone)]
pub(crate) struct NotRun {
    pub(crate) candidate: String,
    pub(crate) reason: String,
    /// Its numbers were wrong, as opposed to a case that it does not do.
    pub(crate) wrong: bool,
}

/// One run of a case.
pub(crate) struct CaseRun {
    pub(crate) sampled: Vec<Sampled>,
    pub(crate) not_run: Vec<NotRun>,
}

struct Contestant<'a> {
    candidate: &'a dyn Candidate,
    product: Box<dyn Product>,
    calls: usize,
    call_ns: f64,
    samples_ns: Vec<f64>,
    /// Samples that were kept although the system took a core away.
    disturbed: usize,
    max_rel_error: Option<f64>,
}

/// Runs a case once more than `so_far`; the first run compares the numbers with the reference before
/// anything is timed, and whose numbers were wrong is not timed.
pub(crate) fn run_case(
    so_far: &CaseResult,
    candidates: &[Box<dyn Candidate>],
    last_level_bytes: usize,
    effort: Effort,
) -> CaseRun {
    let case = &so_far.case;
    let copies = if case.cold { copies_for_cold(case.shape.b_bytes(), last_level_bytes) } else { 1 };
    let mut operands = Operands::new(case.shape, copies);
    let reference = so_far.entries.is_empty().then(|| Reference::new(&operands));
    let mut not_run = Vec::new();
    let mut contestants = Vec::new();
    for candidate in candidates.iter().filter(|candidate| !so_far.is_wrong(candidate.name())) {
        let mut refuse = |reason, wrong| {
            not_run.push(NotRun { candidate: candidate.name().to_owned(), reason, wrong });
        };
        let mut product = match candidate.prepare(case, &operands) {
            Ok(product) => product,
            Err(reason) => {
                refuse(reason, false);
                continue;
            }
        };
        let mut max_rel_error = None;
        if let Some(reference) = reference.as_ref().filter(|_| candidate.origin() != Origin::Ceiling) {
            // What C held before must not be read.
            operands.c.as_mut_slice().fill(f32::NAN);
            product.run(&mut operands, 1);
            match reference.check(operands.c.as_slice(), candidate.kind() == Kind::Fused) {
                Ok(error) => max_rel_error = Some(error),
                Err(message) => {
                    refuse(message, true);
                    continue;
                }
            }
        }
        contestants.push(Contestant {
            candidate: candidate.as_ref(),
            product,
            calls: 1,
            call_ns: 0.0,
            samples_ns: Vec::new(),
            disturbed: 0,
            max_rel_error,
        });
    }
    take_turns(&mut contestants, &mut operands, case, effort);
    let sampled = contestants
        .into_iter()
        .map(|contestant| Sampled {
            candidate: contestant.candidate.name().to_owned(),
            kind: contestant.candidate.kind(),
            origin: contestant.candidate.origin(),
            median_ns: median(&contestant.samples_ns),
            min_ns: contestant.samples_ns.iter().copied().fold(f64::INFINITY, f64::min),
            disturbed: contestant.disturbed as f64 / contestant.samples_ns.len() as f64,
            max_rel_error: contestant.max_rel_error,
        })
        .collect();
    CaseRun { sampled, not_run }
}

fn take_turns(contestants: &mut [Contestant<'_>], operands: &mut Operands, case: &Case, effort: Effort) {
    let sample_ns = effort.sample.as_nanos() as f64;
    for contestant in contestants.iter_mut() {
        calibrate(contestant, operands, sample_ns);
        settle(case.threads);
    }
    let start = Instant::now();
    for round in 0..ROUNDS_AT_MOST {
        // Every other round backwards, so that nobody always follows the same neighbour.
        let count = contestants.len();
        for turn in 0..count {
            let index = if round % 2 == 0 { turn } else { count - 1 - turn };
            take_sample(&mut contestants[index], operands);
            settle(case.threads);
        }
        let rounds = u32::try_from(round + 1).expect("few rounds");
        if start.elapsed() + start.elapsed() / rounds > effort.case {
            break;
        }
    }
}

/// Finds how many calls make a sample.
fn calibrate(contestant: &mut Contestant<'_>, operands: &mut Operands, sample_ns: f64) {
    let mut calls = 1;
    loop {
        let call_ns = time(contestant.product.as_mut(), operands, calls);
        let batch_ns = call_ns * calls as f64;
        if batch_ns > sample_ns / 4.0 {
            contestant.call_ns = call_ns;
            contestant.calls = ((sample_ns / call_ns).ceil() as usize).max(1);
            return;
        }
        calls *= 2;
    }
}

fn take_sample(contestant: &mut Contestant<'_>, operands: &mut Operands) {
    // Others ran since: bring operands and code back to the caches, and wake the threads. A long
    // call does that in a small part of itself.
    if contestant.call_ns < LONG_CALL_NS {
        let warm_up = (contestant.calls / 8).max(1);
        contestant.product.run(operands, warm_up);
    }
    let mut retakes = 0;
    loop {
        let before = preemptions();
        let call_ns = time(contestant.product.as_mut(), operands, contestant.calls);
        let disturbed = preemptions() != before && call_ns * (contestant.calls as f64) < RETAKEN_NS;
        if !disturbed || retakes == RETAKES_AT_MOST {
            contestant.samples_ns.push(call_ns);
            contestant.disturbed += usize::from(disturbed);
            return;
        }
        retakes += 1;
    }
}

const LONG_CALL_NS: f64 = 50e6;

fn time(product: &mut dyn Product, operands: &mut Operands, calls: usize) -> f64 {
    let start = Instant::now();
    product.run(operands, calls);
    start.elapsed().as_nanos() as f64 / calls as f64
}

/// Waits until no thread of this process spins any more: pools that look for work for a while after
/// a call would take the cores from the next candidate.
pub(crate) fn settle(threads: usize) {
    const STEP: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(300);
    if threads == 1 {
        return;
    }
    let start = Instant::now();
    while start.elapsed() < LONGEST {
        let Some(before_ns) = process_cpu_ns() else { return sleep(Duration::from_millis(50)) };
        let step = Instant::now();
        sleep(STEP);
        let spent_ns = process_cpu_ns().unwrap_or(before_ns) - before_ns;
        if (spent_ns as f64) < 0.2 * step.elapsed().as_nanos() as f64 {
            return;
        }
    }
}
