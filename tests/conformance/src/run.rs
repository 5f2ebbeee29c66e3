//! Running a case and judging the result.

use ane_matmul::accuracy::Reference;
use ane_matmul::{
    Activation, AnyView, BackendId, Backends, CompileOptions, Compiled, Device, ElementType, Error, Executor,
    Inputs, Layout, MatMul, Product, Quantization, RefusalReason, TensorView, TensorViewMut, Weights,
};

use crate::cases::{Case, Contents};
use crate::checked;
use crate::data::Guarded;
use crate::device;
use crate::operands::{Operands, whole, with_scales};

/// How the product of a case is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Way {
    /// Runs on operands in memory of the host's: on two executors, twice on each, on two sets of numbers.
    #[default]
    Host,
    /// Runs that are submitted and waited for, several in flight, on operands in the device's memory: some own their
    /// operands ([`ane_matmul::Submission`]), others borrow them ([`Executor::scope`]), in shared buffers too.
    Submitted,
    /// Runs on operands in the device's memory, whose result is an operand of a further product; some operands on the
    /// host, others on the device.
    Resident,
}

/// Runs cases on a backend, in one way.
///
/// ```
/// use ane_matmul::{BackendId, Backends, CompileOptions};
/// use ane_matmul_conformance::{Scale, Suite, cases};
///
/// let (backends, options) = (Backends::new(), CompileOptions::default());
/// let suite = Suite::new(&backends, &BackendId::CPU, &options);
/// for outcome in suite.outcomes(&cases(Scale::Tiny)) {
///     assert!(outcome.result.is_ok(), "case {}: {}", outcome.number, outcome.case);
/// }
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Suite<'a> {
    pub(crate) backends: &'a Backends,
    pub(crate) id: &'a BackendId,
    options: &'a CompileOptions,
    way: Way,
}

/// What came of one case.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome<'a> {
    /// The case's place in its list, from 1, which is also the seed of its numbers.
    pub number: usize,
    /// The case.
    pub case: &'a Case,
    /// What was measured, or why it did not pass.
    pub result: Result<Passed, Failure>,
}

impl<'a> Suite<'a> {
    /// Runs of [`Way::Host`]. The backend is looked up when a case runs.
    pub const fn new(backends: &'a Backends, id: &'a BackendId, options: &'a CompileOptions) -> Self {
        Self { backends, id, options, way: Way::Host }
    }

    /// The same in another way.
    pub const fn way(mut self, way: Way) -> Self {
        self.way = way;
        self
    }

    /// Runs one case; `seed` chooses the numbers.
    ///
    /// # Errors
    /// [`Failure::Refused`] where the backend does not take the product, [`Failure::Wrong`] for everything else.
    pub fn run(&self, case: &Case, seed: u64) -> Result<Passed, Failure> {
        let (trial, operands) = Trial::new(self, case, seed)?;
        match self.way {
            Way::Host => on_host(&trial, &operands),
            Way::Submitted => device::submitted(self, &trial, &operands),
            Way::Resident => device::resident(self, &trial, &operands),
        }
    }

    /// Runs one case after the other, each when it is asked for.
    pub fn outcomes<'c>(&self, cases: &'c [Case]) -> impl Iterator<Item = Outcome<'c>> {
        let suite = *self;
        (1..).zip(cases).map(move |(number, case)| {
            let result = suite.run(case, number as u64);
            Outcome { number, case, result }
        })
    }

    /// Runs every case. Refusals count as failures unless `allowed` names their reason.
    ///
    /// # Panics
    /// With a list of what failed; where no case ran.
    pub fn check(&self, cases: &[Case], allowed: &[RefusalReason]) -> Summary {
        let mut summary = Summary::default();
        let mut failures = Vec::new();
        for Outcome { case, result, .. } in self.outcomes(cases) {
            match result {
                Ok(Passed { max_abs_error, bound, worst_ratio, .. }) => {
                    summary.passed += 1;
                    summary.worst_ratio = summary.worst_ratio.max(worst_ratio);
                    if case.contents == Contents::Origin && case.dims == [1, 16, 16, 16] {
                        summary.origin = Some((max_abs_error, bound));
                    }
                }
                Err(Failure::Refused(reason, message)) if allowed.contains(&reason) => {
                    summary.refused.push((case.to_string(), message));
                }
                Err(Failure::Refused(_, message)) => failures.push(format!("{case}: refused: {message}")),
                Err(Failure::Wrong(message)) => failures.push(format!("{case}: {message}")),
            }
        }
        assert!(
            failures.is_empty(),
            "{} of {} cases failed on {}, {:?}:\n{}",
            failures.len(),
            cases.len(),
            self.id,
            self.way,
            failures.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
        );
        assert!(summary.passed > 0, "no case ran on {}", self.id);
        summary
    }
}

