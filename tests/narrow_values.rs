//! Values that narrow types must take exactly, on every kernel: ties, saturation, rows that are quantised
//! on the way, the ends of the integers.

mod support;

use ane_matmul::ElementType::{Bf16, F16, F32, I8, I32, U8};
use ane_matmul::{
    AnyView, AnyViewMut, BackendId, CompileOptions, Compiled, ElementType, ElementTypes, Inputs, MatMul,
    QuantA, QuantB, QuantOutput, Quantization, Tensor, TensorView, TensorViewMut, Weights,
};
use ane_matmul_conformance::compile_on_cpu;
use half::{bf16, f16};
use support::on_every_kernel_of_narrow_types;

/// A product of one column of A by one row of B: `a` are the rows' numbers, B is 1 in every column.
struct OuterProduct {
    types: ElementTypes,
    quantization: Quantization,
    constant_b: bool,
}

/// Columns of B: more than any vector has, and not a whole number of them.
const N: usize = 37;

impl OuterProduct {
    /// What each row's number becomes; all columns must agree.
    fn run<'a>(&self, a: impl Into<AnyView<'a>>, rows: usize) -> Vec<f64> {
        let scheme = self.quantization.b;
        let product = MatMul::builder(rows, N, 1).types(self.types).quantization(self.quantization);
        let one = Tensor::filled(1, N, 1i8).expect("a tensor");
        let compiled = if self.constant_b {
            let mut weights = Weights::new(&one).expect("weights");
            if scheme != QuantB::None {
                weights = weights.with_scales(scheme, &[1f32; N]).expect("scales");
            }
            product.with_weights(&weights).and_then(|product| product.compile(&BackendId::CPU))
        } else {
            product.build().and_then(|product| product.compile(&BackendId::CPU))
        };
        let compiled = compiled.expect("it compiles");
        let mut inputs = Inputs::new(a);
        if !self.constant_b {
            inputs = inputs.b(&one);
        }
        fn run<T: ane_matmul::Element>(compiled: &Compiled, inputs: &Inputs<'_>, rows: usize) -> Vec<f64>
        where
            for<'c> TensorViewMut<'c, T>: Into<AnyViewMut<'c>>,
        {
            let mut c = vec![T::default(); rows * N];
            let view = TensorViewMut::new(&mut c, rows, N).expect("C");
            compiled.executor().expect("an executor").run(inputs, view).expect("it runs");
            let same = |row: &[T]| row.iter().all(|x| x.to_f64().to_bits() == row[0].to_f64().to_bits());
            assert!(c.chunks(N).all(same), "{c:?}");
            c.chunks(N).map(|row| row[0].to_f64()).collect()
        }
        match self.types.output {
            F32 => run::<f32>(&compiled, &inputs, rows),
            F16 => run::<f16>(&compiled, &inputs, rows),
            Bf16 => run::<bf16>(&compiled, &inputs, rows),
            I8 => run::<i8>(&compiled, &inputs, rows),
            U8 => run::<u8>(&compiled, &inputs, rows),
            other => panic!("{other}"),
        }
    }
}

/// A float A by 8-bit weights of 1, with B constant and not.
fn weight_only(output: ElementType, scheme: QuantOutput) -> [OuterProduct; 2] {
    [true, false].map(|constant_b| OuterProduct {
        types: ElementTypes { b: I8, output, ..ElementTypes::F32 },
        quantization: Quantization {
            b: if constant_b { QuantB::PerColumn { zero_point: 0 } } else { QuantB::None },
            output: scheme,
            ..Quantization::default()
        },
        constant_b,
    })
}

fn compile(product: &MatMul, b: Option<AnyView<'_>>) -> Compiled {
    compile_on_cpu(product, b, &CompileOptions::default()).expect("it compiles")
}

fn column(a: &[f32]) -> TensorView<'_, f32> {
    TensorView::new(a, a.len(), 1).expect("a column")
}

