#![allow(clippy::cast_possible_truncation, reason = "test data in f32")]

use std::num::NonZeroU32;

use approx::assert_abs_diff_eq;

use super::reals::Reals;
use super::*;
use crate::description::options::CompileOptions;
use crate::operands::view::AnyView;
use crate::random::Random;
use crate::verify::accuracy::{Bounds, Reference};
use crate::{
    Activation, ElementTypes, Inputs, Layout, MatMul, MatMulBuilder, Operand, Tensor, TensorView,
    TensorViewMut, Weights,
};

/// A batch of `rows` x `cols` in the layout of an operand, gaps filled with NaN.
fn operand(layout: &Layout, random: &mut Random) -> Vec<f32> {
    let mut data = vec![f32::NAN; layout.span()];
    for (_, _, span) in layout.row_spans() {
        data[span].fill_with(|| random.normal() as f32);
    }
    data
}

struct Case {
    product: MatMul,
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    c: Vec<f32>,
}

impl Case {
    fn new(builder: MatMulBuilder, seed: u64) -> Self {
        let product = builder.build().unwrap();
        let mut random = Random::new(seed);
        let a = operand(product.a(), &mut random);
        let b = operand(product.b(), &mut random);
        let bias = (0..product.n()).map(|_| random.normal() as f32).collect();
        let residual = product.residual().map_or_else(Vec::new, |layout| operand(layout, &mut random));
        let mut case = Self { c: vec![f32::NAN; product.c().span()], product, a, b, bias, residual };
        case.compute();
        case
    }

    /// C from the float64 reference.
    fn compute(&mut self) {
        let weights = self.weights();
        let bounds = Bounds::new(&self.product);
        let reference =
            Reference::compute(&self.product, &self.run_inputs(), weights.as_ref(), None, &bounds).unwrap();
        let spans: Vec<_> = self.product.c().row_spans().collect();
        for (row, (_, _, span)) in spans.into_iter().enumerate() {
            let n = self.product.n();
            for (c, &value) in self.c[span].iter_mut().zip(&reference.values()[row * n..][..n]) {
                *c = value as f32;
            }
        }
    }

    fn all_inputs(&self) -> Inputs<'_> {
        self.inputs().b(TensorView::with_layout(&self.b, *self.product.b()).unwrap())
    }

    fn inputs(&self) -> Inputs<'_> {
        let mut inputs = Inputs::new(TensorView::with_layout(&self.a, *self.product.a()).unwrap());
        if self.product.has_bias() {
            inputs = inputs.bias(&self.bias);
        }
        if let Some(layout) = self.product.residual() {
            inputs = inputs.residual(TensorView::with_layout(&self.residual, *layout).unwrap());
        }
        inputs
    }

    /// The operands of a run.
    fn run_inputs(&self) -> Inputs<'_> {
        if self.product.constant_b() { self.inputs() } else { self.all_inputs() }
    }

    fn weights(&self) -> Option<Weights> {
        let view = TensorView::with_layout(&self.b, *self.product.b()).unwrap();
        self.product.constant_b().then(|| Weights::new(view).unwrap())
    }

    fn checker(&self, check: &SelfCheck) -> ResultChecker {
        let weights = self.weights();
        ResultChecker::of_parts(&self.product, weights.as_ref(), check, &CompileOptions::default()).unwrap()
    }

    fn check(&self, check: &SelfCheck) -> Option<WrongElement> {
        let c = TensorView::with_layout(&self.c, *self.product.c()).unwrap();
        self.checker(check).check(self.run_inputs(), c).unwrap()
    }

    /// The place of an element of C in memory.
    fn at(&self, item: usize, row: usize, col: usize) -> usize {
        self.product.c().item_offset(item) + row * self.product.c().leading_dimension() + col
    }
}

