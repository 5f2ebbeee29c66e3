//! Compiled products, and the executors that run them.

#[allow(unsafe_code, reason = "the device works on after borrows have ended")]
pub(crate) mod queue;

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
use crate::dispatch::Basis;
use crate::error::{Error, Operand, Result};
use crate::executor_pool::{ExecutorPool, Idle};
use crate::operands::device_tensor::{DeviceMemory, DeviceTensor};
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, AnyViewMut, IntoViewMut, Sealed, TensorView, TensorViewMut};
use crate::operands::weights::Weights;
use crate::verify::self_check::{CheckCounts, CheckSchedule, CheckedProduct, Mismatch, Prepared};

use queue::Flights;

/// The operands of one run that are read.
///
/// A matrix alone stands for itself as A: runs of a product whose B and bias are known need no more.
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

    /// B as stored (with `transpose_b` it is n x k); leave it out where it is known.
    pub fn b(mut self, b: impl Into<AnyView<'a>>) -> Self {
        self.b = Some(b.into());
        self
    }

    /// The vector of n elements that is added to every row; leave it out where it is known.
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

    /// The inputs of a run.
    pub(crate) const fn of(args: &RunArgs<'a>) -> Self {
        Self { a: args.a, b: args.b, bias: args.bias, residual: args.residual }
    }

    /// Those that were given; they are lent, since a copy of them takes a tenth of the time of the smallest products.
    pub(crate) fn views(&self) -> impl Iterator<Item = (Operand, &AnyView<'a>)> {
        let views = [
            (Operand::A, Some(&self.a)),
            (Operand::B, self.b.as_ref()),
            (Operand::Bias, self.bias.as_ref()),
            (Operand::Residual, self.residual.as_ref()),
        ];
        views.into_iter().filter_map(|(operand, view)| Some((operand, view?)))
    }

    /// For those who read elements.
    pub(crate) fn check_on_host(&self) -> Result<()> {
        self.views().try_for_each(|(operand, view)| view.check_on_host(operand))
    }
}

/// What a run can read: [`Inputs`], by value or reference, or a matrix alone as A ([`crate::IntoView`]).
///
/// It cannot be implemented outside this crate. [`Inputs`] has an example.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is nothing that a run can read",
    note = "pass A alone by reference, as in `&x`, or all operands as `Inputs::new(&a).b(&b)`",
    note = "a slice is one row, `TensorView::new(&data, rows, cols)?` a matrix; arrays of ndarray 0.17 need the feature `ndarray`"
)]
pub trait IntoInputs<'a>: Sealed {
    // Lends them: to copy them takes a tenth of the time of the smallest products.
    #[doc(hidden)]
    fn with_inputs<R>(self, run: impl FnOnce(&Inputs<'a>) -> Result<R>) -> Result<R>;
}

impl Sealed for Inputs<'_> {}

impl<'a> IntoInputs<'a> for Inputs<'a> {
    #[inline]
    fn with_inputs<R>(self, run: impl FnOnce(&Self) -> Result<R>) -> Result<R> {
        run(&self)
    }
}

impl Sealed for &Inputs<'_> {}

impl<'a> IntoInputs<'a> for &Inputs<'a> {
    #[inline]
    fn with_inputs<R>(self, run: impl FnOnce(&Inputs<'a>) -> Result<R>) -> Result<R> {
        run(self)
    }
}

/// What is known of a compiled product.
///
/// ```
/// use ane_matmul::{BackendId, MatMul};
///
/// let report = MatMul::new(2, 3, 4)?.compile(&BackendId::CPU)?.report();
/// assert_eq!(report.backend, BackendId::CPU);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
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
    /// Which arithmetic it makes use of beyond that of its description.
    pub arithmetic: Arithmetic,
    /// How long the backend was initialised before its first product was compiled ([`crate::Backends::prepare`]): no part of
    /// [`Report::compile_time`]. With an instant start it is not known until the backend has compiled.
    pub prepare_time: Option<Duration>,
}

