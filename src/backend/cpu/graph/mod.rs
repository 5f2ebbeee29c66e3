//! Whole graphs on the CPU engine: after the [passes](crate::graph::passes) nodes become steps, values lie in one arena,
//! and a run goes through the steps with one wake-up of the pool.
//!
//! - [`groups`]: which nodes become one step; [`lower`]: which step that is, or why there is none; [`step`]: the steps,
//!   and the parts that threads take; [`product`], [`attention`], [`elementwise`], [`movement`], [`reduce`]: what they compute.
//! - [`memory`]: where values lie; [`run`]: one run.

#![allow(clippy::cast_ptr_alignment, reason = "values are aligned for their elements")]

mod attention;
mod elementwise;
mod groups;
mod lower;
mod memory;
mod movement;
mod product;
mod reduce;
mod run;
mod step;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::microkernel::instances::{self, VectorFunctions};
use super::support::check_device;
use super::threads::Team;
use super::{Cpu, WORK_TO_WAKE_NS, worthwhile_threads};
use crate::backend::refusal::NodeRefusal;
use crate::backend::{GraphInfo, GraphProgram, GraphRun};
use crate::description::options::{CompileOptions, Threads};
use crate::error::Result;
use crate::graph::description::{Graph, NodeInfo, Source};
use crate::graph::passes::{Engine, Rewritten};
use crate::graph::report;
use crate::graph::{Array, Operator};
use crate::operands::weights::Weights;

use lower::{Lowering, is_alias};
use memory::{Lifetime, Place, arrange};
use run::CpuGraphRun;
use step::{Kind, Step};

/// A graph, and how it is computed.
pub(crate) struct Program {
    /// After the passes: its values are those of the given graph, and more behind them.
    graph: Graph,
    steps: Vec<Step>,
    vector: &'static VectorFunctions,
    team: Option<Team>,
    threads: usize,
    /// For each node of the given graph the step that it is part of.
    step_of: Vec<Option<usize>>,
    /// Of the constants that passes have made.
    folded_bytes: usize,
}

/// Where the values of a run lie.
pub(crate) struct Memory {
    /// Of each value.
    places: Vec<Place>,
    /// Outputs that lie elsewhere: each is copied from a value at the end.
    copied_outputs: Vec<(usize, usize)>,
    arena_bytes: usize,
    values_bytes: usize,
    /// Weights in the order of their values; places point into them.
    constants: Vec<Weights>,
}

impl Engine for Cpu {
    fn takes(&self, graph: &Graph, node: &NodeInfo) -> bool {
        // Quantised weights stay what they are, and so do elements of which no array consists.
        !matches!(node.operator, Operator::DequantizeLinear { .. })
            && node.outputs.iter().all(|value| graph.values[*value].tensor_type.element.bits() >= 8)
            && lower::check(graph, node).is_ok()
    }

    fn outputs(&self, graph: &Graph) -> Result<Vec<Array>> {
        let options = CompileOptions::default().threads(Threads::Count(NonZeroUsize::MIN));
        let compiled = self.compile_rewritten(graph, Rewritten::unchanged(graph), &options)?;
        let types = graph.outputs.iter().map(|(_, value)| graph.values[*value].tensor_type);
        let mut outputs = types.map(Array::zeros).collect::<Result<Vec<_>>>()?;
        compiled.open(false)?.run(0, &[], &mut outputs.iter_mut().collect::<Vec<_>>(), None)?;
        Ok(outputs)
    }
}

impl Cpu {
    /// The nodes that the engine has no step for.
    pub(super) fn refused_graph_nodes(&self, graph: &Graph, options: &CompileOptions) -> Vec<NodeRefusal> {
        let Rewritten { graph: rewritten, sources } = Rewritten::new(graph, self, |_, _| ());
        let answer = |node| check_device(options).and_then(|()| lower::check(&rewritten, node));
        let answers = rewritten.nodes.iter().map(answer).zip(sources);
        let refused = answers.filter_map(|(answer, sources)| Some((*sources.last()?, answer.err()?)));
        refused.map(|(index, refusal)| NodeRefusal::new(graph, index, refusal)).collect()
    }

