//! The checks of graphs: the plain f32 interpretation passes as an engine, and one with a fault does not.

use std::collections::{BTreeMap, HashMap};

use super::cases::cases;
use super::fixtures::{self, Encoder};
use super::random::{part_of, random_graph, shrink};
use crate::error::Result;
use crate::graph::accuracy::{Estimate, U, evaluate};
use crate::graph::check::{NodesReport, check_nodes, check_whole};
use crate::graph::description::Graph;
use crate::graph::interpret::{Data, Values, compute, interpret};
use crate::graph::operator::Reduce;
use crate::graph::{Array, GraphBuilder, Groups, Operator, Window};
use crate::random::Random;
use crate::verify::accuracy::gamma;

/// What becomes of a node's results in an engine.
type Fault<'a> = &'a dyn Fn(usize, &mut [Values<f32>]);

/// All values of the f32 interpretation, but for 4-bit constants.
pub(crate) fn plain_values(graph: &Graph, inputs: &[Array]) -> Vec<Option<Array>> {
    values_with(graph, inputs, &|_, _| {})
}

/// All values of an engine that computes as the f32 interpretation does, with a fault.
fn values_with(graph: &Graph, inputs: &[Array], fault: Fault<'_>) -> Vec<Option<Array>> {
    let inputs: Vec<_> = inputs.iter().collect();
    let mut values = interpret::<f32>(graph, &inputs).unwrap();
    for (number, node) in graph.nodes.iter().enumerate() {
        let operands: Vec<_> = node.inputs.iter().map(|input| input.map(|index| &values[index])).collect();
        let mut results = compute(node, &operands).unwrap();
        fault(number, &mut results);
        for (result, index) in results.into_iter().zip(&node.outputs) {
            values[*index] = result;
        }
    }
    values.iter().map(|value| value.to_array(value.tensor_type.element).ok()).collect()
}

fn check(graph: &Graph, inputs: &[Array], values: &[Option<Array>]) -> Result<NodesReport> {
    check_nodes(graph, &inputs.iter().collect::<Vec<_>>(), values, |_| true)
}

/// Without some values in the middle, as fusion leaves them.
fn hide(graph: &Graph, values: &mut [Option<Array>], seed: u64) {
    let mut random = Random::new(seed);
    for node in &graph.nodes {
        for index in &node.outputs {
            let is_output = graph.outputs.iter().any(|(_, output)| output == index);
            let is_index = graph.nodes.iter().any(|reader| {
                matches!(reader.operator, Operator::Gather { .. })
                    && reader.inputs.get(1) == Some(&Some(*index))
            });
            let is_float = graph.values[*index].tensor_type.element.is_float();
            if !is_output && !is_index && is_float && random.below(2) == 0 {
                values[*index] = None;
            }
        }
    }
}

fn normal(dims: &[usize], seed: u64) -> Array {
    let mut random = Random::new(seed);
    #[allow(clippy::cast_possible_truncation)]
    Array::new(dims, (0..dims.iter().product()).map(|_| random.normal() as f32).collect()).unwrap()
}

pub(crate) fn fixtures() -> Vec<(&'static str, Graph, Vec<Array>)> {
    let small = Encoder::SMALL;
    let ids = || Array::new(&[2, 7], (0..14).map(|id| id * 5 % 11).collect::<Vec<i64>>()).unwrap();
    let mask = Array::new(&[2, 7], (0..14).map(|at| i64::from(at % 7 < 5)).collect::<Vec<i64>>()).unwrap();
    vec![
        ("bert", small.bert().unwrap(), vec![ids(), mask]),
        ("lowered", small.lowered().unwrap(), vec![ids()]),
        ("cnn", fixtures::cnn(2).unwrap(), vec![normal(&[2, 3, 17, 15], 1)]),
        ("quantized", fixtures::quantized_linear(5).unwrap(), vec![normal(&[5, 16], 2)]),
    ]
}

#[test]
fn plain_f32_is_within_the_bounds_of_every_node_and_group() {
    for (name, graph, inputs) in fixtures() {
        let mut values = plain_values(&graph, &inputs);
        let report = check(&graph, &inputs, &values).unwrap();
        assert!(report.is_right(), "{name}: {:?}", report.wrong);
        assert_eq!(report.unbounded, 0, "{name}");
        assert!(report.worst.iter().all(Option::is_some));
        for seed in 0..3 {
            hide(&graph, &mut values, seed);
            let report = check(&graph, &inputs, &values).unwrap();
            assert!(report.is_right(), "{name}: {:?}", report.wrong);
            assert!(report.worst.iter().any(Option::is_none));
            assert_eq!(report.unbounded, 0, "{name}");
        }
    }
}

