//! Descriptions: what is taken, and what is refused with which words.

pub(crate) mod cases;
pub(crate) mod checks;
pub(crate) mod fixtures;
pub(crate) mod random;
mod scheduled;

use super::operator::{Attention, Groups, Operator, PoolKernel, Reduce, Window};
use super::{Array, Graph, GraphBuilder, Shape, TensorType};
use crate::description::element::ElementType::{self, Bool, F32, F64, I8, I32, I64, U8};
use crate::description::quantization::QuantB;
use crate::error::Error;
use crate::operands::quantize::WeightScheme;
use crate::operands::tensor::Tensor;
use crate::operands::weights::Weights;
use fixtures::Encoder;

#[allow(clippy::unnecessary_wraps, reason = "as an input is")]
fn of(element: ElementType, dims: &[usize]) -> Option<TensorType> {
    Some(TensorType::new(element, Shape::new(dims).unwrap()))
}

/// What an operator makes of f32 inputs: dimensions, or the problem.
fn dims_of(operator: &Operator, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
    let inputs: Vec<_> = inputs.iter().map(|dims| of(F32, dims)).collect();
    operator.infer(&inputs).map(|results| results[0].shape.dims().to_vec())
}

fn window(strides: &[usize], pads: &[usize], dilations: &[usize]) -> Window {
    Window { strides: strides.to_vec(), pads: pads.to_vec(), dilations: dilations.to_vec() }
}

fn slice(starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]) -> Operator {
    let [starts, ends, axes, steps] = [starts, ends, axes, steps].map(<[i64]>::to_vec);
    Operator::Slice { starts, ends, axes, steps }
}

