//! Compiled products, and the executors that run them.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::instant_start::InstantStart;
use crate::backend::{Backend, BackendId, CompiledInfo, CompiledProduct, Run, RunArgs};
use crate::cache::Weight;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::description::scales::Scales;
use crate::dispatch::Basis;
use crate::error::{Error, Operand, Result};
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, AnyViewMut, TensorView, TensorViewMut};
use crate::operands::weights::{Weights, check_nibbles};
use crate::verify::self_check::{CheckCounts, CheckSchedule, CheckedProduct, Mismatch, Prepared};

/// The operands of one run that are read.
///
/// ```
/// # use ane_matmul::{Inputs, Tensor};
/// # let (x, w, bias) = (Tensor::<f32>::zeros(2, 3)?, Tensor::<f32>::zeros(3, 4)?, vec![0f32; 4]);
/// let inputs = Inputs::new(&x).b(&w).bias(&bias);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Inputs<'a> {
    a: AnyView<'a>,
    b: Option<AnyView<'a>>,
    bias: Option<AnyView<'a>>,
    residual: Option<AnyView<'a>>,
}

impl<'a> Inputs<'a> {
    /// A as stored (with `transpose_a` it is k x m).
    pub fn new(a: impl Into<AnyView<'a>>) -> Self {
        Self { a: a.into(), b: None, bias: None, residual: None }
    }

    /// B as stored (with `transpose_b` it is n x k); leave it out where B is constant.
    pub fn b(mut self, b: impl Into<AnyView<'a>>) -> Self {
        self.b = Some(b.into());
        self
    }

    /// The vector of n elements that is added to every row.
    pub fn bias(mut self, bias: impl Into<AnyView<'a>>) -> Self {
        self.bias = Some(bias.into());
        self
    }

    /// The matrix that is added to the product before the activation.
    pub fn residual(mut self, residual: impl Into<AnyView<'a>>) -> Self {
        self.residual = Some(residual.into());
        self
    }

    /// A.
    #[must_use]
    pub const fn a_view(&self) -> AnyView<'a> {
        self.a
    }

    /// B, if it was given.
    #[must_use]
    pub const fn b_view(&self) -> Option<AnyView<'a>> {
        self.b
    }

    /// The bias, if it was given.
    #[must_use]
    pub const fn bias_view(&self) -> Option<AnyView<'a>> {
        self.bias
    }

    /// The residual, if it was given.
    #[must_use]
    pub const fn residual_view(&self) -> Option<AnyView<'a>> {
        self.residual
    }
}

/// What is known of a compiled product.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The backend that compiled it.
    pub backend: BackendId,
    /// The backend that was asked for: the same, or [`BackendId::AUTO`].
    pub requested_backend: BackendId,
    /// Why this backend was chosen.
    pub chosen_by: Basis,
    /// How long compiling took, as its caller saw it.
    pub compile_time: Duration,
    /// The memory it holds, executors and the caller's weights not counted.
    pub bytes_held: usize,
    /// The device that was asked for.
    pub requested: Device,
    /// The device that was observed; unknown unless there is evidence.
    pub observed: Device,
    /// The CPU threads it uses, where they are known.
    pub threads: Option<usize>,
    /// Whether it was loaded from a package of an earlier start ([`CompileOptions::packages`]).
    pub from_package: bool,
    /// Where an instant start stands; `None` where none was asked for
    /// ([`CompileOptions::instant_start`]) or the backend is the CPU's.
    pub instant_start: Option<InstantStart>,
    /// What a user should know besides, such as an option that could not be honoured.
    pub note: Option<String>,
}

/// What an engine says of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunObservation {
    /// The device that ran; unknown where the engine says nothing of single runs
    /// ([`Report::observed`] is what it says of the product).
    pub observed: Device,
    /// From start to end by the device's own clock, where it has one.
    pub device_time: Option<Duration>,
}