/// The arithmetic that a compiled product makes use of, beyond that of its description: only what
/// [`CompileOptions::fast_math`] and [`CompileOptions::reduced_precision`] allow.
///
/// ```
/// use ane_matmul::{BackendId, MatMul};
///
/// let report = MatMul::new(2, 3, 4)?.compile(&BackendId::CPU)?.report();
/// assert_eq!(report.arithmetic.to_string(), "as described");
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Arithmetic {
    /// Reassociation, approximations, and sums of fewer bits, without an error bound.
    pub fast_math: bool,
    /// Operands are rounded to 10 bits of fraction before they are multiplied.
    pub tf32: bool,
    /// Operands are rounded to bf16 before they are multiplied.
    pub bf16: bool,
    /// Operands are rounded to f16 before they are multiplied.
    pub f16: bool,
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named =
            [(self.fast_math, "fast math"), (self.tf32, "tf32"), (self.bf16, "bf16"), (self.f16, "f16")];
        let used: Vec<_> = named.into_iter().filter_map(|(used, name)| used.then_some(name)).collect();
        f.pad(&if used.is_empty() { "as described".to_owned() } else { used.join(", ") })
    }
}

/// What an engine says of one run.
///
/// ```
/// use ane_matmul::{BackendId, Inputs, MatMul, RunObservation};
///
/// let mut executor = MatMul::new(1, 1, 1)?.compile(&BackendId::CPU)?.executor()?;
/// let mut c = [0f32];
/// let seen = executor.run_observed(Inputs::new(&[2f32]).b(&[3f32]), &mut c)?;
/// println!("{:?} on {}", seen.device_time, seen.observed);
/// assert_eq!(seen, RunObservation::default()); // the CPU's engine says nothing of single runs
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunObservation {
    /// The device that ran; unknown where the engine says nothing of single runs
    /// ([`Report::observed`] is what it says of the product).
    pub observed: Device,
    /// From start to end by the device's own clock, where it has one.
    pub device_time: Option<Duration>,
    /// Whether that covers copies between host and device too.
    pub with_copies: bool,
}

struct Shared {
    compiled: Box<dyn CompiledProduct>,
    product: MatMul,
    memory: DeviceMemory,
    requested_backend: BackendId,
    chosen_by: Basis,
    compile_time: Duration,
    requested: Device,
    weights: Option<Weights>,
    reduced_precision: bool,
    prepare_time: Option<Duration>,
}

/// A product compiled for a backend: plan and weights, shared by its executors.
///
/// ```
/// use ane_matmul::{BackendId, Inputs, MatMul, Tensor};
///
/// let compiled = MatMul::new(2, 4, 3)?.compile(&BackendId::CPU)?;
/// let (a, b) = (Tensor::filled(2, 3, 1f32)?, Tensor::filled(3, 4, 2f32)?);
/// let mut c = Tensor::<f32>::zeros(2, 4)?;
/// compiled.run(Inputs::new(&a).b(&b), &mut c)?; // from any thread
///
/// let mut executor = compiled.executor()?; // this thread's own, for a loop
/// for _ in 0..1000 {
///     executor.run(Inputs::new(&a).b(&b), &mut c)?;
/// }
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// Cloning shares.
#[derive(Clone)]
pub struct Compiled {
    // Before `shared`: run contexts go before the product that they came from.
    idle: Arc<Idle>,
    shared: Arc<Shared>,
    /// The caller's, and not the engine's: products with several biases share what was compiled.
    bias: Option<Weights>,
}

