//! Running a case and judging the result.

use ane_matmul::accuracy::Reference;
use ane_matmul::{
    AnyView, BackendId, Backends, CompileOptions, Compiled, ElementType, Error, Inputs, Layout, MatMul,
    NibbleOrder, Product, QuantA, QuantB, QuantOutput, Quantization, RefusalReason, TensorView, Weights,
};
use fastrand::Rng;

use crate::cases::{Case, Contents};
use crate::checked;
use crate::data::{GUARD, Guarded, normal, number};

/// What a run of the suite covered.
#[derive(Debug, Clone, Default)]
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

/// Runs every case on a backend. Refusals count as failures unless `allowed` names their reason.
///
/// # Panics
/// With a list of what failed.
pub fn run_suite(
    backends: &Backends,
    id: &BackendId,
    options: &CompileOptions,
    cases: &[Case],
    allowed: &[RefusalReason],
) -> Summary {
    let mut summary = Summary::default();
    let mut failures = Vec::new();
    for (seed, case) in (1..).zip(cases) {
        match run_case(backends, id, options, case, seed) {
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
        "{} of {} cases failed on {id}:\n{}",
        failures.len(),
        cases.len(),
        failures.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
    );
    assert!(summary.passed > 0, "no case ran on {id}");
    summary
}

/// What came of a case.
#[derive(Debug, Clone)]
pub struct Passed {
    /// The largest absolute difference from the reference.
    pub max_abs_error: f64,
    /// The bound of the element that comes closest to it.
    pub bound: f64,
    /// The largest ratio of error to bound.
    pub worst_ratio: f64,
    /// The bits of C and of what lies around it, the same for every NaN.
    pub bits: Vec<u32>,
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

impl Case {
    const fn guard(&self) -> usize {
        if self.bare { 0 } else { GUARD }
    }
}

struct Operands {
    a: Guarded,
    b: Guarded,
    bias: Option<Guarded>,
    residual: Option<Guarded>,
}

impl Operands {
    fn new(case: &Case, product: &MatMul, rows: usize, seed: u64) -> Result<Self, Error> {
        let mut random = Rng::with_seed(seed);
        let types = case.types;
        let contents = case.contents;
        let full = *product.a();
        let (r, c) = if product.transpose_a() { (full.rows(), rows) } else { (rows, full.cols()) };
        let a_layout = Layout::strided(full.batch(), r, c, full.leading_dimension(), full.batch_stride())?;
        let mut input = |element, layout, left| {
            Guarded::input(element, layout, case.quantization.nibble_order, case.guard(), |_, row, col| {
                number(element, contents, &mut random, left, row, col)
            })
        };
        // The identity must stay one when A is stored transposed, and it does.
        let a = input(types.a, a_layout, true);
        let b = input(types.b, *product.b(), false);
        let bias =
            case.bias.then(|| input(types.bias, Layout::packed(1, 1, product.n()).expect("a row"), false));
        let residual = product.residual().map(|full| input(types.output, with_rows(full, rows), false));
        Ok(Self { a, b, bias, residual })
    }

    fn inputs(&self, constant_b: bool) -> Inputs<'_> {
        let mut inputs = Inputs::new(self.a.view());
        if !constant_b {
            inputs = inputs.b(self.b.view());
        }
        if let Some(bias) = &self.bias {
            inputs = inputs.bias(bias.view());
        }
        if let Some(residual) = &self.residual {
            inputs = inputs.residual(residual.view());
        }
        inputs
    }

    fn bits(&self) -> Vec<Vec<u32>> {
        [Some(&self.a), Some(&self.b), self.bias.as_ref(), self.residual.as_ref()]
            .into_iter()
            .flatten()
            .map(Guarded::bits)
            .collect()
    }
}

/// What is compiled: with its B, or without.
///
/// # Errors
/// Where weights say something else of B than the case.
fn whole(case: &Case, b: AnyView<'_>, seed: u64) -> Result<Box<dyn Product>, Failure> {
    let product = case.describe()?;
    if !case.constant_b {
        return Ok(Box::new(product));
    }
    let whole = case.describe_with(&weights(case, &product, b, seed)?)?;
    if *whole.product() != product {
        return Err(Failure::Wrong(format!("its weights make it {:?}", whole.product())));
    }
    Ok(Box::new(whole))
}

/// B with scales of the described type.
fn weights(case: &Case, product: &MatMul, b: AnyView<'_>, seed: u64) -> Result<Weights, Error> {
    let weights = Weights::new(b)?;
    let weights = if product.transpose_b() { weights.transposed()? } else { weights };
    let scheme = product.quantization().b;
    let (rows, cols) = match scheme {
        QuantB::PerTensor { .. } => (1, 1),
        QuantB::PerColumn { .. } => (1, product.n()),
        QuantB::PerGroup { group_size, .. } => (product.k().div_ceil(group_size as usize), product.n()),
        _ => return Ok(weights),
    };
    let mut random = Rng::with_seed(!seed);
    let own = case.scales_of_items.unwrap_or(product.b().batch_stride() != 0);
    let items = if own { product.b().batch() } else { 1 };
    let layout = Layout::packed(items, rows, cols)?;
    let scales =
        Guarded::input(product.types().scales, layout, NibbleOrder::LowFirst, case.guard(), |_, _, _| {
            0.002 + 0.02 * normal(&mut random).abs()
        });
    weights.with_scales(scheme, scales.view())
}

/// The case with scales of its description; C's fits the sums of random integers.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn with_scales(case: &Case, seed: u64) -> Case {
    let mut random = Rng::with_seed(seed ^ 0x5CA1E5);
    let mut around = |around: f64| (around * (0.5 + random.f64())) as f32;
    let mut case = case.clone();
    if let QuantA::Static { scale, .. } = &mut case.quantization.a {
        *scale = around(0.03);
    }
    if case.quantization.b != QuantB::None && !case.constant_b {
        case.quantization = case.quantization_with(around(0.02));
    }
    if let QuantOutput::Static { scale, .. } = &mut case.quantization.output {
        *scale = around(0.04 * (case.dims[3] as f64 + 1.0).sqrt());
    }
    case
}

