//! Graphs compiled for a backend, and what runs them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::alloc;
use crate::backend::instant_start::InstantStart;
use crate::backend::{BUILT_IN, BackendId, Backends, GraphProgram, GraphRun};
use crate::cache::Weight;
use crate::description::options::CompileOptions;
use crate::error::{Error, Result};
use crate::graph::array::Array;
use crate::graph::check::{NodesReport, WholeReport, check_nodes, check_whole};
use crate::graph::checked::{CheckedRun, Checks, Policy};
use crate::graph::description::{Graph, Source};
use crate::graph::passes::PassReport;
use crate::graph::report::{GraphReport, NOT_MEASURED};
use crate::graph::shape::TensorType;
use crate::verify::self_check::{CheckCounts, Mismatch};

impl Graph {
    /// Compiles for a built-in backend with default options.
    ///
    /// # Errors
    /// As [`crate::Backends::compile_graph`].
    pub fn compile(&self, backend: &BackendId) -> Result<CompiledGraph> {
        self.compile_with(backend, &CompileOptions::default())
    }

    /// Compiles for a built-in backend.
    ///
    /// # Errors
    /// As [`crate::Backends::compile_graph`].
    pub fn compile_with(&self, backend: &BackendId, options: &CompileOptions) -> Result<CompiledGraph> {
        BUILT_IN.compile_graph(backend, self, options)
    }

    /// What the passes of the CPU's engine make of it before it is compiled: the graph after each one that changed
    /// something, in their order. [`PassReport`] has an example.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable) where the engine cannot be used.
    pub fn passes(&self) -> Result<Vec<PassReport>> {
        Ok(BUILT_IN.get(&BackendId::CPU)?.passes(self))
    }
}

struct Shared {
    // Before the graph: it may refer to the constants.
    program: Box<dyn GraphProgram>,
    graph: Graph,
    named: Weak<()>,
    backend: BackendId,
    compile_time: Duration,
    /// Where runs are verified.
    policy: Option<Policy>,
}

/// A graph compiled for a backend: weights and plan, shared by its executors.
///
/// ```
/// use ane_matmul::graph::{Array, GraphBuilder};
/// use ane_matmul::{BackendId, ElementType, Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::random_normal_f32(8, 4, 0.5, 1)?);
/// let mut g = GraphBuilder::new();
/// let x = g.input("x", ElementType::F32, &[32, 8])?;
/// let h = g.linear("up", x, &weights, None)?;
/// let y = g.relu(h)?;
/// let graph = g.finish(&[("y", y)])?.variable_leading(&["x"])?; // up to 32 rows
///
/// let compiled = graph.compile(&BackendId::CPU)?;
/// println!("{}", compiled.report());
/// let mut executor = compiled.executor()?; // one for each thread that runs the graph
/// let x = Array::new(&[2, 8], vec![1f32; 16])?;
/// let mut y = Array::new(&[2, 4], vec![0f32; 8])?;
/// for _ in 0..1000 {
///     executor.run(&[&x], &mut [&mut y])?;
/// }
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// Cloning shares.
#[derive(Clone)]
pub struct CompiledGraph(Arc<Shared>);

impl CompiledGraph {
    pub(crate) fn new(
        backends: &Backends,
        id: &BackendId,
        graph: &Graph,
        options: &CompileOptions,
        compile: impl FnOnce(&Graph) -> Result<Box<dyn GraphProgram>>,
    ) -> Result<Self> {
        let policy = Policy::new(backends, options)?;
        let mut graph = graph.clone();
        let named = graph.named.take().map_or_else(Weak::new, |named| Arc::downgrade(&named));
        let start = Instant::now();
        let program = compile(&graph)?;
        let compile_time = start.elapsed();
        log::debug!("compiled a graph of {} nodes for {id} in {compile_time:?}", graph.nodes.len());
        Ok(Self(Arc::new(Shared { program, graph, named, backend: id.clone(), compile_time, policy })))
    }

    /// Opens a run context, with all memory that runs need; each thread that runs the graph needs its own.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Native`].
    pub fn executor(&self) -> Result<GraphExecutor> {
        let checks = self.0.policy.as_ref().map(Policy::checks).map(Box::new);
        Ok(GraphExecutor { run: self.0.program.open(false)?, checks, shared: Arc::clone(&self.0) })
    }