/// Every kind of layout and epilogue that is linear, and some that are not.
fn builders() -> Vec<MatMulBuilder> {
    let plain = MatMul::builder(13, 21, 34);
    vec![
        plain.clone(),
        MatMul::builder(1, 1, 1),
        MatMul::builder(1, 40, 300),
        MatMul::builder(40, 1, 7),
        plain.clone().alpha(-0.5).bias(true).residual(true),
        plain.clone().transpose_a(true),
        plain.clone().transpose_b(true),
        plain.clone().transpose_a(true).transpose_b(true).constant(true),
        plain.clone().constant(true).batch(3),
        plain.clone().constant(true).batch(3).batch_stride(Operand::B, 0),
        plain.clone().batch(3).batch_stride(Operand::B, 0).residual(true),
        plain.clone().batch(2).batch_stride(Operand::A, 0).transpose_b(true),
        plain
            .clone()
            .batch(2)
            .leading_dimension(Operand::A, 37)
            .leading_dimension(Operand::B, 29)
            .leading_dimension(Operand::C, 23)
            .leading_dimension(Operand::Residual, 25)
            .residual(true),
        plain.clone().activation(Activation::Relu).bias(true),
        plain.batch(2).transpose_b(true).activation(Activation::Gelu).residual(true).constant(true),
    ]
}

/// A check of rows that draws so many that it draws all.
const ALL_ROWS: SelfCheck = SelfCheck::every_run().wrong_share(1e-4).failure_probability(1e-3);

#[test]
fn right_results_pass_and_wrong_elements_are_named() {
    for (seed, builder) in builders().into_iter().enumerate() {
        let mut case = Case::new(builder, seed as u64);
        assert_eq!(case.check(&ALL_ROWS), None, "{}", case.product);
        let (items, m, n) = (case.product.batch(), case.product.m(), case.product.n());
        let mut random = Random::new(seed as u64);
        for _ in 0..10 {
            let (item, row, col) = (random.below(items), random.below(m), random.below(n));
            let at = case.at(item, row, col);
            let right = case.c[at];
            case.c[at] = right + 0.01 + right.abs() * 0.01;
            let found = case.check(&ALL_ROWS).unwrap_or_else(|| panic!("{}: missed", case.product));
            assert_eq!((found.item, found.row, found.col), (item, row, col), "{}", case.product);
            assert_eq!(found.got, f64::from(case.c[at]));
            assert!((found.expected - f64::from(right)).abs() <= found.bound && found.ratio() > 1.0);
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                case.c[at] = wrong;
                let found = case.check(&ALL_ROWS).unwrap_or_else(|| panic!("{}: missed", case.product));
                assert_eq!(
                    (found.item, found.row, found.col),
                    (item, row, col),
                    "{wrong} in {}",
                    case.product
                );
                assert_eq!(found.ratio(), f64::INFINITY);
            }
            case.c[at] = right;
        }
        assert_eq!(case.check(&ALL_ROWS), None);
    }
}

#[test]
fn a_result_is_computed_again_in_all_of_c_and_in_no_gap() {
    for builder in builders() {
        let mut case = Case::new(builder, 4);
        let gaps: Vec<bool> = case.c.iter().map(|x| x.is_nan()).collect();
        let mut c: Vec<f32> = gaps.iter().map(|&gap| if gap { f32::NAN } else { 1e30 }).collect();
        let view = TensorViewMut::with_layout(&mut c, *case.product.c()).unwrap();
        case.checker(&SelfCheck::every_run()).recompute_all(&case.run_inputs(), &mut view.erased());
        assert!(c.iter().map(|x| x.is_nan()).eq(gaps), "{}", case.product);
        case.c = c;
        assert_eq!(case.check(&ALL_ROWS), None, "{}", case.product);
    }
}

#[test]
fn zero_dimensions_have_nothing_wrong_or_the_bias() {
    for (m, n, k) in [(0, 3, 4), (3, 0, 4), (3, 4, 0)] {
        for constant in [false, true] {
            let mut case = Case::new(MatMul::builder(m, n, k).bias(true).constant(constant), 1);
            assert_eq!(case.check(&SelfCheck::every_run()), None);
            if let Some(c) = case.c.first_mut() {
                *c += 1.0;
                assert!(case.check(&SelfCheck::every_run()).is_some());
            }
        }
    }
}

