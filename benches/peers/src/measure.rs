//! Times all candidates of a case in turns.

use std::time::{Duration, Instant};

use crate::apart::Child;
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

/// A candidate that is ready to run a case.
pub(crate) struct Contestant {
    product: Box<dyn Product>,
    calls: usize,
    call_ns: f64,
    pub(crate) max_rel_error: Option<f64>,
}

/// How long a call took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) call_ns: f64,
    /// The threads had to wait for a core, and it was kept nevertheless.
    pub(crate) disturbed: bool,
}

impl Contestant {
    /// Compares the numbers with the reference, if there is one, and finds how many calls make a sample.
    ///
    /// # Errors
    /// Says why the candidate does not run the case.
    pub(crate) fn new(
        candidate: &dyn Candidate,
        case: &Case,
        operands: &mut Operands,
        reference: Option<&Reference>,
        sample: Duration,
    ) -> Result<Self, NotRun> {
        let refuse = |reason, wrong| NotRun { candidate: candidate.name().to_owned(), reason, wrong };
        let mut product = candidate.prepare(case, operands).map_err(|reason| refuse(reason, false))?;
        let mut max_rel_error = None;
        if let Some(reference) = reference.filter(|_| candidate.origin() != Origin::Ceiling) {
            // What C held before must not be read.
            operands.spoil_c();
            product.run(operands, 1);
            let fused = candidate.kind() == Kind::Fused;
            let checked = reference.check_operands(operands, fused, candidate.c_unit());
            max_rel_error = Some(checked.map_err(|message| refuse(message, true))?);
        }
        let mut contestant = Self { product, calls: 1, call_ns: 0.0, max_rel_error };
        contestant.calibrate(operands, sample.as_nanos() as f64);
        settle(case.threads);
        Ok(contestant)
    }

    fn calibrate(&mut self, operands: &mut Operands, sample_ns: f64) {
        let mut calls = 1;
        loop {
            let call_ns = time(self.product.as_mut(), operands, calls);
            let batch_ns = call_ns * calls as f64;
            if batch_ns > sample_ns / 4.0 {
                self.call_ns = call_ns;
                self.calls = ((sample_ns / call_ns).ceil() as usize).max(1);
                return;
            }
            calls *= 2;
        }
    }

    /// Takes a sample, and waits until the threads have stopped spinning.
    pub(crate) fn sample(&mut self, operands: &mut Operands, threads: usize) -> Sample {
        // Others ran since: bring operands and code back to the caches, and wake the threads. A long
        // call does that in a small part of itself.
        if self.call_ns < LONG_CALL_NS {
            let mut warm_up = (self.calls / 8).max(1);
            if threads > 1 {
                warm_up = warm_up.max((THREADS_PLACED_NS / self.call_ns).ceil() as usize);
            }
            self.product.run(operands, warm_up);
        }
        let mut retakes = 0;
        loop {
            let waited_before_ns = waited_ns();
            let call_ns = time(self.product.as_mut(), operands, self.calls);
            let waited_ns = waited_ns().saturating_sub(waited_before_ns);
            let disturbed = waited_ns as f64 > DISTURBED_SHARE * call_ns * self.calls as f64;
            let is_long = call_ns * self.calls as f64 > LONG_SAMPLE_NS;
            if !disturbed || is_long || retakes == RETAKES_AT_MOST {
                settle(threads);
                return Sample { call_ns, disturbed };
            }
            retakes += 1;
        }
    }
}

/// What a case is run with: so many copies of B that it is cold, if it is to be.
///
/// # Errors
/// Says why there is no memory for them.
pub(crate) fn operands(case: &Case, last_level_bytes: usize) -> Result<Operands, String> {
    Operands::new(case, if case.cold { copies_for_cold(case.b_bytes(), last_level_bytes) } else { 1 })
}

