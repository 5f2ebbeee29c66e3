//! Runs that are submitted and waited for.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::backend::Submitted;
use crate::description::matmul::MatMul;
use crate::error::{Error, Operand, Result};
use crate::executor::{
    Compiled, Context, Executor, Inputs, IntoInputs, RunObservation, args, known_bias, wrong_shape,
};
use crate::operands::device_tensor::DeviceTensor;
use crate::operands::view::{AnyView, AnyViewMut, IntoViewMut};

/// The most submissions of an executor that computes while it is submitted to.
const MAX_DEPTH: usize = 1 << 16;

/// The operands of one run, on the device, for [`Executor::submit`]: it owns them while the device works on them.
///
/// Those that are read may be shared, as `Arc<DeviceTensor>`, by any number of submissions.
///
/// ```
/// use std::sync::Arc;
///
/// use ane_matmul::{BackendId, ElementType, MatMul, Submission, Tensor};
///
/// let compiled = MatMul::new(2, 4, 3)?.compile(&BackendId::CPU)?;
/// let memory = compiled.memory();
/// let b = Arc::new(memory.upload(&Tensor::filled(3, 4, 2f32)?)?);
/// let mut executor = compiled.executor_with_depth(2)?;
/// let mut tickets = Vec::new();
/// for value in [1f32, 10.0] {
///     let a = memory.upload(&Tensor::filled(2, 3, value)?)?;
///     let c = memory.zeros(ElementType::F32, 2, 4)?;
///     tickets.push(executor.submit(Submission::new(a, c).b(Arc::clone(&b)))?);
/// }
/// let done = executor.wait(tickets[1])?;
/// assert_eq!(done.submission.c.download::<f32>()?.data(), [60.0; 8]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
#[must_use]
pub struct Submission {
    /// A, as in [`Inputs`].
    pub a: Arc<DeviceTensor>,
    /// B, where it comes with each run.
    pub b: Option<Arc<DeviceTensor>>,
    /// The bias, where it comes with each run.
    pub bias: Option<Arc<DeviceTensor>>,
    /// The residual, where there is one.
    pub residual: Option<Arc<DeviceTensor>>,
    /// The result.
    pub c: DeviceTensor,
    /// The rows of this run, where it has fewer than the operands.
    pub rows: Option<usize>,
}

impl Submission {
    /// A, and where the result goes.
    pub fn new(a: impl Into<Arc<DeviceTensor>>, c: DeviceTensor) -> Self {
        Self { a: a.into(), b: None, bias: None, residual: None, c, rows: None }
    }

    /// B; leave it out where it is known.
    pub fn b(mut self, b: impl Into<Arc<DeviceTensor>>) -> Self {
        self.b = Some(b.into());
        self
    }

    /// The bias; leave it out where it is known.
    pub fn bias(mut self, bias: impl Into<Arc<DeviceTensor>>) -> Self {
        self.bias = Some(bias.into());
        self
    }

    /// The matrix that is added to the product before the activation.
    pub fn residual(mut self, residual: impl Into<Arc<DeviceTensor>>) -> Self {
        self.residual = Some(residual.into());
        self
    }

    /// Runs the first `rows` rows alone, with a product of variable m.
    pub fn rows(mut self, rows: usize) -> Self {
        self.rows = Some(rows);
        self
    }

    fn views(&mut self, product: &MatMul) -> (Inputs<'_>, AnyViewMut<'_>) {
        let rows = self.rows.unwrap_or(usize::MAX);
        let a = AnyView::from(&*self.a);
        let a = if product.transpose_a() { a.part(usize::MAX, rows) } else { a.part(rows, usize::MAX) };
        let inputs = Inputs {
            a,
            b: self.b.as_deref().map(AnyView::from),
            bias: self.bias.as_deref().map(AnyView::from),
            residual: self.residual.as_deref().map(|residual| residual.first_rows(rows)),
        };
        (inputs, AnyViewMut::from(&mut self.c).part(rows, usize::MAX))
    }
}

/// A run that was submitted, to be waited for on the executor that gave the ticket. [`Submission`] has an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    executor: u64,
    number: u64,
}

/// A submission that is complete. [`Submission`] has an example.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completed {
    /// The operands, the result among them.
    pub submission: Submission,
    /// What the engine says of the run.
    pub observation: RunObservation,
}

