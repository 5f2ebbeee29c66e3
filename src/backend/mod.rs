//! Backends: what every engine offers, and the registry of those that are here.

use std::borrow::Cow;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::backend::instant_start::{InstantStart, WithInstantStart};
use crate::backend::refusal::{NodeRefusal, Refusal, RefusalReason};
use crate::description::linear::Linear;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::description::with_weights::{MatMulWithWeights, Product};
use crate::dispatch::profile::{Profile, Quarantine};
use crate::error::{Error, Result};
use crate::executor::{Arithmetic, Compiled, RunObservation};
use crate::graph::bytes::Contents;
use crate::graph::compiled::CompiledGraph;
use crate::graph::{Array, Graph, PassReport};
use crate::operands::device_tensor::{DeviceMemory, Storage};
use crate::operands::shared_buffer::{ALIGNMENT_BYTES, BufferMemory, HostMemory, SharedBuffer};
use crate::operands::view::{AnyView, AnyViewMut};
use crate::operands::weights::Weights;
use crate::verify::self_check::{CheckCounts, Mismatch};

pub(crate) mod auto;
#[cfg(any(feature = "blas", target_vendor = "apple"))]
#[allow(unsafe_code, reason = "CBLAS is a foreign interface")]
mod blas;
#[allow(unsafe_code, reason = "kernels and thread pool")]
pub(crate) mod cpu;
#[cfg(any(feature = "blas", target_vendor = "apple"))]
mod epilogue;
#[cfg(any(feature = "blas", target_vendor = "apple"))]
mod f32_only;
pub(crate) mod instant_start;
pub(crate) mod known_faults;
pub(crate) mod refusal;
#[allow(unsafe_code, reason = "shims are foreign code")]
mod shim;
#[cfg(test)]
pub(crate) mod tests;

use auto::ProfileSlot;
pub(crate) use cpu::isa;
pub use shim::{ShimDevice, ShimLibrary};

#[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
pub use blas::set_blas_threads;
#[cfg(all(test, feature = "blas", unix, not(target_vendor = "apple")))]
pub(crate) use blas::tests::THREADS as BLAS_THREADS;
#[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
pub(crate) use blas::threads as blas_threads;

/// The name of a backend: an open set, since loaded shims bring their own.
///
/// ```
/// use ane_matmul::{BackendId, Error, MatMul};
///
/// let id = BackendId::new("cpu"); // from a command line, say
/// assert_eq!(id, BackendId::CPU);
/// let unknown = MatMul::new(2, 4, 3)?.compile(&BackendId::new("gpu"));
/// assert!(matches!(unknown, Err(Error::UnknownBackend { name, .. }) if name == "gpu"));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(Cow<'static, str>);

impl BackendId {
    /// The built-in CPU engine: always here.
    pub const CPU: Self = Self(Cow::Borrowed("cpu"));
    /// The system's CBLAS, with the feature `blas`.
    pub const BLAS: Self = Self(Cow::Borrowed("blas"));
    /// Apple's Accelerate.
    pub const ACCELERATE: Self = Self(Cow::Borrowed("accelerate"));
    /// Own kernels on Apple GPUs.
    pub const METAL: Self = Self(Cow::Borrowed("metal"));
    /// Apple's MPSGraph.
    pub const MPSGRAPH: Self = Self(Cow::Borrowed("mpsgraph"));