fn with_rows(layout: &Layout, rows: usize) -> Layout {
    Layout::strided(layout.batch(), rows, layout.cols(), layout.leading_dimension(), layout.batch_stride())
        .expect("fewer rows than a valid layout")
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

/// Runs one case: two executors, each twice, on two sets of data.
pub fn run_case(
    backends: &Backends,
    id: &BackendId,
    options: &CompileOptions,
    case: &Case,
    seed: u64,
) -> Result<Passed, Failure> {
    let case = &with_scales(case, seed);
    let product = case.describe()?;
    let rows = case.rows.unwrap_or(product.m());
    let operands = Operands::new(case, &product, rows, seed)?;
    let whole = whole(case, operands.b.view(), seed)?;
    let compiled = backends.compile(id, &*whole, options)?;
    let mut executor = compiled.executor()?;
    let mut other = compiled.executor()?;
    let mut c = Guarded::output(case.types.output, with_rows(product.c(), rows), case.guard());
    let before = operands.bits();

    executor.run(operands.inputs(case.constant_b), c.view_mut())?;
    let verdict = judge(case, &*whole, &compiled, options, &operands, &c, seed)?;
    let first = c.bits_but_of_nan();
    for (executor, what) in [(&mut executor, "the second run"), (&mut other, "another executor")] {
        c.clear();
        executor.run(operands.inputs(case.constant_b), c.view_mut())?;
        if c.bits_but_of_nan() != first {
            return Err(Failure::Wrong(format!("{what} gave other bits than the first run")));
        }
    }
    if operands.bits() != before {
        return Err(Failure::Wrong("an input was written to".into()));
    }

    let mut fresh = Operands::new(case, &product, rows, seed.wrapping_add(1 << 32))?;
    if case.constant_b {
        fresh.b = operands.b;
    }
    executor.run(fresh.inputs(case.constant_b), c.view_mut())?;
    judge(case, &*whole, &compiled, options, &fresh, &c, !seed)?;
    let (max_abs_error, bound, worst_ratio) = verdict;
    let passed = Passed { max_abs_error, bound, worst_ratio, bits: first };
    let f32_only = [case.types.a, case.types.b, case.types.output] == [ElementType::F32; 3];
    if f32_only && (!case.bias || case.types.bias == ElementType::F32) {
        run_f64(case, &product, &fresh, &mut other, &c)?;
    }
    Ok(passed)
}

fn judge(
    case: &Case,
    whole: &dyn Product,
    compiled: &Compiled,
    options: &CompileOptions,
    operands: &Operands,
    c: &Guarded,
    seed: u64,
) -> Result<(f64, f64, f64), Failure> {
    if let Some(index) = c.damaged_guard() {
        return Err(Failure::Wrong(format!("element {index}, which is not part of C, was written to")));
    }
    let reference = Reference::of(compiled, operands.inputs(case.constant_b))?;
    let deviation = reference.compare(c.view())?;
    if !deviation.is_within_bound() {
        let (item, row, col) = deviation.worst;
        let index = (item * reference.layout().rows() + row) * reference.layout().cols() + col;
        return Err(Failure::Wrong(format!(
            "{} elements beyond their bound, worst at item {item}, row {row}, column {col}: expected {} +- {:e}, got {}",
            deviation.violations,
            reference.values()[index],
            deviation.bound,
            c.view().get(item, row, col).unwrap_or(f64::NAN)
        )));
    }
    let exact = matches!(case.contents, Contents::SmallIntegers | Contents::IdentityTimesOnes)
        && case.activation == ane_matmul::Activation::None
        && case.alpha == 1.0
        && case.is_exact()
        && case.quantization == Quantization::default();
    if exact && deviation.max_abs_error != 0.0 {
        return Err(Failure::Wrong(format!("integers are off by {}", deviation.max_abs_error)));
    }
    checked::check(case, whole, options, &operands.inputs(case.constant_b), c, &reference, seed)?;
    Ok((deviation.max_abs_error, deviation.bound, deviation.worst_ratio))
}

/// The same numbers as f64 must give the same results, widened.
fn run_f64(
    case: &Case,
    product: &MatMul,
    operands: &Operands,
    executor: &mut ane_matmul::Executor,
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
    if !case.constant_b {
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
    executor.run_f64(inputs, ane_matmul::TensorViewMut::with_layout(&mut c, layout)?)?;
    let mut gaps = vec![true; layout.span()];
    for item in 0..product.batch() {
        for row in 0..layout.rows() {
            for col in 0..layout.cols() {
                let index = layout.item_offset(item) + row * layout.leading_dimension() + col;
                gaps[index] = false;
                let wanted = expected.view().get(item, row, col).expect("an element");
                if c[index] != wanted && !(c[index].is_nan() && wanted.is_nan()) {
                    return Err(Failure::Wrong(format!("run_f64 gave {} instead of {wanted}", c[index])));
                }
            }
        }
    }
    if c.iter().zip(gaps).any(|(&x, gap)| gap && x != -7.5) {
        return Err(Failure::Wrong("run_f64 wrote between the rows of C".into()));
    }
    Ok(())
}
