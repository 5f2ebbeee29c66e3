//! Trying a product or a graph out in a process of its own, which may crash or hang.
//!
//! MPSGraph can abort the process while it loads a product for the Neural Engine, and nothing can catch
//! that (coreai-torch#67). A [`Probe`] starts a helper program, which compiles and runs the product once
//! and verifies the result; whatever happens to the helper, this process learns of it as a
//! [`ProbeVerdict`].
//!
//! The helper is a program of yours whose `main` calls [`serve`]; forking instead would be unsafe beside
//! Metal, whose threads and locks a fork does not copy. The command line is its own helper.
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     // The same backends as in the program that probes, shims included.
//!     ane_matmul::probe::serve(&ane_matmul::Backends::new())
//! }
//! ```

mod child;
mod protocol;
mod serve;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{BackendId, Backends};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::dispatch::profile::{Quarantine, ShapeClass};
use crate::error::{Error, Result};
use crate::graph::Graph;

use child::{Answer, Helper};
pub use serve::serve;

/// Tries products out in a helper process, with a time limit.
///
/// ```no_run
/// use std::time::Duration;
/// use ane_matmul::probe::{Probe, ProbeVerdict};
/// use ane_matmul::{BackendId, CompileOptions, Device, ElementType, ElementTypes, MatMul};
///
/// let f16 = ElementTypes::uniform(ElementType::F16);
/// let product = MatMul::builder(512, 512, 512).types(f16).build()?;
/// let options = CompileOptions::default().device(Device::NeuralEngine);
/// let probe = Probe::new("target/release/my-probe-helper").time_limit(Duration::from_secs(60));
/// match probe.run(&BackendId::MPSGRAPH, &product, &options)? {
///     ProbeVerdict::Passed { .. } => println!("safe to use"),
///     verdict => println!("not to be used: {verdict}"),
/// }
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// With [`CompileOptions::probe`] the first product of each class that asks for the Neural Engine, and every graph that
/// does, is probed before it is compiled.
#[derive(Debug)]
pub struct Probe {
    helper: PathBuf,
    arguments: Vec<OsString>,
    time_limit: Duration,
    every_shim: bool,
    keep_helper: bool,
    /// The verdicts so far.
    known: Mutex<Vec<(Class, ProbeVerdict)>>,
    /// A helper that waits to be asked again.
    waiting: Mutex<Option<Helper>>,
}

/// What a verdict holds for.
#[derive(Debug, PartialEq)]
enum Class {
    Product(BackendId, ShapeClass, Device),
    /// Its key, which is of backend and options too.
    Graph(String),
}

/// What became of a product in a helper process.
///
/// ```
/// use std::time::Duration;
/// use ane_matmul::probe::ProbeVerdict;
/// use ane_matmul::{BackendId, MatMul};
///
/// let verdict = ProbeVerdict::Hung { time_limit: Duration::from_secs(60) }; // as Probe::run returns it
/// assert!(!verdict.passed());
/// let entry = verdict.quarantine(&BackendId::MPSGRAPH, &MatMul::new(64, 64, 64)?);
/// assert_eq!(entry.expect("for the profile").reason, "probe: hung: killed after 60s");
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ProbeVerdict {
    /// It was compiled, it ran, and its result is right, where there is an error bound to hold it to.
    Passed {
        /// How long compiling and the first run took.
        first_run: Duration,
    },
    /// The backend refused it, or returned an error: it harms nobody.
    Failed {
        /// The error, in words.
        message: String,
    },
    /// The result is wrong.
    WrongResult {
        /// The wrong element, in words.
        message: String,
    },
    /// The process ended without an answer, or was killed by a signal.
    Crashed {
        /// The signal that killed it, where there are signals.
        signal: Option<i32>,
        /// The status that it exited with, where it did.
        status: Option<i32>,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// The time limit passed, and the process was killed.
    Hung {
        /// The time limit.
        time_limit: Duration,
    },
}

impl ProbeVerdict {
    /// Whether the product can be used.
    #[must_use]
    pub const fn passed(&self) -> bool {
        matches!(self, Self::Passed { .. })
    }

    /// The entry that keeps `backend` from the class of `product`: for a crash, a hang and a wrong
    /// result. A product that passed or was refused needs none.
    #[must_use]
    pub fn quarantine(&self, backend: &BackendId, product: &MatMul) -> Option<Quarantine> {
        let entry = || Quarantine::here(backend.clone(), Some(product), format!("probe: {self}"));
        self.is_harmful().then(entry)
    }

    const fn is_harmful(&self) -> bool {
        matches!(self, Self::WrongResult { .. } | Self::Crashed { .. } | Self::Hung { .. })
    }
}

impl fmt::Display for ProbeVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed { first_run } => write!(f, "passed, compiled and run in {first_run:?}"),
            Self::Failed { message } => write!(f, "failed: {message}"),
            Self::WrongResult { message } => write!(f, "gave a wrong result: {message}"),
            Self::Crashed { signal: Some(signal), .. } => {
                write!(f, "crashed: killed by signal {signal}")?;
                match signal_name(*signal) {
                    Some(name) => write!(f, " ({name})"),
                    None => Ok(()),
                }
            }
            Self::Crashed { status: Some(status), .. } => {
                write!(f, "crashed: exited with status {status} before it was done")
            }
            Self::Crashed { .. } => f.write_str("crashed"),
            Self::Hung { time_limit } => write!(f, "hung: killed after {time_limit:?}"),
        }
    }
}

