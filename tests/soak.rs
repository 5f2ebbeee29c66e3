//! Mixed products from 8 threads through a cache that evicts, self-checks on, on backends that fail and
//! miscalculate at random, and on the CPU engine with threads of its own that products share while they
//! live: no wrong number, no deadlock, memory and threads flat.
//!
//! A program of its own. Without arguments it runs for a few seconds; `scripts/soak --seconds N` for
//! longer. Time passes in rounds: each loads the shims anew, with other faults, and ends with nothing left.

#[path = "support/counting.rs"]
mod counting;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ane_matmul::{
    Activation, BackendId, Backends, CacheLimits, CompileOptions, Error, Executor, Inputs, MatMul,
    OnMismatch, ProductCache, SelfCheck, ShimLibrary, Tensor, Threads, Weights,
};
use ane_matmul_shims::{NEURAL, REFERENCE, TEST_DOUBLE};
use counting::{bytes_live, process};
use fastrand::Rng;

const THREADS: usize = 8;

/// How long a round lasts.
const ROUND: Duration = Duration::from_secs(2);

/// Rounds before memory is first looked at: allocator and lazy statics fill.
const WARM_UP: usize = 2;

/// Bytes of Rust's that may be live after a round beyond those after the warm-up: none that grow.
const LIVE_SLACK: usize = 64 << 10;

/// Resident memory that may be added after the warm-up: what the system's allocator keeps for itself.
const RESIDENT_SLACK: usize = 48 << 20;

/// The watchdog's ticks without a step of a thread that mean a deadlock: 60 s in which this process ran.
const STUCK_TICKS: u32 = 600;
const TICK: Duration = Duration::from_millis(100);

/// What happened, of all rounds.
#[derive(Debug, Default)]
struct Tally {
    runs: AtomicU64,
    executors: AtomicU64,
    on_several_threads: AtomicU64,
    planted_errors: AtomicU64,
    wrong_results_found: AtomicU64,
    reruns: AtomicU64,
    hits: AtomicU64,
    evictions: AtomicU64,
    shims_loaded: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// The faults of a round: of `reference`, which may miscalculate, and of two that only fail.
struct Faults {
    reference: &'static str,
    double: &'static str,
    neural: &'static str,
}

const FAULTS: [Faults; 3] = [
    Faults { reference: "wrong%6", double: "fail%5@compile", neural: "fail%7@run" },
    Faults { reference: "wrong%2", double: "fail%4@executor", neural: "slow:2000000%3@compile" },
    Faults { reference: "wrong%50", double: "fail%3@supports", neural: "fail%3@compile" },
];

/// The products of a soak, and what they must give: sums of small integers, which are exact.
struct Job {
    product: MatMul,
    /// Whether `weights` are bound to it.
    constant: bool,
    a: Tensor<f32>,
    b: Tensor<f32>,
    bias: Vec<f32>,
    expected: Vec<f32>,
    weights: Weights,
}

impl Job {
    fn new(index: usize) -> Self {
        let [m, n, k] = [
            [1, 33, 40],
            // Large enough for three threads of the CPU engine, where `open` allows so many.
            [128, 160, 192],
            [8, 40, 24],
            [17, 65, 30],
            [64, 64, 64],
            [3, 128, 100],
            [1, 7, 300],
            [31, 5, 9],
        ][index % 8];
        let constant = index % 16 >= 8;
        let (bias, relu) = (index.is_multiple_of(3), index.is_multiple_of(5));
        let mut random = Rng::with_seed(index as u64);
        let mut small =
            |rows, cols| Tensor::from_fn(rows, cols, |_, _| f32::from(random.i8(-4..=4))).unwrap();
        let (a, b, addend) = (small(m, k), small(k, n), small(1, n).into_vec());
        let mut expected = Vec::new();
        for row in 0..m {
            for (col, addend) in addend.iter().enumerate() {
                let sum: f32 = (0..k).map(|p| a.data()[row * k + p] * b.data()[p * n + col]).sum();
                let x = sum + if bias { *addend } else { 0.0 };
                expected.push(if relu { x.max(0.0) } else { x });
            }
        }
        let activation = if relu { Activation::Relu } else { Activation::None };
        let product = MatMul::builder(m, n, k).bias(bias).activation(activation);
        let weights = Weights::new(&b).unwrap();
        Self { product: product.build().unwrap(), constant, a, b, bias: addend, expected, weights }
    }

    /// Whether a self-check sees every row: Freivalds' method does, random rows only of one.
    fn is_verified_whole(&self) -> bool {
        self.product.activation() == Activation::None || self.product.m() == 1
    }

