//! Every operator by itself on NaN, infinities, zeros of both signs, empty and one-element dimensions, for any engine.
//! `interpret/tests.rs` has what the interpreter makes of such operands, worked out by hand.

use crate::description::element::ElementType::{Bool, F32, F64, I8, I32, I64, U8};
use crate::graph::operator::{Attention, Groups, Operator, PoolKernel, Reduce, Window};
use crate::graph::{Array, ArrayElement, Graph, GraphBuilder};

use Operator as Op;

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

/// A name, a graph of one node, and its inputs.
pub(crate) type Case = (String, Graph, Vec<Array>);

fn array<T: ArrayElement>(dims: &[usize], data: &[T]) -> Array {
    Array::new(dims, data.to_vec()).unwrap()
}

fn ones(dims: &[usize]) -> Array {
    Array::new(dims, vec![1f32; dims.iter().product()]).unwrap()
}

/// Small numbers that differ.
#[allow(clippy::cast_precision_loss)]
fn ramp(dims: &[usize]) -> Array {
    Array::new(dims, (0..dims.iter().product()).map(|at: usize| (at * 7 % 11) as f32 / 4.0 - 1.0).collect())
        .unwrap()
}

/// The same with something in one place.
fn with(dims: &[usize], at: usize, special: f32) -> Array {
    let mut array = ramp(dims);
    array.data_mut::<f32>().unwrap()[at] = special;
    array
}

/// A graph of the node, with an input for each operand.
fn case(operator: Operator, operands: &[Option<Array>]) -> Case {
    let mut g = GraphBuilder::new();
    let mut types = Vec::new();
    let mut values = Vec::new();
    for (index, operand) in operands.iter().enumerate() {
        let value = operand.as_ref().map(|array| {
            let of = array.tensor_type();
            types.push(of.to_string());
            g.input(format!("x{index}"), of.element, of.shape.dims()).unwrap()
        });
        values.push(value);
    }
    let name = format!("{operator:?} of {}", types.join(", "));
    let outputs = g.node(operator, &values).unwrap();
    let names: Vec<_> = (0..outputs.len()).map(|index| format!("y{index}")).collect();
    let outputs: Vec<_> = names.iter().map(String::as_str).zip(outputs).collect();
    (name, g.finish(&outputs).unwrap(), operands.iter().flatten().cloned().collect())
}

fn all(operator: &Operator, operands: &[Array]) -> Case {
    case(operator.clone(), &operands.iter().cloned().map(Some).collect::<Vec<_>>())
}

fn list(shape: &[i64]) -> Vec<i64> {
    shape.to_vec()
}

