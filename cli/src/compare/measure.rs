//! Timing backends on one product, interleaved.

use std::fmt;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use ane_matmul::{
    BackendId, Backends, CompileOptions, Compiled, Device, DeviceTensor, ElementType, Error, Executor,
    Inputs, Product,
};
use indicatif::ProgressBar;

use crate::args::Shape;
use crate::compare::check::{self, Check, Checker};
use crate::compare::operands::{Kind, Matrix, random};
use crate::failure::{Failure, Output};

/// A sample lasts at least this long, so that the clock's own time does not count.
const SAMPLE_TIME: Duration = Duration::from_micros(500);

/// The samples of one backend on one product should take about this long, ...
const BUDGET: Duration = Duration::from_millis(1500);

/// ... within these numbers of samples.
const SAMPLES: std::ops::RangeInclusive<usize> = 7..=101;

/// Who is timed: a backend, and where operands and result are between its runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Contender {
    pub(crate) id: BackendId,
    /// On the device, and else in host memory.
    pub(crate) resident: bool,
}

impl Contender {
    /// The memory's name in JSON.
    pub(crate) const fn memory(&self) -> &'static str {
        if self.resident { "device" } else { "host" }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.id, if self.resident { ", resident" } else { "" })
    }
}

/// A contender on one product.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    pub(crate) backend: Contender,
    /// The backend that was timed under the name `auto`, which is no contender of its own.
    pub(crate) stands_for: Option<BackendId>,
    pub(crate) shape: Shape,
    pub(crate) threads: Option<usize>,
    pub(crate) requested: Device,
    pub(crate) observed: Device,
    pub(crate) compile_ns: u128,
    /// Opening the executor and running it once, with what is uploaded for all runs; an engine may compile the rest here.
    pub(crate) first_run_ns: u128,
    pub(crate) median_ns: f64,
    pub(crate) min_ns: f64,
    pub(crate) samples: usize,
    pub(crate) gflops: f64,
    pub(crate) check: Check,
}

impl Timing {
    pub(crate) const fn is_contender(&self) -> bool {
        self.stands_for.is_none()
    }

    /// The backend, and whom it stands for.
    pub(crate) fn name(&self) -> String {
        match &self.stands_for {
            Some(other) => format!("{} ({other})", self.backend),
            None => self.backend.to_string(),
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) timings: Vec<Timing>,
    pub(crate) refused: Vec<(BackendId, Shape, String)>,
    pub(crate) notes: Vec<String>,
}

impl Measured {
    /// Adds a note that is not there yet.
    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Where the operands of a candidate are.
enum Place {
    Host { c: Matrix },
    Device { a: DeviceTensor, b: Option<DeviceTensor>, c: DeviceTensor },
}

impl Place {
    fn new(
        kind: Kind,
        resident: bool,
        compiled: &Compiled,
        inputs: &Inputs<'_>,
        shape: Shape,
    ) -> Output<Self> {
        let c = Matrix::result(kind.precision, shape)?;
        if !resident {
            return Ok(Self::Host { c });
        }
        let upload = |view| compiled.memory().upload(view);
        let b = inputs.b_view().map(upload).transpose()?;
        Ok(Self::Device { a: upload(inputs.a_view())?, b, c: upload(c.view())? })
    }

    /// One run on `inputs`, or on what was uploaded of them.
    fn run(&mut self, executor: &mut Executor, inputs: &Inputs<'_>) -> Output {
        match self {
            Self::Host { c } => executor.run(inputs, c.view_mut())?,
            Self::Device { a, b: None, c } => executor.run(Inputs::new(&*a), c)?,
            Self::Device { a, b: Some(b), c } => executor.run(Inputs::new(&*a).b(&*b), c)?,
        }
        Ok(())
    }

