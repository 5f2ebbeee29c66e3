//! How to compile: everything that is not part of the product itself.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::verify::probe::Probe;
use crate::verify::self_check::SelfCheck;

/// Threads that run parts of a product; implement it to share a pool of your own.
///
/// ```
/// use std::sync::Arc;
/// use ane_matmul::{BackendId, CompileOptions, MatMul, ThreadPool, Threads};
///
/// /// Starts its threads anew for each run.
/// #[derive(Debug)]
/// struct Scoped(usize);
///
/// impl ThreadPool for Scoped {
///     fn threads(&self) -> usize {
///         self.0
///     }
///
///     fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
///         std::thread::scope(|scope| {
///             for first in 1..self.0.min(tasks) {
///                 scope.spawn(move || (first..tasks).step_by(self.0).for_each(task));
///             }
///             (0..tasks).step_by(self.0).for_each(task);
///         });
///     }
/// }
///
/// let options = CompileOptions::default().threads(Threads::Pool(Arc::new(Scoped(2))));
/// let compiled = MatMul::new(128, 128, 128)?.compile_with(&BackendId::CPU, &options)?;
/// assert_eq!(compiled.report().threads, Some(2));
/// # use ane_matmul::{Inputs, Tensor};
/// # let (a, b) = (Tensor::filled(128, 128, 1f32)?, Tensor::filled(128, 128, 2f32)?);
/// # assert_eq!(compiled.run_to_tensor(Inputs::new(&a).b(&b))?.data(), [256.0; 128 * 128]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
pub trait ThreadPool: Send + Sync + fmt::Debug {
    /// The threads that work at a time, the caller's included; at least 1.
    fn threads(&self) -> usize;

    /// Calls `task(0)`, ..., `task(tasks - 1)`, each once, on any threads, and returns when all
    /// have returned. `tasks` is at most [`ThreadPool::threads`]. Must not allocate if runs are to allocate nothing.
    ///
    /// A run on a pool that calls another index, one of them twice, or not all is [`Error::Threads`], and what
    /// its C holds then is unspecified.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// The CPU threads that a product may use.
///
/// ```
/// use ane_matmul::{BackendId, CompileOptions, MatMul, Threads};
///
/// let options = CompileOptions::default().threads(Threads::count(2)?); // or Threads::ONE
/// let compiled = MatMul::new(512, 512, 512)?.compile_with(&BackendId::CPU, &options)?;
/// assert_eq!(compiled.report().threads, Some(2));
/// assert!(Threads::Auto.number() >= 1); // those of this process
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Threads {
    /// As many as the process may use: affinity and cgroup limits count
    /// ([`std::thread::available_parallelism`]).
    #[default]
    Auto,
    /// This many, in a pool that the products with as many threads share while any of them lives.
    Count(NonZeroUsize),
    /// A pool of the caller's.
    Pool(Arc<dyn ThreadPool>),
}

impl Threads {
    /// One thread: the caller's.
    pub const ONE: Self = Self::Count(NonZeroUsize::MIN);

    /// The most threads that a product may ask for. Beyond some ten thousand, Linux cannot map the
    /// stacks, and a thread that finds that out aborts the process.
    pub const MAXIMUM: usize = 4096;

    /// `count` threads.
    ///
    /// # Errors
    /// [`Error::Threads`] when `count` is 0 or more than [`Threads::MAXIMUM`].
    pub fn count(count: usize) -> Result<Self> {
        let threads = NonZeroUsize::new(count).map(Self::Count).ok_or_else(|| Error::Threads {
            problem: "expected at least 1 thread, got 0; leave it out to use all that are allowed".into(),
        })?;
        threads.check()?;
        Ok(threads)
    }

    /// An error for more threads than can be started.
    pub(crate) fn check(&self) -> Result<()> {
        // What the system offers takes it some reading of files to say, and is never too much.
        if matches!(self, Self::Auto) || self.number() <= Self::MAXIMUM {
            return Ok(());
        }
        let count = self.number();
        Err(Error::Threads {
            problem: format!(
                "expected at most {} threads, got {count}; leave it out to use all that are allowed",
                Self::MAXIMUM
            ),
        })
    }