impl Compiled {
    /// `memory` is that of the backend asked for.
    pub(crate) fn new(
        memory: DeviceMemory,
        backend: &dyn Backend,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Self> {
        let id = memory.backend().clone();
        if product.constant_b() && weights.is_none() {
            return Err(Error::Missing {
                operand: Operand::B,
                help: "the description says that B is known: compile what MatMul::with_weights makes of it",
            });
        }
        if let Some(probe) = &options.probe {
            probe.require(&id, backend.is_foreign(), product, options)?;
        }
        let prepare_time = backend.prepare()?;
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
        let shared = Shared {
            compiled,
            product: product.clone(),
            memory,
            requested_backend: id,
            chosen_by: Basis::Named,
            compile_time,
            requested: options.device,
            weights: weights.map(Weights::for_product),
            reduced_precision: options.reduced_precision,
            prepare_time,
        };
        Ok(Self { idle: Arc::default(), shared: Arc::new(shared), bias: None })
    }

    /// A handle for a caller: with the bias that is known, and with idle executors that go with it. A cache
    /// holds none, which it could not weigh.
    pub(crate) fn for_caller(self, bias: Option<&Weights>) -> Self {
        Self { idle: Arc::default(), bias: bias.cloned(), ..self }
    }

    /// Notes that a backend was chosen in place of `requested`; only before this is shared.
    pub(crate) fn chosen_for(mut self, requested: BackendId, basis: Basis) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
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
        Executor::open(self, 0)
    }

    /// As [`Compiled::executor`], for up to `depth` runs that were submitted and not waited for
    /// ([`Executor::submit`]).
    ///
    /// # Errors
    /// As [`Compiled::executor`]; [`Error::Queue`] for a depth of 0 or of more than the backend takes
    /// ([`crate::BackendInfo::max_queue_depth`]). A backend that computes while it is submitted to takes up to
    /// 65,536.
    pub fn executor_with_depth(&self, depth: usize) -> Result<Executor> {
        Executor::open_queue(self, depth)
    }

    /// The memory of the device that the product was compiled for, for operands that stay there.
    #[must_use]
    pub fn memory(&self) -> &DeviceMemory {
        &self.shared.memory
    }

    /// Runs the product in whichever thread calls: with an executor that is idle, or a new one.
    ///
    /// As many executors stay as threads ran at once, until the last clone of this handle goes: keep the handle
    /// that [`crate::ProductCache::compile`] gave out while it is in use. [`Compiled::pool`] bounds them; an [`Executor`] of one's own takes no lock.
    ///
    /// # Errors
    /// As [`Executor::run`] and [`Compiled::executor`].
    pub fn run<'i, 'c>(&self, inputs: impl IntoInputs<'i>, c: impl IntoViewMut<'c>) -> Result<()> {
        let c = c.into_view_mut()?;
        inputs.with_inputs(|inputs| self.with_context(|context| context.run(self, inputs, c)))
    }

