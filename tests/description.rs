//! What a description accepts, and how it says no.

use std::collections::HashSet;

use ane_matmul::{
    Activation, ElementType, ElementTypes, Error, MatMul, MatMulBuilder, Operand, QuantA, QuantB,
    QuantOutput, Quantization,
};

fn problem(builder: MatMulBuilder) -> String {
    builder.build().expect_err("an invalid description").to_string()
}

#[test]
fn descriptions_are_values() {
    let describe = || MatMul::builder(3, 4, 5).bias(true).activation(Activation::Silu).build().unwrap();
    let mut set = HashSet::new();
    set.insert(describe());
    assert!(set.contains(&describe()));
    assert!(!set.contains(&describe().linear_part()));
    assert_ne!(describe(), MatMul::new(3, 4, 5).unwrap());
}

#[test]
fn defaults_are_packed() {
    let product = MatMul::builder(3, 4, 5).batch(2).transpose_b(true).build().unwrap();
    assert_eq!((product.a().rows(), product.a().cols()), (3, 5));
    assert_eq!((product.b().rows(), product.b().cols()), (4, 5));
    assert_eq!(product.b().batch_stride(), 20);
    assert!(product.c().is_packed());
    assert_eq!(product.flops(), 240.0);
}

#[test]
fn sizes_that_overflow_are_errors() {
    for (m, n, k) in [(usize::MAX, 2, 2), (1 << 32, 1 << 32, 1), (1, 1 << 32, 1 << 31), (1 << 60, 1, 4)] {
        assert!(matches!(MatMul::new(m, n, k), Err(Error::SizeOverflow { .. })), "{m} {n} {k}");
    }
    let many = MatMul::builder(1 << 20, 1 << 20, 1).batch(1 << 30).build();
    assert!(matches!(many, Err(Error::SizeOverflow { .. })));
    let stride = MatMul::builder(2, 2, 2).leading_dimension(Operand::A, usize::MAX).build();
    assert!(matches!(stride, Err(Error::SizeOverflow { .. })));
    let stride = MatMul::builder(2, 2, 2).batch(3).batch_stride(Operand::B, usize::MAX / 2).build();
    assert!(matches!(stride, Err(Error::SizeOverflow { .. })));
}

#[test]
fn leading_dimensions_count_stored_columns() {
    assert_eq!(
        problem(MatMul::builder(3, 4, 5).leading_dimension(Operand::A, 4)),
        "expected a leading dimension of at least 5 (the columns as stored), got 4"
    );
    assert!(MatMul::builder(3, 4, 5).transpose_a(true).leading_dimension(Operand::A, 4).build().is_ok());
    assert!(MatMul::builder(3, 4, 5).residual(true).leading_dimension(Operand::Residual, 3).build().is_err());
}

#[test]
fn items_of_c_may_not_overlap() {
    let shared = MatMul::builder(3, 4, 5).batch(2).batch_stride(Operand::C, 0);
    assert!(problem(shared).contains("items of C overlap"));
    let close = MatMul::builder(3, 4, 5).batch(2).batch_stride(Operand::C, 11);
    assert!(problem(close).contains("batch stride 11 for 12 elements"));
    assert!(MatMul::builder(3, 4, 5).batch(1).batch_stride(Operand::C, 0).build().is_ok());
    assert!(MatMul::builder(3, 4, 5).batch(2).batch_stride(Operand::A, 0).build().is_ok());
}

#[test]
fn alpha_is_finite() {
    for alpha in [f32::NAN, f32::INFINITY] {
        assert!(problem(MatMul::builder(1, 1, 1).alpha(alpha)).contains("alpha"));
    }
}

#[test]
fn integer_sums_must_fit_their_accumulator() {
    let int8 = |k| MatMul::builder(1, 1, k).types(ElementTypes::INT8).build();
    // 128 * 128 * 131071 < 2^31 - 1 < 128 * 128 * 131072
    assert!(int8(131_071).is_ok());
    assert!(matches!(int8(131_072), Err(Error::Accumulator { maximum: 131_071, .. })));
    let u8_by_i8 = ElementTypes { a: ElementType::U8, ..ElementTypes::INT8 };
    let unsigned = |k| MatMul::builder(1, 1, k).types(u8_by_i8).build();
    assert!(unsigned(65_793).is_ok());
    assert!(matches!(unsigned(65_794), Err(Error::Accumulator { maximum: 65_793, .. })));
    let zero_points = |b| {
        let a = QuantA::Static { scale: 1.0, zero_point: -128 };
        let quantization = Quantization { a, b, ..Quantization::default() };
        MatMul::builder(1, 1, 33_026).types(ElementTypes::INT8).quantization(quantization)
    };
    let quantized = zero_points(QuantB::Static { scale: 1.0, zero_point: 127 }).build();
    assert!(matches!(quantized, Err(Error::Accumulator { maximum: 33_025, .. })));
    let constant = zero_points(QuantB::PerTensor { zero_point: 127 }).build_constant_b();
    assert!(matches!(constant, Err(Error::Accumulator { maximum: 33_025, .. })));
    let narrow = ElementTypes { accumulator: ElementType::I8, ..ElementTypes::INT8 };
    assert!(problem(MatMul::builder(1, 1, 1).types(narrow)).contains("cannot be summed in i8"));
}

#[test]
fn contradictory_types_and_schemes_are_errors() {
    let types = ElementTypes { accumulator: ElementType::I32, ..ElementTypes::F32 };
    assert!(problem(MatMul::builder(1, 1, 1).types(types)).contains("cannot be summed in i32"));
    let scheme = |quantization| MatMul::builder(1, 1, 1).types(ElementTypes::INT8).quantization(quantization);
    let none = Quantization::default();
    let bad_a = Quantization { a: QuantA::Static { scale: 1.0, zero_point: 128 }, ..none };
    assert!(problem(scheme(bad_a)).contains("zero point 128 is no i8"));
    assert!(problem(scheme(Quantization { a: QuantA::DynamicPerRow, ..none })).contains("per row"));
    let group = QuantB::PerGroup { group_size: 0, zero_point: 0 };
    let in_groups = || scheme(Quantization { b: group, ..none });
    assert!(problem(in_groups()).contains("group size of 0"));
    assert!(in_groups().build_constant_b().unwrap_err().to_string().contains("group size of 0"));
    let output = Quantization { output: QuantOutput::Static { scale: 1.0, zero_point: 0 }, ..none };
    assert!(problem(scheme(output)).contains("C of type f32"));
    let bias = ElementTypes { bias: ElementType::U8, ..ElementTypes::F32 };
    assert!(problem(MatMul::builder(1, 1, 1).types(bias).bias(true)).contains("a bias of type u8"));
}

#[test]
fn a_description_says_what_is_not_the_default() {
    let text = |builder: MatMulBuilder| builder.build().unwrap().to_string();
    assert_eq!(text(MatMul::builder(2, 3, 4)), "2x3x4 f32");
    let everything = MatMul::builder(2, 3, 4)
        .batch(5)
        .transpose_a(true)
        .transpose_b(true)
        .variable_m(true)
        .alpha(0.5)
        .bias(true)
        .residual(true)
        .activation(Activation::Relu);
    let expected = "5 x 2x3x4 f32 A^T B^T constant B variable m alpha 0.5 +bias +residual relu";
    assert_eq!(everything.build_constant_b().unwrap().product().to_string(), expected);
    let types = ElementTypes { b: ElementType::F16, output: ElementType::F32, ..ElementTypes::BF16 };
    assert_eq!(text(MatMul::builder(2, 3, 4).types(types)), "2x3x4 bf16 x f16 -> f32");
}
