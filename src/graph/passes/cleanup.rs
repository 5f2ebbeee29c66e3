//! Nodes that can go.

use std::collections::HashMap;

use super::Rewritten;
use crate::graph::description::{Graph, NodeInfo, Source};
use crate::graph::{Array, Operator};

/// Whether a node gives its input, with the same type and dimensions.
fn is_identity(graph: &Graph, node: &NodeInfo) -> bool {
    let (&[Some(x)], &[y]) = (&node.inputs[..], &node.outputs[..]) else { return false };
    let same = graph.values[x].tensor_type == graph.values[y].tensor_type;
    same && match &node.operator {
        Operator::Transpose { perm } => perm.iter().enumerate().all(|(to, from)| to == *from),
        Operator::Identity
        | Operator::Cast { .. }
        | Operator::Reshape { .. }
        | Operator::Flatten { .. }
        | Operator::Squeeze { .. }
        | Operator::Unsqueeze { .. }
        | Operator::Expand { .. }
        | Operator::Min
        | Operator::Max => true,
        _ => false,
    }
}

/// Lets nodes read what goes into an identity instead of what comes out.
pub(super) fn eliminate_identities(rewritten: &mut Rewritten) -> bool {
    let mut same: Vec<usize> = (0..rewritten.graph.values.len()).collect();
    for node in &rewritten.graph.nodes {
        if let (true, Some(Some(x))) = (is_identity(&rewritten.graph, node), node.inputs.first()) {
            same[node.outputs[0]] = same[*x];
        }
    }
    read_instead(rewritten, &same)
}

/// Lets the first of equal nodes compute for the others.
pub(super) fn eliminate_common_subexpressions(rewritten: &mut Rewritten) -> bool {
    let mut same: Vec<usize> = (0..rewritten.graph.values.len()).collect();
    let mut scalars: HashMap<String, usize> = HashMap::new();
    for (value, info) in rewritten.graph.values.iter().enumerate() {
        if let Source::Constant(array) = &info.source
            && let Some(bits) = bits_of_scalar(array)
        {
            same[value] = *scalars.entry(format!("{} {bits:x}", info.tensor_type)).or_insert(value);
        }
    }
    let mut first: HashMap<(String, Vec<Option<usize>>), usize> = HashMap::new();
    for (index, node) in rewritten.graph.nodes.iter().enumerate() {
        let inputs = node.inputs.iter().map(|input| input.map(|value| same[value])).collect();
        let first = *first.entry((format!("{:?}", node.operator), inputs)).or_insert(index);
        for (own, other) in node.outputs.iter().zip(&rewritten.graph.nodes[first].outputs) {
            same[*own] = *other;
        }
    }
    read_instead(rewritten, &same)
}

fn bits_of_scalar(array: &Array) -> Option<u64> {
    match (array.data::<f32>(), array.data::<i64>()) {
        (Some([x]), _) => Some(x.to_bits().into()),
        (_, Some([x])) => Some(x.cast_unsigned()),
        _ => None,
    }
}

/// Lets nodes read other values, and removes those that nobody reads any more.
fn read_instead(rewritten: &mut Rewritten, same: &[usize]) -> bool {
    for input in rewritten.graph.nodes.iter_mut().flat_map(|node| node.inputs.iter_mut().flatten()) {
        *input = same[*input];
    }
    eliminate_dead_nodes(rewritten)
}

/// Removes nodes and constants that nobody reads.
pub(super) fn eliminate_dead_nodes(rewritten: &mut Rewritten) -> bool {
    let Rewritten { graph, sources } = rewritten;
    let mut is_read = vec![false; graph.values.len()];
    for (_, value) in &graph.outputs {
        is_read[*value] = true;
    }
    let mut stays = vec![false; graph.nodes.len()];
    for (node, stays) in graph.nodes.iter().zip(&mut stays).rev() {
        *stays = node.outputs.iter().any(|value| is_read[*value]);
        if *stays {
            for input in node.inputs.iter().flatten() {
                is_read[*input] = true;
            }
        }
    }
    let mut computed = vec![false; graph.values.len()];
    for (node, _) in graph.nodes.iter().zip(&stays).filter(|(_, stays)| **stays) {
        for value in &node.outputs {
            computed[*value] = true;
        }
    }
    for (value, info) in graph.values.iter_mut().enumerate() {
        let goes = match info.source {
            Source::Node => !computed[value],
            Source::Constant(_) | Source::Weights(_) => !is_read[value],
            Source::Input | Source::Absent => false,
        };
        if goes {
            info.source = Source::Absent;
        }
    }
    keep(&mut graph.nodes, &stays);
    keep(sources, &stays);
    stays.contains(&false)
}

/// Those of some elements that stay.
pub(super) fn keep<T>(elements: &mut Vec<T>, stays: &[bool]) {
    let mut stays = stays.iter();
    elements.retain(|_| stays.next().is_some_and(|stays| *stays));
}
