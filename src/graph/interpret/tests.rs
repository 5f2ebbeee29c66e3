//! Every operator on cases worked out by hand, with NaN, infinities, empty and one-element dimensions, and none.

use super::*;
use crate::description::layout::Layout;
use crate::description::quantization::{NibbleOrder, QuantB};
use crate::graph::array::ArrayElement;
use crate::graph::builder::GraphBuilder;
use crate::graph::operator::{Attention, Groups, Operator, PoolKernel, Reduce, Window};
use crate::operands::int4::Int4View;
use crate::operands::view::TensorView;
use crate::operands::weights::Weights;
use values::Data;

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

fn array<T: ArrayElement>(dims: &[usize], data: &[T]) -> Array {
    Array::new(dims, data.to_vec()).unwrap()
}

fn floats(dims: &[usize], data: &[f32]) -> Array {
    array(dims, data)
}

fn integers(dims: &[usize], data: &[i64]) -> Array {
    array(dims, data)
}

/// A graph of one node, with an input for each operand.
fn graph_of(operator: Operator, operands: &[Option<Array>]) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let mut inputs = Vec::new();
    for (index, operand) in operands.iter().enumerate() {
        let of = operand.as_ref().map(Array::tensor_type);
        let input = of.map(|of| g.input(format!("x{index}"), of.element, of.shape.dims()));
        inputs.push(input.transpose()?);
    }
    let outputs = g.named("n").node(operator, &inputs)?;
    let names: Vec<_> = (0..outputs.len()).map(|index| format!("y{index}")).collect();
    let outputs: Vec<_> = names.iter().map(String::as_str).zip(outputs).collect();
    g.finish(&outputs)
}

fn close(got: &Array, expected: &Array) -> bool {
    let [got, expected] = [got, expected].map(|of| Values::<f64>::of_array(of).unwrap());
    let same = |(got, expected): (&f64, &f64)| {
        got == expected
            || (got.is_nan() && expected.is_nan())
            || (got - expected).abs() <= 2e-6 * expected.abs().max(1e-3)
    };
    let data = match (&got.data, &expected.data) {
        (Data::Floats(got), Data::Floats(expected)) => got.iter().zip(expected).all(same),
        (got, expected) => got == expected,
    };
    got.tensor_type.shape == expected.tensor_type.shape && data
}

/// Checks the results in both types: those of f32 are of the type expected.
#[track_caller]
#[allow(clippy::needless_pass_by_value, reason = "written where it is used")]
fn check_all(operator: Operator, operands: Vec<Option<Array>>, expected: &[Array]) {
    let graph = graph_of(operator.clone(), &operands).unwrap();
    let inputs: Vec<_> = operands.iter().flatten().collect();
    let (wide, plain) = (graph.interpret_f64(&inputs).unwrap(), graph.interpret_f32(&inputs).unwrap());
    assert_eq!((wide.len(), plain.len()), (expected.len(), expected.len()));
    for ((wide, plain), expected) in wide.iter().zip(&plain).zip(expected) {
        for got in [wide, plain] {
            assert!(
                close(got, expected),
                "{operator:?}: expected {expected:?}, got {got:?}: {:?}",
                got.elements()
            );
        }
        assert_eq!(plain.tensor_type(), expected.tensor_type(), "{operator:?}");
    }
}

#[track_caller]
fn check(operator: Operator, operands: &[&Array], expected: &Array) {
    let operands = operands.iter().map(|operand| Some((*operand).clone())).collect();
    check_all(operator, operands, std::slice::from_ref(expected));
}

fn error_of(operator: Operator, operands: &[&Array]) -> String {
    let given: Vec<_> = operands.iter().map(|operand| Some((*operand).clone())).collect();
    let graph = graph_of(operator, &given).unwrap();
    let error = graph.interpret_f64(operands).unwrap_err().to_string();
    assert_eq!(graph.interpret_f32(operands).unwrap_err().to_string(), error);
    error
}

/// Operators of one floating-point input, with their values at 2, -3, NaN, infinity and minus infinity.
fn functions() -> Vec<(Operator, [f32; 5])> {
    vec![
        (Operator::Abs, [2.0, 3.0, NAN, INF, INF]),
        (Operator::Neg, [-2.0, 3.0, NAN, -INF, INF]),
        (Operator::Reciprocal, [0.5, -1.0 / 3.0, NAN, 0.0, 0.0]),
        (Operator::Sqrt, [std::f32::consts::SQRT_2, NAN, NAN, INF, NAN]),
        (Operator::Exp, [7.389_056, 0.049_787_07, NAN, INF, 0.0]),
        (Operator::Log, [std::f32::consts::LN_2, NAN, NAN, INF, NAN]),
        (Operator::Erf, [0.995_322_3, -0.999_977_9, NAN, 1.0, -1.0]),
        (Operator::Relu, [2.0, 0.0, NAN, INF, 0.0]),
        (Operator::LeakyRelu { alpha: 0.1 }, [2.0, -0.3, NAN, INF, -INF]),
        // x times the normal distribution: 0.977 249 87 and 0.001 349 898.
        (Operator::Gelu { tanh: false }, [1.954_499_7, -0.004_049_694, NAN, INF, 0.0]),
        // t = 0.797 884 56 (2 + 0.357 72) = 1.881 188 3 and -3.359 170; 1 + tanh t = 2 / (1 + e^(-2 t)).
        (Operator::Gelu { tanh: true }, [1.954_597_7, -0.003_637_392, NAN, INF, 0.0]),
        (Operator::Sigmoid, [0.880_797_1, 0.047_425_87, NAN, 1.0, 0.0]),
        (Operator::HardSigmoid { alpha: 0.25, beta: 0.25 }, [0.75, 0.0, NAN, 1.0, 0.0]),
        (Operator::HardSwish, [5.0 / 3.0, 0.0, NAN, INF, NAN]),
        (Operator::Tanh, [0.964_027_6, -0.995_054_7, NAN, 1.0, -1.0]),
        (Operator::Identity, [2.0, -3.0, NAN, INF, -INF]),
        // What is infinite less itself is NaN, so that a lane with infinity or NaN is NaN throughout.
        (Operator::Softmax { axis: 0 }, [NAN; 5]),
    ]
}

#[test]
fn functions_of_one_input() {
    let x = floats(&[5], &[2.0, -3.0, NAN, INF, -INF]);
    for (operator, expected) in functions() {
        check(operator, &[&x], &floats(&[5], &expected));
    }
    check(
        Operator::Softmax { axis: -1 },
        &[&floats(&[3], &[0.0, 2f32.ln(), 5f32.ln()])],
        &floats(&[3], &[0.125, 0.25, 0.625]),
    );
    let error = |x: f32| (Operator::Gelu { tanh: false }, floats(&[1], &[x]));
    // erfc keeps what 1 + erf loses: -10 times 7.619 853e-24.
    let (operator, x) = error(-10.0);
    let y = graph_of(operator, &[Some(x.clone())]).unwrap().interpret_f64(&[&x]).unwrap();
    assert!((y[0].data::<f64>().unwrap()[0] / -7.619_853e-23 - 1.0).abs() < 1e-6);
}