/// An operator, the dimensions of its inputs, and what they give.
type DimsCase<'a> = (Operator, &'a [&'a [usize]], Result<&'a [usize], &'a str>);
/// The same with types.
type TypesCase<'a> = (Operator, &'a [Option<TensorType>], Result<TensorType, &'a str>);

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn every_operator_gives_the_dimensions_that_onnx_does() {
    use Operator as Op;
    let gemm = |transpose_a, transpose_b| Op::Gemm { alpha: 1.0, beta: 1.0, transpose_a, transpose_b };
    let conv = |window, groups| Op::Conv(window, Groups(groups));
    let mean =
        |axes: Option<&[i64]>, keepdims| Op::ReduceMean(Reduce { axes: axes.map(<[i64]>::to_vec), keepdims });
    let pool = |window, shape: &[usize], ceil_mode| {
        Op::MaxPool(window, PoolKernel { shape: shape.to_vec(), ceil_mode })
    };
    let reshape = |shape: &[i64]| Op::Reshape { shape: shape.to_vec() };
    let squeeze = |axes: Option<&[i64]>| Op::Squeeze { axes: axes.map(<[i64]>::to_vec) };
    let none = Window::default;
    let cases: &[DimsCase<'_>] = &[
        (Op::Add, &[&[2, 1, 3], &[4, 1]], Ok(&[2, 4, 3])),
        (Op::Add, &[&[2], &[3]], Err("[2] and [3] cannot be broadcast")),
        (Op::Add, &[&[2]], Err("it takes 2 inputs, got 1")),
        (Op::Max, &[&[2, 1], &[3], &[]], Ok(&[2, 3])),
        (Op::Max, &[], Err("it takes 1 or more inputs, got 0")),
        (Op::Relu, &[&[0, 3]], Ok(&[0, 3])),
        (Op::Clip, &[&[3], &[1]], Err("bounds without dimensions, got f32[1]")),
        (Op::Softmax { axis: 2 }, &[&[2, 3]], Err("there is no axis 2 in [2, 3]")),
        (Op::MatMul, &[&[5, 2, 3], &[3, 4]], Ok(&[5, 2, 4])),
        (Op::MatMul, &[&[6, 1, 2, 3], &[5, 3, 4]], Ok(&[6, 5, 2, 4])),
        (Op::MatMul, &[&[3], &[5, 3, 4]], Ok(&[5, 4])),
        (Op::MatMul, &[&[2, 3], &[3]], Ok(&[2])),
        (Op::MatMul, &[&[3], &[3]], Ok(&[])),
        (Op::MatMul, &[&[2, 3], &[4, 3]], Err("[2, 3] and [4, 3] do not fit: k is 3 and 4")),
        (Op::MatMul, &[&[], &[3, 1]], Err("no dimensions")),
        (gemm(false, true), &[&[2, 3], &[4, 3], &[4]], Ok(&[2, 4])),
        (gemm(true, false), &[&[3, 2], &[3, 4]], Ok(&[2, 4])),
        (gemm(false, false), &[&[2, 3], &[3, 4], &[5, 2, 4]], Err("a C that is broadcast to [2, 4]")),
        (gemm(false, false), &[&[2, 3, 1], &[3, 4]], Err("it takes matrices, got f32[2, 3, 1]")),
        (conv(none(), 1), &[&[2, 3, 9], &[4, 3, 2]], Ok(&[2, 4, 8])),
        (
            conv(window(&[2, 1], &[1, 0, 2, 0], &[1, 2]), 2),
            &[&[1, 4, 9, 9], &[6, 2, 3, 3], &[6]],
            Ok(&[1, 6, 5, 5]),
        ),
        (conv(none(), 2), &[&[1, 3, 9], &[4, 3, 2]], Err("do not fit in 2 groups")),
        (conv(none(), 0), &[&[1, 3, 9], &[4, 3, 2]], Err("do not fit in 0 groups")),
        (conv(none(), 1), &[&[1, 3, 2], &[4, 3, 3]], Err("a window of 3 is larger than axis 0")),
        (conv(window(&[0], &[], &[]), 1), &[&[1, 3, 9], &[4, 3, 2]], Err("at least 1")),
        (conv(window(&[], &[1], &[]), 1), &[&[1, 3, 9], &[4, 3, 2]], Err("1 pads for 1 spatial")),
        (conv(none(), 1), &[&[1, 3, 9], &[4, 3, 2], &[3]], Err("a bias of f32[4], got f32[3]")),
        (conv(none(), 1), &[&[1, 3], &[4, 3]], Err("do not fit")),
        (conv(none(), 1), &[&[3], &[4, 3]], Err("a batch of channels and a kernel")),
        (Op::BatchNormalization { epsilon: 0.0 }, &[&[2, 3, 4], &[3], &[3], &[3], &[3]], Ok(&[2, 3, 4])),
        (
            Op::BatchNormalization { epsilon: 0.0 },
            &[&[2, 3], &[3], &[2], &[3], &[3]],
            Err("f32[3], got f32[2]"),
        ),
        (Op::LayerNormalization { axis: -2, epsilon: 0.0 }, &[&[2, 3, 4], &[3, 4], &[4]], Ok(&[2, 3, 4])),
        (Op::LayerNormalization { axis: -1, epsilon: 0.0 }, &[&[2, 3], &[2]], Err("broadcast to f32[2, 3]")),
        (
            Op::RmsNormalization { axis: -1, epsilon: 0.0 },
            &[&[2, 3], &[3], &[3]],
            Err("it takes 2 inputs, got 3"),
        ),
        (Op::Attention(Attention::new()), &[&[2, 8, 5, 4], &[2, 2, 7, 4], &[2, 2, 7, 6]], Ok(&[2, 8, 5, 6])),
        (
            Op::Attention(Attention::new().heads(8, 2)),
            &[&[2, 5, 32], &[2, 7, 8], &[2, 7, 12], &[5, 7]],
            Ok(&[2, 5, 48]),
        ),
        (Op::Attention(Attention::new()), &[&[2, 3, 5, 4], &[2, 2, 7, 4], &[2, 2, 7, 4]], Err("do not fit")),
        (
            Op::Attention(Attention::new()),
            &[&[2, 5, 4], &[2, 7, 4], &[2, 7, 4]],
            Err("need the numbers of heads"),
        ),
        (
            Op::Attention(Attention::new().heads(5, 5)),
            &[&[2, 5, 32], &[2, 7, 32], &[2, 7, 32]],
            Err("5 heads do not divide the 32 of [2, 5, 32]"),
        ),
        (
            Op::Attention(Attention::new()),
            &[&[2, 8, 5, 4], &[2, 8, 7, 4], &[2, 8, 7, 4], &[2, 5, 7]],
            Err("a mask that is broadcast to [2, 8, 5, 7], got f32[2, 5, 7]"),
        ),
        (reshape(&[-1, 4]), &[&[2, 3, 4]], Ok(&[6, 4])),
        (reshape(&[]), &[&[1, 1]], Ok(&[])),
        (reshape(&[0, 7]), &[&[0, 5]], Ok(&[0, 7])),
        (reshape(&[0, -1]), &[&[0, 5]], Err("[0, 5] cannot be reshaped to [0, -1]")),
        (reshape(&[5, -1]), &[&[2, 3]], Err("[2, 3] cannot be reshaped to [5, -1]")),
        (reshape(&[-1, -1]), &[&[2, 3]], Err("more than one -1")),
        (reshape(&[-2, 3]), &[&[2, 3]], Err("cannot be reshaped")),
        (Op::Flatten { axis: 0 }, &[&[2, 3]], Ok(&[1, 6])),
        (Op::Flatten { axis: 2 }, &[&[2, 3]], Ok(&[6, 1])),
        (Op::Flatten { axis: -1 }, &[&[2, 3, 4]], Ok(&[6, 4])),
        (Op::Flatten { axis: 3 }, &[&[2, 3]], Err("no such axis")),
        (squeeze(None), &[&[1, 2, 1]], Ok(&[2])),
        (squeeze(Some(&[-1])), &[&[1, 2, 1]], Ok(&[1, 2])),
        (squeeze(Some(&[1])), &[&[1, 2, 1]], Err("axis 1 of [1, 2, 1] is not 1")),
        (squeeze(Some(&[0, -3])), &[&[1, 2, 1]], Err("axis 0 is named twice")),
        (Op::Unsqueeze { axes: vec![0, -1] }, &[&[2]], Ok(&[1, 2, 1])),
        (Op::Unsqueeze { axes: vec![3] }, &[&[2]], Err("no axis 3")),
        (Op::Unsqueeze { axes: vec![0; 8] }, &[&[2]], Err("9 dimensions")),
        (Op::Expand { shape: vec![3, 1] }, &[&[1, 4]], Ok(&[3, 4])),
        (Op::Transpose { perm: vec![2, 0, 1] }, &[&[2, 3, 4]], Ok(&[4, 2, 3])),
        (Op::Transpose { perm: vec![0, 0] }, &[&[2, 3]], Err("no permutation")),
        (Op::Transpose { perm: vec![0] }, &[&[2, 3]], Err("no permutation")),
        (Op::Concat { axis: 1 }, &[&[2, 3], &[2, 0], &[2, 4]], Ok(&[2, 7])),
        (Op::Concat { axis: 1 }, &[&[2, 3], &[3, 3]], Err("[2, 3] and [3, 3] differ beside axis 1")),
        (Op::Concat { axis: 1 }, &[&[2, 3], &[2]], Err("differ beside axis 1")),
        (Op::Split { axis: 0, lengths: vec![1, 3] }, &[&[4, 2]], Ok(&[1, 2])),
        (Op::Split { axis: 0, lengths: vec![1, 2] }, &[&[4]], Err("do not add up to axis 0 of [4]")),
        (Op::Split { axis: 0, lengths: vec![usize::MAX, 5] }, &[&[4]], Err("do not add up")),
        (slice(&[1, 0], &[-1, 9], &[0, 1], &[1, 2]), &[&[4, 5]], Ok(&[2, 3])),
        (slice(&[-1], &[i64::MIN], &[0], &[-1]), &[&[4]], Ok(&[4])),
        (slice(&[3], &[1], &[0], &[1]), &[&[4]], Ok(&[0])),
        (slice(&[9], &[i64::MAX], &[0], &[1]), &[&[4]], Ok(&[0])),
        (slice(&[9], &[-9], &[0], &[-2]), &[&[4]], Ok(&[2])),
        (slice(&[0], &[9], &[0], &[1]), &[&[0]], Ok(&[0])),
        (slice(&[-1], &[-9], &[0], &[-1]), &[&[0]], Ok(&[0])),
        (slice(&[0], &[1], &[0], &[0]), &[&[4]], Err("a step of 0")),
        (slice(&[0], &[1], &[0, 1], &[1]), &[&[4, 4]], Err("differ in number")),
        (Op::Pad { pads: vec![1, -1, 0, 2] }, &[&[2, 3]], Ok(&[3, 4])),
        (Op::Pad { pads: vec![0, -4, 0, 0] }, &[&[2, 3]], Err("leave nothing of axis 1")),
        (Op::Pad { pads: vec![0] }, &[&[2, 3]], Err("1 pads for [2, 3]")),
        (Op::Trilu { upper: true, k: 0 }, &[&[3]], Err("it takes matrices")),
        (mean(None, true), &[&[2, 3]], Ok(&[1, 1])),
        (mean(Some(&[]), false), &[&[2, 3]], Ok(&[2, 3])),
        (mean(Some(&[-1]), false), &[&[2, 3]], Ok(&[2])),
        (pool(window(&[2, 2], &[], &[]), &[2, 2], false), &[&[1, 3, 5, 4]], Ok(&[1, 3, 2, 2])),
        (pool(window(&[2, 2], &[], &[]), &[2, 2], true), &[&[1, 3, 5, 4]], Ok(&[1, 3, 3, 2])),
        // The last window would begin in the padding.
        (pool(window(&[3], &[1, 1], &[]), &[2], true), &[&[1, 3, 4]], Ok(&[1, 3, 2])),
        (pool(window(&[], &[2, 0], &[]), &[2], false), &[&[1, 3, 5]], Err("the padding is as wide")),
        (pool(none(), &[2], false), &[&[1, 3, 5, 5]], Err("a kernel of [2] for 2 spatial")),
        (Op::GlobalAveragePool, &[&[1, 3, 5, 5]], Ok(&[1, 3, 1, 1])),
        (Op::GlobalAveragePool, &[&[1, 3]], Err("spatial dimensions")),
    ];
    for (operator, inputs, wanted) in cases {
        match (dims_of(operator, inputs), wanted) {
            (Ok(dims), Ok(wanted)) => assert_eq!(dims, *wanted, "{operator:?} of {inputs:?}"),
            (Err(problem), Err(part)) => {
                assert!(problem.contains(part), "{operator:?} of {inputs:?}: {problem}");
            }
            (got, _) => panic!("{operator:?} of {inputs:?}: {got:?}"),
        }
    }
}

#[test]
fn types_are_checked() {
    use Operator as Op;
    let gather = Op::Gather { axis: 0 };
    let quantize = |output| Op::QuantizeLinear { axis: 1, block_size: 0, output };
    let dequantize = |block_size| Op::DequantizeLinear { axis: 0, block_size, output: F32 };
    let scalar = |element| of(element, &[]);
    let is = |element, dims: &[usize]| Ok(TensorType::new(element, Shape::new(dims).unwrap()));
    let cases: &[TypesCase<'_>] = &[
        (Op::Add, &[of(F32, &[2]), of(F64, &[2])], Err("input 1 is of f64, others of f32")),
        (Op::Add, &[of(Bool, &[2]), of(Bool, &[2])], Err("it takes numbers, got bool[2]")),
        (Op::Add, &[of(I64, &[2]), of(I64, &[])], is(I64, &[2])),
        (Op::Exp, &[of(I32, &[2])], Err("floating-point numbers, got i32[2]")),
        (Op::Not, &[of(F32, &[2])], Err("booleans, got f32[2]")),
        (Op::Less, &[of(I64, &[2]), of(I64, &[2])], is(Bool, &[2])),
        (Op::Equal, &[of(Bool, &[2]), of(Bool, &[2])], is(Bool, &[2])),
        (Op::Pow, &[of(F32, &[2]), of(I64, &[])], is(F32, &[2])),
        (Op::Where, &[of(Bool, &[2, 1]), of(F32, &[3]), of(F32, &[])], is(F32, &[2, 3])),
        (Op::Where, &[of(F32, &[2]), of(F32, &[2]), of(F32, &[])], Err("booleans, got f32[2]")),
        (Op::Where, &[of(Bool, &[2]), of(F32, &[2]), None], Err("it takes 3 inputs, got 2")),
        (Op::Cast { to: I64 }, &[of(F32, &[2])], is(I64, &[2])),
        (Op::Cast { to: ElementType::I4 }, &[of(F32, &[2])], Err("a type of a byte or more")),
        (Op::Identity, &[of(Bool, &[0])], is(Bool, &[0])),
        (gather.clone(), &[of(F32, &[9, 4]), of(I64, &[2, 3])], is(F32, &[2, 3, 4])),
        (gather.clone(), &[of(F32, &[9, 4]), scalar(I32)], is(F32, &[4])),
        (gather, &[of(F32, &[9, 4]), of(F32, &[2])], Err("indices of i64 or i32, got f32[2]")),
        (quantize(U8), &[of(F32, &[2, 3]), scalar(F32), scalar(U8)], is(U8, &[2, 3])),
        (quantize(I8), &[of(F32, &[2, 3]), of(F32, &[3])], is(I8, &[2, 3])),
        (quantize(I8), &[of(F32, &[2, 3]), of(F32, &[2])], Err("for each index or block of axis 1")),
        (quantize(U8), &[of(F32, &[2, 3]), scalar(F32), scalar(I8)], Err("a zero point of u8[], got i8[]")),
        (quantize(I32), &[of(F32, &[2, 3]), scalar(F32)], Err("a result of i8 or u8")),
        (dequantize(0), &[of(I32, &[2, 3]), of(F32, &[2])], is(F32, &[2, 3])),
        (dequantize(4), &[of(I8, &[9, 3]), of(F32, &[3, 3])], is(F32, &[9, 3])),
        (dequantize(4), &[of(I8, &[9, 3]), of(F32, &[2, 3])], Err("index or block of axis 0")),
        (dequantize(0), &[of(I64, &[2]), scalar(F32)], Err("integers of up to 32 bits")),
    ];
    for (operator, inputs, wanted) in cases {
        match (operator.infer(inputs), wanted) {
            (Ok(got), Ok(wanted)) => assert_eq!(got, [*wanted], "{operator:?}"),
            (Err(problem), Err(part)) => assert!(problem.contains(part), "{operator:?}: {problem}"),
            (got, _) => panic!("{operator:?}: {got:?}"),
        }
    }
}

fn text(result: Result<impl Sized, Error>) -> String {
    result.err().expect("it is refused").to_string()
}

#[test]
fn what_does_not_fit_is_refused_where_it_is_added_with_its_name() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[2, 3]).unwrap();
    assert_eq!(text(g.input("x", F32, &[1])), "graph: there are two values or nodes of the name `x`");
    assert!(text(g.input("w", ElementType::I4, &[1])).contains("input `w`: elements of i4 are weights"));
    assert!(text(g.input("big", F32, &[usize::MAX, 2])).contains("input `big`: a shape of"));
    let problem = text(g.named("product").matmul(x, x));
    let expected = "[2, 3] and [2, 3] do not fit: k is 3 and 2; transpose the second";
    assert_eq!(problem, format!("graph: node `product`: MatMul: {expected}"));
    assert!(text(g.named("x").relu(x)).contains("of the name `x`"));
    let mut other = GraphBuilder::new();
    let foreign = other.input("x", F32, &[2, 3]).unwrap();
    assert!(text(g.add(x, foreign)).contains("a value of another builder"));
    assert!(text(g.mul_scalar(g_ids(&mut other), 2.0)).contains("not for i64"));
    let y = g.relu(x).unwrap();
    g.input("unused", F32, &[1]).unwrap();
    g.input("idle", F32, &[1]).unwrap();
    assert!(text(g.finish(&[("y", y)])).contains("no node reads the inputs `unused`, `idle`"));
    let graph = |outputs: &dyn Fn(super::Value, super::Value) -> Vec<(&'static str, super::Value)>| {
        let mut g = GraphBuilder::new();
        let x = g.input("x", F32, &[1]).unwrap();
        let y = g.relu(x).unwrap();
        g.finish(&outputs(x, y))
    };
    assert!(text(graph(&|x, _| vec![("x", x)])).contains("output `x`: no node computes it: add an Identity"));
    assert!(text(graph(&|_, y| vec![("y", y), ("y", y)])).contains("output `y`: there is another"));
    assert!(text(graph(&|_, _| vec![("y", foreign)])).contains("another builder"));
    assert!(text(graph(&|_, _| vec![])).contains("no outputs"));
    graph(&|_, y| vec![("y", y), ("again", y)]).unwrap();
}