struct Shared {
    compiled: Box<dyn CompiledProduct>,
    product: MatMul,
    backend: BackendId,
    requested_backend: BackendId,
    chosen_by: Basis,
    compile_time: Duration,
    requested: Device,
    weights: Option<Weights>,
    scales: Scales,
    reduced_precision: bool,
}

/// A product compiled for a backend: plan and weights, shared by its executors.
///
/// Cloning shares.
#[derive(Clone)]
pub struct Compiled(Arc<Shared>);

impl Compiled {
    pub(crate) fn new(
        id: BackendId,
        backend: &dyn Backend,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Self> {
        check_weights(product, weights)?;
        let scales = Scales::resolve(product, options)?;
        if let Some(probe) = &options.probe {
            probe.require(&id, backend.is_foreign(), product, options)?;
        }
        let check = match options.self_check.schedule {
            CheckSchedule::Off => None,
            _ => Some(Prepared::new(product, weights, &options.self_check, options)?),
        };
        let start = Instant::now();
        let mut compiled = backend.compile(product, weights, options)?;
        let compile_time = start.elapsed();
        if let Some(prepared) = check {
            compiled = Box::new(CheckedProduct::new(compiled, id.clone(), prepared, options));
        }
        log::debug!("compiled {product} for {id} in {compile_time:?}");
        Ok(Self(Arc::new(Shared {
            compiled,
            product: product.clone(),
            requested_backend: id.clone(),
            backend: id,
            chosen_by: Basis::Named,
            compile_time,
            requested: options.device,
            weights: weights.map(Weights::for_product),
            scales,
            reduced_precision: options.reduced_precision,
        })))
    }

    /// Notes that a backend was chosen in place of `requested`; only before this is shared.
    pub(crate) fn chosen_for(mut self, requested: BackendId, basis: Basis) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.0) {
            shared.requested_backend = requested;
            shared.chosen_by = basis;
        }
        self
    }

    /// Opens a run context; each thread that runs the product needs its own.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Native`].
    pub fn executor(&self) -> Result<Executor> {
        Ok(Executor {
            run: self.0.compiled.open()?,
            scratch: F64Scratch::default(),
            compiled: self.clone(),
            not_sync: PhantomData,
        })
    }

    /// The description.
    #[must_use]
    pub fn product(&self) -> &MatMul {
        &self.0.product
    }

    /// The backend that compiled it.
    #[must_use]
    pub fn backend(&self) -> &BackendId {
        &self.0.backend
    }

    /// The constant B, if there is one.
    #[must_use]
    pub fn weights(&self) -> Option<&Weights> {
        self.0.weights.as_ref()
    }

    /// The scales of A, of a dynamic B, and of C.
    pub(crate) fn scales(&self) -> Scales {
        self.0.scales
    }

    /// Whether operands may be truncated.
    pub(crate) fn reduced_precision(&self) -> bool {
        self.0.reduced_precision
    }

    /// Backend, compile time, memory and devices.
    #[must_use]
    pub fn report(&self) -> Report {
        let CompiledInfo { bytes_held, observed, threads, note, from_package, instant_start, shared: _ } =
            self.0.compiled.info();
        Report {
            backend: self.0.backend.clone(),
            requested_backend: self.0.requested_backend.clone(),
            chosen_by: self.0.chosen_by.clone(),
            compile_time: self.0.compile_time,
            bytes_held,
            requested: self.0.requested,
            observed,
            threads,
            from_package,
            instant_start,
            note,
        }
    }

    /// The memory that a cache holds with this product, its packed weights apart where other products
    /// have them in common.
    pub(crate) fn holding(&self) -> Weight {
        let CompiledInfo { bytes_held, shared, instant_start, .. } = self.0.compiled.info();
        let shared_bytes = shared.map_or(0, |(_, bytes)| bytes);
        Weight {
            own: size_of::<Shared>() + bytes_held.saturating_sub(shared_bytes),
            shared,
            may_change: matches!(instant_start, Some(InstantStart::Compiling { .. })),
        }
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").field("product", self.product()).field("report", &self.report()).finish()
    }
}

