//! Instant start: the CPU answers while another backend compiles.
//!
//! The background thread leaves its outcome in a cell that runs look into: one load for each run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::refusal::Refusal;
use crate::backend::{
    Backend, CompiledInfo, CompiledProduct, GraphInfo, GraphProgram, GraphRun, Run, RunArgs, Submitted,
};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::error::Result;
use crate::executor::RunObservation;
use crate::graph::{Array, Graph};
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
        let cpu = cpu.compile(product, weights, &for_cpu(options))?;
        let shared = Shared::new(product.to_string(), cpu.into());
        let (backend, product, options) = (Arc::clone(self.asked_for), product.clone(), options.clone());
        let weights = weights.map(Weights::for_product);
        shared.compile_in_background(move || {
            let prepare_time = backend.prepare()?;
            let start = Instant::now();
            let compiled = backend.compile(&product, weights.as_ref(), &options)?;
            // An executor that cannot be opened is a reason not to move either.
            drop(compiled.open(0)?);
            Ok(Ready { compiled, compile_time: start.elapsed(), prepare_time })
        });
        Ok(Box::new(InstantProduct(shared)))
    }
}

struct Ready<P: ?Sized> {
    compiled: Box<P>,
    compile_time: Duration,
    prepare_time: Option<Duration>,
}

/// What product (or graph), executors and background thread have in common.
struct Shared<P: ?Sized> {
    /// What it is called in the log.
    name: String,
    /// What to move to, or why there is nothing; empty while it is being compiled.
    outcome: OnceLock<Result<Ready<P>, String>>,
    /// Until the move; executors that have not moved hold what they need of it.
    cpu: Mutex<Option<Arc<P>>>,
    runs_on_cpu: AtomicU64,
}

impl<P: ?Sized + Send + Sync + 'static> Shared<P> {
    fn new(name: String, cpu: Arc<P>) -> Arc<Self> {
        Arc::new(Self {
            name,
            outcome: OnceLock::new(),
            cpu: Mutex::new(Some(cpu)),
            runs_on_cpu: AtomicU64::new(0),
        })
    }

    /// Compiles in a thread, which keeps nothing alive for what was dropped.
    fn compile_in_background(self: &Arc<Self>, compile: impl FnOnce() -> Result<Ready<P>> + Send + 'static) {
        let shared = Arc::downgrade(self);
        let work = move || {
            if shared.strong_count() == 0 {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(compile));
            let Some(shared) = shared.upgrade() else {
                log::debug!("a product was dropped before it was compiled");
                return;
            };
            match result {
                Ok(Ok(ready)) => {
                    log::debug!("compiled {} in the background in {:?}", shared.name, ready.compile_time);
                    shared.switch(ready);
                }
                Ok(Err(error)) => shared.fail(error.to_string()),
                Err(_) => shared.fail("the compilation panicked".into()),
            }
        };
        if let Err(error) = std::thread::Builder::new().name("ane-matmul-compile".into()).spawn(work) {
            self.fail(format!("no thread could be started to compile in ({error})"));
        }
    }

    fn cpu(&self) -> Option<Arc<P>> {
        self.cpu.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn switch(&self, ready: Ready<P>) {
        // The background thread alone sets it.
        let _ = self.outcome.set(Ok(ready));
        let cpu = self.cpu.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(cpu);
    }

    fn fail(&self, reason: String) {
        log::warn!("{} stays on the CPU: {reason}", self.name);
        let _ = self.outcome.set(Err(reason));
    }

    fn ready(&self) -> Option<&Ready<P>> {
        self.outcome.get()?.as_ref().ok()
    }

    fn state(&self) -> InstantStart {
        let runs_on_cpu = self.runs_on_cpu.load(Ordering::Relaxed);
        match self.outcome.get() {
            Some(Ok(ready)) => InstantStart::Switched { runs_on_cpu, compile_time: ready.compile_time },
            Some(Err(reason)) => InstantStart::Failed { runs_on_cpu, reason: reason.clone() },
            None => InstantStart::Compiling { runs_on_cpu },
        }
    }
}