#[test]
fn functions_of_few_elements() {
    for (operator, [of_two, ..]) in functions() {
        if matches!(operator, Operator::Softmax { .. }) {
            continue;
        }
        check(operator.clone(), &[&floats(&[], &[2.0])], &floats(&[], &[of_two]));
        check(operator.clone(), &[&floats(&[1, 1], &[2.0])], &floats(&[1, 1], &[of_two]));
        check(operator, &[&floats(&[3, 0], &[])], &floats(&[3, 0], &[]));
    }
    let softmax = |axis| Operator::Softmax { axis };
    check(softmax(0), &[&floats(&[0, 3], &[])], &floats(&[0, 3], &[]));
    check(softmax(1), &[&floats(&[0, 1 << 50], &[])], &floats(&[0, 1 << 50], &[]));
    check(softmax(0), &[&floats(&[1, 2], &[5.0, -INF])], &floats(&[1, 2], &[1.0, NAN]));
    check(
        softmax(1),
        &[&floats(&[3, 2], &[-INF, -INF, 0.0, -INF, 1e30, -1e30])],
        &floats(&[3, 2], &[NAN, NAN, 1.0, 0.0, 1.0, 0.0]),
    );
}

#[test]
fn integers_wrap() {
    let bytes = |data: &[i8]| array(&[data.len()], data);
    check(Operator::Abs, &[&bytes(&[-128, -5])], &bytes(&[-128, 5]));
    check(Operator::Neg, &[&bytes(&[-128, 5])], &bytes(&[-128, -5]));
    check(Operator::Neg, &[&array(&[2], &[1u8, 0])], &array(&[2], &[255u8, 0]));
    check(Operator::Relu, &[&bytes(&[-128, 5])], &bytes(&[0, 5]));
    check(Operator::Add, &[&bytes(&[127, 1]), &bytes(&[1])], &bytes(&[-128, 2]));
    check(Operator::Sub, &[&bytes(&[-128]), &bytes(&[1])], &bytes(&[127]));
    check(Operator::Mul, &[&bytes(&[16, 3]), &bytes(&[16, 5])], &bytes(&[0, 15]));
    check(Operator::Div, &[&bytes(&[-128, -7]), &bytes(&[-1, 2])], &bytes(&[-128, -3]));
    // Between nodes too.
    let mut g = GraphBuilder::new();
    let x = g.input("x", ElementType::I8, &[1]).unwrap();
    let sum = g.add(x, x).unwrap();
    let wide = g.cast(sum, ElementType::I64).unwrap();
    let graph = g.finish(&[("wide", wide)]).unwrap();
    assert_eq!(graph.interpret_f64(&[&bytes(&[100])]).unwrap(), [integers(&[1], &[-56])]);
    let (most, least) = (integers(&[1], &[i64::MAX]), integers(&[1], &[i64::MIN]));
    let one = integers(&[], &[1]);
    check(Operator::Abs, &[&least], &least);
    check(Operator::Add, &[&most, &one], &least);
    check(Operator::Sub, &[&least, &one], &most);
    check(Operator::Mul, &[&most, &integers(&[], &[2])], &integers(&[1], &[-2]));
    check(Operator::Div, &[&least, &integers(&[], &[-1])], &least);
    check(Operator::Pow, &[&bytes(&[2, -3, 7]), &bytes(&[8, 3, 0])], &bytes(&[0, -27, 1]));
    let powers = [&integers(&[5], &[1, -1, -1, 2, 0]), &integers(&[5], &[-9, -3, i64::MIN, -1, 0])];
    check(Operator::Pow, &powers, &integers(&[5], &[1, -1, 1, 0, 1]));
    check(Operator::MatMul, &[&bytes(&[100, 2]), &bytes(&[2, 3])], &array(&[], &[-50i8]));
    let sum = Operator::ReduceSum(Reduce { axes: None, keepdims: false });
    check(sum, &[&bytes(&[100, 100])], &array(&[], &[-56i8]));
}

#[test]
fn integers_are_not_divided_by_zero() {
    let (x, zero) = (integers(&[2], &[1, 2]), integers(&[2], &[1, 0]));
    assert_eq!(error_of(Operator::Div, &[&x, &zero]), "graph: node `n`: Div: a division of integers by 0");
    let minus = integers(&[], &[-1]);
    assert_eq!(
        error_of(Operator::Pow, &[&zero, &minus]),
        "graph: node `n`: Pow: a division of integers by 0"
    );
    check(Operator::Div, &[&integers(&[0], &[]), &integers(&[], &[0])], &integers(&[0], &[]));
}

#[test]
fn two_inputs_are_broadcast() {
    let (column, row) = (floats(&[2, 1], &[1.0, 10.0]), floats(&[3], &[1.0, 2.0, 4.0]));
    let grid = |data: &[f32]| floats(&[2, 3], data);
    check(Operator::Add, &[&column, &row], &grid(&[2.0, 3.0, 5.0, 11.0, 12.0, 14.0]));
    check(Operator::Sub, &[&column, &row], &grid(&[0.0, -1.0, -3.0, 9.0, 8.0, 6.0]));
    check(Operator::Mul, &[&column, &row], &grid(&[1.0, 2.0, 4.0, 10.0, 20.0, 40.0]));
    check(Operator::Div, &[&column, &row], &grid(&[1.0, 0.5, 0.25, 10.0, 5.0, 2.5]));
    check(Operator::Pow, &[&column, &row], &grid(&[1.0, 1.0, 1.0, 10.0, 100.0, 1e4]));
    check(Operator::Min, &[&column, &row], &grid(&[1.0, 1.0, 1.0, 1.0, 2.0, 4.0]));
    let three = [&column, &row, &floats(&[], &[3.0])];
    check(Operator::Max, &three, &grid(&[3.0, 3.0, 4.0, 10.0, 10.0, 10.0]));
    check(Operator::Max, &[&row], &row);
    let empty = floats(&[0], &[]);
    check(Operator::Add, &[&empty, &floats(&[1], &[1.0])], &empty);
    check(Operator::Mul, &[&floats(&[], &[2.0]), &floats(&[], &[3.0])], &floats(&[], &[6.0]));
    let (x, y) = (floats(&[4], &[NAN, 1.0, INF, 0.0]), floats(&[4], &[1.0, NAN, INF, 0.0]));
    check(Operator::Min, &[&x, &y], &floats(&[4], &[NAN, NAN, INF, 0.0]));
    check(Operator::Max, &[&x, &y], &floats(&[4], &[NAN, NAN, INF, 0.0]));
    check(Operator::Sub, &[&x, &y], &floats(&[4], &[NAN, NAN, NAN, 0.0]));
    check(Operator::Div, &[&x, &y], &floats(&[4], &[NAN, NAN, NAN, NAN]));
    // In the type of the base, whatever the exponent's: 9^1.5 and 2^0.5 cut off.
    let powers = [&integers(&[2], &[9, 2]), &floats(&[2], &[1.5, 0.5])];
    check(Operator::Pow, &powers, &integers(&[2], &[27, 1]));
    check(Operator::Pow, &[&x, &integers(&[], &[0])], &floats(&[4], &[1.0; 4]));
}