    /// Runs the product in whichever thread calls, and returns the result: memory is allocated for it.
    ///
    /// # Errors
    /// As [`Executor::run_to_tensor`] and [`Compiled::executor`].
    pub fn run_to_tensor<'i>(&self, inputs: impl IntoInputs<'i>) -> Result<Tensor<f32>> {
        inputs.with_inputs(|inputs| self.with_context(|context| context.run_to_tensor(self, inputs)))
    }

    fn with_context<T>(&self, run: impl FnOnce(&mut Context) -> Result<T>) -> Result<T> {
        let mut context = match self.idle.take() {
            Some(context) => context,
            None => Context::open(self, 0)?,
        };
        let result = run(&mut context);
        self.idle.put(context);
        result
    }

    /// `size` executors for any number of threads: [`ExecutorPool`].
    ///
    /// # Errors
    /// [`Error::Threads`] for a size of 0 or of more than [`crate::Threads::MAXIMUM`]; as [`Compiled::executor`].
    pub fn pool(&self, size: usize) -> Result<ExecutorPool> {
        ExecutorPool::new(self, size)
    }

    /// What the self-checks of [`Compiled::run`] did so far: nothing, where they are off. Executors and
    /// pools count their own.
    #[must_use]
    pub fn checks(&self) -> CheckCounts {
        self.idle.checks()
    }

    /// The description.
    #[must_use]
    #[inline]
    pub fn product(&self) -> &MatMul {
        &self.shared.product
    }

    /// The backend that compiled it.
    #[must_use]
    pub fn backend(&self) -> &BackendId {
        self.shared.memory.backend()
    }

    /// The constant B, if there is one.
    #[must_use]
    pub fn weights(&self) -> Option<&Weights> {
        self.shared.weights.as_ref()
    }

    /// The bias, where it is known.
    pub(crate) fn bias(&self) -> Option<&Weights> {
        self.bias.as_ref()
    }

    /// The rows of a run whose operands fit.
    fn rows(&self, inputs: &Inputs<'_>, c: &AnyViewMut<'_>) -> Result<usize> {
        let product = &self.shared.product;
        let m = check(product, self.bias(), inputs, c.layout())?;
        check_types(product, inputs, c.element_type())?;
        self.memory().check_operands(inputs, c)?;
        Ok(m)
    }

    /// Whether operands may be truncated.
    pub(crate) fn reduced_precision(&self) -> bool {
        self.shared.reduced_precision
    }

    /// Backend, compile time, memory and devices.
    #[must_use]
    pub fn report(&self) -> Report {
        let info = self.shared.compiled.info();
        let CompiledInfo { bytes_held, observed, threads, note, from_package, instant_start, .. } = info;
        Report {
            backend: self.backend().clone(),
            requested_backend: self.shared.requested_backend.clone(),
            chosen_by: self.shared.chosen_by.clone(),
            compile_time: self.shared.compile_time,
            bytes_held,
            requested: self.shared.requested,
            observed,
            threads,
            from_package,
            instant_start,
            note,
            arithmetic: info.arithmetic,
            prepare_time: info.prepare_time.or(self.shared.prepare_time),
        }
    }

    /// The memory that a cache holds with this product, its packed weights apart where other products
    /// have them in common.
    pub(crate) fn holding(&self) -> Weight {
        let CompiledInfo { bytes_held, shared, instant_start, .. } = self.shared.compiled.info();
        let may_change = matches!(instant_start, Some(InstantStart::Compiling { .. }));
        let shared = shared.into_iter().flatten().collect();
        let weight = Weight { own: size_of::<Shared>() + bytes_held, shared, may_change };
        Weight { own: weight.own.saturating_sub(weight.shared_bytes()), ..weight }
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").field("product", self.product()).field("report", &self.report()).finish()
    }
}

/// What one thread at a time runs a product with: scratch memory, and the way to the engine.
///
/// ```
/// use ane_matmul::{BackendId, Linear, Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::from_fn(2, 2, |row, col| if row == col { 2.0 } else { 0.0 })?);
/// let mut executor = Linear::new(&weights).compile(&BackendId::CPU)?.executor()?;
/// let (mut x, mut y) = ([1f32, 3.0], [0f32; 2]);
/// for _ in 0..3 {
///     executor.run(&x, &mut y)?;
///     x = y;
/// }
/// assert_eq!(x, [8.0, 24.0]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
pub struct Executor {
    // Before `flights`, whose operands the engine may still use until this is gone, and before `compiled`: a run context
    // goes before the product that it came from.
    pub(crate) context: Context,
    flights: Flights,
    compiled: Compiled,
    not_sync: PhantomData<Cell<()>>,
}

/// What an executor holds besides the product.
pub(crate) struct Context {
    pub run: Box<dyn Run>,
    /// [`Run::is_plain`].
    plain: bool,
    /// Once it was needed.
    scratch: Option<Box<F64Scratch>>,
    /// The self-checks that a pool has counted.
    pub counted: CheckCounts,
    /// The bias that is known, on the device, once it was needed there.
    bias: Option<Box<DeviceTensor>>,
}

impl Context {
    fn open(compiled: &Compiled, queue_depth: usize) -> Result<Self> {
        let mut run = compiled.shared.compiled.open(queue_depth)?;
        Ok(Self { plain: run.is_plain(), run, scratch: None, counted: CheckCounts::default(), bias: None })
    }