/// What a run of the suite covered.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Cases that ran and passed.
    pub passed: usize,
    /// Cases that the backend refused for a reason that was allowed, with the reason.
    pub refused: Vec<(String, String)>,
    /// The largest absolute difference from the reference in the origin's case (16x16x16,
    /// N(0, 0.02^2)), and the bound of the element where it is closest to its bound.
    pub origin: Option<(f64, f64)>,
    /// The largest ratio of error to bound.
    pub worst_ratio: f64,
}

/// Runs every case on a backend as [`Suite::check`] does, in [`Way::Host`].
///
/// # Panics
/// As [`Suite::check`].
pub fn run_suite(
    backends: &Backends,
    id: &BackendId,
    options: &CompileOptions,
    cases: &[Case],
    allowed: &[RefusalReason],
) -> Summary {
    Suite::new(backends, id, options).check(cases, allowed)
}

/// Runs one case as [`Suite::run`] does, in [`Way::Host`].
///
/// # Errors
/// As [`Suite::run`].
pub fn run_case(
    backends: &Backends,
    id: &BackendId,
    options: &CompileOptions,
    case: &Case,
    seed: u64,
) -> Result<Passed, Failure> {
    Suite::new(backends, id, options).run(case, seed)
}

/// What was measured of a case that passed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Passed {
    /// The largest absolute difference from the reference.
    pub max_abs_error: f64,
    /// The bound of the element that comes closest to it.
    pub bound: f64,
    /// The largest ratio of error to bound.
    pub worst_ratio: f64,
    /// The bits of C and of what lies around it, the same for every NaN.
    pub bits: Vec<u64>,
}

/// Why a case did not pass.
#[derive(Debug)]
pub enum Failure {
    /// The backend refused it.
    Refused(RefusalReason, String),
    /// Something else.
    Wrong(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused { refusal, .. } => Self::Refused(refusal.reason, refusal.message),
            error => Self::Wrong(error.to_string()),
        }
    }
}

pub(crate) fn wrong<T>(message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Wrong(message.into()))
}

/// A case that is compiled.
pub(crate) struct Trial<'a> {
    pub(crate) case: Case,
    pub(crate) compiled: Compiled,
    product: MatMul,
    whole: Box<dyn Product>,
    options: &'a CompileOptions,
}

impl<'a> Trial<'a> {
    /// With two sets of numbers, of one B where that is constant.
    pub(crate) fn new(suite: &Suite<'a>, case: &Case, seed: u64) -> Result<(Self, [Operands; 2]), Failure> {
        let case = with_scales(case, seed);
        let product = case.describe()?;
        let rows = case.rows.unwrap_or(product.m());
        let operands = Operands::new(&case, &product, rows, seed)?;
        let whole = whole(&case, operands.b.view(), seed)?;
        let compiled = suite.backends.compile(suite.id, &*whole, suite.options)?;
        check_device(suite.options.device, compiled.report().observed)?;
        let mut others = Operands::new(&case, &product, rows, seed.wrapping_add(1 << 32))?;
        if case.constant_b {
            others.b = operands.b.clone();
        }
        Ok((Self { case, compiled, product, whole, options: suite.options }, [operands, others]))
    }

    /// The rows of each run.
    pub(crate) fn rows(&self) -> usize {
        self.case.rows.unwrap_or(self.product.m())
    }