#[test]
fn bounds() {
    let x = floats(&[5], &[-2.0, 0.5, 2.0, NAN, INF]);
    let clip = |bounds: [Option<f32>; 2], expected: &[f32]| {
        let bounds = bounds.map(|bound| bound.map(|bound| floats(&[], &[bound])));
        let operands = [Some(x.clone())].into_iter().chain(bounds).collect();
        check_all(Operator::Clip, operands, &[floats(&[5], expected)]);
    };
    clip([Some(-1.0), Some(1.0)], &[-1.0, 0.5, 1.0, NAN, 1.0]);
    clip([None, Some(1.0)], &[-2.0, 0.5, 1.0, NAN, 1.0]);
    clip([Some(-1.0), None], &[-1.0, 0.5, 2.0, NAN, INF]);
    clip([None, None], &[-2.0, 0.5, 2.0, NAN, INF]);
    clip([Some(2.0), Some(1.0)], &[1.0, 1.0, 1.0, NAN, 1.0]);
    let bytes = [&array(&[3], &[1u8, 7, 200]), &array(&[], &[5u8]), &array(&[], &[100u8])];
    check(Operator::Clip, &bytes, &array(&[3], &[5u8, 7, 100]));
}

#[test]
fn comparisons_and_choices() {
    let (x, y) = (floats(&[4], &[1.0, 2.0, 3.0, NAN]), floats(&[], &[2.0]));
    let (a, b) = (integers(&[3], &[i64::MAX - 1, i64::MAX, 0]), integers(&[], &[i64::MAX]));
    for (operator, of_floats, of_integers) in [
        (Operator::Equal, [false, true, false, false], [false, true, false]),
        (Operator::Greater, [false, false, true, false], [false; 3]),
        (Operator::GreaterOrEqual, [false, true, true, false], [false, true, false]),
        (Operator::Less, [true, false, false, false], [true, false, true]),
        (Operator::LessOrEqual, [true, true, false, false], [true; 3]),
    ] {
        check(operator.clone(), &[&x, &y], &array(&[4], &of_floats));
        check(operator.clone(), &[&a, &b], &array(&[3], &of_integers));
        check(operator, &[&floats(&[0], &[]), &y], &array::<bool>(&[0], &[]));
    }
    let (p, q) = (array(&[2, 1], &[true, false]), array(&[2], &[true, false]));
    check(Operator::Equal, &[&p, &q], &array(&[2, 2], &[true, false, false, true]));
    check(Operator::And, &[&p, &q], &array(&[2, 2], &[true, false, false, false]));
    check(Operator::Or, &[&p, &q], &array(&[2, 2], &[true, true, true, false]));
    check(Operator::Not, &[&p], &array(&[2, 1], &[false, true]));
    check(Operator::Not, &[&array(&[], &[true])], &array(&[], &[false]));
    let chosen = [&p, &floats(&[2], &[1.0, NAN]), &floats(&[], &[3.0])];
    check(Operator::Where, &chosen, &floats(&[2, 2], &[1.0, NAN, 3.0, 3.0]));
    check(Operator::Where, &[&q, &q, &array(&[], &[true])], &array(&[2], &[true, true]));
}

#[test]
fn casts() {
    let to = |to| Operator::Cast { to };
    let x = floats(&[7], &[-1.9, 1.9, 0.0, NAN, INF, -INF, 300.5]);
    check(to(ElementType::I8), &[&x], &array(&[7], &[-1i8, 1, 0, 0, 127, -128, 127]));
    check(to(ElementType::U8), &[&x], &array(&[7], &[0u8, 1, 0, 0, 255, 0, 255]));
    check(to(ElementType::I32), &[&x], &array(&[7], &[-1i32, 1, 0, 0, i32::MAX, i32::MIN, 300]));
    check(to(ElementType::I64), &[&x], &integers(&[7], &[-1, 1, 0, 0, i64::MAX, i64::MIN, 300]));
    check(to(ElementType::Bool), &[&x], &array(&[7], &[true, true, false, true, true, true, true]));
    check(
        to(ElementType::F64),
        &[&x],
        &array(&[7], &x.data::<f32>().unwrap().iter().map(|x| f64::from(*x)).collect::<Vec<_>>()),
    );
    let wide = integers(&[3], &[300, -1, 1 << 40]);
    check(to(ElementType::I8), &[&wide], &array(&[3], &[44i8, -1, 0]));
    check(to(ElementType::U8), &[&wide], &array(&[3], &[44u8, 255, 0]));
    check(to(ElementType::I32), &[&wide], &array(&[3], &[300i32, -1, 0]));
    check(to(ElementType::F32), &[&wide], &floats(&[3], &[300.0, -1.0, 1.099_511_6e12]));
    check(to(ElementType::Bool), &[&wide], &array(&[3], &[true; 3]));
    let flags = array(&[2], &[true, false]);
    check(to(ElementType::F32), &[&flags], &floats(&[2], &[1.0, 0.0]));
    check(to(ElementType::I64), &[&flags], &integers(&[2], &[1, 0]));
    check(to(ElementType::Bool), &[&flags], &flags);
    check(to(ElementType::U8), &[&floats(&[], &[7.7])], &array(&[], &[7u8]));
    check(to(ElementType::U8), &[&floats(&[0], &[])], &array::<u8>(&[0], &[]));
}