/// Why a submission was not taken or failed, with its operands.
///
/// ```
/// use ane_matmul::{BackendId, ElementType, MatMul, Submission};
///
/// let compiled = MatMul::new(2, 4, 3)?.compile(&BackendId::CPU)?;
/// let (a, c) = (compiled.memory().zeros(ElementType::F32, 2, 3)?, compiled.memory().zeros(ElementType::F32, 2, 4)?);
/// let failure = compiled.executor_with_depth(1)?.submit(Submission::new(a, c)).expect_err("there is no B");
/// assert!(failure.to_string().contains("B is missing"));
/// let a = failure.submission.expect("given back").a;
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct SubmissionError {
    /// What is wrong.
    #[source]
    pub error: Error,
    /// The operands; `None` for a ticket that the executor does not know.
    pub submission: Option<Box<Submission>>,
}

impl From<SubmissionError> for Error {
    fn from(failure: SubmissionError) -> Self {
        failure.error
    }
}

/// The submissions of an executor that were not waited for.
pub(super) struct Flights {
    /// A number that no other executor has.
    executor: u64,
    depth: usize,
    next: u64,
    /// In the order in which they were submitted.
    in_flight: VecDeque<Flight>,
    /// Of a scope: the first failure that was seen while it went on.
    failed: Option<Error>,
}

struct Flight {
    number: u64,
    state: Submitted,
    /// The operands, where the executor owns them.
    submission: Option<Submission>,
}

impl Flights {
    fn new(depth: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let executor = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { executor, depth, next: 1, in_flight: VecDeque::new(), failed: None }
    }

    #[inline]
    pub(super) fn check_none(&self) -> Result<()> {
        if self.in_flight.is_empty() { Ok(()) } else { Err(self.busy()) }
    }

    #[cold]
    fn busy(&self) -> Error {
        let count = self.in_flight.len();
        Error::Queue {
            problem: format!("submissions in flight: {count}; wait for them, or run on another executor"),
        }
    }

    /// Room for one more.
    fn check_room(&mut self) -> Result<()> {
        let Self { depth, in_flight, .. } = self;
        if in_flight.len() < *depth {
            return in_flight
                .try_reserve(1)
                .map_err(|_| Error::OutOfMemory { what: "a submission", bytes: size_of::<Flight>() });
        }
        Err(Error::Queue {
            problem: if *depth == 0 {
                "this executor takes no submissions; open one with Compiled::executor_with_depth".into()
            } else {
                format!("submissions in flight: {depth}, as many as this executor takes; wait for one first")
            },
        })
    }

    fn push(&mut self, state: Submitted, submission: Option<Submission>) -> Ticket {
        let number = self.next;
        self.next += 1;
        self.in_flight.push_back(Flight { number, state, submission });
        Ticket { executor: self.executor, number }
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        if ticket.executor != self.executor {
            return None;
        }
        self.in_flight.iter().position(|flight| flight.number == ticket.number)
    }
}

impl Executor {
    /// `depth` is 0 without room for submissions.
    pub(super) fn open(compiled: &Compiled, depth: usize) -> Result<Self> {
        let context = Context::open(compiled, depth)?;
        Ok(Self { context, flights: Flights::new(depth), compiled: compiled.clone(), not_sync: PhantomData })
    }

    pub(super) fn open_queue(compiled: &Compiled, depth: usize) -> Result<Self> {
        let most = match compiled.memory().max_queue_depth() {
            0 => MAX_DEPTH,
            most => most,
        };
        if depth == 0 || depth > most {
            let backend = compiled.backend();
            return Err(Error::Queue {
                problem: format!(
                    "a depth of {depth}; an executor of backend `{backend}` takes 1 to {most} submissions"
                ),
            });
        }
        Self::open(compiled, depth)
    }