/// All cases.
#[allow(clippy::too_many_lines)]
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let special = array(&[9], &[2.0, -3.0, NAN, INF, -INF, 0.0, -0.0, 0.5, 100.0]);
    let functions = [
        Op::Abs,
        Op::Neg,
        Op::Reciprocal,
        Op::Sqrt,
        Op::Exp,
        Op::Log,
        Op::Erf,
        Op::Relu,
        Op::LeakyRelu { alpha: 0.1 },
        Op::Gelu { tanh: false },
        Op::Gelu { tanh: true },
        Op::Sigmoid,
        Op::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Op::HardSwish,
        Op::Tanh,
        Op::Identity,
        Op::Clip,
    ];
    for function in &functions {
        cases.push(all(function, std::slice::from_ref(&special)));
        for dims in [&[][..], &[1], &[0], &[1, 0, 3], &[1, 1, 1, 1]] {
            cases.push(all(function, &[ramp(dims)]));
        }
    }
    let [least, most] = [-1f32, 1.5].map(Array::scalar);
    cases.push(all(&Op::Clip, &[special.clone(), least.clone(), most.clone()]));
    cases.push(case(Op::Clip, &[Some(special.clone()), None, Some(most.clone())]));
    // The upper bound wins.
    cases.push(all(&Op::Clip, &[special.clone(), most, least]));

    let column = special.clone();
    let column = Array::new(&[9, 1], column.data::<f32>().unwrap().to_vec()).unwrap();
    let pairs = [
        Op::Add,
        Op::Sub,
        Op::Mul,
        Op::Div,
        Op::Min,
        Op::Max,
        Op::Pow,
        Op::Equal,
        Op::Greater,
        Op::GreaterOrEqual,
        Op::Less,
        Op::LessOrEqual,
    ];
    for pair in &pairs {
        // Every special number with every other.
        cases.push(all(pair, &[column.clone(), special.clone()]));
        for (a, b) in [(&[][..], &[][..]), (&[1], &[3]), (&[2, 1], &[1, 3]), (&[0], &[1]), (&[2, 0], &[1, 1])]
        {
            cases.push(all(pair, &[ramp(a), ramp(b)]));
        }
        let [a, b] = [[i32::MIN, -1, 0, 7, i32::MAX], [1, 3, 2, 1, 5]].map(|data| array(&[5], &data));
        cases.push(all(pair, &[a, b]));
    }
    for reduction in [Op::Min, Op::Max] {
        cases.push(all(&reduction, std::slice::from_ref(&special)));
        cases.push(all(&reduction, &[special.clone(), column.clone(), Array::scalar(0.25f32)]));
    }
    let truths = array(&[2, 1], &[true, false]);
    for logical in [Op::And, Op::Or, Op::Equal] {
        cases.push(all(&logical, &[truths.clone(), array(&[2], &[true, false])]));
        cases.push(all(&logical, &[array::<bool>(&[0], &[]), array(&[1], &[true])]));
    }
    cases.push(all(&Op::Not, std::slice::from_ref(&truths)));
    cases.push(all(&Op::Not, &[array::<bool>(&[0, 2], &[])]));
    // What is not chosen does not count.
    cases.push(all(&Op::Where, &[truths.clone(), special.clone(), Array::scalar(NAN)]));
    cases.push(all(&Op::Where, &[truths, ramp(&[1]), ramp(&[0])]));
    for to in [F64, F32, I64, I32, I8, U8, Bool] {
        let limits = array(&[12], &[2.0, -3.7, NAN, INF, -INF, 0.0, -0.0, 0.5, 127.5, -129.0, 3e9, -3e9]);
        cases.push(all(&Op::Cast { to }, &[limits]));
        cases.push(all(&Op::Cast { to }, &[array(&[4], &[i64::MIN, -1, 300, i64::MAX])]));
        cases.push(all(&Op::Cast { to }, &[array(&[2], &[true, false])]));
        cases.push(all(&Op::Cast { to }, &[ramp(&[0, 4])]));
    }
    #[cfg(feature = "half")]
    for to in [crate::ElementType::F16, crate::ElementType::Bf16] {
        cases.push(all(&Op::Cast { to }, &[array(&[6], &[0.1, NAN, -INF, -0.0, 1e6, 1e-6])]));
    }

    let matmul = |a, b| all(&Op::MatMul, &[a, b]);
    for special in [NAN, INF, -INF] {
        cases.push(matmul(with(&[3, 4], 5, special), ramp(&[4, 2])));
        cases.push(matmul(ramp(&[3, 4]), with(&[4, 2], 3, special)));
        // 0 times infinity.
        cases.push(matmul(
            Array::new(&[2, 2], vec![0f32, 1.0, -0.0, 0.0]).unwrap(),
            with(&[2, 2], 0, special),
        ));
    }
    for (a, b) in [
        (&[3][..], &[3][..]),
        (&[1, 1], &[1, 1]),
        (&[2, 0], &[0, 3]),
        (&[0, 3], &[3, 2]),
        (&[2, 3], &[3, 0]),
        (&[2, 1, 2, 3], &[3, 3, 1]),
        (&[0, 2, 3], &[3, 2]),
        (&[3], &[2, 3, 4]),
    ] {
        cases.push(matmul(ramp(a), ramp(b)));
    }
    for (transpose_a, transpose_b) in [(false, false), (true, false), (false, true), (true, true)] {
        let gemm = Op::Gemm { alpha: -0.5, beta: 2.0, transpose_a, transpose_b };
        let of = |k: usize| {
            let turned =
                |rows, cols, turn: bool| if turn { ramp(&[cols, rows]) } else { ramp(&[rows, cols]) };
            [turned(3, k, transpose_a), turned(k, 2, transpose_b)]
        };
        let [a, b] = of(4);
        cases.push(all(&gemm, &[a, b, with(&[2], 0, INF)]));
        let [a, b] = of(0);
        cases.push(all(&gemm, &[a, b]));
    }
    // A C with a factor of 0 is not read.
    let gemm = Op::Gemm { alpha: 1.0, beta: 0.0, transpose_a: false, transpose_b: false };
    cases.push(all(&gemm, &[ramp(&[1, 2]), ramp(&[2, 1]), array(&[1], &[NAN])]));

    let padded = Window { pads: vec![1; 4], ..Window::default() };
    for special in [NAN, INF, 1.0] {
        cases.push(all(
            &Op::Conv(padded.clone(), Groups(1)),
            &[with(&[1, 2, 3, 3], 4, special), ramp(&[2, 2, 2, 2])],
        ));
        cases.push(all(
            &Op::Conv(padded.clone(), Groups(2)),
            &[ramp(&[2, 2, 3, 1]), with(&[2, 1, 3, 1], 2, special)],
        ));
        let kernel = PoolKernel { shape: vec![2, 2], ceil_mode: true };
        let strided = Window { strides: vec![2, 2], ..padded.clone() };
        let strided = Window { pads: vec![1, 0, 0, 1], ..strided };
        let x = || with(&[1, 2, 3, 3], 4, special);
        cases.push(all(&Op::MaxPool(strided.clone(), kernel.clone()), &[x()]));
        for count_include_pad in [false, true] {
            let operator =
                Op::AveragePool { window: strided.clone(), kernel: kernel.clone(), count_include_pad };
            cases.push(all(&operator, &[x()]));
        }
        cases.push(all(&Op::GlobalAveragePool, &[x()]));
    }
    cases.push(all(&Op::Conv(padded.clone(), Groups(1)), &[ramp(&[0, 2, 3, 3]), ramp(&[2, 2, 2, 2])]));
    cases.push(all(
        &Op::Conv(Window::default(), Groups(1)),
        &[ramp(&[1, 1, 1]), ramp(&[1, 1, 1]), ramp(&[1])],
    ));
    cases.push(all(&Op::GlobalAveragePool, &[ramp(&[1, 1, 0])]));

    for special in [NAN, INF, -INF, 0.25] {
        for axis in [0, -1] {
            cases.push(all(&Op::Softmax { axis }, &[with(&[3, 4], 5, special)]));
            let x = || with(&[3, 4], 6, special);
            cases.push(all(&Op::LayerNormalization { axis, epsilon: 1e-5 }, &[x(), ramp(&[4]), ramp(&[4])]));
            cases.push(all(&Op::RmsNormalization { axis, epsilon: 1e-5 }, &[x(), ramp(&[4])]));
        }
        let of = || ramp(&[2]);
        let operands = [with(&[2, 2, 1], 1, special), of(), of(), of(), ones(&[2])];
        cases.push(all(&Op::BatchNormalization { epsilon: 1e-5 }, &operands));
    }
    // A scale and a bias for each row: as many elements as a row has, in this square.
    let (row, column) = (|| ramp(&[4]), || ramp(&[4, 1]));
    for (scale, bias) in [(column(), row()), (row(), column())] {
        cases.push(all(&Op::LayerNormalization { axis: -1, epsilon: 1e-5 }, &[ramp(&[4, 4]), scale, bias]));
    }
    cases.push(all(&Op::RmsNormalization { axis: -1, epsilon: 1e-5 }, &[ramp(&[4, 4]), column()]));
    cases.push(all(&Op::LayerNormalization { axis: 1, epsilon: 1e-5 }, &[ramp(&[2, 3]), ramp(&[1, 3])]));
    // Variances of 0, with and without an epsilon; of 1e-8 about a mean of 100; of a negative number.
    for epsilon in [0.0, 1e-12, 1e-5] {
        for x in
            [ones(&[2, 4]), array(&[2, 4], &[0f32; 8]), array(&[1, 4], &[100f32, 100.0001, 100.0, 99.9999])]
        {
            cases.push(all(&Op::LayerNormalization { axis: -1, epsilon }, &[x.clone(), ramp(&[4])]));
            cases.push(all(&Op::RmsNormalization { axis: -1, epsilon }, &[x, ramp(&[4])]));
        }
        let of = || ramp(&[2]);
        let operands = [ramp(&[1, 2]), of(), of(), of(), array(&[2], &[0f32, -1.0])];
        cases.push(all(&Op::BatchNormalization { epsilon }, &operands));
    }
    for dims in [&[1][..], &[1, 1], &[2, 1], &[0, 3], &[3, 0]] {
        let width = *dims.last().unwrap();
        cases.push(all(&Op::Softmax { axis: -1 }, &[ramp(dims)]));
        cases.push(all(&Op::LayerNormalization { axis: -1, epsilon: 1e-5 }, &[ramp(dims), ramp(&[width])]));
        cases.push(all(&Op::RmsNormalization { axis: -1, epsilon: 1e-5 }, &[ramp(dims), ramp(&[width])]));
    }
    cases.push(all(&Op::Softmax { axis: 0 }, &[array(&[3], &[-INF; 3])]));
    cases.push(all(&Op::Softmax { axis: 0 }, &[array(&[3], &[-1e30f32, 1e4, -INF])]));

    for is_causal in [false, true] {
        let attributes = Attention::new().causal(is_causal);
        let of = |q: usize, k: usize| [ramp(&[1, 2, q, 3]), ramp(&[1, 1, k, 3]), ramp(&[1, 1, k, 2])];
        for (queries, keys) in [(2, 3), (1, 1), (0, 2), (2, 0)] {
            cases.push(all(&Op::Attention(attributes.clone()), &of(queries, keys)));
        }
        let [q, k, v] = of(2, 3);
        for mask in [
            // A row that sees nothing, and one that does.
            array(&[2, 3], &[false, false, false, true, false, true]),
            array(&[2, 3], &[0.5f32, -1e9, -INF, -INF, -INF, -INF]),
            array(&[1, 3], &[f32::MIN, f32::MIN, 0.0]),
        ] {
            cases.push(all(&Op::Attention(attributes.clone()), &[q.clone(), k.clone(), v.clone(), mask]));
        }
        // NaN in a value that nobody sees is 0 times NaN.
        let v = with(&[1, 1, 3, 2], 4, NAN);
        cases.push(all(&Op::Attention(attributes), &[q, k, v, array(&[3], &[true, true, false])]));
    }

    for output in [I8, U8] {
        let zero_point = if output == I8 { Array::scalar(-3i8) } else { Array::scalar(130u8) };
        let x = array(&[10], &[0.25f32, 0.75, -0.25, 1e9, -1e9, INF, -INF, 0.0, -0.0, 63.49]);
        let quantize = Op::QuantizeLinear { axis: 0, block_size: 0, output };
        cases.push(all(&quantize, &[x, Array::scalar(0.5f32), zero_point.clone()]));
        cases.push(all(&quantize, &[ramp(&[0, 2]), Array::scalar(0.5f32), zero_point]));
        let dequantize = Op::DequantizeLinear { axis: 0, block_size: 0, output: F32 };
        let integers =
            if output == I8 { array(&[3], &[-128i8, 0, 127]) } else { array(&[3], &[0u8, 128, 255]) };
        let points = if output == I8 { array(&[3], &[127i8, 0, -128]) } else { array(&[3], &[255u8, 0, 0]) };
        cases.push(all(&dequantize, &[integers, array(&[3], &[0.5f32, INF, NAN]), points]));
    }
    let blocks = Op::DequantizeLinear { axis: 0, block_size: 2, output: F32 };
    cases.push(all(&blocks, &[array(&[3, 1], &[1i32, -5, i32::MAX]), ramp(&[2, 1])]));

    let x = || with(&[2, 1, 3], 4, NAN);
    let movements = [
        Op::Reshape { shape: list(&[3, -1]) },
        Op::Flatten { axis: 0 },
        Op::Squeeze { axes: None },
        Op::Unsqueeze { axes: list(&[0, -1]) },
        Op::Expand { shape: vec![2, 2, 1, 3] },
        Op::Transpose { perm: vec![2, 0, 1] },
        Op::Split { axis: 2, lengths: vec![0, 1, 2] },
        Op::Slice { starts: list(&[-1]), ends: list(&[i64::MIN]), axes: list(&[2]), steps: list(&[-2]) },
        Op::Slice { starts: list(&[5]), ends: list(&[i64::MAX]), axes: list(&[0]), steps: list(&[1]) },
        Op::Pad { pads: list(&[0, 1, -1, 1, 0, 2]) },
        Op::Trilu { upper: false, k: -1 },
        Op::Trilu { upper: true, k: 1 },
    ];
    for movement in &movements {
        cases.push(all(movement, &[x()]));
    }
    cases.push(all(&Op::Pad { pads: list(&[1, 1]) }, &[ramp(&[0]), Array::scalar(NAN)]));
    cases.push(all(&Op::Concat { axis: 0 }, &[ramp(&[0, 2]), ramp(&[1, 2]), with(&[2, 2], 1, INF)]));
    cases.push(all(&Op::Reshape { shape: list(&[0, 5]) }, &[ramp(&[3, 0])]));
    cases.push(all(&Op::Gather { axis: 1 }, &[with(&[2, 3], 1, NAN), array(&[2, 2], &[-1i64, 0, 1, -3])]));
    cases.push(all(&Op::Gather { axis: 0 }, &[ramp(&[3, 1]), array::<i64>(&[0], &[])]));
    cases.push(all(&Op::Gather { axis: 0 }, &[ramp(&[3]), Array::scalar(2i32)]));

    for keepdims in [false, true] {
        for axes in [None, Some(vec![]), Some(vec![1]), Some(vec![0, -1])] {
            let reduce = Reduce { axes, keepdims };
            let reductions: [fn(Reduce) -> Operator; 4] =
                [Op::ReduceSum, Op::ReduceMean, Op::ReduceMax, Op::ReduceL2];
            for reduction in reductions {
                let operator = reduction(reduce.clone());
                for x in [
                    with(&[2, 3], 1, NAN),
                    with(&[2, 3], 4, -INF),
                    ramp(&[1, 1]),
                    ramp(&[2, 0]),
                    ramp(&[0, 3]),
                ] {
                    cases.push(all(&operator, &[x]));
                }
            }
            for reduction in [Op::ReduceSum, Op::ReduceMax] {
                cases.push(all(&reduction(reduce.clone()), &[array(&[2, 2], &[i32::MAX, 1, -5, i32::MIN])]));
            }
        }
    }
    cases
}
