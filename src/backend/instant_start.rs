//! Instant start: the CPU answers while another backend compiles.
//!
//! The background thread leaves its outcome in a cell that runs look into: one load for each run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::refusal::Refusal;
use crate::backend::{Backend, CompiledInfo, CompiledProduct, Run, RunArgs, Submitted};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::error::{Error, Result};
use crate::executor::RunObservation;
use crate::operands::device_tensor::with_host_copies;
use crate::operands::weights::Weights;

/// Where an instant start stands ([`CompileOptions::instant_start`]).
///
/// ```
/// use ane_matmul::{BackendId, CompileOptions, InstantStart, MatMul};
///
/// let options = CompileOptions::default().instant_start(true);
/// let report = MatMul::new(8, 8, 8)?.compile_with(&BackendId::AUTO, &options)?.report();
/// if let Some(InstantStart::Compiling { runs_on_cpu }) = report.instant_start {
///     println!("{} compiles; the CPU has answered {runs_on_cpu} runs", report.backend);
/// }
/// // The CPU needs nobody to answer for it.
/// assert_eq!(report.instant_start.is_none(), report.backend == BackendId::CPU);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstantStart {
    /// The CPU answers; the backend asked for compiles.
    Compiling {
        /// Runs that the CPU has answered.
        runs_on_cpu: u64,
    },
    /// The backend asked for has compiled; each executor moves to it with its next run.
    Switched {
        /// Runs that the CPU has answered.
        runs_on_cpu: u64,
        /// How long the backend took to compile and to open a first executor.
        compile_time: Duration,
    },
    /// The backend asked for could not compile: the CPU stays.
    Failed {
        /// Runs that the CPU has answered.
        runs_on_cpu: u64,
        /// Why, in the words of the error.
        reason: String,
    },
    /// The CPU could not answer, so compiling was waited for.
    Waited {
        /// Why the CPU could not.
        reason: String,
    },
}

/// A backend, and the CPU to answer for it meanwhile.
pub(crate) struct WithInstantStart<'a> {
    /// Or why it cannot answer.
    cpu: Result<&'a Arc<dyn Backend>, String>,
    asked_for: &'a Arc<dyn Backend>,
}

/// The options for the CPU, which cannot honour a wish for another device.
fn for_cpu(options: &CompileOptions) -> CompileOptions {
    CompileOptions { device: Device::Unknown, ..options.clone() }
}

impl<'a> WithInstantStart<'a> {
    pub(crate) fn new(
        cpu: Result<&'a Arc<dyn Backend>>,
        asked_for: &'a Arc<dyn Backend>,
        product: &MatMul,
        options: &CompileOptions,
    ) -> Self {
        let cpu = cpu.map_err(|error| error.to_string()).and_then(|cpu| {
            cpu.supports(product, &for_cpu(options)).map(|()| cpu).map_err(|refusal| refusal.to_string())
        });
        Self { cpu, asked_for }
    }
}

impl Backend for WithInstantStart<'_> {
    fn describe(&self) -> String {
        self.asked_for.describe()
    }

    fn device(&self) -> (Device, String) {
        self.asked_for.device()
    }

    fn is_foreign(&self) -> bool {
        self.asked_for.is_foreign()
    }

    fn supports(&self, product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
        self.asked_for.supports(product, options)
    }

    /// Left to the background, where compiling is.
    fn prepare(&self) -> Result<Option<Duration>> {
        if self.cpu.is_ok() { Ok(None) } else { self.asked_for.prepare() }
    }

    fn compile(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        let cpu = match &self.cpu {
            Ok(cpu) => cpu,
            Err(reason) => {
                log::debug!("no instant start for {product}: the CPU cannot answer: {reason}");
                let compiled = self.asked_for.compile(product, weights, options)?;
                return Ok(Box::new(WaitedFor { compiled, reason: reason.clone() }));
            }
        };
        let shared = Arc::new(Shared {
            outcome: OnceLock::new(),
            cpu: Mutex::new(Some(cpu.compile(product, weights, &for_cpu(options))?.into())),
            runs_on_cpu: AtomicU64::new(0),
        });
        let in_background = Background {
            backend: Arc::clone(self.asked_for),
            product: product.clone(),
            weights: weights.map(Weights::for_product),
            options: options.clone(),
            shared: Arc::downgrade(&shared),
        };
        let thread = std::thread::Builder::new().name("ane-matmul-compile".into());
        if let Err(error) = thread.spawn(move || in_background.compile()) {
            shared.fail(product, format!("no thread could be started to compile in ({error})"));
        }
        Ok(Box::new(InstantProduct(shared)))
    }
}

/// The work of the background thread. It keeps nothing alive for a product that was dropped.
struct Background {
    backend: Arc<dyn Backend>,
    product: MatMul,
    weights: Option<Weights>,
    options: CompileOptions,
    shared: std::sync::Weak<Shared>,
}

impl Background {
    fn compile(self) {
        let Self { backend, product, weights, options, shared } = self;
        if shared.strong_count() == 0 {
            return;
        }
        let compile = || {
            let prepare_time = backend.prepare()?;
            let start = Instant::now();
            let compiled = backend.compile(&product, weights.as_ref(), &options)?;
            // An executor that cannot be opened is a reason not to move either.
            drop(compiled.open(0)?);
            Ok::<_, Error>(Ready { compiled, compile_time: start.elapsed(), prepare_time })
        };
        let result = catch_unwind(AssertUnwindSafe(compile));
        let Some(shared) = shared.upgrade() else {
            log::debug!("{product} was dropped before it was compiled");
            return;
        };
        match result {
            Ok(Ok(ready)) => {
                log::debug!("compiled {product} in the background in {:?}", ready.compile_time);
                shared.switch(ready);
            }
            Ok(Err(error)) => shared.fail(&product, error.to_string()),
            Err(_) => shared.fail(&product, "the compilation panicked".into()),
        }
    }
}

