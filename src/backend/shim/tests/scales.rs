//! Scales reach the shim as the ABI says: elements of the description's type of scales, and null where there
//! are none.

use super::mock::{mock, with_mock};
use crate::description::element::ElementType;
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::options::CompileOptions;
use crate::description::quantization::{QuantA, QuantB, QuantOutput, Quantization};
use crate::description::with_weights::{MatMulWithWeights, Product};
use crate::operands::tensor::Tensor;
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// With static scales of A and C, and of a B that comes with every run.
fn described(b: QuantB, scales: ElementType) -> MatMul {
    MatMul::builder(2, 3, 5)
        .types(ElementTypes { output: ElementType::U8, scales, ..ElementTypes::INT8 })
        .quantization(Quantization {
            a: QuantA::Static { scale: 0.1, zero_point: 1 },
            b,
            output: QuantOutput::Static { scale: 3.0, zero_point: 2 },
            ..Quantization::default()
        })
        .build()
        .unwrap()
}

const EVERY_RUN: QuantB = QuantB::Static { scale: 0.7, zero_point: 0 };

/// With weights of ones for each item of a batch.
fn with_weights<'a>(batch: usize, scales: impl Into<AnyView<'a>>) -> MatMulWithWeights {
    let b = Tensor::from_fn_batched(batch, 5, 3, |_, _, _| 1i8).unwrap();
    let weights = Weights::new(&b).unwrap().with_scales(QuantB::PerColumn { zero_point: -4 }, scales.into());
    let plain = described(QuantB::None, ElementType::F32);
    MatMul::builder(2, 3, 5)
        .batch(batch)
        .types(*plain.types())
        .quantization(*plain.quantization())
        .with_weights(&weights.unwrap())
        .unwrap()
}

/// The bytes that a compilation on the mock was given, of A, B and C.
fn received(product: &impl Product) -> [Option<Vec<u8>>; 3] {
    let (backends, id) = with_mock(|_| {});
    backends.compile(&id, product, &CompileOptions::default()).unwrap();
    mock(|mock| mock.scales.clone())
}

#[test]
fn every_scale_of_the_description_is_one_element_of_its_type() {
    let scales = received(&described(EVERY_RUN, ElementType::F32));
    assert_eq!(scales, [0.1f32, 0.7, 3.0].map(|scale| Some(scale.to_ne_bytes().to_vec())));
}

#[cfg(feature = "half")]
#[test]
fn narrow_scales_are_rounded_to_two_bytes() {
    use half::{bf16, f16};
    let scales = received(&described(EVERY_RUN, ElementType::F16));
    assert_eq!(scales, [0.1, 0.7, 3.0].map(|scale| Some(f16::from_f32_const(scale).to_ne_bytes().to_vec())));
    let scales = received(&described(EVERY_RUN, ElementType::Bf16));
    assert_eq!(scales, [0.1, 0.7, 3.0].map(|scale| Some(bf16::from_f32(scale).to_ne_bytes().to_vec())));

    let of_columns = [f16::from_f32_const(0.25), f16::from_f32_const(0.5), f16::from_f32_const(0.75)];
    let [a, b, _] = received(&with_weights(1, &of_columns));
    assert_eq!(b.unwrap(), of_columns.map(f16::to_ne_bytes).concat());
    assert_eq!(a.unwrap(), f16::from_f32_const(0.1).to_ne_bytes(), "one type for all scales");
}

#[test]
fn scales_of_weights_come_with_them_for_all_items_or_for_each() {
    let bytes = |scales: &[f32]| scales.iter().flat_map(|scale| scale.to_ne_bytes()).collect::<Vec<_>>();
    let shared = [0.25f32, 0.5, 0.75];
    let [a, b, c] = received(&with_weights(2, &shared));
    assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (bytes(&[0.1]), bytes(&shared), bytes(&[3.0])));

    let each = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    let scales = Tensor::from_fn_batched(2, 1, 3, |item, _, col| each[item * 3 + col]).unwrap();
    let [_, b, _] = received(&with_weights(2, &scales));
    assert_eq!(b.unwrap(), bytes(&each));
}

#[test]
fn there_are_no_scales_without_a_scheme() {
    assert_eq!(received(&MatMul::new(2, 3, 5).unwrap()), [None, None, None]);
}