    /// A backend by its name; whether it is known shows when it is used.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self(Cow::Owned(name.into()))
    }

    /// Not an engine of its own: the fastest of the others for each product, by measurement; see
    /// [`Backends::explain`].
    pub const AUTO: Self = Self(Cow::Borrowed("auto"));

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An engine that compiles products.
pub(crate) trait Backend: Send + Sync {
    /// What it is, in a few words: library, version, kernel.
    fn describe(&self) -> String;
    /// The device it runs on, and its name.
    fn device(&self) -> (Device, String);
    /// Whether results come from a stand-in for hardware, which is never to be timed.
    fn is_test_double(&self) -> bool {
        false
    }
    /// Whether it is no part of this crate and may take the process with it.
    fn is_foreign(&self) -> bool {
        false
    }
    fn supports(&self, product: &MatMul, options: &CompileOptions) -> Result<(), Refusal>;
    /// The CPU threads that a product compiled with `options` may use.
    fn threads(&self, options: &CompileOptions) -> usize {
        options.threads.number()
    }
    /// Initialises once what all products have in common, before the first is compiled; how long that took.
    fn prepare(&self) -> Result<Option<Duration>> {
        Ok(None)
    }
    /// The most runs of an executor that the engine takes before the first is complete; 0 where a submission is
    /// computed at once.
    fn max_queue_depth(&self) -> usize {
        0
    }
    /// What address and length of memory to be wrapped must be multiples of; `None` where memory cannot
    /// be wrapped.
    fn wrap_alignment_bytes(&self) -> Option<usize> {
        Some(1)
    }
    /// The device, as an address that no other has; 0 where all its memory is the host's.
    fn device_key(&self) -> usize {
        0
    }
    /// Whether memory of the host's lies where runs compute on it without a copy, as submissions require.
    fn holds(&self, _start: *const u8, _bytes: usize) -> bool {
        true
    }
    /// Whether the device has memory of its own.
    fn copies_host_operands(&self) -> bool {
        false
    }
    /// Memory that the device sees too, all zero.
    fn buffer(&self, bytes: usize) -> Result<Box<dyn BufferMemory>> {
        Ok(Box::new(HostMemory::zeroed(bytes, "a shared buffer")?))
    }
    /// Memory that runs compute on without a copy: of undefined contents where the host does not see it, else all
    /// zero.
    fn allocate(&self, bytes: usize) -> Result<Storage> {
        self.buffer(bytes).map(Storage::Host)
    }
    /// # Safety
    /// As [`Backends::wrap_memory`]; address and length are aligned.
    #[allow(unsafe_code, reason = "the memory is the caller's")]
    unsafe fn wrap(&self, start: NonNull<u8>, bytes: usize) -> Result<Box<dyn BufferMemory>> {
        // SAFETY: by this function's own contract.
        Ok(Box::new(unsafe { HostMemory::borrowed(start, bytes) }))
    }
    /// `weights` are there exactly when B is constant, and fit the product.
    fn compile(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>>;
    /// The nodes of `graph` that it does not run; without any it compiles the graph. An error where the graph is
    /// refused as a whole, or where the backend could not say.
    fn refused_nodes(&self, graph: &Graph, _options: &CompileOptions) -> Result<Vec<NodeRefusal>> {
        Ok(NodeRefusal::of_all(graph, "this backend has no graphs; use `cpu`"))
    }
    /// The graph after each pass that changes it.
    fn passes(&self, _graph: &Graph) -> Vec<PassReport> {
        Vec::new()
    }
    /// Compiles a graph of which it refuses no node.
    fn compile_graph(&self, _graph: &Graph, _options: &CompileOptions) -> Result<Box<dyn GraphProgram>> {
        Err(Error::graph("this backend has no graphs".into()))
    }
}

/// What a backend makes of a graph.
pub(crate) trait GraphProgram: Send + Sync {
    /// To `keep_values` is to leave in place what [`GraphRun::value`] asks for.
    fn open(&self, keep_values: bool) -> Result<Box<dyn GraphRun>>;
    /// Whether its runs that keep values show them, and give the same bits as those that do not.
    fn shows_values(&self) -> bool {
        false
    }
    fn info(&self) -> GraphInfo;
}

/// What a backend says of a compiled graph.
#[derive(Debug, Clone, Default)]
pub(crate) struct GraphInfo {
    /// For each node the step that computes it; `None` for one that costs nothing.
    pub step_of: Vec<Option<usize>>,
    /// A name for each step.
    pub steps: Vec<String>,
    /// Packed weights and constants of the backend's own.
    pub weight_bytes: usize,
    /// The parts of these that graphs and products have in common, by their addresses.
    pub shared: Vec<(usize, usize)>,
    /// What each executor has for values.
    pub arena_bytes: usize,
    /// What all values would take next to each other.
    pub values_bytes: usize,
    pub threads: Option<usize>,
    pub instant_start: Option<InstantStart>,
}

/// The run context of one thread.
pub(crate) trait GraphRun: Send {
    /// Inputs and outputs are as the graph describes them, with `leading` of a variable leading dimension, or with more
    /// in outputs. What is beyond it there is set to 0. `step_ns` takes the time of each step, where it is asked for.
    fn run(
        &mut self,
        leading: usize,
        inputs: &[&Array],
        outputs: &mut [&mut Array],
        step_ns: Option<&mut [u64]>,
    ) -> Result<()>;
    /// A value of the last run that is neither an input nor an output, where values are kept and it was not skipped.
    fn value(&self, _value: usize) -> Result<Option<Array>> {
        Ok(None)
    }
}

/// What a backend makes of a product.
pub(crate) trait CompiledProduct: Send + Sync {
    /// A run context that takes up to `queue_depth` submissions at once.
    fn open(&self, queue_depth: usize) -> Result<Box<dyn Run>>;
    fn info(&self) -> CompiledInfo;
}

/// What a backend says of a compiled product.
#[derive(Debug, Clone, Default)]
pub(crate) struct CompiledInfo {
    pub bytes_held: usize,
    /// The parts of `bytes_held` that products have in common, by their addresses: B's elements and its scales.
    pub shared: [Option<(usize, usize)>; 2],
    pub observed: Device,
    pub threads: Option<usize>,
    pub note: Option<String>,
    pub from_package: bool,
    pub instant_start: Option<InstantStart>,
    pub arithmetic: Arithmetic,
    /// How long the backend was initialised, where that was not done before it was asked to compile.
    pub prepare_time: Option<Duration>,
}

/// Operands that fit the description, for one run.
#[derive(Debug)]
pub(crate) struct RunArgs<'a> {
    pub m: usize,
    pub a: AnyView<'a>,
    pub b: Option<AnyView<'a>>,
    pub bias: Option<AnyView<'a>>,
    pub residual: Option<AnyView<'a>>,
    pub c: AnyViewMut<'a>,
}

