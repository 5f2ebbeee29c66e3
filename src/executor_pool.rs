//! Executors that many threads share.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::alloc;
use crate::description::options::Threads;
use crate::error::{Error, Result};
use crate::executor::{Compiled, Context, Executor, IntoInputs};
use crate::operands::tensor::Tensor;
use crate::operands::view::IntoViewMut;
use crate::verify::self_check::CheckCounts;

/// Run contexts of [`Compiled::run`] between two runs.
#[derive(Default)]
pub(crate) struct Idle(Mutex<(Vec<Context>, CheckCounts)>);

impl Idle {
    fn lock(&self) -> MutexGuard<'_, (Vec<Context>, CheckCounts)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one used last, whose memory is most likely in a cache.
    pub(crate) fn take(&self) -> Option<Context> {
        self.lock().0.pop()
    }

    pub(crate) fn put(&self, mut context: Context) {
        let mut idle = self.lock();
        count(&mut context, &mut idle.1);
        idle.0.push(context);
    }

    pub(crate) fn checks(&self) -> CheckCounts {
        self.lock().1
    }
}

/// Adds the self-checks of a context since they were counted last.
fn count(context: &mut Context, total: &mut CheckCounts) {
    let CheckCounts { checked, mismatches, reruns } = context.run.checks();
    let counted = &context.counted;
    total.checked += checked - counted.checked;
    total.mismatches += mismatches - counted.mismatches;
    total.reruns += reruns - counted.reruns;
    context.counted = CheckCounts { checked, mismatches, reruns };
}

/// A fixed number of executors for any number of threads: who finds none idle waits.
///
/// All are opened at once, so that runs allocate nothing and need no other errors to be handled than an
/// executor's. Share the pool by reference or in an `Arc`. Waiting blocks the thread: in async code let requests
/// wait for one of [`ExecutorPool::size`] permits of a semaphore, and run where threads may block.
///
/// ```
/// use ane_matmul::{BackendId, Linear, Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::random_normal_f32(64, 32, 0.02, 1)?);
/// let pool = Linear::new(&weights).max_rows(8).compile(&BackendId::CPU)?.pool(2)?;
/// std::thread::scope(|scope| {
///     for seed in 0..8 {
///         let pool = &pool;
///         scope.spawn(move || {
///             let x = Tensor::random_normal_f32(8, 64, 1.0, seed)?;
///             let mut y = Tensor::<f32>::zeros(8, 32)?;
///             pool.run(&x, &mut y)
///         });
///     }
/// });
/// # Ok::<(), ane_matmul::Error>(())
/// ```
pub struct ExecutorPool {
    state: Mutex<State>,
    returned: Condvar,
    compiled: Compiled,
    size: usize,
}

struct State {
    idle: Vec<Executor>,
    checks: CheckCounts,
    /// Executors that did not come back, to be opened anew.
    lost: usize,
    /// Threads that wait: to wake nobody takes a call into the system too.
    waiting: usize,
}

impl ExecutorPool {
    pub(crate) fn new(compiled: &Compiled, size: usize) -> Result<Self> {
        if size == 0 || size > Threads::MAXIMUM {
            let most = Threads::MAXIMUM;
            return Err(Error::Threads {
                problem: format!("a pool of {size} executors; ask for as many as run at once, 1 to {most}"),
            });
        }
        let mut idle = alloc::with_capacity(size, "a pool of executors")?;
        for _ in 0..size {
            idle.push(compiled.executor()?);
        }
        let state = State { idle, checks: CheckCounts::default(), lost: 0, waiting: 0 };
        Ok(Self { state: Mutex::new(state), returned: Condvar::new(), compiled: compiled.clone(), size })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the product with the next executor that is idle.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn run<'i, 'c>(&self, inputs: impl IntoInputs<'i>, c: impl IntoViewMut<'c>) -> Result<()> {
        self.get()?.run(inputs, c)
    }

    /// [`ExecutorPool::run`] into a new tensor, which is returned.
    ///
    /// # Errors
    /// As [`Executor::run_to_tensor`].
    pub fn run_to_tensor<'i>(&self, inputs: impl IntoInputs<'i>) -> Result<Tensor<f32>> {
        self.get()?.run_to_tensor(inputs)
    }

    /// The next executor that is idle, until the guard is dropped; waits for one. A thread that holds one and
    /// asks for another may wait for ever.
    ///
    /// # Errors
    /// As [`Compiled::executor`], where a run panicked and took an executor with it: another is opened in
    /// its place.
    pub fn get(&self) -> Result<PooledExecutor<'_>> {
        let mut state = self.lock();
        loop {
            if let Some(executor) = state.idle.pop() {
                return Ok(self.lend(executor));
            }
            if state.lost > 0 {
                return self.reopen(state);
            }
            state.waiting += 1;
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }

