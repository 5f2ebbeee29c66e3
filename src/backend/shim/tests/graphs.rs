//! Graphs on a mock table: how they cross, and what is made of a table that keeps to nothing.

use std::cell::RefCell;
use std::ffi::c_char;
use std::fmt::Write;

use super::super::graph::NONE;
use super::mock::{alive, assert_nothing_leaked, create, destroy, enter, good_table, mock, with_table};
use super::*;
use crate::backend::Backends;
use crate::description::element::ElementType::{self, Bool, F16, F32, F64, I8, I32, I64, U8};
use crate::graph::operator::{Groups, PoolKernel, Reduce, Window};
use crate::graph::{Array, Attention, Graph, GraphBuilder, Operator};

/// What the graphs of the mock do, and have seen.
#[derive(Default)]
struct Seen {
    /// A line for each node of the last description.
    text: String,
    /// The contents of its initializers, by their names.
    contents: Vec<(String, Vec<u8>)>,
    /// How each tensor varies: its axis, and the elements of it.
    varying: Vec<(i32, u64)>,
    /// The nodes that are refused, and how many that is said to be.
    refused: Vec<u32>,
    count: Option<u32>,
    /// For each node the one that it is computed with.
    fused: Vec<u32>,
    /// What a run fills its outputs with.
    byte: u8,
    /// The leading dimension of the last run, and the bytes of its operands.
    run: (u64, Vec<u64>, Vec<u64>),
    operands: (usize, usize),
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::default();
}

fn seen<T>(f: impl FnOnce(&mut Seen) -> T) -> T {
    SEEN.with_borrow_mut(f)
}

/// # Safety
/// There are `count` elements at `start` for as long as the result is used.
unsafe fn list<'a, T>(start: *const T, count: u32) -> &'a [T] {
    // SAFETY: by the function's contract; of none any address will do.
    if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(start, count as usize) } }
}

/// Reads a description as the header says.
fn read(desc: *const sys::ANEGraphDesc) {
    // SAFETY: the caller passes a description that is valid for the call, as is what it points at.
    let (desc, tensors, nodes, operands, attributes, integers) = unsafe {
        let desc = &*desc;
        (
            desc,
            list(desc.tensors, desc.tensor_count),
            list(desc.nodes, desc.node_count),
            list(desc.operands, desc.operand_count),
            list(desc.attributes, desc.attribute_count),
            list(desc.integers, desc.integer_count),
        )
    };
    assert_eq!(desc.struct_size as usize, size_of::<sys::ANEGraphDesc>());
    // SAFETY: all strings end in NUL.
    let name = |start| unsafe { CStr::from_ptr(start) }.to_str().unwrap().to_owned();
    let mut contents = Vec::new();
    for tensor in tensors {
        let initializer = tensor.flags == sys::ANE_TENSOR_INITIALIZER.cast_unsigned();
        assert_eq!(initializer, tensor.data.is_null() != tensor.constant.is_null(), "{}", name(tensor.name));
        if !tensor.data.is_null() {
            // SAFETY: there are so many bytes, for the call.
            let bytes = unsafe { list(tensor.data.cast::<u8>(), u32::try_from(tensor.bytes).unwrap()) };
            contents.push((name(tensor.name), bytes.to_vec()));
        }
        if !tensor.constant.is_null() {
            alive(tensor.constant);
        }
    }
    let operand = |index: &u32| {
        if *index == NONE {
            return "-".to_owned();
        }
        let tensor = &tensors[*index as usize];
        if tensor.type_ != 10 || tensor.data.is_null() {
            return name(tensor.name);
        }
        let count = u32::try_from(tensor.bytes / 8).unwrap();
        // SAFETY: there are so many bytes, for the call.
        let numbers = unsafe { list(tensor.data.cast::<i64>(), count) };
        match tensor.rank {
            0 => numbers[0].to_string(),
            rank => {
                assert_eq!((rank, tensor.dims[0]), (1, u64::from(count)));
                format!("{numbers:?}").replace(' ', "")
            }
        }
    };
    let mut text = String::new();
    for node in nodes {
        let first = node.first_operand as usize;
        let outputs = first + node.input_count as usize;
        let end = outputs + node.output_count as usize;
        let inputs: Vec<_> = operands[first..outputs].iter().map(operand).collect();
        let results: Vec<_> = operands[outputs..end].iter().map(operand).collect();
        write!(text, "{} {} > {}", node.op, inputs.join(" "), results.join(" ")).unwrap();
        let first = node.first_attribute as usize;
        for attribute in &attributes[first..first + node.attribute_count as usize] {
            let first = attribute.first as usize;
            let value = match attribute.kind {
                1 => attribute.integer.to_string(),
                2 => format!("{:?}", attribute.number),
                kind => {
                    assert_eq!(kind, 3);
                    format!("{:?}", &integers[first..first + attribute.count as usize]).replace(' ', "")
                }
            };
            write!(text, " {}={value}", attribute.name).unwrap();
        }
        text.push('\n');
    }
    let varying = tensors.iter().map(|tensor| (tensor.variable_axis, tensor.variable_count)).collect();
    let operands = (desc.input_count as usize, desc.output_count as usize);
    seen(|seen| {
        (seen.text, seen.contents, seen.varying, seen.operands) = (text, contents, varying, operands);
    });
}

