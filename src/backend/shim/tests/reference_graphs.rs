//! Graphs on the reference shim, which is foreign code, beside the float64 interpreter.

use ane_matmul_shims::linked_reference;

use super::*;
use crate::backend::Backends;
use crate::description::element::ElementType::{Bool, F32, I32, I64};
use crate::graph::operator::Reduce;
use crate::graph::tests::fixtures::{Encoder, cnn};
use crate::graph::{Array, Attention, CompiledGraph, Graph, GraphBuilder, Operator};

fn reference() -> (Backends, BackendId) {
    // SAFETY: the reference shim's table is a constant of this program.
    let shim = unsafe { ShimLibrary::from_table(linked_reference(), "the linked reference shim") }.unwrap();
    let mut backends = Backends::new();
    let id = backends.add(shim).unwrap();
    (backends, id)
}

fn compile(graph: &Graph) -> CompiledGraph {
    let (backends, id) = reference();
    backends.compile_graph(&id, graph, &CompileOptions::default()).unwrap()
}

fn random(dims: &[usize], seed: u64) -> Array {
    let count = dims.iter().product();
    Array::new(dims, Tensor::random_normal_f32(1, count, 1.0, seed).unwrap().data().to_vec()).unwrap()
}

/// Within 1e-4, of numbers of about 1; integers and booleans are the same.
fn assert_close(got: &[Array], expected: &[Array], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.shape(), expected.shape(), "{what}");
        match (got.data::<f32>(), expected.data::<f64>()) {
            (Some(got), Some(expected)) => {
                for (got, expected) in got.iter().zip(expected) {
                    assert!((f64::from(*got) - expected).abs() < 1e-4, "{what}: {got}, not {expected}");
                }
            }
            _ => assert_eq!(got, expected, "{what}"),
        }
    }
}

fn check(graph: &Graph, inputs: &[&Array], what: &str) {
    let got = compile(graph).executor().unwrap().run_to_arrays(inputs).unwrap();
    assert_close(&got, &graph.interpret_f64(inputs).unwrap(), what);
}

fn ids(encoder: Encoder, batch: usize) -> [Array; 2] {
    let count = batch * encoder.sequence;
    let vocabulary = i64::try_from(encoder.vocabulary).unwrap();
    let ids = (0..).take(count).map(|id| id * 7 % vocabulary).collect();
    // Of lengths that differ.
    let seen = |index: usize| index % encoder.sequence <= 2 + 2 * (index / encoder.sequence);
    let mask = (0..count).map(|index| i64::from(seen(index))).collect();
    let dims = [batch, encoder.sequence];
    [Array::new(&dims, ids).unwrap(), Array::new(&dims, mask).unwrap()]
}

#[test]
fn an_encoder_is_that_of_the_interpreter_for_any_batch() {
    let encoder = Encoder { batch: 3, ..Encoder::SMALL };
    let graph = encoder.bert().unwrap();
    let [all, mask] = ids(encoder, 3);
    check(&graph, &[&all, &mask], "whole");
    let graph = graph.variable_leading(&["ids", "mask"]).unwrap();
    let compiled = compile(&graph);
    let mut executor = compiled.executor().unwrap();
    for batch in [3, 1, 2, 0, 3] {
        let [ids, mask] = ids(encoder, batch);
        let expected = graph.with_leading(batch).unwrap().interpret_f64(&[&ids, &mask]).unwrap();
        let got = executor.run_to_arrays(&[&ids, &mask]).unwrap();
        assert_close(&got, &expected, &format!("{batch} items"));
        let mut embedding = Array::new(&[3, 12], vec![f32::NAN; 36]).unwrap();
        let mut hidden = Array::new(&[3, 7, 12], vec![f32::NAN; 252]).unwrap();
        executor.run(&[&ids, &mask], &mut [&mut embedding, &mut hidden]).unwrap();
        let beyond = &embedding.data::<f32>().unwrap()[batch * 12..];
        assert!(beyond.iter().chain(&hidden.data::<f32>().unwrap()[batch * 84..]).all(|x| *x == 0.0));
    }
    // It says what was made of each node: nothing is fused.
    let report = compiled.report();
    assert!(report.nodes.iter().all(|node| node.step.as_ref() == Some(&node.name)));
}