fn g_ids(g: &mut GraphBuilder) -> super::Value {
    g.input("ids", I64, &[2]).unwrap()
}

#[test]
fn weights_are_as_they_are_multiplied_and_quantised_ones_come_with_their_scales() {
    let stored = Weights::from_tensor(Tensor::random_normal_f32(5, 8, 1.0, 1).unwrap()).transposed().unwrap();
    let mut g = GraphBuilder::new();
    assert_eq!(g.weights("stored", &stored).unwrap().shape().dims(), [8, 5]);
    let batch = Weights::from_tensor(Tensor::from_vec_batched(vec![0f32; 24], 2, 3, 4).unwrap());
    assert_eq!(g.weights("batch", &batch).unwrap().shape().dims(), [2, 3, 4]);
    assert!(text(g.weights("batch", &batch)).contains("of the name `batch`"));
    // 4-bit integers in groups, with a zero point: a last group of two rows.
    let scheme = WeightScheme::INT4.with_scheme(QuantB::PerGroup { group_size: 3, zero_point: -1 });
    let (int4, _) = stored.quantize(&scheme).unwrap();
    let dequantized = g.weights("int4", &int4).unwrap();
    assert_eq!(dequantized.tensor_type().to_string(), "f32[8, 5]");
    let x = g.input("x", F32, &[1, 8]).unwrap();
    let y = g.matmul(x, dequantized).unwrap();
    let lines = g.finish(&[("y", y)]).unwrap().to_string();
    for line in ["int4.integers: i4[8, 5]", "int4.scale: f16[3, 5]", "int4.zero_point: i4[3, 5]"] {
        assert!(!cfg!(feature = "half") || lines.contains(line), "{line}: {lines}");
    }
    assert!(lines.contains("int4: f32[8, 5] = DequantizeLinear(int4.integers, int4.scale, int4.zero_point)"));
}

