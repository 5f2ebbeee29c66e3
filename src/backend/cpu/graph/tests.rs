//! Graphs on the engine, beside the float64 interpreter.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::backend::{BackendId, Backends};
use crate::description::element::ElementType::{Bool, F32, I64};
use crate::description::layout::Layout;
use crate::description::options::{CompileOptions, ThreadPool, Threads};
use crate::description::quantization::{NibbleOrder, QuantB};
use crate::error::{Error, Result};
use crate::graph::check::{check_nodes, check_whole};
use crate::graph::tests::cases::cases;
use crate::graph::tests::checks::plain_values;
use crate::graph::tests::fixtures::Encoder;
use crate::graph::tests::random::{part_of, random_graph, shrink};
use crate::graph::{Array, Graph, GraphBuilder, Operator};
use crate::operands::int4::Int4View;
use crate::operands::quantize::WeightScheme;
use crate::operands::tensor::Tensor;
use crate::operands::weights::Weights;

fn options(threads: usize) -> CompileOptions {
    CompileOptions::default().threads(Threads::Count(NonZeroUsize::new(threads).unwrap()))
}

fn signed(index: usize) -> i64 {
    i64::try_from(index).unwrap()
}

fn random(dims: &[usize], seed: u64) -> Array {
    let count = dims.iter().product();
    Array::new(dims, Tensor::random_normal_f32(1, count, 1.0, seed).unwrap().data().to_vec()).unwrap()
}

/// Runs tasks one after the other, the last first.
#[derive(Debug)]
struct Backwards;

impl ThreadPool for Backwards {
    fn threads(&self) -> usize {
        3
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).rev().for_each(task);
    }
}

/// Two layers with residual and norm on gathered rows, and what is pooled of them.
fn layers(batch: usize) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let weights = |k, n, seed| Weights::from_tensor(Tensor::random_normal_f32(k, n, 0.2, seed).unwrap());
    let ids = g.input("ids", I64, &[batch, 5])?;
    let table = g.weights("table", &weights(11, 48, 1))?;
    let x = g.gather(table, ids, 0)?;
    let bias = g.constant("bias", random(&[96], 2))?;
    let up = g.linear("up", x, &weights(48, 96, 3), Some(bias))?;
    let up = g.gelu(up)?;
    let down = g.linear("down", up, &weights(48, 96, 4).transposed()?, None)?;
    let sum = g.add(down, x)?;
    let (scale, shift) = (g.constant("scale", random(&[48], 5))?, g.constant("shift", random(&[48], 6))?);
    let normal = g.layer_normalization(sum, scale, shift, 1e-5)?;
    let turned = g.transpose(normal, &[0, 2, 1])?;
    let scores = g.matmul(normal, turned)?;
    let scores = g.softmax(scores, -1)?;
    let mixed = g.matmul(scores, normal)?;
    let mean = g.reduce_mean(mixed, &[1], false)?;
    let length = g.reduce_l2(mean, &[-1], true)?;
    let pooled = g.named("pooled").div(mean, length)?;
    g.finish(&[("pooled", pooled), ("normal", normal)])
}

fn ids(batch: usize) -> Array {
    Array::new(
        &[batch, 5],
        (0..batch * 5).map(|id| signed(id * 7 % 11) - if id % 3 == 0 { 11 } else { 0 }).collect(),
    )
    .unwrap()
}

fn assert_close(got: &[Array], expected: &[Array]) {
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.shape(), expected.shape());
        for (got, expected) in got.data::<f32>().unwrap().iter().zip(expected.data::<f64>().unwrap()) {
            assert!((f64::from(*got) - expected).abs() < 1e-4, "{got}, expected {expected}");
        }
    }
}

#[test]
fn layers_are_those_of_the_interpreter_for_any_threads() {
    let (graph, ids) = (layers(6).unwrap(), ids(6));
    let expected = graph.interpret_f64(&[&ids]).unwrap();
    let run = |options: &CompileOptions| {
        let compiled = graph.compile_with(&BackendId::CPU, options).unwrap();
        let mut executor = compiled.executor().unwrap();
        executor.run_to_arrays(&[&ids]).unwrap();
        executor.run_to_arrays(&[&ids]).unwrap()
    };
    let one = run(&options(1));
    assert_close(&one, &expected);
    for options in
        [options(2), options(3), CompileOptions::default().threads(Threads::Pool(Arc::new(Backwards)))]
    {
        assert_eq!(run(&options), one);
    }
}