/// The run context of one thread at a time: scratch memory and the way to the engine.
pub struct Executor {
    // Before `compiled`: a run context goes before the product that it came from.
    run: Box<dyn Run>,
    scratch: F64Scratch,
    compiled: Compiled,
    not_sync: PhantomData<Cell<()>>,
}

/// f32 copies of f64 operands.
#[derive(Default)]
struct F64Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    c: Vec<f32>,
}

impl Executor {
    /// Computes `C = activation(alpha * op(A) op(B) + bias + residual)` into `c`.
    ///
    /// Every operand must have the shape, strides and element type of the description (strides
    /// that no element depends on do not count). With variable m the rows of `c` say how many rows
    /// this run has. What `c` held before is not read; gaps between its rows are not written.
    ///
    /// After an error the contents of `c` are unspecified, and the executor may be used again.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Unexpected`], [`Error::Rows`], [`Error::Shape`] and
    /// [`Error::Type`] when an operand does not fit; [`Error::Native`] when the engine fails;
    /// [`Error::WrongResult`] when a self-check finds the result wrong.
    pub fn run<'c>(&mut self, inputs: &Inputs<'_>, c: impl Into<AnyViewMut<'c>>) -> Result<()> {
        let c = c.into();
        let m = self.rows(inputs, &c)?;
        self.run.run(args(m, inputs, c))
    }

    /// As [`Executor::run`], and returns what the engine says of this run.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn run_observed<'c>(
        &mut self,
        inputs: &Inputs<'_>,
        c: impl Into<AnyViewMut<'c>>,
    ) -> Result<RunObservation> {
        let c = c.into();
        let m = self.rows(inputs, &c)?;
        self.run.run_observed(args(m, inputs, c))
    }

    /// The rows of a run whose operands fit.
    fn rows(&self, inputs: &Inputs<'_>, c: &AnyViewMut<'_>) -> Result<usize> {
        let product = &self.compiled.0.product;
        let m = check(product, inputs, c.layout())?;
        check_types(product, inputs, c.element_type())?;
        Ok(m)
    }

    /// Runs an f32 product on f64 operands: they are rounded to f32, and the result is widened.
    ///
    /// Numbers beyond f32's range become infinity. The copies live in the executor and are
    /// allocated by the first such run.
    ///
    /// # Errors
    /// As [`Executor::run`]; [`Error::OutOfMemory`] for the copies.
    pub fn run_f64(&mut self, inputs: &Inputs<'_>, mut c: TensorViewMut<'_, f64>) -> Result<()> {
        let product = &self.compiled.0.product;
        let m = check(product, inputs, c.layout())?;
        for (operand, element) in described_types(product) {
            if element != ElementType::F32 {
                return Err(Error::Type { operand, expected: element, got: ElementType::F64 });
            }
        }
        let F64Scratch { a, b, bias, residual, c: c_scratch } = &mut self.scratch;
        let args = RunArgs {
            m,
            a: narrow(Operand::A, inputs.a, a)?,
            b: inputs.b.map(|view| narrow(Operand::B, view, b)).transpose()?,
            bias: inputs.bias.map(|view| narrow(Operand::Bias, view, bias)).transpose()?,
            residual: inputs.residual.map(|view| narrow(Operand::Residual, view, residual)).transpose()?,
            c: AnyViewMut::F32(scratch_view(c_scratch, *c.layout())?),
        };
        self.run.run(args)?;
        widen(&self.scratch.c, &mut c);
        Ok(())
    }

    /// What the self-checks of this executor did so far: nothing, where they are off.
    #[must_use]
    pub fn checks(&self) -> CheckCounts {
        self.run.checks()
    }

    /// The last wrong result that a self-check found.
    #[must_use]
    pub fn last_mismatch(&self) -> Option<&Mismatch> {
        self.run.last_mismatch()
    }

    /// The product that this executor runs.
    #[must_use]
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("compiled", &self.compiled).finish_non_exhaustive()
    }
}

