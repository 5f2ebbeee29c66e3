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
    /// The pieces of each share.
    count: usize,
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
            if piece < self.count {
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
            task(Pieces { slots, count: pieces, share: index, taken: 0 }, scratch);
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

/// How far a step of a series is.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct Progress {
    /// The next part.
    next: AtomicUsize,
    /// The parts that are complete.
    done: AtomicUsize,
}

/// Counts a part as complete when dropped, also while its panic unwinds: others wait for it.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// How often a thread looks whether a step is complete before it lets others have its core.
const LOOKS: u32 = 20_000;

impl<T: Send> Workers<T> {
    /// Calls `task` once for each part of each step, with all parts of a step complete before any of the next, and then
    /// `after` with the step.
    ///
    /// The pool's threads are woken once for the whole series, and wait for each other between the steps: none waits
    /// for a thread that has not come. A pool of the caller's is called once for each step that has several parts.
    ///
    /// # Errors
    /// As [`Workers::run`].
    pub(crate) fn run_series(
        &mut self,
        team: Option<&Team>,
        parts: &[usize],
        progress: &mut [Progress],
        task: impl Fn(usize, usize, &mut T) + Sync,
        after: impl Fn(usize) + Sync,
    ) -> Result<()> {
        match team {
            Some(Team::Own { .. }) if self.slots.len() > 1 => {
                self.run_together(team, parts, progress, task, after)
            }
            _ => {
                for (step, count) in parts.iter().copied().enumerate() {
                    match team {
                        Some(team) if count > 1 => {
                            let tasks = count.min(self.slots.len());
                            let pieces = count.div_ceil(tasks);
                            self.run(team, tasks, pieces, |taken, scratch| {
                                for (share, piece) in taken {
                                    let part = share * pieces + piece;
                                    if part < count {
                                        task(step, part, scratch);
                                    }
                                }
                            })?;
                        }
                        _ => (0..count).for_each(|part| task(step, part, self.caller())),
                    }
                    after(step);
                }
                Ok(())
            }
        }
    }

    fn run_together(
        &mut self,
        team: Option<&Team>,
        parts: &[usize],
        progress: &mut [Progress],
        task: impl Fn(usize, usize, &mut T) + Sync,
        after: impl Fn(usize) + Sync,
    ) -> Result<()> {
        let Some(team) = team else { return Ok(()) };
        for progress in &mut *progress {
            *progress.next.get_mut() = 0;
            *progress.done.get_mut() = 0;
        }
        let progress = &*progress;
        let tasks = self.slots.len();
        self.run(team, tasks, 1, |pieces, scratch| {
            let is_first = pieces.share == 0;
            for (step, (count, progress)) in parts.iter().copied().zip(progress).enumerate() {
                loop {
                    let part = progress.next.fetch_add(1, Ordering::Relaxed);
                    if part >= count {
                        break;
                    }
                    let done = Done(&progress.done);
                    task(step, part, scratch);
                    drop(done);
                }
                let mut looks = 0;
                while progress.done.load(Ordering::Acquire) < count {
                    looks += 1;
                    if looks < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
                }
                if is_first {
                    after(step);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::backend::cpu::threads::pool::Pool;
    use crate::description::options::ThreadPool;

    /// Runs tasks one after the other, the last first.
    #[derive(Debug)]
    struct Backwards;

    impl ThreadPool for Backwards {
        fn threads(&self) -> usize {
            3
        }

        fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            (0..tasks).rev().for_each(task);
        }
    }

    fn taken(team: &Team, shares: usize, pieces: usize) -> Vec<(usize, usize)> {
        let mut workers = Workers::new(3, || Ok(())).unwrap();
        let taken = Mutex::new(Vec::new());
        // The second run takes them again.
        for _ in 0..2 {
            taken.lock().unwrap().clear();
            workers
                .run(team, shares, pieces, |pieces, ()| {
                    for piece in pieces {
                        taken.lock().unwrap().push(piece);
                    }
                })
                .unwrap();
        }
        taken.into_inner().unwrap()
    }

    #[test]
    fn whoever_comes_first_takes_all_pieces_its_own_before_others() {
        let serial = Team::Callers(Arc::new(Backwards));
        let expected = [(2, 0), (2, 1), (0, 0), (0, 1), (1, 0), (1, 1)];
        assert_eq!(taken(&serial, 3, 2), expected);
        assert_eq!(taken(&serial, 1, 3), [(0, 0), (0, 1), (0, 2)]);
    }

    #[test]
    fn threads_take_every_piece_once() {
        for long in [false, true] {
            let team = Team::Own { pool: Arc::new(Pool::new(3, true).unwrap()), long };
            let mut pieces = taken(&team, 3, 4);
            pieces.sort_unstable();
            let all: Vec<_> = (0..3).flat_map(|share| (0..4).map(move |piece| (share, piece))).collect();
            assert_eq!(pieces, all);
        }
    }
}
