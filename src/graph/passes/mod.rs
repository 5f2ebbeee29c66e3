//! What a graph becomes before an engine computes it: small passes, one after the other, each from a graph to a graph.
//!
//! A pass changes which node computes a value, never what a value is: values keep their numbers, those that are no longer
//! needed become [`Source::Absent`], and new ones come behind the others. So what a step computes can be compared with
//! the given graph.

mod attention;
mod cleanup;
mod constants;
mod gelu;
mod normalization;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::description::element::ElementType;
use crate::error::Result;
use crate::graph::description::{GraphId, NodeInfo, Source, ValueInfo};
use crate::graph::shape::TensorType;
use crate::graph::{Array, Graph, Operator};

/// What computes constants.
pub(crate) trait Engine {
    /// Whether it has a node's operator.
    fn takes(&self, graph: &Graph, node: &NodeInfo) -> bool;

    /// The outputs of a graph without inputs.
    fn outputs(&self, graph: &Graph) -> Result<Vec<Array>>;
}

/// A pass by its name: whether it changed anything.
type Pass = (&'static str, fn(&mut Rewritten, &dyn Engine) -> bool);

/// In their order. Fusions look for nodes that read each other directly, so what stands between goes first.
pub(crate) const PASSES: [Pass; 8] = [
    ("constant folding", constants::fold),
    ("identity elimination", |graph, _| cleanup::eliminate_identities(graph)),
    ("common subexpression elimination", |graph, _| cleanup::eliminate_common_subexpressions(graph)),
    ("normalization fusion", |graph, _| graph.fuse(normalization::find)),
    ("GELU fusion", |graph, _| graph.fuse(gelu::find)),
    ("attention fusion", |graph, _| graph.fuse(attention::find)),
    ("attention head fusion", |graph, _| graph.fuse(attention::find_heads)),
    ("dead node elimination", |graph, _| cleanup::eliminate_dead_nodes(graph)),
];

/// A graph on its way through the passes.
#[derive(Debug, Clone)]
pub(crate) struct Rewritten {
    /// Its values are those of the given graph, and new ones behind them.
    pub graph: Graph,
    /// For each node those of the given graph that it stands for, in order.
    pub sources: Vec<Vec<usize>>,
}

/// What a graph is after a pass ([`Graph::passes`]).
///
/// ```
/// use ane_matmul::ElementType;
/// use ane_matmul::graph::GraphBuilder;
///
/// let mut g = GraphBuilder::new();
/// let x = g.input("x", ElementType::F32, &[4, 8])?;
/// let scaled = g.mul_scalar(x, std::f64::consts::FRAC_1_SQRT_2)?; // GELU, as exporters write it
/// let erf = g.erf(scaled)?;
/// let sum = g.add_scalar(erf, 1.0)?;
/// let product = g.mul(x, sum)?;
/// let y = g.mul_scalar(product, 0.5)?;
/// let graph = g.finish(&[("y", y)])?;
///
/// let passes = graph.passes()?;
/// for pass in &passes {
///     println!("after {}:\n{}", pass.name, pass.graph);
/// }
/// let last = &passes.last().expect("GELU").graph;
/// assert_eq!(last.nodes().map(|(_, operator)| operator.name()).collect::<Vec<_>>(), ["Gelu"]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PassReport {
    /// The name of the pass.
    pub name: &'static str,
    /// The graph after it.
    pub graph: Graph,
}

/// A node that computes a value in another way, and makes others superfluous if nothing else reads them.
pub(crate) struct Fusion {
    /// The nodes that it stands for, the last of which has the value that it computes.
    nodes: Vec<usize>,
    operator: Operator,
    inputs: Vec<Operand>,
}

/// What a fused node reads.
pub(crate) enum Operand {
    Value(usize),
    /// A vector of ones.
    Ones(Vec<usize>),
    /// The transpose of a value, as another one than this node's.
    Transposed {
        value: usize,
        perm: Vec<usize>,
        node: usize,
    },
}