    /// The number of threads this stands for on this machine, now.
    #[must_use]
    pub fn number(&self) -> usize {
        match self {
            Self::Auto => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            Self::Count(count) => count.get(),
            Self::Pool(pool) => pool.threads().max(1),
        }
    }
}

/// A kind of device: what was requested, or what was observed.
///
/// ```
/// use ane_matmul::{BackendId, CompileOptions, Device, MatMul};
///
/// let options = CompileOptions::default().device(Device::Cpu);
/// let report = MatMul::new(2, 4, 3)?.compile_with(&BackendId::CPU, &options)?.report();
/// assert_eq!((report.requested, report.observed), (Device::Cpu, Device::Cpu));
/// assert_eq!("neural-engine".parse(), Ok(Device::NeuralEngine)); // as the command line names it
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// As a request: no preference. As an observation: there is no evidence.
    #[default]
    Unknown,
    /// The CPU.
    Cpu,
    /// The GPU.
    Gpu,
    /// The Neural Engine; as a request: make it a candidate.
    NeuralEngine,
    /// More than one of them; only ever observed.
    Mixed,
}

impl Device {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
            Self::NeuralEngine => "neural-engine",
            Self::Mixed => "mixed",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`Device`]'s.
///
/// ```
/// use ane_matmul::Device;
///
/// let error = "npu".parse::<Device>().expect_err("it is called neural-engine here");
/// assert_eq!(error.0, "npu");
/// println!("{error}"); // names those that there are
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device `{0}`; known: unknown, cpu, gpu, neural-engine, mixed")]
pub struct UnknownDevice(pub String);

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        [Self::Unknown, Self::Cpu, Self::Gpu, Self::NeuralEngine, Self::Mixed]
            .into_iter()
            .find(|device| device.name() == name)
            .ok_or_else(|| UnknownDevice(name.to_owned()))
    }
}

/// How to compile a product.
///
/// `threads`, `device`, `fast_math`, `reduced_precision`, `instant_start`, `self_check`,
/// `allow_known_faults` and `quarantine` change what is compiled and are in the key of a
/// [`crate::ProductCache`]; `expected_runs`, with which `auto` chooses, is there with that backend;
/// `time_limit`, `packages` and `probe` are not.
///
/// ```
/// use ane_matmul::{BackendId, CompileOptions, MatMul, SelfCheck, Threads};
///
/// let mut options = CompileOptions::new().threads(Threads::ONE).self_check(SelfCheck::first_run());
/// options.reduced_precision = true;
/// let compiled = MatMul::new(8, 8, 8)?.compile_with(&BackendId::CPU, &options)?;
/// assert_eq!(compiled.report().threads, Some(1));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CompileOptions {
    /// The CPU threads to use.
    pub threads: Threads,
    /// The device asked for; what is then used is observed, not assumed.
    pub device: Device,
    /// How often the product will run, when known: a product that runs once should not pay for a
    /// long compilation.
    pub expected_runs: Option<u64>,
    /// How long compiling may take; an engine that cannot be interrupted ignores it.
    pub time_limit: Option<Duration>,
    /// Reassociation, approximations and sums of fewer bits, beyond the stated error bound, are allowed.
    pub fast_math: bool,
    /// Operands may be truncated to 11 significant bits, as tf32 does; [`accuracy`](crate::verify::accuracy) has the bound.
    pub reduced_precision: bool,
    /// A directory where compiled products are kept for the next start.
    pub packages: Option<PathBuf>,
    /// The CPU answers the first runs while another backend compiles in the background.
    pub instant_start: bool,
    /// Whether and how results are verified.
    pub self_check: SelfCheck,
    /// Products that meet a known fault of the vendor's are not refused ([`crate::known_faults`]).
    pub allow_known_faults: bool,
    /// Tries products and graphs out in a process of their own before they are compiled in this one.
    pub probe: Option<Arc<Probe>>,
    /// The profile that keeps backends in quarantine.
    #[cfg(feature = "profile")]
    pub quarantine: Option<PathBuf>,
}

impl CompileOptions {
    /// The defaults: all allowed threads, any device, full precision.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the CPU threads.
    #[must_use]
    pub fn threads(mut self, threads: Threads) -> Self {
        self.threads = threads;
        self
    }

    /// Sets how long compiling may take.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Allows reassociation and approximations beyond the stated error bound.
    #[must_use]
    pub fn fast_math(mut self, allow: bool) -> Self {
        self.fast_math = allow;
        self
    }