    pub(super) fn compile_graph_program(&self, graph: &Graph, options: &CompileOptions) -> Result<CpuGraph> {
        self.compile_rewritten(graph, Rewritten::new(graph, self, |_, _| ()), options)
    }

    fn compile_rewritten(
        &self,
        given: &Graph,
        rewritten: Rewritten,
        options: &CompileOptions,
    ) -> Result<CpuGraph> {
        let Rewritten { mut graph, sources } = rewritten;
        let work_ns = work_ns(&graph);
        let threads = worthwhile_threads(work_ns, options.threads.number());
        let (team, threads) = self.team(options, threads, work_ns.max(2.0 * WORK_TO_WAKE_NS))?;
        let mut lowering = Lowering { cpu: self, graph: &graph, threads, products: 0 };
        let mut steps = Vec::with_capacity(graph.nodes.len());
        let mut step_of = vec![None; given.nodes.len()];
        for group in groups::groups(&graph) {
            if is_alias(&graph, &graph.nodes[group.last()]) {
                continue;
            }
            // A node that a fusion stands for, but others read as well, comes before it, with a step of its own.
            for source in group.all().flat_map(|node| &sources[node]) {
                step_of[*source].get_or_insert(steps.len());
            }
            steps.push(lowering.step(&group)?);
        }
        // Constants that passes have made: those of products are in their plans.
        let mut folded_bytes = 0;
        let roots = roots(&graph);
        let of_steps = steps.iter().flat_map(|step| step.inputs.iter().flatten());
        let of_outputs = graph.outputs.iter().map(|(_, value)| value);
        let read: HashSet<usize> = of_steps.chain(of_outputs).map(|value| roots[*value]).collect();
        for (index, value) in graph.values.iter_mut().enumerate() {
            let is_given = given.values.get(index).is_some_and(|given| !matches!(given.source, Source::Node));
            if is_given || !matches!(value.source, Source::Constant(_)) {
                continue;
            }
            if read.contains(&index) {
                folded_bytes += value.tensor_type.bytes();
            } else {
                value.source = Source::Absent;
            }
        }
        let vector = instances::of(self.isa).f32.vector;
        let program = Program { graph, steps, vector, team, threads, step_of, folded_bytes };
        let memory = program.memory(false)?;
        Ok(CpuGraph { program: Arc::new(program), memory: Arc::new(memory) })
    }
}

/// About how long one thread takes.
#[allow(clippy::cast_precision_loss, reason = "an estimate")]
fn work_ns(graph: &Graph) -> f64 {
    graph.nodes.iter().map(|node| report::flops(graph, node) as f64 / 2.0 / super::MULTIPLY_ADDS_PER_NS).sum()
}

/// For each value that whose elements it has.
fn roots(graph: &Graph) -> Vec<usize> {
    let mut roots: Vec<usize> = (0..graph.values.len()).collect();
    for node in graph.nodes.iter().filter(|node| is_alias(graph, node)) {
        if let Some(input) = node.inputs[0] {
            roots[node.outputs[0]] = roots[input];
        }
    }
    roots
}

