//! Normalisations, softmax and functions of single numbers, beside the graph's interpretation in float64.

use super::*;
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::microkernel::instances::VectorFunctions;
use crate::backend::cpu::rows::{NormRows, Softmax, Unary, UnaryFunction};
use crate::graph::{Array, GraphBuilder, Operator};

pub(super) const U: f64 = f64::EPSILON * 268_435_456.0; // 2^-24

const GUARD: f32 = 7.0;
const GUARDS: usize = 32;

fn instruction_sets() -> impl Iterator<Item = (Isa, &'static VectorFunctions)> {
    Isa::available().map(|isa| (isa, instances::of(isa).f32.vector))
}

/// The result of one node, in float64.
pub(super) fn interpret(operator: Operator, operands: &[Option<Array>]) -> Vec<f64> {
    let mut g = GraphBuilder::new();
    let mut inputs = Vec::new();
    for (index, operand) in operands.iter().enumerate() {
        let of = operand.as_ref().map(Array::tensor_type);
        inputs.push(of.map(|of| g.input(format!("x{index}"), of.element, of.shape.dims()).unwrap()));
    }
    let y = g.node(operator, &inputs).unwrap()[0];
    let graph = g.finish(&[("y", y)]).unwrap();
    let inputs: Vec<_> = operands.iter().flatten().collect();
    graph.interpret_f64(&inputs).unwrap()[0].data::<f64>().unwrap().to_vec()
}

pub(super) fn array(dims: &[usize], data: &[f32]) -> Array {
    Array::new(dims, data.to_vec()).unwrap()
}

#[allow(clippy::cast_possible_truncation, reason = "f32 numbers are wanted")]
pub(super) fn normal(count: usize, seed: usize) -> Vec<f32> {
    let mut random = Random::new(seed as u64);
    (0..count).map(|_| random.normal() as f32).collect()
}

/// What is written to `count` numbers, which `start` fills, between guards.
pub(super) fn guarded(start: &[f32], write: impl FnOnce(*mut f32)) -> Vec<f32> {
    let mut all = vec![GUARD; start.len() + 2 * GUARDS];
    all[GUARDS..GUARDS + start.len()].copy_from_slice(start);
    write(all[GUARDS..].as_mut_ptr());
    let y = all[GUARDS..GUARDS + start.len()].to_vec();
    let guards = all[..GUARDS].iter().chain(&all[GUARDS + start.len()..]);
    assert!(guards.copied().all(|guard| guard.to_bits() == GUARD.to_bits()), "written beyond the result");
    y
}

/// As [`guarded`], beside one that is written in place of the operand.
fn out_of_place_and_in_place(x: &[f32], write: impl Fn(*const f32, *mut f32)) -> Vec<f32> {
    let y = guarded(&vec![f32::NAN; x.len()], |y| write(x.as_ptr(), y));
    let in_place = guarded(x, |y| write(y, y));
    let bits = |of: &[f32]| of.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
    assert!(bits(&y) == bits(&in_place) || y.iter().any(|y| y.is_nan()), "in place the result is another");
    y
}

pub(super) fn is_close(y: f32, expected: f64, bound: f64) -> bool {
    let y = f64::from(y);
    #[allow(clippy::float_cmp, reason = "infinities")]
    let is_same = y == expected || (y.is_nan() && expected.is_nan());
    is_same || (y - expected).abs() <= bound
}

/// Around every number of lanes and of vectors that are folded side by side.
const LENGTHS: [usize; 26] =
    [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 31, 32, 33, 47, 63, 64, 65, 97, 127, 128, 129, 255, 384, 1031];

#[derive(Clone, Copy)]
struct Norm {
    rows: usize,
    cols: usize,
    epsilon: f32,
    subtract_mean: bool,
    has_bias: bool,
    has_residual: bool,
}