impl RunArgs<'_> {
    /// The same operands for what [`MatMul::as_rows`] made of their product.
    fn into_rows_of(self, product: &MatMul) -> Self {
        Self {
            m: product.m(),
            a: self.a.with_layout(*product.a()),
            b: self.b.map(|b| b.with_layout(*product.b())),
            bias: self.bias,
            residual: self.residual.zip(product.residual()).map(|(view, layout)| view.with_layout(*layout)),
            c: self.c.with_layout(*product.c()),
        }
    }
}

/// The run context of one thread.
pub(crate) trait Run: Send {
    fn run(&mut self, args: RunArgs<'_>) -> Result<()>;
    /// Whether [`Run::run_plain`] computes runs whose operands are all f32 on the host and as described.
    fn is_plain(&mut self) -> bool {
        false
    }
    /// Runs on the elements of such operands; B is left out where it is constant.
    ///
    /// # Safety
    /// [`Run::is_plain`] is true, and the elements cover the layouts of the description.
    #[allow(unsafe_code, reason = "what surrounds the smallest products takes as long as they do")]
    unsafe fn run_plain(&mut self, _a: &[f32], _b: Option<&[f32]>, _c: &mut [f32]) {
        debug_assert!(false, "no runs are plain");
    }
    /// Runs, and says what the engine observed.
    fn run_observed(&mut self, args: RunArgs<'_>) -> Result<RunObservation> {
        self.run(args).map(|()| RunObservation::default())
    }
    /// Starts a run; or computes it, where the engine takes none that are not waited for.
    ///
    /// # Safety
    /// Until [`Run::wait`] has ended a [`Submitted::Ticket`], or `self` has been dropped, the operands stay where they
    /// are, nobody else touches C, and nobody writes to the others.
    #[allow(unsafe_code, reason = "the engine works on after the operands' borrows have ended")]
    unsafe fn submit(&mut self, args: RunArgs<'_>) -> Result<Submitted> {
        Ok(Submitted::Done(self.run_observed(args)))
    }
    /// Waits for a ticket that was not ended, for at most `timeout`: `None` when the time is over. Anything else, an error
    /// included, ends it.
    fn wait(&mut self, _ticket: u64, _timeout: Option<Duration>) -> Result<Option<RunObservation>> {
        Err(Error::Queue { problem: "this engine gives no tickets".into() })
    }
    /// What self-checks of these runs did: nothing, where there are none.
    fn checks(&self) -> CheckCounts {
        CheckCounts::default()
    }
    /// The last wrong result that one found.
    fn last_mismatch(&self) -> Option<&Mismatch> {
        None
    }
}

/// A run that was submitted.
#[derive(Debug)]
pub(crate) enum Submitted {
    /// The engine computes it.
    Ticket(u64),
    /// It was computed at once.
    Done(Result<RunObservation>),
}

#[derive(Clone)]
struct Entry {
    id: BackendId,
    state: Result<Arc<dyn Backend>, String>,
}

/// What [`Backends::available`] says of one backend.
///
/// ```
/// use ane_matmul::{BackendId, available};
///
/// for status in available() {
///     match status.state {
///         Ok(info) => println!("{}: {}", status.id, info.description),
///         Err(reason) => println!("{} is not here: {reason}", status.id),
///     }
/// }
/// assert!(available().iter().any(|status| status.id == BackendId::CPU && status.state.is_ok()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendStatus {
    /// Its name.
    pub id: BackendId,
    /// `Ok` when it is here, else the reason why it is not.
    pub state: Result<BackendInfo, String>,
}