#[test]
fn a_network_with_masks_slices_and_pads_is_that_of_the_interpreter() {
    let mut g = GraphBuilder::new();
    let weights = |k, n, seed| Weights::from_tensor(Tensor::random_normal_f32(k, n, 0.3, seed).unwrap());
    let ids = g.input("ids", I32, &[2, 5]).unwrap();
    let mask = g.input("mask", Bool, &[2, 5, 1]).unwrap();
    let table = g.weights("table", &weights(9, 8, 1)).unwrap();
    let x = g.gather(table, ids, 0).unwrap();
    let floor = g.scalar(-0.5f32);
    let x = g.node(Operator::Where, &[Some(mask), Some(x), Some(floor)]).unwrap()[0];
    let up = g.linear("up", x, &weights(12, 8, 2).transposed().unwrap(), None).unwrap();
    let up = g.gelu(up).unwrap();
    let down = g.linear("down", up, &weights(12, 8, 3), None).unwrap();
    let (scale, bias) =
        (g.constant("scale", random(&[8], 4)).unwrap(), g.constant("bias", random(&[8], 5)).unwrap());
    let x = g.layer_normalization(down, scale, bias, 1e-5).unwrap();
    let turned = g.transpose(x, &[0, 2, 1]).unwrap();
    let scores = g.matmul(x, turned).unwrap();
    let scores = g.softmax(scores, -1).unwrap();
    let mixed = g.matmul(scores, x).unwrap();
    let attended = g.attention(mixed, x, x, None, Attention::new().heads(2, 2).causal(true)).unwrap();
    let part = g.slice(attended, 1, 1, 4).unwrap();
    let padded = g.pad(part, &[0, 1, 0, 0, 2, 0]).unwrap();
    let mean = g.reduce_mean(padded, &[1], false).unwrap();
    let graph = g.finish(&[("mean", mean), ("padded", padded)]).unwrap();
    let ids = Array::new(&[2, 5], vec![0i32, 8, -1, 3, 4, -9, 5, 5, 1, 2]).unwrap();
    let mask = Array::new(&[2, 5, 1], [1, 1, 0, 1, 0, 1, 0, 1, 1, 1].map(|bit| bit == 1).to_vec()).unwrap();
    check(&graph, &[&ids, &mask], "a network");
}

#[test]
fn each_operator_of_the_reference_shim_is_that_of_the_interpreter() {
    use Operator as Op;
    let over = |axes: Option<&[i64]>, keepdims| Reduce { axes: axes.map(<[i64]>::to_vec), keepdims };
    let x = || random(&[3, 4, 5], 1);
    let integers = |dims: &[usize]| {
        let count = dims.iter().product();
        Array::new(dims, (0..).take(count).map(|i| i % 5 - 2).collect::<Vec<i64>>()).unwrap()
    };
    let bits = Array::new(&[4, 5], (0..20).map(|i| i % 3 == 0).collect()).unwrap();
    let slice = |starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]| {
        let [starts, ends, axes, steps] = [starts, ends, axes, steps].map(<[i64]>::to_vec);
        Op::Slice { starts, ends, axes, steps }
    };
    let q = || random(&[2, 4, 3, 6], 7);
    let kv = || random(&[2, 2, 5, 6], 8);
    let seen = Array::new(&[2, 1, 1, 5], (0..10).map(|i| i % 4 != 1).collect()).unwrap();
    let cases: Vec<(Op, Vec<Array>)> = vec![
        (Op::Add, vec![x(), random(&[4, 1], 2)]),
        (Op::Sub, vec![x(), random(&[5], 2)]),
        (Op::Mul, vec![x(), random(&[3, 1, 1], 2)]),
        (Op::Div, vec![x(), Array::new(&[4, 1], vec![0.5f32, 2.0, -1.5, 3.0]).unwrap()]),
        (Op::Relu, vec![x()]),
        (Op::Gelu { tanh: false }, vec![x()]),
        (Op::Gelu { tanh: true }, vec![x()]),
        (Op::MatMul, vec![x(), random(&[3, 5, 2], 2)]),
        (Op::MatMul, vec![random(&[4], 2), x()]),
        (Op::Softmax { axis: 1 }, vec![x()]),
        (Op::Where, vec![bits.clone(), x(), random(&[], 3)]),
        (Op::Where, vec![bits.clone(), integers(&[5]), integers(&[4, 1])]),
        (Op::Cast { to: Bool }, vec![integers(&[7])]),
        (Op::Cast { to: F32 }, vec![integers(&[7])]),
        (Op::Cast { to: I64 }, vec![x()]),
        (Op::Cast { to: I32 }, vec![bits.clone()]),
        (Op::Gather { axis: 1 }, vec![x(), integers(&[2, 3])]),
        (Op::Gather { axis: -1 }, vec![integers(&[2, 5]), integers(&[])]),
        (Op::LayerNormalization { axis: 1, epsilon: 0.1 }, vec![x(), random(&[4, 5], 2), random(&[5], 3)]),
        (Op::LayerNormalization { axis: -1, epsilon: 1e-5 }, vec![x(), random(&[5], 2)]),
        (Op::Attention(Attention::new()), vec![q(), kv(), kv(), seen]),
        (Op::Attention(Attention::new().causal(true)), vec![q(), kv(), kv()]),
        (Op::Attention(Attention::new().scale(0.7)), vec![q(), kv(), kv(), random(&[3, 5], 9)]),
        (
            Op::Attention(Attention::new().heads(4, 2)),
            vec![random(&[2, 3, 8], 1), random(&[2, 5, 4], 2), random(&[2, 5, 6], 3)],
        ),
        (Op::ReduceSum(over(Some(&[0, -1]), false)), vec![x()]),
        (Op::ReduceMean(over(None, true)), vec![x()]),
        (Op::ReduceMax(over(Some(&[1]), true)), vec![x()]),
        (Op::ReduceL2(over(Some(&[2]), false)), vec![x()]),
        (Op::ReduceL2(over(Some(&[]), true)), vec![x()]),
        (Op::Transpose { perm: vec![1, 2, 0] }, vec![x()]),
        (Op::Transpose { perm: vec![1, 0] }, vec![bits]),
        (Op::Reshape { shape: vec![-1, 6] }, vec![x()]),
        (Op::Flatten { axis: 2 }, vec![x()]),
        (Op::Squeeze { axes: None }, vec![random(&[1, 3, 1], 2)]),
        (Op::Unsqueeze { axes: vec![0, 2] }, vec![x()]),
        (Op::Identity, vec![integers(&[3])]),
        (slice(&[1, -3], &[i64::MAX, -1], &[1, 2], &[2, 1]), vec![x()]),
        (slice(&[-1, 9], &[i64::MIN, 0], &[0, -1], &[-1, -2]), vec![x()]),
        (Op::Pad { pads: vec![0, 1, -1, 2, 0, 3] }, vec![x()]),
        (Op::Pad { pads: vec![1, 2] }, vec![integers(&[3]), Array::scalar(7i64)]),
    ];
    for (operator, inputs) in cases {
        let what = format!("{operator:?}");
        let mut g = GraphBuilder::new();
        let values: Vec<_> = inputs
            .iter()
            .enumerate()
            .map(|(index, array)| {
                let of = array.tensor_type();
                Some(g.input(format!("in {index}"), of.element, of.shape.dims()).unwrap())
            })
            .collect();
        let y = g.node(operator, &values).unwrap_or_else(|error| panic!("{what}: {error}"))[0];
        let graph = g.finish(&[("y", y)]).unwrap();
        check(&graph, &inputs.iter().collect::<Vec<_>>(), &what);
    }
}

