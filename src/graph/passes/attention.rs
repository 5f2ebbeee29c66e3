//! Attention as exporters write it: two products, and between them a scale, a mask and a softmax.

use super::{Fusion, Matcher, Operand};
use crate::graph::{Attention, Operator};

/// A product that is the last of an attention: `softmax(scale Q K' + mask) V`, of four dimensions.
#[allow(clippy::cast_possible_truncation, reason = "a product of numbers that were f32")]
pub(super) fn find(graph: &Matcher<'_>, node: usize) -> Option<Fusion> {
    let y = graph.graph.nodes[node].outputs[0];
    let (_, [(weights, v), _]) = graph.operands(y, &Operator::MatMul)?;
    if !graph.is_f32(y) || [y, weights, v].iter().any(|value| graph.dims(*value).len() != 4) {
        return None;
    }
    let (softmax, scores) =
        [-1, 3].iter().find_map(|axis| graph.operand(weights, &Operator::Softmax { axis: *axis }))?;
    let mut nodes = vec![node, softmax];
    // Scores without a mask, or what a mask is added to.
    let masked = graph
        .operands(scores, &Operator::Add)
        .into_iter()
        .flat_map(|(add, ways)| ways.into_iter().map(move |(scores, mask)| (scores, Some((add, mask)))));
    let (add, mask, Product { q, k_transposed, scale, nodes: of_product }) =
        masked.chain([(scores, None)]).find_map(|(unmasked, mask)| {
            let product = product_of(graph, unmasked)?;
            let (add, mask) = mask.unzip();
            (graph.dims(unmasked) == graph.dims(scores)).then_some((add, mask, product))
        })?;
    nodes.extend(add);
    nodes.extend(of_product);
    let (transpose, k) = transposed(graph, k_transposed)?;
    nodes.push(transpose);
    let ([batch, heads, ..], [v_batch, v_heads, ..]) = (graph.dims(q), graph.dims(v)) else { return None };
    if [batch, heads] != [v_batch, v_heads] || graph.dims(k_transposed)[..2] != [*batch, *heads] {
        return None;
    }
    nodes.sort_unstable();
    let inputs = [Operand::Value(q), k, Operand::Value(v)];
    Some(Fusion {
        nodes,
        operator: Operator::Attention(Attention::new().scale(scale as f32)),
        inputs: inputs.into_iter().chain(mask.map(Operand::Value)).collect(),
    })
}

/// `scale Q K'`.
struct Product {
    q: usize,
    k_transposed: usize,
    scale: f64,
    nodes: Vec<usize>,
}

/// The scale may stand before the product, on either side, or behind.
fn product_of(graph: &Matcher<'_>, scores: usize) -> Option<Product> {
    let mut product = Product { q: 0, k_transposed: 0, scale: 1.0, nodes: Vec::new() };
    let scores = product.without_factor(graph, scores);
    let (node, [(q, k), _]) = graph.operands(scores, &Operator::MatMul)?;
    product.nodes.push(node);
    product.q = product.without_factor(graph, q);
    product.k_transposed = product.without_factor(graph, k);
    Some(product)
}

impl Product {
    fn without_factor(&mut self, graph: &Matcher<'_>, value: usize) -> usize {
        let Some((node, x, factor)) = graph.factor(value) else { return value };
        self.nodes.push(node);
        self.scale *= factor;
        x
    }
}

/// K, of which a node computes the transpose.
fn transposed(graph: &Matcher<'_>, k_transposed: usize) -> Option<(usize, Operand)> {
    let (node, info) = graph.producer(k_transposed)?;
    let (Operator::Transpose { perm }, &[Some(x)]) = (&info.operator, &info.inputs[..]) else { return None };
    match perm[..] {
        [0, 1, 3, 2] => Some((node, Operand::Value(x))),
        // From (batch, keys, heads, size) at once.
        [0, 2, 3, 1] => Some((node, Operand::Transposed { value: x, perm: HEADS.to_vec(), node })),
        _ => None,
    }
}

/// Between (batch, places, heads, size) and (batch, heads, places, size), either way.
const HEADS: [usize; 4] = [0, 2, 1, 3];

/// The last node of an attention whose heads are split from three dimensions before, and merged into them behind:
/// it reads and writes them where they are.
pub(super) fn find_heads(graph: &Matcher<'_>, node: usize) -> Option<Fusion> {
    let (reshape, y) = (&graph.graph.nodes[node], graph.graph.nodes[node].outputs[0]);
    let (Operator::Reshape { .. }, &[Some(merged)]) = (&reshape.operator, &reshape.inputs[..]) else {
        return None;
    };
    let heads_last = Operator::Transpose { perm: HEADS.to_vec() };
    let (transpose, attended) = graph.operand(merged, &heads_last)?;
    let (attention, info) = graph.producer(attended)?;
    let Operator::Attention(attributes) = &info.operator else { return None };
    let &[batch, heads, queries, size] = graph.dims(attended) else { return None };
    if attributes.heads.is_some() || *graph.dims(y) != [batch, queries, heads * size] {
        return None;
    }
    let mut nodes = vec![attention, transpose, node];
    let mut split = |value: usize| {
        let (transpose, split) = graph.operand(value, &heads_last)?;
        let (reshape, info) = graph.producer(split)?;
        let (Operator::Reshape { .. }, &[Some(x)]) = (&info.operator, &info.inputs[..]) else { return None };
        let &[batch, places, heads, size] = graph.dims(split) else { return None };
        nodes.extend([transpose, reshape]);
        (*graph.dims(x) == [batch, places, heads * size]).then_some((x, heads))
    };
    let &[Some(q), Some(k), Some(v), ..] = &info.inputs[..] else { return None };
    let ((q, q_heads), (k, kv_heads), (v, _)) = (split(q)?, split(k)?, split(v)?);
    let attributes = attributes.clone().heads(q_heads, kv_heads);
    let mask = info.inputs.get(3).copied().flatten();
    nodes.sort_unstable();
    let inputs = [Some(q), Some(k), Some(v), mask];
    Some(Fusion {
        nodes,
        operator: Operator::Attention(attributes),
        inputs: inputs.into_iter().flatten().map(Operand::Value).collect(),
    })
}
