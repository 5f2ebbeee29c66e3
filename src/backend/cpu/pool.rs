//! Threads that wait for parts of a product.
//!
//! One caller at a time posts a job; workers and caller take its tasks from a shared counter. A
//! worker joins a job under the lock, and the caller withdraws the job under the lock before it
//! waits for those that joined: a worker that wakes late finds nothing and touches nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::options::ThreadPool;

/// How long an idle thread looks for work before it sleeps: about the time that waking a sleeping
/// thread takes on Linux.
const SPIN: Duration = Duration::from_micros(30);

#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    joined: usize,
    panicked: bool,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Counts jobs, so that an idle worker can look for one without the lock.
    epoch: AtomicU64,
    next: AtomicUsize,
    posted: Condvar,
    finished: Condvar,
}

/// A fixed set of worker threads.
pub(super) struct Pool {
    shared: Arc<Shared>,
    caller: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    pub(super) fn new(threads: usize) -> Result<Self> {
        let mut pool =
            Self { shared: Arc::new(Shared::default()), caller: Mutex::new(()), workers: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("ane-matmul-{index}"))
                .spawn(move || shared.work())
                .map_err(|error| Error::Threads {
                    problem: format!(
                        "thread {index} of {threads} could not be started ({error}); ask for fewer"
                    ),
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Tasks run outside the lock, so a poisoned lock still guards whole state.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn work(&self) {
        let mut seen = 0;
        while let Some(job) = self.join(&mut seen) {
            let panicked = catch_unwind(AssertUnwindSafe(|| self.take_tasks(job))).is_err();
            let mut state = lock(&self.state);
            state.panicked |= panicked;
            state.joined -= 1;
            if state.joined == 0 {
                self.finished.notify_one();
            }
        }
    }

    /// Waits for a job that this worker has not seen; `None` when the pool ends.
    fn join(&self, seen: &mut u64) -> Option<Job> {
        let start = Instant::now();
        while self.epoch.load(Ordering::Acquire) == *seen && start.elapsed() < SPIN {
            std::hint::spin_loop();
        }
        let mut state = lock(&self.state);
        loop {
            if state.stop {
                return None;
            }
            let epoch = self.epoch.load(Ordering::Relaxed);
            if epoch != *seen {
                *seen = epoch;
                if let Some(job) = state.job {
                    state.joined += 1;
                    return Some(job);
                }
            }
            state = self.posted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_tasks(&self, job: Job) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= job.tasks {
                return;
            }
            (job.task)(index);
        }
    }
}

impl ThreadPool for Pool {
    fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        // A second caller, or a task that calls again, works on its own instead of waiting.
        let caller = match self.caller.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if tasks <= 1 || self.workers.is_empty() || caller.is_none() {
            (0..tasks).for_each(task);
            return;
        }
        // SAFETY: only the lifetime changes. Workers use the reference between joining and leaving
        // a job, and `Withdraw` below does not let this function return (or unwind) before every
        // worker that joined has left and no other can join.
        let job = unsafe {
            Job {
                task: std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task),
                tasks,
            }
        };
        {
            let mut state = lock(&self.shared.state);
            self.shared.next.store(0, Ordering::Relaxed);
            state.job = Some(job);
            state.panicked = false;
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.posted.notify_all();
        let withdraw = Withdraw(&self.shared);
        self.shared.take_tasks(job);
        drop(withdraw);
        assert!(!lock(&self.shared.state).panicked, "a task of the thread pool panicked");
    }
}

/// Ends a job when dropped, also while a task's panic unwinds.
struct Withdraw<'a>(&'a Shared);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.job = None;
        while state.joined > 0 {
            state = self.0.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.posted.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics, so joining cannot fail.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(4).unwrap();
        for tasks in [0, 1, 2, 3, 17, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..20 {
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 20));
        }
    }

    #[test]
    fn callers_on_several_threads_and_nested_calls_finish() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(5, &|_| {
                            pool.run(2, &|_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 50 * 5 * 2);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|i| assert_ne!(i, 5))));
            assert!(result.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(8, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn idle_workers_sleep_and_stop() {
        let pool = Pool::new(3).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        pool.run(3, &|_| {});
        drop(pool);
    }
}