/// Rounded to nearest, ties to even, and cut off at the ends.
const INTEGERS: [(f32, i32); 16] = [
    (0.5, 0),
    (1.5, 2),
    (2.5, 2),
    (-0.5, 0),
    (-1.5, -2),
    (-2.5, -2),
    (2.499, 2),
    (2.501, 3),
    (-3.5, -4),
    (126.5, 126),
    (1e9, i32::MAX),
    (-1e9, i32::MIN),
    (f32::INFINITY, i32::MAX),
    (f32::NEG_INFINITY, i32::MIN),
    (f32::NAN, 0),
    (0.0, 0),
];

fn outputs() {
    for (output, zero_point, (low, high)) in [
        (I8, 0, (-128, 127)),
        (I8, -128, (-128, 127)),
        (I8, 127, (-128, 127)),
        (U8, 0, (0, 255)),
        (U8, 255, (0, 255)),
        (U8, 100, (0, 255)),
    ] {
        // A scale that changes nothing but the exponent.
        for scale in [1f32, 0.25] {
            let a: Vec<f32> = INTEGERS.iter().map(|(x, _)| x * scale).collect();
            let expected: Vec<f64> = INTEGERS
                .iter()
                .map(|(_, integer)| f64::from(integer.saturating_add(zero_point).clamp(low, high)))
                .collect();
            for product in weight_only(output, QuantOutput::Static { scale, zero_point }) {
                assert_eq!(product.run(column(&a), a.len()), expected, "{output}, zero point {zero_point}");
            }
        }
    }
    // Between 1 and 2 neighbours lie 2^-10 apart in f16 and 2^-7 in bf16.
    for (output, step) in [(F16, 2f64.powi(-10)), (Bf16, 2f64.powi(-7))] {
        #[allow(clippy::cast_possible_truncation)]
        let a: Vec<f32> =
            [0.5, 1.5, 2.5, 3.5, 0.4999, 0.5001].iter().map(|steps| (1.0 + steps * step) as f32).collect();
        let expected = [0.0, 2.0, 2.0, 4.0, 0.0, 1.0].map(|steps| 1.0 + steps * step);
        for product in weight_only(output, QuantOutput::None) {
            assert_eq!(product.run(column(&a), a.len()), expected, "{output}");
        }
    }
}

/// Sums of integers, halved by A's scale.
fn integer_outputs() {
    let a: [i8; 8] = [1, 3, 5, -1, -3, -5, 127, -128];
    for constant_b in [true, false] {
        for (output, expected) in [
            (I8, [0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 64.0, -64.0]),
            (F32, [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5, -64.0]),
            (Bf16, [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5, -64.0]),
        ] {
            let product = OuterProduct {
                types: ElementTypes { output, ..ElementTypes::INT8 },
                quantization: Quantization {
                    a: QuantA::Static { scale: 0.5, zero_point: 0 },
                    ..Quantization::default()
                },
                constant_b,
            };
            let got = product.run(TensorView::new(&a, a.len(), 1).expect("a column"), a.len());
            assert_eq!(got, expected, "{output}, constant: {constant_b}");
        }
    }
}