    #[inline]
    #[allow(unsafe_code, reason = "see `Run::run_plain`")]
    fn run(&mut self, compiled: &Compiled, inputs: &Inputs<'_>, mut c: AnyViewMut<'_>) -> Result<()> {
        if self.plain
            && let Some((a, b, c)) = plain_operands(compiled.product(), inputs, &mut c)
        {
            // SAFETY: the operands are laid out as described, and a view has the elements of its layout.
            unsafe { self.run.run_plain(a, b, c) };
            return Ok(());
        }
        self.run_checked(compiled, inputs, c)
    }

    fn run_checked(&mut self, compiled: &Compiled, inputs: &Inputs<'_>, c: AnyViewMut<'_>) -> Result<()> {
        let m = compiled.rows(inputs, &c)?;
        let Self { run, bias, .. } = self;
        run.run(args(m, inputs, known_bias(bias.as_deref(), compiled), c))
    }

    fn run_to_tensor(&mut self, compiled: &Compiled, inputs: &Inputs<'_>) -> Result<Tensor<f32>> {
        let (a, product) = (inputs.a.layout(), compiled.product());
        let rows = if product.transpose_a() { a.cols() } else { a.rows() };
        check_rows(product, rows)?;
        let c = product.c_for(rows);
        let mut output = Tensor::zeros_of(&c)?;
        check_layout(Operand::C, &c, output.view().layout())?;
        self.run(compiled, inputs, (&mut output).into())?;
        Ok(output)
    }
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
    /// [`Error::Missing`], [`Error::Unexpected`], [`Error::Rows`], [`Error::Shape`],
    /// [`Error::Type`] and [`Error::Memory`] when an operand does not fit; [`Error::Native`] when the engine fails;
    /// [`Error::WrongResult`] when a self-check finds the result wrong; [`Error::Queue`] while submissions were not
    /// waited for.
    #[inline]
    pub fn run<'i, 'c>(&mut self, inputs: impl IntoInputs<'i>, c: impl IntoViewMut<'c>) -> Result<()> {
        self.flights.check_none()?;
        let c = c.into_view_mut()?;
        inputs.with_inputs(|inputs| self.context.run(&self.compiled, inputs, c))
    }

