//! The threads of a run, each with memory of its own, and the pieces of work that they take.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::alloc;
use crate::error::{Error, Result};

use super::Team;

/// Scratch memory for as many tasks as there are threads.
///
/// Anyone may implement [`ThreadPool`] without a line of unsafe code: nothing here is unsound, and no result
/// wrong, whatever an implementation calls.
pub(crate) struct Workers<T> {
    slots: Vec<Slot<T>>,
}

/// In cache lines of its own, of which processors may fetch two at a time.
#[repr(align(128))]
struct Slot<T> {
    /// Whether this run's task has it.
    claimed: AtomicBool,
    /// The next piece of this task's share.
    next: AtomicUsize,
    scratch: UnsafeCell<T>,
}

/// The pieces that a task takes: those of its own share, then those that are left of the others'.
pub(crate) struct Pieces<'a, T> {
    slots: &'a [Slot<T>],
    /// Of each share.
    pieces: usize,
    share: usize,
    /// The shares that are looked at no more.
    taken: usize,
}

impl<T> Iterator for Pieces<'_, T> {
    /// A share and the piece of it.
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        while self.taken < self.slots.len() {
            let piece = self.slots[self.share].next.fetch_add(1, Ordering::Relaxed);
            if piece < self.pieces {
                return Some((self.share, piece));
            }
            self.taken += 1;
            self.share = (self.share + 1) % self.slots.len();
        }
        None
    }
}

// SAFETY: who claims a slot has its memory alone; claims end with the run, which borrows all slots exclusively.
unsafe impl<T: Send> Sync for Slot<T> {}

impl<T: Send> Workers<T> {
    /// # Errors
    /// Where there is no memory, or `scratch` fails.
    pub(crate) fn new(threads: usize, mut scratch: impl FnMut() -> Result<T>) -> Result<Self> {
        let mut slots = alloc::with_capacity(threads, "threads")?;
        for _ in 0..threads {
            slots.push(Slot {
                claimed: AtomicBool::new(false),
                next: AtomicUsize::new(0),
                scratch: UnsafeCell::new(scratch()?),
            });
        }
        Ok(Self { slots })
    }

    /// The memory of a run on the caller's thread alone.
    pub(crate) fn caller(&mut self) -> &mut T {
        self.slots[0].scratch.get_mut()
    }

    /// Calls `task` once for each of `tasks` shares, which are no more than threads: together they take every piece
    /// once, also where a pool runs them one after the other.
    ///
    /// # Errors
    /// [`Error::Threads`] where the pool did not call each once.
    pub(crate) fn run(
        &mut self,
        team: &Team,
        tasks: usize,
        pieces: usize,
        task: impl Fn(Pieces<'_, T>, &mut T) + Sync,
    ) -> Result<()> {
        let slots = &mut self.slots[..tasks];
        for slot in &mut *slots {
            *slot.claimed.get_mut() = false;
            *slot.next.get_mut() = 0;
        }
        let slots = &*slots;
        let (done, unexpected) = (AtomicUsize::new(0), AtomicUsize::new(0));
        team.run(tasks, &|index| {
            let unclaimed = |slot: &&Slot<T>| !slot.claimed.swap(true, Ordering::Relaxed);
            let Some(slot) = slots.get(index).filter(unclaimed) else {
                unexpected.fetch_add(1, Ordering::Relaxed);
                return;
            };
            // SAFETY: claimed above, by this call alone.
            let scratch = unsafe { &mut *slot.scratch.get() };
            task(Pieces { slots, pieces, share: index, taken: 0 }, scratch);
            done.fetch_add(1, Ordering::Relaxed);
        });
        let (done, unexpected) = (done.into_inner(), unexpected.into_inner());
        if (done, unexpected) != (tasks, 0) {
            return Err(Error::Threads {
                problem: format!(
                    "the pool {team:?} finished {done} of {tasks} tasks and called {unexpected} that were not due: \
                     `ThreadPool::run` must call each index below the number of tasks once"
                ),
            });
        }
        Ok(())
    }
}