#[test]
fn fixtures_are_described() {
    let encoder = Encoder::SMALL;
    let bert = encoder.bert().unwrap();
    assert_eq!(
        bert.outputs().map(|(_, of)| of.to_string()).collect::<Vec<_>>(),
        ["f32[2, 12]", "f32[2, 7, 12]"]
    );
    assert_eq!(bert.inputs().map(|(name, _)| name).collect::<Vec<_>>(), ["ids", "mask"]);
    let lines = bert.to_string();
    assert!(lines.contains("layer.1.attention: f32[2, 7, 12] = Attention("), "{lines}");
    assert!(lines.contains("weights layer.0.up.weight: f32[12, 48]"), "{lines}");
    let lowered = encoder.lowered().unwrap();
    assert_eq!(lowered.outputs().next().unwrap().1.to_string(), "f32[2, 7, 12]");
    let [cnn, quantized] = [fixtures::cnn(2), fixtures::quantized_linear(4)].map(Result::unwrap);
    let output = |graph: &Graph| graph.outputs().next().unwrap().1.to_string();
    assert_eq!((output(&cnn), output(&quantized)), ("f32[2, 5]".into(), "f32[4, 9]".into()));
    assert!(quantized.nodes().any(|(_, operator)| operator.name() == "DequantizeLinear"));
}

