//! Times all candidates of a case in turns.

use std::time::{Duration, Instant};

use crate::candidates::{Candidate, Kind, Origin, Product};
use crate::operands::{Operands, copies_for_cold};
use crate::quiet::{Patience, settle, waited_ns};
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

/// A sample is disturbed when the threads waited for a core for more than this share of it.
const DISTURBED_SHARE: f64 = 0.02;

/// How often a disturbed sample is taken again.
const RETAKES_AT_MOST: usize = 3;

/// Samples this long are not: they take what comes.
const LONG_SAMPLE_NS: f64 = 5e7;

/// What a run found of one candidate.
#[derive(Debug, Clone)]
pub(crate) struct Sampled {
    pub(crate) candidate: String,
    pub(crate) kind: Kind,
    pub(crate) origin: Origin,
    pub(crate) median_ns: f64,
    pub(crate) min_ns: f64,
    /// The share of the samples during which the threads had to wait for a core.
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
    /// Samples that were kept although the threads had to wait for a core.
    disturbed: usize,
    max_rel_error: Option<f64>,
}

/// Runs a case once more than `so_far`; the first run compares the numbers with the reference before
/// anything is timed, and whose numbers were wrong is not timed.
///
/// # Errors
/// Says why there are no operands.
pub(crate) fn run_case(
    so_far: &CaseResult,
    candidates: &[Box<dyn Candidate>],
    last_level_bytes: usize,
    effort: Effort,
    patience: &mut Patience,
) -> Result<CaseRun, String> {
    let case = &so_far.case;
    let copies = if case.cold { copies_for_cold(case.b_bytes(), last_level_bytes) } else { 1 };
    let mut operands = Operands::new(case, copies)?;
    let reference = so_far.entries.is_empty().then(|| Reference::new(&operands));
    let mut not_run = Vec::new();
    let mut contestants = Vec::new();
    let takes_part =
        |candidate: &dyn Candidate| candidate.does(case.precision) && !so_far.is_wrong(candidate.name());
    for candidate in candidates.iter().filter(|candidate| takes_part(candidate.as_ref())) {
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
            match reference.check(operands.c.as_slice(), candidate.kind() == Kind::Fused, candidate.c_unit())
            {
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
    take_turns(&mut contestants, &mut operands, case, effort, patience);
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
    Ok(CaseRun { sampled, not_run })
}

fn take_turns(
    contestants: &mut [Contestant<'_>],
    operands: &mut Operands,
    case: &Case,
    effort: Effort,
    patience: &mut Patience,
) {
    let sample_ns = effort.sample.as_nanos() as f64;
    patience.wait(case.threads);
    for contestant in contestants.iter_mut() {
        calibrate(contestant, operands, sample_ns);
        settle(case.threads);
    }
    let mut spent = Duration::ZERO;
    for round in 0..ROUNDS_AT_MOST {
        patience.wait(case.threads);
        let start = Instant::now();
        // Every other round backwards, so that nobody always follows the same neighbour.
        let count = contestants.len();
        for turn in 0..count {
            let index = if round % 2 == 0 { turn } else { count - 1 - turn };
            take_sample(&mut contestants[index], operands, case.threads);
            settle(case.threads);
        }
        spent += start.elapsed();
        let rounds = u32::try_from(round + 1).expect("few rounds");
        if spent + spent / rounds > effort.case {
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

fn take_sample(contestant: &mut Contestant<'_>, operands: &mut Operands, threads: usize) {
    // Others ran since: bring operands and code back to the caches, and wake the threads. A long
    // call does that in a small part of itself.
    if contestant.call_ns < LONG_CALL_NS {
        let mut warm_up = (contestant.calls / 8).max(1);
        if threads > 1 {
            warm_up = warm_up.max((THREADS_PLACED_NS / contestant.call_ns).ceil() as usize);
        }
        contestant.product.run(operands, warm_up);
    }
    let mut retakes = 0;
    loop {
        let waited_before_ns = waited_ns();
        let call_ns = time(contestant.product.as_mut(), operands, contestant.calls);
        let waited_ns = waited_ns().saturating_sub(waited_before_ns);
        let disturbed = waited_ns as f64 > DISTURBED_SHARE * call_ns * contestant.calls as f64;
        let is_long = call_ns * contestant.calls as f64 > LONG_SAMPLE_NS;
        if !disturbed || is_long || retakes == RETAKES_AT_MOST {
            contestant.samples_ns.push(call_ns);
            contestant.disturbed += usize::from(disturbed);
            return;
        }
        retakes += 1;
    }
}

const LONG_CALL_NS: f64 = 50e6;

/// How long threads that were asleep may share a core with their caller before the system moves them:
/// a few ticks of its clock.
const THREADS_PLACED_NS: f64 = 20e6;

fn time(product: &mut dyn Product, operands: &mut Operands, calls: usize) -> f64 {
    let start = Instant::now();
    product.run(operands, calls);
    start.elapsed().as_nanos() as f64 / calls as f64
}