/// A walk over so many items would not end.
#[test]
fn items_without_elements_are_not_walked() {
    const ITEMS: usize = 1 << 40;
    for (m, n) in [(0, 3), (3, 0)] {
        for activation in [Activation::None, Activation::Relu] {
            let builder = MatMul::builder(m, n, 1).batch(ITEMS).activation(activation);
            let builder = builder.batch_stride(Operand::A, 0).batch_stride(Operand::B, 0);
            let (a, b) = (Tensor::filled(m, 1, 1f32).unwrap(), Tensor::filled(1, n, 1f32).unwrap());
            let product = builder.build().unwrap();
            let a = TensorView::with_layout(a.data(), *product.a()).unwrap();
            let b = TensorView::with_layout(b.data(), *product.b()).unwrap();
            let c = Tensor::<f32>::zeros_batched(ITEMS, m, n).unwrap();
            let mut checker = ResultChecker::new(&product, &SelfCheck::every_run()).unwrap();
            assert_eq!(checker.check(Inputs::new(a).b(b), &c).unwrap(), None);
        }
    }
}

#[test]
fn errors_that_cancel_in_a_sum_are_found() {
    let mut case = Case::new(MatMul::builder(13, 21, 34), 1);
    case.c[3] += 1.0;
    case.c[4] -= 1.0;
    assert_eq!(case.check(&SelfCheck::every_run()).map(|found| found.row), Some(0));
    for numbers in Integers::all() {
        let mut c = numbers.c.clone();
        c.data_mut()[Integers::N + 3] += 1.0;
        c.data_mut()[Integers::N + 4] -= 1.0;
        let check = SelfCheck::every_run();
        let options = CompileOptions::default();
        let checker = ResultChecker::of_parts(&numbers.product, numbers.weights.as_ref(), &check, &options);
        let found = checker.unwrap().check(numbers.inputs(), &c).unwrap();
        assert_eq!(found.map(|found| found.row), Some(1), "{}", numbers.product);
    }
}

#[test]
fn an_infinity_is_right_only_where_a_sum_overflows() {
    let product = MatMul::new(3, 2, 2).unwrap();
    let a = Tensor::from_vec(vec![1e30f32, 1.0, 2.0, 3.0, 1.0, 1.0], 3, 2).unwrap();
    let b = Tensor::from_vec(vec![1e30f32, 1.0, 1.0, 1.0], 2, 2).unwrap();
    let mut c = Tensor::from_vec(vec![f32::INFINITY, 1e30, 2e30, 5.0, 1e30, 2.0], 3, 2).unwrap();
    let inputs = Inputs::new(&a).b(&b);
    let mut checker = ResultChecker::new(&product, &SelfCheck::every_run()).unwrap();
    for _ in 0..20 {
        assert_eq!(checker.check(inputs, &c).unwrap(), None);
    }
    for wrong in [f32::INFINITY, f32::NAN] {
        c.data_mut()[5] = wrong;
        // Of the rows with an infinity one is drawn.
        let found = (0..200).find_map(|_| checker.check(inputs, &c).unwrap()).expect("a wrong element");
        assert_eq!((found.row, found.col, found.ratio()), (2, 1, f64::INFINITY));
    }
}

