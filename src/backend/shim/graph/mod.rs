//! Graphs behind the C ABI.

mod arrays;
mod operators;

use std::ptr::NonNull;
use std::sync::Arc;

use super::buffers::{Constant, NO_OPERAND};
use super::table::{GraphSource, Graphs, message_in, reason, size_u32};
use super::{DeviceHandle, ShimBackend, convert, sys};
use crate::alloc;
use crate::backend::refusal::{NodeRefusal, Refusal};
use crate::backend::{GraphInfo, GraphProgram, GraphRun};
use crate::description::element::ElementType;
use crate::description::options::{CompileOptions, Threads};
use crate::error::{Error, NativeStatus, Result};
use crate::graph::Array;
use crate::graph::description::{Graph, Source};

#[cfg(test)]
pub(super) use arrays::NONE;
use arrays::{Arrays, twin, written_outputs};

impl ShimBackend {
    /// The table of graphs and the slot that compiles, or why there is none.
    fn graphs(&self) -> Result<&Arc<Graphs>, String> {
        let table = self.device.table();
        let Some(graphs) = &table.graphs else {
            return Err(format!(
                "the shim `{}` has products alone, no graphs; use another backend",
                table.name
            ));
        };
        match &graphs.source {
            GraphSource::Compiled(_) => Ok(graphs),
            GraphSource::Packages(format) => Err(format!(
                "the shim `{}` reads graphs from packages ({format}), which this crate does not write",
                table.name
            )),
        }
    }