/// Whether it fails its check, for shrinking.
fn fails(graph: &Graph, inputs: &[Array]) -> bool {
    !check(graph, inputs, &plain_values(graph, inputs)).is_ok_and(|report| report.is_right())
}

#[test]
fn random_graphs_of_plain_f32_are_right() {
    let (mut operators, mut unbounded, mut compared, mut groups) = (BTreeMap::new(), 0, 0, 0);
    for seed in 0..60 {
        let (graph, inputs) = random_graph(seed, 100, |_| true);
        for (_, operator) in graph.nodes() {
            *operators.entry(operator.name()).or_insert(0) += 1;
        }
        let mut values = plain_values(&graph, &inputs);
        let report = check(&graph, &inputs, &values).unwrap();
        if !report.is_right() {
            let (smaller, _) = shrink(graph, inputs, fails);
            panic!("seed {seed}: {:?}\n{smaller}", report.wrong);
        }
        unbounded += report.unbounded;
        compared += report.compared;
        hide(&graph, &mut values, seed);
        // Of integers that a threshold leaves open there may be no rule.
        if let Ok(report) = check(&graph, &inputs, &values) {
            assert!(report.is_right(), "seed {seed}: {:?}", report.wrong);
            groups += 1;
        }
    }
    println!("{operators:?}\nof {compared} elements {unbounded} without bound; {groups} groups");
    assert_eq!(operators.len(), 62, "{operators:?}");
    assert!(unbounded * 1000 < compared);
    assert!(groups > 50);
}

/// Makes one element of some results wrong: the largest number by a part of it, an integer by 1, a boolean altogether.
/// Whether there was one.
fn plant(results: &mut [Values<f32>], part: f32) -> bool {
    let Some(result) = results.iter_mut().find(|result| result.tensor_type.shape.count() > 0) else {
        return false;
    };
    match &mut result.data {
        Data::Floats(x) => {
            let largest = x.iter().map(|x| x.abs()).fold(0f32, f32::max);
            match x.iter_mut().find(|x| x.abs() == largest) {
                Some(x) if *x != 0.0 => *x *= 1.0 + part,
                Some(x) => *x = part,
                None => return false,
            }
        }
        Data::Integers(x) => x[0] += if x[0] > 0 { -1 } else { 1 },
        Data::Booleans(x) => x[0] = !x[0],
    }
    true
}

/// A thousandth is twice the roundoff of f16; bf16 has four times as much.
fn part_of_type(graph: &Graph, node: usize) -> f32 {
    let output = graph.nodes[node].outputs[0];
    if graph.values[output].tensor_type.element.unit_roundoff() > 1e-3 { 1e-2 } else { 2e-3 }
}

#[test]
fn a_fault_of_any_operator_is_found_at_its_node() {
    let mut found: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for seed in 0..60 {
        let (graph, inputs) = random_graph(seed, 100, |_| true);
        let values = plain_values(&graph, &inputs);
        for node in &graph.nodes {
            // The node alone, from its inputs.
            let cut = node
                .inputs
                .iter()
                .flatten()
                .filter(|index| graph.nodes.iter().any(|node| node.outputs.contains(index)));
            let cut: HashMap<_, _> =
                cut.filter_map(|index| Some((*index, values[*index].clone()?))).collect();
            let (alone, inputs) = part_of(&graph, &inputs, &node.outputs, &cut);
            assert_eq!(alone.nodes.len(), 1);
            let planted = std::cell::Cell::new(false);
            let part = part_of_type(&alone, 0);
            let values = values_with(&alone, &inputs, &|_, results| planted.set(plant(results, part)));
            if planted.get() {
                let report = check(&alone, &inputs, &values).unwrap();
                let counts = found.entry(node.operator.name()).or_default();
                counts.0 += usize::from(!report.is_right());
                counts.1 += 1;
            }
        }
    }
    println!("{found:?}");
    assert_eq!(found.len(), 62, "{found:?}");
    for (operator, (found, planted)) in found {
        // A lane whose variance is nothing against its mean, and a number at a step, leave much open.
        assert!(found * 100 >= planted * 95, "{operator}: {found} of {planted}");
    }
}