#[test]
fn fewer_rows_than_compiled_for_are_verified() {
    let product = MatMul::builder(9, 8, 7).variable_m(true).build().unwrap();
    let a = Tensor::random_normal_f32(4, 7, 1.0, 1).unwrap();
    let b = Tensor::random_normal_f32(7, 8, 1.0, 2).unwrap();
    let inputs = Inputs::new(&a).b(&b);
    let reference = Reference::new(&product, inputs).unwrap();
    let mut c = Tensor::from_fn(4, 8, |i, j| reference.values()[i * 8 + j] as f32).unwrap();
    let mut checker = ResultChecker::new(&product, &SelfCheck::every_run()).unwrap();
    assert_eq!(checker.check(inputs, &c).unwrap(), None);
    c.data_mut()[31] += 1.0;
    assert_eq!(checker.check(inputs, &c).unwrap().map(|found| (found.row, found.col)), Some((3, 7)));
}

#[test]
fn nan_and_infinity_in_the_inputs_are_no_fault() {
    for constant in [false, true] {
        for transposed in [false, true] {
            let builder = || {
                MatMul::builder(12, 20, 16)
                    .transpose_a(transposed)
                    .transpose_b(transposed)
                    .constant(constant)
                    .bias(true)
                    .residual(true)
            };
            for (seed, value) in [f32::NAN, f32::INFINITY, 3e38].into_iter().enumerate() {
                for operand in 0..4 {
                    let mut case = Case::new(builder(), seed as u64);
                    let data = [&mut case.a, &mut case.b, &mut case.bias, &mut case.residual];
                    let into = data.into_iter().nth(operand).unwrap();
                    into[7] = value;
                    case.compute();
                    for _ in 0..5 {
                        assert_eq!(case.check(&SelfCheck::every_run()), None, "{value} in operand {operand}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_fault_beside_nan_in_the_inputs_is_found() {
    for constant in [false, true] {
        let mut case = Case::new(MatMul::builder(12, 20, 16).constant(constant), 1);
        case.a[3 * 16 + 2] = f32::NAN;
        case.b[5 * 20 + 4] = f32::INFINITY;
        case.compute();
        assert_eq!(case.check(&SelfCheck::every_run()), None);
        let at = case.at(0, 7, 9);
        for wrong in [case.c[at] + 1.0, f32::NAN, f32::INFINITY] {
            let right = std::mem::replace(&mut case.c[at], wrong);
            let found = case.check(&SelfCheck::every_run()).map(|found| (found.row, found.col));
            assert_eq!(found, Some((7, 9)), "{wrong}");
            case.c[at] = right;
        }
        // The row of NaN is the one that is drawn.
        case.c[3 * 20..4 * 20].fill(1.0);
        assert_eq!(case.check(&SelfCheck::every_run()).map(|found| found.row), Some(3));
    }
}

#[cfg(feature = "half")]
#[test]
fn narrow_types_have_their_own_bound() {
    use crate::ElementType;
    use half::{bf16, f16};
    let types = ElementTypes { output: ElementType::F16, ..ElementTypes::F16 };
    for transposed in [false, true] {
        let product = MatMul::builder(33, 47, 65)
            .types(types)
            .transpose_a(transposed)
            .transpose_b(transposed)
            .build()
            .unwrap();
        let mut random = Random::new(1);
        let mut draw =
            |count| -> Vec<f16> { (0..count).map(|_| f16::from_f64_const(random.normal())).collect() };
        let (a, b) = (draw(33 * 65), draw(65 * 47));
        let inputs = Inputs::new(TensorView::with_layout(&a, *product.a()).unwrap())
            .b(TensorView::with_layout(&b, *product.b()).unwrap());
        let reference = Reference::new(&product, inputs).unwrap();
        let mut c: Vec<f16> = reference.values().iter().map(|&x| f16::from_f64_const(x)).collect();
        let mut checker = ResultChecker::new(&product, &SelfCheck::every_run()).unwrap();
        let mut check = |c: &[f16]| checker.check(inputs, TensorView::new(c, 33, 47).unwrap()).unwrap();
        assert_eq!(check(&c), None);
        c[100] = f16::from_f64_const(c[100].to_f64() + 10.0);
        assert_eq!(check(&c).map(|found| found.row), Some(2));
    }
    let product = MatMul::builder(8, 9, 10).types(ElementTypes::BF16).build().unwrap();
    let (a, b) = (vec![bf16::from_f32(1.5); 80], vec![bf16::from_f32(-0.5); 90]);
    let inputs = Inputs::new(TensorView::new(&a, 8, 10).unwrap()).b(TensorView::new(&b, 10, 9).unwrap());
    let mut c = Tensor::filled(8, 9, -7.5f32).unwrap();
    let mut checker = ResultChecker::new(&product, &SelfCheck::every_run()).unwrap();
    assert_eq!(checker.check(inputs, &c).unwrap(), None);
    // Held to f32's bound, since the sums are in f32.
    c.data_mut()[40] += 1e-3;
    assert_eq!(checker.check(inputs, &c).unwrap().map(|found| (found.row, found.col)), Some((4, 4)));
}

/// Rows 0 and 4 are beyond the range of f16, in floats and with integer weights.
#[cfg(feature = "half")]
#[test]
fn a_result_beyond_its_type_s_range_hides_no_fault_elsewhere() {
    use crate::ElementType;
    use half::f16;
    let floats = ElementTypes { output: ElementType::F16, ..ElementTypes::F32 };
    for types in [floats, ElementTypes { b: ElementType::I8, ..floats }] {
        let product = MatMul::builder(5, 6, 2).types(types).build().unwrap();
        let a: Vec<f32> = [4e4, 1.0, 2.0, 3.0, -5e4].into_iter().flat_map(|x| [x, x]).collect();
        let a = Tensor::from_vec(a, 5, 2).unwrap();
        let (floats, bytes) = (Tensor::filled(2, 6, 1f32).unwrap(), Tensor::filled(2, 6, 1i8).unwrap());
        let inputs = if types.b.is_float() { Inputs::new(&a).b(&floats) } else { Inputs::new(&a).b(&bytes) };
        let right = Tensor::from_fn(5, 6, |row, _| f16::from_f32_const(2.0 * a.data()[2 * row])).unwrap();
        assert!(right.data()[0] == f16::INFINITY && right.data()[24] == f16::NEG_INFINITY);
        let mut checker = ResultChecker::new(&product, &SelfCheck::every_run()).unwrap();
        for _ in 0..20 {
            assert_eq!(checker.check(inputs, &right).unwrap(), None);
            let mut c = right.clone();
            c.data_mut()[15] = f16::from_f32_const(5.0);
            let found = checker.check(inputs, &c).unwrap().expect("a wrong element");
            assert_eq!((found.row, found.col, found.expected, found.got), (2, 3, 4.0, 5.0));
            // Of the rows with an infinity one is drawn.
            c.data_mut()[15] = f16::INFINITY;
            let found = (0..200).find_map(|_| checker.check(inputs, &c).unwrap());
            assert_eq!(found.map(|found| (found.row, found.col)), Some((2, 3)));
        }
    }
}

#[test]
fn long_f16_sums_are_held_to_the_sum_of_their_magnitudes() {
    let f16_sums = ElementTypes::uniform(crate::ElementType::F16);
    let product = MatMul::builder(1, 1, 4096).types(f16_sums).build().unwrap();
    let bounds = Bounds::new(&product);
    assert_abs_diff_eq!(bounds.gamma_k, 2.0 * 33.0 / 32.0, epsilon = 1e-12);
    let (_, bound) = bounds.element(0.0, 1.0, 0.0, 0.0);
    assert!(bound > 2.0 && bound < 2.5, "{bound}");
    ResultChecker::new(&product, &SelfCheck::every_run()).unwrap();
}

#[test]
fn scales_of_the_description_count() {
    let quantization =
        crate::Quantization { a: crate::QuantA::Static { scale: 0.5, zero_point: 0 }, ..Default::default() };
    let types = ElementTypes { output: crate::ElementType::F32, ..ElementTypes::INT8 };
    let product = MatMul::builder(2, 2, 2).types(types).quantization(quantization).build().unwrap();
    let mut checker = ResultChecker::new(&product, &SelfCheck::every_run()).unwrap();
    let ones = [1i8; 4];
    let view = TensorView::new(&ones, 2, 2).unwrap();
    let inputs = Inputs::new(view).b(view);
    assert_eq!(checker.check(inputs, &Tensor::filled(2, 2, 1f32).unwrap()).unwrap(), None);
    let found = checker.check(inputs, &Tensor::filled(2, 2, 2f32).unwrap()).unwrap();
    assert_eq!(found.map(|found| found.expected), Some(1.0));
}

#[test]
fn what_has_no_error_bound_is_refused() {
    let refused = |builder: MatMulBuilder, check: &SelfCheck| {
        let result = ResultChecker::new(&builder.build().unwrap(), check);
        assert!(matches!(result, Err(Error::Description { .. })), "{result:?}");
    };
    let options = crate::CompileOptions { fast_math: true, ..Default::default() };
    let product = MatMul::new(2, 2, 2).unwrap();
    let result = ResultChecker::with_options(&product, &SelfCheck::every_run(), &options);
    assert!(matches!(result, Err(Error::Description { .. })), "{result:?}");
    for probability in [0.0, 1.0, -1.0, f64::NAN] {
        refused(MatMul::builder(2, 2, 2), &SelfCheck::every_run().failure_probability(probability));
    }
    for share in [0.0, 1.5, f64::NAN] {
        refused(MatMul::builder(2, 2, 2), &SelfCheck::every_run().wrong_share(share));
    }
}

#[test]
fn truncated_operands_are_right_only_where_they_are_allowed() {
    let case = Case::new(MatMul::builder(16, 16, 64), 1);
    let truncate =
        |data: &[f32]| -> Vec<f32> { data.iter().map(|x| f32::from_bits(x.to_bits() & !0x1FFF)).collect() };
    let mut truncated = Case {
        a: truncate(&case.a),
        b: truncate(&case.b),
        c: case.c.clone(),
        ..Case::new(MatMul::builder(16, 16, 64), 1)
    };
    truncated.compute();
    let c = TensorView::new(&truncated.c, 16, 16).unwrap();
    let found = |reduced_precision| {
        let options = crate::CompileOptions { reduced_precision, ..Default::default() };
        let prepared = Prepared::new(&case.product, None, &SelfCheck::every_run(), &options).unwrap();
        ResultChecker::from_prepared(prepared.into()).unwrap().check(case.all_inputs(), c).unwrap()
    };
    assert_eq!(found(true), None);
    assert!(found(false).is_some());
}

#[test]
fn probabilities_become_vectors_and_rows() {
    let check = SelfCheck::every_run();
    assert_eq!((check.vectors(), check.rows()), (2, 2));
    assert_eq!(check.failure_probability(1e-3).vectors(), 10);
    assert_eq!(check.failure_probability(1e-3).wrong_share(0.1).rows(), 66);
    assert_eq!(check.wrong_share(1.0).rows(), 1);
    assert_eq!(SelfCheck::one_in(NonZeroU32::MIN).schedule, CheckSchedule::OneIn(NonZeroU32::MIN));
}

/// A batch of two products with integers among their operands, in numbers that f32 holds exactly, and what
/// they stand for.
pub(super) struct Integers {
    pub(super) product: MatMul,
    pub(super) reals: Reals,
    pub(super) bounds: Bounds,
    weights: Option<Weights>,
    a: Vec<i8>,
    /// The same for a float A.
    pub(super) a_floats: Vec<f32>,
    b: Vec<i8>,
    scales_b: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    pub(super) c: Tensor<f32>,
}

/// The schemes of [`Integers`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scheme {
    /// A float A by weights with a scale for every two of them.
    Weights,
    /// Integers by integers with a scale for each column.
    Columns,
    /// Integers by integers that come with every run.
    EveryRun,
}

impl Integers {
    pub(super) const ITEMS: usize = 2;
    pub(super) const M: usize = 3;
    pub(super) const N: usize = 11;
    pub(super) const K: usize = 5;
    pub(super) const ALPHA: f64 = -0.5;
    const ZERO_A: i32 = 3;
    const ZERO_B: i32 = -2;
    const SCALE_A: f32 = 0.5;
    const SCALE_B: f32 = 0.25;

    /// All schemes, with B as it is and transposed.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [Scheme::Weights, Scheme::Columns, Scheme::EveryRun]
            .into_iter()
            .flat_map(|scheme| [false, true].map(|transposed| Self::new(scheme, transposed)))
    }

    pub(super) fn new(scheme: Scheme, transposed: bool) -> Self {
        use crate::{ElementType, QuantA, QuantB, Quantization};
        let (types, a, b) = match scheme {
            Scheme::Weights => (
                ElementTypes { b: ElementType::I8, ..ElementTypes::F32 },
                QuantA::None,
                QuantB::PerGroup { group_size: 2, zero_point: Self::ZERO_B },
            ),
            Scheme::Columns => (
                ElementTypes::INT8,
                QuantA::Static { scale: Self::SCALE_A, zero_point: Self::ZERO_A },
                QuantB::PerColumn { zero_point: Self::ZERO_B },
            ),
            Scheme::EveryRun => (
                ElementTypes::INT8,
                QuantA::Static { scale: Self::SCALE_A, zero_point: Self::ZERO_A },
                QuantB::Static { scale: Self::SCALE_B, zero_point: Self::ZERO_B },
            ),
        };
        let b_scheme = b;
        let product = MatMul::builder(Self::M, Self::N, Self::K)
            .batch(Self::ITEMS)
            .transpose_b(transposed)
            .constant(scheme != Scheme::EveryRun)
            .alpha(-0.5)
            .bias(true)
            .residual(true)
            .types(types)
            .quantization(Quantization { a, b, ..Quantization::default() })
            .build()
            .unwrap();
        let mut random = Random::new(7);
        let mut draw =
            |count: usize| -> Vec<i8> { (0..count).map(|_| random.below(41) as i8 - 20).collect() };
        let (a, b) = (draw(Self::ITEMS * Self::M * Self::K), draw(Self::ITEMS * Self::K * Self::N));
        let halves = |numbers: Vec<i8>| numbers.into_iter().map(|x| f32::from(x) * 0.5).collect::<Vec<_>>();
        let (bias, residual) = (halves(draw(Self::N)), halves(draw(Self::ITEMS * Self::M * Self::N)));
        let groups = if scheme == Scheme::Weights { Self::K.div_ceil(2) } else { 1 };
        let scales_b =
            (0..Self::ITEMS * groups * Self::N).map(|_| [0.25, 0.5, 1.0, 2.0][random.below(4)]).collect();
        let mut numbers = Self {
            reals: Reals::new(&product, None),
            bounds: Bounds::new(&product),
            weights: None,
            a_floats: a.iter().map(|&x| f32::from(x)).collect(),
            a,
            b,
            scales_b,
            bias,
            residual,
            c: Tensor::zeros_batched(Self::ITEMS, Self::M, Self::N).unwrap(),
            product,
        };
        if scheme != Scheme::EveryRun {
            let layout = Layout::packed(Self::ITEMS, groups, Self::N).unwrap();
            let scales = TensorView::with_layout(&numbers.scales_b, layout).unwrap();
            let mut weights = Weights::new(numbers.b()).unwrap();
            if transposed {
                weights = weights.transposed().unwrap();
            }
            let weights = weights.with_scales(b_scheme, scales).unwrap();
            numbers.reals = Reals::new(&numbers.product, Some(&weights));
            numbers.weights = Some(weights);
        }
        for item in 0..Self::ITEMS {
            for row in 0..Self::M {
                for col in 0..Self::N {
                    let sum: f64 = (0..Self::K)
                        .map(|p| numbers.real_a(item, row, p) * numbers.real_b(item, p, col))
                        .sum();
                    let right = Self::ALPHA * sum + numbers.bias(col) + numbers.residual(item, row, col);
                    numbers.c.data_mut()[(item * Self::M + row) * Self::N + col] = right as f32;
                }
            }
        }
        numbers
    }

    pub(super) fn b(&self) -> AnyView<'_> {
        TensorView::with_layout(&self.b, *self.product.b()).unwrap().erased()
    }

    pub(super) fn constant_b(&self) -> Option<AnyView<'_>> {
        self.weights.as_ref().map(|_| self.b())
    }

    pub(super) fn inputs(&self) -> Inputs<'_> {
        let a = *self.product.a();
        let inputs = if self.reals.sums_integers {
            Inputs::new(TensorView::with_layout(&self.a, a).unwrap())
        } else {
            Inputs::new(TensorView::with_layout(&self.a_floats, a).unwrap())
        };
        let residual = TensorView::with_layout(&self.residual, *self.product.residual().unwrap()).unwrap();
        let inputs = inputs.bias(&self.bias).residual(residual);
        if self.weights.is_some() { inputs } else { inputs.b(self.b()) }
    }

    /// What an element of A stands for.
    pub(super) fn real_a(&self, item: usize, row: usize, p: usize) -> f64 {
        let a = f64::from(self.a[(item * Self::M + row) * Self::K + p]);
        if self.reals.sums_integers { 0.5 * (a - f64::from(Self::ZERO_A)) } else { a }
    }

    fn stored_b(&self, item: usize, p: usize, col: usize) -> f64 {
        let at = if self.product.transpose_b() { col * Self::K + p } else { p * Self::N + col };
        self.b[item * Self::K * Self::N + at].into()
    }

    fn scale_b(&self, item: usize, p: usize, col: usize) -> f64 {
        if self.weights.is_none() {
            return Self::SCALE_B.into();
        }
        let groups = self.scales_b.len() / Self::ITEMS / Self::N;
        let group = if groups == 1 { 0 } else { p / 2 };
        self.scales_b[(item * groups + group) * Self::N + col].into()
    }

    /// What an element of op(B) stands for.
    pub(super) fn real_b(&self, item: usize, p: usize, col: usize) -> f64 {
        self.scale_b(item, p, col) * (self.stored_b(item, p, col) - f64::from(Self::ZERO_B))
    }

    /// What it counts in the error bound.
    pub(super) fn size_b(&self, item: usize, p: usize, col: usize) -> f64 {
        if self.reals.sums_integers {
            return self.real_b(item, p, col).abs();
        }
        self.scale_b(item, p, col) * (self.stored_b(item, p, col).abs() + f64::from(Self::ZERO_B).abs())
    }

    pub(super) fn bias(&self, col: usize) -> f64 {
        self.bias[col].into()
    }

    pub(super) fn residual(&self, item: usize, row: usize, col: usize) -> f64 {
        self.residual[(item * Self::M + row) * Self::N + col].into()
    }
}

#[test]
fn an_error_is_a_multiple_of_its_bound() {
    let wrong = WrongElement { item: 0, row: 0, col: 0, expected: 2.0, got: 5.0, bound: 1.5 };
    assert_eq!(wrong.ratio(), 2.0);
    assert_eq!(WrongElement { got: f64::NAN, ..wrong }.ratio(), f64::INFINITY);
}

#[test]
fn the_key_of_a_check_is_all_that_it_does() {
    let check = SelfCheck::every_run();
    let others = [
        SelfCheck::first_run(),
        check.on_mismatch(OnMismatch::RerunOnCpu),
        check.failure_probability(1e-5),
        check.wrong_share(0.3),
    ];
    assert_eq!(check.key(), SelfCheck::every_run().key());
    assert!(others.iter().all(|other| other.key() != check.key()));
}