#[test]
fn products() {
    let (a, b) = (floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), floats(&[2, 3], &[1.0, 0.0, -1.0, 2.0, 5.0, 1.0]));
    check(Operator::MatMul, &[&a, &b], &floats(&[2, 3], &[5.0, 10.0, 1.0, 11.0, 20.0, 1.0]));
    let row = floats(&[2], &[1.0, -1.0]);
    check(Operator::MatMul, &[&row, &b], &floats(&[3], &[-1.0, -5.0, -2.0]));
    check(Operator::MatMul, &[&a, &row], &floats(&[2], &[-1.0, -1.0]));
    check(Operator::MatMul, &[&row, &row], &floats(&[], &[2.0]));
    // A batch of two on the left, one of three on the right.
    let (left, right) =
        (floats(&[2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0]), floats(&[3, 2, 1], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]));
    check(Operator::MatMul, &[&left, &right], &floats(&[2, 3, 1, 1], &[1.0, 2.0, 3.0, 3.0, 4.0, 7.0]));
    check(Operator::MatMul, &[&floats(&[2, 0], &[]), &floats(&[0, 1], &[])], &floats(&[2, 1], &[0.0, 0.0]));
    check(Operator::MatMul, &[&floats(&[0, 2], &[]), &b], &floats(&[0, 3], &[]));
    check(Operator::MatMul, &[&floats(&[2], &[0.0, 1.0]), &floats(&[2], &[INF, 1.0])], &floats(&[], &[NAN]));

    let gemm = |transpose_a, transpose_b, beta| Operator::Gemm { alpha: 2.0, beta, transpose_a, transpose_b };
    let transposed = floats(&[3, 2], &[1.0, 2.0, 0.0, 5.0, -1.0, 1.0]);
    let c = floats(&[2, 1], &[1.0, NAN]);
    check(gemm(false, false, 3.0), &[&a, &b, &c], &floats(&[2, 3], &[13.0, 23.0, 5.0, NAN, NAN, NAN]));
    check(
        gemm(false, true, 0.0),
        &[&a, &transposed, &c],
        &floats(&[2, 3], &[10.0, 20.0, 2.0, 22.0, 40.0, 2.0]),
    );
    check(gemm(true, false, 1.0), &[&a, &b], &floats(&[2, 3], &[14.0, 30.0, 4.0, 20.0, 40.0, 4.0]));
    let empty = [&floats(&[1, 0], &[]), &floats(&[0, 2], &[]), &floats(&[], &[5.0])];
    check(gemm(false, false, 1.0), &empty, &floats(&[1, 2], &[5.0, 5.0]));
}

#[test]
fn convolutions() {
    let conv = |window, groups| Operator::Conv(window, Groups(groups));
    let (x, w) = (floats(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0]), floats(&[1, 1, 3], &[1.0, 10.0, 100.0]));
    check(conv(Window::default(), 1), &[&x, &w], &floats(&[1, 1, 2], &[321.0, 432.0]));
    let padded = Window { pads: vec![1, 2], strides: vec![2], ..Window::default() };
    let bias = floats(&[1], &[0.5]);
    check(conv(padded, 1), &[&x, &w, &bias], &floats(&[1, 1, 3], &[210.5, 432.5, 4.5]));
    let dilated = Window { pads: vec![1, 1], dilations: vec![2], ..Window::default() };
    check(conv(dilated, 1), &[&x, &w], &floats(&[1, 1, 2], &[420.0, 31.0]));
    // Two channels in, three out: 1 x 1 in space.
    let (pixels, mix) = (
        floats(&[1, 2, 1, 2], &[1.0, 2.0, 3.0, 4.0]),
        floats(&[3, 2, 1, 1], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
    );
    check(
        conv(Window::default(), 1),
        &[&pixels, &mix],
        &floats(&[1, 3, 1, 2], &[1.0, 2.0, 3.0, 4.0, 4.0, 6.0]),
    );
    // Two groups with two outputs each.
    let of_groups = floats(&[4, 1, 1, 1], &[1.0, 2.0, 10.0, 20.0]);
    check(
        conv(Window::default(), 2),
        &[&pixels, &of_groups],
        &floats(&[1, 4, 1, 2], &[1.0, 2.0, 2.0, 4.0, 30.0, 40.0, 60.0, 80.0]),
    );
    // An infinite weight on padding adds nothing, on a 0 of the image it gives NaN.
    let infinite = Window { pads: vec![1, 0], ..Window::default() };
    let operands = [&floats(&[1, 1, 2], &[0.0, 2.0]), &floats(&[1, 1, 2], &[INF, 1.0])];
    check(conv(infinite, 1), &operands, &floats(&[1, 1, 2], &[0.0, NAN]));
    check(conv(Window::default(), 1), &[&floats(&[0, 1, 4], &[]), &w], &floats(&[0, 1, 2], &[]));
    let without_channels = [&floats(&[1, 0, 2], &[]), &floats(&[1, 0, 2], &[]), &bias];
    check(conv(Window::default(), 1), &without_channels, &floats(&[1, 1, 1], &[0.5]));
}

#[test]
fn pools() {
    let kernel = |size, ceil_mode| PoolKernel { shape: vec![size], ceil_mode };
    let window =
        |stride, pads: [usize; 2]| Window { strides: vec![stride], pads: pads.to_vec(), ..Window::default() };
    let x = floats(&[1, 1, 5], &[-1.0, -2.0, -3.0, -4.0, -6.0]);
    let max = |window, kernel, expected: &[f32]| {
        check(Operator::MaxPool(window, kernel), &[&x], &floats(&[1, 1, expected.len()], expected));
    };
    max(window(2, [0, 0]), kernel(2, false), &[-1.0, -3.0]);
    max(window(2, [0, 0]), kernel(2, true), &[-1.0, -3.0, -6.0]);
    max(window(2, [1, 0]), kernel(2, false), &[-1.0, -2.0, -4.0]);
    let average = |window, kernel, count_include_pad, expected: &[f32]| {
        let operator = Operator::AveragePool { window, kernel, count_include_pad };
        check(operator, &[&x], &floats(&[1, 1, expected.len()], expected));
    };
    average(window(2, [1, 1]), kernel(3, false), false, &[-1.5, -3.0, -5.0]);
    average(window(2, [1, 1]), kernel(3, false), true, &[-1.0, -3.0, -10.0 / 3.0]);
    // The last window reaches from -6 beyond the padding, where nothing counts: two of three elements do.
    average(window(4, [0, 1]), kernel(3, true), true, &[-2.0, -3.0]);
    average(window(4, [0, 1]), kernel(3, true), false, &[-2.0, -6.0]);
    let special = floats(&[1, 1, 4], &[NAN, 1.0, INF, -INF]);
    check(
        Operator::MaxPool(window(1, [0, 0]), kernel(2, false)),
        &[&special],
        &floats(&[1, 1, 3], &[NAN, INF, INF]),
    );
    // Both elements of a dilated window lie on padding.
    let apart = Window { pads: vec![1, 1], dilations: vec![3], ..Window::default() };
    let operands = [&floats(&[1, 1, 2], &[1.0, 2.0])];
    check(Operator::MaxPool(apart.clone(), kernel(2, false)), &operands, &floats(&[1, 1, 1], &[-INF]));
    let average = Operator::AveragePool { window: apart, kernel: kernel(2, false), count_include_pad: false };
    check(average, &operands, &floats(&[1, 1, 1], &[NAN]));
    check(
        Operator::MaxPool(window(1, [0, 0]), kernel(2, false)),
        &[&floats(&[0, 1, 2], &[])],
        &floats(&[0, 1, 1], &[]),
    );
    // A dimension that is as long as memory is not walked through.
    let wide = 1 << 50;
    let padded = Operator::MaxPool(window(1, [wide - 1, 0]), kernel(wide, false));
    check(padded, &[&floats(&[1, 1, 1], &[7.0])], &floats(&[1, 1, 1], &[7.0]));
    let plane = floats(&[1, 2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, INF, 7.0, 8.0]);
    check(Operator::GlobalAveragePool, &[&plane], &floats(&[1, 2, 1, 1], &[2.5, INF]));
    check(Operator::GlobalAveragePool, &[&floats(&[1, 1, 0], &[])], &floats(&[1, 1, 1], &[NAN]));
}

