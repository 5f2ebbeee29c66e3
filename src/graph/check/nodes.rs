//! Whether the values that an engine has of a graph are right, node by node.

use std::fmt;

use crate::alloc;
use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph::Operator;
use crate::graph::accuracy::{self, Estimate};
use crate::graph::array::Array;
use crate::graph::description::{Graph, Source};
use crate::graph::interpret::Values;
use crate::verify::accuracy::ratio;

use super::WHAT;

/// An element that is further from its float64 result than its bound. [`NodesReport`] has an example.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WrongNode {
    /// The name of the node.
    pub node: String,
    /// The name of its operator.
    pub operator: &'static str,
    /// Which of its results.
    pub output: usize,
    /// The element of it, in row-major order.
    pub element: usize,
    /// The backend's result.
    pub got: f64,
    /// The float64 result of the values that the backend has of the node's inputs.
    pub expected: f64,
    /// The most by which they may differ.
    pub bound: f64,
}

impl fmt::Display for WrongNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, operator, output, element, got, expected, bound } = self;
        write!(
            f,
            "node `{node}`: {operator}: element {element} of result {output} is {got}, expected {expected} within {bound:e}"
        )
    }
}

/// What [`CompiledGraph::check_nodes`](crate::graph::CompiledGraph::check_nodes) found.
///
/// ```
/// use ane_matmul::graph::{Array, GraphBuilder};
/// use ane_matmul::{BackendId, ElementType};
///
/// let mut g = GraphBuilder::new();
/// let x = g.input("x", ElementType::F32, &[2, 3])?;
/// let y = g.named("weights").softmax(x, -1)?;
/// let compiled = g.finish(&[("y", y)])?.compile(&BackendId::CPU)?;
/// let x = Array::new(&[2, 3], vec![1f32, 2.0, 3.0, -1.0, 0.0, 5.0])?;
/// let report = compiled.check_nodes(&[&x], |name| name == "weights")?;
/// if let Some(wrong) = &report.wrong {
///     println!("{wrong}");
/// }
/// assert!(report.is_right() && report.compared == 6);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NodesReport {
    /// For each node, in the graph's order, the largest ratio of an error to its bound, at most 1 where it is right;
    /// `None` for a node that was not chosen, or none of whose values the backend has.
    pub worst: Vec<Option<f64>>,
    /// The first one, in the order of the nodes.
    pub wrong: Option<WrongNode>,
    /// The elements that were compared.
    pub compared: usize,
    /// Those of them that may be anything, since numbers on the way may overflow or divisors be 0.
    pub unbounded: usize,
}

impl NodesReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_right(&self) -> bool {
        self.wrong.is_none()
    }
}