/// The names of the signals that crashes end in, with the numbers that Linux and Apple's systems share,
/// and bus errors, which they number differently.
fn signal_name(signal: i32) -> Option<&'static str> {
    const BUS: i32 = if cfg!(target_vendor = "apple") { 10 } else { 7 };
    Some(match signal {
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        BUS => "SIGBUS",
        _ => return None,
    })
}

/// Whether a process may start another. On iOS and its relatives the sandbox forbids it, and WebAssembly
/// has no processes.
const CHILDREN_ALLOWED: bool =
    !(cfg!(all(target_vendor = "apple", not(target_os = "macos"))) || cfg!(target_family = "wasm"));

impl Probe {
    /// [`Probe::time_limit`] where nothing else is said: a compilation for the Neural Engine can take
    /// minutes.
    pub const TIME_LIMIT: Duration = Duration::from_secs(180);

    /// A probe whose helper is this program, which calls [`serve`].
    #[must_use]
    pub fn new(helper: impl Into<PathBuf>) -> Self {
        Self {
            helper: helper.into(),
            arguments: Vec::new(),
            time_limit: Self::TIME_LIMIT,
            every_shim: false,
            keep_helper: false,
            known: Mutex::default(),
            waiting: Mutex::default(),
        }
    }

    /// Adds an argument for the helper.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets how long a helper may take, from its start to its end; for each answer, where one is kept.
    #[must_use]
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// As [`CompileOptions::probe`], tries out every product and graph on a shim, not only those that ask for the
    /// Neural Engine.
    #[must_use]
    pub const fn every_shim(mut self) -> Self {
        self.every_shim = true;
        self
    }

    /// Lets one helper try out product after product until one does not pass, which saves its start and the
    /// opening of its devices. That a backend ends the process while it exits then stays unnoticed. The
    /// helper ends with this value.
    #[must_use]
    pub const fn keep_helper(mut self) -> Self {
        self.keep_helper = true;
        self
    }

    /// Compiles `product` for `backend` in a helper process, runs it once on random numbers and verifies
    /// the result. Blocks until the helper has ended, or with [`Probe::keep_helper`] answered; kills it when
    /// the time limit passes.
    ///
    /// Of `options`, threads (their number), device, `fast_math`, `reduced_precision` and
    /// `allow_known_faults` count. With `CompileOptions::quarantine` a crash, a hang or a wrong result is
    /// noted in the profile.
    ///
    /// # Errors
    /// [`Error::Probe`] when there is no verdict: the system lets no process start another, the helper
    /// cannot be started or is none, or the product is quantised, which no helper is asked for.
    /// [`Error::Io`] when the profile cannot be written.
    pub fn run(
        &self,
        backend: &BackendId,
        product: &MatMul,
        options: &CompileOptions,
    ) -> Result<ProbeVerdict> {
        let request = protocol::Request::new(backend, product, options)?;
        let verdict = self.ask(&request)?;
        log::info!("probe of {product} on {backend}: {verdict}");
        #[cfg(feature = "profile")]
        if let Some(entry) = verdict.quarantine(backend, product) {
            crate::backend::add_quarantine(options, entry)?;
        }
        Ok(verdict)
    }