/// Rows of a float A: B is the identity, so that C shows their integers times their scale.
fn quantized_rows() {
    const K: usize = 9;
    let tiny = f32::from_bits(1);
    let rows: [([f32; K], [f32; K]); 6] = [
        // The scale is 1.
        (
            [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5, 0.0],
            [127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 64.0, 0.0],
        ),
        // The largest magnitude is a negative number's; the scale is 2.
        (
            [-254.0, 1.0, 3.0, 5.0, -1.0, -3.0, -5.0, 200.5, 253.0],
            [-254.0, 0.0, 4.0, 4.0, 0.0, -4.0, -4.0, 200.0, 252.0],
        ),
        ([0.0; K], [0.0; K]),
        // The scale does not fall below the smallest normal number.
        ([tiny, -tiny, 0.0, -0.0, tiny, tiny, 1e-40, -1e-40, 0.0], [0.0; K]),
        ([1.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [f32::NAN; K]),
        ([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY], [f32::NAN; K]),
    ];
    let identity = Tensor::from_fn(K, K, |row, col| i8::from(row == col)).expect("a tensor");
    for (constant_b, transpose_a) in [(true, false), (true, true), (false, false), (false, true)] {
        let product = MatMul::builder(rows.len(), K, K)
            .types(ElementTypes { a: F32, ..ElementTypes::INT8 })
            .quantization(Quantization { a: QuantA::DynamicPerRow, ..Quantization::default() })
            .transpose_a(transpose_a)
            .build()
            .expect("a valid description");
        let a = Tensor::from_fn(rows.len(), K, |row, col| rows[row].0[col]).expect("a tensor");
        let a = if transpose_a { a.transposed().expect("a tensor") } else { a };
        let compiled = compile(&product, constant_b.then(|| identity.view().into()));
        let mut c = Tensor::filled(rows.len(), K, 7f32).expect("a tensor");
        let inputs = Inputs::new(&a);
        let inputs = if constant_b { inputs } else { inputs.b(&identity) };
        compiled.executor().expect("an executor").run(inputs, &mut c).expect("it runs");
        for (got, (row, expected)) in c.data().chunks(K).zip(&rows) {
            let same = got.iter().zip(expected).all(|(x, y)| x == y || (x.is_nan() && y.is_nan()));
            assert!(same, "constant: {constant_b}, {row:?} became {got:?}");
        }
    }
}

/// A k as long as the description allows, of the largest products, with zero points at the ends: most sums
/// come within one product of 2^31.
fn the_longest_sums() {
    let ends = |a, b, constant_b| Quantization {
        a: QuantA::Static { scale: 1.0, zero_point: a },
        b: match constant_b {
            true => QuantB::PerTensor { zero_point: b },
            false => QuantB::Static { scale: 1.0, zero_point: b },
        },
        ..Quantization::default()
    };
    // Type of A, its zero point and B's, an element of each.
    for (a_type, zero, a, b) in [
        (I8, None, -128, -128),
        // Sums of unsigned bytes, which kernels take on the way, pass 32 bits here.
        (I8, None, 127, -128),
        (I8, Some((127, 127)), -128, -128),
        (I8, Some((-128, 127)), 127, -128),
        (I8, Some((-128, -128)), 127, 127),
        (U8, None, 255, -128),
        (U8, Some((255, -128)), 0, 127),
        (U8, Some((0, 127)), 255, -128),
    ] {
        let (zero_a, zero_b) = zero.unwrap_or_default();
        let term = i64::from(a - zero_a) * i64::from(b - zero_b);
        let (low, high) = if a_type == I8 { (-128, 127) } else { (0, 255) };
        let magnitude = |low: i32, high: i32, zero: i32| {
            i64::from([low, high, low - zero, high - zero].into_iter().map(i32::abs).fold(0, i32::max))
        };
        let largest = magnitude(low, high, zero_a) * magnitude(-128, 127, zero_b);
        let k = usize::try_from(i64::from(i32::MAX) / largest).expect("positive");
        let types =
            ElementTypes { a: a_type, output: if zero.is_some() { F32 } else { I32 }, ..ElementTypes::INT8 };
        let describe = |k, constant_b| {
            let quantization = zero.map_or_else(Quantization::default, |(a, b)| ends(a, b, constant_b));
            MatMul::builder(2, 3, k).types(types).quantization(quantization)
        };
        assert!(describe(k + 1, false).build().is_err(), "{a_type}, {zero:?}: {k} is not the limit");
        assert!(
            describe(k + 1, true).build_constant_b().is_err(),
            "{a_type}, {zero:?}: {k} is not the limit"
        );
        let signed = vec![i8::try_from(a).unwrap_or_default(); 2 * k];
        let unsigned = vec![u8::try_from(a).unwrap_or_default(); 2 * k];
        let a_view: AnyView<'_> = match a_type {
            I8 => TensorView::new(&signed, 2, k).expect("A").into(),
            _ => TensorView::new(&unsigned, 2, k).expect("A").into(),
        };
        let b = Tensor::filled(k, 3, i8::try_from(b).expect("an i8")).expect("B");
        for constant_b in [true, false] {
            let compiled = if constant_b {
                let mut weights = Weights::new(&b).expect("weights");
                if let Some((_, zero_point)) = zero {
                    let one_scale = QuantB::PerTensor { zero_point };
                    weights = weights.with_scales(one_scale, &[1f32]).expect("1");
                }
                let product = describe(k, true).with_weights(&weights).expect("a valid description");
                product.compile(&BackendId::CPU)
            } else {
                describe(k, false).build().expect("a valid description").compile(&BackendId::CPU)
            };
            let compiled = compiled.expect("it compiles");
            let inputs = if constant_b { Inputs::new(a_view) } else { Inputs::new(a_view).b(&b) };
            let mut executor = compiled.executor().expect("an executor");
            let sum = term * i64::try_from(k).expect("small");
            if zero.is_some() {
                let mut c = [f32::NAN; 6];
                executor.run(inputs, TensorViewMut::new(&mut c, 2, 3).expect("C")).expect("it runs");
                #[allow(clippy::cast_precision_loss, reason = "rounded, as documented")]
                let expected = sum as f32;
                assert_eq!(c, [expected; 6], "{a_type}, {zero:?}, constant: {constant_b}");
            } else {
                let mut c = [7i32; 6];
                executor.run(inputs, TensorViewMut::new(&mut c, 2, 3).expect("C")).expect("it runs");
                assert_eq!(c.map(i64::from), [sum; 6], "{a_type}, constant: {constant_b}");
            }
        }
    }
}