extern "C" fn graph_supports(
    device: *mut sys::ANEDevice,
    desc: *const sys::ANEGraphDesc,
    _: *const sys::ANECompileOptions,
    refusals: *mut sys::ANENodeRefusal,
    capacity: u32,
    count: *mut u32,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(device);
    read(desc);
    let (nodes, said) = seen(|seen| (seen.refused.clone(), seen.count));
    // SAFETY: there is room for `capacity` refusals, and for their number.
    unsafe {
        for (index, node) in nodes.iter().enumerate().take(capacity as usize) {
            let refusal = &mut *refusals.add(index);
            assert_eq!(refusal.struct_size as usize, size_of::<sys::ANENodeRefusal>());
            (refusal.node, refusal.reason) = (*node, sys::ANE_REFUSAL_ELEMENT_TYPE);
            refusal.message.fill(c_char::from_ne_bytes([b'x']));
        }
        count.write(said.unwrap_or_else(|| u32::try_from(nodes.len()).unwrap()));
    }
    match enter("graph_supports", err) {
        sys::ANE_STATUS_OK if !nodes.is_empty() || said.is_some() => sys::ANE_STATUS_REFUSED,
        status => status,
    }
}

extern "C" fn graph_compile(
    device: *mut sys::ANEDevice,
    desc: *const sys::ANEGraphDesc,
    _: *const sys::ANECompileOptions,
    out: *mut *mut sys::ANEGraph,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(device);
    read(desc);
    create("graph_compile", out, err)
}

extern "C" fn graph_save(_: *mut sys::ANEGraph, _: *const c_char, _: *mut sys::ANEError) -> sys::ANEStatus {
    sys::ANE_STATUS_NOT_IMPLEMENTED
}

extern "C" fn graph_load(
    _: *mut sys::ANEDevice,
    _: *const sys::ANEGraphDesc,
    _: *const sys::ANECompileOptions,
    _: *const c_char,
    _: *mut *mut sys::ANEGraph,
    _: *mut sys::ANEError,
) -> sys::ANEStatus {
    sys::ANE_STATUS_NOT_IMPLEMENTED
}

extern "C" fn graph_info(
    graph: *mut sys::ANEGraph,
    info: *mut sys::ANEGraphInfo,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(graph);
    // SAFETY: the caller passes an info that is valid for the call.
    let info = unsafe { &mut *info };
    (info.bytes_held, info.executor_bytes) = (42, u64::MAX);
    info.arithmetic = mock(|mock| mock.arithmetic);
    enter("graph_info", err)
}

extern "C" fn graph_node_info(
    graph: *mut sys::ANEGraph,
    node: u32,
    info: *mut sys::ANENodeInfo,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(graph);
    let into = seen(|seen| seen.fused.get(node as usize).copied());
    // SAFETY: the caller passes an info that is valid for the call.
    unsafe { (*info).fused_into = into.unwrap_or(node) };
    enter("graph_node_info", err)
}

extern "C" fn graph_destroy(graph: *mut sys::ANEGraph) {
    destroy("graph_compile", graph);
}

extern "C" fn graph_executor_create(
    graph: *mut sys::ANEGraph,
    _: *const sys::ANEExecutorOptions,
    out: *mut *mut sys::ANEGraphExecutor,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(graph);
    create("graph_executor_create", out, err)
}

extern "C" fn graph_executor_run(
    executor: *mut sys::ANEGraphExecutor,
    args: *const sys::ANEGraphRunArgs,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(executor);
    let (inputs, outputs) = seen(|seen| seen.operands);
    // SAFETY: the caller passes arguments that are valid for the call, and operands of so many bytes.
    unsafe {
        let args = &*args;
        let inputs = std::slice::from_raw_parts(args.inputs, inputs);
        let outputs = std::slice::from_raw_parts(args.outputs, outputs);
        let lengths = |operands: &[sys::ANEOperand]| operands.iter().map(|one| one.length_bytes).collect();
        let byte = seen(|seen| {
            seen.run = (args.leading, lengths(inputs), lengths(outputs));
            seen.byte
        });
        for output in outputs.iter().filter(|output| output.length_bytes > 0) {
            output.data.cast::<u8>().write_bytes(byte, usize::try_from(output.length_bytes).unwrap());
        }
    }
    enter("graph_executor_run", err)
}

