//! Threads that wait for parts of a product.
//!
//! One caller at a time posts a job; workers and caller take its parts from a shared counter
//! ([`Rendezvous`] has the protocol). Idle threads look for work for a bounded time, then sleep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::place;
use super::rendezvous::Rendezvous;
use crate::error::{Error, Result};

/// How long a thread looks for work before it sleeps: about the time that waking a sleeping thread takes on Linux.
const SPIN: Duration = Duration::from_micros(50);

/// How long a worker looks for the next job of a series: one whose last job came as soon. So much of a core is what
/// a worker takes at most after the last job.
const SERIES: Duration = Duration::from_millis(1);

/// How often a spinning thread looks before it looks at the clock, which costs tens of nanoseconds.
const LOOKS_PER_CLOCK: u32 = 16;

#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
    /// The caller's core.
    core: Option<usize>,
}

struct Shared {
    rendezvous: Rendezvous<Job>,
    panicked: AtomicBool,
}

/// A fixed set of worker threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    busy: AtomicBool,
    start: Instant,
    /// When the last job ended, in nanoseconds from `start`.
    last_end: AtomicU64,
    workers: Vec<JoinHandle<()>>,
    /// Where the workers are: a `fork` leaves them behind.
    process: u32,
}

/// Whether to look again: for `limit` after the first call. It never yields: the scheduler may take that for leave to
/// keep a thread waiting for milliseconds, also when it is woken later.
fn spin(limit: Duration) -> impl FnMut() -> bool {
    let mut looks = 0u32;
    let mut start = None;
    move || {
        looks += 1;
        std::hint::spin_loop();
        if !looks.is_multiple_of(LOOKS_PER_CLOCK) {
            return true;
        }
        start.get_or_insert_with(Instant::now).elapsed() < limit
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's included, or of as many of them as can be started.
    ///
    /// # Errors
    /// Where one cannot be started, if they must be `all`.
    pub(crate) fn new(threads: usize, all: bool) -> Result<Self> {
        let shared = Arc::new(Shared { rendezvous: Rendezvous::new(), panicked: AtomicBool::new(false) });
        let mut pool = Self {
            shared,
            busy: AtomicBool::new(false),
            start: Instant::now(),
            last_end: AtomicU64::new(0),
            workers: Vec::new(),
            process: std::process::id(),
        };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker =
                std::thread::Builder::new().name(format!("ane-matmul-{index}")).spawn(move || shared.work());
            match worker {
                Ok(worker) => pool.workers.push(worker),
                Err(error) if all => {
                    return Err(Error::Threads {
                        problem: format!(
                            "thread {index} of {threads} could not be started ({error}); ask for fewer"
                        ),
                    });
                }
                Err(error) => {
                    log::warn!(
                        "thread {index} of {threads} could not be started ({error}): it is done with fewer"
                    );
                    break;
                }
            }
        }
        Ok(pool)
    }

    /// Whether the workers are in this process.
    pub(crate) fn is_here(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Shared {
    fn work(&self) {
        let mut seen = 0;
        let mut limit = SPIN;
        loop {
            let start = Instant::now();
            let Some(job) = self.rendezvous.join(&mut seen, spin(limit)) else { return };
            let series = start.elapsed() < SERIES;
            limit = match (place::leave(job.core), series) {
                // Looking would keep the caller from its core.
                (false, _) => Duration::ZERO,
                (true, true) => SERIES,
                (true, false) => SPIN,
            };
            if catch_unwind(AssertUnwindSafe(|| self.take_tasks(job))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.rendezvous.leave();
        }
    }

    fn take_tasks(&self, job: Job) {
        loop {
            let index = self.rendezvous.next_part();
            if index >= job.tasks {
                return;
            }
            (job.task)(index);
        }
    }
}

impl Pool {
    /// The threads that work at a time, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` for each index below `tasks`, once. Workers that sleep are woken for a `long` job, and for one
    /// of a series.
    pub(crate) fn run(&self, tasks: usize, long: bool, task: &(dyn Fn(usize) + Sync)) {
        // A second caller, or a task that calls again, works on its own instead of waiting.
        if tasks <= 1 || self.workers.is_empty() || !self.is_here() || self.busy.swap(true, Ordering::Acquire)
        {
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
                core: place::core(),
            }
        };
        let wake = long || self.since_last_end() < SERIES;
        // SAFETY: `busy` keeps other callers away until this job is withdrawn.
        unsafe { self.shared.rendezvous.post(job, wake) };
        let withdraw = Withdraw(self);
        self.shared.take_tasks(job);
        drop(withdraw);
        // A worker's panic is the caller's, like one of its own.
        assert!(!self.shared.panicked.swap(false, Ordering::Relaxed), "a task of the thread pool panicked");
    }

    /// Nanoseconds since the pool was made.
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn since_last_end(&self) -> Duration {
        Duration::from_nanos(self.now_ns().saturating_sub(self.last_end.load(Ordering::Relaxed)))
    }
}

/// Ends a job when dropped, also while a task's panic unwinds.
struct Withdraw<'a>(&'a Pool);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.shared.rendezvous.withdraw(spin(SPIN));
        self.0.last_end.store(self.0.now_ns(), Ordering::Relaxed);
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.is_here() {
            // A lock that was held at the fork stays so.
            self.workers.drain(..).for_each(std::mem::forget);
            return;
        }
        self.shared.rendezvous.stop();
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
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// How often a test repeats what may go wrong once in a while; an interpreter has time for few.
    const TIMES: usize = if cfg!(miri) { 2 } else { 20 };

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(4, true).unwrap();
        for tasks in [0, 1, 2, 3, 17, if cfg!(miri) { 40 } else { 1000 }] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..TIMES {
                pool.run(tasks, true, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == TIMES));
        }
    }

    #[test]
    fn callers_on_several_threads_and_nested_calls_finish() {
        let pool = Pool::new(3, true).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..TIMES {
                        pool.run(5, true, &|_| {
                            pool.run(2, true, &|_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * TIMES * 5 * 2);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2, true).unwrap();
        for _ in 0..TIMES {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(8, true, &|i| assert_ne!(i, 5))));
            assert!(result.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(8, true, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn idle_workers_sleep_and_stop() {
        let pool = Pool::new(3, true).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        pool.run(3, true, &|_| {});
        drop(pool);
    }
}