    fn run(&self, executor: &mut Executor) -> Result<(), Error> {
        let mut c = Tensor::filled(self.product.m(), self.product.n(), f32::NAN)?;
        let mut inputs = Inputs::new(&self.a);
        if !self.constant {
            inputs = inputs.b(&self.b);
        }
        if self.product.has_bias() {
            inputs = inputs.bias(&self.bias);
        }
        executor.run(inputs, &mut c)?;
        assert_eq!(c.data(), self.expected, "a wrong number: {} on {:?}", self.product, executor.compiled());
        Ok(())
    }
}

/// One of the threads, for a round.
struct Worker<'a> {
    cache: &'a ProductCache,
    jobs: &'a [Job],
    ids: &'a [BackendId; 3],
    tally: &'a Tally,
    random: Rng,
    held: Vec<(usize, Executor, bool)>,
}

impl Worker<'_> {
    /// Whether a fault that was planted explains the error of a backend.
    fn planted(&self, error: &Error, id: &BackendId) {
        let faulty = self.ids.contains(id);
        match error {
            Error::WrongResult { .. } if *id == self.ids[0] => {
                count(&self.tally.wrong_results_found, 1);
            }
            Error::Native(native) if faulty && native.message == "planted fault" => {
                count(&self.tally.planted_errors, 1);
            }
            Error::Refused { refusal, .. } if faulty && refusal.message.contains("planted fault") => {
                count(&self.tally.planted_errors, 1);
            }
            other => panic!("an error that nobody planted, on {id}: {other:?}"),
        }
    }

    fn open(&mut self) {
        // Some more often than others, as in life.
        let index = self.random.usize(..self.jobs.len()).min(self.random.usize(..self.jobs.len()));
        let job = &self.jobs[index];
        let id = match self.random.usize(..6) {
            0 if job.is_verified_whole() => self.ids[0].clone(),
            1 => self.ids[1].clone(),
            2 => self.ids[2].clone(),
            3 => BackendId::AUTO,
            _ => BackendId::CPU,
        };
        let rerun = index.is_multiple_of(2);
        let check = SelfCheck::every_run().failure_probability(1e-12);
        let check = check.on_mismatch(if rerun { OnMismatch::RerunOnCpu } else { OnMismatch::Error });
        let mut options =
            CompileOptions::default().self_check(check).threads(Threads::count(1 + index % 3).unwrap());
        if index.is_multiple_of(4) {
            options = options.instant_start(true);
        }
        // Sometimes weights of which nobody else knows, which go at once.
        let own = Weights::new(&job.b).unwrap();
        let weights = if self.random.usize(..4) == 0 { &own } else { &job.weights };
        let compiled = if job.constant {
            self.cache.compile(&id, &job.product.with_weights(weights).unwrap(), &options)
        } else {
            self.cache.compile(&id, &job.product, &options)
        };
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(error) => return self.planted(&error, &id),
        };
        if compiled.report().threads > Some(1) {
            count(&self.tally.on_several_threads, 1);
        }
        match compiled.executor() {
            Ok(executor) => self.held.push((index, executor, rerun)),
            Err(error) => return self.planted(&error, &id),
        }
        count(&self.tally.executors, 1);
    }

    fn step(&mut self) {
        if self.held.len() < 2 || (self.held.len() < 6 && self.random.usize(..3) == 0) {
            self.open();
        }
        if self.held.is_empty() {
            return;
        }
        let at = self.random.usize(..self.held.len());
        let (index, executor, rerun) = &mut self.held[at];
        let before = executor.checks();
        let result = self.jobs[*index].run(executor);
        let (after, id) = (executor.checks(), executor.compiled().backend().clone());
        count(&self.tally.runs, 1);
        count(&self.tally.reruns, after.reruns - before.reruns);
        if let Err(error) = result {
            assert!(!(*rerun && matches!(error, Error::WrongResult { .. })), "not run again: {error}");
            self.planted(&error, &id);
        } else {
            assert_eq!(after.checked, before.checked + 1, "a run was not verified");
        }
        if self.random.usize(..8) == 0 {
            self.held.swap_remove(at);
        }
    }
}

fn load(path: &str, fault: &str, backends: &mut Backends) -> BackendId {
    // SAFETY: no other thread runs between rounds, and the shim reads it when its device is opened.
    unsafe { std::env::set_var("ANE_REFERENCE_FAULT", fault) };
    // SAFETY: the library is built from this repository.
    let shim = unsafe { ShimLibrary::open(path) }.unwrap();
    backends.add(shim).unwrap()
}

/// Ends the process where a thread takes no step for long.
fn watch(steps: &[AtomicU64], over: &AtomicBool) {
    let mut last = vec![(u64::MAX, 0u32); steps.len()];
    while !over.load(Ordering::Relaxed) {
        // Ticks, not the clock: the process may be stopped for a while.
        std::thread::sleep(TICK);
        for (thread, (steps, (seen, ticks))) in steps.iter().zip(&mut last).enumerate() {
            let now = steps.load(Ordering::Relaxed);
            *ticks = if now == *seen { *ticks + 1 } else { 0 };
            *seen = now;
            if *ticks > STUCK_TICKS {
                eprintln!("soak: a deadlock: thread {thread} stands at step {now}");
                std::process::abort();
            }
        }
    }
}