#[test]
fn normalizations() {
    // Mean 3, variance 4.
    let x = floats(&[2, 2], &[1.0, 5.0, 1.0, 5.0]);
    let layer = |axis, epsilon| Operator::LayerNormalization { axis, epsilon };
    let (scale, bias) = (floats(&[2], &[10.0, 1.0]), floats(&[], &[0.5]));
    check(layer(-1, 0.0), &[&x, &scale, &bias], &floats(&[2, 2], &[-9.5, 1.5, -9.5, 1.5]));
    check(layer(0, 0.0), &[&x, &scale], &floats(&[2, 2], &[-10.0, 1.0, -10.0, 1.0]));
    check(layer(1, 12.0), &[&x, &scale], &floats(&[2, 2], &[-5.0, 0.5, -5.0, 0.5]));
    let rms = |epsilon| Operator::RmsNormalization { axis: -1, epsilon };
    // The mean of squares is 12.5.
    check(rms(12.5), &[&floats(&[2], &[3.0, 4.0]), &scale], &floats(&[2], &[6.0, 0.8]));
    // One element: 0 from its mean.
    check(layer(-1, 1.0), &[&floats(&[1], &[7.0]), &floats(&[1], &[2.0])], &floats(&[1], &[0.0]));
    check(layer(-1, 0.0), &[&floats(&[1], &[7.0]), &floats(&[1], &[2.0])], &floats(&[1], &[NAN]));
    check(layer(-1, 1.0), &[&floats(&[2, 0], &[]), &floats(&[0], &[])], &floats(&[2, 0], &[]));
    check(rms(1.0), &[&floats(&[0, 2], &[]), &scale], &floats(&[0, 2], &[]));
    check(rms(0.0), &[&floats(&[2], &[INF, 1.0]), &scale], &floats(&[2], &[NAN, 0.0]));
    check(layer(-1, 0.0), &[&floats(&[2], &[NAN, 1.0]), &scale], &floats(&[2], &[NAN, NAN]));

    let batch = Operator::BatchNormalization { epsilon: 1.0 };
    let of = |data: [f32; 2]| floats(&[2], &data);
    let (scale, bias, mean, variance) = (of([2.0, 1.0]), of([0.0, 1.0]), of([1.0, 0.0]), of([3.0, 0.0]));
    let x = floats(&[1, 2, 2], &[1.0, 3.0, 4.0, NAN]);
    check(batch.clone(), &[&x, &scale, &bias, &mean, &variance], &floats(&[1, 2, 2], &[0.0, 2.0, 5.0, NAN]));
    let flat = floats(&[2, 2], &[1.0, 4.0, 3.0, 0.0]);
    check(batch.clone(), &[&flat, &scale, &bias, &mean, &variance], &floats(&[2, 2], &[0.0, 5.0, 2.0, 1.0]));
    let empty = floats(&[0, 2, 3], &[]);
    check(batch, &[&empty, &scale, &bias, &mean, &variance], &empty);
}

#[test]
fn attention_of_heads() {
    let attend = |attributes| Operator::Attention(attributes);
    // Scores 0 and ln 3 for the only query: weights 1/4 and 3/4.
    let (q, k) = (floats(&[1, 1, 1, 1], &[1.0]), floats(&[1, 1, 2, 1], &[0.0, 3f32.ln()]));
    let v = floats(&[1, 1, 2, 2], &[4.0, 8.0, 0.0, 4.0]);
    check(attend(Attention::new()), &[&q, &k, &v], &floats(&[1, 1, 1, 2], &[1.0, 5.0]));
    // Twice ln 3: weights 1/10 and 9/10.
    check(attend(Attention::new().scale(2.0)), &[&q, &k, &v], &floats(&[1, 1, 1, 2], &[0.4, 4.4]));
    check(attend(Attention::new().causal(true)), &[&q, &k, &v], &floats(&[1, 1, 1, 2], &[4.0, 8.0]));
    let seen = array(&[1, 2], &[false, true]);
    check(attend(Attention::new()), &[&q, &k, &v, &seen], &floats(&[1, 1, 1, 2], &[0.0, 4.0]));
    let added = floats(&[2], &[3f32.ln(), 0.0]);
    check(attend(Attention::new()), &[&q, &k, &v, &added], &floats(&[1, 1, 1, 2], &[2.0, 6.0]));
    let nothing = array(&[], &[false]);
    check(attend(Attention::new()), &[&q, &k, &v, &nothing], &floats(&[1, 1, 1, 2], &[NAN, NAN]));
    // The default scale is 1 / sqrt(4): scores 0 and ln 3.
    let (wide_q, wide_k) = (
        floats(&[1, 1, 1, 4], &[2.0, 0.0, 0.0, 0.0]),
        floats(&[1, 1, 2, 4], &[0.0, 0.0, 0.0, 0.0, 3f32.ln(), 0.0, 0.0, 0.0]),
    );
    check(attend(Attention::new()), &[&wide_q, &wide_k, &v], &floats(&[1, 1, 1, 2], &[1.0, 5.0]));
    // Four heads of Q in three dimensions; K and V have two, each with one key, whose value is the result.
    let (q, kv) = (floats(&[1, 2, 4], &[1.0; 8]), floats(&[1, 1, 2], &[5.0, 7.0]));
    let grouped = attend(Attention::new().heads(4, 2));
    check(grouped.clone(), &[&q, &kv, &kv], &floats(&[1, 2, 4], &[5.0, 5.0, 7.0, 7.0, 5.0, 5.0, 7.0, 7.0]));
    // Query 0 does not see key 1, and yet what is not a number times a weight of 0 is none.
    let (q, k, v) =
        (floats(&[1, 2, 1], &[1.0; 2]), floats(&[1, 2, 1], &[0.0; 2]), floats(&[1, 2, 1], &[2.0, 4.0]));
    let causal = attend(Attention::new().heads(1, 1).causal(true));
    check(causal.clone(), &[&q, &k, &v], &floats(&[1, 2, 1], &[2.0, 3.0]));
    let open = floats(&[1, 2, 1], &[2.0, NAN]);
    check(causal.clone(), &[&q, &k, &open], &floats(&[1, 2, 1], &[NAN, NAN]));
    check(
        grouped,
        &[&floats(&[0, 2, 4], &[]), &floats(&[0, 1, 2], &[]), &floats(&[0, 1, 2], &[])],
        &floats(&[0, 2, 4], &[]),
    );
    let without_keys = [&q, &floats(&[1, 0, 1], &[]), &floats(&[1, 0, 1], &[])];
    check(causal, &without_keys, &floats(&[1, 2, 1], &[0.0, 0.0]));
}

