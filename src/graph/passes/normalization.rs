//! Layer and RMS normalization as exporters write them, from means and square roots.

use super::{Fusion, Matcher, Operand};
use crate::graph::{Operator, Reduce};

/// What is known of a normalization, from its last node on.
struct Found {
    nodes: Vec<usize>,
    x: usize,
    scale: Option<usize>,
    bias: Option<usize>,
    axis: usize,
    epsilon: f64,
    subtracts_mean: bool,
}

/// A node that is the last of a normalization.
#[allow(clippy::cast_possible_truncation, reason = "it was an f32")]
pub(super) fn find(graph: &Matcher<'_>, node: usize) -> Option<Fusion> {
    let y = graph.graph.nodes[node].outputs[0];
    if !graph.is_f32(y) {
        return None;
    }
    let Found { mut nodes, x, scale, bias, axis, epsilon, subtracts_mean } =
        with_bias(graph, y).filter(|found| graph.dims(found.x) == graph.dims(y))?;
    nodes.sort_unstable();
    nodes.dedup();
    let epsilon = epsilon as f32;
    let operator = if subtracts_mean {
        Operator::LayerNormalization { axis: i64::try_from(axis).ok()?, epsilon }
    } else {
        Operator::RmsNormalization { axis: i64::try_from(axis).ok()?, epsilon }
    };
    let scale = match scale {
        Some(scale) => Operand::Value(scale),
        None => Operand::Ones(graph.dims(x)[axis..].to_vec()),
    };
    let inputs = std::iter::once(Operand::Value(x)).chain([scale]).chain(bias.map(Operand::Value)).collect();
    Some(Fusion { nodes, operator, inputs })
}

/// `normal scale + bias`, or without a bias.
fn with_bias(graph: &Matcher<'_>, y: usize) -> Option<Found> {
    let Some((node, ways)) = graph.operands(y, &Operator::Add) else { return with_scale(graph, y) };
    ways.into_iter().find_map(|(scaled, bias)| {
        let mut found = with_scale(graph, scaled).filter(|found| found.subtracts_mean)?;
        found.nodes.push(node);
        found.bias = Some(bias);
        is_vector(graph, &found, bias).then_some(found)
    })
}

/// `normal scale`, or without a scale.
fn with_scale(graph: &Matcher<'_>, y: usize) -> Option<Found> {
    let scaled = graph.operands(y, &Operator::Mul).and_then(|(node, ways)| {
        ways.into_iter().find_map(|(normal, scale)| {
            let mut found = normal_of(graph, normal)?;
            found.nodes.push(node);
            found.scale = Some(scale);
            is_vector(graph, &found, scale).then_some(found)
        })
    });
    scaled.or_else(|| normal_of(graph, y))
}

/// Whether an operand has an element for each that is normalised.
fn is_vector(graph: &Matcher<'_>, found: &Found, operand: usize) -> bool {
    let (dims, normalized) = (graph.dims(operand), &graph.dims(found.x)[found.axis..]);
    let ones = dims.len().checked_sub(normalized.len());
    ones.is_some_and(|ones| dims[ones..] == *normalized && dims[..ones].iter().all(|dim| *dim == 1))
}

/// `centred / sqrt(mean(centred^2) + epsilon)`, or times its reciprocal.
fn normal_of(graph: &Matcher<'_>, y: usize) -> Option<Found> {
    let mut nodes = Vec::new();
    let (centred, deviation) = if let Some((node, [way, _])) = graph.operands(y, &Operator::Div) {
        nodes.push(node);
        way
    } else {
        let (node, ways) = graph.operands(y, &Operator::Mul)?;
        let (centred, inverse, deviation) = ways.into_iter().find_map(|(centred, inverse)| {
            let (inverse_node, deviation) = graph.operand(inverse, &Operator::Reciprocal).or_else(|| {
                let (node, [(one, deviation), _]) = graph.operands(inverse, &Operator::Div)?;
                (graph.scalar(one) == Some(1.0)).then_some((node, deviation))
            })?;
            Some((centred, inverse_node, deviation))
        })?;
        nodes.extend([node, inverse]);
        (centred, deviation)
    };
    let (node, variance) = graph.operand(deviation, &Operator::Sqrt).or_else(|| {
        let (node, [(variance, exponent), _]) = graph.operands(deviation, &Operator::Pow)?;
        (graph.scalar(exponent) == Some(0.5)).then_some((node, variance))
    })?;
    nodes.push(node);
    let (node, ways) = graph.operands(variance, &Operator::Add)?;
    let (mean, epsilon) =
        ways.into_iter().find_map(|(mean, epsilon)| Some((mean, graph.scalar(epsilon)?)))?;
    nodes.push(node);
    let (node, squared, axis) = mean_of(graph, mean)?;
    nodes.push(node);
    nodes.push(square_of(graph, squared, centred)?);
    let mut found =
        Found { nodes, x: centred, scale: None, bias: None, axis, epsilon, subtracts_mean: false };
    if let Some((node, [(x, mean), _])) = graph.operands(centred, &Operator::Sub)
        && let Some((mean_node, of, mean_axis)) = mean_of(graph, mean)
        && (of, mean_axis) == (x, axis)
    {
        found.nodes.extend([node, mean_node]);
        found.x = x;
        found.subtracts_mean = true;
    }
    Some(found)
}

/// The mean over the last axes, which stay: its node, what it is taken of, and the first of the axes.
fn mean_of(graph: &Matcher<'_>, value: usize) -> Option<(usize, usize, usize)> {
    let (index, node) = graph.producer(value)?;
    let (Operator::ReduceMean(Reduce { axes: Some(axes), keepdims: true }), &[Some(x)]) =
        (&node.operator, &node.inputs[..])
    else {
        return None;
    };
    let shape = &graph.graph.values[x].tensor_type.shape;
    let mut axes: Vec<_> = axes.iter().map(|axis| shape.axis(*axis).ok()).collect::<Option<_>>()?;
    axes.sort_unstable();
    let first = *axes.first()?;
    axes.into_iter().eq(first..shape.rank()).then_some((index, x, first))
}

/// The node that computes a square.
fn square_of(graph: &Matcher<'_>, squared: usize, of: usize) -> Option<usize> {
    if let Some((node, [(a, b), _])) = graph.operands(squared, &Operator::Mul) {
        return ((a, b) == (of, of)).then_some(node);
    }
    let (node, [(a, exponent), _]) = graph.operands(squared, &Operator::Pow)?;
    (a == of && graph.scalar(exponent) == Some(2.0)).then_some(node)
}