/// Token ids, and a mask that hides the last `hidden` of each sequence.
fn tokens(encoder: Encoder, hidden: usize) -> [Array; 2] {
    let Encoder { batch, sequence, vocabulary, .. } = encoder;
    let dims = [batch, sequence];
    let at = |of: &dyn Fn(usize) -> usize| {
        (0..batch * sequence).map(|index| i64::try_from(of(index)).unwrap()).collect::<Vec<_>>()
    };
    let ids = Array::new(&dims, at(&|index| index * index % vocabulary)).unwrap();
    let mask = Array::new(&dims, at(&|index| usize::from(index % sequence < sequence - hidden))).unwrap();
    [ids, mask]
}

/// The largest difference of two results of f64 and f64 or f32.
fn distance(a: &Array, b: &Array) -> f64 {
    let wide = |array: &Array| match (array.data::<f64>(), array.data::<f32>()) {
        (Some(data), _) => data.to_vec(),
        (None, Some(data)) => data.iter().map(|x| f64::from(*x)).collect(),
        _ => panic!("{array:?}"),
    };
    assert_eq!(a.shape(), b.shape());
    wide(a).iter().zip(wide(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn the_lowered_encoder_computes_what_the_encoder_does() {
    let encoder = Encoder::SMALL;
    let [ids, mask] = tokens(encoder, 0);
    let hidden = &encoder.bert().unwrap().interpret_f64(&[&ids, &mask]).unwrap()[1];
    let lowered = &encoder.lowered().unwrap().interpret_f64(&[&ids]).unwrap()[0];
    assert!(distance(hidden, lowered) < 1e-12, "{}", distance(hidden, lowered));
    let f32s = &encoder.lowered().unwrap().interpret_f32(&[&ids]).unwrap()[0];
    assert!((1e-9..1e-4).contains(&distance(hidden, f32s)), "{}", distance(hidden, f32s));
}

#[test]
fn what_a_mask_hides_changes_nothing_and_fewer_sequences_are_a_part() {
    let encoder = Encoder::SMALL;
    let [ids, mask] = tokens(encoder, 2);
    let mut others = ids.clone();
    let last = others.data_mut::<i64>().unwrap();
    (last[encoder.sequence - 1], last[encoder.sequence - 2]) = (3, 5);
    assert_ne!(others, ids);
    let bert = encoder.bert().unwrap();
    let embeddings =
        |graph: &Graph, ids: &Array, mask: &Array| graph.interpret_f64(&[ids, mask]).unwrap().swap_remove(0);
    let all = embeddings(&bert, &ids, &mask);
    assert_eq!(distance(&all, &embeddings(&bert, &others, &mask)), 0.0);
    let length: f64 = all.data::<f64>().unwrap()[..encoder.width].iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-12);
    // One sequence alone.
    let one = bert.variable_leading(&["ids", "mask"]).unwrap().with_leading(1).unwrap();
    let first = |array: &Array| {
        Array::new(&[1, encoder.sequence], array.data::<i64>().unwrap()[..encoder.sequence].to_vec()).unwrap()
    };
    let alone = embeddings(&one, &first(&ids), &first(&mask));
    assert_eq!(alone.data::<f64>().unwrap(), &all.data::<f64>().unwrap()[..encoder.width]);
}

#[test]
fn the_other_fixtures_compute_too() {
    let image: Vec<f32> = (0..2 * 3 * 17 * 15).map(|index| (index % 29) as f32 / 29.0).collect();
    let image = Array::new(&[2, 3, 17, 15], image).unwrap();
    let [exact, plain] = [
        fixtures::cnn(2).unwrap().interpret_f64(&[&image]).unwrap(),
        fixtures::cnn(2).unwrap().interpret_f32(&[&image]).unwrap(),
    ];
    let row: f64 = exact[0].data::<f64>().unwrap()[..5].iter().sum();
    assert!((row - 1.0).abs() < 1e-12 && distance(&exact[0], &plain[0]) < 1e-5);
    let x: Vec<f32> = (0..64).map(|index| index as f32 / 29.0 - 1.0).collect();
    let x = Array::new(&[4, 16], x).unwrap();
    let graph = fixtures::quantized_linear(4).unwrap();
    let [exact, plain] = [graph.interpret_f64(&[&x]).unwrap(), graph.interpret_f32(&[&x]).unwrap()];
    assert!(distance(&exact[0], &plain[0]) < 1e-5);
    // 4-bit weights in groups are what their quantisation says.
    let weights = Weights::from_tensor(Tensor::random_normal_f32(8, 5, 1.0, 1).unwrap());
    let scheme = WeightScheme::INT4.with_scheme(QuantB::PerGroup { group_size: 3, zero_point: -1 });
    let (int4, _) = weights.quantize(&scheme).unwrap();
    let mut g = GraphBuilder::new();
    let w = g.weights("w", &int4).unwrap();
    let y = g.identity(w).unwrap();
    let plain = g.finish(&[("y", y)]).unwrap().interpret_f32(&[]).unwrap();
    assert_eq!(plain[0].data::<f32>().unwrap(), int4.dequantize().unwrap().data());
}