#[test]
fn fewer_of_the_leading_dimension_leave_zeros() {
    let graph = layers(6).unwrap().variable_leading(&["ids"]).unwrap();
    let compiled = graph.compile_with(&BackendId::CPU, &options(2)).unwrap();
    let mut executor = compiled.executor().unwrap();
    for batch in [6, 1, 4, 0, 6] {
        let ids = ids(batch);
        let expected = graph.with_leading(batch).unwrap().interpret_f64(&[&ids]).unwrap();
        assert_close(&executor.run_to_arrays(&[&ids]).unwrap(), &expected);
        let mut pooled = Array::new(&[6, 48], vec![f32::NAN; 6 * 48]).unwrap();
        let mut normal = Array::new(&[6, 5, 48], vec![f32::NAN; 6 * 5 * 48]).unwrap();
        executor.run(&[&ids], &mut [&mut pooled, &mut normal]).unwrap();
        let (pooled, normal) = (pooled.data::<f32>().unwrap(), normal.data::<f32>().unwrap());
        assert!(pooled[batch * 48..].iter().chain(&normal[batch * 5 * 48..]).all(|x| *x == 0.0));
        assert_close(&[Array::new(&[batch, 48], pooled[..batch * 48].to_vec()).unwrap()], &expected);
    }
}

#[test]
fn a_wrong_index_names_its_node() {
    let graph = layers(1).unwrap();
    let mut executor = graph.compile(&BackendId::CPU).unwrap().executor().unwrap();
    for wrong in [11, -12, i64::MIN, i64::MAX] {
        let ids = Array::new(&[1, 5], vec![0, 1, wrong, 3, 4]).unwrap();
        let error = executor.run_to_arrays(&[&ids]).unwrap_err().to_string();
        assert!(
            error.contains(&format!("Gather: index {wrong} is out of range: axis 0 of [11, 48]")),
            "{error}"
        );
    }
    executor.run_to_arrays(&[&ids(1)]).unwrap();
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let graph = layers(2).unwrap();
    let mut executor = graph.compile(&BackendId::CPU).unwrap().executor().unwrap();
    let error = |executor: &mut crate::graph::GraphExecutor, inputs: &[&Array]| {
        executor.run_to_arrays(inputs).unwrap_err().to_string()
    };
    assert!(error(&mut executor, &[]).contains("expected 1 inputs (ids), got 0"));
    assert!(error(&mut executor, &[&ids(1)]).contains("input `ids`: expected i64[2, 5], got i64[1, 5]"));
    assert!(error(&mut executor, &[&random(&[2, 5], 1)]).contains("got f32[2, 5]"));
    let mut one = random(&[2, 48], 1);
    let message = executor.run(&[&ids(2)], &mut [&mut one]).unwrap_err().to_string();
    assert!(message.contains("expected 2 outputs (pooled, normal), got 1"), "{message}");
    let (mut pooled, mut normal) = (random(&[2, 48], 1), random(&[2, 5, 47], 1));
    let message = executor.run(&[&ids(2)], &mut [&mut pooled, &mut normal]).unwrap_err().to_string();
    assert!(message.contains("output `normal`: expected f32[2, 5, 48], got f32[2, 5, 47]"), "{message}");
}

/// Sentences of several lengths, and of none beyond their places in the batch.
fn sentences(encoder: &Encoder, batch: usize) -> [Array; 2] {
    let count = batch * encoder.sequence;
    let id = |index: usize| signed((index * 5 + index / 3) % encoder.vocabulary);
    let is_word =
        |index: usize| i64::from(index % encoder.sequence <= index / encoder.sequence % encoder.sequence);
    let of = |element: &dyn Fn(usize) -> i64| {
        Array::new(&[batch, encoder.sequence], (0..count).map(element).collect()).unwrap()
    };
    [of(&id), of(&is_word)]
}