impl Rewritten {
    /// After all passes; `after` sees the graph after each that changed something.
    pub(crate) fn new(
        graph: &Graph,
        engine: &dyn Engine,
        mut after: impl FnMut(&'static str, &Graph),
    ) -> Self {
        let mut rewritten = Self::unchanged(graph);
        for (name, pass) in PASSES {
            if pass(&mut rewritten, engine) {
                after(name, &rewritten.graph);
            }
        }
        rewritten
    }

    pub(crate) fn unchanged(graph: &Graph) -> Self {
        let mut graph = graph.clone();
        graph.named = None;
        graph.id = GraphId::new();
        let sources = (0..graph.nodes.len()).map(|node| vec![node]).collect();
        Self { graph, sources }
    }

    /// Puts fusions where `find` finds one at a node, the last nodes first.
    fn fuse(&mut self, find: impl Fn(&Matcher<'_>, usize) -> Option<Fusion>) -> bool {
        let producers = self.producers();
        let mut taken = vec![false; self.graph.nodes.len()];
        let mut fusions: Vec<Option<Fusion>> = Vec::new();
        fusions.resize_with(taken.len(), || None);
        for node in (0..taken.len()).rev().filter(|node| self.graph.nodes[*node].outputs.len() == 1) {
            if taken[node] {
                continue;
            }
            let matcher = Matcher { graph: &self.graph, producers: &producers };
            if let Some(fusion) = find(&matcher, node) {
                for taken_node in &fusion.nodes {
                    taken[*taken_node] = true;
                }
                fusions[node] = Some(fusion);
            }
        }
        if fusions.iter().all(Option::is_none) {
            return false;
        }
        let given = self.clone();
        self.apply(fusions);
        if !self.graph.varies_as_it_says() {
            *self = given;
            return false;
        }
        cleanup::eliminate_dead_nodes(self);
        true
    }

    /// Replaces each node by its fusion.
    fn apply(&mut self, fusions: Vec<Option<Fusion>>) {
        let nodes = std::mem::take(&mut self.graph.nodes);
        let mut sources = std::mem::take(&mut self.sources);
        let given = sources.clone();
        let names: Vec<_> = nodes.iter().map(|node| node.name.clone()).collect();
        let mut kept = Vec::with_capacity(nodes.len());
        for (index, (node, fusion)) in nodes.into_iter().zip(fusions).enumerate() {
            let Some(Fusion { nodes: stands_for, operator, inputs }) = fusion else {
                kept.push(std::mem::take(&mut sources[index]));
                self.graph.nodes.push(node);
                continue;
            };
            let mut operands = Vec::with_capacity(inputs.len());
            for input in inputs {
                operands.push(Some(match input {
                    Operand::Value(value) => value,
                    Operand::Ones(dims) => self.ones(&dims),
                    Operand::Transposed { value, perm, node } => {
                        kept.push(given[node].clone());
                        self.transposed(value, perm, names[node].clone())
                    }
                }));
            }
            let mut of_all: Vec<_> =
                stands_for.iter().flat_map(|node| given[*node].iter().copied()).collect();
            of_all.sort_unstable();
            of_all.dedup();
            kept.push(of_all);
            self.graph.nodes.push(NodeInfo { operator, inputs: operands, ..node });
        }
        self.sources = kept;
    }

    /// For each value the node that computes it.
    fn producers(&self) -> Vec<Option<usize>> {
        let mut producers = vec![None; self.graph.values.len()];
        for (index, node) in self.graph.nodes.iter().enumerate() {
            for value in &node.outputs {
                producers[*value] = Some(index);
            }
        }
        producers
    }

    fn ones(&mut self, dims: &[usize]) -> usize {
        let ones =
            Array::new(dims, vec![1f32; dims.iter().product()]).unwrap_or_else(|_| Array::scalar(1f32));
        let tensor_type = ones.tensor_type();
        self.value(tensor_type, Source::Constant(Arc::new(ones)))
    }

    fn transposed(&mut self, value: usize, perm: Vec<usize>, name: String) -> usize {
        let TensorType { element, shape } = self.graph.values[value].tensor_type;
        let turned =
            (0..).zip(&perm).fold(shape, |turned, (to, from)| turned.with_dim(to, shape.dims()[*from]));
        let result = self.value(TensorType::new(element, turned), Source::Node);
        if let Some(leading) = &mut self.graph.leading {
            leading.values[result] = leading.values[value].and_then(|mut varying| {
                varying.axis = perm.iter().position(|from| *from == varying.axis)?;
                Some(varying)
            });
        }
        let operator = Operator::Transpose { perm };
        self.graph.nodes.push(NodeInfo { name, operator, inputs: vec![Some(value)], outputs: vec![result] });
        result
    }

    /// A new value, which has nothing to do with a leading dimension.
    fn value(&mut self, tensor_type: TensorType, source: Source) -> usize {
        let index = self.graph.values.len();
        self.graph.values.push(ValueInfo { name: format!("passes.{index}"), tensor_type, source });
        if let Some(leading) = &mut self.graph.leading {
            leading.values.push(None);
        }
        index
    }
}

/// What fusions ask of a graph.
pub(crate) struct Matcher<'a> {
    graph: &'a Graph,
    producers: &'a [Option<usize>],
}

impl Matcher<'_> {
    fn dims(&self, value: usize) -> &[usize] {
        self.graph.values[value].tensor_type.shape.dims()
    }

    fn is_f32(&self, value: usize) -> bool {
        self.graph.values[value].tensor_type.element == ElementType::F32
    }

    /// The node that computes a value, if it has one result, with its number.
    fn producer(&self, value: usize) -> Option<(usize, &NodeInfo)> {
        let index = self.producers[value]?;
        let node = &self.graph.nodes[index];
        (node.outputs.len() == 1).then_some((index, node))
    }

    /// A constant of one element.
    fn scalar(&self, value: usize) -> Option<f64> {
        let Source::Constant(array) = &self.graph.values[value].source else { return None };
        match array.data::<f32>() {
            Some([element]) => Some(f64::from(*element)),
            _ => None,
        }
    }

    /// The two operands of a node that computes a value with an operator of this name, each way round.
    fn operands(&self, value: usize, operator: &Operator) -> Option<(usize, [(usize, usize); 2])> {
        let (index, node) = self.producer(value)?;
        let &[Some(a), Some(b)] = &node.inputs[..] else { return None };
        (node.operator == *operator).then_some((index, [(a, b), (b, a)]))
    }

    /// The only operand of a node that computes a value with an operator.
    fn operand(&self, value: usize, operator: &Operator) -> Option<(usize, usize)> {
        let (index, node) = self.producer(value)?;
        let &[Some(x)] = &node.inputs[..] else { return None };
        (node.operator == *operator).then_some((index, x))
    }

    /// What a value is a multiple of, and the factor, with the node that multiplies.
    fn factor(&self, value: usize) -> Option<(usize, usize, f64)> {
        if let Some((node, ways)) = self.operands(value, &Operator::Mul) {
            let found = ways.into_iter().find_map(|(x, factor)| Some((node, x, self.scalar(factor)?)));
            return found.filter(|(_, x, _)| self.dims(*x) == self.dims(value));
        }
        let (node, [(x, divisor), _]) = self.operands(value, &Operator::Div)?;
        let divisor = self.scalar(divisor)?;
        (self.dims(x) == self.dims(value)).then_some((node, x, 1.0 / divisor))
    }
}