impl Compiled {
    /// Opens an executor, runs once and returns the result: for a product that runs only once.
    ///
    /// # Errors
    /// As [`Compiled::executor`] and [`Executor::run`].
    pub fn run_once(&self, inputs: &Inputs<'_>) -> Result<Tensor<f32>> {
        let c = self.product().c();
        let mut output = if c.batch() == 1 {
            Tensor::zeros(c.rows(), c.cols())?
        } else {
            Tensor::zeros_batched(c.batch(), c.rows(), c.cols())?
        };
        if !output.view().layout().addresses_same(c) {
            return Err(Error::Shape {
                operand: Operand::C,
                expected: c.to_string(),
                got: output.view().layout().to_string(),
            });
        }
        self.executor()?.run(inputs, &mut output)?;
        Ok(output)
    }
}

/// Checks that there are weights exactly where B is constant, and that they fit.
pub(crate) fn check_weights(product: &MatMul, weights: Option<&Weights>) -> Result<()> {
    match weights {
        None if product.constant_b() => Err(Error::Missing {
            operand: Operand::B,
            help: "the product has a constant B: pass its Weights to compile",
        }),
        Some(_) if !product.constant_b() => Err(Error::Unexpected {
            operand: Operand::B,
            help: "describe the product with constant_b(true) to compile weights into it",
        }),
        Some(weights) => weights.check(product),
        None => Ok(()),
    }
}

// Inlined: a copy of the operands takes a tenth of the time of the smallest products.
#[inline]
fn args<'v>(m: usize, inputs: &Inputs<'v>, c: AnyViewMut<'v>) -> RunArgs<'v> {
    RunArgs { m, a: inputs.a, b: inputs.b, bias: inputs.bias, residual: inputs.residual, c }
}

/// Checks shapes and presence of every operand; returns the rows of this run.
pub(crate) fn check(product: &MatMul, inputs: &Inputs<'_>, c: &Layout) -> Result<usize> {
    let m = c.rows();
    if m != product.m() && !(product.variable_m() && m < product.m()) {
        return Err(Error::Rows { compiled: product.m(), got: m, variable: product.variable_m() });
    }
    check_layout(Operand::C, &product.c_for(m), c)?;
    check_layout(Operand::A, &product.a_for(m), inputs.a.layout())?;
    match (&inputs.b, product.constant_b()) {
        (Some(b), false) => check_layout(Operand::B, product.b(), b.layout())?,
        (None, true) => {}
        (None, false) => {
            return Err(Error::Missing { operand: Operand::B, help: "pass it with Inputs::b" });
        }
        (Some(_), true) => {
            return Err(Error::Unexpected {
                operand: Operand::B,
                help: "B is constant and was given when the product was compiled",
            });
        }
    }
    match (&inputs.bias, product.has_bias()) {
        (Some(bias), true) => check_layout(Operand::Bias, &Layout::row(product.n()), bias.layout())?,
        (None, false) => {}
        (None, true) => {
            return Err(Error::Missing { operand: Operand::Bias, help: "pass it with Inputs::bias" });
        }
        (Some(_), false) => {
            return Err(Error::Unexpected {
                operand: Operand::Bias,
                help: "describe the product with bias(true)",
            });
        }
    }
    match (&inputs.residual, product.residual()) {
        (Some(residual), Some(expected)) => {
            check_layout(Operand::Residual, &expected.with_rows(m), residual.layout())?;
        }
        (None, None) => {}
        (None, Some(_)) => {
            return Err(Error::Missing { operand: Operand::Residual, help: "pass it with Inputs::residual" });
        }
        (Some(_), None) => {
            return Err(Error::Unexpected {
                operand: Operand::Residual,
                help: "describe the product with residual(true)",
            });
        }
    }
    Ok(m)
}

