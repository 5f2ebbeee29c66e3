//! Which nodes become one step.

use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::description::quantization::QuantB;
use crate::graph::description::{Graph, NodeInfo, Source};
use crate::graph::{Operator, TensorType};
use crate::operands::weights::Weights;

/// Nodes that are computed together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    /// In order; the first computes what the others go on from.
    pub nodes: Vec<usize>,
    /// What is added to each row of a product.
    pub bias: Option<usize>,
    /// What is added to a product element by element.
    pub residual: Option<usize>,
    pub activation: Activation,
    /// The node that dequantises the weights of a product.
    pub dequantize: Option<usize>,
}

impl Group {
    const fn new(nodes: Vec<usize>) -> Self {
        Self { nodes, bias: None, residual: None, activation: Activation::None, dequantize: None }
    }

    /// All nodes that it stands for.
    pub(crate) fn all(&self) -> impl Iterator<Item = usize> {
        self.dequantize.iter().chain(&self.nodes).copied()
    }

    /// The last node, whose result is the group's.
    pub(crate) fn last(&self) -> usize {
        self.nodes.last().copied().unwrap_or(0)
    }
}

/// The activation of a product that a node computes of its only input.
pub(crate) const fn activation_of(operator: &Operator) -> Option<Activation> {
    match operator {
        Operator::Relu => Some(Activation::Relu),
        Operator::Gelu { tanh: false } => Some(Activation::Gelu),
        Operator::Gelu { tanh: true } => Some(Activation::GeluTanh),
        Operator::Sigmoid => Some(Activation::Sigmoid),
        Operator::Tanh => Some(Activation::Tanh),
        _ => None,
    }
}

/// All nodes in groups, in the order of their last nodes: products with bias, residual and activation behind them, the
/// others alone.
pub(crate) fn groups(graph: &Graph) -> Vec<Group> {
    let mut readers = vec![Vec::new(); graph.values.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in node.inputs.iter().flatten() {
            readers[*input].push(index);
        }
    }
    let is_output = |value: usize| graph.outputs.iter().any(|(_, output)| *output == value);
    // The only node that reads a value which is needed nowhere else.
    let only_reader = |value: usize| match readers[value][..] {
        [reader] if !is_output(value) => Some(reader),
        _ => None,
    };
    // Products read quantised weights as they are.
    let mut taken: Vec<bool> =
        graph.nodes.iter().map(|node| quantized_weights(graph, node).is_some()).collect();
    let mut groups = Vec::with_capacity(graph.nodes.len());
    for (first, node) in graph.nodes.iter().enumerate() {
        if std::mem::replace(&mut taken[first], true) {
            continue;
        }
        let mut group = Group::new(vec![first]);
        group.dequantize = node.inputs.get(1).copied().flatten().and_then(|b| dequantizing(graph, b));
        if is_product_of_rows(graph, first) {
            let mut value = node.outputs[0];
            while let Some(reader) = only_reader(value).filter(|_| group.activation == Activation::None) {
                // A sum of two products belongs to the first of them.
                if taken[reader] || !group.takes(graph, reader, value) {
                    break;
                }
                taken[reader] = true;
                group.nodes.push(reader);
                value = graph.nodes[reader].outputs[0];
            }
        }
        groups.push(group);
    }
    groups.sort_by_key(Group::last);
    groups
}

impl Group {
    /// Whether a node that goes on from `value` becomes part of the product, which it is then.
    fn takes(&mut self, graph: &Graph, node: usize, value: usize) -> bool {
        let node = &graph.nodes[node];
        if let Some(activation) = activation_of(&node.operator) {
            self.activation = activation;
            return true;
        }
        let (Operator::Add, &[Some(a), Some(b)]) = (&node.operator, &node.inputs[..]) else { return false };
        let other = if a == value { b } else { a };
        let of = |value: usize| &graph.values[value];
        let (result, added) = (of(value).tensor_type.shape, of(other).tensor_type.shape);
        let n = result.dims().last().copied().unwrap_or(1);
        let is_constant = matches!(of(other).source, Source::Constant(_) | Source::Weights(_));
        let is_row = added.rank() <= result.rank() && added.count() == n && added.dims().last() == Some(&n);
        if is_constant && is_row && self.bias.is_none() {
            self.bias = Some(other);
        } else if added == result && self.residual.is_none() {
            self.residual = Some(other);
        } else {
            return false;
        }
        true
    }
}

/// Whether a node is a product whose B is one matrix.
fn is_product_of_rows(graph: &Graph, node: usize) -> bool {
    let node = &graph.nodes[node];
    let of = |index: usize| -> Option<TensorType> {
        node.inputs.get(index).copied().flatten().map(|value| graph.values[value].tensor_type)
    };
    let is_f32 = of(0).is_some_and(|a| a.element == ElementType::F32);
    match &node.operator {
        Operator::MatMul => {
            is_f32 && of(1).is_some_and(|b| b.shape.rank() >= 2 && is_one_matrix(&b) && !is_vector(of(0)))
        }
        Operator::Gemm { .. } => is_f32 && of(2).is_none(),
        _ => false,
    }
}

/// The node that dequantises the weights of products alone, if a value is its result.
fn dequantizing(graph: &Graph, value: usize) -> Option<usize> {
    let index = graph.nodes.iter().position(|node| node.outputs[..] == [value])?;
    quantized_weights(graph, &graph.nodes[index]).map(|_| index)
}

/// Quantised weights that a node dequantises for products alone, which compute with the integers.
pub(crate) fn quantized_weights<'a>(graph: &'a Graph, node: &NodeInfo) -> Option<&'a Weights> {
    let (Operator::DequantizeLinear { output: ElementType::F32, .. }, Some(&Some(integers)), &[result]) =
        (&node.operator, node.inputs.first(), &node.outputs[..])
    else {
        return None;
    };
    // A builder takes scales and zero points from the handle.
    let Source::Weights(weights) = &graph.values[integers].source else { return None };
    let is_b_of = |reader: &NodeInfo| match reader.operator {
        Operator::MatMul | Operator::Gemm { transpose_b: false, .. } => {
            let is_f32 = |a: &usize| graph.values[*a].tensor_type.element == ElementType::F32;
            reader.inputs[1] == Some(result)
                && reader.inputs.iter().filter(|input| **input == Some(result)).count() == 1
                && reader.inputs[0].as_ref().is_some_and(is_f32)
        }
        _ => false,
    };
    let mut readers = graph.nodes.iter().filter(|reader| reader.inputs.contains(&Some(result)));
    let is_output = graph.outputs.iter().any(|(_, output)| *output == result);
    (weights.scheme() != QuantB::None && !is_output && readers.all(is_b_of)).then_some(weights)
}

fn is_vector(operand: Option<TensorType>) -> bool {
    operand.is_none_or(|operand| operand.shape.rank() < 2)
}

/// Whether all but the last two dimensions are 1.
pub(crate) fn is_one_matrix(operand: &TensorType) -> bool {
    operand.shape.dims().iter().rev().skip(2).all(|dim| *dim == 1)
}