#[test]
fn what_the_reference_shim_does_not_run_is_refused_by_name() {
    let (backends, id) = reference();
    let graph = cnn(1).unwrap();
    let refused = backends.refused_nodes(&id, &graph, &CompileOptions::default()).unwrap();
    let names: Vec<_> = refused.iter().map(|one| one.node.as_str()).collect();
    let has = ["Conv", "Clip", "BatchNormalization", "MaxPool", "GlobalAveragePool"];
    let expected: Vec<_> =
        graph.nodes().filter(|(_, operator)| has.contains(&operator.name())).map(|(name, _)| name).collect();
    assert_eq!((names.len(), &names), (expected.len(), &expected));
    assert!(expected.len() > 8);
    let error = backends.compile_graph(&id, &graph, &CompileOptions::default()).unwrap_err().to_string();
    assert!(
        error.contains(&format!("node `{}`", expected[0])) && error.contains("no such operator"),
        "{error}"
    );
    let gpu = CompileOptions::default().device(Device::Gpu);
    let answer = backends.refused_nodes(&id, &graph, &gpu);
    assert!(matches!(answer, Err(Error::Refused { refusal, .. }) if refusal.reason == RefusalReason::Device));
}

#[test]
fn a_run_that_fails_is_the_shims_error_and_the_next_is_not() {
    let mut g = GraphBuilder::new();
    let ids = g.input("ids", I64, &[2]).unwrap();
    let table = g.constant("table", random(&[5, 3], 1)).unwrap();
    let y = g.gather(table, ids, 0).unwrap();
    let compiled = compile(&g.finish(&[("y", y)]).unwrap());
    let mut executor = compiled.executor().unwrap();
    for wrong in [5, -6, i64::MIN, i64::MAX] {
        let ids = Array::new(&[2], vec![0, wrong]).unwrap();
        match executor.run_to_arrays(&[&ids]) {
            Err(Error::Native(native)) => {
                assert_eq!((native.step, native.status), ("graph_executor_run", NativeStatus::RunFailed));
            }
            other => panic!("{wrong}: {other:?}"),
        }
    }
    let right = Array::new(&[2], vec![4i64, -5]).unwrap();
    assert_eq!(executor.run_to_arrays(&[&right]).unwrap()[0].shape().dims(), [2, 3]);
}