#[test]
fn quantization() {
    let quantize = |axis, block_size, output| Operator::QuantizeLinear { axis, block_size, output };
    let x = floats(&[8], &[0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, NAN]);
    let (one, three) = (floats(&[], &[1.0]), array(&[], &[3i8]));
    check(quantize(1, 0, ElementType::I8), &[&x, &one], &array(&[8], &[0i8, 2, 2, 0, -2, 127, -128, 0]));
    check(quantize(1, 0, ElementType::U8), &[&x, &one], &array(&[8], &[0u8, 2, 2, 0, 0, 255, 0, 0]));
    check(
        quantize(1, 0, ElementType::I8),
        &[&x, &one, &three],
        &array(&[8], &[3i8, 5, 5, 3, 1, 127, -128, 0]),
    );
    let (grid, scales) = (floats(&[2, 2], &[2.0, 2.0, 4.0, 4.0]), floats(&[2], &[1.0, 2.0]));
    check(quantize(0, 0, ElementType::I8), &[&grid, &scales], &array(&[2, 2], &[2i8, 2, 2, 2]));
    check(quantize(1, 0, ElementType::I8), &[&grid, &scales], &array(&[2, 2], &[2i8, 1, 4, 2]));
    check(quantize(1, 0, ElementType::I8), &[&floats(&[0, 2], &[]), &scales], &array::<i8>(&[0, 2], &[]));
    check(
        quantize(1, 0, ElementType::I8),
        &[&floats(&[], &[2.0]), &floats(&[1], &[2.0])],
        &array(&[], &[1i8]),
    );

    let dequantize =
        |axis, block_size| Operator::DequantizeLinear { axis, block_size, output: ElementType::F32 };
    let bytes = array(&[2, 2], &[2u8, 3, 4, 255]);
    let points = array(&[2], &[2u8, 0]);
    check(dequantize(0, 0), &[&bytes, &scales, &points], &floats(&[2, 2], &[0.0, 1.0, 8.0, 510.0]));
    check(dequantize(-1, 0), &[&bytes, &scales, &points], &floats(&[2, 2], &[0.0, 6.0, 2.0, 510.0]));
    // Blocks of two along three rows: the last one has a row less.
    let rows = array(&[3, 2], &[1i8, 1, 1, 1, 1, -128]);
    let blocks = floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    check(dequantize(0, 2), &[&rows, &blocks], &floats(&[3, 2], &[1.0, 2.0, 1.0, 2.0, 3.0, -512.0]));
    check(
        quantize(0, 2, ElementType::I8),
        &[&floats(&[3, 2], &[12.0; 6]), &blocks],
        &array(&[3, 2], &[12i8, 6, 12, 6, 4, 3]),
    );
    let sums = array(&[2], &[i32::MIN, 5]);
    check(
        dequantize(0, 0),
        &[&sums, &one, &array(&[], &[i32::MAX])],
        &floats(&[2], &[-4_294_967_295.0, -2_147_483_642.0]),
    );
}

#[test]
fn elements_in_other_shapes() {
    let x = floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, NAN]);
    let as_shape = |dims: &[usize]| floats(dims, x.data().unwrap());
    check(Operator::Reshape { shape: vec![3, -1] }, &[&x], &as_shape(&[3, 2]));
    check(Operator::Reshape { shape: vec![0, 5] }, &[&floats(&[2, 0], &[])], &floats(&[0, 5], &[]));
    check(Operator::Flatten { axis: 0 }, &[&x], &as_shape(&[1, 6]));
    check(Operator::Flatten { axis: 1 }, &[&array(&[2], &[true, false])], &array(&[2, 1], &[true, false]));
    check(Operator::Squeeze { axes: None }, &[&as_shape(&[1, 6, 1])], &as_shape(&[6]));
    check(Operator::Squeeze { axes: None }, &[&integers(&[1], &[5])], &integers(&[], &[5]));
    check(Operator::Unsqueeze { axes: vec![0, -1] }, &[&x], &as_shape(&[1, 2, 3, 1]));
    check(Operator::Unsqueeze { axes: vec![0] }, &[&integers(&[], &[5])], &integers(&[1], &[5]));
    check(
        Operator::Expand { shape: vec![2, 1, 2] },
        &[&floats(&[2, 1], &[1.0, INF])],
        &floats(&[2, 2, 2], &[1.0, 1.0, INF, INF, 1.0, 1.0, INF, INF]),
    );
    check(Operator::Expand { shape: vec![0] }, &[&floats(&[], &[1.0])], &floats(&[0], &[]));
    check(Operator::Expand { shape: vec![1] }, &[&integers(&[2], &[1, 2])], &integers(&[2], &[1, 2]));
    check(Operator::Transpose { perm: vec![1, 0] }, &[&x], &floats(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, NAN]));
    check(Operator::Transpose { perm: vec![1, 0] }, &[&floats(&[0, 2], &[])], &floats(&[2, 0], &[]));
    check(Operator::Transpose { perm: vec![] }, &[&array(&[], &[true])], &array(&[], &[true]));
    // Index (a, b, c) of the result is (c, a, b) of the input.
    let cube = integers(&[2, 3, 1], &[1, 2, 3, 4, 5, 6]);
    check(Operator::Transpose { perm: vec![1, 2, 0] }, &[&cube], &integers(&[3, 1, 2], &[1, 4, 2, 5, 3, 6]));
}

#[test]
fn parts() {
    let (x, y) = (floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), floats(&[2, 1], &[NAN, 6.0]));
    check(Operator::Concat { axis: 1 }, &[&x, &y], &floats(&[2, 3], &[1.0, 2.0, NAN, 3.0, 4.0, 6.0]));
    check(
        Operator::Concat { axis: -2 },
        &[&y, &floats(&[0, 1], &[]), &y],
        &floats(&[4, 1], &[NAN, 6.0, NAN, 6.0]),
    );
    check(Operator::Concat { axis: 0 }, &[&array(&[1], &[true])], &array(&[1], &[true]));
    let grid = integers(&[2, 4], &[0, 1, 2, 3, 4, 5, 6, 7]);
    let parts = [integers(&[2, 1], &[0, 4]), integers(&[2, 0], &[]), integers(&[2, 3], &[1, 2, 3, 5, 6, 7])];
    check_all(Operator::Split { axis: -1, lengths: vec![1, 0, 3] }, vec![Some(grid.clone())], &parts);
    let rows = [integers(&[1, 4], &[0, 1, 2, 3]), integers(&[1, 4], &[4, 5, 6, 7])];
    check_all(Operator::Split { axis: 0, lengths: vec![1, 1] }, vec![Some(grid.clone())], &rows);
    let slice = |starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64], expected: &Array| {
        let of = |list: &[i64]| list.to_vec();
        let operator =
            Operator::Slice { starts: of(starts), ends: of(ends), axes: of(axes), steps: of(steps) };
        check(operator, &[&grid], expected);
    };
    slice(&[1], &[-1], &[1], &[1], &integers(&[2, 2], &[1, 2, 5, 6]));
    slice(&[1, -1], &[i64::MAX, i64::MIN], &[0, 1], &[1, -2], &integers(&[1, 2], &[7, 5]));
    slice(&[-1], &[0], &[0], &[i64::MIN], &integers(&[1, 4], &[4, 5, 6, 7]));
    slice(&[0], &[i64::MAX], &[1], &[i64::MAX], &integers(&[2, 1], &[0, 4]));
    slice(&[3], &[1], &[1], &[1], &integers(&[2, 0], &[]));
    slice(&[], &[], &[], &[], &grid);
}