    pub(super) fn refused_graph_nodes(
        &self,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<Vec<NodeRefusal>> {
        const WHAT: &str = "refusals of nodes";
        let table = self.device.table();
        let graphs = match self.graphs() {
            Ok(graphs) => graphs,
            Err(message) => return Ok(NodeRefusal::of_all(graph, &message)),
        };
        if let Threads::Pool(_) = options.threads {
            return Err(Error::Refused { backend: table.name.clone(), refusal: super::pool_refusal() });
        }
        // Nothing is uploaded to be asked.
        let arrays = Arrays::new(graph, None)?;
        let (desc, native_options) = (arrays.desc()?, convert::options(options));
        let empty = sys::ANENodeRefusal {
            struct_size: size_u32::<sys::ANENodeRefusal>(),
            node: 0,
            reason: 0,
            reserved0: 0,
            message: [0; 240],
        };
        let mut refusals = alloc::filled(graph.nodes.len(), empty, WHAT)?;
        let mut count = 0;
        let answer = table.call("graph_supports", |error| {
            // SAFETY: the device is open; what the description points at is held by `arrays` and `graph`, and there are
            // as many refusals as nodes; all is valid for the call.
            unsafe {
                (graphs.slots.graph_supports)(
                    self.device.raw.as_ptr(),
                    &raw const desc,
                    &raw const native_options,
                    refusals.as_mut_ptr(),
                    desc.node_count,
                    &raw mut count,
                    error,
                )
            }
        });
        let refused = match answer {
            Ok(()) => return Ok(Vec::new()),
            Err(error @ Error::Refused { .. }) if count == 0 => return Err(error),
            Err(Error::Refused { .. }) => count as usize,
            Err(error) => return Err(error),
        };
        let wrong = |problem: String| {
            let message = format!("{problem}; report this to the shim's author");
            Err(table.native("graph_supports", NativeStatus::Internal, message))
        };
        if refused > refusals.len() {
            return wrong(format!("it refuses {refused} nodes of {}", refusals.len()));
        }
        let mut all: Vec<NodeRefusal> = alloc::with_capacity(refused, WHAT)?;
        let mut last = None;
        for refusal in &refusals[..refused] {
            let node = refusal.node as usize;
            if node >= graph.nodes.len() || last.is_some_and(|last| last >= node) {
                return wrong(format!("it refuses node {node} of {}, after {last:?}", graph.nodes.len()));
            }
            last = Some(node);
            let why = Refusal::new(reason(refusal.reason), message_in(&refusal.message));
            all.push(NodeRefusal::new(graph, node, why));
        }
        Ok(all)
    }

    pub(super) fn compile_shim_graph(&self, graph: &Graph, options: &CompileOptions) -> Result<ShimGraph> {
        let table = self.device.table();
        let graphs = self.graphs().map_err(Error::graph)?;
        let GraphSource::Compiled(compile) = graphs.source else {
            return Err(Error::graph("the shim reads graphs from packages alone".into()));
        };
        let uploads = self.device.facts.has(sys::ANE_DEVICE_FLAG_CONSTANTS);
        let arrays = Arrays::new(graph, uploads.then_some(&self.device))?;
        let (desc, native_options) = (arrays.desc()?, convert::options(options));
        let mut raw = std::ptr::null_mut();
        table.call_with_log("graph_compile", |error| {
            // SAFETY: the device is open; what the description points at is held by `arrays` and `graph`; all is valid
            // for the call.
            unsafe {
                compile(
                    self.device.raw.as_ptr(),
                    &raw const desc,
                    &raw const native_options,
                    &raw mut raw,
                    error,
                )
            }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object("graph_compile"))?;
        let (graphs, device) = (Arc::clone(graphs), Arc::clone(&self.device));
        let handle = Arc::new(GraphHandle { raw, constants: arrays.constants, graphs, device });
        // What cannot be asked is left out of the report.
        if let Ok(info) = handle.info() {
            self.check_arithmetic(info.arithmetic, &native_options)?;
        }
        Ok(ShimGraph { handle, graph: graph.clone() })
    }
}

/// A graph of a shim's, destroyed when dropped, before the constants and the device that it holds.
struct GraphHandle {
    raw: NonNull<sys::ANEGraph>,
    constants: Vec<Arc<Constant>>,
    graphs: Arc<Graphs>,
    device: Arc<DeviceHandle>,
}

// SAFETY: the contract lets any thread use a compiled graph, several at once.
unsafe impl Send for GraphHandle {}
// SAFETY: as for Send.
unsafe impl Sync for GraphHandle {}

impl Drop for GraphHandle {
    fn drop(&mut self) {
        // SAFETY: the shim made this graph, and it is destroyed here only; its device and constants still live.
        unsafe { (self.graphs.slots.graph_destroy)(self.raw.as_ptr()) }
    }
}

impl GraphHandle {
    fn info(&self) -> Result<sys::ANEGraphInfo> {
        // SAFETY: all-zero bytes are a valid ANEGraphInfo: integers.
        let mut info: sys::ANEGraphInfo = unsafe { std::mem::zeroed() };
        info.struct_size = size_u32::<sys::ANEGraphInfo>();
        self.device.table().call("graph_info", |error| {
            // SAFETY: the graph lives; info and error are valid for the call.
            unsafe { (self.graphs.slots.graph_info)(self.raw.as_ptr(), &raw mut info, error) }
        })?;
        Ok(info)
    }

    /// The node with which a node is computed: itself where the shim does not say, or names none.
    fn fused_into(&self, node: usize, nodes: usize) -> usize {
        // SAFETY: all-zero bytes are a valid ANENodeInfo: numbers.
        let mut info: sys::ANENodeInfo = unsafe { std::mem::zeroed() };
        info.struct_size = size_u32::<sys::ANENodeInfo>();
        // Of a graph that was described with 32-bit counts.
        let index = u32::try_from(node).unwrap_or(u32::MAX);
        info.fused_into = index;
        let answer = self.device.table().call("graph_node_info", |error| {
            // SAFETY: the graph lives and has this node; info and error are valid for the call.
            unsafe { (self.graphs.slots.graph_node_info)(self.raw.as_ptr(), index, &raw mut info, error) }
        });
        let into = info.fused_into as usize;
        if answer.is_ok() && into < nodes { into } else { node }
    }
}

/// A graph that a shim compiled.
pub(super) struct ShimGraph {
    handle: Arc<GraphHandle>,
    graph: Graph,
}

impl GraphProgram for ShimGraph {
    /// What lies between nodes, a shim does not show.
    fn open(&self, _keep_values: bool) -> Result<Box<dyn GraphRun>> {
        const WHAT: &str = "operands of a graph";
        let (table, slots) = (self.handle.device.table(), &self.handle.graphs.slots);
        let options =
            sys::ANEExecutorOptions { struct_size: size_u32::<sys::ANEExecutorOptions>(), queue_depth: 0 };
        let mut raw = std::ptr::null_mut();
        table.call("graph_executor_create", |error| {
            // SAFETY: the graph lives; options, out and error are valid for the call.
            unsafe {
                (slots.graph_executor_create)(
                    self.handle.raw.as_ptr(),
                    &raw const options,
                    &raw mut raw,
                    error,
                )
            }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object("graph_executor_create"))?;
        // First: it is destroyed where memory is lacking.
        let executor = ExecutorHandle { raw, graph: Arc::clone(&self.handle) };
        Ok(Box::new(ShimGraphRun {
            inputs: alloc::filled(self.graph.inputs.len(), NO_OPERAND, WHAT)?,
            outputs: alloc::with_capacity(self.graph.outputs.len(), WHAT)?,
            graph: self.graph.clone(),
            executor,
        }))
    }

    fn info(&self) -> GraphInfo {
        let (graph, nodes) = (&self.graph, self.graph.nodes.len());
        let into: Vec<_> = (0..nodes).map(|node| self.handle.fused_into(node, nodes)).collect();
        // A step for each node that is computed with itself, and for those that never come to one.
        let root_of = |node: usize| {
            let end = (0..nodes).fold(node, |node, _| into[node]);
            if into[end] == end { end } else { node }
        };
        let roots: Vec<_> = (0..nodes).map(root_of).collect();
        let steps: Vec<_> = (0..nodes).filter(|node| roots[*node] == *node).collect();
        let is_output = |value: usize| graph.outputs.iter().any(|(_, output)| *output == value);
        let between = graph
            .values
            .iter()
            .enumerate()
            .filter(|(index, value)| matches!(value.source, Source::Node) && !is_output(*index));
        let info = self.handle.info().ok();
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let shared = self.handle.constants.iter().map(|constant| constant.bytes);
        GraphInfo {
            step_of: roots.iter().map(|root| steps.binary_search(root).ok()).collect(),
            steps: steps.iter().map(|node| graph.nodes[*node].name.clone()).collect(),
            weight_bytes: shared.fold(info.map_or(0, |info| bytes(info.bytes_held)), usize::saturating_add),
            arena_bytes: info.map_or(0, |info| bytes(info.executor_bytes)),
            values_bytes: between.map(|(_, value)| value.tensor_type.bytes()).fold(0, usize::saturating_add),
            threads: None,
            shared: self
                .handle
                .constants
                .iter()
                .map(|constant| (Arc::as_ptr(constant).addr(), constant.bytes))
                .collect(),
            instant_start: None,
        }
    }
}

/// An executor of a shim's, destroyed when dropped, before its graph.
struct ExecutorHandle {
    raw: NonNull<sys::ANEGraphExecutor>,
    graph: Arc<GraphHandle>,
}

// SAFETY: the contract lets an executor move between threads; it is not Sync.
unsafe impl Send for ExecutorHandle {}

impl Drop for ExecutorHandle {
    fn drop(&mut self) {
        // SAFETY: the shim made this executor, and it is destroyed here only; its graph still lives.
        unsafe { (self.graph.graphs.slots.graph_executor_destroy)(self.raw.as_ptr()) }
    }
}

/// The run context of one executor.
struct ShimGraphRun {
    executor: ExecutorHandle,
    graph: Graph,
    /// Of a run's operands, and of no meaning between runs.
    inputs: Vec<sys::ANEOperand>,
    outputs: Vec<sys::ANEOperand>,
}

// SAFETY: the addresses are those of a run's operands, and of no meaning between runs.
unsafe impl Send for ShimGraphRun {}

impl GraphRun for ShimGraphRun {
    fn run(
        &mut self,
        leading: usize,
        inputs: &[&Array],
        outputs: &mut [&mut Array],
        // A shim does not time its nodes.
        _step_ns: Option<&mut [u64]>,
    ) -> Result<()> {
        let graph = &self.graph;
        let handle = &*self.executor.graph;
        let buffers = &handle.device.buffers;
        for (operand, array) in self.inputs.iter_mut().zip(inputs) {
            let start = array.elements().start().cast_mut();
            *operand = buffers.operand(start, array.tensor_type().bytes());
        }
        self.outputs.clear();
        for output in written_outputs(graph) {
            let bytes = graph.type_for(graph.outputs[output].1, leading).bytes();
            self.outputs.push(buffers.operand(outputs[output].elements_mut().start_mut(), bytes));
        }
        let args = sys::ANEGraphRunArgs {
            struct_size: size_u32::<sys::ANEGraphRunArgs>(),
            flags: 0,
            leading: if graph.leading.is_some() { leading as u64 } else { 0 },
            inputs: self.inputs.as_ptr(),
            outputs: self.outputs.as_ptr(),
            info: std::ptr::null_mut(),
        };
        let result = handle.device.table().call("graph_executor_run", |error| {
            // SAFETY: the executor lives, and `&mut self` makes this its only use; the operands are borrowed until the
            // call returns and have the bytes of their types, and no output overlaps another operand.
            unsafe {
                (handle.graphs.slots.graph_executor_run)(self.executor.raw.as_ptr(), &raw const args, error)
            }
        });
        finish(graph, leading, outputs);
        result
    }
}

/// Makes booleans of what was written, clears what is beyond the leading dimension, and fills outputs that are the
/// same value as another.
fn finish(graph: &Graph, leading: usize, outputs: &mut [&mut Array]) {
    for output in 0..outputs.len() {
        let written = graph.type_for(graph.outputs[output].1, leading).bytes();
        let is_bool = outputs[output].tensor_type().element == ElementType::Bool;
        let all = outputs[output].tensor_type().bytes();
        let start = outputs[output].elements_mut().start_mut();
        if let Some(other) = twin(graph, output) {
            let from = outputs[other].elements().start();
            // SAFETY: both have the bytes of the same value, and are borrowed apart.
            unsafe { from.copy_to_nonoverlapping(start, written) };
        } else if is_bool {
            for byte in 0..written {
                // SAFETY: the output has so many bytes. As a bool each may have 0 or 1 alone.
                unsafe {
                    let place = start.add(byte);
                    place.write(u8::from(place.read() != 0));
                }
            }
        }
        // SAFETY: the output has so many bytes; all types have 0 in bytes of 0.
        unsafe { start.add(written).write_bytes(0, all - written) };
    }
}