#[test]
fn an_encoder_is_that_of_the_interpreter() {
    let encoder = Encoder { batch: 4, ..Encoder::SMALL };
    let graph = encoder.bert().unwrap().variable_leading(&["ids", "mask"]).unwrap();
    for threads in [1, 2] {
        let compiled = graph.compile_with(&BackendId::CPU, &options(threads)).unwrap();
        let report = compiled.report();
        assert!(report.arena_bytes * 2 < report.values_bytes, "{report}");
        let mut executor = compiled.executor().unwrap();
        for batch in [4, 1, 3, 4] {
            let [ids, mask] = sentences(&encoder, batch);
            let expected = graph.with_leading(batch).unwrap().interpret_f64(&[&ids, &mask]).unwrap();
            assert_close(&executor.run_to_arrays(&[&ids, &mask]).unwrap(), &expected);
        }
    }
}

/// What the engine computes of each value, where it is one of memory, and of the outputs.
fn values_of(graph: &Graph, inputs: &[Array], threads: usize) -> (Vec<Option<Array>>, Vec<Array>) {
    let backends = Backends::new();
    let cpu = backends.get(&BackendId::CPU).unwrap();
    let program = cpu.compile_graph(graph, &options(threads)).unwrap();
    let mut run = program.open(true).unwrap();
    let mut outputs: Vec<_> = graph.outputs().map(|(_, of)| Array::zeros(of)).collect::<Result<_>>().unwrap();
    let inputs: Vec<_> = inputs.iter().collect();
    run.run(0, &inputs, &mut outputs.iter_mut().collect::<Vec<_>>(), None).unwrap();
    let mut values: Vec<_> = (0..graph.values.len()).map(|value| run.value(value).unwrap()).collect();
    for ((_, value), array) in graph.outputs.iter().zip(&outputs) {
        values[*value] = Some(array.clone());
    }
    (values, outputs)
}

/// The part of a graph that the engine computes: what it refuses is given.
fn taken(graph: &Graph, inputs: &[Array]) -> (Graph, Vec<Array>) {
    let refused = Backends::new().refused_nodes(&BackendId::CPU, graph, &options(1)).unwrap();
    let mut values = plain_values(graph, inputs);
    let is_refused = |name: &str| refused.iter().any(|refused| refused.node == name);
    let mut cut = HashMap::new();
    for node in graph.nodes.iter().filter(|node| is_refused(&node.name)) {
        for value in &node.outputs {
            cut.extend(values[*value].take().map(|array| (*value, array)));
        }
    }
    let outputs: Vec<_> =
        graph.outputs.iter().map(|(_, value)| *value).filter(|value| !cut.contains_key(value)).collect();
    part_of(graph, inputs, &outputs, &cut)
}

/// What is wrong with the engine's values of a graph, node by node.
fn wrong_node(graph: &Graph, inputs: &[Array], values: &[Option<Array>]) -> Option<String> {
    let inputs: Vec<_> = inputs.iter().collect();
    check_nodes(graph, &inputs, values, |_| true).unwrap().wrong.map(|wrong| format!("{wrong:?}"))
}

/// What is wrong node by node, or with the whole.
fn faults(graph: &Graph, inputs: &[Array], threads: usize) -> Option<String> {
    let (values, outputs) = values_of(graph, inputs, threads);
    wrong_node(graph, inputs, &values).or_else(|| {
        let (inputs, outputs): (Vec<_>, Vec<_>) = (inputs.iter().collect(), outputs.iter().collect());
        let whole = check_whole(graph, &inputs, &outputs).unwrap();
        // What is undetermined is that of the graph.
        let wrong = whole.outputs.iter().find(|output| !output.is_right());
        wrong.map(|wrong| format!("{wrong:?}"))
    })
}

#[test]
fn every_operator_by_itself_is_within_its_bound() {
    let refused = |graph: &Graph| {
        !Backends::new().refused_nodes(&BackendId::CPU, graph, &options(1)).unwrap().is_empty()
    };
    let all = cases();
    let count = all.len();
    let taken: Vec<_> = all.into_iter().filter(|(_, graph, _)| !refused(graph)).collect();
    println!("{} of {count} cases; the engine refuses the others", taken.len());
    assert!(taken.len() >= 100);
    for (name, graph, inputs) in &taken {
        for threads in [1, 3] {
            let (values, _) = values_of(graph, inputs, threads);
            assert_eq!(wrong_node(graph, inputs, &values), None, "{name}");
        }
    }
}

