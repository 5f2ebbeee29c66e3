//! Scales that are wrong, missing or not asked for are errors that say what to do, and right ones arrive.

use ane_matmul::{
    BackendId, CompileOptions, ElementType, ElementTypes, Error, Inputs, Layout, MatMul, Operand, QuantA,
    QuantB, QuantOutput, Quantization, Tensor, TensorView, Weights,
};
use half::f16;

const N: usize = 5;
const K: usize = 40;

const STATIC_A: Quantization = Quantization {
    a: QuantA::Static { zero_point: 3 },
    b: QuantB::None,
    output: QuantOutput::None,
    nibble_order: ane_matmul::NibbleOrder::LowFirst,
};

fn product(quantization: Quantization, types: ElementTypes, constant_b: bool) -> MatMul {
    MatMul::builder(4, N, K)
        .types(types)
        .quantization(quantization)
        .constant_b(constant_b)
        .build()
        .expect("a valid description")
}

fn of_b(b: QuantB) -> Quantization {
    Quantization { b, ..Quantization::default() }
}

fn weights() -> Weights {
    Weights::new(
        &Tensor::from_fn(K, N, |row, col| i8::try_from(row + col).expect("small")).expect("a tensor"),
    )
    .expect("weights")
}

fn compile(product: &MatMul, weights: Option<&Weights>, options: &CompileOptions) -> Result<(), Error> {
    product.compile(&BackendId::CPU, weights, options).map(drop)
}

/// The options with one of their scales.
type Set = fn(CompileOptions, f32) -> CompileOptions;

/// Each scale of the options, with a description that asks for it.
fn scales_of_the_options() -> [(&'static str, Quantization, ElementTypes, Set); 3] {
    let to_i8 = ElementTypes { output: ElementType::I8, ..ElementTypes::INT8 };
    let output = QuantOutput::Static { zero_point: -7 };
    [
        ("scale_a", STATIC_A, ElementTypes::INT8, CompileOptions::scale_a),
        ("scale_b", of_b(QuantB::PerTensor { zero_point: 0 }), ElementTypes::INT8, CompileOptions::scale_b),
        ("scale_c", Quantization { output, ..Quantization::default() }, to_i8, CompileOptions::scale_c),
    ]
}

#[test]
fn a_scale_of_the_options_must_be_positive_and_finite_in_its_type() {
    for (name, quantization, types, set) in scales_of_the_options() {
        let try_scale = |scales, scale: f32| {
            let product = product(quantization, ElementTypes { scales, ..types }, false);
            compile(&product, None, &set(CompileOptions::default(), scale))
        };
        for bad in [0.0, -0.0, -0.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for scales in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
                match try_scale(scales, bad) {
                    Err(Error::Scale { index: 0, value, element }) => {
                        assert_eq!((value.to_bits(), element), (bad.to_bits(), scales), "{name}");
                    }
                    other => panic!("{name} {bad}: {other:?}"),
                }
            }
        }
        // Too small and too large for f16 alone.
        for (scale, f16_takes_it) in [(1e-9, false), (1e6, false), (6e-8, true), (65504.0, true)] {
            assert!(
                try_scale(ElementType::F32, scale).is_ok() && try_scale(ElementType::Bf16, scale).is_ok()
            );
            assert_eq!(try_scale(ElementType::F16, scale).is_ok(), f16_takes_it, "{name} {scale}");
        }
        let message = try_scale(ElementType::F16, 1e6).unwrap_err().to_string();
        assert!(message.contains("f16") && message.contains("1000000"), "{message}");
        assert!(matches!(
            try_scale(ElementType::I32, 0.5),
            Err(Error::Refused { .. } | Error::Description { .. })
        ));
    }
}