/// Runs a case once more than `so_far`; the first run compares the numbers with the reference before
/// anything is timed, and whose numbers were wrong is not timed. With several threads each candidate is a process
/// of its own, one of `children`: pools that spin or hold cores would disturb each other.
///
/// # Errors
/// Says why there are no operands.
pub(crate) fn run_case(
    so_far: &CaseResult,
    candidates: &[Box<dyn Candidate>],
    children: &mut [Child],
    last_level_bytes: usize,
    effort: Effort,
    patience: &mut Patience,
) -> Result<CaseRun, String> {
    let case = &so_far.case;
    let first = so_far.entries.is_empty();
    patience.wait(case.threads);
    let takes_part = |candidate: &dyn Candidate| {
        candidate.does(case.precision)
            && (case.shape.batch == 1 || candidate.does_batches())
            && !so_far.is_wrong(candidate.name())
    };
    let chosen = (0..candidates.len()).filter(|&index| takes_part(candidates[index].as_ref()));
    let mut not_run = Vec::new();
    let mut keep = |index: usize, outcome: Result<Option<f64>, NotRun>| match outcome {
        Ok(max_rel_error) => Some((index, max_rel_error)),
        Err(reason) => {
            not_run.push(reason);
            None
        }
    };
    let (taking_part, samples): (Vec<(usize, Option<f64>)>, _) = if case.threads > 1 {
        let prepare = |index: usize| {
            let outcome = children[index].prepare(case, first, effort.sample);
            keep(index, outcome)
        };
        let taking_part: Vec<_> = chosen.filter_map(prepare).collect();
        let sample = |turn: usize| children[taking_part[turn].0].sample();
        let samples = take_turns(taking_part.len(), case.threads, effort.case, patience, sample)?;
        (taking_part, samples)
    } else {
        let mut operands = operands(case, last_level_bytes)?;
        let reference = first.then(|| Reference::new(&operands));
        let mut contestants = Vec::new();
        let prepare = |index: usize| {
            let candidate = candidates[index].as_ref();
            let made = Contestant::new(candidate, case, &mut operands, reference.as_ref(), effort.sample);
            keep(
                index,
                made.map(|contestant| {
                    let max_rel_error = contestant.max_rel_error;
                    contestants.push(contestant);
                    max_rel_error
                }),
            )
        };
        let taking_part: Vec<_> = chosen.filter_map(prepare).collect();
        let sample = |turn: usize| Ok(contestants[turn].sample(&mut operands, case.threads));
        let samples = take_turns(taking_part.len(), case.threads, effort.case, patience, sample)?;
        (taking_part, samples)
    };
    let sampled = taking_part.into_iter().zip(samples).map(|((index, max_rel_error), samples)| {
        let candidate = candidates[index].as_ref();
        let samples_ns: Vec<f64> = samples.iter().map(|sample| sample.call_ns).collect();
        Sampled {
            candidate: candidate.name().to_owned(),
            kind: candidate.kind(),
            origin: candidate.origin(),
            median_ns: median(&samples_ns),
            min_ns: samples_ns.iter().copied().fold(f64::INFINITY, f64::min),
            disturbed: samples.iter().filter(|sample| sample.disturbed).count() as f64 / samples.len() as f64,
            max_rel_error,
        }
    });
    Ok(CaseRun { sampled: sampled.collect(), not_run })
}

/// The samples of each of `count` contestants.
fn take_turns(
    count: usize,
    threads: usize,
    limit: Duration,
    patience: &mut Patience,
    mut sample: impl FnMut(usize) -> Result<Sample, String>,
) -> Result<Vec<Vec<Sample>>, String> {
    let mut samples = vec![Vec::new(); count];
    let mut spent = Duration::ZERO;
    for round in 0..ROUNDS_AT_MOST {
        patience.wait(threads);
        let start = Instant::now();
        // Every other round backwards, so that nobody always follows the same neighbour.
        for turn in 0..count {
            let index = if round % 2 == 0 { turn } else { count - 1 - turn };
            samples[index].push(sample(index)?);
        }
        spent += start.elapsed();
        let rounds = u32::try_from(round + 1).expect("few rounds");
        if spent + spent / rounds > limit {
            break;
        }
    }
    Ok(samples)
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