#[test]
fn random_graphs_are_within_the_bounds_of_their_nodes() {
    let mut nodes = 0;
    for (seed, threads) in (0..40).zip([1, 2].into_iter().cycle()) {
        let (graph, inputs) = random_graph(seed, 60, |_| true);
        let (graph, inputs) = taken(&graph, &inputs);
        nodes += graph.nodes.len();
        if faults(&graph, &inputs, threads).is_some() {
            let (graph, inputs) =
                shrink(graph, inputs, |graph, inputs| faults(graph, inputs, threads).is_some());
            panic!("seed {seed}: {}\n{graph}", faults(&graph, &inputs, threads).unwrap());
        }
    }
    println!("{nodes} nodes");
    assert!(nodes > 1000);
}

#[test]
fn an_encoder_checks_itself_and_runs_on_several_threads_at_once() {
    let encoder = Encoder { batch: 4, ..Encoder::SMALL };
    let graph = encoder.bert().unwrap().variable_leading(&["ids", "mask"]).unwrap();
    let compiled = graph.compile_with(&BackendId::CPU, &options(2)).unwrap();
    let [ids, mask] = sentences(&encoder, 3);
    let all = compiled.check_nodes(&[&ids, &mask], |_| true).unwrap();
    assert!(all.is_right() && all.compared > 1000, "{all:?}");
    let some = compiled.check_nodes(&[&ids, &mask], |name| name.ends_with("norm")).unwrap();
    let checked: Vec<_> = graph.nodes().zip(&some.worst).filter(|(_, worst)| worst.is_some()).collect();
    assert!(!checked.is_empty() && checked.iter().all(|((name, _), _)| name.ends_with("norm")));
    let whole = compiled.check_whole(&[&ids, &mask]).unwrap();
    assert!(whole.is_right(), "{whole:?}");
    let expected = compiled.executor().unwrap().run_to_arrays(&[&ids, &mask]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut executor = compiled.executor().unwrap();
                for _ in 0..20 {
                    assert_eq!(executor.run_to_arrays(&[&ids, &mask]).unwrap(), expected);
                }
            });
        }
    });
}

#[test]
fn weights_and_inputs_under_other_names_are_read_where_they_lie() {
    let weights = Weights::from_tensor(Tensor::from_vec((0u8..6).map(f32::from).collect(), 2, 3).unwrap());
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[3, 2]).unwrap();
    let turned = g.weights("turned", &weights.transposed().unwrap()).unwrap();
    let flat = g.reshape(turned, &[6]).unwrap();
    let given = g.reshape(x, &[6]).unwrap();
    let sum = g.add(flat, given).unwrap();
    let outputs = [("sum", sum), ("flat", flat), ("given", given), ("again", given), ("same", sum)];
    let graph = g.finish(&outputs).unwrap();
    let x = Array::new(&[3, 2], vec![10f32, 20.0, 30.0, 40.0, 50.0, 60.0]).unwrap();
    let expected = graph.interpret_f32(&[&x]).unwrap();
    assert_eq!(expected[1].data::<f32>().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    for threads in [1, 2] {
        let compiled = graph.compile_with(&BackendId::CPU, &options(threads)).unwrap();
        assert_eq!(compiled.executor().unwrap().run_to_arrays(&[&x]).unwrap(), expected);
        assert!(compiled.check_nodes(&[&x], |_| true).unwrap().is_right());
    }
}