#[test]
fn a_scale_of_the_options_must_be_given_where_it_is_asked_for_and_nowhere_else() {
    for (name, quantization, types, set) in scales_of_the_options() {
        let asked = product(quantization, types, false);
        match compile(&asked, None, &CompileOptions::default()) {
            Err(Error::Missing { operand: Operand::Scales, help }) => assert!(help.contains(name), "{help}"),
            other => panic!("{name}: {other:?}"),
        }
        let options = set(CompileOptions::default(), 0.5);
        compile(&asked, None, &options).expect(name);
        let plain = ElementTypes { output: ElementType::I32, ..ElementTypes::INT8 };
        for types in [plain, ElementTypes::F32, ElementTypes::BF16] {
            let unasked = product(Quantization::default(), types, false);
            match compile(&unasked, None, &options) {
                Err(Error::Unexpected { operand: Operand::Scales, .. }) => {}
                other => panic!("{name}, {types:?}: {other:?}"),
            }
        }
    }
    // A constant B brings its scales itself.
    let constant = product(of_b(QuantB::PerTensor { zero_point: 0 }), ElementTypes::INT8, true);
    let scaled = weights().with_scales(&Tensor::filled(1, 1, 1f32).unwrap()).unwrap();
    match compile(&constant, Some(&scaled), &CompileOptions::default().scale_b(0.5)) {
        Err(Error::Unexpected { operand: Operand::Scales, help }) => {
            assert!(help.contains("Weights"), "{help}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn scales_of_weights_must_be_positive_and_finite() {
    for bad in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY] {
        for index in [0, 3, N - 1] {
            let mut scales = vec![0.5f32; N];
            scales[index] = bad;
            match weights().with_scales(TensorView::new(&scales, 1, N).unwrap()) {
                Err(Error::Scale { index: at, value, element: ElementType::F32 }) => {
                    assert_eq!((at, value.to_bits()), (index, bad.to_bits()));
                }
                other => panic!("{bad}: {other:?}"),
            }
        }
    }
    let scales = [f16::ONE, f16::INFINITY];
    let message = weights().with_scales(TensorView::new(&scales, 1, 2).unwrap()).unwrap_err().to_string();
    assert!(message.contains("inf") && message.contains("f16"), "{message}");
    let whole = Tensor::filled(1, N, 1i8).unwrap();
    assert!(matches!(weights().with_scales(&whole), Err(Error::Description { .. })));
}

#[test]
fn scales_of_weights_must_have_the_shape_and_type_of_the_scheme() {
    let weight_only = ElementTypes { b: ElementType::I8, ..ElementTypes::F32 };
    let groups = QuantB::PerGroup { group_size: 16, zero_point: 0 };
    for (scheme, types, rows, cols) in [
        (QuantB::PerTensor { zero_point: 0 }, ElementTypes::INT8, 1, 1),
        (QuantB::PerColumn { zero_point: 0 }, ElementTypes::INT8, 1, N),
        (QuantB::PerColumn { zero_point: 0 }, weight_only, 1, N),
        (groups, weight_only, K.div_ceil(16), N),
    ] {
        let product = product(of_b(scheme), types, true);
        let with = |batch, rows, cols| {
            let scales = Tensor::from_fn_batched(batch, rows, cols, |_, _, _| 0.5f32).unwrap();
            compile(&product, Some(&weights().with_scales(&scales).unwrap()), &CompileOptions::default())
        };
        with(1, rows, cols).expect("the right shape");
        for (batch, r, c) in
            [(1, rows + 1, cols), (1, rows, cols + 1), (2, rows, cols), (1, rows, 0), (1, cols + 1, rows)]
        {
            match with(batch, r, c) {
                Err(Error::Shape { operand: Operand::Scales, expected, .. }) => {
                    assert_eq!(expected, Layout::packed(1, rows, cols).unwrap().to_string());
                }
                other => panic!("{scheme:?}, {batch}x{r}x{c}: {other:?}"),
            }
        }
        match compile(&product, Some(&weights()), &CompileOptions::default()) {
            Err(Error::Missing { operand: Operand::Scales, help }) => assert!(help.contains("with_scales")),
            other => panic!("{other:?}"),
        }
        let narrow = vec![f16::ONE; rows * cols];
        let narrow = weights().with_scales(TensorView::new(&narrow, rows, cols).unwrap()).unwrap();
        match compile(&product, Some(&narrow), &CompileOptions::default()) {
            Err(Error::Type {
                operand: Operand::Scales,
                expected: ElementType::F32,
                got: ElementType::F16,
            }) => {}
            other => panic!("{other:?}"),
        }
    }
    let plain = ElementTypes { output: ElementType::I32, ..ElementTypes::INT8 };
    let scaled = weights().with_scales(&Tensor::filled(1, 1, 1f32).unwrap()).unwrap();
    match compile(&product(Quantization::default(), plain, true), Some(&scaled), &CompileOptions::default()) {
        Err(Error::Unexpected { operand: Operand::Scales, .. }) => {}
        other => panic!("{other:?}"),
    }
    // One matrix for all three items, or one each; not two.
    let batched = MatMul::builder(2, N, K)
        .batch(3)
        .batch_stride(Operand::B, 0)
        .types(ElementTypes::INT8)
        .quantization(of_b(QuantB::PerColumn { zero_point: 0 }))
        .constant_b(true)
        .build()
        .unwrap();
    let b: Vec<i8> = vec![1; K * N];
    let b = Weights::new(TensorView::with_layout(&b, *batched.b()).unwrap()).unwrap();
    for (items, fit) in [(1, true), (2, false), (3, true), (4, false)] {
        let scales = Tensor::from_fn_batched(items, 1, N, |_, _, _| 0.5f32).unwrap();
        let result = compile(&batched, Some(&b.with_scales(&scales).unwrap()), &CompileOptions::default());
        assert_eq!(result.is_ok(), fit, "{items}: {result:?}");
    }
}

/// Scales of columns and groups belong to constant weights.
#[test]
fn a_b_of_every_run_has_one_scale() {
    for scheme in [QuantB::PerColumn { zero_point: 0 }, QuantB::PerGroup { group_size: 8, zero_point: 0 }] {
        let types = ElementTypes { b: ElementType::I8, ..ElementTypes::F32 };
        let error =
            compile(&product(of_b(scheme), types, false), None, &CompileOptions::default().scale_b(1.0))
                .unwrap_err()
                .to_string();
        assert!(error.contains("PerTensor"), "{error}");
    }
}

/// The reciprocal of a subnormal scale is infinite: a sum of 0 still becomes the zero point, any other an end.
#[test]
fn the_smallest_scale_of_c_saturates() {
    for (output, zero_point, ends) in [(ElementType::I8, -7, [-128, 127]), (ElementType::U8, 9, [0, 255])] {
        let scheme = QuantOutput::Static { zero_point };
        let product = MatMul::builder(1, 3, 1)
            .types(ElementTypes { output, ..ElementTypes::INT8 })
            .quantization(Quantization { output: scheme, ..Quantization::default() })
            .build()
            .unwrap();
        let options = CompileOptions::default().scale_c(1e-40);
        let compiled = product.compile(&BackendId::CPU, None, &options).unwrap();
        let (a, b) = (Tensor::filled(1, 1, 3i8).unwrap(), Tensor::from_vec(vec![-1i8, 0, 1], 1, 3).unwrap());
        let inputs = Inputs::new(&a).b(&b);
        let c = if output == ElementType::I8 {
            let mut c = Tensor::filled(1, 3, 77i8).unwrap();
            compiled.executor().unwrap().run(&inputs, &mut c).unwrap();
            c.data().iter().copied().map(i32::from).collect::<Vec<_>>()
        } else {
            let mut c = Tensor::filled(1, 3, 77u8).unwrap();
            compiled.executor().unwrap().run(&inputs, &mut c).unwrap();
            c.data().iter().copied().map(i32::from).collect::<Vec<_>>()
        };
        assert_eq!(c, [ends[0], zero_point, ends[1]], "{output}");
    }
}
