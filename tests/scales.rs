//! Scales that are wrong, of the wrong shape or in the wrong place are errors that say what to do, and right ones
//! arrive: those of A, of C and of a B that comes with every run in the description, those of weights with them.

use std::collections::HashSet;

use ane_matmul::{
    BackendId, Backends, CacheLimits, CompileOptions, ElementType, ElementTypes, Error, Inputs, MatMul,
    Operand, ProductCache, QuantA, QuantB, QuantOutput, Quantization, RefusalReason, Result, Tensor,
    TensorView, Weights,
};
use half::{bf16, f16};

const N: usize = 5;
const K: usize = 40;

const PER_TENSOR: QuantB = QuantB::PerTensor { zero_point: 0 };
const PER_COLUMN: QuantB = QuantB::PerColumn { zero_point: 0 };

const WEIGHT_ONLY: ElementTypes = ElementTypes { b: ElementType::I8, ..ElementTypes::F32 };
const TO_I8: ElementTypes = ElementTypes { output: ElementType::I8, ..ElementTypes::INT8 };
const TO_I32: ElementTypes = ElementTypes { output: ElementType::I32, ..ElementTypes::INT8 };

fn builder(quantization: Quantization, types: ElementTypes) -> ane_matmul::MatMulBuilder {
    MatMul::builder(4, N, K).types(types).quantization(quantization)
}

fn of_a(scale: f32) -> Quantization {
    Quantization { a: QuantA::Static { scale, zero_point: 3 }, ..Quantization::default() }
}

fn of_b(b: QuantB) -> Quantization {
    Quantization { b, ..Quantization::default() }
}

fn one_of_b(scale: f32) -> Quantization {
    of_b(QuantB::Static { scale, zero_point: 2 })
}

fn of_c(scale: f32) -> Quantization {
    Quantization { output: QuantOutput::Static { scale, zero_point: -7 }, ..Quantization::default() }
}