/// A graph compiled by `asked_for`, with `cpu` to answer meanwhile, if it refuses no node.
pub(crate) fn compile_graph(
    cpu: Result<&Arc<dyn Backend>>,
    asked_for: &Arc<dyn Backend>,
    graph: &Graph,
    options: &CompileOptions,
) -> Result<Box<dyn GraphProgram>> {
    let cpu = cpu.map_err(|error| error.to_string()).and_then(|cpu| {
        match cpu.refused_nodes(graph, &for_cpu(options)) {
            Ok(refused) => refused.first().map_or(Ok(cpu), |refused| Err(refused.to_string())),
            Err(error) => Err(error.to_string()),
        }
    });
    let cpu = match cpu {
        Ok(cpu) => cpu.compile_graph(graph, &for_cpu(options))?,
        Err(reason) => {
            asked_for.prepare()?;
            let program = asked_for.compile_graph(graph, options)?;
            return Ok(Box::new(WaitedFor { compiled: program, reason }));
        }
    };
    let shared = Shared::new(format!("a graph of {} nodes", graph.nodes.len()), cpu.into());
    let (backend, graph, options) = (Arc::clone(asked_for), graph.clone(), options.clone());
    shared.compile_in_background(move || {
        let prepare_time = backend.prepare()?;
        let start = Instant::now();
        let compiled = backend.compile_graph(&graph, &options)?;
        drop(compiled.open(false)?);
        Ok(Ready { compiled, compile_time: start.elapsed(), prepare_time })
    });
    Ok(Box::new(InstantGraph(shared)))
}

struct InstantGraph(Arc<Shared<dyn GraphProgram>>);

impl GraphProgram for InstantGraph {
    fn open(&self, keep_values: bool) -> Result<Box<dyn GraphRun>> {
        let cpu = self.0.cpu();
        match (self.0.ready(), cpu) {
            (Some(ready), _) => ready.compiled.open(keep_values),
            (None, Some(cpu)) => {
                let run = cpu.open(keep_values)?;
                Ok(Box::new(InstantGraphRun { run, moved: false, keep_values, shared: Arc::clone(&self.0) }))
            }
            // Empty only after the move.
            (None, None) => self.open(keep_values),
        }
    }

    fn shows_values(&self) -> bool {
        match (self.0.ready(), self.0.cpu()) {
            (Some(ready), _) => ready.compiled.shows_values(),
            (None, cpu) => cpu.is_some_and(|cpu| cpu.shows_values()),
        }
    }

    fn info(&self) -> GraphInfo {
        let cpu = self.0.cpu();
        let state = self.0.state();
        let info = match (self.0.ready(), cpu) {
            (Some(ready), _) => ready.compiled.info(),
            (None, cpu) => cpu.map(|cpu| cpu.info()).unwrap_or_default(),
        };
        GraphInfo { instant_start: Some(state), ..info }
    }
}

struct InstantGraphRun {
    // Before `shared`: a run context goes before what it came from.
    run: Box<dyn GraphRun>,
    moved: bool,
    keep_values: bool,
    shared: Arc<Shared<dyn GraphProgram>>,
}

impl GraphRun for InstantGraphRun {
    fn run(
        &mut self,
        leading: usize,
        inputs: &[&Array],
        outputs: &mut [&mut Array],
        step_ns: Option<&mut [u64]>,
    ) -> Result<()> {
        if let Some(ready) = self.shared.ready().filter(|_| !self.moved) {
            self.run = ready.compiled.open(self.keep_values)?;
            self.moved = true;
        }
        self.run.run(leading, inputs, outputs, step_ns)?;
        if !self.moved {
            self.shared.runs_on_cpu.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn value(&self, value: usize) -> Result<Option<Array>> {
        self.run.value(value)
    }
}

struct InstantProduct(Arc<Shared<dyn CompiledProduct>>);

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
        let cpu = self.0.cpu();
        let state = self.0.state();
        let info = match (self.0.ready(), cpu) {
            (Some(ready), _) => CompiledInfo { prepare_time: ready.prepare_time, ..ready.compiled.info() },
            (None, cpu) => cpu.map(|cpu| cpu.info()).unwrap_or_default(),
        };
        CompiledInfo { instant_start: Some(state), ..info }
    }
}

struct InstantRun {
    // Before `shared`: a run context goes before the product that it came from.
    run: Box<dyn Run>,
    moved: bool,
    queue_depth: usize,
    shared: Arc<Shared<dyn CompiledProduct>>,
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

/// What the CPU could not answer for.
struct WaitedFor<P: ?Sized> {
    compiled: Box<P>,
    reason: String,
}

impl GraphProgram for WaitedFor<dyn GraphProgram> {
    fn open(&self, keep_values: bool) -> Result<Box<dyn GraphRun>> {
        self.compiled.open(keep_values)
    }

    fn shows_values(&self) -> bool {
        self.compiled.shows_values()
    }

    fn info(&self) -> GraphInfo {
        let state = InstantStart::Waited { reason: self.reason.clone() };
        GraphInfo { instant_start: Some(state), ..self.compiled.info() }
    }
}

impl CompiledProduct for WaitedFor<dyn CompiledProduct> {
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