#[allow(clippy::cast_precision_loss, reason = "small numbers")]
fn check_norm(norm: Norm, x: &[f32]) {
    let Norm { rows, cols, epsilon, subtract_mean, has_bias, has_residual } = norm;
    let (scale, bias, residual) = (normal(cols, 1), normal(cols, 2), normal(rows * cols, 3));
    let sum: Vec<f32> =
        x.iter().zip(&residual).map(|(x, residual)| if has_residual { x + residual } else { *x }).collect();
    let dims = [rows, cols];
    let mut operands = vec![Some(array(&dims, &sum)), Some(array(&[cols], &scale))];
    let operator = if subtract_mean {
        operands.push(has_bias.then(|| array(&[cols], &bias)));
        Operator::LayerNormalization { axis: -1, epsilon }
    } else {
        Operator::RmsNormalization { axis: -1, epsilon }
    };
    let mut expected = interpret(operator, &operands);
    if has_bias && !subtract_mean {
        expected.iter_mut().zip(bias.iter().cycle()).for_each(|(y, bias)| *y += f64::from(*bias));
    }
    for (isa, functions) in instruction_sets() {
        let y = out_of_place_and_in_place(x, |x, y| {
            let n = NormRows {
                x,
                residual: if has_residual { residual.as_ptr() } else { std::ptr::null() },
                y,
                scale: scale.as_ptr(),
                bias: if has_bias { bias.as_ptr() } else { std::ptr::null() },
                rows,
                cols,
                epsilon,
                subtract_mean,
            };
            // SAFETY: the operands are as long as that says, and the instruction set is here.
            unsafe { (functions.rows.normalize)(&n) };
        });
        let folds = (cols / (4 * functions.lanes) + 8) as f64;
        for row in 0..rows {
            let at = row * cols..(row + 1) * cols;
            let x: Vec<f64> = sum[at.clone()].iter().copied().map(f64::from).collect();
            let mean_of = |f: &dyn Fn(f64) -> f64| x.iter().map(|x| f(*x)).sum::<f64>() / cols as f64;
            let mean = if subtract_mean { mean_of(&|x| x) } else { 0.0 };
            let root = (mean_of(&|x| (x - mean).powi(2)) + f64::from(epsilon)).sqrt();
            let shift = if subtract_mean { (folds + 2.0) * mean_of(&f64::abs) / root } else { 0.0 };
            for col in 0..cols {
                let (scale, q) = (f64::from(scale[col]), (x[col] - mean) / root);
                let (y, expected) = (y[at.start + col], expected[at.start + col]);
                let bound = scale.abs() * U * ((folds / 2.0 + 6.0) * q.abs() + shift)
                    + U * ((scale * q).abs() + expected.abs());
                assert!(
                    is_close(y, expected, bound),
                    "{isa:?}, {cols} columns, bias {has_bias}, residual {has_residual}, mean {subtract_mean}: \
                     row {row}, column {col}: {y}, expected {expected}, {} of the bound",
                    (f64::from(y) - expected).abs() / bound
                );
            }
        }
    }
}

/// Columns around every width of a vector; the faults it finds: a tail whose missing lanes count, a residual or bias
/// that is left out, a mean that is not subtracted.
#[test]
fn normalisations_are_those_of_the_interpreter() {
    let rows = 3;
    for cols in LENGTHS {
        for choice in 0..8 {
            let [subtract_mean, has_bias, has_residual] = [1, 2, 4].map(|bit| choice & bit != 0);
            let norm = Norm { rows, cols, epsilon: 1e-5, subtract_mean, has_bias, has_residual };
            let x: Vec<f32> = normal(rows * cols, cols).iter().map(|x| 3.0 * x + 1.5).collect();
            check_norm(norm, &x);
        }
    }
}

#[test]
fn normalisations_of_large_small_and_shifted_rows_are_as_precise() {
    let (rows, cols) = (1, 200);
    let norm = Norm { rows, cols, epsilon: 1e-5, subtract_mean: true, has_bias: true, has_residual: false };
    for (factor, shift) in [(1e15, 0.0), (1e-15, 0.0), (1.0, 1000.0), (1e-3, -1.0), (0.0, 0.1)] {
        let x: Vec<f32> = normal(cols, 9).iter().map(|x| factor * x + shift).collect();
        check_norm(norm, &x);
        check_norm(Norm { subtract_mean: false, ..norm }, &x);
        if factor > 0.0 {
            check_norm(Norm { epsilon: 0.0, ..norm }, &x);
        }
    }
}

#[test]
fn rows_with_what_is_not_finite_are_normalised_to_nan() {
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 20, 36] {
            let (rows, cols) = (3, 37);
            let mut x = normal(rows * cols, 4);
            x[cols + at] = special;
            let norm =
                Norm { rows, cols, epsilon: 1e-5, subtract_mean: true, has_bias: true, has_residual: false };
            check_norm(norm, &x);
            check_norm(Norm { subtract_mean: false, ..norm }, &x);
        }
    }
}

#[test]
fn nothing_is_normalised_where_there_is_nothing() {
    for (rows, cols) in [(0, 5), (3, 0), (0, 0)] {
        let (epsilon, subtract_mean) = (1e-5, true);
        check_norm(Norm { rows, cols, epsilon, subtract_mean, has_bias: true, has_residual: true }, &[]);
    }
}

#[allow(clippy::cast_precision_loss, reason = "small numbers")]
fn check_softmax([outer, len, inner]: [usize; 3], x: &[f32]) {
    let expected = interpret(Operator::Softmax { axis: 1 }, &[Some(array(&[outer, len, inner], x))]);
    for (isa, functions) in instruction_sets() {
        let y = out_of_place_and_in_place(x, |x, y| {
            // SAFETY: x and y are as long as that says, and the instruction set is here.
            unsafe { (functions.rows.softmax)(&Softmax { x, y, outer, len, inner }) };
        });
        for (at, (y, expected)) in y.iter().zip(&expected).enumerate() {
            let bound = expected * (2f64.powi(-17) + (len + 8) as f64 * U) + 2f64.powi(-126);
            assert!(
                is_close(*y, *expected, bound),
                "{isa:?}, {outer} x {len} x {inner}: {y} at {at}, expected {expected}"
            );
        }
    }
}