#[test]
fn dimensions_of_0_are_computed_in_every_step() {
    for (batch, words) in [(0, 5), (3, 0), (1, 1)] {
        let mut g = GraphBuilder::new();
        let x = g.input("x", F32, &[batch, words, 8]).unwrap();
        let weights = Weights::from_tensor(Tensor::random_normal_f32(8, 24, 0.3, 1).unwrap());
        let bias = g.constant("bias", random(&[24], 2)).unwrap();
        let projected = g.linear("projected", x, &weights, Some(bias)).unwrap();
        let parts = g.split(projected, -1, &[8, 8, 8]).unwrap();
        let attributes = crate::graph::Attention::new().heads(2, 2);
        let attended = g.attention(parts[0], parts[1], parts[2], None, attributes).unwrap();
        let sum = g.add(attended, x).unwrap();
        let turned = g.transpose(sum, &[0, 2, 1]).unwrap();
        let square = g.matmul(turned, sum).unwrap();
        let weights = g.softmax(square, -1).unwrap();
        let total = g.reduce_sum(weights, &[0], true).unwrap();
        let largest = g.reduce_max(weights, &[1], false).unwrap();
        let joined = g.concat(&[weights, weights], 1).unwrap();
        let graph = g.finish(&[("total", total), ("largest", largest), ("joined", joined)]).unwrap();
        let inputs = [random(&[batch, words, 8], 3)];
        for threads in [1, 2] {
            assert_eq!(faults(&graph, &inputs, threads), None, "{batch} x {words}");
        }
    }
}

#[test]
fn products_read_quantised_weights_as_they_are() {
    let schemes = [
        (WeightScheme::INT8, QuantB::PerColumn { zero_point: 0 }),
        (WeightScheme::INT8, QuantB::PerTensor { zero_point: 3 }),
        (WeightScheme::INT4, QuantB::PerGroup { group_size: 8, zero_point: -1 }),
    ];
    for (storage, scheme) in schemes {
        let scheme = storage.with_scheme(scheme);
        let dense = Weights::from_tensor(Tensor::random_normal_f32(24, 24, 0.3, 1).unwrap());
        let (weights, _) = dense.quantize(&scheme).unwrap();
        let mut g = GraphBuilder::new();
        let x = g.input("x", F32, &[3, 5, 24]).unwrap();
        let w = g.weights("w", &weights).unwrap();
        let bias = g.constant("bias", random(&[24], 2)).unwrap();
        let y = g.named("first").matmul(x, w).unwrap();
        let y = g.add(y, bias).unwrap();
        let y = g.gelu(y).unwrap();
        let y = g.named("second").matmul(y, w).unwrap();
        let y = g.named("sum").add(y, x).unwrap();
        let graph = g.finish(&[("y", y)]).unwrap().variable_leading(&["x"]).unwrap();
        let compiled = graph.compile(&BackendId::CPU).unwrap();
        let report = compiled.report();
        let steps: Vec<_> = report.nodes.iter().map(|node| node.step.clone()).collect();
        assert_eq!(steps.iter().flatten().filter(|step| *step == "sum").count(), 2, "{report}");
        assert!(report.weight_bytes < 24 * 24 * 4, "{report}");
        for rows in [3, 1, 0] {
            let x = random(&[rows, 5, 24], 3);
            let checked = compiled.check_nodes(&[&x], |_| true).unwrap();
            assert!(checked.is_right(), "{scheme:?}: {:?}", checked.wrong);
            assert!(compiled.check_whole(&[&x]).unwrap().is_right(), "{scheme:?}");
        }
    }
    // Where something else reads them as numbers, there is no node for it.
    let (weights, _) = Weights::from_tensor(Tensor::random_normal_f32(4, 4, 0.3, 1).unwrap())
        .quantize(&WeightScheme::INT8)
        .unwrap();
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[4, 4]).unwrap();
    let w = g.weights("w", &weights).unwrap();
    let y = g.matmul(x, w).unwrap();
    let y = g.add(y, w).unwrap();
    let graph = g.finish(&[("y", y)]).unwrap();
    let refused = Backends::new().refused_nodes(&BackendId::CPU, &graph, &options(1)).unwrap();
    assert_eq!(refused.iter().map(|refused| refused.node.as_str()).collect::<Vec<_>>(), ["w"]);
}