/// What is known of a backend that is here.
///
/// ```
/// use ane_matmul::{BackendId, Backends, Device};
///
/// let info = Backends::new().info(&BackendId::CPU)?;
/// println!("{} on {}", info.description, info.device_name);
/// assert_eq!((info.device, info.is_test_double), (Device::Cpu, false));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendInfo {
    /// What it is, in a few words: library, version, kernel.
    pub description: String,
    /// The kind of device it is bound to; unknown when it decides for itself.
    pub device: Device,
    /// The device's name.
    pub device_name: String,
    /// Whether results come from a stand-in for hardware, which is never to be timed.
    pub is_test_double: bool,
    /// What address and length of memory must be multiples of for [`Backends::wrap_memory`]; `None`
    /// where the backend cannot wrap memory.
    pub wrap_alignment_bytes: Option<usize>,
    /// The most submissions of an executor at once ([`Compiled::executor_with_depth`]); 0 where a run is computed while
    /// it is submitted.
    pub max_queue_depth: usize,
    /// Whether operands on the host are copied to memory of the device's own and back by every run: keep them in
    /// [`DeviceTensor`](crate::DeviceTensor)s.
    pub copies_host_operands: bool,
}

/// The backends that a program can use: the built-in ones and the shims that it loaded.
///
/// Cheap to clone; holds no global state.
///
/// ```
/// use ane_matmul::{BackendId, Backends, CompileOptions, MatMul};
///
/// let backends = Backends::new(); // Backends::add takes a shim
/// let (product, options) = (MatMul::new(2, 4, 3)?, CompileOptions::default());
/// backends.supports(&BackendId::CPU, &product, &options)?; // an error says why not
/// let compiled = backends.compile(&BackendId::CPU, &product, &options)?;
/// assert_eq!(compiled.backend(), &BackendId::CPU);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Clone)]
pub struct Backends {
    entries: Vec<Entry>,
    profile: ProfileSlot,
}

impl Default for Backends {
    fn default() -> Self {
        Self::new()
    }
}

impl Backends {
    /// Every backend that this build knows, available or not.
    #[must_use]
    pub fn new() -> Self {
        Self { entries: built_in(), profile: ProfileSlot::default() }
    }

    /// Every known backend, and whether it is here or why not.
    #[must_use]
    pub fn available(&self) -> Vec<BackendStatus> {
        self.entries
            .iter()
            .map(|entry| BackendStatus {
                id: entry.id.clone(),
                state: entry.state.as_ref().map(|backend| info(backend.as_ref())).map_err(Clone::clone),
            })
            .collect()
    }

    /// Adds a shim with its first device under its own name, which is returned. When the device cannot be opened, it
    /// is listed with the reason, like any backend that is not here, and may be added again.
    ///
    /// # Errors
    /// [`Error::DuplicateBackend`] when a backend of that name is known already.
    pub fn add(&mut self, shim: ShimLibrary) -> Result<BackendId> {
        self.add_device(shim, 0)
    }

    /// Adds one device of a shim, of those that [`ShimLibrary::devices`] lists: the first under the shim's name, `cuda`
    /// say, others as `cuda:1`, `cuda:2`. One that is not there is listed with that as its reason.
    ///
    /// # Errors
    /// As [`Backends::add`].
    pub fn add_device(&mut self, shim: ShimLibrary, index: u32) -> Result<BackendId> {
        let id = shim.device_id(index);
        let built_in = || BUILT_IN.entries.iter().any(|entry| entry.id == id);
        match self.entries.iter().position(|entry| entry.id == id) {
            _ if id == BackendId::AUTO => return Err(Error::DuplicateBackend { backend: id }),
            // The device could not be opened before.
            Some(index) if self.entries[index].state.is_err() && !built_in() => {
                self.entries.remove(index);
            }
            Some(_) => return Err(Error::DuplicateBackend { backend: id }),
            None => {}
        }
        self.entries.push(shim_entry(id.clone(), Ok(shim), index));
        Ok(id)
    }

    #[cfg(test)]
    pub(crate) fn add_for_test(&mut self, id: BackendId, backend: Arc<dyn Backend>) {
        self.entries.push(Entry { id, state: Ok(backend) });
    }

    pub(crate) fn get(&self, id: &BackendId) -> Result<&Arc<dyn Backend>> {
        if *id == BackendId::AUTO {
            return Err(Error::Unavailable {
                backend: id.clone(),
                reason: "it stands for the others and has no device or memory of its own; name a backend"
                    .into(),
            });
        }
        let entry =
            self.entries.iter().find(|entry| entry.id == *id).ok_or_else(|| Error::UnknownBackend {
                name: id.to_string(),
                known: self.entries.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>().join(", "),
            })?;
        match &entry.state {
            Ok(backend) => Ok(backend),
            Err(reason) => Err(Error::Unavailable { backend: id.clone(), reason: reason.clone() }),
        }
    }

