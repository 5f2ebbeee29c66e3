//! How one caller and some workers meet over a job: the protocol of the pool, apart from its
//! threads, so that a model checker can run it (`tests/pool_model`).
//!
//! The caller posts a job and later withdraws it. A worker joins a job while it is open and leaves it
//! when no part is left. One word holds the number of the job, whether it is open, and how many
//! workers are in it, so that a worker that comes late finds it closed and touches nothing, and a
//! caller that has withdrawn a job knows that nobody uses it any more. Locks are taken only by those
//! that sleep, and by those that wake them.

use super::sync::{
    AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, UnsafeCell, fence,
};

/// The workers in the job: the low bits of the word.
const JOINED: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
/// One more job.
const JOB: u64 = 1 << 32;

pub(crate) struct Rendezvous<J> {
    word: AtomicU64,
    job: UnsafeCell<Option<J>>,
    next_part: AtomicUsize,
    stop: AtomicBool,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    caller_sleeps: AtomicBool,
    lock: Mutex<()>,
    posted: Condvar,
    left: Condvar,
}

// SAFETY: the job is written while no worker is in it and read by workers that are; the word orders both.
unsafe impl<J: Send + Sync> Sync for Rendezvous<J> {}

impl<J: Copy> Rendezvous<J> {
    pub(crate) fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next_part: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            lock: Mutex::new(()),
            posted: Condvar::new(),
            left: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // It guards nothing but the order of sleeping and waking.
        self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Opens a job for the workers, and wakes those that sleep if it is to `wake` them.
    ///
    /// # Safety
    /// Nobody else posts before this job is withdrawn.
    pub(crate) unsafe fn post(&self, job: J, wake: bool) {
        // SAFETY: the last job is withdrawn, so nobody reads it.
        self.job.with_mut(|slot| unsafe { *slot = Some(job) });
        self.next_part.store(0, Ordering::Relaxed);
        let word = self.word.load(Ordering::Relaxed);
        self.word.store((word & !OPEN).wrapping_add(JOB) | OPEN, Ordering::Release);
        if !wake {
            return;
        }
        // Either this sees the sleeper, or the sleeper sees the job.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            drop(self.lock());
            self.posted.notify_all();
        }
    }

    /// The next part of the job, for callers and workers that are in it.
    pub(crate) fn next_part(&self) -> usize {
        self.next_part.fetch_add(1, Ordering::Relaxed)
    }

    /// Closes the job and waits until every worker has left it. `spin` says whether to look again
    /// before going to sleep.
    pub(crate) fn withdraw(&self, mut spin: impl FnMut() -> bool) {
        self.word.fetch_and(!OPEN, Ordering::AcqRel);
        let busy = || self.word.load(Ordering::Acquire) & JOINED != 0;
        while busy() {
            if spin() {
                continue;
            }
            let mut guard = self.lock();
            self.caller_sleeps.store(true, Ordering::Relaxed);
            // Either this sees the last worker leave, or that one sees the sleeper.
            fence(Ordering::SeqCst);
            while busy() {
                guard = self.left.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            self.caller_sleeps.store(false, Ordering::Relaxed);
        }
    }

    /// Waits for a job that was not seen before and joins it; `None` after [`Rendezvous::stop`].
    pub(crate) fn join(&self, seen: &mut u64, mut spin: impl FnMut() -> bool) -> Option<J> {
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            let word = self.word.load(Ordering::Acquire);
            if is_new(word, *seen) {
                if self.word.compare_exchange(word, word + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    *seen = word / JOB;
                    // SAFETY: the job is not written while a worker is in it.
                    return self.job.with(|slot| unsafe { *slot });
                }
                continue;
            }
            if spin() {
                continue;
            }
            let guard = self.lock();
            self.sleepers.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if !self.stop.load(Ordering::Acquire) && !is_new(self.word.load(Ordering::Acquire), *seen) {
                drop(self.posted.wait(guard));
            }
            self.sleepers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Ends what [`Rendezvous::join`] began.
    pub(crate) fn leave(&self) {
        let before = self.word.fetch_sub(1, Ordering::AcqRel);
        if before & (JOINED | OPEN) == 1 {
            fence(Ordering::SeqCst);
            if self.caller_sleeps.load(Ordering::Relaxed) {
                drop(self.lock());
                self.left.notify_one();
            }
        }
    }

    /// Sends all workers home.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        drop(self.lock());
        self.posted.notify_all();
    }
}

fn is_new(word: u64, seen: u64) -> bool {
    word & OPEN != 0 && word / JOB != seen
}