/// bf16 numbers below the smallest normal one count, in A and in B; dot-product instructions take them for 0.
fn subnormals() {
    let large = bf16::from_f32(2f32.powi(100));
    // The smallest and the largest, both signs.
    for small in [1, 0x7f, 0x8001, 0x807f].map(bf16::from_bits) {
        let product = f32::from(large) * f32::from(small);
        for (a, b) in [(large, small), (small, large)] {
            for (constant_b, transpose_b) in [(true, false), (true, true), (false, false), (false, true)] {
                one_element(a, b, product, constant_b, transpose_b);
            }
        }
    }
}

/// One element of each operand is not 0: in row 1 of A and column 20 of op(B).
fn one_element(a: bf16, b: bf16, product: f32, constant_b: bool, transpose_b: bool) {
    const K: usize = 5;
    let description = MatMul::builder(3, N, K)
        .types(ElementTypes::BF16)
        .transpose_b(transpose_b)
        .build()
        .expect("a valid description");
    let a = Tensor::from_fn(3, K, |row, p| if (row, p) == (1, 4) { a } else { bf16::ZERO }).expect("A");
    let (rows, cols, place) = if transpose_b { (N, K, (20, 4)) } else { (K, N, (4, 20)) };
    let b = Tensor::from_fn(rows, cols, |row, col| if (row, col) == place { b } else { bf16::ZERO });
    let b = b.expect("B");
    let compiled = compile(&description, constant_b.then(|| b.view().into()));
    let inputs = if constant_b { Inputs::new(&a) } else { Inputs::new(&a).b(&b) };
    let mut c = Tensor::filled(3, N, f32::NAN).expect("C");
    compiled.executor().expect("an executor").run(inputs, &mut c).expect("it runs");
    let expected = Tensor::from_fn(3, N, |row, col| if (row, col) == (1, 20) { product } else { 0.0 });
    assert_eq!(c, expected.expect("C"), "constant: {constant_b}, transposed: {transpose_b}");
}

fn all() {
    subnormals();
    outputs();
    integer_outputs();
    quantized_rows();
    the_longest_sums();
}

#[test]
fn values_are_exact_on_every_kernel() {
    on_every_kernel_of_narrow_types("values_are_exact_on_every_kernel", all);
}
