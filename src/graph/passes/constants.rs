//! Nodes that always compute the same.

use std::sync::Arc;

use super::{Engine, Rewritten, cleanup};
use crate::graph::Operator;
use crate::graph::description::{Graph, GraphId, NodeInfo, Source};

/// Results may have so many bytes whatever they are made of: a large constant takes longer to read than to make anew.
const SMALL_BYTES: usize = 1 << 20;

/// Computes what depends on constants alone, where the engine can: what fails then fails in a run, with the node's name.
pub(super) fn fold(rewritten: &mut Rewritten, engine: &dyn Engine) -> bool {
    let turned = transpose_weights(&mut rewritten.graph);
    let graph = &rewritten.graph;
    let mut is_constant: Vec<bool> = graph.values.iter().map(|value| is_constant(&value.source)).collect();
    let mut folded = vec![false; graph.nodes.len()];
    for (node, folded) in graph.nodes.iter().zip(&mut folded) {
        let of_constants = node.inputs.iter().flatten().all(|value| is_constant[*value]);
        // Those of a transposed matrix are known already.
        let is_known = node.outputs.iter().all(|value| is_constant[*value]);
        *folded = of_constants && !is_known && is_small(graph, node) && engine.takes(graph, node);
        for value in node.outputs.iter().filter(|_| *folded) {
            is_constant[*value] = true;
        }
    }
    let nodes: Vec<NodeInfo> = graph
        .nodes
        .iter()
        .zip(&folded)
        .filter(|(_, folded)| **folded)
        .map(|(node, _)| node.clone())
        .collect();
    let values: Vec<usize> = nodes.iter().flat_map(|node| node.outputs.iter().copied()).collect();
    let outputs = values.iter().map(|value| (graph.values[*value].name.clone(), *value)).collect();
    let part =
        Graph { id: GraphId::new(), nodes, inputs: Vec::new(), outputs, leading: None, ..graph.clone() };
    if !values.is_empty()
        && let Ok(arrays) = engine.outputs(&part)
    {
        for (value, array) in values.into_iter().zip(arrays) {
            rewritten.graph.values[value].source = Source::Constant(Arc::new(array));
        }
    } else if !turned {
        return false;
    }
    let Rewritten { graph, sources } = rewritten;
    let stays: Vec<bool> =
        graph.nodes.iter().map(|node| matches!(graph.values[node.outputs[0]].source, Source::Node)).collect();
    cleanup::keep(&mut graph.nodes, &stays);
    cleanup::keep(sources, &stays);
    cleanup::eliminate_dead_nodes(rewritten);
    true
}

const fn is_constant(source: &Source) -> bool {
    matches!(source, Source::Constant(_) | Source::Weights(_))
}

fn is_small(graph: &Graph, node: &NodeInfo) -> bool {
    let bytes = |values: &mut dyn Iterator<Item = usize>| {
        values.map(|value| graph.values[value].tensor_type.bytes()).fold(0usize, usize::saturating_add)
    };
    let (made_of, made) =
        (bytes(&mut node.inputs.iter().flatten().copied()), bytes(&mut node.outputs.iter().copied()));
    made <= made_of.max(SMALL_BYTES)
}

/// Weights that are transposed before they are multiplied are the same ones, read the other way.
fn transpose_weights(graph: &mut Graph) -> bool {
    let mut turned = false;
    for node in &graph.nodes {
        let (Operator::Transpose { perm }, &[Some(x)]) = (&node.operator, &node.inputs[..]) else { continue };
        if let (Source::Weights(weights), [1, 0]) = (&graph.values[x].source, &perm[..])
            && weights.element_type().bits() >= 8
            && let Ok(weights) = weights.transposed()
        {
            graph.values[node.outputs[0]].source = Source::Weights(weights);
            turned = true;
        }
    }
    turned
}