extern "C" fn graph_executor_submit(
    _: *mut sys::ANEGraphExecutor,
    _: *const sys::ANEGraphRunArgs,
    _: *mut sys::ANETicket,
    _: *mut sys::ANEError,
) -> sys::ANEStatus {
    sys::ANE_STATUS_NOT_IMPLEMENTED
}

extern "C" fn graph_executor_wait(
    _: *mut sys::ANEGraphExecutor,
    _: sys::ANETicket,
    _: u64,
    _: *mut sys::ANERunInfo,
    _: *mut sys::ANEError,
) -> sys::ANEStatus {
    sys::ANE_STATUS_NOT_IMPLEMENTED
}

extern "C" fn graph_executor_destroy(executor: *mut sys::ANEGraphExecutor) {
    destroy("graph_executor_create", executor);
}

fn graph_table() -> sys::ANEGraphTable {
    sys::ANEGraphTable {
        struct_size: size_u32::<sys::ANEGraphTable>(),
        reserved0: 0,
        package_format: std::ptr::null(),
        graph_supports: Some(graph_supports),
        graph_compile: Some(graph_compile),
        graph_save: Some(graph_save),
        graph_load: Some(graph_load),
        graph_info: Some(graph_info),
        graph_node_info: Some(graph_node_info),
        graph_destroy: Some(graph_destroy),
        graph_executor_create: Some(graph_executor_create),
        graph_executor_run: Some(graph_executor_run),
        graph_executor_submit: Some(graph_executor_submit),
        graph_executor_wait: Some(graph_executor_wait),
        graph_executor_destroy: Some(graph_executor_destroy),
    }
}

/// A registry with the mock and its graphs, whose state is fresh but for what is set.
fn with_graphs(setup: impl FnOnce(&mut mock::Mock), graphs: Seen) -> (Backends, BackendId) {
    let table = graph_table();
    seen(|seen| *seen = graphs);
    with_table(&sys::ANEShim { graphs: &raw const table, ..good_table() }, setup)
}

fn refused(backends: &Backends, id: &BackendId, graph: &Graph) -> Result<Vec<NodeRefusal>> {
    backends.refused_nodes(id, graph, &CompileOptions::default())
}

/// y of x through some nodes.
fn graph(make: impl FnOnce(&mut GraphBuilder, crate::graph::Value) -> Result<crate::graph::Value>) -> Graph {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[4, 6]).unwrap();
    let y = make(&mut g, x).unwrap();
    g.finish(&[("y", y)]).unwrap()
}

/// Three nodes.
fn chain() -> Graph {
    graph(|g, x| {
        let x = g.named("first").relu(x)?;
        let x = g.named("second").softmax(x, -1)?;
        g.named("third").tanh(x)
    })
}