impl Program {
    /// Decides where all values lie. Those that are kept take no other's place: all can be read after a run.
    fn memory(&self, keep_values: bool) -> Result<Memory> {
        let graph = &self.graph;
        let (mut constants, mut copied_outputs, mut values_bytes) = (Vec::new(), Vec::new(), 0usize);
        let root = roots(graph);
        let end = self.steps.len();
        let mut lifetimes: Vec<Option<Lifetime>> = vec![None; graph.values.len()];
        for (index, step) in self.steps.iter().enumerate() {
            for value in &step.outputs {
                let bytes = graph.values[*value].tensor_type.bytes();
                lifetimes[*value] = Some(Lifetime { bytes, first: index, last: index });
            }
            for value in step.inputs.iter().flatten() {
                if let Some(lifetime) = &mut lifetimes[root[*value]] {
                    lifetime.last = index;
                }
            }
        }
        let mut places = vec![Place::Nowhere; graph.values.len()];
        for (value, info) in graph.values.iter().enumerate() {
            match &info.source {
                Source::Constant(array) => places[value] = Place::Constant(array.elements().start()),
                Source::Weights(weights) => {
                    // Those of products are in their plans.
                    let mut read = self.steps.iter().flat_map(|step| step.inputs.iter().flatten());
                    let is_output = graph.outputs.iter().any(|(_, output)| root[*output] == value);
                    if is_output || read.any(|input| root[*input] == value) {
                        let in_order = weights.in_order()?;
                        places[value] = Place::Constant(in_order.view().memory().0);
                        constants.push(in_order);
                    }
                }
                Source::Input | Source::Node | Source::Absent => {}
            }
        }
        for (input, value) in graph.inputs.iter().enumerate() {
            places[*value] = Place::Input(input);
        }
        for (output, (_, value)) in graph.outputs.iter().enumerate() {
            let value = root[*value];
            if lifetimes[value].is_some() && places[value] == Place::Nowhere {
                places[value] = Place::Output(output);
            } else {
                copied_outputs.push((output, value));
                if let Some(lifetime) = &mut lifetimes[value] {
                    lifetime.last = end;
                }
            }
        }
        let mut parts = Vec::new();
        let mut of_part = Vec::new();
        for (value, lifetime) in lifetimes.iter().enumerate() {
            if let Some(lifetime) = lifetime.filter(|_| places[value] == Place::Nowhere) {
                values_bytes = values_bytes.saturating_add(lifetime.bytes);
                let lifetime =
                    if keep_values { Lifetime { first: 0, last: end, ..lifetime } } else { lifetime };
                parts.push(lifetime);
                of_part.push(value);
            }
        }
        let (starts, arena_bytes) = arrange(&parts);
        for (start, value) in starts.into_iter().zip(of_part) {
            places[value] = Place::Arena(start);
        }
        let places = root.iter().map(|root| places[*root]).collect();
        Ok(Memory { places, copied_outputs, arena_bytes, values_bytes, constants })
    }

    /// The scratch memory of a thread for attention.
    fn attention_words(&self) -> usize {
        let words = self.steps.iter().map(|step| match &step.kind {
            Kind::Attention(attention) => attention.words,
            _ => 0,
        });
        words.max().unwrap_or(0)
    }

    fn products(&self) -> impl Iterator<Item = &product::Product> {
        self.steps.iter().filter_map(|step| match &step.kind {
            Kind::Product(product) => Some(&**product),
            _ => None,
        })
    }
}

pub(crate) struct CpuGraph {
    program: Arc<Program>,
    memory: Arc<Memory>,
}

impl GraphProgram for CpuGraph {
    fn open(&self, keep_values: bool) -> Result<Box<dyn GraphRun>> {
        let memory =
            if keep_values { Arc::new(self.program.memory(true)?) } else { Arc::clone(&self.memory) };
        Ok(Box::new(CpuGraphRun::new(Arc::clone(&self.program), memory)?))
    }

    fn shows_values(&self) -> bool {
        true
    }

    fn info(&self) -> GraphInfo {
        let program = &*self.program;
        let name = |step: &Step| program.graph.nodes[step.node].name.clone();
        // Two products of the same weights have them in common.
        let mut shared: HashMap<usize, usize> =
            program.products().filter_map(|product| product.plan.b.shared()).collect();
        let is_copy = |weights: &Weights| {
            let memory = weights.view().memory().0;
            !program.graph.weights().any(|own| std::ptr::eq(own.view().memory().0, memory))
        };
        for copy in self.memory.constants.iter().filter(|weights| is_copy(weights)) {
            let (start, bytes) = copy.view().memory();
            shared.insert(start.addr(), bytes);
        }
        let own = |product: &product::Product| {
            product.plan.bytes() - product.plan.b.shared().map_or(0, |(_, bytes)| bytes)
        };
        GraphInfo {
            step_of: program.step_of.clone(),
            steps: program.steps.iter().map(name).collect(),
            weight_bytes: program.products().map(own).sum::<usize>()
                + shared.values().sum::<usize>()
                + program.folded_bytes,
            shared: shared.into_iter().collect(),
            arena_bytes: self.memory.arena_bytes,
            values_bytes: self.memory.values_bytes,
            threads: Some(program.threads),
            instant_start: None,
        }
    }
}