struct Ready {
    compiled: Box<dyn CompiledProduct>,
    compile_time: Duration,
    prepare_time: Option<Duration>,
}

/// What product, executors and background thread have in common.
struct Shared {
    /// The product to move to, or why there is none; empty while it is being compiled.
    outcome: OnceLock<Result<Ready, String>>,
    /// Until the move; executors that have not moved hold what they need of it.
    cpu: Mutex<Option<Arc<dyn CompiledProduct>>>,
    runs_on_cpu: AtomicU64,
}

impl Shared {
    fn cpu(&self) -> Option<Arc<dyn CompiledProduct>> {
        self.cpu.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn switch(&self, ready: Ready) {
        // The background thread alone sets it.
        let _ = self.outcome.set(Ok(ready));
        let cpu = self.cpu.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(cpu);
    }

    fn fail(&self, product: &MatMul, reason: String) {
        log::warn!("{product} stays on the CPU: {reason}");
        let _ = self.outcome.set(Err(reason));
    }

    fn ready(&self) -> Option<&Ready> {
        self.outcome.get()?.as_ref().ok()
    }
}

struct InstantProduct(Arc<Shared>);

impl CompiledProduct for InstantProduct {
    fn open(&self, queue_depth: usize) -> Result<Box<dyn Run>> {
        let cpu = self.0.cpu();
        if let Some(ready) = self.0.ready() {
            return ready.compiled.open(queue_depth);
        }
        // Empty only after the move, which was then under way above.
        match cpu {
            Some(cpu) => {
                let run = cpu.open(queue_depth)?;
                Ok(Box::new(InstantRun { run, moved: false, queue_depth, shared: Arc::clone(&self.0) }))
            }
            None => self.open(queue_depth),
        }
    }

    fn info(&self) -> CompiledInfo {
        let runs_on_cpu = self.0.runs_on_cpu.load(Ordering::Relaxed);
        let cpu = self.0.cpu();
        let (info, state) = match (self.0.outcome.get(), cpu) {
            (Some(Ok(ready)), _) => (
                CompiledInfo { prepare_time: ready.prepare_time, ..ready.compiled.info() },
                InstantStart::Switched { runs_on_cpu, compile_time: ready.compile_time },
            ),
            (outcome, cpu) => {
                let info = cpu.map(|cpu| cpu.info()).unwrap_or_default();
                let state = match outcome {
                    Some(Err(reason)) => InstantStart::Failed { runs_on_cpu, reason: reason.clone() },
                    _ => InstantStart::Compiling { runs_on_cpu },
                };
                (info, state)
            }
        };
        CompiledInfo { instant_start: Some(state), ..info }
    }
}

struct InstantRun {
    // Before `shared`: a run context goes before the product that it came from.
    run: Box<dyn Run>,
    moved: bool,
    queue_depth: usize,
    shared: Arc<Shared>,
}

impl InstantRun {
    /// Moves when it is time for that; whether the CPU still answers.
    fn is_on_cpu(&mut self) -> Result<bool> {
        if !self.moved {
            let Some(ready) = self.shared.ready() else { return Ok(true) };
            // The CPU has computed all that was submitted to it.
            self.run = ready.compiled.open(self.queue_depth)?;
            self.moved = true;
        }
        Ok(false)
    }

    /// A run of the CPU's, on copies of what lies on the device that it stands in for.
    fn run_on_cpu(&mut self, args: RunArgs<'_>) -> Result<RunObservation> {
        with_host_copies(args, |args| self.run.run(args), |()| true)?;
        self.shared.runs_on_cpu.fetch_add(1, Ordering::Relaxed);
        // The CPU's engine says nothing of single runs, and the product may have moved since.
        Ok(RunObservation { observed: Device::Cpu, ..RunObservation::default() })
    }
}

impl Run for InstantRun {
    fn run(&mut self, args: RunArgs<'_>) -> Result<()> {
        if self.is_on_cpu()? { self.run_on_cpu(args).map(drop) } else { self.run.run(args) }
    }

    fn run_observed(&mut self, args: RunArgs<'_>) -> Result<RunObservation> {
        if self.is_on_cpu()? { self.run_on_cpu(args) } else { self.run.run_observed(args) }
    }

    #[allow(unsafe_code, reason = "see `Run::submit`")]
    unsafe fn submit(&mut self, args: RunArgs<'_>) -> Result<Submitted> {
        if self.is_on_cpu()? {
            return Ok(Submitted::Done(self.run_on_cpu(args)));
        }
        // SAFETY: by this function's own contract.
        unsafe { self.run.submit(args) }
    }

    fn wait(&mut self, ticket: u64, timeout: Option<Duration>) -> Result<Option<RunObservation>> {
        self.run.wait(ticket, timeout)
    }
}

/// A product that the CPU could not answer for.
struct WaitedFor {
    compiled: Box<dyn CompiledProduct>,
    reason: String,
}

impl CompiledProduct for WaitedFor {
    fn open(&self, queue_depth: usize) -> Result<Box<dyn Run>> {
        self.compiled.open(queue_depth)
    }

    fn info(&self) -> CompiledInfo {
        let state = InstantStart::Waited { reason: self.reason.clone() };
        CompiledInfo { instant_start: Some(state), ..self.compiled.info() }
    }
}

#[cfg(test)]
mod tests;
