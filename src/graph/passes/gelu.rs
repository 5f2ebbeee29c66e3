//! GELU as exporters write it: `x / 2 (1 + erf(x / sqrt 2))`, or with tanh of a polynomial.
//!
//! There are many ways to write the same sum of products, so it is multiplied out and compared by its coefficients.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use super::{Fusion, Matcher, Operand};
use crate::graph::Operator;

/// The constants may be off by so much of themselves: f32's rounding, and one operation on them.
const TOLERANCE: f64 = 3e-7;

/// The cubic term in the approximation by tanh (arXiv:1606.08415).
const CUBIC: f64 = 0.044_715;

/// A sum of products of up to three x and one erf or tanh: `[e][x]` is the coefficient of that many of each.
type Polynomial = [[f64; 4]; 2];

const ONE: Polynomial = [[1.0, 0.0, 0.0, 0.0], [0.0; 4]];
const X: Polynomial = [[0.0, 1.0, 0.0, 0.0], [0.0; 4]];
const E: Polynomial = [[0.0; 4], [1.0, 0.0, 0.0, 0.0]];

/// Nobody nests the terms deeper.
const DEPTH: usize = 6;

/// A node that is the last of a GELU.
pub(super) fn find(graph: &Matcher<'_>, node: usize) -> Option<Fusion> {
    let y = graph.graph.nodes[node].outputs[0];
    if !matches!(graph.graph.nodes[node].operator, Operator::Mul | Operator::Add) || !graph.is_f32(y) {
        return None;
    }
    // What the terms are made of: one of them is erf or tanh, another x.
    let mut terms = Vec::new();
    collect(graph, y, 4, &mut terms);
    terms.iter().find_map(|e| {
        let (e_node, function) = graph.producer(*e)?;
        let inner = function.inputs.first().copied().flatten()?;
        let tanh = match function.operator {
            Operator::Erf => false,
            Operator::Tanh => true,
            _ => return None,
        };
        let expected = if tanh {
            let c = FRAC_2_PI.sqrt();
            [0.0, c, 0.0, CUBIC * c]
        } else {
            [0.0, FRAC_1_SQRT_2, 0.0, 0.0]
        };
        terms.iter().filter(|x| *x != e && graph.dims(**x) == graph.dims(y)).find_map(|x| {
            let mut nodes = vec![e_node];
            let outer = polynomial(graph, y, (*x, Some(*e)), DEPTH, &mut nodes)?;
            let inner = polynomial(graph, inner, (*x, None), DEPTH, &mut nodes)?;
            let is_gelu =
                is_close(&outer, &[[0.0, 0.5, 0.0, 0.0]; 2]) && is_close(&inner, &[expected, [0.0; 4]]);
            nodes.sort_unstable();
            nodes.dedup();
            is_gelu.then(|| Fusion {
                nodes,
                operator: Operator::Gelu { tanh },
                inputs: vec![Operand::Value(*x)],
            })
        })
    })
}

/// The values that a sum of products is made of, those in its middle included.
fn collect(graph: &Matcher<'_>, value: usize, depth: usize, terms: &mut Vec<usize>) {
    if terms.contains(&value) || graph.scalar(value).is_some() {
        return;
    }
    terms.push(value);
    if let (Some((_, node)), 1..) = (graph.producer(value), depth)
        && matches!(node.operator, Operator::Mul | Operator::Add | Operator::Div)
    {
        node.inputs.iter().flatten().for_each(|input| collect(graph, *input, depth - 1, terms));
    }
}

/// A value multiplied out in x and e; the nodes that compute it join `nodes`.
fn polynomial(
    graph: &Matcher<'_>,
    value: usize,
    (x, e): (usize, Option<usize>),
    depth: usize,
    nodes: &mut Vec<usize>,
) -> Option<Polynomial> {
    if value == x {
        return Some(X);
    }
    if Some(value) == e {
        return Some(E);
    }
    if let Some(scalar) = graph.scalar(value) {
        return Some(ONE.map(|row| row.map(|one| one * scalar)));
    }
    let (index, node) = graph.producer(value)?;
    let &[Some(a), Some(b)] = &node.inputs[..] else { return None };
    let depth = depth.checked_sub(1)?;
    nodes.push(index);
    let a = polynomial(graph, a, (x, e), depth, nodes)?;
    match &node.operator {
        Operator::Div => {
            let divisor = graph.scalar(b)?;
            Some(a.map(|row| row.map(|element| element / divisor)))
        }
        Operator::Pow => match graph.scalar(b)? {
            2.0 => product(&a, &a),
            3.0 => product(&product(&a, &a)?, &a),
            _ => None,
        },
        Operator::Mul => product(&a, &polynomial(graph, b, (x, e), depth, nodes)?),
        Operator::Add => {
            let b = polynomial(graph, b, (x, e), depth, nodes)?;
            Some([0, 1].map(|row| [0, 1, 2, 3].map(|col| a[row][col] + b[row][col])))
        }
        _ => None,
    }
}

/// `None` where there are more factors than a GELU has.
fn product(a: &Polynomial, b: &Polynomial) -> Option<Polynomial> {
    let mut all = [[0.0; 4]; 2];
    for (of_e, a_row) in a.iter().enumerate() {
        for (of_x, a) in a_row.iter().enumerate().filter(|(_, a)| **a != 0.0) {
            for (more_e, b_row) in b.iter().enumerate() {
                for (more_x, b) in b_row.iter().enumerate().filter(|(_, b)| **b != 0.0) {
                    *all.get_mut(of_e + more_e)?.get_mut(of_x + more_x)? += a * b;
                }
            }
        }
    }
    Some(all)
}

fn is_close(a: &Polynomial, b: &Polynomial) -> bool {
    a.as_flattened().iter().zip(b.as_flattened()).all(|(a, b)| (a - b).abs() <= TOLERANCE * b.abs())
}