    /// [`ExecutorPool::get`] without waiting: `None` where no executor is idle.
    ///
    /// # Errors
    /// As [`ExecutorPool::get`].
    pub fn try_get(&self) -> Result<Option<PooledExecutor<'_>>> {
        let mut state = self.lock();
        if let Some(executor) = state.idle.pop() {
            return Ok(Some(self.lend(executor)));
        }
        if state.lost > 0 { self.reopen(state).map(Some) } else { Ok(None) }
    }

    fn lend(&self, executor: Executor) -> PooledExecutor<'_> {
        PooledExecutor { executor: Some(executor), pool: self }
    }

    /// Opens one in place of a lost one, while others go on.
    fn reopen(&self, mut state: MutexGuard<'_, State>) -> Result<PooledExecutor<'_>> {
        state.lost -= 1;
        drop(state);
        let opened = self.compiled.executor();
        if opened.is_err() {
            self.give_back(|state| state.lost += 1);
        }
        opened.map(|executor| self.lend(executor))
    }

    fn give_back(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.returned.notify_one();
        }
    }

    /// The number of executors.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The number of executors that are idle now.
    #[must_use]
    pub fn idle(&self) -> usize {
        let state = self.lock();
        state.idle.len() + state.lost
    }

    /// What the self-checks of all executors did so far, as of the last time that each was idle.
    #[must_use]
    pub fn checks(&self) -> CheckCounts {
        self.lock().checks
    }

    /// The product.
    #[must_use]
    pub const fn compiled(&self) -> &Compiled {
        &self.compiled
    }
}

impl fmt::Debug for ExecutorPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorPool")
            .field("compiled", &self.compiled)
            .field("size", &self.size)
            .field("idle", &self.idle())
            .finish_non_exhaustive()
    }
}

/// An [`Executor`] of a pool's, which goes back when this is dropped.
///
/// ```
/// use ane_matmul::{BackendId, Linear, Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::filled(2, 1, 3f32)?);
/// let pool = Linear::new(&weights).compile(&BackendId::CPU)?.pool(2)?;
/// let mut executor = pool.get()?; // nobody else's until it is dropped
/// let mut y = [0f32];
/// executor.run(&[1f32, 2.0], &mut y)?;
/// assert_eq!((y, pool.idle()), ([9.0], 1));
/// drop(executor);
/// assert_eq!(pool.idle(), 2);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug)]
pub struct PooledExecutor<'p> {
    /// Always there until the guard is dropped.
    executor: Option<Executor>,
    pool: &'p ExecutorPool,
}

impl Deref for PooledExecutor<'_> {
    type Target = Executor;

    fn deref(&self) -> &Executor {
        match &self.executor {
            Some(executor) => executor,
            None => unreachable!("taken by `drop` alone"),
        }
    }
}

impl DerefMut for PooledExecutor<'_> {
    fn deref_mut(&mut self) -> &mut Executor {
        match &mut self.executor {
            Some(executor) => executor,
            None => unreachable!("taken by `drop` alone"),
        }
    }
}

impl Drop for PooledExecutor<'_> {
    fn drop(&mut self) {
        let Some(mut executor) = self.executor.take() else { return };
        if std::thread::panicking() || executor.in_flight() > 0 {
            // What a panic left of it is not to be trusted; nor is one of somebody else's that has work to do.
            drop(executor);
            self.pool.give_back(|state| state.lost += 1);
        } else {
            self.pool.give_back(|state| {
                count(&mut executor.context, &mut state.checks);
                state.idle.push(executor);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::backend::CompiledInfo;
    use crate::backend::tests::Scripted;
    use crate::description::matmul::MatMul;
    use crate::description::options::CompileOptions;
    use crate::executor::queue::Submission;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn an_executor_of_somebody_elses_that_has_work_to_do_does_not_stay() {
        let (backends, id) =
            Scripted { info: Some(CompiledInfo::default()), ..Scripted::default() }.registered();
        let product = MatMul::new(1, 1, 1).unwrap();
        let compiled = backends.compile(&id, &product, &CompileOptions::default()).unwrap();
        let pool = compiled.pool(1).unwrap();
        let mut busy = compiled.executor_with_depth(1).unwrap();
        let one = || compiled.memory().upload(&[1f32]).unwrap();
        busy.submit(Submission::new(one(), one()).b(one())).unwrap();
        std::mem::swap(&mut busy, &mut *pool.get().unwrap());
        assert_eq!((pool.idle(), pool.get().unwrap().in_flight()), (1, 0));
    }

    #[test]
    fn who_waits_is_woken_though_a_lost_executor_cannot_be_opened() {
        let scripted = Scripted { info: Some(CompiledInfo::default()), ..Scripted::default() };
        let closed = Arc::clone(&scripted.closed);
        let (backends, id) = scripted.registered();
        let product = MatMul::new(1, 1, 1).unwrap();
        let compiled = backends.compile(&id, &product, &CompileOptions::default()).unwrap();
        let pool = Arc::new(compiled.pool(1).unwrap());
        let (told, outcomes) = channel();
        let executor = pool.get().unwrap();
        for _ in 0..2 {
            let (pool, told) = (Arc::clone(&pool), told.clone());
            std::thread::spawn(move || told.send(pool.get().is_err()));
        }
        let start = Instant::now();
        while pool.lock().waiting < 2 {
            assert!(start.elapsed() < LIMIT, "nobody waits");
            std::thread::yield_now();
        }
        closed.store(true, Ordering::SeqCst);
        let lost = catch_unwind(AssertUnwindSafe(move || {
            let _executor = executor;
            std::panic::resume_unwind(Box::new("a run that panicked"));
        }));
        assert!(lost.is_err());
        // One that is not woken never says anything.
        assert_eq!([0, 1].map(|_| outcomes.recv_timeout(LIMIT)), [Ok(true); 2]);
        assert!(matches!(pool.try_get(), Err(Error::OutOfMemory { .. })));
        closed.store(false, Ordering::SeqCst);
        assert!(pool.try_get().unwrap().is_some());
        assert_eq!(pool.idle(), 1);
    }
}