    /// An output of nothing but guards.
    pub(crate) fn output(&self) -> Guarded {
        self.whole_output().first_rows(self.rows())
    }

    /// The same of all rows of the description.
    pub(crate) fn whole_output(&self) -> Guarded {
        Guarded::output(self.case.types.output, *self.product.c(), self.case.guard())
    }

    /// The B that comes with a run, if it does.
    pub(crate) fn b<'o>(&self, operands: &'o Operands) -> Option<&'o Guarded> {
        (!self.case.constant_b).then_some(&operands.b)
    }

    fn inputs<'o>(&self, operands: &'o Operands) -> Inputs<'o> {
        operands.inputs(self.case.constant_b)
    }

    /// Holds C to the reference, and self-checks to both.
    pub(crate) fn judge(&self, operands: &Operands, c: &Guarded) -> Result<Passed, Failure> {
        let case = &self.case;
        if let Some(index) = c.damaged_guard() {
            return wrong(format!("element {index}, which is not part of C, was written to"));
        }
        let inputs = self.inputs(operands);
        let reference = Reference::of(&self.compiled, inputs)?;
        let deviation = reference.compare(c.view())?;
        if !deviation.is_within_bound() {
            let (item, row, col) = deviation.worst;
            let index = (item * reference.layout().rows() + row) * reference.layout().cols() + col;
            return wrong(format!(
                "{} of {} elements beyond their bound, the worst at item {item}, row {row}, column {col}: expected {} +- {:e}, got {}",
                deviation.violations,
                reference.values().len(),
                reference.values()[index],
                deviation.bound,
                c.view().get(item, row, col).unwrap_or(f64::NAN)
            ));
        }
        let exact = matches!(case.contents, Contents::SmallIntegers | Contents::IdentityTimesOnes)
            && case.activation == Activation::None
            && case.alpha == 1.0
            && case.is_exact()
            && case.quantization == Quantization::default();
        if exact && deviation.max_abs_error != 0.0 {
            return wrong(format!("integers are off by {}", deviation.max_abs_error));
        }
        checked::check(case, &*self.whole, self.options, &inputs, c, &reference, operands.seed)?;
        Ok(Passed {
            max_abs_error: deviation.max_abs_error,
            bound: deviation.bound,
            worst_ratio: deviation.worst_ratio,
            bits: c.bits_but_of_nan(),
        })
    }
}

/// A backend that runs elsewhere than it was asked to refuses instead. The Neural Engine is asked for as a candidate.
fn check_device(asked: Device, ran: Device) -> Result<(), Failure> {
    if matches!(asked, Device::Cpu | Device::Gpu) && ![asked, Device::Unknown].contains(&ran) {
        return wrong(format!(
            "the device {asked} was asked for, and by the backend's own report it was {ran}"
        ));
    }
    Ok(())
}

fn on_host(trial: &Trial<'_>, [operands, others]: &[Operands; 2]) -> Result<Passed, Failure> {
    let mut executor = trial.compiled.executor()?;
    let mut other = trial.compiled.executor()?;
    let mut c = trial.output();
    let before = operands.bits();

    let observation = executor.run_observed(trial.inputs(operands), c.view_mut())?;
    check_device(trial.options.device, observation.observed)?;
    let passed = trial.judge(operands, &c)?;
    for (executor, what) in [(&mut executor, "the second run"), (&mut other, "another executor")] {
        c.clear();
        executor.run(trial.inputs(operands), c.view_mut())?;
        if c.bits_but_of_nan() != passed.bits {
            return wrong(format!("{what} gave other bits than the first run"));
        }
    }
    if operands.bits() != before {
        return wrong("an input was written to");
    }

    executor.run(trial.inputs(others), c.view_mut())?;
    trial.judge(others, &c)?;
    let case = &trial.case;
    let f32_only = [case.types.a, case.types.b, case.types.output] == [ElementType::F32; 3];
    if f32_only && (!case.bias || case.types.bias == ElementType::F32) {
        run_f64(trial, others, &mut other, &c)?;
    }
    Ok(passed)
}

