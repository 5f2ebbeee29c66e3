//! The tasks of a run, each with memory of its own.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::alloc;
use crate::description::options::ThreadPool;
use crate::error::{Error, Result};

/// Scratch memory for as many tasks as there are threads.
///
/// Anyone may implement [`ThreadPool`] without a line of unsafe code: nothing here is unsound, and no result
/// wrong, whatever an implementation calls.
pub(crate) struct Workers<T> {
    slots: Vec<Slot<T>>,
}

struct Slot<T> {
    /// Whether this run's task has it.
    claimed: AtomicBool,
    scratch: UnsafeCell<T>,
}

// SAFETY: who claims a slot has its memory alone; claims end with the run, which borrows all slots exclusively.
unsafe impl<T: Send> Sync for Slot<T> {}

impl<T: Send> Workers<T> {
    /// # Errors
    /// Where there is no memory, or `scratch` fails.
    pub(crate) fn new(threads: usize, mut scratch: impl FnMut() -> Result<T>) -> Result<Self> {
        let mut slots = alloc::with_capacity(threads, "threads")?;
        for _ in 0..threads {
            slots.push(Slot { claimed: AtomicBool::new(false), scratch: UnsafeCell::new(scratch()?) });
        }
        Ok(Self { slots })
    }

    /// The memory of a run on the caller's thread alone.
    pub(crate) fn caller(&mut self) -> &mut T {
        self.slots[0].scratch.get_mut()
    }

    /// Calls `task` for each index below `tasks`, which are no more than threads.
    ///
    /// # Errors
    /// [`Error::Threads`] where the pool did not call each once.
    pub(crate) fn run(
        &mut self,
        pool: &dyn ThreadPool,
        tasks: usize,
        task: impl Fn(usize, &mut T) + Sync,
    ) -> Result<()> {
        let slots = &mut self.slots[..tasks];
        for slot in &mut *slots {
            *slot.claimed.get_mut() = false;
        }
        let slots = &*slots;
        let (done, unexpected) = (AtomicUsize::new(0), AtomicUsize::new(0));
        pool.run(tasks, &|index| {
            let unclaimed = |slot: &&Slot<T>| !slot.claimed.swap(true, Ordering::Relaxed);
            let Some(slot) = slots.get(index).filter(unclaimed) else {
                unexpected.fetch_add(1, Ordering::Relaxed);
                return;
            };
            // SAFETY: claimed above, by this call alone.
            task(index, unsafe { &mut *slot.scratch.get() });
            done.fetch_add(1, Ordering::Relaxed);
        });
        let (done, unexpected) = (done.into_inner(), unexpected.into_inner());
        if (done, unexpected) != (tasks, 0) {
            return Err(Error::Threads {
                problem: format!(
                    "the pool {pool:?} finished {done} of {tasks} tasks and called {unexpected} that were not due: \
                     `ThreadPool::run` must call each index below the number of tasks once"
                ),
            });
        }
        Ok(())
    }
}