    /// The CPU threads that a product compiled for `id` may use.
    pub(crate) fn threads(&self, id: &BackendId, options: &CompileOptions) -> Result<usize> {
        Ok(self.get(id)?.threads(options))
    }

    /// What is known of one backend.
    ///
    /// # Errors
    /// [`Error::UnknownBackend`], [`Error::Unavailable`].
    pub fn info(&self, id: &BackendId) -> Result<BackendInfo> {
        if *id == BackendId::AUTO {
            return Ok(auto::info());
        }
        self.get(id).map(|backend| info(backend.as_ref()))
    }

    /// Whether `id` runs `product`: the answer comes before anything is compiled. [`BackendId::AUTO`] does
    /// when any does.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason, [`Error::UnknownBackend`], [`Error::Unavailable`]; [`Error::Native`] where
    /// the engine failed when it was asked; [`Error::Threads`] for more threads than [`crate::Threads::MAXIMUM`].
    pub fn supports(&self, id: &BackendId, product: &MatMul, options: &CompileOptions) -> Result<()> {
        options.threads.check()?;
        if *id == BackendId::AUTO {
            return self.rank(product, options).map(drop);
        }
        supports(id, self.get(id)?.as_ref(), product, options).map_err(|refusal| refusal.into_error(id))
    }

    /// Compiles `product` for the backend `id`: a [`MatMul`], or one with its weights.
    ///
    /// For [`BackendId::AUTO`] a backend is chosen as [`Backends::explain`] says; the report tells which,
    /// and why.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::UnknownBackend`], [`Error::Unavailable`]; [`Error::Missing`] for the
    /// description alone of a product whose B is known; [`Error::OutOfMemory`], [`Error::Threads`],
    /// [`Error::Native`].
    pub fn compile(
        &self,
        id: &BackendId,
        product: &(impl Product + ?Sized),
        options: &CompileOptions,
    ) -> Result<Compiled> {
        let compiled = self.compile_parts(id, product.product(), product.weights(), options)?;
        Ok(compiled.for_caller(product.bias_handle()))
    }

