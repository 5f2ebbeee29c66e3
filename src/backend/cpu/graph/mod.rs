//! Whole graphs on the CPU engine: nodes become steps, values lie in one arena, and a run goes through the steps with
//! one wake-up of the pool.
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

use std::collections::HashMap;
use std::sync::Arc;

use super::microkernel::instances::{self, VectorFunctions};
use super::support::check_device;
use super::threads::Team;
use super::{Cpu, WORK_TO_WAKE_NS, worthwhile_threads};
use crate::backend::refusal::NodeRefusal;
use crate::backend::{GraphInfo, GraphProgram, GraphRun};
use crate::description::options::CompileOptions;
use crate::error::Result;
use crate::graph::description::{Graph, Source};
use crate::graph::report;
use crate::operands::weights::Weights;

use lower::{Lowering, is_alias};
use memory::{Lifetime, Place, arrange};
use run::CpuGraphRun;
use step::{Kind, Step};

/// A graph, and how it is computed.
pub(crate) struct Program {
    graph: Graph,
    steps: Vec<Step>,
    vector: &'static VectorFunctions,
    team: Option<Team>,
    threads: usize,
    /// For each node the step that it is part of.
    step_of: Vec<Option<usize>>,
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

/// The nodes that the engine has no step for.
pub(super) fn refused_nodes(graph: &Graph, options: &CompileOptions) -> Vec<NodeRefusal> {
    let answer = |node| check_device(options).and_then(|()| lower::check(graph, node));
    let answers = graph.nodes.iter().map(answer).enumerate();
    let refused = answers.filter_map(|(index, answer)| Some((index, answer.err()?)));
    refused.map(|(index, refusal)| NodeRefusal::new(graph, index, refusal)).collect()
}

impl Cpu {
    pub(super) fn compile_graph_program(&self, graph: &Graph, options: &CompileOptions) -> Result<CpuGraph> {
        let work_ns = work_ns(graph);
        let threads = worthwhile_threads(work_ns, options.threads.number());
        let (team, threads) = self.team(options, threads, work_ns.max(2.0 * WORK_TO_WAKE_NS))?;
        let mut lowering = Lowering { cpu: self, graph, threads, products: 0 };
        let mut steps = Vec::with_capacity(graph.nodes.len());
        let mut step_of = vec![None; graph.nodes.len()];
        for group in groups::groups(graph) {
            if is_alias(graph, &graph.nodes[group.last()]) {
                continue;
            }
            for node in &group.nodes {
                step_of[*node] = Some(steps.len());
            }
            steps.push(lowering.step(&group)?);
        }
        let vector = instances::of(self.isa).f32.vector;
        let program = Program { graph: graph.clone(), steps, vector, team, threads, step_of };
        let memory = program.memory(false)?;
        Ok(CpuGraph { program: Arc::new(program), memory: Arc::new(memory) })
    }
}

/// About how long one thread takes.
#[allow(clippy::cast_precision_loss, reason = "an estimate")]
fn work_ns(graph: &Graph) -> f64 {
    graph.nodes.iter().map(|node| report::flops(graph, node) as f64 / 2.0 / super::MULTIPLY_ADDS_PER_NS).sum()
}

impl Program {
    /// Decides where all values lie. Those that are kept take no other's place: all can be read after a run.
    fn memory(&self, keep_values: bool) -> Result<Memory> {
        let graph = &self.graph;
        let (mut constants, mut copied_outputs, mut values_bytes) = (Vec::new(), Vec::new(), 0usize);
        // The value whose elements a value has.
        let mut root: Vec<usize> = (0..graph.values.len()).collect();
        for node in graph.nodes.iter().filter(|node| is_alias(graph, node)) {
            if let Some(input) = node.inputs[0] {
                root[node.outputs[0]] = root[input];
            }
        }
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
                Source::Input | Source::Node => {}
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
            weight_bytes: program.products().map(own).sum::<usize>() + shared.values().sum::<usize>(),
            shared: shared.into_iter().collect(),
            arena_bytes: self.memory.arena_bytes,
            values_bytes: self.memory.values_bytes,
            threads: Some(program.threads),
            instant_start: None,
        }
    }
}