    /// Runs the graph once, and computes each node that `chosen` names in float64 from the values that the backend has
    /// of its inputs: whether the backend's are within the bounds of [graphs.md]. Where nodes are fused, a group of them
    /// is computed from what goes into it.
    ///
    /// A check takes far longer than a run, and memory for all values.
    ///
    /// [graphs.md]: https://docs.rs/crate/ane-matmul/latest/source/docs/graphs.md
    ///
    /// # Errors
    /// As [`GraphExecutor::run`]; [`Error::OutOfMemory`]; [`Error::Graph`] for a group whose inner values decide what no
    /// bound can follow, such as an index.
    pub fn check_nodes(&self, inputs: &[&Array], chosen: impl Fn(&str) -> bool) -> Result<NodesReport> {
        let (graph, run, outputs) = self.run_keeping_values(inputs)?;
        let mut values = alloc::with_capacity(graph.values.len(), "values of a graph")?;
        for (value, info) in graph.values.iter().enumerate() {
            values.push(if matches!(info.source, Source::Node) { run.value(value)? } else { None });
        }
        for ((_, value), output) in graph.outputs.iter().zip(outputs) {
            values[*value] = Some(output);
        }
        check_nodes(&graph, inputs, &values, chosen)
    }

    /// Runs the graph once, and compares its outputs with those of the float64 interpretation, by the errors that
    /// plain f32 has ([`Graph::interpret_f32`]).
    ///
    /// # Errors
    /// As [`GraphExecutor::run`]; [`Error::OutOfMemory`].
    pub fn check_whole(&self, inputs: &[&Array]) -> Result<WholeReport> {
        let (graph, _, outputs) = self.run_keeping_values(inputs)?;
        check_whole(&graph, inputs, &outputs.iter().collect::<Vec<_>>())
    }

    /// The graph of the inputs' leading dimension, the run, and its outputs.
    fn run_keeping_values(&self, inputs: &[&Array]) -> Result<(Graph, Box<dyn GraphRun>, Vec<Array>)> {
        let mut executor =
            GraphExecutor { run: self.0.program.open(true)?, checks: None, shared: Arc::clone(&self.0) };
        let outputs = executor.run_to_arrays(inputs)?;
        let graph = match &self.0.graph.leading {
            Some(_) => self.0.graph.with_leading(leading_of(&self.0.graph, inputs)?)?,
            None => self.0.graph.clone(),
        };
        Ok((graph, executor.run, outputs))
    }

    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.0.graph
    }

    /// The backend that it was compiled for.
    #[must_use]
    pub fn backend(&self) -> &BackendId {
        &self.0.backend
    }

    /// Whether a handle of the graph is left that is not a compiled graph's.
    pub(crate) fn can_be_named(&self) -> bool {
        self.0.named.strong_count() > 0
    }

    /// What a cache holds with it.
    pub(crate) fn holding(&self) -> Weight {
        let info = self.0.program.info();
        let weight = Weight {
            own: size_of::<Shared>() + info.weight_bytes,
            shared: info.shared,
            may_change: matches!(info.instant_start, Some(InstantStart::Compiling { .. })),
        };
        Weight { own: weight.own.saturating_sub(weight.shared_bytes()), ..weight }
    }

    /// What was made of the graph.
    #[must_use]
    pub fn report(&self) -> GraphReport {
        GraphReport::new(&self.0.graph, &self.0.backend, &self.0.program.info(), self.0.compile_time)
    }
}

impl std::fmt::Debug for CompiledGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledGraph")
            .field("backend", &self.0.backend)
            .field("nodes", &self.0.graph.nodes.len())
            .finish_non_exhaustive()
    }
}

/// Runs a compiled graph, for one thread at a time.
///
/// [`CompiledGraph`] has an example.
pub struct GraphExecutor {
    // Before what it came from.
    run: Box<dyn GraphRun>,
    checks: Option<Box<Checks>>,
    shared: Arc<Shared>,
}

impl GraphExecutor {
    /// Runs the graph. Inputs and outputs are in the graph's order ([`Graph::inputs`], [`Graph::outputs`]) and of its
    /// types.
    ///
    /// With [`Graph::variable_leading`] inputs may have fewer of the leading dimension, all the same number. Outputs
    /// have at least as many; what is beyond is set to 0. Nothing is allocated, but for a self-check that is due
    /// ([`CompileOptions::self_check`]).
    ///
    /// # Errors
    /// [`Error::Graph`] for operands that do not fit, before anything is written; for an index out of range and a
    /// division of integers by 0, with the node's name, and outputs of undefined contents. [`Error::Threads`] where a
    /// pool of the caller's does not do its work; [`Error::Native`]. Where the run is verified, [`Error::WrongResult`] and
    /// [`Error::OutOfMemory`].
    pub fn run(&mut self, inputs: &[&Array], outputs: &mut [&mut Array]) -> Result<()> {
        self.run_timed(inputs, outputs, None)
    }

    /// Runs the graph, and returns its outputs, for which memory is allocated.
    ///
    /// # Errors
    /// As [`GraphExecutor::run`]; [`Error::OutOfMemory`].
    pub fn run_to_arrays(&mut self, inputs: &[&Array]) -> Result<Vec<Array>> {
        let graph = &self.shared.graph;
        let leading = leading_of(graph, inputs)?;
        let mut outputs = alloc::with_capacity(graph.outputs.len(), "outputs")?;
        for (_, index) in &graph.outputs {
            outputs.push(Array::zeros(graph.type_for(*index, leading))?);
        }
        let mut borrowed = alloc::with_capacity(outputs.len(), "outputs")?;
        borrowed.extend(outputs.iter_mut());
        self.run(inputs, &mut borrowed)?;
        Ok(outputs)
    }

