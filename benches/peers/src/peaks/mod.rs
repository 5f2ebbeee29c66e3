//! What the machine can do at most: arithmetic instructions, and reading from each level of memory.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod bandwidth;
mod read;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::Barrier;
use std::time::{Duration, Instant};

pub(crate) use bandwidth::{Bandwidth, measure_bandwidth};
pub(crate) use read::ReadB;

/// A measurement: short enough to fall between what else the machine does, if repeated.
const LONG_ENOUGH: Duration = Duration::from_millis(2);

/// A loop of independent arithmetic instructions.
#[derive(Clone, Copy)]
struct Loop {
    /// What is multiplied: `f32`, `bf16` or `int8`.
    precision: &'static str,
    instruction: &'static str,
    /// Additions and multiplications of one repetition.
    operations: f64,
    /// SAFETY: only where the instruction is available.
    run: unsafe fn(repetitions: usize),
}

/// The rate of one instruction on a number of threads.
#[derive(Debug, Clone)]
pub(crate) struct Rate {
    pub(crate) precision: &'static str,
    pub(crate) instruction: &'static str,
    pub(crate) threads: usize,
    pub(crate) gflops: f64,
}

#[cfg(target_arch = "aarch64")]
use aarch64::{detected, loops};
#[cfg(target_arch = "x86_64")]
use x86::{detected, loops};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn loops() -> Vec<Loop> {
    Vec::new()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected() -> Vec<&'static str> {
    Vec::new()
}

/// The instruction sets that matter to matrix products.
pub(crate) fn instruction_sets() -> Vec<&'static str> {
    detected()
}

/// The best rate of each instruction in `tries` goes.
pub(crate) fn measure_rates(threads: &[usize], tries: usize) -> Vec<Rate> {
    let mut rates = Vec::new();
    for arithmetic in loops() {
        for &threads in threads {
            let operations_per_s = (0..tries).map(|_| rate(arithmetic, threads)).fold(0.0, f64::max);
            rates.push(Rate {
                precision: arithmetic.precision,
                instruction: arithmetic.instruction,
                threads,
                gflops: operations_per_s / 1e9,
            });
        }
    }
    rates
}

/// Operations per second on all threads together.
fn rate(arithmetic: Loop, threads: usize) -> f64 {
    let mut repetitions = 1000;
    loop {
        let elapsed = in_parallel(threads, |_| {
            // SAFETY: `loops` lists what was detected.
            unsafe { (arithmetic.run)(repetitions) };
        });
        if elapsed >= LONG_ENOUGH {
            return arithmetic.operations * repetitions as f64 * threads as f64 / elapsed.as_secs_f64();
        }
        repetitions *= 4;
    }
}

/// Runs `work` on each of `threads` threads at once: the time from the common start to the last end.
fn in_parallel(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    if threads == 1 {
        let start = Instant::now();
        work(0);
        return start.elapsed();
    }
    let barrier = Barrier::new(threads);
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let (work, barrier) = (&work, &barrier);
        let handles: Vec<_> = (0..threads)
            .map(|index| {
                scope.spawn(move || {
                    pin(index);
                    barrier.wait();
                    let start = Instant::now();
                    work(index);
                    (start, Instant::now())
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("the work does not panic")).collect()
    });
    let first = spans.iter().map(|span| span.0).min().expect("at least one thread");
    let last = spans.iter().map(|span| span.1).max().expect("at least one thread");
    last - first
}

/// Keeps this thread on one core, or does nothing where that is not to be had: new threads may
/// start on one core together and be parted too late for a short measurement.
fn pin(index: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: sets of zeros are initialised, and CPU_SET gets the number of a core in the set.
    unsafe {
        let mut allowed = std::mem::zeroed::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed) != 0 {
            return;
        }
        let capacity = 8 * size_of::<libc::cpu_set_t>();
        if let Some(core) = (0..capacity).filter(|&core| libc::CPU_ISSET(core, &allowed)).nth(index) {
            let mut one = std::mem::zeroed::<libc::cpu_set_t>();
            libc::CPU_SET(core, &mut one);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = index;
}