#[test]
fn padding_and_triangles() {
    let pad = |pads: &[i64]| Operator::Pad { pads: pads.to_vec() };
    let x = floats(&[1, 2], &[1.0, 2.0]);
    check(pad(&[0, 1, 1, 0]), &[&x], &floats(&[2, 3], &[0.0, 1.0, 2.0, 0.0, 0.0, 0.0]));
    check(pad(&[0, -1, 0, 1]), &[&x, &floats(&[], &[NAN])], &floats(&[1, 2], &[2.0, NAN]));
    check(pad(&[0, 3, 0, -4]), &[&x], &floats(&[1, 1], &[0.0]));
    check(pad(&[1, 0]), &[&floats(&[0], &[])], &floats(&[1], &[0.0]));
    check(pad(&[]), &[&integers(&[], &[7])], &integers(&[], &[7]));
    check(pad(&[1, 0]), &[&array(&[1], &[true])], &array(&[2], &[false, true]));

    let grid = integers(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let trilu = |upper, k, expected: &[i64]| {
        check(Operator::Trilu { upper, k }, &[&grid], &integers(&[2, 3], expected));
    };
    trilu(true, 0, &[1, 2, 3, 0, 5, 6]);
    trilu(false, 0, &[1, 0, 0, 4, 5, 0]);
    trilu(true, 2, &[0, 0, 3, 0, 0, 0]);
    trilu(false, -1, &[0, 0, 0, 4, 0, 0]);
    trilu(true, i64::MIN, &[1, 2, 3, 4, 5, 6]);
    trilu(true, i64::MAX, &[0; 6]);
    // A NaN outside goes, too.
    let batch = floats(&[2, 1, 2], &[1.0, NAN, 3.0, 4.0]);
    check(Operator::Trilu { upper: false, k: 0 }, &[&batch], &floats(&[2, 1, 2], &[1.0, 0.0, 3.0, 0.0]));
    check(Operator::Trilu { upper: false, k: 0 }, &[&floats(&[0, 2], &[])], &floats(&[0, 2], &[]));
}

#[test]
fn indices_count_from_either_end() {
    let gather = |axis| Operator::Gather { axis };
    let x = floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, NAN]);
    check(gather(0), &[&x, &integers(&[], &[-1])], &floats(&[3], &[4.0, 5.0, NAN]));
    check(gather(1), &[&x, &integers(&[2, 1], &[0, -3])], &floats(&[2, 2, 1], &[1.0, 1.0, 4.0, 4.0]));
    check(gather(-1), &[&x, &array(&[1], &[2i32])], &floats(&[2, 1], &[3.0, NAN]));
    check(gather(0), &[&x, &integers(&[0], &[])], &floats(&[0, 3], &[]));
    check(gather(0), &[&array(&[2], &[true, false]), &integers(&[], &[1])], &array(&[], &[false]));
    for (data, index) in
        [(&x, 2), (&x, -3), (&x, i64::MIN), (&floats(&[0, 3], &[]), 0), (&floats(&[2, 0], &[]), 5)]
    {
        let error = error_of(gather(0), &[data, &integers(&[2], &[-1, index])]);
        let expected = format!(
            "graph: node `n`: Gather: index {} is out of range: axis 0 of {}",
            if data.shape().dims()[0] == 0 { -1 } else { index },
            data.shape()
        );
        assert_eq!(error, expected);
    }
}

#[test]
fn reductions() {
    let of = |axes: Option<&[i64]>, keepdims| Reduce { axes: axes.map(<[i64]>::to_vec), keepdims };
    let x = floats(&[2, 3], &[1.0, -5.0, 4.0, 2.0, 3.0, 6.0]);
    let both = |data: &[f32]| floats(&[2], data);
    check(Operator::ReduceSum(of(Some(&[1]), false)), &[&x], &both(&[0.0, 11.0]));
    check(Operator::ReduceMean(of(Some(&[-1]), false)), &[&x], &both(&[0.0, 11.0 / 3.0]));
    check(Operator::ReduceMax(of(Some(&[1]), false)), &[&x], &both(&[4.0, 6.0]));
    check(Operator::ReduceL2(of(Some(&[1]), false)), &[&x], &both(&[42f32.sqrt(), 7.0]));
    check(Operator::ReduceSum(of(Some(&[0]), true)), &[&x], &floats(&[1, 3], &[3.0, -2.0, 10.0]));
    check(Operator::ReduceSum(of(None, false)), &[&x], &floats(&[], &[11.0]));
    check(Operator::ReduceMean(of(None, true)), &[&x], &floats(&[1, 1], &[11.0 / 6.0]));
    check(Operator::ReduceL2(of(Some(&[]), false)), &[&floats(&[2], &[-3.0, 4.0])], &both(&[3.0, 4.0]));
    check(Operator::ReduceMean(of(None, false)), &[&floats(&[], &[-3.0])], &floats(&[], &[-3.0]));
    check(
        Operator::ReduceMax(of(Some(&[0]), false)),
        &[&integers(&[2, 1], &[-3, -7])],
        &integers(&[1], &[-3]),
    );
    check(Operator::ReduceMax(of(None, false)), &[&floats(&[3], &[1.0, NAN, 2.0])], &floats(&[], &[NAN]));
    check(Operator::ReduceSum(of(None, false)), &[&floats(&[2], &[INF, -INF])], &floats(&[], &[NAN]));
    let empty = floats(&[0, 2], &[]);
    check(Operator::ReduceSum(of(Some(&[0]), false)), &[&empty], &both(&[0.0, 0.0]));
    check(Operator::ReduceMean(of(Some(&[0]), false)), &[&empty], &both(&[NAN, NAN]));
    check(Operator::ReduceMax(of(Some(&[0]), false)), &[&empty], &both(&[-INF, -INF]));
    check(Operator::ReduceL2(of(Some(&[0]), false)), &[&empty], &both(&[0.0, 0.0]));
    check(Operator::ReduceSum(of(Some(&[1]), false)), &[&empty], &floats(&[0], &[]));
    check(Operator::ReduceMax(of(None, false)), &[&array::<u8>(&[0], &[])], &array(&[], &[0u8]));
    check(Operator::ReduceMax(of(None, false)), &[&array::<i8>(&[0], &[])], &array(&[], &[-128i8]));
}

