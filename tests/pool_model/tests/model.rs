//! Every interleaving, within a bound on preemptions, of a caller and workers that meet as the
//! threads of the CPU engine's pool do, over the very source of its protocol; and copies of that
//! source with faults planted, each of which some model must find.
//!
//! Nobody spins: every wait goes to sleep, so that a wake-up that is missed is a deadlock, which the
//! checker reports. It also reports accesses that race.

use std::process::Command;

use loom::cell::UnsafeCell;
use loom::sync::Arc;

mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
}

#[path = "../../../src/backend/cpu/threads/rendezvous.rs"]
mod rendezvous;

/// The number of a job.
type Job = usize;

trait Protocol: Send + Sync + 'static {
    fn new() -> Self;
    /// # Safety
    /// Nobody else posts before this job is withdrawn.
    unsafe fn post(&self, job: Job, wake: bool);
    fn next_part(&self) -> usize;
    fn withdraw(&self);
    fn join(&self, seen: &mut u64) -> Option<Job>;
    fn leave(&self);
    fn stop(&self);
}

macro_rules! protocol {
    ($rendezvous:ty) => {
        impl $crate::Protocol for $rendezvous {
            fn new() -> Self {
                <$rendezvous>::new()
            }
            unsafe fn post(&self, job: $crate::Job, wake: bool) {
                // SAFETY: by the trait's contract.
                unsafe { <$rendezvous>::post(self, job, wake) }
            }
            fn next_part(&self) -> usize {
                <$rendezvous>::next_part(self)
            }
            fn withdraw(&self) {
                <$rendezvous>::withdraw(self, || false)
            }
            fn join(&self, seen: &mut u64) -> Option<$crate::Job> {
                <$rendezvous>::join(self, seen, || false)
            }
            fn leave(&self) {
                <$rendezvous>::leave(self)
            }
            fn stop(&self) {
                <$rendezvous>::stop(self)
            }
        }
    };
}

protocol!(rendezvous::Rendezvous<Job>);

macro_rules! faults {
    ($($name:ident)*) => {
        $(mod $name {
            use super::sync;

            #[allow(unused, clippy::all, clippy::undocumented_unsafe_blocks, reason = "faults are planted here")]
            mod rendezvous {
                include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
            }

            protocol!(rendezvous::Rendezvous<super::Job>);

            pub(super) fn check() {
                super::check_all::<rendezvous::Rendezvous<super::Job>>();
            }
        })*

        const PLANTED: &[(&str, fn())] = &[$((stringify!($name), $name::check)),*];
    };
}

include!(concat!(env!("OUT_DIR"), "/faults.rs"));

/// The parts of each job.
const PARTS: usize = 2;

/// What a job works on. The checker reports an access by a worker that is not over when the caller
/// has withdrawn the job, and one that begins later.
struct Task {
    over: UnsafeCell<bool>,
    taken: [UnsafeCell<u32>; PARTS],
}

struct Model<P> {
    protocol: P,
    tasks: Vec<Task>,
}

impl<P: Protocol> Model<P> {
    fn take_parts(&self, job: Job) {
        let task = &self.tasks[job];
        loop {
            // SAFETY: the caller writes it when no worker is in the job.
            task.over.with(|over| assert!(!unsafe { *over }, "job {job} was used after its end"));
            let part = self.protocol.next_part();
            if part >= PARTS {
                return;
            }
            // SAFETY: whoever takes a part has it alone.
            task.taken[part].with_mut(|taken| unsafe { *taken += 1 });
        }
    }

    fn work(&self) {
        let mut seen = 0;
        while let Some(job) = self.protocol.join(&mut seen) {
            self.take_parts(job);
            self.protocol.leave();
        }
    }

    fn call(&self, job: Job, wake: bool) {
        // SAFETY: the only caller withdraws each job below.
        unsafe { self.protocol.post(job, wake) };
        self.take_parts(job);
        self.protocol.withdraw();
        let task = &self.tasks[job];
        // SAFETY: the job is withdrawn.
        task.over.with_mut(|over| unsafe { *over = true });
        for (part, taken) in task.taken.iter().enumerate() {
            // SAFETY: as above.
            let taken = taken.with(|taken| unsafe { *taken });
            assert_eq!(taken, 1, "part {part} of job {job} was taken {taken} times");
        }
    }
}

/// `workers` threads, and a caller with `jobs` jobs.
fn check<P: Protocol>(workers: usize, jobs: usize, preemptions: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(move || {
        let task =
            || Task { over: UnsafeCell::new(false), taken: std::array::from_fn(|_| UnsafeCell::new(0)) };
        let model = Arc::new(Model { protocol: P::new(), tasks: (0..jobs).map(|_| task()).collect() });
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                let model = Arc::clone(&model);
                loom::thread::spawn(move || model.work())
            })
            .collect();
        for job in 0..jobs {
            // The first may leave sleepers asleep.
            model.call(job, job > 0);
        }
        model.protocol.stop();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Every worker joins a job that the caller leaves to them: a sleeper that is not woken never does.
fn check_waking<P: Protocol>(workers: usize, preemptions: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        let protocol = Arc::new(P::new());
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                let protocol = Arc::clone(&protocol);
                loom::thread::spawn(move || {
                    assert_eq!(protocol.join(&mut 0), Some(7));
                    protocol.leave();
                })
            })
            .collect();
        // SAFETY: the only job of the only caller.
        unsafe { protocol.post(7, true) };
        for thread in threads {
            thread.join().unwrap();
        }
        protocol.withdraw();
    });
}

fn check_all<P: Protocol>() {
    check_waking::<P>(1, 3);
    check_waking::<P>(2, 2);
    check::<P>(1, 1, 3);
    check::<P>(1, 2, 3);
    check::<P>(2, 1, 2);
    check::<P>(2, 2, 2);
}

type Rendezvous = rendezvous::Rendezvous<Job>;

#[test]
fn stop_alone_sends_workers_home() {
    check::<Rendezvous>(2, 0, 3);
}

#[test]
fn one_worker_and_one_job() {
    check::<Rendezvous>(1, 1, 5);
}

#[test]
fn one_worker_and_two_jobs() {
    check::<Rendezvous>(1, 2, 3);
}

#[test]
fn two_workers_and_one_job() {
    check::<Rendezvous>(2, 1, 2);
}

#[test]
fn a_job_wakes_every_worker() {
    check_waking::<Rendezvous>(1, 5);
    check_waking::<Rendezvous>(2, 2);
}

#[test]
fn two_workers_and_two_jobs() {
    check::<Rendezvous>(2, 2, 2);
}

/// In processes of their own: the checker may abort where it finds something.
#[test]
fn every_planted_fault_is_found() {
    const PLANT: &str = "POOL_MODEL_PLANT";
    if let Ok(name) = std::env::var(PLANT) {
        let (_, check) = PLANTED.iter().find(|(known, _)| *known == name).unwrap();
        check();
        return;
    }
    let mut missed = Vec::new();
    for (name, _) in PLANTED {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_planted_fault_is_found", "--nocapture"])
            .env(PLANT, name)
            .output()
            .unwrap();
        if output.status.success() {
            missed.push(*name);
        } else {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let said = stderr.lines().skip_while(|line| !line.contains("panicked")).nth(1).unwrap_or("");
            println!("{name}: found: {said}");
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
