//! Tells when the machine's cores are the candidates' own: other programs' work and pools that
//! still spin would be measured as somebody's slowness.

use std::fs;
use std::hint::spin_loop;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Waits until no thread of this process spins any more: pools that look for work for a while after
/// a call would take the cores from the next candidate.
pub(crate) fn settle(threads: usize) {
    const STEP: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(300);
    if threads == 1 {
        return;
    }
    let start = Instant::now();
    while start.elapsed() < LONGEST {
        let Some(before_ns) = process_cpu_ns() else { return sleep(Duration::from_millis(50)) };
        let step = Instant::now();
        sleep(STEP);
        let spent_ns = process_cpu_ns().unwrap_or(before_ns) - before_ns;
        if (spent_ns as f64) < 0.2 * step.elapsed().as_nanos() as f64 {
            return;
        }
    }
}

/// The time for which one may wait for other programs to leave the cores, all waits together.
pub(crate) struct Patience {
    left: Duration,
}

impl Patience {
    pub(crate) const fn new(left: Duration) -> Self {
        Self { left }
    }

    /// Waits until `threads` cores are free, or the patience ends.
    pub(crate) fn wait(&mut self, threads: usize) {
        const STEP: Duration = Duration::from_millis(20);
        let start = Instant::now();
        while start.elapsed() < self.left && !has_cores(threads) {
            sleep(STEP);
        }
        // A look at free cores costs nothing of it.
        self.left = self.left.saturating_sub(start.elapsed().saturating_sub(STEP));
    }
}

/// Whether `threads` threads that want to run do run.
fn has_cores(threads: usize) -> bool {
    const LOOK: Duration = Duration::from_millis(2);
    const ENOUGH: f64 = 0.97;
    let share = || {
        let Some(before_ns) = thread_cpu_ns() else { return 1.0 };
        let start = Instant::now();
        while start.elapsed() < LOOK {
            spin_loop();
        }
        let spent_ns = thread_cpu_ns().unwrap_or(before_ns) - before_ns;
        spent_ns as f64 / start.elapsed().as_nanos() as f64
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(share)).collect();
        let own = share();
        others.into_iter().all(|other| other.join().is_ok_and(|share| share > ENOUGH)) && own > ENOUGH
    })
}

/// How long the threads of this process wanted to run and could not, since each was started; 0
/// where the system does not tell.
pub(crate) fn waited_ns() -> u64 {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return 0 };
    let waited = |task: std::io::Result<fs::DirEntry>| {
        // Time on a core, time waiting for one, number of turns.
        fs::read_to_string(task.ok()?.path().join("schedstat"))
            .ok()?
            .split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
    };
    tasks.filter_map(waited).sum()
}

/// CPU time spent by this process and by the whole machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuTime {
    own: Duration,
    all: Duration,
    total: Duration,
}

impl CpuTime {
    /// Nothing where the system does not tell.
    pub(crate) fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let ticks: Vec<f64> = stat
            .lines()
            .next()?
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|tick| tick.parse().ok())
            .collect();
        let [user, nice, system, idle, waiting, irq, soft_irq, stolen] = ticks[..] else { return None };
        let all = user + nice + system + irq + soft_irq + stolen;
        // The kernel's unit for programs is a hundredth of a second.
        let time = |ticks: f64| Duration::from_secs_f64(ticks / 100.0);
        let own = Duration::from_nanos(process_cpu_ns()?);
        Some(Self { own, all: time(all), total: time(all + idle + waiting) })
    }

    /// The share of the machine that others used since `start`, hypervisor included.
    pub(crate) fn others_since(&self, start: &Self) -> f64 {
        let [own, all, total] = [
            self.own.saturating_sub(start.own),
            self.all.saturating_sub(start.all),
            self.total.saturating_sub(start.total),
        ];
        let others = all.saturating_sub(own);
        (others.as_secs_f64() / total.as_secs_f64().max(1e-9)).min(1.0)
    }
}

/// The CPU time of all threads of this process.
fn process_cpu_ns() -> Option<u64> {
    #[cfg(unix)]
    return clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID);
    #[cfg(not(unix))]
    None
}

/// The CPU time of this thread.
fn thread_cpu_ns() -> Option<u64> {
    #[cfg(unix)]
    return clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
    #[cfg(not(unix))]
    None
}

#[cfg(unix)]
fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the result.
    let status = unsafe { libc::clock_gettime(clock, &raw mut time) };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_nsec).ok()?);
    (status == 0).then_some(seconds * 1_000_000_000 + nanoseconds)
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn others_are_what_this_process_is_not() {
        let times = |own, all, total| CpuTime {
            own: Duration::from_secs(own),
            all: Duration::from_secs(all),
            total: Duration::from_secs(total),
        };
        let (start, end) = (times(1, 10, 100), times(2, 14, 110));
        assert_abs_diff_eq!(end.others_since(&start), 0.3, epsilon = 1e-12);
    }

    #[test]
    fn patience_ends() {
        let mut patience = Patience::new(Duration::from_millis(30));
        // More threads than any machine has cores.
        for _ in 0..3 {
            patience.wait(2 * std::thread::available_parallelism().map_or(1, usize::from));
        }
        assert!(patience.left < Duration::from_millis(30));
    }
}