#[test]
fn inputs_are_as_the_graph_says() {
    let mut g = GraphBuilder::new();
    let [a, b] = ["a", "b"].map(|name| g.input(name, ElementType::F32, &[2]).unwrap());
    let y = g.add(a, b).unwrap();
    let graph = g.finish(&[("y", y)]).unwrap();
    let fits = floats(&[2], &[1.0, 2.0]);
    let error = |inputs: &[&Array]| graph.interpret_f64(inputs).unwrap_err().to_string();
    assert_eq!(error(&[&fits]), "graph: expected 2 inputs (a, b), got 1");
    assert_eq!(error(&[&fits; 3]), "graph: expected 2 inputs (a, b), got 3");
    assert_eq!(error(&[&fits, &floats(&[3], &[0.0; 3])]), "graph: input `b`: expected f32[2], got f32[3]");
    let wide = array(&[2], &[1f64, 2.0]);
    assert_eq!(error(&[&wide, &fits]), "graph: input `a`: expected f32[2], got f64[2]");
    assert_eq!(graph.interpret_f32(&[&fits, &fits]).unwrap()[0], floats(&[2], &[2.0, 4.0]));
}

/// Weights that are stored transposed, in 4 bits, in groups along k and with a zero point are k x n numbers.
#[test]
fn weights_are_the_matrix_of_the_product() {
    let product = |weights: &Weights| {
        let mut g = GraphBuilder::new();
        let x = g.input("x", ElementType::F32, &[3, 3]).unwrap();
        let w = g.weights("w", weights).unwrap();
        let y = g.matmul(x, w).unwrap();
        let graph = g.finish(&[("y", y)]).unwrap();
        let identity = floats(&[3, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let results = graph.interpret_f64(&[&identity]).unwrap();
        assert!(close(&graph.interpret_f32(&[&identity]).unwrap()[0], &results[0]));
        results[0].clone()
    };
    // Of 2 x 3 with a gap after each row: the transpose is 3 x 2.
    let stored = [1f32, 2.0, 3.0, NAN, 4.0, 5.0, 6.0];
    let view = TensorView::with_layout(&stored, Layout::strided(1, 2, 3, 4, 0).unwrap()).unwrap();
    let transposed = Weights::new(view).unwrap().transposed().unwrap();
    assert!(close(&product(&transposed), &floats(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0])));

    // -1, 2, 3 and 4, 5, -8.
    let bytes = [0x2F, 0x43, 0x85];
    let nibbles = Int4View::signed(&bytes, Layout::packed(1, 2, 3).unwrap(), NibbleOrder::LowFirst).unwrap();
    let scheme = QuantB::PerGroup { group_size: 2, zero_point: -1 };
    let scales = TensorView::new(&[1f32, 10.0, 0.5, 2.0], 2, 2).unwrap();
    let quantized = Weights::new(nibbles).unwrap().transposed().unwrap().with_scales(scheme, scales).unwrap();
    // (w + 1) by rows of 1, 10; 1, 10; 0.5, 2.
    assert!(close(&product(&quantized), &floats(&[3, 2], &[0.0, 50.0, 3.0, 60.0, 2.0, -14.0])));
}

#[test]
fn a_node_can_be_computed_from_other_inputs() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", ElementType::F32, &[2]).unwrap();
    let halves = g.mul_scalar(x, 0.5).unwrap();
    let y = g.exp(halves).unwrap();
    let graph = g.finish(&[("y", y)]).unwrap();
    let values = interpret::<f64>(&graph, &[&floats(&[2], &[2.0, 4.0])]).unwrap();
    assert_eq!(values.len(), graph.values.len());
    let value_of = |name: &str| &values[graph.values.iter().position(|value| value.name == name).unwrap()];
    assert_eq!(value_of("x").data, Data::Floats(vec![2.0, 4.0]));
    let node = &graph.nodes[0];
    assert_eq!(values[node.outputs[0]].data, Data::Floats(vec![1.0, 2.0]));
    let other = Values::of_array(&floats(&[2], &[6.0, 8.0])).unwrap();
    let again = compute(node, &[Some(&other), node.inputs[1].map(|index| &values[index])]).unwrap();
    assert_eq!(again[0].data, Data::Floats(vec![3.0, 4.0]));
}

#[cfg(feature = "half")]
#[test]
fn each_value_is_rounded_to_its_type_in_f32_alone() {
    for (element, precision) in [(ElementType::F16, 1024.0), (ElementType::Bf16, 128.0)] {
        let mut g = GraphBuilder::new();
        let x = g.input("x", element, &[1]).unwrap();
        // A third of the distance to the next number is lost, three times over.
        let mut y = x;
        for _ in 0..3 {
            y = g.add_scalar(y, 1.0 / (3.0 * precision)).unwrap();
        }
        let graph = g.finish(&[("y", y)]).unwrap();
        let one = match element {
            ElementType::F16 => array(&[1], &[half::f16::ONE]),
            _ => array(&[1], &[half::bf16::ONE]),
        };
        assert_eq!(graph.interpret_f32(&[&one]).unwrap()[0], one);
        let wide = graph.interpret_f64(&[&one]).unwrap();
        let gained = (wide[0].data::<f64>().unwrap()[0] - 1.0) * precision;
        assert!((gained - 1.0).abs() < 0.01, "{gained}");
        // The largest number and as much again.
        let mut g = GraphBuilder::new();
        let x = g.input("x", ElementType::F32, &[1]).unwrap();
        let y = g.cast(x, element).unwrap();
        let graph = g.finish(&[("y", y)]).unwrap();
        let much = floats(&[1], &[3.4e38]);
        let narrow = graph.interpret_f32(&[&much]).unwrap();
        assert_eq!(narrow[0].tensor_type().element, element);
        assert!(close(&narrow[0], &floats(&[1], &[INF])));
        assert!(close(&graph.interpret_f64(&[&much]).unwrap()[0], &much));
    }
}

#[test]
fn sums_are_in_order_in_f32() {
    let x = floats(&[3], &[1e8, 1.0, -1e8]);
    let sum = Operator::ReduceSum(Reduce { axes: None, keepdims: false });
    let ones = floats(&[3], &[1.0; 3]);
    for (operator, operands) in [(sum, vec![&x]), (Operator::MatMul, vec![&x, &ones])] {
        let given: Vec<_> = operands.iter().map(|operand| Some((*operand).clone())).collect();
        let graph = graph_of(operator, &given).unwrap();
        assert_eq!(graph.interpret_f32(&operands).unwrap()[0].data(), Some(&[0f32][..]));
        assert_eq!(graph.interpret_f64(&operands).unwrap()[0].data(), Some(&[1f64][..]));
    }
}

#[test]
#[cfg_attr(miri, ignore = "an interpreter ends where memory does")]
fn results_beyond_memory_are_errors() {
    let x = floats(&[1], &[1.0]);
    let operator = Operator::Expand { shape: vec![1 << 56] };
    let graph = graph_of(operator, &[Some(x.clone())]).unwrap();
    assert!(matches!(graph.interpret_f64(&[&x]), Err(Error::OutOfMemory { .. })));
}