#[test]
fn a_fault_in_a_graph_is_located() {
    for (name, graph, inputs) in fixtures() {
        for (number, node) in graph.nodes.iter().enumerate() {
            let part = part_of_type(&graph, number);
            let fault = |at: usize, results: &mut [Values<f32>]| {
                if at == number {
                    plant(results, part);
                }
            };
            let report = check(&graph, &inputs, &values_with(&graph, &inputs, &fault)).unwrap();
            let wrong = report.wrong.unwrap_or_else(|| panic!("{name}: not found in {}", node.name));
            assert_eq!(
                (wrong.node.as_str(), wrong.operator),
                (node.name.as_str(), node.operator.name()),
                "{name}"
            );
            assert!((wrong.got - wrong.expected).abs() > wrong.bound);
        }
    }
}

fn outputs_of(graph: &Graph, values: &[Option<Array>]) -> Vec<Array> {
    graph.outputs.iter().map(|(_, index)| values[*index].clone().unwrap()).collect()
}

#[test]
fn whole_graphs_of_plain_f32_are_right_and_faults_in_them_are_not() {
    for (name, graph, inputs) in fixtures() {
        let operands: Vec<_> = inputs.iter().collect();
        let whole = |values: &[Option<Array>]| {
            let outputs = outputs_of(&graph, values);
            check_whole(&graph, &operands, &outputs.iter().collect::<Vec<_>>()).unwrap()
        };
        let report = whole(&plain_values(&graph, &inputs));
        assert!(report.is_right(), "{name}: {report:?}");
        let (mut found, mut planted) = (0, 0);
        for number in 0..graph.nodes.len() {
            let values = values_with(&graph, &inputs, &|at, results| {
                if at == number {
                    plant(results, 1e-3);
                }
            });
            found += usize::from(!whole(&values).is_right());
            planted += 1;
        }
        // A norm or a maximum may swallow what is before it.
        println!("{name}: {found} of {planted}");
        assert!(found * 10 >= planted * 6, "{name}: {found} of {planted}");
    }
}

#[test]
fn whole_random_graphs_of_plain_f32_are_right() {
    let (mut decided, mut all) = (0, 0);
    for seed in 0..60 {
        let (graph, inputs) = random_graph(seed, 100, |_| true);
        let outputs = outputs_of(&graph, &plain_values(&graph, &inputs));
        let (operands, outputs): (Vec<_>, Vec<_>) = (inputs.iter().collect(), outputs.iter().collect());
        let report = check_whole(&graph, &operands, &outputs).unwrap();
        decided += usize::from(report.is_decided());
        all += 1;
        for output in &report.outputs {
            assert!(output.is_right(), "seed {seed}: {output:?}\n{graph}");
        }
    }
    println!("{decided} of {all} decided");
    assert!(decided * 4 >= all * 3, "{decided} of {all}");
}

#[test]
fn operators_by_themselves_are_right_in_plain_f32_and_special_numbers_count() {
    let mut operators = BTreeMap::new();
    for (name, graph, inputs) in cases() {
        let values = plain_values(&graph, &inputs);
        let report = check(&graph, &inputs, &values).unwrap();
        assert!(report.is_right(), "{name}: {:?}", report.wrong);
        let counts: &mut (usize, usize) = operators.entry(graph.nodes[0].operator.name()).or_default();
        counts.0 += 1;
        // A number in place of what is none, and the other infinity.
        let special = |of: &mut [Values<f32>]| match &mut of[0].data {
            Data::Floats(x) => {
                x.iter_mut().find(|x| !x.is_finite()).map(|x| *x = if x.is_nan() { 1.0 } else { -*x })
            }
            _ => None,
        };
        let planted = std::cell::Cell::new(false);
        let values = values_with(&graph, &inputs, &|_, results| planted.set(special(results).is_some()));
        if planted.get() {
            let report = check(&graph, &inputs, &values).unwrap();
            assert!(!report.is_right() || report.unbounded > 0, "{name}: not found");
            counts.1 += usize::from(!report.is_right());
        }
    }
    println!("{operators:?}");
    assert_eq!(operators.len(), 62);
    assert!(operators.values().filter(|(_, found)| *found > 0).count() > 30);
}