#[test]
fn a_row_of_a_wrong_index_is_zeros() {
    let mut g = GraphBuilder::new();
    let ids = g.input("ids", I64, &[3]).unwrap();
    let table = g.constant("table", Array::new(&[2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap()).unwrap();
    let rows = g.gather(table, ids, 0).unwrap();
    let mut executor =
        g.finish(&[("rows", rows)]).unwrap().compile(&BackendId::CPU).unwrap().executor().unwrap();
    let ids = Array::new(&[3], vec![1i64, 2, 0]).unwrap();
    let mut rows = Array::new(&[3, 2], vec![f32::NAN; 6]).unwrap();
    executor.run(&[&ids], &mut [&mut rows]).unwrap_err();
    // What follows in the graph reads them, and of booleans not every byte is one.
    assert_eq!(rows.data::<f32>().unwrap(), [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
}

#[test]
fn elements_of_less_than_a_byte_are_not_moved() {
    let bytes = [0x21, 0x43, 0x65];
    let order = NibbleOrder::default();
    let view = Int4View::signed(&bytes, Layout::packed(1, 2, 3).unwrap(), order).unwrap();
    let weights = Weights::new(view).unwrap();
    let mut g = GraphBuilder::new();
    let (x, nibbles) = (g.input("x", F32, &[2]).unwrap(), g.weights("nibbles", &weights).unwrap());
    let at = g.constant("at", Array::scalar(1i64)).unwrap();
    let moved = [
        g.named("turned").transpose(nibbles, &[1, 0]).unwrap(),
        g.named("joined").concat(&[nibbles, nibbles], 0).unwrap(),
        g.named("part").slice(nibbles, 0, 0, 1).unwrap(),
        g.named("padded").pad(nibbles, &[1, 0, 0, 0]).unwrap(),
        g.named("triangle").trilu(nibbles, true, 0).unwrap(),
        g.named("row").gather(nibbles, at, 0).unwrap(),
    ];
    g.reshape(nibbles, &[6]).unwrap();
    let y = g.relu(x).unwrap();
    let names = ["y", "a", "b", "c", "d", "e", "f"];
    let outputs: Vec<_> = names.into_iter().zip([y].into_iter().chain(moved)).collect();
    let graph = g.finish(&outputs).unwrap();
    let refused = Backends::new().refused_nodes(&BackendId::CPU, &graph, &options(1)).unwrap();
    let names: Vec<_> = refused.iter().map(|one| one.node.as_str()).collect();
    assert_eq!(names, ["turned", "joined", "part", "padded", "triangle", "row"]);
    assert!(
        refused.iter().all(|one| one.refusal.message.contains("a byte or more, not for i4")),
        "{refused:?}"
    );
}

#[test]
fn a_gemm_whose_factor_no_product_has_is_refused_by_name() {
    for (alpha, beta, part) in [(f32::INFINITY, 1.0, "an alpha of inf"), (1.0, f32::NAN, "a beta other")] {
        let mut g = GraphBuilder::new();
        let x = g.input("x", F32, &[2, 2]).unwrap();
        let operator = Operator::Gemm { alpha, beta, transpose_a: false, transpose_b: false };
        let y = g.named("product").node(operator, &[Some(x), Some(x), Some(x)]).unwrap()[0];
        let error = g.finish(&[("y", y)]).unwrap().compile(&BackendId::CPU).unwrap_err().to_string();
        assert!(error.contains("node `product`") && error.contains(part), "{error}");
    }
}

#[test]
fn a_sum_of_products_belongs_to_one_of_them() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[5, 6]).unwrap();
    let weights = |seed| Weights::from_tensor(Tensor::random_normal_f32(6, 7, 0.5, seed).unwrap());
    let bias = g.constant("bias", random(&[7], 1)).unwrap();
    let first = g.linear("first", x, &weights(2), None).unwrap();
    let second = g.linear("second", x, &weights(3), Some(bias)).unwrap();
    let third = g.linear("third", x, &weights(4), None).unwrap();
    let sum = g.add(first, second).unwrap();
    let sum = g.add(sum, third).unwrap();
    let y = g.relu(sum).unwrap();
    let graph = g.finish(&[("y", y)]).unwrap();
    let report = graph.compile(&BackendId::CPU).unwrap().report();
    let steps = report.nodes.iter().filter(|node| node.step.as_ref() == Some(&node.name)).count();
    assert_eq!(steps, 3, "{report}");
    for threads in [1, 2] {
        assert_eq!(faults(&graph, &[random(&[5, 6], 5)], threads), None);
    }
}

#[test]
fn a_scale_of_each_row_is_refused_where_one_of_each_column_is_meant() {
    let refused = |dims: &[usize]| {
        let mut g = GraphBuilder::new();
        let x = g.input("x", F32, &[4, 2, 2]).unwrap();
        let scale = g.constant("scale", random(dims, 1)).unwrap();
        let operator = Operator::LayerNormalization { axis: 1, epsilon: 1e-5 };
        let y = g.node(operator, &[Some(x), Some(scale)]).unwrap()[0];
        let graph = g.finish(&[("y", y)]).unwrap();
        let refused = Backends::new().refused_nodes(&BackendId::CPU, &graph, &options(1)).unwrap();
        if refused.is_empty() {
            assert_eq!(faults(&graph, &[random(&[4, 2, 2], 2)], 1), None);
        }
        refused.into_iter().next().map(|refused| refused.to_string())
    };
    for taken in [&[2, 2][..], &[1, 2, 2]] {
        assert_eq!(refused(taken), None);
    }
    for other in [&[4, 1, 1][..], &[2], &[2, 1]] {
        assert!(refused(other).unwrap().contains("the CPU wants an element for each of [2, 2]"));
    }
}

#[test]
fn booleans_are_booleans_after_an_index_out_of_range() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[64]).unwrap();
    let seen = g.input("seen", Bool, &[64]).unwrap();
    let ids = g.input("ids", I64, &[64]).unwrap();
    // Numbers, in the place of which booleans lie later.
    let numbers = g.exp(x).unwrap();
    let sum = g.reduce_sum(numbers, &[0], false).unwrap();
    let gathered = g.gather(seen, ids, 0).unwrap();
    let not = g.not(gathered).unwrap();
    let graph = g.finish(&[("sum", sum), ("not", not)]).unwrap();
    let mut executor = graph.compile(&BackendId::CPU).unwrap().executor().unwrap();
    let seen = Array::new(&[64], vec![true; 64]).unwrap();
    let ids = Array::new(&[64], vec![64i64; 64]).unwrap();
    let (mut sum, mut not) = (Array::scalar(0f32), Array::new(&[64], vec![false; 64]).unwrap());
    executor.run(&[&random(&[64], 1), &seen, &ids], &mut [&mut sum, &mut not]).unwrap_err();
    let start = not.elements().start();
    // SAFETY: the array has 64 elements of a byte.
    let bytes = unsafe { std::slice::from_raw_parts(start, 64) };
    assert!(bytes.iter().all(|byte| *byte < 2), "{bytes:?}");
}