    /// Starts a run, and returns while the device works on it; waits first where a queue that executors share is full.
    ///
    /// The executor owns the operands until [`Executor::wait`] gives them back. Submissions complete in the order in
    /// which they were submitted, and each fails alone. Dropping the executor waits for them all. A backend without
    /// submissions ([`crate::BackendInfo::max_queue_depth`] is 0) computes before it returns, as does any while the
    /// CPU stands in for it ([`crate::CompileOptions::instant_start`]), and for a run that is to be verified
    /// ([`crate::CompileOptions::self_check`]).
    ///
    /// # Errors
    /// As [`Executor::run`], where an operand does not fit; [`Error::Queue`] when as many are in flight as the
    /// executor takes ([`Compiled::executor_with_depth`]). The operands come back with the error.
    pub fn submit(&mut self, mut submission: Submission) -> Result<Ticket, SubmissionError> {
        let started = self.flights.check_room().and_then(|()| {
            let product = self.compiled.product();
            if let Some(rows) = submission.rows.filter(|&rows| rows > product.m()) {
                return Err(Error::Rows { compiled: product.m(), got: rows, variable: product.variable_m() });
            }
            if let Some(rows) = submission.rows.filter(|&rows| rows > submission.c.layout().rows()) {
                return Err(wrong_shape(Operand::C, &product.c_for(rows), submission.c.layout()));
            }
            let (inputs, c) = submission.views(product);
            // SAFETY: the submission moves into `flights`, where its tensors' memory stays, out of everybody's reach,
            // until it is waited for or `context` is gone, which is dropped first. What is shared in `Arc`s is read
            // alone.
            unsafe { start(&mut self.context, &self.compiled, &inputs, c) }
        });
        match started {
            Ok(state) => Ok(self.flights.push(state, Some(submission))),
            Err(error) => Err(SubmissionError { error, submission: Some(Box::new(submission)) }),
        }
    }