/// The same numbers as f64 must give the same results, widened.
fn run_f64(
    trial: &Trial<'_>,
    operands: &Operands,
    executor: &mut Executor,
    expected: &Guarded,
) -> Result<(), Failure> {
    let wide = |guarded: &Guarded| {
        let view = guarded.view();
        let layout = *view.layout();
        let mut data = vec![f64::NAN; layout.span()];
        for item in 0..layout.batch() {
            for row in 0..layout.rows() {
                for col in 0..layout.cols() {
                    let index = layout.item_offset(item) + row * layout.leading_dimension() + col;
                    data[index] = view.get(item, row, col).expect("an element");
                }
            }
        }
        (data, layout)
    };
    fn view((data, layout): &(Vec<f64>, Layout)) -> TensorView<'_, f64> {
        TensorView::with_layout(data, *layout).expect("the data fit")
    }
    let a = wide(&operands.a);
    let b = wide(&operands.b);
    let bias = operands.bias.as_ref().map(wide);
    let residual = operands.residual.as_ref().map(wide);
    let mut inputs = Inputs::new(view(&a));
    if !trial.case.constant_b {
        inputs = inputs.b(view(&b));
    }
    if let Some(bias) = &bias {
        inputs = inputs.bias(view(bias));
    }
    if let Some(residual) = &residual {
        inputs = inputs.residual(view(residual));
    }
    let layout = *expected.view().layout();
    let mut c = vec![-7.5f64; layout.span()];
    executor.run_f64(inputs, TensorViewMut::with_layout(&mut c, layout)?)?;
    let mut gaps = vec![true; layout.span()];
    for item in 0..layout.batch() {
        for row in 0..layout.rows() {
            for col in 0..layout.cols() {
                let index = layout.item_offset(item) + row * layout.leading_dimension() + col;
                gaps[index] = false;
                let wanted = expected.view().get(item, row, col).expect("an element");
                if c[index] != wanted && !(c[index].is_nan() && wanted.is_nan()) {
                    return wrong(format!("run_f64 gave {} instead of {wanted}", c[index]));
                }
            }
        }
    }
    if c.iter().zip(gaps).any(|(&x, gap)| gap && x != -7.5) {
        return wrong("run_f64 wrote between the rows of C");
    }
    Ok(())
}

/// Compiles a product for the CPU; `b`, as stored, is bound to it where it is given.
///
/// # Errors
/// Those of binding and of compiling.
pub fn compile_on_cpu(
    product: &MatMul,
    b: Option<AnyView<'_>>,
    options: &CompileOptions,
) -> Result<Compiled, Error> {
    let Some(b) = b else { return product.compile_with(&BackendId::CPU, options) };
    let weights = Weights::new(b)?;
    let weights = if product.transpose_b() { weights.transposed()? } else { weights };
    product.with_weights(&weights)?.compile_with(&BackendId::CPU, options)
}

/// Compiles a case and gives `body` what runs it once.
///
/// # Panics
/// Where it does not compile or run.
pub fn with_run(case: &Case, options: &CompileOptions, body: impl FnOnce(&mut dyn FnMut())) {
    const SEED: u64 = 1;
    let case = &with_scales(case, SEED);
    let product = case.describe().expect("a valid description");
    let operands = Operands::new(case, &product, product.m(), SEED).expect("operands");
    let whole = whole(case, operands.b.view(), SEED).expect("weights that fit");
    // With the registry that a program has in common, and its threads.
    let compiled = match whole.weights() {
        Some(weights) => {
            product.with_weights(weights).and_then(|product| product.compile_with(&BackendId::CPU, options))
        }
        None => product.compile_with(&BackendId::CPU, options),
    };
    let compiled = compiled.expect("it compiles");
    let mut executor = compiled.executor().expect("an executor");
    let mut c = Guarded::output(case.types.output, *product.c(), case.guard());
    let inputs = operands.inputs(case.constant_b);
    body(&mut || executor.run(inputs, c.view_mut()).expect("it runs"));
}