    /// Allows operands to be truncated to 11 significant bits.
    #[must_use]
    pub fn reduced_precision(mut self, allow: bool) -> Self {
        self.reduced_precision = allow;
        self
    }

    /// Sets the device asked for.
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Keeps compiled products in `directory`, so that the next start loads what this one compiled;
    /// it is made where it is not there, for its owner alone.
    ///
    /// A product is found by its description, the contents of its weights, the shim and its version,
    /// the chip, the OS build, and the options that change what is compiled. Whatever does not match,
    /// or is not as it was saved, is compiled again and replaced. Backends that compile in no time
    /// keep nothing and ignore this; `mpsgraph` keeps products that are run with A alone: a constant B, no bias,
    /// no residual. [`crate::Report::from_package`] says what was done, [`crate::Report::note`] why a product was
    /// not kept. To reclaim the space, delete the directory.
    #[must_use]
    pub fn packages(mut self, directory: impl Into<PathBuf>) -> Self {
        self.packages = Some(directory.into());
        self
    }

    /// Answers the first runs on the backend `cpu` while the one asked for compiles in a thread of its
    /// own; off by default.
    ///
    /// Every executor moves over between two of its runs, once the compilation is done; both backends
    /// keep to the error bound of [`accuracy`](crate::verify::accuracy), so results may differ in rounding. When the
    /// compilation fails the CPU stays. [`crate::Report::instant_start`] says where it stands.
    ///
    /// Refusals and wrong operands are errors at once, as without it. For a product that the CPU refuses
    /// compiling is waited for as usual. Until the move both copies of a constant B are in memory. A
    /// compilation whose product was dropped cannot be interrupted: its thread ends with it, and what it
    /// made is thrown away. The thread is not waited for when the process ends.
    #[must_use]
    pub fn instant_start(mut self, instant_start: bool) -> Self {
        self.instant_start = instant_start;
        self
    }

    /// Verifies results as `self_check` says: of products, and of graphs in parts ([self-check.md]).
    ///
    /// [self-check.md]: https://docs.rs/crate/ane-matmul/latest/source/docs/self-check.md
    #[must_use]
    pub fn self_check(mut self, self_check: SelfCheck) -> Self {
        self.self_check = self_check;
        self
    }

    /// Compiles even what meets a known fault of the vendor's ([`crate::known_faults`]): to be verified by
    /// a self-check.
    #[must_use]
    pub fn allow_known_faults(mut self, allow: bool) -> Self {
        self.allow_known_faults = allow;
        self
    }

    /// Tries the first product of each class ([`crate::ShapeClass`]) and every graph that asks for the Neural Engine out in
    /// a process of its own before it is compiled in this one: see [`probe`](crate::verify::probe).
    #[must_use]
    pub fn probe(mut self, probe: Arc<Probe>) -> Self {
        self.probe = Some(probe);
        self
    }

    /// Keeps backends that compute wrong results in quarantine, in the profile at `path`
    /// (`Profile::default_path`).
    ///
    /// What a self-check finds wrong is noted there: backend, class of products
    /// ([`crate::ShapeClass`]) or graph, chip and OS build. What is noted there is refused
    /// ([`crate::RefusalReason::Quarantined`]); `Profile::retain_quarantine` lets it out.
    #[cfg(feature = "profile")]
    #[must_use]
    pub fn quarantine(mut self, path: impl Into<PathBuf>) -> Self {
        self.quarantine = Some(path.into());
        self
    }

    /// Sets the number of runs expected.
    #[must_use]
    pub fn expected_runs(mut self, runs: u64) -> Self {
        self.expected_runs = Some(runs);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_threads_and_too_many_are_errors() {
        assert!(matches!(Threads::count(0), Err(Error::Threads { .. })));
        assert_eq!(Threads::count(3).unwrap().number(), 3);
        assert!(Threads::count(Threads::MAXIMUM).is_ok());
        assert!(matches!(Threads::count(Threads::MAXIMUM + 1), Err(Error::Threads { .. })));
        assert!(Threads::Auto.number() >= 1);
    }

    #[test]
    fn device_names_round_trip() {
        for device in [Device::Unknown, Device::Cpu, Device::Gpu, Device::NeuralEngine, Device::Mixed] {
            assert_eq!(device.name().parse(), Ok(device));
        }
    }
}