    /// [`Executor::run`] into a new tensor, which is returned. A run of fewer rows has as many as A.
    ///
    /// # Errors
    /// As [`Executor::run`]; [`Error::Shape`] where C as described has gaps, as a batch has in a run of fewer rows,
    /// [`Error::Type`] where it is not f32; [`Error::OutOfMemory`].
    pub fn run_to_tensor<'i>(&mut self, inputs: impl IntoInputs<'i>) -> Result<Tensor<f32>> {
        self.flights.check_none()?;
        inputs.with_inputs(|inputs| self.context.run_to_tensor(&self.compiled, inputs))
    }

    /// As [`Executor::run`], and returns what the engine says of this run.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn run_observed<'i, 'c>(
        &mut self,
        inputs: impl IntoInputs<'i>,
        c: impl IntoViewMut<'c>,
    ) -> Result<RunObservation> {
        self.flights.check_none()?;
        let c = c.into_view_mut()?;
        inputs.with_inputs(|inputs| {
            let m = self.compiled.rows(inputs, &c)?;
            let Context { run, bias, .. } = &mut self.context;
            run.run_observed(args(m, inputs, known_bias(bias.as_deref(), &self.compiled), c))
        })
    }

    /// Runs an f32 product on f64 operands: they are rounded to f32, and the result is widened.
    ///
    /// Numbers beyond f32's range become infinity. The copies live in the executor and are
    /// allocated by the first such run. A product of f64 ([`crate::ElementTypes::F64`]) computes in float64 instead, by
    /// [`Executor::run`]; of such a product this is the same.
    ///
    /// # Errors
    /// As [`Executor::run`]; [`Error::OutOfMemory`] for the copies.
    pub fn run_f64<'i>(&mut self, inputs: impl IntoInputs<'i>, c: TensorViewMut<'_, f64>) -> Result<()> {
        self.flights.check_none()?;
        inputs.with_inputs(|inputs| self.run_f64_of(inputs, c))
    }

    fn run_f64_of(&mut self, inputs: &Inputs<'_>, mut c: TensorViewMut<'_, f64>) -> Result<()> {
        let product = &self.compiled.shared.product;
        if product.is_f64() {
            return self.context.run(&self.compiled, inputs, c.into());
        }
        let m = check(product, self.compiled.bias(), inputs, c.layout())?;
        for (operand, element) in described_types(product) {
            if element != ElementType::F32 {
                return Err(Error::Type { operand, expected: element, got: ElementType::F64 });
            }
        }
        let Context { run, scratch, bias: resident, .. } = &mut self.context;
        let scratch = scratch.get_or_insert_default();
        let F64Scratch { a, b, bias, residual, c: c_scratch } = &mut **scratch;
        let bias = inputs.bias.map(|view| narrow(Operand::Bias, view, bias)).transpose()?;
        let args = RunArgs {
            m,
            a: narrow(Operand::A, inputs.a, a)?,
            b: inputs.b.map(|view| narrow(Operand::B, view, b)).transpose()?,
            bias: bias.or_else(|| known_bias(resident.as_deref(), &self.compiled)),
            residual: inputs.residual.map(|view| narrow(Operand::Residual, view, residual)).transpose()?,
            c: AnyViewMut::F32(scratch_view(c_scratch, *c.layout())?),
        };
        run.run(args)?;
        widen(&scratch.c, &mut c);
        Ok(())
    }

    /// What the self-checks of this executor did so far: nothing, where they are off.
    #[must_use]
    pub fn checks(&self) -> CheckCounts {
        self.context.run.checks()
    }

    /// The last wrong result that a self-check found.
    #[must_use]
    pub fn last_mismatch(&self) -> Option<&Mismatch> {
        self.context.run.last_mismatch()
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

/// The bias that is known, on the device where it was needed there.
#[inline]
fn known_bias<'v>(resident: Option<&'v DeviceTensor>, compiled: &'v Compiled) -> Option<AnyView<'v>> {
    resident.map(AnyView::from).or_else(|| compiled.bias().map(Weights::view))
}

// Inlined: a copy of the operands takes a tenth of the time of the smallest products.
#[inline]
fn args<'v>(m: usize, inputs: &Inputs<'v>, bias: Option<AnyView<'v>>, c: AnyViewMut<'v>) -> RunArgs<'v> {
    let bias = inputs.bias.or(bias);
    RunArgs { m, a: inputs.a, b: inputs.b, bias, residual: inputs.residual, c }
}

/// The elements of A, of a dynamic B, and of C.
type PlainOperands<'v> = (&'v [f32], Option<&'v [f32]>, &'v mut [f32]);

/// The elements of operands that are all f32 on the host, and those of a plain product, laid out to the last stride as
/// described: what a small product can spend on checks.
#[inline]
fn plain_operands<'v>(
    product: &MatMul,
    inputs: &'v Inputs<'_>,
    c: &'v mut AnyViewMut<'_>,
) -> Option<PlainOperands<'v>> {
    let (AnyView::F32(a), None, None, AnyViewMut::F32(c)) = (&inputs.a, &inputs.bias, &inputs.residual, c)
    else {
        return None;
    };
    let b = match &inputs.b {
        None if product.constant_b() => None,
        Some(AnyView::F32(b)) if !product.constant_b() && b.layout() == product.b() => Some(b.data()),
        _ => return None,
    };
    (a.layout() == product.a() && c.layout() == product.c()).then(|| (a.data(), b, c.data()))
}