#[test]
fn a_node_that_is_not_chosen_is_not_judged() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", crate::ElementType::F32, &[4]).unwrap();
    let parts = g.split(x, 0, &[1, 3]).unwrap();
    let y = g.named("next").relu(parts[0]).unwrap();
    let graph = g.finish(&[("y", y), ("rest", parts[1])]).unwrap();
    let inputs = [normal(&[4], 1)];
    let mut values = plain_values(&graph, &inputs);
    let rest = graph.outputs[1].1;
    values[rest] = Some(Array::new(&[3], vec![100f32; 3]).unwrap());
    // One that is absent: the node has to be computed for what reads it.
    values[graph.nodes[0].outputs[0]] = None;
    let operands: Vec<_> = inputs.iter().collect();
    let judged = |chosen: &dyn Fn(&str) -> bool| check_nodes(&graph, &operands, &values, chosen).unwrap();
    let next = judged(&|name| name == "next");
    assert!(next.is_right() && next.worst[0].is_none() && next.compared == 1, "{next:?}");
    assert!(!judged(&|_| true).is_right());
}

#[test]
fn absent_outputs_and_values_of_other_types_are_errors() {
    let (_, graph, inputs) = fixtures().swap_remove(3);
    let mut values = plain_values(&graph, &inputs);
    let error = |values: &[Option<Array>]| check(&graph, &inputs, values).unwrap_err().to_string();
    assert!(error(&values[1..]).contains("values of an engine"));
    let output = graph.outputs[0].1;
    let y = values[output].replace(Array::scalar(1f32));
    assert!(error(&values).contains("the engine's value is f32[], not f32[5, 9]"));
    values[output] = None;
    assert!(error(&values).contains("output `y`: the engine has no value of it"));
    values[output] = y;
    let one = Array::scalar(1f32);
    let operands: Vec<_> = inputs.iter().collect();
    assert!(
        check_whole(&graph, &operands, &[&one]).unwrap_err().to_string().contains("not those of the graph")
    );
}

#[test]
fn what_a_comparison_of_close_numbers_decides_is_undetermined() {
    // x + 1 - 1 against x, which f32 loses; what depends on it, and what does not.
    let build = |constant: f32| {
        let mut g = GraphBuilder::new();
        let x = g.input("x", crate::ElementType::F32, &[200]).unwrap();
        let third = g.mul_scalar(x, 1.0 / 3.0).unwrap();
        let limit = g.scalar(constant);
        let above = g.greater(third, limit).unwrap();
        let chosen = g.select(above, x, third).unwrap();
        let exact = g.greater(x, limit).unwrap();
        g.finish(&[("chosen", chosen), ("exact", exact)]).unwrap()
    };
    let mut data = vec![2f32; 200];
    data[7] = 1.5;
    let x = Array::new(&[200], data).unwrap();
    let graph = build(0.5);
    let mut values = plain_values(&graph, std::slice::from_ref(&x));
    let whole = |values: &[Option<Array>]| {
        let outputs = outputs_of(&graph, values);
        check_whole(&graph, &[&x], &outputs.iter().collect::<Vec<_>>()).unwrap()
    };
    let report = whole(&values);
    assert!(report.is_right(), "{report:?}");
    assert_eq!(report.outputs.iter().map(|output| output.undetermined).collect::<Vec<_>>(), [1, 0]);
    let chosen = graph.outputs[0].1;
    let set = |values: &mut [Option<Array>], at: usize, to: f32| {
        values[chosen].as_mut().unwrap().data_mut::<f32>().unwrap()[at] = to;
    };
    // The other choice is as right; of another element it is not.
    set(&mut values, 7, 1.5);
    assert!(whole(&values).is_right());
    set(&mut values, 8, 2.0 / 3.0);
    assert_eq!(whole(&values).outputs[0].element, 8);
    assert!(!whole(&values).is_right());
    // Where more than 1 in 100 are, nothing is decided.
    let many = Array::new(&[200], vec![1.5f32; 200]).unwrap();
    let outputs = outputs_of(&graph, &plain_values(&graph, std::slice::from_ref(&many)));
    let report = check_whole(&graph, &[&many], &outputs.iter().collect::<Vec<_>>()).unwrap();
    assert!(!report.is_decided() && !report.is_right());
}