#[inline]
fn check_layout(operand: Operand, expected: &Layout, got: &Layout) -> Result<()> {
    if expected.addresses_same(got) { Ok(()) } else { Err(wrong_shape(operand, expected, got)) }
}

#[cold]
fn wrong_shape(operand: Operand, expected: &Layout, got: &Layout) -> Error {
    Error::Shape { operand, expected: expected.to_string(), got: got.to_string() }
}

pub(crate) fn check_types(product: &MatMul, inputs: &Inputs<'_>, c: ElementType) -> Result<()> {
    let types = product.types();
    let check = |operand, expected: ElementType, got: ElementType| {
        if expected == got { Ok(()) } else { Err(Error::Type { operand, expected, got }) }
    };
    check(Operand::A, types.a, inputs.a.element_type())?;
    if let Some(b) = &inputs.b {
        check(Operand::B, types.b, b.element_type())?;
        check_nibbles(product, b)?;
    }
    if let Some(bias) = &inputs.bias {
        check(Operand::Bias, types.bias, bias.element_type())?;
    }
    if let Some(residual) = &inputs.residual {
        check(Operand::Residual, types.output, residual.element_type())?;
    }
    check(Operand::C, types.output, c)
}

fn described_types(product: &MatMul) -> [(Operand, ElementType); 4] {
    let types = product.types();
    [
        (Operand::A, types.a),
        (Operand::B, types.b),
        (Operand::Bias, if product.has_bias() { types.bias } else { ElementType::F32 }),
        (Operand::C, types.output),
    ]
}

fn scratch_view(scratch: &mut Vec<f32>, layout: Layout) -> Result<TensorViewMut<'_, f32>> {
    let count = layout.span();
    if scratch.len() < count {
        scratch.clear();
        scratch.try_reserve_exact(count).map_err(|_| Error::OutOfMemory {
            what: "an f32 copy of an f64 operand",
            bytes: count.saturating_mul(size_of::<f32>()),
        })?;
        scratch.resize(count, 0.0);
    }
    TensorViewMut::with_layout(scratch, layout)
}

#[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is what run_f64 is asked for")]
fn narrow<'s>(operand: Operand, view: AnyView<'_>, scratch: &'s mut Vec<f32>) -> Result<AnyView<'s>> {
    let AnyView::F64(view) = view else {
        return Err(Error::Type { operand, expected: ElementType::F64, got: view.element_type() });
    };
    let layout = *view.layout();
    let target = scratch_view(scratch, layout)?.into_data();
    for (_, _, span) in layout.row_spans() {
        for (y, &x) in target[span.clone()].iter_mut().zip(&view.data()[span]) {
            *y = x as f32;
        }
    }
    Ok(TensorView::from_parts(target, layout).erased())
}

fn widen(source: &[f32], target: &mut TensorViewMut<'_, f64>) {
    for (_, _, span) in target.layout().row_spans() {
        for (y, &x) in target.data()[span.clone()].iter_mut().zip(&source[span]) {
            *y = f64::from(x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_holds_what_is_its_own_and_what_it_shares_apart() {
        for constant in [false, true] {
            let product = MatMul::builder(2, 40, 3).constant_b(constant).build().unwrap();
            let weights = Weights::from_tensor(Tensor::<f32>::zeros(3, 40).unwrap());
            let options = CompileOptions::default();
            let compiled = product.compile(&BackendId::CPU, constant.then_some(&weights), &options).unwrap();
            let Weight { own, shared, may_change } = compiled.holding();
            let shared_bytes = shared.map_or(0, |(_, bytes)| bytes);
            assert_eq!(own + shared_bytes, size_of::<Shared>() + compiled.report().bytes_held);
            assert_eq!((shared_bytes >= 3 * 40 * size_of::<f32>(), may_change), (constant, false));
        }
    }
}