    /// `weights` are what `product` says of B.
    pub(crate) fn compile_parts(
        &self,
        id: &BackendId,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Compiled> {
        if *id == BackendId::AUTO {
            return self.compile_auto(product, weights, options);
        }
        self.supports(id, product, options)?;
        self.compile_supported(id, product, weights, options)
    }

    /// Tries a product out where `options` ask for that, as compiling it would.
    pub(crate) fn try_out(&self, id: &BackendId, product: &MatMul, options: &CompileOptions) -> Result<()> {
        match &options.probe {
            Some(probe) => probe.require(id, self.get(id)?.is_foreign(), product, options),
            None => Ok(()),
        }
    }

    /// Compiles for a backend that is known to run the product.
    fn compile_supported(
        &self,
        id: &BackendId,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Compiled> {
        let backend = self.get(id)?;
        let memory = DeviceMemory::new(backend, id.clone());
        if options.instant_start && *id != BackendId::CPU {
            let both = WithInstantStart::new(self.get(&BackendId::CPU), backend, product, options);
            return Compiled::new(memory, &both, product, weights, options);
        }
        Compiled::new(memory, backend.as_ref(), product, weights, options)
    }

    /// The nodes of `graph` that `id` does not run, and why: none where it compiles the graph. None for
    /// [`BackendId::AUTO`], too, where any backend does.
    ///
    /// # Errors
    /// [`Error::Refused`] where not its nodes but the graph as a whole is refused, or the options, or it is in quarantine;
    /// for [`BackendId::AUTO`] with what each backend refuses; [`Error::Native`] where the engine failed when it was asked; [`Error::UnknownBackend`], [`Error::Unavailable`],
    /// [`Error::Threads`], [`Error::OutOfMemory`].
    pub fn refused_nodes(
        &self,
        id: &BackendId,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<Vec<NodeRefusal>> {
        options.threads.check()?;
        if *id == BackendId::AUTO {
            return self.rank_graph(graph, options).map(|_| Vec::new());
        }
        let refused = self.get(id)?.refused_nodes(graph, options)?;
        if refused.is_empty() {
            self.check_quarantine(id, graph, options)?;
        }
        Ok(refused)
    }

    /// [`Error::Refused`] for a graph that the profile of [`CompileOptions::quarantine`] keeps from a backend.
    pub(crate) fn check_quarantine(
        &self,
        id: &BackendId,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<()> {
        let Some(profile) = quarantine_profile(options) else { return Ok(()) };
        match profile.quarantined_graph(id, || self.graph_key(id, graph, options))? {
            None => Ok(()),
            Some(entry) => Err(in_quarantine(entry).into_error(id)),
        }
    }

    /// What a graph in quarantine is known by: all that compiling it for `id` depends on, the backend's version included.
    pub(crate) fn graph_key(
        &self,
        id: &BackendId,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<String> {
        let CompileOptions { device, fast_math, reduced_precision, allow_known_faults, .. } = options;
        let backend = self.get(id)?;
        let (what, (_, device_name)) = (backend.describe(), backend.device());
        let compiled_for = format!(
            "{id}\n{what}\n{device_name}\n{device} {fast_math} {reduced_precision} {allow_known_faults}\n"
        );
        let mut hasher = blake3::Hasher::new();
        hasher.update(compiled_for.as_bytes());
        hasher.update(&graph.to_bytes(Contents::Hashes)?);
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The entry that keeps `id` from this graph.
    #[cfg_attr(not(feature = "profile"), allow(dead_code, reason = "it is kept in profiles"))]
    pub(crate) fn quarantine_of(
        &self,
        id: &BackendId,
        graph: &Graph,
        options: &CompileOptions,
        reason: String,
    ) -> Result<Quarantine> {
        let graph = Some(self.graph_key(id, graph, options)?);
        Ok(Quarantine { graph, ..Quarantine::here(id.clone(), None, reason) })
    }

    /// Compiles `graph` for the backend `id`, whole or not at all.
    ///
    /// [`BackendId::AUTO`] stands for the first of those that run every node, in the order that products have without a
    /// profile ([`Backends::explain`]), by the graph's operations; [`CompiledGraph::backend`] tells which. Where that one
    /// fails to compile, the next one is taken, with a warning in the log.
    ///
    /// # Errors
    /// [`Error::Refused`] with every node that the backend does not run, and for a graph in quarantine; [`Error::Probed`];
    /// [`Error::Graph`] for a self-check with `fast_math` or `reduced_precision`; [`Error::Description`] for one that makes
    /// no sense; [`Error::UnknownBackend`], [`Error::Unavailable`], [`Error::OutOfMemory`], [`Error::Threads`],
    /// [`Error::Native`], [`Error::Probe`].
    pub fn compile_graph(
        &self,
        id: &BackendId,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<CompiledGraph> {
        if *id == BackendId::AUTO {
            return self.compile_auto_graph(graph, options);
        }
        let refused = self.refused_nodes(id, graph, options)?;
        if let Some(refusal) = refusal_of_nodes(&refused) {
            return Err(Error::Refused { backend: id.clone(), refusal });
        }
        self.compile_accepted_graph(id, graph, options)
    }

    /// Compiles a graph for a backend that refuses nothing of it.
    fn compile_accepted_graph(
        &self,
        id: &BackendId,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<CompiledGraph> {
        let backend = self.get(id)?;
        if let Some(probe) = &options.probe {
            probe.require_graph(self, id, backend.is_foreign(), graph, options)?;
        }
        let compile = |graph: &Graph| {
            if options.instant_start && *id != BackendId::CPU {
                return instant_start::compile_graph(self.get(&BackendId::CPU), backend, graph, options);
            }
            backend.prepare()?;
            backend.compile_graph(graph, options)
        };
        CompiledGraph::new(self, id, graph, options, compile)
    }

    /// Initialises now what the first product compiled for `id` would initialise otherwise: a driver's context, a
    /// library of kernels. How long it took, the first time; `None` where there is nothing to initialise.
    ///
    /// # Errors
    /// [`Error::Native`]; [`Error::UnknownBackend`], [`Error::Unavailable`].
    pub fn prepare(&self, id: &BackendId) -> Result<Option<Duration>> {
        self.get(id)?.prepare()
    }

    /// The memory of the device of `id`; [`Compiled::memory`] is that of a product.
    ///
    /// # Errors
    /// [`Error::UnknownBackend`], [`Error::Unavailable`].
    pub fn memory(&self, id: &BackendId) -> Result<DeviceMemory> {
        Ok(DeviceMemory::new(self.get(id)?, id.clone()))
    }

    /// Allocates memory that the host and the device of `id` both see, all zero; see
    /// [`SharedBuffer`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Native`]; [`Error::UnknownBackend`], [`Error::Unavailable`].
    pub fn shared_buffer(&self, id: &BackendId, bytes: usize) -> Result<SharedBuffer> {
        self.get(id)?.buffer(bytes).map(SharedBuffer::new)
    }

    /// Makes memory of the caller's visible to the device of `id` without a copy.
    ///
    /// `start` and `bytes` must be multiples of [`BackendInfo::wrap_alignment_bytes`]: pages, for
    /// Apple's frameworks.
    ///
    /// # Safety
    /// The `bytes` bytes at `start` are initialised, readable and writable, and stay so and in place
    /// until the buffer is dropped (forever, where it is leaked). It is not dropped while a run or a submission works on
    /// this memory, by whatever borrow of it. Nothing else writes to them while the
    /// buffer or a view of it is in use, and nothing else reads them while they are written through it.
    ///
    /// # Errors
    /// [`Error::WrapAlignment`], [`Error::Native`]; [`Error::UnknownBackend`], [`Error::Unavailable`].
    #[allow(unsafe_code, reason = "the memory is the caller's")]
    pub unsafe fn wrap_memory(&self, id: &BackendId, start: *mut u8, bytes: usize) -> Result<SharedBuffer> {
        let backend = self.get(id)?;
        let alignment_bytes = wrap_alignment_bytes(backend.as_ref());
        let aligned =
            |alignment: usize| start.addr().is_multiple_of(alignment) && bytes.is_multiple_of(alignment);
        match NonNull::new(start) {
            Some(start) if bytes > 0 && alignment_bytes.is_some_and(aligned) => {
                // SAFETY: aligned, as checked; the caller vouches for the rest.
                unsafe { backend.wrap(start, bytes) }.map(SharedBuffer::new)
            }
            _ => Err(Error::WrapAlignment { backend: id.clone(), alignment_bytes }),
        }
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.available()).finish()
    }
}

/// One refusal for a graph of which some nodes are refused. Its reason is that of the first.
fn refusal_of_nodes(refused: &[NodeRefusal]) -> Option<Refusal> {
    let reason = refused.first()?.refusal.reason;
    let line = |refused: &NodeRefusal| {
        format!("node `{}`: {}: {}", refused.node, refused.operator, refused.refusal.message)
    };
    let lines: Vec<_> = refused.iter().map(line).collect();
    Some(Refusal::new(reason, lines.join("; ")))
}

/// What the backend says, and quarantine.
pub(crate) fn supports(
    id: &BackendId,
    backend: &dyn Backend,
    product: &MatMul,
    options: &CompileOptions,
) -> Result<(), Refusal> {
    backend.supports(product, options)?;
    quarantined(id, product, options)
}

/// The refusal of a product that the profile of [`CompileOptions::quarantine`] keeps from a backend.
pub(crate) fn quarantined(id: &BackendId, product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
    match quarantine_profile(options).as_ref().and_then(|profile| profile.quarantined(id, product)) {
        None => Ok(()),
        Some(entry) => Err(in_quarantine(entry)),
    }
}

pub(crate) fn in_quarantine(entry: &Quarantine) -> Refusal {
    Refusal::new(
        RefusalReason::Quarantined,
        format!(
            "in quarantine: {}; use another backend, or let it out (Profile::retain_quarantine)",
            entry.reason
        ),
    )
}

/// The profile of [`CompileOptions::quarantine`], where there is one that can be read.
#[cfg(feature = "profile")]
fn quarantine_profile(options: &CompileOptions) -> Option<Profile> {
    match Profile::load(options.quarantine.as_ref()?) {
        Ok(profile) => Some(profile),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            log::warn!("{error}; nothing is in quarantine");
            None
        }
    }
}

#[cfg(not(feature = "profile"))]
const fn quarantine_profile(_: &CompileOptions) -> Option<Profile> {
    None
}

/// Notes an entry in the profile of [`CompileOptions::quarantine`], where there is one.
#[cfg(feature = "profile")]
pub(crate) fn add_quarantine(options: &CompileOptions, entry: Quarantine) -> Result<()> {
    match &options.quarantine {
        Some(path) => Profile::update(path, |profile| profile.add_quarantine(entry)).map(drop),
        None => Ok(()),
    }
}

fn wrap_alignment_bytes(backend: &dyn Backend) -> Option<usize> {
    backend.wrap_alignment_bytes().map(|bytes| bytes.max(ALIGNMENT_BYTES))
}

fn info(backend: &dyn Backend) -> BackendInfo {
    let (device, device_name) = backend.device();
    BackendInfo {
        description: backend.describe(),
        device,
        device_name,
        is_test_double: backend.is_test_double(),
        wrap_alignment_bytes: wrap_alignment_bytes(backend),
        max_queue_depth: backend.max_queue_depth(),
        copies_host_operands: backend.copies_host_operands(),
    }
}

/// The registry behind [`MatMul::compile`].
pub(crate) static BUILT_IN: LazyLock<Backends> = LazyLock::new(Backends::new);

/// Every backend that this build knows, and whether it is here or why not.
#[must_use]
pub fn available() -> Vec<BackendStatus> {
    BUILT_IN.available()
}

macro_rules! compile_with_the_built_in_backends {
    ($($product:ty)*) => {$(
        impl $product {
            /// Compiles for the fastest of the built-in backends, [`BackendId::AUTO`], with default options.
            ///
            /// # Errors
            /// As [`Backends::compile`].
            pub fn compile_default(&self) -> Result<Compiled> {
                self.compile(&BackendId::AUTO)
            }

            /// Compiles for a built-in backend with default options.
            ///
            /// # Errors
            /// As [`Backends::compile`].
            pub fn compile(&self, backend: &BackendId) -> Result<Compiled> {
                self.compile_with(backend, &CompileOptions::default())
            }

            /// Compiles for a built-in backend.
            ///
            /// # Errors
            /// As [`Backends::compile`].
            pub fn compile_with(&self, backend: &BackendId, options: &CompileOptions) -> Result<Compiled> {
                BUILT_IN.compile(backend, self, options)
            }
        }
    )*};
}

compile_with_the_built_in_backends! { MatMul MatMulWithWeights }

impl Linear {
    /// Compiles for the fastest of the built-in backends, [`BackendId::AUTO`], with default options.
    ///
    /// # Errors
    /// As [`Linear::build`] and [`Backends::compile`].
    pub fn compile_default(&self) -> Result<Compiled> {
        self.build()?.compile_default()
    }

    /// Compiles for a built-in backend with default options.
    ///
    /// # Errors
    /// As [`Linear::build`] and [`Backends::compile`].
    pub fn compile(&self, backend: &BackendId) -> Result<Compiled> {
        self.build()?.compile(backend)
    }

    /// Compiles for a built-in backend.
    ///
    /// # Errors
    /// As [`Linear::build`] and [`Backends::compile`].
    pub fn compile_with(&self, backend: &BackendId, options: &CompileOptions) -> Result<Compiled> {
        self.build()?.compile_with(backend, options)
    }
}

/// The shims for Apple systems, or why this build does not have them.
fn apple_shims() -> [(BackendId, &'static str, shim::Linked); 2] {
    [
        (BackendId::METAL, "Metal", shim::linked_metal()),
        (BackendId::MPSGRAPH, "MPSGraph", shim::linked_mpsgraph()),
    ]
}

/// A shim as a backend: when its device cannot be opened, with the reason.
fn shim_entry(id: BackendId, shim: Result<ShimLibrary>, index: u32) -> Entry {
    let state = shim
        .and_then(|shim| shim.into_backend(index))
        .map(|backend| Arc::new(backend) as Arc<dyn Backend>)
        .map_err(|error| error.to_string());
    Entry { id, state }
}

fn built_in() -> Vec<Entry> {
    let apple = cfg!(target_vendor = "apple");
    let not_apple =
        |what: &str| format!("{what} exists on macOS and iOS only; this is {}", std::env::consts::OS);
    let cpu = cpu::Cpu::new().map(|cpu| Arc::new(cpu) as Arc<dyn Backend>);
    let mut entries = vec![Entry { id: BackendId::CPU, state: cpu }];
    #[cfg(target_vendor = "apple")]
    entries.push(Entry { id: BackendId::ACCELERATE, state: Ok(Arc::new(blas::Blas::new())) });
    #[cfg(all(feature = "blas", not(target_vendor = "apple")))]
    entries.push(Entry { id: BackendId::BLAS, state: Ok(Arc::new(blas::Blas::new())) });
    let mut absent = |id: BackendId, reason: String| {
        if !entries.iter().any(|entry| entry.id == id) {
            entries.push(Entry { id, state: Err(reason) });
        }
    };
    absent(
        BackendId::BLAS,
        if apple {
            "on Apple systems the CBLAS is Accelerate: use `accelerate`".into()
        } else {
            "not in this build: build with --features blas (on Debian or Ubuntu after apt-get install libopenblas-dev)".into()
        },
    );
    absent(BackendId::ACCELERATE, not_apple("Accelerate"));
    for (id, what, shim) in apple_shims() {
        let absent = |reason: &str| {
            Err(if apple {
                format!("the {what} shim is not in this build: {reason}")
            } else {
                not_apple(what)
            })
        };
        entries.push(match shim {
            Ok(shim) => shim_entry(id, shim, 0),
            Err(reason) => Entry { id, state: absent(reason) },
        });
    }
    entries
}