type Input<'a> = Option<(ElementType, &'a [usize])>;

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn every_operator_crosses_as_the_header_says() {
    use Operator as Op;
    const MATRIX: Input<'_> = Some((F32, &[4, 6]));
    const VECTOR: Input<'_> = Some((F32, &[6]));
    const ONE: Input<'_> = Some((F32, &[]));
    const IMAGE: Input<'_> = Some((F32, &[2, 4, 5, 5]));
    const CHANNELS: Input<'_> = Some((F32, &[4]));
    const BOOLS: Input<'_> = Some((Bool, &[4, 6]));
    const ROWS: Input<'_> = Some((F32, &[2, 3, 8]));
    let window = || Window { strides: vec![2, 1], pads: vec![1, 0, 2, 1], dilations: vec![1, 2] };
    let kernel = |ceil_mode| PoolKernel { shape: vec![3, 2], ceil_mode };
    let over = |axes: Option<&[i64]>, keepdims| Reduce { axes: axes.map(<[i64]>::to_vec), keepdims };
    let quantize = |axis, block_size, output| Op::QuantizeLinear { axis, block_size, output };
    let dequantize = |axis, block_size, output| Op::DequantizeLinear { axis, block_size, output };
    let cases: Vec<(Op, Vec<Input<'_>>, &str)> = vec![
        (Op::Abs, vec![MATRIX], "1 a > y"),
        (Op::Neg, vec![MATRIX], "2 a > y"),
        (Op::Reciprocal, vec![MATRIX], "4 a > y"),
        (Op::Sqrt, vec![MATRIX], "5 a > y"),
        (Op::Exp, vec![MATRIX], "6 a > y"),
        (Op::Log, vec![MATRIX], "7 a > y"),
        (Op::Erf, vec![MATRIX], "10 a > y"),
        (Op::Relu, vec![MATRIX], "14 a > y"),
        (Op::LeakyRelu { alpha: 0.25 }, vec![MATRIX], "15 a > y 2=0.25"),
        (Op::Gelu { tanh: false }, vec![MATRIX], "18 a > y 4=0"),
        (Op::Gelu { tanh: true }, vec![MATRIX], "18 a > y 4=1"),
        (Op::Sigmoid, vec![MATRIX], "19 a > y"),
        (Op::HardSigmoid { alpha: 0.25, beta: 0.75 }, vec![MATRIX], "20 a > y 2=0.25 8=0.75"),
        (Op::HardSwish, vec![MATRIX], "21 a > y"),
        (Op::Tanh, vec![MATRIX], "22 a > y"),
        (Op::Clip, vec![MATRIX, None, ONE], "25 a - c > y"),
        (Op::Clip, vec![MATRIX, ONE, None], "25 a b - > y"),
        (Op::Not, vec![BOOLS], "26 a > y"),
        (Op::Identity, vec![MATRIX], "30 a > y"),
        (Op::Cast { to: I64 }, vec![MATRIX], "29 a > y 55=10"),
        (Op::Cast { to: Bool }, vec![MATRIX], "29 a > y 55=11"),
        (Op::Cast { to: F16 }, vec![MATRIX], "29 a > y 55=3"),
        (Op::Cast { to: F64 }, vec![MATRIX], "29 a > y 55=1"),
        (Op::Add, vec![MATRIX, VECTOR], "100 a b > y"),
        (Op::Sub, vec![MATRIX, VECTOR], "101 a b > y"),
        (Op::Mul, vec![MATRIX, VECTOR], "102 a b > y"),
        (Op::Div, vec![MATRIX, VECTOR], "103 a b > y"),
        (Op::Pow, vec![MATRIX, ONE], "105 a b > y"),
        (Op::Min, vec![MATRIX, VECTOR, ONE], "106 a b c > y"),
        (Op::Max, vec![MATRIX, VECTOR, ONE], "107 a b c > y"),
        (Op::Equal, vec![MATRIX, VECTOR], "109 a b > y"),
        (Op::Greater, vec![MATRIX, VECTOR], "110 a b > y"),
        (Op::GreaterOrEqual, vec![MATRIX, VECTOR], "111 a b > y"),
        (Op::Less, vec![MATRIX, VECTOR], "112 a b > y"),
        (Op::LessOrEqual, vec![MATRIX, VECTOR], "113 a b > y"),
        (Op::And, vec![BOOLS, BOOLS], "114 a b > y"),
        (Op::Or, vec![BOOLS, BOOLS], "115 a b > y"),
        (Op::Where, vec![BOOLS, MATRIX, VECTOR], "117 a b c > y"),
        (Op::MatMul, vec![MATRIX, VECTOR], "200 a b > y"),
        (
            Op::Gemm { alpha: 0.5, beta: 2.0, transpose_a: false, transpose_b: true },
            vec![MATRIX, MATRIX, CHANNELS],
            "201 a b c > y 2=0.5 8=2.0 56=0 57=1",
        ),
        (
            Op::Conv(window(), Groups(2)),
            vec![IMAGE, Some((F32, &[6, 2, 3, 2])), VECTOR],
            "202 a b c > y 17=[1,2] 39=[1,0,2,1] 54=[2,1] 24=2",
        ),
        (Op::Conv(Window::default(), Groups(1)), vec![IMAGE, Some((F32, &[6, 4, 3, 2]))], "202 a b > y 24=1"),
        (
            Op::BatchNormalization { epsilon: 0.5 },
            vec![IMAGE, CHANNELS, CHANNELS, CHANNELS, CHANNELS],
            "300 a b c d e > y 18=0.5",
        ),
        (
            Op::LayerNormalization { axis: -1, epsilon: 0.5 },
            vec![MATRIX, VECTOR, None],
            "303 a b - > y 6=-1 18=0.5",
        ),
        (Op::RmsNormalization { axis: 1, epsilon: 0.5 }, vec![MATRIX, VECTOR], "304 a b > y 6=1 18=0.5"),
        (Op::Softmax { axis: 0 }, vec![MATRIX], "305 a > y 6=0"),
        (
            Op::Attention(Attention::new().heads(4, 2).scale(0.5).causal(true)),
            vec![ROWS, Some((F32, &[2, 3, 4])), Some((F32, &[2, 3, 4])), Some((Bool, &[3, 3]))],
            "400 a b c d > y 26=1 42=4 30=2 47=0.5",
        ),
        (Op::Attention(Attention::new()), vec![IMAGE, IMAGE, IMAGE, None], "400 a b c - > y 26=0"),
        (quantize(1, 0, U8), vec![MATRIX, ONE], "500 a b > y 6=1"),
        (quantize(1, 0, I8), vec![MATRIX, ONE], "500 a b > y 6=1 37=6"),
        (quantize(0, 0, I8), vec![MATRIX, CHANNELS, Some((I8, &[4]))], "500 a b c > y 6=0"),
        (
            quantize(-1, 3, U8),
            vec![MATRIX, Some((F32, &[4, 2])), Some((U8, &[4, 2]))],
            "500 a b c > y 6=-1 9=3",
        ),
        (dequantize(1, 0, F32), vec![Some((I8, &[4, 6])), ONE], "501 a b > y 6=1"),
        (dequantize(0, 2, F16), vec![Some((U8, &[4, 6])), Some((F32, &[2, 6]))], "501 a b > y 6=0 9=2 37=3"),
        (Op::Reshape { shape: vec![3, -1] }, vec![MATRIX], "600 a [3,8] > y"),
        (Op::Reshape { shape: vec![5, 0] }, vec![Some((F32, &[0, 3]))], "600 a [5,0] > y 1=1"),
        (Op::Reshape { shape: vec![] }, vec![Some((F32, &[1, 1]))], "600 a [] > y"),
        (Op::Flatten { axis: 2 }, vec![IMAGE], "601 a > y 6=2"),
        (Op::Squeeze { axes: None }, vec![Some((F32, &[1, 3, 1]))], "602 a > y"),
        (Op::Squeeze { axes: Some(vec![-1]) }, vec![Some((F32, &[1, 3, 1]))], "602 a [-1] > y"),
        (Op::Unsqueeze { axes: vec![0, -1] }, vec![MATRIX], "603 a [0,-1] > y"),
        (Op::Expand { shape: vec![3, 1, 6] }, vec![MATRIX], "604 a [3,1,6] > y"),
        (Op::Transpose { perm: vec![0, 3, 1, 2] }, vec![IMAGE], "606 a > y 40=[0,3,1,2]"),
        (Op::Concat { axis: 1 }, vec![MATRIX, MATRIX, MATRIX], "607 a b c > y 6=1"),
        (Op::Split { axis: 1, lengths: vec![1, 3, 2] }, vec![MATRIX], "608 a [1,3,2] > y.0 y.1 y.2 6=1"),
        (
            Op::Slice { starts: vec![3, 1], ends: vec![i64::MIN, 5], axes: vec![0, -1], steps: vec![-1, 2] },
            vec![MATRIX],
            "609 a [3,1] [-9223372036854775808,5] [0,-1] [-1,2] > y",
        ),
        (Op::Pad { pads: vec![1, 0, -2, 3] }, vec![MATRIX, ONE], "610 a [1,0,-2,3] b > y"),
        (Op::Pad { pads: vec![1, 0, -2, 3] }, vec![MATRIX], "610 a [1,0,-2,3] > y"),
        (Op::Trilu { upper: false, k: -1 }, vec![MATRIX], "611 a -1 > y 58=0"),
        (Op::Gather { axis: 1 }, vec![MATRIX, Some((I32, &[2, 2]))], "700 a b > y 6=1"),
        (Op::ReduceSum(over(Some(&[0, -1]), false)), vec![MATRIX], "800 a [0,-1] > y 28=0"),
        (Op::ReduceMean(over(None, true)), vec![MATRIX], "801 a > y 28=1"),
        (Op::ReduceMax(over(Some(&[1]), true)), vec![MATRIX], "802 a [1] > y 28=1"),
        (Op::ReduceL2(over(Some(&[]), true)), vec![MATRIX], "806 a > y 28=1 34=1"),
        (
            Op::MaxPool(window(), kernel(true)),
            vec![IMAGE],
            "900 a > y 17=[1,2] 39=[1,0,2,1] 54=[2,1] 11=1 29=[3,2]",
        ),
        (
            Op::AveragePool { window: Window::default(), kernel: kernel(false), count_include_pad: true },
            vec![IMAGE],
            "901 a > y 11=0 29=[3,2] 13=1",
        ),
        (Op::GlobalAveragePool, vec![IMAGE], "903 a > y"),
    ];
    assert_eq!(i64::from(NONE), sys::ANE_GRAPH_NONE);
    let (backends, id) = with_graphs(|_| {}, Seen::default());
    let mut crossed = std::collections::HashSet::new();
    for (operator, inputs, expected) in cases {
        crossed.insert(operator.name());
        let mut g = GraphBuilder::new();
        let inputs: Vec<_> = inputs
            .iter()
            .zip(["a", "b", "c", "d", "e"])
            .map(|(input, name)| input.map(|(element, dims)| g.input(name, element, dims).unwrap()))
            .collect();
        let name = format!("{operator:?}");
        g.named("y");
        let outputs = g.node(operator, &inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
        let names: Vec<_> = (0..outputs.len()).map(|index| format!("out {index}")).collect();
        let outputs: Vec<_> = names.iter().map(String::as_str).zip(outputs).collect();
        let graph = g.finish(&outputs).unwrap();
        assert_eq!(refused(&backends, &id, &graph).unwrap(), []);
        assert_eq!(seen(|seen| seen.text.clone()).trim_end(), expected, "{name}");
    }
    // Those of src/graph/operator.rs.
    assert_eq!(crossed.len(), 62);
}

#[test]
fn constants_cross_in_the_order_of_their_values() {
    let stored = Tensor::from_fn(2, 3, |row, col| (10 * row + col) as f32).unwrap();
    let weights = Weights::from_tensor(stored);
    let make = |g: &mut GraphBuilder, x| {
        let plain = g.weights("plain", &weights)?;
        let turned = g.weights("turned", &weights.transposed()?)?;
        let factor = g.weights("factor", &Weights::from_tensor(Tensor::filled(1, 1, 7f32)?))?;
        let x = g.slice(x, 1, 0, 2)?;
        let x = g.matmul(x, plain)?;
        let x = g.matmul(x, turned)?;
        g.mul(x, factor)
    };
    let (backends, id) = with_graphs(|_| {}, Seen::default());
    let graph = graph(make);
    refused(&backends, &id, &graph).unwrap();
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>();
    let contents = || {
        seen(|seen| seen.contents.clone()).into_iter().filter(|(name, _)| !name.contains("slice")).collect()
    };
    let all: Vec<(String, Vec<u8>)> = contents();
    assert_eq!(
        all,
        [
            ("plain".to_owned(), bytes(&[0.0, 1.0, 2.0, 10.0, 11.0, 12.0])),
            ("turned".to_owned(), bytes(&[0.0, 10.0, 1.0, 11.0, 2.0, 12.0])),
            ("factor".to_owned(), bytes(&[7.0])),
        ]
    );
    drop(backends);
    // A device that takes constants has them once for all graphs, but for single elements.
    let (backends, id) = with_graphs(|mock| mock.constants = true, Seen::default());
    let compiled: Vec<_> =
        (0..2).map(|_| backends.compile_graph(&id, &graph, &CompileOptions::default()).unwrap()).collect();
    let all: Vec<(String, Vec<u8>)> = contents();
    assert_eq!(all, [("factor".to_owned(), bytes(&[7.0]))]);
    let made =
        |mock: &mut mock::Mock| mock.events.iter().filter(|event| *event == "+constant_create").count();
    assert_eq!(mock(made), 2);
    // Each, and what the shim says that the graph holds.
    assert_eq!(compiled[0].report().weight_bytes, 2 * 24 + 42);
    drop((backends, compiled));
    assert_nothing_leaked();
}

#[test]
fn objects_of_graphs_die_in_order_each_once() {
    let (backends, id) = with_graphs(|_| {}, Seen::default());
    let compiled = backends.compile_graph(&id, &chain(), &CompileOptions::default()).unwrap();
    let executor = compiled.executor().unwrap();
    drop((backends, compiled));
    drop(executor);
    assert_nothing_leaked();
    mock(|mock| {
        assert_eq!(
            mock.events,
            [
                "+device_open",
                "prepare",
                "+graph_compile",
                "+graph_executor_create",
                "-graph_executor_create",
                "-graph_compile",
                "-device_open",
            ]
        );
    });
}

fn run_chain(backends: &Backends, id: &BackendId) -> Result<()> {
    let compiled = backends.compile_graph(id, &chain(), &CompileOptions::default())?;
    let x = Array::new(&[4, 6], vec![1f32; 24])?;
    compiled.executor()?.run_to_arrays(&[&x]).map(drop)
}

#[test]
fn failures_at_slots_of_graphs_keep_their_types() {
    for slot in ["graph_supports", "graph_compile", "graph_executor_create", "graph_executor_run"] {
        for (code, status) in STATUSES {
            let (backends, id) = with_graphs(|mock| mock.fail = Some((slot, code, 0)), Seen::default());
            match run_chain(&backends, &id) {
                Err(Error::Native(native)) => {
                    assert_eq!((native.step, native.status, native.code), (slot, status, -7));
                    assert_eq!(native.message, "a message");
                }
                other => panic!("{slot} with {code}: {other:?}"),
            }
            drop(backends);
            assert_nothing_leaked();
        }
        let refusal = (slot, sys::ANE_STATUS_REFUSED, sys::ANE_REFUSAL_DEVICE);
        let (backends, id) = with_graphs(|mock| mock.fail = Some(refusal), Seen::default());
        match run_chain(&backends, &id) {
            Err(Error::Refused { refusal, .. }) => {
                assert_eq!((refusal.reason, refusal.message.as_str()), (RefusalReason::Device, "a message"));
            }
            other => panic!("{slot}: {other:?}"),
        }
    }
    for slot in ["graph_compile", "graph_executor_create"] {
        let (backends, id) = with_graphs(|mock| mock.empty_handed = Some(slot), Seen::default());
        let text = run_chain(&backends, &id).unwrap_err().to_string();
        assert!(text.contains("gave no object"), "{slot}: {text}");
    }
    let tf32 = sys::ANE_ARITHMETIC_TF32.cast_unsigned();
    let (backends, id) = with_graphs(|mock| mock.arithmetic = tf32, Seen::default());
    assert!(matches!(run_chain(&backends, &id), Err(Error::Refused { .. })));
    drop(backends);
    assert_nothing_leaked();
}

#[test]
fn refusals_belong_to_their_nodes_and_no_others_are_believed() {
    let ask = |nodes: &[u32], count: Option<u32>| {
        let (backends, id) = with_graphs(|_| {}, Seen { refused: nodes.to_vec(), count, ..Seen::default() });
        refused(&backends, &id, &chain())
    };
    let names = |refused: Vec<NodeRefusal>| refused.into_iter().map(|one| one.node).collect::<Vec<_>>();
    assert_eq!(names(ask(&[0, 2], None).unwrap()), ["first", "third"]);
    assert_eq!(names(ask(&[0, 1, 2], None).unwrap()), ["first", "second", "third"]);
    let one = &ask(&[1], None).unwrap()[0];
    assert_eq!((one.operator, one.refusal.reason), ("Softmax", RefusalReason::ElementType));
    assert_eq!(one.refusal.message, "x".repeat(240));
    let (backends, id) = with_graphs(|_| {}, Seen { refused: vec![1], ..Seen::default() });
    let text = run_chain(&backends, &id).unwrap_err().to_string();
    assert!(text.contains("node `second`: Softmax: xxx"), "{text}");
    drop(backends);
    // None, but the graph as a whole.
    assert!(matches!(ask(&[], Some(0)), Err(Error::Refused { .. })));
    for (nodes, count) in [
        (&[0, 1, 2][..], Some(4)),
        (&[0], Some(u32::MAX)),
        (&[3], None),
        (&[u32::MAX], None),
        (&[1, 1], None),
        (&[2, 0], None),
        (&[1], Some(2)),
    ] {
        let answer = ask(nodes, count);
        let internal =
            matches!(&answer, Err(Error::Native(native)) if native.status == NativeStatus::Internal);
        assert!(internal, "{nodes:?} of {count:?}: {answer:?}");
    }
}

#[test]
fn shims_without_graphs_and_pools_of_the_callers_are_refused_in_words() {
    let (backends, id) = with_table(&good_table(), |_| {});
    let all = refused(&backends, &id, &chain()).unwrap();
    assert_eq!(all.len(), 3);
    assert!(all[0].to_string().contains("the shim `mock` has products alone, no graphs"), "{}", all[0]);
    drop(backends);
    let packaged =
        sys::ANEGraphTable { graph_compile: None, package_format: c"mlpackage".as_ptr(), ..graph_table() };
    let (backends, id) = with_table(&sys::ANEShim { graphs: &raw const packaged, ..good_table() }, |_| {});
    let all = refused(&backends, &id, &chain()).unwrap();
    assert!(all[2].to_string().contains("reads graphs from packages (mlpackage)"), "{}", all[2]);
    drop(backends);
    let (backends, id) = with_graphs(|_| {}, Seen::default());
    let options = CompileOptions::default().threads(Threads::Pool(Arc::new(Inline)));
    assert!(
        matches!(backends.refused_nodes(&id, &chain(), &options), Err(Error::Refused { refusal, .. }) if refusal.reason == RefusalReason::Threads)
    );
}

#[test]
fn a_run_passes_its_leading_dimension_and_leaves_zeros_beyond() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[4, 6]).unwrap();
    let rows = g.input("rows", F32, &[3]).unwrap();
    let turned = g.transpose(x, &[1, 0]).unwrap();
    let split = g.reshape(turned, &[2, 3, 4]).unwrap();
    let back = g.transpose(split, &[2, 0, 1]).unwrap();
    let fixed = g.relu(rows).unwrap();
    let positive = g.node(Operator::Greater, &[Some(back), Some(rows)]).unwrap()[0];
    let graph = g
        .finish(&[("back", back), ("fixed", fixed), ("again", back), ("positive", positive)])
        .unwrap()
        .variable_leading(&["x"])
        .unwrap();
    let (backends, id) = with_graphs(|_| {}, Seen { byte: 3, ..Seen::default() });
    let compiled = backends.compile_graph(&id, &graph, &CompileOptions::default()).unwrap();
    let varying = seen(|seen| seen.varying.clone());
    assert_eq!(varying[..7], [(0, 1), (-1, 0), (1, 1), (2, 1), (0, 1), (-1, 0), (0, 1)]);
    let mut executor = compiled.executor().unwrap();
    let rows = Array::new(&[3], vec![0f32; 3]).unwrap();
    for leading in [4, 1, 0, 3] {
        let x = Array::new(&[leading, 6], vec![0f32; leading * 6]).unwrap();
        let full = || Array::new(&[4, 2, 3], vec![f32::NAN; 24]).unwrap();
        let mut fixed = Array::new(&[3], vec![f32::NAN; 3]).unwrap();
        let (mut back, mut again) = (full(), full());
        let mut positive = Array::new(&[4, 2, 3], vec![true; 24]).unwrap();
        executor.run(&[&x, &rows], &mut [&mut back, &mut fixed, &mut again, &mut positive]).unwrap();
        let bytes = leading as u64 * 24;
        let (inputs, outputs) = (vec![bytes, 12], vec![bytes, 12, bytes / 4]);
        assert_eq!(seen(|seen| seen.run.clone()), (leading as u64, inputs, outputs));
        // The same value twice is written once; a boolean is one whatever was written.
        let written = f32::from_ne_bytes([3; 4]);
        for array in [&back, &again] {
            let data = array.data::<f32>().unwrap();
            assert!(data[..leading * 6].iter().all(|x| *x == written));
            assert!(data[leading * 6..].iter().all(|x| *x == 0.0));
        }
        assert_eq!(fixed.data::<f32>().unwrap(), [written; 3]);
        let mut expected = [true; 24];
        expected[leading * 6..].fill(false);
        // SAFETY: booleans have a byte each.
        let bytes = unsafe { list(positive.data::<bool>().unwrap().as_ptr().cast::<u8>(), 24) };
        assert_eq!(bytes, expected.map(u8::from));
    }
}