fn round(number: usize, jobs: &[Job], length: Duration, tally: &Tally) {
    let faults = &FAULTS[number % FAULTS.len()];
    let mut backends = Backends::new();
    backends.set_profile(None);
    let ids = [
        load(REFERENCE, faults.reference, &mut backends),
        load(TEST_DOUBLE, faults.double, &mut backends),
        load(NEURAL, faults.neural, &mut backends),
    ];
    let cache = ProductCache::new(backends, CacheLimits::new().products(40).bytes(2 << 20));
    let steps: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    let (end, over) = (Instant::now() + length, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watchdog = scope.spawn(|| watch(&steps, &over));
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (steps, cache, ids) = (&steps[thread], &cache, &ids);
                scope.spawn(move || {
                    let random = Rng::with_seed((number * THREADS + thread) as u64);
                    let mut worker = Worker { cache, jobs, ids, tally, random, held: Vec::new() };
                    while Instant::now() < end {
                        worker.step();
                        if worker.random.usize(..200) == 0 {
                            // SAFETY: the library is built from this repository.
                            drop(unsafe { ShimLibrary::open(REFERENCE) }.unwrap());
                            count(&tally.shims_loaded, 1);
                        }
                        if worker.random.usize(..2000) == 0 {
                            cache.trim_to(16 << 10);
                        }
                        count(steps, 1);
                    }
                })
            })
            .collect();
        for worker in workers {
            if worker.join().is_err() {
                // It said why; the others would go on.
                std::process::abort();
            }
        }
        over.store(true, Ordering::Relaxed);
        watchdog.join().unwrap();
    });
    let statistics = cache.statistics();
    count(&tally.hits, statistics.hits);
    count(&tally.evictions, statistics.evictions);
}

/// The names of the threads, where the system tells.
fn names() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect::<Vec<_>>().join(", ")
}

/// What is left after a round, once threads that end have ended: live bytes, resident bytes, threads.
fn left(live_before: usize, idle: usize) -> (usize, usize, usize) {
    let mut now = (0, 0, 0);
    for _ in 0..300 {
        let (resident, threads) = process().unwrap_or((0, 1));
        now = (bytes_live(), resident, threads);
        if threads == idle && now.0 <= live_before {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    now
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = arguments.iter().position(|argument| argument == "--seconds").map_or(4, |at| {
        arguments.get(at + 1).and_then(|seconds| seconds.parse().ok()).expect("--seconds wants a number")
    });
    let jobs: Vec<Job> = (0..48).map(Job::new).collect();
    let tally = Tally::default();
    // A BLAS may have threads of its own from the start on, a sanitizer one from the first other on.
    std::thread::spawn(|| ()).join().unwrap();
    // The system still counts a thread for a moment after it was joined.
    std::thread::sleep(Duration::from_millis(200));
    let idle = process().map_or(1, |(_, threads)| threads);
    let length = ROUND.min(Duration::from_secs(seconds) / 4);
    let (start, mut rounds) = (Instant::now(), 0);
    let mut warm = None;
    let mut last = (0, 0, 0);
    while start.elapsed() < Duration::from_secs(seconds) || rounds <= WARM_UP {
        round(rounds, &jobs, length, &tally);
        rounds += 1;
        let allowed = warm.map_or(usize::MAX, |(live, _)| live + LIVE_SLACK);
        last = left(allowed, idle);
        let (live, resident, threads) = last;
        assert_eq!(threads, idle, "threads are left after round {rounds}: {}", names());
        match warm {
            Some((live_warm, resident_warm)) => {
                assert!(
                    live <= live_warm + LIVE_SLACK,
                    "{live} bytes are live after round {rounds}, {live_warm} before"
                );
                assert!(
                    resident <= resident_warm + RESIDENT_SLACK,
                    "{resident} bytes are resident after round {rounds}, {resident_warm} before"
                );
            }
            None if rounds >= WARM_UP => warm = Some((live, resident)),
            None => {}
        }
    }
    let (live_warm, resident_warm) = warm.expect("rounds after the warm-up");
    println!(
        "soak: {rounds} rounds in {:.0} s, {THREADS} threads: {tally:?}; no wrong number",
        start.elapsed().as_secs_f64()
    );
    println!(
        "soak: live bytes {live_warm} then {}, resident {} MiB then {} MiB, threads at the end {}",
        last.0,
        resident_warm >> 20,
        last.1 >> 20,
        last.2
    );
    for (what, number) in [
        ("runs", &tally.runs),
        ("executors on several threads", &tally.on_several_threads),
        ("planted errors", &tally.planted_errors),
        ("wrong results found", &tally.wrong_results_found),
        ("reruns", &tally.reruns),
        ("hits", &tally.hits),
        ("evictions", &tally.evictions),
    ] {
        assert!(number.load(Ordering::Relaxed) > 0, "no {what}: the soak tests nothing");
    }
    println!("1 passed, 0 failed");
}