    /// Runs the graph and measures each step: the report with the time of each node, that of a step at the node that it
    /// is named after. Shims do not tell the times of their steps.
    ///
    /// # Errors
    /// As [`GraphExecutor::run`]; [`Error::OutOfMemory`].
    pub fn profile(&mut self, inputs: &[&Array], outputs: &mut [&mut Array]) -> Result<GraphReport> {
        let info = self.shared.program.info();
        let mut step_ns = alloc::filled(info.steps.len(), NOT_MEASURED, "times of steps")?;
        self.run_timed(inputs, outputs, Some(&mut step_ns))?;
        let shared = &self.shared;
        let mut report = GraphReport::new(&shared.graph, &shared.backend, &info, shared.compile_time);
        report.add_times(&info, &step_ns);
        Ok(report)
    }

    /// What the self-checks of this executor's runs did.
    #[must_use]
    pub fn checks(&self) -> CheckCounts {
        self.checks.as_ref().map_or_else(CheckCounts::default, |checks| checks.counts())
    }

    /// The last wrong result that one found.
    #[must_use]
    pub fn last_mismatch(&self) -> Option<&Mismatch> {
        self.checks.as_ref()?.last_mismatch()
    }

    fn run_timed(
        &mut self,
        inputs: &[&Array],
        outputs: &mut [&mut Array],
        step_ns: Option<&mut [u64]>,
    ) -> Result<()> {
        let graph = &self.shared.graph;
        let leading = leading_of(graph, inputs)?;
        if outputs.len() != graph.outputs.len() {
            return Err(Error::graph(format!(
                "expected {} outputs ({}), got {}",
                graph.outputs.len(),
                graph.outputs().map(|(name, _)| name).collect::<Vec<_>>().join(", "),
                outputs.len()
            )));
        }
        for (array, (name, index)) in outputs.iter().zip(&graph.outputs) {
            let (least, most) = (graph.type_for(*index, leading), graph.values[*index].tensor_type);
            if !lies_between(array.tensor_type(), least, most) {
                let got = array.tensor_type();
                return Err(Error::graph(format!("output `{name}`: expected {least}, got {got}")));
            }
        }
        self.run.run(leading, inputs, outputs, step_ns)?;
        let shared = &*self.shared;
        if let (Some(checks), Some(policy)) = (&mut self.checks, &shared.policy)
            && checks.is_due()
        {
            let (program, backend) = (shared.program.as_ref(), &shared.backend);
            checks.check(&CheckedRun { policy, program, backend, graph, leading, inputs }, outputs)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for GraphExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GraphExecutor").field("backend", &self.shared.backend).finish_non_exhaustive()
    }
}

/// Whether a type is one of two that differ in the leading dimension at most, or one between them.
fn lies_between(got: TensorType, least: TensorType, most: TensorType) -> bool {
    match (got.shape.dims(), least.shape.dims(), most.shape.dims()) {
        ([got_leading, got_rest @ ..], [least_leading, ..], [most_leading, rest @ ..]) => {
            got.element == most.element
                && got_rest == rest
                && (least_leading..=most_leading).contains(&got_leading)
        }
        _ => got == most,
    }
}

/// The leading dimension of a run's inputs, which are checked.
fn leading_of(graph: &Graph, inputs: &[&Array]) -> Result<usize> {
    if inputs.len() != graph.inputs.len() {
        return Err(Error::graph(format!(
            "expected {} inputs ({}), got {}",
            graph.inputs.len(),
            graph.inputs().map(|(name, _)| name).collect::<Vec<_>>().join(", "),
            inputs.len()
        )));
    }
    let mut leading = None;
    for (array, index) in inputs.iter().zip(&graph.inputs) {
        let (value, got) = (&graph.values[*index], array.tensor_type());
        let most = value.tensor_type;
        let varies = graph.leading.as_ref().is_some_and(|leading| leading.values[*index].is_some());
        let fits = if varies {
            lies_between(got, TensorType::new(most.element, most.shape.with_dim(0, 0)), most)
        } else {
            got == most
        };
        if !fits {
            let up_to = if varies { " or fewer along the first axis" } else { "" };
            return Err(Error::graph(format!("input `{}`: expected {most}{up_to}, got {got}", value.name)));
        }
        if varies {
            let own = got.shape.dims()[0];
            if *leading.get_or_insert(own) != own {
                return Err(Error::graph(format!(
                    "input `{}`: {got} has {own} along the first axis, an input before it {}",
                    value.name,
                    leading.unwrap_or_default()
                )));
            }
        }
    }
    Ok(leading.or(graph.leading.as_ref().map(|leading| leading.most)).unwrap_or(0))
}