#[test]
fn without_a_variable_dimension_there_is_none_to_pass() {
    let (backends, id) = with_graphs(|_| {}, Seen { byte: 0, ..Seen::default() });
    run_chain(&backends, &id).unwrap();
    assert_eq!(seen(|seen| seen.run.clone()), (0, vec![96], vec![96]));
    assert!(seen(|seen| seen.varying.iter().all(|varying| *varying == (-1, 0))));
}

#[test]
fn steps_are_what_the_shim_fuses_and_nonsense_is_a_step_each() {
    let steps = |fused: &[u32], fail: Option<&'static str>| {
        let (backends, id) = with_graphs(
            |mock| mock.fail = fail.map(|slot| (slot, sys::ANE_STATUS_INTERNAL, 0)),
            Seen { fused: fused.to_vec(), ..Seen::default() },
        );
        let compiled = backends.compile_graph(&id, &chain(), &CompileOptions::default()).unwrap();
        let report = compiled.report();
        assert_eq!(report.arena_bytes, if fail == Some("graph_info") { 0 } else { usize::MAX });
        assert_eq!(report.values_bytes, 2 * 96);
        let x = Array::new(&[4, 6], vec![1f32; 24]).unwrap();
        let mut y = Array::new(&[4, 6], vec![1f32; 24]).unwrap();
        let profile = compiled.executor().unwrap().profile(&[&x], &mut [&mut y]).unwrap();
        assert_eq!(profile.elapsed_ns(), None);
        report.nodes.into_iter().map(|node| node.step.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(steps(&[], None), ["first", "second", "third"]);
    assert_eq!(steps(&[0, 0, 2], None), ["first", "first", "third"]);
    // By way of another.
    assert_eq!(steps(&[1, 2, 2], None), ["third", "third", "third"]);
    // Out of range, and in a circle.
    assert_eq!(steps(&[3, u32::MAX, 2], None), ["first", "second", "third"]);
    assert_eq!(steps(&[1, 0, 2], None), ["first", "second", "third"]);
    assert_eq!(steps(&[1, 0, 2], Some("graph_info")), ["first", "second", "third"]);
    assert_eq!(steps(&[2, 2, 2], Some("graph_node_info")), ["first", "second", "third"]);
}