    /// As [`Probe::run`] for a graph, which the helper is sent whole, with its constants. Its inputs are random numbers,
    /// integers among them 0 and 1, since many are indices; its outputs are verified at one index of the leading
    /// dimension where nodes are independent along it, unless that takes more than 2^35 operations. A variable leading
    /// dimension is at its most.
    ///
    /// `backends` are those of this program, and of the helper.
    ///
    /// # Errors
    /// As [`Probe::run`]; [`Error::UnknownBackend`], [`Error::Unavailable`], [`Error::OutOfMemory`].
    pub fn run_graph(
        &self,
        backends: &Backends,
        backend: &BackendId,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<ProbeVerdict> {
        backends.info(backend)?;
        let verdict = self.ask(&protocol::Request::of_graph(backend, graph, options)?)?;
        log::info!("probe of a graph of {} nodes on {backend}: {verdict}", graph.nodes().len());
        #[cfg(feature = "profile")]
        if verdict.is_harmful() && options.quarantine.is_some() {
            let entry = backends.quarantine_of(backend, graph, options, format!("probe: {verdict}"))?;
            crate::backend::add_quarantine(options, entry)?;
        }
        Ok(verdict)
    }

    fn ask(&self, request: &protocol::Request) -> Result<ProbeVerdict> {
        if !CHILDREN_ALLOWED {
            return Err(Error::Probe {
                problem: format!(
                    "{} lets no process start another, so nothing can be tried out; use backends that need no probe",
                    std::env::consts::OS
                ),
            });
        }
        let start = Instant::now();
        let waiting = || self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = waiting().take();
        let answer = match kept {
            Some(helper) => helper.ask(request, start, self.time_limit)?,
            None => Answer::Gone,
        };
        let answer = match answer {
            Answer::Gone => {
                Helper::start(&self.helper, &self.arguments)?.ask(request, start, self.time_limit)?
            }
            answer @ Answer::Verdict(..) => answer,
        };
        match answer {
            Answer::Verdict(verdict, Some(helper)) if !self.keep_helper => {
                helper.finish(verdict, start, self.time_limit)
            }
            Answer::Verdict(verdict, helper) => {
                if verdict.passed() {
                    *waiting() = helper;
                }
                Ok(verdict)
            }
            Answer::Gone => Err(Error::Probe { problem: "a helper ended before it was asked".into() }),
        }
    }

    /// Probes the class of `product` where that was asked for, once in the life of this value.
    ///
    /// # Errors
    /// As [`Probe::run`]; [`Error::Probed`] for every verdict but that it passed.
    pub(crate) fn require(
        &self,
        backend: &BackendId,
        is_foreign: bool,
        product: &MatMul,
        options: &CompileOptions,
    ) -> Result<()> {
        if !self.is_wanted(is_foreign, options) {
            return Ok(());
        }
        let class = Class::Product(backend.clone(), ShapeClass::of(product), options.device);
        self.require_class(backend, class, || self.run(backend, product, options))
    }

    /// The same for a graph: each is a class by itself.
    pub(crate) fn require_graph(
        &self,
        backends: &Backends,
        backend: &BackendId,
        is_foreign: bool,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<()> {
        if !self.is_wanted(is_foreign, options) {
            return Ok(());
        }
        let class = Class::Graph(backends.graph_key(backend, graph, options)?);
        self.require_class(backend, class, || self.run_graph(backends, backend, graph, options))
    }

    fn is_wanted(&self, is_foreign: bool, options: &CompileOptions) -> bool {
        options.device == Device::NeuralEngine || (self.every_shim && is_foreign)
    }

    fn require_class(
        &self,
        backend: &BackendId,
        class: Class,
        run: impl FnOnce() -> Result<ProbeVerdict>,
    ) -> Result<()> {
        // Held while a helper runs, so that each class is probed once.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|(of, _)| *of == class).map(|(_, verdict)| verdict.clone());
        let verdict = if let Some(verdict) = found {
            verdict
        } else {
            let verdict = run()?;
            known.push((class, verdict.clone()));
            verdict
        };
        if verdict.passed() {
            Ok(())
        } else {
            Err(Error::Probed { backend: backend.clone(), verdict: Box::new(verdict) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_told_with_the_name_of_its_signal() {
        let names = [4, 5, 6, 8, 9, 11, 15, if cfg!(target_vendor = "apple") { 10 } else { 7 }]
            .map(|signal| signal_name(signal).unwrap());
        assert_eq!(
            names,
            ["SIGILL", "SIGTRAP", "SIGABRT", "SIGFPE", "SIGKILL", "SIGSEGV", "SIGTERM", "SIGBUS"]
        );
        assert_eq!(signal_name(64), None);
    }
}