/// Checks shapes and presence of every operand, a known bias aside; returns the rows of this run.
pub(crate) fn check(
    product: &MatMul,
    known_bias: Option<&Weights>,
    inputs: &Inputs<'_>,
    c: &Layout,
) -> Result<usize> {
    let m = c.rows();
    check_rows(product, m)?;
    check_layout(Operand::C, &product.c_for(m), c)?;
    check_layout(Operand::A, &product.a_for(m), inputs.a.layout())?;
    match (&inputs.b, product.constant_b()) {
        (Some(b), false) => check_layout(Operand::B, product.b(), b.layout())?,
        (None, true) => {}
        (None, false) => {
            return Err(Error::Missing {
                operand: Operand::B,
                help: "pass it with Inputs::b, or bind weights (MatMul::with_weights)",
            });
        }
        (Some(_), true) => {
            return Err(Error::Unexpected {
                operand: Operand::B,
                help: "B is known since the product was compiled",
            });
        }
    }
    match (&inputs.bias, product.has_bias() && known_bias.is_none()) {
        (Some(bias), true) => check_layout(Operand::Bias, &Layout::row(product.n()), bias.layout())?,
        (None, false) => {}
        (Some(_), false) if known_bias.is_some() => {
            return Err(Error::Unexpected {
                operand: Operand::Bias,
                help: "the bias is known since the product was built",
            });
        }
        (None, true) => {
            return Err(Error::Missing { operand: Operand::Bias, help: "pass it with Inputs::bias" });
        }
        (Some(_), false) => {
            return Err(Error::Unexpected {
                operand: Operand::Bias,
                help: "describe the product with bias(true), or give a layer its bias (Linear::bias)",
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

fn check_rows(product: &MatMul, m: usize) -> Result<()> {
    if m == product.m() || (product.variable_m() && m < product.m()) {
        return Ok(());
    }
    Err(Error::Rows { compiled: product.m(), got: m, variable: product.variable_m() })
}

#[cold]
fn wrong_shape(operand: Operand, expected: &Layout, got: &Layout) -> Error {
    let help = if got.shape() == expected.shape() {
        "copy the operand, or describe the product with its strides (leading_dimension, batch_stride)"
    } else if expected.cols() > 0
        && (got.batch(), got.rows()) == (1, 1)
        && got.cols() > expected.cols()
        && got.cols() == expected.rows().saturating_mul(expected.cols())
    {
        "a slice is one row: pass a matrix as TensorView::new(&data, rows, cols), or TensorViewMut::new"
    } else if operand == Operand::A && got.rows() != expected.rows() && got.cols() == expected.cols() {
        "a run has as many rows as C: pass an A with as many"
    } else {
        "pass the operand as described, or describe the product with these dimensions; weights stored outputs x inputs, as PyTorch does, are the transpose (Weights::transposed)"
    };
    Error::Shape { operand, expected: expected.to_string(), got: got.to_string(), help }
}

/// Checks that 4-bit elements lie in the described order.
fn check_nibbles(product: &MatMul, b: &AnyView<'_>) -> Result<()> {
    match b {
        AnyView::Int4(view) if view.nibble_order() != product.quantization().nibble_order => {
            Err(Error::Description {
                problem: format!(
                    "B's 4-bit elements are in the order {:?}, the description says {:?}",
                    view.nibble_order(),
                    product.quantization().nibble_order
                ),
                help: "set Quantization::nibble_order to that of the data",
            })
        }
        _ => Ok(()),
    }
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
    view.check_on_host(operand)?;
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
            let product = MatMul::new(2, 40, 3).unwrap();
            let weights = Weights::from_tensor(Tensor::<f32>::zeros(3, 40).unwrap());
            let compiled = if constant {
                product.with_weights(&weights).unwrap().compile(&BackendId::CPU).unwrap()
            } else {
                product.compile(&BackendId::CPU).unwrap()
            };
            let weight = compiled.holding();
            let shared_bytes = weight.shared_bytes();
            assert_eq!(weight.own + shared_bytes, size_of::<Shared>() + compiled.report().bytes_held);
            assert_eq!((shared_bytes >= 3 * 40 * size_of::<f32>(), weight.may_change), (constant, false));
        }
    }
}