/// What makes a quantisation of a scale, and what finds it there.
type Scaled = (&'static str, ElementTypes, fn(f32) -> Quantization, fn(&Quantization) -> Option<f32>);

/// Each scale of a description.
const SCALES_OF_A_DESCRIPTION: [Scaled; 3] = [
    ("A", ElementTypes::INT8, of_a, |quantization| quantization.a.scale()),
    ("B", ElementTypes::INT8, one_of_b, |quantization| quantization.b.scale()),
    ("C", TO_I8, of_c, |quantization| quantization.output.scale()),
];

fn weights() -> Weights {
    Weights::new(
        &Tensor::from_fn(K, N, |row, col| i8::try_from(row + col).expect("small")).expect("a tensor"),
    )
    .expect("weights")
}

/// The problem of a description.
fn problem<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(error @ Error::Description { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_scale_of_the_description_must_be_positive_and_finite_in_its_type() {
    for (name, types, quantization, _) in SCALES_OF_A_DESCRIPTION {
        let try_scale = |scales, scale: f32| {
            builder(quantization(scale), ElementTypes { scales, ..types }).build().map(drop)
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
        assert!(problem(try_scale(ElementType::I32, 0.5)).contains("scales of type i32"));
    }
}

/// Two scales that are one number in the type of scales make one description.
#[test]
fn a_scale_of_the_description_is_rounded_to_its_type_and_compared_by_its_bits() {
    let scale = 0.1f32;
    for (name, types, quantization, scale_of) in SCALES_OF_A_DESCRIPTION {
        for (scales, rounded) in [
            (ElementType::F32, scale),
            (ElementType::F16, f16::from_f32(scale).to_f32()),
            (ElementType::Bf16, bf16::from_f32(scale).to_f32()),
        ] {
            let of =
                |scale: f32| builder(quantization(scale), ElementTypes { scales, ..types }).build().unwrap();
            let got = scale_of(of(scale).quantization()).expect("a scale");
            assert_eq!(got.to_bits(), rounded.to_bits(), "{name}, {scales}");
            let others = [scale, scale.next_up(), scale.next_down(), rounded];
            let distinct = HashSet::from(others.map(of)).len();
            assert_eq!(distinct, if scales == ElementType::F32 { 3 } else { 1 }, "{name}, {scales}");
            assert_ne!(of(scale), of(2.0 * scale), "{name}, {scales}");
        }
    }
    // Before they are checked too: every value equals itself.
    assert_eq!(of_a(f32::NAN), of_a(f32::NAN));
    assert_ne!(of_a(0.0), of_a(-0.0));
}

/// C's integers are (scale of A) (scale of B) / (scale of C) times the sums, B known or not.
#[test]
fn every_scale_arrives() {
    let (scale_a, scale_b, scale_c) = (0.5f32, 0.25, 2.0);
    let quantization = |b| Quantization {
        a: QuantA::Static { scale: scale_a, zero_point: 1 },
        b,
        output: QuantOutput::Static { scale: scale_c, zero_point: -3 },
        ..Quantization::default()
    };
    let (a, b) = (Tensor::filled(2, 8, 5i8).unwrap(), Tensor::filled(8, 3, 7i8).unwrap());
    let describe = |b| MatMul::builder(2, 3, 8).types(TO_I8).quantization(quantization(b));
    // 8 (5 - 1) (7 - 2) 0.5 0.25 / 2 - 3
    let expected = [7i8; 6];
    let mut c = Tensor::filled(2, 3, 77i8).unwrap();
    let every_run = describe(QuantB::Static { scale: scale_b, zero_point: 2 }).build().unwrap();
    every_run.compile(&BackendId::CPU).unwrap().run(Inputs::new(&a).b(&b), &mut c).unwrap();
    assert_eq!(*c.data(), expected);
    let scheme = QuantB::PerTensor { zero_point: 2 };
    let weights = Weights::new(&b).unwrap().with_scales(scheme, &[scale_b]).unwrap();
    for described in [QuantB::None, scheme] {
        c.data_mut().fill(77);
        let constant = describe(described).with_weights(&weights).unwrap();
        constant.compile(&BackendId::CPU).unwrap().run(&a, &mut c).unwrap();
        assert_eq!(*c.data(), expected, "{described:?}");
    }
}

#[test]
fn an_operand_that_is_no_integer_has_no_scale() {
    for types in [ElementTypes::F32, ElementTypes::BF16] {
        for (name, _, quantization, _) in SCALES_OF_A_DESCRIPTION {
            let message = problem(builder(quantization(0.5), types).build());
            assert!(message.contains(&format!("{name} of type ")), "{message}");
        }
    }
    // The sums themselves have no scale either: that is a refusal, since the description makes sense.
    for (name, _, quantization, _) in &SCALES_OF_A_DESCRIPTION[..2] {
        let sums = builder(quantization(0.5), TO_I32).build().unwrap();
        match sums.compile(&BackendId::CPU) {
            Err(Error::Refused { refusal, .. }) => {
                assert_eq!(refusal.reason, RefusalReason::ElementType, "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Scales of weights are data: they come with them, and with nothing else.
#[test]
fn a_b_of_every_run_has_one_scale_and_a_constant_b_its_own() {
    for (scheme, types) in [
        (PER_TENSOR, ElementTypes::INT8),
        (PER_TENSOR, WEIGHT_ONLY),
        (PER_COLUMN, ElementTypes::INT8),
        (QuantB::PerGroup { group_size: 8, zero_point: 0 }, WEIGHT_ONLY),
    ] {
        let message = problem(builder(of_b(scheme), types).build());
        assert!(message.contains("QuantB::Static") && message.contains("with_weights"), "{message}");
        assert!(builder(of_b(scheme), types).build_constant_b().is_ok());
        // The right integers, without the scales that the description speaks of.
        let message = problem(builder(of_b(scheme), types).with_weights(&weights()));
        assert!(message.contains(&format!("{scheme:?}")) && message.contains("None"), "{message}");
    }
    for types in [ElementTypes::INT8, WEIGHT_ONLY] {
        let message = problem(builder(one_of_b(0.5), types).build_constant_b());
        assert!(message.contains("Weights::with_scales"), "{message}");
        let scaled = weights().with_scales(PER_TENSOR, &[0.5f32]).unwrap();
        for (weights, help) in [(weights(), "Weights::with_scales"), (scaled, "leave Quantization::b out")] {
            let message = problem(builder(one_of_b(0.5), types).with_weights(&weights));
            assert!(message.contains(help), "{message}");
        }
    }
    // A description of another scheme: other groups, another zero point.
    let groups = |group_size, zero_point| QuantB::PerGroup { group_size, zero_point };
    let scales = Tensor::filled(K.div_ceil(16), N, 1f32).unwrap();
    let grouped = weights().with_scales(groups(16, 1), &scales).unwrap();
    assert!(builder(of_b(groups(16, 1)), WEIGHT_ONLY).with_weights(&grouped).is_ok());
    for other in [groups(17, 1), groups(16, 2), PER_COLUMN] {
        let message = problem(builder(of_b(other), WEIGHT_ONLY).with_weights(&grouped));
        assert!(message.contains(&format!("{other:?}")), "{message}");
    }
}

#[test]
fn scales_of_weights_must_be_positive_and_finite() {
    for bad in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY] {
        for index in [0, 3, N - 1] {
            let mut scales = vec![0.5f32; N];
            scales[index] = bad;
            match weights().with_scales(PER_COLUMN, TensorView::new(&scales, 1, N).unwrap()) {
                Err(Error::Scale { index: at, value, element: ElementType::F32 }) => {
                    assert_eq!((at, value.to_bits()), (index, bad.to_bits()));
                }
                other => panic!("{bad}: {other:?}"),
            }
        }
    }
    let mut scales = [f16::ONE; N];
    scales[1] = f16::INFINITY;
    let message = weights().with_scales(PER_COLUMN, &scales).unwrap_err().to_string();
    assert!(message.contains("scale 1 is inf") && message.contains("f16"), "{message}");
    let whole = Tensor::filled(1, N, 1i8).unwrap();
    assert!(problem(weights().with_scales(PER_COLUMN, &whole)).contains("scales of type i8"));
}

#[test]
fn scales_of_weights_must_have_the_shape_of_the_scheme() {
    let groups = QuantB::PerGroup { group_size: 16, zero_point: 0 };
    for (scheme, rows, cols) in [(PER_TENSOR, 1, 1), (PER_COLUMN, 1, N), (groups, K.div_ceil(16), N)] {
        let with = |batch, rows, cols| {
            let scales = Tensor::from_fn_batched(batch, rows, cols, |_, _, _| 0.5f32).unwrap();
            weights().with_scales(scheme, &scales)
        };
        let scaled = with(1, rows, cols).expect("the right shape");
        for (batch, r, c) in
            [(1, rows + 1, cols), (1, rows, cols + 1), (2, rows, cols), (1, rows, 0), (1, cols + 1, rows)]
        {
            match with(batch, r, c) {
                Err(Error::Shape { operand: Operand::Scales, expected, .. }) => {
                    assert!(expected.starts_with(&format!("{rows} x {cols} ")), "{expected}");
                }
                other => panic!("{scheme:?}, {batch}x{r}x{c}: {other:?}"),
            }
        }
        // Stored the other way round, they have the same shape.
        let transposed = Weights::new(&Tensor::filled(N, K, 1i8).unwrap()).unwrap().transposed().unwrap();
        let scales = Tensor::filled(rows, cols, 0.5f32).unwrap();
        assert!(transposed.with_scales(scheme, &scales).is_ok(), "{scheme:?}");

        // What the description says of B's scheme and of the type of scales is that of the weights.
        let product = builder(Quantization::default(), WEIGHT_ONLY).with_weights(&scaled).unwrap();
        assert_eq!(product.product().quantization().b, scheme);
        assert!(product.compile(&BackendId::CPU).is_ok(), "{scheme:?}");
        let narrow = vec![f16::ONE; rows * cols];
        let narrow = weights().with_scales(scheme, TensorView::new(&narrow, rows, cols).unwrap()).unwrap();
        let product = builder(Quantization::default(), WEIGHT_ONLY).with_weights(&narrow).unwrap();
        assert_eq!(product.product().types().scales, ElementType::F16);
        assert!(product.compile(&BackendId::CPU).is_ok(), "{scheme:?}");
    }
    // Sums have no scales.
    let scaled = weights().with_scales(PER_TENSOR, &[1f32]).unwrap();
    let sums = builder(Quantization::default(), TO_I32).with_weights(&scaled).unwrap();
    assert!(matches!(sums.compile(&BackendId::CPU), Err(Error::Refused { .. })));
    // One matrix for all three items, or one each; not two.
    let b = Weights::new(&Tensor::from_fn_batched(3, K, N, |_, _, _| 1i8).unwrap()).unwrap();
    for (items, fit) in [(1, true), (2, false), (3, true), (4, false)] {
        let scales = Tensor::from_fn_batched(items, 1, N, |_, _, _| 0.5f32).unwrap();
        let result = b.with_scales(PER_COLUMN, &scales).and_then(|b| {
            let product = MatMul::builder(2, N, K).batch(3).types(ElementTypes::INT8).with_weights(&b)?;
            product.compile(&BackendId::CPU)
        });
        assert_eq!(result.is_ok(), fit, "{items}: {result:?}");
    }
}

/// The other scales of a product have the type of the weights' scales, which may not hold them.
#[test]
fn scales_of_the_description_take_the_type_of_the_weights() {
    let narrow = weights().with_scales(PER_COLUMN, &[f16::ONE; N]).unwrap();
    let with = |scale| builder(of_a(scale), ElementTypes::INT8).with_weights(&narrow);
    let rounded = f16::from_f32(0.1).to_f32();
    assert_eq!(with(0.1).unwrap().product().quantization().a.scale(), Some(rounded));
    for scale in [1e6, 1e-9] {
        assert!(matches!(with(scale), Err(Error::Scale { index: 0, element: ElementType::F16, .. })));
    }
}

#[test]
fn products_of_other_scales_are_other_products_to_a_cache() {
    let cache = ProductCache::new(Backends::new(), CacheLimits::default());
    let options = CompileOptions::default();
    let a = Tensor::filled(4, K, 4i8).unwrap();
    let plain = weights().with_scales(PER_COLUMN, &[1f32; N]).unwrap();
    let sums: Vec<f32> = (0..N).map(|col| (0..K).map(|row| (row + col) as f32).sum()).collect();
    let mut misses = 0;
    for round in 0..2 {
        for scale in [0.5f32, 0.25, 0.5f32.next_up()] {
            let product = builder(of_a(scale), ElementTypes::INT8).with_weights(&plain).unwrap();
            let compiled = cache.compile(&BackendId::CPU, &product, &options).unwrap();
            let c = compiled.run_to_tensor(&a).unwrap();
            let expected: Vec<f32> = sums.iter().map(|sum| sum * scale).collect();
            assert!(c.data().chunks(N).all(|row| row == expected), "{scale}: {c:?}");
        }
        let statistics = cache.statistics();
        misses = statistics.misses;
        assert_eq!((statistics.misses, statistics.hits), (3, 3 * round));
    }
    // Scales of C, and of a B that comes with every run.
    for scale in [0.5, 0.25, 0.5] {
        for (types, quantization) in [(TO_I8, of_c(scale)), (ElementTypes::INT8, one_of_b(scale))] {
            let product = builder(quantization, types).build().unwrap();
            cache.compile(&BackendId::CPU, &product, &options).unwrap();
        }
    }
    assert_eq!(cache.statistics().misses, misses + 4);
    // One number in f16.
    let types = ElementTypes { scales: ElementType::F16, ..ElementTypes::INT8 };
    for scale in [0.5f32, 0.5f32.next_up()] {
        let product = builder(of_a(scale), types).build().unwrap();
        cache.compile(&BackendId::CPU, &product, &options).unwrap();
    }
    assert_eq!(cache.statistics().misses, misses + 5);
}

/// A sum of 0 becomes the zero point, any other an end. Where the reciprocal is infinite, there is no such scale.
#[test]
fn the_smallest_scale_of_c_saturates() {
    for (output, zero_point, ends) in [(ElementType::I8, -7, [-128, 127]), (ElementType::U8, 9, [0, 255])] {
        let product = |scale| {
            let output_scheme = QuantOutput::Static { scale, zero_point };
            MatMul::builder(1, 3, 1)
                .types(ElementTypes { output, ..ElementTypes::INT8 })
                .quantization(Quantization { output: output_scheme, ..Quantization::default() })
                .build()
        };
        for scale in [2.9e-39, 1e-40] {
            let refused = product(scale);
            assert!(matches!(refused, Err(Error::Scale { value, .. }) if value == scale), "{refused:?}");
        }
        let product = product(3e-39).unwrap();
        let compiled = product.compile(&BackendId::CPU).unwrap();
        let (a, b) = (Tensor::filled(1, 1, 3i8).unwrap(), Tensor::from_vec(vec![-1i8, 0, 1], 1, 3).unwrap());
        let inputs = Inputs::new(&a).b(&b);
        let c = if output == ElementType::I8 {
            let mut c = Tensor::filled(1, 3, 77i8).unwrap();
            compiled.executor().unwrap().run(inputs, &mut c).unwrap();
            c.data().iter().copied().map(i32::from).collect::<Vec<_>>()
        } else {
            let mut c = Tensor::filled(1, 3, 77u8).unwrap();
            compiled.executor().unwrap().run(inputs, &mut c).unwrap();
            c.data().iter().copied().map(i32::from).collect::<Vec<_>>()
        };
        assert_eq!(c, [ends[0], zero_point, ends[1]], "{output}");
    }
}