    /// Waits until a submission is complete.
    ///
    /// # Errors
    /// What went wrong with this submission, as [`Executor::run`] has it; [`Error::Queue`] for a ticket that was
    /// waited for already, or is another executor's.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Completed, SubmissionError> {
        loop {
            if let Some(completed) = self.end(ticket, None)? {
                return Ok(completed);
            }
        }
    }

    /// As [`Executor::wait`], for at most `timeout`, which may be zero: `None` while the submission is in flight.
    ///
    /// # Errors
    /// As [`Executor::wait`].
    pub fn wait_timeout(
        &mut self,
        ticket: Ticket,
        timeout: Duration,
    ) -> Result<Option<Completed>, SubmissionError> {
        self.end(ticket, Some(timeout))
    }

    /// Waits for the submission that was made first of those in flight; `None` when there are none.
    ///
    /// `while let Some(done) = executor.wait_next()? {}` waits for all of them, also where a ticket was lost.
    ///
    /// # Errors
    /// What went wrong with this submission, as [`Executor::run`] has it.
    pub fn wait_next(&mut self) -> Result<Option<Completed>, SubmissionError> {
        let executor = self.flights.executor;
        match self.flights.in_flight.front() {
            Some(flight) => {
                let number = flight.number;
                self.wait(Ticket { executor, number }).map(Some)
            }
            None => Ok(None),
        }
    }

    /// The submissions that were not waited for.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.in_flight.len()
    }

    fn end(
        &mut self,
        ticket: Ticket,
        timeout: Option<Duration>,
    ) -> Result<Option<Completed>, SubmissionError> {
        let Some(index) = self.flights.find(ticket) else {
            let problem = "the ticket was waited for already, or is of another executor".into();
            return Err(SubmissionError { error: Error::Queue { problem }, submission: None });
        };
        let Some((result, submission)) = self.land(index, timeout) else { return Ok(None) };
        match (result, submission) {
            (Ok(observation), Some(submission)) => Ok(Some(Completed { submission, observation })),
            (Err(error), submission) => Err(SubmissionError { error, submission: submission.map(Box::new) }),
            // Tickets are given out for submissions that are owned alone.
            (Ok(_), None) => unreachable!("a borrowed submission has no ticket"),
        }
    }

    /// Waits for the submission at `index`, and takes it out; `None` when the time is over.
    fn land(
        &mut self,
        index: usize,
        timeout: Option<Duration>,
    ) -> Option<(Result<RunObservation>, Option<Submission>)> {
        let waited = match self.flights.in_flight[index].state {
            Submitted::Ticket(ticket) => Some(self.context.run.wait(ticket, timeout).transpose()?),
            Submitted::Done(_) => None,
        };
        let Flight { state, submission, .. } = self.flights.in_flight.remove(index)?;
        let result = match (waited, state) {
            (Some(result), _) | (None, Submitted::Done(result)) => result,
            (None, Submitted::Ticket(_)) => unreachable!("it was waited for"),
        };
        Some((result, submission))
    }

    /// Waits for all submissions of a scope; the first failure of any.
    fn drain(&mut self) -> Result<()> {
        while !self.flights.in_flight.is_empty() {
            self.land_first();
        }
        self.flights.failed.take().map_or(Ok(()), Err)
    }

    /// Waits for the oldest submission of a scope.
    fn land_first(&mut self) {
        let result = loop {
            if let Some((result, _)) = self.land(0, None) {
                break result;
            }
        };
        if let Err(error) = result {
            self.flights.failed.get_or_insert(error);
        }
    }

    /// Submits runs on operands that are only borrowed: all are complete when this returns, also when `f` panics.
    ///
    /// ```
    /// use ane_matmul::{BackendId, ElementType, Inputs, MatMul, Tensor};
    ///
    /// let compiled = MatMul::new(2, 4, 3)?.compile(&BackendId::CPU)?;
    /// let memory = compiled.memory();
    /// let (a, b) = (memory.upload(&Tensor::filled(2, 3, 1f32)?)?, memory.upload(&Tensor::filled(3, 4, 2f32)?)?);
    /// let mut outputs = [memory.zeros(ElementType::F32, 2, 4)?, memory.zeros(ElementType::F32, 2, 4)?];
    /// let mut executor = compiled.executor_with_depth(2)?;
    /// executor.scope(|queue| {
    ///     for c in &mut outputs {
    ///         queue.submit(Inputs::new(&a).b(&b), c)?;
    ///     }
    ///     Ok(())
    /// })?;
    /// assert_eq!(outputs[1].download::<f32>()?.data(), [6.0; 8]);
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `f` returns, else the failure of the first submission that failed; then it is not known which of the results
    /// are right. [`Error::Queue`] while other submissions are in flight, and for an executor that takes none.
    ///
    /// # Panics
    /// When `f` does, after it has waited.
    pub fn scope<'env, T>(
        &mut self,
        f: impl for<'scope> FnOnce(&'scope Queue<'scope, 'env>) -> Result<T>,
    ) -> Result<T> {
        self.flights.check_none()?;
        self.flights.check_room()?;
        let queue = Queue { executor: RefCell::new(&mut *self), scope: PhantomData, env: PhantomData };
        let result = catch_unwind(AssertUnwindSafe(|| f(&queue)));
        let drained = self.drain();
        match result {
            Ok(result) => result.and_then(|value| drained.map(|()| value)),
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Where the submissions of an [`Executor::scope`] go, which has an example.
pub struct Queue<'scope, 'env: 'scope> {
    executor: RefCell<&'scope mut Executor>,
    // Neither may be shortened: what was submitted must outlive the scope (`std::thread::Scope` does the same).
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope> Queue<'scope, '_> {
    /// Starts a run on operands in the device's memory, or in buffers that it shares with the host: a
    /// [`DeviceTensor`] or a view of a [`crate::SharedBuffer`]. Waits for the oldest submission where as many are in
    /// flight as the executor takes.
    ///
    /// # Errors
    /// As [`Executor::run`], where an operand does not fit; [`Error::Memory`] for one that lies elsewhere on the host,
    /// with a backend that queues ([`crate::BackendInfo::max_queue_depth`] is not 0). What goes wrong later is the
    /// error of [`Executor::scope`].
    pub fn submit(&'scope self, inputs: impl IntoInputs<'scope>, c: impl IntoViewMut<'scope>) -> Result<()> {
        let mut executor = self.executor.borrow_mut();
        let executor = &mut **executor;
        if executor.flights.in_flight.len() == executor.flights.depth {
            executor.land_first();
        }
        executor.flights.check_room()?;
        let c = c.into_view_mut()?;
        let state = inputs.with_inputs(|inputs| {
            // SAFETY: the operands are borrowed for 'scope, and `Executor::scope` waits for all before that ends.
            unsafe { start(&mut executor.context, &executor.compiled, inputs, c) }
        })?;
        executor.flights.push(state, None);
        Ok(())
    }
}

impl fmt::Debug for Queue<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

/// # Safety
/// As [`crate::backend::Run::submit`].
unsafe fn start(
    context: &mut Context,
    compiled: &Compiled,
    inputs: &Inputs<'_>,
    c: AnyViewMut<'_>,
) -> Result<Submitted> {
    let (m, memory) = (compiled.rows(inputs, &c)?, compiled.memory());
    let Context { run, bias, .. } = context;
    if memory.max_queue_depth() > 0 {
        memory.check_held(inputs, &c)?;
        if let Some(known) = compiled.bias().filter(|_| bias.is_none()) {
            *bias = Some(Box::new(memory.upload(known.view())?));
        }
    }
    // SAFETY: by the function's own contract; a bias that is known lives in `context`, which drops it after `run`, or in
    // `compiled`, which outlives `context`.
    unsafe { run.submit(args(m, inputs, known_bias(bias.as_deref(), compiled), c)) }
}