/// Computes each node in float64 from the values that an engine has of its inputs, and compares the engine's with it,
/// within the bounds of [`accuracy`]. Where values in the middle of a group of nodes are absent, they are computed from
/// the nearest ones that the engine has, with bounds of their own.
///
/// `values` has an element for each value of the graph; those of inputs and constants do not count. Nodes that are not
/// `chosen` are computed where that is needed for others.
///
/// # Errors
/// As [`Graph::interpret_f64`]; [`Error::Graph`] for another number of values, a value of another type or other
/// dimensions, an output of the graph that is absent, and as [`accuracy::evaluate`] where there is no rule for the
/// errors of a value that is absent.
pub(crate) fn check_nodes(
    graph: &Graph,
    inputs: &[&Array],
    values: &[Option<Array>],
    chosen: impl Fn(&str) -> bool,
) -> Result<NodesReport> {
    if values.len() != graph.values.len() {
        let problem = format!("expected {} values of an engine, got {}", graph.values.len(), values.len());
        return Err(Error::graph(problem));
    }
    if let Some((name, _)) = graph.outputs.iter().find(|(_, index)| values[*index].is_none()) {
        return Err(Error::graph(format!("output `{name}`: the engine has no value of it")));
    }
    graph.check_inputs(inputs)?;
    let mut last_reads = alloc::filled(values.len(), None, WHAT)?;
    for (number, node) in graph.nodes.iter().enumerate() {
        for input in node.inputs.iter().flatten() {
            last_reads[*input] = Some(number);
        }
    }
    let mut known: Vec<Option<Estimate>> = alloc::with_capacity(values.len(), WHAT)?;
    known.resize_with(values.len(), || None);
    for (array, index) in inputs.iter().zip(&graph.inputs) {
        known[*index] = Some(Estimate::known(Values::of_array(array)?)?);
    }
    let mut report = NodesReport {
        worst: alloc::filled(graph.nodes.len(), None, WHAT)?,
        wrong: None,
        compared: 0,
        unbounded: 0,
    };
    for (number, node) in graph.nodes.iter().enumerate() {
        for input in node.inputs.iter().flatten() {
            if known[*input].is_none() {
                let value = &graph.values[*input];
                known[*input] = match &value.source {
                    Source::Constant(array) => Some(Estimate::known(Values::of_array(array)?)?),
                    Source::Weights(weights) => {
                        Some(Estimate::known(Values::of_weights(weights, value.tensor_type)?)?)
                    }
                    Source::Input | Source::Node | Source::Absent => None,
                };
            }
        }
        let inputs: Vec<_> =
            node.inputs.iter().map(|input| input.and_then(|index| known[index].as_ref())).collect();
        let is_chosen = chosen(&node.name);
        let is_needed = is_chosen || node.outputs.iter().any(|index| values[*index].is_none());
        let results = if is_needed { accuracy::evaluate(node, &inputs)? } else { Vec::new() };
        let mut results = results.into_iter();
        for (output, index) in node.outputs.iter().enumerate() {
            let result = results.next();
            let Some(got) = &values[*index] else {
                known[*index] = result.map(Estimate::hidden).transpose()?;
                continue;
            };
            if got.tensor_type() != graph.values[*index].tensor_type {
                let problem = format!(
                    "{}: the engine's value is {}, not {}",
                    node.operator,
                    got.tensor_type(),
                    graph.values[*index].tensor_type
                );
                return Err(Error::Graph { node: node.name.clone(), problem });
            }
            let got = Estimate::known(Values::of_array(got)?)?;
            if let Some(result) = result.filter(|_| is_chosen) {
                let is_open = matches!(node.operator, Operator::Attention(_));
                let (worst, element) = compare(&result, &got, is_open, &mut report);
                report.worst[number] = Some(report.worst[number].unwrap_or(0f64).max(worst));
                if worst > 1.0 && report.wrong.is_none() {
                    report.wrong = Some(WrongNode {
                        node: node.name.clone(),
                        operator: node.operator.name(),
                        output,
                        element,
                        got: got.number(element),
                        expected: result.number(element),
                        bound: result.error(element),
                    });
                }
            }
            known[*index] = Some(got);
        }
        for index in node.inputs.iter().flatten() {
            if last_reads[*index] == Some(number) {
                known[*index] = None;
            }
        }
    }
    Ok(report)
}

/// The largest ratio of an error to its bound, and the element that has it. Where `is_open`, an element without a bound
/// may be anything: of a V that is not finite, for a key that is not seen, attention may take 0 times it or nothing.
fn compare(result: &Estimate, got: &Estimate, is_open: bool, report: &mut NodesReport) -> (f64, usize) {
    let element = result.values.tensor_type.element;
    let mut worst = (0.0, 0);
    let count = result.shape().count();
    for index in 0..count {
        let ratio = match result.error(index) {
            f64::INFINITY if is_open => 0.0,
            bound => ratio_of(element, result.number(index), got.number(index), bound),
        };
        if ratio > worst.0 {
            worst = (ratio, index);
        }
        report.unbounded += usize::from(result.error(index) == f64::INFINITY);
    }
    report.compared += count;
    worst
}

/// At most 1 where an element is right. NaN and infinities are what they should be, unless there is no bound.
fn ratio_of(element: ElementType, expected: f64, got: f64, bound: f64) -> f64 {
    ratio(expected, got, bound, accuracy::largest(element))
}