    /// How the result was found right, or what is wrong with it.
    fn check(&self, checker: &mut Checker, inputs: &Inputs<'_>) -> Output<Result<Check, String>> {
        match self {
            Self::Host { c } => checker.check(inputs, c.view()),
            Self::Device { c, .. } if c.element_type() == ElementType::F64 => {
                checker.check(inputs, (&c.download::<f64>()?).into())
            }
            Self::Device { c, .. } => checker.check(inputs, (&c.download::<f32>()?).into()),
        }
    }
}

struct Candidate {
    timing: Timing,
    executor: Executor,
    place: Place,
    runs_per_sample: usize,
    samples_ns: Vec<f64>,
}

impl Candidate {
    /// The time of one run, averaged over a sample.
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds and counts far below 2^53")]
    fn sample(&mut self, inputs: &Inputs<'_>) -> Output<f64> {
        let start = Instant::now();
        for _ in 0..self.runs_per_sample {
            self.place.run(&mut self.executor, inputs)?;
        }
        Ok(start.elapsed().as_nanos() as f64 / self.runs_per_sample as f64)
    }
}

/// What is timed, and how.
pub(crate) struct Plan<'a> {
    pub(crate) backends: &'a Backends,
    pub(crate) ids: &'a [BackendId],
    pub(crate) kind: Kind,
    pub(crate) options: &'a CompileOptions,
    pub(crate) samples: Option<NonZeroUsize>,
    pub(crate) progress: &'a ProgressBar,
}

/// Checks and times every backend on one product.
pub(crate) fn measure(plan: &Plan<'_>, shape: Shape, measured: &mut Measured) -> Output {
    let kind = plan.kind;
    plan.progress.set_message(format!("{shape}: preparing the check"));
    let (a, b) = random(shape, kind.precision)?;
    let (product, inputs) = (kind.product(shape), Inputs::new(a.view()));
    if kind.constant_b {
        let product = product.with_weights(&b.into_weights()?)?;
        return measure_with(plan, shape, &product, inputs, measured);
    }
    measure_with(plan, shape, &product.build()?, inputs.b(b.view()), measured)
}

fn measure_with(
    plan: &Plan<'_>,
    shape: Shape,
    product: &impl Product,
    inputs: Inputs<'_>,
    measured: &mut Measured,
) -> Output {
    let Plan { backends, ids, options, samples, progress, kind } = *plan;
    let mut checker = Checker::new(product, &inputs, check::WHOLE)?;

    let mut candidates = Vec::new();
    for id in ids {
        progress.set_message(format!("{shape}: checking {id}"));
        let compiled = match backends.compile(id, product, options) {
            Ok(compiled) => compiled,
            Err(Error::Refused { refusal, .. }) => {
                measured.refused.push((id.clone(), shape, refusal.to_string()));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let report = compiled.report();
        let stands_for = (report.requested_backend != report.backend).then(|| report.backend.clone());
        if stands_for.is_some() {
            measured.notes.push(format!("{id} at {shape} is {}: {}", report.backend, report.chosen_by));
        }
        if let Some(note) = report.note {
            measured.note(format!("{id}: {note}"));
        }
        let mut places = vec![false];
        if kind.resident && stands_for.is_none() {
            let info = backends.info(id)?;
            if info.copies_host_operands || info.device != Device::Cpu {
                places.push(true);
            } else {
                measured.note(format!("{id}: its memory is the host's, so that resident runs are the same"));
            }
        }
        for resident in places {
            let start = Instant::now();
            let mut executor = compiled.executor()?;
            let mut place = Place::new(kind, resident, &compiled, &inputs, shape)?;
            place.run(&mut executor, &inputs)?;
            let first_run_ns = start.elapsed().as_nanos();
            let backend = Contender { id: id.clone(), resident };
            let check = place.check(&mut checker, &inputs)?.map_err(|problem| {
                let what_to_do = match Backends::new().info(id) {
                    // A shim's.
                    Err(Error::UnknownBackend { .. }) => format!("run ane-matmul conformance --backend {id}"),
                    _ => "please report this".to_owned(),
                };
                Failure::new(format!(
                    "{backend} is wrong at {shape}: {problem}; it is not timed; {what_to_do}"
                ))
            })?;
            candidates.push(Candidate {
                timing: Timing {
                    backend,
                    stands_for: stands_for.clone(),
                    shape,
                    threads: report.threads,
                    requested: report.requested,
                    observed: report.observed,
                    compile_ns: report.compile_time.as_nanos(),
                    first_run_ns,
                    median_ns: 0.0,
                    min_ns: 0.0,
                    samples: 0,
                    gflops: 0.0,
                    check,
                },
                executor,
                place,
                runs_per_sample: 1,
                samples_ns: Vec::new(),
            });
        }
    }
    progress.set_message(format!("{shape}: timing"));
    time(&mut candidates, &inputs, samples.map(usize::from), progress)?;
    for mut candidate in candidates {
        finish(&mut candidate.timing, &mut candidate.samples_ns, product.product().flops());
        measured.timings.push(candidate.timing);
    }
    Ok(())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, small numbers")]
fn time(
    candidates: &mut [Candidate],
    inputs: &Inputs<'_>,
    samples: Option<usize>,
    progress: &ProgressBar,
) -> Output {
    let mut slowest_ns = 1f64;
    for candidate in candidates.iter_mut() {
        // The first run after verification still meets cold caches and sleeping threads.
        candidate.sample(inputs)?;
        let once_ns = candidate.sample(inputs)?.max(1.0);
        candidate.runs_per_sample = (SAMPLE_TIME.as_nanos() as f64 / once_ns).ceil().max(1.0) as usize;
        slowest_ns = slowest_ns.max(once_ns * candidate.runs_per_sample as f64);
    }
    let fitting = (BUDGET.as_nanos() as f64 / slowest_ns) as usize;
    let samples = samples.unwrap_or_else(|| fitting.clamp(*SAMPLES.start(), *SAMPLES.end()));
    for _ in 0..samples {
        for candidate in candidates.iter_mut() {
            let sample_ns = candidate.sample(inputs)?;
            candidate.samples_ns.push(sample_ns);
        }
        progress.tick();
    }
    Ok(())
}

fn finish(timing: &mut Timing, samples_ns: &mut [f64], flops: f64) {
    samples_ns.sort_by(f64::total_cmp);
    timing.samples = samples_ns.len();
    timing.median_ns = median(samples_ns);
    timing.min_ns = samples_ns.first().copied().unwrap_or(0.0);
    timing.gflops = if timing.median_ns > 0.0 { flops / timing.median_ns } else { 0.0 };
}

/// The median of sorted numbers; 0 of none.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]).to_bits(), 0f64.to_bits());
        assert_abs_diff_eq!(median(&[1.0, 2.0, 10.0]), 2.0, epsilon = 1e-12);
        assert_abs_diff_eq!(median(&[1.0, 2.0, 4.0, 10.0]), 3.0, epsilon = 1e-12);
    }

    #[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
    #[test]
    fn a_note_of_a_backend_is_kept_once() {
        // More threads than any BLAS was built for.
        let options = CompileOptions::default().threads(ane_matmul::Threads::count(4096).unwrap());
        let mut measured = Measured::default();
        let plan = Plan {
            backends: &Backends::new(),
            ids: &[BackendId::BLAS],
            kind: Kind { precision: crate::args::Precision::F32, constant_b: false, resident: false },
            options: &options,
            samples: NonZeroUsize::new(1),
            progress: &ProgressBar::hidden(),
        };
        for size in [1, 2] {
            measure(&plan, Shape { m: size, n: size, k: size }, &mut measured).unwrap();
        }
        let [note] = &measured.notes[..] else { panic!("{:?}", measured.notes) };
        assert!(note.starts_with("blas: 4096 threads were asked for"), "{note}");
    }

    #[test]
    fn a_timing_is_made_of_its_samples() {
        let mut timing = crate::compare::fixture::timing(4, "cpu", 0.0);
        finish(&mut timing, &mut [4.0, 1.0, 2.0], 10.0);
        assert_eq!((timing.samples, timing.gflops.to_bits()), (3, 5f64.to_bits()));
        assert_eq!([timing.median_ns, timing.min_ns].map(f64::to_bits), [2.0, 1.0].map(f64::to_bits));
        finish(&mut timing, &mut [], 10.0);
        assert_eq!(timing.gflops.to_bits(), 0f64.to_bits());
        assert_eq!(median(&[5.0]).to_bits(), 5f64.to_bits());
    }
}