#[test]
fn a_smaller_graph_fails_for_the_same_reason() {
    let has_tanh = |graph: &Graph| graph.nodes().any(|(_, operator)| *operator == Operator::Tanh);
    let graphs = (0..).map(|seed| random_graph(seed, 100, |_| true));
    let (graph, inputs) = graphs.into_iter().find(|(graph, _)| has_tanh(graph)).unwrap();
    let wrong = |graph: &Graph, inputs: &[Array]| {
        let is_tanh = |number: usize| graph.nodes[number].operator == Operator::Tanh;
        let values = values_with(graph, inputs, &|number, results| {
            if is_tanh(number) {
                plant(results, 1e-2);
            }
        });
        !check(graph, inputs, &values).unwrap().is_right()
    };
    let (smaller, inputs) = shrink(graph, inputs, wrong);
    assert!(wrong(&smaller, &inputs));
    assert_eq!(smaller.nodes().map(|(_, operator)| operator.clone()).collect::<Vec<_>>(), [Operator::Tanh]);
}

#[test]
fn random_graphs_have_the_allowed_operators_only_and_depend_on_the_seed_alone() {
    let allowed = |operator: &Operator| matches!(operator, Operator::Add | Operator::Mul | Operator::MatMul);
    let (graph, inputs) = random_graph(1, 40, allowed);
    assert!(graph.nodes().len() > 20);
    // But for an Identity of an input that nothing else reads.
    assert!(graph.nodes().all(|(_, operator)| allowed(operator) || *operator == Operator::Identity));
    let (again, same_inputs) = random_graph(1, 40, allowed);
    assert_eq!((graph.to_string(), inputs), (again.to_string(), same_inputs));
}

#[test]
fn sums_are_bounded_by_as_many_roundings_as_the_page_says() {
    use Operator as Op;
    let gemm = Op::Gemm { alpha: 1.0, beta: 1.0, transpose_a: false, transpose_b: false };
    let conv = Op::Conv(Window::default(), Groups(1));
    let reduce = || Reduce { axes: None, keepdims: false };
    let (row, column, image, one): (&[usize], &[usize], &[usize], &[usize]) =
        (&[1, 9], &[9, 1], &[1, 1, 9], &[1]);
    // Of ones, of which 9 are summed: the size of the terms, and the roundings beside these 9.
    let cases: [(Op, &[&[usize]], f64, usize); 8] = [
        (Op::MatMul, &[row, column], 9.0, 5),
        (conv.clone(), &[image, image], 9.0, 5),
        (conv, &[image, image, one], 10.0, 6),
        (gemm.clone(), &[row, column], 9.0, 6),
        (gemm, &[row, column, one], 10.0, 7),
        (Op::ReduceSum(reduce()), &[row], 9.0, 4),
        (Op::ReduceMean(reduce()), &[row], 1.0, 5),
        // Half of those of the sum, then its own.
        (Op::ReduceL2(reduce()), &[row], 3.0, 1),
    ];
    for (operator, inputs, size, roundings) in cases {
        let mut g = GraphBuilder::new();
        let arrays: Vec<_> =
            inputs.iter().map(|dims| Array::new(dims, vec![1f32; dims.iter().product()]).unwrap()).collect();
        let input = |(index, array): (usize, &Array)| {
            let of = array.tensor_type();
            Some(g.input(format!("x{index}"), of.element, of.shape.dims()).unwrap())
        };
        let values: Vec<_> = arrays.iter().enumerate().map(input).collect();
        let is_root = matches!(operator, Op::ReduceL2(_));
        let y = g.node(operator, &values).unwrap()[0];
        let graph = g.finish(&[("y", y)]).unwrap();
        let known: Vec<_> =
            arrays.iter().map(|array| Estimate::known(Values::of_array(array).unwrap()).unwrap()).collect();
        let known: Vec<_> = known.iter().map(Some).collect();
        let error = evaluate(&graph.nodes[0], &known).unwrap()[0].error(0);
        let of_sum = gamma(9 + roundings, U);
        let most = size * if is_root { of_sum / 2.0 + gamma(5, U) } else { of_sum };
        assert!(error <= most * (1.0 + 1e-5), "{}: {error:e}, not {most:e}", graph.nodes[0].operator);
        // Where an addend has fewer roundings than the terms, it is less by as much.
        assert!(error >= most * 0.9, "{}: {error:e}, not {most:e}", graph.nodes[0].operator);
    }
}