/// Rows and columns around every width of a vector; the faults it finds: missing lanes that count in the maximum (all
/// are below 0) or in the sum, columns that meet.
#[test]
fn softmax_is_that_of_the_interpreter_along_any_axis() {
    for len in LENGTHS {
        let x: Vec<f32> = normal(3 * len, len).iter().map(|x| 4.0 * x - 30.0).collect();
        check_softmax([3, len, 1], &x);
        check_softmax([1, 3, len], &x);
        let x: Vec<f32> = normal(2 * 5 * len, len).iter().map(|x| 4.0 * x - 30.0).collect();
        check_softmax([2, 5, len], &x);
        check_softmax([2, len, 5], &x);
        // Columns whose exponentials have no range in common.
        let apart = |(at, x): (usize, &f32)| x + 200.0 * f32::from(u8::try_from(at % len).unwrap_or(u8::MAX));
        check_softmax([2, 5, len], &x.iter().enumerate().map(apart).collect::<Vec<_>>());
    }
    for sizes in [[0, 3, 1], [3, 0, 1], [2, 0, 3], [2, 3, 0], [0, 3, 4]] {
        check_softmax(sizes, &[]);
    }
}

#[test]
fn softmax_of_extreme_numbers_is_that_of_the_interpreter() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let mut rows: Vec<Vec<f32>> = vec![
        vec![1e30; 37],
        vec![-1e30; 37],
        vec![1e-40; 37],
        vec![-inf; 37],
        vec![inf; 37],
        vec![nan; 37],
        (0..37u8).map(|i| if i == 17 { 1e30 } else { -1e30 }).collect(),
        (0..37u8).map(|i| -3.0 * f32::from(i)).collect(),
        (0..37u8).map(|i| if i % 5 == 1 { f32::from(i) } else { -inf }).collect(),
        (0..37u8).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }).collect(),
    ];
    for special in [inf, nan] {
        for at in [0, 16, 36] {
            let mut row = normal(37, at);
            row[at] = special;
            rows.push(row);
        }
    }
    for row in rows {
        check_softmax([1, 37, 1], &row);
        // The same in one column of several.
        let columns: Vec<f32> = row.iter().flat_map(|x| [0.5, *x, -1.0]).collect();
        check_softmax([1, 37, 3], &columns);
    }
}

/// Over all of f32 by steps: the faults it finds are those of special numbers, and a tail.
#[test]
#[allow(clippy::cast_possible_truncation, reason = "every so many bits")]
fn functions_of_numbers_are_within_their_bounds() {
    let specials =
        [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 1e-40, 88.72, 88.73];
    let all: Vec<f32> = (0..1 << 15)
        .map(|i| f32::from_bits(i * 131_071))
        .chain((-11_000i16..9_000).map(|i| f32::from(i) / 100.0))
        .chain(specials)
        .collect();
    let functions = Activation::ALL.map(UnaryFunction::Activation).into_iter().chain([UnaryFunction::Exp]);
    for (function, (isa, kernels)) in functions.flat_map(|f| instruction_sets().map(move |isa| (f, isa))) {
        let apply = |x: &[f32]| {
            out_of_place_and_in_place(x, |x_start, y| {
                let u = Unary { function, x: x_start, y, count: x.len() };
                // SAFETY: x and y are as long as that says, and the instruction set is here.
                unsafe { (kernels.rows.unary)(&u) };
            })
        };
        let y = apply(&all);
        for (x, y) in all.iter().zip(&y) {
            let wide = f64::from(*x);
            let (expected, bound) = match function {
                UnaryFunction::Activation(activation) => {
                    let expected = activation.apply_f64(wide);
                    let least = if activation == Activation::None { 0.0 } else { 2f64.powi(-126) };
                    (expected, activation.error_f32(wide, expected) + least)
                }
                UnaryFunction::Exp => {
                    let expected = libm::exp(wide);
                    // What is beyond f32 is rounded to infinity.
                    let most = f64::from(f32::MAX) * (1.0 + U);
                    let expected = if expected > most { f64::INFINITY } else { expected };
                    (expected, 2f64.powf(-18.8) * expected + 2f64.powi(-150))
                }
            };
            assert!(is_close(*y, expected, bound), "{isa:?}, {function:?} of {x}: {y}, expected {expected}");
        }
        for count in [0, 1, 3, 5, 7, 9, 15, 17, 33] {
            let y = apply(&all[..count]);
            assert_eq!(y.len(), count);
            assert!(y.iter().zip(&all).all(|(y, x)| !y.is_nan() || x.is_nan()), "{isa:?}, {function:?}");
        }
    }
}