#[test]
fn more_values_than_memory_can_hold_are_an_error() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[1]).unwrap();
    let parts: Vec<_> = (0..20).map(|_| g.expand(x, &[1 << 59]).unwrap()).collect();
    let all = parts[1..].iter().try_fold(parts[0], |sum, part| g.add(sum, *part)).unwrap();
    let y = g.reduce_max(all, &[0], false).unwrap();
    let compiled = g.finish(&[("y", y)]).unwrap().compile(&BackendId::CPU).unwrap();
    assert!(matches!(compiled.executor(), Err(Error::OutOfMemory { .. })));
}

#[test]
fn indices_are_checked_once_where_there_is_nothing_to_gather() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[1 << 50, 5, 0]).unwrap();
    let ids = g.input("ids", I64, &[1]).unwrap();
    let y = g.gather(x, ids, 1).unwrap();
    let graph = g.finish(&[("y", y)]).unwrap();
    let mut executor = graph.compile(&BackendId::CPU).unwrap().executor().unwrap();
    let x = Array::new(&[1 << 50, 5, 0], Vec::<f32>::new()).unwrap();
    let mut run = |index: i64| executor.run_to_arrays(&[&x, &Array::new(&[1], vec![index]).unwrap()]);
    run(-5).unwrap();
    assert!(run(5).unwrap_err().to_string().contains("index 5 is out of range"));
}

#[test]
fn a_refused_graph_names_its_nodes_and_each_reason_once() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[1, 2, 3, 3]).unwrap();
    let y = g.named("pool").global_average_pool(x).unwrap();
    let error = g.finish(&[("y", y)]).unwrap().compile(&BackendId::CPU).unwrap_err();
    assert_eq!(
        error.to_string(),
        "refused by backend `cpu`: node `pool`: GlobalAveragePool: the CPU does not have this operator yet (other)"
    );
}
